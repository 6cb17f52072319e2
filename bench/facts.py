"""What is found out about the machine, its software and its devices. Unknown is null.

Each field names the fingerprint it is in, here and nowhere else:

- `machine` is what the machine is. It names a series in time.
- `software` is what can be changed on that machine. A change stays in the series
  and is the first suspect when the numbers move.
- neither: it varies by itself, or follows from another field.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Fingerprint = Literal["machine", "software"]


def doc(text: str, fingerprint: Fingerprint | None = None) -> Meta:
    """The description of a column, and the fingerprint it is in."""
    return Meta(description=text, extra={"fingerprint": fingerprint})


# Written down of a device and in a record alike.
DEVICE_NAME = doc("product name of the device", "machine")
DRIVER = doc("version of the device's driver", "software")


class DeviceState(Struct, frozen=True, kw_only=True):
    """What a device's driver tells about it; all null for a CPU."""

    compute_capability: Annotated[str | None, doc("CUDA compute capability")] = None
    mig_profile: Annotated[
        str | None, doc("slice of a GPU in MIG mode, e.g. `3g.20gb`", "machine")
    ] = None
    other_processes: Annotated[
        int | None, doc("processes that computed on the GPU before ours; null: cannot be known")
    ] = None
    mig_mode: Annotated[bool | None, doc("the GPU is in MIG mode", "software")] = None
    power_limit_w: Annotated[float | None, doc("power limit that is set", "software")] = None
    power_limit_default_w: Annotated[float | None, doc("power limit by default", "software")] = None
    sm_clock_max_mhz: Annotated[int | None, doc("highest clock of the SMs", "software")] = None
    application_sm_clock_mhz: Annotated[
        int | None, doc("clock applications get; null also where they cannot be set", "software")
    ] = None
    application_memory_clock_mhz: Annotated[
        int | None, doc("the same for the memory", "software")
    ] = None
    clocks_locked: Annotated[
        bool | None, doc("a clock setting, not the load, decided the SM clock when looked at")
    ] = None
    persistence_mode: Annotated[
        bool | None, doc("the driver stays loaded without a client", "software")
    ] = None
    compute_mode: Annotated[
        str | None, doc("`default`, or `exclusive_process`: one process at a time", "software")
    ] = None
    ecc: Annotated[bool | None, doc("memory has error correction switched on", "software")] = None
    vbios: Annotated[str | None, doc("version of the GPU's firmware", "software")] = None
    pcie_generation: Annotated[
        int | None, doc("PCIe generation of the link when looked at; an idle GPU lowers it")
    ] = None
    pcie_width: Annotated[int | None, doc("lanes of the link when looked at; the same")] = None
    pcie_generation_max: Annotated[
        int | None, doc("highest generation of GPU and slot", "software")
    ] = None
    pcie_width_max: Annotated[int | None, doc("most lanes of GPU and slot", "software")] = None


class DeviceReading(Struct, frozen=True, kw_only=True):
    """What a device's driver says at one moment; all None for a CPU.

    `clock_reasons` are words for what holds the clocks down, empty for nothing.
    """

    utilization_percent: float | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    clock_reasons: list[str] | None = None
    memory_used_bytes: int | None = None
    memory_own_bytes: int | None = None
    memory_others_bytes: int | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None

    @property
    def disturbed(self) -> bool:
        """The hardware protects itself; no steady state is like that."""
        return any("hardware" in r or r == "power_brake" for r in self.clock_reasons or ())

    @property
    def capped(self) -> bool:
        """Power or temperature is at its limit: a state some devices live in."""
        return bool({"power_cap", "thermal_cap"} & set(self.clock_reasons or ()))


class DeviceFacts(Struct, frozen=True, kw_only=True):
    """One device as found."""

    device: Annotated[str, doc("name to give to --device")]
    kind: Annotated[str, doc("the plug-in that drives it")]
    device_class: Annotated[str, doc("`cpu` or `gpu`: which batch sizes of a plan it takes")]
    device_name: Annotated[str, DEVICE_NAME]
    memory_bytes: Annotated[int | None, doc("memory of the device")] = None
    driver: Annotated[str | None, DRIVER] = None
    simulated: Annotated[bool, doc("a simulated device: its times mean nothing")] = False
    idle_power_w: Annotated[
        float | None, doc("watts before the first case, over a second; null without a meter")
    ] = None
    state: DeviceState = DeviceState()


