"""Numbers and results as people read them. An unknown number is a dash, never 0."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

from bench.schema import Record

DASH = "–"


def missing(value: float | None) -> bool:
    """None, or pandas' NaN."""
    return value is None or math.isnan(value)


def rate(value: float | None) -> str:
    """Three significant digits or more: 8.07, 64.1, 1,240."""
    if value is None or missing(value):
        return DASH
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def half_width(value: float | None, low: float | None, high: float | None) -> str:
    """The interval as ± percent of the value."""
    if value is None or low is None or high is None or any(map(missing, (value, low, high))):
        return DASH
    return f"± {100 * (high - low) / 2 / value:.1f} %"


def share(value: float | None, sign: str = "± ") -> str:
    """± 1.2 %."""
    return DASH if value is None or missing(value) else f"{sign}{100 * value:.1f} %"


class Quotient(Protocol):
    """A ratio with its relative half-width."""

    @property
    def value(self) -> float:
        """The ratio."""
        ...

    @property
    def relative_half_width(self) -> float | None:
        """None if it is not known, 0 for a case against itself."""
        ...


def ratio(found: Quotient | None) -> str:
    """2.10 ± 0.05; 2.10 ± ? where that is not known; 1 for a case against itself."""
    if found is None:
        return DASH
    if found.relative_half_width == 0:
        return "1"
    width = found.relative_half_width
    return f"{found.value:.2f} ± " + ("?" if width is None else f"{found.value * width:.2f}")


def efficiency(found: Quotient | None) -> str:
    """90 % ± 2 %; 90 % ± ? where that is not known."""
    if found is None:
        return DASH
    width = found.relative_half_width
    return f"{100 * found.value:.0f} % ± " + (
        "?" if width is None else f"{100 * found.value * width:.0f} %"
    )


# Why a number has no interval, in the order in which it matters.
NO_INTERVAL = {
    "contaminated": "others disturbed most of it",
    "not_steady": "the speed never settled",
    "two_state": "the speed has two states",
    "too_few_samples": "too few samples",
}


def why_no_interval(codes: Iterable[str]) -> str:
    """For a number that would otherwise stand there as if it were sure."""
    known = [why for code, why in NO_INTERVAL.items() if code in codes]
    return f"no interval: {known[0]}" if known else "no interval"


def layers(names: Iterable[str] | None) -> str:
    """How many layers; 0 is an answer, a dash is none."""
    return DASH if names is None or isinstance(names, float) else f"{len(list(names))} layers"


def points(lost: float | None) -> str:
    """A loss of accuracy in percentage points; a gain has a plus."""
    return DASH if lost is None or missing(lost) else f"{-100 * lost:+.2f} points"


def decibels(value: float | None) -> str:
    """12.3 dB."""
    return DASH if value is None or missing(value) else f"{value:.1f} dB"


def count(number: float | None) -> str:
    """A whole number that pandas may have made a float."""
    return DASH if number is None or missing(number) else f"{number:,.0f}"


def mebibytes(value: float | None) -> str:
    """Memory in MiB."""
    return DASH if value is None or missing(value) else f"{value / 2**20:,.0f} MiB"


def duration(seconds: float | None) -> str:
    """72 s, 36 min 40 s, 2 h 5 min."""
    if seconds is None or missing(seconds):
        return DASH
    whole = round(seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def relative_half_width(record: Record) -> float | None:
    """Half of a record's own interval, as a share of its throughput."""
    m = record.measurement
    if m.throughput_images_per_s is None or m.throughput_ci_low is None:
        return None
    if m.throughput_ci_high is None:
        return None
    return (m.throughput_ci_high - m.throughput_ci_low) / 2 / m.throughput_images_per_s


def result(record: Record) -> str:
    """One record in a line."""
    if record.status != "measured":
        return f"{record.status}: {record.reason}"
    m = record.measurement
    width = half_width(m.throughput_images_per_s, m.throughput_ci_low, m.throughput_ci_high)
    text = f"{rate(m.throughput_images_per_s)} images/s {width}"
    if m.latency_p50_ms is not None:
        text += f", p50 {rate(m.latency_p50_ms)} ms"
    if m.projected_s is not None:
        text += f", {record.case.epochs} epochs projected {duration(m.projected_s)}"
    if m.train_s is not None:
        text += f", trained {record.case.epochs} epochs in {duration(m.train_s)}"
    return text
