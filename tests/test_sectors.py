"""sectors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import P31, bits_of, patch_rooms
from support_oracles import oracle_weight

from ibp.carrying import propagate
from ibp.null_vectors import null_vector
from ibp.residues import invert
from ibp.sectors import Layout, Sector, layout_for, sector_of, weight
from ibp.tables import sum_by_key


@st.composite
def layout_and_integrals(draw):
    n = draw(st.integers(1, 11))
    r_max, s_max = draw(st.integers(n, n + 12)), draw(st.integers(0, 14))
    bits = draw(st.integers(1, 2**n - 1))

    def integral():
        left = {True: r_max - bits.bit_count(), False: s_max}
        indices = [0] * n
        for i in draw(st.permutations(range(n))):
            inside = bool(bits >> i & 1)
            size = draw(st.integers(0, left[inside]))
            left[inside] -= size
            indices[i] = 1 + size if inside else -size
        return tuple(indices)

    return Layout(n, r_max, s_max), bits, [integral() for _ in range(draw(st.integers(1, 12)))]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(layout_and_integrals(), st.sampled_from([62, 10]))
def test_keys(case, key_bits):
    """decode(encode(a)) = a, and keys have the order of the weight; the corner has key 0; also for keys of unlimited
    size.
    """
    layout, bits, integrals = case
    with pytest.MonkeyPatch.context() as patch:
        patch_rooms(patch, "ibp", "KEY_BITS", key_bits)
        sector = Sector(layout, bits)
        keys = sector.encode(np.array(integrals))
        assert [tuple(row) for row in sector.decode(keys).tolist()] == integrals
        assert sector.encode(np.array([[bits >> i & 1 for i in range(layout.n)]]))[0] == 0
    assert sorted(integrals, key=oracle_weight) == [a for _, a in sorted(zip(keys.tolist(), integrals))]
    assert sorted(integrals, key=weight) == sorted(integrals, key=oracle_weight)
    assert all(sector_of(a) == bits_of(a) == bits for a in integrals)


@pytest.mark.parametrize("target", [(100, 50, 1, 1, 1, 1, 1), (50,) * 6, (100, 50, 1, 1, 1, 1, 0), (100, 90, 1, 1, 1, 1, 1, -9)])
def test_keys_of_the_largest_targets_fit(target):
    """A sector of all propagators has no numerators: with a place for them its keys would be a radix larger than the layout allows for."""
    layout = layout_for([target], len(target))
    assert layout.dtype is np.int64
    sector = Sector(layout, bits_of(target))
    heavier = [tuple(a + (i == k) for k, a in enumerate(target)) for i, a in enumerate(target) if a > 0]
    keys = sector.encode(np.array([target, *heavier]))
    assert sector.decode(keys).tolist() == [list(integral) for integral in (target, *heavier)] and (keys[0] < keys[1:]).all()


PRIMES = st.sampled_from([3, 101, 1009, P31])


@settings(max_examples=60, deadline=None, derandomize=True)
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


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(-5, 5), st.integers(0, P31 - 1), st.integers(0, P31 - 1)), max_size=30), st.sampled_from([1, 2]), PRIMES
)
def test_sum_by_key(lines, columns, p):
    keys, values = [key for key, *_ in lines], [[v % p for v in line[: 1 + columns][1:]] for line in lines]
    totals = {key: [0] * columns for key in sorted(keys)}
    for key, line in zip(keys, values):
        totals[key] = [(a + b) % p for a, b in zip(totals[key], line)]
    expected = {key: line for key, line in totals.items() if any(line)}
    found_keys, found = sum_by_key(np.array(keys, np.int64), np.array(values, np.int64).reshape(-1, columns), p)
    assert found_keys.tolist() == list(expected) and found.tolist() == list(expected.values())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(1, 3), PRIMES, st.randoms(use_true_random=False))
def test_propagate(count, columns, p, draw):
    """Edges go from heavier to lighter; the naive version takes the nodes in order.

    Parallel edges occur, and nodes without any.
    """
    edges = [(a, draw.randrange(a), draw.randrange(p)) for a in (draw.randrange(count) for _ in range(3 * count)) if a]
    block = [[draw.randrange(p) for _ in range(columns)] for _ in range(count)]
    expected = [list(line) for line in block]
    for node in reversed(range(count)):
        for source, target, value in edges:
            if source == node:
                expected[target] = [(a + value * b) % p for a, b in zip(expected[target], expected[source])]
    found = np.array(block, np.int64)
    source, target, value = (np.array([edge[i] for edge in edges], np.int64) for i in range(3))
    propagate(found, source, target, value, p)
    assert found.tolist() == expected
