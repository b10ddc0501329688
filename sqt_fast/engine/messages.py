"""Messages as plain data: what the process that parses hostile files sends is read without running anything of it.

A message is a length, JSON, and the bytes of arrays. Only the value types named here can come out of one.
"""

import json
import struct
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from sqt_fast.errors import VideoError
from sqt_fast.video.cpu_decoder import DecodeReport
from sqt_fast.video.packets import Packets
from sqt_fast.video.probe import Orientation, Probe, Source
from sqt_fast.video.sampling import ClipPlan
from sqt_fast.video.segments import Segment

VALUE_TYPES = {kind.__name__: kind for kind in (ClipPlan, DecodeReport, Orientation, Packets, Probe, Segment, Source)}
_LENGTH = struct.Struct("<Q")
_NUMERIC = "biuf"  # kinds of NumPy dtypes that hold numbers and nothing else


class MessageError(ValueError):
    """The bytes are no message."""


def encode(value: Any) -> bytes:
    """Return ``value`` as bytes: None, numbers, text, bytes, arrays of numbers, lists, tuples, and ``VALUE_TYPES``."""
    buffers: list[bytes | memoryview] = []
    header = json.dumps(_plain(value, buffers)).encode()
    return b"".join((_LENGTH.pack(len(header)), header, *buffers))


def decode(data: bytes) -> Any:
    """Return the value that ``encode`` was given. Raises MessageError for bytes that it cannot have made."""
    try:
        (length,) = _LENGTH.unpack_from(data)
        reader = _Reader(memoryview(data)[_LENGTH.size + length :])
        return reader.value(json.loads(data[_LENGTH.size : _LENGTH.size + length]))
    except (struct.error, ValueError, TypeError, KeyError, AttributeError) as error:
        raise MessageError(f"not a message: {type(error).__name__}: {error}") from error


def _plain(value: Any, buffers: list[bytes | memoryview]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        buffers.append(value)
        return {"bytes": len(value)}
    if isinstance(value, np.ndarray):
        buffers.append(np.ascontiguousarray(value).data.cast("B") if value.size else b"")
        return {"array": value.nbytes, "dtype": value.dtype.str, "shape": value.shape}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_plain(item, buffers) for item in value]}
    if isinstance(value, VideoError):
        return {"VideoError": [value.status, str(value)]}
    assert is_dataclass(value), f"{type(value).__name__} is no plain data"
    assert type(value).__name__ in VALUE_TYPES, f"{type(value).__name__} is no value type of messages"
    return {type(value).__name__: {f.name: _plain(getattr(value, f.name), buffers) for f in fields(value)}}


class _Reader:
    """Builds values; takes the bytes of arrays one after the other."""

    def __init__(self, data: memoryview) -> None:
        self.data = data

    def value(self, plain: Any) -> Any:
        if not isinstance(plain, dict):
            return plain
        (kind, content), *more = plain.items()
        if kind == "bytes":
            return bytes(self._take(content))
        if kind == "array":
            return self._array(content, **dict(more))
        if kind in ("list", "tuple"):
            return (list if kind == "list" else tuple)(self.value(item) for item in content)
        if kind == "VideoError":
            return VideoError(*map(str, content))
        return VALUE_TYPES[kind](**{name: self.value(item) for name, item in content.items()})

    def _take(self, size_bytes: int) -> memoryview:
        if not 0 <= size_bytes <= len(self.data):
            raise MessageError(f"{size_bytes} bytes are announced, {len(self.data)} came")
        taken, self.data = self.data[:size_bytes], self.data[size_bytes:]
        return taken

    def _array(self, size_bytes: int, dtype: str, shape: list[int]) -> Any:
        kind = np.dtype(dtype)
        if kind.kind not in _NUMERIC:
            raise MessageError(f"an array of {dtype}: only numbers may come")
        return np.frombuffer(self._take(size_bytes), kind).reshape(shape).copy()
