"""`bench regress` and `bench accept`, through their commands, on made-up histories."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench import store
from bench.cli import main
from bench.schema import Case, Record
from tests.conftest import Bench, Done
from tests.made_nights import CASES, ROUNDS, make, run_id, slower, with_software

LAST = 14  # the night judged
INT8 = [c for c in CASES if c.precision == "int8"]
REPLAY = run_id(LAST + 1)[:-6] + "ffffff"


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Any]:
    """The whole command, in this process for speed."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: str) -> Done:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["bench", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Done(int(ended.value.code or 0), said.out, said.err)

    yield run
    signal.signal(signal.SIGTERM, before)


def judged(bench: Bench, results: Path, *more: str) -> tuple[int, dict[str, Any]]:
    done = bench("regress", "--results", str(results), "--no-confirm", "--json", *more)
    assert done.out, done.err
    return done.code, json.loads(done.out)


def only_tonight(share: float, *cases: Case) -> Any:
    return lambda night, case, made: (
        slower(made, share) if night == LAST and case in cases else made
    )


def test_a_night_like_the_others_is_green(bench: Bench, tmp_path: Path) -> None:
    code, night = judged(bench, make(tmp_path / "r", LAST + 1))
    assert (code, night["colour"], night["findings"]) == (0, "green", [])
    assert night["unchanged"] == night["series"] > len(CASES)
    assert night["inconclusive"] == 0


def test_a_regression_is_red_and_says_what_since_when_and_why(bench: Bench, tmp_path: Path) -> None:
    def change(night: int, case: Case, made: Record) -> Record:
        if night < LAST - 1:
            return made
        made = with_software(made, torch="2.99.0")
        return slower(made, 0.08) if case in INT8 else made

    results = make(tmp_path / "r", LAST + 1, change)
    code, night = judged(bench, results)
    assert (code, night["colour"]) == (1, "red")
    reds = [f for f in night["findings"] if f["colour"] == "red"]
    assert {f["case_id"] for f in reds} == {c.case_id for c in INT8}
    for one in reds:
        assert one["since_run"] == run_id(LAST - 1)
        assert one["change_low"] < one["change"] < one["change_high"]
        assert any(cause.startswith("torch: ") and "2.99.0" in cause for cause in one["causes"])
        assert "2 of 6 cases moved: 2 of 2 with precision int8, 0 of 4 others" in one["causes"]
        assert any("Not the machine" in cause for cause in one["causes"])
        assert one["command"].startswith("bench run --plan one --precision int8")
    rate = next(f for f in reds if f["metric"] == "throughput_images_per_s")
    assert rate["change"] == pytest.approx(-0.08, abs=0.02)
    said = bench("regress", "--results", str(results), "--no-confirm")
    assert said.code == 1
    assert "is RED" in said.out
    assert f"since 2026-10-{LAST:02d}" in said.out


def test_a_slower_machine_is_named_as_such(bench: Bench, tmp_path: Path) -> None:
    results = make(
        tmp_path / "r", LAST + 1, only_tonight(0.1, *CASES),
        sentinels=lambda night: 25.0 * (0.9 if night == LAST else 1 + 0.002 * (night % 3)),
    )  # fmt: skip
    code, night = judged(bench, results)
    assert code == 1
    assert all(f["causes"][0].startswith("The machine: ") for f in night["findings"])
    assert any("all 6 cases moved" in c for c in night["findings"][0]["causes"]), night["findings"]


def test_a_gain_is_told_and_is_no_alarm(bench: Bench, tmp_path: Path) -> None:
    code, night = judged(bench, make(tmp_path / "r", LAST + 1, only_tonight(-0.1, *INT8)))
    assert (code, night["colour"]) == (0, "green")
    assert {(f["kind"], f["colour"]) for f in night["findings"]} == {("better", "green")}


@pytest.mark.parametrize("before", [0, 4])
def test_a_short_history_is_inconclusive_never_ok(
    bench: Bench, tmp_path: Path, before: int
) -> None:
    code, night = judged(bench, make(tmp_path / "r", before + 1))
    assert code == 3
    assert night["inconclusive"] == night["series"] > 0


