"""What there is to do for the decoders of one device: videos to look at, segments to decode, in a sensible order."""

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from sqt_fast.clips.gather import ClipMaker
from sqt_fast.errors import VideoError
from sqt_fast.video.archive import VideoFile
from sqt_fast.video.cpu_decoder import DecodeReport
from sqt_fast.video.probe import Probe
from sqt_fast.video.sampling import ClipPlan
from sqt_fast.video.segments import Segment

# A file that takes its decoder down so often, on different segments, will go on doing so.
MAX_CRASHED_SEGMENTS = 2


@dataclass(frozen=True)
class Planned:
    """What is settled once a video has been looked at: its clips, who makes them, and where it is decoded."""

    facts: Probe
    clips: ClipPlan
    maker: ClipMaker
    on_gpu: bool


@dataclass(eq=False)
class Job:
    """One video on its way through the decoders. What several threads change is changed under ``lock``."""

    video: VideoFile
    facts: Probe | None = None
    planned: Planned | None = None
    waiting: deque[Segment] = field(default_factory=deque)
    segments_open: int = 0
    crashed_segments: int = 0
    report: DecodeReport = field(default_factory=DecodeReport)
    decoders: set[str] = field(default_factory=set)
    error: VideoError | None = None
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
        self._in_hand = 0  # segments that are being decoded
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

    @property
    def num_waiting(self) -> int:
        """How many videos nobody has taken yet."""
        return len(self._videos)

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

    def give_back(self, job: Job, segment: Segment | None) -> None:
        """Take back what a thread took and cannot do: another will. segment: None where the job was to be probed."""
        with self._changed:
            if segment is None:
                self._probing -= 1
                self._videos.appendleft(job.video)
            else:
                self._in_hand -= 1
                if not job.waiting:
                    self._open.appendleft(job)
                job.waiting.appendleft(segment)
            self._changed.notify_all()

    def segment_done(self, job: Job, *, crashed: bool) -> bool:
        """Take back a segment. Returns whether it was the job's last.

        A job whose segments crash or hang again and again is given up: those that wait are never handed out.
        """
        with self._changed:
            self._in_hand -= 1
            job.segments_open -= 1
            job.crashed_segments += crashed
            if job.crashed_segments >= MAX_CRASHED_SEGMENTS and job.waiting:
                job.segments_open -= len(job.waiting)
                job.waiting.clear()
                self._open.remove(job)
            self._changed.notify_all()
            return not job.segments_open

    def _next_segment(self, job: Job) -> Segment:
        segment = job.waiting.popleft()
        self._in_hand += 1
        if not job.waiting:
            self._open.remove(job)
        return segment

    def _has_work(self) -> bool:
        return bool(self._videos or self._open)

    def _is_done(self) -> bool:
        return self.closed and not self._probing and not self._in_hand  # what is in hand may be given back
