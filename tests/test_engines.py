"""One engine from weights to its place: built once, held against PyTorch where there is a GPU, refused where it is bad.

The builder is TensorRT-RTX, which is really here; what runs engines is not, for there is no GPU.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sqt_fast.errors import BackendError, ConfigError, OutputError, ParityError
from sqt_fast.kernels import ctl_plugin
from sqt_fast.network.model import SqueezeTime
from sqt_fast.network.onnx_export import ExportConfig, ExportedNetwork, network_sha256
from sqt_fast.network.parity import compare
from sqt_fast.tensorrt import engines, exports, plugin_graph
from sqt_fast.tensorrt.engine_build import Plan
from sqt_fast.tensorrt.engine_cache import Engine, Gpu, engines_folder, engines_in, read_engine, sidecar_of
from sqt_fast.tensorrt.engine_config import Batches, EngineConfig
from sqt_fast.tensorrt.engines import Outcome, Request, build_engine, check_engine, useless
from sqt_fast.tensorrt.tensorrt_library import load_library
from sqt_fast.tensorrt.validation import Validation
from tests.exports import SIZE, ExportedOnce

CONFIG = EngineConfig("rtx", ExportConfig(SIZE, "fp16"), Batches(1, 2, 4))
ROOT = Path(__file__).parents[1]
GPU = Gpu("NVIDIA L40", "8.9", 142)


@pytest.fixture(autouse=True)
def _exported_once(exported: ExportedOnce, monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    monkeypatch.setattr(exports, "export_onnx", exported.write)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[EngineConfig]:
    """What was built, by a builder that takes no time; nor is the exported network run."""
    truth = torch.eye(3, dtype=torch.float64)
    monkeypatch.setattr(exports, "onnx_parity", lambda *args: compare(truth, truth, truth, torch.float16))
    asked: list[EngineConfig] = []

    def build_plan(config: EngineConfig, onnx: Path, progress: Any, *, timing_cache: Path | None) -> Plan:
        assert onnx.is_file()
        asked.append(config)
        return Plan(b"program %d" % len(asked), "1.7.1.116", {}, (), 2.0)

    monkeypatch.setattr(engines, "build_plan", build_plan)
    return asked


def request(weights: tuple[str, str], output: Path | None = None, **values: Any) -> Request:
    return Request(values.pop("config", CONFIG), weights[0], output, **values)


def build(asked: Request, said: list[str] | None = None, **values: Any) -> Outcome:
    return build_engine(asked, (said if said is not None else []).append, lambda phase, part: None, **values)


# -- without a GPU ----------------------------------------------------------------------------------------------------


def test_an_engine_is_built_installed_and_found_again(tiny_weights: tuple[str, str], tiny_model: SqueezeTime) -> None:
    said: list[str] = []
    outcome = build(request(tiny_weights), said)
    assert outcome.built
    assert outcome.engine is not None
    assert outcome.path.parent == engines_folder()
    assert outcome.path.read_bytes()[:100]
    engine = read_engine(outcome.path)
    assert engine.about["onnx_parity"]["ratio"] < 2
    assert engine.about["validation"] is None
    assert engine.identity["network_sha256"] == network_sha256(tiny_model)
    assert engine.about["rebuild"] == f"{CONFIG.command(tiny_weights[0])} --force"
    assert engine.export == CONFIG.export
    assert said[0] == "exporting to ONNX"
    assert said[1].startswith("exported, and in ONNX Runtime: error ")
    assert said[2] == f"building: {outcome.path}, where there is none yet"
    words = list(outcome.lines())
    assert words[0].startswith(f"{outcome.path}: fp16, 1:2:4 normalised clips of {SIZE}x{SIZE}, TensorRT-RTX 1.")
    assert words[1] == "not validated yet (sqt-fast engines check does, where there is a GPU)"

    again = build(request(tiny_weights))
    assert not again.built
    assert again.engine == engine
    assert next(again.lines()).startswith(f"{outcome.path} is there already, and what was asked for")


def test_what_is_built_again_and_why(
    tiny_weights: tuple[str, str], tmp_path: Path, built: list[EngineConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "x.engine"
    reasons = [build(request(tiny_weights, output)).why]
    reasons.append(build(request(tiny_weights, output, force=True)).why)
    reasons.append(build(request(tiny_weights, output, config=replace(CONFIG, level=4))).why)
    output.write_bytes(b"cut")
    reasons.append(build(request(tiny_weights, output, config=replace(CONFIG, level=4))).why)
    sidecar_of(output).unlink()
    reasons.append(build(request(tiny_weights, output, config=replace(CONFIG, level=4))).why)
    assert len(built) == 5
    assert not build(request(tiny_weights, output, config=replace(CONFIG, level=4))).built
    assert reasons[:3] == [
        f"{output}, where there is none yet",
        f"{output}, as asked by --force",
        f"{output}, for what is there was built otherwise (level)",
    ]
    assert "its bytes are not those that were built" in reasons[3]
    assert "x.engine.json, which says what it is, is missing" in reasons[4]


@pytest.mark.usefixtures("built")
def test_a_dry_run_says_what_would_be_done_and_does_nothing(tiny_weights: tuple[str, str], tmp_path: Path) -> None:
    asked = request(tiny_weights, tmp_path / "x.engine")
    outcome = build(asked, dry_run=True)
    assert list(outcome.lines()) == [f"would build {tmp_path / 'x.engine'}, where there is none yet"]
    assert list(tmp_path.iterdir()) == []
    build(asked)
    dry = build(asked, dry_run=True)
    assert (dry.built, next(dry.lines()).split(" is ")[0]) == (False, str(tmp_path / "x.engine"))
    assert json.loads(json.dumps(dry.as_dict()))["onnx_parity"]["finite"] is True


@pytest.mark.usefixtures("built")
def test_what_is_kept_of_places_holds_from_anywhere(
    tiny_weights: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("w.safetensors").write_bytes(Path(tiny_weights[0]).read_bytes())
    outcome = build(request(("w.safetensors", ""), Path("x.engine")))
    assert outcome.path == Path("x.engine")
    monkeypatch.chdir("/")
    engine, _ = check_engine(tmp_path / "x.engine", clips=0)
    assert engine.about["rebuild"].endswith(f" -o {tmp_path / 'x.engine'} --force")
    assert f"--weights {tmp_path / 'w.safetensors'} " in engine.about["rebuild"]


@pytest.mark.usefixtures("built")
def test_the_exported_network_can_be_kept(tiny_weights: tuple[str, str], tmp_path: Path) -> None:
    build(request(tiny_weights, tmp_path / "x.engine", keep_onnx=tmp_path / "x.onnx"))
    assert b"clips" in (tmp_path / "x.onnx").read_bytes()


@pytest.mark.parametrize("where", ["output", "keep_onnx"])
def test_a_place_that_is_not_there_is_said_before_the_minutes(
    tiny_weights: tuple[str, str], tmp_path: Path, built: list[EngineConfig], where: str
) -> None:
    said: list[str] = []
    with pytest.raises(OutputError, match=r"no/x: cannot be written \(no such folder\); choose another place"):
        build(request(tiny_weights, **{where: tmp_path / "no" / "x"}), said)
    assert (said, built) == ([], [])


def test_an_export_that_gives_other_results_is_not_built(
    tiny_weights: tuple[str, str], tmp_path: Path, built: list[EngineConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = torch.eye(3, dtype=torch.float64)
    monkeypatch.setattr(exports, "onnx_parity", lambda *args: compare(truth * 1.1, truth, truth, torch.float16))
    with pytest.raises(ParityError, match="the exported network does not give what the network gives: error"):
        build(request(tiny_weights, tmp_path / "x.engine", keep_onnx=tmp_path / "x.onnx"))
    assert (built, list(tmp_path.glob("*.*"))) == ([], [])


def test_the_frontend_and_the_plugin_that_were_asked_for(
    tiny_weights: tuple[str, str], tmp_path: Path, built: list[EngineConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU that is none, with the library that is here in the place of the one that has them."""
    seen: list[Any] = []

    def by_torch(config: EngineConfig, network: ExportedNetwork, device: str) -> Plan:
        seen.append((config.frontend, network.config, device))
        return Plan(b"by torch", "11.0.0", {}, (), 1.0)

    monkeypatch.setattr(engines, "load_library", lambda flavour: load_library(CONFIG.of_flavour))
    monkeypatch.setattr(Gpu, "of", lambda device: GPU)
    monkeypatch.setattr(engines, "build_with_torch", by_torch)
    monkeypatch.setattr(plugin_graph, "put_plugin", lambda path: seen.append("put"))
    monkeypatch.setattr(plugin_graph, "make_known", lambda library, capability: seen.append(capability))
    monkeypatch.setattr(ctl_plugin, "digest", lambda capability: f"code for {capability}")
    plain = replace(CONFIG, flavour="tensorrt")
    keys, plugins = set(), []
    for config in (plain, replace(plain, frontend="torch"), replace(plain, plugin="ctl")):
        outcome = build(request(tiny_weights, config=config, clips=0))
        assert outcome.engine is not None
        keys.add(outcome.engine.about["key"])
        plugins.append(outcome.engine.identity["plugin_sha256"])
    assert plugins == [None, None, "code for 89"]
    assert len(keys) == 3
    assert seen == [("torch", CONFIG.export, "cuda"), "put", 89]
    assert [config.plugin for config in built] == ["none", "ctl"]


