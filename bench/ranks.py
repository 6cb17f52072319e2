"""One case on several devices: torchrun starts a process a device, rank 0 measures.

Rank 0 runs the timing loop and tells the others how many steps come next, ahead of the
clock; DistributedDataParallel makes every step one of all ranks. What rank 0 says goes
through the worker to the parent, as if the worker had measured.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from bench.devices import default_threads
from bench.environment import cgroup, host
from bench.messages import Order, Outcome, Progress

PATIENCE_S = 10.0  # for ranks to take leave of one another
ORDER, SOCKET = "order.json", "socket"


def run(order: Order, parent: Connection) -> Outcome:
    """Start the ranks, pass on what rank 0 says, and return its outcome or why there is none."""
    kills = cgroup.oom_kills()
    # Below the run's own scratch, which goes even if this process is killed.
    with tempfile.TemporaryDirectory(prefix="ranks-", dir=Path(order.log).parent) as scratch:
        folder = Path(scratch)
        (folder / ORDER).write_bytes(msgspec.json.encode(order))
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(folder / SOCKET))
            server.listen()
            with _torchrun(order, folder) as process:
                ended = os.pidfd_open(process.pid)
                outcome = _relay(server, ended, parent)
                if outcome is None:
                    return _why(folder, process.wait(), order, kills)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE_S)
                return outcome


@contextlib.contextmanager
def _torchrun(order: Order, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    size = order.case.world_size
    threads = order.case.threads or max(1, min(default_threads(), host.cores_usable() // size))
    command = [
        *(sys.executable, "-m", "bench.torchrun", "--standalone"),
        *("--nproc-per-node", str(size), "-m", "bench.rank", str(folder)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()  # its ranks die with it


def _relay(server: socket.socket, ended: int, parent: Connection) -> Outcome | None:
    """Messages of rank 0 until its outcome; None if the ranks ended without one."""
    if server.fileno() not in _first([server.fileno(), ended]):
        return None
    with Connection(server.accept()[0].detach()) as rank:
        while True:
            if rank.fileno() not in _first([rank.fileno(), ended]):
                return None
            try:
                message = rank.recv_bytes()
            except (EOFError, ConnectionError):
                return None
            said = msgspec.json.decode(message, type=Progress | Outcome)
            if isinstance(said, Outcome):
                return said
            parent.send_bytes(message)
            rank.send_bytes(parent.recv_bytes())


def _first(descriptors: list[int]) -> list[int]:
    """Those that have something to say, or have ended."""
    return select.select(descriptors, [], [])[0]


def _why(folder: Path, code: int, order: Order, kills: int | None) -> Outcome:
    """The first rank's complaint; the others were ended because of it."""
    said = sorted(folder.glob("rank-*.json"), key=lambda path: path.stat().st_mtime)
    if not said:
        return _wordless(code, order, kills)
    outcome = msgspec.json.decode(said[0].read_bytes(), type=Outcome)
    rank = said[0].stem.removeprefix("rank-")
    return msgspec.structs.replace(outcome, reason=f"rank {rank}: {outcome.reason}")


def _wordless(code: int, order: Order, kills_before: int | None) -> Outcome:
    """A rank was killed: by the kernel for want of memory, or as torchrun's report says."""
    kills = cgroup.oom_kills()
    if kills is not None and kills > (kills_before or 0):
        reason = f"batch {order.case.batch_size} does not fit: the kernel killed a rank"
        return Outcome(status="oom", reason=f"{reason}, out of host memory")
    log = Path(order.log).read_text(encoding="utf-8", errors="replace")
    found = re.search(
        r"rank\s*: (\d+).*?exitcode\s*: (-?\d+)", log.rpartition("Root Cause")[2], re.S
    )
    if found is None:
        return Outcome(status="failed", reason=f"torchrun ended with exit code {code}")
    rank, ended = found[1], int(found[2])
    how = f"was ended by {signal.Signals(-ended).name}" if ended < 0 else f"ended with {ended}"
    return Outcome(status="failed", reason=f"rank {rank} {how}")


def complain(folder: Path, rank: int, outcome: Outcome) -> None:
    """Leave word of why this rank cannot go on."""
    (folder / f"rank-{rank}.json").write_bytes(msgspec.json.encode(outcome))
