"""Videos of a special kind, which tests of probing, planning and decoding write."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate, cycle
from pathlib import Path
from types import MappingProxyType
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from sqt_fast.samples import encoding
from sqt_fast.samples.scenes import draw, random_scene
from sqt_fast.table.rows import _damage
from sqt_fast.table.schema import Row
from sqt_fast.video.archive import find_videos
from sqt_fast.video.cpu_decoder import DecodeReport
from sqt_fast.video.probe import Probe
from sqt_fast.video.scan import probe

UInt8 = NDArray[np.uint8]

MATRICES = {  # a, b, c, d of ISO 14496-12: shown x = a x + c y, shown y = b x + d y
    "as it is": (1, 0, 0, 1),
    "a quarter clockwise": (0, 1, -1, 0),
    "upside down": (-1, 0, 0, -1),
    "a quarter anticlockwise": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "mirrored top to bottom": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transposed the other way": (0, -1, -1, 0),
}


def look(path: Path | str) -> Probe:
    """Probe one file."""
    (video,) = find_videos([str(path)])
    return probe(video)


def story(facts: Probe, report: DecodeReport | None = None) -> str:
    """Return what the table would say of the damage. report: of decoding; None: every frame that is there came."""
    if report is None:
        report = DecodeReport(frames_decoded=facts.num_frames, frames_wanted=facts.num_frames)
    row = _damage(Row(path="a"), facts, report, complete=not report.lost)
    return "" if row is None else str(row.error_message)


def with_sound(path: Path, *, seconds: float) -> Path:
    """Write 1.6 s of video beside ``seconds`` of silence, packets in the order of their times."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", 25)
        sound = container.add_stream("pcm_s16le", 8000, layout="mono")
        assert isinstance(stream, av.VideoStream)
        assert isinstance(sound, av.AudioStream)
        stream.width, stream.height = 96, 64
        pictures = draw(random_scene("left", 1), np.arange(40) / 25, (96, 64))
        for k in range(round(seconds * 25)):
            pixels = next(pictures, None)
            if pixels is not None:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 320), np.int16), format="s16", layout="mono")
            silence.sample_rate, silence.pts = 8000, 320 * k
            container.mux(sound.encode(silence))
        container.mux(stream.encode(None))
        container.mux(sound.encode(None))
    return path


def with_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Write the display matrix into the track header of an MP4."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4
    at += 40 if data[at] == 0 else 52
    numbers = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    data[at : at + 36] = b"".join(number.to_bytes(4, "big", signed=True) for number in numbers)
    path.write_bytes(data)


def write_two_tracks(path: Path, motion: str, num_frames: tuple[int, int], default: int) -> None:
    """Write tracks of 64x48 and 160x128 pixels, 25 frames a second; number ``default`` is marked as the default."""
    with av.open(str(path), "w") as container:
        streams: list[av.VideoStream] = []
        for size in ((64, 48), (160, 128)):
            stream = container.add_stream("mpeg4", 25)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height = size
            stream.disposition = av.stream.Disposition(len(streams) == default)
            streams.append(stream)
        for k, stream in enumerate(streams):
            for pixels in draw(random_scene(motion, k), np.arange(num_frames[k]) / 25, (stream.width, stream.height)):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode(None))


