"""`bench regress`: reads, judges a night, measures suspects again, says what was found."""

from __future__ import annotations

import contextlib
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec
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
from bench.errors import NothingToReport, WrongUse
from bench.findings import Accepted, Colour, Finding, Night
from bench.history import History
from bench.judging import Against, Judgement
from bench.schedules import CONFIRM, GRID
from bench.schema import Record

CAUSES = 4  # told of each finding
PIPE_WIDTH = 1000  # a pipe has no width: wide enough, so that nothing is folded


class Request(Struct, frozen=True, kw_only=True):
    """What was asked for; size as a share, seconds for confirming or None for none."""

    results: Path
    run: str | None
    against: str | None
    size: float
    confirm_s: float | None
    out: Path | None
    json: bool


def execute(asked: Request) -> int:
    """Judge, keep and tell. Returns 0, 1 (red) or 3 (nothing to judge); raises BenchError."""
    night = judge(asked)
    earlier = [n for n in findings.nights(asked.results) if n.plan == night.plan]
    findings.save(asked.results, night)
    if asked.json:
        print(msgspec.json.encode(night).decode())
    else:
        show(night)
    if asked.out is not None:
        # Beside JSON, standard output is nobody else's.
        with contextlib.redirect_stdout(sys.stderr if asked.json else sys.stdout):
            untold = tell.everything(night, earlier, asked.out)
        for sentence in untold:
            print(sentence, file=sys.stderr)
    return exit_code(night)


def self_test(results: Path, run: str | None, size: float) -> int:
    """Print the alarm budget of the history up to a night."""
    frame = _read(results)
    found = history.of(frame, _resolve(frame, run))
    if found is None:
        raise NothingToReport("That run has no measured case to look back from.")
    for line in alarm.told(alarm.budget(found, size), found):
        print(line)
    return 0


def exit_code(night: Night) -> int:
    """1 red; 3 where nothing could be judged; else 0."""
    if night.colour == "red":
        return 1
    return 3 if night.inconclusive >= night.series else 0


def judge(asked: Request) -> Night:
    """The judgement of the night asked for, suspects measured again if that was asked for."""
    frame = _read(asked.results)
    run_id = _resolve(frame, asked.run)
    found = history.of(frame, run_id)
    if found is None:
        return _empty(run_id, frame)
    kept = findings.nights(asked.results)
    accepted = findings.accepted(asked.results)
    green = last_green(found, kept, frame)
    chosen = judging.against(asked.against, found, green)
    judgement = judging.judge(found, chosen, accepted, asked.size)
    notes: list[str] = []
    if asked.confirm_s is not None:
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
    ]
    machine = attribution.machine(history.machine(frame, found), judgement.options.size)
    if machine is not None:
        notes.append(machine.sentence + ".")
    told = _explained(asked.results, judgement, told, machine)
    return _night(found, judgement, chosen, told, notes, _short_of(frame, run_id))


def _read(results: Path) -> pd.DataFrame:
    if not results.is_dir():
        raise NothingToReport(f"There is no results folder {results}; measure first: bench run.")
    found = store.summary(results, history.COLUMNS)
    for sentence in found.passed_over:
        print(f"Note: {sentence}", file=sys.stderr)
    if found.frame.empty:
        raise NothingToReport(f"No usable record in {results}; measure first: bench run.")
    return found.frame


def _resolve(frame: pd.DataFrame, run: str | None) -> str:
    """The run meant; one that left no record is named whole, or it is a slip of the pen."""
    if run is None:
        return history.choose(frame, None)
    ids = sorted({str(i) for i in frame["run_id"].unique()})
    found = [run] if run in ids else [i for i in ids if i.startswith(run)]
    if len(found) == 1:
        return found[0]
    if not found and runner.RUN_ID.fullmatch(run):
        return run
    known = ", ".join(ids[-5:])
    raise WrongUse(f"--run {run} names {len(found) or 'no'} runs; the newest are: {known}.")


