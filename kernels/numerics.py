"""Products and roundings of tiles: one place for what tensor cores and the interpreter are told.

float32 is multiplied as three TF32 products (``tf32x3``), as exact as float32 itself; 16 bits as they are. Triton's
interpreter (seen with 3.7) takes bfloat16 for integers when it multiplies, and cuts digits off instead of rounding:
there, bfloat16 is widened before products, and rounded here. On a GPU nothing of that is compiled.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """a (M, K), b (K, N), acc (M, N) float32: return acc + a @ b. PRECISION: see ``precision``."""
    if PRECISION == "widen":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def scale(x, factor, PRECISION: tl.constexpr):
    """Return x * factor in x's dtype, rounded once. PRECISION: see ``precision``."""
    if PRECISION == "widen":
        return narrow(x.to(tl.float32) * factor.to(tl.float32), x.dtype, PRECISION)
    return x * factor


@triton.jit
def narrow(x, dtype: tl.constexpr, PRECISION: tl.constexpr):
    """Return x, float32, rounded to the nearest of ``dtype``, ties to even. PRECISION: see ``precision``."""
    if PRECISION == "widen":
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)


def precision(dtype: torch.dtype) -> str:
    """Return what the functions here need to know of ``dtype``: "widen" for bfloat16 in the interpreter."""
    return "widen" if triton.knobs.runtime.interpret and dtype == torch.bfloat16 else "tf32x3"
