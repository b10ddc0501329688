"""Files: written whole or not at all, and where the user's cache is."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Put what ``write(file)`` writes at ``path``: at every moment it is its old self or complete.

    The bytes are on disk before the name is theirs. Raises OSError, and whatever ``write`` raises, leaving nothing.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Return where weights and measurements are kept: ``$SQT_FAST_CACHE``, or else the user's cache (XDG)."""
    if folder := os.environ.get("SQT_FAST_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sqt_fast"
