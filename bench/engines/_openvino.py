"""OpenVINO: conversion, compiled models, and what a compiled model executes.

Sources: OpenVINO's pages on PyTorch conversion, performance hints, precision control
(INFERENCE_PRECISION_HINT) and its runtime model (get_runtime_model).
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench import pt2e
from bench.cache import nothing
from bench.engines import Evidence, Job, _macs
from bench.errors import Unproven

if TYPE_CHECKING:
    from bench.devices import Device
    from bench.schema import Case

MODULES = ("openvino",)
LAYOUT = "contiguous"
MODEL = "model.xml"
READ_BACK = (
    "PERFORMANCE_HINT", "INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS", "NUM_STREAMS",
    "ENABLE_CPU_PINNING", "ENABLE_HYPER_THREADING", "OPTIMAL_NUMBER_OF_INFER_REQUESTS",
)  # fmt: skip
EXECUTED = ("Convolution", "FullyConnected", "MatMul")  # layer types of the runtime's graph
MULTIPLY_ADDS = ("Convolution", "MatMul")  # no model here has grouped convolutions


def refuses(case: Case, device: Device) -> str | None:
    """Inference on the CPU."""
    if case.task != "infer":
        return "OpenVINO is for inference; train with --engine eager or compile"
    if device.torch_device().type != "cpu":
        return "OpenVINO runs on the CPU here; use --device cpu, or --engine tensorrt on a GPU"
    return None


def converted(job: Job) -> Path:
    """The model as OpenVINO's IR in fp32, for any batch size."""
    import openvino

    def convert(folder: Path) -> None:
        model = copy.deepcopy(job.model).cpu().eval().to(memory_format=torch.contiguous_format)
        example = torch.zeros(2, 3, job.case.image_size, job.case.image_size)
        with pt2e.quiet(), torch.no_grad():
            shapes = ({0: torch.export.Dim.DYNAMIC},)
            program = torch.export.export(model, (example,), dynamic_shapes=shapes)
            found = openvino.convert_model(program)
        openvino.save_model(found, folder / MODEL, compress_to_fp16=False)

    key = job.key(openvino=openvino.__version__)
    return job.cache.artefact("openvino", key, convert, nothing).folder / MODEL


class Compiled:
    """An IR compiled for the case's batch size, input and output in torch's memory.

    Each call overwrites the logits of the one before. In the mode throughput `enqueue`
    keeps as many requests going as OpenVINO finds best.
    """

    def __init__(self, job: Job, path: Path, facts: dict[str, Any] | None = None) -> None:
        import openvino

        self.job, self.facts = job, facts or {}
        files = (path, path.with_suffix(".bin"))
        self.model_bytes = sum(file.stat().st_size for file in files)
        side = job.case.image_size
        self.graph = openvino.Core().read_model(path)
        self.graph.reshape([job.case.batch_size, 3, side, side])
        self.compiled = openvino.Core().compile_model(self.graph, "CPU", self._wanted())
        self.request = self.compiled.create_infer_request()
        classes = self.compiled.output(0).shape[1]
        self.logits = torch.empty(job.case.batch_size, classes)
        self.request.set_output_tensor(0, _shared(self.logits))
        self.bound: Callable[[], torch.Tensor | None] = lambda: None  # the input, held weakly
        self._prove_precision()
        if job.case.engine_mode == "throughput":
            self.queue = openvino.AsyncInferQueue(self.compiled)
            self.enqueue, self.wait, self.queued = self._enqueue, self.queue.wait_all, self._queued

    def _wanted(self) -> dict[str, Any]:
        dtype = self.job.device.autocast_dtype(self.job.precision)
        return {
            "PERFORMANCE_HINT": (self.job.case.engine_mode or "latency").upper(),
            "INFERENCE_PRECISION_HINT": PRECISION_HINTS[dtype],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }

    def _prove_precision(self) -> None:
        wanted, found = self._wanted(), self._read_back()
        name = "INFERENCE_PRECISION_HINT"
        if wanted[name] != found[name]:
            raise Unproven(f"OpenVINO computes in {found[name]} here, not in {wanted[name]}")

    def _read_back(self) -> dict[str, str]:
        known = set(map(str, self.compiled.get_property("SUPPORTED_PROPERTIES")))
        return {n: _text(self.compiled.get_property(n)) for n in READ_BACK if n in known}

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """fp32 logits."""
        # Sharing memory takes 4 % of a short pass; images that stay where they are stay shared.
        if self.bound() is not images:
            self.request.set_input_tensor(0, _shared(images))
            self.bound = weakref.ref(images)
        self.request.infer()
        return self.logits

    def _enqueue(self, images: torch.Tensor) -> None:
        self.queue.start_async({0: _shared(images)})

    def _queued(self, images: torch.Tensor) -> list[torch.Tensor]:
        # A request that has ended goes to the end of the queue: each gets its turn.
        for _ in range(len(self.queue)):
            self._enqueue(images)
        self.queue.wait_all()
        return [torch.from_numpy(r.get_output_tensor(0).data.copy()) for r in self.queue]

    def evidence(self) -> Evidence:
        """Size of the IR, properties read back; for INT8 the layers of the runtime's graph."""
        found = dict(self.facts)
        properties = self._read_back()
        settings = [f"openvino.{name}={value}" for name, value in properties.items()]
        if self.job.precision.kind == "int8":
            layers = self._executed()
            found["int8_mac_share"] = _macs.share(layers, sum(layer.macs for layer in layers))
            found["float_layers"] = _macs.in_float(layers)
        return Evidence(
            model_bytes=self.model_bytes,
            threads=int(properties["INFERENCE_NUM_THREADS"]),
            settings=settings + found.pop("settings", []),
            **found,
        )

    def _executed(self) -> list[_macs.Layer]:
        """Shapes from the IR; the precision of each of its layers from the runtime's graph."""
        ran: dict[str, str] = {}
        for node in self.compiled.get_runtime_model().get_ops():
            facts = node.get_rt_info()
            if "originalLayersNames" not in facts or str(facts["layerType"].value) not in EXECUTED:
                continue
            for name in str(facts["originalLayersNames"].value).split(","):
                # What a layer's result is dequantised with is fused into it, under this name.
                ran[name.partition("/Dequantization")[0]] = str(facts["runtimePrecision"].value)
        found = []
        for node in self.graph.get_ordered_ops():
            kind, name = node.get_type_name(), node.get_friendly_name()
            if kind not in MULTIPLY_ADDS:
                continue
            out, weight = tuple(node.get_output_shape(0)), tuple(node.get_input_shape(1))
            if kind == "MatMul" and not node.get_attributes().get("transpose_b"):
                weight = weight[::-1]
            macs = _macs.of_layer(out, weight)
            int8 = ran.get(name, "?").lower() in ("i8", "u8")
            found.append(_macs.Layer(f"{kind} {name}", macs, int8))
        return found


PRECISION_HINTS = {None: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def _text(value: Any) -> str:
    """A property's value; types by their short names, as they are asked for."""
    return str(value.get_type_name() if hasattr(value, "get_type_name") else value)


def _shared(tensor: torch.Tensor) -> Any:
    """OpenVINO's view of the same memory."""
    import openvino

    return openvino.Tensor(tensor.numpy(), shared_memory=True)
