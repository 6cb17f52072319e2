"""What NVIDIA's driver tells about a GPU, through NVML. The only file that knows its handles.

GPUs are found by UUID: the CUDA runtime counts them in another order than NVML
and hides some, so an index would be another GPU's. `uuid` is bare everywhere here,
as the runtime gives it. Every question is optional: what a GPU does not support or
a user may not ask is null. NVML is only ever started in a child: a process forked
from one that uses NVML cannot use it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import pynvml

from bench import energy
from bench.errors import DeviceLost
from bench.facts import DeviceReading, DeviceState


@contextlib.contextmanager
def session() -> Iterator[bool]:
    """NVML while it is needed; False where it cannot start."""
    if why_not():
        yield False
        return
    try:
        yield True
    finally:
        ask(pynvml.nvmlShutdown)


def why_not() -> str | None:
    """Start NVML; what it says where it cannot."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return str(error)
    return None


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


def cuda_version() -> str | None:
    """Newest CUDA the driver can run, e.g. `12.4`."""
    with session() as started:
        number = ask(pynvml.nvmlSystemGetCudaDriverVersion) if started else None
    return None if number is None else f"{number // 1000}.{number % 1000 // 10}"


def gpus() -> dict[str, DeviceState]:
    """`GPU 0 (product)` -> its state, of every GPU the driver knows, hidden ones too."""
    found = {}
    with session() as started:
        for index in range((ask(pynvml.nvmlDeviceGetCount) or 0) if started else 0):
            gpu = ask(pynvml.nvmlDeviceGetHandleByIndex, index)
            if gpu is not None:
                name = ask(pynvml.nvmlDeviceGetName, gpu) or "unknown"
                found[f"GPU {index} ({name})"] = _answers(gpu)
    return found


def _handles(uuid: str) -> tuple[Any, Any]:
    """The GPU, and what of it is ours: itself, or a MIG slice, which answers few questions."""
    gpu = ask(pynvml.nvmlDeviceGetHandleByUUID, f"GPU-{uuid}")
    if gpu is not None:
        return gpu, gpu
    part = ask(pynvml.nvmlDeviceGetHandleByUUID, f"MIG-{uuid}")
    return part and ask(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, part), part


def state(uuid: str) -> DeviceState:
    """The state of a GPU, or of the GPU a MIG instance is a slice of."""
    with session() as started:
        gpu, _ = _handles(uuid) if started else (None, None)
        return DeviceState() if gpu is None else _answers(gpu)


def _answers(gpu: Any) -> DeviceState:
    bits = _clock_bits(gpu)
    sm, memory = pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM
    return DeviceState(
        mig_mode=_on(ask(pynvml.nvmlDeviceGetMigMode, gpu)),
        power_limit_w=_watts(ask(pynvml.nvmlDeviceGetPowerManagementLimit, gpu)),
        power_limit_default_w=_watts(ask(pynvml.nvmlDeviceGetPowerManagementDefaultLimit, gpu)),
        sm_clock_max_mhz=ask(pynvml.nvmlDeviceGetMaxClockInfo, gpu, sm),
        application_sm_clock_mhz=ask(pynvml.nvmlDeviceGetApplicationsClock, gpu, sm),
        application_memory_clock_mhz=ask(pynvml.nvmlDeviceGetApplicationsClock, gpu, memory),
        # An idle GPU may say nothing but that it is idle.
        clocks_locked=None if bits is None or bits & IDLE else bool(bits & LOCKED),
        persistence_mode=_on(ask(pynvml.nvmlDeviceGetPersistenceMode, gpu)),
        compute_mode=COMPUTE_MODES.get(ask(pynvml.nvmlDeviceGetComputeMode, gpu)),
        ecc=_on(ask(pynvml.nvmlDeviceGetEccMode, gpu)),
        vbios=ask(pynvml.nvmlDeviceGetVbiosVersion, gpu),
        other_processes=_count(ask(pynvml.nvmlDeviceGetComputeRunningProcesses, gpu)),
        pcie_generation=ask(pynvml.nvmlDeviceGetCurrPcieLinkGeneration, gpu),
        pcie_width=ask(pynvml.nvmlDeviceGetCurrPcieLinkWidth, gpu),
        pcie_generation_max=ask(pynvml.nvmlDeviceGetMaxPcieLinkGeneration, gpu),
        pcie_width_max=ask(pynvml.nvmlDeviceGetMaxPcieLinkWidth, gpu),
    )


