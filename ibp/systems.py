"""Linear systems of a file, solved by the same elimination."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from executors.files import peak_memory_kb
from executors.tasks import Shared
from ibp.arithmetic import evaluate
from ibp.elimination import subtract
from ibp.errors import InputError, ReductionError
from ibp.identities import freeze_ratio, function_field
from ibp.letters import linear_letters
from ibp.problems import run_name
from ibp.reconstruction import ATTEMPTS, Sample
from ibp.residues import Polynomial, polynomial_residue, probe_primes
from ibp.sampler import Sampler
from ibp.sectors import weight
from ibp.targets import read_lines

_LABEL = re.compile(r"\s*([A-Za-z_][\w.']*(?:\[[-+\d,\s]*\])?|\d{1,300})\s*[:*]\s*(\S.*)", re.ASCII)
_PLAIN = re.compile(r"[+-]?[0-9]{1,300}(?:/0*[1-9][0-9]{0,300})?", re.ASCII)
SystemCoefficient = Fraction | tuple[Polynomial, Polynomial]  # a number, or a function of the symbols as a ratio


@dataclass(frozen=True)
class LinearSystem:
    """Homogeneous equations sum coefficient * unknown = 0; unknowns in the order of elimination, the heaviest last.

    symbols: what the coefficients are functions of; points give their values in this order.
    """

    unknowns: tuple[str, ...]
    equations: tuple[dict[str, SystemCoefficient], ...]
    symbols: tuple[str, ...] = ()


def read_system(path: str, numbers: dict[str, Fraction], symbols: tuple[str, ...] = ()) -> LinearSystem:
    """Equations are blocks of lines 'unknown: coefficient' (or Kira's 'unknown*(coefficient)') between empty lines; '#' is a comment.

    numbers: values of what coefficients may contain beside the symbols. Raises InputError with the line.
    """
    equations: list[dict[str, SystemCoefficient]] = [{}]
    read = coefficient_reader(numbers, symbols)
    for number, line in enumerate([*read_lines(path, "--system"), ""], 1):
        text, where = line.partition("#")[0].strip(), f"--system {path}, line {number}"
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
        # most are plain numbers, and reading an expression takes ten times as long
        equations[-1][label] = Fraction(inner) if _PLAIN.fullmatch(inner) else read(coefficient, where)
    if not equations[0]:
        raise InputError(f"--system {path}: no equations in it")
    return LinearSystem(system_order(equations), tuple(equation for equation in equations if equation), symbols)


def coefficient_reader(numbers: dict[str, Fraction], symbols: tuple[str, ...]) -> Callable[[str, str], SystemCoefficient]:
    """What makes a coefficient of a text and a place for errors."""
    if not symbols:
        return lambda text, where: evaluate(text, numbers, where)
    functions, names = function_field(symbols, numbers)
    return lambda text, where: freeze_ratio(functions(evaluate(text, names, where)))


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


def eliminate_system(system: LinearSystem, p: int, values: Sequence[int] = ()) -> tuple[dict[int, dict[int, int]], list[int]]:
    """{number of an unknown: what it equals, in lighter ones}, modulo p at values of the symbols; numbers of the equations that said so.

    Raises InputError where a denominator vanishes modulo p.
    """
    number = {label: place for place, label in enumerate(system.unknowns)}
    rows = []
    for place, equation in enumerate(system.equations):
        residues = {number[label]: _coefficient_residue(value, label, p, values) for label, value in equation.items()}
        rows.append((place, {place: value for place, value in residues.items() if value}))
    pivots: dict[int, dict[int, int]] = {}
    used = []
    for place, row in sorted(rows, key=lambda numbered: (max(numbered[1], default=-1), len(numbered[1]))):
        while row and (lead := max(row)) in pivots:
            subtract(row, pivots[lead], -row.pop(lead), p)
        if row:
            factor = -pow(row.pop(lead), -1, p)
            pivots[lead] = {place: value * factor % p for place, value in row.items()}
            used.append(place)
    return pivots, used


def _coefficient_residue(value: SystemCoefficient, label: str, p: int, values: Sequence[int]) -> int:
    if isinstance(value, Fraction):
        above, below = value.numerator, value.denominator % p
    else:
        above, below = (polynomial_residue(part, values, p) for part in value)
    if below == 0:
        shown = value if isinstance(value, Fraction) else f"that is a function of {values}"
        raise InputError(f"--system: coefficient {shown} of {label} is a division by zero modulo {p}; take another --prime")
    return above * pow(below, -1, p) % p


def solve_system(
    system: LinearSystem, p: int, values: Sequence[int] = (), wanted: Collection[str] | None = None
) -> dict[str, dict[str, int]]:
    """Every unknown that the equations determine, heaviest first, through those that they do not, modulo p. Raises InputError.

    wanted: these alone, and what they are found through.
    """
    return back_substitute(system, eliminate_system(system, p, values)[0], p, wanted)


def back_substitute(
    system: LinearSystem, pivots: dict[int, dict[int, int]], p: int, wanted: Collection[str] | None
) -> dict[str, dict[str, int]]:
    """`solve_system` from an elimination, whose rows it changes."""
    labels = system.unknowns
    if wanted is not None:
        some = set(wanted)
        left, needed = [place for place, label in enumerate(labels) if label in some], set()
        while left:
            if (place := left.pop()) in pivots and place not in needed:
                needed.add(place)
                left += pivots[place]
        pivots = {place: pivots[place] for place in needed}
    for lead in sorted(pivots):
        row = pivots[lead]
        for place in [place for place in row if place in pivots]:
            subtract(row, pivots[place], -row.pop(place), p)
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
    """A system to be solved exactly, for these unknowns."""

    system: LinearSystem
    wanted: tuple[str, ...]

    @property
    def symbols(self) -> tuple[str, ...]:
        return self.system.symbols

    @property
    def name(self) -> str:
        return run_name(f"a system of {len(self.system.equations)} equations", self.system, self.wanted)


class SystemSampler(Sampler):
    """The same for the solution of a linear system."""

    exact: SystemProblem

    def prepare(self, rng: np.random.Generator) -> None:
        """See which equations are independent, and what the unknowns are found through. Raises ReductionError, InputError."""
        system, wanted = self.exact.system, self.exact.wanted
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
                break
        else:
            raise ReductionError("--system: which unknowns are independent changes from point to point; the numbers are a singular point")
        leads, self.names = found[0]
        self.raw_names, self.rows, self.variables, self.live = self.names, wanted, system.symbols, len(used)
        self.basis = tuple(label for place, label in enumerate(system.unknowns) if place not in leads)
        self.order = {label: place for place, label in enumerate(system.unknowns)}.__getitem__
        kept = replace(system, equations=tuple(system.equations[place] for place in sorted(used)))
        self.trace = Shared.write((kept, wanted, self.names, leads), self.directory.shared)

    def letters(self) -> tuple[Polynomial, ...]:
        size = len(self.variables) + 1
        return linear_letters([[int(i == k) for k in range(size)] for i, name in enumerate((*self.variables, "1")) if name != "d"])

    def _submit(self, chunk: list[Sample]) -> Future:
        return self.executor.submit(solve_points, self.trace, chunk)

    def _row(self, sample: Sample, raw: np.ndarray | None) -> np.ndarray | None:
        self.counts["unlucky"] += raw is None
        return raw


def solve_points(trace: Shared, samples: Sequence[Sample]) -> dict[str, Any]:
    """As `probe_points`, for a linear system: a point is not good where other unknowns are independent or other coefficients not zero."""
    started = time.monotonic()
    system, wanted, names, leads = trace.get()
    place = {name: position for position, name in enumerate(names)}
    table, good = np.zeros((len(samples), len(names)), np.int64), np.zeros(len(samples), np.int8)
    for line, (p, values) in enumerate(samples):
        with suppress(InputError):  # a denominator vanishes
            pivots, _ = eliminate_system(system, p, values)
            solved = back_substitute(system, pivots, p, wanted) if pivots.keys() == leads else {}
            entries = {(label, term): value for label in wanted for term, value in solved.get(label, {}).items()}
            if pivots.keys() == leads and entries.keys() <= place.keys():
                good[line] = 1
                for name, value in entries.items():
                    table[line, place[name]] = value
    return {"values": table.tobytes(), "good": good.tobytes(), "seconds": time.monotonic() - started, "peak_memory_kb": peak_memory_kb()}
