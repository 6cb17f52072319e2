"""The statistics of nights: what is called worse, when, and how often by mistake."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.stats import changes, nights, noise
from bench.stats.nights import Judged, Options, Within

SIZE = float(np.log1p(0.03))


def history(count: int, series: int = 20, *, sigma: float = 0.015, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, sigma, (count, series))


def judged(values: np.ndarray, **more: object) -> Judged:
    """The last night of `values`, one process a night."""
    ones = np.ones_like(values)
    model = nights.learn(values[:-1], ones[:-1], size=SIZE, **more)  # type: ignore[arg-type]
    return nights.judge(model, values[-1], ones[-1], Options(tests=values.shape[1], size=SIZE))


def test_a_large_step_is_worse_on_its_first_night_and_nothing_else_is() -> None:
    values = history(31)
    values[-1, 3] += 0.10
    found = judged(values)
    assert np.flatnonzero(found.worse).tolist() == [3]
    assert not found.better.any()
    assert found.effect[3] == pytest.approx(0.10, abs=0.04)


def test_a_gain_is_better_and_not_worse() -> None:
    values = history(31)
    values[-1, 3] -= 0.10
    found = judged(values)
    assert np.flatnonzero(found.better).tolist() == [3]
    assert not found.worse.any()


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_short_history_judges_nothing(count: int) -> None:
    values = history(count + 1)
    values[-1] += 0.5
    found = judged(values)
    assert not found.judged.any()
    assert not found.worse.any()


def test_a_change_smaller_than_asked_is_not_told_however_sure() -> None:
    values = history(60, sigma=0.001)
    values[-5:, 3] += 0.02
    assert not judged(values).worse.any()


def test_a_slower_level_stays_worse_until_it_is_accepted() -> None:
    values = history(60)
    values[30:, 3] += 0.08
    assert judged(values).worse[3]
    accepted = np.full(20, -1)
    accepted[3] = 30
    assert not judged(values, accepted=accepted).worse.any()
    values[-1, 3] += 0.10  # a further change is measured from the accepted level
    assert judged(values, accepted=accepted).worse[3]


@pytest.mark.parametrize("ago", [1, 2, 4, 8, 15])
def test_a_slowdown_after_an_accepted_one_is_not_accepted_with_it(ago: int) -> None:
    values = history(60)
    values[20:, 3] += 0.08
    values[-ago:, 3] += 0.10
    accepted = np.full(20, -1)
    accepted[3] = 20
    found = judged(values, accepted=accepted)
    assert found.worse[3]
    assert found.effect[3] == pytest.approx(0.10, abs=0.03)


def test_an_odd_night_after_an_accepted_one_is_no_new_baseline() -> None:
    values = history(60)
    values[20:, 3] += 0.08
    values[-3, 3] += 0.20
    accepted = np.full(20, -1)
    accepted[3] = 20
    assert judged(values, accepted=accepted).baseline_nights[3] > 30


def test_small_steps_add_up() -> None:
    """Each is too small to be told and becomes the baseline; together they are not small."""
    values = history(80, sigma=0.003)
    for night in (20, 40, 60):
        values[night:, 3] += 0.02
    found = judged(values)
    assert np.flatnonzero(found.worse).tolist() == [3]
    assert found.nights[3] == 0  # against the anchor
    assert found.effect[3] == pytest.approx(0.06, abs=0.01)


def test_what_is_worse_is_told_by_the_window_that_says_so() -> None:
    """Slower than yesterday, faster than the anchor: two gains too small to move it."""
    values = history(80, sigma=0.003)
    values[20:, 3] -= 0.025
    values[40:, 3] -= 0.025
    values[-1, 3] += 0.04
    found = judged(values)
    assert found.worse[3]
    assert not found.better[3]
    assert found.effect[3] == pytest.approx(0.04, abs=0.01)


def test_a_baseline_that_is_chosen_is_not_that_of_later_levels() -> None:
    values = history(60, sigma=0.005)
    values[30:, 3] -= 0.10  # faster
    values[-1, 3] = 0.05  # slow against both
    values[30:, 4] += 0.10
    values[-1, 4] = 0.0  # slow against neither
    late, early = judged(values), judged(values, until=20)
    assert late.effect[3] == pytest.approx(0.15, abs=0.02)
    assert early.effect[3] == pytest.approx(0.05, abs=0.02)
    assert early.baseline_nights[3] == 21
    assert not early.worse[4]


def test_a_faster_level_becomes_the_baseline() -> None:
    values = history(60)
    values[20:, 3] -= 0.08
    assert not judged(values).worse.any()
    values[-1, 3] += 0.09  # back to the old level, which is no longer good enough
    assert judged(values).worse[3]


def test_a_creep_is_found_before_it_is_large() -> None:
    """Each night is within the noise of the one before."""
    values = history(60, sigma=0.01, seed=2)
    values[:, 3] += 0.003 * np.maximum(np.arange(60) - 42, 0)
    assert judged(values).worse[3]


def test_a_night_that_is_over_is_not_told_again() -> None:
    values = history(31, sigma=0.005)
    values[-2, 3] += 0.10
    assert not judged(values).worse.any()


def test_more_processes_make_a_night_surer_only_by_their_share() -> None:
    values = history(40)
    ones = np.ones_like(values)
    half = Within(squares=0.5 * 0.015**2 * 400, freedom=400)
    for within, surer in ((half, True), (nights.UNKNOWN, False)):
        model = nights.learn(values, ones, within, size=SIZE)
        errors = [
            nights.judge(model, values[-1] + 0.04, np.full(20, n), Options(tests=20)).error[0]
            for n in (1, 5)
        ]
        assert (errors[1] < 0.85 * errors[0]) == surer
    assert (model.process_share == 0).all()


def test_the_share_of_the_process_is_found() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(0, 0.010, (60, 100)) + rng.normal(0, 0.011, (60, 100))
    within = Within(squares=0.011**2 * 300, freedom=300)
    model = nights.learn(values, np.ones_like(values), within, size=SIZE)
    assert np.median(model.process_share) == pytest.approx(0.121 / 0.221, abs=0.05)


def test_nights_that_move_everything_are_one_accident() -> None:
    rng = np.random.default_rng(1)
    together = np.repeat(rng.normal(0, 0.015, (8, 1)), 50, axis=1)
    shared = nights.learn(together, np.ones((8, 50)), size=SIZE)
    apart = nights.learn(history(8, 50), np.ones((8, 50)), size=SIZE)
    assert shared.shared > 0.9
    assert apart.shared < 0.2
    options = Options(tests=50, size=SIZE)
    odd = np.full(50, 0.09)
    sure = [nights.judge(m, odd, np.ones(50), options).p.min() for m in (shared, apart)]
    assert sure[0] > 30 * sure[1]


def heavy(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(3, (count, 50)) * 0.015 / np.sqrt(3)


@pytest.mark.parametrize("count", [8, 40])
def test_heavy_tails_ask_for_more(count: int) -> None:
    """Few nights show them too: an odd one hides only in a spread it is part of."""
    assert nights.learn(heavy(count), np.ones((count, 50)), size=SIZE).tail < 5
    assert nights.learn(history(count, 50), np.ones((count, 50)), size=SIZE).tail == np.inf


def test_a_metric_that_never_differs_is_judged_all_the_same() -> None:
    """Bytes are the same every night; then one series needs a tenth more, or was odd before."""
    for odd in (0.0, 0.05):
        values = np.zeros((43, 50))
        values[::7, :10] += odd
        values[-3:] = 0.0
        values[-3:, 30] = 0.10
        found = judged(values)
        assert np.flatnonzero(found.worse).tolist() == [30]
        assert np.isfinite(found.p).all()


def test_where_tails_are_heavy_one_odd_night_is_nothing_and_three_are_something() -> None:
    values = heavy(43)
    values[-3:] = 0.0
    values[-1, 3] = 0.12
    assert not judged(values).worse.any()
    values[-3:, 3] = 0.12
    found = judged(values)
    assert np.flatnonzero(found.worse).tolist() == [3]
    assert (found.nights[3], found.effect[3]) == (3, pytest.approx(0.12, abs=0.01))
    even = history(43, 50)
    even[-1, 3] += 0.12
    assert judged(even).worse[3]


def test_a_series_that_is_noisier_than_others_is_judged_by_its_own_spread() -> None:
    """A third with two states: their usual nights are no change, whatever the others' spread."""
    rng = np.random.default_rng(1)
    values = history(40, 60)
    values[:, :20] += 0.05 * (rng.random((40, 20)) < 0.2)
    model = nights.learn(values, np.ones((40, 60)), size=SIZE)
    own = values[:, :20].std(axis=0, ddof=1)
    assert (model.sigma[:20] >= 0.999 * own).all()
    # More processes tell less of them than of the others.
    half = Within(squares=0.5 * 0.015**2 * 400, freedom=400)
    more = nights.learn(values, np.ones((40, 60)), half, size=SIZE)
    assert more.process_share[:20].max() < more.process_share[20:].min()


