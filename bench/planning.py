"""Plans: TOML files of axes and a budget, flags that replace axes, and their product."""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from bench import registry
from bench.data import plugin, split
from bench.errors import WrongUse, unknown
from bench.facts import DeviceFacts
from bench.models import MODELS
from bench.precisions import PRECISIONS, QAT
from bench.schema import BUDGETS, Budget, Case, short_hash

AXES = tuple(f.name for f in msgspec.structs.fields(Case) if f.name != "full")
BLOCK_KEYS = (*AXES, "fixed", "skip_emulated")
PLAN_KEYS = ("budget", "budget_overrides", "repeats", "cases")
CLASSES = ("cpu", "gpu")
AUTO = "auto"  # a batch size that a search finds
FORMATS = ("channels_last", "contiguous")
LEAST_IMAGE_SIZE = 32
MOST = 2**63 - 1  # what a Parquet int64 holds


class Block(Struct, frozen=True):
    """One grid of a plan: axis -> values, or axis -> class of device -> values."""

    axes: dict[str, Any]
    fixed: bool = False
    skip_emulated: bool = False


class Plan(Struct, frozen=True):
    """What a TOML file and the flags say, before it meets a machine."""

    name: str
    blocks: list[Block]
    budget: Budget
    repeats: int = 1


class Planned(Struct, frozen=True):
    """A case, and whether to leave it out where its precision is emulated.

    `search`: its batch size is only where the search for the largest begins.
    """

    case: Case
    skip_emulated: bool = False
    search: bool = False


def load(name: str) -> Plan:
    """A plan by its name or its file. Raises WrongUse naming file, key and allowed keys."""
    path = Path(name) if name.endswith(".toml") else registry.paths("plans").get(name)
    if path is None:
        raise unknown("plan", name, registry.names("plans"))
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise WrongUse(f"The plan {path} cannot be read ({error}).") from error
    except tomllib.TOMLDecodeError as error:
        raise WrongUse(f"The plan {path} is not valid TOML: {error}.") from error
    _check_keys(path, "", raw, PLAN_KEYS)
    blocks = raw.get("cases", [])
    if not isinstance(blocks, list) or not blocks:
        raise WrongUse(f"The plan {path} needs at least one [[cases]] table of axes.")
    for number, block in enumerate(blocks, 1):
        _check_keys(path, f"[[cases]] number {number}: ", block, BLOCK_KEYS)
    return Plan(
        name=path.stem,
        blocks=[_block(f"{path}, [[cases]] number {n}", b) for n, b in enumerate(blocks, 1)],
        budget=_budget(path, raw),
        repeats=_whole(f"{path}: repeats", raw.get("repeats", 1), 1),
    )


# What each number of a budget must at least be; 8 samples are the fewest that give an interval.
BUDGET_LEAST = {
    "min_samples": 8,
    "max_samples": 8,
    "min_seconds": 0,
    "max_seconds": 0.001,
    "latency_requests": 1,
    "latency_seconds": 0,
    "fidelity_images": 0,
    "timeout_s": 0.001,
}


def _check_keys(path: Path, where: str, table: Any, allowed: tuple[str, ...]) -> None:
    if not isinstance(table, dict):
        raise WrongUse(f"The plan {path}: {where}expected a table.")
    for key in table:
        if key not in allowed:
            raise WrongUse(
                f"The plan {path}: {where}unknown key {key!r}; "
                f"allowed keys are {', '.join(allowed)}."
            )


def _block(where: str, raw: dict[str, Any]) -> Block:
    axes = {name: _axis(where, name, raw[name]) for name in AXES if name in raw}
    for name in ("fixed", "skip_emulated"):
        if not isinstance(raw.get(name, False), bool):
            raise WrongUse(f"{where}: {name}: expected true or false, not {raw[name]!r}.")
    return Block(axes, raw.get("fixed", False), raw.get("skip_emulated", False))


def _axis(where: str, name: str, raw: Any) -> Any:
    if isinstance(raw, dict):
        if name == "device" or not raw:
            raise WrongUse(f"{where}: {name}: expected a list of values.")
        _check_keys(Path(where), f"{name}: ", raw, CLASSES)
        return {kind: values_of(f"{where}: {name}", name, raw[kind]) for kind in raw}
    return values_of(f"{where}: {name}", name, raw)


