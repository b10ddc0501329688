"""The ledger: what the newest rows of each video say."""

from pathlib import Path
from typing import Any

import pytest

from sqt_fast.errors import OutputError
from sqt_fast.table.ledger import Ledger, existing_ledger
from sqt_fast.table.parts import Parts
from sqt_fast.table.schema import Row, read_batches, to_table
from sqt_fast.video.archive import VideoFile
from tests.tables import write_table


def rows(path: str, *statuses: str, size_bytes: int | None = 1, mtime_ns: int | None = 1) -> list[Row]:
    return [Row(path, status, size_bytes=size_bytes, mtime_ns=mtime_ns) for status in statuses]


BASE = [*rows("cured", "damaged", "ok"), *rows("ill", "ok", "damaged", "ok"), *rows("well", "ok"), *rows("a", "error")]
NEW = [*rows("cured", "ok", size_bytes=2), *rows("well", "ok", "damaged", mtime_ns=None)]


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("base.parquet", "1.parquet", "2.parquet")]
    for path, content in zip(paths, (BASE, NEW, []), strict=True):
        write_table(to_table(content, None), path)
    return paths


def test_the_newest_rows_count(sources: list[Path]) -> None:
    ledger = Ledger(sources)
    assert ledger.done == {
        "cured": ("cured", 2, 1),
        "ill": ("ill", 1, 1),
        "well": ("well", 1, None),
        "a": ("a", 1, 1),
    }
    assert ledger.failed == {"a": "error", "ill": "damaged", "well": "damaged"}
    assert Ledger(sources[:1]).failed == {"a": "error", "cured": "damaged", "ill": "damaged"}
    assert Ledger(sources[:1]).num_rows == len(BASE)


def test_many_rows_of_one_video(tmp_path: Path) -> None:
    """More than are read at a time: what was seen before still counts."""
    content = [*rows("long", "damaged", *["ok"] * 3000), *rows("z", "ok")]
    write_table(to_table(content, None), tmp_path / "t.parquet")
    ledger = Ledger([tmp_path / "t.parquet"])
    assert ledger.failed == {"long": "damaged"}
    assert len(ledger.done) == 2
    assert ledger.num_rows == len(content)


def test_only_its_columns_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def read(path: Path, *columns: Any) -> Any:
        seen.extend(read_batches(path, *columns))
        return seen

    monkeypatch.setattr("sqt_fast.table.ledger.read_batches", read)
    write_table(to_table(BASE, None), tmp_path / "t.parquet")
    assert Ledger([tmp_path / "t.parquet"]).failed.keys() == {"a", "cured", "ill"}
    assert {name for batch in seen for name in batch.column_names} == {"path", "size_bytes", "mtime_ns", "status"}


def test_a_dry_run_finds_what_a_run_would(tmp_path: Path) -> None:
    output = tmp_path / "t.parquet"
    assert existing_ledger(output, overwrite=False).done == {}
    write_table(to_table(BASE, None), output)
    with Parts(output) as parts:
        parts.start({})
        parts.add(to_table(NEW, None))
    ledger = existing_ledger(output, overwrite=False)
    assert ledger.failed.keys() == {"a", "ill", "well"}
    videos = [VideoFile(name, 1, 1) for name in ("cured", "ill", "new")]
    assert [v.path for v in ledger.todo(videos, set(), retry_failed=False)] == ["cured", "new"]
    assert existing_ledger(output, overwrite=True).done == {}


def test_what_is_no_table_is_refused_but_not_by_a_dry_run(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_text("a,b\n1,2\n")
    with pytest.raises(OutputError, match="is not a table of sqt-fast"):
        Ledger([tmp_path / "t.parquet"])
    assert existing_ledger(tmp_path / "t.parquet", overwrite=False).done == {}
    assert list(tmp_path.iterdir()) == [tmp_path / "t.parquet"]
