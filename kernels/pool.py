"""Max pooling behind the stem: 3x3 windows, stride 2, one pixel of padding.

``out[b, i, j, c] = max of x[b, 2*i + u - 1, 2*j + v - 1, c] over u, v < 3 within the map``

* x (B, H, W, C), out (B, (H + 1) // 2, (W + 1) // 2, C), dense, one float dtype.

Reads x once, writes out once, ``1.25 * B*H*W*C * itemsize`` bytes. PyTorch's writes the place of every maximum too, 8
bytes each, which inference does not need.

Source: maxpool of the release.
"""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from sqt_fast.kernels.launch import Config, Problem, check, dtype_name, power_of_two_over, run


@triton.jit
def output_tile(OH, OW, C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return output pixels of all samples (BLOCK_M,), channels (BLOCK_N,), and each pixel's sample, y and x."""
    n_tiles: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N
    o_m = (tl.program_id(0) // n_tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = (tl.program_id(0) % n_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    return o_m, o_n, (o_m // (OH * OW)).to(tl.int64), (o_m // OW) % OH, o_m % OW


@triton.jit
def _pool_kernel(
    x,  # (B, H, W, C)
    out,  # (B, OH, OW, C)
    H,
    W,
    OH,
    OW,
    M,  # B * OH * OW
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Some output pixels of all samples, some channels."""
    o_m, o_n, sample, o_y, o_x = output_tile(OH, OW, C, BLOCK_M, BLOCK_N)
    m_out = (o_m < M)[:, None] & (o_n < C)[None, :]
    o_y, o_x = o_y * 2 - 1, o_x * 2 - 1
    o_row = (sample * H + o_y) * W + o_x
    best = tl.full((BLOCK_M, BLOCK_N), float("-inf"), tl.float32)
    for i_y in tl.static_range(3):
        for i_x in tl.static_range(3):
            m_x = (o_y + i_y >= 0) & (o_y + i_y < H) & (o_x + i_x >= 0) & (o_x + i_x < W)
            p_x = x + (o_row + i_y * W + i_x)[:, None] * C + o_n[None, :]
            b_x = tl.load(p_x, mask=m_out & m_x[:, None], other=float("-inf"))
            best = tl.maximum(best, b_x.to(tl.float32), propagate_nan=tl.PropagateNan.ALL)
    p_out = out + o_m.to(tl.int64)[:, None] * C + o_n[None, :]
    tl.store(p_out, best.to(out.dtype.element_ty), mask=m_out)


def pool(x: Tensor) -> Tensor:
    """Take the largest of each 3x3 window, every second pixel; NaN stays NaN.

    x: (B, H, W, C) fp32, fp16 or bf16. Returns (B, (H + 1) // 2, (W + 1) // 2, C) of x's dtype.
    """
    batch, height, width, channels = x.shape
    check("x", x, x.shape, x.dtype, x)
    out = x.new_empty((batch, (height + 1) // 2, (width + 1) // 2, channels))

    block_n, pixels = min(power_of_two_over(channels), 64), out.numel() // channels
    run(
        Problem(
            op="pool",
            key=f"{dtype_name(x.dtype)} c={channels}",
            kernel=_pool_kernel,
            out=out,
            parts=(1, pixels, channels),
            args=lambda _: (x, out, height, width, *out.shape[1:3], pixels, channels),
            heuristic=Config(2048 // block_n, block_n, 1, 4, 1),
            candidates=lambda: [
                Config(size // block_n, block_n, 1, w, 1) for size in (1024, 2048, 4096, 8192) for w in (4, 8)
            ],
            reference=partial(pool_reference, x),
        )
    )
    return out


def pool_reference(x: Tensor) -> Tensor:
    """See ``pool``."""
    return torch.nn.functional.max_pool2d(x.permute(0, 3, 1, 2), 3, stride=2, padding=1).permute(0, 2, 3, 1)
