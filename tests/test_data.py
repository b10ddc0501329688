"""The loaders of a run: whose share they make, with what, and that they are closed."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("pytorch_lightning", reason="Lightning trains: pip install 'sqt-fast[train]'")

from sqt_fast.pipelines import routing
from sqt_fast.train import data as module
from sqt_fast.train.clip_source import NVDEC_CODECS, ClipSource
from sqt_fast.train.data import MAX_WORKERS, ClipData, Lists
from sqt_fast.train.lists import LabelledVideos
from sqt_fast.train.loader import Batch, ClipLoader
from tests.training import TINY, videos_in

Opened = list[dict[str, Any]]


@pytest.fixture
def videos(training_list: Path) -> LabelledVideos:
    return videos_in(training_list)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """What pipelines were asked for, on a machine of 8 cores."""
    seen: Opened = []

    def open_clips(**options: Any) -> Any:
        seen.append(options)
        return lambda source: pytest.fail("nothing is opened before the first batch")

    monkeypatch.setattr(module, "open_clips", open_clips)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    return seen


def data_of(
    videos: LabelledVideos, *, rank: int = 0, world_size: int = 1, val: bool = True, **options: Any
) -> ClipData:
    lists = Lists(videos, replace(videos, paths=videos.paths[:5], labels=videos.labels[:5]) if val else None)
    data = ClipData(lists, TINY, **{"seed": 4, "workers": None, "on_gpu": False, **options})
    device = torch.device("cuda", rank) if options.get("on_gpu") else torch.device("cpu")
    strategy = SimpleNamespace(root_device=device)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, strategy=strategy)  # type: ignore[assignment]
    return data


def test_loaders_are_of_this_rank(videos: LabelledVideos, opened: Opened) -> None:
    data = data_of(videos, rank=1, world_size=3)
    train, val = data.train_dataloader(), data.val_dataloader()
    wanted = ClipSource(videos, TINY, 4, seed=4, rank=1, world_size=3)
    assert train.source == wanted
    assert data.lists.val is not None
    assert val.source == replace(wanted, videos=data.lists.val, training=False)
    assert (len(train), len(val)) == (2, 1)
    assert data.loaders == [train, val]
    assert data_of(videos, val=False).val_dataloader() == []


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, {"device_id": None, "num_workers": 4, "num_threads": 2}),
        ({"workers": 0}, {"device_id": None, "num_workers": 0, "num_threads": 2}),
        ({"world_size": 4}, {"device_id": None, "num_workers": 1, "num_threads": 1}),
        ({"world_size": 100}, {"device_id": None, "num_workers": 1, "num_threads": 1}),
        ({"on_gpu": True, "rank": 1, "world_size": 2}, {"device_id": 1, "num_workers": 4, "num_threads": 1}),
        ({"on_gpu": True, "workers": 30}, {"device_id": 0, "num_workers": 30, "num_threads": 2}),
    ],
    ids=str,
)
def test_cores_are_shared(
    options: dict[str, Any], wanted: dict[str, Any], videos: LabelledVideos, opened: Opened
) -> None:
    data_of(videos, **options).train_dataloader()
    assert opened == [wanted]


def test_a_large_machine_gets_so_many_processes(
    videos: LabelledVideos, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 200)
    data_of(videos, on_gpu=True).train_dataloader()
    assert opened[0]["num_workers"] == MAX_WORKERS


@pytest.mark.parametrize("reason", [None, "libnvcuvid.so.1 is missing"])
def test_a_gpu_decodes_if_it_can(
    reason: str | None,
    videos: LabelledVideos,
    opened: Opened,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "why_no_gpu_decoder", lambda: reason)
    codecs = data_of(videos, on_gpu=True).train_dataloader().source.codecs
    assert codecs == (NVDEC_CODECS if reason is None else frozenset())
    said = [] if reason is None else ["videos are decoded by the host: libnvcuvid.so.1 is missing"]
    assert [record.getMessage() for record in caplog.records] == said
    assert data_of(videos).train_dataloader().source.codecs == frozenset()


def test_codecs_are_those_that_routing_knows() -> None:
    assert set(routing._PROFILES) >= NVDEC_CODECS


def test_an_epoch_of_training_is_gone_to(videos: LabelledVideos, opened: Opened) -> None:
    data = data_of(videos)
    train, val = data.train_dataloader(), data.val_dataloader()
    data.start_epoch(3)
    assert train.state_dict()["batch"] == 3 * len(train) == 12
    assert val.state_dict()["batch"] == 0


def test_failures_of_both_loaders(videos: LabelledVideos, opened: Opened) -> None:
    data = data_of(videos)
    data.train_dataloader().failures["a"] = "x"
    data.val_dataloader().failures["b"] = "y"
    assert data.failures == {"a": "x", "b": "y"}


def test_closing_closes_all(videos: LabelledVideos, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[ClipLoader] = []
    monkeypatch.setattr(ClipLoader, "close", lambda self: closed.append(self))
    data = data_of(videos)
    data.train_dataloader()
    data.val_dataloader()
    data.close()
    assert closed == data.loaders


def test_batches_move_but_for_the_items(videos: LabelledVideos) -> None:
    batch = Batch(torch.ones(2, 48, 4, 4), torch.zeros(2, dtype=torch.int64), torch.arange(2))
    moved = data_of(videos).transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert isinstance(moved, Batch)
    assert [tensor.device.type for tensor in moved] == ["meta", "meta", "cpu"]
