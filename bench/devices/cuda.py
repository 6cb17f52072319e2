"""NVIDIA GPUs through torch.cuda."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import msgspec
import torch

from bench import determinism, energy
from bench.devices import ErrorKind, default_threads, float32_settings, force_float32
from bench.devices import _nvml as nvml
from bench.environment import cgroup
from bench.errors import DeviceLost
from bench.facts import DeviceFacts, DeviceReading
from bench.precisions import Precision
from bench.schema import Case

CLASS = "gpu"
# How libraries and the driver say it where it is not the allocator that does.
NO_MEMORY = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "not enough memory",  # the host's, for a batch that is yet to be copied
    "can't allocate memory",
)
CAPTURE_WARMUP = 3  # passes before a graph is captured, as torch's documentation does

Run = Callable[[torch.Tensor], torch.Tensor]

# A GPU without one of these kernel-driver nodes is not a GPU, whoever simulates it.
DRIVER_NODES = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-ctrl")
DRIVER_NODES_ROCM = ("/dev/kfd",)
PCI, NVIDIA = Path("/sys/bus/pci/devices"), "0x10de"  # vendor id


def found() -> list[str]:
    """The first GPU of each product: `cuda:0`, and `cuda:2` only if it is another model."""
    if not torch.cuda.is_available():
        return []
    first = {torch.cuda.get_device_name(i): i for i in reversed(range(torch.cuda.device_count()))}
    return [f"cuda:{i}" for i in sorted(first.values())]


def why_none() -> str:
    """Why torch sees no GPU, as a sentence with the way out."""
    built = torch.version.cuda or torch.version.hip
    if built is None:
        return (
            f"this torch ({torch.__version__}) is a CPU-only build; "
            "install a CUDA build from https://pytorch.org/get-started/locally/"
        )
    if not _marked_simulated() and not _driver_nodes():
        return _no_driver()
    newest = nvml.cuda_version()
    if newest is not None and _number(newest) < _number(built):
        return (
            f"the driver ({nvml.driver()}) runs CUDA up to {newest}, this torch is built for "
            f"CUDA {built}; update the driver, or install a torch build for CUDA {newest} or older"
        )
    return _driver_but_no_cuda()


def _no_driver() -> str:
    """No kernel-driver node: no GPU, no driver, or a container that was not given them."""
    if not any(_vendor(path) == NVIDIA for path in PCI.glob("*/vendor")):
        return "no GPU and driver here (there is no kernel-driver node such as /dev/nvidiactl)"
    kind = cgroup.container()
    if kind not in (None, "none"):
        return (
            "an NVIDIA GPU is in this machine, but not in this container: start it with "
            "`--gpus all`, which needs the NVIDIA container toolkit on the host"
        )
    return "an NVIDIA GPU is in this machine, but its kernel driver is not loaded: install it"


def _vendor(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _driver_but_no_cuda() -> str:
    """The driver is there: CUDA cannot start, or its GPUs are hidden."""
    gpus = nvml.gpus()
    held = [name for name, state in gpus.items() if state.compute_mode in nvml.CLOSED]
    seen = f"NVML sees {', '.join(gpus)}, but " if gpus else ""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus and hidden is not None and torch.cuda.device_count() == 0:
        return f"{seen}CUDA_VISIBLE_DEVICES={hidden!r} hides every GPU from torch; unset it"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        why = f"{seen}CUDA cannot start: {str(error).splitlines()[0]}"
        if held:
            return (
                f"{why}; {held[0]} is in compute mode {gpus[held[0]].compute_mode}: end the "
                "process that holds it, or `sudo nvidia-smi -c DEFAULT`"
            )
        return f"{why}; `sudo nvidia-modprobe -u` or a reboot may help" if gpus else why
    return f"{seen}torch finds no CUDA device"


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def noise() -> list[str]:
    """What makes the GPUs here noisy, by NVML."""
    return [
        sentence for name, state in nvml.gpus().items() for sentence in nvml.noises(name, state)
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
    graphs = True
    backend = "nccl"

    def __init__(self, name: str) -> None:
        self.name = name
        self.index = int(name.partition(":")[2] or 0)
        self.computes = not simulated()
        self._captured_bytes = 0

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
                nvml.state(self._uuid),
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
                f"{_build_with_kernels(major, minor)}"
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
        return self.board.meter()

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
        return max(torch.cuda.max_memory_allocated(self.index), self._captured_bytes)

    def peak_reserved_bytes(self) -> int | None:
        """Most bytes torch's caching allocator held since the reset."""
        return torch.cuda.max_memory_reserved(self.index)

    @cached_property
    def board(self) -> nvml.Board:
        """What NVML says of it; asked by the worker only."""
        return nvml.Board(self._uuid)

    @property
    def _uuid(self) -> str:
        return str(torch.cuda.get_device_properties(self.index).uuid)

    def stream(self) -> int | None:
        """The handle of torch's current stream."""
        return int(torch.cuda.current_stream(self.index).cuda_stream)

    def reading(self) -> DeviceReading:
        """What NVML says now."""
        return self.board.reading()

    def reading_notes(self) -> dict[str, str]:
        """What NVML does not say."""
        return self.board.notes

    def peers(self) -> int:
        """GPUs of this product, counted from this one on."""
        count = torch.cuda.device_count()
        names = [torch.cuda.get_device_name(i) for i in range(self.index, count)]
        like = itertools.takewhile(lambda name: name == names[0], names)
        return len(list(like))

    def peer(self, rank: int) -> str:
        """The next ones in torch's order."""
        return f"{self.name.partition(':')[0]}:{self.index + rank}"

    def memory_limit_bytes(self) -> int | None:
        """What is free on the GPU, or on our slice of it, and what we hold already."""
        free: int = torch.cuda.mem_get_info(self.index)[0]
        return free + torch.cuda.memory_reserved(self.index)

    def safe_memory_bytes(self) -> int | None:
        """None: the allocator's refusal is the answer a search is after."""
        return None

    def release(self) -> None:
        """After an out-of-memory error: blocks the allocator keeps go back to the GPU."""
        gc.collect()  # frames of the traceback hold tensors in cycles
        torch.cuda.empty_cache()

    def capture(self, run: Run, images: torch.Tensor) -> Run:
        """Record `run` on `images` once, as a CUDA graph that is launched as a whole.

        torch, "CUDA semantics", section "CUDA Graphs": warm up on a side stream,
        capture, copy every input into the captured one. The result is overwritten by
        the next call.
        """
        stream = torch.cuda.Stream(self.index)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(CAPTURE_WARMUP):  # cuDNN searches, the allocator fills
                run(images)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        self.reset_peak()
        with torch.cuda.graph(graph):
            logits = run(images)
        # A replay allocates nothing: what it works in is what the capture took.
        self._captured_bytes = torch.cuda.max_memory_allocated(self.index)

        def replay(fresh: torch.Tensor) -> torch.Tensor:
            images.copy_(fresh, non_blocking=True)
            graph.replay()
            return logits

        return replay

    def classify(self, error: BaseException) -> ErrorKind:
        """Sticky CUDA errors are fatal: nothing after them in this process counts."""
        if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
            return "oom"
        if any(text in str(error) for text in NO_MEMORY):
            return "oom"
        if isinstance(error, (torch.AcceleratorError, DeviceLost)):
            return "fatal"
        return "other"


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


def _build_with_kernels(major: int, minor: int) -> str:
    """Which wheel to take (pytorch/pytorch, RELEASE.md, CUDA support matrix; issue 190385)."""
    where = "choose it at https://pytorch.org/get-started/locally/"
    if (5, 0) <= (major, minor) < (7, 5):
        return f"the CUDA 12.6 build of torch 2.14 or older has them: {where}"
    if major >= 10:
        return f"a build for CUDA 12.8 or newer has them: {where}"
    return "no current build of torch has them; this GPU is too old, or a source build is needed"


def _has_kernels(major: int, minor: int) -> bool:
    """Binary code runs on the same major version from its minor on; PTX on anything newer.

    AMD's architectures (gfx942) have no such order: torch itself says where one is missing.
    """
    if torch.version.hip:
        return True
    for arch in torch.cuda.get_arch_list():
        kind, _, digits = arch.partition("_")
        number = int("".join(c for c in digits if c.isdigit()))
        if kind == "compute" and number <= major * 10 + minor:
            return True
        if number // 10 == major and number % 10 <= minor:
            return True
    return False
