"""Scenes whose motion is the class: what sample videos and tests show, as pure functions of time.

One anti-aliased shape moves over a still, textured background: to the ``left``, ``right``, ... or stays ``still``
(``MOTIONS``). Shape, colours, size, place, speed and background are random, so only the motion tells the class, and
every motion repeats, so the class holds through the whole clip. The pixels depend on nothing but the scene, the times
and the frame size.
"""

import cmath
import colorsys
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sqt_fast.errors import ConfigError

Frames = NDArray[np.uint8]  # RGB: (H, W, 3) or (F, H, W, 3)
Colour = tuple[float, float, float]  # RGB, 0 to 255


@dataclass(frozen=True)
class Scene:
    """One video before it is sampled: every random choice.

    x, y: the centre of the shape; at 0 the shape has just left the frame at the left or top, at 1 at the right or
    bottom. angle: radians, clockwise on the screen. radius: of the circle round the shape, in shorter frame sides.
    rate_hz: repetitions of the motion per second; phase: repetitions done at time 0. A dot of dot_colour inside the
    shape shows its angle.
    """

    motion: str
    shape: str
    x: float
    y: float
    angle: float
    radius: float
    rate_hz: float
    phase: float
    colour: Colour
    dot_colour: Colour
    background: Colour
    texture_seed: int
    scale: float = 1.0  # the shape is drawn at radius * scale
    opacity: float = 1.0


class _Motion(NamedTuple):
    """move: from a scene and the repetitions done to the scene at that moment. rate_hz: lowest and highest."""

    move: Callable[[Scene, float], Scene]
    rate_hz: tuple[float, float]


_SLIDE_HZ, _SPIN_HZ, _SIZE_HZ = (0.3, 0.6), (0.2, 0.45), (0.45, 0.8)
_MOTIONS = {
    "left": _Motion(lambda scene, n: replace(scene, x=1 - n % 1), _SLIDE_HZ),
    "right": _Motion(lambda scene, n: replace(scene, x=n % 1), _SLIDE_HZ),
    "up": _Motion(lambda scene, n: replace(scene, y=1 - n % 1), _SLIDE_HZ),
    "down": _Motion(lambda scene, n: replace(scene, y=n % 1), _SLIDE_HZ),
    "clockwise": _Motion(lambda scene, n: replace(scene, angle=scene.angle + math.tau * n), _SPIN_HZ),
    "anticlockwise": _Motion(lambda scene, n: replace(scene, angle=scene.angle - math.tau * n), _SPIN_HZ),
    "grow": _Motion(lambda scene, n: replace(scene, scale=0.4 * 4 ** (n % 1)), _SIZE_HZ),
    "shrink": _Motion(lambda scene, n: replace(scene, scale=0.4 * 4 ** (1 - n % 1)), _SIZE_HZ),
    "still": _Motion(lambda scene, _: scene, (0.0, 0.0)),
    "bounce": _Motion(lambda scene, n: replace(scene, y=0.7 - 1.6 * (n % 1) * (1 - n % 1)), (0.7, 1.1)),
    "shake": _Motion(lambda scene, n: replace(scene, x=scene.x + 0.06 * math.sin(math.tau * n)), (2.0, 3.0)),
    "blink": _Motion(lambda scene, n: replace(scene, opacity=float(n % 1 < 0.5)), (1.0, 1.8)),
}
MOTIONS: tuple[str, ...] = tuple(_MOTIONS)

_OUTLINES: dict[str, list[complex]] = {  # corners x + iy on or inside the unit circle, the first to the right
    "circle": [],
    "square": [1j**k for k in range(4)],
    "triangle": [cmath.rect(1, math.tau * k / 3) for k in range(3)],
    "star": [cmath.rect(0.5 if k % 2 else 1, math.tau * k / 10) for k in range(10)],
    "cross": [1j**k * corner for k in range(4) for corner in (0.94 - 0.33j, 0.94 + 0.33j, 0.33 + 0.33j)],
}
SHAPES: tuple[str, ...] = tuple(_OUTLINES)


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    """Return the RGB colour, 0 to 255, of an HSV colour, 0 to 1."""
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return 255 * red, 255 * green, 255 * blue


def random_scene(motion: str, seed: int | Sequence[int] = 0) -> Scene:
    """Return a scene with the given motion (one of ``MOTIONS``) and everything else drawn from ``seed`` (0 or more).

    Raises ConfigError for an unknown motion.
    """
    if motion not in _MOTIONS:
        raise ConfigError(f"motion {motion!r}: expected one of {', '.join(MOTIONS)}")
    rng = np.random.default_rng(seed)
    light, dark = float(rng.uniform(0.9, 1)), float(rng.uniform(0.25, 0.45))
    hue, other_hue = rng.uniform(size=2).tolist()
    return Scene(
        motion=motion,
        shape=SHAPES[rng.integers(len(SHAPES))],
        x=float(rng.uniform(0.4, 0.6)),
        y=float(rng.uniform(0.4, 0.6)),
        angle=float(rng.uniform(0, math.tau)),
        radius=float(rng.uniform(0.14, 0.2)),
        rate_hz=float(rng.uniform(*_MOTIONS[motion].rate_hz)),
        phase=float(rng.uniform()),
        colour=_rgb(hue, float(rng.uniform(0.5, 0.9)), light),
        dot_colour=_rgb(hue, 0.5, 0.1),
        background=_rgb(other_hue, float(rng.uniform(0.1, 0.4)), dark),
        texture_seed=int(rng.integers(2**32)),
    )


