"""TensorRT without a GPU: our part of the build, up to where the library asks for a device."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from bench import models, registry
from bench.cache import Cache
from bench.devices import open_device
from bench.engines import CALIBRATION_BATCH, Job
from bench.precisions import PRECISIONS
from bench.schema import Case


def job(precision: str, cache: Path) -> Job:
    """Two images of 32 pixels, on the host: the library is not here to ask for more."""
    case = Case(model="resnet18", image_size=32, engine="tensorrt", precision=precision)
    images = torch.zeros(2, 3, 32, 32)

    def drawn(count: int, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _ in range(-(-count // size)):
            yield torch.zeros(size, 3, 32, 32), torch.zeros(size, dtype=torch.long)

    return Job(
        case=case,
        precision=PRECISIONS[precision],
        device=open_device("cpu"),
        model=models.build("resnet18", "random", 10, 1).eval(),
        weights_sha256="w",
        cache=Cache(cache),
        batches=lambda count: iter([images] * count),
        drawn=drawn,
    )


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for what is not installed: keeps what it is asked for, then wants a device."""
    asked: dict[str, Any] = {"calibrated": 0}

    def compile_(program: Any, **settings: Any) -> None:
        asked.update(settings, program=program)
        raise RuntimeError("No CUDA GPUs are available")

    @contextlib.contextmanager
    def debugger(**settings: Any) -> Iterator[None]:
        asked["debugger"] = settings
        yield

    def quantize(model: torch.nn.Module, config: Any, observe: Any) -> torch.nn.Module:
        hook = model.register_forward_hook(
            lambda _, inputs, __: asked.update(calibrated=asked["calibrated"] + len(inputs[0]))
        )
        observe(model)
        hook.remove()
        asked["config"] = config
        return model

    trt = ModuleType("torch_tensorrt")
    trt.dynamo = SimpleNamespace(compile=compile_, Debugger=debugger)  # type: ignore[attr-defined]
    quantization = ModuleType("modelopt.torch.quantization")
    quantization.INT8_DEFAULT_CFG = "int8"  # type: ignore[attr-defined]
    quantization.quantize = quantize  # type: ignore[attr-defined]
    utils = ModuleType("modelopt.torch.quantization.utils")
    utils.export_torch_mode = contextlib.nullcontext  # type: ignore[attr-defined]
    for module in (trt, ModuleType("modelopt"), ModuleType("modelopt.torch"), quantization, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return asked


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("tf32", True)])
def test_fp32_is_strict_and_types_come_from_the_graph(
    library: dict[str, Any], tmp_path: Path, precision: str, tf32: bool
) -> None:
    """The whole network in one engine, or nothing: no part falls back to torch unseen."""
    engine: Any = registry.load("engines", "tensorrt.float")
    with pytest.raises(RuntimeError, match="No CUDA GPUs are available"):
        engine.build(job(precision, tmp_path))
    assert isinstance(library["program"], torch.export.ExportedProgram)
    assert library["disable_tf32"] is not tf32
    assert library["use_explicit_typing"]
    assert library["require_full_compilation"]
    assert "debugger" not in library


def test_half_precision_is_the_type_of_the_graph(library: dict[str, Any], tmp_path: Path) -> None:
    """No builder flag: the weights are halves, both ends are fp32."""
    engine: Any = registry.load("engines", "tensorrt.float")
    with pytest.raises(RuntimeError, match="No CUDA GPUs are available"):
        engine.build(job("amp-fp16", tmp_path))
    program = library["program"]
    weights = {p.dtype for p in program.state_dict.values() if p.is_floating_point()}
    assert weights == {torch.float16}
    with torch.no_grad():
        assert program.module()(torch.zeros(2, 3, 32, 32)).dtype == torch.float32


def test_int8_is_calibrated_and_its_layers_are_kept(
    library: dict[str, Any], tmp_path: Path
) -> None:
    """On the case's own images; the inspector is asked for what each layer computes in."""
    engine: Any = registry.load("engines", "tensorrt.int8")
    with pytest.raises(RuntimeError, match="No CUDA GPUs are available"):
        engine.build(job("int8", tmp_path))
    assert library["calibrated"] == 32 == 4 * CALIBRATION_BATCH
    assert library["config"] == "int8"
    assert library["debugger"]["save_layer_info"]


def test_without_a_gpu_it_is_refused_by_name() -> None:
    engine: Any = registry.load("engines", "tensorrt.float")
    case, cpu = Case(engine="tensorrt"), open_device("cpu")
    assert "needs an NVIDIA GPU" in engine.refuses(case, cpu)
