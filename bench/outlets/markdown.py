"""A page in GitHub's Markdown, `nightly.md`: for a comment, and the summary of a GitHub step.

Format: GitHub Flavored Markdown (https://github.github.com/gfm/). A comment holds 65,536
characters ("Body is too long (maximum is 65536 characters)" says GitHub's API), a step's
summary 1 MiB; the page is cut for the smaller of them, in bytes, so that both hold.
GitHub names the file for the summary in GITHUB_STEP_SUMMARY.
"""

from __future__ import annotations

import html
import os
import re
from pathlib import Path

from bench import words
from bench.errors import Untold
from bench.findings import Finding, Night
from bench.outlets import ICONS, amounts, change, clipped, counts, ordered, plain, since

FILE = "nightly.md"
LIMIT = 65_536
RESERVE = 1_000  # bytes for the heads of the table and of the commands, and "and N more"
NOTES = 10
COMMAND = 2_000  # characters; a longer one is left out, for half a command is a wrong one
HEAD = "| | case | metric | before → now | change (99 % interval) | since | why |\n|" + " --- |" * 7

# A character reference is never markup (CommonMark 0.31, 2.5). A zero-width space after @ and #
# keeps GitHub from notifying people and from linking issues; Renovate does the same.
ESCAPED = re.compile(r"[\\`*_\[\]<>|~&$]|(?P<apart>[@#]|:(?=//)|(?i:www)(?=\.)|(?i:gh)(?=-\d))")
LEADING = re.compile(r"^(\d*)([-+=.)])")


def render(night: Night, earlier: list[Night], limit: int = LIMIT) -> str:
    """Headline, counts, the table, the commands, the notes; at most `limit` bytes."""
    del earlier
    found = ordered(night)
    head = f"## {ICONS[night.colour]} {prose(night.headline)}\n\n{prose(counts(night))}\n"
    notes = _notes(night.notes)
    left = limit - RESERVE - _size(head) - _size(notes)
    rows: list[str] = []
    commands: dict[str, None] = {}  # a set in order
    for finding in found:
        row, command = _row(finding), _command(finding)
        left -= _size(row) + _size(command) + 2
        if left < 0:
            break
        rows.append(row)
        commands |= {command: None} if command else {}
    more = len(found) - len(rows)
    blocks = [head]
    if rows:
        blocks.append("\n".join([HEAD, *rows]) + "\n")
    if more:
        blocks.append(f"… and {more} more.\n")
    if commands:
        # Raw HTML: it has no markup to escape from, and lasts until the blank line after it.
        inner = "\n".join(commands)
        summary = "<summary>Measure again</summary>"
        blocks.append(f"<details>{summary}\n<pre>\n{inner}\n</pre>\n</details>\n")
    return "\n".join([*blocks, notes] if notes else blocks)


def deliver(text: str) -> None:
    """Append the page to the summary of the GitHub step, if this runs in one."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    try:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(text + "\n")
    except OSError as error:
        raise Untold(f"GitHub's step summary cannot be written ({error.strerror})") from error


def prose(text: str, most: int = 300) -> str:
    """Text that renders as itself: no markup, no HTML, no link, no mention."""

    def escape(match: re.Match[str]) -> str:
        return f"{match[0]}&#8203;" if match["apart"] else f"&#{ord(match[0])};"

    return ESCAPED.sub(escape, clipped(text, most))


def code(text: str | None, most: int = 200) -> str:
    """Text as code. A dash for none.

    In a table a pipe splits code as well, and readers do not agree on what two backslashes
    before it mean; such text is written in references.
    """
    line = clipped(text or "", most)
    if not line:
        return words.DASH
    return f"<code>{prose(line, most)}</code>" if set(line) & set("`|") else f"`{line}`"


def _row(finding: Finding) -> str:
    case = code(finding.case_id)
    if finding.device_name:
        case += f" on {prose(finding.device_name, 80)}"
    why = prose(finding.reason)
    if finding.causes:
        why = f"{why.removesuffix('.')}; first suspect: {prose(finding.causes[0], 200)}"
    cells = [ICONS[finding.colour], case, code(finding.metric, 80)]
    cells += [prose(f(finding)) or words.DASH for f in (amounts, change)]
    cells += [prose(since(finding)) or words.DASH, why]
    return f"| {' | '.join(cells)} |"


def _command(finding: Finding) -> str:
    command = plain(finding.command or "")
    return html.escape(command, quote=False) if len(command) <= COMMAND else ""


def _notes(notes: list[str]) -> str:
    """The notes as a list; what begins one begins no list or heading of its own."""
    told = [prose(n, 500) for n in notes[:NOTES]]
    told = [LEADING.sub(lambda m: f"{m[1]}&#{ord(m[2])};", n) for n in told]
    if len(notes) > NOTES:
        told.append(f"… and {len(notes) - NOTES} more.")
    return "".join(f"- {n}\n" for n in told)


def _size(text: str) -> int:
    return len(text.encode())