def _clock_bits(gpu: Any) -> int | None:
    """What holds the clocks down; drivers before 535 know it by its former name."""
    bits: int | None = ask(pynvml.nvmlDeviceGetCurrentClocksEventReasons, gpu)
    return ask(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, gpu) if bits is None else bits


# nvml.h, nvmlComputeMode_t
COMPUTE_MODES = {
    pynvml.NVML_COMPUTEMODE_DEFAULT: "default",
    pynvml.NVML_COMPUTEMODE_PROHIBITED: "prohibited",
    pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS: "exclusive_process",
}
CLOSED = ("exclusive_process", "prohibited")  # compute modes that keep processes out


def noises(gpu: str, state: DeviceState) -> list[str]:
    """What makes a GPU in this state noisy, and what to do, in sentences."""
    cap, usual = state.power_limit_w, state.power_limit_default_w
    sentences = {
        f"processes that compute on {gpu} already: {state.other_processes}": state.other_processes,
        f"{gpu} is in compute mode {state.compute_mode}: `sudo nvidia-smi -c DEFAULT` opens it": (
            state.compute_mode in CLOSED
        ),
        f"{gpu} is in MIG mode: other slices share its power and heat with the one measured": (
            state.mig_mode
        ),
        f"the clocks of {gpu} are not known to be locked: "
        "`sudo nvidia-smi -lgc MHZ` steadies them": (
            state.clocks_locked is not True and state.sm_clock_max_mhz is not None
        ),
        f"persistence mode of {gpu} is off, so its driver loads anew for every process: "
        "`sudo nvidia-smi -pm 1`": state.persistence_mode is False,
        f"the power limit of {gpu} is {cap} W, by default it is {usual} W": (
            cap is not None and usual is not None and cap < usual
        ),
    }
    return [sentence for sentence, holds in sentences.items() if holds]


def _count(processes: Any) -> int | None:
    return None if processes is None else len(processes)


def _on(answer: Any) -> bool | None:
    """Modes are numbers, or pairs of now and after the next reset."""
    now = answer[0] if isinstance(answer, (list, tuple)) else answer
    return None if now is None else bool(now)


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


# What holds clocks down (nvml.h, nvmlClocksEventReasons). The hardware protecting itself
# disturbs a measurement; a cap by power or temperature is a state some GPUs live in.
REASONS = {
    pynvml.nvmlClocksThrottleReasonGpuIdle: "idle",
    pynvml.nvmlClocksThrottleReasonApplicationsClocksSetting: "application_clocks",
    pynvml.nvmlClocksThrottleReasonSwPowerCap: "power_cap",
    pynvml.nvmlClocksThrottleReasonSwThermalSlowdown: "thermal_cap",
    pynvml.nvmlClocksThrottleReasonHwSlowdown: "hardware_slowdown",
    pynvml.nvmlClocksThrottleReasonHwThermalSlowdown: "hardware_thermal_slowdown",
    pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "power_brake",
    pynvml.nvmlClocksThrottleReasonSyncBoost: "sync_boost",
    pynvml.nvmlClocksEventReasonDisplayClockSetting: "display_clocks",
}


IDLE = pynvml.nvmlClocksThrottleReasonGpuIdle
LOCKED = pynvml.nvmlClocksThrottleReasonApplicationsClocksSetting


