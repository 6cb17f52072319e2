"""Engines: the same work, the same answer, or no number."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import TINY, Bench

pytestmark = pytest.mark.slow
TOP = Path(__file__).parents[1]

WRONG = '''"""Eager, but off by one."""

from bench.engines.eager.float import MODULES, Eager, refuses


class Wrong(Eager):
    def __call__(self, images):
        return super().__call__(images) + 1


build = Wrong
'''


def test_a_wrong_answer_is_a_failed_case(bench: Bench, tmp_path: Path) -> None:
    """However fast it is; the right engine beside it is measured, and says how far it is off."""
    copy = tmp_path / "copy"
    shutil.copytree(TOP / "bench", copy / "bench", ignore=shutil.ignore_patterns("__pycache__"))
    folder = copy / "bench" / "engines" / "wrong"
    folder.mkdir()
    (folder / "__init__.py").write_text('"""Wrong answers."""\n')
    (folder / "float.py").write_text(WRONG)
    arguments = [*TINY, "--device", "cpu", "--engine", "wrong,eager", "--json"]
    done = bench("run", *arguments, env={"PYTHONPATH": os.fspath(copy)})
    assert done.code == 4
    wrong, eager = done.cases
    assert wrong["status"] == "failed"
    assert "a wrong answer is not a measurement" in wrong["reason"]
    assert wrong["throughput_images_per_s"] is None
    assert eager["output_error"] < 1e-5


def test_a_compiled_model_gives_the_same_answer(bench: Bench) -> None:
    """Compilation is set-up, not measuring."""
    done = bench("run", *TINY, "--device", "cpu", "--engine", "compile", "--json")
    (record,) = done.cases
    assert record["status"] == "measured"
    assert record["output_error"] < 1e-4
    assert record["setup_s"] > record["build_s"] > record["first_step_s"]
