"""`bench compact` loses and doubles nothing, whatever happens in between."""

from __future__ import annotations

import math
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from bench import compaction, merging, store, tables
from bench.digests import digests
from bench.errors import CannotStore
from tests.conftest import Bench
from tests.made_runs import everything, fill, names, night, same
from tests.records import START, record, write

# Dies before the 1st, 2nd, 3rd … thing that is done to the disk, until there is none left.
DYING = """
import os, shutil, sys
from pathlib import Path
import pandas, pyarrow.parquet
from bench import compaction, merging, store, tables
originals, out = Path(sys.argv[1]), Path(sys.argv[2])
for deadly in range(100):
    folder = out / str(deadly)
    shutil.copytree(originals, folder)
    if (child := os.fork()) == 0:
        steps = 0
        def dying(function):
            def step(*arguments, **more):
                global steps
                if steps == deadly:
                    os.kill(os.getpid(), 9)
                steps += 1
                return function(*arguments, **more)
            return step
        for name in ("fsync", "replace", "unlink"):
            setattr(os, name, dying(getattr(os, name)))
        compaction.compact(folder)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
"""


@pytest.mark.parametrize("week", [1, 2])
def test_killed_at_any_moment_it_loses_and_doubles_nothing(tmp_path: Path, week: int) -> None:
    """Readers see every row once after each kill, and the next compaction cleans up."""
    originals, out = tmp_path / "originals", tmp_path / "out"
    fill(originals, range(1))
    if week == 2:
        compaction.compact(originals)
        fill(originals, range(1, 2))
    before = everything(originals)
    out.mkdir()
    command = [sys.executable, "-c", DYING, str(originals), str(out)]
    subprocess.run(command, check=True, timeout=60)
    ends = sorted(out.iterdir(), key=lambda p: int(p.name))
    assert len(ends) >= 9  # nothing done, the file written, renamed, each of 4 deleted, …
    counts = {len(names(folder)) for folder in ends}
    assert counts == set(range(1, 5 + week)), counts
    keys = before[["run_id", "case_id"]]
    for folder in ends:
        same(folder, before)
        found = store.summary(folder, ["run_id", "case_id"]).frame
        assert sorted(found.itertuples(index=False)) == sorted(keys.itertuples(index=False))
        assert len(store.records(folder, str(keys["run_id"].iloc[-1]))) == 4
        compaction.compact(folder)
        assert len(names(folder)) == 1
        assert not list(folder.glob(".partial-compact-*"))
        same(folder, before)


def test_what_replaces_records_is_on_the_disk_before_they_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File synced, renamed, folder synced, and only then the first deletion."""
    fill(tmp_path, range(1))
    done: list[str] = []

    def logged(name: str) -> None:
        function = getattr(os, name)

        def step(what: Any, *arguments: Any, **more: Any) -> Any:
            where = os.readlink(f"/proc/self/fd/{what}") if name == "fsync" else os.fspath(what)
            done.append(f"{name} {Path(where).name[:17]}")
            return function(what, *arguments, **more)

        monkeypatch.setattr(os, name, step)

    for name in ("fsync", "replace", "unlink"):
        logged(name)
    compaction.compact(tmp_path)
    assert done[1:5] == [
        "fsync .partial-compact-", "replace .partial-compact-", f"fsync {tmp_path.name[:17]}",
        "unlink 20260101T000000Z-",
    ]  # fmt: skip
    assert done[0].startswith("unlink .partial-probe")


def changed(table: pa.Table) -> pa.Table:
    """One value of one row, in its last bit."""
    values = table["samples_s"].to_pylist()
    row = next(n for n, v in enumerate(values) if v)
    values[row][-1] = float(np.nextafter(values[row][-1], 1))
    place = table.column_names.index("samples_s")
    return table.set_column(place, table.schema.field(place), [values])


@pytest.mark.parametrize("fault", ["a bit", "a row", "the end"])
def test_a_file_that_does_not_read_back_deletes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """A disk that keeps something else than it was given is found out in time."""
    before = everything(fill(tmp_path, range(2)))
    files = names(tmp_path)
    write_table, fsync = pq.ParquetWriter.write_table, os.fsync

    def other(writer: pq.ParquetWriter, table: pa.Table, **more: Any) -> None:
        write_table(writer, changed(table) if fault == "a bit" else table.slice(1), **more)

    def cut(descriptor: int) -> None:
        os.ftruncate(descriptor, os.fstat(descriptor).st_size - 100)
        fsync(descriptor)

    if fault == "the end":
        monkeypatch.setattr(os, "fsync", cut)
    else:
        monkeypatch.setattr(pq.ParquetWriter, "write_table", other)
    with pytest.raises(CannotStore, match="does not read back"):
        compaction.compact(tmp_path)
    assert names(tmp_path) == files
    assert not list(tmp_path.glob(".partial-*"))
    same(tmp_path, before)


def test_a_digest_changes_with_any_value_of_any_column() -> None:
    """Unknown is not 0, a list not its elements in another order; NaN is itself."""
    odd = {"latency_p50_ms": math.nan, "latency_p90_ms": -0.0}
    one = pa.Table.from_pylist(
        [store.row(r) for r in (*night(1), record(measurement=odd))], schema=store.arrow_schema()
    )
    numbers = digests(one)
    assert len(set(numbers.tolist())) == len(one)
    assert (digests(one.take([4, 0])) == numbers[[4, 0]]).all()
    others: dict[str, list[Any]] = {
        "string": ["", "x"], "int64": [0, 1], "double": [0.0, 1.0], "bool": [False, True],
        "timestamp[us, tz=UTC]": [START, datetime.now(UTC)],
        "list<item: string>": [[], [""], ["a", "b"], ["b", "a"], ["ab"]],
        "list<item: double>": [[], [0.0], [-0.0], [1.0, 2.0], [2.0, 1.0], [math.nan]],
    }  # fmt: skip
    ends = [one.column_names.index(f"throughput_ci_{end}") for end in ("low", "high")]
    low, high = (one[place] for place in ends)
    exchanged = one.set_column(ends[0], one.field(ends[0]), high)
    exchanged = exchanged.set_column(ends[1], one.field(ends[1]), low)
    assert (digests(exchanged) != numbers).all()
    for place, field in enumerate(one.schema):
        options = [None, *others[str(field.type)]]
        columns = [pa.table({field.name: pa.array([v], field.type)}) for v in options]
        assert len({int(digests(column)[0]) for column in columns}) == len(options), field.name
        swapped = one.set_column(place, field.name, columns[0][0].take([0] * len(one)))
        assert one[field.name].null_count or (digests(swapped) != numbers).all(), field.name


def test_a_file_written_again_meanwhile_is_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what was read is deleted."""
    fill(tmp_path, range(1))
    path = tmp_path / names(tmp_path)[1]
    prove = merging._prove

    def meanwhile(*arguments: Any) -> None:
        write(tmp_path / "other", msgspec.structs.replace(night(0)[1], seconds=77.0))
        (tmp_path / "other" / path.name.replace("0001", "0000")).replace(path)
        shutil.rmtree(tmp_path / "other")
        prove(*arguments)

    monkeypatch.setattr(merging, "_prove", meanwhile)
    compaction.compact(tmp_path)
    assert len(names(tmp_path)) == 2
    assert pq.read_table(path)["seconds"].to_pylist() == [77.0]


