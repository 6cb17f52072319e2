"""Records of a plan → its nights: for each metric, nights × series. Pure functions of frames.

A night is one run of a plan. A series is a case on a device of a machine; what can be
changed on that machine (torch, driver, …) stays in it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
from msgspec import Struct

from bench import sentinel
from bench.errors import WrongUse
from bench.schedules import CONFIRM, GRID
from bench.stats.nights import Within

Array = np.ndarray[Any, np.dtype[Any]]
SERIES = ["case_id", "device_name", "machine_fingerprint"]
DISTURBED = ("contaminated", "latency_contaminated")


class Metric(Struct, frozen=True):
    """A column that nights are judged by. factor: from the column's unit to the one told.

    void: the warnings under which it is no night's value.
    """

    column: str
    title: str
    unit: str
    more_is_better: bool = False
    factor: float = 1.0
    void: tuple[str, ...] = ("contaminated",)


METRICS = (
    Metric("throughput_images_per_s", "throughput", "images/s", more_is_better=True),
    Metric("latency_p50_ms", "p50 latency", "ms", void=DISTURBED),
    Metric("latency_p99_ms", "p99 latency", "ms", void=DISTURBED),
    Metric("peak_device_memory_bytes", "peak device memory", "MiB", factor=2**-20),
    Metric("peak_host_memory_bytes", "peak host memory", "MiB", factor=2**-20),
    Metric("first_step_s", "first step", "s"),
    Metric("energy_j_per_image", "energy", "J/image"),
)


class Result(Struct, frozen=True):
    """A column that must stay what it is: `share` or `least` is how far it may be off."""

    column: str
    title: str
    share: float = 0.0
    least: float = 0.0
    only_lower: bool = False
    always: bool = False  # whether a measured case that had one has one again


RESULTS = (
    Result("last_loss", "loss", share=0.01, always=True),
    Result("fidelity_sqnr_db", "SQNR against fp32", least=2.0, only_lower=True),
    Result("top1_agreement", "top-1 agreement with fp32", least=0.01, only_lower=True),
)

COLUMNS = [
    "run_id", "plan", "planned", "case_id", "round", "purpose", "started_at", "status", "reason",
    "device_name", "machine_fingerprint", "simulated", *DISTURBED,
    *(m.column for m in METRICS), *(r.column for r in RESULTS),
]  # fmt: skip
# throughput of the sentinel is rounds a second: a metric of the machine.


class Family(Struct, frozen=True):
    """One metric: natural logarithms, larger is worse, NaN where a night has none."""

    metric: Metric
    values: Array  # nights × series: mean of the night's processes
    processes: Array  # nights × series: how many
    within: Within
    again: Array  # mean of tonight's confirming processes alone; NaN where there are none
    again_processes: Array  # how many

    @property
    def first(self) -> tuple[Array, Array]:
        """Mean of tonight's other processes of each series, NaN for none, and how many.

        They are what was suspected.
        """
        more, all_ = self.again_processes, self.processes[-1]
        rest = np.where(all_ > 0, self.values[-1], 0.0) * all_
        rest -= np.where(more > 0, self.again, 0.0) * more
        count = all_ - more
        return np.where(count > 0, rest / np.maximum(count, 1), np.nan), count


class History(Struct, frozen=True):
    """The nights of a plan on the machine of the last of them, which is the one judged."""

    plan: str
    runs: list[str]
    starts: list[pd.Timestamp]
    series: pd.DataFrame  # a row a series: SERIES
    families: list[Family]
    rows: pd.DataFrame  # the records, with `night` and `series` as numbers

    @property
    def tonight(self) -> int:
        """The index of the night judged."""
        return len(self.runs) - 1

    @property
    def confirming(self) -> Array:
        """How often each series was measured again tonight, whatever came of it."""
        mine = self.rows[(self.rows["night"] == self.tonight) & (self.rows["purpose"] == CONFIRM)]
        return np.bincount(mine["series"], minlength=len(self.series))

    @property
    def confirmed(self) -> bool:
        """Whether suspects of the night were measured again, disturbed or not."""
        return bool(self.confirming.any())

    def index(self, run_id: str) -> int | None:
        """Which night a run is."""
        return self.runs.index(run_id) if run_id in self.runs else None


def choose(frame: pd.DataFrame, plan: str | None) -> str:
    """The newest complete night: of `plan`, else of the plan that has most of them.

    frame: records with at least COLUMNS. A night is complete when its cases all have
    records. Raises WrongUse.
    """
    runs = complete(frame)
    if not runs:
        raise WrongUse(
            "No run is complete yet (simulated ones do not count); bench regress --run ID judges "
            "one as it is."
        )
    firsts = frame.drop_duplicates("run_id")
    plans = {str(r): str(p) for r, p in zip(firsts["run_id"], firsts["plan"], strict=True)}
    newest = {plans[run]: (place, run) for place, run in enumerate(runs)}
    if plan is None or plan not in newest:
        counts = Counter(plans[run] for run in runs)
        plan = max(newest, key=lambda name: (counts[name], newest[name]))
    return newest[plan][1]


def complete(frame: pd.DataFrame) -> list[str]:
    """Runs with as many grid records as they planned, oldest first; simulated ones are none."""
    grid = frame[(frame["purpose"] == GRID) & ~frame["simulated"].astype(bool)]
    groups = grid.groupby("run_id", observed=True)
    counts = groups.size()
    enough = counts >= groups["planned"].max()
    starts = groups["started_at"].min()
    return [str(i) for i in starts[enough].sort_values().index]


def of(frame: pd.DataFrame, run_id: str) -> History | None:
    """The nights up to `run_id`; None where that run has no record of a case.

    Only nights that share a machine with it, and only what was measured, not simulated.
    """
    # One mask and one copy: a year of nights is millions of rows.
    cases = frame["purpose"].isin([GRID, CONFIRM])
    mine = frame[["plan", "machine_fingerprint"]][cases & (frame["run_id"] == run_id)]
    if mine.empty:
        return None
    plan = str(mine["plan"].iloc[0])
    cases &= (frame["plan"] == plan) & ~frame["simulated"].astype(bool)
    here = cases & frame["machine_fingerprint"].isin(list(mine["machine_fingerprint"].unique()))
    cases &= frame["run_id"].isin(list(frame["run_id"][here].unique()))
    grid = frame[["run_id", "started_at"]][cases & (frame["purpose"] == GRID)]
    starts = grid.groupby("run_id", observed=True)["started_at"].min().sort_values()
    if run_id not in starts.index:  # simulated
        return None
    runs = [str(r) for r in starts.index]
    runs = runs[: runs.index(run_id) + 1]
    starts = starts[: len(runs)]
    rows = frame[cases & frame["run_id"].isin(runs)]
    series = rows.groupby(SERIES, sort=False, observed=True, dropna=False).ngroup()
    rows = rows.assign(
        night=rows["run_id"].map({run: n for n, run in enumerate(runs)}).astype(np.int32),
        series=series.astype(np.int32),
    )
    names = rows.drop_duplicates("series").sort_values("series")[SERIES].astype(str)
    count = len(names)
    families = [_family(m, rows, len(runs), count) for m in METRICS]
    return History(
        plan, runs, list(starts), names.reset_index(drop=True),
        [f for f in families if np.isfinite(f.values).any()], rows.reset_index(drop=True),
    )  # fmt: skip


def _family(metric: Metric, rows: pd.DataFrame, nights: int, series: int) -> Family:
    raw = rows[metric.column].to_numpy(dtype=float, na_value=np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(raw) * (-1 if metric.more_is_better else 1)
    usable = np.isfinite(logs) & (rows["status"] == "measured").to_numpy()
    for code in metric.void:
        usable &= ~rows[code].to_numpy(dtype=bool)
    logs = logs[usable]
    night = rows["night"].to_numpy(dtype=np.int64)[usable]
    place = night * series + rows["series"].to_numpy()[usable]
    sums = np.bincount(place, logs, nights * series)
    counts = np.bincount(place, minlength=nights * series)
    with np.errstate(invalid="ignore"):
        values = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    confirming = (rows["purpose"] == CONFIRM).to_numpy()[usable]
    shape = (nights, series)
    return Family(
        metric, values.reshape(shape), counts.reshape(shape).astype(np.int32),
        _within(logs, 2 * place + confirming, 2 * nights * series),
        *_again(logs, place, confirming & (place >= (nights - 1) * series), series),
    )  # fmt: skip


def _again(logs: Array, place: Array, mine: Array, series: int) -> tuple[Array, Array]:
    """Mean of tonight's confirming processes of each series, and how many."""
    counts = np.bincount(place[mine] % series, minlength=series)
    sums = np.bincount(place[mine] % series, logs[mine], series)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan), counts


def _within(logs: Array, group: Array, groups: int) -> Within:
    """Noise of processes of one night; first rounds and confirming ones apart.

    A suspect's first rounds were chosen for being slow; what was measured to confirm was not.
    """
    counts = np.bincount(group, minlength=groups)
    many = counts > 1
    if not many.any():
        return Within()
    sums, squares = np.bincount(group, logs, groups), np.bincount(group, logs**2, groups)
    spread = np.maximum(squares[many] - sums[many] ** 2 / counts[many], 0.0)
    return Within(float(spread.sum()), int((counts[many] - 1).sum()))


def machine(frame: pd.DataFrame, history: History) -> Array:
    """The sentinel's speed of each night as a logarithm, larger is slower; NaN where unknown."""
    rows = frame[(frame["purpose"] == sentinel.PURPOSE) & (frame["status"] == "measured")]
    rows = rows[rows["run_id"].isin(history.runs) & ~rows["contaminated"].astype(bool)]
    speeds = rows.groupby(rows["run_id"].astype(str))["throughput_images_per_s"].mean()
    with np.errstate(divide="ignore"):
        return np.asarray(-np.log(speeds.reindex(history.runs).to_numpy(dtype=float)))
