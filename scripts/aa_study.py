"""How often `bench compare` calls two equal things different.

A study runs one small plan six times over, interleaved. Its odd rounds are side
A and its even ones side B, so both sides are the same code on the same machine,
and every pair called different is a false alarm. At the 99 % level fewer than
one of 80 is expected; more than 3 come about in 1 of 100 such series.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pandas as pd

from bench import selectors, store, verdicts
from bench.verdicts import Verdict

PLAN = Path(__file__).with_suffix(".toml")
ROUNDS = 3  # a side
MIN_EFFECT = 0.02
MOST_DIFFERENT = 3


def measure(folder: Path) -> str:
    """Run the plan once and return the run's id."""
    command = ["run", "--plan", str(PLAN), "--repeats", str(2 * ROUNDS), "--results", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *command, "--json"],
        stdout=subprocess.PIPE,
        text=True,
        check=False,  # a case that failed makes its pair inconclusive
    )
    lines = done.stdout.splitlines()
    if not lines:
        sys.exit(f"bench run measured nothing (exit code {done.returncode}).")
    return str(json.loads(lines[0])["run_id"])


def study(frame: pd.DataFrame, run_id: str) -> list[Verdict]:
    """Odd against even rounds of a run: relabelled as two runs, then compared as users do."""
    rows = frame[(frame["run_id"] == run_id) & (frame["purpose"] == "grid")]
    sides = rows.assign(
        run_id=[f"{run_id}-{'A' if n % 2 else 'B'}" for n in rows["round"]],
        round=(rows["round"] + 1) // 2,
    )
    a, b = (selectors.parse(f"run:{run_id}-{side}") for side in "AB")
    return verdicts.compare(sides, a, b, MIN_EFFECT)


def counted(found: list[Verdict]) -> str:
    """Numbers of verdicts in words."""
    count = Counter(v.verdict for v in found)
    different = count["faster"] + count["slower"]
    return f"{different} different, {count['same']} same, {count['inconclusive']} inconclusive"


def half_width(verdict: Verdict) -> float | None:
    """Half the width of a verdict's 99 % interval, as a share (on the scale of logarithms)."""
    if verdict.ratio_low is None or verdict.ratio_high is None:
        return None
    return math.log(verdict.ratio_high / verdict.ratio_low) / 2


def conclude(found: list[Verdict]) -> None:
    different = sum(v.verdict in ("faster", "slower") for v in found)
    widths = [w for w in map(half_width, found) if w is not None]
    median = f"{100 * statistics.median(widths):.1f} %" if widths else "unknown"
    kept = "kept" if different <= MOST_DIFFERENT else "NOT kept"
    print(
        f"{len(found)} pairs of equal things: {counted(found)}; at most {MOST_DIFFERENT} of 80 "
        f"different were promised: {kept}. Median half-width of the 99 % interval: {median}."
    )
    for v in found:
        if v.verdict != "same" and v.a is not None:
            print(f"  {v.a.case_id}: {v.verdict}: {v.reason}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=20, help="of 4 pairs each")
    parser.add_argument("--results", type=Path, help="keep the raw records in this folder")
    options = parser.parse_args()
    found: list[Verdict] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.results or Path(scratch)
        for number in range(1, options.studies + 1):
            run_id = measure(folder)
            found += study(store.read(folder).frame, run_id)
            # At once, so that a study that is stopped leaves its counts.
            print(f"study {number} of {options.studies}: so far {counted(found)}", flush=True)
    conclude(found)


if __name__ == "__main__":
    main()
