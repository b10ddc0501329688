"""Memory of a whole run: the peak over all processes of ``sqt-fast index``, for one long video or many short ones.

    python -m bench.bench_memory [--hours 2] [--video FILE] [--files N] [--memory SIZE]

``--hours`` makes a 1080p H.264 file of that length; ``--files`` an archive of so many links to one video of 16 frames.
PSS counts memory that processes share once; the sum of RSS counts it in each. Both are sampled every half second.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench.bench_index import kinetics_like
from bench.clips import X264, Clip, make
from bench.measure import environment, print_table, write

SAMPLE_S = 0.5
PIECE_SECONDS = 20


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--video", type=Path, help="instead of making one")
    parser.add_argument("--files", type=int, help="many short videos instead of a long one")
    parser.add_argument("--memory", default="auto", help="passed on to sqt-fast index")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--results", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = args.video or (_links(Path(folder), args.files) if args.files else _long(Path(folder), args.hours))
        what = f"{args.files} files" if args.files else source.name
        options = ["--weights", args.weights, "--memory", args.memory, "--overwrite", "--json"]
        command = [sys.executable, "-m", "sqt_fast", "index", str(source), "-o", f"{folder}/t.parquet", *options]
        record = {"op": "memory", "what": what, "memory": args.memory, **_watch(command), **environment("cpu")}
    names = ("what", "peak_pss_mb", "peak_rss_mb", "wall_s", "video_s", "x_realtime", "frames_decoded", "rows", "limit")
    print_table([names, tuple(str(record[name]) for name in names)])
    print(write([record], args.results, "memory_files_cpu" if args.files else "memory_long_cpu"))


def _long(folder: Path, hours: float) -> Path:
    pieces = max(1, round(hours * 3600 / PIECE_SECONDS))
    options = {**X264, "b": "1500k", "g": "250"}
    clip = Clip(f"{hours:g}h-1080p", "libx264", ".mp4", (1920, 1080), PIECE_SECONDS, options, pieces=pieces)
    return make(clip, folder)


def _links(folder: Path, count: int) -> Path:
    video = kinetics_like(folder / "video.mp4", seconds=1)
    archive = folder / "archive"
    for i in range(count):
        link = archive / f"{i // 1000:04d}" / f"{i:07d}.mp4"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(video)
    return archive


def _watch(command: list[str]) -> dict[str, Any]:
    """Run ``command`` and return its JSON with the peaks."""
    started = time.perf_counter()
    peaks: dict[str, float] = defaultdict(float)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            pids = [process.pid, *_descendants(process.pid)]
            for name, unit in (("Pss", "peak_pss_mb"), ("Rss", "peak_rss_mb")):
                peaks[unit] = max(peaks[unit], round(sum(_memory_kb(pid, name) for pid in pids) / 1024, 1))
            time.sleep(SAMPLE_S)
        assert process.stdout is not None
        summary = json.loads(process.stdout.read())
    return {**summary, **peaks, "wall_s": round(time.perf_counter() - started, 1)}


def _descendants(pid: int) -> list[int]:
    """Return the children of a process, and theirs."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []
    return [*children, *(pid for child in children for pid in _descendants(child))]


def _memory_kb(pid: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


if __name__ == "__main__":
    main()
