"""Pictures of records: one file a chart.

A chart file holds `PLACE` (its order on the page), `TITLE` and `draw(rows)`, which
returns a matplotlib figure, or None when there is nothing to draw. `rows` has one
row a series and no simulated ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by people with any kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"


def figure(width: float, height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with `panels` axes side by side, sizes in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["text.parse_math"] = False  # a $ in a folder's name is a $
    made = Figure(figsize=(width, height), layout="constrained", dpi=150)
    axes = list(made.subplots(1, panels, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.set_axisbelow(True)
    return made, axes


def figure_of_cases(rows: pd.DataFrame) -> tuple[Figure, Axes]:
    """A figure with a line for each row, first on top, tall enough for the cases' names.

    Where rows come from several machines the device is named too.
    """
    several = rows[["device_name", "machine_fingerprint"]].drop_duplicates()["device_name"].size > 1
    names = [
        short_name(case) + (f"\n{device}" if several else "")
        for case, device in zip(rows["case_id"], rows["device_name"], strict=True)
    ]
    text_lines = sum(name.count("\n") + 1 for name in names)
    made, (axis,) = figure(8.5, 1.1 + 0.2 * len(names) + 0.14 * text_lines)
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.set_ylim(len(names) - 0.4, -0.6)
    return made, axis


def short_name(case_id: str, width: int = 44) -> str:
    """A case id broken into lines of about `width` characters, between its parts."""
    lines = [""]
    for part in case_id.split("/"):
        if lines[-1] and len(lines[-1]) + len(part) >= width:
            lines.append("")
        lines[-1] += ("/" if lines[-1] else "") + part
    return "\n".join(lines)
