"""Made-up nights for tests of what only tells of them, and strings that mean harm."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from bench.findings import Finding, Night

FIRST = datetime(2026, 1, 1, 2, 30, tzinfo=UTC)
NASTY = [
    "|", "\\", "\\|", "`", "```", "<b>", "</pre>", "</code>", "<img src=x>", "<!channel>", "<@U1>",
    "<!--", "]]>", "@team", "@everyone", "a@b.c", "#12", "GH-7", "&amp;", "&", "&lt", "%0A",
    "%", ":", ",",
    "::error::", "::", "\n", "\r\n", "\n\n", "\r", "\n- ", "\n::set-env name=a::b", "\x00",
    "\x1b[2J", "\x85", "\u2028", "\u202e", "\ufffe", "\ud800", "[a](b)", "![x](y)", "[ ] ",
    "https://a.b/c", "www.a.b", "- ", "# ", "1. ", "---", "===", "***", "~~", "$x$", "_x_", "*x*",
    '"', "'", " ", "x",
]  # fmt: skip
hostile = st.one_of(
    st.lists(st.sampled_from(NASTY), min_size=1, max_size=6).map("".join), st.text(max_size=40)
)


def finding(colour: Any = "red", **more: Any) -> Finding:
    """A series that became 7.2 % slower, unless more is said."""
    values: dict[str, Any] = {
        "colour": colour,
        "kind": "better" if colour == "green" else "worse",
        "case_id": "resnet50/infer/cpu/eager/fp32/b8/px224",
        "device_name": "Test CPU",
        "machine_fingerprint": "m",
        "metric": "throughput_images_per_s",
        "unit": "images/s",
        "before": 1240.0,
        "now": 1150.7,
        "change": -0.072,
        "change_low": -0.091,
        "change_high": -0.053,
        "nights": 3,
        "since_run": "20260101T023000Z-aaaaaa",
        "since": FIRST,
        "reason": "Slower than the 20 nights before.",
        "causes": ["torch 2.9.0 → 2.9.1"],
        "command": "bench run --model resnet50 --batch-size 8",
    }
    return Finding(**(values | more))


def night(colour: Any = "green", *findings: Finding, number: int = 0, **more: Any) -> Night:
    """The night so many nights after the first."""
    start = FIRST + timedelta(days=number)
    values: dict[str, Any] = {
        "run_id": f"{start:%Y%m%dT%H%M%SZ}-aaaaaa",
        "plan": "nightly",
        "started_at": start,
        "judged_at": start + timedelta(hours=2),
        "colour": colour,
        "findings": list(findings),
        "series": 40,
        "unchanged": 39,
        "nights": 20,
    }
    return Night(**(values | more))


def spoilt(text: str, colour: Any = "red") -> Finding:
    """A finding every word of which is the text."""
    names = ("case_id", "device_name", "machine_fingerprint", "metric", "unit", "since_run")
    words = dict.fromkeys((*names, "reason", "command"), text)
    return finding(colour, **words, causes=[text, text], since=None)


def spoilt_night(text: str, *findings: Finding, colour: Any = "red") -> Night:
    """A night every word of which is the text."""
    words = dict.fromkeys(("run_id", "plan", "against"), text)
    return night(colour, *(findings or [spoilt(text)]), **words, notes=[text, text])


def commands(text: str) -> list[tuple[str, str, str]]:
    """The workflow commands in what was printed: kind, title, message."""
    found = []
    for line in re.split(r"\r\n|\r|\n", text.removesuffix("\n")) if text else []:
        match = re.fullmatch(r"::(error|warning|notice) title=([^:,]*)::(.*)", line)
        assert match, line
        kind, title, message = match.groups()
        found.append((kind, unescaped(title, ":,\r\n%"), unescaped(message, "\r\n%")))
    return found


def unescaped(text: str, signs: str) -> str:
    """As GitHub's runner does it, the percent sign last."""
    for sign in signs:
        text = text.replace(f"%{ord(sign):02X}", sign)
    return text
