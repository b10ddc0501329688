"""The scenes: each motion is what its name says, measured from the pixels."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from sqt_fast.samples.scenes import Frames, Scene, draw, random_scene

FPS, NUM_FRAMES, SIZE = 20, 80, (160, 120)
SEEDS = range(4)
Floats = NDArray[np.floating[Any]]


# What the pixels show ------------------------------------------------------------------------------------------------


class Track(NamedTuple):
    """Measured from pixels, per frame (F,): centre and area of the shape, and whether all of it is in the frame."""

    x: Floats
    y: Floats
    area: Floats
    whole: NDArray[np.bool_]

    @property
    def steps(self) -> tuple[Floats, Floats]:
        """Movement in x and y between consecutive frames that both show the whole shape."""
        both = self.whole[1:] & self.whole[:-1]
        return np.diff(self.x)[both], np.diff(self.y)[both]


def background_of(scene: Scene, size: tuple[int, int]) -> Frames:
    return next(draw(replace(scene, motion="still", opacity=0.0), [0.0], size))


def track(frames: Frames, background: Frames) -> Track:
    masks = np.abs(frames.astype(np.int64) - background).sum(-1) > 90
    area = masks.sum((1, 2)).astype(float)
    rows, columns = np.mgrid[: masks.shape[1], : masks.shape[2]]
    with np.errstate(invalid="ignore"):  # no shape: no centre
        x, y = (masks * columns).sum((1, 2)) / area, (masks * rows).sum((1, 2)) / area
    border = masks[:, [0, -1]].any((1, 2)) | masks[:, :, [0, -1]].any((1, 2))
    return Track(x, y, area, ~border & (area > 0))


def shown(motion: str, seed: int) -> tuple[Scene, Frames, Track]:
    scene = random_scene(motion, seed)
    frames = np.stack(list(draw(scene, np.arange(NUM_FRAMES) / FPS, SIZE)))
    return scene, frames, track(frames, background_of(scene, SIZE))


def dot_angles(scene: Scene, frames: Frames, x: float, y: float) -> Floats:
    """Directions of the dark dot seen from (x, y), radians, clockwise on the screen, (F,)."""
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    near = np.hypot(columns - x, rows - y) < 0.5 * scene.radius * min(SIZE)
    dots = near & (np.abs(frames - np.array(scene.dot_colour)).sum(-1) < 60)
    return np.array([np.arctan2((rows - y)[dot].mean(), (columns - x)[dot].mean()) for dot in dots])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("motion", "sign_x", "sign_y"), [("left", -1, 0), ("right", 1, 0), ("up", 0, -1), ("down", 0, 1)]
)
def test_slides_move_one_way_and_come_back(motion: str, sign_x: int, sign_y: int, seed: int) -> None:
    _, _, seen = shown(motion, seed)
    for steps, sign in zip(seen.steps, (sign_x, sign_y), strict=True):
        assert len(steps) > NUM_FRAMES / 3
        assert (steps * sign > 1).all() if sign else (np.abs(steps) < 0.5).all()
    starts = seen.whole[1:] & ~seen.whole[:-1]
    assert starts.sum() >= 1, "the shape never came back"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("motion", "sign"), [("clockwise", 1), ("anticlockwise", -1)])
def test_spins_turn_one_way_on_the_spot(motion: str, sign: int, seed: int) -> None:
    scene, frames, _ = shown(motion, seed)
    reach = scene.radius * min(SIZE)
    x, y = (place * (side + 2 * reach) - reach - 0.5 for place, side in zip((scene.x, scene.y), SIZE, strict=True))
    turned = np.unwrap(dot_angles(scene, frames, x, y))
    assert turned[-1] - turned[0] == pytest.approx(sign * 2 * np.pi * scene.rate_hz * (NUM_FRAMES - 1) / FPS, abs=0.2)
    assert (np.diff(turned) * sign > 0).all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("motion", "sign"), [("grow", 1), ("shrink", -1)])
def test_sizes_change_one_way_and_restart(motion: str, sign: int, seed: int) -> None:
    _, _, seen = shown(motion, seed)
    ratio = np.diff(np.log(seen.area)) * sign
    assert seen.whole.all()
    assert seen.area.max() > 8 * seen.area.min()
    assert 1 <= (ratio < 0).sum() <= 4, "not a sawtooth"
    assert (ratio[ratio < 0] < -1.5).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_still_is_still(seed: int) -> None:
    _, frames, seen = shown("still", seed)
    assert seen.whole.all()
    assert (frames == frames[0]).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_bounce_falls_and_rises(seed: int) -> None:
    _, _, seen = shown("bounce", seed)
    bend = np.diff(seen.y, 2)
    assert seen.whole.all()
    assert np.ptp(seen.y) > 0.3 * SIZE[1]
    assert np.ptp(seen.x) < 0.5
    assert (bend > 0).mean() > 0.8, "free fall bends downwards, except where it meets the floor"


@pytest.mark.parametrize("seed", SEEDS)
def test_shake_turns_back_twice_per_repetition(seed: int) -> None:
    scene, _, seen = shown("shake", seed)
    turns = (np.diff(np.sign(np.diff(seen.x))) != 0).sum()
    assert turns == pytest.approx(2 * scene.rate_hz * NUM_FRAMES / FPS, abs=3)
    assert np.ptp(seen.x) > 0.08 * SIZE[0]
    assert np.ptp(seen.y) < 0.5


@pytest.mark.parametrize("seed", SEEDS)
def test_blink_is_there_half_the_time(seed: int) -> None:
    scene, _, seen = shown("blink", seed)
    there = seen.area > 0
    assert len(set(seen.area[there])) == 1
    assert 0.35 < there.mean() < 0.65
    assert (there[1:] != there[:-1]).sum() == pytest.approx(2 * scene.rate_hz * NUM_FRAMES / FPS, abs=1)


def test_frames_depend_on_scene_time_and_size_only() -> None:
    times_s = [n * 1001 / 30000 for n in range(3)]
    frames, again, other = (
        np.stack(list(draw(random_scene("left", seed), times_s, (64, 48)))) for seed in ([7, 1], [7, 1], [7, 2])
    )
    alone = next(draw(random_scene("left", [7, 1]), times_s[2:], (64, 48)))
    assert frames.shape == (3, 48, 64, 3)
    assert frames.dtype == np.uint8
    assert (frames == again).all()
    assert (frames[2] == alone).all()
    assert (frames != other).any(-1).mean() > 0.9


def test_edges_are_anti_aliased_and_areas_right() -> None:
    scene = replace(random_scene("still", 0), radius=0.3, x=0.5, y=0.5, colour=(255,) * 3, dot_colour=(255,) * 3)
    expected = {"circle": np.pi, "square": 2.0, "triangle": 3**1.5 / 4, "star": 5 * 0.5 * np.sin(np.pi / 5)}
    expected["cross"] = 4 * 0.66 * (0.94 - 0.33) + 0.66**2
    for shape, area in expected.items():
        frame, background = (next(draw(replace(scene, shape=shape, opacity=o), [0.0], (200, 200))) for o in (1.0, 0.0))
        cover = (frame.astype(float) - background) / (255.0 - background)
        assert cover.mean(-1).sum() == pytest.approx(area * 60**2, rel=0.005), shape
        assert ((cover > 0.2) & (cover < 0.8)).any(-1).sum() > 50, shape
