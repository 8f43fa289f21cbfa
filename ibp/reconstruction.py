"""Rational functions of some variables from their values modulo primes, at points that are asked for.

1. Degrees and the factors that are simple or known beforehand, by lines through random points (shapes.py).
2. What is left of the denominators, by lines through a common point (denominators.py).
3. Then the numerators are polynomials of known degrees (numerators.py), whose coefficients follow from residues modulo one prime after
   another (lifting.py).
4. A check at fresh points and primes. Where random choices were unlucky, all of it is done again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ibp.denominators import denominator_cost, find_denominators
from ibp.errors import ReductionError, Unlucky
from ibp.functions import ExactFunction
from ibp.numerators import find_numerators
from ibp.polynomials import Places, Polynomial
from ibp.samples import ATTEMPTS, Ask, Asker
from ibp.shapes import find_shapes

MANY_POINTS = 5000  # of which it is said early that they are to come


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
    """So many functions. letters: polynomials that may be factors; announce: what so many points take.

    Raises ReductionError where unlucky choices do not end.
    """
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
