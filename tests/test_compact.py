"""`bench compact`: fewer files, the same records, whatever happens in between."""

from __future__ import annotations

import math
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from bench import compaction, merging, sentinel, store, tables
from bench.digests import digests
from bench.errors import CannotStore
from bench.schema import Case, Record
from tests.conftest import TINY, Bench
from tests.records import START, record, write

HOST, GPU = "a" * 12, "b" * 12  # fingerprints of a machine with its CPU and with its GPU
CASES = [Case(batch_size=1), Case(device="cuda:0", batch_size=8, precision="amp")]


def night(number: int, *, machine: str = HOST, closed: bool = True, **more: Any) -> list[Record]:
    """One run, `number` days after the first of January: sentinel, cases, sentinel."""
    begin = START + timedelta(days=number)
    same = {"run_id": f"{begin:%Y%m%dT%H%M%S}Z-{machine[:6]}", "planned": len(CASES)} | more
    guard = {"purpose": sentinel.PURPOSE, "machine_fingerprint": machine}
    found = [
        record(
            case,
            100.0 + number + place,
            started_at=begin + timedelta(minutes=1 + place),
            machine_fingerprint=GPU if case.device == "cuda:0" else machine,
            warnings=["contaminated"] if number % 3 == 0 else [],
            measurement={"latency_p50_ms": None if number % 2 else math.nan},
            **same,
        )
        for place, case in enumerate(CASES)
    ]
    first = record(sentinel.CASE, 50.0, started_at=begin, **guard, **same)
    last = record(
        sentinel.CASE, 50.0, started_at=begin + timedelta(hours=1), round=2, **guard, **same
    )
    return [first, *found, *([last] if closed else [])]


def fill(folder: Path, nights: Iterator[int] | range, **more: Any) -> Path:
    """Write these nights as runs do."""
    for number in nights:
        write(folder, *night(number, **more))
    return folder


def everything(folder: Path) -> pd.DataFrame:
    """All that is measured, in an order that files have no part in."""
    frame = store.read(folder).frame
    return frame.sort_values(["run_id", "started_at"]).reset_index(drop=True)


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*.parquet"))


