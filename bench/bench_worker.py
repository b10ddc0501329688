"""The worker without its network: what decoders' threads cost beside the decoders' own processes.

    python -m bench.bench_worker [--decoders 16] [--videos 60] [--repeats 3] [--threads 16]

A network that costs nothing, and clips as a GPU gets them: 16 pictures side by side, as bytes. The baseline lets every
decoder's thread have torch's team of ``--threads`` threads, as torch does unless it is told otherwise. At the limit,
all cores compute in decoders' processes all the time.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from bench.bench_index import NoNetwork, kinetics_like
from bench.measure import environment, print_table, spread, write
from sqt_fast.clips.batches import View
from sqt_fast.clips.crops import crop_corners
from sqt_fast.clips.gather import Clip
from sqt_fast.clips.recipe import Recipe
from sqt_fast.config import FAST
from sqt_fast.engine.decoders import DecoderSetup
from sqt_fast.engine.labelling import Labelling, Task
from sqt_fast.engine.memory import Resources, usable_cores
from sqt_fast.table.rows import RowStyle
from sqt_fast.video.archive import VideoFile, find_videos

BASELINE, OURS = "a team a decoder", "a thread a decoder"
BATCH_SIZE, MEMORY_BYTES = 64, 4 << 30
PER_CLIP = ("worker ms/clip", "decoders ms/clip", "squeeze ms/clip")
HEADS = ("what", "clips/s", "p20", "p80", *PER_CLIP, "threads", "% of limit")


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decoders", type=int, default=usable_cores())
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--videos", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {BASELINE: [], OURS: []}
    with tempfile.TemporaryDirectory() as folder:
        videos = list(find_videos([str(kinetics_like(Path(folder) / "video.mp4"))])) * args.videos
        for _ in range(args.repeats):
            for name, found in runs.items():
                torch.set_num_threads(args.threads)
                with patch("torch.set_num_threads") if name == BASELINE else nullcontext():
                    found.append(_run(videos, args.decoders))
    shared = {"decoders": args.decoders, "videos": args.videos, **environment("cpu")}
    records = [{"op": "worker", "what": name, **_summary(found), **shared} for name, found in runs.items()]
    print_table([HEADS, *map(_cells, records)])
    print(write(records, args.results, "worker_cpu"))


class _Bytes:
    """Clips as they go to a GPU, but for the pinned memory."""

    def views(self, clip: Clip) -> Iterator[View]:
        height, width, _ = clip.images[0].shape
        frames = torch.stack(clip.images)
        for crop, (top, left) in enumerate(crop_corners(height, width, FAST.crop_size, FAST.num_crops)):
            yield View(clip.clip_index, crop, frames, clip.missing, top, left)

    def batch(self, views: list[View], batch_size: int) -> Tensor:
        return torch.zeros((batch_size, *views[0].clip.shape[:1]))


def _run(videos: list[VideoFile], num_decoders: int) -> dict[str, float]:
    """Label ``videos``. Returns clips/s, threads, and milliseconds a clip."""
    setup = DecoderSetup(Resources(num_decoders, MEMORY_BYTES, usable_cores()))
    task = Task(Recipe(FAST), RowStyle(("any",), 1, per_window=True), BATCH_SIZE)
    labelling = Labelling(NoNetwork(1), task, setup, _Bytes())
    before, started, threads = _cpu_s(), time.perf_counter(), 0
    for result in labelling.label(videos):
        assert result.failure is None
        threads = max(threads, sum(1 for _ in Path("/proc/self/task").iterdir()))
    wall_s = time.perf_counter() - started
    worker_s, decoders_s = (now - then for now, then in zip(_cpu_s(), before, strict=True))
    counters = labelling.take_counters()
    return {
        "clips_per_s": counters.clips / wall_s,
        "worker_ms": 1000 * worker_s / counters.clips,
        "decoders_ms": 1000 * decoders_s / counters.clips,
        "squeeze_ms": 1000 * counters.squeeze_s / counters.clips,
        "os_threads": threads,
        "percent_of_limit": 100 * decoders_s / (wall_s * usable_cores()),
    }


def _cpu_s() -> tuple[float, float]:
    """Return the processor time of this process, and of its children that have ended."""
    uses = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    own, children = (use.ru_utime + use.ru_stime for use in uses)
    return own, children


def _summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    return {name: spread([run[name] for run in runs]) for name in runs[0]}


def _cells(record: dict[str, Any]) -> tuple[str, ...]:
    rate = record["clips_per_s"]
    names = ("worker_ms", "decoders_ms", "squeeze_ms")
    return (
        record["what"],
        *(f"{rate[name]:.1f}" for name in ("median", "p20", "p80")),
        *(f"{record[name]['median']:.2f}" for name in names),
        f"{record['os_threads']['median']:.0f}",
        f"{record['percent_of_limit']['median']:.0f}",
    )


if __name__ == "__main__":
    main()
