"""The parent: one process a case, one record on disk before the next begins."""

from __future__ import annotations

import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from bench import cache, processes, sentinel, store
from bench.environment import cgroup
from bench.environment.fingerprints import machine_fingerprint, software_fingerprint
from bench.facts import DeviceFacts
from bench.messages import Order, Outcome, Progress
from bench.peaks import Peak
from bench.ready import Ready
from bench.schema import Case, Record, Trial, tried

LOG_KEPT = 2000  # characters of a failed worker's output that stay in its record

OnRecord = Callable[[Record], None]
OnProgress = Callable[[Progress], None]
OnStart = Callable[[Trial, int, int], None]


class Watch(Struct, frozen=True):
    """Who is told what happens."""

    started: OnStart = lambda *_: None
    progress: OnProgress = lambda _: None
    recorded: OnRecord = lambda _: None


RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{6}")


def run_id_now() -> str:
    """Sorts by time; two machines that start in the same second differ."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def run(
    ready: Ready,
    folder: Path,
    watch: Watch,
    *,
    resume: bool = False,
    rebuild: bool = False,
    own_cache: bool = False,
    named: str | None = None,
) -> str:
    """Run what has no record yet and return the run's id. Raises CannotStore.

    rebuild: nothing built by earlier cases is used. own_cache: what this run builds is used
    by its own cases only, and gone with it. named: the id to use, new or of a run to add to.
    """
    schedule = ready.schedule
    found = None
    if named is not None:
        known = {(r.case_id, r.round, r.purpose): tried(r) for r in store.records(folder, named)}
        found = (named, known)
    if resume:
        found = store.unfinished_run(
            folder, ready.hash, ready.machine, lambda tries: schedule.next(tries) is not None
        )
    run_id, done = found or (run_id_now(), {})
    index = store.next_index(folder, run_id)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        runner = Runner(
            ready,
            run_id,
            Path(scratch),
            watch,
            peaks=_peaks(folder, run_id),
            rebuild=rebuild,
            own_cache=own_cache,
        )
        while (trial := schedule.next(done)) is not None:
            guards = sum(purpose == sentinel.PURPOSE for _, _, purpose in done)
            total = schedule.length(done)
            watch.started(trial, len(done) - guards, total)
            record = runner.attempt(trial, total)
            store.append(folder, record, index)
            index += 1
            done[trial.key] = tried(record)
            if trial.purpose == sentinel.PURPOSE:
                runner.peaks.update(_peaks(folder, run_id))
            watch.recorded(record)
    return run_id


# Column of the sentinel's record -> what it is the host's peak of.
HOST_PEAKS = {"gemm_fp32_tflops": "fp32", "gemm_bf16_tflops": "bfloat16"}


def _peaks(folder: Path, run_id: str) -> dict[str, Peak]:
    found = store.host_peaks(folder, run_id)
    source = "measured: a matrix product with all cores, in this run's sentinel"
    return {HOST_PEAKS[name]: Peak(value, source) for name, value in found.items()}


class Runner(Struct, frozen=True):
    """Turns one trial into one record."""

    ready: Ready
    run_id: str
    scratch: Path
    watch: Watch
    peaks: dict[str, Peak]  # of the host, as this run's sentinel measured them
    rebuild: bool = False
    own_cache: bool = False

    def attempt(self, trial: Trial, total: int) -> Record:
        """Whatever happens to the worker, a record comes back."""
        begun, started_at = time.perf_counter(), datetime.now(UTC)
        refusal = self.ready.refusals.get(trial.case.case_id)
        # Forks share their server's memory layout and hash seed; rounds that are
        # to be compared must not, so each gets an interpreter of its own.
        fresh = trial.fresh or self.ready.plan.repeats > 1
        log = self.scratch / "worker.log"
        if refusal:
            outcome = Outcome(status="skipped", reason=refusal)
        else:
            # What a dying worker's children still write there goes with the run's own folder.
            with tempfile.TemporaryDirectory(
                prefix="case-", dir=self.scratch, ignore_cleanup_errors=True
            ) as own:
                outcome = self._in_a_process(trial, log, Path(own), fresh=fresh)
        device = self._device(trial.case)
        environment = self.ready.survey.environment
        return Record(
            run_id=self.run_id,
            plan=self.ready.plan.name,
            plan_hash=self.ready.hash,
            planned=total,
            case_id=trial.case.case_id,
            round=trial.round,
            purpose=trial.purpose,
            started_at=started_at,
            seconds=time.perf_counter() - begun,
            worker=None if refusal else ("fresh" if fresh else "forked"),
            status=outcome.status,
            reason=outcome.reason,
            warnings=outcome.warnings + _device_warnings(device),
            log=_tail(log) if outcome.status in ("failed", "timeout", "oom") else None,
            case=trial.case,
            global_batch_size=trial.case.global_batch_size,
            budget=trial.budget or self.ready.plan.budget,
            **_device_columns(device),
            machine_fingerprint=machine_fingerprint(environment, device),
            software_fingerprint=software_fingerprint(environment, device),
            environment=environment,
            measurement=outcome.measurement,
        )

    def _device(self, case: Case) -> DeviceFacts | None:
        survey = self.ready.survey
        here = [*survey.devices, *([survey.host] if case == sentinel.CASE else [])]
        return next((d for d in here if d.device == case.device), None)

    def _cache(self, own: Path) -> Path:
        """Where builds are kept: for everybody, for this run's cases, or in the case's `own`.

        Never rebuilt where others read: a run that is timing an engine may need its files.
        """
        if self.rebuild:
            return own / "cache"
        shared = self.scratch / "cache"
        return shared if self.own_cache else cache.root_or(shared)

    def _in_a_process(self, trial: Trial, log: Path, own: Path, *, fresh: bool) -> Outcome:
        case, budget = trial.case, trial.budget or self.ready.plan.budget
        device = self._device(case)
        log.unlink(missing_ok=True)
        order = Order(
            case=case,
            purpose=trial.purpose,
            budget=budget,
            started=time.monotonic(),
            log=str(log),
            root=os.getpid(),
            cache=os.fspath(self._cache(own)),
            scratch=os.fspath(own),
            idle_power_w=device.idle_power_w if device else None,
            device_name=device.device_name if device else None,
            host_peaks=self.peaks if _whole_host(case) else {},
        )
        kills = cgroup.oom_kills()
        outcomes: list[Outcome] = []

        def hear(message: bytes) -> bool:
            said = msgspec.json.decode(message, type=Progress | Outcome)
            if isinstance(said, Progress):
                self.watch.progress(said)
                return False
            outcomes.append(said)
            return True

        child = processes.Child("bench.worker", msgspec.json.encode(order), fresh=fresh)
        try:
            child.answers(budget.timeout_s, hear, alive_by_message=case.full)
        except processes.Late:
            return Outcome(
                status="timeout",
                reason=f"killed after {budget.timeout_s:g} s; allow more with --timeout SECONDS",
            )
        except processes.Gone as gone:
            if gone.words:
                return Outcome(status="failed", reason=gone.words)
            return _died(gone.code, kills, case)
        return outcomes[0]


def _whole_host(case: Case) -> bool:
    """Whether one process has the host's processors to itself, as the sentinel's product had."""
    return case.device == sentinel.CASE.device and case.world_size == 1


def _died(code: int | None, kills_before: int | None, case: Case) -> Outcome:
    """A worker that ended without an outcome: out of memory, or failed."""
    import signal

    if code is not None and code < 0:
        name = signal.Signals(-code).name
        kills = cgroup.oom_kills()
        if name == "SIGKILL" and kills is not None and kills > (kills_before or 0):
            return Outcome(
                status="oom",
                reason=f"batch {case.batch_size} does not fit: the kernel killed the worker, "
                "out of host memory",
            )
        return Outcome(status="failed", reason=f"the worker was ended by {name}")
    return Outcome(status="failed", reason=f"the worker ended without an answer (exit code {code})")


def _device_columns(device: DeviceFacts | None) -> dict[str, Any]:
    """A device's part of a record; nothing where it is not here."""
    if device is None:
        return {}
    return {
        "device_name": device.device_name,
        "device_class": device.device_class,
        "device_memory_bytes": device.memory_bytes,
        "driver": device.driver,
        "device_state": device.state,
        "simulated": device.simulated,
        "idle_power_w": device.idle_power_w,
    }


def _device_warnings(device: DeviceFacts | None) -> list[str]:
    if device is None:
        return []
    conditions = {
        "simulated": device.simulated,
        "shared_device": bool(device.state.other_processes),
    }
    return [code for code, holds in conditions.items() if holds]


def _tail(log: Path) -> str | None:
    try:
        return log.read_text(encoding="utf-8", errors="replace")[-LOG_KEPT:] or None
    except OSError:
        return None
