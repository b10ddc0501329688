"""Depth-wise convolution whose windows do not overlap: what a stage of stride 2 starts with.

``out[b, i, j, c] = bias[c] + sum of x[b, s*i + u, s*j + v, c] * w[u, v, c] over u, v < s``

* x (B, H, W, C), out (B, H // s, W // s, C), dense, one float dtype; w (s, s, C) of it; bias (C,) float32.

Reads x once, writes out once: ``(1 + 1 / s**2) * B*H*W*C * itemsize`` bytes.

Source: downsample of the release's blocks, batch norm folded.
"""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from sqt_fast.kernels.launch import Config, Problem, check, dtype_name, power_of_two_over, run
from sqt_fast.kernels.numerics import narrow, precision
from sqt_fast.kernels.pool import output_tile


@triton.jit
def _downsample_kernel(
    x,  # (B, H, W, C)
    w,  # (STRIDE, STRIDE, C)
    bias,  # (C,)
    out,  # (B, OH, OW, C)
    H,
    W,
    OH,
    OW,
    M,  # B * OH * OW
    C: tl.constexpr,
    STRIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Some output pixels of all samples, some channels."""
    o_m, o_n, sample, o_y, o_x = output_tile(OH, OW, C, BLOCK_M, BLOCK_N)
    m_n = o_n < C
    m_out = (o_m < M)[:, None] & m_n[None, :]
    o_row = (sample * H + o_y * STRIDE) * W + o_x * STRIDE
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32) + tl.load(bias + o_n, mask=m_n, other=0.0)[None, :]
    for i_y in tl.static_range(STRIDE):
        for i_x in tl.static_range(STRIDE):
            p_x = x + (o_row + i_y * W + i_x)[:, None] * C + o_n[None, :]
            b_w = tl.load(w + (i_y * STRIDE + i_x) * C + o_n, mask=m_n, other=0.0).to(tl.float32)
            acc += tl.load(p_x, mask=m_out, other=0.0).to(tl.float32) * b_w[None, :]
    p_out = out + o_m.to(tl.int64)[:, None] * C + o_n[None, :]
    tl.store(p_out, narrow(acc, out.dtype.element_ty, PRECISION), mask=m_out)


def downsample(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Weigh and add each window of s x s pixels.

    x: (B, H, W, C) fp32, fp16 or bf16; weight: (s, s, C) of x's dtype; bias: (C,) float32. Rows and columns that do not
    fill a window are left out.

    Returns (B, H // s, W // s, C) of x's dtype. Raises ValueError for other shapes.
    """
    batch, height, width, channels = x.shape
    stride = weight.shape[0]
    check("x", x, x.shape, x.dtype, x)
    check("weight", weight, (stride, stride, channels), x.dtype, x)
    check("bias", bias, (channels,), torch.float32, x)
    out = x.new_empty((batch, height // stride, width // stride, channels))

    block_n, pixels = min(power_of_two_over(channels), 256), out.numel() // channels
    sizes = height, width, *out.shape[1:3], pixels
    run(
        Problem(
            op="downsample",
            key=f"{dtype_name(x.dtype)} s={stride} c={channels}",
            kernel=_downsample_kernel,
            out=out,
            parts=(1, pixels, channels),
            args=lambda _: (x, weight, bias, out, *sizes, channels, stride, precision(x.dtype)),
            heuristic=Config(4096 // block_n, block_n, 1, 4, 1),
            candidates=lambda: [
                Config(size // n, n, 1, 4, 1)
                for size in (2048, 4096, 8192)
                for n in sorted({block_n, min(block_n, 64)})
            ],
            reference=partial(downsample_reference, x, weight, bias),
        )
    )
    return out


def downsample_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See ``downsample``."""
    kernel = weight.permute(2, 0, 1)[:, None]
    stride, channels = weight.shape[0], weight.shape[2]
    out = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), kernel, bias.to(x.dtype), stride, groups=channels)
    return out.permute(0, 2, 3, 1)