def test_series_share_their_spread() -> None:
    """One series with a spread that is small by luck is not believed."""
    values = history(8, 50)
    values[:, 3] *= 0.02
    values[-1, 3] = 0.035
    assert not judged(values).worse.any()


def test_the_prior_of_variances_is_recovered() -> None:
    rng = np.random.default_rng(0)
    true = 4.0 * 10 / rng.chisquare(10, 5000)  # prior: 10 degrees of freedom, 4.0
    freedom = np.full(5000, 6)
    freedom_found, variance = noise.squeeze(true * rng.chisquare(6, 5000) / 6, freedom)
    assert freedom_found == pytest.approx(10, rel=0.2)
    assert variance == pytest.approx(4.0, rel=0.1)
    same, _ = noise.squeeze(4.0 * rng.chisquare(6, 5000) / 6, freedom)
    assert same > 100


def test_unknown_nights_are_no_numbers() -> None:
    values = history(31)
    values[5:9, 3] = np.nan
    values[:, 4] = np.nan
    values[-1, 5] = np.nan
    values[-1, 3] += 0.1
    found = judged(values)
    assert found.worse[3]
    assert not found.judged[[4, 5]].any()


def test_a_history_in_which_nothing_changed_is_quiet() -> None:
    """The promise is at most 1 % of nights; 400 nights may have 4, and 10 would be a defect."""
    reds = sum(
        bool(judged(history(12 + seed % 40, 100, seed=seed)).worse.any()) for seed in range(400)
    )
    assert reds <= 9


