"""The one training step: autocast, scaler and recipe around a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from bench.devices import Device, Mark
from bench.loading import Batch
from bench.precisions import Precision
from bench.recipes import Recipe

LAST_LOSS_STEP = 8  # every case trains at least so many steps, so this loss can be compared


class Trainer:
    """Forward, loss, backward, optimizer step, zero_grad; enqueues and does not synchronise."""

    def __init__(
        self, model: torch.nn.Module, recipe: Recipe, device: Device, precision: Precision
    ) -> None:
        self.model, self.recipe, self.device = model.train(), recipe, device
        self.optimizer = recipe.optimizer(model)
        self.scaler = device.scaler(precision)
        self.dtype = device.autocast_dtype(precision)
        self.kind = device.torch_device().type
        self.steps = 0
        self.early: list[torch.Tensor] = []  # losses of the first steps, unread
        self.latest: torch.Tensor | None = None

    def __call__(self, images: torch.Tensor, target: torch.Tensor) -> None:
        """One step on images `(N, 3, H, W)` and classes `(N,)`, both on the device."""
        with torch.autocast(self.kind, self.dtype, self.dtype is not None):
            loss = self.recipe.loss(self.model(images), target)
        if self.scaler is None:
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        else:
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad()
        self._remember(loss.detach())

    def _remember(self, loss: torch.Tensor) -> None:
        self.steps += 1
        self.latest = loss
        if len(self.early) < LAST_LOSS_STEP:
            self.early.append(loss)
        if self.recipe.LOG_EVERY and self.steps % self.recipe.LOG_EVERY == 0:
            loss.item()  # what logging costs: a wait for the device


class Fed:
    """A training step that first waits for a batch and copies it to the device.

    Keeps a mark at each boundary; `split` turns them into seconds a step.
    """

    def __init__(
        self,
        trainer: Trainer,
        batches: Iterator[Batch],
        place: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self.trainer, self.batches, self.place = trainer, batches, place
        self.device = trainer.device
        self.marks: list[tuple[float, Mark, Mark, Mark]] = []
        self.corrupt: list[str] = []

    def __call__(self) -> None:
        """Wait, copy, train."""
        import time

        start = time.perf_counter()
        images, target, corrupt = next(self.batches)
        wait = time.perf_counter() - start
        before = self.device.mark()
        images, target = (
            self.place(images),
            target.to(self.device.torch_device(), non_blocking=True),
        )
        copied = self.device.mark()
        self.trainer(images, target)
        self.marks.append((wait, before, copied, self.device.mark()))
        self.corrupt += corrupt

    def split(self, skip: int) -> tuple[float, float, float] | None:
        """Mean seconds a step of waiting, copying and computing, without the first `skip` steps."""
        kept = self.marks[skip:]
        if not kept:
            return None
        seconds = self.device.seconds
        return (
            sum(wait for wait, *_ in kept) / len(kept),
            sum(seconds(before, copied) for _, before, copied, _ in kept) / len(kept),
            sum(seconds(copied, done) for *_, copied, done in kept) / len(kept),
        )


def accuracy(
    model: torch.nn.Module,
    batches: Iterator[Batch],
    place: Callable[[torch.Tensor], torch.Tensor],
) -> float:
    """Share of right answers in evaluation mode; the model is left in training mode."""
    right = total = 0
    model.eval()
    with torch.inference_mode():
        for images, target, _ in batches:
            guess = model(place(images)).argmax(1).cpu()
            right += int((guess == target).sum())
            total += len(target)
    model.train()
    return right / total
