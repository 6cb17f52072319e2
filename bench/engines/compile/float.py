"""fp32, tf32 and autocast, compiled; training too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bench.engines import Evidence, Job, state_bytes
from bench.engines._inductor import frozen, keep_in, no_compiler

if TYPE_CHECKING:
    from bench.devices import Device
    from bench.schema import Case

MODULES = ("torch",)


def refuses(case: Case, device: Device) -> str | None:  # noqa: ARG001 - a realisation's signature
    """Inductor writes C++ for CPUs (and for its own launchers), Triton for GPUs."""
    return no_compiler()


def trained(job: Job) -> torch.nn.Module:
    """Compiled at the first step, for one shape; first_step_s holds the cold compilation."""
    keep_in(job.cache.fresh())
    compiled: Any = torch.compile(job.model, dynamic=False, mode=job.case.engine_mode)
    return compiled  # type: ignore[no-any-return]


def build(job: Job) -> Compiled:
    """Compiled for the case's batch size, before anything is timed."""
    return Compiled(job)


class Compiled:
    """A forward pass without gradients."""

    def __init__(self, job: Job) -> None:
        self.model = job.model.eval()
        self.dtype = job.device.autocast_dtype(job.precision)
        self.kind = job.device.torch_device().type
        self.compiled: Any = frozen(job, self.model, self._call)

    def _call(self, compiled: Any, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.autocast(self.kind, self.dtype, self.dtype is not None):
            logits: torch.Tensor = compiled(images)
        return logits

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Logits in the type the precision gives."""
        return self._call(self.compiled, images)

    def evidence(self) -> Evidence:
        """Weights as they were before freezing."""
        return Evidence(model_bytes=state_bytes(self.model))
