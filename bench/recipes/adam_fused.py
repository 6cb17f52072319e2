"""Adam 1e-3, fused; the loss is read every 100 steps."""

from __future__ import annotations

import torch

LOG_EVERY = 100


def optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    """One optimizer for all parameters."""
    return torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)


def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy."""
    return torch.nn.functional.cross_entropy(logits, target)
