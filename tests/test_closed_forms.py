"""Integrals whose reduction is known in closed form."""

import functools
import math
from fractions import Fraction

import pytest
from support import TRIANGLEBOX, point_of, residue
from support_oracles import integral_with, massless_banana, rising


@pytest.mark.parametrize("point", [{}, {"m1": "2/3", "m2": "-5", "m3": "11/7"}], ids=["default", "fractions"])
@pytest.mark.parametrize(("bits", "square"), [(14, "m1"), (21, "m3"), (28, "m2"), (37, "m1")])
def test_two_loop_sunrises(reduce_at, bits, square, point):
    """Sunrise sectors with many dots are one rational number in d times their corner."""
    lines, corner = [i for i in range(7) if bits >> i & 1], tuple(bits >> i & 1 for i in range(7))
    some = [(1, 1, 1), (1, 2, 1), (3, 1, 2), (2, 5, 4), (7, 1, 1), (6, 6, 6)]
    value = Fraction((dict(TRIANGLEBOX.point) | point)[square])
    cases = {integral_with(7, lines, indices): massless_banana(indices, value) for indices in some}
    outcome = reduce_at("trianglebox", cases, point=point_of(TRIANGLEBOX, **point))
    assert outcome.reductions == {target: {corner: residue(value)} for target, value in cases.items()}


@pytest.mark.parametrize(("bits", "pairs"), [(27, ((0, 3, "m1"), (1, 4, "m3"))), (43, ((0, 3, "m1"), (1, 5, "m1")))])
def test_products_of_bubbles(reduce_at, bits, pairs):
    """Two one-loop bubbles, each with its own momentum."""
    values, cases = dict(TRIANGLEBOX.point), {}
    lines = [line for *both, _ in pairs for line in both]
    for indices in [((1, 2), (3, 1)), ((4, 2), (2, 2)), ((1, 1), (1, 6)), ((5, 4), (3, 5))]:
        factors = [massless_banana(some, Fraction(values[square])) for (*_, square), some in zip(pairs, indices)]
        cases[integral_with(7, lines, sum(indices, ()))] = math.prod(factors)
    outcome = reduce_at("trianglebox", cases)
    corner = tuple(bits >> i & 1 for i in range(7))
    assert outcome.reductions == {target: {corner: residue(value)} for target, value in cases.items()}


@pytest.mark.parametrize(
    ("lines", "factors"),
    [((0, 6, 7, 5), ((0, 1, 2, 3),)), ((0, 3, 1, 4, 2, 5), ((0, 1), (2, 3), (4, 5))), ((0, 6, 4, 2, 5), ((0, 1, 2), (3, 4)))],
)
def test_three_loop_bubbles(reduce_at, lines, factors):
    """ladder3: four lines between two points, and products of sunrise and bubbles; factors name positions in `lines`."""
    cases, corner = {}, tuple(int(i in lines) for i in range(9))
    for indices in [(1, 1, 2, 1, 1, 1), (2, 1, 3, 1, 2, 1), (3, 2, 2, 2, 1, 2)]:
        cases[integral_with(9, lines, indices)] = math.prod(massless_banana([indices[i] for i in factor], 5) for factor in factors)
    outcome = reduce_at("ladder3", cases)
    assert outcome.reductions == {target: {corner: residue(value)} for target, value in cases.items()}


@functools.cache
def tadpole(a, d, m):
    """I[a] / I[1] of D = k^2 - m: proportional to (-1)^a Gamma(a - d/2) / Gamma(a) m^(d/2 - a); zero for a < 1."""
    return (-1) ** (a - 1) * rising(1 - Fraction(d, 2), a - 1) / math.factorial(a - 1) / Fraction(m) ** (a - 1) if a > 0 else Fraction(0)


def tensor_tadpole(a, s, d, m, square):
    """I[a, -s] / I[1, 0] of D1 = k^2 - m, D2 = D1 + p^2 + 2 k.p, with (k.p)^(2j) -> (k^2 p^2)^j (1/2)_j / (d/2)_j."""
    total = Fraction(0)
    for j in range(s // 2 + 1):
        average = math.comb(s, 2 * j) * (4 * square) ** j * rising(Fraction(1, 2), j) / rising(Fraction(d, 2), j)
        for u in range(j + 1):  # (k^2)^j = (D1 + m)^j
            for v in range(s - 2 * j + 1):  # (D1 + p^2)^(s - 2j)
                powers = math.comb(j, u) * Fraction(m) ** (j - u) * math.comb(s - 2 * j, v) * Fraction(square) ** (s - 2 * j - v)
                total += average * powers * tadpole(a - u - v, d, m)
    return total


def test_massive_tadpoles(reduce_at):
    """One line with dots and with numerators, up to indices of 100."""
    cases = {
        (a, -s): tensor_tadpole(a, s, 41, 3, 7) for a, s in [(1, 0), (2, 0), (9, 0), (100, 0), (1, 1), (3, 2), (5, 7), (2, 60), (60, 100)]
    }
    assert cases[2, 0] == Fraction(41 - 2, 2 * 3)  # by hand: (d - 2a) I[a] = 2 a m I[a+1]
    outcome = reduce_at("bubble", cases)
    assert outcome.reductions == {target: {(1, 0): residue(value)} for target, value in cases.items()}
