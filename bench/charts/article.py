"""The article's job: seconds measured or projected here, and the article's published figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.analysis import article_claims
from bench.article import timed
from bench.charts import COLOURS, figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PLACE = 0
TITLE = "The article's job: 10 epochs of ResNet-50 on CIFAR-10"


def draw(rows: pd.DataFrame) -> Figure | None:
    """A bar each; published figures are hatched. None if nothing of it was measured."""
    found = timed(rows)
    if not found:
        return None
    claims = article_claims()
    made, (axis,) = figure(8.5, 0.9 + 0.45 * (len(found) + len(claims)))
    labels, seconds = [], []
    for place, t in enumerate(found):
        colour = COLOURS[0] if t.row["device_class"] == "cpu" else COLOURS[2]
        axis.barh(place, t.seconds, color=colour, alpha=0.75 if t.projected else 1.0)
        if t.low is not None and t.high is not None:
            error = [[t.seconds - t.low], [t.high - t.seconds]]
            axis.errorbar(t.seconds, place, xerr=error, color="black", capsize=3)
        labels.append(t.label.replace(", ", ",\n", 1))
        seconds.append(max(t.seconds, t.high or 0))
    for place, claim in enumerate(claims, len(found)):
        published = float(claim["seconds"])
        axis.barh(place, published, color="white", edgecolor="grey", hatch="///")
        labels.append(f"published by the article:\n{claim['hardware']}")
        seconds.append(published)
    for place, value in enumerate(seconds):
        shown = found[place].seconds if place < len(found) else value
        unsure = place < len(found) and found[place].unsure
        text = f"  {shown:,.0f} s" + (" (no interval)" if unsure else "")
        axis.text(value, place, text, va="center", fontsize=9)
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, max(seconds) * 1.3)
    axis.set_xlabel("seconds for 10 epochs, data loading included, evaluation not")
    axis.grid(visible=False, axis="y")
    return made
