"""Built artefacts kept between runs: exported graphs, quantised models, compiled code.

An artefact is a folder that `make` fills, named by a hash of everything that decides
what is in it. Beside it stand the seconds of the build that made it, so that a case that
finds it still tells what a cold build costs, and a digest of each file, so that a damaged
one is built again. Nothing read from here is unpickled by this package.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock
from msgspec import Struct
from platformdirs import user_cache_path

from bench.schema import short_hash

FACTS = "artefact.json"  # written last: without it an artefact is not whole

Make = Callable[[Path], Mapping[str, Any] | None]


class Artefact(Struct, frozen=True):
    """A built folder. `seconds`: of the cold build; `took_s`: of getting it now."""

    folder: Path
    facts: dict[str, Any]  # what `make` returned when it was built
    seconds: float
    took_s: float
    cached: bool


class Written(Struct, frozen=True):
    """What FACTS holds."""

    key: dict[str, Any]
    facts: dict[str, Any]
    seconds: float
    digests: dict[str, str]  # path inside the folder -> digest


class Cache:
    """Artefacts below `root`. `rebuild`: none is taken from there, each is made anew."""

    def __init__(self, root: Path, *, rebuild: bool = False) -> None:
        self.root, self.rebuild = root, rebuild
        self.used: list[Artefact] = []

    def artefact(self, name: str, key: Mapping[str, Any], make: Make, load: Make) -> Artefact:
        """The artefact of this key, built by `make(folder)` if it is not there whole.

        `load(folder)` is called on one that is; if that raises, it is made again. Of
        several processes that want the same one, the first builds it.
        """
        folder = self.root / f"{name}-{short_hash(dict(key))}"
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            found = None if self.rebuild else self._found(folder, dict(key), load)
            self.used.append(found or _made(folder, dict(key), make))
        return self.used[-1]

    def _found(self, folder: Path, key: dict[str, Any], load: Make) -> Artefact | None:
        start = time.perf_counter()
        try:
            written = msgspec.json.decode((folder / FACTS).read_bytes(), type=Written)
            if written.key != key or any(
                digest(folder / name) != known for name, known in written.digests.items()
            ):
                return None
            load(folder)
        except Exception:  # whatever is wrong with it, it can be built again
            return None
        took_s = time.perf_counter() - start
        return Artefact(folder, written.facts, written.seconds, took_s, cached=True)

    @property
    def cached(self) -> bool | None:
        """Whether anything used was not built now; None where nothing was asked for."""
        return any(a.cached for a in self.used) if self.used else None

    @property
    def saved_s(self) -> float:
        """Seconds a cold build would have taken longer than this one did."""
        return sum(a.seconds - a.took_s for a in self.used)


def nothing(_: Path) -> None:
    """For artefacts that need no loading."""


def _made(folder: Path, key: dict[str, Any], make: Make) -> Artefact:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start = time.perf_counter()
    facts = dict(make(folder) or {})
    seconds = time.perf_counter() - start
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    digests = {p.relative_to(folder).as_posix(): digest(p) for p in files}
    written = Written(key, facts, seconds, digests)
    (folder / FACTS).write_bytes(msgspec.json.encode(written))
    return Artefact(folder, facts, seconds, seconds, cached=False)


def digest(path: Path) -> str:
    """BLAKE2b of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def passing() -> Cache:
    """In a folder of its own, for whoever has no cache to give."""
    return Cache(Path(tempfile.mkdtemp(prefix="bench-cache-")))


def root_or(otherwise: Path) -> Path:
    """The user's cache folder, or `otherwise` where that cannot be written."""
    root = user_cache_path("resnet-bench")
    try:
        root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=root).close()
    except OSError:
        return otherwise
    return root
