"""Torch-TensorRT: build, and what the built engine says of its layers.

Sources: Torch-TensorRT's dynamo frontend (torch_tensorrt.dynamo.compile), its Debugger and
TensorRT's engine inspector. TensorRT from 11 on is strongly typed: types come from the graph
(Q/DQ for INT8), not from builder flags or calibrators.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from bench import pt2e
from bench.engines import Evidence, Job, _macs

if TYPE_CHECKING:
    from bench.devices import Device
    from bench.schema import Case

MODULES = ("torch_tensorrt", "tensorrt")
LAYOUT = "contiguous"


def refuses(case: Case, device: Device) -> str | None:
    """Inference on a GPU that computes."""
    if case.task != "infer":
        return "TensorRT is for inference; train with --engine eager or compile"
    if not device.asynchronous:
        return "TensorRT needs an NVIDIA GPU; on a CPU use --engine openvino or onnxruntime"
    if not device.computes:
        return "TensorRT asks the device itself, and this one is simulated"
    return None


class Typed(torch.nn.Module):
    """The model in one type throughout, fp32 at both ends."""

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model.to(dtype), dtype

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(images.to(self.dtype))
        return logits.float()


class Built:
    """One engine of TensorRT for the whole network and one batch size."""

    def __init__(
        self, job: Job, model: torch.nn.Module, facts: dict[str, Any] | None = None
    ) -> None:
        import torch_tensorrt

        self.job, self.facts = job, facts or {}
        self.images = next(iter(job.batches(1)))
        with pt2e.quiet(), torch.no_grad(), _telling(job):
            program = torch.export.export(model.eval(), (self.images,))
            self.engine: Any = torch_tensorrt.dynamo.compile(
                program,
                inputs=[self.images],
                use_explicit_typing=True,
                disable_tf32=not job.precision.tf32,
                require_full_compilation=True,
                min_block_size=1,
            )

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """fp32 logits."""
        with torch.inference_mode():
            logits: torch.Tensor = self.engine(images)
        return logits

    def evidence(self) -> Evidence:
        """Settings as given; for INT8 the layers as the engine's inspector tells them."""
        import tensorrt

        found = dict(self.facts)
        parts = self._engines()
        settings = [
            f"tensorrt={tensorrt.__version__}",
            f"tensorrt.disable_tf32={not self.job.precision.tf32}",
            *found.pop("settings", []),
        ]
        if self.job.precision.kind == "int8":
            told = [json.loads(part.get_layer_info()) for part in parts]
            layers = [layer for part in told for layer in _layers(part)]
            total = _macs.of_model(self.job.model, self.images)
            found["int8_mac_share"] = _macs.share(layers, total)
            found["float_layers"] = _macs.in_float(layers)
        return Evidence(settings=settings, model_bytes=_bytes(parts), **found)

    def _engines(self) -> list[Any]:
        """The modules of the compiled graph that hold an engine of TensorRT."""
        return [m for m in self.engine.modules() if hasattr(m, "get_layer_info")]


def _bytes(parts: list[Any]) -> int | None:
    """Of the serialised engines; None where a runtime does not keep them."""
    kept: list[bytes | None] = [getattr(part, "serialized_engine", None) for part in parts]
    known = [len(plan) for plan in kept if plan]
    return sum(known) if known and len(known) == len(kept) else None


@contextlib.contextmanager
def _telling(job: Job) -> Iterator[None]:
    """For INT8 the engine keeps what its layers compute in; by default it keeps their names."""
    if job.precision.kind != "int8":
        yield
        return
    import torch_tensorrt

    with (
        tempfile.TemporaryDirectory() as folder,
        torch_tensorrt.dynamo.Debugger(
            log_level="error",
            logging_dir=folder,
            engine_builder_monitor=False,
            save_layer_info=True,
        ),
    ):
        yield


def _layers(told: dict[str, Any]) -> list[_macs.Layer]:
    """Layers with weights: each weight works once for each output pixel of its image."""
    found = []
    for layer in told.get("Layers", []):
        weights = layer.get("Weights", {}) if isinstance(layer, dict) else {}
        if not weights.get("Count"):
            continue
        shape = layer["Outputs"][0]["Dimensions"]
        pixels = shape[0]
        for side in shape[2:]:
            pixels *= side
        int8 = str(weights.get("Type", "")).lower() == "int8"
        found.append(_macs.Layer(str(layer.get("Name")), float(pixels * weights["Count"]), int8))
    return found
