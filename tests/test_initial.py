"""What a network starts from: drawn weights by seed, and what fits of other weights, with an account of the rest."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sqt_fast.errors import CheckpointError, ConfigError
from sqt_fast.network.checkpoint import save_safetensors
from sqt_fast.network.model import SqueezeTime
from sqt_fast.train.initial import load_fitting, new_network, start
from tests.training import TINY

pytestmark = pytest.mark.usefixtures("one_thread")


def equal(a: SqueezeTime, b: SqueezeTime) -> list[str]:
    """Return the names of tensors that are equal in both."""
    others = b.state_dict()
    return [n for n, t in a.state_dict().items() if n in others and t.shape == others[n].shape and t.equal(others[n])]


def counted(model: SqueezeTime) -> int:
    """Return how many tensors there are, but for the counters of batch norms, which say nothing."""
    return sum(not name.endswith("num_batches_tracked") for name in model.state_dict())


def test_the_same_seed_the_same_weights() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (new_network(TINY, 5, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert equal(first, again) == list(first.state_dict())
    drawn = {name for name, p in first.named_parameters() if p.ndim > 1}
    assert drawn & set(equal(first, other)) == set()


def test_a_network_is_what_its_recipe_says() -> None:
    config = new_network(TINY, 5, 0).config
    assert (config.depth, config.width, config.num_classes, config.pos_dim) == (10, 0.25, 5, (8, 4, 2, 1))
    assert config.dropout == 0.5
    assert start(TINY, 5, 3).account == "random weights, seed 3"
    assert equal(start(TINY, 5, 3).model, new_network(TINY, 5, 3)) == list(new_network(TINY, 5, 3).state_dict())


def test_all_but_the_classifier_is_taken_from_weights_for_other_classes(tmp_path: Path) -> None:
    given = new_network(TINY, 7, 1)
    save_safetensors(given, tmp_path / "k.safetensors")
    begun = start(replace(TINY, init=str(tmp_path / "k.safetensors")), 5, 2)
    assert [n for n in given.state_dict() if n not in equal(begun.model, given)] == ["fc.weight", "fc.bias"]
    assert "fc.weight" in equal(begun.model, new_network(TINY, 5, 2))
    assert begun.model.training
    count = counted(given)
    said = f"{tmp_path}/k.safetensors: {count - 2} of {count} tensors loaded; 2 of another shape: fc.weight, fc.bias"
    assert begun.account == said


def test_the_account_names_what_is_missing_and_what_is_of_no_use(tmp_path: Path) -> None:
    state = {n: t.clone() for n, t in new_network(TINY, 5, 1).state_dict().items()}
    del state["conv1.weight"]
    state["layer1.1.bn1.bias"] = torch.zeros(16)  # of a deeper network
    state["layer4.0.conv1.temporal_conv.weight"] = torch.zeros(1, 2, 3, 4)
    torch.save({"state_dict": state}, tmp_path / "part.pth")
    model = new_network(TINY, 5, 2)
    count = counted(model)
    account = load_fitting(model, tmp_path / "part.pth")
    assert account.startswith(f"{tmp_path}/part.pth: {count - 2} of {count} tensors loaded; ")
    assert "1 of another shape: layer4.0.conv1.temporal_conv.weight; " in account
    assert "1 not in the file: conv1.weight; 1 of no use here: layer1.1.bn1.bias" in account
    assert "conv1.weight" in equal(model, new_network(TINY, 5, 2))
    assert "layer4.0.bn2.weight" in equal(model, new_network(TINY, 5, 1))


def test_of_many_names_a_few_are_said(tmp_path: Path) -> None:
    save_safetensors(new_network(replace(TINY, depth=18), 5, 1), tmp_path / "deep.safetensors")
    account = load_fitting(new_network(TINY, 5, 2), tmp_path / "deep.safetensors")
    assert len(account) < 600 + len(str(tmp_path))
    count = counted(new_network(replace(TINY, depth=18), 5, 1)) - counted(new_network(TINY, 5, 2))
    assert f"; {count} of no use here: layer1.1.bn1.bias, layer1.1.bn1.running_mean, " in account
    assert account.endswith(", ...")


def test_weights_of_which_no_layer_fits_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"fc.weight": torch.zeros(3, 3), "bn1.bias": torch.zeros(16)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: no layer of it has the shape it has here"):
        load_fitting(new_network(TINY, 5, 2), tmp_path / "other.pth")


@pytest.mark.parametrize(
    ("init", "error", "said"),
    [
        ("nowhere.pth", ConfigError, "weights nowhere.pth: no such file"),
        (__file__, CheckpointError, "is a text file, not weights"),
    ],
)
def test_weights_that_cannot_be_had(init: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        start(replace(TINY, init=init), 5, 0)
