"""The statistics: intervals that cover, steadiness, stopping. Properties, not examples."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from bench.schema import BUDGETS
from bench.stats.ratios import RatioInterval, judge, ratio_interval
from bench.stats.series import SURE, drifts, interval, percentile, steady, two_state
from bench.stats.spread import spread
from bench.stats.stopping import enough, looks

samples = st.lists(st.floats(0.5, 2.0), min_size=8, max_size=200)


def test_under_eight_samples_there_is_no_interval() -> None:
    """Null, not a guess."""
    assert interval([1.0] * 7) is None
    assert interval([1.0] * 8) is not None


@given(samples)
def test_the_interval_holds_its_mean(values: list[float]) -> None:
    """And is in order."""
    found = interval(values)
    assert found is not None
    assert found.low <= found.mean <= found.high
    assert found.mean == pytest.approx(np.mean(values))


@given(samples, st.floats(0.1, 10))
def test_the_interval_scales_with_the_unit(values: list[float], factor: float) -> None:
    """Seconds or milliseconds: the same relative width."""
    found, scaled = interval(values), interval([v * factor for v in values])
    assert found is not None
    assert scaled is not None
    assert scaled.relative_half_width == pytest.approx(found.relative_half_width, abs=1e-9)


@pytest.mark.parametrize("count", [10, 20, 100, 400])
def test_the_interval_covers_the_true_mean(count: int) -> None:
    """95 % of the intervals of 2,000 normal series hold the mean: between 93 and 98 %."""
    random = np.random.default_rng(5)
    hits = 0
    for _ in range(2000):
        found = interval(list(random.normal(1.0, 0.05, count)))
        assert found is not None
        hits += found.low <= 1.0 <= found.high
    assert 0.93 <= hits / 2000 <= 0.98


def test_steady_means_that_two_windows_agree() -> None:
    """A level shift is not steady, noise around a level is."""
    assert steady([1.0, 1.01, 0.99, 1.0, 1.005, 0.995])
    assert not steady([2.0, 2.0, 2.0, 1.0, 1.0, 1.0])
    assert not steady([0.3, 0.2, 0.1, 0.12, 0.1, 0.1])  # still coming down
    assert not steady([1.0, 1.0, 1.0, 1.0, 1.0])  # too few
    assert steady([1.0, 1.5, 0.6, 1.4, 0.7, 1.1])  # wide, but around one level


def test_looks_are_geometric() -> None:
    """Not after every sample."""
    assert looks(60, 8) == [8, 10, 13, 17, 22, 28, 35, 44, 55]


BUDGET = msgspec.structs.replace(BUDGETS["quick"], min_seconds=1.0, max_seconds=100.0)


def test_stops_when_the_target_is_reached_twice_in_a_row() -> None:
    """One narrow look is not enough."""
    narrow, wide = [1.0, 1.001] * 4, [1.0, 2.0] * 4
    assert enough(narrow, BUDGET) is None  # the first look has no look before it
    assert enough([*narrow, 1.0, 1.001], BUDGET) == "target_reached"
    assert enough([*wide, *narrow[:2]], BUDGET) is None


def test_stops_when_time_is_up_but_tries_for_eight_samples() -> None:
    """Slow steps get up to twice the time."""
    assert enough([30.0] * 4, BUDGET) is None
    assert enough([30.0] * 7, BUDGET) == "max_seconds"
    assert enough([13.0, 20.0] * 4, BUDGET) == "max_seconds"


def test_stops_at_the_most_samples() -> None:
    """Whatever the interval says."""
    few = msgspec.structs.replace(BUDGET, max_samples=10)
    assert enough([1.0, 2.0] * 5, few) == "max_samples"


def test_percentiles_are_numpys() -> None:
    """Type 7."""
    assert percentile([1, 2, 3, 4], 0.5) == pytest.approx(2.5)


rates = st.floats(0.1, 1e4)
paired = st.lists(st.tuples(rates, rates), min_size=3, max_size=30)


def test_under_three_pairs_there_is_no_interval_of_a_ratio() -> None:
    """Two processes a side say nothing about their spread."""
    assert ratio_interval([1.0, 1.0], [2.0, 2.0]) is None
    assert ratio_interval([1.0] * 3, [2.0] * 3) == RatioInterval(2.0, 2.0, 2.0)


def test_the_interval_of_a_ratio_is_the_paired_t_interval_of_the_logarithms() -> None:
    """Against scipy's own paired test."""
    before, after = [100.0, 104.0, 97.0, 99.0], [111.0, 113.0, 109.0, 106.0]
    test = ttest_rel(np.log(after), np.log(before)).confidence_interval(0.99)
    found = ratio_interval(before, after)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((np.exp(test.low), np.exp(test.high)))