def _budget(path: Path, raw: dict[str, Any]) -> Budget:
    name = raw.get("budget", "quick")
    if not isinstance(name, str) or name not in BUDGETS:
        raise unknown("budget", str(name), BUDGETS)
    overrides = raw.get("budget_overrides", {})
    allowed = tuple(f.name for f in msgspec.structs.fields(Budget) if f.name != "name")
    _check_keys(path, "[budget_overrides]: ", overrides, allowed)
    try:
        budget = changed(BUDGETS[name], overrides)
    except msgspec.ValidationError as error:
        raise WrongUse(f"The plan {path}: [budget_overrides]: {error}.") from error
    return budget


def changed(budget: Budget, changes: dict[str, Any]) -> Budget:
    """A budget with some fields replaced, named `custom`, with a timeout that leaves room.

    Raises WrongUse for a number that no measurement can be made with, and
    msgspec.ValidationError for one of another type.
    """
    if not changes:
        return budget
    new = msgspec.convert(msgspec.to_builtins(budget) | changes | {"name": "custom"}, Budget)
    for name, least in BUDGET_LEAST.items():
        if not least <= getattr(new, name) < math.inf:
            raise WrongUse(f"The budget's {name} must be {least:g} or more.")
    for name in ("target_ci", "warmup_share"):
        if not 0 < getattr(new, name) < 1:
            raise WrongUse(f"The budget's {name} must be a share between 0 and 1.")
    if "timeout_s" in changes:
        return new
    # Both protocols may take twice their time; set-up and a slow first step come on top.
    room = 3 * (new.max_seconds + new.latency_seconds) + 120
    return msgspec.structs.replace(new, timeout_s=max(new.timeout_s, room))


def values_of(where: str, axis: str, raw: Any) -> list[Any]:
    """Checked values of one axis. `where` opens the sentence of an error."""
    values = raw if isinstance(raw, list) else [raw]
    if not values:
        raise WrongUse(f"{where}: give at least one value.")
    return [_value(where, axis, value) for value in values]


NAMES = {
    "model": MODELS.keys(),
    "task": ("train", "infer"),
    "precision": PRECISIONS.keys(),
    "memory_format": FORMATS,
}
LEAST = {
    "batch_size": 1,
    "image_size": LEAST_IMAGE_SIZE,
    "classes": 1,
    "world_size": 1,
    "loader_workers": 0,
    "epochs": 1,
    "threads": 1,
    "seed": 0,
    "fidelity_images": 1,
    "calibration_images": 2,  # one would be a constant in the exported graph
}
PLUGINS = {"engine": "engines", "recipe": "recipes"}


def _value(where: str, axis: str, value: Any) -> Any:
    if axis == "batch_size" and value == AUTO:
        return value
    if axis in LEAST:
        return _whole(where, value, LEAST[axis])
    if axis in ("cudnn_benchmark", "deterministic"):
        if not isinstance(value, bool):
            raise WrongUse(f"{where}: expected true or false, not {value!r}.")
        return value
    if not isinstance(value, str):
        raise WrongUse(f"{where}: expected a name, not {value!r}.")
    known = NAMES.get(axis) or (registry.names(PLUGINS[axis]) if axis in PLUGINS else None)
    if known is not None and value not in known:
        raise unknown(axis.replace("_", " "), value, known)
    if axis in CHECKS:
        CHECKS[axis](value)
    if axis == "weights" and value not in ("random", "default") and not _is_file(value):
        raise WrongUse(f"{where}: {value[:80]!r} is neither random, default nor a file.")
    return value


def _is_file(value: str) -> bool:
    try:
        return Path(value).is_file()
    except OSError:
        return False


