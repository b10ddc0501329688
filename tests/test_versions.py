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
    command = ["git", "describe", "--always"]
    known = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    assert commit().removesuffix("-dirty") == known
