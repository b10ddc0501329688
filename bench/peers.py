"""Who decodes: ours, its peers and the floor, each behind one function and each in a process of its own.

    python -m bench.peers PROVIDER CORE

reads jobs from stdin, one JSON object a line, and answers in kind. CORE is the only core it may use, -1 for all.
Everyone opens the file, decodes the wanted frames to (F, H, W, 3) uint8 RGB, a few at a time so that memory is bounded,
and hands every chunk to ``finish``, which leaves it as it is or resizes it.
"""

import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bench import reason

Pixels = Any  # (F, H, W, 3) uint8: an array, or a tensor on a GPU
Finish = Callable[[Pixels], Pixels]

SHORT_SIDE = 256
SAMPLE_STEP = 8  # every 8th pixel of every 8th row is compared


@dataclass(frozen=True)
class Job:
    """wanted: frame numbers, ascending."""

    path: str
    wanted: list[int]
    num_threads: int
    chunk_frames: int

    def chunks(self) -> Iterator[list[int]]:
        """Yield the wanted numbers, ``chunk_frames`` at a time."""
        numbers = iter(self.wanted)
        while chunk := list(islice(numbers, self.chunk_frames)):
            yield chunk


Decode = Callable[[Job, Finish], Iterator[Pixels]]


def ours(job: Job, finish: Finish) -> Iterator[Pixels]:
    """sqt-fast on the host. It chooses its chunks itself; one buffer serves them all, as in its own processes."""
    from sqt_fast.video.archive import find_videos
    from sqt_fast.video.cpu_decoder import CpuDecoder, DecodeReport
    from sqt_fast.video.reader import PacketReader
    from sqt_fast.video.segments import plan_segments

    (video,) = find_videos([job.path])
    facts, reader = PacketReader.probing(video)
    decoder = CpuDecoder(cache(lambda shape: np.empty(shape, np.uint8)))
    if job.num_threads > 1:
        reader.close()
        reader = PacketReader(facts.source, num_threads=job.num_threads)
    with reader:
        for segment in plan_segments(facts, np.array(job.wanted, np.int64)):
            for frames in decoder.frames(reader, segment, DecodeReport()):
                yield finish(frames.images)


def ours_cuda(job: Job, finish: Finish) -> Iterator[Pixels]:
    """sqt-fast on NVDEC: segments are remuxed one by one and decoded together, at full size."""
    from sqt_fast.video.archive import find_videos
    from sqt_fast.video.reader import PacketReader
    from sqt_fast.video.remux import remux
    from sqt_fast.video.segments import Segment, plan_segments

    (video,) = find_videos([job.path])
    facts, reader = PacketReader.probing(video)
    route = _gpu_route(min(facts.source.width, facts.source.height))
    one_at_a_time = threading.Lock()

    def decode(segment: Segment) -> Any:
        with one_at_a_time:
            data = remux(reader, segment)
        return route.decode(facts, segment, data, is_uncropped=False)

    segments = plan_segments(facts, np.array(job.wanted, np.int64), max_wanted=route.max_wanted(facts))
    with reader, ThreadPoolExecutor(route.num_threads) as pool:
        yield from map(finish, pool.map(decode, segments))


@cache
def _gpu_route(short_side: int) -> Any:
    from sqt_fast.engine.gpu_route import GpuRoute
    from sqt_fast.engine.segment_decoder import SegmentDecoder, gpu_pipelines

    return GpuRoute(SegmentDecoder(gpu_pipelines(short_side, device_id=0)), {})


def floor(job: Job, finish: Finish) -> Iterator[Pixels]:  # noqa: ARG001 - there is nothing to finish
    """Decode up to the last wanted frame and convert none: the limit of everyone who decodes every frame."""
    for _ in _pictures(job):
        yield from ()


def pyav(job: Job, finish: Finish) -> Iterator[Pixels]:
    """Decode every frame with PyAV up to the last wanted one, convert the wanted ones."""
    places = {number: place for place, number in enumerate(job.wanted)}
    buffer, filled = None, 0
    for number, frame in enumerate(_pictures(job)):
        if number not in places:
            continue
        image = frame.to_ndarray(format="rgb24")
        if buffer is None:
            buffer = np.empty((job.chunk_frames, *image.shape), np.uint8)
        buffer[filled] = image
        filled += 1
        if filled == len(buffer) or number == job.wanted[-1]:
            yield finish(buffer[:filled])
            filled = 0


