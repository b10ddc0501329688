"""The output of channel-time learning, and the closing 1x1 behind it. (test_merge.py is about tables.)"""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sqt_fast.kernels.ctl_merge import Closing, MergeWeights, can_close, merge, merge_reference
from sqt_fast.kernels.launch import Config, Problem, dtype_name
from tests.accuracy import (
    FLOOR,
    SIXTEEN_TO_EIGHTY,
    Draw,
    assert_as_good,
    each_dtype,
    each_tiling,
    moved,
    products_alike,
    with_tiles,
)

WIDEST = max(columns for columns in range(16, 1024, 16) if can_close(columns, torch.bfloat16))
Arguments = tuple[Tensor, Tensor, Tensor, MergeWeights]


class Shape(NamedTuple):
    """Of y, and the columns that it becomes."""

    batch: int
    height: int
    width: int
    channels: int
    columns: int


class Tail(NamedTuple):
    """What follows the merge. closing: the columns N3, second: the depth K2; none if 0."""

    residual: bool = False
    closing: int = 0
    second: int = 0


SHAPES = {
    "tiles of rows": Shape(2, 13, 12, 32, 32),
    "less than a tile": Shape(1, 4, 5, 64, 64),
    "tiles of columns": Shape(1, 5, 5, 16, 144),
    "one pixel": Shape(1, 1, 1, 32, 32),
    "one pixel a sample": Shape(9, 1, 1, 32, 16),
    "many samples in a tile": Shape(11, 2, 3, 32, 32),
    "a sample across two tiles": Shape(3, 7, 9, 16, 16),
    "one row": Shape(2, 1, 21, 16, 32),
    "one column": Shape(2, 21, 1, 16, 32),
    "widths that are no powers of two": Shape(2, 6, 5, 48, 80),
    "columns that are no multiple of anything": Shape(2, 3, 5, 16, 13),
    "a narrower output": Shape(2, 5, 6, 80, 48),
}
TAILS = {
    "alone": Tail(),
    "residual": Tail(residual=True),
    "closing": Tail(closing=128),
    "closing, residual": Tail(residual=True, closing=80),
    "closing, second": Tail(closing=144, second=48),
    "closing, a narrow second": Tail(closing=16, second=16),
    "closing, columns that are no multiple of anything": Tail(residual=True, closing=69),
}


def arguments(draw: Draw, shape: Shape) -> Arguments:
    """Return y, hidden, importance and weights. Importance differs strongly from sample to sample."""
    *pixels, channels, columns = shape
    weights = MergeWeights(
        draw.normal(3, 3, channels, columns, std=(9 * channels) ** -0.5),
        draw.bias(columns),
        draw.normal(3, 3, 16, columns, std=1 / 6),
        draw.bias(columns),
        draw.normal(channels, columns, std=channels**-0.5),
        draw.bias(columns),
    )
    return draw.normal(*pixels, channels), draw.normal(*pixels, 16), draw.uniform(shape.batch, channels), weights


def extras(draw: Draw, shape: Shape, tail: Tail) -> dict[str, Any]:
    """Return keyword arguments."""
    *pixels, _, columns = shape
    found: dict[str, Any] = {}
    if tail.residual:
        found["residual"] = draw.normal(*pixels, tail.closing or columns)
    if tail.closing:
        second = None
        if tail.second:
            weight = draw.normal(tail.second, tail.closing, std=tail.second**-0.5)
            second = draw.normal(*pixels, tail.second), weight
        weight = draw.normal(columns, tail.closing, std=columns**-0.5)
        found["closing"] = Closing(weight, draw.bias(tail.closing), second)
    return found


def assert_merges(device: str, shape: Shape, tail: Tail, dtype: torch.dtype) -> None:
    draw = Draw(device, dtype, seed=sum(shape))
    args, kwargs = arguments(draw, shape), extras(draw, shape, tail)
    assert_as_good(merge(*args, **kwargs), merge_reference, args, **kwargs)


@each_dtype
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes(kernel_device: str, shape: Shape, dtype: torch.dtype) -> None:
    assert_merges(kernel_device, shape, Tail(), dtype)


