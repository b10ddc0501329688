"""Frames to clips: the right frames in any order, nothing kept too long, and the views of the official code."""

import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from sqt_fast.clips.batches import CpuBatches, View
from sqt_fast.clips.gather import Clip, ClipMaker, SegmentIntake
from sqt_fast.clips.resize import resize
from sqt_fast.config import OFFICIAL, ClipProtocol
from sqt_fast.kernels.squeeze_host import MEAN, STD
from sqt_fast.network.weights import load_weights
from sqt_fast.samples import encoding
from sqt_fast.samples.encoding import Format
from sqt_fast.samples.scenes import draw, random_scene
from sqt_fast.video.archive import find_videos
from sqt_fast.video.cpu_decoder import CpuDecoder, DecodeReport
from sqt_fast.video.probe import Probe
from sqt_fast.video.reader import PacketReader
from sqt_fast.video.sampling import ClipPlan, Int64, plan_clips
from sqt_fast.video.scan import probe
from sqt_fast.video.segments import plan_segments
from tests.test_crops import mmaction_crops

ONE = ClipProtocol("fast", short_side=12, crop_size=8, num_clips=None, num_crops=1)
THREE = ClipProtocol("official", short_side=8, crop_size=8, num_clips=10, num_crops=3)


def noise(num_frames: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(num_frames + height + width)
    return torch.randint(0, 256, (num_frames, height, width, 3), dtype=torch.uint8, generator=generator)


def plan_of(num_frames: int, **options: float) -> ClipPlan:
    return plan_clips(np.arange(num_frames) / 25, num_frames / 25, **options)  # type: ignore[arg-type]


def feed(
    maker: ClipMaker, images: Tensor, numbers: list[int], chunk: int = 5, dtype: torch.dtype = torch.float32
) -> Iterator[View]:
    """Give the maker the images with these numbers, ``chunk`` at a time, as of one segment that has all wanted ones."""
    intake = maker.segment(maker.wanted)
    for i in range(0, len(numbers), chunk):
        part = numbers[i : i + chunk]
        yield from views_of(intake.add(part, images[part]), maker.protocol, dtype)
    yield from views_of(intake.finish(), maker.protocol, dtype)


def views_of(clips: list[Clip], protocol: ClipProtocol, dtype: torch.dtype = torch.float32) -> list[View]:
    return [view for clip in clips for view in CpuBatches(protocol, dtype).views(clip)]


def level(clip: Tensor) -> NDArray[np.float64]:
    """Undo the normalising: (48, S, S) to (3, 16, S, S), levels of 0 to 255."""
    values = clip.double().numpy().reshape(3, 16, *clip.shape[1:])
    return np.asarray(values * np.array(STD)[:, None, None, None] + np.array(MEAN)[:, None, None, None])


def brute_force(
    images: Tensor, plan: ClipPlan, protocol: ClipProtocol, source: dict[int, int]
) -> dict[tuple[int, int], NDArray[np.uint8]]:
    """Return the pixels (3, 16, S, S) of every (crop, clip); ``source`` says which image stands for which number."""
    _, height, width, _ = images.shape
    out = {}
    for i, clip in enumerate(plan.frames.tolist()):
        boxes = mmaction_crops(height, width, protocol.crop_size, protocol.num_crops)
        for k, (left, top, right, bottom) in enumerate(boxes):
            frames = [images[source[n], top:bottom, left:right].numpy() for n in clip]
            out[k, i] = np.stack(frames).transpose(3, 0, 1, 2)
    return out


def check(views: list[View], wanted: dict[tuple[int, int], NDArray[np.uint8]]) -> None:
    """Assert that the views are exactly the wanted ones; the crops of a clip come in order, one after the other."""
    seen: dict[int, int] = {}
    for view in views:
        crop = seen.get(view.clip_index, 0)
        seen[view.clip_index] = crop + 1
        assert view.crop == crop
        pixels = level(view.clip)
        assert np.abs(pixels - np.rint(pixels)).max() < 1e-3
        assert np.array_equal(np.rint(pixels), wanted.pop((crop, view.clip_index)))
    assert not wanted, f"views that never came: {sorted(wanted)}"


# Clips against brute force -------------------------------------------------------------------------------------------


SHAPES = {"landscape": (12, 18), "portrait": (18, 12), "square": (12, 12), "odd": (13, 17)}


@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize(("height", "width"), SHAPES.values(), ids=SHAPES)
def test_windows_of_one_crop(height: int, width: int, chunk: int) -> None:
    images, plan = noise(150, height, width), plan_of(150)
    views = list(feed(ClipMaker(plan, ONE), images, plan.wanted.tolist(), chunk))
    assert [view.missing for view in views] == [0] * len(plan)
    assert [view.clip_index for view in views] == [0, 1, 2]
    check(views, brute_force(images, plan, ONE, {n: n for n in range(150)}))


@pytest.mark.parametrize("num_frames", [1, 3, 16, 61, 100, 280])
@pytest.mark.parametrize(
    ("height", "width"), [(8, 14), (8, 13), (14, 8), (8, 8)], ids=["landscape", "odd", "portrait", "square"]
)
def test_official_views_are_crop_major(height: int, width: int, num_frames: int) -> None:
    images, plan = noise(num_frames, height, width), plan_of(num_frames, num_clips=10)
    views = list(feed(ClipMaker(plan, THREE), images, plan.wanted.tolist()))
    assert len(views) == 30
    check(views, brute_force(images, plan, THREE, {n: n for n in range(num_frames)}))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), num_frames=st.integers(1, 150), stride=st.sampled_from([None, 0.3, 1.0]))
