"""Prime numbers: which may be a modulus, the fixed large ones, and random ones for reconstruction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

MAX_PRIME = 2**31 - 1  # products of two residues must fit an int64
GENERIC_PRIME = 2**31 - 1  # facts about a family and the search for rules use this prime at a pseudo-random point
OTHER_PRIME = 2**31 - 19  # a second large prime, where one alone could mislead
LARGEST_PROBE_PRIME = 2**31 - 2**16  # sums of two products of residues slightly above the prime fit an int64
SMALLEST_PROBE_PRIME = 2**30


def is_prime(number: int) -> bool:
    """Right below 4,759,123,141 (Jaeschke, Math. Comp. 61 (1993) 915)."""
    if number < 4 or number % 2 == 0:
        return number in (2, 3)
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    return number in (7, 61) or all(
        pow(base, odd, number) == 1 or any(pow(base, odd << k, number) == number - 1 for k in range(twos)) for base in (2, 7, 61)
    )


def is_usable_prime(number: Any) -> bool:
    return type(number) is int and 2 < number <= MAX_PRIME and is_prime(number)


def probe_primes(rng: np.random.Generator) -> Iterator[int]:
    """Different random primes that Residues can take."""
    seen: set[int] = set()
    while True:
        number = int(rng.integers(SMALLEST_PROBE_PRIME, LARGEST_PROBE_PRIME)) | 1
        if number not in seen and is_prime(number):
            seen.add(number)
            yield number
