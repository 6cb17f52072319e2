"""NVIDIA GPUs through torch.cuda."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from bench import determinism, energy
from bench.devices import ErrorKind, default_threads, float32_settings, force_float32
from bench.environment import nvml
from bench.facts import DeviceFacts
from bench.precisions import Precision
from bench.schema import Case

CLASS = "gpu"

# A GPU without one of these kernel-driver nodes is not a GPU, whoever simulates it.
DRIVER_NODES = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-ctrl")
DRIVER_NODES_ROCM = ("/dev/kfd",)


def found() -> list[str]:
    """The first GPU of each product: `cuda:0`, and `cuda:2` only if it is another model."""
    if not torch.cuda.is_available():
        return []
    first = {torch.cuda.get_device_name(i): i for i in reversed(range(torch.cuda.device_count()))}
    return [f"cuda:{i}" for i in sorted(first.values())]


def why_none() -> str:
    """Why torch sees no GPU, as a sentence with the way out."""
    if torch.version.cuda is None and torch.version.hip is None:
        return (
            f"this torch ({torch.__version__}) is a CPU-only build; "
            "install a CUDA build from https://pytorch.org/get-started/locally/"
        )
    if not _marked_simulated() and not _driver_nodes():
        return "no GPU and driver here (there is no kernel-driver node such as /dev/nvidiactl)"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return f"torch cannot start CUDA: {str(error).splitlines()[0]}"
    return "torch finds no CUDA device; see CUDA_VISIBLE_DEVICES"


def noise() -> list[str]:
    """Other processes that compute on the GPUs here, by NVML."""
    return [
        f"{processes} processes compute on {gpu} already" for gpu, processes in nvml.busy().items()
    ]


def simulated() -> bool:
    """Whether the GPUs here are simulated: a simulator's marker, or no kernel driver."""
    return _marked_simulated() or not _driver_nodes()


def _marked_simulated() -> bool:
    return "CUDA_SIM_PROFILE" in os.environ


def _driver_nodes() -> list[str]:
    """Kernel-driver nodes that are there, of the kind this torch was built for."""
    nodes = DRIVER_NODES_ROCM if torch.version.hip else DRIVER_NODES
    return [node for node in nodes if Path(node).exists()]


