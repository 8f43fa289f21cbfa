"""Sorted tables of keys against plain Python."""

import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support import P31, PRIMES, laws

from executors.files import load_builtins
from ibp.tables import merge, pack_keys, sum_by_key, unpack_keys

int64 = st.integers(-(2**63), 2**63 - 1)


@laws
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


@laws
@given(st.lists(int64, unique=True), st.lists(int64, unique=True), st.integers(0, 2**200))
def test_packed_keys_come_back_and_merged_keys_are_sorted(a, b, large):
    for dtype, more in (np.int64, []), (object, [large]):
        keys = np.array([*a, *more], dtype)
        packed = pickle.loads(pickle.dumps(pack_keys(keys)))
        back = unpack_keys(packed)
        assert back.tolist() == keys.tolist() and back.dtype == dtype and load_builtins(pickle.dumps(packed)) == packed
        one, other = np.array(sorted(a), dtype), np.array(sorted({*b, *more} - set(a)), dtype)
        assert merge(one, other).tolist() == sorted({*a, *one.tolist(), *other.tolist()})
