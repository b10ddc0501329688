"""The file that ``sqt-fast tune`` writes, whole after every finding. Its form: ``kernels/tuned.py``, which reads it."""

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton

from sqt_fast import __version__
from sqt_fast.errors import ConfigError, OutputError, system_reason
from sqt_fast.files import replace_file
from sqt_fast.kernels import tuned
from sqt_fast.kernels.launch import Config, Problem
from sqt_fast.versions import commit


@dataclass(frozen=True)
class Place:
    """Where tiles are kept: a problem at about so many rows."""

    name: str
    log2_rows: int

    @classmethod
    def of(cls, problem: Problem) -> "Place":
        """Return where the tiles of ``problem`` are kept."""
        return cls(problem.name, round(math.log2(problem.rows)))

    def __str__(self) -> str:
        return f"{self.name}, 2^{self.log2_rows} rows"


class TunedFile:
    """What is known of one GPU. What the file holds of other families of GPUs stays there.

    architecture: compute capability, 90 for 9.0. Findings on another GPU of the same family, or with other versions or
    another commit, are dropped: they would stand under circumstances that are not theirs.
    Raises ConfigError for a file of another form, OutputError when it cannot be written.
    """

    def __init__(self, path: Path, *, architecture: int, gpu: str) -> None:
        self.path = path
        self._families = _read(path)
        found = self._families.get(tuned.family(architecture), {})
        about = {"gpu": gpu, "versions": _versions(), "date": time.strftime("%Y-%m-%d"), "commit": commit()}
        self._record: dict[str, Any] = {**about, "tiles": {}, "microseconds": {}, "network": {}}
        if all(found.get(name) == about[name] for name in ("gpu", "versions", "commit")):
            self._record |= found
        self._families[tuned.family(architecture)] = self._record
        self._write()  # what cannot be written is better known before the work

    def tiles(self) -> dict[Place, Config]:
        """Return every tile that is known."""
        return {
            Place(name, int(log2_rows)): Config(*tiles)
            for name, by_rows in self._record["tiles"].items()
            for log2_rows, tiles in by_rows.items()
        }

    def keep_tiles(self, place: Place, config: Config, *, heuristic_s: float | None, best_s: float) -> None:
        """Add a finding: ``config`` takes ``best_s``, the tiles of the heuristic ``heuristic_s``, None if they fail."""
        microseconds = [None if seconds is None else round(1e6 * seconds, 2) for seconds in (heuristic_s, best_s)]
        self._record["tiles"].setdefault(place.name, {})[str(place.log2_rows)] = list(config)
        self._record["microseconds"].setdefault(place.name, {})[str(place.log2_rows)] = microseconds
        self._write()

    def keep_network(self, precision: str, clips_per_s: Mapping[str, float]) -> None:
        """Replace the clips/s of whole backends."""
        self._record["network"][precision] = {name: round(speed, 1) for name, speed in clips_per_s.items()}
        self._write()

    def _write(self) -> None:
        text = re.sub(r"\[[^\[\]{}]*\]", _one_line, json.dumps(self._families, indent=1)) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.path, lambda file: file.write(text.encode()))
        except OSError as error:
            reason = system_reason(error)
            raise OutputError(f"{self.path}: cannot be written ({reason}); choose another --out") from error
        tuned.forget()


def _one_line(numbers: re.Match[str]) -> str:
    return json.dumps(json.loads(numbers[0]))


def _read(path: Path) -> dict[str, Any]:
    try:
        families = json.loads(path.read_text(encoding="utf-8"))
        for record in families.values():
            _ = record["gpu"], record["tiles"].items()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({system_reason(error)}); choose another --out") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path}: must be a file that sqt-fast tune wrote ({error}); remove it or choose another --out"
        ) from error
    return dict(families)


def _versions() -> dict[str, str]:
    return {"sqt-fast": __version__, "torch": torch.__version__, "triton": triton.__version__}
