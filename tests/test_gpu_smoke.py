"""`scripts/gpu_smoke`: what it says of records that a GPU must not make."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_smoke.py"
ROW = {
    "status": "measured", "simulated": False, "task": "train", "case_id": "a",
    "first_loss": 7.2, "last_loss": 2.2, "last_loss_step": 3, "power_limit_w": 700.0,
    "energy_total_j_per_image": 0.15, "throughput_images_per_s": 4351.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ({}, True),
        ({"last_loss": 7.2}, False),  # no update counted
        ({"last_loss": None, "last_loss_step": None}, False),  # NaN is null in JSON
        ({"last_loss": 1e30}, False),
        ({"simulated": True, "last_loss": 7.2}, None),
    ],
)
def test_a_training_must_learn(
    script: dict[str, Any], change: dict[str, Any], holds: bool | None
) -> None:
    (found,) = script["updates"]([ROW | change])
    assert found.holds is holds


@pytest.mark.parametrize(
    ("joules", "holds"), [(0.15, True), (2.85, False), (None, None)]
)  # 2.85: of the first step's kernel search too
def test_joules_must_make_possible_watts(
    script: dict[str, Any], joules: float | None, holds: bool | None
) -> None:
    (found,) = script["joules"]([ROW | {"energy_total_j_per_image": joules}])
    assert found.holds is holds
