"""Temporal importance: two layers on the mean of every channel."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sqt_fast.kernels.importance import importance, importance_reference
from sqt_fast.kernels.launch import Config, Problem
from tests.accuracy import Draw, assert_as_good, each_dtype, each_tiling, moved, products_alike, with_tiles

# samples, tiles a sample, pixels a tile, channels
MAPS = {
    "one sample": (1, 1, 49, 32),
    "many samples": (37, 1, 9, 64),
    "tiles": (3, 9, 99, 48),
    "a pixel": (5, 1, 1, 16),
    "more tiles than are loaded at once": (2, 25, 9, 32),
    "channels that are no power of two": (18, 2, 9, 80),
}


def layers(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor) -> Tensor:
    """Return p as the release computes it: pooling and two convolutions."""
    hidden = F.relu(F.conv2d(F.adaptive_avg_pool2d(x, 1), weight1.t()[:, :, None, None], bias1))
    return torch.sigmoid(F.conv2d(hidden, weight2.t()[:, :, None, None]))[:, :, 0, 0]


@each_dtype
@pytest.mark.parametrize("shape", MAPS.values(), ids=MAPS)
def test_importance_is_that_of_the_release(
    kernel_device: str, shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    samples, tiles, pixels, channels = shape
    draw = Draw(kernel_device, dtype)
    x = draw.normal(samples, channels, tiles, pixels) + draw.normal(samples, channels, 1, 1)
    weights = (
        draw.normal(channels, channels, std=2 * channels**-0.5),
        draw.normal(channels),
        draw.normal(channels, channels, std=2 * channels**-0.5),
    )
    shares = draw.placed(x.cpu().sum(3, dtype=torch.float32).permute(0, 2, 1), torch.float32)
    p = importance(shares, *weights, pixels=tiles * pixels)
    assert samples == 1 or p.float().std(0).mean() > 0.05, "the samples should differ"
    assert_as_good(p, layers, (x, *weights))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # of the interpreter: infinity is right
@each_dtype
def test_importance_of_extremes(kernel_device: str, dtype: torch.dtype) -> None:
    """Gates that are wholly open or closed, sums that 16 bits do not hold, and no NaN from either."""
    eye = torch.eye(16, dtype=dtype, device=kernel_device)
    second = eye * torch.tensor([200.0, -200.0] * 8, dtype=dtype, device=kernel_device)
    shares = torch.full((1, 2, 16), 1e6, device=kernel_device)
    p = importance(shares, eye, torch.zeros(16, dtype=dtype, device=kernel_device), second, pixels=2_000_000)
    assert p.tolist() == [[1.0, 0.0] * 8]


def arguments(draw: Draw, samples: int, tiles: int, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return shares, weights and bias."""
    shares = draw.normal(samples, tiles, channels, std=10, dtype=torch.float32)
    weights = [draw.normal(channels, channels, std=2 * channels**-0.5) for _ in range(2)]
    return shares, weights[0], draw.normal(channels), weights[1]


@each_dtype
@each_tiling
def test_tiles(kernel_device: str, tiles: Callable[[Problem], Config], dtype: torch.dtype) -> None:
    args = arguments(Draw(kernel_device, dtype), 35, 3, 96)
    with with_tiles(tiles):
        p = importance(*args, pixels=49)
    assert_as_good(p, partial(importance_reference, pixels=49), args)


@each_dtype
@products_alike()
def test_a_sample_is_the_same_in_any_company(kernel_device: str, dtype: torch.dtype) -> None:
    shares, *weights = arguments(Draw(kernel_device, dtype), 20, 2, 48)
    p = importance(shares, *weights, pixels=98)
    for chosen in ([3], [19, 0], list(range(5, 20))):
        assert torch.equal(importance(shares[chosen], *weights, pixels=98), p[chosen])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "shares of 16 bits": ({"shares": torch.zeros(2, 3, 32).half()}, "shares of torch.float16: give torch.float32"),
    "a weight too wide": ({"weight1": torch.zeros(32, 48)}, "weight1 of shape (32, 48): give (32, 32)"),
    "weights of two dtypes": ({"weight2": torch.zeros(32, 32).half()}, "weight2 of torch.float16: give torch.float32"),
    "a bias elsewhere": ({"bias1": torch.zeros(32, device="meta")}, "bias1 on meta: move it to "),
    "odd channels": (
        {
            "shares": torch.zeros(2, 3, 24),
            "weight1": torch.zeros(24, 24),
            "bias1": torch.zeros(24),
            "weight2": torch.zeros(24, 24),
        },
        "24 channels: give a multiple of 16",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_what_is_refused(kernel_device: str, change: dict[str, Any], message: str) -> None:
    right = {
        "shares": torch.zeros(2, 3, 32),
        "weight1": torch.zeros(32, 32),
        "bias1": torch.zeros(32),
        "weight2": torch.zeros(32, 32),
    }
    given = {name: moved(value, kernel_device) for name, value in {**right, **change}.items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        importance(**given, pixels=49)
