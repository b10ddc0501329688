"""The host decoder: PyAV decodes a segment's packets, and wanted frames alone are converted to RGB.

Colours are swscale's default conversion, which honours the stream's matrix and range: bit-equal to what decord, and so
mmaction2, gives (golden demo_clips.npz). Pictures whose size changes in mid-stream are scaled to the first one's size,
as ffmpeg does.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from sqt_fast.errors import VideoError
from sqt_fast.video.archive import VideoFile
from sqt_fast.video.probe import Probe, Source
from sqt_fast.video.reader import PacketReader
from sqt_fast.video.segments import Segment

# RGB that is handed on at once, in bytes: bounds memory whatever the size of the picture.
CHUNK_BYTES = 16 << 20
MAX_CHUNK_FRAMES = 32

Pixels = NDArray[np.uint8]
# From a shape to memory for RGB, whose contents do not matter.
NewBuffer = Callable[[tuple[int, ...]], Pixels]


@dataclass(frozen=True)
class Frames:
    """Decoded frames: numbers (F,) frame numbers, ascending; images (F, H, W, 3) uint8, as stored."""

    numbers: list[int]
    images: Pixels


@dataclass
class DecodeReport:
    """What happened while segments of a video were decoded.

    lost: wanted frame numbers that did not come. damaged: frames that the decoder marked as concealed, by presentation
    tick (by number where frames are counted). rejected: packets it refused.
    """

    frames_decoded: int = 0
    frames_wanted: int = 0
    packets_read: int = 0
    packets_dropped: int = 0
    lost: list[int] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)
    rejected: int = 0

    def add(self, other: "DecodeReport") -> None:
        """Add what happened in another segment."""
        self.frames_decoded += other.frames_decoded
        self.frames_wanted += other.frames_wanted
        self.packets_read += other.packets_read
        self.packets_dropped += other.packets_dropped
        self.lost += other.lost
        self.damaged += other.damaged
        self.rejected += other.rejected


class CpuDecoder:
    """Decode on the CPU with PyAV. ``new_buffer`` gives the memory that frames are written to."""

    def __init__(self, new_buffer: NewBuffer = lambda shape: np.empty(shape, np.uint8)) -> None:
        self.new_buffer = new_buffer
        self._reformatter = VideoReformatter()

    def frames(self, reader: PacketReader, segment: Segment, report: DecodeReport) -> Iterator[Frames]:
        """Decode ``segment`` and yield its wanted frames in chunks, each frame once, numbers ascending.

        A frame that cannot be decoded is left out. At the first sign of damage the segment is decoded again with all
        its packets. ``report`` is filled in on the way. Raises VideoError when the file cannot be opened any more or
        its pictures cannot be converted.
        """
        missing = dict.fromkeys(segment.numbers.tolist())
        report.frames_wanted += len(missing)
        read_before = reader.packets_read
        sound = yield from self._pass(reader, segment, missing, report)
        if not sound:
            yield from self._pass(reader, segment.whole(), missing, report)
        report.lost += missing
        report.packets_read += reader.packets_read - read_before

    def _pass(
        self, reader: PacketReader, segment: Segment, missing: dict[int, None], report: DecodeReport
    ) -> Generator[Frames, None, bool]:
        """Decode ``segment`` for the frames that are ``missing``. Returns False when it must be done again, whole.

        Pictures are concealed with what was decoded before them, so where there is damage nothing may be left out, if
        labels are not to depend on what else was asked for.
        """
        chunk, seen = _Chunk(reader.source, self.new_buffer, self._reformatter), DecodeReport()
        may_repeat = segment.num_kept < segment.whole().num_kept
        for number, frame in _wanted(reader, segment, seen):
            if may_repeat and (seen.rejected or seen.damaged):
                break
            if number in missing and number not in chunk.numbers:  # not shown twice
                chunk.add(number, frame)
                if len(chunk.numbers) == chunk.capacity:
                    yield chunk.take(missing)
                if segment.ticks is None and len(missing) == len(chunk.numbers):
                    break
        if may_repeat and (seen.rejected or seen.damaged):
            report.frames_decoded += seen.frames_decoded
            return False
        if chunk.numbers:
            yield chunk.take(missing)
        report.add(seen)
        return True


@dataclass(frozen=True)
class CpuTools:
    """What a decoder's process works with: it travels there, and tests send one that fails."""

    def probe(self, video: VideoFile, progress: Callable[[], None]) -> tuple[Probe, PacketReader]:
        """Return what there is to know of ``video``, and the open file. Raises VideoError."""
        return PacketReader.probing(video, progress)

    def frames(
        self, reader: PacketReader, segment: Segment, report: DecodeReport, new_buffer: NewBuffer
    ) -> Iterator[Frames]:
        """Decode ``segment`` into buffers. See ``CpuDecoder.frames``."""
        return CpuDecoder(new_buffer).frames(reader, segment, report)


