"""sqt-fast tune: the fastest tiles that are right are kept whatever goes wrong, and what cannot be is one line."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from triton.compiler.errors import CompilationError

from sqt_fast.errors import BackendError, ConfigError, InterruptedRunError
from sqt_fast.files import tuned_file
from sqt_fast.kernels import tuned
from sqt_fast.kernels.launch import Config, Launch, Problem, best_config, executing
from sqt_fast.kernels.pointwise import pointwise, pointwise_reference
from sqt_fast.network.backends import InferenceModel
from sqt_fast.network.fused import FusedNetwork
from sqt_fast.network.model import SqueezeTime
from sqt_fast.tuning import tune as module
from sqt_fast.tuning.tune import TuneConfig, Tuner, gpu_seconds, tune
from tests import command_line
from tests.fake_gpu import (
    GPU,
    OUT_OF_RESOURCES,
    A,
    B,
    C,
    FakeClock,
    a_file,
    a_problem,
    a_tuner,
    clock,
    launched,
    looked_up,
    on_disk,
)

sqt = partial(command_line.sqt, "tune")
pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture
def said() -> list[str]:
    return []


# -- one problem ------------------------------------------------------------------------------------------------------


@given(costs=st.lists(st.floats(1e-6, 1e-2), min_size=1, max_size=12), rows=st.integers(1, 2**30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_fastest_are_kept_found_again_and_launched_last(costs: list[float], rows: int) -> None:
    seconds: dict[Config, Any] = {Config(16 + i, 16, 16): cost for i, cost in enumerate(costs)}
    problem = a_problem(*seconds, rows=rows)
    a_tuner(clock(seconds), [], overwrite=True)(problem)
    best = looked_up(problem)
    assert launched(problem)[-1] == best
    assert seconds[best] <= min(costs) / 0.99
    assert best == problem.heuristic or seconds[best] == min(costs) < 0.99 * costs[0]
    assert launched(problem).count(best) == 2
    assert set(problem.kernel.compiled) == set(seconds) - {problem.heuristic}


def test_what_was_gained_is_said_and_kept(said: list[str]) -> None:
    problem = a_problem(A, B, C)
    a_tuner(clock({A: 3e-6, B: 2e-6, C: 1e-6}), said)(problem)
    assert said == ["op bf16 c=1, 1000 rows: 3.0 -> 1.0 us, (64, 64, 64, 4, 3, 16, 1) (3 of 3 timed)"]
    record = on_disk()["sm_90"]
    assert record["tiles"] == {"op bf16 c=1": {"10": list(C)}}
    assert record["microseconds"] == {"op bf16 c=1": {"10": [3.0, 1.0]}}
    assert record["gpu"] == GPU
    assert record["versions"]["torch"] == torch.__version__
    assert "\n" not in tuned_file().read_text().partition('"10": ')[2].partition("]")[0]


def test_a_problem_is_tuned_once(said: list[str]) -> None:
    problem, near, far = (a_problem(A, B, rows=rows) for rows in (1000, 1100, 4000))
    run = a_tuner(clock({A: 2.0, B: 1.0}), said)
    for each in (problem, problem, near, far):
        run(each)
    assert len(said) == 2
    assert launched(near) == [B]


@pytest.mark.parametrize(
    "error",
    [OUT_OF_RESOURCES, CompilationError("src", None, "no"), RuntimeError("PassManager::run failed"), ValueError("48")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("where", ["kernel", "clock"])
def test_tiles_that_fail_are_passed_over(error: Exception, where: str, said: list[str]) -> None:
    failing = {B: error}
    problem = a_problem(A, B, C, results=failing if where == "kernel" else {})
    seconds: dict[Config, Any] = {A: 3.0, B: 1.0, C: 2.0}
    a_tuner(clock(seconds | (failing if where == "clock" else {})), said)(problem)
    assert looked_up(problem) == C
    assert said[0].endswith("(2 of 3 timed)")


def test_tiles_of_the_heuristic_that_fail_are_replaced(said: list[str]) -> None:
    problem = a_problem(A, B, C, results={A: OUT_OF_RESOURCES})
    a_tuner(clock({B: 2.0, C: 1e-6}), said)(problem)
    assert looked_up(problem) == C
    assert on_disk()["sm_90"]["microseconds"]["op bf16 c=1"]["10"] == [None, 1.0]
    assert "failed -> 1.0 us" in said[0]


def test_when_nothing_runs_it_says_why(said: list[str]) -> None:
    problem = a_problem(A, B, results={A: OUT_OF_RESOURCES, B: OUT_OF_RESOURCES})
    with pytest.raises(BackendError, match=r"no tiles run on this GPU: .*shared memory.*use --backend compile"):
        a_tuner(clock({}), said)(problem)
    assert on_disk()["sm_90"]["tiles"] == {}


@pytest.mark.parametrize("result", [1.1, torch.tensor([1.0, 1.0, float("nan")]), float("inf")], ids=str)
def test_wrong_results_are_refused_and_told(result: Any, said: list[str]) -> None:
    problem = a_problem(A, B, C, results={B: result})
    a_tuner(clock({A: 3.0, B: 1.0, C: 2.0}), said)(problem)
    assert looked_up(problem) == C
    assert said[0] == "op bf16 c=1: (32, 64, 64, 4, 3, 16, 1) gives wrong results"
    assert said[1].endswith("(2 of 3 timed)")


def test_what_is_not_written_is_wrong(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    problem = a_problem(A, B)
    launch = problem.kernel.launch
    lazy = lambda **args: launch(**args) if args["BLOCK_M"] == A.block_m else None  # noqa: E731
    monkeypatch.setattr(problem.kernel, "launch", lazy)
    a_tuner(clock({A: 2.0, B: 1.0}), said)(problem)
    assert looked_up(problem) == A
    assert said[0].endswith("gives wrong results")


def test_another_order_of_summation_and_what_overflows_are_right(said: list[str]) -> None:
    expected = torch.tensor([1.0, float("inf"), float("nan")])
    problem = a_problem(A, B, results={A: expected, B: expected + torch.tensor([1e-5, 0, 0])})
    a_tuner(clock({A: 2.0, B: 1.0}), said)(problem)
    assert looked_up(problem) == B


def test_spilling_tiles_are_refused_but_for_those_of_the_heuristic(said: list[str]) -> None:
    problem = a_problem(A, B, C, spilling=(A, B))
    a_tuner(clock({A: 2.0, B: 1.0, C: 3.0}), said)(problem)
    assert looked_up(problem) == A
    assert said[0].endswith("as before (2 of 3 timed)")


def test_sums_of_another_cut_are_right(kernel_device: str, said: list[str]) -> None:
    x, weight = torch.randn(2, 150, 16, device=kernel_device), torch.randn(16, 16, device=kernel_device)
    bias = torch.randn(16, device=kernel_device)
    slow = FakeClock(lambda config: 1.0)
    run, chosen = a_tuner(slow, said), list[Config]()

    def tune(problem: Problem) -> Launch:
        cut = problem.heuristic.block_m
        slow.seconds = lambda config: 2.0 if config.block_m == cut else 1.0
        launch = run(problem)
        chosen.append(looked_up(problem))
        return launch

    with executing(tune, architecture=90):
        out, sums = pointwise(x, weight, bias, sums=True)
    assert sums is not None
    assert sums.shape == (2, -(-150 // chosen[0].block_m), 16)
    assert len(said) == 1, "a wrong result would be told"
    assert "as before" not in said[0]
    expected = pointwise_reference(x, weight, bias)
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(sums.sum(1), expected.sum(1), rtol=1e-3, atol=1e-2)


# -- what ends it early -----------------------------------------------------------------------------------------------


def test_an_interrupt_keeps_what_was_finished(said: list[str]) -> None:
    first, second = a_problem(A, B, op="first"), a_problem(A, B, op="second")
    seconds: dict[Config, Any] = {A: 2.0, B: 1.0}
    run = a_tuner(clock(seconds), said)
    run(first)
    seconds[B] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(second)
    assert (looked_up(first), looked_up(second)) == (B, A)
    assert list(on_disk()["sm_90"]["tiles"]) == ["first bf16 c=1"]


@pytest.mark.parametrize(("overwrite", "number"), [(False, 0), (True, 1)])
def test_what_was_known_is_kept_unless_all_is_to_begin_anew(overwrite: bool, number: int, said: list[str]) -> None:
    a_tuner(clock({A: 2.0, B: 1.0}), [])(a_problem(A, B))
    again = a_problem(A, B)
    run = a_tuner(clock({A: 1.0, B: 2.0}), said, overwrite=overwrite)
    run(again)
    assert run.num_tuned == len(said) == number
    assert launched(again)[-1] == looked_up(again) == (A if overwrite else B)


def test_a_budget_ends_it(said: list[str]) -> None:
    problems = [a_problem(A, B, op=op) for op in ("first", "second")]
    run = a_tuner(clock({}), said, budget_s=1e-9)
    for problem in problems:
        run(problem)
        assert launched(problem) == [A]
    assert said == []


def test_when_the_gpu_gives_up_the_next_run_avoids_what_broke_it(said: list[str]) -> None:
    """Behind an illegal access every launch of the process fails, and so does the clock."""
    problem = a_problem(A, B, C, results={C: RuntimeError("an illegal memory access")})
    seconds: dict[Config, Any] = {A: 2.0, B: 1.0}
    times = iter((2.0, 1.0))
    run = a_tuner(FakeClock(lambda config: next(times, RuntimeError("an illegal memory access"))), said)
    with pytest.raises(RuntimeError, match="illegal"):
        run(problem)
    again = a_problem(A, B, C)
    a_tuner(clock(seconds), said)(again)
    assert launched(again) == [B]


def test_memory_that_runs_out_is_no_fault_of_the_tiles(said: list[str]) -> None:
    problem = a_problem(A, B, results={B: torch.OutOfMemoryError()})
    with pytest.raises(torch.OutOfMemoryError):
        a_tuner(clock({A: 1.0}), said)(problem)
    assert on_disk()["sm_90"]["tiles"] == {}


@pytest.mark.needs_cuda
def test_a_copy_takes_as_long_as_its_bytes_do() -> None:
    source = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = gpu_seconds(lambda: target.copy_(source))
    assert 2 * source.numel() / seconds < 20e12  # bytes a second: no memory is faster


# -- the network ------------------------------------------------------------------------------------------------------

TORCH_COMPILE = pytest.mark.filterwarnings("ignore")  # what torch says of itself while it compiles
TINY = TuneConfig(precisions=("fp32",), batch_sizes=(1,), size=32)


@pytest.fixture
def tiny_network(tiny_model: SqueezeTime, monkeypatch: pytest.MonkeyPatch) -> SqueezeTime:
    """The tiny network for every name of weights."""
    monkeypatch.setattr(module, "load_weights", lambda name: SimpleNamespace(model=tiny_model))
    return tiny_model


class LazyTuner(Tuner):
    """Tries one candidate a problem."""

    def _tune(self, problem: Problem) -> None:
        others = [config for config in problem.candidates() if config != problem.heuristic]
        super()._tune(replace(problem, candidates=lambda: others[:1]))


def by_rows(config: Config) -> float:
    """Few rows are fast."""
    return float(config.block_m)


@pytest.mark.exhaustive
@TORCH_COMPILE
def test_the_network_is_tuned_as_it_runs(tiny_network: SqueezeTime, kernel_device: str, said: list[str]) -> None:
    pretended = FakeClock(by_rows)
    pretended.speeds = [10.0, 20.0, 30.0, BackendError("no compiler here")]
    lines = LazyTuner(replace(TINY, device=kernel_device), a_file(), said.append, pretended).run()
    assert lines == [
        f"{len(said)} problems tuned on {GPU}, kept in {tuned_file()}",
        "fp32 eager: 10 clips/s, 1 at once",
        "fp32 triton, not tuned: 20 clips/s, 1 at once",
        "fp32 triton: 30 clips/s, 1 at once",
        "fp32 compile: not measured (no compiler here)",
    ]
    assert tuned.network_speeds(90, "fp32") == ({"eager": 10.0, "triton": 30.0}, GPU)
    assert not any("wrong" in line or "failed" in line for line in said)

    network = FusedNetwork(tiny_network, device=kernel_device, dtype=torch.float32)
    clips = torch.randn(1, 48, 32, 32, device=kernel_device)
    used: list[tuple[Problem, Config]] = []

    def launch_best(problem: Problem) -> Launch:
        used.append((problem, best_config(problem)))
        return problem.launch(used[-1][1])()

    with torch.no_grad(), executing(launch_best, architecture=90):
        logits, _ = network(clips)
    assert any(config != problem.heuristic for problem, config in used)
    eager = InferenceModel(tiny_network, "eager", device=kernel_device, precision="fp32").logits(clips)
    torch.testing.assert_close(logits, eager, rtol=1e-2, atol=1e-2 * float(eager.abs().max()))


def run_tiny(device: str, said: list[str], pretended: FakeClock, **config: Any) -> list[str]:
    return Tuner(replace(TINY, device=device, **config), a_file(), said.append, pretended).run()


def test_an_interrupted_run_says_where_what_it_found_is(
    tiny_network: SqueezeTime, kernel_device: str, said: list[str]
) -> None:
    message = r"stopped: 0 problems tuned on Pretended GPU, kept in .*\.json; the same command goes on from there"
    with pytest.raises(InterruptedRunError, match=message):
        run_tiny(kernel_device, said, FakeClock(lambda config: KeyboardInterrupt()))
    assert on_disk()["sm_90"]["tiles"] == {}


def test_a_gpu_that_gives_up_is_one_line(tiny_network: SqueezeTime, kernel_device: str, said: list[str]) -> None:
    times = iter([1.0])
    dead = FakeClock(lambda config: next(times, RuntimeError("CUDA error: an illegal memory access\nmore")))
    with pytest.raises(BackendError, match=r"^the GPU gave up \(CUDA error: an illegal memory access\); the same"):
        run_tiny(kernel_device, said, dead)
    assert len(on_disk()["sm_90"]["tiles"]) == 1


@TORCH_COMPILE
def test_batches_that_do_not_fit_are_left_out(
    tiny_network: SqueezeTime, kernel_device: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Tuner, problem: Problem) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Tuner, "_tune", full)
    pretended = FakeClock(by_rows)
    full_gpu = torch.OutOfMemoryError("CUDA out of memory")
    pretended.speeds = [3.0, 3.0, full_gpu, 0.5, full_gpu, full_gpu]
    lines = run_tiny(kernel_device, said, pretended, batch_sizes=(1, 3))
    assert said == ["fp32, 3 clips: more than fits in memory", "fp32, 1 clips: more than fits in memory"]
    assert lines == [
        f"0 problems tuned on {GPU}, kept in {tuned_file()}",
        "fp32 eager: 9 clips/s, 3 at once",
        "fp32 triton, not tuned: 9 clips/s, 3 at once",
        "fp32 triton: 0 clips/s, 1 at once",
    ]
    assert tuned.network_speeds(90, "fp32") == ({"eager": 9.0, "triton": 0.5}, GPU)


@pytest.mark.needs_cuda
@TORCH_COMPILE
def test_a_gpu_is_tuned(tiny_network: SqueezeTime, said: list[str]) -> None:
    torch.use_deterministic_algorithms(False)
    lines = tune(replace(TINY, precisions=("bf16", "fp32")), said.append)
    assert len(said) > 20
    assert not any("wrong" in line or "failed ->" in line for line in said), said
    for name in ("eager", "triton, not tuned", "triton"):
        assert any(line.startswith(f"bf16 {name}: ") and "clips/s" in line for line in lines), lines


# -- the command ------------------------------------------------------------------------------------------------------


def test_a_cpu_is_not_tuned() -> None:
    with pytest.raises(ConfigError, match="--device cpu: tiles are tuned on a GPU; use cuda or cuda:N"):
        tune(TuneConfig(device="cpu"), print)


@pytest.mark.parametrize("arguments", [["--precision", "int8"], ["--batch-size", "0"], ["--budget", "0"]], ids=" ".join)
def test_what_cannot_be_asked_for(arguments: list[str]) -> None:
    result = sqt(*arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.stderr


def test_without_a_gpu_it_is_one_line(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = sqt()
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == ("sqt-fast: --device cuda: torch sees no CUDA GPU; run this where the GPU to tune for is\n")
    assert not empty_cache.exists()


def test_an_old_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert "compute capability 8.0 (Ampere) or newer, Tesla T4 has 7.5; choose another" in sqt().stderr


def test_every_option_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[TuneConfig] = []

    def fake(config: TuneConfig, say: Callable[[str], None]) -> list[str]:
        asked.append(config)
        say("at work")
        return ["3 problems tuned", "bf16 eager: 1000 clips/s"]

    monkeypatch.setattr(module, "tune", fake)
    result = sqt()
    assert (result.stdout, result.stderr) == ("3 problems tuned\nbf16 eager: 1000 clips/s\n", "at work\n")
    arguments = "--device cuda:1 --precision fp16 --precision bf16 --batch-size 4 --weights hmdb51 --out x.json"
    assert sqt(*arguments.split(), "--budget", "60", "--overwrite").exit_code == 0
    assert asked == [
        TuneConfig(),
        TuneConfig("cuda:1", ("fp16", "bf16"), (4,), "hmdb51", 224, Path("x.json"), 60.0, overwrite=True),
    ]