def copy(source: Path, target: Path, *, skip: int = 0, seconds: Fraction = Fraction(0), **options: str) -> Path:
    """Put the packets into another container, those from ``skip`` on, ``seconds`` earlier."""
    with av.open(str(source)) as reader, av.open(str(target), "w", options=options) as writer:
        template = reader.streams.video[0]
        stream = writer.add_stream_from_template(template, opaque=True)
        packets = [packet for packet in reader.demux(template) if packet.size]
        for packet in packets[skip:]:
            assert packet.pts is not None
            assert packet.dts is not None
            assert template.time_base is not None
            shift = round(seconds / template.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
            writer.mux(packet)
    return target


# One stream of each kind that planning must tell apart ---------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """How to encode a texture that drifts, with noise: every picture differs everywhere.

    sizes: width and height; several follow one another in mid-stream. ticks: how long frames last, in turn, in 1/25 s.
    after: turn the file into another.
    """

    container: str
    encoder: str
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    sizes: tuple[tuple[int, int], ...] = ((96, 64),)
    num_frames: int = 80
    ticks: tuple[int, ...] = (1,)
    pix_fmt: str = "yuv420p"
    after: Callable[[Path, Path], object] | None = None


def _x264(params: str = "", **options: str) -> dict[str, str]:
    return {"preset": "veryfast", "bf": "3", "g": "24", "b-pyramid": "normal", **options, "x264-params": params}


def _x265(params: str) -> dict[str, str]:
    quiet = "log-level=none:pools=none:frame-threads=1:rc-lookahead=20"
    return {"preset": "ultrafast", "x265-params": f"{quiet}:b-adapt=0:b-pyramid=1:{params}"}


def _hide(source: Path, target: Path) -> None:
    """Clear the bit that shows a picture of VP8 in every fifth packet."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for k, packet in enumerate(p for p in reader.demux(video=0) if p.size):
            data = bytearray(bytes(packet))
            data[0] &= ~0x10 if k % 5 == 3 else 0xFF
            hidden = av.Packet(bytes(data))
            hidden.pts, hidden.dts, hidden.time_base = packet.pts, packet.dts, packet.time_base
            hidden.is_keyframe, hidden.stream = packet.is_keyframe, stream
            writer.mux(hidden)


def _pack(source: Path, target: Path) -> None:
    """Pack B pictures of MPEG-4 as DivX does: each beside the picture that it needs, and an empty one in its stead."""
    with av.open(str(source)) as reader, av.open(str(target), "w", format="avi") as writer:
        template = reader.streams.video[0]
        packets = [bytes(p) for p in reader.demux(template) if p.size]
        rate = template.average_rate
        assert rate is not None
        stream = writer.add_stream_from_template(template)
        stream.time_base = 1 / rate
        user_data = b"\0\0\1\xb2DivX503b1393p\0"
        at = packets[0].index(b"\0\0\1\xb6")
        packets[0] = packets[0][:at] + user_data + packets[0][at:]
        packed: list[bytes] = []
        for data in packets:
            start = data.index(b"\0\0\1\xb6")
            if data[start + 4] >> 6 == 2:
                packed[-1] += data
                packed.append(b"\0\0\1\xb6\x58\0\0")  # a P picture that is not coded
            else:
                packed.append(data)
        for k, data in enumerate(packed):
            packet = av.Packet(data)
            packet.pts = packet.dts = k
            packet.time_base, packet.stream, packet.is_keyframe = 1 / rate, stream, k == 0
            writer.mux(packet)


def _cut(source: Path, target: Path) -> None:
    """Begin 5 frames after the second key frame and hide those before with an edit list, as ``-ss -c copy`` does."""
    with av.open(str(source)) as reader:
        packets = [packet for packet in reader.demux(video=0) if packet.size]
    skip = [k for k, packet in enumerate(packets) if packet.is_keyframe][1]
    pts, time_base = packets[skip].pts, packets[skip].time_base
    assert pts is not None
    copy(source, target, skip=skip, seconds=pts * time_base + Fraction(5, 25))


_OPEN_264 = _x264("open-gop=1:keyint=12:min-keyint=4")
_REFRESH = _x264(**{"intra-refresh": "1"}, g="20")
_INTERLACED = {"flags": "+ildct+ilme"}
_CLOSED_265, _OPEN_265 = _x265("open-gop=0:keyint=24:bframes=4"), _x265("open-gop=1:keyint=15:min-keyint=15:bframes=4")
_VP9 = {"deadline": "realtime", "cpu-used": "5", "b": "300k", "g": "24", "lag-in-frames": "0"}
_VP8 = {"deadline": "realtime", "cpu-used": "8", "b": "300k", "g": "24"}
_TWO_SIZES = ((96, 64), (160, 128))

KINDS: dict[str, Kind] = {
    "h264": Kind("mp4", "libx264", _x264()),
    "h264 without b": Kind("mp4", "libx264", _x264(bf="0")),
    "h264 open": Kind("mp4", "libx264", _OPEN_264),
    "h264 intra refresh": Kind("mp4", "libx264", _REFRESH),
    "h264 interlaced": Kind("mp4", "libx264", _x264(**_INTERLACED)),
    "h264 ts": Kind("ts", "libx264", _x264()),
    "h264 open ts": Kind("ts", "libx264", _OPEN_264),
    "h264 slices": Kind("flv", "libx264", _x264("slices=3", bf="2")),
    "h264 mkv": Kind("mkv", "libx264", _x264()),
    "h264 raw": Kind("h264", "libx264", _x264()),
    "h264 varying rate": Kind("mp4", "libx264", _x264(), ticks=(1, 3, 2, 5)),
    "h264 edit list": Kind("mp4", "libx264", _x264(), after=_cut),
    "h264 two sizes ts": Kind("ts", "libx264", _x264(), sizes=_TWO_SIZES),
    "h264 two sizes mkv": Kind("mkv", "libx264", _x264(), sizes=_TWO_SIZES),
    "h264 two sizes raw": Kind("h264", "libx264", _x264(), sizes=_TWO_SIZES),
    "hevc": Kind("mp4", "libx265", _CLOSED_265),
    "hevc open": Kind("mp4", "libx265", _OPEN_265),
    "hevc open ts": Kind("ts", "libx265", _OPEN_265),
    "hevc open mkv": Kind("mkv", "libx265", _OPEN_265),
    "hevc open edit list": Kind("mp4", "libx265", _OPEN_265, after=_cut),
    "hevc radl": Kind("mp4", "libx265", _x265("open-gop=0:keyint=15:bframes=4:radl=2")),
    "hevc layers": Kind("mp4", "libx265", _x265("open-gop=0:keyint=24:bframes=7:temporal-layers=3")),
    "vp8": Kind("webm", "libvpx", _VP8),
    "vp8 hidden": Kind("webm", "libvpx", _VP8, after=_hide),
    "vp9": Kind("webm", "libvpx-vp9", _VP9),
    "vp9 hidden": Kind("webm", "libvpx-vp9", {**_VP9, "lag-in-frames": "16", "auto-alt-ref": "1"}),
    "av1": Kind("mp4", "libsvtav1", {"preset": "10", "svtav1-params": "lp=1", "g": "32"}),
    "av1 open": Kind("mkv", "libsvtav1", {"preset": "10", "svtav1-params": "lp=1:irefresh-type=1:keyint=32"}),
    "mpeg4": Kind("mp4", "mpeg4", {"bf": "2", "g": "20"}),
    "mpeg4 ts": Kind("ts", "mpeg4", {"bf": "2", "g": "20"}),
    "mpeg4 avi": Kind("avi", "mpeg4", {"bf": "2", "g": "20"}),
    "mpeg4 packed": Kind("avi", "mpeg4", {"bf": "1", "g": "300"}, after=_pack),
    "mpeg2 ts": Kind("ts", "mpeg2video", {"bf": "2", "g": "15"}),
    "mpeg2 ps": Kind("mpg", "mpeg2video", {"bf": "2", "g": "15"}),
    "mpeg2 interlaced": Kind("ts", "mpeg2video", {"bf": "2", "g": "15", **_INTERLACED}),
    "mpeg1 ps": Kind("mpg", "mpeg1video", {"bf": "2", "g": "15"}),
    "mjpeg": Kind("avi", "mjpeg", pix_fmt="yuvj420p"),
    "prores": Kind("mov", "prores", pix_fmt="yuv422p10le"),
    "ffv1": Kind("mkv", "ffv1"),
}


def drift(size: tuple[int, int], num_frames: int) -> Iterator[UInt8]:
    """Yield the pictures of ``KINDS``."""
    rng = np.random.default_rng(size)
    coarse = rng.integers(30, 220, (16, 16, 3)).astype(np.uint8)
    texture = np.repeat(np.repeat(coarse, 16, axis=0), 16, axis=1)[: size[1], : size[0]]
    for k in range(num_frames):
        noise = rng.integers(-8, 8, texture.shape)
        yield (np.roll(texture, (k, 2 * k), axis=(0, 1)) + noise).astype(np.uint8)


def write(name: str, folder: Path) -> Path:
    """Write the video of that kind to ``folder``, unless it is there; return its path."""
    kind = KINDS[name]
    path = folder / f"{name.replace(' ', '-')}.{kind.container}"
    if path.exists():
        return path
    folder.mkdir(exist_ok=True)
    first = path if kind.after is None else folder / f"before-{path.name}"
    if kind.container == path.suffix[1:] and kind.encoder == "mpeg4" and kind.after is not None:
        first = first.with_suffix(".mp4")  # AVI has lost the order of pictures
    with encoding.silent_svt(), av.open(str(first), "w") as container:
        _encode(container, kind)
    if kind.after is not None:
        kind.after(first, path)
    return path


def _encode(container: av.container.OutputContainer, kind: Kind) -> None:
    edges = list(accumulate((d for d, _ in zip(cycle(kind.ticks), range(kind.num_frames))), initial=0))
    per_size = kind.num_frames // len(kind.sizes)
    stream: av.VideoStream | None = None
    for part, size in enumerate(kind.sizes):
        encoder: Any = container.add_stream(kind.encoder, 25, dict(kind.options)) if stream is None else None
        if encoder is None:
            encoder = av.CodecContext.create(kind.encoder, "w")
            encoder.options, encoder.framerate = dict(kind.options), Fraction(25)
        context = encoder.codec_context if stream is None else encoder
        context.width, context.height, context.pix_fmt = *size, kind.pix_fmt
        context.time_base, context.thread_count = Fraction(1, 25), 1
        stream = stream or encoder
        numbers = range(part * per_size, (part + 1) * per_size)
        for number, pixels in zip(numbers, drift(size, per_size), strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = edges[number], Fraction(1, 25)
            _mux(container, stream, encoder.encode(frame))
        _mux(container, stream, encoder.encode(None))


def _mux(container: av.container.OutputContainer, stream: av.VideoStream, packets: list[Any]) -> None:
    for packet in packets:
        packet.stream = stream
        container.mux(packet)
