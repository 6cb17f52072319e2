"""What eager and compiled INT8 have in common: torchao's quantised graph, and its proof."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from bench import pt2e, registry
from bench.engines import Evidence, Job, _macs, digest
from bench.precisions import QAT

if TYPE_CHECKING:
    from bench.devices import Device
    from bench.schema import Case

MODULES = ("torchao",)
CONVERTS_QAT = True

Lower = Callable[[pt2e.Quantised, torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]


def refuses(case: Case, device: Device) -> str | None:
    """Inference on x86 CPUs only."""
    if case.task != "infer":
        return (
            "INT8 here is for inference; train with --precision fp32 --recipe qat, "
            "which measures quantisation-aware training"
        )
    return pt2e.refuses(device.torch_device().type)


class Int8:
    """A quantised graph, lowered for the case's batch size by `lower(graph, example)`.

    With the recipe qat it is trained with fake quantisation first; else its ranges are
    calibrated. Both on seeded training images of the case's data.
    """

    reference: Callable[[torch.Tensor], torch.Tensor]

    def __init__(self, job: Job, lower: Lower) -> None:
        self.model = job.model.eval()
        self.images = next(iter(job.batches(1)))
        trains = job.case.recipe == QAT
        made, images = self._trained(job) if trains else self._calibrated(job)
        if made.reference is not None:
            self.reference = made.reference
        self.facts: dict[str, Any] = {
            "settings": [f"reduce_range={pt2e.reduced_range()}"],
            "calibrated_images": images,
            "calibration_s": made.seconds,
            "model_bytes": _bytes(made.graph),
        }
        self.run = lower(made, self.images)

    def _calibrated(self, job: Job) -> tuple[pt2e.Quantised, int]:
        calibration = job.calibration()
        key = job.key(calibration=calibration.digest)
        return (
            pt2e.calibrated(self.model, calibration.batches, job.cache, key),
            calibration.images,
        )

    def _trained(self, job: Job) -> tuple[pt2e.Quantised, int]:
        recipe: Any = registry.load("recipes", QAT)
        count = pt2e.QAT_IMAGES * job.case.calibration_images
        lessons = list(job.drawn(count, pt2e.QAT_BATCH))
        key = job.key(lessons=digest([tensor for lesson in lessons for tensor in lesson]))
        made = pt2e.trained(self.model, lessons, recipe, job.cache, key)
        return made, sum(len(images) for images, _ in lessons)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """fp32 logits."""
        with torch.inference_mode():
            return self.run(images)

    def evidence(self) -> Evidence:
        """From a profile of one executed pass. Raises Unproven."""
        kernels = pt2e.executed(self.run, self.images)
        layers = [_macs.Layer(name, macs, int8) for name, macs, int8 in kernels]
        total = _macs.of_model(self.model, self.images)
        return Evidence(
            int8_mac_share=_macs.share(layers, total),
            float_layers=_macs.in_float(layers),
            **self.facts,
        )


def _bytes(graph: Any) -> int:
    """Weights in INT8 and what stayed fp32, each once; the originals stay behind unused."""
    kept = {**dict(graph.named_parameters()), **dict(graph.named_buffers())}
    used = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    return sum(tensor.nbytes for name, tensor in kept.items() if name in used)
