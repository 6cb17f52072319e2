"""Record ↔ Parquet: written one by one, read as frames or as records again.

One file a record, named after its run, so that folders of several machines
merge by copying. A file appears whole or not at all: it is written under a
temporary name, synced, renamed, and the folder is synced.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from bench import sentinel, tables
from bench.errors import CannotStore, NothingToReport, WrongUse
from bench.schema import Key, Record, Tried, columns, tried
from bench.tables import TEMPORARY, arrow_schema, sync

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

# Columns of `summary`: whether `warnings` holds the code.
CODES = ("contaminated", "latency_contaminated")


class Found(msgspec.Struct):
    """What a results folder holds: rows, and one sentence for each file passed over."""

    frame: pd.DataFrame
    passed_over: list[str]


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
        sync(folder)
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


def read(folder: Path, only: list[str] | None = None) -> Found:
    """All records below `folder`, oldest first, as a pandas frame with every column.

    Files that are corrupt, foreign or from a newer schema are passed over and named.
    `only` limits the columns that are read. Columns an older file lacks are null.
    """
    return _read(lambda: tables.below(folder), only)


def of_run(folder: Path, run_id: str, only: list[str] | None = None) -> pd.DataFrame:
    """The records of one run, oldest first; reads the files that can hold them, no others."""
    return _read(lambda: tables.of_run(folder, run_id), only, run_id).frame


def _read(
    listing: Callable[[], Iterable[str]], only: list[str] | None, run_id: str | None = None
) -> Found:
    import pandas as pd

    whole = tables.arrow_schema()
    names = whole.names if only is None else only
    # A record that is in two files for a moment is told by its key.
    schema = tables.schema_of([*names, *tables.KEY, "started_at"])
    table, passed_over = tables.gather(
        listing, lambda path: tables.load(path, schema, run_id=run_id), tables.empty(schema)
    )
    frame = table.to_pandas(timestamp_as_object=False)
    frame = frame.sort_values(["started_at", "run_id"]).drop_duplicates(tables.KEY)
    return Found(pd.DataFrame(frame[names]).reset_index(drop=True), _sentences(passed_over))


def _sentences(passed_over: dict[str, str]) -> list[str]:
    return [f"{os.path.basename(p)}: {passed_over[p]}; passed over" for p in sorted(passed_over)]


def read_some(folder: Path) -> Found:
    """All records below `folder`. Raises NothingToReport where there are none."""
    if not folder.is_dir():
        raise NothingToReport(f"There is no results folder {folder}; measure first: bench run.")
    found = read(folder)
    if found.frame.empty:
        notes = "".join(f"\n  {note}" for note in found.passed_over)
        raise NothingToReport(f"No usable record in {folder}; measure first: bench run.{notes}")
    return found


def summary(folder: Path, columns: list[str], plan: str | None = None) -> Found:
    """Some columns of all records, or of a plan's, oldest first, for millions of them.

    Strings are pandas Categoricals, unknown ones -1; the columns named in CODES are made of
    `warnings`. Columns that are no lists take a few bytes a record each.
    """
    stored = ["warnings" if name in CODES else name for name in columns]
    of_plan = [] if plan is None else ["plan"]
    schema = tables.schema_of([*stored, *of_plan, *tables.KEY, "started_at"])

    def wanted(table: pa.Table) -> pa.Table:
        import pyarrow.compute as pc

        if plan is not None:
            table = table.filter(pc.equal(table["plan"], plan))
        for code in set(CODES) & set(columns):
            table = table.append_column(code, _holding(table["warnings"], code))
        names = dict.fromkeys([*columns, *tables.KEY, "started_at"])
        return table.select(list(names))

    table, passed_over = tables.gather(
        lambda: tables.below(folder),
        lambda path: wanted(tables.load(path, schema, coded=True)),
        wanted(tables.empty(schema, coded=True)),
    )
    # Each column is given up as soon as pandas has it: all of them twice would be too much.
    left = {name: table[name] for name in table.column_names}
    del table
    return Found(_small_frame(left, columns), _sentences(passed_over))


def _holding(lists: pa.ChunkedArray, code: str) -> pa.ChunkedArray:
    """Of each list of strings whether `code` is in it; an unknown list holds nothing."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    chunks = []
    for chunk in lists.chunks:
        found = np.zeros(len(chunk), bool)
        inside = pc.list_parent_indices(chunk).filter(pc.equal(pc.list_flatten(chunk), code))
        found[inside.to_numpy()] = True
        chunks.append(pa.array(found))
    return pa.chunked_array(chunks, pa.bool_())


def _small_frame(left: dict[str, pa.ChunkedArray], columns: list[str]) -> pd.DataFrame:
    """Some of the columns, each row once, oldest first. Takes them out of `left`."""
    import numpy as np
    import pandas as pd

    order = np.argsort(left["started_at"].to_numpy(), kind="stable")
    key = np.zeros(len(order), np.int64)
    for name in tables.KEY:
        codes, values = pd.factorize(_values(left[name]))
        key = key * len(values) + codes
    order = order[~pd.Series(key[order]).duplicated().to_numpy()]
    del key, codes
    made = {}
    for name in list(left):
        column = left.pop(name)
        if name in columns:
            made[name] = _values(column)[order]
    return pd.DataFrame(made, columns=columns, copy=False)


def _values(column: pa.ChunkedArray) -> Any:
    """A column as the array pandas keeps it in."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.unify_dictionaries()
    return column.to_pandas(timestamp_as_object=False).array


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
    frame = summary(folder, ["run_id", "plan_hash", *machine]).frame
    keep = frame["plan_hash"] == plan_hash
    for name, value in machine.items():
        keep &= frame[name].isna() if value is None else frame[name] == value
    for run_id in sorted(set(frame[keep]["run_id"]), reverse=True):
        done = {(r.case_id, r.round, r.purpose): tried(r) for r in records(folder, run_id)}
        if lacks(done):
            return str(run_id), done
    return None


def records(folder: Path, run_id: str, cases: Iterable[str] | None = None) -> list[Record]:
    """Records of a run, or of some of its cases, oldest first; what cannot be read is left out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    schema = arrow_schema()
    table, _ = tables.gather(
        lambda: tables.of_run(folder, run_id),
        lambda path: tables.load(path, schema, run_id=run_id),
        tables.empty(schema),
    )
    if cases is not None:  # a record is slow to make, and a run may have thousands
        table = table.filter(pc.is_in(table["case_id"], pa.array(sorted(cases), pa.string())))
    found: dict[Key, Record] = {}
    for values in table.sort_by("started_at").to_pylist():
        with contextlib.suppress(msgspec.ValidationError):
            record = _record(values)
            found.setdefault((record.case_id, record.round, record.purpose), record)
    return list(found.values())


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
    most = of_run(folder, run_id, ["gemm_fp32_tflops", "gemm_bf16_tflops"]).max()
    return {str(name): float(value) for name, value in most.dropna().items()}


def statuses(folder: Path, run_id: str) -> set[str]:
    """The statuses of a run's cases, its sentinel not included."""
    return set(sentinel.without(of_run(folder, run_id, ["status", "purpose"]))["status"])


def next_index(folder: Path, run_id: str) -> int:
    """A number no file of this run has, nor had before it was merged: more than any."""
    names = (os.path.basename(path) for path in tables.of_run(folder, run_id))
    numbers = [name.removeprefix(f"{run_id}-").removesuffix(tables.SUFFIX) for name in names]
    past = max((int(n) + 1 for n in numbers if n.isdigit()), default=0)
    return max(past, len(of_run(folder, run_id, ["run_id"])))
