"""Differential equations: derivatives of the masters through the masters, and their values in other dimensions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from executors.base import InlineExecutor
from ibp.console import Reporter
from ibp.controller import Controller
from ibp.errors import InputError, ReductionError
from ibp.exact import ExactProblem
from ibp.families import Family, Index
from ibp.geometry import determinant_of
from ibp.identities import Algebra, Column, Operator, freeze_operator
from ibp.masters import change_basis
from ibp.problems import Problem
from ibp.residues import probe_primes
from ibp.sectors import corner, sector_of, show, weight
from ibp.store import Store

# Integrals are functions of the invariants through the products p_a.p_b and the masses. The operator sum_ij c_ij p_i . d/dp_j, with c such
# that it acts as d/dx on all p_a.p_b, turns the derivative of an integral into a combination of integrals (Remiddi, hep-th/9711188;
# Gehrmann, Remiddi, hep-ph/9912329). In d there is a difference equation: I at d - 2 is the polynomial U of the Feynman parameters with
# x_b -> a_b * (raise index b), applied to I at d (Tarasov, hep-th/9606018), with the Euclidean measure d^dk/pi^(d/2) for every loop.
Row = tuple[Any, ...]  # (variable, *indices of a master)


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
        raise InputError(f"differentiate {variable}: neither the kinematics nor the propagators of {family.name} depend on it")
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
        some = (part for part in coefficients if integral[part[0] - 1])
        parts = tuple((i, tuple((e, value * integral[i - 1]) for e, value in above), below) for i, above, below in some)
        if parts:
            terms.append((tuple(map(int.__add__, integral, shift)), parts))
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
        found = graph_polynomial(family) if variable == "d" else differentiate(family, variable, numbers)
        at = lowered_dimension if variable == "d" else derivative_of
        combinations |= {(variable, *master): at(found, master) for master in masters}
    return combinations


def parse_variables(text: str, family: Family, numbers: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The variables of equations, 'all' or names, and what stays a symbol. numbers: names that are given as such. Raises InputError."""
    symbols = tuple(name for name in family.symbols if name not in numbers)
    names: tuple[str, ...] = ()
    for name in (name.strip() for name in text.split(",")):
        everything = tuple(other for other in symbols if other != "d") if name == "all" and "all" not in family.symbols else (name,)
        if not everything:
            raise InputError(f"differentiate all: no invariant of {family.name} is left as a symbol; leave --kinematics out")
        names += everything
    for name in names:
        if name not in family.symbols or names.count(name) > 1:
            raise InputError(f"differentiate {text!r}: expected 'all', or each of {', '.join(family.symbols)} at most once")
        if name in numbers:
            raise InputError(f"differentiate {name}: {name} is given as a number, too; leave one of them out")
    return names, symbols


@dataclass(frozen=True)
class DifferentialProblem(ExactProblem):
    """Equations in these variables for the masters of all sectors below those of the problem's targets and of the preferred masters."""

    variables: tuple[str, ...] = ()

    @staticmethod
    def below(exact: ExactProblem, variables: tuple[str, ...]) -> DifferentialProblem:
        """The masters of an exact problem take the place of its targets."""
        problem = exact.problem
        targets = tuple(dict.fromkeys(corner(sector_of(integral), problem.family.n) for integral in problem.integrals))
        published = bool(problem.family.paper_masters) and not problem.symmetries
        problem = replace(problem, targets=targets, combinations=(), paper_masters_only=published)
        return DifferentialProblem(problem, exact.symbols, variables)

    @property
    def label(self) -> str:
        of = f"the masters of {self.problem.family.name} below {show(self.problem.targets[0])}"
        return f"differential equations in {', '.join(self.variables)} for {of}"

    @property
    def parts(self) -> tuple:
        return (*super().parts, self.variables)

    def wanted(self, rng: np.random.Generator, shelves: Sequence[Store], reporter: Reporter) -> tuple[tuple[Column, ...], Sequence[Index]]:
        """The left sides of the equations; the masters. Raises ReductionError, InputError."""
        p = next(probe_primes(rng))
        basis = _find_basis(replace(self.problem, point=self.point(p, self.random_values(rng, p))), shelves, reporter)
        numbers = {name: value for name, value in self.given.items() if name != "d"}
        equations = equations_for(self.problem.family, self.variables, basis, numbers)
        return tuple(Column(row, terms) for row, terms in equations.items()), basis


def _find_basis(problem: Problem, shelves: Sequence[Store], reporter: Reporter) -> tuple[Index, ...]:
    """Preferred masters, and the standard ones that they do not replace. Raises InputError, ReductionError."""
    preferred, p = problem.preferred_masters, problem.point.prime
    plain = replace(problem, targets=problem.targets + preferred, preferred_masters=())
    outcome = Controller(plain, InlineExecutor(), shelves, reporter).run()
    if outcome.unreduced:
        raise ReductionError(
            f"{show(outcome.unreduced[0])} is not reducible at the given numbers and random values of the rest; if they are a singular "
            "point, such as d = 4, leave them symbols; masters are best of low rank"
        )
    reductions = change_basis({m: {m: 1} for m in outcome.masters} | outcome.reductions, preferred, p)
    basis = {*preferred, *(m for m in outcome.masters if reductions[m] == {m: 1})}
    if not basis:
        raise InputError(f"differentiate: every integral below {show(problem.targets[0])} is zero; there are no masters")
    return tuple(sorted(basis, key=weight))
