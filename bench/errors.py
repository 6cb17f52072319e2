"""The few exceptions this package raises on purpose.

BenchError            a sentence for the person at the keyboard
├── WrongUse          the command line, a plan or a path cannot be used   (exit 2)
├── NothingWorks      torch itself cannot be used                         (exit 3)
├── NothingToReport   the results folder holds no usable record           (exit 3)
└── CannotStore       a record could not be written, e.g. a full disk     (exit 4)
Unproven              a case ran but is not what it claims; becomes `failed`
DeviceLost            the device is gone; becomes `failed`
Refused               a case cannot run here; becomes a `skipped` record
Untold                an outlet did not take a night's judgement; becomes a sentence
"""

from __future__ import annotations

from collections.abc import Iterable


class BenchError(Exception):
    """Ends the command with one sentence and `exit_code`."""

    exit_code = 1


class WrongUse(BenchError):
    """The command line, a plan or a path cannot be used."""

    exit_code = 2


class NothingWorks(BenchError):
    """torch itself cannot be used, so nothing can be measured."""

    exit_code = 3


class NothingToReport(BenchError):
    """The results folder holds no usable record."""

    exit_code = 3


class CannotStore(BenchError):
    """A finished record could not be written."""

    exit_code = 4

    def __init__(self, message: str, record: object = None) -> None:
        super().__init__(message)
        self.record = record  # what could not be written


class Unproven(Exception):
    """A case ran, but what ran is not what its precision claims."""


class DeviceLost(Exception):
    """The device went away while a case ran."""


class Refused(Exception):
    """A case cannot run here. The message is the reason stored in its record."""


class Untold(Exception):
    """An outlet did not take a night's judgement. The message says why, and holds no secret."""


def unknown(kind: str, name: str, known: Iterable[str]) -> WrongUse:
    """The error for a name that is not among `known`, with the closest match."""
    import difflib

    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}."
    return WrongUse(f"There is no {kind} {name!r}; {hint}")
