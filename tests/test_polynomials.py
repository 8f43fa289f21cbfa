"""Polynomials of one variable, and of several."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support_oracles import BIG_PRIMES, few_examples

from ibp.polynomials import Places, horner, interpolate, linear_factors, lower_set, multiply, rational_interpolation, solve_geometric
from ibp.residues import invert


@few_examples
@given(st.integers(0, 7), st.integers(0, 7), st.integers(0, 10**6))
def test_rational_interpolation(above, below, seed):
    p, rng = BIG_PRIMES[1], np.random.default_rng(seed)
    numerator, denominator = rng.integers(1, p, above + 1), np.append(rng.integers(1, p, below), 1)
    nodes = rng.choice(10**6, above + below + 1 + 3, replace=False) + 5
    below_values = horner(denominator, nodes, p)
    values = horner(numerator, nodes, p) * invert(below_values, p) % p
    n, d = rational_interpolation(nodes, values, p)
    assert np.array_equal(n, numerator) and np.array_equal(d, denominator)
    assert rational_interpolation(nodes[:-1], values[:-1], p) is None  # one point fewer is no proof
    values[3] += 1
    assert rational_interpolation(nodes, values % p, p) is None


@few_examples
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(-600, 600), st.integers(1, 3)), max_size=4), st.sampled_from(BIG_PRIMES))
def test_linear_factors(factors, p):
    poly, expected = np.array([p - 77, 0, 0, 1]), {}
    for a, b, power in factors:
        a, b = a // math.gcd(a, b), b // math.gcd(a, b)
        expected[a, b] = expected.get((a, b), 0) + power
        for _ in range(power):
            poly = multiply(poly, np.array([-b % p, a]), p)
    assert linear_factors(poly, p) == expected


@few_examples
@given(st.integers(1, 12), st.integers(0, 10**6))
def test_geometric_sequences(size, seed):
    p, rng = BIG_PRIMES[2], np.random.default_rng(seed)
    bases, numbers = rng.choice(10**6, size, replace=False) + 2, rng.integers(0, p, size)
    values = np.array([sum(c * pow(b, k, p) for c, b in zip(numbers.tolist(), bases.tolist())) % p for k in range(size)])
    assert np.array_equal(solve_geometric(bases, values, p), numbers)


@few_examples
@given(st.integers(1, 3), st.integers(0, 10**6))
def test_interpolation_on_a_lower_set(count, seed):
    p, rng = BIG_PRIMES[0], np.random.default_rng(seed)
    boxes = [(rng.integers(0, 5, count).tolist(), [(range(count), int(rng.integers(0, 7))), ((0, count - 1), 5)]) for _ in range(2)]
    exponents = lower_set(boxes)
    assert all(tuple(max(e[j] - (i == j), 0) for j in range(count)) in exponents for e in exponents for i in range(count))
    polys = [{e: int(rng.integers(0, p)) for e in exponents} for _ in range(2)]
    nodes = [rng.choice(10**6, 5, replace=False)[: max(e[i] for e in exponents) + 1] for i in range(count)]
    points = np.array([[nodes[i][e[i]] for i in range(count)] for e in exponents])
    values = np.stack([Places(points, p).evaluate(poly.items()) for poly in polys], axis=1)
    found = interpolate(nodes, exponents, values, p)
    assert [dict(zip(exponents, column)) for column in found.T.tolist()] == polys
