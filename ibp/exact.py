"""Reductions with rational numbers or functions as coefficients, and what these are at sample points.

An `ExactProblem` is recorded once, as a trace; its `ExactCoefficients` replay that at any point, and where it fails reduce all anew.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from executors.base import InlineExecutor
from executors.tasks import Shared
from ibp.console import Reporter
from ibp.controller import Controller
from ibp.errors import InputError, ReductionError, SingularPoint
from ibp.families import Expression, Family, Index
from ibp.identities import Column, Point, mass_dimension, unit_column
from ibp.letters import kinematic_letters
from ibp.masters import change_basis, use_relations
from ibp.polynomials import Polynomial
from ibp.problems import Outcome, Problem, run_name
from ibp.recording import record_trace
from ibp.residues import probe_primes
from ibp.sampler import Coefficients
from ibp.samples import ATTEMPTS, Sample, pack_points
from ibp.sectors import weight
from ibp.store import Store
from ibp.targets import show_targets
from ibp.trace import Trace, probe


def parse_symbols(text: str | None, family: Family, numbers: set[str]) -> tuple[str, ...]:
    """What coefficients are functions of, in the order of the family. numbers: names that are given as such. Raises InputError."""
    if text is None:
        return ()
    given = [name.strip() for name in text.split(",")]
    for name in given:
        if name not in family.symbols or given.count(name) > 1:
            raise InputError(f"--symbols {text}: expected each of {', '.join(family.symbols)} at most once")
    if both := sorted(numbers.intersection(given)):
        raise InputError(f"--symbols: {both[0]} is given as a number, too; leave one of them out")
    return tuple(name for name in family.symbols if name in given)


@dataclass(frozen=True)
class ExactProblem:
    """A problem with rational numbers for what is given, and functions of the symbols; the prime of the problem's point plays no role."""

    problem: Problem
    symbols: tuple[str, ...] = ()

    @property
    def given(self) -> dict[str, Fraction]:
        """d and the invariants that have numbers."""
        point = self.problem.point
        return {name: value for name, value in (("d", point.d), *point.invariants) if name not in self.symbols}

    def columns(self) -> tuple[Column, ...]:
        """The targets. Raises InputError for undefined symbols and divisions by zero in combinations."""
        problem = self.problem
        units = (unit_column(target, len(problem.family.symbols)) for target in problem.targets)
        return (*units, *(combination.exact(problem.family, self.given) for combination in problem.combinations))

    def wanted(self, rng: np.random.Generator, shelves: Sequence[Store], reporter: Reporter) -> tuple[tuple[Column, ...], Sequence[Index]]:
        """What is to be expressed through masters, and those that a result names, if not all. Raises InputError."""
        return self.columns(), ()

    @property
    def label(self) -> str:
        """What is done, for people."""
        kind = f"as functions of {', '.join(self.symbols)}" if self.symbols else "in rational numbers"
        return f"{show_targets(self.problem.keys)} of {self.problem.family.name} {kind}"

    @property
    def name(self) -> str:
        """Tells its runs from others."""
        return run_name(self.label, *self.parts)

    @property
    def parts(self) -> tuple:
        return self.problem.parts(tuple(self.given.items()), self.symbols)

    def random_values(self, rng: np.random.Generator, p: int) -> dict[str, int]:
        """Of the symbols."""
        return {name: int(rng.integers(1000, p - 1000)) for name in self.symbols}

    def point(self, p: int, values: dict[str, int]) -> Point:
        """Its residues are those of d and all invariants."""
        numbers = self.given | values
        return Point(Fraction(numbers["d"]), tuple((name, Fraction(numbers[name])) for name, _ in self.problem.family.point), p)

    def at(self, p: int, values: dict[str, int], columns: tuple[Column, ...]) -> Problem:
        return replace(self.problem, point=self.point(p, values), targets=(), combinations=columns, map_integrals=False)

    def prepare(self, rng: np.random.Generator, shelves: Sequence[Store], reporter: Reporter, shared: Path) -> ExactCoefficients:
        """Raises ReductionError, InputError."""
        return ExactCoefficients(self, rng, shelves, reporter, shared)


