"""Traces at many points."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from support import patch_rooms
from support_oracles import BIG_PRIMES, named, trace_at

from ibp.identities import Point
from ibp.trace import probe

TRACED = {
    "published": ("trianglebox", [(1, 1, 1, 1, 1, 1, -3)], {"paper_masters_only": True}),
    "corners": ("trianglebox", [(1, 2, 1, 1, 1, 1, -1)], {}),
    "several": ("trianglebox", [(2, 1, 1, 1, 1, 0, -1), (1, 1, 1, 2, 1, 0, 0), (0, 1, 2, 1, 0, 0, 0), (1, 1, 0, 0, 0, 0, 0)], {}),
    "master": ("bubble", [(1, 1), (2, 2)], {}),
    "sunrise": ("sunrise", [(2, 2, 1, -1, -1), (1, 3, 1, 0, 0)], {}),
    "box": ("box", [(2, 1, 1, 2)], {}),
}


def point_at(family, column, p):
    d, *invariants = map(Fraction, column)
    return Point(d, tuple(zip(family.symbols[1:], invariants)), p)


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
        point = point_at(problem.family, column, p)
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
        point = point_at(problem.family, column, p)
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
            point = point_at(problem.family, column, prime)
            assert named(trace.names, row) == reduce_at("trianglebox", [target], point=point, paper_masters_only=True).reductions
