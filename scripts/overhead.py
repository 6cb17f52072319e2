"""What the harness costs: its timing loop, its forked workers, its start.

Every comparison alternates its two arms within one stretch of time, because a
single time on a shared machine means nothing. Each loop is judged by ratios of sums of ten
samples' seconds, and their geometric mean with its 95 % t interval: the throughput is a mean
too, and what the harness costs it may cost every fifth sample, which a median or a trimmed
mean would not see. Windows that the harness itself marks as disturbed are left out, as it does,
with the bare samples in them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing.forkserver
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
import numpy as np
from scipy import stats

from bench import processes
from bench.devices import Delegate, Device
from bench.measure import Step
from bench.schema import BUDGETS, Case

WITHIN, ENGINE = 0.005, 0.01
ENGINES = ("eager", "compile", "onnxruntime", "openvino")
WAYS = [f"{e}:{p}" for e, p in itertools.product(ENGINES, ("fp32", "int8"))]
SHOWN, OFF, UNDECIDED = 0, 1, 3  # exit codes of --engines
TURNS = 60  # samples of each worker of a pair: fewer are noisier than the workers differ
FEWEST = 10
STEPS_APART = 2  # the loop times its first and a trial step before its samples
BLOCK = 10


def verdict(name: str, ratios: list[float], within: float = WITHIN) -> int:
    """Print a ratio with its interval, and whether it is shown to be 1; SHOWN, OFF or UNDECIDED."""
    ratio, low, high = estimate(ratios)
    code = standing(low, high, within)
    print(
        f"{name}: {ratio:.4f} [{low:.4f}, {high:.4f}] "
        f"{len(ratios)} ratios: {'shown' if code == SHOWN else 'not shown'} within "
        f"{1 - within:g}-{1 + within:g}",
        flush=True,
    )
    return code


def estimate(ratios: list[float]) -> tuple[float, float, float]:
    """Geometric mean and its 95 % interval; of too few that is NaN."""
    if len(ratios) < FEWEST:
        return (float(np.exp(np.mean(np.log(ratios)))) if ratios else math.nan), math.nan, math.nan
    found = stats.ttest_1samp(np.log(ratios), 0.0)
    low, high = found.confidence_interval(0.95)
    return math.sqrt(math.exp(low + high)), math.exp(low), math.exp(high)


def standing(low: float, high: float, within: float) -> int:
    """Whether an interval shows that a ratio is 1 but for `within`, shows the contrary, or neither.

    Too few ratios have an interval of NaN, which decides nothing.
    """
    if low >= 1 - within and high <= 1 + within:
        return SHOWN
    return OFF if high < 1 - within or low > 1 + within else UNDECIDED


class Alternating(Delegate):
    """A device on which a bare loop takes a sample of as many steps after each of the loop's own.

    The loop synchronises before it reads its clock. After the second of these the bare loop has
    its turn, for which `clock` stands still; so each of the loop's samples follows the loop's
    own bookkeeping and lies between two bare ones, which warm up with one step each.
    """

    def __init__(self, device: Device, step: Step, by_hand: Step) -> None:
        super().__init__(device)
        self.device = device
        self.step = step
        self.by_hand = by_hand
        self.steps = 0  # of the loop's latest sample
        self.calls = 0  # of synchronize: two a sample
        self.away_s = 0.0
        self.bare_s: list[float] = []  # one after each sample of the loop
        self.reset_peak = device.reset_peak

    def counted(self) -> None:
        """The step given to the loop."""
        self.step()
        self.steps += 1

    def clock(self) -> float:
        return time.perf_counter() - self.away_s

    def synchronize(self) -> None:
        self.device.synchronize()
        self.calls += 1
        if self.calls % 2:
            self.steps = 0
        elif self.calls > STEPS_APART * 2:
            began = time.perf_counter()
            self.bare_s.append(self.bare(self.steps))
            self.away_s += time.perf_counter() - began

    def bare(self, count: int) -> float:
        """The hand-written loop that ours is compared with: its seconds."""
        self.by_hand()
        self.device.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            self.by_hand()
        self.device.synchronize()
        return time.perf_counter() - start


def straight(forward: Any, case: Case) -> Step:
    """One pass as it is written without the harness: of the same session, on the same memory."""
    import torch

    if hasattr(forward, "session"):
        return lambda: forward.session.run_with_iobinding(forward.binding)
    if hasattr(forward, "request"):
        infer: Step = forward.request.infer
        return infer
    ways = (getattr(forward, name, None) for name in ("compiled", "run", "model"))
    model = next(way for way in ways if way is not None)
    images = torch.randn(case.batch_size, 3, case.image_size, case.image_size)
    images = images.to(memory_format=torch.channels_last)

    def step() -> None:
        # As each engine does it: compiled code was made under no_grad.
        with torch.no_grad() if hasattr(forward, "compiled") else torch.inference_mode():
            model(images)

    return step


def loop_against_bare(case: Case, seconds: float) -> list[float]:
    """Seconds of a sample of the harness's loop ÷ of a bare loop, alternating in this process."""
    from bench import cache, workload
    from bench.energy import Spent
    from bench.measure import Loop
    from bench.sensors import HostWatch
    from bench.watch import Watch

    work = workload.compose(case, cache.passing())
    host = HostWatch(os.getpid())
    watch = Watch(host, work.device, Spent(work.device.meter()))
    by_hand = work.step if work.forward is None else straight(work.forward, case)
    # As long as a case of the usual budget, again and again: looking for the end of warm-up and
    # for enough samples costs more the more samples there are.
    budget = msgspec.structs.replace(BUDGETS["quick"], target_ci=0.0)
    ratios, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        device = Alternating(work.device, work.step, by_hand)
        loop = Loop(device, budget, clock=device.clock, watch=watch)
        taken = loop.throughput(device.counted)
        ratios += by_block(taken.samples_s, device.bare_s, taken.kept)
    return ratios


