"""Still, textured backgrounds: pure functions of a kind, a seed, a colour and a size.

The same at every size: a texture is drawn over the unit square and sampled there.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Canvas = NDArray[np.float32]  # (H, W, 3) RGB, 0 to 255
_Texture = Callable[[np.random.Generator, NDArray[np.float32], NDArray[np.float32]], Canvas]
_CONTRAST = 25.0  # of 255: a shape stays the brightest thing there is


def background(kind: str, seed: int, colour: tuple[float, float, float], width: int, height: int) -> Canvas:
    """Return a background (H, W, 3), 0 to 255. kind: one of ``BACKGROUNDS``; colour: its mean RGB, 0 to 255."""
    rng = np.random.default_rng(seed)
    across = (np.arange(width, dtype=np.float32) + 0.5) / width
    down = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height
    texture = _TEXTURES[kind](rng, *np.broadcast_arrays(across, down))
    canvas: Canvas = np.clip(np.array(colour, np.float32) + _CONTRAST * texture, 0, 255).astype(np.float32)
    return canvas


def _clouds(rng: np.random.Generator, across: Canvas, down: Canvas) -> Canvas:
    """Noise in octaves."""
    height, width = np.broadcast_shapes(across.shape, down.shape)
    canvas = np.zeros((height, width, 3), np.float32)
    for cells in (3, 6, 12, 24, 48):
        grid = rng.uniform(-1, 1, (cells, cells, 3)).astype(np.float32)
        rows = _stretch(grid, height)
        canvas += cells**-0.3 * _stretch(rows.swapaxes(0, 1), width).swapaxes(0, 1)
    return canvas


def _stretch(grid: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Interpolate linearly along the first axis: (n, ...) to (length, ...), ends on ends."""
    place = np.linspace(0, len(grid) - 1, length)
    low = np.minimum(place.astype(np.int64), len(grid) - 2)
    part = (place - low).astype(np.float32).reshape(-1, *[1] * (grid.ndim - 1))
    return np.asarray(grid[low] * (1 - part) + grid[low + 1] * part, dtype=np.float32)


def _tint(rng: np.random.Generator, pattern: NDArray[np.floating[Any]]) -> Canvas:
    """Colour a pattern (H, W) of -1 to 1."""
    return np.asarray(pattern[..., None] * rng.uniform(0.4, 1, 3), dtype=np.float32)


def _gradient(rng: np.random.Generator, across: Canvas, down: Canvas) -> Canvas:
    """From one side to the other."""
    turn = rng.uniform(0, math.tau)
    return _tint(rng, 1.6 * ((across - 0.5) * np.float32(math.cos(turn)) + (down - 0.5) * np.float32(math.sin(turn))))


def _stripes(rng: np.random.Generator, across: Canvas, down: Canvas) -> Canvas:
    """Soft stripes at any angle."""
    turn, count = rng.uniform(0, math.tau), rng.uniform(3, 12)
    along = across * np.float32(math.cos(turn)) + down * np.float32(math.sin(turn))
    return _tint(rng, np.sin(math.tau * count * along + rng.uniform(0, math.tau)))


def _checks(rng: np.random.Generator, across: Canvas, down: Canvas) -> Canvas:
    """A chessboard."""
    columns, rows = rng.integers(3, 12, 2)
    odd = (np.floor(across * columns) + np.floor(down * rows)) % 2
    return _tint(rng, odd.astype(np.float32) * 1.6 - 0.8)


def _bricks(rng: np.random.Generator, across: Canvas, down: Canvas) -> Canvas:
    """A wall, every other row moved by half a brick."""
    columns, rows = rng.integers(3, 7), rng.integers(5, 14)
    row = np.floor(down * rows)
    in_row, in_brick = down * rows - row, (across * columns + row % 2 / 2) % 1
    joint = (in_row < 0.15) | (in_brick < 0.07)
    return _tint(rng, np.where(joint, np.float32(-0.9), np.float32(0.5)))


def _rings(rng: np.random.Generator, across: Canvas, down: Canvas) -> Canvas:
    """Rings round a point."""
    x, y = rng.uniform(0.1, 0.9, 2)
    return _tint(rng, np.sin(math.tau * rng.uniform(3, 9) * np.hypot(across - np.float32(x), down - np.float32(y))))


def _cells(rng: np.random.Generator, across: Canvas, down: Canvas) -> Canvas:
    """Fields of one colour each, round random points."""
    points = rng.uniform(0, 1, (int(rng.integers(6, 20)), 2)).astype(np.float32)
    away = (across[..., None] - points[:, 0]) ** 2 + (down[..., None] - points[:, 1]) ** 2
    colours: Canvas = rng.uniform(-1, 1, (len(points), 3)).astype(np.float32)
    return np.asarray(colours[away.argmin(-1)])


_TEXTURES: dict[str, _Texture] = {
    "clouds": _clouds,
    "gradient": _gradient,
    "stripes": _stripes,
    "checks": _checks,
    "bricks": _bricks,
    "rings": _rings,
    "cells": _cells,
}
BACKGROUNDS: tuple[str, ...] = tuple(_TEXTURES)
