"""The GPU's device layer by itself, on torch's own CUDA front end and a simulated GPU.

Every promise here has a mutation in scripts/mutate_cuda that breaks it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.devices import _nvml as nvml
from bench.devices import cuda
from bench.facts import DeviceState
from tests import simulated

pytestmark = pytest.mark.slow

OPENED = """
import gc, json, time, torch
from bench.devices import open_device
device = open_device("cuda:0")
def say(**facts): print(json.dumps(facts))
"""


def said(text: str, profile: str = "a100", **settings: Any) -> Any:
    """The one JSON object a program prints."""
    return json.loads(simulated.program(OPENED + text, profile, **settings))


def test_synchronise_waits_for_the_gpu() -> None:
    """100 kernels of 1 ms are enqueued in no time; only a synchronise sees their end."""
    found = said(
        """
x = torch.zeros(8, device="cuda")
device.synchronize()
before, start = device.mark(), time.perf_counter()
for _ in range(100): x.add_(1)
enqueued_s = time.perf_counter() - start
after = device.mark()
device.synchronize()
waited_s = time.perf_counter() - start
say(enqueued_s=enqueued_s, waited_s=waited_s, events_s=device.seconds(before, after))
""",
        kernel_us=1000,
    )
    assert found["enqueued_s"] < 0.05
    assert found["waited_s"] > 0.09
    assert found["events_s"] == pytest.approx(0.1, rel=0.1)


def test_the_peak_is_that_since_the_reset() -> None:
    """What set-up held and gave back does not count."""
    found = said("""
big = torch.empty(2**28, dtype=torch.uint8, device="cuda")
del big
device.reset_peak()
small = torch.empty(2**20, dtype=torch.uint8, device="cuda")
say(peak=device.peak_memory_bytes())
""")
    assert found["peak"] == 2**20


def test_after_running_out_of_memory_everything_is_given_back() -> None:
    """The allocator keeps no block, though a traceback still holds its frames in a cycle."""
    found = said(
        """
def fill():
    kept = []
    while True: kept.append(torch.empty(2**26, dtype=torch.uint8, device="cuda"))
try:
    fill()
except torch.cuda.OutOfMemoryError as error:
    kind = device.classify(error)
    error.itself = error
held = torch.cuda.memory_reserved()
device.release()
say(kind=kind, held=held, left=torch.cuda.memory_reserved(), limit=device.memory_limit_bytes())
""",
        memory="1GiB",
    )
    assert found["kind"] == "oom"
    assert found["held"] > 0.9 * 2**30
    assert found["left"] == 0
    assert found["limit"] == 2**30


def test_nvml_is_asked_about_the_gpu_that_computes() -> None:
    """CUDA counts the A100 first, NVML the T4."""
    found = said("say(limit=device.facts().state.power_limit_w)", profile="mixed")
    assert found["limit"] == 400.0
    hidden = said(
        "say(limit=device.facts().state.power_limit_w, name=device.facts().device_name)",
        profile="mixed",
        env={"CUDA_VISIBLE_DEVICES": "1"},
    )
    assert (hidden["limit"], hidden["name"]) == (70.0, "Tesla T4")


def test_a_lost_gpu_is_an_error_not_a_null() -> None:
    """NVML's answer becomes a sentence; the clock of the telemetry decides when."""
    found = said(
        """
from bench.errors import DeviceLost
torch.zeros(1, device="cuda")
device.reading()
time.sleep(1)
try:
    device.reading()
except DeviceLost as error:
    say(kind=device.classify(error), text=str(error))
""",
        lost_after_s=0.5,
    )
    assert found["kind"] == "fatal"
    assert "lost the GPU" in found["text"]


@pytest.mark.parametrize(
    ("settings", "known", "note"),
    [
        ({"power_mw": "ERR:3"}, "temperature_c", "power: Not Supported"),
        ({"power_mw": "ERR:4"}, "temperature_c", "power: Insufficient Permissions"),
        ({"old_driver": True, "throttle_reasons": "0x4"}, "clock_reasons", None),
        ({"nvml_init_error": 9}, None, "all telemetry: Driver Not Loaded"),
    ],
)
def test_what_nvml_does_not_say_is_null_with_a_note(
    settings: dict[str, Any], known: str | None, note: str | None
) -> None:
    """Unsupported, forbidden, an old driver, no NVML at all."""
    found = said(
        """
import msgspec
torch.zeros(1, device="cuda")
reading = msgspec.to_builtins(device.reading())
notes = [f"{what}: {why}" for what, why in device.reading_notes().items()]
say(reading=reading, notes=notes)
""",
        **settings,
    )
    if "power_mw" in settings or known is None:
        assert found["reading"]["power_w"] is None
    if known is not None:
        assert found["reading"][known] is not None
    assert found["notes"] == ([note] if note else [])


