"""``sqt-fast export-onnx``, ``build-engine`` and ``engines`` as a person types them: what is said, and exit codes."""

import json
import shlex
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import torch

from sqt_fast.cli import main
from sqt_fast.commands import engine_commands
from sqt_fast.console import BuildBar
from sqt_fast.network.model import SqueezeTime
from sqt_fast.network.onnx_export import ExportConfig
from sqt_fast.network.parity import compare
from sqt_fast.tensorrt import engine_cache, engines, exports
from sqt_fast.tensorrt.engine_build import Plan
from sqt_fast.tensorrt.engine_cache import engines_folder, read_engine, sidecar_of
from sqt_fast.tensorrt.engine_config import Batches, EngineConfig, rebuild_command
from sqt_fast.tensorrt.engines import Outcome, Request
from sqt_fast.tensorrt.tensorrt_library import FLAVOURS
from tests import command_line
from tests.command_line import sqt
from tests.conftest import TINY_LABELS
from tests.exports import ExportedOnce
from tests.test_engines import Running

pytestmark = pytest.mark.usefixtures("kept_signals", "empty_cache")
refused = partial(command_line.refused, after=("exporting", "taking"))


def tiny(weights: tuple[str, str], *more: Any) -> list[Any]:
    words = ["--weights", weights[0], "--flavour", "rtx", "--precision", "fp16", "--size", "64", "--batch", "1:2:4"]
    return ["build-engine", *words, *more]


