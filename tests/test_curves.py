"""Curves of a run: read from every start of it, drawn without a display."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="matplotlib draws: pip install 'sqt-fast[train]'")

from matplotlib.image import imread

from sqt_fast.train.curves import draw_confusion, draw_curves, read_curves


def write(logs: Path, number: int, text: str) -> None:
    (logs / f"version_{number}").mkdir(parents=True)
    (logs / f"version_{number}" / "metrics.csv").write_text(text)


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """The logs of a run that was killed at step 30 and went on from 20, and of an earlier one in the same folder."""
    folder = tmp_path / "logs"
    write(folder, 8, "epoch,loss,step\n0,77,10\n0,78,40\n")
    write(folder, 9, "epoch,loss,lr,step,val_top1\n0,3.0,0.1,10,\n0,2.5,0.2,20,\n0,,,20,0.25\n1,9.0,0.3,30,\n")
    write(folder, 10, "epoch,loss,lr,step,val_top1\n1,2.0,0.3,30,\n1,,,30,0.5\n")
    (folder / "version_11").mkdir()  # a start that logged nothing
    return folder


def test_what_was_done_again_counts_as_the_last_start_did_it(logs: Path) -> None:
    assert read_curves(logs, first=9) == {
        "loss": {10: 3.0, 20: 2.5, 30: 2.0},
        "lr": {10: 0.1, 20: 0.2, 30: 0.3},
        "val_top1": {20: 0.25, 30: 0.5},
    }


def test_all_starts_are_read_without_a_first(logs: Path) -> None:
    assert read_curves(logs)["loss"] == {10: 3.0, 20: 2.5, 30: 2.0, 40: 78.0}
    assert read_curves(logs / "nowhere") == {}


def test_curves_are_pictures(logs: Path, tmp_path: Path) -> None:
    draw_curves(logs, tmp_path / "all.png")
    draw_curves(logs, tmp_path / "run.png", first=9)
    draw_curves(tmp_path / "nothing", tmp_path / "none.png")
    pictures = [imread(tmp_path / f"{name}.png") for name in ("all", "run", "none")]
    assert all(picture.shape[0] > 500 for picture in pictures)
    assert all(len(np.unique(picture[..., :3])) > 20 for picture in pictures[:2])
    assert not np.array_equal(pictures[0], pictures[1]) if pictures[0].shape == pictures[1].shape else True


def test_a_confusion_matrix_shows_shares_of_rows(tmp_path: Path) -> None:
    """The diagonal of a classifier that is right is dark, whatever the sizes of classes; an empty one is white."""
    names = ("naïve, “quoted”", "run", "none")
    draw_confusion(np.array([[1, 0, 0], [0, 1000, 0], [0, 0, 0]]), names, tmp_path / "m.png")
    picture = imread(tmp_path / "m.png")[..., :3]
    dark = np.all(abs(picture - [8 / 255, 48 / 255, 107 / 255]) < 0.01, axis=2)  # the end of "Blues"
    white = np.all(abs(picture - [247 / 255, 251 / 255, 1]) < 0.01, axis=2)  # and its beginning
    square = dark.sum() / 2.1  # two of nine, and a bit of the colour bar
    assert white.sum() > 5 * square


def test_many_classes_go_without_names(tmp_path: Path) -> None:
    draw_confusion(np.eye(100), [f"class {i}" for i in range(100)], tmp_path / "m.png")
    assert imread(tmp_path / "m.png").shape[0] > 1000
