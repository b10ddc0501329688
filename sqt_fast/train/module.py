"""The network as Lightning trains it: loss, optimiser, learning rate, metrics."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from sqt_fast.errors import ConfigError
from sqt_fast.network.model import SqueezeTime
from sqt_fast.train.loader import Batch
from sqt_fast.train.mix import mixed
from sqt_fast.train.recipes import TrainRecipe
from sqt_fast.train.schedule import rate


class Validation(NamedTuple):
    """What a validation found. metrics: ``val_top1``, ``val_top5``, and ``val_mean_class``, the mean over the classes
    that have videos, 0 to 1. matrix: (K, K) int64 videos, a row a true class, a column a predicted one.
    """

    metrics: dict[str, float]
    matrix: Tensor


def validation_in(checkpoint: dict[str, Any]) -> Validation | None:
    """Return what the validation before a checkpoint of Lightning's found, None where there was none."""
    return Validation(**checkpoint["validation"]) if "validation" in checkpoint else None


def opposite_classes(names: Sequence[str], opposites: Sequence[tuple[str, str]]) -> Tensor:
    """Return which class each becomes when it is played backwards, (K,) int64. Raises ConfigError for unknown names."""
    other = list(range(len(names)))
    for one, two in opposites:
        if one not in names or two not in names:
            raise ConfigError(f"opposites {one} and {two}: expected two of the classes {', '.join(names)}")
        other[names.index(one)], other[names.index(two)] = names.index(two), names.index(one)
    return torch.tensor(other)


def both_ways(clips: Tensor, labels: Tensor, backwards: Tensor) -> tuple[Tensor, Tensor]:
    """Return clips (2 * B, 48, S, S), those given and the same played backwards, and the labels (2 * B,) of both.

    What a pair of opposites looks like is then the same in every batch, and only the order of time tells them apart.
    """
    reverse = clips.view(len(clips), 3, -1, *clips.shape[2:]).flip(2).flatten(1, 2)
    return torch.cat([clips, reverse]), torch.cat([labels, backwards[labels]])


class ClipClassifier(pl.LightningModule):
    """Trains ``model`` by a recipe.

    names: of the classes. steps_per_epoch: of the optimiser. seed: of mixup and CutMix.
    """

    def __init__(
        self, model: SqueezeTime, recipe: TrainRecipe, names: Sequence[str], *, steps_per_epoch: int, seed: int
    ) -> None:
        super().__init__()
        assert model.config.num_classes is not None
        self.model, self.recipe, self.steps_per_epoch, self.seed = model, recipe, steps_per_epoch, seed
        self.num_classes = model.config.num_classes
        self.top5 = MulticlassAccuracy(self.num_classes, average="micro", top_k=min(5, self.num_classes))
        self.confusion = MulticlassConfusionMatrix(self.num_classes)
        self.validation: Validation | None = None
        self.backwards = opposite_classes(names, recipe.opposites) if recipe.opposites else None

    def on_train_start(self) -> None:
        """Let batch norms keep their statistics where the recipe says so; Lightning leaves modes as they are."""
        if self.recipe.frozen_norm:
            for module in self.model.modules():
                if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        clips, labels = batch.clips, batch.labels
        if self.backwards is not None:
            clips, labels = both_ways(clips, labels, self.backwards.to(labels.device))
        targets = F.one_hot(labels, self.num_classes).to(clips.dtype)
        rng = np.random.default_rng([self.seed, self.current_epoch, batch_idx, self.global_rank])
        clips, targets = mixed(clips, targets, rng, mixup=self.recipe.mixup, cutmix=self.recipe.cutmix)
        logits = self.model(clips.contiguous(memory_format=torch.channels_last))
        loss: Tensor = F.cross_entropy(logits, targets, label_smoothing=self.recipe.label_smoothing)
        self.log("loss", loss, prog_bar=True, on_step=True, on_epoch=False)
        self.log("lr", self.trainer.optimizers[0].param_groups[-1]["lr"], on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a batch; the last one of a rank may be empty."""
        del batch_idx
        if len(batch.labels):
            logits = self.model(batch.clips.contiguous(memory_format=torch.channels_last)).float()
            for metric in (self.top5, self.confusion):
                metric.update(logits, batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Log what was counted, over all ranks."""
        matrix = self.confusion.compute().cpu()
        counts, hits = matrix.sum(dim=1), matrix.diagonal()
        metrics = {
            "val_top1": float(hits.sum() / max(int(counts.sum()), 1)),
            "val_top5": float(self.top5.compute()),
            "val_mean_class": float((hits / counts)[counts > 0].mean()) if counts.any() else 0.0,
        }
        self.validation = Validation(metrics, matrix)
        for name, value in metrics.items():
            self.log(name, value, prog_bar=name == "val_top1")
        self.top5.reset()
        self.confusion.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the last validation found."""
        if self.validation is not None:
            checkpoint["validation"] = self.validation._asdict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back what ``on_save_checkpoint`` kept."""
        self.validation = validation_in(checkpoint)

    def configure_optimizers(self) -> Any:
        """Return the optimiser, with the backbone and the classifier as two groups, and its schedule.

        Every tensor decays, as in the release.
        """
        recipe, head = self.recipe, self.model.get_submodule("fc")
        head_ids = {id(parameter) for parameter in head.parameters()}
        backbone = [parameter for parameter in self.model.parameters() if id(parameter) not in head_ids]
        lr = recipe.lr * self.clips_a_step / recipe.lr_batch
        groups = [{"params": backbone, "lr": lr * recipe.backbone_lr}, {"params": list(head.parameters()), "lr": lr}]
        optimizer: torch.optim.Optimizer
        if recipe.optimizer == "adamw":
            optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=recipe.weight_decay)
        else:
            optimizer = torch.optim.SGD(
                groups, lr=lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
            )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(recipe, step, self.steps_per_epoch))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def clips_a_step(self) -> int:
        """Clips that one step of the optimiser sees, over all devices."""
        return self.recipe.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches
