"""One device, in this process and in one of its own: what is chosen, what is said, and how it ends."""

import os
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sqt_fast.config import IndexConfig
from sqt_fast.engine.events import ClipsLabelled, Note
from sqt_fast.engine.gpu_route import GpuRoute
from sqt_fast.engine.memory import Resources
from sqt_fast.engine.process import ChildProcess
from sqt_fast.engine.results import EarlierRun, RunCounters
from sqt_fast.engine.worker import Worker
from sqt_fast.errors import ConfigError
from sqt_fast.network.choose import Choice
from sqt_fast.pipelines import routing
from sqt_fast.video.archive import find_videos
from sqt_fast.video.cpu_decoder import FFMPEG
from tests.conftest import TINY_LABELS
from tests.poison import descendants, is_alive, wait_until
from tests.watching import notes_into

RESOURCES = Resources(1, 1 << 30)


@pytest.fixture
def config(archive: Path, tmp_path: Path, tiny_weights: tuple[str, str]) -> IndexConfig:
    return IndexConfig(
        inputs=(str(archive / "avi"),),
        output=tmp_path / "t.csv",
        weights=tiny_weights[0],
        labels=tiny_weights[1],
        backend="eager",
        precision="fp32",
        device="cpu",
        batch_size=3,
    )


class Notes(list[str]):
    """What was said."""


def opened(config: IndexConfig, earlier: EarlierRun | None = None) -> tuple[Worker, dict[str, Any], Notes]:
    notes = Notes()
    device = Worker(config, RESOURCES, report=notes_into(notes))
    device.load()
    return device, device.open(earlier or EarlierRun(), 10), notes


def test_what_there_is_to_know_of_the_weights(config: IndexConfig) -> None:
    loaded = Worker(config, RESOURCES).load()
    assert loaded.labels == TINY_LABELS
    assert (loaded.feature_channels, loaded.meaningless, len(loaded.sha256)) == (128, False, 64)


def test_labels_in_this_process(config: IndexConfig) -> None:
    device, choice, notes = opened(config)
    assert Choice(**choice) == Choice("eager", "fp32", "cpu", 3, "as asked")
    assert notes == ["eager fp32 on cpu: as asked"]
    with closing(device):
        (result,) = device.label(find_videos(config.inputs))
    assert {row.status for row in result.rows} == {"ok"}
    assert device.take_counters().clips == len(result.rows)


def test_an_unfinished_run_keeps_all_of_its_choice(config: IndexConfig) -> None:
    before = {"backend": "eager", "precision": "bf16", "device": "cpu", "batch_size": 2, "reason": "the moon"}
    auto = replace(config, backend=None, precision=None, batch_size=None)
    assert opened(auto, EarlierRun(before, whole=True))[1] == before
    assert opened(replace(auto, batch_size=5), EarlierRun(before, whole=True))[1] == before | {"batch_size": 5}


def test_a_table_keeps_its_precision(config: IndexConfig) -> None:
    before = {"backend": "compile", "precision": "bf16", "device": "cpu", "batch_size": 2, "reason": "the moon"}
    choice = opened(replace(config, precision=None), EarlierRun(before))[1]
    assert (choice["backend"], choice["precision"], choice["batch_size"]) == ("eager", "bf16", 3)


def test_another_device_chooses_anew(config: IndexConfig) -> None:
    before = {"backend": "eager", "precision": "bf16", "device": "cuda:0", "batch_size": 64, "reason": "the moon"}
    assert opened(config, EarlierRun(before, whole=True))[1]["precision"] == "fp32"


# The GPU's decoders --------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A machine whose GPU can decode, and with what arguments it was asked to. Decoding stays DALI's on the CPU."""
    asked: list[tuple[Any, ...]] = []
    real = GpuRoute.open

    def open_(number: int, short_side: int, note: Any) -> GpuRoute | None:
        asked.append((number, short_side))
        return real(None, short_side, note)

    monkeypatch.setattr(routing, "why_no_gpu_decoder", lambda: None)
    monkeypatch.setattr(GpuRoute, "open", open_)
    return asked


def test_asked_for_it_is_used_and_closed(config: IndexConfig, gpu: list[tuple[Any, ...]], archive: Path) -> None:
    device, _, notes = opened(replace(config, decoder="nvdec"))
    assert gpu == [(0, 256)]
    assert sum("is decoded on the CPU" in note for note in notes) == 4
    assert device._gpu is not None
    device.close()
    assert device._gpu.decoder._closed is not None


@pytest.mark.parametrize("decoder", [None, "cpu"])
def test_without_a_gpu_it_is_not_thought_of(config: IndexConfig, gpu: list[tuple[Any, ...]], decoder: Any) -> None:
    _, _, notes = opened(replace(config, decoder=decoder))
    assert gpu == []
    assert notes == ["eager fp32 on cpu: as asked"]


# In a process of its own ---------------------------------------------------------------------------------------------


@pytest.fixture
def child(config: IndexConfig) -> Iterator[ChildProcess]:
    child = ChildProcess("sqt_fast.engine.worker:serve", config, RESOURCES, FFMPEG, 30, title="worker")
    yield child
    child.kill()
    assert wait_until(lambda: not descendants(os.getpid()))


def ask(child: ChildProcess, *request: Any) -> list[tuple[str, Any]]:
    """Return all that is said up to the answer."""
    child.send(request)
    return until(child, "answer")


def until(child: ChildProcess, kind: str) -> list[tuple[str, Any]]:
    news: list[tuple[str, Any]] = []
    while not news or news[-1][0] != kind:
        news.append(child.receive(60))
    return news


def test_a_conversation(child: ChildProcess, config: IndexConfig) -> None:
    ((_, loaded),) = ask(child, "load")
    assert loaded.labels == TINY_LABELS
    assert ("event", Note("eager fp32 on cpu: as asked")) in ask(child, "open", EarlierRun(), 5)
    child.send(("label",))
    videos = find_videos(config.inputs)
    total = RunCounters()
    for _ in range(2):  # it waits for more
        child.send(videos)
        news = until(child, "result")
        result, tally = news[-1][1]
        total.add(tally)
        assert result.video == videos[0]
        assert sum(value.count for _, value in news if isinstance(value, ClipsLabelled)) == len(result.rows)
        time.sleep(0.3)
    child.send(None)
    total.add(until(child, "answer")[-1][1])
    assert total.clips == 2 * len(result.rows)
    assert total.frames_wanted == 2 * 16
    assert total.wait_s > 0.3


def test_expected_errors_pass_as_they_are(config: IndexConfig) -> None:
    gone = ChildProcess(
        "sqt_fast.engine.worker:serve", replace(config, weights="gone.pth"), RESOURCES, FFMPEG, 30, title="x"
    )
    gone.send(("load",))
    kind, error = gone.receive(60)
    assert kind == "error"
    assert isinstance(error, ConfigError)
    assert "no such file" in str(error)
    gone.kill()


def test_a_device_and_its_decoders_end_with_the_supervisor(child: ChildProcess, config: IndexConfig) -> None:
    """Whatever they do, and though nothing is left to be sent."""
    ask(child, "load")
    ask(child, "open", EarlierRun(), 5)
    child.send(("label",))
    child.send(find_videos(config.inputs))
    until(child, "result")
    below = [child.process.pid, *descendants(child.process.pid)]
    assert len(below) == 2
    child.connection.close()  # as when the supervisor is killed
    assert wait_until(lambda: not any(map(is_alive, below)), 5)
