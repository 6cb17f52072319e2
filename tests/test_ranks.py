"""Several devices, for real: torchrun, DistributedDataParallel, gloo on the CPU."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bench import analysis, words
from bench.schema import Case
from tests.conftest import TINY, Bench, heed_interrupts
from tests.records import record, write

pytestmark = pytest.mark.slow

TRAIN = [*TINY, "--device", "cpu", "--task", "train", "--batch-size", "2"]


def test_two_ranks_train_together(bench: Bench) -> None:
    """One record of the whole: twice the images a step, and one series of its own."""
    done = bench("run", *TRAIN, "--world-size", "1,2", "--json", timeout=200)
    assert done.code == 0, done.err
    one, two = done.cases
    assert (one["world_size"], one["global_batch_size"]) == (1, 2)
    assert (two["world_size"], two["batch_size"], two["global_batch_size"]) == (2, 2, 4)
    assert two["case_id"].endswith("world_size=2")
    assert two["status"] == "measured"
    assert two["throughput_images_per_s"] > 0
    assert two["weights_sha256"] == one["weights_sha256"]
    assert two["first_loss"] is not None
    assert two["steps_per_sample"] >= 1


def test_a_rank_that_dies_ends_all_and_is_one_record(tmp_path: Path) -> None:
    """Killed while it trains: a failed record, no rank left behind, the next case measured."""
    long = [*TRAIN, "--max-seconds", "60", "--world-size", "2,1", "--timeout", "100"]
    run = subprocess.Popen(
        [sys.executable, "-m", "bench", "run", *long, "--json", "--target-ci", "0.01%"],
        cwd=tmp_path,
        preexec_fn=heed_interrupts,  # noqa: PLW1509 - there are no threads
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    rank = wait_for_rank("1", tmp_path)
    time.sleep(2)
    rank.send_signal(signal.SIGKILL)
    assert run.stdout is not None
    lines = [run.stdout.readline() for _ in range(2)]  # the sentinel, the case of two ranks
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    record = json.loads(lines[1])
    assert (record["status"], record["reason"]) == ("failed", "rank 1 was ended by SIGKILL")
    assert not left_behind(tmp_path)


@pytest.mark.parametrize("end", ["timeout", "worker"])
def test_no_rank_outlives_its_case(tmp_path: Path, end: str) -> None:
    """Cut off while ranks still import torch, or by the death of the worker above torchrun."""
    seconds = "4" if end == "timeout" else "90"
    arguments = [*TRAIN, "--max-seconds", "60", "--world-size", "2", "--timeout", seconds]
    run = subprocess.Popen(
        [sys.executable, "-m", "bench", "run", *arguments, "--json"],
        cwd=tmp_path,
        preexec_fn=heed_interrupts,  # noqa: PLW1509 - there are no threads
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    if end == "worker":
        torchrun = wait_for_rank("1", tmp_path).parent()
        assert torchrun is not None
        worker = torchrun.parent()
        assert worker is not None
        worker.kill()
    out, _ = run.communicate(timeout=120)
    record = next(r for r in map(json.loads, out.splitlines()) if r["purpose"] == "grid")
    assert record["status"] == ("timeout" if end == "timeout" else "failed")
    time.sleep(1)
    assert not left_behind(tmp_path)


def left_behind(folder: Path, name: str = "torch") -> list[psutil.Process]:
    """Ranks and torchruns that work in this test's folder: others may run beside it."""
    return [p for p in psutil.process_iter() if name in command(p, folder)]


def wait_for_rank(number: str, folder: Path) -> psutil.Process:
    """The process of a rank, once it is there."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        for process in left_behind(folder, "bench.rank"):
            with contextlib.suppress(psutil.Error):
                if process.environ().get("RANK") == number:
                    return process
        time.sleep(0.2)
    raise AssertionError("no such rank came")


def command(process: psutil.Process, folder: Path) -> str:
    """What it was started as: `torchrun`, `torch bench.rank`, or nothing of ours."""
    try:
        line = " ".join(process.cmdline())
        here = Path(process.cwd()) == folder
    except psutil.Error:
        return ""
    if here and "bench.torchrun" in line:  # its options name the ranks' module
        return "torchrun"
    return "torch bench.rank" if here and "bench.rank" in line else ""


def test_more_ranks_than_devices_are_refused(bench: Bench) -> None:
    """A reason, no process; inference knows one device only."""
    many = str(os.cpu_count() or 1) + "00"
    done = bench("run", *TRAIN, "--world-size", many, "--json")
    assert done.code == 3
    assert "as many devices of one kind" in done.cases[0]["reason"]
    infer = bench("run", *TINY, "--device", "cpu", "--world-size", "2", "--dry-run")
    assert "skipped: several devices are for training" in infer.out


def test_scaling_is_against_as_many_times_one_device(tmp_path: Path) -> None:
    """Four devices with 3.6 times the images of one: 90 %."""
    from bench import store

    write(
        tmp_path,
        record(Case(task="train", batch_size=8), 100.0),
        record(Case(task="train", batch_size=8, world_size=4), 360.0),
        record(Case(task="train", batch_size=16, world_size=2), 180.0),
    )
    rows = analysis.newest(store.read(tmp_path).frame)
    found = {s.row["world_size"]: s.efficiency for s in analysis.scalings(rows)}
    four = found[4]
    assert four is not None
    assert four.value == pytest.approx(0.9)
    assert words.efficiency(four) == "90 % ± 3 %"
    assert found[2] is None  # nothing was measured that differs only in the number of devices