def _pictures(job: Job) -> Iterator[Any]:
    import av

    with av.open(job.path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO" if job.num_threads > 1 else "NONE"
        stream.codec_context.thread_count = job.num_threads
        for number, frame in enumerate(container.decode(stream)):
            yield frame
            if number == job.wanted[-1]:
                return


def decord(job: Job, finish: Finish) -> Iterator[Pixels]:
    """Get batches from decord, through torch, which takes them without a copy."""
    decord = importlib.import_module("decord")
    decord.bridge.set_bridge("torch")
    reader = decord.VideoReader(job.path, ctx=decord.cpu(0), num_threads=job.num_threads)
    for numbers in job.chunks():
        yield finish(reader.get_batch(numbers).numpy())


def _torchcodec(seek_mode: str) -> Decode:
    def frames(job: Job, finish: Finish) -> Iterator[Pixels]:
        for batch in _torchcodec_batches(job, seek_mode=seek_mode, num_ffmpeg_threads=job.num_threads):
            yield finish(batch.numpy())

    return frames


def torchcodec_cuda(job: Job, finish: Finish) -> Iterator[Pixels]:
    """Get batches from torchcodec on NVDEC."""
    return map(finish, _torchcodec_batches(job, seek_mode="exact", device="cuda"))


def _torchcodec_batches(job: Job, **options: Any) -> Iterator[Pixels]:
    import torch

    torch.set_num_threads(1)
    decoders = importlib.import_module("torchcodec.decoders")
    decoder = decoders.VideoDecoder(job.path, dimension_order="NHWC", **options)  # the layout of the contract
    for numbers in job.chunks():
        yield decoder.get_frames_at(numbers).data


def pynvvideocodec(job: Job, finish: Finish) -> Iterator[Pixels]:
    """Get batches from NVIDIA's own decoder. Its frames live until the next batch: stacking copies them."""
    import torch
    from torch.utils.dlpack import from_dlpack

    codec = importlib.import_module("PyNvVideoCodec")
    decoder = codec.SimpleDecoder(
        job.path, gpu_id=0, use_device_memory=True, output_color_type=codec.OutputColorType.RGB
    )
    for numbers in job.chunks():
        yield finish(torch.stack([from_dlpack(frame) for frame in decoder.get_batch_frames_by_index(numbers)]))


FLOOR, OURS, TRUTH = "decode only", "sqt-fast", "pyav"
PROVIDERS: dict[str, dict[str, Decode]] = {
    "cpu": {
        FLOOR: floor,
        OURS: ours,
        TRUTH: pyav,
        "decord": decord,
        "torchcodec exact": _torchcodec("exact"),
        "torchcodec approximate": _torchcodec("approximate"),
    },
    "cuda": {
        OURS: ours_cuda,
        TRUTH: pyav,
        "torchcodec cuda": torchcodec_cuda,
        "PyNvVideoCodec": pynvvideocodec,
    },
}


def main() -> None:
    """Answer jobs until stdin ends."""
    device, name, core = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if core >= 0:  # before anything starts a thread: threads inherit it
        os.sched_setaffinity(0, {core})
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints
    decode = PROVIDERS[device][name]
    finishes: dict[str, Finish] = {}
    for line in sys.stdin:
        job = json.loads(line)
        stage = job.pop("stage")
        try:
            finishes[stage] = finishes.get(stage) or _finish(stage)
            answer = _run(decode, finishes[stage], device, **job)
        except Exception as error:  # noqa: BLE001 - a peer may fail in any way; the record says how
            answer = {"error": reason(error)}
        print(json.dumps(answer), file=answers)


def _run(decode: Decode, finish: Finish, device: str, *, times: int, sample: str | None, **job: Any) -> dict[str, Any]:
    """Do a job ``times`` times. With ``sample``, keep some pixels of every frame there."""
    samples, frames, before_mb = [], 0, _memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak, VmHWM, starts again
    started, cpu_before = time.perf_counter(), time.process_time()
    for _ in range(times):
        for chunk in decode(Job(**job), finish):
            frames += len(chunk)
            if sample:
                few = chunk[:, ::SAMPLE_STEP, ::SAMPLE_STEP]
                samples.append(np.array(few.cpu() if device == "cuda" and hasattr(few, "cpu") else few))
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    ended, cpu_s = time.perf_counter(), time.process_time() - cpu_before
    if sample:
        np.save(sample, np.concatenate(samples) if samples else np.empty((0, 1, 1, 3)))
    memory = {"peak_mb": _memory_mb("VmHWM"), "before_mb": before_mb}
    return {"started": started, "ended": ended, "cpu_s": cpu_s, "frames": frames, **memory}


def _finish(stage: str) -> Finish:
    if stage == "rgb":
        return lambda frames: frames
    import torch

    from sqt_fast.clips.resize import resize

    def resized(frames: Pixels) -> Pixels:
        images: Pixels = resize(torch.from_numpy(frames), SHORT_SIDE).numpy()
        return images

    return resized


def _memory_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) / 1024


if __name__ == "__main__":
    main()
