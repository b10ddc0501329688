"""The table: its columns; reading and writing it as Parquet, and writing it in the other formats.

Parquet is the table itself: parts of a run, what a run adds to. CSV and JSON lines are written from it in the end.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, get_type_hints

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


@dataclass(frozen=True, slots=True)
class Row:
    """One row. Fields are the columns of the table, each with its type in Arrow and its description.

    embedding: (C,) float16, or None.
    """

    path: Annotated[str, pa.string(), "the file, as given"]
    status: Annotated[
        str, pa.string(), "ok, or why there is no label: " + "; ".join(f"{k}: {v}" for k, v in STATUSES.items())
    ] = "ok"
    error_message: Annotated[str | None, pa.string(), "what happened, in words; null when ok"] = None
    clip_index: Annotated[
        int | None, pa.int32(), "number of the window within the video, from 0; null for rows of a whole video"
    ] = None
    start_s: Annotated[
        float | None, pa.float64(), "presentation time of the first frame, seconds from the start of the file"
    ] = None
    end_s: Annotated[float | None, pa.float64(), "presentation time at which the last frame ends, seconds"] = None
    start_frame: Annotated[int | None, pa.int64(), "first frame, counted from 0 in presentation order"] = None
    end_frame: Annotated[int | None, pa.int64(), "one past the last frame"] = None
    label: Annotated[str | None, pa.string(), "name of the best class"] = None
    label_id: Annotated[int | None, pa.int32(), "its number, from 0"] = None
    score: Annotated[
        float | None, pa.float32(), "its softmax probability, mean over the views where there are several"
    ] = None
    topk_labels: Annotated[list[str] | None, pa.list_(pa.string()), "the best classes, best first"] = None
    topk_ids: Annotated[list[int] | None, pa.list_(pa.int32()), "the best classes, best first"] = None
    topk_scores: Annotated[list[float] | None, pa.list_(pa.float32()), "the best classes, best first"] = None
    duration_s: Annotated[float | None, pa.float64(), "seconds from the first frame to the end of the last"] = None
    fps: Annotated[float | None, pa.float64(), "mean frames a second"] = None
    num_frames: Annotated[int | None, pa.int64(), "frames a player would show"] = None
    width: Annotated[int | None, pa.int32(), "pixels as stored, before rotation"] = None
    height: Annotated[int | None, pa.int32(), "pixels as stored, before rotation"] = None
    codec: Annotated[str | None, pa.string(), "FFmpeg's name of the codec"] = None
    is_vfr: Annotated[bool | None, pa.bool_(), "whether the frame rate varies"] = None
    rotation: Annotated[
        int | None, pa.int32(), "display rotation as ffprobe prints it (-90: shown turned 90 degrees clockwise)"
    ] = None
    clock_jumped: Annotated[
        bool | None,
        pa.bool_(),
        "whether the file's clock jumps back or pictures share a time: times go on as a player's do, nothing is lost",
    ] = None
    decoder: Annotated[str | None, pa.string(), "what decoded it"] = None
    size_bytes: Annotated[int | None, pa.int64(), "size of the file"] = None
    mtime_ns: Annotated[int | None, pa.int64(), "modification time, nanoseconds since 1970"] = None
    embedding: Annotated[NDArray[np.float16] | None, pa.float16(), "pooled features before the classifier"] = None


def schema(embedding_dim: int | None) -> pa.Schema:
    """Return the table's columns, each with its description as field metadata ``description``."""
    columns = []
    for name, hint in get_type_hints(Row, include_extras=True).items():
        kind, description = hint.__metadata__
        if name == "embedding":
            if embedding_dim is None:
                continue
            kind = pa.list_(kind, embedding_dim)
        nullable = name not in ("path", "status")
        columns.append(pa.field(name, kind, nullable=nullable, metadata={"description": description}))
    return pa.schema(columns)


def to_table(rows: Sequence[Row], embedding_dim: int | None) -> pa.Table:
    """Return ``rows`` as an Arrow table. embedding_dim: C, or None for a table without embeddings."""
    target = schema(embedding_dim)
    columns = [pa.array([_clean(f.name, getattr(row, f.name)) for row in rows], f.type) for f in target]
    return pa.Table.from_arrays(columns, schema=target)


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
    if metadata is not None:
        target = target.with_metadata({METADATA_KEY: json.dumps(metadata, indent=1).encode()})
    write = WRITERS[path.suffix.lower()]
    with writing(path):
        replace_file(path, lambda file: write(regroup(batches, group_bytes), target, file))


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
    is_time = name in ("start_s", "end_s", "duration_s")
    return max(0.0, round(value, 6)) + 0.0 if is_time and value is not None else value


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


def regroup(batches: Iterable[pa.Table], size_bytes: int) -> Iterator[pa.Table]:
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


def write_parquet(groups: Iterable[pa.Table], target: pa.Schema, file: IO[bytes]) -> None:
    """Write tables of schema ``target`` to an open file, a row group each."""
    # A dictionary of embeddings saves nothing, and they would be read 6 times as slowly.
    repeating = [f"{f.name}.list.element" if pa.types.is_list(f.type) else f.name for f in target]
    with pq.ParquetWriter(file, target, compression="zstd", use_dictionary=repeating) as writer:
        for group in groups:
            writer.write_table(group)


# By suffix. config.OUTPUT_SUFFIXES names them without Arrow; a test holds the two together.
WRITERS = {".parquet": write_parquet, ".csv": write_csv, ".jsonl": write_jsonl}
CAN_GROW = frozenset({".parquet"})  # to such a table a later run can add