def test_missing_frames_are_the_last_before(data: st.DataObject, num_frames: int, stride: float | None) -> None:
    images, plan = noise(num_frames, 12, 15), plan_of(num_frames, **({"stride_s": stride} if stride else {}))
    wanted = plan.wanted.tolist()
    there = sorted(data.draw(st.sets(st.sampled_from(wanted), min_size=1)))
    maker = ClipMaker(plan, ONE)
    views = list(feed(maker, images, there, data.draw(st.integers(1, 20))))
    source = {n: max([t for t in there if t <= n], default=there[0]) for n in wanted}
    check(views, brute_force(images, plan, ONE, source))
    for view in views:
        assert view.missing == sum(n not in there for n in plan.frames[view.clip_index].tolist())
    assert not maker._store


def test_missing_counts_a_frame_as_often_as_it_is_seen() -> None:
    """A video of three frames wraps round: without frame 1, five of sixteen places are filled by frame 0."""
    images, plan = noise(3, 12, 12), plan_of(3)
    (view,) = feed(ClipMaker(plan, ONE), images, [0, 2])
    assert view.missing == plan.frames[0].tolist().count(1) == 5


def test_clips_come_as_soon_as_their_last_frame() -> None:
    """Whatever the order in the plan."""
    images, plan = noise(192, 12, 15), plan_of(192)
    plan = ClipPlan(plan.frames[::-1].copy(), plan.spans[::-1].copy())
    maker = ClipMaker(plan, ONE)
    intake, came = maker.segment(plan.wanted), {}
    for number in plan.wanted.tolist():
        for clip in intake.add([number], images[number : number + 1]):
            came[clip.clip_index] = number
    assert came == {2: 60, 1: 124, 0: 188}


def test_no_frames_give_no_clips() -> None:
    plan = plan_of(100)
    maker = ClipMaker(plan, ONE)
    assert maker.segment(plan.wanted).finish() == []
    assert not maker._store


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_views_are_channels_last(dtype: torch.dtype) -> None:
    images, plan = noise(64, 12, 15), plan_of(64)
    (view,) = feed(ClipMaker(plan, ONE), images, plan.wanted.tolist(), dtype=dtype)
    assert view.clip.dtype == dtype
    assert view.clip.shape == (48, 8, 8)
    assert view.clip[None].is_contiguous(memory_format=torch.channels_last)


