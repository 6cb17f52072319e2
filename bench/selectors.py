"""The language that picks records: `run:ID`, `latest`, `latest~1`, a date, `FIELD=VALUE`.

Parts are joined by commas. A run is named by at most one part; every other part
narrows the records by one field.
"""

from __future__ import annotations

import re
from datetime import date
from typing import TYPE_CHECKING, Any

import msgspec
import pandas as pd
from msgspec import Struct

from bench.errors import WrongUse, unknown
from bench.schema import Case

if TYPE_CHECKING:
    from collections.abc import Iterable

CASE_FIELDS = [f.name for f in msgspec.structs.fields(Case)]
FIELDS = [*CASE_FIELDS, "device_name", "machine_fingerprint"]
RUN = re.compile(r"run:(?P<id>.+)|latest(~(?P<back>\d+))?|(?P<day>\d{4}-\d{2}-\d{2})")
SHOWN = 10  # names in the sentence of an error


class Selector(Struct, frozen=True):
    """A selector as written, the part that names a run if there is one, and field → value."""

    text: str
    run: str | None
    fields: dict[str, str]


def parse(text: str) -> Selector:
    """Raises WrongUse with what is not understood."""
    run: str | None = None
    fields: dict[str, str] = {}
    for part in (p.strip() for p in text.split(",")):
        name, equals, value = (t.strip() for t in part.partition("="))
        if RUN.fullmatch(part):
            if run is not None:
                raise WrongUse(f"The selector {text!r} names two runs, {run} and {part}.")
            run = part
        elif not equals:
            raise WrongUse(
                f"The selector {part!r} is none of run:ID, latest, latest~1, a date such as "
                "2026-11-21 and FIELD=VALUE (e.g. precision=fp32)."
            )
        elif name not in FIELDS:
            raise unknown("field of a case", name, FIELDS)
        elif name in fields:
            raise WrongUse(f"The selector {text!r} names {name} twice.")
        else:
            fields[name] = value
    return Selector(text, run, fields)


def choose(frame: pd.DataFrame, selector: Selector) -> pd.DataFrame:
    """The records a selector means, at least one. Raises WrongUse naming the part that fits none.

    frame: records as the store reads them, not empty.
    """
    if selector.run is not None:
        frame = frame[frame["run_id"] == _run(frame, selector.run)]
    for name, value in selector.fields.items():
        kept = having(frame, {name: value})
        if kept.empty:
            raise WrongUse(
                f"No record that {selector.text!r} could mean has {name}={value}; "
                f"there are: {_list(sorted(set(frame[name].map(as_text))))}."
            )
        frame = kept
    return frame


def having(frame: pd.DataFrame, fields: dict[str, str]) -> pd.DataFrame:
    """Rows whose fields have these values, perhaps none."""
    for name, value in fields.items():
        frame = frame[frame[name].map(as_text).eq(value)]
    return frame


def _run(frame: pd.DataFrame, part: str) -> str:
    """The id of the run that `run:ID`, `latest`, `latest~1` or a date means."""
    match = RUN.fullmatch(part)
    assert match
    starts = frame.groupby("run_id")["started_at"].min()  # ids sort by time
    ids = [str(i) for i in starts.index]
    if match["id"]:
        return _by_prefix(match["id"], ids)
    if match["day"]:
        return _on_day(match["day"], starts)
    back = int(match["back"] or 0)
    if back >= len(ids):
        raise WrongUse(f"There is no {part}; the runs are: {_list(ids[::-1])}.")
    return ids[-1 - back]


def _by_prefix(prefix: str, ids: list[str]) -> str:
    found = [prefix] if prefix in ids else [i for i in ids if i.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    if found:
        raise WrongUse(f"run:{prefix} fits {len(found)} runs: {_list(found[::-1])}; give more.")
    raise WrongUse(f"There is no run {prefix!r}; the runs are: {_list(ids[::-1])}.")


def _on_day(text: str, starts: pd.Series[Any]) -> str:
    try:
        day = date.fromisoformat(text)
    except ValueError as error:
        raise WrongUse(f"There is no day {text} ({error}).") from error
    found = [str(i) for i, start in starts.items() if start.date() == day]
    if not found:
        runs = _list([str(i) for i in starts.index][::-1])
        raise WrongUse(f"No run began on {text} (UTC); the runs are: {runs}.")
    return found[-1]


def _list(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def as_text(value: Any) -> str:
    """A value of a case as the command line and case_id write it."""
    if pd.isna(value):
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
