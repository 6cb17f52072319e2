"""Latency percentiles of one request at a time, host to host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.charts import COLOURS, MARKERS, figure_of_cases

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PLACE = 20
TITLE = "Latency percentiles"
PERCENTILES = ("p50", "p90", "p95", "p99")


def draw(rows: pd.DataFrame) -> Figure | None:
    """A row a case, a mark a percentile; a percentile without enough requests is not drawn."""
    shown = rows[rows["latency_p50_ms"].notna()].sort_values("latency_p50_ms")
    if shown.empty:
        return None
    made, axis = figure_of_cases(shown)
    for name, colour, marker in zip(PERCENTILES, COLOURS, MARKERS, strict=False):
        values = shown[f"latency_{name}_ms"]
        if values.notna().any():
            axis.scatter(values, range(len(shown)), color=colour, marker=marker, label=name, s=28)
    axis.set_xlim(left=0)
    axis.set_xlabel("milliseconds a request (a request is one batch)")
    axis.legend(fontsize=8, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    return made
