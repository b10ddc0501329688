"""What makes scenes harder: pure functions of time, as strong as they say, and no stronger."""

from dataclasses import replace

import numpy as np
import pytest

from sqt_fast.samples.disturbances import MAX_NOISE, MAX_SHAKE, Disturbances
from sqt_fast.samples.scenes import Frames, draw, random_scene

SIZE = (120, 80)
TIMES_S = np.arange(90) / 30


def grey(size: tuple[int, int] = SIZE, value: int = 128) -> Frames:
    return np.full((size[1], size[0], 3), value, np.uint8)


def test_each_is_there_in_its_share_of_scenes_and_within_its_limits() -> None:
    drawn = [Disturbances.random([7, seed]) for seed in range(1000)]
    shakes, noises = (np.array([getattr(each, name) for each in drawn]) for name in ("shake", "noise"))
    for values, most in ((shakes, MAX_SHAKE), (noises, MAX_NOISE)):
        assert (values > 0).mean() == pytest.approx(0.5, abs=0.05)
        assert values.max() <= most
        assert values[values > 0].mean() == pytest.approx(most / 2, rel=0.1)
    starts, ends = np.array([each.bar for each in drawn]).T
    barred = ends > starts
    assert barred.mean() == pytest.approx(1 / 3, abs=0.05)
    assert 0.05 <= (ends - starts)[barred].min() <= (ends - starts)[barred].max() <= 0.12
    assert 0.1 <= starts.min() <= ends.max() <= 0.92
    assert np.mean([each.bar_upright for each in drawn]) == pytest.approx(0.5, abs=0.05)
    assert np.corrcoef([shakes > 0, noises > 0, barred])[np.triu_indices(3, 1)] == pytest.approx(0, abs=0.1)


def test_the_same_seed_gives_the_same() -> None:
    assert Disturbances.random([3, 1]) == Disturbances.random([3, 1])
    assert Disturbances.random([3, 1]) != Disturbances.random([3, 2])
    assert Disturbances.random(5) == Disturbances.random(5)


def test_none_is_none() -> None:
    frame = grey()
    Disturbances().put(frame, 0.5)
    assert (frame == 128).all()
    assert Disturbances().margin(*SIZE) == 0
    assert Disturbances().camera(0.5, *SIZE) == (0, 0)


# -- the camera -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(120, 80), (80, 120), (1000, 999)], ids=str)
@pytest.mark.parametrize("shake", [0.001, 0.02, MAX_SHAKE])
def test_the_camera_stays_in_its_margin(shake: float, size: tuple[int, int]) -> None:
    for seed in range(20):
        shaking = Disturbances(seed=seed, shake=shake)
        margin = shaking.margin(*size)
        assert shake * min(size) <= margin < shake * min(size) + 1
        corners = np.array([shaking.camera(time_s, *size) for time_s in np.arange(0, 30, 0.1)])
        assert corners.min() >= 0
        assert corners.max() <= 2 * margin
        assert np.ptp(corners, axis=0).min() > 1.5 * margin, "it hardly moves"


def test_the_camera_moves_smoothly_and_each_its_own_way() -> None:
    paths = []
    for seed in range(4):
        shaking = Disturbances(seed=seed, shake=MAX_SHAKE)
        corners = np.array([shaking.camera(time_s, 2000, 1000) for time_s in TIMES_S])
        assert np.abs(np.diff(corners, axis=0)).max() < 0.4 * shaking.margin(2000, 1000)
        paths += list(corners.T)
    assert np.abs(np.corrcoef(paths) - np.eye(8)).max() < 0.95


