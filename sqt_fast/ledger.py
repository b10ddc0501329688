"""What earlier runs have done: which videos have their rows, and which are to be labelled now."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from sqt_fast.archive import VideoFile
from sqt_fast.errors import OutputError
from sqt_fast.parts import Parts
from sqt_fast.table import Table, read_table


class Ledger:
    """The videos of some tables, newest last, each with the state of the file that its rows speak of."""

    def __init__(self, tables: Iterable[Table]) -> None:
        self.done: dict[str, tuple[str, int | None, int | None]] = {}
        self.failed: set[str] = set()
        for table in tables:
            columns = [table[name].to_pylist() for name in ("path", "size_bytes", "mtime_ns", "status")]
            self.failed -= set(columns[0])
            for path, size_bytes, mtime_ns, status in zip(*columns, strict=True):
                self.done[path] = (path, size_bytes, mtime_ns)
                if status != "ok":
                    self.failed.add(path)

    def gone(self, videos: Sequence[VideoFile]) -> set[str]:
        """Return the paths with rows whose file is not on disk any more. Their rows stay."""
        listed = {video.name for video in videos}
        unreachable = {v.name for v in videos if v.size_bytes is None and self.done.get(v.name, v.key) != v.key}
        return unreachable | {path for path in self.done if path not in listed and not os.path.lexists(path)}

    def todo(self, videos: Sequence[VideoFile], gone: set[str], *, retry_failed: bool) -> list[VideoFile]:
        """Return the videos without rows, with rows of an older state of the file, or to be tried again."""
        again = self.failed if retry_failed else set()
        return [v for v in videos if v.name not in gone and (self.done.get(v.name) != v.key or v.name in again)]


def existing_ledger(output: Path, *, overwrite: bool) -> Ledger:
    """Return what a run into ``output`` would find done, without locking or judging anything: for a dry run."""
    if overwrite:
        return Ledger([])
    tables = []
    try:
        if output.exists():
            tables.append(read_table(output)[0])
        tables += Parts(output).tables()
        return Ledger(tables)
    except (OutputError, KeyError):
        return Ledger([])  # the run itself will refuse it and say why
