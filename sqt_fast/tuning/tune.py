"""Find the fastest tiles of every kernel of the network on one's own GPU, and how fast whole backends are there.

The network runs with a tuner in the place of ``kernels.launch.launch_best``: where a problem first comes up, it tries
tiles on the real tensors, launches the best, and so the network goes on. ``triton.autotune`` does not do it: it looks
tiles up by the hash of one machine's compiler, not by GPU, and times where labelling runs (docs/design.md).
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import triton
import triton.testing
from torch import Tensor

from sqt_fast.errors import BackendError, ConfigError, InterruptedRunError, first_line
from sqt_fast.files import tuned_file
from sqt_fast.kernels.launch import Config, Launch, Problem, architecture, executing
from sqt_fast.network.backends import DTYPES, InferenceModel
from sqt_fast.network.choose import find_device
from sqt_fast.network.fused import FusedNetwork
from sqt_fast.network.graphed import why_not
from sqt_fast.network.model import SqueezeTime
from sqt_fast.network.precompile import precompile, specialisations
from sqt_fast.network.registry import BACKENDS
from sqt_fast.network.weights import load_weights
from sqt_fast.tuning.tuned_file import TunedFile

# What a launch of tiles that do not fit this GPU raises: Triton's compiler, ptxas, and the driver.
LAUNCH_ERRORS = (triton.TritonError, RuntimeError, ValueError, AssertionError)
# How many are timed again, in turn with those of the heuristic: clocks may have changed since the first were timed.
FINALISTS = 3
# A gain below this is noise of the measurement.
WORTH = 0.99
# Greatest difference between two orders of summation, as a part of the largest value.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}


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
    overwrite: bool = False


def tune(config: TuneConfig, say: Callable[[str], None]) -> list[str]:
    """Tune on a CUDA GPU and return in lines what came of it. say: takes a line of progress.

    Raises BackendError where no such GPU is or it gives up, ConfigError, CheckpointError, OutputError for what cannot
    be used, and InterruptedRunError after Ctrl-C; what was found before is kept, and the next run goes on from there.
    """
    if not config.device.startswith("cuda"):
        raise ConfigError(f"--device {config.device}: tiles are tuned on a GPU; use cuda or cuda:N")
    if not torch.cuda.is_available():
        raise BackendError(f"--device {config.device}: torch sees no CUDA GPU; run this where the GPU to tune for is")
    device = find_device(config.device)
    if reason := why_not(device):
        raise BackendError(f"--device {config.device}: {reason}; choose another")
    with torch.cuda.device(device):
        gpu = torch.cuda.get_device_name()
        path = config.output or tuned_file()
        file = TunedFile(path, architecture=architecture(device), gpu=gpu, overwrite=config.overwrite)
        return Tuner(replace(config, device=device), file, say).run()


def gpu_seconds(call: Callable[[], object]) -> float:
    """Return the median seconds of ``call`` on the GPU, its L2 cache flushed before each time."""
    return float(triton.testing.do_bench(call, warmup=10, rep=30, return_mode="median")) / 1000


class Tuner:
    """Runs the network, tries the tiles of every problem that is new to ``file``, and keeps the fastest there.

    clock: returns the seconds of a call.
    """

    def __init__(
        self,
        config: TuneConfig,
        file: TunedFile,
        say: Callable[[str], None],
        clock: Callable[[Callable[[], object]], float] = gpu_seconds,
    ) -> None:
        self.config, self.file, self.say, self.clock = config, file, say, clock
        self.num_tuned = 0
        self._ends = time.perf_counter() + (config.budget_s or math.inf)

    def run(self) -> list[str]:
        """Tune with batches of every size, then measure whole backends. See ``tune``."""
        model = load_weights(self.config.weights).model
        if model.fc is None:
            raise ConfigError(f"weights {self.config.weights}: hold no classifier; choose other --weights")
        done = f"problems tuned on {self.file.gpu}, kept in {self.file.path}"
        try:
            self._precompile(model)
            for precision in self.config.precisions:
                self._tune_network(model, precision)
            speeds = [line for precision in self.config.precisions for line in self._measure(model, precision)]
        except KeyboardInterrupt as error:
            raise InterruptedRunError(
                f"stopped: {self.num_tuned} {done}; the same command goes on from there"
            ) from error
        except RuntimeError as error:  # behind the first fatal one, every launch of this process fails
            raise BackendError(f"the GPU gave up ({first_line(error)}); the same command goes on from there") from error
        return [f"{self.num_tuned} {done}", *speeds]

    def _precompile(self, model: SqueezeTime) -> None:
        """Compile what will be tried, the network being walked through without memory; not what is known already."""
        found: list[Launch] = []

        def note(problem: Problem) -> None:
            if self.file.tiles(problem) is None:
                found.extend(problem.launch(config) for config in _tried(problem))

        for precision in self.config.precisions:
            network = FusedNetwork(model, device="meta", dtype=DTYPES[precision])
            for batch_size in dict.fromkeys(self.config.batch_sizes):
                shape = batch_size, model.config.input_channels, self.config.size, self.config.size
                with torch.no_grad(), executing(note, architecture=self.file.architecture):
                    network(torch.empty(shape, dtype=DTYPES[precision], device="meta"))
        if wanted := specialisations(found):
            self.say(f"compiling {len(wanted)} kernels, one a core at once")
            started = time.perf_counter()
            failed = precompile(wanted)
            refused = f", {failed} of them refused" if failed else ""
            self.say(f"compiled in {time.perf_counter() - started:.0f} s{refused}")

    def _tune_network(self, model: SqueezeTime, precision: str) -> None:
        network = FusedNetwork(model, device=self.config.device, dtype=DTYPES[precision])
        for clips in self._batches(model, precision):
            try:
                with torch.no_grad(), executing(self, architecture=self.file.architecture):
                    network(clips)
            except torch.OutOfMemoryError:
                self.say(f"{precision}, {len(clips)} clips: more than fits in memory")

    def __call__(self, problem: Problem) -> Launch:
        """Launch ``problem`` with its best tiles, which are looked for if nobody knows them and there is time."""
        if self.file.tiles(problem) is None and time.perf_counter() < self._ends:
            self._tune(problem)
        return self._launch_best(problem)

    def _launch_best(self, problem: Problem) -> Launch:
        return problem.launch(self.file.tiles(problem) or problem.heuristic)()

    def _tune(self, problem: Problem) -> None:
        """Time all that give the results of the first that runs, the heuristic's if it does; the best few again."""
        tried = _tried(problem)
        launches = {config: problem.launch(config) for config in tried}
        seconds: dict[Config, float] = {}
        expected: list[Tensor] = []
        reason = "all spill"
        for config, launch in launches.items():
            try:
                results = _results(launch)
                expected = expected or results
                if not all(map(_close, results, expected)):
                    self.say(f"{problem.name}: {tuple(config)} gives wrong results")
                elif config == problem.heuristic or not getattr(launch.compiled(), "n_spills", 0):
                    seconds[config] = self.clock(launch)
            except torch.OutOfMemoryError:
                raise
            except LAUNCH_ERRORS as error:
                reason = first_line(error)
        if not seconds:
            raise BackendError(f"{problem.name}: no tiles run on this GPU: {reason}; use --backend compile or eager")
        best = sorted(seconds, key=seconds.__getitem__)[:FINALISTS]
        try:
            for config in [*dict.fromkeys((*best, *(seconds.keys() & {problem.heuristic})))] * 2:
                seconds[config] = min(seconds[config], self.clock(launches[config]))
        finally:  # where one of the others broke the GPU, the next run does without them
            self._keep(problem, seconds, len(launches))

    def _keep(self, problem: Problem, seconds: Mapping[Config, float], num_tried: int) -> None:
        best, heuristic_s = min(seconds, key=seconds.__getitem__), seconds.get(problem.heuristic)
        if heuristic_s is not None and seconds[best] >= WORTH * heuristic_s:
            best = problem.heuristic
        self.num_tuned += 1
        self.file.keep_tiles(problem, best, heuristic_s=heuristic_s, best_s=seconds[best])
        before = "failed" if heuristic_s is None else f"{1e6 * heuristic_s:.1f}"
        tiles = "as before" if best == problem.heuristic else str(tuple(best))
        gain = f"{before} -> {1e6 * seconds[best]:.1f} us, {tiles}"
        self.say(f"{problem.name}, {problem.rows} rows: {gain} ({len(seconds)} of {num_tried} timed)")

    def _measure(self, model: SqueezeTime, precision: str) -> Iterator[str]:
        """Yield clips/s of every backend, and of triton as it was before, with the largest batch that fits."""
        speeds: dict[str, float] = {}
        for title, backend, execute in (
            ("eager", "eager", self._launch_best),
            ("triton, not tuned", "triton", lambda problem: problem.launch(problem.heuristic)()),
            ("triton", "triton", self._launch_best),
            ("compile", "compile", self._launch_best),
        ):
            for clips in self._batches(model, precision):
                try:
                    network = InferenceModel(model, backend, device=self.config.device, precision=precision)
                    with executing(execute, architecture=self.file.architecture):
                        speeds[title] = len(clips) / self.clock(partial(network, clips))
                except torch.OutOfMemoryError:
                    continue
                except (BackendError, *LAUNCH_ERRORS) as error:
                    yield f"{precision} {title}: not measured ({first_line(error)})"
                    break
                self.file.keep_network(precision, {name: speeds[name] for name in BACKENDS if name in speeds})
                yield f"{precision} {title}: {speeds[title]:.0f} clips/s, {len(clips)} at once"
                break

    def _batches(self, model: SqueezeTime, precision: str) -> Iterator[Tensor]:
        """Yield batches of every size, the largest first: normal noise on the GPU, as real clips are normalised."""
        shape = model.config.input_channels, self.config.size, self.config.size
        for batch_size in sorted(set(self.config.batch_sizes), reverse=True):
            torch.manual_seed(0)
            clips = torch.randn((batch_size, *shape), dtype=DTYPES[precision], device=self.config.device)
            yield clips.contiguous(memory_format=torch.channels_last)


def _tried(problem: Problem) -> list[Config]:
    """Return what is tried, the heuristic's tiles first."""
    return [*dict.fromkeys((problem.heuristic, *problem.candidates()))]


def _results(launch: Launch) -> list[Tensor]:
    """Launch into NaN and return what was written; sums without their cut, which depends on the tiles."""
    written = [launch.args["out"], *([launch.args["sums"]] if launch.args.get("SUMS") else [])]
    for tensor in written:
        tensor.fill_(math.nan)
    launch()
    return [written[0].clone(), *(sums.sum(1) for sums in written[1:])]


def _close(found: Tensor, expected: Tensor) -> bool:
    largest = expected.abs().nan_to_num(0.0, 0.0).max().item()
    return torch.allclose(found, expected, rtol=0.0, atol=TOLERANCES[expected.dtype] * largest, equal_nan=True)
