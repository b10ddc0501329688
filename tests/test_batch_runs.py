"""Batches on a network that answers later, as a GPU does: in order, one ahead, and what fails costs no other."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from sqt_fast.clips.batches import View
from sqt_fast.clips.gather import Clip
from sqt_fast.engine.batch_runs import BatchRuns, Slot
from sqt_fast.engine.events import BatchSizeChanged
from sqt_fast.errors import BackendError, DeviceLostError
from sqt_fast.network.backends import Started
from tests.watching import Remembering

MEMORY = torch.OutOfMemoryError("CUDA out of memory")
LOST = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


class Stacked:
    """Batches of clips of one number, which are padded with zeros."""

    def views(self, clip: Clip) -> Iterator[View]:
        raise NotImplementedError

    def batch(self, views: list[View], batch_size: int) -> Tensor:
        padding = [torch.zeros(1)] * (batch_size - len(views))
        return torch.stack([*(view.clip for view in views), *padding])


class Later:
    """Its results are written when they are waited for. fails: is told "start" or "finish" and the batch."""

    dtype = torch.float32

    def __init__(self, fails: Callable[[str, Tensor], Exception | None] = lambda when, clips: None) -> None:
        self.fails = fails
        self.said: list[str] = []
        self.released = 0

    def start(self, clips: Tensor) -> Started:
        number = sum(line.startswith("start") for line in self.said)
        self.said.append(f"start {number}")
        if (error := self.fails("start", clips)) is not None:
            raise error
        logits, embeddings = torch.full((len(clips), 2), torch.nan), torch.full((len(clips), 1), torch.nan)

        def synchronize() -> None:
            self.said.append(f"finish {number}")
            if (error := self.fails("finish", clips)) is not None:
                raise error
            logits.copy_(torch.cat([clips, -clips], 1))
            embeddings.copy_(clips)

        return Started(logits, embeddings, cast(Any, SimpleNamespace(synchronize=synchronize)))

    def release_memory(self) -> None:
        self.released += 1


class AtOnce(Later):
    """As on a CPU: a batch that was started has been run."""

    def start(self, clips: Tensor) -> Started:
        return Started(*super().start(clips).results())


class FakeJob:
    """A video of its own for every view. errors: what was noted."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def fail(self, error: Exception) -> None:
        self.errors.append(str(error))


def slots_of(*values: float) -> list[Slot]:
    return [(cast(Any, FakeJob()), View(0, 0, torch.tensor([float(value)]), 0)) for value in values]


def runs_of(backend: Later, batch_size: int = 2, watcher: Remembering | None = None) -> BatchRuns:
    return BatchRuns(backend, Stacked(), batch_size, watcher or Remembering())


def finished(runs: BatchRuns) -> list[float | None]:
    """Finish a batch. Returns the embedding of each view, having looked at its scores."""
    found: list[float | None] = []
    for _, view, outputs in runs.finish():
        if outputs is not None:
            assert torch.equal(outputs[0], torch.softmax(torch.cat([view.clip, -view.clip]), 0))
        found.append(None if outputs is None else float(outputs[1]))
    return found


def run_all(backend: Later, batches: list[list[Slot]], batch_size: int = 2) -> list[float | None]:
    """Return what labelling would be given: each batch is started, and what is due is finished."""
    runs, found = runs_of(backend, batch_size), []
    for slots in batches:
        runs.start(slots)
        assert runs.under_way <= 2
        while runs.due:
            found += finished(runs)
    while runs.under_way:
        found += finished(runs)
    return found


def failing_once(when: str, error: Exception, nth: int) -> Callable[[str, Tensor], Exception | None]:
    """Fail at the ``nth`` time that this is done."""
    left = [nth]

    def fails(now: str, clips: Tensor) -> Exception | None:
        left[0] -= now == when
        return error if now == when and left[0] == -1 else None

    return fails


def test_a_batch_is_finished_when_the_next_is_under_way() -> None:
    backend = Later()
    runs = runs_of(backend)
    assert (runs.under_way, runs.due) == (0, False)
    runs.start(slots_of(1, 2))
    assert (runs.under_way, runs.due) == (1, False)
    runs.start(slots_of(3))
    assert (runs.under_way, runs.due) == (2, True)
    assert finished(runs) == [1, 2]
    assert (runs.under_way, runs.due) == (1, False)
    assert finished(runs) == [3]
    assert (runs.under_way, runs.due) == (0, False)
    assert backend.said == ["start 0", "start 1", "finish 0", "finish 1"]


def test_on_a_cpu_a_batch_is_finished_when_it_has_been_run() -> None:
    backend = AtOnce()
    assert run_all(backend, [slots_of(1, 2), slots_of(3, 4), slots_of(5)]) == [1, 2, 3, 4, 5]
    assert backend.said == [f"{what} {i}" for i in range(3) for what in ("start", "finish")]


