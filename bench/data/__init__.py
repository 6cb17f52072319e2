"""Where images come from: one file a source.

A source file holds `check(argument)` (runs in the parent, without torch; raises
WrongUse), `prepare(argument)` (may download; raises Refused) and
`open_source(argument, case)`. The argument is what follows the colon in
`--data folder:DIR`; it is empty without one. torch is imported inside functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

from bench import registry

if TYPE_CHECKING:
    from types import ModuleType

    from bench.schema import Case


class Images(Protocol):
    """An indexable set of images."""

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """A PIL image or uint8 array `(H, W, 3)`, and its class. Raises OSError if corrupt."""
        ...

    def name(self, index: int) -> str:
        """What to call an image in a message."""
        ...


class Source(Struct, frozen=True):
    """An opened data source."""

    train: Images
    test: Images | None  # None: there are only training images
    classes: int
    pretend: bool = False  # synthetic images


def split(data: str) -> tuple[str, str]:
    """`folder:DIR` → (`folder`, `DIR`)."""
    name, _, argument = data.partition(":")
    return name, argument


def plugin(data: str) -> ModuleType:
    """The module of a case's data source."""
    return registry.load("data", split(data)[0])


def open_source(case: Case) -> Source:
    """Open the case's data."""
    source: Source = plugin(case.data).open_source(split(case.data)[1], case)
    return source
