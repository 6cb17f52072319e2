"""What parent and worker say to each other: JSON, never pickles."""

from __future__ import annotations

from msgspec import Struct

from bench.facts import DeviceFacts, Environment
from bench.measurement import Measurement
from bench.peaks import Peak
from bench.schema import Budget, Case, Status


class Order(Struct, frozen=True, kw_only=True, tag=True):
    """Parent → worker: run this.

    `started` is time.monotonic() before the process was asked for; `root` is the
    process whose tree is ours, everything else is foreign.
    """

    case: Case
    purpose: str
    budget: Budget
    started: float
    log: str
    root: int
    cache: str  # folder of built artefacts
    scratch: str  # a folder of this case's own, gone with it
    idle_power_w: float | None = None
    device_name: str | None = None
    host_peaks: dict[str, Peak] = {}  # what this run's sentinel measured, by bench.peaks.COLUMNS


class Progress(Struct, frozen=True, kw_only=True, tag=True):
    """Worker → parent between samples; the worker waits for an empty answer."""

    images_per_s: float
    relative_half_width: float | None
    left_s: float


class Outcome(Struct, frozen=True, kw_only=True, tag=True):
    """Worker → parent: the end."""

    status: Status
    reason: str | None = None
    warnings: list[str] = []
    measurement: Measurement = Measurement()


class Survey(Struct, frozen=True, kw_only=True):
    """What a child found out about the machine before it exited."""

    devices: list[DeviceFacts]
    absent: dict[str, str]  # asked for but not here -> why
    host: DeviceFacts  # the CPU, whether it was asked for or not
    environment: Environment


class Finding(Struct, frozen=True, kw_only=True):
    """One line of `bench doctor`."""

    group: str  # devices, engines, precisions, energy or noise
    name: str
    works: bool
    text: str  # product name, or why not and what to do


class Forecast(Struct, frozen=True, kw_only=True):
    """What a case is expected to need, found out without running it."""

    peak_bytes: int | None  # None: what executes the model is not torch's own operators
    flops_per_image: float


class Foreseen(Struct, frozen=True, kw_only=True):
    """Forecasts of cases (None: not possible), and of searches how far each may go.

    A ceiling of None is no limit; a refusal is why the search may not be made at all.
    """

    forecasts: list[Forecast | None]
    ceilings: list[int | None]
    refusals: list[str | None]


class Checked(Struct, frozen=True, kw_only=True):
    """Why cases cannot run (None: they can) and whether their precision is only emulated."""

    refusals: list[str | None]
    emulated: list[str | None]
