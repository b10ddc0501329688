"""Learn what a file holds: one pass over its packets, one decoded picture, nothing more.

A frame's number is its rank in presentation order among the pictures that a player shows; its time is its
presentation time, counted from the start of the file as players and ``ffmpeg -ss`` count.
"""

import re
from dataclasses import dataclass
from typing import Any

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.stream import VideoStream

from sqt_fast.archive import VideoFile
from sqt_fast.container import open_video
from sqt_fast.errors import VideoError
from sqt_fast.sampling import Float64, Int64

# Containers that store no presentation times: what FFmpeg calls pts there is a guess from decode order.
UNTIMED_FORMATS = frozenset({"avi", "h264", "hevc", "m4v", "mpegvideo", "mjpeg", "obu", "vc1", "cavsvideo", "dirac"})
FALLBACK_FPS = 25.0


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
class Probe:
    """What is known of a file without decoding it.

    width, height: pixels as stored, before ``orientation``. times_s: (F,) float64, presentation time of each frame;
    end_s: when the last one ends. pts: (F,) int64 stream ticks by which decoded frames are recognised, None where the
    container's times cannot be trusted and frames are counted instead. promised_end_s: when the video ends according
    to the container, None if it does not say. broken: why reading stopped early, None if it did not.
    """

    path: str
    container: str
    codec: str
    width: int
    height: int
    pix_fmt: str
    orientation: Orientation
    fps: float
    is_vfr: bool
    times_s: Float64
    end_s: float
    pts: Int64 | None
    promised_end_s: float | None
    promised_frames: int | None
    broken: str | None
    packets_read: int
    stream_index: int

    @property
    def num_frames(self) -> int:
        """Frames that a player would show."""
        return len(self.times_s)

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return float(self.end_s - self.times_s[0])


def probe(video: VideoFile) -> Probe:
    """Read every packet of ``video`` and decode up to its first picture.

    Raises VideoError with the reason when there is nothing to label.
    """
    if video.problem is not None:
        raise VideoError("unreadable", video.problem)
    if video.size_bytes == 0:
        raise VideoError("empty_file", "the file is empty (0 bytes)")
    with open_video(video.path) as (container, stream):
        scan = _Scan(container, stream)
        return scan.probe(video.path)


