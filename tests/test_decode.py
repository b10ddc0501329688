"""The DALI graph of segments, on the CPU with VP9 and VP8, against PyAV and the host's resize."""

import io
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import cache

import av
import numpy as np
import pytest
import torch
from av.video.stream import VideoStream
from torch import Tensor

from sqt_fast.clips.colour import from_bt601, from_nvdec
from sqt_fast.clips.resize import resize, upright
from sqt_fast.engine.selftest import host_frames
from sqt_fast.kernels.bilinear import bilinear, bilinear_reference
from sqt_fast.pipelines import decode as module
from sqt_fast.pipelines.decode import SegmentPipeline, resize_on
from sqt_fast.pipelines.sample import SegmentSample
from sqt_fast.samples.scenes import draw, random_scene
from sqt_fast.video.probe import Orientation
from tests.test_bilinear import ORIENTATIONS

SHORT_SIDE = 96


@cache
def clip(size: tuple[int, int], num_frames: int = 24, container: str = "mp4", encoder: str = "libvpx-vp9") -> bytes:
    """Return a file of a moving scene; size: (width, height)."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(encoder, 25, {"deadline": "realtime", "cpu-used": "8", "g": "10", "b": "1M"})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt, stream.codec_context.thread_count = "yuv420p", 1
        for i, pixels in enumerate(draw(random_scene("right", size), np.arange(num_frames) / 25, size)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def sample(size: tuple[int, int], indices: list[int], display_size: tuple[int, int] | None = None) -> SegmentSample:
    return SegmentSample(clip(size), np.array(indices, np.int32), size[::-1], display_size)


def on_the_host(wanted: SegmentSample, short_side: int = SHORT_SIDE) -> Tensor:
    """Decode with PyAV, then turn and resize with ``sqt_fast/clips/resize.py``."""
    return resize(upright(torch.from_numpy(host_frames(wanted)), wanted.orientation), short_side)


@pytest.fixture(scope="module")
def pipeline() -> SegmentPipeline:
    return SegmentPipeline(SHORT_SIDE, device_id=None, batch_size=4, num_threads=2)


CASES: dict[str, Callable[[], SegmentSample]] = {
    "down": lambda: sample((320, 240), [0, 7, 23]),
    "up": lambda: sample((80, 64), [3, 4, 5]),
    "portrait": lambda: sample((128, 200), [11]),
    "the right size already": lambda: sample((128, 96), [0, 12]),
    "every frame": lambda: sample((128, 96), list(range(24))),
    "not a multiple of 8": lambda: sample((170, 130), [1, 20]),
    "odd": lambda: sample((171, 133), [1, 20]),
    "cropped": lambda: sample((320, 240), [2, 9], (180, 300)),
    "cropped to the right size": lambda: sample((320, 240), [2, 9], (96, 128)),
    "cropped by one row": lambda: sample((320, 240), [2, 9], (239, 320)),
    "cropped to everything": lambda: sample((320, 240), [2, 9], (240, 320)),
    "vp8": lambda: SegmentSample(
        clip((160, 120), 24, "webm", "libvpx"), np.array([5, 22], np.int32), (120, 160), display_size=(112, 160)
    ),
}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_equals_pyav_and_the_hosts_resize(pipeline: SegmentPipeline, make: Callable[[], SegmentSample]) -> None:
    wanted = make()
    (images,) = pipeline.run([wanted])
    assert images.dtype == torch.uint8
    assert images.is_contiguous()
    assert min(images.shape[1:3]) == SHORT_SIDE
    assert torch.equal(images, on_the_host(wanted))


def test_batch_of_different_samples(pipeline: SegmentPipeline) -> None:
    """Sizes, crops and numbers of frames differ; batches may be smaller than announced."""
    samples = [make() for make in CASES.values()]
    for i in range(0, len(samples), 3):
        batch = samples[i : i + 3]
        for images, wanted in zip(pipeline.run(batch), batch, strict=True):
            assert torch.equal(images, on_the_host(wanted))


@pytest.mark.parametrize("short_side", [64, 224, 256])
def test_other_short_sides(short_side: int) -> None:
    pipeline = SegmentPipeline(short_side, device_id=None, batch_size=1, num_threads=1)
    wanted = sample((320, 240), [0, 23])
    (images,) = pipeline.run([wanted])
    assert torch.equal(images, on_the_host(wanted, short_side))


def test_cropped_and_enlarged() -> None:
    """What was cropped away is not seen at the edge."""
    pipeline = SegmentPipeline(256, device_id=None, batch_size=1, num_threads=1)
    wanted = sample((320, 240), [0, 23], (236, 316))
    (images,) = pipeline.run([wanted])
    assert torch.equal(images, on_the_host(wanted, 256))


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
def test_frames_are_turned_before_they_are_resized(pipeline: SegmentPipeline, orientation: Orientation) -> None:
    wanted = replace(sample((320, 240), [2, 9], (180, 300)), orientation=orientation)
    (images,) = pipeline.run([wanted])
    assert torch.equal(images, on_the_host(wanted))


def test_colours_are_put_right_before_frames_are_resized(pipeline: SegmentPipeline) -> None:
    wanted = replace(sample((320, 240), [2, 9]), colorspace=1)
    frames = torch.from_numpy(host_frames(wanted))
    truth = resize(bilinear_reference(frames, (240, 320), matrix=from_bt601(1)), SHORT_SIDE)
    assert torch.equal(pipeline.run([wanted])[0], truth)
    assert not torch.equal(truth, on_the_host(wanted))


@pytest.mark.parametrize("full_range", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("colorspace", [2, 1])
def test_a_gpus_colours_are_put_right(
    pipeline: SegmentPipeline, monkeypatch: pytest.MonkeyPatch, colorspace: int, *, full_range: bool
) -> None:
    """What they need is another matrix than DALI's decoder on the CPU, by range too."""
    wanted = replace(sample((320, 240), [2]), colorspace=colorspace, full_range=full_range)
    frames = torch.from_numpy(host_frames(wanted))
    images = {}
    for place, stream in (("cpu", None), ("gpu", object())):
        monkeypatch.setattr(pipeline, "_stream", stream)
        images[place] = pipeline._finish(wanted, frames)
    size, matrix = (SHORT_SIDE, 128), from_nvdec(colorspace, full_range=full_range)
    assert torch.equal(images["cpu"], bilinear_reference(frames, size, matrix=from_bt601(colorspace)))
    assert torch.equal(images["gpu"], bilinear_reference(frames, size, matrix=matrix))


