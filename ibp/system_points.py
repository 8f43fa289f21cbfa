"""Linear systems for given unknowns: modulo a prime, or exactly from solutions at sample points.

`SystemProblem` is what a sampler takes; only the equations that were independent at the first points are solved at all others.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from executors.files import peak_memory_kb
from executors.tasks import Shared
from ibp.console import Reporter
from ibp.errors import InputError, ReductionError
from ibp.letters import linear_letters
from ibp.polynomials import Polynomial
from ibp.primes import GENERIC_PRIME, OTHER_PRIME, probe_primes
from ibp.problems import run_name
from ibp.sampler import ExactOutcome
from ibp.samples import ATTEMPTS, Sample, pack_points
from ibp.store import Store
from ibp.systems import LinearSystem, back_substitute, eliminate_system, prefer, read_labels, read_system


@dataclass(frozen=True)
class SystemProblem:
    """A system to be solved for these unknowns."""

    system: LinearSystem
    wanted: tuple[str, ...]

    @property
    def name(self) -> str:
        """Tells its runs from others."""
        return run_name(f"a system of {len(self.system.equations)} equations", self.system, self.wanted)

    def prepare(self, rng: np.random.Generator, shelves: Sequence[Store], reporter: Reporter, shared: Path) -> SystemCoefficients:
        """A system needs no rules. Raises ReductionError, InputError."""
        return SystemCoefficients(self, rng, shared)


class SystemCoefficients:
    """Of the solution of a linear system, as `Coefficients` of a sampler. Raises ReductionError, InputError."""

    def __init__(self, problem: SystemProblem, rng: np.random.Generator, shared: Path):
        system = problem.system
        leads, self.names, used = self._look(problem, rng)
        self.width, self.rows, self.size = len(self.names), problem.wanted, len(used)
        self.symbols = self.variables = system.symbols
        self.basis = tuple(label for place, label in enumerate(system.unknowns) if place not in leads)
        self.order = {label: place for place, label in enumerate(system.unknowns)}.__getitem__
        kept = replace(system, equations=tuple(system.equations[place] for place in sorted(used)))
        self.trace = Shared.write((kept, problem.wanted, self.names, leads), shared)

    def _look(self, problem: SystemProblem, rng: np.random.Generator) -> tuple[frozenset[int], tuple[tuple[str, str], ...], list[int]]:
        """Which unknowns depend on others, the coefficients, and numbers of the equations that are needed."""
        system, wanted = problem.system, problem.wanted
        for _ in range(ATTEMPTS):
            found = []
            for p in itertools.islice(probe_primes(rng), 2):  # at two points, so that no accident of one is taken for a fact
                values, began = rng.integers(1000, p - 1000, len(system.symbols)).tolist(), time.perf_counter()
                pivots, used = eliminate_system(system, p, values)
                leads = frozenset(pivots)
                solved = back_substitute(system, pivots, p, wanted)
                self.first_guess = time.perf_counter() - began
                found.append((leads, tuple((label, term) for label in wanted for term in solved.get(label, ()))))
            if found[0] == found[1]:
                return *found[0], used
        raise ReductionError("system: which unknowns are independent changes from point to point; the numbers are a singular point")

    def letters(self) -> tuple[Polynomial, ...]:
        """Sums of symbols but d, and 1."""
        size = len(self.variables) + 1
        return linear_letters([[int(i == k) for k in range(size)] for i, name in enumerate((*self.variables, "1")) if name != "d"])

    def scale(self, row: str, master: str) -> None:
        """Nothing is known of dimensions."""

    def task(self, samples: Sequence[Sample], device: str) -> tuple:
        """`solve_points` and its arguments, which know no devices."""
        return solve_points, self.trace, samples

    def row(self, sample: Sample, raw: np.ndarray | None) -> np.ndarray | None:
        """What a task gives."""
        return raw


def solve_points(trace: Shared, samples: Sequence[Sample]) -> dict[str, Any]:
    """A task: a point is not good where other unknowns are independent or other coefficients not zero."""
    started = time.monotonic()
    system, wanted, names, leads = trace.get()
    place = {name: position for position, name in enumerate(names)}
    table, good = np.zeros((len(samples), len(names)), np.int64), np.zeros(len(samples), np.int8)
    for line, (p, values) in enumerate(samples):
        with suppress(InputError):  # a denominator vanishes
            pivots, _ = eliminate_system(system, p, values)
            if pivots.keys() != leads:
                continue
            solved = back_substitute(system, pivots, p, wanted)
            entries = {(label, term): value for label in wanted for term, value in solved.get(label, {}).items()}
            if entries.keys() <= place.keys():
                good[line] = 1
                for name, value in entries.items():
                    table[line, place[name]] = value
    return pack_points(table, good, started)


def pose_system(
    path: str, numbers: dict[str, Fraction], symbols: tuple[str, ...], p: int, masters: str | None = None, wanted: str | None = None
) -> SystemProblem:
    """The system of a file, for the unknowns that the file `wanted` lists, else for all; those in the file `masters` are the lightest.

    p: modulo it these must be independent. Raises InputError.
    """
    system = read_system(path, numbers, symbols)
    if masters is not None:
        system = prefer(system, read_labels(masters, "--masters"), p, range(1_000_003, 1_000_003 + len(symbols)))
    labels = system.unknowns[::-1] if wanted is None else read_labels(wanted, "--integrals")
    if not labels:
        raise InputError(f"--integrals {wanted}: no unknowns in it")
    known = set(system.unknowns)
    if unknown := next((label for label in labels if label not in known), None):
        raise InputError(f"--integrals {wanted}: {unknown} is in no equation of the system")
    return SystemProblem(system, labels)


def solve_modulo(problem: SystemProblem, p: int) -> ExactOutcome:
    """Coefficients modulo p. Raises InputError, ReductionError."""
    system, started = problem.system, time.perf_counter()
    pivots, used = eliminate_system(system, p)
    other, _ = eliminate_system(system, GENERIC_PRIME if p != GENERIC_PRIME else OTHER_PRIME)
    if pivots.keys() != other.keys():
        raise ReductionError(f"--prime {p}: other unknowns are independent than modulo other primes, by accident; take a larger one")
    masters = [label for place, label in enumerate(system.unknowns) if place not in pivots]
    solved = back_substitute(system, pivots, p, problem.wanted)
    statistics = {"equations": len(system.equations), "unknowns": len(system.unknowns), "independent_equations": len(used)}
    reductions = {label: solved.get(label, {}) for label in problem.wanted}
    return ExactOutcome(reductions, masters, statistics, time.perf_counter() - started, peak_memory_kb())
