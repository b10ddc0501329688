"""Sums over pixels: in float32 whatever the dtype, and the same to the bit in any batch."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sqt_fast.kernels.launch import Config, Problem
from sqt_fast.kernels.sums import sums, sums_reference
from tests.accuracy import Draw, assert_as_good, each_dtype, each_tiling, with_tiles

# samples, rows, channels
SHAPES = {
    "many rows": (2, 300, 64),
    "many channels": (3, 49, 208),
    "one row": (2, 1, 32),
    "one channel": (2, 70, 1),
    "one of all": (1, 1, 1),
    "channels that are no power of two": (2, 65, 80),
}


@each_dtype
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes(kernel_device: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x = Draw(kernel_device, dtype).normal(*shape)
    assert_as_good(sums(x), sums_reference, [x])


@each_tiling
def test_tiles(kernel_device: str, tiles: Callable[[Problem], Config]) -> None:
    x = Draw(kernel_device, torch.bfloat16).normal(3, 150, 80)
    with with_tiles(tiles):
        assert_as_good(sums(x), sums_reference, [x])


@each_dtype
def test_a_sample_is_the_same_in_any_company(kernel_device: str, dtype: torch.dtype) -> None:
    x = Draw(kernel_device, dtype).normal(5, 130, 48)
    together = sums(x)
    for chosen in ([2], [4, 0], [3, 3, 1]):
        assert torch.equal(sums(x[chosen].contiguous()), together[chosen])


def test_large_sums_of_16_bits_do_not_overflow(kernel_device: str) -> None:
    x = torch.full((1, 200, 16), 60000.0, dtype=torch.float16, device=kernel_device)
    assert torch.equal(sums(x).cpu(), torch.full((1, 1, 16), 200 * 60000.0))


def test_not_dense_is_refused(kernel_device: str) -> None:
    x = torch.zeros(2, 4, 16, device=kernel_device).transpose(1, 2)
    with pytest.raises(ValueError, match=r"x with strides .* call contiguous\(\) first"):
        sums(x)


@settings(deadline=None, max_examples=25)
@given(samples=st.integers(1, 4), rows=st.integers(1, 140), channels=st.integers(1, 90))
def test_any_shape(kernel_device: str, samples: int, rows: int, channels: int) -> None:
    x = Draw(kernel_device, torch.bfloat16).normal(samples, rows, channels)
    assert_as_good(sums(x), sums_reference, [x])
