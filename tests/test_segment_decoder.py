"""Decoding together: right answers to the right threads, and every way to fail reaches only those whom it concerns."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from sqt_fast.engine.segment_decoder import (
    SegmentDecoder,
    SegmentError,
    gpu_pipelines,
)
from sqt_fast.pipelines.sample import SegmentSample
from tests.test_decode import SHORT_SIDE, on_the_host, sample
from tests.watching import notes_into

DALI_ERROR = """Critical error in pipeline:
Error in MIXED operator `nvidia.dali.fn.decoders.video`,
which was used in the pipeline definition with the following traceback:

  File "decode.py", line 24, in graph

encountered:

Assert on "frames_decoders_[s]->IsValid()" failed: Failed to create video decoder for "memory file"
C++ context: [/opt/dali/dali/operators/video/decoder/video_decoder_base.h:246]
Current pipeline object is no longer valid.
Current pipeline object is no longer valid."""


def numbered(number: int, num_frames: int = 2, size: tuple[int, int] = (10, 10)) -> SegmentSample:
    return SegmentSample(bytes([number]), np.arange(num_frames, dtype=np.int32), size)


def answer(wanted: SegmentSample) -> Tensor:
    return torch.full((len(wanted.indices), 4, 6, 3), wanted.data[0], dtype=torch.uint8)


@dataclass
class Machine:
    """What fake pipelines share: what they were asked, and what they do instead of decoding."""

    behave: Callable[["FakePipeline", Sequence[SegmentSample]], list[Tensor]] = lambda pipeline, samples: [
        answer(s) for s in samples
    ]
    batches: list[list[int]] = field(default_factory=list)
    made: list[int] = field(default_factory=list)
    releases: int = 0
    notes: list[str] = field(default_factory=list)
    opened: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)

    def make(self, batch_size: int) -> "FakePipeline":
        self.made.append(batch_size)
        return FakePipeline(self, batch_size)

    def decoder(self, batch_size: int = 4, max_batch_bytes: int = 1 << 30, hang_s: float = 60.0) -> SegmentDecoder:
        return SegmentDecoder(
            self.make,
            batch_size=batch_size,
            num_pipelines=1,
            max_batch_bytes=max_batch_bytes,
            report=notes_into(self.notes),
            hang_s=hang_s,
        )


@dataclass
class FakePipeline:
    machine: Machine
    batch_size: int

    def run(self, samples: Sequence[SegmentSample]) -> list[Tensor]:
        assert 0 < len(samples) <= self.batch_size
        self.machine.batches.append([int(s.data[0]) for s in samples])
        return self.machine.behave(self, samples)

    def release_memory(self) -> None:
        self.machine.releases += 1


def ask_together(machine: Machine, decoder: SegmentDecoder, samples: Sequence[SegmentSample]) -> "list[Future[Tensor]]":
    """Ask from a thread each, in the order of ``samples``, all of them while the pipeline is busy with number 255."""
    behave = machine.behave

    def hold(pipeline: FakePipeline, batch: Sequence[SegmentSample]) -> list[Tensor]:
        if batch[0].data[0] != 255:
            return behave(pipeline, batch)
        machine.entered.set()
        assert machine.opened.wait(30)
        return [answer(s) for s in batch]

    machine.behave = hold
    with ThreadPoolExecutor(len(samples) + 1) as pool:
        first = pool.submit(decoder.decode, numbered(255))
        assert machine.entered.wait(30)
        futures = []
        for i, wanted in enumerate(samples):
            futures.append(pool.submit(decoder.decode, wanted))
            wait_until(lambda i=i: len(decoder._waiting) == i + 1)  # type: ignore[misc]  # mypy does not infer i
        machine.opened.set()
    assert torch.equal(first.result(), answer(numbered(255)))
    return futures


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def outcome(future: "Future[Tensor]") -> int | str:
    """Return the number that came back, or what the error says."""
    try:
        images = future.result(30)
    except SegmentError as error:
        return str(error)
    return int(images[0, 0, 0, 0])


def test_what_waits_is_decoded_together_and_each_gets_its_own() -> None:
    machine = Machine()
    with closing(machine.decoder()) as decoder:
        futures = ask_together(machine, decoder, [numbered(i) for i in range(10)])
    assert [outcome(f) for f in futures] == list(range(10))
    assert machine.batches == [[255], [0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert machine.made == [4]
    assert not machine.notes


def test_memory_bounds_a_batch() -> None:
    """(2 F + 8) H W 3 bytes a sample; one that is larger than the bound goes alone."""
    small, large = numbered(1), numbered(2, num_frames=100)
    assert small.size_bytes == 12 * 300
    assert large.size_bytes == 208 * 300
    machine = Machine()
    with closing(machine.decoder(max_batch_bytes=3 * small.size_bytes)) as decoder:
        futures = ask_together(machine, decoder, [small, small, small, small, large, small])
    assert [outcome(f) for f in futures] == [1, 1, 1, 1, 2, 1]
    assert machine.batches == [[255], [1, 1, 1], [1], [2], [1]]


def test_bad_sample_fails_alone() -> None:
    def behave(pipeline: FakePipeline, samples: Sequence[SegmentSample]) -> list[Tensor]:
        if any(s.data[0] == 2 for s in samples):
            raise RuntimeError(DALI_ERROR)
        return [answer(s) for s in samples]

    machine = Machine(behave)
    with closing(machine.decoder()) as decoder:
        futures = ask_together(machine, decoder, [numbered(i) for i in range(6)])
    assert [outcome(f) for f in futures] == [0, 1, 'Failed to create video decoder for "memory file"', 3, 4, 5]
    assert machine.batches == [[255], [0, 1, 2, 3], [0], [1], [2], [3], [4, 5]]
    assert machine.made == [4, 1]
    assert not machine.notes


def test_bad_sample_that_is_alone_is_not_tried_again() -> None:
    def behave(pipeline: FakePipeline, samples: Sequence[SegmentSample]) -> list[Tensor]:
        raise RuntimeError(DALI_ERROR)

    machine = Machine(behave)
    with closing(machine.decoder()) as decoder, pytest.raises(SegmentError, match=r"^Failed to create video decoder"):
        decoder.decode(numbered(1))
    assert machine.batches == [[1]]


def test_pipeline_that_fails_without_a_bad_sample_is_replaced() -> None:
    broken: set[int] = set()

    def behave(pipeline: FakePipeline, samples: Sequence[SegmentSample]) -> list[Tensor]:
        if len(samples) > 1 and not broken:
            broken.add(id(pipeline))
        if id(pipeline) in broken:
            raise RuntimeError("Current pipeline object is no longer valid.")
        return [answer(s) for s in samples]

    machine = Machine(behave)
    with closing(machine.decoder()) as decoder:
        futures = ask_together(machine, decoder, [numbered(i) for i in range(6)])
    assert [outcome(f) for f in futures] == list(range(6))
    assert machine.made == [4, 1, 4]
    assert machine.batches[-1] == [4, 5]
    assert len(machine.notes) == 1
    assert "each can be decoded alone" in machine.notes[0]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA allocation failed")]
)
def test_batch_that_does_not_fit_is_halved(error: Exception) -> None:
    def behave(pipeline: FakePipeline, samples: Sequence[SegmentSample]) -> list[Tensor]:
        if len(samples) > 2:
            raise error
        return [answer(s) for s in samples]

    machine = Machine(behave)
    with closing(machine.decoder(batch_size=8)) as decoder:
        futures = ask_together(machine, decoder, [numbered(i) for i in range(12)])
        assert decoder.max_batch_bytes == 2 * numbered(0).size_bytes
    assert [outcome(f) for f in futures] == list(range(12))
    # Once known, the bound holds for all that follows.
    assert machine.batches[1:] == [
        *([0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3], [0, 1], [2, 3], [4, 5, 6, 7], [4, 5], [6, 7]),
        *([8, 9], [10, 11]),
    ]
    assert machine.releases == 3
    assert machine.made == [8]
    assert "a batch of 8 segments did not fit" in machine.notes[0]


def test_sample_that_does_not_fit_alone_fails_alone() -> None:
    def behave(pipeline: FakePipeline, samples: Sequence[SegmentSample]) -> list[Tensor]:
        if any(s.data[0] == 1 for s in samples):
            raise RuntimeError("Can't allocate 99999999999 bytes on device 0.")
        return [answer(s) for s in samples]

    machine = Machine(behave)
    with closing(machine.decoder()) as decoder:
        futures = ask_together(machine, decoder, [numbered(i) for i in range(4)])
    assert [outcome(f) for f in futures] == [0, "Can't allocate 99999999999 bytes on device 0.", 2, 3]


def test_frames_that_are_missing_are_noticed() -> None:
    """DALI's quiet failure."""
    machine = Machine(lambda pipeline, samples: [answer(s)[: 2 - s.data[0] % 2] for s in samples])
    with closing(machine.decoder()) as decoder:
        futures = ask_together(machine, decoder, [numbered(i) for i in range(4)])
    missing = "2 frames were asked for, 1 came"
    assert [outcome(f) for f in futures] == [0, missing, 2, missing]


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), MemoryError("host")], ids=lambda e: type(e).__name__
)
def test_nobody_waits_for_a_dispatcher_that_died(error: BaseException) -> None:
    def behave(pipeline: FakePipeline, samples: Sequence[SegmentSample]) -> list[Tensor]:
        raise error

    machine = Machine(behave)
    decoder = machine.decoder(batch_size=1)
    futures = ask_together(machine, decoder, [numbered(i) for i in range(5)])
    assert all(isinstance(outcome(f), str) for f in futures)
    decoder.close()
    with pytest.raises(SegmentError):
        decoder.decode(numbered(1))
    if not isinstance(error, Exception):
        assert len(machine.notes) == 1
        assert machine.notes[0].startswith("decoding stopped: ")


