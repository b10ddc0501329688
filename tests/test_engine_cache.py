"""Engines on disk: what tells them apart, and every reason not to run one, said at once."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sqt_fast import files
from sqt_fast.errors import BackendError, OutputError
from sqt_fast.network.onnx_export import ExportConfig
from sqt_fast.tensorrt import engine_cache
from sqt_fast.tensorrt.engine_build import Plan
from sqt_fast.tensorrt.engine_cache import (
    Engine,
    Gpu,
    engines_folder,
    engines_in,
    identity_of,
    install,
    key_of,
    objections,
    path_in_cache,
    read_engine,
    refuse,
    remove,
    sidecar_of,
)
from sqt_fast.tensorrt.engine_config import Batches, EngineConfig, rebuild_command

VERSION = "11.4.0.106"
H200 = Gpu("NVIDIA H200", "9.0", 132)
CONFIG = EngineConfig(export=ExportConfig(224, "bf16"), batches=Batches(1, 64, 64))
PLAN = Plan(b"the program", VERSION, {"clips": {"dtype": "bf16", "shape": [-1, 48, 224, 224]}}, (), 1.5)
REBUILD = "sqt-fast build-engine --weights k400 --force"


def identity(config: EngineConfig = CONFIG, **values: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {"onnx_sha256": "a1", "network_sha256": "b2", "library_version": VERSION, "gpu": H200}
    return identity_of(config, **{**usual, **values})


def installed(folder: Path, config: EngineConfig = CONFIG, **values: Any) -> Engine:
    about = {"rebuild": REBUILD, "validation": {"holds": True}}
    return install(PLAN, folder / "x.engine", identity(config, **values), about)


def against(engine: Engine, **values: Any) -> list[str]:
    return objections(engine, **{"library_version": VERSION, "gpu": H200, **values})


# -- identity ---------------------------------------------------------------------------------------------------------

CHANGES: dict[str, Any] = {
    "flavour": "rtx",
    "size": 256,
    "precision": "fp16",
    "input": "uint8",
    "batches": Batches(1, 32, 64),
    "level": 5,
    "workspace_mib": 4096,
    "tf32": False,
    "hardware": "same-capability",
    "version_compatible": True,
    "onnx_sha256": "a2",
    "network_sha256": "b3",
    "library_version": "11.4.1.1",
    "name": "NVIDIA H100",
    "capability": "10.0",
    "num_sms": 114,
}


def changed(names: set[str]) -> dict[str, Any]:
    """Return an identity in which these fields have other values."""
    values = {name: CHANGES[name] for name in names}
    export = replace(CONFIG.export, **{n: values.pop(n) for n in ("size", "precision", "input") if n in values})
    gpu = replace(H200, **{name: values.pop(name) for name in ("name", "capability", "num_sms") if name in values})
    facts = {n: values.pop(n) for n in ("onnx_sha256", "network_sha256", "library_version") if n in values}
    return identity(replace(CONFIG, export=export, **values), gpu=gpu, **facts)


# What excludes the rest, or makes it mean nothing.
free = st.sets(st.sampled_from(sorted(set(CHANGES) - {"flavour", "hardware", "version_compatible"})))


@given(free, free)
def test_any_change_of_any_field_is_another_key(one: set[str], other: set[str]) -> None:
    assert (key_of(changed(one)) == key_of(changed(other))) == (one == other)


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_counts(name: str) -> None:
    assert key_of(changed({name})) != key_of(identity())


def test_every_field_of_the_configuration_is_in_it() -> None:
    fields = {*EngineConfig.__dataclass_fields__, *ExportConfig.__dataclass_fields__} - {"export"}
    assert fields <= set(identity())
    other = identity(EngineConfig("rtx", CONFIG.export, capabilities=("8.9",)))
    assert key_of(other) != key_of(identity(EngineConfig("rtx", CONFIG.export)))


def test_an_identity_is_what_json_gives_back() -> None:
    there = json.loads(json.dumps(identity()))
    assert there == identity()
    assert key_of(dict(reversed(there.items()))) == key_of(identity())


@pytest.mark.parametrize(
    ("config", "facts"),
    [
        (CONFIG, asdict(H200)),
        (replace(CONFIG, hardware="same-capability"), {"capability": "9.0"}),
        (replace(CONFIG, hardware="ampere-plus"), {}),
        (replace(CONFIG, flavour="rtx"), {}),
    ],
    ids=["the very same", "same capability", "Ampere and newer", "RTX"],
)
def test_of_the_gpu_counts_what_the_engine_depends_on(config: EngineConfig, facts: dict[str, Any]) -> None:
    assert identity(config)["gpu"] == facts
    assert identity(config, gpu=None)["gpu"] == {}


def test_names_in_the_cache_can_be_read(empty_cache: Path) -> None:
    path = path_in_cache("some/where/my weights.pth", identity())
    assert path.parent == engines_folder() == empty_cache / "engines"
    assert path.name == f"my-weights_bf16_224px_b1-64-64_tensorrt11.4.0_NVIDIA-H200_{key_of(identity())}.engine"
    portable = path_in_cache("k400", identity(replace(CONFIG, flavour="rtx")))
    assert portable.name.startswith("k400_bf16_224px_b1-64-64_rtx11.4.0_portable_")


def test_the_gpu_is_what_torch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, major, minor, multi_processor_count = "NVIDIA H200", 9, 0, 132

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    assert Gpu.of("cuda:1") == H200
    assert Gpu.of("cpu") is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Gpu.of("cuda") is None


# -- on disk ----------------------------------------------------------------------------------------------------------


def test_what_was_installed_can_be_read(tmp_path: Path) -> None:
    engine = installed(tmp_path)
    assert engine.path.read_bytes() == b"the program"
    there = read_engine(engine.path)
    assert there == engine
    assert there.about["tensors"] == PLAN.tensors
    assert there.about["engine_bytes"] == 11
    assert there.in_words == "bf16, 1:64:64 normalised clips of 224x224, TensorRT 11.4.0.106, NVIDIA H200"
    assert against(there, network_sha256="b2") == []


@pytest.mark.parametrize(
    ("validation", "state"),
    [
        (None, "not validated yet (sqt-fast engines check does, where there is a GPU)"),
        ({"holds": True}, "validated"),
        ({"holds": False}, "gives other results than the network"),
    ],
    ids=["not yet", "good", "bad"],
)
def test_whether_it_was_validated_is_said(validation: dict[str, bool] | None, state: str) -> None:
    assert Engine(Path("x"), {"validation": validation}).state == state


def test_the_cache_is_the_users_alone(empty_cache: Path) -> None:
    engines_folder().mkdir(parents=True, mode=0o755)
    path = path_in_cache("k400", identity())
    install(PLAN, path, identity(), {"rebuild": REBUILD, "validation": None})
    assert engines_folder().stat().st_mode & 0o777 == 0o700
    assert sorted(engines_folder().iterdir()) == [path, sidecar_of(path)]


def failing_at(number: int) -> Callable[..., None]:
    """Return a ``replace_file`` whose call of this number finds the disk full."""
    calls, real = [0], files.replace_file

    def replace_file(path: Path, write: Any) -> None:
        calls[0] += 1
        if calls[0] == number:
            raise OSError(28, "No space left on device")
        real(path, write)

    return replace_file


@pytest.mark.parametrize("number", [1, 2], ids=["the engine", "the sidecar"])
def test_an_engine_is_installed_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(engine_cache, "replace_file", failing_at(number))
    with pytest.raises(OutputError, match=r"x\.engine: cannot be written \(no space left on device\); choose another"):
        installed(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = installed(tmp_path)
    monkeypatch.setattr(engine_cache, "replace_file", failing_at(1))
    with pytest.raises(OutputError):
        installed(tmp_path, onnx_sha256="other")
    assert read_engine(engine.path) == engine
    assert against(engine) == []


def test_the_sidecar_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where power fails between the two, what is there is refused."""
    engine = installed(tmp_path)
    other = replace(PLAN, data=b"another program")
    monkeypatch.setattr(engine_cache, "write_sidecar", lambda engine: None)
    install(other, engine.path, identity(), {"rebuild": REBUILD, "validation": None})
    assert against(read_engine(engine.path)) == [
        "its bytes are not those that were built (cut off, replaced or edited)"
    ]


