"""Arithmetic of many points."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support import P31, PRIMES
from support_oracles import BIG_PRIMES, few_examples

from ibp.residues import Residues, invert


@few_examples
@given(st.integers(1, 9), st.sampled_from([*BIG_PRIMES, 5, 101]), st.randoms(use_true_random=False))
def test_arithmetic_of_many_points(size, p, draw):
    ring = Residues(np.array([p, 13, p]))
    a, b = (np.array([[draw.randrange(1, q) for q in (p, 13, p)] for _ in range(size)]) for _ in range(2))
    product = ring.product(a * draw.choice([-1, 1]), b)
    assert np.array_equal(ring.canonical(product), ring.canonical(ring.product(product, np.ones_like(a))))
    assert (np.abs(product) <= [p, 13, p]).all()
    assert np.array_equal(ring.canonical(ring.product(ring.invert(a), a)), np.ones_like(a))
    assert ring.is_zero(ring.product(a, np.zeros_like(a)) + np.array([p, -13, 0])).all() and not ring.is_zero(a).any()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, P31 - 1), max_size=20), PRIMES)
def test_invert(values, p):
    values = [value % p or 1 for value in values]
    assert invert(np.array(values, np.int64), p).tolist() == [pow(value, -1, p) for value in values]
