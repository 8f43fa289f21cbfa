"""Polynomials modulo a prime: in one variable as arrays of coefficients, the constant first; in several as dictionaries or keys.

`Polynomial` is what identities and certificates are made of, `Monomials` what is being worked on, `Factors` a product.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np

from ibp.residues import invert

REDUNDANT_POINTS = 3  # a univariate function must also fit so many points more than it has coefficients
ROOT_DENOMINATOR, ROOT_NUMERATOR = 12, 600  # factors a*x - b with a and |b| up to these are recognised as such
Polynomial = tuple[tuple[tuple[int, ...], int], ...]  # ((exponents of the symbols, integer coefficient), …)
Monomials = dict[tuple[int, ...], Any]  # exponents: coefficient
Factors = dict[Polynomial, int]  # multiplicities of irreducible polynomials of the variables, as `primitive` makes them


def trimmed(poly: np.ndarray) -> np.ndarray:
    nonzero = np.flatnonzero(poly)
    return poly[: nonzero[-1] + 1 if len(nonzero) else 0]


def divide(a: np.ndarray, b: np.ndarray, p: int) -> tuple[np.ndarray, np.ndarray]:
    """Quotient and remainder."""
    rest, quotient = a.copy(), np.zeros(max(len(a) - len(b) + 1, 0), np.int64)
    inverse = pow(int(b[-1]), -1, p)
    for k in range(len(quotient) - 1, -1, -1):
        factor = quotient[k] = int(rest[k + len(b) - 1]) * inverse % p
        if factor:
            rest[k : k + len(b)] = (rest[k : k + len(b)] - factor * b) % p
    return quotient, trimmed(rest)


def multiply(a: np.ndarray, b: np.ndarray, p: int) -> np.ndarray:
    short, long = sorted((a, b), key=len)
    result = np.zeros(max(len(a) + len(b) - 1, 0), np.int64)
    for k, factor in enumerate(short.tolist()):
        result[k : k + len(long)] = (result[k : k + len(long)] + factor * long) % p
    return result


def times_divisible(poly: np.ndarray, factor: np.ndarray, p: int) -> int:
    """How often a factor that is no constant divides."""
    for times in itertools.count():
        poly, remainder = divide(poly, factor, p)
        if len(remainder) or not len(poly):
            return times


def horner(poly: np.ndarray, x: np.ndarray, p: int) -> np.ndarray:
    total = np.zeros(len(x), np.int64)
    for coefficient in poly[::-1].tolist():
        total = (total * x + coefficient) % p
    return total


def divided_differences(nodes: np.ndarray, values: np.ndarray, p: int) -> np.ndarray:
    """Newton coefficients [N, …] of values [N, …] at different nodes [N]."""
    result = values % p
    shape = (-1,) + (1,) * (values.ndim - 1)
    for k in range(1, len(nodes)):
        result[k:] = (result[k:] - result[k - 1 : -1]) % p * invert((nodes[k:] - nodes[:-k]) % p, p).reshape(shape) % p
    return result


def newton_to_monomials(nodes: np.ndarray, coefficients: np.ndarray, p: int) -> np.ndarray:
    result = coefficients.copy()
    for j in range(len(nodes) - 2, -1, -1):
        result[j:-1] = (result[j:-1] - int(nodes[j]) * result[j + 1 :]) % p
    return result


def rational_interpolation(nodes: np.ndarray, values: np.ndarray, p: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Numerator and denominator (with highest coefficient 1) of the rational function with these values, None if it takes more points.

    The remainder sequence of the interpolating polynomial and the product of all x - node has the function where a quotient is largest
    (Monagan, ISSAC 2004); it must fit REDUNDANT_POINTS points more than it has coefficients.
    """
    modulus = np.ones(1, np.int64)
    for node in nodes.tolist():
        modulus = multiply(modulus, np.array([-node % p, 1]), p)
    rest = trimmed(newton_to_monomials(nodes, divided_differences(nodes, values, p), p))
    if not len(rest):
        return np.zeros(0, np.int64), np.ones(1, np.int64)
    previous, cofactor, previous_cofactor = modulus, np.ones(1, np.int64), np.zeros(0, np.int64)
    best: tuple[int, np.ndarray, np.ndarray] | None = None
    while len(rest):
        size = len(rest) + len(cofactor)
        if best is None or size < best[0]:
            best = (size, rest, cofactor)
        quotient, remainder = divide(previous, rest, p)
        product = multiply(quotient, cofactor, p)
        following = np.zeros(max(len(product), len(previous_cofactor)), np.int64)
        following[: len(previous_cofactor)] = previous_cofactor
        following[: len(product)] = (following[: len(product)] - product) % p
        previous, rest, previous_cofactor, cofactor = rest, remainder, cofactor, trimmed(following)
    size, numerator, denominator = best
    if size - 1 + REDUNDANT_POINTS > len(nodes):
        return None
    inverse = pow(int(denominator[-1]), -1, p)
    return numerator * inverse % p, denominator * inverse % p


