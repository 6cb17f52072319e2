"""`bench compare`: which records meet, what is said of them, and what is never said."""

from __future__ import annotations

import runpy
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from bench import store
from bench.cli import main
from bench.schema import Case, Environment, Record
from tests.conftest import Bench, Done
from tests.records import START, record, write

OLD, NEW = "20260101T000000Z-aaaaaa", "20260102T000000Z-bbbbbb"
FP32, INT8 = Case(), Case(precision="int8")
STEADY = (99.0, 100.0, 101.0)


def rounds(case: Case, rates: tuple[float, ...], run_id: str = OLD, **more: Any) -> list[Record]:
    """A case measured once a round in fresh interpreters; a run begins at its id's midnight."""
    more = {"worker": "fresh", "number": 1440 if run_id == NEW else 0, **more}
    return [record(case, r, round=n, run_id=run_id, **more) for n, r in enumerate(rates, 1)]


def times(rates: tuple[float, ...], factor: float) -> tuple[float, ...]:
    return tuple(factor * r for r in rates)


@pytest.fixture
def compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Store records, compare two selectors: the whole command, in this process for speed."""
    before = signal.getsignal(signal.SIGTERM)

    def run(records: list[Record], *arguments: str) -> Done:
        folder = write(tmp_path / "data", *records)
        monkeypatch.setattr(sys, "argv", ["bench", "compare", *arguments, "--results", str(folder)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Done(int(ended.value.code or 0), said.out, said.err)

    yield run
    signal.signal(signal.SIGTERM, before)


SIDES = ("precision=fp32", "precision=int8", "--json")


def only(done: Done) -> dict[str, Any]:
    """The single verdict of `--json`."""
    assert done.code == 0, done
    assert len(done.records) == 1, done.out
    return done.records[0]


def test_two_cases_of_a_run_are_faster_by_round(compare: Any) -> None:
    """Rounds that share their noise give the ratio exactly: pairs, not means, are compared."""
    records = rounds(FP32, (50.0, 100.0, 200.0)) + rounds(INT8, (110.0, 220.0, 55.0))
    for index, number in ((3, 2), (4, 3), (5, 1)):  # stored in another order than by round
        records[index] = record(INT8, (110.0, 220.0, 55.0)[index - 3], round=number, worker="fresh")
    found = only(compare(records, *SIDES))
    assert found["verdict"] == "faster"
    assert found["ratio"] == pytest.approx(1.1)
    assert found["ratio_low"] == pytest.approx(1.1)
    assert found["rounds"] == 3
    assert found["b"]["images_per_s"] / found["a"]["images_per_s"] == pytest.approx(1.1)
    assert found["reason"] == "+10.0 % in 3 rounds"


def test_the_table_names_everything_in_one_line_a_pair(bench: Bench, tmp_path: Path) -> None:
    """Piped, nothing is cut or folded; counts come last."""
    write(tmp_path / "data", *rounds(FP32, STEADY), *rounds(INT8, times(STEADY, 0.9)))
    done = bench("compare", *SIDES[:2], "--results", "data", "--fail-if-slower", "5%")
    assert done.code == 1
    line = next(x for x in done.out.splitlines() if "→" in x)
    assert line.startswith(f"{FP32.case_id} → {INT8.case_id} ")
    expected = "100.0 90.0 0.900 0.900 – 0.900 slower -10.0 % in 3 rounds"
    assert " ".join(line.split()[3:]) == expected
    assert f"A: run {OLD}" in done.out
    assert done.out.endswith(
        "Of 1 compared: 0 faster, 1 slower, 0 same, 0 inconclusive. Without a partner: 0.\n"
    )


def test_the_same_is_same_and_noise_is_inconclusive(compare: Any) -> None:
    """Same inside ± 2 %; a wide interval names the command with more rounds."""
    wide = Case(batch_size=8)
    noisy = Case(batch_size=8, precision="int8")
    records = rounds(FP32, STEADY) + rounds(INT8, times(STEADY, 1.01))
    records += rounds(wide, STEADY) + rounds(noisy, (90.0, 100.0, 120.0))
    same, undecided = compare(records, *SIDES).records
    assert same["verdict"] == "same"
    assert undecided["verdict"] == "inconclusive"
    assert "could be none or more than 2 %" in undecided["reason"]
    assert undecided["command"] == (
        "bench run --plan one --precision fp32,int8 --batch-size 8 --repeats 6"
    )


def test_min_effect_moves_the_boundary(compare: Any) -> None:
    """A change of 1 % is the same, or faster where 0.5 % matters."""
    records = rounds(FP32, STEADY) + rounds(INT8, times(STEADY, 1.01))
    assert only(compare(records, *SIDES))["verdict"] == "same"
    assert only(compare(records, *SIDES, "--min-effect", "0.5%"))["verdict"] == "faster"


def test_two_rounds_do_not_decide(compare: Any) -> None:
    """However far apart; the ratio is shown without an interval, with what to do."""
    records = rounds(FP32, STEADY[:2]) + rounds(INT8, times(STEADY, 3))
    found = only(compare(records, *SIDES))
    assert found["verdict"] == "inconclusive"
    assert found["ratio"] == pytest.approx(3)
    assert found["ratio_low"] is None
    assert found["reason"] == "2 common rounds in fresh interpreters, 3 are needed"
    assert found["command"] == "bench run --plan one --precision fp32,int8 --repeats 5"


def test_forked_rounds_do_not_decide(compare: Any) -> None:
    """Forks of one server are one process."""
    records = rounds(FP32, STEADY) + rounds(INT8, times(STEADY, 3), worker="forked")
    found = only(compare(records, *SIDES))
    assert found["verdict"] == "inconclusive"
    assert found["reason"].startswith("0 of 3 common rounds in fresh interpreters")


@pytest.mark.parametrize("status", ["skipped", "oom", "failed", "timeout"])
def test_what_was_not_measured_has_its_row(compare: Any, status: str) -> None:
    """With the reason, no ratio, and no verdict."""
    lost = [record(INT8, status=status, reason="no such kernel", worker=None)]
    found = only(compare(rounds(FP32, STEADY) + lost, *SIDES))
    assert found["verdict"] == "inconclusive"
    assert found["reason"] == f"B {status}: no such kernel"
    assert (found["ratio"], found["b"]["images_per_s"]) == (None, None)
    assert found["a"]["images_per_s"] == pytest.approx(100, rel=1e-3)


def test_a_lost_round_is_told_and_its_partner_left_out(compare: Any) -> None:
    """Three of four rounds decide."""
    records = rounds(FP32, (*STEADY, 500.0)) + rounds(INT8, times(STEADY, 1.1))
    records.append(record(INT8, status="failed", round=4))
    found = only(compare(records, *SIDES))
    assert (found["verdict"], found["rounds"]) == ("faster", 3)
    assert found["ratio"] == pytest.approx(1.1)
    assert "1 of 4 rounds of B failed" in found["reason"]


def test_simulated_and_real_never_meet(compare: Any) -> None:
    """Each is listed alone and says why; two simulated ones give no verdict."""
    gpu = {"simulated": True}
    records = rounds(FP32, STEADY) + rounds(INT8, times(STEADY, 2), **gpu)
    found = compare(records, *SIDES).records
    assert [v["verdict"] for v in found] == ["unpaired", "unpaired"]
    assert all("simulated records are never compared with real ones" in v["reason"] for v in found)
    both = rounds(FP32, STEADY, NEW, **gpu) + rounds(INT8, times(STEADY, 2), NEW, **gpu)
    found = only(compare(both, f"run:{NEW},precision=fp32", f"run:{NEW},precision=int8", "--json"))
    assert found["verdict"] == "inconclusive"
    assert found["reason"] == "simulated: its times mean nothing"


def test_cases_without_a_partner_are_listed(compare: Any) -> None:
    """On both sides, in the table's output and in the counts."""
    records = rounds(FP32, STEADY) + rounds(INT8, STEADY)
    records += rounds(Case(batch_size=8), STEADY) + rounds(Case(precision="int8", seed=1), STEADY)
    done = compare(records, *SIDES[:2])
    assert f"Only in A: {Case(batch_size=8).case_id} (run {OLD}): B has no such case." in done.out
    assert f"Only in B: {Case(precision='int8', seed=1).case_id}" in done.out
    assert "Of 1 compared: 0 faster, 0 slower, 1 same" in done.out
    assert done.out.endswith("Without a partner: 2.\n")


