"""INT8 on NVIDIA GPUs: ModelOpt's explicit Q/DQ."""

from __future__ import annotations

import copy
import time

import torch

from bench.engines import Job, _tensorrt
from bench.engines._tensorrt import LAYOUT, Built, refuses

__all__ = ["LAYOUT", "MODULES", "PACKAGES", "build", "refuses"]

MODULES = (*_tensorrt.MODULES, "modelopt")
PACKAGES = {"modelopt": "nvidia-modelopt"}


def build(job: Job) -> Built:
    """Quantised by ModelOpt's default INT8 recipe: per-channel weights, per-tensor activations."""
    from modelopt.torch.quantization import INT8_DEFAULT_CFG, quantize
    from modelopt.torch.quantization.utils import export_torch_mode

    calibration = job.calibration()

    def observe(model: torch.nn.Module) -> None:
        for images in calibration.batches:
            model(images)

    start = time.perf_counter()
    with torch.no_grad():
        quantised = quantize(copy.deepcopy(job.model).eval(), INT8_DEFAULT_CFG, observe)
    facts = {
        "calibrated_images": calibration.images,
        "calibration_s": time.perf_counter() - start,
    }
    with export_torch_mode():
        return Built(job, quantised, facts)
