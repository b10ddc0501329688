"""The table: its columns, and reading and writing it as Parquet, CSV or JSON lines. Only this file knows Arrow."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sqt_fast.errors import ConfigError, OutputError
from sqt_fast.files import replace_file

METADATA_KEY = b"sqt_fast"
Table = pa.Table  # what other modules pass around without looking inside

STATUSES = {
    "ok": "labelled",
    "damaged": "part of the file could not be decoded; start_s and end_s bound what was lost",
    "empty_file": "the file has 0 bytes",
    "not_a_video": "no container that FFmpeg knows, or one that cannot be opened",
    "no_video_stream": "sound or data only",
    "no_decodable_frame": "a video stream from which no picture can be decoded",
    "unsupported_codec": "no decoder for the video stream",
    "too_large": "pictures beyond the memory limit",
    "unreadable": "the file is missing, may not be read, or is not a regular file",
    "error": "something unforeseen; please report it",
}

_LISTS = {"topk_labels": pa.string(), "topk_ids": pa.int32(), "topk_scores": pa.float32()}
_COLUMNS: list[tuple[str, pa.DataType, str]] = [
    ("path", pa.string(), "the file, as given"),
    ("status", pa.string(), "ok, or why there is no label: " + "; ".join(f"{k}: {v}" for k, v in STATUSES.items())),
    ("error_message", pa.string(), "what happened, in words; null when ok"),
    ("clip_index", pa.int32(), "number of the window within the video, from 0; null for rows of a whole video"),
    ("start_s", pa.float64(), "presentation time of the first frame, seconds from the start of the file"),
    ("end_s", pa.float64(), "presentation time at which the last frame ends, seconds"),
    ("start_frame", pa.int64(), "first frame, counted from 0 in presentation order"),
    ("end_frame", pa.int64(), "one past the last frame"),
    ("label", pa.string(), "name of the best class"),
    ("label_id", pa.int32(), "its number, from 0"),
    ("score", pa.float32(), "its softmax probability, mean over the views where there are several"),
    *((name, pa.list_(kind), "the best classes, best first") for name, kind in _LISTS.items()),
    ("duration_s", pa.float64(), "seconds from the first frame to the end of the last"),
    ("fps", pa.float64(), "mean frames a second"),
    ("num_frames", pa.int64(), "frames a player would show"),
    ("width", pa.int32(), "pixels as stored, before rotation"),
    ("height", pa.int32(), "pixels as stored, before rotation"),
    ("codec", pa.string(), "FFmpeg's name of the codec"),
    ("is_vfr", pa.bool_(), "whether the frame rate varies"),
    ("rotation", pa.int32(), "display rotation as ffprobe prints it (-90: shown turned 90 degrees clockwise)"),
    ("decoder", pa.string(), "what decoded it"),
    ("size_bytes", pa.int64(), "size of the file"),
    ("mtime_ns", pa.int64(), "modification time, nanoseconds since 1970"),
]


@dataclass(frozen=True, slots=True)
class Row:
    """One row. Fields are the columns of the table; embedding is (C,) float16 or None."""

    path: str
    status: str = "ok"
    error_message: str | None = None
    clip_index: int | None = None
    start_s: float | None = None
    end_s: float | None = None
    start_frame: int | None = None
    end_frame: int | None = None
    label: str | None = None
    label_id: int | None = None
    score: float | None = None
    topk_labels: list[str] | None = None
    topk_ids: list[int] | None = None
    topk_scores: list[float] | None = None
    duration_s: float | None = None
    fps: float | None = None
    num_frames: int | None = None
    width: int | None = None
    height: int | None = None
    codec: str | None = None
    is_vfr: bool | None = None
    rotation: int | None = None
    decoder: str | None = None
    size_bytes: int | None = None
    mtime_ns: int | None = None
    embedding: NDArray[np.float16] | None = None


def schema(embedding_dim: int | None) -> pa.Schema:
    """Return the table's columns, each with its description as field metadata ``description``."""
    columns = [
        pa.field(n, t, nullable=n not in ("path", "status"), metadata={"description": d}) for n, t, d in _COLUMNS
    ]
    if embedding_dim is not None:
        kind = pa.list_(pa.float16(), embedding_dim)
        columns.append(pa.field("embedding", kind, metadata={"description": "pooled features before the classifier"}))
    return pa.schema(columns)


def to_table(rows: Sequence[Row], embedding_dim: int | None) -> pa.Table:
    """Return ``rows`` as an Arrow table. embedding_dim: C, or None for a table without embeddings."""
    target = schema(embedding_dim)
    names = [f.name for f in fields(Row) if f.name != "embedding"]
    columns = [pa.array([getattr(r, n) for r in rows], target.field(n).type) for n in names]
    if embedding_dim is not None:
        columns.append(_embedding_column([r.embedding for r in rows], embedding_dim))
    return pa.Table.from_arrays(columns, schema=target)


def _embedding_column(values: list[NDArray[np.float16] | None], dim: int) -> pa.Array:
    blank = np.zeros(dim, np.float16)
    flat = np.concatenate([blank if v is None else v for v in values]) if values else np.zeros(0, np.float16)
    missing = pa.array([v is None for v in values], pa.bool_())
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float16()), dim, mask=missing)


def read_column(path: Path, name: str) -> list[Any]:
    """Return one column of anybody's Parquet file. Raises ConfigError when it is none, or has no such column."""
    try:
        file = pq.ParquetFile(path)
        if name not in file.schema_arrow.names:
            names = ", ".join(file.schema_arrow.names)
            raise ConfigError(f"list {path}: no column {name!r}; it has {names}; name one with --path-col")
        return list(file.read([name]).column(name).to_pylist())
    except pa.ArrowException as error:
        raise ConfigError(f"list {path}: not a Parquet file that can be read ({error})") from error


