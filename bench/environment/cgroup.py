"""Control groups, v2 and v1: what they allow us, and whether they are a container's."""

from __future__ import annotations

import os
from pathlib import PurePosixPath

import psutil

from bench.environment.files import read

# Parts of a control group's path that a container engine put there.
ENGINES = {
    "kubepods": "kubernetes",
    "/docker/": "docker",
    "/docker-": "docker",
    "/libpod": "podman",
    "/lxc": "lxc",
}
# Files that container engines leave inside, where the path is hidden by a namespace.
MARKS = {"/run/.containerenv": "podman", "/.dockerenv": "docker"}
SYSTEMD_MARK = "/run/systemd/container"  # holds the engine's name

# The kernel's own namespaces have fixed numbers (include/linux/proc_ns.h).
FIRST_NAMESPACES = {
    "ipc": "ipc:[4026531839]",
    "uts": "uts:[4026531838]",
    "pid": "pid:[4026531836]",
    "cgroup": "cgroup:[4026531835]",
}


def cpu_limit_cores() -> float | None:
    """Cores' worth of time our group and those above it allow; None for no limit."""
    limits = []
    for file in _files("cpu", "cpu.max", "cpu.cfs_quota_us"):
        quota, _, period = (read(file) or "").partition(" ")
        period = period or read(file.removesuffix("quota_us") + "period_us") or ""
        if quota.isdigit() and period.isdigit() and int(period):
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory_limit_bytes() -> int | None:
    """Memory our group and those above it allow; None for none, or more than the machine has."""
    texts = [read(file) for file in _files("memory", "memory.max", "memory.limit_in_bytes")]
    limits = [int(text) for text in texts if text is not None and text.isdigit()]
    most = int(psutil.virtual_memory().total)
    return min((limit for limit in limits if limit < most), default=None)


def oom_kills() -> int | None:
    """How often the kernel's killer struck in our group."""
    for file in _files("memory", "memory.events", "memory.oom_control"):
        for line in (read(file) or "").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return None


def container() -> str | None:
    """The container engine and what shows it; `none` in the machine's own namespaces.

    None where nothing tells: some engines leave no mark, and a file in the root
    may be no more than the image's past, so the namespaces are asked before it.
    """
    path = read("/proc/self/cgroup") or ""
    for part, engine in ENGINES.items():
        if part in path:
            return f"{engine} (control group)"
    if all(_namespace(kind) == name for kind, name in FIRST_NAMESPACES.items()):
        return "none"
    for mark, engine in MARKS.items():
        if read(mark) is not None:
            return f"{engine} ({mark})"
    named = read(SYSTEMD_MARK)
    return f"{named} ({SYSTEMD_MARK})" if named else None


def _namespace(kind: str) -> str | None:
    try:
        return os.readlink(f"/proc/self/ns/{kind}")
    except OSError:
        return None


def _files(controller: str, v2: str, v1: str) -> list[str]:
    """Candidate paths of a control file: our own group's first, then those of the groups above."""
    files = []
    for line in (read("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root, name = (f"/sys/fs/cgroup/{controller}", v1) if controllers else ("/sys/fs/cgroup", v2)
        own = PurePosixPath(path)
        files += [f"{root}{str(group).rstrip('/')}/{name}" for group in (own, *own.parents)]
    return files
