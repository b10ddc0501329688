"""Try tiles of one problem against each other: those that give the right results, and of those the fastest."""

import logging
import math
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from sqt_fast.errors import BackendError, first_line
from sqt_fast.kernels.launch import Config, Launch
from sqt_fast.tuning.stopwatch import LAUNCH_ERRORS, Stopwatch

log = logging.getLogger(__name__)

# Tiles that first take so many times as long as the best ones are not timed further.
GIVE_UP = 3.0
# How many are timed again, in turn with those of the heuristic: clocks may have changed since the first were timed.
FINALISTS = 3
# A gain below this is noise of the measurement.
WORTH = 0.99
# Greatest difference between two orders of summation, as a part of the largest value.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}


class Trial:
    """Tiles of one problem.

    launches: what to try; the first that runs says what is right, so put the heuristic's first. seconds: of one launch,
    for those that were timed. refused: how many were not, by reason. Raises BackendError where the GPU gives up.
    """

    def __init__(self, stopwatch: Stopwatch, launches: Mapping[Config, Launch], heuristic: Config) -> None:
        self.stopwatch, self.launches, self.heuristic = stopwatch, launches, heuristic
        self.seconds: dict[Config, float] = {}
        self.refused: Counter[str] = Counter()
        self._expected: list[Tensor] = []
        self._last_error = ""

    @property
    def best(self) -> Config:
        """The fastest tiles; those of the heuristic unless others are faster for certain."""
        fastest = min(self.seconds, key=self.seconds.__getitem__)
        heuristic_s = self.seconds.get(self.heuristic, math.inf)
        return fastest if self.seconds[fastest] < WORTH * heuristic_s else self.heuristic

    def run(self) -> None:
        """Time all of them once, then the best few again."""
        self.stopwatch.prepare(list(self.launches.values()))
        for config in self.launches:
            self._try(config)
        if not self.seconds:
            raise BackendError(f"no tiles run on this GPU: {self._last_error}; use --backend compile or eager")
        fastest = sorted(self.seconds, key=self.seconds.__getitem__)[:FINALISTS]
        again = dict.fromkeys((*fastest, *(self.seconds.keys() & {self.heuristic})))
        for config in [*again] * 2:
            self.seconds[config] = min(self.seconds[config], self.stopwatch.kernel_s(self.launches[config], math.inf))

    def _try(self, config: Config) -> None:
        launch = self.launches[config]
        try:
            if reason := self._why_not(config, launch):
                self.refused[reason] += 1
                return
            self.seconds[config] = self.stopwatch.kernel_s(
                launch, GIVE_UP * min(self.seconds.values(), default=math.inf)
            )
        except torch.OutOfMemoryError:
            raise
        except LAUNCH_ERRORS as error:
            self.stopwatch.check_alive(error)
            self._last_error = f"{config}: {first_line(error)}"
            self.refused["failed"] += 1

    def _why_not(self, config: Config, launch: Launch) -> str | None:
        results = _results(launch)
        if not self._expected:
            self._expected = results
        elif not all(_close(*pair) for pair in zip(results, self._expected, strict=True)):
            log.warning("%s %s: wrong results", launch.kernel, config)
            return "wrong"
        return "spilling" if config != self.heuristic and self.stopwatch.spills(launch) else None


def _results(launch: Launch) -> list[Tensor]:
    """Launch into NaN and return what was written; sums without their cut, which depends on the tiles."""
    out, sums = launch.args["out"], launch.args["sums"] if launch.args.get("SUMS") else None
    for written in (out, sums):
        if written is not None:
            written.fill_(math.nan)
    launch()
    return [out.clone()] if sums is None else [out.clone(), sums.sum(1)]


def _close(found: Tensor, expected: Tensor) -> bool:
    largest = expected.abs().nan_to_num(0.0, 0.0).max().item()
    return torch.allclose(found, expected, rtol=0.0, atol=TOLERANCES[expected.dtype] * largest, equal_nan=True)
