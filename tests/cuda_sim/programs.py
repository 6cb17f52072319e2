"""What the tests run on simulated GPUs.

Each function runs in a process of its own that test_cuda_sim.py starts, and
returns what it saw as plain data. They use torch and pynvml as any program
would; only `fork_with` knows about the simulation.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
import warnings


def error_of(function, *arguments):
    """The class name and the first line of what `function` raises, if it does."""
    try:
        function(*arguments)
    except Exception as error:
        return [type(error).__name__, (str(error).splitlines() or [""])[0]]
    return None


def fork_with(variants, program):
    """Run `program` under each variant of the environment, one child each.

    The simulation reads its settings at the first CUDA or NVML call. A child
    forked before that can therefore have its own, and importing torch, by far
    the slowest step, is done once.
    """
    import torch  # noqa: F401

    results = {}
    for name, variables in variants.items():
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.environ.update(variables)
                with os.fdopen(writer, "w") as stream:
                    json.dump(program(), stream)
            except BaseException:
                traceback.print_exc()
            # Never return: the code after this belongs to the parent.
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as stream:
            text = stream.read()
        os.waitpid(child, 0)
        assert text, f"the child for {name} died"
        results[name] = json.loads(text)
    return results


# --- identity -----------------------------------------------------------------


def describe_first_gpu():
    import pynvml
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        properties = torch.cuda.get_device_properties(0)
    pynvml.nvmlInit()
    return {
        "name": properties.name,
        "capability": [properties.major, properties.minor],
        "memory": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "free": torch.cuda.mem_get_info(0)[0],
        "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
        "tf32": torch.cuda.is_tf32_supported(),
        "in_arch_list": f"sm_{properties.major}{properties.minor}" in torch.cuda.get_arch_list(),
        "warnings": [str(entry.message) for entry in caught],
        "kernel_error": error_of(launch_and_wait),
        "nvml_memory": pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).total,
    }


def launch_and_wait():
    import torch

    tensor = torch.empty(8, device="cuda")
    tensor.add_(1)
    torch.cuda.synchronize()


def describe_profiles(variants):
    return fork_with(variants, describe_first_gpu)


def map_to_nvml():
    """For each CUDA device: its name and the NVML indices that UUID and PCI address lead to."""
    import pynvml
    import torch

    pynvml.nvmlInit()
    mapping = []
    for ordinal in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(ordinal)
        by_uuid = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}")
        by_pci = pynvml.nvmlDeviceGetHandleByPciBusId(
            f"{properties.pci_domain_id:08x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"
        )
        mapping.append(
            {
                "name": properties.name,
                "nvml_name": pynvml.nvmlDeviceGetName(by_uuid),
                "index_by_uuid": pynvml.nvmlDeviceGetIndex(by_uuid),
                "index_by_pci": pynvml.nvmlDeviceGetIndex(by_pci),
            }
        )
    return mapping


def map_variants(variants):
    return fork_with(variants, map_to_nvml)


def start_cuda():
    import pynvml
    import torch

    warnings.simplefilter("ignore")
    return {
        "available": torch.cuda.is_available(),
        "count": torch.cuda.device_count(),
        "cuda_error": error_of(launch_and_wait),
        "nvml_error": error_of(pynvml.nvmlInit),
    }


def start_variants(variants):
    return fork_with(variants, start_cuda)


# --- time ---------------------------------------------------------------------


def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def event_ms(work):
    """Time between two events around `work`.

    The stream is given something to do first, so that the host is ahead of it
    and its own delays do not show up as gaps.
    """
    import torch

    head_start = torch.empty(8, device="cuda")
    start = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    launches(50, head_start)
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def launches(count, tensor):
    for _ in range(count):
        tensor.add_(1)


def time_kernels():
    import torch

    tensor = torch.empty(1024, device="cuda")
    launches(3, tensor)
    torch.cuda.synchronize()

    launching = timed(lambda: launches(50, tensor))
    waiting = timed(torch.cuda.synchronize)

    start = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    launches(50, tensor)
    start.record()
    launches(50, tensor)
    end.record()
    finished = end.query()
    too_early = error_of(start.elapsed_time, end)
    end.synchronize()

    return {
        "launching_s": launching,
        "launched_and_waited_s": launching + waiting,
        "finished_before_waiting": finished,
        "elapsed_too_early": too_early,
        "event_ms": start.elapsed_time(end),
    }


def fill_launch_queue():
    """Seconds that 1100 launches take, 76 more than CUDA lets pile up."""
    import torch

    tensor = torch.empty(8, device="cuda")
    torch.cuda.synchronize()
    return timed(lambda: launches(1100, tensor))


def overlap_streams():
    """Two streams get 200 ms of work each; for how long do both work?"""
    import torch

    tensor = torch.empty(1024, device="cuda")
    torch.cuda.synchronize()
    spans = []
    for stream in (torch.cuda.Stream(), torch.cuda.Stream()):
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        with torch.cuda.stream(stream):
            start.record()
            launches(200, tensor)
            end.record()
        spans.append((start, end))
    default_stream_idle = torch.cuda.default_stream().query()
    torch.cuda.synchronize()
    (first_start, first_end), (second_start, second_end) = spans
    both_started = max(0.0, first_start.elapsed_time(second_start))
    one_ended = min(first_start.elapsed_time(first_end), first_start.elapsed_time(second_end))
    return {"default_stream_idle": default_stream_idle, "overlap_ms": one_ended - both_started}


def time_arithmetic():
    """Milliseconds of a convolution and a matrix product in three precisions."""
    import torch

    repeats = 5
    images = torch.zeros(8, 16, 32, 32, device="cuda")
    filters = torch.zeros(32, 16, 3, 3, device="cuda")
    matrix = torch.zeros(512, 512, device="cuda")
    halves = [images.half(), filters.half(), matrix.half()]

    def average_ms(function):
        function()  # the first call also creates plans and handles
        return event_ms(lambda: [function() for _ in range(repeats)]) / repeats

    def measure(inputs, weights, square):
        return {
            "convolution": average_ms(
                lambda: torch.nn.functional.conv2d(inputs, weights, padding=1)
            ),
            "product": average_ms(lambda: square @ square),
        }

    result = {}
    for name, tf32 in (("fp32", False), ("tf32", True)):
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
        result[name] = measure(images, filters, matrix)
    result["fp16"] = measure(*halves)
    return result


def capture_graph():
    import torch

    tensor = torch.empty(64, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launches(20, tensor)
    replay = event_ms(graph.replay)

    def synchronise_while_capturing():
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            tensor.sum().item()

    return {"replay_ms": replay, "error": error_of(synchronise_while_capturing)}


def copy_tensors():
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    values = torch.arange(1 << 20, dtype=torch.float32)
    pinned = values.pin_memory()
    pinned.to("cuda")
    torch.cuda.synchronize()
    pageable_copy = timed(lambda: values.to("cuda", non_blocking=True))
    torch.cuda.synchronize()
    pinned_copy = timed(lambda: pinned.to("cuda", non_blocking=True))
    pinned_wait = timed(torch.cuda.synchronize)

    loader = DataLoader(TensorDataset(values[:64]), batch_size=16, num_workers=1, pin_memory=True)
    return {
        "round_trip": bool(torch.equal(values.to("cuda").cpu(), values)),
        "pageable_s": pageable_copy,
        "pinned_s": pinned_copy,
        "pinned_and_waited_s": pinned_copy + pinned_wait,
        "loader_pins": [batch[0].is_pinned() for batch in loader],
    }


def call_unsupported():
    import torch

    matrix = torch.zeros(4, 4, device="cuda")
    return {
        "fft": error_of(torch.fft.fft, matrix),
        "inverse": error_of(torch.linalg.inv, matrix),
        "lstm": error_of(torch.nn.LSTM(4, 4).cuda),
        "usable_afterwards": error_of(launch_and_wait) is None,
    }


def default_gpu():
    """Everything that can share one process with fast kernels."""
    return {"copies": copy_tensors(), "unsupported": call_unsupported()}


def slow_gpu():
    """Everything that can share one process with kernels of 1 ms."""
    return {
        "kernels": time_kernels(),
        "full_queue_s": fill_launch_queue(),
        "streams": overlap_streams(),
        "arithmetic": time_arithmetic(),
        "graph": capture_graph(),
    }


# --- training and memory ------------------------------------------------------


def train_resnet50(precision):
    import torch
    import torchvision

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    model = torchvision.models.resnet50().cuda().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cuda", enabled=precision == "fp16")
    images = torch.randn(8, 3, 32, 32).pin_memory()
    labels = torch.randint(0, 1000, (8,))
    after_model = torch.cuda.memory_allocated()
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        inputs = images.to("cuda", non_blocking=True).to(memory_format=torch.channels_last)
        with torch.autocast("cuda", dtype=torch.float16, enabled=precision == "fp16"):
            logits = model(inputs)
            loss = torch.nn.functional.cross_entropy(logits, labels.cuda())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return {
        "logits": str(logits.dtype),
        "gradients": all(parameter.grad is not None for parameter in model.parameters()),
        "loss_is_number": isinstance(loss.item(), float),
        "after_model": after_model,
        "peak": peak,
        "peak_after_reset": torch.cuda.max_memory_allocated(),
        "allocated_after_reset": torch.cuda.memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
    }


def train_both():
    return {precision: train_resnet50(precision) for precision in ("fp32", "fp16")}


def run_out_of_memory():
    import pynvml
    import torch

    gib = 1 << 30
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    held = []
    try:
        while True:
            held.append(torch.empty(gib, dtype=torch.uint8, device="cuda"))
    except torch.OutOfMemoryError as error:
        message = str(error)
    gib_held = len(held)
    nvml_used = pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2).used
    processes = {
        entry.pid: entry.usedGpuMemory
        for entry in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    }
    failures = torch.cuda.memory_stats()["num_ooms"]
    held.clear()
    gc.collect()
    torch.cuda.empty_cache()
    free_after_recovery = torch.cuda.mem_get_info()[0]
    torch.empty(2 * gib, dtype=torch.uint8, device="cuda").add_(1)
    torch.cuda.synchronize()
    return {
        "message": message,
        "gib_held": gib_held,
        "nvml_used": nvml_used,
        "own_memory_in_nvml": processes.get(os.getpid()),
        "other_memory_in_nvml": processes.get(4242),
        "failures": failures,
        "free_after_recovery": free_after_recovery,
    }


def meet_sticky_error():
    import torch

    tensor = torch.empty(1024, device="cuda")
    launching = error_of(launches, 20, tensor)
    waiting = error_of(torch.cuda.synchronize)
    caught = None
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        caught = error
    return {
        "launching": launching,
        "waiting": waiting,
        "code": getattr(caught, "error_code", None),
        "is_accelerator_error": isinstance(caught, torch.AcceleratorError),
        "later_launch": error_of(launches, 1, tensor),
        "later_allocation": error_of(lambda: torch.empty(1 << 28, device="cuda")),
    }


def read_zero_memory():
    import torch

    garbage = torch.full((1 << 16,), 7.5)
    on_gpu = garbage.cuda()
    return {"sum": float(on_gpu.cpu().sum()), "nonzero": torch.nonzero(on_gpu).shape[0]}


# --- telemetry ----------------------------------------------------------------


def sample_telemetry(clock):
    """All telemetry at seconds 0 to 3 of the clock file, through pynvml."""
    import cuda_sim
    import pynvml

    samples = []
    cuda_sim.set_clock(clock, 0)
    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    for second in range(4):
        cuda_sim.set_clock(clock, second)
        utilization = pynvml.nvmlDeviceGetUtilizationRates(gpu)
        samples.append(
            {
                "gpu": utilization.gpu,
                "memory": utilization.memory,
                "clock": pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM),
                "temperature": pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU),
                "power": pynvml.nvmlDeviceGetPowerUsage(gpu),
                "energy": pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu),
                "reasons": pynvml.nvmlDeviceGetCurrentClocksEventReasons(gpu),
            }
        )
    return {
        "samples": samples,
        "power_limit": pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu),
        "max_clock": pynvml.nvmlDeviceGetMaxClockInfo(gpu, pynvml.NVML_CLOCK_SM),
        "driver": pynvml.nvmlSystemGetDriverVersion(),
        "fan": error_of(pynvml.nvmlDeviceGetFanSpeed, gpu),
    }


def look_at_mig():
    import pynvml

    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0)
    uuid = pynvml.nvmlDeviceGetUUID(instance)
    by_uuid = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    return {
        "mode": list(pynvml.nvmlDeviceGetMigMode(gpu)),
        "gpu_name": pynvml.nvmlDeviceGetName(gpu),
        "gpu_utilization": error_of(pynvml.nvmlDeviceGetUtilizationRates, gpu),
        "gpu_power": pynvml.nvmlDeviceGetPowerUsage(gpu),
        "uuid": uuid,
        "name": pynvml.nvmlDeviceGetName(by_uuid),
        "memory": pynvml.nvmlDeviceGetMemoryInfo(instance).total,
        "power": error_of(pynvml.nvmlDeviceGetPowerUsage, instance),
        "clock": error_of(pynvml.nvmlDeviceGetClockInfo, instance, pynvml.NVML_CLOCK_SM),
    }


def use_old_driver():
    import pynvml

    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    return {
        "event_reasons": error_of(pynvml.nvmlDeviceGetCurrentClocksEventReasons, gpu),
        "throttle_reasons": pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu),
        "driver": pynvml.nvmlSystemGetDriverVersion(),
    }


def lose_gpu(clock):
    import cuda_sim
    import pynvml

    cuda_sim.set_clock(clock, 0)
    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    before = pynvml.nvmlDeviceGetPowerUsage(gpu)
    cuda_sim.set_clock(clock, 5)
    return {
        "before": before,
        "after": error_of(pynvml.nvmlDeviceGetPowerUsage, gpu),
        "new_handle": error_of(pynvml.nvmlDeviceGetHandleByIndex, 0),
    }


def fail_one_query():
    import pynvml

    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    return {
        "power": error_of(pynvml.nvmlDeviceGetPowerUsage, gpu),
        "energy": error_of(pynvml.nvmlDeviceGetTotalEnergyConsumption, gpu),
        "mig": error_of(pynvml.nvmlDeviceGetMigMode, gpu),
        "clock": pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM),
    }


def tell_simulated():
    import cuda_sim

    return {"simulated": cuda_sim.is_simulated(), "profile": os.environ.get("CUDA_SIM_PROFILE")}


if __name__ == "__main__":
    # python programs.py NAME [JSON ARGUMENTS]: the result is the last line.
    program = globals()[sys.argv[1]]
    outcome = program(*json.loads(sys.argv[2]))
    print(json.dumps(outcome))
