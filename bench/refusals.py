"""Why a case cannot run here, and what would: asked before anything is measured."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from bench import data, models, registry
from bench.devices import Device
from bench.precisions import PRECISIONS, QAT

if TYPE_CHECKING:
    from bench.schema import Case

DEFAULT_FORMAT = "channels_last"


def realisation(case: Case) -> ModuleType | None:
    """The file that runs this engine's kind of precision, if there is one."""
    name = f"{case.engine}.{PRECISIONS[case.precision].kind}"
    return registry.load("engines", name) if registry.has("engines", name) else None


def missing_modules(module: ModuleType) -> list[str]:
    """Packages a realisation imports that are not installed."""
    return [name for name in module.MODULES if importlib.util.find_spec(name) is None]


def install(module: ModuleType) -> str:
    """The command that brings what a realisation lacks."""
    packages = getattr(module, "PACKAGES", {})
    return " ".join(["pip install", *(packages.get(n, n) for n in missing_modules(module))])


def refusal(case: Case, device: Device) -> str | None:
    """Why this case cannot run on this device, or None."""
    precision = PRECISIONS[case.precision]
    return (
        device.refuses(precision)
        or _engine_refusal(case, device)
        or models.refuses(case.model, case.weights)
        or _batch_norm_refusal(case)
        or _world_refusal(case, device)
    )


def _engine_refusal(case: Case, device: Device) -> str | None:
    kind, module = PRECISIONS[case.precision].kind, realisation(case)
    if module is None:
        able = [e for e in registry.names("engines") if registry.has("engines", f"{e}.{kind}")]
        return f"the engine {case.engine} has no {kind}; use --engine {' or '.join(able)}"
    missing = missing_modules(module)
    if missing:
        return f"{case.engine} {kind} needs {', '.join(missing)}: {install(module)}"
    if case.recipe == QAT and case.task == "infer" and not hasattr(module, "CONVERTS_QAT"):
        return "the recipe qat is converted by torchao: use --engine eager or compile"
    modes = registry.modes(case.engine)
    if case.engine_mode is not None and case.engine_mode not in modes:
        known = f"its modes are {', '.join(modes)}" if modes else "it has no modes"
        return f"the engine {case.engine} has no mode {case.engine_mode}; {known}"
    if case.memory_format != DEFAULT_FORMAT and hasattr(module, "LAYOUT"):
        return f"{case.engine} chooses its own memory format; leave out --memory-format"
    return asked(module, case, device)


def asked(module: ModuleType, case: Case, device: Device) -> str | None:
    """What a realisation itself refuses; a runtime that does not import is refused with why."""
    try:
        reason: str | None = module.refuses(case, device)
    except Exception as error:  # an extension built for other libraries may raise anything
        lines = str(error).strip().splitlines() or [""]
        return f"the packages of {case.engine} do not work: {type(error).__name__}: {lines[0]}"
    return reason


def _batch_norm_refusal(case: Case) -> str | None:
    single = case.task == "train" and case.batch_size == 1
    if single and models.last_side(case.model, case.image_size) == 1:
        return (
            f"BatchNorm cannot train on one image of {case.image_size} px (one value per channel); "
            "use --batch-size 2 or more"
        )
    return None


def _world_refusal(case: Case, device: Device) -> str | None:
    if case.world_size == 1:
        return None
    if case.task != "train":
        return "several devices are for training; infer with --world-size 1"
    if case.full or case.recipe == QAT:
        what = "--full" if case.full else "the recipe qat"
        return f"{what} trains on one device; leave out --world-size"
    if case.world_size > device.peers():
        return (
            f"a world of {case.world_size} needs as many devices of one kind, from {device.name} "
            f"on there are {device.peers()}"
        )
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_backend_available(device.backend):
        return f"this torch has no {device.backend}, which --world-size needs"
    return None


def data_refusal(case: Case, source: data.Source) -> str | None:
    """Why this case cannot run on this data, or None."""
    if case.classes is not None and case.classes < source.classes:
        return f"the data has {source.classes} classes, the model only {case.classes}"
    images = source.train if case.task == "train" or source.test is None else source.test
    if len(images) < case.global_batch_size and not case.full:
        return (
            f"{len(images)} images are fewer than one batch of {case.global_batch_size}; "
            "use a smaller --batch-size"
        )
    return None
