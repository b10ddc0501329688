"""Read the weights of a torch file without running it.

A torch file is a pickle, and a pickle is a program. ``torch.load(weights_only=True)`` runs none, but refuses the
release's files, because mmengine leaves objects of its own classes beside the weights. Here every class and function
that torch does not know is replaced by one that does nothing, before torch reads the file.
"""

import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import ZipFile

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from sqt_fast.errors import CheckpointError

# Where a training file keeps its weights, best first. mmengine's own state_dict is already the averaged one.
_NESTS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state", "module")


class Inert:
    """Stands for whatever a pickle names, and for what it would have made. Does nothing."""

    def __new__(cls, *_: object, **__: object) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def ignore(self, *_: object) -> None:
        """Take what the pickle hands over, and forget it."""

    __setstate__ = __setitem__ = append = extend = add = ignore


def read_torch(path: Path, *, is_zip: bool) -> dict[str, Tensor]:
    """Read a file of ``torch.save``. is_zip: of torch 1.6 or later; older ones must hold nothing but torch's own.

    Returns the tensors of its state dict under the file's own names, in the file's dtypes, on the CPU. Raises
    CheckpointError, worded to follow the file's name, for files of something else, and whatever the damage causes for a
    broken one.
    """
    unknown: list[str] = []
    if is_zip:
        _check_archive(path)
        unknown = get_unsafe_globals_in_checkpoint(path)
    # One stand-in each: torch looks them up by name, and by identity.
    inert: list[Any] = [(type("Inert", (Inert,), {}), name) for name in unknown]
    try:
        with safe_globals(inert), warnings.catch_warnings(action="ignore"):
            tree = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise CheckpointError(
            "holds what cannot be read without running it; save its state_dict() alone, or as safetensors"
        ) from error
    state = _state_of(tree)
    return {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in state.items()}


def _check_archive(path: Path) -> None:
    """Say plainly what an archive is that people mistake for weights, and notice what was damaged on the way."""
    with ZipFile(path) as archive:
        names = [name.rpartition("/")[2] for name in archive.namelist()]
        if "data.pkl" not in names:
            raise CheckpointError("is a zip archive that holds no weights; give the checkpoint inside it")
        if "constants.pkl" in names:
            raise CheckpointError("is a TorchScript program, not weights; save its state_dict() instead")
        if (damaged := archive.testzip()) is not None:  # torch does not look at the sums
            raise ValueError(f"{damaged} does not agree with its checksum")


def _state_of(tree: object) -> dict[str, Tensor]:
    """Find the weights inside what a training program saved."""
    if not isinstance(tree, dict):
        raise CheckpointError(
            "holds no dictionary of tensors (a whole network, pickled?); save its state_dict() instead"
        )
    nests = [tree[key] for key in _NESTS if isinstance(tree.get(key), dict)]
    states = [
        {name: value for name, value in nest.items() if isinstance(name, str) and isinstance(value, Tensor)}
        for nest in (*nests, tree)
    ]
    return next(filter(None, states), {})
