"""The sentinel: every run measures the same fixed work first and last."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from bench import sentinel
from bench.devices import open_device
from bench.environment import host
from bench.messages import Order
from bench.observe import host_peaks, observe
from tests import records
from tests.conftest import TINY, Bench


@pytest.mark.slow
def test_every_run_measures_the_sentinel_first_and_last(bench: Bench, tmp_path: Path) -> None:
    """Its records are stored like any other; the table and the exit code leave them out.

    OpenMP binds the thread that loads it: that must not look like a smaller machine.
    """
    done = bench("run", *TINY, "--json", env={"OMP_PROC_BIND": "true"})
    assert done.code == 0, done.err
    first, case, last = done.records
    assert case["cpu_cores_usable"] == host.cores_usable()
    assert (first["purpose"], first["round"]) == ("sentinel", 1)
    assert case["purpose"] == "grid"
    assert (last["purpose"], last["round"]) == ("sentinel", 2)
    assert first["status"] == last["status"] == "measured"
    assert len(list(tmp_path.rglob("*.parquet"))) == 3
    page = bench("report")
    assert page.code == 0
    assert "sentinel/" not in (tmp_path / "reports/latest/index.html").read_text()


@pytest.mark.slow
def test_where_nothing_can_run_there_is_no_sentinel(bench: Bench) -> None:
    """Exit 3: nothing could be measured."""
    done = bench("run", *TINY, "--device", "cuda:9", "--json")
    assert done.code == 3
    assert [r["purpose"] for r in done.records] == ["grid"]


@pytest.mark.parametrize(("last", "said"), [(90.0, "10 % slower"), (106.0, "6 % faster")])
def test_a_machine_that_changed_is_said_to_have(
    bench: Bench, tmp_path: Path, last: float, said: str
) -> None:
    """More than 5 % between the two."""
    write_run(tmp_path, last)
    assert bench("report").code == 0
    page = (tmp_path / "reports/latest/index.html").read_text()
    assert "The machine changed during this run" in page
    assert said in page


def test_a_machine_that_stayed_is_not_mentioned(bench: Bench, tmp_path: Path) -> None:
    """5 % are not more than 5 %, and what intervals that overlap say may be noise."""
    write_run(tmp_path, 95.0)
    write_run(tmp_path, 93.0, run_id="20260102T000000Z-bbbbbb", spread=0.05)
    assert bench("report").code == 0
    assert "machine changed" not in (tmp_path / "reports/latest/index.html").read_text()


def test_a_sentinel_that_failed_is_said_to_have(bench: Bench, tmp_path: Path) -> None:
    """It guards every run; its loss is no secret."""
    write_run(tmp_path, None)
    assert bench("report").code == 0
    page = (tmp_path / "reports/latest/index.html").read_text()
    assert "its sentinel was not measured: for a reason" in page


def test_only_sentinels_are_nothing_to_compare(bench: Bench, tmp_path: Path) -> None:
    """A run that was interrupted in its first case."""
    guard = records.record(purpose="sentinel", case=sentinel.CASE)
    records.write(tmp_path / "reports/data", guard)
    for command in (["report"], ["compare", "latest", "latest~1"]):
        done = bench(*command)
        assert done.code == 3
        assert "No record of a case" in done.err


def write_run(folder: Path, last: float | None, spread: float = 0.01, **more: str) -> None:
    """A run of one case between two sentinels; without `last` the second one failed."""
    values = [100.0, last or 0.0]
    intervals = [
        {"throughput_ci_low": v * (1 - spread), "throughput_ci_high": v * (1 + spread)}
        for v in values
    ]
    start, end = (
        {"purpose": "sentinel", "case": sentinel.CASE, "measurement": found, **more}
        for found in intervals
    )
    if last is None:
        end = {**end, "status": "failed", "measurement": None}
    data = folder / "reports/data" / (more or {"run_id": "a"})["run_id"]
    records.write(
        data,
        records.record(rate=100.0, number=0, **start),
        records.record(number=1, **more),
        records.record(rate=last, number=2, round=2, **end),
    )


def test_the_hosts_peak_is_that_of_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentinel itself runs on one thread; the product that the CPU is held against does not."""
    threads: list[int] = []

    def seen(_: object) -> float:
        threads.append(torch.get_num_threads())
        return 1.0

    before = torch.get_num_threads()
    monkeypatch.setattr(sentinel, "peak_tflops", seen)
    order = Order(
        case=sentinel.CASE,
        purpose=sentinel.PURPOSE,
        budget=sentinel.BUDGET,
        started=time.monotonic(),
        log="",
        root=os.getpid(),
        cache="",
        scratch="",
    )
    try:
        torch.set_num_threads(2)
        measurement, _ = observe(order, lambda _: None)
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {min(2, host.cores_usable())}
    assert measurement.gemm_fp32_tflops in (1.0, None)  # None: others were busy each time


@pytest.mark.parametrize(
    ("marks", "known"), [([None], True), (["foreign", None], True), (["steal"] * 3, False)]
)
def test_a_disturbed_peak_is_no_peak(
    marks: list[str | None], known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again, and null if others were there every time."""

    class Told:
        """A watch that says what it is told to."""

        def __init__(self) -> None:
            self.left = list(marks)

        def restart(self) -> None:
            """A window begins."""

        def since_last(self) -> str | None:
            return self.left.pop(0)

    monkeypatch.setattr(sentinel, "peak_tflops", lambda _: 1.0)
    before = torch.get_num_threads()
    found = host_peaks(open_device("cpu"), before, Told())  # type: ignore[arg-type]
    assert ("gemm_fp32_tflops" in found) is known
