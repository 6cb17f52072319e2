"""Inference throughput of each engine and precision, a panel a batch size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.analysis import DEFAULTS
from bench.charts import COLOURS, figure
from bench.words import missing, rate

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLACE = 5
TITLE = "Engines"
LEGEND = "black line: 95 % interval; hollow: no interval; dashed: eager fp32"
MOST_PANELS = 4
WORK = (
    "model", "image_size", "data", "weights", "classes", "deterministic", "device_name",
    "machine_fingerprint",
)  # fmt: skip


def draw(rows: pd.DataFrame) -> Figure | None:
    """A bar each; None unless two engines ran the same work."""
    shown = rows[(rows["status"] == "measured") & (rows["task"] == "infer")]
    works = shown.groupby([*WORK, "batch_size"], dropna=False)
    every = [g for _, g in works if g["engine"].nunique() > 1]
    if not every:
        return None
    groups = sorted(every, key=len, reverse=True)[:MOST_PANELS]
    groups.sort(key=lambda g: (str(g["model"].iloc[0]), int(g["batch_size"].iloc[0])))
    most = max(map(len, groups))
    made, axes = figure(4.9 * len(groups) + 0.4, 1.3 + 0.32 * most, len(groups))
    kinds = sorted(shown["precision"].unique())
    colours = {kind: COLOURS[i % len(COLOURS)] for i, kind in enumerate(kinds)}
    for axis, group in zip(axes, groups, strict=True):
        _panel(axis, group.sort_values("throughput_images_per_s"), colours)
        axis.set_title(_title(group, groups), fontsize=10)
    left = f"; not drawn: {len(every) - len(groups)} more" if len(every) > len(groups) else ""
    made.supxlabel(f"images/s ({LEGEND}{left})", fontsize=8)
    return made


def _title(group: pd.DataFrame, groups: list[pd.DataFrame]) -> str:
    """Model and batch size, and whatever else tells its work from that of the other panels."""
    own = {name: group[name].iloc[0] for name in WORK}
    differs = [n for n in WORK[1:] if any(str(g[n].iloc[0]) != str(own[n]) for g in groups)]
    more = [f"{name.replace('_', ' ')} {own[name]}" for name in differs]
    return ", ".join([str(own["model"]), f"batch {group['batch_size'].iloc[0]}", *more])


def _panel(ax: Axes, group: pd.DataFrame, colours: dict[str, str]) -> None:
    labels = []
    for place, row in enumerate(group.to_dict("records")):
        value = row["throughput_images_per_s"]
        low, high = row["throughput_ci_low"], row["throughput_ci_high"]
        unsure = missing(low) or missing(high)
        colour = colours[row["precision"]]
        fill = "white" if unsure else colour
        ax.barh(place, value, edgecolor=colour, facecolor=fill)
        if not unsure:
            error = [[value - low], [high - value]]
            ax.errorbar(value, place, xerr=error, color="black", capsize=3)
        end = value if unsure else high
        ax.text(end, place, f"  {rate(value)}", va="center", fontsize=8)
        labels.append(_label(row))
        if (row["engine"], row["precision"]) == ("eager", "fp32"):
            ax.axvline(value, color="grey", linestyle="--", linewidth=0.8, zorder=0)
    ax.set_yticks(range(len(labels)), labels, fontsize=8)
    ax.set_xlim(0, 1.25 * float(group["throughput_images_per_s"].max()))
    ax.grid(visible=False, axis="y")


USUAL = {name: DEFAULTS[name] for name in ("memory_format", "recipe", "calibration_images")}


def _label(row: dict[Any, Any]) -> str:
    """Engine and precision, and what else is not as usual."""
    more = [str(row[f]) for f, usual in USUAL.items() if row[f] != usual]
    more += [str(row["engine_mode"])] if isinstance(row["engine_mode"], str) else []
    more += [] if missing(row["threads"]) else [f"{row['threads']:g} threads"]
    return " ".join([str(row["engine"]), str(row["precision"]), *more])
