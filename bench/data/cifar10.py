"""CIFAR-10 by torchvision, downloaded to ./data once; cifar10:DIR to keep it elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.data import Source
from bench.errors import Refused
from bench.schema import Case

PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"


def check(argument: str) -> None:
    """Any folder will do; it is made if it is absent."""


def prepare(argument: str) -> None:
    """Verify the files by their checksums, or download them."""
    from torchvision.datasets import CIFAR10

    root = _root(argument)
    try:
        CIFAR10(root, download=False)
    except RuntimeError:
        pass
    else:
        return
    try:
        CIFAR10(root, download=True)
    except (OSError, RuntimeError) as error:
        raise Refused(
            f"CIFAR-10 is not in {root}/ and could not be downloaded ({error}); put "
            f"cifar-10-python.tar.gz from {PAGE} there, or use --data folder:DIR with class "
            "folders of images, or --data synthetic"
        ) from error


def open_source(argument: str, case: Case) -> Source:  # noqa: ARG001 - a source's signature
    """50,000 training and 10,000 test images of 32×32."""
    return Source(Cifar(_root(argument), train=True), Cifar(_root(argument), train=False), 10)


def _root(argument: str) -> Path:
    return Path(argument or "data")


class Cifar:
    """uint8 images in memory, as torchvision keeps them."""

    def __init__(self, root: Path, *, train: bool) -> None:
        from torchvision.datasets import CIFAR10

        self.data = CIFAR10(root, train=train, download=False)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.data[index]
        return image, int(label)

    def name(self, index: int) -> str:
        """By number: they have no files."""
        return f"CIFAR-10 image {index}"
