"""Colours of every matrix: the correction against the standard's formulas, and DALI with it against swscale.

What DALI's decoders on a GPU give is computed (tests/nv12_to_rgb.py).
"""

import io
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Interpolation
from av.video.stream import VideoStream
from numpy.typing import NDArray
from torch import Tensor

from sqt_fast.clips.colour import LEFT_CHROMA, from_bt601, from_nvdec, matrix_from_nvdec
from sqt_fast.engine.segment_decoder import SegmentDecoder, gpu_pipelines
from sqt_fast.engine.selftest import CLIPS, host_frames
from sqt_fast.engine.selftest import encode as encode_numbered
from sqt_fast.kernels.bilinear import bilinear_reference
from sqt_fast.pipelines.sample import SegmentSample
from tests.nv12_to_rgb import nv12_to_rgb, planes

UInt8 = NDArray[np.uint8]
EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
NUM_FRAMES = 6
WIDTH, HEIGHT = 192, 128

# R = Y + r Cr, G = Y - g Cb - h Cr, B = Y + b Cb with Cb, Cr in -0.5..0.5, as printed in BT.601, BT.709 and BT.2020
# and computed from the primaries' weights for the others.
FORMULAS = {
    1: (1.5748, 0.1873, 0.4681, 1.8556),
    4: (1.4000, 0.3318, 0.7119, 1.7800),
    7: (1.5760, 0.2266, 0.4766, 1.8260),
    9: (1.4746, 0.1646, 0.5714, 1.8814),
    10: (1.4746, 0.1646, 0.5714, 1.8814),
}
BT601 = (1.4020, 0.3441, 0.7141, 1.7720)
SWSCALE = {1: "ITU709", 7: "SMPTE240M", 9: "BT2020"}  # VP9 cannot say FCC


def apply(matrix: Tensor | None, images: Tensor) -> Tensor:
    return bilinear_reference(images, (images.shape[1], images.shape[2]), matrix=matrix)


def correct(images: Tensor, colorspace: int) -> Tensor:
    return apply(from_bt601(colorspace), images)


def rgb(ycc: NDArray[np.float64], r: float, g: float, h: float, b: float) -> NDArray[np.float64]:
    """ycc: (..., 3), luma 0..255 and chroma around 0."""
    y, cb, cr = ycc[..., 0], ycc[..., 1], ycc[..., 2]
    return np.stack([y + r * cr, y - g * cb - h * cr, y + b * cb], axis=-1)


@pytest.mark.parametrize("colorspace", FORMULAS)
def test_equals_the_standard(colorspace: int) -> None:
    """Convert YCbCr both ways; wherever BT.601 did not clip, the correction leads from one to the other."""
    rng = np.random.default_rng(colorspace)
    ycc = np.concatenate([rng.uniform(0, 255, (40, 50, 50, 1)), rng.uniform(-128, 128, (40, 50, 50, 2))], axis=-1)
    wrong, wanted = rgb(ycc, *BT601), rgb(ycc, *FORMULAS[colorspace])
    unclipped = ((wrong >= 0) & (wrong <= 255)).all(axis=-1)
    rounded = torch.from_numpy(wrong.clip(0, 255).round().astype(np.uint8))
    corrected = correct(rounded, colorspace)
    assert corrected.dtype == torch.uint8
    assert unclipped.sum() > 10_000
    difference = np.abs(corrected.numpy() - wanted.clip(0, 255))[unclipped]
    assert difference.max() <= 1.3  # rounded twice, the first time to be multiplied
    assert difference.mean() < 0.4


@pytest.mark.parametrize("colorspace", FORMULAS)
def test_grey_stays_grey(colorspace: int) -> None:
    grey = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3).contiguous()
    assert torch.equal(correct(grey, colorspace), grey)


