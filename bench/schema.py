"""The nouns. Frozen, without torch objects; a Record is one row of Parquet.

The columns, their types, order and descriptions all come from these classes:
`columns()` is what the store writes and what the README documents.
"""

from __future__ import annotations

import hashlib
import types
import typing
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Struct

from bench.facts import DEVICE_NAME, DRIVER, DeviceState, Environment, Fingerprint, doc
from bench.measurement import Measurement

SCHEMA_VERSION = 1

Task = Literal["train", "infer"]
Status = Literal["measured", "skipped", "oom", "failed", "timeout"]


class Case(Struct, frozen=True, kw_only=True):
    """One cell of the grid: everything that decides what is run, and nothing else."""

    model: Annotated[str, doc("name from `bench list models`")] = "resnet50"
    weights: Annotated[str, doc("`random` (seeded), `default` (torchvision's) or a file")] = (
        "random"
    )
    task: Annotated[Task, doc("`train` or `infer`")] = "infer"
    device: Annotated[str, doc("`cpu`, `cuda:0`, …")] = "cpu"
    engine: Annotated[str, doc("what executes the model: `eager`, …")] = "eager"
    engine_mode: Annotated[
        str | None, doc("a way of working of this engine, e.g. `max-autotune`; null: its usual one")
    ] = None
    precision: Annotated[str, doc("`fp32`, `tf32`, `amp`, `amp-fp16`, `amp-bf16`, `int8`")] = "fp32"
    batch_size: Annotated[int, doc("images per device and step")] = 1
    image_size: Annotated[int, doc("side of the square input in pixels")] = 224
    classes: Annotated[int | None, doc("outputs of the model; null: as many as the data has")] = (
        None
    )
    data: Annotated[str, doc("`synthetic`, `cifar10` or `folder:DIR`")] = "synthetic"
    loader_workers: Annotated[
        int | None, doc("DataLoader processes; null: images wait on the device, no loader")
    ] = None
    recipe: Annotated[str, doc("how training steps are made: optimizer, loss")] = "sgd"
    epochs: Annotated[int | None, doc("length of the job a time is projected to")] = None
    full: Annotated[bool, doc("all epochs were trained, nothing is projected")] = False
    memory_format: Annotated[str, doc("`channels_last` or `contiguous`")] = "channels_last"
    cudnn_benchmark: Annotated[
        bool, doc("cuDNN may search for the fastest kernels; never when deterministic")
    ] = True
    deterministic: Annotated[bool, doc("torch's deterministic algorithms, where it has them")] = (
        False
    )
    threads: Annotated[int | None, doc("intra-op threads asked for; null: the device's choice")] = (
        None
    )
    calibration_images: Annotated[
        int, doc("training images INT8 ranges are taken from, at least")
    ] = 32
    world_size: Annotated[
        int, doc("devices that train together (DistributedDataParallel), each batch_size images")
    ] = 1
    seed: Annotated[int, doc("decides weights, order of data and synthetic images")] = 42

    @property
    def case_id(self) -> str:
        """Readable and stable: fields at their default are left out after the first seven."""
        head = f"{self.model}/{self.task}/{self.device}/{self.engine}/{self.precision}"
        parts = [head, f"b{self.batch_size}", f"px{self.image_size}"]
        for name in _TAIL:
            value, default = getattr(self, name), _DEFAULTS[name]
            if value != default:
                text = str(value).lower() if isinstance(value, bool) else value
                parts.append(name if value is True else f"{name}={text}")
        return "/".join(parts)

    @property
    def global_batch_size(self) -> int:
        """Images per step over all devices."""
        return self.batch_size * self.world_size


_HEAD = ("model", "task", "device", "engine", "precision", "batch_size", "image_size")
_DEFAULTS: dict[str, Any] = {f.name: f.default for f in msgspec.structs.fields(Case)}
_TAIL = tuple(name for name in _DEFAULTS if name not in _HEAD)


