"""A message to the webhook in BENCH_WEBHOOK_URL, in the form that Slack reads.

Told are red nights, and the first green one after a red one; nothing else, for a message every
morning is one that nobody reads. A night that judged nothing is no recovery, and hides none.

Format: Slack's incoming webhooks, `text` beside Block Kit's `blocks`; Mattermost, Rocket.Chat
and others read the `text`. Limits: 50 blocks, 3,000 characters a text; a message of some 13,200
characters in all is refused too, which is not documented (slackapi/bolt-js, issue 2509).
`&`, `<` and `>` are Slack's markup, `<!channel>` would wake everybody; a zero-width space after
@ keeps the readers that know no `<…>` from doing the same.

The URL is a secret: it is read when it is needed, and no text says any of it, not even the
host. Redirects are refused, since they would carry the message to who knows whom.
"""

from __future__ import annotations

import http.client
import os
import re
import time
import urllib.error
import urllib.request
from typing import IO

import msgspec

from bench.errors import Untold
from bench.findings import Finding, Night
from bench.outlets import ICONS, amounts, change, clipped, counts, ordered, others, plain, title

VARIABLE = "BENCH_WEBHOOK_URL"
BLOCKS = 50
LONGEST = 3_000
ALL = 10_000
ESCAPED = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "@\u200b"})


def render(night: Night, earlier: list[Night]) -> str:
    """The message as JSON; empty if this night is none to tell of."""
    # Neither a yellow night nor one that judged nothing says that it is over.
    telling = [n for n in others(night, earlier) if n.colour == "red" or _green(n)]
    recovered = _green(night) and bool(telling) and telling[-1].colour == "red"
    if night.colour != "red" and not recovered:
        return ""
    text = _escaped(night.headline + (" (after a red night)" if recovered else ""))
    first = f"{ICONS[night.colour]} *{text}*\n{_escaped(counts(night))}"
    # Slack refuses a message with an empty text in it.
    texts = [first, *filter(None, map(_escaped, night.notes[:5]))]
    left = ALL - sum(map(len, texts))
    found = ordered(night)
    for place, finding in enumerate(found):
        said = _finding(finding)
        left -= len(said)
        if left < 0 or len(texts) == BLOCKS - 1:
            texts.append(f"… and {len(found) - place} more.")
            break
        texts.append(said)
    blocks = [{"type": "section", "text": _mrkdwn(t)} for t in texts]
    return msgspec.json.encode({"text": f"{ICONS[night.colour]} {text}", "blocks": blocks}).decode()


def _green(night: Night) -> bool:
    return night.colour == "green" and night.judged


def deliver(text: str, timeout_s: float = 10, pause_s: float = 1) -> None:
    """Post the message, a second time where the first met a broken server or connection."""
    url = os.environ.get(VARIABLE, "").strip()
    if not url:
        return
    if url.partition(":")[0].lower() not in {"http", "https"}:
        raise Untold("the webhook's address is not one of http or https")
    said = _post(url, text, timeout_s)
    if said is not None and said.again:
        time.sleep(pause_s)
        said = _post(url, text, timeout_s)
    if said is not None:
        raise Untold(said.reason)


class _Failure(msgspec.Struct, frozen=True):
    reason: str
    again: bool


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> None:
        """None: urllib then treats the redirect as the error it is here."""


def _post(url: str, text: str, timeout_s: float) -> _Failure | None:
    """None if it was taken. Errors are named by kind only: their own texts may hold the URL."""
    try:
        request = urllib.request.Request(  # noqa: S310 - the scheme has been looked at
            url, data=text.encode(), headers={"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=timeout_s):
            return None
    except urllib.error.HTTPError as error:
        error.close()
        return _Failure(f"the webhook answered {error.code}", error.code >= 500)
    except (ValueError, http.client.InvalidURL):
        return _Failure("the webhook's address cannot be used", False)
    except (OSError, http.client.HTTPException) as error:
        late = isinstance(getattr(error, "reason", error), TimeoutError)
        what = f"did not answer within {timeout_s:g} s" if late else "cannot be reached"
        return _Failure(f"the webhook {what}", True)


def _finding(finding: Finding) -> str:
    facts = [fact for fact in (amounts(finding), change(finding)) if fact]
    parts = [f"{ICONS[finding.colour]} *{_escaped(title(finding))}*"]
    parts += [_escaped(", ".join(facts))] if facts else []
    parts.append(_escaped(finding.reason))
    parts += [f"First suspect: {_escaped(finding.causes[0])}"] if finding.causes else []
    command = plain(finding.command or "")
    # Half a command is a wrong one, and so is one in which an invisible space was put after an @.
    if command and len(command) <= 400 and not set(command) & set("@`"):
        parts.append(f"`{command.translate(ESCAPED)}`")
    return "\n".join(parts)


def _mrkdwn(text: str) -> dict[str, str | bool]:
    """Verbatim: Slack looks for no links and names of channels by itself. No half references."""
    cut = re.sub(r"&[a-z]{0,3}$", "", text[:LONGEST])
    return {"type": "mrkdwn", "text": cut, "verbatim": True}


def _escaped(text: str) -> str:
    return clipped(text).translate(ESCAPED)
