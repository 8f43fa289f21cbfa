"""Recording a reduction at one point, and what further points need of that.

`record_trace` notes which rule reduces which integral, then walks down the sectors: integrals become nodes of a `Trace`, masters its ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np

from executors.base import InlineExecutor
from ibp.carrying import propagate
from ibp.console import Reporter
from ibp.controller import Controller
from ibp.errors import ReductionError
from ibp.families import Index
from ibp.identities import Operator, evaluate_identities, show_point, unit_column
from ibp.problems import Outcome, Problem
from ibp.rules import CompiledRule
from ibp.sector_reduction import SectorReduction, reduce_sector
from ibp.sector_traces import FirstPoint, SectorPart, lay_out
from ibp.sectors import sector_of, sector_order, show
from ibp.store import Store
from ibp.tables import is_member, run_numbers, sum_by_key
from ibp.trace import Trace


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


def record_trace(problem: Problem, shelves: Sequence[Store], reporter: Reporter) -> tuple[Trace, Outcome]:
    """Reduce a problem at its point, and what further points need of that. Raises ReductionError where something stays unreduced.

    Combinations must be Columns, integrals must not be mapped. The trace has the rows of everything by identities alone: also those of
    preferred masters and of the relations that symmetries give; at each point they are to be put in.
    """
    recorder = Recorder()
    controller = Controller(problem, recorder, shelves, reporter)
    outcome = controller.run()
    if outcome.unreduced:
        raise ReductionError(
            f"{len(outcome.unreduced)} integrals are not reducible at {show_point(problem.point)}, first {show(outcome.unreduced[0])}; "
            "if that is a singular point, take another, or --symbols"
        )
    together, symbols = controller.together, len(problem.family.symbols)
    columns = (unit_column(target, symbols) if isinstance(target, tuple) else target for target in together)
    combinations = {column.name: column.terms for column in columns}  # a target may be a preferred master, too
    ground, prepared = controller.ground, controller.ground.prepared
    operators = prepared.operators
    point = FirstPoint(operators, prepared.equations, ground.layout, prepared.nonzero)
    terms = [(number, *term) for number, own in enumerate(combinations.values()) for term in own if sector_of(term[0]) in point.sectors]
    weights = tuple(term[1:] for term in terms)
    values = evaluate_identities([weights], problem.point).coefficient.sum(1) % point.p if weights else ()
    starts = [(column, target, int(value)) for (column, target, _), value in zip(terms, values)]
    walk = _Walk(point, recorder.recorded, ground.masters)
    return walk.run(tuple(combinations), starts, operators, weights), outcome


class _Walk:
    """From the top sector down: evaluates each at the first point, numbers its nodes, and passes on what falls into lower ones."""

    def __init__(self, point: FirstPoint, recorded: dict[int, list[tuple[CompiledRule, np.ndarray]]], masters: dict[int, Sequence[Index]]):
        self.point, self.recorded, self.masters = point, recorded, masters
        self.numbers: dict[tuple[int, int], int] = {}  # (sector, key): node
        self.pending: dict[int, list] = {}
        self.parts: list[SectorPart] = []
        self.functions: list[tuple[int, int]] = []  # (column, end)
        self.ends: list[tuple[int, Index]] = []  # (node, master)
        self.dead: list[int] = []

    def run(
        self, names: tuple[Any, ...], terms: Sequence[tuple[int, Index, int]], operators: tuple[Operator, ...], weights: Operator
    ) -> Trace:
        """terms: (column, integral, coefficient)."""
        starts = []
        for column, target, value in terms:
            bits, line = sector_of(target), np.zeros((1, len(names)), np.int64)
            line[0, column] = value
            key = self.point.sectors[bits].encode(np.array([target]))
            self.pending.setdefault(bits, []).append((key, line))
            starts.append((bits, key[0], column))
        while self.pending:
            bits = max(self.pending, key=sector_order)
            keys, coefficients = (np.concatenate(group) for group in zip(*self.pending.pop(bits)))
            self._sector(bits, *sum_by_key(keys, coefficients, self.point.p, keep_zeros=True))
        starts = [(self.numbers[bits, key], column) for bits, key, column in starts]
        sectors, cells = lay_out(self.parts, self.numbers, starts)
        self.functions.sort()
        ends = [cells.of(self.ends[end][0])[column] for column, end in self.functions]
        reached = [cell for number in (*(number for number, _ in self.ends), *self.dead) for cell in cells.of(number).values()]
        return Trace(
            operators,
            names,
            sectors,
            cells.count,
            np.array([cells.of(node)[column] for node, column in starts], np.int64),
            np.array(ends, np.int64),
            tuple(integral for _, integral in self.ends),
            np.setdiff1d(np.array(reached, np.int64), ends),
            tuple(self.functions),
            weights,
        )

    def _sector(self, bits: int, keys: np.ndarray, coefficients: np.ndarray) -> None:
        """keys [N] of integrals of a sector, with their coefficients [N, columns] at the first point."""
        sector, p, masters = self.point.sectors[bits], self.point.p, self.masters.get(bits)
        stops = sector.encode(np.array(masters)) if masters else keys[:0]
        results = self.point.results(sector, self.recorded.get(bits, ()))
        source, below, key, value = (
            (np.concatenate(group) for group in zip(*(result.edges for result in results))) if results else 4 * (keys[:0],)
        )
        nodes = np.unique(np.concatenate([keys, source, key[below == bits]]))
        block = np.zeros((len(nodes), coefficients.shape[1]), np.int64)
        block[np.searchsorted(nodes, keys)] = coefficients
        own = (below == bits) & ~is_member(source, stops)
        place = np.searchsorted(nodes, source)
        propagate(block, place[own], np.searchsorted(nodes, key[own]), value[own], p)
        stop, alive = is_member(nodes, np.sort(stops)), block.any(1)
        arrived = is_member(nodes, keys)
        arrived[np.searchsorted(nodes, key[(below == bits) & alive[place]])] = True
        live = nodes[alive & ~stop]
        if not is_member(live, np.sort(np.concatenate([keys[:0], *(result.keys for result in results)]))).all():
            raise ReductionError(f"sector {bits}: an integral that matters has no rule")
        level = _levels(live, source, key, (below == bits))
        order = np.lexsort((-np.arange(len(live)), level))
        live, level = live[order], level[order]
        first = len(self.numbers)
        self.numbers.update(((bits, node), first + i) for i, node in enumerate(live.tolist()))
        for node in np.flatnonzero(arrived & ~(alive & ~stop)).tolist():
            number = self.numbers[bits, nodes[node]] = len(self.numbers)
            if stop[node]:
                self.functions += [(column, len(self.ends)) for column in np.flatnonzero(block[node]).tolist()]
                self.ends.append((number, tuple(sector.decode(nodes[node : node + 1])[0].tolist())))
            else:
                self.dead.append(number)
        outer = (below != bits) & alive[place] & ~stop[place]
        carried = block[place[outer]] * value[outer, None] % p
        for b in np.unique(below[outer]).tolist():
            there = below[outer] == b
            self.pending.setdefault(b, []).append((key[outer][there], carried[there]))
        self.parts.append(SectorPart(first, live, level, results))


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
        edge = run_numbers(first[ready], first[ready + 1] - first[ready])
        np.subtract.at(waits, end[edge], 1)
        hit = np.unique(end[edge])
        ready, depth = hit[waits[hit] == 0], depth + 1
    return level
