"""A year of made-up nights as `bench compact` leaves it: what judging and reading it takes.

What `store.summary` reads is what nights are judged by: no raw samples. The files are made
with the columns, encodings and row groups of `bench compact`; the numbers in them are nobody's.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.random import Generator

from bench import merging, store
from bench.schema import SCHEMA_VERSION, Case

BEGIN = datetime(2026, 1, 1, 1, tzinfo=UTC)
COLUMNS = [
    "run_id", "plan", "plan_hash", "case_id", "round", "purpose", "started_at", "status", "reason",
    "worker", "contaminated", "device_name", "simulated", "machine_fingerprint",
    "software_fingerprint", "throughput_images_per_s", "throughput_ci_low", "throughput_ci_high",
    "latency_p50_ms", "latency_p90_ms", "latency_p99_ms", "peak_host_memory_bytes",
    "peak_device_memory_bytes", "setup_s", "energy_j_per_image", "top1_agreement",
]  # fmt: skip


def night(number: int, cases: list[str], random: Generator) -> pa.Table:
    """All cases of one night, half a minute each on many machines at once."""
    begin = BEGIN + timedelta(days=number)
    count = len(cases)
    rate = 100 * np.exp(random.normal(0, 0.01, count))
    samples = [[0.01, 0.011, 0.0105]]
    texts = {
        "run_id": f"{begin:%Y%m%dT%H%M%S}Z-{number:06x}", "plan": "nightly", "plan_hash": "0" * 12,
        "purpose": "grid", "worker": "fresh", "status": "measured", "model": "resnet50",
        "weights": "random", "task": "infer", "device": "cpu", "engine": "eager", "torch": "0",
        "precision": "fp32", "data": "synthetic", "recipe": "sgd", "memory_format": "channels_last",
        "budget_name": "standard", "device_name": "made up", "machine_fingerprint": "0" * 12,
        "software_fingerprint": f"{number // 30:012x}", "bench_version": "0", "device_class": "cpu",
    }  # fmt: skip
    numbers = {
        "started_at": [begin + timedelta(milliseconds=n) for n in range(count)],
        "case_id": cases, "throughput_images_per_s": rate, "throughput_ci_low": 0.99 * rate,
        "throughput_ci_high": 1.01 * rate, "latency_p50_ms": 1000 / rate,
        "latency_p90_ms": 1100 / rate, "latency_p99_ms": 1500 / rate,
        "peak_host_memory_bytes": random.integers(2**30, 2**31, count),
        "setup_s": random.uniform(1, 2, count), "energy_j_per_image": 1 / rate,
        # Every metric and result that nights are judged by: no real case has all of them.
        "first_step_s": random.uniform(0.9, 1.1, count), "last_loss": random.normal(2, 1e-3, count),
        "fidelity_sqnr_db": random.normal(25, 0.1, count),
        "top1_agreement": random.normal(0.99, 1e-3, count),
        "samples_s": samples * count,
        "warnings": [["contaminated"] if spoilt else [] for spoilt in random.random(count) < 0.02],
    }  # fmt: skip
    defaults = {"int64": SCHEMA_VERSION, "double": 1.0, "bool": False, "string": ""}
    columns = []
    for field in store.arrow_schema():
        if field.name in numbers:
            columns.append(pa.array(numbers[field.name], field.type))
        elif field.name in texts:
            columns.append(pa.repeat(pa.scalar(texts[field.name]), count))
        elif field.nullable:
            columns.append(pa.nulls(count, field.type))
        else:
            value = pa.scalar(defaults[str(field.type)], field.type)
            columns.append(pa.repeat(value, count))
    return pa.Table.from_arrays(columns, schema=store.arrow_schema())


def make(folder: Path, cases: int, nights: int) -> None:
    """One file a month."""
    random = np.random.default_rng(1)
    names = [Case(batch_size=n + 1, threads=1).case_id for n in range(cases)]
    months: dict[str, list[int]] = {}
    for number in range(nights):
        months.setdefault(f"{BEGIN + timedelta(days=number):%Y-%m}", []).append(number)
    for place, (month, numbers) in enumerate(months.items()):
        path = folder / f"{month}-{'0' * 12}-{place:012x}.parquet"
        with path.open("wb") as file, merging.writer(file) as writer:
            for number in numbers:
                writer.write_table(night(number, names, random), row_group_size=merging.ROWS)


def tell(folder: Path) -> None:
    """Read and say what it took; in a process of its own, whose memory is nobody else's."""
    begin = time.perf_counter()
    frame = store.summary(folder, COLUMNS).frame
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    held = frame.memory_usage(deep=False).sum() / 2**30
    print(
        f"{len(frame):,} rows of {len(COLUMNS)} columns ({frame['case_id'].nunique():,} series): "
        f"{seconds:.1f} s, {peak:.2f} GiB at most, {held:.2f} GiB held; "
        f"{frame['contaminated'].sum():,} contaminated"
    )


def judge(folder: str) -> None:
    """`bench regress` on all of it, as a user starts it."""
    command = [sys.executable, "-m", "bench", "regress", "--no-confirm", "--json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    begin = time.perf_counter()
    done = subprocess.run(
        [*command, "--results", folder], capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    found = json.loads(done.stdout)
    # The most of all children so far: an upper bound where reading alone took more.
    bound = "" if peak > before else "at most "
    print(
        f"bench regress --no-confirm: {found['series']:,} series of {found['nights']} nights, "
        f"{len(found['findings'])} findings: {seconds:.1f} s, {bound}{peak / 2**20:.2f} GiB"
    )


def main() -> None:
    """Make, then read and judge in other processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--nights", type=int, default=365)
    parser.add_argument("--folder", help=argparse.SUPPRESS)  # where the files are made already
    asked = parser.parse_args()
    if asked.folder:
        tell(Path(asked.folder))
        return
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        make(Path(folder), asked.cases, asked.nights)
        size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 2**20
        files = len(list(Path(folder).iterdir()))
        print(f"{files} files of {size:,.0f} MiB made in {time.perf_counter() - begin:.0f} s")
        command = [sys.executable, __file__, "--folder", folder]
        judge(folder)
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
