"""A foreign busy loop on all our cores for a third of the time: does the throughput stay?

Speed on a shared machine wanders by more than the 2 % in question, so quiet and
disturbed time alternate within one measurement: foreign processes spin during every
third window. The other windows, known without looking at any mark, say what the
throughput should be. Then loader workers of our own compute on all cores: nothing of
theirs may be marked as foreign.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from multiprocessing.synchronize import Event

import msgspec

import bench
from bench import cache, workload
from bench.measure import Loop, Step, Throughput
from bench.schema import BUDGETS, Case
from bench.sensors import HostWatch

CORES = len(bench.CORES)
CASE = Case(model="resnet18", image_size=64, batch_size=4)
LOADED = msgspec.structs.replace(CASE, task="train", loader_workers=CORES, classes=10)


def spin(on: Event) -> None:
    """Compute while `on` is set, sleep otherwise."""
    while on.wait():
        for _ in range(10_000):
            pass


class Disturber:
    """Watches as HostWatch does, and has foreigners run during every third window."""

    def __init__(self, step: Step, on: Event) -> None:
        self.host, self.on, self.step = HostWatch(os.getpid()), on, step
        self.steps = 0
        self.windows: list[tuple[int, bool]] = []  # steps at its end, whether it was quiet

    def counted(self) -> None:
        """The step given to the loop."""
        self.step()
        self.steps += 1

    def restart(self) -> None:
        """The first window begins."""
        self.host.restart()

    def since_last(self) -> str | None:
        """The mark of the window that ends; begins the next one."""
        self.windows.append((self.steps, not self.on.is_set()))
        mark = self.host.since_last()
        (self.on.set if len(self.windows) % 3 == 0 else self.on.clear)()
        time.sleep(0.02)  # until whoever spins has seen it
        return mark

    def was_quiet(self, taken: Throughput) -> list[bool]:
        """Of each sample. Two single steps come before the first one."""
        found: list[bool] = []
        for steps, quiet in self.windows:
            samples = (steps - 2) // taken.steps_per_sample
            found += [quiet] * (samples - len(found))
        return found


def disturbed(seconds: float, on: Event) -> None:
    """Kept samples against quiet ones. Runs in a process of its own, whose tree is all of ours."""
    work = workload.compose(CASE, cache.passing())
    watch = Disturber(work.step, on)
    taken = Loop(work.device, budget(seconds), watch=watch).throughput(watch.counted)
    on.clear()
    first = taken.warmup_samples
    samples, quiet = taken.samples_s[first:], watch.was_quiet(taken)[first:]
    reference = statistics.fmean(s for s, q in zip(samples, quiet, strict=True) if q)
    wrong = sum(q and bool(m) for q, m in zip(quiet, taken.marks[first:], strict=True))
    missed = sum(not q and not m for q, m in zip(quiet, taken.marks[first:], strict=True))
    print(
        f"{len(samples)} samples, {len(samples) - sum(quiet)} of them disturbed; "
        f"{taken.left_out} left out ({wrong} quiet ones among them, {missed} missed)\n"
        f"throughput ÷ that of the quiet samples: {reference / statistics.fmean(taken.kept_s):.4f}"
        f" (wanted 0.98-1.02); had nothing been left out: "
        f"{reference / statistics.fmean(samples):.4f}",
        flush=True,
    )
    sys.exit(not 0.98 <= reference / statistics.fmean(taken.kept_s) <= 1.02)


def loaded(seconds: float) -> None:
    """Loaders and training compete for the same cores."""
    work = workload.compose(LOADED, cache.passing())
    watch = HostWatch(os.getpid())
    taken = Loop(work.device, budget(seconds), watch=watch).throughput(work.step, work.cycle)
    print(
        f"{CORES} loader workers of our own: {taken.marks.count('foreign')} of {len(taken.marks)} "
        "samples marked as disturbed by foreign processes (wanted 0)",
        flush=True,
    )
    os._exit("foreign" in taken.marks)  # loaders need no goodbye


def budget(seconds: float) -> msgspec.Struct:
    return msgspec.structs.replace(
        BUDGETS["quick"], target_ci=1e-9, max_seconds=seconds, max_samples=10**6
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="of each measurement")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    on = context.Event()
    spinning = [context.Process(target=spin, args=(on,), daemon=True) for _ in range(CORES)]
    for process in spinning:
        process.start()
    kept = True
    for target, arguments in ((disturbed, (options.seconds, on)), (loaded, (options.seconds,))):
        child = context.Process(target=target, args=arguments)
        child.start()
        child.join()
        kept = kept and child.exitcode == 0
    for process in spinning:
        process.terminate()
    sys.exit(not kept)


if __name__ == "__main__":
    main()
