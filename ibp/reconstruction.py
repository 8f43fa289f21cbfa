"""Rational functions of some variables from their values modulo primes, at points that are asked for.

1. Degrees and the factors that are simple or known beforehand, by lines through random points (shapes.py).
2. What is left of the denominators, by lines through a common point s: as a polynomial in t, 1 at t = 0, the denominator of f(s + t z) has
   homogeneous polynomials in z as coefficients (Cuyt, Lee, Theor. Comp. Sci. 412 (2011) 1445).
3. Then the numerators are polynomials of known degrees, with rational coefficients (lifting.py). The first prime takes a full grid (a lower
   set), further ones the same, or where it has many zeros points of a geometric sequence, for its terms alone.
4. A check at fresh points and primes. Where random choices were unlucky, all of it is done again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import numpy as np

from ibp.errors import ReductionError, Unlucky
from ibp.functions import ExactFunction, polynomial_factors
from ibp.lifting import Vectors, lift_vectors
from ibp.polynomials import (
    REDUNDANT_POINTS,
    Monomials,
    Places,
    Polynomial,
    count_exponents,
    frozen,
    interpolate,
    lower_set,
    monomial_values,
    primitive,
    rational_interpolation,
    shift_back,
    solve_geometric,
)
from ibp.residues import invert
from ibp.samples import ATTEMPTS, Ask, Asker
from ibp.shapes import Shapes, find_shapes

SPARSE_SHARE = 0.95  # further primes solve for the terms alone if these are fewer than so many of the points of a full grid
CONFIRMING_POINTS = 2  # show that a numerator is right, where a further prime would take many more
FORESEEN_POINTS = 50  # how many primes there will be is estimated (by some ten points) where each takes more points than this
Exponents = tuple[int, ...]
Supports = dict[int, list[Exponents]]  # the terms of each function's numerator
MANY_POINTS = 5000  # of which it is said early that they are to come


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
    supports: Supports = {}

    def images(batch: list[int], wanted: list[int]) -> dict[int, Vectors]:
        result: dict[int, Vectors] = {}
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
    limits = {i: degree for i, degree in enumerate(shapes.left(chosen[0])) if degree}
    active = tuple(sorted(limits, key=lambda i: -limits[i]))  # the directions are 1 in the first, where it saves most
    base, shift = asker.draw(p), asker.draw(p)

    def place(t: int, z: Sequence[int]) -> tuple[int, ...]:
        point = list(base)
        for i, value in zip(active, z):
            point[i] = (shift[i] + t * value) % p
        return tuple(point)

    spread = [active.index(i) if i in active else -1 for i in range(len(asker.variables))]
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
        result[f] = {tuple((*exponents, 0)[k] for k in spread): value for exponents, value in poly.items()}
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


def find_numerators(
    asker: Asker, shapes: Shapes, boxes: list[list[Exponents]], say: Callable[[str], None], announce: Callable[[int], str]
) -> int:
    """Completes the functions, whose numerators have exponents in boxes; returns the number of primes. Raises Unlucky, ReductionError."""
    functions, everything = shapes.functions, list(range(asker.count))
    grid = sorted(set().union(*boxes))
    first = next(asker.primes)
    polys = _on_grid(asker, functions, [first], grid, everything)[first]
    points = [asker.draw(first) for _ in range(2)]
    if len(_agreeing(functions, polys, asker.values([(first, point) for point in points]), Places(points, first))) < len(polys):
        raise Unlucky("a numerator is not a polynomial of the degrees that were found")
    if any(not set(poly) <= set(boxes[f]) for f, poly in polys.items()):
        raise Unlucky("a numerator has a higher degree than expected")
    supports = {f: sorted(poly, reverse=True) for f, poly in polys.items()}
    terms = max(map(len, supports.values()))
    sparse = bool(asker.variables) and terms < SPARSE_SHARE * len(grid)
    size = terms if sparse else len(grid)
    expected = _expected_primes(asker, shapes, size)
    told = f"degrees {shapes.describe()}; {len(grid):,} points for the first prime, {size:,} for each of about {expected - 1} more"
    say(f"{told}: {announce(len(grid) + (expected - 1) * size)}")

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
    place, expected = (101, 103, 107, 109, 113, 127, 131)[: len(asker.variables)], 1
    if len(place) < len(asker.variables) or points <= FORESEEN_POINTS:
        return 1

    def images(batch: list[int], chosen: list[int]) -> dict[int, Vectors]:
        result: dict[int, Vectors] = {}
        for p, row in zip(batch, asker.values([(p, place) for p in batch])):
            places = Places([place], p)
            result[p] = {f: [int(shapes.functions[f].stripped(row[f : f + 1], places)[0])] for f in chosen}
        return result

    try:
        numbers, _ = lift_vectors(asker.primes, list(range(asker.count)), images, 8)
    except Unlucky:
        return 1
    for f, (number, *_) in numbers.items():
        bits = number.numerator.bit_length() + number.denominator.bit_length()
        inside = sum(degree * math.log2(x) for degree, x in zip(shapes.degrees[f], place))
        expected = max(expected, 1 + int(max(bits - inside / 2, 0) / 30.9 + 0.5))
    return expected


@dataclass(frozen=True)
class Reconstruction:
    """What was found; primes: how many the numerators took; degrees: the largest in each variable, for people."""

    functions: list[ExactFunction]
    primes: int = 0
    degrees: str = ""


def reconstruct(
    ask: Ask,
    variables: Sequence[str],
    count: int,
    rng: np.random.Generator,
    say: Callable[[str], None],
    announce: Callable[[int], str] = "{:,} points in all".format,
    letters: Sequence[Polynomial] = (),
) -> Reconstruction:
    """So many functions. letters: polynomials that may be factors; announce: what so many points take. Raises ReductionError."""
    asker = Asker(ask, variables, count, rng)
    if not count:
        return Reconstruction([])
    for attempt in range(ATTEMPTS):
        try:
            shapes = find_shapes(asker, letters)
            costs = [denominator_cost(shapes, f) for f in range(count) if any(shapes.left(f))]
            boxes = [shapes.box(f) for f in range(count)]
            points = min(costs, default=0) + max(map(len, boxes))  # of the largest numerator, and of one denominator
            if points > MANY_POINTS:
                say(f"degrees {shapes.describe()}; for the first prime alone at least {announce(points)}")
            find_denominators(asker, shapes)
            primes = find_numerators(asker, shapes, boxes, say, announce)
            check_functions(asker, shapes.functions)
            return Reconstruction(shapes.functions, primes, shapes.describe())
        except Unlucky as trouble:
            say(f"unlucky random numbers ({trouble}); taking others" if attempt < ATTEMPTS - 1 else "giving up")
    raise ReductionError(f"no function fits in {ATTEMPTS} attempts: the point may be singular; take another, or more --symbols")


def check_functions(asker: Asker, functions: Sequence[ExactFunction]) -> None:
    """Raises Unlucky where a function is not what fresh points modulo fresh primes say."""
    samples = [(p, asker.draw(p)) for p in (next(asker.primes), next(asker.primes)) for _ in range(2 if asker.variables else 1)]
    values, good = asker.ask(samples)
    if not good.any():
        raise Unlucky("no point to check with")
    for (p, point), row in zip([s for s, g in zip(samples, good) if g], values[good]):
        places = Places([point], p)
        for f, function in enumerate(functions):
            above, below = function.evaluate(places)
            if (int(above[0]) - int(row[f]) * int(below[0])) % p or not below[0]:
                raise Unlucky("a function fails at a fresh point")
