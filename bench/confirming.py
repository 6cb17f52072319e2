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

ROUNDS = 6  # as in scripts/alarm_study
# case_id -> its confirming tries so far  →  cases that are still undecided
Decide = Callable[[Mapping[str, Sequence[Tried]]], set[str]]


class Confirm(Struct, frozen=True):
    """suspects: measured until decided. retries: cases without a result, tried once more.

    fresh: in interpreters of their own, as the night's were; a forked worker shares memory with
    its server, so peak memory of the one kind says nothing of the other.
    """

    suspects: Sequence[Case]
    retries: Sequence[Case]
    control: Case | None
    decide: Decide
    seconds: float
    fresh: bool
    rounds: int = ROUNDS

    def next(self, done: Done) -> Trial | None:
        """The next try of the round, suspects before the control in one, after it in the next."""
        spent = sum(t.seconds for (_, _, purpose), t in done.items() if purpose == CONFIRM)
        undecided = list(self.suspects)
        for number in range(1, self.rounds + 1):
            trials = self._round(number, undecided)
            left = [t for t in trials if t.key not in done]
            if left:
                return left[0] if spent < self.seconds else None
            tries = {
                c.case_id: [done[self._trial(c, n).key] for n in range(1, number + 1)]
                for c in undecided
            }
            still = self.decide(tries)
            undecided = [c for c in undecided if c.case_id in still]
            if not undecided:
                return None
        return None

    def length(self, done: Done) -> int:
        """At most; fewer when all are decided sooner."""
        return max(
            len(self.retries) + self.rounds * (len(self.suspects) + (self.control is not None)),
            len(done),
        )

    def _round(self, number: int, undecided: Sequence[Case]) -> list[Trial]:
        cases = list(undecided)
        if undecided and self.control is not None:
            cases = [*cases, self.control] if number % 2 else [self.control, *cases]
        if number == 1:
            cases += self.retries
        return [self._trial(case, number) for case in cases]

    def _trial(self, case: Case, number: int) -> Trial:
        return Trial(case=case, round=number, purpose=CONFIRM, fresh=self.fresh)


def value(metric: Metric, tried: Tried) -> float | None:
    """The logarithm of a metric, larger is worse; None where it was not measured or disturbed."""
    if tried.status != "measured" or "contaminated" in tried.warnings:
        return None
    raw = getattr(tried.measurement, metric.column)
    if raw is None or raw <= 0:
        return None
    return -math.log(raw) if metric.more_is_better else math.log(raw)


def decider(judgement: Judgement, device_of: Mapping[str, int]) -> Decide:
    """What may be said of suspects. device_of: case_id -> its series tonight."""

    def decide(tries: Mapping[str, Sequence[Tried]]) -> set[str]:
        return {
            case_id
            for case_id, done in tries.items()
            if any(
                _state(judgement, look, device_of[case_id], done) == "undecided"
                for look in judgement.looks
            )
        }

    return decide


def _state(judgement: Judgement, look: Look, s: int, tries: Sequence[Tried]) -> str:
    """Of one metric of one series after these tries."""
    if not look.judged.suspect[s]:
        return "cleared"
    found = [value(look.family.metric, t) for t in tries]
    again = [v for v in found if v is not None]
    first, processes = look.family.first(s)
    if not again:
        return "undecided"
    mean = (first * processes + sum(again)) / (processes + len(again))
    now = nights.judge(
        look.model.only(np.array([s])), np.array([mean]), np.array([processes + len(again)]),
        judgement.options,
    )  # fmt: skip
    alone = np.array([sum(again) / len(again)])
    return nights.confirmed(now, alone, len(again), judgement.options)[0]


def control(judgement: Judgement, suspects: set[int], able: set[int]) -> int | None:
    """The series that moved least tonight, of those nobody suspects."""
    look = next((k for k in judgement.looks if k.judged.judged.any()), None)
    if look is None:
        return None
    calm = [
        s for s in np.flatnonzero(look.judged.judged) if int(s) not in suspects and int(s) in able
    ]
    return min((int(s) for s in calm), key=lambda s: abs(look.judged.effect[s]), default=None)
