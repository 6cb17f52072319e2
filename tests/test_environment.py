"""Facts of the machine: null where unknown, and each in the right fingerprint."""

from __future__ import annotations

import builtins
import io
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pynvml
import pytest
import torch

from bench.devices import _nvml as nvml
from bench.environment import cgroup, collect, host, noise, torch_build
from bench.environment.fingerprints import machine_fingerprint, software_fingerprint
from bench.facts import DeviceFacts, DeviceState, Environment
from bench.schema import columns
from tests import fake_nvml

GPU = DeviceFacts(
    device="cuda:0",
    kind="cuda",
    device_class="gpu",
    device_name="NVIDIA A100-SXM4-80GB MIG 3g.40gb",
    state=DeviceState(mig_profile="3g.40gb"),
)
MACHINE = Environment(
    bench_version="0",
    cpu_model="AMD EPYC 7543",
    cpu_cores_physical=32,
    memory_bytes=270_000_000_000,
)


def hashes(environment: Environment, device: DeviceFacts | None) -> tuple[str, str]:
    return machine_fingerprint(environment, device), software_fingerprint(environment, device)


def test_machine_fingerprints_never_change() -> None:
    """Golden: another hash would end every series of a machine. A new fact changes nothing."""
    assert machine_fingerprint(MACHINE, GPU) == "91c4b5fa60aa"
    assert machine_fingerprint(MACHINE, None) == "0fcc92f1b015"


# Written down a second time on purpose: a new fact must be put somewhere knowingly.
IN_MACHINE = {"cpu_model", "cpu_cores_physical", "memory_bytes", "device_name", "mig_profile"}
IN_NEITHER = {
    "cpu_frequency_mhz", "memory_available_bytes", "swap_used_bytes", "pcie_generation",
    "pcie_width", "compute_capability", "idle_power_w", "clocks_locked",
    "other_processes",
    # Of the device: which of its kind, or what its product name says already.
    "device", "kind", "device_class", "device:memory_bytes", "simulated",
}  # fmt: skip
FULL: dict[Any, Any] = {str: "a", int: 2**33, float: 1.5, bool: True, list[str]: ["a"]}
OTHER: dict[Any, Any] = {str: "b", int: 2**34, float: 2.5, bool: False, list[str]: ["b"]}


def filled(noun: type[msgspec.Struct], changed: str = "") -> Any:
    """A noun with a value in every field, `changed` with another one."""
    values: dict[str, Any] = {}
    for column in columns(noun):
        into = values
        for name in column.path[:-1]:
            into = into.setdefault(name, {})
        into[column.path[-1]] = (OTHER if column.name == changed else FULL)[column.type]
    return msgspec.convert(values, noun)


CHANGES = [
    *((c.name, filled(Environment, c.name), filled(DeviceFacts)) for c in columns(Environment)),
    *(
        ("device:memory_bytes" if c.name == "memory_bytes" else c.name,
         filled(Environment), filled(DeviceFacts, c.name))
        for c in columns(DeviceFacts)
    ),
]  # fmt: skip


@pytest.mark.parametrize(("field", "environment", "device"), CHANGES, ids=[c[0] for c in CHANGES])
def test_each_fact_is_in_its_fingerprint(
    field: str, environment: Environment, device: DeviceFacts
) -> None:
    """The machine's in one, what varies by itself in none, everything else in the other."""
    machine, software = hashes(filled(Environment), filled(DeviceFacts))
    changed_machine, changed_software = hashes(environment, device)
    assert (changed_machine != machine) == (field in IN_MACHINE)
    assert (changed_software != software) == (field not in IN_MACHINE | IN_NEITHER)


def test_a_kernel_that_keeps_some_memory_is_on_the_same_machine() -> None:
    """Memory counts in GiB."""
    less = msgspec.structs.replace(MACHINE, memory_bytes=269_900_000_000)
    assert machine_fingerprint(less, GPU) == machine_fingerprint(MACHINE, GPU)


def test_every_field_has_a_source_and_every_answer_its_type() -> None:
    """On the machine of the test, whatever it is; conversion raises for a wrong type."""
    assert set(collect.SOURCES) | {"bench_version"} == {c.name for c in columns(Environment)}
    found = collect.collect()
    assert msgspec.convert(msgspec.to_builtins(found), Environment) == found
    assert found.torch == torch.__version__
    assert found.memory_bytes is not None
    assert found.memory_available_bytes is not None
    assert found.memory_available_bytes <= found.memory_bytes
    assert found.intraop_threads_default == torch.get_num_threads()


def test_a_source_that_breaks_leaves_null(monkeypatch: pytest.MonkeyPatch) -> None:
    """No fact is worth a run."""

    def broken() -> None:
        raise RuntimeError

    monkeypatch.setattr(collect, "SOURCES", dict.fromkeys(collect.SOURCES, broken))
    assert collect.collect() == Environment(bench_version=collect.bench.__version__)


