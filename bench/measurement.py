"""What one case's process measured: the columns of a Record that come from the worker."""

from __future__ import annotations

from typing import Annotated

from msgspec import Struct

from bench.facts import doc


class DeviceWindows(Struct, frozen=True, kw_only=True):
    """What a device's driver said at the end of each window; null where it does not say."""

    window_clock_reasons: Annotated[
        list[str] | None,
        doc("what held the device's clocks down, each window: `power_cap+thermal_cap`, or empty"),
    ] = None
    window_utilization_percent: Annotated[
        list[float] | None, doc("share of the driver's last sampling period with a kernel running")
    ] = None
    window_sm_clock_mhz: Annotated[list[float] | None, doc("clock of the SMs, each window")] = None
    window_memory_clock_mhz: Annotated[
        list[float] | None, doc("clock of the device's memory, each window")
    ] = None
    window_power_w: Annotated[list[float] | None, doc("watts of the whole board, each window")] = (
        None
    )
    window_temperature_c: Annotated[
        list[float] | None, doc("degrees Celsius of the GPU, each window")
    ] = None
    memory_used_bytes: Annotated[
        int | None, doc("most device memory in use by all processes, by the driver's count")
    ] = None
    memory_own_bytes: Annotated[
        int | None, doc("most of it by the worker, CUDA context included; null where ids differ")
    ] = None
    memory_others_bytes: Annotated[
        int | None, doc("most of it by other processes; null where they cannot be told apart")
    ] = None
    pcie_generation_loaded: Annotated[
        int | None, doc("highest PCIe generation of the link in these windows")
    ] = None
    pcie_width_loaded: Annotated[int | None, doc("most lanes of the link in these windows")] = None
    telemetry_notes: Annotated[
        list[str] | None, doc("what the driver does not tell, and what it says instead")
    ] = None