@cache
def _small_rationals() -> tuple[tuple[int, int], ...]:
    """(a, b) with b/a in lowest terms, the factors a*x - b that are looked for."""
    pairs = ((a, b) for a in range(1, ROOT_DENOMINATOR + 1) for b in range(-ROOT_NUMERATOR, ROOT_NUMERATOR + 1))
    return tuple((a, b) for a, b in pairs if math.gcd(a, b) == 1)


def linear_factors(poly: np.ndarray, p: int) -> dict[tuple[int, int], int]:
    """Multiplicities of the small rational roots b/a of a polynomial, as {(a, b): multiplicity}."""
    if len(poly) < 2:
        return {}
    pairs = np.array(_small_rationals())
    roots = pairs[:, 1] % p * invert(pairs[:, 0], p) % p
    found: dict[tuple[int, int], int] = {}
    for position in np.flatnonzero(horner(poly, roots, p) == 0).tolist():
        a, b = pairs[position].tolist()
        found[a, b] = times_divisible(poly, np.array([-int(roots[position]) % p, 1]), p)
    return found


def solve_geometric(bases: np.ndarray, values: np.ndarray, p: int) -> np.ndarray:
    """c [N] with sum over m of c_m bases_m^k = values_k for k = 0 … N-1: a transposed Vandermonde system. Further values are ignored."""
    master = np.ones(1, np.int64)
    for base in bases.tolist():
        master = multiply(master, np.array([-base % p, 1]), p)
    quotient, total, at_base = np.ones_like(bases), np.zeros_like(bases), np.zeros_like(bases)
    for k in range(len(bases) - 1, -1, -1):  # coefficients of master / (x - base), highest first
        total = (total + quotient * int(values[k])) % p
        at_base = (at_base * bases + quotient) % p
        quotient = (int(master[k]) + bases * quotient) % p
    return total * invert(at_base, p) % p


def polynomial_residue(terms: Polynomial, values: Sequence[int], p: int) -> int:
    """A frozen polynomial at these values of d and the invariants, modulo p."""
    total = 0
    for exponents, factor in terms:
        for value, power in zip(values, exponents):
            factor = factor * pow(value, power, p) % p
        total += factor
    return total % p


class Places:
    """Points [N, variables] modulo a prime, or one for each [N], and values of polynomials there, which many functions share."""

    def __init__(self, points: Any, p: Any):
        self.points, self.p = np.array(points, np.int64).reshape(len(points), -1), p
        self._known: dict[Polynomial, np.ndarray] = {}
        self._powers: dict[tuple[int, int], np.ndarray] = {}

    def _power(self, i: int, exponent: int) -> np.ndarray:
        if exponent == 1:
            return self.points[:, i]
        if (i, exponent) not in self._powers:
            self._powers[i, exponent] = self._power(i, exponent - 1) * self.points[:, i] % self.p
        return self._powers[i, exponent]

    def evaluate(self, terms: Iterable[tuple[Sequence[int], int]]) -> np.ndarray:
        """Values [N] of a polynomial with integer coefficients."""
        total = np.zeros(len(self.points), np.int64)
        for exponents, coefficient in terms:
            product: Any = coefficient % self.p
            for i, exponent in enumerate(exponents):
                if exponent:
                    product = product * self._power(i, exponent) % self.p
            total += product
        return total % self.p

    def value(self, poly: Polynomial) -> np.ndarray:
        """The same, kept for the next time."""
        if poly not in self._known:
            self._known[poly] = self.evaluate(poly)
        return self._known[poly]

    def product(self, factors: Factors) -> np.ndarray:
        result = np.ones(len(self.points), np.int64)
        for poly, multiplicity in factors.items():
            for _ in range(multiplicity):
                result = result * self.value(poly) % self.p
        return result


