"""Videos with the class that each shows: mmaction2's lists, CSV files, or a folder for each class."""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqt_fast.errors import ConfigError, system_reason
from sqt_fast.video.archive import VIDEO_SUFFIXES

NAMES = "surrogateescape"  # a path is bytes, which need not be UTF-8
MAX_CLASSES = 10_000  # a label beyond is something else, such as a number of frames


@dataclass(frozen=True)
class LabelledVideos:
    """paths (N,) and the class number of each (N,), in the order of the list; names: of the classes, (K,).

    numbered: nobody said what classes are called, and the names are made of their numbers.
    """

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]
    numbered: bool = False

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
    if os.path.isdir(source):  # noqa: PTH112 - Path's raises where a folder above is closed
        rows = _of_folders(source)
        root = source
    elif source.suffix.lower() == ".csv":
        rows = _of_csv(source)
    else:
        rows = _of_lines(source)
    if not rows:
        raise ConfigError(f"{source}: names no video; give a folder for each class, or a list of path and label")
    folder = source.parent if root is None else root
    numbered = all(label.removeprefix("-").isdecimal() for _, _, label in rows)
    made_up = names is None and numbered
    if names is None:
        names = [f"class {i}" for i in range(MAX_CLASSES)] if numbered else sorted({label for _, _, label in rows})
    numbers = {name: number for number, name in enumerate(names)}
    labels = tuple(_number(source, line, label, numbers, numbered=numbered) for line, _, label in rows)
    names = names[: max(labels) + 1] if made_up else names
    return LabelledVideos(tuple(str(folder / path) for _, path, _ in rows), labels, tuple(names), made_up)


def _number(source: Path, line: int, label: str, numbers: dict[str, int], *, numbered: bool) -> int:
    number = numbers.get(label, -1)
    if numbered:
        digits = label.lstrip("0") or "0"
        number = int(digits) if digits.isdecimal() and len(digits) <= len(str(len(numbers))) else -1
    if 0 <= number < len(numbers):
        return number
    few = ", ".join(list(numbers)[:3])
    allowed = f"0 to {len(numbers) - 1}" if numbered else f"one of {len(numbers)} names ({few}, ...)"
    raise ConfigError(f"{source}, line {line}: label {_shown(label)}: expected {allowed}; see --label-names")


def _of_folders(source: Path) -> list[tuple[int, str, str]]:
    """Return (place, path, class) of every video in the subfolders of ``source``."""
    try:
        classes = sorted(folder for folder in source.iterdir() if folder.is_dir() and not folder.name.startswith("."))
        found = [
            (str(path.relative_to(source)), folder.name)
            for folder in classes
            for path in sorted(folder.rglob("*"))
            if path.suffix.lower() in VIDEO_SUFFIXES
        ]
    except OSError as error:
        raise _unreadable(source, error) from error
    return [(place, path, name) for place, (path, name) in enumerate(found, 1)]


def _of_csv(source: Path) -> list[tuple[int, str, str]]:
    rows = []
    try:
        with source.open(encoding="utf-8-sig", errors=NAMES, newline="") as file:
            reader = csv.DictReader(file)
            if not {"path", "label"} <= set(reader.fieldnames or ()):
                raise ConfigError(f"{source}: columns {reader.fieldnames}: expected path and label among them")
            for row in reader:
                path, label = row["path"], (row["label"] or "").strip()
                if not path or not label:
                    raise ConfigError(f"{source}, line {reader.line_num}: expected a path and a label")
                rows.append((reader.line_num, path, label))
    except (OSError, csv.Error) as error:
        raise _unreadable(source, error) from error
    return rows


def _of_lines(source: Path) -> list[tuple[int, str, str]]:
    """Return (line, path, label); the label is what follows the last space, so that paths may hold some."""
    try:
        # splitlines() would also cut names that hold U+2028 and its kind
        lines = source.read_text(encoding="utf-8-sig", errors=NAMES).split("\n")
    except OSError as error:
        raise _unreadable(source, error) from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        path, _, label = line.strip().rpartition(" ")
        if not path:
            raise ConfigError(
                f"{source}, line {number}: {_shown(line)}: expected a path, a space and a class number or name"
            )
        rows.append((number, path.rstrip(), label))
    return rows


def _shown(text: str) -> str:
    """Return ``text`` for a message; a line of what is no list at all may be endless."""
    return repr(text if len(text) <= 80 else f"{text[:80]}...")


def _unreadable(source: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{source}: cannot be read ({system_reason(error)}); give a list of videos")
