"""Class folders of images: folder:DIR, with train/ and test/ below it if there are any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.data import Source
from bench.errors import Refused, WrongUse
from bench.schema import Case

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm"}
EXPECTED = "expected DIR/CLASS/IMAGE, or DIR/train/CLASS/IMAGE and DIR/test/CLASS/IMAGE"


def check(argument: str) -> None:
    """The folder must exist and hold at least one image in a class folder."""
    if not argument:
        raise WrongUse("--data folder needs a folder: --data folder:DIR.")
    root = Path(argument)
    try:
        if not root.is_dir():
            raise WrongUse(f"--data folder:{argument}: there is no such folder.")
        for part in {_part(root, "train"), _part(root, "test")}:
            if not next(_images(part), None):
                raise WrongUse(f"--data folder:{argument}: no images in {part}; {EXPECTED}.")
    except OSError as error:
        raise WrongUse(f"--data folder: {error.strerror}: {argument[:80]}") from error


def prepare(argument: str) -> None:
    """Nothing to fetch."""


def open_source(argument: str, case: Case) -> Source:  # noqa: ARG001 - a source's signature
    """Images in sorted order; classes are numbered by the sorted folders of the training images."""
    root = Path(argument)
    train = Folder(_part(root, "train"))
    if _part(root, "test") == root:
        return Source(train, None, len(train.classes))
    test = Folder(_part(root, "test"), train.classes)
    return Source(train, test, len(train.classes))


def _part(root: Path, part: str) -> Path:
    """`root/train` (or `root/test`, `root/val`) where there is one, else the folder itself."""
    names = [part, "val"] if part == "test" else [part]
    return next((root / name for name in names if (root / name).is_dir()), root)


def _images(root: Path) -> Any:
    """Paths of images one class folder deep, sorted."""
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        yield from sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)


class Folder:
    """Decodes with PIL at every access, as training does."""

    def __init__(self, root: Path, classes: list[str] | None = None) -> None:
        self.paths = [str(p) for p in _images(root)]
        own = sorted({Path(p).parent.name for p in self.paths})
        self.classes = own if classes is None else classes
        strange = sorted(set(own) - set(self.classes))
        if strange:
            raise Refused(f"{root} has classes that training images lack: {', '.join(strange)}")
        number = {name: i for i, name in enumerate(self.classes)}
        self.labels = [number[Path(p).parent.name] for p in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        with Image.open(self.paths[index]) as image:
            return image.convert("RGB"), self.labels[index]

    def name(self, index: int) -> str:
        """Class folder and file."""
        path = Path(self.paths[index])
        return f"{path.parent.name}/{path.name}"
