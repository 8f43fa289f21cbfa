"""A rule replayed on many integrals of a sector at once: `CompiledRule`, made at one point, in array operations."""

from __future__ import annotations

import numpy as np

from ibp.identities import Equations
from ibp.null_vectors import null_vector
from ibp.residues import invert
from ibp.rules import Rule
from ibp.sectors import MAX_INDEX, Sector
from ibp.tables import run_numbers, run_starts


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
