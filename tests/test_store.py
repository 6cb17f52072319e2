"""Records and Parquet: nothing is lost, nothing foreign is believed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench import schema, store
from bench.schema import Case
from tests.conftest import Bench
from tests.records import record, write

REQUIRED = set(
    """
    schema_version run_id case_id round purpose started_at status reason warnings
    simulated model weights task device device_name engine precision batch_size
    global_batch_size image_size data recipe memory_format threads seed
    throughput_images_per_s throughput_ci_low throughput_ci_high latency_p50_ms
    latency_p90_ms latency_p95_ms latency_p99_ms peak_host_memory_bytes
    peak_device_memory_bytes setup_s first_step_s samples_s steps_per_sample
    latency_samples_s weights_sha256 first_loss last_loss machine_fingerprint
    software_fingerprint torch torchvision cpu_model cpu_cores_physical threads
    memory_bytes kernel driver git_commit environment_variables
    """.split()  # noqa: SIM905 - a list of names reads better as text
)


def test_every_promised_column_is_there_once_and_described() -> None:
    """Names are unique over all nested nouns."""
    names = [c.name for c in schema.columns()]
    assert len(set(names)) == len(names)
    assert set(names) >= REQUIRED
    assert all(c.description for c in schema.columns())


def test_unknown_is_null_and_lists_keep_their_type(tmp_path: Path) -> None:
    """Read back with the declared types; null, not 0 or NaN, for what was not measured."""
    write(tmp_path, record(status="skipped"))
    table = pq.read_table(next(tmp_path.glob("*.parquet")))
    assert table["throughput_images_per_s"].to_pylist() == [None]
    assert table["peak_device_memory_bytes"].to_pylist() == [None]
    assert table.schema.field("samples_s").type == pa.list_(pa.float64())
    assert table.schema.field("warnings").type == pa.list_(pa.string())
    assert str(table.schema.field("started_at").type) == "timestamp[us, tz=UTC]"


GOLDEN = {
    Case(): "resnet50/infer/cpu/eager/fp32/b1/px224",
    Case(device="cuda:0", precision="amp", batch_size=64): (
        "resnet50/infer/cuda:0/eager/amp/b64/px224"
    ),
    Case(task="train", data="folder:D", loader_workers=2, threads=1, cudnn_benchmark=False): (
        "resnet50/train/cpu/eager/fp32/b1/px224/data=folder:D/loader_workers=2"
        "/cudnn_benchmark=false/threads=1"
    ),
    Case(cudnn_benchmark=False, deterministic=True, threads=1): (
        "resnet50/infer/cpu/eager/fp32/b1/px224/cudnn_benchmark=false/deterministic/threads=1"
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_case_ids_never_change(case: Case) -> None:
    """Golden: a new field must not rename an old series."""
    assert case.case_id == GOLDEN[case]


def test_each_field_of_a_case_tells_cases_apart() -> None:
    """Two cases with one case_id would hide each other's records."""
    for field in msgspec.structs.fields(Case):
        default = field.default
        other = (
            not default
            if isinstance(default, bool)
            else 7
            if field.name in ("classes", "loader_workers", "epochs", "threads", "engine_mode")
            else f"{default}x"
            if isinstance(default, str)
            else default + 1
        )
        changed = msgspec.structs.replace(Case(), **{field.name: other})
        assert changed.case_id != Case().case_id, field.name


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    """A writer killed while its temporary file is there leaves no *.parquet behind."""
    code = """
import os, sys
from pathlib import Path
import pyarrow.parquet as pq
whole = pq.write_table
def half(table, file):
    whole(table, file); file.flush(); file.truncate(100); os.kill(os.getpid(), 9)
pq.write_table = half
from tests.records import record, write
write(Path(sys.argv[1]), record())
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert not list(tmp_path.glob("*.parquet"))
    assert store.read(tmp_path).frame.empty


def test_bad_files_are_named_and_passed_over(bench: Bench, tmp_path: Path) -> None:
    """Corrupt, foreign and too new: the rest is used, each is named on standard error."""
    folder = write(tmp_path / "reports" / "data", record())
    (folder / "corrupt.parquet").write_bytes(b"PAR1 and nothing else")
    pq.write_table(pa.table({"a": [1]}), folder / "foreign.parquet")
    newer = pa.Table.from_pylist([store.row(record())], schema=store.arrow_schema())
    position = newer.column_names.index("schema_version")
    newer = newer.set_column(position, "schema_version", [[schema.SCHEMA_VERSION + 1]])
    pq.write_table(newer, folder / "newer.parquet")
    pq.write_table(
        newer.drop_columns(["warnings", "schema_version"]).append_column("schema_version", [[1]]),
        folder / "half.parquet",
    )
    odd = newer.set_column(position, "schema_version", [["one"]])
    pq.write_table(odd, folder / "odd.parquet")
    done = bench("report")
    assert done.code == 0, done.err
    notes = [line for line in done.err.splitlines() if "passed over" in line]
    assert [n.split(":")[1].strip() for n in notes] == [
        "corrupt.parquet", "foreign.parquet", "half.parquet", "newer.parquet", "odd.parquet",
    ]  # fmt: skip
    assert "upgrade resnet-bench" in notes[3]


def test_an_older_file_without_a_column_reads_as_null(tmp_path: Path) -> None:
    """What came later was not measured; a field of the case that came later had its default."""
    write(tmp_path, record())
    path = next(tmp_path.glob("*.parquet"))
    pq.write_table(pq.read_table(path).drop_columns(["model_bytes", "deterministic"]), path)
    frame = store.read(tmp_path).frame
    assert len(frame) == 1
    assert frame["model_bytes"].isna().all()
    assert frame["deterministic"].tolist() == [False]


def test_folders_of_two_machines_merge_by_copying(tmp_path: Path) -> None:
    """File names hold the run's id, so nothing is overwritten; sub-folders are read too."""
    write(tmp_path / "a", record(machine_fingerprint="a"))
    write(tmp_path / "b", record(machine_fingerprint="b", run_id="20260101T000000Z-bbbbbb"))
    names = [p.name for p in tmp_path.rglob("*.parquet")]
    assert len(set(names)) == 2
    assert set(store.read(tmp_path).frame["machine_fingerprint"]) == {"a", "b"}


