"""Throughput of a plan's series night by night, with the nights at which a level changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bench.charts import COLOURS, figure, short_name
from bench.findings import Finding, Night
from bench.stats import changes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bench.history import Family, History

MOST = 8  # series shown
INK = {"red": COLOURS[1], "yellow": COLOURS[4], "green": COLOURS[2]}
FEWEST = 2  # nights of a picture


def draw(history: History, night: Night) -> Figure | None:
    """One panel a series, those with findings first; None under two nights."""
    family = next((f for f in history.families if f.metric.more_is_better), None)
    if family is None or len(history.runs) < FEWEST:
        return None
    order = _order(history, family, night)[:MOST]
    if not order:
        return None
    made, _ = figure(8.5, 0.6 + 1.2 * len(order))
    made.clear()
    axes = list(np.atleast_1d(made.subplots(len(order), 1, sharex=True)))
    sigma = np.maximum(changes.noise(family.values), 1e-3)
    for ax, s in zip(axes, order, strict=True):
        _panel(ax, history, family, s, float(sigma[s]))
        for one in night.findings:
            if _is(history, s, one):
                _mark(ax, history, one)
    made.supylabel("throughput, % of its median (dotted line: the level changed)", fontsize=8)
    return made


def _is(history: History, s: int, one: Finding) -> bool:
    names = history.series.iloc[s]
    same = one.machine_fingerprint in (None, names["machine_fingerprint"])
    return bool(names["case_id"] == one.case_id and same)


def _order(history: History, family: Family, night: Night) -> list[int]:
    """Series measured at all, those with findings first."""
    known = [s for s in range(len(history.series)) if np.isfinite(family.values[:, s]).sum() > 1]
    told = {one.case_id for one in night.findings}
    ids = history.series["case_id"]
    return sorted(known, key=lambda s: (ids[s] not in told, s))


def _panel(ax: Axes, history: History, family: Family, s: int, sigma: float) -> None:
    known = np.flatnonzero(np.isfinite(family.values[:, s]))
    logs = family.values[known, s]
    percent = 100 * np.exp(np.median(logs) - logs)
    ax.plot(known, percent, ".-", color=COLOURS[0], linewidth=0.8, markersize=4)
    for place in changes.changes(logs, sigma):
        night = int(known[place])
        ax.axvline(night - 0.5, color="black", linestyle=":", linewidth=1)
        ax.annotate(
            f"from {history.starts[night]:%m-%d}", (night - 0.5, 1),
            xycoords=("data", "axes fraction"), fontsize=7, ha="center", va="bottom",
        )  # fmt: skip
    ax.set_title(short_name(str(history.series["case_id"][s]), 90), fontsize=8, loc="left", pad=10)
    ax.tick_params(labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, linewidth=0.6)
    low, high = float(percent.min()), float(percent.max())
    low, high = min(low, 97), max(high, 103)
    ax.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    ticks = np.unique(np.linspace(0, len(history.runs) - 1, 8).astype(int))
    days = {f"{start:%Y-%m-%d}" for start in history.starts}
    form = "%Y-%m-%d" if len(days) == len(history.runs) else "%m-%d %H:%M"  # several a day
    ax.set_xticks(ticks, [f"{history.starts[i]:{form}}" for i in ticks], rotation=0)


def _mark(ax: Axes, history: History, one: Finding) -> None:
    """Shade the nights of a finding."""
    since = history.index(one.since_run or "")
    if since is None:
        return
    more: dict[str, Any] = {"color": INK[one.colour], "alpha": 0.18, "linewidth": 0}
    ax.axvspan(since - 0.5, history.tonight + 0.5, **more)
