"""A night's history → its findings. Pure: no file, no clock, no measuring.

Size and evidence decide (bench.stats.nights); results must stay within their tolerance;
a case that had a result on the last green night must have one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pandas as pd
from msgspec import Struct

from bench import selectors
from bench.errors import WrongUse
from bench.findings import Accepted, Colour, Finding, Kind
from bench.history import RESULTS, Family, History, Result
from bench.schedules import CONFIRM, GRID
from bench.stats import nights, results
from bench.stats.nights import FEWEST_CONFIRMING, Judged, Model, Options

Array = np.ndarray[Any, np.dtype[Any]]
CONFIDENCE_ERRORS = 2.576  # standard errors of a 99 % interval
LOST = ("failed", "timeout", "oom", "skipped")
LATELY = 7  # nights before tonight


class Against(Struct, frozen=True):
    """Which nights are the baseline: those from `first` to `last`, and what that is called."""

    words: str
    first: int = 0
    last: int | None = None


class Look(Struct, frozen=True):
    """One metric of one night: what was learnt, and tonight against it."""

    family: Family
    model: Model
    judged: Judged


class Judgement(Struct, frozen=True):
    """All metrics of a night."""

    history: History
    options: Options
    looks: list[Look]

    @property
    def suspects(self) -> list[int]:
        """Series that have a suspicious metric, those with the least p first."""
        least: dict[int, float] = {}
        for look in self.looks:
            for s in np.flatnonzero(look.judged.suspect):
                least[int(s)] = min(least.get(int(s), 1.0), float(look.judged.p[s]))
        return sorted(least, key=least.__getitem__)

    @property
    def counts(self) -> tuple[int, int]:
        """Series × metrics with a value tonight or lately, and how many of them were judged.

        One without a value tonight, e.g. because it was disturbed, is not judged and counts.
        """
        lately = [np.isfinite(k.family.values[-1 - LATELY :]).any(axis=0) for k in self.looks]
        return sum(int(x.sum()) for x in lately), sum(
            int(k.judged.judged.sum()) for k in self.looks
        )


def against(text: str | None, history: History, last_green: str | None) -> Against:
    """What `--against` means. Raises WrongUse where it names no earlier night."""
    if text is None:
        return Against("all nights since the last change")
    if text == "last-green":
        green = None if last_green is None else history.index(last_green)
        if green is None:
            raise WrongUse("--against last-green: no earlier night was judged green yet.")
        return Against(f"nights up to the last green one, {last_green}", last=green)
    if text.startswith("anchor:"):
        name = text.removeprefix("anchor:")
        found = [i for i, run in enumerate(history.runs[:-1]) if run.startswith(name)]
        if len(found) != 1 or not name:
            known = ", ".join(history.runs[:-1][-selectors.SHOWN :]) or "none"
            raise WrongUse(f"--against {text}: that names no earlier night; there are: {known}.")
        first = max(0, found[0] - nights.ANCHOR_NIGHTS + 1)
        return Against(f"the nights up to {history.runs[found[0]]}", first, found[0])
    try:
        day = pd.Timestamp(text, tz="UTC") + pd.Timedelta(days=1)
    except ValueError as error:
        raise WrongUse(
            f"--against {text}: expected last-green, anchor:RUN or a date such as 2026-11-21."
        ) from error
    earlier = [i for i, start in enumerate(history.starts[:-1]) if start < day]
    if not earlier:
        raise WrongUse(f"--against {text}: no night is that old.")
    return Against(f"nights up to {text}", last=earlier[-1])


def judge(
    history: History, chosen: Against, accepted: Sequence[Accepted], size: float
) -> Judgement:
    """Every metric of the last night. size: a share, 0.03 for 3 %."""
    since = _accepted_nights(history, accepted)
    tests = sum(int(np.isfinite(f.values[-1]).sum()) for f in history.families)
    options = Options(tests=tests, size=math.log1p(size))
    looks = []
    for family in history.families:
        values = family.values[:-1].copy()
        values[: chosen.first] = np.nan
        model = nights.learn(
            values, family.processes[:-1], family.within,
            size=options.size, accepted=since, until=chosen.last,
        )  # fmt: skip
        tonight = nights.judge(model, family.values[-1], family.processes[-1], options)
        open_ = since != history.tonight  # tonight's level is not accepted
        told = {name: getattr(tonight, name) & open_ for name in ("worse", "better", "suspect")}
        looks.append(Look(family, model, msgspec.structs.replace(tonight, **told)))
    return Judgement(history, options, looks)


def _accepted_nights(history: History, accepted: Sequence[Accepted]) -> Array:
    """For each series the night from which its level is accepted; -1: none."""
    since = np.full(len(history.series), -1)
    for one in accepted:
        night = history.index(one.run_id)
        if night is not None:
            since[(history.series["case_id"] == one.case_id).to_numpy()] = night
    return since


def moved(judgement: Judgement) -> list[Finding]:
    """Series that became worse or better.

    Where suspects were measured again, only those that stood it are red; those for which no
    time was left are judged by history alone, as all are where nothing was measured again.
    """
    tries = judgement.history.confirming
    calm = _calm(judgement) if tries.any() else np.zeros(len(tries), bool)
    found = []
    for look in judgement.looks:
        again = look.family.again_processes
        seen = nights.stands(look.judged, look.family.again, judgement.options)
        machine = shift(look, calm)
        still = machine is None or machine < judgement.options.size
        enough = np.where(tries < FEWEST_CONFIRMING, again == tries, again >= FEWEST_CONFIRMING)
        stood = (tries == 0) | (enough & seen & still)
        for s in np.flatnonzero(look.judged.suspect | look.judged.better):
            if look.judged.better[s]:
                colour: Colour = "green"
            else:
                colour = "red" if look.judged.worse[s] and stood[s] else "yellow"
            one = _finding(judgement, look, int(s), colour)
            words = _measured_again(int(tries[s]), int(again[s]), bool(seen[s]), still)
            words = words or ("" if machine is not None else UNCONTROLLED)
            if colour != "green" and tries.any():
                one = msgspec.structs.replace(one, reason=one.reason + words)
            found.append(one)
    return sorted(found, key=_order)


UNCONTROLLED = "; no control tells whether the machine became slower too"


def _measured_again(tries: int, undisturbed: int, seen: bool, still: bool) -> str:
    """What the confirming processes of a suspect say."""
    if not tries:
        return "; not measured again: the time for it was over"
    if not undisturbed:
        return "; others disturbed what was measured again"
    if not seen:
        return "; measured again: not so"
    return "" if still else "; the control became slower too when measured again"


def _calm(judgement: Judgement) -> Array:
    """The series that were measured again although their first processes raised no suspicion."""
    suspect = np.zeros(len(judgement.history.series), bool)
    for look in judgement.looks:
        value, count = look.family.first
        suspect |= nights.judge(look.model, value, count, judgement.options).suspect
    return (judgement.history.confirming > 0) & ~suspect


def shift(look: Look, calm: Array) -> float | None:
    """By how much calm series became worse from their first to their confirming processes.

    A difference of logarithms, which belongs to the machine. None where nobody knows: calm
    series lack this metric, or others disturbed them each time.
    """
    value, count = look.family.first
    known = calm & (count > 0) & (look.family.again_processes > 0)
    return float((look.family.again - value)[known].mean()) if known.any() else None


COLOURS = ("red", "yellow", "green")


def _order(finding: Finding) -> tuple[int, float]:
    return COLOURS.index(finding.colour), -abs(finding.change or 0.0)


def _finding(judgement: Judgement, look: Look, s: int, colour: Colour) -> Finding:
    history, metric, judged = judgement.history, look.family.metric, look.judged
    names = history.series.iloc[s]
    sign = -1 if metric.more_is_better else 1
    effect, error, level = (float(a[s]) for a in (judged.effect, judged.error, judged.baseline))
    low, high = sorted(
        math.expm1(sign * (effect + side * CONFIDENCE_ERRORS * error)) for side in (-1, 1)
    )
    since = _since(look, s)
    kind: Kind = "better" if colour == "green" else "worse"
    change = math.expm1(sign * effect)
    return Finding(
        colour=colour, kind=kind,
        case_id=names["case_id"], device_name=names["device_name"],
        machine_fingerprint=names["machine_fingerprint"],
        metric=metric.column, unit=metric.unit,
        before=math.exp(sign * level) * metric.factor,
        now=math.exp(sign * (level + effect)) * metric.factor,
        change=change, change_low=low, change_high=high,
        nights=int(judged.nights[s]), baseline_nights=int(judged.baseline_nights[s]),
        processes=int(look.family.processes[-1, s]),
        since_run=history.runs[since], since=history.starts[since].to_pydatetime(),
        reason=_reason(look, s, change, colour),
    )  # fmt: skip


def _reason(look: Look, s: int, change: float, colour: Colour) -> str:
    judged = look.judged
    window = int(judged.nights[s])
    over = {0: "the last 5 nights against the anchor", 1: "tonight"}.get(
        window, f"the last {window} nights"
    )
    text = (
        f"{look.family.metric.title} {100 * change:+.1f} % ({over}, "
        f"{int(judged.baseline_nights[s])} nights before)"
    )
    if colour == "yellow":
        text += "; not enough evidence to be sure"
    return text


def _since(look: Look, s: int) -> int:
    """The first night of the change: of its level where that is old enough, else of the window."""
    last = len(look.family.values) - 1
    window = int(look.judged.nights[s]) or nights.CREEP_NIGHTS
    known = np.flatnonzero(np.isfinite(look.family.values[:, s]))
    begun = int(known[-window]) if window <= len(known) else last
    changed = int(look.model.changed[s])
    return min(changed, begun) if changed >= 0 else begun


def differing(history: History, accepted: Sequence[Accepted]) -> list[Finding]:
    """Results (loss, fidelity) of tonight outside their tolerance around the good nights' median.

    Every process of a night must be outside.
    """
    since = _accepted_nights(history, accepted)
    rows = history.rows
    measured = (rows["status"] == "measured").to_numpy()
    night, series = rows["night"].to_numpy(), rows["series"].to_numpy()
    found = []
    for result in RESULTS:
        raw = rows[result.column].to_numpy(dtype=float, na_value=np.nan)
        use = measured & ~np.isnan(raw)
        seen = results.walk(
            night[use], series[use], raw[use], nights=len(history.runs), accepted=since,
            limits=results.Tolerance(result.share, result.least, result.only_lower),
        )  # fmt: skip
        outside = np.flatnonzero(seen.outside[-1])
        found += [_differing(history, int(s), result, seen) for s in outside]
        if result.always:
            here = np.zeros(len(since), bool)
            here[series[measured & (night == history.tonight)]] = True
            gone = here & np.isnan(seen.values[-1]) & np.isfinite(seen.normal)
            found += [_differing(history, int(s), result, seen) for s in np.flatnonzero(gone)]
    return found


def _differing(history: History, s: int, result: Result, seen: results.Walked) -> Finding:
    names = history.series.iloc[s]
    old, new = float(seen.normal[s]), float(seen.values[-1, s])
    none = math.isnan(new)  # not a number, or no step that counted
    since = history.tonight if none else seen.since(s)
    said = "none" if none else f"{new:.4g}"
    return Finding(
        colour="red", kind="differs",
        case_id=names["case_id"], device_name=names["device_name"],
        machine_fingerprint=names["machine_fingerprint"],
        metric=result.column, unit="", before=old, now=None if none else new,
        change=new / old - 1 if old and not none else None,
        since_run=history.runs[since], since=history.starts[since].to_pydatetime(),
        reason=f"{result.title} {old:.4g} → {said}: another result, not another speed",
    )  # fmt: skip


def lost(
    history: History, planned: pd.DataFrame, last_green: str | None, accepted: Sequence[Accepted]
) -> list[Finding]:
    """Cases of the last green night without a result tonight; flaky where a retry had one.

    planned: all records of both nights (column names as history.COLUMNS).
    """
    if last_green is None or last_green == history.runs[-1]:
        return []
    green = planned[(planned["run_id"] == last_green) & (planned["status"] == "measured")]
    names = green[green["purpose"] == GRID].drop_duplicates("case_id")
    tonight = planned[planned["run_id"] == history.runs[-1]]
    first = tonight[tonight["purpose"] == GRID]
    well = set(first["case_id"]) - set(first[first["status"].isin(LOST)]["case_id"])
    gone = names[~names["case_id"].isin(list(well))]
    if gone.empty:
        return []
    well_on = _last_well(history)
    taken = {a.case_id: n for a in accepted if (n := history.index(a.run_id)) is not None}
    found = []
    for row in gone.to_dict("records"):
        case_id = str(row["case_id"])
        last = well_on.get(case_id, history.runs.index(last_green))
        # Accepted on a night without a result, and there has been none since.
        if taken.get(case_id, -1) > last:
            continue
        mine = tonight[tonight["case_id"] == case_id]
        grid, again = (mine[mine["purpose"] == p] for p in (GRID, CONFIRM))
        found.append(_lost(history, row, last + 1, grid[grid["status"].isin(LOST)], again))
    return found


def _last_well(history: History) -> dict[str, int]:
    """Of each case the newest night before this one that measured it in all its rounds."""
    rows = history.rows[history.rows["purpose"] == GRID]
    code, names = pd.factorize(rows["case_id"])
    night, status = rows["night"].to_numpy(), rows["status"]
    well = np.zeros((len(history.runs), len(names)), bool)
    for value, mine in ((True, status == "measured"), (False, status.isin(LOST))):
        well[night[mine.to_numpy()], code[mine.to_numpy()]] = value
    whole = {str(name): np.flatnonzero(well[:-1, place]) for place, name in enumerate(names)}
    return {name: int(on[-1]) for name, on in whole.items() if len(on)}


def _lost(
    history: History, row: dict[Any, Any], since: int, bad: pd.DataFrame, again: pd.DataFrame
) -> Finding:
    if bad.empty:
        reason = "no record tonight: the run ended before this case, or no longer has it"
    else:
        last = bad.iloc[-1]
        reason = f"{last['status']}: {last['reason']}"
    worked = len(again) > 0 and (again["status"] == "measured").all()
    if len(again) and not worked:
        reason += "; again when retried"
    colour: Colour = "yellow" if worked else "red"
    kind: Kind = "flaky" if worked else "missing"
    return Finding(
        colour=colour, kind=kind, case_id=str(row["case_id"]),
        device_name=str(row["device_name"]), machine_fingerprint=str(row["machine_fingerprint"]),
        since_run=history.runs[since], since=history.starts[since].to_pydatetime(),
        reason=reason + ("; it worked when retried" if worked else ""),
    )  # fmt: skip
