"""The small dense convolution: stem, and the two narrow ones of channel-time learning."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sqt_fast.kernels.conv import conv, conv_reference
from sqt_fast.kernels.launch import Config, Problem, dtype_name, executing
from tests.accuracy import (
    SIXTEEN_TO_EIGHTY,
    Draw,
    assert_as_good,
    each_dtype,
    each_tiling,
    moved,
    products_alike,
    with_tiles,
)


class Shape(NamedTuple):
    """Of the input, and of the weights."""

    batch: int
    height: int
    width: int
    channels: int
    columns: int
    taps: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: int | None = None

    def output(self) -> tuple[int, int]:
        """Return the size of the map that comes out."""
        around = 2 * (self.taps[0] // 2 if self.padding is None else self.padding)
        height, width = self.height + around - self.taps[0], self.width + around - self.taps[1]
        return height // self.stride + 1, width // self.stride + 1


SHAPES = {
    "the stem": Shape(2, 24, 24, 48, 16, (5, 5), 2),
    "the gated one": Shape(2, 13, 11, 64, 16),
    "the mixing one": Shape(2, 9, 10, 16, 16, (7, 7)),
    "taps wider than the map": Shape(3, 2, 2, 16, 16, (7, 7)),
    "one pixel": Shape(1, 1, 1, 32, 16),
    "one pixel a sample": Shape(5, 1, 1, 16, 16, (7, 7)),
    "one row": Shape(2, 1, 19, 16, 32),
    "one column": Shape(2, 19, 1, 16, 32),
    "many samples": Shape(9, 3, 2, 32, 16),
    "widths that are no powers of two": Shape(2, 5, 6, 80, 48),
    "columns that are no multiple of anything": Shape(1, 4, 5, 16, 13),
    "more columns than a tile": Shape(1, 5, 5, 16, 144),
    "1x1": Shape(2, 7, 5, 32, 16, (1, 1)),
    "no padding": Shape(2, 8, 9, 16, 16, (3, 3), 1, 0),
    "more padding than taps": Shape(1, 4, 4, 16, 16, (3, 3), 1, 3),
    "an odd size at stride 2": Shape(2, 11, 7, 16, 32, (5, 5), 2),
    "stride 3": Shape(1, 11, 13, 16, 16, (3, 3), 3, 1),
    "taps that are not square": Shape(2, 7, 8, 16, 16, (3, 5), 1, 1),
    "one tap down": Shape(2, 6, 9, 32, 16, (1, 3), 2, 0),
}


def arguments(draw: Draw, shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, weight and bias."""
    batch, height, width, channels, columns, (taps_h, taps_w), *_ = shape
    weight = draw.normal(taps_h, taps_w, channels, columns, std=(taps_h * taps_w * channels) ** -0.5)
    return draw.normal(batch, height, width, channels), weight, draw.bias(columns)


def extras(draw: Draw, shape: Shape, *, importance: bool, position: bool) -> dict[str, Any]:
    """Return keyword arguments. Importance differs strongly from sample to sample and channel to channel."""
    found: dict[str, Any] = {"stride": shape.stride, "padding": shape.padding}
    if importance:
        found["importance"] = draw.uniform(shape.batch, shape.channels)
    if position:
        found["position"] = draw.normal(*shape.output(), shape.columns)
    return found


