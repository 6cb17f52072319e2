"""Fixtures: the command as a real process, a tiny case, a folder of real images."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Two tests run at once on two cores: threads of one would only wait for those of the other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# The smallest case that is still a ResNet: seconds, not minutes.
TINY = ["--plan", "one", "--model", "resnet18", "--image-size", "32", "--max-seconds", "0.3"]


@dataclass
class Done:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records of `--json`."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def cases(self) -> list[dict[str, Any]]:
        """Those that are not the sentinel's."""
        return [r for r in self.records if r["purpose"] == "grid"]


Bench = Callable[..., Done]


def heed_interrupts() -> None:
    """For `preexec_fn`: a shell's background jobs ignore SIGINT, and so would their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Run `bench` in an empty folder and wait for it."""

    def run(*arguments: str, env: dict[str, str] | None = None, timeout: float = 300) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "bench", *arguments],
            cwd=tmp_path,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(autouse=True, scope="session")
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests build is not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of small JPEGs, in train/ and test/."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(1)
    root = tmp_path / "images"
    for part, count in (("train", 20), ("test", 6)):
        for label in ("cat", "dog"):
            folder = root / part / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (40, 36, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:03}.jpg")
    return root
