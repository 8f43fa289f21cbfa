"""One sector: waves of one-step results, coefficients carried down to the subsectors."""

from __future__ import annotations

import itertools
import os
import pickle
from bisect import insort
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np

from executors.local import LocalExecutor
from executors.tasks import task_cpus
from ibp.beam import BEAM_WIDENINGS, Beam, search_path
from ibp.console import peak_memory_kb
from ibp.discovery import RuleFinder
from ibp.errors import ReductionError
from ibp.families import Expression, Index
from ibp.guide import SectorGuide
from ibp.helpers import kept_context
from ibp.identities import Equations
from ibp.knowledge import SectorKnowledge
from ibp.replay import CompiledRule
from ibp.residues import invert
from ibp.rules import NEIGHBOURHOODS, Rule, border_pattern
from ibp.sector_tasks import COUNTS, Multipliers, SectorResult, SectorTask, Terms
from ibp.sectors import Sector, sector_of, sectors_of
from ibp.symmetries import NumericMap
from ibp.tables import is_member, merge, run_numbers, run_starts, sum_by_key
from ibp.weights import load_guide

MAPPED_BLOCK = 512  # the same where they are mapped, which makes up to a thousand integrals of one
BLOCK = 8192  # heaviest integrals of a sector taken together: large enough for numpy, small enough to skip what cancels
REPLAY_ELEMENTS = 1 << 20  # numbers in one replay array, so that it stays within the processor's cache and 100 MB


def reduce_sector(task: SectorTask) -> SectorResult:
    """Carry the coefficients of a task's integrals to masters and subsectors; the arithmetic is exact modulo the prime."""
    with helper_processes() as helpers:
        return SectorReduction(task, helpers).run()


def helper_processes() -> AbstractContextManager[Executor | None]:
    """Processes for the processors that a task may use beside its own, None if there are none: most tasks have one processor."""
    return LocalExecutor(task_cpus()) if task_cpus() > 1 else nullcontext()


def find_rule(context: bytes, target: Index, level: int) -> tuple[Rule | None, int]:
    """A search in a helper process, and the rows it built. context: pickle of a RuleFinder that has not searched yet."""
    finder = kept_context(context)
    before = finder.rows
    return finder.find(np.array(target, np.int64), level, finder.structure), finder.rows - before


