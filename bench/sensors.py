"""Host readings around the samples. No thread: they are taken between samples.

Interference is what others take from us: processor seconds of processes outside
our own tree on the cores we may use, seconds the hypervisor gave to others (steal),
stalls for want of memory, major page faults. Our own loaders compete too, but they
are part of what is measured.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import time
from collections.abc import Collection
from pathlib import Path

import psutil
from msgspec import Struct

import bench

# A window counts as disturbed when others took more than this much of one core, however many
# there are: threads that share work wait for the slowest. Less is what a kernel's and a system's
# own threads take now and then (seen: 0.11 of a core over half a second).
TOLERATED_CORES = 0.12
TOLERATED_STALL = 0.05  # share of the time in which nothing ran for want of memory
TOLERATED_FAULTS_PER_S = 20.0  # major faults of the worker; each waits for a disk
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def reset_peak_host_memory() -> bool:
    """Start a new high-water mark of this process (proc(5), clear_refs 5); False if it cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_host_memory_bytes() -> int | None:
    """High-water mark of this process, and what its living children hold beside it.

    A forked loader shares most pages with its worker; those count once.
    """
    own = _high_water(os.getpid())
    if own is None:
        return None
    children = psutil.Process().children(recursive=True)
    return own + sum(_private_high_water(child) for child in children)


def _private_high_water(process: psutil.Process) -> int:
    """A process's high-water mark less the pages it shares now."""
    try:
        memory = process.memory_full_info()
    except psutil.Error:
        return 0  # it has ended, and holds nothing
    return max(0, (_high_water(process.pid) or memory.rss) - (memory.rss - memory.uss))


def _high_water(pid: int) -> int | None:
    lines = _lines(f"/proc/{pid}/status")
    return next((int(v.split()[1]) * 1024 for v in lines if v.startswith("VmHWM:")), None)


class Reading(Struct, frozen=True):
    """Counters since boot or start, in seconds unless named otherwise; None where unreadable."""

    at_s: float
    busy_s: float | None  # processor seconds of all processes on our cores
    own_s: float | None  # those of our tree
    steal_s: float | None
    memory_stall_s: float | None
    major_faults: int
    involuntary_switches: int

    @staticmethod
    def take(root: int) -> Reading:
        """Read everything now. `root` is the process whose tree is ours."""
        busy_s, steal_s = _cores_s(bench.CORES)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return Reading(
            time.monotonic(),
            busy_s,
            _tree_s(root),
            steal_s,
            _memory_stall_s(),
            usage.ru_majflt,
            usage.ru_nivcsw,
        )


class Seen(Struct, frozen=True):
    """One window of the host. Seconds are summed over cores."""

    seconds: float
    foreign_s: float | None
    steal_s: float | None
    memory_stall_s: float | None
    major_faults: int
    involuntary_switches: int

    @staticmethod
    def between(before: Reading, after: Reading) -> Seen:
        """What happened between two readings."""
        busy, own = _gain(before.busy_s, after.busy_s), _gain(before.own_s, after.own_s)
        # Ticks of 10 ms on one side, nanoseconds on the other: a difference may be under 0.
        foreign = None if busy is None or own is None else max(0.0, busy - own)
        return Seen(
            after.at_s - before.at_s,
            foreign,
            _gain(before.steal_s, after.steal_s),
            _gain(before.memory_stall_s, after.memory_stall_s),
            after.major_faults - before.major_faults,
            after.involuntary_switches - before.involuntary_switches,
        )

    def disturbance(self, cores: int) -> str | None:
        """The first thing that took more than is tolerated, in a word; seen on so many cores."""
        # Counters go in ticks, a core's off by up to one at both ends, not all to one side.
        tolerated = TOLERATED_CORES * self.seconds + 2 * TICK_S * math.sqrt(cores)
        if (self.foreign_s or 0.0) > tolerated:
            return "foreign"
        if (self.steal_s or 0.0) > tolerated:
            return "steal"
        if (self.memory_stall_s or 0.0) > TOLERATED_STALL * self.seconds:
            return "memory_stall"
        if self.major_faults > TOLERATED_FAULTS_PER_S * self.seconds:
            return "major_faults"
        return None


class HostWatch:
    """Looks for interference between samples; `seen` keeps every window."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.seen: list[Seen] = []
        self.restart()

    def restart(self) -> None:
        """A window begins now."""
        self.last = Reading.take(self.root)

    def since_last(self) -> str | None:
        """What disturbed the window that ends now; None if nothing. The next one begins."""
        before = self.last
        self.restart()
        self.seen.append(Seen.between(before, self.last))
        return self.seen[-1].disturbance(len(bench.CORES))


def _gain(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else max(0.0, after - before)


def _cores_s(cores: Collection[int]) -> tuple[float | None, float | None]:
    """Processor seconds of processes on these cores, and stolen seconds (proc_stat(5))."""
    busy = steal = 0.0
    found = False
    for line in _lines("/proc/stat"):
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            ticks = [int(f) for f in fields]
            busy += sum(ticks[:3]) * TICK_S  # user, nice, system; interrupts are nobody's
            steal += (ticks[7] if len(ticks) > 7 else 0) * TICK_S
            found = True
    return (busy, steal) if found else (None, None)


def _tree_s(root: int) -> float | None:
    """Processor seconds of a process, its descendants, and those of them that have ended."""
    own = time.process_time()
    try:
        top = psutil.Process(root)
        others = [p for p in [top, *top.children(recursive=True)] if p.pid != os.getpid()]
    except psutil.Error:
        return None
    total = own + _ended_children_s()
    for process in others:
        with contextlib.suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])  # user, system, and of its ended children
    return total


def _ended_children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _memory_stall_s() -> float | None:
    """Seconds in which nothing ran for want of memory (PSI "full"; Documentation/accounting)."""
    for line in _lines("/proc/pressure/memory"):
        if line.startswith("full"):
            return int(line.rpartition("total=")[2]) / 1e6
    return None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
