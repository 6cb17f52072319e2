"""Record ↔ Parquet. The only file that knows pyarrow.

One file a record, named after its run, so that folders of several machines
merge by copying. A file appears whole or not at all: it is written under a
temporary name, synced, renamed, and the folder is synced.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from bench import sentinel
from bench.errors import CannotStore, NothingToReport, WrongUse
from bench.schema import SCHEMA_VERSION, Key, Record, Tried, columns, tried

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

TEMPORARY = ".partial-"  # without .parquet at its end, so that no reader takes it for a record


class Found(msgspec.Struct):
    """What a results folder holds: rows, and one sentence for each file passed over."""

    frame: pd.DataFrame
    passed_over: list[str]


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


def row(record: Record) -> dict[str, Any]:
    """A record as flat column name → value."""
    return {column.name: column.value(record) for column in columns()}


def make_writable(folder: Path) -> None:
    """Create the results folder and prove that it can be written.

    Raises WrongUse with the reason otherwise.
    """
    probe = folder / f"{TEMPORARY}probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise WrongUse(
            f"The results folder {folder} is not writable ({error.strerror}); "
            "choose another one with --results DIR."
        ) from error


def append(folder: Path, record: Record, index: int) -> Path:
    """Write one record and return its file. Raises CannotStore, leaving no half file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / f"{record.run_id}-{index:04d}.parquet"
    partial = folder / f"{TEMPORARY}{path.stem}"
    table = pa.Table.from_pylist([row(record)], schema=arrow_schema())
    try:
        with partial.open("wb") as file:
            pq.write_table(table, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise CannotStore(
            f"The record of {record.case_id} could not be written to {folder} "
            f"({error.strerror or error}). Records written before are complete; "
            "free some space and run the same command with --resume.",
            record,
        ) from error
    return path


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(folder: Path, only: list[str] | None = None) -> Found:
    """All records below `folder`, oldest first, as a pandas frame with every column.

    Files that are corrupt, foreign or from a newer schema are passed over and named.
    `only` limits the columns that are read. Columns an older file lacks are null.
    """
    import pandas as pd
    import pyarrow as pa

    schema = arrow_schema()
    if only is not None:
        schema = pa.schema([schema.field(name) for name in only])
    tables, passed_over = [], []
    for path in sorted(folder.rglob("*.parquet")):
        try:
            tables.append(_conform(path, schema))
        except _Unusable as reason:
            passed_over.append(f"{path.name}: {reason}; passed over")
    whole = pa.concat_tables(tables) if tables else schema.empty_table()
    frame = whole.to_pandas(timestamp_as_object=False)
    if "started_at" in frame:
        frame = frame.sort_values("started_at", kind="stable")
    return Found(pd.DataFrame(frame).reset_index(drop=True), passed_over)


def summary(folder: Path, columns: list[str]) -> pd.DataFrame:
    """Some columns of all records, and whether others disturbed most of each."""
    frame = read(folder, [*columns, "warnings"]).frame
    frame["contaminated"] = ["contaminated" in w for w in frame["warnings"]]
    return frame


def read_some(folder: Path) -> Found:
    """All records below `folder`. Raises NothingToReport where there are none."""
    if not folder.is_dir():
        raise NothingToReport(f"There is no results folder {folder}; measure first: bench run.")
    found = read(folder)
    if found.frame.empty:
        notes = "".join(f"\n  {note}" for note in found.passed_over)
        raise NothingToReport(f"No usable record in {folder}; measure first: bench run.{notes}")
    return found


class _Unusable(Exception):
    """Why a file is passed over."""


def _conform(path: Path, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise _Unusable(f"not readable as Parquet ({str(error).splitlines()[0][:80]})") from error
    if not {"schema_version", "run_id", "case_id"} <= set(table.column_names):
        raise _Unusable("Parquet, but not a benchmark record")
    newest = pa.compute.max(table["schema_version"]).as_py()
    if not isinstance(newest, int):
        raise _Unusable("its schema_version is not a number")
    if newest > SCHEMA_VERSION:
        raise _Unusable(
            f"written with schema {newest}, this version reads up to {SCHEMA_VERSION}; "
            "upgrade resnet-bench to read it"
        )
    absent = {c.name: c.default for c in columns() if c.name not in table.column_names}
    for field in schema:
        if not field.nullable and absent.get(field.name) is msgspec.NODEFAULT:
            raise _Unusable(f"not a whole record, it lacks {field.name}")
    try:
        parts = [
            table[f.name].cast(f.type)
            if f.name in table.column_names
            else _filled(absent[f.name], len(table), f)
            for f in schema
        ]
        # Nullability is a promise of the writer; a reader takes what older files hold.
        fields = [f.with_nullable(True) for f in schema]
        return pa.table(parts, schema=pa.schema(fields))
    except pa.ArrowException as error:
        raise _Unusable(f"a column has another type ({str(error).splitlines()[0][:80]})") from error


def _filled(default: Any, count: int, field: pa.Field) -> pa.Array:
    """A column older than the file: what was not measured is null, a case was the default one."""
    import pyarrow as pa

    return pa.array([None if field.nullable else default] * count, field.type)


def unfinished_run(
    folder: Path,
    plan_hash: str,
    machine: dict[str, object],
    lacks: Callable[[dict[Key, Tried]], bool],
) -> tuple[str, dict[Key, Tried]] | None:
    """The newest run of this plan that lacks records, and the tries it has; or None.

    Only rows that agree with `machine` (column -> value) count: a run copied here
    from another machine must not be finished on this one.
    """
    columns = ["run_id", "plan_hash", *machine]
    frame = read(folder, columns).frame
    keep = frame["plan_hash"] == plan_hash
    for name, value in machine.items():
        keep &= frame[name].isna() if value is None else frame[name] == value
    for run_id in sorted(set(frame[keep]["run_id"]), reverse=True):
        done = {(r.case_id, r.round, r.purpose): tried(r) for r in records(folder, run_id)}
        if lacks(done):
            return str(run_id), done
    return None


def records(folder: Path, run_id: str) -> list[Record]:
    """All records of a run, oldest first; what cannot be read is passed over."""
    found = []
    for path in folder.rglob(f"{run_id}-*.parquet"):
        with contextlib.suppress(_Unusable, msgspec.ValidationError):
            found += [_record(values) for values in _conform(path, arrow_schema()).to_pylist()]
    return sorted(found, key=lambda record: record.started_at)


def _record(values: dict[str, Any]) -> Record:
    """The nouns of a flat row. Raises msgspec.ValidationError."""
    nested: dict[str, Any] = {}
    for column in columns():
        noun = nested
        for name in column.path[:-1]:
            noun = noun.setdefault(name, {})
        noun[column.path[-1]] = values[column.name]
    return msgspec.convert(nested, Record)


def host_peaks(folder: Path, run_id: str) -> dict[str, float]:
    """What the sentinel of a run measured as the host's peaks: column -> TFLOP/s."""
    names = ["gemm_fp32_tflops", "gemm_bf16_tflops"]
    frame = read(folder, ["run_id", *names]).frame
    most = frame[frame["run_id"] == run_id][names].max()
    return {str(name): float(value) for name, value in most.dropna().items()}


def statuses(folder: Path, run_id: str) -> set[str]:
    """The statuses of a run's cases, its sentinel not included."""
    frame = read(folder, ["run_id", "status", "purpose"]).frame
    return set(sentinel.without(frame[frame["run_id"] == run_id])["status"])


def next_index(folder: Path, run_id: str) -> int:
    """The number after the highest that a file of this run has."""
    numbers = [p.stem.removeprefix(f"{run_id}-") for p in folder.rglob(f"{run_id}-*.parquet")]
    return max((int(n) + 1 for n in numbers if n.isdigit()), default=0)
