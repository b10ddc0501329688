"""Tuned tiles: which file they come from, and what becomes of files that cannot be read."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sqt_fast.files import tuned_file
from sqt_fast.kernels import tuned
from sqt_fast.kernels.launch import Config
from sqt_fast.kernels.tuned import forget, look_in, network_speeds, records, tuned_config
from sqt_fast.network.registry import BACKENDS

Write = Callable[..., None]


@pytest.fixture
def committed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Where committed tiles would lie; the user's file is elsewhere, and neither exists."""
    monkeypatch.setenv("SQT_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tuned, "COMMITTED", tmp_path / "tuned.json")
    (tmp_path / "cache").mkdir()
    look_in(tmp_path / "cache" / "kernels.json")
    forget()
    yield tmp_path / "tuned.json"
    forget()


def write(path: Path, tiles: dict[str, dict[str, list[int]]], **more: Any) -> None:
    """Write a file about sm_90, and have it read."""
    path.write_text(json.dumps({"sm_90": {"gpu": f"the GPU of {path.name}", "tiles": tiles, **more}}))
    forget()


def test_the_users_file_is_in_the_cache(committed: Path) -> None:
    assert tuned_file() == committed.parent / "cache" / "kernels.json"


def test_without_files_nothing_is_tuned(committed: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert tuned_config(90, "merge", 1000) is None
    assert network_speeds(90, "bf16") is None
    assert records(90) == []
    assert not caplog.records


def test_committed_tiles(committed: Path) -> None:
    write(committed, {"merge": {"10": [1, 2, 3, 4, 5]}})
    assert tuned_config(90, "merge", 1000) == (1, 2, 3, 4, 5)
    assert tuned_config(90, "conv", 1000) is None
    assert tuned_config(80, "merge", 1000) is None


def test_the_users_own_come_first(committed: Path) -> None:
    write(committed, {"merge": {"10": [1, 1, 1, 1, 1]}, "conv": {"10": [1, 1, 1, 1, 1]}})
    write(tuned_file(), {"merge": {"14": [2, 2, 2, 2, 2]}})
    assert tuned_config(90, "merge", 1000) == (2, 2, 2, 2, 2), "other rows of the user's before the same of others"
    assert tuned_config(90, "conv", 1000) == (1, 1, 1, 1, 1), "what the user's lacks is looked up behind it"
    assert [found["gpu"] for found in records(90)] == ["the GPU of kernels.json", "the GPU of tuned.json"]


def test_the_users_file_about_another_gpu(committed: Path) -> None:
    write(committed, {"merge": {"10": [1, 1, 1, 1, 1]}})
    tuned_file().write_text(json.dumps({"sm_80": {"tiles": {"merge": {"10": [2, 2, 2, 2, 2]}}}}))
    forget()
    assert tuned_config(90, "merge", 1000) == (1, 1, 1, 1, 1)
    assert tuned_config(80, "merge", 1000) == (2, 2, 2, 2, 2)


@pytest.mark.parametrize(
    ("rows", "nearest"),
    [(1, 10), (1024, 10), (2000, 10), (2**12 - 1, 10), (2**12 + 1, 14), (2**14, 14), (2**18, 19), (2**30, 19)],
)
def test_the_nearest_number_of_rows(committed: Path, rows: int, nearest: int) -> None:
    write(committed, {"merge": {"19": [19] * 5, "10": [10] * 5, "14": [14] * 5}})
    assert tuned_config(90, "merge", rows) == (nearest,) * 5


def test_no_rows_at_all(committed: Path) -> None:
    write(committed, {"merge": {"19": [19] * 5, "10": [10] * 5}})
    assert tuned_config(90, "merge", 0) == (10,) * 5


def test_speeds_of_whole_networks(committed: Path) -> None:
    write(committed, {}, network={"bf16": {"eager": 9000.0, "triton": 30000.0}, "fp32": {"eager": 1.0}})
    write(tuned_file(), {}, network={"bf16": {"triton": 31000.0}})
    assert network_speeds(90, "bf16") == ({"triton": 31000.0}, "the GPU of kernels.json")
    assert network_speeds(90, "fp32") == ({"eager": 1.0}, "the GPU of tuned.json")
    assert network_speeds(90, "fp16") is None
    assert network_speeds(80, "bf16") is None


BROKEN = {"cut off": '{"sm_90": {"til', "empty": "", "a number": "7", "a list": "[1, 2]", "no text": b"\xff\xfe{}"}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_counts_as_none(committed: Path, content: str | bytes, caplog: pytest.LogCaptureFixture) -> None:
    write(committed, {"merge": {"10": [1, 1, 1, 1, 1]}})
    tuned_file().write_bytes(content.encode() if isinstance(content, str) else content)
    assert tuned_config(90, "merge", 1000) == (1, 1, 1, 1, 1)
    assert tuned_config(90, "merge", 1000) == (1, 1, 1, 1, 1)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert str(tuned_file()) in record.getMessage()
    assert "tune again" in record.getMessage()


def test_a_file_that_may_not_be_read(committed: Path, caplog: pytest.LogCaptureFixture) -> None:
    tuned_file().mkdir()
    assert tuned_config(90, "merge", 1000) is None
    assert "cannot be read" in caplog.text


def test_files_are_read_once(committed: Path) -> None:
    assert tuned_config(90, "merge", 1000) is None
    committed.write_text(json.dumps({"sm_90": {"tiles": {"merge": {"10": [1, 2, 3, 4, 5]}}}}))
    assert tuned_config(90, "merge", 1000) is None
    forget()
    assert tuned_config(90, "merge", 1000) == (1, 2, 3, 4, 5)


def test_what_is_committed_is_of_the_form_that_is_read() -> None:
    for family, record in json.loads(tuned.COMMITTED.read_text()).items():
        assert family.startswith("sm_")
        assert int(family[3:]) >= 80
        assert record["gpu"]
        for by_rows in record["tiles"].values():
            assert all(rows.isdecimal() and Config(*tiles) for rows, tiles in by_rows.items())
        for speeds in record["network"].values():
            assert speeds.keys() <= BACKENDS.keys()
            assert min(speeds.values()) > 0


def test_on_hopper_our_kernels_are_the_fastest_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    look_in(tmp_path / "none.json")
    forget()
    found = network_speeds(90, "bf16")
    assert found is not None
    speeds, gpu = found
    assert max(speeds, key=speeds.__getitem__) == "triton"
    assert "H100" in gpu or "H200" in gpu
