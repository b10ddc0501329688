"""Find the fastest tiles of every kernel of the network on one's own GPU, and how fast whole backends are there.

The network runs with a tuner in the place of ``kernels.launch.run``: it tries the tiles of every problem on the real
tensors where the problem first comes up, launches the best, and so the network goes on.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sqt_fast.errors import BackendError, ConfigError, InterruptedRunError, first_line
from sqt_fast.files import tuned_file
from sqt_fast.kernels.launch import Problem, executing
from sqt_fast.network.backends import DTYPES, InferenceModel
from sqt_fast.network.choose import find_device
from sqt_fast.network.fused import FusedNetwork
from sqt_fast.network.graphed import why_not
from sqt_fast.network.model import SqueezeTime
from sqt_fast.network.registry import BACKENDS, PRECISIONS
from sqt_fast.network.weights import load_weights
from sqt_fast.tuning.stopwatch import LAUNCH_ERRORS, CudaStopwatch, Stopwatch
from sqt_fast.tuning.trial import Trial
from sqt_fast.tuning.tuned_file import Place, TunedFile

QUICK_CANDIDATES = 8
# What the network is called that runs with the tiles of before.
BEFORE = "triton, not tuned"

Say = Callable[[str], None]


@dataclass(frozen=True)
class TuneConfig:
    """What ``sqt-fast tune`` was asked for. budget_s: seconds for the tiles; output: None is the user's own file."""

    device: str = "cuda"
    precisions: tuple[str, ...] = ("bf16",)
    batch_sizes: tuple[int, ...] = (1, 8, 64, 256)
    weights: str = "random"
    size: int = 224
    output: Path | None = None
    budget_s: float | None = None
    quick: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        if not self.device.startswith("cuda"):
            raise ConfigError(f"--device {self.device}: tiles are tuned on a GPU; use cuda or cuda:N")
        for precision in self.precisions:
            if precision not in PRECISIONS:
                raise ConfigError(f"--precision {precision}: no such precision; use {', '.join(PRECISIONS)}")
        for name, values in (("precision", self.precisions), ("batch-size", self.batch_sizes)):
            if not values:
                raise ConfigError(f"--{name}: give at least one")
        for name, number in (("batch-size", min(self.batch_sizes)), ("size", self.size), ("budget", self.budget_s)):
            if number is not None and not 0 < number < math.inf:
                raise ConfigError(f"--{name} {number:g}: must be more than 0")


@dataclass(frozen=True)
class Tuned:
    """What came out of it. clips_per_s: by precision and backend, on the GPU."""

    path: Path
    gpu: str
    num_problems: int
    clips_per_s: Mapping[str, Mapping[str, float]]

    def lines(self) -> list[str]:
        """Return it in words."""
        lines = [f"{self.num_problems} problems tuned on {self.gpu}, kept in {self.path}"]
        for precision, speeds in self.clips_per_s.items():
            lines += [f"{precision} {name}: {speed:.0f} clips/s" for name, speed in speeds.items()]
        return lines


@dataclass(frozen=True)
class Gpu:
    """Where tuning runs. architecture: compute capability, 90 for 9.0."""

    device: str
    name: str
    architecture: int
    stopwatch: Stopwatch


def tune(config: TuneConfig, say: Say) -> Tuned:
    """Tune on a CUDA GPU. say: takes a line of progress.

    Raises BackendError where no such GPU is, ConfigError, CheckpointError, OutputError for what cannot be used, and
    InterruptedRunError after Ctrl-C; what was found before is kept.
    """
    if not torch.cuda.is_available():
        raise BackendError(f"--device {config.device}: torch sees no CUDA GPU; run this where the GPU to tune for is")
    device = find_device(config.device)
    if reason := why_not(device):
        raise BackendError(f"--device {config.device}: {reason}; choose another")
    with torch.cuda.device(device):
        major, minor = torch.cuda.get_device_capability()
        stopwatch = CudaStopwatch()
        try:
            return tune_on(Gpu(device, torch.cuda.get_device_name(), 10 * major + minor, stopwatch), config, say)
        finally:
            stopwatch.close()


def tune_on(gpu: Gpu, config: TuneConfig, say: Say) -> Tuned:
    """Tune on ``gpu``. See ``tune``."""
    model = load_weights(config.weights).model
    if model.fc is None:
        raise ConfigError(f"weights {config.weights}: hold no classifier; choose other --weights")
    file = TunedFile(config.output or tuned_file(), architecture=gpu.architecture, gpu=gpu.name)
    tuner = Tuner(gpu.stopwatch, file, say, budget_s=config.budget_s, quick=config.quick, resume=config.resume)
    speeds = {}
    try:
        for precision in config.precisions:
            _tune_network(gpu, config, model, precision, tuner)
        for precision in config.precisions:
            speeds[precision] = _network_speeds(gpu, config, model, precision, tuner)
    except KeyboardInterrupt as error:
        raise InterruptedRunError(
            f"stopped: {tuner.num_tuned} problems were tuned and are kept in {file.path}; add --resume to go on"
        ) from error
    return Tuned(file.path, gpu.name, tuner.num_tuned, speeds)


