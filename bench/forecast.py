"""Peak memory and operations of a case, without its device and without its memory.

Two steps run on fake tensors: shapes and types are real, nothing is computed.
torch's MemTracker counts the storages that live at once, its FlopCounterMode the
operations of convolutions and matrix products (torch.distributed._tools.mem_tracker,
torch.utils.flop_counter). A forecast is a lower bound: libraries' workspaces, the
allocator's rounding and a GPU's context come on top.
"""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode

from bench import models, registry
from bench.devices import Delegate, Device
from bench.errors import Refused
from bench.messages import Forecast
from bench.precisions import PRECISIONS, Precision
from bench.schema import Case
from bench.training import Trainer

DEFAULT_CLASSES = 1000
FIRST = 8  # batch size a search for the largest begins with
TURNS = 4  # lines drawn through what was found


class Elsewhere(Delegate):
    """A device whose fake tensors live on the host, so that it need not be here.

    The same types take the same bytes. It has no gradient scaler, whose decisions need numbers.
    """

    def torch_device(self) -> torch.device:
        """The host."""
        return torch.device("cpu")

    def scaler(self, precision: Precision) -> None:
        """None: it holds a few bytes."""


def forecast(case: Case, device: Device) -> Forecast:
    """Of one device's share of the case; the device need not be here."""
    peak_bytes, flops_per_image = _traced(case, device)
    torchs_own = PRECISIONS[case.precision].kind == "float"
    return Forecast(peak_bytes=peak_bytes if torchs_own else None, flops_per_image=flops_per_image)


def _traced(case: Case, device: Device) -> tuple[int, float]:
    """Peak bytes and operations an image of torch's own operators."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        layout = getattr(torch, models.LAYOUTS[case.memory_format])
        classes = case.classes or DEFAULT_CLASSES
        model = models.build(case.model, "random", classes, case.seed)
        shape = (case.batch_size, 3, case.image_size, case.image_size)
        images = torch.empty(shape).to(memory_format=layout)
        step, held = _step(case, model, images, device)
        step()  # optimizer state exists from the second step on
        tracker, flops = MemTracker(), FlopCounterMode(display=False)
        tracker.track_external(*held)
        with tracker, flops:
            step()
    peak = max(int(p["Total"]) for p in tracker.get_tracker_snapshot("peak").values())
    return peak, flops.get_total_flops() / case.batch_size


def _step(
    case: Case, model: torch.nn.Module, images: torch.Tensor, device: Device
) -> tuple[Any, list[Any]]:
    """What one step calls, and what lives outside of it."""
    precision = PRECISIONS[case.precision]
    if case.task == "train":
        recipe: Any = registry.load("recipes", case.recipe)
        trainer = Trainer(model, recipe, Elsewhere(device), precision)
        target = torch.zeros(case.batch_size, dtype=torch.long, device=images.device)
        return lambda: trainer(images, target), [model, trainer.optimizer, images, target]
    dtype = device.autocast_dtype(precision)
    model.eval()

    def forward() -> None:
        # As in inference mode, no cast weight is kept.
        kind = images.device.type
        autocast = torch.autocast(kind, dtype, dtype is not None, cache_enabled=False)
        with torch.no_grad(), autocast:
            model(images)

    return forward, [model, images]


def largest(case: Case, device: Device) -> int | None:
    """Images of the largest batch whose forecast fits in the memory that may be used safely.

    None where running out is harmless. Memory is all but a straight line in the batch size:
    weights and optimizer, and so much an image. Ranks that share the memory have their share
    of it. What other engines and INT8 hold is taken for as much as torch's own operators hold
    in fp32, from which they start. Raises Refused where there is no forecast to go by.
    """
    safe = device.safe_memory_bytes()
    if safe is None:
        return None
    safe //= case.world_size
    below, above = (0, 0), (FIRST, _peak(case, device, FIRST))  # sizes and their bytes
    while above[1] <= safe:
        below, above = above, (4 * above[0], _peak(case, device, 4 * above[0]))
    for _ in range(TURNS):
        share = (safe - below[1]) / (above[1] - below[1])
        size = below[0] + int(share * (above[0] - below[0]))
        if size in (below[0], above[0]):
            break
        point = (size, _peak(case, device, size))
        below, above = (point, above) if point[1] <= safe else (below, point)
    return max(1, below[0])


def _peak(case: Case, device: Device, size: int) -> int:
    """Forecast bytes of this batch size. Raises Refused."""
    try:
        return _traced(msgspec.structs.replace(case, batch_size=size), device)[0]
    except Exception as error:  # whatever torch cannot do with fake tensors
        raise Refused(
            f"no forecast can be made of its memory ({type(error).__name__}), and a search without "
            "one could take the memory of everybody here; name sizes with --batch-size"
        ) from error


def quietly(case: Case, device: Device) -> Forecast | None:
    """None where torch cannot run the case on fake tensors: a forecast is never worth a run."""
    with contextlib.suppress(Exception):
        return forecast(case, device)
    return None
