"""The picture of a confusion matrix: shares of rows, drawn without a display."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("matplotlib", reason="matplotlib draws: pip install 'sqt-fast[train]'")

from matplotlib.image import imread

from sqt_fast.confusion import draw_confusion


def draw(counts: NDArray[np.integer[Any]], names: Sequence[str], folder: Path) -> None:
    with (folder / "m.png").open("wb") as file:
        draw_confusion(counts, names, [*names[:-1], "(other)"], file)


def test_a_confusion_matrix_shows_shares_of_rows(tmp_path: Path) -> None:
    """The diagonal of a classifier that is right is dark, whatever the sizes of classes; an empty one is white."""
    names = ("naïve, “quoted”", "run", "none")
    draw(np.array([[1, 0, 0], [0, 1000, 0], [0, 0, 0]]), names, tmp_path)
    picture = imread(tmp_path / "m.png")[..., :3]
    dark = np.all(abs(picture - [8 / 255, 48 / 255, 107 / 255]) < 0.01, axis=2)  # the end of "Blues"
    white = np.all(abs(picture - [247 / 255, 251 / 255, 1]) < 0.01, axis=2)  # and its beginning
    square = dark.sum() / 2.1  # two of nine, and a bit of the colour bar
    assert white.sum() > 5 * square


def test_many_classes_go_without_names(tmp_path: Path) -> None:
    draw(np.eye(100, dtype=int), [f"class {i}" for i in range(100)], tmp_path)
    assert imread(tmp_path / "m.png").shape[0] > 1000
