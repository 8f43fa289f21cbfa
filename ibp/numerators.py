"""Numerators of functions with known denominators: polynomials of known degrees, with rational coefficients.

The first prime takes a full grid (a lower set), further ones the same, or where it has many zeros points of a geometric sequence, for its
terms alone. `find_numerators` puts them into the functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial

import numpy as np

from ibp.errors import Unlucky
from ibp.functions import ExactFunction
from ibp.lifting import Vectors, lift_vectors
from ibp.polynomials import Monomials, Places, interpolate, monomial_values, primitive
from ibp.residues import invert
from ibp.samples import Asker
from ibp.shapes import Shapes
from ibp.univariate import solve_geometric

SPARSE_SHARE = 0.95  # further primes solve for the terms alone if these are fewer than so many of the points of a full grid
CONFIRMING_POINTS = 2  # show that a numerator is right, where a further prime would take many more
FORESEEN_POINTS = 50  # how many primes there will be is estimated (by some ten points) where each takes more points than this
Exponents = tuple[int, ...]
Supports = dict[int, list[Exponents]]  # the terms of each function's numerator


def find_numerators(
    asker: Asker, shapes: Shapes, boxes: list[list[Exponents]], say: Callable[[str], None], announce: Callable[[int], str]
) -> int:
    """Completes the functions; returns how many primes that took. boxes: exponents that each numerator may have.

    Raises Unlucky, ReductionError.
    """
    functions, everything = shapes.functions, list(range(asker.count))
    grid = sorted(set().union(*boxes))
    first = next(asker.primes)
    polys = _on_grid(asker, functions, [first], grid, everything)[first]
    _must_predict(asker, functions, polys, first)
    if any(not set(poly) <= set(boxes[f]) for f, poly in polys.items()):
        raise Unlucky("a numerator has a higher degree than expected")
    supports = {f: sorted(poly, reverse=True) for f, poly in polys.items()}
    terms = max(map(len, supports.values()))
    sparse = bool(asker.variables) and terms < SPARSE_SHARE * len(grid)
    points = terms if sparse else len(grid)
    expected = _expected_primes(asker, shapes, points)
    told = f"degrees {shapes.describe()}; {len(grid):,} points for the first prime, {points:,} for each of about {expected - 1} more"
    say(f"{told}: {announce(len(grid) + (expected - 1) * points)}")

    def images(batch: list[int], wanted: list[int]) -> dict[int, Vectors]:
        polys = _sparsely(asker, functions, batch, supports, wanted) if sparse else _on_grid(asker, functions, batch, grid, wanted)
        if any(not set(poly) <= set(supports[f]) for some in polys.values() for f, poly in some.items()):
            raise Unlucky("a numerator has other terms than at the first prime")
        return {p: {f: [poly.get(e, 0) for e in supports[f]] for f, poly in some.items()} for p, some in polys.items()}

    known = {first: {f: [poly[e] for e in supports[f]] for f, poly in polys.items()}}
    confirmed = partial(_confirmed, asker, functions, supports) if terms > 2 * CONFIRMING_POINTS else None
    vectors, used = lift_vectors(asker.primes, everything, images, expected, known, confirmed)
    for f, numbers in vectors.items():
        functions[f].factor, functions[f].numerator = primitive({e: value for e, value in zip(supports[f], numbers) if value})
    return used


def _must_predict(asker: Asker, functions: list[ExactFunction], polys: dict[int, Monomials], p: int) -> None:
    """Raises Unlucky where a numerator modulo a prime is not this polynomial: degrees or the denominator are wrong."""
    points = [asker.draw(p) for _ in range(2)]
    if len(_agreeing(functions, polys, asker.values([(p, point) for point in points]), Places(points, p))) < len(polys):
        raise Unlucky("a numerator is not a polynomial of the degrees that were found")


def _agreeing(functions: list[ExactFunction], polys: dict[int, Monomials], values: np.ndarray, places: Places) -> list[int]:
    """Functions whose numerators are these polynomials, as far as values [P, F] say."""
    return [f for f, poly in polys.items() if (places.evaluate(poly.items()) == functions[f].stripped(values[:, f], places)).all()]


def _confirmed(asker: Asker, functions: list[ExactFunction], supports: Supports, candidates: dict[int, list[Fraction]]) -> list[int]:
    """Functions whose numerators have these coefficients at points modulo a prime that was not used."""
    p = next(asker.primes)
    points = [asker.draw(p) for _ in range(CONFIRMING_POINTS)]
    values, good = asker.ask([(p, point) for point in points])
    if not good.all():
        return []
    polys = {
        f: {e: value.numerator * pow(value.denominator, -1, p) for e, value in zip(supports[f], numbers)}
        for f, numbers in candidates.items()
        if all(value.denominator % p for value in numbers)
    }
    return _agreeing(functions, polys, values, Places(points, p))


def _on_grid(
    asker: Asker, functions: list[ExactFunction], batch: list[int], grid: list[Exponents], chosen: list[int]
) -> dict[int, dict[int, Monomials]]:
    """Numerators modulo each prime of a batch from points of a full grid."""
    limits = [max(exponents[i] for exponents in grid) for i in range(len(asker.variables))]
    nodes = {p: [asker.distinct(p, limit + 1) for limit in limits] for p in batch}
    points = {p: [tuple(int(some[e]) for some, e in zip(nodes[p], exponents)) for exponents in grid] for p in batch}
    values = asker.values([(p, point) for p in batch for point in points[p]]).reshape(len(batch), len(grid), asker.count)
    result: dict[int, dict[int, Monomials]] = {}
    for p, mine in zip(batch, values):
        places = Places(points[p], p)
        columns = np.stack([functions[f].stripped(mine[:, f], places) for f in chosen], axis=1)
        coefficients = interpolate(nodes[p], grid, columns, p)
        result[p] = {f: {e: int(c) for e, c in zip(grid, coefficients[:, k].tolist()) if c} for k, f in enumerate(chosen)}
    return result


def _sparsely(
    asker: Asker, functions: list[ExactFunction], batch: list[int], supports: Supports, chosen: list[int]
) -> dict[int, dict[int, Monomials]]:
    """Numerators with known terms, from as many points of a geometric sequence."""
    count = max(len(supports[f]) for f in chosen)
    starts, points = {}, {}
    for p in batch:
        start, ratio = starts[p] = asker.draw(p), asker.draw(p)
        points[p] = [tuple(s * pow(r, k, p) % p for s, r in zip(start, ratio)) for k in range(count)]
    values = asker.values([(p, point) for p in batch for point in points[p]]).reshape(len(batch), count, asker.count)
    result: dict[int, dict[int, Monomials]] = {}
    for p, mine in zip(batch, values):
        places, result[p] = Places(points[p], p), {}
        start, ratio = starts[p]
        for f in chosen:
            terms = np.array(supports[f]).reshape(len(supports[f]), -1)
            bases = monomial_values(terms, ratio, p)
            if len(np.unique(bases)) < len(bases):
                raise Unlucky("two terms cannot be told apart")
            solved = solve_geometric(bases, functions[f].stripped(mine[:, f], places), p)
            numbers = solved * invert(monomial_values(terms, start, p), p) % p
            result[p][f] = dict(zip(supports[f], numbers.tolist()))
    return result


def _expected_primes(asker: Asker, shapes: Shapes, points: int) -> int:
    """How many primes of so many points there will be, from the size of the numbers at a small rational point."""
    place = (101, 103, 107, 109, 113, 127, 131)[: len(asker.variables)]
    expected = 1
    if len(place) < len(asker.variables) or points <= FORESEEN_POINTS:
        return expected

    def images(batch: list[int], chosen: list[int]) -> dict[int, Vectors]:
        result: dict[int, Vectors] = {}
        for p, row in zip(batch, asker.values([(p, place) for p in batch])):
            places = Places([place], p)
            result[p] = {f: [int(shapes.functions[f].stripped(row[f : f + 1], places)[0])] for f in chosen}
        return result

    try:
        numbers, _ = lift_vectors(asker.primes, list(range(asker.count)), images, 8)
    except Unlucky:
        return expected
    for f, (number, *_) in numbers.items():
        bits = number.numerator.bit_length() + number.denominator.bit_length()
        inside = sum(degree * math.log2(x) for degree, x in zip(shapes.degrees[f], place))
        expected = max(expected, 1 + int(max(bits - inside / 2, 0) / 30.9 + 0.5))
    return expected
