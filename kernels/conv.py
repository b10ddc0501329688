"""Small dense convolutions over channels-last maps, as one implicit GEMM, with what goes around them.

``out = relu(conv(p * x, w) + bias) + position``

* x (B, H, W, C), out (B, H', W', N), dense, one float dtype; accumulated in float32.
* p (B, C) importance of every channel, multiplied in while loading; position (H', W', N) is added after the ReLU. Both
  optional: neither is a pass over a map.
* w (KH, KW * C, N): in channels-last memory the KW * C values that one row of taps sees lie side by side, so that a row
  of taps is one stretch of the matrix product, even where C is 16; bias (N,) float32.

Reads x once from memory (a tap's reads after the first come from the caches), writes out once.

Source: the stem, and the two narrow convolutions of inter-temporal object interaction (glo_conv) of the release.
"""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from sqt_fast.kernels.launch import (
    Config,
    Launch,
    Problem,
    all_fitting,
    check,
    dtype_name,
    fitting,
    power_of_two_over,
    product_bytes,
    run,
)
from sqt_fast.kernels.numerics import dot, narrow, precision, scale


@triton.jit
def _conv_kernel(
    x,  # (B, H, W, C)
    p,  # (B, C)
    w,  # (KH, KW * C, N)
    bias,  # (N,)
    position,  # (OH * OW, N)
    out,  # (B, OH * OW, N)
    H,
    W,
    OW,
    R,  # OH * OW
    TILES,
    C: tl.constexpr,
    N: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE: tl.constexpr,
    PAD: tl.constexpr,
    IMPORTANCE: tl.constexpr,
    POSITION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COPY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of one sample."""
    steps: tl.constexpr = (KW * C + BLOCK_K - 1) // BLOCK_K
    n_tiles: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    i_tile = (tl.program_id(0) // n_tiles) % TILES
    i_sample = ((tl.program_id(0) // n_tiles) // TILES).to(tl.int64)
    o_m = i_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = (tl.program_id(0) % n_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    m_m = o_m < R
    m_n = o_n < N
    o_y = (o_m // OW) * STRIDE - PAD
    o_x = (o_m % OW) * STRIDE - PAD
    x += i_sample * H * W * C
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i in range(KH * steps):
        i_y = i // steps
        o_tap = (i % steps) * BLOCK_K + o_k  # place in the row of taps
        o_w = o_x[:, None] + (o_tap // C)[None, :]
        m_h = m_m & (o_y + i_y >= 0) & (o_y + i_y < H)
        m_x = m_h[:, None] & (o_w >= 0) & (o_w < W) & (o_tap < KW * C)[None, :]
        p_x = tl.max_contiguous(x + (((o_y + i_y) * W + o_x) * C)[:, None] + o_tap[None, :], (1, COPY))
        b_x = tl.load(p_x, mask=m_x, other=0.0)  # (BLOCK_M, BLOCK_K)
        if IMPORTANCE:
            b_p = tl.load(p + i_sample * C + o_tap % C)
            b_x = scale(b_x, b_p[None, :], PRECISION)
        p_w = w + (i_y * KW * C + o_tap)[:, None] * N + o_n[None, :]
        b_w = tl.load(p_w, mask=(o_tap < KW * C)[:, None] & m_n[None, :], other=0.0)  # (BLOCK_K, BLOCK_N)
        acc = dot(b_x, b_w, acc, PRECISION)
    acc = tl.maximum(acc + tl.load(bias + o_n, mask=m_n, other=0.0)[None, :], 0.0)
    p_out = o_m[:, None] * N + o_n[None, :]
    m_out = m_m[:, None] & m_n[None, :]
    if POSITION:
        acc += tl.load(position + p_out, mask=m_out, other=0.0).to(tl.float32)
    tl.store(out + i_sample * R * N + p_out, narrow(acc, out.dtype.element_ty, PRECISION), mask=m_out)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int = 1,
    padding: int | None = None,
    importance: Tensor | None = None,
    position: Tensor | None = None,
) -> Tensor:
    """Convolve, add the bias, rectify, add the position embedding.

    x: (B, H, W, C) fp32, fp16 or bf16, C a multiple of 16; weight: (KH, KW, C, N) of x's dtype; bias: (N,) float32;
    padding: zeros around, KH // 2 if None; importance: (B, C) of x's dtype; position: (H', W', N) of x's dtype.

    Returns (B, H', W', N) of x's dtype. Raises ValueError for other shapes.
    """
    batch, height, width, channels = x.shape
    taps_h, taps_w, _, columns = weight.shape
    pad = taps_h // 2 if padding is None else padding
    out_h, out_w = (height + 2 * pad - taps_h) // stride + 1, (width + 2 * pad - taps_w) // stride + 1
    check("x", x, x.shape, x.dtype, x)
    check("weight", weight, (taps_h, taps_w, channels, columns), x.dtype, x)
    check("bias", bias, (columns,), torch.float32, x)
    if importance is not None:
        check("importance", importance, (batch, channels), x.dtype, x)
    if position is not None:
        check("position", position, (out_h, out_w, columns), x.dtype, x)
    if channels % 16:
        raise ValueError(f"{channels} channels: give a multiple of 16")
    out = x.new_empty((batch, out_h, out_w, columns))

    def launch(config: Config) -> Launch:
        tiles = triton.cdiv(out_h * out_w, config.block_m)
        args = {
            "x": x,
            "p": x if importance is None else importance,
            "w": weight,
            "bias": bias,
            "position": out if position is None else position,
            "out": out,
            "H": height,
            "W": width,
            "OW": out_w,
            "R": out_h * out_w,
            "TILES": tiles,
            "C": channels,
            "N": columns,
            "KH": taps_h,
            "KW": taps_w,
            "STRIDE": stride,
            "PAD": pad,
            "IMPORTANCE": importance is not None,
            "POSITION": position is not None,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_K": config.block_k,
            "COPY": config.copy_bytes // x.element_size(),
            "PRECISION": precision(x.dtype),
        }
        grid = (batch * tiles * triton.cdiv(columns, config.block_n),)
        return Launch(_conv_kernel, grid, args, config.num_warps, config.num_stages)

    depth = taps_h * taps_w * channels
    flags = "".join(f" {n}" for n, on in (("importance", importance), ("position", position)) if on is not None)
    run(
        Problem(
            op="conv",
            key=f"{dtype_name(x.dtype)} {taps_h}x{taps_w}/{stride} c={channels} n={columns} r={out_h * out_w}{flags}",
            rows=batch * out_h * out_w,
            moved_bytes=(x.numel() + weight.numel() + out.numel()) * x.element_size(),
            flops=2 * out.numel() * depth,
            heuristic=_heuristic(x, taps_w * channels, columns, out_h * out_w),
            candidates=partial(_candidates, x, taps_w * channels, columns, out_h * out_w),
            launch=launch,
            device=x.device,
            reference=partial(
                conv_reference,
                x,
                weight,
                bias,
                stride=stride,
                padding=padding,
                importance=importance,
                position=position,
            ),
        )
    )
    return out


def _shared_bytes(config: Config, itemsize: int) -> int:
    """Of the products; in float32 also the importance of a step's channels, in every stage."""
    return product_bytes(config, itemsize) + config.num_stages * config.block_k * itemsize


def _heuristic(x: Tensor, row_of_taps: int, columns: int, pixels: int) -> Config:
    """Many rows, as a tile has few columns; a row of taps in as few steps as there is room for.

    Of 16 columns: steps of 64 and, where channels are many, 64 rows. Tuned on an H100 (bf16, batch 256, Triton 3.6):
    3x3 of 64 channels 205 -> 148 us, 7x7 of 16 channels 323 -> 183 us.
    """
    itemsize = x.element_size()
    block_n = min(power_of_two_over(columns), 64)
    block_m = 64 if pixels <= 64 or (itemsize == 2 and block_n == 16 and row_of_taps % 64 == 0) else 128
    deepest = 32 if itemsize == 4 else 128 if row_of_taps % 64 and block_n > 16 else 64
    block_k = min(power_of_two_over(row_of_taps), deepest)
    warps = 8 if itemsize == 4 and block_n > 16 else 4
    return fitting(Config(block_m, block_n, block_k, warps, 3, 8), partial(_shared_bytes, itemsize=itemsize), x.device)


def _candidates(x: Tensor, row_of_taps: int, columns: int, pixels: int) -> list[Config]:
    """64 to 256 rows, steps of 64 or 128, 4 or 8 warps: 36 at most.

    One stage is a way of its own: loads then wait in registers, and go through the L1 cache too.
    """
    itemsize = x.element_size()
    block_n = min(power_of_two_over(columns), 128)
    deepest = power_of_two_over(row_of_taps)
    configs = (
        Config(m, block_n, min(k * 2 // itemsize, deepest), warps, stages, copy_bytes)
        for m in (64, 128, 256)
        if m < 2 * pixels
        for k in (64, 128)
        for warps in (4, 8)
        for stages, copy_bytes in ((1, 16), (3, 8), (3, 16))
        if warps == 4 or m * block_n >= 4096
    )
    return all_fitting(configs, partial(_shared_bytes, itemsize=itemsize), x.device)


def conv_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int = 1,
    padding: int | None = None,
    importance: Tensor | None = None,
    position: Tensor | None = None,
) -> Tensor:
    """See ``conv``."""
    if importance is not None:
        x = x * importance[:, None, None, :]
    pad = weight.shape[0] // 2 if padding is None else padding
    kernel = weight.permute(3, 2, 0, 1)
    out = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), kernel, bias.to(x.dtype), stride, pad)
    out = torch.relu(out).permute(0, 2, 3, 1)
    return out if position is None else out + position
