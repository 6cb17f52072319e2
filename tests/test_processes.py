"""One process a case: what the parent does meanwhile, and what happens when something dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.conftest import TINY, heed_interrupts

LONG = [*TINY[:-1], "60", "--target-ci", "0.001%"]


@contextmanager
def started(
    cwd: Path, *arguments: str, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """`bench` running; killed at the end whatever happens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", *arguments],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        preexec_fn=heed_interrupts,  # noqa: PLW1509 - there are no threads
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def worker_of(process: subprocess.Popen[str], busy_s: float = 1.0) -> psutil.Process:
    """The worker below a running `bench` that measures the first case, once it has computed."""
    deadline = time.monotonic() + 120
    results = Path(psutil.Process(process.pid).cwd()) / "reports" / "data"
    while time.monotonic() < deadline:
        if not list(results.glob("*.parquet")):  # the sentinel is measured first
            time.sleep(0.05)
            continue
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                # A worker leads a process group of its own.
                if os.getpgid(child.pid) == child.pid and sum(child.cpu_times()[:2]) > busy_s:
                    return child
            except (psutil.NoSuchProcess, ProcessLookupError):
                continue
        time.sleep(0.05)
    raise AssertionError("no worker was seen")


@pytest.mark.serial
@pytest.mark.slow
def test_the_parent_waits_without_using_the_processor(tmp_path: Path) -> None:
    """While a worker measures for two seconds the parent computes for less than 0.1 s."""
    with started(tmp_path, "run", *LONG) as process:
        worker_of(process)
        parent = psutil.Process(process.pid)
        before = sum(parent.cpu_times()[:2])
        time.sleep(2)
        assert sum(parent.cpu_times()[:2]) - before < 0.1


# Long enough that the signal arrives while cases are left, also beside another test.
GRID = [*TINY[:-1], "0.8", "--task", "infer", "--batch-size", "1,2,3", "--json"]


def statuses(folder: Path) -> dict[int, str]:
    """Batch size -> status of every readable record but the sentinel's."""
    import pandas as pd

    frame = pd.read_parquet(folder)
    frame = frame[frame["purpose"] == "grid"]
    return dict(zip(frame["batch_size"], frame["status"], strict=True))


def run_ids(folder: Path) -> set[str]:
    import pandas as pd

    return set(pd.read_parquet(folder)["run_id"])


def resumed(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", "run", *arguments, "--resume"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_keeps_its_records_and_resumes(
    tmp_path: Path, sent: signal.Signals
) -> None:
    """Finished cases stay, no worker outlives the parent, --resume does only the rest."""
    folder = tmp_path / "reports" / "data"
    with started(tmp_path, "run", *GRID) as process:
        assert process.stdout is not None
        for _ in ("sentinel", "case"):
            process.stdout.readline()
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(sent)
        code = process.wait(timeout=20)
    assert code == (-sent if sent is signal.SIGKILL else 130)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    kept = statuses(folder)
    assert set(kept.values()) == {"measured"}
    assert 1 <= len(kept) < 3
    done = resumed(tmp_path, *GRID)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3 - len(kept) + 1  # and the last sentinel
    assert statuses(folder) == {1: "measured", 2: "measured", 3: "measured"}
    assert len(run_ids(folder)) == 1


@pytest.mark.slow
def test_another_plan_is_not_resumed(tmp_path: Path) -> None:
    """--resume matches the plan's hash; a finished run of it is not continued either."""
    for _ in range(2):
        done = resumed(tmp_path, *GRID[:-3], "--batch-size", "1")
        assert done.returncode == 0, done.stderr
    assert len(run_ids(tmp_path / "reports" / "data")) == 2


@pytest.mark.slow
def test_a_killed_worker_is_one_failed_record(tmp_path: Path) -> None:
    """The signal is named, the next case is measured, the exit code says 4."""
    arguments = [*LONG[:-3], "3", "--task", "infer", "--batch-size", "1,2"]
    with started(tmp_path, "run", *arguments) as process:
        worker_of(process).kill()
        out, err = process.communicate(timeout=120)
    assert process.returncode == 4, err
    assert "ended by SIGKILL" in out
    assert statuses(tmp_path / "reports" / "data") == {1: "failed", 2: "measured"}


