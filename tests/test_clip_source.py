"""Clips by their place in the run: whoever makes them, and whatever is wrong with a file, the order and frames hold."""

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sqt_fast.clips.colour import matrix_from_nvdec
from sqt_fast.clips.resize import upright
from sqt_fast.errors import VideoError
from sqt_fast.train import clip_source as module
from sqt_fast.train.augment import order_of
from sqt_fast.train.clip_source import MAX_REPLACED, NO_PIXELS, ClipFeed, ClipSource, Sample
from sqt_fast.train.lists import LabelledVideos
from sqt_fast.video.archive import VideoFile
from sqt_fast.video.cpu_decoder import CpuDecoder, DecodeReport, Frames
from sqt_fast.video.reader import PacketReader
from sqt_fast.video.segments import plan_segments
from tests.training import COUNT, PLAIN, TINY, broken, videos_in
from tests.videos import MATRICES, look, with_matrix, write

ALL_CODECS = frozenset({"h264", "hevc", "mpeg4", "vp8", "vp9"})


@pytest.fixture
def source(training_list: Path) -> ClipSource:
    return ClipSource(videos_in(training_list), TINY, 4, seed=7)


def one(path: Path, *, training: bool = False, **options: object) -> ClipSource:
    videos = LabelledVideos((str(path),), (0,), ("a",))
    return replace(ClipSource(videos, PLAIN, 1, training=training), **options)  # type: ignore[arg-type]


def pixels_of(path: Path) -> NDArray[np.uint8]:
    """Return every frame of a file as it is shown, by the decoder that labels videos."""
    facts, reader = PacketReader.probing(VideoFile(str(path), None, None))
    with reader:
        segments = plan_segments(facts, np.arange(facts.num_frames))
        chunks = [c.images for s in segments for c in CpuDecoder().frames(reader, s, DecodeReport())]
    return upright(torch.from_numpy(np.concatenate(chunks)), facts.source.orientation).numpy()


def equal(a: Sample, b: Sample) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in Sample._fields)


def reasons(sample: Sample) -> dict[int, str]:
    lines = sample.failures.tobytes().rstrip(b"\0").decode().split("\n")
    return {int(line.partition("\t")[0]): line.partition("\t")[2] for line in lines if line}


# The place of a clip -------------------------------------------------------------------------------------------------

SHAPES = st.tuples(st.integers(1, 200), st.integers(1, 9), st.integers(1, 5))  # videos, batch size, ranks


def placed(num_videos: int, batch_size: int, rank: int = 0, world_size: int = 1, first_batch: int = 0) -> ClipSource:
    videos = LabelledVideos(("x",) * num_videos, (0,) * num_videos, ("a",))
    return ClipSource(videos, TINY, batch_size, rank=rank, world_size=world_size, first_batch=first_batch)


def batches(source: ClipSource, count: int) -> Iterator[list[tuple[int, int]]]:
    for batch in range(count):
        yield [source.place(batch * source.batch_size + k) for k in range(source.batch_size)]


@given(shape=SHAPES)
def test_ranks_together_are_one_with_the_global_batch(shape: tuple[int, int, int]) -> None:
    num_videos, batch_size, world_size = shape
    alone = placed(num_videos, batch_size * world_size)
    ranks = [placed(num_videos, batch_size, rank, world_size) for rank in range(world_size)]
    assert {source.batches_per_epoch for source in ranks} == {alone.batches_per_epoch}
    count = 2 * alone.batches_per_epoch + 1
    for whole, *parts in zip(batches(alone, count), *(batches(source, count) for source in ranks), strict=True):
        assert whole == [place for part in parts for place in part]


@given(shape=SHAPES, first=st.integers(0, 300), rank=st.integers(0, 4))
def test_to_begin_anywhere_is_to_go_on(shape: tuple[int, int, int], first: int, rank: int) -> None:
    num_videos, batch_size, world_size = shape
    place = num_videos, batch_size, rank % world_size, world_size
    through, later = placed(*place), placed(*place, first)
    for number in (0, 1, batch_size - 1, batch_size, 7 * batch_size + 1):
        assert later.place(number) == through.place(first * batch_size + number)


