"""Derivatives of the masters through the masters, and their values in other dimensions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from executors.inline import InlineExecutor
from ibp.controller import Controller
from ibp.errors import InputError, ReductionError
from ibp.exact import ExactProblem
from ibp.families import Family, Index
from ibp.geometry import determinant_of
from ibp.identities import Algebra, Column, Operator, freeze_operator
from ibp.masters import change_basis
from ibp.problems import ExactOutcome, Problem
from ibp.residues import probe_primes
from ibp.sampler import Sampler
from ibp.sectors import show, weight
from ibp.targets import term_lines

# Integrals are functions of the invariants through the products p_a.p_b and the masses. The operator sum_ij c_ij p_i . d/dp_j, with c such
# that it acts as d/dx on all p_a.p_b, turns the derivative of an integral into a combination of integrals (Remiddi, hep-th/9711188;
# Gehrmann, Remiddi, hep-ph/9912329). In d there is a difference equation: I at d - 2 is the polynomial U of the Feynman parameters with
# x_b -> a_b * (raise index b), applied to I at d (Tarasov, hep-th/9606018), with the Euclidean measure d^dk/pi^(d/2) for every loop.
Row = tuple[Any, ...]  # (variable, *indices of a master)
MOST_ROWS_SHOWN = 60


def differentiate(family: Family, variable: str, numbers: dict[str, Fraction]) -> Operator:
    """d/d variable of an integral with indices a: the sum over the operator's terms of (sum_i c_i a_i) I[a + shift].

    numbers: invariants that have them; they are put in first, since at singular points not every operator exists, but one always does.
    Raises InputError where nothing depends on the variable.
    """
    algebra = Algebra(family, numbers=numbers)
    functions, momenta, propagators, externals = algebra.functions, algebra.momenta, algebra.propagators, algebra.externals
    x, loops = algebra.names[variable], len(family.loop_momenta)
    changes = [algebra.ring.from_dict({e: c for e, value in form.terms() if (c := value.diff(x))}) for form in propagators]
    slopes = [mass.diff(x) for mass in algebra.masses]
    if not any((*changes, *slopes, *(value.diff(x) for value in externals.values()))):
        raise InputError(f"--differential-equation {variable}: neither the kinematics nor the propagators of {family.name} depend on it")
    gradients = [[form.diff(momentum) for momentum in momenta[loops:]] for form in propagators]
    uses = [sum(map(bool, column)) for column in zip(*gradients)]
    c = _momentum_changes(externals, uses, x, functions)
    terms: dict[Index, dict[int, Any]] = {}
    for b, form in enumerate(changes):
        form = form + sum((momenta[loops + i] * gradients[b][j] * value for (i, j), value in c.items()), algebra.ring.zero)
        *linear, constant = algebra.in_propagators(form)
        for k, value in enumerate([*linear, constant - slopes[b]]):
            if value:
                shift = tuple((i == b) - (i == k) for i in range(family.n))
                terms.setdefault(shift, {})[b + 1] = -value + terms.get(shift, {}).get(b + 1, functions.zero)
    return freeze_operator(terms)


def _momentum_changes(externals: dict, uses: Sequence[int], x: Any, functions: Any) -> dict[tuple[int, int], Any]:
    """c_ij with sum_ij c_ij p_i . d/dp_j = d/dx on all products of external momenta; zeros left out.

    With the matrix G of the products that is G c + (G c)^T = dG/dx. It has solutions even where det G = 0 for all x: for null vectors v
    and w of G the derivative of v.Gw = 0 is v.(dG/dx)w = 0. Of the many (they differ by Lorentz transformations) one with derivatives for
    momenta that few propagators have (uses).
    """
    from sympy.polys.matrices import DomainMatrix

    count, zero = len(uses), functions.zero
    unknowns = sorted(itertools.product(range(count), repeat=2), key=lambda pair: (uses[pair[1]], -pair[1], pair[0]))
    rows = []
    for a, b in itertools.combinations_with_replacement(range(count), 2):
        acts = [(externals[i, b] if j == a else zero) + (externals[a, i] if j == b else zero) for i, j in unknowns]
        rows.append([*acts, externals[a, b].diff(x)])
    if not rows:
        return {}
    reduced, pivots = DomainMatrix(rows, (len(rows), len(unknowns) + 1), functions.to_domain()).rref()
    return {unknowns[k]: row[-1] for k, row in zip(pivots, reduced.to_list()) if row[-1]}


def graph_polynomial(family: Family) -> list[tuple[Index, Any]]:
    """U = det of the quadratic form of sum_b x_b D_b in the loop momenta, as [(exponents of x_1 … x_n, coefficient)]."""
    from sympy import Dummy
    from sympy.polys.rings import ring

    algebra, loops = Algebra(family), len(family.loop_momenta)
    momenta = algebra.momenta
    parameters, *x = ring([Dummy() for _ in range(family.n)], algebra.functions.to_domain())
    matrix = np.full((loops, loops), parameters.zero, object)
    for b, form in enumerate(algebra.propagators):
        for i, j in itertools.product(range(loops), repeat=2):
            matrix[i, j] += x[b] * (form.diff(momenta[i]).diff(momenta[j]).coeff(1) / 2)
    determinant = determinant_of(matrix, parameters.one)
    return [(tuple(map(int, exponents)), value) for exponents, value in determinant.terms()]


def derivative_of(operator: Operator, integral: Index) -> Operator:
    """The operator of `differentiate` at an integral: (integral, coefficients to be added up), those that are zero left out."""
    terms = []
    for shift, coefficients in operator:
        parts = tuple(
            (i, tuple((exponents, value * integral[i - 1]) for exponents, value in above), below)
            for i, above, below in coefficients
            if integral[i - 1]
        )
        if parts:
            terms.append((tuple(a + b for a, b in zip(integral, shift)), parts))
    return tuple(terms)


def lowered_dimension(polynomial: Sequence[tuple[Index, Any]], integral: Index) -> Operator:
    """The integral in d - 2 dimensions through integrals in d: each x_b**e becomes a_b (a_b + 1) … (a_b + e - 1) and raises a_b by e."""
    terms: dict[Index, dict[int, Any]] = {}
    for exponents, value in polynomial:
        factor = math.prod(a + k for a, e in zip(integral, exponents) for k in range(e))
        if factor:
            terms[tuple(a + e for a, e in zip(integral, exponents))] = {0: value * factor}
    return freeze_operator(terms)


def equations_for(family: Family, variables: Sequence[str], masters: Sequence[Index], numbers: dict[str, Fraction]) -> dict[Row, Operator]:
    """The left sides of the equations for these masters as combinations of integrals, by (variable, *master). Raises InputError."""
    combinations: dict[Row, Operator] = {}
    for variable in variables:
        if variable == "d":
            polynomial = graph_polynomial(family)
            combinations |= {("d", *master): lowered_dimension(polynomial, master) for master in masters}
        else:
            operator = differentiate(family, variable, numbers)
            combinations |= {(variable, *master): derivative_of(operator, master) for master in masters}
    return combinations


@dataclass(frozen=True)
class DifferentialProblem(ExactProblem):
    """Equations in these variables for the masters of all sectors below those of the problem's targets and of the preferred masters."""

    variables: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        of = f"the masters of {self.problem.family.name} below {show(self.problem.targets[0])}"
        return f"differential equations in {', '.join(self.variables)} for {of}"

    @property
    def _parts(self) -> tuple:
        return (*super()._parts, self.variables)

    def record(self, outcome: ExactOutcome) -> dict[str, Any]:
        """The matrices in place of reductions, by variable, row and column."""
        matrices: dict[str, dict[Index, dict]] = {variable: {} for variable in self.variables}
        for (variable, *master), entries in outcome.reductions.items():
            matrices[variable][tuple(master)] = entries
        equation = {"masters": outcome.masters, "matrices": matrices}
        return super().record(replace(outcome, reductions={})) | {"differential_equation": equation}

    def lines(self, outcome: ExactOutcome) -> list[str]:
        """The matrices: a line for each entry that is not zero."""
        width = max(map(len, map(show, outcome.masters)))
        lines = []
        for (variable, *master), row in outcome.reductions.items():
            left = f"{show(master)} at d-2" if variable == "d" else f"d/d{variable} {show(master)}"
            lines += [f"{left} =", *(term_lines(row, width) or ["  0"])]
        if len(lines) > MOST_ROWS_SHOWN:
            lines = [*lines[:MOST_ROWS_SHOWN], f"  ... and {len(lines) - MOST_ROWS_SHOWN:,} more lines in the result"]
        entries = sum(map(len, outcome.reductions.values()))
        about = f"{len(outcome.masters)} masters, equations in {', '.join(self.variables)}, {entries:,} entries that are not zero"
        return [f"{self.heading}: {about}", *lines]


