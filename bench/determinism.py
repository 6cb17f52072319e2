"""Torch's deterministic algorithms: switch them on, and hear which operations have none."""

from __future__ import annotations

import os
import re
import warnings
from typing import Any

# at::Context::alertNotDeterministic, and the attention back ends.
NAMED = re.compile(r"(.+?) (?:does not have a|defaults to a non-)\s?deterministic")


def force() -> list[str]:
    """Deterministic algorithms where there are some, a warning where not; read back as NAME=value.

    The debug mode "warn" is `use_deterministic_algorithms(True, warn_only=True)` without its
    import of inductor, whose two seconds and memory would pass for a cost of determinism. The
    variable tells inductor, should an engine use it.
    """
    import torch

    os.environ["TORCHINDUCTOR_DETERMINISTIC"] = "1"
    torch.set_deterministic_debug_mode("warn")
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    return [
        f"deterministic_algorithms={torch.are_deterministic_algorithms_enabled()}",
        f"fill_uninitialized_memory={filled}",
    ]


def listen() -> set[str]:
    """The names of operations without a deterministic form, as torch meets them from now on.

    Listens for the rest of the process, which runs one case. Python's filter `default` lets
    each warning through once a place, so that a thousand steps do not leave a thousand lines.
    """
    names: set[str] = set()
    show = warnings.showwarning

    def hear(message: Warning | str, *more: Any, **named: Any) -> None:
        if found := NAMED.match(str(message)):
            names.add(found[1])
        show(message, *more, **named)

    warnings.filterwarnings("default", message=".*deterministic", category=UserWarning)
    warnings.showwarning = hear
    return names