def test_another_machine_is_another_series(compare: Any) -> None:
    """Unless both sides name theirs."""
    records = rounds(FP32, STEADY) + rounds(FP32, STEADY, NEW, machine_fingerprint="n")
    found = compare(records, "latest~1", "latest", "--json").records
    assert [v["verdict"] for v in found] == ["unpaired", "unpaired"]
    assert "on another machine" in found[0]["reason"]
    named = ("machine_fingerprint=m", "machine_fingerprint=n", "--json")
    assert only(compare(records, *named))["verdict"] == "same"


def test_a_device_that_both_sides_name_alike_is_one_device(compare: Any) -> None:
    """Another card in the same slot of the same host is another machine."""
    records = rounds(FP32, STEADY) + rounds(INT8, STEADY, machine_fingerprint="n")
    found = compare(records, *(f"device=cpu,{s}" for s in SIDES[:2]), "--json").records
    assert [v["verdict"] for v in found] == ["unpaired", "unpaired"]


def test_devices_of_one_host_are_compared(compare: Any) -> None:
    """A fingerprint holds the device; its host is what must agree. Drivers are no news then."""
    gpu = Case(device="cuda:0")
    made = {"machine_fingerprint": "g", "software_fingerprint": "t"}
    records = rounds(FP32, STEADY) + rounds(gpu, times(STEADY, 30), **made)
    found = only(compare(records, "device=cpu", "device=cuda:0", "--json"))
    assert (found["verdict"], found["ratio"]) == ("faster", pytest.approx(30))
    assert "software" not in found["reason"]
    elsewhere = {**made, "environment": Environment(bench_version="0", cpu_model="Other")}
    records = rounds(FP32, STEADY, NEW) + rounds(gpu, STEADY, NEW, **elsewhere)
    day = "2026-01-02"
    found = compare(records, f"{day},device=cpu", f"{day},device=cuda:0", "--json").records
    assert [v["verdict"] for v in found] == ["unpaired", "unpaired"]


