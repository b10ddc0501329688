"""Files are opened, probed, planned, decoded and remuxed in processes of their own, where a crash costs nothing.

One ``DecoderProcess`` belongs to one thread. Frames come back through memory that both sides see, in two slots: while
one is read, the next is filled. All else comes back as plain data (``messages``): the process parses hostile files.
"""

import mmap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sqt_fast.clips.recipe import Recipe
from sqt_fast.engine.events import Alive, Report, ignore
from sqt_fast.engine.messages import decode, encode
from sqt_fast.engine.process import ChildError, ChildProcess, Limits, serve_requests, shared_memory
from sqt_fast.errors import VideoError
from sqt_fast.video.archive import VideoFile
from sqt_fast.video.container import MAX_PIXELS
from sqt_fast.video.cpu_decoder import CHUNK_BYTES, FFMPEG, CpuTools, DecodeReport, Frames, Pixels
from sqt_fast.video.probe import Probe, Source
from sqt_fast.video.reader import PacketReader
from sqt_fast.video.remux import is_cropped_at_end, remux
from sqt_fast.video.sampling import ClipPlan
from sqt_fast.video.segments import Segment, plan_segments

TICK_S = 1.0
NUM_SLOTS = 2
# Room for the largest picture there can be. Only what is written to takes memory, until it is given back.
SLOT_BYTES = 3 * MAX_PIXELS
FREE = "free"  # the parent has read a slot


@dataclass(frozen=True)
class Remuxed:
    """A segment as a file of its own. is_uncropped: its pictures are shown as coded, what counts is upper left."""

    data: bytes
    is_uncropped: bool
    report: DecodeReport


@dataclass(frozen=True)
class Plan:
    """What is to be decoded of a video, and the clips that it makes."""

    clips: ClipPlan
    segments: list[Segment]


class DecoderProcess:
    """A decoder in a process of its own, started when first needed and again after it died.

    tools: what works inside. hang_s: seconds of silence after which it is killed. limits: what it may have.
    report: is told of every sign of life. Every method raises VideoError for what is wrong with a file, ChildError when
    the process died or hung, and OSError when none can be started.
    """

    def __init__(
        self,
        *,
        tools: CpuTools = FFMPEG,
        hang_s: float = 60.0,
        limits: Limits | None = None,
        report: Report = ignore,
    ) -> None:
        self.tools, self.hang_s, self.limits, self.report = tools, hang_s, limits, report
        self._child: ChildProcess | None = None
        self._stopped = False

    def probe(self, video: VideoFile) -> Probe:
        """Return what there is to know of ``video``."""
        facts: Probe = self._ask("probe", video)
        return facts

    def plan(self, recipe: Recipe, max_wanted: int | None = None) -> Plan:
        """Plan the clips and segments of the video that was probed last. max_wanted: frames of a segment."""
        return Plan(*self._ask("plan", recipe, max_wanted))

    def remux(self, source: Source, segment: Segment, uncropped: tuple[int, int] | None) -> Remuxed:
        """Return ``segment`` as a file of its own, uncropped if it can be."""
        return Remuxed(*self._ask("remux", source, segment, uncropped))

    def frames(
        self, source: Source, segment: Segment, report: DecodeReport, *, num_threads: int = 1
    ) -> Iterator[Frames]:
        """Decode ``segment`` and yield its wanted frames in chunks, each valid until the next is asked for."""
        self._send("frames", source, segment, num_threads)
        finished = False
        try:
            while True:
                answer = self._answer()
                if isinstance(answer, DecodeReport):
                    report.add(answer)
                    finished = True
                    return
                slot, numbers, shape = answer
                yield Frames(numbers, self._slot(slot, shape))
                self._send(FREE)
        except VideoError:
            finished = True
            raise
        finally:
            if not finished:  # nobody wants the rest
                self.close()

    @property
    def is_running(self) -> bool:
        """Whether there is a process."""
        return self._child is not None

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def stop(self) -> None:
        """End the process from another thread, for good; the one that waits for it sees it die."""
        self._stopped = True
        if (child := self._child) is not None:
            child.process.kill()

    def _slot(self, slot: int, shape: tuple[int, ...]) -> Pixels:
        assert self._child is not None
        assert self._child.memory is not None
        return _view(self._child.memory, slot * SLOT_BYTES, shape)

    def _ask(self, *request: Any) -> Any:
        self._send(*request)
        return self._answer()

    def _send(self, *request: Any) -> None:
        try:
            if self._child is None:
                self._child = self._start()
            if not self._stopped:  # looked at after the child is known: stop() sets it before it looks for the child
                self._child.send(request)
                return
        except Exception:
            self.close()
            raise
        self.close()
        raise ChildError("the decoder was stopped")

    def _start(self) -> ChildProcess:
        return ChildProcess(
            f"{__name__}:serve",
            self.tools,
            title="decoder",
            memory_bytes=NUM_SLOTS * SLOT_BYTES,
            limits=self.limits,
            decode=decode,
        )

    def _answer(self) -> Any:
        """Return the next answer that is more than a sign of life."""
        assert self._child is not None
        try:
            while (answer := self._child.receive(self.hang_s)) is None:
                self.report(Alive())
        except BaseException:
            self.close()
            raise
        self.report(Alive())
        if isinstance(answer, VideoError):
            raise answer
        return answer


