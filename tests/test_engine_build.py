"""Building: real engines of TensorRT-RTX, which needs no GPU, and what TensorRT is asked for, by one that is none."""

import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sqt_fast.errors import BackendError
from sqt_fast.network.onnx_export import ExportConfig, ExportedNetwork, export_onnx
from sqt_fast.network.registry import PRECISIONS
from sqt_fast.network.weights import load_weights
from sqt_fast.tensorrt import engine_build
from sqt_fast.tensorrt.engine_build import Plan, build_plan
from sqt_fast.tensorrt.engine_config import Batches, EngineConfig
from tests.exports import SIZE, ExportedOnce
from tests.fake_tensorrt import FakeTensorRT

BATCHES = Batches(1, 2, 4)
CTLS = 8  # of the tiny network


def nothing(phase: str, part: float) -> None:
    """Take what a builder says of how far it is."""


def rtx(precision: str, size: int = SIZE, **values: Any) -> EngineConfig:
    return EngineConfig("rtx", ExportConfig(size, precision), BATCHES, **values)


@pytest.fixture(scope="module")
def plans(exported: ExportedOnce) -> dict[str, Plan]:
    """An engine of every precision."""
    return {name: build_plan(rtx(name), exported(name)[1], nothing) for name in PRECISIONS}


# -- engines ----------------------------------------------------------------------------------------------------------


def kernels(plan: Plan) -> dict[str, str]:
    """Return the layers that are kernels, by name: the nodes of the network that each calculates."""
    waiting = ("signal", "wait", "shape_call")
    found = {}
    for layer in plan.layers:
        match = re.match(r"Name: (\S+), LayerType: (\w+),", layer)
        assert match, layer
        if match[2] not in waiting:
            found[match[1]] = layer.partition("Metadata: ")[2]
    return found


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_engine_takes_and_gives_what_was_exported(plans: dict[str, Plan], precision: str) -> None:
    plan = plans[precision]
    dtype = {"fp32": "float", "fp16": "half", "bf16": "bf16"}[precision]
    assert plan.tensors == {
        "clips": {"dtype": dtype, "shape": [-1, 48, SIZE, SIZE]},
        "logits": {"dtype": "float", "shape": [-1, 7]},
        "embeddings": {"dtype": "float", "shape": [-1, 128]},
    }
    assert len(plan.data) > 1_000_000
    assert plan.library_version.split(".")[0] == "1"
    assert plan.build_s > 0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_can_be_fused_is_fused(plans: dict[str, Plan], precision: str) -> None:
    """No resize, no scale of a batch norm; gates are in the convolutions before them, with what they are multiplied by.

    Of a CTL with its residual sum stay alone: the mean, the weighting of x, and the sum with the position's map.
    """
    layers = kernels(plans[precision])
    assert all("Resi" not in name and "Resize" not in nodes for name, nodes in layers.items())
    assert all("Scale" not in name and "BatchNorm" not in nodes for name, nodes in layers.items())
    gates = [nodes for nodes in layers.values() if "sigmoid" in nodes]
    assert len(gates) == 2 * CTLS
    assert all("conv" in nodes.lower() for nodes in gates)
    assert sum("mul" in nodes for nodes in gates) >= CTLS
    alone = [nodes for nodes in layers.values() if "conv" not in nodes.lower() and re.search("_(add|mul|relu)", nodes)]
    assert len(alone) <= 2 * CTLS + 1
    assert len(layers) < 100  # of about 190 nodes


@pytest.mark.exhaustive
def test_the_network_in_full_is_built(tmp_path: Path) -> None:
    weights = load_weights("random")
    network = ExportedNetwork(weights.model, ExportConfig(224, "fp16"))
    export_onnx(network, tmp_path / "x.onnx", max_batch=64, about={})
    plan = build_plan(EngineConfig("rtx", network.config, Batches(1, 64, 64)), tmp_path / "x.onnx", nothing)
    assert len(plan.data) > 50e6
    layers = kernels(plan)
    gates = [nodes for nodes in layers.values() if "sigmoid" in nodes]
    assert len(gates) == 32
    assert all("conv" in nodes.lower() for nodes in gates)
    assert all("Resi" not in name and "Scale" not in name for name in layers)


