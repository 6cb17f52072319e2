"""What the fork server imports before it forks: torch, and all of ours that a worker needs.

A failure here must not end the server: the child that needs the module fails in
its turn and says why. The server ends with the command: taking torch apart in order takes
seconds, in which whoever reads the command's output through a pipe would wait.
"""

from __future__ import annotations

import contextlib
import importlib

from bench.processes import die_with_parent

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

die_with_parent()
for _name in MODULES:
    with contextlib.suppress(Exception):
        importlib.import_module(_name)