@pytest.mark.parametrize("status", ["failed", "timeout", "oom", "skipped"])
def test_a_case_that_lost_its_result_is_red(bench: Bench, tmp_path: Path, status: str) -> None:
    def change(night: int, case: Case, made: Record) -> Record:
        if night != LAST or case != CASES[0]:
            return made
        return msgspec.structs.replace(
            made, status=status, reason="of a test", measurement=type(made.measurement)()
        )

    code, night = judged(bench, make(tmp_path / "r", LAST + 1, change))
    assert code == 1
    (one,) = night["findings"]
    assert (one["kind"], one["case_id"]) == ("missing", CASES[0].case_id)
    assert one["reason"] == f"{status}: of a test"


def test_a_case_that_never_worked_alarms_nobody(bench: Bench, tmp_path: Path) -> None:
    def change(night: int, case: Case, made: Record) -> Record:
        return msgspec.structs.replace(made, status="failed") if case == CASES[0] else made

    code, night = judged(bench, make(tmp_path / "r", LAST + 1, change))
    assert (code, night["findings"]) == (0, [])


def test_a_night_that_died_is_red_and_the_night_before_is_not_judged_in_its_place(
    bench: Bench, tmp_path: Path
) -> None:
    results = make(
        tmp_path / "r", LAST + 1,
        lambda night, case, made: None if night == LAST and case in CASES[2:] else made,
    )  # fmt: skip
    code, night = judged(bench, results, "--run", run_id(LAST))
    assert (code, night["colour"], night["run_id"]) == (1, "red", run_id(LAST))
    assert {f["case_id"] for f in night["findings"]} == {c.case_id for c in CASES[2:]}
    assert "ended before 8 of its planned tries" in night["notes"][0]
    # Without a name the newest complete night is judged, and named.
    assert judged(bench, results)[1]["run_id"] == run_id(LAST - 1)


def test_a_night_without_any_record_is_red(bench: Bench, tmp_path: Path) -> None:
    """Of the plan that was judged last, and of the time in its name, whenever it is judged."""
    results = make(tmp_path / "r", 6)
    judged(bench, results)
    for _ in range(2):
        code, night = judged(bench, results, "--run", run_id(20))
        assert (code, night["colour"], night["plan"]) == (1, "red", "nightly")
        assert night["started_at"] == "2026-10-21T00:00:00Z"
        assert "left no record" in night["notes"][0]