@pytest.mark.slow
def test_a_hung_case_is_killed_at_its_timeout(tmp_path: Path) -> None:
    """A stopped worker answers nothing; it becomes `timeout` and the next case runs."""
    arguments = [*LONG[:-3], "2", "--task", "infer", "--batch-size", "1,2", "--timeout", "12"]
    with started(tmp_path, "run", *arguments) as process:
        worker = worker_of(process)
        worker.suspend()
        out, _ = process.communicate(timeout=120)
        assert not worker.is_running()
    assert process.returncode == 4
    assert "killed after 12 s" in out
    assert statuses(tmp_path / "reports" / "data") == {1: "timeout", 2: "measured"}


def limited(code: str, *arguments: str) -> list[str]:
    """`bench` in an interpreter that first runs `code`."""
    return [sys.executable, "-c", f"{code}; import bench.cli; bench.cli.main()", *arguments]


@pytest.mark.slow
def test_out_of_memory_is_a_result(tmp_path: Path) -> None:
    """Under a limit of address space the big batch is `oom`, the small one measured, exit 0."""
    limit = "import resource as r; r.setrlimit(r.RLIMIT_AS, (12 * 10**9, 12 * 10**9))"
    # The first feature map of the CIFAR stem is 12.8 MB an image at 224 px.
    arguments = ["run", "--plan", "one", "--model", "resnet18_cifar", "--max-seconds", "0.3"]
    arguments += ["--batch-size", "1024,1"]
    done = subprocess.run(
        limited(limit, *arguments), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert statuses(tmp_path / "reports" / "data") == {1024: "oom", 1: "measured"}, done.stdout
    assert done.returncode == 0, done.stderr


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A memory cgroup of 1.5 GiB below our own; skips where none can be made."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = {line.split(":")[1]: line.split(":")[2] for line in lines}
    two = "memory" not in own
    parent = Path("/sys/fs/cgroup" if two else "/sys/fs/cgroup/memory") / own.get(
        "" if two else "memory", "/"
    ).strip("/")
    group = parent / f"bench-test-{os.getpid()}"
    try:
        group.mkdir()
        limit = group / ("memory.max" if two else "memory.limit_in_bytes")
        limit.write_text(str(1536 * 2**20))
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"no memory cgroup can be made here ({error})")
    yield group
    for _ in range(100):
        try:
            group.rmdir()
            return
        except OSError:
            time.sleep(0.1)


@pytest.mark.slow
def test_the_kernels_killer_takes_the_worker_and_not_the_parent(
    tmp_path: Path, small_cgroup: Path
) -> None:
    """In a small cgroup the worker is killed: `oom`, and the next case is measured."""
    move = f"import os; open({str(small_cgroup / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))"
    arguments = ["run", *TINY[:-3], "224", *TINY[-2:], "--task", "infer"]
    arguments += ["--batch-size", "512,1"]
    done = subprocess.run(
        limited(move, *arguments), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    found = statuses(tmp_path / "reports" / "data")
    assert found == {512: "oom", 1: "measured"}, done.stdout + done.stderr
    assert "the kernel killed the worker" in done.stdout


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB; skips where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.mark.slow
def test_a_full_disk_loses_no_finished_record(tmp_path: Path, small_disk: Path) -> None:
    """The run ends with a sentence and the unsaved result; the earlier record is readable."""
    with started(tmp_path, "run", *GRID, "--results", str(small_disk)) as process:
        assert process.stdout is not None
        for _ in ("sentinel", "case"):
            process.stdout.readline()
        filler = small_disk / ".filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"0" * 4096)
            except OSError:
                pass
        _, err = process.communicate(timeout=120)
    assert process.returncode == 4
    assert "could not be written" in err
    assert "images/s" in err.splitlines()[-2] + err.splitlines()[-1]
    assert statuses(small_disk) == {1: "measured"}
    assert not list(small_disk.glob(".partial-*"))
