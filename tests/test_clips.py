"""Frames to clips: the right crops of the right frames, nothing kept too long, and the views of the official code."""

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

from sqt_fast import samples
from sqt_fast.archive import find_videos
from sqt_fast.clips import ClipMaker, View, crop_corners
from sqt_fast.config import OFFICIAL, Protocol
from sqt_fast.decode import DecodeReport, Frames, HostDecoder
from sqt_fast.kernels.squeeze import MEAN, STD
from sqt_fast.pipelines.resize import HostResizer
from sqt_fast.probe import probe
from sqt_fast.samples import Format
from sqt_fast.sampling import ClipPlan, plan_clips
from sqt_fast.scenes import draw, random_scene

ONE = Protocol("fast", short_side=12, crop_size=8, num_clips=None, num_crops=1)
THREE = Protocol("official", short_side=8, crop_size=8, num_clips=10, num_crops=3)


def noise(num_frames: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(num_frames + height + width)
    return torch.randint(0, 256, (num_frames, height, width, 3), dtype=torch.uint8, generator=generator)


def plan_of(num_frames: int, **options: float) -> ClipPlan:
    return plan_clips(np.arange(num_frames) / 25, num_frames / 25, **options)  # type: ignore[arg-type]


def feed(maker: ClipMaker, images: Tensor, numbers: list[int], chunk: int = 5) -> Iterator[View]:
    """Give the maker the images with these numbers, ``chunk`` at a time."""
    for i in range(0, len(numbers), chunk):
        part = numbers[i : i + chunk]
        yield from maker.add(Frames(part, images[part]))
    yield from maker.finish()


def level(clip: Tensor) -> NDArray[np.float64]:
    """Undo the normalising: (48, S, S) to (3, 16, S, S), levels of 0 to 255."""
    values = clip.double().numpy().reshape(3, 16, *clip.shape[1:])
    return np.asarray(values * np.array(STD)[:, None, None, None] + np.array(MEAN)[:, None, None, None])


def mmaction_crops(height: int, width: int, size: int, num_crops: int) -> list[tuple[int, int, int, int]]:
    """Return (left, top, right, bottom) as CenterCrop and ThreeCrop of mmaction2 1.x compute them."""
    if num_crops == 1:
        left, top = (width - size) // 2, (height - size) // 2
        return [(left, top, left + size, top + size)]
    if size == height:
        w_step = (width - size) // 2
        offsets = [(0, 0), (2 * w_step, 0), (w_step, 0)]
    else:
        assert size == width
        h_step = (height - size) // 2
        offsets = [(0, 0), (0, 2 * h_step), (0, h_step)]
    return [(x, y, x + size, y + size) for x, y in offsets]


def brute_force(
    images: Tensor, plan: ClipPlan, protocol: Protocol, source: dict[int, int]
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
        pixels = level(view.clip)
        assert np.abs(pixels - np.rint(pixels)).max() < 1e-3
        assert np.array_equal(np.rint(pixels), wanted.pop((crop, view.clip_index)))
    assert not wanted, f"views that never came: {sorted(wanted)}"


# Crops ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "corners"),
    [
        pytest.param(224, 298, [(0, 0), (0, 74), (0, 37)], id="landscape"),
        pytest.param(224, 299, [(0, 0), (0, 74), (0, 37)], id="landscape, odd rest"),
        pytest.param(298, 224, [(0, 0), (74, 0), (37, 0)], id="portrait"),
        pytest.param(224, 224, [(0, 0), (0, 0), (0, 0)], id="square"),
    ],
)
def test_three_crops(height: int, width: int, corners: list[tuple[int, int]]) -> None:
    assert crop_corners(height, width, 224, 3) == corners


@pytest.mark.parametrize(
    ("height", "width", "corner"),
    [((256), 340, (16, 58)), (341, 256, (58, 16)), (257, 256, (16, 16)), (224, 224, (0, 0)), (225, 299, (0, 37))],
)
def test_one_crop_is_the_centre(height: int, width: int, corner: tuple[int, int]) -> None:
    assert crop_corners(height, width, 224, 1) == [corner]


@given(longer=st.integers(0, 300), size=st.integers(1, 300), portrait=st.booleans())
def test_three_crops_are_mmaction2s(longer: int, size: int, portrait: bool) -> None:
    height, width = (size + longer, size) if portrait else (size, size + longer)
    ours = [(left, top, left + size, top + size) for top, left in crop_corners(height, width, size, 3)]
    assert ours == mmaction_crops(height, width, size, 3)


# Clips against brute force -------------------------------------------------------------------------------------------


SHAPES = {"landscape": (12, 18), "portrait": (18, 12), "square": (12, 12), "odd": (13, 17)}


@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize(("height", "width"), SHAPES.values(), ids=SHAPES)
def test_windows_of_one_crop(height: int, width: int, chunk: int) -> None:
    images, plan = noise(150, height, width), plan_of(150)
    views = list(feed(ClipMaker(plan, ONE, torch.float32), images, plan.wanted.tolist(), chunk))
    assert [view.missing for view in views] == [0] * len(plan)
    assert [view.clip_index for view in views] == [0, 1, 2]
    check(views, brute_force(images, plan, ONE, {n: n for n in range(150)}))


@pytest.mark.parametrize("num_frames", [1, 3, 16, 61, 100, 280])
@pytest.mark.parametrize(
    ("height", "width"), [(8, 14), (8, 13), (14, 8), (8, 8)], ids=["landscape", "odd", "portrait", "square"]
)
def test_official_views_are_crop_major(height: int, width: int, num_frames: int) -> None:
    images, plan = noise(num_frames, height, width), plan_of(num_frames, num_clips=10)
    views = list(feed(ClipMaker(plan, THREE, torch.float32), images, plan.wanted.tolist()))
    assert len(views) == 30
    check(views, brute_force(images, plan, THREE, {n: n for n in range(num_frames)}))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), num_frames=st.integers(1, 150), stride=st.sampled_from([None, 0.3, 1.0]))
