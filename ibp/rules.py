"""What a rule is, and where rules are looked for.

A `Rule` is a list of identities, `Action`s relative to a target. It comes from one of the `NEIGHBOURHOODS` of the target, whose numbers
are the levels of a search; `border_pattern` tells apart what a level can tell apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ibp.families import Index
from ibp.sectors import Sector

Action = tuple[int, Index]  # (operator, seed - target): one identity


@dataclass(frozen=True)
class Rule:
    """The identities that reduce one integral by one step, and with it most others of the sector.

    rows: in the order of elimination; pivots: for every row but the last, the column (integral - target) that is eliminated with it;
    level: which of the NEIGHBOURHOODS it comes from. Independent of target, prime and point; whether a rule reduces a given integral is
    checked each time.
    """

    rows: tuple[Action, ...]
    pivots: tuple[Index, ...]
    level: int


@dataclass(frozen=True)
class Neighbourhood:
    """Seeds around a target: |delta_i| <= reach, sum |delta_i| <= norm, and the ranges of the changes of r and of s."""

    reach: int
    dr: tuple[int, int]
    ds: tuple[int, int]
    norm: int

    def seeds(self, sector: Sector) -> np.ndarray:
        """All of them, [S, n] relative to a target of this sector, close ones first."""
        ball = _ball(sector.n, self.reach, self.norm)
        return ball[self._in_ranges(sector, ball)]

    def holds(self, sector: Sector, seeds: np.ndarray) -> bool:
        """Whether all of these [S, n] are among them."""
        size = np.abs(seeds)
        return bool((size.max(1) <= self.reach).all() and (size.sum(1) <= self.norm).all() and self._in_ranges(sector, seeds).all())

    def _in_ranges(self, sector: Sector, seeds: np.ndarray) -> np.ndarray:
        (dr, ds), (r0, r1), (s0, s1) = sector.r_and_s(seeds), self.dr, self.ds
        return (r0 <= dr) & (dr <= r1) & (s0 <= ds) & (ds <= s1)


@lru_cache(maxsize=64)
def _ball(n: int, reach: int, norm: int) -> np.ndarray:
    """All integer vectors [B, n] with |x_i| <= reach and sum |x_i| <= norm, shortest first."""
    vectors, left = np.zeros((1, 0), np.int8), np.array([norm])
    for _ in range(n):
        kept = [(v, left >= abs(v)) for v in range(-reach, reach + 1)]
        vectors = np.concatenate([np.column_stack([vectors[mask], np.full(mask.sum(), v, np.int8)]) for v, mask in kept])
        left = np.concatenate([left[mask] - abs(v) for v, mask in kept])
    return vectors[np.argsort(-left, kind="stable")].astype(np.int64)


@dataclass(frozen=True)
class CornerRegion:
    """All seeds from the corner up to so many dots and so much s more than the target has: for integrals close to masters."""

    dots: int
    s: int


# Levels of a search, tried in this order until one reduces the integral; the first four suffice for almost all. An integral that none of
# them reduces is unreduced.
NEIGHBOURHOODS: tuple[Neighbourhood | CornerRegion, ...] = (
    Neighbourhood(1, (-1, -1), (-1, 0), 2),
    Neighbourhood(1, (-1, -1), (-1, 1), 3),
    Neighbourhood(1, (-2, 0), (-1, 1), 2),
    Neighbourhood(1, (-2, 0), (-1, 1), 3),
    Neighbourhood(2, (-2, 0), (-2, 1), 4),
    CornerRegion(0, 2),
    CornerRegion(1, 0),
)
LAST_NEIGHBOURHOOD = max(level for level, region in enumerate(NEIGHBOURHOODS) if isinstance(region, Neighbourhood))


def level_of(sector: Sector, seeds: np.ndarray) -> int:
    """The first level that has all of these seeds [S, n], relative to the target; the last neighbourhood stands for what is further."""
    around = enumerate(NEIGHBOURHOODS[: LAST_NEIGHBOURHOOD + 1])
    return next((level for level, region in around if region.holds(sector, seeds)), LAST_NEIGHBOURHOOD)


def border_distance(indices: np.ndarray, positive: np.ndarray, most: int) -> np.ndarray:
    """How far integrals [..., n] of a sector are from its border in each index; what is further than `most` is at `most`."""
    return np.minimum(np.abs(indices) - positive, most)


def border_pattern(indices: np.ndarray, positive: np.ndarray, level: int, touching_only: bool = False) -> list[bytes]:
    """How far each integral [N, n] is from the border of its sector in each index, as far as the seeds of this level notice.

    touching_only: 0 where it touches the border, else the largest distance that is noticed.
    """
    neighbourhood = NEIGHBOURHOODS[level]
    notice = neighbourhood.reach + 1 if isinstance(neighbourhood, Neighbourhood) else 127
    distance = border_distance(indices, positive, notice)
    if touching_only and notice < 127:
        distance[distance > 0] = notice
    return [line.tobytes() for line in distance.astype(np.int8)]
