"""`scripts/nightly`: measures, judges, reports, keeps a log, and never runs twice at once."""

from __future__ import annotations

import fcntl
import json
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "nightly"
TINY = """
repeats = 1
[budget_overrides]
max_seconds = 0.4
min_seconds = 0.1
latency_seconds = 0.1
[[cases]]
model = ["resnet18"]
image_size = [32]
device = ["cpu"]
threads = [1]
"""


def nightly(tmp_path: Path, plan: str = TINY) -> subprocess.CompletedProcess[str]:
    (tmp_path / "tiny.toml").write_text(plan)
    return subprocess.run(
        [SCRIPT, "--plan", "tiny.toml", "--results", "results", "--out", "out"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
def test_a_first_night_is_measured_judged_and_told(tmp_path: Path) -> None:
    done = nightly(tmp_path)
    assert done.returncode == 3, done.stdout + done.stderr  # nothing to judge by yet
    (judged,) = (tmp_path / "results" / "nightly").glob("*.json")
    night = json.loads(judged.read_bytes())
    assert night["series"] == night["inconclusive"]
    assert night["series"] or "disturbed 1 of 1 measurements" in " ".join(night["notes"])
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {
        "index.html", "nightly.md", "junit.xml", "feed.xml",
    }  # fmt: skip
    log = (tmp_path / "results" / "nightly" / f"{night['run_id']}.log").read_text()
    assert night["run_id"] in log
    assert "Report: " in log


@pytest.mark.slow
def test_a_night_whose_run_died_is_red_and_still_reported(tmp_path: Path) -> None:
    done = nightly(tmp_path, "[[cases]]\nnonsense = 1\n")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "nonsense" in done.stdout
    assert "this night is red" in done.stdout


def test_two_nights_never_overlap(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "nightly"
    folder.mkdir(parents=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = nightly(tmp_path)
    assert done.returncode == 75
    assert "still running" in done.stderr
    assert not list(folder.glob("*.json"))


def test_a_wrong_flag_says_how_it_is_used(tmp_path: Path) -> None:
    done = subprocess.run([SCRIPT, "--nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--results DIR" in done.stderr
