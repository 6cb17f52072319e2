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
from bench.engines import CALIBRATION_BATCH, Job, _tensorrt
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


# Parameters of torch_tensorrt.dynamo.compile as its source has them, and the one it had until
# types always came from the graph. It takes any other name too, and ignores it.
PARAMETERS = {
    "inputs", "arg_inputs", "kwarg_inputs", "device", "disable_tf32",
    "assume_dynamic_shape_support", "sparse_weights", "engine_capability", "num_avg_timing_iters",
    "workspace_size", "dla_sram_size", "dla_local_dram_size", "dla_global_dram_size",
    "truncate_double", "require_full_compilation", "min_block_size", "torch_executed_ops",
    "torch_executed_modules", "pass_through_build_failures", "max_aux_streams",
    "version_compatible", "optimization_level", "use_python_runtime", "use_fast_partitioner",
    "enable_experimental_decompositions", "dryrun", "hardware_compatible", "timing_cache_path",
    "lazy_engine_init", "cache_built_engines", "reuse_cached_engines", "engine_cache_dir",
    "engine_cache_size", "custom_engine_cache", "use_fp32_acc", "refit_identical_engine_weights",
    "strip_engine_weights", "immutable_weights", "enable_weight_streaming",
    "tiling_optimization_level", "l2_limit_for_tiling", "offload_module_to_cpu",
    "use_distributed_mode_trace", "enable_autocast", "dynamically_allocate_resources",
    "decompose_attention", "use_explicit_typing",
}  # fmt: skip


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for what is not installed: keeps what it is asked for, then wants a device.

    With the libraries' own parameters: a misspelt one fails here as it would there, or would
    be ignored there.
    """
    asked: dict[str, Any] = {"calibrated": 0}

    def compile_(exported_program: Any, **settings: Any) -> None:
        assert set(settings) <= PARAMETERS
        asked.update(settings, program=exported_program)
        raise RuntimeError("No CUDA GPUs are available")

    @contextlib.contextmanager
    def debugger(
        log_level: str = "debug",
        capture_fx_graph_before: list[str] | None = None,
        capture_fx_graph_after: list[str] | None = None,
        save_engine_profile: bool = False,
        profile_format: str = "perfetto",
        engine_builder_monitor: bool = True,
        logging_dir: str = "/tmp",
        save_layer_info: bool = False,
    ) -> Iterator[None]:
        asked["debugger"] = {"logging_dir": logging_dir, "save_layer_info": save_layer_info}
        yield

    def quantize(model: torch.nn.Module, config: Any, forward_loop: Any = None) -> torch.nn.Module:
        hook = model.register_forward_hook(
            lambda _, inputs, __: asked.update(calibrated=asked["calibrated"] + len(inputs[0]))
        )
        forward_loop(model)
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


def test_its_size_is_that_of_the_serialised_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the compiled graph's modules hold it; unknown where a runtime keeps none."""

    class Part(torch.nn.Module):
        def __init__(self, serialized_engine: bytes | None) -> None:
            super().__init__()
            self.serialized_engine = serialized_engine

        def get_layer_info(self) -> str:
            return "{}"

    version = ModuleType("tensorrt")
    version.__version__ = "11"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", version)
    for kept, size in ((b"plan", 4), (None, None)):
        built = object.__new__(_tensorrt.Built)
        built.job, built.facts = job("fp32", tmp_path), {}
        built.engine = torch.nn.Sequential(torch.nn.Identity(), Part(kept))
        assert built.evidence().model_bytes == size


def test_without_a_gpu_it_is_refused_by_name() -> None:
    engine: Any = registry.load("engines", "tensorrt.float")
    case, cpu = Case(engine="tensorrt"), open_device("cpu")
    assert "needs an NVIDIA GPU" in engine.refuses(case, cpu)
