"""IBP and LI identities derived from the propagators, exactly, then put at a numerical point.

`derive_identities` makes the operators of a family, `evaluate_identities` puts them at a `Point`; a `Column` is an exact combination.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np

from ibp.arithmetic import evaluate
from ibp.errors import InputError
from ibp.families import Expression, Family, Index
from ibp.polynomials import Polynomial, polynomial_residue
from ibp.residues import GENERIC_PRIME

Coefficient = tuple[int, Polynomial, Polynomial]  # (i, numerator, denominator): multiplies a_i, or 1 where i = 0
Operator = tuple[tuple[Index, tuple[Coefficient, ...]], ...]  # ((shift, coefficients), …)


class Algebra:
    """A family's propagators as polynomials in the momenta, over the rational functions of d and the invariants.

    momenta: generators for the loop, then the external momenta; propagators: quadratic forms in them; masses: what is subtracted;
    externals: products of external momenta; names: the symbols as functions, but for those that have numbers. Raises InputError.
    """

    def __init__(self, family: Family, where: str = "", numbers: dict[str, Fraction] | None = None):
        from sympy.polys.matrices import DomainMatrix
        from sympy.polys.matrices.exceptions import DMNonInvertibleMatrixError
        from sympy.polys.rings import ring

        where = where or f"family {family.name}"
        self.functions, self.names = function_field(family.symbols, numbers or {})
        momenta = [*family.loop_momenta, *family.external_momenta]
        self.ring, *self.momenta = ring(momenta, self.functions.to_domain())
        vectors = dict(zip(momenta, self.momenta))
        self.propagators = [propagator_form(text, vectors, self.names, self.ring, where) for text, _ in family.propagators]
        self.masses = [self.functions(evaluate(mass, self.names, where)) for _, mass in family.propagators]
        self.externals = external_products(family, self.names, self.functions, where)
        self.loops, self.n = len(family.loop_momenta), family.n
        products = ((i, j) for i in range(self.loops) for j in range(i, len(momenta)))
        self.column = {pair: number for number, pair in enumerate(products)}
        rows = [self._split(propagator) for propagator in self.propagators]
        try:
            square = DomainMatrix([row[:-1] for row in rows], (self.n, self.n), self.functions.to_domain())
            self.inverse = list(zip(*square.inv().to_list()))  # columns
        except DMNonInvertibleMatrixError:
            raise InputError(
                f"{where}: the propagators are linearly dependent; they must span all {self.n} scalar products with loop momenta"
            ) from None
        self.constants = [row[-1] - mass for row, mass in zip(rows, self.masses)]

    def _split(self, form: Any) -> list:
        """A quadratic form's coefficients of the scalar products with a loop momentum, then its constant part."""
        row = [self.functions.zero] * (self.n + 1)
        for monomial, value in form.terms():
            i, j = (k for k, power in enumerate(monomial) for _ in range(power))
            if i < self.loops:
                row[self.column[i, j]] += value
            else:
                row[-1] += value * self.externals[i - self.loops, j - self.loops]
        return row

    def in_propagators(self, form: Any) -> list:
        """A quadratic form's n + 1 coefficients of D_1 … D_n and 1."""
        *products, constant = self._split(form)
        zero = self.functions.zero
        linear = [sum((value * factor for value, factor in zip(products, column) if value), zero) for column in self.inverse]
        return [*linear, constant - sum((factor * part for factor, part in zip(linear, self.constants)), zero)]


def function_field(symbols: Sequence[str], numbers: dict[str, Fraction]) -> tuple[Any, dict[str, Any]]:
    """The rational functions of these symbols, and what `evaluate` needs to make them; symbols with numbers are these."""
    from sympy import QQ
    from sympy.polys.fields import field as rational_functions

    functions, *generators = rational_functions(list(symbols), QQ)
    given = {name: functions(QQ(value.numerator, value.denominator)) for name, value in numbers.items()}
    return functions, dict(zip(symbols, generators)) | {"1": functions.one} | given