def tails_and_dtypes(names: Iterable[str]) -> list[Any]:
    """Return cases of "tail, dtype", without those that ``merge`` refuses."""
    return [
        pytest.param(TAILS[name], dtype, id=f"{name}-{dtype_name(dtype)}")
        for name in names
        for dtype in FLOOR
        if can_close(16, dtype) or not TAILS[name].closing
    ]


@pytest.mark.parametrize(("tail", "dtype"), tails_and_dtypes(TAILS))
def test_tails(kernel_device: str, tail: Tail, dtype: torch.dtype) -> None:
    assert_merges(kernel_device, Shape(2, 7, 6, 32, 48), tail, dtype)


@pytest.mark.parametrize("name", ["tiles of rows", "many samples in a tile", "one pixel a sample", "a narrower output"])
def test_tails_of_other_shapes(kernel_device: str, name: str) -> None:
    assert_merges(kernel_device, SHAPES[name], TAILS["closing, second"], torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("columns", [WIDEST, WIDEST - 16], ids=["widest", "nearly"])
def test_the_widest_with_a_closing(kernel_device: str, columns: int, dtype: torch.dtype) -> None:
    assert_merges(kernel_device, Shape(1, 4, 3, 32, columns), Tail(closing=80, second=32), dtype)


@each_tiling
@pytest.mark.parametrize(("tail", "dtype"), tails_and_dtypes(["residual", "closing, second"]))
def test_tiles(kernel_device: str, tail: Tail, tiles: Callable[[Problem], Config], dtype: torch.dtype) -> None:
    with with_tiles(tiles):
        assert_merges(kernel_device, Shape(3, 9, 7, 64, 80), tail, dtype)


@each_dtype
@pytest.mark.parametrize("rows", [16, 32], ids=lambda rows: f"{rows} rows")
def test_samples_that_begin_anywhere_in_small_tiles(kernel_device: str, rows: int, dtype: torch.dtype) -> None:
    with with_tiles(lambda _: Config(rows, 32, 16, 4, 2)):
        assert_merges(kernel_device, Shape(5, 3, 3, 32, 48), Tail(residual=True), dtype)


@pytest.mark.parametrize("size", [(3, 2), (9, 8)], ids=["3x2", "9x8"])
@pytest.mark.parametrize(("tail", "dtype"), tails_and_dtypes(["residual", "closing, a narrow second"]))
@products_alike()
def test_a_sample_is_the_same_in_any_company(
    kernel_device: str, tail: Tail, size: tuple[int, int], dtype: torch.dtype
) -> None:
    draw, shape = Draw(kernel_device, dtype), Shape(5, *size, 16, 32)
    y, hidden, importance, weights = arguments(draw, shape)
    kwargs = extras(draw, shape, tail)
    out = merge(y, hidden, importance, weights, **kwargs)
    for chosen in ([3], [4, 0], [4, 3, 2, 1, 0]):
        part = dict(kwargs)
        if tail.residual:
            part["residual"] = kwargs["residual"][chosen]
        if tail.closing:
            x2, w2 = kwargs["closing"].second
            part["closing"] = kwargs["closing"]._replace(second=(x2[chosen], w2))
        assert torch.equal(merge(y[chosen], hidden[chosen], importance[chosen], weights, **part), out[chosen])


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 5),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels=st.sampled_from(SIXTEEN_TO_EIGHTY),
    columns=st.integers(1, WIDEST),
    tail=st.sampled_from(list(TAILS.values())),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_shape(
    kernel_device: str,
    batch: int,
    size: tuple[int, int],
    channels: int,
    columns: int,
    tail: Tail,
    dtype: torch.dtype,
) -> None:
    if not can_close(columns, dtype):
        tail = Tail(residual=True)
    assert_merges(kernel_device, Shape(batch, *size, channels, columns), tail, dtype)


def half(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float16)