def test_a_still_scene_moves_as_one_with_the_camera() -> None:
    """Where two frames show the same place they show the same pixels, the shape's too."""
    shaking = Disturbances(seed=4, shake=MAX_SHAKE)
    scene = replace(random_scene("still", 2), disturbances=shaking)
    frames = list(draw(scene, TIMES_S, SIZE))
    corners = [shaking.camera(time_s, *SIZE) for time_s in TIMES_S]
    assert len(set(corners)) > 10
    (left, top), first = corners[0], frames[0]
    for (x, y), frame in zip(corners, frames, strict=True):
        right, down = x - left, y - top
        here = frame[max(-down, 0) : SIZE[1] - max(down, 0), max(-right, 0) : SIZE[0] - max(right, 0)]
        there = first[max(down, 0) : SIZE[1] + min(down, 0), max(right, 0) : SIZE[0] + min(right, 0)]
        assert (here == there).all()
        assert (right, down) == (0, 0) or (frame != first).any()


# -- noise and bar ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.5, 3.0, MAX_NOISE])
def test_noise_is_as_strong_as_it_says(noise: float) -> None:
    grains = []
    for time_s in TIMES_S[:8]:
        frame = grey()
        Disturbances(seed=1, noise=noise).put(frame, time_s)
        grains.append(frame.astype(float) - 128)
    grain = np.stack(grains)
    assert grain.mean() == pytest.approx(0, abs=0.03 * noise)
    assert grain.std() == pytest.approx(np.hypot(noise, 12**-0.5), rel=0.02)  # rounding adds a twelfth to the variance
    between = np.corrcoef(grain.reshape(8, -1)), np.corrcoef(grain.reshape(-1, 3).T)  # times, channels
    assert all(np.abs(each - np.eye(len(each))).max() < 0.04 for each in between)


def test_noise_stays_in_range() -> None:
    for value, mean in ((0, 3.2), (255, 251.8)):  # half of it is cut off: 8 / sqrt(2 pi) is left
        frame = grey(value=value)
        Disturbances(noise=8.0).put(frame, 0.0)
        assert frame.mean() == pytest.approx(mean, abs=0.1)


def test_a_frame_depends_on_nothing_but_seed_and_time() -> None:
    noisy = Disturbances(seed=3, noise=4.0, bar=(0.2, 0.3))
    frames = []
    for disturbances, time_s in ((noisy, 0.4), (noisy, 0.4), (noisy, 0.44), (replace(noisy, seed=4), 0.4)):
        frames.append(grey())
        disturbances.put(frames[-1], time_s)
    assert (frames[0] == frames[1]).all()
    assert (frames[0] != frames[2]).any(-1).mean() > 0.9 * 0.9  # the rest is the bar, whose black is cut off
    assert (frames[0] != frames[3]).any(-1).mean() > 0.9 * 0.9


@pytest.mark.parametrize("upright", [True, False])
def test_a_bar_is_in_front_from_side_to_side(upright: bool) -> None:
    frame = grey()
    Disturbances(bar=(0.25, 0.35), bar_upright=upright, bar_colour=(1, 2, 3)).put(frame, 0.0)
    covered = (frame == (1, 2, 3)).all(-1)
    across = covered if upright else covered.T
    assert (across == across[0]).all()
    length = SIZE[0] if upright else SIZE[1]
    assert np.flatnonzero(across[0]).tolist() == list(range(round(0.25 * length), round(0.35 * length)))
    assert (frame[~covered] == 128).all()


def test_a_scene_is_drawn_with_its_own() -> None:
    calm = random_scene("clockwise", 5)
    clean = np.stack(list(draw(calm, TIMES_S[:5], SIZE))).astype(float)
    disturbances = Disturbances(noise=5.0, bar=(0.4, 0.5), bar_colour=(200, 0, 200))
    frames, again = (np.stack(list(draw(replace(calm, disturbances=disturbances), TIMES_S[:5], SIZE))) for _ in "ab")
    assert (frames == again).all()
    bar = frames[:, :, 48:60].mean((0, 1, 2))
    assert bar == pytest.approx((200, 2, 200), abs=0.3)  # 5 / sqrt(2 pi) is left of noise about black
    grain = np.delete(frames - clean, np.s_[48:60], axis=2)
    assert grain.std() == pytest.approx(5, rel=0.03)
