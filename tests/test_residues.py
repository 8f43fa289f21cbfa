"""Primes, arithmetic of many points, and null vectors of small matrices."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support import P31, PRIMES, laws
from support_oracles import BIG_PRIMES, few_examples

from ibp.residues import Residues, elimination_plan, invert, is_prime, make_residues, null_vector, null_vectors, probe_primes


def test_primes():
    assert [n for n in range(2000) if is_prime(n)] == [n for n in range(2, 2000) if all(n % q for q in range(2, n))]
    for strong_pseudoprime in (2047, 3215031751, 25326001, 4759123141 - 2):
        factors = [q for q in range(2, 70_000) if strong_pseudoprime % q == 0]
        assert is_prime(strong_pseudoprime) == (not factors)
    some = list(itertools.islice(probe_primes(np.random.default_rng(2)), 50))
    assert len(set(some)) == 50 and all(2**30 < p < 2**31 - 2**16 for p in some)
    assert all(p % q for p in some for q in range(2, 46_341))


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


@few_examples
@given(st.integers(1, 6), st.randoms(use_true_random=False))
def test_null_vectors(size, draw):
    primes = [BIG_PRIMES[0], 101, BIG_PRIMES[1]]
    matrix = np.array([[[[draw.randrange(p) for p in primes] for _ in range(size + 1)] for _ in range(size)] for _ in range(4)])
    full = np.ones((size, size + 1), bool)
    x = null_vectors(matrix.copy(), elimination_plan(full), Residues(np.array(primes)))
    for k, p in enumerate(primes):
        single = null_vector(matrix[..., k].copy(), p)
        assert np.array_equal(x[..., k] % p, single)


@few_examples
@given(st.integers(1, 12), st.floats(0.05, 0.6), st.sampled_from(["cpu", "torch:cpu"]), st.integers(0, 10**6))
def test_null_vectors_of_sparse_matrices(size, density, device, seed):
    """Whatever the pattern spares, the product with the matrix vanishes; what fills in is known beforehand."""
    rng, p = np.random.default_rng(seed), BIG_PRIMES[0]
    pattern = (rng.random((size, size + 1)) < density) | np.eye(size, size + 1, dtype=bool)
    matrix = np.where(pattern[None, :, :, None], rng.integers(1, p, (3, size, size + 1, 2)), 0)
    ring = make_residues(np.array([p, p]), device)
    x = ring.bring(null_vectors(ring.place(matrix.copy()), elimination_plan(pattern), ring))
    products = matrix.astype(object) * (x[:, None] % p)
    assert not (products.sum(2) % p).any() and (x[:, -1] % p).any()


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