def test_engines_in_a_folder_and_what_is_wrong_with_others(tmp_path: Path) -> None:
    assert list(engines_in(tmp_path / "nowhere")) == []
    engine = installed(tmp_path)
    (tmp_path / "a.engine").write_bytes(b"stray")
    (tmp_path / "notes.txt").touch()
    stray, found = engines_in(tmp_path)
    assert isinstance(stray, BackendError)
    assert found == engine
    remove(engine.path)
    remove(engine.path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.engine", "notes.txt"]


# -- sidecars that cannot be used -------------------------------------------------------------------------------------


def edited(**values: Any) -> Callable[[Path], None]:
    def change(sidecar: Path) -> None:
        about = json.loads(sidecar.read_text())
        sidecar.write_text(json.dumps({**about, **values}))

    return change


def without(name: str, *, of: str = "") -> Callable[[Path], None]:
    def change(sidecar: Path) -> None:
        about = json.loads(sidecar.read_text())
        del (about[of] if of else about)[name]
        sidecar.write_text(json.dumps(about))

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (Path.unlink, "x.engine.json, which says what it is, is missing; build it again"),
        (lambda path: path.write_bytes(b"\xff{"), "x.engine.json cannot be read ("),
        (lambda path: path.write_text("{"), "x.engine.json cannot be read ("),
        (lambda path: path.write_text("[" * 100_000), "x.engine.json cannot be read ("),
        (lambda path: path.write_text("[]"), "x.engine.json is not of sqt-fast; build it again"),
        (edited(key=3), "x.engine.json is not of sqt-fast; build it again"),
        (without("rebuild"), "x.engine.json is not of sqt-fast; build it again"),
        (without("validation"), "x.engine.json is not of sqt-fast; build it again"),
        (edited(identity={"schema": 9}), f"its form is number 9, this version writes 1; build it again: {REBUILD}"),
        (edited(identity={"schema": 1}), f"was edited, and does not say what it is; build it again: {REBUILD}"),
        (without("gpu", of="identity"), f"was edited, and does not say what it is; build it again: {REBUILD}"),
        (without("flavour", of="identity"), f"was edited, and does not say what it is; build it again: {REBUILD}"),
    ],
    ids=["gone", "no text", "cut off", "too deep", "a list", "a number for a key", "no rebuild", "no validation",
         "another form", "nothing in it", "no GPU", "no flavour"],
)  # fmt: skip
def test_a_sidecar_that_will_not_do(tmp_path: Path, change: Callable[[Path], object], said: str) -> None:
    engine = installed(tmp_path)
    change(sidecar_of(engine.path))
    with pytest.raises(BackendError) as caught:
        read_engine(engine.path)
    assert str(caught.value).startswith(f"engine {engine.path}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_engine_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no such file; sqt-fast build-engine makes engines"):
        read_engine(tmp_path / "x.engine")


