"""The events of the engine."""

import pickle

import pytest

from sqt_fast.engine.events import Alive, Begun, ClipsLabelled, Event, Note, ignore


@pytest.mark.parametrize("event", [Note("a line"), Begun(2, 1), ClipsLabelled(3), Alive()], ids=str)
def test_events_pass_between_processes(event: Event) -> None:
    assert pickle.loads(pickle.dumps(event)) == event
    ignore(event)
