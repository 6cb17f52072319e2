"""The article's experiment: which records are it, and the sentence about them."""

from __future__ import annotations

from typing import Any

import pandas as pd
from msgspec import Struct

from bench import registry, words
from bench.analysis import Row, article_claims

# What makes a case the article's job; everything else may vary.
JOB = {
    "model": "resnet50",
    "task": "train",
    "batch_size": 64,
    "image_size": 32,
    "classes": 10,
    "epochs": 10,
    "weights": "random",
    "world_size": 1,
    "epoch_images": 50_000,  # 10 epochs of fewer images are another job
}
PRINTED = {"recipe": "adam", "memory_format": "contiguous", "loader_workers": 0}


class Timed(Struct, frozen=True):
    """One record of the job as seconds for the whole of it."""

    row: Row
    variant: str  # `as printed` or `tuned`
    seconds: float
    low: float | None
    high: float | None
    projected: bool

    @property
    def where(self) -> str:
        """The device, with the threads a CPU used."""
        name, threads = str(self.row["device_name"]), self.row["threads_used"]
        if self.row["device_class"] != "cpu" or words.missing(threads):
            return name
        return f"{name} ({int(threads)} thread{'' if threads == 1 else 's'})"

    @property
    def unsure(self) -> bool:
        """A projection that knows no interval."""
        return self.projected and self.low is None

    @property
    def label(self) -> str:
        """Device, variant, and how the number came about."""
        how = "projected" if self.projected else "trained"
        kind = "synthetic images" if self.row["data"] == "synthetic" else "real images"
        return f"{self.where}, {self.variant}, {kind}, {how}"


def timed(rows: pd.DataFrame) -> list[Timed]:
    """The article's job on every device, real images first, then as printed before tuned."""
    keep = (rows["status"] == "measured") & ~rows["simulated"].astype(bool)
    for name, value in JOB.items():
        keep &= rows[name] == value
    found = [_timed(row) for row in rows[keep].to_dict("records")]
    newest_first = sorted(
        (t for t in found if t is not None), key=lambda t: t.row["started_at"], reverse=True
    )
    return sorted(newest_first, key=_rank)


def _rank(t: Timed) -> tuple[bool, str, bool, bool]:
    """Real images before synthetic, as printed before tuned, trained before projected."""
    row = t.row
    return (row["data"] == "synthetic", row["device_class"], t.variant != "as printed", t.projected)


def _timed(row: Row) -> Timed | None:
    variant = "as printed" if all(row[n] == v for n, v in PRINTED.items()) else "tuned"
    if row["precision"] != "fp32":
        variant += f", {row['precision']}"
    if row["full"]:
        return Timed(row, variant, float(row["train_s"]), None, None, False)
    if words.missing(row["projected_s"]):
        return None
    low, high = _known(row["projected_ci_low_s"]), _known(row["projected_ci_high_s"])
    return Timed(row, variant, float(row["projected_s"]), low, high, True)


def _known(value: Any) -> float | None:
    return None if words.missing(value) else float(value)


def headline(rows: pd.DataFrame) -> str:
    """One or two sentences: what was measured, the ratio, and the published figures as such."""
    found = [t for t in timed(rows) if t.variant == "as printed"]
    gpu, cpu = (_best(found, kind) for kind in ("gpu", "cpu"))
    claimed = {c["is_cpu"]: float(c["seconds"]) for c in article_claims()}
    published = (
        f"The article published {claimed['false']:,.0f} s for an A100 and {claimed['true']:,.0f} s "
        "for a CPU it does not name, about 30 times."
    )
    if gpu is None and cpu is None:
        return (
            f"The article's job has not been measured here: bench run --plan article. {published}"
        )
    if gpu is not None and cpu is not None:
        ratio = cpu.seconds / gpu.seconds
        return f"{JOB_TEXT} takes {_said(gpu)} against {_said(cpu)}: {ratio:.1f} times. {published}"
    only = gpu or cpu
    assert only is not None
    missing = [
        d for d in registry.names("devices") if d != str(only.row["device"]).partition(":")[0]
    ]
    more = f"For the other side of the comparison: bench run --plan article --device {missing[0]}"
    return f"{JOB_TEXT} takes {_said(only)}. {published} {more}"


JOB_TEXT = "The article's job (ResNet-50, CIFAR-10 at 32 px, batch 64, 10 epochs, as printed)"


def _best(found: list[Timed], kind: str) -> Timed | None:
    """The first of the ranked ones: real images, trained, newest."""
    return next((t for t in found if t.row["device_class"] == kind), None)


def _said(t: Timed) -> str:
    text = f"{t.seconds:,.0f} s"
    if t.low is not None and t.high is not None:
        text += f" ± {(t.high - t.low) / 2:,.0f} s"
    how = "projected" if t.projected else "trained in full"
    data = " on synthetic images" if t.row["data"] == "synthetic" else ""
    if t.unsure:
        data += f"; {words.why_no_interval(list(t.row['warnings']))}"
    return f"{text} ({how}{data}) on {t.where}"