def same(folder: Path, before: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(everything(folder), before)


def test_every_command_says_the_same_afterwards(bench: Bench, tmp_path: Path) -> None:
    """Two months on one machine: `report` byte by byte, `compare`; then two files."""
    data = fill(tmp_path / "reports" / "data", range(30, 33))
    before = everything(data)
    asked = ("latest~1", "latest", "--json")

    def say() -> tuple[str, dict[str, bytes], str]:
        page = bench("report")
        assert page.code == 0, page.err
        made = {p.name: p.read_bytes() for p in (tmp_path / "reports" / "latest").iterdir()}
        made["index.html"] = b"\n".join(
            line for line in made["index.html"].splitlines() if b">Made " not in line
        )
        return page.out + page.err, made, bench("compare", *asked).out

    said = say()
    done = bench("compact")
    assert done.code == 0, done.err
    assert done.out.startswith("3 runs merged: 12 files of ")
    assert " 2 files of " in done.out
    assert [n[:20] for n in names(data)] == [f"2026-01-{HOST}", f"2026-02-{HOST}"]
    same(data, before)
    assert say() == said
    again = {p: p.stat().st_mtime_ns for p in data.iterdir()}
    done = bench("compact")
    assert done.out.startswith("Nothing to do: 2 files of ")
    assert {p: p.stat().st_mtime_ns for p in data.iterdir()} == again


def test_other_libraries_read_merged_and_single_files_as_one(tmp_path: Path) -> None:
    """A folder of both is one dataset for pandas, DuckDB and Polars, with the types of records."""
    import duckdb
    import polars

    compaction.compact(fill(tmp_path, range(2)))
    fill(tmp_path, range(2, 4))
    assert len(names(tmp_path)) == 9
    assert len(pd.read_parquet(tmp_path)) == 16
    files = str(tmp_path / "*.parquet")
    assert len(polars.read_parquet(files)) == 16
    assert duckdb.sql(f"select count(*) from read_parquet('{files}')").fetchall() == [(16,)]
    schemas = [pq.read_schema(tmp_path / name) for name in names(tmp_path)]
    assert all(schema.equals(store.arrow_schema()) for schema in schemas)


def test_each_week_is_added_to_its_month(tmp_path: Path) -> None:
    """One file a month remains, with the rows of both weeks, and nothing a crash has left."""
    (tmp_path / ".partial-compact-2025-12-aaaaaaaaaaaa").write_bytes(b"PAR1")
    compaction.compact(fill(tmp_path, range(2)))
    (first,) = names(tmp_path)
    fill(tmp_path, range(2, 5))
    before = everything(tmp_path)
    done = compaction.compact(tmp_path)
    (second,) = names(tmp_path)
    assert second != first
    assert done.runs == 3
    assert not list(tmp_path.glob(".partial-*"))
    same(tmp_path, before)


def test_a_run_is_in_one_file_by_the_machine_of_its_sentinel(tmp_path: Path) -> None:
    """Its CPU and its GPU have fingerprints of their own."""
    fill(tmp_path, range(1))
    assert set(everything(tmp_path)["machine_fingerprint"]) == {HOST, GPU}
    compaction.compact(tmp_path)
    (name,) = names(tmp_path)
    assert name.startswith(f"2026-01-{HOST}-")


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


def test_what_cannot_be_merged_is_left_and_named(bench: Bench, tmp_path: Path) -> None:
    """Corrupt, foreign, too new, with columns that would be lost, of several runs."""
    data = fill(tmp_path / "data", range(2))
    (data / "corrupt.parquet").write_bytes(b"PAR1 and nothing else")
    pq.write_table(pa.table({"a": [1]}), data / "foreign.parquet")
    single = pq.read_table(data / names(data)[0])
    version = single.column_names.index("schema_version")
    newer = single.set_column(version, "schema_version", [[99]])
    pq.write_table(newer, data / "newer.parquet")
    pq.write_table(single.append_column("noise_db", [[1.5]]), data / "unknown.parquet")
    runs = [pq.read_table(data / name) for name in (names(data)[0], names(data)[4])]
    pq.write_table(pa.concat_tables(runs), data / "several.parquet")
    place = single.column_names.index("seconds")
    nothing = pa.array([None], pa.float64())
    alone = single.set_column(place, "seconds", nothing)  # in its month
    place = single.column_names.index("run_id")
    alone = alone.set_column(place, alone.schema.field(place), [["20260201T000000Z-aaaaaa"]])
    pq.write_table(alone, data / "null.parquet")
    odd = {"corrupt", "foreign", "newer", "unknown", "several", "null"}
    contents = {name: (data / f"{name}.parquet").read_bytes() for name in odd}
    for _ in range(2):
        done = bench("compact", "--results", "data")
        assert done.code == 0, done.err
        said = [line for line in done.out.splitlines() if line.startswith("Left as it is: ")]
        assert {line.split()[4].removesuffix(".parquet:") for line in said} == odd
        assert "noise_db" in done.out
        assert "upgrade resnet-bench" in done.out
        assert "seconds is null" in done.out
        assert len(names(data)) == len(odd) + 1
    assert contents == {name: (data / f"{name}.parquet").read_bytes() for name in odd}


def test_a_file_of_an_older_version_is_merged_as_it_is_read(tmp_path: Path) -> None:
    """Columns it lacks are unknown, and there is no older copy left afterwards."""
    fill(tmp_path, range(1))
    path = tmp_path / names(tmp_path)[1]
    pq.write_table(pq.read_table(path).drop_columns(["model_bytes", "deterministic"]), path)
    before = everything(tmp_path)
    compaction.compact(tmp_path)
    assert len(names(tmp_path)) == 1
    same(tmp_path, before)


def test_a_run_that_may_go_on_is_left(bench: Bench, tmp_path: Path) -> None:
    """Young and not closed by its second sentinel; a week later it is merged all the same."""
    data = fill(tmp_path / "data", range(1))
    today = (datetime.now(UTC) - START).days
    fill(data, range(today, today + 1), closed=False)
    run_id = night(today)[0].run_id
    done = bench("compact", "--results", "data")
    assert done.code == 0, done.err
    assert f"Left as it is: run {run_id} (3 files), which is not finished" in done.out
    assert len(names(data)) == 4
    done_later = compaction.compact(data, datetime.now(UTC) + timedelta(days=9))
    assert (done_later.runs, done_later.left) == (1, [])
    assert not list(data.glob(f"{run_id}-*"))


@pytest.mark.parametrize(
    ("records", "finished"),
    [
        ([record(planned=1)], True),
        ([record(planned=2)], False),
        ([record(planned=2), record(planned=2)], False),  # twice the same
        ([record(planned=2), record(planned=2, round=2)], True),
        ([record(planned=1, purpose="search")], False),  # a search finds its own cases
        (night(0), True),
        (night(0, closed=False), False),
        ([*night(0)[:2], night(0)[3]], True),  # closed: a search may have ended early
    ],
)
def test_when_a_run_is_finished(records: list[Record], finished: bool) -> None:
    frame = pd.DataFrame([store.row(r) for r in records])
    assert compaction.finished(frame, START + timedelta(days=1)) is finished
    assert compaction.finished(frame, START + timedelta(days=9)) is True


@pytest.mark.slow
def test_a_merged_run_is_resumed(bench: Bench, tmp_path: Path) -> None:
    """Its records are known, and what is measured anew takes no name that was used before."""
    asked = ("run", *TINY, "--task", "infer", "--batch-size", "1,2", "--results", "data")
    data = tmp_path / "data"
    assert bench(*asked).code == 0
    (run_id,) = set(everything(data)["run_id"])
    for number in (2, 3):
        (data / f"{run_id}-{number:04d}.parquet").unlink()
    compaction.compact(data, datetime.now(UTC) + timedelta(days=9))
    (merged,) = names(data)
    assert store.next_index(data, run_id) == 2
    done = bench(*asked, "--resume", "--json")
    assert done.code == 0, done.err
    assert [(r["purpose"], r["batch_size"]) for r in done.records] == [("grid", 2), ("sentinel", 1)]
    expected = [merged, f"{run_id}-0002.parquet", f"{run_id}-0003.parquet"]
    assert names(data) == sorted(expected)
    compaction.compact(data)
    assert len(names(data)) == 1
    assert everything(data)["purpose"].tolist() == ["sentinel", "grid", "grid", "sentinel"]


def test_a_merged_run_is_found_by_what_asks_for_one(tmp_path: Path) -> None:
    """Its records, statuses, peaks and next number, among many others in the file."""
    for number in range(6):
        first, *others = night(number)
        peak = msgspec.structs.replace(first.measurement, gemm_fp32_tflops=1.0 + number)
        write(tmp_path, msgspec.structs.replace(first, measurement=peak), *others)
    run_id = night(3)[0].run_id
    plan = ("0" * 12, {"cpu_model": "Test CPU"}, lambda tries: len(tries) < 5)

    def ask() -> list[Any]:
        return [
            store.records(tmp_path, run_id), store.statuses(tmp_path, run_id),
            store.host_peaks(tmp_path, run_id), store.next_index(tmp_path, run_id),
            store.unfinished_run(tmp_path, *plan),
        ]  # fmt: skip

    before = ask()
    assert before[3] == 4
    assert before[2] == {"gemm_fp32_tflops": 4.0}
    compaction.compact(tmp_path)
    assert len(names(tmp_path)) == 1
    after = ask()
    assert [repr(part) for part in after] == [repr(part) for part in before]


def test_a_leftover_of_a_merged_run_goes_even_if_it_alone_looks_unfinished(tmp_path: Path) -> None:
    """One record out of four, of the GPU: the merged rows say whose it is and that it is done."""
    today = (datetime.now(UTC) - START).days
    fill(tmp_path, range(today, today + 1))
    kept = next(p for p in sorted(tmp_path.glob("*.parquet")) if b"cuda:0" in p.read_bytes())
    content = kept.read_bytes()
    compaction.compact(tmp_path, START + timedelta(days=today, hours=2))
    files = names(tmp_path)
    kept.write_bytes(content)
    assert len(store.read(tmp_path).frame) == 4
    compaction.compact(tmp_path, START + timedelta(days=today, hours=2))
    assert names(tmp_path) == files


def test_two_tries_with_one_key_and_different_values_are_both_kept(tmp_path: Path) -> None:
    """Readers take the first; nothing that was measured leaves the disk."""
    write(tmp_path, record(rate=1.0), record(rate=2.0, number=5))
    assert store.read(tmp_path).frame["throughput_images_per_s"].tolist() == [1.0]
    compaction.compact(tmp_path)
    assert store.read(tmp_path).frame["throughput_images_per_s"].tolist() == [1.0]
    (name,) = names(tmp_path)
    rates = pq.read_table(tmp_path / name)["throughput_images_per_s"].to_pylist()
    assert rates == [1.0, 2.0]


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


def test_folders_of_machines_copied_together(tmp_path: Path) -> None:
    """No name means two things, even for machines of one kind; sub-folders stay what they are."""
    alike = {"run_id": "20260101T000000Z-other1"}
    folders = [fill(tmp_path / name, range(2)) for name in "ab"]
    folders.append(fill(tmp_path / "c", range(1), **alike))
    folders.append(fill(tmp_path / "d", range(2), machine="c" * 12))
    before = everything(tmp_path)
    for folder in folders:
        compaction.compact(folder)
    (a,), (b,), (c,), (d,) = (names(folder) for folder in folders)
    assert a == b
    assert a != c
    assert a[:20] == c[:20] != d[:20]
    same(tmp_path, before)
    compaction.compact(tmp_path)
    assert names(tmp_path) == [f"a/{a}", f"b/{b}", f"c/{c}", f"d/{d}"]
    together = tmp_path / "together"
    for folder in folders:
        shutil.copytree(folder, together, dirs_exist_ok=True)
    same(together, before)
    compaction.compact(together)
    assert sorted(n[:20] for n in names(together)) == [a[:20], d[:20]]
    same(together, before)


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


def test_a_link_to_nothing_is_named_and_ends_no_reader(tmp_path: Path) -> None:
    fill(tmp_path, range(1))
    (tmp_path / "link.parquet").symlink_to(tmp_path / "nowhere")
    found = store.read(tmp_path)
    assert len(found.frame) == 4
    assert found.passed_over == ["link.parquet: a link to nothing; passed over"]


def test_only_the_columns_asked_for_are_read(tmp_path: Path) -> None:
    """Another one may even be broken."""
    compaction.compact(fill(tmp_path, range(4)))
    path = tmp_path / names(tmp_path)[0]
    group = pq.read_metadata(path).row_group(0)
    chunk = next(
        column
        for column in (group.column(n) for n in range(group.num_columns))
        if column.path_in_schema == "samples_s.list.element"
    )
    with path.open("r+b") as file:
        file.seek(chunk.data_page_offset)
        file.write(b"\0" * chunk.total_compressed_size)
    assert store.read(tmp_path).passed_over
    for found in (
        store.read(tmp_path, ["case_id", "status"]),
        store.summary(tmp_path, ["case_id", "status", "contaminated"]),
    ):
        assert len(found.frame) == 16
        assert not found.passed_over


def test_a_summary_is_small_sorted_and_of_a_plan(tmp_path: Path) -> None:
    """Strings as categories, a code of the warnings as a truth value, each try once."""
    compaction.compact(fill(tmp_path, range(2, 6)))
    fill(tmp_path, range(3))  # earlier ones; one night is there twice
    write(
        tmp_path / "more", record(plan="other", run_id="20260102T000000Z-failed", status="failed")
    )
    wanted = ["case_id", "started_at", "contaminated", "throughput_images_per_s", "reason"]
    frame = store.summary(tmp_path, wanted, plan="one").frame
    whole = store.read(tmp_path).frame
    whole = whole[whole["plan"] == "one"].reset_index(drop=True)
    assert list(frame.columns) == wanted
    assert len(frame) == 24
    assert isinstance(frame["case_id"].dtype, pd.CategoricalDtype)
    assert frame["case_id"].tolist() == whole["case_id"].tolist()
    assert frame["started_at"].tolist() == whole["started_at"].tolist()
    rates = (f["throughput_images_per_s"].tolist() for f in (frame, whole))
    assert next(rates) == next(rates)
    assert frame["reason"].isna().all()
    assert frame["contaminated"].tolist() == ["contaminated" in w for w in whole["warnings"]]
    assert frame["contaminated"].sum() == 4
    assert store.summary(tmp_path, ["reason"]).frame["reason"].tolist().count("for a reason") == 1
    assert len(store.summary(tmp_path, ["reason"], plan="none").frame) == 0
    assert store.summary(tmp_path / "absent", wanted).frame.empty


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


def test_nothing_there(bench: Bench, tmp_path: Path) -> None:
    """No folder, an empty one, one with nothing usable: exit 3; wrong use: exit 2."""
    done = bench("compact")
    assert (done.code, done.out) == (3, "")
    assert "There is no results folder" in done.err
    (tmp_path / "data").mkdir()
    assert bench("compact", "--results", "data").code == 3
    (tmp_path / "data" / "corrupt.parquet").write_bytes(b"PAR1")
    done = bench("compact", "--results", "data")
    assert done.code == 3
    assert "corrupt.parquet: not readable" in done.err
    assert bench("compact", "everything").code == 2