def test_a_change_point_is_where_the_level_changed() -> None:
    values = history(60, 1, sigma=0.01)[:, 0]
    values[25:] += 0.06
    assert changes.changes(values, 0.01) == [25]
    assert changes.changes(values[:25], 0.01) == []


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 2.0, 3.5, 6.0]),
    st.sampled_from([0.0, 0.1]),
)
def test_a_steady_series_has_no_change(nights: int, seed: int, step: float, gone: float) -> None:
    """The quick look at all series says only what the exact search would."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 1, (nights, 20)) + step * (
        np.arange(nights)[:, None] >= rng.integers(0, nights, 20)
    )
    values[rng.random(values.shape) < gone] = np.nan
    steady = changes.steady(values, np.ones(20))
    for s in np.flatnonzero(steady):
        assert changes.changes(values[np.isfinite(values[:, s]), s], 1.0) == []


def test_most_quiet_series_need_no_search() -> None:
    assert changes.steady(history(365, 500, sigma=0.01), np.full(500, 0.01)).mean() > 0.8


def test_the_noise_is_that_within_levels() -> None:
    values = history(60, 30, sigma=0.01)
    values[25:] += 0.3
    assert changes.noise(values) == pytest.approx(np.full(30, 0.01), rel=0.35)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 12),
    st.integers(1, 6),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.001, 0.02, 0.5]),
)
def test_anything_finite_or_missing_is_judged_without_complaint(
    count: int, series: int, seed: int, sigma: float
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(0, sigma, (count + 1, series))
    values[rng.random(values.shape) < 0.3] = np.nan
    found = judged(values)
    assert not (found.worse & found.better).any()
    assert not (found.worse & ~found.judged).any()
    assert ((found.p >= 0) & (found.p <= 1)).all()