@pytest.fixture
def quick(exported: ExportedOnce, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build an engine that is none, in no time, from a network that was exported before."""
    truth = torch.eye(3, dtype=torch.float64)
    monkeypatch.setattr(exports, "export_onnx", exported.write)
    monkeypatch.setattr(exports, "onnx_parity", lambda *args: compare(truth, truth, truth, torch.float16))
    monkeypatch.setattr(engines, "build_plan", build_plan)


def build_plan(config: EngineConfig, onnx: Path, progress: Any, *, timing_cache: Path | None) -> Plan:
    progress("Building", 0.5)
    return Plan(b"program", "1.7.1.116", {}, (), 2.0)


# -- export-onnx, build-engine ----------------------------------------------------------------------------------------


def test_an_engine_and_its_network_from_weights(tiny_weights: tuple[str, str], tmp_path: Path) -> None:
    """Nothing is pretended here, but for the GPU, which is not needed."""
    import onnx

    output, network = tmp_path / "x.engine", tmp_path / "x.onnx"
    result = sqt(*tiny(tiny_weights, "-o", output, "--onnx", network))
    assert result.exit_code == 0, result.output
    assert "exported, and in ONNX Runtime: error " in result.stderr
    assert "(ratio " in result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{output}: fp16, 1:2:4 normalised clips of 64x64, TensorRT-RTX 1.")
    assert lines[1] == "not validated yet (sqt-fast engines check does, where there is a GPU)"
    assert output.stat().st_size > 1_000_000
    about = json.loads(sidecar_of(output).read_text())
    labels = [f"class {i}" for i in range(len(TINY_LABELS))]
    assert about["labels"] == labels
    metadata = {each.key: each.value for each in onnx.load(network).metadata_props}
    assert json.loads(metadata["labels"]) == labels
    assert metadata["weights_sha256"] == about["weights_sha256"]
    check = sqt("engines", "check", output)
    assert (check.exit_code, check.stdout) == (0, f"{output}: nothing against it; {lines[1]}\n")


@pytest.mark.usefixtures("quick")
def test_the_second_time_it_is_there_already(tiny_weights: tuple[str, str], tmp_path: Path) -> None:
    command = tiny(tiny_weights, "-o", tmp_path / "x.engine")
    assert "built in 2.0 s" in sqt(*command).stdout
    again = sqt(*command)
    assert again.stdout.startswith(f"{tmp_path / 'x.engine'} is there already, and what was asked for (--force builds")
    assert "building" not in again.stderr
    forced = sqt(*command, "--force")
    assert f"building: {tmp_path / 'x.engine'}, as asked by --force" in forced.stderr
    assert "built in 2.0 s" in forced.stdout


@pytest.mark.usefixtures("quick")
def test_json_is_one_object(tiny_weights: tuple[str, str]) -> None:
    result = sqt(*tiny(tiny_weights, "--json"))
    said = json.loads(result.stdout)
    assert (said["built"], said["validation"], said["onnx_parity"]["top1"]) == (True, None, 1.0)
    assert Path(said["path"]).parent == engines_folder()
    assert json.loads(sqt(*tiny(tiny_weights, "--json")).stdout)["built"] is False


@pytest.mark.usefixtures("quick")
def test_a_dry_run_writes_nothing(tiny_weights: tuple[str, str], tmp_path: Path) -> None:
    result = sqt(*tiny(tiny_weights, "-o", tmp_path / "x.engine", "--dry-run"))
    assert result.exit_code == 0
    assert result.stdout == f"would build {tmp_path / 'x.engine'}, where there is none yet\n"
    assert list(tmp_path.glob("*.*")) == []


@pytest.mark.usefixtures("quick")
def test_an_engine_that_gives_other_results_is_not_installed(
    tiny_weights: tuple[str, str], tiny_model: SqueezeTime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Running(tiny_model, monkeypatch)
    running.factor = 1.1
    result = sqt(*tiny(tiny_weights, "-o", tmp_path / "x.engine", "--validate", 2))
    line = refused(result, 3)
    assert line.startswith("sqt-fast: the engine does not give what the network gives, and was not installed: batch 1:")
    assert list(tmp_path.glob("*.*")) == []
    running.factor = 1.0
    good = sqt(*tiny(tiny_weights, "-o", tmp_path / "x.engine", "--validate", 2))
    assert good.exit_code == 0
    assert "times as wrong as PyTorch in batches of 1, 2, 3, 4; engine " in good.stdout.splitlines()[-1]


def test_a_missing_library_is_one_line(tiny_weights: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in FLAVOURS["tensorrt"].modules:
        monkeypatch.setitem(sys.modules, name, None)
    assert refused(sqt("build-engine", "--weights", tiny_weights[0]), 1) == (
        "sqt-fast: TensorRT is not installed: pip install 'sqt-fast[tensorrt]', whose libraries come from NVIDIA's own "
        "package index"
    )


def test_ctrl_c_is_one_line(tiny_weights: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **options: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(engines, "build_engine", interrupt)
    assert refused(sqt(*tiny(tiny_weights)), 1) == "sqt-fast: stopped; run the same command again to go on"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--batch", "4:2:1"], 2, "batch 4:2:1: expected MIN:OPT:MAX, 1 or more and ascending, as 1:64:64"),
        (["--batch", "many"], 2, "batch many: expected MIN:OPT:MAX"),
        (["--precision", "int4"], 2, "'int4' is not one of 'fp32', 'bf16', 'fp16', 'int8', 'fp8'"),
        (["--frontend", "torch"], 2, "--frontend torch and --plugin are for --flavour tensorrt"),
        (["--flavour", "lean"], 2, "'lean' is not one of 'tensorrt', 'rtx'"),
        (["--size", "16"], 2, "16 is not in the range x>=32"),
        (["--level", "6"], 2, "6 is not in the range 0<=x<=5"),
        (["--workspace", "0"], 2, "0 is not in the range x>=1"),
        (["--validate", "-1"], 2, "-1 is not in the range x>=0"),
        (["--hardware", "ampere-plus"], 2, "TensorRT-RTX takes --capability"),
        (["--capability", "new"], 2, "capability new: expected a compute capability, as 8.9"),
        (["--weights", "nowhere.pth"], 2, "weights nowhere.pth: no such file"),
        (["--input", "jpeg"], 2, "'jpeg' is not one of 'normalised', 'uint8'"),
        (["-o", "/proc/nowhere/x.engine"], 1, "/proc/nowhere/x.engine: cannot be written (no such folder)"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_one_line(
    tiny_weights: tuple[str, str], arguments: list[str], code: int, said: str
) -> None:
    assert said in refused(sqt(*tiny(tiny_weights, *arguments)), code)


def test_a_network_as_onnx(tiny_weights: tuple[str, str], exported: ExportedOnce, tmp_path: Path,
                           monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(exports, "export_onnx", exported.write)
    words = ["--weights", tiny_weights[0], "--size", "72", "--input", "uint8"]
    result = sqt("export-onnx", tmp_path / "x.onnx", *words)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'x.onnx'}: fp32, uint8 clips of 72x72, opset 22\n"
    assert "exported, and in ONNX Runtime: error " in result.stderr
    assert (tmp_path / "x.onnx").stat().st_size > 1_000_000
    bf16 = sqt(
        "export-onnx", tmp_path / "y.onnx", *words[:2], "--size", "64", "--precision", "bf16", "--max-batch", "8"
    )
    assert "in ONNX Runtime: not run, for it has no bfloat16 convolution on CPUs" in bf16.stderr
    line = refused(sqt("export-onnx", tmp_path / "no" / "x.onnx", *words), 1)
    assert "cannot be written (no such file or directory); choose another place" in line
    assert "Missing argument 'TARGET'" in refused(sqt("export-onnx"), 2)


# -- options ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """What ``build-engine`` was asked for, instead of doing it."""
    seen: list[Request] = []

    def run(request: Request, say: Any, progress: Any, *, dry_run: bool) -> Outcome:
        seen.append(request)
        return Outcome(Path("x.engine"), built=False, why="nothing")

    monkeypatch.setattr(engines, "build_engine", run)
    return seen


def test_what_is_not_said_is_the_usual(asked: list[Request]) -> None:
    assert sqt("build-engine").exit_code == 0
    assert asked == [Request(EngineConfig(), "k400")]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--weights", "random"], {"weights": "random"}),
        (["-o", "x.engine"], {"output": Path("x.engine")}),
        (["--out", "x.engine"], {"output": Path("x.engine")}),
        (["--onnx", "x.onnx"], {"keep_onnx": Path("x.onnx")}),
        (["--validate", "0"], {"clips": 0}),
        (["--force"], {"force": True}),
        (["--no-timing-cache"], {"timing_cache": False}),
        (["--timing-cache"], {}),
        (["--dry-run"], {}),
        (["--json"], {}),
        (["-v"], {}),
        (["--verbose"], {}),
        (["--flavour", "rtx"], {"flavour": "rtx"}),
        (["--flavour", "rtx", "--capability", "8.6", "--capability", "12.0"],
         {"flavour": "rtx", "capabilities": ("8.6", "12.0")}),
        (["--precision", "fp32"], {"precision": "fp32"}),
        (["--size", "96"], {"size": 96}),
        (["--input", "uint8"], {"input": "uint8"}),
        (["--batch", "2:3:5"], {"batches": Batches(2, 3, 5)}),
        (["--batch", "8"], {"batches": Batches(8, 8, 8)}),
        (["--level", "0"], {"level": 0}),
        (["--workspace", "512"], {"workspace_mib": 512}),
        (["--no-tf32"], {"tf32": False}),
        (["--hardware", "same-capability"], {"hardware": "same-capability"}),
        (["--version-compatible"], {"version_compatible": True}),
        (["--frontend", "torch"], {"frontend": "torch"}),
        (["--plugin", "ctl"], {"plugin": "ctl"}),
    ],
    ids=str,
)  # fmt: skip
def test_every_option_of_build_engine_parses(
    asked: list[Request], arguments: list[str], wanted: dict[str, Any]
) -> None:
    assert sqt("build-engine", *arguments).exit_code == 0
    of_request = {name: wanted.pop(name) for name in list(wanted) if name in Request.__dataclass_fields__}
    of_export = {name: wanted.pop(name) for name in list(wanted) if name in ExportConfig.__dataclass_fields__}
    config = EngineConfig(export=replace(EngineConfig().export, **of_export), **wanted)
    assert asked == [Request(config, **{"weights": "k400", **of_request})]


def test_what_is_asked_of_an_engine_of_8_bits(asked: list[Request]) -> None:
    options = ["--calibrate", "a", "--calibrate", "b.mp4", "--calibration-clips", "8", "--min-cosine", "0.9"]
    assert sqt("build-engine", "--precision", "fp8", *options, "--min-top1", "0.8").exit_code == 0
    (request,) = asked
    assert request.config.export.precision == "fp8"
    assert request.calibration is not None
    assert request.calibration.options() == " ".join([*options, "--min-top1", "0.8"])


def test_an_engine_is_validated_with_clips_of_ones_own(
    asked: list[Request], tiny_weights: tuple[str, str], archive: Path
) -> None:
    assert sqt("build-engine", "--weights", tiny_weights[0], "--videos", archive / "avi").exit_code == 0
    assert asked[0].record(2, 48).shape == (2, 48, 48, 48)


def test_engines_are_checked_with_clips_of_ones_own(
    tiny_weights: tuple[str, str], tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []

    def check_engine(path: Path, *, clips: int, record: Any) -> Any:
        seen.append(tuple(record(clips, 64).shape))
        return SimpleNamespace(state="validated"), None

    monkeypatch.setattr(engines, "check_engine", check_engine)
    monkeypatch.setattr(engine_cache, "read_engine", lambda path: SimpleNamespace(about={"weights": tiny_weights[0]}))
    result = sqt("engines", "check", tmp_path / "x.engine", "--videos", archive / "avi", "--validate", "2")
    assert result.exit_code == 0
    assert seen == [(2, 48, 64, 64)]


@pytest.mark.parametrize("command", ["build-engine", "export-onnx", "list", "check", "prune"])
def test_this_file_tries_every_option(command: str) -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert isinstance(main, click.Group)
    for option in {**main.commands, **engine_commands.engines.commands}[command].params:
        for name in (*option.opts, *option.secondary_opts) if isinstance(option, click.Option) else ():
            assert f'"{name}"' in text, name


@pytest.mark.parametrize(
    "config",
    [
        EngineConfig(),
        EngineConfig(export=ExportConfig(96, "fp32", "uint8"), batches=Batches(1, 2, 3), level=5, workspace_mib=7),
        EngineConfig(tf32=False, hardware="ampere-plus", version_compatible=True),
        EngineConfig("rtx", capabilities=("8.6", "8.9")),
    ],
    ids=["usual", "another network", "another GPU", "rtx"],
)
@pytest.mark.parametrize("output", [None, Path("out put/x.engine")], ids=["cache", "elsewhere"])
def test_the_command_that_builds_again_asks_for_the_same(
    asked: list[Request], config: EngineConfig, output: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sqt_fast.network.weights.check_name", lambda name: None)
    program, *arguments = shlex.split(rebuild_command(config, "my weights.pth", output))
    assert program == "sqt-fast"
    assert sqt(*arguments).exit_code == 0
    assert asked == [Request(config, "my weights.pth", output, force=True)]


def test_the_usual_size_is_what_index_shows(asked: list[Request], tiny_model: SqueezeTime, tmp_path: Path) -> None:
    from dataclasses import asdict

    from sqt_fast.config import FAST
    from sqt_fast.network.checkpoint import save_safetensors

    about = {"protocols": json.dumps({"fast": asdict(replace(FAST, short_side=64, crop_size=56))})}
    save_safetensors(tiny_model, tmp_path / "w.safetensors", about)
    assert sqt("build-engine", "--weights", tmp_path / "w.safetensors").exit_code == 0
    assert asked[0].config.export.size == 56


# -- engines ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_engines_are_listed_checked_and_removed(tiny_weights: tuple[str, str]) -> None:
    for command in (["list"], ["check"], ["prune"]):
        empty = sqt("engines", *command)
        assert (empty.exit_code, empty.output) == (0, "")
    assert sqt(*tiny(tiny_weights)).exit_code == 0
    assert sqt(*tiny(tiny_weights, "--level", "1")).exit_code == 0
    good, bad = (path for path in sorted(engines_folder().glob("*.engine")))
    (engines_folder() / "stray.engine").write_bytes(b"stray")
    bad.write_bytes(b"cut")

    listed = sqt("engines", "list")
    assert listed.exit_code == 0
    assert [line.partition(": ")[0] for line in listed.stdout.splitlines()] == [str(good), str(bad)]
    assert listed.stdout.splitlines()[0].endswith(", not validated yet (sqt-fast engines check does, where there is a "
                                                  "GPU)")  # fmt: skip
    assert "stray.engine.json, which says what it is, is missing" in listed.stderr
    objects = [json.loads(line) for line in sqt("engines", "list", "--json").stdout.splitlines()]
    assert [each["path"] for each in objects] == [str(good), str(bad)]
    assert objects[0]["identity"]["precision"] == "fp16"

    checked = sqt("engines", "check", "--validate", "0")
    assert checked.exit_code == 1
    words = checked.stdout.splitlines()
    assert words[0].startswith(f"engine {engines_folder() / 'stray.engine'}: stray.engine.json, which says")
    assert words[1].startswith(f"{good}: nothing against it; not validated yet")
    assert words[2].startswith(f"engine {bad} cannot be used: its bytes are not those that were built")
    assert words[2].endswith(f"build it again: {read_engine(bad).about['rebuild']}")
    assert len(words) == 3

    dry = sqt("engines", "prune", "--dry-run")
    assert len(dry.stdout.splitlines()) == 2
    assert len(list(engines_folder().glob("*.engine"))) == 3
    assert sqt("engines", "prune").stdout == dry.stdout
    assert sorted(engines_folder().iterdir()) == [good, sidecar_of(good)]
    assert sqt("engines", "prune", "--all").stdout == f"{good}: as asked\n"
    assert list(engines_folder().iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_weights_that_are_gone_do_not_end_a_check(tiny_weights: tuple[str, str], tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(Path(tiny_weights[0]).read_bytes())
    assert sqt(*tiny((str(weights), ""))).exit_code == 0
    assert sqt(*tiny(tiny_weights, "-o", tmp_path / "x.engine")).exit_code == 0
    weights.unlink()
    gone = next(engines_folder().glob("*.engine"))
    result = sqt("engines", "check", gone, tmp_path / "x.engine")
    assert result.exit_code == 1
    first, second = result.stdout.splitlines()
    assert first.startswith(f"engine {gone}: weights {weights}: no such file")
    assert second.startswith(f"{tmp_path / 'x.engine'}: nothing against it")


@pytest.mark.usefixtures("quick")
def test_a_check_that_finds_other_results_says_so(
    tiny_weights: tuple[str, str], tiny_model: SqueezeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sqt(*tiny(tiny_weights, "--validate", "0")).exit_code == 0
    Running(tiny_model, monkeypatch).factor = 1.0
    good = sqt("engines", "check", "--validate", "2")
    assert (good.exit_code, "nothing against it; at most " in good.stdout) == (0, True)
    Running(tiny_model, monkeypatch).factor = 1.1
    bad = sqt("engines", "check", "--validate", "2")
    assert (bad.exit_code, "does not give what the network gives: batch 1" in bad.stdout) == (3, True)
    assert "gives other results than the network" in sqt("engines", "list").stdout


def test_an_engine_that_is_not_there(tmp_path: Path) -> None:
    result = sqt("engines", "check", tmp_path / "x.engine")
    assert result.exit_code == 1
    assert "no such file; sqt-fast build-engine makes engines" in result.stdout


def test_progress_appears_and_goes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal alone; a log would be full of it."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    for quiet in (False, True):
        with BuildBar(quiet=quiet) as bar:
            bar.update("one", 0.25)
            bar.update("two", 0.5)
            (task,) = bar._progress.tasks
            assert (task.description, task.completed, task.total) == ("two", 0.5, 1.0)
        assert ("two" in capsys.readouterr().err) != quiet
    monkeypatch.delenv("FORCE_COLOR")
    with BuildBar(quiet=False) as bar:
        bar.update("one", 0.25)
    assert capsys.readouterr().err == ""
