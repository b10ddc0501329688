"""A training run: from lists and a recipe to weights that ``index`` takes, with everything a resumed run needs."""

import csv
import hashlib
import json
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from sqt_fast import __version__
from sqt_fast.confusion import draw_confusion
from sqt_fast.errors import ConfigError, InterruptedRunError, system_reason
from sqt_fast.files import replace_file
from sqt_fast.network.checkpoint import build, read_checkpoint, save_safetensors
from sqt_fast.network.model import SqueezeTime
from sqt_fast.train.curves import draw_curves
from sqt_fast.train.data import ClipData, Lists
from sqt_fast.train.initial import new_network, start
from sqt_fast.train.module import ClipClassifier, validation_in
from sqt_fast.train.recipes import TrainRecipe
from sqt_fast.train.trainer import BEST, CHECKPOINTS, LOGS, RESUME, known_warnings_ignored, make_trainer

WEIGHTS, SETTINGS, UNREADABLE = "weights.safetensors", "settings.json", "unreadable.csv"
MAX_SEED = (1 << 32) - 1


@dataclass(frozen=True)
class TrainConfig:
    """What a run is told to do, but for its data.

    output: folder of checkpoints, logs and weights. device: ``cpu``, ``cuda`` or None for what there is. devices: how
    many, None for one, or as torchrun says. precision: Lightning's name. accumulate: batches a step of the optimiser.
    sync_norm: batch norms see the batches of all devices. checkpoint_every: steps between checkpoints within an epoch.
    resume: go on where an unfinished run in ``output`` was. Raises ConfigError for what cannot be.
    """

    output: Path
    recipe: TrainRecipe
    seed: int = 0
    device: str | None = None
    devices: int | None = None
    precision: str = "32-true"
    compile: bool = False
    accumulate: int = 1
    sync_norm: bool = False
    checkpoint_every: int = 500
    workers: int | None = None
    resume: bool = True
    quiet: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"--seed {self.seed}: expected 0 to {MAX_SEED}")
        if self.sync_norm and not self.on_gpu:
            raise ConfigError("--sync-norm: batch norms are shared by GPUs only; leave it out on CPUs")

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on CUDA devices."""
        return self.device == "cuda" or (self.device is None and torch.cuda.is_available())


@dataclass(frozen=True)
class TrainSummary:
    """What a run has come to.

    weights: the file for ``index``. metrics: of these weights in their validation, None without one. failures: path ->
    reason, of the videos that could not be read. speaks: whether this process is the first of those of all devices.
    """

    weights: Path
    epochs: int
    metrics: dict[str, float] | None
    failures: dict[str, str]
    speaks: bool = True


def train(config: TrainConfig, lists: Lists, say: Callable[[str], object] = print) -> TrainSummary:
    """Train a network. say: is told what the user should know, a line at a time.

    Raises ConfigError for settings that cannot work or differ from those of the run that is there, CheckpointError for
    weights to start from that do not fit, OutputError where checkpoints cannot be written, InterruptedRunError when
    stopped by Ctrl-C or SIGTERM.
    """
    with known_warnings_ignored():
        trainer = make_trainer(config, has_val=lists.val is not None)
        resumed = _resume_from(config, lists, trainer)
        names = lists.train.names
        if resumed is None:
            begun = start(config.recipe, len(names), config.seed)
            model, account = begun.model, f"starts from {begun.account}"
        else:
            model, account = new_network(config.recipe, len(names), config.seed), f"goes on from {resumed}"
        if trainer.is_global_zero:
            say(f"{len(lists.train)} videos of {len(names)} classes; {account}")
        if config.compile:
            model.compile()
        data = ClipData(lists, config.recipe, seed=config.seed, workers=config.workers, on_gpu=config.on_gpu)
        batches = -(-len(lists.train) // (config.recipe.batch_size * trainer.world_size))
        steps = -(-batches // config.accumulate)
        module = ClipClassifier(model, config.recipe, names, steps_per_epoch=steps, seed=config.seed)
        try:
            _fit(trainer, module, data, resumed)
            return _finish(config, lists, trainer, data)
        finally:
            data.close()


def _fit(trainer: pl.Trainer, module: ClipClassifier, data: ClipData, resumed: Path | None) -> None:
    """Run the loop. Raises InterruptedRunError for Ctrl-C, which Lightning turns into an exit of the program."""
    before = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, data, ckpt_path=None if resumed is None else str(resumed), weights_only=True)
    except SystemExit:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, before)  # Lightning leaves it ignored
        if not trainer.is_global_zero:
            raise  # the first process says it
        epoch = f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
        raise InterruptedRunError(f"stopped in {epoch}; the same command goes on from the last checkpoint") from None


def _resume_from(config: TrainConfig, lists: Lists, trainer: pl.Trainer) -> Path | None:
    """Return the checkpoint to go on from, None to begin. Raises ConfigError where that run was another."""
    path, checkpoints = config.output / SETTINGS, config.output / CHECKPOINTS
    checkpoint = checkpoints / f"{RESUME}.ckpt"
    settings = json.loads(json.dumps(_settings(config, lists, trainer.world_size)))
    try:
        if config.resume and checkpoint.is_file() and path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))["settings"]
            if changed := _changes(before, settings):
                raise ConfigError(
                    f"{config.output}: holds a run of other settings ({'; '.join(changed)}); choose another --out, or "
                    "--resume never"
                )
            return checkpoint
        if trainer.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            for old in (checkpoint, checkpoints / f"{BEST}.ckpt"):
                old.unlink(missing_ok=True)
            content = {"settings": settings, "first_log": len(list((config.output / LOGS).glob("version_*")))}
            replace_file(path, lambda file: file.write(json.dumps(content, indent=1).encode()))
    except (OSError, ValueError, LookupError) as error:
        reason = system_reason(error)
        raise ConfigError(f"output {config.output}: cannot be used ({reason}); choose another folder") from error
    return None


def _settings(config: TrainConfig, lists: Lists, num_devices: int) -> dict[str, Any]:
    """Return what must stay the same for a run to be gone on with, by what it is called."""
    videos = [(Path(path).name, label) for path, label in zip(lists.train.paths, lists.train.labels, strict=True)]
    return asdict(config.recipe) | {
        "seed": config.seed,
        "accumulate": config.accumulate,
        "devices": num_devices,
        "classes": list(lists.train.names),
        "videos": f"{len(videos)}, hash {hashlib.sha256(repr(videos).encode()).hexdigest()[:8]}",
    }


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return in words which settings are others now."""
    return [
        f"{name} {_shown(before.get(name))}, now {_shown(value)}"
        for name, value in now.items()
        if before.get(name) != value
    ]


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _finish(config: TrainConfig, lists: Lists, trainer: pl.Trainer, data: ClipData) -> TrainSummary:
    """Write the weights, the curves, the confusion matrix and what could not be read."""
    failures = _gathered(data.failures)
    output = config.output
    weights = output / WEIGHTS
    if not trainer.is_global_zero:
        return TrainSummary(weights, trainer.current_epoch, None, failures, speaks=False)
    checkpoint = output / CHECKPOINTS / f"{RESUME if lists.val is None else BEST}.ckpt"  # averaged weights are there
    model = build(read_checkpoint(checkpoint), source=str(checkpoint))
    validation = validation_in(torch.load(checkpoint, map_location="cpu", weights_only=True))
    if config.recipe.precise_norm:
        measure_norms(model.to(trainer.strategy.root_device), data, config.recipe.precise_norm)
    metrics = None if validation is None else validation.metrics
    save_safetensors(model, weights, metadata=metadata(config, lists, metrics))
    first_log = json.loads((output / SETTINGS).read_text(encoding="utf-8"))["first_log"]
    draw_curves(output / LOGS, output / "curves.png", first=first_log)
    if validation is not None:
        names, counts = lists.train.names, validation.matrix.numpy()
        replace_file(output / "confusion.png", lambda file: draw_confusion(counts, names, names, file))
    with (output / UNREADABLE).open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        csv.writer(file).writerows([("path", "reason"), *sorted(failures.items())])
    return TrainSummary(weights, trainer.current_epoch, metrics, failures)


def _gathered(failures: dict[str, str]) -> dict[str, str]:
    """Return what the processes of all devices could not read."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return failures
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, failures)
    return {path: reason for part in parts for path, reason in part.items()}


def metadata(config: TrainConfig, lists: Lists, metrics: dict[str, float] | None) -> dict[str, str]:
    """Return what goes into the file with the weights: class names, protocols, and where they come from."""
    recipe = config.recipe
    return {
        "labels": json.dumps(lists.train.names),
        "protocols": json.dumps({"fast": asdict(recipe.fast), "official": asdict(recipe.official)}),
        "recipe": json.dumps(asdict(recipe)),
        "seed": str(config.seed),
        "train_videos": str(len(lists.train)),
        "validation": json.dumps(metrics),
        "sqt_fast": __version__,
    }


def measure_norms(model: SqueezeTime, data: ClipData, num_batches: int) -> None:
    """Measure the statistics of the batch norms anew, as the mean over batches of the training data (precise BN).

    model: on the device of the clips. Those of the first process of several are taken.
    """
    torch.optim.swa_utils.update_bn((batch.clips for batch in islice(data.train_dataloader(), num_batches)), model)
