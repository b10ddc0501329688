"""Tables as CSV and as JSON lines, written bit by bit.

Here every value passes through an object of Python, 16 times as large as a number of an embedding.
"""

import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

PIECE_BYTES = 1 << 20  # of Arrow's


def slices(batches: Iterable[pa.Table], size_bytes: int) -> Iterator[pa.Table]:
    """Yield the rows of ``batches`` in tables of at most ``size_bytes``, or of one row."""
    for batch in batches:
        num_rows = max(1, size_bytes * batch.num_rows // max(1, batch.nbytes))
        for start in range(0, batch.num_rows, num_rows):
            yield batch.slice(start, num_rows)


def write_jsonl(batches: Iterable[pa.Table], target: pa.Schema, file: IO[bytes]) -> None:
    """Write tables of schema ``target`` to an open file, a line a row. It has no place for metadata."""
    for piece in slices(batches, PIECE_BYTES):
        for row in piece.to_pylist():
            file.write(_json({f.name: _plain(row[f.name], f.type) for f in target}).encode() + b"\n")


def write_csv(batches: Iterable[pa.Table], target: pa.Schema, file: IO[bytes]) -> None:
    """Write tables of schema ``target`` to an open file. Lists become JSON text: CSV has neither them nor metadata."""
    flat = pa.schema([(f.name, pa.string() if pa.types.is_nested(f.type) else f.type) for f in target])
    with pa_csv.CSVWriter(file, flat) as writer:
        for piece in slices(batches, PIECE_BYTES):
            writer.write_table(pa.table([_flat(piece[name]) for name in target.names], schema=flat))


def _flat(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    if not pa.types.is_nested(column.type):
        return column
    return pa.array([None if v is None else _json(_plain(v, column.type)) for v in column.to_pylist()], pa.string())


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _plain(value: Any, kind: pa.DataType) -> Any:
    """Return ``value`` as JSON knows it, floats in the fewest digits that read back as the same number."""
    if value is None:
        return None
    if pa.types.is_nested(kind):
        return [_plain(v, kind.value_type) for v in value]
    if pa.types.is_float32(kind):
        return float(str(np.float32(value)))
    if pa.types.is_float16(kind):
        return _plain_half(value) if value else float(value)  # -0.0 == 0.0, and a cache would mix them up
    return value


@lru_cache(maxsize=1 << 16)  # as many as there are
def _plain_half(value: float) -> float:
    return float(str(np.float16(value)))
