"""The geometry of a family: propagators as quadratic forms of the momenta, U and F, and which permutations of lines keep them.

`symanzik` makes U and F, `canonical_orders` their canonical form (Pak); a `SectorMap` is a shift of momenta from one sector to another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ibp.families import Family
from ibp.identities import Algebra, Coefficient, freeze_ratio
from ibp.sectors import sector_order


@dataclass(frozen=True)
class SectorMap:
    """A shift of momenta that carries the lines of one sector into those of another, proved by substitution.

    lines: (line of the source, line of the target), from 1; shift: text for each momentum that changes; rows: each propagator of the
    source after the shift, as (j, numerator, denominator) for its coefficients of D_j of the target, j = 0 for 1. As loop momenta are
    integrated over, and integrals depend on the external momenta through the invariants alone, which the shift keeps, I[a] of the source is
    the integral of the product of (row i)^(-a_i): one line for every positive a_i, a polynomial for the others.
    """

    source: int
    target: int
    lines: tuple[tuple[int, int], ...]
    shift: tuple[str, ...]
    rows: tuple[tuple[Coefficient, ...], ...]

    @property
    def size(self) -> int:
        return sum(map(len, self.rows))


Classes = dict[tuple, list[tuple[int, list[tuple[int, ...]]]]]  # canonical form: sectors that have it, and orders of their lines


class Geometry:
    """The propagators of a family as exact quadratic forms of the momenta x = (k, p): D_i = x Q_i x - m_i.

    forms: n arrays [M, M] of numbers; masses [n]; products[a][b]: x_a . x_b through D_1 … D_n and 1, as pairs (place, coefficient); gram
    [E, E]; routing: (loop part [L], external part [E]) of each propagator that is the square of a momentum, else None; flips: permutations
    of the legs; cut: bit mask of lines, which equivalence must take to cut lines. Numbers are rational where they can be, else polynomials
    or functions of the invariants. Raises InputError.
    """

    def __init__(self, family: Family, cut: int = 0):
        algebra = Algebra(family)
        self.family, self.cut, self.functions, self.loops = family, cut, algebra.functions, len(family.loop_momenta)
        self.names = (*family.loop_momenta, *family.external_momenta)
        self.masses = [_plain(mass) for mass in algebra.masses]
        self.forms = [self._form(propagator) for propagator in algebra.propagators]
        self.products = [
            [[(j, _plain(value)) for j, value in enumerate(algebra.in_propagators(a * b)) if value] for b in algebra.momenta]
            for a in algebra.momenta
        ]
        self.gram = np.empty((len(family.external_momenta),) * 2, object)
        for (i, j), value in algebra.externals.items():
            self.gram[i, j] = _plain(value)
        self.routing = [_square_root(form, self.loops) for form in self.forms]
        self.flips = tuple(_leg_permutations(self.gram))

    def _form(self, propagator: Any) -> np.ndarray:
        from sympy import QQ

        form = np.full((len(self.names),) * 2, QQ(0), object)
        for monomial, value in propagator.terms():
            a, b = (k for k, power in enumerate(monomial) for _ in range(power))
            form[a, b] += _plain(value) / 2
            form[b, a] += _plain(value) / 2
        return form

    @cached_property
    def polynomial(self) -> tuple[np.ndarray, list]:
        """U + F of all lines: exponents [T, lines] of the Feynman parameters, and the T coefficients, frozen.

        sum x_i D_i = k M k + 2 k V + J gives U = det M, F = J U - V adj(M) V (arXiv:1111.0868; the sign of F is of no concern). Cut lines
        add their parameter with a coefficient like no other, so that what keeps the polynomial takes cut lines to cut lines.
        """
        from sympy.polys.rings import ring

        lines, loops = self.family.lines, self.loops
        parameters, *x = ring([f"x{i}" for i in range(lines)], self.functions.to_domain())
        total = np.full((len(self.names),) * 2, parameters.zero, object)
        constant = parameters.zero
        for i in range(lines):
            form = self.forms[i]
            for a, b in zip(*np.nonzero(form)):
                total[a, b] += x[i] * self.functions(form[a, b])
            constant += x[i] * self.functions((form[loops:, loops:] * self.gram).sum() - self.masses[i])
        gram = np.array([[self.functions(value) for value in row] for row in self.gram], object).reshape(self.gram.shape)
        terms = sorted(sum(symanzik(total, constant, gram, loops, parameters.one)).terms())
        exponents = np.array([monomial for monomial, _ in terms], np.int64).reshape(-1, lines)
        marked = np.eye(lines, dtype=np.int64)[[bool(self.cut >> i & 1) for i in range(lines)]]
        return np.concatenate([exponents, marked]), [freeze_ratio(value) for _, value in terms] + [((), ())] * len(marked)

    def canonical(self, bits: int) -> tuple[tuple, list[tuple[int, ...]]]:
        """What equivalent sectors have in common, and all orders of the lines that show it."""
        exponents, coefficients = self.polynomial
        absent = np.array([not bits >> i & 1 for i in range(self.family.lines)])
        kept = np.flatnonzero(~exponents[:, absent].any(1))
        colours = sorted({coefficients[term] for term in kept})
        numbers = np.array([colours.index(coefficients[term]) for term in kept], np.int64)
        form, orders = canonical_orders(exponents[kept][:, ~absent], numbers)
        lines = np.flatnonzero(~absent)
        return (tuple(colours), form), [tuple(lines[list(order)].tolist()) for order in orders]

    def classes(self, nonzero: Sequence[int]) -> Classes:
        """These sectors by their canonical form, the lightest first, each with all orders of its lines that show it."""
        found: Classes = {}
        for bits in sorted(nonzero, key=sector_order):
            form, orders = self.canonical(bits)
            found.setdefault(form, []).append((bits, orders))
        return found

    def text(self, shift: np.ndarray, target: Geometry) -> tuple[str, ...]:
        """A shift [M, M] of the momenta for people, one entry for each that changes; all signs may be reversed."""
        ways = []
        for matrix in (shift, -shift):
            lines = []
            for name, row in zip(self.names, matrix):
                signs = {"1": "+", "-1": "-"}
                parts = [signs.get(str(value), f"+({value})*") + other for other, value in zip(target.names, row) if value]
                text = "".join(parts).removeprefix("+") or "0"
                if text != name:
                    lines.append(f"{name} -> {text}")
            ways.append(tuple(lines))
        return min(ways, key=lambda lines: (len(lines), sum(map(len, lines))))


def _plain(value: Any) -> Any:
    """A function of the invariants as a rational number or a polynomial where it is one: they are faster."""
    from sympy import QQ

    if not value.denom.is_ground:
        return value
    return QQ(value.numer.LC) / QQ(value.denom.LC) if value.numer.is_ground else value.numer.quo_ground(value.denom.LC)


def determinant_of(matrix: np.ndarray, one: Any) -> Any:
    """By expansion along the first row: matrices are as large as there are loops, or legs."""
    if not len(matrix):
        return one
    minors = (determinant_of(np.delete(matrix[1:], j, 1), one) for j in range(len(matrix)))
    return sum(((-1) ** j * value * minor for j, (value, minor) in enumerate(zip(matrix[0], minors))), 0 * one)


def symanzik(total: np.ndarray, constant: Any, gram: np.ndarray, loops: int, one: Any) -> tuple[Any, Any]:
    """U and F of sum x_i D_i, the quadratic form `total` [M, M] of all momenta, loop momenta first, plus a constant.

    constant: with the squares of external momenta already put in; gram [E, E]: their products. one: of the ring of the parameters.
    """
    matrix, linear = total[:loops, :loops], total[:loops, loops:]
    first = determinant_of(matrix, one)
    second = first * constant
    for i, j in itertools.product(range(loops), repeat=2):
        minor = determinant_of(np.delete(np.delete(matrix, i, 0), j, 1), one) * (-1) ** (i + j)
        for a, b in zip(*np.nonzero(gram)):
            second -= minor * linear[i, a] * linear[j, b] * gram[a, b]
    return first, second


def matrix_inverse(matrix: np.ndarray) -> np.ndarray | None:
    """Of a small square matrix of numbers; None if there is none."""
    from sympy import QQ
    from sympy.polys.matrices import DomainMatrix
    from sympy.polys.matrices.exceptions import DMNonInvertibleMatrixError

    try:
        return np.array(DomainMatrix(matrix.tolist(), matrix.shape, QQ).inv().to_list(), object)
    except DMNonInvertibleMatrixError:
        return None


def _square_root(form: np.ndarray, loops: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The momentum whose square a form [M, M] is, up to its sign, split into loop and external part."""
    from sympy import QQ

    if any(not QQ.of_type(value) for value in form.flat):
        return None
    a = next((a for a in range(loops) if form[a, a] > 0), None)
    if a is None:
        return None
    above, below = math.isqrt(int(form[a, a].numerator)), math.isqrt(int(form[a, a].denominator))
    momentum = form[a] / (QQ(above, below) if above and below else 1)
    return None if forms_differ(np.outer(momentum, momentum), form) else (momentum[:loops], momentum[loops:])


