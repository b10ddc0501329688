"""What is known of a file without decoding it: the facts that plans, routes and rows go by.

A frame's number is its rank in presentation order among the pictures that a player shows; its time is its
presentation time, counted from the start of the file as players and ``ffmpeg -ss`` count.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sqt_fast.video.packets import Packets
from sqt_fast.video.sampling import Float64, Int64


@dataclass(frozen=True)
class Orientation:
    """How stored pictures are turned to be seen upright: transpose first, then flip.

    rotation is the angle that ffprobe prints (-90: shown turned 90 degrees clockwise).
    """

    rotation: int = 0
    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False


@dataclass(frozen=True)
class Source:
    """What a decoder must know of a file: which stream, and its pictures (pixels as stored, before orientation)."""

    path: str
    stream_index: int
    width: int
    height: int
    orientation: Orientation = Orientation()


@dataclass(frozen=True)
class Probe:
    """What is known of a file without decoding it.

    coded_size: (height, width) in whole blocks, as decoders hold them; what is shown lies within. colorspace: the
    matrix of ITU-T H.273. size_changes: size or format may change in mid-stream. has_hidden: packets and shown pictures
    do not pair, as some are only referred to, or lead the file and lack what they refer to. reorder_depth: how many
    pictures may precede one in the file and follow it in time. times_s: (F,) float64, presentation time of each frame;
    end_s: when the last one ends. pts: (F,) int64 stream ticks by which decoded frames are recognised, None where the
    container's times cannot be trusted and frames are counted instead. clock_jumped: the file's clock jumps back, or
    pictures share a time; times and ticks here are mended. cut_s: from when to when there are packets of which bytes
    are missing, None if there are none. promised_end_s: when the video ends according to the container, None if it does
    not say. broken: why reading stopped early, None if it did not.
    """

    source: Source
    packets: Packets
    container: str
    codec: str
    profile: str | None
    pix_fmt: str
    coded_size: tuple[int, int]
    colorspace: int
    is_interlaced: bool
    size_changes: bool
    has_hidden: bool
    reorder_depth: int
    fps: float
    is_vfr: bool
    times_s: Float64
    end_s: float
    pts: Int64 | None
    promised_end_s: float | None
    promised_frames: int | None
    broken: str | None
    clock_jumped: bool = False
    cut_s: tuple[float, float] | None = None

    @property
    def num_frames(self) -> int:
        """Frames that a player would show."""
        return len(self.times_s)

    @property
    def is_full_range(self) -> bool:
        """Whether luma goes from 0 to 255, as FFmpeg's name of the format says for H.264 and HEVC of 8 bits."""
        return self.pix_fmt.startswith("yuvj")

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return float(self.end_s - self.times_s[0])

    def numbers_of(self, ticks: Sequence[int]) -> list[int]:
        """Return the frame numbers, each once, ascending, of frames known by their ticks, or by number if counted."""
        known = np.unique(np.array(ticks, np.int64))
        if self.pts is not None:
            ranks = np.searchsorted(self.pts, known)
            return [
                r for r, t in zip(ranks.tolist(), known.tolist(), strict=True) if r < len(self.pts) and self.pts[r] == t
            ]
        return [n for n in known.tolist() if n < self.num_frames]
