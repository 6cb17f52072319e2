"""A composed case → what was measured of it, and what to know about the numbers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import determinism, forecast, peaks, proof, sensors, sentinel, workload
from bench.cache import Cache
from bench.devices import Device, default_threads, open_device
from bench.energy import Meter, Spent, Unmetered
from bench.measure import Estimate, Loop, Tell, Throughput
from bench.measurement import Measurement
from bench.messages import Order
from bench.precisions import PRECISIONS
from bench.schema import Case
from bench.stats.series import percentile
from bench.watch import Watch

# Fewest requests from which a percentile is stated: 4 ÷ (1 - share), and 8 for the median.
PERCENTILES = {
    "p50": (0.5, 8),
    "p90": (0.9, 40),
    "p95": (0.95, 80),
    "p99": (0.99, 400),
    "p999": (0.999, 4000),
}
ROOM_FOR_FORECAST_S = 30.0


def observe(
    order: Order, tell: Tell, announce: Callable[[int], None] = lambda _: None
) -> tuple[Measurement, list[str]]:
    """Compose, time, and gather what was seen and the codes of what to know about it.

    `announce` is told how many steps of throughput come next, and 0 at their end.
    """
    case = order.case
    unsettled = determinism.listen()
    every_thread = default_threads()  # before a case sets its own number
    guards = order.purpose == sentinel.PURPOSE
    work = _sentinel(case) if guards else workload.compose(case, built(order))
    spent = Spent(_meter(work.device, case), order.idle_power_w)
    watch = Watch(sensors.HostWatch(order.root), work.device, spent)
    loop = Loop(work.device, order.budget, tell, watch=watch, announce=announce)
    peak_known = sensors.reset_peak_host_memory()
    found: dict[str, Any] = {"setup_s": time.monotonic() - order.started, "build_s": work.build_s}
    warnings: list[str] = []
    if case.full:
        found |= fully(loop, work, case, spent)
        warnings += ["contaminated"] if 2 * found["disturbed_samples"] > case.epochs else []
    else:
        facts, codes = sampled(loop, work, case, spent)
        found |= facts
        warnings += codes
    found |= interference_facts(watch.host.seen)
    found["device_windows"] = watch.device_windows()
    warnings += ["device_waited"] if watch.waited else []
    found["peak_device_memory_bytes"] = work.device.peak_memory_bytes()
    found["peak_device_reserved_bytes"] = work.device.peak_reserved_bytes()
    if work.request is not None:
        found |= latency_facts(loop, work)
        warnings += ["few_requests"] if found["latency_p99_ms"] is None else []
        disturbed = sum(map(bool, found["latency_marks"]))
        warnings += ["latency_contaminated"] if 2 * disturbed > len(found["latency_marks"]) else []
    warnings += ["power_limited"] if watch.capped else []
    if peak_known:
        found["peak_host_memory_bytes"] = sensors.peak_host_memory_bytes()
    if order.purpose == sentinel.PURPOSE:
        found |= host_peaks(work.device, every_thread, watch)
    else:
        found |= needs(order, work.device, found["throughput_images_per_s"])
        found |= proof.fidelity_facts(work, order, found["throughput_images_per_s"])
    found |= proof.results(case, work) | proof.corrupt_facts(work)
    found["nondeterministic_operations"] = sorted(unsettled) or None
    return Measurement(**found), warnings + case_warnings(case, work, found)


def _meter(device: Device, case: Case) -> Meter:
    """One device's joules are not those of several."""
    return device.meter() if case.world_size == 1 else Unmetered("several devices work together")


def sampled(
    loop: Loop, work: workload.Work, case: Case, spent: Spent
) -> tuple[dict[str, Any], list[str]]:
    """Throughput in samples, its joules, and where a fed step's seconds go."""
    taken = loop.throughput(work.step, work.cycle)
    loop.announce(0)
    target = loop.budget.target_ci
    estimate = taken.estimate(target)
    found = spent.facts(taken.kept, len(taken.kept_steps) * case.global_batch_size)
    found |= throughput_facts(taken, estimate, case.global_batch_size, target)
    if work.first_step_s is not None:
        found["first_step_s"] = work.first_step_s
    if work.fed is not None:
        found |= feeding_facts(loop, work, taken, estimate, case)
    return found, throughput_warnings(taken, estimate, target)


def follow(order: Order, announced: Callable[[], int]) -> None:
    """Do the steps another rank measures, until it announces none."""
    work = workload.compose(order.case, built(order))
    loop = Loop(work.device, order.budget)
    while (count := announced()) > 0:
        loop.timed(work.step, count)


