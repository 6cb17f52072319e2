"""SGD with momentum 0.9 and weight decay 1e-4, fused; cross entropy."""

from __future__ import annotations

import torch

LOG_EVERY = 0


def optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    """One optimizer for all parameters.

    Its momentum starts as zeros here, not in the first step: that one takes uninitialised
    memory for it, and keeps it so when loss scaling skips the step (torch, `_fused_sgd`).
    """
    parameters = list(model.parameters())
    made = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)
    for parameter in parameters:
        made.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return made


def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy."""
    return torch.nn.functional.cross_entropy(logits, target)
