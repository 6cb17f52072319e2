"""Mutations of the GPU path; each must fail a test. See scripts/mutate_cuda."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from msgspec import Struct

ROOT = Path(__file__).parents[1]


class Mutation(Struct, frozen=True):
    """One text of one file replaced by another, and the tests that must notice."""

    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = (
    Mutation(
        "no synchronise before the clock starts",
        "bench/measure.py",
        "        self.device.synchronize()\n        start = self.clock()\n        mark()",
        "        start = self.clock()\n        mark()",
        ("tests/test_measure.py",),
    ),
    Mutation(
        "no synchronise before the clock stops",
        "bench/measure.py",
        "            mark()\n        self.device.synchronize()\n        return",
        "            mark()\n        return",
        ("tests/test_measure.py",),
    ),
    Mutation(
        "the device's synchronise does nothing",
        "bench/devices/cuda.py",
        "        torch.cuda.synchronize(self.index)\n",
        "        return\n",
        ("tests/test_cuda_device.py",),
    ),
    Mutation(
        "the memory peak is not reset",
        "bench/devices/cuda.py",
        "        torch.cuda.reset_peak_memory_stats(self.index)\n",
        "        return\n",
        ("tests/test_cuda_device.py",),
    ),
    Mutation(
        "nothing is given back after running out of memory",
        "bench/devices/cuda.py",
        "        torch.cuda.empty_cache()\n",
        "",
        ("tests/test_cuda_device.py",),
    ),
    Mutation(
        "the loop does not reset the peak",
        "bench/measure.py",
        "        self.device.reset_peak()  # optimizer state exists from now on\n",
        "",
        ("tests/test_measure.py",),
    ),
    Mutation(
        "events are read before the second synchronise",
        "bench/measure.py",
        "        seconds = self.timed(step, count, lambda: marks.append(self.device.mark()))\n"
        "        return seconds,",
        "        seconds = self.timed(step, count, lambda: marks.append(self.device.mark()))\n"
        "        step()\n"
        "        return seconds,",
        ("tests/test_measure.py",),
    ),
    Mutation(
        "NVML is asked by index, not by UUID",
        "bench/devices/_nvml.py",
        'ask(pynvml.nvmlDeviceGetHandleByUUID, f"GPU-{uuid}")',
        "ask(pynvml.nvmlDeviceGetHandleByIndex, 0)",
        ("tests/test_cuda_device.py",),
    ),
)


def main() -> int:
    """0 if every mutation was noticed."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "copy"
        copy_sources(copy)
        tests = sorted({test for mutation in MUTATIONS for test in mutation.tests})
        if not passes(copy, tests):
            print("The tests fail without any mutation; mend them first.")
            return 1
        missed = [m.what for m in MUTATIONS if not noticed(copy, m)]
    print(f"{len(MUTATIONS) - len(missed)} of {len(MUTATIONS)} mutations noticed")
    return int(bool(missed))


def copy_sources(copy: Path) -> None:
    """Every file git would keep; the simulated runtime is not built again."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)


def noticed(copy: Path, mutation: Mutation) -> bool:
    """Whether a test fails with it."""
    path = copy / mutation.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        sys.exit(f"{mutation.what}: its line is no longer in {mutation.file} exactly once")
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        found = not passes(copy, mutation.tests)
    finally:
        path.write_text(text, encoding="utf-8")
    print(f"{'noticed' if found else 'MISSED':8} {mutation.what}", flush=True)
    return found


def passes(copy: Path, tests: tuple[str, ...] | list[str]) -> bool:
    """Whether these tests pass in the copy."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    built = str(ROOT / "tests" / "cuda_sim" / "build")
    environment = {**os.environ, "PYTHONPATH": str(copy), "CUDA_SIM_LIBRARIES": built}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, check=False)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