@pytest.mark.parametrize("colorspace", [0, 2, 3, 5, 6, 8, 11, 14, 255])
def test_what_swscale_takes_for_bt601_is_left_alone(colorspace: int) -> None:
    assert from_bt601(colorspace) is None


def test_saturated_values_are_clamped_not_wrapped() -> None:
    images = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], dtype=torch.uint8)
    corrected = correct(images.view(1, 1, 4, 3), 1).view(4, 3)
    matrix = np.linalg.solve(  # rgb = matrix601 ycc, so the correction is matrix709 matrix601^-1, transposed here
        rgb(np.eye(3), *BT601), rgb(np.eye(3), *FORMULAS[1])
    )
    wanted = (images.numpy().astype(np.float64) @ matrix).clip(0, 255)
    assert np.abs(corrected.numpy() - wanted).max() <= 0.6


def encode(colorspace: str, *, full_range: bool = False) -> bytes:
    """Encode flat patches of many colours, moving, as VP9 with the matrix's tag."""
    rng = np.random.default_rng(3)
    patches = rng.integers(40, 216, (HEIGHT // 16, WIDTH // 16, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    file = io.BytesIO()
    with av.open(file, "w", format="webm") as container:
        options = {"deadline": "realtime", "cpu-used": "8", "crf": "4", "b": "0"}
        stream = container.add_stream("libvpx-vp9", 25, options)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        context = stream.codec_context
        context.colorspace = next(tag for tag, name in SWSCALE.items() if name == colorspace)
        context.color_range = color_range = 2 if full_range else 1
        context.thread_count = 1
        for i in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(np.roll(patches, 16 * i, 1), format="rgb24")
            frame = frame.reformat(
                format="yuv420p",
                dst_colorspace=colorspace,
                dst_color_range=ColorRange(color_range),
                interpolation=EXACT,
            )
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


@pytest.fixture(scope="module")
def decoder() -> Iterator[SegmentDecoder]:
    make_pipeline = gpu_pipelines(HEIGHT, device_id=None, num_threads=1)
    with closing(SegmentDecoder(make_pipeline, batch_size=1, num_pipelines=1)) as decoder:
        yield decoder


def swscale(data: bytes, colorspace: str) -> tuple[int, UInt8]:
    """Return the tag that PyAV finds, and the frames (F, H, W, 3) with their own colours."""
    with av.open(io.BytesIO(data), "r") as container:
        frames = list(container.decode(video=0))
    images = [f.reformat(format="rgb24", src_colorspace=colorspace, interpolation=EXACT).to_ndarray() for f in frames]
    return frames[0].colorspace, np.stack(images).astype(np.uint8)


@pytest.mark.parametrize("full_range", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize(("tag", "colorspace"), SWSCALE.items(), ids=SWSCALE.values())
def test_dali_and_correction_equal_swscale(
    decoder: SegmentDecoder, tag: int, colorspace: str, *, full_range: bool
) -> None:
    data = encode(colorspace, full_range=full_range)
    found, wanted = swscale(data, colorspace)
    sample = SegmentSample(data, np.arange(NUM_FRAMES, dtype=np.int32), (HEIGHT, WIDTH))
    images = decoder.decode(sample)
    corrected = decoder.decode(replace(sample, colorspace=found))
    unclipped = ((images.numpy() > 2) & (images.numpy() < 253)).all(axis=-1)
    assert unclipped.mean() > 0.9

    def mean_difference(ours: torch.Tensor) -> float:
        return float(np.abs(ours.numpy().astype(np.int16) - wanted)[unclipped].mean())

    assert found == tag
    assert mean_difference(corrected) < 0.5
    assert mean_difference(images) > 3.5


# What a GPU decoded --------------------------------------------------------------------------------------------------


def as_on_a_gpu(data: bytes, *, full_range: bool = False) -> Tensor:
    """Return the frames of a file (F, H, W, 3) as DALI's kernel makes them."""
    with av.open(io.BytesIO(data), "r") as container:
        pictures = [planes(picture) for picture in container.decode(video=0)]
    return torch.from_numpy(np.stack([nv12_to_rgb(*picture, full_range=full_range) for picture in pictures]))


@pytest.mark.parametrize(("codec", "left"), [("vp8", False), ("h264", True), ("hevc", True)])
def test_what_a_gpu_decoded_is_put_right(codec: str, *, left: bool) -> None:
    """An H100 showed means of 0.753 for VP8 and 0.776 for H.264 after a resize, then DALI's; these are before it."""
    data = encode_numbered(CLIPS[codec])
    images = as_on_a_gpu(data)[::5]
    indices = np.arange(0, 5 * len(images), 5, dtype=np.int32)
    truth = host_frames(SegmentSample(data, indices, CLIPS[codec].size[::-1])).astype(np.int16)
    raw = images.numpy() - truth
    np.testing.assert_allclose(raw.mean(axis=(0, 1, 2)), [0.79, -0.5, 0.95], atol=0.02)
    assert 0.73 < np.abs(raw).mean() < 0.77
    matrix, size = from_nvdec(2, full_range=False), (images.shape[1], images.shape[2])
    mended = [
        np.abs(bilinear_reference(images, size, matrix=matrix, chroma_axis=axis).numpy() - truth) for axis in (None, 2)
    ]
    assert mended[left].mean() < 0.25
    assert mended[left].max() <= 2
    assert mended[not left].mean() > 0.3, "where chroma lies would make no difference"
    assert left == (codec in LEFT_CHROMA)


@pytest.mark.parametrize("full_range", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("colorspace", ["ITU709", "SMPTE240M", "BT2020"])
def test_every_matrix_is_right_after_a_gpu(colorspace: str, *, full_range: bool) -> None:
    data = encode(colorspace, full_range=full_range)
    tag, wanted = swscale(data, colorspace)
    images = as_on_a_gpu(data, full_range=full_range)
    unclipped = ((images.numpy() > 2) & (images.numpy() < 253)).all(axis=-1)

    def difference(matrix: Tensor | None) -> NDArray[np.int16]:
        away: NDArray[np.int16] = np.abs(apply(matrix, images).numpy() - wanted.astype(np.int16))[unclipped]
        return away

    ours = difference(from_nvdec(tag, full_range=full_range))
    assert ours.mean() < 0.3  # bytes, once rounded, are multiplied and rounded again
    assert ours.max() <= 2
    assert difference(from_bt601(tag)).mean() > 0.6


@pytest.mark.parametrize("full_range", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("colorspace", [2, *FORMULAS])
def test_grey_stays_grey_after_a_gpu(colorspace: int, *, full_range: bool) -> None:
    """Within a level or so: half a level cannot be added to green. Black is black."""
    luma = np.arange(256, dtype=np.uint8).reshape(16, 16)
    images = torch.from_numpy(nv12_to_rgb(luma, *np.full((2, 8, 8), 128, np.uint8), full_range=full_range))[None]
    mended = apply(from_nvdec(colorspace, full_range=full_range), images)[0].numpy()
    black, white = (0, 255) if full_range else (16, 235)
    grey = ((luma - float(black)) * 255 / (white - black)).clip(0, 255)
    assert (mended[luma <= black] == 0).all()
    assert (mended[luma >= white] >= 254).all()
    assert np.abs(mended - grey[..., None]).max() <= 1.2


@pytest.mark.parametrize("full_range", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("colorspace", [2, 1, 9])
def test_both_forms_of_the_matrix_agree(colorspace: int, *, full_range: bool) -> None:
    fixed = from_nvdec(colorspace, full_range=full_range)
    assert (fixed.shape, fixed.dtype) == ((3, 4), torch.int32)
    matrix = matrix_from_nvdec(colorspace, full_range=full_range)
    np.testing.assert_allclose(fixed.numpy() / 65536, matrix, atol=1e-5)
