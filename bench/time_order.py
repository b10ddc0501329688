"""Does a network see time? Its accuracy on clips as they are, on their frames shuffled, and on one frame repeated.

    python -m bench.time_order LIST [--weights motions] [--results bench/results]

What is left of the accuracy when the order is gone is what appearance, and how much changes, tell. With the motions
data set, 12 of its 16 classes are pairs that differ in the order of time alone: no network that sees sets of frames can
be right in more than 10 of 16 videos on average.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bench.measure import environment, print_table, write
from sqt_fast.network.protocols import find_protocol
from sqt_fast.network.weights import load_weights
from sqt_fast.train.clip_source import ClipSource
from sqt_fast.train.lists import read_list
from sqt_fast.train.loader import ClipLoader, open_clips
from sqt_fast.train.recipes import RECIPES
from sqt_fast.video.sampling import NUM_FRAMES

BATCH = 16


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", type=Path)
    parser.add_argument("--weights", default="motions")
    parser.add_argument("--results", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    weights = load_weights(args.weights)
    assert weights.labels is not None
    videos = read_list(args.list, names=weights.labels)
    protocol = find_protocol("single", args.weights)
    recipe = replace(RECIPES["motions"], short_side=protocol.short_side, crop_size=protocol.crop_size)
    source = ClipSource(videos, recipe, BATCH, training=False)
    loader = ClipLoader(source, open_clips(device_id=None, num_workers=1, num_threads=1))
    rng = torch.Generator().manual_seed(0)
    orders: dict[str, Callable[[], Tensor]] = {
        "in order": lambda: torch.arange(NUM_FRAMES),
        "backwards": lambda: torch.arange(NUM_FRAMES).flip(0),
        "shuffled": lambda: torch.randperm(NUM_FRAMES, generator=rng),
        "one frame": lambda: torch.full((NUM_FRAMES,), NUM_FRAMES // 2),
    }
    right = dict.fromkeys(orders, 0)
    with torch.inference_mode():
        for batch in loader:
            clips = batch.clips.view(len(batch.labels), 3, NUM_FRAMES, *batch.clips.shape[2:])
            for name, order in orders.items():
                changed = torch.stack([clip[:, order()] for clip in clips])
                right[name] += int((weights.model(changed).argmax(1) == batch.labels).sum())
    loader.close()
    accuracy = {name: round(count / len(videos), 4) for name, count in right.items()}
    record = {"op": "time_order", "weights": args.weights, "sha256": weights.sha256, "videos": len(videos)}
    print_table([("frames", "top-1"), *((name, f"{value:.2%}") for name, value in accuracy.items())])
    print(write([{**record, "top1": accuracy, **environment("cpu")}], args.results, "time_order_cpu"))


if __name__ == "__main__":
    main()
