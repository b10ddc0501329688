"""1x1 convolution with everything that follows it: bias, second operand or residual, ReLU, sums for pooling.

``out = relu(x @ w + x2 @ w2 + bias + residual)``, and ``sums[s, i] = the i-th tile's share of out[s].sum over pixels``

* x (S, R, K), x2 (S, R, K2), residual and out (S, R, N): samples, pixels, channels; dense, one float dtype; accumulated
  in float32; w (K, N), w2 (K2, N), bias (N,) float32.
* sums (S, tiles, N) float32. Tiles never straddle two samples then, and nothing is added atomically: the sums of a
  sample are the same to the bit whatever else is in the batch.

Reads x, x2, residual once and writes out once: the bias, the ReLU, the residual and the pooling cost no pass of their
own, and the shortcut's 1x1 (x2) is never written at all.

Source: conv1, conv3 and shortcut_conv of the release's Bottleneck, batch norm folded.
"""

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sqt_fast.kernels.cost import Work, fill, promising
from sqt_fast.kernels.launch import (
    Config,
    Problem,
    architecture,
    check,
    dtype_name,
    fitting,
    power_of_two_divisor,
    power_of_two_over,
    product_bytes,
    run,
)
from sqt_fast.kernels.numerics import narrow, precision
from sqt_fast.kernels.products import multiply


