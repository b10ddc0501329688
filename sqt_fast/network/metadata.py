"""What a safetensors file of ours says of itself: read without torch, from the first bytes."""

import json
from pathlib import Path
from typing import Any

from sqt_fast.config import ClipProtocol
from sqt_fast.errors import CheckpointError

MAX_HEADER_BYTES = 100 << 20  # as safetensors itself allows


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the metadata of a safetensors file, nothing for any other file or for one that is damaged."""
    try:
        with Path(path).open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            text = file.read(size) if size <= MAX_HEADER_BYTES else b""
        found = json.loads(text).get("__metadata__") if text[:1] == b"{" else None
    except (OSError, ValueError, RecursionError):  # RecursionError: of brackets in brackets in brackets
        return {}
    return {name: each for name, each in found.items() if isinstance(each, str)} if isinstance(found, dict) else {}


def labels_in(path: str | Path) -> tuple[str, ...] | None:
    """Return the class names that a file carries, None for none. Raises CheckpointError."""
    names = _decoded(path, "labels")
    if names is None:
        return None
    if not isinstance(names, list):
        raise CheckpointError(f"{path}: its metadata labels are no JSON list; say the class names with --labels")
    return tuple(map(str, names))


def protocol_in(path: str | Path, name: str) -> ClipProtocol | None:
    """Return the protocol ``name`` that a file asks for, None for none. Raises CheckpointError."""
    protocols = _decoded(path, "protocols")
    if protocols is None or (isinstance(protocols, dict) and name not in protocols):
        return None
    try:
        protocol = ClipProtocol(**protocols[name])
        clips = 1 if protocol.num_clips is None else protocol.num_clips
        counts = (protocol.short_side, protocol.crop_size, clips)
        counted = all(isinstance(count, int) and count >= 1 for count in counts)
        if counted and protocol.short_side >= protocol.crop_size and protocol.num_crops in (1, 3):
            return protocol
    except TypeError:  # other fields than ours
        pass
    raise CheckpointError(f"{path}: its metadata protocols are none of ours; train or convert it again")


def _decoded(path: str | Path, name: str) -> Any:
    """Return what is kept under ``name`` as JSON: None for nothing, and the text itself where it is no JSON."""
    text = read_metadata(path).get(name)
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return text
