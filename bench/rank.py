"""One rank of a case on several devices; torchrun runs it as `python -m bench.rank FOLDER`.

torchrun gives every rank a session of its own, so that ending the worker's group ends
torchrun and not them. This file imports nothing heavy: a rank must know that it dies with
torchrun before it spends seconds on importing torch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bench.processes import die_with_parent


def main(folder: Path) -> None:
    """Tie this process to its parent, then work."""
    parent = os.getppid()
    die_with_parent()
    # torchrun may have ended before the kernel was told; its folder goes with the worker.
    if os.getppid() != parent or parent == 1 or not folder.is_dir():
        sys.exit(1)
    from bench import together

    sys.exit(together.work(folder, int(os.environ["RANK"])))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
