"""Rules that reduce an integral by one step, and the identities around it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from ibp.families import Index
from ibp.identities import Equations
from ibp.sectors import Sector
from ibp.tables import run_numbers

SEARCH_ROWS = 150_000  # a neighbourhood with more identities than this is not tried
REGION_ROWS = 8_000  # nor a region from the corner with more than this, of which few fall away before the elimination
REGION_REACH = 120  # nor one that goes further: rules are stored as int8


@dataclass(frozen=True)
class Neighbourhood:
    """Seeds around a target: |delta_i| <= reach, sum |delta_i| <= norm, and the ranges of the changes of r and of s."""

    reach: int
    dr: tuple[int, int]
    ds: tuple[int, int]
    norm: int


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
MOSTLY_IN_VAIN = (1, 3, 4, 5, 6)  # levels where few of the searches find something
LAST_NEIGHBOURHOOD = max(level for level, region in enumerate(NEIGHBOURHOODS) if isinstance(region, Neighbourhood))


@dataclass(frozen=True)
class Rule:
    """The rows that reduce one integral by one step, and with it most others of the sector.

    rows: (operator, seed - target) in the order of elimination; pivots: for every row but the last, the column (integral - target) that is
    eliminated with it; level: which of the NEIGHBOURHOODS it comes from. Independent of target, prime and point; whether a rule reduces
    a given integral is checked each time.
    """

    rows: tuple[tuple[int, Index], ...]
    pivots: tuple[Index, ...]
    level: int


@lru_cache(maxsize=64)
def _ball(n: int, reach: int, norm: int) -> np.ndarray:
    """All integer vectors [B, n] with |x_i| <= reach and sum |x_i| <= norm, shortest first."""
    vectors, left = np.zeros((1, 0), np.int8), np.array([norm])
    for _ in range(n):
        kept = [(v, left >= abs(v)) for v in range(-reach, reach + 1)]
        vectors = np.concatenate([np.column_stack([vectors[mask], np.full(mask.sum(), v, np.int8)]) for v, mask in kept])
        left = np.concatenate([left[mask] - abs(v) for v, mask in kept])
    return vectors[np.argsort(-left, kind="stable")].astype(np.int64)


def seeds_around(neighbourhood: Neighbourhood, sector: Sector) -> np.ndarray:
    """Seeds [S, n] of a neighbourhood relative to a target of this sector."""
    ball = _ball(sector.n, neighbourhood.reach, neighbourhood.norm)
    return ball[in_ranges(neighbourhood, sector, ball)]


def in_ranges(neighbourhood: Neighbourhood, sector: Sector, seeds: np.ndarray) -> np.ndarray:
    """Bool [S]: whose changes of r and of s are those of the neighbourhood."""
    (dr, ds), (r0, r1), (s0, s1) = sector.r_and_s(seeds), neighbourhood.dr, neighbourhood.ds
    return (r0 <= dr) & (dr <= r1) & (s0 <= ds) & (ds <= s1)


def holds(region: Neighbourhood | CornerRegion, sector: Sector, seeds: np.ndarray) -> bool:
    """Whether all of these seeds [S, n], relative to a target, belong to a neighbourhood."""
    size = np.abs(seeds)
    return isinstance(region, Neighbourhood) and bool(
        (size.max(1) <= region.reach).all() and (size.sum(1) <= region.norm).all() and in_ranges(region, sector, seeds).all()
    )


class SearchSpace:
    """All rows of a neighbourhood, for any target of a sector: which columns they have, relative to the target, down to the target itself.

    seeds [S, n] relative to the target; entry e of row `row[e]` (= seed * operators + operator) is term `term[e]` of the identities and
    stands in column `column[e]`; columns [C, n] heaviest first, the target last.
    """

    def __init__(self, sector: Sector, equations: Equations, seeds: np.ndarray):
        self.seeds, self.operators = seeds, equations.count
        keys = (self.seeds @ sector.weights)[:, None] + (equations.shift @ sector.weights)[None]
        self.seed, self.term = np.nonzero(keys >= 0)
        self.row = self.seed * equations.count + equations.operator[self.term]
        distinct, first, self.column = np.unique(-keys[self.seed, self.term], return_index=True, return_inverse=True)
        self.columns = self.seeds[self.seed[first]] + equations.shift[self.term[first]]
        self.complete = len(distinct) > 0 and distinct[-1] == 0
        self._of_seeds: tuple[Equations | None, np.ndarray] = (None, np.zeros(0, np.int64))

    @property
    def rows(self) -> int:
        return len(self.seeds) * self.operators

    @cached_property
    def begin(self) -> np.ndarray:
        """Where the entries of each row begin, [rows + 1]."""
        return np.searchsorted(self.row, np.arange(self.rows + 1))

    def of_seeds(self, equations: Equations) -> np.ndarray:
        """What the seeds, without the target, add to the value of each entry; kept for the equations that came last."""
        if self._of_seeds[0] is not equations:
            products = equations.coefficient[:, 1:] @ self.seeds.T
            self._of_seeds = equations, products[self.term, self.seed]
        return self._of_seeds[1]

    def rows_inside(self, sector: Sector, target: np.ndarray) -> np.ndarray:
        """Numbers of the rows whose seed is in the sector at this target [n]: seldom more than one in ten."""
        return np.flatnonzero(np.repeat(sector.contains(target + self.seeds), self.operators))

    def system(
        self, sector: Sector, equations: Equations, target: np.ndarray, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, columns and values of the entries of these rows [R] at one target [n]: terms inside the sector and not zero.

        A row with a column that no other row has cannot take part in a combination; such rows are removed until none is left.
        """
        entries = run_numbers(self.begin[rows], self.begin[rows + 1] - self.begin[rows])
        entries = entries[sector.contains(target + self.columns)[self.column[entries]]]
        of_target = equations.coefficient[:, 0] + equations.coefficient[:, 1:] @ target
        values = (of_target[self.term[entries]] + self.of_seeds(equations)[entries]) % equations.prime
        row, column = self.row[entries], self.column[entries]
        keep = values != 0
        while not keep.all():
            row, column, values = row[keep], column[keep], values[keep]
            count = np.bincount(column, minlength=len(self.columns))
            count[-1] = 2
            lonely = np.zeros(self.rows, bool)
            lonely[row[count[column] == 1]] = True
            keep = ~lonely[row]
        return row, column, values


def border_pattern(indices: np.ndarray, positive: np.ndarray, level: int, touching_only: bool = False) -> list[bytes]:
    """How far each integral [N, n] is from the border of its sector in each index, as far as the seeds of this level notice.

    touching_only: 0 where it touches the border, else the largest distance that is noticed.
    """
    neighbourhood = NEIGHBOURHOODS[level]
    notice = neighbourhood.reach + 1 if isinstance(neighbourhood, Neighbourhood) else 127
    distance = np.minimum(np.abs(indices) - positive, notice)
    if touching_only and notice < 127:
        distance[distance > 0] = notice
    return [line.tobytes() for line in distance.astype(np.int8)]


Action = tuple[int, Index]  # (operator, seed - target): one identity
