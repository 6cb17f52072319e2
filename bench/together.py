"""What a rank does: rank 0 measures, the others do the steps it announces."""

from __future__ import annotations

import traceback
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import distributed

from bench import ranks
from bench.devices import open_device
from bench.errors import Refused
from bench.messages import Order, Outcome
from bench.observe import follow, observe
from bench.worker import failed, skipped, telling


def work(folder: Path, rank: int) -> int:
    """The exit code of this rank. Leaves word of any failure."""
    order = msgspec.json.decode((folder / ranks.ORDER).read_bytes(), type=Order)
    device = open_device(order.case.device)
    case = msgspec.structs.replace(order.case, device=device.peer(rank))
    order = msgspec.structs.replace(order, case=case)
    try:
        distributed.init_process_group(device.backend)
        # Counts travel apart from the gradients, on the host: rank 0 never waits for a device.
        side: Any = distributed.new_group(backend="gloo")
        if rank == 0:
            lead(order, folder, side)
        else:
            follow(order, lambda: _shared(0, side))
        distributed.destroy_process_group()
    except Refused as refused:
        ranks.complain(folder, rank, skipped(refused))
        return 1
    except Exception as error:  # a rank's failure is the case's: it becomes a record
        traceback.print_exc()
        ranks.complain(folder, rank, failed(order, error))
        return 1
    return 0


def lead(order: Order, folder: Path, side: Any) -> None:
    """Measure, and say what was measured."""

    def announce(count: int) -> None:
        _shared(count, side)

    with Client(str(folder / ranks.SOCKET), "AF_UNIX") as worker:
        measurement, codes = observe(order, telling(order, worker), announce)
        outcome = Outcome(status="measured", measurement=measurement, warnings=codes)
        worker.send_bytes(msgspec.json.encode(outcome))


def _shared(count: int, side: Any) -> int:
    """Rank 0's number, on every rank."""
    number = torch.tensor([count])
    distributed.broadcast(number, src=0, group=side)
    return int(number.item())
