"""The clips of a run as Lightning wants them: a loader for training and one for validation, for this rank."""

import logging
import os
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch

from sqt_fast.pipelines.routing import why_no_gpu_decoder
from sqt_fast.train.clip_source import NVDEC_CODECS, ClipSource
from sqt_fast.train.lists import LabelledVideos
from sqt_fast.train.loader import Batch, ClipLoader, open_clips
from sqt_fast.train.recipes import TrainRecipe

log = logging.getLogger(__name__)

MAX_WORKERS = 8


@dataclass(frozen=True)
class Lists:
    """Videos to train with, and videos to validate with, if any. Both have the same class names."""

    train: LabelledVideos
    val: LabelledVideos | None


class ClipData(pl.LightningDataModule):
    """Opens the loaders. workers: processes that read and decode, None for as many as suit; 0 for none."""

    def __init__(self, lists: Lists, recipe: TrainRecipe, *, seed: int, workers: int | None, on_gpu: bool) -> None:
        super().__init__()
        self.lists, self.recipe, self.seed, self.workers, self.on_gpu = lists, recipe, seed, workers, on_gpu
        self.loaders: list[ClipLoader] = []
        self.codecs = _decoded_on_gpu() if on_gpu else frozenset()

    def train_dataloader(self) -> ClipLoader:
        """Return the loader of random clips."""
        return self._loader(self.lists.train, training=True)

    def start_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch of training, wherever the loader is."""
        for loader in self.loaders:
            if loader.source.training:
                loader.start_epoch(epoch)

    def val_dataloader(self) -> Any:
        """Return the loader of the middle clip of every video; none without a list."""
        return [] if self.lists.val is None else self._loader(self.lists.val, training=False)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move what is not there yet."""
        del dataloader_idx
        return Batch(batch.clips.to(device), batch.labels.to(device), batch.items)

    def close(self) -> None:
        """Stop the loaders' processes."""
        for loader in self.loaders:
            loader.close()

    @property
    def failures(self) -> dict[str, str]:
        """Path -> reason, of the videos that could not be read in this process."""
        return {path: reason for loader in self.loaders for path, reason in loader.failures.items()}

    def _loader(self, videos: LabelledVideos, *, training: bool) -> ClipLoader:
        trainer = self.trainer
        assert trainer is not None
        source = ClipSource(
            videos,
            self.recipe,
            self.recipe.batch_size,
            seed=self.seed,
            training=training,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            codecs=self.codecs,
        )
        share = max((os.cpu_count() or 1) // trainer.world_size, 1)
        workers = self.workers
        if workers is None:
            workers = min(share, MAX_WORKERS) if self.on_gpu else max(share // 2, 1)
        device_id = trainer.strategy.root_device.index if self.on_gpu else None
        opened = open_clips(device_id=device_id, num_workers=workers, num_threads=max(share // 4, 1))
        loader = ClipLoader(source, opened)
        self.loaders.append(loader)
        return loader


def _decoded_on_gpu() -> frozenset[str]:
    if (reason := why_no_gpu_decoder()) is None:
        return NVDEC_CODECS
    log.warning("videos are decoded by the host: %s", reason)
    return frozenset()
