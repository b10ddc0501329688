"""Find the videos: files, folders, globs, lists and standard input become one list of files, each once."""

import csv
import glob
import io
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from sqt_fast.errors import ConfigError, system_reason

VIDEO_SUFFIXES = frozenset(
    """.3g2 .3gp .asf .avi .divx .dv .f4v .flv .h264 .h265 .hevc .ivf .m2ts .m2v .m4v .mj2 .mjpeg .mjpg .mkv .mov .mp4
    .mpe .mpeg .mpg .mts .mxf .nut .obu .ogm .ogv .qt .rm .rmvb .ts .vob .webm .wmv .y4m""".split()  # noqa: SIM905
)
# Moving pictures for pages and chats: labelled when they are named, but no archive of videos is searched for them.
NAMED_SUFFIXES = frozenset({".apng", ".avif", ".gif", ".webp"})
LIST_SUFFIXES = (".txt", ".csv", ".parquet")

Identity: TypeAlias = tuple[int, int]  # device and inode


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
        """The path as text that any table can hold, another one for every path (see ``path_of``).

        Bytes that are not UTF-8 become \\xNN, and so does a backslash that would look like the beginning of that.
        """
        escaped = re.sub(rb"\\(?=x[0-9a-f]{2})", rb"\\x5c", os.fsencode(self.path))
        return escaped.decode("utf-8", "backslashreplace")

    @property
    def key(self) -> tuple[str, int | None, int | None]:
        """What makes it the same file as in an earlier run."""
        return self.name, self.size_bytes, self.mtime_ns


def path_of(name: str) -> str:
    """Return the path that stands as ``name`` in a table's column ``path``; ``os.fsencode`` gives its bytes."""
    return os.fsdecode(re.sub(rb"\\x([0-9a-f]{2})", lambda code: bytes([int(code[1], 16)]), name.encode()))


@dataclass
class LeftOut:
    """What inputs name and is not labelled. other_files: not called videos by a suffix; links: to files that are."""

    other_files: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)


def find_videos(
    inputs: Sequence[str],
    *,
    path_col: str = "path",
    stdin: Iterable[str] = (),
    null: bool = False,
    all_links: bool = False,
    left_out: LeftOut | None = None,
) -> list[VideoFile]:
    """Return the videos that ``inputs`` name, each once, sorted by path.

    Folders are searched recursively for the usual video suffixes; files named one by one, in lists or on stdin are
    taken whatever their name. A folder that cannot be read is returned as a file with a ``problem``. null: names in
    .txt lists end in NUL bytes, not in lines. all_links: a file that has several names, by links, is returned under
    each, else under the first that is no symbolic link. left_out: is told what is not returned. Raises ConfigError for
    an input that does not exist, a list that cannot be read, and when there is no video at all.
    """
    found: dict[str, str] = {}
    left_out = LeftOut() if left_out is None else left_out
    search = _Search(path_col, stdin, null, left_out.other_files)
    for text in inputs:
        for path in search.expand(text):
            found.setdefault(os.path.abspath(path), path)  # noqa: PTH100 - resolve() would follow links
    if not found:
        raise ConfigError(f"input {' '.join(inputs)}: no video files found there")
    looked = [_look(path) for path in found.values()]
    videos = [video for video, _ in looked] if all_links else _each_once(looked, left_out)
    return sorted(videos, key=lambda video: video.name)


def _each_once(looked: Iterable[tuple[VideoFile, Identity | None]], left_out: LeftOut) -> Iterator[VideoFile]:
    """Yield every file under one of its names, and what cannot be looked at."""
    names: dict[Identity, list[VideoFile]] = {}
    for video, identity in looked:
        if identity is None:
            yield video
        else:
            names.setdefault(identity, []).append(video)
    for same in names.values():
        if len(same) > 1:
            same.sort(key=lambda video: (os.path.islink(video.path), video.path))  # noqa: PTH114 - may hold surrogates
        yield same[0]
        left_out.links += [video.path for video in same[1:]]


