"""Which versions of other packages, and of this one, are at work, and on which processor: circumstances of numbers."""

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def installed(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those of ``names`` (names of distributions) that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """Return the processor's name, and which matrix instructions it has, which decide its speed in bf16."""
    try:
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    except OSError:
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in reversed(lines)}
    flags = facts.get("flags", "").split()
    name = facts.get("model name", platform.machine())
    return " ".join([name, *(flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags)])


def driver_version() -> str:
    """Return what NVIDIA's driver says of itself, "" where there is none."""
    try:
        return Path("/proc/driver/nvidia/version").read_text().partition("\n")[0]
    except OSError:
        return ""


CHECKOUT = Path(__file__).resolve().parents[1]


def commit(root: Path = CHECKOUT) -> str:
    """Return the commit that is checked out at ``root``, "" where none is known. Changes since are not looked for.

    It is the last that git noted in the log of HEAD, in one place for every kind of checkout.
    """
    git = root / ".git"
    try:
        if git.is_file():  # a second working tree of a repository
            git = root / git.read_text().removeprefix("gitdir:").strip()
        return (git / "logs" / "HEAD").read_text().splitlines()[-1].split()[1]
    except (OSError, IndexError):
        return ""
