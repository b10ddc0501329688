# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Roundings and products of tiles: what the interpreter and a GPU must agree about."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from sqt_fast.kernels.numerics import dot, narrow, precision, scale
from tests.accuracy import Draw, assert_error_at_most_twice, each_dtype

HALF_ULP = {torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float32: 0.0}  # of 1.0


@triton.jit
def _narrow_kernel(x, out, N, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_x = tl.load(x + o, mask=o < N, other=0.0)
    tl.store(out + o, narrow(b_x, out.dtype.element_ty, PRECISION), mask=o < N)


@triton.jit
def _scale_kernel(x, factor, out, N, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_x, b_factor = tl.load(x + o, mask=o < N, other=0.0), tl.load(factor + o, mask=o < N, other=0.0)
    tl.store(out + o, scale(b_x, b_factor, PRECISION), mask=o < N)


@triton.jit
def _dot_kernel(a, b, out, M: tl.constexpr, K: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr):
    o_m, o_k, o_n = tl.arange(0, M), tl.arange(0, K), tl.arange(0, N)
    b_a = tl.load(a + o_m[:, None] * K + o_k[None, :])  # (M, K)
    b_b = tl.load(b + o_k[:, None] * N + o_n[None, :])  # (K, N)
    acc = dot(b_a, b_b, tl.full((M, N), 1.0, tl.float32), PRECISION)
    tl.store(out + o_m[:, None] * N + o_n[None, :], acc)


def narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x, (N,) float32, as the kernel rounds it."""
    out = torch.empty_like(x, dtype=dtype)
    with np.errstate(over="ignore"):  # the interpreter's float16
        _narrow_kernel[(triton.cdiv(len(x), 1024),)](x, out, len(x), BLOCK=1024, PRECISION=precision(dtype))
    return out


def values(dtype: torch.dtype) -> dict[str, Tensor]:
    """Return float32 numbers of every kind, as ``dtype`` sees them."""
    half = HALF_ULP[dtype]
    steps = torch.arange(0, 64) * 2 * half + 1
    one = torch.tensor([1.0])
    largest, smallest = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    ties = steps + half
    return {
        "exact": steps,
        "ties": ties,
        "just below a tie": torch.nextafter(ties, one * 0),
        "just above a tie": torch.nextafter(ties, one * 9),
        "every power of two": torch.exp2(torch.arange(-126.0, 128.0)),
        "ties at every power of two": torch.exp2(torch.arange(-126.0, 128.0)) * (1 + half),
        "random": torch.randn(5000, generator=torch.Generator().manual_seed(0)),
        "of every size": torch.randn(5000, generator=torch.Generator().manual_seed(1))
        * torch.exp2(torch.linspace(-120, 120, 5000)),
        "tiny": torch.linspace(smallest, 4 * smallest, 1001),
        "smaller than normal": torch.linspace(0, smallest, 1001),
        "the largest": one * largest * torch.tensor([1.0, 1 + half / 2, 1 - half / 2, 1 - half]),
        "zero": torch.tensor([0.0, -0.0]),
        "infinite": torch.tensor([torch.inf, 3.4028235e38]),
    }


@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
@pytest.mark.parametrize("kind", list(values(torch.bfloat16)))
@each_dtype
def test_narrow_rounds_as_pytorch(kernel_device: str, dtype: torch.dtype, kind: str, sign: int) -> None:
    if kind == "smaller than normal" and precision(dtype) == "widen":
        pytest.skip("Triton's interpreter takes subnormal bfloat16 for zero")
    x = (values(dtype)[kind] * sign).to(kernel_device)
    out = narrowed(x, dtype)
    assert out.dtype == dtype
    assert torch.equal(out, x.to(dtype))
    assert torch.equal(out.signbit(), x.signbit())


@each_dtype
def test_narrow_keeps_nan(kernel_device: str, dtype: torch.dtype) -> None:
    assert narrowed(torch.full((3,), torch.nan, device=kernel_device), dtype).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_ties_go_to_even(kernel_device: str, dtype: torch.dtype) -> None:
    """By hand, as PyTorch might be wrong too: halfway between the k-th and the next number behind 1 is the even."""
    half = HALF_ULP[dtype]
    k = torch.arange(0, 8, device=kernel_device)
    rounded = narrowed(1 + (2 * k + 1) * half, dtype)
    even = k + k % 2
    assert torch.equal(rounded.double(), 1 + even.double() * 2 * half)


@each_dtype
def test_scale_rounds_once(kernel_device: str, dtype: torch.dtype) -> None:
    draw = Draw(kernel_device, dtype)
    x, factor, out = draw.normal(3000), draw.uniform(3000), torch.empty(3000, dtype=dtype, device=kernel_device)
    _scale_kernel[(3,)](x, factor, out, 3000, BLOCK=1024, PRECISION=precision(dtype))
    assert torch.equal(out, (x.double() * factor.double()).float().to(dtype))


@each_dtype
@pytest.mark.parametrize("shape", [(16, 16, 16), (64, 128, 32)], ids=["16x16x16", "64x128x32"])
def test_dot(kernel_device: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """As exact as float32, whatever the operands: theirs are taken as they are."""
    draw, (rows, depth, columns) = Draw(kernel_device, dtype), shape
    a, b = draw.normal(rows, depth), draw.normal(depth, columns)
    out = torch.empty((rows, columns), device=kernel_device)
    _dot_kernel[(1,)](a, b, out, M=rows, K=depth, N=columns, PRECISION=precision(dtype))
    assert_error_at_most_twice(out, 1 + a.float() @ b.float(), 1 + a.double() @ b.double())


def test_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU nothing is widened; float32 is three TF32 products everywhere."""
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    assert [precision(dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)] == ["tf32x3"] * 2 + ["widen"]
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    assert precision(torch.bfloat16) == "tf32x3"
