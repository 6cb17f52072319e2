"""The machine: one function a fact, None where it cannot be known."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

import psutil

# Instruction sets that decide how fast a ResNet runs, as /proc/cpuinfo names them
# (x86 flags and Arm features).
FEATURES = (
    "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni",
    "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16",
    "asimd", "asimddp", "fphp", "bf16", "i8mm", "sve", "sve2",
)  # fmt: skip


@cache
def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = text.split("\n\n", 1)[0].splitlines()
    pairs = (line.partition(":")[::2] for line in lines)
    return {key.strip(): value.strip() for key, value in pairs}


def cpu_model() -> str | None:
    """The processor's name."""
    info = _cpuinfo()
    return info.get("model name") or info.get("Processor") or platform.processor() or None


def cpu_features() -> list[str] | None:
    """Which of FEATURES this processor has."""
    info = _cpuinfo()
    flags = info.get("flags") or info.get("Features")
    return None if flags is None else [f for f in FEATURES if f in set(flags.split())]


def cores_physical() -> int | None:
    """Physical cores of the machine."""
    return psutil.cpu_count(logical=False)


def cores_logical() -> int | None:
    """Logical cores of the machine."""
    return psutil.cpu_count(logical=True)


def cores_usable() -> int:
    """Cores this process may use: affinity, and the quota of its cgroup rounded down."""
    cores = len(os.sched_getaffinity(0))
    quota = _cpu_quota()
    return cores if quota is None else max(1, min(cores, int(quota)))


def _cpu_quota() -> float | None:
    """Cores' worth of time our cgroup allows (v2, then v1); None for no limit."""
    for file in _own_cgroup_files("cpu", "cpu.max", "cpu.cfs_quota_us"):
        quota, _, period = (_read(file) or "").partition(" ")
        period = period or _read(file.replace("quota", "period")) or ""
        if quota.isdigit() and period.isdigit():
            return int(quota) / int(period)
    return None


def memory_bytes() -> int:
    """Memory of the machine."""
    return int(psutil.virtual_memory().total)


def memory_limit_bytes() -> int | None:
    """Memory limit of our cgroup; None for none."""
    for file in _own_cgroup_files("memory", "memory.max", "memory.limit_in_bytes"):
        text = _read(file)
        if text is not None and text.isdigit() and int(text) < memory_bytes():
            return int(text)
    return None


def oom_kills() -> int | None:
    """How often the kernel's killer struck in our cgroup (v2, then v1)."""
    for file in _own_cgroup_files("memory", "memory.events", "memory.oom_control"):
        for line in (_read(file) or "").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return None


def _own_cgroup_files(controller: str, v2: str, v1: str) -> list[str]:
    """Candidate paths of a control file, this process's own cgroup first."""
    files = []
    for line in (_read("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            files.append(f"/sys/fs/cgroup{path.rstrip('/')}/{v2}")
        elif controller in controllers.split(","):
            root = f"/sys/fs/cgroup/{controller}"
            files += [f"{root}{path.rstrip('/')}/{v1}", f"{root}/{v1}"]
    return [*files, f"/sys/fs/cgroup/{v2}"]


def cpu_governor() -> str | None:
    """Frequency governor of the first core."""
    return _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def kernel() -> str:
    """Kernel release."""
    return platform.release()


def virtualised() -> bool | None:
    """Whether a hypervisor is below us."""
    flags = _cpuinfo().get("flags")
    return None if flags is None else "hypervisor" in flags.split()


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None
