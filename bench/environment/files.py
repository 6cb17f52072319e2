"""Small files of /proc and /sys."""

from __future__ import annotations

from pathlib import Path


def read(path: str) -> str | None:
    """What a file holds, without white space around it; None where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
