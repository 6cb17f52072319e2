"""The only timing loop. It sees a step, a device, a budget and a clock; nothing else.

Every time is taken as: synchronise, read the clock, enqueue the steps,
synchronise, read the clock.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, Protocol

from msgspec import Struct

from bench.schema import Budget
from bench.stats.series import (
    SURE,
    WINDOW,
    Interval,
    drifts,
    interval,
    steady,
    two_state,
)
from bench.stats.stopping import StopReason, enough

# A sample lasts at least this long: 1 ms would do for the clock, but every
# synchronisation drains an asynchronous device's queue.
# The first step after a look at the samples finds cold caches and sleeping threads: that was
# 0.7 % of samples of 0.05 s (scripts/overhead).
LEAST_SAMPLE_S = 0.1
WINDOW_S = 0.5  # interference is judged over so long: steal time ticks every 10 ms
TELL_EVERY_S = 1.0
CLOCKS_AGREE = 0.05  # a device's clock and the wall clock, over the same steps

Clock = Callable[[], float]
Step = Callable[[], None]
Epoch = Callable[[Callable[[], None]], int]  # calls its argument after each step, returns the steps


class Waits(Protocol):
    """What the loop needs of a device."""

    asynchronous: bool  # steps are enqueued; the device has a time of its own

    def synchronize(self) -> None:
        """Block until everything enqueued has run."""

    def mark(self) -> Any:
        """A mark in the device's queue."""

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds between two marks; only after a synchronise."""

    def reset_peak(self) -> None:
        """Start a new high-water mark of device memory."""


class Watch(Protocol):
    """What looks for interference between samples."""

    def restart(self) -> None:
        """A window begins now; what was before is nobody's."""

    def sampled(self) -> None:
        """A sample of throughput, or an epoch, has just ended."""

    def since_last(self) -> str | None:
        """What disturbed the window that ends now, in a word (None: nothing); the next begins."""


class Blind:
    """Sees nothing."""

    def restart(self) -> None:
        """Nothing begins."""

    def sampled(self) -> None:
        """Nothing."""

    def since_last(self) -> str | None:
        """Nothing."""
        return None


class Live(Struct, frozen=True):
    """What a progress line can show between two samples."""

    seconds_per_step: float
    relative_half_width: float | None
    left_s: float


Tell = Callable[[Live], None]


class Throughput(Struct, frozen=True):
    """Raw samples of the throughput protocol, warm-up first.

    `marks` has one word a sample: what disturbed it, empty if nothing did.
    """

    first_step_s: float
    samples_s: list[float]
    steps_per_sample: int
    warmup_samples: int
    marks: list[str]
    settled: bool
    stop_reason: StopReason
    device_steps_s: list[float] = []  # of each step, where the device has a time of its own

    @property
    def left_out(self) -> int:
        """How many samples after warm-up are marked as disturbed."""
        return sum(map(bool, self.marks[self.warmup_samples :]))

    @property
    def mostly_disturbed(self) -> bool:
        """Whether that is more than half of them; then none is left out."""
        return 2 * self.left_out > len(self.samples_s) - self.warmup_samples

    @property
    def kept(self) -> list[int]:
        """Numbers of the samples that count."""
        steady = range(self.warmup_samples, len(self.samples_s))
        return [i for i in steady if self.mostly_disturbed or not self.marks[i]]

    @property
    def kept_s(self) -> list[float]:
        """The samples that count."""
        return [self.samples_s[i] for i in self.kept]

    @property
    def kept_steps(self) -> list[int]:
        """Numbers of the steps of these samples. Two single steps come before the first sample."""
        count = self.steps_per_sample
        return [step for i in self.kept for step in range(2 + i * count, 2 + (i + 1) * count)]

    @property
    def device_samples_s(self) -> list[float]:
        """Seconds of each sample by the device's own clock; empty where it has none."""
        steps, count = self.device_steps_s, self.steps_per_sample
        return [sum(steps[i : i + count]) for i in range(0, len(steps), count)]

    @property
    def clocks_disagree(self) -> bool:
        """Whether the device's clock and the wall clock differ over the steady samples."""
        device = sum(self.device_samples_s[self.warmup_samples :])
        wall = sum(self.samples_s[self.warmup_samples :])
        return bool(self.device_steps_s) and abs(device / wall - 1) > CLOCKS_AGREE

    def estimate(self, tolerance: float) -> Estimate:
        """Mean seconds per step over the kept samples, stalls included, and how sure it is.

        There is no interval where none would be honest: too few samples of a speed that
        never settled, a drift by more than `tolerance` of the mean, two states, or others
        that disturbed most of it.
        """
        per_step = [s / self.steps_per_sample for s in self.kept_s]
        found = interval(per_step)
        codes = ["contaminated"] if self.mostly_disturbed else []
        if drifts(per_step, tolerance, SURE) or not (self.settled or found):
            codes.append("not_steady")
        if two_state(per_step, tolerance):
            codes.append("two_state")
        return Estimate(statistics.fmean(per_step), None if codes else found, codes)


class Estimate(Struct, frozen=True):
    """Seconds per step, its 95 % interval within this process, codes of why it has none."""

    seconds_per_step: float
    interval: Interval | None
    codes: list[str]


class Latency(Struct, frozen=True):
    """Seconds of every request, slow ones too; `marks` has one word a request, as Throughput's."""

    first_s: float
    samples_s: list[float]
    marks: list[str]


