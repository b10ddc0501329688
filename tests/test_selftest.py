"""The test of codecs: it must pass a right decoder, and turn a codec off for every way to be wrong."""

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from sqt_fast.clips.colour import from_bt601
from sqt_fast.clips.resize import resize
from sqt_fast.engine import selftest
from sqt_fast.engine.segment_decoder import SegmentDecoder, SegmentError, gpu_pipelines
from sqt_fast.engine.selftest import CLIPS, NUM_FRAMES, draw_number, encode, host_frames, read_number, working_codecs
from sqt_fast.kernels.bilinear import bilinear_reference
from sqt_fast.pipelines.sample import SegmentSample
from sqt_fast.video.bitstream import packet_reader

SHORT_SIDE = 64


def right(sample: SegmentSample) -> Tensor:
    """Decode as the GPU should."""
    return resize(torch.from_numpy(host_frames(sample)), SHORT_SIDE)


@pytest.fixture(scope="module")
def cpu_decoder() -> Iterator[SegmentDecoder]:
    make_pipeline = gpu_pipelines(SHORT_SIDE, device_id=None, num_threads=2)
    with closing(SegmentDecoder(make_pipeline, batch_size=2, num_pipelines=1)) as decoder:
        yield decoder


@pytest.mark.parametrize("codec", CLIPS)
def test_clip_is_what_segments_are(codec: str) -> None:
    """A packet a picture, each with its time, none to be discarded or hidden, B-frames where the codec has them."""
    with av.open(io.BytesIO(encode(CLIPS[codec])), "r") as container:
        context = container.streams.video[0].codec_context
        read = packet_reader(context.codec.canonical_name, context.extradata)
        kinds = [read(memoryview(packet)) for packet in container.demux(video=0) if packet.size]
    assert {(kind.shown, kind.hides) for kind in kinds} == {(1, False)}
    with av.open(io.BytesIO(encode(CLIPS[codec])), "r") as container:
        packets = [p for p in container.demux(video=0) if p.size]
    with av.open(io.BytesIO(encode(CLIPS[codec])), "r") as container:
        pictures = list(container.decode(video=0))
    assert len(packets) == len(pictures) == NUM_FRAMES
    assert not any(p.is_discard for p in packets)
    times = [p.pts for p in packets]
    assert len(set(times)) == NUM_FRAMES
    assert (times != sorted(t for t in times if t is not None)) == (codec not in ("vp8", "vp9"))
    assert sum(p.is_keyframe for p in packets) > 1


@pytest.mark.parametrize("codec", CLIPS)
def test_numbers_can_be_read_after_coding(codec: str) -> None:
    height, width = CLIPS[codec].size[::-1]
    sample = SegmentSample(encode(CLIPS[codec]), np.arange(NUM_FRAMES, dtype=np.int32), (height, width))
    for display_size in (None, (height - 12, width - 20)):
        frames = host_frames(replace(sample, display_size=display_size))
        images = resize(torch.from_numpy(frames), SHORT_SIDE).numpy()
        assert [read_number(i, sample, frames.shape[1:3]) for i in images] == list(range(NUM_FRAMES))


def test_right_decoder_passes_every_codec() -> None:
    assert working_codecs(right, short_side=SHORT_SIDE) == dict.fromkeys(CLIPS)


def test_dali_on_the_cpu_has_vp8_and_vp9_only(cpu_decoder: SegmentDecoder) -> None:
    assert working_codecs(cpu_decoder.decode, short_side=SHORT_SIDE) == {
        "h264": 'Failed to create video decoder for "memory file"',
        "hevc": 'Failed to create video decoder for "memory file"',
        "hevc10": 'Failed to create video decoder for "memory file"',
        "mpeg4": 'Failed to create video decoder for "memory file"',
        "vp9": None,
        "vp8": None,
    }


def one_frame_late(sample: SegmentSample) -> Tensor:
    images = right(sample)
    images[2] = images[3]
    return images


def uncropped(sample: SegmentSample) -> Tensor:
    return right(replace(sample, display_size=None))


def other_matrix(sample: SegmentSample) -> Tensor:
    images = right(sample)
    return bilinear_reference(images, (images.shape[1], images.shape[2]), matrix=from_bt601(1))


def empty_at_the_end(sample: SegmentSample) -> Tensor:
    images = right(sample)
    images[-1] = 0  # memory that nobody wrote to
    return images


def refusal(sample: SegmentSample) -> Tensor:
    raise SegmentError("NVDEC has no such codec")


FAULTS: dict[str, tuple[Callable[[SegmentSample], Tensor], str]] = {
    "one frame late": (one_frame_late, "frames [1, 4, 7, 10"),
    "a frame missing": (lambda sample: right(sample)[:-1], "frames of shape (13, 64, 85, 3) came, not (14, 64, 85, 3)"),
    "not cropped": (uncropped, "came, not"),
    "wrong matrix": (other_matrix, "pixels differ"),
    "empty at the end": (empty_at_the_end, "frames [1, 4, 7, 10"),
    "refused": (refusal, "NVDEC has no such codec"),
}


@pytest.mark.parametrize(("decode", "reason"), FAULTS.values(), ids=FAULTS)
def test_fault_turns_the_codec_off(decode: Callable[[SegmentSample], Tensor], reason: str) -> None:
    found = working_codecs(decode, ["vp9"], short_side=SHORT_SIDE)["vp9"]
    assert found is not None
    assert reason in found
    assert "\n" not in found


def test_decoder_that_hangs_is_left_behind() -> None:
    never = threading.Event()

    def hang(sample: SegmentSample) -> Tensor:
        if sample.coded_size == CLIPS["vp8"].size[::-1]:
            never.wait()
        return right(sample)

    started = time.monotonic()
    found = working_codecs(hang, ["vp8", "vp9"], short_side=SHORT_SIDE, timeout_s=5)
    assert found == {"vp8": "no answer within 5 s", "vp9": None}
    assert time.monotonic() - started < 20
    never.set()


def test_missing_encoder_turns_the_codec_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "CLIPS", {"vp8": CLIPS["vp8"], "vp9": CLIPS["vp9"]._replace(encoder="gone")})
    assert working_codecs(right, ["vp9", "vp8"], short_side=SHORT_SIDE) == {
        "vp9": "cannot be tested: no encoder gone",
        "vp8": None,
    }


def test_every_frame_is_drawn_differently() -> None:
    numbers = [draw_number(i, (96, 64)) for i in range(1 << selftest.NUM_BITS)]
    assert len({n.tobytes() for n in numbers}) == len(numbers)
