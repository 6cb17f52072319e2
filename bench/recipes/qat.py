"""Quantisation-aware training: SGD 1e-4 on a network that rounds as INT8 would (torchao PT2E)."""

from __future__ import annotations

import torch

from bench import pt2e

LOG_EVERY = 0


def prepare(model: torch.nn.Module, images: torch.Tensor) -> torch.nn.Module:
    """With fake quantisation after each operator that INT8 will round."""
    return pt2e.fake_quantised(model, images)


def optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    """One optimizer for all parameters; a fine-tuning rate, for weights that have learnt.

    Fused as the recipe sgd's, so that what a step costs more is fake quantisation's alone.
    """
    return torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4, fused=True)


def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy."""
    return torch.nn.functional.cross_entropy(logits, target)
