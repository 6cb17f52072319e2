"""fp32, tf32, and whole networks in fp16 or bf16."""

from __future__ import annotations

import copy

from bench.engines import Job
from bench.engines._tensorrt import LAYOUT, MODULES, Built, Typed, refuses

__all__ = ["LAYOUT", "MODULES", "build", "refuses"]


def build(job: Job) -> Built:
    """Autocast's type becomes that of the whole graph: types come from the graph alone."""
    dtype = job.device.autocast_dtype(job.precision)
    model = copy.deepcopy(job.model).eval()
    return Built(job, model if dtype is None else Typed(model, dtype))
