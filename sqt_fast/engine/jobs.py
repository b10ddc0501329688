"""What there is to do for the decoders of one device: videos to look at, segments to decode, in a sensible order."""

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from sqt_fast.clips.batches import View
from sqt_fast.clips.gather import ClipMaker
from sqt_fast.errors import VideoError
from sqt_fast.table.rows import Float32
from sqt_fast.video.archive import VideoFile
from sqt_fast.video.cpu_decoder import DecodeReport
from sqt_fast.video.probe import Probe
from sqt_fast.video.sampling import ClipPlan
from sqt_fast.video.segments import Segment


@dataclass(eq=False)
class Job:
    """One video on its way. What several threads change is changed under ``lock``."""

    video: VideoFile
    facts: Probe | None = None
    plan: ClipPlan | None = None
    maker: ClipMaker | None = None
    waiting: deque[Segment] = field(default_factory=deque)
    segments_open: int = 0
    on_gpu: bool = False
    report: DecodeReport = field(default_factory=DecodeReport)
    decoders: set[str] = field(default_factory=set)
    error: VideoError | None = None
    decoded: bool = False
    views_open: int = 0
    scores: Float32 | None = None
    embeddings: Float32 | None = None
    missing: dict[int, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: {"probe": 0.0, "decode": 0.0, "squeeze": 0.0})
    lock: threading.Lock = field(default_factory=threading.Lock)

    def spend(self, stage: str, seconds: float) -> None:
        """Add time spent on a stage."""
        with self.lock:
            self.seconds[stage] += seconds

    def fail(self, error: VideoError) -> None:
        """Note what went wrong; the first error is kept."""
        with self.lock:
            self.error = self.error or error

    def keep(self, view: View, num_crops: int, scores: Tensor, embedding: Tensor | None) -> None:
        """Keep each view on its own, so that their mean does not depend on the order in which they came."""
        assert self.plan is not None
        self.missing[view.clip_index] = view.missing
        if self.scores is None:
            self.scores = np.zeros((len(self.plan), num_crops, len(scores)), np.float32)
        self.scores[view.clip_index, view.crop] = scores.numpy()
        if embedding is not None:
            if self.embeddings is None:
                self.embeddings = np.zeros((len(self.plan), num_crops, len(embedding)), np.float32)
            self.embeddings[view.clip_index, view.crop] = embedding.numpy()


class Jobs:
    """Hands out work to the threads of decoders.

    A thread goes on with the video that it has open; when that has no more segments it takes a new video; when there
    is none, it helps with the oldest one that is open. So files stay open, few videos are open at once, and one long
    video keeps every decoder busy.
    """

    def __init__(self) -> None:
        self._videos: deque[VideoFile] = deque()
        self._open: deque[Job] = deque()
        self._probing = 0
        self.added = 0
        self.closed = False
        self._stopped = False
        self._changed = threading.Condition()

    def add(self, videos: Iterable[VideoFile]) -> None:
        """Add videos to label."""
        with self._changed:
            before = len(self._videos)
            self._videos.extend(videos)
            self.added += len(self._videos) - before
            self._changed.notify_all()

    def close(self) -> None:
        """Say that no more videos come."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Hand out nothing more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    @property
    def stopped(self) -> bool:
        """Whether everyone is to stop."""
        return self._stopped

    def take(self, own: Job | None) -> tuple[Job, Segment | None] | None:
        """Wait for work: a job and its next segment, or a new job that is to be probed; None when all is done.

        own: the job that the caller worked on.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._has_work() or self._is_done())
            if self._stopped or not self._has_work():
                return None
            if own is not None and own.waiting:
                return own, self._next_segment(own)
            if self._videos:
                self._probing += 1
                return Job(self._videos.popleft()), None
            return self._open[0], self._next_segment(self._open[0])

    def probed(self, job: Job, segments: Iterable[Segment]) -> None:
        """Give back a job that was to be probed, with what is to be decoded of it."""
        with self._changed:
            self._probing -= 1
            job.waiting.extend(segments)
            job.segments_open = len(job.waiting)
            if job.waiting:
                self._open.append(job)
            self._changed.notify_all()

    def _next_segment(self, job: Job) -> Segment:
        segment = job.waiting.popleft()
        if not job.waiting:
            self._open.remove(job)
        return segment

    def _has_work(self) -> bool:
        return bool(self._videos or self._open)

    def _is_done(self) -> bool:
        return self.closed and not self._probing
