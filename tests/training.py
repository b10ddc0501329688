"""What tests of training share: a few small videos, a recipe of seconds, and runs of it in this process."""

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from sqt_fast.samples.encoding import SampleSet, make_samples
from sqt_fast.train.lists import LabelledVideos, read_list
from sqt_fast.train.recipes import RECIPES

COUNT = 13
# Every change there is, a network that takes 30 ms a batch, two epochs.
TINY = replace(
    RECIPES["motions"],
    width=0.25,
    pos_dim=(8, 4, 2, 1),
    dropout=0.5,
    short_side=40,
    crop_size=32,
    erase=0.5,
    flip=0.5,
    opposites=(),
    epochs=2,
    warmup_epochs=1.0,
    batch_size=4,
    lr=0.05,
    lr_batch=4,
    optimizer="sgd",
    nesterov=True,
    weight_decay=1e-4,
    clip_norm=40.0,
)
# The same, but for one clip and its centre, unchanged.
PLAIN = replace(TINY, scales=(0.8,), flip=0.0, erase=0.0, jitter=0.0, jitter_hue=0.0)


def make_videos(folder: Path) -> Path:
    """Write small videos of as many kinds, and their list, whose path is returned."""
    samples = make_samples(folder, SampleSet(count=COUNT, seconds=2.0, short_side=64, clean=True))
    rows = [f"{sample.path},{sample.label}" for sample in samples]
    (folder / "train.csv").write_text("\n".join(["path,label", *rows, ""]), encoding="utf-8")
    return folder / "train.csv"


def videos_in(source: Path, count: int | None = None) -> LabelledVideos:
    """Read the list, the first ``count`` of it."""
    videos = read_list(source)
    return replace(videos, paths=videos.paths[:count], labels=videos.labels[:count])


def broken(videos: LabelledVideos, places: Sequence[int], path: Path) -> LabelledVideos:
    """Return the list with files that are none in some places, in ``path``."""
    paths = list(videos.paths)
    for place in places:
        paths[place] = f"{path}/broken-{place}.mp4"
        Path(paths[place]).write_text("no video")
    return replace(videos, paths=tuple(paths))


class Killed(BaseException):
    """The run ended there: nothing of it went on, as if the process had been killed."""


@dataclass(frozen=True)
class Stop:
    """Where a run is stopped: before a batch of an epoch, both from 0, of training or validation."""

    epoch: int
    batch: int
    validating: bool = False

    def here(self) -> None:
        """Stop the run; others do so in other ways."""
        raise Killed


def run(
    output: Path,
    videos: LabelledVideos,
    *,
    val: bool = True,
    stop: Stop | None = None,
    draw: bool = False,
    **settings: Any,
) -> Any:
    """Train on the videos, and validate with the first 6; settings: of ``TrainConfig``. Returns the summary.

    draw: pictures, which take as long as the run.
    """
    from pytorch_lightning.callbacks import Callback

    from sqt_fast.train import fit
    from sqt_fast.train.data import Lists
    from sqt_fast.train.trainer import make_trainer

    class Stopper(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if stop == replace(stop or Stop(0, 0), epoch=trainer.current_epoch, batch=batch_idx, validating=False):
                stop.here()

        def on_validation_batch_start(
            self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
        ) -> None:
            if stop == replace(stop or Stop(0, 0), epoch=trainer.current_epoch, batch=batch_idx, validating=True):
                stop.here()

    def make_stopped(*args: Any, **options: Any) -> Any:
        trainer = make_trainer(*args, **options)
        trainer.callbacks.insert(0, Stopper())  # type: ignore[attr-defined]
        return trainer

    def ignore(*args: Any, **options: Any) -> None:
        pass

    lists = Lists(videos, replace(videos, paths=videos.paths[:6], labels=videos.labels[:6]) if val else None)
    usual = {"output": output, "recipe": TINY, "device": "cpu", "workers": 0, "quiet": True}
    with ExitStack() as patches:
        patches.enter_context(patch("sqt_fast.train.fit.make_trainer", make_stopped))
        for name in () if draw else ("draw_curves", "draw_confusion"):
            patches.enter_context(patch(f"sqt_fast.train.fit.{name}", ignore))
        return fit.train(fit.TrainConfig(**{**usual, **settings}), lists, ignore)


@dataclass(frozen=True)
class Sleep(Stop):
    """Says so and waits to be killed."""

    def here(self) -> None:
        print("here", flush=True)
        time.sleep(600)


def main() -> None:
    """Train until batch 3 of epoch 1 and wait there. Arguments: list and output folder."""
    torch.use_deterministic_algorithms(True)  # as in tests
    torch.set_num_threads(1)
    source, output = map(Path, sys.argv[1:])
    run(output, videos_in(source), stop=Sleep(1, 3), checkpoint_every=2)


if __name__ == "__main__":
    main()
