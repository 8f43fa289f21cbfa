"""What rules come to at the point where a reduction is recorded: which terms they lead to, and which are zero there by accident.

`FirstPoint.results` evaluates all rules of a sector; each `RuleResult` also has its entries as sums that hold at every point.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ibp.identities import Equations, Operator
from ibp.replay import CompiledRule
from ibp.residues import invert
from ibp.sector_work import REPLAY_ELEMENTS
from ibp.sectors import Layout, Sector, sectors_of
from ibp.tables import is_member, merge

Recorded = Sequence[tuple[CompiledRule, np.ndarray]]  # rules, and keys of the integrals that each reduced


@dataclass(frozen=True, eq=False)
class RuleResult:
    """A rule at the first point: edges (source key, sector, key, value), of the cells `cell` of [N, C]; zeros that no index explains."""

    rule: CompiledRule
    keys: np.ndarray
    factors: list[list[tuple[int, np.ndarray]]]
    edges: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    cell: np.ndarray
    zero_member: np.ndarray
    zero_column: np.ndarray


class FirstPoint:
    """Identities at the point where a reduction is recorded, and its sectors. nonzero: their bit masks."""

    def __init__(self, operators: Sequence[Operator], equations: Equations, layout: Layout, nonzero: Iterable[int]):
        self.p, self.width, self.layout = equations.prime, equations.n + 1, layout
        self.sectors = {bits: Sector(layout, bits) for bits in sorted(nonzero)}
        self.nonzero = np.array(list(self.sectors), np.int64)
        # which of 1, a_1, … a_n have a coefficient in each term of the identities
        self.present = [[i for i, *_ in coefficients] for operator in operators for _, coefficients in operator]

    def results(self, sector: Sector, recorded: Recorded) -> list[RuleResult]:
        """One-step results of everything recorded in a sector, each integral once."""
        results: list[RuleResult] = []
        seen = np.zeros(0, self.layout.dtype)
        by_rule: dict[CompiledRule, list[np.ndarray]] = {}
        for rule, keys in recorded:
            by_rule.setdefault(rule, []).append(keys)
        for rule, parts in by_rule.items():
            keys = np.unique(np.concatenate(parts))
            keys = keys[~is_member(keys, seen)]
            if len(keys):
                seen = merge(seen, keys)
                results.append(self._evaluate(sector, rule, keys))
        return results

    def _evaluate(self, sector: Sector, rule: CompiledRule, keys: np.ndarray) -> RuleResult:
        indices = sector.decode(keys)
        targets = np.column_stack([np.ones(len(keys)), indices])
        size = max(REPLAY_ELEMENTS // rule.form.shape[1], 1)
        values = np.concatenate([rule.replay(targets[i : i + size], self.p) for i in range(0, len(keys), size)])
        pivot = values[:, rule.heavier].copy()
        values[:, rule.heavier] = 0
        member, column = np.nonzero(values)
        terms = indices[member] + rule.offset[column]
        below = sectors_of(terms)
        kept = is_member(below, self.nonzero)
        member, column, terms, below = member[kept], column[kept], terms[kept], below[kept]
        key = np.zeros(len(terms), self.layout.dtype)
        for b in np.unique(below).tolist():
            key[below == b] = self.sectors[b].encode(terms[below == b])
        value = values[member, column] * (self.p - invert(pivot, self.p))[member] % self.p
        factors = [self._factors(rule, entry, indices) for entry in range(len(rule.term))]
        vanishing = (values == 0) & ~_structural_zeros(rule, factors)
        vanishing[:, rule.heavier] = False
        zero_member, zero_column = np.nonzero(vanishing)
        inside = is_member(sectors_of(indices[zero_member] + rule.offset[zero_column]), self.nonzero)
        cell = member * values.shape[1] + column
        return RuleResult(rule, keys, factors, (keys[member], below, key, value), cell, zero_member[inside], zero_column[inside])

    def _factors(self, rule: CompiledRule, entry: int, indices: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """An entry of a rule as a sum: [(number of a coefficient of the identities, its factors [N] at the targets)]."""
        term, seed, width = int(rule.term[entry]), rule.seed[entry], self.width
        factors = [
            (term * width + i, indices[:, i - 1] + seed[i - 1] if i else np.ones(len(indices), np.int64)) for i in self.present[term]
        ]
        return factors or [(term * width, np.zeros(len(indices), np.int64))]


def _structural_zeros(rule: CompiledRule, factors: list[list[tuple[int, np.ndarray]]]) -> np.ndarray:
    """Bool [N, C]: zero at every point, because the factors a_i of all terms of a column are zero."""
    column = np.repeat(np.arange(len(rule.start)), np.diff([*rule.start, len(rule.term)]))
    zero = np.ones((len(factors[0][0][1]), len(rule.start)), bool)
    for entry, parts in enumerate(factors):
        for _, factor in parts:
            zero[:, column[entry]] &= factor == 0
    return zero
