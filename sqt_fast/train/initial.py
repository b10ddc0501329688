"""What a network starts from: weights are taken by name and shape, and the rest is drawn."""

from dataclasses import dataclass
from pathlib import Path

import torch

from sqt_fast.errors import CheckpointError
from sqt_fast.network.checkpoint import read_checkpoint
from sqt_fast.network.model import ModelConfig, SqueezeTime
from sqt_fast.network.weights import locate
from sqt_fast.train.recipes import TrainRecipe

NONE = "none"
NAMED = 5  # tensors of many, so many are named


@dataclass(frozen=True)
class Start:
    """A network to train, and in words what it starts from."""

    model: SqueezeTime
    account: str


def new_network(recipe: TrainRecipe, num_classes: int, seed: int) -> SqueezeTime:
    """Make the network of a recipe with random weights, the same ones for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SqueezeTime(
            ModelConfig(
                depth=recipe.depth,
                width=recipe.width,
                num_classes=num_classes,
                pos_dim=recipe.pos_dim,
                dropout=recipe.dropout,
            )
        )


def start(recipe: TrainRecipe, num_classes: int, seed: int) -> Start:
    """Make the network and load what ``recipe.init`` holds of it: every tensor of the same name and shape.

    Raises ConfigError for weights that there are not, CheckpointError for those that cannot be had or read, or of which
    no layer fits.
    """
    model = new_network(recipe, num_classes, seed)
    if recipe.init == NONE:
        return Start(model, f"random weights, seed {seed}")
    path = locate(recipe.init, progress=True)
    return Start(model, load_fitting(model, path))


def load_fitting(model: SqueezeTime, path: Path) -> str:
    """Copy what fits from a checkpoint into ``model``, and say what did and what did not.

    Raises CheckpointError where that is no layer at all.
    """
    given, wanted = read_checkpoint(path), model.state_dict()
    fitting = {n: given[n] for n, t in wanted.items() if n in given and given[n].shape == t.shape}
    if not any(t.ndim > 1 for t in fitting.values()):
        raise CheckpointError(f"{path}: no layer of it has the shape it has here; give weights of a like network")
    model.load_state_dict(fitting, strict=False)
    ours, theirs = ([n for n in names if not n.endswith("num_batches_tracked")] for names in (wanted, given))
    misshapen = [n for n in ours if n in given and n not in fitting]
    missing = [n for n in ours if n not in given]
    unknown = [n for n in theirs if n not in wanted]
    lines = f"{path}: {len(ours) - len(misshapen) - len(missing)} of {len(ours)} tensors loaded"
    for what, names in (("of another shape", misshapen), ("not in the file", missing), ("of no use here", unknown)):
        if names:
            few = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
            lines += f"; {len(names)} {what}: {few}"
    return lines
