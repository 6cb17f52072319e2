"""torch.compile with its code kept in the harness's own cache, so that cold means cold."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from bench.engines import Job


def no_compiler() -> str | None:
    """Why Inductor cannot write its C++, or None. It takes $CXX, else g++."""
    name = os.environ.get("CXX", "g++")
    if shutil.which(name):
        return None
    return (
        f"torch.compile needs a C++ compiler and {name} is not here: install g++, let CXX name "
        "another, or use --engine eager"
    )


def keep_in(folder: Path) -> None:
    """Inductor's code is looked for and written there, and nothing compiled before is used."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.fspath(folder)
    torch.compiler.reset()


def frozen(
    job: Job,
    model: Any,
    call: Callable[[Any, torch.Tensor], torch.Tensor],
    made_of: dict[str, Any] | None = None,
) -> Any:
    """The compiled model, weights folded in as constants, after its first pass.

    call: how a pass is made, under autocast or not. made_of: what decided `model`, where it
    is not the job's own. Freezing: torch._inductor.config.freezing, as torch's own inference
    benchmarks use it. The folder for Inductor's code: TORCHINDUCTOR_CACHE_DIR.
    """
    import torch._inductor.config as inductor

    inductor.freezing = True
    compiled: list[Any] = []
    images = next(iter(job.batches(1)))

    def compile_into(folder: Path) -> None:
        keep_in(folder)
        compiled[:] = [torch.compile(model, dynamic=False, mode=job.case.engine_mode)]
        call(compiled[0], images)

    # Everything of the case but its data and its recipe, which `made_of` knows better.
    case = msgspec.structs.replace(job.case, data="", recipe="", seed=0, weights="")
    key = job.key(
        case=case.case_id,
        shape=list(images.shape),
        threads=torch.get_num_threads(),
        device=job.device.facts().device_name,
        features=torch.backends.cpu.get_cpu_capability(),
        made_of=made_of or {},
    )
    made = job.cache.artefact("inductor", key, compile_into, compile_into)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.fspath(made.folder)  # no more where it was built
    return compiled[0]
