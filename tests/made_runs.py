"""Made-up runs as a nightly plan leaves them, and what a folder of them holds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from bench import sentinel, store
from bench.schema import Case, Record
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
