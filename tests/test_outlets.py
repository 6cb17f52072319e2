"""What the outlets write, read by readers that are not theirs, also where the words mean harm."""

from __future__ import annotations

import html.parser
import re
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from xml.etree import ElementTree as ET

import cmarkgfm
import feedparser
import pytest
from cmarkgfm.cmark import Options
from hypothesis import given, settings
from junitparser import JUnitXml
from markdown_it import MarkdownIt

from bench.outlets import atom, github, junit, markdown, plain
from tests.nights import FIRST, commands, finding, hostile, night, spoilt, spoilt_night

INVISIBLE = "\u200b"
READERS: dict[str, Callable[[str], str]] = {
    "GitHub's": lambda text: cmarkgfm.github_flavored_markdown_to_html(
        text, options=Options.CMARK_OPT_UNSAFE
    ),
    "markdown-it": MarkdownIt("commonmark").enable(["table", "strikethrough"]).render,
}


def shown(text: str) -> str:
    """As a browser shows a text: runs of spaces are one."""
    return " ".join(text.replace(INVISIBLE, "").split())


def told(text: str, most: int = 300) -> str:
    """What should be shown of a text."""
    line = plain(text)
    return shown(line if len(line) <= most else line[: most - 1] + "…")


class Page(html.parser.HTMLParser):
    """Which tags there are, the text of cells and items, and what stands outside code."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.texts: dict[str, list[str]] = {}
        self.outside = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags[tag] += 1
        self.texts.setdefault(tag, []).append("")
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data
        if not {"code", "pre"} & set(self.open):
            self.outside += data


def test_ordered_units_and_counts_are_in_the_page() -> None:
    """Red, yellow, better; before → now with units; the change with its interval."""
    found = [finding("green", reason="Faster."), finding("yellow"), finding("red")]
    page = markdown.render(night("red", *found, notes=["Half of it was disturbed."]), [])
    rows = [line for line in page.splitlines() if line.startswith("| ") and "case" not in line][1:]
    assert [row[2] for row in rows] == ["🔴", "🟡", "🟢"]
    for text in ("1,240 → 1,151 images/s", "-7.2 % (-9.1 % to -5.3 %)", "2026-01-01"):
        assert text in rows[0]
    assert "first suspect: torch 2.9.0 → 2.9.1" in rows[0]
    assert "bench run --model resnet50 --batch-size 8\n" in page
    assert "40 series: 39 unchanged, 0 inconclusive; 20 nights of history" in page
    assert "- Half of it was disturbed." in page


def test_unknown_numbers_are_dashes() -> None:
    """Never 0, never nan."""
    bare = finding(before=None, now=float("nan"), change=None, since=None, since_run=None)
    page = markdown.render(night("red", bare), [])
    assert "| – | – | – |" in page
    assert "nan" not in page
    small = finding(before=0.0123, now=2**30, unit="bytes")
    assert "1,024 MiB" in markdown.render(night("red", small), [])


@pytest.mark.parametrize("reader", READERS)
@given(text=hostile)
@settings(max_examples=150, deadline=None)
def test_no_word_is_markup(reader: str, text: str) -> None:
    """Every cell and item reads as what was meant; nobody is notified and nothing is linked."""
    judged = spoilt_night(text)
    page = Page(READERS[reader](markdown.render(judged, [])))
    assert shown(page.texts["h2"][0]) == f"🔴 {told(judged.headline)}"
    assert page.tags["tr"] == 2
    assert page.tags["td"] == page.tags["th"] == 7
    allowed = {"h2", "p", "table", "thead", "tbody", "tr", "th", "td", "code", "ul", "li"}
    assert set(page.tags) <= allowed | {"details", "summary", "pre"}
    assert page.tags["h2"] == page.tags["table"] == page.tags["ul"] == 1
    _, case, metric, _, _, since, why = map(shown, page.texts["td"])
    dash = "–"
    on = f" on {told(text, 80)}" if text else ""
    assert case == shown((told(text, 200) or dash) + on)
    assert metric == (told(text, 80) or dash)
    assert since == (told(text, 80) or dash)
    assert why == shown(f"{told(text).removesuffix('.')}; first suspect: {told(text, 200)}")
    assert [shown(t) for t in page.texts["li"]] == [told(text)] * 2
    assert [shown(t) for t in page.texts.get("pre", [])] == ([told(text)] if told(text) else [])
    assert not re.search(r"@\w|#\d|GH-\d|://|www\.", page.outside)


@pytest.mark.parametrize("words", ["x" * 150, "@" * 150, "🔴" * 150])
def test_the_page_fits_a_comment(words: str) -> None:
    """Cut before GitHub refuses it, and it says how many are missing."""
    many = [spoilt(words + str(n)) for n in range(400)]
    page = markdown.render(night("red", *many, notes=[words * 4] * 30), [])
    assert len(page.encode()) <= 65_536
    assert len(page.encode()) > 50_000
    rows = Page(READERS["GitHub's"](page)).tags["tr"] - 1
    assert rows > 3
    assert f"… and {400 - rows} more." in page
    assert "… and 20 more." in page


@given(text=hostile)
@settings(max_examples=200, deadline=None)
def test_an_annotation_is_one_command(text: str) -> None:
    """GitHub's runner reads each as what was meant, and no other command."""
    found = [finding("red", case_id=text, reason=text), finding("yellow", reason=text)]
    read = commands(github.render(night("red", *found), []))
    assert [kind for kind, _, _ in read] == ["error", "warning"]
    _, title, message = read[0]
    assert title == plain(f"{text} throughput_images_per_s on Test CPU")
    facts = [
        plain(text),
        "Before → now: 1,240 → 1,151 images/s",
        "Change, 99 % interval: -7.2 % (-9.1 % to -5.3 %)",
        "Since: 2026-01-01",
        "First suspects: torch 2.9.0 → 2.9.1",
        "Measure again: bench run --model resnet50 --batch-size 8",
    ]
    assert message.split("\n") == [fact for fact in facts if fact]


