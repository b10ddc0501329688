"""What a table of ``sqt-fast index`` says of some videos: the scores of their classes, or why there are none."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sqt_fast.errors import ConfigError, OutputError
from sqt_fast.table.schema import read_batches, read_metadata
from sqt_fast.video.archive import VideoFile, path_of

COLUMNS = ("path", "status", "error_message", "topk_ids", "topk_labels", "topk_scores")
Kept = tuple[NDArray[np.int64], NDArray[np.float32]]  # of a row: the numbers of its best classes, and their scores


@dataclass
class TableScores:
    """What a table says of the videos that were asked for, each by its absolute path.

    metadata: of the table. rows: the ok rows of each video, one or a window each. failures: status and message of the
    others. names: the classes that some row names, by number. example: a path that the table has, asked for or not.
    """

    metadata: dict[str, Any]
    rows: dict[str, list[Kept]] = field(default_factory=dict)
    failures: dict[str, tuple[str, str]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    example: str | None = None

    @property
    def num_kept(self) -> int | None:
        """How many classes the rows hold: the best so many, or all. None where no row holds any."""
        return next((len(ids) for rows in self.rows.values() for ids, _ in rows), None)

    @property
    def is_complete(self) -> bool:
        """Whether it is certain that rows hold every class."""
        asked = self.metadata["settings"]["top_k"]
        return self.num_kept is not None and (asked is None or self.num_kept < asked)

    def of(self, paths: Sequence[str], num_classes: int) -> NDArray[np.float32]:
        """Return the scores of videos, the mean over their rows, (N, K) float32.

        What a row does not name counts as 0 in the mean; what none names is NaN.
        """
        scores = np.full((len(paths), num_classes), np.nan, np.float32)
        for own, path in zip(scores, paths, strict=True):
            rows = self.rows.get(path, ())
            total = np.zeros(num_classes)
            for ids, values in rows:
                total[ids] += values
                own[ids] = 0.0
            own += total / max(len(rows), 1)
        return scores


def absolute(path: str) -> str:
    """Return by what a video is found in a list and in a table."""
    return os.path.abspath(path)  # noqa: PTH100 - resolve() would follow links


def name_of(path: str) -> str:
    """Return how a table writes a path (``VideoFile.name``)."""
    return VideoFile(path, None, None).name


def read_scores(table: Path, wanted: Collection[str]) -> TableScores:
    """Read what ``table`` says of the videos ``wanted``, absolute paths.

    Raises ConfigError for what is no Parquet table of ``sqt-fast index``.
    """
    try:
        metadata = read_metadata(table)
        if metadata is None or "settings" not in metadata:
            raise _no_table(table, "its metadata is missing")
        found = TableScores(metadata)
        for batch in read_batches(table, COLUMNS):
            for row in batch.to_pylist():
                _take(found, row, wanted)
    except OutputError as error:
        raise _no_table(table, str(error).partition("(")[2].rpartition(")")[0] or str(error)) from error
    for path in wanted:
        if path not in found.rows:
            found.failures.setdefault(path, ("not_in_table", "the table has no row of it"))
    return found


def _take(found: TableScores, row: dict[str, Any], wanted: Collection[str]) -> None:
    path = absolute(path_of(row["path"]))
    found.example = found.example or path
    if row["status"] == "ok":
        found.names.update(zip(row["topk_ids"], row["topk_labels"], strict=True))
    if path not in wanted:
        return
    if row["status"] == "ok":
        kept = np.array(row["topk_ids"], np.int64), np.array(row["topk_scores"], np.float32)
        found.rows.setdefault(path, []).append(kept)
        found.failures.pop(path, None)
    elif path not in found.rows:
        found.failures.setdefault(path, (row["status"], row["error_message"]))


def _no_table(table: Path, reason: str) -> ConfigError:
    return ConfigError(f"table {table}: not a Parquet table of sqt-fast index ({reason}); give one, or use --weights")
