"""What may be said of answers, and what only looks good."""

from __future__ import annotations

import pytest
import torch

from bench.errors import Unproven
from bench.fidelity import centred_sqnr_db, compare, demand, difference
from bench.precisions import PRECISIONS


def random_network(inputs: int = 256, classes: int = 10) -> torch.Tensor:
    """Logits that hardly depend on the input: large offsets, small variation."""
    generator = torch.Generator().manual_seed(1)
    offsets = torch.randn(classes, generator=generator) * 10
    return offsets + 0.01 * torch.randn(inputs, classes, generator=generator)


def test_an_offset_is_no_signal() -> None:
    """Noise as large as what varies: raw the ratio looks splendid, centred it is 0 dB."""
    expected = random_network()
    noise = 0.01 * torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    raw = 10 * torch.log10(expected.square().sum() / noise.square().sum())
    assert float(raw) > 50
    assert centred_sqnr_db(expected, expected + noise) == pytest.approx(0, abs=1)


def test_a_constant_shift_of_a_class_is_no_noise() -> None:
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.5]])
    shifted = expected + torch.tensor([3.0, 3.0])
    assert centred_sqnr_db(expected, shifted) is None
    assert compare(expected, shifted, None).agreement == 1


def test_agreement_of_one_class_is_not_stated() -> None:
    expected = random_network()
    found = compare(expected, expected + 0.001, None)
    assert found.agreement is None
    assert found.agreement_note == "fp32 predicts 1 of 10 classes on 256 inputs"


def test_agreement_and_accuracy_of_a_network_that_has_learnt() -> None:
    """Ten inputs, ten classes: two answers differ from fp32, one of them is now right."""
    expected = torch.eye(10)
    labels = torch.arange(10)
    labels[0] = 1  # fp32 is wrong about the first
    found = torch.eye(10)
    found[0], found[5] = torch.eye(10)[1], torch.eye(10)[6]
    near = compare(expected, found, labels)
    assert near.agreement == pytest.approx(0.8)
    assert near.fp32_accuracy == pytest.approx(0.9)
    assert near.accuracy == pytest.approx(0.9)
    assert near.images == 10


def test_half_of_the_classes_is_enough() -> None:
    expected = torch.eye(10)[:5]
    assert compare(expected, expected, None).agreement == 1
    assert compare(expected[:4], expected[:4], None).agreement is None


def test_a_wrong_or_missing_number_is_no_answer() -> None:
    expected = torch.ones(4, 10)
    demand(difference(expected * 1.0005, expected), PRECISIONS["fp32"])
    for wrong in (expected * 1.1, torch.full_like(expected, torch.nan)):
        with pytest.raises(Unproven, match="a wrong answer is not a measurement"):
            demand(difference(wrong, expected), PRECISIONS["fp32"])
