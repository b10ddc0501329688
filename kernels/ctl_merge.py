"""The output of channel-time learning as one implicit GEMM, and the closing 1x1 of its block behind it.

``z = (conv3x3(y) + bs) * sigmoid(conv3x3(h) + bg) + (p * y) @ wt + bt``, then one of

* ``out = relu(z)``                                   (the first CTL of a BasicBlock; a Bottleneck whose z is wide)
* ``out = relu(z + residual)``                        (the second CTL of a BasicBlock)
* ``out = relu(relu(z) @ w3 + b3 + residual)``        (Bottleneck: z stays in registers)
* ``out = relu(relu(z) @ w3 + x2 @ w2 + b3)``         (the same with a shortcut convolution)

y (B, H, W, C), h (B, H, W, 16), p (B, C), ws (3, 3 * C, N), wg (3, 48, N), wt (C, N), w3 (N, N3), x2 (B, H, W, K2),
w2 (K2, N3), residual and out (B, H, W, N or N3): one float dtype, dense; biases float32; accumulated in float32.

One accumulator: the 3x3, gated, goes on as the accumulator of the 1x1. Reads y and h once from memory (taps after the
first come from the caches), writes out once; neither gate, nor branches, nor z with the closing 1x1, are ever written.

Source: CTL (conv2) of the release, with the batch norm behind it folded into both convolutions.
"""

from functools import partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sqt_fast.kernels.ctl import ctl_merge_reference
from sqt_fast.kernels.launch import (
    Problem,
    check,
    dtype_name,
    power_of_two_over,
    run,
)
from sqt_fast.kernels.merge_tiles import MergeTiles
from sqt_fast.kernels.numerics import dot, narrow, precision, scale
from sqt_fast.kernels.products import multiply, narrow_taps, taps


def can_close(columns: int, dtype: torch.dtype) -> bool:
    """Return whether the closing 1x1 can follow in the same program: where its registers hold all of a tile's z."""
    return columns <= 128 and dtype != torch.float32


class Closing(NamedTuple):
    """The 1x1 behind the merge: w3 (N, N3), b3 (N3,) float32, and x2 (B, H, W, K2) with w2 (K2, N3), or neither."""

    weight: Tensor
    bias: Tensor
    second: tuple[Tensor, Tensor] | None = None


class MergeWeights(NamedTuple):
    """Weights of the merge as the kernel reads them: (3, 3, C, N), (N,), (3, 3, 16, N), (N,), (C, N), (N,)."""

    short: Tensor
    short_bias: Tensor
    gate: Tensor
    gate_bias: Tensor
    temporal: Tensor
    temporal_bias: Tensor


