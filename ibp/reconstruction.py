"""Rational functions from values modulo primes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial

import numpy as np

from ibp.errors import ReductionError, Unlucky
from ibp.functions import ExactFunction, polynomial_factors
from ibp.letters import Letters, degrees_of
from ibp.lifting import Lift, Places
from ibp.polynomials import (
    MOST_SLICE_POINTS,
    REDUNDANT_POINTS,
    Factors,
    Monomials,
    affine,
    count_exponents,
    degree_of,
    divide,
    evaluate_monomials,
    frozen,
    greatest_common_divisor,
    interpolate,
    linear_factors,
    lower_set,
    monomial_values,
    primitive,
    rational_interpolation,
    shift_back,
    solve_geometric,
)
from ibp.residues import Polynomial, invert, probe_primes

MOST_PRIMES = 20_000
MANY_POINTS = 5000  # of which it is said early that they are to come
ATTEMPTS = 4  # how often unlucky choices of random numbers are replaced
SPARSE_SHARE = 0.95  # further primes solve for the terms alone if these are fewer than so many of the points of a full grid
PAIRS_PAY = 10  # degrees in pairs of variables are found where they take fewer than one in so many of the points of the grid
CONFIRMING_POINTS = 2  # show that a numerator is right, where a further prime would take many more
FORESEEN_POINTS = 50  # how many primes there will be is estimated (by some ten points) where each takes more points than this
Sample = tuple[int, tuple[int, ...]]  # a prime, and residues of the variables
Ask = Callable[[Sequence[Sample]], tuple[np.ndarray, np.ndarray]]  # values [P, F] and which are good [P]


class Reconstruction:
    """Rational functions of some variables from their values modulo primes at points that it asks for.

    1. Along each variable, twice: degrees, and with a common divisor of both the factors that depend on that variable alone; of these the
       linear ones (a x - b with small integers) are taken out of numerators and denominators, and so are the letters (polynomials that are
       handed over) that divide on all slices.
    2. What is left of a denominator, by lines through a common point s: as a polynomial in t, normalised to 1 at t = 0, that of
       f(s + t z) has homogeneous polynomials in z as coefficients (Cuyt, Lee, Theor. Comp. Sci. 412 (2011) 1445). Its factors are letters
       for the others.
    3. Then the numerators are polynomials of known degrees: the first prime on a full grid (lower set), further ones on the same, or where
       it has many zeros for its terms alone at points of a geometric sequence.
    4. Numbers by the Chinese remainder theorem until they predict the next prime, or values modulo it at two points, and a check at fresh
       points and primes.
    """

    def __init__(
        self,
        ask: Ask,
        variables: Sequence[str],
        count: int,
        rng: np.random.Generator,
        say: Callable[[str], None],
        announce: Callable[[int], str] = "{:,} points in all".format,
        letters: Sequence[Polynomial] = (),
    ):
        self.letters = tuple(letters)
        self.ask, self.variables, self.count, self.rng, self.say, self.announce = ask, tuple(variables), count, rng, say, announce
        self.primes = probe_primes(rng)
        self.functions = [ExactFunction() for _ in range(count)]
        self.degrees: list[tuple[int, ...]] = []  # of what is left of the numerators without known factors, in each variable
        self.sums: dict[tuple[int, ...], list[int]] = {}  # the same in several variables together
        self.rests: list[list[list[np.ndarray]]] = []  # the same part of the denominators, on [variable][slice]
        self.summed = tuple(i for i, name in enumerate(self.variables) if name != "d")
        self.used_primes = 0

    def run(self) -> list[ExactFunction]:
        """Raises ReductionError where unlucky choices do not end."""
        for attempt in range(ATTEMPTS):
            try:
                self.functions = [ExactFunction() for _ in range(self.count)]
                if self.count:
                    self._find_factors()
                    self._forecast()
                    self._find_denominators()
                    self._find_numerators()
                    self._check()
                return self.functions
            except Unlucky as trouble:
                self.say(f"unlucky random numbers ({trouble}); taking others" if attempt < ATTEMPTS - 1 else "giving up")
        raise ReductionError(f"no function fits in {ATTEMPTS} attempts: the point may be singular; take another, or more --symbols")

    # asking -------------------------------------------------------------------------------------------------------

    def _draw(self, p: int, count: int | None = None) -> tuple[int, ...]:
        return tuple(self.rng.integers(1000, p - 1000, len(self.variables) if count is None else count).tolist())

    def _distinct(self, p: int, count: int) -> np.ndarray:
        nodes: dict[int, None] = {}
        while len(nodes) < count:
            nodes[int(self.rng.integers(1000, p - 1000))] = None
        return np.array(list(nodes), np.int64)

    def _values(self, samples: Sequence[Sample]) -> np.ndarray:
        """Values [P, F]. Raises Unlucky where a point has none."""
        values, good = self.ask(samples)
        if not good.all():
            raise Unlucky("a point has no value")
        return values

    def _along(
        self, p: int, place: Callable[[int], tuple[int, ...]], strip: bool, chosen: Sequence[int], size: int = 10
    ) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """The chosen functions on a line of points place(t), as numerators and denominators in t. strip: without known factors."""
        found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        nodes, values = np.zeros(0, np.int64), np.zeros((0, self.count), np.int64)
        while len(found) < len(chosen):
            if size > MOST_SLICE_POINTS:
                raise Unlucky(f"a function needs more than {MOST_SLICE_POINTS} points in one variable")
            fresh = self._distinct(p, size - len(nodes))
            fresh = fresh[~np.isin(fresh, nodes)]
            points = [place(t) for t in fresh.tolist()]
            more, good = self.ask([(p, point) for point in points])
            if good.mean() < 0.5:
                raise Unlucky("most points of a line have no values")
            if strip:
                places = Places(points, p)
                more = np.stack([self._stripped(f, more[:, f], places) for f in range(self.count)], axis=1)
            nodes, values = np.concatenate([nodes, fresh[good]]), np.concatenate([values, more[good]])
            for f in chosen:
                if f not in found and (function := rational_interpolation(nodes, values[:, f], p)) is not None:
                    found[f] = function
            size = max(size * 3 // 2, size + 4)
        return found

    def _stripped(self, f: int, values: np.ndarray, places: Places) -> np.ndarray:
        """Values without the factors that are known."""
        above, below = places.product(self.functions[f].above), places.product(self.functions[f].below)
        if not above.all():
            raise Unlucky("a point is a zero of a known factor")
        return values * below % places.p * invert(above, places.p) % places.p

    # 1 ------------------------------------------------------------------------------------------------------------

    def _find_factors(self) -> None:
        p, everything = next(self.primes), range(self.count)
        bases: list[list[tuple[int, ...]]] = []
        slices: list[list[dict[int, tuple[np.ndarray, np.ndarray]]]] = []
        for i in range(len(self.variables)):
            mine, size = [], 10
            bases.append([])
            for _ in range(min(2, len(self.variables))):
                base = self._draw(p)
                bases[i].append(base)
                mine.append(self._along(p, lambda t, base=base, i=i: (*base[:i], t, *base[i + 1 :]), False, everything, size))
                size = max(len(n) + len(d) for n, d in mine[0].values()) - 1 + REDUNDANT_POINTS
            slices.append(mine)
        self.known = partial(Letters, bases=bases, p=p)
        letters = self.known(self.letters if len(bases) > 1 else ())
        rests: list[list[list[list[np.ndarray]]]] = [[], []]
        for f, function in enumerate(self.functions):
            for side, factors in enumerate((function.above, function.below)):
                rest = [self._without_linear(i, [some[f][side] for some in mine], factors, p) for i, mine in enumerate(slices)]
                factors |= letters.divide_out(rest)
                rests[side].append(rest)
        self.degrees, self.rests = [degrees_of(rest) for rest in rests[0]], rests[1]
        self._find_total_degrees(p)

    def _without_linear(self, i: int, parts: list[np.ndarray], factors: Factors, p: int) -> list[np.ndarray]:
        """Polynomials on slices without the linear factors in variable i alone, which go to factors."""
        if any(len(part) != len(parts[0]) or not len(part) for part in parts):
            raise Unlucky("degrees differ between two lines")
        for (a, b), multiplicity in linear_factors(greatest_common_divisor(parts[0], parts[-1], p), p).items():
            factors[affine([a if j == i else 0 for j in range(len(self.variables))] + [-b])] = multiplicity
            for _ in range(multiplicity):
                parts = [divide(part, np.array([-b % p, a]), p)[0] for part in parts]
        return parts

    def _find_total_degrees(self, p: int) -> None:
        """Degrees of the numerators in all variables but d together, and where the grid would be large, in pairs of them."""
        self.sums, size = {}, 10
        pairs = list(itertools.combinations(self.summed, 2))
        for moving in dict.fromkeys([self.summed, *pairs]) if pairs else ():
            if self.sums and max(map(self._largest_size, range(self.count))) < PAIRS_PAY * len(pairs) * size:
                break
            base, direction = self._draw(p), self._draw(p)
            line = self._along(
                p,
                lambda t, b=base, d=direction, moving=moving: tuple(
                    (x + t * z) % p if i in moving else x for i, (x, z) in enumerate(zip(b, d))
                ),
                True,
                range(self.count),
                size,
            )
            self.sums[moving] = [len(line[f][0]) - 1 for f in range(self.count)]
            size = max(len(n) + len(d) for n, d in line.values()) - 1 + REDUNDANT_POINTS
            for f in range(self.count):
                if any(len(part) - 1 > sum(some[i] for i in moving) for part, some in zip(line[f], (self.degrees[f], self.left(f)))):
                    raise Unlucky("a factor is none on a line of several variables")

    def _total(self, f: int) -> int:
        """Degree of a numerator in all variables but d together."""
        return self.sums[self.summed][f] if self.sums else sum(self.degrees[f][i] for i in self.summed)

    def _largest_size(self, f: int) -> int:
        """How many terms a numerator may have, as far as degrees in one and in all variables say."""
        free = math.prod(degree + 1 for i, degree in enumerate(self.degrees[f]) if i not in self.summed)
        return free * count_exponents([self.degrees[f][i] for i in self.summed], self._total(f))

    def left(self, f: int) -> tuple[int, ...]:
        """Degrees of what is left of a denominator without known factors."""
        return degrees_of(self.rests[f])

    def _cost(self, f: int) -> int:
        """About how many points it takes to find what is left of a denominator."""
        *limits, _ = sorted(filter(None, self.left(f)))
        moved = sum(degree for i, degree in enumerate(self.degrees[f]) if self.left(f)[i] and i not in self.summed)
        return count_exponents(limits, sum(self.left(f))) * (sum(self.left(f)) + self._total(f) + moved + REDUNDANT_POINTS)

    def _forecast(self) -> None:
        """Say what is to come at least, where that is much: the first prime of the largest numerator, and of one denominator."""
        points = min((self._cost(f) for f in range(self.count) if any(self.left(f))), default=0)
        self.boxes = [
            lower_set([(self.degrees[f], [(summed, totals[f]) for summed, totals in self.sums.items()])]) for f in range(self.count)
        ]
        points += max(map(len, self.boxes))
        if points > MANY_POINTS:
            self.say(f"degrees {self.describe_degrees()}; for the first prime alone at least {self.announce(points)}")

    # 2 ------------------------------------------------------------------------------------------------------------

    def _find_denominators(self) -> None:
        """The cheapest first: the factors of one are looked for in all others, as letters are."""
        while remaining := [f for f in range(self.count) if any(self.left(f))]:
            costs = {f: (self._cost(f), self.left(f)) for f in remaining}
            chosen = [f for f in remaining if costs[f] == min(costs.values())]
            factors = [factor for poly in self._denominators(chosen) for factor, _ in polynomial_factors(poly, self.variables)]
            letters = self.known(list(dict.fromkeys(map(frozen, factors))))
            for f in remaining:
                self.functions[f].below |= letters.divide_out(self.rests[f])
            if any(any(self.left(f)) for f in chosen):
                raise Unlucky("a denominator does not divide itself")

    def _denominators(self, chosen: list[int]) -> list[Monomials]:
        """What is left of denominators with the same degrees; one prime may do, since the slices are modulo another."""
        supports: dict[int, list[tuple[int, ...]]] = {}

        def images(batch: list[int], wanted: list[int]) -> dict[int, dict[int, list[int]]]:
            result: dict[int, dict[int, list[int]]] = {}
            for p in batch:
                result[p] = {}
                for f, poly in self._denominators_modulo(p, wanted).items():
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
            letters = self.known(list(dict.fromkeys(polys.values())))
            return [f for f, poly in polys.items() if letters.divides(poly, self.rests[f])]

        return [polynomial(f, numbers) for f, numbers in self._lift(chosen, images, 1, None, confirmed).items()]

    def _denominators_modulo(self, p: int, chosen: list[int]) -> dict[int, Monomials]:
        """What is left of denominators with the same degrees, up to a factor."""
        limits = {i: degree for i, degree in enumerate(self.left(chosen[0])) if degree}
        active = tuple(sorted(limits, key=lambda i: -limits[i]))  # the directions are 1 in the first, where it saves most
        base, shift = self._draw(p), self._draw(p)

        def place(t: int, z: Sequence[int]) -> tuple[int, ...]:
            point = list(base)
            for i, value in zip(active, z):
                point[i] = (shift[i] + t * value) % p
            return tuple(point)

        direction = (1, *self._draw(p, len(active) - 1))
        first = self._along(p, lambda t: place(t, direction), True, chosen)
        most = max(len(first[f][1]) - 1 for f in chosen)
        size = max(len(first[f][0]) + len(first[f][1]) for f in chosen) - 1 + REDUNDANT_POINTS
        nodes = [self._distinct(p, limits[i] + 1) for i in active[1:]]
        lattice = lower_set([([limits[i] for i in active[1:]], [(range(len(active) - 1), most)])])
        directions = [(1, *(int(some[e]) for some, e in zip(nodes, exponents))) for exponents in lattice]
        ts = self._distinct(p, size)
        points = [place(t, z) for z in directions for t in ts.tolist()]
        values, places = self._values([(p, point) for point in points]), Places(points, p)
        result = {}
        for f in chosen:
            mine = self._stripped(f, values[:, f], places).reshape(len(lattice), size)
            lines = self._denominators_on_lines(ts, mine, len(first[f][1]) - 1, p)
            coefficients = interpolate(nodes, lattice, lines, p)
            poly = {
                (k - sum(exponents), *exponents): int(coefficients[number, k])
                for number, exponents in enumerate(lattice)
                for k in range(sum(exponents), lines.shape[1])
                if coefficients[number, k]
            }
            poly = shift_back(poly, [shift[i] for i in active], p)
            result[f] = {self._spread(exponents, active): value for exponents, value in poly.items()}
        return result

    @staticmethod
    def _denominators_on_lines(ts: np.ndarray, values: np.ndarray, degree: int, p: int) -> np.ndarray:
        """Coefficients [lines, degree + 1] of the denominators of functions of t with values [lines, T], 1 at t = 0."""
        lines = np.zeros((len(values), degree + 1), np.int64)
        for number, line in enumerate(values):
            function = rational_interpolation(ts, line, p)
            if function is None or len(function[1]) != degree + 1 or not function[1][0]:
                raise Unlucky("a line has another degree")
            lines[number] = function[1] * pow(int(function[1][0]), -1, p) % p
        return lines

    def _spread(self, exponents: tuple[int, ...], active: tuple[int, ...]) -> tuple[int, ...]:
        """Exponents of all variables."""
        own = dict(zip(active, exponents))
        return tuple(own.get(i, 0) for i in range(len(self.variables)))

    # 3 ------------------------------------------------------------------------------------------------------------

    def _find_numerators(self) -> None:
        everything = list(range(self.count))
        grid = sorted(set().union(*self.boxes))
        supports: dict[int, list[tuple[int, ...]]] = {}
        first = next(self.primes)
        polys = self._on_grid([first], grid, everything)[first]
        self._must_predict(polys, first)
        for f, poly in polys.items():
            if not set(poly) <= set(self.boxes[f]):
                raise Unlucky("a numerator has a higher degree than expected")
            supports[f] = sorted(poly, reverse=True)
        terms = max(map(len, supports.values()))
        sparse = bool(self.variables) and terms < SPARSE_SHARE * len(grid)
        expected = self._expected_primes(len(grid), terms if sparse else len(grid))

        def images(batch: list[int], wanted: list[int]) -> dict[int, dict[int, list[int]]]:
            polys = self._sparsely(batch, supports, wanted) if sparse else self._on_grid(batch, grid, wanted)
            result: dict[int, dict[int, list[int]]] = {}
            for p, some in polys.items():
                if any(not set(poly) <= set(supports[f]) for f, poly in some.items()):
                    raise Unlucky("a numerator has other terms than at the first prime")
                result[p] = {f: [poly.get(e, 0) for e in supports[f]] for f, poly in some.items()}
            return result

        known = {first: {f: [poly[e] for e in supports[f]] for f, poly in polys.items()}}
        confirmed = partial(self._confirmed, supports=supports) if terms > 2 * CONFIRMING_POINTS else None
        for f, numbers in self._lift(everything, images, expected, known, confirmed).items():
            content, poly = primitive({e: value for e, value in zip(supports[f], numbers) if value})
            self.functions[f].factor, self.functions[f].numerator = content, poly

    def _must_predict(self, polys: dict[int, Monomials], p: int) -> None:
        """Raises Unlucky where a numerator modulo a prime is not this polynomial: degrees or the denominator are wrong."""
        points = [self._draw(p) for _ in range(2)]
        values, places = self._values([(p, point) for point in points]), Places(points, p)
        for f, poly in polys.items():
            if (evaluate_monomials(poly, places.points, p) != self._stripped(f, values[:, f], places)).any():
                raise Unlucky("a numerator is not a polynomial of the degrees that were found")

    def _confirmed(self, candidates: dict[int, list[Fraction]], supports: dict[int, list[tuple[int, ...]]]) -> list[int]:
        """Functions whose numerators have these coefficients at points modulo a prime that was not used."""
        p = next(self.primes)
        points = [self._draw(p) for _ in range(CONFIRMING_POINTS)]
        (values, good), places, found = self.ask([(p, point) for point in points]), Places(points, p), []
        for f, numbers in candidates.items():
            if good.all() and all(value.denominator % p for value in numbers):
                poly = {e: value.numerator * pow(value.denominator, -1, p) for e, value in zip(supports[f], numbers)}
                if (evaluate_monomials(poly, places.points, p) == self._stripped(f, values[:, f], places)).all():
                    found.append(f)
        return found

    def _on_grid(self, batch: list[int], grid: list[tuple[int, ...]], chosen: list[int]) -> dict[int, dict[int, Monomials]]:
        """Numerators modulo each prime of a batch from points of a full grid."""
        limits = [max(exponents[i] for exponents in grid) for i in range(len(self.variables))]
        nodes = {p: [self._distinct(p, limit + 1) for limit in limits] for p in batch}
        points = {p: [tuple(int(some[e]) for some, e in zip(nodes[p], exponents)) for exponents in grid] for p in batch}
        values = self._values([(p, point) for p in batch for point in points[p]]).reshape(len(batch), len(grid), self.count)
        result: dict[int, dict[int, Monomials]] = {}
        for p, mine in zip(batch, values):
            places = Places(points[p], p)
            columns = np.stack([self._stripped(f, mine[:, f], places) for f in chosen], axis=1)
            coefficients = interpolate(nodes[p], grid, columns, p)
            result[p] = {f: {e: int(c) for e, c in zip(grid, coefficients[:, k].tolist()) if c} for k, f in enumerate(chosen)}
        return result

    def _sparsely(self, batch: list[int], supports: dict[int, list[tuple[int, ...]]], chosen: list[int]) -> dict[int, dict[int, Monomials]]:
        """Numerators with known terms, from as many points of a geometric sequence."""
        count = max(len(supports[f]) for f in chosen)
        starts, points = {}, {}
        for p in batch:
            start, ratio = starts[p] = self._draw(p), self._draw(p)
            points[p] = [tuple(s * pow(r, k, p) % p for s, r in zip(start, ratio)) for k in range(count)]
        values = self._values([(p, point) for p in batch for point in points[p]]).reshape(len(batch), count, self.count)
        result: dict[int, dict[int, Monomials]] = {}
        for p, mine in zip(batch, values):
            places, result[p] = Places(points[p], p), {}
            start, ratio = starts[p]
            for f in chosen:
                terms = np.array(supports[f]).reshape(len(supports[f]), -1)
                bases = monomial_values(terms, ratio, p)
                if len(np.unique(bases)) < len(bases):
                    raise Unlucky("two terms cannot be told apart")
                solved = solve_geometric(bases, self._stripped(f, mine[:, f], places), p)
                numbers = solved * invert(monomial_values(terms, start, p), p) % p
                result[p][f] = dict(zip(supports[f], numbers.tolist()))
        return result

    # 4 ------------------------------------------------------------------------------------------------------------

    def _lift(
        self,
        chosen: list[int],
        images: Callable[[list[int], list[int]], dict[int, dict[int, list[int]]]],
        expected: int,
        known: dict[int, dict[int, list[int]]] | None = None,
        confirmed: Callable[[dict[int, list[Fraction]]], list[int]] | None = None,
    ) -> dict[int, list[Fraction]]:
        """Vectors of rational numbers from images(primes, functions) = {prime: {function: residues}}; about so many primes are expected.

        known: images that are there already; confirmed: which candidates need no further prime (else: those that predict one).
        """
        lifts = {f: Lift() for f in chosen}
        found, used, unlucky = known or {}, len(known or {}), 0
        while True:
            for p, vectors in found.items():
                for f, residues in vectors.items():
                    if not lifts[f].done:
                        lifts[f].add(residues, p)
            candidates = {f: lift.candidate for f, lift in lifts.items() if not lift.done and lift.candidate is not None}
            for f in confirmed(candidates) if confirmed and candidates else ():
                lifts[f].done = True
            wanted = [f for f in chosen if not lifts[f].done]
            if not wanted:
                break
            if used > MOST_PRIMES:
                raise ReductionError(f"coefficients do not settle within {MOST_PRIMES} primes")
            batch = [next(self.primes) for _ in range(max(min(expected - used, 64), 1 + used // 10))]
            try:
                found = images(batch, wanted)
                used += len(batch)
            except Unlucky:
                found, unlucky = {}, unlucky + 1
                if unlucky > ATTEMPTS * (1 + used // 10):
                    raise
        self.used_primes = used
        return {f: lift.candidate for f, lift in lifts.items()}

    def _expected_primes(self, grid: int, points: int) -> int:
        """From the size of the numbers at a small rational point; says what is to come."""
        place = tuple((101, 103, 107, 109, 113, 127, 131)[: len(self.variables)])
        expected = 1
        if len(place) == len(self.variables) and points > FORESEEN_POINTS:
            try:
                numbers = self._lift(list(range(self.count)), lambda batch, wanted: self._at(place, batch, wanted), 8)
            except Unlucky:
                numbers = {}
            for f, (number, *_) in numbers.items():
                bits = number.numerator.bit_length() + number.denominator.bit_length()
                inside = sum(degree * math.log2(x) for degree, x in zip(self.degrees[f], place))
                expected = max(expected, 1 + int(max(bits - inside / 2, 0) / 30.9 + 0.5))
        told = f"degrees {self.describe_degrees()}; {grid:,} points for the first prime, {points:,} for each of about {expected - 1} more"
        self.say(f"{told}: {self.announce(grid + (expected - 1) * points)}")
        return expected

    def _at(self, place: tuple[int, ...], batch: list[int], chosen: list[int]) -> dict[int, dict[int, list[int]]]:
        values = self._values([(p, place) for p in batch])
        places = {p: Places([place], p) for p in batch}
        return {p: {f: [int(self._stripped(f, row[f : f + 1], places[p])[0])] for f in chosen} for p, row in zip(batch, values)}

    def describe_degrees(self) -> str:
        """Largest degrees of numerators and denominators in each variable, factors included."""
        texts = []
        for i, name in enumerate(self.variables):
            above = max(some[i] + degree_of(function.above, i) for some, function in zip(self.degrees, self.functions))
            below = max(self.left(f)[i] + degree_of(function.below, i) for f, function in enumerate(self.functions))
            texts.append(f"{name}: {above}/{below}")
        return ", ".join(texts) or "0"

    def _check(self) -> None:
        """Raises Unlucky where a function is not what fresh points modulo fresh primes say."""
        samples = [(p, self._draw(p)) for p in (next(self.primes), next(self.primes)) for _ in range(2 if self.variables else 1)]
        values, good = self.ask(samples)
        if not good.any():
            raise Unlucky("no point to check with")
        for (p, point), row in zip([s for s, g in zip(samples, good) if g], values[good]):
            places = Places([point], p)
            for f, function in enumerate(self.functions):
                above, below = function.evaluate(places)
                if (int(above[0]) - int(row[f]) * int(below[0])) % p or not below[0]:
                    raise Unlucky("a function fails at a fresh point")
