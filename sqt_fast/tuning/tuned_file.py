"""The file that ``sqt-fast tune`` writes, whole after every finding. Its form: ``kernels/tuned.py``, which reads it."""

import json
import re
import time
from collections.abc import Mapping
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


class TunedFile:
    """What is known of one GPU. What the file holds of other families of GPUs stays there.

    architecture: compute capability, 90 for 9.0. overwrite: drop what was found before. What was found on another GPU
    of the family, or with other versions or another commit, is dropped anyway: it would stand under circumstances that
    are not its own. Raises ConfigError for a file of another form, OutputError when it cannot be written.
    """

    def __init__(self, path: Path, *, architecture: int, gpu: str, overwrite: bool = False) -> None:
        self.path, self.architecture, self.gpu = path, architecture, gpu
        self._families = _read(path)
        found = self._families.get(tuned.family(architecture), {})
        versions = {"sqt-fast": __version__, "torch": torch.__version__, "triton": triton.__version__}
        about = {"gpu": gpu, "versions": versions, "date": time.strftime("%Y-%m-%d"), "commit": commit()}
        self._record: dict[str, Any] = {**about, "tiles": {}, "microseconds": {}, "network": {}}
        if not overwrite and all(found.get(name) == about[name] for name in ("gpu", "versions", "commit")):
            self._record |= found
        self._families[tuned.family(architecture)] = self._record
        self._write()  # what cannot be written is better known before the work

    def tiles(self, problem: Problem) -> Config | None:
        """Return what was found for ``problem`` at about as many rows, None if nothing was."""
        found = self._record["tiles"].get(problem.name, {}).get(tuned.about_rows(problem.rows))
        return None if found is None else Config(*found)

    def keep_tiles(self, problem: Problem, config: Config, *, heuristic_s: float | None, best_s: float) -> None:
        """Add a finding: ``config`` takes ``best_s``, the tiles of the heuristic ``heuristic_s``, None if they fail."""
        microseconds = [None if seconds is None else round(1e6 * seconds, 2) for seconds in (heuristic_s, best_s)]
        for name, values in (("tiles", list(config)), ("microseconds", microseconds)):
            self._record[name].setdefault(problem.name, {})[tuned.about_rows(problem.rows)] = values
        self._write()

    def keep_network(self, precision: str, clips_per_s: Mapping[str, float]) -> None:
        """Replace the clips/s of whole backends."""
        self._record["network"][precision] = {name: round(speed, 1) for name, speed in clips_per_s.items()}
        self._write()

    def _write(self) -> None:
        text = re.sub(r"\[[^\[\]{}]*\]", lambda n: json.dumps(json.loads(n[0])), json.dumps(self._families, indent=1))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.path, lambda file: file.write(f"{text}\n".encode()))
        except OSError as error:
            reason = system_reason(error)
            raise OutputError(f"{self.path}: cannot be written ({reason}); choose another --out") from error
        tuned.forget()


def _read(path: Path) -> dict[str, Any]:
    try:
        families = json.loads(path.read_text(encoding="utf-8"))
        for record in families.values():
            _ = record["gpu"], record["tiles"].items()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path}: must be a file that sqt-fast tune wrote ({error}); remove it or choose another --out"
        ) from error
    return dict(families)
