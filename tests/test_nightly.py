"""`scripts/nightly`: measures, judges, reports, keeps a log, and never runs twice at once."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
SCRIPT = TOP / "scripts" / "nightly"
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


# Stands in for `bench`: a run leaves RECORDS records, waits for SECONDS and ends with RAN; what
# judges and tells is the real thing.
STUB = """#!{python}
import os, sys, time
from pathlib import Path
sys.path.insert(0, {top!r})
with open("calls", "a") as calls:
    print(*sys.argv[1:], file=calls)
if sys.argv[1] == "run":
    from tests.records import record, write
    options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
    count = int(os.environ.get("RECORDS", 1))
    made = [record(run_id=options["--run-id"], plan="nightly", planned=1) for _ in range(count)]
    write(Path(options["--results"]), *made)
    time.sleep(float(os.environ.get("SECONDS_OF_RUN", 0)))
    sys.exit(int(os.environ.get("RAN", 0)))
from bench.cli import main
main()
"""


def nightly(tmp_path: Path, plan: str = TINY) -> subprocess.CompletedProcess[str]:
    (tmp_path / "tiny.toml").write_text(plan)
    return subprocess.run(
        [SCRIPT, "--plan", "tiny.toml", "--results", "results", "--out", "out"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "BENCH_LOCKS": str(tmp_path)},
    )  # fmt: skip


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The script where the package is installed, and `bench run` is the stub."""
    top = tmp_path / "checkout"
    (top / ".venv/bin").mkdir(parents=True)
    (top / "scripts").mkdir()
    for name in ("nightly", "_environment"):
        shutil.copy(TOP / "scripts" / name, top / "scripts")
    (top / "pyproject.toml").write_text("")
    stamp = f"{hashlib.sha256(b'').hexdigest()}  pyproject.toml\n"
    (top / ".venv/installed-plain").write_text(stamp)
    python, bench = top / ".venv/bin/python", top / ".venv/bin/bench"
    python.write_text('#!/bin/sh\ncase "$*" in *"pip install"*) exit 1 ;; esac\n')
    bench.write_text(STUB.format(python=sys.executable, top=str(TOP)))
    for path in (python, bench):
        path.chmod(0o755)
    return top


def begin(checkout: Path, *arguments: str, **variables: object) -> subprocess.Popen[str]:
    """The script, in its own folder."""
    env = {**os.environ, "BENCH_LOCKS": str(checkout), **{k: str(v) for k, v in variables.items()}}
    return subprocess.Popen(
        ["./nightly", *arguments],
        cwd=checkout / "scripts", env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=120)
    return process.returncode, said


def told(checkout: Path) -> tuple[dict[str, object], str]:
    """The judgement kept, and the page."""
    (judged,) = (checkout / "reports/nightly/data/nightly").glob("*.json")
    return json.loads(judged.read_bytes()), (checkout / "reports/nightly/nightly.md").read_text()


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
    assert "did not come to its end: exit code 2" in done.stdout
    assert "exit code 2" in (tmp_path / "out" / "nightly.md").read_text()


@pytest.mark.parametrize(
    ("ran", "records"), [(9, 1), (3, 0), (4, 0), (137, 0)], ids=["after", "3", "4", "before"]
)
def test_a_run_that_died_is_told_red(checkout: Path, ran: int, records: int) -> None:
    """After its last record, or before its first one, whatever it says of itself."""
    code, said = ended(begin(checkout, RAN=ran, RECORDS=records))
    assert code == 1, said
    night, page = told(checkout)
    assert night["colour"] == "red"
    assert "RED" in page
    assert (f"exit code {ran}" in page) == (ran not in (3, 4))
    assert (checkout / "reports/nightly/feed.xml").exists()


def test_a_plan_is_a_name_whatever_files_there_are(checkout: Path) -> None:
    """The script itself is called nightly."""
    code, said = ended(begin(checkout))
    assert code == 3, said
    assert (checkout / "calls").read_text().startswith("run --plan nightly ")


def test_what_cannot_be_installed_is_told_and_tried_again(checkout: Path) -> None:
    """The night is red, nothing is measured, and nothing says that it was installed."""
    stamp = checkout / ".venv/installed-plain"
    stamp.unlink()
    for _ in range(2):
        shutil.rmtree(checkout / "reports", ignore_errors=True)
        code, said = ended(begin(checkout))
        assert code == 1, said
        assert "could not be installed" in said
        assert "RED" in told(checkout)[1]
        assert not stamp.exists()
    assert "run --plan" not in (checkout / "calls").read_text()


def test_two_nights_never_overlap(tmp_path: Path) -> None:
    """Neither on one folder of results nor on one machine."""
    folder = tmp_path / "results" / "nightly"
    folder.mkdir(parents=True)
    for path in (folder / "lock", tmp_path / f"resnet-bench-nightly-{os.getuid()}.lock"):
        with path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = nightly(tmp_path)
        assert done.returncode == 75
        assert "still running" in done.stderr
        assert not list(folder.glob("*.json"))


def test_a_run_that_outlives_the_script_keeps_the_next_night_away(checkout: Path) -> None:
    first, runs = begin(checkout, SECONDS_OF_RUN=60), []
    try:
        deadline = time.monotonic() + 30
        while not list((checkout / "reports/nightly/data").glob("*.parquet")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        runs = children(first.pid)
        first.kill()
        first.wait()
        code, said = ended(begin(checkout, "--results", str(checkout / "elsewhere")))
        assert code == 75, said
    finally:
        for pid in runs:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        first.communicate(timeout=30)
    code, said = ended(begin(checkout, "--results", str(checkout / "elsewhere")))
    assert code == 3, said


def children(pid: int) -> list[int]:
    """All processes below this one."""
    found = [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*found, *(below for child in found for below in children(child))]


def test_a_wrong_flag_says_how_it_is_used(tmp_path: Path) -> None:
    done = subprocess.run([SCRIPT, "--nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--results DIR" in done.stderr
