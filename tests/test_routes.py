"""Decoders as records: which one a run takes, what is said where one cannot be had, and a new one is a line."""

from typing import Any

import pytest

from sqt_fast.engine.events import Event, ignore
from sqt_fast.engine.gpu_route import GpuRoute
from sqt_fast.engine.routes import DECODERS, DecoderRecord, open_route
from sqt_fast.errors import BackendError
from sqt_fast.pipelines import routing
from tests.watching import notes_into

asked: list[tuple[str, int]] = []


def open_mine(device: str, short_side: int, report: object) -> str:
    """Open the decoder that test_a_new_decoder_is_a_line adds."""
    asked.append((device, short_side))
    return "mine"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """A machine whose GPU can decode, and which GPU was asked to, for which short side."""
    numbers: list[tuple[int, int]] = []

    def open_(number: int, short_side: int, report: Any) -> str:
        numbers.append((number, short_side))
        return "route"

    monkeypatch.setattr(routing, "why_no_gpu_decoder", lambda: None)
    monkeypatch.setattr(GpuRoute, "open", open_)
    return numbers


def test_each_gpu_decodes_its_own(opened: list[tuple[int, int]]) -> None:
    routes: list[object] = [open_route(None, device, 256, ignore) for device in ("cuda:3", "cuda")]
    assert routes == ["route", "route"]
    assert opened == [(3, 256), (0, 256)]


@pytest.mark.parametrize(("decoder", "device"), [(None, "cpu"), ("cpu", "cpu"), ("cpu", "cuda")])
def test_ffmpeg_alone(opened: list[tuple[int, int]], decoder: str | None, device: str) -> None:
    events: list[Event] = []
    assert open_route(decoder, device, 256, events.append) is None
    assert (opened, events) == ([], [])


def test_asked_for_it_is_opened_beside_a_network_on_the_cpu(opened: list[tuple[int, int]]) -> None:
    assert open_route("nvdec", "cpu", 224, ignore) == "route"  # type: ignore[comparison-overlap]
    assert opened == [(0, 224)]


def test_a_must_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "why_no_gpu_decoder", lambda: "it is Sunday")
    with pytest.raises(BackendError, match=r"^--decoder nvdec: it is Sunday; use --decoder cpu$"):
        open_route("nvdec", "cpu", 256, ignore)
    monkeypatch.setattr(routing, "why_no_gpu_decoder", lambda: None)
    monkeypatch.setattr(GpuRoute, "open", lambda *args: None)
    with pytest.raises(BackendError, match=r"^--decoder nvdec: no codec passed its test; use --decoder cpu$"):
        open_route("nvdec", "cpu", 256, ignore)


def test_a_gpu_without_decoders_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    monkeypatch.setattr(routing, "why_no_gpu_decoder", lambda: "the driver's video library is missing")
    assert open_route(None, "cuda:1", 256, notes_into(notes)) is None
    assert notes == ["videos are decoded on the CPU: the driver's video library is missing"]


def test_a_new_decoder_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but its record knows its name."""
    monkeypatch.setitem(DECODERS, "mine", DecoderRecord(f"{__name__}:open_mine", devices=("npu",)))
    assert open_route("mine", "cpu", 256, ignore) == "mine"  # type: ignore[comparison-overlap]
    assert open_route(None, "npu:1", 224, ignore) == "mine"  # type: ignore[comparison-overlap]
    assert asked == [("cpu", 256), ("npu:1", 224)]
