"""What is drawn for a clip: mmaction2's rules, within bounds for every video, the same again for the same key."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sqt_fast.clips.crops import crop_corners
from sqt_fast.clips.resize import resized_size
from sqt_fast.train.augment import (
    NOTHING,
    UNCHANGED,
    Choices,
    generator,
    order_of,
    plain_choices,
    random_choices,
)
from sqt_fast.train.recipes import RECIPES, TrainRecipe

K400 = RECIPES["k400"]
SIZES = st.tuples(st.integers(1, 4000), st.integers(1, 4000))
SEEDS = st.integers(0, (1 << 32) - 1)


@st.composite
def recipes(draw: st.DrawFn) -> TrainRecipe:
    scales = draw(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5))
    return dataclasses.replace(
        K400,
        scales=tuple(scales),
        max_scale_gap=draw(st.integers(0, 3)),
        flip=draw(st.floats(0, 1)),
        erase=draw(st.floats(0, 1)),
        jitter=draw(st.floats(0, 1)),
        jitter_hue=draw(st.floats(0, 1)),
    )


def drawn(
    count: int, recipe: TrainRecipe = K400, num_frames: int = 300, size: tuple[int, int] = (240, 320)
) -> Iterator[Choices]:
    return (random_choices(recipe, generator(3, 1, item), num_frames, size) for item in range(count))


def mmaction2_sizes(size: tuple[int, int], scales: tuple[float, ...], gap: int) -> list[tuple[int, int]]:
    """Return the sizes, (height, width), that mmaction2's MultiScaleCrop draws one of, each as likely.

    Source: mmaction2 1.x, mmaction/datasets/transforms/processing.py.
    """
    base = min(size)
    sides = [int(base * scale) for scale in scales]
    return [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= gap]


@given(recipe=recipes(), seed=SEEDS, epoch=st.integers(0, 1000), item=SEEDS, frames=st.integers(1, 3000), size=SIZES)
def test_everything_is_within_bounds(
    recipe: TrainRecipe, seed: int, epoch: int, item: int, frames: int, size: tuple[int, int]
) -> None:
    choices = random_choices(recipe, generator(seed, epoch, item), frames, size)
    start = int(choices.frames[0])
    assert start <= max(frames - 64, 0)
    assert choices.frames.tolist() == [(start + 4 * t) % frames for t in range(16)]
    top, left, bottom, right = choices.box.tolist()
    assert 0 <= top < bottom <= 1
    assert 0 <= left < right <= 1
    parts = [(bottom - top) * size[0] / min(size), (right - left) * size[1] / min(size)]
    scales = [
        (i, j)
        for i in range(len(recipe.scales))
        for j in range(len(recipe.scales))
        if abs(i - j) <= recipe.max_scale_gap
    ]
    # float32 of a box in a very wide picture: 1e-7 of the long side
    slack = 3e-7 * max(size) / min(size)
    assert any(abs(recipe.scales[i] - parts[0]) < slack and abs(recipe.scales[j] - parts[1]) < slack for i, j in scales)
    assert (abs(choices.jitter[:3] - 1) <= np.float32(recipe.jitter) + 1e-6).all()
    assert abs(choices.jitter[3]) <= 360 * recipe.jitter_hue + 1e-4
    assert 0 <= choices.noise < 1 << 31
    top, left, height, width = choices.erased.tolist()
    if choices.erased.any():
        assert min(top, left) >= 0
        assert top + height <= 1 + 1e-6
        assert left + width <= 1 + 1e-6
        assert height * width <= 1 / 3 + 1e-6
        assert (height * width >= 0.02 - 1e-6) or max(height, width) == 1
        assert (0.3 - 1e-4 <= height / width <= 1 / 0.3 + 1e-4) or max(height, width) == 1


@pytest.mark.parametrize("size", [(256, 340), (340, 256), (256, 256)], ids=str)
def test_sizes_of_crops_are_those_of_mmaction2_each_as_likely(size: tuple[int, int]) -> None:
    wanted = mmaction2_sizes(size, K400.scales, K400.max_scale_gap)
    assert len(wanted) == 13
    seen: Counter[tuple[int, int]] = Counter()
    for choices in drawn(5_200, size=size):
        top, left, bottom, right = (choices.box * [*size, *size]).tolist()
        seen[int(bottom - top + 1e-3), int(right - left + 1e-3)] += 1
    assert set(seen) == set(wanted)
    assert all(abs(count - 400) < 5 * 400**0.5 for count in seen.values())


def test_places_are_uniform() -> None:
    """Start, corner of the box, corner of what is erased: mean 1/2 and variance 1/12 of the room there is."""
    choices = list(drawn(4000, dataclasses.replace(K400, erase=1.0)))
    places = {
        "start": [c.frames[0] / (300 - 64) for c in choices],
        "top": [c.box[0] / (1 - (c.box[2] - c.box[0])) for c in choices if c.box[2] - c.box[0] < 0.99],
        "left": [c.box[1] / (1 - (c.box[3] - c.box[1])) for c in choices if c.box[3] - c.box[1] < 0.99],
        "erased top": [c.erased[0] / (1 - c.erased[2]) for c in choices if c.erased[2] < 1],
        "erased left": [c.erased[1] / (1 - c.erased[3]) for c in choices if c.erased[3] < 1],
    }
    for name, values in places.items():
        assert np.mean(values) == pytest.approx(0.5, abs=0.03), name
        assert np.var(values) == pytest.approx(1 / 12, abs=0.006), name
        assert (min(values), max(values)) == pytest.approx((0, 1), abs=0.01), name


def test_how_often() -> None:
    recipe = dataclasses.replace(K400, flip=0.3, erase=0.6)
    choices = list(drawn(4000, recipe))
    assert np.mean([c.flip for c in choices]) == pytest.approx(0.3, abs=0.03)
    assert np.mean([c.erased.any() for c in choices]) == pytest.approx(0.6, abs=0.03)
    assert len({c.noise for c in choices}) > 3990
    for share in (0.0, 1.0):
        all_or_none = list(drawn(200, dataclasses.replace(K400, flip=share, erase=share, jitter=0.0, jitter_hue=0.0)))
        assert {c.flip for c in all_or_none} == {bool(share)}
        assert {bool(c.erased.any()) for c in all_or_none} == {bool(share)}
        assert all((c.jitter == UNCHANGED).all() for c in all_or_none)


def test_flip_says_nothing_of_the_rest() -> None:
    """What one choice is must not follow from another: correlations of 3000 draws are below 0.09 (5 deviations)."""
    choices = list(drawn(3000, dataclasses.replace(K400, erase=1.0)))
    table = np.array([[c.flip, c.frames[0], *c.jitter, c.box[1], c.erased[1], c.noise] for c in choices], np.float64)
    correlations = np.corrcoef(table.T) - np.eye(table.shape[1])
    assert abs(correlations).max() < 0.09


def same(a: Choices, b: Choices) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(dataclasses.astuple(a), dataclasses.astuple(b), strict=True))


@given(seed=SEEDS, epoch=st.integers(0, 10_000), item=st.integers(0, (1 << 32) - 2), other=st.integers(1, 1 << 31))
def test_the_same_key_the_same_choices_and_no_other(seed: int, epoch: int, item: int, other: int) -> None:
    def of(seed: int, epoch: int, item: int) -> Choices:
        return random_choices(K400, generator(seed, epoch, item), 500, (240, 320))

    first = of(seed, epoch, item)
    assert same(first, of(seed, epoch, item))
    for changed in (
        of((seed + other) % (1 << 32), epoch, item),
        of(seed, epoch + other, item),
        of(seed, epoch, item ^ 1),
    ):
        assert not same(first, changed)


@given(seed=SEEDS, epoch=st.integers(0, 1000), num_items=st.integers(1, 2000))
def test_an_order_is_a_permutation(seed: int, epoch: int, num_items: int) -> None:
    order = order_of(seed, epoch, num_items)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(num_items))
    order_of.cache_clear()
    assert np.array_equal(order, order_of(seed, epoch, num_items))


def test_orders_differ() -> None:
    orders = [order_of(seed, epoch, 1000) for seed in (0, 1) for epoch in range(3)]
    for k, order in enumerate(orders):
        assert all(np.mean(order == other) < 0.02 for other in orders[:k])


def centre_crop(size: tuple[int, int], recipe: TrainRecipe) -> NDArray[np.float64]:
    """Return mmaction2's centre crop of the resized frame, in pixels of that: top, left, bottom, right."""
    height, width = resized_size(*size, recipe.short_side)
    ((top, left),) = crop_corners(height, width, recipe.crop_size, 1)
    return np.array([top, left, top + recipe.crop_size, left + recipe.crop_size], np.float64)


@given(size=st.tuples(st.integers(64, 2000), st.integers(64, 2000)), frames=st.integers(1, 2000))
def test_validation_sees_the_centre(size: tuple[int, int], frames: int) -> None:
    choices = plain_choices(K400, frames, size)
    height, width = resized_size(*size, K400.short_side)
    # Half a pixel for the rounded corner, half for the rounded size; float32 for the rest.
    assert abs(choices.box * [height, width, height, width] - centre_crop(size, K400)).max() < 1.01
    assert (choices.jitter == UNCHANGED).all()
    assert (choices.erased == NOTHING).all()
    assert not choices.flip
    assert choices.frames.shape == (16,)


def test_validation_takes_the_frames_of_mmaction2(shared: Path) -> None:
    cases = json.loads((shared / "golden" / "sample_frames.json").read_text())["cases"]
    ours = [case for case in cases if (case["num_clips"], case["clip_len"], case["frame_interval"]) == (1, 16, 4)]
    assert len(ours) > 10
    for case in ours:
        assert [plain_choices(K400, case["total_frames"], (240, 320)).frames.tolist()] == case["frame_inds"]