def test_gpus_are_chosen_and_those_that_it_does_not_know_are_named(exported: ExportedOnce) -> None:
    _, path = exported("fp16")
    one = build_plan(rtx("fp16", capabilities=("8.9",)), path, nothing)
    assert len(one.data) > 100_000
    with pytest.raises(BackendError, match=r"^TensorRT-RTX builds for SM75, SM80, .*, not for SM90$"):
        build_plan(rtx("fp16", capabilities=("8.9", "9.0")), path, nothing)


def test_progress_goes_from_0_to_1_and_never_back(exported: ExportedOnce) -> None:
    seen: list[tuple[str, float]] = []
    build_plan(rtx("fp16"), exported("fp16")[1], lambda phase, part: seen.append((phase, part)))
    parts = [part for _, part in seen]
    assert parts == sorted(parts)
    assert 0 <= parts[0] < 0.1
    assert parts[-1] == 1.0
    assert len(set(parts)) > 20
    assert all(phase for phase, _ in seen)


@pytest.mark.parametrize("data", [b"", b"no network at all", b"\x08\x0a"], ids=["empty", "text", "hollow"])
def test_what_is_no_network_is_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.onnx").write_bytes(data)
    with pytest.raises(BackendError, match=r"TensorRT-RTX \S+ cannot read the network: .+") as caught:
        build_plan(rtx("fp16"), tmp_path / "x.onnx", nothing)
    assert "\n" not in str(caught.value)


def test_an_operation_that_it_does_not_know_is_named(exported: ExportedOnce, tmp_path: Path) -> None:
    import onnx

    proto = onnx.load(exported("fp32")[1])
    next(node for node in proto.graph.node if node.op_type == "Relu").op_type = "Unheard"
    onnx.save(proto, tmp_path / "x.onnx")
    with pytest.raises(BackendError, match=r"cannot read the network: .*Unheard"):
        build_plan(rtx("fp32"), tmp_path / "x.onnx", nothing)


@pytest.mark.usefixtures("heard_ctrl_c")
def test_ctrl_c_stops_a_build(exported: ExportedOnce) -> None:
    """The real builder, which asks after every step whether to go on."""
    seen: list[float] = []

    def interrupt(phase: str, part: float) -> None:
        seen.append(part)
        if len(seen) == 2:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(0.5)  # the thread that waits hears it meanwhile

    with pytest.raises(KeyboardInterrupt):
        build_plan(rtx("fp32"), exported("fp32")[1], interrupt)
    assert seen[-1] < 0.5
    assert not [each for each in threading.enumerate() if each.name == "engine builder" and each.is_alive()]


# -- what TensorRT is asked for ---------------------------------------------------------------------------------------


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    library = FakeTensorRT()
    monkeypatch.setattr(engine_build, "load_library", lambda flavour: library)
    return library


def build(tmp_path: Path, cache: Path | None = None, **values: Any) -> Plan:
    return build_plan(EngineConfig(batches=BATCHES, **values), tmp_path / "x.onnx", nothing, timing_cache=cache)


def test_the_usual_settings(fake: FakeTensorRT, tmp_path: Path) -> None:
    plan = build(tmp_path)
    (settings,) = fake.settings
    assert (plan.data, plan.library_version, plan.layers) == (b"a plan", "11.4.0.106", ("Name: one, LayerType: gemm",))
    assert fake.network_flags == [1 << fake.NetworkDefinitionCreationFlag.STRONGLY_TYPED]
    assert settings.builder_optimization_level == 3  # type: ignore[attr-defined]
    assert settings.profiling_verbosity is fake.ProfilingVerbosity.DETAILED  # type: ignore[attr-defined]
    assert settings.profiles[0].shapes == {"clips": tuple((batch, 48, 4, 4) for batch in BATCHES)}
    assert {flag.name for flag in settings.flags} == {"TF32"}
    assert (settings.pools, settings.capabilities, settings.timing) == ({}, {}, None)
    assert not hasattr(settings, "hardware_compatibility_level")


