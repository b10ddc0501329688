"""Find the videos: files, folders, globs, lists and standard input become one list of files, each once."""

import csv
import glob
import io
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqt_fast.errors import ConfigError

VIDEO_SUFFIXES = frozenset(
    """.3g2 .3gp .asf .avi .divx .dv .f4v .flv .h264 .h265 .hevc .ivf .m2ts .m2v .m4v .mj2 .mjpeg .mjpg .mkv .mov .mp4
    .mpe .mpeg .mpg .mts .mxf .nut .obu .ogm .ogv .qt .rm .rmvb .ts .vob .webm .wmv .y4m""".split()  # noqa: SIM905
)
LIST_SUFFIXES = (".txt", ".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class VideoFile:
    """A file to label.

    path: as the user would write it. size_bytes and mtime_ns say whether it changed; both are None when the file
    cannot be looked at (``problem`` says why).
    """

    path: str
    size_bytes: int | None
    mtime_ns: int | None
    problem: str | None = None

    @property
    def name(self) -> str:
        """The path as text that any table can hold: bytes that are not UTF-8 become \\xNN."""
        return os.fsencode(self.path).decode("utf-8", "backslashreplace")

    @property
    def key(self) -> tuple[str, int | None, int | None]:
        """What makes it the same file as in an earlier run."""
        return self.name, self.size_bytes, self.mtime_ns


def find_videos(inputs: Sequence[str], *, path_col: str = "path", stdin: Iterable[str] = ()) -> list[VideoFile]:
    """Return the videos that ``inputs`` name, each once, sorted by path.

    Folders are searched recursively for the usual video suffixes; files named one by one, in lists or on stdin are
    taken whatever their name. Raises ConfigError for an input that does not exist, a list that cannot be read, and
    when there is no video at all.
    """
    found: dict[str, str] = {}
    for text in inputs:
        for path in _expand(text, path_col, stdin):
            found.setdefault(os.path.abspath(path), path)  # noqa: PTH100 - resolve() would follow links
    if not found:
        raise ConfigError(f"input {' '.join(inputs)}: no video files found there")
    return sorted((_look(path) for path in found.values()), key=lambda video: video.name)


def _expand(text: str, path_col: str, stdin: Iterable[str]) -> Iterator[str]:
    if text == "-":
        yield from _listed(stdin, Path())
        return
    if not os.path.lexists(text):
        if not glob.has_magic(text):
            raise ConfigError(f"input {text}: no such file or folder")
        yield from _glob(text)
        return
    path = Path(text)
    if path.is_dir():
        yield from _walk(path)
    elif path.suffix.lower() in LIST_SUFFIXES and path.is_file():
        yield from _read_list(path, path_col)
    else:
        yield text


def _walk(root: Path) -> Iterator[str]:
    """Yield the video files below ``root``, following links to folders but never round in a circle."""
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        info = Path(folder).stat()
        if (info.st_dev, info.st_ino) in seen:
            folders.clear()
            continue
        seen.add((info.st_dev, info.st_ino))
        folders.sort()
        for name in sorted(files):
            if Path(name).suffix.lower() in VIDEO_SUFFIXES:
                yield str(Path(folder) / name)


def _glob(pattern: str) -> Iterator[str]:
    matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - the pattern may be absolute
    if not matches:
        raise ConfigError(f"input {pattern}: nothing matches this pattern")
    for match in matches:
        if Path(match).is_dir():
            yield from _walk(Path(match))
        elif Path(match).suffix.lower() in VIDEO_SUFFIXES:
            yield match


def _read_list(path: Path, path_col: str) -> Iterator[str]:
    if path.suffix.lower() == ".parquet":
        return _listed(_parquet_column(path, path_col), path.parent)
    text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    if path.suffix.lower() == ".csv":
        return _listed(_csv_column(path, text, path_col), path.parent)
    return _listed(text.split("\n"), path.parent)  # splitlines() would also cut names that hold U+2028 and its kind


def _csv_column(path: Path, text: str, path_col: str) -> list[str]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        if path_col not in (rows.fieldnames or ()):
            names = ", ".join(rows.fieldnames or ["none"])
            raise ConfigError(f"list {path}: no column {path_col!r}; it has {names}; name one with --path-col")
        return [row[path_col] or "" for row in rows]
    except csv.Error as error:
        raise ConfigError(f"list {path}: not CSV that can be read ({error})") from error


def _parquet_column(path: Path, path_col: str) -> list[str]:
    from sqt_fast.table.schema import read_column  # Arrow is imported only when a list is in its format

    return [str(value) for value in read_column(path, path_col) if value is not None]


def _listed(lines: Iterable[str], folder: Path) -> Iterator[str]:
    """Yield the paths in ``lines``; a relative one counts from the current folder, else from the list's own.

    A line may end in a class number, as mmaction2's annotation files have it; the number is ignored.
    """
    for line in lines:
        text = line.rstrip("\r\n")
        if not text.strip():
            continue
        for candidate in dict.fromkeys((text, _without_label(text))):
            for path in (Path(candidate), folder / candidate):
                if os.path.lexists(path):
                    yield str(path)
                    break
            else:
                continue
            break
        else:
            yield _without_label(text)  # does not exist: becomes a row that says so


def _without_label(line: str) -> str:
    head, _, last = line.rstrip().rpartition(" ")
    return head if head and last.isdigit() else line


def _look(path: str) -> VideoFile:
    try:
        info = Path(path).stat()
    except OSError as error:
        return VideoFile(path, None, None, (error.strerror or "cannot be looked at").lower())
    except ValueError as error:  # a NUL in the name, as from find -print0
        return VideoFile(path, None, None, str(error))
    if not stat.S_ISREG(info.st_mode):
        return VideoFile(path, None, None, "not a regular file")
    return VideoFile(path, info.st_size, info.st_mtime_ns)