def clean(samples: list[float], marks: list[str]) -> list[float]:
    """The samples whose mark is empty; those without a mark yet are left out too."""
    return [s for s, mark in zip(samples, marks, strict=False) if not mark]


def unmarked() -> None:
    """No mark is wanted."""


class Loop(Struct, frozen=True):
    """The timing loop around one device."""

    device: Waits
    budget: Budget
    tell: Tell = lambda _: None
    clock: Clock = time.perf_counter
    watch: Watch = Blind()
    announce: Callable[[int], None] = lambda _: None  # how many steps of throughput come next

    def timed(self, step: Step, count: int = 1, mark: Step = unmarked) -> float:
        """Seconds of `count` steps between two synchronisations; `mark` before and after each."""
        self.device.synchronize()
        start = self.clock()
        mark()
        for _ in range(count):
            step()
            mark()
        self.device.synchronize()
        return self.clock() - start

    def marked(self, step: Step, count: int) -> tuple[float, list[float]]:
        """As `timed`, and each step's seconds by the device's own clock, where it has one.

        The wall clock makes the sample; marks are read only after the second
        synchronise. Caches are not flushed between steps: a network's weights and
        activations pass through them many times a step, so no step finds what another left.
        """
        if not self.device.asynchronous:
            return self.timed(step, count), []
        marks: list[Any] = []
        seconds = self.timed(step, count, lambda: marks.append(self.device.mark()))
        return seconds, [self.device.seconds(a, b) for a, b in itertools.pairwise(marks)]

    def throughput(self, step: Step, cycle: int = 1) -> Throughput:
        """Sample until warm-up is over and the budget is satisfied.

        `cycle` is how many steps a loader takes to come round; samples are
        whole multiples of it.
        """
        self.announce(1)
        first_step_s = self.timed(step)
        self.device.reset_peak()  # optimizer state exists from now on
        self.announce(1)
        count = steps_per_sample(self.timed(step), cycle)
        samples: list[float] = []
        device_steps: list[float] = []
        warmup: int | None = None
        settled, told = True, self.clock()
        windows = Windows(self)
        while True:
            self.announce(count)
            seconds, by_device = self.marked(step, count)
            self.watch.sampled()
            samples.append(seconds)
            device_steps += by_device
            if warmup is None:
                warmup, settled = warmup_end(samples, self.budget)
            # Only samples that were looked at count, so decisions wait for the window's end.
            if not windows.ended(len(samples)) or warmup is None:
                continue
            steady = samples[warmup:]
            kept = clean(steady, windows.marks[warmup:])
            reason = enough(kept, self.budget, sum(steady) - sum(kept)) if steady else None
            if reason is not None:
                marks = windows.marks
                return Throughput(
                    first_step_s, samples, count, warmup, marks, settled, reason, device_steps
                )
            if kept and self.clock() - told >= TELL_EVERY_S:
                self.tell(live(kept, count, self.budget.max_seconds - sum(steady)))
                told = self.clock()

    def latency(self, request: Step) -> Latency:
        """The first request apart, then one after the other until the budget is used."""
        first = self.timed(request)
        taken: list[float] = []
        spent, told = 0.0, self.clock()
        budget, windows = self.budget, Windows(self)
        while len(taken) < budget.latency_requests and (
            spent < budget.latency_seconds
            or (len(taken) < budget.min_samples and spent < 2 * budget.latency_seconds)
        ):
            taken.append(self.timed(request))
            spent += taken[-1]
            windows.ended(len(taken))
            if self.clock() - told >= TELL_EVERY_S:
                self.tell(Live(spent / len(taken), None, budget.latency_seconds - spent))
                told = self.clock()
        windows.close(len(taken))
        return Latency(first, taken, windows.marks)

    def epochs(self, epoch: Epoch, after: Step, count: int) -> tuple[list[float], int, list[str]]:
        """Seconds of `count` epochs, the steps of one, their marks; `after` runs untimed.

        Progress is told within an epoch too, ten times less often than between
        samples, because it is part of the time.
        """
        taken: list[float] = []
        windows = Windows(self)
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
            self.watch.sampled()
            windows.close(len(taken))
            after()
            windows.restart()
        return taken, steps, windows.marks


class Windows:
    """Marks samples with what disturbed them, a window of at least WINDOW_S at a time."""

    def __init__(self, loop: Loop) -> None:
        self.clock, self.watch = loop.clock, loop.watch
        self.marks: list[str] = []
        self.restart()

    def restart(self) -> None:
        """Begin a window; the time since the last one belongs to no sample."""
        self.watch.restart()
        self.began = self.clock()

    def ended(self, count: int) -> bool:
        """Whether the window is over now that there are `count` samples; if so they are marked."""
        if self.clock() - self.began < WINDOW_S:
            return False
        self.close(count)
        return True

    def close(self, count: int) -> None:
        """Mark the samples since the last window and begin the next."""
        mark = self.watch.since_last() or ""
        self.marks += [mark] * (count - len(self.marks))
        self.began = self.clock()


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


def live(kept: list[float], steps: int, left_s: float) -> Live:
    """The state of a series, for a progress line."""
    found = interval(kept)
    return Live(
        statistics.fmean(kept) / steps,
        found.relative_half_width if found else None,
        max(0.0, left_s),
    )
