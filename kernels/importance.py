"""Importance of every channel, that is of every moment: one kernel from pooled sums to gates.

``p = sigmoid(relu(mean @ w1 + b1) @ w2)``, ``mean[s] = sums[s].sum(tiles) / pixels``

* sums (S, tiles, C) float32, as ``pointwise`` leaves them; w1, w2 (C, C) of one float dtype; b1 (C,) float32;
  p (S, C) of the weights' dtype.

Reads the sums and the weights, writes p: kilobytes. What it saves is the launches of seven small kernels.

Source: CTL.param_conv of the release, batch norm folded.
"""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from sqt_fast.kernels.launch import Config, Launch, Problem, check, dtype_name, power_of_two_divisor, run
from sqt_fast.kernels.numerics import dot, narrow, precision


@triton.jit
def _importance_kernel(
    sums,  # (S, TILES, C)
    w1,  # (C, C)
    b1,  # (C,)
    w2,  # (C, C)
    out,  # (S, C)
    S,
    TILES,
    pixels,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Some samples, some channels of p. The hidden layer is made anew for each group of channels: it is small."""
    i_s = (tl.program_id(0) // (C // BLOCK_N)) * BLOCK_M
    o_s = i_s + tl.arange(0, BLOCK_M)
    o_n = (tl.program_id(0) % (C // BLOCK_N)) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_t = tl.arange(0, BLOCK_T)
    m_s = o_s < S
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i_h in range(0, C, BLOCK_K):
        o_h = i_h + tl.arange(0, BLOCK_K)
        hidden = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
        for i_c in range(0, C, BLOCK_K):
            o_c = i_c + tl.arange(0, BLOCK_K)
            total = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
            for i_t in range(0, TILES, BLOCK_T):
                o_st = o_s[:, None] * TILES + (i_t + o_t)[None, :]
                m_st = m_s[:, None] & (i_t + o_t < TILES)[None, :]
                p_sums = sums + o_st[:, :, None] * C + o_c[None, None, :]
                total += tl.sum(tl.load(p_sums, mask=m_st[:, :, None], other=0.0), axis=1)
            mean = narrow(total / pixels, w1.dtype.element_ty, PRECISION)  # (BLOCK_M, BLOCK_K)
            hidden = dot(mean, tl.load(w1 + o_c[:, None] * C + o_h[None, :]), hidden, PRECISION)
        hidden = tl.maximum(hidden + tl.load(b1 + o_h)[None, :], 0.0)
        hidden = narrow(hidden, w2.dtype.element_ty, PRECISION)
        acc = dot(hidden, tl.load(w2 + o_h[:, None] * C + o_n[None, :]), acc, PRECISION)
    p_out = out + o_s[:, None] * C + o_n[None, :]
    tl.store(p_out, narrow(tl.sigmoid(acc), out.dtype.element_ty, PRECISION), mask=m_s[:, None])


def importance(sums: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, *, pixels: int) -> Tensor:
    """Weigh channels by what the whole map holds.

    sums: (S, tiles, C) float32, of ``pixels`` pixels a sample; w1, w2: (C, C) fp32, fp16 or bf16; b1: (C,) float32. C
    is a multiple of 16.

    Returns (S, C) of w1's dtype, in 0..1. Raises ValueError for other shapes.
    """
    samples, tiles, channels = sums.shape
    check("sums", sums, sums.shape, torch.float32, sums)
    check("w1", w1, (channels, channels), w1.dtype, sums)
    check("b1", b1, (channels,), torch.float32, sums)
    check("w2", w2, (channels, channels), w1.dtype, sums)
    if channels % 16:
        raise ValueError(f"{channels} channels: give a multiple of 16")
    out = w1.new_empty((samples, channels))

    def launch(config: Config) -> Launch:
        args = {
            "sums": sums,
            "w1": w1,
            "b1": b1,
            "w2": w2,
            "out": out,
            "S": samples,
            "TILES": tiles,
            "pixels": float(pixels),
            "C": channels,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_K": config.block_k,
            "BLOCK_T": 4,
            "PRECISION": precision(w1.dtype),
        }
        grid = (triton.cdiv(samples, config.block_m) * (channels // config.block_n),)
        return Launch(_importance_kernel, grid, args, config.num_warps, config.num_stages)

    block = power_of_two_divisor(channels, 64)
    run(
        Problem(
            op="importance",
            key=f"{dtype_name(w1.dtype)} c={channels}",
            rows=samples,
            moved_bytes=sums.numel() * 4 + (w1.numel() + w2.numel() + out.numel()) * w1.element_size(),
            flops=4 * samples * channels * channels,
            heuristic=Config(16, block, block, 4, 2),
            candidates=lambda: [
                Config(16, n, k, warps, stages)
                for n in sorted({block, min(block, 32), 16})
                for k in sorted({block, min(block, 32)})
                for warps in (2, 4)
                for stages in (1, 2)
            ],
            launch=launch,
            device=sums.device,
            reference=partial(importance_reference, sums, w1, b1, w2, pixels=pixels),
        )
    )
    return out


def importance_reference(sums: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, *, pixels: int) -> Tensor:
    """See ``importance``."""
    mean = (sums.sum(1) / pixels).to(w1.dtype)
    return torch.sigmoid(torch.relu(mean @ w1 + b1.to(w1.dtype)) @ w2)
