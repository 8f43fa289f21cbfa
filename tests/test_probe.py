"""probe."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import patch_rooms
from support_oracles import BIG_PRIMES, few_examples, named, trace_at

from ibp.identities import Point
from ibp.null_vectors import elimination_plan, null_vector, null_vectors
from ibp.probe import probe
from ibp.residues import Residues, make_residues

TRACED = {
    "published": ("trianglebox", [(1, 1, 1, 1, 1, 1, -3)], {"paper_masters_only": True}),
    "corners": ("trianglebox", [(1, 2, 1, 1, 1, 1, -1)], {}),
    "several": ("trianglebox", [(2, 1, 1, 1, 1, 0, -1), (1, 1, 1, 2, 1, 0, 0), (0, 1, 2, 1, 0, 0, 0), (1, 1, 0, 0, 0, 0, 0)], {}),
    "master": ("bubble", [(1, 1), (2, 2)], {}),
    "sunrise": ("sunrise", [(2, 2, 1, -1, -1), (1, 3, 1, 0, 0)], {}),
    "box": ("box", [(2, 1, 1, 2)], {}),
}


@pytest.mark.parametrize("case", TRACED)
def test_many_points_equal_single_runs(case, shelves, reduce_at):
    name, targets, options = TRACED[case]
    trace, problem = trace_at(shelves, name, targets, 5, **options)
    rng = np.random.default_rng(7)
    primes = [BIG_PRIMES[i % 3] for i in range(21)]
    values = rng.integers(1000, 2**30, (len(problem.family.symbols), 21))
    rows, good = probe(trace, primes, values)
    assert good.all() and rows.shape == (21, len(trace.names))
    for p, column, row in itertools.islice(zip(primes, values.T.tolist(), rows), 0, None, 4):  # every prime twice
        point = Point(Fraction(column[0]), tuple((n, Fraction(x)) for (n, _), x in zip(problem.family.point, column[1:])), p)
        expected = reduce_at(name, targets, point=point, **options).reductions
        assert named(trace.names, row) == {target: expression for target, expression in expected.items() if expression}


def test_portions_of_points_do_not_matter(shelves, monkeypatch):
    trace, _ = trace_at(shelves, "trianglebox", [(1, 1, 1, 1, 1, 1, -1)], 5, paper_masters_only=True)
    values = np.random.default_rng(3).integers(1000, 2**30, (4, 9))
    whole, _ = probe(trace, [BIG_PRIMES[1]] * 9, values)
    for constant, size in (("POINTS_AT_ONCE", 2), ("PROBE_ELEMENTS", 1), ("PROBE_MEMORY", 1)):
        patch_rooms(monkeypatch, "ibp", constant, size)
        assert np.array_equal(probe(trace, [BIG_PRIMES[1]] * 9, values)[0], whole)


def test_tensors_give_what_arrays_give(shelves):
    trace, _ = trace_at(shelves, "trianglebox", [(1, 1, 1, 1, 1, 1, -2)], 5, paper_masters_only=True)
    values = np.random.default_rng(3).integers(1000, 2**30, (4, 6))
    primes = [*BIG_PRIMES, 1009, 1013, 101]  # at the small ones pivots vanish
    for one, other in zip(probe(trace, primes, values % primes), probe(trace, primes, values % primes, "torch:cpu")):
        assert np.array_equal(one, other)


def test_points_where_pivots_vanish_are_told_and_nothing_else_is_wrong(shelves, reduce_at):
    """Modulo small primes much vanishes by accident."""
    target = (1, 1, 1, 1, 1, 1, -1)
    trace, problem = trace_at(shelves, "trianglebox", [target], 5, paper_masters_only=True)
    primes = [p for p in range(70, 2000) if all(p % q for q in range(2, 45) if q < p)][::6]
    values = np.random.default_rng(3).integers(1, 2**30, (4, len(primes))) % primes
    rows, good = probe(trace, primes, values)
    assert 5 < good.sum() < len(primes)
    for p, column, row in zip(np.array(primes)[good].tolist(), values.T[good].tolist(), rows[good]):
        point = Point(Fraction(column[0]), tuple((n, Fraction(x)) for (n, _), x in zip(problem.family.point, column[1:])), p)
        expected = reduce_at("trianglebox", [target], point=point, paper_masters_only=True)
        assert expected.unreduced or named(trace.names, row) == expected.reductions


@pytest.mark.parametrize("p", [101, 211, 307])
def test_a_trace_from_an_unlucky_point_never_lies(p, shelves, reduce_at):
    """Recorded where much vanishes by accident, it must not pass as one for other points."""
    target = (1, 1, 1, 1, 1, 0, -2)
    for seed in range(4):
        trace, problem = trace_at(shelves, "trianglebox", [target], seed, p, paper_masters_only=True)
        values = np.random.default_rng(3).integers(1000, 2**30, (4, 3))
        rows, good = probe(trace, BIG_PRIMES, values)
        for prime, column, row in zip(np.array(BIG_PRIMES)[good].tolist(), values.T[good].tolist(), rows[good]):
            point = Point(Fraction(column[0]), tuple((n, Fraction(x)) for (n, _), x in zip(problem.family.point, column[1:])), prime)
            assert named(trace.names, row) == reduce_at("trianglebox", [target], point=point, paper_masters_only=True).reductions


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
