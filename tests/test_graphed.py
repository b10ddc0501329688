"""The triton backend: the network's own numbers, or one clear line that names what can run."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace

import pytest
import torch
import triton
from torch import Tensor

from sqt_fast.errors import BackendError
from sqt_fast.network import graphed
from sqt_fast.network.backends import DTYPES, load_backend
from sqt_fast.network.eager import LogitsAndEmbeddings
from sqt_fast.network.graphed import GraphRunner
from sqt_fast.network.model import ModelConfig, SqueezeTime
from sqt_fast.network.registry import PRECISIONS

SIZE = 32


@pytest.fixture(scope="module")
def network() -> SqueezeTime:
    torch.manual_seed(0)
    return SqueezeTime(ModelConfig(depth=10, width=0.25, num_classes=7)).eval()


@pytest.fixture(scope="module")
def clips() -> Tensor:
    return torch.randn((3, 48, SIZE, SIZE), generator=torch.Generator().manual_seed(1))


def error(result: Tensor, truth: Tensor) -> float:
    return float((result.cpu().double() - truth).abs().max() / truth.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_gives_the_networks_numbers(network: SqueezeTime, clips: Tensor, precision: str, kernel_device: str) -> None:
    backend = load_backend("triton", network, device=kernel_device, precision=precision, batch_size=3, size=SIZE)
    assert backend.dtype == DTYPES[precision]
    results = backend.run(clips.to(backend.dtype))
    truth = LogitsAndEmbeddings(network).double().net
    embeddings = truth.embed(clips.double())
    own = LogitsAndEmbeddings(network).to(backend.dtype)(clips.to(backend.dtype))
    for result, eager, exact in zip(results, own, (truth.classify(embeddings), embeddings), strict=True):
        assert result.dtype == torch.float32
        assert result.device.type == "cpu"
        assert error(result, exact) <= 2 * error(eager, exact) + 1e-6


def test_without_a_gpu_it_says_what_can_run(network: SqueezeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(BackendError, match=r"backend triton: .* NVIDIA GPU .*; use --backend eager or compile"):
        load_backend("triton", network, device="cpu", precision="fp32", batch_size=1, size=SIZE)


def test_an_old_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Old One")
    assert graphed.why_not("cuda:0") == ("the kernels need compute capability 8.0 (Ampere) or newer, Old One has 7.5")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert graphed.why_not("cuda:0") is None


def test_a_network_too_narrow_is_refused(kernel_device: str) -> None:
    narrow = SqueezeTime(ModelConfig(depth=10, width=0.1, num_classes=7))
    with pytest.raises(BackendError, match="of 16 channels, this network has 6; use --backend eager or compile"):
        load_backend("triton", narrow, device=kernel_device, precision="fp32", batch_size=1, size=SIZE)


class FakeCuda:
    """Stands in for CUDA's streams and graphs: a graph replays by running the network again on its own memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.modes: list[str] = []
        self.pools: list[object] = []
        self.replays = 0
        stream = SimpleNamespace(wait_stream=lambda other: None, cuda_stream=7)
        fakes = {
            "device": lambda device: nullcontext(),
            "Stream": lambda: stream,
            "current_stream": lambda device=None: stream,
            "stream": lambda stream: nullcontext(),
            "CUDAGraph": lambda: SimpleNamespace(replay=self.replay, pool=lambda: "the pool"),
            "graph": self.graph,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    def graph(self, graph: object, pool: object, capture_error_mode: str) -> AbstractContextManager[None]:
        self.modes.append(capture_error_mode)
        self.pools.append(pool)
        return nullcontext()

    def replay(self) -> None:
        self.replays += 1


class Elsewhere(Tensor):
    """A tensor that says it lies on a GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")


class Doubled:
    """A network that can be captured, and does little."""

    dtype = torch.float32
    memory_format = torch.channels_last

    def __call__(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * clips.float().sum((1, 2, 3)), clips.float().mean((2, 3))


def on_a_gpu(batch: int) -> Tensor:
    return torch.ones(batch, 48, 4, 4).as_subclass(Elsewhere)


def test_graphs_are_captured_once_a_shape_and_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    network = GraphRunner(Doubled())
    for batch in (1, 2, 1, 3, 4, 1):
        network(on_a_gpu(batch))
    assert cuda.modes == ["thread_local"] * 4
    assert cuda.replays == 6
    network(on_a_gpu(5))  # instead of 2, the longest unused
    network(on_a_gpu(1))
    assert len(cuda.modes) == 5
    network(on_a_gpu(2))
    assert len(cuda.modes) == 6


def test_all_shapes_share_a_pool_until_it_is_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool each would hold the memory of a batch that proved too large beside every smaller one."""
    cuda = FakeCuda(monkeypatch)
    network = GraphRunner(Doubled())
    for batch in (4, 2, 1):
        network(on_a_gpu(batch))
    assert cuda.pools == [None, "the pool", "the pool"]
    network.clear()
    network(on_a_gpu(1))
    assert cuda.pools[3:] == [None]


def test_threads_get_their_own_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch)
    network = GraphRunner(Doubled())
    copy = graphed._Captured.__call__
    inside = threading.Semaphore(1)

    def alone(self: graphed._Captured, clips: Tensor) -> tuple[Tensor, Tensor]:
        assert inside.acquire(blocking=False), "two batches are in the graph's memory at once"
        result = copy(self, clips)
        inside.release()
        return result

    monkeypatch.setattr(graphed._Captured, "__call__", alone)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: network(on_a_gpu(2)), range(200)))


def test_a_captured_batch_is_copied_in_and_results_are_copied_out(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch)
    captured = graphed._Captured(Doubled(), on_a_gpu(2), None)
    assert captured.clips.is_contiguous(memory_format=torch.channels_last)
    logits, _ = captured(3 * torch.ones(2, 48, 4, 4))
    assert torch.equal(captured.clips.as_subclass(Tensor), 3 * torch.ones(2, 48, 4, 4))
    captured.logits.fill_(7)
    assert not (logits == 7).any()
