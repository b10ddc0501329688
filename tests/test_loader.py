"""Batches: the same ones for any number of processes and ranks, from any place on, and what is done when one fails."""

import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sqt_fast.errors import SqtError
from sqt_fast.train.clip_source import ClipSource
from sqt_fast.train.erase import erase
from sqt_fast.train.loader import MAX_REFUSED, Batch, ClipLoader, Clips, Results, open_clips
from tests.training import COUNT, TINY, broken, videos_in

BATCHES = 4  # of 4 clips, in an epoch of 13


def real(num_workers: int) -> object:
    pytest.importorskip("nvidia.dali", reason="DALI makes the clips: pip install 'sqt-fast[train]'")
    return open_clips(device_id=None, num_workers=num_workers, num_threads=1)


@pytest.fixture
def source(training_list: Path) -> ClipSource:
    return ClipSource(videos_in(training_list), TINY, 4, seed=5)


def epochs(source: ClipSource, count: int, num_workers: int = 0, **state: object) -> list[list[Batch]]:
    with closing(ClipLoader(source, real(num_workers))) as loader:  # type: ignore[arg-type]
        if state:
            loader.load_state_dict(state)
        return [list(loader) for _ in range(count)]


def equal(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(x.equal(y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))


# With the graph ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def truth(training_list: Path) -> list[list[Batch]]:
    """Three epochs, made in this process."""
    return epochs(ClipSource(videos_in(training_list), TINY, 4, seed=5), 3)


def test_an_epoch_is_the_whole_list(truth: list[list[Batch]]) -> None:
    for batches in truth:
        assert [len(batch.labels) for batch in batches] == [4] * BATCHES
        items = torch.cat([batch.items for batch in batches]).tolist()
        assert sorted(items[:COUNT]) == list(range(COUNT))
        assert items[COUNT:] == items[: BATCHES * 4 - COUNT]  # filled up


def test_epochs_differ(truth: list[list[Batch]]) -> None:
    assert truth[0][0].items.tolist() != truth[1][0].items.tolist()
    clips: dict[int, set[bytes]] = {}
    for batches in truth:
        for batch in batches:
            for item, clip in zip(batch.items.tolist(), batch.clips, strict=True):
                clips.setdefault(item, set()).add(clip.numpy().tobytes())
    assert {len(different) for different in clips.values()} == {3}


@pytest.mark.parametrize("num_workers", [1, 2, pytest.param(4, marks=pytest.mark.exhaustive)])
def test_any_number_of_processes(num_workers: int, source: ClipSource, truth: list[list[Batch]]) -> None:
    count = 2 if num_workers == 2 else 1
    for ours, wanted in zip(epochs(source, count, num_workers), truth, strict=False):
        assert equal(ours, wanted)


def test_ranks_together_see_what_one_sees(source: ClipSource, truth: list[list[Batch]]) -> None:
    ranks = [epochs(replace(source, batch_size=2, rank=rank, world_size=2), 2) for rank in (0, 1)]
    for epoch in (0, 1):
        both = [
            Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
            for batches in zip(ranks[0][epoch], ranks[1][epoch], strict=True)
        ]
        assert equal(both, truth[epoch])


@pytest.mark.parametrize("batches_done", [0, 1, 3, 4, 6])
def test_to_resume_is_to_go_on(batches_done: int, source: ClipSource, truth: list[list[Batch]]) -> None:
    with closing(ClipLoader(source, real(0))) as loader:  # type: ignore[arg-type]
        batches = (batch for _ in range(3) for batch in loader)
        for _ in range(batches_done):
            next(batches)
        state = loader.state_dict()
    rest = epochs(source, 2, **state)
    wanted = [batch for batches in truth for batch in batches][batches_done:]
    ours = [batch for batches in rest for batch in batches]
    assert equal(ours, wanted[: len(ours)])
    assert len(rest[0]) == BATCHES - batches_done % BATCHES  # what is left of the epoch


def test_an_epoch_can_be_gone_to(source: ClipSource, truth: list[list[Batch]]) -> None:
    """Also when its iterator has been made already, as Lightning makes it."""
    with closing(ClipLoader(source, real(0))) as loader:  # type: ignore[arg-type]
        batches = iter(loader)
        loader.start_epoch(2)
        assert equal(list(batches), truth[2])
        loader.start_epoch(0)
        assert equal(list(loader), truth[0])


@pytest.mark.parametrize(("batch_size", "world_size"), [(4, 1), (2, 2), (3, 3), (8, 2), (5, 4)])
def test_validation_sees_each_video_once(batch_size: int, world_size: int, source: ClipSource) -> None:
    whole = replace(source, training=False, batch_size=batch_size, world_size=world_size)
    ranks = [epochs(replace(whole, rank=rank), 1)[0] for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    seen = [batch for batches in ranks for batch in batches]
    items = [item for batch in seen for item in batch.items.tolist()]
    assert sorted(items) == list(range(COUNT))
    labels = [label for batch in seen for label in batch.labels.tolist()]
    assert labels == [source.videos.labels[item] for item in items]
    assert all(batch.clips.shape == (len(batch.items), 48, 32, 32) for batch in seen)
    if (batch_size, world_size) == (5, 4):  # 13 of 20 places: the third rank has 3, the last none
        assert [len(batches[0].items) for batches in ranks] == [5, 5, 3, 0]


def test_validation_is_the_same_every_time(source: ClipSource) -> None:
    first, second = epochs(replace(source, training=False), 2)
    assert equal(first, second)


def test_broken_files(source: ClipSource, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Another video stands for them in training, none in validation; each is named once, in a resumed run too."""
    sick = replace(source, videos=broken(source.videos, (2, 3, 7), tmp_path))
    named = {f"{tmp_path}/broken-{k}.mp4": "not a video: a text file" for k in (2, 3, 7)}
    for training in (True, False):
        caplog.clear()
        with closing(ClipLoader(replace(sick, training=training), real(0))) as loader:  # type: ignore[arg-type]
            batches = [*loader, *loader]
            assert loader.failures == named
            assert loader.state_dict()["failures"] == named
            other = ClipLoader(sick, real(0))  # type: ignore[arg-type]
            other.load_state_dict(loader.state_dict())
            assert other.failures == named
        items = torch.cat([batch.items for batch in batches]).tolist()
        assert not {2, 3, 7} & set(items)
        assert len(items) == (2 * BATCHES * 4 if training else 2 * (COUNT - 3))
        if not training:
            assert items[: COUNT - 3] == [k for k in range(COUNT) if k not in (2, 3, 7)]
        labels = torch.cat([batch.labels for batch in batches]).tolist()
        assert labels == [source.videos.labels[item] for item in items]
        said = [record.getMessage() for record in caplog.records]
        instead = "another video stands for it" if training else "it is left out"
        assert sorted(said) == sorted(f"{path}: {reason}; {instead}" for path, reason in named.items())


# With a stand-in -----------------------------------------------------------------------------------------------------


class StandIn:
    """A pipeline of zeros that fails as DALI does."""

    opened: list[ClipSource]

    def __init__(self, source: ClipSource, failing: Iterator[bool]) -> None:
        self.source, self.failing, self.number = source, failing, 0

    def run(self) -> Results:
        if next(self.failing):
            raise RuntimeError('Critical error in pipeline:\nencountered:\n\nAssert on "x" failed: cannot decode\nmore')
        size = self.source.batch_size
        places = [self.source.place(self.number + k)[1] for k in range(size)]
        self.number += size
        items = torch.tensor(places)
        clips, erased = torch.ones(size, 48, 32, 32), torch.zeros(size, 4)
        erased[0] = torch.tensor([0.0, 0.0, 0.5, 0.5])
        return clips, erased, items + 100, items * 0, items, [b""] * size

    def close(self) -> None:
        self.number = -1


def stand_ins(source: ClipSource, failing: list[bool]) -> tuple[ClipLoader, list[ClipSource]]:
    opened: list[ClipSource] = []
    verdicts = iter([*failing, *[False] * 1000])

    def open_pipeline(source: ClipSource) -> Clips:
        opened.append(source)
        return StandIn(source, verdicts)

    return ClipLoader(source, open_pipeline), opened


CODECS = frozenset({"h264"})


def test_one_pipeline_serves_all_epochs(source: ClipSource) -> None:
    loader, opened = stand_ins(source, [])
    places = [item for _ in range(3) for batch in loader for item in batch.items.tolist()]
    assert places == list(range(16)) * 3
    assert opened == [source]


def test_clips_are_erased(source: ClipSource) -> None:
    loader, _ = stand_ins(source, [])
    batch = next(iter(loader))
    wanted = torch.ones(4, 48, 32, 32)
    erase(wanted, torch.tensor([[0.0, 0.0, 0.5, 0.5], *[[0.0] * 4] * 3]), torch.arange(100, 104))
    assert torch.equal(batch.clips, wanted)


def test_a_batch_that_fails_is_made_again_by_the_host(source: ClipSource, caplog: pytest.LogCaptureFixture) -> None:
    source = replace(source, codecs=CODECS)
    loader, opened = stand_ins(source, [False, True, False, False])
    places = [item for batch in loader for item in batch.items.tolist()]
    assert places == list(range(16))
    assert opened == [
        source,
        replace(source, codecs=frozenset(), first_batch=1),
        replace(source, first_batch=2),  # with the GPU's decoder again
    ]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "a batch is made again, decoded by the host: cannot decode"


def test_a_decoder_that_always_fails_is_given_up(source: ClipSource, caplog: pytest.LogCaptureFixture) -> None:
    loader, opened = stand_ins(replace(source, codecs=CODECS), [True, False] * MAX_REFUSED)
    places = [item for _ in range(MAX_REFUSED // BATCHES + 2) for batch in loader for item in batch.items.tolist()]
    assert places == list(range(16)) * (MAX_REFUSED // BATCHES + 2)
    assert len(opened) == 2 * MAX_REFUSED
    assert opened[-1] == replace(source, codecs=frozenset(), first_batch=MAX_REFUSED - 1)
    assert "decoded by the host from now on: " in caplog.records[-1].getMessage()


def test_a_process_that_was_killed_is_replaced(source: ClipSource) -> None:
    loader, opened = stand_ins(source, [False, True])
    assert [item for batch in loader for item in batch.items.tolist()] == list(range(16))
    assert opened == [source, replace(source, first_batch=1)]


@pytest.mark.parametrize("codecs", [frozenset(), CODECS], ids=["host", "gpu"])
def test_what_fails_twice_ends_the_run_in_one_line(codecs: frozenset[str], source: ClipSource) -> None:
    loader, _ = stand_ins(replace(source, codecs=codecs), [False, True, True])
    batches = iter(loader)
    next(batches)
    with pytest.raises(SqtError) as caught:
        next(batches)
    assert str(caught.value) == (
        "clips cannot be made: cannot decode; the same command goes on from the last checkpoint"
    )


def test_a_closed_loader_can_go_on(source: ClipSource) -> None:
    loader, opened = stand_ins(source, [])
    batches = iter(loader)
    next(batches)
    loader.close()
    loader.close()
    assert next(batches).items.tolist() == [4, 5, 6, 7]
    assert opened == [source, replace(source, first_batch=1)]
