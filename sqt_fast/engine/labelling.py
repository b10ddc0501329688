"""A worker owns one device: it takes videos and gives back their rows.

Threads with a decoder's process each work ahead while the network runs. Batches have one fixed shape and fill up across
videos; the last is padded.
"""

import logging
import queue
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sqt_fast.clips.batches import Batches, CpuBatches, View
from sqt_fast.clips.recipe import Recipe
from sqt_fast.engine.decoder_process import CpuTools, ToolsFactory
from sqt_fast.engine.decoders import Decoding
from sqt_fast.engine.jobs import Job, Jobs
from sqt_fast.engine.memory import Resources
from sqt_fast.engine.results import RunCounters, VideoResult
from sqt_fast.errors import BackendError, VideoError
from sqt_fast.network.backends import Backend
from sqt_fast.table.rows import RowStyle, Scored, failed_row, video_rows
from sqt_fast.video.archive import VideoFile

if TYPE_CHECKING:
    from sqt_fast.engine.gpu_route import GpuRoute

log = logging.getLogger(__name__)

# A clip with more replaced frames than this says more about the damage than about the video.
MAX_MISSING = 8


class Labelling:
    """Label videos on one device. See ``label``."""

    def __init__(
        self,
        backend: Backend,
        recipe: Recipe,
        style: RowStyle,
        resources: Resources,
        *,
        batch_size: int,
        embeddings: bool = False,
        tools: ToolsFactory = CpuTools,
        gpu: "GpuRoute | None" = None,
        batches: Batches | None = None,
        on_clips: Callable[[int], None] = lambda _: None,
        on_progress: Callable[[], None] = lambda: None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.backend, self.recipe, self.style = backend, recipe, style
        self.batch_size, self.embeddings, self.on_clips, self.note = batch_size, embeddings, on_clips, note
        self.batches = batches or CpuBatches(recipe.protocol, backend.dtype)
        self.tally = RunCounters()
        self.jobs = Jobs()
        self._slots: list[tuple[Job, View]] = []
        self._ready: queue.Queue[tuple[Job, View | None]] = queue.Queue(maxsize=2 * batch_size)
        self._decoding = Decoding(
            self.jobs,
            recipe,
            self.batches,
            resources,
            tools=tools,
            gpu=gpu,
            put=self._put,
            on_progress=on_progress,
        )

    def label(self, videos: Iterable[VideoFile]) -> Generator[VideoResult, None, None]:
        """Yield the result of every video, in the order in which they are finished.

        Every video gives exactly one result, whatever is wrong with it. Closing the iterator, or an exception raised
        into it, stops the decoders.
        """
        self.jobs.add(videos)
        self.jobs.close()
        yield from self.results()

    def results(self) -> Generator[VideoResult, None, None]:
        """Yield the results of the videos that are added to ``jobs``, now and meanwhile, until those are closed."""
        self._decoding.start()
        try:
            yield from self._network_loop()
        finally:
            self._decoding.stop()

    def _network_loop(self) -> Iterator[VideoResult]:
        decoded = finished = 0
        while not (self.jobs.closed and finished == self.jobs.added):
            started = time.perf_counter()
            coming = self._next()
            self.tally.wait_s += time.perf_counter() - started
            if coming is None:
                continue
            job, view = coming
            complete: list[Job] = []
            if view is not None:
                job.views_open += 1
                self._slots.append((job, view))
            else:
                job.decoded = True
                decoded += 1
                complete = [job] if not job.views_open else []
            if len(self._slots) == self.batch_size or (self._slots and decoded == self.jobs.added):
                complete += self._run_batch()
            for done in complete:
                finished += 1
                yield self._result(done)

    def _next(self) -> tuple[Job, View | None] | None:
        """Return what comes next from the decoders; None now and then, so that Ctrl-C and the end are seen."""
        try:
            return self._ready.get(timeout=0.1)
        except queue.Empty:
            if (error := self._decoding.error) is not None:
                raise BackendError(f"decoding cannot start here ({error})") from error
            return None

    def _run_batch(self) -> list[Job]:
        """Run the network on what has gathered. Returns the videos that are complete now."""
        started = time.perf_counter()
        slots, self._slots = self._slots, []
        complete = []
        for job, view, scores, embedding in self._scores(slots):
            if scores is not None:
                job.keep(view, self.recipe.protocol.num_crops, scores, embedding if self.embeddings else None)
            job.views_open -= 1
            if job.decoded and not job.views_open:
                complete.append(job)
        self.tally.network_s += time.perf_counter() - started
        self.tally.clips += len(slots)
        self.on_clips(len(slots))
        return complete

    def _scores(self, slots: list[tuple[Job, View]]) -> Iterator[tuple[Job, View, Tensor | None, Tensor | None]]:
        """Yield scores and embedding of each view. None where the network fails on it alone too: noted in its job.

        Out of a GPU's memory, the batch is halved for the rest of the run.
        """
        try:
            # Always of one shape, so that scores do not depend on neighbours.
            batch = self.batches.batch([view for _, view in slots], self.batch_size)
            logits, embeddings = self.backend.run(batch)
        except torch.OutOfMemoryError as error:
            if self.batch_size == 1:
                raise BackendError("out of GPU memory with a single clip; free some, or use --device cpu") from error
            torch.cuda.empty_cache()
            self.batch_size = (self.batch_size + 1) // 2
            self.note(f"out of GPU memory: going on with batches of {self.batch_size}")
            while slots:  # on the way it may be halved again
                part, slots = slots[: self.batch_size], slots[self.batch_size :]
                yield from self._scores(part)
        except Exception as error:
            if len(slots) == 1:
                log.debug("%s", slots[0][0].video.name, exc_info=True)
                slots[0][0].fail(VideoError("error", f"the network failed: {type(error).__name__}: {error}"))
                yield (*slots[0], None, None)
                return
            for slot in slots:
                yield from self._scores([slot])
        else:
            scores = torch.softmax(logits, dim=1)
            for i, (job, view) in enumerate(slots):
                yield job, view, scores[i], embeddings[i]

    def _result(self, job: Job) -> VideoResult:
        self._count(job)
        if job.error is not None and job.scores is None:
            return VideoResult(job.video, [failed_row(job.video, job.error, job.facts)])
        assert job.facts is not None
        assert job.plan is not None
        labelled = np.array([job.missing.get(i, 16) <= MAX_MISSING for i in range(len(job.plan))])
        scored = Scored(
            scores=np.zeros((len(job.plan), 1), np.float32) if job.scores is None else job.scores.mean(axis=1),
            embeddings=None if job.embeddings is None else job.embeddings.mean(axis=1),
            labelled=labelled,
        )
        decoder = ", ".join(sorted(job.decoders, reverse=True))
        rows = video_rows(job.video, job.facts, job.plan, scored, job.report, self.style, decoder)
        if job.error is not None:
            rows = [*(row for row in rows if row.status == "ok"), failed_row(job.video, job.error, job.facts)]
        return VideoResult(job.video, rows, job.facts.duration_s)

    def _count(self, job: Job) -> None:
        tally = self.tally
        tally.packets_read += job.report.packets_read
        tally.packets_dropped += job.report.packets_dropped
        tally.frames_decoded += job.report.frames_decoded
        tally.frames_wanted += job.report.frames_wanted
        tally.video_s += 0.0 if job.facts is None else job.facts.duration_s
        tally.probe_s += job.seconds["probe"]
        tally.decode_s += job.seconds["decode"]
        tally.squeeze_s += job.seconds["squeeze"]

    def _put(self, job: Job, view: View | None) -> None:
        """Take a view, or the end of a job, from a decoder's thread; it waits while the network has enough."""
        while not self.jobs.stopped:
            try:
                self._ready.put((job, view), timeout=0.1)
                break
            except queue.Full:
                continue
