"""Index end to end: seconds a video and clips a second, stage by stage, for both protocols.

    python -m bench.bench_index [--video FILE] [--weights k400] [--videos 16] [--repeats 5]

Without ``--video`` it makes one like Kinetics': 10 s, 340x256, 30 frames a second, H.264 with B-frames. Stages are
timed one by one on one thread; the rest is the worker on ``--videos`` copies, decoding beside the network. The baseline
is ``official``, the network as the release runs it (eager, fp32, contiguous, not folded) behind the same decoder. The
limit: the network alone at the same batch size and ``decode only``, the same worker with a network that costs nothing;
on a CPU both want the same cores, so their sum.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import torch
from torch import Tensor

from bench.bench_network import OfficialBackend
from bench.measure import environment, interleaved, print_table, spread, write
from sqt_fast.clips.batches import CpuBatches, View
from sqt_fast.clips.gather import Clip, ClipMaker
from sqt_fast.clips.recipe import Recipe
from sqt_fast.clips.resize import resize
from sqt_fast.config import FAST, OFFICIAL, ClipProtocol
from sqt_fast.engine.decoders import DecoderSetup
from sqt_fast.engine.labelling import Labelling, Task
from sqt_fast.engine.memory import plan_resources
from sqt_fast.errors import BackendError
from sqt_fast.network.backends import Backend, Started, load_backend
from sqt_fast.network.choose import AUTO_PRECISIONS, CPU_BATCH
from sqt_fast.network.registry import BACKENDS
from sqt_fast.network.weights import Weights, load_weights
from sqt_fast.samples.scenes import draw, random_scene
from sqt_fast.table.rows import RowStyle
from sqt_fast.video.archive import VideoFile, find_videos
from sqt_fast.video.cpu_decoder import CpuDecoder, DecodeReport
from sqt_fast.video.probe import Probe
from sqt_fast.video.reader import PacketReader
from sqt_fast.video.sampling import ClipPlan
from sqt_fast.video.scan import probe
from sqt_fast.video.segments import plan_segments

HEADS = ("protocol", "what", "s/video", "p20", "p80", "clips/s", "x realtime", "official/this", "% of limit")
BASELINE, DECODE_ONLY = "official", "decode only"


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path)
    parser.add_argument("--weights", default="random")
    parser.add_argument("--videos", type=int, default=16)
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
    video: VideoFile, protocol: ClipProtocol, weights: Weights, num_videos: int, repeats: int
) -> list[dict[str, Any]]:
    """Return the records of one protocol: stages, then end to end on every backend."""
    facts = probe(video)
    recipe = Recipe(protocol)
    plan = recipe.plan(facts)
    num_clips = len(plan) * protocol.num_crops
    frames = list(_frames(facts, plan))
    images = [(numbers, resize(pixels, protocol.short_side)) for numbers, pixels in frames]
    clips = _clips(plan, protocol, images)
    stages: dict[str, Callable[[], object]] = {
        "probe": lambda: probe(video),
        "decode": lambda: list(_frames(facts, plan)),
        "resize": lambda: [resize(pixels, protocol.short_side) for _, pixels in frames],
        "gather": lambda: _clips(plan, protocol, images),
        "squeeze": lambda: _views(clips, protocol),
    }
    records = [
        {"op": "stage", "protocol": protocol.name, "what": name, "s_a_video": spread(times), "clips": num_clips}
        for name, times in interleaved(stages, repeats=repeats).items()
    ]
    style = RowStyle(weights.labels or (), 5, protocol is FAST)
    backends = _backends(weights, protocol)
    networks = {name: _once(backend, protocol) for name, backend in backends}
    alone = {
        name: spread(times)["median"] / CPU_BATCH for name, times in interleaved(networks, repeats=repeats).items()
    }
    backends.append((DECODE_ONLY, NoNetwork(len(style.labels))))
    runs = {name: _run(backend, recipe, style, video, num_videos) for name, backend in backends}
    ends = {name: spread(times, 1 / num_videos) for name, times in interleaved(runs, repeats=repeats).items()}
    decode_s = ends[DECODE_ONLY]["median"]
    for name, seconds in ends.items():
        network_s = alone.get(name, 0.0) * num_clips
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
                "percent_of_limit": round(100 * (network_s + decode_s) / seconds["median"], 1),
                "network_alone_ms_a_clip": round(1000 * alone.get(name, 0.0), 2),
            }
        )
    return records


class NoNetwork:
    """A backend that costs nothing."""

    dtype = torch.bfloat16

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def start(self, clips: Tensor) -> Started:
        return Started(torch.zeros(len(clips), self.num_classes), torch.zeros(len(clips), 1))

    def release_memory(self) -> None:
        """It holds none."""


def _frames(facts: Probe, plan: ClipPlan) -> Iterator[tuple[list[int], Tensor]]:
    with PacketReader(facts.source) as reader:
        for segment in plan_segments(facts, plan.wanted):
            for frames in CpuDecoder().frames(reader, segment, DecodeReport()):
                yield frames.numbers, torch.from_numpy(frames.images)


def _clips(plan: ClipPlan, protocol: ClipProtocol, images: list[tuple[list[int], Tensor]]) -> list[Clip]:
    intake = ClipMaker(plan, protocol).segment(plan.wanted)
    return [clip for numbers, some in images for clip in intake.add(numbers, some)]


def _views(clips: list[Clip], protocol: ClipProtocol) -> list[View]:
    return [view for clip in clips for view in CpuBatches(protocol, torch.bfloat16).views(clip)]


def _once(backend: Backend, protocol: ClipProtocol) -> Callable[[], object]:
    batch = torch.zeros((CPU_BATCH, 48, protocol.crop_size, protocol.crop_size), dtype=backend.dtype)
    return lambda: backend.start(batch).results()


def _run(backend: Backend, recipe: Recipe, style: RowStyle, video: VideoFile, num_videos: int) -> Callable[[], object]:
    """Return what labels ``num_videos`` copies; its decoders start anew each time, so there should be some."""

    def label() -> None:
        task, setup = Task(recipe, style, CPU_BATCH), DecoderSetup(plan_resources(None))
        results = list(Labelling(backend, task, setup).label([video] * num_videos))
        assert len(results) == num_videos
        assert all(result.failure is None for result in results)

    return label


def _backends(weights: Weights, protocol: ClipProtocol) -> list[tuple[str, Backend]]:
    found: list[tuple[str, Backend]] = [(BASELINE, OfficialBackend(weights.model, "cpu"))]
    for name in BACKENDS:
        for precision in AUTO_PRECISIONS:
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


def _cells(record: dict[str, Any]) -> tuple[str, ...]:
    seconds = [f"{record['s_a_video'][name]:.3f}" for name in ("median", "p20", "p80")]
    rest = [record.get(name) for name in ("clips_per_s", "x_realtime", "baseline_over_this", "percent_of_limit")]
    return (record["protocol"], record["what"], *seconds, *("" if r is None else f"{r:.1f}" for r in rest))


if __name__ == "__main__":
    main()
