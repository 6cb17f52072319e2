"""The webhook against a real server: what it gets, when, and that nobody sees its address."""

from __future__ import annotations

import http.server
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import feedparser
import msgspec
import pytest
from hypothesis import given, settings

from bench import tell
from bench.errors import Untold
from bench.outlets import webhook
from bench.schema import Case, Record
from tests.conftest import Bench
from tests.made_nights import make, run_id
from tests.nights import finding, hostile, night, spoilt, spoilt_night

SECRET = "T0PS3CRET"


class Receiver(http.server.ThreadingHTTPServer):
    """Answers with `answers`, one after the other, then with 200; keeps what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[int | str] = []
        self.got: list[tuple[str, str, Any]] = []
        self.seconds = 0.0  # before it answers

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/services/{SECRET}?token={SECRET}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, self.headers["Content-Type"], json.loads(body)))
        time.sleep(self.server.seconds)
        answer = self.server.answers.pop(0) if self.server.answers else 200
        self.send_response(302 if isinstance(answer, str) else answer)
        if isinstance(answer, str):
            self.send_header("Location", answer)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.server.got.append((self.path, "GET", None))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A server on this machine, and the variable that names it."""
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        monkeypatch.setenv("BENCH_WEBHOOK_URL", server.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
            monkeypatch.delenv(name, raising=False)
        yield server
        server.shutdown()
        thread.join()


def deliver(**how: float) -> None:
    webhook.deliver('{"text":"a"}', pause_s=0, **how)


def test_a_red_night_is_posted(
    receiver: Receiver, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Once, as JSON that Slack reads; the address is in no file and no output."""
    assert tell.everything(night("red", finding("red")), [], tmp_path) == []
    ((path, kind, sent),) = receiver.got
    assert path == f"/services/{SECRET}?token={SECRET}"
    assert kind == "application/json"
    headline = "Night 20260101T023000Z-aaaaaa is RED: 1 of 40 series regressed"
    assert sent["text"] == f"🔴 {headline}"
    assert all(b["type"] == "section" and b["text"]["type"] == "mrkdwn" for b in sent["blocks"])
    said = "\n".join(b["text"]["text"] for b in sent["blocks"])
    for part in (f"*{headline}*", "1,240 → 1,151 images/s", "-7.2 % (-9.1 % to -5.3 %)"):
        assert part in said
    assert "`bench run --model resnet50 --batch-size 8`" in said
    assert SECRET not in "".join(p.read_text() for p in tmp_path.iterdir())
    assert SECRET not in "".join(capfd.readouterr())


def test_which_nights_are_told(receiver: Receiver, tmp_path: Path) -> None:
    """Red ones and the first green after one; yellow ones between do not hide it."""
    colours = ["green", "red", "red", "yellow", "green", "green", "yellow"]
    nights = [night(colour, number=n) for n, colour in enumerate(colours)]
    posted = [n for n in range(7) if webhook.render(nights[n], nights[:n][::-1])]
    assert posted == [1, 2, 4]
    assert "after a red night" in webhook.render(nights[4], nights)
    unjudged = night("green", number=4, inconclusive=40)
    assert webhook.render(unjudged, nights[:4]) == ""
    assert webhook.render(night(number=5), [*nights[:4], unjudged])  # it hides no recovery either
    assert webhook.render(night(number=4, plan="other"), nights[:4]) == ""
    tell.everything(nights[0], [], tmp_path)
    assert receiver.got == []


def test_a_recovery_is_told_after_nights_that_say_nothing(
    receiver: Receiver, bench: Bench, tmp_path: Path
) -> None:
    """Died before its first case, then disturbed as a whole, then green: one feed of one plan."""

    def change(number: int, _: Case, made: Record) -> Record | None:
        if number == 9:
            return None
        return msgspec.structs.replace(made, warnings=["contaminated"]) if number == 10 else made

    make(tmp_path / "r", 12, change)
    for number, code in ((8, 0), (9, 1), (10, 3), (11, 0)):
        told = ("--run", run_id(number), "--out", "out")
        done = bench("regress", "--results", "r", "--no-confirm", *told)
        assert done.code == code, done.out
    died, recovered = (sent["text"] for _, _, sent in receiver.got)
    assert f"{run_id(9)} is RED: the night itself failed" in died
    assert f"{run_id(11)} is GREEN" in recovered
    assert "after a red night" in recovered
    feed = feedparser.parse((tmp_path / "out" / "feed.xml").read_text())
    assert feed.feed.title == "Nights of the plan nightly"
    assert [e.published[:10] for e in feed.entries] == [f"2026-10-{n:02d}" for n in (12, 11, 10, 9)]


def test_a_broken_server_is_asked_once_more(receiver: Receiver) -> None:
    """Not twice more; and who says the request is wrong is not asked again."""
    receiver.answers = [500]
    deliver()
    assert len(receiver.got) == 2
    receiver.answers = [503, 502, 500]
    with pytest.raises(Untold, match=r"^the webhook answered 502$"):
        deliver()
    assert len(receiver.got) == 4
    receiver.answers = [404]
    with pytest.raises(Untold, match=r"^the webhook answered 404$"):
        deliver()
    assert len(receiver.got) == 5


def test_redirects_are_refused(receiver: Receiver) -> None:
    """To wherever: neither the message nor a bare request arrives there."""
    for place in (f"http://127.0.0.1:{receiver.server_port}/else", "file:///etc/passwd"):
        receiver.got.clear()
        receiver.answers = [place]
        with pytest.raises(Untold, match=r"^the webhook answered 302$"):
            deliver()
        assert [path for path, _, _ in receiver.got] == [f"/services/{SECRET}?token={SECRET}"]


def test_a_silent_server_is_not_waited_for(receiver: Receiver) -> None:
    """The time-out, twice."""
    receiver.seconds = 1.5
    with pytest.raises(Untold, match=r"^the webhook did not answer within 0\.2 s$"):
        deliver(timeout_s=0.2)
    assert len(receiver.got) == 2


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (f"http://127.0.0.1:9/{SECRET}", "the webhook cannot be reached"),
        (f"file:///{SECRET}", "the webhook's address is not one of http or https"),
        (f"{SECRET}", "the webhook's address is not one of http or https"),
        (f"http://user:{SECRET}@127.0.0.1/", "the webhook's address cannot be used"),
        (f"http://127.0.0.1:{SECRET}/", "the webhook's address cannot be used"),
        (f"http://127.0.0.1/{SECRET} \n{SECRET}", "the webhook's address cannot be used"),
        (f"http://[{SECRET}/", "the webhook's address cannot be used"),
    ],
)
def test_no_sentence_holds_the_address(
    url: str,
    reason: str,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Not even its host, whatever is wrong with it."""
    monkeypatch.setenv("BENCH_WEBHOOK_URL", url)
    monkeypatch.setattr("time.sleep", lambda _: None)
    untold = tell.everything(night("red"), [], tmp_path)
    assert untold == [f"The outlet webhook could not tell of the night: {reason}."]
    assert "".join(capfd.readouterr()) == ""


def test_without_a_variable_nothing_is_posted(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Unset or empty."""
    for value in (None, " "):
        monkeypatch.delenv("BENCH_WEBHOOK_URL", raising=False)
        if value is not None:
            monkeypatch.setenv("BENCH_WEBHOOK_URL", value)
        assert tell.everything(night("red"), [], tmp_path) == []
    assert receiver.got == []


@given(text=hostile)
@settings(max_examples=200, deadline=None)
def test_no_word_is_slacks_markup(text: str) -> None:
    """Nobody is woken by a name: no `<…>` and no @name in any text."""
    sent = json.loads(webhook.render(spoilt_night(text), []))
    for said in [sent["text"], *(b["text"]["text"] for b in sent["blocks"])]:
        assert said.strip()
        assert not set(said) & set("<>")
        for reference in said.split("&")[1:]:
            assert reference.startswith(("amp;", "lt;", "gt;"))
        assert "@" not in said.replace("@\u200b", "")


@pytest.mark.parametrize("words", ["x" * 500, "&" * 500, "a"])
def test_the_message_is_within_slacks_limits(words: str) -> None:
    """50 blocks, 3,000 characters a text and what was measured for all of them."""
    many = [spoilt(words) for _ in range(200)]
    sent = json.loads(webhook.render(spoilt_night(words, *many), []))
    texts = [b["text"]["text"] for b in sent["blocks"]]
    assert 3 < len(texts) <= 50
    assert max(map(len, texts)) <= 3_000
    assert not any(re.search(r"&(?!amp;|lt;|gt;)", text) for text in texts)
    assert sum(map(len, texts)) <= 13_000
    said = [t for t in texts if t.startswith("🔴")]
    assert texts[-1] == f"… and {200 - (len(said) - 1)} more."
