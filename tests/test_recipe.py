"""Recipes: how videos become clips, as a run asks for it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sqt_fast.clips.recipe import Recipe
from sqt_fast.config import FAST, OFFICIAL, OFFICIAL_HMDB51, ClipProtocol, IndexConfig
from sqt_fast.video.sampling import plan_clips
from tests.test_probe import FACTS


@pytest.mark.parametrize(
    ("options", "protocol"),
    [
        ({}, FAST),
        ({"weights": "hmdb51"}, FAST),
        ({"protocol": "official"}, OFFICIAL),
        ({"protocol": "official", "weights": "hmdb51"}, OFFICIAL_HMDB51),
        ({"protocol": "official", "weights": "/a/folder/SqueezeTime_HMDB51_65.56.pth"}, OFFICIAL_HMDB51),
        ({"protocol": "official", "weights": "mine.pth"}, OFFICIAL),
    ],
    ids=str,
)
def test_the_protocol_is_that_of_the_weights_however_they_are_named(
    options: dict[str, Any], protocol: ClipProtocol
) -> None:
    assert Recipe.of(IndexConfig(inputs=("x",), output=Path("t.csv"), **options)).protocol == protocol


def test_a_plan_is_that_of_the_options() -> None:
    recipe = Recipe(FAST, stride_s=0.04, target_fps=50.0)
    wanted = plan_clips(FACTS.times_s, FACTS.end_s, stride_s=0.04, target_fps=50.0)
    assert np.array_equal(recipe.plan(FACTS).frames, wanted.frames)
    assert np.array_equal(recipe.plan(FACTS).spans, wanted.spans)