class Device:
    """One GPU. Work is asynchronous; events mark points in its queue."""

    asynchronous = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.index = int(name.partition(":")[2] or 0)
        self._slowdown: Callable[[], str | None] | None = None

    def facts(self) -> DeviceFacts:
        """Name, memory, driver and state, as the runtime and NVML tell them."""
        properties = torch.cuda.get_device_properties(self.index)
        return DeviceFacts(
            device=self.name,
            kind="cuda",
            device_class=CLASS,
            device_name=properties.name,
            memory_bytes=properties.total_memory,
            driver=nvml.driver(),
            simulated=simulated(),
            state=msgspec.structs.replace(
                nvml.state(str(properties.uuid)),
                compute_capability=f"{properties.major}.{properties.minor}",
                # `NVIDIA A100-SXM4-40GB MIG 3g.20gb`
                mig_profile=properties.name.partition(" MIG ")[2] or None,
            ),
        )

    def torch_device(self) -> torch.device:
        """This GPU."""
        return torch.device("cuda", self.index)

    def refuses(self, precision: Precision) -> str | None:
        """TF32 and bf16 need Ampere; and this torch must have kernels for the GPU."""
        major, minor = torch.cuda.get_device_capability(self.index)
        if not simulated_kernels() and not _has_kernels(major, minor):
            return (
                f"this torch ({torch.__version__}) has no kernels for compute capability "
                f"{major}.{minor} (it has {' '.join(torch.cuda.get_arch_list())}); "
                "a torch built for an older CUDA may have them"
            )
        if precision.tf32 and major < 8:
            return (
                f"TF32 needs compute capability 8.0, this GPU has {major}.{minor}; use fp32 or amp"
            )
        if self.autocast_dtype(precision) is torch.bfloat16 and not self._native_bf16():
            return (
                f"bf16 needs compute capability 8.0, this GPU has {major}.{minor}; use amp (fp16)"
            )
        return None

    def _native_bf16(self) -> bool:
        with torch.cuda.device(self.index):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))

    def emulates(self, precision: Precision) -> str | None:  # noqa: ARG002 - a device's method
        """What is not native is refused."""
        return None

    def autocast_dtype(self, precision: Precision) -> torch.dtype | None:
        """`amp` is fp16 on CUDA."""
        if precision.autocast is None:
            return None
        return torch.bfloat16 if precision.autocast == "bf16" else torch.float16

    def scaler(self, precision: Precision) -> torch.amp.GradScaler | None:
        """fp16 gradients underflow without one."""
        if self.autocast_dtype(precision) is torch.float16:
            return torch.amp.GradScaler("cuda")
        return None

    def prepare(self, case: Case, precision: Precision) -> list[str]:
        """TF32 on or off for matrix products and convolutions, kernel search, threads."""
        forced = _force_deterministic() if case.deterministic else []
        torch.cuda.set_device(self.index)
        torch.set_num_threads(case.threads or default_threads())
        force_float32(tf32=precision.tf32)
        # The search picks kernels by noisy timings: not the same ones every time.
        torch.backends.cudnn.benchmark = case.cudnn_benchmark and not case.deterministic
        return [
            *float32_settings("cuda"),
            *float32_settings("cudnn"),
            f"cudnn.benchmark={torch.backends.cudnn.benchmark}",
            *forced,
            f"autocast={self.autocast_dtype(precision)}",
        ]

    def meter(self) -> energy.Meter:
        """NVML's reading of the whole board."""
        return board_meter(str(torch.cuda.get_device_properties(self.index).uuid))

    def synchronize(self) -> None:
        """Wait for everything enqueued on this GPU."""
        torch.cuda.synchronize(self.index)

    def mark(self) -> torch.cuda.Event:
        """An event recorded now on the current stream."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Device time between two events; read only after a synchronise."""
        return float(start.elapsed_time(end)) / 1000

    def reset_peak(self) -> None:
        """Start a new high-water mark in torch's allocator."""
        torch.cuda.reset_peak_memory_stats(self.index)

    def peak_memory_bytes(self) -> int | None:
        """Most bytes allocated by torch since the reset."""
        return torch.cuda.max_memory_allocated(self.index)

    def peak_reserved_bytes(self) -> int | None:
        """Most bytes torch's caching allocator held since the reset."""
        return torch.cuda.max_memory_reserved(self.index)

    def slowdown(self) -> str | None:
        """NVML's reasons for the clocks of this moment."""
        if self._slowdown is None:
            self._slowdown = nvml.slowdown(str(torch.cuda.get_device_properties(self.index).uuid))
        return self._slowdown()

    def classify(self, error: BaseException) -> ErrorKind:
        """Sticky CUDA errors are fatal: nothing after them in this process counts."""
        if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
            return "oom"
        if isinstance(error, torch.AcceleratorError):
            return "fatal"
        return "other"


def board_meter(uuid: str) -> energy.Meter:
    """The board's energy counter (Volta and newer), else its power, else why there is neither.

    A MIG instance is no board: NVML does not know its UUID as a GPU's, and the
    board's joules are not its own.
    """
    import pynvml

    def reading(ask: Callable[[Any], int]) -> Callable[[], float | None]:
        """NVML answers in thousandths."""

        def read() -> float | None:
            try:
                return ask(handle) / 1000
            except pynvml.NVMLError:
                return None

        return read

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError as error:
        return energy.Unmetered(f"NVML does not know this device as a whole board ({error})")
    joules = reading(pynvml.nvmlDeviceGetTotalEnergyConsumption)
    if joules() is not None:
        return energy.Counted("NVML, energy counter of the whole board", joules)
    watts = reading(pynvml.nvmlDeviceGetPowerUsage)
    if watts() is not None:
        return energy.Integrated("NVML, the whole board", watts)
    return energy.Unmetered("NVML tells neither energy nor power of this GPU")


def _force_deterministic() -> list[str]:
    """Before CUDA starts: cuBLAS and torch read the variable once. Read back as NAME=value."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.backends.cudnn.deterministic = True
    return [
        *determinism.force(),
        f"cudnn.deterministic={torch.backends.cudnn.deterministic}",
        f"CUBLAS_WORKSPACE_CONFIG={os.environ['CUBLAS_WORKSPACE_CONFIG']}",
    ]


def simulated_kernels() -> bool:
    """Whether the simulated runtime was told to run kernels this torch does not have."""
    return "ignore_arch_list = 1" in os.environ.get("CUDA_SIM_OVERRIDES", "")


def _has_kernels(major: int, minor: int) -> bool:
    """Binary code runs on the same major version from its minor on; PTX on anything newer."""
    for arch in torch.cuda.get_arch_list():
        kind, _, digits = arch.partition("_")
        number = int("".join(c for c in digits if c.isdigit()))
        if kind == "compute" and number <= major * 10 + minor:
            return True
        if number // 10 == major and number % 10 <= minor:
            return True
    return False
