"""INT8: NNCF's post-training quantisation for OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import pt2e
from bench.cache import nothing
from bench.engines import Job, _openvino
from bench.engines._openvino import LAYOUT, MODEL, Compiled, converted, refuses

__all__ = ["LAYOUT", "MODULES", "build", "refuses"]

MODULES = (*_openvino.MODULES, "nncf")


def build(job: Job) -> Compiled:
    """Quantised from the converted graph, on seeded training images of the case's data."""
    import nncf
    import openvino

    calibration = job.calibration()
    reduced = pt2e.reduced_range()
    source = converted(job)

    def quantise(folder: Path) -> None:
        from nncf.quantization.advanced_parameters import (
            AdvancedQuantizationParameters,
            OverflowFix,
        )

        # Half of the weights' range where pairs of products would saturate in 16 bits.
        fix = OverflowFix.ENABLE if reduced else OverflowFix.DISABLE
        arrays = [images.contiguous().numpy() for images in calibration.batches]
        quantised = nncf.quantize(
            openvino.Core().read_model(source),
            nncf.Dataset(arrays),
            subset_size=len(arrays),
            target_device=nncf.TargetDevice.CPU,
            # The fast correction, NNCF's default, cost 5 dB of SQNR on a ResNet-18 trained for
            # CIFAR-10 and took it under 98 % agreement; this one takes no longer on ResNet-50.
            fast_bias_correction=False,
            advanced_parameters=AdvancedQuantizationParameters(
                overflow_fix=fix, activations_range_estimator_params=_whole_range()
            ),
        )
        openvino.save_model(quantised, folder / MODEL, compress_to_fp16=False)

    key = job.key(
        ranges="whole",
        openvino=openvino.__version__,
        nncf=nncf.__version__,
        calibration=calibration.digest,
        reduced=reduced,
    )
    made = job.cache.artefact("openvino-int8", key, quantise, nothing)
    facts = calibration.facts(made.seconds, reduced=reduced)
    return Compiled(job, made.folder / MODEL, facts)


def _whole_range() -> Any:
    """Activations' ranges from the least to the greatest value seen.

    NNCF's default takes the mean of the batches' maxima, which clips what few images reach: on
    a ResNet-18 trained for CIFAR-10 the SQNR of the logits was 8 dB with it, 27 dB without.
    """
    from nncf.quantization.range_estimator import (
        AggregatorType,
        RangeEstimatorParameters,
        StatisticsCollectorParameters,
        StatisticsType,
    )

    return RangeEstimatorParameters(
        min=StatisticsCollectorParameters(
            statistics_type=StatisticsType.MIN, aggregator_type=AggregatorType.MIN
        ),
        max=StatisticsCollectorParameters(
            statistics_type=StatisticsType.MAX, aggregator_type=AggregatorType.MAX
        ),
    )
