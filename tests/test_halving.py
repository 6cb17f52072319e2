"""The search for the fastest way, against a machine whose speeds are known."""

from __future__ import annotations

import itertools

import pytest

from bench import sentinel
from bench.halving import FEWEST, FINAL, FRESH_S, ROUNDS, SCREEN, Halving, Limits
from bench.schedules import Several
from bench.schema import Case, Key, Trial, Tried

ENGINES = {"eager": 10.0, "compile": 15.0, "onnxruntime": 18.0, "openvino": 17.0}
CASES = [
    Case(engine=engine, precision=precision, batch_size=size)
    for engine, precision, size in itertools.product(ENGINES, ("fp32", "int8"), (1, 8, 32))
]


def rate(case: Case) -> float:
    """OpenVINO's INT8 with 32 images is the fastest; half of the threads halve everything."""
    found = ENGINES[case.engine] * (1 + 0.1 * (case.batch_size == 32))
    if case.precision == "int8":
        found *= 2.2 if case.engine == "openvino" else 1.8
    return found / (2 if case.threads == 1 else 1)


def tried(case: Case, seconds: float = 5.0, **more: object) -> Tried:
    milliseconds = 1000 * case.batch_size / rate(case)
    short = 8 * milliseconds > 2000  # then the short try has too few requests
    values: dict[str, object] = {
        "status": "measured",
        "batch_size": case.batch_size,
        "seconds": seconds,
        "images_per_s": rate(case),
        "latency_ms": dict.fromkeys(("p50", "p90", "p95", "p99"), None if short else milliseconds),
        "memory_bytes": 2**20 * 100 * case.batch_size,
        "top1_agreement": 0.99 if case.engine == "openvino" else 0.97,
    }
    return Tried(**(values | more))  # type: ignore[arg-type]


def searched(search: Halving, seconds: float = 5.0) -> list[Trial]:
    """All tries of a search, each of which takes so long."""
    done: dict[Key, Tried] = {}
    trials: list[Trial] = []
    schedule = Several([search], guarded=False)
    while (trial := schedule.next(done)) is not None:
        assert trial.key not in done
        trials.append(trial)
        done[trial.key] = tried(trial.case, 0 if trial.case == sentinel.CASE else seconds)
        assert len(trials) < 200
    assert schedule.length(done) >= len({t.key for t in trials})
    return trials


def search(seconds: float = 1000.0, **limits: object) -> Halving:
    return Halving(CASES, [1], Limits(**limits), seconds, 100.0)  # type: ignore[arg-type]


def test_the_fastest_is_found_with_fewer_tries_than_the_grid() -> None:
    trials = searched(search())
    finals = [t for t in trials if t.purpose == FINAL]
    best = max(finals, key=lambda t: rate(t.case)).case
    assert (best.engine, best.precision, best.batch_size) == ("openvino", "int8", 32)
    screened = {t.case for t in trials if t.purpose == SCREEN}
    assert len(screened) < len(CASES)  # batch sizes × threads would be twice the cases
    slow = {
        c for c in screened if (c.engine, c.precision) in (("compile", "fp32"), ("eager", "int8"))
    }
    assert {c.batch_size for c in slow} == {8}


def test_the_gain_is_over_fp32_that_was_searched_as_well() -> None:
    """A winner tuned on every axis against an untuned baseline would be no gain."""
    finals = {t.case for t in searched(search()) if t.purpose == FINAL}
    plain = {(c.engine, c.batch_size) for c in finals if c.precision == "fp32"}
    assert plain == {("eager", 32), ("onnxruntime", 32)}


def test_finals_are_rounds_in_fresh_interpreters_interleaved_with_fp32() -> None:
    finals = [t for t in searched(search()) if t.purpose == FINAL]
    assert all(t.fresh for t in finals)
    names = [t.case.case_id for t in finals]
    count = len(set(names))
    assert names == names[:count] * ROUNDS
    kinds = {(t.case.engine, t.case.precision) for t in finals}
    assert ("eager", "fp32") in kinds
    assert ("onnxruntime", "fp32") in kinds  # the fastest fp32


def test_without_time_there_still_is_a_choice() -> None:
    trials = searched(search(seconds=1.0))
    assert sum(t.purpose == SCREEN for t in trials) == 3
    assert {t.round for t in trials if t.purpose == FINAL} == {1}


def test_the_baseline_comes_first_and_slow_builds_last() -> None:
    engines = [t.case for t in searched(search())][:8]
    assert (engines[0].engine, engines[0].precision) == ("eager", "fp32")
    assert [c.engine for c in engines[-2:]] == ["compile", "compile"]


def test_time_ends_rungs_but_never_the_first_round_of_the_finals() -> None:
    """240 seconds of tries of 20 seconds: engines until half of it, then what is left."""
    trials = searched(search(seconds=240), seconds=20)
    screens = [t for t in trials if t.purpose == SCREEN]
    finals = [t for t in trials if t.purpose == FINAL]
    assert screens
    assert 20 * len(trials) <= 240 + 20
    assert {t.round for t in finals} == {1}
    assert len(finals) == len({t.case for t in finals}) >= 2