class Budget(Struct, frozen=True, kw_only=True):
    """How hard to measure."""

    name: Annotated[str, doc("`quick`, `standard`, `strict`, or `custom`")] = "quick"
    target_ci: Annotated[float, doc("wanted half-width of the 95 % interval, relative")] = 0.02
    min_samples: Annotated[int, doc("fewer steady samples give no interval")] = 8
    max_samples: Annotated[int, doc("throughput samples at most")] = 1000
    min_seconds: Annotated[float, doc("steady measuring time at least")] = 2.0
    max_seconds: Annotated[
        float, doc("measuring time of the throughput protocol; at most twice that for min_samples")
    ] = 8.0
    warmup_share: Annotated[float, doc("largest share of max_seconds spent on warm-up")] = 0.25
    latency_requests: Annotated[int, doc("requests of the latency protocol at most")] = 400
    latency_seconds: Annotated[float, doc("seconds of the latency protocol at most")] = 4.0
    fidelity_images: Annotated[
        int, doc("inputs on which INT8 is compared with eager fp32; 0: it is not")
    ] = 256
    fidelity_of: Annotated[
        Literal["int8", "all"], doc("which precisions are: `all` but fp32 and tf32, or INT8 alone")
    ] = "int8"
    timeout_s: Annotated[
        float,
        doc("a case still running then is killed; when training fully, after so much silence"),
    ] = 300.0


BUDGETS = {
    "quick": Budget(),
    "standard": Budget(
        name="standard",
        target_ci=0.01,
        min_seconds=5.0,
        max_seconds=60.0,
        latency_requests=4000,
        latency_seconds=60.0,
        timeout_s=1800.0,
    ),
    "strict": Budget(
        name="strict",
        target_ci=0.005,
        min_samples=16,
        max_samples=5000,
        min_seconds=20.0,
        max_seconds=300.0,
        latency_requests=5000,
        latency_seconds=300.0,
        timeout_s=7200.0,
    ),
}


Key = tuple[str, int, str]  # case_id, round, purpose


class Tried(Struct, frozen=True, kw_only=True):
    """What a schedule knows of a try that has a record; None where it was not measured."""

    status: Status
    batch_size: int
    seconds: float = 0.0
    images_per_s: float | None = None
    latency_ms: dict[str, float | None] = {}  # percentile -> milliseconds
    memory_bytes: int | None = None
    top1_agreement: float | None = None
    note: str | None = None  # why there is none
    warnings: list[str] = []
    measurement: Measurement = Measurement()


PERCENTILES = ("p50", "p90", "p95", "p99", "p999")


class Trial(Struct, frozen=True, kw_only=True):
    """One try of a case; every try becomes one Record."""

    case: Case
    round: int = 1
    purpose: str = "grid"
    budget: Budget | None = None  # None: the plan's
    fresh: bool = False  # in an interpreter of its own, whatever the plan's rounds

    @property
    def key(self) -> Key:
        """What tells two tries of one run apart."""
        return (self.case.case_id, self.round, self.purpose)


class Record(Struct, frozen=True, kw_only=True):
    """One try of one case: one row of Parquet."""

    schema_version: Annotated[int, doc("version of these columns")] = SCHEMA_VERSION
    run_id: Annotated[str, doc("names the run; sorts by time")]
    plan: Annotated[str, doc("name of the plan")]
    plan_hash: Annotated[str, doc("hash of the cases and the budget; --resume matches it")]
    planned: Annotated[
        int, doc("cases this run has, as far as it was known; a search finds its own")
    ]
    case_id: Annotated[str, doc("readable name of the case; names a series in time")]
    round: Annotated[int, doc("which repetition, from 1")]
    purpose: Annotated[
        str,
        doc(
            "why it was tried: `grid` for a case, `search` and the short `fit` for the largest "
            "batch, `screen` for the short and `final` for the last tries of `bench best`, "
            "`confirm` for a night's suspects measured again, "
            "`sentinel` for the fixed work first and last"
        ),
    ]
    started_at: Annotated[datetime, doc("UTC")]
    seconds: Annotated[float, doc("wall seconds of the whole try, process start included")]
    worker: Annotated[
        str | None, doc("`forked` or `fresh` interpreter; null when none was started")
    ]
    status: Annotated[Status, doc("`measured`, `skipped`, `oom`, `failed` or `timeout`")]
    reason: Annotated[str | None, doc("why not measured")] = None
    warnings: Annotated[list[str], doc("codes; `bench report` spells them out")]
    log: Annotated[str | None, doc("end of what the worker printed, when it failed")] = None
    case: Case
    global_batch_size: Annotated[int, doc("images per step over all devices")]
    budget: Budget
    device_name: Annotated[str | None, DEVICE_NAME] = None
    device_class: Annotated[str | None, doc("`cpu` or `gpu`")] = None
    device_memory_bytes: Annotated[int | None, doc("memory of the device")] = None
    driver: Annotated[str | None, DRIVER] = None
    device_state: DeviceState = DeviceState()
    simulated: Annotated[bool, doc("made on a simulated device: never a measurement")] = False
    idle_power_w: Annotated[
        float | None, doc("watts of the device before the first case, subtracted from its energy")
    ] = None
    machine_fingerprint: Annotated[str, doc("hash of what the machine and this device are")]
    software_fingerprint: Annotated[str, doc("hash of what can be changed on them")]
    environment: Environment
    measurement: Measurement


