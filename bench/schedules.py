"""Which case next: pure functions of what is already recorded.

A schedule answers `next(done) -> Trial | None`; the runner knows no other loop.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from msgspec import Struct

from bench import sentinel
from bench.schema import Case, Key, Trial


class Schedule(Protocol):
    """What the runner asks."""

    def trials(self) -> list[Trial]:
        """All tries known so far."""
        ...

    def next(self, done: Collection[Key]) -> Trial | None:
        """The next try, given the keys of all tries that have a record."""
        ...


class Grid(Struct, frozen=True):
    """Every case once a round, rounds interleaved: 1 2 3 1 2 3, not 1 1 2 2 3 3.

    The sentinel comes first and last; there is none where nothing else can run.
    """

    cases: Sequence[Case]
    repeats: int = 1
    sentinel: bool = True

    def trials(self) -> list[Trial]:
        """All tries in order."""
        grid = [Trial(case=c, round=r) for r in range(1, self.repeats + 1) for c in self.cases]
        if not self.sentinel:
            return grid
        first, last = (
            Trial(case=sentinel.CASE, round=r, purpose=sentinel.PURPOSE, budget=sentinel.BUDGET)
            for r in (1, 2)
        )
        return [first, *grid, last]

    def next(self, done: Collection[Key]) -> Trial | None:
        """The first try without a record."""
        return next((t for t in self.trials() if t.key not in done), None)
