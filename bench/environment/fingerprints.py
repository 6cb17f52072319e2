"""Two hashes of the facts: what the machine is, and what can be changed on it.

Which fact is in which is written at the fields of `bench.facts`.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from bench.facts import DeviceFacts, Environment, Fingerprint
from bench.schema import columns, short_hash


def machine_fingerprint(environment: Environment, device: DeviceFacts | None) -> str:
    """Names the machine in a series. `device` is the one measured, None if it is not here.

    Bytes are rounded to GiB: a new kernel keeps a few MiB more or less to itself.
    """
    facts = _marked("machine", environment, device)
    return short_hash(
        {n: round(v / 2**30) if n.endswith("_bytes") else v for n, v in facts.items()}
    )


def software_fingerprint(environment: Environment, device: DeviceFacts | None) -> str:
    """Changes with anything that can be changed on that machine."""
    return short_hash(_marked("software", environment, device))


def _marked(fingerprint: Fingerprint, *nouns: Struct | None) -> dict[str, Any]:
    """Column -> value of the known facts in a fingerprint.

    Unknown ones are left out, so that a fact only newer versions look for renames nothing.
    """
    values = {
        column.name: column.value(noun)
        for noun in nouns
        if noun is not None
        for column in columns(type(noun))
        if column.fingerprint == fingerprint
    }
    return {name: value for name, value in values.items() if value is not None}
