"""Every kernel at every shape of the network (depth 50): ours, PyTorch eager and compiled, and who else can do it.

    python -m bench.bench_kernels [--batch-size 256] [--dtype bf16 fp16 fp32] [--only merge conv] [--max-autotune]
    python -m bench.bench_kernels --floors      what each must at least take on an H200; needs no GPU

The ceilings of this GPU are measured first. A floor is the larger of bytes over the copy's rate and FLOPs over the
matrix product's; bytes and FLOPs are what any implementation of the operation must move and compute. Inputs are the
network's own activations on random clips, channels last. Before it is timed, everyone's result is compared with the
reference in float32: ours may be at most twice as wrong as PyTorch in the same dtype, or is not timed, and the exit
code is 1. fp32 is as PyTorch comes: its convolutions are TF32, and less exact than ours.

Times are of CUDA graphs, in which calls work on as many copies of their inputs in turn as fill the L2 cache twice;
before each it is flushed (``triton.testing.do_bench``, the clock of ``sqt-fast tune`` too). Providers take turns. What
cannot be captured (``graph: false``) is timed with Python's part.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import reason
from bench.floors import Case, cases, print_floors
from bench.kernel_checks import FLOORS, allowed_error, error_of, truth_of
from bench.kernel_providers import OURS, PROVIDERS, UNCAPTURED, Calls, compiled, compiled_kernel
from bench.measure import (
    H200,
    Ceilings,
    captured,
    environment,
    gpu_seconds,
    gpu_slug,
    gpu_state,
    measure_ceilings,
    peak_bytes,
    print_table,
    spread,
    write,
)
from sqt_fast.kernels.launch import Problem, best_config
from sqt_fast.network.precompile import precompile, specialisations

OPS = ("squeeze", "conv", "pool", "downsample", "pointwise", "importance", "merge")
SHORTEST_S = 100e-6  # a shorter graph would measure its launch
MOST_COPIES = 256
HEADS = ("kernel", "times", "provider", "us", "p20", "p80", "GB/s", "TFLOP/s", "% copy", "% matrix", "% floor")
MORE_HEADS = ("limit", "error", "peak MB", "registers", "spills", "status")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, keep. Exits with 1 where there is no GPU, or where a kernel of ours is wrong or fails."""
    args = _arguments(argv)
    if args.floors:
        for dtype in args.dtype:
            found = [case for case in cases(dtype, args.batch_size, "meta") if case.problem.op in args.only]
            print_floors(found, H200, dtype, args.batch_size)
        return
    if not torch.cuda.is_available():
        sys.exit("bench.bench_kernels needs a CUDA GPU, and torch sees none; --floors works without")
    with torch.no_grad():
        records = _measure_all(args)
    print_table([(*HEADS, *MORE_HEADS), *(_cells(record) for record in records)])
    for dtype in args.dtype:
        for line in sums([record for record in records if record["dtype"] == dtype], args.batch_size):
            print(f"{dtype}: {line}")
    print(_keep(records, args))
    if any(record["provider"] in OURS and record["status"].startswith(("wrong", "failed")) for record in records):
        sys.exit(1)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.bench_kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=256, help="clips")
    parser.add_argument("--dtype", nargs="+", choices=list(FLOORS), default=["bf16"])
    parser.add_argument("--only", nargs="+", choices=OPS, default=OPS, metavar="KERNEL", help=", ".join(OPS))
    parser.add_argument(
        "--providers",
        nargs="+",
        choices=list(PROVIDERS),
        default=list(PROVIDERS),
        metavar="PROVIDER",
        help=", ".join(PROVIDERS),
    )
    parser.add_argument("--max-autotune", action="store_true", help="torch.compile's mode; takes minutes")
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds; then torch.compile is left out")
    parser.add_argument("--results", type=Path, default=Path("bench/results"))
    parser.add_argument("--floors", action="store_true", help="print bytes, FLOPs and floors, and end")
    return parser.parse_args(argv)


