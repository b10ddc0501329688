"""Curves of a run: read from every start of it, drawn without a display."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="matplotlib draws: pip install 'sqt-fast[train]'")

from matplotlib.image import imread

from sqt_fast.train.curves import draw_curves, read_curves


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
