"""The machine: one function a fact, None where it cannot be known."""

from __future__ import annotations

import platform
import re
from functools import cache
from pathlib import Path

import psutil

import bench
from bench.environment import cgroup
from bench.environment.files import read

CPUFREQ = "/sys/devices/system/cpu/cpu0/cpufreq"

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
    text = read("/proc/cpuinfo") or ""
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
    cores = len(bench.CORES)
    limit = cgroup.cpu_limit_cores()
    return cores if limit is None else max(1, min(cores, int(limit)))


def sockets() -> int | None:
    """Processor packages of the machine."""
    files = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/physical_package_id")
    packages = {read(str(file)) for file in files} - {None, "-1"}  # -1: not told
    return len(packages) or None


def smt() -> bool | None:
    """Whether two threads share a core."""
    active = read("/sys/devices/system/cpu/smt/active")
    return None if active is None else active == "1"


def numa_nodes() -> int | None:
    """NUMA nodes of the machine."""
    return len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or None


def isolated_cores() -> str | None:
    """Cores set apart from the scheduler, as a list of ranges; empty for none."""
    return read("/sys/devices/system/cpu/isolated")


def governor() -> str | None:
    """Frequency governor of the first core."""
    return read(f"{CPUFREQ}/scaling_governor")


def frequency_min_mhz() -> float | None:
    """The least its governor may choose."""
    return _mhz("scaling_min_freq")


def frequency_max_mhz() -> float | None:
    """The most its governor may choose."""
    return _mhz("scaling_max_freq")


def frequency_mhz() -> float | None:
    """What it runs at now."""
    now = _mhz("scaling_cur_freq")
    told = _cpuinfo().get("cpu MHz")  # without frequency scaling, as in most virtual machines
    return now if now is not None or told is None else float(told)


def _mhz(file: str) -> float | None:
    """A file of cpufreq, which counts in kHz."""
    text = read(f"{CPUFREQ}/{file}")
    return int(text) / 1000 if text is not None and text.isdigit() else None


def memory_bytes() -> int:
    """Memory of the machine."""
    return int(psutil.virtual_memory().total)


def memory_available_bytes() -> int:
    """Memory that can be had now without swapping."""
    return int(psutil.virtual_memory().available)


def swap_bytes() -> int:
    """Swap of the machine."""
    return int(psutil.swap_memory().total)


def swap_used_bytes() -> int:
    """How much of it is in use now."""
    return int(psutil.swap_memory().used)


def huge_pages() -> str | None:
    """Setting of transparent huge pages: the word in brackets."""
    text = read("/sys/kernel/mm/transparent_hugepage/enabled") or ""
    found = re.search(r"\[(\w+)\]", text)
    return found[1] if found else None


def kernel() -> str:
    """Kernel release."""
    return platform.release()


def virtualised() -> bool | None:
    """Whether a hypervisor is below us."""
    flags = _cpuinfo().get("flags")
    return None if flags is None else "hypervisor" in flags.split()


def hypervisor() -> str | None:
    """What the hypervisor calls itself; on bare metal the firmware names the board instead."""
    if not virtualised():
        return None
    names = [read(f"/sys/class/dmi/id/{name}") for name in ("sys_vendor", "product_name")]
    return read("/sys/hypervisor/type") or " ".join(filter(None, names)) or None
