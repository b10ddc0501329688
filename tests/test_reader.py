"""Packets of segments as they come from the file, and as files of their own."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import Interpolation

from sqt_fast.errors import VideoError
from sqt_fast.pipelines.decode import SegmentPipeline
from sqt_fast.pipelines.sample import SegmentSample
from sqt_fast.video import reader as reader_module
from sqt_fast.video.packets import RANDOM_ACCESS
from sqt_fast.video.reader import PacketReader, is_cropped_at_end, remux
from sqt_fast.video.segments import plan_segments
from tests.test_segments import digest, known
from tests.videos import drift, look, write

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


# Files of their own --------------------------------------------------------------------------------------------------

REMUXED = [  # what the GPU's route takes, and what its tests take
    *("h264", "h264 without b", "h264 open", "h264 intra refresh", "h264 ts", "h264 open ts", "h264 mkv"),
    *("h264 slices", "h264 varying rate", "h264 edit list"),
    *("hevc", "hevc open", "hevc open ts", "hevc open mkv", "hevc radl", "hevc layers"),
    *("vp8", "vp9", "mpeg4", "mpeg4 ts"),
]


@pytest.mark.parametrize("name", REMUXED)
def test_a_remuxed_segment_is_a_file_whose_wanted_frames_are_where_indices_say(name: str, folder: Path) -> None:
    facts, truth = known(write(name, folder))
    wanted = np.arange(3, facts.num_frames, 4)
    segments = plan_segments(facts, wanted, max_wanted=7)
    with PacketReader(facts.source) as reader:
        for segment in [*segments[1:], segments[0]]:
            data = remux(reader, segment)
            with av.open(io.BytesIO(data), "r") as container:
                assert container.format.name.startswith("matroska" if name == "vp8" else "mov")
                packets = [packet for packet in container.demux(video=0) if packet.size]
            assert len(packets) == segment.num_kept
            assert not any(packet.is_discard for packet in packets)
            assert packets[0].is_keyframe
            pts = [packet.pts for packet in packets if packet.pts is not None]
            assert len(set(pts)) == segment.num_kept
            assert 0 <= min(pts) * packets[0].time_base < 0.5
            with av.open(io.BytesIO(data), "r") as container:
                container.streams.video[0].thread_type = "NONE"
                frames = [digest(frame) for frame in container.decode(video=0)]
            assert len(frames) == segment.num_kept
            assert [frames[i] for i in segment.indices] == [truth[n] for n in segment.numbers.tolist()]


@pytest.mark.parametrize("name", ["vp8", "vp9"])
def test_dali_finds_the_wanted_frames(name: str, folder: Path) -> None:
    """With the decoder that it has on the CPU, at their own size; its colours are swscale's, asked for in this way."""
    path = write(name, folder)
    facts = look(path)
    how = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    with av.open(str(path)) as container:
        whole = np.stack(
            [
                frame.reformat(format="rgb24", src_colorspace="ITU601", interpolation=how).to_ndarray()
                for frame in container.decode(video=0)
            ]
        ).astype(np.uint8)
    segments = plan_segments(facts, np.arange(1, facts.num_frames, 4), max_wanted=7)
    assert [segment.start for segment in segments] == [0, 48]
    size = (facts.source.height, facts.source.width)
    with PacketReader(facts.source) as reader:
        samples = [SegmentSample(remux(reader, segment), segment.indices, size) for segment in segments]
    pipeline = SegmentPipeline(64, device_id=None, batch_size=len(samples), num_threads=1)
    for images, segment in zip(pipeline.run(samples), segments, strict=True):
        assert np.array_equal(images.numpy(), whole[segment.numbers])


def test_the_whole_coded_picture_may_be_shown(tmp_path: Path) -> None:
    """100x60 is coded as 112x64; nothing is coded anew, so the part that was shown before is the same."""
    path = tmp_path / "cropped.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 25, {"preset": "veryfast"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 100, 60, "yuv420p"
        for pixels in drift((100, 60), 10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    facts = look(path)
    (segment,) = plan_segments(facts, np.array([0, 4, 8]))
    with PacketReader(facts.source) as reader:
        cropped = remux(reader, segment)
        whole = remux(reader, segment, uncropped=(64, 112))
    assert is_cropped_at_end(whole, cropped)
    pictures = []
    for data in (cropped, whole):
        with av.open(io.BytesIO(data), "r") as container:
            pictures.append([frame.to_ndarray(format="gray") for frame in container.decode(video=0)])
    assert [p.shape for p in pictures[1]] == [(64, 112)] * segment.num_kept
    assert all(np.array_equal(a, b[:60, :100]) for a, b in zip(*pictures, strict=True))
