"""Precision is data: what a name such as `amp` means, whatever device runs it.

Sources: torch 2.9+ `torch.backends.fp32_precision` (ieee or tf32), torch.amp
(autocast; fp16 with a gradient scaler on GPUs, bf16 on CPUs is the usual choice).
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

QAT = "qat"  # the recipe that trains a network for INT8


class Precision(Struct, frozen=True):
    """One row of the table below.

    kind       `float` runs the model as it is; `int8` needs a file of an engine's own.
    tf32       whether matrix products and convolutions may round inputs to TF32.
    autocast   the type autocast uses: the device's usual one, a forced one, or none.
    tolerance  how far logits may be from eager fp32 on the host, as a share of their size:
               five to ten times what rounding does to a ResNet; more is another network's answer.
    """

    name: str
    description: str
    kind: Literal["float", "int8"] = "float"
    tf32: bool = False
    autocast: Literal["usual", "fp16", "bf16"] | None = None
    tolerance: float = 0.001


PRECISIONS = {
    p.name: p
    for p in (
        Precision("fp32", "IEEE single precision, TF32 off everywhere"),
        Precision("tf32", "fp32 tensors, TF32 tensor cores", tf32=True, tolerance=0.02),
        Precision("amp", "autocast with the device's usual type", autocast="usual", tolerance=0.05),
        Precision("amp-fp16", "autocast to float16", autocast="fp16", tolerance=0.02),
        Precision("amp-bf16", "autocast to bfloat16", autocast="bf16", tolerance=0.05),
        Precision("int8", "static 8-bit quantisation, inference only", kind="int8", tolerance=0.3),
    )
}
