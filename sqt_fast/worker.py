"""A worker owns one device: it takes videos and gives back their rows.

Threads decode ahead while the network runs. Batches have one fixed shape and fill up across videos; the last is padded.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sqt_fast.archive import VideoFile
from sqt_fast.backends import Backend
from sqt_fast.clips import ClipMaker, View
from sqt_fast.config import IndexConfig, Protocol
from sqt_fast.decode import DecodeReport, HostDecoder
from sqt_fast.errors import BackendError, VideoError
from sqt_fast.probe import Probe, probe
from sqt_fast.rows import Float32, RowStyle, Scored, failed_row, video_rows
from sqt_fast.sampling import ClipPlan, plan_clips
from sqt_fast.table import Row
from sqt_fast.zoo import find_protocol

log = logging.getLogger(__name__)

# A clip with more replaced frames than this says more about the damage than about the video.
MAX_MISSING = 8
# How long decoders may take to notice that they are to stop, all of them together.
STOP_S = 1.0


@dataclass(frozen=True)
class Recipe:
    """How videos become clips. See ``config.IndexConfig`` for the fields."""

    protocol: Protocol
    stride_s: float | None = None
    target_fps: float | None = None

    @classmethod
    def of(cls, config: IndexConfig) -> "Recipe":
        """Return the recipe that ``config`` asks for."""
        return cls(find_protocol(config.protocol, config.weights), config.stride_s, config.target_fps)

    def plan(self, facts: Probe) -> ClipPlan:
        """Return the clips of a probed video."""
        return plan_clips(
            facts.times_s,
            facts.end_s,
            num_clips=self.protocol.num_clips,
            stride_s=self.stride_s,
            target_fps=self.target_fps,
        )


@dataclass
class Tally:
    """What a run has done so far. Seconds of probing and decoding add up over threads."""

    clips: int = 0
    packets_read: int = 0
    packets_dropped: int = 0
    frames_decoded: int = 0
    frames_wanted: int = 0
    video_s: float = 0.0
    probe_s: float = 0.0
    decode_s: float = 0.0
    squeeze_s: float = 0.0
    wait_s: float = 0.0
    network_s: float = 0.0


@dataclass
class VideoResult:
    """Everything about one finished video."""

    video: VideoFile
    rows: list[Row]
    duration_s: float = 0.0

    @property
    def failure(self) -> Row | None:
        """The row that is not ok, if there is one."""
        return next((row for row in self.rows if row.status != "ok"), None)


@dataclass
class _Job:
    """One video on its way."""

    video: VideoFile
    facts: Probe | None = None
    plan: ClipPlan | None = None
    report: DecodeReport = field(default_factory=DecodeReport)
    error: VideoError | None = None
    decoded: bool = False
    views_open: int = 0
    scores: Float32 | None = None
    embeddings: Float32 | None = None
    missing: dict[int, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: {"probe": 0.0, "decode": 0.0, "squeeze": 0.0})


class Worker:
    """Label videos on one device. See ``label``."""

    def __init__(
        self,
        backend: Backend,
        recipe: Recipe,
        style: RowStyle,
        *,
        batch_size: int,
        num_decoders: int,
        threads_per_decoder: int = 1,
        embeddings: bool = False,
        on_clips: Callable[[int], None] | None = None,
    ) -> None:
        self.backend, self.recipe, self.style = backend, recipe, style
        self.batch_size, self.embeddings, self.on_clips = batch_size, embeddings, on_clips
        self.num_decoders, self.threads_per_decoder = num_decoders, threads_per_decoder
        self.tally = Tally()
        size = recipe.protocol.crop_size
        batch = torch.zeros((batch_size, 48, size, size), dtype=backend.dtype)
        self._batch = batch.contiguous(memory_format=torch.channels_last)
        self._slots: list[tuple[_Job, View]] = []
        self._stop = threading.Event()
        self._cannot_decode: Exception | None = None
        self._ready: queue.Queue[tuple[_Job, View | None]] = queue.Queue(maxsize=2 * batch_size)

    def label(self, videos: Sequence[VideoFile]) -> Generator[VideoResult, None, None]:
        """Yield the result of every video, in the order in which they are finished.

        Every video gives exactly one result, whatever is wrong with it. Closing the iterator, or an exception raised
        into it, stops the decoders.
        """
        todo = iter(list(videos))
        lock = threading.Lock()
        threads = [
            threading.Thread(target=self._decode_loop, args=(todo, lock), name=f"decode-{i}", daemon=True)
            for i in range(min(self.num_decoders, max(1, len(videos))))
        ]
        for thread in threads:
            thread.start()
        try:
            yield from self._network_loop(len(videos))
        finally:
            self._stop.set()
            deadline = time.monotonic() + STOP_S
            for thread in threads:
                thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def _network_loop(self, num_videos: int) -> Iterator[VideoResult]:
        unfinished = num_videos
        ended = 0
        while unfinished:
            started = time.perf_counter()
            job, view = self._next()
            self.tally.wait_s += time.perf_counter() - started
            finished: list[_Job] = []
            if view is not None:
                job.views_open += 1
                self._slots.append((job, view))
                if len(self._slots) == self.batch_size:
                    finished = self._run_batch()
            else:
                ended += 1
                job.decoded = True
                finished = [job] if not job.views_open else []
                if ended == num_videos and self._slots:
                    finished += self._run_batch()
            for done in finished:
                unfinished -= 1
                yield self._result(done)

    def _next(self) -> tuple[_Job, View | None]:
        while True:
            try:
                return self._ready.get(timeout=0.2)  # wakes up so that Ctrl-C is seen on every platform
            except queue.Empty:
                if (error := self._cannot_decode) is not None:
                    raise BackendError(f"decoding cannot start here ({type(error).__name__}: {error})") from error

    def _run_batch(self) -> list[_Job]:
        """Run the network on what has gathered. Returns the videos that are complete now."""
        started = time.perf_counter()
        for i, (_, view) in enumerate(self._slots):
            self._batch[i].copy_(view.clip)
        logits, embeddings = self.backend.run(self._batch)
        scores = torch.softmax(logits, dim=1)
        finished = []
        for i, (job, view) in enumerate(self._slots):
            self._keep(job, view, scores[i], embeddings[i])
            job.views_open -= 1
            if job.decoded and not job.views_open:
                finished.append(job)
        self.tally.network_s += time.perf_counter() - started
        self.tally.clips += len(self._slots)
        if self.on_clips is not None:
            self.on_clips(len(self._slots))
        self._slots.clear()
        return finished

    def _keep(self, job: _Job, view: View, scores: Tensor, embedding: Tensor) -> None:
        """Keep each view on its own, so that their mean does not depend on the order in which they came."""
        assert job.plan is not None
        crops = self.recipe.protocol.num_crops
        job.missing[view.clip_index] = view.missing
        if job.scores is None:
            job.scores = np.zeros((len(job.plan), crops, len(scores)), np.float32)
        job.scores[view.clip_index, view.crop] = scores.numpy()
        if self.embeddings:
            if job.embeddings is None:
                job.embeddings = np.zeros((len(job.plan), crops, len(embedding)), np.float32)
            job.embeddings[view.clip_index, view.crop] = embedding.numpy()

    def _result(self, job: _Job) -> VideoResult:
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
        rows = video_rows(job.video, job.facts, job.plan, scored, job.report, self.style, HostDecoder.name)
        if job.error is not None:
            rows = [*(row for row in rows if row.status == "ok"), failed_row(job.video, job.error, job.facts)]
        return VideoResult(job.video, rows, job.facts.duration_s)

    def _count(self, job: _Job) -> None:
        tally = self.tally
        tally.packets_read += job.report.packets_read
        tally.frames_decoded += job.report.frames_decoded
        tally.frames_wanted += 0 if job.plan is None else len(job.plan.wanted)
        tally.video_s += 0.0 if job.facts is None else job.facts.duration_s
        tally.probe_s += job.seconds["probe"]
        tally.decode_s += job.seconds["decode"]
        tally.squeeze_s += job.seconds["squeeze"]

    def _decode_loop(self, todo: Iterator[VideoFile], lock: threading.Lock) -> None:
        try:
            from sqt_fast.pipelines.resize import HostResizer  # here: importing DALI takes a while, beside the network

            resize = HostResizer(self.recipe.protocol.short_side)
        except Exception as error:  # noqa: BLE001 - told to the main thread, which would wait for ever
            self._cannot_decode = error
            return
        decoder = HostDecoder(resize, num_threads=self.threads_per_decoder)
        while not self._stop.is_set():
            with lock:
                video = next(todo, None)
            if video is None:
                return
            job = _Job(video)
            try:
                self._decode(job, decoder)
            except VideoError as error:
                job.error = error
            except Exception as error:
                log.debug("%s", video.name, exc_info=True)
                job.error = VideoError("error", f"{type(error).__name__}: {error}")
            self._put(job, None)

    def _decode(self, job: _Job, decoder: HostDecoder) -> None:
        started = time.perf_counter()
        job.facts = probe(job.video)
        job.plan = self.recipe.plan(job.facts)
        job.seconds["probe"] = time.perf_counter() - started
        maker = ClipMaker(job.plan, self.recipe.protocol, self.backend.dtype)
        chunks = decoder.frames(job.facts, job.plan.wanted, job.report)
        while True:
            started = time.perf_counter()
            frames = next(chunks, None)
            job.seconds["decode"] += time.perf_counter() - started
            self._emit(job, maker.finish() if frames is None else maker.add(frames))
            if frames is None or self._stop.is_set():
                return

    def _emit(self, job: _Job, views: Iterator[View]) -> None:
        while True:
            started = time.perf_counter()
            view = next(views, None)
            job.seconds["squeeze"] += time.perf_counter() - started
            if view is None:
                return
            self._put(job, view)

    def _put(self, job: _Job, view: View | None) -> None:
        while not self._stop.is_set():
            try:
                self._ready.put((job, view), timeout=0.1)
                break
            except queue.Full:
                continue
