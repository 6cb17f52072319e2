"""ONNX Runtime: export, sessions with bound inputs and outputs, and what a session executed.

Sources: torch.onnx's dynamo exporter; ONNX Runtime's pages on IO binding, threads,
execution providers and profiling.
"""

from __future__ import annotations

import copy
import json
import os
import tempfile
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

MODULES = ("onnxruntime", "onnx", "onnxscript")
LAYOUT = "contiguous"  # ONNX knows (N, C, H, W) only
MODEL = "model.onnx"
FEED, ANSWER = "images", "logits"
MULTIPLY_ADDS = ("Conv", "Gemm", "MatMul", "FusedConv", "FusedGemm", "FusedMatMul")
IN_INT8 = ("QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger", "QLinearGemm")


def refuses(case: Case, device: Device) -> str | None:
    """Inference, where this onnxruntime has a provider for the device."""
    import onnxruntime

    if case.task != "infer":
        return "ONNX Runtime is for inference; train with --engine eager or compile"
    wanted = case.engine_mode or device.torch_device().type
    if case.engine_mode is not None and not device.asynchronous:
        return f"the mode {case.engine_mode} needs a GPU; leave out --engine-mode"
    if _provider(wanted) is None:
        return (
            f"this onnxruntime has no provider for {wanted}, it has "
            f"{', '.join(onnxruntime.get_available_providers())}; a GPU needs the package "
            "onnxruntime-gpu in its place"
        )
    return None


def _provider(name: str) -> str | None:
    """`cpu` → CPUExecutionProvider, where this onnxruntime has it."""
    import onnxruntime

    known: list[str] = onnxruntime.get_available_providers()
    return next((p for p in known if p.lower() == f"{name}executionprovider"), None)


def exported(job: Job) -> Path:
    """The model as ONNX, for any batch size."""

    def export(folder: Path) -> None:
        model = copy.deepcopy(job.model).cpu().eval().to(memory_format=torch.contiguous_format)
        example = torch.zeros(2, 3, job.case.image_size, job.case.image_size)
        with pt2e.quiet(), torch.no_grad():
            torch.onnx.export(
                model,
                (example,),
                folder / MODEL,
                input_names=[FEED],
                output_names=[ANSWER],
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                external_data=False,
                dynamo=True,
                verbose=False,
            )

    import onnx
    import onnxscript

    made = job.cache.artefact(
        "onnx", job.key(onnx=onnx.__version__, onnxscript=onnxscript.__version__), export, nothing
    )
    return made.folder / MODEL


