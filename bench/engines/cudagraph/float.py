"""fp32, tf32 and autocast as one graph: no launch of single kernels, for small batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bench.engines import Evidence, Job, state_bytes

if TYPE_CHECKING:
    from bench.devices import Device
    from bench.schema import Case

MODULES = ("torch",)


def refuses(case: Case, device: Device) -> str | None:
    """Inference on devices that have graphs."""
    if case.task != "infer":
        return "the engine cudagraph is for inference; train with --engine eager"
    if not device.graphs:
        return f"{device.name} has no graphs of kernels; use --engine eager"
    return None


def build(job: Job) -> Captured:
    """Warm up and capture the model in evaluation mode, for the case's batch size."""
    return Captured(job)


class Captured:
    """A forward pass without gradients. Each call overwrites the logits of the one before."""

    def __init__(self, job: Job) -> None:
        self.model = job.model.eval()
        kind, dtype = job.device.torch_device().type, job.device.autocast_dtype(job.precision)

        def forward(images: torch.Tensor) -> torch.Tensor:
            # A weight cast inside the graph is cast again at every launch, as eager does;
            # autocast's cache would keep a tensor that belongs to the capture.
            with torch.autocast(kind, dtype, dtype is not None, cache_enabled=False):
                logits: torch.Tensor = self.model(images)
            return logits

        with torch.inference_mode():
            self.replay = job.device.capture(forward, next(iter(job.batches(1))))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Copies the images into the graph's input and launches it."""
        with torch.inference_mode():
            return self.replay(images)

    def evidence(self) -> Evidence:
        """Weights stay fp32; autocast casts them on the fly."""
        return Evidence(model_bytes=state_bytes(self.model))