def derive_identities(family: Family) -> tuple[Operator, ...]:
    """IBP operators d/dk_i . q for every loop momentum k_i and every q of loop and external momenta, then the LI operators.

    Applied to a seed a, an operator is the equation 0 = sum over its terms of (sum_i c_i a_i + c_0) I[a + shift]. Exact in d and the
    invariants. Raises InputError for propagators that are not a basis of the scalar products, or undefined symbols.
    """
    algebra, loops, n = Algebra(family), len(family.loop_momenta), family.n
    functions, momenta, externals = algebra.functions, algebra.momenta, algebra.externals

    def add_derivative(terms: dict, factor: Any, momentum: int, vector: Any) -> None:
        """terms += factor * (vector . d/d momentum) applied to the integrand: -a_b (vector . dD_b/d momentum) / D_b for each b."""
        for b, propagator in enumerate(algebra.propagators):
            product = vector * propagator.diff(momenta[momentum])
            for c, value in enumerate(algebra.in_propagators(product) if product else ()):
                if value:
                    shift = tuple((i == b) - (i == c) for i in range(n))
                    row = terms.setdefault(shift, {})
                    row[b + 1] = row.get(b + 1, functions.zero) - factor * value

    operators = []
    for i in range(loops):
        for j, vector in enumerate(momenta):
            terms: dict = {(0,) * n: {0: functions.gens[0]}} if i == j else {}
            add_derivative(terms, functions.one, i, vector)
            operators.append(terms)
    count = len(family.external_momenta)
    for i in range(count):
        for j in range(i + 1, count):
            terms = {}
            for e in range(count):
                add_derivative(terms, externals[e, j], loops + e, momenta[loops + i])
                add_derivative(terms, -externals[e, i], loops + e, momenta[loops + j])
            operators.append(terms)
    return tuple(freeze_operator(terms) for terms in operators)


def propagator_form(text: str, vectors: dict, invariants: dict, momenta_ring: Any, where: str) -> Any:
    """Quadratic form of a propagator in the momenta: a momentum is squared, a product of two is taken as it is. Raises InputError."""
    from sympy.polys.polyerrors import BasePolynomialError

    try:
        value = momenta_ring(evaluate(text, invariants | vectors | {"1": momenta_ring.one}, where))
    except (TypeError, ValueError, ArithmeticError, BasePolynomialError):
        raise InputError(f"{where}: propagator {text!r} is not polynomial in the momenta") from None
    degrees = {sum(monomial) for monomial in value.monoms()} if value else set()
    if degrees not in ({1}, {2}):
        raise InputError(f"{where}: propagator {text!r} is neither a momentum nor a product of two (squared masses go beside it)")
    return value**2 if degrees == {1} else value


def external_products(family: Family, invariants: dict, functions: Any, where: str) -> dict[tuple[int, int], Any]:
    """Scalar products (i, j) of external momenta as functions of the invariants. Raises InputError where the rules do not give them."""
    names = list(family.external_momenta)
    products: dict[tuple[int, int], Any] = {}
    for pair, value in family.kinematics:
        factors = [part.strip() for part in pair.replace("**2", "^2").split("*")]
        factors = [factors[0][:-2]] * 2 if len(factors) == 1 and factors[0].endswith("^2") else factors
        if len(factors) != 2 or any(name not in names for name in factors):
            raise InputError(f"{where}: kinematic rule {pair!r} is not a product of two of the external momenta {', '.join(names)}")
        i, j = sorted(map(names.index, factors))
        if (i, j) in products:
            raise InputError(f"{where}: two kinematic rules for {names[i]}*{names[j]}")
        products[i, j] = products[j, i] = functions(evaluate(value, invariants, where))
    for i, a in enumerate(names):
        for j, b in enumerate(names[i:], i):
            if (i, j) not in products:
                raise InputError(f"{where}: no kinematic rule for {a}*{b}")
    return products


def freeze_operator(terms: dict) -> Operator:
    """Builtin types only, so that an operator can be stored and sent: integer polynomials over the symbols."""
    rows = ((shift, tuple((i, *freeze_ratio(value)) for i, value in sorted(row.items()) if value)) for shift, row in sorted(terms.items()))
    return tuple((shift, coefficients) for shift, coefficients in rows if coefficients)


def freeze_ratio(value: Any) -> tuple[Polynomial, Polynomial]:
    """Numerator and denominator of a rational function with integer coefficients."""
    (a, numerator), (b, denominator) = value.numer.clear_denoms(), value.denom.clear_denoms()
    parts = (numerator.mul_ground(b), denominator.mul_ground(a))
    return tuple(tuple((tuple(map(int, exponents)), int(factor)) for exponents, factor in sorted(part.terms())) for part in parts)


@dataclass(frozen=True)
class Point:
    """Where the identities are evaluated: d and the invariants as rational numbers, and the prime."""

    d: Fraction
    invariants: tuple[tuple[str, Fraction], ...]
    prime: int

    def residues(self) -> tuple[int, ...]:
        """d and the invariants modulo the prime, in the order of Family.symbols. Raises InputError on a zero denominator."""
        values = []
        for name, value in (("d", self.d), *self.invariants):
            if value.denominator % self.prime == 0:
                raise InputError(f"{name} = {value}: division by zero modulo {self.prime}; take another prime or point")
            values.append(value.numerator * pow(value.denominator, -1, self.prime) % self.prime)
        return tuple(values)