@pytest.mark.parametrize("left_chroma", [False, True], ids=["centred", "left"])
@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
def test_a_gpus_chroma_is_moved_along_the_stored_rows(
    pipeline: SegmentPipeline, monkeypatch: pytest.MonkeyPatch, orientation: Orientation, *, left_chroma: bool
) -> None:
    """Whichever way the picture is turned then; on the CPU it lies right."""
    wanted = replace(sample((320, 240), [2, 9], (180, 300)), orientation=orientation, left_chroma=left_chroma)
    frames = torch.from_numpy(host_frames(wanted))
    monkeypatch.setattr(pipeline, "_stream", object())
    images = pipeline._finish(wanted, frames)
    matrix = from_nvdec(2, full_range=False)
    mended = bilinear_reference(frames, (180, 300), matrix=matrix, chroma_axis=2 if left_chroma else None)
    assert torch.equal(images, resize(upright(mended, orientation).contiguous(), SHORT_SIDE))
    monkeypatch.setattr(pipeline, "_stream", None)
    assert torch.equal(pipeline._finish(wanted, frames), on_the_host(wanted))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: np.frombuffer(data, np.uint8)])
def test_any_kind_of_bytes(pipeline: SegmentPipeline, kind: Callable[[bytes], bytes]) -> None:
    wanted = sample((128, 96), [4])
    (images,) = pipeline.run([replace(wanted, data=kind(clip((128, 96))))])
    assert torch.equal(images, on_the_host(wanted))


def test_results_outlive_later_runs(pipeline: SegmentPipeline) -> None:
    samples = [sample((128, 96), [i % 24]) for i in range(60)]
    kept = [images for i in range(0, 60, 4) for images in pipeline.run(samples[i : i + 4])]
    truth = on_the_host(sample((128, 96), list(range(24))))
    assert all(torch.equal(images[0], truth[i % 24]) for i, images in enumerate(kept))
    assert len({images.untyped_storage().data_ptr() for images in kept}) == len(kept)  # no batch is held by one sample


BAD: dict[str, Callable[[], SegmentSample]] = {
    "empty": lambda: replace(sample((128, 96), [0]), data=b""),
    "no video": lambda: replace(sample((128, 96), [0]), data=b"this is no video" * 50),
    "cut off": lambda: replace(sample((128, 96), [0]), data=clip((128, 96))[:1000]),
    "beyond the end": lambda: sample((128, 96), [0, 24]),
    "a codec that the CPU has not": lambda: replace(
        sample((128, 96), [0]), data=clip((128, 96), 4, "mp4", "mpeg4"), coded_size=(96, 128)
    ),
}


@pytest.mark.usefixtures("quiet_ffmpeg")
@pytest.mark.parametrize("make", BAD.values(), ids=BAD)
def test_bad_sample_raises_and_the_next_batch_is_right(
    pipeline: SegmentPipeline, make: Callable[[], SegmentSample]
) -> None:
    good = sample((128, 96), [3, 17])
    with pytest.raises((RuntimeError, ValueError)):
        pipeline.run([good, make()])
    (images,) = pipeline.run([good])
    assert torch.equal(images, on_the_host(good))


def test_memory_can_be_released(pipeline: SegmentPipeline) -> None:
    pipeline.release_memory()
    good = sample((128, 96), [3, 17])
    assert torch.equal(pipeline.run([good])[0], on_the_host(good))


@pytest.mark.parametrize("indices", [[], [3, 3], [5, 4], [-1, 2]], ids=["none", "repeated", "descending", "negative"])
def test_indices_that_dali_would_misread_are_a_bug(indices: list[int]) -> None:
    with pytest.raises(AssertionError):
        sample((128, 96), indices)


def test_without_a_compiler_frames_are_resized_by_pytorch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kernel_device: str
) -> None:
    """NVDEC is not given up for that."""
    assert resize_on(torch.device(kernel_device)) is bilinear

    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")

    monkeypatch.setattr(module, "bilinear", fail)
    assert resize_on(torch.device(kernel_device)) is bilinear_reference
    assert "Triton does not run here: Failed to find C compiler." in caplog.text
