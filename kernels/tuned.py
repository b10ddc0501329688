"""Tuned tiles, looked up by GPU: what ``sqt-fast tune`` found here, else what is committed for GPUs of this family.

Both are JSON files of one form (``tuned.json`` beside this file, ``kernels.json`` in the user's cache)::

    {"sm_90": {"gpu": ..., "versions": {...}, "date": ..., "commit": ...,
               "tiles": {"merge bf16 c=64 k=64": {"19": [128, 64, 64, 4, 4]}},
               "microseconds": {"merge bf16 c=64 k=64": {"19": [231.5, 180.2]}},
               "network": {"bf16": {"eager": 9000.0, "compile": 20000.0, "triton": 30000.0}}}}

Keys of ``tiles`` are a problem's name and log2 of its rows; values the fields of ``kernels.launch.Config``.
``microseconds``: what the heuristic's tiles took (null: they did not run), and what these took. ``network`` holds
clips/s of whole backends.
"""

import functools
import json
import logging
import math
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

COMMITTED = Path(__file__).with_name("tuned.json")


_users: list[Path] = []


def look_in(path: Path) -> None:
    """Look for the user's own findings in this file from now on."""
    _users[:] = [path]


def family(architecture: int) -> str:
    """Return the key of GPUs of this compute capability."""
    return f"sm_{architecture}"


def about_rows(rows: int) -> str:
    """Return the key of problems of about so many rows."""
    return str(round(math.log2(max(rows, 1))))


def tuned_config(architecture: int, name: str, rows: int) -> tuple[int, ...] | None:
    """Return the tiles found for problem ``name`` at about so many rows, None if there are none."""
    for found in records(architecture):
        if by_rows := found.get("tiles", {}).get(name):
            nearest = min(by_rows, key=lambda log2_rows: abs(int(log2_rows) - math.log2(max(rows, 1))))
            return tuple(by_rows[nearest])
    return None


def network_speeds(architecture: int, precision: str) -> tuple[dict[str, float], str] | None:
    """Return clips/s of every backend as measured, and on which GPU; None if nobody measured this family."""
    for found in records(architecture):
        if speeds := found.get("network", {}).get(precision):
            return speeds, found["gpu"]
    return None


def records(architecture: int) -> list[dict[str, Any]]:
    """Return what is known of this family, the user's own first."""
    files = [_read(path) for path in (*_users, COMMITTED)]
    return [file[family(architecture)] for file in files if family(architecture) in file]


@functools.cache
def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        log.warning(
            "%s: cannot be read (%s); kernels run as if nothing were tuned. Remove it, or tune again", path, error
        )
        return {}


def forget() -> None:
    """Read the files again when they are next asked for."""
    _read.cache_clear()
