"""Versions of installed packages, and of this one."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from sqt_fast.versions import commit, installed


def test_only_what_is_installed_is_named() -> None:
    assert installed(["numpy", "no-such-distribution"]) == {"numpy": np.__version__}


def test_a_checkout_knows_its_commit() -> None:
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        pytest.skip("this is no checkout")
    command = ["git", "rev-parse", "HEAD"]
    known = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    assert commit() == known


def test_commits_are_found_however_git_keeps_them(tmp_path: Path) -> None:
    """A branch in a file, a branch in the packed list, no branch, a second working tree, no repository."""
    git = tmp_path / ".git"
    assert commit(tmp_path) == ""
    git.mkdir()
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "packed-refs").write_text("# pack-refs with: peeled\naaa refs/heads/main\nbbb refs/heads/other\n")
    assert commit(tmp_path) == "aaa"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "refs" / "heads" / "main").write_text("ccc\n")
    assert commit(tmp_path) == "ccc"
    (git / "HEAD").write_text("ddd\n")
    assert commit(tmp_path) == "ddd"
    tree = git / "worktrees" / "second"
    tree.mkdir(parents=True)
    (tree / "HEAD").write_text("ref: refs/heads/other\n")
    (tree / "commondir").write_text("../..\n")
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / ".git").write_text(f"gitdir: {tree}\n")
    assert commit(tmp_path / "second") == "bbb"
