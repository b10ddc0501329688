"""Files that end too soon, and files that only seem to."""

from pathlib import Path

import av
import pytest

from sqt_fast.samples import encoding
from sqt_fast.samples.encoding import Format
from tests.test_scan import FPS, SIZE, encode, refused, video
from tests.videos import copy, look, story, with_sound

pytestmark = pytest.mark.usefixtures("quiet_ffmpeg")


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    target = path.with_name(f"cut{path.suffix}")
    target.write_bytes(data[: int(len(data) * share)])
    return target


@pytest.mark.parametrize("share", [0.5, 0.7, 0.95])
def test_cut_mp4_with_its_index_in_front(share: float, tmp_path: Path) -> None:
    whole = copy(video(tmp_path, g="5"), tmp_path / "fast.mp4", movflags="faststart")
    assert story(look(whole)) == ""
    facts = look(cut(whole, share))
    assert facts.broken is not None
    assert facts.num_frames < 40
    assert story(facts) != ""


def test_mp4_cut_between_two_packets(tmp_path: Path) -> None:
    whole = copy(video(tmp_path, g="5", bf="0"), tmp_path / "fast.mp4", movflags="faststart")
    with av.open(str(whole)) as container:
        ends = [p.pos + p.size for p in container.demux(video=0) if p.pos is not None and p.size]
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole.read_bytes()[: ends[19]])
    facts = look(path)
    assert facts.num_frames == 20
    assert facts.end_s == pytest.approx(0.8), "the track's length in the header counts no longer"
    if not hasattr(av.stream.Stream, "index_entries"):
        pytest.skip(f"PyAV {av.__version__} does not show the index")
    assert facts.broken == "the file is cut off: its index names 40 pictures, it holds 20"


def test_cut_mp4_with_its_index_at_the_end_is_no_video(tmp_path: Path) -> None:
    status, message = refused(cut(video(tmp_path), 0.5))
    assert (status, "moov" in message) == ("not_a_video", True)


@pytest.mark.parametrize("container", ["mkv", "webm", "avi"])
def test_other_containers_that_are_cut(container: str, tmp_path: Path) -> None:
    encoder = "libvpx" if container == "webm" and encoding.has_encoder("libvpx") else "mpeg4"
    path = tmp_path / f"whole.{container if encoder != 'mpeg4' or container != 'webm' else 'mkv'}"
    encode(path, Format(container, encoder, "yuv420p", SIZE, FPS, {"g": "5"}))
    assert story(look(path)) == ""
    facts = look(cut(path, 0.5))
    assert 0 < facts.num_frames < 35
    assert "the file is cut off" in story(facts)


@pytest.mark.parametrize(
    ("share", "broken"),
    [(0.51, "the file is cut off inside a tag"), (0.5, "a packet is cut off")],
    ids=["tag", "packet"],
)
def test_a_packet_that_is_cut_in_two_is_told(share: float, broken: str, tmp_path: Path) -> None:
    facts = look(cut(video(tmp_path, "flv", bf="0", g="5"), share))
    assert 0 < facts.num_frames < 35
    assert facts.broken == broken
    assert facts.promised_end_s is not None
    assert story(facts) == f"the file is cut off: its header promises 1.60 s, it holds {facts.end_s:.2f} s"


@pytest.mark.parametrize("container", ["ts", "m2ts"])
def test_a_transport_stream_that_is_cut(container: str, tmp_path: Path) -> None:
    """Between two transport packets nobody can tell; the last picture may then be a part of one, and damaged."""
    path = video(tmp_path, container, bf="0", g="5")
    assert look(path).broken is None
    size = 188 if container == "ts" else 192
    data = path.read_bytes()
    for length, broken in ((size * 30, None), (size * 30 + 77, "the file is cut off inside a transport packet")):
        path.write_bytes(data[:length])
        facts = look(path)
        assert 0 < facts.num_frames < 40
        assert facts.broken == broken
        assert story(facts) == (broken or "")


def test_cut_matroska_with_sound(tmp_path: Path) -> None:
    facts = look(cut(with_sound(tmp_path / "a.mkv", seconds=1.6), 0.5))
    assert facts.num_frames < 30
    assert facts.promised_end_s == pytest.approx(1.6, abs=0.05)
    assert "the file is cut off" in story(facts)


def test_sound_may_be_longer(tmp_path: Path) -> None:
    facts = look(with_sound(tmp_path / "a.mkv", seconds=5.0))
    assert facts.num_frames == 40
    assert story(facts) == ""
