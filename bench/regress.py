"""`bench regress`: reads, judges a night, measures suspects again, says what was found."""

from __future__ import annotations

import contextlib
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
from msgspec import Struct

from bench import (
    alarm,
    analysis,
    attribution,
    confirming,
    findings,
    history,
    judging,
    runner,
    store,
    tell,
    words,
)
from bench.errors import NothingToReport, WrongUse, unknown
from bench.findings import Accepted, Colour, Finding, Night
from bench.history import History
from bench.judging import Against, Judgement
from bench.schedules import CONFIRM, GRID
from bench.schema import Record

CAUSES = 4  # told of each finding
EXPLAINED = 100  # findings whose causes are looked for, red ones first; more say the same again
PIPE_WIDTH = 1000  # a pipe has no width: wide enough, so that nothing is folded
UNKNOWN = "unknown"  # the plan of a run that left no record, where no other night was judged
DISTURBED_NIGHTS = 3  # in a row, after which a series nobody knows anything of is told

LEAST_CONFIRM_S = 600.0


class Request(Struct, frozen=True, kw_only=True):
    """What was asked for; size as a share.

    confirm_s: seconds for confirming; None: half of what measuring the night took, and never
    less than LEAST_CONFIRM_S.
    died: the exit code of a run that did not come to its end.
    """

    results: Path
    run: str | None
    against: str | None
    size: float
    confirm: bool
    confirm_s: float | None
    out: Path | None
    json: bool
    died: int | None = None


def execute(asked: Request) -> int:
    """Judge, keep and tell. Returns 0, 1 (red) or 3 (nothing to judge); raises BenchError."""
    night = judge(asked)
    earlier = [n for n in findings.nights(asked.results) if n.plan == night.plan]
    try:
        _tell(asked, night, earlier)
    finally:  # last, so that a folder that cannot be written silences nobody
        findings.save(asked.results, night)
    return exit_code(night)


def _tell(asked: Request, night: Night, earlier: list[Night]) -> None:
    if asked.json:
        print(msgspec.json.encode(night).decode())
    else:
        show(night)
    if asked.out is None:
        return
    # Beside JSON, standard output is nobody else's.
    with contextlib.redirect_stdout(sys.stderr if asked.json else sys.stdout):
        untold = tell.everything(night, earlier, asked.out)
    for sentence in untold:
        print(sentence, file=sys.stderr)


def self_test(results: Path, run: str | None, size: float) -> int:
    """Print the alarm budget of the history up to a night."""
    frame = _read(results)
    found = history.of(frame, _resolve(frame, run, findings.nights(results)))
    if found is None:
        raise NothingToReport("That run has no measured case to look back from.")
    for line in alarm.told(alarm.budget(found, size), found):
        print(line)
    return 0


def exit_code(night: Night) -> int:
    """1 red; 3 where nothing could be judged; else 0."""
    if night.colour == "red":
        return 1
    return 0 if night.judged else 3


def judge(asked: Request) -> Night:
    """The judgement of the night asked for, suspects measured again if that was asked for."""
    frame = _read(asked.results, empty=asked.run is not None)
    kept = findings.nights(asked.results)
    run_id = _resolve(frame, asked.run, kept)
    died = asked.died
    if died is None:  # judged again, a run that died has died all the same
        died = next((n.died for n in kept if n.run_id == run_id), None)
    found = history.of(frame, run_id)
    if found is None:
        return _dead(_empty(run_id, frame, kept), died)
    accepted = findings.accepted(asked.results)
    green = last_green(found, kept, frame)
    chosen = judging.against(asked.against, found, green)
    judgement = judging.judge(found, chosen, accepted, asked.size)
    notes: list[str] = []
    if asked.confirm:
        gone = judging.lost(found, frame, green, accepted)
        if confirm(asked, judgement, gone, green, notes):
            frame = _read(asked.results)
            found = history.of(frame, run_id) or found
            judgement = judging.judge(found, chosen, accepted, asked.size)
    notes += _disturbed(found)
    told = [
        *judging.lost(found, frame, green, accepted),
        *judging.differing(found, accepted),
        *judging.moved(judgement),
        *_in_the_dark(found),
    ]
    told.sort(key=lambda one: judging.COLOURS.index(one.colour))
    machine = attribution.machine(history.machine(frame, found), judgement.options.size)
    if machine is not None:
        notes.append(machine.sentence + ".")
    if len(told) > EXPLAINED:
        notes.append(f"Causes were looked for in the first {EXPLAINED} of {len(told)} findings.")
    told = _explained(asked.results, judgement, told, machine)
    return _dead(_night(found, judgement, chosen, told, notes, _short_of(frame, run_id)), died)


