"""The graph of training clips on the CPU, against PyAV, float64 and the formulas of the changes."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import repeat
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

pytest.importorskip("nvidia.dali", reason="DALI makes the clips: pip install 'sqt-fast[train]'")

from nvidia.dali import fn
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import pipeline_def

from sqt_fast.clips.colour import matrix_from_nvdec
from sqt_fast.errors import VideoError
from sqt_fast.kernels.squeeze_host import MEAN, STD
from sqt_fast.pipelines.train import ClipPipeline, _on_gpu
from sqt_fast.samples.scenes import draw, random_scene
from sqt_fast.train.clip_source import ClipSource, Sample
from sqt_fast.train.lists import LabelledVideos
from tests.training import COUNT, PLAIN, TINY, broken, videos_in

Float64 = NDArray[np.float64]
SIZE = TINY.crop_size


@pytest.fixture
def source(training_list: Path) -> ClipSource:
    return ClipSource(videos_in(training_list), PLAIN, COUNT, seed=3)


def run(source: ClipSource, num_workers: int = 0) -> list[Any]:
    with closing(ClipPipeline(source, device_id=None, num_workers=num_workers, num_threads=1)) as pipeline:
        return list(pipeline.run())


def levels(clips: torch.Tensor) -> Float64:
    """Return clips (B, 48, S, S) as they were before normalisation: (B, 16, S, S, 3), levels of 0 to 255."""
    frames = clips.double().view(-1, 3, 16, SIZE, SIZE).permute(0, 2, 3, 4, 1)
    result: Float64 = frames.numpy() * STD + MEAN
    return result


def bilinear(frames: NDArray[np.uint8], box: Float64) -> Float64:
    """Resize the box (top, left, bottom, right; pixels) of frames (F, H, W, 3) to SIZE by the formula, not rounded."""

    def weights(low: float, high: float, length: int) -> Float64:
        centres = low + (np.arange(SIZE) + 0.5) * (high - low) / SIZE - 0.5
        first = np.floor(centres).astype(int)
        matrix = np.zeros((SIZE, length))
        for offset, share in ((0, 1 - (centres - first)), (1, centres - first)):
            np.add.at(matrix, (np.arange(SIZE), np.clip(first + offset, 0, length - 1)), share)
        return matrix

    rows, columns = weights(box[0], box[2], frames.shape[1]), weights(box[1], box[3], frames.shape[2])
    wide = np.moveaxis(frames, 3, 1) @ columns.T  # (F, C, H, SIZE)
    result: Float64 = np.moveaxis(rows @ wide, 1, 3)
    return result


def decoded(path: str) -> NDArray[np.uint8]:
    with av.open(path) as container:
        frames = list(container.decode(video=0))
    return np.stack([np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90) for frame in frames])


def test_validation_is_pyav_and_the_formula(source: ClipSource) -> None:
    """Middle frames, centre crop, bilinear without antialiasing, channel = c * 16 + t: to the rounding of bytes."""
    clips, erased, _, labels, items, failures = run(replace(source, training=False))
    assert clips.shape == (COUNT, 48, SIZE, SIZE)
    assert clips.dtype == torch.float32
    assert (items.tolist(), labels.tolist()) == (list(range(COUNT)), list(source.videos.labels))
    assert not erased.any()
    assert failures == [b""] * COUNT
    for clip, path in zip(levels(clips), source.videos.paths, strict=True):
        frames = decoded(path)
        start = max(len(frames) - 61, 0) // 2
        wanted = frames[(start + 4 * np.arange(16)) % len(frames)]
        height, width = frames.shape[1:3]
        side = min(height, width) * PLAIN.crop_size / PLAIN.short_side
        box = np.array([height - side, width - side, height + side, width + side]) / 2
        assert abs(clip - bilinear(wanted, box)).max() < 0.51, path


def test_training_takes_the_box_and_frames_that_were_drawn(source: ClipSource) -> None:
    clips, *_ = run(replace(source, recipe=replace(PLAIN, scales=TINY.scales)))
    for k, clip in enumerate(levels(clips)):
        sample = replace(source, recipe=replace(PLAIN, scales=TINY.scales)).clip(k)
        truth = bilinear(sample.pixels[sample.order], sample.box.astype(np.float64))
        assert abs(clip - truth).max() < 0.52


def test_a_flip_is_a_mirror(source: ClipSource) -> None:
    plain, flipped = (run(replace(source, recipe=replace(TINY, flip=flip)))[0] for flip in (0.0, 1.0))
    assert torch.equal(flipped, plain.flip(3))


# One change at a time ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Changed(ClipSource):
    """A source whose every clip is changed in one way. jitter: see ``Choices``."""

    jitter: tuple[float, float, float, float] = (1, 1, 1, 0)

    def clip(self, number: int) -> Sample:
        return super().clip(number)._replace(jitter=np.array(self.jitter, np.float32))


def changed(source: ClipSource, *jitter: float) -> Float64:
    recipe = replace(PLAIN, jitter=0.1)
    own = {name: getattr(source, name) for name in ("videos", "batch_size", "seed")}
    return levels(run(Changed(recipe=recipe, **own, jitter=jitter))[0])  # type: ignore[arg-type]


def luma(frames: Float64) -> Float64:
    result: Float64 = frames @ [0.299, 0.587, 0.114]
    return result


CHANGES: dict[str, tuple[tuple[float, ...], Callable[[Float64], Float64]]] = {
    "nothing": ((1, 1, 1, 0), lambda x: x),
    "darker": ((0.5, 1, 1, 0), lambda x: 0.5 * x),
    "brighter": ((1.4, 1, 1, 0), lambda x: 1.4 * x),
    "less contrast": ((1, 0.5, 1, 0), lambda x: 128 + 0.5 * (x - 128)),
    "more contrast": ((1, 1.5, 1, 0), lambda x: 128 + 1.5 * (x - 128)),
    "grey": ((1, 1, 0, 0), lambda x: np.repeat(luma(x)[..., None], 3, axis=-1)),
    "once round": ((1, 1, 1, 360), lambda x: x),
}


@pytest.mark.parametrize("name", CHANGES)
def test_colours_change_by_the_formula(name: str, source: ClipSource) -> None:
    """DALI's: contrast is around 128, where mmaction2's is around the frame's mean."""
    jitter, formula = CHANGES[name]
    before = levels(run(replace(source, recipe=PLAIN))[0])
    difference = abs(changed(source, *jitter) - formula(before).clip(0, 255))
    assert difference.max() < (1.6 if name in ("grey", "once round") else 0.6)


