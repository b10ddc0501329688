"""Videos in, rows out, on one device: decoders work ahead on threads while the network runs here.

Batches have one fixed shape and fill up across videos; the last is padded.
"""

import logging
import queue
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sqt_fast.clips.batches import Batches, CpuBatches, View
from sqt_fast.clips.recipe import Recipe
from sqt_fast.engine.decoders import Decoders, DecoderSetup
from sqt_fast.engine.events import BatchSizeChanged, ClipsLabelled, Note, Report, ignore
from sqt_fast.engine.failures import Failure, kind_of
from sqt_fast.engine.jobs import Job, Jobs
from sqt_fast.engine.results import RunCounters, VideoResult
from sqt_fast.errors import BackendError, DeviceLostError, SqtError, VideoError, first_line
from sqt_fast.network.backends import Backend
from sqt_fast.table.rows import Float32, RowStyle, Scored, failed_row, video_rows
from sqt_fast.video.archive import VideoFile

log = logging.getLogger(__name__)

# A clip with more frames than this that are replaced or concealed says more about the damage than about the video.
MAX_MISSING = 8
# So many videos, one after the other, cannot all be what a network fails on.
MAX_FAILED_IN_A_ROW = 3


@dataclass(frozen=True)
class Task:
    """What is asked of the network: which clips, which rows, how many clips at once."""

    recipe: Recipe
    style: RowStyle
    batch_size: int
    embeddings: bool = False


@dataclass
class Sheet:
    """What the network has given for one video. views_open: handed to it and not answered; decoded: all are there."""

    scores: Float32 | None = None
    embeddings: Float32 | None = None
    missing: dict[int, int] = field(default_factory=dict)
    views_open: int = 0
    decoded: bool = False

    @property
    def complete(self) -> bool:
        """Whether nothing more comes."""
        return self.decoded and not self.views_open

    def keep(self, view: View, shape: tuple[int, int], scores: Tensor, embedding: Tensor | None) -> None:
        """Keep each view on its own, so that their mean does not depend on the order in which they came.

        shape: clips and crops of the video.
        """
        self.missing[view.clip_index] = view.missing
        if self.scores is None:
            self.scores = np.zeros((*shape, len(scores)), np.float32)
        self.scores[view.clip_index, view.crop] = scores.numpy()
        if embedding is not None:
            if self.embeddings is None:
                self.embeddings = np.zeros((*shape, len(embedding)), np.float32)
            self.embeddings[view.clip_index, view.crop] = embedding.numpy()


Slot = tuple[Job, View]


