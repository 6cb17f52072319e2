"""A worker that takes one sample each time it is asked. Started by overhead.py."""

from __future__ import annotations

import json
from multiprocessing.connection import Connection

import msgspec

from bench import workload
from bench.measure import Loop, steps_per_sample
from bench.schema import BUDGETS, Case


def main(connection: Connection, payload: bytes) -> None:
    work = workload.compose(msgspec.json.decode(payload, type=Case))
    loop = Loop(work.device, BUDGETS["quick"])
    loop.timed(work.step, 20)
    count = steps_per_sample(loop.timed(work.step), 1)
    connection.send_bytes(b"warm")
    while connection.recv_bytes():
        seconds = loop.timed(work.step, count) / count
        connection.send_bytes(json.dumps(seconds).encode())
