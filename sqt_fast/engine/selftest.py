"""Find out which codecs a GPU decoder gets right, before it is trusted with any.

A small clip of each codec is made here, with the number of every frame drawn into it, and decoded on both routes. What
comes back must be the frames that were asked for, with the colours that FFmpeg gives. Whatever goes wrong, an encoder
that is missing or a decoder that hangs, turns the codec off and nothing else.
"""

import io
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import MappingProxyType

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation
from numpy.typing import NDArray
from torch import Tensor

from sqt_fast.clips.colour import LEFT_CHROMA
from sqt_fast.clips.resize import resize
from sqt_fast.pipelines.dali_errors import in_words
from sqt_fast.pipelines.sample import SegmentSample
from sqt_fast.samples.encoding import Format, encode_video, has_encoder

UInt8 = NDArray[np.uint8]

NUM_FRAMES = 40
NUM_BITS = 6
# Levels. The conversion to RGB differs by 0.2 to 0.5; the wrong matrix by 6, another frame by more.
MAX_MEAN_DIFFERENCE = 3.0
TIMEOUT_S = 60.0


_X264 = {"preset": "veryfast", "bf": "2", "g": "20", "b": "2M"}
_X265 = {"x265-params": "log-level=none:pools=none:frame-threads=1:bframes=2:keyint=20:open-gop=0", "b": "2M"}
_MPEG4 = {"bf": "2", "g": "20", "qmin": "2", "qmax": "4", "b": "2M"}
_VPX = {"g": "20", "b": "2M", "lag-in-frames": "0"}  # no hidden pictures: routing keeps those from the GPU
_FPS = Fraction(25)
# Containers are those of segments. Two groups of pictures; B-frames where there are any; sizes of whole macroblocks and
# others, which decoders have to crop.
CLIPS: Mapping[str, Format] = MappingProxyType(
    {
        "h264": Format("mp4", "libx264", "yuv420p", (340, 260), _FPS, _X264),
        "hevc": Format("mp4", "libx265", "yuv420p", (340, 260), _FPS, _X265),
        "hevc10": Format("mp4", "libx265", "yuv420p10le", (320, 240), _FPS, _X265),
        "mpeg4": Format("mp4", "mpeg4", "yuv420p", (320, 240), _FPS, _MPEG4),
        "vp9": Format("webm", "libvpx-vp9", "yuv420p", (322, 242), _FPS, _VPX),
        "vp8": Format("webm", "libvpx", "yuv420p", (320, 240), _FPS, _VPX),
    }
)


def working_codecs(
    decode: Callable[[SegmentSample], Tensor],
    codecs: Iterable[str] = tuple(CLIPS),
    *,
    short_side: int,
    timeout_s: float = TIMEOUT_S,
) -> dict[str, str | None]:
    """Return for every codec None if ``decode`` gets it right, else the reason why not, in one line.

    decode: as of ``SegmentDecoder``, which resizes to ``short_side``. codecs: names in ``CLIPS``; hevc10 stands
    for HEVC of 10 bits. timeout_s: for each codec.
    """
    return {codec: _within(timeout_s, partial(_fault, codec, decode, short_side)) for codec in codecs}


def _within(timeout_s: float, check: Callable[[], str | None]) -> str | None:
    """Return what ``check`` returns or raises; a thread that hangs is left behind."""
    answer: list[str | None] = []

    def run() -> None:
        try:
            answer.append(check())
        except Exception as error:  # noqa: BLE001 - pipelines raise RuntimeError for everything
            answer.append(in_words(error))

    thread = threading.Thread(target=run, name="selftest", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answer[0] if answer else f"no answer within {timeout_s:g} s"


def _fault(codec: str, decode: Callable[[SegmentSample], Tensor], short_side: int) -> str | None:
    """Return what is wrong with ``decode`` for a codec: with whole pictures, then with a part of them."""
    clip = CLIPS[codec]
    if not has_encoder(clip.encoder):
        return f"cannot be tested: no encoder {clip.encoder}"
    data = encode(clip)
    width, height = clip.size
    indices = np.unique([*range(1, NUM_FRAMES, 3), NUM_FRAMES - 1]).astype(np.int32)
    for display_size in (None, (height - 12, width - 20)):
        left_chroma = codec.removesuffix("10") in LEFT_CHROMA
        sample = SegmentSample(data, indices, (height, width), display_size, left_chroma=left_chroma)
        fault = _difference(decode(sample).cpu().numpy(), host_frames(sample), sample, short_side)
        if fault is not None:
            return fault
    return None


def _difference(images: UInt8, frames: UInt8, sample: SegmentSample, short_side: int) -> str | None:
    """Compare images (F, h, w, 3) with ``frames`` (F, H, W, 3), as FFmpeg decodes them."""
    wanted = resize(torch.from_numpy(frames), short_side).numpy()
    if images.shape != wanted.shape:
        return f"frames of shape {images.shape} came, not {wanted.shape}"
    numbers = [read_number(image, sample, frames.shape[1:3]) for image in images]
    if numbers != sample.indices.tolist():
        return f"frames {sample.indices.tolist()} were asked for, {numbers} came"
    mean = float(np.abs(images.astype(np.int16) - wanted).mean())
    if mean > MAX_MEAN_DIFFERENCE:
        return f"pixels differ from FFmpeg's by {mean:.1f} levels in the mean, at most {MAX_MEAN_DIFFERENCE:g} may be"
    return None


def host_frames(sample: SegmentSample) -> UInt8:
    """Decode ``sample`` with FFmpeg, to RGB as on the GPU: by BT.601, with smoothed chroma. Returns (F, H, W, 3)."""
    with av.open(io.BytesIO(bytes(sample.data)), "r") as container:
        pictures = list(container.decode(video=0))
    how = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    chosen = [pictures[i].reformat(format="rgb24", src_colorspace="ITU601", interpolation=how) for i in sample.indices]
    height, width = sample.display_size or (chosen[0].height, chosen[0].width)
    return np.stack([picture.to_ndarray()[:height, :width] for picture in chosen]).astype(np.uint8)


def read_number(image: UInt8, sample: SegmentSample, shown: tuple[int, ...]) -> int:
    """Return the number drawn into an image (h, w, 3), which shows (height, width) pixels of the picture resized."""
    height, width = sample.coded_size
    row = int(height / 8 * image.shape[0] / shown[0])
    columns = [int((bit + 0.5) * width / NUM_BITS * image.shape[1] / shown[1]) for bit in range(NUM_BITS)]
    return sum(1 << bit for bit, column in enumerate(columns) if image[row, column].mean() > 127)


def draw_number(number: int, size: tuple[int, int]) -> UInt8:
    """Draw a frame (H, W, 3): the number in black and white blocks at the top, below them colours that move."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(2 * np.pi * (x / width + 2 * y / height + number / 25 + k / 3)) for k in range(3)]
    frame = (128 + 70 * np.stack(waves, axis=-1)).astype(np.uint8)
    bits = number >> (np.arange(width) * NUM_BITS // width) & 1
    frame[: height // 4] = 255 * bits.astype(np.uint8)[:, None]
    return frame


def encode(clip: Format) -> bytes:
    """Return a file of ``NUM_FRAMES`` numbered frames."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"clip.{clip.container}")
        frames = (draw_number(number, clip.size) for number in range(NUM_FRAMES))
        encode_video(path, clip, frames, range(NUM_FRAMES + 1))
        return path.read_bytes()