@triton.jit
def _merge_kernel(
    y,  # (M, C)
    h,  # (M, 16)
    p,  # (B, C)
    ws,  # (3, 3 * C, N)
    wg,  # (3, 48, N)
    wt,  # (C, N)
    bs,  # (N,)
    bg,  # (N,)
    bt,  # (N,)
    residual,  # (M, N) or (M, N3)
    w3,  # (N, N3)
    b3,  # (N3,)
    x2,  # (M, K2)
    w2,  # (K2, N3)
    out,  # (M, N) or (M, N3)
    M,  # B * H * W
    H,
    W,
    C: tl.constexpr,
    N: tl.constexpr,
    N3: tl.constexpr,
    K2: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK_3: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COPY: tl.constexpr,
):
    """One tile; rows are pixels of all samples, so that small maps fill tiles too."""
    n_tiles: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    i_row = (tl.program_id(0) // n_tiles) * BLOCK_M
    o_n = (tl.program_id(0) % n_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_m = tl.arange(0, BLOCK_M)
    m_m = i_row + o_m < M
    m_n = o_n < N
    o_h = ((i_row + o_m) // W) % H
    o_w = (i_row + o_m) % W
    b_taps = tl.zeros((BLOCK_M,), tl.int32)
    for i_tap in tl.static_range(9):
        o_y, o_x = o_h + i_tap // 3 - 1, o_w + i_tap % 3 - 1
        b_taps |= (m_m & (o_y >= 0) & (o_y < H) & (o_x >= 0) & (o_x < W)).to(tl.int32) << i_tap
    i_sample = tl.minimum(i_row + o_m, M - 1) // (H * W)
    i_row = i_row.to(tl.int64)
    # The long sum first, while no gate is held.
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    acc = taps(acc, y + i_row * C, ws, o_m, o_n, b_taps, m_n, W, C, N, BLOCK_K, COPY, PRECISION)
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if y.dtype.element_ty == tl.float32:  # 64 of its columns do not fit into registers
        gate = taps(gate, h + i_row * 16, wg, o_m, o_n, b_taps, m_n, W, 16, N, 16, COPY, PRECISION)
    else:
        gate = narrow_taps(gate, h + i_row * 16, wg, o_m, o_n, b_taps, m_n, W, N, COPY, PRECISION)
    gate = tl.sigmoid(gate + tl.load(bg + o_n, mask=m_n, other=0.0)[None, :])
    acc = (acc + tl.load(bs + o_n, mask=m_n, other=0.0)[None, :]) * gate
    # The gated 1x1 into the same accumulator. Steps of 32: y and p both wait in registers for their product.
    BLOCK_P: tl.constexpr = min(BLOCK_K, 32)
    for i_k in range(0, C, BLOCK_P):
        o_k = i_k + tl.arange(0, BLOCK_P)
        b_y = tl.load(y + i_row * C + o_m[:, None] * C + o_k[None, :], mask=m_m[:, None], other=0.0)
        b_p = tl.load(p + i_sample[:, None] * C + o_k[None, :])
        b_w = tl.load(wt + o_k[:, None] * N + o_n[None, :], mask=m_n[None, :], other=0.0)
        acc = dot(scale(b_y, b_p, PRECISION), b_w, acc, PRECISION)
    acc += tl.load(bt + o_n, mask=m_n, other=0.0)[None, :]
    if N3:
        z = narrow(tl.maximum(acc, 0.0), y.dtype.element_ty, PRECISION)
        for i_3 in range(0, N3, BLOCK_3):
            o_3 = i_3 + tl.arange(0, BLOCK_3)
            m_3 = o_3 < N3
            p_out = o_m[:, None] * N3 + o_3[None, :]
            m_out = m_m[:, None] & m_3[None, :]
            if RESIDUAL:  # asked for before the product, needed behind it
                b_r = tl.load(residual + i_row * N3 + p_out, mask=m_out, other=0.0)
            b_w = tl.load(w3 + o_n[:, None] * N3 + o_3[None, :], mask=m_n[:, None] & m_3[None, :], other=0.0)
            acc3 = dot(z, b_w, tl.zeros((BLOCK_M, BLOCK_3), tl.float32), PRECISION)
            if K2:
                acc3 = multiply(acc3, x2 + i_row * K2, w2, o_m, o_3, m_m, m_3, K2, N3, BLOCK_K, PRECISION)
            if RESIDUAL:
                acc3 += b_r.to(tl.float32)
            acc3 = tl.maximum(acc3 + tl.load(b3 + o_3, mask=m_3, other=0.0)[None, :], 0.0)
            tl.store(out + i_row * N3 + p_out, narrow(acc3, out.dtype.element_ty, PRECISION), mask=m_out)
    else:
        p_out = o_m[:, None] * N + o_n[None, :]
        m_out = m_m[:, None] & m_n[None, :]
        if RESIDUAL:
            acc += tl.load(residual + i_row * N + p_out, mask=m_out, other=0.0).to(tl.float32)
        tl.store(out + i_row * N + p_out, narrow(tl.maximum(acc, 0.0), out.dtype.element_ty, PRECISION), mask=m_out)


def merge(
    y: Tensor,
    hidden: Tensor,
    importance: Tensor,
    weights: MergeWeights,
    *,
    residual: Tensor | None = None,
    closing: Closing | None = None,
) -> Tensor:
    """Merge the branches of channel-time learning, rectify, and close the block if asked to.

    y: (B, H, W, C) fp32, fp16 or bf16, C a multiple of 16; hidden: (B, H, W, 16); importance: (B, C); residual: (B, H,
    W, N), or (B, H, W, N3) with ``closing``. For ``closing``, see ``can_close``.

    Returns (B, H, W, N), or (B, H, W, N3) with ``closing``, of y's dtype. Raises ValueError for other shapes.
    """
    batch, height, width, channels = y.shape
    columns, pixels = weights.temporal.shape[1], batch * height * width
    _check(y, hidden, importance, weights, closing)
    weight3, bias3, second = closing or Closing(weights.temporal, weights.temporal_bias)
    x2, weight2 = second or (y, weights.temporal)
    columns3 = 0 if closing is None else weight3.shape[1]
    depth2 = 0 if second is None else weight2.shape[0]
    out = y.new_empty((batch, height, width, columns3 or columns))
    if residual is not None:
        check("residual", residual, out.shape, y.dtype, y)
    short, short_bias, gate, gate_bias, temporal, temporal_bias = weights
    tensors = y, hidden, importance, short, gate, temporal, short_bias, gate_bias, temporal_bias
    tail = out if residual is None else residual, weight3, bias3, x2, weight2, out
    block_3 = min(64, power_of_two_over(columns3)) if columns3 else 16
    constants = channels, columns, columns3, depth2, residual is not None, block_3, precision(y.dtype)
    flags = ([f"n3={columns3}+{depth2}"] if closing else []) + (["residual"] if residual is not None else [])
    tiles = MergeTiles(y, channels, columns, columns3, depth2)
    run(
        Problem(
            op="merge",
            key=" ".join((dtype_name(y.dtype), f"c={channels} n={columns}", *flags)),
            kernel=_merge_kernel,
            out=out,
            parts=tiles.parts,
            args=lambda _: (*tensors, *tail, pixels, height, width, *constants),
            heuristic=tiles.heuristic(),
            candidates=tiles.candidates,
            reference=partial(merge_reference, y, hidden, importance, weights, residual=residual, closing=closing),
        )
    )
    return out


def _check(y: Tensor, hidden: Tensor, importance: Tensor, weights: MergeWeights, closing: Closing | None) -> None:
    batch, height, width, channels = y.shape
    columns = weights.temporal.shape[1]
    if channels % 16:
        raise ValueError(f"{channels} channels: give a multiple of 16")
    check("y", y, y.shape, y.dtype, y)
    check("hidden", hidden, (batch, height, width, 16), y.dtype, y)
    check("importance", importance, (batch, channels), y.dtype, y)
    check("short", weights.short, (3, 3, channels, columns), y.dtype, y)
    check("gate", weights.gate, (3, 3, 16, columns), y.dtype, y)
    check("temporal", weights.temporal, (channels, columns), y.dtype, y)
    for name in ("short_bias", "gate_bias", "temporal_bias"):
        check(name, getattr(weights, name), (columns,), torch.float32, y)
    if closing is None:
        return
    if not can_close(columns, y.dtype):
        raise ValueError(f"closing behind {columns} channels of {y.dtype}: they do not fit in one tile; call pointwise")
    columns3 = closing.weight.shape[1]
    check("closing weight", closing.weight, (columns, columns3), y.dtype, y)
    check("closing bias", closing.bias, (columns3,), torch.float32, y)
    if closing.second is not None:
        x2, w2 = closing.second
        check("x2", x2, (batch, height, width, w2.shape[0]), y.dtype, y)
        check("w2", w2, (w2.shape[0], columns3), y.dtype, y)
        if w2.shape[0] % 16:
            raise ValueError(f"x2 of {w2.shape[0]} channels: give a multiple of 16")


def merge_reference(
    y: Tensor,
    hidden: Tensor,
    importance: Tensor,
    weights: MergeWeights,
    *,
    residual: Tensor | None = None,
    closing: Closing | None = None,
) -> Tensor:
    """See ``merge``."""
    dtype = y.dtype
    z = ctl_merge_reference(
        y.permute(0, 3, 1, 2),
        importance[:, :, None, None],
        hidden.permute(0, 3, 1, 2),
        weights.temporal.t()[:, :, None, None],
        weights.temporal_bias.to(dtype),
        weights.short.permute(3, 2, 0, 1),
        weights.short_bias.to(dtype),
        weights.gate.permute(3, 2, 0, 1),
        weights.gate_bias.to(dtype),
    ).permute(0, 2, 3, 1)
    if closing is None:
        return torch.relu(z if residual is None else z + residual)
    out = torch.relu(z) @ closing.weight + closing.bias.to(dtype)
    if closing.second is not None:
        out = out + closing.second[0] @ closing.second[1]
    return torch.relu(out if residual is None else out + residual)
