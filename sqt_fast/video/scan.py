"""Learn what a file holds: one pass over its packets, one decoded picture, nothing more."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.stream import VideoStream

from sqt_fast.errors import VideoError, system_reason
from sqt_fast.video.archive import VideoFile
from sqt_fast.video.bitstream import packet_reader
from sqt_fast.video.clock import CLOCKED_FORMATS, MAX_SHARED, in_order, mend, shared, spread
from sqt_fast.video.container import demux, open_video
from sqt_fast.video.ending import promised_end_s, why_cut_off
from sqt_fast.video.packets import NEW_HEADERS, NO_TIME, RANDOM_ACCESS, SHOWN, PacketColumns, Packets
from sqt_fast.video.probe import Orientation, Probe, Source
from sqt_fast.video.sampling import Float64

# Containers that store no presentation times: what FFmpeg calls pts there is a guess from decode order.
UNTIMED_FORMATS = frozenset({"avi", "h264", "hevc", "m4v", "mpegvideo", "mjpeg", "obu", "vc1", "cavsvideo", "dirac"})
FALLBACK_FPS = 25.0
PROGRESSIVE = (0, 1)  # AVFieldOrder: unknown, progressive


def probe(video: VideoFile, *, progress: Callable[[], None] = lambda: None) -> Probe:
    """Read every packet of ``video`` and decode up to its first picture.

    progress is called for each packet. Raises VideoError with the reason when there is nothing to label.
    """
    with open_to_probe(video) as (container, stream):
        return probe_stream(video.path, container, stream, lambda _: progress())


@contextmanager
def open_to_probe(video: VideoFile) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open ``video`` at its start, to decode on one thread. Raises VideoError."""
    if video.problem is not None:
        raise VideoError("unreadable", video.problem)
    if video.size_bytes == 0:
        raise VideoError("empty_file", "the file is empty (0 bytes)")
    with open_video(video.path) as (container, stream):
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        yield container, stream


def probe_stream(
    path: str, container: InputContainer, stream: VideoStream, on_packet: "Callable[[av.Packet[Any]], None]"
) -> Probe:
    """Probe an open file and leave it at its end. on_packet is given every packet. Raises VideoError."""
    return _Scan(container, stream, on_packet).probe(path)