def test_without_proc_and_sys_facts_are_null(monkeypatch: pytest.MonkeyPatch) -> None:
    """Null, not 0 and not False."""

    def shut(open_file: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, *arguments: Any, **named: Any) -> Any:
            if str(file).startswith(("/proc", "/sys")):
                raise PermissionError(file)
            return open_file(file, *arguments, **named)

        return opened

    monkeypatch.setattr(builtins, "open", shut(builtins.open))
    monkeypatch.setattr(io, "open", shut(io.open))
    monkeypatch.setattr(torch.__config__, "show", str)
    host._cpuinfo.cache_clear()
    torch_build._config.cache_clear()
    try:
        found = collect.collect()
    finally:
        host._cpuinfo.cache_clear()
        torch_build._config.cache_clear()
    unknown = """cpu_features smt cpu_governor cpu_frequency_min_mhz cpu_frequency_max_mhz
        cpu_frequency_mhz cpu_limit_cores cpu_sockets memory_bytes memory_limit_bytes
        memory_available_bytes swap_bytes swap_used_bytes huge_pages virtualised hypervisor
        torch_compiler torch_blas torch_mkl torch_onednn torch_openmp torch_cudnn"""
    assert {name: getattr(found, name) for name in unknown.split()} == dict.fromkeys(
        unknown.split()
    )


def test_secrets_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the variables of the list are stored."""
    monkeypatch.setenv("API_TOKEN", "hunter2")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = collect.collect()
    assert "OMP_NUM_THREADS=7" in (found.environment_variables or [])
    assert b"hunter2" not in msgspec.json.encode(found)


V2 = "/sys/fs/cgroup"
LIMITS = {
    "v2, set on the group above": (
        {
            "/proc/self/cgroup": "0::/a/b",
            f"{V2}/a/b/cpu.max": "max 100000",
            f"{V2}/a/cpu.max": "150000 100000",
            f"{V2}/a/b/memory.max": "max",
            f"{V2}/a/memory.max": "1048576",
        },
        (1.5, 2**20),
    ),
    "v2, in a namespace of its own": (
        {
            "/proc/self/cgroup": "0::/",
            f"{V2}/cpu.max": "50000 100000",
            f"{V2}/memory.max": "4096",
        },
        (0.5, 4096),
    ),
    "v1": (
        {
            "/proc/self/cgroup": "4:memory:/x\n1:cpu,cpuacct:/x",
            f"{V2}/cpu/x/cpu.cfs_quota_us": "400000",
            f"{V2}/cpu/x/cpu.cfs_period_us": "100000",
            f"{V2}/memory/x/memory.limit_in_bytes": "8192",
        },
        (4.0, 8192),
    ),
    "v1, none": (
        {
            "/proc/self/cgroup": "4:memory:/\n1:cpu,cpuacct:/",
            f"{V2}/cpu/cpu.cfs_quota_us": "-1",
            f"{V2}/cpu/cpu.cfs_period_us": "100000",
            f"{V2}/memory/memory.limit_in_bytes": "9223372036854771712",
        },
        (None, None),
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits_of_control_groups(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both versions; the tightest of our group and those above it; none is null."""
    files, expected = LIMITS[name]
    monkeypatch.setattr(cgroup, "read", files.get)
    assert (cgroup.cpu_limit_cores(), cgroup.memory_limit_bytes()) == expected


OURS = dict(cgroup.FIRST_NAMESPACES)
OWN = OURS | {"pid": "pid:[4026532177]"}
CONTAINERS: list[tuple[dict[str, str], dict[str, str], str | None]] = [
    ({"/proc/self/cgroup": "0::/docker/0123"}, OWN, "docker (control group)"),
    ({"/proc/self/cgroup": "0::/system.slice/docker-0123.scope"}, OURS, "docker (control group)"),
    ({"/proc/self/cgroup": "0::/kubepods/pod1/docker-2"}, OWN, "kubernetes (control group)"),
    ({"/proc/self/cgroup": "0::/", "/.dockerenv": ""}, OWN, "docker (/.dockerenv)"),
    ({"/run/.containerenv": 'engine="podman"'}, OWN, "podman (/run/.containerenv)"),
    ({"/run/systemd/container": "lxc"}, OWN, "lxc (/run/systemd/container)"),
    ({"/.dockerenv": ""}, OURS, "none"),  # a virtual machine on a container's image
    ({"/proc/self/cgroup": "0::/system.slice/docker.service"}, OURS, "none"),
    ({}, OWN, None),
    ({}, {}, None),
]


