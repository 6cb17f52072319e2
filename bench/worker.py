"""The child process: a Case comes in, an Outcome goes out. Never imported by the parent."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import psutil

from bench import forecast, ranks, sensors
from bench.errors import Refused
from bench.measure import Live, Tell
from bench.measurement import Measurement
from bench.messages import Order, Outcome, Progress
from bench.observe import observe
from bench.schema import Case


def main(connection: Connection, payload: bytes) -> None:
    """Run one order and answer with an Outcome. Any exception becomes one."""
    settle_in()
    order = msgspec.json.decode(payload, type=Order)
    with redirected(order.log):
        try:
            outcome = measured(order, connection)
        except Refused as refused:
            outcome = skipped(refused)
        except Exception as error:  # a case's failure is a result: it becomes a record
            traceback.print_exc()
            outcome = failed(order, error)
        connection.send_bytes(msgspec.json.encode(outcome))
        connection.close()
        sys.stdout.flush()
        sys.stderr.flush()
    # Skip interpreter shutdown: nothing of this process is needed any more, and
    # tearing down loaders and devices can hang.
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(0)


def skipped(refused: Refused) -> Outcome:
    """A loader's worker wraps the message in its traceback; the end is ours."""
    return Outcome(status="skipped", reason=str(refused).rpartition("Refused: ")[2].strip())


def measured(order: Order, connection: Connection) -> Outcome:
    """By this process, or by one process a device."""
    if order.case.world_size > 1:
        return ranks.run(order, connection)
    measurement, codes = observe(order, telling(order, connection))
    return Outcome(status="measured", measurement=measurement, warnings=codes)


def settle_in() -> None:
    """A process group of its own, and the first to be killed when memory runs out."""
    os.setpgid(0, 0)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


@contextlib.contextmanager
def redirected(log: str) -> Iterator[None]:
    """Send what libraries print to a file, so that it cannot tear the progress line."""
    with open(log, "wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    yield


def failed(order: Order, error: Exception) -> Outcome:
    """Sort an error into oom or failed."""
    from bench.devices import open_device

    message = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    try:
        kind = open_device(order.case.device).classify(error)
    except Exception:  # the device itself is gone: the first error says why
        kind = "fatal"
    if kind == "oom":
        return exhausted(order.case, message)
    return Outcome(status="failed", reason=f"{type(error).__name__}: {message}")


def exhausted(case: Case, message: str) -> Outcome:
    """What a case held when its memory ran out, and what it could have had."""
    from bench.devices import open_device

    device = open_device(case.device)
    held = device.peak_memory_bytes()
    if held is None:  # its memory is the host's
        held = sensors.peak_host_memory_bytes()
    limit = device.memory_limit_bytes()
    device.release()
    expected = forecast.quietly(case, device)
    of = ""
    if held is not None and limit is not None:
        of = f"; it held {held / 2**20:,.0f} of {limit / 2**20:,.0f} MiB"
    return Outcome(
        status="oom",
        reason=f"batch {case.batch_size} does not fit{of}: {message}",
        measurement=Measurement(
            oom_allocated_bytes=held,
            oom_limit_bytes=limit,
            forecast_peak_bytes=expected.peak_bytes if expected else None,
        ),
    )


def telling(order: Order, connection: Connection) -> Tell:
    """Progress for the parent: the line is redrawn now, while the worker waits for the answer."""

    def tell(live: Live) -> None:
        progress = Progress(
            images_per_s=order.case.global_batch_size / live.seconds_per_step,
            relative_half_width=live.relative_half_width,
            left_s=live.left_s,
        )
        connection.send_bytes(msgspec.json.encode(progress))
        connection.recv_bytes()

    return tell
