"""The supervisor with devices that die, hang and refuse: no video is lost, none comes twice, the culprit is named."""

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sqt_fast.config import IndexConfig
from sqt_fast.engine.memory import Resources
from sqt_fast.engine.process import ChildProcess
from sqt_fast.engine.results import EarlierRun, RunCounters
from sqt_fast.engine.supervisor import AHEAD, ATTEMPTS, HANG_FACTOR, Supervisor
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
    assert wait_until(lambda: not descendants(os.getpid()), 2)


def videos(*names: str) -> list[VideoFile]:
    return [VideoFile(name, 1, 1) for name in names]


MANY = videos(*(f"v{i:02}" for i in range(20)))


class Lab:
    """A supervisor of a script."""

    def __init__(self, folder: Path, hang_s: float = 60.0, **script: Any) -> None:
        self.script = Script(folder / "log", **script)
        self.watcher = Remembering()
        config = IndexConfig(inputs=("x",), output=folder / "t.csv")
        resources = Resources(DECODERS, 1 << 30, hang_s=hang_s)
        self.supervisor = Supervisor(config, resources, self.watcher, tools=self.script)  # type: ignore[arg-type]

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
    assert lab.supervisor.tally == RunCounters(clips=40, video_s=20.0, network_s=10.0, wait_s=0.25)


def test_the_tally_is_one_object(tmp_path: Path) -> None:
    """The summary holds it from the start."""
    lab = Lab(tmp_path)
    tally = lab.supervisor.tally
    lab.run(MANY[:1])
    assert lab.supervisor.tally is tally
    assert tally.clips == 2


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
    assert len(lab.log("start")) == 1 + 1 + ATTEMPTS
    assert lab.watcher.notes.count("worker was killed by SIGSEGV; starting another") == 1 + ATTEMPTS


def test_every_suspect_is_tried_alone(tmp_path: Path) -> None:
    """The last one too: nothing new is given out before it is cleared."""
    lab = Lab(tmp_path, deadly=frozenset({"v03", "v07"}))
    lab.run(MANY)
    assert lab.log("given")[0].startswith("given v00 v01 v02 v03 v04 v05 v06 v07")
    after = lab.log("given")[lab.log("given").index("given v03") :]
    suspects = [line.split()[1:] for line in after[: after.index("given v07") + ATTEMPTS]]
    assert all(len(given) == 1 for given in suspects)
    assert [given for given in suspects if given == ["v07"]] == [["v07"]] * ATTEMPTS


def test_what_kills_once_leaves_no_trace(tmp_path: Path) -> None:
    lab = Lab(tmp_path, deadly=frozenset({"v03", "v19"}), times=1)
    assert lab.run(MANY) == dict.fromkeys((v.path for v in MANY), ("ok", None))
    assert lab.log("died") == ["died of v03"] * 2 + ["died of v19"] * 2  # the second time it only said so
    assert lab.supervisor.tally.clips == 40  # what was lost with a process is not counted twice


def test_what_kills_twice_alone_is_tried_once_more(tmp_path: Path) -> None:
    lab = Lab(tmp_path, deadly=frozenset({"v00"}), times=ATTEMPTS - 1)
    assert lab.run(MANY[:1]) == {"v00": ("ok", None)}


def test_nothing_but_killers(tmp_path: Path) -> None:
    """No process is started only to be told that there is no more."""
    lab = Lab(tmp_path, deadly=frozenset({"a", "b"}))
    assert {status for status, _ in lab.run(videos("a", "b")).values()} == {"crashed"}
    assert len(lab.log("start")) == 1 + 2 * ATTEMPTS


def test_silence_ends_the_process(tmp_path: Path) -> None:
    lab = Lab(tmp_path, hang_s=0.1, silent=frozenset({"v01"}))
    found = lab.run(MANY[:4])
    said = f"worker hung: it did nothing for {HANG_FACTOR * 0.1:.0f} s, {ATTEMPTS} times"
    assert found.pop("v01") == ("crashed", said)
    assert set(found.values()) == {("ok", None)}


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
    assert len(lab.log("start")) == 1 + ATTEMPTS


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
