"""Weights with a name: where they are, how they are known again, and what became of their files."""

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sqt_fast.config import OFFICIAL, OFFICIAL_HMDB51
from sqt_fast.errors import CheckpointError
from sqt_fast.files import file_sha256
from sqt_fast.network import published
from sqt_fast.network.class_names import LABEL_LISTS
from sqt_fast.network.published import (
    PUBLISHED,
    checked_sha256,
    published_name,
    record_sha256,
    recorded,
    sidecar_of,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, which is there."""
    monkeypatch.setenv("SQT_FAST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def put(path: Path, content: bytes, *, used: bool = True) -> Path:
    """Write a file, and its hash if it was used before."""
    path.write_bytes(content)
    if used:
        record_sha256(path, file_sha256(path))
    return path


def test_files_of_the_release() -> None:
    at = "https://github.com/xinghaochen/SqueezeTime/releases/download/ckpts/"
    assert {name: known.url.removeprefix(at) for name, known in PUBLISHED.items() if not known.ships} == {
        "k400": "SqueezeTime_K400_71.64.pth",
        "k600": "SqueezeTime_K600_76.06.pth",
        "hmdb51": "SqueezeTime_HMDB51_65.56.pth",
        "in1k": "SqueezeTime_in1k_pretrain.pth",
        "ava": "SqueezeTime-AVA2.1.pth",
    }
    assert {name: known.labels for name, known in PUBLISHED.items() if known.labels} == {
        "k400": "kinetics400",
        "k600": "kinetics600",
        "hmdb51": "hmdb51",
    }
    assert {known.labels for known in PUBLISHED.values()} <= {*LABEL_LISTS, None}
    assert {name for name, known in PUBLISHED.items() if known.official != OFFICIAL} == {"hmdb51"}
    assert PUBLISHED["hmdb51"].official is OFFICIAL_HMDB51


def test_the_release_is_in_the_cache_and_ours_in_the_package(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for known in PUBLISHED.values():
        folder = Path(published.__file__).parents[1] / "weights" if known.ships else cache
        assert known.path == folder / known.file
    assert [name for name, known in PUBLISHED.items() if known.ships] == ["motions"]
    monkeypatch.setattr(published, "SHIPPED_FOLDER", cache / "elsewhere")
    assert PUBLISHED["motions"].path == cache / "elsewhere" / "motions.safetensors"
    assert replace(PUBLISHED["motions"], ships=False).path == cache / "motions.safetensors"


# -- known again ------------------------------------------------------------------------------------------------------


def test_a_name_is_itself() -> None:
    assert {name: published_name(name) for name in PUBLISHED} == {name: name for name in PUBLISHED}
    assert published_name("random") is None
    assert published_name("nowhere.pth") is None


def test_a_file_is_known_by_its_content_once_that_was_seen(cache: Path, tmp_path: Path) -> None:
    put(cache / PUBLISHED["k600"].file, b"of K600")
    put(cache / PUBLISHED["hmdb51"].file, b"of HMDB51")
    copy = put(tmp_path / "mine.pth", b"of HMDB51", used=False)
    other = put(tmp_path / PUBLISHED["hmdb51"].file, b"of something else", used=False)
    assert published_name(str(copy)) == "hmdb51"
    assert published_name(str(other)) is None


def test_a_file_is_known_by_its_name_until_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / PUBLISHED["hmdb51"].file, b"anything", used=False)
    assert published_name(str(path)) == "hmdb51"
    assert published_name(f"nowhere/{path.name}") == "hmdb51"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert published_name(f"~/{path.name}") == "hmdb51"


def test_what_ships_is_known_by_its_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file of that name says of itself what it is."""
    monkeypatch.setattr(published, "SHIPPED_FOLDER", tmp_path)
    path = put(tmp_path / PUBLISHED["motions"].file, b"of ours", used=False)
    assert published_name(str(path)) is None


# -- hashes -----------------------------------------------------------------------------------------------------------


def test_the_hash_is_recorded_as_sha256sum_does(cache: Path) -> None:
    path = put(cache / "a.pth", b"abc")
    assert sidecar_of(path) == cache / "a.pth.sha256"
    assert recorded(sidecar_of(path)) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    done = subprocess.run(["sha256sum", "-c", "--strict", "a.pth.sha256"], cwd=cache, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "a.pth: OK\n")


def test_the_first_hash_stays(cache: Path) -> None:
    path = put(cache / "a.pth", b"abc")
    first = recorded(sidecar_of(path))
    record_sha256(path, "0" * 64)
    assert recorded(sidecar_of(path)) == first == checked_sha256(path)


def test_a_file_that_was_never_used_may_be_any(cache: Path) -> None:
    path = put(cache / "a.pth", b"abc", used=False)
    assert checked_sha256(path) == file_sha256(path)
    assert list(cache.iterdir()) == [path]  # only what was read and fitted is recorded


@pytest.mark.parametrize(
    ("kept", "first"),
    [(None, file_sha256), (b"", "nothing"), (b"\xff\n", "\N{REPLACEMENT CHARACTER}")],
    ids=["first use", "empty", "no text"],
)
def test_a_file_that_changed_is_refused(cache: Path, kept: bytes | None, first: Any) -> None:
    path = put(cache / "a.pth", b"abc")
    if callable(first):
        first = first(path)
    if kept is not None:
        sidecar_of(path).write_bytes(kept)
    path.write_bytes(b"abcd")
    with pytest.raises(CheckpointError) as caught:
        checked_sha256(path)
    assert str(caught.value) == (
        f"{path} has changed: SHA-256 {file_sha256(path)}, at first use {first}; delete it and {path}.sha256 to "
        "download it again, or a.pth.sha256 alone if the change was meant"
    )
    sidecar_of(path).unlink()
    assert checked_sha256(path) == file_sha256(path)


def test_a_hash_that_cannot_be_written_is_said(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("sqt_fast.network.published.replace_file", refuse)
    path = put(cache / "a.pth", b"abc")
    assert f"{path}: the hash could not be recorded ([Errno 13] Permission denied)" in caplog.text
    assert list(cache.iterdir()) == [path]
