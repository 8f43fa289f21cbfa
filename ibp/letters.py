"""Letters: factors that mix variables and may be known beforehand, from the kinematics of a family or from other denominators.

`kinematic_letters` and `linear_letters` make them; `Letters` says which divide polynomials that are known on slices.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from ibp.arithmetic import evaluate
from ibp.errors import Unlucky
from ibp.families import Family
from ibp.geometry import determinant_of
from ibp.identities import external_products, function_field
from ibp.polynomials import Factors, Polynomial, affine, divide, frozen, horner, restricted, times_divisible
from ibp.residues import invert

LETTER_NUMBERS = (2, 4, 9)  # beside 1, for one term of a linear letter: thresholds such as s - 4m
MOST_LINEAR_LETTERS = 5000
MOST_LEGS = 6  # so many have 203 partitions, each with a Gram determinant


def linear_letters(atoms: Sequence[Sequence[Any]]) -> tuple[Polynomial, ...]:
    """Sums of atoms (coefficients of the variables and a constant), few first, that mix variables; all but one coefficient are 1 or -1."""
    found: dict[Polynomial, None] = {}
    for size in range(2, len(atoms) + 1):
        for chosen in itertools.combinations(atoms, size):
            for signs in itertools.product((1, -1), repeat=size - 1):
                for place, number in [(0, 1), *itertools.product(range(size), LETTER_NUMBERS)]:
                    numbers = [sign * (number if k == place else 1) for k, sign in enumerate((1, *signs))]
                    letter = [sum(a * b for a, b in zip(numbers, column)) for column in zip(*chosen)]
                    if sum(map(bool, letter[:-1])) > 1:
                        found[affine(letter)] = None
                if len(found) >= MOST_LINEAR_LETTERS:
                    return tuple(found)
    return tuple(found)


def degrees_of(rests: Sequence[Sequence[np.ndarray]]) -> tuple[int, ...]:
    """Of a polynomial that is this on [variable][slice], in each variable."""
    return tuple(len(rest[0]) - 1 for rest in rests)


class Letters:
    """Polynomials that may divide others, and what they are on slices modulo p along each variable (bases: [variable][slice])."""

    def __init__(self, polys: Sequence[Polynomial], bases: Sequence[Sequence[tuple[int, ...]]], p: int):
        self.bases, self.p = bases, p
        self.degrees = {poly: np.max([exponents for exponents, _ in poly], axis=0) for poly in polys}
        self.linear = [poly for poly in polys if all(sum(exponents) < 2 for exponents, _ in poly)]
        self.others = [poly for poly in polys if any(sum(exponents) > 1 for exponents, _ in poly)]
        self._slices: dict[tuple[Polynomial, int, int], np.ndarray] = {}
        self.roots = [self._roots(i) for i in range(len(bases))]

    def _roots(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the linear letters of which i is the first variable, and their roots on the first slice."""
        mine = [k for k, poly in enumerate(self.linear) if np.flatnonzero(self.degrees[poly])[0] == i]
        slices = np.array([self._on_slice(self.linear[k], i, 0) for k in mine], np.int64).reshape(-1, 2)
        return np.array(mine, np.int64), -slices[:, 0] % self.p * invert(slices[:, 1], self.p) % self.p

    def divides(self, poly: Polynomial, rests: list[list[np.ndarray]]) -> bool:
        return degrees_of(rests) == tuple(self.degrees[poly]) and all(
            times_divisible(rests[i][k], self._on_slice(poly, i, k), self.p)
            for i in np.flatnonzero(self.degrees[poly])
            for k in range(len(rests[i]))
        )

    def divide_out(self, rests: list[list[np.ndarray]]) -> Factors:
        """Multiplicities in a polynomial that is this on the slices; what is left of it is put into rests."""
        found: Factors = {}
        degrees = degrees_of(rests)
        candidates = [poly for poly in self.others if (self.degrees[poly] <= degrees).all()]
        for (mine, roots), rest in zip(self.roots, rests):
            if len(rest[0]) > 1 and len(mine):
                candidates += [self.linear[k] for k in mine[horner(rest[0], roots, self.p) == 0].tolist()]
        for poly in candidates:
            active = np.flatnonzero(self.degrees[poly]).tolist()
            factors = {(i, k): self._on_slice(poly, i, k) for i in active for k in range(len(self.bases[i]))}
            times = math.inf
            for (i, k), factor in factors.items():
                times = times and min(times, times_divisible(rests[i][k], factor, self.p))
            if times:
                found[poly] = times
                for (i, k), factor in factors.items():
                    for _ in range(times):
                        rests[i][k], _ = divide(rests[i][k], factor, self.p)
        return found

    def _on_slice(self, poly: Polynomial, i: int, k: int) -> np.ndarray:
        if (poly, i, k) not in self._slices:
            self._slices[poly, i, k] = restricted(poly, i, self.bases[i][k], self.p)
            if len(self._slices[poly, i, k]) <= self.degrees[poly][i]:
                raise Unlucky("a letter has a lower degree on a slice")
        return self._slices[poly, i, k]


