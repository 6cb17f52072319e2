"""What on this machine makes numbers noisy, as sentences. Reads only; imports no torch."""

from __future__ import annotations

import psutil

from bench.environment import host

BUSY_SHARE = 0.05  # of the cores; less than this disturbs less than the spread between processes


def findings() -> list[str]:
    """Every sentence that holds here."""
    checks = (load, governor, shared_cores, smt, swap, hypervisor)
    return [sentence for check in checks if (sentence := check()) is not None]


def load() -> str | None:
    """Other processes computing right now, over half a second."""
    busy = psutil.cpu_percent(interval=0.5) / 100 * (host.cores_logical() or 1)
    if busy <= BUSY_SHARE * (host.cores_logical() or 1):
        return None
    return (
        f"other processes are using {busy:.1f} cores now; stop them, or expect contaminated samples"
    )


def governor() -> str | None:
    """A frequency governor that follows the load."""
    name = host.governor()
    if name in (None, "performance"):
        return None
    return f"the frequency governor is {name}; `cpupower frequency-set -g performance` steadies it"


def shared_cores() -> str | None:
    """No cores set apart for us."""
    if host.isolated_cores():
        return None
    return (
        "no cores are set apart (isolcpus or an exclusive cpuset); other processes may share ours"
    )


def smt() -> str | None:
    """Two threads on a core compete."""
    if not host.smt():
        return None
    return "SMT is on; two busy threads of one core slow each other"


def swap() -> str | None:
    """Swapped memory makes stalls."""
    used = host.swap_used_bytes()
    if used < 2**20:
        return None
    return f"{used / 2**20:.0f} MiB are in swap; memory is short, and stalls will show as latency"


def hypervisor() -> str | None:
    """Neighbours on the host."""
    if not host.virtualised():
        return None
    kind = f" ({name})" if (name := host.hypervisor()) else ""
    return (
        f"this is a virtual machine{kind} with {host.cores_logical()} cores; "
        "its host's other guests add noise"
    )
