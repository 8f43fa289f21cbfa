"""Local elimination around one integral finds the rows that reduce it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ibp.elimination import eliminate_heavier, is_reducible, subtract
from ibp.identities import Equations
from ibp.replay import CompiledRule
from ibp.rules import (
    LAST_NEIGHBOURHOOD,
    MOSTLY_IN_VAIN,
    NEIGHBOURHOODS,
    REGION_REACH,
    REGION_ROWS,
    SEARCH_ROWS,
    Action,
    CornerRegion,
    Rule,
    SearchSpace,
    holds,
    seeds_around,
)
from ibp.sectors import Sector, integrals_near_corner


class RuleFinder:
    """Searches a sector for rules; the search spaces are built once and serve every target."""

    def __init__(self, sector: Sector, structure: Equations):
        self.sector, self.structure = sector, structure
        self.rows = 0  # built in all searches so far
        self._spaces: dict[int, SearchSpace | None] = {}

    def space(self, level: int, target: np.ndarray) -> SearchSpace | None:
        """The rows of a level; None where there are none that reach the target, or too many."""
        neighbourhood = NEIGHBOURHOODS[level]
        if isinstance(neighbourhood, CornerRegion):
            return self._make_space(self._seeds_from_corner(target, neighbourhood))
        if level not in self._spaces:
            self._spaces[level] = self._make_space(seeds_around(neighbourhood, self.sector))
        return self._spaces[level]

    def _make_space(self, seeds: np.ndarray) -> SearchSpace | None:
        if not 0 < len(seeds) * self.structure.count <= SEARCH_ROWS:
            return None
        space = SearchSpace(self.sector, self.structure, seeds)
        return space if space.complete else None

    def _seeds_from_corner(self, target: np.ndarray, region: CornerRegion) -> np.ndarray:
        """Relative to the target; none where they would be too many to be listed."""
        positive = self.sector.positive
        t, dots = int(positive.sum()), int((target[positive] - 1).sum()) + region.dots
        s = int(-target[~positive].sum()) + region.s
        count = math.comb(t + dots, dots) * math.comb(self.sector.n - t + s, s)
        fits = count * self.structure.count <= REGION_ROWS and max(dots, s) <= REGION_REACH
        seeds = integrals_near_corner(self.sector.bits, self.sector.n, dots, s) if fits else []
        return np.array(seeds, np.int64).reshape(-1, self.sector.n) - target

    def find(self, target: np.ndarray, level: int, equations: Equations) -> Rule | None:
        """A rule of this level that reduces the integral with these indices [n] at the point of the equations, or None."""
        space = self.space(level, target)
        return space and self.find_in(space, target, level, equations)

    def find_among(self, target: np.ndarray, actions: Sequence[Action], equations: Equations) -> Rule | None:
        """A rule made of these identities and no others."""
        seeds = np.unique(np.array([change for _, change in actions]), axis=0)
        place = {tuple(seed): number for number, seed in enumerate(seeds.tolist())}
        space = SearchSpace(self.sector, self.structure, seeds)
        rows = np.array([place[change] * space.operators + operator for operator, change in actions])
        level = next((n for n, region in enumerate(NEIGHBOURHOODS) if holds(region, self.sector, seeds)), LAST_NEIGHBOURHOOD)
        return self.find_in(space, target, level, equations, rows) if space.complete else None

    def find_in(
        self, space: SearchSpace, target: np.ndarray, level: int, equations: Equations, rows: np.ndarray | None = None
    ) -> Rule | None:
        """As `find`, out of the rows of this space, or only out of some of them, whose seeds must be in the sector."""
        rows = space.rows_inside(self.sector, target) if rows is None else rows
        self.rows += len(rows)
        row, column, value = space.system(self.sector, equations, target, rows)
        last = len(space.columns) - 1
        if not (column == last).any():
            return None
        matrix: dict[int, dict[int, int]] = {}
        for r, c, v in zip(row.tolist(), column.tolist(), value.tolist()):
            matrix.setdefault(r, {})[c] = v
        if level in MOSTLY_IN_VAIN and not is_reducible(matrix, last, equations.prime):
            return None
        combinations = eliminate_heavier(matrix, last, equations.prime)
        if not combinations:
            return None
        found = [(sorted(rows), self._rule(space, {r: matrix[r] for r in sorted(rows)}, equations.prime, level)) for rows in combinations]
        return min(found, key=lambda pair: (self.heaviest_result(pair[1], target, equations), pair[0]))[1]

    def heaviest_result(self, rule: Rule, target: np.ndarray, equations: Equations) -> float:
        """Key of the heaviest integral that a rule expresses the target through, relative to it: the lighter, the fewer follow."""
        compiled = CompiledRule(self.sector, equations, rule)
        value = compiled.replay(np.concatenate([[1.0], target])[None], equations.prime)[0]
        lighter = (value != 0) & (compiled.distance < 0) & self.sector.contains(target + compiled.offset)
        return max(compiled.distance[lighter].tolist(), default=-math.inf)

    def _rule(self, space: SearchSpace, matrix: dict[int, dict[int, int]], p: int, level: int) -> Rule:
        """Put the rows of a combination into an order of elimination, one pivot for each but the last."""
        target = len(space.columns) - 1
        left = {r: {c: v for c, v in row.items() if c != target} for r, row in matrix.items()}
        order, pivots = [], []
        while len(left) > 1:
            r = min((r for r in left if left[r]), key=lambda r: (len(left[r]), r))
            pivot_row = left.pop(r)
            c = min(pivot_row)
            inverse = pow(pivot_row[c], -1, p)
            for row in left.values():
                if c in row:
                    subtract(row, pivot_row, row[c] * inverse % p, p)
            order.append(r)
            pivots.append(c)
        order += left
        seeds, columns = space.seeds.tolist(), space.columns.tolist()
        return Rule(
            tuple((r % space.operators, tuple(seeds[r // space.operators])) for r in order), tuple(tuple(columns[c]) for c in pivots), level
        )
