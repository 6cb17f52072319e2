"""INT8 on x86 CPUs: torchao PT2E static quantisation, lowered to oneDNN's INT8 kernels.

Follows torchao's PT2E quantisation page and the x86 Inductor quantizer's tutorial:
strict export, calibration, convert, `lower_pt2e_quantized_to_x86`. The lowered
graph is for one batch size.
"""

from __future__ import annotations

import platform
import warnings
from typing import TYPE_CHECKING, Any

import torch

from bench.engines import Evidence, Job
from bench.errors import Unproven

if TYPE_CHECKING:
    from bench.devices import Device
    from bench.schema import Case

MODULES = ("torchao",)
CALIBRATION_BATCHES = 4
LEAST_MAC_SHARE = 0.5  # measurement rule: under half of the multiply-adds in INT8 is not INT8


def refuses(case: Case, device: Device) -> str | None:
    """Inference on x86 CPUs only."""
    if case.task != "infer":
        return "INT8 here is for inference; train with --precision fp32 or amp"
    if device.torch_device().type != "cpu":
        return "eager INT8 runs on CPUs only; use --device cpu, or --precision amp on a GPU"
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"torchao lowers INT8 to x86 only, this is {platform.machine()}; use fp32 or amp"
    return None


def build(job: Job) -> LoweredInt8:
    """Quantise on seeded batches of the case's own data and lower for the case's batch size."""
    return LoweredInt8(job)


class LoweredInt8:
    """The lowered graph of one batch size."""

    def __init__(self, job: Job) -> None:
        self.model = job.model.eval()
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            self.graph = _quantise(self.model, list(job.batches(CALIBRATION_BATCHES)))
        self.images: torch.Tensor | None = None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """fp32 logits."""
        self.images = images
        with torch.inference_mode():
            logits: torch.Tensor = self.graph(images)
        return logits

    def evidence(self) -> Evidence:
        """Share of multiply-adds in INT8 kernels, from a profile of the executed graph.

        Raises Unproven under one half: such a case must not pass for INT8.
        """
        assert self.images is not None, "evidence comes after a forward pass"
        executed = _profiled_int8_macs(self.graph, self.images)
        share = executed / _macs(self.model, self.images)
        if share < LEAST_MAC_SHARE:
            raise Unproven(f"only {share:.0%} of the multiply-adds ran in INT8; not an INT8 number")
        return Evidence(int8_mac_share=share)


def _quantise(model: torch.nn.Module, batches: list[torch.Tensor]) -> Any:
    from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    example = (batches[0],)
    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config())
    exported = torch.export.export(model, example, strict=True).module()
    prepared = prepare_pt2e(exported, quantizer)
    for images in batches:
        prepared(images)
    return lower_pt2e_quantized_to_x86(convert_pt2e(prepared), example)


def _macs(model: torch.nn.Module, images: torch.Tensor) -> float:
    """Multiply-adds of one forward pass; torch counts two operations each."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return float(counter.get_total_flops()) / 2


def _profiled_int8_macs(graph: Any, images: torch.Tensor) -> float:
    """Multiply-adds of the oneDNN INT8 kernels that one forward pass really called."""
    with (
        torch.inference_mode(),
        torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
        ) as profile,
    ):
        graph(images)
    return sum(_event_macs(event) for event in profile.events() or ())


def _event_macs(event: Any) -> float:
    """Input `(N, C, H, W)`, weight `(O, C/groups, kh, kw)`: N·Ho·Wo·O·C/groups·kh·kw."""
    if not event.name.startswith("onednn::q"):
        return 0.0
    image, weight = event.input_shapes[0], event.input_shapes[3]
    if "linear" in event.name:
        rows, width = image
        return float(rows * width * (weight[0] if weight[1] == width else weight[1]))
    # Positions in oneDNN's schema: x, x_scale, x_zero, w, w_scale, w_zero, [bias | x2…], stride, …
    pairs = [v for v in event.concrete_inputs if isinstance(v, list) and len(v) == 2]
    stride, padding, dilation = pairs[:3]
    out_pixels = 1
    for side in (0, 1):
        kernel = dilation[side] * (weight[2 + side] - 1) + 1
        out_pixels *= (image[2 + side] + 2 * padding[side] - kernel) // stride[side] + 1
    per_pixel = weight[0] * weight[1] * weight[2] * weight[3]
    return float(image[0] * out_pixels * per_pixel)
