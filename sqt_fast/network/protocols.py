"""The protocol that belongs to weights: what a network was trained for decides how large its clips are."""

from dataclasses import replace
from pathlib import Path

from sqt_fast.config import FAST, OFFICIAL, SINGLE, ClipProtocol
from sqt_fast.network.metadata import protocol_in
from sqt_fast.network.published import PUBLISHED, published_name


def find_protocol(name: str, weights: str) -> ClipProtocol:
    """Return the protocol ``name`` for ``weights``: the file's own, or the release's. Raises CheckpointError."""
    path = PUBLISHED[weights].path if weights in PUBLISHED else Path(weights).expanduser()
    if name == SINGLE.name:  # one clip of what fast sees
        fast = find_protocol(FAST.name, weights)
        return replace(SINGLE, short_side=fast.short_side, crop_size=fast.crop_size)
    if (own := protocol_in(path, name)) is not None:
        return own
    if name == FAST.name:
        return FAST
    published = published_name(weights)
    return OFFICIAL if published is None else PUBLISHED[published].official
