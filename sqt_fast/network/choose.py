"""Decide once, at start, how the network will run, and say why.

On a GPU, precision goes by rule, and the backend is the one that was fastest on GPUs of its family, as ``sqt-fast
tune`` measured. On a CPU, precision is measured here and now, unless the job is as short as that. Whether compiling
pays depends on the size of the job: its cost and gain are what they were when this machine last did it (kept in the
user's cache), or cautious guesses before that.
"""

import json
import logging
import os
import platform
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from sqt_fast.config import IndexConfig
from sqt_fast.errors import BackendError, ConfigError
from sqt_fast.files import cache_folder, replace_file, tuned_file
from sqt_fast.kernels.launch import architecture
from sqt_fast.kernels.tuned import look_in, network_speeds
from sqt_fast.network.backends import Backend, load_backend
from sqt_fast.network.model import SqueezeTime
from sqt_fast.network.registry import BACKENDS, SIMPLEST

log = logging.getLogger(__name__)

# 8 clips of 224x224: larger batches leave the CPU's caches, smaller ones leave cores idle (docs/experiments.md).
CPU_BATCH = 8
CUDA_BATCH = 64
# Before this machine has compiled once. Seen on 2 cores: 0.8 to 0.9 of eager's time.
GUESSED_COMPILED_RATIO = 0.85
# Timing both precisions takes as long as labelling so many clips.
TIMED_CLIPS = 24
# Ampere: the oldest GPUs with matrix units for bf16.
BF16_CAPABILITY = (8, 0)
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
    simplest_s: float | None = None
    if precision is None:
        precision, simplest_s, reason = _precision(model, device, num_clips, size)
        reasons.append(reason)
    backend = config.backend
    if backend is None and device.startswith("cuda"):
        backend, reason = _backend_on_gpu(model, device, precision, num_clips)
        reasons.append(reason)
    elif backend is None:
        job = _Job(model, device, precision, batch_size, size, num_clips)
        backend, reason = _backend_on_cpu(job, simplest_s)
        reasons.append(reason)
    return Choice(backend, precision, device, batch_size, "; ".join(reasons) or "as asked")


