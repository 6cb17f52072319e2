"""What executes the model: a folder an engine, a file a kind of precision.

`engines/<engine>/__init__.py` may hold `MODES`, the names that `--engine-mode` takes and
what each means, and `SLOW_BUILD = True`. `engines/<engine>/<kind>.py` holds `MODULES` (packages
it imports), `refuses(case, device)` and `build(job)`, and `trained(job)` if it does
not refuse training: its model as it is to be trained. `LAYOUT = "contiguous"` says that it
wants its images so, whatever the case's memory format; `CONVERTS_QAT = True`, that it
converts what the recipe for INT8 has trained. No file means that the engine does not run
that kind. A file never imports another engine; what several share is in `engines/_*.py`.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from bench.cache import Cache
    from bench.devices import Device
    from bench.precisions import Precision
    from bench.schema import Case

CALIBRATION_BATCH = 8  # images that pass through an observed network at once


class Evidence(Struct, frozen=True, kw_only=True):
    """What a realisation can prove after it has run. Unknown is None."""

    int8_mac_share: float | None = None
    float_layers: list[str] | None = None  # multiply-adds that INT8 was asked for and did not run
    model_bytes: int | None = None
    threads: int | None = None  # as the engine's own runtime tells; None: torch's
    settings: list[str] = []  # NAME=value, forced and read back
    calibrated_images: int | None = None
    calibration_s: float | None = None


class Forward(Protocol):
    """Enqueues a forward pass; never synchronises.

    An engine that works on several requests at once also has `enqueue(images)`, which
    starts one, `wait()`, until all have ended, and `queued(images)`, the logits of as many
    requests as it keeps going. One whose weights are not the model's any more has
    `reference`, their eager fp32 twin.
    """

    def __call__(self, images: Tensor) -> Tensor:
        """Logits `(N, classes)` of images `(N, 3, H, W)`, both on the case's device."""
        ...

    def evidence(self) -> Evidence:
        """Proof of what ran. Called after timing."""
        ...


class Calibration(Struct, frozen=True):
    """Seeded training images of the case's data, in batches of CALIBRATION_BATCH."""

    batches: list[Tensor]
    digest: str

    @property
    def images(self) -> int:
        """How many."""
        return sum(len(batch) for batch in self.batches)

    def facts(self, seconds: float | None, *, reduced: bool) -> dict[str, Any]:
        """Its part of the Evidence; `reduced`: a range was, lest products saturate."""
        return {
            "calibrated_images": self.images,
            "calibration_s": seconds,
            "settings": [f"reduce_range={reduced}"],
        }


Labelled = tuple["Tensor", "Tensor"]


class Job(Struct, frozen=True):
    """What an engine needs to build.

    `batches(n)` yields n seeded batches of the case's size, of the data it is measured on.
    `drawn(count, size)` yields as many training images at least, with their classes, in
    batches of `size`.
    """

    case: Case
    precision: Precision
    device: Device
    model: Module
    weights_sha256: str
    cache: Cache
    batches: Callable[[int], Iterator[Tensor]]
    drawn: Callable[[int, int], Iterator[Labelled]]

    def key(self, **more: Any) -> dict[str, Any]:
        """What decides an artefact made of this model, and `more`."""
        import torch
        import torchvision

        return {
            "model": self.case.model,
            "weights_sha256": self.weights_sha256,
            "image_size": self.case.image_size,
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
            "code": _code(),
        } | more

    def calibration(self) -> Calibration:
        """The images that INT8 ranges are taken from; never those it is judged by."""
        wanted = self.drawn(self.case.calibration_images, CALIBRATION_BATCH)
        batches = [images for images, _ in wanted]
        return Calibration(batches, digest(batches))


@functools.cache
def _code() -> str:
    """Digest of the harness's own files that build: what they make changes with them."""
    engines = Path(__file__).parent
    rooms = (engines, engines.with_name("recipes"))
    files = [file for room in rooms for file in room.rglob("*.py")]
    found = hashlib.blake2b(digest_size=16)
    for file in sorted([*files, engines.with_name("pt2e.py"), engines.with_name("models.py")]):
        found.update(file.read_bytes())
    return found.hexdigest()


def digest(tensors: list[Tensor]) -> str:
    """BLAKE2b of the values, in order."""
    found = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def state_bytes(model: Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(t.nbytes for t in model.state_dict().values())
