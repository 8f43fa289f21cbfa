"""What a rule is, where rules are looked for, and what one makes of many integrals at once.

A `Rule` is a list of identities, `Action`s relative to a target, out of one of the `NEIGHBOURHOODS`, whose numbers are the levels of a
search; `border_pattern` tells apart what a level can tell apart. A `CompiledRule` is one made ready at a point.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ibp.families import Index
from ibp.identities import Equations
from ibp.residues import invert, null_vector
from ibp.sectors import MAX_INDEX, Sector
from ibp.tables import run_numbers, run_starts

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


# Levels of a search, tried in this order until one reduces the integral; the first four suffice for almost all.
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


class CompiledRule:
    """A rule at one point, ready for many targets of its sector.

    Column j stands `offset[j]` from the target; columns are heaviest first, the target is column `heavier`. Entry e of the rows, a linear
    form `form[:, e]` in (1, target), belongs to row `row[e]`; entries are sorted by column, column j begins at `start[j]`.
    """

    def __init__(self, sector: Sector, equations: Equations, rule: Rule):
        operators, seeds = np.array([operator for operator, _ in rule.rows]), np.array([seed for _, seed in rule.rows], np.int64)
        first = np.searchsorted(equations.operator, np.arange(equations.count + 1))
        size = first[operators + 1] - first[operators]
        term, row = run_numbers(first[operators], size), np.repeat(np.arange(len(size)), size)
        offset = equations.shift[term] + seeds[row]
        form = equations.coefficient[term].copy()
        form[:, 0] = (form[:, 0] + (form[:, 1:] * seeds[row]).sum(1)) % equations.prime
        distance = offset @ sector.weights
        order = np.argsort(-distance, kind="stable")
        distance = distance[order]
        self.start = run_starts(distance)
        self.term, self.seed = term[order], seeds[row[order]]
        self.row, self.form = row[order], np.ascontiguousarray(form[order].T.astype(float))
        self.distance, self.offset = distance[self.start], offset[order][self.start]
        self.heavier = int((self.distance > 0).sum())
        self.rows, self.seeds, self.operators = len(seeds), seeds, operators.astype(np.int16)
        # the seeds stay inside the sector while the target is inside this box
        self.low = np.where(sector.positive, 1 - seeds.min(0), -MAX_INDEX).astype(np.int16)
        self.high = np.where(sector.positive, MAX_INDEX, -seeds.max(0)).astype(np.int16)
        self.valid = self.heavier < len(self.distance) and self.distance[self.heavier] == 0 and len(rule.pivots) == self.rows - 1
        pivots = {key: number for number, key in enumerate(np.array(rule.pivots, np.int64).reshape(-1, sector.n) @ sector.weights)}
        column_pivot = np.array([pivots.get(key, -1) for key in self.distance])
        entry_pivot = np.repeat(column_pivot, np.diff([*self.start, len(order)]))
        self.pivot_entry = np.flatnonzero(entry_pivot >= 0)
        self.pivot_place = (entry_pivot[self.pivot_entry], self.row[self.pivot_entry])

    def replay(self, targets: np.ndarray, p: int) -> np.ndarray:
        """Coefficients [N, C] of the combined rows at targets (1, indices) as floats [N, n+1]: sum over columns of coefficient * I = 0."""
        values = np.rint(targets @ self.form).astype(np.int64) % p
        if self.rows > 1:
            values = values * self._row_factors(values, p)[:, self.row] % p
            values = np.add.reduceat(values, self.start, axis=1) % p
        return values

    def _row_factors(self, values: np.ndarray, p: int) -> np.ndarray:
        """Factors [N, rows] that combine the rows; values [N, E] of the entries."""
        matrix = np.zeros((len(values), self.rows - 1, self.rows), np.int64)
        matrix[:, self.pivot_place[0], self.pivot_place[1]] = values[:, self.pivot_entry]
        return null_vector(matrix, p)

    def multipliers(self, targets: np.ndarray, p: int) -> np.ndarray:
        """Factors [N, rows] of the rows whose sum is I[target] - (what it is expressed through), for targets that the rule reduces."""
        values = np.rint(targets @ self.form).astype(np.int64) % p
        factors = self._row_factors(values, p)
        entry = slice(self.start[self.heavier], [*self.start, len(self.row)][self.heavier + 1])
        pivot = (values[:, entry] * factors[:, self.row[entry]] % p).sum(1) % p
        return factors * invert(pivot, p)[:, None] % p
