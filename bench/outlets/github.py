"""Annotations of a GitHub Actions run, printed where GITHUB_ACTIONS is true.

Format: workflow commands, `::error title=…::message` (GitHub's "Workflow commands for GitHub
Actions"), escaped as the `core/src/command.ts` of GitHub's toolkit does it. GitHub shows ten
annotations of each kind for a step and drops the others without a word, so that the tenth says
how many more there are; its runner cuts a message at 4,096 characters.
"""

from __future__ import annotations

import os

from bench.findings import Night
from bench.outlets import counts, failed, lines, ordered, plain, title

SHOWN = 10
LONGEST = 4_000
KINDS = {"red": "error", "yellow": "warning", "green": "notice"}
DATA = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
PROPERTY = DATA | str.maketrans({":": "%3A", ",": "%2C"})


def render(night: Night, earlier: list[Night]) -> str:
    """A line an annotation: errors, warnings, then notices, of each no more than are shown."""
    del earlier
    told: dict[str, list[tuple[str, str]]] = {kind: [] for kind in KINDS.values()}
    if failed(night):
        told["error"].append((night.headline, "\n".join([*night.notes, counts(night)])))
    for finding in ordered(night):
        told[KINDS[finding.colour]].append((title(finding), "\n".join(lines(finding))))
    if night.colour != "red":
        told["notice"].insert(0, (night.headline, counts(night)))
    found = [
        _command(kind, *one)
        for kind, annotations in told.items()
        for one in _few(annotations, night.headline)
    ]
    return "".join(f"{line}\n" for line in found)


def deliver(text: str) -> None:
    """Print the annotations, if GitHub reads along."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        print(text, end="", flush=True)


def _few(annotations: list[tuple[str, str]], headline: str) -> list[tuple[str, str]]:
    if len(annotations) <= SHOWN:
        return annotations
    more = len(annotations) - SHOWN + 1
    return [*annotations[: SHOWN - 1], (headline, f"… and {more} more; see the step's summary.")]


def _command(kind: str, heading: str, message: str) -> str:
    # A message's own lines stay lines; anything else is on one line already.
    text = "\n".join(plain(line) for line in message.split("\n"))[:LONGEST]
    return f"::{kind} title={plain(heading).translate(PROPERTY)}::{text.translate(DATA)}"