class Measurement(Struct, frozen=True, kw_only=True):
    """What one case's process measured. What was not measured is null, never 0."""

    throughput_images_per_s: Annotated[
        float | None, doc("images ÷ total seconds of the steady samples, over all devices")
    ] = None
    throughput_ci_low: Annotated[
        float | None, doc("95 % interval within this one process, lower end, images/s")
    ] = None
    throughput_ci_high: Annotated[float | None, doc("the same, upper end")] = None
    latency_p50_ms: Annotated[float | None, doc("median request; from 8 requests on")] = None
    latency_p90_ms: Annotated[float | None, doc("90th percentile; from 40 requests on")] = None
    latency_p95_ms: Annotated[float | None, doc("95th percentile; from 80 requests on")] = None
    latency_p99_ms: Annotated[float | None, doc("99th percentile; from 400 requests on")] = None
    latency_p999_ms: Annotated[float | None, doc("99.9th percentile; from 4,000 requests on")] = (
        None
    )
    peak_host_memory_bytes: Annotated[
        int | None,
        doc("high-water mark of the worker and its loaders after set-up; of rank 0 only"),
    ] = None
    peak_device_memory_bytes: Annotated[
        int | None, doc("most memory allocated on the device from step 2 on")
    ] = None
    peak_device_reserved_bytes: Annotated[
        int | None, doc("most memory torch's allocator held on the device, used or not")
    ] = None
    setup_s: Annotated[float | None, doc("from start of the worker to its first step")] = None
    build_s: Annotated[
        float | None,
        doc(
            "a cold build: export, quantise, compile, capture; see build_cached. Null where what "
            "was kept had been built with another number of threads"
        ),
    ] = None
    build_cached: Annotated[
        bool | None,
        doc(
            "an earlier build's result was used; build_s is what it took then. Null: none is kept. "
            "Training compiles anew at its first step: false, and no build_s"
        ),
    ] = None
    calibrated_images: Annotated[
        int | None, doc("training images INT8 ranges were taken from, or QAT steps were made on")
    ] = None
    calibration_s: Annotated[
        float | None, doc("seconds of that, in build_s; with quantising where the engine does both")
    ] = None
    first_step_s: Annotated[float | None, doc("the first step, synchronised")] = None
    first_request_s: Annotated[float | None, doc("the first request of the latency protocol")] = (
        None
    )
    samples_s: Annotated[
        list[float] | None, doc("seconds of each throughput sample, warm-up first")
    ] = None
    device_samples_s: Annotated[
        list[float] | None,
        doc("the same samples by the device's own clock (events); null where it has none"),
    ] = None
    device_step_p50_ms: Annotated[
        float | None, doc("median step by the device's clock, without warm-up: not the throughput")
    ] = None
    warmup_samples: Annotated[
        int | None, doc("how many of samples_s, from the start, are warm-up")
    ] = None
    sample_marks: Annotated[
        list[str] | None,
        doc(
            "what disturbed each of samples_s, empty if nothing: `foreign` processes on our cores, "
            "`steal` by the hypervisor, `memory_stall`, `major_faults`, a GPU's `hardware_slowdown`"
        ),
    ] = None
    disturbed_samples: Annotated[
        int | None,
        doc("samples after warm-up that are marked; left out unless they are more than half"),
    ] = None
    kept_samples: Annotated[int | None, doc("samples the throughput is made of")] = None
    steps_per_sample: Annotated[int | None, doc("steps between two synchronisations")] = None
    stop_reason: Annotated[
        str | None, doc("`target_reached`, `max_seconds`, `max_samples` or `all_epochs`")
    ] = None
    target_reached: Annotated[bool | None, doc("the interval is as narrow as asked for")] = None
    window_s: Annotated[
        list[float] | None, doc("windows in which interference was judged: seconds of each")
    ] = None
    window_foreign_cpu_s: Annotated[
        list[float] | None,
        doc("processor seconds of processes outside our tree on our cores, each window"),
    ] = None
    window_steal_s: Annotated[
        list[float] | None, doc("processor seconds the hypervisor gave to others, each window")
    ] = None
    window_memory_stall_s: Annotated[
        list[float] | None, doc("seconds in which nothing ran for want of memory, each window")
    ] = None
    device_windows: DeviceWindows = DeviceWindows()
    major_faults: Annotated[int | None, doc("page faults of the worker that waited for a disk")] = (
        None
    )
    involuntary_switches: Annotated[
        int | None, doc("times the worker's processor was taken from it, by us or by others")
    ] = None
    latency_samples_s: Annotated[
        list[float] | None,
        doc("seconds of each request, host input to host output, copies included"),
    ] = None
    latency_device_p50_ms: Annotated[
        float | None,
        doc("median time between a request's first and last work on the device, gaps included"),
    ] = None
    latency_marks: Annotated[
        list[str] | None, doc("as sample_marks, of each request; percentiles keep them all")
    ] = None
    data_wait_s: Annotated[
        float | None, doc("seconds per step spent waiting for the next batch (real data, training)")
    ] = None
    copy_s: Annotated[float | None, doc("seconds per step copying the batch to the device")] = None
    compute_s: Annotated[float | None, doc("seconds per step of forward, backward, optimizer")] = (
        None
    )
    epoch_images: Annotated[int | None, doc("images of one epoch of this data")] = None
    epoch_boundary_s: Annotated[
        float | None, doc("extra seconds between two epochs: a fresh loader's first batch")
    ] = None
    projected_s: Annotated[
        float | None, doc("PROJECTED seconds of `epochs` epochs, loading included, evaluation not")
    ] = None
    projected_ci_low_s: Annotated[float | None, doc("lower end of its 95 % interval")] = None
    projected_ci_high_s: Annotated[float | None, doc("upper end of its 95 % interval")] = None
    train_s: Annotated[
        float | None, doc("measured seconds of all epochs, evaluation not included")
    ] = None
    epoch_train_s: Annotated[list[float] | None, doc("measured seconds of each epoch")] = None
    test_accuracy: Annotated[list[float] | None, doc("share of right answers after each epoch")] = (
        None
    )
    weights_sha256: Annotated[str | None, doc("SHA-256 of the initial weights")] = None
    first_loss: Annotated[float | None, doc("loss of the first training step")] = None
    last_loss: Annotated[
        float | None,
        doc(
            "loss of step last_loss_step: the last of a full training, else the third that loss "
            "scaling did not skip"
        ),
    ] = None
    last_loss_step: Annotated[int | None, doc("the step last_loss belongs to, counted from 1")] = (
        None
    )
    output_error: Annotated[
        float | None,
        doc(
            "distance of the logits from eager fp32 on the host (recipe qat: of the trained "
            "network), as a share; null if simulated"
        ),
    ] = None
    logits_mean: Annotated[float | None, doc("mean of the first batch's logits (inference)")] = None
    logits_std: Annotated[float | None, doc("standard deviation of them")] = None
    int8_mac_share: Annotated[
        float | None, doc("share of the model's multiply-adds that ran in INT8")
    ] = None
    forecast_peak_bytes: Annotated[
        int | None,
        doc("forecast of a rank's peak: tensors only, no library's workspace, no context"),
    ] = None
    flops_per_image: Annotated[
        float | None, doc("operations of convolutions and products an image; a multiply-add is 2")
    ] = None
    achieved_tflops: Annotated[
        float | None, doc("flops_per_image × images/s ÷ 10^12, of each device")
    ] = None
    peak_tflops: Annotated[
        float | None, doc("what the device can do in this precision, by peak_source")
    ] = None
    peak_share: Annotated[
        float | None,
        doc("achieved ÷ peak (MFU); null where the peak is not known, or was exceeded"),
    ] = None
    peak_source: Annotated[str | None, doc("where the peak comes from")] = None
    oom_allocated_bytes: Annotated[
        int | None, doc("most memory the case held before it ran out of it")
    ] = None
    oom_limit_bytes: Annotated[int | None, doc("the memory it could have had")] = None
    gemm_fp32_tflops: Annotated[
        float | None, doc("the host's fastest fp32 matrix product (sentinel only)")
    ] = None
    gemm_bf16_tflops: Annotated[
        float | None, doc("the same in bf16, where the host has units for it")
    ] = None
    int8_float_layers: Annotated[
        list[str] | None, doc("multiply-adds of an INT8 case that ran in floating point")
    ] = None
    model_bytes: Annotated[
        int | None, doc("bytes of the model as executed: of its file, where the engine has one")
    ] = None
    fp32_model_bytes: Annotated[int | None, doc("bytes of the same weights in fp32")] = None
    fidelity_images: Annotated[
        int | None,
        doc("inputs on which the logits were compared with eager fp32's (INT8), none it was shown"),
    ] = None
    fidelity_sqnr_db: Annotated[
        float | None,
        doc("signal ÷ quantisation noise of logits centred over the inputs, decibels"),
    ] = None
    top1_agreement: Annotated[
        float | None, doc("share of these inputs with the same best class as eager fp32")
    ] = None
    top1_agreement_note: Annotated[
        str | None, doc("why there is none, e.g. that fp32 predicts less than half of its classes")
    ] = None
    top1_accuracy: Annotated[
        float | None, doc("share of right answers on these inputs, where the data has classes")
    ] = None
    fp32_top1_accuracy: Annotated[
        float | None, doc("the same of eager fp32, with --weights before the recipe qat trained")
    ] = None
    nondeterministic_operations: Annotated[
        list[str] | None,
        doc("operations torch has no deterministic form for, as they ran in a deterministic case"),
    ] = None
    energy_j_per_image: Annotated[
        float | None,
        doc(
            "joules per image over the samples of the throughput, or full training, idle power "
            "subtracted"
        ),
    ] = None
    energy_total_j_per_image: Annotated[float | None, doc("the same, idle power included")] = None
    energy_source: Annotated[str | None, doc("what counted the joules, and what they cover")] = None
    threads_used: Annotated[int | None, doc("intra-op threads of what executes, read back")] = None
    settings: Annotated[
        list[str] | None, doc("NAME=value of what was forced and read back: TF32, cuDNN, autocast")
    ] = None
    corrupt_images: Annotated[
        list[str] | None, doc("images that could not be decoded, skipped")
    ] = None
    corrupt_image_count: Annotated[int | None, doc("how many; the names are capped at 20")] = None
