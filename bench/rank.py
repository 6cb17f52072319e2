"""One rank of a case on several devices; torchrun runs it as `python -m bench.rank FOLDER`."""

from __future__ import annotations

import os
import sys
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
from bench.processes import die_with_parent
from bench.worker import failed, telling


def main(folder: Path) -> None:
    """Measure as rank 0, or do the steps rank 0 announces. Leaves word of any failure."""
    die_with_parent()
    rank = int(os.environ["RANK"])
    order = msgspec.json.decode((folder / ranks.ORDER).read_bytes(), type=Order)
    device = open_device(order.case.device)
    case = msgspec.structs.replace(order.case, device=device.peer(rank))
    order = msgspec.structs.replace(order, case=case)
    try:
        distributed.init_process_group(open_device(case.device).backend)
        # Counts travel apart from the gradients, on the host: rank 0 never waits for a device.
        side: Any = distributed.new_group(backend="gloo")
        if rank == 0:
            lead(order, folder, side)
        else:
            follow(order, lambda: int(_shared(0, side)))
        distributed.destroy_process_group()
    except Refused as refused:
        ranks.complain(folder, rank, Outcome(status="skipped", reason=str(refused)))
        sys.exit(1)
    except Exception as error:  # a rank's failure is the case's: it becomes a record
        traceback.print_exc()
        ranks.complain(folder, rank, failed(order, error))
        sys.exit(1)


def lead(order: Order, folder: Path, side: distributed.ProcessGroup) -> None:
    """Measure, and say what was measured."""
    with Client(str(folder / ranks.SOCKET), "AF_UNIX") as worker:
        measurement, codes = observe(
            order, telling(order, worker), lambda count: void(_shared(count, side))
        )
        outcome = Outcome(status="measured", measurement=measurement, warnings=codes)
        worker.send_bytes(msgspec.json.encode(outcome))


def _shared(count: int, side: distributed.ProcessGroup) -> float:
    """Rank 0's number, on every rank."""
    number = torch.tensor([count])
    distributed.broadcast(number, src=0, group=side)
    return number.item()


def void(_: object) -> None:
    """Only that it was said matters."""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
