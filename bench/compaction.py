"""Many small files → one a month and machine. Nothing goes before what replaces it is proven.

Each folder below the results is done for itself, so that a part copied from another machine
stays that part. Of each month (UTC, by the run's id) and machine:

1. All rows of the finished runs, and of what was merged before, are written under a
   temporary name and synced.
2. The file is read back; every row must be there, bit for bit in every column.
3. It is renamed, and the folder is synced.
4. Only now what it was made of is deleted.

Whoever dies in between leaves rows in two files. A reader counts them once, and the next
compaction finds that it has them and deletes what was left.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from msgspec import Struct

from bench import merging, sentinel, store, tables
from bench.errors import CannotStore, NothingToReport
from bench.progress import announce
from bench.schedules import GRID
from bench.schema import short_hash
from bench.tables import KEY, TEMPORARY, Unusable

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

STILL = timedelta(days=7)  # a run without a new record for so long is not continued
PARTIAL = f"{TEMPORARY}compact-"  # nobody else's, so that what a crash left can go
LOCK = ".compact.lock"
FACTS = [*KEY, "planned", "started_at", "machine_fingerprint"]


class Stock(Struct, frozen=True):
    """What files there are."""

    files: int
    bytes: int


class Compacted(Struct):
    """What was done: runs that were merged, files before and after, what was left and why."""

    runs: int
    before: Stock
    after: Stock
    left: list[str]


class Month(Struct):
    """A month of a machine: what was merged before, and single records with their run."""

    name: str
    merged: list[str]
    single: dict[str, str]  # path -> run_id


def compact(results: Path, now: datetime | None = None) -> Compacted:
    """Merge what is finished below `results`.

    Raises NothingToReport, WrongUse where a folder cannot be written, CannotStore.
    """
    if not results.is_dir():
        raise NothingToReport(f"There is no results folder {results}; measure first: bench run.")
    before = _stock(results)
    announce(f"Looking at {before.files:,} files …")
    done = Compacted(0, before, before, [])
    usable = False
    for folder in sorted({os.path.dirname(path) for path in tables.below(results)}):
        store.make_writable(Path(folder))
        try:
            with FileLock(os.path.join(folder, LOCK)):
                usable |= _compact(Path(folder), done, now or datetime.now(UTC))
        except OSError as error:
            raise CannotStore(
                f"The records in {folder} could not be merged ({error.strerror or error}). "
                "None is lost; run the same command again when the reason is gone."
            ) from error
    if not usable:
        notes = "".join(f"\n  {note}" for note in done.left)
        raise NothingToReport(f"No usable record in {results}; measure first: bench run.{notes}")
    done.after = _stock(results)
    return done


def tell(done: Compacted) -> str:
    """What was done, and what was left and why."""
    lines = [f"Nothing to do: {_said(done.after)}."]
    if done.before != done.after:
        runs = f"{done.runs:,} run{'s' * (done.runs != 1)} merged"
        lines = [f"{runs}: {_said(done.before)} before, {_said(done.after)} now."]
    return "\n".join([*lines, *(f"Left as it is: {note}." for note in done.left)])


def _said(stock: Stock) -> str:
    size = stock.bytes / 2**20
    megabytes = f"{size:,.0f} MiB" if size >= 10 else f"{size:.2f} MiB"
    return f"{stock.files:,} file{'s' * (stock.files != 1)} of {megabytes}"


def _stock(results: Path) -> Stock:
    sizes = []
    for path in tables.below(results):
        with contextlib.suppress(FileNotFoundError):
            sizes.append(os.path.getsize(path))
    return Stock(len(sizes), sum(sizes))


def _compact(folder: Path, done: Compacted, now: datetime) -> bool:
    """Merge the files of one folder. Returns whether any of them is usable."""
    for forgotten in folder.glob(f"{PARTIAL}*"):
        forgotten.unlink(missing_ok=True)
    paths = [e.path for e in os.scandir(folder) if e.name.endswith(tables.SUFFIX)]
    merged = {path for path in paths if tables.MERGED.fullmatch(os.path.basename(path))}
    runs_of, left = _runs_of(merged)
    facts, more = _facts([path for path in paths if path not in merged])
    months, young = _months(facts, runs_of, now, left)
    for month in months:
        if not month.single and len(month.merged) < 2:
            continue
        paths = [*month.merged, *month.single]
        merge = merging.merge(folder, month.name, paths, folder / f"{PARTIAL}{month.name}")
        left |= merge.left
        done.runs += len({month.single[path] for path in merge.gone if path in month.single})
    done.left += [f"{os.path.basename(p)}: {why}" for p, why in sorted((left | more).items())]
    if young:
        files = int(facts["run_id"].isin(young).sum())
        done.left.append(
            f"run {', '.join(young)} ({files:,} file{'s' * (files != 1)}), which is not finished "
            f"and had a new record less than {STILL.days} days ago"
        )
    return bool(runs_of) or not facts.empty


def _runs_of(merged: Iterable[str]) -> tuple[dict[str, set[str]], dict[str, str]]:
    """The runs in each merged file, and why any cannot be merged again."""
    schema = tables.schema_of(["run_id"])
    found, left = {}, {}
    for path in merged:
        try:
            with tables.opened(path, schema, coded=True) as file:
                merging.refuse_unknown(file)
                found[path] = set(_unique(file, schema))
        except Unusable as reason:
            left[path] = str(reason)
    return found, left


def _unique(file: pq.ParquetFile, schema: pa.Schema) -> list[str]:
    whole = tables.rows(file, range(file.num_row_groups), schema, coded=True)
    return [str(run_id) for run_id in whole["run_id"].unique().to_pylist()]


def _facts(paths: list[str]) -> tuple[pd.DataFrame, dict[str, str]]:
    """FACTS of single records with the `path` of each, and why any cannot be merged."""
    import pyarrow as pa

    schema = tables.schema_of(FACTS)

    def load(path: str) -> pa.Table:
        with tables.opened(path, schema) as file:
            merging.refuse_unknown(file)
            table = tables.rows(file, range(file.num_row_groups), schema)
        if len(table["run_id"].unique()) > 1:
            raise Unusable("it holds several runs, but bench compact did not make it")
        return table.append_column("path", pa.array([path] * len(table), pa.string()))

    empty = tables.empty(schema).append_column("path", pa.array([], pa.string()))
    table, left = tables.gather(lambda: paths, load, empty)
    return table.to_pandas(timestamp_as_object=False), left


def _months(
    facts: pd.DataFrame, runs_of: dict[str, set[str]], now: datetime, left: dict[str, str]
) -> tuple[list[Month], list[str]]:
    """What is to be merged with what, and the runs that are not finished.

    Adds to `left` merged files that cannot be read: their runs' other files stay beside them.
    """
    months: dict[str, Month] = {}
    for path in sorted(runs_of):
        name = _month_of(path)
        months.setdefault(name, Month(name, [], {})).merged.append(path)
    homes = {run_id: path for path, runs in runs_of.items() for run_id in runs}
    young = []
    for run_id, here in facts.groupby("run_id"):
        # What is left of a run after a crash says less than its rows that were merged.
        home = homes.get(str(run_id))
        try:
            rows = here if home is None else _with_merged(here, home, str(run_id))
        except Unusable as reason:
            left[str(home)] = str(reason)
            continue
        if not finished(rows, now):
            young.append(str(run_id))
            continue
        name = _name(str(run_id), rows) if home is None else _month_of(home)
        month = months.setdefault(name, Month(name, [], {}))
        month.single |= dict.fromkeys(sorted(here["path"]), str(run_id))
    return list(months.values()), young


def _month_of(path: str) -> str:
    """The month and machine a merged file is named after."""
    return os.path.basename(path).rpartition("-")[0]


def _with_merged(here: pd.DataFrame, home: str, run_id: str) -> pd.DataFrame:
    import pandas as pd

    merged = tables.load(home, tables.schema_of(FACTS), run_id=run_id)
    known: pd.DataFrame = merged.to_pandas(timestamp_as_object=False)
    return pd.concat([here[FACTS], known])


def _name(run_id: str, rows: pd.DataFrame) -> str:
    """Month and machine. The machine is that of the first record, which is the sentinel's.

    A record's fingerprint is of the machine with the device measured, so a run on CPU and
    GPU has two; the sentinel's is of the host alone, and keeps a run in one file.
    """
    first = rows.sort_values("started_at").iloc[0]
    month = tables.month(run_id) or f"{first['started_at']:%Y-%m}"
    machine = str(first["machine_fingerprint"])
    if not re.fullmatch("[0-9a-f]{12}", machine):
        machine = short_hash(machine)
    return f"{month}-{machine}"


def finished(rows: pd.DataFrame, now: datetime) -> bool:
    """Whether nothing is going to be added to a run: its last try was made, or is long ago."""
    if now - rows["started_at"].max() > STILL:
        return True
    guards = rows[rows["purpose"] == sentinel.PURPOSE]
    if len(guards):
        return bool((guards["round"] == 2).any())  # a run that begins with it ends with it
    grid = rows[rows["purpose"] == GRID].drop_duplicates(KEY)
    return len(grid) >= int(rows["planned"].max())
