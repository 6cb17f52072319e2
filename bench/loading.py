"""From a data source to batches: transforms, a real DataLoader, corrupt images replaced."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import msgspec
import torch
from msgspec import Struct
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler, Sampler, Subset

from bench.data import Images, Source
from bench.errors import Refused
from bench.processes import die_with_parent
from bench.schema import Case

# ImageNet's mean and deviation, torchvision's usual normalisation.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRIES = 100  # images tried in place of a corrupt one

# Seeds of synthetic images that no step and no request sees.
FOR_TRAINING, FOR_TESTING = 1_000_000, 2_000_000

Batch = tuple[torch.Tensor, torch.Tensor, list[str]]


class Decoded(Dataset[tuple[torch.Tensor, int, list[str]]]):
    """Images decoded, resized, scaled and normalised, one at a time."""

    def __init__(self, images: Images, side: int) -> None:
        from torchvision import transforms

        self.images, self.side = images, side
        self.transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(MEAN, DEVIATION)]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, list[str]]:
        """`(3, side, side)` float32, its class, and the names of corrupt images passed over."""
        corrupt: list[str] = []
        for step in range(min(TRIES, len(self))):
            here = (index + step) % len(self)
            try:
                image, label = self.images[here]
            except Exception:  # decoders raise what they like; the image is named in the record
                corrupt.append(self.images.name(here))
                continue
            return self._tensor(image), label, corrupt
        raise Refused(f"{len(corrupt)} images in a row could not be decoded, from {corrupt[0]} on")

    def _tensor(self, image: Any) -> torch.Tensor:
        from PIL import Image

        size = image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])
        if size != (self.side, self.side):
            picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
            image = picture.resize((self.side, self.side), Image.Resampling.BILINEAR)
        tensor: torch.Tensor = self.transform(image)
        return tensor


def collate(items: list[tuple[torch.Tensor, int, list[str]]]) -> Batch:
    """Stack a batch and gather the names of corrupt images."""
    images, labels, corrupt = zip(*items, strict=True)
    return torch.stack(images), torch.tensor(labels), [name for names in corrupt for name in names]


def place_among_ranks() -> tuple[int, int]:
    """This process's rank and how many there are: 0 of 1 where it works alone."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


class Loaders(Struct, frozen=True):
    """Makes the case's DataLoaders. `pin`: host memory is pinned for asynchronous copies."""

    case: Case
    source: Source
    pin: bool

    def train(self, *, whole: bool = False) -> DataLoader[Any]:
        """Seeded shuffle. `whole` keeps the last, smaller batch of an epoch.

        A last batch of a single image is dropped all the same: BatchNorm cannot train on it.
        """
        images = Decoded(self.source.train, self.case.image_size)
        single = len(images) % self.case.batch_size == 1
        return self._loader(images, shuffle=True, drop=not whole or single)

    def short(self) -> DataLoader[Any]:
        """Like `train`, but soon at its end: to time what happens between two epochs."""
        images = Decoded(self.source.train, self.case.image_size)
        few = self.case.global_batch_size * (2 * self._workers + 1)
        return self._loader(Subset(images, range(min(few, len(images)))), shuffle=True, drop=True)

    def test(self, *, whole: bool = False) -> DataLoader[Any]:
        """Fixed order, same transforms, no augmentation; training images where no others are."""
        images = Decoded(self.source.test or self.source.train, self.case.image_size)
        return self._loader(images, shuffle=False, drop=not whole)

    def drawn(self, count: int, size: int, *, train: bool) -> Iterator[Batch]:
        """Whole batches of `size`, `count` images at least, drawn at random and seeded.

        Of training or of test images; every one is drawn once before any is drawn again. Where
        there are no test images, they come from the other end of the training images' order.
        """
        batches = math.ceil(count / size)
        if self.source.pretend:
            # Drawn at once: the same images whatever the size of a batch.
            seed = self.case.seed + (FOR_TRAINING if train else FOR_TESTING)
            case = msgspec.structs.replace(self.case, batch_size=batches * size, seed=seed)
            made = synthetic_batch(case, self.source.classes)
            for few, classes in zip(
                torch.split(made[0], size), torch.split(made[1], size), strict=True
            ):
                yield few, classes, []
            return
        part = self.source.train if train else self.source.test or self.source.train
        images = Decoded(part, self.case.image_size)
        generator = torch.Generator().manual_seed(self.case.seed)
        drawn = torch.randperm(len(images), generator=generator)
        order = itertools.cycle((drawn if train else drawn.flip(0)).tolist())
        for _ in range(batches):
            yield collate([images[index] for index in itertools.islice(order, size)])

    @property
    def _workers(self) -> int:
        return self.case.loader_workers or 0

    def _order(self, images: Dataset[Any]) -> Sampler[int]:
        """Shuffled by a generator of its own; of several ranks, each has its share.

        The loader draws from its generator too, once an epoch or once for all
        depending on its workers; sharing it would make the order depend on them.
        """
        rank, ranks = place_among_ranks()
        if ranks > 1:
            return DistributedSampler(images, ranks, rank, seed=self.case.seed)
        generator = torch.Generator().manual_seed(self.case.seed)
        return RandomSampler(images, generator=generator)  # type: ignore[arg-type]

    def _loader(self, images: Dataset[Any], *, shuffle: bool, drop: bool) -> DataLoader[Any]:
        count, batch = len(images), self.case.batch_size  # type: ignore[arg-type]
        if drop and count < batch:
            raise Refused(
                f"{count} images are fewer than one batch of {batch}; use a smaller --batch-size"
            )
        return DataLoader(
            images,
            batch_size=batch,
            sampler=self._order(images) if shuffle else None,
            generator=torch.Generator().manual_seed(self.case.seed),
            num_workers=self._workers,
            collate_fn=collate,
            drop_last=drop,
            pin_memory=self.pin,
            persistent_workers=self._workers > 0,
            worker_init_fn=_loader_worker,
            multiprocessing_context="fork" if self._workers else None,
        )


def _loader_worker(_: int) -> None:
    """One thread each, and death with the process that asked for the data."""
    torch.set_num_threads(1)
    die_with_parent()


class Endless:
    """Epoch after epoch; `turns` counts the epochs that have begun."""

    def __init__(self, batches: DataLoader[Any]) -> None:
        self.batches, self.turns = batches, 0
        self.epoch: Iterator[Batch] = iter(())

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        for batch in self.epoch:
            return batch
        if isinstance(self.batches.sampler, DistributedSampler):
            self.batches.sampler.set_epoch(self.turns)  # another order every epoch
        self.epoch = iter(self.batches)
        self.turns += 1
        return next(self.epoch)


def synthetic_batch(case: Case, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One seeded batch on the host: images `(N, 3, side, side)` normal, labels uniform."""
    generator = torch.Generator().manual_seed(case.seed)
    shape = (case.batch_size, 3, case.image_size, case.image_size)
    images = torch.randn(shape, generator=generator)
    return images, torch.randint(classes, (case.batch_size,), generator=generator)
