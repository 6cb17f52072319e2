"""Built artefacts are kept, and never trusted when damaged."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.cache import FACTS, Cache, nothing, root_or
from tests.conftest import TINY, Bench

KEY = {"model": "m", "torch": "1"}


class Maker:
    """Writes one file, slowly enough to be timed, and counts."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, folder: Path) -> None:
        self.times += 1
        time.sleep(0.05)
        (folder / "model.bin").write_bytes(b"weights")


def test_the_second_case_finds_what_the_first_built(tmp_path: Path) -> None:
    """With the seconds of the cold build, marked as cached."""
    make = Maker()
    cold = Cache(tmp_path)
    first = cold.artefact("onnx", KEY, make, nothing)
    assert cold.cached is False
    assert cold.saved_s == pytest.approx(0, abs=0.02)
    warm = Cache(tmp_path)
    second = warm.artefact("onnx", KEY, make, nothing)
    assert make.times == 1
    assert warm.cached is True
    assert first.seconds is not None
    assert second.seconds == first.seconds >= 0.05
    assert warm.saved_s == pytest.approx(first.seconds - second.took_s)
    assert (second.folder / "model.bin").read_bytes() == b"weights"


@pytest.mark.parametrize("key", [{**KEY, "torch": "2"}, {**KEY, "precision": "int8"}])
def test_another_key_is_another_artefact(tmp_path: Path, key: dict[str, str]) -> None:
    make = Maker()
    Cache(tmp_path).artefact("onnx", KEY, make, nothing)
    Cache(tmp_path).artefact("onnx", key, make, nothing)
    assert make.times == 2


def test_the_seconds_of_other_threads_are_not_told(tmp_path: Path) -> None:
    """What a build would take with the case's own number of them was not measured."""
    make = Maker()
    Cache(tmp_path, threads=2).artefact("onnx", KEY, make, nothing)
    single = Cache(tmp_path, threads=1)
    found = single.artefact("onnx", KEY, make, nothing)
    assert make.times == 1
    assert (found.cached, found.seconds, single.saved_s) == (True, None, None)
    again = Cache(tmp_path, threads=2)
    assert again.artefact("onnx", KEY, make, nothing).seconds is not None


def test_what_is_being_built_is_not_there_yet(tmp_path: Path) -> None:
    """Others never read half of it; a build that was killed leaves nothing to the next one."""
    folder = Cache(tmp_path).artefact("onnx", KEY, Maker(), nothing).folder
    remove(folder)
    (folder.with_suffix(".new")).mkdir()
    (folder.with_suffix(".new") / "half").touch()

    def make(building: Path) -> None:
        assert building != folder
        assert not any(building.iterdir())
        (building / "model.bin").write_bytes(b"weights")
        assert not (folder / "model.bin").exists()

    Cache(tmp_path).artefact("onnx", KEY, make, nothing)
    assert {path.name for path in folder.iterdir()} == {"model.bin", FACTS}


# What a process does that wants an artefact: it says how it got it, and what that cost.
PROCESS = """
import sys, time
from pathlib import Path
from bench.cache import Cache, nothing

def make(folder):
    print("building", flush=True)
    time.sleep(1)
    (folder / "model.bin").write_bytes(b"weights")

cache, start = Cache(Path(sys.argv[1])), time.perf_counter()
made = cache.artefact("onnx", {"model": "m"}, make, nothing)
took_s = time.perf_counter() - start
print((made.folder / "model.bin").read_text(), cache.cached, took_s + cache.saved_s, made.seconds)
"""


def test_of_two_processes_the_first_builds(tmp_path: Path) -> None:
    """The second waits, finds it whole, and its wait is no part of what a cold build takes."""
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as second,
    ):
        said = [process.communicate(timeout=60)[0].split() for process in (first, second)]
    builder, waiter = sorted(said, key=len, reverse=True)
    assert builder[:3] == ["building", "weights", "False"]
    assert waiter[:2] == ["weights", "True"]
    for words in (builder, waiter):
        told_s, build_s = float(words[-2]), float(words[-1])
        assert told_s == pytest.approx(build_s, abs=0.2)


@pytest.mark.slow
def test_no_cache_leaves_alone_what_others_may_be_reading(bench: Bench, tmp_path: Path) -> None:
    """The same files, not new ones of the same names; and the build is a cold one, case by case."""
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    arguments = [*TINY, "--device", "cpu", "--engine", "onnxruntime", "--json"]
    bench("run", *arguments, env=cache)

    def files() -> dict[Path, tuple[int, int]]:
        found = (p for p in (tmp_path / "cache/resnet-bench").rglob("*") if p.suffix != ".lock")
        return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in found if p.is_file()}

    before = files()
    assert any(path.name == "model.onnx" for path in before)
    rebuilt = bench("run", *arguments, "--batch-size", "1,2", "--no-cache", env=cache).cases
    assert [r["build_cached"] for r in rebuilt] == [False, False]
    assert files() == before


@pytest.mark.slow
def test_other_threads_find_the_build_and_not_its_seconds(bench: Bench, tmp_path: Path) -> None:
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    arguments = [*TINY, "--device", "cpu", "--engine", "onnxruntime", "--precision", "int8"]
    one, two = bench("run", *arguments, "--threads", "1,2", "--json", env=cache).cases
    assert (one["build_cached"], two["build_cached"]) == (False, True)
    assert one["build_s"] > one["calibration_s"] > 0
    assert (two["build_s"], two["calibration_s"]) == (None, None)


def truncate(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"weigh")


def remove(folder: Path) -> None:
    (folder / "model.bin").unlink()


def scribble(folder: Path) -> None:
    (folder / FACTS).write_text("{", encoding="utf-8")


def interrupt(folder: Path) -> None:
    (folder / FACTS).unlink()


@pytest.mark.parametrize("damage", [truncate, remove, scribble, interrupt])
def test_a_damaged_artefact_is_built_again(tmp_path: Path, damage: Any) -> None:
    make = Maker()
    damage(Cache(tmp_path).artefact("onnx", KEY, make, nothing).folder)
    mended = Cache(tmp_path)
    found = mended.artefact("onnx", KEY, make, nothing)
    assert make.times == 2
    assert mended.cached is False
    assert (found.folder / "model.bin").read_bytes() == b"weights"


def test_one_that_does_not_load_is_built_again(tmp_path: Path) -> None:
    """Whole files can still be of no use, e.g. to another processor."""
    make = Maker()
    Cache(tmp_path).artefact("onnx", KEY, make, nothing)

    def load(_: Path) -> None:
        raise RuntimeError("illegal instruction")

    cache = Cache(tmp_path)
    cache.artefact("onnx", KEY, make, load)
    assert make.times == 2
    assert cache.cached is False


def test_a_build_that_fails_leaves_nothing_to_be_found(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "model.bin").write_bytes(b"half")
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError):
        Cache(tmp_path).artefact("onnx", KEY, fail, nothing)
    make = Maker()
    Cache(tmp_path).artefact("onnx", KEY, make, nothing)
    assert make.times == 1


def test_without_a_writable_folder_the_run_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert root_or(tmp_path / "own") == tmp_path / "own"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert root_or(tmp_path / "own") == tmp_path / "cache" / "resnet-bench"
