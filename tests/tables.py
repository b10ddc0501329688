"""Write whole tables, and read them back: Parquet as the program does, CSV and JSON lines as other programs do."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from sqt_fast.table.schema import read_batches, read_metadata, read_schema, schema, write_batches


def write_table(table: pa.Table, path: Path, metadata: dict[str, Any] | None = None) -> None:
    """Write ``table`` as the program does."""
    write_batches([table], table.schema, path, metadata)


def read_table(path: Path, embedding_dim: int | None = None) -> tuple[pa.Table, dict[str, Any] | None]:
    """Return a table and its metadata. embedding_dim: of CSV and JSON lines without any; else it is seen."""
    if path.suffix == ".parquet":
        return pa.concat_tables([read_schema(path).empty_table(), *read_batches(path)]), read_metadata(path)
    rows: list[dict[str, Any]]
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            rows = _csv_rows(file)
    else:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    for row in rows:
        if row.get("embedding") is not None:
            embedding: Any = row["embedding"]
            embedding_dim = len(json.loads(embedding) if path.suffix == ".csv" else embedding)
    target = schema(embedding_dim)
    rows = [_of_csv(row, target) for row in rows] if path.suffix == ".csv" else rows
    assert all(list(row) == target.names for row in rows)
    columns = [pa.array([row[field.name] for row in rows], field.type) for field in target]
    return pa.Table.from_arrays(columns, schema=target), None


def _csv_rows(file: Any) -> list[dict[str, Any]]:
    """Return the rows of a CSV; what is not quoted and empty is None, which Python's reader cannot tell by itself."""
    rows: list[list[Any]] = []
    row: list[Any] = []
    text, field, quoted, was_quoted = file.read(), "", False, False
    i = 0
    while i < len(text):
        char = text[i]
        if quoted:
            if char == '"' and text[i + 1 : i + 2] == '"':
                field, i = field + '"', i + 1
            elif char == '"':
                quoted = False
            else:
                field += char
        elif char == '"':
            quoted = was_quoted = True
        elif char in ",\n":
            row.append(field if field or was_quoted else None)
            field, was_quoted = "", False
            if char == "\n":
                rows.append(row)
                row = []
        else:
            field += char
        i += 1
    names = rows[0]
    return [dict(zip(names, values, strict=True)) for values in rows[1:]]


def _of_csv(row: dict[str, Any], target: pa.Schema) -> dict[str, Any]:
    return {field.name: None if row[field.name] is None else _value(row[field.name], field.type) for field in target}


def _value(text: Any, kind: pa.DataType) -> Any:
    if pa.types.is_nested(kind):
        return json.loads(text)
    if pa.types.is_boolean(kind):
        return {"true": True, "false": False}[text]
    if pa.types.is_integer(kind):
        return int(text)
    return float(text) if pa.types.is_floating(kind) else text