@pytest.mark.parametrize(("files", "namespaces", "expected"), CONTAINERS)
def test_containers(
    files: dict[str, str],
    namespaces: dict[str, str],
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Named with what shows them; `none` only where it is known."""
    monkeypatch.setattr(cgroup, "read", files.get)
    monkeypatch.setattr(cgroup, "_namespace", namespaces.get)
    assert cgroup.container() == expected


def test_the_doctor_reads_what_the_record_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """One source each for both."""
    monkeypatch.setattr(host, "smt", lambda: True)
    monkeypatch.setattr(host, "governor", lambda: "powersave")
    monkeypatch.setattr(host, "swap_used_bytes", lambda: 2**30)
    text = "\n".join(noise.findings())
    assert "SMT is on" in text
    assert "powersave" in text
    assert "1024 MiB are in swap" in text


STATE = DeviceState(
    other_processes=2,
    mig_mode=False,
    power_limit_w=250.0,
    power_limit_default_w=400.0,
    sm_clock_max_mhz=1410,
    application_sm_clock_mhz=1310,
    application_memory_clock_mhz=1115,
    clocks_locked=True,
    persistence_mode=True,
    compute_mode="exclusive_process",
    ecc=True,
    vbios="92.00",
    pcie_generation=1,
    pcie_width=8,
    pcie_generation_max=4,
    pcie_width_max=16,
)
OPTIONAL = {
    "nvmlDeviceGetComputeRunningProcesses": ["other_processes"],
    "nvmlDeviceGetMigMode": ["mig_mode"],
    "nvmlDeviceGetPowerManagementLimit": ["power_limit_w"],
    "nvmlDeviceGetPowerManagementDefaultLimit": ["power_limit_default_w"],
    "nvmlDeviceGetMaxClockInfo": ["sm_clock_max_mhz"],
    "nvmlDeviceGetApplicationsClock": ["application_sm_clock_mhz", "application_memory_clock_mhz"],
    "nvmlDeviceGetPersistenceMode": ["persistence_mode"],
    "nvmlDeviceGetComputeMode": ["compute_mode"],
    "nvmlDeviceGetCurrentClocksEventReasons": [],  # asked again by its former name
    "nvmlDeviceGetEccMode": ["ecc"],
    "nvmlDeviceGetVbiosVersion": ["vbios"],
    "nvmlDeviceGetCurrPcieLinkGeneration": ["pcie_generation"],
    "nvmlDeviceGetCurrPcieLinkWidth": ["pcie_width"],
    "nvmlDeviceGetMaxPcieLinkGeneration": ["pcie_generation_max"],
    "nvmlDeviceGetMaxPcieLinkWidth": ["pcie_width_max"],
    "nvmlShutdown": [],
}
NOT_SUPPORTED = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
NO_PERMISSION = pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)


def test_the_state_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, in watts and MHz, and NVML is stopped again."""
    calls = fake_nvml.install(monkeypatch)
    assert nvml.state("1234") == STATE
    assert nvml.driver() == "580.1"
    assert nvml.gpus() == {"GPU 0 (Test GPU)": STATE}
    assert calls.count("nvmlInit") == calls.count("nvmlShutdown") == 3


@pytest.mark.parametrize("error", [NOT_SUPPORTED, NO_PERMISSION])
@pytest.mark.parametrize("question", OPTIONAL)
def test_what_nvml_does_not_answer_is_null(
    question: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One refusal leaves the other answers."""
    fake_nvml.install(monkeypatch, **{question: error})
    missing = dict.fromkeys(OPTIONAL[question])
    assert nvml.state("1234") == msgspec.structs.replace(STATE, **missing)


def test_without_nvml_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML cannot start, or does not know the GPU."""
    for question in ("nvmlInit", "nvmlDeviceGetHandleByUUID"):
        fake_nvml.install(monkeypatch, **{question: NOT_SUPPORTED})
        assert nvml.state("1234") == DeviceState()
    fake_nvml.install(monkeypatch, nvmlInit=NOT_SUPPORTED)
    assert nvml.driver() is None
    assert nvml.gpus() == {}


def test_a_slice_is_asked_about_through_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A MIG instance has no power limit or clocks of its own."""

    def by_uuid(uuid: str) -> str:
        if uuid != "MIG-1234":
            raise NOT_SUPPORTED
        return "slice"

    def limit(handle: str) -> int:
        if handle != "whole":
            raise NOT_SUPPORTED
        return 400_000

    fake_nvml.install(
        monkeypatch,
        nvmlDeviceGetHandleByUUID=by_uuid,
        nvmlDeviceGetDeviceHandleFromMigDeviceHandle="whole",
        nvmlDeviceGetPowerManagementLimit=limit,
    )
    assert nvml.state("1234").power_limit_w == 400.0


FORK_SERVER = """
import pynvml
def started(*_): raise SystemExit("NVML was started")
pynvml.nvmlInit = pynvml.nvmlInitWithFlags = started
import bench.preload, sys, torch
assert "bench.preflight" in sys.modules
assert not torch.cuda.is_initialized()
"""


def test_the_fork_server_starts_no_device() -> None:
    """Its children could not use what it had started."""
    subprocess.run([sys.executable, "-c", FORK_SERVER], check=True, timeout=120)