def _dead(night: Night, died: int | None) -> Night:
    """The night of a run that did not come to its end is red, whatever it measured before."""
    if died is None:
        return night
    why = f"The run did not come to its end: exit code {died}."
    return msgspec.structs.replace(night, died=died, colour="red", notes=[why, *night.notes])


def _read(results: Path, *, empty: bool = False) -> pd.DataFrame:
    """Records with history.COLUMNS. Raises NothingToReport where there are none, if not `empty`."""
    if not results.is_dir():
        raise NothingToReport(f"There is no results folder {results}; measure first: bench run.")
    found = store.summary(results, history.COLUMNS)
    for sentence in found.passed_over:
        print(f"Note: {sentence}", file=sys.stderr)
    if found.frame.empty and not empty:
        raise NothingToReport(f"No usable record in {results}; measure first: bench run.")
    return found.frame


def _plan(kept: list[Night]) -> str | None:
    """The plan that was judged last."""
    known = [n for n in kept if n.plan != UNKNOWN]
    return max(known, key=lambda n: n.judged_at).plan if known else None


def _begun(run_id: str) -> datetime | None:
    """When a run began, by its id; None where it is no id of a run."""
    if not runner.RUN_ID.fullmatch(run_id):
        return None
    with contextlib.suppress(ValueError):
        return datetime.strptime(run_id.partition("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return None


def _resolve(frame: pd.DataFrame, run: str | None, kept: list[Night]) -> str:
    """The run meant; one that left no record is named whole, or it is a slip of the pen."""
    if run is None:
        return history.choose(frame, _plan(kept))
    ids = sorted({str(i) for i in frame["run_id"].unique()})
    found = [run] if run in ids else [i for i in ids if i.startswith(run)]
    if len(found) == 1:
        return found[0]
    if not found and _begun(run) is not None:
        return run
    known = ", ".join(ids[-5:]) or "none"
    raise WrongUse(f"--run {run} names {len(found) or 'no'} runs; the newest are: {known}.")


def _empty(run_id: str, frame: pd.DataFrame, kept: list[Night]) -> Night:
    """A run without a record of a case."""
    rows = frame[frame["run_id"] == run_id]
    mine = rows[rows["purpose"] == GRID]
    simulated = not mine.empty and bool(mine["simulated"].astype(bool).all())
    why = (
        f"Run {run_id} is simulated: its times mean nothing."
        if simulated
        else f"Run {run_id} left no record of a case: it died before its first one."
    )
    now = datetime.now(UTC)
    before = {n.run_id: n.plan for n in kept if n.plan != UNKNOWN}
    plan, begun = before.get(run_id) or _plan(kept) or UNKNOWN, _begun(run_id) or now
    if len(rows):  # the sentinel's say it as well
        plan, begun = str(rows["plan"].iloc[0]), rows["started_at"].min().to_pydatetime()
    return Night(
        run_id=run_id, plan=plan, started_at=begun, judged_at=now,
        colour="green" if simulated else "red", notes=[why],
    )  # fmt: skip


def last_green(found: History, kept: list[Night], frame: pd.DataFrame) -> str | None:
    """The newest earlier night that was not red; one never judged counts if it is complete."""
    colours = {n.run_id: n.colour for n in kept}
    whole = set(history.complete(frame[frame["run_id"].isin(found.runs)]))
    for run in reversed(found.runs[:-1]):
        if colours.get(run, "green" if run in whole else "red") != "red":
            return run
    return None


def _short_of(frame: pd.DataFrame, run_id: str) -> int:
    """How many of the tries this run planned have no record."""
    grid = frame[(frame["run_id"] == run_id) & (frame["purpose"] == GRID)]
    return max(0, int(grid["planned"].max()) - len(grid))


def _night(
    found: History,
    judgement: Judgement,
    chosen: Against,
    told: list[Finding],
    notes: list[str],
    short: int,
) -> Night:
    series, judged = judgement.counts
    if short:
        notes = [f"The run ended before {short} of its planned tries.", *notes]
    colours = {f.colour for f in told}
    colour: Colour = "red" if short or "red" in colours else "green"
    if colour == "green" and "yellow" in colours:
        colour = "yellow"
    moved = sum(f.metric is not None and f.kind in ("worse", "better") for f in told)
    return Night(
        run_id=found.runs[-1], plan=found.plan,
        started_at=found.starts[-1].to_pydatetime(), judged_at=datetime.now(UTC),
        colour=colour, findings=told, series=series, unchanged=judged - moved,
        inconclusive=series - judged, against=chosen.words, nights=len(found.runs) - 1,
        confirmed=found.confirmed, notes=notes,
    )  # fmt: skip


def _disturbed(found: History) -> list[str]:
    """A sentence where others disturbed what was measured tonight, or to confirm."""
    tonight = found.rows[found.rows["night"] == found.tonight]
    said = []
    for purpose, kind in ((GRID, ""), (CONFIRM, "confirming ")):
        mine = tonight[tonight["purpose"] == purpose]
        count = int(mine["contaminated"].astype(bool).sum())
        if count:
            words_of_it = f"{count} of {len(mine)} {kind}measurements"
            said.append(f"Other processes disturbed {words_of_it}: those do not count.")
    return said


def _in_the_dark(found: History) -> list[Finding]:
    """Cases with a metric that was known once, and that others disturbed night after night."""
    rows = found.rows
    measured = (rows["status"] == "measured").to_numpy()
    night, series = rows["night"].to_numpy(), rows["series"].to_numpy()
    titles: dict[int, list[str]] = {}
    since: dict[int, int] = {}
    for family in found.families:
        known = np.isfinite(family.values)
        dark = np.zeros(known.shape, bool)
        for code in family.metric.void:
            mine = measured & rows[code].to_numpy(dtype=bool)
            dark[night[mine], series[mine]] = True
        dark &= ~known
        lasting = dark[-DISTURBED_NIGHTS:].all(axis=0) & known.any(axis=0)
        for s in np.flatnonzero(lasting) if len(dark) > DISTURBED_NIGHTS else ():
            begun = int(np.flatnonzero(~dark[:, s])[-1]) + 1
            titles.setdefault(int(s), []).append(family.metric.title)
            since[int(s)] = min(begun, since.get(int(s), begun))
    return [_unknown_since(found, s, since[s], titles[s]) for s in sorted(titles)]


def _unknown_since(found: History, s: int, since: int, titles: list[str]) -> Finding:
    names = found.series.iloc[s]
    return Finding(
        colour="yellow", kind="disturbed",
        case_id=names["case_id"], device_name=names["device_name"],
        machine_fingerprint=names["machine_fingerprint"],
        since_run=found.runs[since], since=found.starts[since].to_pydatetime(),
        reason=f"others disturbed every measurement for {len(found.runs) - since} nights, so that "
        f"nothing is known of its {', '.join(titles)}",
    )  # fmt: skip


def _explained(
    results: Path, judgement: Judgement, told: list[Finding], machine: attribution.Machine | None
) -> list[Finding]:
    """Each finding with the command that measures it again; the first with their suspects."""
    if not told:
        return []
    found = judgement.history
    tonight = _by_case(store.records(results, found.runs[-1]))
    earlier: dict[str, dict[str, Record]] = {}
    cases = {case_id: record.case for case_id, record in tonight.items()}
    moves = attribution.moves(judgement, cases)
    asked = {one.case_id for one in told[:EXPLAINED]}
    explained = []
    for one in told[:EXPLAINED]:
        good = attribution.last_good(found, one)
        if good is not None and good not in earlier:
            earlier[good] = _by_case(store.records(results, good, asked))
        before = earlier.get(good or "", {}).get(one.case_id)
        now = tonight.get(one.case_id)
        known = before is not None and now is not None
        causes = attribution.differences(before, now)[:CAUSES] if before and now else []
        alike = [f"nothing known differs from {good} in software or settings"]
        last = alike if known and not causes else []
        if machine is not None and one.kind == "worse":
            causes.insert(0 if machine.slower else len(causes), machine.sentence)
        with_it = None
        if one.kind == "worse":
            moved = moves.get(one.metric or "")
            with_it = attribution.neighbours(one, moved, cases.get(one.case_id))
        record = now or before
        explained.append(
            msgspec.structs.replace(
                one,
                causes=[*causes, *([with_it] if with_it else []), *last],
                command=_command(record) if record else None,
            )
        )
    for one in told[EXPLAINED:]:
        record = tonight.get(one.case_id)
        command = _command(record) if record else None
        explained.append(msgspec.structs.replace(one, command=command))
    return explained


def _command(record: Record) -> str:
    row: analysis.Row = dict(store.row(record).items())
    return f"{analysis.command(row)} --repeats 5"


def _by_case(records: list[Record]) -> dict[str, Record]:
    """The last grid record of each case; a measured one rather than another."""
    found: dict[str, Record] = {}
    for record in records:
        if record.purpose == GRID and (record.status == "measured" or record.case_id not in found):
            found[record.case_id] = record
    return found


def confirm(
    asked: Request, judgement: Judgement, gone: list[Finding], green: str | None, notes: list[str]
) -> bool:
    """Measure suspects and lost cases again. Whether that was done; notes say why not."""
    from bench import again

    suspects = judgement.suspects
    if not suspects and not gone:
        return False
    found = judgement.history
    records = _by_case(store.records(asked.results, found.runs[-1]))
    if green is not None:
        records = _by_case(store.records(asked.results, green)) | records
    ids = found.series["case_id"]
    mine = {ids[s]: s for s in suspects if ids[s] in records}
    able = {s for s in range(len(ids)) if ids[s] in records}
    calm = confirming.control(judgement, suspects, able)
    beside = None if calm is None else ids[calm]
    known = mine if calm is None else mine | {beside: calm}
    schedule = confirming.Confirm(
        suspects=[records[case_id].case for case_id in mine],
        retries=[records[f.case_id].case for f in gone if f.case_id in records],
        control=None if beside is None else records[beside].case,
        decide=confirming.decider(judgement, known, beside),
        seconds=_confirming_s(asked, found.runs[-1]),
        seconds_of={case_id: record.seconds for case_id, record in records.items()},
        fresh=any(r.worker == "fresh" for r in records.values()),
    )
    why_not = again.measure(schedule, found, records, asked.results)
    if why_not is not None:
        notes.append(f"Not confirmed, judged by history alone: {why_not}")
    return why_not is None


def _confirming_s(asked: Request, run_id: str) -> float:
    if asked.confirm_s is not None:
        return asked.confirm_s
    tonight = store.records(asked.results, run_id)
    return max(LEAST_CONFIRM_S, sum(r.seconds for r in tonight if r.purpose == GRID) / 2)


def accept(results: Path, case: str, reason: str) -> str:
    """Take a night's level of a case, or its want of a result, for the new normal.

    That night is the newest judged one in which the case was tried or told of. Returns what
    was done as a sentence. Raises WrongUse.
    """
    frame = _read(results)
    kept = findings.nights(results)
    grid = frame[(frame["purpose"] == GRID) & ~frame["simulated"].astype(bool)]
    runs = {str(i) for i in grid[grid["case_id"] == case]["run_id"].unique()}
    judged = [n for n in kept if n.run_id in runs or any(f.case_id == case for f in n.findings)]
    if not runs and not judged:
        raise unknown("case", case, {str(c) for c in grid["case_id"].unique()})
    if not reason.strip():
        raise WrongUse("--reason: say in a few words why this is the new normal.")
    if judged:
        night = max(judged, key=lambda n: n.started_at)
        run_id, plan, which = night.run_id, night.plan, "the newest judged night with it"
    else:
        run_id = history.choose(frame[frame["run_id"].isin(list(runs))], _plan(kept))
        plan = str(frame[frame["run_id"] == run_id]["plan"].iloc[0])
        which = "the newest complete night with it; none was judged yet"
    one = Accepted(
        case_id=case, run_id=run_id, reason=reason.strip(), who=_who(), when=datetime.now(UTC)
    )
    findings.accept(results, one)
    return (
        f"Accepted by {one.who}: {case} from run {run_id} of plan {plan} on ({which}): {one.reason}"
    )


def _who() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container nobody may have this number
        return f"user {os.getuid()}"


def show(night: Night) -> None:
    """The headline, the findings, what they may come from, the counts."""
    from rich.console import Console
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    print(f"{night.headline} (plan {night.plan})")
    for sentence in night.notes:
        console.print(Text(f"  {sentence}"))
    for one in night.findings:
        console.print(Text(f"\n{one.colour.upper()} {one.case_id} on {one.device_name}"))
        console.print(Text(f"  {_said(one)}"))
        if one.since is not None and one.kind != "flaky":
            console.print(Text(f"  since {one.since:%Y-%m-%d} (run {one.since_run})"))
        for cause in one.causes:
            console.print(Text(f"  - {cause}"))
        if one.command:
            console.print(Text(f"  measure it again: {one.command}"))
    print(
        f"\n{night.series} series tonight against {night.against} ({night.nights} nights): "
        f"{night.unchanged} unchanged, {night.inconclusive} inconclusive, "
        f"{sum(f.colour == 'red' for f in night.findings)} red, "
        f"{sum(f.colour == 'yellow' for f in night.findings)} yellow, "
        f"{sum(f.kind == 'better' for f in night.findings)} better."
    )
    if night.inconclusive and night.nights < history_needed():
        print(f"A baseline has at least {history_needed()} nights.")


def history_needed() -> int:
    """Nights before the one judged."""
    from bench.stats import levels

    return levels.FEWEST_NIGHTS


def _said(one: Finding) -> str:
    text = one.reason
    if one.metric is None or one.change is None or one.kind == "differs":
        return text
    text += f": {words.rate(one.before)} → {words.rate(one.now)} {one.unit}"
    if one.change_low is not None and one.change_high is not None:
        text += f" (99 % interval {100 * one.change_low:+.1f} to {100 * one.change_high:+.1f} %)"
    return text
