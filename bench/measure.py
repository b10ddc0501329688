"""Measure and keep results: what every bench shares."""

import functools
import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sqt_fast.versions import commit, cpu_name, installed

PACKAGES = ("torch", "triton", "av", "nvidia-dali-cuda130", "cupy-cuda13x", "cupy-cuda12x", "numpy")


def environment(device: str) -> dict[str, Any]:
    """Return the circumstances that go into every record."""
    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu_name(),
        **({"driver": gpu_state().get("driver_version", "unknown")} if device.startswith("cuda") else {}),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "openmp": {n: os.environ[n] for n in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if n in os.environ},
        "python": platform.python_version(),
        "versions": installed(PACKAGES),
        "commit": commit() or "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }


def gpu_slug(name: str) -> str:
    """Return a GPU's name as part of a file's: "NVIDIA H200" is ``h200``."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower().removeprefix("nvidia")).strip("_")


def gpu_state() -> dict[str, str]:
    """Return driver, clocks (MHz), power (W) and temperature (C) of the current GPU; {} if nobody says."""
    names = ("driver_version", "clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    if uuid := getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", None):
        command.append(f"--id=GPU-{uuid}")
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
        return dict(zip(names, (value.strip() for value in found.splitlines()[0].split(",")), strict=True))
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return {}


@dataclass(frozen=True)
class Ceilings:
    """What this GPU can do at most: bytes copied (read and written) and matrix FLOPs a second by dtype.

    fp32: as exact as float32, which is three TF32 products.
    """

    copy: float
    matmul: Mapping[str, float]

    def floor_s(self, moved_bytes: float, flops: float, dtype: str) -> float:
        """Return the seconds that nobody can beat."""
        return max(moved_bytes / self.copy, flops / self.matmul[dtype])

    def __str__(self) -> str:
        rates = ", ".join(f"{name} {rate / 1e12:.0f}" for name, rate in self.matmul.items())
        return f"copy {self.copy / 1e12:.2f} TB/s; matrix products, TFLOP/s: {rates}"


# Measured on one H200 (fp32: a sixth of bf16, not measured), for what is computed without a GPU.
H200 = Ceilings(4.3e12, {"bf16": 790e12, "fp16": 790e12, "fp32": 790e12 / 6})


def measure_ceilings(*, copied_bytes: int = 4 << 30, side: int = 8192) -> Ceilings:
    """Measure the current GPU: a copy within its memory, and square products of random matrices."""
    copy = _copy_rate(min(copied_bytes, torch.cuda.mem_get_info()[0] // 4))
    matmul = {}
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # TF32
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        a, b = torch.randn((2, side, side), dtype=dtype, device="cuda").unbind()
        out = torch.empty_like(a)
        matmul[name] = (
            2 * side**3 / _median_s(functools.partial(torch.mm, a, b, out=out)) / (3 if name == "fp32" else 1)
        )
    torch.set_float32_matmul_precision(before)
    return Ceilings(copy, matmul)


def _copy_rate(num_bytes: int) -> float:
    source = torch.empty(num_bytes, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * num_bytes / _median_s(functools.partial(target.copy_, source))


def _median_s(call: Callable[[], object]) -> float:
    return statistics.median(gpu_seconds({"": call})[""])


def gpu_seconds(
    runs: Mapping[str, Callable[[], object]], *, rounds: int = 3, round_s: float = 0.03
) -> dict[str, list[float]]:
    """Time every run on the current GPU, as ``sqt-fast tune`` does: by events, with nothing left in the L2 cache.

    Everyone is timed for about ``round_s`` in turn, ``rounds`` times.
    """
    from triton.testing import do_bench  # CPUs are measured without Triton

    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found = do_bench(run, warmup=10, rep=1000 * round_s, return_mode="all")
            seconds[name] += [ms / 1000 for ms in found]
    return seconds


def captured(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """Return all ``calls``, one behind the other, as one CUDA graph: Python's share is not in it."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls[0]()  # compiles and allocates what cannot be captured
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return functools.partial(_replay, graph, calls)


def _replay(graph: torch.cuda.CUDAGraph, calls: Sequence[Callable[[], object]]) -> None:
    del calls  # held as long as the graph, which reads their tensors
    graph.replay()


def peak_bytes(call: Callable[[], object]) -> int:
    """Return the memory that ``call`` takes beside what was there, what it returns included."""
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def interleaved(calls: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Time every call ``repeats`` times, in turn, so that a machine that drifts is unfair to none. Returns seconds."""
    for call in calls.values():
        for _ in range(warmup):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def spread(seconds: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Return median, 20th and 80th percentile of ``seconds`` times ``scale``."""
    ordered = sorted(seconds)
    low, high = ordered[round(0.2 * (len(ordered) - 1))], ordered[round(0.8 * (len(ordered) - 1))]
    values = {"median": statistics.median(ordered), "p20": low, "p80": high}
    return {name: float(f"{value * scale:.6g}") for name, value in values.items()}


def write(records: Iterable[Mapping[str, Any]], folder: Path, name: str, *, replacing: Sequence[str] = ()) -> Path:
    """Write one JSON line a record to ``folder/name.jsonl``, replacing what is there. Returns the path.

    replacing: only those that equal a new one in these fields are replaced, others stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    lines = [json.dumps(record) for record in records]
    if replacing and path.exists():
        new = {_fields(line, replacing) for line in lines}
        lines = [line for line in path.read_text().splitlines() if _fields(line, replacing) not in new] + lines
    path.write_text("".join(line + "\n" for line in lines))
    return path


def _fields(line: str, names: Sequence[str]) -> tuple[Any, ...]:
    record = json.loads(line)
    return tuple(record.get(name) for name in names)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print ``rows`` in columns, the first row being the heads."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
