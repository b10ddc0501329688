"""Scenes whose motion is the class: what sample videos and the ``motions`` data set show, as pure functions of time.

One anti-aliased shape moves over a textured background: to the ``left``, ``right``, ... or stays ``still``
(``MOTIONS``). Shape, colours, size, place, speed and background are random, so only the motion tells the class, and
every motion repeats, so the class holds through the whole clip. Each of the ``PAIRS`` is the other played backwards:
single frames, and frames in any order, show both alike. No shape or kind of background is in two of the ``SPLITS``.
The pixels depend on nothing but the scene, the times and the frame size.
"""

import cmath
import colorsys
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sqt_fast.errors import ConfigError
from sqt_fast.samples.backgrounds import Canvas, background
from sqt_fast.samples.disturbances import Disturbances

Frames = NDArray[np.uint8]  # RGB: (H, W, 3) or (F, H, W, 3)
Colour = tuple[float, float, float]  # RGB, 0 to 255


@dataclass(frozen=True)
class Scene:
    """One video before it is sampled: every random choice.

    x, y: the centre of the shape; at 0 the shape has just left the stage at the left or top, at 1 at the right or
    bottom. The stage is the square in the middle of the frame; nothing of the shape shows beside it. angle:
    radians, clockwise on the screen. radius: of the circle round the shape, in shorter frame sides. rate_hz:
    repetitions of the motion per second; phase: repetitions done at time 0. sense: 1 or -1, which way round an orbit
    goes. A dot of dot_colour inside the shape shows its angle.
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
    texture: str
    texture_seed: int
    sense: int
    scale: float = 1.0  # the shape is drawn at radius * scale
    opacity: float = 1.0
    mouth: float = 0.0  # half the angle of a wedge that is cut out of the shape, radians
    disturbances: Disturbances = field(default_factory=Disturbances)


class _Motion(NamedTuple):
    """move: from a scene and the repetitions done to the scene at that moment. rate_hz: lowest and highest."""

    move: Callable[[Scene, float], Scene]
    rate_hz: tuple[float, float]


def _orbit(scene: Scene, turns: float) -> Scene:
    place = cmath.rect(0.22, scene.angle + scene.sense * math.tau * turns)
    return replace(scene, x=0.5 + place.real, y=0.5 + place.imag)


def _eased(part: float) -> float:
    """Return how far one comes in a part of the time, both 0 to 1, with a speed that grows from 0.05 to 1.95."""
    return part * (0.05 + 0.95 * part)


# A window of 64 frames at 24 to 30 a second lasts 2.1 to 2.7 seconds, about one repetition.
_SLIDE_HZ, _SPIN_HZ, _SIZE_HZ, _ORBIT_HZ = (0.25, 0.5), (0.15, 0.35), (0.25, 0.5), (0.2, 0.35)
_MOTIONS = {
    "left": _Motion(lambda scene, n: replace(scene, x=1 - n % 1), _SLIDE_HZ),
    "right": _Motion(lambda scene, n: replace(scene, x=n % 1), _SLIDE_HZ),
    "up": _Motion(lambda scene, n: replace(scene, y=1 - n % 1), _SLIDE_HZ),
    "down": _Motion(lambda scene, n: replace(scene, y=n % 1), _SLIDE_HZ),
    "clockwise": _Motion(lambda scene, n: replace(scene, angle=scene.angle + math.tau * n), _SPIN_HZ),
    "anticlockwise": _Motion(lambda scene, n: replace(scene, angle=scene.angle - math.tau * n), _SPIN_HZ),
    "grow": _Motion(lambda scene, n: replace(scene, scale=0.4 * 3 ** (n % 1)), _SIZE_HZ),
    "shrink": _Motion(lambda scene, n: replace(scene, scale=0.4 * 3 ** (1 - n % 1)), _SIZE_HZ),
    "open": _Motion(lambda scene, n: replace(scene, mouth=2.6 * (n % 1)), _SIZE_HZ),
    "close": _Motion(lambda scene, n: replace(scene, mouth=2.6 * (1 - n % 1)), _SIZE_HZ),
    "accelerate": _Motion(lambda scene, n: _orbit(scene, _eased(n % 1)), _ORBIT_HZ),
    "decelerate": _Motion(lambda scene, n: _orbit(scene, -_eased(1 - n % 1)), _ORBIT_HZ),
    "still": _Motion(lambda scene, _: scene, (0.0, 0.0)),
    "bounce": _Motion(lambda scene, n: replace(scene, y=0.7 - 1.6 * (n % 1) * (1 - n % 1)), (0.5, 0.9)),
    "shake": _Motion(lambda scene, n: replace(scene, x=scene.x + 0.06 * math.sin(math.tau * n)), (2.0, 3.0)),
    "blink": _Motion(lambda scene, n: replace(scene, opacity=float(n % 1 < 0.5)), (1.0, 1.8)),
}
MOTIONS: tuple[str, ...] = tuple(_MOTIONS)
PAIRS: tuple[tuple[str, str], ...] = tuple(zip(MOTIONS[:12:2], MOTIONS[1:12:2], strict=True))

_OUTLINES: dict[str, list[complex]] = {  # corners x + iy on or inside the unit circle, the first to the right
    "circle": [],
    "pentagon": [cmath.rect(1, math.tau * k / 5) for k in range(5)],
    "hexagon": [cmath.rect(1, math.tau * k / 6) for k in range(6)],
    "kite": [1 + 0j, 0.55j, -0.7 + 0j, -0.55j],
    "bar": [0.95 + 0.3j, -0.95 + 0.3j, -0.95 - 0.3j, 0.95 - 0.3j],
    "arrow": [1 + 0j, 0.1 + 0.8j, 0.1 + 0.3j, -0.9 + 0.3j, -0.9 - 0.3j, 0.1 - 0.3j, 0.1 - 0.8j],
    "corner": [0.7 + 0.7j, 0.1 + 0.7j, 0.1 - 0.1j, -0.7 - 0.1j, -0.7 - 0.7j, 0.7 - 0.7j],
    "square": [1j**k for k in range(4)],
    "triangle": [cmath.rect(1, math.tau * k / 3) for k in range(3)],
    "star": [cmath.rect(0.5 if k % 2 else 1, math.tau * k / 10) for k in range(10)],
    "cross": [1j**k * corner for k in range(4) for corner in (0.94 - 0.33j, 0.94 + 0.33j, 0.33 + 0.33j)],
}
SHAPES: tuple[str, ...] = tuple(_OUTLINES)
DOT_PLACE, DOT_RADIUS = 0.5, 0.42  # in radii of the shape; what of the dot lies outside the shape is cut off


class Split(NamedTuple):
    """The shapes and kinds of background of one part of the data set, and what tells its seeds from the others'."""

    shapes: tuple[str, ...]
    textures: tuple[str, ...]
    seed: int


