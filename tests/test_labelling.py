"""The worker with a network that can be checked by hand: every video one result, whatever happens to the others."""

import os
import queue
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from sqt_fast.clips.batches import CpuBatches, View
from sqt_fast.clips.gather import ClipMaker
from sqt_fast.clips.recipe import Recipe
from sqt_fast.clips.resize import resize, upright
from sqt_fast.config import ClipProtocol
from sqt_fast.engine.decoders import DecoderSetup
from sqt_fast.engine.events import BatchSizeChanged
from sqt_fast.engine.labelling import Labelling, Sheet, Task
from sqt_fast.engine.memory import Resources
from sqt_fast.engine.results import RunCounters, VideoResult
from sqt_fast.errors import BackendError, DeviceLostError
from sqt_fast.network.backends import Started
from sqt_fast.samples import encoding
from sqt_fast.samples.encoding import Format
from sqt_fast.samples.scenes import draw, random_scene
from sqt_fast.table.rows import RowStyle
from sqt_fast.video.archive import VideoFile, find_videos
from sqt_fast.video.cpu_decoder import FFMPEG, CpuDecoder, DecodeReport
from sqt_fast.video.reader import PacketReader
from sqt_fast.video.scan import probe
from sqt_fast.video.segments import plan_segments
from tests.poison import Concealing, Deaf, Poison, PoisonedRecipe, Slow, descendants, wait_until
from tests.watching import Remembering

