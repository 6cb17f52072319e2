"""Questions about devices and cases, answered in a child that exits."""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from bench import data, energy, forecast, refusals, registry, sentinel
from bench.devices import Device, kind_of, open_device
from bench.environment.collect import collect
from bench.errors import Refused
from bench.facts import DeviceFacts
from bench.messages import Checked, Finding, Foreseen, Survey
from bench.precisions import PRECISIONS, Precision
from bench.schema import Case


def main(connection: Connection, payload: bytes) -> None:
    """Answer one question of ANSWERS: `["survey", [names, every, idle]]`, …"""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # downloads print; standard output may be somebody's JSON
    question, argument = msgspec.json.decode(payload)
    answer = ANSWERS[question](argument)
    connection.send_bytes(msgspec.json.encode(answer))
    os._exit(0)


def survey(raw: Any) -> Survey:
    """Facts of the machine and of `[names, every, idle]`.

    `every`: of one device of each product, too; `idle`: measure what the devices draw now.
    """
    asked, every, idle = msgspec.convert(raw, tuple[list[str], bool, bool])
    devices: dict[str, DeviceFacts] = {}
    absent: dict[str, str] = {}
    kinds = registry.names("devices")
    found = {kind: registry.load("devices", kind).found() for kind in kinds}
    for name in [*asked, *([n for kind in kinds for n in found[kind]] if every else [])]:
        kind = kind_of(name)
        try:
            # `cuda` alone means the first one.
            real = name if ":" in name else found[kind][0]
            devices[real] = open_device(real).facts()
        except (IndexError, RuntimeError, AssertionError, ValueError) as error:
            why = registry.load("devices", kind).why_none()
            absent[name] = f"{name}: {why if not found[kind] else _line(error)}"
    if idle:
        watts = energy.idle_watts([open_device(name).meter() for name in devices])
        for (name, facts), power in zip(devices.items(), watts, strict=True):
            devices[name] = msgspec.structs.replace(facts, idle_power_w=power)
    host = devices.get(sentinel.CASE.device) or open_device(sentinel.CASE.device).facts()
    return Survey(devices=list(devices.values()), absent=absent, host=host, environment=collect())


def check(raw: Any) -> Checked:
    """Refusals of `[cases, fetch]`, whose devices are here; data is downloaded only to `fetch`."""
    cases, fetch = msgspec.convert(raw, tuple[list[Case], bool])
    reasons, emulated = [], []
    fetched: dict[str, str | None] = {}
    for case in cases:
        device = open_device(case.device)
        if fetch and case.data not in fetched:
            fetched[case.data] = _prepare(case.data)
        reason = fetched.get(case.data) or refusals.refusal(case, device) or _data_refusal(case)
        reasons.append(reason)
        emulated.append(device.emulates(PRECISIONS[case.precision]))
    return Checked(refusals=reasons, emulated=emulated)


def foresee(raw: Any) -> Foreseen:
    """What `[cases, searches]` need, and how far the searches may go; no device has to be here."""
    cases, searches = msgspec.convert(raw, tuple[list[Case], list[Case]])
    ceilings: list[int | None] = []
    reasons: list[str | None] = []
    for case in searches:
        ceiling, reason = None, None
        try:
            ceiling = forecast.largest(case, _opened(case))
        except Refused as refused:
            reason = str(refused)
        ceilings.append(ceiling)
        reasons.append(reason)
    forecasts = [forecast.quietly(case, _opened(case)) for case in cases]
    return Foreseen(forecasts=forecasts, ceilings=ceilings, refusals=reasons)


def _opened(case: Case) -> Device:
    """The case's device; the first of its kind where there is none of that name."""
    try:
        return open_device(case.device)
    except ValueError:
        return open_device(kind_of(case.device))


def _prepare(name: str) -> str | None:
    try:
        data.plugin(name).prepare(data.split(name)[1])
    except Refused as refused:
        return str(refused)
    return None


def _data_refusal(case: Case) -> str | None:
    """None also where the data is not here yet: then only a run can tell."""
    try:
        return refusals.data_refusal(case, data.open_source(case))
    except Refused as refused:
        return str(refused)
    except (OSError, RuntimeError):
        return None


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def diagnose(_: None) -> list[Finding]:
    """Every device, engine and precision: works, or why not and what to do."""
    found = [_device(kind) for kind in registry.names("devices")]
    devices = [open_device(facts.device) for facts in survey([[], True, False]).devices]
    found += [f for engine in registry.names("engines") for f in _engine(engine, devices)]
    for device in devices:
        found.append(_meter(device))
        found += [_precision(device, precision) for precision in PRECISIONS.values()]
    noises = [
        n for kind in registry.names("devices") for n in registry.load("devices", kind).noise()
    ]
    return found + [Finding(group="noise", name="", works=False, text=n) for n in noises]


def _device(kind: str) -> Finding:
    module = registry.load("devices", kind)
    found = [open_device(name).facts() for name in module.found()]
    if not found:
        return Finding(group="devices", name=kind, works=False, text=module.why_none())
    text = ", ".join(f"{f.device_name}{' (SIMULATED)' if f.simulated else ''}" for f in found)
    return Finding(group="devices", name=kind, works=True, text=text)


def _engine(engine: str, here: list[Device]) -> list[Finding]:
    """One line a kind of precision the engine has a file for: where it works, or why nowhere."""
    found = []
    for kind in sorted({p.kind for p in PRECISIONS.values()}):
        if not registry.has("engines", f"{engine}.{kind}"):
            continue
        module = registry.load("engines", f"{engine}.{kind}")
        name = f"{engine} {kind}"
        if refusals.missing_modules(module):
            text = refusals.install(module)
            found.append(Finding(group="engines", name=name, works=False, text=text))
            continue
        precision = next(p.name for p in PRECISIONS.values() if p.kind == kind)
        reasons: dict[str, str | None] = {}
        for device in here:
            case = Case(device=device.name, engine=engine, precision=precision)
            reasons[device.name] = refusals.asked(module, case, device)
        able = [n for n, reason in reasons.items() if reason is None]
        text = f"on {', '.join(able)}" if able else "; ".join(map(str, reasons.values()))
        found.append(Finding(group="engines", name=name, works=bool(able), text=text))
    return found


def _precision(device: Device, precision: Precision) -> Finding:
    """Tried for inference with the default engine."""
    case = Case(device=device.name, precision=precision.name)
    reason = refusals.refusal(case, device)
    text = reason or (f"(slowly: {e})" if (e := device.emulates(precision)) else "")
    name = f"{precision.name} on {device.name}"
    return Finding(group="precisions", name=name, works=reason is None, text=text)


def _meter(device: Device) -> Finding:
    meter = device.meter()
    works = meter.read_j() is not None
    return Finding(group="energy", name=device.name, works=works, text=meter.source)


ANSWERS: dict[str, Callable[[Any], Any]] = {
    "survey": survey,
    "check": check,
    "diagnose": diagnose,
    "foresee": foresee,
}
