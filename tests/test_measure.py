"""The timing loop against a fake clock and a fake device: order and numbers are exact."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.measure import LEAST_SAMPLE_S, Live, Loop, Throughput, steps_per_sample
from bench.schema import BUDGETS, Budget

BUDGET = msgspec.structs.replace(
    BUDGETS["quick"], min_seconds=0.1, max_seconds=10.0, latency_seconds=5.0, latency_requests=50
)


class Rig:
    """A clock that only moves when a device is waited for, and a device with a queue.

    As on a GPU, a step returns at once; its time passes at the next synchronise.
    """

    asynchronous = False

    def __init__(self, step_s: list[float]) -> None:
        self.now, self.queue_s = 0.0, 0.0
        self.events: list[str] = []
        self.step_s, self.steps = step_s, 0
        self.peak_reset_after: int | None = None

    def synchronize(self) -> None:
        self.events.append("synchronise")
        self.now += self.queue_s
        self.queue_s = 0.0

    def mark(self) -> float:
        """When the queue will have come here."""
        self.events.append("mark")
        return self.now + self.queue_s

    def seconds(self, start: float, end: float) -> float:
        assert self.queue_s == 0, "an event is read before it has happened"
        return end - start

    def reset_peak(self) -> None:
        self.peak_reset_after = self.steps

    def clock(self) -> float:
        self.events.append("clock")
        return self.now

    def step(self) -> None:
        self.events.append("step")
        self.queue_s += self.step_s[min(self.steps, len(self.step_s) - 1)]
        self.steps += 1

    def loop(self, budget: Budget = BUDGET) -> Loop:
        return Loop(self, budget, clock=self.clock)


def test_a_sample_is_synchronise_start_steps_synchronise_stop() -> None:
    """The order that makes a time true on an asynchronous device."""
    rig = Rig([0.25])
    seconds = rig.loop().timed(rig.step, 3)
    expected = ["synchronise", "clock", "step", "step", "step", "synchronise", "clock"]
    assert rig.events == expected
    assert seconds == pytest.approx(0.75)


def test_work_still_queued_before_a_sample_is_not_counted() -> None:
    """Without the first synchronise the earlier work would be added to the sample."""
    rig = Rig([0.25])
    rig.step()
    rig.step()
    assert rig.loop().timed(rig.step) == pytest.approx(0.25)


class Skewed(Rig):
    """Has a time of its own, which runs `rate` times as fast as the wall clock."""

    asynchronous, rate = True, 1.0

    def seconds(self, start: float, end: float) -> float:
        return super().seconds(start, end) * self.rate


@pytest.mark.parametrize(("rate", "disagree"), [(1.0, False), (1.04, False), (0.9, True)])
def test_a_devices_own_clock_is_read_after_the_second_synchronise(
    rate: float, disagree: bool
) -> None:
    """Each step's seconds by events; the sample is wall time however they differ."""
    rig = Skewed([0.04])
    rig.rate = rate
    taken = rig.loop().throughput(rig.step)
    assert taken.steps_per_sample == 3
    assert taken.device_steps_s == pytest.approx([0.04 * rate] * 3 * len(taken.samples_s))
    assert taken.device_samples_s == pytest.approx([0.12 * rate] * len(taken.samples_s))
    assert taken.samples_s == pytest.approx([0.12] * len(taken.samples_s))
    assert taken.clocks_disagree is disagree


def test_steps_are_announced_before_the_clock_starts() -> None:
    """Other ranks must know how many steps come next."""
    rig = Rig([0.1])
    loop = msgspec.structs.replace(
        rig.loop(), announce=lambda count: rig.events.append(f"announce {count}")
    )
    loop.throughput(rig.step)
    announced = sum(int(e.split()[1]) for e in rig.events if e.startswith("announce"))
    assert announced == rig.steps
    assert rig.events[:3] == ["announce 1", "synchronise", "clock"]


def test_warm_up_is_detected_kept_and_left_out() -> None:
    """A slow start stays in the samples, marked; the mean knows only the steady ones."""
    slow = [9.0, 0.5, 0.4, 0.3, 0.2]  # first step, calibration, three slow samples
    rig = Rig([*slow, 0.1])
    taken = rig.loop().throughput(rig.step)
    assert taken.first_step_s == pytest.approx(9.0)
    assert taken.samples_s[:3] == pytest.approx([0.4, 0.3, 0.2])
    assert taken.warmup_samples == 3
    found = taken.estimate(0.02)
    assert found.seconds_per_step == pytest.approx(0.1)
    assert found.interval is not None
    assert taken.settled


def test_the_memory_peak_is_reset_after_the_first_step() -> None:
    """Optimizer state exists only from step 2 on; set-up must not count."""
    rig = Rig([0.1])
    rig.loop().throughput(rig.step)
    assert rig.peak_reset_after == 1


def test_throughput_is_the_mean_stalls_included() -> None:
    """One step in four waits for a loader; the median step would say 0.1 s."""
    rig = Rig([0.4, 0.1, *[0.1, 0.1, 0.1, 0.7] * 200])
    taken = rig.loop().throughput(rig.step, cycle=4)
    assert taken.steps_per_sample == 4
    assert taken.estimate(0.02).seconds_per_step == pytest.approx(0.25)


def test_the_mean_counts_a_stalled_sample_too() -> None:
    """Nine samples of 1 s and one of 11 s are 2 s each; their median would say 1."""
    taken = Throughput(1.0, [1.0] * 9 + [11.0], 1, 0, [""] * 10, True, "max_seconds")
    assert taken.estimate(0.02).seconds_per_step == pytest.approx(2.0)


