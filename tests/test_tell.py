"""What a night leaves behind in files, on GitHub and in sentences about what was not told."""

from __future__ import annotations

import os
from pathlib import Path

import feedparser
import pytest

from bench import findings, tell
from bench.outlets import junit, ordered
from tests.nights import commands, finding, night

QUIET = ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "BENCH_WEBHOOK_URL")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Neither GitHub nor a webhook."""
    for name in QUIET:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_everything_is_told(
    tmp_path: Path, alone: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files for whoever looks, whole ones; without GitHub not a word to it."""
    out = tmp_path / "new" / "folder"
    judged = night("red", finding("red"), number=1)
    assert tell.everything(judged, [night(), judged], out) == []
    assert sorted(os.listdir(out)) == ["feed.xml", "junit.xml", "nightly.md"]
    assert capsys.readouterr() == ("", "")
    assert len(feedparser.parse((out / "feed.xml").read_text()).entries) == 2
    tell.everything(night(number=2), [], out)
    assert "GREEN" in (out / "nightly.md").read_text()
    assert "RED" not in (out / "junit.xml").read_text()


def test_github_is_told(
    tmp_path: Path, alone: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Annotations are printed; the summary is added to what other steps wrote."""
    summary = tmp_path / "summary.md"
    summary.write_text("Before.\n")
    alone.setenv("GITHUB_ACTIONS", "true")
    alone.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert tell.everything(night("red", finding("red")), [], tmp_path / "out") == []
    assert [kind for kind, _, _ in commands(capsys.readouterr().out)] == ["error"]
    page = (tmp_path / "out/nightly.md").read_text()
    assert summary.read_text() == f"Before.\n{page}\n"
    alone.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "not/there"))
    (sentence,) = tell.everything(night(), [], tmp_path / "out")
    assert sentence.startswith("The outlet markdown could not tell of the night: GitHub's step")


def test_what_cannot_be_told_is_said(tmp_path: Path, alone: pytest.MonkeyPatch) -> None:
    """A sentence an outlet; the others still tell."""
    (tmp_path / "file").write_text("")
    untold = tell.everything(night(), [], tmp_path / "file")
    assert [sentence.split()[2] for sentence in untold] == ["atom", "junit", "markdown"]
    assert all(sentence.endswith("File exists.") for sentence in untold)
    alone.setattr(junit, "render", lambda *_: 1 / 0)
    assert tell.everything(night(), [], tmp_path / "out") == [
        "The outlet junit could not tell of the night: it broke (ZeroDivisionError)."
    ]
    assert sorted(os.listdir(tmp_path / "out")) == ["feed.xml", "nightly.md"]


def test_kept_nights_can_be_told(tmp_path: Path, alone: pytest.MonkeyPatch) -> None:
    """As they come back from the folder of results."""
    for number in range(3):
        findings.save(tmp_path, night("red", finding("red"), number=number))
    kept = findings.nights(tmp_path)
    assert tell.everything(kept[-1], kept, tmp_path / "out") == []
    assert len(feedparser.parse((tmp_path / "out/feed.xml").read_text()).entries) == 3
    assert ordered(kept[0]) == kept[0].findings