SIZE = 24
FAST = Recipe(ClipProtocol("fast", short_side=32, crop_size=SIZE, num_clips=None, num_crops=1))
OFFICIAL = Recipe(ClipProtocol("official", short_side=32, crop_size=SIZE, num_clips=4, num_crops=3))
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

    def __init__(self, error: BaseException | None = None, room: int = 1000, hated: float = 1e9) -> None:
        """error: what it always raises. room: clips in its memory. hated: it fails on a clip of this first mean."""
        self.shapes: list[tuple[int, ...]] = []
        self.released = 0
        self.error, self.room, self.hated = error, room, hated

    def release_memory(self) -> None:
        self.released += 1

    def start(self, clips: Tensor) -> Started:
        return Started(*self.run(clips))

    def run(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        self.shapes.append(tuple(clips.shape))
        if self.error is not None:
            raise self.error
        if len(clips) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")
        means = clips.double().mean((2, 3))
        if (abs(means[:, 0] - self.hated) < 1e-9).any():
            raise ValueError("I hate this one")
        return (3 * means[:, [0, 10, 20, 30, 40, 47]]).float(), means[:, :2].float()


def make_worker(
    backend: MeansBackend, recipe: Recipe = FAST, *, num_decoders: int = 2, hang_s: float = 60.0, **options: Any
) -> Labelling:
    style = RowStyle(LABELS, 2, per_window=recipe is not OFFICIAL)
    resources = Resources(num_decoders, 1 << 30, cores=2, hang_s=hang_s)
    task = Task(recipe, style, options.pop("batch_size", 4), options.pop("embeddings", False))
    setup = DecoderSetup(resources, options.pop("tools", FFMPEG), options.pop("gpu", None))
    return Labelling(backend, task, setup, **options)


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


def views_of(video: VideoFile, recipe: Recipe) -> list[View]:
    """Return the views of a sound video by crop and clip, without threads, processes and segments."""
    facts = probe(video)
    plan, protocol = recipe.plan(facts), recipe.protocol
    maker = ClipMaker(plan, protocol)
    intake, views = maker.segment(plan.wanted), []
    with PacketReader(facts.source) as reader:
        for segment in plan_segments(facts, plan.wanted, max_wanted=10**6):
            for chunk in CpuDecoder().frames(reader, segment, DecodeReport()):
                images = resize(upright(torch.from_numpy(chunk.images), facts.source.orientation), protocol.short_side)
                for clip in intake.add(chunk.numbers, images):
                    views += list(CpuBatches(protocol, torch.float32).views(clip))
    return sorted(views, key=lambda view: (view.crop, view.clip_index))


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
    for video in good:
        views = views_of(video, FAST)
        assert len(views) == len(FAST.plan(probe(video))) == len(rows[video.name])
        for view, row in zip(views, rows[video.name], strict=True):
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
        {"batch_size": 64, "num_decoders": 2},
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
    clips = [view.clip for view in views_of(good[0], OFFICIAL)]
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


def test_counters(good: list[VideoFile]) -> None:
    watcher = Remembering()
    labelling = make_worker(MeansBackend(), report=watcher)
    results = list(labelling.label(good))
    tally = labelling.take_counters()
    assert labelling.take_counters() == RunCounters()
    assert tally.clips == watcher.num_clips == sum(len(r.rows) for r in results)
    facts = [probe(v) for v in good]
    assert tally.video_s == pytest.approx(sum(f.duration_s for f in facts))
    assert tally.frames_wanted == sum(len(FAST.plan(f).wanted) for f in facts)
    assert tally.frames_wanted < tally.frames_decoded < sum(f.num_frames for f in facts)
    assert tally.packets_dropped > 0
    assert tally.frames_decoded <= tally.packets_read - tally.packets_dropped <= sum(len(f.packets) for f in facts)
    assert min(tally.decode_s, tally.probe_s, tally.squeeze_s, tally.network_s) > 0


@pytest.mark.parametrize(
    ("poison", "status", "said"),
    [
        (Poison("value"), "error", "ValueError: what nobody foresaw"),
        (Poison("value", at=0), "error", "ValueError: what nobody foresaw"),
        (Poison("memory", at=4), "too_large", "not enough memory to decode it"),
        (Poison("SIGSEGV"), "crashed", "decoder was killed by SIGSEGV, 3 times"),
        (Poison("SIGBUS", at=4), "crashed", "decoder was killed by SIGBUS, 3 times"),
        (Poison("exit", at=0), "crashed", "decoder ended unasked (exit code 3), 3 times"),
    ],
    ids=str,
)
def test_what_happens_to_one_video_is_its_row_and_others_go_on(
    good: list[VideoFile], truth: dict[str, list[Any]], poison: Poison, status: str, said: str
) -> None:
    bad = good[2]
    results = label(good, tools=replace(poison, name=bad.path), embeddings=True)
    (row,) = next(r.rows for r in results if r.video is bad)
    assert (row.status, row.error_message) == (status, said)
    assert (row.codec is None) == (poison.at is None)  # what was learned before is kept
    others = by_path(results)
    assert all(others[v.name] == truth[v.name] for v in good if v is not bad)


def test_a_decoder_that_hangs_is_killed_and_the_video_has_a_row(
    good: list[VideoFile], truth: dict[str, list[Any]]
) -> None:
    bad = good[1]
    results = label(good, tools=Poison("hang", at=4, name=bad.path), embeddings=True, hang_s=1.5)
    (row,) = next(r.rows for r in results if r.video is bad)
    assert (row.status, row.error_message) == ("crashed", "decoder hung: it did nothing for 2 s, 2 times")
    others = by_path(results)
    assert all(others[v.name] == truth[v.name] for v in good if v is not bad)


@pytest.mark.parametrize("how", ["SIGKILL", "exit"])
@pytest.mark.parametrize("at", [None, 0, 32], ids=["probing", "first frame", "middle"])
def test_what_happens_once_leaves_no_trace(
    good: list[VideoFile], truth: dict[str, list[Any]], how: str, at: int | None, tmp_path: Path
) -> None:
    tools = Poison(how, at, name=good[0].path, once=str(tmp_path / "struck"))
    assert by_path(label(good, tools=tools, embeddings=True)) == {v.name: truth[v.name] for v in good}
    assert (tmp_path / "struck").exists()


# -- several segments -------------------------------------------------------------------------------------------------

SPARSE = Recipe(FAST.protocol, stride_s=8.0)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> VideoFile:
    """1200 frames in groups of 50: three segments of windows that follow one another, six of a window each 8 s."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    form = Format("mp4", "libx264", "yuv420p", (64, 48), Fraction(25), {"bf": "2", "g": "50"})
    edges = encoding.frame_edges(form, 48.0, [1])
    encoding.encode_video(path, form, draw(random_scene("right", 1), (t / 25 for t in edges[:-1]), form.size), edges)
    (video,) = find_videos([str(path)])
    facts = probe(video)
    assert [len(s.numbers) for s in plan_segments(facts, FAST.plan(facts).wanted)] == [138, 137, 25]
    assert len(plan_segments(facts, SPARSE.plan(facts).wanted)) == 6
    return video


@pytest.fixture(scope="module")
def long_truth(long: VideoFile) -> list[Any]:
    return by_path(label([long], num_decoders=1, embeddings=True))[long.name]


def test_many_decoders_share_one_video(long: VideoFile, long_truth: list[Any]) -> None:
    for num_decoders in (2, 3, 5):
        results = label([long], num_decoders=num_decoders, embeddings=True)
        assert by_path(results)[long.name] == long_truth


def test_a_crash_in_one_segment_leaves_the_others(long: VideoFile) -> None:
    whole = label([long], recipe=SPARSE)[0].rows
    assert [row.clip_index for row in whole] == list(range(6))
    rows = label([long], recipe=SPARSE, tools=Poison("SIGSEGV", at=412, name="long"))[0].rows
    assert [row.clip_index for row in rows] == [0, 1, 3, 4, 5, None]
    assert [repr(row) for row in rows[:-1]] == [repr(row) for row in whole if row.clip_index != 2]
    assert (rows[-1].status, rows[-1].error_message) == ("crashed", "decoder was killed by SIGSEGV, 3 times")
    assert (rows[-1].codec, rows[-1].label) == ("h264", None)


def test_a_clip_across_a_crash_is_labelled_if_most_of_it_is_there(long: VideoFile, long_truth: list[Any]) -> None:
    """19 windows; frames 1000 to 1096 are lost: 6 of window 15, all of 16, 3 of 17."""
    rows = label([long], tools=Poison("exit", at=1000, name="long"), embeddings=True)[0].rows
    assert rows[-1].status == "crashed"
    assert [row.clip_index for row in rows if row.status == "ok"] == [*range(16), 17, 18]
    assert [repr(row) for row in rows[:15]] == long_truth[:15]


def test_overlapping_windows_decode_nothing_twice(tmp_path: Path) -> None:
    """At 30 frames a second, a window every quarter of a second takes the frames that windows side by side take."""
    path = tmp_path / "a.mkv"
    form = Format("mkv", "libx264", "yuv420p", (64, 48), Fraction(30), {"bf": "2"})
    edges = encoding.frame_edges(form, 256 / 30, [1])
    encoding.encode_video(path, form, draw(random_scene("up", 1), (t / 30 for t in edges[:-1]), form.size), edges)
    videos = find_videos([str(path)])
    tallies = []
    for stride_s in (None, 0.25):
        worker = make_worker(MeansBackend(), Recipe(FAST.protocol, stride_s=stride_s))
        (result,) = worker.label(videos)
        assert {row.status for row in result.rows} == {"ok"}
        tallies.append(worker.counters)
    tiled, overlapping = tallies
    assert (tiled.clips, overlapping.clips) == (4, 27)
    assert tiled.frames_wanted == overlapping.frames_wanted == 64
    assert tiled.frames_decoded == overlapping.frames_decoded < 256
    assert tiled.packets_read == overlapping.packets_read


# -- missing frames ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first_lost", "statuses"), [(32, ["ok"]), (28, ["damaged"])], ids=["8 of 16", "9 of 16"])
def test_a_clip_needs_half_of_its_frames(good: list[VideoFile], first_lost: int, statuses: list[str]) -> None:
    """Its 16 frames are 0, 4, ... 60. The decoder passes over the last ones without a word."""
    video = next(v for v in good if v.path.endswith(".avi"))
    assert FAST.plan(probe(video)).frames.tolist() == [list(range(0, 64, 4))]
    (result,) = label([video], tools=Deaf(first_lost))
    assert [row.status for row in result.rows] == statuses


@pytest.mark.parametrize(("last", "windows"), [(64 + 33, [0, 2]), (64 + 32, [0, 1, 2])], ids=["nine of 16", "eight"])
def test_a_window_that_is_mostly_concealed_is_not_labelled(last: int, windows: list[int], tmp_path: Path) -> None:
    form = Format("mp4", "libx264", "yuv420p", (48, 32), Fraction(25))
    frames = draw(random_scene("left", 1), (i / 25 for i in range(192)), form.size)
    encoding.encode_video(tmp_path / "a.mp4", form, frames, range(193))
    (result,) = label(find_videos([str(tmp_path)]), tools=Concealing(64, last))
    assert [row.clip_index for row in result.rows if row.status == "ok"] == windows
    damaged = result.rows[-1]
    assert (damaged.status, damaged.start_s) == ("damaged", 64 / 25)
    assert damaged.end_s == pytest.approx((last - 1) // 4 * 4 / 25 + 0.04)


# -- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [1, 2, 3, 5])
def test_out_of_memory_makes_batches_smaller(videos: list[VideoFile], truth: dict[str, list[Any]], room: int) -> None:
    """More than once if need be; no clip is lost and none is labelled twice."""
    watcher = Remembering()
    backend = MeansBackend(room=room)
    worker = make_worker(backend, batch_size=8, embeddings=True, report=watcher)
    assert by_path(list(worker.label(videos))) == truth
    sizes = [size for size in (4, 2, 1) if size * 2 > room]
    assert watcher.notes == [f"out of memory: going on with batches of {size}" for size in sizes]
    assert [e for e in watcher.events if isinstance(e, BatchSizeChanged)] == [BatchSizeChanged(s) for s in sizes]
    assert backend.released == len(sizes)
    assert worker.runs.batch_size == sizes[-1]
    assert backend.shapes[0][0] == 8
    assert {shape[0] for shape in backend.shapes if shape[0] <= room} == {sizes[-1]}


def test_out_of_memory_for_a_single_clip_is_the_end(good: list[VideoFile]) -> None:
    with pytest.raises(BackendError, match=r"^out of memory with a single clip"):
        label(good, MeansBackend(room=0))
    assert decoder_threads() == []


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_a_clip_that_the_network_fails_on_costs_its_video_only(
    good: list[VideoFile], truth: dict[str, list[Any]], batch_size: int
) -> None:
    bad = next(v for v in good if len(FAST.plan(probe(v))) > 1)
    hated = float(views_of(bad, FAST)[0].clip.double().mean((1, 2))[0])
    results = label(good, MeansBackend(hated=hated), batch_size=batch_size, embeddings=True)
    rows = next(r.rows for r in results if r.video is bad)
    assert [row.status for row in rows] == ["ok"] * (len(rows) - 1) + ["error"]
    assert [row.clip_index for row in rows] == [*range(1, len(rows)), None]
    assert rows[-1].error_message == "the network failed on clip 0: ValueError: I hate this one"
    others = by_path(results)
    assert all(others[v.name] == truth[v.name] for v in good if v is not bad)


def test_a_network_that_answers_nan_still_gives_rows(good: list[VideoFile]) -> None:
    class NanBackend(MeansBackend):
        def run(self, clips: Tensor) -> tuple[Tensor, Tensor]:
            return torch.full((len(clips), 6), float("nan")), torch.full((len(clips), 2), float("nan"))

    for result in label(good, NanBackend()):
        assert all(row.label in LABELS and np.isnan(row.score or 0) for row in result.rows)


class FailingLater(MeansBackend):
    """Fails from batch number ``first`` on, for ever or once."""

    def __init__(self, failure: Exception, first: int, *, once: bool = False) -> None:
        super().__init__()
        self.failure, self.first, self.once = failure, first, once

    def run(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        self.first -= 1
        if self.first < 0:
            self.first += self.once * 10**6
            raise self.failure
        return super().run(clips)


@pytest.mark.parametrize("first", [0, 2])
def test_a_network_that_fails_on_every_clip_is_no_videos_fault(good: list[VideoFile], first: int) -> None:
    """It fails on a blank clip just so. No video gets a row for it; what came before stays."""
    seen: list[VideoResult] = []
    labelling = make_worker(FailingLater(ZeroDivisionError("x"), first), batch_size=2)
    with pytest.raises(BackendError, match=r"^the network fails on every clip \(x\); try another --backend$"):
        seen.extend(labelling.label(good))
    assert {row.status for result in seen for row in result.rows} <= {"ok"}
    assert decoder_threads() == []


@pytest.mark.parametrize("first", [0, 2])
def test_a_lost_device_is_no_videos_fault(good: list[VideoFile], first: int) -> None:
    lost = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    seen: list[VideoResult] = []
    with pytest.raises(DeviceLostError, match="illegal memory access"):
        for result in make_worker(FailingLater(lost, first), batch_size=2).label(good):
            seen.append(result)  # noqa: PERF402 - what came before the error is wanted
    assert {row.status for result in seen for row in result.rows} <= {"ok"}
    assert decoder_threads() == []


@pytest.mark.parametrize("first", [0, 1, 3])
def test_out_of_memory_at_any_batch_loses_nothing(
    videos: list[VideoFile], truth: dict[str, list[Any]], first: int
) -> None:
    backend = FailingLater(torch.OutOfMemoryError("CUDA out of memory"), first, once=True)
    assert by_path(label(videos, backend, batch_size=8, embeddings=True)) == truth


def test_a_failed_batch_is_let_go_before_the_next_is_run(good: list[VideoFile]) -> None:
    """The traceback would keep it, and all activations, while smaller batches are tried."""
    held: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    class Watching(MeansBackend):
        def run(self, clips: Tensor) -> tuple[Tensor, Tensor]:
            alive.append(sum(ref() is not None for ref in held))
            held.append(weakref.ref(clips))
            return super().run(clips)

    label(good, Watching(room=1), batch_size=8)
    assert alive[:4] == [0, 0, 0, 0]


def test_an_interrupt_in_the_network_reaches_the_caller_and_stops_the_decoders(good: list[VideoFile]) -> None:
    with pytest.raises(KeyboardInterrupt):
        label(good, MeansBackend(error=KeyboardInterrupt()))
    assert decoder_threads() == []
    assert descendants(os.getpid()) == []


def test_decoders_that_cannot_be_started_do_not_hang(good: list[VideoFile], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("sqt_fast.engine.process.subprocess.Popen", refuse)
    with pytest.raises(BackendError, match=r"^no decoder can be started: resource temporarily unavailable$"):
        label(good)
    assert decoder_threads() == []


@pytest.mark.parametrize(
    ("how", "status", "message"),
    [("error", "error", "IndexError: beyond the end"), ("memory", "too_large", "not enough memory to decode it")],
)
def test_what_goes_wrong_in_planning_costs_one_video(
    good: list[VideoFile], truth: dict[str, list[Any]], how: str, status: str, message: str
) -> None:
    """Plans are made in the decoder's process, under its limits."""
    recipe = PoisonedRecipe(FAST.protocol, name=good[0].path, how=how)
    results = label(good, recipe=recipe, embeddings=True)
    (row,) = next(r.rows for r in results if r.video is good[0])
    assert (row.status, row.error_message, row.codec) == (status, message, "mpeg4")
    others = by_path(results)
    assert all(others[v.name] == truth[v.name] for v in good[1:])


# -- a network that answers later, as on a GPU ------------------------------------------------------------------------


class Later(MeansBackend):
    """It runs when it is waited for; only then are there results. under_way: batches started and not waited for."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.under_way = self.most_under_way = 0

    def start(self, clips: Tensor) -> Started:
        logits, embeddings = torch.full((len(clips), 6), torch.nan), torch.full((len(clips), 2), torch.nan)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)

        def synchronize() -> None:
            self.under_way -= 1
            for result, now in zip((logits, embeddings), self.run(clips), strict=True):
                result.copy_(now)

        return Started(logits, embeddings, cast(Any, SimpleNamespace(synchronize=synchronize)))


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_results_that_come_later_are_the_same(
    videos: list[VideoFile], truth: dict[str, list[Any]], batch_size: int
) -> None:
    backend = Later()
    worker = make_worker(backend, batch_size=batch_size, embeddings=True)
    assert by_path(list(worker.label(videos))) == truth
    assert backend.under_way == 0
    assert backend.most_under_way <= 2
    assert worker.take_counters().clips == sum("status='ok'" in str(row) for rows in truth.values() for row in rows)


def test_a_batch_is_started_while_another_is_under_way(good: list[VideoFile], truth: dict[str, list[Any]]) -> None:
    """Where the decoders are ahead, the network always has another batch before the results of one are waited for."""
    seen: list[int] = []

    class Patient(Later):
        def start(self, clips: Tensor) -> Started:
            seen.append(self.under_way)
            assert wait_until(lambda: not decoder_threads(), 20)  # until everything is decoded
            return super().start(clips)

    worker = make_worker(Patient(), batch_size=1, embeddings=True)
    worker._ready = queue.Queue()  # with room for everything
    assert by_path(list(worker.label(good))) == {v.name: truth[v.name] for v in good}
    assert len(seen) > 10
    assert seen == [0] + [1] * (len(seen) - 1)


def test_the_last_batch_is_not_held_back_until_more_comes(good: list[VideoFile], truth: dict[str, list[Any]]) -> None:
    """The supervisor sends more videos when it has the results of these."""
    worker = make_worker(Later(), embeddings=True)
    worker.jobs.add(good[:1])
    with closing(worker.results()) as results:
        assert by_path([next_in_time(results)]) == {good[0].name: truth[good[0].name]}
        worker.jobs.add(good[1:2])
        assert by_path([next_in_time(results)]) == {good[1].name: truth[good[1].name]}


def test_results_are_not_held_back_while_decoders_are_slow(good: list[VideoFile], truth: dict[str, list[Any]]) -> None:
    quick, slow = (next(v for v in good if ("mkv" in v.path) is is_slow) for is_slow in (False, True))
    worker = make_worker(Later(), batch_size=1, tools=Slow(30.0, name="mkv"), embeddings=True)
    with closing(worker.label([quick, slow])) as results:
        assert by_path([next_in_time(results)]) == {quick.name: truth[quick.name]}


def next_in_time(results: Iterator[VideoResult]) -> VideoResult:
    """Return the next result. Fails where it is held back."""
    found: list[VideoResult] = []
    thread = threading.Thread(target=lambda: found.append(next(results)), daemon=True)
    thread.start()
    thread.join(15)
    assert found, "a result that is there is held back"
    return found[0]


@pytest.mark.parametrize("room", [1, 3])
def test_memory_that_runs_out_later_loses_nothing(
    videos: list[VideoFile], truth: dict[str, list[Any]], room: int
) -> None:
    backend = Later(room=room)
    worker = make_worker(backend, batch_size=8, embeddings=True)
    assert by_path(list(worker.label(videos))) == truth
    assert worker.runs.batch_size <= room
    assert backend.under_way == 0


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_clip_that_the_network_fails_on_later_costs_its_video_only(
    good: list[VideoFile], truth: dict[str, list[Any]], batch_size: int
) -> None:
    bad = next(v for v in good if len(FAST.plan(probe(v))) > 1)
    hated = float(views_of(bad, FAST)[0].clip.double().mean((1, 2))[0])
    results = label(good, Later(hated=hated), batch_size=batch_size, embeddings=True)
    rows = next(r.rows for r in results if r.video is bad)
    assert [row.status for row in rows] == ["ok"] * (len(rows) - 1) + ["error"]
    others = by_path(results)
    assert all(others[v.name] == truth[v.name] for v in good if v is not bad)


@pytest.mark.parametrize(
    ("error", "raised"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (torch.AcceleratorError("CUDA error: gone"), DeviceLostError)],
    ids=["Ctrl-C", "lost"],
)
def test_what_ends_the_network_while_it_is_waited_for_ends_the_run(
    good: list[VideoFile], error: BaseException, raised: type[BaseException]
) -> None:
    with pytest.raises(raised):
        label(good, Later(error=error), batch_size=2)
    assert decoder_threads() == []
    assert descendants(os.getpid()) == []


# -- stopping ---------------------------------------------------------------------------------------------------------


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
    assert descendants(os.getpid()) == []


@pytest.mark.parametrize("tools", [Slow(30.0, name="mkv"), Poison("hang", 0, name="mkv")], ids=["probing", "decoding"])
def test_decoders_that_do_not_listen_are_ended_in_time(good: list[VideoFile], tools: Any) -> None:
    """As inside one long call of FFmpeg."""
    slow = next(v for v in good if "mkv" in v.path)
    results = make_worker(MeansBackend(), batch_size=1, num_decoders=4, tools=tools).label([good[0], *[slow] * 6])
    next(results)
    started = time.perf_counter()
    results.close()
    assert time.perf_counter() - started < 1.5
    assert wait_until(lambda: not decoder_threads() and not descendants(os.getpid()), 2)


def test_little_is_decoded_ahead(good: list[VideoFile]) -> None:
    """The queue is bounded: memory does not grow with the archive."""
    worker = make_worker(MeansBackend(), batch_size=2, num_decoders=2)
    with closing(worker.label(good * 10)) as results:
        next(results)
        time.sleep(0.5)
        assert worker._ready.qsize() <= 4


def test_views_are_kept_by_their_place() -> None:
    """Whatever their order, the mean over crops is the same to the last bit."""
    scores = torch.rand((3, 3, 5), generator=torch.Generator().manual_seed(0))
    kept = []
    for order in ([(i, k) for i in range(3) for k in range(3)], [(i, k) for k in (2, 0, 1) for i in (1, 2, 0)]):
        sheet = Sheet()
        for i, k in order:
            sheet.keep(View(i, k, torch.empty(0), missing=i), (3, 3), scores[i, k], scores[i, k, :2])
        assert sheet.missing == {0: 0, 1: 1, 2: 2}
        assert sheet.scores is not None
        assert sheet.embeddings is not None
        assert np.array_equal(sheet.scores, scores.numpy())
        assert np.array_equal(sheet.embeddings, scores[:, :, :2].numpy())
        kept.append(sheet.scores.mean(axis=1).tobytes())
    assert kept[0] == kept[1]


def test_a_network_that_fails_on_video_after_video_is_no_videos_fault(good: list[VideoFile]) -> None:
    """Though a blank clip comes through."""

    class Picky(MeansBackend):
        def run(self, clips: Tensor) -> tuple[Tensor, Tensor]:
            if (clips[0].double().mean((1, 2)) - BLANK).abs().max() > 0.2:
                raise ValueError("not this one")
            return super().run(clips)

    with pytest.raises(BackendError, match=r"the network fails on every clip \(not this one\)"):
        label(good * 2, Picky(), batch_size=1)


BLANK = CpuBatches(FAST.protocol, torch.float32).batch([], 1)[0].double().mean((1, 2))
