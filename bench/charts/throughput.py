"""Throughput against batch size, with 95 % intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.charts import COLOURS, MARKERS, figure
from bench.selectors import CASE_FIELDS, as_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PLACE = 10
TITLE = "Throughput against batch size"
# Whatever varies but the batch size makes a line of its own; epochs are of projected jobs only.
LINE = [
    *(f for f in CASE_FIELDS if f not in ("batch_size", "task", "device", "epochs", "full")),
    "device_name",
    "machine_fingerprint",
]


def draw(rows: pd.DataFrame) -> Figure | None:
    """A panel a task, a line a precision, engine and device. Projected jobs are left out."""
    shown = rows[(rows["status"] == "measured") & rows["epochs"].isna()]
    if shown.empty:
        return None
    tasks = sorted(shown["task"].unique())
    varying = [f for f in LINE if shown[f].nunique(dropna=False) > 1] or ["precision"]
    labels = shown[varying].map(as_text).agg(", ".join, axis=1)
    made, axes = figure(6.4 * len(tasks) + 0.4, 3.6, len(tasks))
    look = {name: _look(number) for number, name in enumerate(sorted(set(labels)))}
    for axis, task in zip(axes, tasks, strict=True):
        here = shown[shown["task"] == task]
        for label, line in here.groupby(labels[here.index]):
            ordered = line.sort_values("batch_size")
            rate = ordered["throughput_images_per_s"]
            error = [rate - ordered["throughput_ci_low"], ordered["throughput_ci_high"] - rate]
            colour, marker, line_style = look[str(label)]
            axis.errorbar(
                ordered["batch_size"], rate, yerr=error, color=colour, marker=marker,
                capsize=3, label=label, linestyle=line_style,
            )  # fmt: skip
            unsure = ordered[ordered["throughput_ci_low"].isna()]
            axis.plot(
                unsure["batch_size"], unsure["throughput_images_per_s"], linestyle="none",
                marker=marker, color=colour, markerfacecolor="white", zorder=3,
            )  # fmt: skip
        sizes = sorted(shown["batch_size"].unique())
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(s) for s in sizes])
        axis.set_ylim(bottom=0)
        axis.set_title({"train": "training", "infer": "inference"}[task], fontsize=10)
        axis.set_xlabel("batch size (hollow: a number without an interval)")
        axis.set_ylabel("images/s")
        axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return made


def _look(number: int) -> tuple[str, str, str]:
    """Colour, marker and line of a series: no two alike among dozens."""
    again = number // len(COLOURS)
    marker = MARKERS[(number + again) % len(MARKERS)]
    return COLOURS[number % len(COLOURS)], marker, ("-", "--", ":", "-.")[again % 4]
