"""The CUDA path, driven by torch's own CUDA front end on a simulated GPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY, Bench, Done
from tests.simulated import Simulated, simulated

__all__ = ["simulated"]  # a fixture

pytestmark = pytest.mark.slow


def by_precision(done: Done) -> dict[str, dict[str, Any]]:
    return {r["precision"]: r for r in done.cases}


def test_the_command_most_users_will_type(simulated: Simulated, tmp_path: Path) -> None:
    """`bench run --device cuda --amp` works as written; nothing of it passes for measured."""
    done = simulated("run", "--device", "cuda", "--amp", "--max-seconds", "0.5", "--json")
    assert done.code == 0, done.err
    sizes = {(r["task"], r["batch_size"]) for r in done.cases}
    assert sizes == {(t, b) for t in ("infer", "train") for b in (1, 64, 256)}
    for record in done.cases:
        assert record["status"] == "measured"
        assert record["simulated"] is True
        assert "simulated" in record["warnings"]
        assert record["device"] == "cuda:0"
        assert record["device_name"] == "NVIDIA A100-SXM4-80GB"
        assert record["peak_device_memory_bytes"] > 0
        assert "autocast=torch.float16" in record["settings"]
        if record["task"] == "train":
            assert "grad_scaler.waits_each_step=False" in record["settings"]
        # Events and wall time of the same samples; the forecast is a lower bound, not far below.
        assert len(record["device_samples_s"]) == len(record["samples_s"])
        assert record["device_step_p50_ms"] > 0
        # Under load the stand-in is late to write down when its work ended.
        if "contaminated" not in record["warnings"]:
            assert "clocks_disagree" not in record["warnings"]
        assert 0.97 < record["peak_device_memory_bytes"] / record["forecast_peak_bytes"] < 1.5
        assert record["peak_tflops"] == 312.0
        assert record["peak_share"] == pytest.approx(record["achieved_tflops"] / 312.0)
        assert record["memory_own_bytes"] > 0
        assert record["window_power_w"]
    simulated("report")
    page = (tmp_path / "reports" / "latest" / "index.html").read_text()
    assert "SIMULATED, not a measurement" in page
    assert not list((tmp_path / "reports" / "latest").glob("*.png"))  # no chart shows it


def test_the_memory_of_a_training_step_is_the_devices(simulated: Simulated) -> None:
    """ResNet-50, 224 px, batch 64, fp32: activations and optimizer take about 5.5 GB."""
    arguments = ["--plan", "one", "--device", "cuda", "--task", "train", "--batch-size", "64"]
    record = simulated("run", *arguments, "--max-seconds", "0.5", "--json").cases[0]
    assert 5.2e9 < record["peak_device_memory_bytes"] < 6.2e9


def test_out_of_memory_on_the_gpu_is_a_result(simulated: Simulated) -> None:
    """`oom` with the allocator's words; the smaller case after it is measured; exit 0."""
    arguments = ["--plan", "one", "--device", "cuda", "--batch-size", "256,1"]
    done = simulated("run", *arguments, "--max-seconds", "0.5", "--json", memory="1GiB")
    assert [r["status"] for r in done.cases] == ["oom", "measured"]
    reason = done.cases[0]["reason"]
    assert reason.startswith("batch 256 does not fit; it held ")
    assert "of 1,024 MiB" in reason
    assert "out of memory" in reason
    assert done.cases[0]["oom_limit_bytes"] == 2**30
    assert 2**28 < done.cases[0]["oom_allocated_bytes"] <= 2**30
    assert done.cases[0]["throughput_images_per_s"] is None
    assert done.code == 0


def test_a_case_that_cannot_fit_is_announced(simulated: Simulated) -> None:
    """Before anything is measured, by its forecast; it is tried all the same."""
    arguments = ["--plan", "one", "--device", "cuda", "--task", "train", "--batch-size", "512"]
    done = simulated("run", *arguments, "--json", profile="t4")
    assert "will not fit: it needs at least 42," in done.err
    assert [r["status"] for r in done.cases] == ["oom"]


