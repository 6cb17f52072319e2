"""fp32, tf32 and autocast, eager."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bench.engines import Evidence, Job, state_bytes

if TYPE_CHECKING:
    from bench.devices import Device
    from bench.schema import Case

MODULES = ("torch",)


def refuses(case: Case, device: Device) -> str | None:  # noqa: ARG001 - a realisation's signature
    """Runs everywhere torch runs."""
    return None


def trained(job: Job) -> torch.nn.Module:
    """As it is."""
    return job.model


def build(job: Job) -> Eager:
    """The model in evaluation mode, under autocast if the precision asks for it."""
    return Eager(job)


class Eager:
    """A forward pass without gradients."""

    def __init__(self, job: Job) -> None:
        self.model = job.model.eval()
        self.dtype = job.device.autocast_dtype(job.precision)
        self.kind = job.device.torch_device().type

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Logits in the type the precision gives."""
        with torch.inference_mode(), torch.autocast(self.kind, self.dtype, self.dtype is not None):
            logits: torch.Tensor = self.model(images)
        return logits

    def evidence(self) -> Evidence:
        """Weights stay fp32; autocast casts them on the fly."""
        return Evidence(model_bytes=state_bytes(self.model))
