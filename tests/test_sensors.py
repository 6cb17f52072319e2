"""What counts as interference: counters before and after a window, and real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from bench.sensors import HostWatch, Reading, Seen

START = Reading(10.0, 100.0, 90.0, 5.0, 1.0, 7, 100)


def after(**changed: float) -> Seen:
    """A window of half a second in which we used both of two cores, and what changed."""
    values = {"at_s": 10.5, "busy_s": 101.0, "own_s": 91.0, "steal_s": 5.0, **changed}
    names = ("memory_stall_s", "major_faults", "involuntary_switches")
    rest = {name: getattr(START, name) for name in names if name not in values}
    return Seen.between(START, Reading(**(values | rest)))  # type: ignore[arg-type]


def test_our_own_work_disturbs_nothing() -> None:
    """However busy all cores are."""
    seen = after()
    assert (seen.seconds, seen.foreign_s, seen.steal_s) == (0.5, 0.0, 0.0)
    assert seen.disturbance(2) is None


@pytest.mark.parametrize(
    ("changed", "mark"),
    [
        ({"busy_s": 101.08}, None),  # an eighth of one core, and a tick of each
        ({"busy_s": 101.1}, "foreign"),
        ({"busy_s": 101.5}, "foreign"),  # one spinning process, whatever the number of cores
        ({"steal_s": 5.1}, "steal"),
        ({"memory_stall_s": 1.1}, "memory_stall"),
        ({"major_faults": 30}, "major_faults"),
        ({"involuntary_switches": 10_000}, None),  # our own loaders cause them too
    ],
)
def test_what_others_take_is_named(changed: dict[str, float], mark: str | None) -> None:
    """More than an eighth of one core, or stalls."""
    assert after(**changed).disturbance(2) == mark


@pytest.mark.parametrize("cores", [2, 16, 64, 256])
def test_one_spinning_process_counts_on_any_machine(cores: int) -> None:
    """Threads that share work wait for the slowest."""
    assert after(busy_s=101.5).disturbance(cores) == "foreign"


def test_what_cannot_be_read_is_unknown_and_no_disturbance() -> None:
    """No /proc/stat, no PSI."""
    blind = Reading(10.0, None, None, None, None, 7, 100)
    seen = Seen.between(blind, Reading(10.5, None, None, None, None, 7, 100))
    assert (seen.foreign_s, seen.steal_s, seen.memory_stall_s) == (None, None, None)
    assert seen.disturbance(2) is None


SPIN = "import time; end = time.monotonic() + 60\nwhile time.monotonic() < end: pass"


@pytest.mark.serial
@pytest.mark.slow
@pytest.mark.parametrize("ours", [False, True])
def test_a_real_spinning_process_is_foreign_unless_it_is_ours(*, ours: bool) -> None:
    """Seen in the kernel's counters: a process outside our tree, and a child of ours."""
    # What is ours is the tree below `root`: this process, or one that has nothing to do with it.
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    spinning = subprocess.Popen([sys.executable, "-c", SPIN])
    try:
        root = os.getpid() if ours else stranger.pid
        watch = HostWatch(root)
        time.sleep(1.0)
        watch.since_last()
        foreign_s = watch.seen[0].foreign_s
        assert foreign_s is not None
        assert (foreign_s < 0.5) if ours else (foreign_s > 0.5)
    finally:
        spinning.kill()
        stranger.kill()
        spinning.wait()
        stranger.wait()
