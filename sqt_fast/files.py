"""Files: written whole or not at all, their hashes, and where the user's cache is."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sqt_fast.errors import OutputError, system_reason

log = logging.getLogger(__name__)


def replace_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Put what ``write(file)`` writes at ``path``: at every moment it is its old self or complete.

    When this returns, bytes and name are on disk. Raises OSError, and whatever ``write`` raises, leaving nothing.
    """
    with temporary_beside(path) as temporary:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what writing ``path`` raises into an OutputError that names it."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({system_reason(error)}); choose another place") from None


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Make an empty file in the folder of ``path``, under a name that nobody else has; gone in the end.

    Its permissions are those of any new file of the user's. ``Parts`` tidies up by this name what a killed run leaves.
    """
    number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        mask = os.umask(0)
        os.umask(mask)
        os.fchmod(number, 0o666 & ~mask)
        os.close(number)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to disk: without it, a rename may be lost with the power, and what came later not."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_findings(name: str) -> dict[str, Any]:
    """Return what ``keep_finding`` kept on this machine in the JSON file ``name``, by key."""
    try:
        return dict(json.loads((cache_folder() / name).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def keep_finding(name: str, key: str, value: Any) -> None:
    """Keep what was measured or tested here for later runs, in the user's cache; where that cannot be, do nothing."""
    path, findings = cache_folder() / name, read_findings(name) | {key: value}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda file: file.write(json.dumps(findings, indent=1).encode()))
    except OSError as error:
        log.info("%s: not kept (%s)", path, error)


def tuned_file() -> Path:
    """Return where ``sqt-fast tune`` keeps what it finds on this machine's GPU."""
    return cache_folder() / "kernels.json"


def cache_folder() -> Path:
    """Return where weights and measurements are kept: ``$SQT_FAST_CACHE``, or else the user's cache (XDG)."""
    if folder := os.environ.get("SQT_FAST_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sqt_fast"
