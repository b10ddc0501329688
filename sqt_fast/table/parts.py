"""The parts of a table that is being made: ``<output>.parts/``, so that nothing is lost when a run dies.

It holds ``lock`` (held by the run that works on it), ``run.json`` (what was asked for and what was chosen) and
``part-000001.parquet`` and so on, each complete and each with whole videos. The folder goes when the table is done.
"""

import fcntl
import json
import os
import shutil
from glob import escape
from pathlib import Path
from typing import Any

from sqt_fast.errors import OutputError, system_reason
from sqt_fast.files import replace_file
from sqt_fast.table.schema import Table, write_table, writing


class Parts:
    """The parts folder of one output, locked while this object is open. Use as a context manager.

    Raises OutputError when another run holds it or it cannot be made.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output.with_name(output.name + ".parts")
        self._lock: int | None = None

    def __enter__(self) -> "Parts":
        while self._lock is None:
            self._lock = self._try_lock()
        beside = f".{escape(self.output.name)}.{'[!.]' * 8}.tmp"  # not those of an output whose name begins like ours
        for leftover in (*self.folder.glob(".*.tmp"), *self.output.parent.glob(beside)):
            leftover.unlink(missing_ok=True)
        if not (self.folder / "run.json").exists():  # of a run that was killed while it tidied up
            for part in self.files():
                part.unlink()
        return self

    def __exit__(self, *error: object) -> None:
        assert self._lock is not None
        try:
            if self.folder.exists() and {p.name for p in self.folder.iterdir()} <= {"lock"}:
                self.remove()
        finally:
            os.close(self._lock)
            self._lock = None

    def _try_lock(self) -> int | None:
        """Return the locked file, None if the folder was removed meanwhile by a run that ended."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._cannot_write(error) from error
        try:
            lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._cannot_write(error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_ino == (self.folder / "lock").stat().st_ino:
                return lock
        except BlockingIOError as error:
            os.close(lock)
            raise OutputError(
                f"output {self.output}: another run is writing it; wait for it or choose another name"
            ) from error
        except FileNotFoundError:
            pass
        os.close(lock)
        return None

    def _cannot_write(self, error: OSError) -> OutputError:
        return OutputError(f"output {self.output}: cannot write beside it ({system_reason(error)})")

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
        write_table(table, self.folder / f"part-{max(numbers, default=0) + 1:06d}.parquet")

    def files(self) -> list[Path]:
        """Return all parts, oldest first."""
        return sorted(self.folder.glob("part-*.parquet"))

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
