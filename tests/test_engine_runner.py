"""Engines at work, by a TensorRT that is none: addresses, contexts, graphs, and every no in words."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sqt_fast.errors import BackendError
from sqt_fast.network.backends import load_backend
from sqt_fast.network.graph_runner import GraphRunner
from sqt_fast.network.model import ModelConfig, SqueezeTime
from sqt_fast.network.onnx_export import ExportConfig, network_sha256
from sqt_fast.tensorrt import engine_runner
from sqt_fast.tensorrt.engine_build import Plan
from sqt_fast.tensorrt.engine_cache import Engine, Gpu, engines_folder, identity_of, install
from sqt_fast.tensorrt.engine_config import Batches, EngineConfig
from sqt_fast.tensorrt.engine_runner import (
    EngineBackend,
    EngineNetwork,
    rtx_why_not,
    tensorrt_network,
    tensorrt_why_not,
)
from sqt_fast.tensorrt.tensorrt_library import FLAVOURS
from tests.fake_tensorrt import FakeTensorRT, sums
from tests.test_graph_runner import FakeCuda, on_a_gpu

GPU = Gpu("NVIDIA H200", "9.0", 132)
REBUILD = "sqt-fast build-engine --weights tiny --force"


@pytest.fixture(autouse=True)
def _streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: SimpleNamespace(cuda_stream=7))


def engine(folder: Path, name: str = "x", *, validation: Any = None, **values: Any) -> Engine:
    """Install an engine. values: of its identity."""
    export = ExportConfig(values.pop("size", 32), values.pop("precision", "fp32"), values.pop("input", "normalised"))
    config = EngineConfig(values.pop("flavour", "tensorrt"), export, values.pop("batches", Batches(1, 2, 4)))
    usual = {"onnx_sha256": "a", "network_sha256": "b", "library_version": "11.4.0.106", "gpu": GPU}
    identity = identity_of(config, **{**usual, **values})
    plan = Plan(f"program {name}".encode(), "11.4.0.106", {}, (), 1.0)
    return install(plan, folder / f"{name}.engine", identity, {"rebuild": REBUILD, "validation": validation})


def network(folder: Path, library: FakeTensorRT, **values: Any) -> EngineNetwork:
    return EngineNetwork(engine(folder, **values), library, "cpu")


def clips(batch: int, dtype: torch.dtype = torch.float32) -> Tensor:
    drawn = torch.randint(0, 9, (batch, 48, 4, 4), generator=torch.Generator().manual_seed(batch))
    return drawn.to(dtype)


# -- an engine as a function ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "kind", "dtype"),
    [
        ("fp32", "normalised", torch.float32),
        ("fp16", "normalised", torch.float16),
        ("bf16", "normalised", torch.bfloat16),
        ("bf16", "uint8", torch.uint8),
    ],
)
def test_it_reads_and_writes_torchs_memory(tmp_path: Path, precision: str, kind: str, dtype: torch.dtype) -> None:
    library = FakeTensorRT(dtype=dtype)
    run = network(tmp_path, library, precision=precision, input=kind)
    assert library.loaded == [b"program x"]
    assert run.dtype == dtype
    for batch in (1, 3, 4):
        logits, embeddings = run(clips(batch, dtype))
        wanted = sums(clips(batch, dtype))
        assert torch.equal(logits, wanted[0])
        assert torch.equal(embeddings, wanted[1])


def test_every_size_of_batch_has_a_context_and_all_share_memory(tmp_path: Path) -> None:
    library = FakeTensorRT()
    run = network(tmp_path, library)
    for batch in (2, 1, 2, 4, 1):
        run(clips(batch))
    assert [context.shape for context in library.contexts] == [(2, 48, 4, 4), (1, 48, 4, 4), (4, 48, 4, 4)]
    assert len({context.scratch for context in library.contexts}) == 1
    assert library.contexts[0].scratch[1] == 1000
    assert [context.streams for context in library.contexts] == [[7, 7], [7, 7], [7]]
    run.clear()
    run(clips(2))
    assert len(library.contexts) == 4


def test_results_of_one_call_are_not_those_of_the_next(tmp_path: Path) -> None:
    run = network(tmp_path, FakeTensorRT())
    first = run(clips(2))[0]
    before = first.clone()
    run(clips(2) + 1)
    assert torch.equal(first, before)


def test_batches_outside_its_profile_are_refused_with_what_would_do(tmp_path: Path) -> None:
    run = network(tmp_path, FakeTensorRT(batches=(2, 2, 4)))
    for batch in (1, 5):
        with pytest.raises(BackendError) as caught:
            run(clips(batch))
        assert str(caught.value) == (
            f"engine x.engine takes 2 to 4 clips at once, not {batch}: use --batch-size 4, or build one with another "
            "--batch"
        )


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(2, 48, 4, 5), torch.zeros(2, 48, 4, 4).half(), torch.zeros(2, 4, 4, 48).permute(0, 3, 1, 2)],
    ids=["size", "dtype", "layout"],
)
def test_clips_that_it_would_misread_are_a_bug(tmp_path: Path, wrong: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, 48, 4, 4\) torch.float32, contiguous"):
        network(tmp_path, FakeTensorRT())(wrong)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("deserialize_cuda_engine", "cannot be loaded"),
        ("create_execution_context", "gives no execution context"),
        ("set_input_shape", "refuses batches of 2"),
        ("set_tensor_address", "refuses the address of clips"),
        ("execute_async_v3", "could not be started"),
    ],
)
def test_every_no_is_an_error_in_words(tmp_path: Path, call: str, said: str) -> None:
    with pytest.raises(BackendError) as caught:
        network(tmp_path, FakeTensorRT(refuses={call}))(clips(2))
    path = tmp_path / "x.engine"
    assert str(caught.value) == f"engine {path} {said}: [{call}] says no; build it again: {REBUILD}"


def test_a_context_that_failed_is_not_kept(tmp_path: Path) -> None:
    library = FakeTensorRT(refuses={"set_input_shape"})
    run = network(tmp_path, library)
    with pytest.raises(BackendError):
        run(clips(2))
    library.refuses = ()
    assert torch.equal(run(clips(2))[0], sums(clips(2))[0])


def test_an_engine_of_another_network_is_refused(tmp_path: Path) -> None:
    library = FakeTensorRT()
    library.names = ["clips", "scores", "embeddings"]
    with pytest.raises(BackendError, match="has the tensors clips, scores, embeddings, not those that its sidecar"):
        network(tmp_path, library)


def test_graphs_are_captured_once_a_size_with_a_context_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeTensorRT()
    cuda = FakeCuda(monkeypatch)
    runner = GraphRunner(network(tmp_path, library))
    for batch in (1, 2, 1, 4):
        runner(on_a_gpu(batch))
    assert (len(cuda.modes), cuda.replays, len(library.contexts)) == (3, 4, 3)
    assert [len(context.streams) for context in library.contexts] == [2, 2, 2]  # a warm-up and a capture each
    runner.clear()
    runner(on_a_gpu(1))
    assert (len(cuda.modes), len(library.contexts)) == (4, 4)


# -- which engine -----------------------------------------------------------------------------------------------------

GOOD = {"holds": True}


@pytest.fixture
def backend(empty_cache: Path, tiny_model: SqueezeTime, monkeypatch: pytest.MonkeyPatch) -> EngineBackend:
    """The backend of the tiny network in fp32, on a GPU that is none, with an empty cache."""
    engines_folder().mkdir(parents=True)
    monkeypatch.setattr(engine_runner, "load_library", lambda flavour: FakeTensorRT(sample=(48, 32, 32)))
    monkeypatch.setattr(Gpu, "of", lambda device: GPU)
    return EngineBackend(tiny_model, device="cpu", dtype=torch.float32, flavour=FLAVOURS["tensorrt"])


def kept(backend: EngineBackend, name: str = "x", **values: Any) -> Engine:
    values = {"network_sha256": backend.network_sha256, "validation": GOOD, **values}
    return engine(engines_folder(), name, **values)


def refused(backend: EngineBackend, size: int = 32) -> str:
    with pytest.raises(BackendError) as caught:
        backend.find(size, 2, "11.4.0.106")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_engine_of_this_network_is_found(backend: EngineBackend) -> None:
    others: dict[str, dict[str, Any]] = {
        "a": {"network_sha256": "other"},
        "b": {"size": 64},
        "c": {"precision": "bf16"},
        "d": {"input": "uint8"},
        "e": {"flavour": "rtx"},
    }
    for name, values in others.items():
        kept(backend, name, **values)
    (engines_folder() / "f.engine").write_bytes(b"stray")
    assert "no engine was built for these weights" in refused(backend)
    found = kept(backend, "g")
    assert backend.find(32, 2, "11.4.0.106") == found
    assert backend.find(64, 2, "11.4.0.106").path.stem == "b"


def test_where_there_is_none_the_command_is_named(backend: EngineBackend) -> None:
    assert refused(backend, 224) == (
        "no engine was built for these weights, fp32 and 224x224 pixels: sqt-fast build-engine --flavour tensorrt "
        "--precision fp32 --size 224 --weights (the same)"
    )


def test_one_that_may_run_is_taken_before_others(backend: EngineBackend) -> None:
    kept(backend, "a", gpu=Gpu("NVIDIA A100", "8.0", 108))
    kept(backend, "b", validation={"holds": False})
    found = kept(backend, "c")
    assert backend.find(32, 2, "11.4.0.106") == found


def test_the_one_that_was_built_for_so_many_clips_is_taken(backend: EngineBackend) -> None:
    for name, batches in (("a", (1, 8, 8)), ("b", (1, 64, 64)), ("c", (1, 32, 128))):
        kept(backend, name, batches=Batches(*batches))
    found = {batch: backend.find(32, batch, "11.4.0.106").path.stem for batch in (4, 8, 30, 64, 100, 500)}
    assert found == {4: "a", 8: "a", 30: "c", 64: "b", 100: "c", 500: "b"}


def test_the_nearest_is_named_with_all_its_reasons(backend: EngineBackend) -> None:
    kept(backend, "a", gpu=Gpu("NVIDIA A100", "8.0", 108), library_version="10.16")
    near = kept(backend, "b", library_version="10.16")
    assert refused(backend) == (
        f"engine {near.path} cannot be used: it was built with TensorRT 10.16, this is 11.4.0.106; build it again: "
        f"{REBUILD}"
    )


@pytest.mark.parametrize("validation", [None, {"holds": False}, {}], ids=["not yet", "bad", "nothing"])
def test_one_that_was_not_validated_is_refused(backend: EngineBackend, validation: Any) -> None:
    path = kept(backend, validation=validation).path
    line = refused(backend)
    assert f"it was not found to give what the network gives (sqt-fast engines check {path} looks)" in line


def test_one_that_was_tampered_with_never_reaches_the_library(
    backend: EngineBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kept(backend).path
    path.write_bytes(b"something else")
    library = FakeTensorRT(sample=(48, 32, 32))
    monkeypatch.setattr(engine_runner, "load_library", lambda flavour: library)
    with pytest.raises(BackendError, match="its bytes are not those that were built"):
        backend(torch.zeros(2, 48, 32, 32))
    assert library.loaded == []


def test_clips_of_every_size_get_their_engine_and_each_is_loaded_once(
    backend: EngineBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(backend)
    library = FakeTensorRT(sample=(48, 32, 32))
    monkeypatch.setattr(engine_runner, "load_library", lambda flavour: library)
    given = torch.rand(2, 48, 32, 32).contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        torch.testing.assert_close(backend(given)[0], sums(given.contiguous())[0])
    assert len(library.loaded) == 1
    with pytest.raises(BackendError, match="64x64 pixels"):
        backend(torch.zeros(2, 48, 64, 64))
    backend.clear()
    backend(given)
    assert len(library.loaded) == 2


# -- as a backend -----------------------------------------------------------------------------------------------------


def test_on_a_cpu_it_says_what_can_run(tiny_model: SqueezeTime) -> None:
    assert tensorrt_why_not("cpu", tiny_model) == "TensorRT needs an NVIDIA GPU (--device cuda)"
    assert rtx_why_not("cpu", tiny_model) == "TensorRT-RTX needs an NVIDIA GPU (--device cuda)"
    with pytest.raises(BackendError, match=r"^backend tensorrt: .*; use --backend eager or "):
        load_backend("tensorrt", tiny_model, device="cpu", precision="fp32", batch_size=1, size=32)


def test_a_missing_library_is_named(tiny_model: SqueezeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rtx_why_not("cuda", tiny_model) is None
    for name in FLAVOURS["tensorrt"].modules:
        monkeypatch.setitem(sys.modules, name, None)
    assert str(tensorrt_why_not("cuda", tiny_model)).startswith("TensorRT is not installed: pip install")


def test_a_network_is_known_by_its_numbers() -> None:
    model = SqueezeTime(ModelConfig(depth=10, width=0.1, num_classes=3))
    backend = tensorrt_network(model, device="cuda", dtype=torch.bfloat16)
    assert (backend.precision, backend.network_sha256) == ("bf16", network_sha256(model))
    assert backend.flavour.name == "tensorrt"
