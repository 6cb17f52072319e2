"""Tells people what a night's judgement says, through every outlet there is."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

from bench import registry
from bench.errors import Untold
from bench.findings import Night


def everything(night: Night, earlier: list[Night], out: Path) -> list[str]:
    """Write the outlets' files below `out`, and deliver what is delivered elsewhere.

    `earlier` are other judged nights, in any order; a judgement of the same run among them is
    taken for an older one of this night. Returns a sentence for everything that could not be
    told: the judgement stands, whoever does not hear of it.
    """
    before = [n for n in earlier if n.run_id != night.run_id]
    untold = []
    for name in registry.names("outlets"):
        try:
            _tell(registry.load("outlets", name), night, before, out)
        except Untold as error:
            untold.append(f"The outlet {name} could not tell of the night: {error}.")
        except OSError as error:
            why = error.strerror or type(error).__name__
            untold.append(f"The outlet {name} could not tell of the night: {why}.")
        except Exception as error:  # one broken outlet does not silence the others
            # Its own text may hold an address that is a secret.
            kind = type(error).__name__
            untold.append(f"The outlet {name} could not tell of the night: it broke ({kind}).")
    return untold


def _tell(outlet: ModuleType, night: Night, earlier: list[Night], out: Path) -> None:
    text = outlet.render(night, earlier)
    if not text:
        return
    if hasattr(outlet, "FILE"):
        out.mkdir(parents=True, exist_ok=True)
        _replace(out / outlet.FILE, text)
    if hasattr(outlet, "deliver"):
        outlet.deliver(text)


def _replace(path: Path, text: str) -> None:
    """A reader finds the whole old file or the whole new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
