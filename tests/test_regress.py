"""`bench regress` and `bench accept`, through their commands, on made-up histories."""

from __future__ import annotations

import json
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
from tests.made_nights import CASES, make, run_id, slower, with_software

LAST = 14  # the night judged
INT8 = [c for c in CASES if c.precision == "int8"]


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
    code, night = judged(bench, make(tmp_path / "r", 6), "--run", run_id(20))
    assert (code, night["colour"]) == (1, "red")
    assert "left no record" in night["notes"][0]


def test_a_mistyped_run_is_wrong_use(bench: Bench, tmp_path: Path) -> None:
    done = bench("regress", "--results", str(make(tmp_path / "r", 2)), "--run", "20260101")
    assert done.code == 2
    assert "names no runs" in done.err


def test_another_loss_is_red_whatever_the_speed(bench: Bench, tmp_path: Path) -> None:
    def change(night: int, case: Case, made: Record) -> Record:
        if night != LAST or case.task != "train":
            return made
        other = msgspec.structs.replace(made.measurement, last_loss=2.6)
        return msgspec.structs.replace(made, measurement=other)

    code, night = judged(bench, make(tmp_path / "r", LAST + 1, change))
    assert code == 1
    assert {(f["kind"], f["metric"]) for f in night["findings"]} == {("differs", "last_loss")}


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
    code, night = judged(bench, results)
    assert code == 3
    assert "simulated" in night["notes"][0]


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
