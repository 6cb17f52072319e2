"""Whoever reads finds merged records as it found single ones, and reads no more than it needs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pyarrow.parquet as pq
import pytest

from bench import compaction, store
from tests.conftest import TINY, Bench
from tests.made_runs import everything, fill, names, night
from tests.records import record, write


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
