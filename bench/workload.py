"""Case → something to time. Asks for refusals, then composes; compares no name of a plug-in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from msgspec import Struct

from bench import data, loading, models, registry
from bench.cache import Cache
from bench.devices import Delegate, Device, open_device
from bench.engines import Forward, Job, Labelled, digest, state_bytes
from bench.errors import Refused
from bench.fidelity import (
    CHECKED,
    Fidelity,
    Reference,
    compare,
    demand,
    difference,
    eager_fp32,
    kept_logits,
)
from bench.precisions import PRECISIONS, QAT, Precision
from bench.refusals import data_refusal, realisation
from bench.training import Fed, Trainer, accuracy

if TYPE_CHECKING:
    from bench.schema import Case


class Work(Struct, kw_only=True):
    """A composed case: what to time, and what can be asked of it afterwards."""

    device: Device
    step: Callable[[], None]
    settings: list[str]
    weights_sha256: str | None
    build_s: float | None  # of a cold build; None: there is nothing to build
    build_cached: bool | None = None  # whether it was one; None: nothing of it is kept
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
    fidelity: Callable[[int], Fidelity] | None = None  # on so many inputs
    fp32_bytes: int | None = None
    first_step_s: float | None = None  # where the first step came before the loop
    spans: list[
        tuple[Any, Any]
    ] = []  # marks around each request, where the device has its own time


def compose(case: Case, cache: Cache) -> Work:
    """Build the model, the data and the step. Raises Refused."""
    device, precision = open_device(case.device), PRECISIONS[case.precision]
    settings = device.prepare(case, precision)
    source = data.open_source(case)
    if refused := data_refusal(case, source):
        raise Refused(refused)
    model = models.build(case.model, case.weights, case.classes or source.classes, case.seed)
    digest_of_weights = models.weights_sha256(model)
    layout = getattr(torch, models.LAYOUTS[case.memory_format])
    model = model.to(device.torch_device()).to(memory_format=layout)
    wanted = getattr(realisation(case), "LAYOUT", case.memory_format)
    layout = getattr(torch, models.LAYOUTS[wanted])  # of the images; the reference keeps the case's

    def place(images: torch.Tensor) -> torch.Tensor:
        return images.to(device.torch_device(), non_blocking=True, memory_format=layout)

    loaders = loading.Loaders(case, source, device.asynchronous)
    corrupt: list[str] = []
    made = Composer(case, device, source, place, loaders, corrupt, cache, digest_of_weights)
    parts = made.training(model) if case.task == "train" else made.inference(model)
    trainer: Trainer | None = parts.get("trainer")
    parts.setdefault("device", device)
    return Work(
        settings=settings + (trainer.settings if trainer else []),
        weights_sha256=digest_of_weights,
        pretend_data=source.pretend,
        corrupt=corrupt,
        **parts,
    )


class Composer(Struct, frozen=True):
    """What both tasks need to be put together."""

    case: Case
    device: Device
    source: data.Source
    place: Callable[[torch.Tensor], torch.Tensor]
    loaders: loading.Loaders
    corrupt: list[str]
    cache: Cache
    weights_sha256: str

    def training(self, model: torch.nn.Module) -> dict[str, Any]:
        """A training step, fed by a loader where the case has one."""
        case, precision = self.case, PRECISIONS[self.case.precision]
        recipe: Any = registry.load("recipes", case.recipe)
        module = realisation(case)
        assert module is not None, "refusal() comes first"
        if hasattr(recipe, "prepare"):
            batch = max(2, case.batch_size)  # one image would make the batch a constant
            images, _ = loading.synthetic_batch(_with(case, batch_size=batch), self.source.classes)
            model = recipe.prepare(model, self.place(images))
        model = module.trained(model, case)
        if case.world_size > 1:
            index = self.device.torch_device().index
            ids = None if index is None else [index]
            model = torch.nn.parallel.DistributedDataParallel(model, device_ids=ids)
        trainer = Trainer(model, recipe, self.device, precision)
        if case.loader_workers is None:
            own = _with(case, seed=case.seed + loading.place_among_ranks()[0])
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
        model.eval()
        host = next(self._host_batches(1))
        fp32_bytes = state_bytes(model)
        start = time.perf_counter()
        forward: Forward = module.build(self._job(model, precision))
        build_s = time.perf_counter() - start + self.cache.saved_s
        resident = self.place(host)
        logits, first_step_s = self._first(forward, resident)
        reference = getattr(forward, "reference", None) or eager_fp32(model)
        error = None
        if self.device.computes:
            error = difference(logits[:CHECKED], reference(host[:CHECKED]))
            demand(error, precision)
        spans: list[tuple[Any, Any]] = []

        def request() -> torch.Tensor:
            if not self.device.asynchronous:
                return forward(self.place(host)).cpu()
            begun = self.device.mark()
            logits = forward(self.place(host))
            spans.append((begun, self.device.mark()))
            return logits.cpu()

        step = getattr(forward, "enqueue", forward)
        rounded = precision.kind != "float" or precision.autocast is not None
        compared = rounded and self.device.computes and self.device.emulates(precision) is None
        own = getattr(forward, "reference", None) or self._eager_here(model)
        return {
            "device": _draining(self.device, forward),
            "step": lambda: step(resident),
            "request": request,
            "spans": spans,
            "forward": forward,
            "build_s": build_s,
            "build_cached": self.cache.cached,
            "output_error": error,
            "first_step_s": first_step_s,
            "fidelity": (lambda n: self._fidelity(own, forward, n)) if compared else None,
            "fp32_bytes": fp32_bytes,
        }

    def _job(self, model: torch.nn.Module, precision: Precision) -> Job:
        def drawn(count: int, size: int) -> Iterator[Labelled]:
            for images, labels, names in self.loaders.drawn(count, size, train=True):
                self.corrupt.extend(names)
                yield self.place(images), labels.to(self.device.torch_device())

        return Job(
            case=self.case,
            precision=precision,
            device=self.device,
            model=model,
            weights_sha256=self.weights_sha256,
            cache=self.cache,
            batches=self._placed_batches,
            drawn=drawn,
        )

    def _eager_here(self, model: torch.nn.Module) -> Reference:
        """Eager fp32 on the case's own device: the host would take minutes for a GPU's share."""

        def logits(images: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                found: torch.Tensor = model(self.place(images))
            return found.cpu()

        return logits

    def _fidelity(self, reference: Reference, forward: Forward, count: int) -> Fidelity:
        """On `count` seeded inputs of the case's data; what eager fp32 says of them is kept."""
        if not self.source.pretend:
            count = min(count, len(self.source.test or self.source.train))
        drawn = list(self.loaders.drawn(count, self.case.batch_size, train=False))
        inputs = [images for images, _, _ in drawn]
        found = torch.cat([forward(self.place(images)).float().cpu().clone() for images in inputs])
        expected = self._expected(reference, inputs)
        labels = torch.cat([labels for _, labels, _ in drawn])[:count]
        known = None if self.source.pretend else labels
        return compare(expected[:count], found[:count], known)

    def _expected(self, reference: Reference, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Logits of `reference`, from the cache where it is the case's own network."""
        if self.case.recipe == QAT:  # its reference has been trained
            return torch.cat([reference(images) for images in inputs])
        key = {
            "weights": self.weights_sha256,
            "inputs": digest(inputs),
            "torch": str(torch.__version__),
            "device": self.device.facts().device_name,
        }
        # Not the case's own cache: what is kept here is no part of its build.
        cache = Cache(self.cache.root, rebuild=self.cache.rebuild)
        return kept_logits(reference, inputs, cache, key)

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
                case = _with(self.case, seed=self.case.seed + number)
                yield loading.synthetic_batch(case, self.source.classes)[0]
            return
        batches = loading.Endless(self.loaders.test())
        for _ in range(count):
            images, _, names = next(batches)
            self.corrupt.extend(names)
            yield images


class Drained(Delegate):
    """A device on which an engine keeps several requests going by itself."""

    def __init__(self, inner: Device, wait: Callable[[], None]) -> None:
        super().__init__(inner)
        self.wait = wait

    def synchronize(self) -> None:
        """Until every request has ended, and the device with them."""
        self.wait()
        self.inner.synchronize()


def _draining(device: Device, forward: Forward) -> Device:
    wait = getattr(forward, "wait", None)
    return device if wait is None else Drained(device, wait)


def _with(case: Case, **changes: Any) -> Case:
    return msgspec.structs.replace(case, **changes)