def test_only_the_plugin_needs_triton(
    tiny_weights: tuple[str, str], built: list[EngineConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process that has none, all else can be imported."""
    code = """if True:
        import sys
        sys.modules["triton"] = None
        from sqt_fast.commands import engine_commands
        from sqt_fast.tensorrt import engine_runner, engines, quantize, torch_frontend, validation
        print(engine_runner.tensorrt_why_not("cpu", None))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stderr, done.stdout) == ("", "TensorRT needs an NVIDIA GPU (--device cuda)\n")
    for name in ("sqt_fast.kernels.ctl_plugin", "sqt_fast.tensorrt.plugin_graph"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(engines, "load_library", lambda flavour: load_library(CONFIG.of_flavour))
    monkeypatch.setattr(Gpu, "of", lambda device: GPU)
    with pytest.raises(BackendError, match=r"plugin ctl: triton is not installed \(pip install 'sqt-fast\[tensorrt\]"):
        build(request(tiny_weights, config=replace(CONFIG, flavour="tensorrt", plugin="ctl")))


def test_tensorrt_itself_builds_on_a_gpu_alone(
    tiny_weights: tuple[str, str], built: list[EngineConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, flavour="tensorrt")
    monkeypatch.setattr(engines, "load_library", lambda flavour: load_library(CONFIG.of_flavour))
    with pytest.raises(BackendError) as caught:
        build(request(tiny_weights, config=config))
    assert str(caught.value) == (
        "TensorRT builds on the GPU that the engine is for, and torch sees none; --flavour rtx builds without one"
    )
    assert build(request(tiny_weights, config=config), dry_run=True).why.endswith("where there is none yet")
    assert built == []


# -- with a GPU that is none ------------------------------------------------------------------------------------------


class Running:
    """Engines that run on the CPU: the exported network, with what is done to its logits."""

    def __init__(self, model: SqueezeTime, monkeypatch: pytest.MonkeyPatch) -> None:
        self.network = ExportedNetwork(model, CONFIG.export).eval()
        self.factor = 1.0
        self.tried: list[Path] = []
        monkeypatch.setattr(Gpu, "of", lambda device: GPU)
        monkeypatch.setattr(engines, "EngineNetwork", self.load)
        monkeypatch.setattr(engines, "gpu_clock", lambda call: 0.5)
        monkeypatch.setattr("sqt_fast.tensorrt.validation.RIVALS", ())

    def load(self, engine: Engine, library: Any, device: str) -> "Running":
        self.tried.append(engine.path)
        return self

    def __call__(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        logits, embeddings = self.network(clips)
        return logits * self.factor, embeddings


@pytest.fixture
def running(tiny_model: SqueezeTime, monkeypatch: pytest.MonkeyPatch) -> Running:
    return Running(tiny_model, monkeypatch)


@pytest.mark.usefixtures("built")
def test_an_engine_that_is_right_is_installed_as_such(tiny_weights: tuple[str, str], running: Running) -> None:
    outcome = build(request(tiny_weights, clips=2))
    assert outcome.validation is not None
    assert outcome.validation.holds
    engine = read_engine(outcome.path)
    assert engine.about["validation"] == outcome.validation.as_dict()
    assert engine.state == "validated"
    assert running.tried[0] != outcome.path, "it was tried before it was installed"
    assert not running.tried[0].exists()
    assert list(outcome.lines())[1].startswith("at most ")


@pytest.mark.usefixtures("built")
def test_one_that_gives_other_results_is_not_installed(tiny_weights: tuple[str, str], running: Running) -> None:
    running.factor = 1.1
    with pytest.raises(ParityError) as caught:
        build(request(tiny_weights, clips=2))
    assert caught.value.exit_code == 3
    assert str(caught.value).startswith("the engine does not give what the network gives, and was not installed: batch")
    assert str(caught.value).endswith("; try --precision bf16 or fp32")
    assert list(engines_folder().glob("*")) == []


@pytest.mark.usefixtures("built")
def test_an_engine_that_was_there_stays_if_the_next_is_bad(tiny_weights: tuple[str, str], running: Running) -> None:
    engine = build(request(tiny_weights, clips=2)).engine
    running.factor = torch.nan
    with pytest.raises(ParityError, match="NaN or infinity"):
        build(request(tiny_weights, clips=2, force=True))
    assert list(engines_in(engines_folder())) == [engine]


@pytest.mark.usefixtures("built")
def test_an_engine_can_be_checked_later(
    tiny_weights: tuple[str, str], running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build(request(tiny_weights, clips=0)).path
    assert read_engine(path).about["validation"] is None
    assert check_engine(path, clips=0)[1] is None
    engine, validation = check_engine(path, clips=2)
    assert isinstance(validation, Validation)
    assert validation.holds
    assert engine == read_engine(path)
    assert engine.state == "validated"
    running.factor = 1.1
    with pytest.raises(ParityError, match=f"engine {path} does not give what the network gives: batch 1"):
        check_engine(path, clips=2)
    assert read_engine(path).state == "gives other results than the network"


@pytest.mark.usefixtures("running")
def test_a_check_that_cannot_be_kept_is_one_line(
    tiny_weights: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(engine: Engine) -> None:
        raise OSError(28, "No space left on device")

    path = build(request(tiny_weights, clips=0)).path
    monkeypatch.setattr(engines, "write_sidecar", full)
    with pytest.raises(OutputError, match=r"\.engine: cannot be written \(no space left on device\)"):
        check_engine(path, clips=2)


# -- checking and pruning without one ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("built")
def test_other_weights_under_the_same_name_are_noticed(
    tiny_model: SqueezeTime, tiny_weights: tuple[str, str], tmp_path: Path
) -> None:
    from sqt_fast.network.checkpoint import save_safetensors

    weights = tmp_path / "w.safetensors"
    weights.write_bytes(Path(tiny_weights[0]).read_bytes())
    path = build(Request(CONFIG, str(weights))).path
    assert check_engine(path, clips=2)[1] is None
    other = SqueezeTime(tiny_model.config)
    save_safetensors(other, weights)
    with pytest.raises(BackendError, match=r"it was built from other weights; build it again: sqt-fast"):
        check_engine(path, clips=2)
    weights.unlink()
    with pytest.raises(ConfigError, match="no such file"):
        check_engine(path, clips=2)


@pytest.mark.usefixtures("built")
def test_an_unknown_flavour_is_named(tiny_weights: tuple[str, str]) -> None:
    path = build(request(tiny_weights)).path
    about = json.loads(sidecar_of(path).read_text())
    about["identity"]["flavour"] = "lean"
    sidecar_of(path).write_text(json.dumps(about))
    with pytest.raises(BackendError, match="its flavour lean is none that this version knows; build it again"):
        check_engine(path, clips=2)
    assert "lean" in read_engine(path).in_words


@pytest.mark.usefixtures("built")
def test_what_cannot_run_here_is_useless(tiny_weights: tuple[str, str]) -> None:
    assert list(useless(everything=True)) == []
    good = build(request(tiny_weights)).path
    bad = build(request(tiny_weights, config=replace(CONFIG, level=1))).path
    bad.write_bytes(b"cut")
    (engines_folder() / "a.engine").write_bytes(b"stray")
    found = dict(useless(everything=False))
    assert set(found) == {bad, engines_folder() / "a.engine"}
    assert found[bad] == "its bytes are not those that were built (cut off, replaced or edited)"
    assert dict(useless(everything=True))[good] == "as asked"
