"""The host route in its own process: the same as without one, and what goes wrong is told in words and costs little."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from sqt_fast.clips.recipe import Recipe
from sqt_fast.config import FAST
from sqt_fast.engine.decoder_process import DecoderProcess
from sqt_fast.engine.process import ChildError
from sqt_fast.errors import VideoError
from sqt_fast.samples import encoding
from sqt_fast.samples.encoding import Format
from sqt_fast.samples.scenes import draw, random_scene
from sqt_fast.video.archive import VideoFile, find_videos
from sqt_fast.video.cpu_decoder import CpuDecoder, CpuTools, DecodeReport, Pixels
from sqt_fast.video.probe import Probe
from sqt_fast.video.reader import PacketReader
from sqt_fast.video.remux import remux
from sqt_fast.video.scan import probe
from sqt_fast.video.segments import Segment, plan_segments
from tests.poison import Poison, Slow, Unfit, is_alive, wait_until

HostFactory = Callable[..., DecoderProcess]


@pytest.fixture
def hosts() -> Iterator[HostFactory]:
    """Make host processes that are ended after the test."""
    made: list[DecoderProcess] = []

    def make(tools: CpuTools | None = None, **options: object) -> DecoderProcess:
        made.append(DecoderProcess(**({"tools": tools} if tools else {}), **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for host in made:
        host.close()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> VideoFile:
    """200 frames of 96 x 64 in groups of 50, in a file that has "poison" in its name."""
    path = tmp_path_factory.mktemp("host") / "poison.mp4"
    form = Format("mp4", "libx264", "yuv420p", (96, 64), Fraction(25), {"bf": "2", "g": "50"})
    edges = encoding.frame_edges(form, 8.0, [1])
    encoding.encode_video(path, form, draw(random_scene("right", 1), (t / 25 for t in edges[:-1]), form.size), edges)
    (found,) = find_videos([str(path)])
    return found


@pytest.fixture(scope="module")
def facts(video: VideoFile) -> Probe:
    return probe(video)


def segments_of(facts: Probe, *, max_wanted: int = 1000, step: int = 1) -> list[Segment]:
    return plan_segments(facts, np.arange(0, facts.num_frames, step), max_wanted=max_wanted)


def decoded(
    host: DecoderProcess, facts: Probe, segment: Segment, **options: int
) -> tuple[dict[int, Pixels], DecodeReport]:
    report = DecodeReport()
    images: dict[int, Pixels] = {}
    for frames in host.frames(facts.source, segment, report, **options):
        images.update(zip(frames.numbers, frames.images.copy(), strict=True))
    return images, report


def truth(facts: Probe, segment: Segment) -> tuple[dict[int, Pixels], DecodeReport]:
    report = DecodeReport()
    images: dict[int, Pixels] = {}
    with PacketReader(facts.source) as reader:
        for frames in CpuDecoder().frames(reader, segment, report):
            images.update(zip(frames.numbers, frames.images, strict=True))
    return images, report


def same(ours: tuple[dict[int, Pixels], DecodeReport], wanted: tuple[dict[int, Pixels], DecodeReport]) -> bool:
    assert list(ours[0]) == list(wanted[0])
    assert replace(ours[1], packets_read=0) == replace(
        wanted[1], packets_read=0
    )  # the process reads on, without seeking
    return all(np.array_equal(ours[0][n], wanted[0][n]) for n in wanted[0])


# -- the same as without a process ------------------------------------------------------------------------------------


def test_probe(hosts: HostFactory, video: VideoFile, facts: Probe) -> None:
    found = hosts().probe(video)
    assert (found.source, found.codec, found.fps, found.end_s) == (facts.source, facts.codec, facts.fps, facts.end_s)
    for name in ("times_s", "pts"):
        assert np.array_equal(getattr(found, name), getattr(facts, name))
    assert np.array_equal(found.packets.pts, facts.packets.pts)
    assert np.array_equal(found.packets.flags, facts.packets.flags)


@pytest.mark.parametrize("step", [1, 7])
def test_frames(hosts: HostFactory, facts: Probe, step: int) -> None:
    """More chunks than there are slots: none is overwritten before it is read."""
    host = hosts()
    (segment,) = segments_of(facts, step=step)
    assert len(truth(facts, segment)[0]) == len(range(0, 200, step))
    for _ in range(2):
        assert same(decoded(host, facts, segment), truth(facts, segment))
    assert same(decoded(host, facts, segment, num_threads=2), truth(facts, segment))


def test_segments_in_any_order(hosts: HostFactory, facts: Probe) -> None:
    host, segments = hosts(), segments_of(facts, max_wanted=50)
    assert len(segments) == 4
    for i in (2, 0, 1, 3, 3):
        assert same(decoded(host, facts, segments[i]), truth(facts, segments[i]))


def test_remux(hosts: HostFactory, facts: Probe) -> None:
    host, segments = hosts(), segments_of(facts, max_wanted=50, step=4)
    for segment in segments[::-1]:
        remuxed = host.remux(facts.source, segment, None)
        with PacketReader(facts.source) as reader:
            assert remuxed.data == remux(reader, segment)
        assert not remuxed.is_uncropped
        assert (remuxed.report.frames_decoded, remuxed.report.frames_wanted) == (segment.num_kept, len(segment.numbers))


def test_several_files_in_one_process(hosts: HostFactory, archive: Path) -> None:
    host = hosts()
    pids = set()
    for video in find_videos([str(archive)]):
        if "broken" in video.path:
            continue
        facts = host.probe(video)
        for segment in segments_of(facts, step=4):
            assert same(decoded(host, facts, segment), truth(facts, segment))
        assert host._child is not None
        pids.add(host._child.process.pid)
    assert len(pids) == 1


def test_what_is_wrong_with_a_file(hosts: HostFactory, archive: Path, video: VideoFile) -> None:
    """Its status and words pass between processes, and the process goes on."""
    host = hosts()
    for name, status in (("empty.mp4", "empty_file"), ("text.mp4", "not_a_video"), ("sound.mp4", "no_video_stream")):
        (broken,) = find_videos([str(archive / "broken" / name)])
        with pytest.raises(VideoError) as wanted:
            probe(broken)
        with pytest.raises(VideoError) as caught:
            host.probe(broken)
        assert (caught.value.status, str(caught.value)) == (status, str(wanted.value))
    assert host.probe(video).num_frames == 200


def test_a_file_that_vanishes(hosts: HostFactory, facts: Probe, tmp_path: Path) -> None:
    gone = replace(facts, source=replace(facts.source, path=str(tmp_path / "gone.mp4")))
    (segment,) = segments_of(facts)
    with pytest.raises(VideoError, match="no such file"):
        decoded(hosts(), gone, segment)
    with pytest.raises(VideoError, match="no such file"):
        hosts().remux(gone.source, segment, None)


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        ("memory", "too_large", "not enough memory to decode it"),
        ("value", "error", "ValueError: what nobody foresaw"),
    ],
)
@pytest.mark.parametrize("at", [None, 0, 1, 100], ids=["probing", "first frame", "second frame", "middle"])
def test_errors_are_of_one_file(
    hosts: HostFactory, video: VideoFile, facts: Probe, how: str, status: str, said: str, at: int | None, tmp_path: Path
) -> None:
    """Whatever was on its way: the next answers are those to the next questions."""
    host = hosts(Poison(how, at, once=str(tmp_path / "struck")))
    (segment,) = segments_of(facts)
    with pytest.raises(VideoError) as caught:
        host.probe(video)
        decoded(host, facts, segment)
    assert (caught.value.status, str(caught.value)) == (status, said)
    assert host._child is not None
    pid = host._child.process.pid
    assert host.probe(video).num_frames == 200
    assert same(decoded(host, facts, segment), truth(facts, segment))
    assert host._child.process.pid == pid


@pytest.mark.parametrize(
    ("how", "said"),
    [("SIGSEGV", "decoder was killed by SIGSEGV"), ("exit", r"decoder ended unasked \(exit code 3\)")],
)
@pytest.mark.parametrize("at", [None, 0, 100], ids=["probing", "first frame", "middle"])
def test_a_crash_costs_one_call(
    hosts: HostFactory, video: VideoFile, facts: Probe, how: str, said: str, at: int | None, tmp_path: Path
) -> None:
    host = hosts(Poison(how, at, once=str(tmp_path / "struck")))
    (segment,) = segments_of(facts)
    with pytest.raises(ChildError, match=f"^{said}$"):
        host.probe(video)
        decoded(host, facts, segment)
    assert same(decoded(host, facts, segment), truth(facts, segment))
    assert host.probe(video).num_frames == 200


def test_frames_before_a_crash_are_right(hosts: HostFactory, facts: Probe) -> None:
    host = hosts(Poison("SIGSEGV", at=150))
    (segment,) = segments_of(facts)
    wanted, seen = truth(facts, segment)[0], []
    with pytest.raises(ChildError):
        for frames in host.frames(facts.source, segment, DecodeReport()):
            seen += frames.numbers
            for number, image in zip(frames.numbers, frames.images, strict=True):
                assert np.array_equal(image, wanted[number])
    assert seen == list(range(len(seen)))
    assert len(seen) <= 150


@pytest.mark.parametrize("at", [None, 0, 100], ids=["probing", "first frame", "middle"])
def test_a_process_that_hangs_is_killed(
    hosts: HostFactory, video: VideoFile, facts: Probe, at: int | None, tmp_path: Path
) -> None:
    host = hosts(Poison("hang", at, once=str(tmp_path / "struck")), hang_s=2.0)
    (segment,) = segments_of(facts)
    started = time.monotonic()
    with pytest.raises(ChildError, match=r"^decoder hung: it did nothing for 2 s$"):
        host.probe(video)
        decoded(host, facts, segment)
    assert time.monotonic() - started < 10
    assert host.probe(video).num_frames == 200


def test_slow_work_that_shows_progress_is_no_hang(hosts: HostFactory, video: VideoFile) -> None:
    news: list[float] = []
    slow = Slow(4.0, ticking=True, name=video.path)
    host = hosts(slow, report=lambda event: news.append(time.monotonic()))
    with pytest.raises(VideoError):
        host.probe(replace(video, path="gone.mp4"))  # starting a process may take longer than two seconds
    news.clear()
    host.hang_s = 2.0
    assert host.probe(video).num_frames == 200
    assert len(news) >= 3


def test_tools_that_do_not_arrive(hosts: HostFactory, video: VideoFile) -> None:
    with pytest.raises(ChildError, match=r"decoder ended unasked \(exit code 1\)"):
        hosts(Unfit()).probe(video)


def test_no_more_processes(hosts: HostFactory, video: VideoFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is the machine's fault, not the file's."""

    def refuse(*args: object, **options: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("sqt_fast.engine.process.subprocess.Popen", refuse)
    with pytest.raises(BlockingIOError):
        hosts().probe(video)


# -- ending -----------------------------------------------------------------------------------------------------------


def test_who_wants_no_more_frames_ends_the_process(hosts: HostFactory, video: VideoFile, facts: Probe) -> None:
    host = hosts()
    (segment,) = segments_of(facts)
    frames = host.frames(facts.source, segment, DecodeReport())
    next(frames)
    assert host._child is not None
    pid = host._child.process.pid
    frames.close()  # type: ignore[attr-defined]
    assert not is_alive(pid)
    assert host.probe(video).num_frames == 200


def test_stop_from_another_thread_is_for_good(hosts: HostFactory, video: VideoFile) -> None:
    host = hosts(Slow(60.0))
    errors: list[Exception] = []

    def ask() -> None:
        try:
            host.probe(video)
        except ChildError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert wait_until(lambda: host._child is not None)
    time.sleep(0.2)
    assert host._child is not None
    pid = host._child.process.pid
    host.stop()
    thread.join(5)
    assert not thread.is_alive()
    assert len(errors) == 1
    assert not is_alive(pid)
    with pytest.raises(ChildError, match="the decoder was stopped"):
        host.probe(video)
    assert host._child is None


def test_nothing_is_started_before_it_is_needed(hosts: HostFactory, video: VideoFile) -> None:
    host = hosts()
    assert host._child is None
    host.close()
    host.stop()
    with pytest.raises(ChildError):
        host.probe(video)
    assert host._child is None


# -- plans and memory -------------------------------------------------------------------------------------------------


def test_plans_are_those_of_the_caller(hosts: HostFactory, video: VideoFile, facts: Probe) -> None:
    process = hosts()
    process.probe(video)
    recipe = Recipe(FAST, stride_s=1.0)
    plan, wanted = process.plan(recipe, max_wanted=20), recipe.plan(facts)
    assert np.array_equal(plan.clips.frames, wanted.frames)
    assert np.array_equal(plan.clips.spans, wanted.spans)
    own = plan_segments(facts, wanted.wanted, max_wanted=20)
    assert [segment.numbers.tolist() for segment in plan.segments] == [segment.numbers.tolist() for segment in own]
    assert len(plan.segments) > 1


def slot_bytes(process: DecoderProcess) -> int:
    """What the slots take of the machine's memory."""
    assert process._child is not None
    folder = Path(f"/proc/{process._child.process.pid}/fd")
    slots = next(fd for fd in folder.iterdir() if "memfd:sqt-fast decoder" in str(fd.readlink()))
    return 512 * slots.stat().st_blocks


def test_large_pictures_give_their_memory_back(hosts: HostFactory, tmp_path: Path) -> None:
    """What a segment was allowed is not held for the life of the process."""
    size, path = (2432, 2400), tmp_path / "large.mp4"
    form = Format("mp4", "mpeg4", "yuv420p", size, Fraction(25))
    encoding.encode_video(path, form, draw(random_scene("right", 1), [0.0, 0.04, 0.08], size), [0, 1, 2, 3])
    (video,) = find_videos([str(path)])
    process = hosts()
    facts = process.probe(video)
    (segment,) = segments_of(facts)
    held = 0
    for _ in process.frames(facts.source, segment, DecodeReport()):
        held = max(held, slot_bytes(process))
    assert held >= 3 * size[0] * size[1]
    assert slot_bytes(process) == 0