def test_the_largest_batch_that_fits(simulated: Simulated) -> None:
    """Doubling, then bisection; both sizes are named, and every try is a record."""
    arguments = [*TINY, "--device", "cuda", "--task", "train", "--batch-size", "auto"]
    done = simulated("run", *arguments, memory="320MiB")
    assert done.code == 0, done.err
    found = re.search(r"the largest batch that fits is ([\d,]+) \(([\d,]+): oom\)", done.out)
    assert found, done.out
    most, more = (int(text.replace(",", "")) for text in found.groups())
    assert more == most + 1
    assert most > 8
    assert "; the fastest of 2, 4, 8" in done.out


def test_a_graph_is_an_engine(simulated: Simulated) -> None:
    """For inference only; capturing is set-up, not measuring."""
    arguments = [*TINY, "--device", "cuda", "--engine", "cudagraph", "--task", "infer,train"]
    infer, train = simulated("run", *arguments, "--precision", "amp", "--json").cases
    assert infer["status"] == "measured"
    assert infer["build_s"] > 0
    assert infer["setup_s"] > infer["build_s"]
    assert train["status"] == "skipped"
    assert "--engine eager" in train["reason"]


def test_a_gpu_lost_on_the_way_fails_its_case(simulated: Simulated) -> None:
    """With that reason; the next case is tried."""
    arguments = [*TINY, "--device", "cuda", "--batch-size", "1,2", "--json", "--max-seconds", "3"]
    done = simulated("run", *arguments, lost_after_s=1)
    assert done.code == 4
    assert [r["status"] for r in done.cases] == ["failed", "failed"]
    assert all("lost the GPU" in r["reason"] for r in done.cases)


def test_a_v100_can_be_had_with_another_build(simulated: Simulated) -> None:
    """The same GPU, as if this torch had kernels for it: what it lacks itself stays refused."""
    arguments = [*TINY, "--device", "cuda", "--precision", "fp32,tf32,amp,amp-bf16", "--json"]
    done = simulated("run", *arguments, profile="v100", ignore_arch_list=1)
    found = {p: r["status"] for p, r in by_precision(done).items()}
    assert found == {
        "fp32": "measured",
        "tf32": "skipped",
        "amp": "measured",
        "amp-bf16": "skipped",
    }


def test_doctor_explains_a_gpu(simulated: Simulated) -> None:
    """What it is, that it is simulated, what is noisy about it."""
    done = simulated("doctor", persistence=0, processes="4242:1000", throttle_reasons="0x0")
    assert "NVIDIA A100-SXM4-80GB (SIMULATED)" in done.out
    for part in ("GPU 0 (NVIDIA A100-SXM4-80GB) already: 1", "nvidia-smi -pm 1", "clocks of GPU 0"):
        assert part in done.out
    old = simulated("doctor", cuda_driver_version=12040)
    assert "runs CUDA up to 12.4" in old.out


def test_a_t4_refuses_tf32_and_bf16_with_the_way_out(simulated: Simulated) -> None:
    """Refusals name what would work; int8 names another device."""
    precisions = "fp32,tf32,amp,amp-bf16,int8"
    arguments = [*TINY, "--device", "cuda", "--precision", precisions, "--json"]
    found = by_precision(simulated("run", *arguments, profile="t4"))
    assert {p: r["status"] for p, r in found.items()} == {
        "fp32": "measured",
        "tf32": "skipped",
        "amp": "measured",
        "amp-bf16": "skipped",
        "int8": "skipped",
    }
    assert "use fp32 or amp" in found["tf32"]["reason"]
    assert "use amp" in found["amp-bf16"]["reason"]


def test_fp32_is_not_tf32(simulated: Simulated) -> None:
    """What was forced is read back: TF32 off for fp32, on for tf32, in both libraries."""
    arguments = [*TINY, "--device", "cuda", "--precision", "fp32,tf32", "--json"]
    found = by_precision(simulated("run", *arguments))
    for precision, expected in (("fp32", "ieee"), ("tf32", "tf32")):
        settings = found[precision]["settings"]
        assert f"cuda.matmul.fp32_precision={expected}" in settings
        assert f"cudnn.conv.fp32_precision={expected}" in settings


