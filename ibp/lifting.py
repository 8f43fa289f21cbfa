"""Rational numbers from residues modulo one prime after another, until they predict the next prime or are confirmed otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

from ibp.errors import ReductionError, Unlucky
from ibp.samples import ATTEMPTS

MOST_PRIMES = 20_000
Vectors = dict[int, list[int]]  # of functions: residues


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


def lift_vectors(
    primes: Iterator[int],
    chosen: list[int],
    images: Callable[[list[int], list[int]], dict[int, Vectors]],
    expected: int,
    known: dict[int, Vectors] | None = None,
    confirmed: Callable[[dict[int, list[Fraction]]], list[int]] | None = None,
) -> tuple[dict[int, list[Fraction]], int]:
    """Vectors of rational numbers from images(primes, functions) = {prime: vectors}, about so many primes are expected; primes used.

    known: images that are there already; confirmed: which candidates need no further prime (else: those that predict one).
    Raises Unlucky where too many primes are, ReductionError where there is no end.
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
            return {f: lift.candidate for f, lift in lifts.items()}, used
        if used > MOST_PRIMES:
            raise ReductionError(f"coefficients do not settle within {MOST_PRIMES} primes")
        batch = [next(primes) for _ in range(max(min(expected - used, 64), 1 + used // 10))]
        try:
            found = images(batch, wanted)
            used += len(batch)
        except Unlucky:
            found, unlucky = {}, unlucky + 1
            if unlucky > ATTEMPTS * (1 + used // 10):
                raise
