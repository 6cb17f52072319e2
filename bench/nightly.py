"""What the report says of nights: the newest judged one, its findings, the history."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pandas as pd
from msgspec import Struct

from bench import findings, history
from bench.findings import Accepted, Night

SHOWN = 30  # nights listed


class Section(Struct, frozen=True):
    """The newest judged night, the nights before it newest first, and the picture as PNG."""

    night: Night
    earlier: list[Night]
    accepted: list[Accepted]
    png: bytes | None

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png or b"").decode()


def section(results: Path, frame: pd.DataFrame) -> Section | None:
    """None where no night was judged yet. frame: records with every column."""
    from bench.charts import _nights

    judged = findings.nights(results)
    if not judged:
        return None
    night = max(judged, key=lambda n: n.started_at)
    earlier = [n for n in judged if n.plan == night.plan and n.run_id != night.run_id]
    frame = frame.assign(
        **{code: [code in w for w in frame["warnings"]] for code in history.DISTURBED}
    )
    found = history.of(frame, night.run_id)
    figure = None if found is None else _nights.draw(found, night)
    png = None
    if figure is not None:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        png = buffer.getvalue()
    earlier.sort(key=lambda n: n.started_at, reverse=True)
    return Section(night, earlier[:SHOWN], findings.accepted(results), png)
