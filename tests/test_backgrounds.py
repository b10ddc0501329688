"""The backgrounds: each kind is one texture, the same at every size, and darker than any shape."""

import numpy as np
import pytest

from sqt_fast.samples.backgrounds import BACKGROUNDS, background

COLOUR = (90.0, 70.0, 50.0)
SEEDS = range(6)


@pytest.mark.parametrize("kind", BACKGROUNDS)
def test_a_background_is_a_texture_about_its_colour(kind: str) -> None:
    for seed in SEEDS:
        canvas = background(kind, seed, COLOUR, 96, 64)
        assert canvas.shape == (64, 96, 3)
        assert canvas.dtype == np.float32
        np.testing.assert_allclose(canvas.mean((0, 1)), COLOUR, atol=15)
        assert (canvas.std((0, 1)) > 3).all()


@pytest.mark.parametrize("kind", BACKGROUNDS)
def test_the_seed_is_all_there_is_to_chance(kind: str) -> None:
    canvases = [background(kind, seed, COLOUR, 40, 30) for seed in SEEDS]
    for seed, canvas in zip(SEEDS, canvases, strict=True):
        assert (canvas == background(kind, seed, COLOUR, 40, 30)).all()
        assert all(np.abs(canvas - other).mean() > 2 for other in canvases if other is not canvas)


@pytest.mark.parametrize("kind", BACKGROUNDS)
def test_it_is_the_same_at_every_size(kind: str) -> None:
    """Drawn three times as fine and averaged over 3 x 3 pixels; where colours meet sharply, some pixels are mixed."""
    for seed in SEEDS:
        fine = background(kind, seed, COLOUR, 576, 384).reshape(128, 3, 192, 3, 3).mean((1, 3))
        away = np.abs(fine - background(kind, seed, COLOUR, 192, 128)).max(-1)
        assert np.median(away) < 1
        assert (away > 8).mean() < 0.2


@pytest.mark.parametrize("kind", BACKGROUNDS)
def test_it_is_darker_than_any_shape_and_never_out_of_range(kind: str) -> None:
    """Of the brightest background that ``random_scene`` draws; a shape's brightest channel is at least 0.9."""
    for seed in SEEDS:
        assert background(kind, seed, (0.45 * 255,) * 3, 96, 64).max() < 0.75 * 255
        assert background(kind, seed, (0.0,) * 3, 96, 64).min() == 0
        assert background(kind, seed, (255.0,) * 3, 96, 64).max() == 255


def test_kinds_differ() -> None:
    canvases = [background(kind, 0, COLOUR, 96, 64) for kind in BACKGROUNDS]
    for i, canvas in enumerate(canvases):
        assert all(np.abs(canvas - other).mean() > 3 for other in canvases[:i])
