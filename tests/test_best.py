"""`bench best`: what it refuses to search for, and what it says of what it found."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench import best
from bench.errors import WrongUse
from bench.fidelity import inputs
from bench.halving import FINAL, SCREEN, Halving, Limits
from bench.schema import Case, Record
from tests.conftest import Bench
from tests.records import record

EAGER = Case(batch_size=8)
COMPILED = Case(batch_size=8, engine="compile")
QUICK = Case(batch_size=8, engine="openvino", precision="int8")


def finals(case: Case, rates: Sequence[float], **more: Any) -> list[Record]:
    """Rounds of a finalist, in processes of these images/s."""
    made = enumerate(rates, start=1)
    return [record(case, rate, purpose=FINAL, round=n, number=n, **more) for n, rate in made]


def told(records: list[Record], limits: Limits | None = None) -> str:
    limits = limits or Limits()
    cases = list(dict.fromkeys(r.case for r in records))
    return "\n".join(best.told(records, limits, Halving(cases, [], limits, 200.0, 100.0)))


def ways(*finalists: list[Record]) -> list[best.Way]:
    return best._ways([r for rounds in finalists for r in rounds], Limits())


@pytest.mark.parametrize("percentile", ["9.9", "5.0", "999", "p99"])
def test_a_percentile_is_taken_for_no_other(percentile: str) -> None:
    with pytest.raises(WrongUse, match=r"choose one of 50, 90, 95, 99, 99\.9"):
        best.limits(
            {}, latency_ms=50.0, percentile=percentile, memory_mib=None, agreement=None, minutes=4.0
        )


def test_a_search_for_memory_is_not_one_for_speed(bench: Bench) -> None:
    """It would have no limit in time."""
    done = bench("best", "--batch-size", "auto,8")
    assert done.code == 2
    assert "bench run --batch-size auto" in done.err


def test_three_processes_a_side_tell_ways_apart() -> None:
    """The intervals between processes decide, and the gain has one."""
    said = told(
        [
            *finals(QUICK, (99.0, 100.0, 101.0)),
            *finals(COMPILED, (97.0, 99.0, 98.0)),
            *finals(EAGER, (49.0, 50.0, 51.0)),
        ]
    )
    assert f"The fastest here: {QUICK.case_id}: 100 images/s ± 2.5 % (3 processes)." in said
    assert f"  As good, within the intervals: {COMPILED.case_id}: 98.0 images/s" in said
    assert f"  Next: {EAGER.case_id}: 50.0 images/s" in said
    assert "  2.00 ± 0.11 × eager fp32" in said
    assert "  1.02 ± 0.04 × the best fp32" in said
    assert "cannot be told apart" not in said.lower()


@pytest.mark.parametrize("processes", [1, 2])
def test_without_an_interval_between_processes_nothing_is_as_good(processes: int) -> None:
    """Not even where each process has an interval of its own; far slower is slower."""
    said = told(
        [
            *finals(QUICK, (100.0,) * processes),
            *finals(COMPILED, (99.0,) * processes),
            *finals(EAGER, (50.0,) * processes),
        ]
    )
    assert "As good" not in said
    assert "Next" not in said
    assert f"  Cannot be told apart (no interval): {COMPILED.case_id}: 99.0 images/s" in said
    assert f"  Slower by far (no interval): {EAGER.case_id}: 50.0 images/s" in said
    assert "  2.00 ± ? × eager fp32" in said
    assert "more --max-minutes" in said


def test_one_side_without_an_interval_is_enough() -> None:
    sure, unsure = ways(finals(QUICK, (99.0, 100.0, 101.0)), finals(COMPILED, (99.0, 100.0)))
    assert best._as_good(sure, sure) is True
    assert best._as_good(sure, unsure) is None
    assert best._as_good(unsure, sure) is None


def test_a_gain_over_what_was_not_measured_is_none() -> None:
    """And a winner in eager fp32 is that itself."""
    (alone,) = ways(finals(QUICK, (100.0,)))
    assert best._gains(alone, [alone]) == [
        "  Against eager fp32: it was not measured.",
        "  Against the best fp32: it was not measured.",
    ]
    (plain,) = ways(finals(EAGER, (100.0,)))
    assert best._gains(plain, [plain]) == [
        "  It is eager fp32 itself.",
        "  It is the best fp32 itself.",
    ]


def test_the_best_fp32_need_not_be_eager() -> None:
    found = ways(finals(QUICK, (90.0,)), finals(COMPILED, (60.0,)), finals(EAGER, (30.0,)))
    eager, plain = best._gains(found[0], found)
    assert "3.00 ± ? × eager fp32" in eager
    assert f"1.50 ± ? × the best fp32 ({COMPILED.case_id}, 60.0 images/s)" in plain


def test_what_a_choice_was_worth_is_against_the_best_without_it() -> None:
    """Of the short tries; an axis on which nothing else was tried is not named."""
    (won,) = ways(finals(QUICK, (100.0,)))
    slower = Case(batch_size=1, engine="openvino", precision="int8")
    plain = Case(batch_size=8, engine="openvino")
    rates = {QUICK: 90.0, slower: 60.0, plain: 45.0, EAGER: 30.0}
    screened = [record(case, rate, purpose=SCREEN) for case, rate in rates.items()]
    (said,) = best._worth(won, screened)
    assert "engine openvino 3.00 × (then eager)" in said
    assert "precision int8 2.00 × (then fp32)" in said
    assert "batch size 8 1.50 × (then 1)" in said
    assert "threads" not in said
    assert best._worth(won, [record(EAGER, 30.0, purpose=SCREEN)]) == []


def test_what_breaks_a_limit_is_left_out_with_the_reason() -> None:
    """One round that breaks it is enough; a way that was late at p50 was late at p99."""
    late = {"latency_p50_ms": 80.0, "latency_p99_ms": None}
    quick = {"latency_p50_ms": 20.0, "latency_p99_ms": 30.0}
    said = told(
        [
            *finals(QUICK, (100.0,), measurement=quick),
            *finals(COMPILED, (120.0,), measurement=late),
        ],
        Limits(latency_ms=50.0),
    )
    assert f"The fastest here: {QUICK.case_id}" in said
    assert f"Left out: {COMPILED.case_id}: p50 80.0 ms." in said


def test_a_way_is_left_out_for_the_first_reason_it_gave() -> None:
    """fp32 that is too late is measured again for the gain, without requests enough for p99."""
    short = record(EAGER, 30.0, purpose=SCREEN, measurement={"latency_p50_ms": 80.0})
    quick = {"latency_p50_ms": 20.0, "latency_p99_ms": 30.0}
    said = told(
        [short, *finals(QUICK, (100.0,), measurement=quick), *finals(EAGER, (30.0,))],
        Limits(latency_ms=50.0),
    )
    assert f"Left out: {EAGER.case_id}: p50 80.0 ms." in said
    assert said.count("Left out") == 1
    assert "3.33 ± ? × eager fp32" in said


def test_unknown_agreement_names_the_flags_that_would_show_it() -> None:
    note = {"top1_agreement_note": "not enough time was left to compare; see --timeout"}
    said = told(finals(QUICK, (100.0,), measurement=note), Limits(agreement=0.99))
    assert said.startswith("Nothing that was tried keeps these limits.")
    assert "not enough time was left to compare (--fidelity-images" in said
    assert "--max-minutes" in said
    assert "--timeout" not in said


def limits(axes: dict[str, list[Any]], **more: Any) -> Limits:
    asked = {"latency_ms": None, "percentile": "99", "memory_mib": None, "agreement": None}
    return best.limits(axes, **{**asked, "minutes": 4.0, **more})


def test_a_training_step_has_no_requests_and_no_answers() -> None:
    for flag, more in (
        ("--max-latency-ms", {"latency_ms": 50.0}),
        ("--min-agreement", {"agreement": 0.99}),
    ):
        with pytest.raises(WrongUse, match=flag):
            limits({"task": ["train"], "weights": ["default"], "data": ["cifar10"]}, **more)
    assert limits({"task": ["train"]}, memory_mib=100.0).memory_bytes == 100 * 2**20


def test_one_work_is_searched_for() -> None:
    """Images a second of two tasks or two models are no choice."""
    for axis, values in (("task", ["infer", "train"]), ("model", ["resnet18", "resnet50"])):
        with pytest.raises(WrongUse, match=f"--{axis}.*one at a time"):
            limits({axis: values})


def test_agreement_needs_weights_and_images() -> None:
    """Noise is answered with few classes whatever was learnt."""
    with pytest.raises(WrongUse, match="--weights"):
        limits({}, agreement=0.99)
    for data in ({}, {"data": ["synthetic"]}):
        with pytest.raises(WrongUse, match=r"--data.*--fidelity-images"):
            limits({"weights": ["default"], **data}, agreement=0.99)
    real = {"weights": ["default"], "data": ["folder:photos"]}
    assert limits(real, agreement=0.99).agreement == 0.99


def test_enough_inputs_to_see_half_of_the_classes() -> None:
    """256 can never show 500 of ImageNet's classes."""
    assert inputs(10, None, 10_000) == (256, None)
    assert inputs(1000, None, 50_000) == (2000, None)
    assert inputs(1000, 500, 50_000) == (500, None)
    few, why = inputs(1000, 256, 50_000)
    assert few == 256
    assert why is not None
    assert "256 inputs show at most 256 of the model's 1,000 classes" in why
    assert "--fidelity-images 2000" in why
    scarce, why = inputs(1000, None, 300)
    assert scarce == 300
    assert why is not None
    assert "--data" in why


