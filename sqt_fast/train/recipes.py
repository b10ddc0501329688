"""How networks are trained: the published hyper-parameters, frozen, each of which ``--set name=value`` replaces.

Sources: the configs of the SqueezeTime release (K400, HMDB51) and mmaction2, of which those are.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, get_type_hints

from sqt_fast.config import FAST, OFFICIAL, OFFICIAL_HMDB51, ClipProtocol
from sqt_fast.errors import ConfigError
from sqt_fast.samples.scenes import PAIRS

MIN_CROP = 32  # the network halves it five times
_CHANCES = ("dropout", "flip", "jitter", "jitter_hue", "erase", "label_smoothing")
_SHARES = ("momentum", "ema", "warmup_lr", "final_lr")
_AMOUNTS = ("max_scale_gap", "mixup", "cutmix", "backbone_lr", "weight_decay", "clip_norm", "warmup_epochs")
FIXED = ("name", "official", "opposites")  # no text says them


@dataclass(frozen=True)
class TrainRecipe:
    """Everything that decides what a network becomes, given its data and a seed.

    short_side, crop_size: pixels, as in ``ClipProtocol``; the network is trained with crops of several ``scales`` of
    the short side (MultiScaleCrop), whose width and height are at most ``max_scale_gap`` scales apart, resized to
    crop_size. flip, erase: how often, 0 to 1. jitter: by how much brightness, contrast and saturation change at most,
    as parts; jitter_hue: in turns. opposites: pairs of class names of which one is the other played backwards; where
    there are some, every clip is seen backwards too, with the other's label, or its own if it has no opposite. mixup,
    cutmix: alpha of the Beta distribution, 0 for never.

    lr: learning rate for a batch of ``lr_batch`` clips over all devices; it is scaled in proportion. backbone_lr: part
    of it that the backbone gets. clip_norm: of the gradient, 0 for any. warmup_epochs: from warmup_lr (a part of lr),
    linearly. optimizer: ``sgd``, or ``adamw``, which takes no momentum. schedule: ``cosine`` to final_lr (a part of
    lr), or ``steps``, times 0.1 at each of ``milestones`` (epochs). ema: decay of the average of weights that is
    validated and kept, 0 for none. frozen_norm: batch norms keep their statistics. precise_norm: in the end, measure
    them anew over so many batches.

    init: what to start from: a name of published weights, a path, or ``none``. official: the test protocol.
    """

    name: str
    depth: int = 50
    width: float = 1.0
    pos_dim: tuple[int, int, int, int] = (56, 28, 14, 7)
    dropout: float = 0.5
    init: str = "none"
    short_side: int = 256
    crop_size: int = 224
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66, 0.5)
    max_scale_gap: int = 1
    flip: float = 0.5
    jitter: float = 0.5
    jitter_hue: float = 0.1
    erase: float = 0.25
    opposites: tuple[tuple[str, str], ...] = ()
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    epochs: int = 100
    batch_size: int = 64
    lr: float = 0.015
    lr_batch: int = 64
    backbone_lr: float = 1.0
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 7e-5
    clip_norm: float = 40.0
    warmup_epochs: float = 8.0
    warmup_lr: float = 0.1
    schedule: str = "cosine"
    final_lr: float = 0.01
    milestones: tuple[int, ...] = ()
    ema: float = 0.0
    frozen_norm: bool = False
    precise_norm: int = 0
    official: ClipProtocol = field(default=OFFICIAL)

    def __post_init__(self) -> None:
        checks = {
            "schedule": (self.schedule in ("cosine", "steps"), "cosine or steps"),
            "optimizer": (self.optimizer in ("sgd", "adamw"), "sgd or adamw"),
            "lr": (0 < self.lr < math.inf, "above 0"),
            "crop_size": (MIN_CROP <= self.crop_size <= self.short_side, f"{MIN_CROP} to short_side {self.short_side}"),
            "scales": (bool(self.scales) and all(0 < s <= 1 for s in self.scales), "parts of the short side, 0 to 1"),
            "milestones": (list(self.milestones) == sorted(self.milestones), "epochs, ascending"),
            "nesterov": (self.momentum > 0 or not self.nesterov, "false where momentum is 0"),
        }
        checks |= {name: (0 <= getattr(self, name) <= 1, "0 to 1") for name in (*_CHANCES, *_SHARES)}
        checks |= {name: (0 <= getattr(self, name) < math.inf, "at least 0") for name in (*_AMOUNTS, "precise_norm")}
        checks |= {name: (getattr(self, name) >= 1, "at least 1") for name in ("epochs", "batch_size", "lr_batch")}
        for name, (good, allowed) in checks.items():
            if not good:
                raise ConfigError(f"{name} {getattr(self, name)}: expected {allowed}")

    @property
    def fast(self) -> ClipProtocol:
        """The ``fast`` protocol at the size that the network was trained for."""
        return dataclasses.replace(FAST, short_side=self.short_side, crop_size=self.crop_size)

    def changed(self, settings: Sequence[str]) -> "TrainRecipe":
        """Return the recipe with ``name=value`` settings, lists as ``1,2``. Raises ConfigError.

        The test protocol grows with crop_size.
        """
        hints = get_type_hints(type(self))
        changes: dict[str, Any] = {}
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals or name not in hints or name in FIXED:
                names = ", ".join(known for known in hints if known not in FIXED)
                raise ConfigError(f"--set {setting}: expected name=value with one of {names}")
            changes[name] = _parsed(setting, text, getattr(self, name))
        growth = changes.get("crop_size", self.crop_size) / self.crop_size
        sizes = {name: round(growth * getattr(self.official, name)) for name in ("short_side", "crop_size")}
        return dataclasses.replace(self, **changes, official=dataclasses.replace(self.official, **sizes))


def _parsed(setting: str, text: str, now: Any) -> Any:
    """Return ``text`` as a value of the kind that the setting has now."""
    try:
        if isinstance(now, tuple):
            number = type(now[0]) if now else int
            return tuple(number(part) for part in text.split(",") if part)
        if isinstance(now, bool):
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        return type(now)(text)
    except (ValueError, KeyError):
        kind = "numbers with commas" if isinstance(now, tuple) else f"a {type(now).__name__}, as {now}"
        raise ConfigError(f"--set {setting}: expected {kind}") from None


_K400 = TrainRecipe("k400", init="in1k")
_MOTIONS = TrainRecipe(
    "motions",
    depth=10,
    width=0.5,
    pos_dim=(16, 8, 4, 2),
    dropout=0.2,
    short_side=72,
    crop_size=64,
    scales=(1.0, 0.875, 0.75),
    flip=0.0,  # left is not right
    jitter=0.3,
    erase=0.1,
    opposites=PAIRS,
    epochs=26,
    batch_size=32,
    lr=0.003,
    lr_batch=32,
    optimizer="adamw",  # SGD does not find which way shapes turn
    weight_decay=0.02,
    clip_norm=5.0,
    warmup_epochs=1.0,
    official=ClipProtocol("official", short_side=72, crop_size=64, num_clips=3, num_crops=1),
)
RECIPES: Mapping[str, TrainRecipe] = MappingProxyType(
    {
        "k400": _K400,
        "k600": dataclasses.replace(_K400, name="k600"),
        "hmdb51": dataclasses.replace(
            _K400,
            name="hmdb51",
            init="k400",
            epochs=50,
            lr=0.02,
            backbone_lr=0.1,
            weight_decay=0.008,
            warmup_epochs=0.0,
            schedule="steps",
            milestones=(12, 24),
            official=OFFICIAL_HMDB51,
        ),
        # No recipe of the release is known for it; its classes tell left from right.
        "sthv2": dataclasses.replace(_K400, name="sthv2", init="k400", flip=0.0, epochs=50),
        "motions": _MOTIONS,
    }
)