def test_memory_of_this_process_and_of_others() -> None:
    """By process id; where ids are another namespace's nothing is guessed."""
    text = """
import os
block = torch.empty(2**28, dtype=torch.uint8, device="cuda")
first = device.reading()
os.getpid = lambda: 1  # as in a container, where the driver knows us by another number
second = device.reading()
say(own=first.memory_own_bytes, others=first.memory_others_bytes,
    unseen=second.memory_own_bytes, notes=device.reading_notes())
"""
    found = said(text, processes="4242:536870912; 777:100")
    assert found["own"] >= 2**28
    assert found["others"] == 536870912 + 100
    assert found["unseen"] is None
    assert "memory of processes" in found["notes"]


def test_a_captured_graph_replays_with_new_images() -> None:
    """Once captured, a pass is one launch; the images are copied into it."""
    found = said("""
calls = []
def run(images):
    calls.append(1)
    return images * 2
first = torch.ones(4, device="cuda")
replay = device.capture(run, first)
captured = len(calls)
fresh = torch.tensor([3.0] * 4).cuda()
out = replay(fresh)
device.synchronize()
device.reset_peak()
replay(fresh)
say(captured=captured, calls=len(calls), copied=first.tolist(), peak=device.peak_memory_bytes())
""")
    assert found["captured"] == found["calls"] == cuda.CAPTURE_WARMUP + 1
    assert found["copied"] == [3.0] * 4
    assert found["peak"] >= 3 * 512  # both inputs and the result, in the allocator's blocks


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "oom"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "oom"),
        (MemoryError(), "oom"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "other"),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, kind: str) -> None:
    """Libraries and the host run out of memory too, at the edge a search visits."""
    assert cuda.Device("cuda:0").classify(error) == kind


@pytest.mark.parametrize(
    ("major", "minor", "said_of_it"),
    [(7, 0, "CUDA 12.6 build of torch 2.14"), (10, 3, "CUDA 12.8"), (3, 5, "no current build")],
)
def test_the_build_with_kernels_is_named(major: int, minor: int, said_of_it: str) -> None:
    """For Volta, for Blackwell, for what is too old."""
    assert said_of_it in cuda._build_with_kernels(major, minor)


WHY = "from bench.devices import cuda\nprint(cuda.why_none())"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"cuda_driver_version": 12040}, "runs CUDA up to 12.4, this torch is built for CUDA 13"),
        ({"cuda_init_error": 999}, "CUDA cannot start"),
        ({"cuda_init_error": 46, "compute_mode": 3}, "exclusive_process"),
        ({"devices": 0}, "No CUDA GPUs are available"),
        ({"env": {"CUDA_VISIBLE_DEVICES": ""}}, "CUDA_VISIBLE_DEVICES='' hides every GPU"),
    ],
)
def test_why_there_is_no_gpu(settings: dict[str, Any], expected: str) -> None:
    """The usual misery, each with its way out."""
    assert expected in simulated.program(WHY, **settings)


def test_a_container_without_the_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU is on the bus, the driver's nodes are not here."""
    (tmp_path / "0000:01:00.0").mkdir()
    (tmp_path / "0000:01:00.0" / "vendor").write_text("0x10de\n")
    monkeypatch.setattr(cuda, "PCI", tmp_path)
    monkeypatch.setattr(cuda.cgroup, "container", lambda: "docker")
    assert "--gpus all" in cuda._no_driver()
    monkeypatch.setattr(cuda.cgroup, "container", lambda: None)
    assert "kernel driver is not loaded" in cuda._no_driver()
    monkeypatch.setattr(cuda, "PCI", tmp_path / "none")
    assert "no GPU and driver here" in cuda._no_driver()


def test_what_makes_a_gpu_noisy() -> None:
    """Others, MIG, unlocked clocks, persistence, a lowered power limit: a sentence each."""
    state = DeviceState(
        other_processes=2, mig_mode=True, sm_clock_max_mhz=1410, persistence_mode=False,
        compute_mode="exclusive_process", power_limit_w=250.0, power_limit_default_w=400.0,
    )  # fmt: skip
    text = "\n".join(nvml.noises("GPU 0", state))
    for part in ("already: 2", "MIG", "-lgc", "-pm 1", "-c DEFAULT", "250"):
        assert part in text
    assert nvml.noises("GPU 0", DeviceState()) == []
