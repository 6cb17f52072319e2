"""A plan that has met the machine: what to run, what cannot run and why, what may not fit."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from bench import processes, words
from bench.errors import NothingWorks
from bench.messages import Checked, Forecast, Foreseen, Survey
from bench.models import keeps_size
from bench.planning import Plan, Planned, asked_devices, expand, plan_hash
from bench.schedules import Grid, LargestBatch, Schedule, Several
from bench.schema import Case

# No model here takes more for training in fp32 (resnet152: 0.25 GB); images after a stem that
# keeps their size are like images four times as wide.
MOST_BYTES_PER_IMAGE, WIDER = 300e6, 4
FORECAST_S = 60.0  # patience with one forecast
NO_FORECAST = "the forecast of its memory took too long; name sizes with --batch-size"


class Ready(Struct, frozen=True):
    """A plan that has met the machine: what to run, what cannot run and why."""

    plan: Plan
    cases: list[Case]
    refusals: dict[str, str]  # case_id -> reason
    survey: Survey
    searches: list[Case] = []  # cases whose largest batch size is sought
    forecasts: dict[str, Forecast] = {}  # case_id -> what it needs, where that was asked
    ceilings: dict[str, int] = {}  # case_id of a search -> how far it may go
    search: Schedule | None = None  # in place of the grid
    guarded: bool = True  # by the sentinel, first and last

    @property
    def machine(self) -> dict[str, object]:
        """What a run must have been made on to be resumed here."""
        facts = self.survey.environment
        names = ("cpu_model", "cpu_cores_physical", "memory_bytes")
        return {name: getattr(facts, name) for name in names}

    @property
    def hash(self) -> str:
        """See planning.plan_hash."""
        return plan_hash(self.cases, self.plan.budget, self.plan.repeats, self.searches)

    @property
    def schedule(self) -> Schedule:
        """Everything this run has to try."""
        grid = self.search or Grid(self.cases, self.plan.repeats)
        timeout_s = self.plan.budget.timeout_s
        sought = [LargestBatch(c, timeout_s, self.ceilings.get(c.case_id)) for c in self.searches]
        some = any(c.case_id not in self.refusals for c in [*self.cases, *self.searches])
        return Several([grid, *sought], guarded=self.guarded and some)

    def memory_bytes(self, case: Case) -> int | None:
        """Memory a rank of the case can have; None where its device is not here.

        On the host that is the container's limit, and ranks share it.
        """
        device = next((d for d in self.survey.devices if d.device == case.device), None)
        if device is None or device.memory_bytes is None:
            return None
        if device.device_class != "cpu":
            return device.memory_bytes
        limit = self.survey.environment.memory_limit_bytes or device.memory_bytes
        return min(limit, device.memory_bytes) // case.world_size

    def too_large(self) -> list[str]:
        """A sentence for each case whose forecast is more than its device has."""
        found = []
        for case in self.cases:
            expected = self.forecasts.get(case.case_id)
            memory = self.memory_bytes(case)
            if expected and expected.peak_bytes and memory and expected.peak_bytes > memory:
                found.append(
                    f"{case.case_id} will not fit: it needs at least "
                    f"{words.mebibytes(expected.peak_bytes)}, the device has "
                    f"{words.mebibytes(memory)}; it is tried all the same"
                )
        return found


def prepare(plan: Plan, *, full: bool = False, fetch: bool = True, foresee: bool = True) -> Ready:
    """Ask children which devices are here and which cases they refuse. Measures no case.

    `fetch`: data that is not here may be downloaded, idle power is measured, and only
    cases that might not fit are forecast; `foresee`: whether any is.
    """
    question = msgspec.json.encode(["survey", [*asked_devices(plan), fetch]])
    survey = msgspec.json.decode(processes.ask("bench.preflight", question), type=Survey)
    planned = expand(plan, survey.devices, list(survey.absent), full=full)
    present = [p for p in planned if p.case.device not in survey.absent]
    refusals = {
        p.case.case_id: survey.absent[p.case.device]
        for p in planned
        if p.case.device in survey.absent
    }
    refusals |= _refusals(present, fetch=fetch)
    grid, searches = ([p.case for p in planned if p.search == sought] for sought in (False, True))
    ready = Ready(plan, grid, refusals, survey, searches)
    if not foresee:
        return ready
    return _foreseen(ready, [c for c in grid if not fetch or _might_not_fit(c, ready)])


def again(plan: Plan, cases: list[Case]) -> Ready:
    """Cases of a record, met by this machine: which devices are here, which cases are refused."""
    devices = list(dict.fromkeys(c.device for c in cases))
    question = msgspec.json.encode(["survey", [devices, False, True]])
    answer = processes.ask("bench.preflight", question)
    survey = msgspec.json.decode(answer, type=Survey)
    refusals = {c.case_id: survey.absent[c.device] for c in cases if c.device in survey.absent}
    present = [Planned(c) for c in cases if c.device not in survey.absent]
    return Ready(plan, cases, refusals | _refusals(present, fetch=True), survey, guarded=False)


def _might_not_fit(case: Case, ready: Ready) -> bool:
    """Whether a rough upper bound is beyond half of the memory, so that a forecast is worth it."""
    memory = ready.memory_bytes(case)
    if memory is None or case.case_id in ready.refusals:
        return False
    side = case.image_size / 224 * (WIDER if keeps_size(case.model) else 1)
    return case.batch_size * side**2 * MOST_BYTES_PER_IMAGE > memory / 2


def _foreseen(ready: Ready, cases: list[Case]) -> Ready:
    """With forecasts of these cases, and how far each search may go."""
    searches = [c for c in ready.searches if c.case_id not in ready.refusals]
    if not cases and not searches:
        return ready
    question = msgspec.json.encode(["foresee", [cases, searches]])
    try:
        patience_s = FORECAST_S * (len(cases) + 10 * len(searches))
        answer = processes.ask("bench.preflight", question, timeout_s=patience_s)
        found = msgspec.json.decode(answer, type=Foreseen)
    except NothingWorks:  # a forecast is never worth a run
        count = len(searches)
        found = Foreseen(
            forecasts=[None] * len(cases), ceilings=[None] * count, refusals=[NO_FORECAST] * count
        )
    forecasts = {c.case_id: f for c, f in zip(cases, found.forecasts, strict=True) if f}
    limits = {c.case_id: n for c, n in zip(searches, found.ceilings, strict=True) if n}
    unknown = {c.case_id: why for c, why in zip(searches, found.refusals, strict=True) if why}
    return msgspec.structs.replace(
        ready, forecasts=forecasts, ceilings=limits, refusals=ready.refusals | unknown
    )


def _refusals(planned: list[Planned], *, fetch: bool) -> dict[str, str]:
    if not planned:
        return {}
    question = msgspec.json.encode(["check", [[p.case for p in planned], fetch]])
    # Checking data may download it.
    answer = processes.ask("bench.preflight", question, timeout_s=1800)
    checked = msgspec.json.decode(answer, type=Checked)
    found = {}
    for p, refusal, emulated in zip(planned, checked.refusals, checked.emulated, strict=True):
        reason = refusal or (emulated if p.skip_emulated else None)
        if reason:
            found[p.case.case_id] = reason
    return found