# Segments ------------------------------------------------------------------------------------------------------------


def cut(wanted: list[int], places: set[int]) -> list[Int64]:
    """Cut the wanted numbers into segments at ``places``."""
    return [part for part in np.split(np.array(wanted), sorted(places)) if len(part)]


def sources(segments: list[Int64], there: set[int]) -> dict[int, int | None]:
    """Say which image stands for each number after its segment is decoded; None where the whole segment is lost."""
    found: dict[int, int | None] = {}
    for segment in segments:
        mine = [n for n in segment.tolist() if n in there]
        for n in segment.tolist():
            found[n] = max([t for t in mine if t <= n], default=mine[0] if mine else None)
    return found


def expected(plan: ClipPlan, segments: list[Int64], there: set[int]) -> dict[int, tuple[list[int], int]]:
    """Return the numbers of the images, and how many were replaced, of every clip that has an image."""
    source, out = sources(segments, there), {}
    for i, clip in enumerate(plan.frames.tolist()):
        images: list[int] = []
        for k, n in enumerate(clip):
            before = [source[m] for m in clip[: k + 1] if source[m] is not None]
            after = [source[m] for m in clip[k:] if source[m] is not None]
            here = source[n] if source[n] is not None else (before[-1:] or after[:1] or [None])[0]
            images += [] if here is None else [here]
        if images:
            out[i] = images, sum(n not in there for n in clip)
    return out


def told(clips: list[Clip]) -> dict[int, tuple[list[int], int]]:
    """Read the numbers off images made by ``numbered``."""
    assert len({clip.clip_index for clip in clips}) == len(clips), "a clip came twice"
    return {clip.clip_index: ([int(image[0, 0, 0]) for image in clip.images], clip.missing) for clip in clips}


def numbered(num_frames: int) -> Tensor:
    return torch.arange(num_frames, dtype=torch.uint8)[:, None, None, None].expand(num_frames, 9, 8, 3)


plans = st.builds(
    lambda num_frames, options: plan_of(num_frames, **options),
    st.integers(1, 250),
    st.sampled_from([{}, {"stride_s": 0.3}, {"stride_s": 1.0}, {"stride_s": 4.0}, {"num_clips": 10}]),
)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), plan=plans)
def test_segments_in_any_order_and_interleaved(data: st.DataObject, plan: ClipPlan) -> None:
    """Frames missing anywhere, segments lost as a whole, some begun again after they broke off: the same clips."""
    wanted = plan.wanted.tolist()
    images, maker = numbered(250), ClipMaker(plan, ONE)
    segments = cut(wanted, data.draw(st.sets(st.integers(0, len(wanted)), max_size=6)))
    there = data.draw(st.sets(st.sampled_from(wanted))) if data.draw(st.booleans()) else set(wanted)
    steps: list[tuple[SegmentIntake, list[int] | None]] = []
    queues = []
    for segment in segments:
        mine = [n for n in segment.tolist() if n in there]
        queue: list[tuple[SegmentIntake, list[int] | None]] = []
        if len(mine) == len(segment) and data.draw(st.booleans()):  # it breaks off: a new intake begins again
            first = maker.segment(segment)
            queue += [(first, mine[:k]) for k in [data.draw(st.integers(0, len(mine)))] if k]
        intake, size = maker.segment(segment), data.draw(st.integers(1, 20))
        queue += [*((intake, mine[i : i + size]) for i in range(0, len(mine), size)), (intake, None)]
        queues.append(queue)
    while any(queues):
        queue = data.draw(st.sampled_from([q for q in queues if q]))
        steps.append(queue.pop(0))
    clips: list[Clip] = []
    for intake, numbers in steps:
        clips += intake.finish() if numbers is None else intake.add(numbers, images[numbers])
    assert told(clips) == expected(plan, segments, there)
    assert not maker._store


