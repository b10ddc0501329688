"""Scores of a table: of rows, of windows, of files with any name; and why there are none."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sqt_fast.errors import ConfigError
from sqt_fast.evaluate.scores import TableScores, absolute, read_scores
from sqt_fast.table.schema import Row, to_table
from sqt_fast.video.archive import VideoFile
from tests.tables import write_table

LABELS = ("run", "walk", "jump", "sit")


def ok(path: str, scores: dict[int, float], **options: Any) -> Row:
    ids = list(scores)
    return Row(
        VideoFile(path, None, None).name,
        topk_ids=ids,
        topk_labels=[LABELS[i] for i in ids],
        topk_scores=list(scores.values()),
        **options,
    )


def table(folder: Path, *rows: Row, top_k: int | None = None) -> Path:
    write_table(to_table(rows, None), folder / "t.parquet", {"settings": {"top_k": top_k}})
    return folder / "t.parquet"


def scores_of(found: TableScores, *paths: str) -> list[Any]:
    """Return the scores of each path, None for NaN, which equals nothing."""
    return [[None if score != score else score for score in row] for row in found.of(paths, len(LABELS)).tolist()]


def test_a_row_a_video_is_taken_as_it_is(tmp_path: Path) -> None:
    row = {2: 0.1, 0: 0.3, 3: 1 / 3, 1: 0.2}
    found = read_scores(table(tmp_path, ok("/a.mp4", row), ok("/b.mp4", row)), {"/a.mp4"})
    assert found.of(["/a.mp4"], 4).tolist() == np.array([[0.3, 0.2, 0.1, 1 / 3]], np.float32).tolist()
    assert found.names == {0: "run", 1: "walk", 2: "jump", 3: "sit"}
    assert (found.num_kept, found.is_complete, found.failures) == (4, True, {})
    assert list(found.rows) == ["/a.mp4"]


def test_windows_are_averaged_and_what_they_leave_out_counts_as_nothing(tmp_path: Path) -> None:
    windows = [ok("/a.mp4", {0: 0.75, 1: 0.25}, clip_index=0), ok("/a.mp4", {0: 0.5, 3: 0.25}, clip_index=1)]
    found = read_scores(table(tmp_path, *windows, top_k=2), {"/a.mp4"})
    assert scores_of(found, "/a.mp4") == [[0.625, 0.125, None, 0.125]]
    assert (found.num_kept, found.is_complete) == (2, False)


@pytest.mark.parametrize(("top_k", "complete"), [(None, True), (5, True), (4, False), (2, False)])
def test_rows_are_complete_if_fewer_classes_came_than_were_asked_for(
    tmp_path: Path, top_k: int | None, complete: bool
) -> None:
    row = ok("/a.mp4", dict.fromkeys(range(min(4, top_k or 4)), 0.1))
    assert read_scores(table(tmp_path, row, top_k=top_k), {"/a.mp4"}).is_complete is complete


def test_videos_without_a_label_say_why(tmp_path: Path) -> None:
    rows = [
        Row("/empty.mp4", "empty_file", "0 bytes"),
        Row("/cut.mp4", "damaged", "the end is lost"),
        ok("/cut.mp4", {0: 1.0}),
        ok("/late.mp4", {0: 1.0}),
        Row("/late.mp4", "damaged", "the end is lost"),
        Row("/twice.mp4", "damaged", "the first reason"),
        Row("/twice.mp4", "error", "another"),
    ]
    wanted = {"/empty.mp4", "/cut.mp4", "/late.mp4", "/twice.mp4", "/nowhere.mp4"}
    found = read_scores(table(tmp_path, *rows), wanted)
    assert found.failures == {
        "/empty.mp4": ("empty_file", "0 bytes"),
        "/twice.mp4": ("damaged", "the first reason"),
        "/nowhere.mp4": ("not_in_table", "the table has no row of it"),
    }
    assert scores_of(found, "/empty.mp4", "/cut.mp4", "/late.mp4")[0] == [None] * 4
    assert found.example == "/empty.mp4"


def test_a_table_of_failures(tmp_path: Path) -> None:
    found = read_scores(table(tmp_path, Row("/a.mp4", "error", "x")), {"/a.mp4"})
    assert (found.num_kept, found.is_complete, found.names) == (None, False, {})


@pytest.mark.parametrize("name", ["a b.mp4", "new\nline.mp4", os.fsdecode(b"caf\xe9.mp4"), r"\xe9.mp4", "ü“.mp4"])
def test_names_are_turned_back_into_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [ok(name, {0: 1.0}), ok(f"/x/../y/{name}", {1: 1.0})]
    found = read_scores(table(tmp_path, *rows), {absolute(name), f"/y/{name}"})
    assert scores_of(found, f"{tmp_path}/{name}", f"/y/{name}") == [[1.0, None, None, None], [None, 1.0, None, None]]


def test_what_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label\n")
    (tmp_path / "cut.parquet").write_bytes(table(tmp_path, ok("/a.mp4", {0: 1.0})).read_bytes()[:-9])
    write_table(to_table([], None), tmp_path / "bare.parquet")
    write_table(to_table([], None), tmp_path / "other.parquet", {"x": 1})
    for name in ("t.csv", "cut.parquet", "bare.parquet", "other.parquet", "nowhere.parquet"):
        with pytest.raises(ConfigError) as caught:
            read_scores(tmp_path / name, {"/a.mp4"})
        assert str(caught.value).startswith(f"table {tmp_path / name}: not a Parquet table of sqt-fast index (")
        assert str(caught.value).endswith("); give one, or use --weights")
        assert "\n" not in str(caught.value)
        assert "overwrite" not in str(caught.value)
