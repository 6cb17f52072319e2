"""Forecasts of memory and operations: against known figures, and as a user sees them."""

from __future__ import annotations

import msgspec
import pytest

from bench import forecast, peaks
from bench.devices import Delegate, open_device
from bench.errors import Refused
from bench.precisions import PRECISIONS
from bench.schema import Case
from tests.conftest import Bench

TRAIN = Case(task="train", device="cuda:0", batch_size=64)


@pytest.mark.parametrize(
    ("precision", "batch_size", "gigabytes"),
    [("fp32", 64, 5.5), ("fp32", 256, 21.4), ("amp", 256, 11.2)],
)
def test_resnet50_training_needs_what_is_known(
    precision: str, batch_size: int, gigabytes: float
) -> None:
    """Figures known for 224 px, channels_last, SGD with momentum; no GPU is needed to say so."""
    case = msgspec.structs.replace(TRAIN, precision=precision, batch_size=batch_size)
    found = forecast.forecast(case, open_device(case.device))
    assert found.peak_bytes == pytest.approx(gigabytes * 1e9, rel=0.06)
    assert found.flops_per_image == pytest.approx(24.3e9, rel=0.01)


def test_operations_of_an_image() -> None:
    """torchvision says 4.09 GMACs a forward pass; a multiply-add is two operations."""
    case = Case(precision="int8", batch_size=2)
    found = forecast.forecast(case, open_device("cpu"))
    assert found.flops_per_image == pytest.approx(2 * 4.09e9, rel=0.001)
    assert found.peak_bytes is None  # what runs INT8 is not torch's own operators


def test_the_largest_batch_is_where_the_forecast_meets_the_memory() -> None:
    """One image less fits, one more does not."""

    class Small(Delegate):
        """A device with 1 GB to use up."""

        def safe_memory_bytes(self) -> int:
            return 10**9

    case = Case(model="resnet18", task="train", image_size=64)
    device = Small(open_device("cpu"))
    most = forecast.largest(case, device)  # type: ignore[arg-type]
    assert most is not None

    def needs(size: int) -> int:
        of_size = msgspec.structs.replace(case, batch_size=size)
        return forecast.forecast(of_size, open_device("cpu")).peak_bytes or 0

    assert needs(most) <= 1.005e9
    assert needs(most + 2) > 0.995e9
    assert forecast.largest(case, open_device("cuda:0")) is None


def test_a_search_without_a_forecast_is_not_let_loose() -> None:
    """INT8 is bound by what fp32 would take; ranks share the host; no forecast, no search."""
    case = Case(model="resnet18", image_size=64, precision="int8")
    cpu = open_device("cpu")
    assert forecast.largest(case, cpu) == pytest.approx(
        forecast.largest(msgspec.structs.replace(case, precision="fp32"), cpu), rel=0.2
    )
    train = msgspec.structs.replace(case, task="train", precision="fp32")
    both = msgspec.structs.replace(train, world_size=2)
    alone, shared = forecast.largest(train, cpu), forecast.largest(both, cpu)
    assert alone is not None
    assert shared == pytest.approx(alone / 2, rel=0.2)
    impossible = msgspec.structs.replace(case, model="no such model")
    with pytest.raises(Refused, match="name sizes with --batch-size"):
        forecast.largest(impossible, cpu)


@pytest.mark.slow
def test_a_dry_run_forecasts_a_device_that_is_not_here(bench: Bench) -> None:
    """On a laptop too, `--device cuda` says what a case will need."""
    arguments = ["--plan", "one", "--task", "train", "--batch-size", "64", "--device", "cuda"]
    done = bench("run", *arguments, "--dry-run", env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.code == 0
    assert "needs at least 5,495 MiB" in done.out


@pytest.mark.parametrize(
    ("name", "key", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", "tf32", 156),
        ("NVIDIA A100-SXM4-80GB", "float16", 312),
        ("Tesla T4", "fp32", 8.1),
        ("Tesla T4", "bfloat16", None),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "fp32", None),
        ("A GPU nobody knows", "fp32", None),
    ],
)
def test_published_peaks(name: str, key: str, tflops: float | None) -> None:
    """By the driver's name; a slice, an unknown device, an unsupported type have none."""
    found = peaks.published(name, key)
    assert (found and found.tflops) == tflops
    if found:
        assert found.source


def test_a_case_is_held_against_the_peak_of_what_it_computes_in() -> None:
    """Autocast counts as its type, strict fp32 never as TF32."""
    cuda = open_device("cuda:0")
    found = {n: peaks.unit(p, cuda.autocast_dtype(p)) for n, p in PRECISIONS.items()}
    assert found == {
        "fp32": "fp32",
        "tf32": "tf32",
        "amp": "float16",
        "amp-fp16": "float16",
        "amp-bf16": "bfloat16",
        "int8": "int8",
    }
