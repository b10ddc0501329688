"""The configuration: what is refused, and what must be the same for rows to share a table."""

from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest

from sqt_fast.config import IndexConfig, differences
from sqt_fast.errors import ConfigError


def config(**options: Any) -> IndexConfig:
    return IndexConfig(**{"inputs": ("videos",), "output": Path("labels.parquet"), **options})


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.jsonl", "a.PARQUET", "a.b.Csv"])
def test_outputs_are_known_by_suffix(name: str) -> None:
    assert config(output=Path(name)).output == Path(name)


@pytest.mark.parametrize("name", ["a", "a.json", "a.txt", ".parquet", "a.parquet.gz", ""])
def test_other_outputs_are_refused_with_what_is_allowed(name: str) -> None:
    with pytest.raises(ConfigError, match=r"\.parquet, \.csv, \.jsonl"):
        config(output=Path(name))


def test_a_folder_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        config(output=tmp_path / "a.parquet")


@pytest.mark.parametrize("option", ["stride_s", "target_fps"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e-9])
def test_rates_that_cannot_work(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"--{'stride' if option == 'stride_s' else 'target-fps'} .*must be from"):
        config(**{option: value})


def test_a_rate_that_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match="--target-fps 1e\\+12"):
        config(target_fps=1e12)


@pytest.mark.parametrize("protocol", ["single", "official"])
@pytest.mark.parametrize("options", [{"stride_s": 1.0}, {"level": "window"}])
def test_protocols_that_judge_whole_videos_take_no_windows(protocol: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{protocol} protocol"):
        config(protocol=protocol, **options)


@pytest.mark.parametrize(
    ("options", "per_window"),
    [
        ({}, True),
        ({"level": "window"}, True),
        ({"level": "video"}, False),
        ({"protocol": "official"}, False),
        ({"protocol": "single"}, False),
        ({"protocol": "official", "level": "video"}, False),
    ],
)
def test_level(options: dict[str, Any], per_window: bool) -> None:
    assert config(**options).per_window is per_window
    assert config(**options).settings()["level"] == ("window" if per_window else "video")


@pytest.mark.parametrize(
    "change",
    [
        {"backend": "eager"},
        {"precision": "bf16"},
        {"protocol": "official"},
        {"protocol": "single"},
        {"stride_s": 1.0},
        {"target_fps": 10.0},
        {"top_k": 3},
        {"top_k": None},
        {"level": "video"},
        {"embeddings": True},
    ],
    ids=str,
)
def test_what_changes_rows_is_a_setting(change: dict[str, Any]) -> None:
    assert config(**change).settings() != config().settings()


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": ("more",)},
        {"batch_size": 3},
        {"limit": 1},
        {"retry_failed": True},
        {"overwrite": True},
        {"on_error": "fail"},
        {"level": "window"},
        {"path_col": "file"},
        {"decoder": "cpu"},
        {"memory_bytes": 1},
    ],
    ids=str,
)
def test_what_does_not_change_rows_is_no_setting(change: dict[str, Any]) -> None:
    assert config(**change).settings() == config().settings()


def test_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        config().top_k = 3  # type: ignore[misc]
    with pytest.raises(ConfigError):
        replace(config(), output=Path("a.txt"))


def test_what_differs_is_named_by_its_option() -> None:
    old = {"stride_s": None, "weights_sha256": "0123456789abcdef", "top_k": 5, "protocol": {"name": "fast", "size": 1}}
    new = {"stride_s": 0.5, "weights_sha256": "fedcba9876543210", "top_k": 5, "protocol": {"name": "fast", "size": 2}}
    assert differences(old, old) == []
    assert differences(old, new) == [
        "--stride not set, now 0.5",
        "--weights 0123456789ab, now fedcba987654",
        "--protocol name fast, size 1, now name fast, size 2",
    ]
