"""The parts of a table that is being made: ``<output>.parts/``, so that nothing is lost when a run dies.

It holds ``lock`` (held by the run that works on it), ``run.json`` (what was asked for and what was chosen) and
``part-000001.parquet`` and so on, each complete and each with whole videos. The folder goes when the table is done.
"""

import fcntl
import json
import os
import shutil
from contextlib import ExitStack, suppress
from fnmatch import fnmatch
from glob import escape
from pathlib import Path
from typing import Any

from sqt_fast.errors import OutputError, system_reason
from sqt_fast.files import replace_file
from sqt_fast.table.schema import Table, reading, write_batches, writing

PART_NAMES = "part-*.parquet"


class Parts:
    """The parts folder of one output, locked while this object is open. Use as a context manager.

    Raises OutputError when another run holds it or it cannot be made.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output.with_name(output.name + ".parts")
        self._lock: int | None = None

    def __enter__(self) -> "Parts":
        try:
            while self._lock is None:
                self._lock = self._try_lock()
            self._tidy_up()
        except OSError as error:
            self._unlock()
            raise OutputError(f"output {self.output}: cannot write beside it ({system_reason(error)})") from error
        return self

    def __exit__(self, *error: object) -> None:
        try:
            with suppress(OSError):  # an empty folder that stays harms nobody
                if {path.name for path in self.folder.iterdir()} <= {"lock"}:
                    shutil.rmtree(self.folder)
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _try_lock(self) -> int | None:
        """Return the locked file, None if the folder was removed meanwhile by a run that ended."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError), ExitStack() as undo:
            lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            undo.callback(os.close, lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(
                    f"output {self.output}: another run is writing it; wait for it or choose another name"
                ) from error
            if os.fstat(lock).st_ino == (self.folder / "lock").stat().st_ino:
                undo.pop_all()
                return lock
        return None

    def _tidy_up(self) -> None:
        """Remove what killed runs left: half-written files, and parts of a table that is complete."""
        # Not those of an output whose name begins like ours.
        beside = f".{escape(self.output.name)}.{'[!.]' * 8}.tmp"
        leftovers = [*_listed(self.folder, ".*.tmp"), *_listed(self.output.parent, beside)]
        if not (self.folder / "run.json").exists():
            leftovers += _listed(self.folder, PART_NAMES)
        for path in leftovers:
            path.unlink(missing_ok=True)

    @property
    def run(self) -> dict[str, Any] | None:
        """What the unfinished run was about, None if there is none."""
        try:
            return dict(json.loads((self.folder / "run.json").read_text()))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutputError(f"{self.folder}/run.json: cannot be read ({system_reason(error)})") from error
        except (ValueError, TypeError) as error:
            raise OutputError(f"{self.folder}/run.json: cannot be read; remove {self.folder} to start anew") from error

    def start(self, run: dict[str, Any]) -> None:
        """Remember what this run is about."""
        with writing(self.folder):
            replace_file(self.folder / "run.json", lambda file: file.write(json.dumps(run, indent=1).encode()))

    def add(self, table: Table) -> None:
        """Keep the rows of finished videos."""
        numbers = [int(path.stem.removeprefix("part-")) for path in self.files()]
        write_batches([table], table.schema, self.folder / f"part-{max(numbers, default=0) + 1:06d}.parquet")

    def files(self) -> list[Path]:
        """Return all parts, oldest first."""
        with reading(self.folder):
            return _listed(self.folder, PART_NAMES)

    def clear(self) -> None:
        """Forget the unfinished run but keep the lock."""
        with writing(self.folder):
            for path in self.folder.iterdir():
                if path.name != "lock":
                    path.unlink()

    def remove(self) -> None:
        """Remove the folder: the table is complete. Parts without run.json, should we be killed, mean nothing."""
        with writing(self.folder):
            (self.folder / "run.json").unlink(missing_ok=True)
            shutil.rmtree(self.folder)


def _listed(folder: Path, pattern: str) -> list[Path]:
    """Return what ``folder`` holds of this pattern, sorted; nothing where it is not there.

    Raises OSError where it cannot be listed: ``Path.glob`` would find nothing, and parts would be written over.
    """
    return sorted(p for p in folder.iterdir() if fnmatch(p.name, pattern)) if folder.exists() else []