@given(shape=SHAPES)
def test_an_epoch_is_every_place_once_and_then_filled_up(shape: tuple[int, int, int]) -> None:
    num_videos, batch_size, world_size = shape
    source = placed(num_videos, batch_size * world_size)
    for epoch in range(2):
        numbers = range(
            epoch * source.batches_per_epoch * source.batch_size,
            (epoch + 1) * source.batches_per_epoch * source.batch_size,
        )
        places = [source.place(number) for number in numbers]
        assert places == [(epoch, k) for k in range(len(places))]
        assert num_videos <= len(places) < num_videos + batch_size * world_size


def test_items_are_in_the_order_of_the_epoch(source: ClipSource) -> None:
    per_epoch = source.batches_per_epoch * 4
    assert per_epoch == 16
    for epoch in (0, 1):
        wanted = order_of(7, epoch, COUNT).tolist()
        items = [int(source.clip(epoch * per_epoch + k).item[0]) for k in range(per_epoch)]
        assert items == wanted + wanted[: per_epoch - COUNT]
    labels = [int(source.clip(k).label[0]) for k in range(per_epoch)]
    assert labels == [source.videos.labels[int(source.clip(k).item[0])] for k in range(per_epoch)]


def test_validation_is_in_the_order_of_the_list(source: ClipSource) -> None:
    source = replace(source, training=False)
    assert [int(source.clip(k).item[0]) for k in range(17)] == [*range(COUNT), 0, 1, 2, 0]
    assert equal(source.clip(2), source.clip(16 + 2))  # the next epoch


