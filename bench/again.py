"""Runs the confirming schedule on this machine, if it is the one that measured the night."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from bench import processes, ready, runner, store
from bench.confirming import Confirm
from bench.environment.fingerprints import machine_fingerprint
from bench.errors import BenchError, CannotStore
from bench.history import History
from bench.planning import Plan
from bench.schema import Case, Record


def measure(
    schedule: Confirm, history: History, records: Mapping[str, Record], results: Path
) -> str | None:
    """Adds confirming records to the night. Returns why that cannot be done, or None."""
    from bench.progress import Line, announce

    cases = [*schedule.suspects, *schedule.retries]
    if not cases:
        return "none of the suspects has a record of its case."
    if schedule.control is not None:
        cases.append(schedule.control)
    first = records[cases[0].case_id]
    plan = Plan(history.plan, [], first.budget)
    try:
        store.make_writable(results)
        processes.start_server()
        announce("Suspects are measured again …")
        found = ready.again(plan, cases)
    except BenchError as error:
        return str(error)
    other = _elsewhere(found, cases, records)
    if other is not None:
        return other
    found = msgspec.structs.replace(found, search=schedule)
    line = Line(plan.budget)
    watch = runner.Watch(started=line.started, progress=line.progress, recorded=line.finished)
    try:
        with line:
            runner.run(found, results, watch, named=history.runs[-1])
    except CannotStore as error:  # a full disk: what is known already is still told
        return str(error)
    return None


def _elsewhere(found: ready.Ready, cases: list[Case], records: Mapping[str, Record]) -> str | None:
    """Why these cases cannot be measured here as they were; None if they can."""
    for case in cases:
        device = next((d for d in found.survey.devices if d.device == case.device), None)
        here = machine_fingerprint(found.survey.environment, device)
        if here != records[case.case_id].machine_fingerprint:
            return f"{case.case_id} was measured on another machine or device than this one."
    return None
