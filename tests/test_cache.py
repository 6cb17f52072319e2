"""Built artefacts are kept, and never trusted when damaged."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from bench.cache import FACTS, Cache, nothing, root_or

KEY = {"model": "m", "torch": "1"}


class Maker:
    """Writes one file, slowly enough to be timed, and counts."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, folder: Path) -> dict[str, Any]:
        self.times += 1
        time.sleep(0.05)
        (folder / "model.bin").write_bytes(b"weights")
        return {"calibration_s": 1.5}


def test_the_second_case_finds_what_the_first_built(tmp_path: Path) -> None:
    """With the facts and the seconds of the cold build, marked as cached."""
    make = Maker()
    cold = Cache(tmp_path)
    first = cold.artefact("onnx", KEY, make, nothing)
    assert (cold.cached, cold.saved_s) == (False, 0.0)
    warm = Cache(tmp_path)
    second = warm.artefact("onnx", KEY, make, nothing)
    assert make.times == 1
    assert warm.cached is True
    assert second.seconds == first.seconds >= 0.05
    assert second.facts == {"calibration_s": 1.5}
    assert warm.saved_s == pytest.approx(first.seconds - second.took_s)
    assert (second.folder / "model.bin").read_bytes() == b"weights"


@pytest.mark.parametrize("key", [{**KEY, "torch": "2"}, {**KEY, "precision": "int8"}])
def test_another_key_is_another_artefact(tmp_path: Path, key: dict[str, str]) -> None:
    make = Maker()
    Cache(tmp_path).artefact("onnx", KEY, make, nothing)
    Cache(tmp_path).artefact("onnx", key, make, nothing)
    assert make.times == 2


def test_rebuild_takes_nothing_from_there(tmp_path: Path) -> None:
    make = Maker()
    Cache(tmp_path).artefact("onnx", KEY, make, nothing)
    again = Cache(tmp_path, rebuild=True)
    again.artefact("onnx", KEY, make, nothing)
    assert make.times == 2
    assert again.cached is False


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