SPLITS: Mapping[str, Split] = MappingProxyType(
    {
        "train": Split(
            ("square", "star", "hexagon", "kite", "bar", "corner"), ("clouds", "gradient", "stripes", "checks"), seed=1
        ),
        "val": Split(("cross", "arrow"), ("bricks",), seed=2),
        "test": Split(("circle", "triangle", "pentagon"), ("rings", "cells"), seed=0),
    }
)


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    """Return the RGB colour, 0 to 255, of an HSV colour, 0 to 1."""
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return 255 * red, 255 * green, 255 * blue


def random_scene(motion: str, seed: int | Sequence[int] = 0, *, split: str = "test", clean: bool = True) -> Scene:
    """Return a scene with the given motion (one of ``MOTIONS``) and everything else drawn from ``seed`` (0 or more).

    split: one of ``SPLITS``; the same seed gives other scenes in each. clean: without ``Disturbances``. Raises
    ConfigError for an unknown motion or split.
    """
    if motion not in _MOTIONS:
        raise ConfigError(f"motion {motion!r}: expected one of {', '.join(MOTIONS)}")
    if split not in SPLITS:
        raise ConfigError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    shapes, textures, split_seed = SPLITS[split]
    seeds = [*([seed] if isinstance(seed, int) else seed), split_seed]
    rng = np.random.default_rng(seeds)
    light, dark = float(rng.uniform(0.9, 1)), float(rng.uniform(0.25, 0.45))
    hue, other_hue = rng.uniform(size=2).tolist()
    return Scene(
        motion=motion,
        shape=shapes[rng.integers(len(shapes))],
        x=float(rng.uniform(0.4, 0.6)),
        y=float(rng.uniform(0.4, 0.6)),
        angle=float(rng.uniform(0, math.tau)),
        radius=float(rng.uniform(0.22, 0.3)),
        rate_hz=float(rng.uniform(*_MOTIONS[motion].rate_hz)),
        phase=float(rng.uniform()),
        colour=_rgb(hue, float(rng.uniform(0.5, 0.9)), light),
        dot_colour=_rgb(hue, 0.5, 0.1),
        background=_rgb(other_hue, float(rng.uniform(0.1, 0.4)), dark),
        texture=textures[rng.integers(len(textures))],
        texture_seed=int(rng.integers(2**32)),
        sense=int(rng.choice((-1, 1))),
        disturbances=Disturbances() if clean else Disturbances.random([*seeds, 1]),
    )