def test_results_that_do_not_pair_are_given_to_nobody_else() -> None:
    machine = Machine(lambda pipeline, samples: [answer(s) for s in samples][:-1])
    with closing(machine.decoder()) as decoder:
        futures = ask_together(machine, decoder, [numbered(i) for i in range(6)])
    outcomes = [outcome(f) for f in futures]
    assert outcomes[:3] == [0, 1, 2]
    assert all("decoding stopped" in str(o) for o in outcomes[3:])


def test_pipeline_that_cannot_be_made_says_so() -> None:
    def make(batch_size: int) -> FakePipeline:
        raise RuntimeError("dlopen libnvcuvid.so failed!. Please install NVIDIA GPU driver")

    notes: list[str] = []
    with (
        closing(SegmentDecoder(make, num_pipelines=2, report=notes_into(notes))) as decoder,
        pytest.raises(SegmentError, match=r"decoding stopped: dlopen libnvcuvid.so failed"),
    ):
        decoder.decode(numbered(1))
    assert len(notes) == 1


def test_closing_refuses_what_waits_and_finishes_what_runs() -> None:
    machine = Machine()

    def behave(pipeline: FakePipeline, samples: Sequence[SegmentSample]) -> list[Tensor]:
        machine.entered.set()
        assert machine.opened.wait(30)
        return [answer(s) for s in samples]

    machine.behave = behave
    decoder = machine.decoder(batch_size=1)
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(decoder.decode, numbered(1))
        assert machine.entered.wait(30)
        waiting = [pool.submit(decoder.decode, numbered(i)) for i in (2, 3)]
        wait_until(lambda: len(decoder._waiting) == 2)
        closer = threading.Thread(target=decoder.close)
        closer.start()
        assert [outcome(f) for f in waiting] == ["the decoder was closed"] * 2
        machine.opened.set()
        assert outcome(running) == 1
        closer.join(30)
    assert not any(d.thread.is_alive() for d in decoder._dispatchers)
    with pytest.raises(SegmentError, match="closed"):
        decoder.decode(numbered(4))