def test_ten_annotations_of_a_kind() -> None:
    """The tenth says how many more there are; a failed night is an error."""
    many = [finding("red", case_id=f"case{n}") for n in range(14)]
    read = commands(github.render(night("red", *many, *[finding("green")] * 10), []))
    assert Counter(kind for kind, _, _ in read) == {"error": 10, "notice": 10}
    assert read[8][1].startswith("case8 ")
    assert read[9][2].startswith("… and 5 more")
    failed = commands(github.render(night("red", notes=["The disk was full."]), []))
    assert failed[0][0] == "error"
    assert failed[0][2].startswith("The disk was full.\n")
    assert [kind for kind, _, _ in commands(github.render(night(), []))] == ["notice"]


def suite(text: str) -> ET.Element:
    """The suite, held against what the schema demands of names, attributes and order."""
    root = ET.fromstring(text.encode())
    assert root.tag == "testsuites"
    (found,) = root
    assert found.tag == "testsuite"
    counts = {"name", "tests", "failures", "errors"}
    assert set(root.attrib) == counts
    assert set(found.attrib) == counts | {"skipped", "timestamp", "hostname", "time"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", found.attrib["timestamp"])
    order = ["skipped", "failure", "system-out"]
    for case in found:
        assert case.tag == "testcase"
        assert set(case.attrib) == {"classname", "name", "time"}
        places = [order.index(child.tag) for child in case]
        assert places == sorted(set(places))
    names = [(case.attrib["classname"], case.attrib["name"]) for case in found]
    assert len(set(names)) == len(names)
    return found


def test_the_report_of_tests() -> None:
    """Red fails, yellow is skipped, better passes; a green night is a suite that passed."""
    found = [finding("green"), finding("yellow", metric="latency_p50_ms"), finding("red")]
    read = JUnitXml.fromstring(junit.render(night("red", *found), []).encode())
    assert (read.tests, read.failures, read.skipped, read.errors) == (4, 1, 1, 0)
    cases = list(next(iter(read)))
    assert [[r._tag for r in case.result] for case in cases] == [[], ["failure"], ["skipped"], []]
    assert "Change, 99 % interval: -7.2 %" in cases[1].result[0].text
    assert "First suspects: torch 2.9.0 → 2.9.1" in cases[3].system_out
    quiet = JUnitXml.fromstring(junit.render(night(), []).encode())
    assert (quiet.tests, quiet.failures, quiet.skipped) == (1, 0, 0)
    failed = JUnitXml.fromstring(junit.render(night("red"), []).encode())
    assert (failed.tests, failed.failures) == (1, 1)
    unjudged = night("yellow", series=3, inconclusive=3)
    assert JUnitXml.fromstring(junit.render(unjudged, []).encode()).skipped == 1


@given(text=hostile)
@settings(max_examples=150, deadline=None)
def test_the_report_of_tests_is_xml(text: str) -> None:
    """Whatever the words, also when four findings have the same."""
    same = [spoilt(text), spoilt(text, "yellow"), spoilt(text, "green"), spoilt(text)]
    found = suite(junit.render(spoilt_night(text, *same), []))
    assert found.attrib["tests"] == "5"
    failures = [case.find("failure") for case in found if case.find("failure") is not None]
    assert [f.attrib["message"] for f in failures if f is not None] == [plain(text)] * 2


ATOM = "{http://www.w3.org/2005/Atom}"


def test_the_feed() -> None:
    """The newest fifty, newest first, under names that stay when a night is judged again."""
    before = [night("red" if n == 3 else "green", number=n) for n in range(60)]
    text = atom.render(night("yellow", finding("yellow"), number=60), before[::-1])
    read = feedparser.parse(text)
    assert not read.bozo, read.get("bozo_exception")
    assert read.version == "atom10"
    assert len(read.entries) == 50
    assert read.entries[0].title.startswith("Night 20260302T023000Z-aaaaaa is YELLOW")
    assert read.feed.updated == read.entries[0].updated == "2026-03-02T04:30:00Z"
    assert read.feed.author == "resnet-bench"
    assert "1,240 → 1,151 images/s" in read.entries[0].content[0].value
    assert len({entry.id for entry in read.entries}) == 50
    assert all(e.id.startswith("urn:uuid:") for e in [read.feed, *read.entries])
    again = night("red", number=60, judged_at=FIRST + timedelta(days=70))
    anew = feedparser.parse(atom.render(again, before))
    assert [e.id for e in anew.entries] == [e.id for e in read.entries]
    assert anew.feed.id == read.feed.id
    assert anew.entries[0].updated > read.entries[0].updated


@given(text=hostile)
@settings(max_examples=150, deadline=None)
def test_the_feed_is_xml_and_its_pages_are_html(text: str) -> None:
    """RFC 4287's required elements, once each; no tag comes from a name."""
    root = ET.fromstring(atom.render(spoilt_night(text), []).encode())
    entry = root.find(f"{ATOM}entry")
    assert entry is not None
    for element in (root, entry):
        for tag in ("id", "title", "updated"):
            assert len(element.findall(ATOM + tag)) == 1
    assert root.find(f"{ATOM}author/{ATOM}name") is not None
    content = entry.find(f"{ATOM}content")
    assert content is not None
    assert content.attrib == {"type": "html"}
    page = Page(content.text or "")
    assert set(page.tags) == {"p", "ul", "li", "code", "br"}
    assert page.tags["p"] == 3
    assert [shown(t) for t in page.texts["p"][1:]] == [shown(plain(text))] * 2
    assert shown(page.texts["code"][0]) == shown(plain(text))
