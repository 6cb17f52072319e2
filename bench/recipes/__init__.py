"""How a training step is made: one file a recipe.

A recipe file holds `optimizer(model)`, `loss(logits, target)` and `LOG_EVERY`
(steps between two readings of the loss, each of which waits for the device; 0 for never).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer


class Recipe(Protocol):
    """The functions of a recipe file."""

    LOG_EVERY: int

    def optimizer(self, model: Module) -> Optimizer:
        """The optimizer of all parameters."""
        ...

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """A scalar."""
        ...
