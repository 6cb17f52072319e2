"""What `bench list` prints. Reads plug-ins as text and imports none."""

from __future__ import annotations

from bench import models, registry
from bench.errors import unknown
from bench.precisions import PRECISIONS
from bench.schema import BUDGETS


def kinds() -> dict[str, dict[str, str]]:
    """Kind -> name -> one-line description."""
    tables = {kind: registry.describe(kind) for kind in registry.FOLDERS}
    tables["precisions"] = {p.name: p.description for p in PRECISIONS.values()}
    tables["models"] = models.describe()
    tables["budgets"] = {
        b.name: f"± {100 * b.target_ci:g} %, at most {b.max_seconds:g} s a case, and "
        f"{b.latency_seconds:g} s for latency"
        for b in BUDGETS.values()
    }
    return dict(sorted(tables.items()))


def text(kind: str | None) -> str:
    """One kind, or all of them under their names. Raises WrongUse for an unknown kind."""
    tables = kinds()
    if kind is not None and kind not in tables:
        raise unknown("kind of plug-in", kind, tables)
    if kind is not None:
        return "\n".join(_lines(tables[kind], ""))
    parts = ["\n".join([name, *_lines(table, "  ")]) for name, table in tables.items()]
    return "\n\n".join(parts)


def _lines(table: dict[str, str], indent: str) -> list[str]:
    width = max(map(len, table), default=0)
    return [f"{indent}{name:<{width}}  {description}" for name, description in table.items()]
