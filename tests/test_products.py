# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Sums of products of one tile, one at a time, on top of what the accumulator holds already."""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from sqt_fast.kernels.numerics import precision
from sqt_fast.kernels.products import multiply, narrow_taps, taps
from tests.accuracy import FLOOR, Draw, assert_error_at_most_twice, each_dtype, without_tf32

ROWS, COLUMNS = 32, 16  # of the tile


@triton.jit
def _kernel(
    x,
    w,
    bits,
    start,
    out,
    M,
    N: tl.constexpr,
    W,
    K: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COPY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    o_m, o_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    m_m, m_n = o_m < M, o_n < N
    m_out = m_m[:, None] & m_n[None, :]
    p_out = o_m[:, None] * N + o_n[None, :]
    acc = tl.load(start + p_out, mask=m_out, other=0.0)
    if KIND == "multiply":
        acc = multiply(acc, x, w, o_m, o_n, m_m, m_n, K, N, BLOCK_K, PRECISION)
    else:
        b_taps = tl.load(bits + o_m, mask=m_m, other=0)
        if KIND == "taps":
            acc = taps(acc, x, w, o_m, o_n, b_taps, m_n, W, K, N, BLOCK_K, COPY, PRECISION)
        else:
            acc = narrow_taps(acc, x, w, o_m, o_n, b_taps, m_n, W, N, COPY, PRECISION)
    tl.store(out + p_out, acc, mask=m_out)


def tap_bits(height: int, width: int, *, device: str) -> Tensor:
    """Return for every pixel which of its nine taps lie within the map, (H * W,) int32."""
    inside = torch.nn.functional.pad(torch.ones(height, width, dtype=torch.int32), (1, 1, 1, 1))
    shifted = [inside[i // 3 : i // 3 + height, i % 3 : i % 3 + width] << i for i in range(9)]
    return torch.stack(shifted).sum(0, dtype=torch.int32).flatten().to(device)


def convolved(x: Tensor, w: Tensor, height: int, width: int) -> Tensor:
    """x: (H * W, C), w: (3, 3 * C, N). Returns conv3x3(x), (H * W, N), in x's dtype."""
    channels, columns = x.shape[1], w.shape[2]
    kernel = w.view(3, 3, channels, columns).permute(3, 2, 0, 1)
    maps = x.t().reshape(1, channels, height, width)
    return torch.nn.functional.conv2d(maps, kernel, padding=1)[0].flatten(1).t()


@each_dtype
@pytest.mark.parametrize("columns", [16, 5], ids=["whole", "fewer columns"])
@pytest.mark.parametrize(
    ("height", "width"), [(4, 8), (5, 5), (1, 7), (9, 1), (1, 1)], ids=["a tile", "square", "row", "column", "pixel"]
)
@pytest.mark.parametrize("kind", ["multiply", "taps", "narrow_taps"])
def test_products(kind: str, height: int, width: int, columns: int, dtype: torch.dtype, kernel_device: str) -> None:
    draw, pixels = Draw(kernel_device, dtype), height * width
    depth = 16 if kind == "narrow_taps" else 48
    x = draw.normal(pixels, depth)
    w = draw.normal(*((depth, columns) if kind == "multiply" else (3, 3 * depth, columns)))
    start = draw.normal(pixels, columns, dtype=torch.float32)
    out = torch.empty_like(start)
    how = {"KIND": kind, "BLOCK_M": ROWS, "BLOCK_N": COLUMNS, "BLOCK_K": 16, "COPY": 4, "PRECISION": precision(dtype)}
    bits = tap_bits(height, width, device=kernel_device)
    _kernel[(1,)](x, w, bits, start, out, pixels, columns, width, depth, **how)

    def reference(x: Tensor, w: Tensor) -> Tensor:
        return x @ w if kind == "multiply" else convolved(x, w, height, width)

    truth = reference(x.double(), w.double()) + start.double()
    with without_tf32():
        own = reference(x, w).float() + start
    assert_error_at_most_twice(out, own, truth, floor=FLOOR[torch.float32])
