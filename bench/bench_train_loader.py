"""Training clips a second from one core: the DALI loader against mmaction2's way, decord and OpenCV in a DataLoader.

    python -m bench.bench_train_loader [--clips 96] [--repeats 5] [--video FILE...] [--device cuda]

Both make the K400 recipe's clips of the same videos: 16 frames, MultiScaleCrop to 224, flip, colour jitter, erasing,
normalised, squeezed. Each runs in a process of its own on one core, in turn; ``decode`` is our decoder alone, the limit
of the first. With ``--device cuda`` the loader feeds training steps of the network, and the share of the time that they
wait is printed.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.clips import CLIPS, make
from bench.measure import environment, print_table, spread, write
from sqt_fast.train.augment import Choices, generator, random_choices
from sqt_fast.train.clip_source import NVDEC_CODECS, ClipSource
from sqt_fast.train.lists import LabelledVideos
from sqt_fast.train.recipes import RECIPES, TrainRecipe

BATCH, GPU_BATCH = 16, 64
RECIPE = RECIPES["k400"]


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--video", type=Path, nargs="+", help="instead of one like Kinetics'")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--results", type=Path, default=Path("bench/results"))
    parser.add_argument("--provider", choices=sorted(PROVIDERS), help=argparse.SUPPRESS)  # in a process of its own
    args = parser.parse_args()
    if args.provider:
        print(json.dumps(_timed(PROVIDERS[args.provider], list(map(str, args.video)), args.clips)))
        return
    with tempfile.TemporaryDirectory() as folder:
        videos = args.video or [make(CLIPS[0], Path(folder))]
        if args.device == "cuda":
            records = [_on_gpu(list(map(str, videos)), args.clips)]
        else:
            records = _in_turn(videos, args.clips, args.repeats)
    about = {"op": "train_loader", "videos": [video.name for video in videos], **environment(args.device)}
    records = [{**record, **about} for record in records]
    names = ("provider", "clips_per_s", "ms_a_clip", "over_peer")
    print_table([names, *(tuple(str(record.get(name, "")) for name in names) for record in records)])
    print(write(records, args.results, f"train_loader_{args.device}"))


def _in_turn(videos: list[Path], clips: int, repeats: int) -> list[dict[str, Any]]:
    seconds: dict[str, list[float]] = {name: [] for name in PROVIDERS}
    for _ in range(repeats):
        for name, runs in seconds.items():
            options = ["--provider", name, "--clips", str(clips), "--video", *map(str, videos)]
            done = subprocess.run(
                [sys.executable, "-m", __spec__.name, *options], capture_output=True, text=True, check=False
            )
            if done.returncode:
                print(f"{name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            else:
                runs.append(json.loads(done.stdout.splitlines()[-1]))
    measured = {name: spread([s / clips for s in runs]) for name, runs in seconds.items() if runs}
    peer = measured.get("decord + OpenCV")
    return [
        {
            "provider": name,
            "clips_per_s": round(1 / each["median"], 1),
            "ms_a_clip": {key: round(1000 * value, 2) for key, value in each.items()},
            **({"over_peer": round(peer["median"] / each["median"], 2)} if peer else {}),
            "recipe": RECIPE.name,
            "cores": 1,
        }
        for name, each in measured.items()
    ]


def _timed(provider: "Callable[[list[str]], Iterator[int]]", videos: list[str], clips: int) -> float:
    """Return the seconds that ``clips`` take on one core, after a batch for warming up."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
    batches = provider(videos)
    next(batches)
    started, made = time.perf_counter(), 0
    while made < clips:
        made += next(batches)
    return (time.perf_counter() - started) * clips / made


def _source(videos: list[str]) -> ClipSource:
    many = LabelledVideos(tuple(videos) * 1000, (0,) * (1000 * len(videos)), ("any",))
    return ClipSource(many, RECIPE, BATCH)


def _ours(videos: list[str]) -> Iterator[int]:
    from sqt_fast.train.loader import ClipLoader, open_clips

    for batch in ClipLoader(_source(videos), open_clips(device_id=None, num_workers=0, num_threads=1)):
        yield len(batch.labels)


def _decode(videos: list[str]) -> Iterator[int]:
    source = _source(videos)
    for number in range(len(source.videos)):
        source.clip(number)
        yield 1


