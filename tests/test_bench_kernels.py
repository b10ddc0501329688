"""The benches of kernels and network: floors, records, and what is refused. Nothing here is timed."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from bench import bench_kernels, kernel_providers
from bench.bench_kernels import measure, num_copies, sums
from bench.bench_network import network_floor_s
from bench.floors import Case, cases, totals
from bench.kernel_checks import error_of
from bench.measure import H200, gpu_slug, write
from sqt_fast import cli
from sqt_fast.kernels.launch import Problem, executing
from sqt_fast.kernels.pointwise import pointwise
from sqt_fast.kernels.pool import pool

MS = [0.001, 0.002, 0.003, 0.004, 0.010]


@pytest.fixture(autouse=True)
def _no_gpu_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything takes MS and 12 bytes, and is run once each."""

    def seconds(runs: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
        for run in runs.values():
            run()
        return dict.fromkeys(runs, MS)

    def peak(call: Callable[[], object]) -> int:
        call()
        return 12

    monkeypatch.setattr(bench_kernels, "gpu_seconds", seconds)
    monkeypatch.setattr(bench_kernels, "peak_bytes", peak)
    monkeypatch.setattr(bench_kernels, "captured", lambda calls: calls[-1])


def measured(problem: Problem, *names: str, error: str = "") -> dict[str, dict[str, Any]]:
    """Return the records of the providers ``names``."""
    case = replace(Case.of(problem), times=3, error=error)
    return {record["provider"]: record for record in measure(case, "fp32", H200, 1 << 20, names)}


@pytest.fixture
def pooling(kernel_device: str) -> Problem:
    problems: list[Problem] = []
    with executing(problems.append):
        pool(torch.randn((2, 8, 8, 16), device=kernel_device))
    return problems[0]


# -- floors -----------------------------------------------------------------------------------------------------------


def test_floor_of_the_stem_by_hand() -> None:
    stem = next(case for case in cases("bf16", 256, "meta") if case.problem.op == "conv")
    assert stem.moved_bytes == 2 * (256 * 224 * 224 * 48 + 5 * 5 * 48 * 64 + 256 * 112 * 112 * 64) + 4 * 64
    assert stem.flops == 2 * 256 * 112 * 112 * 64 * 5 * 5 * 48
    assert stem.limit(H200, "bf16") == "FLOPs"
    assert stem.floor_s(H200, "bf16") == stem.flops / 790e12 > stem.moved_bytes / 4.3e12


def test_the_network_is_the_sum_of_its_kernels() -> None:
    """10.96 GFLOP and 49 MB a clip are what docs say of a network that is fused as far as can be."""
    network = [case for case in cases("bf16", 256, "meta") if case.problem.op != "squeeze"]
    moved, flops, one_by_one_s = totals(network, H200, "bf16")
    assert flops / 256 == pytest.approx(10.96e9, rel=0.01)
    assert moved / 256 == pytest.approx(49e6, rel=0.1)  # ours write the stem's output and read it again to pool
    # Stem and pool, 16 blocks, 3 times down, 9 closing 1x1s that are kernels of their own.
    assert sum(case.times for case in network) == 2 + 16 * 6 + 3 + 9
    assert one_by_one_s > H200.floor_s(moved, flops, "bf16")
    single = [case for case in cases("bf16", 1, "meta") if case.problem.op != "squeeze"]
    assert totals(single, H200, "bf16")[1] == pytest.approx(10.96e9, rel=0.01)


def test_what_one_of_each_kernel_moves_and_computes() -> None:
    """By hand, at the first stage: pixels times channels in and out, taps times channels times columns."""
    found = {case.problem.name: case for case in cases("bf16", 2, "meta")}
    pixels = 2 * 56 * 56
    closing = found["merge bf16 c=64 n=64 n3=256+64"]
    weights = 9 * 64 * 64 + 9 * 16 * 64 + 64 * 64 + 64 * 256 + 64 * 256
    biases = 4 * (3 * 64 + 256)
    assert closing.moved_bytes == 2 * (pixels * (64 + 16 + 64 + 256) + 2 * 64 + weights) + biases
    assert closing.flops == 2 * pixels * weights
    pointwise = found["pointwise bf16 k=256+0 n=64 sums r=3136"]
    sums = 4 * 2 * 49 * 64  # for two clips in tiles of 64 pixels
    assert pointwise.moved_bytes == 2 * (pixels * (256 + 64) + 256 * 64) + 4 * 64 + sums
    assert pointwise.flops == 2 * pixels * 256 * 64
    downsample = found["downsample bf16 s=2 c=256"]
    assert downsample.flops == 2 * 2 * 28 * 28 * 256 * 4
    assert found["squeeze bf16 t=16"].moved_bytes == 2 * 48 * 224 * 224 * (1 + 2)


def test_float32_moves_more_and_computes_the_same() -> None:
    bf16, fp32 = (totals(cases(dtype, 8, "meta"), H200, dtype) for dtype in ("bf16", "fp32"))
    assert fp32[1] == bf16[1]
    assert fp32[0] > 1.8 * bf16[0]


def test_floor_of_the_network() -> None:
    floor = network_floor_s(H200, "bf16", 256, 28_000_000)
    assert 256 / floor == pytest.approx(72_080, rel=1e-3)  # FLOPs
    floor = network_floor_s(H200, "bf16", 1, 28_000_000)
    assert floor == pytest.approx((49e6 + 56e6) / 4.3e12)  # weights are most of the bytes


def test_copies_fill_the_cache_twice_and_the_graph() -> None:
    moved = {case.problem.op: case.moved_bytes for case in cases("bf16", 256, "meta")}
    assert num_copies(moved["squeeze"], 60 << 20, 430e-6) == 1
    assert num_copies(moved["downsample"], 60 << 20, 29.9e-6) == 4
    assert num_copies(moved["downsample"], 60 << 20, 0.43e-6) == 233
    assert num_copies(moved["downsample"], 60 << 20, 0.1e-6) == 256


# -- records ----------------------------------------------------------------------------------------------------------


def test_a_record_says_everything(pooling: Problem) -> None:
    records = measured(pooling, "triton", "eager", "cudnn", "cupy", "dali")
    assert list(records) == ["triton", "eager"]  # who has no answer is not there
    record = records["triton"]
    copies = record["copies"]
    assert record["us"] == pytest.approx(
        {"median": 3000 / copies, "p20": 2000 / copies, "p80": 4000 / copies}, rel=1e-4
    )
    us = record["us"]["median"]
    assert record["moved_bytes"] == 2 * (8 * 8 + 4 * 4) * 16 * 4
    assert record["floor_us"] == round(1e6 * record["moved_bytes"] / 4.3e12, 3)
    assert record["gb_per_s"] == round(record["moved_bytes"] / us / 1e3, 1)
    assert record["percent_of_floor"] == record["percent_of_copy"] == round(100 * record["floor_us"] / us, 1)
    assert (record["op"], record["key"], record["rows"], record["times"]) == ("pool", "fp32 c=16", 32, 3)
    assert (record["limit"], record["error"], record["status"], record["peak_bytes"]) == ("bytes", 0, "ok", 12)
    assert record["tiles"] == list(pooling.heuristic)
    json.dumps(record)


def test_sums_for_pooling_are_checked_too(kernel_device: str) -> None:
    problems: list[Problem] = []
    x, weight = torch.randn((2, 25, 16), device=kernel_device), torch.randn((16, 32), device=kernel_device)
    with executing(problems.append):
        pointwise(x, weight, torch.zeros(32, device=kernel_device), sums=True)
    (record,) = measured(problems[0], "triton").values()
    assert record["status"] == "ok"
    truth = torch.ones((2, 25, 32))
    assert error_of(lambda: (torch.ones((2, 25, 32)), torch.full((2, 32), 25.0)), truth) == 0
    assert error_of(lambda: (torch.ones((2, 25, 32)), torch.full((2, 1, 32), 50.0)), truth) == 1


@pytest.mark.parametrize("value", [1.0, torch.nan])
def test_what_is_wrong_is_not_timed(pooling: Problem, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    assert pooling.reference is not None
    wrong = pooling.reference() + value
    monkeypatch.setitem(kernel_providers.PROVIDERS, "triton", lambda *_: [wrong.clone])
    records = measured(pooling, "triton", "eager")
    assert records["triton"]["status"].startswith("wrong: error ")
    assert "us" not in records["triton"]
    assert records["eager"]["status"] == "ok"


def test_what_is_not_written_is_wrong() -> None:
    out = torch.ones(4)

    def half() -> Tensor:
        out[:2] = 1
        return out

    assert error_of(half, torch.ones(4)) != error_of(half, torch.ones(4))  # NaN


def test_what_is_lacking_or_fails_costs_nobody_else(pooling: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object) -> kernel_providers.Calls:
        raise ModuleNotFoundError("No module named 'nvidia'")

    monkeypatch.setitem(kernel_providers.PROVIDERS, "dali", lacking)
    records = measured(pooling, "triton", "dali", "eager", error="CompilationError: at 3:2")
    assert records["triton"]["status"] == "failed: CompilationError: at 3:2"
    assert records["dali"]["status"] == "skipped: ModuleNotFoundError: No module named 'nvidia'"
    assert records["eager"]["us"]


def test_sums_are_of_whoever_did_everything(pooling: Problem) -> None:
    records = list(measured(pooling, "triton", "eager").values())
    other = {**records[0], "key": "fp32 c=32", "times": 1}
    lines = list(sums([*records, other], 2))
    us = 4 * records[0]["us"]["median"]
    assert lines == [
        line for line in lines if line.startswith(f"triton: network kernels one after the other {us:.0f} us")
    ]
    assert len(lines) == 1


def test_new_records_replace_their_like(tmp_path: Path) -> None:
    old = [{"op": "conv", "dtype": "bf16", "us": 1}, {"op": "conv", "dtype": "fp16", "us": 2}]
    write(old, tmp_path, "kernels", replacing=("op", "dtype"))
    path = write([{"op": "conv", "dtype": "bf16", "us": 3}], tmp_path, "kernels", replacing=("op", "dtype"))
    assert [json.loads(line)["us"] for line in path.read_text().splitlines()] == [2, 3]
    write([], tmp_path, "kernels")
    assert path.read_text() == ""


@pytest.mark.parametrize(
    ("name", "slug"), [("NVIDIA H200", "h200"), ("NVIDIA GeForce RTX 4090", "geforce_rtx_4090"), ("GB200", "gb200")]
)
def test_files_are_named_after_the_gpu(name: str, slug: str) -> None:
    assert gpu_slug(name) == slug


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def run(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.main, ["bench", *args])
    return result.exit_code, result.output


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("args", [["kernels"], ["network", "--device", "cuda"]])
def test_without_a_gpu_one_line_says_so(args: list[str]) -> None:
    code, output = run(*args)
    assert code == 1
    assert "CUDA GPU" in output
    assert len(output.strip().splitlines()) == 1


@pytest.mark.usefixtures("no_gpu")
def test_floors_need_no_gpu() -> None:
    code, output = run("kernels", "--floors", "--batch-size", "1", "--dtype", "bf16", "fp32", "--only", "merge", "pool")
    assert code == 0
    lines = output.splitlines()
    assert lines[0].split() == ["kernel", "rows", "times", "MB", "GFLOP", "floor", "us", "limit"]
    assert sum("pool" in line for line in lines) == 2
    assert not any("conv" in line for line in lines)
    assert lines[-1].startswith("network kernels above, fp32, batch 1: ")


def test_options_are_the_benches_own() -> None:
    assert run("kernels", "--batch", "many")[0] == 2
    assert run("kernels", "--help")[0] == 0
    assert "--max-autotune" in run("network", "--help")[1]


def test_installed_without_the_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "sqt_fast" / "cli.py"))
    code, output = run("kernels")
    assert code == 2
    assert (
        output == "sqt-fast: the benches are in the repository, not in the installed package: run it from a checkout\n"
    )


@pytest.mark.parametrize(("status", "code"), [("ok", None), ("wrong: error 1", 1), ("skipped: no cupy", None)])
def test_the_exit_code_says_whether_ours_are_right(
    pooling: Problem,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    status: str,
    code: int | None,
) -> None:
    records = [{**record, "status": status} for record in measured(pooling, "triton").values()]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(bench_kernels, "_measure_all", lambda _: records)
    try:
        bench_kernels.main(["--dtype", "fp32", "--results", str(tmp_path)])
        assert code is None
    except SystemExit as stopped:
        assert stopped.code == code
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "kernels_h200.jsonl")
    assert json.loads((tmp_path / "kernels_h200.jsonl").read_text())["status"] == status
