"""One case on several devices: torchrun starts a process a device, rank 0 measures.

Rank 0 runs the timing loop and tells the others how many steps come next, ahead of the
clock; DistributedDataParallel makes every step one of all ranks. What rank 0 says goes
through the worker to the parent, as if the worker had measured.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from bench.environment import host
from bench.messages import Order, Outcome, Progress

ORDER, SOCKET = "order.json", "socket"


def run(order: Order, parent: Connection) -> Outcome:
    """Start the ranks, pass on what rank 0 says, and return its outcome or why there is none."""
    with tempfile.TemporaryDirectory(prefix="bench-ranks-") as scratch:
        folder = Path(scratch)
        (folder / ORDER).write_bytes(msgspec.json.encode(order))
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(folder / SOCKET))
            server.listen()
            with _torchrun(order, folder) as process:
                ended = os.pidfd_open(process.pid)
                outcome = _relay(server, ended, parent)
                if outcome is None:
                    return _why(folder, process.wait())
                process.wait()
                return outcome


@contextlib.contextmanager
def _torchrun(order: Order, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    size = order.case.world_size
    threads = order.case.threads or max(1, host.cores_usable() // size)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(size), "-m", "bench.rank", str(folder)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()


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


def _why(folder: Path, code: int) -> Outcome:
    """The first rank's complaint; the others were ended because of it."""
    said = sorted(folder.glob("rank-*.json"), key=lambda path: path.stat().st_mtime)
    if not said:
        reason = f"a rank ended without a word (torchrun's exit code is {code})"
        return Outcome(status="failed", reason=reason)
    outcome = msgspec.json.decode(said[0].read_bytes(), type=Outcome)
    rank = said[0].stem.removeprefix("rank-")
    return msgspec.structs.replace(outcome, reason=f"rank {rank}: {outcome.reason}")


def complain(folder: Path, rank: int, outcome: Outcome) -> None:
    """Leave word of why this rank cannot go on."""
    (folder / f"rank-{rank}.json").write_bytes(msgspec.json.encode(outcome))
