"""Temporal importance: what the mean of every channel says of the importance of all, in two launches for all samples.

``p = sigmoid(relu(mean @ w1 + b1) @ w2)``, ``mean = shares.sum(1) / pixels``

* shares (B, tiles, C) float32, the sums over pixels as ``pointwise`` leaves them; w1, w2 (C, C), b1 (C,) and p (B, C)
  of one float dtype. Accumulated in float32; mean and hidden layer are rounded to the dtype, as PyTorch rounds them.

PyTorch takes seven launches (sum, division, rounding, product, ReLU, product, sigmoid), each of which lasts longer than
its work: 20 us on an H100 whatever the width, 2 % of a batch of 256 and 17 % of a batch of 8.

Source: param_conv of the release.
"""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from sqt_fast.kernels.launch import (
    Config,
    Problem,
    check,
    dtype_name,
    fitting,
    power_of_two_divisor,
    power_of_two_over,
    run,
)
from sqt_fast.kernels.numerics import dot, narrow, precision

# Tiles of shares that are loaded at once: to wait for one after the other would take longer than all else.
MOST_TILES = 8


@triton.jit
def _layer_kernel(
    x,  # (B, T, K) float32 with SHARES, else (B, K)
    w,  # (K, N)
    bias,  # (N,), read only with SHARES
    out,  # (B, N)
    B,
    T,
    PIXELS,
    K: tl.constexpr,
    N: tl.constexpr,
    SHARES: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile: of the first layer, with the mean in front, bias and ReLU behind, or of the second, with a sigmoid."""
    n_tiles: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    o_m = (tl.program_id(0) // n_tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = (tl.program_id(0) % n_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_t = tl.arange(0, BLOCK_T)
    m_m = o_m < B
    m_n = o_n < N
    o_sample = tl.minimum(o_m, B - 1).to(tl.int64)
    dtype: tl.constexpr = w.dtype.element_ty
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i_k in range(0, K, BLOCK_K):
        o_k = i_k + tl.arange(0, BLOCK_K)
        if SHARES:
            b_sum = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
            for i_t in range(0, T, BLOCK_T):
                p_x = x + (o_sample[:, None, None] * T + (i_t + o_t)[None, :, None]) * K + o_k[None, None, :]
                b_part = tl.load(p_x, mask=(i_t + o_t < T)[None, :, None], other=0.0)  # (BLOCK_M, BLOCK_T, BLOCK_K)
                b_sum += tl.sum(b_part, axis=1)
            b_x = narrow(b_sum / PIXELS, dtype, PRECISION)
        else:
            b_x = tl.load(x + o_sample[:, None] * K + o_k[None, :])  # (BLOCK_M, BLOCK_K)
        b_w = tl.load(w + o_k[:, None] * N + o_n[None, :], mask=m_n[None, :], other=0.0)  # (BLOCK_K, BLOCK_N)
        acc = dot(b_x, b_w, acc, PRECISION)
    if SHARES:
        acc += tl.load(bias + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
        acc = tl.maximum(acc, 0.0)
    else:
        acc = tl.sigmoid(acc)
    p_out = out + o_sample[:, None] * N + o_n[None, :]
    tl.store(p_out, narrow(acc, dtype, PRECISION), mask=m_m[:, None] & m_n[None, :])


def importance(shares: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, *, pixels: int) -> Tensor:
    """Return the importance of every channel of every sample.

    shares: (B, tiles, C) float32, C a multiple of 16, the sums over ``pixels`` pixels in parts; weight1, weight2:
    (C, C) fp32, fp16 or bf16; bias1: (C,) of their dtype.

    Returns (B, C) of the weights' dtype, in 0..1. Raises ValueError for other shapes.
    """
    _check(shares, weight1, bias1, weight2)
    hidden = _layer(shares, weight1, bias1, pixels)
    return _layer(hidden, weight2, None, 1)


def _layer(x: Tensor, weight: Tensor, bias: Tensor | None, pixels: int) -> Tensor:
    """Return relu(mean @ weight + bias) of shares x (B, T, C), or sigmoid(x @ weight) of x (B, C) without a bias."""
    depth, columns = weight.shape
    is_first = bias is not None
    samples, tiles = len(x), x.shape[1] if is_first else 1
    out = weight.new_empty((samples, columns))
    tensors = x, weight, weight if bias is None else bias, out
    block_t = min(MOST_TILES, power_of_two_over(tiles, least=1))
    constants = depth, columns, is_first, block_t, precision(weight.dtype)
    # Half as deep where several tiles of shares wait in registers.
    block_k = power_of_two_divisor(depth, (128 if block_t == 1 else 64) // weight.element_size())
    widest = power_of_two_over(columns)
    run(
        Problem(
            op="importance",
            key=f"{dtype_name(weight.dtype)} c={depth} {'first' if is_first else 'second'}",
            kernel=_layer_kernel,
            out=out,
            parts=(1, samples, columns),
            args=lambda _: (*tensors, samples, tiles, pixels, *constants),
            heuristic=fitting(Config(16, min(32, widest), block_k, 4, 3), weight),
            candidates=lambda: [
                fitting(Config(m, n, block_k, 4, 3), weight)
                for m, n in ((16, 16), (16, 32), (16, 64), (32, 32), (32, 64))
                if n <= widest
            ],
            reference=partial(layer_reference, x, weight, bias, pixels=pixels),
        )
    )
    return out


def _check(shares: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor) -> None:
    samples, tiles, channels = shares.shape
    check("shares", shares, (samples, tiles, channels), torch.float32, shares)
    check("weight1", weight1, (channels, channels), weight1.dtype, shares)
    check("bias1", bias1, (channels,), weight1.dtype, shares)
    check("weight2", weight2, (channels, channels), weight1.dtype, shares)
    if channels % 16:
        raise ValueError(f"{channels} channels: give a multiple of 16")


def layer_reference(x: Tensor, weight: Tensor, bias: Tensor | None, *, pixels: int) -> Tensor:
    """Return one of the two layers. x: (B, tiles, C) shares of the first, or (B, C), the hidden layer."""
    if bias is None:
        return torch.sigmoid(x @ weight)
    return torch.relu(torch.addmm(bias, (x.sum(1) / pixels).to(weight.dtype), weight))


def importance_reference(shares: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, *, pixels: int) -> Tensor:
    """See ``importance``."""
    return layer_reference(layer_reference(shares, weight1, bias1, pixels=pixels), weight2, None, pixels=1)