class ExactCoefficients(Coefficients):
    """Of an exact problem: where all invariants are symbols and all scales, one of them is set to 1. Raises ReductionError, InputError."""

    order = staticmethod(weight)

    def __init__(self, exact: ExactProblem, rng: np.random.Generator, shelves: Sequence[Store], reporter: Reporter, shared: Path):
        self.exact, self.shelves, self.symbols, self.preferred = exact, shelves, exact.symbols, exact.problem.preferred_masters
        self.columns, basis = exact.wanted(rng, shelves, reporter)
        trace, outcome = self._record(rng, reporter)
        self.basis, self.relations = basis or outcome.masters, outcome.relations
        self.rows = tuple(column.name for column in self.columns)
        self.names = self.raw_names = trace.names
        if self.relations or self.preferred:
            self.names = tuple((row, master) for row in self.rows for master in outcome.reductions[row])
        self.width, self.size = len(trace.names), sum(sector.count for sector in trace.sectors)
        self.dimensions = {column.name: mass_dimension(column.terms) for column in self.columns}
        invariants = [name for name, _ in exact.problem.family.point]
        homogeneous = [*trace.operators, *(relation.terms for relation in self.relations)]
        free = bool(invariants) and set(invariants) <= set(exact.symbols)
        scales = free and None not in (*self.dimensions.values(), *map(mass_dimension, homogeneous))
        self.ones = {invariants[0]: 1} if scales else {}
        self.variables = tuple(name for name in exact.symbols if name not in self.ones)
        self.trace = Shared.write(trace, shared)

    def _record(self, rng: np.random.Generator, reporter: Reporter) -> tuple[Trace, Outcome]:
        """A trace at a random point, which serves others."""
        exact = self.exact
        for _ in range(ATTEMPTS):
            primes = list(itertools.islice(probe_primes(rng), 9))
            problem = exact.at(primes[0], exact.random_values(rng, primes[0]), self.columns)
            trace, outcome = record_trace(problem, self.shelves, reporter)
            others = [(p, exact.random_values(rng, p)) for p in primes[1:] for _ in range(2)]
            places = [exact.point(p, values).residues() for p, values in others]
            began = time.perf_counter()
            _, good = probe(trace, [p for p, _ in others], np.array(places, np.int64).T)
            self.first_guess = (time.perf_counter() - began) / len(others)
            if good.all():
                return trace, outcome
        raise ReductionError("rules that hold at one point fail at others: the given numbers are a singular point; take others")

    def scale(self, row: Any, master: Index) -> tuple[str, int] | None:
        return next(((name, self.dimensions[row] + sum(master)) for name in self.ones), None)

    def letters(self) -> tuple[Polynomial, ...]:
        numbers = self.exact.given | {name: Fraction(one) for name, one in self.ones.items()}
        return kinematic_letters(self.exact.problem.family, self.variables, numbers)

    def _named(self, values: Sequence[int]) -> dict[str, int]:
        return dict(zip(self.variables, values)) | self.ones

    def task(self, samples: Sequence[Sample], device: str) -> tuple:
        places = np.array([self.exact.point(p, self._named(values)).residues() for p, values in samples], np.int64).T
        return probe_points, self.trace, [p for p, _ in samples], np.ascontiguousarray(places).tobytes(), device

    def row(self, sample: Sample, raw: np.ndarray | None) -> np.ndarray | None:
        """Where a trace fails, by a run of its own."""
        if raw is not None and self.names is self.raw_names:
            return raw
        try:
            rows = self._alone(sample) if raw is None else self._expressed(raw, sample[0])
        except (InputError, SingularPoint):  # modulo this prime only
            return None
        values = {(row, master): value for row in self.rows for master, value in rows.get(row, {}).items()}
        if not rows or not values.keys() <= set(self.names):
            return None
        return np.array([values.get(name, 0) for name in self.names], np.int64)

    def _expressed(self, raw: np.ndarray, p: int) -> dict[Any, Expression]:
        """All columns through the masters of the result, from the values of a trace. Raises SingularPoint, InputError."""
        rows: dict[Any, Expression] = {key: {} for key in (*self.rows, *(named.name for named in self.relations), *self.preferred)}
        for (name, master), value in zip(self.raw_names, raw.tolist()):
            if value:
                rows[name][master] = value
        return change_basis(use_relations(rows, self.relations, p), self.preferred, p)

    def _alone(self, sample: Sample) -> dict[Any, Expression]:
        """All columns at a point by a run of its own; {} where something is not reduced there. Raises SingularPoint, InputError."""
        p, values = sample
        problem = self.exact.at(p, self._named(values), self.columns)
        outcome = Controller(problem, InlineExecutor(), self.shelves, Reporter()).run()
        return {} if outcome.unreduced else outcome.reductions


def probe_points(trace: Shared, primes: list[int], values: bytes, device: str) -> dict[str, Any]:
    """`probe` as a task: values int64 [symbols, P] of d and the invariants; the result is as of `pack_points`."""
    started = time.monotonic()
    return pack_points(*probe(trace.get(), primes, np.frombuffer(values, np.int64).reshape(-1, len(primes)), device), started)