class _Scan:
    """One pass over the packets of a stream."""

    def __init__(
        self, container: InputContainer, stream: VideoStream, on_packet: "Callable[[av.Packet[Any]], None]"
    ) -> None:
        self.container, self.stream, self.on_packet = container, stream, on_packet
        self.first_frame: av.VideoFrame | None = None
        self.broken: str | None = None
        self.last_pts = NO_TIME
        self.last_duration = 0
        self.end = 0  # of the last packet, in bytes from the start of the file
        self.has_hidden = False
        self.cut_packets: list[int] = []
        self.packets = self._read()
        self.start_s = (container.start_time or 0) / av.time_base
        self.tick_s = float(stream.time_base or 0)
        self._mend()
        self.interval_s = self._interval_s()

    def _read(self) -> Packets:
        context = self.stream.codec_context
        read, columns = packet_reader(context.codec.canonical_name, context.extradata), PacketColumns()
        for packet in self._packets():
            self.on_packet(packet)
            kind = read(memoryview(packet))
            self.end = (packet.pos or 0) + packet.size
            if packet.is_corrupt:
                self.cut_packets.append(len(columns))
            columns.add(packet.pts, packet.dts, packet.size, kind, discarded=packet.is_discard)
            self.has_hidden |= kind.shown != 1 or kind.hides
            if packet.duration and kind.shown and not packet.is_discard and (packet.pts or 0) >= self.last_pts:
                self.last_pts, self.last_duration = packet.pts or 0, packet.duration
        self.broken = why_cut_off(self.container, self.stream, len(columns), self.end) or self.broken
        return columns.finish()

    def _mend(self) -> None:
        """Put the times right: ``ticks`` are those of what is shown, ``packets`` tells pictures apart afterwards."""
        name, packets = self.container.format.name, self.packets
        lead = self._undecodable_lead()
        packets.flags[:lead] &= ~np.uint8(SHOWN)
        self.has_hidden |= lead > 0
        shown = packets.are(SHOWN)
        self.is_timed = name not in UNTIMED_FORMATS and NO_TIME not in packets.pts[shown]
        self.clock_jumped = False
        if name in CLOCKED_FORMATS:
            clock = mend(packets.pts, packets.dts, 1 / (self.tick_s or 1), has_dts="matroska" not in name)
            self.cut_packets = [rank for rank in self.cut_packets if not clock.explains(rank)]
            self.is_timed &= not clock.tells_nothing
            self.clock_jumped = len(clock.back) > 0
            packets = replace(packets, pts=clock.pts, dts=clock.dts)
        self.ticks = packets.pts[shown]
        num_shared = shared(self.ticks) if self.is_timed else 0
        if num_shared and name == "mpeg":  # stamps a picture a pack: FFmpeg's guesses for the others may clash
            self.is_timed = False
        elif num_shared:
            self.clock_jumped = True
            self.is_timed = not self._reorders or num_shared <= MAX_SHARED * len(self.ticks)
            pts, dts = in_order(packets.pts)
            packets = replace(packets, pts=pts, dts=dts)
        self.packets = packets
        if self.cut_packets and self.cut_packets[-1] == len(packets) - 1:
            self.broken = self.broken or "a packet is cut off"
            self.cut_packets.pop()

    def _undecodable_lead(self) -> int:
        """Return how many packets come before the first at which decoding may start, and show nothing.

        So recordings begin that were cut out of a broadcast; players show nothing of them either.
        """
        starts = np.flatnonzero(self.packets.are(RANDOM_ACCESS))
        if self.first_frame is None or self.first_frame.pts is None or not len(starts):
            return 0
        first = np.flatnonzero(self.packets.pts == self.first_frame.pts)
        return int(min(first[0], starts[0])) if len(first) else 0

    def _cut_s(self, times_s: Float64, end_s: float) -> tuple[float, float] | None:
        """Return from when to when packets are shown of which bytes are missing, None if there are none."""
        if not self.cut_packets:
            return None
        places = np.full(len(self.packets), len(times_s))
        ranks = np.flatnonzero(self.packets.are(SHOWN))
        order = np.argsort(self.packets.pts[ranks], kind="stable") if self.is_timed else np.arange(len(ranks))
        places[ranks[order]] = np.arange(len(ranks))
        cut = np.sort(places[self.cut_packets])
        cut = cut[cut < len(times_s)]
        if not len(cut):
            return None
        return float(times_s[cut[0]]), float(np.append(times_s, end_s)[cut[-1] + 1])

    def _interval_s(self) -> float:
        """How long a frame is shown, as the headers say: those of the codec where the container's times were wrong."""
        of_codec = self.stream.codec_context.framerate if self.clock_jumped else None
        rate = of_codec or self.stream.guessed_rate or self.stream.average_rate
        return 1 / float(rate or FALLBACK_FPS)

    @property
    def _reorders(self) -> bool:
        return bool(self.stream.codec_context.has_b_frames)

    def _packets(self) -> Iterator["av.Packet[Any]"]:
        is_first = True
        try:
            for packet in demux(self.container, self.stream):
                if self.first_frame is None and is_first and packet.size:  # most files: no waiting for B pictures
                    is_first, self.first_frame = False, _first_picture(packet, alone=True)
                if self.first_frame is None:
                    self.first_frame = _first_picture(packet, alone=False)
                if packet.size:
                    yield packet
        except av.error.FFmpegError as error:
            self.broken = f"reading stopped early: {system_reason(error)}"

    def probe(self, path: str) -> Probe:
        """Return what has been learnt. Raises VideoError."""
        if self.first_frame is None or not len(self.ticks):
            read = len(self.packets)
            reason = f"no decodable frame in {read} packets" if read else "no video data"
            raise VideoError("no_decodable_frame", reason)
        context, frame = self.stream.codec_context, self.first_frame
        times_s, end_s = self._times()
        pts = self.packets.pts[self.packets.are(SHOWN)]
        return Probe(
            source=Source(path, self.stream.index, frame.width, frame.height, _orientation(frame)),
            packets=self.packets,
            container=self.container.format.name,
            codec=context.codec.canonical_name,
            profile=context.profile,
            pix_fmt=frame.format.name,
            coded_size=(max(context.coded_height, frame.height), max(context.coded_width, frame.width)),
            colorspace=int(frame.colorspace),
            is_interlaced=frame.interlaced_frame or context.field_order not in PROGRESSIVE,
            size_changes=bool(self.packets.are(NEW_HEADERS).any()),
            has_hidden=self.has_hidden or bool((self.packets.pts < self.packets.pts[0]).any()),
            reorder_depth=int(context.reorder_depth),
            fps=self._fps(times_s, end_s),
            is_vfr=_is_vfr(times_s, self.tick_s),
            times_s=times_s,
            end_s=end_s,
            pts=np.sort(pts) if self.is_timed and not self._is_decode_order() else None,
            cut_s=self._cut_s(times_s, end_s),
            promised_end_s=promised_end_s(self.container, self.stream, is_broken=self.broken is not None),
            promised_frames=self.stream.frames if self.container.format.name == "avi" else None,
            broken=self.broken,
            clock_jumped=self.clock_jumped,
        )

    def _is_decode_order(self) -> bool:
        """Whether times ascend from packet to packet of a codec that reorders: then they are not its pictures' own.

        So FFmpeg writes H.264 into MXF and ASF. Sorted, the times are right, but a picture comes with another's.
        """
        return self._reorders and bool((np.diff(self.ticks) >= 0).all())

    def _times(self) -> tuple[Float64, float]:
        """Return (F,) presentation times in seconds and when the last frame ends."""
        ticks = np.sort(self.ticks)
        seconds: Float64
        if self.is_timed and self.tick_s:
            seconds = spread(ticks.astype(np.float64) * self.tick_s - self.start_s, self.interval_s)
        elif NO_TIME not in ticks and not shared(ticks) and not self.clock_jumped and self.tick_s:
            seconds = (ticks - ticks[0]).astype(np.float64) * self.tick_s  # AVI: a tick a picture, in the file's order
        else:
            seconds = np.arange(len(ticks), dtype=np.float64) * self.interval_s
        return seconds, float(seconds[-1]) + self._last_frame_s(seconds)

    def _last_frame_s(self, seconds: Float64) -> float:
        """How long the last frame is shown: to the end of the track, else its packet's duration, else as the others."""
        usual = float(np.median(np.diff(seconds))) if len(seconds) > 1 else self.interval_s
        if self.stream.duration and self.container.format.name.startswith("mov"):
            track_end_s = ((self.stream.start_time or 0) + self.stream.duration) * self.tick_s
            rest_s = track_end_s - self.start_s - float(seconds[-1])
            if 0 < rest_s <= 2 * usual:  # otherwise the file is cut off, or the track is longer than its pictures
                return rest_s
        return self.last_duration * self.tick_s or usual

    def _fps(self, times_s: Float64, end_s: float) -> float:
        """Mean frames a second: the container's exact fraction where it agrees with the times."""
        duration_s = end_s - times_s[0]
        mean = len(times_s) / duration_s if duration_s > 0 else 0.0
        declared = float(self.stream.average_rate or 0)
        return declared if abs(declared - mean) < 0.01 * mean else float(mean)


