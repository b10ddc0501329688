"""Videos with the class that each shows: mmaction2's lists, CSV files, or a folder for each class."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqt_fast.errors import ConfigError, system_reason
from sqt_fast.video.archive import VIDEO_SUFFIXES


@dataclass(frozen=True)
class LabelledVideos:
    """paths (N,) and the class number of each (N,), in the order of the list; names: of the classes, (K,)."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)


def read_list(source: Path, *, root: Path | None = None, names: Sequence[str] | None = None) -> LabelledVideos:
    """Read which videos there are and what they show.

    source: a folder with a subfolder of videos for each class, a ``.csv`` with the columns ``path`` and ``label``, or a
    text with a line ``path label`` for each video. Labels are class numbers from 0, or names. root: what paths are
    relative to; without it, the folder of the list. names: the class names, by number; without them, the names that the
    list holds, sorted, or ``class 0`` and so on where it holds numbers.

    Raises ConfigError, with the line, for what cannot be read.
    """
    if source.is_dir():
        rows = _of_folders(source)
        root = source
    elif source.suffix.lower() == ".csv":
        rows = _of_csv(source)
    else:
        rows = _of_lines(source)
    if not rows:
        raise ConfigError(f"{source}: names no video; give a folder for each class, or a list of path and label")
    folder = source.parent if root is None else root
    numbered = all(label.isdecimal() for _, _, label in rows)
    if names is None:
        known = {label for _, _, label in rows}
        names = [f"class {i}" for i in range(max(map(int, known)) + 1)] if numbered else sorted(known)
    numbers = {name: number for number, name in enumerate(names)}
    labels = tuple(_number(source, line, label, numbers, numbered=numbered) for line, _, label in rows)
    return LabelledVideos(tuple(str(folder / path) for _, path, _ in rows), labels, tuple(names))


def _number(source: Path, line: int, label: str, numbers: dict[str, int], *, numbered: bool) -> int:
    number = int(label) if numbered else numbers.get(label, -1)
    if 0 <= number < len(numbers):
        return number
    few = ", ".join(list(numbers)[:3])
    allowed = f"0 to {len(numbers) - 1}" if numbered else f"one of {len(numbers)} names ({few}, ...)"
    raise ConfigError(f"{source}, line {line}: label {label!r}: expected {allowed}; see --label-names")


def _of_folders(source: Path) -> list[tuple[int, str, str]]:
    """Return (place, path, class) of every video in the subfolders of ``source``."""
    classes = sorted(folder for folder in source.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    found = [
        (str(path.relative_to(source)), folder.name)
        for folder in classes
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in VIDEO_SUFFIXES
    ]
    return [(place, path, name) for place, (path, name) in enumerate(found, 1)]


def _of_csv(source: Path) -> list[tuple[int, str, str]]:
    rows = []
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not {"path", "label"} <= set(reader.fieldnames or ()):
                raise ConfigError(f"{source}: columns {reader.fieldnames}: expected path and label among them")
            for row in reader:
                if not row["path"] or not row["label"]:
                    raise ConfigError(f"{source}, line {reader.line_num}: expected a path and a label")
                rows.append((reader.line_num, row["path"], row["label"].strip()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{source}: cannot be read ({system_reason(error)}); give a list of videos") from error
    return rows


def _of_lines(source: Path) -> list[tuple[int, str, str]]:
    """Return (line, path, label); the label is what follows the last space, so that paths may hold some."""
    try:
        lines = source.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: cannot be read ({system_reason(error)}); give a list of videos") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        path, _, label = line.strip().rpartition(" ")
        if not path:
            raise ConfigError(f"{source}, line {number}: {line!r}: expected a path, a space and a class number or name")
        rows.append((number, path.rstrip(), label))
    return rows
