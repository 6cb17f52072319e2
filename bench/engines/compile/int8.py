"""INT8 on x86 CPUs: torchao PT2E, compiled and fused by Inductor."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from bench import pt2e
from bench.engines import Job, _torch_int8
from bench.engines._inductor import frozen, no_compiler
from bench.engines._torch_int8 import CONVERTS_QAT, MODULES, Int8

if TYPE_CHECKING:
    from bench.devices import Device
    from bench.schema import Case

__all__ = ["CONVERTS_QAT", "MODULES", "build", "refuses"]


def refuses(case: Case, device: Device) -> str | None:
    """As eager INT8, and a compiler is needed."""
    return no_compiler() or _torch_int8.refuses(case, device)


def build(job: Job) -> Int8:
    """Quantised, and compiled for the case's batch size."""

    def lowered(made: pt2e.Quantised, _: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        def call(compiled: Any, images: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                logits: torch.Tensor = compiled(images)
            return logits

        compiled: Callable[[torch.Tensor], torch.Tensor] = frozen(job, made.graph, call, made.key)
        return compiled

    return Int8(job, lowered)
