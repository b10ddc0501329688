"""The merge: what a join in memory gives, row for row, in little memory, and whole or not at all."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sqt_fast.table.merge
from sqt_fast.errors import OutputError
from sqt_fast.table.merge import Counts, merge
from sqt_fast.table.parts import Parts
from sqt_fast.table.schema import STATUSES, Row, schema, to_table
from tests.tables import read_table, write_table

SUFFIXES = pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
DIM = 3


def join(tables: Sequence[pa.Table]) -> pa.Table:
    """Join tables of one schema in memory, newest last: the truth."""
    owner: dict[str, int] = {}
    for i, table in enumerate(tables):
        owner.update(dict.fromkeys(table["path"].to_pylist(), i))
    kept = [
        t.filter(pa.array([owner[p] == i for p in t["path"].to_pylist()], pa.bool_())) for i, t in enumerate(tables)
    ]
    whole = pa.concat_tables(kept).combine_chunks()
    order = pc.sort_indices(whole, [(n, "ascending") for n in ("path", "start_s", "clip_index")])
    return whole.take(order)


def counted(table: pa.Table) -> Counts:
    rows = table.select(["path", "status"]).to_pylist()
    return Counts(len(rows), {row["path"]: row["status"] for row in rows if row["status"] != "ok"})


def bits(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows so that equal means: the same bits."""
    return [{n: repr(v) for n, v in row.items()} for row in table.to_pylist()]


def write_sources(tables: Sequence[pa.Table], base: Path, dim: int | None) -> list[Path]:
    """Write the first table to ``base``, the others into the parts folder beside it."""
    write_table(tables[0], base, {"embedding_dim": dim})
    with Parts(base) as parts:
        parts.clear()
        parts.start({})
        for table in tables[1:]:
            parts.add(table)
        return [base, *parts.files()]


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
some_sources = st.lists(text, min_size=1, max_size=4).flatmap(
    lambda paths: st.lists(
        st.lists(
            st.builds(
                Row,
                path=st.sampled_from([*paths, "a", "Z", "é", "\U0001f600", "\uffff"]),
                status=st.sampled_from(["ok", "ok", *STATUSES]),
                clip_index=st.none() | st.integers(0, 3),
                start_s=st.none() | st.sampled_from([0.0, -0.0, 1.5]) | st.floats(allow_nan=False),
                topk_labels=st.none() | st.lists(text, max_size=3),
                embedding=st.none() | st.floats(width=16, allow_nan=False).map(lambda v: np.full(DIM, v, np.float16)),
            ),
            max_size=8,
        ),
        min_size=1,
        max_size=5,
    )
)


@SUFFIXES
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sources=some_sources, dim=st.sampled_from([None, DIM]), group_bytes=st.sampled_from([1, 2000, 6000, 20_000, 2**23])
)
def test_it_is_the_join(
    tmp_path: Path, suffix: str, sources: list[list[Row]], dim: int | None, group_bytes: int
) -> None:
    for number, row in enumerate(row for rows in sources for row in rows):
        object.__setattr__(row, "label_id", number)  # rows of equal keys stay in their order
    tables = [to_table(rows, dim) for rows in sources]
    base, target = tmp_path / "t.parquet", tmp_path / f"t{suffix}"
    counts = merge(write_sources(tables, base, dim), target, {"embedding_dim": dim}, group_bytes=group_bytes)
    merged, metadata = read_table(target, dim)
    truth = join(tables)
    assert bits(merged) == bits(truth)
    assert merged.equals(truth)
    assert metadata == ({"embedding_dim": dim} if suffix == ".parquet" else None)
    assert counts == counted(truth)
    once = tmp_path / f"once{suffix}"
    write_table(truth, once, {"embedding_dim": dim})
    assert suffix == ".parquet" or target.read_bytes() == once.read_bytes()  # chunks leave no trace


def test_the_newest_rows_of_a_path_win(tmp_path: Path) -> None:
    old = to_table([Row("a", clip_index=0, label="old"), Row("a", clip_index=1), Row("b", label="old")], None)
    new = to_table([Row("c", label="new"), Row("a", clip_index=0, label="new")], None)
    merge(write_sources([old, new], tmp_path / "t.parquet", None), tmp_path / "t.parquet")
    whole = read_table(tmp_path / "t.parquet")[0]
    assert list(zip(whole["path"].to_pylist(), whole["label"].to_pylist(), strict=True)) == [
        ("a", "new"),
        ("b", "old"),
        ("c", "new"),
    ]


