"""CUDA graphs of whatever network: captured once a shape, in one pool of memory, and nobody sees another's results."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
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


class Replaying(FakeCuda):
    """Its graphs compute: what the network is called with while one is captured, that one calls it with again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, net: "Doubled") -> None:
        super().__init__(monkeypatch)
        self.net = net
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(pool=lambda: "the pool", net=net))

    @contextmanager
    def graph(self, graph: SimpleNamespace, pool: object, capture_error_mode: str) -> Iterator[None]:  # type: ignore[override]
        yield
        clips, results = self.net.last

        def replay() -> None:
            for result, again in zip(results, self.net(clips), strict=True):
                result.copy_(again)

        graph.replay = replay


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
        results = 2 * clips.float().sum((1, 2, 3)), clips.float().mean((2, 3))
        self.last = clips, results
        return results


def on_a_gpu(batch: int, value: float = 1.0) -> Tensor:
    return torch.full((batch, 48, 4, 4), value).as_subclass(Elsewhere)


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


# -- clips that are written where the graph reads them ----------------------------------------------------------------

SHAPE = (2, 48, 4, 4)


def logit_of(value: float) -> float:
    return 2 * value * 48 * 4 * 4


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> GraphRunner:
    """A network whose graph for two clips is captured."""
    net = Doubled()
    Replaying(monkeypatch, net)
    runner = GraphRunner(net)
    assert runner.input(SHAPE) is None
    assert runner(on_a_gpu(2, 3))[0].tolist() == [logit_of(3)] * 2
    return runner


def lent(network: GraphRunner, value: float) -> Tensor:
    """Return clips of ``value`` in the memory that the graph reads."""
    memory = network.input(SHAPE)
    assert memory is not None
    assert memory.is_contiguous(memory_format=torch.channels_last)
    return memory.fill_(value)


def test_clips_in_the_graphs_memory_are_not_copied(network: GraphRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[Tensor] = []
    copy = Tensor.copy_

    def counted(self: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        copies.extend([self] if self.shape == SHAPE else [])  # not results
        return copy(self, source, non_blocking)

    first = lent(network, 5)
    monkeypatch.setattr(Elsewhere, "copy_", counted, raising=False)
    assert network(first)[0].tolist() == [logit_of(5)] * 2
    assert copies == []
    assert network(on_a_gpu(2, 6))[0].tolist() == [logit_of(6)] * 2
    assert len(copies) == 1
    assert lent(network, 7) is first


def test_a_part_or_another_view_of_that_memory_is_copied(network: GraphRunner) -> None:
    """Same address, other clips."""
    clips = lent(network, 5)
    clips[:, 1].fill_(0)
    assert network(clips.transpose(2, 3))[0].tolist() == [logit_of(5) * 47 / 48] * 2
    assert network(clips[:1])[0].tolist() == [logit_of(5) * 47 / 48]


def test_other_clips_do_not_overwrite_a_batch_that_is_being_prepared(network: GraphRunner) -> None:
    prepared = lent(network, 5)
    assert network(on_a_gpu(2, 9))[0].tolist() == [logit_of(9)] * 2
    assert network(prepared)[0].tolist() == [logit_of(5)] * 2
    assert lent(network, 6) is not prepared


@pytest.mark.parametrize("how", ["cleared", "evicted"])
def test_lent_memory_outlives_its_graph(network: GraphRunner, how: str) -> None:
    prepared = lent(network, 5)
    if how == "cleared":
        network.clear()
    else:
        for batch in range(3, 3 + graph_runner.MAX_GRAPHS):
            network(on_a_gpu(batch))
    assert network.input(SHAPE) is None
    assert network(prepared)[0].tolist() == [logit_of(5)] * 2
    assert prepared.eq(5).all()


def test_each_shape_has_its_memory(network: GraphRunner) -> None:
    """As when batches get smaller after memory has run out."""
    network(on_a_gpu(1, 2))
    whole, one = lent(network, 5), network.input((1, *SHAPE[1:]))
    assert one is not None
    assert network(one.fill_(4))[0].tolist() == [logit_of(4)]
    assert network(whole)[0].tolist() == [logit_of(5)] * 2


def test_results_are_not_those_of_the_batch_that_follows(network: GraphRunner) -> None:
    first = network(lent(network, 5))[0]
    network(lent(network, 6))
    assert first.tolist() == [logit_of(5)] * 2
