"""Matroska files that end too soon, byte for byte."""

from pathlib import Path

import pytest

from sqt_fast.video.matroska import CLUSTER, SEGMENT, walk
from tests.restamp import matroska_elements
from tests.test_scan import video
from tests.videos import copy, with_sound

BLOCKS = (0xA3, 0xA0)  # SimpleBlock, BlockGroup


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return video(tmp_path, "mkv", bf="0", g="10")


def live(path: Path) -> Path:
    """Write a recording whose Segment states no size, as of a stream."""
    return copy(path, path.with_name("live.mkv"), live="1")


def is_cut_off(path: str) -> bool:
    return walk(path).is_cut_off


def ends_of_blocks(path: Path) -> list[int]:
    return [end for element, _, end in matroska_elements(path.read_bytes()) if element in BLOCKS]


def shortened(path: Path, length: int) -> Path:
    target = path.with_name("cut.mkv")
    target.write_bytes(path.read_bytes()[:length])
    return target


def test_a_whole_file_is_whole(whole: Path, tmp_path: Path) -> None:
    assert not is_cut_off(str(whole))
    assert not is_cut_off(str(with_sound(tmp_path / "sound.mkv", seconds=1.6)))
    assert not is_cut_off(str(live(whole)))


def test_a_file_that_states_its_size_is_cut_wherever_pictures_may_be_missing(whole: Path) -> None:
    size, last = whole.stat().st_size, ends_of_blocks(whole)[-1]
    for length in range(200, last, 173):
        assert is_cut_off(str(shortened(whole, length))), length
    for length in range(last + 12, size, 29):  # in the index behind the pictures
        assert not is_cut_off(str(shortened(whole, length))), length


def test_of_a_live_recording_the_last_block_tells(whole: Path) -> None:
    path = live(whole)
    ends = ends_of_blocks(path)
    for k in (3, 12, 25, 38):
        start, end = ends[k - 1], ends[k]
        for length in range(start + 13, end, max(1, (end - start) // 7)):
            assert is_cut_off(str(shortened(path, length))), (k, length)


def test_clusters_may_state_no_size_either(tmp_path: Path) -> None:
    """As browsers record: Segment and clusters open, one block behind the other."""
    head = b"\x1a\x45\xdf\xa3\x84abcd" + SEGMENT.to_bytes(4) + b"\x01" + b"\xff" * 7
    cluster = CLUSTER.to_bytes(4) + b"\xff" + b"\xe7\x81\x05"
    block = b"\xa3\x40\x64" + bytes(100)
    data = head + 2 * (cluster + 3 * block)
    path = tmp_path / "a.webm"
    for length, is_cut in ((0, False), (1, True), (50, True), (99, True), (100, True), (103, False), (203, True)):
        path.write_bytes(data[: len(data) - length])
        assert is_cut_off(str(path)) == is_cut, length


def test_where_the_last_of_joined_files_begins(whole: Path, tmp_path: Path) -> None:
    data = whole.read_bytes()
    path = tmp_path / "joined.mkv"
    for count in (1, 2, 3):
        path.write_bytes(count * data)
        assert walk(str(path)).last_header == (count - 1) * len(data)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"RIFF" + bytes(96), b"\x1a\x45\xdf\xa3\x80" + b"\xff" * 50])
def test_what_is_no_matroska_is_not_judged(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    path.write_bytes(content)
    assert not is_cut_off(str(path))
