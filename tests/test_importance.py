"""The importance of every channel."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sqt_fast.kernels.importance import importance, importance_reference
from sqt_fast.kernels.launch import Config, Problem
from tests.accuracy import Draw, assert_as_good, each_dtype, each_tiling, moved, products_alike, with_tiles

# samples, tiles, channels, pixels
SHAPES = {
    "one sample": (1, 1, 32, 49),
    "a tile of samples": (16, 3, 64, 300),
    "more than a tile": (37, 4, 32, 512),
    "many tiles": (3, 9, 16, 1100),
    "one pixel": (5, 1, 48, 1),
    "channels that are no power of two": (7, 2, 80, 200),
    "several groups of channels": (3, 2, 192, 200),
}


def arguments(draw: Draw, samples: int, tiles: int, channels: int, pixels: int) -> tuple[Tensor, ...]:
    """Return sums, w1, b1 and w2. Means are of the size of 1 and differ from sample to sample."""
    sums = draw.normal(samples, tiles, channels, std=pixels / tiles**0.5, dtype=torch.float32)
    w1, w2 = (draw.normal(channels, channels, std=channels**-0.5) for _ in range(2))
    return sums, w1, draw.bias(channels), w2


@each_dtype
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes(kernel_device: str, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    args = arguments(Draw(kernel_device, dtype), *shape)
    p = importance(*args, pixels=shape[3])
    assert p.dtype == dtype
    assert ((p >= 0) & (p <= 1)).all()
    assert shape[0] == 1 or p.float().std(0).mean() > 0.05, "the samples should differ"
    assert_as_good(p, _reference(shape[3]), args)


def _reference(pixels: int) -> Callable[..., Tensor]:
    return lambda sums, w1, b1, w2: importance_reference(sums, w1, b1, w2, pixels=pixels)


@each_dtype
@each_tiling
def test_tiles(kernel_device: str, tiles: Callable[[Problem], Config], dtype: torch.dtype) -> None:
    args = arguments(Draw(kernel_device, dtype), 19, 5, 128, 600)
    with with_tiles(tiles):
        p = importance(*args, pixels=600)
    assert_as_good(p, _reference(600), args)


@each_dtype
@products_alike()
def test_a_sample_is_the_same_in_any_company(kernel_device: str, dtype: torch.dtype) -> None:
    sums, w1, b1, w2 = arguments(Draw(kernel_device, dtype), 21, 3, 48, 300)
    p = importance(sums, w1, b1, w2, pixels=300)
    for chosen in ([17], [20, 0], list(range(20, -1, -1))):
        assert torch.equal(importance(sums[chosen], w1, b1, w2, pixels=300), p[chosen])


@each_dtype
def test_extremes(kernel_device: str, dtype: torch.dtype) -> None:
    """Gates that are wholly open or closed, and no NaN from either."""
    w1 = torch.eye(16, dtype=dtype, device=kernel_device)
    w2 = w1 * torch.tensor([200.0, -200.0] * 8, dtype=dtype, device=kernel_device)
    sums = torch.ones(1, 1, 16, device=kernel_device)
    with np.errstate(over="ignore"):  # the interpreter's exponential
        p = importance(sums, w1, torch.zeros(16, device=kernel_device), w2, pixels=1)
    assert p.tolist() == [[1.0, 0.0] * 8]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "sums of 16 bits": ({"sums": torch.zeros(3, 2, 32).half()}, "sums of torch.float16: give torch.float32"),
    "not dense": ({"sums": torch.zeros(3, 32, 2).mT}, "sums with strides (64, 1, 2): call contiguous() first"),
    "w1 not square": ({"w1": torch.zeros(32, 16)}, "w1 of shape (32, 16): give (32, 32)"),
    "w2 of another dtype": ({"w2": torch.zeros(32, 32).half()}, "w2 of torch.float16: give torch.float32"),
    "b1 too short": ({"b1": torch.zeros(31)}, "b1 of shape (31,): give (32,)"),
    "b1 elsewhere": ({"b1": torch.zeros(32, device="meta")}, "b1 on meta: move it to "),
    "odd channels": (
        {"sums": torch.zeros(3, 2, 8), "w1": torch.zeros(8, 8), "b1": torch.zeros(8), "w2": torch.zeros(8, 8)},
        "8 channels: give a multiple of 16",
    ),
    "float64": (
        {"w1": torch.zeros(32, 32).double(), "w2": torch.zeros(32, 32).double()},
        "tensors of torch.float64: give one of torch.float32, torch.float16, torch.bfloat16",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_what_is_refused(kernel_device: str, change: dict[str, Any], message: str) -> None:
    right = {"sums": torch.zeros(3, 2, 32), "b1": torch.zeros(32)}
    right |= {name: torch.zeros(32, 32) for name in ("w1", "w2")}
    with pytest.raises(ValueError, match=re.escape(message)):
        importance(pixels=9, **{name: moved(value, kernel_device) for name, value in {**right, **change}.items()})
