"""Decoding: ours, decord, torchcodec and plain PyAV, the same wanted frames of the same files in the same run.

    python -m bench.bench_decode [--quick] [--repeats 5] [--clip NAME ...] [--video FILE ...] [--device cuda]

Peers come from ``pip install 'sqt-fast[peers]'``; who cannot be had is skipped with the reason. Time runs from the path
of a file to the last wanted frame, so opening and indexing count; files are in the page cache. A stage says where the
contract ends: ``rgb`` is uint8 RGB (F, H, W, 3) of full size, ``resized`` goes on to the short side of 256 with the
same resize for everyone. Modes: ``one core`` is one process pinned to one core; ``a process a core`` decodes as
many copies at once, each pinned; ``own threads`` is one process that may use all cores. The last two are ranked
together. The limit is ``decode only``: PyAV decodes every frame up to the last wanted one and converts none; who skips
what no wanted frame needs may pass it. Seconds of the processor stand beside those of the clock: where others use the
machine too, they are the ones to trust. Providers take turns, each in processes of its own; who returns other frames
than plain PyAV is marked and not ranked.
"""

import argparse
import json
import math
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.clips import CLIPS, facts, make
from bench.measure import environment, print_table, spread, write
from bench.peers import FLOOR, OURS, PROVIDERS, TRUTH
from bench.team import Team
from sqt_fast.versions import installed

# Each mode and the rank list it belongs to.
MODES = {
    "cpu": {"one core": "one core", "a process a core": "machine", "own threads": "machine"},
    "cuda": {"one process": "machine", "processes": "machine"},
}
QUICK = ("k400", "h264-baseline", "mpeg4-avi")
MAX_MAE = 3.0  # levels; colour conversions differ by less, neighbouring frames by more
SHORTEST_S = 0.3  # a shorter run is repeated within one measurement
# A chunk beyond malloc's 32 MB is fresh memory each time, and touching that costs peers 12 to 18 % at 720p.
CHUNK_FRAMES, CHUNK_BYTES = 32, 16 << 20
HEADS = ("clip", "wanted", "stage", "mode", "provider", "s/video", "p20", "p80", "wanted/s", "source/s")
MORE_HEADS = ("best peer/this", "CPU s", "same in CPU s", "% of limit", "peak MB", "error")


