"""Which versions of other packages, and of this one, are at work: part of the circumstances of tables and benches."""

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


CHECKOUT = Path(__file__).resolve().parents[1]


def commit(root: Path = CHECKOUT) -> str:
    """Return the commit that is checked out at ``root``, "" where there is none. Changes since are not looked for."""
    git = root / ".git"
    if git.is_file():  # a second working tree of a repository
        git = Path(git.read_text().partition("gitdir:")[2].strip())
    common = git / (git / "commondir").read_text().strip() if (git / "commondir").exists() else git
    try:
        head = (git / "HEAD").read_text().strip()
        name = head.removeprefix("ref: ")
        if name == head:
            return head
        if (common / name).exists():
            return (common / name).read_text().strip()
        packed = (line.split() for line in (common / "packed-refs").read_text().splitlines())
        return next((words[0] for words in packed if words[1:] == [name]), "")
    except OSError:
        return ""
