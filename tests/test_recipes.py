"""Recipes: the release's numbers, and what can be set, and how what cannot is refused."""

import dataclasses
from typing import Any

import pytest

from sqt_fast.config import ClipProtocol
from sqt_fast.errors import ConfigError
from sqt_fast.train.recipes import RECIPES, TrainRecipe

# configs/recognition/SqueezeTime/SqueezeTime_K400.py and _HMDB51.py of the release
RELEASED: dict[str, dict[str, Any]] = {
    "k400": {
        "depth": 50,
        "width": 1.0,
        "pos_dim": (56, 28, 14, 7),
        "dropout": 0.5,
        "init": "in1k",
        "short_side": 256,
        "crop_size": 224,
        "scales": (1.0, 0.875, 0.75, 0.66, 0.5),
        "max_scale_gap": 1,
        "flip": 0.5,
        "jitter": 0.5,
        "jitter_hue": 0.1,
        "erase": 0.25,
        "mixup": 0.0,
        "cutmix": 0.0,
        "epochs": 100,
        "batch_size": 64,
        "lr": 0.015,
        "lr_batch": 64,
        "momentum": 0.9,
        "weight_decay": 7e-5,
        "clip_norm": 40.0,
        "warmup_epochs": 8.0,
        "warmup_lr": 0.1,
        "schedule": "cosine",
        "final_lr": 0.01,
        "backbone_lr": 1.0,
        "official": ClipProtocol("official", 224, 224, 10, 3),
    },
    "hmdb51": {
        "init": "k400",
        "epochs": 50,
        "lr": 0.02,
        "backbone_lr": 0.1,
        "weight_decay": 0.008,
        "warmup_epochs": 0.0,
        "schedule": "steps",
        "milestones": (12, 24),
        "official": ClipProtocol("official", 286, 286, 2, 3),
    },
}


@pytest.mark.parametrize("name", RELEASED)
def test_the_numbers_of_the_release(name: str) -> None:
    recipe = dataclasses.asdict(RECIPES[name]) | {"official": RECIPES[name].official}
    assert {key: recipe[key] for key in RELEASED[name]} == RELEASED[name]


def test_what_has_a_direction_is_not_mirrored() -> None:
    assert [name for name, recipe in RECIPES.items() if recipe.flip == 0] == ["sthv2", "motions"]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_called_as_they_are_found(name: str) -> None:
    assert RECIPES[name].name == name
    assert RECIPES[name].changed([]) == RECIPES[name]
    fast = RECIPES[name].fast
    assert (fast.name, fast.num_clips, fast.num_crops) == ("fast", None, 1)
    assert (fast.short_side, fast.crop_size) == (RECIPES[name].short_side, RECIPES[name].crop_size)


@pytest.mark.parametrize(
    ("setting", "name", "value"),
    [
        ("epochs=7", "epochs", 7),
        ("lr=1e-3", "lr", 0.001),
        ("lr=2", "lr", 2.0),
        ("frozen_norm=true", "frozen_norm", True),
        ("nesterov=False", "nesterov", False),
        ("frozen_norm=1", "frozen_norm", True),
        ("scales=1,.5", "scales", (1.0, 0.5)),
        ("pos_dim=8,4,2,1", "pos_dim", (8, 4, 2, 1)),
        ("milestones=3,5", "milestones", (3, 5)),
        ("milestones=", "milestones", ()),
        ("init=/a=b.pth", "init", "/a=b.pth"),
        ("schedule=steps", "schedule", "steps"),
    ],
    ids=str,
)
def test_settings(setting: str, name: str, value: Any) -> None:
    changed = RECIPES["k400"].changed([setting])
    assert getattr(changed, name) == value
    assert type(getattr(changed, name)) is type(value)
    assert dataclasses.replace(changed, **{name: getattr(RECIPES["k400"], name)}) == RECIPES["k400"]


def test_the_last_of_several_settings_counts() -> None:
    assert RECIPES["k400"].changed(["epochs=7", "lr=1", "epochs=9"]).epochs == 9


def test_the_test_protocol_grows_with_the_crop() -> None:
    half = RECIPES["hmdb51"].changed(["crop_size=112", "short_side=128"])
    assert half.official == ClipProtocol("official", 143, 143, 2, 3)
    assert half.fast == ClipProtocol("fast", 128, 112, None, 1)
    assert RECIPES["k400"].changed(["short_side=288"]).official == RECIPES["k400"].official


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("epochs", "--set epochs: expected name=value with one of depth, width,"),
        ("epoch=7", "--set epoch=7: expected name=value with one of depth, width,"),
        ("name=x", "--set name=x: expected name=value with one of depth"),
        ("official=x", "--set official=x: expected name=value"),
        ("epochs=7.5", "--set epochs=7.5: expected a int, as 100"),
        ("lr=fast", "--set lr=fast: expected a float, as 0.015"),
        ("frozen_norm=maybe", "--set frozen_norm=maybe: expected a bool, as False"),
        ("scales=1;2", "--set scales=1;2: expected numbers with commas"),
        ("milestones=1.5", "--set milestones=1.5: expected numbers with commas"),
        ("scales=", "scales (): expected parts of the short side"),
        ("scales=1.2", "scales (1.2,): expected parts of the short side"),
        ("milestones=5,3", "milestones (5, 3): expected epochs, ascending"),
        ("schedule=linear", "schedule linear: expected cosine or steps"),
        ("crop_size=31", "crop_size 31: expected 32 to short_side 256"),
        ("crop_size=257", "crop_size 257: expected 32 to short_side 256"),
        ("lr=0", "lr 0.0: expected above 0"),
        ("lr=nan", "lr nan: expected above 0"),
        ("lr=inf", "lr inf: expected above 0"),
        ("flip=1.1", "flip 1.1: expected 0 to 1"),
        ("dropout=-0.1", "dropout -0.1: expected 0 to 1"),
        ("momentum=-1", "momentum -1.0: expected 0 to 1"),
        ("mixup=-1", "mixup -1.0: expected at least 0"),
        ("weight_decay=-1", "weight_decay -1.0: expected at least 0"),
        ("warmup_epochs=inf", "warmup_epochs inf: expected at least 0"),
        ("max_scale_gap=-1", "max_scale_gap -1: expected at least 0"),
        ("precise_norm=-1", "precise_norm -1: expected at least 0"),
        ("lr_batch=0", "lr_batch 0: expected at least 1"),
        ("batch_size=0", "batch_size 0: expected at least 1"),
    ],
    ids=str,
)
def test_what_cannot_be_set(setting: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RECIPES["k400"].changed([setting])
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(ConfigError, match="nesterov True: expected false where momentum is 0"):
        TrainRecipe("x", momentum=0.0, nesterov=True)
