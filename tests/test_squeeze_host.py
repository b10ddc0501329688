"""Squeezing one clip on the host, against the formula in float64."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from sqt_fast.kernels.squeeze_host import MEAN, STD, squeeze_reference


def formula(frames: Tensor, index: list[int]) -> NDArray[np.float64]:
    """Channel c * T + t of pixel (y, x) is frame index[t] there, one number at a time."""
    _, height, width, _ = frames.shape
    out = np.full((3 * len(index), height, width), np.nan)
    for c in range(3):
        for t, number in enumerate(index):
            out[c * len(index) + t] = (frames[number, :, :, c].numpy().astype(np.float64) - MEAN[c]) / STD[c]
    return out


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(sum(shape)))


CASES = {
    "a clip": ((16, 8, 12, 3), list(range(16))),
    "odd sizes": ((5, 7, 3, 3), [0, 1, 2, 3, 4]),
    "one pixel": ((2, 1, 1, 3), [1, 0]),
    "one frame": ((1, 4, 4, 3), [0]),
    "repeats, out of order": ((4, 5, 6, 3), [3, 3, 0, 2, 0, 0, 1, 3, 2, 2, 1, 0, 3, 3, 3, 1]),
}


@pytest.mark.parametrize(("shape", "index"), CASES.values(), ids=CASES)
def test_equals_the_formula(shape: tuple[int, ...], index: list[int]) -> None:
    frames = noise(*shape)
    clip = squeeze_reference(frames[index])
    assert clip.dtype == torch.float32
    assert clip.shape == (3 * len(index), *shape[1:3])
    np.testing.assert_allclose(clip.numpy(), formula(frames, index), rtol=1e-6, atol=1e-6)


def test_frames_may_be_a_view() -> None:
    frames = noise(4, 9, 11, 3)
    view = frames[::2, 1:8, 2:9].transpose(1, 2)
    np.testing.assert_allclose(squeeze_reference([view[1], view[0]]).numpy(), formula(view, [1, 0]), atol=1e-6)


def test_frames_are_left_alone() -> None:
    frames = noise(2, 4, 4, 3)
    before = frames.clone()
    squeeze_reference(frames)
    assert torch.equal(frames, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_is_channels_last(dtype: torch.dtype) -> None:
    clip = squeeze_reference(noise(16, 6, 10, 3), dtype=dtype)
    assert clip.stride() == (1, 10 * 48, 48)
    assert clip[None].is_contiguous(memory_format=torch.channels_last)


def test_bfloat16_is_rounded_once() -> None:
    """Every level of every colour: the nearest bfloat16 of the exact value, which rounding twice would miss."""
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    clip = squeeze_reference(levels, dtype=torch.bfloat16)
    exact = torch.from_numpy(formula(levels, [0]))
    spacing = torch.exp2(torch.floor(torch.log2(exact.abs())) - 7)  # between neighbours: 8 significant bits
    assert clip.dtype == torch.bfloat16
    assert ((clip.double() - exact).abs() <= spacing / 2 * (1 + 1e-4)).all()
