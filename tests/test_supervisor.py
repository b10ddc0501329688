"""The supervisor with devices that die, hang and refuse: no video is lost, none comes twice, the culprit is named."""

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sqt_fast.config import IndexConfig
from sqt_fast.engine import supervisor as supervisor_module
from sqt_fast.engine.events import BatchSizeChanged, ignore
from sqt_fast.engine.memory import Resources, plan_resources
from sqt_fast.engine.process import ChildProcess
from sqt_fast.engine.results import EarlierRun, RunCounters, VideoResult
from sqt_fast.engine.supervisor import AHEAD, HANG_FACTOR, START_AGAIN_AFTER_S, Labeller, Supervisor, supervised
from sqt_fast.engine.suspects import ATTEMPTS
from sqt_fast.engine.worker import Worker
from sqt_fast.errors import BackendError, CheckpointError
from sqt_fast.video.archive import VideoFile
from tests.poison import CHOICE, LOADED, Script, descendants, wait_until
from tests.watching import Remembering

DECODERS = 2


@pytest.fixture(autouse=True)
def _fake_devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Devices are scripts; none may be left."""

    def start(target: str, *args: Any, **options: Any) -> ChildProcess:
        assert target == "sqt_fast.engine.worker:serve"
        return ChildProcess("tests.poison:serve_script", *args, **options)

    monkeypatch.setattr("sqt_fast.engine.supervisor.ChildProcess", start)
    yield
    assert wait_until(lambda: not descendants(os.getpid()))


def videos(*names: str) -> list[VideoFile]:
    return [VideoFile(name, 1, 1) for name in names]


MANY = videos(*(f"v{i:02}" for i in range(20)))


class Lab:
    """A supervisor of a script."""

    def __init__(self, folder: Path, hang_s: float = 60.0, **script: Any) -> None:
        self.script = Script(folder / "log", **script)
        self.watcher = Remembering()
        self.pauses: list[float] = []
        config = IndexConfig(inputs=("x",), output=folder / "t.csv")
        resources = Resources(DECODERS, 1 << 30, hang_s=hang_s)
        self.supervisor = Supervisor(config, resources, self.watcher, self.script, self.pauses.append)  # type: ignore[arg-type]

    def run(self, todo: list[VideoFile]) -> dict[str, tuple[str, str | None]]:
        """Return status and message of every video, each once."""
        with closing(self.supervisor):
            assert self.supervisor.load() == LOADED
            assert self.supervisor.open(EarlierRun(), 7) == CHOICE
            results = list(self.supervisor.label(todo))
        names = [result.video.path for result in results]
        assert sorted(names) == sorted(video.path for video in todo), "a video was lost or came twice"
        return {r.video.path: (r.rows[0].status, r.rows[0].error_message) for r in results}

    def log(self, start: str = "") -> list[str]:
        return [line for line in self.script.log.read_text().splitlines() if line.startswith(start)]


def test_all_is_well(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    assert lab.run(MANY) == dict.fromkeys((v.path for v in MANY), ("ok", None))
    assert lab.log("start") == ["start"]
    assert lab.log()[-1] == "finished"
    assert lab.watcher.notes == ["load with 0", "open with 2"]
    assert lab.watcher.num_clips == 40
    assert lab.supervisor.take_counters() == RunCounters(clips=40, video_s=20.0, network_s=10.0, wait_s=0.25)
    assert lab.supervisor.take_counters() == RunCounters()


def test_no_videos(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    assert lab.run([]) == {}
    assert lab.log() == ["start", "load", "open"]


def test_little_is_in_the_hands_of_the_process(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run(MANY)
    sizes = [len(line.split()) - 1 for line in lab.log("given")]
    assert sizes[0] == DECODERS + AHEAD + 2 * CHOICE["batch_size"]  # type: ignore[operator]
    assert sum(sizes) == 20


def test_a_video_that_always_kills_is_named_and_the_others_are_labelled(tmp_path: Path) -> None:
    lab = Lab(tmp_path, deadly=frozenset({"v03"}))
    found = lab.run(MANY)
    assert found.pop("v03") == ("crashed", f"worker was killed by SIGSEGV, {ATTEMPTS} times")
    assert set(found.values()) == {("ok", None)}
    deaths = lab.watcher.notes.count("worker was killed by SIGSEGV; starting another")
    assert len(lab.log("start")) == 1 + deaths
    assert deaths <= (DECODERS + AHEAD + 2).bit_length() + ATTEMPTS


def test_suspects_are_halved(tmp_path: Path) -> None:
    """Until the culprit is alone; nothing new is given out before all of them are cleared."""
    lab = Lab(tmp_path, deadly=frozenset({"v03"}))
    lab.run(MANY)
    given = [line.split()[1:] for line in lab.log("given")]
    sizes = [len(group) for group in given[: given.index(["v03"]) + ATTEMPTS]]
    assert sizes[0] == DECODERS + AHEAD + 2
    alone = sizes.index(1)
    assert sizes[:alone] == sorted(sizes[:alone], reverse=True)
    assert given.count(["v03"]) == ATTEMPTS
    assert "v08" not in {name for group in given[: given.index(["v03"]) + ATTEMPTS] for name in group}


def test_two_culprits_in_one_hand(tmp_path: Path) -> None:
    lab = Lab(tmp_path, deadly=frozenset({"v03", "v07"}))
    found = lab.run(MANY)
    assert {name for name, (status, _) in found.items() if status == "crashed"} == {"v03", "v07"}


def test_what_kills_once_leaves_no_trace(tmp_path: Path) -> None:
    lab = Lab(tmp_path, deadly=frozenset({"v03", "v19"}), times=1)
    assert lab.run(MANY) == dict.fromkeys((v.path for v in MANY), ("ok", None))
    assert lab.log("died") == ["died of v03"] * 2 + ["died of v19"] * 2  # the second time it only said so
    assert lab.supervisor.take_counters().clips == 40  # what was lost with a process is not counted twice


def test_what_kills_twice_alone_is_tried_once_more(tmp_path: Path) -> None:
    lab = Lab(tmp_path, deadly=frozenset({"v00"}), times=ATTEMPTS - 1)
    assert lab.run(MANY[:1]) == {"v00": ("ok", None)}


def test_nothing_but_killers(tmp_path: Path) -> None:
    """No process is started only to be told that there is no more."""
    lab = Lab(tmp_path, deadly=frozenset({"a", "b"}))
    assert {status for status, _ in lab.run(videos("a", "b")).values()} == {"crashed"}
    assert len(lab.log("start")) == 1 + 1 + 2 * ATTEMPTS - 1


def test_silence_ends_the_process(tmp_path: Path) -> None:
    lab = Lab(tmp_path, hang_s=0.1, silent=frozenset({"v01"}))
    found = lab.run(MANY[:4])
    said = f"worker hung: it did nothing for {HANG_FACTOR * 0.1:.0f} s, {ATTEMPTS} times"
    assert found.pop("v01") == ("crashed", said)
    assert set(found.values()) == {("ok", None)}


LOST = "the device was lost (CUDA error: an illegal memory access was encountered)"


def test_a_device_lost_once_leaves_no_trace(tmp_path: Path) -> None:
    lab = Lab(tmp_path, lost=frozenset({"v03", "v11"}), times=1)
    assert lab.run(MANY) == dict.fromkeys((v.path for v in MANY), ("ok", None))
    assert sum(note.startswith("the device was lost") for note in lab.watcher.notes) == 2


def test_a_video_over_which_the_device_is_always_lost_is_named(tmp_path: Path) -> None:
    lab = Lab(tmp_path, lost=frozenset({"v03"}))
    found = lab.run(MANY)
    status, message = found.pop("v03")
    assert status == "crashed"
    assert message in (f"{LOST}, {ATTEMPTS} times", f"the device was lost, {ATTEMPTS} times")  # if that could be heard
    assert set(found.values()) == {("ok", None)}


@pytest.mark.parametrize("first", [0, 1, 9, 19])
def test_a_device_lost_for_good_ends_the_run_and_blames_no_video(tmp_path: Path, first: int) -> None:
    """What was labelled before stays; no video has a row for what it did not do."""
    lab = Lab(tmp_path, lost=frozenset(v.path for v in MANY[first:]))
    results: list[VideoResult] = []
    with closing(lab.supervisor) as supervisor:
        supervisor.load()
        supervisor.open(EarlierRun(), 7)
        if first == 19:  # only the last: the one before, labelled again, shows that the device works
            results.extend(supervisor.label(MANY))
        else:
            with pytest.raises(BackendError, match=r"^the device was lost.* again and again, with nothing labelled"):
                for result in supervisor.label(MANY):
                    results.append(result)  # noqa: PERF402 - what came before the error is wanted
    assert {r.video.path for r in results if r.rows[0].status == "ok"} == {v.path for v in MANY[:first]}
    assert [r.video.path for r in results if r.rows[0].status != "ok"] == (["v19"] if first == 19 else [])


def test_a_device_lost_over_the_only_video_is_not_its_fault(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="nothing else could be labelled; check the GPU, or use --device cpu"):
        Lab(tmp_path, lost=frozenset({"v00"})).run(MANY[:1])


def test_a_device_that_dies_before_the_last_video_is_not_its_fault(tmp_path: Path) -> None:
    """What came through before does not come through again: it is the device."""
    lab = Lab(tmp_path, lost=frozenset({"v01"}))
    with closing(lab.supervisor) as supervisor:
        supervisor.load()
        supervisor.open(EarlierRun(), 7)
        results = supervisor.label(MANY[:2])
        assert next(results).video.path == "v00"
        object.__setattr__(lab.script, "lost", frozenset({"v00", "v01"}))
        with pytest.raises(BackendError, match=r"the device was lost.* 3 times, and the device was lost"):
            list(results)


@pytest.mark.parametrize("request_", ["load", "open"])
def test_a_worker_that_hangs_at_the_start_is_noticed(
    tmp_path: Path, request_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sqt_fast.engine.supervisor.START_SILENCE_S", 1.0)
    with pytest.raises(BackendError, match=r"^worker hung: it did nothing for 1 s while it made ready"):
        Lab(tmp_path, stuck=request_).run(MANY)


def test_no_room_for_a_process_now_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(tmp_path, deadly=frozenset({"v03"}), times=1)
    start, calls = vars(supervisor_module)["ChildProcess"], []

    def sometimes(*args: Any, **options: Any) -> ChildProcess:
        calls.append(args)
        if len(calls) in (2, 3):
            raise BlockingIOError(11, "Resource temporarily unavailable")
        child: ChildProcess = start(*args, **options)
        return child

    monkeypatch.setattr(supervisor_module, "ChildProcess", sometimes)
    assert lab.run(MANY) == dict.fromkeys((v.path for v in MANY), ("ok", None))
    assert tuple(lab.pauses) == START_AGAIN_AFTER_S[:2]


def test_a_smaller_batch_is_kept_for_the_next_worker(tmp_path: Path) -> None:
    supervisor = Lab(tmp_path).supervisor
    supervisor._choice = dict(CHOICE, batch_size=64)
    supervisor._child = SimpleNamespace(receive=lambda _: ("event", BatchSizeChanged(16)), kill=int)  # type: ignore[assignment]
    supervisor._receive(1.0)
    assert supervisor._choice["batch_size"] == 16


@pytest.mark.parametrize("request_", ["load", "open"])
def test_a_process_that_dies_at_the_start_is_one_line(tmp_path: Path, request_: str) -> None:
    lab = Lab(tmp_path, broken=request_)
    with pytest.raises(
        BackendError, match=r"^worker was killed by SIGKILL while it made ready; is there enough memory"
    ):
        lab.run(MANY)
    assert lab.log("start") == ["start"]


@pytest.mark.parametrize("request_", ["load", "open"])
def test_errors_of_the_process_are_raised_here(tmp_path: Path, request_: str) -> None:
    with pytest.raises(BackendError, match=r"^no such luck$"):
        Lab(tmp_path, refused=request_).run(MANY)


def test_errors_while_labelling_are_raised_here(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^not these$"):
        Lab(tmp_path).run([*MANY[:2], *videos("refused")])


def test_a_process_that_cannot_be_started_again_ends_the_run(tmp_path: Path) -> None:
    """But not before it has been tried again: what killed it may pass."""
    lab = Lab(tmp_path, deadly=frozenset({"v03"}))
    with closing(lab.supervisor) as supervisor:
        supervisor.load()
        supervisor.open(EarlierRun(), 7)
        object.__setattr__(lab.script, "broken", "open")
        with pytest.raises(BackendError, match="while it made ready"):
            list(supervisor.label(MANY))
    assert len(lab.log("start")) == 1 + 1 + len(START_AGAIN_AFTER_S)
    assert tuple(lab.pauses) == START_AGAIN_AFTER_S


def test_deaths_while_it_starts_again_are_not_the_videos_fault(tmp_path: Path) -> None:
    lab = Lab(tmp_path, deadly=frozenset({"v00"}), times=ATTEMPTS - 1)
    with closing(lab.supervisor) as supervisor:
        supervisor.load()
        supervisor.open(EarlierRun(), 7)
        object.__setattr__(lab.script, "broken", "load")
        (result,) = supervisor.label(MANY[:1])
    assert result.rows[0].status == "ok"
    assert len(lab.log("died")) == ATTEMPTS
    assert len(lab.log("load broke")) > ATTEMPTS


def test_it_is_opened_again_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    ask = Supervisor._ask

    def spy(self: Supervisor, *request: Any) -> Any:
        asked.append(request)
        return ask(self, *request)

    monkeypatch.setattr(Supervisor, "_ask", spy)
    Lab(tmp_path, deadly=frozenset({"v00"}), times=1).run(MANY[:1])
    again = ("open", EarlierRun(CHOICE, whole=True), 0)
    assert asked == [("load",), ("open", EarlierRun(), 7), ("load",), again]


def test_a_death_after_the_last_result_does_no_harm(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    with closing(lab.supervisor) as supervisor:
        supervisor.load()
        supervisor.open(EarlierRun(), 7)
        for result in supervisor.label(MANY[:1]):
            assert supervisor._child is not None
            os.kill(supervisor._child.process.pid, signal.SIGKILL)
            assert result.rows[0].status == "ok"


@pytest.mark.parametrize("how", ["close", "throw"])
def test_closing_ends_the_process(tmp_path: Path, how: str) -> None:
    lab = Lab(tmp_path, silent=frozenset({"v03"}))
    with closing(lab.supervisor) as supervisor:
        supervisor.load()
        supervisor.open(EarlierRun(), 7)
        results = supervisor.label(MANY)
        next(results)
        if how == "close":
            results.close()
        else:
            with pytest.raises(KeyboardInterrupt):
                results.throw(KeyboardInterrupt)
    assert not descendants(os.getpid())


def test_close_before_anything(tmp_path: Path) -> None:
    Lab(tmp_path).supervisor.close()


def test_a_run_is_supervised_within_its_memory() -> None:
    config = IndexConfig(inputs=("x",), output=Path("t.csv"), memory_bytes=3 << 30)
    labeller = supervised(config, ignore)
    assert isinstance(labeller, Supervisor)
    assert labeller.resources == plan_resources(3 << 30)
    labeller.close()


def test_a_worker_in_this_process_labels_as_well() -> None:
    config = IndexConfig(inputs=("x",), output=Path("t.csv"))
    labellers: list[Labeller] = [Worker(config, plan_resources(1 << 30)), supervised(config, ignore)]
    for labeller in labellers:
        labeller.close()
