"""The parts folder: one run at a time, nothing stale, gone when done."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sqt_fast.errors import OutputError
from sqt_fast.table.parts import Parts
from sqt_fast.table.schema import Row, to_table
from tests.tables import read_table

HOLD = """
import sys
from pathlib import Path
from sqt_fast.table.parts import Parts
with Parts(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def rows(*paths: str) -> Any:
    return to_table([Row(path) for path in paths], None)


def videos(parts: Parts) -> list[list[str]]:
    return [read_table(path)[0]["path"].to_pylist() for path in parts.files()]


def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    output = tmp_path / "t.parquet"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLD, str(output)], stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="another run is writing it"), Parts(output):
            pass
        assert (tmp_path / "t.parquet.parts").is_dir()
        with Parts(tmp_path / "other.parquet"):
            pass
        other.kill()
    with Parts(output):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_in_one_process_is_refused(tmp_path: Path) -> None:
    with Parts(tmp_path / "t.csv"):
        with pytest.raises(OutputError, match="another run"), Parts(tmp_path / "t.csv"):
            pass
        assert (tmp_path / "t.csv.parts/lock").exists()  # the refused one removed nothing


def test_parts_stay_until_removed(tmp_path: Path) -> None:
    output = tmp_path / "new" / "t.parquet"
    with Parts(output) as parts:
        assert parts.run is None
        assert parts.files() == []
        parts.start({"settings": {"a": 1}})
        for i in range(12):
            parts.add(rows(f"v{i}"))
    with Parts(output) as parts:
        assert parts.run == {"settings": {"a": 1}}
        assert videos(parts) == [[f"v{i}"] for i in range(12)]
        parts.add(rows("again"))
        assert videos(parts)[-1] == ["again"]
        parts.remove()
    assert not parts.folder.exists()


def test_numbers_go_on_past_six_digits(tmp_path: Path) -> None:
    with Parts(tmp_path / "t.parquet") as parts:
        parts.start({})
        parts.add(rows("old"))
        (parts.folder / "part-000001.parquet").rename(parts.folder / "part-000099.parquet")
        parts.add(rows("new"))
        assert videos(parts) == [["old"], ["new"]]


def test_clear_forgets_the_run_but_keeps_the_lock(tmp_path: Path) -> None:
    with Parts(tmp_path / "t.parquet") as parts:
        parts.start({"a": 1})
        parts.add(rows("v"))
        parts.clear()
        assert parts.run is None
        assert parts.files() == []
        with pytest.raises(OutputError), Parts(tmp_path / "t.parquet"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_what_killed_runs_leave_is_tidied_up(tmp_path: Path) -> None:
    output = tmp_path / "t[1].parquet"
    with Parts(output) as parts:
        parts.start({})
        parts.add(rows("v"))
    (parts.folder / ".part-000002.parquet.abc12_xy.tmp").write_text("half")
    (tmp_path / ".t[1].parquet.abc12_xy.tmp").write_text("half")
    (tmp_path / ".t1.parquet.abc12_xy.tmp").write_text("another table's")
    (tmp_path / ".t[1].parquet.x.abc12_xy.tmp").write_text("that of a table called t[1].parquet.x")
    with Parts(output) as parts:
        assert len(parts.files()) == 1
    assert {p.name for p in parts.folder.iterdir()} == {"lock", "run.json", "part-000001.parquet"}
    assert {p.name for p in tmp_path.iterdir()} == {
        parts.folder.name,
        ".t1.parquet.abc12_xy.tmp",
        ".t[1].parquet.x.abc12_xy.tmp",
    }


def test_parts_without_a_run_belong_to_a_finished_table(tmp_path: Path) -> None:
    """A run that was killed while it removed the folder of a complete table."""
    output = tmp_path / "t.parquet"
    with Parts(output) as parts:
        parts.start({})
        parts.add(rows("v"))
        (parts.folder / "run.json").unlink()
    with Parts(output) as parts:
        assert parts.files() == []
    assert list(tmp_path.iterdir()) == []


def test_run_json_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    with Parts(tmp_path / "t.parquet") as parts:
        parts.start({})
        parts.add(rows("v"))
        monkeypatch.setattr("sqt_fast.table.parts.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            parts.remove()
        monkeypatch.undo()
        assert parts.run is None


@pytest.mark.parametrize("text", ["", "{", "null", "[1]"])
def test_a_damaged_run_json_is_named_with_a_remedy_that_works(tmp_path: Path, text: str) -> None:
    with Parts(tmp_path / "t.parquet") as parts:
        (parts.folder / "run.json").write_text(text)
        with pytest.raises(OutputError, match=r"run\.json: cannot be read; remove .*t\.parquet\.parts"):
            _ = parts.run


@pytest.mark.parametrize("place", ["/proc/nowhere/t.parquet", "file/t.parquet"])
def test_a_place_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write beside it"), Parts(tmp_path / place):
        pass


def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o555)
    with pytest.raises(OutputError, match="cannot write beside it"), Parts(tmp_path / "t.parquet"):
        pass


@pytest.mark.parametrize("action", ["start", "add", "clear", "remove"])
def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with Parts(tmp_path / "t.parquet") as parts:
        parts.start({})
        for name in ("sqt_fast.table.parts.replace_file", "sqt_fast.table.schema.replace_file"):
            monkeypatch.setattr(name, full)
        monkeypatch.setattr(Path, "unlink", full)
        do = {"start": lambda: parts.start({}), "add": lambda: parts.add(rows("v"))}
        with pytest.raises(OutputError, match=r"cannot be written \(no space left on device\)"):
            do.get(action, getattr(parts, action))()
        monkeypatch.undo()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "t.parquet.parts").mkdir()
    (tmp_path / "t.parquet.parts" / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="cannot write beside it"), Parts(tmp_path / "t.parquet"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_run_json_that_may_not_be_read_now_is_not_to_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with Parts(tmp_path / "t.parquet") as parts:
        parts.start({})
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", refuse)
            with pytest.raises(OutputError, match=r"run\.json: cannot be read \(permission denied\)$"):
                _ = parts.run


@pytest.mark.parametrize("leftover", [".t.parquet.abc12_xy.tmp", "t.parquet.parts/.run.json.abc12_xy.tmp"])
def test_a_leftover_that_may_not_be_removed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leftover: str
) -> None:
    (tmp_path / "t.parquet.parts").mkdir()
    (tmp_path / leftover).touch()

    def refuse(*args: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        wanted = r"t\.parquet: cannot write beside it \(permission denied\)$"
        with pytest.raises(OutputError, match=wanted), Parts(tmp_path / "t.parquet"):
            pass
    with Parts(tmp_path / "t.parquet"):  # the refused one holds no lock
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_listed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parts would look as if they were not there, and be written over."""
    output = tmp_path / "t.parquet"
    with Parts(output) as parts:
        parts.start({})
        parts.add(rows("v"))

    def refuse(folder: Path) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refuse)
        with pytest.raises(OutputError, match=r"cannot write beside it \(input/output error\)$"), Parts(output):
            pass
        with pytest.raises(OutputError, match=r"t\.parquet\.parts: cannot be read \(input/output error\)$"):
            Parts(output).files()
    with Parts(output) as parts:
        assert videos(parts) == [["v"]]
