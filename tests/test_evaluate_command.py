"""``sqt-fast evaluate`` as a person types it: what it prints, what it writes, and what it refuses."""

import csv
import json
import pickle
import signal
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest

from sqt_fast.commands.evaluate_command import evaluate
from sqt_fast.evaluate.evaluation import EvaluateConfig
from sqt_fast.run import run
from tests import command_line
from tests.command_line import refused
from tests.conftest import TINY_LABELS
from tests.test_run import in_process

sqt = partial(command_line.sqt, "evaluate")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, kept_signals: None) -> None:
    """Label in this process, which is quicker to start, and undo what the command does to it."""
    assert run.__kwdefaults__ is not None
    monkeypatch.setitem(run.__kwdefaults__, "launch", in_process)


@pytest.fixture
def source(archive: Path, tmp_path: Path) -> Path:
    """A list of two good videos and one that cannot be labelled, with numbers for labels."""
    good = [str(next((archive / name).glob(f"*.{name}"))) for name in ("avi", "mkv")]
    lines = [f"{good[0]} 0", f"{good[1]} 3", f"{archive / 'broken' / 'empty.mp4'} 5"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    return tmp_path / "list.txt"


def tiny(weights: tuple[str, str]) -> list[str]:
    how = ["--backend", "eager", "--precision", "fp32", "--device", "cpu", "--batch-size", "4", "--decoder", "cpu"]
    return ["--weights", weights[0], "--label-names", weights[1], "--protocol", "single", *how]


def test_a_run_with_everything_and_its_table_again(source: Path, tmp_path: Path, tiny_weights: tuple[str, str]) -> None:
    kept = ["--out", tmp_path / "t.parquet"]
    files = ["--confusion", tmp_path / "m.csv", "--per-class", tmp_path / "c.csv", "--dump", tmp_path / "s.pkl"]
    result = sqt(source, *tiny(tiny_weights), *kept, *files, "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    printed = json.loads(result.stdout)
    assert (printed["videos"], printed["failed"], printed["classes"], printed["classes_with_videos"]) == (3, 1, 7, 3)
    assert printed["choice"]["backend"] == "eager"
    with (tmp_path / "s.pkl").open("rb") as file:
        dump = pickle.load(file)
    hits = [int(each["pred_score"].argmax()) == int(each["gt_label"]) for each in dump[:2]]
    assert printed["top1"] == sum(hits) / 3
    with (tmp_path / "m.csv").open(encoding="utf-8", newline="") as file:
        matrix = list(csv.reader(file))
    assert matrix[0][1:] == [*TINY_LABELS, "(no label)"]
    assert sum(int(count) for row in matrix[1:] for count in row[1:]) == 3
    assert matrix[6][-1] == "1"
    with (tmp_path / "c.csv").open(encoding="utf-8", newline="") as file:
        assert [row["videos"] for row in csv.DictReader(file)] == ["1", "0", "0", "1", "0", "1", "0"]
    again = sqt(source, "--table", tmp_path / "t.parquet", "--json")
    assert json.loads(again.stdout) == printed

    people = sqt(source, "--table", tmp_path / "t.parquet")
    assert people.exit_code == 0
    assert people.stderr == ""
    lines = people.stdout.splitlines()
    assert lines[0] == f"top-1       {100 * printed['top1']:.2f} %, {sum(hits)} of 3 videos"
    assert lines[3].startswith("no label    1 video, counted as wrong: ")
    assert lines[3].endswith("empty.mp4 (empty_file)")
    assert lines[4] == "protocol    single: 1 clip x 1 crop at 224, a row a video"

    line = refused(sqt(source, *tiny(tiny_weights), *kept, "--protocol", "fast"))
    assert "made with other settings: --protocol" in line
    assert "--overwrite" in line


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "--weights or --table: neither is given"),
        (["--weights", "nowhere.pth"], 2, "weights nowhere.pth: no such file"),
        (["--weights", "k400", "--protocol", "slow"], 2, "'slow' is not one of 'fast', 'single', 'official'"),
        (["--weights", "k400", "--label-names", "nowhere"], 2, "labels nowhere: neither a file nor one of the lists"),
        (["--weights", "k400", "--out", "t.csv"], 2, "--out t.csv: the name must end in .parquet"),
        (["--weights", "k400", "--video-root", "nowhere"], 2, "'nowhere' does not exist"),
        (["--weights", "k400", "--confusion", "m.gif"], 2, "--confusion m.gif: the name must end in .csv or .png"),
        (["--table", "nowhere.parquet"], 2, "'nowhere.parquet' does not exist"),
        (["--table", __file__], 2, "test_evaluate_command.py: not a Parquet table of sqt-fast index"),
        (["--table", __file__, "--device", "cuda"], 2, "--device: no network runs with --table"),
        (["--weights", "k400", "--batch-size", "0"], 2, "0 is not in the range x>=1"),
        (["--wieghts", "k400"], 2, "No such option"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_one_line(source: Path, arguments: list[str], code: int, said: str) -> None:
    assert said in refused(sqt(source, *arguments), code)


def test_lists_that_cannot_be(tmp_path: Path) -> None:
    assert "Missing argument 'LIST'" in refused(sqt())
    assert "does not exist" in refused(sqt("nowhere.txt", "--weights", "k400"))
    (tmp_path / "list.txt").write_text("a.mp4\n")
    assert "line 1: 'a.mp4': expected a path, a space" in refused(sqt(tmp_path / "list.txt", "--weights", "random"))
    (tmp_path / "empty").mkdir()
    assert "names no video" in refused(sqt(tmp_path / "empty", "--weights", "random"))


def test_an_interrupt_is_one_line(source: Path, tiny_weights: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **options: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("sqt_fast.engine.worker.Worker.load", interrupt)
    assert refused(sqt(source, *tiny(tiny_weights)), 1).startswith("sqt-fast: stopped")


def test_options_are_fields_of_the_configuration() -> None:
    names = {option.name for option in evaluate.params} - {"as_json", "confusion", "per_class", "dump"}
    assert names == set(EvaluateConfig.__dataclass_fields__)
    assert all(option.help for option in evaluate.params if isinstance(option, click.Option))
