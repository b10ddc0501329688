"""Lightning as a run sets it up: devices, files, and what it refuses."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("pytorch_lightning", reason="Lightning trains: pip install 'sqt-fast[train]'")

import warnings
from dataclasses import replace

from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import CSVLogger

from sqt_fast.errors import ConfigError, OutputError
from sqt_fast.train.fit import TrainConfig
from sqt_fast.train.trainer import (
    KeyedRandomness,
    WholeFiles,
    WithinEpoch,
    known_warnings_ignored,
    make_trainer,
)
from tests.training import TINY


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Undo what is set for Gloo, and Lightning's idea of which process this is."""
    before, rank = dict(os.environ), rank_zero_only.rank  # type: ignore[attr-defined]
    yield
    rank_zero_only.rank = rank  # type: ignore[attr-defined]
    os.environ.clear()
    os.environ.update(before)


def config(output: Path, **settings: Any) -> TrainConfig:
    return TrainConfig(**{"output": output, "recipe": TINY, "device": "cpu", "quiet": True, **settings})


def test_what_lightning_is_told(tmp_path: Path) -> None:
    recipe = replace(TINY, epochs=7, clip_norm=3.0)
    trainer = make_trainer(config(tmp_path, recipe=recipe, accumulate=3, precision="bf16-mixed"), has_val=True)
    assert (trainer.max_epochs, trainer.gradient_clip_val, trainer.accumulate_grad_batches) == (7, 3.0, 3)
    assert (trainer.precision, trainer.world_size, trainer.num_sanity_val_steps) == ("bf16-mixed", 1, 0)
    assert trainer.limit_val_batches == 1.0
    assert make_trainer(config(tmp_path), has_val=False).limit_val_batches == 0
    unclipped = make_trainer(config(tmp_path, recipe=replace(TINY, clip_norm=0.0)), has_val=False)
    assert unclipped.gradient_clip_val is None
    assert list(tmp_path.iterdir()) == []


def test_callbacks(tmp_path: Path) -> None:
    def kinds(**settings: Any) -> list[str]:
        callbacks = make_trainer(config(tmp_path, **settings), has_val=settings.pop("val", False)).callbacks  # type: ignore[attr-defined]
        return [type(callback).__name__ for callback in callbacks]

    assert kinds() == ["KeyedRandomness", "WithinEpoch", "OneFile"]
    assert "EMAWeightAveraging" in kinds(recipe=replace(TINY, ema=0.9))
    assert "RichProgressBar" in kinds(quiet=False)
    callbacks = make_trainer(config(tmp_path, checkpoint_every=7), has_val=True).callbacks  # type: ignore[attr-defined]
    files = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
    assert [f"{callback.dirpath}/{callback.filename}" for callback in files] == [
        f"{tmp_path}/checkpoints/{name}" for name in ("resume", "resume", "best")
    ]
    assert len({callback.state_key for callback in files}) == 3
    assert files[0].state_key == WithinEpoch(tmp_path, "resume", every_n_train_steps=9).state_key
    bar = make_trainer(config(tmp_path, quiet=False), has_val=True).progress_bar_callback
    assert isinstance(bar, RichProgressBar)
    assert bar._console_kwargs == {"stderr": True}
    assert EMAWeightAveraging not in [type(callback) for callback in callbacks]


def test_logs_are_csv_and_tensorboard_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    loggers = make_trainer(config(tmp_path), has_val=False).loggers
    assert [type(logger).__name__ for logger in loggers] == ["CSVLogger", "TensorBoardLogger"]
    monkeypatch.setattr("sqt_fast.train.trainer.find_spec", lambda name: None)
    (logger,) = make_trainer(config(tmp_path), has_val=False).loggers
    assert isinstance(logger, CSVLogger)
    assert logger.log_dir == f"{tmp_path}/logs/version_0"


# Devices -------------------------------------------------------------------------------------------------------------


def test_several_devices(tmp_path: Path) -> None:
    trainer = make_trainer(config(tmp_path, devices=2), has_val=False)
    assert (trainer.world_size, type(trainer.strategy).__name__) == (2, "DDPStrategy")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"


