"""fp32, and on GPUs tf32."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.engines import Job, _onnx
from bench.engines._onnx import LAYOUT, MODULES, Session, exported
from bench.precisions import PRECISIONS

if TYPE_CHECKING:
    from bench.devices import Device
    from bench.schema import Case

__all__ = ["LAYOUT", "MODULES", "build", "refuses"]


def refuses(case: Case, device: Device) -> str | None:
    """The exported graph is fp32."""
    if PRECISIONS[case.precision].autocast is not None:
        return "ONNX Runtime executes the exported fp32 graph; use fp32, int8, or --engine compile"
    return _onnx.refuses(case, device)


def build(job: Job) -> Session:
    """Exported with a dynamic batch, then loaded."""
    return Session(job, exported(job))
