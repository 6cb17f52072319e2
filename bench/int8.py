"""INT8 records against fp32 of the same engine, the best fp32, and what articles claim."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
from msgspec import Struct

from bench import analysis, words
from bench.analysis import DEFAULTS, PLACE, Ratio, Row
from bench.precisions import PRECISIONS, QAT
from bench.selectors import CASE_FIELDS

CLAIMS = Path(__file__).parent / "references" / "int8_claims.csv"
FREE = ("precision", "recipe", "calibration_images")  # in which its fp32 twin may differ
SIZE_AGREES = 0.05  # a file has headers and what stayed in fp32: 3.8 × is "4 × smaller"


class Int8(Struct, frozen=True, kw_only=True):
    """One INT8 case and its verdict. Ratios are of throughputs; None: nothing to compare with."""

    row: Row
    own_fp32: Ratio | None
    best_fp32: Ratio | None
    smaller: float | None  # bytes of fp32 ÷ bytes of INT8
    accuracy_lost: float | None  # share of right answers
    verdict: str


def verdicts(rows: pd.DataFrame, every: pd.DataFrame) -> list[Int8]:
    """One for each measured INT8 inference row; `rows` as analysis.newest gives them.

    every: all records of the cases. fp32 of the same engine is that of the same run, where it
    has one: a later run that measured fp32 alone takes nothing from a pair that was interleaved.
    """
    names = [p.name for p in PRECISIONS.values() if p.kind == "int8"]
    found, fp32 = _inference(rows), _inference(rows, "fp32")
    found = found[found["precision"].isin(names)]
    paired = every[(every["precision"] == "fp32") & every["run_id"].isin(set(found["run_id"]))]
    runs = {run: _inference(analysis.newest(of), "fp32") for run, of in paired.groupby("run_id")}
    none = fp32.iloc[:0]
    return [_one(r, fp32, runs.get(r["run_id"], none)) for r in found.to_dict("records")]


def _inference(rows: pd.DataFrame, precision: str | None = None) -> pd.DataFrame:
    measured = rows[(rows["status"] == "measured") & (rows["task"] == "infer")]
    return measured if precision is None else measured[measured["precision"] == precision]


def _one(row: Row, fp32: pd.DataFrame, same_run: pd.DataFrame) -> Int8:
    same = [*(f for f in CASE_FIELDS if f not in FREE), *PLACE]
    own = analysis.alike(same_run, row, same)
    own = analysis.alike(fp32, row, same) if own.empty else own
    over_own = analysis.ratio_over(row, own)
    smaller = _smaller(row, own)
    lost = _known(row["fp32_top1_accuracy"]), _known(row["top1_accuracy"])
    return Int8(
        row=row,
        own_fp32=over_own,
        best_fp32=analysis.best_fp32(fp32, row),
        smaller=smaller,
        accuracy_lost=None if None in lost else lost[0] - lost[1],  # type: ignore[operator]
        verdict=f"{_size_verdict(smaller)}; {_speed_verdict(over_own)}",
    )


class TrainingCost(Struct, frozen=True):
    """A step of quantisation-aware training: its seconds ÷ those of the same step in plain fp32."""

    row: Row
    plain: Ratio | None  # throughput ÷ the plain one's

    @property
    def times(self) -> Ratio | None:
        """How many plain steps one costs."""
        if self.plain is None:
            return None
        return msgspec.structs.replace(self.plain, value=1 / self.plain.value)


def training_costs(rows: pd.DataFrame) -> list[TrainingCost]:
    """One for each measured row of the recipe that trains for INT8."""
    measured = rows[(rows["status"] == "measured") & (rows["task"] == "train")]
    usual = DEFAULTS["recipe"]
    plain = measured[measured["recipe"] == usual]
    same = [*(f for f in CASE_FIELDS if f != "recipe"), *PLACE]
    return [
        TrainingCost(row, analysis.ratio_over(row, analysis.alike(plain, row, same)))
        for row in measured[measured["recipe"] == QAT].to_dict("records")
    ]


def _smaller(row: Row, own: pd.DataFrame) -> float | None:
    """Against the same engine's fp32 file; where it was not run, against the plain weights."""
    ours = _known(row["model_bytes"])
    plain = _known(row["fp32_model_bytes"])
    theirs = plain if own.empty else _known(own.iloc[-1]["model_bytes"]) or plain
    return theirs / ours if ours and theirs else None


def _known(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def claims() -> dict[str, dict[str, str]]:
    """The published claims by their quantity, with source."""
    with CLAIMS.open(encoding="utf-8", newline="") as file:
        return {claim["quantity"]: claim for claim in csv.DictReader(file)}


def _bounds(quantity: str) -> tuple[float, float]:
    claim = claims()[quantity]
    return float(claim["claimed_low"]), float(claim["claimed_high"])


def _size_verdict(smaller: float | None) -> str:
    low, _ = _bounds("size_ratio_fp32_over_int8")
    if smaller is None:
        return f"{low:g}× smaller: untested"
    holds = smaller >= low * (1 - SIZE_AGREES)
    return f"{low:g}× smaller: {'holds' if holds else 'does not hold'}"


def _speed_verdict(own: Ratio | None) -> str:
    """What may be said of the claim; one process decides nothing."""
    low, high = _bounds("speedup_int8_over_fp32")
    said = f"{low:g}–{high:g}× faster"
    if own is None:
        return f"{said}: untested, fp32 of this engine was not measured"
    if own.doubt is not None:
        return f"{said}: {own.doubt} {words.ratio(own)}, inconclusive; --repeats 3 of both decides"
    return f"{said}: {_within(own, low, high)}"


def _within(own: Ratio, low: float, high: float) -> str:
    """Whether the interval of a speed-up lies in what is claimed."""
    if own.relative_half_width is None:
        return "cannot be said without an interval"
    half = own.value * own.relative_half_width
    if own.value + half < low:
        return "does not hold, less"
    if own.value - half > high:
        return "more than that"
    if own.value - half >= low and own.value + half <= high:
        return "holds"
    edge = low if own.value - half < low else high
    return f"cannot be told, {words.ratio(own)} could be either side of {edge:g}"
