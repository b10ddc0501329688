"""Tiles against each other: the fastest that are right are kept, whatever else goes wrong."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from triton.compiler.errors import CompilationError

from sqt_fast.errors import BackendError
from sqt_fast.files import tuned_file
from sqt_fast.kernels.launch import Config, Launch, Problem, executing
from sqt_fast.kernels.pointwise import pointwise, pointwise_reference
from sqt_fast.tuning import tune as module
from tests.fake_gpu import (
    GPU,
    OUT_OF_RESOURCES,
    A,
    B,
    C,
    FakeStopwatch,
    a_problem,
    a_tuner,
    config_of,
    launched,
    looked_up,
    on_disk,
    stopwatch,
)

pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture
def said() -> list[str]:
    return []


# -- one problem ------------------------------------------------------------------------------------------------------


@given(costs=st.lists(st.floats(1e-6, 1e-2), min_size=1, max_size=12), rows=st.integers(1, 2**30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_fastest_are_kept_found_again_and_launched_last(costs: list[float], rows: int) -> None:
    seconds = {Config(16 + i, 16, 16): cost for i, cost in enumerate(costs)}
    problem = a_problem(*seconds, rows=rows)
    a_tuner(stopwatch(seconds), [])(problem)
    best = looked_up(problem)
    assert launched(problem)[-1] == best
    assert seconds[best] <= min(costs) / 0.99
    assert best == problem.heuristic or seconds[best] == min(costs) < 0.99 * costs[0]
    assert launched(problem).count(best) == (2 if len(costs) else 1)


def test_what_was_gained_is_said_and_kept(said: list[str]) -> None:
    problem = a_problem(A, B, C)
    a_tuner(stopwatch({A: 3e-6, B: 2e-6, C: 1e-6}), said)(problem)
    assert said == ["op bf16 c=1, 2^10 rows: 3.0 -> 1.0 us, (64, 64, 64, 4, 3, 16) (3 timed)"]
    record = on_disk()["sm_90"]
    assert record["tiles"] == {"op bf16 c=1": {"10": list(C)}}
    assert record["microseconds"] == {"op bf16 c=1": {"10": [3.0, 1.0]}}
    assert record["gpu"] == GPU
    assert record["versions"]["torch"] == torch.__version__
    assert "\n" not in tuned_file().read_text().partition('"10": ')[2].partition("]")[0]


def test_a_problem_is_tuned_once(said: list[str]) -> None:
    problem, near, far = (a_problem(A, B, rows=rows) for rows in (1000, 1100, 4000))
    run = a_tuner(stopwatch({A: 2.0, B: 1.0}), said)
    for each in (problem, problem, near, far):
        run(each)
    assert len(said) == 2
    assert launched(near) == [B]


@pytest.mark.parametrize(
    "error",
    [OUT_OF_RESOURCES, CompilationError("src", None, "no"), RuntimeError("PassManager::run failed"), ValueError("48")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("where", ["kernel", "stopwatch"])
def test_tiles_that_fail_are_passed_over(error: Exception, where: str, said: list[str]) -> None:
    failing = {B: error}
    problem = a_problem(A, B, C, results=failing if where == "kernel" else {})
    seconds: dict[Config, Any] = {A: 3.0, B: 1.0, C: 2.0}
    a_tuner(stopwatch(seconds | (failing if where == "stopwatch" else {})), said)(problem)
    assert looked_up(problem) == C
    assert said[0].endswith("(2 timed, 1 failed)")


def test_tiles_of_the_heuristic_that_fail_are_replaced(said: list[str]) -> None:
    problem = a_problem(A, B, C, results={A: OUT_OF_RESOURCES})
    a_tuner(stopwatch({B: 2.0, C: 1e-6}), said)(problem)
    assert looked_up(problem) == C
    assert on_disk()["sm_90"]["microseconds"]["op bf16 c=1"]["10"] == [None, 1.0]
    assert "failed -> 1.0 us" in said[0]


def test_when_nothing_runs_it_says_why(said: list[str]) -> None:
    problem = a_problem(A, B, results={A: OUT_OF_RESOURCES, B: OUT_OF_RESOURCES})
    with pytest.raises(BackendError, match=r"no tiles run on this GPU: .*shared memory.*use --backend compile"):
        a_tuner(stopwatch({}), said)(problem)
    assert on_disk()["sm_90"]["tiles"] == {}


@pytest.mark.parametrize("result", [1.1, torch.tensor([1.0, 1.0, float("nan")]), float("inf")], ids=str)
def test_wrong_results_are_refused(result: Any, said: list[str]) -> None:
    problem = a_problem(A, B, C, results={B: result})
    a_tuner(stopwatch({A: 3.0, B: 1.0, C: 2.0}), said)(problem)
    assert looked_up(problem) == C
    assert said[0].endswith("(2 timed, 1 wrong)")


def test_what_is_not_written_is_wrong(said: list[str]) -> None:
    problem = a_problem(A, B)
    launch = problem.launch

    def lazy(config: Config) -> Launch:
        made = launch(config)
        return made if config == A else replace(made, kernel={made.grid: lambda **args: None})

    a_tuner(stopwatch({A: 2.0, B: 1.0}), said)(replace(problem, launch=lazy))
    assert said[0].endswith("(1 timed, 1 wrong)")


def test_another_order_of_summation_and_what_overflows_are_right(said: list[str]) -> None:
    expected = torch.tensor([1.0, float("inf"), float("nan")])
    problem = a_problem(A, B, results={A: expected, B: expected + torch.tensor([1e-5, 0, 0])})
    a_tuner(stopwatch({A: 2.0, B: 1.0}), said)(problem)
    assert looked_up(problem) == B


def test_spilling_tiles_are_refused_but_for_those_of_the_heuristic(said: list[str]) -> None:
    problem = a_problem(A, B, C)
    a_tuner(stopwatch({A: 2.0, B: 1.0, C: 3.0}, spilling=[A, B]), said)(problem)
    assert looked_up(problem) == A
    assert said[0].endswith("as before (2 timed, 1 spilling)")


def test_quick_tries_fewer(said: list[str]) -> None:
    configs = [Config(16 * (1 + i), 16, 16) for i in range(40)]
    watch = FakeStopwatch(lambda launch: 1.0)
    a_tuner(watch, said, quick=True)(a_problem(*configs))
    assert 4 < len({config_of(launch) for launch in watch.timed}) <= 1 + module.QUICK_CANDIDATES


def test_sums_of_another_cut_are_right(kernel_device: str, said: list[str]) -> None:
    x, weight = torch.randn(2, 150, 16, device=kernel_device), torch.randn(16, 16, device=kernel_device)
    bias = torch.randn(16, device=kernel_device)
    watch = FakeStopwatch(lambda launch: 1.0)
    run = a_tuner(watch, said)

    def tune(problem: Problem) -> None:
        cut = problem.heuristic.block_m
        watch.seconds = lambda launch: 2.0 if launch.args["BLOCK_M"] == cut else 1.0
        run(problem)

    with executing(tune, architecture=90):
        out, sums = pointwise(x, weight, bias, sums=True)
    (best,) = run.best.values()
    assert sums is not None
    assert sums.shape == (2, -(-150 // best.block_m), 16)
    assert "as before" not in said[0]
    assert "wrong" not in said[0]
    expected = pointwise_reference(x, weight, bias)
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(sums.sum(1), expected.sum(1), rtol=1e-3, atol=1e-2)


# -- what ends it early -----------------------------------------------------------------------------------------------


def test_an_interrupt_keeps_what_was_finished(said: list[str]) -> None:
    first, second = a_problem(A, B, op="first"), a_problem(A, B, op="second")
    seconds: dict[Config, Any] = {A: 2.0, B: 1.0}
    run = a_tuner(stopwatch(seconds), said)
    run(first)
    seconds[B] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(second)
    assert (looked_up(first), looked_up(second)) == (B, A)
    assert list(on_disk()["sm_90"]["tiles"]) == ["first bf16 c=1"]


@pytest.mark.parametrize(("resume", "number"), [(True, 0), (False, 1)])
def test_only_resumed_runs_keep_what_was_known(resume: bool, number: int, said: list[str]) -> None:
    a_tuner(stopwatch({A: 2.0, B: 1.0}), [])(a_problem(A, B))
    again = a_problem(A, B)
    run = a_tuner(stopwatch({A: 1.0, B: 2.0}), said, resume=resume)
    run(again)
    assert run.num_tuned == len(said) == number
    assert launched(again)[-1] == looked_up(again) == (B if resume else A)


def test_a_budget_ends_it_and_says_so_once(said: list[str]) -> None:
    problems = [a_problem(A, B, op=op) for op in ("first", "second")]
    run = a_tuner(stopwatch({}), said, budget_s=1e-9)
    for problem in problems:
        run(problem)
        assert launched(problem) == [A]
    assert said == ["the budget is spent; --resume goes on with the rest"]


def test_when_the_gpu_gives_up_resuming_avoids_what_broke_it(said: list[str]) -> None:
    problem = a_problem(A, B, C, results={C: RuntimeError("an illegal memory access")})
    watch = stopwatch({A: 2.0, B: 1.0})
    watch.fatal = True
    with pytest.raises(BackendError, match="the GPU gave up"):
        a_tuner(watch, said)(problem)
    again = a_problem(A, B, C)
    a_tuner(watch, said, resume=True)(again)
    assert launched(again) == [B]


def test_memory_that_runs_out_is_no_fault_of_the_tiles(said: list[str]) -> None:
    problem = a_problem(A, B, results={B: torch.OutOfMemoryError()})
    with pytest.raises(torch.OutOfMemoryError):
        a_tuner(stopwatch({A: 1.0}), said)(problem)
    assert on_disk()["sm_90"]["tiles"] == {}