class Environment(Struct, frozen=True, kw_only=True):
    """The machine and the software as found."""

    bench_version: Annotated[str, doc("version of this package", "software")]
    git_commit: Annotated[
        str | None, doc("commit of the checkout this package runs from", "software")
    ] = None
    git_dirty: Annotated[bool | None, doc("that checkout had uncommitted changes", "software")] = (
        None
    )
    python: Annotated[str | None, doc("version of Python", "software")] = None
    torch: Annotated[str | None, doc("version of torch, with its build", "software")] = None
    torchvision: Annotated[str | None, doc("version of torchvision", "software")] = None
    torchao: Annotated[str | None, doc("version of torchao", "software")] = None
    triton: Annotated[str | None, doc("version of Triton", "software")] = None
    onnxruntime: Annotated[str | None, doc("version of ONNX Runtime", "software")] = None
    openvino: Annotated[str | None, doc("version of OpenVINO", "software")] = None
    tensorrt: Annotated[str | None, doc("version of TensorRT", "software")] = None
    torch_tensorrt: Annotated[str | None, doc("version of Torch-TensorRT", "software")] = None
    torch_build: Annotated[
        str | None, doc("CUDA or ROCm version torch was built for, or cpu", "software")
    ] = None
    torch_cudnn: Annotated[str | None, doc("cuDNN version torch was built for", "software")] = None
    torch_compiler: Annotated[str | None, doc("compiler of torch", "software")] = None
    torch_blas: Annotated[
        str | None, doc("BLAS torch was built with: mkl, open, …", "software")
    ] = None
    torch_mkl: Annotated[str | None, doc("version of torch's MKL", "software")] = None
    torch_onednn: Annotated[str | None, doc("version of torch's oneDNN", "software")] = None
    torch_openmp: Annotated[
        str | None, doc("OpenMP specification torch was built for, e.g. 201511", "software")
    ] = None
    torch_cpu_capability: Annotated[
        str | None, doc("instruction set of torch's own CPU kernels: AVX2, AVX512, …", "software")
    ] = None
    intraop_threads_default: Annotated[
        int | None, doc("threads torch takes by itself for one operator", "software")
    ] = None
    interop_threads_default: Annotated[
        int | None, doc("threads torch takes by itself for operators side by side", "software")
    ] = None
    cpu_model: Annotated[str | None, doc("CPU model", "machine")] = None
    cpu_features: Annotated[
        list[str] | None,
        doc("instruction sets that matter here: avx2, avx512_vnni, amx_bf16, …", "software"),
    ] = None
    cpu_sockets: Annotated[int | None, doc("processor packages of the machine", "software")] = None
    cpu_cores_physical: Annotated[int | None, doc("physical cores of the machine", "machine")] = (
        None
    )
    cpu_cores_logical: Annotated[
        int | None, doc("logical cores of the machine that are online", "software")
    ] = None
    cpu_cores_usable: Annotated[
        int | None, doc("cores this process may use (affinity, cgroup)", "software")
    ] = None
    cpu_limit_cores: Annotated[
        float | None, doc("processor time our cgroup may use, in cores; null for all", "software")
    ] = None
    smt: Annotated[bool | None, doc("simultaneous multithreading is on", "software")] = None
    numa_nodes: Annotated[int | None, doc("NUMA nodes", "software")] = None
    cpu_governor: Annotated[str | None, doc("frequency governor of the first core", "software")] = (
        None
    )
    cpu_frequency_min_mhz: Annotated[
        float | None, doc("lowest frequency its governor may choose", "software")
    ] = None
    cpu_frequency_max_mhz: Annotated[
        float | None, doc("highest frequency its governor may choose", "software")
    ] = None
    cpu_frequency_mhz: Annotated[float | None, doc("its frequency when looked at")] = None
    memory_bytes: Annotated[
        int | None, doc("memory of the machine; in the fingerprint rounded to GiB", "machine")
    ] = None
    memory_limit_bytes: Annotated[
        int | None, doc("memory limit of the cgroup; null for none", "software")
    ] = None
    memory_available_bytes: Annotated[int | None, doc("memory free for use when looked at")] = None
    swap_bytes: Annotated[int | None, doc("swap of the machine", "software")] = None
    swap_used_bytes: Annotated[int | None, doc("swap in use when looked at")] = None
    huge_pages: Annotated[
        str | None, doc("transparent huge pages: always, madvise or never", "software")
    ] = None
    kernel: Annotated[str | None, doc("kernel release", "software")] = None
    libc: Annotated[str | None, doc("C library and its version", "software")] = None
    container: Annotated[
        str | None,
        doc("docker, podman, … and what shows it; `none` in the machine's namespaces", "software"),
    ] = None
    virtualised: Annotated[bool | None, doc("runs under a hypervisor", "software")] = None
    hypervisor: Annotated[str | None, doc("its name, where the firmware tells", "software")] = None
    environment_variables: Annotated[
        list[str] | None, doc("NAME=value of the few variables that change speed", "software")
    ] = None
