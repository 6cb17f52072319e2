"""`bench compact`: fewer files, the same records."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench import compaction, store
from bench.schema import Record
from tests.conftest import Bench
from tests.made_runs import GPU, HOST, everything, fill, names, night, same
from tests.records import START, record, write


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


def test_a_merged_file_that_cannot_be_read_is_left_with_what_belongs_to_it(
    bench: Bench, tmp_path: Path
) -> None:
    """It holds the run of a leftover, and no longer says whether that is finished."""
    data = fill(tmp_path / "data", range(1))
    kept = data / names(data)[0]
    content = kept.read_bytes()
    compaction.compact(data)
    (merged,) = names(data)
    pq.write_table(pq.read_table(data / merged).drop_columns(["planned"]), data / merged)
    kept.write_bytes(content)
    done = bench("compact", "--results", "data")
    assert done.code == 0, done.err
    assert f"Left as it is: {merged}: not a whole record, it lacks planned." in done.out
    assert names(data) == sorted([merged, kept.name])


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
