"""Questions about devices and cases, answered in a child that exits."""

from __future__ import annotations

import contextlib
import os
from multiprocessing.connection import Connection

import msgspec

from bench import data, registry, workload
from bench.devices import kind_of, open_device
from bench.environment.collect import collect
from bench.errors import Refused
from bench.loading import die_with_parent
from bench.messages import Checked, Survey
from bench.precisions import PRECISIONS
from bench.schema import Case, DeviceFacts


def main(connection: Connection, payload: bytes) -> None:
    """Answer one question: `["survey", names or null]` or `["check", cases]`."""
    die_with_parent()
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # downloads print; standard output may be somebody's JSON
    question, argument = msgspec.json.decode(payload)
    answer = (
        survey(argument) if question == "survey" else check(msgspec.convert(argument, list[Case]))
    )
    connection.send_bytes(msgspec.json.encode(answer))
    os._exit(0)


def survey(asked: list[str] | None) -> Survey:
    """Facts of the devices asked for (null: one of each product found), and of the machine."""
    devices: list[DeviceFacts] = []
    absent: dict[str, str] = {}
    kinds = registry.names("devices")
    found = {kind: registry.load("devices", kind).found() for kind in kinds}
    for name in asked or [n for kind in kinds for n in found[kind]]:
        kind = kind_of(name)
        try:
            # `cuda` alone means the first one.
            real = name if ":" in name else found[kind][0]
            devices.append(open_device(real).facts())
        except (IndexError, RuntimeError, AssertionError, ValueError) as error:
            why = registry.load("devices", kind).why_none()
            absent[name] = f"{name}: {why if not found[kind] else _line(error)}"
    return Survey(devices=devices, absent=absent, environment=collect())


def check(cases: list[Case]) -> Checked:
    """Refusals of cases whose devices are here."""
    fetched = {name: _prepare(name) for name in {case.data for case in cases}}
    refusals, emulated = [], []
    for case in cases:
        device = open_device(case.device)
        refusals.append(fetched[case.data] or workload.refusal(case, device))
        emulated.append(device.emulates(PRECISIONS[case.precision]))
    return Checked(refusals=refusals, emulated=emulated)


def _prepare(name: str) -> str | None:
    try:
        with contextlib.suppress(ModuleNotFoundError):
            data.plugin(name).prepare(data.split(name)[1])
    except Refused as refused:
        return str(refused)
    return None


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
