"""Pickles of builtin types."""

import pickle
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Touches, snapshot

from executors.files import load_builtins
from ibp.rules import Rule

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
keys = st.integers() | st.text() | st.tuples(st.integers(), st.integers())
values = st.recursive(plain, lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner), max_leaves=20)


@settings(max_examples=100, deadline=None)
@given(values, st.integers(3, 5))  # before 3, bytes are a call
def test_builtin_values_survive_the_restricted_unpickler(value, protocol):
    assert load_builtins(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize(
    "value",
    [Touches(), Fraction(1, 2), Path("x"), Rule((), (), 0), len, int, range(3), slice(1, 2), [{"deep": (Touches(),)}], ValueError("x")],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("protocol", range(2, 6))
def test_restricted_unpickler_refuses_everything_that_names_something(value, protocol, place):
    with pytest.raises(pickle.UnpicklingError, match="only builtin types"):
        load_builtins(pickle.dumps(value, protocol))
    assert snapshot(place) == {}


@pytest.mark.parametrize(
    "text",
    [b"cos\nsystem\n(S'touch broken-out'\ntR.", b"(S'touch broken-out'\nios\nsystem\n.", b"\x82\x01.", b"Pid\n."],
    ids=["global", "instance", "extension", "persistent id"],
)
def test_restricted_unpickler_refuses_old_opcodes(text, place):
    with pytest.raises((pickle.UnpicklingError, ValueError)):
        load_builtins(text)
    assert snapshot(place) == {}