def join(tables: Sequence[pa.Table]) -> pa.Table:
    """Join tables of one schema, newest last: of a path that several hold, the newest one's rows stay. Sorted."""
    owner: dict[str, int] = {}
    for i, table in enumerate(tables):
        owner.update(dict.fromkeys(pc.unique(table["path"]).to_pylist(), i))
    kept = []
    for i, table in enumerate(tables):
        mine = pa.array([path for path, index in owner.items() if index == i], pa.string())
        kept.append(table.filter(pc.is_in(table["path"], mine)))
    whole = pa.concat_tables(kept).combine_chunks()
    order = pc.sort_indices(whole, [(n, "ascending") for n in ("path", "start_s", "clip_index")])
    return whole.take(order)


def write_table(table: pa.Table, path: Path, metadata: dict[str, Any] | None = None) -> None:
    """Write ``table`` so that ``path`` is at every moment either its old self or complete.

    Parquet carries ``metadata`` under the key ``sqt_fast``; beside CSV and JSON lines it lies in ``<path>.meta.json``.
    Raises OutputError when it cannot be written.
    """
    text = json.dumps(metadata, indent=1) if metadata is not None else None
    try:
        if path.suffix.lower() == ".parquet":
            if text is not None:
                table = table.replace_schema_metadata({METADATA_KEY: text.encode()})
            replace_file(path, lambda file: pq.write_table(table, file, compression="zstd"))
            return
        write = _write_csv if path.suffix.lower() == ".csv" else _write_jsonl
        if text is not None:  # first: a table without it would be a stranger's if we are killed in between
            replace_file(_sidecar(path), lambda file: file.write(text.encode()))
        replace_file(path, lambda file: write(table, file))
    except OSError as error:
        raise OutputError(f"output {path}: cannot be written ({error.strerror or error})") from error


def read_table(path: Path) -> tuple[pa.Table, dict[str, Any] | None]:
    """Read a table of ours. Returns it and its metadata, None where it carries none.

    Raises OutputError when the file cannot be read as such a table.
    """
    try:
        metadata = _read_metadata(path)
        if path.suffix.lower() == ".parquet":
            table = pq.read_table(path, partitioning=None).replace_schema_metadata(None)
            table.select(schema(None).names)  # KeyError for a column that is missing
            return table, metadata
        target = schema((metadata or {}).get("embedding_dim"))
        read = _read_csv if path.suffix.lower() == ".csv" else _read_jsonl
        return read(path, target), metadata
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise OutputError(f"output {path}: exists and is not a table of sqt-fast ({error}); use --overwrite") from error


def _read_metadata(path: Path) -> dict[str, Any] | None:
    if path.suffix.lower() == ".parquet":
        text = (pq.read_schema(path).metadata or {}).get(METADATA_KEY)
    else:
        text = _sidecar(path).read_bytes() if _sidecar(path).exists() else None
    return None if text is None else dict(json.loads(text))


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".meta.json")


def _plain(value: Any, kind: pa.DataType) -> Any:
    """Return ``value`` as JSON knows it, floats in the fewest digits that read back as the same number."""
    if value is None:
        return None
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return [_plain(v, kind.value_type) for v in value]
    if pa.types.is_float32(kind):
        return float(str(np.float32(value)))
    if pa.types.is_float16(kind):
        return float(str(np.float16(value)))
    return value


def _from_json(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Undo ``_plain`` for a column."""
    if pa.types.is_fixed_size_list(kind):
        return _embedding_column([None if v is None else np.array(v, np.float16) for v in values], kind.list_size)
    return pa.array(values, kind)


def _write_jsonl(table: pa.Table, file: Any) -> None:
    kinds = {field.name: field.type for field in table.schema}
    for batch in table.to_batches(max_chunksize=1024):
        for row in batch.to_pylist():
            plain = {name: _plain(value, kinds[name]) for name, value in row.items()}
            file.write(json.dumps(plain, ensure_ascii=False).encode() + b"\n")


def _read_jsonl(path: Path, target: pa.Schema) -> pa.Table:
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return pa.Table.from_arrays([_from_json([row[f.name] for row in rows], f.type) for f in target], schema=target)


def _write_csv(table: pa.Table, file: Any) -> None:
    """Lists become JSON text: CSV has no lists."""
    for i, field in enumerate(table.schema):
        if pa.types.is_nested(field.type) or pa.types.is_float32(field.type):
            plain = [_plain(value, field.type) for value in table.column(i).to_pylist()]
            if pa.types.is_nested(field.type):
                plain = [None if v is None else json.dumps(v, ensure_ascii=False) for v in plain]
            kind = pa.string() if pa.types.is_nested(field.type) else pa.float64()
            table = table.set_column(i, field.name, pa.array(plain, kind))
    pa_csv.write_csv(table, file)


def _read_csv(path: Path, target: pa.Schema) -> pa.Table:
    kinds = {f.name: pa.string() if pa.types.is_nested(f.type) else f.type for f in target}
    options = pa_csv.ConvertOptions(column_types=kinds, strings_can_be_null=True, quoted_strings_can_be_null=False)
    table = pa_csv.read_csv(path, convert_options=options, parse_options=pa_csv.ParseOptions(newlines_in_values=True))
    columns = []
    for field in target:
        column = table[field.name]
        if pa.types.is_nested(field.type):
            values = [None if v is None else json.loads(v) for v in column.to_pylist()]
            column = _from_json(values, field.type)
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=target)
