"""The depth-wise convolution whose windows do not overlap."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sqt_fast.kernels.downsample import downsample, downsample_reference
from sqt_fast.kernels.launch import Config, Problem
from tests.accuracy import Draw, assert_as_good, each_dtype, each_tiling, moved, with_tiles

# batch, height, width, channels, stride
SHAPES = {
    "tiles of pixels": (2, 22, 20, 64, 2),
    "tiles of channels": (2, 4, 6, 288, 2),
    "odd sizes": (2, 7, 5, 32, 2),
    "an odd height": (3, 9, 4, 16, 2),
    "an odd width": (3, 4, 9, 16, 2),
    "one window": (1, 2, 2, 16, 2),
    "many samples in a tile": (9, 3, 2, 32, 2),
    "channels that are no power of two": (2, 6, 6, 80, 2),
    "channels that are no multiple of anything": (2, 6, 6, 13, 2),
    "stride 1": (2, 5, 3, 16, 1),
    "stride 3, rests of two": (2, 8, 11, 16, 3),
}


def arguments(
    draw: Draw, batch: int, height: int, width: int, channels: int, stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, weight and bias."""
    weight = draw.normal(stride, stride, channels, std=1 / stride)
    return draw.normal(batch, height, width, channels), weight, draw.bias(channels)


@each_dtype
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes(kernel_device: str, shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    args = arguments(Draw(kernel_device, dtype), *shape)
    assert_as_good(downsample(*args), downsample_reference, args)


@each_dtype
@each_tiling
def test_tiles(kernel_device: str, tiles: Callable[[Problem], Config], dtype: torch.dtype) -> None:
    args = arguments(Draw(kernel_device, dtype), 3, 15, 17, 80, 2)
    with with_tiles(tiles):
        out = downsample(*args)
    assert_as_good(out, downsample_reference, args)


@each_dtype
def test_a_sample_is_the_same_in_any_company(kernel_device: str, dtype: torch.dtype) -> None:
    x, weight, bias = arguments(Draw(kernel_device, dtype), 5, 9, 6, 48, 2)
    out = downsample(x, weight, bias)
    for chosen in ([3], [4, 0], [4, 3, 2, 1, 0]):
        assert torch.equal(downsample(x[chosen], weight, bias), out[chosen])


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 4),
    size=st.tuples(st.integers(3, 20), st.integers(3, 20)),
    channels=st.integers(1, 90),
    stride=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_shape(
    kernel_device: str, batch: int, size: tuple[int, int], channels: int, stride: int, dtype: torch.dtype
) -> None:
    args = arguments(Draw(kernel_device, dtype), batch, *size, channels, stride)
    assert_as_good(downsample(*args), downsample_reference, args)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "channels first in memory": (
        {"x": torch.zeros(2, 32, 4, 6).permute(0, 2, 3, 1)},
        "x with strides (768, 6, 1, 24): call contiguous() first",
    ),
    "windows that are not square": ({"weight": torch.zeros(2, 3, 32)}, "weight of shape (2, 3, 32): give (2, 2, 32)"),
    "other channels": ({"weight": torch.zeros(2, 2, 16)}, "weight of shape (2, 2, 16): give (2, 2, 32)"),
    "weights of 16 bits": ({"weight": torch.zeros(2, 2, 32).half()}, "weight of torch.float16: give torch.float32"),
    "a bias too long": ({"bias": torch.zeros(33)}, "bias of shape (33,): give (32,)"),
    "a bias elsewhere": ({"bias": torch.zeros(32, device="meta")}, "bias on meta: move it to "),
    "float64": (
        {"x": torch.zeros(2, 4, 6, 32).double(), "weight": torch.zeros(2, 2, 32).double()},
        "tensors of torch.float64: give one of torch.float32, torch.float16, torch.bfloat16",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_what_is_refused(kernel_device: str, change: dict[str, Any], message: str) -> None:
    right = {"x": torch.zeros(2, 4, 6, 32), "weight": torch.zeros(2, 2, 32), "bias": torch.zeros(32)}
    with pytest.raises(ValueError, match=re.escape(message)):
        downsample(**{name: moved(value, kernel_device) for name, value in {**right, **change}.items()})
