"""The table: its columns; reading and writing it as Parquet, and writing it in the other formats.

Parquet is the table itself: parts of a run, what a run adds to. CSV and JSON lines are written from it in the end.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sqt_fast.errors import OutputError, system_reason
from sqt_fast.files import replace_file
from sqt_fast.table.export import slices, write_csv, write_jsonl

METADATA_KEY = b"sqt_fast"
GROUP_BYTES = 8 << 20  # of a row group, in memory: 2000 rows with embeddings, 25 000 without
BATCH_ROWS = 1024
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
    "crashed": "the decoder's process died or hung on this file, every time it was tried",
    "error": "something unforeseen; please report it",
}

TIMES = frozenset({"start_s", "end_s", "duration_s"})
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
    ("clock_jumped", pa.bool_(), "whether the file's clock jumps back: times go on as a player's do, nothing is lost"),
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
    clock_jumped: bool | None = None
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
    columns = [pa.array([_clean(n, getattr(r, n)) for r in rows], target.field(n).type) for n in names]
    if embedding_dim is not None:
        columns.append(pa.array([r.embedding for r in rows], target.field("embedding").type))
    return pa.Table.from_arrays(columns, schema=target)


def write_table(table: pa.Table, path: Path, metadata: dict[str, Any] | None = None) -> None:
    """Write ``table`` as ``write_batches`` does."""
    write_batches([table], table.schema, path, metadata)


def write_batches(
    batches: Iterable[pa.Table],
    target: pa.Schema,
    path: Path,
    metadata: dict[str, Any] | None = None,
    *,
    group_bytes: int = GROUP_BYTES,
) -> None:
    """Write tables of schema ``target``, one after the other, so that ``path`` is always its old self or complete.

    Parquet carries ``metadata`` under the key ``sqt_fast``. group_bytes: how much is held at a time, and the size of
    Parquet's row groups. Raises OutputError when it cannot be written.
    """
    form = FORMATS[path.suffix.lower()]
    with writing(path):
        replace_file(path, lambda file: form.write(batches, target, file, metadata, group_bytes))


def read_table(path: Path) -> tuple[pa.Table, dict[str, Any] | None]:
    """Read a whole table of ours. Returns it and its metadata, None where it carries none.

    Raises OutputError, as all that read do, when the file cannot be read as such a table.
    """
    return pa.concat_tables([read_schema(path).empty_table(), *read_batches(path)]), read_metadata(path)


def read_batches(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Read a table of ours bit by bit, or only some of its columns."""
    target = read_schema(path)
    names = target.names if columns is None else list(columns)
    wanted = pa.schema([target.field(name) for name in names])
    # Buffered, or a column of a row group is brought into memory as a whole.
    with reading(path), pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=names, use_threads=False):
            yield pa.Table.from_arrays([batch[name] for name in names], schema=wanted)


def read_metadata(path: Path) -> dict[str, Any] | None:
    """Return the metadata of a table of ours, None where it carries none."""
    with reading(path):
        text = (pq.read_schema(path).metadata or {}).get(METADATA_KEY)
        return None if text is None else dict(json.loads(text))


def read_schema(path: Path) -> pa.Schema:
    """Return the columns of a table of ours."""
    with reading(path):
        found = pq.read_schema(path)
        for name in schema(None).names:
            found.field(name)  # KeyError for a column that is missing
        return schema(found.field("embedding").type.list_size if "embedding" in found.names else None)


def _clean(name: str, value: Any) -> Any:
    """Return a time in whole microseconds, never before the start: what is beyond that is rounding, and no time."""
    return max(0.0, round(value, 6)) + 0.0 if value is not None and name in TIMES else value


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what reading raises into an OutputError: the machine's failure, or a file that is no table of ours."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # Arrow's word for a Parquet file that is damaged
            raise _no_table(path, error) from error
        raise OutputError(f"output {path}: cannot be read ({os.strerror(error.errno).lower()})") from error
    except (ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise _no_table(path, error) from error


def _no_table(path: Path, error: Exception) -> OutputError:
    return OutputError(f"output {path}: exists and is not a table of sqt-fast ({error}); use --overwrite")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what writing a file raises into an OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"output {path}: cannot be written ({system_reason(error)})") from error


def _regroup(batches: Iterable[pa.Table], size_bytes: int) -> Iterator[pa.Table]:
    """Yield the rows of ``batches`` in tables of about ``size_bytes``."""
    held: list[pa.Table] = []
    held_bytes = 0
    for piece in slices(batches, size_bytes):
        if held and held_bytes + piece.nbytes > size_bytes:
            yield pa.concat_tables(held)
            held, held_bytes = [], 0
        held.append(piece)
        held_bytes += piece.nbytes
    if held:
        yield pa.concat_tables(held)


def write_parquet(
    batches: Iterable[pa.Table],
    target: pa.Schema,
    file: IO[bytes],
    metadata: dict[str, Any] | None = None,
    group_bytes: int = GROUP_BYTES,
) -> None:
    """Write tables of schema ``target`` to an open file, in row groups of about ``group_bytes``."""
    # A dictionary of embeddings saves nothing, and they would be read 6 times as slowly.
    repeating = [f"{f.name}.list.element" if pa.types.is_list(f.type) else f.name for f in target]
    if metadata is not None:
        target = target.with_metadata({METADATA_KEY: json.dumps(metadata, indent=1).encode()})
    with pq.ParquetWriter(file, target, compression="zstd", use_dictionary=repeating) as writer:
        for group in _regroup(batches, group_bytes):
            writer.write_table(group)


@dataclass(frozen=True)
class Format:
    """A format of the table. write: see ``write_parquet``; can_grow: whether a later run can add to such a table."""

    write: Callable[[Iterable[pa.Table], pa.Schema, IO[bytes], dict[str, Any] | None, int], None]
    can_grow: bool = False


# By suffix. config.OUTPUT_SUFFIXES names them without Arrow; a test holds the two together.
FORMATS = {
    ".parquet": Format(write_parquet, can_grow=True),
    ".csv": Format(write_csv),
    ".jsonl": Format(write_jsonl),
}