def test_a_lost_segment_is_replaced_by_its_neighbours_in_the_clip() -> None:
    """Windows of 16 frames, every fourth: the second window has 6 frames of a lost segment, the third all 16."""
    plan = plan_of(192)
    wanted = plan.wanted.tolist()
    parts = cut(wanted, {26, 48})
    assert [len(part) for part in parts] == [26, 22]
    maker = ClipMaker(plan, ONE)
    clips = maker.segment(parts[1]).finish()
    assert clips == []
    clips = maker.segment(parts[0]).add(parts[0].tolist(), numbered(192)[parts[0]])
    first, second = told(clips)[0], told(clips)[1]
    assert first == (wanted[:16], 0)
    assert second == ([*wanted[16:26], *[wanted[25]] * 6], 6)
    assert set(told(clips)) == {0, 1}
    assert not maker._store


def test_frames_that_come_after_their_replacement_are_too_late() -> None:
    """The host decoder goes over a damaged segment twice: frames that it passed over may come in the second pass."""
    plan, images = plan_of(64), numbered(64)
    wanted = plan.wanted.tolist()
    maker = ClipMaker(plan, ONE)
    intake = maker.segment(plan.wanted)
    clips = intake.add([0, 8], images[[0, 8]])
    clips += intake.add([4, 12], images[[4, 12]])
    clips += intake.add(wanted[4:], images[wanted[4:]])
    clips += intake.add([8, 60], images[[8, 60]])
    clips += intake.finish()
    assert told(clips) == {0: ([0, 0, *wanted[2:]], 1)}
    assert not maker._store


