"""The simulated CUDA runtime for tests: a command or a program on a GPU that is not there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Bench, Done
from tests.cuda_sim import build, cuda_sim

Simulated = Callable[..., Done]


def require() -> None:
    """Skip, saying why, where the simulation cannot be built."""
    try:
        build.ensure()
    except build.BuildError as error:
        pytest.skip(f"no simulated CUDA here: {error}")


@pytest.fixture
def simulated(bench: Bench) -> Simulated:
    """`bench` on a simulated GPU."""
    require()

    def run(*arguments: str, profile: str = "a100", **settings: Any) -> Done:
        variables = cuda_sim.environment(profile, base={}, **settings)
        return bench(*arguments, env=variables)

    return run


def program(
    text: str, profile: str = "a100", env: dict[str, str] | None = None, **settings: Any
) -> str:
    """What a Python program prints on a simulated GPU; it must end well."""
    require()
    done = subprocess.run(
        [sys.executable, "-c", text],
        env=cuda_sim.environment(profile, base={**os.environ, **(env or {})}, **settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
