"""Channel-time learning, against its formula written out in float64."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from sqt_fast.kernels.ctl import ctl_merge_reference, position_reference

Float64 = NDArray[np.float64]


def convolve(x: Float64, weight: Float64, bias: Float64 | None) -> Float64:
    """Sum over taps and channels, with zeros outside: (B, C, H, W) and (K, C, k, k) to (B, K, H, W)."""
    size = weight.shape[-1]
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (size // 2,) * 2, (size // 2,) * 2))
    out = np.zeros((len(x), len(weight), height, width))
    for dy in range(size):
        for dx in range(size):
            out += np.einsum("bchw,kc->bkhw", padded[:, :, dy : dy + height, dx : dx + width], weight[:, :, dy, dx])
    return out if bias is None else out + bias[:, None, None]


def formula(args: list[Tensor | None]) -> Float64:
    x, p, h, wt, bt, ws, bs, wg, bg = (None if a is None else a.double().numpy() for a in args)
    assert x is not None
    assert p is not None
    assert h is not None
    assert wt is not None
    assert ws is not None
    assert wg is not None
    gate: Float64 = 1 / (1 + np.exp(-convolve(h, wg, bg)))
    return convolve(p * x, wt, bt) + convolve(x, ws, bs) * gate


def arguments(b: int, c: int, k: int, height: int, width: int, *, biased: bool) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(b + c + k + height + width)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return [
        normal(b, c, height, width),
        normal(b, c, 1, 1).sigmoid(),
        normal(b, 16, height, width),
        normal(k, c, 1, 1),
        normal(k) if biased else None,
        normal(k, c, 3, 3),
        normal(k) if biased else None,
        normal(k, 16, 3, 3) / 4,
        normal(k) if biased else None,
    ]


SHAPES = {"square": (2, 8, 8, 7, 7), "odd": (1, 5, 3, 6, 11), "wider": (3, 4, 12, 4, 2), "one pixel": (1, 4, 4, 1, 1)}


@pytest.mark.parametrize("biased", [False, True], ids=["plain", "folded"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_merge_equals_the_formula(shape: tuple[int, int, int, int, int], biased: bool) -> None:
    args = arguments(*shape, biased=biased)
    merged = ctl_merge_reference(*args)  # type: ignore[arg-type]  # the list holds them in order
    assert merged.shape == (shape[0], shape[2], shape[3], shape[4])
    np.testing.assert_allclose(merged.numpy(), formula(args), rtol=1e-10, atol=1e-10)


def test_merge_in_float32_is_close() -> None:
    args = arguments(2, 16, 8, 9, 9, biased=True)
    single = [None if a is None else a.float() for a in args]
    merged = ctl_merge_reference(*single)  # type: ignore[arg-type]
    assert merged.dtype == torch.float32
    np.testing.assert_allclose(merged.numpy(), formula(args), rtol=1e-4, atol=1e-4)


def interpolate(grid: Float64, height: int, width: int) -> Float64:
    """Corners on corners: pixel i of n lies at i * (P - 1) / (n - 1)."""
    out = np.empty((*grid.shape[:2], height, width))
    for y in range(height):
        for x in range(width):
            down = y * (grid.shape[2] - 1) / max(height - 1, 1)
            across = x * (grid.shape[3] - 1) / max(width - 1, 1)
            top, left = min(int(down), grid.shape[2] - 2), min(int(across), grid.shape[3] - 2)
            v, u = down - top, across - left
            upper = grid[:, :, top, left] * (1 - u) + grid[:, :, top, left + 1] * u
            lower = grid[:, :, top + 1, left] * (1 - u) + grid[:, :, top + 1, left + 1] * u
            out[:, :, y, x] = upper * (1 - v) + lower * v
    return out


@pytest.mark.parametrize(
    ("height", "width"), [(14, 14), (8, 8), (5, 9), (7, 4), (1, 7), (2, 2)], ids=lambda size: str(size)
)
def test_position_is_stretched_corner_to_corner(height: int, width: int) -> None:
    grid = torch.randn((1, 16, 7, 7), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stretched = position_reference(grid, height, width)
    np.testing.assert_allclose(stretched.numpy(), interpolate(grid.numpy(), height, width), rtol=1e-12, atol=1e-12)


def test_position_of_the_same_size_is_itself() -> None:
    grid = torch.randn(1, 16, 7, 7)
    assert position_reference(grid, 7, 7) is grid
