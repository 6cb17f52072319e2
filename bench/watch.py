"""Host, device and its meter together, read between samples."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import TypeVar

from bench import sensors
from bench.devices import Device
from bench.energy import Spent
from bench.facts import DeviceReading
from bench.measurement import DeviceWindows

T = TypeVar("T")

WAITED = 0.2


class Watch:
    """Marks windows with what disturbed them, and keeps what the device said at their ends.

    A cap on the device's clocks is remembered, it is not a disturbance.
    """

    def __init__(self, host: sensors.HostWatch, device: Device, spent: Spent) -> None:
        self.host, self.device, self.spent = host, device, spent
        self.readings: list[DeviceReading] = []

    def restart(self) -> None:
        """A window begins."""
        self.spent.start()
        self.host.restart()

    def sampled(self) -> None:
        """A sample has ended: its joules."""
        self.spent.lap()

    def since_last(self) -> str | None:
        """What disturbed either, the device first: it is asked while it is still warm."""
        reading = self.device.reading()
        self.readings.append(reading)
        mark = self.host.since_last()
        self.spent.start()
        return "hardware_slowdown" if reading.disturbed else mark

    @property
    def capped(self) -> bool:
        """Whether power or temperature held the clocks down at any time."""
        return any(reading.capped for reading in self.readings)

    @property
    def waited(self) -> bool:
        """Whether the device was idle for more than WAITED of the time, by its own word."""
        seen = _every(reading.utilization_percent for reading in self.readings)
        return seen is not None and statistics.fmean(seen) < 100 * (1 - WAITED)

    def device_windows(self) -> DeviceWindows:
        """Columns of the record; a list is null if one of its windows is not known."""
        seen = self.readings
        notes = self.device.reading_notes()
        return DeviceWindows(
            window_clock_reasons=_every(
                None if r.clock_reasons is None else "+".join(r.clock_reasons) for r in seen
            ),
            window_utilization_percent=_every(r.utilization_percent for r in seen),
            window_sm_clock_mhz=_every(r.sm_clock_mhz for r in seen),
            window_memory_clock_mhz=_every(r.memory_clock_mhz for r in seen),
            window_power_w=_every(r.power_w for r in seen),
            window_temperature_c=_every(r.temperature_c for r in seen),
            memory_used_bytes=_most(r.memory_used_bytes for r in seen),
            memory_own_bytes=_most(r.memory_own_bytes for r in seen),
            memory_others_bytes=_most(r.memory_others_bytes for r in seen),
            pcie_generation_loaded=_most(r.pcie_generation for r in seen),
            pcie_width_loaded=_most(r.pcie_width for r in seen),
            telemetry_notes=[f"{what}: {why}" for what, why in sorted(notes.items())] or None,
        )


def _every(values: Iterable[T | None]) -> list[T] | None:
    found = list(values)
    known = [value for value in found if value is not None]
    return known if known and len(known) == len(found) else None


def _most(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
