"""The worker with a network that can be checked by hand: every video one result, whatever happens to the others."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sqt_fast.archive import VideoFile, find_videos
from sqt_fast.clips import ClipMaker
from sqt_fast.config import Protocol
from sqt_fast.decode import DecodeReport, Frames, HostDecoder
from sqt_fast.errors import BackendError
from sqt_fast.pipelines.resize import HostResizer
from sqt_fast.probe import Probe, probe
from sqt_fast.rows import RowStyle
from sqt_fast.worker import Recipe, VideoResult, Worker

SIZE = 24
FAST = Recipe(Protocol("fast", short_side=32, crop_size=SIZE, num_clips=None, num_crops=1))
OFFICIAL = Recipe(Protocol("official", short_side=32, crop_size=SIZE, num_clips=4, num_crops=3))
LABELS = tuple(f"class {i}" for i in range(6))
BROKEN = {
    "empty.mp4": "empty_file",
    "text.mp4": "not_a_video",
    "sound.mp4": "no_video_stream",
    "gone.mp4": "unreadable",
}


class MeansBackend:
    """Logits are means of colours at moments of the clip, embeddings those of two frames. Remembers what it saw."""

    dtype = torch.float32

    def __init__(self, seconds: float = 0.0, error: BaseException | None = None) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.seconds, self.error = seconds, error

    def run(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        self.shapes.append(tuple(clips.shape))
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        means = clips.double().mean((2, 3))
        return (3 * means[:, [0, 10, 20, 30, 40, 47]]).float(), means[:, :2].float()


def make_worker(backend: MeansBackend, recipe: Recipe = FAST, **options: Any) -> Worker:
    style = RowStyle(LABELS, 2, per_window=recipe is FAST)
    return Worker(backend, recipe, style, **{"batch_size": 4, "num_decoders": 2, **options})


def by_path(results: Sequence[VideoResult]) -> dict[str, list[Any]]:
    """Return the rows of every video; embeddings as bytes, so that equal means the same bits."""
    assert len({r.video.name for r in results}) == len(results)
    return {
        r.video.name: [repr(row) for row in r.rows]
        + [row.embedding is not None and row.embedding.tobytes() for row in r.rows]
        for r in sorted(results, key=lambda result: result.video.name)
    }


def label(videos: Sequence[VideoFile], backend: MeansBackend | None = None, **options: Any) -> list[VideoResult]:
    return list(make_worker(backend or MeansBackend(), **options).label(videos))


def decoder_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("decode-")]


@pytest.fixture(scope="module")
def videos(archive: Path) -> list[VideoFile]:
    return find_videos([str(archive)])


@pytest.fixture(scope="module")
def good(videos: list[VideoFile]) -> list[VideoFile]:
    return [v for v in videos if "broken" not in v.path]


@pytest.fixture(scope="module")
def truth(videos: list[VideoFile]) -> dict[str, list[Any]]:
    return by_path(label(videos, batch_size=1, num_decoders=1, embeddings=True))


def test_every_file_gives_one_result_with_its_status(videos: list[VideoFile]) -> None:
    results = label(videos)
    assert sorted(r.video.name for r in results) == sorted(v.name for v in videos)
    assert len(videos) == 13
    for result in results:
        name = Path(result.video.path).name
        assert result.rows
        assert all(row.path == result.video.name for row in result.rows)
        if name in BROKEN:
            assert [row.status for row in result.rows] == [BROKEN[name]]
            assert result.failure is result.rows[0]
        elif name == "cut.mkv":
            assert [row.status for row in result.rows][-1] == "damaged"
            assert result.failure is result.rows[-1]
        else:
            assert {row.status for row in result.rows} == {"ok"}
            assert result.failure is None
            assert result.duration_s == pytest.approx(2.5, abs=0.1)


def test_scores_are_those_of_the_clips(good: list[VideoFile]) -> None:
    """Against clips made one by one, without threads and batches."""
    rows = {r.video.name: r.rows for r in label(good, embeddings=True)}
    decoder = HostDecoder(HostResizer(FAST.protocol.short_side))
    for video in good:
        facts = probe(video)
        plan = FAST.plan(facts)
        maker = ClipMaker(plan, FAST.protocol, torch.float32)
        chunks = list(decoder.frames(facts, plan.wanted, DecodeReport()))
        views = [view for chunk in chunks for view in maker.add(chunk)] + list(maker.finish())
        assert len(views) == len(plan) == len(rows[video.name])
        for view, row in zip(sorted(views, key=lambda v: v.clip_index), rows[video.name], strict=True):
            logits, embedding = MeansBackend().run(view.clip[None])
            scores = torch.softmax(logits, 1)[0].numpy()
            assert row.clip_index == view.clip_index
            assert row.label_id == scores.argmax()
            assert row.score == pytest.approx(scores.max(), abs=1e-6)
            assert row.embedding is not None
            assert np.allclose(row.embedding, embedding[0], atol=2e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 1, "num_decoders": 3},
        {"batch_size": 4, "num_decoders": 1},
        {"batch_size": 5, "num_decoders": 4},
        {"batch_size": 64, "num_decoders": 2, "threads_per_decoder": 2},
    ],
    ids=str,
)
def test_batches_threads_and_order_do_not_matter(
    videos: list[VideoFile], truth: dict[str, list[Any]], options: dict[str, int]
) -> None:
    backend = MeansBackend()
    assert by_path(label(videos[::-1], backend, embeddings=True, **options)) == truth
    size = options["batch_size"]
    num_clips = sum("status='ok'" in str(row) for rows in truth.values() for row in rows)
    assert backend.shapes == [(size, 48, SIZE, SIZE)] * -(-num_clips // size)


def test_one_video_alone_gives_the_same_as_among_others(good: list[VideoFile], truth: dict[str, list[Any]]) -> None:
    for video in good[:3]:
        assert by_path(label([video], embeddings=True))[video.name] == truth[video.name]


def test_official_is_one_row_of_the_mean_over_clips_and_crops(good: list[VideoFile]) -> None:
    backend = MeansBackend()
    (result,) = label(good[:1], backend, recipe=OFFICIAL, embeddings=True)
    assert backend.shapes == [(4, 48, SIZE, SIZE)] * 3  # 4 clips x 3 crops
    facts = probe(good[0])
    plan = OFFICIAL.plan(facts)
    maker = ClipMaker(plan, OFFICIAL.protocol, torch.float32)
    decoder = HostDecoder(HostResizer(OFFICIAL.protocol.short_side))
    clips = [v.clip for chunk in decoder.frames(facts, plan.wanted, DecodeReport()) for v in maker.add(chunk)]
    scores = torch.softmax(MeansBackend().run(torch.stack(clips))[0], 1).mean(0)
    (row,) = result.rows
    assert row.score == pytest.approx(float(scores.max()), abs=1e-6)
    assert row.label_id == int(scores.argmax())
    assert (row.start_frame, row.end_frame, row.clip_index) == (0, facts.num_frames, None)
    others = label(good[:1], recipe=OFFICIAL, embeddings=True, batch_size=5, num_decoders=3)
    assert by_path(others) == by_path([result])


def test_no_videos() -> None:
    assert label([]) == []


def test_nothing_but_broken_files_never_runs_the_network(videos: list[VideoFile]) -> None:
    backend = MeansBackend()
    results = label([v for v in videos if Path(v.path).name in BROKEN], backend)
    assert len(results) == 4
    assert backend.shapes == []


def test_tally(good: list[VideoFile]) -> None:
    seen: list[int] = []
    worker = make_worker(MeansBackend(), on_clips=seen.append)
    results = list(worker.label(good))
    tally = worker.tally
    assert tally.clips == sum(seen) == sum(len(r.rows) for r in results)
    facts = [probe(v) for v in good]
    assert tally.video_s == pytest.approx(sum(f.duration_s for f in facts))
    assert tally.frames_decoded == sum(f.num_frames for f in facts)
    assert tally.frames_wanted == sum(len(FAST.plan(f).wanted) for f in facts)
    assert tally.packets_read >= tally.frames_decoded
    assert min(tally.decode_s, tally.probe_s, tally.squeeze_s, tally.network_s) > 0


def test_a_video_that_trips_the_decoder_is_an_error_and_others_go_on(
    good: list[VideoFile], truth: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first frame, and after some windows went to the network."""
    frames = HostDecoder.frames

    def trip(self: HostDecoder, facts: Probe, wanted: Any, report: DecodeReport) -> Iterator[Frames]:
        if facts.path == good[0].path:
            raise RuntimeError("what nobody foresaw")
        chunks = frames(self, facts, wanted, report)
        if facts.path == good[1].path:
            yield next(chunks)
            raise MemoryError
        yield from chunks

    monkeypatch.setattr(HostDecoder, "frames", trip)
    results = label(good, embeddings=True)
    rows = {r.video.name: r.rows for r in results}
    (first,), (*kept, second) = rows[good[0].name], rows[good[1].name]
    assert (first.status, first.error_message) == ("error", "RuntimeError: what nobody foresaw")
    assert first.codec is not None  # what was learned before is kept
    assert (second.status, second.error_message) == ("error", "MemoryError: ")
    assert kept, "the windows before the error keep their labels"
    assert [repr(row) for row in kept] == truth[good[1].name][: len(kept)]
    others = by_path(results)
    assert all(others[v.name] == truth[v.name] for v in good[2:])