def serve(connection: "Connection[Any, Any]", tools: CpuTools) -> None:
    """Answer requests in the child process: (name, arguments...) to a value, a VideoError, or frames."""
    server = _Server(connection, tools)
    answers: dict[str, Callable[..., Any]] = {
        "probe": server.probe,
        "plan": server.plan,
        "remux": server.remux,
        "frames": server.frames,
    }
    serve_requests(connection, answers, server.send, _of_the_file)


def _of_the_file(error: Exception) -> VideoError:
    if isinstance(error, VideoError):
        return error
    if isinstance(error, MemoryError):
        return VideoError("too_large", "not enough memory to decode it")
    return VideoError.unforeseen(error)


class _Server:
    """The other side of DecoderProcess."""

    def __init__(self, connection: "Connection[Any, Any]", tools: CpuTools) -> None:
        self.connection, self.tools = connection, tools
        self.sent = self.freed = self.largest_bytes = 0
        self.memory = shared_memory()
        self.facts: Probe | None = None
        self.reader: PacketReader | None = None
        self.may_uncrop: bool | None = None  # of the open file; None: not known yet
        self.last_tick = time.monotonic()

    def send(self, message: Any) -> None:
        self.connection.send_bytes(encode(message))

    def tick(self) -> None:
        """Say that work goes on."""
        now = time.monotonic()
        if now - self.last_tick > TICK_S:
            self.last_tick = now
            self.send(None)

    def probe(self, video: VideoFile) -> Probe:
        self._close()
        self.facts, self.reader = self.tools.probe(video, self.tick)
        return self.facts

    def plan(self, recipe: Recipe, max_wanted: int | None) -> tuple[ClipPlan, list[Segment]]:
        assert self.facts is not None
        clips = recipe.plan(self.facts)
        how = {} if max_wanted is None else {"max_wanted": max_wanted}
        return clips, plan_segments(self.facts, clips.wanted, **how)

    def remux(
        self, source: Source, segment: Segment, uncropped: tuple[int, int] | None
    ) -> tuple[bytes, bool, DecodeReport]:
        reader = self._open(source, 1)
        before = reader.packets_read
        data = remux(reader, segment, uncropped=uncropped if self.may_uncrop else None)
        report = DecodeReport(
            frames_decoded=segment.num_kept,
            frames_wanted=len(segment.numbers),
            packets_read=reader.packets_read - before,
            packets_dropped=len(segment.keep) - segment.num_kept,
        )
        if uncropped is not None and self.may_uncrop is None:  # once a file: it takes a second remux and two pictures
            whole = remux(reader, segment, uncropped=uncropped)
            self.may_uncrop = is_cropped_at_end(whole, data)
            data = whole if self.may_uncrop else data
        return data, uncropped is not None and bool(self.may_uncrop), report

    def frames(self, source: Source, segment: Segment, num_threads: int) -> DecodeReport:
        """Send the frames, then return the report."""
        report, self.sent, self.freed = DecodeReport(), 0, 0
        reader = self._open(source, num_threads)
        try:
            for frames in self.tools.frames(reader, segment, report, self.new_buffer):
                self.send((self.sent % NUM_SLOTS, frames.numbers, frames.images.shape))
                self.sent += 1
        finally:  # after an error too: what is left in the pipe would be taken for the next request
            self._wait_for_free(self.sent)
            self._give_memory_back()
        return report

    def new_buffer(self, shape: tuple[int, ...]) -> Pixels:
        """Return the slot that is sent next, when it is free."""
        self._wait_for_free(self.sent - NUM_SLOTS + 1)
        view = _view(self.memory, self.sent % NUM_SLOTS * SLOT_BYTES, shape)
        self.largest_bytes = max(self.largest_bytes, view.nbytes)
        return view

    def _wait_for_free(self, count: int) -> None:
        while self.freed < count:
            message = self.connection.recv()
            assert message == (FREE,), f"while frames are sent, {message} is no answer"
            self.freed += 1

    def _give_memory_back(self) -> None:
        """Free the slots after pictures larger than a usual chunk: nobody has counted them beyond their segment."""
        if self.largest_bytes > CHUNK_BYTES:
            self.memory.madvise(mmap.MADV_REMOVE)
        self.largest_bytes = 0

    def _open(self, source: Source, num_threads: int) -> PacketReader:
        """Return the open file; the last one stays open, since its next segment is likely to follow."""
        if self.reader is None or self.reader.source != source or self.reader.num_threads != num_threads:
            self._close()
            self.reader = PacketReader(source, num_threads=num_threads, progress=self.tick)
        return self.reader

    def _close(self) -> None:
        reader, self.reader, self.may_uncrop = self.reader, None, None
        if reader is not None:
            reader.close()


def _view(memory: mmap.mmap, offset: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.ndarray(shape, np.uint8, memory, offset)
