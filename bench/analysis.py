"""Records → the rows a report shows: one a series, the newest. Pure functions of frames."""

from __future__ import annotations

import csv
import math
import shlex
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
from msgspec import Struct

from bench import selectors, sentinel, words
from bench.errors import WrongUse
from bench.schedules import FINAL, FIT, GRID, SCREEN, SEARCH
from bench.schema import Case
from bench.selectors import CASE_FIELDS, as_text
from bench.stats.spread import FEWEST_PROCESSES, Spread, spread

Row = dict[Hashable, Any]
SERIES = ["case_id", "device_name", "machine_fingerprint", "simulated"]
DEFAULTS = {f.name: f.default for f in msgspec.structs.fields(Case)}


# How the rounds of one run become one row; throughput has its own interval.
OVER_ROUNDS = {
    "latency_p50_ms": "mean",
    "latency_p90_ms": "mean",
    "latency_p95_ms": "mean",
    "latency_p99_ms": "mean",
    "peak_host_memory_bytes": "max",
    "peak_device_memory_bytes": "max",
    "setup_s": "mean",
    "build_s": "mean",
    "first_step_s": "mean",
    "first_request_s": "mean",
    "latency_p999_ms": "mean",
    "data_wait_s": "mean",
    "copy_s": "mean",
    "compute_s": "mean",
    "train_s": "mean",
    "achieved_tflops": "mean",
    "peak_share": "mean",
    "energy_j_per_image": "mean",
    "energy_total_j_per_image": "mean",
}


def newest(frame: pd.DataFrame) -> pd.DataFrame:
    """For each case on each machine its newest run; several rounds become one row.

    The row of several rounds holds their mean throughput and, from three rounds
    on, a t interval between processes in place of the one within a process; its
    column `spread` is a stats.spread.Spread. If a round was not measured, the row is
    that round's, and says how many were.
    """
    rows = []
    for _, every in frame.groupby(SERIES, dropna=False, sort=False):
        careful = every[every["purpose"] != FINAL]  # those measured only what they had to decide
        series = every if careful.empty else careful
        last = series[series["run_id"] == series["run_id"].max()]
        if (last["purpose"] == GRID).any():  # a search's try of the same case is no round of it
            last = last[last["purpose"] == GRID]
        rows.append(last.iloc[-1] if len(last) == 1 else _merged(last))
    return pd.DataFrame(rows, columns=[*frame.columns, "spread"]).reset_index(drop=True)


def _merged(rounds: pd.DataFrame) -> pd.Series[Any]:
    """One row for several rounds of a run."""
    measured = rounds[rounds["status"] == "measured"]
    if len(measured) < len(rounds):
        row = rounds[rounds["status"] != "measured"].iloc[-1].copy()
        row["reason"] = f"{row['reason']} ({len(measured)} of {len(rounds)} rounds were measured)"
        return row
    row = rounds.iloc[-1].copy()
    row["warnings"] = sorted({code for codes in rounds["warnings"] for code in codes})
    for name, how in OVER_ROUNDS.items():
        row[name] = rounds[name].agg(how)
    for name, value in _between(rounds).items():
        row[name] = value
    return row


def _between(rounds: pd.DataFrame) -> dict[str, Any]:
    """Mean of several processes' throughputs, its 95 % t interval, and their spread."""
    rates = rounds["throughput_images_per_s"].tolist()
    found = spread(rates, [_relative_half_width(r) for r in rounds.to_dict("records")])
    half = math.nan if found.half_width is None else found.half_width
    low, high = math.exp(-half), math.exp(half)
    projected = float(rounds["projected_s"].mean())
    return {
        "throughput_images_per_s": found.mean,
        "throughput_ci_low": found.mean * low,
        "throughput_ci_high": found.mean * high,
        "projected_s": projected,
        "projected_ci_low_s": projected * low,
        "projected_ci_high_s": projected * high,
        "spread": found,
    }


NOTE_COLUMNS = [
    "run_id", "purpose", "round", "status", "reason", "case_id", "batch_size", "simulated",
    "throughput_images_per_s", "throughput_ci_low", "throughput_ci_high",
]  # fmt: skip


def cases(frame: pd.DataFrame) -> pd.DataFrame:
    """The records that are measurements of cases: no sentinel, no short tries of searches."""
    return frame[~frame["purpose"].isin([sentinel.PURPOSE, FIT, SCREEN])]


def largest_batches(frame: pd.DataFrame, runs: set[str]) -> list[str]:
    """A sentence for each search of these runs: what fits, and which size is fastest.

    frame: records of all purposes, with at least NOTE_COLUMNS.
    """
    rows = frame[frame["purpose"].isin([SEARCH, FIT]) & frame["run_id"].isin(runs)]
    sizes = "b" + rows["batch_size"].astype(str)
    names = [c.replace(f"/{b}/", "/b*/", 1) for c, b in zip(rows["case_id"], sizes, strict=True)]
    return [_largest(str(name), tries) for (_, name), tries in rows.groupby(["run_id", names])]


