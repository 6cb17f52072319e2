"""Seeded random images; no files needed."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.data import Source
from bench.errors import WrongUse
from bench.schema import Case

CLASSES = 1000
EPOCH = 50_000  # images an epoch has when a job is projected: as many as CIFAR-10
POOL = 256  # different images kept in memory


def check(argument: str) -> None:
    """Takes no argument."""
    if argument:
        raise WrongUse(f"--data synthetic takes nothing after the colon, not {argument!r}.")


def prepare(argument: str) -> None:
    """Nothing to fetch."""


def open_source(argument: str, case: Case) -> Source:  # noqa: ARG001 - a source's signature
    """uint8 images on the host, to go through the same loader and transforms as real ones."""
    images = Noise(case.image_size, case.classes or CLASSES, case.seed)
    return Source(images, images, case.classes or CLASSES, pretend=True)


class Noise:
    """As many images as CIFAR-10 trains on, repeating a small pool."""

    def __init__(self, side: int, classes: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.pool = random.integers(0, 256, (POOL, side, side, 3), dtype=np.uint8)
        self.classes = classes

    def __len__(self) -> int:
        return EPOCH

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.pool[index % POOL], index % self.classes

    def name(self, index: int) -> str:
        """Never needed: noise is never corrupt."""
        return f"synthetic image {index}"
