"""All facts together. Runs in a child, where torch is loaded already."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec

import bench
from bench.environment import cgroup, host, software, torch_build
from bench.facts import Environment

# Field of an Environment -> the one function that finds it.
SOURCES: Mapping[str, Callable[[], Any]] = {
    "git_commit": software.git_commit,
    "git_dirty": software.git_dirty,
    "python": software.python,
    "torch": torch_build.version,
    "torchvision": partial(software.version, "torchvision"),
    "torchao": partial(software.version, "torchao"),
    "triton": partial(software.version, "triton"),
    "onnxruntime": partial(software.version, "onnxruntime", "onnxruntime-gpu"),
    "openvino": partial(software.version, "openvino"),
    "tensorrt": partial(software.version, "tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "torch_tensorrt": partial(software.version, "torch-tensorrt"),
    "torch_build": torch_build.build,
    **{name: partial(torch_build.built_with, name) for name in torch_build.PATTERNS},
    "torch_cpu_capability": torch_build.cpu_capability,
    "intraop_threads_default": torch_build.intraop_threads,
    "interop_threads_default": torch_build.interop_threads,
    "cpu_model": host.cpu_model,
    "cpu_features": host.cpu_features,
    "cpu_sockets": host.sockets,
    "cpu_cores_physical": host.cores_physical,
    "cpu_cores_logical": host.cores_logical,
    "cpu_cores_usable": host.cores_usable,
    "cpu_limit_cores": cgroup.cpu_limit_cores,
    "smt": host.smt,
    "numa_nodes": host.numa_nodes,
    "cpu_governor": host.governor,
    "cpu_frequency_min_mhz": host.frequency_min_mhz,
    "cpu_frequency_max_mhz": host.frequency_max_mhz,
    "cpu_frequency_mhz": host.frequency_mhz,
    "memory_bytes": host.memory_bytes,
    "memory_limit_bytes": cgroup.memory_limit_bytes,
    "memory_available_bytes": host.memory_available_bytes,
    "swap_bytes": host.swap_bytes,
    "swap_used_bytes": host.swap_used_bytes,
    "huge_pages": host.huge_pages,
    "kernel": host.kernel,
    "libc": software.libc,
    "container": cgroup.container,
    "virtualised": host.virtualised,
    "hypervisor": host.hypervisor,
    "environment_variables": software.variables,
}


def collect() -> Environment:
    """The environment of this process. What cannot be found out, for whatever reason, is None."""
    found: dict[str, Any] = {"bench_version": bench.__version__}
    for field, source in SOURCES.items():
        # A fact is never worth a run: a source that breaks on an odd machine leaves null.
        with contextlib.suppress(Exception):
            found[field] = source()
    return msgspec.convert(found, Environment)