def open_backend(choice: Choice, model: SqueezeTime, *, size: int, may_fall_back: bool) -> tuple[Choice, Backend]:
    """Load the chosen backend. With ``may_fall_back``, one that fails is replaced by the simplest.

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
        if not may_fall_back or choice.backend == SIMPLEST:
            raise
        simplest = replace(choice, backend=SIMPLEST, reason=f"{error}; so {SIMPLEST}")
        return open_backend(simplest, model, size=size, may_fall_back=False)
    if BACKENDS[choice.backend].compile_s and choice.device == "cpu":
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


def _precision(model: SqueezeTime, device: str, num_clips: int, size: int) -> tuple[str, float | None, str]:
    """Return the precision, the seconds that a clip takes the simplest backend in it if that was timed, and why.

    On a GPU bf16 by rule: timed on few clips, the GPU waits for Python, and noise decides.
    """
    if device.startswith("cuda"):
        if torch.cuda.get_device_capability(device) >= BF16_CAPABILITY:
            return "bf16", None, "bf16 because the GPU has matrix units for it"
        return "fp32", None, "fp32 because the GPU has no matrix units for bf16"
    if num_clips <= TIMED_CLIPS:
        return "fp32", None, f"fp32 because the job is as short as timing it (about {num_clips} clips)"
    seconds = {}
    for precision in AUTO_PRECISIONS:
        backend = load_backend(SIMPLEST, model, device=device, precision=precision, batch_size=2, size=size)
        seconds[precision] = _seconds_a_clip(backend, 2, size)
    faster = "bf16" if seconds["bf16"] < WORTH * seconds["fp32"] else "fp32"
    timings = ", ".join(f"{name} {1000 * s:.0f} ms" for name, s in seconds.items())
    return faster, seconds[faster], f"{faster} because measured here, {SIMPLEST}, a clip of two: {timings}"


def _seconds_a_clip(backend: Backend, batch_size: int, size: int, repeats: int = 2) -> float:
    clips = torch.zeros((batch_size, 48, size, size), dtype=backend.dtype).to(memory_format=torch.channels_last)
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        backend.run(clips)
        times.append(time.perf_counter() - started)
    return min(times[1:]) / batch_size


@dataclass(frozen=True)
class _Job:
    """What there is to run on a CPU."""

    model: SqueezeTime
    device: str
    precision: str
    batch_size: int
    size: int
    num_clips: int


def _backend_on_cpu(job: _Job, simplest_s: float | None) -> tuple[str, str]:
    """Return the backend that ends this job soonest, and why. simplest_s: seconds a clip takes the simplest, if known.

    One that compiles costs its time once and gains some of each clip.
    """
    reasons = []
    for name, record in BACKENDS.items():
        if not record.compile_s:
            continue
        if reason := record.why_not(job.device, job.model):
            reasons.append(reason)
            continue
        known = _tuning().get(_key(job.model, job.device, job.precision, job.batch_size, job.size))
        if known:
            gain_s, cost_s, source = known["eager_s"] - known["compiled_s"], known["compile_s"], "measured here before"
        elif job.num_clips <= TIMED_CLIPS:
            reasons.append(f"compiling costs {record.compile_s:.0f} s (guessed), for about {job.num_clips} clips")
            continue
        else:
            seconds = simplest_s or _seconds_of_simplest(job)
            gain_s, cost_s, source = seconds * (1 - GUESSED_COMPILED_RATIO), record.compile_s, "guessed"
        why = (
            f"compiling costs {cost_s:.0f} s and gains {1000 * gain_s:.1f} ms a clip ({source}), "
            f"for about {job.num_clips} clips"
        )
        if job.num_clips * gain_s > cost_s:
            return name, f"{name} because {why}"
        reasons.append(why)
    return SIMPLEST, f"{SIMPLEST} because {'; '.join(reasons)}"


def _seconds_of_simplest(job: _Job) -> float:
    backend = load_backend(SIMPLEST, job.model, device=job.device, precision=job.precision, batch_size=2, size=job.size)
    return _seconds_a_clip(backend, 2, job.size)


def _backend_on_gpu(model: SqueezeTime, device: str, precision: str, num_clips: int) -> tuple[str, str]:
    """Return the backend that was fastest on a GPU of this family, of those that suit this job, and why."""
    family = architecture(device)
    look_in(tuned_file())
    speeds, gpu = network_speeds(family, precision) or ({}, "")
    speeds = {name: speeds[name] for name in sorted(speeds, key=speeds.__getitem__, reverse=True) if name in BACKENDS}
    if not speeds:
        return SIMPLEST, (
            f"{SIMPLEST} because nothing was measured in {precision} on GPUs of compute capability {family / 10} "
            "(sqt-fast tune measures here, --backend triton tries it)"
        )
    chosen, passed_over = SIMPLEST, ""
    for name in speeds:
        if not (reason := _why_not_on_gpu(name, model, device, speeds, num_clips)):
            chosen = name
            break
        passed_over += f"; not {name}: {reason}"
    numbers = ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items())
    return chosen, (
        f"{chosen} because of clips/s in {precision} on {gpu} (sqt-fast tune measures here): {numbers}{passed_over}"
    )


def _why_not_on_gpu(
    name: str, model: SqueezeTime, device: str, speeds: Mapping[str, float], num_clips: int
) -> str | None:
    """Return why this backend does not suit this network or job, None if it does."""
    record = BACKENDS[name]
    if reason := record.why_not(device, model):
        return reason
    if record.compile_s and SIMPLEST in speeds:
        gain_s = num_clips * (1 / speeds[SIMPLEST] - 1 / speeds[name])
        if gain_s < record.compile_s:
            return f"compiling costs about {record.compile_s:.0f} s and gains {gain_s:.1f} s"
    return None


def _remember_compile(choice: Choice, model: SqueezeTime, size: int, backend: Backend, compile_s: float) -> None:
    """Note what compiling cost and gained, for the next decision on this machine."""
    simplest = load_backend(
        SIMPLEST,
        model,
        device=choice.device,
        precision=choice.precision,
        batch_size=choice.batch_size,
        size=size,
    )
    entry = {
        "eager_s": _seconds_a_clip(simplest, choice.batch_size, size),
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
