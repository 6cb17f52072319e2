"""The README's parts that are made from the code: `python -m bench.documentation README.md`."""

from __future__ import annotations

import re
import sys
from datetime import datetime
from pathlib import Path

from bench.schema import WARNINGS, columns

TYPES = {
    bool: "bool",
    int: "int64",
    float: "float64",
    str: "string",
    datetime: "timestamp[us, UTC]",
    list[str]: "list of string",
    list[float]: "list of float64",
}


def schema_table() -> str:
    """Every column: name, type, whether it can be null, its fingerprint, meaning."""
    lines = ["| column | type | null | fingerprint | meaning |", "| --- | --- | --- | --- | --- |"]
    for c in columns():
        null = "yes" if c.nullable else ""
        kind, part = TYPES[c.type], c.fingerprint or ""
        lines.append(f"| `{c.name}` | {kind} | {null} | {part} | {c.description} |")
    return "\n".join(lines)


def warnings_table() -> str:
    """Every code and what it says."""
    rows = [f"| `{code}` | {text} |" for code, text in WARNINGS.items()]
    return "\n".join(["| code | meaning |", "| --- | --- |", *rows])


def renewed(text: str) -> str:
    """`text` with each made part between its marks replaced."""
    for name, table in (("schema", schema_table()), ("warnings", warnings_table())):
        start = re.search(rf"<!-- {name}: [^\n]*-->\n", text)
        assert start is not None, f"no mark for the {name}"
        end = text.index(f"<!-- /{name} -->")
        text = text[: start.end()] + table + "\n" + text[end:]
    return text


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
