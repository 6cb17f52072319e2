"""Joules: what counts them, and how many an image took. No thread: meters are read when asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from msgspec import Struct

POWERCAP = Path("/sys/class/powercap")
# No processor package draws more; a counter left unread for longer than it could
# wrap around in at this power may have done so twice.
MOST_PACKAGE_W = 500.0
IDLE_S = 1.0

Clock = Callable[[], float]
T = TypeVar("T")


class Meter(Protocol):
    """What counts a device's joules."""

    @property
    def source(self) -> str:
        """Where the joules come from and what they cover, or why there are none."""
        ...

    def read_j(self) -> float | None:
        """Joules since some origin; None where they are not known."""
        ...


class Unmetered(Struct, frozen=True):
    """No meter; `source` says why and what to do."""

    source: str

    def read_j(self) -> None:
        """Not known."""


class Counted(Struct, frozen=True):
    """A counter of joules that never wraps around."""

    source: str
    read_j: Callable[[], float | None]


class Integrated:
    """Power over time by the trapezoidal rule, between the readings that are asked for."""

    def __init__(
        self, source: str, watts: Callable[[], float | None], clock: Clock = time.monotonic
    ) -> None:
        self.name, self.watts, self.clock = source, watts, clock
        self.joules, self.readings = 0.0, 0
        self.first_s = self.last_s = self.last_w = 0.0

    @property
    def source(self) -> str:
        """With the sampling rate seen so far."""
        seconds = self.last_s - self.first_s
        rate = f"{(self.readings - 1) / seconds:.2g} a second" if seconds else "not yet"
        return f"{self.name}, power integrated over {self.readings} readings, {rate}"

    def read_j(self) -> float | None:
        """Joules since the first reading; None where the power cannot be read."""
        now, watts = self.clock(), self.watts()
        if watts is None:
            return None
        if self.readings:
            self.joules += (watts + self.last_w) / 2 * (now - self.last_s)
        else:
            self.first_s = now
        self.readings += 1
        self.last_s, self.last_w = now, watts
        return self.joules


class Domain:
    """One RAPL domain: a folder with a counter of microjoules that wraps around.

    Linux, Documentation/power/powercap: `energy_uj` goes up to `max_energy_range_uj`.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.counter, self.clock = folder / "energy_uj", clock
        self.range_uj = int((folder / "max_energy_range_uj").read_text(encoding="ascii"))
        self.last_uj, self.last_s, self.total_uj = self._count(), clock(), 0

    def _count(self) -> int:
        return int(self.counter.read_text(encoding="ascii"))

    def read_j(self) -> float | None:
        """Joules since it was opened; None if it may have wrapped around more than once."""
        now = self.clock()
        if now - self.last_s > self.range_uj / 1e6 / MOST_PACKAGE_W:
            self.last_s = -float("inf")  # the sum is lost for good
            return None
        count = self._count()
        self.total_uj += (count - self.last_uj) % self.range_uj
        self.last_uj, self.last_s = count, now
        return self.total_uj / 1e6


class Rapl:
    """The sum over all processor packages of the machine."""

    def __init__(self, folders: list[Path], clock: Clock = time.monotonic) -> None:
        self.domains = [Domain(folder, clock) for folder in folders]
        self.source = f"RAPL, {len(folders)} CPU package{'s' * (len(folders) > 1)}"

    def read_j(self) -> float | None:
        """Joules since it was opened."""
        try:
            parts = [domain.read_j() for domain in self.domains]
        except (OSError, ValueError):
            return None
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None


def rapl(root: Path) -> Meter:
    """The CPU packages below a powercap folder, or why they cannot be read.

    AMD's counters go by the same names. Domains inside a package (core, dram) and
    beside them (psys, the same package through MMIO) would be counted twice.
    """
    folders = [f for f in sorted(root.glob("intel-rapl:*")) if _name(f).startswith("package")]
    if not folders:
        return Unmetered(f"no RAPL below {root}; virtual machines and containers seldom have it")
    try:
        return Rapl(folders)
    except PermissionError:
        return Unmetered(
            f"RAPL may be read by root only; `sudo chmod a+r {root}/intel-rapl:*/energy_uj` allows "
            "it to everybody until the next boot (it was closed for CVE-2020-8694)"
        )
    except (OSError, ValueError) as error:
        return Unmetered(f"RAPL below {root} cannot be read ({error})")


def _name(folder: Path) -> str:
    try:
        return (folder / "name").read_text(encoding="ascii")
    except OSError:
        return ""


class Spent:
    """Joules and seconds of a device in laps, of which those count that the speed is made of.

    The first step searches kernels and compiles for seconds: its joules are no image's.
    """

    def __init__(
        self, meter: Meter, idle_w: float | None = None, clock: Clock = time.monotonic
    ) -> None:
        self.meter, self.idle_w, self.clock = meter, idle_w, clock
        self.laps: list[tuple[float | None, float]] = []

    def start(self) -> None:
        """A lap begins; the device has been waited for. What was before is nobody's."""
        self.begun_j, self.begun_s = self.meter.read_j(), self.clock()

    def lap(self) -> None:
        """It ends, and the next begins; the device has been waited for."""
        begun_j, begun_s = self.begun_j, self.begun_s
        self.start()
        ended_j = self.begun_j
        joules = None if begun_j is None or ended_j is None else ended_j - begun_j
        self.laps.append((joules, self.begun_s - begun_s))

    def facts(self, laps: Sequence[int], images: int) -> dict[str, Any]:
        """Columns of bench.schema.Measurement for the images made in these laps."""
        joules = [self.laps[lap][0] for lap in laps]
        known = [j for j in joules if j is not None]
        spent = sum(known) if len(known) == len(joules) else None
        seconds = sum(self.laps[lap][1] for lap in laps)
        total = joules_per_image(spent, seconds, 0.0, images)
        return {
            "energy_j_per_image": joules_per_image(spent, seconds, self.idle_w, images),
            "energy_total_j_per_image": total,
            "energy_source": None if total is None else self.meter.source,
        }


def joules_per_image(
    joules: float | None, seconds: float, idle_w: float | None, images: int
) -> float | None:
    """Joules above `idle_w` watts over `seconds`, an image; None unless known and positive."""
    if joules is None or idle_w is None or images < 1:
        return None
    spent = (joules - idle_w * seconds) / images
    return spent if spent > 0 else None


def idle_watts(meters: list[Meter]) -> list[float | None]:
    """Each meter's mean watts over the next second; without a wait where none can be read."""
    spent = [Spent(meter) for meter in meters]
    for one in spent:
        one.start()
    if any(one.begun_j is not None for one in spent):
        for _ in range(10):  # integrated power needs readings on the way
            time.sleep(IDLE_S / 10)
            for one in spent:
                one.meter.read_j()
    for one in spent:
        one.lap()
    return [joules / seconds if joules else None for one in spent for joules, seconds in one.laps]