def test_a_gpu_this_torch_has_no_kernels_for(simulated: Simulated) -> None:
    """A V100 under a CUDA 13 build is skipped with the reason, exit 3."""
    done = simulated("run", *TINY, "--device", "cuda", "--json", profile="v100")
    assert done.code == 3
    assert "no kernels for compute capability 7.0" in done.cases[0]["reason"]
    assert "the CUDA 12.6 build" in done.cases[0]["reason"]


def test_of_two_models_of_gpu_each_is_measured_once(simulated: Simulated) -> None:
    """By default one GPU of each product, and the CPU."""
    done = simulated("run", *TINY, "--json", profile="mixed")
    assert sorted(r["device"] for r in done.cases) == ["cpu", "cuda:0", "cuda:1"]
    assert len({r["device_name"] for r in done.cases}) == 3


def test_the_state_of_the_gpu_is_in_the_record(simulated: Simulated) -> None:
    """Of the right GPU of two, although NVML counts them in another order."""
    arguments = [*TINY, "--device", "cuda:0,cuda:1", "--json"]
    first, second = simulated("run", *arguments, profile="mixed").cases
    assert (first["power_limit_w"], first["compute_capability"]) == (400.0, "8.0")
    assert (second["power_limit_w"], second["compute_capability"]) == (70.0, "7.5")
    assert (second["sm_clock_max_mhz"], second["pcie_generation"]) == (1590, 3)
    assert first["mig_profile"] is None
    assert first["driver"] == second["driver"] is not None
    assert first["machine_fingerprint"] != second["machine_fingerprint"]


def test_a_slice_of_a_gpu_is_a_machine_of_its_own(simulated: Simulated) -> None:
    """The profile is the slice's, the power limit the whole GPU's; without NVML it is null."""
    (record,) = simulated("run", *TINY, "--device", "cuda", "--json", profile="mig").cases
    assert (record["mig_profile"], record["mig_mode"]) == ("3g.20gb", True)
    assert record["telemetry_notes"] == ["utilization: Not Supported"]
    assert record["window_utilization_percent"] is None
    assert record["window_sm_clock_mhz"]
    assert record["power_limit_w"] == 400.0
    arguments = [*TINY, "--device", "cuda", "--json"]
    (blind,) = simulated("run", *arguments, profile="mig", nvml_init_error=9).cases
    assert blind["status"] == "measured"
    assert blind["driver"] is blind["power_limit_w"] is blind["mig_mode"] is None
    assert blind["machine_fingerprint"] == record["machine_fingerprint"]
    assert blind["software_fingerprint"] != record["software_fingerprint"]


