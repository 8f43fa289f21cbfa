"""Rational numbers from residues."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from ibp.polynomials import Factors, evaluate_monomials
from ibp.residues import Polynomial


def rational_number(residue: int, modulus: int) -> Fraction | None:
    """The only a/b with a^2, b^2 <= modulus/2 that has this residue, None if there is none (Wang, 1981)."""
    bound = math.isqrt(modulus // 2)
    a, b, s, t = modulus, residue % modulus, 0, 1
    while b > bound:
        quotient = a // b
        a, b, s, t = b, a - quotient * b, t, s - quotient * t
    if not t or abs(t) > bound or math.gcd(b, t) != 1:
        return None
    return Fraction(b, t)


class Lift:
    """A vector of rational numbers from its residues modulo more and more primes; done once it predicts a prime that was not used."""

    def __init__(self) -> None:
        self.modulus, self.residues = 1, []
        self.candidate: list[Fraction] | None = None
        self.done = False
        self.tried = 0

    def add(self, residues: Sequence[int], p: int) -> None:
        """Residues modulo a further prime."""
        if self.candidate is not None:
            self.done = all(
                value.denominator % p and (value.numerator - r * value.denominator) % p == 0 for value, r in zip(self.candidate, residues)
            )
            if self.done:
                return
        if self.modulus == 1:
            self.residues = [0] * len(residues)
        inverse = pow(self.modulus, -1, p)
        self.residues = [old + self.modulus * ((r - old) * inverse % p) for old, r in zip(self.residues, residues)]
        self.modulus *= p
        self.candidate = None
        if self.modulus.bit_length() > 1.1 * self.tried:
            self.tried = self.modulus.bit_length()
            self.candidate = self._rationals()

    def _rationals(self) -> list[Fraction] | None:
        """All of them, over a common denominator as far as it is known."""
        bound, common, found = math.isqrt(self.modulus // 2), 1, []
        for residue in self.residues:
            scaled = residue * common % self.modulus
            scaled -= self.modulus if scaled > self.modulus // 2 else 0
            if abs(scaled) > bound:
                value = rational_number(scaled, self.modulus)
                if value is None:
                    return None
                common *= value.denominator
                scaled = value.numerator
                if common > bound:
                    return None
            found.append(Fraction(scaled, common))
        return found


class Places:
    """Points [N, variables] modulo a prime, and values of polynomials there, which many functions share."""

    def __init__(self, points: Sequence[Sequence[int]], p: int):
        self.points, self.p = np.array(points, np.int64).reshape(len(points), -1), p
        self._known: dict[Polynomial, np.ndarray] = {}

    def product(self, factors: Factors) -> np.ndarray:
        """Values [N] of a product."""
        result = np.ones(len(self.points), np.int64)
        for poly, multiplicity in factors.items():
            if poly not in self._known:
                self._known[poly] = evaluate_monomials(dict(poly), self.points, self.p)
            for _ in range(multiplicity):
                result = result * self._known[poly] % self.p
        return result
