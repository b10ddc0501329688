"""Versions of installed packages, and of this one; the processor."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from sqt_fast.versions import commit, cpu_name, driver_version, installed


def git(folder: Path, *arguments: str) -> str:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    done = subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_only_what_is_installed_is_named() -> None:
    assert installed(["numpy", "no-such-distribution"]) == {"numpy": np.__version__}


def test_the_processor_has_a_name() -> None:
    name, *flags = cpu_name().split(" avx512_bf16")
    assert name.strip()
    assert "\n" not in name
    if flags:
        assert "avx512_bf16" in Path("/proc/cpuinfo").read_text()


def test_this_checkout_knows_its_commit() -> None:
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        pytest.skip("this is no checkout")
    assert commit() == git(root, "rev-parse", "HEAD")


def test_commits_are_found_however_git_keeps_them(tmp_path: Path) -> None:
    """No repository, a branch, a packed one, no branch, a second working tree, what was taken back."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    assert commit(first) == ""
    git(first, "init", "-q")
    assert commit(first) == ""
    for message in ("one", "two"):
        git(first, "commit", "-q", "--allow-empty", "-m", message)
        assert commit(first) == git(first, "rev-parse", "HEAD")
    git(first, "pack-refs", "--all")
    assert commit(first) == git(first, "rev-parse", "HEAD")
    git(first, "worktree", "add", "-q", "--detach", str(second), "HEAD~1")
    assert commit(second) == git(first, "rev-parse", "HEAD~1") != commit(first)
    git(first, "reset", "-q", "--hard", "HEAD~1")
    assert commit(first) == commit(second)


def test_no_driver_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is one, its file begins with NVRM version: and a number."""
    assert "\n" not in driver_version()
    monkeypatch.setattr(Path, "read_text", lambda self: "NVRM version: 580.1\nGCC version: 12\n")
    assert driver_version() == "NVRM version: 580.1"
