"""Decide once, at start, how the network will run, and say why.

Precision is measured here and now. On a GPU, the backend is the one that was fastest on GPUs of its family, as
``sqt-fast tune`` measured. On a CPU, whether compiling pays depends on the size of the job: its cost and gain are what
they were when this machine last did it (kept in the user's cache), or cautious guesses before that.
"""

import json
import logging
import os
import platform
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from sqt_fast.config import IndexConfig
from sqt_fast.errors import BackendError, ConfigError
from sqt_fast.files import cache_folder, replace_file
from sqt_fast.kernels.launch import architecture
from sqt_fast.kernels.tuned import network_speeds
from sqt_fast.network import compiled
from sqt_fast.network.backends import NETWORKS, Backend, load_backend
from sqt_fast.network.model import SqueezeTime

log = logging.getLogger(__name__)

# 8 clips of 224x224: larger batches leave the CPU's caches, smaller ones leave cores idle (docs/experiments.md).
CPU_BATCH = 8
CUDA_BATCH = 64
# Before this machine has compiled once. Seen on 2 cores: 0.8 to 0.9 of eager's time, 14 to 45 s to compile.
GUESSED_COMPILED_RATIO = 0.85
GUESSED_COMPILE_S = 60.0
# What "auto" chooses between: float16 overflows where the others do not, so one has to ask for it.
AUTO_PRECISIONS = ("fp32", "bf16")
# What is kept of one compilation.
MEASURED = frozenset({"eager_s", "compiled_s", "compile_s"})
# A gain below this is noise of the measurement.
WORTH = 0.95


@dataclass(frozen=True)
class Choice:
    """How the network runs, and the reason for what was not asked for."""

    backend: str
    precision: str
    device: str
    batch_size: int
    reason: str

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> "Choice | None":
        """Return a choice that was kept as a dict, by this version or another; None if something is missing."""
        known = {field.name: kept[field.name] for field in fields(cls) if field.name in kept}
        return cls(**known) if len(known) == len(fields(cls)) else None


def choose(config: IndexConfig, model: SqueezeTime, *, num_clips: int, size: int) -> Choice:
    """Turn every "auto" of ``config`` into a decision. num_clips: about how many there will be to label.

    Raises ConfigError for a device that is not there.
    """
    device = find_device(config.device)
    batch_size = config.batch_size or (CUDA_BATCH if device.startswith("cuda") else CPU_BATCH)
    reasons = []
    precision = config.precision
    eager_s: float | None = None
    if precision is None:
        precision, eager_s, reason = _measure_precision(model, device, size)
        reasons.append(reason)
    backend = config.backend
    if backend is None:
        backend, reason = _backend(model, device, precision, batch_size, size, num_clips, eager_s)
        reasons.append(reason)
    return Choice(backend, precision, device, batch_size, "; ".join(reasons) or "as asked")


def open_backend(choice: Choice, model: SqueezeTime, *, size: int, may_fall_back: bool) -> tuple[Choice, Backend]:
    """Load the chosen backend. With ``may_fall_back``, one that fails is replaced by eager.

    Raises BackendError when it cannot run here and may not be replaced.
    """
    started = time.perf_counter()
    try:
        backend = load_backend(
            choice.backend,
            model,
            device=choice.device,
            precision=choice.precision,
            batch_size=choice.batch_size,
            size=size,
        )
    except BackendError as error:
        if not may_fall_back or choice.backend == "eager":
            raise
        eager = Choice("eager", choice.precision, choice.device, choice.batch_size, f"{error}; so eager")
        return open_backend(eager, model, size=size, may_fall_back=False)
    if choice.backend == "compile":
        _remember_compile(choice, model, size, backend, time.perf_counter() - started)
    return choice, backend


