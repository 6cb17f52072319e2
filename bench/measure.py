"""The only timing loop. It sees a step, a device, a budget and a clock; nothing else.

Every time is taken as: synchronise, read the clock, enqueue the steps,
synchronise, read the clock.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from bench.schema import Budget
from bench.stats.series import WINDOW, Interval, interval, steady
from bench.stats.stopping import StopReason, enough

# A sample lasts at least this long: 1 ms would do for the clock, but every
# synchronisation drains an asynchronous device's queue.
LEAST_SAMPLE_S = 0.05
TELL_EVERY_S = 1.0

Clock = Callable[[], float]
Step = Callable[[], None]
Epoch = Callable[[Callable[[], None]], int]  # calls its argument after each step, returns the steps


class Waits(Protocol):
    """What the loop needs of a device."""

    def synchronize(self) -> None:
        """Block until everything enqueued has run."""

    def reset_peak(self) -> None:
        """Start a new high-water mark of device memory."""


class Live(Struct, frozen=True):
    """What a progress line can show between two samples."""

    seconds_per_step: float
    relative_half_width: float | None
    left_s: float


Tell = Callable[[Live], None]


class Throughput(Struct, frozen=True):
    """Raw samples of the throughput protocol, warm-up first."""

    first_step_s: float
    samples_s: list[float]
    steps_per_sample: int
    warmup_samples: int
    settled: bool
    stop_reason: StopReason

    @property
    def steady_s(self) -> list[float]:
        """The samples that count."""
        return self.samples_s[self.warmup_samples :]

    @property
    def warmup_steps(self) -> int:
        """Steps run before the first steady sample, the two single ones at the start included."""
        return 2 + self.warmup_samples * self.steps_per_sample

    def seconds_per_step(self) -> tuple[float, Interval | None]:
        """Mean over the steady samples, stalls included, and its 95 % interval."""
        per_step = [s / self.steps_per_sample for s in self.steady_s]
        return statistics.fmean(per_step), interval(per_step)


class Loop(Struct, frozen=True):
    """The timing loop around one device."""

    device: Waits
    budget: Budget
    tell: Tell = lambda _: None
    clock: Clock = time.perf_counter

    def timed(self, step: Step, count: int = 1) -> float:
        """Seconds of `count` steps between two synchronisations."""
        self.device.synchronize()
        start = self.clock()
        for _ in range(count):
            step()
        self.device.synchronize()
        return self.clock() - start

    def throughput(self, step: Step, cycle: int = 1) -> Throughput:
        """Sample until warm-up is over and the budget is satisfied.

        `cycle` is how many steps a loader takes to come round; samples are
        whole multiples of it.
        """
        first_step_s = self.timed(step)
        self.device.reset_peak()  # optimizer state exists from now on
        count = steps_per_sample(self.timed(step), cycle)
        samples: list[float] = []
        warmup: int | None = None
        settled, told = True, self.clock()
        while True:
            samples.append(self.timed(step, count))
            if warmup is None:
                warmup, settled = warmup_end(samples, self.budget)
            if warmup is None:
                continue
            kept = samples[warmup:]
            reason = enough(kept, self.budget) if kept else None
            if reason is not None:
                return Throughput(first_step_s, samples, count, warmup, settled, reason)
            if kept and self.clock() - told >= TELL_EVERY_S:
                self.tell(live(kept, count, self.budget.max_seconds))
                told = self.clock()

    def latency(self, request: Step) -> tuple[float, list[float]]:
        """Seconds of the first request apart, then of each one until the budget is used."""
        first = self.timed(request)
        taken: list[float] = []
        spent, told = 0.0, self.clock()
        budget = self.budget
        while len(taken) < budget.latency_requests and (
            spent < budget.latency_seconds
            or (len(taken) < budget.min_samples and spent < 2 * budget.latency_seconds)
        ):
            taken.append(self.timed(request))
            spent += taken[-1]
            if self.clock() - told >= TELL_EVERY_S:
                self.tell(Live(spent / len(taken), None, budget.latency_seconds - spent))
                told = self.clock()
        return first, taken

    def epochs(self, epoch: Epoch, after: Step, count: int) -> tuple[list[float], int]:
        """Seconds of `count` epochs and the steps of one; `after` runs between them, untimed.

        Progress is told within an epoch too, ten times less often than between
        samples, because it is part of the time.
        """
        taken: list[float] = []
        steps, begun, told = 0, self.clock(), self.clock()
        trained = 0

        def pulse() -> None:
            nonlocal told, trained
            trained += 1
            now = self.clock()
            if now - told >= 10 * TELL_EVERY_S:
                told = now
                mean = (now - begun) / trained
                left = count * steps - trained if steps else 0
                self.tell(Live(mean, None, max(0.0, mean * left)))

        for _ in range(count):
            self.device.synchronize()
            start = self.clock()
            steps = epoch(pulse)
            self.device.synchronize()
            taken.append(self.clock() - start)
            after()
        return taken, steps


def steps_per_sample(seconds_per_step: float, cycle: int) -> int:
    """Steps that make a sample long enough, rounded up to whole loader cycles."""
    steps = math.ceil(LEAST_SAMPLE_S / max(seconds_per_step, 1e-6))
    return math.ceil(steps / cycle) * cycle


def warmup_end(samples: list[float], budget: Budget) -> tuple[int | None, bool]:
    """How many samples are warm-up (None: not over yet), and whether the speed settled.

    Warm-up ends before the first two neighbouring windows that agree. When its
    share of the budget is used up without that, the last window counts, unsettled;
    when steps are so slow that twice the budget is gone, whatever there is counts.
    """
    spent = sum(samples)
    if steady(samples):
        return len(samples) - 2 * WINDOW, True
    if len(samples) >= 2 * WINDOW and spent > budget.warmup_share * budget.max_seconds:
        return len(samples) - WINDOW, False
    if spent >= 2 * budget.max_seconds:
        return 0, False
    return None, True


def live(kept: list[float], steps: int, max_seconds: float) -> Live:
    """The state of a series, for a progress line."""
    found = interval(kept)
    return Live(
        statistics.fmean(kept) / steps,
        found.relative_half_width if found else None,
        max(0.0, max_seconds - sum(kept)),
    )
