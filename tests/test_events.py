"""The events of a run and its engine."""

import pickle

import pytest

from sqt_fast.engine.events import (
    Alive,
    BatchSizeChanged,
    Begun,
    ClipsLabelled,
    Event,
    Loaded,
    Note,
    VideoFinished,
    ignore,
)

EVENTS = [
    Note("a line"),
    Loaded(("run", "jump")),
    Begun(2, done=1),
    ClipsLabelled(3),
    VideoFinished("a.mp4", 2.5, "a.mp4: damaged: half of it"),
    BatchSizeChanged(2),
    Alive(),
]


@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_events_pass_between_processes(event: Event) -> None:
    assert pickle.loads(pickle.dumps(event)) == event
    ignore(event)
