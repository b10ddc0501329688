"""What the facts of a video say of it."""

from dataclasses import replace

import numpy as np
import pytest

from sqt_fast.video.packets import SHOWN, Packets
from sqt_fast.video.probe import Orientation, Probe, Source

FRAMES = 4
PACKETS = Packets(np.arange(FRAMES), np.arange(FRAMES), np.ones(FRAMES, np.int32), np.full(FRAMES, SHOWN, np.uint8))
FACTS = Probe(
    source=Source("a.mp4", 0, 64, 48, Orientation()),
    packets=PACKETS,
    container="mp4",
    codec="h264",
    profile=None,
    pix_fmt="yuv420p",
    coded_size=(48, 64),
    colorspace=2,
    is_interlaced=False,
    size_changes=False,
    has_hidden=False,
    reorder_depth=0,
    fps=25.0,
    is_vfr=False,
    times_s=np.array([0.5, 0.54, 0.58, 0.62]),
    end_s=0.66,
    pts=np.array([0, 512, 1024, 2048]),
    promised_end_s=None,
    promised_frames=None,
    broken=None,
)


@pytest.mark.parametrize(("pix_fmt", "full"), [("yuv420p", False), ("yuvj420p", True), ("yuv420p10le", False)])
def test_the_formats_name_says_the_range(pix_fmt: str, *, full: bool) -> None:
    assert replace(FACTS, pix_fmt=pix_fmt).is_full_range == full


def test_duration_is_from_the_first_frame_to_the_end_of_the_last() -> None:
    assert FACTS.num_frames == 4
    assert FACTS.duration_s == pytest.approx(0.16)


def test_frames_are_known_by_their_ticks_or_counted() -> None:
    assert FACTS.numbers_of([]) == []
    assert FACTS.numbers_of([2048, 0, 0, 513, -5, 9999, 1024]) == [0, 2, 3]
    assert replace(FACTS, pts=None).numbers_of([3, 1, 1, 4]) == [1, 3]
