"""The 1x1 convolution with all that may follow it."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sqt_fast.kernels.launch import Config, Launch, Problem, executing
from sqt_fast.kernels.pointwise import pointwise, pointwise_reference
from tests.accuracy import (
    SIXTEEN_TO_EIGHTY,
    Draw,
    as_dtype,
    assert_as_good,
    each_dtype,
    each_tiling,
    moved,
    products_alike,
    with_tiles,
)

# samples, pixels, K, N
SHAPES = {
    "one tile": (1, 128, 32, 64),
    "less than a tile": (1, 11, 16, 16),
    "tiles of rows": (2, 150, 64, 32),
    "tiles of columns": (1, 20, 32, 208),
    "one pixel": (1, 1, 32, 32),
    "one pixel a sample": (5, 1, 64, 48),
    "many samples in a tile": (9, 7, 32, 32),
    "widths that are no powers of two": (3, 49, 48, 80),
    "columns that are no multiple of anything": (2, 9, 16, 13),
    "deep": (2, 25, 272, 16),
}


def arguments(draw: Draw, samples: int, pixels: int, depth: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, weight and bias."""
    x = draw.normal(samples, pixels, depth)
    return x, draw.normal(depth, columns, std=depth**-0.5), draw.bias(columns)


def extras(draw: Draw, x: Tensor, columns: int, *, second: int, residual: bool) -> dict[str, Any]:
    """Return keyword arguments. second: the depth K2 of the second operand, none if 0."""
    found: dict[str, Any] = {}
    if second:
        found["second"] = draw.normal(*x.shape[:2], second), draw.normal(second, columns, std=second**-0.5)
    if residual:
        found["residual"] = draw.normal(*x.shape[:2], columns)
    return found


def assert_sums(sums: Tensor | None, args: tuple[Tensor, ...], **kwargs: Any) -> None:
    """Check that ``sums`` are of the output before it was rounded."""
    assert sums is not None
    assert sums.dtype == torch.float32
    double = {name: as_dtype(value, torch.float64) for name, value in kwargs.items()}
    out = pointwise_reference(*as_dtype(args, torch.float64), **double)
    error = (sums.double().sum(1) - out.sum(1)).abs()
    assert (error <= 1e-5 * (out.abs().sum(1) + out.shape[1])).all()


@each_dtype
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes(kernel_device: str, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    args = arguments(Draw(kernel_device, dtype), *shape)
    out, sums = pointwise(*args)
    assert sums is None
    assert_as_good(out, pointwise_reference, args)


@pytest.mark.parametrize("sums", [False, True], ids=["no sums", "sums"])
@pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])
@pytest.mark.parametrize("residual", [False, True], ids=["no residual", "residual"])
@pytest.mark.parametrize("second", [0, 80], ids=["one operand", "a second"])
def test_what_follows(kernel_device: str, second: int, residual: bool, relu: bool, sums: bool) -> None:
    draw = Draw(kernel_device, torch.bfloat16)
    args = arguments(draw, 2, 37, 32, 48)
    kwargs = extras(draw, args[0], 48, second=second, residual=residual)
    out, shares = pointwise(*args, **kwargs, relu=relu, sums=sums)
    assert_as_good(out, pointwise_reference, args, **kwargs, relu=relu)
    if sums:
        assert_sums(shares, args, **kwargs, relu=relu)
    else:
        assert shares is None


@each_dtype
@each_tiling
def test_tiles(kernel_device: str, tiles: Callable[[Problem], Config], dtype: torch.dtype) -> None:
    draw = Draw(kernel_device, dtype)
    args = arguments(draw, 2, 260, 80, 144)
    kwargs = extras(draw, args[0], 144, second=48, residual=True)
    with with_tiles(tiles):
        out, sums = pointwise(*args, **kwargs, sums=True)
    assert_as_good(out, pointwise_reference, args, **kwargs)
    assert_sums(sums, args, **kwargs)


def test_tiles_may_change_between_launches(kernel_device: str) -> None:
    """As tuning does: the sums have room for whichever tiles come."""
    args = arguments(Draw(kernel_device, torch.float32), 2, 300, 16, 16)
    chosen, seen = list[int](), list[tuple[int, ...]]()

    def launch(problem: Problem) -> Launch:
        chosen.extend((problem.heuristic.block_m, 256, 16, 256, problem.heuristic.block_m))
        for rows in chosen:
            launch = problem.launch(Config(rows, 16, 16, 4, 2))
            seen.append(launch.args["sums"].shape)
            launch()
        return launch

    with executing(launch):
        out, sums = pointwise(*args, sums=True)
    assert seen == [(2, math.ceil(300 / rows), 16) for rows in chosen]
    assert_as_good(out, pointwise_reference, args)
    assert_sums(sums, args)