def _largest(name: str, tries: pd.DataFrame) -> str:
    marked = "SIMULATED, not a measurement: " if tries["simulated"].any() else ""
    fits = tries[tries["status"] == "measured"]
    if fits.empty:
        return f"{marked}{name}: no batch size was found that runs: {tries['reason'].iloc[0]}"
    most = int(fits["batch_size"].max())
    return f"{marked}{name}: {_why_not_more(most, tries)}{_fastest(fits)}."


def _why_not_more(most: int, tries: pd.DataFrame) -> str:
    """What is known of the sizes beyond the largest that fits."""
    more = tries[tries["batch_size"] > most].sort_values("batch_size").to_dict("records")
    ended = [row for row in more if row["status"] in ("failed", "timeout")]
    if ended:
        last = ended[0]
        return (
            f"a batch of {most:,} fits; the search ended at {last['batch_size']:,} "
            f"({last['status']}), which says nothing of memory"
        )
    if more:
        first = more[0]
        return (
            f"the largest batch that fits is {most:,} ({first['batch_size']:,}: {first['status']})"
        )
    return (
        f"the largest batch tried is {most:,}; by its forecast more could take the memory that "
        "others need, or the search was interrupted"
    )


def _fastest(fits: pd.DataFrame) -> str:
    """Of the sizes that were measured as the plan says."""
    timed = fits[fits["purpose"] == SEARCH].sort_values("throughput_images_per_s")
    if timed.empty:
        return ""
    best = timed.iloc[-1]
    rate, low, high = (best[f"throughput_{x}"] for x in ("images_per_s", "ci_low", "ci_high"))
    sizes = ", ".join(f"{size:,}" for size in sorted(timed["batch_size"]))
    return (
        f"; the fastest of {sizes} is {int(best['batch_size']):,} with {words.rate(rate)} images/s "
        f"{words.half_width(rate, low, high)}"
    )


def machine_changes(frame: pd.DataFrame, runs: set[str]) -> list[str]:
    """A sentence for each of these runs whose sentinel says that the machine changed.

    frame: records of all purposes, with at least NOTE_COLUMNS.
    """
    rows = frame[(frame["purpose"] == sentinel.PURPOSE) & frame["run_id"].isin(runs)]
    found = []
    for run_id, pair in rows.sort_values("round").groupby("run_id"):
        speeds = [_speed(row) for row in pair.to_dict("records")]
        said = sentinel.change(speeds[0], speeds[-1]) if len(speeds) > 1 else None
        if said is not None:
            found.append(f"Run {run_id}: {said}")
        lost = pair[pair["status"] != "measured"]
        if len(lost):
            found.append(f"Run {run_id}: its sentinel was not measured: {lost['reason'].iloc[0]}")
    return found


def _speed(row: Row) -> sentinel.Speed:
    names = ("throughput_images_per_s", "throughput_ci_low", "throughput_ci_high")
    return sentinel.Speed(*(None if pd.isna(row[name]) else float(row[name]) for name in names))


class Ratio(Struct, frozen=True):
    """A throughput over another case's, with the relative half-width both intervals give.

    The half-width (root of the sum of squares) knows nothing of the difference
    between processes unless both sides had several rounds; `doubt` says so.
    """

    other_id: str
    value: float
    relative_half_width: float | None
    doubt: str | None = None  # why it decides nothing: `in one process`; None: it may


class Speedup(Struct, frozen=True):
    """One measured case against its baseline and against the best fp32 of its machine."""

    row: Row
    baseline: Ratio | None
    best_fp32: Ratio | None


DEFAULT_BASELINE = "engine=eager,precision=fp32,memory_format=channels_last,deterministic=false"


def speedups(rows: pd.DataFrame, selector: str | None) -> list[Speedup]:
    """Each measured row against the baseline row that agrees in all other fields.

    Only rows of the same machine and device are compared. Ratios are of
    throughputs; None where there is nothing to compare with.
    """
    measured = rows[rows["status"] == "measured"]
    baseline = selectors.parse(selector or DEFAULT_BASELINE)
    if baseline.run is not None:
        raise WrongUse(
            f"The baseline {selector!r} names a run, but the report shows the newest of each case; "
            "runs are compared by bench compare A B."
        )
    chosen = selectors.having(measured, baseline.fields)
    if selector and chosen.empty and not measured.empty:
        raise WrongUse(f"No measured record matches the baseline {selector!r}.")
    free = [f for f in CASE_FIELDS if f not in baseline.fields]
    return [_speedup(row, measured, chosen, free) for row in measured.to_dict("records")]


