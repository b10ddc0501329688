"""Whether a provider's result is right: what bench_kernels asks before it times anybody."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.kernel_providers import mapped
from sqt_fast.kernels.launch import Problem

# ||out - truth|| / ||truth|| that ours may have whatever PyTorch has: about one rounding to the dtype more.
FLOORS = {"fp32": 1e-5, "fp16": 5e-4, "bf16": 4e-3}


def truth_of(problem: Problem) -> Tensor:
    """Return the reference's result in float32, without TF32."""
    given = problem.reference
    assert given is not None
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return given.func(*_wide(given.args), **_wide(given.keywords))


def _wide(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float32
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    return mapped(value, _wide)


def error_of(call: Callable[[], Any], truth: Tensor) -> float:
    """Return the relative error of what ``call`` returns, or of its sums if larger; NaN if not all is written."""
    for tensor in _tensors(call()):
        tensor.fill_(torch.nan)  # a kernel writes where it wrote before
    out, *sums = _tensors(call())
    errors = [relative_error(out, truth)]
    errors += [relative_error(s.sum(1) if s.ndim == truth.ndim else s, truth.sum(1)) for s in sums]
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def _tensors(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def relative_error(out: Tensor, truth: Tensor) -> float:
    """Return ``||out - truth|| / ||truth||``."""
    if out.shape != truth.shape:
        raise ValueError(f"a result of shape {tuple(out.shape)} where {tuple(truth.shape)} is right")
    return float((out.float() - truth).norm() / truth.norm())


def allowed_error(problem: Problem, truth: Tensor, dtype: str) -> float:
    """Return what ours may have: twice PyTorch's in the same dtype. In fp32 PyTorch has none that could be doubled."""
    assert problem.reference is not None
    pytorch = 0.0 if dtype == "fp32" else relative_error(problem.reference(), truth)
    return max(2 * pytorch, FLOORS[dtype])
