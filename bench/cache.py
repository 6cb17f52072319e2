"""Built artefacts kept between runs: exported graphs, quantised models, compiled code.

An artefact is a folder that `make` fills, named by a hash of everything that decides
what is in it. It is filled beside its place and renamed into it when it is whole: what has
once been found there does not change under whoever reads it. In it stand the seconds of the
build that made it, so that a case that finds it still tells what a cold build costs, and a
digest of each file, so that a damaged one is built again. Nothing read from here is
unpickled by this package.
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

Fill = Callable[[Path], None]


class Artefact(Struct, frozen=True):
    """A built folder. `seconds`: of the cold build; `took_s`: of getting it now.

    seconds is None where a build with another number of threads made it: what it would take
    with the case's own was not measured.
    """

    folder: Path
    seconds: float | None
    took_s: float
    cached: bool


class Written(Struct, frozen=True):
    """What FACTS holds."""

    key: dict[str, Any]
    seconds: float
    threads: int | None
    digests: dict[str, str]  # path inside the folder -> digest


class Cache:
    """Artefacts below `root`, for a case that has so many `threads`.

    scratch: a folder of the case's own, gone with it; None: the system's for such things.
    """

    def __init__(
        self, root: Path, *, threads: int | None = None, scratch: Path | None = None
    ) -> None:
        self.root, self.threads, self.scratch = root, threads, scratch
        self.used: list[Artefact] = []

    def artefact(self, name: str, key: Mapping[str, Any], make: Fill, load: Fill) -> Artefact:
        """The artefact of this key, built by `make(folder)` if it is not there whole.

        `load(folder)` is called on one that is; if that raises, it is made again. Of
        several processes that want the same one, the first builds it.
        """
        start = time.perf_counter()  # waiting for another's build is no part of a cold one
        folder = self.root / f"{name}-{short_hash(dict(key))}"
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            found = _found(folder, dict(key), load)
            written = found or self._made(folder, dict(key), make)
        seconds = written.seconds if written.threads == self.threads else None
        took_s = time.perf_counter() - start
        self.used.append(Artefact(folder, seconds, took_s, cached=found is not None))
        return self.used[-1]

    def fresh(self) -> Path:
        """An empty folder for what is built now, whatever was built before, and not kept."""
        folder = Path(tempfile.mkdtemp(prefix="fresh-", dir=self.scratch))
        self.used.append(Artefact(folder, 0.0, 0.0, cached=False))
        return folder

    def _made(self, folder: Path, key: dict[str, Any], make: Fill) -> Written:
        building = folder.with_suffix(".new")
        shutil.rmtree(building, ignore_errors=True)  # of a build that was killed
        building.mkdir()
        start = time.perf_counter()
        make(building)
        seconds = time.perf_counter() - start
        files = sorted(p for p in building.rglob("*") if p.is_file())
        digests = {p.relative_to(building).as_posix(): digest(p) for p in files}
        written = Written(key, seconds, self.threads, digests)
        (building / FACTS).write_bytes(msgspec.json.encode(written))
        shutil.rmtree(folder, ignore_errors=True)  # only ever one that is of no use
        building.rename(folder)
        return written

    @property
    def cached(self) -> bool | None:
        """Whether anything used was not built now; None where nothing was asked for."""
        return any(a.cached for a in self.used) if self.used else None

    @property
    def saved_s(self) -> float | None:
        """Seconds a cold build would have taken longer than this one did; None: not measured."""
        saved = [None if a.seconds is None else a.seconds - a.took_s for a in self.used]
        known = [seconds for seconds in saved if seconds is not None]
        return sum(known) if len(known) == len(saved) else None


def nothing(_: Path) -> None:
    """For artefacts that need no loading."""


def _found(folder: Path, key: dict[str, Any], load: Fill) -> Written | None:
    try:
        written = msgspec.json.decode((folder / FACTS).read_bytes(), type=Written)
        if written.key != key or any(
            digest(folder / name) != known for name, known in written.digests.items()
        ):
            return None
        load(folder)
    except Exception:  # whatever is wrong with it, it can be built again
        return None
    return written


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
