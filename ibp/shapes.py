"""The shapes of rational functions: degrees, and the factors that lines through random points show.

Along each variable, twice: degrees, and with a common divisor of both the factors in that variable alone; of these the linear ones, with
small integers, are taken out, and so are the letters (polynomials that are handed over) that divide on all slices. Then degrees in several
variables together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ibp.errors import Unlucky
from ibp.functions import ExactFunction
from ibp.letters import Letters, degrees_of
from ibp.polynomials import REDUNDANT_POINTS, Factors, Polynomial, affine, count_exponents, divide, linear_factors, lower_set
from ibp.samples import Asker, Line

PAIRS_PAY = 10  # degrees in pairs of variables are found where they take fewer than one in so many of the points of the grid


def _greatest_common_divisor(a: np.ndarray, b: np.ndarray, p: int) -> np.ndarray:
    while len(b):
        a, b = b, divide(a, b, p)[1]
    return a * pow(int(a[-1]), -1, p) % p


def _degree_of(factors: Factors, i: int) -> int:
    return sum(times * max(exponents[i] for exponents, _ in poly) for poly, times in factors.items())


@dataclass
class Shapes:
    """What is known of functions before anything is interpolated in several variables.

    functions: with the factors that are known; degrees: of what is left of the numerators without these, in each variable; rests: the same
    part of the denominators, on [variable][slice] modulo one prime; letters: makes Letters of polynomials, for these slices; sums: degrees
    as above, in several variables together.
    """

    variables: tuple[str, ...]
    functions: list[ExactFunction]
    degrees: list[tuple[int, ...]]
    rests: list[list[list[np.ndarray]]]
    letters: Callable[[Sequence[Polynomial]], Letters]
    sums: dict[tuple[int, ...], list[int]] = field(default_factory=dict)

    @property
    def summed(self) -> tuple[int, ...]:
        """Numbers of all variables but d."""
        return tuple(i for i, name in enumerate(self.variables) if name != "d")

    def left(self, f: int) -> tuple[int, ...]:
        """Degrees of what is left of a denominator without known factors."""
        return degrees_of(self.rests[f])

    def total(self, f: int) -> int:
        """Degree of a numerator in all variables but d together."""
        return self.sums[self.summed][f] if self.sums else sum(self.degrees[f][i] for i in self.summed)

    def largest_size(self, f: int) -> int:
        """How many terms a numerator may have, as far as degrees in one and in all variables say."""
        free = math.prod(degree + 1 for i, degree in enumerate(self.degrees[f]) if i not in self.summed)
        return free * count_exponents([self.degrees[f][i] for i in self.summed], self.total(f))

    def box(self, f: int) -> list[tuple[int, ...]]:
        return lower_set([(self.degrees[f], [(summed, totals[f]) for summed, totals in self.sums.items()])])

    def describe(self) -> str:
        """Largest degrees of numerators and denominators in each variable, factors included."""
        texts = []
        for i, name in enumerate(self.variables):
            above = max(some[i] + _degree_of(function.above, i) for some, function in zip(self.degrees, self.functions))
            below = max(self.left(f)[i] + _degree_of(function.below, i) for f, function in enumerate(self.functions))
            texts.append(f"{name}: {above}/{below}")
        return ", ".join(texts) or "0"


def find_shapes(asker: Asker, letters: Sequence[Polynomial]) -> Shapes:
    """Raises Unlucky."""
    p, count = next(asker.primes), len(asker.variables)
    bases: list[list[tuple[int, ...]]] = [[] for _ in range(count)]
    slices: list[list[Line]] = [[] for _ in range(count)]
    for i in range(count):
        for _ in range(min(2, count)):
            base, size = asker.draw(p), _points_for(slices[i][0]) if slices[i] else 10
            bases[i].append(base)
            slices[i].append(asker.along(p, lambda t, base=base, i=i: (*base[:i], t, *base[i + 1 :]), range(asker.count), size))
    functions = [ExactFunction() for _ in range(asker.count)]
    known = partial(Letters, bases=bases, p=p)
    given = known(letters if count > 1 else ())
    rests: list[list[list[list[np.ndarray]]]] = [[], []]
    for f, function in enumerate(functions):
        for side, factors in enumerate((function.above, function.below)):
            rest = [_without_linear(i, count, [line[f][side] for line in mine], factors, p) for i, mine in enumerate(slices)]
            factors |= given.divide_out(rest)
            rests[side].append(rest)
    shapes = Shapes(asker.variables, functions, [degrees_of(rest) for rest in rests[0]], rests[1], known)
    _find_sums(asker, shapes, p)
    return shapes


def _points_for(line: Line) -> int:
    """How many points show every function of a line."""
    return max(len(above) + len(below) for above, below in line.values()) - 1 + REDUNDANT_POINTS


def _without_linear(i: int, count: int, parts: list[np.ndarray], factors: Factors, p: int) -> list[np.ndarray]:
    """Polynomials on slices without the linear factors in variable i of so many alone, which go to factors."""
    if any(len(part) != len(parts[0]) or not len(part) for part in parts):
        raise Unlucky("degrees differ between two lines")
    for (a, b), multiplicity in linear_factors(_greatest_common_divisor(parts[0], parts[-1], p), p).items():
        factors[affine([a if j == i else 0 for j in range(count)] + [-b])] = multiplicity
        for _ in range(multiplicity):
            parts = [divide(part, np.array([-b % p, a]), p)[0] for part in parts]
    return parts


def _find_sums(asker: Asker, shapes: Shapes, p: int) -> None:
    """Degrees of the numerators in all variables but d together, and where the grid would be large, in pairs of them."""
    everything, size = range(asker.count), 10
    pairs = list(itertools.combinations(shapes.summed, 2))
    for moving in dict.fromkeys([shapes.summed, *pairs]) if pairs else ():
        if shapes.sums and max(map(shapes.largest_size, everything)) < PAIRS_PAY * len(pairs) * size:
            break
        base, direction = asker.draw(p), asker.draw(p)

        def place(t: int, base=base, direction=direction, moving=moving) -> tuple[int, ...]:
            return tuple((x + t * z) % p if i in moving else x for i, (x, z) in enumerate(zip(base, direction)))

        line = asker.along(p, place, everything, size, shapes.functions)
        shapes.sums[moving] = [len(line[f][0]) - 1 for f in everything]
        size = _points_for(line)
        for f in everything:
            if any(len(part) - 1 > sum(some[i] for i in moving) for part, some in zip(line[f], (shapes.degrees[f], shapes.left(f)))):
                raise Unlucky("a factor is none on a line of several variables")