def test_a_first_night_without_any_record_is_red(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert bench("regress", "--results", "empty").code == 3
    code, night = judged(bench, tmp_path / "empty", "--run", run_id(0))
    assert (code, night["colour"]) == (1, "red")


def test_a_run_that_died_after_its_last_record_is_red(bench: Bench, tmp_path: Path) -> None:
    """Told like any red night, and still when the night is judged again."""
    results = make(tmp_path / "r", LAST + 1)
    command = ("--run", run_id(LAST), "--out", "out")
    code, night = judged(bench, results, *command, "--died", "137")
    assert (code, night["colour"], night["findings"]) == (1, "red", [])
    assert "exit code 137" in (tmp_path / "out" / "nightly.md").read_text()
    assert "exit code 137" in (tmp_path / "out" / "junit.xml").read_text()
    code, night = judged(bench, results, *command)
    assert (code, night["died"]) == (1, 137)


@pytest.mark.parametrize("run", ["20260101", "20261399T000000Z-000000"])
def test_a_mistyped_run_is_wrong_use(bench: Bench, tmp_path: Path, run: str) -> None:
    done = bench("regress", "--results", str(make(tmp_path / "r", 2)), "--run", run)
    assert done.code == 2
    assert "names no runs" in done.err


def replayed(results: Path, case: Case, **facts: Any) -> None:
    """A run of the plan `one` after the nights: what a finding's command leaves in the folder."""
    mine = {"run_id": REPLAY, "plan": "one", "planned": ROUNDS, **facts}
    make(
        results, LAST + 2, seed=9,
        change=lambda night, c, made: (
            msgspec.structs.replace(made, **mine) if night > LAST and c == case else None
        ),
    )  # fmt: skip


def test_the_newest_complete_night_is_one_of_the_plan(bench: Bench, tmp_path: Path) -> None:
    """Not a replay and nothing simulated; the plan is said."""
    results = make(tmp_path / "r", LAST + 1)
    replayed(results, CASES[0])
    for name in ("judged by nobody yet", "judged last"):
        done = bench("regress", "--results", str(results), "--no-confirm")
        assert done.code == 0, name
        assert done.out.startswith(f"Night {run_id(LAST)} is GREEN"), name
        assert "(plan nightly)" in done.out, name
    assert judged(bench, results, "--run", REPLAY)[0] == 3
    assert judged(bench, results)[1]["run_id"] == REPLAY  # now its plan is the one judged last
    simulated = make(tmp_path / "s", LAST + 1)
    replayed(simulated, CASES[0], plan="nightly", simulated=True)
    assert judged(bench, simulated)[1]["run_id"] == run_id(LAST)


def test_another_loss_is_red_whatever_the_speed(bench: Bench, tmp_path: Path) -> None:
    def change(night: int, case: Case, made: Record) -> Record:
        if night != LAST or case.task != "train":
            return made
        other = msgspec.structs.replace(made.measurement, last_loss=2.6)
        return msgspec.structs.replace(made, measurement=other)

    code, night = judged(bench, make(tmp_path / "r", LAST + 1, change))
    assert code == 1
    assert {(f["kind"], f["metric"]) for f in night["findings"]} == {("differs", "last_loss")}


def test_a_loss_that_is_no_number_any_more_is_red(bench: Bench, tmp_path: Path) -> None:
    """NaN is null in JSON, and so is the loss of a training that skipped every update."""
    for name, value in (("nan", math.nan), ("none", None)):

        def change(night: int, case: Case, made: Record, value: float | None = value) -> Record:
            if night != LAST or case.task != "train":
                return made
            other = msgspec.structs.replace(made.measurement, last_loss=value)
            return msgspec.structs.replace(made, measurement=other)

        code, night = judged(bench, make(tmp_path / name, LAST + 1, change))
        assert code == 1
        (one, *_) = night["findings"]
        assert (one["kind"], one["metric"], one["now"]) == ("differs", "last_loss", None)
        assert "loss 2.5 → none" in one["reason"]


def test_a_wrong_result_does_not_become_normal_by_lasting(bench: Bench, tmp_path: Path) -> None:
    """Night after night, with its first night and what changed then, until it is accepted."""
    train = next(c for c in CASES if c.task == "train")
    first = 5

    def change(night: int, case: Case, made: Record) -> Record:
        if case != train or not first <= night <= LAST + 1:
            return made
        made = with_software(made, torch="2.99.0")
        other = msgspec.structs.replace(made.measurement, last_loss=2.6)
        return msgspec.structs.replace(made, measurement=other)

    results = make(tmp_path / "r", LAST + 3, change, cases=[train, CASES[0]])
    code, night = judged(bench, results, "--run", run_id(LAST))
    assert code == 1
    (one,) = night["findings"]
    assert (one["before"], one["now"]) == (2.5, 2.6)
    assert one["since_run"] == run_id(first)
    assert "2.99.0" in one["causes"][0]
    accepted = bench("accept", train.case_id, "--reason", "x", "--results", str(results))
    assert run_id(LAST) in accepted.out
    for last, expected in ((LAST, 0), (LAST + 1, 0), (LAST + 2, 1)):  # the last is as before
        code, night = judged(bench, results, "--run", run_id(last))
        assert code == expected, night
    assert night["findings"][0]["since_run"] == run_id(LAST + 2)


def test_a_result_that_varies_by_itself_alarms_nobody(bench: Bench, tmp_path: Path) -> None:
    """A tolerance is wider where good nights varied; a night far out of it is still told."""
    train = next(c for c in CASES if c.task == "train")

    def change(night: int, case: Case, made: Record) -> Record:
        share = 0.2 if night == LAST + 1 else 0.005 * (night % 5 - 2)
        other = msgspec.structs.replace(made.measurement, last_loss=2.5 * (1 + share))
        return msgspec.structs.replace(made, measurement=other)

    results = make(tmp_path / "r", LAST + 2, change, cases=[train])
    assert [judged(bench, results, "--run", run_id(LAST + n))[0] for n in (0, 1)] == [0, 1]


def test_disturbed_measurements_alarm_nobody(bench: Bench, tmp_path: Path) -> None:
    def change(night: int, case: Case, made: Record) -> Record:
        if night != LAST:
            return made
        return msgspec.structs.replace(slower(made, 0.3), warnings=["contaminated"])

    code, night = judged(bench, make(tmp_path / "r", LAST + 1, change))
    assert night["colour"] == "green"
    assert night["inconclusive"] == night["series"] > 0
    assert "disturbed 12 of 12 measurements" in night["notes"][0]
    assert code == 3


def test_simulated_nights_are_not_judged(bench: Bench, tmp_path: Path) -> None:
    results = make(
        tmp_path / "r", LAST + 1,
        lambda _night, _case, made: msgspec.structs.replace(made, simulated=True),
    )  # fmt: skip
    code, night = judged(bench, results, "--run", run_id(LAST))
    assert code == 3
    assert "simulated" in night["notes"][0]
    done = bench("regress", "--results", str(results))
    assert done.code == 2
    assert "simulated" in done.err


def test_a_case_that_is_always_disturbed_is_told(bench: Bench, tmp_path: Path) -> None:
    """From the third night in a row on, in yellow, with the night it began."""

    def change(night: int, case: Case, made: Record) -> Record:
        spoilt = case == CASES[0] and night >= LAST - 2
        return msgspec.structs.replace(made, warnings=["contaminated"]) if spoilt else made

    results = make(tmp_path / "r", LAST + 1, change)
    assert judged(bench, results, "--run", run_id(LAST - 1))[1]["findings"] == []
    code, night = judged(bench, results, "--out", str(tmp_path / "out"))
    assert (code, night["colour"]) == (0, "yellow")
    (one,) = night["findings"]
    assert (one["kind"], one["case_id"]) == ("disturbed", CASES[0].case_id)
    assert one["since_run"] == run_id(LAST - 2)
    assert "for 3 nights" in one["reason"]
    assert CASES[0].case_id in (tmp_path / "out" / "nightly.md").read_text()


def test_an_accepted_change_is_the_new_baseline(bench: Bench, tmp_path: Path) -> None:
    case = INT8[0]
    results = make(tmp_path / "r", LAST + 1, only_tonight(0.1, case))
    assert judged(bench, results)[0] == 1
    assert bench("accept", case.case_id, "--results", str(results)).code == 2  # no reason
    wrong = bench("accept", case.case_id[:-1], "--reason", "x", "--results", str(results))
    assert wrong.code == 2
    assert "did you mean" in wrong.err
    done = bench("accept", case.case_id, "--reason", "safer kernels", "--results", str(results))
    assert done.code == 0
    assert run_id(LAST) in done.out
    kept = (results / "nightly" / "accepted.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in kept] == ["safer kernels"]
    later = make(
        tmp_path / "later", LAST + 8,
        lambda night, c, made: slower(made, 0.1) if night >= LAST and c == case else made,
    )  # fmt: skip
    assert judged(bench, later)[0] == 1  # not accepted there
    (later / "nightly" / "accepted.jsonl").write_text("\n".join([*kept, "not json"]))
    code, night = judged(bench, later)
    assert (code, night["findings"]) == (0, [])


def test_an_accepted_change_is_that_of_the_night_judged(bench: Bench, tmp_path: Path) -> None:
    """Not that of a replay since, which is no night of the plan."""
    case = INT8[0]
    results = make(tmp_path / "r", LAST + 1, only_tonight(0.1, case))
    replayed(results, case)
    assert judged(bench, results)[0] == 1
    done = bench("accept", case.case_id, "--reason", "x", "--results", str(results))
    assert f"from run {run_id(LAST)} of plan nightly" in done.out
    assert judged(bench, results)[0] == 0
    new = make(tmp_path / "new", LAST + 1)
    replayed(new, case)
    done = bench("accept", case.case_id, "--reason", "x", "--results", str(new))
    assert "none was judged yet" in done.out


def test_a_lost_case_can_be_accepted(bench: Bench, tmp_path: Path) -> None:
    """Until it has a result again: then losing that is news."""
    case = CASES[0]

    def change(night: int, c: Case, made: Record) -> Record | None:
        if night in (LAST, LAST + 1):  # the plan has one case less
            less = msgspec.structs.replace(made, planned=ROUNDS * (len(CASES) - 1))
            return None if c == case else less
        if night == LAST + 3 and c == case:
            return msgspec.structs.replace(made, status="failed", reason="of a test")
        return made

    results = make(tmp_path / "r", LAST + 4, change)
    codes = []
    for night in (LAST, LAST, LAST + 1, LAST + 2, LAST + 3):
        code, found = judged(bench, results, "--run", run_id(night))
        if not codes:
            done = bench("accept", case.case_id, "--reason", "x", "--results", str(results))
            assert run_id(LAST) in done.out
        codes.append(code)
    assert codes == [1, 0, 0, 0, 1]
    (one,) = found["findings"]
    assert (one["kind"], one["since_run"]) == ("missing", run_id(LAST + 3))


def test_accepting_a_speed_accepts_no_failure(bench: Bench, tmp_path: Path) -> None:
    case = INT8[0]

    def change(night: int, c: Case, made: Record) -> Record:
        if c != case or night < LAST:
            return made
        made = slower(made, 0.1)
        return made if night == LAST else msgspec.structs.replace(made, status="failed")

    results = make(tmp_path / "r", LAST + 2, change)
    assert judged(bench, results, "--run", run_id(LAST))[0] == 1
    assert bench("accept", case.case_id, "--reason", "x", "--results", str(results)).code == 0
    code, night = judged(bench, results)
    assert (code, [f["kind"] for f in night["findings"]]) == (1, ["missing"])


def test_a_failure_says_since_when_and_why_on_every_night(bench: Bench, tmp_path: Path) -> None:
    case, first = CASES[0], LAST - 2

    def change(night: int, c: Case, made: Record) -> Record:
        if night < first:
            return made
        made = with_software(made, torch="2.99.0")
        return msgspec.structs.replace(made, status="failed", reason="x") if c == case else made

    results = make(tmp_path / "r", LAST + 1, change)
    for last in range(first, LAST + 1):
        code, night = judged(bench, results, "--run", run_id(last))
        assert code == 1
        (one,) = night["findings"]
        assert one["since_run"] == run_id(first)
        assert "2.99.0" in one["causes"][0]


def test_the_good_night_is_one_that_measured_the_case(bench: Bench, tmp_path: Path) -> None:
    """The night before the change had no record of it."""
    case = INT8[0]

    def change(night: int, c: Case, made: Record) -> Record | None:
        if c != case or night < LAST - 1:
            return made
        return None if night == LAST - 1 else slower(with_software(made, torch="2.99.0"), 0.1)

    _, night = judged(bench, make(tmp_path / "r", LAST + 1, change))
    assert {f["case_id"] for f in night["findings"]} == {case.case_id}
    assert all("2.99.0" in f["causes"][0] for f in night["findings"])


def test_of_many_findings_the_first_are_explained(bench: Bench, tmp_path: Path) -> None:
    """It is said how many; each has its command."""
    cases = [Case(batch_size=n) for n in range(1, 61)]
    code, night = judged(bench, make(tmp_path / "r", 8, lambda night, _, made: (
        slower(made, 0.2) if night == 7 else made
    ), cases=cases))  # fmt: skip
    assert code == 1
    assert len(night["findings"]) == 120
    assert any("the first 100 of 120 findings" in note for note in night["notes"])
    explained = [any("all 60 cases moved" in c for c in f["causes"]) for f in night["findings"]]
    assert explained == [True] * 100 + [False] * 20
    assert all(f["command"] for f in night["findings"])


def test_a_folder_that_cannot_be_written_silences_nobody(bench: Bench, tmp_path: Path) -> None:
    """Exit code 2 and a sentence; what was found is told first."""
    results = make(tmp_path / "r", LAST + 1, only_tonight(0.1, INT8[0]))
    (results / "nightly").write_text("in the way")
    done = bench("regress", "--results", str(results), "--no-confirm", "--out", "out")
    assert done.code == 2
    assert "is RED" in done.out
    assert "The judgement could not be kept in" in done.err
    assert "RED" in (tmp_path / "out" / "nightly.md").read_text()
    done = bench("accept", INT8[0].case_id, "--reason", "x", "--results", str(results))
    assert done.code == 2
    assert "What was accepted could not be kept in" in done.err
    (results / "nightly").unlink()
    (results / "nightly" / "accepted.jsonl").mkdir(parents=True)
    done = bench("regress", "--results", str(results), "--no-confirm")
    assert done.code == 2
    assert "accepted.jsonl cannot be read" in done.err


def test_who_accepted_need_not_have_a_name(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container may run as a number that its list of users does not know."""
    results = make(tmp_path / "r", LAST + 1)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    done = bench("accept", CASES[0].case_id, "--reason", "x", "--results", str(results))
    assert done.code == 0
    assert done.out.startswith(f"Accepted by user {os.getuid()}: ")


def test_against_names_the_nights_of_the_baseline(bench: Bench, tmp_path: Path) -> None:
    case = INT8[0]
    results = make(
        tmp_path / "r", LAST + 1,
        lambda night, c, made: slower(made, -0.1) if night < 7 and c == case else made,
    )  # fmt: skip
    for text in (f"anchor:{run_id(6)}", "2026-10-07"):
        code, night = judged(bench, results, "--against", text)
        assert code == 1, text
        assert {f["case_id"] for f in night["findings"]} == {case.case_id}
    for text in ("anchor:nothing", "anchor:", "yesterday", "2020-01-01"):
        done = bench("regress", "--results", str(results), "--no-confirm", "--against", text)
        assert done.code == 2, text
        assert "--against" in done.err


def test_against_last_green_leaves_later_nights_out(bench: Bench, tmp_path: Path) -> None:
    results = make(tmp_path / "r", LAST + 1, only_tonight(0.1, *INT8))
    assert judged(bench, results, "--run", run_id(LAST - 2))[0] == 0
    code, night = judged(bench, results, "--against", "last-green")
    assert code == 1
    assert run_id(LAST - 1) in night["against"]  # never judged, but complete: presumed green


def test_a_red_night_is_not_the_last_green_one(bench: Bench, tmp_path: Path) -> None:
    """A case lost last night is still red tonight."""
    gone = lambda night, case, made: None if night >= LAST - 1 and case == CASES[0] else made  # noqa: E731
    results = make(tmp_path / "r", LAST + 1, gone)
    for night in (LAST - 1, LAST):
        code, found = judged(bench, results, "--run", run_id(night))
        assert code == 1
        assert found["findings"][0]["case_id"] == CASES[0].case_id


def test_machines_do_not_judge_each_other(bench: Bench, tmp_path: Path) -> None:
    results = make(tmp_path / "r", LAST + 1)
    make(
        results, LAST + 1, seed=7,
        change=lambda _night, _case, made: msgspec.structs.replace(
            slower(made, 0.5), run_id=made.run_id[:-6] + "ffffff", machine_fingerprint="other"
        ),
    )  # fmt: skip
    code, night = judged(bench, results, "--run", run_id(LAST))
    assert (code, night["nights"]) == (0, LAST)


def test_judging_needs_no_torch_and_says_what_is_missing(bench: Bench, tmp_path: Path) -> None:
    done = bench("regress", "--results", str(tmp_path / "none"))
    assert done.code == 3
    assert "no results folder" in done.err
    for flag, value in (("--confirm-budget", "soon"), ("--min-effect", "0")):
        done = bench("regress", "--results", str(tmp_path), flag, value)
        assert done.code == 2, flag
        assert flag in done.err


def test_the_self_test_says_how_often_it_cries_wolf(bench: Bench, tmp_path: Path) -> None:
    results = make(tmp_path / "r", LAST + 1, sigma=0.01)
    done = bench("regress", "--self-test", "--results", str(results))
    assert done.code == 0
    assert "shuffled, nothing changed: " in done.out
    for case in CASES:
        assert done.out.count(case.case_id + " ") == 3  # throughput, p50, memory
    few = bench("regress", "--self-test", "--results", str(make(tmp_path / "few", 3)))
    assert "too few" in few.out


def test_the_report_shows_the_night_and_escapes_what_it_says(bench: Bench, tmp_path: Path) -> None:
    results = make(tmp_path / "r", LAST + 1, only_tonight(0.1, INT8[0]))
    judged(bench, results)
    evil = "<script>alert(1)</script>"
    assert bench("accept", INT8[1].case_id, "--reason", evil, "--results", str(results)).code == 0
    out = tmp_path / "out"
    assert bench("report", "--results", str(results), "--out", str(out)).code == 0
    page = (out / "index.html").read_text()
    assert "is RED" in page
    assert evil not in page
    assert (out / "nights.png").stat().st_size > 10_000


TINY_NIGHT = """
repeats = 2
[budget_overrides]
max_seconds = 0.6
min_seconds = 0.2
latency_seconds = 0.2
[[cases]]
model = ["resnet18"]
image_size = [32]
batch_size = [1, 2]
threads = [1]
"""


@pytest.mark.serial
@pytest.mark.slow
@pytest.mark.parametrize("really", [True, False])
def test_suspects_are_measured_again_and_only_what_stands_is_red(
    tmp_path: Path, really: bool
) -> None:
    """Real nights: the history is faster than this machine, or tonight's record alone is slow."""
    plan = tmp_path / "tiny.toml"
    plan.write_text(TINY_NIGHT)
    results = tmp_path / "results"
    tonight = run_id(LAST)
    command = [sys.executable, "-m", "bench"]
    done = subprocess.run(
        [*command, "run", "--plan", str(plan), "--device", "cpu", "--run-id", tonight,
         "--results", str(results)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    real = store.records(results, tonight)
    shutil.rmtree(results)
    pretend(results, real, tonight, really=really)
    done = subprocess.run(
        [*command, "regress", "--results", str(results), "--run", tonight, "--min-effect", "30%",
         "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    night = json.loads(done.stdout)
    again = [r for r in store.records(results, tonight) if r.purpose == "confirm"]
    slow, other = sorted({r.case_id for r in real if r.purpose == "grid"})
    assert {r.case_id for r in again} == {slow, other}  # the suspect and its control
    assert all(r.worker == "fresh" for r in again)
    assert night["confirmed"]
    reds = {f["case_id"] for f in night["findings"] if f["colour"] == "red"}
    clean = [r for r in again if r.case_id == slow and "contaminated" not in r.warnings]
    stands = really and len(clean) >= 2  # what others disturb confirms nothing
    assert reds == ({slow} if stands else set())
    assert done.returncode == int(stands)
    assert ("disturbed" in " ".join(night["notes"])) == any(
        "contaminated" in r.warnings for r in again
    )
    # Judged later, without measuring: what was measured to confirm still counts.
    done = subprocess.run(
        [*command, "regress", "--results", str(results), "--run", tonight, "--min-effect", "30%",
         "--json", "--no-confirm"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    later = json.loads(done.stdout)["findings"]
    assert {f["case_id"] for f in later if f["colour"] == "red"} == reds
    if really:
        # The first round, the suspect before its control; the second, the other way round.
        assert [r.case_id for r in again[:4]] == [slow, other, other, slow]


def pretend(results: Path, real: list[Record], tonight: str, *, really: bool) -> None:
    """Earlier nights made of tonight's records; the first case differs by a factor of 3.

    really: the nights before were faster, so that this machine is slow. Else only tonight's
    records are, and measuring again shows the old speed.
    """
    slow = min(r.case_id for r in real if r.purpose == "grid")
    index = 0
    results.mkdir()
    for number in range(LAST + 1):
        for one in real:
            factor = 1 + 0.002 * (number % 5)
            if one.case_id == slow:
                factor *= 3 if really and number < LAST else 1
                factor /= 3 if not really and number == LAST else 1
            m = one.measurement
            rate = m.throughput_images_per_s
            assert rate
            made = msgspec.structs.replace(
                one,
                run_id=run_id(number),
                warnings=[],  # whatever else this machine did meanwhile
                started_at=one.started_at - timedelta(days=LAST - number),
                measurement=msgspec.structs.replace(
                    m,
                    throughput_images_per_s=rate * factor,
                    # Copies of one record know nothing of how these differ between processes.
                    latency_p50_ms=None,
                    first_step_s=None,
                ),
            )
            store.append(results, made, index)
            index += 1
