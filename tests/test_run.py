"""`bench run` as a user runs it: real processes, real files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import TINY, Bench

pytestmark = pytest.mark.slow


def test_a_run_leaves_records_that_three_libraries_read(bench: Bench, tmp_path: Path) -> None:
    """Both tasks are measured; pandas, DuckDB and Polars see one row a case."""
    import duckdb
    import pandas as pd
    import polars

    done = bench("run", *TINY, "--task", "infer,train", "--batch-size", "2", "--max-seconds", "2")
    assert done.code == 0, done.err
    folder = tmp_path / "reports" / "data"
    frame = pd.read_parquet(folder)
    assert sorted(frame["purpose"]) == ["grid", "grid", "sentinel", "sentinel"]
    frame = frame[frame["purpose"] == "grid"]
    assert sorted(frame["task"]) == ["infer", "train"]
    assert (frame["throughput_images_per_s"] > 0).all()
    assert len(polars.read_parquet(folder / "*.parquet")) == 4
    query = f"select count(*) from read_parquet('{folder}/*.parquet')"
    assert duckdb.sql(query).fetchall() == [(4,)]
    infer = frame[frame["task"] == "infer"].iloc[0]
    train = frame[frame["task"] == "train"].iloc[0]
    assert infer["latency_p50_ms"] > 0
    assert pd.isna(train["latency_p50_ms"])  # not measured is null
    assert train["first_loss"] > 0
    assert pd.isna(infer["first_loss"])
    assert len(set(frame["weights_sha256"])) == 1
    done = bench("report")
    assert done.code == 0
    assert (tmp_path / "reports" / "latest" / "index.html").is_file()
    assert (tmp_path / "reports" / "latest" / "throughput.png").is_file()
