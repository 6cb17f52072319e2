"""What a night's judgement says: the nouns, and where they are kept.

Beside the records, in the folder `nightly/` of the results: one JSON file a judged night,
and `accepted.jsonl`, one line a change that somebody took for the new normal.
"""

from __future__ import annotations

import contextlib
import os
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

FOLDER = "nightly"
ACCEPTED = "accepted.jsonl"

Colour = Literal["red", "yellow", "green"]
Kind = Literal["worse", "better", "missing", "differs", "flaky"]


class Finding(Struct, frozen=True, kw_only=True):
    """One series that moved, or one case without a result.

    colour: red wakes people, yellow is for who looks, green is good news. kind: `worse` or
    `better` in size and evidence, `missing` (no result where there was one), `differs` (a
    result outside its tolerance), `flaky` (failed, and worked when tried again).
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
    notes: list[str] = []  # sentences on the night as a whole

    @property
    def headline(self) -> str:
        """One line: colour, what was found, of which run."""
        reds = [f for f in self.findings if f.colour == "red"]
        what = f"{len(reds)} of {self.series} series" if reds else f"{self.series} series"
        if self.colour == "red" and not reds:
            said = "the night itself failed"
        elif reds:
            said = f"{what} regressed"
        elif self.inconclusive == self.series:
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
    """Keep a judgement; judging a night again replaces it. Returns its file."""
    folder = results / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{night.run_id}.json"
    partial = path.with_suffix(f".partial-{os.getpid()}")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(night)))
    partial.replace(path)
    return path


def nights(results: Path) -> list[Night]:
    """All judgements, oldest night first; a file that is none is passed over."""
    found = []
    for path in sorted((results / FOLDER).glob("*.json")):
        with contextlib.suppress(msgspec.MsgspecError, OSError):
            found.append(msgspec.json.decode(path.read_bytes(), type=Night))
    return found


def accept(results: Path, accepted: Accepted) -> None:
    """Add a line to what was accepted."""
    folder = results / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ACCEPTED).open("ab") as file:
        file.write(msgspec.json.encode(accepted) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def accepted(results: Path) -> list[Accepted]:
    """Everything that was accepted, oldest first; a broken line is passed over."""
    try:
        lines = (results / FOLDER / ACCEPTED).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(msgspec.MsgspecError):
            found.append(msgspec.json.decode(line, type=Accepted))
    return found
