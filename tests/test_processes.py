"""One process a case: what the parent does meanwhile, and what happens when something dies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.conftest import TINY

LONG = [*TINY[:-1], "60", "--target-ci", "0.001%"]


@contextmanager
def started(
    cwd: Path, *arguments: str, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """`bench` running; killed at the end whatever happens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", *arguments],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def worker_of(process: subprocess.Popen[str], busy_s: float = 1.0) -> psutil.Process:
    """The worker below a running `bench`, once it has computed for a while."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                # A worker leads a process group of its own.
                if os.getpgid(child.pid) == child.pid and sum(child.cpu_times()[:2]) > busy_s:
                    return child
            except (psutil.NoSuchProcess, ProcessLookupError):
                continue
        time.sleep(0.05)
    raise AssertionError("no worker was seen")


@pytest.mark.serial
@pytest.mark.slow
def test_the_parent_waits_without_using_the_processor(tmp_path: Path) -> None:
    """While a worker measures for two seconds the parent computes for less than 0.1 s."""
    with started(tmp_path, "run", *LONG) as process:
        worker_of(process)
        parent = psutil.Process(process.pid)
        before = sum(parent.cpu_times()[:2])
        time.sleep(2)
        assert sum(parent.cpu_times()[:2]) - before < 0.1