def _measure_all(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the records of all dtypes and kernels. They are kept as they come, should the run be stopped."""
    started = time.monotonic()
    torch.backends.cudnn.benchmark = True
    circumstances = environment("cuda")
    ceilings = measure_ceilings()
    print(f"{circumstances['device']}: {ceilings}", flush=True)
    mode = "max-autotune-no-cudagraphs" if args.max_autotune else None
    records: list[dict[str, Any]] = []
    for dtype in args.dtype:
        try:
            problems = [case.problem for case in cases(dtype, args.batch_size, "meta")]
            precompile(specialisations(problem.launch(best_config(problem)) for problem in problems))
        except Exception as error:  # noqa: BLE001  it saves time, no more
            print(f"not compiled ahead: {reason(error)}", file=sys.stderr)
        found = [case for case in cases(dtype, args.batch_size, "cuda") if case.problem.op in args.only]
        print_floors(found, ceilings, dtype, args.batch_size)
        cache_bytes = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        for i, case in enumerate(found):
            print(f"{dtype} {i + 1}/{len(found)} {case.problem.name}", file=sys.stderr, flush=True)
            late = time.monotonic() - started > args.budget
            names = [name for name in PROVIDERS if name in args.providers and not (late and name == "compile")]
            new = list(measure(case, dtype, ceilings, cache_bytes, names, mode=mode))
            shared = {"batch_size": args.batch_size, "ceilings": vars(ceilings), "clocks": gpu_state()}
            records += ({**record, **shared, **circumstances} for record in new)
            _keep(records, args)
            torch.cuda.empty_cache()
    return records


def _keep(records: Sequence[dict[str, Any]], args: argparse.Namespace) -> Path:
    name = f"kernels_{gpu_slug(torch.cuda.get_device_name())}"
    return write(records, args.results, name, replacing=("op", "dtype", "batch_size"))


def measure(
    case: Case, dtype: str, ceilings: Ceilings, cache_bytes: int, names: Iterable[str], *, mode: str | None = None
) -> Iterator[dict[str, Any]]:
    """Check and time the providers ``names`` at one problem. Yields a record each."""
    problem = case.problem
    copies = num_copies(case.moved_bytes, cache_bytes, case.floor_s(ceilings, dtype))
    truth = truth_of(problem)
    allowed = allowed_error(problem, truth, dtype)
    found: dict[str, dict[str, Any]] = {}
    runs: dict[str, Callable[[], object]] = {}
    for name in names:
        found[name] = record = {**_about(case, dtype), "provider": name, "copies": copies, "status": "ok"}
        if name == "triton" and case.error:
            record["status"] = f"failed: {case.error}"
            continue
        try:
            make = partial(compiled, mode=mode) if name == "compile" else PROVIDERS[name]
            if not (calls := make(problem, copies)):
                del found[name]
                continue
            record["error"] = wrong = error_of(calls[0], truth)
            if name in OURS and not wrong <= allowed:  # NaN is wrong too
                record["status"] = f"wrong: error {wrong:.2g}, at most {allowed:.2g} allowed"
            else:
                runs[name] = _get_ready(problem, name, calls, record)
        except Exception as error:  # noqa: BLE001  what a provider lacks or refuses is a result
            lacking = type(error).__name__ in ("ModuleNotFoundError", "BackendError")
            record["status"] = f"{'skipped' if lacking else 'failed'}: {reason(error)}"
    seconds = gpu_seconds(runs)
    for name, record in found.items():
        yield record | (_numbers(case, seconds[name], copies, ceilings, dtype) if name in seconds else {})


def _get_ready(problem: Problem, name: str, calls: Calls, record: dict[str, Any]) -> Callable[[], object]:
    """Return all ``calls`` as one, and note what is known of them before they are timed."""
    record |= compiled_kernel(problem) if name == "triton" else {}
    record["peak_bytes"] = peak_bytes(calls[0])
    record["graph"] = (problem.op, name) not in UNCAPTURED
    return captured(calls) if record["graph"] else partial(_each, calls)


def num_copies(moved_bytes: int, cache_bytes: int, floor_s: float) -> int:
    """Return on how many copies of its inputs in turn a problem is timed, so that none is in the cache when read."""
    needed = max(math.ceil(2 * cache_bytes / moved_bytes), math.ceil(SHORTEST_S / floor_s))
    return min(needed, MOST_COPIES)


def _each(calls: Calls) -> None:
    for call in calls:
        call()


def _about(case: Case, dtype: str) -> dict[str, Any]:
    p = case.problem
    names = {"op": p.op, "key": p.key, "rows": p.rows, "times": case.times, "dtype": dtype}
    return {**names, "moved_bytes": case.moved_bytes, "flops": case.flops}


def _numbers(case: Case, seconds: Sequence[float], copies: int, ceilings: Ceilings, dtype: str) -> dict[str, Any]:
    us = spread(seconds, 1e6 / copies)
    bytes_per_s, flops_per_s = case.moved_bytes / us["median"] * 1e6, case.flops / us["median"] * 1e6
    floor_us = 1e6 * case.floor_s(ceilings, dtype)
    return {
        "us": us,
        "gb_per_s": round(bytes_per_s / 1e9, 1),
        "tflop_per_s": round(flops_per_s / 1e12, 2),
        "percent_of_copy": round(100 * bytes_per_s / ceilings.copy, 1),
        "percent_of_matmul": round(100 * flops_per_s / ceilings.matmul[dtype], 1),
        "percent_of_floor": round(100 * floor_us / us["median"], 1),
        "floor_us": round(floor_us, 3),
        "limit": case.limit(ceilings, dtype),
    }


def sums(records: Sequence[dict[str, Any]], batch_size: int) -> Iterator[str]:
    """Yield, for each provider that was timed at every kernel of ``records``, what they take one after the other."""
    network = [record for record in records if record["op"] != "squeeze"]
    problems = {(record["op"], record["key"]) for record in network}
    for name in dict.fromkeys(record["provider"] for record in network):
        timed = [record for record in network if record["provider"] == name and "us" in record]
        if {(record["op"], record["key"]) for record in timed} != problems:
            continue
        us = sum(record["times"] * record["us"]["median"] for record in timed)
        floor_us = sum(record["times"] * record["floor_us"] for record in timed)
        yield (
            f"{name}: network kernels one after the other {us:.0f} us, {batch_size / us * 1e6:.0f} clips/s, "
            f"{100 * floor_us / us:.1f} % of their floors"
        )


def _cells(record: dict[str, Any]) -> tuple[str, ...]:
    names = (f"{record['op']} {record['key']}", str(record["times"]), record["provider"])
    us = [f"{value:.2f}" for value in record["us"].values()] if "us" in record else [""] * 3
    rates = ("gb_per_s", "tflop_per_s", "percent_of_copy", "percent_of_matmul", "percent_of_floor", "limit")
    error = f"{record['error']:.1e}" if "error" in record else ""
    peak = f"{record['peak_bytes'] / 1e6:.1f}" if "peak_bytes" in record else ""
    rest = (str(record.get(name, "")) for name in ("registers", "spills", "status"))
    return (*names, *us, *(str(record.get(name, "")) for name in rates), error, peak, *rest)


if __name__ == "__main__":
    main()
