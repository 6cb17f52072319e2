"""Which library finds the nights at which a level changed: how often, how exactly, how fast.

Series of 60 and 365 nights, noise 1.5 %: half with nothing, half with one step of 5 % at a
random night at least 10 from either end. Libraries that are not installed are named and left
out: pip install --no-deps apache-otava asv (their own requirements would change ours).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from bench.stats import changes

SIGMA, STEP, EDGE, NEAR = 0.015, 0.05, 10, 2
Finder = Callable[[np.ndarray], list[int]]


def kernel(values: np.ndarray) -> list[int]:
    return changes.changes(values, SIGMA)


def pelt(values: np.ndarray) -> list[int]:
    import ruptures

    model = ruptures.Pelt(model="l2", min_size=1, jump=1)
    return model.fit_predict(values / SIGMA, pen=changes.PRICE)[:-1]


def binary(values: np.ndarray) -> list[int]:
    import ruptures

    model = ruptures.Binseg(model="l2", min_size=1, jump=1)
    return model.fit_predict(values / SIGMA, pen=changes.PRICE)[:-1]


def otava(values: np.ndarray) -> list[int]:
    from otava.analysis import compute_change_points

    # A list, as Otava's own commands pass: of an array 0.8.0 judges the whole in each window.
    found, _ = compute_change_points(np.exp(-values).tolist(), window_len=50, max_pvalue=0.001)
    return [c.index for c in found]


def asv(values: np.ndarray) -> list[int]:
    from asv.step_detect import detect_steps

    return [int(left) for left, *_ in detect_steps(list(np.exp(values)))[1:]]


FINDERS: dict[str, Finder] = {
    "ruptures KernelCPD, linear": kernel,
    "ruptures Pelt, l2": pelt,
    "ruptures Binseg, l2": binary,
    "apache-otava, defaults": otava,
    "asv step detection": asv,
}


def tried(find: Finder, nights: int, count: int) -> str:
    """One line of the table."""
    rng = np.random.default_rng(nights)
    find(rng.normal(0, SIGMA, nights))  # imports
    wrong = near = extra = 0
    taken = 0.0
    for number in range(2 * count):
        values = rng.normal(0, SIGMA, nights)
        place = int(rng.integers(EDGE, nights - EDGE))
        if number % 2:
            values[place:] += STEP
        start = time.perf_counter()
        found = find(values)
        taken += time.perf_counter() - start
        if number % 2:
            hits = [c for c in found if abs(c - place) <= NEAR]
            near += bool(hits)
            extra += len(found) - min(len(hits), 1)
        else:
            wrong += bool(found)
    return (
        f"{100 * wrong / count:5.1f} % | {100 * near / count:5.1f} % | "
        f"{extra / count:5.2f} | {1000 * taken / (2 * count):7.2f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=int, default=200, help="of each kind")
    options = parser.parse_args()
    print("| finder | nights | A/A with a change | step found ± 2 nights | further ones | time |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, find in FINDERS.items():
        for nights in (60, 365):
            try:
                line = tried(find, nights, options.series)
            except ImportError as error:
                print(f"| {name} | not installed: {error.name} | | | | |")
                break
            print(f"| {name} | {nights} | {line} |", flush=True)


if __name__ == "__main__":
    main()
