"""Case → something to time. Asks for refusals, then composes; compares no name of a plug-in."""

from __future__ import annotations

import copy
import importlib.util
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from msgspec import Struct

from bench import data, loading, models, registry
from bench.devices import Device, open_device
from bench.engines import Forward, Job
from bench.errors import Refused, Unproven
from bench.precisions import PRECISIONS, Precision
from bench.training import Fed, Trainer, accuracy

if TYPE_CHECKING:
    from bench.schema import Case


class Work(Struct, kw_only=True):
    """A composed case: what to time, and what can be asked of it afterwards."""

    device: Device
    step: Callable[[], None]
    settings: list[str]
    weights_sha256: str | None
    build_s: float | None  # None: there is nothing to build
    cycle: int = 1
    pretend_data: bool = False
    trainer: Trainer | None = None
    fed: Fed | None = None
    corrupt: list[str] = []  # names of images that could not be decoded, as they are met
    batches: Any = None  # the training DataLoader, where there is one
    short: Any = None  # a loader that is soon at the end of its epoch
    evaluate: Callable[[], float] | None = None
    forward: Forward | None = None
    request: Callable[[], torch.Tensor] | None = None
    output_error: float | None = None
    first_step_s: float | None = None  # where the first step came before the loop
    spans: list[
        tuple[Any, Any]
    ] = []  # marks around each request, where the device has its own time


def realisation(case: Case) -> ModuleType | None:
    """The file that runs this engine's kind of precision, if there is one."""
    name = f"{case.engine}.{PRECISIONS[case.precision].kind}"
    return registry.load("engines", name) if registry.has("engines", name) else None


def missing_modules(module: ModuleType) -> list[str]:
    """Packages a realisation imports that are not installed."""
    return [name for name in module.MODULES if importlib.util.find_spec(name) is None]


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
        return f"{case.engine} {kind} needs {', '.join(missing)}: pip install {missing[0]}"
    reason: str | None = module.refuses(case, device)
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
    if case.full:
        return "--full trains on one device; leave out --world-size"
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


def compose(case: Case) -> Work:
    """Build the model, the data and the step. Raises Refused."""
    device, precision = open_device(case.device), PRECISIONS[case.precision]
    settings = device.prepare(case, precision)
    source = data.open_source(case)
    if refused := data_refusal(case, source):
        raise Refused(refused)
    model = models.build(case.model, case.weights, case.classes or source.classes, case.seed)
    digest = models.weights_sha256(model)
    layout = getattr(torch, LAYOUTS[case.memory_format])
    model = model.to(device.torch_device()).to(memory_format=layout)

    def place(images: torch.Tensor) -> torch.Tensor:
        return images.to(device.torch_device(), non_blocking=True, memory_format=layout)

    loaders = loading.Loaders(case, source, device.asynchronous)
    corrupt: list[str] = []
    made = Composer(case, device, source, place, loaders, corrupt)
    parts = made.training(model) if case.task == "train" else made.inference(model)
    trainer: Trainer | None = parts.get("trainer")
    return Work(
        device=device,
        settings=settings + (trainer.settings if trainer else []),
        weights_sha256=digest,
        pretend_data=source.pretend,
        corrupt=corrupt,
        **parts,
    )


CHECKED = 4  # images whose logits are compared; in evaluation mode each is its own


