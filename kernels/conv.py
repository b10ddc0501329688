"""Small dense convolutions over channels-last maps, as one implicit GEMM, with what goes around them.

``out = relu(conv(p * x, w) + bias) + position``

* x (B, H, W, C), out (B, H', W', N), dense, one float dtype; accumulated in float32.
* p (B, C) importance of every channel, multiplied in while loading; position (H', W', N) is added after the ReLU. Both
  optional: neither is a pass over a map.
* w (KH, KW * C, N): in channels-last memory the KW * C values that one row of taps sees lie side by side, so that a row
  of taps is one stretch of the matrix product, even where C is 16; bias (N,) float32.

Reads x once from memory (a tap's reads after the first come from the caches), writes out once.

Where N is small, what the caches give is the limit, not the products: 7 rows of taps are read for 16 values. So a row
of a tile may make R rows of the map at once (``out_rows``): they share KH + stride * (R - 1) rows of taps instead of
reading KH each, and their R * N values are the columns of one product. Weights are 0 where a row of taps is not one of
theirs: an infinite or undefined value in x then spreads as many rows further.

Source: the stem, and the two narrow convolutions of inter-temporal object interaction (glo_conv) of the release.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from sqt_fast.kernels.cost import Work, clocks, promising
from sqt_fast.kernels.launch import Config, Problem, check, dtype_name, fitting, power_of_two_over, product_bytes, run
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
    OH,
    OW,
    TILES,
    C: tl.constexpr,
    N: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE: tl.constexpr,
    PAD: tl.constexpr,
    IMPORTANCE: tl.constexpr,
    POSITION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COPY: tl.constexpr,
    OUT_ROWS: tl.constexpr,
):
    """One tile of one sample: its rows are pixels of every OUT_ROWS-th row of the map, its columns those below too."""
    steps: tl.constexpr = (KW * C + BLOCK_K - 1) // BLOCK_K
    n_tiles: tl.constexpr = (N * OUT_ROWS + BLOCK_N - 1) // BLOCK_N
    i_tile = (tl.program_id(0) // n_tiles) % TILES
    i_sample = ((tl.program_id(0) // n_tiles) // TILES).to(tl.int64)
    o_m = i_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = (tl.program_id(0) % n_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    m_m = o_m < (OH + OUT_ROWS - 1) // OUT_ROWS * OW
    m_n = o_n < N * OUT_ROWS
    o_below = o_n // N if OUT_ROWS > 1 else tl.zeros_like(o_n)  # rows of the map below the tile's own
    o_value = o_n % N if OUT_ROWS > 1 else o_n
    o_y = (o_m // OW) * (STRIDE * OUT_ROWS) - PAD
    o_x = (o_m % OW) * STRIDE - PAD
    x += i_sample * H * W * C
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i in range((KH + STRIDE * (OUT_ROWS - 1)) * steps):
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
        o_row = i_y - o_below * STRIDE  # of the weights
        m_w = m_n if OUT_ROWS == 1 else m_n & (o_row >= 0) & (o_row < KH)
        p_w = w + (o_row[None, :] * (KW * C) + o_tap[:, None]) * N + o_value[None, :]
        b_w = tl.load(p_w, mask=(o_tap < KW * C)[:, None] & m_w[None, :], other=0.0)  # (BLOCK_K, BLOCK_N)
        acc = dot(b_x, b_w, acc, PRECISION)
    acc = tl.maximum(acc + tl.load(bias + o_value, mask=m_n, other=0.0)[None, :], 0.0)
    o_out = (o_m // OW)[:, None] * OUT_ROWS + o_below[None, :]  # row of the map
    p_out = (o_out * OW + (o_m % OW)[:, None]) * N + o_value[None, :]
    m_out = m_m[:, None] & m_n[None, :] & (o_out < OH)
    if POSITION:
        acc += tl.load(position + p_out, mask=m_out, other=0.0).to(tl.float32)
    tl.store(out + i_sample * OH * OW * N + p_out, narrow(acc, out.dtype.element_ty, PRECISION), mask=m_out)


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
    _check(x, weight, bias, importance, position, (out_h, out_w))
    out, pixels = x.new_empty((batch, out_h, out_w, columns)), out_h * out_w
    tiles_of = _Tiles(x, weight.shape, stride, (out_h, out_w), scaled=importance is not None)
    extras = {"importance": importance, "position": position}
    names = [name for name, extra in extras.items() if extra is not None]
    tensors = x, x if importance is None else importance, weight, bias, out if position is None else position, out
    constants = channels, columns, taps_h, taps_w, stride, pad, importance is not None, position is not None
    run(
        Problem(
            op="conv",
            key=" ".join(
                (dtype_name(x.dtype), f"{taps_h}x{taps_w}/{stride} c={channels} n={columns} r={pixels}", *names)
            ),
            kernel=_conv_kernel,
            out=out,
            parts=(batch, pixels, columns),
            parts_of=tiles_of.parts,
            args=lambda tiles: (*tensors, height, width, out_h, out_w, tiles, *constants, precision(x.dtype)),
            heuristic=tiles_of.heuristic(),
            candidates=tiles_of.candidates,
            reference=partial(conv_reference, x, weight, bias, stride=stride, padding=padding, **extras),
        )
    )
    return out


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    importance: Tensor | None,
    position: Tensor | None,
    size: tuple[int, int],
) -> None:
    channels, columns = x.shape[3], weight.shape[3]
    check("x", x, x.shape, x.dtype, x)
    check("weight", weight, (*weight.shape[:2], channels, columns), x.dtype, x)
    check("bias", bias, (columns,), torch.float32, x)
    if importance is not None:
        check("importance", importance, (len(x), channels), x.dtype, x)
    if position is not None:
        check("position", position, (*size, columns), x.dtype, x)
    if channels % 16:
        raise ValueError(f"{channels} channels: give a multiple of 16")


@dataclass(frozen=True)
class _Tiles:
    """Which tiles suit a convolution. taps: the weights' shape; size: height and width of the map that comes out."""

    x: Tensor
    taps: tuple[int, ...]
    stride: int
    size: tuple[int, int]
    scaled: bool

    def heuristic(self) -> Config:
        """Many rows, as a tile has few columns, in steps of 64; several rows of a map at once where columns are few.

        Found on an H100, bf16, 256 clips, one row of a map at once: 7x7 of 16 channels in steps of 64 instead of 128
        took 183 us instead of 323, the scaled 3x3 of 64 channels in 64 rows instead of 128 148 us instead of 205. What
        several rows gain is computed (cost.py), not measured: much where there are tiles for all multiprocessors.
        """
        itemsize, columns = self.x.element_size(), self.taps[3]
        block_k = min(power_of_two_over(self.taps[1] * self.taps[2]), 128 // itemsize)
        if itemsize == 2 and columns <= 16:
            cuts = [(m, out_rows) for out_rows in (1, 2, 4) for m in (64, 128)]
        else:
            cuts = [(64 if self.scaled or math.prod(self.size) <= 64 else 128, 1)]
        configs = []
        for block_m, out_rows in cuts:
            block_n = min(power_of_two_over(columns * out_rows), 64)
            warps = 8 if itemsize == 4 and block_n > 16 else 4
            configs.append(fitting(Config(block_m, block_n, block_k, warps, 3, 8, out_rows), self.x))
        return min(configs, key=lambda config: clocks(config, self.work(config)))

    def candidates(self) -> list[Config]:
        """The best 8 of 64 to 256 rows, 4 or 8 warps, 3 or 4 loads in flight, and up to 8 rows of a map at once.

        One stage is a way of its own: loads then wait in registers, and go through the L1 cache too.
        """
        columns, deepest, itemsize = self.taps[3], power_of_two_over(self.taps[1] * self.taps[2]), self.x.element_size()
        configs = {
            fitting(Config(m, block_n, min(128 // itemsize, deepest), warps, stages, copy_bytes, rows), self.x)
            for rows in (1, 2, 4, 8)
            if rows == 1 or (rows <= self.size[0] and rows * columns <= 128)
            for block_n in [min(power_of_two_over(columns * rows), 128)]
            for m in (64, 128, 256)
            if m < 2 * math.prod(self.size)
            for warps in (4, 8)
            for stages, copy_bytes in ((1, 16), (3, 8), (3, 16), (4, 16))
            if warps == 4 or m * block_n >= 4096
        }
        return promising(configs, self.work)

    def parts(self, config: Config) -> tuple[int, int, int]:
        """Return samples, rows and columns as tiles share them."""
        height, width = self.size
        return len(self.x), -(-height // config.out_rows) * width, self.taps[3] * config.out_rows

    def work(self, config: Config) -> Work:
        """Return what a tile has to do."""
        rows_of_taps = self.taps[0] + self.stride * (config.out_rows - 1)
        depth = -(-self.taps[1] * self.taps[2] // config.block_k) * config.block_k * rows_of_taps
        itemsize = self.x.element_size()
        held = config.block_m * config.block_k if self.scaled else 0
        return Work(self.parts(config), depth, product_bytes(config, itemsize), itemsize, held_elements=held)


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
