"""Matroska files that end too soon, byte for byte."""

from pathlib import Path

import av
import pytest

from sqt_fast.video.matroska import CLUSTER, is_cut_off, last_header
from tests.restamp import matroska_elements
from tests.test_scan import video
from tests.videos import with_sound

BLOCKS = (0xA3, 0xA0)  # SimpleBlock, BlockGroup


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return video(tmp_path, "mkv", bf="0", g="10")


def live(path: Path, *, open_clusters: bool = False) -> Path:
    """Write a recording whose Segment states no size, as of a stream; with open_clusters its clusters state none."""
    target = path.with_name("live.mkv")
    with av.open(str(path)) as source, av.open(str(target), "w", options={"live": "1"}) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    if open_clusters:
        data = bytearray(target.read_bytes())
        starts = [start for element, start, _ in elements(data) if element == CLUSTER]
        for start in starts:
            length = (
                9
                - next(
                    data[at] for at in range(start - 8, start) if data[at - 4 : at] == b"\x1f\x43\xb6\x75"
                ).bit_length()
            )
            data[start - length : start] = (
                (1 << 8 * length) - 1 >> length - 1 if length == 1 else (1 << 7 * length + 1) - 1
            ).to_bytes(length)
        target.write_bytes(data)
    return target


def elements(data: bytes | bytearray) -> list[tuple[int, int, int]]:
    return list(matroska_elements(data))


def ends_of_blocks(path: Path) -> list[int]:
    return [end for element, _, end in elements(path.read_bytes()) if element in BLOCKS]


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


def test_where_the_last_of_joined_files_begins(whole: Path, tmp_path: Path) -> None:
    data = whole.read_bytes()
    path = tmp_path / "joined.mkv"
    for count in (1, 2, 3):
        path.write_bytes(count * data)
        assert last_header(str(path)) == (count - 1) * len(data)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"RIFF" + bytes(96), b"\x1a\x45\xdf\xa3\x80" + b"\xff" * 50])
def test_what_is_no_matroska_is_not_judged(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    path.write_bytes(content)
    assert not is_cut_off(str(path))
