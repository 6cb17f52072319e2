"""Torch's own INT8 on x86: torchao PT2E, static, per-channel weights, unsigned activations.

Follows torchao's PT2E quantisation page, its x86 Inductor quantizer's tutorial and the
PT2E QAT tutorial: export, observe or train with fake quantisation, convert; the engines
lower what comes out of here. Activations take 7 bits of 8 where the processor has no VNNI:
its 8-bit products are added in pairs in 16 bits and would saturate (quantizer's docstring).
"""

from __future__ import annotations

import copy
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from msgspec import Struct

from bench.cache import Artefact, Cache
from bench.environment import host
from bench.environment.software import version
from bench.errors import Unproven

VNNI = {"avx_vnni", "avx512_vnni", "amx_int8"}
RANGES = "ranges.pt"
LEARNT = "learnt.pt"
QAT_IMAGES, QAT_BATCH = 8, 32  # trained on for each image that calibration would take; a step
# Longest gradient (clipped as in Pascanu et al., arXiv 1211.5063): the batch norms of random
# weights do not normalise yet, and steps of 100 layers and more would leave the numbers.
MOST_GRADIENT = 10.0


def refuses(kind: str) -> str | None:
    """Why torch cannot lower INT8 for this kind of device, or None."""
    if kind != "cpu":
        return "torch's INT8 convolutions run on CPUs only; on a GPU use --engine tensorrt"
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"torchao lowers INT8 to x86 only, this is {platform.machine()}"
    return None


def reduced_range() -> bool:
    """Whether 8-bit products could saturate here."""
    return not VNNI & set(host.cpu_features() or ())


def _quantizer(*, training: bool) -> Any:
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    config = get_default_x86_inductor_quantization_config(
        is_qat=training, reduce_range=reduced_range()
    )
    return X86InductorQuantizer().set_global(config)


def _exported(model: torch.nn.Module, images: torch.Tensor) -> Any:
    """For any batch size."""
    shapes = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(model, (images,), dynamic_shapes=shapes, strict=True)
    return program.module(check_guards=False)  # they would refuse a single image


class Quantised(Struct, frozen=True):
    """A graph `(N, 3, H, W)` → `(N, classes)` with Q/DQ around each operator INT8 may run.

    seconds: of observing (or training), when it was cold, and of converting now; None where
    that was done with another number of threads. key: what decided the ranges. reference: its
    twin in fp32 where that is not the model itself.
    """

    graph: Any
    seconds: float | None
    key: dict[str, Any]
    reference: Callable[[torch.Tensor], torch.Tensor] | None = None


def _made_with() -> dict[str, Any]:
    return {"torchao": version("torchao"), "reduced": reduced_range()}


def calibrated(
    model: torch.nn.Module, batches: list[torch.Tensor], cache: Cache, key: dict[str, Any]
) -> Quantised:
    """Ranges from what the observers see in `batches`; two images at least in the first."""
    from torchao.quantization.pt2e.observer import ObserverBase
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

    key = key | _made_with()
    with quiet(), torch.no_grad():
        graph = _exported(model.eval(), batches[0])
        prepared = prepare_pt2e(graph, _quantizer(training=False))
        observers = tuple(n for n, m in prepared.named_modules() if isinstance(m, ObserverBase))

        def observe(folder: Path) -> None:
            for images in batches:
                prepared(images)
            state = prepared.state_dict()
            # With the versions in its metadata: without them a loader takes it for an old state.
            seen = state.copy()
            for name in state:
                if name.rpartition(".")[0] not in observers:
                    del seen[name]
            seen._metadata = state._metadata
            torch.save(seen, folder / RANGES)

        def load(folder: Path) -> None:
            seen = torch.load(folder / RANGES, weights_only=True)
            unknown = prepared.load_state_dict(seen, strict=False).unexpected_keys
            if unknown:
                raise ValueError(f"ranges of another graph: {unknown[0]}")

        ranges = cache.artefact("pt2e-ranges", key, observe, load)
        converted, seconds = _converted(prepared, ranges)
    return Quantised(converted, seconds, key)