def test_a_reader_misses_nothing_while_files_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged after the listing, while the files of it are read."""
    before = everything(fill(tmp_path, range(3)))
    load, left = tables.load, [3]

    def slowly(*arguments: Any, **more: Any) -> pa.Table:
        left[0] -= 1
        if left[0] == 0:
            compaction.compact(tmp_path)
        return load(*arguments, **more)

    monkeypatch.setattr(tables, "load", slowly)
    same(tmp_path, before)
    assert left[0] < 0
    assert len(names(tmp_path)) == 1


def test_a_reader_misses_nothing_while_it_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing may hold neither a file that goes nor the one that comes in its place."""
    before = everything(fill(tmp_path, range(2)))
    below, looks = tables.below, []

    def racing(folder: Path) -> list[str]:
        looks.append(folder)
        return [] if len(looks) == 1 else list(below(folder))

    monkeypatch.setattr(tables, "below", racing)
    same(tmp_path, before)


def started(folder: Path, **more: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench", "compact", "--results", str(folder)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )


def test_two_at_once_wait_for_each_other(tmp_path: Path) -> None:
    """Nothing happens while another holds the folder; then each does what is left to do."""
    before = everything(fill(tmp_path, range(3)))
    with FileLock(tmp_path / compaction.LOCK):
        both = [started(tmp_path) for _ in range(2)]
        with pytest.raises(subprocess.TimeoutExpired):
            both[0].wait(3)
        assert len(names(tmp_path)) == 12
    said = [process.communicate(timeout=60) for process in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert len(names(tmp_path)) == 1
    same(tmp_path, before)


def test_a_disk_that_takes_no_more(tmp_path: Path) -> None:
    """A sentence, no half file, every record where it was."""
    before = everything(fill(tmp_path, range(2)))
    files = names(tmp_path)
    process = started(
        tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
    )
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (4, "")
    assert err.startswith(f"Error: The records in {tmp_path} could not be merged (")
    assert "None is lost" in err
    assert len(err.splitlines()) == 1
    assert names(tmp_path) == files
    assert not list(tmp_path.glob(".partial-*"))
    same(tmp_path, before)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder with records that nobody can write, not even root; skips where there is none."""
    folder = fill(tmp_path / "disk", range(1))
    remount = ["mount", "-o", "remount,bind,ro", str(folder)]
    for command in (["mount", "--bind", str(folder), str(folder)], remount):
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_folder_that_cannot_be_written(bench: Bench, read_only: Path) -> None:
    done = bench("compact", "--results", str(read_only))
    assert done.code == 2
    assert "is not writable" in done.err
