"""The only place that knows a device's API: one file a kind of device.

A plug-in file holds `found()` (names of devices of its kind), `why_none()` (a
sentence for a machine without one), `noise()` (sentences about what disturbs
measuring on it, for `bench doctor`), `CLASS` (`cpu` or `gpu`: which batch sizes
of a plan it takes) and a class `Device` with the methods below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol

from bench import energy, registry
from bench.environment import host
from bench.facts import DeviceFacts, DeviceReading
from bench.schema import Case

if TYPE_CHECKING:
    import torch

    from bench.precisions import Precision

Mark = Any  # a point in a device's time, only good for `seconds`
ErrorKind = Literal["oom", "fatal", "other"]


class Device(Protocol):
    """What the harness asks of a device."""

    name: str
    computes: bool  # kernels do what they say; a simulated device only takes time
    graphs: bool  # `capture` works
    asynchronous: bool  # work is enqueued; copies from pinned memory overlap with it

    def facts(self) -> DeviceFacts:
        """Name, memory, driver."""
        ...

    def torch_device(self) -> torch.device:
        """Where tensors go."""
        ...

    def refuses(self, precision: Precision) -> str | None:
        """Why this precision cannot run here, or None."""
        ...

    def emulates(self, precision: Precision) -> str | None:
        """Why this precision runs here only in emulation, or None."""
        ...

    def autocast_dtype(self, precision: Precision) -> torch.dtype | None:
        """The type autocast computes in, or None for no autocast."""
        ...

    def scaler(self, precision: Precision) -> torch.amp.GradScaler | None:
        """A gradient scaler where the autocast type needs one."""
        ...

    def prepare(self, case: Case, precision: Precision) -> list[str]:
        """Force threads, TF32, kernel search and determinism; NAME=value as read back."""
        ...

    def meter(self) -> energy.Meter:
        """What counts this device's joules; energy.Unmetered where nothing does."""
        ...

    def synchronize(self) -> None:
        """Block until everything enqueued has run."""
        ...

    def mark(self) -> Mark:
        """A mark in the device's queue."""
        ...

    def seconds(self, start: Mark, end: Mark) -> float:
        """Seconds between two marks; only after a synchronise."""
        ...

    def reset_peak(self) -> None:
        """Start a new high-water mark of device memory."""
        ...

    def peak_memory_bytes(self) -> int | None:
        """Most device memory allocated since `reset_peak`; None if there is none apart."""
        ...

    def peak_reserved_bytes(self) -> int | None:
        """Most device memory held by the allocator since `reset_peak`, used or not."""
        ...

    backend: str  # what torch.distributed talks through

    def peers(self) -> int:
        """How many devices like this one, itself the first, can train together here."""
        ...

    def peer(self, rank: int) -> str:
        """Name of the device of a rank; rank 0 is this one."""
        ...

    def memory_limit_bytes(self) -> int | None:
        """Most memory a case can have here."""
        ...

    def safe_memory_bytes(self) -> int | None:
        """Memory a search may use up; None where running out of it hurts nobody."""
        ...

    def release(self) -> None:
        """Give back what an out-of-memory error left behind."""
        ...

    def capture(
        self, run: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """`run` recorded once on `images` and launched as a whole; only where `graphs`."""
        ...

    def stream(self) -> int | None:
        """The queue torch enqueues on, for libraries that take one; None where there is none."""
        ...

    def reading(self) -> DeviceReading:
        """What the driver says now. Raises DeviceLost."""
        ...

    def reading_notes(self) -> dict[str, str]:
        """What it does not say, and why."""
        ...

    def classify(self, error: BaseException) -> ErrorKind:
        """Whether an error means out of memory, a lost device, or something else."""
        ...


def open_device(name: str) -> Device:
    """The device called `name`, e.g. `cpu` or `cuda:0`."""
    device: Device = registry.load("devices", kind_of(name)).Device(name)
    return device


def kind_of(name: str) -> str:
    """`cuda:0` → `cuda`."""
    return name.partition(":")[0]


def default_threads() -> int:
    """What torch takes by itself (it knows OMP_NUM_THREADS), but no more than we may use."""
    import torch

    return min(torch.get_num_threads(), host.cores_usable())


def force_float32(*, tf32: bool) -> None:
    """Make fp32 mean IEEE single, or TF32 where asked, in every library torch calls.

    Both generations of torch's switches are set: with the new one alone, torch's
    own exporter raises when it reads the old ones.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    setattr(torch.backends, "fp32_precision", "tf32" if tf32 else "ieee")  # noqa: B010 - untyped


def float32_settings(backend: str) -> list[str]:
    """NAME=value, read back, of what fp32 means in a backend's convolutions and products."""
    import torch

    library = getattr(torch.backends, backend)
    return [
        f"{backend}.{part}.fp32_precision={getattr(library, part).fp32_precision}"
        for part in ("conv", "matmul")
        if hasattr(library, part)
    ]


class Delegate:
    """A device that is another one but for what a subclass changes."""

    def __init__(self, inner: Device) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)
