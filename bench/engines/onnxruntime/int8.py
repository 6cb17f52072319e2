"""INT8 on CPUs: static Q/DQ, per-channel weights, unsigned activations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench import pt2e
from bench.cache import nothing
from bench.engines import Job, _onnx
from bench.engines._onnx import FEED, LAYOUT, MODEL, MODULES, Session, exported

if TYPE_CHECKING:
    from bench.devices import Device
    from bench.schema import Case

__all__ = ["LAYOUT", "MODULES", "build", "refuses"]


def refuses(case: Case, device: Device) -> str | None:
    """The CUDA provider has no INT8 convolutions."""
    if device.torch_device().type != "cpu":
        return "ONNX Runtime runs INT8 convolutions on CPUs only; on a GPU use --engine tensorrt"
    return _onnx.refuses(case, device)


def build(job: Job) -> Session:
    """Quantised from the exported graph.

    U8 activations and S8 weights, as ONNX Runtime's quantisation page advises for x86;
    weights of 7 bits (reduce_range) where the processor has no VNNI and pairs of products
    would saturate in 16 bits.
    """
    import onnx
    import onnxruntime
    import onnxscript

    calibration = job.calibration()
    reduced = pt2e.reduced_range()
    source = exported(job)

    def quantise(folder: Path) -> None:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        folded = folder / "folded.onnx"
        quant_pre_process(source, folded, skip_symbolic_shape=True)
        quantize_static(
            folded,
            folder / MODEL,
            Reader(calibration.batches),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduced,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        folded.unlink()

    key = job.key(
        onnxruntime=onnxruntime.__version__,
        onnx=onnx.__version__,
        onnxscript=onnxscript.__version__,  # of the export it is made of
        calibration=calibration.digest,
        reduced=reduced,
    )
    made = job.cache.artefact("onnxruntime-int8", key, quantise, nothing)
    facts = calibration.facts(made.seconds, reduced=reduced)
    return Session(job, made.folder / MODEL, facts)


class Reader:
    """What quantize_static takes its ranges from: batch after batch, then None."""

    def __init__(self, batches: list[torch.Tensor]) -> None:
        self.batches: Iterator[torch.Tensor] = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        """One batch `(N, 3, H, W)`."""
        images = next(self.batches, None)
        return None if images is None else {FEED: images.cpu().contiguous().numpy()}
