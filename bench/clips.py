"""Videos for the decoding bench, made with PyAV: what archives hold, with bitrates that archives have.

A scene is a crop that drifts over a large textured canvas, at fractions of a pixel, with a second texture moving the
other way in front and noise over all; it changes at once every few seconds. So every frame differs everywhere from its
neighbours, which the check of frame numbers needs, and no block is free to code, which the cost of decoding needs.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

# Few settings that matter here: B-frames, reference B-frames, distance of key frames, rate.
VPX = {"deadline": "realtime", "cpu-used": "6", "row-mt": "1", "lag-in-frames": "16", "auto-alt-ref": "1"}
X265 = {"x265-params": "bframes=3:keyint=250:log-level=error"}
X264 = {"preset": "veryfast", "bf": "3", "b-pyramid": "normal"}


@dataclass(frozen=True)
class Clip:
    """A video to be made. detail: contrast of texture and noise; pieces: how often it is repeated, packet by packet."""

    name: str
    codec: str
    suffix: str
    size: tuple[int, int]
    seconds: int
    options: dict[str, str]
    fps: int = 30
    detail: float = 1.0
    pieces: int = 1


CLIPS: tuple[Clip, ...] = (
    Clip("k400", "libx264", ".mp4", (340, 256), 10, {"crf": "23", "bf": "3", "b-pyramid": "normal"}, detail=0.45),
    Clip("h264-720p-10min", "libx264", ".mp4", (1280, 720), 60, {**X264, "b": "2500k", "g": "250"}, pieces=10),
    Clip(
        "h264-1080p-long-gop", "libx264", ".mp4", (1920, 1080), 60, {**X264, "b": "5M", "g": "600", "sc_threshold": "0"}
    ),
    Clip("hevc-720p", "libx265", ".mp4", (1280, 720), 30, {"preset": "veryfast", "b": "1500k", **X265}),
    Clip("vp9-720p", "libvpx-vp9", ".webm", (1280, 720), 10, {"b": "1800k", **VPX}),
    Clip("mpeg4-avi", "mpeg4", ".avi", (320, 240), 8, {"b": "600k", "g": "12"}, fps=25),
    Clip(
        "h264-baseline", "libx264", ".mp4", (640, 360), 20, {"preset": "veryfast", "profile": "baseline", "b": "900k"}
    ),
)
SCENE_SECONDS = 7


def make(clip: Clip, folder: Path) -> Path:
    """Make ``clip`` in ``folder`` unless it is there. Returns its path."""
    path = folder / f"{clip.name}{clip.suffix}"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    piece, whole = (folder / f"{clip.name}.{part}{clip.suffix}" for part in ("piece", "whole"))
    _encode(clip, piece)
    _repeat(piece, whole, clip.pieces)
    piece.unlink()
    return whole.rename(path)


def _encode(clip: Clip, path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(clip.codec, rate=clip.fps, options=clip.options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = clip.size
        stream.pix_fmt = "yuv420p"
        stream.thread_type = "FRAME"
        for planes in _pictures(clip):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode(None))


def _repeat(piece: Path, path: Path, times: int) -> None:
    """Copy the packets of ``piece`` ``times`` times, each time later. It begins with a picture that needs no other."""
    with av.open(str(path), "w") as target:
        copy, shift = None, 0
        for _ in range(times):
            with av.open(str(piece)) as source:
                (stream,) = source.streams.video
                copy = copy or target.add_stream_from_template(stream)
                end = 0
                for packet in source.demux(stream):
                    if packet.dts is None or packet.pts is None:
                        continue
                    end = max(end, packet.pts + (packet.duration or 0))
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = copy
                    target.mux(packet)
                shift += end


def _pictures(clip: Clip) -> Iterator[Bytes]:
    """Yield yuv420p pictures, (H * 3 / 2, W) as PyAV takes them."""
    rng = np.random.default_rng(0)
    width, height = clip.size
    noise = rng.normal(0, 1.5 * clip.detail, (height + 64, width + 64)).round().astype(np.int16)
    for number in range(clip.seconds * clip.fps):
        step = number % (SCENE_SECONDS * clip.fps)
        if step == 0:
            far, near = (_Canvas(rng, width, height, clip.detail) for _ in range(2))
        unrest = (0.5, 7.0)[number // (clip.fps // 2) % 5 in (1, 3, 4)]  # x264 shuns B-frames where motion is irregular
        shake = 20 + 8 * np.sin(step / np.array([2.9, 3.7, 1.9, 5.3])) + rng.uniform(0, unrest, 4)
        luma, chroma = far.crop(0.9 * step + shake[0], 0.7 * step + shake[1])
        near_luma, near_chroma = near.crop(1.3 * (SCENE_SECONDS * clip.fps - step) + shake[2], 0.4 * step + shake[3])
        cover = near_luma > 110 + 25 * clip.detail
        top, left = rng.integers(0, 64, 2)
        luma = np.where(cover, near_luma, luma) + noise[top : top + height, left : left + width]
        planes = np.empty((height * 3 // 2, width), np.uint8)
        planes[:height] = (luma + rng.normal(0, unrest)).clip(16, 235)
        covered = np.where(cover[::2, ::2], near_chroma, chroma)
        planes[height:] = covered.reshape(height // 2, width)
        yield planes


class _Canvas:
    """A still texture larger than a picture: blobs with hard edges and grain of every size."""

    def __init__(self, rng: np.random.Generator, width: int, height: int, detail: float) -> None:
        self.width, self.height = width, height
        reach = 320  # pixels that a crop may move in one scene
        full = (height + reach, width + reach)
        luma = sum(
            (_blobs(rng, full, cells) * 70 * detail / cells**0.25 for cells in (4, 9, 20, 50, 120)), np.float32(110)
        )
        luma += 25 * (_blobs(rng, full, 14) > 0.1)
        self.luma = np.asarray(luma).clip(16, 235).astype(np.int16)
        self.chroma = np.stack([128 + 50 * _blobs(rng, (full[0] // 2, full[1] // 2), 6) for _ in "uv"]).astype(np.uint8)

    def crop(self, x: float, y: float) -> tuple[NDArray[np.int16], Bytes]:
        """Return luma (H, W), between pixels where x or y is, and chroma (2, H / 2, W / 2)."""
        (left, right), (top, down) = divmod(round(16 * x), 16), divmod(round(16 * y), 16)
        rows = self.luma[top : top + self.height + 1, left : left + self.width + 1]
        rows = (rows[:, :-1] * (16 - right) + rows[:, 1:] * right) >> 4
        luma = (rows[:-1] * (16 - down) + rows[1:] * down) >> 4
        top, left = top // 2, left // 2
        return luma, self.chroma[:, top : top + self.height // 2, left : left + self.width // 2]


def _blobs(rng: np.random.Generator, size: tuple[int, int], cells: int) -> NDArray[np.float32]:
    """Return noise (H, W) from -1 to 1 that changes over 1 / ``cells`` of the height."""
    height, width = size
    grid = rng.uniform(-1, 1, (cells, cells * width // height)).astype(np.float32)
    picture = av.VideoFrame.from_ndarray(((grid + 1) * 32767).astype(np.uint16), format="gray16le")
    large = picture.reformat(width=width, height=height, interpolation="BICUBIC").to_ndarray()
    return np.asarray(large / np.float32(32767) - 1, np.float32)


def facts(path: Path) -> dict[str, Any]:
    """Return what the cost of decoding depends on: size, rate, distance of key frames, share of B-frames."""
    kinds: Counter[str] = Counter()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            kinds[PictureType(frame.pict_type).name] += 1
            kinds["key"] += frame.key_frame
    frames = kinds["I"] + kinds["P"] + kinds["B"]
    seconds = frames / float(stream.average_rate or 25)
    return {
        "codec": stream.codec_context.name,
        "width": stream.codec_context.width,
        "height": stream.codec_context.height,
        "frames": frames,
        "seconds": round(seconds, 2),
        "mbit_per_s": round(path.stat().st_size * 8e-6 / seconds, 2),
        "mean_gop": round(frames / max(1, kinds["key"]), 1),
        "b_share": round(kinds["B"] / frames, 2),
    }
