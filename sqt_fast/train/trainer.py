"""Lightning as a training run wants it: devices, checkpoints that are whole, randomness that can be resumed, logs."""

import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO

from sqt_fast.errors import ConfigError, OutputError, first_line, system_reason
from sqt_fast.files import replace_file

if TYPE_CHECKING:
    from sqt_fast.train.fit import TrainConfig

CHECKPOINTS, LOGS = "checkpoints", "logs"  # folders of a run
RESUME, BEST = "resume", "best"  # its checkpoints
KNOWN_WARNINGS = (  # what Lightning says of things that are meant so, or are its own
    r".*does not have many workers",
    r".*isinstance\(treespec, LeafSpec\)",
    r"The number of training batches .* is smaller than the logging interval",
    r"Checkpoint directory .* exists and is not empty",
    r"It is recommended to use `self.log\(.*sync_dist=True",  # torchmetrics has gathered all ranks' counts
    r"Grad strides do not match bucket view strides",
    r"The ``compute`` method of metric .* was called before the ``update`` method",  # a rank without videos
)


@contextmanager
def known_warnings_ignored() -> Iterator[None]:
    """Let Lightning be silent about what is meant so."""
    with warnings.catch_warnings():
        for known in KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message=known)
        yield


class KeyedRandomness(Callback):
    """Clips and dropout follow from (seed, epoch, batch, rank), so that a resumed run draws what others do."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go to the epoch's clips: Lightning gives loaders their state back only where it resumes within an epoch."""
        del pl_module
        trainer.datamodule.start_epoch(trainer.current_epoch)  # type: ignore[attr-defined]  # ours

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed PyTorch's generators."""
        del pl_module, batch
        key = np.random.SeedSequence([self.seed, trainer.current_epoch, batch_idx, trainer.global_rank])
        torch.manual_seed(int(key.generate_state(1, np.uint64)[0] >> 1))


class OneFile(ModelCheckpoint):
    """Writes its checkpoints to one file, each over the one before."""

    def __init__(self, folder: Path, name: str, **options: Any) -> None:
        super().__init__(folder, name, enable_version_counter=False, **options)

    @property
    def state_key(self) -> str:
        """Return what its state is found by again: also where it is written at other times now."""
        return f"{type(self).__name__} {self.filename}"


class WithinEpoch(OneFile):
    """Writes checkpoints every so many steps, but after the last one of an epoch, whose validation is still to come.

    Resumed there, Lightning would leave that out. The end of the epoch has a checkpoint of its own.
    """

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write one if it is time, and no gradients wait for a step: they would be lost."""
        if not trainer.is_last_batch and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints whole or not at all, also where the system's temporary files are on another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises OutputError."""
        del storage_options
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            replace_file(Path(path), lambda file: file.write(content.getbuffer()))
        except OSError as error:
            reason = system_reason(error)
            raise OutputError(f"{path}: cannot be written ({reason}); the same command goes on when it can") from error


def make_trainer(config: "TrainConfig", *, has_val: bool) -> pl.Trainer:
    """Return the trainer of a run. Raises ConfigError for devices that there are not, and what they cannot do."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    devices, num_nodes = _world(config)
    try:
        return pl.Trainer(
            accelerator="cuda" if config.on_gpu else "cpu",
            devices=devices,
            num_nodes=num_nodes,
            strategy="ddp" if devices * num_nodes > 1 else "auto",
            precision=config.precision,  # type: ignore[arg-type]  # Lightning refuses others itself
            max_epochs=config.recipe.epochs,
            gradient_clip_val=config.recipe.clip_norm or None,
            accumulate_grad_batches=config.accumulate,
            sync_batchnorm=config.sync_norm,
            use_distributed_sampler=False,
            limit_val_batches=None if has_val else 0,
            num_sanity_val_steps=0,
            log_every_n_steps=10,
            plugins=[WholeFiles()],
            callbacks=_callbacks(config, has_val=has_val),
            logger=_loggers(config.output),
            enable_progress_bar=not config.quiet,
            enable_model_summary=False,
            default_root_dir=config.output,
        )
    except (MisconfigurationException, ValueError) as error:
        how = f"--device {config.device or 'auto'}, --devices {devices}, --precision {config.precision}"
        raise ConfigError(f"{how}: cannot be here: {first_line(error)}") from error


def _world(config: "TrainConfig") -> tuple[int, int]:
    """Return how many devices there are on how many machines."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        world, local = (int(os.environ[name]) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        return local, max(world // local, 1)
    devices = config.devices or 1
    if devices > 1 and not config.on_gpu:  # Gloo would take the host name's address, which may lead nowhere
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return devices, 1


def _callbacks(config: "TrainConfig", *, has_val: bool) -> list[Callback]:
    folder = config.output / CHECKPOINTS
    callbacks: list[Callback] = [
        KeyedRandomness(config.seed),
        WithinEpoch(folder, RESUME, every_n_train_steps=config.checkpoint_every),
        OneFile(folder, RESUME, every_n_epochs=1, save_on_train_epoch_end=True),
    ]
    if has_val:
        # Right after validation: the checkpoint at the end of the epoch must know what is the best so far.
        callbacks.append(OneFile(folder, BEST, monitor="val_top1", mode="max", save_on_train_epoch_end=False))
    if config.recipe.ema:
        callbacks.append(EMAWeightAveraging(decay=config.recipe.ema))
    if not config.quiet:
        callbacks.append(RichProgressBar(console_kwargs={"stderr": True}))
    return callbacks


def _loggers(output: Path) -> list[Any]:
    loggers: list[Any] = [CSVLogger(output, name=LOGS)]
    if find_spec("tensorboard") is not None:
        loggers.append(TensorBoardLogger(output, name="tensorboard"))
    return loggers
