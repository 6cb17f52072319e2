"""An Atom feed, `feed.xml`, of the newest 50 judged nights.

Format: RFC 4287. Identifiers are UUIDs made of the plan and the run (RFC 4122, version 5), so
that a night judged again is the same entry, updated, wherever the file is served from.
"""

from __future__ import annotations

import html
import uuid
from datetime import datetime
from xml.etree import ElementTree as ET

from bench.findings import Night
from bench.outlets import ICONS, SECONDS, clipped, counts, lines, ordered, utc

FILE = "feed.xml"
NEWEST = 50
FINDINGS = 30  # and notes, of one entry
SPACE = "http://www.w3.org/2005/Atom"
# Drawn once by uuid4; another one would make every entry of every feed a new one.
NAMESPACE = uuid.UUID("fdcf68c6-4b17-483f-8162-232a24fa2c75")


def render(night: Night, earlier: list[Night]) -> str:
    """This night and those before, the newest first."""
    judged = {n.run_id: n for n in [*earlier, night]}
    newest = sorted(judged.values(), key=lambda n: utc(n.started_at), reverse=True)[:NEWEST]
    feed = ET.Element("feed", xmlns=SPACE)
    _add(feed, "id", _identifier("feed", night.plan))
    _add(feed, "title", clipped(f"Nights of the plan {night.plan}"))
    _add(feed, "updated", _moment(max(utc(n.judged_at) for n in newest)))
    _add(ET.SubElement(feed, "author"), "name", "resnet-bench")
    _add(feed, "generator", "resnet-bench")
    for one in newest:
        entry = ET.SubElement(feed, "entry")
        _add(entry, "id", _identifier("night", one.plan, one.run_id))
        _add(entry, "title", clipped(one.headline))
        _add(entry, "updated", _moment(one.judged_at))
        _add(entry, "published", _moment(one.started_at))
        ET.SubElement(entry, "category", term=one.colour)
        _add(entry, "content", _page(one)).set("type", "html")
    ET.indent(feed)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(feed, encoding="unicode")}\n'


def _page(night: Night) -> str:
    """The night as HTML: escaped here, and once more by the XML around it."""
    parts = [f"<p>{html.escape(counts(night))}</p>"]
    parts += [f"<p>{html.escape(clipped(note))}</p>" for note in night.notes[:FINDINGS]]
    found = ordered(night)
    items = []
    for finding in found[:FINDINGS]:
        series = f"<code>{html.escape(clipped(finding.case_id))}</code>"
        name = " ".join([ICONS[finding.colour], series, html.escape(clipped(finding.metric or ""))])
        items.append("<br>".join([name.strip(), *map(html.escape, lines(finding))]))
    if len(found) > FINDINGS:
        items.append(f"… and {len(found) - FINDINGS} more.")
    parts += ["<ul>", *(f"<li>{i}</li>" for i in items), "</ul>"] if items else []
    return "".join(parts)


def _identifier(*names: str) -> str:
    return uuid.uuid5(NAMESPACE, "\n".join(map(clipped, names))).urn


def _moment(moment: datetime) -> str:
    return utc(moment).strftime(SECONDS) + "Z"


def _add(parent: ET.Element, tag: str, text: str) -> ET.Element:
    element = ET.SubElement(parent, tag)
    element.text = text
    return element