def built(order: Order) -> Cache:
    """What earlier cases have built."""
    threads = order.case.threads or default_threads()
    return Cache(Path(order.cache), threads=threads, scratch=Path(order.scratch))


def _sentinel(case: Case) -> workload.Work:
    device = open_device(case.device)
    settings = device.prepare(case, PRECISIONS[case.precision])
    return workload.Work(
        device=device,
        step=sentinel.make_step(),
        settings=settings,
        weights_sha256=None,
        build_s=None,
    )


PEAK_TRIES = 3


def host_peaks(device: Device, threads: int, watch: Watch) -> dict[str, Any]:
    """The fastest matrix products the host can do with so many threads.

    None where others took part of the machine each time: a peak that is not one would
    make every share of it too large.
    """
    torch.set_num_threads(threads)
    kinds = {"gemm_fp32_tflops": torch.float32}
    if device.emulates(PRECISIONS["amp-bf16"]) is None:
        kinds["gemm_bf16_tflops"] = torch.bfloat16
    for _ in range(PEAK_TRIES):
        watch.restart()
        found = {name: sentinel.peak_tflops(kind) for name, kind in kinds.items()}
        if watch.since_last() is None:
            return found
    return {}


def needs(order: Order, device: Device, images_per_s: float) -> dict[str, Any]:
    """What was forecast, and the share of the device's peak that was reached."""
    case, precision = order.case, PRECISIONS[order.case.precision]
    left_s = order.started + order.budget.timeout_s - time.monotonic()
    # Seconds of work for a fact about the case: never worth its record.
    expected = forecast.quietly(case, device) if left_s > ROOM_FOR_FORECAST_S else None
    if expected is None:
        return {}
    key = peaks.unit(precision, device.autocast_dtype(precision))
    peak = peaks.published(order.device_name or "", key) or order.host_peaks.get(key)
    achieved = expected.flops_per_image * images_per_s / case.world_size / 1e12
    if peak is not None and achieved > peak.tflops:
        peak = None  # then that was not the peak; a share over 100 % says nothing
    return {
        "forecast_peak_bytes": expected.peak_bytes,
        "flops_per_image": expected.flops_per_image,
        "achieved_tflops": achieved,
        "peak_tflops": peak and peak.tflops,
        "peak_share": achieved / peak.tflops if peak else None,
        "peak_source": peak and peak.source,
    }


def case_warnings(case: Case, work: workload.Work, found: dict[str, Any]) -> list[str]:
    """What to know about this kind of case, whatever was measured."""
    precision = PRECISIONS[case.precision]
    conditions = {
        "fidelity_unproven": precision.kind != "float" and case.weights == "random",
        "emulated": work.device.emulates(precision) is not None,
        "pretend_data": work.pretend_data and case.loader_workers is not None,
        "no_test_images": case.full and work.evaluate is None,
        "updates_skipped": work.trainer is not None and work.trainer.updates_skipped,
        "corrupt_images": bool(found.get("corrupt_image_count")),
        "not_deterministic": bool(found["nondeterministic_operations"]),
    }
    return [code for code, holds in conditions.items() if holds]


def throughput_facts(
    taken: Throughput, estimate: Estimate, images: int, target: float
) -> dict[str, Any]:
    """Samples and the estimate made of them."""
    interval = estimate.interval
    return {
        "first_step_s": taken.first_step_s,
        "samples_s": taken.samples_s,
        **device_times(taken),
        "sample_marks": taken.marks,
        "steps_per_sample": taken.steps_per_sample,
        "warmup_samples": taken.warmup_samples,
        "disturbed_samples": taken.left_out,
        "kept_samples": len(taken.kept_s),
        "stop_reason": taken.stop_reason,
        "target_reached": interval is not None and interval.relative_half_width <= target,
        "throughput_images_per_s": images / estimate.seconds_per_step,
        # A lower end at or under zero seconds has no image rate: then there is no upper end.
        "throughput_ci_low": images / interval.high if interval else None,
        "throughput_ci_high": images / interval.low if interval and interval.low > 0 else None,
    }


def device_times(taken: Throughput) -> dict[str, Any]:
    """The device's own clock, where it has one."""
    if not taken.device_steps_s:
        return {}
    steady = taken.device_steps_s[taken.warmup_samples * taken.steps_per_sample :]
    return {
        "device_samples_s": taken.device_samples_s,
        "device_step_p50_ms": 1000 * percentile(steady, 0.5),
    }