def test_runs_are_named_by_prefix_age_and_day(compare: Any) -> None:
    """Five ways to say the same; B is twice as fast in every one. A later run says so."""
    records = rounds(FP32, STEADY) + rounds(FP32, times(STEADY, 2), NEW)
    pairs = [
        ("run:20260101", "run:20260102"),
        (f"run:{OLD}", "latest"),
        ("latest~1", "latest"),
        ("2026-01-01", "2026-01-02,precision=fp32"),
        (f"run:{OLD}", "precision=fp32"),  # the newest run of this case, not again the old one
    ]
    for a, b in pairs:
        found = only(compare(records, a, b, "--json"))
        assert (found["a"]["run_id"], found["b"]["run_id"]) == (OLD, NEW)
        assert found["reason"] == "+100.0 % in 3 rounds; not interleaved"


def test_without_a_run_cases_meet_in_the_newest_run_that_holds_both(compare: Any) -> None:
    """Interleaved beats newer; without such a run each side's newest."""
    records = rounds(FP32, STEADY) + rounds(INT8, times(STEADY, 1.5))
    records += rounds(INT8, times(STEADY, 9), NEW)
    found = only(compare(records, *SIDES))
    assert (found["b"]["run_id"], found["ratio"]) == (OLD, pytest.approx(1.5))
    bf16 = Case(precision="amp-bf16")
    records += rounds(bf16, times(STEADY, 2), NEW)
    found = only(compare(records, "precision=fp32", "precision=amp-bf16", "--json"))
    assert (found["a"]["run_id"], found["b"]["run_id"]) == (OLD, NEW)


def test_records_are_not_compared_with_themselves(compare: Any) -> None:
    """A ratio of 1 that shows nothing."""
    found = only(compare(rounds(FP32, STEADY), "latest", "precision=fp32", "--json"))
    assert found["verdict"] == "inconclusive"
    assert "the same records" in found["reason"]


@pytest.mark.parametrize("code", ["not_steady", "two_state", "contaminated"])
@pytest.mark.parametrize(("marked", "verdict"), [(1, "faster"), (2, "inconclusive")])
def test_untrusted_rounds_are_told_and_most_of_them_forbid_a_verdict(
    compare: Any, code: str, marked: int, verdict: str
) -> None:
    """One of three is a remark, two of three are too many."""
    records = rounds(FP32, STEADY)
    for number, rate in enumerate(times(STEADY, 2), 1):
        warnings = [code] if number <= marked else ["fidelity_unproven"]
        records.append(record(INT8, rate, round=number, worker="fresh", warnings=warnings))
    found = only(compare(records, *SIDES))
    assert found["verdict"] == verdict
    assert f"{code} in {marked} of 3 rounds of B" in found["reason"]
    assert ("most rounds of B are not to be trusted" in found["reason"]) == (marked == 2)


def test_other_software_and_other_results_are_told(compare: Any) -> None:
    """A speed-up that changes results shows."""
    before = {"weights_sha256": "a", "first_loss": 2.30, "last_loss": 2.0}
    after = {"weights_sha256": "b", "first_loss": 2.31, "last_loss": 1.5}
    case = Case(task="train")
    records = rounds(case, STEADY, measurement=before)
    records += rounds(case, times(STEADY, 2), NEW, measurement=after, software_fingerprint="t")
    reason = only(compare(records, "latest~1", "latest", "--json"))["reason"]
    assert "initial weights differ; last_loss 2 against 1.5; software differs" in reason
    assert "first_loss" not in reason


