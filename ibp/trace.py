"""A reduction recorded once, as array operations."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from executors.inline import InlineExecutor
from ibp.carrying import propagate
from ibp.console import Reporter
from ibp.controller import Controller
from ibp.errors import ReductionError
from ibp.families import Index
from ibp.identities import Operator, evaluate_identities, show_point, unit_column
from ibp.problems import Outcome, Problem
from ibp.replay import CompiledRule
from ibp.residues import Step, elimination_plan, invert
from ibp.sector_reduction import SectorReduction, reduce_sector
from ibp.sector_work import REPLAY_ELEMENTS
from ibp.sectors import Sector, sector_of, sector_order, sectors_of, show
from ibp.store import Store
from ibp.tables import is_member, merge, run_starts, sum_by_key


@dataclass(frozen=True, eq=False)
class Round:
    """Summands of entries `place` [M]: number `coefficient` [M] of the identities' coefficients, times `factor` [M] or [N, M]."""

    place: np.ndarray
    coefficient: np.ndarray
    factor: np.ndarray


@dataclass(frozen=True, eq=False)
class Replays:
    """What a rule of several rows does in a sector: N integrals by E entries in C columns, without anything that depends on the point.

    rounds: the entries [N, E] as sums, the first round has all of them; row [E], start [C], pivot_entry and pivot_place as in CompiledRule.
    plan: of the elimination. Cells of the array [N, C] of combined rows, as flat numbers: those in `used`, ascending, become lines `line`
    of the sector's values; those in `vanishing` were zero at the first point.
    """

    rounds: tuple[Round, ...]
    row: np.ndarray
    start: np.ndarray
    rows: int
    pivot_entry: np.ndarray
    pivot_place: tuple[np.ndarray, np.ndarray]
    plan: tuple[Step, ...]
    used: np.ndarray
    line: np.ndarray
    vanishing: np.ndarray


@dataclass(frozen=True, eq=False)
class SectorTrace:
    """The integrals of a sector that matter, nodes first … first + count - 1 of the trace, heavier ones in lower levels.

    Lines of the sector's values: inner edges by target, then outer ones (to other sectors and to ends) by target, then the pivots of the
    nodes, then what must vanish (`checked` lines). direct: the lines that come from rules of one row, as sums; replays: the others.
    levels: (begin, end, first inner edge, last one) for each level; an edge carries source * value / -pivot to its target; source
    [edges] are nodes of the trace; inner_starts [levels] and outer_start: where the runs of edges with equal targets begin;
    outer_target: these targets. columns [W]: of the trace, those that reach the sector; the node first + k has cells
    base + W k … base + W (k + 1) - 1; outer_cells [targets, W]: those of the same columns of the outer targets.
    """

    first: int
    count: int
    checked: int
    direct: tuple[Round, ...]
    replays: tuple[Replays, ...]
    levels: tuple[tuple[int, int, int, int], ...]
    source: np.ndarray
    inner_starts: tuple[np.ndarray, ...]
    outer_start: np.ndarray
    outer_target: np.ndarray
    columns: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    base: int = 0
    outer_cells: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))

    @property
    def inner(self) -> int:
        return self.levels[-1][3] if self.levels else 0


@dataclass(frozen=True, eq=False)
class Trace:
    """A whole reduction, ready for any number of points: which rule reduces which integral, and where its terms go.

    A cell is a node in one of the columns that reach its sector. starts: cells of the integrals in the columns, which have `weights`;
    functions: (column, number of the master) of the coefficients that are not zero, ends: their cells; dead: cells that received zero at
    the first point.
    """

    operators: tuple[Operator, ...]
    targets: tuple[Index, ...]
    sectors: tuple[SectorTrace, ...]
    cells: int
    starts: np.ndarray
    ends: np.ndarray
    end_integrals: tuple[Index, ...]
    dead: np.ndarray
    functions: tuple[tuple[int, int], ...]
    weights: Operator = ()

    @property
    def names(self) -> tuple[tuple[Any, Index], ...]:
        """(name of a column, master) of each coefficient."""
        return tuple((self.targets[column], self.end_integrals[end]) for column, end in self.functions)

    @property
    def bytes_per_point(self) -> int:
        return 8 * (self.cells + 4 * max((len(sector.source) for sector in self.sectors), default=0))


