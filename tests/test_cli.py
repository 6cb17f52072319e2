"""The command line: help, wrong use, what it imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Bench


def test_help_is_plain_text_in_three_groups(bench: Bench) -> None:
    """`bench run --help` lists options under What, How hard and Where, without boxes."""
    done = bench("run", "--help")
    assert done.code == 0
    places = [done.out.index(f"\n{name}:\n") for name in ("What", "How hard", "Where")]
    assert places == sorted(places)
    assert "─" not in done.out


WRONG = {
    "precision": (["run", "--precision", "int9"], "did you mean 'int8'?"),
    "model": (["run", "--model", "resnet5"], "did you mean 'resnet50'?"),
    "device": (["run", "--device", "cude"], "did you mean 'cuda'?"),
    "plan": (["run", "--plan", "quik"], "did you mean 'quick'?"),
    "task": (["run", "--task", "trian"], "did you mean 'train'?"),
    "engine": (["run", "--engine", "eagre"], "did you mean 'eager'?"),
    "recipe": (["run", "--recipe", "sdg"], "did you mean 'sgd'?"),
    "data": (["run", "--data", "cifar"], "did you mean 'cifar10'?"),
    "batch 0": (["run", "--batch-size", "0"], "at least 1, not 0"),
    "batch -8": (["run", "--batch-size=-8"], "at least 1, not -8"),
    "batch word": (["run", "--batch-size", "big"], "'big' is not a whole number"),
    "small image": (["run", "--image-size", "31"], "at least 32, not 31"),
    "amp twice": (["run", "--amp", "--precision", "fp32"], "give one of them, not both"),
    "no plan file": (["run", "--plan", "absent.toml"], "absent.toml cannot be read"),
    "no folder": (["run", "--data", "folder:absent"], "there is no such folder"),
    "no argument": (["run", "--data", "folder"], "needs a folder"),
    "target": (["run", "--target-ci", "most"], "not a share such as 1%"),
    "seconds": (["run", "--max-seconds", "-1"], "more than 0 seconds"),
    "timeout": (["run", "--timeout", "nan"], "more than 0 seconds"),
    "repeats": (["run", "--repeats", "0"], "expected 1 or more"),
    "weights": (["run", "--weights", "absent.pt"], "neither random, default nor a file"),
    "results": (["run", "--results", "/proc/results"], "is not writable"),
    "full": (["run", "--plan", "one", "--full"], "--full trains whole epochs"),
    "seed": (["run", "--seed", "9223372036854775808"], "too large"),
    "long weights": (["run", "--weights", "w" * 5000], "neither random, default nor a file"),
    "long folder": (["run", "--data", "folder:" + "d" * 5000], "too long"),
    "budget": (["run", "--budget", "slow"], "slow"),
    "selector": (["compare", "fp32", "latest"], "'fp32' is none of run:ID, latest"),
    "selector field": (["compare", "latest", "precison=fp32"], "did you mean 'precision'?"),
    "two runs": (["compare", "latest,latest~1", "latest"], "names two runs"),
    "field twice": (["compare", "task=train,task=infer", "latest"], "names task twice"),
    "effect": (["compare", "latest", "latest~1", "--min-effect", "2"], "more than 0%"),
    "limit": (["compare", "latest", "latest~1", "--fail-if-slower", "1%"], "lower that too"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_one_sentence_and_exit_2(bench: Bench, name: str, tmp_path: Path) -> None:
    """Bad input ends before anything is measured, without a traceback."""
    arguments, expected = WRONG[name]
    done = bench(*arguments)
    assert done.code == 2, done
    assert expected in done.err
    assert done.out == ""
    assert not list(tmp_path.rglob("*.parquet"))


def test_unknown_key_in_a_plan_names_file_key_and_allowed_keys(
    bench: Bench, tmp_path: Path
) -> None:
    """A typo in a plan is not silently ignored."""
    (tmp_path / "mine.toml").write_text("[[cases]]\nbatchsize = [1]\n")
    done = bench("run", "--plan", "mine.toml")
    assert done.code == 2
    assert "mine.toml" in done.err
    assert "'batchsize'" in done.err
    assert "batch_size" in done.err


def test_broken_toml_is_named(bench: Bench, tmp_path: Path) -> None:
    """The line of the mistake is in the sentence."""
    (tmp_path / "mine.toml").write_text("budget = quick\n")
    done = bench("run", "--plan", "mine.toml")
    assert done.code == 2
    assert "not valid TOML" in done.err
    assert "line 1" in done.err


def test_folder_without_images(bench: Bench, tmp_path: Path) -> None:
    """An empty folder is refused before measuring, with what was expected."""
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    done = bench("run", "--data", "folder:empty")
    assert done.code == 2
    assert "no images" in done.err


@pytest.mark.parametrize(
    "command", ["cli", "request", "report", "compare", "runner", "planning", "summary"]
)
def test_the_parent_imports_no_torch(command: str) -> None:
    """Whatever the parent uses is free of torch."""
    code = f"import bench.{command}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
