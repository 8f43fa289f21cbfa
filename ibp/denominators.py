"""What factors that are known beforehand leave of denominators, by lines through a common point s.

As a polynomial in t, normalised to 1 at t = 0, the denominator of f(s + t z) has homogeneous polynomials in z as coefficients (Cuyt, Lee,
Theor. Comp. Sci. 412 (2011) 1445). `find_denominators` starts with the cheapest: its factors are letters for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from ibp.errors import Unlucky
from ibp.functions import polynomial_factors
from ibp.lifting import lift_vectors
from ibp.polynomials import Monomials, Places, count_exponents, frozen, interpolate, lower_set, primitive, shift_back
from ibp.samples import Asker
from ibp.shapes import Shapes
from ibp.univariate import REDUNDANT_POINTS, rational_interpolation


def find_denominators(asker: Asker, shapes: Shapes) -> None:
    """Until nothing is left of any. Raises Unlucky, ReductionError."""
    while remaining := [f for f in range(asker.count) if any(shapes.left(f))]:
        costs = {f: (denominator_cost(shapes, f), shapes.left(f)) for f in remaining}
        chosen = [f for f in remaining if costs[f] == min(costs.values())]
        factors = [factor for poly in _denominators(asker, shapes, chosen) for factor, _ in polynomial_factors(poly, asker.variables)]
        letters = shapes.letters(list(dict.fromkeys(map(frozen, factors))))
        for f in remaining:
            shapes.functions[f].below |= letters.divide_out(shapes.rests[f])
        if any(any(shapes.left(f)) for f in chosen):
            raise Unlucky("a denominator does not divide itself")


def denominator_cost(shapes: Shapes, f: int) -> int:
    """About how many points it takes to find what is left of a denominator."""
    left = shapes.left(f)
    *limits, _ = sorted(filter(None, left))
    moved = sum(degree for i, degree in enumerate(shapes.degrees[f]) if left[i] and i not in shapes.summed)
    return count_exponents(limits, sum(left)) * (sum(left) + shapes.total(f) + moved + REDUNDANT_POINTS)


def _denominators(asker: Asker, shapes: Shapes, chosen: list[int]) -> list[Monomials]:
    """What is left of denominators with the same degrees; one prime may do, since the slices are modulo another."""
    supports: dict[int, list[tuple[int, ...]]] = {}

    def images(batch: list[int], wanted: list[int]) -> dict[int, dict[int, list[int]]]:
        result: dict[int, dict[int, list[int]]] = {}
        for p in batch:
            result[p] = {}
            for f, poly in _denominators_modulo(asker, shapes, p, wanted).items():
                terms = supports.setdefault(f, sorted(poly, reverse=True))
                if not set(poly) <= set(terms) or terms[0] not in poly:
                    raise Unlucky("a denominator has other terms")
                inverse = pow(poly[terms[0]], -1, p)
                result[p][f] = [poly.get(exponents, 0) * inverse % p for exponents in terms]
        return result

    def polynomial(f: int, numbers: list[Fraction]) -> Monomials:
        return primitive({e: value for e, value in zip(supports[f], numbers) if value})[1]

    def confirmed(candidates: dict[int, list[Fraction]]) -> list[int]:
        polys = {f: frozen(polynomial(f, numbers)) for f, numbers in candidates.items()}
        letters = shapes.letters(list(dict.fromkeys(polys.values())))
        return [f for f, poly in polys.items() if letters.divides(poly, shapes.rests[f])]

    vectors, _ = lift_vectors(asker.primes, chosen, images, 1, confirmed=confirmed)
    return [polynomial(f, numbers) for f, numbers in vectors.items()]


def _denominators_modulo(asker: Asker, shapes: Shapes, p: int, chosen: list[int]) -> dict[int, Monomials]:
    """What is left of denominators with the same degrees, up to a factor."""
    limits = {i: degree for i, degree in enumerate(shapes.left(chosen[0])) if degree}
    active = tuple(sorted(limits, key=lambda i: -limits[i]))  # the directions are 1 in the first, where it saves most
    base, shift = asker.draw(p), asker.draw(p)

    def place(t: int, z: Sequence[int]) -> tuple[int, ...]:
        point = list(base)
        for i, value in zip(active, z):
            point[i] = (shift[i] + t * value) % p
        return tuple(point)

    direction = (1, *asker.draw(p, len(active) - 1))
    first = asker.along(p, lambda t: place(t, direction), chosen, known=shapes.functions)
    most = max(len(first[f][1]) - 1 for f in chosen)
    size = max(len(first[f][0]) + len(first[f][1]) for f in chosen) - 1 + REDUNDANT_POINTS
    nodes = [asker.distinct(p, limits[i] + 1) for i in active[1:]]
    lattice = lower_set([([limits[i] for i in active[1:]], [(range(len(active) - 1), most)])])
    directions = [(1, *(int(some[e]) for some, e in zip(nodes, exponents))) for exponents in lattice]
    ts = asker.distinct(p, size)
    points = [place(t, z) for z in directions for t in ts.tolist()]
    values, places = asker.values([(p, point) for point in points]), Places(points, p)
    result = {}
    for f in chosen:
        mine = shapes.functions[f].stripped(values[:, f], places).reshape(len(lattice), size)
        lines = _denominators_on_lines(ts, mine, len(first[f][1]) - 1, p)
        coefficients = interpolate(nodes, lattice, lines, p)
        poly = {
            (k - sum(exponents), *exponents): int(coefficients[number, k])
            for number, exponents in enumerate(lattice)
            for k in range(sum(exponents), lines.shape[1])
            if coefficients[number, k]
        }
        poly = shift_back(poly, [shift[i] for i in active], p)
        result[f] = {_spread(dict(zip(active, exponents)), len(asker.variables)): value for exponents, value in poly.items()}
    return result


def _denominators_on_lines(ts: np.ndarray, values: np.ndarray, degree: int, p: int) -> np.ndarray:
    """Coefficients [lines, degree + 1] of the denominators of functions of t with values [lines, T], 1 at t = 0."""
    lines = np.zeros((len(values), degree + 1), np.int64)
    for number, line in enumerate(values):
        function = rational_interpolation(ts, line, p)
        if function is None or len(function[1]) != degree + 1 or not function[1][0]:
            raise Unlucky("a line has another degree")
        lines[number] = function[1] * pow(int(function[1][0]), -1, p) % p
    return lines


def _spread(own: dict[int, int], count: int) -> tuple[int, ...]:
    """Exponents of all variables."""
    return tuple(own.get(i, 0) for i in range(count))
