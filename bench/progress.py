"""What a person sees while cases run: one redrawn line on a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

from bench import words
from bench.messages import Progress
from bench.schema import Budget, Record, Trial
from bench.sentinel import PURPOSE


class Quiet:
    """Nothing but the records: --json."""

    def started(self, trial: Trial, number: int, total: int) -> None:
        """A case begins."""

    def progress(self, live: Progress) -> None:
        """Between two samples."""

    def finished(self, record: Record) -> None:
        """Its record is on disk."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the terminal clean."""


def announce(text: str) -> None:
    """Tell a person at a terminal what the wait is for."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


class Line(Quiet):
    """Case, live images/s with its interval, and time left, on standard error.

    On a terminal Rich draws one line, only when told to: between samples, at
    most once a second. Elsewhere each case is one line when it has ended.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.bar: Any = None
        self.task: Any = None
        self.begun = 0.0  # when the first case began, not the sentinel before it
        self.number, self.total, self.case_id = 0, 1, ""
        self.first: int | None = None  # a resumed run does not begin at 0

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._open_bar()
        return self

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.bar = Progress(
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.description}", markup=False),
            console=Console(stderr=True),
            auto_refresh=False,  # no thread: redrawn when told to
            transient=True,
        )
        self.task = self.bar.add_task("", total=None)
        self.bar.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()

    def started(self, trial: Trial, number: int, total: int) -> None:
        """Name the case."""
        self.number, self.total = number, total
        if trial.purpose == PURPOSE:
            self.case_id = "sentinel"
        else:
            self.case_id = trial.case.case_id
            self.begun = self.begun or time.monotonic()
        self.first = number if self.first is None else self.first
        self._draw("setting up")

    def progress(self, live: Progress) -> None:
        """Show the rate so far."""
        half = live.relative_half_width
        width = "" if half is None else f" ± {100 * half:.1f} %"
        self._draw(f"{words.rate(live.images_per_s)} images/s{width}, case ≤ {live.left_s:.0f} s")

    def _draw(self, state: str) -> None:
        if self.bar is None:
            return
        self.bar.update(
            self.task,
            completed=self.number,
            total=self.total,
            description=f"{self.case_id}  {state}{self._left()}",
            refresh=True,
        )

    def _left(self) -> str:
        """Time for all cases that are left: as the finished ones took, or as the budget allows."""
        done, left = self.number - (self.first or 0), self.total - self.number
        if done:
            return f", all ≈ {words.duration((time.monotonic() - self.begun) / done * left)}"
        most = self.budget.max_seconds + self.budget.latency_seconds
        return f", all ≲ {words.duration(most * left)}"

    def finished(self, record: Record) -> None:
        """A line that stays; the sentinel has none."""
        if record.purpose == PURPOSE:
            return
        text = f"[{self.number + 1}/{self.total}] {record.case_id}  {words.result(record)}"
        if self.bar is not None:
            self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)