@pytest.mark.parametrize(("first_lost", "statuses"), [(32, ["ok"]), (28, ["damaged"])], ids=["8 of 16", "9 of 16"])
def test_a_clip_needs_half_of_its_frames(
    good: list[VideoFile], monkeypatch: pytest.MonkeyPatch, first_lost: int, statuses: list[str]
) -> None:
    """Its 16 frames are 0, 4, ... 60. The decoder passes over the last ones without a word."""
    video = next(v for v in good if v.path.endswith(".avi"))
    assert FAST.plan(probe(video)).frames.tolist() == [list(range(0, 64, 4))]
    frames = HostDecoder.frames

    def deaf(self: HostDecoder, facts: Probe, wanted: Any, report: DecodeReport) -> Iterator[Frames]:
        for chunk in frames(self, facts, wanted, report):
            keep = [i for i, number in enumerate(chunk.numbers) if number < first_lost]
            yield Frames([chunk.numbers[i] for i in keep], chunk.images[keep])
        report.last_number = first_lost - 1

    monkeypatch.setattr(HostDecoder, "frames", deaf)
    (result,) = label([video])
    assert [row.status for row in result.rows] == statuses


def test_a_network_that_answers_nan_still_gives_rows(good: list[VideoFile]) -> None:
    class NanBackend(MeansBackend):
        def run(self, clips: Tensor) -> tuple[Tensor, Tensor]:
            return torch.full((len(clips), 6), float("nan")), torch.full((len(clips), 2), float("nan"))

    for result in label(good, NanBackend()):
        assert all(row.label in LABELS and np.isnan(row.score or 0) for row in result.rows)


