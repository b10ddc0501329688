"""Max pooling: exact, so equal to PyTorch's to the bit."""

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sqt_fast.kernels.launch import Config, Problem
from sqt_fast.kernels.pool import pool, pool_reference
from tests.accuracy import Draw, each_dtype, each_tiling, with_tiles

# batch, height, width, channels
SHAPES = {
    "tiles of pixels": (2, 24, 22, 64),
    "tiles of channels": (2, 6, 5, 144),
    "odd sizes": (2, 7, 9, 32),
    "an odd height": (2, 5, 8, 16),
    "an odd width": (2, 8, 5, 16),
    "one pixel": (1, 1, 1, 16),
    "one pixel a sample": (5, 1, 1, 16),
    "one row": (2, 1, 12, 16),
    "one column": (2, 11, 1, 16),
    "many samples in a tile": (9, 3, 4, 16),
    "channels that are no power of two": (2, 6, 6, 80),
    "channels that are no multiple of anything": (2, 6, 6, 13),
}


@each_dtype
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes(kernel_device: str, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    x = Draw(kernel_device, dtype).normal(*shape)
    out = pool(x)
    assert out.dtype == dtype
    assert torch.equal(out, pool_reference(x))


@each_dtype
@each_tiling
def test_tiles(kernel_device: str, tiles: Callable[[Problem], Config], dtype: torch.dtype) -> None:
    x = Draw(kernel_device, dtype).normal(3, 19, 21, 80)
    with with_tiles(tiles):
        out = pool(x)
    assert torch.equal(out, pool_reference(x))


@each_dtype
def test_what_lies_outside_never_wins(kernel_device: str, dtype: torch.dtype) -> None:
    x = Draw(kernel_device, dtype).normal(2, 7, 6, 16).abs().neg()
    assert torch.equal(pool(x), pool_reference(x))


@each_dtype
def test_values_that_are_not_finite(kernel_device: str, dtype: torch.dtype) -> None:
    x = Draw(kernel_device, dtype).normal(2, 9, 9, 16)
    x[0, 2, 2, 3], x[0, 8, 8, 4], x[1, 0, 0, 5] = torch.nan, torch.inf, -torch.inf
    x[1, :, :, 6] = -torch.inf
    out = pool(x)
    assert torch.equal(out.isnan(), pool_reference(x).isnan())
    assert out.isnan().sum() == 1
    assert torch.equal(out.nan_to_num(7.0, 8.0, 9.0), pool_reference(x).nan_to_num(7.0, 8.0, 9.0))


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(1, 20), st.integers(1, 90)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_shape(kernel_device: str, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    x = Draw(kernel_device, dtype).normal(*shape)
    assert torch.equal(pool(x), pool_reference(x))


def test_memory_must_be_channels_last(kernel_device: str) -> None:
    x = torch.zeros(2, 16, 4, 5, device=kernel_device).permute(0, 2, 3, 1)
    with pytest.raises(ValueError, match=re.escape("x with strides (320, 5, 1, 20): call contiguous() first")):
        pool(x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32], ids=str)
def test_dtypes_that_are_refused(kernel_device: str, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"tensors of {dtype}: give one of torch.float32"):
        pool(torch.zeros(2, 4, 5, 16, dtype=dtype, device=kernel_device))
