"""The scenes: each motion is what its name says, measured from the pixels, and nothing else tells it."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from sqt_fast.errors import ConfigError
from sqt_fast.samples.backgrounds import BACKGROUNDS
from sqt_fast.samples.disturbances import Disturbances
from sqt_fast.samples.scenes import MOTIONS, PAIRS, SHAPES, SPLITS, Frames, Scene, draw, random_scene

FPS, NUM_FRAMES, SIZE = 20, 80, (160, 120)
SIZES_FPS, SLOW_FPS = 15, 10  # so that 80 frames hold enough repetitions of slower motions
SEEDS = range(4)
Floats = NDArray[np.floating[Any]]


# What the pixels show ------------------------------------------------------------------------------------------------


class Track(NamedTuple):
    """Measured from pixels, per frame (F,): centre and area of the shape, and whether all of it is on the stage."""

    x: Floats
    y: Floats
    area: Floats
    whole: NDArray[np.bool_]

    @property
    def steps(self) -> tuple[Floats, Floats]:
        """Movement in x and y between consecutive frames that both show the whole shape."""
        both = self.whole[1:] & self.whole[:-1]
        return np.diff(self.x)[both], np.diff(self.y)[both]


def stage(width: int, height: int) -> tuple[slice, slice]:
    """Return the rows and columns where the shape may show: the square in the middle."""
    most = min(width, height)
    rows, columns = (slice(round((side - most) / 2), round((side + most) / 2)) for side in (height, width))
    return rows, columns


def background_of(scene: Scene, size: tuple[int, int]) -> Frames:
    empty = replace(scene, motion="still", opacity=0.0, disturbances=Disturbances())
    return next(draw(empty, [0.0], size))


def track(frames: Frames, background: Frames) -> Track:
    masks = np.abs(frames.astype(np.int16) - background).sum(-1) > 90
    area = masks.sum((1, 2)).astype(float)
    height, width = background.shape[:2]
    with np.errstate(invalid="ignore"):  # no shape: no centre
        x, y = masks.sum(1) @ np.arange(width) / area, masks.sum(2) @ np.arange(height) / area
    shown = masks[:, *stage(width, height)]
    border = shown[:, [0, -1]].any((1, 2)) | shown[:, :, [0, -1]].any((1, 2))
    return Track(x, y, area, ~border & (area > 0))


def shown(motion: str, seed: int, fps: float = FPS, **changes: Any) -> tuple[Scene, Frames, Track]:
    """Draw and measure a clean scene, of every split in turn; without a dot, which may look like the background."""
    scene = random_scene(motion, seed, split=list(SPLITS)[seed % len(SPLITS)])
    scene = replace(scene, **{"dot_colour": scene.colour, **changes})
    frames = np.stack(list(draw(scene, np.arange(NUM_FRAMES) / fps, SIZE)))
    return scene, frames, track(frames, background_of(scene, SIZE))


def dot_angles(scene: Scene, frames: Frames) -> Floats:
    """Directions of the dark dot seen from the centre of a shape that stays there, radians, clockwise, (F,)."""
    (_, columns), reach = stage(*SIZE), scene.radius * min(SIZE)
    x = columns.start + scene.x * (columns.stop - columns.start + 2 * reach) - reach - 0.5
    y = scene.y * (SIZE[1] + 2 * reach) - reach - 0.5
    rows, columns_ = np.mgrid[: SIZE[1], : SIZE[0]]
    near = np.hypot(columns_ - x, rows - y) < 0.5 * reach
    dots = near & (np.abs(frames - np.array(scene.dot_colour)).sum(-1) < 60)
    return np.array([np.arctan2((rows - y)[dot].mean(), (columns_ - x)[dot].mean()) for dot in dots])


# Motions -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("motion", "sign_x", "sign_y"), [("left", -1, 0), ("right", 1, 0), ("up", 0, -1), ("down", 0, 1)]
)
def test_slides_move_one_way_and_come_back(motion: str, sign_x: int, sign_y: int, seed: int) -> None:
    _, _, seen = shown(motion, seed, SLOW_FPS)
    for steps, sign in zip(seen.steps, (sign_x, sign_y), strict=True):
        assert len(steps) > NUM_FRAMES / 6
        assert (steps * sign > 1).all() if sign else (np.abs(steps) < 0.5).all()
    starts = seen.whole[1:] & ~seen.whole[:-1]
    assert starts.sum() >= 1, "the shape never came back"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("motion", "sign"), [("clockwise", 1), ("anticlockwise", -1)])
def test_spins_turn_one_way_on_the_spot(motion: str, sign: int, seed: int) -> None:
    scene, frames, _ = shown(motion, seed, SLOW_FPS, shape="circle", dot_colour=(0.0, 0.0, 0.0))
    turned = np.unwrap(dot_angles(scene, frames))
    assert turned[-1] - turned[0] == pytest.approx(
        sign * 2 * np.pi * scene.rate_hz * (NUM_FRAMES - 1) / SLOW_FPS, abs=0.2
    )
    assert (np.diff(turned) * sign > 0).all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("motion", "sign", "least", "most"),
    [("grow", 1, 7, 10), ("shrink", -1, 7, 10), ("open", -1, 2, np.inf), ("close", 1, 2, np.inf)],
)
def test_areas_change_one_way_and_restart(motion: str, sign: int, least: float, most: float, seed: int) -> None:
    """A shape that grows becomes three times as wide; one that opens loses a growing wedge."""
    scene, _, seen = shown(motion, seed, SIZES_FPS)
    ratio = np.diff(np.log(seen.area)) * sign
    restarts = ratio < -0.5 * np.log(least)
    assert seen.whole.all()
    assert least < seen.area.max() / seen.area.min() < most
    assert restarts.sum() == pytest.approx(scene.rate_hz * NUM_FRAMES / SIZES_FPS, abs=1), "not a sawtooth"
    assert (ratio[~restarts] > -0.02).all()  # the pixels of an edge are counted
    assert (ratio > 0.01).mean() > 0.7


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("motion", "sign"), [("accelerate", 1), ("decelerate", -1)])
def test_orbits_are_round_and_change_their_speed_one_way(motion: str, sign: int, seed: int) -> None:
    scene, _, seen = shown(motion, seed, SLOW_FPS, shape="circle", radius=0.17)  # so small that it is always whole
    assert seen.whole.all()
    (rows, columns), reach = stage(*SIZE), 0.17 * min(SIZE)
    x, y = seen.x / (columns.stop - columns.start + 2 * reach), seen.y / (rows.stop - rows.start + 2 * reach)
    orbit = (x - (x.max() + x.min()) / 2) + 1j * (y - (y.max() + y.min()) / 2)
    assert np.abs(orbit).std() < 0.03 * np.abs(orbit).mean(), "no circle"
    turned = np.unwrap(np.angle(orbit)) * scene.sense
    speed = np.diff(turned)  # radians a frame
    assert (speed > -0.02).all(), "it turned back"
    most = speed.max()
    assert most == pytest.approx(1.95 * 2 * np.pi * scene.rate_hz / SLOW_FPS, rel=0.1)
    steps = np.diff(speed) * sign
    restarts = np.flatnonzero(steps < -0.15 * most)
    assert len(restarts) >= 1
    assert (steps > -0.15 * most).mean() > 0.9
    pieces = [piece for piece in np.split(np.arange(len(speed)), restarts + 1) if len(piece) > 20]
    for piece in pieces:
        assert np.corrcoef(piece, speed[piece])[0, 1] * sign > 0.95, "no even change of speed"
    whole = [piece for piece in pieces if piece[0] > 0 and piece[-1] < len(speed) - 1]
    for piece in whole:
        assert speed[piece].sum() == pytest.approx(2 * np.pi, abs=1.5 * most), "no full turn"
        assert speed[piece].max() > 8 * speed[piece].min()
    assert whole or scene.rate_hz < 0.25


@pytest.mark.parametrize("seed", SEEDS)
def test_still_is_still(seed: int) -> None:
    _, frames, seen = shown("still", seed)
    assert seen.whole.all()
    assert (frames == frames[0]).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_bounce_falls_and_rises(seed: int) -> None:
    _, _, seen = shown("bounce", seed, radius=0.2)
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


# What tells a motion, and what does not ------------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_each_of_a_pair_is_the_other_played_backwards(one: str, other: str) -> None:
    """All is drawn alike for both, the phase evenly over a repetition, the sense from both: so is what is backwards."""
    times_s = np.arange(20) / 8
    for seed, split in enumerate(SPLITS):
        forwards = random_scene(one, [4, seed], split=split, clean=False)
        assert random_scene(other, [4, seed], split=split, clean=False) == replace(forwards, motion=other)
        forwards = replace(forwards, disturbances=Disturbances())
        phase = -(forwards.phase + forwards.rate_hz * times_s[-1]) % 1
        backwards = replace(forwards, motion=other, phase=phase, sense=-forwards.sense)
        frames, played = (np.stack(list(draw(scene, times_s, (100, 64)))) for scene in (forwards, backwards))
        away = np.abs(frames.astype(int) - played[::-1])
        assert away.max() <= 1
        assert (away > 0).mean() < 1e-4
        assert np.abs(frames.astype(int) - played).mean() > 0.3, "it is the same forwards"


def test_pairs_are_of_two_classes_each() -> None:
    paired = [motion for pair in PAIRS for motion in pair]
    assert len(paired) == len(set(paired)) == 12
    assert set(MOTIONS) - set(paired) == {"still", "bounce", "shake", "blink"}
    assert len(MOTIONS) == 16


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_motion_shows_in_nothing_but_how_it_moves(motion: str) -> None:
    for split in SPLITS:
        scene = random_scene(motion, [9, 1], split=split, clean=False)
        still = random_scene("still", [9, 1], split=split, clean=False)
        assert replace(scene, motion="still", rate_hz=0.0) == still


def test_phases_and_senses_are_drawn_evenly() -> None:
    scenes = [random_scene("accelerate", [2, seed]) for seed in range(1000)]
    phases = np.sort([scene.phase for scene in scenes])
    assert np.abs(phases - np.linspace(0, 1, 1000)).max() < 0.06
    assert {scene.sense for scene in scenes} == {-1, 1}
    assert np.mean([scene.sense for scene in scenes]) == pytest.approx(0, abs=0.1)


def test_disturbances_change_nothing_else() -> None:
    clean, disturbed = (random_scene("left", 4, clean=clean) for clean in (True, False))
    assert clean.disturbances == Disturbances()
    assert disturbed.disturbances != Disturbances()
    assert replace(disturbed, disturbances=Disturbances()) == clean == random_scene("left", 4)


def test_splits_share_no_shape_no_background_and_no_scene() -> None:
    assert list(SPLITS) == ["train", "val", "test"]
    for names, wanted in (("shapes", SHAPES), ("textures", BACKGROUNDS)):
        dealt = [name for split in SPLITS.values() for name in getattr(split, names)]
        assert sorted(dealt) == sorted(wanted), f"{names} are left over, or in two splits"
    assert len({split.seed for split in SPLITS.values()}) == len(SPLITS)
    for name, split in SPLITS.items():
        scenes = [random_scene("up", [0, seed], split=name) for seed in range(100)]
        assert {scene.shape for scene in scenes} == set(split.shapes)
        assert {scene.texture for scene in scenes} == set(split.textures)
    for one, other in combinations(SPLITS, 2):
        scenes = [random_scene("up", [0, 3], split=name, clean=False) for name in (one, other)]
        for field in ("x", "y", "angle", "radius", "rate_hz", "phase", "colour", "background", "texture_seed"):
            assert getattr(scenes[0], field) != getattr(scenes[1], field)
        assert scenes[0].disturbances.seed != scenes[1].disturbances.seed


# Drawing -------------------------------------------------------------------------------------------------------------


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
    expected = {name: sides / 2 * np.sin(2 * np.pi / sides) for name, sides in
                (("triangle", 3), ("square", 4), ("pentagon", 5), ("hexagon", 6))}  # fmt: skip
    expected |= {"circle": np.pi, "star": 5 * 0.5 * np.sin(np.pi / 5), "cross": 4 * 0.66 * (0.94 - 0.33) + 0.66**2}
    expected |= {"kite": 1.7 * 1.1 / 2, "bar": 1.9 * 0.6, "arrow": 0.9 * 1.6 / 2 + 1 * 0.6}
    expected["corner"] = 0.6 * 1.4 + 0.8 * 0.6
    assert set(expected) == set(SHAPES)
    for shape, area in expected.items():
        cover = cover_of(replace(scene, shape=shape))
        assert cover.sum() == pytest.approx(area * 60**2, rel=0.005), shape
        assert ((cover > 0.2) & (cover < 0.8)).sum() > 50, shape


def cover_of(scene: Scene) -> Floats:
    """Return how much of each pixel a white scene's shape covers, 200 x 200."""
    frame, background = (next(draw(replace(scene, opacity=o), [0.0], (200, 200))) for o in (1.0, 0.0))
    cover: Floats = ((frame.astype(float) - background) / (255.0 - background)).mean(-1)
    return cover


