"""What NVIDIA's driver tells about a GPU, through NVML.

Every question is optional: what a GPU does not support or a user may not ask is
null. NVML is started for the questions and stopped after them, and only ever in
a child: a process forked from one that uses NVML cannot use it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pynvml

from bench.facts import DeviceState


@contextlib.contextmanager
def session() -> Iterator[bool]:
    """NVML while it is needed; False where it cannot start."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield False
        return
    try:
        yield True
    finally:
        ask(pynvml.nvmlShutdown)


def ask(question: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or None for every error of NVML and for bytes that are no text."""
    try:
        return question(*arguments)
    except (pynvml.NVMLError, UnicodeDecodeError):
        return None


def driver() -> str | None:
    """Version of the driver."""
    with session() as started:
        return ask(pynvml.nvmlSystemGetDriverVersion) if started else None


def busy() -> dict[str, int]:
    """`GPU 0 (product)` -> processes that compute on it, where there are any."""
    found = {}
    with session() as started:
        for index in range((ask(pynvml.nvmlDeviceGetCount) or 0) if started else 0):
            gpu = ask(pynvml.nvmlDeviceGetHandleByIndex, index)
            processes = gpu and ask(pynvml.nvmlDeviceGetComputeRunningProcesses, gpu)
            if processes:
                name = ask(pynvml.nvmlDeviceGetName, gpu) or "unknown"
                found[f"GPU {index} ({name})"] = len(processes)
    return found


# What holds clocks down (nvml.h, nvmlClocksEventReasons): the hardware protecting itself
# disturbs a measurement; a cap by power or temperature is a state some GPUs live in.
HARDWARE = (
    pynvml.nvmlClocksThrottleReasonHwSlowdown
    | pynvml.nvmlClocksThrottleReasonHwThermalSlowdown
    | pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown
)
CAPPED = (
    pynvml.nvmlClocksThrottleReasonSwPowerCap | pynvml.nvmlClocksThrottleReasonSwThermalSlowdown
)


def slowdown(uuid: str) -> Callable[[], str | None]:
    """What to ask again and again: `hardware_slowdown`, `power_limited` or None, as it is now.

    NVML stays started: this is for the worker, which ends soon.
    """
    gpu = _handle(uuid) if ask(pynvml.nvmlInit) is None else None

    def now() -> str | None:
        reasons = gpu and ask(pynvml.nvmlDeviceGetCurrentClocksEventReasons, gpu)
        if gpu and reasons is None:  # drivers before 535 know it by its former name
            reasons = ask(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, gpu)
        if not reasons:
            return None
        return "hardware_slowdown" if reasons & HARDWARE else _capped(reasons)

    return now


def _capped(reasons: int) -> str | None:
    return "power_limited" if reasons & CAPPED else None


def state(uuid: str) -> DeviceState:
    """The state of a GPU, or of the GPU a MIG instance is a slice of.

    `uuid` is bare, as the CUDA runtime gives it. The runtime counts GPUs in
    another order than NVML, and hides some, so an index would not do.
    """
    with session() as started:
        gpu = _handle(uuid) if started else None
        return DeviceState() if gpu is None else _answers(gpu)


def _handle(uuid: str) -> Any:
    """The physical GPU: a slice answers none of the questions below."""
    gpu = ask(pynvml.nvmlDeviceGetHandleByUUID, f"GPU-{uuid}")
    if gpu is not None:
        return gpu
    part = ask(pynvml.nvmlDeviceGetHandleByUUID, f"MIG-{uuid}")
    return part and ask(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, part)


def _answers(gpu: Any) -> DeviceState:
    sm, memory = pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM
    return DeviceState(
        mig_mode=_on(ask(pynvml.nvmlDeviceGetMigMode, gpu)),
        power_limit_w=_watts(ask(pynvml.nvmlDeviceGetPowerManagementLimit, gpu)),
        power_limit_default_w=_watts(ask(pynvml.nvmlDeviceGetPowerManagementDefaultLimit, gpu)),
        sm_clock_max_mhz=ask(pynvml.nvmlDeviceGetMaxClockInfo, gpu, sm),
        application_sm_clock_mhz=ask(pynvml.nvmlDeviceGetApplicationsClock, gpu, sm),
        application_memory_clock_mhz=ask(pynvml.nvmlDeviceGetApplicationsClock, gpu, memory),
        persistence_mode=_on(ask(pynvml.nvmlDeviceGetPersistenceMode, gpu)),
        ecc=_on(ask(pynvml.nvmlDeviceGetEccMode, gpu)),
        vbios=ask(pynvml.nvmlDeviceGetVbiosVersion, gpu),
        other_processes=_count(ask(pynvml.nvmlDeviceGetComputeRunningProcesses, gpu)),
        pcie_generation=ask(pynvml.nvmlDeviceGetCurrPcieLinkGeneration, gpu),
        pcie_width=ask(pynvml.nvmlDeviceGetCurrPcieLinkWidth, gpu),
        pcie_generation_max=ask(pynvml.nvmlDeviceGetMaxPcieLinkGeneration, gpu),
        pcie_width_max=ask(pynvml.nvmlDeviceGetMaxPcieLinkWidth, gpu),
    )


def _count(processes: Any) -> int | None:
    return None if processes is None else len(processes)


def _on(answer: Any) -> bool | None:
    """Modes are numbers, or pairs of now and after the next reset."""
    now = answer[0] if isinstance(answer, (list, tuple)) else answer
    return None if now is None else bool(now)


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000
