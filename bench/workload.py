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
    CONTRAST,
    Fidelity,
    Reference,
    compare,
    demand,
    demand_following,
    difference,
    eager_fp32,
    kept_logits,
)
from bench.precisions import PRECISIONS, Precision
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
    build_s: float | None  # of a cold build; None: nothing to build, or it was not measured
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
    # On so many inputs; answers None where none is left that INT8 has not seen.
    fidelity: Callable[[int], Fidelity | None] | None = None
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
    shown: list[int] = []  # images INT8 was calibrated or trained on, a number a batch

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
        model = module.trained(self._job(model, precision))
        if case.world_size > 1:
            index = self.device.torch_device().index
            ids = None if index is None else [index]
            model = torch.nn.parallel.DistributedDataParallel(model, device_ids=ids)
        trainer = Trainer(model, recipe, self.device, precision)
        if case.loader_workers is None:
            own = _with(case, seed=case.seed + loading.place_among_ranks()[0])
            images, target = loading.synthetic_batch(own, case.classes or self.source.classes)
            images, target = self.place(images), target.to(self.device.torch_device())
            return {
                "step": lambda: trainer(images, target),
                "trainer": trainer,
                "build_s": None,
                "build_cached": self.cache.cached,
            }
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
            "build_cached": self.cache.cached,
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
        took_s, saved_s = time.perf_counter() - start, self.cache.saved_s
        resident = self.place(host)
        logits, first_step_s = self._first(forward, resident)
        twin: Reference | None = getattr(forward, "reference", None)
        reference = twin or eager_fp32(model)
        computes = self.device.computes
        error = self._checked(forward, logits, reference, host) if computes else None
        spans: list[tuple[Any, Any]] = []

        def request() -> torch.Tensor:
            if not self.device.asynchronous:
                # A new tensor each time, as a server has: to take it over is part of a request.
                return forward(self.place(host.view_as(host))).cpu()
            begun = self.device.mark()
            logits = forward(self.place(host))
            spans.append((begun, self.device.mark()))
            return logits.cpu()

        step = getattr(forward, "enqueue", forward)
        rounded = precision.kind != "float" or precision.autocast is not None
        compared = rounded and computes and self.device.emulates(precision) is None
        # What training for INT8 loses shows against the weights it began with; random ones
        # know nothing that could be lost.
        judge = twin if self.case.weights == "random" else None
        return {
            "device": _draining(self.device, forward),
            "step": lambda: step(resident),
            "request": request,
            "spans": spans,
            "forward": forward,
            "build_s": None if saved_s is None else took_s + saved_s,
            "build_cached": self.cache.cached,
            "output_error": error,
            "first_step_s": first_step_s,
            "fidelity": (lambda n: self._fidelity(model, judge, forward, n)) if compared else None,
            "fp32_bytes": fp32_bytes,
        }

    def _job(self, model: torch.nn.Module, precision: Precision) -> Job:
        def drawn(count: int, size: int) -> Iterator[Labelled]:
            for images, labels, names in self.loaders.drawn(count, size, train=True):
                self.corrupt.extend(names)
                self.shown.append(len(images))
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

    def _checked(
        self, forward: Forward, logits: torch.Tensor, reference: Reference, host: torch.Tensor
    ) -> float:
        """How far `logits`, of `host`, are from eager fp32's. Raises Unproven.

        A second input shows whether answers follow what is asked; it goes through each place of
        an engine's queue too, whose answers nobody reads while they are timed.
        """
        found, expected = logits[:CHECKED].float().cpu().clone(), reference(host[:CHECKED])
        error = difference(found, expected)
        demand(error, PRECISIONS[self.case.precision])
        other = self.place(CONTRAST * host)
        change = reference(CONTRAST * host[:CHECKED]) - expected
        demand_following(forward(other)[:CHECKED].float().cpu() - found, change)
        for queued in forward.queued(other) if hasattr(forward, "queued") else []:
            demand_following(queued[:CHECKED].float().cpu() - found, change)
        return error

    def _judging(self, count: int) -> int:
        """How many of `count` images there are that INT8 has not been shown."""
        if self.source.pretend:
            return count
        if self.source.test:
            return min(count, len(self.source.test))
        return max(0, min(count, len(self.source.train) - sum(self.shown)))

    def _fidelity(
        self, model: torch.nn.Module, judge: Reference | None, forward: Forward, count: int
    ) -> Fidelity | None:
        """On `count` seeded inputs of the case's data, or as many as there are to judge by.

        judge: what is compared with; None: the case's own network in eager fp32.
        """
        count = self._judging(count)
        if not count:
            return None
        drawn = list(self.loaders.drawn(count, self.case.batch_size, train=False))
        inputs = [images for images, _, _ in drawn]
        found = torch.cat([forward(self.place(images)).float().cpu().clone() for images in inputs])
        if judge is None:
            expected = self._expected(model, inputs)
        else:
            expected = torch.cat([judge(images) for images in inputs])
        labels = torch.cat([labels for _, labels, _ in drawn])[:count]
        known = None if self.source.pretend else labels
        return compare(expected[:count], found[:count], known)

    def _expected(self, model: torch.nn.Module, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Logits of the case's own network, which are kept."""
        job = self._job(model, PRECISIONS[self.case.precision])
        key = job.key(inputs=digest(inputs), device=self.device.facts().device_name)
        # Not the case's own cache: what is kept here is no part of its build.
        cache = Cache(self.cache.root)
        return kept_logits(self._eager_here(model), inputs, cache, key)

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
