"""INT8 on x86 CPUs: torchao PT2E, lowered to oneDNN's INT8 kernels, one after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench import pt2e
from bench.engines import Job
from bench.engines._torch_int8 import CONVERTS_QAT, MODULES, Int8, refuses

__all__ = ["CONVERTS_QAT", "MODULES", "build", "refuses"]


def build(job: Job) -> Int8:
    """Quantised, and lowered for the case's batch size."""
    return Int8(job, _lowered)


def _lowered(made: pt2e.Quantised, example: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86

    with pt2e.quiet(), torch.no_grad():
        lowered: Any = lower_pt2e_quantized_to_x86(made.graph, (example,))
    return lowered  # type: ignore[no-any-return]
