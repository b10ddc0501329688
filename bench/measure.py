"""Measure and keep results: what every bench shares."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sqt_fast.versions import installed

PACKAGES = ("torch", "triton", "av", "nvidia-dali-cuda130", "numpy")


def environment(device: str) -> dict[str, Any]:
    """Return the circumstances that go into every record."""
    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "openmp": {n: os.environ[n] for n in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if n in os.environ},
        "python": platform.python_version(),
        "versions": installed(PACKAGES),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def cpu_name() -> str:
    """Return the processor's name and the matrix instructions that decide its speed in bf16."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())
    return " ".join([name, *(flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags)])


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
    return {name: round(value * scale, 4) for name, value in values.items()}


def write(records: Iterable[Mapping[str, Any]], folder: Path, name: str) -> Path:
    """Write one JSON line a record to ``folder/name.jsonl``, replacing it. Returns the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print ``rows`` in columns, the first row being the heads."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _commit() -> str:
    try:
        command = ["git", "describe", "--always", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
