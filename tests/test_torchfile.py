"""What torch files may hold, and that nothing in them runs."""

import collections
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sqt_fast.errors import CheckpointError
from sqt_fast.network import torchfile
from sqt_fast.network.torchfile import read_legacy, read_zip


class Touch:
    """Makes a file when a pickle of it is loaded by a trusting loader."""

    def __init__(self, path: Path, call: Callable[..., Any] = Path.touch) -> None:
        self.path, self.call = path, call

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",)) if self.call is os.system else (self.call, (self.path,))


class History:
    """Pickled by name with attributes, as mmengine's message hub is."""

    def __init__(self) -> None:
        self.values = [1, 2, 3]


class Keyed(dict[str, int]):
    """A foreign dictionary: pickled with items and attributes."""


class Longer(list[int]):
    """A foreign list."""


def saved(content: object, *, legacy: bool = False) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    file.seek(0)
    return file


def read(file: io.BytesIO) -> dict[str, Tensor]:
    return read_legacy(file) if file.getvalue()[:1] == b"\x80" else read_zip(file)


FORMATS = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


@FORMATS
@pytest.mark.parametrize("nest", [None, "state_dict", "model", "module", "state_dict_ema"])
def test_weights_are_found_wherever_they_are_kept(nest: str | None, legacy: bool) -> None:
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7)}
    got = read(saved(state if nest is None else {nest: state, "epoch": 3, "lr": 0.1}, legacy=legacy))
    assert got.keys() == state.keys()
    assert all(torch.equal(got[name], state[name]) for name in state)


@FORMATS
@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool],
    ids=str,
)
def test_every_dtype_comes_back(dtype: torch.dtype, legacy: bool) -> None:
    wanted = torch.tensor([[0, 1], [2, 3]]).to(dtype)
    got = read(saved({"a": wanted}, legacy=legacy))["a"]
    assert got.dtype == dtype
    assert torch.equal(got, wanted)


@FORMATS
def test_views_parameters_and_empty_tensors_come_back(legacy: bool) -> None:
    base = torch.arange(24.0)
    state = {
        "transposed": base.reshape(4, 6).T,
        "slice": base[5:9],
        "shared": base,
        "parameter": torch.nn.Parameter(base[:2].clone()),
        "buffer": torch.nn.Buffer(base[:3].clone()),
        "empty": torch.zeros(0, 3),
    }
    got = read(saved(state, legacy=legacy))
    assert got.keys() == state.keys()
    for name, wanted in state.items():
        assert torch.equal(got[name], wanted.detach()), name
        assert got[name].is_contiguous()
        assert not got[name].requires_grad


@FORMATS
def test_averaged_weights_are_preferred(legacy: bool) -> None:
    file = saved({"model": {"a": torch.zeros(1)}, "state_dict_ema": {"a": torch.ones(1)}}, legacy=legacy)
    assert read(file)["a"].item() == 1


@FORMATS
@pytest.mark.parametrize("call", [os.system, Path.touch, os.mkdir, exec, getattr], ids=lambda call: call.__name__)
def test_nothing_in_a_file_is_run(tmp_path: Path, call: Callable[..., Any], legacy: bool) -> None:
    trap = tmp_path / "touched"
    hub = {"history": History(), "trap": Touch(trap, call), Touch(trap, call): Keyed(a=1), "long": Longer([1, 2])}
    content = {"message_hub": hub, "state_dict": collections.OrderedDict(a=torch.ones(2), trap=Touch(trap, call))}
    content["state_dict"]._metadata = {"": {"version": 1, "trap": Touch(trap, call)}}  # type: ignore[attr-defined]
    got = read(saved(content, legacy=legacy))
    assert got.keys() == {"a"}
    assert got["a"].tolist() == [1, 1]
    assert not trap.exists()


def test_the_trap_of_these_tests_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Touch(tmp_path / "touched")))
    assert (tmp_path / "touched").exists()


def archive(pickled: bytes, **entries: bytes) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("x/data.pkl", pickled)
        for name, content in entries.items():
            out.writestr(f"x/{name}", content)
    file.seek(0)
    return file


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (archive(pickle.dumps([1, 2])), "no dictionary of tensors"),
        (archive(pickle.dumps({}), **{"constants.pkl": b""}), "TorchScript"),
        (archive(pickle.dumps({}), byteorder=b"big"), "big-endian"),
        (io.BytesIO(pickle.dumps({"a": 1})), "not one that torch wrote"),
    ],
    ids=["list", "torchscript", "big-endian", "plain pickle"],
)
def test_other_contents_are_named(file: io.BytesIO, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(file)


def test_a_zip_of_something_else_is_named() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("holiday.jpg", b"")
    with pytest.raises(CheckpointError, match="zip archive that holds no weights"):
        read_zip(file)


def test_a_pickle_cannot_reach_beyond_a_storage() -> None:
    pickled = zipfile.ZipFile(saved({"a": torch.ones(4)})).read("archive/data.pkl")
    with pytest.raises(RuntimeError, match="out of bounds"):
        read_zip(archive(pickled, **{"data/0": b"\0" * 12}))


# BUILD sets attributes of whatever lies on the stack: here of the reader's own class and functions.
@pytest.mark.parametrize(
    "target", [b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"cos\nsystem\n"]
)
@pytest.mark.parametrize("state", [b"}S'items'\nNs", b"N}S'__defaults__'\nI1\n\x85s\x86"], ids=["dict", "slots"])
def test_a_pickle_cannot_change_the_reader(target: bytes, state: bytes) -> None:
    before = reader_state()
    with pytest.raises((CheckpointError, AttributeError, TypeError)):
        read_zip(archive(target + state + b"b."))
    assert reader_state() == before


def reader_state() -> list[tuple[Any, ...]]:
    """Return what a pickle could set on the classes and functions that it can name."""
    called = [getattr(rebuilt, "function", rebuilt) for rebuilt in torchfile._REBUILT.values()]
    return [(dict(vars(target)), getattr(target, "__defaults__", None)) for target in (*called, torchfile._Inert)]
