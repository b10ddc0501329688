"""The table: every value comes back from every format, a file is whole or untouched."""

import errno
import hashlib
import json
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sqt_fast.config import OUTPUT_SUFFIXES
from sqt_fast.errors import OutputError
from sqt_fast.files import replace_file
from sqt_fast.table.schema import STATUSES, WRITERS, Row, read_batches, schema, to_table, write_batches
from sqt_fast.video.archive import VideoFile
from tests.tables import read_table, write_table

SUFFIXES = pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
DIM = 3

# Every column of the table, in order, as users' programs know them.
TYPES = {
    "path": pa.string(),
    "status": pa.string(),
    "error_message": pa.string(),
    "clip_index": pa.int32(),
    "start_s": pa.float64(),
    "end_s": pa.float64(),
    "start_frame": pa.int64(),
    "end_frame": pa.int64(),
    "label": pa.string(),
    "label_id": pa.int32(),
    "score": pa.float32(),
    "topk_labels": pa.list_(pa.string()),
    "topk_ids": pa.list_(pa.int32()),
    "topk_scores": pa.list_(pa.float32()),
    "duration_s": pa.float64(),
    "fps": pa.float64(),
    "num_frames": pa.int64(),
    "width": pa.int32(),
    "height": pa.int32(),
    "codec": pa.string(),
    "is_vfr": pa.bool_(),
    "rotation": pa.int32(),
    "clock_jumped": pa.bool_(),
    "decoder": pa.string(),
    "size_bytes": pa.int64(),
    "mtime_ns": pa.int64(),
}
COLUMNS = list(TYPES)
# Of what is said of them. Where that changes on purpose, this does.
DESCRIPTIONS_SHA256 = "7a49f23b5780a44e9160d18e2f8c9a4afd020cc9a8fca2c75472629ad11552cc"

FULL = Row(
    path='clips/α, "b"\nc;\t\\n\r\n\u2028 d.mp4',
    status="ok",
    error_message="",
    clip_index=0,
    start_s=0.3,
    end_s=3.141593,
    start_frame=0,
    end_frame=2**40,
    label='"quoted", null',
    label_id=6,
    score=float(np.float32(0.1)),
    topk_labels=["null", "", "comma, and 'quote'", "日本語", "a\nb"],
    topk_ids=[6, 5, 4, 3, 2],
    topk_scores=np.array([0.1, 1 / 3, 1e-30, 0.0, 1e-45], np.float32).tolist(),
    duration_s=1e-6,
    fps=30000 / 1001,
    num_frames=75,
    width=320,
    height=240,
    codec="NA",
    is_vfr=True,
    rotation=-90,
    clock_jumped=False,
    decoder="nan",
    size_bytes=2**62 + 1,
    mtime_ns=1700000000123456789,
    embedding=np.array([1 / 3, -65504, 6e-8], np.float16),
)
EMPTY = Row(path="NULL", status="empty_file")
ROWS = [FULL, EMPTY, Row(path="", status="ok", topk_labels=[], topk_ids=[], topk_scores=[], is_vfr=False)]


