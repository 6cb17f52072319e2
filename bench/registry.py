"""Plug-ins found by their place: a file's name is its plug-in's name.

Nothing is registered anywhere. Adding `bench/devices/xpu.py` adds the device
`xpu`; adding `bench/engines/eager/fp8.py` adds a kind of precision to an engine.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent

# kind -> folder below bench/ and what one plug-in is there
FOLDERS = {
    "devices": ("devices", "*.py"),
    "engines": ("engines", "*/__init__.py"),
    "data": ("data", "*.py"),
    "recipes": ("recipes", "*.py"),
    "charts": ("charts", "*.py"),
    "plans": ("plans", "*.toml"),
    "outlets": ("outlets", "*.py"),
}


def paths(kind: str) -> dict[str, Path]:
    """Name -> file of every plug-in of a kind, sorted by name."""
    folder, pattern = FOLDERS[kind]
    found = sorted((ROOT / folder).glob(pattern))
    named = {(p.parent.name if p.stem == "__init__" else p.stem): p for p in found}
    # A folder's own __init__.py and helper files with a leading underscore are no plug-ins.
    return {n: p for n, p in named.items() if n != folder and not n.startswith("_")}


def names(kind: str) -> list[str]:
    """The names of all plug-ins of a kind. Imports none of them."""
    return list(paths(kind))


def load(kind: str, name: str) -> ModuleType:
    """Import the plug-in `name` of a kind. Dots go deeper: `load("engines", "eager.int8")`.

    Raises ModuleNotFoundError if there is no such file.
    """
    return importlib.import_module(f"bench.{FOLDERS[kind][0]}.{name}")


def modes(engine: str) -> dict[str, str]:
    """What an engine's `--engine-mode` can be, and what it means; imports no more than that."""
    found: dict[str, str] = getattr(load("engines", engine), "MODES", {})
    return found


def builds_slowly(engine: str) -> bool:
    """Whether an engine says of itself that it builds for a minute rather than for seconds."""
    return bool(getattr(load("engines", engine), "SLOW_BUILD", False))


def has(kind: str, name: str) -> bool:
    """Whether `load(kind, name)` would find a file."""
    path = ROOT / FOLDERS[kind][0] / Path(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def describe(kind: str) -> dict[str, str]:
    """Name -> one-line description, read from the files as text."""
    return {name: _first_line(path) for name, path in paths(kind).items()}


def _first_line(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".toml":
        return text.partition("\n")[0].lstrip("# ")
    doc = ast.get_docstring(ast.parse(text)) or ""
    return doc.partition("\n")[0]
