"""``sqt-fast sample-videos`` as a person types it: what it makes, what it says, and what it refuses."""

import csv
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest

from sqt_fast.commands import samples_command
from sqt_fast.commands.samples_command import SPLIT_NAMES, sample_videos
from sqt_fast.samples import encoding
from sqt_fast.samples.encoding import SampleSet, SampleVideo
from sqt_fast.samples.scenes import SPLITS
from tests import command_line
from tests.command_line import refused

sqt = partial(command_line.sqt, "sample-videos")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[SampleSet]:
    """Sets that were asked for, instead of making them."""
    seen: list[SampleSet] = []

    def make(directory: Path, wanted: SampleSet, *, progress: Any) -> list[SampleVideo]:
        seen.append(wanted)
        for _ in range(wanted.count):
            progress()
        return []

    monkeypatch.setattr(encoding, "make_samples", make)
    return seen


def test_videos_and_their_truth(tmp_path: Path) -> None:
    result = sqt(tmp_path / "s", "-n", "2", "--seconds", "0.2", "--seed", "3", "--split", "val", "--short-side", "64")
    assert result.exit_code == 0
    assert result.stdout == f"2 videos in {tmp_path / 's'}\n"
    assert result.stderr == ""
    with (tmp_path / "s" / "labels.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["left", "right"]
    assert all((tmp_path / "s" / row["path"]).is_file() for row in rows)
    assert {row["height"] for row in rows} == {"64"}
    assert {row["shape"] for row in rows} <= set(SPLITS["val"].shapes)
    assert sqt(tmp_path / "t", "-n", "1", "--seconds", "0.1").stdout == f"1 video in {tmp_path / 't'}\n"


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], SampleSet()),
        (["--count", "7"], SampleSet(count=7)),
        (["-n", "7"], SampleSet(count=7)),
        (["--seconds", "1.5"], SampleSet(seconds=1.5)),
        (["--seed", "9"], SampleSet(seed=9)),
        *[(["--split", name], SampleSet(split=name)) for name in SPLITS],
        (["--short-side", "128"], SampleSet(short_side=128)),
        (["--clean"], SampleSet(clean=True)),
    ],
    ids=str,
)
def test_every_option_parses(asked: list[SampleSet], arguments: list[str], wanted: SampleSet) -> None:
    assert sqt("d", *arguments).exit_code == 0
    assert asked == [wanted]


def test_options_are_fields_of_the_set() -> None:
    assert {option.name for option in sample_videos.params} - {"directory"} == set(SampleSet.__dataclass_fields__)
    assert all(option.help for option in sample_videos.params if isinstance(option, click.Option))
    assert tuple(SPLITS) == SPLIT_NAMES


def test_many_videos_are_worth_a_bar(asked: list[SampleSet]) -> None:
    assert sqt("d", "-n", str(samples_command.MANY - 1)).stderr == ""
    result = sqt("d", "-n", str(samples_command.MANY))
    assert "videos" in result.stderr
    assert "100%" in result.stderr
    assert result.stdout == "0 videos in d\n"


def test_what_is_made_instead_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "has_encoder", lambda name: name in ("mpeg4", "libx264"))
    result = sqt(tmp_path, "-n", "4", "--seconds", "0.1", "--short-side", "64")
    assert result.stdout == f"4 videos in {tmp_path}\n"
    assert result.stderr.splitlines() == [
        "mp4/002_up.mp4: no encoder libx265: mpeg4 in mp4 instead",
        "mkv/003_down.mkv: no encoder libvpx-vp9: mpeg4 in mkv instead",
    ]


def test_what_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot hold the samples" in refused(sqt(tmp_path / "file", "-n", "1", "--seconds", "1"))
    assert "-1" in refused(sqt(tmp_path, "--seconds", "-1"))
    assert "0 is not in the range" in refused(sqt(tmp_path, "--count", "0"))
    assert "short side 63: expected an even number" in refused(sqt(tmp_path, "--short-side", "63"))
    assert "'tset' is not one of 'train', 'val', 'test'" in refused(sqt(tmp_path, "--split", "tset"))
    assert "Missing argument 'DIRECTORY'" in refused(sqt())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