def bits(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows so that equal means: the same bits."""
    return [{n: repr(v) for n, v in row.items()} for row in table.to_pylist()]


def round_trip(rows: list[Row], dim: int | None, path: Path) -> pa.Table:
    table = to_table(rows, dim)
    write_table(table, path, {"embedding_dim": dim})
    back, metadata = read_table(path, dim)
    assert metadata == ({"embedding_dim": dim} if path.suffix == ".parquet" else None)
    assert back.schema.equals(table.schema)
    back.validate(full=True)
    return back


def test_columns_are_those_promised() -> None:
    assert schema(None).names == COLUMNS
    assert schema(DIM).names == [*COLUMNS, "embedding"]
    assert schema(DIM).field("embedding").type == pa.list_(pa.float16(), DIM)
    assert [f.name for f in fields(Row)] == [*COLUMNS, "embedding"]
    assert {field.name: field.type for field in schema(None)} == TYPES
    assert [field.name for field in schema(DIM) if not field.nullable] == ["path", "status"]
    descriptions = [field.metadata[b"description"] for field in schema(DIM)]
    assert all(descriptions)
    assert hashlib.sha256(b"\n".join(descriptions)).hexdigest() == DESCRIPTIONS_SHA256
    assert all(name in schema(None).field("status").metadata[b"description"].decode() for name in STATUSES)


@SUFFIXES
@pytest.mark.parametrize("dim", [None, DIM])
def test_round_trip(tmp_path: Path, suffix: str, dim: int | None) -> None:
    back = round_trip(ROWS, dim, tmp_path / f"t{suffix}")
    assert bits(back) == bits(to_table(ROWS, dim))


@SUFFIXES
def test_round_trip_of_a_table_in_which_nothing_is_known(tmp_path: Path, suffix: str) -> None:
    """Columns that are null throughout keep their types."""
    assert bits(round_trip([EMPTY] * 3, DIM, tmp_path / f"t{suffix}")) == bits(to_table([EMPTY] * 3, DIM))


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
float64 = st.none() | st.floats(allow_nan=False, allow_infinity=False)
some_rows = st.lists(
    st.builds(
        Row,
        path=text,
        status=st.sampled_from(sorted(STATUSES)),
        error_message=st.none() | text,
        clip_index=st.none() | st.integers(0, 2**31 - 1),
        start_s=float64,
        fps=float64,
        label=st.none() | text,
        score=st.none() | float32,
        topk_labels=st.none() | st.lists(text, max_size=3),
        topk_ids=st.none() | st.lists(st.integers(0, 2**31 - 1), max_size=3),
        topk_scores=st.none() | st.lists(float32, max_size=3),
        is_vfr=st.none() | st.booleans(),
        mtime_ns=st.none() | st.integers(-(2**63), 2**63 - 1),
        embedding=st.none()
        | st.lists(st.floats(width=16, allow_nan=False), min_size=DIM, max_size=DIM).map(
            lambda values: np.array(values, np.float16)
        ),
    ),
    min_size=1,
    max_size=6,
)


@SUFFIXES
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=some_rows)
def test_round_trip_of_anything(tmp_path: Path, suffix: str, rows: list[Row]) -> None:
    assert bits(round_trip(rows, DIM, tmp_path / f"t{suffix}")) == bits(to_table(rows, DIM))


@SUFFIXES
def test_a_path_that_is_not_utf8(tmp_path: Path, suffix: str) -> None:
    video = VideoFile("caf\udce9.mp4", 1, 1)
    back = round_trip([Row(path=video.name)], None, tmp_path / f"t{suffix}")
    assert back["path"].to_pylist() == [r"caf\xe9.mp4"]


def test_files_are_what_other_programs_expect(tmp_path: Path) -> None:
    for suffix in (".parquet", ".csv", ".jsonl"):
        write_table(to_table([FULL, EMPTY], DIM), tmp_path / f"t{suffix}", {"embedding_dim": DIM, "who": "é"})
    metadata = pq.read_schema(tmp_path / "t.parquet").metadata[b"sqt_fast"]
    assert json.loads(metadata) == {"embedding_dim": DIM, "who": "é"}
    assert pq.read_schema(tmp_path / "t.parquet").field("path").metadata[b"description"] == b"the file, as given"
    lines = (tmp_path / "t.jsonl").read_text(encoding="utf-8").split("\n")
    assert len(lines) == 3  # one a row, and the last ends in a newline
    first = json.loads(lines[0])
    assert first["score"] == 0.1  # not 0.10000000149011612
    assert first["topk_labels"] == FULL.topk_labels
    assert list(json.loads(lines[1])) == [*COLUMNS, "embedding"]
    import csv

    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    assert records[0]["path"] == FULL.path
    assert records[0]["score"] == "0.1"
    assert json.loads(records[0]["topk_ids"]) == FULL.topk_ids
    assert records[1]["score"] == ""


@pytest.mark.parametrize("columns", [None, ("path", "topk_scores"), ("status", "path")])
def test_reading_bit_by_bit(tmp_path: Path, columns: tuple[str, ...] | None) -> None:
    """More rows than come at a time."""
    suffix = ".parquet"
    table = to_table([replace(FULL, clip_index=i, label="x" * 999) for i in range(3000)], None)
    write_table(table, tmp_path / f"t{suffix}")
    pieces = list(read_batches(tmp_path / f"t{suffix}", columns))
    assert max(piece.num_rows for piece in pieces) < 3000
    assert pa.concat_tables(pieces).equals(table if columns is None else table.select(columns))


@SUFFIXES
def test_halves_that_equal_but_differ(tmp_path: Path, suffix: str) -> None:
    """Every number that an embedding can hold, and zeros of either sign."""
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    rows = [Row("zeros", embedding=np.zeros(2**15, np.float16)), Row("finite", embedding=every[: 2**15])]
    rows += [replace(row, embedding=-np.nan_to_num(row.embedding)) for row in rows if row.embedding is not None]
    rows[1] = replace(rows[1], embedding=np.nan_to_num(every[: 2**15]))
    back = round_trip(rows, 2**15, tmp_path / f"t{suffix}")["embedding"]
    for row, values in zip(rows, back.to_pylist(), strict=True):
        assert np.array(values, np.float16).tobytes() == row.embedding.tobytes()  # type: ignore[union-attr]


def test_row_groups_are_small(tmp_path: Path) -> None:
    """So that a large table can be read, and merged, in little memory."""
    table = to_table([Row(str(i), embedding=np.zeros(2**12, np.float16)) for i in range(500)], 2**12)
    write_batches([table, table], table.schema, tmp_path / "t.parquet", group_bytes=2**20)
    groups = pq.ParquetFile(tmp_path / "t.parquet").metadata
    assert max(groups.row_group(i).num_rows for i in range(groups.num_row_groups)) <= 128
    assert groups.num_row_groups == 8
    assert read_table(tmp_path / "t.parquet")[0].equals(pa.concat_tables([table, table]))


class KilledError(BaseException):
    """What no handler expects."""


@pytest.mark.parametrize("error", [KilledError(), ValueError()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(b"old")

    def write(file: Any) -> None:
        file.write(b"half of the n")
        raise error

    with pytest.raises(type(error)):
        replace_file(path, write)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@SUFFIXES
def test_a_table_is_put_in_place_at_once(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the very last step the old table is there; beside it lies what makes the new one ours."""
    path = tmp_path / f"t{suffix}"
    write_table(to_table([Row("old")], None), path, {"n": 1})
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if target == path:
            raise KilledError
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KilledError):
        write_table(to_table([Row("new")], None), path, {"n": 2})
    monkeypatch.undo()
    assert read_table(path)[0]["path"].to_pylist() == ["old"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"output .*nowhere/t\.csv: cannot be written \(no such file"):
        write_table(to_table([EMPTY], None), tmp_path / "nowhere" / "t.csv")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not a table", b"a,b\n1,2\n"])