class Session:
    """A model file in ONNX Runtime, input and output bound to torch's memory.

    Each call overwrites the logits of the one before. Threads: one pool of as many as torch
    has, none between operators.
    """

    def __init__(self, job: Job, path: Path, facts: dict[str, Any] | None = None) -> None:
        self.job, self.path, self.facts = job, path, facts or {}
        self.model_bytes = path.stat().st_size
        if job.device.asynchronous:
            _force_float32(tf32=job.precision.tf32)
        self.session = self._open(self._options())
        device = job.device.torch_device()
        self.place = (device.type, device.index or 0)
        self.binding = self.session.io_binding()
        self.bound: Callable[[], torch.Tensor | None] = lambda: None  # the input, held weakly
        self.logits: torch.Tensor | None = None
        # Without a GPU there is nothing to wait for, and reading options takes 2 % of a short pass.
        self.run_options = _without_waiting() if job.device.asynchronous else None

    def _options(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if self.job.case.deterministic:
            options.use_deterministic_compute = True
        return options

    def _open(self, options: Any) -> Any:
        import onnxruntime

        providers = self._providers()
        # Without a fallback: it would open other providers, and with none of these options.
        session = onnxruntime.InferenceSession(
            os.fspath(self.path), options, providers=providers, enable_fallback=False
        )
        _prove(session, providers)
        return session

    def _providers(self) -> list[tuple[str | None, dict[str, str]]]:
        """With their options, the asked one first; the CPU's takes what that one cannot."""
        job = self.job
        device = job.device.torch_device()
        if not job.device.asynchronous:
            return [(_provider(device.type), {})]
        gpu = {
            "device_id": str(device.index or 0),
            "use_tf32": str(int(job.precision.tf32)),
            "user_compute_stream": str(job.device.stream()),
            "cudnn_conv_algo_search": "EXHAUSTIVE" if job.case.cudnn_benchmark else "HEURISTIC",
        }
        found = [(_provider(device.type), gpu), (_provider("cpu"), {})]
        if job.case.engine_mode is not None:
            own = {k: v for k, v in gpu.items() if k in ("device_id", "user_compute_stream")}
            found.insert(0, (_provider(job.case.engine_mode), own))
        return found

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """fp32 logits."""
        # Binding takes 4 % of a short pass, even asking for an address 1 %: after a pass nothing
        # of Python is left in the processor's caches.
        if self.bound() is not images:
            self._bind(images)
        self.session.run_with_iobinding(self.binding, self.run_options)
        assert self.logits is not None
        return self.logits

    def _bind(self, images: torch.Tensor) -> None:
        import numpy

        def where(tensor: torch.Tensor) -> tuple[Any, ...]:
            return *self.place, numpy.float32, tuple(tensor.shape), tensor.data_ptr()

        if self.logits is None:
            classes = self.session.get_outputs()[0].shape[1]
            self.logits = torch.empty(len(images), classes, device=images.device)
            self.binding.bind_output(ANSWER, *where(self.logits))
        self.binding.bind_input(FEED, *where(images))
        self.bound = weakref.ref(images)

    def evidence(self) -> Evidence:
        """File size, settings read back; for INT8 the layers of one profiled pass."""
        options = self.session.get_session_options()
        found = dict(self.facts)
        settings = [
            f"onnxruntime.providers={'+'.join(self.session.get_providers())}",
            f"onnxruntime.intra_op_num_threads={options.intra_op_num_threads}",
            *(
                f"onnxruntime.{name}.{key}={value}"
                for name, values in self.session.get_provider_options().items()
                for key, value in values.items()
                if key == "use_tf32"
            ),
            *([f"{OVERRIDE}={os.environ.get(OVERRIDE)}"] if self.job.device.asynchronous else []),
            *found.pop("settings", []),
        ]
        if self.job.precision.kind == "int8":
            layers = self._executed()
            total = _macs.of_model(self.job.model, next(iter(self.job.batches(1))))
            found["int8_mac_share"] = _macs.share(layers, total)
            found["float_layers"] = _macs.in_float(layers)
        return Evidence(
            model_bytes=self.model_bytes,
            threads=options.intra_op_num_threads,
            settings=settings,
            **found,
        )

    def _executed(self) -> list[_macs.Layer]:
        """Multiply-adds of one pass: shapes from its profile, weights from the optimised graph."""
        import onnx

        with tempfile.TemporaryDirectory() as scratch:
            options = self._options()
            options.enable_profiling = True
            options.profile_file_prefix = os.path.join(scratch, "profile")
            options.optimized_model_filepath = os.path.join(scratch, MODEL)
            session = self._open(options)
            images = next(iter(self.job.batches(1))).cpu().numpy()
            session.run(None, {FEED: images})
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
            graph = onnx.load(options.optimized_model_filepath).graph
        weights = {w.name: tuple(w.dims) for w in graph.initializer}
        nodes = {node.name: node for node in graph.node}
        found = []
        for event in events:
            facts = event.get("args", {})
            kind = facts.get("op_name")
            name = event.get("name", "").removesuffix("_kernel_time")
            if kind not in MULTIPLY_ADDS + IN_INT8 or name not in nodes:
                continue
            (out,) = facts["output_type_shape"][0].values()
            weight = next((w for i in nodes[name].input if len(w := weights.get(i, ())) > 1), None)
            if weight is None:  # behind a DequantizeLinear: it stayed in float
                found.append(_macs.Layer(f"{kind} {name}", 0.0, False))
                continue
            macs = _macs.of_layer(out, weight if kind not in TRANSPOSED else weight[::-1])
            found.append(_macs.Layer(f"{kind} {name}", macs, kind in IN_INT8))
        return found


TRANSPOSED = ("MatMul", "FusedMatMul", "QLinearMatMul", "MatMulInteger")  # (I, O)


OVERRIDE = "NVIDIA_TF32_OVERRIDE"


def _force_float32(*, tf32: bool) -> None:
    """TensorRT's provider has no option for TF32; its libraries read this when they start.

    0 keeps every one of them from TF32, whatever else is set (TensorRT's developer guide).
    """
    if tf32:
        os.environ.pop(OVERRIDE, None)
    else:
        os.environ[OVERRIDE] = "0"


def _prove(session: Any, asked: list[tuple[str | None, dict[str, str]]]) -> None:
    """The provider asked for has opened, and has its option for TF32. Raises Unproven.

    One that is built in is listed as available even where its library does not load; ONNX
    Runtime then goes on with the others.
    """
    opened, wanted = session.get_providers()[0], asked[0][0]
    if opened != wanted:
        raise Unproven(f"ONNX Runtime opened {opened}, not {wanted}, whose library did not load")
    told = session.get_provider_options()
    for name, options in asked:
        tf32 = options.get("use_tf32")
        found = told.get(name, {}).get("use_tf32")
        if tf32 is not None and found != tf32:
            raise Unproven(f"{name} says use_tf32={found}, it was told use_tf32={tf32}")


def _without_waiting() -> Any:
    """GPU providers enqueue on torch's stream and return."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options
