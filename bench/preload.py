"""What the fork server imports before it forks: torch, and all of ours that a worker needs.

A failure here must not end the server: the child that needs the module fails in
its turn and says why.
"""

from __future__ import annotations

import contextlib
import importlib

MODULES = (
    "torch",
    "torchvision",
    "bench.processes",
    "bench.worker",
    "bench.preflight",
    "bench.devices.cpu",
    "bench.engines.eager.float",
    "bench.engines.eager.int8",
)

for _name in MODULES:
    with contextlib.suppress(Exception):
        importlib.import_module(_name)
