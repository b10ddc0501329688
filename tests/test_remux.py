"""Segments as files of their own."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import Interpolation

from sqt_fast.pipelines.decode import SegmentPipeline
from sqt_fast.pipelines.sample import SegmentSample
from sqt_fast.video.reader import PacketReader
from sqt_fast.video.remux import is_cropped_at_end, remux
from sqt_fast.video.segments import plan_segments
from tests.test_segments import digest, known
from tests.videos import drift, look, write

pytestmark = pytest.mark.usefixtures("quiet_ffmpeg")

REMUXED = [  # what the GPU's route takes, and what its tests take
    *("h264", "h264 without b", "h264 open", "h264 intra refresh", "h264 ts", "h264 open ts", "h264 mkv"),
    *("h264 slices", "h264 varying rate", "h264 edit list"),
    *("hevc", "hevc open", "hevc open ts", "hevc open mkv", "hevc radl", "hevc layers"),
    *("vp8", "vp9", "mpeg4", "mpeg4 ts"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "kinds"


# Reading -------------------------------------------------------------------------------------------------------------


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
