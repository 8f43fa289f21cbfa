"""Sectors of a trace, made of what their rules came to at the point where a reduction is recorded.

`FirstPoint.results` evaluates all rules of a sector, as `RuleResult`s with their entries as sums that hold at every point;
`finish_sector` makes a `SectorTrace` of them; `lay_out` gives its cells to every node, of the columns that reach it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ibp.identities import Equations, Operator
from ibp.residues import elimination_plan, invert
from ibp.rules import CompiledRule
from ibp.sector_work import REPLAY_ELEMENTS
from ibp.sectors import Layout, Sector, sectors_of
from ibp.tables import is_member, merge, run_starts
from ibp.trace import Replays, Round, SectorTrace

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


@dataclass(frozen=True, eq=False)
class SectorPart:
    """What matters of a sector at the first point: node first + k of the trace has key live[k] and depth level[k]."""

    first: int
    live: np.ndarray
    level: np.ndarray
    results: list[RuleResult]


def finish_sector(part: SectorPart, numbers: dict[tuple[int, int], int]) -> SectorTrace:
    """Number the lines of a sector's values. numbers: of all nodes, by (sector, key)."""
    node = {key: i for i, key in enumerate(part.live.tolist())}
    chosen, sources, targets = [], [], []
    for result in part.results:
        source, below, key, _ = result.edges
        kept = np.array([k in node for k in source.tolist()], bool)
        chosen.append(kept)
        sources += [node[k] for k in source[kept].tolist()]
        targets += [numbers[b, k] for b, k in zip(below[kept].tolist(), key[kept].tolist())]
    source, target = np.array(sources, np.int64), np.array(targets, np.int64)
    end = part.first + len(part.live)
    outer = (target < part.first) | (target >= end)
    order = np.lexsort((target, outer))
    line = np.argsort(order)
    source, target, inner = source[order] + part.first, target[order], int((~outer).sum())
    replays, direct, begin, checked = [], [], 0, 0
    for result, kept in zip(part.results, chosen):
        count = int(kept.sum())
        cells = _cells(result, kept, line[begin : begin + count], len(line), node)
        begin += count
        if cells is not None and result.rule.rows == 1:
            members, used, lines, vanishing = cells
            zeros = len(source) + len(part.live) + checked + np.arange(len(vanishing))
            checked += len(vanishing)
            direct.append(_direct(result, members, np.concatenate([used, vanishing]), np.concatenate([lines, zeros])))
        elif cells is not None:
            replays.append(_replays(result, *cells))
    starts = run_starts(target[:inner])
    levels, inner_starts = [], []
    bounds = [*run_starts(part.level).tolist(), len(part.live)]
    for a, b in itertools.pairwise(bounds):
        first, last = np.searchsorted(target[:inner], [part.first + a, part.first + b]).tolist()
        levels.append((part.first + a, part.first + b, first, last))
        inner_starts.append(starts[(starts >= first) & (starts < last)] - first)
    outer_start = run_starts(target[inner:])
    lines = _join_rounds(direct), tuple(replays), tuple(levels), source, tuple(inner_starts), outer_start, target[inner:][outer_start]
    return SectorTrace(part.first, len(part.live), checked, *lines)