def test_one_device_needs_no_network(tmp_path: Path) -> None:
    os.environ.pop("GLOO_SOCKET_IFNAME", None)
    assert type(make_trainer(config(tmp_path), has_val=False).strategy).__name__ == "SingleDeviceStrategy"
    assert "GLOO_SOCKET_IFNAME" not in os.environ


def test_torchrun_says_how_many(tmp_path: Path) -> None:
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "1",
        "WORLD_SIZE": "6",
        "LOCAL_WORLD_SIZE": "3",
        "RANK": "4",
        "LOCAL_RANK": "1",
        "GROUP_RANK": "1",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }
    trainer = make_trainer(config(tmp_path, devices=1), has_val=False)
    assert (trainer.world_size, trainer.num_devices, trainer.num_nodes, trainer.global_rank) == (6, 3, 2, 4)
    assert not trainer.is_global_zero


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        make_trainer(config(tmp_path, device="cuda"), has_val=False)
    assert str(caught.value).startswith("--device cuda, --devices 1, --precision 32-true: cannot be here: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sync_norm": True}, "--sync-norm: batch norms are shared by GPUs only; leave it out on CPUs"),
        ({"seed": -1}, "--seed -1: expected 0 to 4294967295"),
        ({"seed": 1 << 32}, "--seed 4294967296: expected 0 to 4294967295"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_for(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, **settings)
    assert str(caught.value) == said


# Parts ---------------------------------------------------------------------------------------------------------------


def at(epoch: int, rank: int = 0) -> Any:
    gone_to: list[int] = []
    datamodule = SimpleNamespace(start_epoch=gone_to.append, gone_to=gone_to)
    return SimpleNamespace(current_epoch=epoch, global_rank=rank, datamodule=datamodule)


def test_dropout_follows_from_the_place_in_the_run() -> None:
    def drawn(seed: int, epoch: int, batch: int, rank: int = 0) -> tuple[float, ...]:
        KeyedRandomness(seed).on_train_batch_start(at(epoch, rank), None, None, batch)  # type: ignore[arg-type]
        return tuple(torch.rand(4).tolist())

    places = [(s, e, b, r) for s in (0, 1) for e in (0, 1) for b in (0, 1) for r in (0, 1)]
    numbers = [drawn(*place) for place in places]
    assert len(set(numbers)) == 16
    assert [drawn(*place) for place in places] == numbers


def test_clips_follow_the_epoch() -> None:
    trainer = at(5)
    KeyedRandomness(0).on_train_epoch_start(trainer, None)  # type: ignore[arg-type]
    assert trainer.datamodule.gone_to == [5]


@pytest.mark.parametrize(
    ("batch", "accumulate", "is_last", "written"),
    [(1, 1, False, True), (1, 1, True, False), (0, 2, False, False), (1, 2, False, True), (4, 2, True, False)],
    ids=["a step", "the last", "gradients wait", "the second of two", "the last, alone"],
)
def test_when_checkpoints_are_written(
    batch: int, accumulate: int, is_last: bool, written: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(ModelCheckpoint, "on_train_batch_end", lambda self, *args: asked.append(args[-1]))
    trainer: Any = SimpleNamespace(is_last_batch=is_last, accumulate_grad_batches=accumulate)
    nothing: Any = None
    WithinEpoch(tmp_path, "x", every_n_train_steps=1).on_train_batch_end(trainer, nothing, nothing, nothing, batch)
    assert asked == ([batch] if written else [])


def test_checkpoints_are_whole_or_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "x.ckpt"
    files = WholeFiles()
    files.save_checkpoint({"a": torch.arange(3)}, path)
    assert torch.load(path, weights_only=True)["a"].tolist() == [0, 1, 2]

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match=r"x\.ckpt: cannot be written \(no space left on device\); the same command"):
        files.save_checkpoint({"a": torch.arange(4)}, str(path))
    assert torch.load(path, weights_only=True)["a"].tolist() == [0, 1, 2]
    assert [found.name for found in path.parent.iterdir()] == ["x.ckpt"]


def test_other_warnings_are_heard() -> None:
    with known_warnings_ignored():
        warnings.warn("The number of training batches (1) is smaller than the logging interval", stacklevel=1)
        with pytest.warns(UserWarning, match="something else"):
            warnings.warn("something else", stacklevel=1)
