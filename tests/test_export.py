"""CSV and JSON lines: cut into pieces, yet one file. Every value: tests/test_schema.py."""

import csv
import io
import json

import pyarrow as pa
import pytest

from sqt_fast.table.export import slices, write_csv, write_jsonl
from sqt_fast.table.schema import Row, schema, to_table

ROWS = [Row(f"{i}.mp4", clip_index=i, score=0.1, topk_ids=[i, 2], label='a "b", c\n') for i in range(50)]


@pytest.mark.parametrize("size_bytes", [1, 500, 10**9])
def test_pieces_hold_all_rows_in_order(size_bytes: int) -> None:
    table = to_table(ROWS, None)
    pieces = list(slices([table, table], size_bytes))
    assert pa.concat_tables(pieces).equals(pa.concat_tables([table, table]))
    assert max(piece.num_rows for piece in pieces) == (1 if size_bytes == 1 else max(p.num_rows for p in pieces))


@pytest.fixture(params=[1, 10**9], ids=["a row a piece", "one piece"])
def _pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqt_fast.table.export.PIECE_BYTES", request.param)


@pytest.mark.usefixtures("_pieces")
def test_csv_reads_as_csv() -> None:
    file = io.BytesIO()
    write_csv([to_table(ROWS, None)], schema(None).with_metadata({"not": "kept"}), file)
    rows = list(csv.DictReader(io.StringIO(file.getvalue().decode(), newline="")))
    assert [row["path"] for row in rows] == [row.path for row in ROWS]
    assert {row["score"] for row in rows} == {"0.1"}
    assert [json.loads(row["topk_ids"]) for row in rows] == [row.topk_ids for row in ROWS]
    assert {row["label"] for row in rows} == {'a "b", c\n'}


@pytest.mark.usefixtures("_pieces")
def test_json_lines_are_a_row_each() -> None:
    file = io.BytesIO()
    write_jsonl([to_table(ROWS, None)], schema(None), file)
    rows = [json.loads(line) for line in file.getvalue().decode().splitlines()]
    assert [(row["path"], row["score"]) for row in rows] == [(row.path, 0.1) for row in ROWS]
