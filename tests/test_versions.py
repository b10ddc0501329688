"""Versions of installed packages."""

import numpy as np

from sqt_fast.versions import installed


def test_only_what_is_installed_is_named() -> None:
    assert installed(["numpy", "no-such-distribution"]) == {"numpy": np.__version__}
