"""Polynomials and rational functions of one variable modulo a prime, as arrays of coefficients, the constant first.

Division, interpolation from values, linear factors. In several variables: polynomials.py.
"""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np

from ibp.residues import invert

REDUNDANT_POINTS = 3  # a univariate function must also fit so many points more than it has coefficients
ROOT_DENOMINATOR, ROOT_NUMERATOR = 12, 600  # factors a*x - b with a and |b| up to these are recognised as such


def trimmed(poly: np.ndarray) -> np.ndarray:
    nonzero = np.flatnonzero(poly)
    return poly[: nonzero[-1] + 1 if len(nonzero) else 0]


def divide(a: np.ndarray, b: np.ndarray, p: int) -> tuple[np.ndarray, np.ndarray]:
    """Quotient and remainder."""
    rest, quotient = a.copy(), np.zeros(max(len(a) - len(b) + 1, 0), np.int64)
    inverse = pow(int(b[-1]), -1, p)
    for k in range(len(quotient) - 1, -1, -1):
        factor = quotient[k] = int(rest[k + len(b) - 1]) * inverse % p
        if factor:
            rest[k : k + len(b)] = (rest[k : k + len(b)] - factor * b) % p
    return quotient, trimmed(rest)


def multiply(a: np.ndarray, b: np.ndarray, p: int) -> np.ndarray:
    short, long = sorted((a, b), key=len)
    result = np.zeros(max(len(a) + len(b) - 1, 0), np.int64)
    for k, factor in enumerate(short.tolist()):
        result[k : k + len(long)] = (result[k : k + len(long)] + factor * long) % p
    return result


def greatest_common_divisor(a: np.ndarray, b: np.ndarray, p: int) -> np.ndarray:
    while len(b):
        a, b = b, divide(a, b, p)[1]
    return a * pow(int(a[-1]), -1, p) % p


def times_divisible(poly: np.ndarray, factor: np.ndarray, p: int) -> int:
    """How often a factor that is no constant divides."""
    for times in itertools.count():
        poly, remainder = divide(poly, factor, p)
        if len(remainder) or not len(poly):
            return times


def horner(poly: np.ndarray, x: np.ndarray, p: int) -> np.ndarray:
    """Values at x [N]."""
    total = np.zeros(len(x), np.int64)
    for coefficient in poly[::-1].tolist():
        total = (total * x + coefficient) % p
    return total


def divided_differences(nodes: np.ndarray, values: np.ndarray, p: int) -> np.ndarray:
    """Newton coefficients [N, …] of values [N, …] at different nodes [N]."""
    result = values % p
    shape = (-1,) + (1,) * (values.ndim - 1)
    for k in range(1, len(nodes)):
        result[k:] = (result[k:] - result[k - 1 : -1]) % p * invert((nodes[k:] - nodes[:-k]) % p, p).reshape(shape) % p
    return result


def newton_to_monomials(nodes: np.ndarray, coefficients: np.ndarray, p: int) -> np.ndarray:
    result = coefficients.copy()
    for j in range(len(nodes) - 2, -1, -1):
        result[j:-1] = (result[j:-1] - int(nodes[j]) * result[j + 1 :]) % p
    return result


def rational_interpolation(nodes: np.ndarray, values: np.ndarray, p: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Numerator and denominator (with highest coefficient 1) of the rational function with these values, None if it takes more points.

    The remainder sequence of the interpolating polynomial and the product of all x - node has the function where a quotient is largest
    (Monagan, ISSAC 2004); it must fit REDUNDANT_POINTS points more than it has coefficients.
    """
    modulus = np.ones(1, np.int64)
    for node in nodes.tolist():
        modulus = multiply(modulus, np.array([-node % p, 1]), p)
    rest = trimmed(newton_to_monomials(nodes, divided_differences(nodes, values, p), p))
    if not len(rest):
        return np.zeros(0, np.int64), np.ones(1, np.int64)
    previous, cofactor, previous_cofactor = modulus, np.ones(1, np.int64), np.zeros(0, np.int64)
    best: tuple[int, np.ndarray, np.ndarray] | None = None
    while len(rest):
        size = len(rest) + len(cofactor)
        if best is None or size < best[0]:
            best = (size, rest, cofactor)
        quotient, remainder = divide(previous, rest, p)
        product = multiply(quotient, cofactor, p)
        following = np.zeros(max(len(product), len(previous_cofactor)), np.int64)
        following[: len(previous_cofactor)] = previous_cofactor
        following[: len(product)] = (following[: len(product)] - product) % p
        previous, rest, previous_cofactor, cofactor = rest, remainder, cofactor, trimmed(following)
    size, numerator, denominator = best
    if size - 1 + REDUNDANT_POINTS > len(nodes):
        return None
    inverse = pow(int(denominator[-1]), -1, p)
    return numerator * inverse % p, denominator * inverse % p


@cache
def _small_rationals() -> tuple[tuple[int, int], ...]:
    """(a, b) with b/a in lowest terms, the factors a*x - b that are looked for."""
    pairs = ((a, b) for a in range(1, ROOT_DENOMINATOR + 1) for b in range(-ROOT_NUMERATOR, ROOT_NUMERATOR + 1))
    return tuple((a, b) for a, b in pairs if math.gcd(a, b) == 1)


def linear_factors(poly: np.ndarray, p: int) -> dict[tuple[int, int], int]:
    """Multiplicities of the small rational roots b/a of a polynomial, as {(a, b): multiplicity}."""
    if len(poly) < 2:
        return {}
    pairs = np.array(_small_rationals())
    roots = pairs[:, 1] % p * invert(pairs[:, 0], p) % p
    found: dict[tuple[int, int], int] = {}
    for position in np.flatnonzero(horner(poly, roots, p) == 0).tolist():
        rest, factor = poly, np.array([-int(roots[position]) % p, 1])
        while len(rest) > 1:
            quotient, remainder = divide(rest, factor, p)
            if len(remainder):
                break
            rest = quotient
            pair = (int(pairs[position, 0]), int(pairs[position, 1]))
            found[pair] = found.get(pair, 0) + 1
    return found


def solve_geometric(bases: np.ndarray, values: np.ndarray, p: int) -> np.ndarray:
    """c [N] with sum over m of c_m bases_m^k = values_k for k = 0 … N-1, for different bases (a transposed Vandermonde system).

    Further values are ignored.
    """
    master = np.ones(1, np.int64)
    for base in bases.tolist():
        master = multiply(master, np.array([-base % p, 1]), p)
    quotient, total, at_base = np.ones_like(bases), np.zeros_like(bases), np.zeros_like(bases)
    for k in range(len(bases) - 1, -1, -1):  # coefficients of master / (x - base), highest first
        total = (total + quotient * int(values[k])) % p
        at_base = (at_base * bases + quotient) % p
        quotient = (int(master[k]) + bases * quotient) % p
    return total * invert(at_base, p) % p
