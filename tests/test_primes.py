"""Prime numbers."""

import itertools

import numpy as np

from ibp.primes import LARGEST_PROBE_PRIME, SMALLEST_PROBE_PRIME, is_prime, probe_primes


def test_primes():
    assert [n for n in range(2000) if is_prime(n)] == [n for n in range(2, 2000) if all(n % q for q in range(2, n))]
    for strong_pseudoprime in (2047, 3215031751, 25326001, 4759123141 - 2):
        factors = [q for q in range(2, 70_000) if strong_pseudoprime % q == 0]
        assert is_prime(strong_pseudoprime) == (not factors)
    some = list(itertools.islice(probe_primes(np.random.default_rng(2)), 50))
    assert len(set(some)) == 50 and all(SMALLEST_PROBE_PRIME < p < LARGEST_PROBE_PRIME for p in some)
    assert all(p % q for p in some for q in range(2, 46_341))
