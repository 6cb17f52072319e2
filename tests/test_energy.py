"""Joules: counters that wrap, power that is integrated, and null where neither exists."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import energy
from tests.conftest import TINY, Bench


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def powercap(root: Path, **domains: tuple[str, int]) -> Path:
    """A powercap folder of domains: name -> (its `name` file, microjoules); range 1 kJ."""
    for folder, (name, count) in domains.items():
        path = root / folder.replace("_", ":").replace("intel:rapl", "intel-rapl")
        path.mkdir(parents=True)
        (path / "name").write_text(name + "\n")
        (path / "energy_uj").write_text(f"{count}\n")
        (path / "max_energy_range_uj").write_text("1000000000\n")
    return root


def test_rapl_sums_the_packages_and_wraps_around(tmp_path: Path) -> None:
    """Two packages; their parts and the platform are not counted again; one counter wraps."""
    root = powercap(
        tmp_path,
        intel_rapl_0=("package-0", 999_000_000),
        intel_rapl_0_0=("core", 0),
        intel_rapl_1=("package-1", 0),
        intel_rapl_2=("psys", 0),
    )
    meter = energy.rapl(root)
    assert meter.source == "RAPL, 2 CPU packages"
    assert meter.read_j() == 0
    for domain, count in {"0": 2_000_000, "1": 5_000_000, "0:0": 9, "2": 9}.items():
        (root / f"intel-rapl:{domain}" / "energy_uj").write_text(str(count))
    assert meter.read_j() == pytest.approx(3 + 5)


def test_a_counter_that_may_have_wrapped_twice_is_unknown(tmp_path: Path) -> None:
    """A kilojoule at 500 W is over in 2 s: after 1.9 s it is read, after 2.1 s never again."""
    root, clock = powercap(tmp_path, intel_rapl_0=("package-0", 0)), Clock()
    meter = energy.Rapl([root / "intel-rapl:0"], clock)
    clock.now += 1.9
    assert meter.read_j() == 0
    clock.now += 2.1
    assert meter.read_j() is None
    assert meter.read_j() is None


def test_rapl_that_cannot_be_read_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Absent, or closed to all but root, whom these tests may be run as."""
    absent = energy.rapl(tmp_path)
    assert absent.read_j() is None
    assert "no RAPL" in absent.source
    powercap(tmp_path, intel_rapl_0=("package-0", 0))

    def closed(self: energy.Domain) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(energy.Domain, "_count", closed)
    refused = energy.rapl(tmp_path)
    assert refused.read_j() is None
    assert "sudo chmod a+r" in refused.source


def test_power_is_integrated_between_readings() -> None:
    """100 W rising to 200 W over 2 s, then 200 W for 1 s: 300 J + 200 J; the rate is stated."""
    clock = Clock()
    power: Iterator[float | None] = iter([100.0, 200.0, None, 200.0])
    meter = energy.Integrated("a board", lambda: next(power), clock)
    read = [meter.read_j()]
    for seconds in (2.0, 0.5, 0.5):
        clock.now += seconds
        read.append(meter.read_j())
    assert read == [0, 300, None, 500]
    assert meter.source == "a board, power integrated over 3 readings, 0.67 a second"


@pytest.mark.parametrize(
    ("joules", "idle_w", "images", "expected"),
    [
        (500.0, 20.0, 100, 3.0),
        (500.0, 0.0, 100, 5.0),
        (200.0, 20.0, 100, None),  # nothing is left above idle
        (100.0, 20.0, 100, None),
        (None, 20.0, 100, None),
        (500.0, None, 100, None),
        (500.0, 20.0, 0, None),
    ],
)
def test_joules_per_image(
    joules: float | None, idle_w: float | None, images: int, expected: float | None
) -> None:
    """Over ten seconds: above idle, or null."""
    assert energy.joules_per_image(joules, 10.0, idle_w, images) == expected


def test_only_the_laps_count() -> None:
    """Joules of the warm-up and between laps are no image's; an unknown reading spoils the sum."""
    clock = Clock()
    meter = energy.Counted("c", lambda: 10.0 * clock.now)
    spent = energy.Spent(meter, 4.0, clock)
    for seconds in (70.0, 2.0, 3.0):
        spent.start()
        clock.now += seconds
        spent.lap()
        clock.now += 50.0
    assert spent.facts([1, 2], 10) == {
        "energy_j_per_image": pytest.approx((50 - 4 * 5) / 10),
        "energy_total_j_per_image": pytest.approx(5.0),
        "energy_source": "c",
    }
    spent.meter = energy.Unmetered("gone")
    spent.lap()
    assert set(spent.facts([1, 2, 3], 10).values()) == {None}
    assert None not in spent.facts([1, 2], 10).values()


def test_nothing_is_waited_for_without_a_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle power is unknown, at once."""

    def never(_: float) -> None:
        raise AssertionError("waited")

    monkeypatch.setattr(energy.time, "sleep", never)
    assert energy.idle_watts([energy.Unmetered("none")]) == [None]
    assert energy.idle_watts([]) == []


# 20 W, and 100 W for each core this process keeps busy.
BUSY_METER = """
import time
import bench.energy
def joules():
    return 20 * time.monotonic() + 100 * time.process_time()
bench.energy.rapl = lambda root: bench.energy.Counted("made up", joules)
"""


@pytest.mark.slow
def test_a_record_holds_the_joules_of_an_image(bench: Bench, tmp_path: Path, images: Path) -> None:
    """Through survey and worker with a made-up meter, for steps and for whole epochs."""
    (tmp_path / "sitecustomize.py").write_text(BUSY_METER)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    case = [*TINY, "--task", "train", "--batch-size", "8", "--threads", "1", "--json"]
    case += ["--data", "folder:images", "--loader-workers", "0"]
    steps = bench("run", *case, env={"PYTHONPATH": path})
    epochs = bench("run", *case, "--epochs", "3", "--full", env={"PYTHONPATH": path})
    for record in steps.cases + epochs.cases:
        assert record["status"] == "measured"
        assert record["energy_source"] == "made up"
        assert record["idle_power_w"] == pytest.approx(20, rel=0.2)
        rate = record["throughput_images_per_s"]
        # One busy thread is 100 W above idle; less where other processes take its core.
        assert 20 < record["energy_j_per_image"] * rate < 400
        idle = record["energy_total_j_per_image"] - record["energy_j_per_image"]
        assert idle * rate == pytest.approx(record["idle_power_w"], rel=0.1)


@pytest.mark.slow
def test_a_machine_without_a_meter_has_no_joules(bench: Bench, tmp_path: Path) -> None:
    """Null, not 0; and `bench doctor` says why."""
    (tmp_path / "sitecustomize.py").write_text(
        "import pathlib, bench.energy; bench.energy.POWERCAP = pathlib.Path('/nowhere')"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    record = bench("run", *TINY, "--json", env={"PYTHONPATH": path}).cases[0]
    names = ("energy_j_per_image", "energy_total_j_per_image", "energy_source", "idle_power_w")
    assert {record[name] for name in names} == {None}
    assert "no: no RAPL below /nowhere" in bench("doctor", env={"PYTHONPATH": path}).out
