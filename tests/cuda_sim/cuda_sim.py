"""Run a program with simulated NVIDIA GPUs.

    python cuda_sim.py --profile a100 -- python train.py

or, from a test,

    subprocess.run([...], env=cuda_sim.environment("t4", memory="2GiB"))

The program gets the real torch.cuda and the real pynvml on top of simulated
CUDA libraries; README.md says what that means. Whatever is timed this way is
simulated and must never be published as a measurement.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent


def _load_build():
    """build.py beside this file, whatever else goes by the name of "build"."""
    name = "cuda_sim_build"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / "build.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


build = _load_build()

PROFILES = HERE / "profiles"
DEFAULT_PROFILE = "a100-sxm4-80gb"

ALIASES = {
    "a100": "a100-sxm4-80gb",
    "a100-80gb": "a100-sxm4-80gb",
    "a100-40gb": "a100-sxm4-40gb",
    "v100": "v100-sxm2-16gb",
    "h100": "h100-sxm",
    "mig": "mig-a100",
    "mixed": "mixed-t4-a100",
}

# Every setting a profile or an override may hold.
SETTINGS = {
    # The machine.
    "devices": "number of GPUs",
    "cuda_order": 'CUDA\'s order of the NVML indices, such as "1 0"',
    "driver_version": "driver version that NVML reports",
    "nvml_version": "NVML version",
    "cuda_driver_version": "CUDA version of the driver, such as 13000; below 13000 CUDA refuses to start",
    "data": '"keep" (default) or "zero": device memory is never written and reads as zero',
    "series_period_s": "seconds for which each value of a telemetry list holds (default 1)",
    # A GPU.
    "name": "name",
    "uuid": "UUID, GPU-...",
    "pci_bus_id": "PCI address, 00000000:07:00.0",
    "compute_capability": "such as 8.0",
    "multiprocessors": "number of SMs",
    "memory": 'memory CUDA offers, such as "79.15 GiB"; allocating more is an out-of-memory error',
    "nvml_memory": "memory NVML reports",
    "memory_in_use": "part of the memory that other processes hold",
    "memory_reserved": "part of the memory that NVML reports as reserved",
    "l2_cache": "size of the L2 cache",
    "memory_bus_bits": "width of the memory bus",
    "cuda_name": "name on the CUDA side where it differs (MIG)",
    "cuda_uuid": "UUID on the CUDA side where it differs (MIG)",
    "mig_uuid": "UUID of the MIG instance",
    "ignore_arch_list": "1: torch's kernels launch even if torch was not built for this GPU",
    # Its timing.
    "kernel_us": "time of any kernel without a model of its own (default 5)",
    "conv_us": "time of a convolution on top of its arithmetic (default 10)",
    "tflops": "flat rate of convolutions and matrix products, instead of the peaks below",
    "tflops_fp32": "peak rate in float32",
    "tflops_tf32": "peak rate in TF32; absent: none",
    "tflops_fp16": "peak rate in float16 and bfloat16",
    "efficiency": "share of the peaks that is reached (default 0.4)",
    "memory_gbs": "bandwidth of device memory",
    "pcie_gbs": "bandwidth between host and device",
    "cudnn_workspace": "workspace each convolution asks for (default 0)",
    # Its telemetry: a value, a list of values or ERR:<NVML error>.
    "utilization_gpu": "percent",
    "utilization_memory": "percent",
    "clock_graphics_mhz": "current clock",
    "clock_sm_mhz": "current clock",
    "clock_memory_mhz": "current clock",
    "clock_video_mhz": "current clock",
    "max_clock_graphics_mhz": "highest clock",
    "max_clock_sm_mhz": "highest clock",
    "max_clock_memory_mhz": "highest clock",
    "max_clock_video_mhz": "highest clock",
    "temperature_c": "temperature",
    "power_mw": "power",
    "power_limit_mw": "power limit",
    "energy_mj": 'energy counter, or "integrate" for the integral of power_mw',
    "throttle_reasons": "bit mask of clock event reasons, such as 0x4",
    "memory_used": "memory NVML reports as used, instead of what is really allocated",
    "processes": 'other processes on the GPU, "pid:bytes; pid:bytes"',
    "ecc": "ECC mode",
    "mig": "MIG mode",
    "persistence": "persistence mode",
    "performance_state": "P-state",
    "compute_mode": "compute mode",
    "fan_percent": "fan speed",
    "pcie_generation": "PCIe generation",
    "pcie_width": "PCIe lanes",
    # Faults.
    "fault": '"700@100": the 100th launch fails with CUDA error 700, for good',
    "cuda_init_error": "CUDA error of every attempt to find a GPU, such as 999",
    "nvml_init_error": "NVML error of nvmlInit, such as 9",
    "lost_after_s": "second after which NVML has lost the GPU (error 15)",
}


def profile_names() -> list[str]:
    return sorted(path.stem for path in PROFILES.glob("*.profile"))


def profile_path(profile: str | os.PathLike[str]) -> Path:
    """The file of a profile, given its name, its alias or a path."""
    name = os.fspath(profile)
    named = PROFILES / f"{ALIASES.get(name, name)}.profile"
    if named.is_file():
        return named
    if Path(name).is_file():
        return Path(name).resolve()
    raise ValueError(f"no profile {name!r}; there are {', '.join(profile_names())}")


def setting_line(key: str, value: object) -> str:
    """One override as the libraries read it: lists become comma lists."""
    if key not in SETTINGS:
        raise ValueError(f"no setting {key!r}; cuda_sim.py --list shows all")
    if isinstance(value, (list, tuple)):
        separator = " " if key == "cuda_order" else ", "
        value = separator.join(str(item) for item in value)
    if isinstance(value, bool):
        value = int(value)
    text = str(value)
    if "\n" in text:
        raise ValueError(f"the value of {key!r} has more than one line")
    return f"{key} = {text}"


def environment(
    profile: str | os.PathLike[str] = DEFAULT_PROFILE,
    *,
    per_device: Mapping[int, Mapping[str, object]] | None = None,
    old_driver: bool = False,
    clock: str | os.PathLike[str] | None = None,
    debug: bool = False,
    libraries: str | os.PathLike[str] | None = None,
    base: Mapping[str, str] | None = None,
    **settings: object,
) -> dict[str, str]:
    """The environment of a process that is to see simulated GPUs.

    profile     name, alias or file of a profile
    settings    override the profile: environment("t4", memory="2GiB")
    per_device  overrides of one GPU, by NVML index: {1: {"name": "..."}}
    old_driver  NVML without the functions that newer drivers added
    clock       file holding the time of the telemetry in seconds (set_clock)
    debug       report on stderr every call that is not simulated
    libraries   directory to build into (default: $CUDA_SIM_LIBRARIES or build/)
    base        environment to start from (default: this process's)

    The libraries are built when they are missing or out of date.
    """
    built = build.ensure(Path(libraries) if libraries else None)
    search_path = [str(built / "old_driver")] if old_driver else []
    search_path.append(str(built))

    lines = [setting_line(key, value) for key, value in settings.items()]
    for device, overrides in (per_device or {}).items():
        lines += [f"device{device}.{setting_line(key, value)}" for key, value in overrides.items()]

    result = dict(os.environ if base is None else base)
    _prepend(result, "LD_PRELOAD", [str(built / "libcuda_sim.so")])
    _prepend(result, "LD_LIBRARY_PATH", search_path)
    result["CUDA_SIM_PROFILE"] = str(profile_path(profile))
    result["CUDA_SIM_OVERRIDES"] = "\n".join(lines)
    if clock is not None:
        result["CUDA_SIM_CLOCK"] = os.fspath(clock)
    if debug:
        result["CUDA_SIM_DEBUG"] = "1"
    return result


def _prepend(variables: dict[str, str], name: str, entries: list[str]) -> None:
    existing = [variables[name]] if variables.get(name) else []
    variables[name] = ":".join([*entries, *existing])


def set_clock(clock: str | os.PathLike[str], seconds: float) -> None:
    """Set the telemetry clock of processes started with `clock`."""
    path = Path(clock)
    # Replaced in one step: a reader never sees half a number.
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    scratch.write_text(f"{seconds}\n")
    scratch.replace(path)


def is_simulated() -> bool:
    """Whether the GPUs of this very process are simulated."""
    return hasattr(ctypes.CDLL(None), "cuda_sim_launch_count")


def launch_count() -> int:
    """How many launches the simulation has seen in this process."""
    function = ctypes.CDLL(None).cuda_sim_launch_count
    function.restype = ctypes.c_long
    return function()


def print_overview() -> None:
    print("profiles:")
    for name in profile_names():
        print(f"  {name}")
    print("settings (--set KEY=VALUE or --set deviceN.KEY=VALUE):")
    for key, meaning in SETTINGS.items():
        print(f"  {key:24}{meaning}")


def parse_set(text: str) -> tuple[int | None, str, str]:
    """ "device1.power_mw=70000" -> (1, "power_mw", "70000")."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    prefix, dot, rest = key.partition(".")
    if not dot:
        return None, key, value
    if not prefix.startswith("device") or not prefix[len("device") :].isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not deviceN.KEY=VALUE")
    return int(prefix[len("device") :]), rest, value


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Run a command with simulated NVIDIA GPUs.",
        usage="cuda_sim.py [options] -- COMMAND [ARGUMENT ...]",
    )
    parser.add_argument(
        "--profile", default=DEFAULT_PROFILE, help=f"GPU to simulate (default: {DEFAULT_PROFILE})"
    )
    parser.add_argument("--devices", help="number of GPUs")
    parser.add_argument("--memory", help="memory of each GPU, such as 4GiB")
    parser.add_argument("--tflops", help="flat rate of convolutions and matrix products")
    parser.add_argument("--conv-us", help="time of each convolution on top of its arithmetic")
    parser.add_argument("--kernel-us", help="time of each other kernel")
    parser.add_argument(
        "--fault", help="CODE@N: launch number N fails with this CUDA error, for good"
    )
    parser.add_argument("--cuda-init-error", metavar="CODE", help="CUDA cannot start")
    parser.add_argument("--nvml-init-error", metavar="CODE", help="NVML cannot start")
    parser.add_argument(
        "--lost-after", metavar="SECONDS", dest="lost_after_s", help="NVML loses the GPU"
    )
    parser.add_argument(
        "--old-driver", action="store_true", help="NVML without the functions of newer drivers"
    )
    parser.add_argument(
        "--clock", metavar="FILE", help="file that holds the time of the telemetry in seconds"
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        type=parse_set,
        action="append",
        default=[],
        help="any setting",
    )
    parser.add_argument("--libraries", metavar="DIR", help="directory to build into")
    parser.add_argument("--debug", action="store_true", help="report calls that are not simulated")
    parser.add_argument("--list", action="store_true", help="list profiles and settings")
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    if parsed.command[:1] == ["--"]:
        parsed.command = parsed.command[1:]
    if not parsed.list and not parsed.command:
        parser.error("no command given")
    return parsed


def main(arguments: list[str]) -> int:
    options = parse_arguments(arguments)
    if options.list:
        print_overview()
        return 0
    named = ["devices", "memory", "tflops", "conv_us", "kernel_us", "fault"]
    named += ["cuda_init_error", "nvml_init_error", "lost_after_s"]
    settings = {key: getattr(options, key) for key in named if getattr(options, key) is not None}
    per_device: dict[int, dict[str, object]] = {}
    for device, key, value in options.set:
        target = settings if device is None else per_device.setdefault(device, {})
        target[key] = value
    try:
        variables = environment(
            options.profile,
            per_device=per_device,
            old_driver=options.old_driver,
            clock=options.clock,
            debug=options.debug,
            libraries=options.libraries,
            **settings,
        )
        os.execvpe(options.command[0], options.command, variables)
    except (build.BuildError, ValueError, OSError) as error:
        print(f"cuda_sim.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