def by_block(own: list[float], bare: list[float], kept: Sequence[int]) -> list[float]:
    """Of BLOCK samples each: their seconds ÷ those of the bare ones, the mean of both sides' each.

    kept: places of the undisturbed samples. Sample i lies between the bare ones i - 1 and i, and
    each bare one in the window of the sample before it: of a disturbed window none counts, lest
    a disturbance fall on bare ones alone. Neighbours' noise lasts for some samples, so samples
    are no independent pairs; blocks are, nearly.
    """
    there = set(kept)
    both = [i for i in kept if i - 1 in there]
    blocks = [both[i : i + BLOCK] for i in range(0, len(both) - BLOCK + 1, BLOCK)]
    return [
        sum(own[i] for i in block) / sum((bare[i - 1] + bare[i]) / 2 for i in block)
        for block in blocks
    ]


def forked_against_fresh(pairs: int) -> list[float]:
    """Seconds of a sample in a forked worker ÷ in a fresh one; both alive, taking turns.

    Forks of one server share its memory layout, so every pair has a server of its own.
    The second worker starts when the first is warm: one that warms up while the other
    imports torch is a different process from the start.
    """
    case = Case(model="resnet18", image_size=32, threads=1)
    payload = msgspec.json.encode(case)
    ratios = []
    for pair in range(pairs):
        multiprocessing.forkserver._forkserver._stop()
        arms = {}
        for fresh in (False, True) if pair % 2 else (True, False):
            arms[fresh] = processes.Child("overhead_child", payload, fresh=fresh)
            arms[fresh].connection.recv_bytes()  # warm
        taken: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(TURNS):
            for fresh in (False, True) if turn % 2 else (True, False):
                arms[fresh].connection.send_bytes(b"go")
                taken[fresh].append(json.loads(arms[fresh].connection.recv_bytes()))
        for arm in arms.values():
            arm.kill()
        turns = zip(taken[False], taken[True], strict=True)
        ratios.append(statistics.median(forked / new for forked, new in turns))
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
    records = [r for r in records if r["purpose"] == "grid"]
    setups = [r["setup_s"] for r in records[1:]]
    began = datetime.fromisoformat(records[0]["started_at"]).timestamp() + records[0]["setup_s"]
    print(
        f"from the command to the first step of the first case: {began - start:.2f} s (target 5 s)"
    )
    print(
        "everything before the first step, 32 px ResNet-18, second case on: "
        f"median {statistics.median(setups):.3f} s, most {max(setups):.3f} s (target 0.5 s)"
    )


def engines_against_bare(ways: list[str], seconds: float) -> int:
    """Each way, ENGINE:PRECISION: OFF where one is shown to be, UNDECIDED where one could be."""
    codes = {}
    for way in ways:
        engine, precision = way.split(":")
        case = Case(engine=engine, precision=precision, image_size=64, batch_size=2)
        # Frozen and quantised graphs are per process: each has its own.
        ratios = in_a_process(case, seconds)
        codes[way] = verdict(f"{engine} {precision} ÷ bare loop, ResNet-50 64 px", ratios, ENGINE)
    undecided = [way for way, code in codes.items() if code == UNDECIDED]
    if undecided:
        print(f"Undecided, more --seconds would tell: {', '.join(undecided)}.")
    if OFF in codes.values():
        return OFF
    return UNDECIDED if undecided else SHOWN


def in_a_process(case: Case, seconds: float) -> list[float]:
    """loop_against_bare in a fresh interpreter."""
    code = (
        "import json, msgspec, overhead; from bench.schema import Case; "
        f"case = msgspec.json.decode({msgspec.json.encode(case)!r}, type=Case); "
        f"print(json.dumps(overhead.loop_against_bare(case, {seconds})))"
    )
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=180, help="of each loop comparison")
    parser.add_argument(
        "--pairs", type=int, default=40, help="of forked and fresh workers; 0: none"
    )
    parser.add_argument(
        "--engines",
        action="store_true",
        help="only each engine against its runtime's bare loop: exit 0 where each is shown to be "
        "as fast within 1 %%, 1 where one is not, 3 where one is undecided",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=WAYS,
        metavar="ENGINE:PRECISION",
        help="as --engines, for this one; may be repeated",
    )
    options = parser.parse_args()
    if options.engines or options.only:
        sys.exit(engines_against_bare(options.only or WAYS, options.seconds))
    print(f"bench --help: median {help_seconds():.3f} s (target 0.2 s)", flush=True)
    one_more_case()
    if options.pairs:
        # First, while this process has loaded no torch: as the parent of a real run.
        verdict("forked ÷ fresh worker, ResNet-18 32 px", forked_against_fresh(options.pairs))
    for task in ("infer", "train"):
        # Small images make the steps short, which is harder for the harness.
        case = Case(task=task, image_size=64, batch_size=2)
        ratios = loop_against_bare(case, options.seconds)
        verdict(f"harness ÷ bare loop, ResNet-50 64 px {task}", ratios)


if __name__ == "__main__":
    main()
