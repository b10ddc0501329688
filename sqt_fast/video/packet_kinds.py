"""What the bytes of a packet say of it, without decoding."""

from typing import NamedTuple


class PacketKind(NamedTuple):
    """What a planner may rely on; the defaults claim nothing.

    random_access: decoding may begin here; every later picture comes out as if it had begun before (but for those
    that are shown before this one). droppable: without this packet every other picture is the same to the bit. shown:
    the pictures that come out of it, 0 where it only holds hidden ones. layer: temporal layer; a packet can be left
    out only in the highest of its stream. headers: a number that changes with the headers (size, format) that the
    packet carries, 0 where it carries none. hides: it holds several pictures, some of which are only referred to.
    """

    random_access: bool = False
    droppable: bool = False
    shown: int = 1
    layer: int = 0
    headers: int = 0
    hides: bool = False