def forms_differ(one: np.ndarray, other: np.ndarray) -> bool:
    return any((one - other).flat)


def _leg_permutations(gram: np.ndarray) -> Iterator[np.ndarray]:
    """Matrices [E, E] of all permutations of the E + 1 legs, and of their negatives, that keep every invariant."""
    from sympy import QQ

    count = len(gram)
    legs = np.concatenate([np.eye(count, dtype=int), -np.ones((1, count), int)]) * QQ(1)
    products = legs @ gram @ legs.T if count else gram
    for chosen in itertools.permutations(range(count + 1), count):
        if not any(products[leg, chosen[j]] - products[i, j] for i, leg in enumerate(chosen) for j in range(i + 1)):
            yield legs[list(chosen)]
            yield -legs[list(chosen)]


def canonical_orders(exponents: np.ndarray, colours: np.ndarray) -> tuple[tuple[bytes, ...], list[tuple[int, ...]]]:
    """Canonical form of a polynomial under permutations of its variables (Pak, arXiv:1111.0868), and all orders of them that give it.

    exponents [T, t]; colours [T]: a number for the coefficient of each term. Variables are chosen one by one so that the sorted table of
    the terms' colours and exponents so far is the largest; every way to do so is followed. Two polynomials whose terms have the same
    coefficients are equal up to a permutation if and only if the forms are.
    """
    width = int(exponents.max(initial=0)) + 1
    form: list[bytes] = []
    branches: list[tuple[tuple[int, ...], np.ndarray]] = [((), colours)]
    for _ in range(exponents.shape[1]):
        best, kept = b"", []
        for order, ranks in branches:
            for variable in set(range(exponents.shape[1])) - set(order):
                refined = ranks * width + exponents[:, variable]
                table = np.sort(refined).tobytes()
                if table > best or not kept:
                    best, kept = table, []
                if table == best:
                    kept.append(((*order, variable), refined))
        form.append(best)
        # equal tables have equal ranks, which keeps the numbers small
        branches = [(order, np.unique(refined, return_inverse=True)[1].astype(np.int64)) for order, refined in kept]
    return tuple(form), [order for order, _ in branches]
