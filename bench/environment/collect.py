"""All facts together, and the two hashes made of them."""

from __future__ import annotations

import bench
from bench.environment import host, software
from bench.schema import DeviceFacts, Environment, short_hash


def collect() -> Environment:
    """The environment of this process. Runs where torch is loaded already."""
    import torch

    commit, dirty = software.git()
    return Environment(
        bench_version=bench.__version__,
        git_commit=commit,
        git_dirty=dirty,
        python=software.python(),
        torch=str(torch.__version__),
        torchvision=software.version("torchvision"),
        torchao=software.version("torchao"),
        torch_build=torch.version.cuda or torch.version.hip or "cpu",
        cpu_model=host.cpu_model(),
        cpu_features=host.cpu_features(),
        cpu_cores_physical=host.cores_physical(),
        cpu_cores_logical=host.cores_logical(),
        cpu_cores_usable=host.cores_usable(),
        cpu_governor=host.cpu_governor(),
        memory_bytes=host.memory_bytes(),
        memory_limit_bytes=host.memory_limit_bytes(),
        kernel=host.kernel(),
        virtualised=host.virtualised(),
        environment_variables=software.variables(),
    )


def machine_fingerprint(environment: Environment, device: DeviceFacts | None) -> str:
    """What the machine is: CPU model, physical cores, memory in GiB, and the device measured."""
    memory = environment.memory_bytes
    gib = None if memory is None else round(memory / 2**30)
    return short_hash(
        [
            environment.cpu_model,
            environment.cpu_cores_physical,
            gib,
            device.device_name if device else None,
        ]
    )


def software_fingerprint(environment: Environment, device: DeviceFacts | None) -> str:
    """What runs on it and could be changed: versions, kernel, driver, limits, variables."""
    return short_hash(
        [
            environment.bench_version,
            environment.git_commit,
            environment.python,
            environment.torch,
            environment.torchvision,
            environment.torchao,
            environment.kernel,
            environment.cpu_governor,
            environment.cpu_cores_usable,
            environment.memory_limit_bytes,
            environment.environment_variables,
            device.driver if device else None,
        ]
    )
