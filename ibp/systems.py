"""Homogeneous linear systems of a file: read, put into an order, solved modulo a prime by sparse elimination, or exactly by sample points.

`SystemProblem` is what a sampler takes; only the equations that were independent at the first points are solved at all others.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from executors.files import peak_memory_kb
from executors.tasks import Shared
from ibp.arithmetic import evaluate, parse_number
from ibp.console import Reporter
from ibp.elimination import Solved, echelon, needed_lines, substitute_back
from ibp.errors import InputError, ReductionError
from ibp.identities import freeze_ratio, function_field
from ibp.letters import linear_letters
from ibp.polynomials import Polynomial, polynomial_residue
from ibp.problems import run_name
from ibp.residues import GENERIC_PRIME, OTHER_PRIME, probe_primes
from ibp.sampler import Coefficients, ExactOutcome
from ibp.samples import ATTEMPTS, Sample, pack_points
from ibp.sectors import weight
from ibp.store import Store
from ibp.targets import read_lines

_LABEL = re.compile(r"\s*([A-Za-z_][\w.']*(?:\[[-+\d,\s]*\])?|\d{1,300})\s*[:*]\s*(\S.*)", re.ASCII)
_PLAIN = re.compile(r"[+-]?[0-9]{1,300}(?:/0*[1-9][0-9]{0,300})?", re.ASCII)
SystemCoefficient = Fraction | tuple[Polynomial, Polynomial]  # a number, or a function of the symbols as a ratio


@dataclass(frozen=True)
class LinearSystem:
    """Equations sum coefficient * unknown = 0; unknowns, the heaviest last; symbols of the coefficients, in the order of points."""

    unknowns: tuple[str, ...]
    equations: tuple[dict[str, SystemCoefficient], ...]
    symbols: tuple[str, ...] = ()


def parse_system_values(kinematics: str | None, d: str | None, symbols: str | None) -> tuple[dict[str, Fraction], tuple[str, ...]]:
    """What coefficients may contain, from texts such as 's=3,t=1/2', '7/3' and 'x,y': numbers, and symbols. Raises InputError."""
    values = [item.partition("=") for item in kinematics.split(",")] if kinematics is not None else []
    numbers = {name.strip(): parse_number(value, name.strip()) for name, _, value in values}
    if len(numbers) < len(values) or not all(name.isidentifier() and name != "d" for name in numbers):
        raise InputError(f"--kinematics {kinematics!r}: expected NAME=VALUE once for each NAME")
    numbers |= {} if d is None else {"d": parse_number(d, "d")}
    names = tuple(name.strip() for name in symbols.split(",")) if symbols is not None else ()
    for name in names:
        if not name.isidentifier() or name in numbers or names.count(name) > 1:
            raise InputError(f"--symbols {symbols!r}: expected names, each once, that are not given as numbers")
    return numbers, names


def read_labels(path: str, what: str) -> tuple[str, ...]:
    """Unknowns of a system, one a line, each once. Raises InputError."""
    labels = (re.sub(r"[\s+]", "", line.partition("#")[0]) for line in read_lines(path, what))
    return tuple(dict.fromkeys(label for label in labels if label))


def read_system(path: str, numbers: dict[str, Fraction], symbols: tuple[str, ...] = ()) -> LinearSystem:
    """Equations are blocks of lines 'unknown: coefficient' (or Kira's 'unknown*(coefficient)') between empty lines; '#' is a comment.

    numbers: values of what coefficients may contain beside the symbols. Raises InputError with the line.
    """
    equations: list[dict[str, SystemCoefficient]] = [{}]
    functions, names = function_field(symbols, numbers) if symbols else (None, numbers)
    for number, line in enumerate([*read_lines(path, "system"), ""], 1):
        text, where = line.partition("#")[0].strip(), f"system {path}, line {number}"
        if not text:
            if not line.strip() and equations[-1]:
                equations.append({})
            continue
        match = _LABEL.fullmatch(text)
        if not match:
            raise InputError(f"{where}: {text[:100]!r} is not 'unknown: coefficient' (an unknown is a word, word[1,0,-2] or a number)")
        label, coefficient = re.sub(r"[\s+]", "", match[1]), match[2].replace("^", "**")
        if label in equations[-1]:
            raise InputError(f"{where}: {label} is in this equation twice; an empty line ends an equation")
        inner = coefficient[1:-1] if coefficient[0] == "(" and coefficient[-1] == ")" else coefficient
        if _PLAIN.fullmatch(inner):  # most are, and reading an expression takes ten times as long
            equations[-1][label] = Fraction(inner)
        else:
            value = evaluate(coefficient, names, where)
            equations[-1][label] = freeze_ratio(functions(value)) if symbols else value
    if not equations[0]:
        raise InputError(f"system {path}: no equations in it")
    return LinearSystem(system_order(equations), tuple(equation for equation in equations if equation), symbols)


def system_order(equations: Sequence[dict[str, SystemCoefficient]]) -> tuple[str, ...]:
    """Lightest first: integrals of one family by their weight, numbers by size; else what comes first in the file is the heaviest."""
    labels = tuple(dict.fromkeys(label for equation in equations for label in equation))
    if all(label.isdigit() for label in labels):
        return tuple(sorted(labels, key=int))
    try:
        parts = {label: re.fullmatch(r"(.*)\[(.*)\]", label).groups() for label in labels}
        indices = {label: tuple(map(int, body.split(","))) for label, (_, body) in parts.items()}
    except (AttributeError, ValueError):  # names among them
        return labels[::-1]
    if len({(name, len(indices[label])) for label, (name, _) in parts.items()}) > 1:
        return labels[::-1]
    return tuple(sorted(labels, key=lambda label: weight(indices[label])))


def eliminate_system(system: LinearSystem, p: int, values: Sequence[int] = ()) -> tuple[Solved, list[int]]:
    """{number of an unknown: what it equals, in lighter ones}, and numbers of the equations that said so. Raises InputError."""
    number = {label: place for place, label in enumerate(system.unknowns)}
    rows = []
    for equation in system.equations:
        residues = {number[label]: _coefficient_residue(value, label, p, values) for label, value in equation.items()}
        rows.append({place: value for place, value in residues.items() if value})
    return echelon(rows, p)


def _coefficient_residue(value: SystemCoefficient, label: str, p: int, values: Sequence[int]) -> int:
    if isinstance(value, Fraction):
        above, below = value.numerator, value.denominator % p
    else:
        above, below = (polynomial_residue(part, values, p) for part in value)
    if below == 0:
        shown = value if isinstance(value, Fraction) else f"that is a function of {values}"
        raise InputError(f"system: coefficient {shown} of {label} is a division by zero modulo {p}; take another --prime")
    return above * pow(below, -1, p) % p


def solve_system(
    system: LinearSystem, p: int, values: Sequence[int] = (), wanted: Collection[str] | None = None
) -> dict[str, dict[str, int]]:
    """Every unknown that the equations determine, heaviest first, through those that they do not, modulo p. Raises InputError.

    wanted: these alone, and what they are found through.
    """
    return back_substitute(system, eliminate_system(system, p, values)[0], p, wanted)


def back_substitute(system: LinearSystem, pivots: Solved, p: int, wanted: Collection[str] | None) -> dict[str, dict[str, int]]:
    """`solve_system` from an elimination, whose rows it changes."""
    labels = system.unknowns
    if wanted is not None:
        some = set(wanted)
        pivots = needed_lines(pivots, [place for place, label in enumerate(labels) if label in some])
    substitute_back(pivots, p)
    return {labels[lead]: {labels[k]: pivots[lead][k] for k in sorted(pivots[lead], reverse=True)} for lead in sorted(pivots, reverse=True)}


def prefer(system: LinearSystem, preferred: Sequence[str], p: int, values: Sequence[int] = ()) -> LinearSystem:
    """The system with these unknowns the lightest. Raises InputError where they are unknown or not independent."""
    for label in preferred:
        if label not in system.unknowns:
            raise InputError(f"--masters: {label} is in no equation of the system")
    rest = [label for label in system.unknowns if label not in preferred]
    ordered = replace(system, unknowns=(*preferred, *rest))
    solved = solve_system(ordered, p, values, preferred)
    for label in preferred:
        if label in solved:
            value = " + ".join(f"{value}*{term}" for term, value in solved[label].items()) or "0"
            raise InputError(f"preferred master {label} depends linearly on the ones before it: it is {value} modulo {p}; leave one out")
    return ordered


@dataclass(frozen=True)
class SystemProblem:
    system: LinearSystem
    wanted: tuple[str, ...]

    @property
    def name(self) -> str:
        return run_name(f"a system of {len(self.system.equations)} equations", self.system, self.wanted)

    def prepare(self, rng: np.random.Generator, shelves: Sequence[Store], reporter: Reporter, shared: Path) -> SystemCoefficients:
        """Raises ReductionError, InputError."""
        return SystemCoefficients(self, rng, shared)


class SystemCoefficients(Coefficients):
    """Of the solution of a linear system, of whose dimensions nothing is known. Raises ReductionError, InputError."""

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
        size = len(self.variables) + 1
        return linear_letters([[int(i == k) for k in range(size)] for i, name in enumerate((*self.variables, "1")) if name != "d"])

    def task(self, samples: Sequence[Sample], device: str) -> tuple:
        return solve_points, self.trace, samples


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
    """A system for the unknowns in a file, else all; those in `masters`, independent modulo p, are the lightest. Raises InputError."""
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
