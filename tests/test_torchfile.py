"""What torch files may hold, and that nothing in them runs."""

import collections
import io
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sqt_fast.errors import CheckpointError
from sqt_fast.network.torchfile import read_torch


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


def saved(content: object, *, legacy: bool = False) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    file.seek(0)
    return file


def read(file: io.BytesIO) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        path.write_bytes(file.getvalue())
        return read_torch(path, is_zip=file.getvalue()[:1] != b"\x80")


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


def trapped(trap: Path, call: Callable[..., Any]) -> dict[str, Any]:
    """A training file as mmengine writes it, with foreign objects, some of which are programs."""
    hub = {"history": History(), "trap": Touch(trap, call), Touch(trap, call): 1}
    content = {"message_hub": hub, "state_dict": collections.OrderedDict(a=torch.ones(2), trap=Touch(trap, call))}
    content["state_dict"]._metadata = {"": {"version": 1, "trap": Touch(trap, call)}}  # type: ignore[attr-defined]
    return content


@pytest.mark.parametrize("call", [os.system, Path.touch, os.mkdir, exec, getattr], ids=lambda call: call.__name__)
@FORMATS
def test_nothing_in_a_file_is_run(tmp_path: Path, call: Callable[..., Any], legacy: bool) -> None:
    """It is passed over, or the whole file is refused."""
    trap = tmp_path / "touched"
    file = saved(trapped(trap, call), legacy=legacy)
    try:
        got = read(file)
    except CheckpointError as error:
        assert "without running it" in str(error)
    else:
        assert got.keys() == {"a"}
        assert got["a"].tolist() == [1, 1]
    assert not trap.exists()


def test_objects_of_classes_that_are_not_here_are_passed_over() -> None:
    """As in the release's files, which mmengine wrote."""
    hub = {"history": History(), "number": np.float64(3), "array": np.arange(3), "kept": {History(): History()}}
    got = read(saved({"meta": {"time": "now"}, "message_hub": hub, "state_dict": {"a": torch.ones(2)}}))
    assert got["a"].tolist() == [1, 1]


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
        (saved([1, 2]), "no dictionary of tensors"),
        (saved([1, 2], legacy=True), "no dictionary of tensors"),
        (archive(pickle.dumps({}), **{"constants.pkl": b""}), "TorchScript"),
        (io.BytesIO(pickle.dumps({"a": History()})), "without running it"),
    ],
    ids=["list", "legacy list", "torchscript", "plain pickle"],
)
def test_other_contents_are_named(file: io.BytesIO, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(file)


def test_a_zip_of_something_else_is_named() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("holiday.jpg", b"")
    with pytest.raises(CheckpointError, match="zip archive that holds no weights"):
        read(file)


@FORMATS
@pytest.mark.parametrize("share", [0.3, 0.9, 0.99])
def test_a_file_that_is_cut_short_gives_no_weights(legacy: bool, share: float) -> None:
    data = saved({"a": torch.ones(1000)}, legacy=legacy).getvalue()
    with pytest.raises((CheckpointError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile)):
        read(io.BytesIO(data[: int(share * len(data))]))


# BUILD sets attributes of whatever lies on the stack: here of functions and classes that torch trusts.
@pytest.mark.parametrize(
    "target", [b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"cos\nsystem\n"]
)
@pytest.mark.parametrize("state", [b"}S'items'\nNs", b"N}S'__defaults__'\nI1\n\x85s\x86"], ids=["dict", "slots"])
def test_a_pickle_cannot_change_what_reads_it(target: bytes, state: bytes) -> None:
    before = torch._utils._rebuild_tensor_v2.__defaults__, dict(vars(collections.OrderedDict))
    with pytest.raises((CheckpointError, RuntimeError, AttributeError, TypeError)):
        read(archive(target + state + b"b."))
    assert (torch._utils._rebuild_tensor_v2.__defaults__, dict(vars(collections.OrderedDict))) == before
