"""The learning rate: values worked out by hand, no jump, and the release's schedule as mmengine steps it."""

import dataclasses
import itertools
import math

import pytest

from sqt_fast.train.recipes import RECIPES
from sqt_fast.train.schedule import rate

COSINE = dataclasses.replace(RECIPES["k400"], epochs=10, warmup_epochs=2.0, warmup_lr=0.1, final_lr=0.01)
STEPS = RECIPES["hmdb51"]


@pytest.mark.parametrize(
    ("step", "value"),
    [
        (0, 0.1),
        (5, 0.1 + 0.9 / 2),  # half of the 10 steps of warm-up
        (9, 0.1 + 0.9 * 0.9),
        (10, 1.0),
        (23, 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * 13 / 39))),  # a third of the way: cos 60 degrees
        (23, 0.01 + 0.99 * 0.75),
        (49, 0.01),  # the last of 50
    ],
)
def test_cosine(step: int, value: float) -> None:
    assert rate(COSINE, step, 5) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("epoch", "value"), [(0, 1.0), (11, 1.0), (12, 0.1), (23, 0.1), (24, 0.01), (49, 0.01)], ids=str
)
def test_steps(epoch: int, value: float) -> None:
    for step in (0, 6):
        assert rate(STEPS, epoch * 7 + step, 7) == pytest.approx(value)


@pytest.mark.parametrize("steps_per_epoch", [1, 2, 7, 469])
def test_no_jumps(steps_per_epoch: int) -> None:
    """Neither at the end of the warm-up nor anywhere: no step changes more than the steepest of both lines."""
    rates = [rate(RECIPES["k400"], step, steps_per_epoch) for step in range(100 * steps_per_epoch)]
    steepest = max(0.9 / (8 * steps_per_epoch), 0.99 * math.pi / 2 / (92 * steps_per_epoch - 1)) * 1.001
    assert max(abs(a - b) for a, b in itertools.pairwise(rates)) <= steepest
    assert (rates[0], rates[-1]) == pytest.approx((0.1, 0.01))
    assert max(rates) == pytest.approx(1)


def test_a_rate_past_the_end_is_the_last() -> None:
    assert rate(COSINE, 1000, 5) == pytest.approx(0.01)


def test_warm_up_goes_before_steps() -> None:
    recipe = dataclasses.replace(STEPS, warmup_epochs=1.0, warmup_lr=0.5)
    assert [rate(recipe, step, 2) for step in (0, 1, 2)] == [0.5, 0.75, 1.0]


def test_a_run_of_warm_up_alone() -> None:
    recipe = dataclasses.replace(COSINE, epochs=1, warmup_epochs=3.0)
    assert [rate(recipe, step, 3) for step in range(3)] == pytest.approx([0.1, 0.2, 0.3])
    assert rate(dataclasses.replace(COSINE, epochs=1, warmup_epochs=0.0), 0, 1) == 1.0
