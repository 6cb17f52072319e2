"""Pictures of records: one file a chart.

A chart file holds `PLACE` (its order on the page), `TITLE` and `draw(rows)`, which
returns a matplotlib figure, or None when there is nothing to draw. `rows` has one
row a series and no simulated ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by people with any kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"


def figure(width: float, height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with `panels` axes side by side, sizes in inches."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained", dpi=150)
    axes = list(made.subplots(1, panels, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.set_axisbelow(True)
    return made, axes


def short_name(case_id: str) -> str:
    """A case id in two lines where it is long."""
    parts = case_id.split("/")
    return "/".join(parts[:7]) + ("\n" + "/".join(parts[7:]) if len(parts) > 7 else "")
