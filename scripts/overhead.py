"""What the harness costs: its timing loop, its forked workers, its start.

Every comparison alternates its two arms within one stretch of time, because a
single time on a shared machine means nothing. Ratios are medians of pairs with
the distribution-free 95 % interval of the median (order statistics,
scipy.stats.quantile_test).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime

import msgspec
from scipy import stats

from bench import processes
from bench.schema import BUDGETS, Case

LOW, HIGH = 0.995, 1.005
ARM_SAMPLES = 8  # samples of the harness's loop in one arm of a pair


def verdict(name: str, ratios: list[float]) -> None:
    """Print a ratio with its interval, and whether it is shown to be 1."""
    found = stats.quantile_test(ratios, q=1, p=0.5).confidence_interval(0.95)
    shown = found.low >= LOW and found.high <= HIGH
    print(
        f"{name}: {statistics.median(ratios):.4f} [{found.low:.4f}, {found.high:.4f}] "
        f"{len(ratios)} pairs: {'shown' if shown else 'not shown'} within {LOW}-{HIGH}",
        flush=True,
    )


def loop_against_bare(case: Case, seconds: float) -> list[float]:
    """Seconds a step in the harness's loop ÷ in a bare loop, alternating in this process."""
    from bench import workload
    from bench.measure import Loop

    work = workload.compose(case)
    budget = msgspec.structs.replace(
        BUDGETS["quick"], max_samples=ARM_SAMPLES, min_seconds=0.0, max_seconds=1e9
    )
    loop = Loop(work.device, budget)

    def harness() -> float:
        return loop.throughput(work.step).seconds_per_step()[0]

    first = loop.throughput(work.step)
    count = ARM_SAMPLES * first.steps_per_sample

    def bare() -> float:
        work.device.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            work.step()
        work.device.synchronize()
        return (time.perf_counter() - start) / count

    ratios = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(ratios) < 10:
        if len(ratios) % 2:
            own = harness()
            ratios.append(own / bare())
        else:
            plain = bare()
            ratios.append(harness() / plain)
    return ratios


def forked_against_fresh(pairs: int) -> list[float]:
    """Seconds of a sample in a forked worker ÷ in a fresh one; both alive, taking turns."""
    case = Case(model="resnet18", image_size=32, threads=1)
    payload = msgspec.json.encode(case)
    ratios = []
    for _ in range(pairs):
        arms = [processes.Child("overhead_child", payload, fresh=fresh) for fresh in (False, True)]
        for arm in arms:
            arm.connection.recv_bytes()  # warm
        taken: list[list[float]] = [[], []]
        for turn in range(40):
            for which in (0, 1) if turn % 2 else (1, 0):
                arms[which].connection.send_bytes(b"go")
                taken[which].append(json.loads(arms[which].connection.recv_bytes()))
        for arm in arms:
            arm.kill()
        ratios.append(statistics.median(taken[0]) / statistics.median(taken[1]))
    return ratios


def bench(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "bench", *arguments]


def help_seconds(times: int = 10) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run(bench("--help"), check=True, capture_output=True)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def one_more_case(cases: int = 8) -> None:
    """Set-up seconds of the second and later cases, and the start of the whole command."""
    sizes = ",".join(str(n) for n in range(1, cases + 1))
    tiny = ["--model", "resnet18", "--image-size", "32", "--max-seconds", "0.5"]
    with tempfile.TemporaryDirectory() as folder:
        command = bench("run", "--plan", "one", *tiny, "--batch-size", sizes, "--json")
        start = time.time()
        done = subprocess.run(
            [*command, "--results", folder], check=True, capture_output=True, text=True
        )
    records = [json.loads(line) for line in done.stdout.splitlines()]
    setups = [r["setup_s"] for r in records[1:]]
    began = datetime.fromisoformat(records[0]["started_at"]).timestamp() + records[0]["setup_s"]
    print(
        f"from the command to the first step of the first case: {began - start:.2f} s (target 5 s)"
    )
    print(
        "everything before the first step, 32 px ResNet-18, second case on: "
        f"median {statistics.median(setups):.3f} s, most {max(setups):.3f} s (target 0.5 s)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=180, help="of each loop comparison")
    parser.add_argument("--pairs", type=int, default=40, help="of forked and fresh workers")
    options = parser.parse_args()
    print(f"bench --help: median {help_seconds():.3f} s (target 0.2 s)", flush=True)
    one_more_case()
    # First, while this process has loaded no torch: as the parent of a real run.
    verdict("forked ÷ fresh worker, ResNet-18 32 px", forked_against_fresh(options.pairs))
    for task in ("infer", "train"):
        # Small images make the steps short, which is harder for the harness.
        case = Case(task=task, image_size=64, batch_size=2)
        ratios = loop_against_bare(case, options.seconds)
        verdict(f"harness ÷ bare loop, ResNet-50 64 px {task}", ratios)


if __name__ == "__main__":
    main()
