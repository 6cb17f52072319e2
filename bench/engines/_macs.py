"""Multiply-adds: of a model, and of the layers that a runtime says it executed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from msgspec import Struct

from bench.errors import Unproven

LEAST_SHARE = 0.5  # measurement rule: under half of the multiply-adds in INT8 is not INT8


class Layer(Struct, frozen=True):
    """A convolution or matrix product as it was executed."""

    name: str
    macs: float
    int8: bool


def of_layer(out: Sequence[int], weight: Sequence[int]) -> float:
    """Outputs `(N, O, …)` × weights `(O, C/groups, kh, kw)` or `(O, I)`, an output each."""
    return float(math.prod(out) * math.prod(weight[1:]))


def of_model(model: torch.nn.Module, images: torch.Tensor) -> float:
    """Of one forward pass; torch counts two operations each."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return float(counter.get_total_flops()) / 2


def share(layers: Sequence[Layer], total: float) -> float:
    """The share of `total` that ran in INT8.

    Raises Unproven under one half: such a case must not pass for INT8.
    """
    found = sum(layer.macs for layer in layers if layer.int8) / total
    if found < LEAST_SHARE:
        raise Unproven(f"only {found:.0%} of the multiply-adds ran in INT8; not an INT8 number")
    return found


def in_float(layers: Sequence[Layer]) -> list[str]:
    """Names of the layers that did not."""
    return [layer.name for layer in layers if not layer.int8]
