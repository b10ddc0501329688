"""What the tests of kernels share: random tensors, a choice of tiles, and the one measure of accuracy."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from sqt_fast.kernels.launch import Config, Problem, dtype_name, executing

# Relative to the largest value: where PyTorch happens to be exact, a kernel may still round once.
FLOOR = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
SIXTEEN_TO_EIGHTY = (16, 32, 48, 64, 80)

each_dtype = pytest.mark.parametrize("dtype", FLOOR, ids=dtype_name)

# Tiles that differ in kind; the heuristic's are what every test takes that asks for none.
TILES: Mapping[str, Callable[[Problem], Config]] = {
    "heuristic": lambda problem: problem.heuristic,
    "smallest": lambda problem: min(problem.candidates()),
    "middle": lambda problem: sorted(problem.candidates())[len(problem.candidates()) // 2],
    "largest": lambda problem: max(problem.candidates()),
}
each_tiling = pytest.mark.parametrize("tiles", TILES.values(), ids=TILES)


def with_tiles(choose: Callable[[Problem], Config]) -> AbstractContextManager[None]:
    """Launch every problem with the tiles that ``choose`` names."""
    return executing(lambda problem: problem.launch(choose(problem))())


@contextmanager
def products_alike() -> Iterator[None]:
    """Make the interpreter's products of a row the same wherever the row lies, as they are on a GPU.

    OpenBLAS's are not (0.3.31: rows moved by one give other last digits). In float64 the difference is rounded away.
    """
    multiply = np.matmul

    def matmul(a: Any, b: Any, dtype: Any) -> Any:
        return multiply(a, b, dtype=np.float64).astype(dtype)

    with mock.patch.object(np, "matmul", matmul):
        yield


class Draw:
    """Draws dense random tensors, the same ones every time. NaN lies before and behind each in memory.

    A kernel that reads beyond what it was given then shows it.
    """

    MARGIN = 1024  # elements

    def __init__(self, device: str, dtype: torch.dtype, *, seed: int = 0) -> None:
        self.device, self.dtype = device, dtype
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, std: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """Return normal numbers of ``dtype``, the draw's own if None."""
        return self.placed(torch.randn(shape, generator=self._generator) * std, dtype)

    def uniform(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return numbers in 0..1 of ``dtype``, the draw's own if None."""
        return self.placed(torch.rand(shape, generator=self._generator), dtype)

    def bias(self, size: int) -> Tensor:
        """Return normal numbers, (size,) float32."""
        return self.normal(size, dtype=torch.float32)

    def placed(self, values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return a copy of ``values`` on the draw's device, between NaN."""
        buffer = torch.full((values.numel() + 2 * self.MARGIN,), torch.nan, dtype=dtype or self.dtype)
        buffer[self.MARGIN : self.MARGIN + values.numel()] = values.flatten()
        return buffer.to(self.device)[self.MARGIN : self.MARGIN + values.numel()].view(values.shape)


def moved(value: Any, device: str) -> Any:
    """Return ``value`` with every tensor in it, however deep in tuples, on ``device``; those of no device stay."""
    if isinstance(value, Tensor):
        return value if value.is_meta else value.to(device)
    return _mapped(value, lambda part: moved(part, device))


def as_dtype(value: Any, dtype: torch.dtype) -> Any:
    """Return ``value`` with every floating-point tensor in it, however deep in tuples, as ``dtype``."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    return _mapped(value, lambda part: as_dtype(part, dtype))


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    if not isinstance(value, tuple):
        return value
    parts = [function(part) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)


def assert_as_good(result: Tensor, reference: Callable[..., Tensor], args: Sequence[Any], **kwargs: Any) -> None:
    """Check that ``result`` is at most twice as wrong as ``reference`` in the same dtype, against it in float64."""
    double = {name: as_dtype(value, torch.float64) for name, value in kwargs.items()}
    truth = reference(*(as_dtype(arg, torch.float64) for arg in args), **double)
    with without_tf32():
        own = reference(*args, **kwargs)
    assert_error_at_most_twice(result, own, truth)


def without_tf32() -> AbstractContextManager[None]:
    """Have cuDNN multiply float32 as float32."""
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)


def assert_error_at_most_twice(result: Tensor, own: Tensor, truth: Tensor, *, floor: float | None = None) -> None:
    """Check that ``result`` is at most twice as far from ``truth`` as PyTorch's ``own`` result.

    The largest and the mean absolute error are held against PyTorch's. Values that are not finite fail. floor: relative
    to the largest value, FLOOR of the dtype if None.
    """
    assert result.shape == truth.shape
    assert result.dtype == own.dtype
    assert torch.isfinite(result).all(), "not every element was written, or one was read that is nobody's"
    error, torch_error = (result.double() - truth).abs(), (own.double() - truth).abs()
    scale = truth.abs().max() * (FLOOR[result.dtype] if floor is None else floor)
    assert error.max() <= 2 * torch_error.max() + scale / 2
    assert error.mean() <= 2 * torch_error.mean() + scale / 16
