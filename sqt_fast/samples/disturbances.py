"""What makes a scene harder to read: a shaking camera, noise, something in front. Pure functions of scene and time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]  # (H, W, 3) RGB

MAX_SHAKE, MAX_NOISE = 0.03, 8.0


@dataclass(frozen=True)
class Disturbances:
    """shake: how far the camera strays, in shorter frame sides. noise: standard deviation, of 255. bar: a bar of
    ``bar_colour`` in front, from and to a place in the frame, 0 to 1; upright or lying; empty for none.
    """

    seed: int = 0
    shake: float = 0.0
    noise: float = 0.0
    bar: tuple[float, float] = (0.0, 0.0)
    bar_upright: bool = True
    bar_colour: tuple[int, int, int] = (0, 0, 0)

    @classmethod
    def random(cls, seed: int | Sequence[int]) -> "Disturbances":
        """Draw each with a chance of one half, but for the bar: one third."""
        rng = np.random.default_rng(seed)
        shake, noise = rng.uniform(0, (MAX_SHAKE, MAX_NOISE)) * (rng.uniform(size=2) < 0.5)
        start, width = rng.uniform(0.1, 0.8), rng.uniform(0.05, 0.12) * (rng.uniform() < 1 / 3)
        return cls(
            seed=int(rng.integers(2**32)),
            shake=float(shake),
            noise=float(noise),
            bar=(float(start), float(start + width)),
            bar_upright=bool(rng.integers(2)),
            bar_colour=(int(rng.integers(140)), int(rng.integers(140)), int(rng.integers(140))),
        )

    def margin(self, width: int, height: int) -> int:
        """Return how many pixels round the frame the camera may show."""
        return math.ceil(self.shake * min(width, height))

    def camera(self, time_s: float, width: int, height: int) -> tuple[int, int]:
        """Return the upper left corner (x, y) of what the camera shows, in pixels of the frame with its margin."""
        margin = self.margin(width, height)
        phases = np.random.default_rng(self.seed).uniform(0, math.tau, (2, 2))
        slow, fast = 1.1 * math.tau * time_s, 2.7 * math.tau * time_s
        x, y = (0.6 * math.sin(slow + a) + 0.4 * math.sin(fast + b) for a, b in phases.tolist())
        return round(margin * (1 + x)), round(margin * (1 + y))

    def put(self, frame: Frame, time_s: float) -> None:
        """Draw the bar and the noise into ``frame`` (H, W, 3), in place."""
        start, end = self.bar
        length = frame.shape[1] if self.bar_upright else frame.shape[0]
        covered = slice(round(start * length), round(end * length))
        frame[(slice(None), covered) if self.bar_upright else covered] = self.bar_colour
        if self.noise:
            rng = np.random.default_rng([self.seed, round(time_s * 1e6)])
            grain = rng.standard_normal(frame.shape, np.float32) * np.float32(self.noise)
            frame[:] = np.rint(frame + grain).clip(0, 255)
