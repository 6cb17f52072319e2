"""The README says what the code does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from bench import planning
from bench.documentation import renewed

TOP = Path(__file__).parents[1]
README = (TOP / "README.md").read_text(encoding="utf-8")


def test_the_readmes_tables_are_current() -> None:
    """Run scripts/document after a change of the schema."""
    assert renewed(README) == README


def test_the_readmes_plan_is_a_plan(tmp_path: Path) -> None:
    """The example of a plan loads."""
    example = re.search(r"```toml\n(.*?)```", README, re.DOTALL)
    assert example
    path = tmp_path / "example.toml"
    path.write_text(example[1])
    plan = planning.load(str(path))
    assert plan.budget.max_seconds == 30.0
    assert plan.repeats == 3


def test_the_readmes_links_lead_somewhere() -> None:
    """Files it names exist."""
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (TOP / target).exists(), target


def test_the_package_data_is_packed() -> None:
    """Plans, templates and references are in the wheel, with the mark of types."""
    data = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for folder in ("plans/*.toml", "templates/*", "references/*.csv", "py.typed"):
        assert folder in data["bench"]
        assert list((TOP / "bench").glob(folder))