@pytest.mark.parametrize(
    ("hardware", "level"), [("same-capability", "SAME_COMPUTE_CAPABILITY"), ("ampere-plus", "AMPERE_PLUS")]
)
def test_settings_that_are_asked_for(fake: FakeTensorRT, tmp_path: Path, hardware: str, level: str) -> None:
    build(tmp_path, level=5, workspace_mib=2, tf32=False, hardware=hardware, version_compatible=True)
    settings: Any = fake.settings[0]
    assert settings.builder_optimization_level == 5
    assert settings.pools == {fake.MemoryPoolType.WORKSPACE: 2 << 20}
    assert {flag.name for flag in settings.flags} == {"VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"}
    assert settings.hardware_compatibility_level.name == level


def test_gpus_that_are_asked_for(fake: FakeTensorRT, tmp_path: Path) -> None:
    build(tmp_path, flavour="rtx", capabilities=("8.6", "8.9"))
    settings: Any = fake.settings[0]
    assert settings.num_compute_capabilities == 2
    assert [settings.capabilities[place].name for place in (0, 1)] == ["SM86", "SM89"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("Builder", "TensorRT cannot build here (pybind11::init(): factory function returned nullptr)"),
        ("parse_from_file", "TensorRT 11.4.0.106 cannot read the network: no such thing (node n1, Odd)"),
        ("add_optimization_profile", "TensorRT refuses batches of 1:2:4: [add_optimization_profile] says no"),
        ("build_serialized_network", "TensorRT 11.4.0.106 could not build: [build_serialized_network] says no"),
    ],
    ids=str,
)
def test_every_no_is_one_line(fake: FakeTensorRT, tmp_path: Path, call: str, said: str) -> None:
    fake.refuses = {call}
    with pytest.raises(BackendError) as caught:
        build(tmp_path)
    assert str(caught.value) == said


def test_errors_of_the_builders_thread_are_not_lost(fake: FakeTensorRT, tmp_path: Path) -> None:
    def fail(phase: str, part: float) -> None:
        raise MemoryError("no more")

    with pytest.raises(BackendError, match=r"the builder failed \(no more\)"):
        build_plan(EngineConfig(batches=BATCHES), tmp_path / "x.onnx", fail)


# -- timing caches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "written"),
    [(None, b"+"), (b"known", b"known+"), (b"other GPU", b"+"), (b"broken", b"+")],
    ids=["none", "ours", "of another GPU", "damaged"],
)
def test_what_was_timed_before_is_used_where_it_fits(
    fake: FakeTensorRT, tmp_path: Path, kept: bytes | None, written: bytes
) -> None:
    path = tmp_path / "cache" / "timing"
    if kept is not None:
        path.parent.mkdir()
        path.write_bytes(kept)
    build(tmp_path, path)
    assert path.read_bytes() == written
    if kept is None:
        assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_cache_that_cannot_be_kept_is_no_failure(fake: FakeTensorRT, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert build(tmp_path, tmp_path / "file" / "timing").data == b"a plan"


def test_rtx_times_nothing_and_a_build_that_fails_keeps_nothing(fake: FakeTensorRT, tmp_path: Path) -> None:
    build(tmp_path, tmp_path / "timing", flavour="rtx")
    fake.refuses = {"build_serialized_network"}
    with pytest.raises(BackendError):
        build(tmp_path, tmp_path / "timing")
    assert list(tmp_path.iterdir()) == []