def test_requests_that_cannot_fit_the_time_are_refused_with_the_time_they_need() -> None:
    assert limits({}, latency_ms=50.0).percentile == "p99"  # 400 × 50 ms
    with pytest.raises(WrongUse, match=r"4,000 requests.*--max-minutes") as refused:
        limits({}, latency_ms=50.0, percentile="99.9")
    enough = re.search(r"Allow --max-minutes (\d+)", str(refused.value))
    assert enough
    assert limits({}, latency_ms=50.0, percentile="99.9", minutes=float(enough[1]))


def test_too_few_images_are_refused_before_anything_is_measured(
    bench: Bench, images: Path, tmp_path: Path
) -> None:
    """The data's own images count: twelve of them show twelve classes of a thousand."""
    (tmp_path / "learnt.pt").write_bytes(b"")
    done = bench(
        "best", "--model", "resnet18", "--image-size", "32", "--device", "cpu",
        "--engine", "eager", "--precision", "fp32", "--batch-size", "1", "--classes", "1000",
        "--weights", "learnt.pt", "--data", f"folder:{images}", "--min-agreement", "99%",
    )  # fmt: skip
    assert done.code == 2, done.err
    assert "--min-agreement: 12 inputs show at most 12 of the model's 1,000 classes" in done.err
    assert not list(tmp_path.rglob("*.parquet"))