def eager_fp32(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits of eager fp32 on the host, which every engine must agree with."""
    own = next(model.parameters()).device
    reference = model if own.type == "cpu" else copy.deepcopy(model).cpu()
    training = model.training
    reference.eval()
    with torch.inference_mode():
        logits: torch.Tensor = reference(images)
    model.train(training)
    return logits


def difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    found = logits.detach().float().cpu()
    return float((found - expected).norm() / expected.norm())


def _demand(error: float, precision: Precision) -> None:
    """A fast wrong answer is no answer. Raises Unproven."""
    if not error <= precision.tolerance:  # NaN is a wrong answer too
        raise Unproven(
            f"its logits differ from eager fp32 by {error:.2g} of their size, {precision.name} may "
            f"by {precision.tolerance:g}: a wrong answer is not a measurement"
        )


LAYOUTS = {"channels_last": "channels_last", "contiguous": "contiguous_format"}


class Composer(Struct, frozen=True):
    """What both tasks need to be put together."""

    case: Case
    device: Device
    source: data.Source
    place: Callable[[torch.Tensor], torch.Tensor]
    loaders: loading.Loaders
    corrupt: list[str]

    def training(self, model: torch.nn.Module) -> dict[str, Any]:
        """A training step, fed by a loader where the case has one."""
        case, precision = self.case, PRECISIONS[self.case.precision]
        recipe: Any = registry.load("recipes", case.recipe)
        module = realisation(case)
        assert module is not None, "refusal() comes first"
        model = module.trained(model)
        if case.world_size > 1:
            index = self.device.torch_device().index
            ids = None if index is None else [index]
            model = torch.nn.parallel.DistributedDataParallel(model, device_ids=ids)
        trainer = Trainer(model, recipe, self.device, precision)
        if case.loader_workers is None:
            own = _with_seed(case, case.seed + loading.place_among_ranks()[0])
            images, target = loading.synthetic_batch(own, case.classes or self.source.classes)
            images, target = self.place(images), target.to(self.device.torch_device())
            return {"step": lambda: trainer(images, target), "trainer": trainer, "build_s": None}
        batches = self.loaders.train(whole=case.full)
        fed = Fed(trainer, batches, self.place, self.corrupt)
        return {
            "step": fed,
            "trainer": trainer,
            "fed": fed,
            "batches": batches,
            "cycle": max(1, case.loader_workers),
            "short": self.loaders.short(),
            "evaluate": (lambda: self._evaluate(model)) if self.source.test else None,
            "build_s": None,
        }

    def _evaluate(self, model: torch.nn.Module) -> float:
        return accuracy(model, self.loaders.test(whole=True), self.place, self.corrupt)

    def inference(self, model: torch.nn.Module) -> dict[str, Any]:
        """A forward pass on images that wait on the device, and a request from host to host."""
        module = realisation(self.case)
        assert module is not None, "refusal() comes first"
        precision = PRECISIONS[self.case.precision]
        host = next(self._host_batches(1))
        expected = eager_fp32(model, host[:CHECKED])
        start = time.perf_counter()
        job = Job(self.case, precision, self.device, model, self._placed_batches)
        forward: Forward = module.build(job)
        build_s = time.perf_counter() - start
        resident = self.place(host)
        logits, first_step_s = self._first(forward, resident)
        error = None
        if self.device.computes:
            error = difference(logits[:CHECKED], expected)
            _demand(error, precision)
        spans: list[tuple[Any, Any]] = []

        def request() -> torch.Tensor:
            if not self.device.asynchronous:
                return forward(self.place(host)).cpu()
            begun = self.device.mark()
            logits = forward(self.place(host))
            spans.append((begun, self.device.mark()))
            return logits.cpu()

        return {
            "step": lambda: forward(resident),
            "request": request,
            "spans": spans,
            "forward": forward,
            "build_s": build_s,
            "output_error": error,
            "first_step_s": first_step_s,
        }

    def _first(self, forward: Forward, images: torch.Tensor) -> tuple[torch.Tensor, float]:
        """The very first pass and its seconds: the loop's first comes after the check."""
        self.device.synchronize()
        start = time.perf_counter()
        logits = forward(images)
        self.device.synchronize()
        return logits, time.perf_counter() - start

    def _placed_batches(self, count: int) -> Iterator[torch.Tensor]:
        return (self.place(images) for images in self._host_batches(count))

    def _host_batches(self, count: int) -> Iterator[torch.Tensor]:
        """`count` seeded batches on the host."""
        if self.source.pretend:
            for number in range(count):
                case = _with_seed(self.case, self.case.seed + number)
                yield loading.synthetic_batch(case, self.source.classes)[0]
            return
        batches = loading.Endless(self.loaders.test())
        for _ in range(count):
            images, _, names = next(batches)
            self.corrupt.extend(names)
            yield images


def _with_seed(case: Case, seed: int) -> Case:
    import msgspec

    return msgspec.structs.replace(case, seed=seed)
