"""Records → one self-contained HTML file and a PNG a chart. Imports no torch."""

from __future__ import annotations

import base64
import io
import numbers
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment as Templates
from jinja2 import PackageLoader, StrictUndefined
from msgspec import Struct

import bench
from bench import analysis, article, int8, nightly, registry, store, words
from bench.errors import NothingToReport, WrongUse
from bench.facts import DeviceState, Environment
from bench.schema import WARNINGS, columns

# What the environment table calls the columns whose names would not do.
NAMES = {
    "cpu_model": "CPU", "cpu_features": "instruction sets", "smt": "SMT",
    "numa_nodes": "NUMA nodes",
    "cpu_cores_physical": "physical cores", "cpu_cores_logical": "logical cores",
    "cpu_cores_usable": "usable cores", "cpu_governor": "governor", "libc": "C library",
    "huge_pages": "transparent huge pages", "virtualised": "virtual machine",
    "mig_profile": "MIG profile", "mig_mode": "MIG mode", "ecc": "ECC", "vbios": "VBIOS",
    "python": "Python", "torch_onednn": "torch's oneDNN",
    "torch_mkl": "torch's MKL", "torch_blas": "torch's BLAS", "torch_openmp": "torch's OpenMP",
    "bench_version": "resnet-bench", "git_commit": "commit", "git_dirty": "uncommitted changes",
    "environment_variables": "variables",
}  # fmt: skip
FACTS = ("driver", *(c.name for noun in (DeviceState, Environment) for c in columns(noun)))
UNITS = {"_mhz": "MHz", "_w": "W"}


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
    grid = analysis.cases(found.frame)
    if grid.empty:
        raise NothingToReport(f"No record of a case in {results}; measure first: bench run.")
    rows = analysis.newest(grid)
    runs = set(rows["run_id"])
    notes = analysis.machine_changes(found.frame, runs)
    notes += analysis.largest_batches(found.frame, runs)
    simulated = rows["simulated"].astype(bool)
    real = rows[~simulated].reset_index(drop=True)
    charts = sorted((draw(n, real) for n in registry.names("charts")), key=lambda c: c.place)
    headline = article.headline(real)
    nights = nightly.section(results, found.frame)
    verdicts = int8.verdicts(real, grid)
    page = _page(rows, real, verdicts, charts, headline, baseline, notes, found.passed_over, nights)
    if nights is not None:
        charts = [*charts, Chart("nights", 0, "Nights", nights.png)]
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
    verdicts: list[int8.Int8],
    charts: list[Chart],
    headline: str,
    baseline: str | None,
    notes: list[str],
    passed_over: list[str],
    nights: nightly.Section | None,
) -> str:
    templates = Templates(
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
        scalings=analysis.scalings(real),
        int8=verdicts,
        int8_training=int8.training_costs(real),
        int8_claims=list(int8.claims().values()),
        machines=_machines(rows),
        claims=analysis.article_claims(),
        warnings={c: t for c, t in WARNINGS.items() if any(c in w for w in rows["warnings"])},
        notes=notes,
        nights=nights,
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


def _machines(rows: pd.DataFrame) -> list[dict[str, str]]:
    """Facts of each machine and its software, newest first, with the devices measured there.

    What is not known is named in the last line, so that it hides nothing and fills no page.
    """
    machines = []
    grouped = rows.groupby(["cpu_model", "software_fingerprint"], dropna=False, sort=False)
    for _, group in grouped:
        last = group.iloc[-1]
        texts = {name: _text(name, last[name]) for name in FACTS}
        facts = {"devices": ", ".join(dict.fromkeys(group["device_name"].dropna()))}
        facts |= {_called(name): text for name, text in texts.items() if text is not None}
        facts["not known, or none"] = ", ".join(_called(n) for n, t in texts.items() if t is None)
        machines.append(facts)
    return machines[::-1]


def _called(column: str) -> str:
    """A column's name in words."""
    words_of_it = column.removesuffix("_bytes").removesuffix("_mhz").removesuffix("_w")
    return NAMES.get(column, words_of_it.replace("_", " "))


def _text(column: str, value: Any) -> str | None:
    """A fact with its unit; None where there is none."""
    if not pd.api.types.is_scalar(value):
        return ", ".join(value) or None
    if pd.isna(value) or value == "":
        return None
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if not isinstance(value, numbers.Real):
        return str(value)
    if column.endswith("_bytes"):
        return f"{float(value) / 2**30:.1f} GiB"
    unit = next((unit for suffix, unit in UNITS.items() if column.endswith(suffix)), "")
    return f"{float(value):g} {unit}".strip()


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
