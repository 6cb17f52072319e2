"""Peak memory of each case: of the device where it has its own, else of the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.charts import COLOURS, figure_of_cases

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PLACE = 30
TITLE = "Peak memory"


def draw(rows: pd.DataFrame) -> Figure | None:
    """A bar a case."""
    device, host = rows["peak_device_memory_bytes"], rows["peak_host_memory_bytes"]
    peak = device.fillna(host)
    shown = rows[peak.notna()]
    if shown.empty:
        return None
    sizes = peak[shown.index] / 2**30
    made, axis = figure_of_cases(shown)
    for place, (size, own) in enumerate(zip(sizes, device[shown.index].notna(), strict=True)):
        axis.barh(place, size, color=COLOURS[2] if own else COLOURS[0])
        axis.text(size, place, f"  {size:.2f}", va="center", fontsize=8)
    axis.grid(visible=False, axis="y")
    axis.margins(x=0.12)
    axis.set_xlabel("GiB (blue: of the host; green: of the device)")
    return made