def find_device(asked: str | None) -> str:
    """Return the device to use, ``cpu`` or ``cuda[:N]``. Raises ConfigError for one that is not there."""
    if asked in (None, "auto"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    assert asked is not None
    if not re.fullmatch(r"cpu|cuda(:\d+)?", asked):
        raise ConfigError(f"--device {asked}: no such device; use auto, cpu, cuda or cuda:N")
    if asked.startswith("cuda"):
        number = int(asked.partition(":")[2] or 0)
        if number >= torch.cuda.device_count():
            raise ConfigError(f"--device {asked}: this machine has {torch.cuda.device_count()} CUDA devices; use cpu")
    return asked


def _measure_precision(model: SqueezeTime, device: str, size: int) -> tuple[str, float, str]:
    """Time both precisions on two clips. Returns the faster, its seconds a clip, and the reason."""
    seconds = {}
    for precision in AUTO_PRECISIONS:
        backend = load_backend("eager", model, device=device, precision=precision, batch_size=2, size=size)
        seconds[precision] = _seconds_a_clip(backend, 2, size)
    faster = "bf16" if seconds["bf16"] < WORTH * seconds["fp32"] else "fp32"
    timings = ", ".join(f"{name} {1000 * s:.0f} ms" for name, s in seconds.items())
    return faster, seconds[faster], f"{faster} because measured here, eager, a clip of two: {timings}"


def _seconds_a_clip(backend: Backend, batch_size: int, size: int, repeats: int = 2) -> float:
    clips = torch.zeros((batch_size, 48, size, size), dtype=backend.dtype).to(memory_format=torch.channels_last)
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        backend.run(clips)
        times.append(time.perf_counter() - started)
    return min(times[1:]) / batch_size


def _backend(
    model: SqueezeTime, device: str, precision: str, batch_size: int, size: int, num_clips: int, eager_s: float | None
) -> tuple[str, str]:
    """Return the backend that ends this job soonest, and why."""
    if device.startswith("cuda"):
        return _backend_on_gpu(model, device, precision, num_clips)
    if reason := compiled.why_not(device):
        return "eager", f"eager because {reason}"
    key = _key(model, device, precision, batch_size, size)
    known = _tuning().get(key)
    if known:
        gain_s, cost_s, source = known["eager_s"] - known["compiled_s"], known["compile_s"], "as measured here before"
    else:
        if eager_s is None:
            backend = load_backend("eager", model, device=device, precision=precision, batch_size=2, size=size)
            eager_s = _seconds_a_clip(backend, 2, size)
        gain_s, cost_s, source = eager_s * (1 - GUESSED_COMPILED_RATIO), GUESSED_COMPILE_S, "guessed"
    name = "compile" if num_clips * gain_s > cost_s else "eager"
    return name, (
        f"{name} because compiling costs {cost_s:.0f} s and gains {1000 * gain_s:.1f} ms a clip ({source}), "
        f"for about {num_clips} clips"
    )


def _backend_on_gpu(model: SqueezeTime, device: str, precision: str, num_clips: int) -> tuple[str, str]:
    """Return the backend that was fastest on a GPU of this family, of those that suit this job, and why."""
    family = architecture(device)
    speeds, gpu = network_speeds(family, precision) or ({}, "")
    speeds = {name: speeds[name] for name in sorted(speeds, key=speeds.__getitem__, reverse=True) if name in NETWORKS}
    if not speeds:
        return "eager", (
            f"eager because nothing was measured in {precision} on GPUs of compute capability {family / 10} "
            "(sqt-fast tune measures here, --backend triton tries it)"
        )
    chosen, passed_over = "eager", ""
    for name in speeds:
        if not (reason := _why_not_on_gpu(name, model, speeds, num_clips)):
            chosen = name
            break
        passed_over += f"; not {name}: {reason}"
    numbers = ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items())
    return chosen, (
        f"{chosen} because of clips/s in {precision} on {gpu} (sqt-fast tune measures here): {numbers}{passed_over}"
    )


def _why_not_on_gpu(name: str, model: SqueezeTime, speeds: Mapping[str, float], num_clips: int) -> str | None:
    """Return why this backend does not suit this network or job, None if it does."""
    if name == "triton":
        from sqt_fast.network.fused import why_not_network  # Triton is imported only if it may be used

        return why_not_network(model)
    if name == "compile" and "eager" in speeds:
        gain_s = num_clips * (1 / speeds["eager"] - 1 / speeds["compile"])
        if gain_s < GUESSED_COMPILE_S:
            return f"compiling costs about {GUESSED_COMPILE_S:.0f} s and gains {gain_s:.1f} s"
    return None


def _remember_compile(choice: Choice, model: SqueezeTime, size: int, backend: Backend, compile_s: float) -> None:
    """Note what compiling cost and gained, for the next decision on this machine."""
    eager = load_backend(
        "eager",
        model,
        device=choice.device,
        precision=choice.precision,
        batch_size=choice.batch_size,
        size=size,
    )
    entry = {
        "eager_s": _seconds_a_clip(eager, choice.batch_size, size),
        "compiled_s": _seconds_a_clip(backend, choice.batch_size, size),
        "compile_s": compile_s,
    }
    tuning = _tuning() | {_key(model, choice.device, choice.precision, choice.batch_size, size): entry}
    try:
        _tuning_file().parent.mkdir(parents=True, exist_ok=True)
        replace_file(_tuning_file(), lambda file: file.write(json.dumps(tuning, indent=1).encode()))
    except OSError as error:
        log.info("%s: not kept (%s)", _tuning_file(), error)


def _key(model: SqueezeTime, device: str, precision: str, batch_size: int, size: int) -> str:
    machine = f"{platform.machine()} {_cpu_name()} x{os.cpu_count()} torch {torch.__version__}"
    shape = f"depth {model.config.depth} width {model.config.width} {batch_size}x{size} {precision}"
    return f"{machine} | {device} | {shape}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _tuning_file() -> Path:
    return cache_folder() / "tuning.json"


def _tuning() -> dict[str, Any]:
    """Return what is known of this machine; entries of another version, which lack something, are left out."""
    try:
        kept = dict(json.loads(_tuning_file().read_text()))
    except (OSError, ValueError, TypeError):
        return {}
    return {key: entry for key, entry in kept.items() if isinstance(entry, dict) and entry.keys() >= MEASURED}
