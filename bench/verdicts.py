"""Pairs → what may be said of B against A, with the reason. Pure functions."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Literal

import pandas as pd
from msgspec import Struct

from bench import analysis
from bench.analysis import Row
from bench.pairing import RATE, Lonely, Pair, pairs
from bench.selectors import CASE_FIELDS, Selector
from bench.stats import ratios
from bench.stats.ratios import FEWEST_PAIRS, RatioInterval

UNTRUSTED = ("not_steady", "two_state", "contaminated")  # their throughput is not to be trusted
# What must agree for equal initial weights, and what more for equal losses and logits.
SAME_WEIGHTS = ("model", "weights", "seed", "classes", "data")
SAME_WORK = ("task", "batch_size", "image_size", "recipe", "epochs", "full")
RESULTS = ("first_loss", "last_loss", "logits_std")
RESULT_TOLERANCE = 0.01  # relative; far above what the order of additions changes
REPEATS = 5

Answer = Literal["faster", "slower", "same", "inconclusive", "unpaired"]
ANSWERS: dict[ratios.Change, Answer] = {
    "higher": "faster",
    "lower": "slower",
    "same": "same",
    "inconclusive": "inconclusive",
}


class Side(Struct, frozen=True):
    """One case in one run. images_per_s: geometric mean over rounds, None if none was measured."""

    case_id: str
    run_id: str
    device_name: str | None
    machine_fingerprint: str
    images_per_s: float | None


class Verdict(Struct, frozen=True, kw_only=True):
    """B against A. `ratio` is B's throughput ÷ A's, ratio_low to ratio_high its 99 % interval.

    `rounds` is how many pairs of processes decided. `unpaired`: only one side
    has the case, the other is None. `command` measures an undecided pair again.
    """

    verdict: Answer
    reason: str
    a: Side | None
    b: Side | None
    rounds: int = 0
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    command: str | None = None


def compare(frame: pd.DataFrame, a: Selector, b: Selector, min_effect: float) -> list[Verdict]:
    """A verdict for every case that `a` or `b` selects. Raises WrongUse.

    frame: records as the store reads them, not empty. min_effect: a share, the
    largest change that does not matter.
    """
    return [
        _unpaired(found) if isinstance(found, Lonely) else judge(found, min_effect)
        for found in pairs(frame, a, b)
    ]


def _unpaired(found: Lonely) -> Verdict:
    side = _side(found.rows, [])
    a, b = (side, None) if found.name == "A" else (None, side)
    return Verdict(verdict="unpaired", reason=found.reason, a=a, b=b)


def judge(pair: Pair, min_effect: float) -> Verdict:
    """The verdict on one pair."""
    used = pair.used
    left, right = ([float(r[RATE]) for r in rows] for rows in used)
    found = ratios.ratio_interval(left, right) if pair.decides else None
    answer, reason, again = _answer(pair, found, min_effect)
    return Verdict(
        verdict=answer,
        reason="; ".join([reason, *_notes(pair)]),
        a=_side(pair.a, left),
        b=_side(pair.b, right),
        rounds=len(pair.fresh),
        ratio=ratios.ratio(left, right) if left else None,
        ratio_low=found.low if found else None,
        ratio_high=found.high if found else None,
        command=_command(pair) if again else None,
    )


def _side(rows: list[Row], rates: list[float]) -> Side:
    row = rows[-1]
    rates = rates or [float(r[RATE]) for r in rows if r[RATE] > 0]
    return Side(
        case_id=str(row["case_id"]),
        run_id=str(row["run_id"]),
        device_name=None if pd.isna(row["device_name"]) else str(row["device_name"]),
        machine_fingerprint=str(row["machine_fingerprint"]),
        images_per_s=statistics.geometric_mean(rates) if rates else None,
    )


def _answer(pair: Pair, found: RatioInterval | None, min_effect: float) -> tuple[Answer, str, bool]:
    """The answer, its reason, and whether measuring again would help."""
    refusal = _refusal(pair)
    if refusal:
        return "inconclusive", refusal, False
    if found is None:
        fresh = len(pair.fresh)
        kept = "" if fresh == len(pair.common) else f" of {len(pair.common)}"
        reason = f"{fresh}{kept} common rounds in fresh interpreters, {FEWEST_PAIRS} are needed"
        return "inconclusive", reason, True
    for name, rows in zip("AB", pair.used, strict=True):
        if 2 * sum(bool(_doubts(r)) for r in rows) > len(rows):
            return "inconclusive", f"most rounds of {name} are not to be trusted", False
    change = ratios.judge(found, min_effect)
    percent = f"{100 * min_effect:g} %"
    if change == "inconclusive":
        least = "none" if found.low <= 1 <= found.high else f"less than {percent}"
        reason = f"the change could be {least} or more than {percent}; more rounds narrow it"
        return "inconclusive", reason, True
    if change == "same":
        return "same", f"within ± {percent} in {len(pair.fresh)} rounds", False
    size = 100 * (found.ratio - 1)
    return ANSWERS[change], f"{size:+.1f} % in {len(pair.fresh)} rounds", False


def _refusal(pair: Pair) -> str | None:
    """Why no number of rounds of these records could decide."""
    for name, rows in zip("AB", (pair.a, pair.b), strict=True):
        if not any(r["status"] == "measured" for r in rows):
            return f"{name} {rows[-1]['status']}: {rows[-1]['reason']}"
    first_a, first_b = pair.a[0], pair.b[0]
    if (first_a["run_id"], first_a["case_id"]) == (first_b["run_id"], first_b["case_id"]):
        return "both sides are the same records; name two runs, e.g. latest~1 latest"
    if first_a["simulated"]:
        return "simulated: its times mean nothing"
    return None


def _doubts(row: Row) -> list[str]:
    return [code for code in UNTRUSTED if code in row["warnings"]]


def _notes(pair: Pair) -> list[str]:
    """What else a reader must know before acting on the ratio."""
    notes = []
    for name, rows, used in zip("AB", (pair.a, pair.b), pair.used, strict=True):
        lost = [r["status"] for r in rows if r["status"] != "measured"]
        if 0 < len(lost) < len(rows):
            notes.append(f"{len(lost)} of {len(rows)} rounds of {name} {lost[-1]}")
        for code, times in Counter(c for r in used for c in _doubts(r)).items():
            notes.append(f"{code} in {times} of {len(used)} rounds of {name}")
    notes += _results_that_differ(pair)
    a, b = pair.a[-1], pair.b[-1]
    # Another device brings another driver.
    if a["device_name"] == b["device_name"] and _differ(a, b, ("software_fingerprint",)):
        notes.append("software differs")
    if pair.decides and _one_after_the_other(*pair.used):
        notes.append("not interleaved")
    return notes


def _results_that_differ(pair: Pair) -> list[str]:
    """Where the same seed and work must give the same numbers and did not."""
    a, b = pair.used
    if not a or _differ(a[0], b[0], SAME_WEIGHTS):
        return []
    notes = []
    if len({r["weights_sha256"] for r in a + b if not pd.isna(r["weights_sha256"])}) > 1:
        notes.append("initial weights differ")
    if _differ(a[0], b[0], SAME_WORK):
        return notes
    for name in RESULTS:
        before, after = a[-1][name], b[-1][name]
        if abs(after - before) > RESULT_TOLERANCE * abs(before):
            notes.append(f"{name} {before:.3g} against {after:.3g}")
    return notes


def _differ(a: Row, b: Row, fields: tuple[str, ...]) -> bool:
    return any(a[f] != b[f] and not (pd.isna(a[f]) and pd.isna(b[f])) for f in fields)


def _one_after_the_other(a: list[Row], b: list[Row]) -> bool:
    a_times, b_times = ([r["started_at"] for r in rows] for rows in (a, b))
    return bool(max(a_times) < min(b_times) or max(b_times) < min(a_times))


def _command(pair: Pair) -> str:
    """Measures both cases interleaved; for one case in two runs, measures it once."""
    a, b = pair.a[-1], pair.b[-1]
    other = b if a["machine_fingerprint"] == b["machine_fingerprint"] else None
    command = analysis.command(a, other if _differ(a, b, tuple(CASE_FIELDS)) else None)
    return f"{command} --repeats {max(REPEATS, 2 * len(pair.fresh))}"
