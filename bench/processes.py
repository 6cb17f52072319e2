"""Child processes: forked from a server that has imported torch, or fresh interpreters.

The fork server is the standard library's. It imports torch and runs no tensor
operation, so a child starts in hundredths of a second and inherits no threads.
This module imports no torch and nothing that does: the child finds its code by name.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from bench.errors import NothingWorks

PRELOAD = ["bench.preload"]

CRASHED = b"!"  # opens a child's last words; no JSON begins so


class Gone(Exception):
    """A child ended without an answer.

    `code` is its exit code, negative for a signal; `words` its last ones, if any.
    """

    def __init__(self, code: int | None, words: str = "") -> None:
        super().__init__(code)
        self.code = code
        self.words = words


class Late(Exception):
    """A child was still running at its deadline and has been killed."""


def start_server() -> None:
    """Begin importing torch now, beside whatever else the parent has to do."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    multiprocessing.forkserver.ensure_running()


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends (prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)


def _child(module: str, connection: Connection, payload: bytes) -> None:
    """What every child runs first."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    try:
        importlib.import_module(module).main(connection, payload)
    except Exception as error:  # told to the parent, which says it in a sentence
        lines = str(error).strip().splitlines() or [""]
        connection.send_bytes(CRASHED + f"{type(error).__name__}: {lines[0]}".encode())
        os._exit(1)


class Child:
    """One process that answers in bytes. Blocks without using the processor."""

    def __init__(self, module: str, payload: bytes, *, fresh: bool = False) -> None:
        context: Any = multiprocessing.get_context("spawn" if fresh else "forkserver")
        if not fresh:
            context.set_forkserver_preload(PRELOAD)
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_child, args=(module, theirs, payload), daemon=False
        )
        with _no_main():
            self.process.start()
        theirs.close()

    def answers(
        self,
        timeout_s: float,
        on_message: Callable[[bytes], bool],
        *,
        alive_by_message: bool = False,
    ) -> None:
        """Hand each message to `on_message` until it returns True, then reap the child.

        A message that is not the last is answered with an empty one, and with
        `alive_by_message` it starts the timeout anew. Raises Gone or Late; the
        child is dead in every case when this returns.
        """
        deadline = time.monotonic() + timeout_s
        try:
            while True:
                if not self.connection.poll(max(0.0, deadline - time.monotonic())):
                    raise Late
                try:
                    message = self.connection.recv_bytes()
                except (EOFError, ConnectionError) as error:
                    self.process.join(5)
                    raise Gone(self.process.exitcode) from error
                if message.startswith(CRASHED):
                    raise Gone(1, message[len(CRASHED) :].decode())
                if alive_by_message:
                    deadline = time.monotonic() + timeout_s
                if on_message(message):
                    self.process.join(5)
                    return
                with contextlib.suppress(OSError):
                    self.connection.send_bytes(b"")
        finally:
            self.kill()

    def kill(self) -> None:
        """End the child and its whole process group, which may have outlived it."""
        if self.process.pid is not None:
            ends = (os.killpg, os.kill) if self.process.is_alive() else (os.killpg,)
            for end in ends:
                with contextlib.suppress(OSError):
                    end(self.process.pid, signal.SIGKILL)
            self.process.join(5)
        self.connection.close()


@contextlib.contextmanager
def _no_main() -> Any:
    """Keep multiprocessing from running the parent's main script again in the child."""
    names = vars(sys.modules["__main__"])
    hidden: dict[str, Any] = {n: names.pop(n) for n in ("__file__", "__spec__") if n in names}
    names["__spec__"] = None
    try:
        yield
    finally:
        names.update(hidden)


def ask(module: str, payload: bytes, timeout_s: float = 120.0) -> bytes:
    """One question to a child that answers once and exits. Raises NothingWorks if it cannot."""
    found: list[bytes] = []

    def keep(message: bytes) -> bool:
        found.append(message)
        return True

    try:
        Child(module, payload).answers(timeout_s, keep)
    except Gone as gone:
        why = gone.words or f"exit code {gone.code}"
        raise NothingWorks(
            f"The devices here could not be examined: {why}. If torch or torchvision is named, "
            "check that it imports."
        ) from gone
    except Late as late:
        raise NothingWorks(f"Looking at the devices took more than {timeout_s:g} s.") from late
    return found[0]
