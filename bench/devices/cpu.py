"""The host's processor."""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable

import torch

from bench import determinism, energy
from bench.devices import ErrorKind, default_threads, float32_settings, force_float32
from bench.environment import cgroup, host
from bench.facts import DeviceFacts, DeviceReading
from bench.precisions import Precision
from bench.schema import Case

CLASS = "cpu"
SAFE_SHARE = 0.8  # of the memory that is free

Run = Callable[[torch.Tensor], torch.Tensor]


def found() -> list[str]:
    """There is always one."""
    return ["cpu"]


def why_none() -> str:
    """Never needed."""
    return "every machine has a CPU"


def noise() -> list[str]:
    """The machine's own noise is told by bench.environment.noise."""
    return []


class Device:
    """The CPU: nothing is asynchronous, memory is the host's."""

    asynchronous = False
    graphs = False
    computes = True
    backend = "gloo"

    def __init__(self, name: str) -> None:
        if name != "cpu":
            raise ValueError("there is one CPU device, called cpu")
        self.name = name

    def facts(self) -> DeviceFacts:
        """The processor's name and the machine's memory."""
        return DeviceFacts(
            device=self.name,
            kind="cpu",
            device_class=CLASS,
            device_name=host.cpu_model() or "unknown CPU",
            memory_bytes=host.memory_bytes(),
        )

    def torch_device(self) -> torch.device:
        """Host memory."""
        return torch.device("cpu")

    def refuses(self, precision: Precision) -> str | None:
        """TF32 is a format of NVIDIA's tensor cores."""
        if precision.tf32:
            return "TF32 exists on NVIDIA GPUs only; use --precision fp32 on a CPU"
        return None

    def emulates(self, precision: Precision) -> str | None:
        """Without 16-bit units autocast converts back and forth (seen: 5 to 18 s a step)."""
        dtype = self.autocast_dtype(precision)
        have = set(host.cpu_features() or ())
        if dtype is torch.bfloat16 and not have & {"avx512_bf16", "amx_bf16", "bf16"}:
            return (
                "this CPU has no bf16 units, so bf16 autocast is emulated and slower than fp32; "
                "name it with --precision amp to measure it all the same"
            )
        if dtype is torch.float16 and not have & {"avx512_fp16", "amx_fp16", "fphp"}:
            return (
                "this CPU has no fp16 units; name --precision amp-fp16 to measure it all the same"
            )
        return None

    def autocast_dtype(self, precision: Precision) -> torch.dtype | None:
        """`amp` is bf16 on a CPU."""
        if precision.autocast is None:
            return None
        return torch.float16 if precision.autocast == "fp16" else torch.bfloat16

    def scaler(self, precision: Precision) -> torch.amp.GradScaler | None:
        """Only fp16 needs one; bf16 has the range of fp32."""
        if self.autocast_dtype(precision) is torch.float16:
            return torch.amp.GradScaler("cpu")
        return None

    def prepare(self, case: Case, precision: Precision) -> list[str]:
        """Threads as asked, or as torch would take; oneDNN held to IEEE fp32."""
        torch.set_num_threads(case.threads or default_threads())
        force_float32(tf32=precision.tf32)
        return [
            *float32_settings("mkldnn"),
            *(determinism.force() if case.deterministic else []),
            f"autocast={self.autocast_dtype(precision)}",
        ]

    def meter(self) -> energy.Meter:
        """RAPL's package domains."""
        return energy.rapl(energy.POWERCAP)

    def synchronize(self) -> None:
        """CPU operators return when they are done."""

    def mark(self) -> float:
        """Now."""
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        """Their difference."""
        return end - start

    def reset_peak(self) -> None:
        """Device memory is host memory here; see sensors."""

    def peak_memory_bytes(self) -> int | None:
        """None: it is counted as host memory."""
        return None

    def peak_reserved_bytes(self) -> int | None:
        """None: it is counted as host memory."""
        return None

    def peers(self) -> int:
        """A process a core at most."""
        return host.cores_usable()

    def peer(self, rank: int) -> str:  # noqa: ARG002 - a device's method
        """All ranks share the CPU."""
        return self.name

    def memory_limit_bytes(self) -> int:
        """The tightest of the machine's memory, its container's and this process's limits."""
        address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
        limits = [host.memory_bytes(), cgroup.memory_limit_bytes()]
        limits += [None if address_space == resource.RLIM_INFINITY else address_space]
        return min(limit for limit in limits if limit is not None)

    def safe_memory_bytes(self) -> int | None:
        """Most of what is free: a machine without memory takes everybody with it."""
        free = min(host.memory_available_bytes(), self.memory_limit_bytes())
        return int(SAFE_SHARE * free)

    def release(self) -> None:
        """Cycles that hold tensors; the allocator keeps nothing."""
        gc.collect()

    def capture(self, run: Run, images: torch.Tensor) -> Run:
        """There is nothing to capture."""
        raise NotImplementedError("a CPU has no graphs")

    def stream(self) -> int | None:
        """None: nothing is enqueued."""
        return None

    def reading(self) -> DeviceReading:
        """Nothing: the host's sensors watch it."""
        return DeviceReading()

    def reading_notes(self) -> dict[str, str]:
        """Nothing is missing."""
        return {}

    def classify(self, error: BaseException) -> ErrorKind:
        """torch's CPU allocator raises RuntimeError; its text is the only mark."""
        text = str(error)
        if isinstance(error, MemoryError) or any(
            mark in text
            for mark in ("can't allocate memory", "not enough memory", "std::bad_alloc")
        ):
            return "oom"
        return "other"
