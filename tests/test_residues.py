"""Arithmetic modulo primes against Python integers and sympy."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support import P31, PRIMES, laws

from ibp.residues import invert, null_vector


@laws
@given(st.integers(1, 6), st.integers(1, 4), PRIMES, st.randoms(use_true_random=False))
def test_null_vector(size, count, p, draw):
    """matrix @ x = 0 always, by Python integers; x is not zero where no leading principal minor vanishes."""
    import sympy

    matrix = np.array(
        [[[draw.choice([0, 1, p - 1, draw.randrange(p)]) for _ in range(size + 1)] for _ in range(size)] for _ in range(count)]
    )
    vectors = null_vector(matrix.copy(), p)
    assert vectors.shape == (count, size + 1) and ((vectors >= 0) & (vectors < p)).all()
    for rows, x in zip(matrix.tolist(), vectors.tolist()):
        assert all(sum(a * b for a, b in zip(row, x)) % p == 0 for row in rows)
        minors = [sympy.Matrix([row[:k] for row in rows[:k]]).det() % p for k in range(1, size + 1)]
        assert all(minors) <= any(x)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, P31 - 1), max_size=20), PRIMES)
def test_invert(values, p):
    values = [value % p or 1 for value in values]
    assert invert(np.array(values, np.int64), p).tolist() == [pow(value, -1, p) for value in values]