def draw(scene: Scene, times_s: Iterable[float], size: tuple[int, int]) -> Iterator[Frames]:
    """Yield one frame (H, W, 3) uint8 RGB per time in seconds. size: width and height in pixels, each at least 16.

    A frame does not depend on the other times. Raises ConfigError for a smaller size, at the first frame.
    """
    width, height = size
    if min(size) < 16:
        raise ConfigError(f"size {width}x{height}: expected at least 16x16 pixels")
    move = _MOTIONS[scene.motion].move
    canvas = _background(scene, width, height)
    still = np.rint(canvas).astype(np.uint8)
    for time_s in times_s:
        frame = still.copy()
        _put_shape(frame, canvas, move(scene, scene.phase + scene.rate_hz * time_s))
        yield frame


def _background(scene: Scene, width: int, height: int) -> NDArray[np.float32]:
    """Return the textured background (H, W, 3), 0 to 255: noise in octaves, the same at every size."""
    rng = np.random.default_rng(scene.texture_seed)
    canvas = np.full((height, width, 3), scene.background, dtype=np.float32)
    for cells in (3, 6, 12, 24, 48):
        grid = rng.uniform(-1, 1, (cells, cells, 3)).astype(np.float32)
        rows = _stretch(grid, height)
        canvas += 25 * cells**-0.3 * _stretch(rows.swapaxes(0, 1), width).swapaxes(0, 1)
    return canvas.clip(0, 255)


def _stretch(grid: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Interpolate linearly along the first axis: (n, ...) to (length, ...), ends on ends."""
    place = np.linspace(0, len(grid) - 1, length)
    low = np.minimum(place.astype(np.int64), len(grid) - 2)
    part = (place - low).astype(np.float32).reshape(-1, *[1] * (grid.ndim - 1))
    return np.asarray(grid[low] * (1 - part) + grid[low + 1] * part, dtype=np.float32)


def _put_shape(frame: Frames, canvas: NDArray[np.float32], scene: Scene) -> None:
    """Draw the shape of a moment into frame (H, W, 3), in place; canvas: the same background before rounding."""
    height, width, _ = frame.shape
    reach = scene.radius * min(width, height)
    centre_x, centre_y = scene.x * (width + 2 * reach) - reach, scene.y * (height + 2 * reach) - reach
    radius = reach * scene.scale
    top, bottom = (min(max(round(centre_y + d), 0), height) for d in (-radius - 2, radius + 2))
    left, right = (min(max(round(centre_x + d), 0), width) for d in (-radius - 2, radius + 2))
    across, down = np.arange(left, right) + 0.5 - centre_x, np.arange(top, bottom) + 0.5 - centre_y
    turn = cmath.rect(1 / radius, -scene.angle)
    points = ((across + 1j * down[:, None]) * turn).astype(np.complex64)  # in radii, the shape upright
    box = canvas[top:bottom, left:right]
    for colour, distance in (
        (scene.colour, _distance(points, _OUTLINES[scene.shape])),
        (scene.dot_colour, np.abs(points - np.complex64(0.35)) - np.float32(0.18)),
    ):
        cover = scene.opacity * (0.5 - distance * radius).clip(0, 1)[..., None]  # over one pixel: anti-aliased
        box = box + cover * (np.array(colour, dtype=np.float32) - box)
    frame[top:bottom, left:right] = np.rint(box)


def _distance(points: NDArray[np.complex64], corners: Sequence[complex]) -> NDArray[np.float32]:
    """Return the distance of points x + iy to a polygon, below 0 inside; without corners: to the unit circle.

    Inside by the even-odd rule: edge by edge, count those to the right of the point.
    """
    if not corners:
        return np.abs(points).astype(np.float32) - 1
    squared = np.full(points.shape, np.inf, dtype=np.float32)
    inside = np.zeros(points.shape, dtype=bool)
    for start, end in zip(corners, [*corners[1:], corners[0]], strict=True):
        edge, offset = end - start, points - start
        turned = offset * edge.conjugate()  # real: along the edge; imaginary: across it
        across = offset - edge * (turned.real / abs(edge) ** 2).clip(0, 1)
        squared = np.minimum(squared, across.real**2 + across.imag**2)
        spans = (points.imag < start.imag) != (points.imag < end.imag)
        inside ^= spans & ((turned.imag > 0) == (edge.imag > 0))
    return np.sqrt(squared) * np.where(inside, np.float32(-1), np.float32(1))
