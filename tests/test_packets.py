"""Columns of packets: what each flag says."""

import numpy as np

from sqt_fast.video.packets import (
    DROPPABLE,
    NEW_HEADERS,
    NO_TIME,
    RANDOM_ACCESS,
    SHOWN,
    PacketColumns,
    PacketKind,
    Packets,
)


def columns(*kinds: PacketKind, discarded: tuple[int, ...] = ()) -> Packets:
    made = PacketColumns()
    for rank, kind in enumerate(kinds):
        made.add(10 * rank, 10 * rank - 20, 100 + rank, kind, discarded=rank in discarded)
    assert len(made) == len(kinds)
    return made.finish()


def ranks(packets: Packets, flag: int) -> list[int]:
    return np.flatnonzero(packets.are(flag)).tolist()


PLAIN = PacketKind()


def test_columns_are_those_of_the_packets() -> None:
    packets = columns(PLAIN, PLAIN, PLAIN)
    assert len(packets) == 3
    assert packets.pts.tolist() == [0, 10, 20]
    assert packets.dts.tolist() == [-20, -10, 0]
    assert packets.size.tolist() == [100, 101, 102]
    types = [column.dtype for column in (packets.pts, packets.dts, packets.size, packets.flags)]
    assert types == [np.int64, np.int64, np.int32, np.uint8]


def test_no_packets() -> None:
    packets = columns()
    assert len(packets) == 0
    assert not packets.are(SHOWN).any()


def test_times_that_are_missing() -> None:
    made = PacketColumns()
    made.add(None, 7, 1, PLAIN, discarded=False)
    made.add(0, None, 1, PLAIN, discarded=False)
    packets = made.finish()
    assert packets.pts.tolist() == [NO_TIME, 0]
    assert packets.dts.tolist() == [7, NO_TIME]


def test_hidden_and_discarded_packets_are_not_shown() -> None:
    packets = columns(PLAIN, PacketKind(shown=0), PLAIN, PacketKind(shown=2), discarded=(2,))
    assert ranks(packets, SHOWN) == [0, 3]


def test_starts_and_droppable_packets() -> None:
    start, spare = PacketKind(random_access=True), PacketKind(droppable=True)
    packets = columns(start, spare, PLAIN, PacketKind(random_access=True, droppable=True))
    assert ranks(packets, RANDOM_ACCESS) == [0, 3]
    assert ranks(packets, DROPPABLE) == [1, 3]


def test_only_the_highest_temporal_layer_is_dropped() -> None:
    layers = [PacketKind(droppable=True, layer=layer) for layer in (0, 2, 1, 2)]
    assert ranks(columns(*layers), DROPPABLE) == [1, 3]
    assert ranks(columns(*layers[:1], *layers[2:3]), DROPPABLE) == [1]


def test_new_headers_are_those_that_differ_from_the_last() -> None:
    kinds = [PacketKind(headers=number) for number in (0, 5, 0, 5, 6, 0, 6, 5)]
    assert ranks(columns(*kinds), NEW_HEADERS) == [4, 7]
