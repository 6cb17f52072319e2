"""Two selectors on records → which case meets which, in which runs and rounds. Pure functions."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
from msgspec import Struct

from bench import selectors, words
from bench.analysis import Row
from bench.selectors import CASE_FIELDS, Selector
from bench.stats.ratios import FEWEST_PAIRS

RATE = "throughput_images_per_s"


class Key(NamedTuple):
    """What the two sides of a pair agree in."""

    work: tuple[str, ...]  # fields of the case, and the purpose
    machine: tuple[str, ...]
    simulated: bool


class Pair(Struct, frozen=True):
    """Two cases: all rounds of the chosen run of each, and the numbers of rounds that meet."""

    a: list[Row]
    b: list[Row]
    common: list[int]  # measured on both sides
    fresh: list[int]  # of these, in an interpreter of its own on both sides

    @property
    def decides(self) -> bool:
        """Forked workers share one memory layout: many of them are still one process."""
        return len(self.fresh) >= FEWEST_PAIRS

    @property
    def used(self) -> tuple[list[Row], list[Row]]:
        """The rounds compared: those that decide, or all common ones if they are too few."""
        rounds = self.fresh if self.decides else self.common
        a, b = ([r for r in rows if r["round"] in rounds] for rows in (self.a, self.b))
        return a, b


class Lonely(Struct, frozen=True):
    """A case that only side `name` has: its newest run's rounds, and why it has no partner."""

    name: str
    rows: list[Row]
    reason: str


def pairs(frame: pd.DataFrame, a: Selector, b: Selector) -> list[Pair | Lonely]:
    """Every case that `a` or `b` selects, in order of A. Raises WrongUse.

    Two cases pair if they agree in every field but those for which both
    selectors give a value, and another one each; on one machine; both real or
    both simulated. frame: records as the store reads them, not empty.
    """
    named = {f for f in a.fields.keys() & b.fields.keys() if a.fields[f] != b.fields[f]}
    left, right = (_by_key(selectors.choose(frame, s), named) for s in (a, b))
    found: list[Pair | Lonely] = [
        _pair(rows, right[key]) if key in right else _lonely("A", key, rows, right)
        for key, rows in left.items()
    ]
    return found + [_lonely("B", k, rows, left) for k, rows in right.items() if k not in left]


def _by_key(frame: pd.DataFrame, named: set[str]) -> dict[Key, list[Row]]:
    """Records of each case; `named` are the fields in which partners differ."""
    fields = [*(f for f in CASE_FIELDS if f not in named), "purpose"]
    found: dict[Key, list[Row]] = {}
    for row in frame.to_dict("records"):
        work = tuple(selectors.as_text(row[f]) for f in fields)
        key = Key(work, _machine(row, named), bool(row["simulated"]))
        found.setdefault(key, []).append(row)
    return found


def _machine(row: Row, named: set[str]) -> tuple[str, ...]:
    """The fingerprint, which holds the device; only the host where the devices differ."""
    if "machine_fingerprint" in named:
        return ()
    if not named & {"device", "device_name"}:
        return (str(row["machine_fingerprint"]),)
    memory = row["memory_bytes"]
    gib = "unknown" if words.missing(memory) else f"{memory / 2**30:.0f}"
    return (str(row["cpu_model"]), str(row["cpu_cores_physical"]), gib)


def _lonely(name: str, key: Key, rows: list[Row], others: dict[Key, list[Row]]) -> Lonely:
    other = "B" if name == "A" else "A"
    alike = [k for k in others if k.work == key.work]
    if any(k.machine == key.machine for k in alike):
        kind = "measured" if key.simulated else "simulated"
        reason = f"{other} has it only {kind}: simulated records are never compared with real ones"
    elif alike:
        reason = f"{other} has it only on another machine: name both with machine_fingerprint=…"
    else:
        reason = f"{other} has no such case"
    return Lonely(name, _newest(rows), reason)


def _pair(held_a: list[Row], held_b: list[Row]) -> Pair:
    a, b = _runs(held_a, held_b)
    left, right = ({r["round"]: r for r in rows if _measured(r)} for rows in (a, b))
    common = [n for n in left if n in right]
    fresh = [n for n in common if left[n]["worker"] == right[n]["worker"] == "fresh"]
    return Pair(a, b, common, fresh)


def _runs(a: list[Row], b: list[Row]) -> tuple[list[Row], list[Row]]:
    """The newest run that holds both cases, where they are interleaved; else the newest of each."""
    shared = {r["run_id"] for r in a} & {r["run_id"] for r in b}
    if shared and a[0]["case_id"] != b[0]["case_id"]:
        return _of_run(a, max(shared)), _of_run(b, max(shared))
    return _newest(a), _newest(b)


def _newest(rows: list[Row]) -> list[Row]:
    return _of_run(rows, max(row["run_id"] for row in rows))


def _of_run(rows: list[Row], run_id: str) -> list[Row]:
    """One record a round, in order of rounds; the last of copies."""
    found = {row["round"]: row for row in rows if row["run_id"] == run_id}
    return [found[n] for n in sorted(found)]


def _measured(row: Row) -> bool:
    return bool(row["status"] == "measured" and row[RATE] > 0)  # NaN is not more than 0