class Recorder(InlineExecutor):
    """Reduces sectors here, noting which rule reduces which integrals: {sector: [(rule, keys)]}."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: dict[int, list[tuple[CompiledRule, np.ndarray]]] = {}

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        if fn is not reduce_sector:
            return super().submit(fn, *args, **kwargs)
        recorded = self.recorded.setdefault(args[0].bits, [])
        work = SectorReduction(replace(args[0], steps={}), note=lambda *reduced: recorded.append(reduced))
        future: Future = Future()
        future.set_result(replace(work.run(), new_steps={}))  # a step at a random point is of no use to anybody
        return future


def record_trace(problem: Problem, shelves: Sequence[Store], progress: Reporter) -> tuple[Trace, Outcome]:
    """Reduce a problem at its point, and what further points need of that. Raises ReductionError where something stays unreduced.

    Combinations must be Columns, integrals must not be mapped. The trace has the rows of everything by identities alone: also those of
    preferred masters and of the relations that symmetries give; at each point they are to be put in.
    """
    recorder = Recorder()
    controller = Controller(problem, recorder, shelves, progress)
    outcome = controller.run()
    if outcome.unreduced:
        raise ReductionError(
            f"{len(outcome.unreduced)} integrals are not reducible at {show_point(problem.point)}, first {show(outcome.unreduced[0])}; "
            "if that is a singular point, take another, or --symbols"
        )
    together, symbols = controller.together, len(problem.family.symbols)
    columns = [unit_column(target, symbols) if isinstance(target, tuple) else target for target in together]
    return _TraceBuilder(controller, recorder.recorded).build({column.name: column.terms for column in columns}), outcome


class _TraceBuilder:
    """Turns what was recorded at one point into a Trace."""

    def __init__(self, controller: Controller, recorded: dict[int, list[tuple[CompiledRule, np.ndarray]]]):
        ground, prepared = controller.ground, controller.ground.prepared
        self.operators, self.equations, self.layout = prepared.operators, prepared.equations, ground.layout
        self.point, self.p, self.recorded = controller.problem.point, controller.problem.point.prime, recorded
        self.nonzero = np.array(sorted(prepared.nonzero), np.int64)
        self.stops = {bits: Sector(self.layout, bits).encode(np.array(some)) for bits, some in ground.masters.items() if some}
        self.sectors = {bits: Sector(self.layout, bits) for bits in prepared.nonzero}
        # which of 1, a_1, … a_n have a coefficient in each term of the identities
        self.present = [[i for i, *_ in coefficients] for operator in self.operators for _, coefficients in operator]
        self.numbers: dict[tuple[int, int], int] = {}  # (sector, key): node
        self.ends: list[tuple[int, Index]] = []
        self.dead: list[int] = []

    def build(self, columns: dict[Any, Operator]) -> Trace:
        pending: dict[int, list] = {}
        terms = [(column, *term) for column, combination in enumerate(columns.values()) for term in combination]
        terms = [term for term in terms if sector_of(term[1]) in self.sectors]
        weights = tuple(term[1:] for term in terms)
        values = evaluate_identities([weights], self.point).coefficient.sum(1) % self.p if weights else ()
        starts = []
        for (column, target, _), value in zip(terms, values):
            bits = sector_of(target)
            line = np.zeros((1, len(columns)), np.int64)
            line[0, column] = value
            key = self.sectors[bits].encode(np.array([target]))
            pending.setdefault(bits, []).append((key, line))
            starts.append((bits, key[0], column))
        parts, functions = [], []
        while pending:
            bits = max(pending, key=sector_order)
            keys, coefficients = (np.concatenate(group) for group in zip(*pending.pop(bits)))
            part = self._sector(bits, *sum_by_key(keys, coefficients, self.p, keep_zeros=True), pending)
            parts.append(part)
            functions += part.functions
        starts = [(self.numbers[bits, key], column) for bits, key, column in starts]
        sectors, cells = self._lay_out(parts, starts)
        functions.sort()
        ends = [cells(self.ends[end][0])[column] for column, end in functions]
        reached = [cell for number in (*(number for number, _ in self.ends), *self.dead) for cell in cells(number).values()]
        return Trace(
            self.operators,
            tuple(columns),
            sectors,
            self.cells,
            np.array([cells(node)[column] for node, column in starts], np.int64),
            np.array(ends, np.int64),
            tuple(integral for _, integral in self.ends),
            np.setdiff1d(np.array(reached, np.int64), ends),
            tuple(functions),
            weights,
        )

    def _lay_out(
        self, parts: list[_SectorPart], starts: list[tuple[int, int]]
    ) -> tuple[tuple[SectorTrace, ...], Callable[[int], dict[int, int]]]:
        """The sectors, and a map from a node to its cells by column: only columns that lead to a sector have cells there."""
        first = np.array([part.first for part in parts], np.int64)
        reach: list[set[int]] = [set() for _ in parts]

        def part_of(nodes: Any) -> Any:
            return np.searchsorted(first, nodes, side="right") - 1  # of several with the same first node only the last has any

        for node, column in starts:
            reach[part_of(node)].add(column)
        sectors = {}
        for number, part in enumerate(parts):
            if len(part.live):
                sectors[number] = self._finish(part)
                for below in np.unique(part_of(sectors[number].outer_target)).tolist():
                    reach[below] |= reach[number]
        columns = [np.array(sorted(some), np.int64) for some in reach]
        sizes = np.diff(first, append=len(self.numbers)) * [len(some) for some in columns]
        base = np.cumsum(sizes) - sizes
        self.cells = int(sizes.sum())

        def cells(node: int) -> dict[int, int]:
            q = part_of(node)
            begin = int(base[q] + (node - first[q]) * len(columns[q]))
            return {column: begin + k for k, column in enumerate(columns[q].tolist())}

        laid = []
        for number, sector in sectors.items():
            targets = sector.outer_target
            below = part_of(targets)
            outer = np.empty((len(targets), len(columns[number])), np.int64)
            for q in np.unique(below).tolist():
                begin = base[q] + (targets[below == q] - first[q]) * len(columns[q])
                outer[below == q] = begin[:, None] + np.searchsorted(columns[q], columns[number])
            laid.append(replace(sector, columns=columns[number], base=int(base[number]), outer_cells=outer))
        return tuple(laid), cells

    def _sector(self, bits: int, keys: np.ndarray, coefficients: np.ndarray, pending: dict[int, list]) -> _SectorPart:
        """Evaluate a sector at the first point, number its nodes, and pass on what falls into lower ones."""
        sector, stops = self.sectors[bits], self.stops.get(bits, keys[:0])
        results = self._results(bits, sector)
        source, below, key, value = (
            (np.concatenate(group) for group in zip(*(result.edges for result in results))) if results else 4 * (keys[:0],)
        )
        nodes = np.unique(np.concatenate([keys, source, key[below == bits]]))
        block = np.zeros((len(nodes), coefficients.shape[1]), np.int64)
        block[np.searchsorted(nodes, keys)] = coefficients
        own = (below == bits) & ~is_member(source, stops)
        place = np.searchsorted(nodes, source)
        propagate(block, place[own], np.searchsorted(nodes, key[own]), value[own], self.p)
        stop, alive = is_member(nodes, np.sort(stops)), block.any(1)
        arrived = is_member(nodes, keys)
        arrived[np.searchsorted(nodes, key[(below == bits) & alive[place]])] = True
        live = nodes[alive & ~stop]
        if not is_member(live, np.sort(np.concatenate([keys[:0], *(result.keys for result in results)]))).all():
            raise ReductionError(f"sector {bits}: an integral that matters has no rule")
        functions = []
        level = _levels(live, source, key, (below == bits))
        order = np.lexsort((-np.arange(len(live)), level))
        live, level = live[order], level[order]
        first = len(self.numbers)
        self.numbers.update(((bits, node), first + i) for i, node in enumerate(live.tolist()))
        for node in np.flatnonzero(arrived & ~(alive & ~stop)).tolist():
            number = self.numbers[bits, nodes[node]] = len(self.numbers)
            if stop[node]:
                functions += [(column, len(self.ends)) for column in np.flatnonzero(block[node]).tolist()]
                self.ends.append((number, tuple(sector.decode(nodes[node : node + 1])[0].tolist())))
            else:
                self.dead.append(number)
        outer = (below != bits) & alive[place] & ~stop[place]
        carried = block[place[outer]] * value[outer, None] % self.p
        for b in np.unique(below[outer]).tolist():
            there = below[outer] == b
            pending.setdefault(b, []).append((key[outer][there], carried[there]))
        return _SectorPart(bits, first, live, level, results, functions)

    def _results(self, bits: int, sector: Sector) -> list[_RuleResult]:
        """One-step results of everything recorded in a sector, each integral once."""
        results: list[_RuleResult] = []
        seen = np.zeros(0, self.layout.dtype)
        by_rule: dict[CompiledRule, list[np.ndarray]] = {}
        for rule, keys in self.recorded.get(bits, ()):
            by_rule.setdefault(rule, []).append(keys)
        for rule, parts in by_rule.items():
            keys = np.unique(np.concatenate(parts))
            keys = keys[~is_member(keys, seen)]
            if len(keys):
                seen = merge(seen, keys)
                results.append(self._evaluate(bits, sector, rule, keys))
        return results

    def _evaluate(self, bits: int, sector: Sector, rule: CompiledRule, keys: np.ndarray) -> _RuleResult:
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
        factors = [self.polynomial_factors(rule, entry, indices) for entry in range(len(rule.term))]
        vanishing = (values == 0) & ~self._structural_zeros(rule, factors)
        vanishing[:, rule.heavier] = False
        zero_member, zero_column = np.nonzero(vanishing)
        inside = is_member(sectors_of(indices[zero_member] + rule.offset[zero_column]), self.nonzero)
        cell = member * values.shape[1] + column
        return _RuleResult(rule, keys, factors, (keys[member], below, key, value), cell, zero_member[inside], zero_column[inside])

    def polynomial_factors(self, rule: CompiledRule, entry: int, indices: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """An entry of a rule as a sum: [(number of a coefficient of the identities, its factors [N] at the targets)]."""
        term, seed, width = int(rule.term[entry]), rule.seed[entry], self.equations.n + 1
        factors = [
            (term * width + i, indices[:, i - 1] + seed[i - 1] if i else np.ones(len(indices), np.int64)) for i in self.present[term]
        ]
        return factors or [(term * width, np.zeros(len(indices), np.int64))]

    def _structural_zeros(self, rule: CompiledRule, factors: list[list[tuple[int, np.ndarray]]]) -> np.ndarray:
        """Bool [N, C]: zero at every point, because the factors a_i of all terms of a column are zero."""
        column = np.repeat(np.arange(len(rule.start)), np.diff([*rule.start, len(rule.term)]))
        zero = np.ones((len(factors[0][0][1]), len(rule.start)), bool)
        for entry, parts in enumerate(factors):
            for _, factor in parts:
                zero[:, column[entry]] &= factor == 0
        return zero

    def _finish(self, part: _SectorPart) -> SectorTrace:
        """Number the lines of a sector's values, once all nodes have numbers."""
        node = {key: i for i, key in enumerate(part.live.tolist())}
        chosen, sources, targets = [], [], []
        for result in part.results:
            source, below, key, _ = result.edges
            kept = np.array([k in node for k in source.tolist()], bool)
            chosen.append(kept)
            sources += [node[k] for k in source[kept].tolist()]
            targets += [self.numbers[b, k] for b, k in zip(below[kept].tolist(), key[kept].tolist())]
        source, target = np.array(sources, np.int64), np.array(targets, np.int64)
        end = part.first + len(part.live)
        outer = (target < part.first) | (target >= end)
        order = np.lexsort((target, outer))
        line = np.empty(len(order), np.int64)
        line[order] = np.arange(len(order))
        source, target, inner = source[order] + part.first, target[order], int((~outer).sum())
        replays, direct, begin, checked = [], [], 0, 0
        for result, kept in zip(part.results, chosen):
            count = int(kept.sum())
            cells = self._cells(result, kept, line[begin : begin + count], len(line), node)
            begin += count
            if cells is not None and result.rule.rows == 1:
                members, used, lines, vanishing = cells
                zeros = len(source) + len(part.live) + checked + np.arange(len(vanishing))
                checked += len(vanishing)
                direct.append(self._direct(result, members, np.concatenate([used, vanishing]), np.concatenate([lines, zeros])))
            elif cells is not None:
                replays.append(self._replays(result, *cells))
        starts = run_starts(target[:inner])
        levels, inner_starts = [], []
        bounds = [*run_starts(part.level).tolist(), len(part.live)]
        for a, b in itertools.pairwise(bounds):
            first, last = np.searchsorted(target[:inner], [part.first + a, part.first + b]).tolist()
            levels.append((part.first + a, part.first + b, first, last))
            inner_starts.append(starts[(starts >= first) & (starts < last)] - first)
        outer_start = run_starts(target[inner:])
        return SectorTrace(
            part.first,
            len(part.live),
            checked,
            _join_rounds(direct),
            tuple(replays),
            tuple(levels),
            source,
            tuple(inner_starts),
            outer_start,
            target[inner:][outer_start],
        )

    def _cells(
        self, result: _RuleResult, kept: np.ndarray, line: np.ndarray, edges: int, node: dict[int, int]
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

    def _replays(self, result: _RuleResult, members: np.ndarray, used: np.ndarray, line: np.ndarray, vanishing: np.ndarray) -> Replays:
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

    def _direct(self, result: _RuleResult, members: np.ndarray, used: np.ndarray, line: np.ndarray) -> list[Round]:
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


@dataclass(frozen=True, eq=False)
class _RuleResult:
    """A rule at the first point: edges (source key, sector, key, value), of the cells `cell` of [N, C]; zeros that no index explains."""

    rule: CompiledRule
    keys: np.ndarray
    factors: list[list[tuple[int, np.ndarray]]]
    edges: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    cell: np.ndarray
    zero_member: np.ndarray
    zero_column: np.ndarray


@dataclass(frozen=True, eq=False)
class _SectorPart:
    bits: int
    first: int
    live: np.ndarray
    level: np.ndarray
    results: list[_RuleResult]
    functions: list[tuple[int, int]]


def _levels(live: np.ndarray, source: np.ndarray, key: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Length [N] of the longest path to each of the sorted keys along the edges among them; every edge leads to a smaller key."""
    inside = own & is_member(source, live) & is_member(key, live)
    begin, end = np.searchsorted(live, source[inside]), np.searchsorted(live, key[inside])
    level = np.zeros(len(live), np.int64)
    waits = np.bincount(end, minlength=len(live))
    order = np.argsort(begin, kind="stable")
    begin, end = begin[order], end[order]
    first = np.searchsorted(begin, np.arange(len(live) + 1))
    ready, depth = np.flatnonzero(waits == 0), 0
    while len(ready):
        level[ready] = depth
        length = first[ready + 1] - first[ready]
        edge = np.repeat(first[ready] - np.cumsum(length) + length, length) + np.arange(int(length.sum()))
        np.subtract.at(waits, end[edge], 1)
        hit = np.unique(end[edge])
        ready, depth = hit[waits[hit] == 0], depth + 1
    return level
