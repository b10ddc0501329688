"""Find out which codecs a GPU decoder gets right, before it is trusted with any.

A small clip of each codec is made here, with the number of every frame drawn into it, and decoded on both routes. What
comes back must be the frames that were asked for, with the colours that FFmpeg gives. Whatever goes wrong, an encoder
that is missing or a decoder that hangs, turns the codec off and nothing else.
"""

import io
import threading
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import NamedTuple

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream
from numpy.typing import NDArray
from torch import Tensor

from sqt_fast.clips.resize import resize
from sqt_fast.pipelines.dali_errors import in_words
from sqt_fast.pipelines.sample import SegmentSample

UInt8 = NDArray[np.uint8]

NUM_FRAMES = 40
NUM_BITS = 6
# Levels. Rounding differs by 0.1; the wrong matrix by 6, another frame by more.
MAX_MEAN_DIFFERENCE = 3.0
TIMEOUT_S = 60.0


class Clip(NamedTuple):
    """How a clip is encoded. size: (width, height)."""

    encoder: str
    container: str
    size: tuple[int, int]
    pix_fmt: str = "yuv420p"
    options: Mapping[str, str] = MappingProxyType({})


_X265 = "log-level=none:pools=none:frame-threads=1:bframes=2:keyint=20:open-gop=0"
# Containers are those of segments. Two groups of pictures; B-frames where there are any; sizes of whole macroblocks and
# others, which decoders have to crop.
CLIPS: Mapping[str, Clip] = MappingProxyType(
    {
        "h264": Clip("libx264", "mp4", (340, 260), options={"preset": "veryfast", "bf": "2", "g": "20"}),
        "hevc": Clip("libx265", "mp4", (340, 260), options={"preset": "ultrafast", "x265-params": _X265}),
        "hevc10": Clip(
            "libx265", "mp4", (320, 240), "yuv420p10le", options={"preset": "ultrafast", "x265-params": _X265}
        ),
        "mpeg4": Clip("mpeg4", "mp4", (320, 240), options={"bf": "2", "g": "20", "qmin": "2", "qmax": "4"}),
        "vp9": Clip("libvpx-vp9", "webm", (322, 242), options={"deadline": "realtime", "cpu-used": "8", "g": "20"}),
        "vp8": Clip("libvpx", "webm", (320, 240), options={"deadline": "realtime", "cpu-used": "8", "g": "20"}),
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

    decode: as of ``nvdec.SegmentDecoder``, which resizes to ``short_side``. codecs: names in ``CLIPS``; hevc10 stands
    for HEVC of 10 bits. timeout_s: for each codec.
    """
    return {codec: _within(timeout_s, lambda c=codec: _fault(c, decode, short_side)) for codec in codecs}  # type: ignore[misc]  # mypy does not infer c


def _within(timeout_s: float, check: Callable[[], str | None]) -> str | None:
    """Return what ``check`` returns or raises; a thread that hangs is left behind."""
    answer: list[str | None] = []

    def run() -> None:
        try:
            answer.append(check())
        except Exception as error:  # noqa: BLE001 - DALI raises RuntimeError for everything
            answer.append(in_words(error))

    thread = threading.Thread(target=run, name="selftest", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answer[0] if answer else f"no answer within {timeout_s:g} s"


def _fault(codec: str, decode: Callable[[SegmentSample], Tensor], short_side: int) -> str | None:
    """Return what is wrong with ``decode`` for a codec: with whole pictures, then with a part of them."""
    clip = CLIPS[codec]
    try:
        av.codec.Codec(clip.encoder, "w")
    except av.codec.codec.UnknownCodecError:
        return f"cannot be tested: no encoder {clip.encoder}"
    data = encode(clip)
    width, height = clip.size
    indices = np.unique([*range(1, NUM_FRAMES, 3), NUM_FRAMES - 1]).astype(np.int32)
    for display_size in (None, (height - 12, width - 20)):
        sample = SegmentSample(data, indices, (height, width), display_size)
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
    """Decode ``sample`` with FFmpeg and convert as DALI does: BT.601, smoothed chroma. Returns (F, H, W, 3)."""
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


def encode(clip: Clip) -> bytes:
    """Return a file of ``NUM_FRAMES`` numbered frames."""
    file = io.BytesIO()
    with av.open(file, "w", format=clip.container) as container:
        stream = container.add_stream(clip.encoder, 25, dict(clip.options))
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = clip.size
        stream.pix_fmt, stream.bit_rate = clip.pix_fmt, 2_000_000
        stream.codec_context.thread_count = 1  # encoders of such small pictures only wait for each other
        for number in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(draw_number(number, clip.size), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()
