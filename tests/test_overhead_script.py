"""`scripts/overhead --engines`: its exit code says what its intervals show."""

from __future__ import annotations

import math
import runpy
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.measure import Loop
from bench.schema import BUDGETS

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


def test_a_block_is_the_sum_of_its_samples_by_the_bare_ones_on_both_sides(
    script: dict[str, Any],
) -> None:
    """Left-out samples make no block longer in time than its own; a rest is no block."""
    own, bare = [9.0] + [2.0] * 24, [1.0, 3.0] * 12 + [1.0]
    assert script["by_block"](own, bare, range(25)) == [1.0, 1.0]
    assert script["by_block"](own, bare, range(10)) == []
    own[5] = 12.0
    assert script["by_block"](own, bare, range(11)) == [1.5]


def test_the_bare_samples_of_a_disturbed_window_count_no_more_than_the_loops(
    script: dict[str, Any],
) -> None:
    """Else what others take from bare samples would hide what the harness takes."""
    own, bare = [1.0] * 16, [1.0] * 16
    own[4:8] = bare[4:8] = [2.0] * 4  # one window; what the loop keeps begins anew after it
    kept = [*range(4), *range(8, 16)]
    assert script["by_block"](own, bare, kept) == [1.0]


class Ticking:
    """A device and steps whose time is counted, not taken."""

    asynchronous = False

    def __init__(self) -> None:
        self.now = 0.0

    def synchronize(self) -> None:
        """Nothing is enqueued."""

    def reset_peak(self) -> None:
        """Nothing is kept."""

    def step(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("cost_s", [0.0, 0.01])
def test_what_the_harness_adds_to_a_sample_shows(
    script: dict[str, Any], monkeypatch: pytest.MonkeyPatch, cost_s: float
) -> None:
    """Bare samples of as many steps, after each of the loop's own, whose clock stands meanwhile."""
    device = Ticking()
    monkeypatch.setattr(script["time"], "perf_counter", lambda: device.now)
    turns = script["Alternating"](
        device, lambda: device.step(0.05 + cost_s / 2), lambda: device.step(0.05)
    )
    budget = msgspec.structs.replace(BUDGETS["quick"], target_ci=0.0, max_seconds=8.0)
    taken = Loop(turns, budget, clock=turns.clock).throughput(turns.counted)
    assert len(turns.bare_s) == len(taken.samples_s)
    assert turns.bare_s == pytest.approx([0.05 * taken.steps_per_sample] * len(turns.bare_s))
    ratios = script["by_block"](taken.samples_s, turns.bare_s, taken.kept)
    assert ratios == pytest.approx([1 + 10 * cost_s] * len(ratios))
    assert ratios