@each_dtype
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes(kernel_device: str, shape: Shape, dtype: torch.dtype) -> None:
    draw = Draw(kernel_device, dtype)
    args = arguments(draw, shape)
    kwargs = extras(draw, shape, importance=True, position=True)
    out = conv(*args, **kwargs)
    assert out.shape[1:3] == shape.output()
    assert_as_good(out, conv_reference, args, **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize(
    ("importance", "position"), [(False, False), (True, False), (False, True)], ids=["plain", "importance", "position"]
)
def test_what_is_left_out(kernel_device: str, importance: bool, position: bool, dtype: torch.dtype) -> None:
    draw, shape = Draw(kernel_device, dtype), Shape(2, 9, 10, 48, 32)
    args = arguments(draw, shape)
    kwargs = extras(draw, shape, importance=importance, position=position)
    assert_as_good(conv(*args, **kwargs), conv_reference, args, **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@each_tiling
def test_tiles(kernel_device: str, tiles: Callable[[Problem], Config], dtype: torch.dtype) -> None:
    draw, shape = Draw(kernel_device, dtype), Shape(2, 13, 11, 16, 80, (5, 5))
    args = arguments(draw, shape)
    kwargs = extras(draw, shape, importance=True, position=True)
    with with_tiles(tiles):
        out = conv(*args, **kwargs)
    assert_as_good(out, conv_reference, args, **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("block_k", [16, 32, 64, 128], ids=lambda depth: f"steps of {depth}")
@pytest.mark.parametrize("shape", [Shape(1, 6, 7, 48, 24, (5, 5), 2), Shape(2, 5, 6, 16, 16)], ids=["240", "48"])
def test_steps_that_do_not_divide_a_row_of_taps(
    kernel_device: str, shape: Shape, block_k: int, dtype: torch.dtype
) -> None:
    """A row of taps holds 5 * 48 = 240 values, or 3 * 16 = 48: the last step of most depths is cut short."""
    draw = Draw(kernel_device, dtype)
    args = arguments(draw, shape)
    kwargs = extras(draw, shape, importance=True, position=False)
    with with_tiles(lambda _: Config(16, 16, block_k, 4, 2)):
        out = conv(*args, **kwargs)
    assert_as_good(out, conv_reference, args, **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("out_rows", [2, 3, 8], ids=lambda rows: f"{rows} rows")
@pytest.mark.parametrize("name", ["the stem", "the gated one", "the mixing one", "one row", "stride 3", "no padding"])
def test_several_rows_of_a_map_at_once(kernel_device: str, name: str, out_rows: int, dtype: torch.dtype) -> None:
    """Heights that they divide and that they do not, and columns cut into tiles."""
    draw, shape = Draw(kernel_device, dtype), SHAPES[name]
    args = arguments(draw, shape)
    kwargs = extras(draw, shape, importance=True, position=True)
    with with_tiles(lambda _: Config(16, 32, 32, 4, 2, out_rows=out_rows)):
        out = conv(*args, **kwargs)
    assert_as_good(out, conv_reference, args, **kwargs)


@pytest.mark.parametrize(("clips", "out_rows"), [(256, 4), (8, 1), (1, 1)])
def test_rows_at_once_are_for_many_clips(clips: int, out_rows: int) -> None:
    """They leave fewer tiles, which a few clips have too few of for a whole GPU."""
    x = torch.empty(clips, 28, 28, 16, dtype=torch.bfloat16, device="meta")
    weight, bias = torch.empty(7, 7, 16, 16, dtype=x.dtype, device="meta"), torch.empty(16, device="meta")
    found: list[Problem] = []
    with executing(found.append, architecture=90):
        conv(x, weight, bias)
    assert found[0].heuristic.out_rows == out_rows


def _given(config: Config, problem: Problem) -> Config:
    return config


@products_alike()
def test_rows_at_once_change_no_digit(kernel_device: str) -> None:
    """The products that they add are zeros."""
    draw, shape = Draw(kernel_device, torch.float32), SHAPES["the mixing one"]
    args, found = arguments(draw, shape), []
    for config in (Config(16, 16, 64, 4, 2), Config(16, 16, 64, 4, 2, out_rows=4)):
        with with_tiles(partial(_given, config)):
            found.append(conv(*args))
    assert torch.equal(*found)


@each_dtype
@pytest.mark.parametrize("size", [(2, 1), (9, 8)], ids=["2x1", "9x8"])
@products_alike()
def test_a_sample_is_the_same_in_any_company(kernel_device: str, size: tuple[int, int], dtype: torch.dtype) -> None:
    draw, shape = Draw(kernel_device, dtype), Shape(6, *size, 48, 16)
    x, weight, bias = arguments(draw, shape)
    importance, position = draw.uniform(6, 48), draw.normal(*size, 16)
    out = conv(x, weight, bias, importance=importance, position=position)
    for chosen in ([3], [5, 0], [4, 3, 2, 1, 0, 5]):
        part = conv(x[chosen], weight, bias, importance=importance[chosen], position=position)
        assert torch.equal(part, out[chosen])


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 3),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    channels=st.sampled_from(SIXTEEN_TO_EIGHTY),
    columns=st.integers(1, 40),
    taps=st.sampled_from([1, 3, 5, 7]),
    stride=st.integers(1, 3),
    added=st.tuples(st.booleans(), st.booleans()),
    out_rows=st.integers(0, 5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_shape(
    kernel_device: str,
    batch: int,
    size: tuple[int, int],
    channels: int,
    columns: int,
    taps: int,
    stride: int,
    added: tuple[bool, bool],
    out_rows: int,
    dtype: torch.dtype,
) -> None:
    """out_rows: 0 takes the heuristic's."""
    shape, draw = Shape(batch, *size, channels, columns, (taps, taps), stride), Draw(kernel_device, dtype)
    args = arguments(draw, shape)
    kwargs = extras(draw, shape, importance=added[0], position=added[1])
    with with_tiles(lambda problem: problem.heuristic._replace(out_rows=out_rows or problem.heuristic.out_rows)):
        out = conv(*args, **kwargs)
    assert_as_good(out, conv_reference, args, **kwargs)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "channels first in memory": (
        {"x": torch.zeros(2, 32, 5, 6).permute(0, 2, 3, 1)},
        "x with strides (960, 6, 1, 30): call contiguous() first",
    ),
    "other channels": ({"weight": torch.zeros(3, 3, 16, 24)}, "weight of shape (3, 3, 16, 24): give (3, 3, 32, 24)"),
    "weights as PyTorch has them": (
        {"weight": torch.zeros(24, 32, 3, 3).permute(2, 3, 1, 0)},
        "weight with strides (3, 1, 9, 288): call contiguous() first",
    ),
    "weights of 16 bits": (
        {"weight": torch.zeros(3, 3, 32, 24).half()},
        "weight of torch.float16: give torch.float32",
    ),
    "a bias too long": ({"bias": torch.zeros(25)}, "bias of shape (25,): give (24,)"),
    "a bias elsewhere": ({"bias": torch.zeros(24, device="meta")}, "bias on meta: move it to "),
    "importance of one sample": ({"importance": torch.zeros(1, 32)}, "importance of shape (1, 32): give (2, 32)"),
    "a position of the input's size": (
        {"position": torch.zeros(5, 6, 24), "stride": 2},
        "position of shape (5, 6, 24): give (3, 3, 24)",
    ),
    "odd channels": (
        {"x": torch.zeros(2, 5, 6, 24), "weight": torch.zeros(3, 3, 24, 24)},
        "24 channels: give a multiple of 16",
    ),
    "float64": (
        {"x": torch.zeros(2, 5, 6, 32).double(), "weight": torch.zeros(3, 3, 32, 24).double()},
        "tensors of torch.float64: give one of torch.float32, torch.float16, torch.bfloat16",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_what_is_refused(kernel_device: str, change: dict[str, Any], message: str) -> None:
    right = {"x": torch.zeros(2, 5, 6, 32), "weight": torch.zeros(3, 3, 32, 24), "bias": torch.zeros(24)}
    with pytest.raises(ValueError, match=re.escape(message)):
        conv(**{name: moved(value, kernel_device) for name, value in {**right, **change}.items()})