def _whole(where: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise WrongUse(f"{where}: expected a whole number of at least {least}, not {value!r}.")
    if value > MOST:
        raise WrongUse(f"{where}: {value} is too large.")
    return value


def _device(value: str) -> None:
    kind, colon, index = value.partition(":")
    if kind not in registry.names("devices"):
        raise unknown("device", kind, registry.names("devices"))
    if colon and not index.isdigit():
        raise WrongUse(f"--device {value}: what follows the colon must be a number.")


def _mode(value: str) -> None:
    modes = {mode for engine in registry.names("engines") for mode in registry.modes(engine)}
    if value not in modes:
        usual = "Without --engine-mode an engine runs its usual way (openvino: its latency hint)."
        raise WrongUse(f"{unknown('engine mode', value, modes)} {usual}")


def _data(value: str) -> None:
    name, argument = split(value)
    if name not in registry.names("data"):
        raise unknown("data source", name, registry.names("data"))
    plugin(value).check(argument)


CHECKS = {"engine_mode": _mode, "device": _device, "data": _data}


def override(plan: Plan, flags: dict[str, list[Any]]) -> Plan:
    """Flags replace their axis in every grid; a fixed grid is kept only where it agrees."""
    blocks = []
    for block in plan.blocks:
        if block.fixed:
            if all(_agrees(block, axis, values) for axis, values in flags.items()):
                device = {"device": flags["device"]} if "device" in flags else {}
                blocks.append(msgspec.structs.replace(block, axes=block.axes | device))
            continue
        emulated = block.skip_emulated and "precision" not in flags
        blocks.append(
            msgspec.structs.replace(block, axes=block.axes | flags, skip_emulated=emulated)
        )
    return msgspec.structs.replace(plan, blocks=blocks)


def _agrees(block: Block, axis: str, values: list[Any]) -> bool:
    default = next(f.default for f in msgspec.structs.fields(Case) if f.name == axis)
    return axis == "device" or set(block.axes.get(axis, [default])) <= set(values)


def asked_devices(plan: Plan) -> tuple[list[str], bool]:
    """Devices the plan names, in order; and whether a grid names none: every device found."""
    named = [d for block in plan.blocks for d in block.axes.get("device", [])]
    return list(dict.fromkeys(named)), any("device" not in block.axes for block in plan.blocks)


def expand(
    plan: Plan, devices: list[DeviceFacts], absent: list[str], *, full: bool
) -> list[Planned]:
    """The product of every grid, on every device, without repetitions."""
    found: dict[tuple[Case, bool], Planned] = {}
    for block in plan.blocks:
        for name, kind in _where(block, devices, absent):
            axes = {a: _for_class(v, kind) for a, v in block.axes.items() if a != "device"}
            for values in itertools.product(*axes.values()):
                chosen = dict(zip(axes, values, strict=True))
                search = chosen.get("batch_size") == AUTO
                if search:  # BatchNorm cannot train on one small image
                    chosen["batch_size"] = 2 if chosen.get("task") == "train" else 1
                case = _case({"device": name, "full": full} | chosen)
                known = found.get((case, search), Planned(case, True))
                skip = known.skip_emulated and block.skip_emulated
                found[case, search] = Planned(case, skip, search)
    return list(found.values())


def _where(block: Block, devices: list[DeviceFacts], absent: list[str]) -> list[tuple[str, str]]:
    """(device name, class) for a block; absent devices count as GPUs."""
    asked = block.axes.get("device")
    here = [(d.device, d.device_class, d.kind) for d in devices]
    found = [(n, c) for n, c, k in here if asked is None or n in asked or k in asked]
    return found + [(n, "gpu") for n in absent if asked is None or n in asked]


def _for_class(values: Any, kind: str) -> list[Any]:
    if isinstance(values, dict):
        return list(values.get(kind, next(iter(values.values()))))
    return list(values)


def _case(values: dict[str, Any]) -> Case:
    """Fill in what follows from the rest.

    Only training has epochs, and a recipe but for the one that trains for INT8. Only INT8
    inference is calibrated. Whole epochs and real images come
    through a loader, of two workers for real images where the plan does not say;
    inference takes its images from the device.
    """
    infers = values.get("task", "infer") == "infer"
    int8 = PRECISIONS[values.get("precision", "fp32")].kind == "int8"
    if not (infers and int8):
        values.pop("calibration_images", None)
    if infers and not (int8 and values.get("recipe") == QAT):
        values.pop("recipe", None)
    if infers:
        values |= {"epochs": None, "loader_workers": None}
    elif values.get("loader_workers") is None:
        real = split(values.get("data", "synthetic"))[0] != "synthetic"
        values["loader_workers"] = 2 if real else 0 if values.get("epochs") else None
    if values.get("epochs") is None:
        values["full"] = False
    return Case(**values)


def plan_hash(
    cases: list[Case], budget: Budget, repeats: int, searches: Sequence[Case] = ()
) -> str:
    """Names the work: the same cases measured equally hard, equally often."""
    sought = [[c.case_id for c in searches]] if searches else []
    return short_hash([[c.case_id for c in cases], budget, repeats, *sought])