@dataclass
class _Search:
    """How inputs are read. See ``find_videos``."""

    path_col: str
    stdin: Iterable[str]
    null: bool
    left_out: list[str]

    def expand(self, text: str) -> Iterator[str]:
        """Yield the files that one input names."""
        if text == "-":
            yield from _listed(self.stdin, Path(), exact=self.null)
            return
        if not os.path.lexists(text):
            if not glob.has_magic(text):
                raise ConfigError(f"input {text}: no such file or folder")
            yield from self._glob(text)
            return
        path = Path(text)
        if os.path.isdir(text):  # noqa: PTH112 - Path's raises where a link leads into a closed folder
            yield from self._walk(path)
        elif path.suffix.lower() in LIST_SUFFIXES and os.path.isfile(text):  # noqa: PTH113
            yield from self._read_list(path)
        else:
            yield text

    def _walk(self, root: Path) -> Iterator[str]:
        """Yield the video files below ``root``, following links to folders but never round in a circle."""
        seen: set[Identity] = set()
        unreadable: list[str] = []
        for folder, folders, files in os.walk(
            root, followlinks=True, onerror=lambda error: unreadable.append(error.filename)
        ):
            try:
                info = Path(folder).stat()
            except OSError:  # it was closed or removed meanwhile
                unreadable.append(folder)
                folders.clear()
                continue
            if (info.st_dev, info.st_ino) in seen:
                folders.clear()
                continue
            seen.add((info.st_dev, info.st_ino))
            folders.sort()
            for name in sorted(files):
                path = str(Path(folder) / name)
                if Path(name).suffix.lower() in VIDEO_SUFFIXES:
                    yield path
                else:
                    self.left_out.append(path)
        yield from unreadable

    def _glob(self, pattern: str) -> Iterator[str]:
        matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - the pattern may be absolute
        if not matches:
            raise ConfigError(f"input {pattern}: nothing matches this pattern")
        for match in matches:
            if os.path.isdir(match):  # noqa: PTH112
                yield from self._walk(Path(match))
            elif Path(match).suffix.lower() in VIDEO_SUFFIXES | NAMED_SUFFIXES:
                yield match
            else:
                self.left_out.append(match)

    def _read_list(self, path: Path) -> Iterator[str]:
        try:
            if path.suffix.lower() == ".parquet":
                return _listed(_parquet_column(path, self.path_col), path.parent)
            text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
        except OSError as error:
            raise ConfigError(f"list {path}: cannot be read ({system_reason(error)})") from error
        if path.suffix.lower() == ".csv":
            return _listed(_csv_column(path, text, self.path_col), path.parent)
        # splitlines() would also cut names that hold U+2028 and its kind
        return _listed(text.split("\0" if self.null else "\n"), path.parent, exact=self.null)


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
    import pyarrow as pa  # imported only when a list is in its format
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        if path_col not in file.schema_arrow.names:
            names = ", ".join(file.schema_arrow.names)
            raise ConfigError(f"list {path}: no column {path_col!r}; it has {names}; name one with --path-col")
        return [str(value) for value in file.read([path_col]).column(path_col).to_pylist() if value is not None]
    except pa.ArrowException as error:
        raise ConfigError(f"list {path}: not a Parquet file that can be read ({error})") from error


def _listed(lines: Iterable[str], folder: Path, *, exact: bool = False) -> Iterator[str]:
    """Yield the paths in ``lines``; a relative one counts from the current folder, else from the list's own.

    A line may end in a class number, as mmaction2's annotation files have it; the number is ignored. exact: what was
    given is the name and nothing else, be it a newline.
    """
    for line in lines:
        text = line if exact else line.rstrip("\r\n")
        if not text or not (exact or text.strip()):
            continue
        names = (text,) if exact else (text, _without_label(text))
        places = (path for name in names for path in (Path(name), folder / name))
        # One that does not exist becomes a row that says so.
        yield next((str(path) for path in places if os.path.lexists(path)), names[-1])


def _without_label(line: str) -> str:
    head, _, last = line.rstrip().rpartition(" ")
    return head if head and last.isdigit() else line


def _look(path: str) -> tuple[VideoFile, Identity | None]:
    """Return the file, and what tells it from all others, whatever its name; None if it is none."""
    try:
        info = Path(path).stat()
    except OSError as error:
        return VideoFile(path, None, None, system_reason(error)), None
    except ValueError as error:  # a NUL in the name, as from find -print0
        return VideoFile(path, None, None, str(error)), None
    if stat.S_ISDIR(info.st_mode):
        return VideoFile(path, None, None, _why_not_searched(path)), None
    if not stat.S_ISREG(info.st_mode):
        return VideoFile(path, None, None, "not a regular file"), None
    return VideoFile(path, info.st_size, info.st_mtime_ns), (info.st_dev, info.st_ino)


def _why_not_searched(folder: str) -> str:
    """Say why a folder stands among the videos: it was named in a list, or what it holds cannot be seen."""
    try:
        with os.scandir(folder):
            return "not a regular file"
    except OSError as error:
        return f"a folder that cannot be read: {system_reason(error)}"
