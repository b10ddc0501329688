"""A GPU to tune for that is none: its stop-watch shows what a test wants, and its kernels write what a test wants."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from sqt_fast.errors import BackendError
from sqt_fast.files import tuned_file
from sqt_fast.kernels.launch import Config, Launch, Problem, best_config, executing
from sqt_fast.tuning.tune import Tuner
from sqt_fast.tuning.tuned_file import TunedFile

A, B, C = (Config(m, 64, 64) for m in (16, 32, 64))
GPU = "Pretended GPU"
OUT_OF_RESOURCES = OutOfResources(300000, 232448, "shared memory")


class FakeStopwatch:
    """Shows what ``seconds`` says of a launch; exceptions are raised."""

    def __init__(self, seconds: Callable[[Launch], float | BaseException], *, spilling: Sequence[Config] = ()) -> None:
        self.seconds, self.spilling = seconds, spilling
        self.timed: list[Launch] = []
        self.speeds: list[float | Exception] = []
        self.fatal = False

    def prepare(self, launches: Sequence[Launch]) -> None:
        assert launches

    def spills(self, launch: Launch) -> int:
        return 8 * (launch.args.get("config") in self.spilling)

    def kernel_s(self, launch: Launch, give_up_s: float) -> float:
        self.timed.append(launch)
        seconds = self.seconds(launch)
        if isinstance(seconds, BaseException):
            raise seconds
        return seconds

    def check_alive(self, error: Exception) -> None:
        if self.fatal:
            raise BackendError(f"the GPU gave up ({error})")

    def network_s(self, run: Callable[[], object]) -> float:
        speed = self.speeds.pop(0)
        if isinstance(speed, Exception):
            raise speed
        return 1 / speed


class FakeKernel:
    """Writes what ``results`` says of a config, 1 if nothing; exceptions are raised."""

    def __init__(self, results: Mapping[Config, Any]) -> None:
        self.results = results
        self.launched: list[Config] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.launch

    def launch(self, out: Tensor, config: Config, **args: Any) -> None:
        self.launched.append(config)
        result = self.results.get(config, 1.0)
        if isinstance(result, BaseException):
            raise result
        out.copy_(torch.as_tensor(result))


def config_of(launch: Launch) -> Config:
    config: Config = launch.args["config"]
    return config


def a_problem(
    *configs: Config, results: Mapping[Config, Any] | None = None, rows: int = 1000, op: str = "op"
) -> Problem:
    """Return a problem whose heuristic are the first tiles."""
    kernel, out = FakeKernel(results or {}), torch.zeros(3)
    return Problem(
        op=op,
        key="bf16 c=1",
        rows=rows,
        moved_bytes=1,
        flops=1,
        heuristic=configs[0],
        candidates=lambda: sorted(configs),
        launch=lambda config: Launch(kernel, (1,), {"out": out, "config": config}, 4, 3),
    )


def launched(problem: Problem) -> list[Config]:
    kernel: FakeKernel = problem.launch(problem.heuristic).kernel
    return kernel.launched


def stopwatch(seconds: Mapping[Config, float | BaseException], **options: Any) -> FakeStopwatch:
    return FakeStopwatch(lambda launch: seconds[config_of(launch)], **options)


def a_file(architecture: int = 90, gpu: str = GPU) -> TunedFile:
    return TunedFile(tuned_file(), architecture=architecture, gpu=gpu)


def a_tuner(watch: FakeStopwatch, said: list[str], **options: Any) -> Tuner:
    return Tuner(watch, a_file(), said.append, **{"budget_s": None, "quick": False, "resume": False, **options})


def on_disk() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(tuned_file().read_text())
    return content


def looked_up(problem: Problem, architecture: int = 90) -> Config:
    """Return what a later run uses."""
    with executing(lambda _: None, architecture=architecture):
        return best_config(problem)