def monomial_values(exponents: np.ndarray, point: Sequence[int], p: int) -> np.ndarray:
    """Values [N] of monomials with these exponents [N, variables] at a point."""
    result = np.ones(len(exponents), np.int64)
    for x, mine in zip(point, exponents.T):
        result = result * np.array([pow(x, e, p) for e in range(max(mine) + 1)], np.int64)[mine] % p
    return result


def lower_set(boxes: Iterable[tuple[Sequence[int], Sequence[tuple[Sequence[int], int]]]]) -> list[tuple[int, ...]]:
    """Exponents below the limits of any of the boxes (limit of each variable, limits of sums of variables), sorted."""
    found: set[tuple[int, ...]] = set()
    for limits, sums in boxes:
        sizes = [limit + 1 for limit in limits]
        grid = np.indices(sizes).reshape(len(sizes), math.prod(sizes)).T
        inside = np.ones(len(grid), bool)
        for summed, total in sums:
            inside &= grid[:, list(summed)].sum(1) <= total
        found.update(map(tuple, grid[inside].tolist()))
    return sorted(found)


def count_exponents(limits: Sequence[int], total: int) -> int:
    """How many exponents have these limits and at most this sum."""
    ways = [1] + [0] * total
    for limit in limits:
        ways = [sum(ways[max(k - limit, 0) : k + 1]) for k in range(total + 1)]
    return sum(ways)


def interpolate(nodes: Sequence[np.ndarray], exponents: Sequence[tuple[int, ...]], values: np.ndarray, p: int) -> np.ndarray:
    """Coefficients [N, F] of polynomials with these exponents from values [N, F] at the points (nodes[0][e_0], nodes[1][e_1], …).

    The exponents are a lower set: with one all smaller ones are there, so divided differences of each variable in turn meet no gap.
    """
    if not nodes:
        return values % p
    place = tuple(np.array(exponents).T)
    grid = np.zeros((*(len(some) for some in nodes), values.shape[1]), np.int64)
    grid[place] = values
    for axis, some in enumerate(nodes):
        grid = np.moveaxis(divided_differences(some, np.moveaxis(grid, axis, 0), p), 0, axis)
    inside = np.zeros_like(grid)
    inside[place] = grid[place]
    for axis, some in enumerate(nodes):
        inside = np.moveaxis(newton_to_monomials(some, np.moveaxis(inside, axis, 0), p), 0, axis)
    return inside[place]


def shift_back(poly: Monomials, shift: Sequence[int], p: int) -> Monomials:
    """The polynomial in x of a polynomial in x - shift."""
    for i, offset in enumerate(shift):
        shifted: Monomials = {}
        for exponents, coefficient in poly.items():
            for k in range(exponents[i] + 1):
                term = (*exponents[:i], k, *exponents[i + 1 :])
                value = coefficient * math.comb(exponents[i], k) * pow(-offset, exponents[i] - k, p)
                shifted[term] = (shifted.get(term, 0) + value) % p
        poly = shifted
    return {exponents: value for exponents, value in poly.items() if value}


def restricted(poly: Polynomial, i: int, base: Sequence[int], p: int) -> np.ndarray:
    """As a polynomial of variable i modulo p, with the others at base."""
    values = np.zeros(max(exponents[i] for exponents, _ in poly) + 1, np.int64)
    for exponents, value in poly:
        others = (pow(x, e, p) for j, (x, e) in enumerate(zip(base, exponents)) if j != i)
        values[exponents[i]] = (values[exponents[i]] + math.prod(others) * value % p) % p
    return trimmed(values)


def affine(coefficients: Sequence[Any]) -> Polynomial:
    """The sum of all variables with these coefficients, of which the last is the constant."""
    count = len(coefficients) - 1
    return frozen({tuple(int(i == j) for j in range(count)): c for i, c in enumerate(coefficients) if c})


def primitive(poly: Monomials) -> tuple[Fraction, Monomials]:
    """content, polynomial with coprime integer coefficients, positive at its lexicographically largest exponents."""
    common = math.lcm(*(Fraction(value).denominator for value in poly.values()))
    numbers = {exponents: int(value * common) for exponents, value in poly.items()}
    divisor = math.gcd(*numbers.values()) * (1 if numbers[max(numbers)] > 0 else -1)
    return Fraction(divisor, common), {exponents: value // divisor for exponents, value in sorted(numbers.items(), reverse=True)}


def frozen(poly: Monomials) -> Polynomial:
    """The same polynomial up to a factor, as a key."""
    return tuple(primitive(poly)[1].items())
