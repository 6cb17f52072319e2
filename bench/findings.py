"""What a night's judgement says: the nouns, and where they are kept.

Beside the records, in the folder `nightly/` of the results: one JSON file a judged night,
and `accepted.jsonl`, one line a change that somebody took for the new normal.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from bench.errors import WrongUse

FOLDER = "nightly"
ACCEPTED = "accepted.jsonl"

Colour = Literal["red", "yellow", "green"]
Kind = Literal["worse", "better", "missing", "differs", "flaky", "disturbed"]


class Finding(Struct, frozen=True, kw_only=True):
    """One series that moved, or one case without a result.

    colour: red wakes people, yellow is for who looks, green is good news. kind: `worse` or
    `better` in size and evidence, `missing` (no result where there was one), `differs` (a
    result outside its tolerance), `flaky` (failed, and worked when tried again), `disturbed`
    (others disturbed all that was measured of it for several nights).
    """

    colour: Colour
    kind: Kind
    case_id: str
    device_name: str | None = None
    machine_fingerprint: str | None = None
    metric: str | None = None  # column of the records; None: the case as a whole
    unit: str | None = None
    before: float | None = None  # level of the baseline, in `unit`
    now: float | None = None  # mean of the nights that decided, in `unit`
    change: float | None = None  # now ÷ before - 1
    change_low: float | None = None  # its 99 % interval
    change_high: float | None = None
    nights: int | None = None  # how many of the latest decided; 0: a creep against the anchor
    baseline_nights: int | None = None
    processes: int | None = None  # measured tonight, confirming ones included
    since_run: str | None = None  # first night of the change
    since: datetime | None = None
    reason: str  # a sentence
    causes: list[str] = []  # first suspects, the likeliest first
    command: str | None = None  # measures the case again


class Night(Struct, frozen=True, kw_only=True):
    """The judgement of one night: the findings, and how many series were judged."""

    run_id: str
    plan: str
    started_at: datetime
    judged_at: datetime
    colour: Colour
    findings: list[Finding] = []
    series: int = 0  # with a value tonight
    unchanged: int = 0
    inconclusive: int = 0  # too short a history, or disturbed
    against: str = "all nights since the last change"
    nights: int = 0  # of history
    confirmed: bool = False  # whether suspects were measured again
    died: int | None = None  # exit code of a run that did not come to its end
    notes: list[str] = []  # sentences on the night as a whole

    @property
    def judged(self) -> bool:
        """Whether anything could be judged."""
        return self.inconclusive < self.series

    @property
    def headline(self) -> str:
        """One line: colour, what was found, of which run."""
        reds = [f for f in self.findings if f.colour == "red"]
        what = f"{len(reds)} of {self.series} series" if reds else f"{self.series} series"
        if self.colour == "red" and not reds:
            said = "the night itself failed"
        elif reds:
            said = f"{what} regressed"
        elif not self.judged:
            said = "nothing could be judged"
        else:
            yellow = sum(f.colour == "yellow" for f in self.findings)
            said = "no regression" + (f", {yellow} to look at" if yellow else "")
        return f"Night {self.run_id} is {self.colour.upper()}: {said}"


class Accepted(Struct, frozen=True, kw_only=True):
    """A change taken for the new normal, from `run_id` on."""

    case_id: str
    run_id: str
    reason: str
    who: str
    when: datetime


def save(results: Path, night: Night) -> Path:
    """Keep a judgement; judging a night again replaces it. Returns its file. Raises WrongUse."""
    path = results / FOLDER / f"{night.run_id}.json"
    partial = path.with_suffix(f".partial-{os.getpid()}")
    with _kept("The judgement", path.parent):
        try:
            partial.write_bytes(msgspec.json.format(msgspec.json.encode(night)))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def _kept(what: str, folder: Path) -> Iterator[None]:
    """Make the folder; a sentence where something cannot be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        why = error.strerror or error
        raise WrongUse(f"{what} could not be kept in {folder} ({why}).") from error


def nights(results: Path) -> list[Night]:
    """All judgements, oldest night first; a file that is none is passed over."""
    found = []
    for path in sorted((results / FOLDER).glob("*.json")):
        with contextlib.suppress(msgspec.MsgspecError, OSError):
            found.append(msgspec.json.decode(path.read_bytes(), type=Night))
    return found


def accept(results: Path, accepted: Accepted) -> None:
    """Add a line to what was accepted. Raises WrongUse."""
    folder = results / FOLDER
    with _kept("What was accepted", folder), (folder / ACCEPTED).open("ab") as file:
        file.write(msgspec.json.encode(accepted) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def accepted(results: Path) -> list[Accepted]:
    """Everything that was accepted, oldest first; a broken line is passed over. Raises WrongUse."""
    path = results / FOLDER / ACCEPTED
    try:
        lines = path.read_bytes().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise WrongUse(f"{path} cannot be read ({error.strerror}).") from error
    found = []
    for line in lines:
        with contextlib.suppress(msgspec.MsgspecError):
            found.append(msgspec.json.decode(line, type=Accepted))
    return found
