"""Sectors, the order of integrals, and integrals packed into numbers.

A sector is a bit mask of lines; `weight` orders all integrals of a family; a `Layout` and a `Sector` in it make them numbers in that order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ibp.elimination import is_reducible
from ibp.families import Index
from ibp.identities import Equations

MAX_INDEX = 30_000  # indices are held as int16 where many are handled
KEY_BITS = 62


def sector_of(indices: Sequence[int]) -> int:
    """Bit mask of the positive indices, index 1 in bit 0."""
    return sum(1 << i for i, a in enumerate(indices) if a > 0)


def sector_order(bits: int) -> tuple[int, int]:
    """Sort key of sectors: number of lines, then the bit mask."""
    return bits.bit_count(), bits


def corner(bits: int, n: int) -> Index:
    return tuple(bits >> i & 1 for i in range(n))


def r_and_s(indices: Sequence[int]) -> tuple[int, int]:
    """r = sum of the positive indices, s = minus the sum of the others."""
    return sum(a for a in indices if a > 0), -sum(a for a in indices if a < 0)


def integrals_up_to(indices: Sequence[int]) -> int:
    """Number of integrals of the same sector with at most as many dots and at most the same s."""
    t, n = sector_of(indices).bit_count(), len(indices)
    r, s = r_and_s(indices)
    return math.comb(r, t) * math.comb(n - t + s, s)


def show(indices: Sequence[int]) -> str:
    return f"I[{','.join(map(str, indices))}]"


@dataclass(frozen=True)
class Layout:
    """How integrals of one run are packed into numbers whose order inside a sector is the weight (r, s, |a_n|, …, |a_1|).

    Each digit has room for r_max or s_max. One positive and one other index follow from r and s and need no digit. The packing is linear
    in the indices: key(a + shift) = key(a) + key(shift), so a row of a rule is one addition. Digits of 62 bits in all fit an int64; beyond,
    keys are Python integers in object arrays (slow, but right).
    """

    n: int
    r_max: int
    s_max: int

    @property
    def radix(self) -> int:
        """At least 16, so that differences of neighbouring columns keep their lexicographic order."""
        return max(self.r_max, self.s_max, 15) + 1

    def has_room_for(self, integrals: Iterable[Sequence[int]]) -> bool:
        return all(max(r_and_s(integral)) < self.radix for integral in integrals)

    @cached_property
    def dtype(self) -> type:
        return np.int64 if self.radix**self.n < 2**KEY_BITS else object


def layout_for(targets: Iterable[Sequence[int]], n: int) -> Layout:
    """Room for what can appear below these targets: s grows where r falls. That it suffices is checked as integrals appear."""
    pairs = [r_and_s(target) for target in targets]
    r_max, s_max = max((r for r, _ in pairs), default=0), max((s for _, s in pairs), default=0)  # a combination may have no terms
    roomy = Layout(n, r_max + 1, s_max + 2 * r_max)
    tight = Layout(n, r_max + 1, max(s_max + r_max // 2, 15))
    return tight if roomy.dtype is object and tight.dtype is not object else roomy


class Sector:
    """One sector in one layout. positive: bool [n]; weights: [n], so that key = indices @ weights - origin; the corner has key 0."""

    def __init__(self, layout: Layout, bits: int):
        self.layout, self.bits, self.n = layout, bits, layout.n
        self.positive = np.array([bits >> i & 1 for i in range(self.n)], bool)
        inside, outside = np.flatnonzero(self.positive).tolist(), np.flatnonzero(~self.positive).tolist()
        self.implied = [group[0] for group in (inside, outside) if group]
        own = {i: layout.radix**k for k, i in enumerate(i for i in range(self.n) if i not in self.implied)}
        self.digits = list(own.items())[::-1]
        self.s_place = layout.radix ** len(own)
        self.r_place = self.s_place * layout.radix if outside else self.s_place  # s needs no place where it is always 0
        self.weights = np.array(
            [own.get(i, 0) + self.r_place if self.positive[i] else -own.get(i, 0) - self.s_place for i in range(self.n)], layout.dtype
        )
        self.origin = self.weights[self.positive].sum()

    def encode(self, indices: np.ndarray) -> np.ndarray:
        """Keys [N] of indices [N, n], all in this sector."""
        return indices.astype(self.layout.dtype) @ self.weights - self.origin

    def decode(self, keys: np.ndarray) -> np.ndarray:
        """Indices [N, n] as int64 of keys [N]."""
        r, rest = keys // self.r_place, keys % self.r_place
        s, rest = rest // self.s_place, rest % self.s_place
        indices = np.zeros((len(keys), self.n), np.int64)
        for i, place in self.digits:
            indices[:, i] = (rest // place).astype(np.int64)
            rest = rest % place
        for i in self.implied:
            indices[:, i] = (r if self.positive[i] else s).astype(np.int64) - indices[:, self.positive == self.positive[i]].sum(1)
        return np.where(self.positive, indices + 1, -indices)

    def contains(self, indices: np.ndarray) -> np.ndarray:
        """Bool [...] for indices [..., n]."""
        return ((indices > 0) == self.positive).all(-1)

    def r_and_s(self, changes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """By how much r and s [...] change with the indices [..., n]."""
        return changes[..., self.positive].sum(-1), -changes[..., ~self.positive].sum(-1)


def sectors_of(indices: np.ndarray) -> np.ndarray:
    """Bit masks int64 [N] of indices [N, n]."""
    packed = np.packbits(indices > 0, axis=1, bitorder="little")
    return packed.astype(np.int64) @ (np.int64(1) << 8 * np.arange(packed.shape[1], dtype=np.int64))


def integrals_near_corner(bits: int, n: int, dots: int, s: int) -> list[Index]:
    """All integrals of a sector with at most so many dots and at most this s."""

    def spread(places: list[int], total: int) -> list[dict[int, int]]:
        if not places:
            return [{}]
        return [{places[0]: a} | rest for a in range(total + 1) for rest in spread(places[1:], total - a)]

    inside, outside = ([i for i in range(n) if bits >> i & 1 == kind] for kind in (1, 0))
    return [tuple(1 + up[i] if i in up else -down[i] for i in range(n)) for up in spread(inside, dots) for down in spread(outside, s)]


def find_nonzero_sectors(equations: Equations, lines: int) -> tuple[int, ...]:
    """All sectors whose integrals do not vanish, lightest first.

    A sector is zero (scaleless) if all its immediate subsectors are and its identities at the corner combine to corner = 0 without them.
    """
    nonzero: set[int] = set()
    for bits in sorted(range(1, 1 << lines), key=sector_order):
        below = (bits & ~(1 << i) for i in range(lines) if bits >> i & 1)
        if any(b in nonzero for b in below) or not _corner_vanishes(equations, bits):
            nonzero.add(bits)
    return tuple(sorted(nonzero, key=sector_order))


def _corner_vanishes(equations: Equations, bits: int) -> bool:
    p, n = equations.prime, equations.n
    target = corner(bits, n)
    values = (equations.coefficient[:, 0] + equations.coefficient[:, 1:] @ np.array(target)) % p
    rows: dict[int, dict[Index, int]] = {}
    for operator, term, value in zip(equations.operator.tolist(), (equations.shift + target).tolist(), values.tolist()):
        if value and sector_of(term) == bits:
            rows.setdefault(operator, {})[tuple(term)] = value
    return is_reducible(rows, target, p)


def weight(indices: Sequence[int]) -> tuple:
    """The total order of all integrals of a family: (t, sector, r, s, |a_n|, …, |a_1|)."""
    return (*sector_order(sector_of(indices)), *r_and_s(indices), *(abs(a) for a in reversed(indices)))
