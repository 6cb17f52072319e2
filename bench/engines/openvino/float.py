"""fp32, and on processors that have units for it bf16 or fp16."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.engines import Job, _openvino
from bench.engines._openvino import LAYOUT, MODULES, Compiled, converted
from bench.precisions import PRECISIONS

if TYPE_CHECKING:
    from bench.devices import Device
    from bench.schema import Case

__all__ = ["LAYOUT", "MODULES", "build", "refuses"]


def refuses(case: Case, device: Device) -> str | None:
    """OpenVINO emulates nothing: without units it computes in fp32."""
    return _openvino.refuses(case, device) or device.emulates(PRECISIONS[case.precision])


def build(job: Job) -> Compiled:
    """Converted for any batch size, compiled for the case's."""
    return Compiled(job, converted(job))
