"""What INT8 is judged by: images it was not shown, and the weights it began with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import models, registry, workload
from bench.cache import Cache
from bench.data import Source
from bench.engines import CALIBRATION_BATCH
from bench.loading import Loaders
from bench.schema import Case
from tests.conftest import TINY, Bench


class Numbered:
    """Images of 1 pixel, each its own number of 256 shades."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return np.full((1, 1, 3), index, np.uint8), index

    def name(self, index: int) -> str:
        return str(index)


def numbers(drawn: Any) -> list[int]:
    return [int(label) for _, labels, _ in drawn for label in labels]


@pytest.mark.parametrize("shown", [8, 24, 32])
def test_what_is_left_was_not_shown(shown: int) -> None:
    """One half of a shuffled order for INT8, the other to judge it by."""
    case = Case(image_size=1, batch_size=4)
    loaders = Loaders(case, Source(Numbered(), None, classes=40), pin=False)
    seen = numbers(loaders.drawn(shown, CALIBRATION_BATCH, train=True))
    judged = numbers(loaders.drawn(40 - shown, 4, train=False))
    assert len(seen) == shown
    assert sorted(seen + judged) == list(range(40))


@pytest.mark.slow
def test_int8_is_judged_by_images_it_was_not_shown(bench: Bench, images: Path) -> None:
    """Without a test folder by what is left; by nothing, with the reason, where nothing is."""
    arguments = [*TINY, "--precision", "int8", "--data", f"folder:{images}/train", "--json"]
    some, none = bench("run", *arguments, "--calibration-images", "32,40").cases
    assert (some["calibrated_images"], some["fidelity_images"]) == (32, 8)
    assert some["top1_accuracy"] is not None
    assert (none["status"], none["calibrated_images"]) == ("measured", 40)
    for name in ("fidelity_images", "fidelity_sqnr_db", "top1_agreement", "top1_accuracy"):
        assert none[name] is None
    assert "shown every image" in none["top1_agreement_note"]


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["random", "kept.pt"])
def test_training_for_int8_is_judged_by_the_weights_it_began_with(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    """Training that ruins them shows."""
    own = models.build("resnet18", "random", 2, 7).eval()
    if weights != "random":
        torch.save(own.state_dict(), tmp_path / weights)
        weights = str(tmp_path / weights)
    recipe = registry.load("recipes", "qat")
    monkeypatch.setattr(recipe, "optimizer", lambda m: torch.optim.SGD(m.parameters(), lr=0.03))
    for name in ("demand", "demand_following"):  # what is ruined does not answer as it should
        monkeypatch.setattr(workload, name, lambda *_: None)
    compared: list[torch.Tensor] = []

    def compare(expected: torch.Tensor, *_: Any) -> None:
        compared.append(expected)

    monkeypatch.setattr(workload, "compare", compare)
    case = Case(
        model="resnet18", image_size=32, precision="int8", recipe="qat", batch_size=4, seed=7,
        data=f"folder:{images}", weights=weights, calibration_images=8, device="cpu",
    )  # fmt: skip
    work = workload.compose(case, Cache(tmp_path / "cache"))
    assert work.fidelity is not None
    work.fidelity(12)
    loaders = Loaders(case, workload.data.open_source(case), pin=False)
    drawn = [batch for batch, _, _ in loaders.drawn(12, 4, train=False)]
    with torch.inference_mode():
        began = own(torch.cat(drawn))
    distance = float((compared[0] - began).norm() / began.norm())
    assert (distance > 0.05) if weights == "random" else (distance < 1e-4)
