"""The search for the fastest way to do a task: successive halving, one axis after the other.

Successive halving (Jamieson and Talwalkar, arXiv 1502.07943) tries many ways shortly and
the better ones again for longer. Here a rung also opens an axis: engines and precisions
first, batch sizes for the better of them, then threads; the last rung is measured in
rounds, interleaved, in fresh interpreters. Building a model costs more than timing it, so
a rung ends early when its share of the time is used up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from bench import registry
from bench.schedules import FINAL, SCREEN, Done
from bench.schema import Budget, Case, Trial, Tried

KEPT = 3  # of each rung at least, and of the last
# Of all seconds: how much may be spent when a try of engines, batch sizes, threads begins.
ENGINES_SHARE, BATCHES_SHARE, THREADS_SHARE = 0.5, 0.65, 0.75
ROUNDS = 3
FEWEST_TRIES = 3  # however little time there is: one is no choice
FRESH_S = 6.0  # what a fresh interpreter takes longer to start (seen: 4 to 8 s on 2 cores)
BASELINE = ("eager", "fp32")
FEWEST = {"p50": 8, "p90": 40, "p95": 80, "p99": 400, "p999": 4000}  # requests


class Limits(Struct, frozen=True, kw_only=True):
    """What a way must keep to be taken. None: anything goes."""

    latency_ms: float | None = None
    percentile: str = "p99"
    memory_bytes: float | None = None
    agreement: float | None = None

    def broken(self, case: Case, tried: Tried, *, short: bool) -> str | None:
        """Why this try may not be taken, or None. `short`: percentiles are not known yet."""
        if tried.status != "measured":
            return tried.status
        return self._late(tried, short=short) or self._large(tried) or self._unlike(case, tried)

    def _late(self, tried: Tried, *, short: bool) -> str | None:
        if self.latency_ms is None:
            return None
        name = "p50" if short else self.percentile
        found = tried.latency_ms.get(name)
        if found is None and short and tried.images_per_s:
            # A request takes no less than a step of the throughput protocol.
            found = 1000 * tried.batch_size / tried.images_per_s
        if found is None:
            return f"too few requests for {name}"
        return f"{name} {found:.1f} ms" if found > self.latency_ms else None

    def _large(self, tried: Tried) -> str | None:
        if self.memory_bytes is None:
            return None
        if tried.memory_bytes is None:
            return "its memory is not known"
        much = tried.memory_bytes > self.memory_bytes
        return f"{tried.memory_bytes / 2**20:,.0f} MiB" if much else None

    def _unlike(self, case: Case, tried: Tried) -> str | None:
        exact = case.precision in ("fp32", "tf32")  # checked against eager fp32 before timing
        if self.agreement is None or exact:
            return None
        if tried.top1_agreement is None:
            return f"its agreement is not known: {tried.note or 'it was not measured'}"
        little = tried.top1_agreement < self.agreement
        return f"agreement {100 * tried.top1_agreement:.1f} %" if little else None


class Halving(Struct, frozen=True):
    """cases: every engine, precision and batch size that can run. seconds: for all tries."""

    cases: Sequence[Case]
    threads: Sequence[int]
    limits: Limits
    seconds: float
    timeout_s: float
    fidelity_images: int = 256

    def next(self, done: Done) -> Trial | None:
        """The next try, while its rung has time left."""
        tries = [t for (_, _, purpose), t in done.items() if purpose in (SCREEN, FINAL)]
        spent = sum(t.seconds for t in tries)
        # The first round of the last rung is always run: its time is set aside.
        reserved = (KEPT + 2) * (spent / len(tries) + FRESH_S) if tries else 0.0
        for arms, share in (
            (self.engines(), ENGINES_SHARE),
            (self.batches(done), BATCHES_SHARE),
            (self.narrower(done), THREADS_SHARE),
        ):
            for case in arms:
                trial = Trial(case=case, purpose=SCREEN, budget=self._screening())
                if trial.key in done:
                    continue
                late = spent >= min(share * self.seconds, self.seconds - reserved)
                if late and len(tries) >= FEWEST_TRIES:
                    break
                return trial
        return self._final(done, spent)

    def length(self, done: Done) -> int:
        """As far as is known."""
        known = [*self.engines(), *self.batches(done), *self.narrower(done)]
        return len(known) + ROUNDS * len(self.finalists(done))

    def engines(self) -> list[Case]:
        """Each engine and precision at one batch size, the baseline first, slow builds last."""
        sizes = sorted({c.batch_size for c in self.cases})
        first = sizes[0] if self.limits.latency_ms is not None else sizes[len(sizes) // 2]
        return sorted(
            (c for c in self.cases if c.batch_size == first),
            key=lambda c: (not _is_baseline(c), registry.builds_slowly(c.engine)),
        )

    def batches(self, done: Done) -> list[Case]:
        """The better ones, and fp32 for the comparison, with the other batch sizes."""
        first = self.engines()
        ways = {_way(c) for c in [*self._better(first, done), *self._plain(first, done)]}
        return [c for c in self.cases if c not in set(first) and _way(c) in ways]

    def narrower(self, done: Done) -> list[Case]:
        """The best ones, and fp32 for the comparison, with other numbers of threads."""
        tried = [*self.engines(), *self.batches(done)]
        best = [*self._better(tried, done)[:KEPT], *self._plain(tried, done)]
        return [
            msgspec.structs.replace(c, threads=n) for c in dict.fromkeys(best) for n in self.threads
        ]

    def finalists(self, done: Done) -> list[Case]:
        """The best, the fastest eager fp32 and the fastest fp32."""
        everything = self.everything(done)
        best = self.ranked(everything, done)[:KEPT]
        return list(dict.fromkeys([*best, *self._plain(everything, done)])) if best else []

    def _plain(self, cases: Sequence[Case], done: Done) -> list[Case]:
        """The fastest eager fp32 and the fastest fp32: what a gain is stated over.

        They need not keep the limits.
        """
        fp32 = [c for c in self._by_speed(cases, done) if c.precision == "fp32"]
        eager = [c for c in fp32 if _is_baseline(c)]
        return [*eager[:1], *fp32[:1]]

    def everything(self, done: Done) -> list[Case]:
        """All that was or could be tried."""
        return [*self.engines(), *self.batches(done), *self.narrower(done)]

    def ranked(self, cases: Sequence[Case], done: Done) -> list[Case]:
        """Those whose short try kept the limits, fastest first."""
        kept = []
        for case in self._by_speed(cases, done):
            tried = done[_key(case)]
            if self.limits.broken(case, tried, short=True) is None:
                kept.append(case)
        return kept

    def _by_speed(self, cases: Sequence[Case], done: Done) -> list[Case]:
        tried = [c for c in cases if _key(c) in done and done[_key(c)].images_per_s is not None]
        return sorted(tried, key=lambda c: -(done[_key(c)].images_per_s or 0.0))

    def _better(self, cases: Sequence[Case], done: Done) -> list[Case]:
        """The better third, of the ways that may be taken at all."""
        ranked = self.ranked(cases, done)
        return ranked[: max(KEPT, math.ceil(len(ranked) / 3))]

    def _final(self, done: Done, spent: float) -> Trial | None:
        """Rounds of the finalists, as many as there is time for, the first in any case."""
        finalists = self.finalists(done)
        took = 0.0  # seconds of the round before
        for number in range(1, ROUNDS + 1):
            trials = [
                Trial(case=c, round=number, purpose=FINAL, budget=self._finishing(), fresh=True)
                for c in finalists
            ]
            left = [t for t in trials if t.key not in done]
            if not left:
                took = sum(done[t.key].seconds for t in trials)
                continue
            # A round that has begun is finished: its cases are compared.
            begun = number == 1 or len(left) < len(trials)
            return left[0] if begun or spent + took <= self.seconds else None
        return None

    def _screening(self) -> Budget:
        return Budget(
            name=SCREEN,
            min_seconds=0.5,
            max_seconds=1.5,
            latency_requests=FEWEST["p50"],
            latency_seconds=1.0,
            fidelity_images=self.fidelity_images if self.limits.agreement is not None else 0,
            fidelity_of="all",
            timeout_s=self.timeout_s,
        )

    def _finishing(self) -> Budget:
        wanted = FEWEST[self.limits.percentile] if self.limits.latency_ms is not None else 40
        limit_s = (self.limits.latency_ms or 50.0) / 1000
        return Budget(
            name=FINAL,
            min_seconds=1.5,
            max_seconds=4.0,
            latency_requests=wanted,
            latency_seconds=1.2 * wanted * limit_s if self.limits.latency_ms is not None else 1.0,
            fidelity_images=self.fidelity_images if self.limits.agreement is not None else 0,
            fidelity_of="all",
            timeout_s=self.timeout_s + wanted * limit_s,
        )


def _key(case: Case) -> tuple[str, int, str]:
    return Trial(case=case, purpose=SCREEN).key


def _way(case: Case) -> Case:
    """What is the same for every batch size."""
    return msgspec.structs.replace(case, batch_size=1)


def _is_baseline(case: Case) -> bool:
    return (case.engine, case.precision) == BASELINE
