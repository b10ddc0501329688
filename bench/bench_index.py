"""Index end to end: seconds a video and clips a second, stage by stage, for both protocols.

    python -m bench.bench_index [--video FILE] [--weights k400] [--videos 4] [--repeats 5]

Without ``--video`` it makes one like Kinetics': 10 s, 340x256, 30 frames a second, H.264 with B-frames. Stages are
timed one by one on one thread; the rest is the worker on ``--videos`` copies, decoding beside the network. The baseline
is ``official``, the network as the release runs it (eager, fp32, contiguous, not folded) behind the same decoder. The
limit is the network alone at the same batch size: what would be left if decoding were free.
"""

import argparse
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import torch

from bench.bench_network import OfficialBackend
from bench.measure import environment, interleaved, print_table, spread, write
from sqt_fast.archive import VideoFile, find_videos
from sqt_fast.backends import BACKENDS, PRECISIONS, Backend, load_backend
from sqt_fast.choose import CPU_BATCH
from sqt_fast.clips import ClipMaker, View
from sqt_fast.config import FAST, OFFICIAL, Protocol
from sqt_fast.decode import DecodeReport, Frames, HostDecoder
from sqt_fast.errors import BackendError
from sqt_fast.pipelines.resize import HostResizer
from sqt_fast.probe import probe
from sqt_fast.rows import RowStyle
from sqt_fast.scenes import draw, random_scene
from sqt_fast.worker import Recipe, Worker
from sqt_fast.zoo import Weights, load_weights

HEADS = ("protocol", "what", "s/video", "p20", "p80", "clips/s", "x realtime", "official/this", "% of limit")
BASELINE = "official"


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path)
    parser.add_argument("--weights", default="random")
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    weights = load_weights(args.weights)
    records: list[dict[str, Any]] = []
    rows: list[tuple[str, ...]] = [HEADS]
    with tempfile.TemporaryDirectory() as folder:
        path = args.video or kinetics_like(Path(folder) / "kinetics_like.mp4")
        (video,) = find_videos([str(path)])
        for protocol in (FAST, OFFICIAL):
            torch.compiler.reset()
            for record in _measure(video, protocol, weights, args.videos, args.repeats):
                records.append({**record, **environment("cpu")})
                rows.append(_cells(record))
    print_table(rows)
    print(write(records, args.results, "index_cpu"))


def kinetics_like(path: Path, *, seconds: int = 10) -> Path:
    """Make a video of the usual size, rate and codec of Kinetics clips."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"bf": "3", "b-pyramid": "normal", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = 340, 256, "yuv420p"
        times = (Fraction(i, 30) for i in range(seconds * 30))
        for image in draw(random_scene("clockwise", 0), (float(t) for t in times), (340, 256)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode(None))
    return path


def _measure(
    video: VideoFile, protocol: Protocol, weights: Weights, num_videos: int, repeats: int
) -> list[dict[str, Any]]:
    """Return the records of one protocol: stages, then end to end on every backend."""
    facts = probe(video)
    recipe = Recipe(protocol)
    plan = recipe.plan(facts)
    num_clips = len(plan) * protocol.num_crops
    decoder = HostDecoder(HostResizer(protocol.short_side))
    chunks: list[Frames] = list(decoder.frames(facts, plan.wanted, DecodeReport()))
    stages: dict[str, Callable[[], object]] = {
        "probe": lambda: probe(video),
        "decode and resize": lambda: list(decoder.frames(facts, plan.wanted, DecodeReport())),
        "squeeze": lambda: _squeeze(ClipMaker(plan, protocol, torch.bfloat16), chunks),
    }
    records = [
        {"op": "stage", "protocol": protocol.name, "what": name, "s_a_video": spread(times), "clips": num_clips}
        for name, times in interleaved(stages, repeats=repeats).items()
    ]
    style = RowStyle(weights.labels or (), 5, protocol is FAST)
    runs: dict[str, Callable[[], object]] = {}
    networks: dict[str, Callable[[], object]] = {}
    for name, backend in _backends(weights, protocol):
        batch = torch.zeros((CPU_BATCH, 48, protocol.crop_size, protocol.crop_size), dtype=backend.dtype)
        networks[name] = lambda backend=backend, batch=batch: backend.run(batch)  # type: ignore[misc]
        runs[name] = lambda backend=backend: _index(backend, recipe, style, video, num_videos)  # type: ignore[misc]
    alone = {
        name: spread(times)["median"] / CPU_BATCH for name, times in interleaved(networks, repeats=repeats).items()
    }
    ends = {name: spread(times, 1 / num_videos) for name, times in interleaved(runs, repeats=repeats).items()}
    for name, seconds in ends.items():
        records.append(
            {
                "op": "end to end",
                "protocol": protocol.name,
                "what": name,
                "s_a_video": seconds,
                "clips": num_clips,
                "clips_per_s": round(num_clips / seconds["median"], 2),
                "x_realtime": round(facts.duration_s / seconds["median"], 2),
                "baseline_over_this": round(ends[BASELINE]["median"] / seconds["median"], 3),
                "percent_of_limit": round(100 * alone[name] * num_clips / seconds["median"], 1),
                "network_alone_ms_a_clip": round(1000 * alone[name], 2),
            }
        )
    return records


def _backends(weights: Weights, protocol: Protocol) -> list[tuple[str, Backend]]:
    found: list[tuple[str, Backend]] = [(BASELINE, OfficialBackend(weights.model, "cpu"))]
    for name in BACKENDS:
        for precision in PRECISIONS:
            try:
                backend = load_backend(
                    name,
                    weights.model,
                    device="cpu",
                    precision=precision,
                    batch_size=CPU_BATCH,
                    size=protocol.crop_size,
                )
                found.append((f"{name} {precision}", backend))
            except BackendError as error:
                print(f"{name} {precision}: skipped, {error}")
    return found


def _squeeze(maker: ClipMaker, chunks: list[Frames]) -> list[View]:
    views = [view for frames in chunks for view in maker.add(frames)]
    return [*views, *maker.finish()]


def _index(backend: Backend, recipe: Recipe, style: RowStyle, video: VideoFile, num_videos: int) -> None:
    worker = Worker(backend, recipe, style, batch_size=CPU_BATCH, num_decoders=2)
    results = list(worker.label([video] * num_videos))
    assert len(results) == num_videos
    assert all(result.failure is None for result in results)


def _cells(record: dict[str, Any]) -> tuple[str, ...]:
    seconds = [f"{record['s_a_video'][name]:.3f}" for name in ("median", "p20", "p80")]
    rest = [record.get(name) for name in ("clips_per_s", "x_realtime", "baseline_over_this", "percent_of_limit")]
    return (record["protocol"], record["what"], *seconds, *("" if r is None else f"{r:.1f}" for r in rest))


if __name__ == "__main__":
    main()
