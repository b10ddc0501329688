"""CUDA graphs of whatever network: captured once a shape, in one pool of memory, and nobody sees another's results."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from sqt_fast.network import graph_runner
from sqt_fast.network.graph_runner import GraphRunner


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
    copy = graph_runner._Captured.__call__
    inside = threading.Semaphore(1)

    def alone(self: graph_runner._Captured, clips: Tensor) -> tuple[Tensor, Tensor]:
        assert inside.acquire(blocking=False), "two batches are in the graph's memory at once"
        result = copy(self, clips)
        inside.release()
        return result

    monkeypatch.setattr(graph_runner._Captured, "__call__", alone)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: network(on_a_gpu(2)), range(200)))


def test_a_captured_batch_is_copied_in_and_results_are_copied_out(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch)
    captured = graph_runner._Captured(Doubled(), on_a_gpu(2), None)
    assert captured.clips.is_contiguous(memory_format=torch.channels_last)
    logits, _ = captured(3 * torch.ones(2, 48, 4, 4))
    assert torch.equal(captured.clips.as_subclass(Tensor), 3 * torch.ones(2, 48, 4, 4))
    captured.logits.fill_(7)
    assert not (logits == 7).any()