class Board:
    """The GPU that one worker computes on. NVML stays started: a worker ends soon."""

    def __init__(self, uuid: str) -> None:
        self.notes: dict[str, str] = {}  # what is not known -> why
        self.gpu = self.ours = None
        if why := why_not():
            self.notes["all telemetry"] = why
            return
        self.gpu, self.ours = _handles(uuid)
        if self.gpu is None:
            self.notes["all telemetry"] = "NVML does not know this UUID"

    def ask(self, what: str, question: Callable[..., Any], handle: Any, *more: Any) -> Any:
        """The answer; None, and a note why, where there is none. Raises DeviceLost."""
        if handle is None:
            return None
        try:
            return question(handle, *more)
        except pynvml.NVMLError_GpuIsLost as error:
            raise DeviceLost(
                "the driver has lost the GPU (NVML: GPU is lost); `dmesg | grep -i xid` says more, "
                "and it needs a reset or a reboot"
            ) from error
        except (pynvml.NVMLError, UnicodeDecodeError) as error:
            self.notes.setdefault(what, str(error))
            return None

    def reading(self) -> DeviceReading:
        """What the driver says now. Clocks, power and temperature are the whole board's."""
        gpu = self.gpu
        busy = self.ask("utilization", pynvml.nvmlDeviceGetUtilizationRates, gpu)
        sm, memory = pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM
        used = self.ask("memory", pynvml.nvmlDeviceGetMemoryInfo, self.ours)
        own, others = self._memory_by_process()
        return DeviceReading(
            utilization_percent=busy and busy.gpu,
            sm_clock_mhz=self.ask("SM clock", pynvml.nvmlDeviceGetClockInfo, gpu, sm),
            memory_clock_mhz=self.ask("memory clock", pynvml.nvmlDeviceGetClockInfo, gpu, memory),
            power_w=_watts(self.ask("power", pynvml.nvmlDeviceGetPowerUsage, gpu)),
            temperature_c=self.ask("temperature", _temperature, gpu),
            clock_reasons=self._clock_reasons(),
            memory_used_bytes=used and used.used,
            memory_own_bytes=own,
            memory_others_bytes=others,
            pcie_generation=self.ask("PCIe link", pynvml.nvmlDeviceGetCurrPcieLinkGeneration, gpu),
            pcie_width=self.ask("PCIe link", pynvml.nvmlDeviceGetCurrPcieLinkWidth, gpu),
        )

    def _clock_reasons(self) -> list[str] | None:
        bits = None if self.gpu is None else _clock_bits(self.gpu)
        if bits is None:  # ask again, to note why
            question = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons
            bits = self.ask("clock reasons", question, self.gpu)
        return None if bits is None else [name for bit, name in REASONS.items() if bits & bit]

    def _memory_by_process(self) -> tuple[int | None, int | None]:
        """Bytes of this process and of all others."""
        question = pynvml.nvmlDeviceGetComputeRunningProcesses
        processes = self.ask("memory of processes", question, self.ours)
        if processes is None:
            return None, None
        known = {p.pid: p.usedGpuMemory for p in processes}
        own = known.pop(os.getpid(), None)
        if own is None or None in known.values():
            # In a container the ids can be the host's, so that ours is among them unseen.
            why = "NVML does not list this process by its id"
            self.notes.setdefault("memory of processes", why)
            return None, None
        return own, sum(known.values())

    def meter(self) -> energy.Meter:
        """The board's energy counter (Volta and newer), else its power, else why neither.

        A MIG instance is no board: the board's joules are not its own.
        """
        if self.gpu is None or self.gpu is not self.ours:
            why = self.notes.get("all telemetry", "a MIG instance")
            return energy.Unmetered(f"NVML does not know this device as a whole board ({why})")
        joules = self._thousandths(pynvml.nvmlDeviceGetTotalEnergyConsumption)
        if joules() is not None:
            return energy.Counted("NVML, energy counter of the whole board", joules)
        watts = self._thousandths(pynvml.nvmlDeviceGetPowerUsage)
        if watts() is not None:
            return energy.Integrated("NVML, the whole board", watts)
        return energy.Unmetered("NVML tells neither energy nor power of this GPU")

    def _thousandths(self, question: Callable[..., Any]) -> Callable[[], float | None]:
        return lambda: _watts(ask(question, self.gpu))


def _temperature(gpu: Any) -> int:
    """Degrees Celsius. The newer question first: drivers may drop the old one."""
    with contextlib.suppress(pynvml.NVMLError):
        return int(pynvml.nvmlDeviceGetTemperatureV(gpu, pynvml.NVML_TEMPERATURE_GPU))
    return int(pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU))