@pytest.mark.parametrize("mouth", [0.3, 1.2, 2.0, 2.6])
def test_a_mouth_is_a_wedge_in_the_direction_of_the_shape(mouth: float) -> None:
    scene = replace(random_scene("still", 0), shape="circle", radius=0.3, x=0.5, y=0.5, colour=(255,) * 3)
    scene = replace(scene, dot_colour=(255,) * 3, angle=0.7)
    cover = cover_of(replace(scene, mouth=mouth))
    assert cover.sum() == pytest.approx((np.pi - mouth) * 60**2, rel=0.01)
    rows, columns = np.mgrid[:200, :200] - 99.5
    place = (columns + 1j * rows) * np.exp(-0.7j)
    sharp = (np.abs(place) > 5) & (np.abs(place) < 58)
    assert (cover[sharp & (np.abs(np.angle(place)) < mouth - 0.2)] == 0).all()
    assert (cover[sharp & (np.abs(np.angle(place)) > mouth + 0.2)] > 0.99).all()


@pytest.mark.parametrize("clean", [True, False], ids=["clean", "disturbed"])
@pytest.mark.parametrize("size", [(200, 64), (64, 200)], ids=["wide", "tall"])
def test_the_shape_shows_on_the_stage_only(size: tuple[int, int], clean: bool) -> None:
    """Beside it, frames are those of the empty scene: with a still camera, always the same."""
    rows, columns = stage(*size)
    for seed, motion in enumerate(MOTIONS):
        scene = random_scene(motion, [8, seed], split="train", clean=clean)
        times_s = np.arange(12) / 6
        frames, empty = (
            np.stack(list(draw(each, times_s, size))) for each in (scene, replace(scene, motion="still", opacity=0.0))
        )
        strays = scene.disturbances.margin(*size)
        beside = np.ones(size[::-1], bool)
        beside[
            max(0, rows.start - strays) : rows.stop + strays, max(0, columns.start - strays) : columns.stop + strays
        ] = False
        assert beside.mean() > 0.4
        assert (frames == empty)[:, beside].all(), motion
        assert not clean or (frames == frames[0])[:, beside].all(), motion
        assert (frames != empty)[:, ~beside].any(-1).mean() > 0.01, motion


@pytest.mark.parametrize(("motion", "axis"), [("right", 1), ("down", 0)])
@pytest.mark.parametrize("size", [(200, 64), (64, 200), (100, 80), (80, 80), (80, 66)], ids=str)
def test_slides_cross_the_stage_from_end_to_end(size: tuple[int, int], motion: str, axis: int) -> None:
    scene = replace(random_scene(motion, 1), phase=0.0, rate_hz=0.5)
    changed = np.zeros(size[::-1], bool)
    background = background_of(scene, size)
    for frame in draw(scene, np.arange(0, 2, 0.05), size):
        changed |= (frame != background).any(-1)
    crossed = np.flatnonzero(changed.any(1 - axis))
    along = stage(*size)[axis]
    assert crossed.tolist() == list(range(along.start, along.stop))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda: random_scene("sideways"), "'sideways': expected one of left, right", id="motion"),
        pytest.param(lambda: random_scene("up", split="tset"), "'tset': expected one of train, val, test", id="split"),
        pytest.param(lambda: next(draw(random_scene("up"), [0.0], (16, 15))), "at least 16x16 pixels", id="size"),
    ],
)
def test_refusals_say_what_is_allowed(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()
