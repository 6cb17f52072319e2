"""The child process: a Case comes in, an Outcome goes out. Never imported by the parent."""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import psutil

from bench import sensors, workload
from bench.errors import Refused
from bench.loading import die_with_parent
from bench.measure import Live, Loop, Throughput
from bench.messages import Order, Outcome, Progress
from bench.precisions import PRECISIONS
from bench.schema import Case, Measurement
from bench.stats.series import percentile

# Fewest requests from which a percentile is stated.
PERCENTILES = {"p50": (0.5, 8), "p90": (0.9, 40), "p95": (0.95, 80), "p99": (0.99, 400)}
NAMES_KEPT = 20  # corrupt images named in a record


def main(connection: Connection, payload: bytes) -> None:
    """Run one order and answer with an Outcome. Any exception becomes one."""
    settle_in()
    order = msgspec.json.decode(payload, type=Order)
    with redirected(order.log):
        try:
            outcome = Outcome(status="measured", **run(order, connection))
        except Refused as refused:
            # A loader's worker wraps the message in its traceback; the end is ours.
            reason = str(refused).rpartition("Refused: ")[2].strip()
            outcome = Outcome(status="skipped", reason=reason)
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


def settle_in() -> None:
    """A process group of its own, first to be killed when memory runs out, dead with its parent."""
    os.setpgid(0, 0)
    die_with_parent()
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
        return Outcome(status="oom", reason=message)
    return Outcome(status="failed", reason=f"{type(error).__name__}: {message}")


def run(order: Order, connection: Connection) -> dict[str, Any]:
    """Compose, time, and gather what was seen."""
    case, budget = order.case, order.budget
    work = workload.compose(case)

    def tell(live: Live) -> None:
        progress = Progress(
            images_per_s=case.global_batch_size / live.seconds_per_step,
            relative_half_width=live.relative_half_width,
            left_s=live.left_s,
        )
        connection.send_bytes(msgspec.json.encode(progress))
        connection.recv_bytes()  # the line is redrawn now, not during the next sample

    loop = Loop(work.device, budget, tell)
    sensors.reset_peak_host_memory()
    found: dict[str, Any] = {"setup_s": time.time() - order.started, "build_s": work.build_s}
    warnings: list[str] = []
    if case.full:
        found |= fully(loop, work, case)
    else:
        taken = loop.throughput(work.step, work.cycle)
        found |= throughput_facts(taken, case.global_batch_size)
        warnings += throughput_warnings(taken, found, budget.target_ci)
        if work.fed is not None:
            found |= feeding_facts(loop, work, taken, case)
    found["peak_device_memory_bytes"] = work.device.peak_memory_bytes()
    if work.request is not None:
        found |= latency_facts(loop, work)
        warnings += ["few_requests"] if found["latency_p99_ms"] is None else []
    found["peak_host_memory_bytes"] = sensors.peak_host_memory_bytes()
    found |= results(work)
    if PRECISIONS[case.precision].kind == "int8" and case.weights == "random":
        warnings.append("fidelity_unproven")
    if work.device.emulates(PRECISIONS[case.precision]):
        warnings.append("emulated")
    if work.pretend_data and case.loader_workers is not None:
        warnings.append("pretend_data")
    if found.get("corrupt_image_count"):
        warnings.append("corrupt_images")
    found["loader_workers_used"] = case.loader_workers
    return {"measurement": Measurement(**found), "warnings": warnings}


def throughput_facts(taken: Throughput, images: int) -> dict[str, Any]:
    """Samples and the estimate made of them."""
    mean, interval = taken.seconds_per_step()
    return {
        "first_step_s": taken.first_step_s,
        "samples_s": taken.samples_s,
        "steps_per_sample": taken.steps_per_sample,
        "warmup_samples": taken.warmup_samples,
        "stop_reason": taken.stop_reason,
        "throughput_images_per_s": images / mean,
        # A lower end at or under zero seconds has no image rate: then there is no upper end.
        "throughput_ci_low": images / interval.high if interval else None,
        "throughput_ci_high": images / interval.low if interval and interval.low > 0 else None,
    }


