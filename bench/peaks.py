"""What a device can do at most: data sheets for GPUs. The CPU's is measured (bench.sentinel).

Achieved ÷ peak is MFU (model FLOPs utilisation; Chowdhery et al., PaLM, arXiv
2204.02311, appendix B), with the operations of convolutions and products only.
"""

from __future__ import annotations

import csv
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    import torch

    from bench.precisions import Precision

# What the multiply-adds of a case run in -> column of references/gpu_specs.csv
COLUMNS = {
    "fp32": "fp32_tflops",
    "tf32": "tf32_dense_tflops",
    "float16": "fp16_dense_tflops",
    "bfloat16": "bf16_dense_tflops",
    "int8": "int8_dense_tops",
}


class Peak(Struct, frozen=True):
    """Most operations a second, in units of 10^12, and where that comes from."""

    tflops: float
    source: str


def unit(precision: Precision, autocast: torch.dtype | None) -> str:
    """A key of COLUMNS."""
    if precision.kind == "int8":
        return "int8"
    if autocast is not None:
        return str(autocast).removeprefix("torch.")
    return "tf32" if precision.tf32 else "fp32"


@cache
def _specs() -> list[dict[str, str]]:
    path = Path(__file__).parent / "references" / "gpu_specs.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def published(device_name: str, key: str) -> Peak | None:
    """Dense peak by the name the driver gives; None for a device or precision not in the table."""
    for row in _specs():
        if re.search(row["nvml_name_regex"], device_name):
            value = row[COLUMNS[key]]
            return Peak(float(value), f"{row['name']}: {row['source']}") if value else None
    return None