def _speedup(row: Row, measured: pd.DataFrame, chosen: pd.DataFrame, free: list[str]) -> Speedup:
    same = alike(chosen, row, [*free, *PLACE])
    return Speedup(row, ratio_over(row, same), best_fp32(measured, row))


PLACE = ["machine_fingerprint", "device_name"]
# What two cases must have in common for one to be the better way to do the work of the other.
WORK = [
    "task", "model", "weights", "classes", "image_size", "data", "batch_size", "device", "epochs",
    "world_size",
]  # fmt: skip


def best_fp32(measured: pd.DataFrame, row: Row) -> Ratio | None:
    """`row` over the fastest fp32, by whatever engine, that does its work in its place."""
    rivals = alike(measured[measured["precision"] == "fp32"], row, [*WORK, *PLACE])
    return ratio_over(row, rivals.sort_values("throughput_images_per_s"))


class Scaling(Struct, frozen=True):
    """Several devices against one: `efficiency` is images/s ÷ (devices × images/s of one)."""

    row: Row
    efficiency: Ratio | None


def scalings(rows: pd.DataFrame) -> list[Scaling]:
    """Each measured row of several devices against the row that differs only in how many."""
    measured = rows[rows["status"] == "measured"]
    free = [*(f for f in CASE_FIELDS if f != "world_size"), *PLACE]
    alone = measured[measured["world_size"] == 1]
    return [
        Scaling(row, _efficiency(row, alike(alone, row, free)))
        for row in measured[measured["world_size"] > 1].to_dict("records")
    ]


def _efficiency(row: Row, one: pd.DataFrame) -> Ratio | None:
    found = ratio_over(row, one)
    if found is None:
        return None
    return msgspec.structs.replace(found, value=found.value / row["world_size"])


def ratio_over(row: Row, others: pd.DataFrame) -> Ratio | None:
    """`row` over the last of `others`; None if there is none."""
    if others.empty:
        return None
    other: Row = others.to_dict("records")[-1]
    value = row["throughput_images_per_s"] / other["throughput_images_per_s"]
    widths = [_relative_half_width(r) for r in (row, other)]
    if other["case_id"] == row["case_id"]:
        return Ratio(str(other["case_id"]), 1.0, 0.0)
    known = [w for w in widths if w is not None]
    half = math.hypot(*known) if len(known) == len(widths) else None
    return Ratio(str(other["case_id"]), float(value), half, _doubt(row, other))


def _doubt(row: Row, other: Row) -> str | None:
    """Why the ratio of two rows decides nothing: processes differ, and so do hours of a machine.

    Only the rounds of one run are interleaved.
    """
    if row["run_id"] != other["run_id"]:
        return "in different runs"
    fewest = min(_processes(row), _processes(other))
    if fewest >= FEWEST_PROCESSES:
        return None
    return "in one process" if fewest == 1 else f"in {fewest} processes"


def _processes(row: Row) -> int:
    """How many a row of `newest` was made of."""
    return row["spread"].processes if isinstance(row["spread"], Spread) else 1


def _relative_half_width(row: Row) -> float | None:
    low, high = row["throughput_ci_low"], row["throughput_ci_high"]
    if pd.isna(low) or pd.isna(high):
        return None
    return float((high - low) / 2 / row["throughput_images_per_s"])


def alike(frame: pd.DataFrame, row: Row, fields: list[str]) -> pd.DataFrame:
    """Rows equal to `row` in these fields; unknown equals unknown."""
    keep = pd.Series(True, index=frame.index)
    for field in fields:
        column, value = frame[field], row[field]
        keep &= column.isna() if pd.isna(value) else column == value
    return frame[keep]


def command(row: Row, other: Row | None = None) -> str:
    """The command that measures this row's case again, for a shell; with `other`'s in one run."""
    flags = []
    for name in CASE_FIELDS:
        values = [r[name] for r in (row, other or row) if not pd.isna(r[name])]
        if name in ("full", "cudnn_benchmark") or all(v == DEFAULTS[name] for v in values):
            continue
        flag = f"--{name.replace('_', '-')}"
        text = ",".join(dict.fromkeys(map(as_text, values)))
        flags.append(flag if isinstance(values[-1], bool) else f"{flag} {shlex.quote(text)}")
    if row["full"]:
        flags.append("--full")
    if row["budget_name"] == "custom":
        flags += [
            f"--target-ci {100 * row['budget_target_ci']:g}%",
            f"--max-seconds {row['budget_max_seconds']:g}",
            f"--timeout {row['budget_timeout_s']:g}",
        ]
    elif row["budget_name"] != "quick":
        flags.append(f"--budget {row['budget_name']}")
    return " ".join(["bench run --plan one", *flags])


def article_claims() -> list[dict[str, str]]:
    """The article's published figures, with their source."""
    path = Path(__file__).parent / "references" / "cifar10_article.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
