"""Rational functions as factors and numerators, and their text: `ExactFunction`, whose factors a reconstruction finds one by one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from ibp.errors import Unlucky
from ibp.polynomials import Factors, Monomials, Places, primitive
from ibp.residues import invert

FACTORED_TERMS = 50  # polynomials of at most so many terms are printed in factors


@dataclass
class ExactFunction:
    """factor * product of factors above * numerator / product of factors below; polynomials with coprime integers."""

    factor: Fraction = Fraction(1)
    above: Factors = field(default_factory=dict)
    below: Factors = field(default_factory=dict)
    numerator: Monomials = field(default_factory=dict)

    def evaluate(self, places: Places) -> tuple[np.ndarray, np.ndarray]:
        """Residues [N] of numerator and denominator."""
        p = places.p
        above = places.product(self.above) * places.evaluate(self.numerator.items()) % p * (self.factor.numerator % p) % p
        below = places.product(self.below) * (self.factor.denominator % p) % p
        return above, below

    def stripped(self, values: np.ndarray, places: Places) -> np.ndarray:
        """Values [N] without the factors above and below. Raises Unlucky where one of those above is zero."""
        above, below = places.product(self.above), places.product(self.below)
        if not above.all():
            raise Unlucky("a point is a zero of a known factor")
        return values * below % places.p * invert(above, places.p) % places.p

    def text(self, variables: Sequence[str], scale: tuple[str, int] | None = None) -> str:
        """An expression that sympy parses. scale: (name, degree) of an invariant that was set to 1; the others are divided by it."""
        above = [(dict(poly), power) for poly, power in self.above.items()] + polynomial_factors(self.numerator, variables)
        below = [(dict(poly), power) for poly, power in self.below.items()]
        names, negative = list(variables), 0
        if scale is not None:
            name, degree = scale
            place = int("d" in variables)
            summed = [i for i in range(len(variables)) if variables[i] != "d"]
            orders = [sum(power * max(sum(e[i] for i in summed) for e in poly) for poly, power in side) for side in (above, below)]
            above, below = ([(_homogeneous(poly, summed, place), power) for poly, power in side] for side in (above, below))
            negative = sum(power for poly, power in above + below if poly[max(poly)] < 0)
            above, below = ([(primitive(poly)[1], power) for poly, power in side] for side in (above, below))
            names.insert(place, name)
            power = degree - orders[0] + orders[1]
            own = {tuple(int(i == place) for i in range(len(names))): 1}
            (above if power > 0 else below).extend([(own, abs(power))] if power else [])
        top = _product_text(abs(self.factor.numerator), above, names)
        bottom = _product_text(self.factor.denominator, below, names)
        sign = "-" if (self.factor < 0) != (negative % 2 == 1) else ""
        if bottom == "1":
            return sign + top
        simple = re.fullmatch(r"\w+|\w+\*\*\d+|\([^()]*\)(\*\*\d+)?", bottom)
        return f"{sign}{top}/{bottom if simple else f'({bottom})'}"


def _homogeneous(poly: Monomials, summed: Sequence[int], place: int) -> Monomials:
    """With one variable more at this place, so that all terms have the same degree in those and the new one."""
    degree = max(sum(exponents[i] for i in summed) for exponents in poly)
    return {(*e[:place], degree - sum(e[i] for i in summed), *e[place:]): value for e, value in poly.items()}


def polynomial_factors(poly: Monomials, variables: Sequence[str]) -> list[tuple[Monomials, int]]:
    """Irreducible factors of a polynomial with coprime coefficients if it is small, else itself; the leading coefficient is positive."""
    if set(poly) == {(0,) * len(variables)}:
        return []
    if len(poly) > FACTORED_TERMS:
        return [(poly, 1)]
    from sympy import ZZ
    from sympy.polys.rings import ring

    functions, *_ = ring(list(variables), ZZ)
    _, factors = functions.from_dict({exponents: ZZ(value) for exponents, value in poly.items()}).factor_list()
    return [({tuple(map(int, e)): int(v) for e, v in factor.terms()}, int(power)) for factor, power in factors]


def _product_text(number: int, factors: list[tuple[Monomials, int]], names: Sequence[str]) -> str:
    """Factors with the same base are put together; a number of 1 is left out."""
    powers: dict[tuple, int] = {}
    for poly, power in factors:
        key = tuple(sorted(poly.items(), reverse=True))
        powers[key] = powers.get(key, 0) + power
    parts = [str(number)] if number != 1 or not powers else []
    for key, power in sorted(powers.items(), key=lambda item: (len(item[0]), item[0])):
        base = poly_text(dict(key), names)
        alone = len(powers) == number == power == len(key) == 1
        base = base if alone or re.fullmatch(r"[A-Za-z_]\w*", base) else f"({base})"
        parts.append(base if power == 1 else f"{base}**{power}")
    return "*".join(parts)


def poly_text(poly: Monomials, names: Sequence[str]) -> str:
    terms = []
    for exponents, value in sorted(poly.items(), reverse=True):
        powers = [name if e == 1 else f"{name}**{e}" for name, e in zip(names, exponents) if e]
        parts = powers if abs(value) == 1 and powers else [str(abs(value)), *powers]
        terms.append(("-" if value < 0 else "+", "*".join(parts)))
    (sign, first), *others = terms
    return ("-" if sign == "-" else "") + first + "".join(f" {sign} {term}" for sign, term in others)
