"""Learn what a file holds: one pass over its packets, one decoded picture, nothing more."""

import re
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
from sqt_fast.video.clock import CLOCKED_FORMATS, mend
from sqt_fast.video.container import open_video
from sqt_fast.video.packets import NEW_HEADERS, NO_TIME, SHOWN, PacketColumns, Packets
from sqt_fast.video.probe import Orientation, Probe, Source
from sqt_fast.video.sampling import Float64

# Containers that store no presentation times: what FFmpeg calls pts there is a guess from decode order.
UNTIMED_FORMATS = frozenset({"avi", "h264", "hevc", "m4v", "mpegvideo", "mjpeg", "obu", "vc1", "cavsvideo", "dirac"})
FALLBACK_FPS = 25.0
TS_PACKET_SIZES = (188, 192, 204)
FLV_HEADER = re.compile(rb"FLV\x01[\x00\x01\x04\x05]\x00\x00\x00\x09")  # of version 1, with sound, video, or both
JOIN_BYTES = 1 << 20  # behind the last picture, where sound may follow before the second file
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
        self.jumps_back = 0
        self.packets = self._read()
        self.pts = self.packets.pts[self.packets.are(SHOWN)]

    def _read(self) -> Packets:
        context = self.stream.codec_context
        read, columns = packet_reader(context.codec.canonical_name, context.extradata), PacketColumns()
        corrupt: list[int] = []
        for packet in self._packets():
            self.on_packet(packet)
            kind = read(memoryview(packet))
            self.end = (packet.pos or 0) + packet.size
            if packet.is_corrupt:
                corrupt.append(len(columns))
            columns.add(packet.pts, packet.dts, packet.size, kind, discarded=packet.is_discard)
            self.has_hidden |= kind.shown != 1 or kind.hides
            if packet.duration and kind.shown and not packet.is_discard and (packet.pts or 0) >= self.last_pts:
                self.last_pts, self.last_duration = packet.pts or 0, packet.duration
        packets = columns.finish()
        if self.container.format.name in CLOCKED_FORMATS:
            clock = mend(packets.pts, packets.dts, 1 / float(self.stream.time_base or 1))
            self.jumps_back = len(clock.back)
            corrupt = [rank for rank in corrupt if not clock.explains(rank)]
            packets = replace(packets, pts=clock.pts, dts=clock.dts)
        if corrupt:
            self.broken = "a packet is cut off"
        self.broken = self._cut_off(len(columns)) or self.broken
        return packets

    def _packets(self) -> Iterator["av.Packet[Any]"]:
        packets, is_first = self.container.demux(self.stream), True
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError as error:
                self.broken = f"reading stopped early: {system_reason(error)}"
                return
            if self.first_frame is None and is_first and packet.size:  # most files: no waiting for B pictures
                is_first, self.first_frame = False, _first_picture(packet, alone=True)
            if self.first_frame is None:
                self.first_frame = _first_picture(packet, alone=False)
            if packet.size:
                yield packet

    def _cut_off(self, packets_read: int) -> str | None:
        """Say so where FFmpeg stops in silence: an MP4's index names data beyond the end, a TS ends inside a packet."""
        size = self.container.size
        if self.container.format.name == "mpegts" and size > 0 and all(size % n for n in TS_PACKET_SIZES):
            return "the file is cut off inside a transport packet"
        if self.container.format.name == "flv" and self._holds_another_flv():
            return "another FLV file is joined behind this one, which FFmpeg does not read: cut them apart"
        entries = self.stream.index_entries
        if not entries or not self.container.format.name.startswith("mov"):
            return None
        if entries[-1].pos + entries[-1].size <= size:
            return None
        return f"the file is cut off: its index names {len(entries)} pictures, it holds {packets_read}"

    def _holds_another_flv(self) -> bool:
        """Whether a second file begins behind the last packet: its header is skipped as a tag of 5 MB."""
        with open(self.container.name, "rb") as file:  # noqa: PTH123 - surrogates in the name
            file.seek(self.end)
            return FLV_HEADER.search(file.read(JOIN_BYTES)) is not None

    def probe(self, path: str) -> Probe:
        """Return what has been learnt. Raises VideoError."""
        if self.first_frame is None or not len(self.pts):
            read = len(self.packets)
            reason = f"no decodable frame in {read} packets" if read else "no video data"
            raise VideoError("no_decodable_frame", reason)
        context, frame = self.stream.codec_context, self.first_frame
        times_s, end_s = self._times()
        tick_s = float(self.stream.time_base or 0)
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
            is_vfr=_is_vfr(times_s, tick_s),
            times_s=times_s,
            end_s=end_s,
            pts=np.unique(self.pts) if self._is_timed() and not self._is_decode_order() else None,
            promised_end_s=self._promised_end_s(),
            promised_frames=self.stream.frames if self.container.format.name == "avi" else None,
            broken=self.broken,
            clock_jumped=self.jumps_back > 0,
        )

    def _is_timed(self) -> bool:
        # MPEG-PS stamps a picture a pack; where packs hold more, FFmpeg's guesses for the others may clash.
        guessed = self.container.format.name == "mpeg" and len(np.unique(self.pts)) < len(self.pts)
        return self.container.format.name not in UNTIMED_FORMATS and NO_TIME not in self.pts and not guessed

    def _is_decode_order(self) -> bool:
        """Whether times ascend from packet to packet of a codec that reorders: then they are not its pictures' own.

        So FFmpeg writes H.264 into MXF and ASF. Sorted, the times are right, but a picture comes with another's.
        """
        return self.stream.codec_context.has_b_frames and bool((np.diff(self.pts) >= 0).all())

    def _times(self) -> tuple[Float64, float]:
        """Return (F,) presentation times in seconds and when the last frame ends."""
        time_base = self.stream.time_base
        rate = self.stream.guessed_rate or self.stream.average_rate
        known = self.pts[self.pts != NO_TIME]
        seconds: Float64
        if self._is_timed() and time_base is not None:
            ticks = np.unique(known)
            seconds = ticks.astype(np.float64) * float(time_base) - (self.container.start_time or 0) / av.time_base
        elif len(np.unique(known)) == len(self.pts) and time_base is not None:
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
        """When the video should end. Matroska is asked always, FLV and MP4 where something was cut off.

        Audio may be longer than the video: beside it, only what the track itself is tagged with counts.
        """
        start_s = (self.container.start_time or 0) / av.time_base
        if self.broken and self.container.format.name.startswith("mov") and self.stream.duration:
            track_end = (self.stream.start_time or 0) + self.stream.duration
            return track_end * float(self.stream.time_base or 0) - start_s
        if self.broken and self.container.format.name == "flv" and self.container.duration:
            return self.container.duration / av.time_base - start_s
        if "matroska" not in self.container.format.name or not self.container.duration:
            return None
        end_s = self.container.duration / av.time_base
        if any(s.type == "audio" for s in self.container.streams):
            clock = re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d+)", self.stream.metadata.get("DURATION", ""))
            if clock is None:
                return None
            end_s = min(end_s, int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3]))
        return end_s - (self.container.start_time or 0) / av.time_base


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
