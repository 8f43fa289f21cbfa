"""Rational numbers from residues."""

import itertools
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support import residue
from support_oracles import few_examples

from ibp.lifting import Lift
from ibp.residues import probe_primes

rationals = st.fractions(max_denominator=10**12).filter(lambda x: abs(x) < 10**15)


@few_examples
@given(st.lists(rationals, min_size=1, max_size=6), st.integers(0, 3))
def test_numbers_are_lifted_from_residues(numbers, seed):
    lift, primes = Lift(), probe_primes(np.random.default_rng(seed))
    used = 0
    while not lift.done and used < 40:
        p, used = next(primes), used + 1
        lift.add([residue(x, p) for x in numbers], p)
    assert lift.done and lift.candidate == numbers


def test_a_lift_is_not_done_before_a_prime_confirms_it():
    lift = Lift()
    value = Fraction(10**30 + 57, 10**20 + 39)
    for p in itertools.islice(probe_primes(np.random.default_rng(1)), 3):
        lift.add([residue(value, p)], p)
        assert not lift.done and lift.candidate != [value]
