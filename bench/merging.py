"""One file out of many, proven before any of them goes."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from msgspec import Struct

from bench import tables
from bench.digests import Numbers, digests
from bench.errors import CannotStore
from bench.tables import TOGETHER, Unusable

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

ROWS, BYTES = 10_000, 2**26  # of a row group at most: what is held in memory at a time

State = tuple[int, int, int]


class Merge(Struct):
    """What became of the files: how those looked that are in the new one, why others are not."""

    gone: dict[str, State]
    left: dict[str, str]


def merge(folder: Path, name: str, paths: list[str], partial: Path) -> Merge:
    """Write the rows of all `paths` to one file in `folder` and delete them.

    Its name is `name` and a hash of what is in it, so that no two files with different rows
    are ever called the same. Raises CannotStore or OSError; then every row is still there.
    """
    found = Merge({}, {})
    try:
        numbers = _write(partial, paths, found)
        target = folder / f"{name}-{_content(numbers)}{tables.SUFFIX}"
        if set(found.gone) <= {str(target)}:
            return Merge({}, found.left)
        _prove(partial, numbers)
        if target.exists() and str(target) not in found.gone:
            raise CannotStore(
                f"{target} is in the way: it should hold these rows and cannot be read."
            )
        partial.replace(target)
        tables.sync(folder)
        found.gone.pop(str(target), None)
        for path, state in found.gone.items():
            if _state(path) == state:
                os.unlink(path)
        return found
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def refuse_unknown(file: pq.ParquetFile) -> None:
    """Columns of another version would be lost. Raises Unusable."""
    unknown = sorted(set(file.schema_arrow.names) - set(tables.arrow_schema().names))
    if unknown:
        raise Unusable(f"it has columns this version does not know: {', '.join(unknown)}")


def writer(file: BinaryIO) -> pq.ParquetWriter:
    """Writes merged files so that a few columns of them are read fast."""
    import pyarrow.parquet as pq

    schema = tables.arrow_schema()
    return pq.ParquetWriter(
        file,
        schema,
        compression="zstd",
        use_dictionary=[_leaf(f) for f in schema if _is_text(f)],
        write_statistics=[f.name for f in schema if not _is_list(f)],
    )


def _write(partial: Path, paths: list[str], found: Merge) -> list[Numbers]:
    """Write every different row once and sync. Returns the digests of each row group's rows."""
    seen: set[int] = set()
    groups: list[Numbers] = []
    with partial.open("wb") as file:
        with writer(file) as made:
            for table in _batches(_pieces(paths, found)):
                numbers = digests(table)
                new = _first(numbers, seen)
                if new.any():
                    made.write_table(table.filter(new), row_group_size=len(table))
                    groups.append(numbers[new])
        file.flush()
        os.fsync(file.fileno())
        # What is read back must come from the disk, not from memory that was never at risk.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return groups


def _pieces(paths: list[str], found: Merge) -> Iterator[pa.Table]:
    """The rows of each path, a row group at a time; a path that ends well is in `found.gone`."""
    schema = tables.arrow_schema()
    for path in paths:
        try:
            state = _state(path)
            with tables.opened(path, schema) as file:
                refuse_unknown(file)
                for group in range(file.num_row_groups):
                    yield _strict(tables.rows(file, [group], schema), schema)
            found.gone[path] = state
        except FileNotFoundError:
            found.left[path] = "it went away"
        except Unusable as reason:
            found.left[path] = str(reason)


def _strict(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """With the promises of a writer. Raises Unusable."""
    import pyarrow as pa

    for field in schema:
        if not field.nullable and table[field.name].null_count:
            raise Unusable(f"not a whole record, {field.name} is null")
    return pa.Table.from_arrays(table.columns, schema=schema)


def _batches(pieces: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in as few tables as may be in memory."""
    import pyarrow as pa

    waiting: list[pa.Table] = []
    count = size = 0
    for piece in pieces:
        waiting.append(piece)
        count, size = count + len(piece), size + piece.nbytes
        full = count >= ROWS or size >= BYTES
        if full or len(waiting) >= TOGETHER:
            waiting = [pa.concat_tables(waiting).combine_chunks()]
        if full:
            yield waiting.pop()
            count = size = 0
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def _first(numbers: Numbers, seen: set[int]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which rows are there for the first time; adds them to `seen`."""
    new = np.zeros(len(numbers), bool)
    for place, number in enumerate(numbers.tolist()):
        if number not in seen:
            seen.add(number)
            new[place] = True
    return new


def _prove(partial: Path, groups: list[Numbers]) -> None:
    """Read the file back and hold every row against what was to be written."""
    schema = tables.arrow_schema()
    try:
        with tables.opened(str(partial), schema) as file:
            same = file.num_row_groups == len(groups) and all(
                np.array_equal(digests(tables.rows(file, [group], schema)), numbers)
                for group, numbers in enumerate(groups)
            )
    except Unusable:
        same = False
    if not same:
        raise CannotStore(
            f"{partial.name} does not read back as it was written: disk or memory is not to be "
            "trusted. No record is lost: nothing was deleted."
        )


def _content(groups: list[Numbers]) -> str:
    """Names rows, in whatever order and groups."""
    whole = np.sort(np.concatenate([np.zeros(0, np.uint64), *groups]))
    return hashlib.sha256(whole.tobytes()).hexdigest()[:12]


def _state(path: str) -> State:
    """Changes when a file is written again."""
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns


def _leaf(field: pa.Field) -> str:
    """What Parquet calls the column."""
    return f"{field.name}.list.element" if _is_list(field) else str(field.name)


def _is_text(field: pa.Field) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(field.type.value_type if _is_list(field) else field.type))


def _is_list(field: pa.Field) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(field.type))
