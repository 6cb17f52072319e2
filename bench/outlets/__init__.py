"""Where a night's judgement is told: one file an outlet.

An outlet holds `render(night, earlier)`, a pure function to text; empty text is nothing to
tell. Its text is written to the file that the outlet names in FILE, or handed to its
`deliver(text)`, or both. `deliver` raises Untold. `earlier` are the other judged nights.

Names and reasons in a Night come from records and plans, that is from anywhere. What is told
passes `plain` first and then the escape of its format, which is the outlet's.
"""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime

from bench import words
from bench.findings import Finding, Night

ICONS = {"red": "🔴", "yellow": "🟡", "green": "🟢"}
PLACES = {"red": 0, "yellow": 1, "green": 2}
MANY = 300  # characters of a sentence; the rest is cut
SECONDS = "%Y-%m-%dT%H:%M:%S"


def plain(text: str) -> str:
    """The text on one line, without characters that control a terminal, a reader or a parser.

    White space becomes a space. Controls, what is invisible and directs (such as overrides of
    the writing direction), halves of surrogate pairs and non-characters go: neither XML 1.0
    nor UTF-8 holds all of them.
    """
    spaced = (" " if c.isspace() else c for c in text)
    return "".join(c for c in spaced if unicodedata.category(c)[0] != "C").strip()


def clipped(text: str, most: int = MANY) -> str:
    """`plain`, and at most so many characters, the last of them an ellipsis where it was cut."""
    line = plain(text)
    return line if len(line) <= most else line[: most - 1] + "…"


def ordered(night: Night) -> list[Finding]:
    """Red, then yellow, then what became better."""
    return sorted(night.findings, key=lambda f: PLACES[f.colour])


def failed(night: Night) -> bool:
    """Whether the night is red though no finding is: it did not come to its end."""
    return night.colour == "red" and not any(f.colour == "red" for f in night.findings)


def others(night: Night, earlier: list[Night]) -> list[Night]:
    """The nights of the same plan before this one, oldest first."""
    start = utc(night.started_at)
    before = [n for n in earlier if n.plan == night.plan and utc(n.started_at) < start]
    return sorted(before, key=lambda n: utc(n.started_at))


def title(finding: Finding) -> str:
    """Case, metric and device: which series this is."""
    parts = [finding.case_id, finding.metric, finding.device_name and f"on {finding.device_name}"]
    return clipped(" ".join(p for p in parts if p))


def amounts(finding: Finding) -> str:
    """64.1 → 59.3 images/s; empty where nothing was compared."""
    if words.missing(finding.before) and words.missing(finding.now):
        return ""
    unit = finding.unit or ""
    sides = " → ".join(_amount(v, unit) for v in (finding.before, finding.now))
    return sides if unit in {"bytes", ""} else f"{sides} {clipped(unit, 40)}"


def _amount(value: float | None, unit: str) -> str:
    if value is None or words.missing(value):
        return words.DASH
    if unit == "bytes":
        return words.mebibytes(value)
    # words.rate has two decimals, which are too few for 0.0123 J.
    return words.rate(value) if abs(value) >= 1 else f"{value:.3g}"


def change(finding: Finding) -> str:
    """-7.2 % (-9.1 % to -5.3 %), the interval at 99 %; empty where nothing was compared."""
    if finding.change is None or words.missing(finding.change):
        return ""
    low, high = finding.change_low, finding.change_high
    text = f"{100 * finding.change:+.1f} %"
    if low is None or high is None or words.missing(low) or words.missing(high):
        return text
    return f"{text} ({100 * low:+.1f} % to {100 * high:+.1f} %)"


def since(finding: Finding) -> str:
    """The first night of the change: its day, or its run where the day is not known."""
    if finding.since is not None:
        return finding.since.strftime("%Y-%m-%d")
    return clipped(finding.since_run or "", 80)


def lines(finding: Finding) -> list[str]:
    """What there is to say of a finding, a fact a line, the sentence first."""
    facts = {
        "": clipped(finding.reason),
        "Before → now: ": amounts(finding),
        "Change, 99 % interval: ": change(finding),
        "Since: ": since(finding),
        "First suspects: ": "; ".join(clipped(c) for c in finding.causes[:3]),
        "Measure again: ": plain(finding.command or ""),
    }
    return [name + fact for name, fact in facts.items() if fact]


def counts(night: Night) -> str:
    """How much was judged, and against what."""
    confirmed = "Suspects were measured again." if night.confirmed else ""
    history = "1 night" if night.nights == 1 else f"{night.nights} nights"
    text = (
        f"{night.series} series: {night.unchanged} unchanged, {night.inconclusive} inconclusive; "
        f"{history} of history, judged against {clipped(night.against, 120)}. {confirmed}"
    )
    return text.strip()


def utc(moment: datetime) -> datetime:
    """The moment in UTC; one without a zone is taken to be in UTC already."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