def _converted(prepared: Any, made: Artefact) -> tuple[Any, float | None]:
    """The quantised graph, and the seconds from `made`'s start to it."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    start = time.perf_counter()
    converted = convert_pt2e(prepared)
    took_s = time.perf_counter() - start
    return converted, None if made.seconds is None else made.seconds + took_s


def fake_quantised(model: torch.nn.Module, images: torch.Tensor) -> torch.nn.Module:
    """The model as quantisation-aware training sees it: rounded as INT8 would, trained in fp32.

    images: an example batch of two images at least.
    """
    from torchao.quantization.pt2e import allow_exported_model_train_eval
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    with quiet():
        graph = _exported(model.train(), images)
        prepared = prepare_qat_pt2e(graph, _quantizer(training=True))
        trainable: torch.nn.Module = allow_exported_model_train_eval(prepared)
    return trainable


def trained(
    model: torch.nn.Module,
    lessons: list[tuple[torch.Tensor, torch.Tensor]],
    recipe: Any,
    cache: Cache,
    key: dict[str, Any],
) -> Quantised:
    """Fine-tuned with fake quantisation, batch norms as they were.

    lessons: batches of images and their classes, one a step. recipe: the recipe qat. Raises
    Unproven where gradients are no numbers.
    """
    from torchao.quantization.pt2e import (
        disable_fake_quant,
        disable_observer,
        move_exported_model_to_eval,
    )

    key = key | _made_with()
    learner = fake_quantised(copy.deepcopy(model), lessons[0][0])

    def train(folder: Path) -> None:
        _learn(learner, lessons, recipe)
        torch.save(learner.state_dict(), folder / LEARNT)

    def load(folder: Path) -> None:
        learner.load_state_dict(torch.load(folder / LEARNT, weights_only=True))

    learnt = cache.artefact("qat", key, train, load)
    with quiet(), torch.no_grad():
        move_exported_model_to_eval(learner)
        twin = copy.deepcopy(learner)
        twin.apply(disable_fake_quant)
        twin.apply(disable_observer)
        converted, seconds = _converted(learner, learnt)

    def reference(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = twin(images)
        return logits

    return Quantised(converted, seconds, key, reference)


def _learn(learner: Any, lessons: list[tuple[torch.Tensor, torch.Tensor]], recipe: Any) -> None:
    """One step a lesson. Raises Unproven where gradients are no numbers."""
    learner.train()
    _keep_statistics(learner)
    optimizer = recipe.optimizer(learner)
    for number, (images, target) in enumerate(lessons, 1):
        recipe.loss(learner(images), target).backward()
        norm = torch.nn.utils.clip_grad_norm_(learner.parameters(), MOST_GRADIENT)
        if not norm.isfinite():
            where = f"step {number} of {len(lessons)}"
            raise Unproven(f"training for INT8 lost its numbers in {where}: no model came of it")
        optimizer.step()
        optimizer.zero_grad()


def _keep_statistics(graph: Any) -> None:
    """Batch norms normalise by what they have learnt, in training too, and learn no more of it.

    So the ranges are those of the activations that INT8 meets, and some steps on small batches
    do not spoil the statistics (torch's freeze_bn_stats does this for modules). Call it after
    `train()`, which sets them back. Raises Unproven where it finds none to keep.
    """
    norms = [n for n in graph.graph.nodes if n.target is torch.ops.aten.batch_norm.default]
    if not norms:
        raise Unproven("what trains for INT8 holds no batch norm whose statistics to keep")
    for node in norms:
        training = 5  # x, weight, bias, mean, variance, training, momentum, epsilon, cudnn
        node.update_arg(training, False)
    graph.recompile()


class quiet(warnings.catch_warnings):  # noqa: N801 - reads as what it does
    """Exporters and observers warn about their own future."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")


def executed(graph: Any, images: torch.Tensor) -> list[tuple[str, float, bool]]:
    """(kernel, multiply-adds, in INT8) of each multiply-add kernel one forward pass called."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with (
        torch.inference_mode(),
        torch.profiler.profile(activities=activities, record_shapes=True) as profile,
    ):
        graph(images)
    return [found for e in profile.events() or () if (found := _kernel(e)) is not None]


# What convolutions and products in floating point end in, one of them each.
IN_FLOAT = {
    "aten::mkldnn_convolution", "mkldnn::_convolution_pointwise", "aten::_slow_conv2d_forward",
    "aten::mkldnn_linear", "mkldnn::_linear_pointwise", "mkl::_mkl_linear", "aten::addmm",
    "aten::mm", "aten::bmm",
}  # fmt: skip


def _kernel(event: Any) -> tuple[str, float, bool] | None:
    """Input `(N, C, H, W)`, weight `(O, C/groups, kh, kw)`: N·Ho·Wo·O·C/groups·kh·kw."""
    if event.name in IN_FLOAT:
        return event.name, 0.0, False
    if not event.name.startswith("onednn::q"):
        return None
    image, weight = event.input_shapes[0], event.input_shapes[3]
    if "linear" in event.name:
        rows, width = image
        macs = rows * width * (weight[0] if weight[1] == width else weight[1])
        return event.name, float(macs), True
    # Positions in oneDNN's schema: x, x_scale, x_zero, w, w_scale, w_zero, [bias | x2…], stride, …
    pairs = [v for v in event.concrete_inputs if isinstance(v, list) and len(v) == 2]
    stride, padding, dilation = pairs[:3]
    out_pixels = 1
    for side in (0, 1):
        kernel = dilation[side] * (weight[2 + side] - 1) + 1
        out_pixels *= (image[2 + side] + 2 * padding[side] - kernel) // stride[side] + 1
    per_pixel = weight[0] * weight[1] * weight[2] * weight[3]
    return event.name, float(image[0] * out_pixels * per_pixel), True
