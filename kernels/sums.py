"""The sum of every channel over a map: what pooling needs where no kernel before it could add up on its way out.

``sums[s, 0, c] = sum of x[s, r, c] over r``

* x (S, R, C), dense, any float dtype; sums (S, 1, C) float32, added up in float32, always in the same order: those of a
  sample are the same to the bit whatever else is in the batch, which PyTorch's are not for batches of other sizes.

Reads x once: ``S*R*C * itemsize`` bytes.

Source: the average pooling of param_conv in the release's BasicBlock, and of its head.
"""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from sqt_fast.kernels.launch import Config, Launch, Problem, check, dtype_name, power_of_two_over, run


@triton.jit
def _sums_kernel(
    x,  # (S, R, C)
    out,  # (S, 1, C)
    R,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Some channels of one sample."""
    n_tiles: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N
    i_sample = (tl.program_id(0) // n_tiles).to(tl.int64)
    o_m = tl.arange(0, BLOCK_M)
    o_n = (tl.program_id(0) % n_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < C
    p_x = x + i_sample * R * C + o_m[:, None] * C + o_n[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i_row in range(0, R, BLOCK_M):
        m_x = (i_row + o_m < R)[:, None] & m_n[None, :]
        acc += tl.load(p_x, mask=m_x, other=0.0).to(tl.float32)
        p_x += BLOCK_M * C
    tl.store(out + i_sample * C + o_n, tl.sum(acc, axis=0), mask=m_n)


def sums(x: Tensor) -> Tensor:
    """Add up the rows of every sample.

    x: (S, R, C) fp32, fp16 or bf16. Returns (S, 1, C) float32.
    """
    samples, rows, channels = x.shape
    check("x", x, x.shape, x.dtype, x)
    out = x.new_empty((samples, 1, channels), dtype=torch.float32)

    def launch(config: Config) -> Launch:
        args = {
            "x": x,
            "out": out,
            "R": rows,
            "C": channels,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
        }
        grid = (samples * triton.cdiv(channels, config.block_n),)
        return Launch(_sums_kernel, grid, args, config.num_warps, config.num_stages)

    block_n = min(power_of_two_over(channels), 64)
    run(
        Problem(
            op="sums",
            key=f"{dtype_name(x.dtype)} c={channels} r={rows}",
            rows=samples * rows,
            moved_bytes=x.numel() * x.element_size() + out.numel() * 4,
            flops=x.numel(),
            heuristic=Config(64, block_n, 1, 4, 3),
            candidates=lambda: [
                Config(m, n, 1, warps, stages)
                for m in (32, 64, 128)
                for n in sorted({block_n, min(block_n, 32)})
                for warps in (2, 4)
                for stages in (1, 3)
            ],
            launch=launch,
            device=x.device,
            reference=partial(sums_reference, x),
        )
    )
    return out


def sums_reference(x: Tensor) -> Tensor:
    """See ``sums``; in x's dtype where that is wider than float32."""
    return x.sum(1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