def _empty(run_id: str, frame: pd.DataFrame) -> Night:
    """A run without a record of a case."""
    mine = frame[(frame["run_id"] == run_id) & (frame["purpose"] == GRID)]
    simulated = not mine.empty and bool(mine["simulated"].astype(bool).all())
    why = (
        f"Run {run_id} is simulated: its times mean nothing."
        if simulated
        else f"Run {run_id} left no record of a case: it died before its first one."
    )
    now = datetime.now(UTC)
    return Night(
        run_id=run_id, plan=str(mine["plan"].iloc[0]) if len(mine) else "unknown",
        started_at=now, judged_at=now, colour="green" if simulated else "red", notes=[why],
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


def _explained(
    results: Path, judgement: Judgement, told: list[Finding], machine: attribution.Machine | None
) -> list[Finding]:
    """Each finding with its first suspects and the command that measures it again."""
    if not told:
        return []
    found = judgement.history
    tonight = _by_case(store.records(results, found.runs[-1]))
    earlier: dict[str, dict[str, Record]] = {}
    cases = {case_id: record.case for case_id, record in tonight.items()}
    explained = []
    for one in told:
        good = attribution.last_good(found, one)
        if good is not None and good not in earlier:
            earlier[good] = _by_case(store.records(results, good))
        before = earlier.get(good or "", {}).get(one.case_id)
        now = tonight.get(one.case_id)
        known = before is not None and now is not None
        causes = attribution.differences(before, now)[:CAUSES] if before and now else []
        alike = [f"nothing known differs from {good} in software or settings"]
        last = alike if known and not causes else []
        if machine is not None and one.kind == "worse":
            causes.insert(0 if machine.slower else len(causes), machine.sentence)
        with_it = attribution.neighbours(one, judgement, cases) if one.kind == "worse" else None
        record = now or before
        explained.append(
            msgspec.structs.replace(
                one,
                causes=[*causes, *([with_it] if with_it else []), *last],
                command=_command(record) if record else None,
            )
        )
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
        seconds=asked.confirm_s or 0.0,
        seconds_of={case_id: record.seconds for case_id, record in records.items()},
        fresh=any(r.worker == "fresh" for r in records.values()),
    )
    why_not = again.measure(schedule, found, records, asked.results)
    if why_not is not None:
        notes.append(f"Not confirmed, judged by history alone: {why_not}")
    return why_not is None


def accept(results: Path, case: str, reason: str) -> Accepted:
    """Take the newest night's level of a case for the new normal. Raises WrongUse."""
    import getpass

    frame = _read(results)
    run_id = history.choose(frame, None)
    known = sorted({str(c) for c in frame[frame["purpose"] == GRID]["case_id"].unique()})
    if case not in known:
        from bench.errors import unknown

        raise unknown("case", case, known)
    if not reason.strip():
        raise WrongUse("--reason: say in a few words why this is the new normal.")
    mine = frame[(frame["purpose"] == GRID) & (frame["case_id"] == case)]
    plan_runs = frame[frame["plan"].isin(list(mine["plan"].unique()))]
    run_id = history.choose(plan_runs, None)
    one = Accepted(
        case_id=case, run_id=run_id, reason=reason.strip(), who=getpass.getuser(),
        when=datetime.now(UTC),
    )  # fmt: skip
    findings.accept(results, one)
    return one


def show(night: Night) -> None:
    """The headline, the findings, what they may come from, the counts."""
    from rich.console import Console
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    print(night.headline)
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
    from bench.stats import nights

    return nights.FEWEST_NIGHTS


def _said(one: Finding) -> str:
    text = one.reason
    if one.metric is None or one.change is None or one.kind == "differs":
        return text
    text += f": {words.rate(one.before)} → {words.rate(one.now)} {one.unit}"
    if one.change_low is not None and one.change_high is not None:
        text += f" (99 % interval {100 * one.change_low:+.1f} to {100 * one.change_high:+.1f} %)"
    return text
