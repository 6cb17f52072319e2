"""A night's suspects are measured again at once, in fresh interpreters, beside a control.

The schedule is pure: after each round it asks what may be said, and goes on with those
that are undecided, while there is time. The control is a case nobody suspects: if it has
become slower too, the machine changed meanwhile and nothing is confirmed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from msgspec import Struct

from bench.history import Metric
from bench.judging import Judgement, Look
from bench.schedules import CONFIRM, Done
from bench.schema import Case, Trial, Tried
from bench.stats import nights
from bench.stats.nights import FEWEST_CONFIRMING

ROUNDS = 6  # as in scripts/alarm_study
# case_id -> its confirming tries so far, the control's too  →  suspects still undecided
Decide = Callable[[Mapping[str, Sequence[Tried]]], set[str]]


class Confirm(Struct, frozen=True):
    """Rounds of suspects and their control, until all suspects are decided or the time is over.

    suspects: the likeliest first. Where there is no time to measure all of them
    FEWEST_CONFIRMING times, the first ones come first: one process each would decide nothing.
    retries: cases without a result, tried once more. seconds_of: case_id -> seconds of a try.

    fresh: in interpreters of their own, as the night's were; a forked worker shares memory with
    its server, so peak memory of the one kind says nothing of the other.
    """

    suspects: Sequence[Case]
    retries: Sequence[Case]
    control: Case | None
    decide: Decide
    seconds: float
    seconds_of: Mapping[str, float]
    fresh: bool
    rounds: int = ROUNDS

    def next(self, done: Done) -> Trial | None:
        """The next try of the round, suspects before the control in one, after it in the next."""
        spent, number = 0.0, 0
        waiting, retries = list(self.suspects), list(self.retries)
        while waiting or retries:
            batch = self._fitting(waiting, self.seconds - spent, least=0 if number else 1)
            if not batch and not retries:
                return None
            waiting = waiting[len(batch) :]
            undecided = batch
            tries: dict[str, list[Tried]] = {}
            for _ in range(self.rounds):
                number += 1
                for trial in self._round(number, undecided, retries):
                    if trial.key not in done:
                        return trial if spent < self.seconds else None
                    spent += done[trial.key].seconds
                    tries.setdefault(trial.case.case_id, []).append(done[trial.key])
                retries = []
                still = self.decide(tries)
                undecided = [c for c in undecided if c.case_id in still]
                if not undecided:
                    break
        return None

    def length(self, done: Done) -> int:
        """At most; fewer when all are decided sooner."""
        return max(
            len(self.retries) + self.rounds * (len(self.suspects) + (self.control is not None)),
            len(done),
        )

    def _fitting(self, waiting: Sequence[Case], left: float, least: int) -> list[Case]:
        """The first of those that wait that can be measured FEWEST_CONFIRMING times."""
        fits: list[Case] = []
        round_s = 0.0 if self.control is None else self._seconds(self.control)
        for case in waiting:
            round_s += self._seconds(case)
            if round_s * FEWEST_CONFIRMING > left and len(fits) >= least:
                break
            fits.append(case)
        return fits

    def _seconds(self, case: Case) -> float:
        return self.seconds_of.get(case.case_id, 0.0)

    def _round(
        self, number: int, undecided: Sequence[Case], retries: Sequence[Case]
    ) -> list[Trial]:
        cases = list(undecided)
        if undecided and self.control is not None:
            cases = [*cases, self.control] if number % 2 else [self.control, *cases]
        return [
            Trial(case=case, round=number, purpose=CONFIRM, fresh=self.fresh)
            for case in [*cases, *retries]
        ]


def value(metric: Metric, tried: Tried) -> float | None:
    """The logarithm of a metric, larger is worse; None where it was not measured or disturbed."""
    if tried.status != "measured" or set(metric.void) & set(tried.warnings):
        return None
    raw = getattr(tried.measurement, metric.column)
    if raw is None or raw <= 0:
        return None
    return -math.log(raw) if metric.more_is_better else math.log(raw)


def decider(judgement: Judgement, series_of: Mapping[str, int], control: str | None) -> Decide:
    """Which suspects are still undecided after some tries of them and of the control.

    series_of: case_id -> its series, of the suspects and the control.
    """

    def decide(tries: Mapping[str, Sequence[Tried]]) -> set[str]:
        calm = [] if control is None else tries.get(control, [])
        undecided = set()
        for look in judgement.looks:
            moved = None if control is None else _shift(look, series_of[control], calm)
            undecided |= {
                case_id
                for case_id, done in tries.items()
                if case_id in series_of
                and case_id != control
                and _undecided(judgement, look, series_of[case_id], done, moved)
            }
        return undecided

    return decide


def _shift(look: Look, s: int, tries: Sequence[Tried]) -> float | None:
    """How much worse the control became, as judging.shift says it."""
    again = _known(look, tries)
    value, count = look.family.first
    return sum(again) / len(again) - float(value[s]) if again and count[s] else None


def _known(look: Look, tries: Sequence[Tried]) -> list[float]:
    found = [value(look.family.metric, t) for t in tries]
    return [v for v in found if v is not None]


def _undecided(
    judgement: Judgement, look: Look, s: int, tries: Sequence[Tried], moved: float | None
) -> bool:
    """Of one metric of one series. moved: how much worse the control became, None: unknown."""
    if not look.judged.suspect[s]:
        return False
    again = _known(look, tries)
    if not again:
        return True
    first, processes = (a[s] for a in look.family.first)
    whole = sum(again) + (float(first) * processes if processes else 0.0)
    count = processes + len(again)
    now = nights.judge(
        look.model.only(np.array([s])), np.array([whole / count]), np.array([count]),
        judgement.options,
    )  # fmt: skip
    alone = np.array([sum(again) / len(again)])
    state = nights.confirmed(now, alone, len(again), judgement.options)[0]
    slower = moved is not None and moved >= judgement.options.size
    return state == "undecided" or (state == "confirmed" and slower)


def control(judgement: Judgement, suspects: Sequence[int], able: set[int]) -> int | None:
    """The series that moved least tonight, of those nobody suspects; on the first one's device."""
    look = next((k for k in judgement.looks if k.judged.judged.any()), None)
    if look is None:
        return None
    calm = [int(s) for s in np.flatnonzero(look.judged.judged) if s in able and s not in suspects]
    devices = judgement.history.series["device_name"]
    beside = [s for s in calm if suspects and devices[s] == devices[suspects[0]]]
    return min(beside or calm, key=lambda s: abs(look.judged.effect[s]), default=None)
