"""What works here and what does not, with what to do about it."""

from __future__ import annotations

import msgspec

from bench import processes
from bench.environment import noise
from bench.messages import Finding


def examine() -> list[Finding]:
    """Ask a child about devices, engines and precisions; look at the machine itself."""
    processes.start_server()
    answer = processes.ask("bench.preflight", msgspec.json.encode(["diagnose", None]))
    found = msgspec.json.decode(answer, type=list[Finding])
    quiet = noise.findings()
    return found + [Finding(group="noise", name="", works=False, text=text) for text in quiet]


TITLES = {
    "devices": "Devices",
    "engines": "Engines",
    "precisions": "Precisions",
    "energy": "Energy",
    "noise": "What makes numbers noisy here",
}


def tell(found: list[Finding]) -> str:
    """The findings as text."""
    lines = []
    for group, title in TITLES.items():
        members = [f for f in found if f.group == group]
        lines.append(title)
        width = max((len(f.name) for f in members), default=0)
        for f in members:
            state = "works" if f.works else "no:" if group != "noise" else "-"
            text = f"{f.name:<{width}}  {state} {f.text}" if group != "noise" else f"- {f.text}"
            lines.append(f"  {text.strip()}")
        if not members:
            lines.append("  nothing found")
        lines.append("")
    return "\n".join(lines).rstrip()