def generic_point(family: Family) -> Point:
    """A pseudo-random point modulo GENERIC_PRIME, the same for a family everywhere; what holds there holds at nearly every point."""
    digests = [hashlib.sha256(f"{family.identifier} {name}".encode()).digest() for name in family.symbols]
    d, *values = (Fraction(1000 + int.from_bytes(digest[:8], "big") % (GENERIC_PRIME - 2000)) for digest in digests)
    return Point(d, tuple(zip(family.symbols[1:], values)), GENERIC_PRIME)


@dataclass(frozen=True, eq=False)
class Equations:
    """All operators at one point, as arrays over their terms: operator [E], shift [E, n], coefficient [E, n+1] of (1, a) modulo prime."""

    prime: int
    count: int
    operator: np.ndarray
    shift: np.ndarray
    coefficient: np.ndarray

    @property
    def n(self) -> int:
        return self.shift.shape[1]


def quotients_at(point: Point, what: str) -> Callable[[Polynomial, Polynomial], int]:
    """The value of a quotient of frozen polynomials modulo the prime; InputError, with what it is part of, where the divisor vanishes."""
    p, values = point.prime, point.residues()

    @cache
    def quotient(above: Polynomial, below: Polynomial) -> int:
        divisor = polynomial_residue(below, values, p)
        if divisor == 0:
            shown = ", ".join(f"{name}={value}" for name, value in (("d", point.d), *point.invariants))
            raise InputError(f"the point {shown} makes {what} degenerate: division by zero modulo {p}; take another point or prime")
        return polynomial_residue(above, values, p) * pow(divisor, -1, p) % p

    return quotient


def evaluate_identities(operators: Sequence[Operator], point: Point) -> Equations:
    """Put d and the invariants into the operators. Raises InputError where a denominator vanishes modulo the prime."""
    quotient = quotients_at(point, "an identity")
    labels, shifts, coefficients = zip(*((number, *term) for number, terms in enumerate(operators) for term in terms))
    rows = np.zeros((len(shifts), len(shifts[0]) + 1), np.int64)
    for row, parts in zip(rows, coefficients):
        for i, numerator, denominator in parts:
            row[i] = quotient(numerator, denominator)
    return Equations(point.prime, len(operators), np.array(labels), np.array(shifts, np.int64), rows)


def generic_equations(family: Family) -> Equations:
    return evaluate_identities(derive_identities(family), generic_point(family))


def mass_dimension(terms: Operator) -> int | None:
    """Of an identity, or of a combination less what d gives, in units of a squared mass; None where the terms differ."""
    dimensions = set()
    for shift, coefficients in terms:
        for _, numerator, denominator in coefficients:
            above, below = ({sum(exponents[1:]) for exponents, _ in poly} for poly in (numerator, denominator))
            if len(above) != 1 or len(below) != 1:
                return None
            dimensions.add(above.pop() - below.pop() - sum(shift))
    return None if len(dimensions) > 1 else dimensions.pop() if dimensions else 0


@dataclass(frozen=True)
class Column:
    """A linear combination of integrals, exact in d and the invariants: (integral, coefficients to be added up), each integral once."""

    name: Any
    terms: Operator

    def at(self, point: Point) -> Expression:
        """Coefficients modulo the prime, zeros left out. Raises InputError where a denominator vanishes."""
        quotient = quotients_at(point, "a combination")
        values = ((integral, sum(quotient(above, below) for _, above, below in parts) % point.prime) for integral, parts in self.terms)
        return {integral: value for integral, value in values if value}

    @classmethod
    def of(cls, name: Any, functions: dict[Index, Any]) -> Column:
        """From rational functions of d and the invariants as coefficients."""
        return cls(name, freeze_operator({integral: {0: value} for integral, value in functions.items()}))


def unit_column(integral: Index, symbols: int) -> Column:
    """An integral itself, of a family with so many symbols."""
    one = (((0,) * symbols, 1),)
    return Column(integral, ((integral, ((0, one, one),)),))


def identities_digest(terms: Iterable[tuple[int, Iterable[int], Iterable[int]]]) -> str:
    """SHA-256 of identities at a point, given as (operator, shift [n], coefficients [n + 1]) for each term."""
    rows = sorted((int(k), tuple(map(int, shift)), tuple(map(int, row))) for k, shift, row in terms if any(row))
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def plain_number(value: Fraction) -> int | str:
    return int(value) if value.denominator == 1 else str(value)


def show_values(values: Iterable[tuple[str, Fraction]]) -> str:
    """Such as d=41, m1=1/2."""
    return ", ".join(f"{name}={plain_number(value)}" for name, value in values)


def show_point(point: Point) -> str:
    return f"{show_values((('d', point.d), *point.invariants))} modulo {point.prime}"