def test_pipeline_that_hangs_is_given_up() -> None:
    machine = Machine()

    def behave(pipeline: FakePipeline, samples: Sequence[SegmentSample]) -> list[Tensor]:
        machine.entered.set()
        machine.opened.wait(60)
        return [answer(s) for s in samples]

    machine.behave = behave
    decoder = machine.decoder(batch_size=1, hang_s=0.4)
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(decoder.decode, numbered(i)) for i in range(3)]
        assert all("decoding hangs" in str(outcome(f)) for f in futures)
    assert machine.notes == ["decoding hangs: no answer in 0.4 s"]
    machine.opened.set()
    decoder.close()


def test_slow_progress_is_no_hang() -> None:
    def behave(pipeline: FakePipeline, samples: Sequence[SegmentSample]) -> list[Tensor]:
        time.sleep(0.25)
        return [answer(s) for s in samples]

    machine = Machine(behave)
    with closing(machine.decoder(batch_size=1, hang_s=1.5)) as decoder, ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(decoder.decode, numbered(i)) for i in range(8)]
        assert [outcome(f) for f in futures] == list(range(8))


def test_frames_are_not_held_when_nobody_wants_them() -> None:
    import gc
    import weakref

    machine = Machine()
    with closing(machine.decoder()) as decoder:
        images = decoder.decode(numbered(1))
        kept = weakref.ref(images)
        del images
        gc.collect()
        wait_until(lambda: kept() is None)


def test_real_pipelines_serve_many_threads() -> None:
    """VP9 on the CPU, three bad samples among 60 good ones, two pipelines; answers equal PyAV's."""
    sizes = [(320, 240), (128, 96), (170, 130)]
    samples = [sample(sizes[i % 3], [i % 7, 7 + i % 11, 23], (200, 300) if i % 6 == 0 else None) for i in range(60)]
    for at in (5, 30, 31):
        samples.insert(at, SegmentSample(b"no video at all" * 9, np.array([0], np.int32), (96, 128)))
    notes: list[str] = []
    make_pipeline = gpu_pipelines(SHORT_SIDE, device_id=None, num_threads=2)
    decoder = SegmentDecoder(make_pipeline, batch_size=5, num_pipelines=2, report=notes_into(notes))
    with closing(decoder), ThreadPoolExecutor(12) as pool:
        futures = [pool.submit(decoder.decode, s) for s in samples]
    for i, (future, wanted) in enumerate(zip(futures, samples, strict=True)):
        if i in (5, 30, 31):
            with pytest.raises(SegmentError, match=r"^Failed to create video decoder"):
                future.result()
        else:
            assert torch.equal(future.result(), on_the_host(wanted))
    assert not notes


def test_importing_brings_no_torch_and_no_dali() -> None:
    code = (
        "import sys, sqt_fast.engine.segment_decoder, sqt_fast.pipelines.routing; "
        "print({'torch', 'nvidia.dali'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