def test_a_clip_depends_on_its_item_and_epoch_alone(source: ClipSource) -> None:
    others: list[tuple[ClipSource, Callable[[int], int]]] = [
        (replace(source, batch_size=2), lambda k: k),
        (replace(source, first_batch=2), lambda k: k - 8),
        (replace(source, batch_size=2, rank=1, world_size=2), lambda k: k // 4 * 2 + k % 4 - 2),
    ]
    for k in (10, 11):
        clip = source.clip(k)
        assert equal(clip, source.clip(k))
        assert not equal(clip, replace(source, seed=8).clip(k))
        for other, number in others:
            assert equal(clip, other.clip(number(k)))
    item = int(source.clip(3).item[0])
    later = order_of(7, 1, COUNT).tolist().index(item) + 16
    assert int(source.clip(later).item[0]) == item
    assert not equal(source.clip(3), source.clip(later))


# What is in it -------------------------------------------------------------------------------------------------------


def test_frames_are_the_ones_that_were_drawn(source: ClipSource) -> None:
    for k in range(COUNT):
        clip = source.clip(k)
        path = Path(source.videos.paths[int(clip.item[0])])
        truth = pixels_of(path)
        start = next(s for s in range(len(truth)) if np.array_equal(truth[s], clip.pixels[clip.order[0]]))
        for t, place in enumerate(clip.order):
            assert np.array_equal(clip.pixels[place], truth[(start + 4 * t) % len(truth)]), (path, t)
        height, width = truth.shape[1:3]
        top, left, bottom, right = clip.box
        assert 0 <= top < bottom <= height
        assert 0 <= left < right <= width
        assert max(bottom - top, right - left) <= 64.001


def test_a_short_video_wraps(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "short.mkv"), "w") as container:
        stream = container.add_stream("ffv1", 25)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = 64, 48
        for level in range(5):
            image = np.full((48, 64, 3), 50 * level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    for training in (True, False):
        clip = one(tmp_path / "short.mkv", training=training).clip(0)
        assert len(clip.pixels) == 5
        levels = [round(float(clip.pixels[place].mean()) / 50) for place in clip.order]
        assert levels == [4 * t % 5 for t in range(16)]


@pytest.mark.parametrize("name", MATRICES)
def test_turned_videos_are_upright(name: str, tmp_path: Path) -> None:
    path = write("h264 without b", tmp_path)
    with_matrix(path, *MATRICES[name])
    truth = pixels_of(path)
    clip = one(path).clip(0)
    assert clip.pixels.flags.c_contiguous
    start = (len(truth) - 61) // 2 if len(truth) > 61 else 0
    for t, place in enumerate(clip.order):
        assert np.array_equal(clip.pixels[place], truth[(start + 4 * t) % len(truth)])
    size = truth.shape[1:3]
    top, left, bottom, right = clip.box.tolist()
    assert (bottom - top, right - left) == pytest.approx([0.8 * min(size)] * 2)
    assert (top + bottom, left + right) == pytest.approx(size)


def test_a_size_that_changes_is_that_of_the_beginning(tmp_path: Path) -> None:
    clip = one(write("h264 two sizes ts", tmp_path), codecs=ALL_CODECS).clip(0)
    assert clip.pixels.shape[1:] == (64, 96, 3)
    assert not clip.encoded


def test_lost_frames_are_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write("mjpeg", tmp_path)
    whole = one(path).clip(0)
    assert whole.order.tolist() == list(range(16))
    real = CpuDecoder.frames

    def lossy(self: CpuDecoder, *args: Any) -> Iterator[Frames]:
        for chunk in real(self, *args):
            kept = [k for k in range(len(chunk.numbers)) if k not in (0, 1, 5)]
            yield Frames([chunk.numbers[k] for k in kept], chunk.images[kept])

    monkeypatch.setattr(CpuDecoder, "frames", lossy)
    clip = one(path).clip(0)
    for t in range(16):  # by the one before, the first ones by the first that there is
        assert np.array_equal(clip.pixels[clip.order[t]], whole.pixels[{0: 2, 1: 2, 5: 4}.get(t, t)])


# Handed on encoded ---------------------------------------------------------------------------------------------------


def decoded_frames(clip: Sample) -> NDArray[np.uint8]:
    """Decode what was handed on, (16, H, W, 3)."""
    with av.open(io.BytesIO(clip.data.tobytes()), "r") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack([frames[clip.indices[place]] for place in clip.order])


@pytest.mark.parametrize(
    "kind",
    ["h264", "h264 ts", "h264 varying rate", "h264 edit list", "h264 open", "vp8", "mpeg4"],
)
@pytest.mark.parametrize("training", [True, False])
def test_encoded_clips_hold_the_frames_of_decoded_ones(kind: str, training: bool, tmp_path: Path) -> None:
    path = write(kind, tmp_path)
    for seed in range(3 if training else 1):
        by_host = one(path, training=training, seed=seed).clip(0)
        by_graph = one(path, training=training, seed=seed, codecs=ALL_CODECS).clip(0)
        assert by_graph.pixels is NO_PIXELS
        assert by_graph.encoded
        assert not by_host.encoded
        assert np.array_equal(decoded_frames(by_graph), by_host.pixels[by_host.order])
        assert len(by_graph.data) < path.stat().st_size + 2000
        assert (np.diff(by_graph.indices) > 0).all()
        for name in set(Sample._fields) - {"pixels", "data", "indices", "encoded", "colours", "order"}:
            assert np.array_equal(getattr(by_host, name), getattr(by_graph, name)), name


@pytest.mark.parametrize(
    "kind", ["h264 interlaced", "h264 two sizes ts", "vp8 hidden", "mpeg2 ts", "prores", "av1", "h264 raw", "mpeg4 avi"]
)
def test_what_a_gpu_does_not_get_right_is_decoded_here(kind: str, tmp_path: Path) -> None:
    path = write(kind, tmp_path)
    clip = one(path, codecs=ALL_CODECS).clip(0)
    assert not clip.encoded
    assert equal(clip, one(path).clip(0))


def test_turned_videos_are_decoded_here(tmp_path: Path) -> None:
    path = write("h264", tmp_path)
    assert one(path, codecs=ALL_CODECS).clip(0).encoded
    with_matrix(path, *MATRICES["upside down"])
    assert not one(path, codecs=ALL_CODECS).clip(0).encoded


def test_only_what_was_asked_for_is_handed_on(tmp_path: Path) -> None:
    path = write("h264", tmp_path)
    assert not one(path, codecs=ALL_CODECS - {"h264"}).clip(0).encoded


def test_what_cannot_be_written_again_is_decoded_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: object) -> bytes:
        raise RuntimeError("no")

    path = write("h264", tmp_path)
    monkeypatch.setattr(module, "remux", refuse)
    assert equal(one(path, codecs=ALL_CODECS).clip(0), one(path).clip(0))