class Tuner:
    """Takes the place of ``kernels.launch.run``: tries the tiles of every problem that is new, launches the best."""

    def __init__(
        self, stopwatch: Stopwatch, file: TunedFile, say: Say, *, budget_s: float | None, quick: bool, resume: bool
    ) -> None:
        self.stopwatch, self.file, self.say, self.quick = stopwatch, file, say, quick
        self.best = file.tiles() if resume else {}
        self.num_tuned = 0
        self._ends = math.inf if budget_s is None else time.perf_counter() + budget_s

    def has_time(self) -> bool:
        """Return whether the budget is not spent yet; says so once when it is."""
        if time.perf_counter() < self._ends:
            return True
        if self._ends > -math.inf:
            self.say("the budget is spent; --resume goes on with the rest")
            self._ends = -math.inf
        return False

    def __call__(self, problem: Problem) -> None:
        if Place.of(problem) not in self.best and self.has_time():
            self._tune(problem)
        self.launch_best(problem)

    def launch_best(self, problem: Problem) -> None:
        """Launch ``problem`` with the best tiles that are known, else with those of its heuristic."""
        problem.launch(self.best.get(Place.of(problem), problem.heuristic))()

    def launch_heuristic(self, problem: Problem) -> None:
        """Launch ``problem`` as if nothing were tuned."""
        problem.launch(problem.heuristic)()

    def _tune(self, problem: Problem) -> None:
        candidates = [config for config in problem.candidates() if config != problem.heuristic]
        if self.quick:
            candidates = candidates[:: math.ceil(len(candidates) / QUICK_CANDIDATES) or 1]
        launches = {config: problem.launch(config) for config in (problem.heuristic, *candidates)}
        trial = Trial(self.stopwatch, launches, problem.heuristic)
        try:
            trial.run()
        except BackendError:
            if trial.seconds:
                self._keep(problem, trial)  # with --resume, what broke the GPU is not tried again
            raise
        self._keep(problem, trial)

    def _keep(self, problem: Problem, trial: Trial) -> None:
        place, best = Place.of(problem), trial.best
        self.best[place] = best
        self.num_tuned += 1
        heuristic_s, best_s = trial.seconds.get(problem.heuristic), trial.seconds[best]
        self.file.keep_tiles(place, best, heuristic_s=heuristic_s, best_s=best_s)
        before = "failed" if heuristic_s is None else f"{1e6 * heuristic_s:.1f}"
        tiles = "as before" if best == problem.heuristic else str(tuple(best))
        refused = "".join(f", {count} {reason}" for reason, count in trial.refused.items())
        self.say(f"{place}: {before} -> {1e6 * best_s:.1f} us, {tiles} ({len(trial.seconds)} timed{refused})")


def _tune_network(gpu: Gpu, config: TuneConfig, model: SqueezeTime, precision: str, tuner: Tuner) -> None:
    """Run the network on batches of every size, the largest first."""
    network = FusedNetwork(model, device=gpu.device, dtype=DTYPES[precision])
    for batch_size in sorted(set(config.batch_sizes), reverse=True):
        if not tuner.has_time():
            return
        try:
            clips = _clips(gpu, config, model, precision, batch_size)
            new = _places(network, clips, gpu) - tuner.best.keys()
            tuner.say(f"{precision}, {batch_size} clips: {len(new)} problems")
            with torch.no_grad(), executing(tuner, architecture=gpu.architecture):
                network(clips)
        except torch.OutOfMemoryError:
            tuner.say(f"{precision}, {batch_size} clips: more than fits in memory, left out")


def _places(network: FusedNetwork, clips: Tensor, gpu: Gpu) -> set[Place]:
    """Return all problems of a run. Nothing is launched."""
    places: set[Place] = set()
    with torch.no_grad(), executing(lambda problem: places.add(Place.of(problem)), architecture=gpu.architecture):
        network(clips)
    return places


def _network_speeds(gpu: Gpu, config: TuneConfig, model: SqueezeTime, precision: str, tuner: Tuner) -> dict[str, float]:
    """Return clips/s of every backend, and of triton as it was before; none of those that fail. Keeps them, too.

    Each is measured with the largest batch that fits: its speed is what a run would have.
    """
    speeds: dict[str, float] = {}
    runs = [(name, name, tuner.launch_best) for name in BACKENDS]
    runs.insert(1, (BEFORE, "triton", tuner.launch_heuristic))
    for title, name, execute in runs:
        for batch_size in sorted(set(config.batch_sizes), reverse=True):
            try:
                clips = _clips(gpu, config, model, precision, batch_size)
                network = InferenceModel(model, name, device=gpu.device, precision=precision)
                with executing(execute, architecture=gpu.architecture):
                    speeds[title] = batch_size / gpu.stopwatch.network_s(partial(network, clips))
            except torch.OutOfMemoryError:
                tuner.say(f"{precision}, {batch_size} clips, {title}: more than fits in memory")
                continue
            except (BackendError, *LAUNCH_ERRORS) as error:
                tuner.say(f"{precision}, {batch_size} clips, {title}: not measured ({first_line(error)})")
                break
            tuner.say(f"{precision}, {batch_size} clips, {title}: {speeds[title]:.0f} clips/s")
            tuner.file.keep_network(precision, {name: speeds[name] for name in BACKENDS if name in speeds})
            break
    return speeds


def _clips(gpu: Gpu, config: TuneConfig, model: SqueezeTime, precision: str, batch_size: int) -> Tensor:
    """Return clips of normal noise, normalised as real ones are, on the GPU."""
    shape = batch_size, model.config.input_channels, config.size, config.size
    generator = torch.Generator(gpu.device).manual_seed(0)
    clips = torch.randn(shape, generator=generator, dtype=DTYPES[precision], device=gpu.device)
    return clips.contiguous(memory_format=torch.channels_last)