def _first_picture(packet: "av.Packet[Any]", *, alone: bool) -> av.VideoFrame | None:
    """Return the picture that comes when ``packet`` is decoded after those before it, or ``alone``."""
    context = packet.stream.codec_context
    assert isinstance(context, av.VideoCodecContext)
    try:
        frames = packet.decode()
        if alone and not frames:
            frames = context.decode(None)
            context.flush_buffers()
    except av.error.FFmpegError:
        return None
    return next((f for f in frames if isinstance(f, av.VideoFrame)), None)


def _orientation(frame: av.VideoFrame) -> Orientation:
    """Read the display matrix (ISO 14496-12, 8.3.2.3): shown x = a x + c y, shown y = b x + d y."""
    rotation = int(frame.rotation)
    try:
        side_data = frame.side_data.get(SideDataType.DISPLAYMATRIX)  # type: ignore[call-overload]  # keyed by enum
    except ValueError:  # beside the matrix there is data of a kind newer than PyAV: it then shows none of it
        a, b = round(math.cos(math.radians(rotation))), -round(math.sin(math.radians(rotation)))
        c, d = -b, a
    else:
        if side_data is None:
            return Orientation()
        a, b, _, c, d = np.frombuffer(bytes(side_data), np.int32)[:5].tolist()
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
