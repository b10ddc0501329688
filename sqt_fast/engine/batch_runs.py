"""Batches on a network: the next is sent while one computes, and what fails is taken apart, down to the clip."""

import logging
from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from sqt_fast.clips.batches import Batches, View
from sqt_fast.engine.events import BatchSizeChanged, Note, Report
from sqt_fast.engine.failures import Failure, kind_of
from sqt_fast.engine.jobs import Job
from sqt_fast.errors import BackendError, DeviceLostError, SqtError, VideoError, first_line
from sqt_fast.network.backends import Backend, Started

log = logging.getLogger(__name__)

# So many videos, one after the other, cannot all be what a network fails on.
MAX_FAILED_IN_A_ROW = 3

Slot = tuple[Job, View]
Outputs = tuple[Tensor, Tensor]  # scores and embedding of one view, or of a batch
Begun = Started | Exception  # what became of a batch when it was started


class BatchRuns:
    """Run views in batches of one size: ``start`` some, and ``finish`` what is ``due``, the oldest first.

    On a GPU, up to two batches are under way: one that computes, and one whose bytes are sent meanwhile. Elsewhere, a
    batch that was started has been run. batch_size: gets smaller where memory runs out.
    """

    def __init__(self, backend: Backend, batches: Batches, batch_size: int, report: Report) -> None:
        self.backend, self.batches, self.batch_size, self.report = backend, batches, batch_size, report
        self._under_way: deque[tuple[list[Slot], Begun | None]] = deque()  # None: begun when its turn comes
        self._failed_in_a_row: set[Job] = set()

    @property
    def under_way(self) -> int:
        """How many batches are started and not finished."""
        return len(self._under_way)

    @property
    def due(self) -> bool:
        """Whether the oldest is to be finished now: there is nothing to wait for, or the next computes behind it."""
        return self.under_way > 1 or any(not _must_wait(begun) for _, begun in self._under_way)

    def start(self, slots: list[Slot]) -> None:
        """Run the network on ``slots``. What goes wrong is raised by ``finish``."""
        begun = self._begin(slots) if len(slots) <= self.batch_size else None
        if self._under_way and isinstance(begun, Exception) and kind_of(begun) is Failure.MEMORY:
            begun = None  # alone, it may have enough
        self._under_way.append((slots, begun))

    def finish(self) -> Iterator[tuple[Job, View, Outputs | None]]:
        """Wait for the oldest batch. Yields scores and embedding of each view, None where the network fails on it alone
        (its job notes that).

        Raises BackendError when the network cannot go on, DeviceLostError when the device is lost.
        """
        slots, begun = self._under_way.popleft()
        todo = deque([slots])
        while todo:
            part = todo.popleft()
            if begun is None and len(part) > self.batch_size:
                todo.extendleft((part[self.batch_size :], part[: self.batch_size]))
                continue
            found = _outcome(begun or self._begin(part))
            begun = None
            if isinstance(found, tuple):
                self._failed_in_a_row.clear()
                yield from ((job, view, (found[0][i], found[1][i])) for i, (job, view) in enumerate(part))
            elif self._may_halve(found):
                todo.appendleft(part)
            elif len(part) > 1:  # the clip that it fails on is in one of the halves
                middle = len(part) // 2
                todo.extendleft((part[middle:], part[:middle]))
            else:
                self._blame(part[0], found)
                yield (*part[0], None)

    def _begin(self, slots: list[Slot]) -> Begun:
        """Start one batch. Returns what goes wrong, without the memory that it held."""
        try:
            # Always of one shape, so that scores do not depend on neighbours.
            return self.backend.start(self.batches.batch([view for _, view in slots], self.batch_size))
        except Exception as error:
            log.debug("a batch failed", exc_info=True)
            return _bare(error)

    def _may_halve(self, error: Exception) -> bool:
        """Go on with smaller batches if memory ran out. Raises BackendError or DeviceLostError where nothing helps."""
        if isinstance(error, SqtError):
            raise error
        kind = kind_of(error)
        if kind is Failure.DEVICE:
            raise DeviceLostError(first_line(error)) from error
        if kind is not Failure.MEMORY:
            return False
        if self.batch_size == 1:
            raise BackendError(
                "out of memory with a single clip; free some, or use --device cpu or a smaller --memory for decoding"
            ) from error
        self.backend.release_memory()
        self.batch_size = (self.batch_size + 1) // 2
        self.report(Note(f"out of memory: going on with batches of {self.batch_size}"))
        self.report(BatchSizeChanged(self.batch_size))
        return True

    def _blame(self, slot: Slot, error: Exception) -> None:
        """Note that the network fails on one clip. Raises BackendError if it fails on a blank too, or on all videos."""
        job, view = slot
        self._failed_in_a_row.add(job)
        again: Outputs | Exception = error
        if len(self._failed_in_a_row) < MAX_FAILED_IN_A_ROW:
            blank = View(view.clip_index, view.crop, torch.zeros_like(view.clip), 0, view.top, view.left)
            again = _outcome(self._begin([(job, blank)]))
        if isinstance(again, Exception):
            self._may_halve(again)
            message = f"the network fails on every clip ({first_line(again)}); try another --backend"
            raise BackendError(message) from again
        reason = f"{type(error).__name__}: {error}"
        job.fail(VideoError("error", f"the network failed on clip {view.clip_index}: {reason}"))


def _must_wait(begun: Begun | None) -> bool:
    return isinstance(begun, Started) and begun.event is not None


def _outcome(begun: Begun) -> Outputs | Exception:
    """Wait for one batch. Returns softmax and embeddings, or what went wrong."""
    if isinstance(begun, Exception):
        return begun
    try:
        logits, embeddings = begun.results()
    except Exception as error:
        log.debug("a batch failed on the GPU", exc_info=True)
        return _bare(error)
    return torch.softmax(logits, dim=1), embeddings


def _bare(error: Exception) -> Exception:
    """Return ``error`` without its traceback, whose frames hold the batch and all activations."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error
