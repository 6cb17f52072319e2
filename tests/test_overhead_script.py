"""`scripts/overhead --engines`: its exit code says what its intervals show."""

from __future__ import annotations

import math
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "overhead.py"
EVEN, WIDE, SLOW = [1.0, 1.001] * 20, [0.9, 1.1] * 20, [1.05, 1.06] * 20


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_an_interval_shows_refutes_or_decides_nothing(script: dict[str, Any]) -> None:
    standing = script["standing"]
    assert standing(0.991, 1.009, 0.01) == 0
    assert standing(1.011, 1.02, 0.01) == 1
    assert standing(0.97, 0.989, 0.01) == 1
    assert standing(0.995, 1.02, 0.01) == 3
    assert standing(math.nan, math.nan, 0.01) == 3


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [(EVEN, EVEN, 0), (EVEN, WIDE, 3), (SLOW, WIDE, 1), (EVEN, [1.0], 3)],
)
def test_the_exit_code(
    script: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    first: list[float],
    second: list[float],
    code: int,
) -> None:
    """0 shown, 1 off, 3 undecided, and which ones that are; `--only` names two of eight."""
    taken = iter([first, second])
    monkeypatch.setitem(script["main"].__globals__, "in_a_process", lambda *_: next(taken))
    only = ["--only", "eager:fp32", "--only", "openvino:int8"]
    monkeypatch.setattr(sys, "argv", ["overhead.py", *only])
    with pytest.raises(SystemExit) as ended:
        script["main"]()
    assert ended.value.code == code
    out = capsys.readouterr().out
    assert "eager fp32 ÷ bare loop, ResNet-50 64 px: " in out
    assert ("Undecided, more --seconds would tell: openvino:int8." in out) == (second != EVEN)
