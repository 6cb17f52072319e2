"""Suspects measured again: in which order, within which time, and what comes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench import store
from bench.confirming import Confirm
from bench.schema import Case, Key, Record, Tried
from tests.made_nights import CASES, START, make, run_id, slower
from tests.records import record
from tests.test_regress import LAST, bench  # noqa: F401 - a fixture

ORDER = [Case(batch_size=n) for n in range(1, 7)]
CONTROL = Case(batch_size=100)


def measured(
    seconds: float, decided_after: int = 2, *, each_s: float = 30
) -> list[tuple[int, int]]:
    """Batch size and round of each try of a night with so much time for ORDER's suspects."""

    def decide(tries: Mapping[str, Sequence[Tried]]) -> set[str]:
        return {c for c, done in tries.items() if len(done) < decided_after}

    schedule = Confirm(
        suspects=ORDER, retries=[], control=CONTROL, decide=decide, seconds=seconds,
        seconds_of={c.case_id: each_s for c in [*ORDER, CONTROL]}, fresh=True,
    )  # fmt: skip
    done: dict[Key, Tried] = {}
    order = []
    while (trial := schedule.next(done)) is not None:
        assert trial.key not in done
        done[trial.key] = Tried(status="measured", batch_size=trial.case.batch_size, seconds=each_s)
        order.append((trial.case.batch_size, trial.round))
    return order


def counts(order: list[tuple[int, int]]) -> list[int]:
    """How often each suspect was measured."""
    return [sum(size == case.batch_size for size, _ in order) for case in ORDER]


def test_suspects_take_turns_with_their_control() -> None:
    sizes = [size for size, _ in measured(600)]
    assert sizes == [1, 2, 3, 4, 5, 6, 100, 100, 1, 2, 3, 4, 5, 6]


def test_with_little_time_the_likeliest_are_measured_twice_and_the_others_not_at_all() -> None:
    assert counts(measured(200)) == [2, 2, 0, 0, 0, 0]


def test_time_that_is_left_goes_to_the_next_ones() -> None:
    order = measured(240, decided_after=1)
    assert counts(order) == [1, 1, 1, 1, 0, 0]
    assert [r for size, r in order if size == CONTROL.batch_size] == [1, 2]


def test_undecided_suspects_are_measured_no_more_than_six_times() -> None:
    assert counts(measured(1e6, decided_after=99)) == [6] * 6


def test_a_case_without_a_result_is_tried_again_without_any_suspect() -> None:
    schedule = Confirm(
        suspects=[], retries=[ORDER[0]], control=CONTROL, decide=lambda _: set(), seconds=60,
        seconds_of={}, fresh=True,
    )  # fmt: skip
    first = schedule.next({})
    assert first is not None
    assert first.case == ORDER[0]
    assert schedule.next({first.key: Tried(status="failed", batch_size=1, seconds=1.0)}) is None


def night(
    bench: Any,  # noqa: F811
    results: Path,
    again: Mapping[Case, float],
    slow: Sequence[Case],
    **more: Any,
) -> dict[str, dict[str, Any]]:
    """Throughput findings of a night whose `slow` cases lost 12 %; again: case -> share lost then.

    Of a case's two confirming processes.
    """

    def change(number: int, case: Case, made: Record) -> Record:
        return slower(made, 0.12) if number == LAST and case in slow else made

    make(results, LAST + 1, change, sigma=0.004)
    index = 0
    for case, share in again.items():
        for number in (1, 2):
            made = slower(record(
                case, 100 * (1 + CASES.index(case)), round=number, purpose="confirm",
                run_id=run_id(LAST), plan="nightly", planned=2 * len(CASES),
                started_at=START + timedelta(days=LAST, hours=1, minutes=index),
            ), share)  # fmt: skip
            store.append(results, msgspec.structs.replace(made, **more), index)
            index += 1
    done = bench("regress", "--results", str(results), "--no-confirm", "--json")
    found = json.loads(done.out)["findings"]
    return {f["case_id"]: f for f in found if f["metric"] == "throughput_images_per_s"}


def test_only_what_stands_is_red(bench: Any, tmp_path: Path) -> None:  # noqa: F811
    slow = CASES[:2]
    found = night(bench, tmp_path / "r", {slow[0]: 0.12, slow[1]: 0.0, CASES[4]: 0.0}, slow)
    assert found[slow[0].case_id]["colour"] == "red"
    assert found[slow[1].case_id]["colour"] == "yellow"
    assert "measured again: not so" in found[slow[1].case_id]["reason"]


def test_suspects_without_time_are_judged_by_history(bench: Any, tmp_path: Path) -> None:  # noqa: F811
    """A new torch that slows down everything leaves no time to measure all of it again."""
    slow = CASES[:4]
    found = night(bench, tmp_path / "r", {slow[0]: 0.12, CASES[4]: 0.0}, slow)
    assert {found[c.case_id]["colour"] for c in slow} == {"red"}
    assert "not measured again" in found[slow[1].case_id]["reason"]
    assert "not measured again" not in found[slow[0].case_id]["reason"]


def test_a_control_that_became_slower_confirms_nothing(bench: Any, tmp_path: Path) -> None:  # noqa: F811
    found = night(bench, tmp_path / "r", {CASES[0]: 0.12, CASES[4]: 0.10}, CASES[:1])
    assert found[CASES[0].case_id]["colour"] == "yellow"
    assert "the control became slower too" in found[CASES[0].case_id]["reason"]


def test_a_control_that_tells_nothing_is_said_to(bench: Any, tmp_path: Path) -> None:  # noqa: F811
    """There was none: what stands is red, and that nobody knows more is said."""
    found = night(bench, tmp_path / "r", {CASES[0]: 0.12}, CASES[:1])
    assert found[CASES[0].case_id]["colour"] == "red"
    assert "no control tells" in found[CASES[0].case_id]["reason"]
    known = night(bench, tmp_path / "s", {CASES[0]: 0.12, CASES[4]: 0.0}, CASES[:1])
    assert "no control tells" not in known[CASES[0].case_id]["reason"]


def test_what_others_disturbed_confirms_nothing(bench: Any, tmp_path: Path) -> None:  # noqa: F811
    again = {CASES[0]: 0.12, CASES[4]: 0.0}
    found = night(bench, tmp_path / "r", again, CASES[:1], warnings=["contaminated"])
    assert found[CASES[0].case_id]["colour"] == "yellow"
    assert "others disturbed" in found[CASES[0].case_id]["reason"]


@pytest.mark.parametrize("warning", ["latency_contaminated", "contaminated"])
def test_percentiles_of_disturbed_requests_are_no_nights_value(
    bench: Any,  # noqa: F811
    tmp_path: Path,
    warning: str,
) -> None:
    def change(number: int, case: Case, made: Record) -> Record:
        if number < LAST or case != CASES[0]:
            return made
        latency = {"latency_p50_ms": 1.3 * (made.measurement.latency_p50_ms or 0)}
        measurement = msgspec.structs.replace(made.measurement, **latency)
        return msgspec.structs.replace(made, measurement=measurement, warnings=[warning])

    make(tmp_path / "r", LAST + 1, change)
    done = bench("regress", "--results", str(tmp_path / "r"), "--no-confirm", "--json")
    said = json.loads(done.out)
    assert said["colour"] != "red"
    assert said["inconclusive"] == (1 if warning == "latency_contaminated" else 3)
