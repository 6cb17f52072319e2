"""Made-up histories of nights for tests of what judges them. Their numbers are nobody's."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from bench import sentinel, store
from bench.facts import Environment
from bench.schema import Case, Record
from tests.records import record

START = datetime(2026, 10, 1, tzinfo=UTC)
CASES = [
    Case(task=task, precision=precision, batch_size=size)
    for task, precision in (("infer", "fp32"), ("infer", "int8"), ("train", "fp32"))
    for size in (1, 8)
]
ROUNDS = 2
# night, case, record → the record to keep, or None for none
Change = Callable[[int, Case, Record], Record | None]


def run_id(night: int) -> str:
    """Of the night so many days after the first."""
    return f"{START + timedelta(days=night):%Y%m%dT%H%M%SZ}-{night:06x}"


def make(
    folder: Path,
    nights: int,
    change: Change = lambda _night, _case, made: made,
    *,
    cases: Iterable[Case] = CASES,
    sigma: float = 0.008,
    seed: int = 1,
    sentinels: Callable[[int], float] = lambda _: 25.0,
) -> Path:
    """Nights of a plan of two rounds, each with its sentinels; `change` alters single records."""
    rng = random.Random(seed)
    cases, rows = list(cases), []
    folder.mkdir(parents=True, exist_ok=True)
    for night in range(nights):
        start = START + timedelta(days=night)
        common: dict[str, Any] = {"run_id": run_id(night), "plan": "nightly"}
        made = [record(sentinel.CASE, sentinels(night), purpose=sentinel.PURPOSE, **common)]
        for number in range(1, ROUNDS + 1):
            for place, case in enumerate(cases):
                rate = 100 * (1 + place) * rng.gauss(1, sigma)
                found = {
                    "latency_p50_ms": 1000 * case.batch_size / rate,
                    "peak_host_memory_bytes": int(1e9 * rng.gauss(1, 0.001)),
                    "last_loss": 2.5 if case.task == "train" else None,
                }
                one = record(
                    case, rate, round=number, planned=ROUNDS * len(cases), measurement=found,
                    **common,
                )  # fmt: skip
                kept = change(night, case, one)
                made += [] if kept is None else [kept]
        made.append(
            record(sentinel.CASE, sentinels(night), purpose=sentinel.PURPOSE, round=2, **common)
        )
        for index, one in enumerate(made):
            at = start + timedelta(minutes=index)
            rows.append(store.row(msgspec.structs.replace(one, started_at=at)))
    # One file: what `bench compact` leaves, and hundreds of times faster to read.
    table = pa.Table.from_pylist(rows, schema=store.arrow_schema())
    pq.write_table(table, folder / f"2026-10-{seed:012x}-{nights:012x}.parquet")
    return folder


def slower(made: Record, share: float) -> Record:
    """The record with so much less throughput and more latency."""
    m = made.measurement
    rate, p50 = m.throughput_images_per_s, m.latency_p50_ms
    return msgspec.structs.replace(
        made,
        measurement=msgspec.structs.replace(
            m,
            throughput_images_per_s=None if rate is None else rate * (1 - share),
            latency_p50_ms=None if p50 is None else p50 / (1 - share),
        ),
    )


def with_software(made: Record, **facts: Any) -> Record:
    """The record with other software facts."""
    environment: Environment = msgspec.structs.replace(made.environment, **facts)
    return msgspec.structs.replace(made, environment=environment, software_fingerprint="other")