@triton.jit
def _pointwise_kernel(
    x,  # (S, R, K)
    x2,  # (S, R, K2)
    w,  # (K, N)
    w2,  # (K2, N)
    bias,  # (N,)
    residual,  # (S, R, N)
    out,  # (S, R, N)
    sums,  # (S, TILES, N)
    R,
    TILES,
    K: tl.constexpr,
    K2: tl.constexpr,
    N: tl.constexpr,
    RELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of one sample; programs that share rows are neighbours, so that x is read from memory once."""
    n_tiles: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    i_tile = (tl.program_id(0) // n_tiles) % TILES
    i_sample = (tl.program_id(0) // n_tiles) // TILES
    i_row = i_sample.to(tl.int64) * R + i_tile * BLOCK_M
    o_m = tl.arange(0, BLOCK_M)
    o_n = (tl.program_id(0) % n_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_m = i_tile * BLOCK_M + o_m < R
    m_n = o_n < N
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    acc = multiply(acc, x + i_row * K, w, o_m, o_n, m_m, m_n, K, N, BLOCK_K, PRECISION)
    if K2:
        acc = multiply(acc, x2 + i_row * K2, w2, o_m, o_n, m_m, m_n, K2, N, BLOCK_K, PRECISION)
    acc += tl.load(bias + o_n, mask=m_n, other=0.0)[None, :]
    p_out = o_m[:, None] * N + o_n[None, :]
    m_out = m_m[:, None] & m_n[None, :]
    if RESIDUAL:
        acc += tl.load(residual + i_row * N + p_out, mask=m_out, other=0.0).to(tl.float32)
    if RELU:
        acc = tl.maximum(acc, 0.0)
    tl.store(out + i_row * N + p_out, narrow(acc, out.dtype.element_ty, PRECISION), mask=m_out)
    if SUMS:
        total = tl.sum(tl.where(m_out, acc, 0.0), axis=0)
        tl.store(sums + (i_sample.to(tl.int64) * TILES + i_tile) * N + o_n, total, mask=m_n)


def pointwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    second: tuple[Tensor, Tensor] | None = None,
    residual: Tensor | None = None,
    relu: bool = True,
    sums: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Multiply, add, rectify, pool in one pass.

    x: (S, R, K) fp32, fp16 or bf16; weight: (K, N); bias: (N,) float32; second: (x2 (S, R, K2), w2 (K2, N)), added
    before the bias; residual: (S, R, N). K and K2 are multiples of 16. Without ``sums``, S is only a factor of R.

    Returns out (S, R, N) of x's dtype, and sums (S, tiles, N) float32 or None. Raises ValueError for other shapes.
    """
    samples, pixels, depth = x.shape
    columns = weight.shape[1]
    x2, w2 = second or (x, weight)
    depth2 = 0 if second is None else w2.shape[0]
    _check(x, weight, bias, second, residual)
    out = x.new_empty((samples, pixels, columns))
    parts = (samples, pixels, columns) if sums else (1, samples * pixels, columns)
    tensors = x, x2, weight, w2, bias, out if residual is None else residual, out
    constants = depth, depth2, columns, relu, residual is not None, sums

    def args(tiles: int) -> tuple[Any, ...]:
        shares = x.new_empty((samples, tiles, columns), dtype=torch.float32) if sums else bias
        return (*tensors, shares, parts[1], tiles, *constants, precision(x.dtype))

    flags = [name for name, on in (("sums", sums), ("residual", residual is not None)) if on]
    flags += [f"r={pixels}"] if sums else []
    launch = run(
        Problem(
            op="pointwise",
            key=" ".join((dtype_name(x.dtype), f"k={depth}+{depth2} n={columns}", *flags)),
            kernel=_pointwise_kernel,
            out=out,
            parts=parts,
            args=args,
            heuristic=_heuristic(x, depth, depth2, parts),
            candidates=partial(_candidates, x, depth, depth2, parts, residual=residual is not None),
            reference=partial(pointwise_reference, x, weight, bias, second=second, residual=residual, relu=relu),
        )
    )
    return out, launch.args["sums"] if sums else None


def _check(
    x: Tensor, weight: Tensor, bias: Tensor, second: tuple[Tensor, Tensor] | None, residual: Tensor | None
) -> None:
    samples, pixels, depth = x.shape
    columns = weight.shape[1]
    check("x", x, x.shape, x.dtype, x)
    check("weight", weight, (depth, columns), x.dtype, x)
    check("bias", bias, (columns,), torch.float32, x)
    depth2 = 0
    if second is not None:
        depth2 = second[1].shape[0]
        check("x2", second[0], (samples, pixels, depth2), x.dtype, x)
        check("w2", second[1], (depth2, columns), x.dtype, x)
    if residual is not None:
        check("residual", residual, (samples, pixels, columns), x.dtype, x)
    if depth % 16 or depth2 % 16:
        raise ValueError(f"{depth} and {depth2} channels: give multiples of 16")


def _heuristic(x: Tensor, depth: int, depth2: int, parts: tuple[int, int, int]) -> Config:
    """128 rows where a sample has them, as many columns as the registers of 8 warps hold, three loads in flight.

    64 by 64 where the GPU would not be full otherwise, as with few clips.
    """
    itemsize = x.element_size()
    block_m = 128 if parts[1] > 64 and itemsize == 2 else 64
    block_n = min(power_of_two_over(parts[2]), 128 if itemsize == 2 else 64)
    block_k = power_of_two_divisor(depth | depth2, 128 // itemsize)
    config = Config(block_m, block_n, block_k, 8 if block_m * block_n > 8192 else 4, 3)
    if not fill(config, parts):
        # With 4 warps, some bytes are spilled on sm_100 and sm_120 (Triton 3.7).
        warps = 8 if itemsize == 2 and architecture(x.device) >= 100 else 4
        config = config._replace(block_m=64, block_n=min(block_n, 64), num_warps=warps)
    return fitting(config, x)


def _candidates(x: Tensor, depth: int, depth2: int, parts: tuple[int, int, int], *, residual: bool) -> list[Config]:
    """The best 8 of 64 to 256 rows and columns, shallow and deep pipelines."""
    block_k = power_of_two_divisor(depth | depth2, 128 // x.element_size())
    widest = power_of_two_over(parts[2])
    tiles = [(64, 64, 4), (128, 64, 4), (128, 128, 8), (64, 128, 4), (128, 256, 8), (256, 64, 8), (64, 256, 4)]
    cut = {(m, min(n, widest), warps) for m, n, warps in tiles}
    configs = {fitting(Config(m, n, block_k, warps, stages), x) for m, n, warps in sorted(cut) for stages in (2, 3, 4)}

    def work(config: Config) -> Work:
        itemsize = x.element_size()
        again = config.block_n if residual else 0
        return Work(
            parts,
            depth + depth2,
            product_bytes(config, itemsize),
            itemsize,
            held_elements=config.block_m * again,
            more_elements=again,
        )

    return promising(configs, work)


def pointwise_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    second: tuple[Tensor, Tensor] | None = None,
    residual: Tensor | None = None,
    relu: bool = True,
) -> Tensor:
    """See ``pointwise``. Returns out (S, R, N); its sums are ``out.sum(1)``."""
    out = x @ weight + bias.to(x.dtype)
    if second is not None:
        out = out + second[0] @ second[1]
    if residual is not None:
        out = out + residual
    return torch.relu(out) if relu else out
