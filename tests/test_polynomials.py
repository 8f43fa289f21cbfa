"""Polynomials in several variables."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support_oracles import BIG_PRIMES, few_examples

from ibp.polynomials import Places, interpolate, lower_set


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
