"""The network as it is trained: loss, groups of the optimiser, modes, and what a validation counts."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("pytorch_lightning", reason="Lightning trains: pip install 'sqt-fast[train]'")

import pytorch_lightning as pl

from sqt_fast.errors import ConfigError
from sqt_fast.evaluate.metrics import measure
from sqt_fast.train.initial import new_network
from sqt_fast.train.loader import Batch
from sqt_fast.train.mix import mixed
from sqt_fast.train.module import ClipClassifier, opposite_classes, validation_in
from sqt_fast.train.recipes import TrainRecipe
from sqt_fast.train.schedule import rate
from sqt_fast.train.trainer import known_warnings_ignored
from tests.training import TINY

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = 7
NAMES = tuple("abcdefg")


def batches(count: int, size: int = 4) -> list[Batch]:
    generator = torch.Generator().manual_seed(2)
    return [
        Batch(
            torch.randn((size, 48, 32, 32), generator=generator),
            torch.randint(0, CLASSES, (size,), generator=generator),
            torch.arange(size) + k * size,
        )
        for k in range(count)
    ]


def module_of(recipe: TrainRecipe = TINY, *, seed: int = 1) -> ClipClassifier:
    torch.manual_seed(0)
    module = ClipClassifier(new_network(recipe, CLASSES, 0), recipe, NAMES, steps_per_epoch=2, seed=seed)
    torch.nn.init.normal_(module.model.get_submodule("fc").get_parameter("weight"), std=0.5)
    return module


class Loader:
    """What Lightning takes for a loader; a list would be several."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


