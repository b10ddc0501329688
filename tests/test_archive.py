"""Which files an archive holds: folders, globs, lists and standard input, each file once."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sqt_fast.errors import ConfigError
from sqt_fast.video.archive import VIDEO_SUFFIXES, LeftOut, VideoFile, find_videos, path_of


def touch(folder: Path, *names: str | bytes) -> None:
    for name in names:
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + os.fsencode(name)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"video")


def found(*inputs: object, path_col: str = "path", stdin: tuple[str, ...] = ()) -> list[str]:
    return [video.path for video in find_videos([str(text) for text in inputs], path_col=path_col, stdin=stdin)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Folders and files ---------------------------------------------------------------------------------------------------


def test_a_folder_gives_its_videos_sorted(here: Path) -> None:
    touch(here, "v/b.mp4", "v/a/z.MKV", "v/a/deep/er/x.WebM", "v/notes.txt", "v/c.mp4.part", "v/mp4", "v/.hidden.ts")
    assert found("v") == ["v/.hidden.ts", "v/a/deep/er/x.WebM", "v/a/z.MKV", "v/b.mp4"]


@pytest.mark.parametrize("suffix", sorted(VIDEO_SUFFIXES))
def test_a_suffix_counts_in_any_case(here: Path, suffix: str) -> None:
    touch(here, f"v/a{suffix}", f"v/b{suffix.upper()}")
    assert len(found("v")) == 2


def test_an_empty_folder_is_refused(here: Path) -> None:
    (here / "v").mkdir()
    with pytest.raises(ConfigError, match="input v: no video files found there"):
        found("v")


def test_a_named_file_is_taken_whatever_its_name(here: Path) -> None:
    touch(here, "clip", "clip.bin")
    assert found("clip", "clip.bin") == ["clip", "clip.bin"]


def test_each_file_once(here: Path) -> None:
    touch(here, "v/a.mp4", "v/w/b.mp4")
    assert found("v/w", "v", here / "v", "v/a.mp4", "v/../v/a.mp4", "v/*.mp4") == ["v/a.mp4", "v/w/b.mp4"]


def test_what_a_video_says_of_its_file(here: Path) -> None:
    touch(here, "a.mp4")
    os.utime("a.mp4", ns=(5, 1_234_567_890_123_456_789))
    (video,) = find_videos(["a.mp4"])
    assert video == VideoFile("a.mp4", 5, 1_234_567_890_123_456_789, None)
    assert video.key == ("a.mp4", 5, 1_234_567_890_123_456_789)


def test_links_to_folders_are_followed_but_not_in_circles(here: Path) -> None:
    touch(here, "v/a.mp4", "elsewhere/b.mp4")
    (here / "v" / "link").symlink_to(here / "elsewhere")
    (here / "v" / "up").symlink_to(here / "v")
    (here / "v" / "self").symlink_to("self")
    (here / "elsewhere" / "back").symlink_to(here / "v")
    assert found("v") == ["v/a.mp4", "v/link/b.mp4"]


def test_a_link_that_leads_nowhere_is_a_video_with_a_problem(here: Path) -> None:
    (here / "v").mkdir()
    (here / "v" / "gone.mp4").symlink_to("nothing")
    (here / "v" / "loop.mp4").symlink_to("loop.mp4")
    problems = [(v.path, v.size_bytes, v.problem) for v in find_videos(["v"])]
    assert problems == [
        ("v/gone.mp4", None, "no such file or directory"),
        ("v/loop.mp4", None, "too many levels of symbolic links"),
    ]


def test_a_fifo_is_never_opened(here: Path) -> None:
    (here / "v").mkdir()
    os.mkfifo("v/pipe.mp4")
    assert [(v.path, v.problem) for v in find_videos(["v"])] == [("v/pipe.mp4", "not a regular file")]


def test_a_folder_with_a_videos_name_is_a_folder(here: Path) -> None:
    touch(here, "v/a.mp4/b.mp4")
    assert found("v") == found("v/a.mp4") == ["v/a.mp4/b.mp4"]


def test_bytes_that_are_not_utf8_survive(here: Path) -> None:
    touch(here, b"v/caf\xe9.mp4", "v/é\u2028.mp4")
    first, second = find_videos(["v"])
    assert os.fsencode(first.path) == b"v/caf\xe9.mp4"
    assert first.name == "v/caf\\xe9.mp4"
    assert second.name == "v/é\u2028.mp4"
    assert [first.size_bytes, second.size_bytes] == [5, 5]
    assert (first.name + second.name).encode()


@pytest.mark.parametrize("name", ["nothing", "nothing.mp4", "v/nothing.txt", "", "n" * 300, "a\0b"])
def test_an_input_that_is_not_there_is_refused(here: Path, name: str) -> None:
    touch(here, "v/a.mp4")
    with pytest.raises(ConfigError, match="no such file or folder"):
        found(name)


# Globs ---------------------------------------------------------------------------------------------------------------


def test_globs(here: Path) -> None:
    touch(here, "v/a1.mp4", "v/a2.avi", "v/a3.txt", "v/w/b.mp4", "v/w/x/c.mp4")
    assert found("v/*") == ["v/a1.mp4", "v/a2.avi", "v/w/b.mp4", "v/w/x/c.mp4"]
    assert found("v/a[12].*") == ["v/a1.mp4", "v/a2.avi"]
    assert found("v/**/*.mp4") == ["v/a1.mp4", "v/w/b.mp4", "v/w/x/c.mp4"]
    assert found(here / "v" / "a?.mp4") == [str(here / "v/a1.mp4")]


def test_a_name_with_magic_letters_is_a_name_first(here: Path) -> None:
    touch(here, "a[1].mp4", "a1.mp4")
    assert found("a[1].mp4") == ["a[1].mp4"]


def test_a_glob_without_matches_is_refused(here: Path) -> None:
    with pytest.raises(ConfigError, match="nothing matches this pattern"):
        found("v/*.mp4")


# Lists ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte order mark"])
def test_a_text_list(here: Path, ending: str, mark: str) -> None:
    touch(here, "a.mp4", "b c.bin", "folder/d.mp4")
    lines = ["a.mp4", "", "  ", "b c.bin", str(here / "folder" / "d.mp4"), "missing.mp4"]
    (here / "list.txt").write_bytes((mark + ending.join(lines)).encode())
    videos = find_videos(["list.txt"])
    assert {v.path for v in videos} == {"a.mp4", "b c.bin", str(here / "folder/d.mp4"), "missing.mp4"}
    assert [v.path for v in videos if v.problem] == ["missing.mp4"]
    assert next(v.problem for v in videos if v.problem) == "no such file or directory"


def test_odd_names_in_a_list(here: Path) -> None:
    names = ["line\u2028separator.mp4", "next\x85line.mp4", "form\x0cfeed.mp4", " leading.mp4"]
    touch(here, *names, b"caf\xe9.mp4")
    (here / "list.txt").write_bytes("\n".join(names).encode() + b"\ncaf\xe9.mp4\n")
    videos = find_videos(["list.txt"])
    assert {os.fsencode(v.path) for v in videos} == {*map(os.fsencode, names), b"caf\xe9.mp4"}
    assert not any(v.problem for v in videos)


def test_relative_lines_count_from_here_first_then_from_the_list(here: Path) -> None:
    touch(here, "both.mp4", "sub/both.mp4", "sub/there.mp4")
    (here / "sub" / "list.txt").write_text("both.mp4\nthere.mp4\n")
    assert found("sub/list.txt") == ["both.mp4", "sub/there.mp4"]


def test_class_numbers_after_paths_are_ignored(here: Path) -> None:
    touch(here, "a.mp4", "with space 7", "with space", "b 3.mp4")
    (here / "list.txt").write_text("a.mp4 375\nwith space 7\nb 3.mp4 12\ngone.mp4 4\nnot a number x\n")
    assert found("list.txt") == ["a.mp4", "b 3.mp4", "gone.mp4", "not a number x", "with space 7"]


def test_a_csv_list(here: Path) -> None:
    touch(here, "a.mp4", "b, c.mp4")
    (here / "list.csv").write_text('id,video\n1,a.mp4\n2,"b, c.mp4"\n3,\n4\n')
    assert found("list.csv", path_col="video") == ["a.mp4", "b, c.mp4"]


@pytest.mark.parametrize("ending", ["\r\n", "\r"], ids=["windows", "old mac"])
def test_a_csv_list_with_other_line_ends(here: Path, ending: str) -> None:
    touch(here, "a.mp4", "b.mp4")
    (here / "list.CSV").write_bytes("\ufeff".encode() + ending.join(["path,n", "b.mp4,1", "a.mp4,2"]).encode())
    assert found("list.CSV") == ["a.mp4", "b.mp4"]


def test_a_parquet_list(here: Path) -> None:
    touch(here, "a.mp4", "b.mp4")
    table = pa.table({"video": ["b.mp4", None, "a.mp4", "a.mp4"], "n": np.arange(4)})
    pq.write_table(table, here / "list.parquet")
    assert found("list.parquet", path_col="video") == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize("name", ["list.csv", "list.parquet"])
def test_a_column_that_is_not_there_is_named(here: Path, name: str) -> None:
    if name.endswith("csv"):
        (here / name).write_text("video,n\na.mp4,1\n")
    else:
        pq.write_table(pa.table({"video": ["a.mp4"], "n": [1]}), here / name)
    with pytest.raises(ConfigError, match=r"no column 'path'; it has video, n; name one with --path-col"):
        found(name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("list.csv", b"", "it has none", id="empty csv"),
        pytest.param("list.csv", b'path\n"' + b"a" * 200_000 + b'"\n', "not CSV that can be read", id="endless field"),
        pytest.param("list.parquet", b"", "not a Parquet file", id="empty parquet"),
        pytest.param("list.parquet", b"path\na.mp4\n" * 9, "not a Parquet file", id="text named parquet"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused(here: Path, name: str, content: bytes, message: str) -> None:
    (here / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        found(name)


def test_an_empty_text_list_is_refused(here: Path) -> None:
    (here / "list.txt").write_text("\n")
    with pytest.raises(ConfigError, match="no video files found there"):
        found("list.txt")


def test_lines_from_standard_input(here: Path) -> None:
    touch(here, "a.mp4", "b.bin")
    videos = find_videos(["-"], stdin=["a.mp4\n", "\n", "b.bin 3\r\n", "gone.mp4\n"])
    assert [(v.path, v.problem) for v in videos] == [
        ("a.mp4", None),
        ("b.bin", None),
        ("gone.mp4", "no such file or directory"),
    ]


def test_names_that_end_in_nul_are_names_to_the_last_byte(here: Path) -> None:
    """-0 is for names that hold what a list of lines cannot."""
    names = ["a.mp4\n", "b.mp4\r", "c.mp4 7", " ", "d 7\n"]
    touch(here, *names[:4], "c.mp4", "d")
    videos = find_videos(["-"], stdin=[*names, ""], null=True)
    assert sorted((v.path, v.problem) for v in videos) == sorted(
        [*((name, None) for name in names[:4]), ("d 7\n", "no such file or directory")]
    )
    (here / "list.txt").write_text("\0".join([*names, ""]))
    assert [v.path for v in find_videos(["list.txt"], null=True)] == [v.path for v in videos]


def test_lines_that_end_in_nul_are_videos_with_a_problem(here: Path) -> None:
    """What ``find -print0`` gives."""
    touch(here, "a.mp4", "b.mp4")
    (video,) = find_videos(["-"], stdin=["a.mp4\0b.mp4\0"])
    assert video.size_bytes is None
    assert "null" in (video.problem or "")


def test_a_folder_in_a_list_is_a_video_with_a_problem(here: Path) -> None:
    touch(here, "v/a.mp4")
    assert [(v.path, v.problem) for v in find_videos(["-"], stdin=["v\n"])] == [("v", "not a regular file")]


def test_a_folder_that_cannot_be_read_is_no_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every input has at least a row: what may not be looked into, too."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "a.mp4").touch()
    (tmp_path / "shut").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = {Path(video.path).name: video.problem for video in find_videos([str(tmp_path)])}
    assert found == {"a.mp4": None, "shut": "a folder that cannot be read: permission denied"}


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.parquet"])
def test_a_list_that_may_not_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / name).touch()
    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr("pyarrow.parquet.ParquetFile", refuse)
    with pytest.raises(ConfigError, match=rf"^list .*{name}: cannot be read \(permission denied\)$"):
        find_videos([str(tmp_path / name)])


def test_names_separated_by_nul(tmp_path: Path) -> None:
    (tmp_path / "a\nb.mp4").touch()
    (tmp_path / "list.txt").write_bytes(f"{tmp_path}/a\nb.mp4\0{tmp_path}/c.mp4\0".encode())
    found = find_videos([str(tmp_path / "list.txt")], null=True)
    assert [(Path(v.path).name, v.size_bytes) for v in found] == [("a\nb.mp4", 0), ("c.mp4", None)]


def test_other_files_are_left_out_and_told(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.gif", "c.txt"):
        (tmp_path / name).touch()
    left_out = LeftOut()
    assert [Path(v.path).name for v in find_videos([str(tmp_path)], left_out=left_out)] == ["a.mp4"]
    assert sorted(Path(path).name for path in left_out.other_files) == ["b.gif", "c.txt"]
    found = find_videos([str(tmp_path / "*.*")])
    assert [Path(v.path).name for v in found] == ["a.mp4", "b.gif"]  # named, if by a pattern


def test_a_file_of_several_names_is_found_once_unless_asked(tmp_path: Path) -> None:
    names = ("a link.mp4", "b.mp4", "c hard.mp4", "d dangling.mp4")
    (tmp_path / "b.mp4").touch()
    (tmp_path / "a link.mp4").symlink_to("b.mp4")
    (tmp_path / "c hard.mp4").hardlink_to(tmp_path / "b.mp4")
    (tmp_path / "d dangling.mp4").symlink_to("nowhere.mp4")
    left_out = LeftOut()
    found = find_videos([str(tmp_path)], left_out=left_out)
    assert [Path(v.path).name for v in found] == ["b.mp4", "d dangling.mp4"]
    assert [Path(path).name for path in left_out.links] == ["c hard.mp4", "a link.mp4"]
    assert tuple(Path(v.path).name for v in find_videos([str(tmp_path)], all_links=True)) == names


@given(st.binary(min_size=1), st.binary(min_size=1))
@example(b"a\\xff.mp4", b"a\xff.mp4")
@example(b"a\\x5cxff", b"a\\xff")
def test_every_path_has_a_name_of_its_own(first: bytes, second: bytes) -> None:
    names = [VideoFile(os.fsdecode(path), 1, 1).name for path in (first, second)]
    assert (names[0] == names[1]) == (first == second)
    assert [os.fsencode(path_of(name)) for name in names] == [first, second]
    names[0].encode()  # any table can hold it


def test_names_are_what_they_were_where_nothing_is_wrong_with_them() -> None:
    for path in ("naïve, “quoted”.mp4", "C:\\videos\\x.mp4", "a\\xZZ"):
        assert VideoFile(path, 1, 1).name == path == path_of(path)


def test_a_folder_that_goes_while_it_is_searched_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b").mkdir()
    stat_ = Path.stat

    def refuse(self: Path, **options: Any) -> os.stat_result:
        if self.name == "b":
            raise PermissionError(13, "Permission denied")
        return stat_(self, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    assert [Path(video.path).name for video in find_videos([str(tmp_path)])] == ["a.mp4", "b"]
