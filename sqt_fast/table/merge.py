"""Merge a table and the parts that came after it into one, in bounded memory.

Of the rows only their keys are ever held all at once, some 60 bytes each: they say which rows stay, and in which
order. The rows themselves are then gathered in that order, chunk by chunk. Parts are nearly in the order of the
table, because videos are labelled in it, so each is read about once; any other order is right too, but slower.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sqt_fast.errors import OutputError
from sqt_fast.files import temporary_beside
from sqt_fast.table.schema import (
    GROUP_BYTES,
    Table,
    read_batches,
    read_schema,
    reading,
    regroup,
    write_batches,
    write_parquet,
    writing,
)

KEYS = ("path", "start_s", "clip_index")  # the order of the table, nulls last
LEAST_ROW_BYTES = 256  # about what a row without an embedding takes; a file may hold it in less
CACHED_GROUPS = 3


@dataclass
class Counts:
    """How many rows a table has, and which of its videos are not ok: their status by path."""

    rows: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def watch(self, batches: Iterable[Table]) -> Iterator[Table]:
        """Count what passes by."""
        for batch in batches:
            self.rows += batch.num_rows
            failed = batch.select(["path", "status"]).filter(pc.not_equal(batch["status"], "ok"))
            self.failed.update(zip(*(column.to_pylist() for column in failed.columns), strict=True))
            yield batch


def merge(
    sources: Sequence[Path],
    output: Path,
    metadata: dict[str, Any] | None = None,
    *,
    without: Collection[str] = (),
    group_bytes: int = GROUP_BYTES,
) -> Counts:
    """Write the rows of ``sources``, newest last, to ``output``, which may be one of them, sorted by ``KEYS``.

    Of a path that several hold, the newest one's rows stay; of the paths ``without``, none do. ``output`` is at every
    moment its old self or complete. group_bytes: size of the row groups; about 15 times as much is held. Raises
    OutputError.
    """
    target = read_schema(sources[0])
    counts = Counts()
    with ExitStack() as copies:
        groups: list[_Group] = []
        for number, source in enumerate(sources):
            if not read_schema(source).equals(target):
                raise OutputError(f"output {source}: has other columns than {sources[0]}; use --overwrite")
            found = _find_groups(number, source)
            if any(group.least_bytes > 2 * group_bytes for group in found):
                copy = copies.enter_context(_copied(source, target, output, group_bytes))
                found = _find_groups(number, copy)
            groups += found
        rows = _gather(groups, _order(groups, target, without), target, group_bytes)
        write_batches(counts.watch(rows), target, output, metadata, group_bytes=group_bytes)
    return counts


@dataclass(frozen=True, slots=True)
class _Group:
    """A row group of a Parquet file. source: the number of the table it belongs to, newest last."""

    source: int
    path: Path
    number: int
    num_rows: int
    size_bytes: int

    @property
    def least_bytes(self) -> int:
        """What its rows take in memory, at least."""
        return max(self.size_bytes, self.num_rows * LEAST_ROW_BYTES)

    def read(self, target: pa.Schema) -> Table:
        """Return the columns of ``target``. One thread: many would each hold memory back, and writing is slower."""
        with reading(self.path), pq.ParquetFile(self.path, pre_buffer=False) as file:
            table = file.read_row_group(self.number, columns=target.names, use_threads=False)
            return pa.Table.from_arrays([table[name] for name in target.names], schema=target)


def _find_groups(source: int, path: Path) -> list[_Group]:
    with reading(path), pq.ParquetFile(path) as file:
        found = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        return [_Group(source, path, i, group.num_rows, group.total_byte_size) for i, group in enumerate(found)]


@contextmanager
def _copied(source: Path, target: pa.Schema, output: Path, group_bytes: int) -> Iterator[Path]:
    """Copy a table with large row groups to a file beside ``output``."""
    with writing(output), temporary_beside(output) as copy:
        with copy.open("wb") as file:
            write_parquet(regroup(read_batches(source), group_bytes), target, file)
        yield copy


def _order(groups: Sequence[_Group], target: pa.Schema, without: Collection[str]) -> NDArray[np.int64]:
    """Return which rows stay, in the order of the table. Rows are counted from 0 through all groups."""
    if not groups:
        return np.zeros(0, np.int64)
    keys = pa.schema([target.field(name) for name in KEYS])
    tables = []
    for group in groups:
        table = group.read(keys)
        tables.append(table.set_column(0, "path", table["path"].dictionary_encode()))  # a path is held once a group
    table = pa.concat_tables(tables).unify_dictionaries()
    path = table["path"].combine_chunks()
    paths, codes = path.dictionary, path.indices.to_numpy()
    sources = np.repeat([group.source for group in groups], [group.num_rows for group in groups])
    newest = np.zeros(len(paths), np.int64)  # source of each path
    np.maximum.at(newest, codes, sources)
    newest[pc.is_in(paths, pa.array(sorted(without), pa.string())).to_numpy(zero_copy_only=False)] = -1
    stays = np.flatnonzero(newest[codes] == sources)

    rank = np.argsort(pc.sort_indices(paths).to_numpy())  # of each path
    sortable = table.set_column(0, "path", pa.array(rank[codes])).take(stays)
    order = pc.sort_indices(sortable, [(name, "ascending") for name in KEYS])
    return np.asarray(stays[order.to_numpy()])


def _gather(groups: Sequence[_Group], order: NDArray[np.int64], target: pa.Schema, group_bytes: int) -> Iterator[Table]:
    """Yield the rows in ``order``, about half a group at a time."""
    cache = _Cache(groups, target, CACHED_GROUPS * group_bytes)
    starts = np.cumsum([0, *(group.num_rows for group in groups)])
    row_bytes = max((group.least_bytes // max(1, group.num_rows) for group in groups), default=0)
    done = 0
    while done < len(order):
        rows = order[done : done + max(1, group_bytes // 2 // row_bytes)]
        done += len(rows)
        owners = np.searchsorted(starts, rows, "right") - 1
        by_owner = np.argsort(owners, kind="stable")
        numbers, firsts = np.unique(owners[by_owner], return_index=True)
        shares = zip(numbers, np.split(rows[by_owner], firsts[1:]), strict=True)
        table = pa.concat_tables([cache[number].take(share - starts[number]) for number, share in shares])
        if len(numbers) > 1:
            table = table.take(np.argsort(by_owner))
        row_bytes = max(row_bytes, table.nbytes // len(rows))
        yield table


class _Cache:
    """Row groups in memory: those that were used last."""

    def __init__(self, groups: Sequence[_Group], target: pa.Schema, limit_bytes: int) -> None:
        self.groups, self.target, self.limit_bytes = groups, target, limit_bytes
        self.held: OrderedDict[int, Table] = OrderedDict()
        self.size_bytes = 0

    def __getitem__(self, number: int) -> Table:
        if number in self.held:
            self.held.move_to_end(number)
            return self.held[number]
        table = self.groups[number].read(self.target)
        self.size_bytes += table.nbytes
        while self.held and self.size_bytes > self.limit_bytes:
            self.size_bytes -= self.held.popitem(last=False)[1].nbytes
        self.held[number] = table
        return table
