"""Lists of labelled videos: every form, every file name, and one line for whatever is wrong."""

import os
from pathlib import Path

import pytest

from sqt_fast.errors import ConfigError
from sqt_fast.train.lists import MAX_CLASSES, LabelledVideos, read_list


def text(folder: Path, content: str | bytes, name: str = "list.txt") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(source: Path, **options: object) -> str:
    with pytest.raises(ConfigError) as caught:
        read_list(source, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return str(caught.value)


def test_lines_of_mmaction2(tmp_path: Path) -> None:
    found = read_list(text(tmp_path, "a.mp4 2\nclips/b c.mp4 0\n/abs/d.mp4 2\n"))
    assert found == LabelledVideos(
        paths=(f"{tmp_path}/a.mp4", f"{tmp_path}/clips/b c.mp4", "/abs/d.mp4"),
        labels=(2, 0, 2),
        names=("class 0", "class 1", "class 2"),
        numbered=True,
    )
    assert len(found) == 3


def test_lines_may_be_empty_comments_or_of_windows(tmp_path: Path) -> None:
    found = read_list(text(tmp_path, b"\xef\xbb\xbfa.mp4 1\r\n\r\n# b.mp4 0\r\n   \r\n c  d.mp4   0 \r\ne.mp4 007"))
    assert [Path(path).name for path in found.paths] == ["a.mp4", "c  d.mp4", "e.mp4"]
    assert found.labels == (1, 0, 7)


@pytest.mark.parametrize("name", ["a 3 4.mp4", "naïve “b”.mp4", os.fsdecode(b"caf\xe9.mp4"), "u\u2028v.mp4", "x,y.mp4"])
def test_paths_hold_anything(tmp_path: Path, name: str) -> None:
    (path,) = read_list(text(tmp_path, os.fsencode(f"{name} 1\n"))).paths
    assert path == f"{tmp_path}/{name}"
    (path,) = read_list(text(tmp_path, os.fsencode(f'path,label\n"{name}",1\n'), "list.csv")).paths
    assert path == f"{tmp_path}/{name}"


def test_a_csv_may_have_more_columns_and_names_with_spaces(tmp_path: Path) -> None:
    content = '\ufefflabel,n,path\narm wrestling,1,a.mp4\n archery ,2,"b\nc.mp4"\n"naïve, “quoted”",3,d.mp4\n'
    found = read_list(text(tmp_path, content, "list.CSV"), root=Path("/videos"))
    assert found.names == ("archery", "arm wrestling", "naïve, “quoted”")
    assert found.labels == (1, 0, 2)
    assert found.paths == ("/videos/a.mp4", "/videos/b\nc.mp4", "/videos/d.mp4")
    assert not found.numbered


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    for name in ("run/b.mp4", "run/more/a.MKV", "jump high/c.avi", "jump high/notes.txt", ".cache/d.mp4", "e.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = read_list(tmp_path)
    assert found.names == ("jump high", "run")
    assert found.labels == (0, 1, 1)
    assert found.paths == tuple(f"{tmp_path}/{name}" for name in ("jump high/c.avi", "run/b.mp4", "run/more/a.MKV"))
    assert read_list(tmp_path, names=("run", "walk", "jump high")).labels == (2, 0, 0)


def test_names_say_which_class_has_which_number(tmp_path: Path) -> None:
    names = ("run", "walk", "jump")
    assert read_list(text(tmp_path, "a.mp4 jump\nb.mp4 run\n"), names=names).labels == (2, 0)
    by_number = read_list(text(tmp_path, "a.mp4 1\n"), names=names)
    assert (by_number.labels, by_number.names, by_number.numbered) == ((1,), names, False)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a.mp4 0\n\nb.mp4\n", "line 3: 'b.mp4': expected a path, a space and a class number or name"),
        ("", "names no video"),
        ("# nothing\n\n", "names no video"),
        (f"a.mp4 {MAX_CLASSES}\n", f"line 1: label '{MAX_CLASSES}': expected 0 to {MAX_CLASSES - 1}"),
        ("a.mp4 1\nb.mp4 " + "9" * 5000, "line 2: label '999"),
    ],
    ids=["no label", "empty", "comments", "too many classes", "a number of 5000 digits"],
)
def test_what_is_wrong_with_lines(tmp_path: Path, content: str, said: str) -> None:
    source = text(tmp_path, content)
    message = refusal(source)
    assert message.startswith(str(source))
    assert said in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("file,label\na,1\n", "columns ['file', 'label']: expected path and label"),
        ("", "columns None: expected path and label"),
        ("path,label\n", "names no video"),
        ("path,label\na.mp4,1\n,2\n", "line 3: expected a path and a label"),
        ("path,label\na.mp4\n", "line 2: expected a path and a label"),
        ("path,label\na.mp4,  \n", "line 2: expected a path and a label"),
        ("path,label\n" + "x" * 200_000 + ",1\n", "cannot be read (field larger than field limit"),
    ],
    ids=["columns", "empty", "header", "no path", "short", "blank label", "endless field"],
)
def test_what_is_wrong_with_a_csv(tmp_path: Path, content: str, said: str) -> None:
    assert said in refusal(text(tmp_path, content, "list.csv"))


def test_labels_that_are_none_of_the_names(tmp_path: Path) -> None:
    names = ("run", "walk", "jump", "sit")
    message = refusal(text(tmp_path, "a.mp4 run\nb.mp4 fly\n"), names=names)
    assert message.endswith("line 2: label 'fly': expected one of 4 names (run, walk, jump, ...); see --label-names")
    assert "line 1: label '4': expected 0 to 3" in refusal(text(tmp_path, "a.mp4 4\n"), names=names)
    assert "line 2: label '-1': expected 0 to 3" in refusal(text(tmp_path, "a.mp4 1\nb.mp4 -1\n"), names=names)


@pytest.mark.parametrize("name", ["nowhere.txt", "nowhere.csv", "x/../nowhere"])
def test_lists_that_are_not_there(tmp_path: Path, name: str) -> None:
    assert "cannot be read (no such file or directory)" in refusal(tmp_path / name)


def test_a_folder_without_classes(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    assert "names no video; give a folder for each class" in refusal(tmp_path)


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert "cannot be read (permission denied)" in refusal(tmp_path)