def test_a_speed_that_never_settles_says_so() -> None:
    """A drift is flagged, and the run still ends."""
    rig = Rig([0.1 * 1.2**n for n in range(40)])
    taken = rig.loop().throughput(rig.step)
    assert not taken.settled


def test_very_slow_steps_end_soon() -> None:
    """A step of thrice the budget: one sample, said to be unsettled, not eight of them."""
    rig = Rig([30.0])
    taken = rig.loop().throughput(rig.step)
    assert len(taken.samples_s) == 1
    assert not taken.settled
    assert taken.stop_reason == "max_seconds"
    assert taken.estimate(0.02).interval is None


def test_full_epochs_are_timed_without_what_comes_between() -> None:
    """Evaluation is outside; a sign of life is given within long epochs."""
    rig = Rig([0.5])
    told: list[Live] = []

    def epoch(pulse: Callable[[], None]) -> int:
        for _ in range(100):
            rig.step()
            rig.synchronize()
            pulse()
        return 100

    def test() -> None:
        rig.now += 1000.0

    loop = Loop(rig, BUDGET, told.append, rig.clock)
    taken, steps, marks = loop.epochs(epoch, test, 2)
    assert marks == ["", ""]
    assert taken == pytest.approx([50.0, 50.0])
    assert steps == 100
    assert len(told) >= 8


def test_every_request_is_kept_and_the_first_stands_apart() -> None:
    """Slow requests stay among the latency samples."""
    rig = Rig([3.0, 0.1, 0.1, 2.0, 0.1])
    requests = rig.loop().latency(rig.step)
    taken = requests.samples_s
    assert requests.first_s == pytest.approx(3.0)
    assert taken[:3] == pytest.approx([0.1, 0.1, 2.0])
    assert len(taken) <= BUDGET.latency_requests


def test_slow_requests_end_at_twice_their_time() -> None:
    """Eight requests are wanted, but never for longer than twice the budget."""
    rig = Rig([4.0])
    taken = rig.loop().latency(rig.step).samples_s
    assert len(taken) == 3  # 4, 8, 12 s: the third passes 10 s


def test_progress_is_told_between_samples_at_most_once_a_second() -> None:
    """Telling happens outside the timed part."""
    rig = Rig([0.1])
    told: list[float] = []

    def tell(_: Live) -> None:
        told.append(rig.now)
        rig.now += 5.0  # drawing takes long; no sample may contain it

    strict = msgspec.structs.replace(BUDGET, min_seconds=9.0)
    taken = Loop(rig, strict, tell, rig.clock).throughput(rig.step)
    assert told
    assert max(taken.samples_s) == pytest.approx(0.1)
    assert min(b - a for a, b in itertools.pairwise(told)) >= 1.0


@given(seconds=st.floats(1e-6, 100), cycle=st.integers(1, 16))
def test_a_sample_is_long_enough_and_whole_cycles(seconds: float, cycle: int) -> None:
    """Whatever a step takes."""
    steps = steps_per_sample(seconds, cycle)
    assert steps % cycle == 0
    assert steps * seconds >= LEAST_SAMPLE_S * 0.999


class Marks:
    """Says of every third window that it was disturbed, or of all of them."""

    def __init__(self, every: int) -> None:
        self.every, self.calls = every, 0

    def restart(self) -> None:
        self.calls += 1

    def sampled(self) -> None:
        """Nothing."""

    def since_last(self) -> str | None:
        self.calls += 1
        return "foreign" if self.calls % self.every == 0 else None


def test_disturbed_windows_stay_in_the_file_and_are_left_out() -> None:
    """Every third window takes twice as long; the throughput is that of the others."""
    rig = Rig([0.5])
    watch = Marks(3)

    def step() -> None:
        rig.events.append("step")
        rig.queue_s += 1.0 if (watch.calls + 1) % 3 == 0 else 0.5

    budget = msgspec.structs.replace(BUDGET, min_seconds=9.0)
    taken = Loop(rig, budget, clock=rig.clock, watch=watch).throughput(step)
    assert 1.0 in taken.samples_s
    assert taken.left_out == taken.marks.count("foreign") > 0
    assert taken.estimate(0.02).seconds_per_step == pytest.approx(0.5)
    # The steps that count are those of the samples that do: one each, after two single ones.
    assert taken.kept_steps == [2 + i for i, s in enumerate(taken.samples_s) if s == 0.5]


def test_more_than_half_disturbed_is_not_a_clean_number() -> None:
    """Nothing is left out then, and the run still ends."""
    rig = Rig([0.5])
    taken = Loop(rig, BUDGET, clock=rig.clock, watch=Marks(1)).throughput(rig.step)
    found = taken.estimate(0.02)
    assert found.seconds_per_step == pytest.approx(0.5)
    assert found.codes == ["contaminated"]
    assert found.interval is None
    assert sum(taken.samples_s) <= 2 * BUDGET.max_seconds + 1


def test_the_watch_looks_between_samples_only() -> None:
    """What it costs is in no sample."""
    rig = Rig([0.5])

    class Slow(Marks):
        def since_last(self) -> str | None:
            rig.now += 7.0
            return None

    taken = Loop(rig, BUDGET, clock=rig.clock, watch=Slow(1)).throughput(rig.step)
    assert max(taken.samples_s) == pytest.approx(0.5)
