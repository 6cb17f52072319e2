"""The one training step: autocast, scaler and recipe around a model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from msgspec import Struct
from torch.utils.data import DataLoader

from bench.devices import Device
from bench.devices import Mark as DeviceMark
from bench.loading import Batch, Endless
from bench.precisions import Precision
from bench.recipes import Recipe

Place = Callable[[torch.Tensor], torch.Tensor]

# Every case trains at least this many steps however slow it is, so losses up to here compare.
# Steps that loss scaling skips are none: it starts too high in fp16 and skips the first few.
COMPARED_STEPS, MOST_STEPS = 3, 30


class Trainer:
    """Forward, loss, backward, optimizer step, zero_grad; enqueues and does not synchronise."""

    def __init__(
        self, model: torch.nn.Module, recipe: Recipe, device: Device, precision: Precision
    ) -> None:
        model.train()  # an exported graph's returns nothing
        self.model, self.recipe, self.device = model, recipe, device
        self.optimizer = recipe.optimizer(model)
        self.scaler = device.scaler(precision)
        self.dtype = device.autocast_dtype(precision)
        self.kind = device.torch_device().type
        self.steps = 0
        self.compared_steps = 0
        self.compared_at = 0  # the step the last of these was, counted from 1
        # Losses of the first step, of the last compared one and of the latest, unread.
        self.first: torch.Tensor | None = None
        self.compared: torch.Tensor | None = None
        self.latest: torch.Tensor | None = None

    @property
    def settings(self) -> list[str]:
        """NAME=value of what decides a step's speed beside the precision."""
        fused = any(group.get("fused") for group in self.optimizer.param_groups)
        found = [f"optimizer={type(self.optimizer).__name__}", f"optimizer.fused={fused}"]
        if self.scaler is not None:
            # Without a fused optimizer the scaler reads back whether a gradient overflowed.
            found.append(f"grad_scaler.waits_each_step={not fused}")
        return found

    def __call__(self, images: torch.Tensor, target: torch.Tensor) -> None:
        """One step on images `(N, 3, H, W)` and classes `(N,)`, both on the device."""
        with torch.autocast(self.kind, self.dtype, self.dtype is not None):
            loss = self.recipe.loss(self.model(images), target)
        self._remember(loss.detach())
        if self.scaler is None:
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        else:
            self._scaled(self.scaler, loss)
        self.optimizer.zero_grad()

    def _scaled(self, scaler: torch.amp.GradScaler, loss: torch.Tensor) -> None:
        """Backward and update with loss scaling, which skips the update when gradients overflow."""
        # Reading the scale waits for the device, so that is done in the first steps only.
        looks = self.compared_steps < COMPARED_STEPS and self.steps <= MOST_STEPS
        before = scaler.get_scale() if looks else 0.0
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(self.optimizer)
        scaler.update()
        if looks and scaler.get_scale() < before:
            self.compared_steps -= 1

    @property
    def updates_skipped(self) -> bool:
        """Whether loss scaling kept the model from learning in all steps that were looked at."""
        return self.steps >= MOST_STEPS and self.compared_steps < COMPARED_STEPS

    def _remember(self, loss: torch.Tensor) -> None:
        self.steps += 1
        self.latest = loss
        if self.first is None:
            self.first = loss
        if self.compared_steps < COMPARED_STEPS and self.steps <= MOST_STEPS:
            self.compared_steps += 1
            self.compared, self.compared_at = loss, self.steps
        if self.recipe.LOG_EVERY and self.steps % self.recipe.LOG_EVERY == 0:
            loss.item()  # what logging costs: a wait for the device


class Mark(Struct, frozen=True):
    """What one fed step left behind."""

    wait_s: float
    copying: DeviceMark
    computing: DeviceMark
    done: DeviceMark
    epoch: int


class Fed:
    """A training step that first waits for a batch and copies it to the device.

    Keeps a mark a step; `split` turns them into seconds.
    """

    def __init__(
        self, trainer: Trainer, batches: DataLoader[Any], place: Place, corrupt: list[str]
    ) -> None:
        self.trainer, self.batches, self.place = trainer, Endless(batches), place
        self.device = trainer.device
        self.marks: list[Mark] = []
        self.images = 0
        self.corrupt = corrupt

    def __call__(self) -> None:
        """Wait, copy, train."""
        start = time.perf_counter()
        self.train_on(next(self.batches), time.perf_counter() - start)

    def epoch(self, pulse: Callable[[], None]) -> int:
        """One epoch to its very end, and how many steps it had; `pulse` after each of them.

        A loader left unfinished would shuffle the next epoch otherwise.
        """
        steps = 0
        start = time.perf_counter()
        for batch in self.batches.batches:
            self.train_on(batch, time.perf_counter() - start)
            steps += 1
            pulse()
            start = time.perf_counter()
        return steps

    def train_on(self, batch: Batch, wait_s: float) -> None:
        """Copy and train on a batch that has been waited for."""
        images, target, corrupt = batch
        copying = self.device.mark()
        images, target = (
            self.place(images),
            target.to(self.device.torch_device(), non_blocking=True),
        )
        computing = self.device.mark()
        self.trainer(images, target)
        self.marks.append(Mark(wait_s, copying, computing, self.device.mark(), self.batches.turns))
        self.images += len(target)
        self.corrupt += corrupt

    def split(self, steps: Sequence[int]) -> tuple[float, float, float]:
        """Mean seconds a step of waiting, copying and computing, over these steps."""
        kept = [self.marks[step] for step in steps]
        seconds = self.device.seconds
        return (
            statistics.fmean(m.wait_s for m in kept),
            statistics.fmean(seconds(m.copying, m.computing) for m in kept),
            statistics.fmean(seconds(m.computing, m.done) for m in kept),
        )

    def boundaries(self, steps: Sequence[int]) -> int:
        """With how many of these steps an epoch began. The very first step is none of them."""
        return sum(self.marks[step].epoch != self.marks[step - 1].epoch for step in steps)


def accuracy(
    model: torch.nn.Module, batches: Iterable[Batch], place: Place, corrupt: list[str]
) -> float:
    """Share of right answers in evaluation mode; the model is left in training mode."""
    right = total = 0
    model.eval()
    with torch.inference_mode():
        for images, target, names in batches:
            guess = model(place(images)).argmax(1).cpu()
            right += int((guess == target).sum())
            total += len(target)
            corrupt += names
    model.train()
    return right / total
