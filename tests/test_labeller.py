"""What a run knows of the engine."""

from pathlib import Path

from sqt_fast.config import IndexConfig
from sqt_fast.engine.events import ignore
from sqt_fast.engine.labeller import Labeller, supervised
from sqt_fast.engine.memory import plan_resources
from sqt_fast.engine.supervisor import Supervisor
from sqt_fast.engine.worker import Worker


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