def interference_facts(seen: list[sensors.Seen]) -> dict[str, Any]:
    """What the host did beside us, window by window and in all."""

    def every(values: list[float | None]) -> list[float] | None:
        known = [v for v in values if v is not None]
        return known if len(known) == len(values) else None

    return {
        "window_s": [w.seconds for w in seen],
        "window_foreign_cpu_s": every([w.foreign_s for w in seen]),
        "window_steal_s": every([w.steal_s for w in seen]),
        "window_memory_stall_s": every([w.memory_stall_s for w in seen]),
        "major_faults": sum(w.major_faults for w in seen),
        "involuntary_switches": sum(w.involuntary_switches for w in seen),
    }


def throughput_warnings(taken: Throughput, estimate: Estimate, target: float) -> list[str]:
    """What to know about these samples."""
    codes = [*estimate.codes]
    codes += ["clocks_disagree"] if taken.clocks_disagree else []
    if taken.left_out and not taken.mostly_disturbed:
        codes.append("samples_left_out")
    if estimate.interval is None:
        codes += [] if estimate.codes else ["too_few_samples"]
    elif estimate.interval.relative_half_width > target:
        codes.append("target_not_reached")
    return codes


def feeding_facts(
    loop: Loop, work: workload.Work, taken: Throughput, estimate: Estimate, case: Case
) -> dict[str, Any]:
    """Where a step's seconds go, one epoch boundary, and the projection to whole epochs."""
    assert work.fed is not None
    kept = taken.kept_steps
    wait, copy, compute = work.fed.split(kept)
    images = len(work.batches.dataset)
    boundary = max(0.0, epoch_boundary_s(loop, work.short) - wait)
    found: dict[str, Any] = {
        "data_wait_s": wait,
        "copy_s": copy,
        "compute_s": compute,
        "epoch_images": images,
        "epoch_boundary_s": boundary,
    }
    if case.epochs is not None:
        epochs, steps = case.epochs, images / case.global_batch_size
        interval = estimate.interval
        # Boundaries that fell into the samples are in the mean already.
        seen = work.fed.boundaries(kept) * boundary / len(kept)

        def whole(seconds_per_step: float) -> float:
            return epochs * ((seconds_per_step - seen) * steps + boundary)

        found["projected_s"] = whole(estimate.seconds_per_step)
        found["projected_ci_low_s"] = whole(interval.low) if interval else None
        found["projected_ci_high_s"] = whole(interval.high) if interval else None
    return found


def epoch_boundary_s(loop: Loop, batches: Any) -> float:
    """Seconds from the end of an epoch to the first batch of the next, seen once."""
    for _ in batches:
        pass
    return loop.timed(lambda: void(next(iter(batches))))


def fully(loop: Loop, work: workload.Work, case: Case, spent: Spent) -> dict[str, Any]:
    """Train all epochs, and test after each where there are test images; tests cost no joules."""
    assert work.fed is not None
    assert case.epochs is not None
    evaluate, accuracies = work.evaluate, list[float]()

    def test() -> None:
        if evaluate is not None:
            accuracies.append(evaluate())

    taken, steps, marks = loop.epochs(work.fed.epoch, test, case.epochs)
    wait, copy, compute = work.fed.split(range(len(work.fed.marks)))
    return spent.facts(range(len(taken)), work.fed.images) | {
        "train_s": sum(taken),
        "epoch_train_s": taken,
        "test_accuracy": accuracies or None,
        "samples_s": taken,
        "sample_marks": marks,
        "disturbed_samples": sum(map(bool, marks)),  # an epoch is never left out of a whole job
        "kept_samples": len(taken),
        "steps_per_sample": steps,
        "warmup_samples": 0,
        "stop_reason": "all_epochs",
        "epoch_images": work.fed.images // case.epochs,
        "throughput_images_per_s": work.fed.images / sum(taken),
        "data_wait_s": wait,
        "copy_s": copy,
        "compute_s": compute,
    }


def latency_facts(loop: Loop, work: workload.Work) -> dict[str, Any]:
    """Every request, and the percentiles there are enough of them for."""
    assert work.request is not None
    request = work.request
    requests = loop.latency(lambda: void(request()))
    taken = requests.samples_s
    found: dict[str, Any] = {
        "first_request_s": requests.first_s,
        "latency_samples_s": taken,
        "latency_marks": requests.marks,
    }
    if work.spans and len(taken) >= PERCENTILES["p50"][1]:
        # The first one is the first request, which stands apart.
        spans = [work.device.seconds(*span) for span in work.spans[1:]]
        found["latency_device_p50_ms"] = 1000 * percentile(spans, 0.5)
    for name, (share, least) in PERCENTILES.items():
        enough = len(taken) >= least
        found[f"latency_{name}_ms"] = 1000 * percentile(taken, share) if enough else None
    return found


def void(_: object) -> None:
    """A request's answer is not needed; that it arrived is."""