class _Scan:
    """One pass over the packets of a stream."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.container, self.stream = container, stream
        self.first_frame: av.VideoFrame | None = None
        self.broken: str | None = None
        self.packets_read = 0
        self.pts: list[int | None] = []
        self.last_pts = -(2**63)
        self.last_duration = 0
        self._read()

    def _read(self) -> None:
        is_vp8 = self.stream.codec_context.name == "vp8"
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                self.broken = self._cut_off() or self.broken
                return
            except av.error.FFmpegError as error:
                self.broken = f"reading stopped early: {(error.strerror or str(error)).lower()}"
                return
            if self.first_frame is None:
                self.first_frame = _first_picture(packet)
            if not packet.size:
                continue
            self.packets_read += 1
            if packet.is_corrupt:
                self.broken = "a packet is cut off"
            if packet.is_discard or (is_vp8 and _is_hidden_vp8(packet)):
                continue
            self.pts.append(packet.pts)
            if packet.duration and (packet.pts or 0) >= self.last_pts:
                self.last_pts, self.last_duration = packet.pts or 0, packet.duration

    def _cut_off(self) -> str | None:
        """Say so where the index of an MP4 names data beyond the end of the file: FFmpeg stops there in silence."""
        entries = getattr(self.stream, "index_entries", ())  # PyAV 16 has it not, 18 has it
        if not entries or not self.container.format.name.startswith("mov"):
            return None
        if entries[-1].pos + entries[-1].size <= self.container.size:
            return None
        return f"the file is cut off: its index names {len(entries)} pictures, it holds {self.packets_read}"

    def probe(self, path: str) -> Probe:
        if self.first_frame is None or not self.pts:
            reason = f"no decodable frame in {self.packets_read} packets" if self.packets_read else "no video data"
            raise VideoError("no_decodable_frame", reason)
        context, frame = self.stream.codec_context, self.first_frame
        times_s, end_s = self._times()
        tick_s = float(self.stream.time_base or 0)
        return Probe(
            path=path,
            container=self.container.format.name,
            codec=context.codec.canonical_name,
            width=frame.width,
            height=frame.height,
            pix_fmt=frame.format.name,
            orientation=_orientation(frame),
            fps=self._fps(times_s, end_s),
            is_vfr=_is_vfr(times_s, tick_s),
            times_s=times_s,
            end_s=end_s,
            pts=np.unique(np.array(self.pts, np.int64)) if self._is_timed() and not self._is_decode_order() else None,
            promised_end_s=self._promised_end_s(),
            promised_frames=self.stream.frames if self.container.format.name == "avi" else None,
            broken=self.broken,
            packets_read=self.packets_read,
            stream_index=self.stream.index,
        )

    def _is_timed(self) -> bool:
        # MPEG-PS stamps a picture a pack; where packs hold more, FFmpeg's guesses for the others may clash.
        guessed = self.container.format.name == "mpeg" and len(set(self.pts)) < len(self.pts)
        return self.container.format.name not in UNTIMED_FORMATS and None not in self.pts and not guessed

    def _is_decode_order(self) -> bool:
        """Whether times ascend from packet to packet of a codec that reorders: then they are not its pictures' own.

        So FFmpeg writes H.264 into MXF and ASF. Sorted, the times are right, but a picture comes with another's.
        """
        known = [p for p in self.pts if p is not None]
        return self.stream.codec_context.has_b_frames and known == sorted(known)

    def _times(self) -> tuple[Float64, float]:
        """Return (F,) presentation times in seconds and when the last frame ends."""
        time_base = self.stream.time_base
        rate = self.stream.guessed_rate or self.stream.average_rate
        known = np.array([p for p in self.pts if p is not None], np.int64)
        seconds: Float64
        if self._is_timed() and time_base is not None:
            ticks = np.unique(known)
            seconds = ticks.astype(np.float64) * float(time_base) - (self.container.start_time or 0) / av.time_base
        elif len(set(known.tolist())) == len(self.pts) and time_base is not None:
            ticks = np.sort(known)  # AVI: one tick a picture, in the order of the file
            seconds = (ticks - ticks[0]).astype(np.float64) * float(time_base)
        else:
            seconds = np.arange(len(self.pts), dtype=np.float64) / (float(rate) if rate else FALLBACK_FPS)
        return seconds, float(seconds[-1]) + self._last_frame_s(seconds)

    def _last_frame_s(self, seconds: Float64) -> float:
        """How long the last frame is shown: to the end of the track, else its packet's duration, else as the others."""
        tick_s = float(self.stream.time_base or 0)
        rate = self.stream.guessed_rate or self.stream.average_rate
        usual = float(np.median(np.diff(seconds))) if len(seconds) > 1 else 1 / (float(rate) if rate else FALLBACK_FPS)
        if self.stream.duration and self.container.format.name.startswith("mov"):
            track_end_s = ((self.stream.start_time or 0) + self.stream.duration) * tick_s
            rest_s = track_end_s - (self.container.start_time or 0) / av.time_base - float(seconds[-1])
            if 0 < rest_s <= 2 * usual:  # otherwise the file is cut off, or the track is longer than its pictures
                return rest_s
        return self.last_duration * tick_s or usual

    def _fps(self, times_s: Float64, end_s: float) -> float:
        """Mean frames a second: the container's exact fraction where it agrees with the times."""
        duration_s = end_s - times_s[0]
        mean = len(times_s) / duration_s if duration_s > 0 else 0.0
        declared = float(self.stream.average_rate or 0)
        return declared if abs(declared - mean) < 0.01 * mean else float(mean)

    def _promised_end_s(self) -> float | None:
        """When the video should end. Only Matroska is asked: elsewhere the index tells.

        Audio may be longer than the video: beside it, only what the track itself is tagged with counts.
        """
        if "matroska" not in self.container.format.name or not self.container.duration:
            return None
        end_s = self.container.duration / av.time_base
        if any(s.type == "audio" for s in self.container.streams):
            clock = re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d+)", self.stream.metadata.get("DURATION", ""))
            if clock is None:
                return None
            end_s = min(end_s, int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3]))
        return end_s - (self.container.start_time or 0) / av.time_base


def _first_picture(packet: "av.Packet[Any]") -> av.VideoFrame | None:
    try:
        frames = packet.decode()
    except av.error.FFmpegError:
        return None
    return next((f for f in frames if isinstance(f, av.VideoFrame)), None)


def _is_hidden_vp8(packet: "av.Packet[Any]") -> bool:
    """VP8 stores pictures that are only referred to in packets of their own (RFC 6386, 9.1: show_frame)."""
    return not bytes(packet)[0] >> 4 & 1


def _orientation(frame: av.VideoFrame) -> Orientation:
    """Read the display matrix (ISO 14496-12, 8.3.2.3): shown x = a x + c y, shown y = b x + d y."""
    side_data = frame.side_data.get(SideDataType.DISPLAYMATRIX)  # type: ignore[call-overload]  # keyed by enum
    if side_data is None:
        return Orientation()
    a, b, _, c, d = np.frombuffer(bytes(side_data), np.int32)[:5].tolist()
    rotation = int(frame.rotation)
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(rotation, transpose=True, flip_x=c < 0, flip_y=b < 0)
    return Orientation(rotation, flip_x=a < 0, flip_y=d < 0)


def _is_vfr(times_s: Float64, tick_s: float) -> bool:
    """Whether distances between frames differ by more than rounding to ticks and 5 % can explain."""
    if len(times_s) < 3:
        return False
    steps = np.diff(times_s)
    middle = float(np.median(steps))
    return bool(np.abs(steps - middle).max() > max(1.5 * tick_s, 0.05 * middle))
