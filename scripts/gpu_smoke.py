"""Runs the GPU cases and holds each promise against what this GPU did; see scripts/gpu_smoke."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

PLAN = Path(__file__).with_suffix(".toml")
OUT = Path("reports/gpu_smoke")
TOO_LARGE = 4096
# What kernels work in beside tensors: 37 to 136 MiB on an H200 (docs/gpu.md).
WORKSPACES_MIB = 256

Row = dict[str, Any]


class Finding(Struct, frozen=True):
    """What one promise came to; `holds` is None where this device cannot show it.

    A `fact` is worth knowing and promised by nobody.
    """

    promise: str
    holds: bool | None
    seen: str
    fact: bool = False

    @property
    def verdict(self) -> str:
        """In words."""
        if self.fact and self.holds is not None:
            return "fact"
        return {True: "holds", False: "DOES NOT HOLD", None: "not shown"}[self.holds]


def main() -> int:
    """1 if a promise does not hold, 3 if nothing could be measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-seconds", default="4", help="measuring time of each case")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder to write (default: {OUT})")
    asked = parser.parse_args()
    rows = run(asked.max_seconds, asked.out / "data")
    if not rows:
        print("There is no record to judge; bench run has said why.", file=sys.stderr)
        return 3
    measured = [row for row in rows if row["status"] == "measured"]
    findings = [finding for check in CHECKS for finding in check(rows)]
    text = report(rows, findings)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "findings.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"Findings: {asked.out / 'findings.md'}")
    if not measured:
        return 3
    return int(any(finding.holds is False and not finding.fact for finding in findings))


def run(max_seconds: str, results: Path) -> list[Row]:
    """The records of the plan's cases."""
    command = [sys.executable, "-m", "bench", "run", "--plan", str(PLAN), "--json"]
    command += ["--max-seconds", max_seconds, "--results", str(results)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 3, 4):
        sys.exit(done.returncode)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return [row for row in rows if row["purpose"] == "grid"]


