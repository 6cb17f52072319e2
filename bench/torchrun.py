"""torchrun that dies with the process that started it: `python -m bench.torchrun OPTIONS…`."""

from __future__ import annotations

import runpy

from bench.processes import die_with_parent

if __name__ == "__main__":
    die_with_parent()
    runpy.run_module("torch.distributed.run", run_name="__main__")
