"""The CPU resize, against a float64 bilinear of our own, OpenCV frame by frame, and mmcv's rule for the size."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sqt_fast.clips.resize import resize, upright
from sqt_fast.video.probe import Orientation

UInt8 = NDArray[np.uint8]


def picture(height: int, width: int, num_frames: int = 2) -> UInt8:
    """Edges, texture and noise: discs over a gradient, another for each frame."""
    rng = np.random.default_rng([height, width, num_frames])
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for frame in frames:
        frame[:] = np.linspace(0, 255, width)[:, None]
        for _ in range(40):
            centre = (int(rng.integers(width)), int(rng.integers(height)))
            colour = tuple(map(int, rng.integers(0, 256, 3)))
            cv2.circle(frame, centre, int(rng.integers(2, max(3, min(height, width) // 4))), colour, -1)
        frame[: height // 2] ^= rng.integers(0, 32, (height // 2, width, 3), np.uint8)
    return frames


def new_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return what mmcv's ``rescale_size`` gives."""
    scale = short_side / min(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def opencv(frames: UInt8, short_side: int) -> NDArray[np.int64]:
    height, width = new_size(frames.shape[1], frames.shape[2], short_side)
    return np.stack([cv2.resize(f, (width, height), interpolation=cv2.INTER_LINEAR) for f in frames]).astype(np.int64)


def bilinear(frames: UInt8, height: int, width: int) -> NDArray[np.float64]:
    """Resize by the formula: pixel centres, edges repeated, not rounded."""

    def weights(old: int, new: int) -> NDArray[np.float64]:
        centres = (np.arange(new) + 0.5) * old / new - 0.5
        first = np.floor(centres).astype(int)
        matrix = np.zeros((new, old))
        for offset, share in ((0, 1 - (centres - first)), (1, centres - first)):
            np.add.at(matrix, (np.arange(new), np.clip(first + offset, 0, old - 1)), share)
        return matrix

    rows, columns = weights(frames.shape[1], height), weights(frames.shape[2], width)
    resized: NDArray[np.float64] = np.einsum(
        "ya,xb,fabc->fyxc", rows, columns, frames.astype(np.float64), optimize=True
    )
    return resized


def resized(frames: UInt8, short_side: int) -> NDArray[np.int64]:
    images = resize(torch.from_numpy(frames), short_side)
    assert images.dtype == torch.uint8
    assert images.is_contiguous()
    return images.numpy().astype(np.int64)


SIZES = {
    "landscape down": (480, 640),
    "landscape down a lot": (720, 1280),
    "landscape up": (150, 200),
    "portrait": (426, 240),
    "portrait down": (640, 360),
    "square": (300, 300),
    "odd": (241, 333),
    "very wide": (70, 401),
    "twice as small": (112, 200),
    "one pixel too many": (257, 345),
    "the long side is as wanted": (160, 256),
}


@pytest.mark.parametrize("short_side", [224, 256, 286])
@pytest.mark.parametrize(("height", "width"), SIZES.values(), ids=SIZES)
def test_equals_opencv(height: int, width: int, short_side: int) -> None:
    frames = picture(height, width)
    seen, wanted = resized(frames, short_side), opencv(frames, short_side)
    assert seen.shape == wanted.shape
    assert min(seen.shape[1:3]) == short_side
    assert np.array_equal(seen, wanted)
    assert np.abs(seen - bilinear(frames, *wanted.shape[1:3])).max() < 1  # fixed point rounds twice


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(16, 300),
    width=st.integers(16, 300),
    num_frames=st.integers(1, 4),
    short_side=st.sampled_from([64, 224]),
)
def test_equals_opencv_at_any_size(height: int, width: int, num_frames: int, short_side: int) -> None:
    frames = picture(height, width, num_frames)
    halves, rest = divmod(2 * max(height, width) * short_side, min(height, width))
    assume(rest or halves % 2 == 0)  # a side of exactly so many and a half may be rounded either way
    assert np.array_equal(resized(frames, short_side), opencv(frames, short_side))


@pytest.mark.parametrize("short_side", [224, 256, 286])
def test_size_of_common_formats_is_mmcvs(short_side: int) -> None:
    common = [(144, 176), (180, 320), (240, 320), (240, 426), (270, 480), (288, 352), (256, 340), (360, 640)]
    common += [(480, 640), (480, 854), (480, 720), (576, 720), (576, 1024), (720, 1280), (1080, 1920), (1280, 720)]
    common += [(426, 240), (568, 320), (848, 480), (170, 400), (136, 320), (191, 255), (642, 642), (1080, 608)]
    for height, width in common:
        shape = resized(np.zeros((1, height, width, 3), np.uint8), short_side).shape
        assert tuple(shape) == (1, *new_size(height, width, short_side), 3), (height, width)


@pytest.mark.parametrize(("height", "width"), [(64, 90), (90, 64), (64, 64)], ids=["landscape", "portrait", "square"])
def test_the_right_size_is_left_as_it_is(height: int, width: int) -> None:
    frames = picture(height, width, 3)
    assert np.array_equal(resized(frames, 64), frames)


def test_each_frame_of_a_chunk_is_resized_alone() -> None:
    frames = picture(100, 140, 7)
    together = resized(frames, 64)
    for i, frame in enumerate(frames):
        assert np.array_equal(resized(frame[None], 64)[0], together[i])


@pytest.mark.parametrize("size", [(80, 120), (64, 90)], ids=["resized", "the right size"])
def test_the_frames_are_left_alone_and_may_be_written_over(size: tuple[int, int]) -> None:
    """The memory that a decoder writes to is used again."""
    frames = picture(*size)
    before = frames.copy()
    images = resize(torch.from_numpy(frames), 64)
    kept = images.clone()
    assert np.array_equal(frames, before)
    frames[:] = 0
    assert torch.equal(images, kept)


def test_turned_frames_are_resized_as_they_are_shown() -> None:
    """A view with strides of its own, as ``upright`` gives."""
    frames = picture(120, 200)
    turned = upright(torch.from_numpy(frames), Orientation(-90, transpose=True, flip_x=True))
    assert np.array_equal(resize(turned, 64).numpy(), resized(np.rot90(frames, -1, (1, 2)).copy(), 64))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16], ids=str)
def test_upright_takes_any_dtype(dtype: torch.dtype) -> None:
    images = torch.arange(2 * 3 * 5 * 3).reshape(2, 3, 5, 3).to(dtype)
    turned = upright(images, Orientation(-90, transpose=True, flip_x=True))
    assert turned.shape == (2, 5, 3, 3)
    assert torch.equal(turned, torch.rot90(images, -1, (1, 2)))