def test_hue_turns_colours_and_leaves_luma(source: ClipSource) -> None:
    before, after = changed(source, 1, 1, 1, 0), changed(source, 1, 1, 1, 30)
    safe = ((after > 1) & (after < 254)).all(-1)  # what is not clipped
    assert safe.mean() > 0.5
    assert abs(luma(after) - luma(before))[safe].max() < 2
    assert abs(after - before)[safe].mean() > 5


def still(folder: Path) -> LabelledVideos:
    """A video of 40 frames that are the same."""
    picture = next(iter(draw(random_scene("left", 5), [0.0], (96, 64))))
    with av.open(str(folder / "still.mkv"), "w") as container:
        stream = container.add_stream("ffv1", 25)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "bgr0"
        for _ in range(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return LabelledVideos((str(folder / "still.mkv"),), (0,), ("a",))


def test_all_frames_of_a_clip_are_changed_alike(tmp_path: Path) -> None:
    source = ClipSource(still(tmp_path), TINY, 12)
    clips = torch.cat([run(replace(source, seed=seed, batch_size=1))[0] for seed in range(4)])
    frames = clips.view(-1, 3, 16, SIZE, SIZE)
    assert torch.equal(frames, frames[:, :, :1].expand_as(frames))
    assert len({clip.numpy().tobytes() for clip in clips}) == 4


# The graph decodes ---------------------------------------------------------------------------------------------------


def write_vpx(path: Path, *, grey: bool = False, colorspace: int | None = None, hold: int = 1) -> Path:
    """Write a moving scene; hold: so many frames are the same."""
    encoder = "libvpx" if path.stem.startswith("vp8") else "libvpx-vp9"
    options = {"deadline": "realtime", "cpu-used": "8", "b": "4M", "g": "16", "lag-in-frames": "0"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, 25, options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 192, 144, "yuv420p"
        stream.codec_context.thread_count = 1
        if colorspace is not None:
            stream.codec_context.colorspace = colorspace
        for i, pixels in enumerate(draw(random_scene("right", 3), np.arange(72) // hold / 25, (192, 144))):
            shown = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8) if grey else pixels
            frame = av.VideoFrame.from_ndarray(shown, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def both_ways(videos: LabelledVideos, **options: Any) -> Iterator[tuple[Float64, Float64]]:
    """Yield each clip as the host and as the graph decodes it."""
    by_host = ClipSource(videos, replace(PLAIN, scales=(1.0, 0.7)), len(videos.paths), **options)
    by_graph = replace(by_host, codecs=frozenset({"vp8", "vp9"}))
    encoded = {int(c.item[0]): bool(c.encoded) for c in (by_graph.clip(k) for k in range(len(videos.paths)))}
    assert encoded == {k: Path(path).stem.startswith("vp") for k, path in enumerate(videos.paths)}
    a, b = run(by_host), run(by_graph)
    assert [x.tolist() for x in a[1:5]] == [x.tolist() for x in b[1:5]]
    yield from zip(levels(a[0]), levels(b[0]), strict=True)


@pytest.mark.parametrize("training", [True, False])
def test_the_graph_decodes_the_same_frames(training: bool, tmp_path: Path, source: ClipSource) -> None:
    """Without colours, both decoders give the same pixels; in one batch with clips that the host decodes."""
    paths = [write_vpx(tmp_path / f"{codec}.webm", grey=True) for codec in ("vp8", "vp9")]
    videos = replace(source.videos, paths=(*map(str, paths), source.videos.paths[0]), labels=(0, 1, 2))
    for seed in range(2 if training else 1):
        for by_host, by_graph in both_ways(videos, training=training, seed=seed):
            assert abs(by_host - by_graph).max() < 2.1  # swscale's default rounding
            assert abs(by_host - by_graph).mean() < 0.8
            assert abs(np.diff(by_host, axis=0)).max() > 10  # frames that are off by one would show


def colour_error(videos: LabelledVideos) -> float:
    """Return the mean difference of the channel that differs most; edges differ: DALI takes colours between samples."""
    ((by_host, by_graph),) = both_ways(videos, training=False)
    return float(abs(by_host - by_graph).mean(axis=(0, 1, 2)).max())


@pytest.mark.parametrize("colorspace", [None, 5, 1], ids=["untagged", "BT.601", "BT.709"])
def test_the_graph_decodes_to_the_same_colours(
    colorspace: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_vpx(tmp_path / "vp9.webm", colorspace=colorspace)
    videos = LabelledVideos((str(path),), (0,), ("a",))
    assert colour_error(videos) < 2.2
    monkeypatch.setattr("sqt_fast.train.clip_source.matrix_from_nvdec", lambda *_, **__: np.eye(3, 4))
    assert (colour_error(videos) > 3.5) == (colorspace == 1)


@pytest.mark.parametrize("colorspace", [2, 1])
def test_colours_of_a_gpu_are_put_right_by_dalis_operators(colorspace: int, source: ClipSource) -> None:
    """The operators for GPUs, run on the CPU: a matrix, and something to add."""
    frames = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    colours = matrix_from_nvdec(colorspace, full_range=False).astype(np.float32)
    given = {"colours": colours, "order": np.arange(16, dtype=np.int32) % 2, "flip": np.array(0, np.int32)}
    given["box"] = np.array([0, 0, SIZE, SIZE], np.float32)

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)  # type: ignore[untyped-decorator]
    def graph() -> DataNode:
        sample = {name: fn.external_source(source=repeat(value), batch=False) for name, value in given.items()}
        decoded = fn.external_source(source=repeat(frames), batch=False, layout="FHWC")
        return _on_gpu(replace(source, codecs=frozenset({"h264"}), training=False), decoded, sample)

    (clip,) = graph().run()
    ours = levels(torch.from_numpy(np.array(clip.at(0)))[None])[0, :2]
    wanted = frames @ colours[:, :3].T + colours[:, 3]
    np.testing.assert_allclose(ours, np.rint(wanted.clip(0, 255)), atol=0.51)  # a half may be rounded either way


# What goes wrong -----------------------------------------------------------------------------------------------------


def test_broken_files_are_named(source: ClipSource, tmp_path: Path) -> None:
    sick = replace(source, videos=broken(source.videos, (1, 4), tmp_path), training=False)
    *_, items, failures = run(sick)
    assert [k for k, text in enumerate(failures) if text] == [1, 4]
    assert failures[4].startswith(b"4\tnot a video") or b"4\tnot a video" in failures[4]
    assert items[[0, 2, 3]].tolist() == [0, 2, 3]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_list_of_broken_files_is_one_line(num_workers: int, source: ClipSource, tmp_path: Path) -> None:
    sick = replace(source, videos=broken(source.videos, range(COUNT), tmp_path))
    with pytest.raises(VideoError) as caught:
        run(sick, num_workers)
    assert str(caught.value).startswith("100 videos in a row cannot be read, last ")
    assert "\n" not in str(caught.value)


@pytest.mark.needs_cuda
def test_a_gpu_makes_the_same_clips(source: ClipSource) -> None:
    device = torch.device("cuda", 0)
    with closing(ClipPipeline(source, device_id=0, num_workers=0, num_threads=2)) as pipeline:
        for first in range(3):
            results: list[Any] = list(pipeline.run())
            on_gpu, *numbers = results
            assert on_gpu.device == device
            on_cpu, *wanted = run(replace(source, first_batch=first))
            assert abs(levels(on_gpu.cpu()) - levels(on_cpu)).max() < 1.1
            assert [x.tolist() for x in numbers[:4]] == [x.tolist() for x in wanted[:4]]