def test_rows_of_some_paths_can_be_left_out(tmp_path: Path) -> None:
    tables = [to_table([Row("a"), Row("b"), Row("b", "damaged")], None), to_table([Row("c"), Row("d", "error")], None)]
    sources = write_sources(tables, tmp_path / "t.parquet", None)
    counts = merge(sources, tmp_path / "t.parquet", without={"b", "d", "never seen"})
    assert read_table(tmp_path / "t.parquet")[0]["path"].to_pylist() == ["a", "c"]
    assert counts == Counts(2, {})


def test_sorted_by_path_then_time_with_nulls_last(tmp_path: Path) -> None:
    rows = [
        Row("b", start_s=0.0, clip_index=0),
        Row("a", status="damaged"),
        Row("a", start_s=1.0, status="damaged"),
        Row("a", start_s=1.0, clip_index=1),
        Row("a", start_s=0.0, clip_index=0),
        Row("a", start_s=10.0, clip_index=2),
        Row("B", start_s=0.0),
    ]
    tables = [to_table(some, None) for some in (rows[:3], [], rows)]
    merge(write_sources(tables, tmp_path / "t.parquet", None), tmp_path / "t.parquet")
    whole = read_table(tmp_path / "t.parquet")[0]
    assert [(r["path"], r["start_s"], r["clip_index"]) for r in whole.to_pylist()] == [
        ("B", 0.0, None),
        ("a", 0.0, 0),
        ("a", 1.0, 1),
        ("a", 1.0, None),
        ("a", 10.0, 2),
        ("a", None, None),
        ("b", 0.0, 0),
    ]