@each_dtype
@pytest.mark.parametrize("pixels", [3, 49, 150], ids=["3 pixels", "49 pixels", "150 pixels"])
@products_alike()
def test_a_sample_is_the_same_in_any_company(kernel_device: str, pixels: int, dtype: torch.dtype) -> None:
    draw = Draw(kernel_device, dtype)
    x, weight, bias = arguments(draw, 6, pixels, 48, 80)
    residual = draw.normal(6, pixels, 80)
    out, sums = pointwise(x, weight, bias, residual=residual, sums=True)
    assert sums is not None
    for chosen in ([3], [5, 0], [4, 3, 2, 1, 0, 5]):
        part, part_sums = pointwise(x[chosen], weight, bias, residual=residual[chosen], sums=True)
        assert part_sums is not None
        assert torch.equal(part, out[chosen])
        assert torch.equal(part_sums, sums[chosen])


@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 90), st.sampled_from(SIXTEEN_TO_EIGHTY), st.integers(1, 90)),
    second=st.sampled_from([0, 16, 48]),
    residual=st.booleans(),
    relu=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_shape(
    kernel_device: str,
    shape: tuple[int, int, int, int],
    second: int,
    residual: bool,
    relu: bool,
    dtype: torch.dtype,
) -> None:
    draw = Draw(kernel_device, dtype, seed=sum(shape))
    args = arguments(draw, *shape)
    kwargs = extras(draw, args[0], shape[3], second=second, residual=residual)
    out, sums = pointwise(*args, **kwargs, relu=relu, sums=True)
    assert_as_good(out, pointwise_reference, args, **kwargs, relu=relu)
    assert_sums(sums, args, **kwargs, relu=relu)


WRONG: dict[str, tuple[dict[str, Tensor | tuple[Tensor, Tensor]], str]] = {
    "not dense": ({"x": torch.zeros(2, 32, 5).mT}, "x with strides (160, 1, 5): call contiguous() first"),
    "depths that differ": ({"weight": torch.zeros(16, 48)}, "weight of shape (16, 48): give (32, 48)"),
    "dtypes that differ": (
        {"weight": torch.zeros(32, 48).half()},
        "weight of torch.float16: give torch.float32",
    ),
    "a bias too short": ({"bias": torch.zeros(47)}, "bias of shape (47,): give (48,)"),
    "a bias of 16 bits": ({"bias": torch.zeros(48).half()}, "bias of torch.float16: give torch.float32"),
    "a bias elsewhere": ({"bias": torch.zeros(48, device="meta")}, "bias on meta: move it to "),
    "a residual of x's shape": ({"residual": torch.zeros(2, 5, 32)}, "residual of shape (2, 5, 32): give (2, 5, 48)"),
    "other pixels": (
        {"second": (torch.zeros(2, 4, 16), torch.zeros(16, 48))},
        "x2 of shape (2, 4, 16): give (2, 5, 16)",
    ),
    "other columns": (
        {"second": (torch.zeros(2, 5, 16), torch.zeros(16, 32))},
        "w2 of shape (16, 32): give (16, 48)",
    ),
    "an odd second depth": (
        {"second": (torch.zeros(2, 5, 8), torch.zeros(8, 48))},
        "32 and 8 channels: give multiples of 16",
    ),
    "an odd depth": (
        {"x": torch.zeros(2, 5, 24), "weight": torch.zeros(24, 48)},
        "24 and 0 channels: give multiples of 16",
    ),
    "float64": (
        {"x": torch.zeros(2, 5, 32).double(), "weight": torch.zeros(32, 48).double()},
        "tensors of torch.float64: give one of torch.float32, torch.float16, torch.bfloat16",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_what_is_refused(kernel_device: str, change: dict[str, Any], message: str) -> None:
    right = {"x": torch.zeros(2, 5, 32), "weight": torch.zeros(32, 48), "bias": torch.zeros(48)}
    with pytest.raises(ValueError, match=re.escape(message)):
        pointwise(**{name: moved(value, kernel_device) for name, value in {**right, **change}.items()})


def test_the_sums_are_those_of_the_tiles_that_ran_last(kernel_device: str) -> None:
    """Tuning makes launches of many tiles before it runs one of them."""
    x, weight, bias, *_ = (torch.randn(shape, device=kernel_device) for shape in ((2, 64, 16), (16, 16), (16,)))

    def build_many_run_one(problem: Problem) -> Launch:
        launches = [problem.launch(config) for config in sorted(problem.candidates())]
        return launches[0]()

    with executing(build_many_run_one):
        out, sums = pointwise(x, weight, bias, sums=True)
    assert sums is not None
    torch.testing.assert_close(sums.sum(1), out.sum(1), rtol=1e-4, atol=1e-3)


def test_only_tuning_asks_for_candidates(kernel_device: str) -> None:
    x, weight, bias = (torch.randn(shape, device=kernel_device) for shape in ((2, 64, 16), (16, 16), (16,)))
    asked: list[Problem] = []

    def look(problem: Problem) -> Launch:
        assert callable(problem.candidates)
        asked.append(problem)
        return problem.launch(problem.heuristic)()

    with executing(look):
        pointwise(x, weight, bias)
    assert len(asked) == 1