def zero_weights(channels: int, columns: int) -> MergeWeights:
    """Return weights of the right shapes."""
    bias = torch.zeros(columns)
    short, gate = half(3, 3, channels, columns), half(3, 3, 16, columns)
    return MergeWeights(short, bias, gate, bias, half(channels, columns), bias)


WEIGHTS = zero_weights(32, 48)
CLOSING = Closing(half(48, 80), torch.zeros(80))
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "channels first in memory": (
        {"y": half(2, 32, 4, 5).permute(0, 2, 3, 1)},
        "y with strides (640, 5, 1, 20): call contiguous() first",
    ),
    "odd channels": ({"y": half(2, 4, 5, 24)}, "24 channels: give a multiple of 16"),
    "hidden too wide": ({"hidden": half(2, 4, 5, 32)}, "hidden of shape (2, 4, 5, 32): give (2, 4, 5, 16)"),
    "importance of fewer samples": ({"importance": half(1, 32)}, "importance of shape (1, 32): give (2, 32)"),
    "short of other channels": (
        {"weights": WEIGHTS._replace(short=half(3, 3, 48, 48))},
        "short of shape (3, 3, 48, 48): give (3, 3, 32, 48)",
    ),
    "gate of other columns": (
        {"weights": WEIGHTS._replace(gate=half(3, 3, 16, 32))},
        "gate of shape (3, 3, 16, 32): give (3, 3, 16, 48)",
    ),
    "temporal of other channels": (
        {"weights": WEIGHTS._replace(temporal=half(16, 48))},
        "temporal of shape (16, 48): give (32, 48)",
    ),
    "short_bias too short": (
        {"weights": WEIGHTS._replace(short_bias=torch.zeros(47))},
        "short_bias of shape (47,): give (48,)",
    ),
    "gate_bias of 16 bits": (
        {"weights": WEIGHTS._replace(gate_bias=half(48))},
        "gate_bias of torch.float16: give torch.float32",
    ),
    "temporal_bias elsewhere": (
        {"weights": WEIGHTS._replace(temporal_bias=torch.zeros(48, device="meta"))},
        "temporal_bias on meta: move it to ",
    ),
    "a residual of y's shape": (
        {"residual": half(2, 4, 5, 32)},
        "residual of shape (2, 4, 5, 32): give (2, 4, 5, 48)",
    ),
    "a residual of z's shape, with a closing": (
        {"residual": half(2, 4, 5, 48), "closing": CLOSING},
        "residual of shape (2, 4, 5, 48): give (2, 4, 5, 80)",
    ),
    "a closing of other depth": (
        {"closing": Closing(half(32, 80), torch.zeros(80))},
        "closing weight of shape (32, 80): give (48, 80)",
    ),
    "a closing bias too long": (
        {"closing": CLOSING._replace(bias=torch.zeros(81))},
        "closing bias of shape (81,): give (80,)",
    ),
    "a second of other pixels": (
        {"closing": CLOSING._replace(second=(half(2, 4, 4, 16), half(16, 80)))},
        "x2 of shape (2, 4, 4, 16): give (2, 4, 5, 16)",
    ),
    "a second of other columns": (
        {"closing": CLOSING._replace(second=(half(2, 4, 5, 16), half(16, 48)))},
        "w2 of shape (16, 48): give (16, 80)",
    ),
    "a second of odd depth": (
        {"closing": CLOSING._replace(second=(half(2, 4, 5, 8), half(8, 80)))},
        "x2 of 8 channels: give a multiple of 16",
    ),
    "a closing behind too many columns": (
        {"weights": zero_weights(32, 144), "closing": Closing(half(144, 80), torch.zeros(80))},
        "closing behind 144 channels of torch.float16: they do not fit in one tile; call pointwise",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_what_is_refused(kernel_device: str, change: dict[str, Any], message: str) -> None:
    maps = {"y": half(2, 4, 5, 32), "hidden": half(2, 4, 5, 16)}
    right = {**maps, "importance": half(2, 32), "weights": WEIGHTS}
    with pytest.raises(ValueError, match=re.escape(message)):
        merge(**{name: moved(value, kernel_device) for name, value in {**right, **change}.items()})
