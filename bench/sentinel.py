"""A tiny fixed piece of work that every run measures first and last.

It needs no torchvision and no model of ours, so that a machine that became slower
can be told from software that did: a matrix product, a memory copy, a Python loop,
each a few hundredths of a second on one core.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct

from bench.schema import Budget, Case

if TYPE_CHECKING:
    import pandas as pd
    import torch

PURPOSE = "sentinel"
CASE = Case(model="sentinel", threads=1)
BUDGET = Budget(
    name=PURPOSE, min_seconds=0.4, max_seconds=0.4, warmup_share=0.5, target_ci=0.05, timeout_s=60
)
CHANGED = 0.05  # a machine whose sentinel differs by more between first and last has changed
SIDE = 768  # of the square matrices
COPIED_BYTES = 2**26  # more than caches hold
TURNS = 200_000  # of the Python loop
LONG_ENOUGH_S = 0.005  # a product that takes so long hides the cost of a call
BEST_OF = 10


def without(frame: pd.DataFrame) -> pd.DataFrame:
    """The records of cases."""
    return frame[frame["purpose"] != PURPOSE]


def make_step() -> Callable[[], None]:
    """The work itself. Imports torch."""
    import torch

    generator = torch.Generator().manual_seed(0)
    left = torch.randn(SIDE, SIDE, generator=generator)
    product = torch.empty_like(left)
    source = torch.zeros(COPIED_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)

    def step() -> None:
        torch.mm(left, left, out=product)
        target.copy_(source)
        total = 0
        for turn in range(TURNS):
            total += turn

    return step


def peak_tflops(dtype: torch.dtype) -> float:
    """The fastest of a few square matrix products on the host, with the threads set now.

    The side is doubled until one takes LONG_ENOUGH_S.
    """
    import torch

    side, seconds = 256, 0.0
    while seconds < LONG_ENOUGH_S:
        side *= 2
        left = torch.randn(side, side).to(dtype)
        torch.mm(left, left)
        seconds = min(_seconds(left) for _ in range(BEST_OF))
    return 2 * side**3 / seconds / 1e12


def _seconds(left: torch.Tensor) -> float:
    import torch

    start = time.perf_counter()
    torch.mm(left, left)
    return time.perf_counter() - start


class Speed(Struct, frozen=True):
    """Rounds a second of one sentinel, with its interval; None where unknown."""

    rate: float | None
    low: float | None
    high: float | None


def change(start: Speed, end: Speed) -> str | None:
    """What the sentinel's speeds at a run's start and end say of the machine; None: nothing.

    Intervals that overlap say that the difference may be noise.
    """
    first, last = start.rate, end.rate
    if not first or not last or abs(last / first - 1) <= CHANGED:
        return None
    before, after = (start, end) if last > first else (end, start)
    if before.high is not None and after.low is not None and before.high >= after.low:
        return None
    way = "slower" if last < first else "faster"
    return (
        f"The machine changed during this run: its sentinel, a fixed piece of work, was "
        f"{100 * abs(last / first - 1):.0f} % {way} at the end than at the start."
    )
