"""Parquet files ↔ tables with the columns of records: which files there are, what each must be.

A row is written to a file of its own; `bench compact` later merges such files into one a
month and machine. Whoever reads gets both alike from here: a row that is in two files
for a moment counts once, and one whose file goes away meanwhile is found in the next.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

from bench.schema import SCHEMA_VERSION, columns

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

TEMPORARY = ".partial-"  # without .parquet at its end, so that no reader takes it for a record
SUFFIX = ".parquet"
KEY = ["run_id", "case_id", "round", "purpose"]  # what tells two tries apart, over all runs
RUN = re.compile(r"(?P<year>\d{4})(?P<month>\d{2})\d{2}T\d{6}Z-.+")
MERGED = re.compile(r"(?P<month>\d{4}-\d{2})-(?P<machine>[0-9a-f]{12})-[0-9a-f]{12}\.parquet")
TOGETHER = 512  # small tables that become one at a time: each has a price in memory of its own

Load = Callable[[str], "pa.Table"]


class Unusable(Exception):
    """Why a file is passed over."""


@cache
def arrow_schema() -> pa.Schema:
    """The Arrow schema, derived from the nouns."""
    import pyarrow as pa

    kinds = {
        bool: pa.bool_(),
        int: pa.int64(),
        float: pa.float64(),
        str: pa.string(),
        datetime: pa.timestamp("us", tz="UTC"),
        list[str]: pa.list_(pa.string()),
        list[float]: pa.list_(pa.float64()),
    }
    fields = [
        pa.field(c.name, kinds[c.type], c.nullable, {"description": c.description})
        for c in columns()
    ]
    return pa.schema(fields)


def schema_of(names: Iterable[str]) -> pa.Schema:
    """The part of the schema with these columns, each once."""
    import pyarrow as pa

    return pa.schema([arrow_schema().field(name) for name in dict.fromkeys(names)])


def below(folder: str | os.PathLike[str]) -> Iterator[str]:
    """Every Parquet file in `folder` and the folders in it."""
    for parent, _, names in os.walk(folder):
        yield from (os.path.join(parent, name) for name in names if name.endswith(SUFFIX))


def of_run(folder: str | os.PathLike[str], run_id: str) -> Iterator[str]:
    """The files below `folder` that can hold rows of a run."""
    for path in below(folder):
        name = os.path.basename(path)
        merged = MERGED.fullmatch(name)
        if name.startswith(f"{run_id}-") or (merged and month(run_id) in (None, merged["month"])):
            yield path


def month(run_id: str) -> str | None:
    """The month (UTC) a run began in, by its id; None where the id does not tell."""
    began = RUN.fullmatch(run_id)
    return f"{began['year']}-{began['month']}" if began else None


def gather(
    listing: Callable[[], Iterable[str]], load: Load, empty: pa.Table
) -> tuple[pa.Table, dict[str, str]]:
    """The rows of every file listed, and why any was passed over.

    Files are merged, and then deleted, while others read. A merged file appears before
    what it is made of goes, so a row can only be missed by a single listing; files are
    listed again until nothing is new. What was read from a file that went away since
    stays: it is true, and there once more in the merged file.
    """
    import pyarrow as pa

    whole, small = [empty], []
    passed_over: dict[str, str] = {}
    seen: set[str] = set()
    lost: set[str] = set()
    looks = 0
    while (fresh := sorted(p for p in listing() if p not in seen)) or looks < 1:
        looks += 1
        for path in fresh:
            try:
                small.append(load(path))
            except FileNotFoundError:
                if path not in lost:
                    lost.add(path)
                    continue
                passed_over[path] = "a link to nothing"
            except Unusable as reason:
                passed_over[path] = str(reason)
            seen.add(path)
            if len(small) == TOGETHER:
                whole.append(pa.concat_tables(small).combine_chunks())
                small = []
    return pa.concat_tables([*whole, *small]), passed_over


def load(
    path: str, schema: pa.Schema, *, run_id: str | None = None, coded: bool = False
) -> pa.Table:
    """The rows of a file, or of one run in it, in the columns of `schema`.

    coded: strings as numbers into a dictionary, which is many times smaller.
    Raises Unusable, or FileNotFoundError where the file went away.
    """
    with opened(path, schema, coded=coded) as file:
        groups: Sequence[int] = range(file.num_row_groups)
        if run_id is not None:
            groups = [g for g in groups if _may_hold(file, g, run_id)]
        table = rows(file, groups, schema, coded=coded)
    if run_id is not None:
        import pyarrow.compute as pc

        table = table.filter(pc.equal(table["run_id"], run_id))
    return _outside(table) if coded and len(table) > TOGETHER else table


def _outside(table: pa.Table) -> pa.Table:
    """A copy that Arrow's own allocator has no part in.

    It keeps twice what it is asked for, and what it keeps NumPy cannot use again.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    table = table.unify_dictionaries()  # each row group comes with its own
    return pc.take(table, pa.array(np.arange(len(table))), memory_pool=pa.system_memory_pool())


