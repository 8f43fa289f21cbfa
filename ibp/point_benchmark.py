"""How long the evaluation of a recorded reduction takes, for more and more points at random primes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence

import numpy as np

from executors.files import peak_memory_kb
from ibp.console import Reporter
from ibp.exact import ExactProblem
from ibp.primes import SMALLEST_PROBE_PRIME, probe_primes
from ibp.probe import probe
from ibp.recording import record_trace
from ibp.store import Store
from ibp.targets import show_target


def point_benchmark(exact: ExactProblem, most: int, device: str, shelves: Sequence[Store], reporter: Reporter) -> Iterator[str]:
    """A table, line by line: seconds and peak memory of 1, 2, 5, 10, … points of one trace, up to so many. Raises ReductionError."""
    rng, symbols = np.random.default_rng(1), exact.problem.family.symbols
    primes = list(itertools.islice(probe_primes(rng), max(most // 50, 2)))
    first = dict(zip(symbols, rng.integers(1000, primes[0] - 1000, len(symbols)).tolist()))
    started = time.perf_counter()
    trace, _ = record_trace(exact.at(primes[0], first, exact.columns()), shelves, reporter)
    live, edges = sum(sector.count for sector in trace.sectors), sum(len(sector.source) for sector in trace.sectors)
    seconds = time.perf_counter() - started
    yield f"{show_target(exact.problem.keys[0])}: {live:,} integrals, {edges:,} terms, recorded in {seconds:.2f} s"
    yield f"{'points':>8}{'seconds':>10}{'ms/point':>10}{'peak MB':>9}"
    for count in sorted({n for k in range(7) for n in (10**k, 2 * 10**k, 5 * 10**k) if n < most} | {most}):
        values = rng.integers(1000, SMALLEST_PROBE_PRIME, (len(symbols), count))
        started = time.perf_counter()
        probe(trace, [primes[i % len(primes)] for i in range(count)], values, device)
        seconds = time.perf_counter() - started
        yield f"{count:8,}{seconds:10.3f}{1000 * seconds / count:10.2f}{peak_memory_kb() / 1024:9.0f}"
