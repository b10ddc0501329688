"""Videos in, rows out, on one device: decoders work ahead on threads while the network runs here.

Batches have one fixed shape and fill up across videos; the last is padded.
"""

import queue
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from torch import Tensor

from sqt_fast.clips.batches import Batches, CpuBatches, View
from sqt_fast.clips.recipe import Recipe
from sqt_fast.engine.batch_runs import BatchRuns, Slot
from sqt_fast.engine.decoders import Decoders, DecoderSetup
from sqt_fast.engine.events import ClipsLabelled, Report, ignore
from sqt_fast.engine.jobs import Job, Jobs
from sqt_fast.engine.results import RunCounters, VideoResult
from sqt_fast.errors import BackendError, SqtError
from sqt_fast.network.backends import Backend
from sqt_fast.table.rows import Float32, RowStyle, Scored, failed_row, video_rows
from sqt_fast.video.archive import VideoFile

# A clip with more frames than this that are replaced or concealed says more about the damage than about the video.
MAX_MISSING = 8


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
        self.task, self.report = task, report
        self.batches = batches or CpuBatches(task.recipe.protocol, backend.dtype)
        self.runs = BatchRuns(backend, self.batches, task.batch_size, report)
        self.counters = RunCounters()
        self.jobs = Jobs()
        self._sheets: dict[Job, Sheet] = {}
        self._slots: list[Slot] = []
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
            complete: list[Job] = []
            if coming is None:  # who waits for decoders has time to wait for the network
                complete = self._finish_batch() if self.runs.under_way else []
            else:
                job, view = coming
                sheet = self._sheets.setdefault(job, Sheet())
                if view is not None:
                    sheet.views_open += 1
                    self._slots.append((job, view))
                else:
                    sheet.decoded = True
                    decoded += 1
                    complete = [job] if sheet.complete else []
            if len(self._slots) >= self.runs.batch_size or (self._slots and decoded == self.jobs.added):
                self._start_batch()
            for done in chain(complete, self._finish_due()):
                finished += 1
                yield self._result(done, self._sheets.pop(done))

    def _next(self) -> tuple[Job, View | None] | None:
        """Return what comes next from the decoders. None now and then, so that Ctrl-C and the end are seen; at once if
        there is nothing while a batch is under way.
        """
        try:
            return self._ready.get(block=not self.runs.under_way, timeout=0.1)
        except queue.Empty:
            if not self.runs.under_way and (error := self._decoders.error) is not None:
                if isinstance(error, SqtError):
                    raise error from None
                raise BackendError(f"decoding cannot go on here ({error})") from error
            return None

    # -- the network --------------------------------------------------------------------------------------------------

    def _start_batch(self) -> None:
        """Run the network on what has gathered."""
        started = time.perf_counter()
        slots, self._slots = self._slots, []
        self.runs.start(slots)
        self.counters.network_s += time.perf_counter() - started

    def _finish_due(self) -> Iterator[Job]:
        """Finish the batches that are due. Yields the videos that are complete after each, before the next is tried."""
        while self.runs.due:
            yield from self._finish_batch()

    def _finish_batch(self) -> list[Job]:
        """Wait for the oldest batch. Returns the videos that are complete now."""
        started = time.perf_counter()
        complete, num_views = [], 0
        for job, view, outputs in self.runs.finish():
            num_views += 1
            sheet, planned = self._sheets[job], job.planned
            assert planned is not None
            if outputs is not None:
                shape = len(planned.clips), self.task.recipe.protocol.num_crops
                sheet.keep(view, shape, outputs[0], outputs[1] if self.task.embeddings else None)
            sheet.views_open -= 1
            if sheet.complete:
                complete.append(job)
        self.counters.network_s += time.perf_counter() - started
        self.counters.clips += num_views
        self.report(ClipsLabelled(num_views))
        return complete

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