FFMPEG = CpuTools()


def _wanted(reader: PacketReader, segment: Segment, report: DecodeReport) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield the wanted pictures with their frame numbers."""
    for counted, frame in enumerate(_pictures(reader, segment, report)):
        report.frames_decoded += 1
        tick = counted if segment.ticks is None else frame.pts
        if frame.is_corrupt and tick is not None:
            report.damaged.append(tick)
        if segment.ticks is None:
            yield counted, frame
        elif tick is not None:
            rank = int(np.searchsorted(segment.ticks, tick))
            if rank < len(segment.ticks) and segment.ticks[rank] == tick:
                yield int(segment.numbers[rank]), frame


def _pictures(reader: PacketReader, segment: Segment, report: DecodeReport) -> Iterator[av.VideoFrame]:
    """Yield every decoded picture of ``segment`` in presentation order."""
    kept = 0
    if reader.stream.codec_context.is_open:
        reader.stream.codec_context.flush_buffers()
    for packet in reader.packets(segment):
        kept += 1
        yield from _decode(packet.decode, report)
    report.packets_dropped += segment.end - segment.start - kept
    if kept:
        yield from _decode(lambda: reader.stream.codec_context.decode(None), report)


def _decode(decode: Callable[[], list[Any]], report: DecodeReport) -> Iterator[av.VideoFrame]:
    try:
        pictures = decode()
    except av.error.EOFError:
        return
    except av.error.FFmpegError:
        report.rejected += 1
        return
    yield from (picture for picture in pictures if isinstance(picture, av.VideoFrame))


class _Chunk:
    """RGB frames that wait to be handed on together."""

    def __init__(self, source: Source, new_buffer: NewBuffer, reformatter: VideoReformatter) -> None:
        self.source, self.new_buffer, self.reformatter = source, new_buffer, reformatter
        self.capacity = max(1, min(MAX_CHUNK_FRAMES, CHUNK_BYTES // (source.width * source.height * 3)))
        self.buffer: Pixels | None = None
        self.numbers: list[int] = []

    def add(self, number: int, frame: av.VideoFrame) -> None:
        if self.buffer is None:
            self.buffer = self.new_buffer((self.capacity, self.source.height, self.source.width, 3))
        self._write_rgb(frame, self.buffer[len(self.numbers)])
        self.numbers.append(number)

    def take(self, missing: dict[int, None]) -> Frames:
        """Return what has gathered, and strike it off ``missing``."""
        assert self.buffer is not None
        frames = Frames(self.numbers, self.buffer[: len(self.numbers)])
        for number in self.numbers:
            del missing[number]
        self.buffer, self.numbers = None, []
        return frames

    def _write_rgb(self, frame: av.VideoFrame, target: Pixels) -> None:
        """Write (H, W, 3) RGB; a picture of another size is scaled to this one."""
        height, width = target.shape[:2]
        try:
            # One thread: FFmpeg's own would be waited for, 0.04 ms a small picture against 0.2 to 5.
            plane = self.reformatter.reformat(frame, width, height, "rgb24", threads=1).planes[0]
        except (av.error.FFmpegError, ValueError) as error:
            reason = f"pictures of format {frame.format.name} cannot be converted"
            raise VideoError("no_decodable_frame", reason) from error
        lines = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        target[:] = lines[:height, : 3 * width].reshape(height, width, 3)