def draw(scene: Scene, times_s: Iterable[float], size: tuple[int, int]) -> Iterator[Frames]:
    """Yield one frame (H, W, 3) uint8 RGB per time in seconds. size: width and height in pixels, each at least 16.

    A frame does not depend on the other times. Raises ConfigError for a smaller size, at the first frame.
    """
    width, height = size
    if min(size) < 16:
        raise ConfigError(f"size {width}x{height}: expected at least 16x16 pixels")
    move, disturbances = _MOTIONS[scene.motion].move, scene.disturbances
    margin = disturbances.margin(width, height)
    canvas = background(scene.texture, scene.texture_seed, scene.background, width + 2 * margin, height + 2 * margin)
    still = np.rint(canvas).astype(np.uint8)
    for time_s in times_s:
        world = still.copy()
        _put_shape(world, canvas, move(scene, scene.phase + scene.rate_hz * time_s), margin)
        left, top = disturbances.camera(time_s, width, height)
        frame = world[top : top + height, left : left + width].copy()
        disturbances.put(frame, time_s)
        yield frame


def _put_shape(frame: Frames, canvas: Canvas, scene: Scene, margin: int) -> None:
    """Draw the shape of a moment into frame (H, W, 3), in place; canvas: the same background before rounding.

    margin: pixels round the frame that the camera may show, which belong to no stage.
    """
    height, width = frame.shape[0] - 2 * margin, frame.shape[1] - 2 * margin
    stage = min(width, height)
    reach = scene.radius * stage
    stage_x, stage_y = (frame.shape[1] - stage) / 2, (frame.shape[0] - stage) / 2
    centre_x = stage_x + scene.x * (stage + 2 * reach) - reach
    centre_y = stage_y + scene.y * (stage + 2 * reach) - reach
    radius = reach * scene.scale
    top, bottom = _within(centre_y, radius + 2, stage_y, stage_y + stage)
    left, right = _within(centre_x, radius + 2, stage_x, stage_x + stage)
    across, down = np.arange(left, right) + 0.5 - centre_x, np.arange(top, bottom) + 0.5 - centre_y
    turn = cmath.rect(1 / radius, -scene.angle)
    points = ((across + 1j * down[:, None]) * turn).astype(np.complex64)  # in radii, the shape upright
    shape = _distance(points, _OUTLINES[scene.shape])
    if scene.mouth:
        shape = np.maximum(shape, _wedge(points, scene.mouth))
    dot = np.maximum(shape, np.abs(points - np.complex64(DOT_PLACE)) - np.float32(DOT_RADIUS))
    box = canvas[top:bottom, left:right]
    for colour, distance in ((scene.colour, shape), (scene.dot_colour, dot)):
        cover = scene.opacity * (0.5 - distance * radius).clip(0, 1)[..., None]  # over one pixel: anti-aliased
        box = box + cover * (np.array(colour, dtype=np.float32) - box)
    frame[top:bottom, left:right] = np.rint(box)


def _within(centre: float, reach: float, start: float, end: float) -> tuple[int, int]:
    """Return the pixels from and to which something reaches that shows between start and end only."""
    return round(min(max(centre - reach, start), end)), round(min(max(centre + reach, start), end))


def _wedge(points: NDArray[np.complex64], mouth: float) -> NDArray[np.float32]:
    """Return the distance of points x + iy to the outside of a wedge that opens to the right, below 0 outside."""
    inside = np.clip(mouth - np.abs(np.angle(points)), -math.pi / 2, math.pi / 2)
    return np.asarray(np.abs(points) * np.sin(inside), dtype=np.float32)


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