def test_what_fails_to_start_waits_for_the_batch_before_it() -> None:
    backend = Later(failing_once("start", ValueError("no"), 1))
    runs = runs_of(backend)
    for slots in (slots_of(1, 2), slots_of(3, 4)):
        runs.start(slots)
    assert finished(runs) == [1, 2]
    assert runs.due  # nothing is to be waited for
    assert finished(runs) == [3, 4]
    assert backend.said == ["start 0", "start 1", "finish 0", "start 2", "finish 2", "start 3", "finish 3"]


@pytest.mark.parametrize("kind", [Later, AtOnce])
@pytest.mark.parametrize("when", ["start", "finish"])
@pytest.mark.parametrize("nth", range(5))
@pytest.mark.parametrize("error", [MEMORY, ValueError("no")], ids=["memory", "no"])
def test_one_failure_anywhere_loses_nothing(kind: type[Later], when: str, nth: int, error: Exception) -> None:
    batches = [slots_of(1, 2, 3, 4), slots_of(5, 6, 7, 8), slots_of(9, 10, 11, 12), slots_of(13, 14)]
    found = run_all(kind(failing_once(when, error, nth)), batches, 4)
    assert found == list(range(1, 15))
    assert all(cast(FakeJob, job).errors == [] for slots in batches for job, _ in slots)


@pytest.mark.parametrize("kind", [Later, AtOnce])
@pytest.mark.parametrize("when", ["start", "finish"])
@pytest.mark.parametrize("hated", range(1, 8))
def test_a_clip_that_the_network_fails_on_costs_no_other(kind: type[Later], when: str, hated: int) -> None:
    def fails(now: str, clips: Tensor) -> Exception | None:
        return ValueError(f"not {hated}") if now == when and (clips == hated).any() else None

    batches = [slots_of(1, 2, 3), slots_of(4, 5, 6), slots_of(7)]
    found = run_all(kind(fails), batches, 3)
    assert found == [None if value == hated else value for value in range(1, 8)]
    noted = [cast(FakeJob, job).errors for slots in batches for job, _ in slots]
    message = f"the network failed on clip 0: ValueError: not {hated}"
    assert noted == [[message] if value == hated else [] for value in range(1, 8)]


@pytest.mark.parametrize("when", ["start", "finish"])
def test_memory_that_runs_out_makes_batches_smaller(when: str) -> None:
    """Those that are under way in the old size are finished in it, and those that gathered for it are cut."""

    def fails(now: str, clips: Tensor) -> Exception | None:
        return MEMORY if now == when and len(clips) > 2 else None

    backend, watcher = Later(fails), Remembering()
    runs = runs_of(backend, 4, watcher)
    runs.start(slots_of(1, 2, 3, 4))
    runs.start(slots_of(5, 6, 7))
    assert finished(runs) == [1, 2, 3, 4]
    assert runs.batch_size == 2
    assert finished(runs) == [5, 6, 7]
    runs.start(slots_of(8, 9, 10))
    assert runs.due
    assert finished(runs) == [8, 9, 10]
    sizes = [event.batch_size for event in watcher.events if isinstance(event, BatchSizeChanged)]
    assert backend.released == len(sizes)
    assert sizes[0] == 2


def test_memory_that_two_batches_lack_may_do_for_each() -> None:
    backend = Later()
    backend.fails = lambda when, clips: (
        MEMORY if when == "start" and sum(line.startswith("start") for line in backend.said) == 2 else None
    )
    runs = runs_of(backend)
    runs.start(slots_of(1, 2))
    runs.start(slots_of(3, 4))
    assert finished(runs) + finished(runs) == [1, 2, 3, 4]
    assert runs.batch_size == 2
    assert backend.released == 0


def test_out_of_memory_with_one_clip_is_the_end() -> None:
    runs = runs_of(Later(lambda when, clips: MEMORY), 1)
    runs.start(slots_of(1))
    with pytest.raises(BackendError, match="out of memory with a single clip"):
        finished(runs)


@pytest.mark.parametrize("when", ["start", "finish"])
def test_a_lost_device_ends_it_behind_what_came_before(when: str) -> None:
    runs = runs_of(Later(failing_once(when, LOST, 1)))
    for slots in (slots_of(1, 2), slots_of(3, 4)):
        runs.start(slots)
    assert finished(runs) == [1, 2]
    with pytest.raises(DeviceLostError, match="illegal memory access"):
        finished(runs)


@pytest.mark.parametrize("when", ["start", "finish"])
def test_a_network_that_fails_on_a_blank_too_ends_it(when: str) -> None:
    runs = runs_of(Later(lambda now, clips: ValueError("no") if now == when else None))
    runs.start(slots_of(1, 2))
    with pytest.raises(BackendError, match=r"the network fails on every clip \(no\); try another --backend"):
        finished(runs)


def test_an_interrupt_is_not_held_back() -> None:
    def interrupt(when: str, clips: Tensor) -> Exception | None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs_of(Later(interrupt)).start(slots_of(1))
