"""A GPU to tune for that is none: a clock that shows what a test wants, and kernels that write what a test wants."""

import json
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from sqt_fast.files import tuned_file
from sqt_fast.kernels.launch import Config, Launch, Problem, best_config, executing
from sqt_fast.tuning.tune import TuneConfig, Tuner
from sqt_fast.tuning.tuned_file import TunedFile

A, B, C = (Config(m, 64, 64) for m in (16, 32, 64))
GPU = "Pretended GPU"
OUT_OF_RESOURCES = OutOfResources(300000, 232448, "shared memory")


class FakeKernel:
    """Writes what ``results`` says of a config, 1 if nothing; exceptions are raised. spilling: needs more registers."""

    arg_names = ("out", "BLOCK_M", "BLOCK_N", "BLOCK_K", "COPY")

    def __init__(self, results: Mapping[Config, Any], spilling: tuple[Config, ...] = ()) -> None:
        self.results, self.spilling = results, spilling
        self.launched: list[Config] = []
        self.compiled: list[Config] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.launch

    def launch(self, out: Tensor, **tiles: int) -> None:
        self.launched.append(_config(tiles))
        result = self.results.get(self.launched[-1], 1.0)
        if isinstance(result, BaseException):
            raise result
        out.copy_(torch.as_tensor(result))

    def warmup(self, out: Tensor, grid: tuple[int, ...], **tiles: int) -> SimpleNamespace:
        self.compiled.append(_config(tiles))
        return SimpleNamespace(n_spills=8 * (self.compiled[-1] in self.spilling))


def _config(tiles: Mapping[str, int]) -> Config:
    """Of a kernel for float32: copies of 4 elements are 16 bytes. Some kernels take no depth, some no copies."""
    block = tiles["BLOCK_M"], tiles["BLOCK_N"], tiles.get("BLOCK_K", 1)
    return Config(*block, tiles["num_warps"], tiles["num_stages"], 4 * tiles.get("COPY", 4))


def config_of(launch: Launch) -> Config:
    return _config({**launch.args, "num_warps": launch.num_warps, "num_stages": launch.num_stages})


class FakeClock:
    """Shows what ``seconds`` says of a launch's tiles; exceptions are raised. Everything else takes ``speeds``."""

    def __init__(self, seconds: Callable[[Config], float | BaseException]) -> None:
        self.seconds = seconds
        self.speeds: list[float | Exception] = []

    def __call__(self, call: Callable[[], object]) -> float:
        found = self.seconds(config_of(call)) if isinstance(call, Launch) else self.speeds.pop(0)
        if isinstance(found, BaseException):
            raise found
        return found if isinstance(call, Launch) else 1 / found


def a_problem(
    *configs: Config,
    results: Mapping[Config, Any] | None = None,
    spilling: tuple[Config, ...] = (),
    rows: int = 1000,
    op: str = "op",
) -> Problem:
    """Return a problem whose heuristic are the first tiles."""
    out = torch.zeros(3)
    return Problem(
        op=op,
        key="bf16 c=1",
        kernel=FakeKernel(results or {}, spilling),
        out=out,
        parts=(1, rows, 64),
        args=lambda _: (out,),
        heuristic=configs[0],
        candidates=lambda: sorted(configs),
    )


def launched(problem: Problem) -> list[Config]:
    found: list[Config] = problem.kernel.launched
    return found


def clock(seconds: Mapping[Config, float | BaseException]) -> FakeClock:
    return FakeClock(seconds.__getitem__)


def a_file(architecture: int = 90, gpu: str = GPU, *, overwrite: bool = False) -> TunedFile:
    return TunedFile(tuned_file(), architecture=architecture, gpu=gpu, overwrite=overwrite)


def a_tuner(clock: FakeClock, said: list[str], *, overwrite: bool = False, budget_s: float | None = None) -> Tuner:
    return Tuner(TuneConfig(budget_s=budget_s), a_file(overwrite=overwrite), said.append, clock)


def on_disk() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(tuned_file().read_text())
    return content


def looked_up(problem: Problem, architecture: int = 90) -> Config:
    """Return what a later run uses."""
    with executing(lambda _: None, architecture=architecture):
        return best_config(problem)