def tried(record: Record) -> Tried:
    """What a schedule needs of a record."""
    m = record.measurement
    return Tried(
        status=record.status,
        batch_size=record.case.batch_size,
        seconds=record.seconds,
        images_per_s=m.throughput_images_per_s,
        latency_ms={p: getattr(m, f"latency_{p}_ms") for p in PERCENTILES},
        memory_bytes=m.peak_device_memory_bytes or m.peak_host_memory_bytes,
        top1_agreement=m.top1_agreement,
        note=m.top1_agreement_note,
        warnings=record.warnings,
        measurement=m,
    )


# The meaning of every code in `warnings`, for tables and reports.
WARNINGS = {
    "too_few_samples": "too few samples for an interval; give it more time with --max-seconds",
    "target_not_reached": "the interval is wider than asked for; give it more time",
    "not_steady": "the speed never settled or drifted while measured; no interval would be honest",
    "two_state": "the speed has two states, and no interval would be honest; see samples_s",
    "contaminated": "others disturbed more than half of the time: not a clean number, no interval",
    "latency_contaminated": "others disturbed most requests; percentiles keep all of them",
    "power_limited": "power or temperature capped the device's clocks: a state, not a disturbance",
    "device_waited": "the device was idle over a fifth of the time, waiting for the host or its "
    "data; try a larger batch, --engine compile or cudagraph, --loader-workers",
    "shared_device": "other processes computed on the device before this run",
    "clocks_disagree": "the device's own clock differs from the wall clock by over 5 %; wall time "
    "is what counts",
    "samples_left_out": "samples that others disturbed are left out (sample_marks says by what)",
    "fidelity_unproven": "random weights cannot show what this precision does to accuracy",
    "emulated": "this device has no units for this precision; it is emulated",
    "simulated": "made on a simulated device; not a measurement",
    "updates_skipped": "loss scaling skipped nearly every update, since gradients overflow: steps "
    "without updates are faster",
    "few_requests": "too few requests for p99; give it more time with --budget standard",
    "no_test_images": "the data has no test/ or val/ folder, so no test accuracy was measured",
    "corrupt_images": "some images could not be decoded and were replaced",
    "pretend_data": "synthetic images stood in for the real data set",
    "not_deterministic": "an operation has no deterministic form; nondeterministic_operations "
    "names it",
}


class Column(Struct, frozen=True):
    """One column of the Parquet file. `path` leads to its value inside the noun."""

    name: str
    type: Any  # bool, int, float, str, datetime, list[str] or list[float]
    nullable: bool
    description: str
    path: tuple[str, ...]
    default: Any = msgspec.NODEFAULT  # what a record from before the column means by its absence
    fingerprint: Fingerprint | None = None  # the one that is made of it

    def value(self, noun: Struct) -> Any:
        """What `noun` holds in this column."""
        value: Any = noun
        for name in self.path:
            value = getattr(value, name)
        return value


PREFIXES = {"budget": "budget_"}  # `name` alone would not say whose name it is


@cache
def columns(struct: type[Struct] = Record) -> tuple[Column, ...]:
    """Every column in order, from the annotations of `struct`, nested nouns flattened."""
    return tuple(_walk(struct, (), ""))


def _walk(struct: type[Struct], path: tuple[str, ...], prefix: str) -> Iterator[Column]:
    hints = typing.get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        hint, meta = hints[field.name], doc("")
        here = (*path, field.name)
        if get_origin(hint) is Annotated:
            hint, meta = get_args(hint)
        if isinstance(hint, type) and issubclass(hint, Struct):
            yield from _walk(hint, here, PREFIXES.get(field.name, ""))
            continue
        kind, nullable = _plain(hint)
        text, fingerprint = meta.description or "", (meta.extra or {}).get("fingerprint")
        name = prefix + field.name
        yield Column(name, kind, nullable, text, here, field.default, fingerprint)


def _plain(hint: Any) -> tuple[Any, bool]:
    """The bare type of an annotation, and whether None is allowed."""
    nullable = False
    if get_origin(hint) in (typing.Union, types.UnionType):
        options = [a for a in get_args(hint) if a is not type(None)]
        hint, nullable = options[0], True
    if get_origin(hint) is Literal:
        hint = str
    return hint, nullable


def short_hash(value: Any) -> str:
    """12 hex digits that stand for a noun or plain value; stable across processes."""
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()[:12]
