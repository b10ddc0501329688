"""Sums of products into one tile's accumulator: over channels, and over the taps of a 3x3 convolution.

Each walks pointers through memory and leaves the pipelining of its loads to the compiler; nothing here is launched by
itself. The maps are channels last, (., C) from the tile's first row on.
"""

import triton
import triton.language as tl

from sqt_fast.kernels.numerics import dot


@triton.jit
def multiply(
    acc,
    x,
    w,
    o_m,
    o_n,
    m_m,
    m_n,
    K: tl.constexpr,
    N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """acc (BLOCK_M, BLOCK_N) += x[o_m] (BLOCK_M, K) @ w[:, o_n] (K, BLOCK_N); BLOCK_K divides K."""
    o_k = tl.arange(0, BLOCK_K)
    p_x = x + o_m[:, None] * K + o_k[None, :]
    p_w = w + o_k[:, None] * N + o_n[None, :]
    for _ in range(0, K, BLOCK_K):
        b_x = tl.load(p_x, mask=m_m[:, None], other=0.0)  # (BLOCK_M, BLOCK_K)
        b_w = tl.load(p_w, mask=m_n[None, :], other=0.0)  # (BLOCK_K, BLOCK_N)
        acc = dot(b_x, b_w, acc, PRECISION)
        p_x += BLOCK_K
        p_w += BLOCK_K * N
    return acc


@triton.jit
def taps(
    acc,
    x,  # (., C) from the tile's first row on
    w,  # (3, 3 * C, N)
    o_m,
    o_n,
    b_taps,
    m_n,
    W,
    C: tl.constexpr,
    N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COPY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """acc += conv3x3(x) at the tile's pixels; BLOCK_K divides C, so that a step lies within one tap.

    b_taps: bit i says that tap i of a pixel lies within its map. COPY: elements of one copy. All taps of some channels
    come one after the other: what they share is still in the L1 cache, if copies go through it.
    """
    steps: tl.constexpr = C // BLOCK_K
    o_k = tl.arange(0, BLOCK_K)
    p_x = tl.max_contiguous(x + o_m[:, None] * C + o_k[None, :], (1, COPY))
    p_w = w + o_k[:, None] * N + o_n[None, :]
    for i in range(9 * steps):
        i_tap = i % 9
        i_k = (i // 9) * BLOCK_K
        m_x = (b_taps >> i_tap) & 1 != 0
        i_shift = ((i_tap // 3 - 1) * W + i_tap % 3 - 1) * C + i_k
        b_x = tl.load(p_x + i_shift, mask=m_x[:, None], other=0.0)  # (BLOCK_M, BLOCK_K)
        b_w = tl.load(p_w + (i_tap * C + i_k) * N, mask=m_n[None, :], other=0.0)  # (BLOCK_K, BLOCK_N)
        acc = dot(b_x, b_w, acc, PRECISION)
    return acc


@triton.jit
def narrow_taps(
    acc,
    x,  # (., 16) from the tile's first row on
    w,  # (3, 48, N)
    o_m,
    o_n,
    b_taps,
    m_n,
    W,
    N: tl.constexpr,
    COPY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """acc += conv3x3(x), a row of taps a step: its 48 values lie side by side. Nine steps of 16 would mostly wait."""
    o_k = tl.arange(0, 64)
    m_k = o_k < 48
    p_x = tl.max_contiguous(x + o_m[:, None] * 16 + o_k[None, :], (1, COPY))
    p_w = w + o_k[:, None] * N + o_n[None, :]
    for i in range(3):
        m_x = (b_taps[:, None] >> (3 * i + o_k // 16)[None, :]) & 1 != 0
        b_x = tl.load(p_x + ((i - 1) * W - 1) * 16, mask=m_x & m_k[None, :], other=0.0)  # (BLOCK_M, 64)
        b_w = tl.load(p_w + i * 48 * N, mask=m_k[:, None] & m_n[None, :], other=0.0)  # (64, BLOCK_N)
        acc = dot(b_x, b_w, acc, PRECISION)
    return acc