def test_missing_frames_are_the_last_before(data: st.DataObject, num_frames: int, stride: float | None) -> None:
    images, plan = noise(num_frames, 12, 15), plan_of(num_frames, **({"stride_s": stride} if stride else {}))
    wanted = plan.wanted.tolist()
    there = sorted(data.draw(st.sets(st.sampled_from(wanted), min_size=1)))
    maker = ClipMaker(plan, ONE, torch.float32)
    views = list(feed(maker, images, there, data.draw(st.integers(1, 20))))
    source = {n: max([t for t in there if t <= n], default=there[0]) for n in wanted}
    check(views, brute_force(images, plan, ONE, source))
    for view in views:
        assert view.missing == sum(n not in there for n in plan.frames[view.clip_index].tolist())
    assert not maker.store


def test_missing_counts_a_frame_as_often_as_it_is_seen() -> None:
    """A video of three frames wraps round: without frame 1, five of sixteen places are filled by frame 0."""
    images, plan = noise(3, 12, 12), plan_of(3)
    (view,) = feed(ClipMaker(plan, ONE, torch.float32), images, [0, 2])
    assert view.missing == plan.frames[0].tolist().count(1) == 5


def test_clips_come_as_soon_as_their_last_frame() -> None:
    """Whatever the order in the plan."""
    images, plan = noise(192, 12, 15), plan_of(192)
    plan = ClipPlan(plan.frames[::-1].copy(), plan.spans[::-1].copy())
    maker = ClipMaker(plan, ONE, torch.float32)
    came = {}
    for number in plan.wanted.tolist():
        for view in maker.add(Frames([number], images[number : number + 1])):
            came[view.clip_index] = number
    assert came == {2: 60, 1: 124, 0: 188}