def partitions(things: Sequence[Any]) -> Iterator[list[list[Any]]]:
    """All ways to put things into groups; the last thing is in the last group."""
    if not things:
        yield []
        return
    *rest, last = things
    for size in range(len(rest) + 1):
        for chosen in itertools.combinations(range(len(rest)), size):
            group = [rest[k] for k in chosen] + [last]
            yield from ([*groups, group] for groups in partitions([x for k, x in enumerate(rest) if k not in chosen]))


def kinematic_letters(family: Family, variables: Sequence[str], numbers: dict[str, Fraction]) -> tuple[Polynomial, ...]:
    """Where integrals may be singular, as far as these variables are mixed there; the other symbols have numbers.

    Simple sums of invariants; Gram determinants of groups of legs, which are squares, Källén functions, …; the thresholds
    lambda(P^2, m_i^2, m_j^2) of all P and masses; lambda(s t, P_1^2 P_3^2, P_2^2 P_4^2) of massless boxes.
    """
    names = [name for name, _ in family.point]
    if len(set(names) & set(variables)) < 2:
        return ()
    atoms = [[int(name == x) for x in variables] + [0 if name in variables else numbers[name]] for name in names]
    letters = dict.fromkeys(linear_letters([*atoms, [0] * len(variables) + [1]]))
    place = [family.symbols.index(x) for x in variables]
    for value in dict.fromkeys(_singular_functions(family, numbers)):
        for factor, _ in value.numer.factor_list()[1]:
            letter = frozen({tuple(int(exponents[k]) for k in place): int(c) for exponents, c in factor.terms()})
            if (np.max([exponents for exponents, _ in letter], axis=0) > 0).sum() > 1:
                letters[letter] = None
    return tuple(letters)


def _singular_functions(family: Family, numbers: dict[str, Fraction]) -> Iterator[Any]:
    """Determinants and Källén functions as rational functions of the symbols, with the numbers put in."""
    functions, names = function_field(family.symbols, numbers)
    where, count = f"family {family.name}", len(family.external_momenta)
    products = external_products(family, names, functions, where)
    masses = [functions(evaluate(mass, names, where)) for mass in dict.fromkeys(("0", *(mass for _, mass in family.propagators)))]
    units = np.eye(count, dtype=int)
    legs = [*units, -units.sum(0)]

    def product(a: np.ndarray, b: np.ndarray) -> Any:
        return sum((products[i, j] * int(a[i] * b[j]) for i in range(count) for j in range(count) if a[i] * b[j]), functions.zero)

    def kallen(x: Any, y: Any, z: Any) -> Any:
        return x**2 + y**2 + z**2 - 2 * (x * y + y * z + z * x)

    for groups in partitions(legs) if 0 < count < MOST_LEGS else ():
        sums = [np.sum(group, axis=0) for group in groups]
        gram = np.array([[product(a, b) for b in sums] for a in sums], object)
        yield determinant_of(gram[:-1, :-1], functions.one)
        if len(groups) == 2:
            yield from (kallen(gram[0, 0], a, b) for a, b in itertools.combinations_with_replacement(masses, 2))
        if len(groups) == 4:
            for a, b, c, d in ((0, 1, 2, 3), (1, 0, 2, 3), (0, 2, 1, 3)):
                between = [gram[i, i] + 2 * gram[i, j] + gram[j, j] for i, j in ((a, b), (b, c))]
                yield kallen(between[0] * between[1], gram[a, a] * gram[c, c], gram[b, b] * gram[d, d])
