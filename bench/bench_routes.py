"""The whole program through each decoder: clips a second from files to the table, and how busy the GPU's decoders are.

    python -m bench.bench_routes [--device cuda] [--weights random] [--videos 200] [--repeats 3]

Videos are copies of one like Kinetics': 10 s, 340x256, 30 frames a second, H.264 with B-frames. The baseline is
``--decoder cpu``, in turn with the others. Seconds are of labelling, as the program tells them: without its start. The
limit of the GPU's route is its decoders: ``busy`` is their share of the time, sampled by nvidia-smi.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import reason
from bench.bench_index import kinetics_like
from bench.measure import environment, gpu_slug, print_table, spread, write
from sqt_fast.engine.routes import DECODERS

HEADS = ("decoder", "decoded by", "clips/s", "p20", "p80", "x realtime", "start s", "busy %", "status")
BASELINE = "cpu"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path("bench/results"))
    args = parser.parse_args(argv)
    decoders = [name for name, record in DECODERS.items() if name == BASELINE or args.device[:4] in record.devices]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = folder / "videos"
        videos.mkdir()
        first = kinetics_like(videos / "0.mp4")
        for k in range(1, args.videos):
            shutil.copy(first, videos / f"{k}.mp4")
        runs: dict[str, list[dict[str, Any]]] = {decoder: [] for decoder in decoders}
        for _ in range(args.repeats):
            for decoder in decoders:
                runs[decoder].append(_index(videos, folder / "labels.csv", decoder, args))
    shared = {"videos": args.videos, **environment(args.device)}
    records = [{**_record(decoder, of_one), **shared} for decoder, of_one in runs.items()]
    print_table([HEADS, *map(_cells, records)])
    print(write(records, args.results, f"routes_{gpu_slug(str(shared['device'])) if 'cuda' in args.device else 'cpu'}"))


def _index(videos: Path, output: Path, decoder: str, args: argparse.Namespace) -> dict[str, Any]:
    """Label all videos. Returns the program's summary and how busy the GPU's decoders were, or the error."""
    command = [sys.executable, "-m", "sqt_fast", "index", str(videos), "--out", str(output), "--overwrite", "--json"]
    command += ["--decoder", decoder, "--device", args.device, "--weights", args.weights]
    try:
        with decoders_busy() as busy:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
    except subprocess.CalledProcessError as error:
        return {"error": (error.stderr.strip().splitlines() or [reason(error)])[-1]}
    except OSError as error:
        return {"error": reason(error)}
    used = {name for value in _column(output, "decoder") for name in value.split(", ")}
    return {**json.loads(done.stdout), "busy": busy, "used": sorted(used)}


def _column(table: Path, name: str) -> list[str]:
    import pyarrow.csv

    return [str(value) for value in pyarrow.csv.read_csv(table)[name].to_pylist()]


@contextmanager
def decoders_busy() -> Iterator[list[float]]:
    """Gather the percent of time that the GPU's decoders work, five times a second; nothing where nobody says."""
    samples: list[float] = []
    command = ["nvidia-smi", "--query-gpu=utilization.decoder", "--format=csv,noheader,nounits", "-lms", "200"]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        yield samples
        return
    try:
        yield samples
    finally:
        process.terminate()
        lines = process.communicate()[0].splitlines()
        samples += [float(line) for line in lines if line.strip().isdigit()]


def _record(decoder: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    sound = [run for run in runs if "error" not in run]
    if not sound:
        return {"decoder": decoder, "status": runs[0]["error"]}
    # The quarter in which most happens: at both ends of a run there is no work for all decoders.
    busy = [statistics.quantiles(run["busy"], n=4)[2] for run in sound if len(run["busy"]) > 1]
    return {
        "decoder": decoder,
        "status": "ok" if not any(run["failed"] for run in sound) else "videos failed",
        "used": sound[-1]["used"],
        "clips_per_s": spread([run["clips_per_s"] for run in sound]),
        "x_realtime": statistics.median(run["x_realtime"] for run in sound),
        "start_s": statistics.median(run["start_s"] for run in sound),
        "busy_percent": statistics.median(busy) if busy else None,
    }


def _cells(record: dict[str, Any]) -> tuple[str, ...]:
    if "clips_per_s" not in record:
        return (record["decoder"], *[""] * (len(HEADS) - 2), record["status"])
    rates = [f"{record['clips_per_s'][name]:.1f}" for name in ("median", "p20", "p80")]
    busy = record["busy_percent"]
    return (
        record["decoder"],
        " ".join(record["used"]),
        *rates,
        f"{record['x_realtime']:.0f}",
        f"{record['start_s']:.1f}",
        "" if busy is None else f"{busy:.0f}",
        record["status"],
    )


if __name__ == "__main__":
    main()