def test_other_seeds_may_have_other_weights(compare: Any) -> None:
    """No remark where a difference is expected."""
    records = rounds(FP32, STEADY, measurement={"weights_sha256": "a"})
    records += rounds(Case(seed=7), STEADY, measurement={"weights_sha256": "b"})
    assert only(compare(records, "seed=42", "seed=7", "--json"))["reason"] == (
        "within ± 2 % in 3 rounds"
    )


@pytest.mark.parametrize(
    ("factor", "code"), [(0.95, 1), (0.969, 1), (0.971, 0), (1.05, 0), (1.0, 0)]
)
def test_exit_1_where_b_is_slower_by_the_limit(compare: Any, factor: float, code: int) -> None:
    """And only with --fail-if-slower."""
    records = rounds(FP32, STEADY) + rounds(INT8, times(STEADY, factor))
    assert compare(records, *SIDES).code == 0
    done = compare(records, *SIDES, "--fail-if-slower", "3%")
    assert (done.code, done.err) == (code, "")


def test_what_could_not_be_judged_does_not_fail_but_is_said(compare: Any) -> None:
    """Half as fast in two rounds: exit 0 and a sentence."""
    records = rounds(FP32, STEADY[:2]) + rounds(INT8, times(STEADY, 0.5))
    done = compare(records, *SIDES, "--fail-if-slower", "3%")
    assert done.code == 0
    assert done.err == "--fail-if-slower could not judge 1 of 1 cases.\n"


@pytest.mark.parametrize(
    ("selector", "sentence"),
    [
        ("run:2026", f"run:2026 fits 2 runs: {NEW}, {OLD}; give more."),
        ("run:x", f"There is no run 'x'; the runs are: {NEW}, {OLD}."),
        ("latest~2", f"There is no latest~2; the runs are: {NEW}, {OLD}."),
        ("2026-01-03", "No run began on 2026-01-03 (UTC)"),
        ("2026-02-30", "There is no day 2026-02-30"),
        ("precision=int9", "has precision=int9; there are: fp32, int8."),
        ("latest,precision=int8", "has precision=int8; there are: fp32."),
    ],
)
def test_a_selector_that_fits_nothing_says_what_there_is(
    compare: Any, selector: str, sentence: str
) -> None:
    """On either side: one sentence, exit 2."""
    records = rounds(FP32, STEADY) + rounds(INT8, STEADY) + rounds(FP32, STEADY, NEW)
    for sides in ((selector, "latest"), ("latest", selector)):
        done = compare(records, *sides)
        assert (done.code, done.out) == (2, "")
        assert sentence in done.err


def test_no_records_is_exit_3(bench: Bench) -> None:
    """As for the report."""
    done = bench("compare", "latest~1", "latest")
    assert done.code == 3
    assert "measure first: bench run" in done.err


def test_the_newest_run_of_a_day_is_meant(compare: Any) -> None:
    """Two runs began on the first day; a run that goes on past midnight belongs to its start."""
    second = "20260101T230000Z-cccccc"
    records = rounds(FP32, STEADY) + rounds(FP32, times(STEADY, 2), second, number=1380)
    records.append(
        record(FP32, 200.0, round=4, run_id=second, started_at=START + timedelta(hours=25))
    )
    found = only(compare(records, f"run:{OLD}", "2026-01-01", "--json"))
    assert found["b"]["run_id"] == second


def test_a_whole_id_is_meant_before_a_longer_one(compare: Any) -> None:
    """An id may begin another."""
    records = rounds(FP32, STEADY) + rounds(FP32, times(STEADY, 2), f"{OLD}-2")
    found = only(compare(records, f"run:{OLD}", "latest", "--json"))
    assert (found["a"]["run_id"], found["b"]["run_id"]) == (OLD, f"{OLD}-2")


def test_the_aa_study_compares_odd_rounds_with_even_ones(tmp_path: Path) -> None:
    """The n-th odd round with the n-th even one, the same case on both sides."""
    study = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "aa_study.py"))["study"]
    write(tmp_path, *rounds(FP32, (100.0, 110.0, 50.0, 55.0, 200.0, 220.0)))
    (found,) = study(store.read(tmp_path).frame, OLD)
    assert (found.verdict, found.rounds) == ("faster", 3)
    assert (found.ratio_low, found.ratio_high) == pytest.approx((1.1, 1.1))