def test_other_files_are_no_tables(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(content)
    with pytest.raises(OutputError, match="is not a table of sqt-fast"):
        read_table(path)


@pytest.mark.parametrize("text", ["", "[1]", "{", "3"])
def test_damaged_metadata(tmp_path: Path, text: str) -> None:
    table = to_table([EMPTY], None).replace_schema_metadata({b"sqt_fast": text.encode()})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(OutputError, match="is not a table of sqt-fast"):
        read_table(tmp_path / "t.parquet")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_good_table_that_cannot_be_read_now_is_not_to_be_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "t.parquet"
    write_table(to_table([EMPTY], None), path)

    def fail(*args: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("sqt_fast.table.schema.pq.read_schema", fail)
    with pytest.raises(OutputError, match=r"t\.parquet: cannot be read \(") as caught:
        read_table(path)
    assert "overwrite" not in str(caught.value)


@pytest.mark.parametrize(
    ("time_s", "clean"),
    [
        (-3.333333333382926e-07, 0.0),
        (2.220446049250313e-16, 0.0),
        (6.000000000000001, 6.0),
        (0.1 + 0.2, 0.3),
        (-0.0, 0.0),
    ],
)
def test_times_are_whole_microseconds_and_never_negative(time_s: float, clean: float) -> None:
    row = to_table([Row("a", start_s=time_s, end_s=time_s, duration_s=time_s)], None).to_pylist()[0]
    assert [str(row[name]) for name in ("start_s", "end_s", "duration_s")] == [str(clean)] * 3


def test_formats_are_those_of_the_options() -> None:
    assert tuple(WRITERS) == OUTPUT_SUFFIXES


def test_parquet_of_others(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(OutputError, match="is not a table of sqt-fast"):
        read_table(tmp_path / "t.parquet")


@SUFFIXES
def test_no_metadata_is_none(tmp_path: Path, suffix: str) -> None:
    write_table(to_table([EMPTY], None), tmp_path / f"t{suffix}")
    assert read_table(tmp_path / f"t{suffix}")[1] is None