def test_an_error_of_the_network_reaches_the_caller_and_stops_the_decoders(good: list[VideoFile]) -> None:
    with pytest.raises(ZeroDivisionError):
        label(good, MeansBackend(error=ZeroDivisionError()))
    assert decoder_threads() == []


def test_a_decoder_that_cannot_start_does_not_hang(good: list[VideoFile], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(short_side: int) -> HostResizer:
        raise ImportError("libdali.so: cannot open shared object file")

    monkeypatch.setattr("sqt_fast.pipelines.resize.HostResizer", broken)
    with pytest.raises(BackendError, match=r"decoding cannot start here \(ImportError: libdali"):
        label(good)
    assert decoder_threads() == []


@pytest.mark.parametrize("how", ["close", "throw", "forget"])
def test_stopping_early_stops_the_decoders(good: list[VideoFile], how: str) -> None:
    results = make_worker(MeansBackend(), batch_size=1, num_decoders=3).label(good * 20)
    next(results)
    assert decoder_threads()
    started = time.perf_counter()
    if how == "close":
        with closing(results):
            pass
    elif how == "throw":
        with pytest.raises(KeyboardInterrupt):
            results.throw(KeyboardInterrupt)
    else:
        del results
    assert time.perf_counter() - started < 1.5
    assert decoder_threads() == []


def test_decoders_that_do_not_listen_are_left_behind_in_time(
    good: list[VideoFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As inside one long call of FFmpeg: all of them together may take a second, not each."""
    frames, free = HostDecoder.frames, threading.Event()

    def deaf(self: HostDecoder, facts: Probe, wanted: Any, report: DecodeReport) -> Iterator[Frames]:
        if facts.path != good[0].path:
            free.wait(20)
        yield from frames(self, facts, wanted, report)

    monkeypatch.setattr(HostDecoder, "frames", deaf)
    results = make_worker(MeansBackend(), batch_size=1, num_decoders=4).label([good[0], *good[1:5]])
    next(results)
    started = time.perf_counter()
    results.close()
    assert time.perf_counter() - started < 1.5
    free.set()
    for thread in decoder_threads():
        thread.join(5)
    assert decoder_threads() == []


def test_little_is_decoded_ahead(good: list[VideoFile]) -> None:
    """The queue is bounded: memory does not grow with the archive."""
    worker = make_worker(MeansBackend(), batch_size=2, num_decoders=2)
    with closing(worker.label(good * 10)) as results:
        next(results)
        time.sleep(0.5)
        assert worker._ready.qsize() <= 4
