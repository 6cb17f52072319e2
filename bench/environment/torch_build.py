"""How the torch that is here was built, and the threads it takes by itself.

Imports torch. Reads what torch says of its build and starts no device.
"""

from __future__ import annotations

import re
from functools import cache

import torch

# What each fact looks like in torch.__config__.show().
PATTERNS = {
    "torch_compiler": r"- ((?:GCC|clang|MSVC) [\w.]+)",
    "torch_blas": r"BLAS_INFO=(\w+)",
    "torch_mkl": r"Math Kernel Library Version ([\w.]+)",
    "torch_onednn": r"MKL-DNN v([\w.]+)",
    "torch_openmp": r"OpenMP (\d+)",
    "torch_cudnn": r"CUDNN_VERSION=([\w.]+)",
}


@cache
def _config() -> str:
    return str(torch.__config__.show())


def built_with(name: str) -> str | None:
    """The fact of PATTERNS called `name`."""
    found = re.search(PATTERNS[name], _config(), re.IGNORECASE)
    return found[1] if found else None


def version() -> str:
    """Version, with the build after a plus sign."""
    return str(torch.__version__)


def build() -> str:
    """CUDA or ROCm version it was built for, or `cpu`."""
    return torch.version.cuda or torch.version.hip or "cpu"


def cpu_capability() -> str:
    """Instruction set its own CPU kernels were chosen for."""
    return str(torch.backends.cpu.get_cpu_capability())


def intraop_threads() -> int:
    """Threads for one operator, before anybody sets them."""
    return torch.get_num_threads()


def interop_threads() -> int:
    """Threads for operators side by side, before anybody sets them."""
    return torch.get_num_interop_threads()
