"""One file, no list to touch: the examples of CONTRIBUTING.md, added and run as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import registry
from tests.conftest import TINY, Bench

TOP = Path(__file__).parents[1]
BLOCK = re.compile(r"```python\n# (bench/\S+\.py)\n(.*?)```", re.DOTALL)


@pytest.fixture
def extended(tmp_path: Path) -> dict[str, str]:
    """The environment of a copy of the package with every example added."""
    copy = tmp_path / "copy"
    shutil.copytree(TOP / "bench", copy / "bench", ignore=shutil.ignore_patterns("__pycache__"))
    blocks = BLOCK.findall((TOP / "CONTRIBUTING.md").read_text())
    assert len(blocks) == 7
    for name, code in blocks:
        path = copy / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
    return {"PYTHONPATH": os.fspath(copy)}


def test_examples_are_listed(bench: Bench, extended: dict[str, str]) -> None:
    """`bench list` knows them by the first line of their docstring."""
    out = bench("list", env=extended).out
    lines = ["SGD on the signs", "Uniformly grey", "TorchScript traces", "Set-up time of each"]
    for line in [*lines, "One word for a lamp"]:
        assert line in out


def test_the_example_of_an_outlet_tells(extended: dict[str, str], tmp_path: Path) -> None:
    """`bench.tell` uses an outlet that nobody told it about."""
    code = (
        "from datetime import UTC, datetime; from pathlib import Path\n"
        "from bench import findings, tell\n"
        "then = datetime(2026, 1, 1, tzinfo=UTC)\n"
        "words = {'run_id': 'a', 'plan': 'p', 'colour': 'red'}\n"
        "night = findings.Night(**words, started_at=then, judged_at=then)\n"
        "assert tell.everything(night, [], Path('out')) == []\n"
    )
    gone = ("BENCH_WEBHOOK_URL", "GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS")
    env = {k: v for k, v in os.environ.items() if k not in gone} | extended
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True)
    assert (tmp_path / "out/lamp.txt").read_text() == "red\n"


@pytest.mark.slow
def test_examples_run(bench: Bench, extended: dict[str, str], tmp_path: Path) -> None:
    """A device, a data source, a recipe, an engine and a chart that nobody told anybody about."""
    train = [*TINY, "--task", "train", "--batch-size", "4", "--device", "slowcpu:0"]
    train += ["--data", "grey", "--recipe", "signsgd", "--json"]
    done = bench("run", *train, env=extended)
    assert done.code == 0, done.err
    record = done.cases[0]
    assert (record["device"], record["threads_used"]) == ("slowcpu:0", 1)
    assert (record["data"], record["recipe"]) == ("grey", "signsgd")
    done = bench(
        "run", *TINY, "--engine", "scripted", "--task", "infer,train", "--json", env=extended
    )
    assert [r["status"] for r in done.cases] == ["measured", "skipped"]
    assert done.cases[1]["reason"].startswith("a trace does not train")
    int8 = bench(
        "run", *TINY, "--engine", "scripted", "--precision", "int8", "--json", env=extended
    )
    assert int8.code == 3
    assert "the engine scripted has no int8" in int8.records[0]["reason"]
    assert bench("report", env=extended).code == 0
    assert (tmp_path / "reports" / "latest" / "setup.png").is_file()


def test_every_plug_in_has_a_line_about_it() -> None:
    """`bench list` never shows an empty description."""
    for kind in registry.FOLDERS:
        for name, line in registry.describe(kind).items():
            assert line, (kind, name)
            assert "\n" not in line