def _cells(
    result: RuleResult, kept: np.ndarray, line: np.ndarray, edges: int, node: dict[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """Of a rule's integrals those that matter: (members [N]; used cells, ascending, and their lines; vanishing cells)."""
    columns = len(result.rule.start)
    places = [node.get(key, -1) for key in result.keys.tolist()]
    members = np.array([i for i, place in enumerate(places) if place >= 0], np.int64)
    if not len(members):
        return None
    position = np.full(len(places), -1)
    position[members] = np.arange(len(members))
    cell = result.cell[kept]
    pivots = np.arange(len(members)) * columns + result.rule.heavier
    used = np.concatenate([position[cell // columns] * columns + cell % columns, pivots])
    lines = np.concatenate([line, edges + np.array(places)[members]])
    order = np.argsort(used, kind="stable")
    vanishing = position[result.zero_member] >= 0
    zeros = position[result.zero_member[vanishing]] * columns + result.zero_column[vanishing]
    return members, used[order], lines[order], np.sort(zeros)


def _replays(result: RuleResult, members: np.ndarray, used: np.ndarray, line: np.ndarray, vanishing: np.ndarray) -> Replays:
    rule, rounds = result.rule, []
    for number in itertools.count():
        entries = [entry for entry, parts in enumerate(result.factors) if len(parts) > number]
        if not entries:
            break
        parts = [result.factors[entry][number] for entry in entries]
        factor = np.stack([factor[members] for _, factor in parts], axis=1).astype(np.int32)
        rounds.append(Round(np.array(entries), np.array([coefficient for coefficient, _ in parts]), factor))
    pattern = np.zeros((rule.rows - 1, rule.rows), bool)
    pattern[rule.pivot_place] = True
    own = rule.row, rule.start, rule.rows, rule.pivot_entry, rule.pivot_place
    return Replays(tuple(rounds), *own, elimination_plan(pattern), used, line, vanishing)


def _direct(result: RuleResult, members: np.ndarray, used: np.ndarray, line: np.ndarray) -> list[Round]:
    """Cells of a rule of one row, whose entries are its columns."""
    columns, rounds = len(result.rule.start), []
    member, entry = members[used // columns], used % columns
    lengths = np.array([len(parts) for parts in result.factors])
    for number in range(lengths.max()):
        some = np.flatnonzero(lengths[entry] > number)
        factor, coefficient = np.empty(len(some), np.int64), np.empty(len(some), np.int64)
        for e in np.unique(entry[some]).tolist():
            there = entry[some] == e
            coefficient[there] = result.factors[e][number][0]
            factor[there] = result.factors[e][number][1][member[some[there]]]
        rounds.append(Round(line[some], coefficient, factor.astype(np.int32)))
    return rounds


def _join_rounds(parts: list[list[Round]]) -> tuple[Round, ...]:
    """Sums of several rules as sums of all their lines, by line."""
    rounds = []
    for group in itertools.zip_longest(*parts):
        place, coefficient, factor = (np.concatenate([getattr(one, f.name) for one in group if one]) for f in fields(Round))
        order = np.argsort(place, kind="stable")
        rounds.append(Round(place[order], coefficient[order], factor[order]))
    return tuple(rounds)


class Cells:
    """Which cells a node has: one for each column that leads to its sector. cells: (first node, columns) of each part in order."""

    def __init__(self, first: np.ndarray, columns: Sequence[np.ndarray], nodes: int):
        self.first, self.columns = first, columns
        sizes = np.diff(first, append=nodes) * [len(some) for some in columns]
        self.base = np.cumsum(sizes) - sizes
        self.count = int(sizes.sum())

    def of(self, node: int) -> dict[int, int]:
        """{column: cell}"""
        part = part_of(self.first, node)
        begin = int(self.base[part] + (node - self.first[part]) * len(self.columns[part]))
        return {column: begin + k for k, column in enumerate(self.columns[part].tolist())}

    def below(self, nodes: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Cells [N, C] of nodes in these columns, which all lead to them."""
        parts = part_of(self.first, nodes)
        result = np.empty((len(nodes), len(columns)), np.int64)
        for q in np.unique(parts).tolist():
            begin = self.base[q] + (nodes[parts == q] - self.first[q]) * len(self.columns[q])
            result[parts == q] = begin[:, None] + np.searchsorted(self.columns[q], columns)
        return result


def part_of(first: np.ndarray, nodes: Any) -> Any:
    """Numbers of the parts with these nodes; of several with the same first node only the last has any."""
    return np.searchsorted(first, nodes, side="right") - 1


def lay_out(
    parts: Sequence[SectorPart], numbers: dict[tuple[int, int], int], starts: Sequence[tuple[int, int]]
) -> tuple[tuple[SectorTrace, ...], Cells]:
    """The sectors of a trace. numbers: of all nodes, by (sector, key); starts: (node, column) where something begins."""
    first = np.array([part.first for part in parts], np.int64)
    reach: list[set[int]] = [set() for _ in parts]
    for node, column in starts:
        reach[part_of(first, node)].add(column)
    sectors = {}
    for number, part in enumerate(parts):
        if len(part.live):
            sectors[number] = finish_sector(part, numbers)
            for below in np.unique(part_of(first, sectors[number].outer_target)).tolist():
                reach[below] |= reach[number]
    columns = [np.array(sorted(some), np.int64) for some in reach]
    cells = Cells(first, columns, len(numbers))
    laid = (
        replace(sector, columns=columns[k], base=int(cells.base[k]), outer_cells=cells.below(sector.outer_target, columns[k]))
        for k, sector in sectors.items()
    )
    return tuple(laid), cells
