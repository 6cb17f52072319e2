"""Host readings around the samples. No thread: they are taken between samples."""

from __future__ import annotations

import os
from pathlib import Path

import psutil


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
    try:
        lines = (
            Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
        )
    except OSError:
        return None
    return next((int(v.split()[1]) * 1024 for v in lines if v.startswith("VmHWM:")), None)