def test_an_absent_gpu_is_a_skipped_record(bench: Bench) -> None:
    """A planned case never vanishes: no GPU, one record, a reason, exit 3."""
    done = bench("run", *TINY, "--device", "cuda", "--json", env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.code == 3
    assert [r["status"] for r in done.cases] == ["skipped"]
    assert done.cases[0]["reason"]


def test_a_sticky_error_fails_one_case_and_not_the_next(simulated: Simulated) -> None:
    """After an illegal memory access the process is lost, the run is not."""
    arguments = [*TINY, "--device", "cuda", "--task", "train", "--batch-size", "2,4", "--json"]
    done = simulated("run", *arguments, fault="700@300")
    assert done.code == 4
    assert [r["status"] for r in done.cases] == ["failed", "failed"]
    assert "illegal memory access" in done.cases[0]["reason"]


def test_deterministic_on_cuda_forces_the_libraries_too(simulated: Simulated) -> None:
    """cuDNN without its search, cuBLAS with a fixed workspace, set before CUDA starts."""
    arguments = [*TINY, "--device", "cuda", "--task", "train", "--batch-size", "4", "--json"]
    plain, forced = simulated("run", *arguments, "--deterministic").cases
    wanted = {
        "deterministic_algorithms=True",
        "cudnn.deterministic=True",
        "cudnn.benchmark=False",
        "CUBLAS_WORKSPACE_CONFIG=:4096:8",
    }
    assert wanted <= set(forced["settings"])
    assert "cudnn.benchmark=True" in plain["settings"]
    assert not wanted & set(plain["settings"])
    assert plain["nondeterministic_operations"] is None
    assert "not_deterministic" not in plain["warnings"]


def watts(record: dict[str, Any]) -> float:
    """What the joules of an image come to at the rate of images."""
    return float(record["energy_total_j_per_image"] * record["throughput_images_per_s"])


def test_joules_are_the_right_boards(simulated: Simulated) -> None:
    """By the energy counter, else by integrated power; CUDA and NVML count the GPUs differently."""
    arguments = [*TINY, "--device", "cuda:0,cuda:1", "--batch-size", "64", "--json"]
    boards = {0: {"power_mw": 60_000, "energy_mj": "ERR:3"}, 1: {"power_mw": 300_000}}
    done = simulated("run", *arguments, profile="mixed", per_device=boards)
    a100, t4 = done.cases
    assert a100["energy_source"] == "NVML, energy counter of the whole board"
    assert t4["energy_source"].startswith("NVML, the whole board, power integrated over")
    assert (a100["idle_power_w"], t4["idle_power_w"]) == pytest.approx((300, 60), rel=0.05)
    assert (watts(a100), watts(t4)) == pytest.approx((300, 60), rel=0.1)


@pytest.mark.parametrize(
    ("profile", "settings"),
    [("t4", {"power_mw": "ERR:3", "energy_mj": "ERR:3"}), ("mig", {})],
)
def test_joules_nobody_counts_are_null(
    simulated: Simulated, profile: str, settings: dict[str, str]
) -> None:
    """Neither energy nor power; and a part of a board, whose joules are not its own."""
    arguments = [*TINY, "--device", "cuda", "--json"]
    record = simulated("run", *arguments, profile=profile, **settings).cases[0]
    assert record["status"] == "measured"
    names = ("energy_j_per_image", "energy_total_j_per_image", "energy_source", "idle_power_w")
    assert {record[name] for name in names} == {None}


CUDA_TINY = [*TINY, "--device", "cuda", "--batch-size", "8", "--json"]


def test_a_capped_and_shared_gpu_is_said_to_be_so(simulated: Simulated) -> None:
    """A 70 W T4 lives at its power cap: a state. Others were counted before our context came."""
    settings = {"throttle_reasons": "0x4", "processes": "4242:536870912; 777:100"}
    record = simulated("run", *CUDA_TINY, **settings).cases[0]
    assert {"power_limited", "shared_device"} <= set(record["warnings"])
    assert "hardware_slowdown" not in record["sample_marks"]
    assert record["other_processes"] == 2


def test_a_gpu_that_waits_for_its_host_is_said_to(simulated: Simulated) -> None:
    """It was idle for over a fifth of the time; a busy one carries no such warning."""
    for busy_percent, waited in ((70, True), (97, False)):
        record = simulated("run", *CUDA_TINY, utilization_gpu=busy_percent).cases[0]
        assert set(record["window_utilization_percent"]) == {busy_percent}
        assert ("device_waited" in record["warnings"]) is waited


def test_a_gpu_that_slows_itself_down_is_disturbed(simulated: Simulated) -> None:
    """All windows are marked, so nothing is left out and the number is said not to be clean.

    The driver is an old one, which knows the reasons by their former name.
    """
    record = simulated("run", *CUDA_TINY, throttle_reasons="0x88", old_driver=True).cases[0]
    assert set(record["sample_marks"]) == {"hardware_slowdown"}
    assert {"contaminated", "latency_contaminated"} <= set(record["warnings"])
    assert not {"shared_device", "power_limited"} & set(record["warnings"])
    assert record["throughput_images_per_s"] > 0
    assert record["throughput_ci_low"] is None
    assert record["other_processes"] == 0
    assert record["latency_device_p50_ms"] > 0
    assert record["peak_device_reserved_bytes"] >= record["peak_device_memory_bytes"]
