"""The decoding bench: what is asked for, who counts as right, and what a provider that fails leaves behind."""

import math
from pathlib import Path

import numpy as np
import pytest

from bench import reason
from bench.bench_decode import MAX_MAE, wanted_sets, worst_mae
from bench.clips import Clip, facts, make
from bench.peers import PROVIDERS, TRUTH, Job
from bench.team import Team

TINY = Clip("tiny", "mpeg4", ".avi", (64, 48), 1, {"g": "12"}, fps=25, pieces=2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(TINY, tmp_path_factory.mktemp("clips"))


def test_a_repeated_piece_doubles_the_frames(tiny: Path) -> None:
    about = facts(tiny)
    assert (about["frames"], about["width"], about["height"]) == (50, 64, 48)


def test_wanted_frames_lie_within_the_video() -> None:
    sets = wanted_sets(1800, 30.0)
    assert {name: len(numbers) for name, numbers in sets.items()} == {
        "interval 4": 450,
        "dense": 1800,
        "sparse": 48,
        "first clip": 16,
    }
    for numbers in sets.values():
        assert numbers == sorted(set(numbers))
        assert 0 <= numbers[0] <= numbers[-1] < 1800


def test_neighbours_and_missing_frames_are_told_from_the_truth(tiny: Path) -> None:
    job = Job(str(tiny), list(range(20)), 1, 7)
    frames = np.concatenate([np.array(chunk) for chunk in PROVIDERS["cpu"][TRUTH](job, lambda x: x)]).astype(np.int16)
    assert worst_mae(frames, frames) == 0
    assert worst_mae(frames[1:], frames[:-1]) > MAX_MAE
    assert worst_mae(frames[1:], frames) == math.inf


def test_a_provider_answers_with_frames_or_with_the_reason(tiny: Path, tmp_path: Path) -> None:
    job = {"path": str(tiny), "wanted": [0, 4, 8], "chunk_frames": 2, "stage": "rgb"}
    with Team("cpu", TRUTH, 1) as team:
        good = team.run("one core", {**job, "sample": str(tmp_path / "sample.npy")})
        bad = team.run("one core", {**job, "path": str(tmp_path / "none.avi")})
    assert good["frames"] == 3
    assert np.load(tmp_path / "sample.npy").shape == (3, 6, 8, 3)
    assert "No such file" in bad["error"]


def test_a_reason_names_what_lay_beneath() -> None:
    error = OSError("Could not load this library: x.so\nmore")
    error.__cause__ = OSError("libnvrtc.so.13: cannot open")
    assert reason(error) == "OSError: Could not load this library: x.so: libnvrtc.so.13: cannot open"