def test_no_frames_give_no_views() -> None:
    maker = ClipMaker(plan_of(100), ONE, torch.float32)
    assert list(maker.finish()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_views_are_channels_last(dtype: torch.dtype) -> None:
    images, plan = noise(64, 12, 15), plan_of(64)
    (view,) = feed(ClipMaker(plan, ONE, dtype), images, plan.wanted.tolist())
    assert view.clip.dtype == dtype
    assert view.clip.shape == (48, 8, 8)
    assert view.clip[None].is_contiguous(memory_format=torch.channels_last)


# Memory --------------------------------------------------------------------------------------------------------------


def test_windows_that_tile_leave_nothing_behind() -> None:
    images, plan = noise(256, 12, 15), plan_of(256)
    maker = ClipMaker(plan, ONE, torch.float32)
    held = []
    for number in plan.wanted.tolist():
        views = list(maker.add(Frames([number], images[number : number + 1])))
        held.append(len(maker.store))
        assert len(views) == (number % 64 == 60)
        assert not (views and maker.store)
    assert max(held) == 15


@pytest.mark.parametrize("options", [{"num_clips": 10}, {"stride_s": 0.4}], ids=["official", "overlapping"])
def test_no_frame_is_kept_longer_than_a_clip_needs_it(options: dict[str, float]) -> None:
    images, plan = noise(300, 8, 10), plan_of(300, **options)
    maker = ClipMaker(plan, THREE, torch.float32)
    clips = [set(clip) for clip in plan.frames.tolist()]
    for number in plan.wanted.tolist():
        list(maker.add(Frames([number], images[number : number + 1])))
        unfinished = [clip for clip in clips if max(clip) > number]
        assert set(maker.store) == {n for clip in unfinished for n in clip if n <= number}
    assert not maker.store


def test_only_the_crop_of_a_frame_is_kept() -> None:
    """Else one small crop would hold the memory of the whole chunk it came in."""
    images, plan = noise(64, 12, 40), plan_of(64)
    maker = ClipMaker(plan, ONE, torch.float32)
    list(maker.add(Frames([0, 4, 8], images[[0, 4, 8]])))
    assert {image.untyped_storage().nbytes() for image in maker.store.values()} == {8 * 8 * 3}


# From file to view ---------------------------------------------------------------------------------------------------


def views_of(path: Path, protocol: Protocol) -> list[View]:
    """Probe, plan, decode, resize, clip: as the worker does."""
    (video,) = find_videos([str(path)])
    facts = probe(video)
    plan = plan_clips(facts.times_s, facts.end_s, num_clips=protocol.num_clips)
    maker = ClipMaker(plan, protocol, torch.float32)
    views = []
    for frames in HostDecoder(HostResizer(protocol.short_side)).frames(facts, plan.wanted, DecodeReport()):
        views += list(maker.add(frames))
    return [*views, *maker.finish()]


def crop_major(views: list[View], num_clips: int) -> dict[int, Tensor]:
    """Return the views by the number that mmaction2 gives them: crop * clips + clip."""
    seen: dict[int, int] = {}
    out = {}
    for view in views:
        crop = seen.get(view.clip_index, 0)
        seen[view.clip_index] = crop + 1
        out[crop * num_clips + view.clip_index] = view.clip
    return out


def test_official_views_equal_mmaction2s(shared: Path) -> None:
    views = crop_major(views_of(shared / "videos" / "mma_demo.mp4", OFFICIAL), 10)
    assert sorted(views) == list(range(30))
    numbers = np.load(shared / "golden" / "r50_w025.npz")["clip_index"].tolist()
    assert numbers == [0, 1, 14, 29]
    for number, wanted in zip(numbers, np.load(shared / "golden" / "demo_clips.npz")["clips"], strict=True):
        difference = np.abs(np.rint(level(views[number])) - wanted)
        assert difference.max() <= 1
        assert difference.mean() < 0.15


def test_unresized_views_are_the_decoders_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    form = Format("mp4", "libx264", "yuv420p", (80, 64), Fraction(25), {"bf": "2"})
    edges = samples._frame_edges(form, 4.0, [1])
    samples._encode(path, form, draw(random_scene("right", 1), (t / 25 for t in edges[:-1]), form.size), edges)
    protocol = Protocol("official", short_side=64, crop_size=64, num_clips=10, num_crops=3)
    (video,) = find_videos([str(path)])
    facts = probe(video)
    chunks = list(HostDecoder(torch.from_numpy).frames(facts, np.arange(100), DecodeReport()))
    images = torch.cat([chunk.images for chunk in chunks])
    plan = plan_clips(facts.times_s, facts.end_s, num_clips=10)
    check(views_of(path, protocol), brute_force(images, plan, protocol, {n: n for n in range(100)}))