def shuffled(num_videos: int, dim: int | None, num_tables: int) -> list[pa.Table]:
    """Return tables of videos in no order, some of them in several."""
    dice = np.random.default_rng(0)
    tables = []
    for i in range(num_tables):
        some = dice.permutation(num_videos)[: num_videos // 2]
        rows = [
            Row(f"{v:06}", clip_index=c, start_s=float(c), label=f"{i}", embedding=np.full(dim or 0, v, np.float16))
            for v in some
            for c in range(3)
        ]
        tables.append(to_table(rows, dim))
    return tables


@pytest.mark.parametrize("group_bytes", [1 << 14, 1 << 16, 1 << 20])
def test_parts_in_no_order(tmp_path: Path, group_bytes: int) -> None:
    """Every chunk of the output draws on every part, and the cache is too small for them."""
    tables = shuffled(600, 64, 6)
    merge(write_sources(tables, tmp_path / "t.parquet", 64), tmp_path / "t.parquet", group_bytes=group_bytes)
    merged = read_table(tmp_path / "t.parquet")[0]
    assert merged.equals(join(tables))
    groups = pq.ParquetFile(tmp_path / "t.parquet").metadata
    assert groups.num_row_groups >= merged.nbytes // group_bytes


def test_parquet_says_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    merge(write_sources([to_table([Row("a")], DIM)] * 2, path, DIM), path, {"who": "é"})
    found = pq.read_schema(path)
    assert read_table(path)[1] == {"who": "é"}
    assert [f.metadata[b"description"] for f in found] == [f.metadata[b"description"] for f in schema(DIM)]
    assert found.names == schema(DIM).names


def test_a_failure_of_a_video_counts_once(tmp_path: Path) -> None:
    rows = [Row("a", "damaged"), Row("a", "damaged"), Row("a"), Row("b", "error"), Row("c", "damaged"), Row("d")]
    write_table(to_table(rows, None), tmp_path / "t.parquet")
    counts = merge([tmp_path / "t.parquet"], tmp_path / "t.parquet")
    assert counts == Counts(6, {"a": "damaged", "b": "error", "c": "damaged"})


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_other_columns_are_refused(tmp_path: Path) -> None:
    sources = write_sources([to_table([Row("a")], 3), to_table([Row("b")], None)], tmp_path / "t.parquet", 3)
    with pytest.raises(OutputError, match=r"part-000001.parquet: has other columns than .*t.parquet; use --overwrite"):
        merge(sources, tmp_path / "t.parquet")


def test_a_damaged_source_is_named(tmp_path: Path) -> None:
    base = tmp_path / "t.parquet"
    sources = write_sources([to_table([Row("a")], DIM)] * 3, base, DIM)
    before = base.read_bytes()
    data = bytearray(sources[1].read_bytes())
    data[4:600] = bytes(596)
    sources[1].write_bytes(data)
    with pytest.raises(OutputError, match=r"part-000001\.parquet: .* is not a table"):
        merge(sources, base)
    assert base.read_bytes() == before


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    sources = write_sources([to_table([Row("a")], DIM)] * 2, tmp_path / "t.parquet", DIM)
    for some in (sources, sources[1:]):
        with pytest.raises(OutputError, match=r"output .*nowhere/t\.csv: cannot be written \(no such"):
            merge(some, tmp_path / "nowhere" / "t.csv")


class KilledError(BaseException):
    """What no handler expects."""


@pytest.mark.parametrize("new", [True, False], ids=["new", "old"])
def test_ended_in_the_middle(tmp_path: Path, new: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "t.parquet"
    tables = shuffled(60, DIM, 4)
    sources = write_sources(tables, base, DIM)
    if new:
        for path in tmp_path.glob("t.*"):
            if path.is_file():
                path.unlink()
        sources, tables = sources[1:], tables[1:]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    read, reads = sqt_fast.table.merge._Group.read, iter(range(10**6))

    def killed(group: Any, target: pa.Schema) -> pa.Table:
        if next(reads) == 30:
            raise KilledError
        return read(group, target)

    with monkeypatch.context() as patch:
        patch.setattr(sqt_fast.table.merge._Group, "read", killed)
        with pytest.raises(KilledError):
            merge(sources, base, {"embedding_dim": DIM, "new": True}, group_bytes=6000)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    merge(sources, base, {"embedding_dim": DIM})
    assert read_table(base)[0].equals(join(tables))


KILL = """
import os, signal, sys
from pathlib import Path
from sqt_fast.table.merge import merge
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
merge([Path(p) for p in sys.argv[1:]], Path(sys.argv[1]), {"embedding_dim": 3, "new": True})
"""


def test_killed_at_the_end(tmp_path: Path) -> None:
    """What it leaves lies beside the old table until the next run tidies up."""
    base = tmp_path / "t.parquet"
    tables = shuffled(60, DIM, 4)
    sources = write_sources(tables, base, DIM)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = subprocess.run([sys.executable, "-c", KILL, *map(str, sources)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.glob(".*.tmp"))
    with Parts(base) as parts:
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        merge([base, *parts.files()], base, {"embedding_dim": DIM})
    assert read_table(base)[0].equals(join(tables))


# -- memory -----------------------------------------------------------------------------------------------------------

MEASURE = """
import resource, sys
from pathlib import Path
from sqt_fast.table.merge import merge

def peak_mb():  # of this program alone: ru_maxrss counts what its parent had, too
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024

resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
sources = sorted(Path(sys.argv[1]).glob("*.parquet"))
before = peak_mb()
merge(sources, Path(sys.argv[2]))
print(peak_mb() - before)
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize("layout", ["parts", "one row group"])
def test_memory_and_open_files_are_bounded(tmp_path: Path, layout: str) -> None:
    """400 MB of embeddings."""
    dim, num_parts, num_rows, folder = 2048, 60, 1700, tmp_path / "sources"
    folder.mkdir()
    values = (
        np.arange(num_rows * dim).reshape(num_rows, dim) // 1024 % 1000
    )  # little to compress, as large in memory as any
    rows = [Row("", clip_index=i, embedding=v) for i, v in enumerate(values.astype(np.float16))]
    part = to_table(rows, dim)
    tables = [part.set_column(0, schema(dim).field("path"), pa.array([f"{i:03}"] * num_rows)) for i in range(num_parts)]
    assert sum(table.nbytes for table in tables) > 400e6
    if layout == "parts":
        for i, table in enumerate(tables):
            write_table(table, folder / f"{i:03}.parquet")
    else:
        pq.write_table(pa.concat_tables(tables), folder / "whole.parquet", compression="zstd", use_dictionary=False)
    command = [sys.executable, "-c", MEASURE, str(folder), str(tmp_path / "t.parquet")]
    grown_mb = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown_mb < 250  # 170 seen
    merged = pq.ParquetFile(tmp_path / "t.parquet")
    assert merged.metadata.num_rows == num_rows * num_parts
    assert merged.read_row_group(0).slice(0, 100).equals(tables[0].slice(0, 100))
