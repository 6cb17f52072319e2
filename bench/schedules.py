"""Which case next: pure functions of what is already recorded.

A schedule answers `next(done) -> Trial | None`; the runner knows no other loop.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from msgspec import Struct

from bench.schema import Case, Trial

Key = tuple[str, int, str]


class Schedule(Protocol):
    """What the runner asks."""

    def next(self, done: Collection[Key]) -> Trial | None:
        """The next try, given the keys of all tries that have a record."""
        ...


class Grid(Struct, frozen=True):
    """Every case once a round, rounds interleaved: 1 2 3 1 2 3, not 1 1 2 2 3 3."""

    cases: Sequence[Case]
    repeats: int = 1

    def trials(self) -> list[Trial]:
        """All tries in order."""
        return [Trial(case=c, round=r) for r in range(1, self.repeats + 1) for c in self.cases]

    def next(self, done: Collection[Key]) -> Trial | None:
        """The first try without a record."""
        return next((t for t in self.trials() if t.key not in done), None)
