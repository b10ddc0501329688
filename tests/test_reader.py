"""Packets of segments as they come from the file."""

from pathlib import Path

import av
import numpy as np
import pytest

from sqt_fast.errors import VideoError
from sqt_fast.video import reader as reader_module
from sqt_fast.video.packets import RANDOM_ACCESS
from sqt_fast.video.reader import PacketReader
from sqt_fast.video.segments import plan_segments
from tests.videos import look, write

pytestmark = pytest.mark.usefixtures("quiet_ffmpeg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "kinds"


# Reading -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("near", [0, 1000], ids=["seeking", "reading on"])
@pytest.mark.parametrize("name", ["h264", "h264 open", "hevc open ts", "h264 mkv", "h264 edit list", "vp8", "mpeg2 ps"])
def test_packets_are_the_files(name: str, near: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their bytes, whatever was asked for before."""
    monkeypatch.setattr(reader_module, "NEAR_PACKETS", near)
    path = write(name, folder)
    with av.open(str(path)) as container:
        stored = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    facts = look(path)
    segments = plan_segments(facts, np.arange(0, facts.num_frames, 5), max_wanted=1)
    with PacketReader(facts.source) as reader:
        for rank in [*range(len(segments)), 0, len(segments) - 1, len(segments) // 2, len(segments) // 2]:
            segment = segments[rank]
            ranks = segment.start + np.flatnonzero(segment.keep)
            packets = list(reader.packets(segment))
            assert [bytes(packet) for packet in packets] == [stored[r] for r in ranks]
            assert [packet.pts for packet in packets] == facts.packets.pts[ranks].tolist()


def test_far_segments_are_found_without_reading_up_to_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "NEAR_PACKETS", 5)
    for name in ("h264", "hevc open", "vp9"):  # containers with an index and with decoding times
        facts = look(write(name, folder))
        start = int(np.flatnonzero(facts.packets.are(RANDOM_ACCESS))[-1])
        (segment,) = plan_segments(facts, np.array([facts.num_frames - 1]), max_wanted=1)
        assert segment.start == start >= 60
        with PacketReader(facts.source) as reader:
            assert len(list(reader.packets(segment))) == segment.num_kept
            assert reader.packets_read <= segment.end - segment.start + 1, name


def test_segments_that_follow_one_another_are_read_once(folder: Path) -> None:
    facts = look(write("h264", folder))
    segments = plan_segments(facts, np.arange(80), max_wanted=1)
    assert len(segments) == 4
    with PacketReader(facts.source) as reader:
        assert sum(len(list(reader.packets(segment))) for segment in segments) == 80
        assert reader.packets_read == 80


def test_a_segment_may_be_left_in_the_middle(folder: Path) -> None:
    facts = look(write("h264", folder))
    first, second, *_ = plan_segments(facts, np.arange(80), max_wanted=1)
    with PacketReader(facts.source) as reader:
        packets = reader.packets(first)
        assert [next(packets).pts for _ in range(3)] == facts.packets.pts[:3].tolist()
        packets.close()  # type: ignore[attr-defined]  # a generator
        assert [p.pts for p in reader.packets(second)] == facts.packets.pts[24:48].tolist()
        assert [p.pts for p in reader.packets(first)] == facts.packets.pts[:24].tolist()


def test_times_of_pictures_found_by_rank_are_their_ranks(folder: Path) -> None:
    facts = look(write("mjpeg", folder))
    (segment,) = plan_segments(facts, np.array([3, 8, 9]))
    with PacketReader(facts.source) as reader:
        assert [packet.pts for packet in reader.packets(segment)] == [3, 8, 9]


def test_progress_is_told_packet_by_packet(folder: Path) -> None:
    facts = look(write("h264", folder))
    calls: list[None] = []
    (segment,) = plan_segments(facts, np.array([30]))
    with PacketReader(facts.source, progress=lambda: calls.append(None)) as reader:
        list(reader.packets(segment))
        assert len(calls) == reader.packets_read > 0


def test_a_file_that_is_shorter_now_gives_what_it_has(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.mkv"
    path.write_bytes(write("h264 mkv", folder).read_bytes())
    facts = look(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    first, *_, last = plan_segments(facts, np.arange(80), max_wanted=1)
    with PacketReader(facts.source) as reader:
        assert list(reader.packets(last)) == []
        assert len(list(reader.packets(first))) == first.num_kept


def test_a_file_that_has_gone_is_said_so(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(write("h264", folder).read_bytes())
    facts = look(path)
    path.unlink()
    with pytest.raises(VideoError, match="no such file"):
        PacketReader(facts.source)
