"""How much memory there is, and who may use how much of it now."""

import math
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sqt_fast.engine.process import Limits
from sqt_fast.errors import ConfigError
from sqt_fast.video.container import MAX_PIXELS
from sqt_fast.video.cpu_decoder import CHUNK_BYTES
from sqt_fast.video.probe import Probe

GIB = 1 << 30
# Of what is free, for decoding: the network, the table and the page cache live from the rest.
DEFAULT_SHARE = 0.5
# A decoder's process with nothing to do takes half of this: Python, FFmpeg, numpy, and the packets of a small file.
DECODER_BYTES = 200 << 20
# Pictures that a decoder keeps: 16 references and the one in work, and one more for each of its threads.
KEPT_PICTURES = 17
MAX_DECODERS = 64


@dataclass(frozen=True)
class Resources:
    """What one device's decoders may use.

    num_decoders: processes. memory_bytes: for all of them beyond what they take when idle. hang_s: seconds of silence
    after which one hangs.
    """

    num_decoders: int
    memory_bytes: int
    cores: int = 1
    hang_s: float = 60.0


def affordable_decoders(memory_bytes: int) -> int:
    """Return how many decoders' processes ``memory_bytes`` are enough for, half of it for what they decode."""
    return max(1, min(MAX_DECODERS, memory_bytes // (2 * DECODER_BYTES)))


def plan_resources(memory_bytes: int | None) -> Resources:
    """Share out this machine. memory_bytes: for decoding; None takes half of what is free."""
    cores = usable_cores()
    total = int(DEFAULT_SHARE * available_bytes()) if memory_bytes is None else memory_bytes
    num_decoders = min(cores, affordable_decoders(total))
    return Resources(num_decoders, max(DECODER_BYTES, total - num_decoders * DECODER_BYTES), cores)


def with_gpu_threads(resources: Resources, num_threads: int) -> Resources:
    """Return resources with a decoder for each thread that feeds a GPU, as far as the same memory has room for them."""
    total = resources.memory_bytes + resources.num_decoders * DECODER_BYTES
    num_decoders = max(resources.num_decoders, min(num_threads, affordable_decoders(total)))
    return replace(
        resources, num_decoders=num_decoders, memory_bytes=max(DECODER_BYTES, total - num_decoders * DECODER_BYTES)
    )


def decoder_limits(resources: Resources) -> Limits:
    """Return what one decoder's process may map at most.

    Address space, not memory: the slots for the largest pictures and the libraries take some of it and little memory.
    """
    return Limits(address_space_bytes=resources.memory_bytes + DECODER_BYTES + 6 * MAX_PIXELS + 4 * GIB)


def usable_cores(root: Path = Path("/")) -> int:
    """Return how many cores' worth of time this process may use: its affinity, under the quotas of its groups."""
    cores = float(len(os.sched_getaffinity(0)))
    for group in _groups(root, "cpu"):
        quota, _, period = _text(group / "cpu.max").strip().partition(" ")  # version 2; "max" is no quota
        if not quota:
            quota, period = _text(group / "cpu.cfs_quota_us").strip(), _text(group / "cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit() and int(period):
            cores = min(cores, int(quota) / int(period))
    return max(1, math.ceil(cores))


def parse_memory(text: str) -> int:
    """Return bytes of ``8G``, ``500M``, ``1.5GiB``. Raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])(?:i?B)?", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * 1024 ** (" KMGT".index(match[2].upper()))) if match else 0
    if size < DECODER_BYTES:
        raise ConfigError(
            f"--memory {text}: must be a size of at least {DECODER_BYTES >> 20}M, as 8G or 1500M, or auto"
        )
    return size


def available_bytes(root: Path = Path("/")) -> int:
    """Return how much memory is free for use, under the limits of the control groups that this process is in."""
    free = [_meminfo(_text(root / "proc/meminfo"))]
    for group in _groups(root, "memory"):
        for limit, used, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most, now = _number(group / limit), _number(group / used)
            if most is not None and now is not None:
                match = re.search(rf"^{cache} (\d+)$", _text(group / "memory.stat"), re.MULTILINE)
                cached = int(match[1]) if match else 0  # of files, given back when memory is short
                free.append(max(most - max(now - cached, 0), 0))
    return min(free)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups, of either version, and of all those above them."""
    mounts = {"": root / "sys/fs/cgroup", controller: root / "sys/fs/cgroup" / controller}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for kind in {"", controller} & set(controllers.split(",")):
            parts = Path(path.lstrip("/")).parts
            yield from (mounts[kind].joinpath(*parts[:depth]) for depth in range(len(parts) + 1))


def _meminfo(text: str) -> int:
    match = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else 4 * GIB


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such control group, or "max"
        return None


def decoding_bytes(facts: Probe, *, num_threads: int = 1) -> int:
    """Return about how much decoding one segment of a video takes: pictures that the decoder keeps, and RGB."""
    pixels = facts.source.width * facts.source.height
    chunk_bytes = max(CHUNK_BYTES, 3 * pixels)
    bytes_a_pixel = 2 if "10" in facts.pix_fmt or "12" in facts.pix_fmt or "16" in facts.pix_fmt else 1
    kept = (KEPT_PICTURES + num_threads) * pixels * bytes_a_pixel * 3 // 2
    columns = 21 * len(facts.packets) + 16 * facts.num_frames
    return kept + 2 * chunk_bytes + pixels * 3 + columns


class Budget:
    """Bytes that several threads share: each waits until its part is free. One that asks for more than all gets all."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = self._free = total_bytes
        self._changed = threading.Condition()
        self._line: list[object] = []

    @contextmanager
    def take(self, size_bytes: int) -> Iterator[None]:
        """Wait for ``size_bytes``, first come first served, and hold them meanwhile."""
        size_bytes, ticket = min(size_bytes, self.total_bytes), object()
        with self._changed:
            self._line.append(ticket)
            self._changed.wait_for(lambda: self._line[0] is ticket and self._free >= size_bytes)
            self._line.pop(0)
            self._free -= size_bytes
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += size_bytes
                self._changed.notify_all()