class SectorReduction:
    """The state of one sector at work.

    The heaviest integrals, a block, are closed under one-step reduction inside their range of keys; then their coefficients are carried
    down in order, and what arrives below the range waits for its block. So an integral whose coefficient cancels is mostly never reduced.
    """

    def __init__(self, task: SectorTask, helpers: Executor | None = None):
        self.task, self.helpers = task, helpers
        self.ahead: dict[tuple[int, bytes], tuple[Rule | None, int]] = {}
        self.p = task.equations.prime
        self.sector = Sector(task.layout, task.bits)
        self.finder = RuleFinder(self.sector, task.generic)
        guided = task.guide is not None and not task.canonical and task.beam is None
        self.guide = SectorGuide(load_guide(task.guide), self.finder) if guided else None
        self.nonzero = np.array(sorted(task.nonzero), np.int64)
        self.subsectors: dict[int, Sector] = {}
        self.result = SectorResult(task.bits)
        self.unreduced: dict[int, Index] = {}
        self.counts = dict.fromkeys(COUNTS, 0)
        self.masters = {self._key(stop): stop for stop in task.stops}
        self.known = {self._key(step): step for step in task.steps if task.layout.has_room_for((step, *task.steps[step]))}
        self.stops = np.array(sorted(self.masters), task.layout.dtype)
        self.rules = set(task.known.rules)
        self.new_rules: list[Rule] = []
        self.compiled: dict[int, list[CompiledRule]] = {}
        self.hopeless = set(task.known.hopeless)
        self.canonical: dict[tuple[int, bytes], CompiledRule | None] = {}
        self.below: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
        self.reduced_by: list[tuple[CompiledRule, np.ndarray]] = []  # of the present block, where it shall be certified
        self.proof: list[Multipliers] = []

    def _key(self, indices: Index) -> int:
        return self.sector.encode(np.array([indices]))[0]

    def _rules_of(self, level: int) -> list[CompiledRule]:
        """The rules of a level, short ones first; compiled when a level is first needed."""
        if level not in self.compiled:
            rules = [rule for rule in self.task.known.rules if rule.level == level]
            compiled = (CompiledRule(self.sector, self.task.equations, rule) for rule in rules)
            self.compiled[level] = sorted(compiled, key=lambda c: c.rows)
        return self.compiled[level]

    def _add_rule(self, rule: Rule) -> CompiledRule:
        compiled = CompiledRule(self.sector, self.task.equations, rule)
        insort(self._rules_of(rule.level), compiled, key=lambda c: c.rows)
        self.rules.add(rule)
        self.new_rules.append(rule)
        return compiled

    def run(self) -> SectorResult:
        keys, coefficients = sum_by_key(self.task.keys, self.task.coefficients, self.p)
        while len(keys):
            keys, coefficients = self._set_masters_aside(keys, coefficients)
            cut = max(len(keys) - (BLOCK if self.task.mapping is None else MAPPED_BLOCK), 0)
            if len(keys):
                closed, terms = self._close(keys[cut:])
                keys, coefficients = self._carry(closed, terms, keys, coefficients, cut)
        self.result.below = {bits: sum_by_key(*map(np.concatenate, zip(*parts)), self.p) for bits, parts in self.below.items()}
        self.result.learned = self.learned
        self.result.counts = self.counts
        self.result.process = (os.getpid(), peak_memory_kb())
        if self.task.certify:
            self.result.proof = Multipliers.join([Multipliers.nothing(self.sector.n), *self.proof]).merged(self.p)
        return self.result

    @property
    def learned(self) -> SectorKnowledge:
        return SectorKnowledge(None, tuple(self.new_rules), frozenset(self.hopeless - self.task.known.hopeless))

    def _set_masters_aside(self, keys: np.ndarray, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        stop = is_member(keys, self.stops)
        for key, line in zip(keys[stop], coefficients[stop].tolist()):
            store = self.result.unreduced if key in self.unreduced else self.result.masters
            indices = self.unreduced.get(key) or self.masters[key]
            store[indices] = [(a + b) % self.p for a, b in zip(line, store.get(indices, [0] * len(line)))]
        return keys[~stop], coefficients[~stop]

    def _close(self, keys: np.ndarray) -> tuple[np.ndarray, Terms]:
        """All integrals at or above keys[0] that the reduction of these leads to, ascending, and their one-step results."""
        lowest, closed, wave, parts = keys[0], keys, keys, []
        while len(wave):
            terms = self.reduce_wave(wave)
            parts.append(terms)
            inside = (terms.sector == self.task.bits) & (terms.key >= lowest)
            new = np.unique(terms.key[inside])
            wave = new[~is_member(new, self.stops) & ~is_member(new, closed)]
            closed = merge(closed, wave)
        self.counts["integrals"] += len(closed)
        return closed, Terms.join(parts)

    def _carry(
        self, closed: np.ndarray, terms: Terms, keys: np.ndarray, coefficients: np.ndarray, cut: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Carry coefficients through a closed block; returns what waits below it, and notes what fell into subsectors."""
        nodes = np.union1d(closed, self.stops[self.stops >= closed[0]])
        block = np.zeros((len(nodes), coefficients.shape[1]), np.int64)
        block[np.searchsorted(nodes, keys[cut:])] = coefficients[cut:]
        for bits, part in carry(self.task.bits, nodes, block, terms, self.p).items():
            self.below.setdefault(bits, []).append(part)
        self._note_multipliers(nodes, block)
        reached = is_member(nodes, self.stops) & block.any(1)
        self._set_masters_aside(nodes[reached], block[reached])
        waiting = [(keys[:cut], coefficients[:cut]), *self.below.pop(self.task.bits, ())]
        return sum_by_key(*map(np.concatenate, zip(*waiting)), self.p)

    def _note_multipliers(self, nodes: np.ndarray, block: np.ndarray) -> None:
        """The rows that reduced integrals of a block, times the coefficients [N, K] with which these were carried."""
        p, columns = self.p, block.shape[1]
        for rule, keys in self.reduced_by:
            keys = keys[block[np.searchsorted(nodes, keys)].any(1)]
            size = max(REPLAY_ELEMENTS // max(rule.form.shape[1], rule.rows * columns), 1)
            for begin in range(0, len(keys), size):
                part = keys[begin : begin + size]
                indices = self.sector.decode(part)
                factors = rule.multipliers(np.column_stack([np.ones(len(part)), indices]), p)
                values = block[np.searchsorted(nodes, part), :, None] * factors[:, None, :] % p
                member, column, row = np.nonzero(values)
                seeds = (indices[member] + rule.seeds[row]).astype(np.int16)
                self.proof.append(Multipliers(rule.operators[row], seeds, column, values[member, column, row]))
        self.reduced_by = []

    # one step -----------------------------------------------------------------------------------------------------

    def reduce_wave(self, keys: np.ndarray) -> Terms:
        """One-step results of these integrals: known ones, else level by level the known rules and then a search for new ones.

        So each integral is reduced by a rule of the lowest level that there is, which keeps dots and numerators from growing.
        """
        if self.task.mapping is not None:
            return self._mapped(self.task.mapping, keys)
        wave = Wave(keys, self.sector.decode(keys))
        known = is_member(keys, np.array(sorted(self.known), keys.dtype))
        wave.waiting &= ~known
        if self.task.beam is None:
            self._reduce_by_elimination(wave)
        else:
            self._reduce_by_beam(self.task.beam, wave)
        terms = Terms.join([self._known_steps(keys[known]), wave.terms(self)])
        self.counts["references"] += len(terms.value)
        self.counts["rows"] = self.finder.rows
        return terms

    def _reduce_by_elimination(self, wave: Wave) -> None:
        for level in range(len(NEIGHBOURHOODS)):
            if self.task.canonical:
                self._apply_canonical_rules(level, wave)
            else:
                for rule in self._rules_of(level):
                    self._apply(rule, wave.where_waiting(), wave)
                if wave.waiting.any():
                    self._search(level, wave)
            if not wave.waiting.any():
                break
        for position in np.flatnonzero(wave.waiting)[::-1]:
            if wave.waiting[position]:
                self._search_everywhere(position, wave)

    def _reduce_by_beam(self, beam: Beam, wave: Wave) -> None:
        """Known rules first, if paths are reused; then a search for each integral that waits, heaviest first."""
        for level in range(len(NEIGHBOURHOODS)) if beam.reuse else ():
            for rule in self._rules_of(level):
                self._apply(rule, wave.where_waiting(), wave)
        for position in wave.where_waiting()[::-1]:
            for (times, steps), equations in itertools.product(BEAM_WIDENINGS, (self.task.generic, self.task.equations)):
                if wave.waiting[position]:
                    wider = replace(beam, width=beam.width * times, max_steps=min(beam.max_steps, steps))
                    self._beam_for(position, wider, equations, wave)
            if wave.waiting[position]:
                self._give_up(position, wave)

    def _beam_for(self, position: int, beam: Beam, equations: Equations, wave: Wave) -> None:
        """Search for one integral at the point of the equations; replay what is found on it and, to reuse it, on all that wait."""
        target = wave.indices[position].astype(np.int64)
        helpers = None if self.task.canonical else self.helpers  # shared work could round otherwise, and so find another path
        rule, steps = search_path(self.finder, target, equations, beam, helpers)
        self.counts["searches"] += 1
        self.counts["search_steps"] += steps
        if rule is None:
            return
        if beam.reuse and rule not in self.rules:
            compiled = self._add_rule(rule)
            self._apply(compiled, wave.where_waiting(), wave)
        else:
            compiled = CompiledRule(self.sector, self.task.equations, rule)
            self._apply(compiled, np.array([position]), wave)
        if not wave.waiting[position]:
            step = self._step(compiled, target)
            self.result.paths[tuple(target.tolist())] = rule.rows, step
            if beam.reuse:
                self.result.new_steps[tuple(target.tolist())] = step

    def _apply(self, rule: CompiledRule, chosen: np.ndarray, wave: Wave) -> None:
        """Replay a rule on those of the chosen integrals of a wave whose seeds it keeps inside the sector."""
        chosen = chosen if rule.valid else chosen[:0]
        chosen = chosen[((wave.indices[chosen] >= rule.low) & (wave.indices[chosen] <= rule.high)).all(1)]
        size = max(REPLAY_ELEMENTS // rule.form.shape[1], 1)
        for begin in range(0, len(chosen), size):
            part = chosen[begin : begin + size]
            values = rule.replay(wave.targets[part], self.p)
            good = values[:, rule.heavier] != 0
            row, column = np.nonzero(values[:, : rule.heavier])
            if len(row):  # a heavier column may stay only where it has left the sector
                inside = self.sector.contains(wave.indices[part[row]] + rule.offset[column])
                good[row[inside]] = False
            wave.add(rule, part[good], values[good])
            if self.task.certify:
                self.reduced_by.append((rule, wave.keys[part[good]]))
            self.counts["tries"] += len(part)
            self.counts["replays"] += 1

    def _apply_canonical_rules(self, level: int, wave: Wave) -> None:
        """Reduce what waits by the rules of representatives and no others.

        First by that of an integral far from the borders that this one does not touch, for what is left by that of one equally far from
        all borders; so few searches serve many integrals, and which rule an integral gets depends on nothing but the integral.
        """
        for touching_only in (True, False):
            waiting = wave.where_waiting()
            classes: dict[bytes, list[int]] = {}
            for position, pattern in zip(waiting, border_pattern(wave.indices[waiting], self.sector.positive, level, touching_only)):
                classes.setdefault(pattern, []).append(position)
            for pattern, positions in classes.items():
                if (level, pattern) not in self.canonical:
                    distance = np.frombuffer(pattern, np.int8).astype(np.int64)
                    representative = np.where(self.sector.positive, distance + 1, -distance)
                    rule = self.finder.find(representative, level, self.task.generic)
                    self.canonical[level, pattern] = rule and CompiledRule(self.sector, self.task.equations, rule)
                    self.counts["rules"] += rule is not None
                if rule := self.canonical[level, pattern]:
                    self._apply(rule, np.array(positions), wave)

    def _search(self, level: int, wave: Wave) -> None:
        """Look for rules of a level for what waits, heaviest first, but only once among integrals equally far from the border."""
        waiting = wave.where_waiting()[::-1]
        queue = deque(zip(waiting, border_pattern(wave.indices[waiting], self.sector.positive, level)))
        while queue:
            if self.helpers is not None:
                self._search_ahead(queue, level, wave)
            position, pattern = queue.popleft()
            if (level, pattern) not in self.hopeless and wave.waiting[position]:
                self._search_for(position, level, self.task.generic, wave)
                if wave.waiting[position]:
                    self.hopeless.add((level, pattern))

    def _search_ahead(self, queue: Iterable[tuple[int, bytes]], level: int, wave: Wave) -> None:
        """Let the helpers search for several of the next integrals at once; where these are few, at the next levels as well."""
        helpers: dict[bytes, int] = {}
        for position, pattern in queue:
            if wave.waiting[position] and (level, pattern) not in self.hopeless and len(helpers) < self.helpers.processes:
                helpers.setdefault(pattern, position)
        if not helpers or (level, wave.indices[next(iter(helpers.values()))].tobytes()) in self.ahead:
            return
        requests = [(position, later) for later in range(level, len(NEIGHBOURHOODS)) for position in helpers.values()]
        context = pickle.dumps(RuleFinder(self.sector, self.task.generic))
        futures = {}
        for position, later in requests[: self.helpers.processes]:
            indices = wave.indices[position]
            futures[later, indices.tobytes()] = self.helpers.submit(find_rule, context, tuple(indices.tolist()), later)
        self.ahead = {request: future.result() for request, future in futures.items()}

    def _search_for(self, position: int, level: int, equations: Equations, wave: Wave) -> None:
        """Find a rule of a level that reduces this integral at the point of the equations, and replay it on all that wait."""
        request, target = (level, wave.indices[position].tobytes()), wave.indices[position].astype(np.int64)
        rule = None
        if self.guide is not None and equations is self.task.generic:
            rule = self.guide.find(target, level)
        if rule is None and equations is self.task.generic and request in self.ahead:
            rule, rows = self.ahead[request]
            self.finder.rows += rows
        elif rule is None:
            rule = self.finder.find(target, level, equations)
        if rule is not None and self.task.canonical:
            self._apply(CompiledRule(self.sector, self.task.equations, rule), np.array([position]), wave)
        elif rule is not None and rule not in self.rules:
            compiled = self._add_rule(rule)
            self._apply(compiled, wave.where_waiting(), wave)
            if not wave.waiting[position]:  # its one-step result cost a search and is kept
                self.result.new_steps[tuple(target.tolist())] = self._step(compiled, target)
        wave.searched.add((position, level, equations))

    def _search_everywhere(self, position: int, wave: Wave) -> None:
        """The last resort for one integral, before it is listed as unreduced: all levels, at the generic point and at this one.

        It comes here where a rule fails by accident of the point or prime, or where it is the exception among those as far from the border.
        """
        for equations in (self.task.generic, self.task.equations):
            for level in range(len(NEIGHBOURHOODS)):
                if wave.waiting[position] and (position, level, equations) not in wave.searched:
                    self._search_for(position, level, equations, wave)
        if wave.waiting[position]:
            self._give_up(position, wave)

    def _give_up(self, position: int, wave: Wave) -> None:
        """From now on this integral is one to stop at."""
        key = wave.keys[position]
        self.unreduced[key] = tuple(wave.indices[position].tolist())
        self.stops = np.sort(np.append(self.stops, key))
        wave.waiting[position] = False

    def _step(self, compiled: CompiledRule, target: np.ndarray) -> Expression:
        """The one-step result of an integral [n] by a rule that reduces it."""
        values = compiled.replay(np.concatenate([[1.0], target])[None], self.p)[0]
        factor = -pow(int(values[compiled.heavier]), -1, self.p)
        step: Expression = {}
        for column in np.flatnonzero(values):
            term = tuple((target + compiled.offset[column]).tolist())
            if column != compiled.heavier and sector_of(term) in self.task.nonzero:
                step[term] = int(values[column]) * factor % self.p
        return step

    def _mapped(self, mapping: NumericMap, keys: np.ndarray) -> Terms:
        """Integrals of a sector that is equivalent to a lighter one."""
        number, terms, values = mapping.terms(self.sector.decode(keys))
        sectors = sectors_of(terms)
        kept = is_member(sectors, self.nonzero)
        terms, sectors = terms[kept], sectors[kept]
        self.counts["mapped"] += len(keys)
        return Terms(keys[number[kept]], sectors, self.encode_all(terms, sectors), values[kept])

    def _known_steps(self, keys: np.ndarray) -> Terms:
        lines = [(key, term, value) for key in keys for term, value in self.task.steps[self.known[key]].items()]
        terms = np.array([term for _, term, _ in lines], np.int64).reshape(-1, self.sector.n)
        source = np.array([key for key, _, _ in lines], keys.dtype)
        sectors = sectors_of(terms)
        return Terms(source, sectors, self.encode_all(terms, sectors), np.array([value for *_, value in lines], np.int64))

    def encode_all(self, indices: np.ndarray, sectors: np.ndarray) -> np.ndarray:
        """Keys of indices [M, n] that lie in the given sectors [M]."""
        keys = np.zeros(len(indices), self.task.layout.dtype)
        for bits in np.unique(sectors).tolist():
            if bits not in self.subsectors:
                self.subsectors[bits] = Sector(self.task.layout, bits)
            there = sectors == bits
            keys[there] = self.subsectors[bits].encode(indices[there])
        return keys


class Wave:
    """Integrals to be reduced by one step together: which still wait, and what rules say about the others, turned into terms at the end.

    keys [N]; indices [N, n] int16; targets [N, n+1] floats, (1, indices); waiting bool [N]; searched: (position, level,
    equations) of searches that were made.
    """

    def __init__(self, keys: np.ndarray, indices: np.ndarray):
        self.keys, self.indices = keys, indices.astype(np.int16)
        self.targets = np.column_stack([np.ones(len(keys)), indices])
        self.waiting = np.ones(len(keys), bool)
        self.searched: set[tuple[int, int, Equations]] = set()
        self.pivot = np.ones(len(keys), np.int64)
        self.parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.rules: list[CompiledRule] = []
        self.columns = 0

    def where_waiting(self) -> np.ndarray:
        return np.flatnonzero(self.waiting)

    def add(self, rule: CompiledRule, members: np.ndarray, values: np.ndarray) -> None:
        """values [N, C] of the rule at these members [N] of the wave, all of them reduced by it."""
        if not len(members):
            return
        self.waiting[members] = False
        self.pivot[members] = values[:, rule.heavier]
        values[:, rule.heavier] = 0
        row, column = np.nonzero(values)
        self.parts.append((members[row], column + self.columns, values[row, column]))
        self.rules.append(rule)
        self.columns += len(rule.distance)

    def terms(self, work: SectorReduction) -> Terms:
        bits, p = work.task.bits, work.p
        if not self.parts:
            return Terms.nothing(self.keys.dtype)
        self._check_room(work.sector)
        member, column, value = (np.concatenate(group) for group in zip(*self.parts))
        offset = np.concatenate([rule.offset for rule in self.rules]).astype(np.int16)
        source = self.keys[member]
        key = source + np.concatenate([rule.distance for rule in self.rules])[column]
        sector = np.full(len(key), bits, np.int64)
        may_fall = np.flatnonzero((offset[:, work.sector.positive] < 0).any(1)[column])
        indices = self.indices[member[may_fall]] + offset[column[may_fall]]
        sector[may_fall] = sectors_of(indices)
        fallen = sector[may_fall] != bits
        may_fall, indices = may_fall[fallen], indices[fallen]
        key[may_fall] = work.encode_all(indices, sector[may_fall])
        keep = np.ones(len(key), bool)
        keep[may_fall] = is_member(sector[may_fall], work.nonzero)
        value = value[keep] * (p - invert(self.pivot, p))[member[keep]] % p
        return Terms(source[keep], sector[keep], key[keep], value)

    def _check_room(self, sector: Sector) -> None:
        """Raises ReductionError where a term could have an index, r or s beyond the digits of the layout."""
        r, s = sector.r_and_s(self.indices)
        largest_r = int(r.max()) + max(int(np.maximum(rule.offset, 0).sum(1).max()) for rule in self.rules)
        largest_s = int(s.max()) + max(int(-np.minimum(rule.offset, 0).sum(1).min()) for rule in self.rules)
        if max(largest_r, largest_s) >= sector.layout.radix:
            raise ReductionError(
                f"sector {sector.bits}: integrals with r = {largest_r}, s = {largest_s} outgrow the {sector.layout.radix - 1} that was "
                f"reserved for {sector.n} indices; reduce targets with smaller indices"
            )


def carry(bits: int, nodes: np.ndarray, block: np.ndarray, terms: Terms, p: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Carry coefficients block [N, K], in place, of integrals with these keys [N] of a sector down its one-step results.

    Returns what goes elsewhere, to other sectors or below the lightest of the integrals, as {sector: (keys, coefficients)}.
    """
    source = np.searchsorted(nodes, terms.source)
    inner = (terms.sector == bits) & (terms.key >= nodes[0])
    propagate(block, source[inner], np.searchsorted(nodes, terms.key[inner]), terms.value[inner], p)
    outer = ~inner & block.any(1)[source]
    carried, key, sector = block[source[outer]] * terms.value[outer, None] % p, terms.key[outer], terms.sector[outer]
    return {b: sum_by_key(key[sector == b], carried[sector == b], p) for b in np.unique(sector).tolist()}


def propagate(block: np.ndarray, source: np.ndarray, target: np.ndarray, value: np.ndarray, p: int) -> None:
    """Add to block [N, K], in place, what flows along the edges: block[target] += value * block[source], sources complete first.

    The edges have no cycle (targets are lighter than sources); those whose source waits for nothing go first.
    """
    count = len(block)
    order = np.argsort(source, kind="stable")
    source, target, value = source[order], target[order], value[order]
    first = np.searchsorted(source, np.arange(count + 1))
    waits = np.bincount(target, minlength=count)
    ready = np.flatnonzero(waits == 0)
    while len(ready):
        length = first[ready + 1] - first[ready]
        total = int(length.sum())
        edge = run_numbers(first[ready], length)
        flow = block[source[edge]] * value[edge, None] % p
        by_target = np.argsort(target[edge], kind="stable")
        reached = target[edge][by_target]
        start = run_starts(reached)
        hit = reached[start]
        if total:
            block[hit] = (block[hit] + np.add.reduceat(flow[by_target], start, axis=0)) % p
        waits[hit] -= np.diff(start, append=total)
        ready = hit[waits[hit] == 0]