@pytest.mark.parametrize(
    ("limits", "precision"),
    [({"agreement": 0.98}, "int8"), ({"agreement": 0.995}, "fp32")],
)
def test_a_floor_on_agreement_leaves_out_what_answers_otherwise(
    limits: dict[str, float], precision: str
) -> None:
    asked = search(**limits)
    finals = [t.case for t in searched(asked) if t.purpose == FINAL]
    kept = [c for c in finals if asked.limits.broken(c, tried(c), short=False) is None]
    best = max(kept, key=rate)
    assert best.precision == precision
    assert best.precision == "fp32" or best.engine == "openvino"


def test_a_latency_limit_begins_with_single_images() -> None:
    asked = search(latency_ms=70.0, percentile="p99")
    trials = searched(asked)
    assert trials[0].case.batch_size == 1
    kept = [
        t.case
        for t in trials
        if t.purpose == FINAL and asked.limits.broken(t.case, tried(t.case), short=False) is None
    ]
    assert {c.batch_size for c in kept} == {1}
    assert len(set(kept)) == 3


def test_a_large_batch_is_late_even_if_its_short_try_had_no_time_for_percentiles() -> None:
    """The most images a second must not push out what answers in time."""
    slow = Case(engine="openvino", precision="int8", batch_size=32)
    asked = Limits(latency_ms=100.0)
    assert tried(slow).latency_ms["p50"] is None or rate(slow) > 128
    unknown = tried(slow, latency_ms={})
    assert asked.broken(slow, unknown, short=True) is not None


def test_limits_want_numbers() -> None:
    """A percentile that was not measured, memory or agreement that are not known: not kept."""
    case = Case(precision="int8")
    unknown = tried(case, latency_ms={}, memory_bytes=None, top1_agreement=None)
    assert "too few requests" in (Limits(latency_ms=1e9).broken(case, unknown, short=False) or "")
    assert "not known" in (Limits(memory_bytes=1e12).broken(case, unknown, short=False) or "")
    assert "not known" in (Limits(agreement=0.1).broken(case, unknown, short=False) or "")
    assert Limits().broken(case, Tried(status="oom", batch_size=1), short=False) == "oom"


def test_nothing_that_works_ends_the_search() -> None:
    done: dict[Key, Tried] = {}
    asked = search()
    while (trial := asked.next(done)) is not None:
        done[trial.key] = Tried(status="failed", batch_size=1, seconds=1.0)
    assert {key[2] for key in done} == {SCREEN}


def timed(asked: Halving) -> list[tuple[Trial, float]]:
    """All tries of a search and their seconds, requests and fresh interpreters included."""
    done: dict[Key, Tried] = {}
    trials: list[tuple[Trial, float]] = []
    while (trial := asked.next(done)) is not None:
        assert trial.budget is not None
        request_s = trial.case.batch_size / rate(trial.case)
        fits = min(trial.budget.latency_requests, trial.budget.latency_seconds / request_s)
        seconds = 4.0 + fits * request_s + FRESH_S * trial.fresh
        done[trial.key] = tried(trial.case, seconds)
        trials.append((trial, seconds))
        assert len(trials) < 200
    return trials


@pytest.mark.parametrize("percentile", ["p90", "p99"])
@pytest.mark.parametrize("latency_ms", [50.0, 70.0, 150.0, 280.0])
def test_requests_of_the_last_rung_are_paid_for_out_of_the_time(
    latency_ms: float, percentile: str
) -> None:
    """Hundreds of requests of each finalist; none of what is late anyway."""
    trials = timed(search(seconds=225.0, latency_ms=latency_ms, percentile=percentile))
    assert sum(seconds for _, seconds in trials) <= 225
    finals = [t for t, _ in trials if t.purpose == FINAL]
    late = {t.case for t in finals if 1000 * t.case.batch_size / rate(t.case) > latency_ms}
    assert late, "a gain is stated over fp32, late or not"
    proved = {t.case for t in finals if t.budget and t.budget.latency_seconds > 1}
    assert proved
    assert not proved & late


def test_time_for_these_requests_is_set_aside_before_more_is_tried() -> None:
    """Three ways of 27 to 37 ms can be proved in 160 s if the short tries leave 45 s for it."""
    trials = timed(search(seconds=160.0, latency_ms=50.0))
    assert sum(seconds for _, seconds in trials) <= 160
    proved = {t.case for t, _ in trials if t.budget and t.budget.latency_seconds > 1}
    assert len(proved) == 3


def test_the_finalists_are_the_same_in_every_round() -> None:
    """A round's own seconds must not change who is in it."""
    finals = [t for t, _ in timed(search(seconds=400.0, latency_ms=150.0)) if t.purpose == FINAL]
    rounds = [{t.case for t in finals if t.round == n} for n in {t.round for t in finals}]
    assert len(rounds) > 1
    assert all(cases == rounds[0] for cases in rounds)


def test_what_is_late_at_the_median_needs_no_more_requests() -> None:
    case = Case()
    few = tried(case, latency_ms={"p50": 80.0, "p99": None})
    assert Limits(latency_ms=50.0).broken(case, few, short=False) == "p50 80.0 ms"
    assert Limits(latency_ms=90.0).broken(case, few, short=False) == "too few requests for p99"
    slow = tried(case, latency_ms={"p50": 20.0, "p99": 80.0})
    assert Limits(latency_ms=50.0, percentile="p90").broken(case, slow, short=True) is None


def test_percentiles_are_stated_from_as_many_requests_as_are_asked_for() -> None:
    """Two tables, because one of them is in the room that imports torch."""
    from bench.observe import PERCENTILES

    assert {name: least for name, (_, least) in PERCENTILES.items()} == FEWEST
