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
REQUESTS_SHARE = 0.5  # of all seconds, the most that is set aside for requests of the last rung
ROUNDS = 3
FEWEST_TRIES = 3  # however little time there is: one is no choice
FRESH_S = 6.0  # what a fresh interpreter takes longer to start (seen: 4 to 8 s on 2 cores)
SLACK = 1.2  # a mean request takes longer than the median one
BASELINE = ("eager", "fp32")
# Requests from which a percentile is stated, as bench.observe does (which brings torch).
FEWEST = {"p50": 8, "p90": 40, "p95": 80, "p99": 400, "p999": 4000}


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
        wanted = "p50" if short else self.percentile
        known = {name: ms for name, ms in tried.latency_ms.items() if ms is not None}
        if short and (request_ms := _request_ms(tried)) is not None:
            known["p50"] = request_ms
        names = list(FEWEST)
        # What is late at a lower percentile is late at the wanted one.
        for name in reversed(names[: names.index(wanted) + 1]):
            if known.get(name, 0.0) > self.latency_ms:
                return f"{name} {known[name]:.1f} ms"
        return None if wanted in known else f"too few requests for {wanted}"

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
            # A flag that a note names is one of `bench run`.
            why = (tried.note or "it was not measured").partition(";")[0]
            return (
                f"its agreement is not known: {why} (--fidelity-images says on how many inputs, "
                "--max-minutes how long)"
            )
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
        reserved = self._reserved(done)
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
        """The fastest, then whatever else there is time to prove the latency of.

        Made of the short tries alone, so that they stay the same in every round.
        """
        left = self.seconds - sum(t.seconds for t in _short(done)) - self._starts_s(done)
        kept: list[Case] = []
        for case in self._candidates(done):
            needs = self._requests_s(case, done)
            if not kept or needs <= max(left, 0.0):
                kept.append(case)
                left -= needs
        return kept

    def _candidates(self, done: Done) -> list[Case]:
        """The fastest, what its gain is stated over, and the next ones."""
        everything = self.everything(done)
        best = self.ranked(everything, done)[:KEPT]
        plain = self._plain(everything, done) if best else []
        return list(dict.fromkeys([*best[:1], *plain, *best[1:]]))

    def _reserved(self, done: Done) -> float:
        """Seconds of a try, and of the first round of the last rung, which is always run."""
        requests = sum(self._requests_s(c, done) for c in self._candidates(done))
        round_s = self._starts_s(done) + min(requests, REQUESTS_SHARE * self.seconds)
        return _mean_s(done) + round_s

    def _starts_s(self, done: Done) -> float:
        """Seconds of that round but for the requests that prove a latency."""
        return (KEPT + 2) * (_mean_s(done) + FRESH_S)

    def _requests_s(self, case: Case, done: Done) -> float:
        """Seconds of the requests that prove a way's latency; 0 where it has none to prove."""
        request_ms = _request_ms(done[_key(case)])
        if request_ms is None or not self._proves(case, done):
            return 0.0
        return SLACK * FEWEST[self.limits.percentile] * request_ms / 1000

    def _proves(self, case: Case, done: Done) -> bool:
        """Whether a last try must show a percentile: not of fp32 that is too late anyway.

        Such a way is measured again only for the gain over it.
        """
        if self.limits.latency_ms is None:
            return False
        return self.limits.broken(case, done[_key(case)], short=True) is None

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
                Trial(
                    case=c,
                    round=number,
                    purpose=FINAL,
                    budget=self._finishing(proves=self._proves(c, done)),
                    fresh=True,
                )
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

    def _finishing(self, *, proves: bool) -> Budget:
        requests_s = SLACK * proving_s(self.limits) if proves else 1.0
        return Budget(
            name=FINAL,
            min_seconds=1.5,
            max_seconds=4.0,
            latency_requests=FEWEST[self.limits.percentile] if proves else FEWEST["p90"],
            latency_seconds=requests_s,
            fidelity_images=self.fidelity_images if self.limits.agreement is not None else 0,
            fidelity_of="all",
            timeout_s=self.timeout_s + requests_s,
        )


def proving_s(limits: Limits) -> float:
    """Seconds of the requests that show the percentile of a way which just keeps its limit."""
    return FEWEST[limits.percentile] * (limits.latency_ms or 0.0) / 1000


def _key(case: Case) -> tuple[str, int, str]:
    return Trial(case=case, purpose=SCREEN).key


def _short(done: Done) -> list[Tried]:
    """The short tries so far."""
    return [t for (_, _, purpose), t in done.items() if purpose == SCREEN]


def _mean_s(done: Done) -> float:
    """Seconds of a short try; 0 before the first."""
    seconds = [t.seconds for t in _short(done)]
    return sum(seconds) / max(1, len(seconds))


def _request_ms(tried: Tried) -> float | None:
    """The median request; where there were too few, a step of throughput, which takes no more."""
    found = tried.latency_ms.get("p50")
    if found is None and tried.images_per_s:
        return 1000 * tried.batch_size / tried.images_per_s
    return found


def _way(case: Case) -> Case:
    """What is the same for every batch size."""
    return msgspec.structs.replace(case, batch_size=1)


def _is_baseline(case: Case) -> bool:
    return (case.engine, case.precision) == BASELINE