@pytest.mark.parametrize("options", [{}, {"stride_s": 0.2}], ids=["tiled", "overlapping"])
def test_segments_from_threads(options: dict[str, float]) -> None:
    plan, images = plan_of(250, **options), numbered(250)
    segments = cut(plan.wanted.tolist(), set(range(0, len(plan.wanted), 7)))
    for _ in range(20):
        maker = ClipMaker(plan, ONE)
        clips: list[Clip] = []

        def work(mine: list[Int64], maker: ClipMaker = maker, clips: list[Clip] = clips) -> None:
            for numbers in mine:
                intake = maker.segment(numbers)
                for number in numbers.tolist():
                    clips.extend(intake.add([number], images[[number]]))
                clips.extend(intake.finish())

        threads = [threading.Thread(target=work, args=(segments[i::4],)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert told(clips) == expected(plan, segments, set(plan.wanted.tolist()))
        assert not maker._store


# Memory --------------------------------------------------------------------------------------------------------------


def test_windows_that_tile_leave_nothing_behind() -> None:
    images, plan = noise(256, 12, 15), plan_of(256)
    maker = ClipMaker(plan, ONE)
    intake, held = maker.segment(plan.wanted), []
    for number in plan.wanted.tolist():
        clips = intake.add([number], images[number : number + 1])
        held.append(len(maker._store))
        assert len(clips) == (number % 64 == 60)
        assert not (clips and maker._store)
    assert max(held) == 15


@pytest.mark.parametrize("options", [{"num_clips": 10}, {"stride_s": 0.4}], ids=["official", "overlapping"])
def test_no_frame_is_kept_longer_than_a_clip_needs_it(options: dict[str, float]) -> None:
    images, plan = noise(300, 8, 10), plan_of(300, **options)
    maker = ClipMaker(plan, THREE)
    intake = maker.segment(plan.wanted)
    clips = [set(clip) for clip in plan.frames.tolist()]
    for number in plan.wanted.tolist():
        intake.add([number], images[number : number + 1])
        unfinished = [clip for clip in clips if max(clip) > number]
        kept = set(maker.wanted[list(maker._store)].tolist())
        assert kept == {n for clip in unfinished for n in clip if n <= number}
    assert not maker._store


@pytest.mark.parametrize(("protocol", "height", "width"), [(ONE, 8, 8), (THREE, 12, 40)], ids=["centre", "whole"])
def test_only_what_is_needed_of_a_chunk_is_kept(protocol: ClipProtocol, height: int, width: int) -> None:
    """Else one small crop would hold the memory of the whole chunk it came in, on a GPU that of a segment."""
    images, plan = noise(64, 12, 40), plan_of(64)
    maker = ClipMaker(plan, protocol)
    maker.segment(plan.wanted).add([0, 4, 8], images[[0, 4, 8]])
    kept = [image for image in maker._store.values() if image is not None]
    assert [image.untyped_storage().nbytes() for image in kept] == [height * width * 3] * 3


# From file to view ---------------------------------------------------------------------------------------------------


def look(path: Path) -> Probe:
    (video,) = find_videos([str(path)])
    return probe(video)


def views_of_file(path: Path, protocol: ClipProtocol) -> list[View]:
    """Probe, plan, decode, resize, clip: as the worker does."""
    facts = look(path)
    plan = plan_clips(facts.times_s, facts.end_s, num_clips=protocol.num_clips)
    maker = ClipMaker(plan, protocol)
    views = []
    with PacketReader(facts.source) as reader:
        for segment in plan_segments(facts, plan.wanted):
            intake = maker.segment(segment.numbers)
            for frames in CpuDecoder().frames(reader, segment, DecodeReport()):
                images = resize(torch.from_numpy(frames.images), protocol.short_side)
                views += views_of(intake.add(frames.numbers, images), protocol)
            views += views_of(intake.finish(), protocol)
    return views


def crop_major(views: list[View], num_clips: int) -> dict[int, Tensor]:
    """Return the views by the number that mmaction2 gives them: crop * clips + clip."""
    seen: dict[int, int] = {}
    out = {}
    for view in views:
        crop = seen.get(view.clip_index, 0)
        seen[view.clip_index] = crop + 1
        out[crop * num_clips + view.clip_index] = view.clip
    return out


def test_official_views_and_scores_equal_mmaction2s(shared: Path) -> None:
    """Frames, colours, resize, crops and network: pixels to the bit, scores of the whole video to 1e-5."""
    views = crop_major(views_of_file(shared / "videos" / "mma_demo.mp4", OFFICIAL), 10)
    assert sorted(views) == list(range(30))
    numbers = np.load(shared / "golden" / "r50_w025.npz")["clip_index"].tolist()
    assert numbers == [0, 1, 14, 29]
    for number, wanted in zip(numbers, np.load(shared / "golden" / "demo_clips.npz")["clips"], strict=True):
        assert np.array_equal(np.rint(level(views[number])), wanted)
    model = load_weights(str(shared / "golden" / "r50_w025.pth")).model
    with torch.no_grad():
        logits = torch.cat([model.logits(views[i][None]) for i in range(30)])
    wanted = np.load(shared / "golden" / "r50_w025.npz")["video_scores"]
    assert np.abs(logits.softmax(1).mean(0).numpy() - wanted).max() < 1e-5


def test_unresized_views_are_the_decoders_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    form = Format("mp4", "libx264", "yuv420p", (80, 64), Fraction(25), {"bf": "2"})
    edges = encoding.frame_edges(form, 4.0, [1])
    encoding.encode_video(path, form, draw(random_scene("right", 1), (t / 25 for t in edges[:-1]), form.size), edges)
    protocol = ClipProtocol("official", short_side=64, crop_size=64, num_clips=10, num_crops=3)
    facts = look(path)
    with PacketReader(facts.source) as reader:
        (segment,) = plan_segments(facts, np.arange(100))
        chunks = list(CpuDecoder().frames(reader, segment, DecodeReport()))
    images = torch.from_numpy(np.concatenate([chunk.images for chunk in chunks]))
    plan = plan_clips(facts.times_s, facts.end_s, num_clips=10)
    check(views_of_file(path, protocol), brute_force(images, plan, protocol, {n: n for n in range(100)}))