def _peer(videos: list[str]) -> Iterator[int]:
    """mmaction2's pipeline, its operations by OpenCV and NumPy, in PyTorch's DataLoader."""
    import cv2
    from torch.utils.data import DataLoader

    cv2.setNumThreads(0)
    for batch in DataLoader(_PeerClips(videos), batch_size=BATCH):  # type: ignore[arg-type]
        yield len(batch)


class _PeerClips:
    """A data set of clips, each by decord and OpenCV."""

    def __init__(self, videos: list[str]) -> None:
        self.videos = videos

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        decord = importlib.import_module("decord")
        reader = decord.VideoReader(self.videos[index % len(self.videos)], num_threads=1)
        height, width, _ = reader[0].shape
        choices = random_choices(RECIPE, generator(0, 0, index), len(reader), (height, width))
        frames = reader.get_batch(choices.frames.tolist()).asnumpy()
        return _changed(frames, choices, RECIPE)


def _changed(frames: Any, choices: Choices, recipe: TrainRecipe) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return frames (16, H, W, 3) as the network wants them, (48, S, S), by mmaction2's steps."""
    import cv2

    from sqt_fast.kernels.squeeze_host import MEAN, STD

    _, height, width, _ = frames.shape
    scale = recipe.short_side / min(height, width)
    size = int(width * scale + 0.5), int(height * scale + 0.5)
    top, left, bottom, right = (choices.box * np.array([size[1], size[0]] * 2)).astype(int).tolist()
    side = recipe.crop_size
    brightness, contrast, saturation, hue = choices.jitter.tolist()
    shift = np.roll(np.arange(180, dtype=np.uint8), -round(hue / 2))
    table = np.concatenate([shift, np.zeros(76, np.uint8)])
    clip = np.empty((len(frames), side, side, 3), np.float32)
    for frame, target in zip(frames, clip, strict=True):
        image = cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR)
        image = cv2.resize(image[top:bottom, left:right], (side, side), interpolation=cv2.INTER_LINEAR)
        if choices.flip:
            image = cv2.flip(image, 1)
        image = cv2.convertScaleAbs(image, alpha=brightness)
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        image = cv2.convertScaleAbs(image, alpha=contrast, beta=(1 - contrast) * float(grey.mean()))
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        image = cv2.addWeighted(image, saturation, grey, 1 - saturation, 0)
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = cv2.LUT(hsv[..., 0], table)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        y, x, h, w = (round(part * side) for part in choices.erased.tolist())
        if h:
            image[y : y + h, x : x + w] = np.random.default_rng(choices.noise).integers(0, 256, (h, w, 3), np.uint8)
        np.subtract(image, np.array(MEAN, np.float32), out=target)
        target /= np.array(STD, np.float32)
    return np.ascontiguousarray(clip.transpose(3, 0, 1, 2)).reshape(-1, side, side)


PROVIDERS: "dict[str, Callable[[list[str]], Iterator[int]]]" = {
    "sqt-fast": _ours,
    "decord + OpenCV": _peer,
    "decode": _decode,
}


def _on_gpu(videos: list[str], clips: int) -> dict[str, Any]:
    """Return the rate of training steps with the loader, and of the steps alone, on the first GPU."""
    import torch

    from sqt_fast.train.initial import new_network
    from sqt_fast.train.loader import ClipLoader, open_clips

    source = replace(_source(videos), codecs=NVDEC_CODECS, batch_size=GPU_BATCH)
    opened = open_clips(device_id=0, num_workers=min(os.cpu_count() or 1, 8), num_threads=4)
    loader = ClipLoader(source, opened)
    model = new_network(RECIPE, 400, 0).cuda().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step(pixels: torch.Tensor, labels: torch.Tensor) -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(pixels), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    batches = iter(loader)
    first = next(batches)
    rates, steps = {}, max(clips // GPU_BATCH, 4)
    for name in ("steps_alone", "with_loader"):
        for _ in range(3):
            step(first.clips, first.labels)
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(steps):
            batch = first if name == "steps_alone" else next(batches)
            step(batch.clips, batch.labels)
        torch.cuda.synchronize()
        rates[name] = steps * GPU_BATCH / (time.perf_counter() - started)
    loader.close()
    return {
        "provider": "sqt-fast",
        "clips_per_s": round(rates["with_loader"], 1),
        "steps_alone_per_s": round(rates["steps_alone"], 1),
        "waits_percent": round(100 * max(1 - rates["with_loader"] / rates["steps_alone"], 0), 1),
    }


if __name__ == "__main__":
    main()