class Recorder(pl.Callback):
    """Remembers losses, rates and modes."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[list[float]] = []
        self.modes: list[set[bool]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))
        norms = [m for m in pl_module.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        self.modes.append({m.training for m in norms})

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.rates.append([group["lr"] for group in optimizer.param_groups])


def fit(module: ClipClassifier, train: list[Batch], val: list[Batch] | None = None, **options: Any) -> Recorder:
    recorder = Recorder()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    with known_warnings_ignored():
        trainer = pl.Trainer(accelerator="cpu", callbacks=[recorder], **{"max_epochs": 1, **quiet, **options})
        trainer.fit(module, Loader(train), Loader(batches(1) if val is None else val))
    return recorder


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_cross_entropy_of_what_was_mixed(smoothing: float) -> None:
    recipe = replace(TINY, dropout=0.0, label_smoothing=smoothing, mixup=0.4, cutmix=1.0)
    module, reference, (batch,) = module_of(recipe, seed=9), module_of(recipe, seed=9), batches(1)
    (loss,) = fit(module, [batch]).losses
    targets = F.one_hot(batch.labels, CLASSES).double()
    rng = np.random.default_rng([9, 0, 0, 0])
    clips, targets = mixed(batch.clips.double(), targets, rng, mixup=0.4, cutmix=1.0)
    logits = reference.model.double().train()(clips)
    smoothed = targets * (1 - smoothing) + smoothing / CLASSES
    truth = -(smoothed * torch.log_softmax(logits, dim=1)).sum(dim=1).mean()
    assert loss == pytest.approx(truth.item(), rel=1e-4)


def test_every_batch_is_mixed_otherwise() -> None:
    """Also those of one step."""
    recipe = replace(TINY, dropout=0.0, mixup=1.0, lr=1e-12)
    same = batches(1) * 4
    losses = fit(module_of(recipe), same, accumulate_grad_batches=2, max_epochs=2).losses
    assert len({round(loss, 5) for loss in losses}) == 8


def test_groups_of_the_optimiser() -> None:
    recipe = replace(TINY, lr=0.02, lr_batch=64, batch_size=4, backbone_lr=0.1, weight_decay=0.008, nesterov=True)
    module = module_of(recipe)
    recorder = fit(module, batches(4), accumulate_grad_batches=2, max_epochs=3)
    (optimizer,) = module.trainer.optimizers
    backbone, head = optimizer.param_groups
    assert {id(p) for p in head["params"]} == {id(p) for p in module.model.get_submodule("fc").parameters()}
    everything = {id(p) for p in module.model.parameters()}
    assert {id(p) for p in backbone["params"]} == everything - {id(p) for p in head["params"]}
    for group in (backbone, head):
        assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 0.008, True)
    full = 0.02 * 8 / 64  # 8 clips a step
    wanted = [[full * 0.1 * rate(recipe, step, 2), full * rate(recipe, step, 2)] for step in range(6)]
    assert np.allclose(recorder.rates, wanted, rtol=1e-9)


def test_a_step_is_that_of_adamw() -> None:
    """The first step of Adam goes lr against the sign of every gradient; decay is apart from it."""
    recipe = replace(TINY, dropout=0.0, lr=0.01, warmup_epochs=0.0, weight_decay=0.5, optimizer="adamw")
    module, reference, (batch,) = module_of(recipe), module_of(recipe), batches(1)
    fit(module, [batch])
    weight, before = (m.model.get_submodule("fc").get_parameter("weight") for m in (module, reference))
    (gradient,) = torch.autograd.grad(F.cross_entropy(reference.model.train()(batch.clips), batch.labels), before)
    clear = gradient.abs() > 1e-4
    assert clear.float().mean() > 0.5
    wanted = before * (1 - 0.01 * 0.5) - 0.01 * gradient.sign()
    torch.testing.assert_close(weight[clear], wanted[clear], rtol=0, atol=2e-5)


def test_opposites_are_seen_both_ways() -> None:
    recipe = replace(TINY, dropout=0.0, opposites=(("a", "c"), ("d", "g")))
    module, reference, (batch,) = module_of(recipe), module_of(recipe), batches(1)
    (loss,) = fit(module, [batch]).losses
    frames = batch.clips.double().view(4, 3, 16, 32, 32)
    both = torch.cat([frames, frames[:, :, list(range(15, -1, -1))]])
    other = {0: 2, 2: 0, 3: 6, 6: 3}
    labels = batch.labels.tolist()
    logits = reference.model.double().train()(both)
    truth = F.cross_entropy(logits, torch.tensor(labels + [other.get(label, label) for label in labels]))
    assert loss == pytest.approx(truth.item(), rel=1e-4)


def test_opposites_are_classes() -> None:
    with pytest.raises(ConfigError, match="opposites a and x: expected two of the classes a, b, c"):
        opposite_classes("abc", (("a", "x"),))


def test_a_step_is_that_of_sgd() -> None:
    """One step by hand: gradients are clipped by their norm, weights decay, and batch norms see the batch."""
    recipe = replace(TINY, dropout=0.0, lr=0.1, warmup_epochs=0.0, weight_decay=0.01, nesterov=False)
    module, reference, (batch,) = module_of(recipe), module_of(recipe), batches(1)
    fit(module, [batch], gradient_clip_val=0.05)
    loss = F.cross_entropy(reference.model(batch.clips), batch.labels)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(reference.model.parameters(), 0.05)
    assert norm > 0.1
    after = dict(module.model.named_parameters())
    for name, parameter in reference.model.named_parameters():
        assert parameter.grad is not None
        wanted = parameter - 0.1 * (parameter.grad + 0.01 * parameter)
        torch.testing.assert_close(after[name], wanted, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(
        module.model.get_buffer("bn1.running_mean"), reference.model.get_buffer("bn1.running_mean")
    )


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_norms_keep_their_statistics(frozen: bool) -> None:
    """Through validation too."""
    module = module_of(replace(TINY, frozen_norm=frozen))
    before = {name: buffer.clone() for name, buffer in module.model.named_buffers()}
    recorder = fit(module, batches(2), batches(1), max_epochs=2)
    assert recorder.modes == [{not frozen}] * 4
    same = [name for name, buffer in module.model.named_buffers() if buffer.equal(before[name])]
    assert (len(same) == len(before)) if frozen else not same
    assert module.model.get_submodule("dropout").training


# Validation ----------------------------------------------------------------------------------------------------------


def validated(module: ClipClassifier, val: list[Batch]) -> dict[str, float]:
    fit(module, batches(1), val)
    assert module.validation is not None
    return module.validation.metrics


def test_a_validation_counts_as_evaluate_does() -> None:
    module = module_of(replace(TINY, lr=1e-12))
    val = batches(5)
    val[2] = Batch(val[2].clips, torch.full_like(val[2].labels, 3), val[2].items)
    val.append(Batch(*(tensor[:1] for tensor in val[0])))
    val.append(Batch(*(tensor[:0] for tensor in val[0])))  # the last one of a rank
    metrics = validated(module, val)
    with torch.inference_mode():
        scores = torch.cat([module.model.eval()(batch.clips) for batch in val if len(batch.labels)]).numpy()
    truth = measure(scores, torch.cat([batch.labels for batch in val]).numpy())
    assert module.validation is not None
    assert np.array_equal(module.validation.matrix.numpy(), truth.confusion[:, :-1])
    wanted = {"val_top1": truth.top1, "val_top5": truth.top5, "val_mean_class": truth.mean_class}
    assert metrics == pytest.approx(wanted, abs=1e-6)
    assert len({round(value, 3) for value in wanted.values()}) == 3
    logged = {name: float(value) for name, value in module.trainer.callback_metrics.items()}
    assert {name: logged[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
    assert logged["lr"] == pytest.approx(1e-12 * 0.1)


def test_each_validation_begins_anew() -> None:
    module = module_of(replace(TINY, lr=1e-12))
    fit(module, batches(1), batches(2), max_epochs=3)
    assert module.validation is not None
    assert module.validation.matrix.sum() == 8


def test_a_validation_of_nothing_is_no_error() -> None:
    empty = [Batch(*(tensor[:0] for tensor in batches(1)[0]))]
    assert validated(module_of(), empty) == {"val_top1": 0.0, "val_top5": 0.0, "val_mean_class": 0.0}


def test_few_classes_have_a_top5() -> None:
    recipe = replace(TINY, lr=1e-12)
    module = ClipClassifier(new_network(recipe, 2, 0), recipe, ("a", "b"), steps_per_epoch=1, seed=0)
    two = [Batch(batch.clips, batch.labels % 2, batch.items) for batch in batches(2)]
    fit(module, two[:1], two)
    assert module.validation is not None
    assert module.validation.metrics["val_top5"] == 1


def test_a_checkpoint_holds_the_validation_before_it() -> None:
    module, checkpoint = module_of(replace(TINY, lr=1e-12)), dict[str, Any]()
    module.on_save_checkpoint(checkpoint)
    assert validation_in(checkpoint) is None
    metrics = validated(module, batches(2))
    module.on_save_checkpoint(checkpoint)
    other = module_of()
    other.on_load_checkpoint(checkpoint)
    assert other.validation is not None
    assert module.validation is not None
    assert other.validation.metrics == metrics
    assert torch.equal(other.validation.matrix, module.validation.matrix)
