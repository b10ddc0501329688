"""The host decoder: PyAV decodes, wanted frames alone are converted, DALI resizes.

Colours are swscale's default conversion, which honours the stream's matrix and range: bit-equal to what decord, and so
mmaction2, gives (golden demo_clips.npz). Pictures whose size changes in mid-stream are scaled to the first one's size,
as ffmpeg does.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import av
import av.error
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sqt_fast.container import open_video
from sqt_fast.errors import VideoError
from sqt_fast.probe import Orientation, Probe
from sqt_fast.sampling import Int64

# Full-size RGB waiting to be resized, in bytes: bounds memory whatever the size of the picture.
CHUNK_BYTES = 64 << 20
MAX_CHUNK_FRAMES = 32

Resize = Callable[[NDArray[np.uint8]], Tensor]


@dataclass(frozen=True)
class Frames:
    """Decoded frames: numbers (F,) frame numbers, ascending; images (F, h, w, 3) uint8, resized and upright."""

    numbers: list[int]
    images: Tensor


@dataclass
class DecodeReport:
    """What happened while a video was decoded.

    last_number: the last frame that came out, -1 for none. lost: frame numbers that were passed over. damaged: frames
    the decoder marked as concealed. rejected: packets it refused.
    """

    frames_decoded: int = 0
    packets_read: int = 0
    last_number: int = -1
    lost: list[int] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)
    rejected: int = 0


class HostDecoder:
    """Decode on the CPU with PyAV. ``resize`` is a ``pipelines.resize.HostResizer`` or anything of its kind."""

    name = "pyav"

    def __init__(self, resize: Resize, *, num_threads: int = 1) -> None:
        self.resize = resize
        self.num_threads = num_threads

    def frames(self, probe: Probe, wanted: Int64, report: DecodeReport) -> Iterator[Frames]:
        """Decode the ``wanted`` frame numbers (F,), ascending, and yield them in chunks.

        A frame that cannot be decoded is left out. Decoding goes on to the end of the file, a few frames beyond the
        last wanted one, so that ``report``, which is filled in on the way, knows of all damage. Raises VideoError
        when the file cannot be opened any more.
        """
        with open_video(probe.path) as (container, stream):
            stream = container.streams[probe.stream_index]  # type: ignore[assignment]  # the stream that was probed
            stream.thread_type = "AUTO" if self.num_threads > 1 else "NONE"
            stream.codec_context.thread_count = self.num_threads
            chunk = _Chunk(probe, self.resize)
            for number, frame in _numbered(container, stream, probe, report):
                if _is_in(wanted, number):
                    yield from chunk.add(number, frame)
            yield from chunk.flush()


def _numbered(
    container: av.container.InputContainer, stream: av.VideoStream, probe: Probe, report: DecodeReport
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield every decoded picture with its frame number, in presentation order."""
    for packet in _packets(container, stream, report):
        try:
            pictures = packet.decode()
        except av.error.EOFError:
            return
        except av.error.FFmpegError:
            report.rejected += 1
            continue
        for frame in pictures:
            if not isinstance(frame, av.VideoFrame):
                continue
            number = _number(frame, probe.pts, report.last_number + 1)
            if number <= report.last_number or number >= probe.num_frames:
                continue  # shown twice, or more pictures than packets: neither has a place of its own
            report.frames_decoded += 1
            report.lost += range(report.last_number + 1, number)
            report.last_number = number
            if frame.is_corrupt:
                report.damaged.append(number)
            yield number, frame


def _packets(
    container: av.container.InputContainer, stream: av.VideoStream, report: DecodeReport
) -> Iterator["av.Packet[av.VideoStream]"]:
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.FFmpegError):
            return  # probe.broken knows why reading stopped
        report.packets_read += bool(packet.size)
        yield packet


def _number(frame: av.VideoFrame, pts: Int64 | None, following: int) -> int:
    """Return the rank of ``frame``: by its time, or where times are unknown, the one after the last."""
    if pts is None or frame.pts is None:
        return following
    rank = int(np.searchsorted(pts, frame.pts))
    return rank if rank < len(pts) and pts[rank] == frame.pts else following


def _is_in(wanted: Int64, number: int) -> bool:
    rank = int(np.searchsorted(wanted, number))
    return rank < len(wanted) and bool(wanted[rank] == number)


class _Chunk:
    """Full-size RGB frames that wait to be resized together."""

    def __init__(self, probe: Probe, resize: Resize) -> None:
        self.probe, self.resize = probe, resize
        self.capacity = max(1, min(MAX_CHUNK_FRAMES, CHUNK_BYTES // (probe.width * probe.height * 3)))
        self.buffer: NDArray[np.uint8] | None = None
        self.numbers: list[int] = []

    def add(self, number: int, frame: av.VideoFrame) -> Iterator[Frames]:
        if self.buffer is None:
            self.buffer = np.empty((self.capacity, self.probe.height, self.probe.width, 3), np.uint8)
        self.buffer[len(self.numbers)] = _rgb(frame, self.probe.width, self.probe.height)
        self.numbers.append(number)
        if len(self.numbers) == self.capacity:
            yield from self.flush()

    def flush(self) -> Iterator[Frames]:
        if self.buffer is not None and self.numbers:
            resized = self.resize(self.buffer[: len(self.numbers)])
            yield Frames(self.numbers, upright(resized, self.probe.orientation))
        self.buffer, self.numbers = None, []


def _rgb(frame: av.VideoFrame, width: int, height: int) -> NDArray[np.uint8]:
    """Convert to (height, width, 3) uint8 RGB; a picture of another size is scaled to this one."""
    try:
        if (frame.width, frame.height) == (width, height):
            return frame.to_ndarray(format="rgb24")  # type: ignore[return-value]  # rgb24 is uint8
        return frame.reformat(width, height, "rgb24").to_ndarray()  # type: ignore[return-value]
    except (av.error.FFmpegError, ValueError) as error:
        raise VideoError("no_decodable_frame", f"pictures of format {frame.format.name} cannot be converted") from error


def upright(images: Tensor, orientation: Orientation) -> Tensor:
    """Turn stored pictures as they are shown. images: (F, H, W, 3), any dtype. Returns (F, H, W, 3) or (F, W, H, 3)."""
    if orientation.transpose:
        images = images.transpose(1, 2)
    flips = [axis for axis, flip in ((1, orientation.flip_y), (2, orientation.flip_x)) if flip]
    return torch.flip(images, flips) if flips else images
