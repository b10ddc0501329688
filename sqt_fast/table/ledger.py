"""What earlier runs have done: which videos have their rows, and which are to be labelled now."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from sqt_fast.errors import OutputError
from sqt_fast.table.parts import Parts
from sqt_fast.table.schema import read_batches
from sqt_fast.video.archive import VideoFile, path_of


class Ledger:
    """The videos of some tables, newest last, each with the state of the file that its rows speak of.

    num_rows: of all tables. done: ``VideoFile.key`` by path. failed: status by path, of those that are not ok. Raises
    OutputError for a file that is no table.
    """

    def __init__(self, sources: Iterable[Path]) -> None:
        self.num_rows = 0
        self.done: dict[str, tuple[str, int | None, int | None]] = {}
        self.failed: dict[str, str] = {}
        for source in sources:
            self._take(source)

    def _take(self, source: Path) -> None:
        """Take in a table newer than all before it."""
        done: dict[str, tuple[str, int | None, int | None]] = {}
        failed = {}
        for batch in read_batches(source, ("path", "size_bytes", "mtime_ns", "status")):
            self.num_rows += batch.num_rows
            for path, size_bytes, mtime_ns, status in zip(*(c.to_pylist() for c in batch.columns), strict=True):
                if status != "ok":
                    failed[path] = status
                if done.get(path) != (path, size_bytes, mtime_ns):
                    done[path] = (path, size_bytes, mtime_ns)
        self.failed = {path: status for path, status in self.failed.items() if path not in done} | failed
        self.done |= done

    def gone(self, videos: Sequence[VideoFile]) -> set[str]:
        """Return the paths with rows whose file is not on disk any more. Their rows stay."""
        listed = {video.name for video in videos}
        unreachable = {v.name for v in videos if v.size_bytes is None and self.done.get(v.name, v.key) != v.key}
        return unreachable | {path for path in self.done if path not in listed and not os.path.lexists(path_of(path))}

    def todo(self, videos: Sequence[VideoFile], gone: set[str], *, retry_failed: bool) -> list[VideoFile]:
        """Return the videos without rows, with rows of an older state of the file, or to be tried again."""
        again = self.failed if retry_failed else {}
        return [v for v in videos if v.name not in gone and (self.done.get(v.name) != v.key or v.name in again)]


def existing_ledger(output: Path, *, overwrite: bool) -> Ledger:
    """Return what a run into ``output`` would find done, without locking or judging anything: for a dry run."""
    if overwrite:
        return Ledger([])
    try:
        return Ledger([*([output] if output.exists() else []), *Parts(output).files()])
    except OutputError:
        return Ledger([])  # the run itself will refuse it and say why