def throughput_warnings(taken: Throughput, found: dict[str, Any], target: float) -> list[str]:
    """What to know about these samples."""
    codes = [] if taken.settled else ["not_steady"]
    low, high = found["throughput_ci_low"], found["throughput_ci_high"]
    if low is None or high is None:
        codes.append("too_few_samples")
    elif (high - low) / 2 > target * found["throughput_images_per_s"]:
        codes.append("target_not_reached")
    return codes


def feeding_facts(loop: Loop, work: workload.Work, taken: Throughput, case: Case) -> dict[str, Any]:
    """Where a step's seconds go, one epoch boundary, and the projection to whole epochs."""
    assert work.fed is not None
    work.device.synchronize()
    split = work.fed.split(taken.warmup_steps)
    wait, copy, compute = split or (None, None, None)
    images = len(work.batches.dataset)
    boundary = max(0.0, epoch_boundary_s(loop, work.short) - (wait or 0.0))
    found: dict[str, Any] = {
        "data_wait_s": wait,
        "copy_s": copy,
        "compute_s": compute,
        "epoch_images": images,
        "epoch_boundary_s": boundary,
        **corrupt_facts(work),
    }
    epochs = case.epochs
    if epochs is not None:
        mean, interval = taken.seconds_per_step()

        def whole(seconds_per_step: float) -> float:
            return epochs * (seconds_per_step * images / case.batch_size + boundary)

        found["projected_s"] = whole(mean)
        found["projected_ci_low_s"] = whole(interval.low) if interval else None
        found["projected_ci_high_s"] = whole(interval.high) if interval else None
    return found


def epoch_boundary_s(loop: Loop, batches: Any) -> float:
    """Seconds from the end of an epoch to the first batch of the next, seen once."""
    for _ in batches:
        pass
    return loop.timed(lambda: void(next(iter(batches))))


def corrupt_facts(work: workload.Work) -> dict[str, Any]:
    """Names of images that could not be decoded."""
    names = sorted(set(work.fed.corrupt)) if work.fed else []
    return {"corrupt_images": names[:NAMES_KEPT] or None, "corrupt_image_count": len(names)}


def fully(loop: Loop, work: workload.Work, case: Case) -> dict[str, Any]:
    """Train all epochs and test after each."""
    assert work.epoch is not None
    assert work.evaluate is not None
    assert case.epochs is not None
    evaluate, accuracies = work.evaluate, list[float]()
    taken, steps = loop.epochs(work.epoch, lambda: accuracies.append(evaluate()), case.epochs)
    images = len(work.batches.dataset)
    return {
        "train_s": sum(taken),
        "epoch_train_s": taken,
        "test_accuracy": accuracies,
        "samples_s": taken,
        "steps_per_sample": steps,
        "warmup_samples": 0,
        "stop_reason": "all_epochs",
        "epoch_images": images,
        "throughput_images_per_s": images / statistics.fmean(taken),
        **corrupt_facts(work),
    }


def latency_facts(loop: Loop, work: workload.Work) -> dict[str, Any]:
    """Every request, and the percentiles there are enough of them for."""
    assert work.request is not None
    request = work.request
    first, taken = loop.latency(lambda: void(request()))
    found: dict[str, Any] = {"first_request_s": first, "latency_samples_s": taken}
    for name, (share, least) in PERCENTILES.items():
        enough = len(taken) >= least
        found[f"latency_{name}_ms"] = 1000 * percentile(taken, share) if enough else None
    return found


def void(_: object) -> None:
    """A request's answer is not needed; that it arrived is."""


def results(work: workload.Work) -> dict[str, Any]:
    """The numerical fingerprint and the proof of what ran."""
    import torch

    found: dict[str, Any] = {
        "weights_sha256": work.weights_sha256,
        "settings": work.settings,
        "threads_used": torch.get_num_threads(),
    }
    if work.trainer is not None and work.trainer.early:
        losses = [float(loss) for loss in work.trainer.early]
        found |= {"first_loss": losses[0], "last_loss": losses[-1], "last_loss_step": len(losses)}
    if work.forward is not None and work.request is not None:
        logits = work.request().float()
        found |= {"logits_mean": float(logits.mean()), "logits_std": float(logits.std())}
        evidence = work.forward.evidence()
        found |= {
            "int8_mac_share": evidence.int8_mac_share,
            "model_bytes": evidence.model_bytes,
        }
    return found