@given(paired, st.floats(0.01, 100))
def test_the_ratio_holds_its_mean_and_ignores_the_unit(
    pairs: list[tuple[float, float]], factor: float
) -> None:
    """Both sides in another unit: the same interval."""
    before, after = map(list, zip(*pairs, strict=True))
    found = ratio_interval(before, after)
    scaled = ratio_interval([factor * x for x in before], [factor * x for x in after])
    assert found is not None
    assert scaled is not None
    assert found.low <= found.ratio <= found.high
    mean = np.exp(np.mean(np.log(after) - np.log(before)))
    assert found.ratio == pytest.approx(mean)
    assert np.log([scaled.low, scaled.ratio, scaled.high]) == pytest.approx(
        np.log([found.low, found.ratio, found.high]), abs=1e-6
    )


@given(paired)
def test_swapping_the_sides_inverts_the_ratio(pairs: list[tuple[float, float]]) -> None:
    """Interval and all."""
    before, after = map(list, zip(*pairs, strict=True))
    found, swapped = ratio_interval(before, after), ratio_interval(after, before)
    assert found is not None
    assert swapped is not None
    assert swapped.ratio == pytest.approx(1 / found.ratio)
    assert np.log([swapped.low, swapped.high]) == pytest.approx(
        -np.log([found.high, found.low]), abs=1e-6
    )


@pytest.mark.parametrize(
    ("ratio", "low", "high", "expected"),
    [
        (1.021, 1.001, 1.05, "higher"),
        (1.02, 1.015, 1.03, "inconclusive"),  # not more than 2 %
        (1.021, 1.0, 1.05, "inconclusive"),  # does not exclude 1
        (0.979, 0.95, 0.999, "lower"),
        (0.98, 0.97, 0.985, "inconclusive"),
        (0.979, 0.95, 1.0, "inconclusive"),
        (1.0, 0.98, 1.02, "same"),
        (1.01, 1.005, 1.015, "same"),  # a change, but one that does not matter
        (1.0, 0.9799, 1.02, "inconclusive"),
        (1.0, 0.98, 1.0201, "inconclusive"),
    ],
)
def test_the_verdict_needs_evidence_and_size(
    ratio: float, low: float, high: float, expected: str
) -> None:
    """At its boundaries, with changes of up to 2 % not mattering."""
    assert judge(RatioInterval(ratio, low, high), 0.02) == expected


def test_the_spread_between_processes_and_within() -> None:
    """Three processes of 98, 100 and 102: standard deviation 2 %, t(2) = 4.303."""
    found = spread([98.0, 100.0, 102.0], [0.01, None, 0.03])
    assert (found.processes, found.mean, found.within) == (3, 100.0, 0.02)
    assert found.between == pytest.approx(0.02)
    assert found.half_width == pytest.approx(4.303 * 0.02 / 3**0.5, rel=1e-3)


def test_two_processes_have_a_spread_but_no_interval() -> None:
    """And one has neither."""
    assert spread([99.0, 101.0], []).half_width is None
    assert spread([99.0, 101.0], []).between is not None
    assert spread([99.0], []).between is None


@given(st.integers(0, 99))
def test_correlated_samples_get_a_wider_interval(seed: int) -> None:
    """Twice as many copies of each sample know no more than the samples themselves."""
    random = np.random.default_rng(seed)
    values = 1 + 0.02 * random.normal(size=60)
    doubled = list(np.repeat(values, 2))
    shuffled = list(random.permutation(doubled))
    wide, narrow = interval(doubled), interval(shuffled)
    assert wide is not None
    assert narrow is not None
    assert wide.relative_half_width > narrow.relative_half_width


def test_drift_and_two_states_are_seen_and_noise_is_not() -> None:
    """10 % from end to end, and two speeds 10 % apart; 2 % of noise is neither."""
    random = np.random.default_rng(3)
    noise = 0.005 * random.normal(size=60)
    assert drifts(list(1 + 0.1 * np.linspace(0, 1, 60) + noise), 0.02, SURE)
    assert not drifts(list(1 + 4 * noise), 0.02, SURE)
    states = 1 + 0.1 * (np.arange(60) % 20 < 8)
    assert two_state(list(states + noise), 0.02)
    assert not two_state(list(1 + 4 * noise), 0.02)
    spiked = 1 + 0.5 * (np.arange(60) % 20 == 3)  # 5 % of the samples: spikes, not a state
    assert not two_state(list(spiked + noise), 0.02)


def test_a_drift_is_not_stopped_at() -> None:
    """A narrow interval on a slope is not the end."""
    slope = [1 + 0.0015 * n + 0.0005 * (n % 2) for n in range(13)]
    flat = [1 + 0.0005 * (n % 2) for n in range(13)]
    assert enough(flat, BUDGET) == "target_reached"
    assert enough(slope, BUDGET) is None
