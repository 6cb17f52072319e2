"""Holds the simulation to what README.md promises, with the installed torch.

    python -m pytest test_cuda_sim.py

Every program runs in a process of its own (programs.py). The libraries are
built into a temporary directory unless CUDA_SIM_LIBRARIES names one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import cuda_sim  # noqa: E402

build = cuda_sim.build

pytestmark = pytest.mark.slow

GIB = 1 << 30
MIB = 1 << 20

PROFILES = {
    # profile: (name, capability, memory, multiprocessors, bfloat16, tf32)
    "a100-sxm4-80gb": ("NVIDIA A100-SXM4-80GB", [8, 0], 79.15 * GIB, 108, True, True),
    "a100-sxm4-40gb": ("NVIDIA A100-SXM4-40GB", [8, 0], 42298834944, 108, True, True),
    "v100-sxm2-16gb": ("Tesla V100-SXM2-16GB", [7, 0], 15.77 * GIB, 80, False, False),
    "t4": ("Tesla T4", [7, 5], 14.56 * GIB, 40, False, False),
    "h100-sxm": ("NVIDIA H100 80GB HBM3", [9, 0], 79.10 * GIB, 132, True, True),
    "mig-a100": ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", [8, 0], 19968 * MIB, 42, True, True),
    # CUDA puts the faster of the two GPUs first.
    "mixed-t4-a100": ("NVIDIA A100-SXM4-40GB", [8, 0], 42298834944, 108, True, True),
}


@pytest.fixture(scope="session", autouse=True)
def libraries():
    """Build once (under a lock, for parallel sessions); skip where it cannot be built."""
    try:
        return build.ensure()
    except build.BuildError as error:
        pytest.skip(f"no simulated CUDA here: {error}")


def run_simulated(program, *arguments, profile="a100", variables=None, **settings):
    """Run one function of programs.py on simulated GPUs."""
    environment = cuda_sim.environment(profile, **settings)
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING"):
        environment.pop(name, None)
    environment.update(variables or {})
    command = [sys.executable, str(HERE / "programs.py"), program, json.dumps(arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result


def simulate(program, *arguments, **options):
    """The same, but returns what the function returns."""
    return json.loads(run_simulated(program, *arguments, **options).stdout.splitlines()[-1])


def variant(profile="a100", variables=None, **settings):
    """The part of an environment that a forked child changes."""
    environment = cuda_sim.environment(profile, base={}, **settings)
    changed = {name: value for name, value in environment.items() if name.startswith("CUDA_SIM_")}
    return {**changed, **(variables or {})}


# --- identity -----------------------------------------------------------------


@pytest.fixture(scope="module")
def described():
    variants = {name: variant(name) for name in PROFILES}
    variants["v100 let through"] = variant("v100", ignore_arch_list=True)
    return simulate("describe_profiles", variants)


def test_there_is_an_expectation_for_every_profile():
    assert sorted(PROFILES) == cuda_sim.profile_names()


@pytest.mark.parametrize("profile", PROFILES)
def test_torch_sees_the_profile(described, profile):
    seen = described[profile]
    name, capability, memory, multiprocessors, bfloat16, tf32 = PROFILES[profile]
    assert seen["name"] == name
    assert seen["capability"] == capability
    assert seen["memory"] == int(memory)
    assert seen["free"] <= seen["memory"]
    assert seen["multiprocessors"] == multiprocessors
    assert (seen["bfloat16"], seen["tf32"]) == (bfloat16, tf32)
    assert seen["nvml_memory"] > 0


def test_kernels_run_on_gpus_in_the_arch_list(described):
    for profile in set(PROFILES) - {"v100-sxm2-16gb"}:
        assert described[profile]["in_arch_list"], profile
        assert described[profile]["kernel_error"] is None, profile


def test_a_gpu_torch_was_not_built_for_is_refused(described):
    refused = described["v100-sxm2-16gb"]
    if refused["in_arch_list"]:
        pytest.skip("this torch supports the V100")
    assert any("V100" in message for message in refused["warnings"])
    assert refused["kernel_error"][0] == "AcceleratorError"
    assert "no kernel image is available" in refused["kernel_error"][1]
    assert described["v100 let through"]["kernel_error"] is None


@pytest.fixture(scope="module")
def mapped():
    uuid_of_t4 = "GPU-fa15e000-c0da-4000-8000-000000000000"
    return simulate(
        "map_variants",
        {
            "as CUDA counts": variant("mixed"),
            "as the bus counts": variant("mixed", {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}),
            "second only": variant("mixed", {"CUDA_VISIBLE_DEVICES": "1"}),
            "by uuid": variant("mixed", {"CUDA_VISIBLE_DEVICES": uuid_of_t4}),
            "reversed twins": variant("a100", {"CUDA_VISIBLE_DEVICES": "1,0"}, devices=2),
        },
    )


def test_uuid_and_pci_address_lead_to_the_right_nvml_device(mapped):
    for name, devices in mapped.items():
        for device in devices:
            assert device["name"] == device["nvml_name"], name
            assert device["index_by_uuid"] == device["index_by_pci"], name


def test_cuda_and_nvml_can_count_in_reversed_order(mapped):
    def indices(name):
        return [device["index_by_uuid"] for device in mapped[name]]

    assert indices("as CUDA counts") == [1, 0]
    assert indices("as the bus counts") == [0, 1]
    assert indices("second only") == [0]
    assert indices("by uuid") == [0]
    assert indices("reversed twins") == [1, 0]


@pytest.fixture(scope="module")
def started():
    return simulate(
        "start_variants",
        {
            "healthy": variant(),
            "no GPU": variant(devices=0),
            "CUDA fails": variant(cuda_init_error=999),
            "NVML fails": variant(nvml_init_error=9),
            "driver too old for CUDA": variant(cuda_driver_version=12080),
        },
    )


def test_a_healthy_gpu_starts(started):
    assert started["healthy"] == {
        "available": True,
        "count": 1,
        "cuda_error": None,
        "nvml_error": None,
    }


def test_a_machine_without_gpu(started):
    assert not started["no GPU"]["available"]
    assert started["no GPU"]["count"] == 0


def test_nvml_may_promise_a_gpu_that_cuda_cannot_start(started):
    seen = started["CUDA fails"]
    assert seen["count"] == 1
    assert seen["nvml_error"] is None
    assert "unknown error" in seen["cuda_error"][1]


def test_cuda_may_work_without_nvml(started):
    seen = started["NVML fails"]
    assert seen["nvml_error"][0] == "NVMLError_DriverNotLoaded"
    assert seen["count"] == 1
    assert seen["cuda_error"] is None


def test_a_driver_too_old_for_this_cuda(started):
    seen = started["driver too old for CUDA"]
    assert not seen["available"]
    assert "driver on your system is too old" in seen["cuda_error"][1]


# --- time ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def slow():
    # A flop takes long enough here to tell the precisions apart.
    rates = {"tflops_fp32": 0.01, "tflops_tf32": 0.02, "tflops_fp16": 0.04, "efficiency": 1}
    return simulate("slow_gpu", kernel_us=1000, conv_us=0, **rates)


def test_launches_return_long_before_the_work_is_done(slow):
    kernels = slow["kernels"]
    assert kernels["launched_and_waited_s"] >= 0.050
    assert kernels["launching_s"] < 0.5 * kernels["launched_and_waited_s"]
    assert not kernels["finished_before_waiting"]


def test_events_follow_the_virtual_timeline(slow):
    assert slow["kernels"]["event_ms"] == pytest.approx(50, rel=0.01)
    assert slow["kernels"]["elapsed_too_early"][0] == "RuntimeError"


def test_the_host_cannot_run_ahead_without_bound(slow):
    assert slow["full_queue_s"] >= 0.070


def test_streams_run_side_by_side(slow):
    assert slow["streams"]["default_stream_idle"]
    assert slow["streams"]["overlap_ms"] > 10


def test_arithmetic_takes_time_by_size_and_precision(slow):
    # 2 * output elements * filter weights per output channel; 2 * n^3.
    convolution_gflop = 2 * (8 * 32 * 32 * 32) * (16 * 3 * 3) * 1e-9
    product_gflop = 2 * 512**3 * 1e-9
    for precision, rate in (("fp32", 0.01), ("tf32", 0.02), ("fp16", 0.04)):
        times = slow["arithmetic"][precision]
        assert times["convolution"] == pytest.approx(convolution_gflop / rate, rel=0.01), precision
        # A product also costs one launch of 1 ms.
        assert times["product"] == pytest.approx(product_gflop / rate + 1, rel=0.01), precision


def test_graphs_capture_and_replay(slow):
    assert slow["graph"]["replay_ms"] == pytest.approx(20, rel=0.01)


def test_synchronising_in_a_capture_is_an_error(slow):
    assert slow["graph"]["error"][0] == "AcceleratorError"
    assert "captur" in slow["graph"]["error"][1]


@pytest.fixture(scope="module")
def default_run():
    return run_simulated("default_gpu", pcie_gbs=0.05, debug=True)


@pytest.fixture(scope="module")
def default_gpu(default_run):
    return json.loads(default_run.stdout.splitlines()[-1])


def test_copies_keep_their_values(default_gpu):
    assert default_gpu["copies"]["round_trip"]


def test_only_copies_of_pinned_memory_are_asynchronous(default_gpu):
    copies = default_gpu["copies"]
    transfer_s = 4 * (1 << 20) / 0.05e9
    assert copies["pageable_s"] >= transfer_s
    assert copies["pinned_s"] < 0.5 * transfer_s
    assert copies["pinned_and_waited_s"] >= transfer_s


def test_data_loader_pins_memory(default_gpu):
    assert default_gpu["copies"]["loader_pins"] == [True] * 4


def test_what_is_not_simulated_fails_cleanly(default_gpu):
    unsupported = default_gpu["unsupported"]
    assert "cuFFT" in unsupported["fft"][1]
    assert "cusolver" in unsupported["inverse"][1]
    assert "cuDNN" in unsupported["lstm"][1]
    assert unsupported["usable_afterwards"]


def test_debugging_names_what_is_not_simulated(default_run):
    assert "cuda_sim: cufftCreate is not simulated" in default_run.stderr


# --- training and memory ------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    pytest.importorskip("torchvision")
    return simulate("train_both")


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", "torch.float32"), ("fp16", "torch.float16")]
)
def test_resnet50_trains(trained, precision, dtype):
    seen = trained[precision]
    assert seen["logits"] == dtype
    assert seen["gradients"]
    assert seen["loss_is_number"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_peak_memory_is_counted_and_can_be_reset(trained, precision):
    seen = trained[precision]
    # ResNet-50 has 25.6 million parameters of four bytes.
    assert seen["after_model"] > 100e6
    assert seen["peak"] > seen["after_model"]
    assert seen["peak_after_reset"] == seen["allocated_after_reset"] < seen["peak"]
    assert seen["reserved"] >= seen["allocated_after_reset"]


def test_running_out_of_memory_and_recovering():
    seen = simulate(
        "run_out_of_memory", memory="4GiB", memory_in_use="512MiB", processes="4242:536870912"
    )
    assert seen["gib_held"] == 3
    assert seen["failures"] == 1
    assert "total capacity of 4.00 GiB" in seen["message"]
    assert "this process has 3.00 GiB memory in use" in seen["message"]
    assert "Process 4242 has 512.00 MiB memory in use" in seen["message"]
    assert seen["nvml_used"] == 3.5 * GIB
    assert seen["own_memory_in_nvml"] == 3 * GIB
    assert seen["other_memory_in_nvml"] == 512 * MIB
    assert seen["free_after_recovery"] == 3.5 * GIB


def test_a_sticky_error_poisons_the_process():
    seen = simulate("meet_sticky_error", fault="700@10", kernel_us=10000)
    # The faulty launch itself succeeds: the error belongs to the timeline.
    assert seen["launching"] is None
    assert "illegal memory access" in seen["waiting"][1]
    assert seen["code"] == 700
    assert seen["is_accelerator_error"]
    assert "illegal memory access" in seen["later_launch"][1]
    assert "illegal memory access" in seen["later_allocation"][1]


def test_launch_blocking_brings_the_error_to_the_launch():
    blocking = {"CUDA_LAUNCH_BLOCKING": "1"}
    seen = simulate("meet_sticky_error", fault="700@10", kernel_us=10000, variables=blocking)
    assert "illegal memory access" in seen["launching"][1]


def test_device_memory_can_be_held_at_zero():
    assert simulate("read_zero_memory", data="zero") == {"sum": 0.0, "nonzero": 0}


# --- telemetry ----------------------------------------------------------------


def test_telemetry_follows_its_series(tmp_path):
    clock = tmp_path / "clock"
    series = {"utilization_gpu": [0, 98, 100], "power_mw": [50000, 300000, 400000]}
    seen = simulate(
        "sample_telemetry", str(clock), clock=clock, throttle_reasons=["0x1", 0, "0x4"], **series
    )
    samples = seen["samples"]
    assert [sample["gpu"] for sample in samples] == [0, 98, 100, 100]
    assert [sample["memory"] for sample in samples] == [0, 55, 60, 60]
    assert [sample["clock"] for sample in samples] == [210, 1410, 1395, 1290]
    assert [sample["temperature"] for sample in samples] == [33, 51, 60, 62]
    assert [sample["power"] for sample in samples] == [50000, 300000, 400000, 400000]
    assert [sample["reasons"] for sample in samples] == [1, 0, 4, 4]
    assert seen["power_limit"] == 400000
    assert seen["max_clock"] == 1410
    assert seen["fan"][0] == "NVMLError_NotSupported"


def test_the_energy_counter_is_the_integral_of_power(tmp_path):
    clock = tmp_path / "clock"
    seen = simulate("sample_telemetry", str(clock), clock=clock, power_mw=[50000, 300000, 400000])
    energy = [sample["energy"] for sample in seen["samples"]]
    assert [later - energy[0] for later in energy] == [0, 50000, 350000, 750000]


def test_mig_answers_not_supported():
    seen = simulate("look_at_mig", profile="mig")
    assert seen["mode"] == [1, 1]
    assert seen["gpu_name"] == "NVIDIA A100-SXM4-40GB"
    assert seen["gpu_utilization"][0] == "NVMLError_NotSupported"
    assert seen["gpu_power"] > 0
    assert seen["uuid"].startswith("MIG-")
    assert seen["name"] == "NVIDIA A100-SXM4-40GB MIG 3g.20gb"
    assert seen["memory"] == 19968 * MIB
    assert seen["power"][0] == "NVMLError_NotSupported"
    assert seen["clock"][0] == "NVMLError_NotSupported"


def test_an_old_driver_lacks_the_event_reasons():
    seen = simulate("use_old_driver", old_driver=True, driver_version="470.82.01")
    assert seen["event_reasons"][0] == "NVMLError_FunctionNotFound"
    assert seen["throttle_reasons"] == 1
    assert seen["driver"] == "470.82.01"


def test_nvml_can_lose_the_gpu(tmp_path):
    clock = tmp_path / "clock"
    seen = simulate("lose_gpu", str(clock), clock=clock, lost_after_s=5)
    assert seen["before"] > 0
    assert seen["after"][0] == "NVMLError_GpuIsLost"
    assert seen["new_handle"][0] == "NVMLError_GpuIsLost"


def test_single_queries_can_fail():
    seen = simulate("fail_one_query", profile="v100", power_mw="ERR:999", energy_mj="ERR:3")
    assert seen["power"][0] == "NVMLError_Unknown"
    assert seen["energy"][0] == "NVMLError_NotSupported"
    # The V100 has no MIG at all.
    assert seen["mig"][0] == "NVMLError_NotSupported"
    assert seen["clock"] > 0


# --- the tools ----------------------------------------------------------------


def test_a_simulated_process_can_be_told_apart():
    seen = simulate("tell_simulated", profile="t4")
    assert seen["simulated"]
    assert seen["profile"].endswith("t4.profile")
    assert not cuda_sim.is_simulated()


def test_the_command_line_runs_a_command():
    program = "import pynvml as n; n.nvmlInit(); print(n.nvmlDeviceGetName(n.nvmlDeviceGetHandleByIndex(1)))"
    options = ["--profile", "t4", "--devices", "2", "--set", "device1.name=Tesla T4 number two"]
    command = [
        sys.executable,
        str(HERE / "cuda_sim.py"),
        *options,
        "--",
        sys.executable,
        "-c",
        program,
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout.strip() == "Tesla T4 number two", result.stderr


def test_the_command_line_passes_the_exit_status_on():
    command = [
        sys.executable,
        str(HERE / "cuda_sim.py"),
        "--",
        sys.executable,
        "-c",
        "raise SystemExit(3)",
    ]
    assert subprocess.run(command).returncode == 3


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="no profile 'b100'"):
        cuda_sim.environment("b100")
    with pytest.raises(ValueError, match="no setting 'memroy'"):
        cuda_sim.environment("t4", memroy="1GiB")


def test_the_build_says_what_is_missing(tmp_path):
    result = run_build(tmp_path / "out", {**os.environ, "PATH": str(tmp_path)})
    assert result.returncode == 1
    assert "g++ is not on the PATH" in result.stderr


@pytest.mark.parametrize(
    ("cuda", "complaint"), [("None", "a build without CUDA"), ("'12.8'", "is built for CUDA 12.8")]
)
def test_the_build_refuses_an_unfit_torch(tmp_path, cuda, complaint):
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "version.py").write_text(f"__version__ = '2.0'\ncuda: str = {cuda}\n")
    result = run_build(tmp_path / "out", {**os.environ, "PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1
    assert complaint in result.stderr


def run_build(out, environment):
    command = [sys.executable, str(HERE / "build.py"), "--out", str(out)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_libraries_export_nothing_of_the_cpp_runtime(libraries):
    for library in ("libcuda_sim.so", "libcuda.so.1", "libnvidia-ml.so.1"):
        exported = build.symbols([libraries / library], "--defined-only")
        assert exported
        assert all(re.match(r"(__)?cu[a-zA-Z_]|nvml[A-Z]", name) for name in exported), library


def test_every_setting_is_known_and_documented():
    asked = set()
    for source in (HERE / "src").glob("*.cpp"):
        text = source.read_text()
        asked |= set(
            re.findall(
                r'(?:setting|series_of|read_into|read_number|read_mode)\([^"()]*"(\w+)"', text
            )
        )
    assert asked <= set(cuda_sim.SETTINGS)
    readme = (HERE / "README.md").read_text()
    for key in cuda_sim.SETTINGS:
        assert f"`{key}`" in readme, key


def test_profiles_hold_known_settings_only():
    for path in cuda_sim.PROFILES.glob("*.profile"):
        for line in path.read_text().splitlines():
            if "=" in line and not line.startswith("#"):
                assert line.split("=")[0].strip() in cuda_sim.SETTINGS, f"{path.name}: {line}"
