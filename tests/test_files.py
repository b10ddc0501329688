"""Files: whole or not at all, whoever else writes, with the permissions that the user gives new files."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sqt_fast.files import cache_folder, file_sha256, keep_finding, read_findings, replace_file, temporary_beside


def test_writers_of_one_name_do_not_mix_their_bytes(tmp_path: Path) -> None:
    """As when two containers, whose processes have the same numbers, share a cache."""
    path = tmp_path / "weights.pth"

    def write(letter: str) -> None:
        for _ in range(20):
            replace_file(path, lambda file: [file.write(letter.encode() * 1000) for _ in range(50)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, "ABCD"))
    assert len(set(path.read_bytes())) == 1
    assert path.stat().st_size == 50_000
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_that_somebody_laid_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / f".t.csv.{os.getpid()}.tmp").symlink_to(victim)
    replace_file(tmp_path / "t.csv", lambda file: file.write(b"new"))
    assert victim.read_text() == "mine"
    assert (tmp_path / "t.csv").read_bytes() == b"new"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_permissions_are_those_of_new_files(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        replace_file(tmp_path / "t.csv", lambda file: file.write(b"new"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "t.csv").stat().st_mode) == mode


def test_the_name_is_on_disk_before_anything_else_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes are synced before the rename, the folder after it."""
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(number: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "bytes")
        fsync(number)

    def renamed(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    replace_file(tmp_path / "t.csv", lambda file: file.write(b"new"))
    assert steps == ["bytes", "rename", "folder"]


def test_temporary_files_go(tmp_path: Path) -> None:
    with pytest.raises(KeyError), temporary_beside(tmp_path / "t.csv") as path:
        path.write_text("half")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert file_sha256(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_cache_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQT_FAST_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("SQT_FAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/sqt_fast")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path("/home/somebody/.cache/sqt_fast")


def test_findings_are_kept_by_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQT_FAST_CACHE", str(tmp_path / "new" / "cache"))
    assert read_findings("a.json") == {}
    keep_finding("a.json", "one", [1, 2])
    keep_finding("a.json", "two", {"b": None})
    keep_finding("a.json", "one", 3)
    assert read_findings("a.json") == {"one": 3, "two": {"b": None}}
    (tmp_path / "new" / "cache" / "a.json").write_text("[1, 2")
    assert read_findings("a.json") == {}


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SQT_FAST_CACHE", str(tmp_path / "file" / "cache"))
    keep_finding("a.json", "one", 1)
    assert read_findings("a.json") == {}
