"""Local elimination around one integral finds the rows that reduce it.

A `RuleFinder` puts the identities of a neighbourhood, or those it is given, into a `SearchSpace`, eliminates what is heavier than the
target, and makes a `Rule` of the best combination that is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from ibp.elimination import eliminate_heavier, is_reducible, subtract
from ibp.identities import Equations
from ibp.rules import NEIGHBOURHOODS, Action, CompiledRule, CornerRegion, Rule, level_of
from ibp.sectors import Sector, integrals_near_corner
from ibp.tables import run_numbers

SEARCH_ROWS = 150_000  # a neighbourhood with more identities than this is not tried
REGION_ROWS = 8_000  # nor a region from the corner with more than this, of which few fall away before the elimination
REGION_REACH = 120  # nor one that goes further: rules are stored as int8
MOSTLY_IN_VAIN = (1, 3, 4, 5, 6)  # levels where few of the searches find something


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
            self._spaces[level] = self._make_space(neighbourhood.seeds(self.sector))
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
        return self.find_in(space, target, level_of(self.sector, seeds), equations, rows) if space.complete else None

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
        found = [(sorted(rows), self._rule(space, {r: matrix[r] for r in sorted(rows)}, equations.prime, level)) for rows in combinations]
        best = min(found, key=lambda pair: (self.heaviest_result(pair[1], target, equations), pair[0]), default=None)
        return best and best[1]

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
        rows = tuple((r % space.operators, tuple(seeds[r // space.operators])) for r in order)
        return Rule(rows, tuple(tuple(columns[c]) for c in pivots), level)