def opened(path: str, schema: pa.Schema, *, coded: bool = False) -> pq.ParquetFile:
    """A file of records. Raises as load does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if not coded:
            return pq.ParquetFile(path)
        source = pa.OSFile(path)
        metadata = pq.read_metadata(source)
        there = metadata.schema.to_arrow_schema().names
        strings = [f.name for f in schema if f.type == pa.string() and f.name in there]
        return pq.ParquetFile(source, metadata=metadata, read_dictionary=strings)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(error) from error


def rows(
    file: pq.ParquetFile, groups: Sequence[int], schema: pa.Schema, *, coded: bool = False
) -> pa.Table:
    """Row groups of a file in the columns of `schema`. Raises Unusable."""
    import pyarrow as pa

    there = file.schema_arrow.names
    if not {"schema_version", "run_id", "case_id"} <= set(there):
        raise Unusable("Parquet, but not a benchmark record")
    names = dict.fromkeys(["schema_version", "run_id", *schema.names])
    try:
        table = file.read_row_groups(
            list(groups),
            [name for name in names if name in there],
            use_threads=file.metadata.num_rows > TOGETHER,  # for fewer rows they cost more
        )
        # A file without rows has no version either: it is no record.
        if groups or not file.num_row_groups:
            _check_version(table)
        return _conform(table, schema, set(there), coded=coded)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(error) from error


def empty(schema: pa.Schema, *, coded: bool = False) -> pa.Table:
    """What `load` gives for a file without rows."""
    return _conform(schema.empty_table(), schema, set(schema.names), coded=coded)


def _unreadable(error: Exception) -> Unusable:
    return Unusable(f"not readable as Parquet ({str(error).splitlines()[0][:80]})")


def _may_hold(file: pq.ParquetFile, group: int, run_id: str) -> bool:
    """Whether a row group can hold rows of a run, by the least and greatest id in it."""
    place = next(
        (n for n in range(file.metadata.num_columns) if file.schema.column(n).path == "run_id"),
        None,
    )
    if place is None:
        return True  # and the reader will say what is wrong
    known = file.metadata.row_group(group).column(place).statistics
    if known is None or not known.has_min_max:
        return True
    return bool(known.min <= run_id <= known.max)


def _check_version(table: pa.Table) -> None:
    import pyarrow.compute as pc

    newest = pc.max(table["schema_version"]).as_py()
    if not isinstance(newest, int):
        raise Unusable("its schema_version is not a number")
    if newest > SCHEMA_VERSION:
        raise Unusable(
            f"written with schema {newest}, this version reads up to {SCHEMA_VERSION}; "
            "upgrade resnet-bench to read it"
        )


def _conform(table: pa.Table, schema: pa.Schema, there: set[str], *, coded: bool) -> pa.Table:
    """The columns of `schema`; those the file lacks are filled."""
    import pyarrow as pa

    absent = {c.name: c.default for c in columns() if c.name not in there}
    for field in schema:
        if not field.nullable and absent.get(field.name) is msgspec.NODEFAULT:
            raise Unusable(f"not a whole record, it lacks {field.name}")
    try:
        parts = [
            _filled(absent[f.name], len(table), f) if f.name in absent else table[f.name]
            for f in schema
        ]
        code = pa.dictionary(pa.int32(), pa.string())
        types = [code if coded and f.type == pa.string() else f.type for f in schema]
        # Nullability is a promise of the writer; a reader takes what older files hold.
        fields = [pa.field(f.name, t) for f, t in zip(schema, types, strict=True)]
        cast = [_as(part, kind) for part, kind in zip(parts, types, strict=True)]
        return pa.table(cast, schema=pa.schema(fields))
    except pa.ArrowException as error:
        raise Unusable(f"a column has another type ({str(error).splitlines()[0][:80]})") from error


def _filled(default: Any, count: int, field: pa.Field) -> pa.Array:
    """A column older than the file: what was not measured is null, a case was the default one."""
    import pyarrow as pa

    return pa.array([None if field.nullable else default] * count, field.type)


def _as(part: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    import pyarrow as pa

    if part.type == kind:
        return part
    if pa.types.is_dictionary(kind):
        return part.cast(kind.value_type).dictionary_encode()
    return part.cast(kind)


def sync(path: str | os.PathLike[str]) -> None:
    """Return when the disk holds what was written to a file, or to a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
