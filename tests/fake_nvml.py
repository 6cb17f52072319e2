"""Answers in place of NVIDIA's driver, under the real pynvml's names."""

from __future__ import annotations

from typing import Any

import pynvml
import pytest

CLOCKS = {pynvml.NVML_CLOCK_SM: 1410, pynvml.NVML_CLOCK_MEM: 1215}

ANSWERS: dict[str, Any] = {
    "nvmlInit": None,
    "nvmlShutdown": None,
    "nvmlSystemGetDriverVersion": "580.1",
    "nvmlDeviceGetCount": 1,
    "nvmlDeviceGetHandleByIndex": "gpu",
    "nvmlDeviceGetHandleByUUID": "gpu",
    "nvmlDeviceGetName": "Test GPU",
    "nvmlDeviceGetComputeRunningProcesses": ["one", "two"],
    "nvmlDeviceGetMigMode": [0, 1],
    "nvmlDeviceGetPowerManagementLimit": 250_000,
    "nvmlDeviceGetPowerManagementDefaultLimit": 400_000,
    "nvmlDeviceGetMaxClockInfo": lambda _, clock: CLOCKS[clock],
    "nvmlDeviceGetApplicationsClock": lambda _, clock: CLOCKS[clock] - 100,
    "nvmlDeviceGetPersistenceMode": 1,
    "nvmlDeviceGetComputeMode": pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS,
    "nvmlDeviceGetCurrentClocksEventReasons": 0x2,
    "nvmlDeviceGetCurrentClocksThrottleReasons": 0x2,
    "nvmlDeviceGetEccMode": (1, 0),
    "nvmlDeviceGetVbiosVersion": "92.00",
    "nvmlDeviceGetCurrPcieLinkGeneration": 1,
    "nvmlDeviceGetCurrPcieLinkWidth": 8,
    "nvmlDeviceGetMaxPcieLinkGeneration": 4,
    "nvmlDeviceGetMaxPcieLinkWidth": 16,
}


def install(monkeypatch: pytest.MonkeyPatch, **changed: Any) -> list[str]:
    """Replace the functions of ANSWERS; an exception as an answer is raised.

    Returns the list of calls, which grows.
    """
    calls: list[str] = []

    def answering(name: str, answer: Any) -> Any:
        def call(*arguments: Any) -> Any:
            calls.append(name)
            if isinstance(answer, Exception):
                raise answer
            return answer(*arguments) if callable(answer) else answer

        return call

    for name, answer in (ANSWERS | changed).items():
        monkeypatch.setattr(pynvml, name, answering(name, answer))
    return calls
