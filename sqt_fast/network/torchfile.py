"""Read the weights of a torch file without running it.

A torch file is a pickle, and a pickle is a program. The release's files cannot be read with
``torch.load(weights_only=True)``, because mmengine leaves objects of its own classes beside the weights, and
``weights_only=False`` would run whatever the file says. The unpickler here builds plain data only: every class and
function that a file names becomes an inert placeholder, and tensors are made afterwards from the raw bytes.
"""

import io
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from sqt_fast.errors import CheckpointError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch.serialization.MAGIC_NUMBER: files of torch before 1.6

# Where a training file keeps its weights, best first. mmengine's own state_dict is already the averaged one.
_NESTS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state", "module")

_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Storage(NamedTuple):
    dtype: torch.dtype
    key: str


class _Stored(NamedTuple):
    """Where a tensor's elements lie; what a pickle gives in place of a tensor."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Inert:
    """Stands for any class or function that a pickle names, and for what they would have made. Does nothing."""

    def __new__(cls, *_: object, **__: object) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __call__(self, *_: object) -> "_Inert":
        return self

    def ignore(self, *_: object) -> None:
        """Take what the pickle hands over, and forget it."""

    __setstate__ = __setitem__ = append = extend = add = ignore


class _Dict(dict[Any, Any]):
    """An OrderedDict without the attributes a pickle would set on it."""

    def __setstate__(self, state: object) -> None:
        pass


def _stored(storage: object, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> object:
    return _Stored(storage, offset, size, stride) if isinstance(storage, _Storage) else _Inert()


def _parameter(data: object, *_: object) -> object:
    return data


def _of_subclass(rebuild: object, _: object, args: tuple[Any, ...], *__: object) -> object:
    return rebuild(*args) if isinstance(rebuild, _Rebuild) else _Inert()


class _Rebuild(NamedTuple):
    """A function that a file may call. Not a bare function, because a pickle can set the defaults of one."""

    function: Callable[..., object]

    def __call__(self, *args: object) -> object:
        return self.function(*args)


_REBUILT = {
    ("collections", "OrderedDict"): _Dict,
    ("torch._utils", "_rebuild_tensor"): _Rebuild(_stored),
    ("torch._utils", "_rebuild_tensor_v2"): _Rebuild(_stored),
    ("torch._utils", "_rebuild_parameter"): _Rebuild(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Rebuild(_parameter),
    ("torch._tensor", "_rebuild_from_type_v2"): _Rebuild(_of_subclass),
}


class _Unpickler(pickle.Unpickler):
    """Build dictionaries, lists, numbers, text and ``_Stored``; everything else becomes ``_Inert``."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="utf-8")
        self.widths: dict[str, int] = {}  # bytes of one element of each storage

    def find_class(self, module: str, name: str, /) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        return _REBUILT.get((module, name), _Inert)

    def persistent_load(self, pid: Any, /) -> object:
        kind, dtype, key, _, _, *view = pid
        if kind != "storage" or any(view):
            raise pickle.UnpicklingError(f"unknown kind of storage {kind!r}")
        if not isinstance(dtype, torch.dtype):
            return _Inert()
        self.widths[str(key)] = dtype.itemsize
        return _Storage(dtype, str(key))


def _state_of(tree: object) -> dict[str, _Stored]:
    """Find the weights inside what a training program saved."""
    if not isinstance(tree, dict):
        raise CheckpointError(
            "holds no dictionary of tensors (a whole network, pickled?); save its state_dict() instead"
        )
    nests = [tree[key] for key in _NESTS if isinstance(tree.get(key), dict)]
    states = [
        {name: value for name, value in nest.items() if isinstance(name, str) and isinstance(value, _Stored)}
        for nest in (*nests, tree)
    ]
    return next(filter(None, states), {})


def _tensor(stored: _Stored, content: bytes) -> Tensor:
    """Make a tensor of the elements that ``stored`` points at. Bounds are checked by as_strided."""
    dtype = stored.storage.dtype
    flat = torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)
    return flat.as_strided(stored.size, stored.stride, stored.offset).clone(memory_format=torch.contiguous_format)


def read_zip(file: BinaryIO) -> dict[str, Tensor]:
    """Read a file of torch 1.6 or later: a zip archive of one pickle and every storage's bytes.

    Returns the tensors of its state dict under the file's own names. Raises CheckpointError, worded to follow the
    file's name, for archives of something else, and whatever the damage causes for a broken one.
    """
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        pickles = sorted((name for name in names if re.fullmatch(r"([^/]+/)?data\.pkl", name)), key=len)
        if not pickles:
            raise CheckpointError("is a zip archive that holds no weights; give the checkpoint inside it")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in names:
            raise CheckpointError("is a TorchScript program, not weights; save its state_dict() instead")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") == b"big":
            raise CheckpointError("was written on a big-endian machine; save it there as safetensors instead")
        state = _state_of(_Unpickler(io.BytesIO(archive.read(pickles[0]))).load())
        return {name: _tensor(s, archive.read(f"{folder}data/{s.storage.key}")) for name, s in state.items()}


def read_legacy(file: BinaryIO) -> dict[str, Tensor]:
    """Read a file of torch before 1.6: five pickles, then every storage as its length (int64) and its elements.

    Returns and raises like ``read_zip``.
    """
    if _Unpickler(file).load() != _LEGACY_MAGIC:
        raise CheckpointError("is a pickle, but not one that torch wrote; save the weights as safetensors instead")
    _Unpickler(file).load()  # version of the format
    _Unpickler(file).load()  # sizes of C types
    body = _Unpickler(file)
    state = _state_of(body.load())
    content = {}
    for key in _Unpickler(file).load():
        (count,) = struct.unpack("<q", file.read(8))
        content[key] = file.read(count * body.widths[key])
    return {name: _tensor(stored, content[stored.storage.key]) for name, stored in state.items()}
