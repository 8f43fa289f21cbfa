"""How long things take: searches for one-step reductions, by the policy and without one, and the evaluation of a recorded reduction."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from executors.files import peak_memory_kb
from ibp.beam import BEAM_STEPS, Beam, search_path
from ibp.console import Reporter
from ibp.discovery import RuleFinder
from ibp.exact import ExactProblem
from ibp.families import Family
from ibp.identities import Equations, generic_equations
from ibp.recording import record_trace
from ibp.residues import SMALLEST_PROBE_PRIME, probe_primes
from ibp.sectors import Sector, corner, find_nonzero_sectors, layout_for
from ibp.store import Store
from ibp.targets import show_target
from ibp.trace import probe
from ibp.weights import load_policy


def search_targets(family: Family, equations: Equations, count: int, seed: int) -> list[tuple[int, np.ndarray]]:
    """Random integrals (sector, indices [n]) of all sectors, with r <= 13 and s <= 7, none of them a corner."""
    rng = np.random.default_rng((seed, 1))
    nonzero, targets = find_nonzero_sectors(equations, family.lines), []
    while len(targets) < count:
        bits = nonzero[len(targets) % len(nonzero)]
        target = np.array(corner(bits, family.n))
        inside, outside = np.flatnonzero(target), np.flatnonzero(target == 0)
        np.add.at(target, rng.choice(inside, rng.integers(0, 14 - len(inside))), 1)
        if len(outside):
            np.add.at(target, rng.choice(outside, rng.integers(0, 8)), -1)
        if tuple(target.tolist()) not in (corner(bits, family.n), *family.paper_masters):
            targets.append((bits, target))
    return targets


def benchmark_searches(family: Family, beam: Beam, count: int, seed: int, show: Callable[[str, int, int, str], None]) -> Iterator[str]:
    """The lines of a table as they come: so many searches with the beam's policy, with random choices and in the fixed order.

    show: is told the policy, how many searches are done, and how many there are. Raises PolicyRefused.
    """
    equations = generic_equations(family)
    targets = search_targets(family, equations, count, seed)
    beam = replace(beam, max_steps=min(beam.max_steps, BEAM_STEPS))
    yield f"{len(targets)} integrals of {family.name}, width {beam.width}, order {beam.order}, at most {beam.max_steps} steps"
    yield f"{'policy':10}{'found':>8}{'steps':>8}{'seconds':>10}{'mean':>9}{'most':>9}{'rows':>7}   (median steps and seconds of a search)"
    for name, policy in (("trained", beam.policy), ("random", f"random {seed}"), ("fixed", "fixed")):
        load_policy(policy)
        steps, seconds, rows = [], [], []
        for number, (bits, target) in enumerate(targets):
            show(name, number, len(targets), "")
            finder = RuleFinder(Sector(layout_for([tuple(target.tolist())], family.n), bits), equations)
            started = time.perf_counter()
            rule, made = search_path(finder, target, equations, replace(beam, policy=policy))
            seconds.append(time.perf_counter() - started)
            if rule is not None:
                steps.append(made)
                rows.append(len(rule.rows))
        share, middle = len(rows) / len(targets), np.median
        yield (
            f"{name:10}{share:8.1%}{middle(steps or [0]):8.0f}{middle(seconds):10.3f}{np.mean(seconds):9.3f}{max(seconds):9.2f}"
            f"{middle(rows or [0]):7.0f}"
        )


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
