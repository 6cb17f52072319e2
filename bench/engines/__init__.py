"""What executes the model: a folder an engine, a file a kind of precision.

`engines/<engine>/<kind>.py` holds `MODULES` (packages it imports),
`refuses(case, device)` and `build(job)`, and `trained(model)` if it does not refuse
training: the model as it is to be trained. No file means that the engine does not
run that kind. A file never imports another engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from bench.devices import Device
    from bench.precisions import Precision
    from bench.schema import Case


class Evidence(Struct, frozen=True, kw_only=True):
    """What a realisation can prove after it has run. Unknown is None."""

    int8_mac_share: float | None = None
    model_bytes: int | None = None


class Forward(Protocol):
    """Enqueues a forward pass; never synchronises."""

    def __call__(self, images: Tensor) -> Tensor:
        """Logits `(N, classes)` of images `(N, 3, H, W)`, both on the case's device."""
        ...

    def evidence(self) -> Evidence:
        """Proof of what ran. Called after timing."""
        ...


class Job(Struct, frozen=True):
    """What an engine needs to build: `batches(n)` yields n seeded batches of the case's data."""

    case: Case
    precision: Precision
    device: Device
    model: Module
    batches: Callable[[int], Iterator[Tensor]]


def state_bytes(model: Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(t.nbytes for t in model.state_dict().values())