# -- engines that must not run ----------------------------------------------------------------------------------------

BYTES = "its bytes are not those that were built (cut off, replaced or edited)"


@pytest.mark.parametrize(
    "data", [b"the prograM", b"the progra", b"", b"the program "], ids=["edited", "cut", "empty", "longer"]
)
def test_other_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    engine = installed(tmp_path)
    engine.path.write_bytes(data)
    assert against(engine) == [BYTES]


def test_one_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    engine = installed(tmp_path)
    engine.path.unlink()
    assert against(engine) == ["it cannot be read (no such file or directory)"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"library_version": "11.4.0.107"}, "it was built with TensorRT 11.4.0.106, this is 11.4.0.107"),
        ({"gpu": replace(H200, name="NVIDIA H100")}, "it was built for GPU NVIDIA H200, this is NVIDIA H100"),
        ({"gpu": replace(H200, capability="10.0")}, "it was built for compute capability 9.0, this is 10.0"),
        ({"gpu": replace(H200, num_sms=114)}, "it was built for number of multiprocessors 132, this is 114"),
        ({"network_sha256": "c4"}, "it was built from other weights"),
    ],
    ids=["version", "GPU", "capability", "multiprocessors", "weights"],
)
def test_another_circumstance_is_named(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    assert against(installed(tmp_path), **values) == [said]


def test_without_a_gpu_all_that_it_needs_of_one_is_named(tmp_path: Path) -> None:
    found = against(installed(tmp_path), gpu=None)
    assert len(found) == 3
    assert all(reason.endswith("this is none") for reason in found)


def test_an_edited_sidecar_is_refused(tmp_path: Path) -> None:
    """Somebody who makes an engine of another GPU look like one of this."""
    engine = installed(tmp_path, gpu=replace(H200, num_sms=114))
    about = json.loads(sidecar_of(engine.path).read_text())
    about["identity"]["gpu"]["num_sms"] = 132
    sidecar_of(engine.path).write_text(json.dumps(about))
    assert against(read_engine(engine.path)) == ["what its sidecar says of it was edited"]


@pytest.mark.parametrize(
    ("here", "reasons"),
    [
        ("11.4.0.106", []),
        ("11.4.9", []),
        ("12.0", []),
        ("11.3.9", ["it was built with TensorRT 11.4.0.106 and needs that or a newer one, this is 11.3.9"]),
        ("10.16", ["it was built with TensorRT 11.4.0.106 and needs that or a newer one, this is 10.16"]),
    ],
)
def test_version_compatible_engines_run_on_newer_versions(tmp_path: Path, here: str, reasons: list[str]) -> None:
    engine = installed(tmp_path, replace(CONFIG, version_compatible=True))
    assert against(engine, library_version=here) == reasons


@pytest.mark.parametrize(("hardware", "count"), [("same-capability", 1), ("ampere-plus", 0)])
def test_engines_for_several_gpus_want_less_of_one(tmp_path: Path, hardware: str, count: int) -> None:
    engine = installed(tmp_path, replace(CONFIG, hardware=hardware))
    assert against(engine, gpu=Gpu("NVIDIA H100", "9.0", 114)) == []
    assert len(against(engine, gpu=Gpu("NVIDIA A100", "8.0", 108))) == count


def test_all_reasons_are_said_at_once_with_the_command(tmp_path: Path) -> None:
    engine = installed(tmp_path)
    engine.path.write_bytes(b"another")
    about = {**engine.about, "identity": {**engine.identity, "level": 4}}
    here = Gpu("NVIDIA A100", "8.0", 108)
    reasons = against(Engine(engine.path, about), library_version="10.13.3", gpu=here, network_sha256="c4")
    assert len(reasons) == 7
    with pytest.raises(BackendError) as caught:
        refuse(engine, reasons)
    line = str(caught.value)
    assert line == f"engine {engine.path} cannot be used: {'; '.join(reasons)}; build it again: {REBUILD}"
    assert "\n" not in line
    refuse(engine, [])


def test_the_command_that_builds_it_again() -> None:
    config = EngineConfig("rtx", ExportConfig(96, "fp16"), Batches(1, 2, 4))
    assert rebuild_command(config, "my weights.pth", Path("out put/x.engine")) == (
        "sqt-fast build-engine --weights 'my weights.pth' --flavour rtx --precision fp16 --batch 1:2:4 --size 96 "
        "-o 'out put/x.engine' --force"
    )
    assert rebuild_command(config, "k400", None).endswith(" --size 96 --force")
