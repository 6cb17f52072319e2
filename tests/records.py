"""Made-up records for tests of what only reads them. Their numbers are nobody's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bench import store
from bench.facts import Environment
from bench.measurement import Measurement
from bench.schema import BUDGETS, Case, Record

START = datetime(2026, 1, 1, tzinfo=UTC)


def record(
    case: Case | None = None,
    rate: float | None = 100.0,
    *,
    status: Any = "measured",
    measurement: dict[str, Any] | None = None,
    **more: Any,
) -> Record:
    """A record with the given throughput; anything else can be set by name."""
    case = case or Case()
    number = more.pop("number", 0)
    found: dict[str, Any] = {}
    if status == "measured" and rate is not None:
        found = {
            "throughput_images_per_s": rate,
            "throughput_ci_low": rate * 0.98,
            "throughput_ci_high": rate * 1.02,
            "samples_s": [case.batch_size / rate] * 8,
        }
    values: dict[str, Any] = {
        "run_id": "20260101T000000Z-aaaaaa",
        "plan": "one",
        "plan_hash": "0" * 12,
        "planned": 1,
        "case_id": case.case_id,
        "round": 1,
        "purpose": "grid",
        "started_at": START + timedelta(minutes=number),
        "seconds": 1.0,
        "worker": "forked",
        "status": status,
        "reason": None if status == "measured" else "for a reason",
        "warnings": [],
        "case": case,
        "global_batch_size": case.batch_size,
        "budget": BUDGETS["quick"],
        "device_name": "Test CPU" if case.device == "cpu" else "Test GPU",
        "device_class": "cpu" if case.device == "cpu" else "gpu",
        "machine_fingerprint": "m",
        "software_fingerprint": "s",
        "environment": Environment(bench_version="0", cpu_model="Test CPU"),
        "measurement": Measurement(**(found | (measurement or {}))),
    }
    return Record(**(values | more))


def write(folder: Path, *records: Record) -> Path:
    """Store records as a run does."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(records):
        store.append(folder, one, number)
    return folder
