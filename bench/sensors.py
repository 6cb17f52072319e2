"""Host readings around the samples. No thread: they are taken between samples."""

from __future__ import annotations

from pathlib import Path

import psutil


def reset_peak_host_memory() -> None:
    """Start a new high-water mark of this process (proc(5), clear_refs 5)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_host_memory_bytes() -> int | None:
    """High-water marks of this process and its living children, added up."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    marks = [m for m in (_high_water(p.pid) for p in processes) if m is not None]
    return sum(marks) or None


def _high_water(pid: int) -> int | None:
    try:
        lines = (
            Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
        )
    except OSError:
        return None
    return next((int(v.split()[1]) * 1024 for v in lines if v.startswith("VmHWM:")), None)