def report(rows: list[Row], findings: list[Finding]) -> str:
    """One file: what was there, what held, every case."""
    first = rows[0]
    lines = ["# GPU smoke test", ""]
    if any(row["simulated"] for row in rows):
        lines += ["**SIMULATED GPU: nothing here is a measurement of anything.**", ""]
    names = (
        "device_name",
        "driver",
        "torch",
        "compute_capability",
        "clocks_locked",
        "power_limit_w",
    )
    lines += [f"- {name}: {first[name]}" for name in names]
    lines += ["", "| promise | verdict | seen |", "| --- | --- | --- |"]
    lines += [f"| {f.promise} | {f.verdict} | {f.seen} |" for f in findings]
    lines += ["", "| case | status | images/s | peak MiB | forecast MiB | warnings |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    lines += [case_line(row) for row in rows]
    return "\n".join(lines) + "\n"


def case_line(row: Row) -> str:
    """A row of the table of cases."""
    cells = [
        row["case_id"],
        row["status"] if row["status"] == "measured" else f"{row['status']}: {brief(row)}",
        number(row["throughput_images_per_s"]),
        number(row["peak_device_memory_bytes"], 2**20),
        number(row["forecast_peak_bytes"], 2**20),
        ", ".join(row["warnings"]),
    ]
    return f"| {' | '.join(cells)} |"


def brief(row: Row) -> str:
    """The first sentence of why it has no number."""
    return str(row["reason"]).partition(". ")[0]


def number(value: float | None, unit: float = 1) -> str:
    """With thousands' separators; a dash for what is not known."""
    return "–" if value is None else f"{value / unit:,.0f}"


def of(rows: list[Row], **wanted: Any) -> list[Row]:
    """The measured rows with these values."""
    return [
        row
        for row in rows
        if row["status"] == "measured" and all(row[k] == v for k, v in wanted.items())
    ]


def every_case_has_a_record(rows: list[Row]) -> Iterator[Finding]:
    """And every status is one that a healthy GPU gives."""
    bad = [row["case_id"] for row in rows if row["status"] in ("failed", "timeout")]
    yield Finding(
        "every case ends with a result",
        not bad if of(rows) else None,
        f"{len(rows)} cases, {len(of(rows))} measured, failed: {bad or 'none'}",
    )


def out_of_memory(rows: list[Row]) -> Iterator[Finding]:
    """A batch that cannot fit is a result, with what it held and what there was."""
    large = [row for row in rows if row["batch_size"] == TOO_LARGE]
    told = all(row["oom_allocated_bytes"] and row["oom_limit_bytes"] for row in large)
    ends = {row["status"] for row in large}
    yield Finding(
        f"batch {TOO_LARGE} ends as oom, with what it held",
        None if ends == {"skipped"} else ends == {"oom"} and told,
        "; ".join(map(brief, large)),
    )


def forecasts(rows: list[Row]) -> Iterator[Finding]:
    """Measured peaks lie above the forecast, and not far (workspaces of kernels come on top)."""
    known = [
        (row["peak_device_memory_bytes"] / 2**20, row["forecast_peak_bytes"] / 2**20)
        for row in of(rows)
        if row["forecast_peak_bytes"]
    ]
    if not known:
        yield Finding("memory forecast", None, "nothing was measured")
        return
    shares = [peak / forecast for peak, forecast in known]
    above = [peak - forecast for peak, forecast in known]
    yield Finding(
        f"measured peak memory is at least 0.97 of the forecast, and {WORKSPACES_MIB} MiB more "
        "than it at most",
        min(shares) >= 0.97 and max(above) <= WORKSPACES_MIB,
        f"{min(shares):.3f} to {max(shares):.3f} of it, {min(above):,.0f} to {max(above):,.0f} MiB "
        f"more, over {len(known)} cases",
    )


def clocks(rows: list[Row]) -> Iterator[Finding]:
    """Events and the wall clock agree."""
    ratios = []
    for row in of(rows):
        first = row["warmup_samples"]
        ratios.append(sum(row["device_samples_s"][first:]) / sum(row["samples_s"][first:]))
    seen = f"{min(ratios):.3f} to {max(ratios):.3f}" if ratios else "nothing was measured"
    yield Finding(
        "events ÷ wall time lies within 0.95 to 1.05",
        all(0.95 <= ratio <= 1.05 for ratio in ratios) if ratios else None,
        seen,
    )


TELEMETRY = (
    "window_utilization_percent",
    "window_sm_clock_mhz",
    "window_memory_clock_mhz",
    "window_power_w",
    "window_temperature_c",
    "window_clock_reasons",
    "memory_used_bytes",
)


def telemetry(rows: list[Row]) -> Iterator[Finding]:
    """NVML answers, or says why not."""
    some = of(rows)
    silent = {name for row in some for name in TELEMETRY if row[name] is None}
    mute = [row["case_id"] for row in some if row["telemetry_notes"] is None]
    notes = {note for row in some for note in row["telemetry_notes"] or ()}
    unexplained = [n for n in silent for row in some if row[n] is None and row["case_id"] in mute]
    yield Finding(
        "NVML answers every question, or a note says why not",
        not unexplained if some else None,
        f"no answer: {', '.join(sorted(silent)) or 'none'}; notes: {sorted(notes) or 'none'}",
    )


def joules(rows: list[Row]) -> Iterator[Finding]:
    """Joules an image times images a second are watts: no more than the board may draw."""
    shares = [
        row["energy_total_j_per_image"] * row["throughput_images_per_s"] / row["power_limit_w"]
        for row in of(rows)
        if row["energy_total_j_per_image"] and row["power_limit_w"]
    ]
    yield Finding(
        "the joules of an image make no more watts than the power limit",
        max(shares) <= 1.05 if shares else None,
        f"{min(shares):.0%} to {max(shares):.0%} of it" if shares else "no joules are counted",
    )


def updates(rows: list[Row]) -> Iterator[Finding]:
    """The loss moves: an update that loss scaling skips is none."""
    trained = of(rows, task="train")
    learnt = [r for r in trained if r["last_loss"] is not None and r["last_loss"] < r["first_loss"]]
    steps = [row["last_loss_step"] for row in learnt]
    yield Finding(
        "every training learns",
        None if not trained or trained[0]["simulated"] else len(learnt) == len(trained),
        f"third update after {min(steps)} to {max(steps)} steps" if steps else "no update",
    )


def sustained_clocks(rows: list[Row]) -> Iterator[Finding]:
    """How far the SM clock stays below its maximum under load. A fact, not a promise."""
    shares = [
        min(row["window_sm_clock_mhz"]) / row["sm_clock_max_mhz"]
        for row in of(rows, batch_size=64)
        if row["window_sm_clock_mhz"] and row["sm_clock_max_mhz"]
    ]
    capped = sum("power_limited" in row["warnings"] for row in of(rows))
    seen = f"SM clock at least {min(shares):.0%} of its maximum" if shares else "clocks unknown"
    yield Finding(
        "sustained clocks", bool(shares) or None, f"{seen}; capped: {capped} cases", fact=True
    )


def speed_ups(rows: list[Row]) -> Iterator[Finding]:
    """AMP and TF32 against strict fp32, graph against eager. Facts, not promises."""
    pairs = [
        (f"{fast} ÷ fp32, {task}, batch 64", {"precision": fast}, {"precision": "fp32"}, task)
        for task in ("train", "infer")
        for fast in ("tf32", "amp", "amp-bf16")
    ]
    for name, fast, slow, task in pairs:
        common = {"task": task, "batch_size": 64, "engine": "eager"}
        yield ratio(name, of(rows, **common, **fast), of(rows, **common, **slow))
    one = {"batch_size": 1, "precision": "amp"}
    graph, eager = of(rows, **one, engine="cudagraph"), of(rows, **one, engine="eager")
    yield ratio("cudagraph ÷ eager, amp infer, batch 1", graph, eager)


def ratio(name: str, fast: list[Row], slow: list[Row]) -> Finding:
    """Of two throughputs."""
    if not fast or not slow:
        return Finding(name, None, "one of them was not measured")
    rates = [rows[0]["throughput_images_per_s"] for rows in (fast, slow)]
    if fast[0]["simulated"]:
        return Finding(name, None, f"{rates[0] / rates[1]:.2f} (simulated)", fact=True)
    return Finding(name, rates[0] > rates[1], f"{rates[0] / rates[1]:.2f}", fact=True)


def fp32_is_not_tf32(rows: list[Row]) -> Iterator[Finding]:
    """A product in fp32 is as exact as fp32 can be, one in TF32 is a thousand times worse.

    fp32 keeps 24 bits of each factor, TF32 11.
    """
    promise = "a product in fp32 is not made in TF32"
    some = of(rows, precision="fp32")
    if not some or some[0]["simulated"]:
        yield Finding(promise, None, "kernels compute nothing on a simulated GPU")
        return
    error = gemm_error(some[0]["device"], "fp32")
    seen = f"relative error {error:.1e} in fp32"
    if of(rows, precision="tf32"):
        seen += f", {gemm_error(some[0]['device'], 'tf32'):.1e} in tf32"
    yield Finding(promise, error < 1e-5, seen)


def gemm_error(device_name: str, precision: str) -> float:
    """Root mean square error of a product against float64, relative to its values."""
    import torch

    from bench.devices import open_device
    from bench.precisions import PRECISIONS
    from bench.schema import Case

    device = open_device(device_name)
    device.prepare(Case(device=device_name), PRECISIONS[precision])
    left, right = torch.randn(2, 1024, 1024, generator=torch.Generator().manual_seed(0))
    exact = left.double() @ right.double()
    place = device.torch_device()
    found = (left.to(place) @ right.to(place)).cpu().double()
    return float((found - exact).norm() / exact.norm())


CHECKS: tuple[Callable[[list[Row]], Iterator[Finding]], ...] = (
    every_case_has_a_record,
    out_of_memory,
    forecasts,
    clocks,
    telemetry,
    joules,
    updates,
    sustained_clocks,
    fp32_is_not_tf32,
    speed_ups,
)

if __name__ == "__main__":
    sys.exit(main())
