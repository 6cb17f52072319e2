"""A worker that takes one sample each time it is asked. Started by overhead.py."""

from __future__ import annotations

import json
import os
from multiprocessing.connection import Connection

import msgspec

from bench import cache, workload
from bench.measure import Loop
from bench.schema import BUDGETS, Case

STEPS = 20  # the same in both workers: a longer sample is a faster one


def main(connection: Connection, payload: bytes) -> None:
    # Both arms of a pair take turns on one core: two cores of a virtual machine differ by more
    # (seen: 10 %) than what is to be shown.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    work = workload.compose(msgspec.json.decode(payload, type=Case), cache.passing())
    loop = Loop(work.device, BUDGETS["quick"])
    loop.timed(work.step, 20)
    connection.send_bytes(b"warm")
    while connection.recv_bytes():
        loop.timed(work.step)  # the other worker has had the cache
        seconds = loop.timed(work.step, STEPS) / STEPS
        connection.send_bytes(json.dumps(seconds).encode())