def test_the_newest_unfinished_run_of_the_plan_is_found(tmp_path: Path) -> None:
    """Finished runs and other plans are not resumed."""
    write(
        tmp_path,
        record(Case(batch_size=1), run_id="20260101T000000Z-aaaaaa"),
        record(Case(batch_size=2), run_id="20260102T000000Z-bbbbbb", status="oom"),
        record(Case(batch_size=2), run_id="20260103T000000Z-cccccc"),
        record(Case(batch_size=1), run_id="20260103T000000Z-cccccc"),
        record(run_id="20260104T000000Z-dddddd", plan_hash="other"),
    )

    def find(plan: str = "0" * 12, cpu: str = "Test CPU") -> Any:
        return store.unfinished_run(tmp_path, plan, {"cpu_model": cpu}, lambda d: len(d) < 2)

    found = find()
    assert found is not None
    assert found[0] == "20260102T000000Z-bbbbbb"
    (tried,) = found[1].values()
    assert set(found[1]) == {(Case(batch_size=2).case_id, 1, "grid")}
    assert (tried.status, tried.batch_size, tried.images_per_s) == ("oom", 2, None)
    assert find(plan="none") is None
    assert find(cpu="Other CPU") is None


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    """Through Parquet and back to the nouns; other runs stay out of it."""
    measured = record(Case(batch_size=3, deterministic=True), number=1)
    skipped = record(Case(task="train"), status="skipped")
    write(tmp_path, measured, skipped, record(run_id="20260109T000000Z-other"))
    assert store.records(tmp_path, measured.run_id) == [skipped, measured]


def test_a_new_record_never_takes_the_name_of_another(tmp_path: Path) -> None:
    """Also after a file was lost: the number is one more than the highest there is."""
    run_id = record().run_id
    assert store.next_index(tmp_path, run_id) == 0
    write(tmp_path, *(record(Case(batch_size=n)) for n in (1, 2, 3)))
    (tmp_path / f"{run_id}-0000.parquet").unlink()
    assert store.next_index(tmp_path, run_id) == 3
