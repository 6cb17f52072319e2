"""Measures how ResNet-50 trains and serves on this machine, and says how sure it is."""

import os

__version__ = "0.1.0"

# Cores this process may use. Asked before torch is imported: with OMP_PROC_BIND, OpenMP
# binds the thread that loads it to one core, which would then look like all there is.
CORES = frozenset(os.sched_getaffinity(0))