class DifferentialSampler(Sampler):
    """Entries of the matrices at sample points: the integrals are put together before anything is reconstructed."""

    exact: DifferentialProblem

    def _find_columns(self, rng: np.random.Generator) -> tuple[Column, ...]:
        """Raises ReductionError, InputError."""
        p = next(probe_primes(rng))
        self.basis = self._find_basis(replace(self.exact.problem, point=self._point(p, self._random(rng, p))))
        numbers = {name: value for name, value in self.exact.given.items() if name != "d"}
        equations = equations_for(self.exact.problem.family, self.exact.variables, self.basis, numbers)
        return tuple(Column(row, terms) for row, terms in equations.items())

    def _find_basis(self, problem: Problem) -> tuple[Index, ...]:
        """Preferred masters, and the standard ones that they do not replace. Raises InputError, ReductionError."""
        preferred, p = problem.preferred_masters, problem.point.prime
        plain = replace(problem, targets=problem.targets + preferred, preferred_masters=())
        outcome = Controller(plain, InlineExecutor(), self.shelves, self.progress).run()
        if outcome.unreduced:
            raise ReductionError(
                f"{show(outcome.unreduced[0])} is not reducible at the given numbers and random values of the rest; if they are a singular "
                "point, such as d = 4, leave them symbols; masters are best of low rank"
            )
        reductions = change_basis({m: {m: 1} for m in outcome.masters} | outcome.reductions, preferred, p)
        basis = {*preferred, *(m for m in outcome.masters if reductions[m] == {m: 1})}
        if not basis:
            raise InputError(f"--differential-equation: every integral below {show(problem.targets[0])} is zero; there are no masters")
        return tuple(sorted(basis, key=weight))
