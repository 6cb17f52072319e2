"""Which case next: pure functions of what is already recorded.

A schedule answers `next(done) -> Trial | None`; the runner knows no other loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
from msgspec import Struct

from bench import sentinel
from bench.schema import Budget, Case, Key, Trial, Tried

GRID, SEARCH, FIT, SCREEN, FINAL = "grid", "search", "fit", "screen", "final"  # purposes
CONFIRM = "confirm"  # the purpose of a night's suspects and their control, measured again
# Only whether it fits: the throughput of such a try is a by-product.
FIT_BUDGET = Budget(
    name=FIT, min_seconds=0.1, max_seconds=0.5, latency_requests=1, latency_seconds=0.1
)

Done = Mapping[Key, Tried]


class Schedule(Protocol):
    """What the runner asks."""

    def next(self, done: Done) -> Trial | None:
        """The next try, given all tries that have a record."""
        ...

    def length(self, done: Done) -> int:
        """How many tries there are, as far as is known."""
        ...


class Grid(Struct, frozen=True):
    """Every case once a round, rounds interleaved: 1 2 3 1 2 3, not 1 1 2 2 3 3."""

    cases: Sequence[Case]
    repeats: int = 1

    def trials(self) -> list[Trial]:
        """All tries in order."""
        return [Trial(case=c, round=r) for r in range(1, self.repeats + 1) for c in self.cases]

    def next(self, done: Done) -> Trial | None:
        """The first try without a record."""
        return next((t for t in self.trials() if t.key not in done), None)

    def length(self, done: Done) -> int:  # noqa: ARG002 - a schedule's method
        """Known from the start."""
        return len(self.cases) * self.repeats


class LargestBatch(Struct, frozen=True):
    """The largest batch that fits: doubling, then bisection; never past `ceiling`.

    Doubled sizes are measured as the plan says, so that the best throughput is among
    them. A try that fails or takes too long ends the search: it says nothing of memory.
    One that is refused counts as too large, e.g. for the number of images there are.
    """

    case: Case
    timeout_s: float
    ceiling: int | None = None

    def next(self, done: Done) -> Trial | None:
        """The next size, if one is left."""
        tried = self._tried(done)
        ends = {t.status for t in tried.values()}
        if ends & {"failed", "timeout"} or ends == {"skipped"}:
            return None
        low = max((b for b, t in tried.items() if t.status == "measured"), default=0)
        high = min((b for b, t in tried.items() if t.status != "measured"), default=None)
        if high is None:
            size = 2 * low or self.case.batch_size
            size = size if self.ceiling is None else min(size, max(1, self.ceiling))
            return Trial(case=self._of(size), purpose=SEARCH) if size > low else None
        if high - low <= 1:
            return None
        budget = msgspec.structs.replace(FIT_BUDGET, timeout_s=self.timeout_s)
        return Trial(case=self._of((low + high) // 2), purpose=FIT, budget=budget)

    def length(self, done: Done) -> int:
        """Tries so far, and the next."""
        return len(self._tried(done)) + (self.next(done) is not None)

    def _of(self, size: int) -> Case:
        return msgspec.structs.replace(self.case, batch_size=size)

    def _tried(self, done: Done) -> dict[int, Tried]:
        """Batch size -> how its try ended."""
        mine = {self._of(t.batch_size).case_id: t.batch_size for t in done.values()}
        return {
            mine[case_id]: tried
            for (case_id, _, purpose), tried in done.items()
            if purpose in (SEARCH, FIT) and case_id in mine
        }


class Several(Struct, frozen=True):
    """One schedule after the other; if `guarded`, the sentinel comes first and last."""

    parts: Sequence[Schedule]
    guarded: bool

    def next(self, done: Done) -> Trial | None:
        """The sentinel, what any part still wants, the sentinel."""
        first, last = (
            Trial(case=sentinel.CASE, round=r, purpose=sentinel.PURPOSE, budget=sentinel.BUDGET)
            for r in (1, 2)
        )
        if self.guarded and last.key in done:
            return None  # a search may go further now, but this run has been closed
        if self.guarded and first.key not in done:
            return first
        for part in self.parts:
            if (trial := part.next(done)) is not None:
                return trial
        return last if self.guarded else None

    def length(self, done: Done) -> int:
        """The sentinel is not counted."""
        return sum(part.length(done) for part in self.parts)