class Labelling:
    """Label videos on one device. See ``label``. setup: what its decoders work with; batches: makes its batches."""

    def __init__(
        self,
        backend: Backend,
        task: Task,
        setup: DecoderSetup,
        batches: Batches | None = None,
        report: Report = ignore,
    ) -> None:
        self.backend, self.task, self.report = backend, task, report
        self.batch_size = task.batch_size
        self.batches = batches or CpuBatches(task.recipe.protocol, backend.dtype)
        self.counters = RunCounters()
        self.jobs = Jobs()
        self._sheets: dict[Job, Sheet] = {}
        self._slots: list[Slot] = []
        self._failed_in_a_row: set[Job] = set()
        self._ready: queue.Queue[tuple[Job, View | None]] = queue.Queue(maxsize=2 * task.batch_size)
        self._decoders = Decoders(self.jobs, task.recipe, self.batches, setup, self._put, report)

    def label(self, videos: Iterable[VideoFile]) -> Generator[VideoResult, None, None]:
        """Yield the result of every video, in the order in which they are finished.

        Every video gives exactly one result, whatever is wrong with it. Closing the iterator, or an exception raised
        into it, stops the decoders. Raises BackendError when the network cannot go on, DeviceLostError when the device
        is lost: both are no video's fault.
        """
        self.jobs.add(videos)
        self.jobs.close()
        yield from self.results()

    def results(self) -> Generator[VideoResult, None, None]:
        """Yield the results of the videos that are added to ``jobs``, now and meanwhile, until those are closed."""
        self._decoders.start()
        try:
            yield from self._network_loop()
        finally:
            self._decoders.stop()

    def take_counters(self) -> RunCounters:
        """Return what was counted since the last time."""
        counters, self.counters = self.counters, RunCounters()
        return counters

    # -- decoders to network ------------------------------------------------------------------------------------------

    def _put(self, job: Job, view: View | None) -> None:
        """Take a view, or the end of a job, from a decoder's thread; it waits while the network has enough."""
        while not self.jobs.stopped:
            try:
                self._ready.put((job, view), timeout=0.1)
                break
            except queue.Full:
                continue

    def _network_loop(self) -> Iterator[VideoResult]:
        decoded = finished = 0
        while not (self.jobs.closed and finished == self.jobs.added):
            started = time.perf_counter()
            coming = self._next()
            self.counters.wait_s += time.perf_counter() - started
            if coming is None:
                continue
            job, view = coming
            sheet = self._sheets.setdefault(job, Sheet())
            complete: list[Job] = []
            if view is not None:
                sheet.views_open += 1
                self._slots.append((job, view))
            else:
                sheet.decoded = True
                decoded += 1
                complete = [job] if sheet.complete else []
            if len(self._slots) == self.batch_size or (self._slots and decoded == self.jobs.added):
                complete += self._run_batch()
            for done in complete:
                finished += 1
                yield self._result(done, self._sheets.pop(done))

    def _next(self) -> tuple[Job, View | None] | None:
        """Return what comes next from the decoders; None now and then, so that Ctrl-C and the end are seen."""
        try:
            return self._ready.get(timeout=0.1)
        except queue.Empty:
            if (error := self._decoders.error) is not None:
                if isinstance(error, SqtError):
                    raise error from None
                raise BackendError(f"decoding cannot go on here ({error})") from error
            return None

    # -- the network --------------------------------------------------------------------------------------------------

    def _run_batch(self) -> list[Job]:
        """Run the network on what has gathered. Returns the videos that are complete now."""
        started = time.perf_counter()
        slots, self._slots = self._slots, []
        complete = []
        for job, view, outputs in self._outputs(slots):
            sheet, planned = self._sheets[job], job.planned
            assert planned is not None
            if outputs is not None:
                shape = len(planned.clips), self.task.recipe.protocol.num_crops
                sheet.keep(view, shape, outputs[0], outputs[1] if self.task.embeddings else None)
            sheet.views_open -= 1
            if sheet.complete:
                complete.append(job)
        self.counters.network_s += time.perf_counter() - started
        self.counters.clips += len(slots)
        self.report(ClipsLabelled(len(slots)))
        return complete

    def _outputs(self, slots: list[Slot]) -> Iterator[tuple[Job, View, tuple[Tensor, Tensor] | None]]:
        """Yield scores and embedding of each view, None where the network fails on it alone: noted in its job."""
        todo = deque([slots])
        while todo:
            part = todo.popleft()
            if len(part) > self.batch_size:
                todo.extendleft((part[self.batch_size :], part[: self.batch_size]))
                continue
            outputs, error = self._try(part)
            if outputs is not None:
                self._failed_in_a_row.clear()
                yield from ((job, view, (outputs[0][i], outputs[1][i])) for i, (job, view) in enumerate(part))
            elif error is not None and self._may_halve(error):
                todo.appendleft(part)
            elif len(part) > 1:  # the clip that it fails on is in one of the halves
                middle = len(part) // 2
                todo.extendleft((part[middle:], part[:middle]))
            else:
                self._blame(part[0], error)
                yield (*part[0], None)

    def _try(self, slots: list[Slot]) -> tuple[tuple[Tensor, Tensor] | None, Exception | None]:
        """Run one batch. Returns softmax and embeddings, or what went wrong, without the memory that it held."""
        try:
            # Always of one shape, so that scores do not depend on neighbours.
            batch = self.batches.batch([view for _, view in slots], self.batch_size)
            logits, embeddings = self.backend.run(batch)
            return (torch.softmax(logits, dim=1), embeddings), None
        except Exception as error:
            log.debug("a batch failed", exc_info=True)
            # The traceback's frames hold the batch and all activations.
            error.__traceback__ = error.__context__ = error.__cause__ = None
            return None, error

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

    def _blame(self, slot: Slot, error: Exception | None) -> None:
        """Note that the network fails on one clip. Raises BackendError if it fails on a blank too, or on all videos."""
        job, view = slot
        self._failed_in_a_row.add(job)
        again = error
        if len(self._failed_in_a_row) < MAX_FAILED_IN_A_ROW:
            blank = View(view.clip_index, view.crop, torch.zeros_like(view.clip), 0, view.top, view.left)
            _, again = self._try([(job, blank)])
        if again is not None:
            self._may_halve(again)
            message = f"the network fails on every clip ({first_line(again)}); try another --backend"
            raise BackendError(message) from again
        reason = "" if error is None else f": {type(error).__name__}: {error}"
        job.fail(VideoError("error", f"the network failed on clip {view.clip_index}{reason}"))

    # -- results ------------------------------------------------------------------------------------------------------

    def _result(self, job: Job, sheet: Sheet) -> VideoResult:
        self.counters.count(job.report, job.facts, job.seconds)
        if job.error is not None and sheet.scores is None:
            return VideoResult(job.video, [failed_row(job.video, job.error, job.facts)])
        planned = job.planned
        assert planned is not None
        num_clips = len(planned.clips)
        missing = np.array([sheet.missing.get(i, planned.clips.frames.shape[1]) for i in range(num_clips)])
        concealed = np.isin(planned.clips.frames, planned.facts.numbers_of(job.report.damaged)).sum(axis=1)
        scored = Scored(
            scores=np.zeros((num_clips, 1), np.float32) if sheet.scores is None else sheet.scores.mean(axis=1),
            embeddings=None if sheet.embeddings is None else sheet.embeddings.mean(axis=1),
            labelled=missing + concealed <= MAX_MISSING,
        )
        decoder = ", ".join(sorted(job.decoders, reverse=True))
        rows = video_rows(job.video, planned.facts, planned.clips, scored, job.report, self.task.style, decoder)
        if job.error is not None:
            rows = [*(row for row in rows if row.status == "ok"), failed_row(job.video, job.error, job.facts)]
        return VideoResult(job.video, rows, planned.facts.duration_s)