def main() -> None:
    """Measure, print, keep."""
    args = _arguments()
    if args.device == "cuda" and not _has_cuda():
        print("--device cuda: skipped, torch sees no CUDA GPU")
        return
    records: list[dict[str, Any]] = []
    circumstances = environment(args.device)
    circumstances["versions"] |= installed(("decord", "torchcodec", "PyNvVideoCodec"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        clips = [clip for clip in CLIPS if clip.name in args.clip]
        for path in args.video or (make(clip, folder) for clip in clips):
            found = _measure(path, args, Path(temporary))
            print_table([(*HEADS, *MORE_HEADS), *(_cells(record) for record in found)])
            records += ({**record, **circumstances} for record in found)
    print(write(records, args.results, f"decode_{args.device}"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=sorted(MODES), default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds a provider and case; two repeats at least")
    parser.add_argument("--quick", action="store_true", help="small clips, frames at interval 4, one core")
    parser.add_argument("--clip", nargs="+", choices=[clip.name for clip in CLIPS])
    parser.add_argument("--video", type=Path, nargs="+", help="measure these files instead")
    parser.add_argument("--keep", type=Path, help="where made clips stay for the next run")
    parser.add_argument("--processes", type=int, default=4, help="with --device cuda")
    parser.add_argument("--results", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    args.clip = args.clip or (QUICK if args.quick else [clip.name for clip in CLIPS])
    return args


def _measure(path: Path, args: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """Return the records of one file."""
    about = {"clip": path.stem, **facts(path)}
    print(json.dumps(about), flush=True)
    chunk = max(1, min(CHUNK_FRAMES, CHUNK_BYTES // (about["width"] * about["height"] * 3)))
    records: list[dict[str, Any]] = []
    with ExitStack() as stack:
        teams = {name: stack.enter_context(Team(args.device, name, args.processes)) for name in PROVIDERS[args.device]}
        for wanted, numbers in wanted_sets(about["frames"], about["frames"] / about["seconds"], args.quick).items():
            job = {"path": str(path), "wanted": numbers, "chunk_frames": chunk}
            checks = _check(teams, job, scratch)
            for stage, mode in _cases(args, about["seconds"]):
                runs = {name: check for name, check in checks.items() if "seconds" in check}
                case = {
                    "op": "decode",
                    **about,
                    "wanted": wanted,
                    "num_wanted": len(numbers),
                    "stage": stage,
                    "mode": mode,
                }
                measured = _repeat({name: teams[name] for name in runs}, {**job, "stage": stage}, mode, runs, args)
                source = numbers[-1] + 1
                records += (_record(case, name, checks[name], measured[name], source) for name in measured)
            _rank(records, MODES[args.device])
    return records


def wanted_sets(num_frames: int, fps: float, quick: bool = False) -> dict[str, list[int]]:
    """Return the frame numbers to ask for: tiled windows' are ``interval 4``; long videos may want but a few."""
    everyone = list(range(num_frames))
    sets = {"interval 4": everyone[::4]}
    if not quick and num_frames <= 3600:
        sets["dense"] = everyone
    if not quick and num_frames > 20 * fps:
        starts = range(0, num_frames - 64, round(20 * fps))
        sets["sparse"] = [start + 4 * i for start in starts for i in range(16)]
        sets["first clip"] = everyone[:64:4]
    return sets


def _cases(args: argparse.Namespace, seconds: float) -> list[tuple[str, str]]:
    if args.device == "cuda":
        return [("rgb", mode) for mode in MODES["cuda"]]
    modes = ["one core"] if args.quick else list(MODES["cpu"])
    only_rgb = [("rgb", "one core")] if seconds <= 60 else []  # long ones take long enough
    return only_rgb + [("resized", mode) for mode in modes]


def _check(teams: Mapping[str, Team], job: Mapping[str, Any], scratch: Path) -> dict[str, dict[str, Any]]:
    """Let everyone decode once and compare the frames with plain PyAV's."""
    checks: dict[str, dict[str, Any]] = {}
    truth: NDArray[np.int16] | None = None
    for name in sorted(teams, key=lambda name: name != TRUTH):
        sample = scratch / "sample.npy"
        sample.unlink(missing_ok=True)
        mode = "one core" if teams[name].free else "one process"
        teams[name].run(mode, {**job, "stage": "rgb", "wanted": job["wanted"][:8]})  # loads libraries
        check = teams[name].run(mode, {**job, "stage": "rgb", "sample": str(sample)})
        if "error" in check:
            print(f"{name}: skipped, {check['error']}")
        elif name != FLOOR:
            pictures = np.load(sample).astype(np.int16)
            truth = pictures if truth is None else truth
            check["mae"] = worst_mae(pictures, truth)
            check["neighbour_mae"] = round(float(np.median(np.abs(np.diff(truth[:64], axis=0)).mean((1, 2, 3)))), 2)
        checks[name] = check
    return checks


def worst_mae(pictures: NDArray[np.int16], truth: NDArray[np.int16]) -> float:
    """Return the mean absolute difference in levels of the frame that differs most; infinite if frames are missing."""
    if pictures.shape != truth.shape:
        return math.inf
    pairs = zip(pictures, truth, strict=True)
    return round(max(float(np.abs(picture - true).mean()) for picture, true in pairs), 3)


def _repeat(
    teams: Mapping[str, Team],
    job: Mapping[str, Any],
    mode: str,
    checks: Mapping[str, Mapping[str, Any]],
    args: argparse.Namespace,
) -> dict[str, list[dict[str, Any]]]:
    """Measure everyone in turn, so that a machine that drifts is unfair to none."""
    longest = max(check["seconds"] for check in checks.values())
    times = math.ceil(SHORTEST_S / longest)
    repeats = max(2, min(args.repeats, int(args.budget / (times * longest))))
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in teams}
    for team in teams.values():
        team.run(mode, {**job, "wanted": job["wanted"][:8]})  # builds the resize
    for _ in range(repeats):
        for name, team in teams.items():
            with decoder_load(args.device) as load:
                run = team.run(mode, {**job, "times": times})
            runs[name].append({**run, **({"decoder_percent": max(load)} if load else {})})
    return runs


def _record(
    case: Mapping[str, Any], name: str, check: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], source_frames: int
) -> dict[str, Any]:
    errors = [run["error"] for run in runs if "error" in run]
    mae = check.get("mae")
    if errors or (mae is not None and mae >= MAX_MAE):
        return {
            **case,
            "provider": name,
            "status": errors[0] if errors else f"wrong frames, off by {mae}",
            "mae": str(mae),
        }
    seconds = spread([run["seconds"] for run in runs])
    keys = ("peak_mb", "before_mb", "decoder_percent")
    return {
        **case,
        "provider": name,
        "status": "ok",
        "repeats": len(runs),
        "s_a_video": seconds,
        "cpu_s_a_video": spread([run["cpu_s"] for run in runs]),
        "wanted_per_s": round(case["num_wanted"] / seconds["median"], 1),
        "source_per_s": round(source_frames / seconds["median"], 1),
        **{key: max(run[key] for run in runs) for key in keys if key in runs[0]},
        "mae": mae,
        "neighbour_mae": check.get("neighbour_mae"),
    }


def _rank(records: list[dict[str, Any]], lists: Mapping[str, str]) -> None:
    """Add to each record how it stands to the best peer of its list and to the limit of its mode."""
    for record in records:
        if record["status"] != "ok":
            continue
        same = [
            r for r in records if r["status"] == "ok" and all(r[k] == record[k] for k in ("clip", "wanted", "stage"))
        ]
        ranked = [r for r in same if lists[r["mode"]] == lists[record["mode"]] and r["provider"] not in (FLOOR, OURS)]
        limit = next((r for r in same if r["mode"] == record["mode"] and r["provider"] == FLOOR), None)
        median = record["s_a_video"]["median"]
        if ranked:
            best = min(ranked, key=lambda r: float(r["s_a_video"]["median"]))
            record["best_peer"] = f"{best['provider']}, {best['mode']}"
            record["best_peer_over_this"] = round(best["s_a_video"]["median"] / median, 3)
            cheapest = min(float(r["cpu_s_a_video"]["median"]) for r in ranked)
            record["best_peer_cpu_over_this"] = round(cheapest / record["cpu_s_a_video"]["median"], 3)
        if limit:
            record["percent_of_limit"] = round(100 * limit["s_a_video"]["median"] / median, 1)


@contextmanager
def decoder_load(device: str) -> Iterator[list[int]]:
    """Collect how busy the GPU's decoders are, in percent, five times a second."""
    load: list[int] = []
    if device == "cpu":
        yield load
        return
    query = ["nvidia-smi", "--query-gpu=utilization.decoder", "--format=csv,noheader,nounits", "-lms", "200"]
    with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield load
        finally:
            process.terminate()
            load += (int(line) for line in process.communicate()[0].split() if line.isdigit())


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _cells(record: dict[str, Any]) -> tuple[str, ...]:
    names = [record[name] for name in ("clip", "wanted", "stage", "mode", "provider")]
    if record["status"] != "ok":
        return (*names, *[""] * (len(HEADS) + len(MORE_HEADS) - len(names) - 1), record["status"])
    seconds = [f"{record['s_a_video'][name]:.4f}" for name in ("median", "p20", "p80")]
    rates = [f"{record[name]:.0f}" for name in ("wanted_per_s", "source_per_s")]
    cpu_s = record["cpu_s_a_video"]["median"]
    keys = ("best_peer_cpu_over_this", "percent_of_limit", "peak_mb", "mae")
    rest = [record.get("best_peer_over_this"), cpu_s, *(record.get(key) for key in keys)]
    return (*names, *seconds, *rates, *("" if value is None else f"{value:.4g}" for value in rest))


if __name__ == "__main__":
    main()
