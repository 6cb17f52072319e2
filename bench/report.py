"""Records → one self-contained HTML file and a PNG a chart. Imports no torch."""

from __future__ import annotations

import base64
import io
import numbers
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from msgspec import Struct

import bench
from bench import analysis, article, registry, store, words
from bench.errors import WrongUse
from bench.schema import WARNINGS

# Columns of the environment table, with what they are called.
FACTS = {
    "cpu_model": "CPU", "cpu_cores_physical": "physical cores", "cpu_cores_usable": "usable cores",
    "cpu_features": "instruction sets", "memory_bytes": "memory", "cpu_governor": "governor",
    "virtualised": "virtual machine", "kernel": "kernel", "driver": "driver",
    "python": "Python", "torch": "torch", "torchvision": "torchvision", "torchao": "torchao",
    "bench_version": "resnet-bench", "git_commit": "commit", "git_dirty": "uncommitted changes",
    "environment_variables": "variables",
}  # fmt: skip


class Chart(Struct, frozen=True):
    """A drawn chart, or the fact that there is nothing to draw."""

    name: str
    place: int
    title: str
    png: bytes | None

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png or b"").decode()


class Made(Struct, frozen=True):
    """What was written."""

    headline: str
    path: Path
    passed_over: list[str]


def make(results: Path, out: Path, baseline: str | None = None) -> Made:
    """Write `out`/index.html and `out`/CHART.png. Raises NothingToReport or WrongUse."""
    found = store.read_some(results)
    rows = analysis.newest(found.frame)
    simulated = rows["simulated"].astype(bool)
    real = rows[~simulated].reset_index(drop=True)
    charts = sorted((draw(n, real) for n in registry.names("charts")), key=lambda c: c.place)
    headline = article.headline(real)
    page = _page(rows, real, charts, headline, baseline, found.passed_over)
    _write(out, page, charts)
    return Made(headline, out / "index.html", found.passed_over)


def draw(name: str, rows: pd.DataFrame) -> Chart:
    """One chart by its name."""
    module = registry.load("charts", name)
    figure = None if rows.empty else module.draw(rows)
    if figure is None:
        return Chart(name, module.PLACE, module.TITLE, None)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Chart(name, module.PLACE, module.TITLE, buffer.getvalue())


def _page(
    rows: pd.DataFrame,
    real: pd.DataFrame,
    charts: list[Chart],
    headline: str,
    baseline: str | None,
    passed_over: list[str],
) -> str:
    templates = Environment(
        loader=PackageLoader("bench"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("report.html.j2").render(
        headline=headline,
        charts=charts,
        rows=_plain(rows),
        speedups=analysis.speedups(real, baseline),
        baseline=baseline or analysis.DEFAULT_BASELINE,
        machines=_machines(rows),
        claims=analysis.article_claims(),
        warnings={c: t for c, t in WARNINGS.items() if any(c in w for w in rows["warnings"])},
        passed_over=passed_over,
        version=bench.__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        words=words,
        command=analysis.command,
    )


def _plain(rows: pd.DataFrame) -> list[dict[Any, Any]]:
    """Rows for the template, with None for every unknown."""
    return [
        {k: None if pd.api.types.is_scalar(v) and pd.isna(v) else v for k, v in row.items()}
        for row in rows.to_dict("records")
    ]


def _machines(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Facts of each machine and its software, newest first, with the devices measured there."""
    machines = []
    grouped = rows.groupby(["cpu_model", "software_fingerprint"], dropna=False, sort=False)
    for _, group in grouped:
        last = group.iloc[-1]
        facts = {"devices": ", ".join(dict.fromkeys(group["device_name"].dropna()))}
        for column, name in FACTS.items():
            value = last[column]
            if isinstance(value, numbers.Real) and column.endswith("_bytes"):
                value = f"{float(value) / 2**30:.1f} GiB"
            if not pd.api.types.is_scalar(value):
                value = ", ".join(value)
            facts[name] = words.DASH if pd.isna(value) or value == "" else str(value)
        machines.append(facts)
    return machines[::-1]


def _write(out: Path, page: str, charts: list[Chart]) -> None:
    """Write whole files; a picture that is no longer drawn does not stay behind."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for chart in charts:
            path = out / f"{chart.name}.png"
            if chart.png is None:
                path.unlink(missing_ok=True)
            else:
                _replace(path, chart.png)
        _replace(out / "index.html", page.encode())
    except OSError as error:
        raise WrongUse(f"The report cannot be written to {out} ({error.strerror}).") from error


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)