def test_colours_are_told_to_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("h264", tmp_path)
    facts = look(path)
    real = PacketReader.probing

    def tagged(video: VideoFile) -> object:
        found, reader = real(video)
        return replace(found, colorspace=1, pix_fmt="yuvj420p"), reader

    def told() -> NDArray[np.float32]:
        return one(path, codecs=ALL_CODECS).clip(0).colours

    np.testing.assert_allclose(told(), matrix_from_nvdec(2, full_range=False), atol=1e-6)
    assert facts.colorspace not in (1, 9)
    monkeypatch.setattr(PacketReader, "probing", tagged)
    np.testing.assert_allclose(told(), matrix_from_nvdec(1, full_range=True), atol=1e-6)
    assert np.array_equal(one(path).clip(0).colours, np.eye(3, 4))  # decoded by the host


# What is wrong with files --------------------------------------------------------------------------------------------


def test_broken_files_are_replaced_and_named(source: ClipSource, tmp_path: Path) -> None:
    sick = replace(source, videos=broken(source.videos, (2, 5, 6), tmp_path))
    seen = set()
    for k in range(48):
        clip, sound = sick.clip(k), source.clip(k)
        assert equal(clip, sick.clip(k))
        named = reasons(clip)
        if int(sound.item[0]) not in (2, 5, 6):
            assert equal(clip, sound)
            assert named == {}
            continue
        assert int(sound.item[0]) in named
        assert set(named) <= {2, 5, 6}
        assert set(named.values()) == {"not a video: a text file"}
        assert int(clip.item[0]) not in (2, 5, 6)
        assert clip.label[0] == sick.videos.labels[int(clip.item[0])]
        seen.add(int(clip.item[0]))
    assert len(seen) > 4  # not always the same one


def test_replacements_do_not_depend_on_the_batch(source: ClipSource, tmp_path: Path) -> None:
    sick = replace(source, videos=broken(source.videos, range(0, COUNT, 2), tmp_path))
    other = replace(sick, batch_size=2, rank=1, world_size=2)
    for k in (2, 3, 6, 7, 10, 11):
        assert equal(sick.clip(k), other.clip(k // 4 * 2 + k % 4 - 2))


@pytest.mark.parametrize("error", [ValueError("tab\there\nand more"), MemoryError(), RuntimeError("x" * 10_000)])
def test_what_nobody_expected_is_a_failure_of_the_file(
    error: Exception, source: ClipSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, bad = PacketReader.probing, source.videos.paths[3]

    def probing(video: VideoFile) -> object:
        if video.path == bad:
            raise error
        return real(video)

    monkeypatch.setattr(PacketReader, "probing", probing)
    number = order_of(7, 0, COUNT).tolist().index(3)
    named = reasons(source.clip(number))
    assert set(named) == {3}
    assert named[3].startswith(type(error).__name__)
    assert "\n" not in named[3]


def test_a_list_of_nothing_but_broken_files_ends_the_run(source: ClipSource, tmp_path: Path) -> None:
    sick = replace(source, videos=broken(source.videos, range(COUNT), tmp_path))
    for training in (True, False):
        with pytest.raises(VideoError) as caught:
            replace(sick, training=training).clip(0)
        assert str(caught.value).startswith(f"{MAX_REPLACED} videos in a row cannot be read, last {tmp_path}/broken-")


# The feed ------------------------------------------------------------------------------------------------------------


class Info:
    """What DALI says of a sample."""

    idx_in_epoch = 5


def test_the_feed_hands_over_what_is_asked_for(source: ClipSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "kill_with_parent", lambda: pytest.fail("this process was not started by a feed"))
    box, item = ClipFeed(source, ["box", "item"])(Info())
    assert np.array_equal(box, source.clip(5).box)
    assert np.array_equal(item, source.clip(5).item)


def test_every_field_is_an_array_of_its_type(source: ClipSource) -> None:
    """DALI refuses scalars from its processes."""
    types = {
        **dict.fromkeys(("pixels", "data", "failures"), np.uint8),
        **dict.fromkeys(("indices", "order", "flip"), np.int32),
        **dict.fromkeys(("box", "jitter", "erased", "colours"), np.float32),
        **dict.fromkeys(("noise", "label", "item"), np.int64),
        "encoded": np.bool_,
    }
    for codecs in (frozenset(), ALL_CODECS):
        for k in range(COUNT):
            sample = replace(source, codecs=codecs).clip(k)
            assert {name: value.dtype.type for name, value in sample._asdict().items()} == types
            assert all(isinstance(value, np.ndarray) for value in sample)
            assert sample.order.max() < (len(sample.indices) if sample.encoded else len(sample.pixels))
