"""One sector at its point: rules replayed on waves of its integrals.

`SectorWork` is what every way to reduce the integrals by one step works on; a `Wave` holds integrals that are reduced together.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable

import numpy as np

from ibp.discovery import RuleFinder
from ibp.errors import ReductionError
from ibp.families import Expression, Index
from ibp.identities import Equations
from ibp.knowledge import SectorKnowledge
from ibp.positions import StepPath
from ibp.residues import invert
from ibp.rules import CompiledRule, Rule
from ibp.sector_tasks import COUNTS, SectorTask, Terms
from ibp.sectors import Layout, Sector, sector_of, sectors_of
from ibp.tables import is_member

REPLAY_ELEMENTS = 1 << 20  # numbers in one replay array, so that it stays within the processor's cache and 100 MB

Note = Callable[[CompiledRule, np.ndarray], None]  # is told which integrals, by their keys, a rule has reduced


class SectorRules:
    """The rules of a sector, compiled at the point when their level is first needed; those that are new; searches without hope."""

    def __init__(self, sector: Sector, equations: Equations, known: SectorKnowledge):
        self._sector, self._equations, self._known = sector, equations, known
        self._all = set(known.rules)
        self._new: list[Rule] = []
        self._levels: dict[int, list[CompiledRule]] = {}
        self.hopeless = set(known.hopeless)

    def __contains__(self, rule: Rule) -> bool:
        return rule in self._all

    def compile(self, rule: Rule) -> CompiledRule:
        return CompiledRule(self._sector, self._equations, rule)

    def of_level(self, level: int) -> list[CompiledRule]:
        """Short ones first."""
        if level not in self._levels:
            compiled = (self.compile(rule) for rule in self._known.rules if rule.level == level)
            self._levels[level] = sorted(compiled, key=lambda c: c.rows)
        return self._levels[level]

    def add(self, rule: Rule) -> CompiledRule:
        compiled = self.compile(rule)
        insort(self.of_level(rule.level), compiled, key=lambda c: c.rows)
        self._all.add(rule)
        self._new.append(rule)
        return compiled

    @property
    def learned(self) -> SectorKnowledge:
        return SectorKnowledge(None, tuple(self._new), frozenset(self.hopeless - self._known.hopeless))


class Encoder:
    """Keys of integrals of any sectors."""

    def __init__(self, layout: Layout):
        self._layout = layout
        self._sectors: dict[int, Sector] = {}

    def __call__(self, indices: np.ndarray, sectors: np.ndarray) -> np.ndarray:
        """Of indices [M, n] that lie in these sectors [M]."""
        keys = np.zeros(len(indices), self._layout.dtype)
        for bits in np.unique(sectors).tolist():
            if bits not in self._sectors:
                self._sectors[bits] = Sector(self._layout, bits)
            there = sectors == bits
            keys[there] = self._sectors[bits].encode(indices[there])
        return keys


class SectorWork:
    """What there is of a sector while it is reduced: its rules, where reductions end, and what was found and counted so far.

    masters, unreduced: {key: indices} of where they end, stops: all these keys, sorted. new_steps: one-step results that cost a search.
    note: is told what each rule reduces.
    """

    def __init__(self, task: SectorTask, note: Note | None = None):
        self.task, self.note = task, note
        self.p = task.equations.prime
        self.sector = Sector(task.layout, task.bits)
        self.encode = Encoder(task.layout)
        self.finder = RuleFinder(self.sector, task.generic)
        self.rules = SectorRules(self.sector, task.equations, task.known)
        self.nonzero = np.array(sorted(task.nonzero), np.int64)
        self.masters = {self.key_of(stop): stop for stop in task.stops}
        self.unreduced: dict[int, Index] = {}
        self.stops = np.array(sorted(self.masters), task.layout.dtype)
        self.new_steps: dict[Index, Expression] = {}
        self.paths: dict[Index, StepPath] = {}
        self.counts = dict.fromkeys(COUNTS, 0)

    def key_of(self, indices: Index) -> int:
        return self.sector.encode(np.array([indices]))[0]

    def apply(self, rule: CompiledRule, chosen: np.ndarray, wave: Wave) -> None:
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
            if self.note is not None and good.any():
                self.note(rule, wave.keys[part[good]])
            self.counts["tries"] += len(part)
            self.counts["replays"] += 1

    def give_up(self, position: int, wave: Wave) -> None:
        """From now on this integral is one to stop at."""
        key = wave.keys[position]
        self.unreduced[key] = tuple(wave.indices[position].tolist())
        self.stops = np.sort(np.append(self.stops, key))
        wave.waiting[position] = False

    def step_by(self, compiled: CompiledRule, target: np.ndarray) -> Expression:
        """The one-step result of an integral [n] by a rule that reduces it."""
        values = compiled.replay(np.concatenate([[1.0], target])[None], self.p)[0]
        factor = -pow(int(values[compiled.heavier]), -1, self.p)
        step: Expression = {}
        for column in np.flatnonzero(values):
            term = tuple((target + compiled.offset[column]).tolist())
            if column != compiled.heavier and sector_of(term) in self.task.nonzero:
                step[term] = int(values[column]) * factor % self.p
        return step


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
        self._pivot = np.ones(len(keys), np.int64)
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._rules: list[CompiledRule] = []
        self._columns = 0

    def where_waiting(self) -> np.ndarray:
        return np.flatnonzero(self.waiting)

    def add(self, rule: CompiledRule, members: np.ndarray, values: np.ndarray) -> None:
        """values [N, C] of the rule at these members [N] of the wave, all of them reduced by it."""
        if not len(members):
            return
        self.waiting[members] = False
        self._pivot[members] = values[:, rule.heavier]
        values[:, rule.heavier] = 0
        row, column = np.nonzero(values)
        self._parts.append((members[row], column + self._columns, values[row, column]))
        self._rules.append(rule)
        self._columns += len(rule.distance)

    def terms(self, work: SectorWork) -> Terms:
        """Raises ReductionError where a term has no place in the layout."""
        bits, p = work.task.bits, work.p
        if not self._parts:
            return Terms.nothing(self.keys.dtype)
        self._check_room(work.sector)
        member, column, value = (np.concatenate(group) for group in zip(*self._parts))
        offset = np.concatenate([rule.offset for rule in self._rules]).astype(np.int16)
        source = self.keys[member]
        key = source + np.concatenate([rule.distance for rule in self._rules])[column]
        sector = np.full(len(key), bits, np.int64)
        may_fall = np.flatnonzero((offset[:, work.sector.positive] < 0).any(1)[column])
        indices = self.indices[member[may_fall]] + offset[column[may_fall]]
        sector[may_fall] = sectors_of(indices)
        fallen = sector[may_fall] != bits
        may_fall, indices = may_fall[fallen], indices[fallen]
        key[may_fall] = work.encode(indices, sector[may_fall])
        keep = np.ones(len(key), bool)
        keep[may_fall] = is_member(sector[may_fall], work.nonzero)
        value = value[keep] * (p - invert(self._pivot, p))[member[keep]] % p
        return Terms(source[keep], sector[keep], key[keep], value)

    def _check_room(self, sector: Sector) -> None:
        """Raises ReductionError where a term could have an index, r or s beyond the digits of the layout."""
        r, s = sector.r_and_s(self.indices)
        largest_r = int(r.max()) + max(int(np.maximum(rule.offset, 0).sum(1).max()) for rule in self._rules)
        largest_s = int(s.max()) + max(int(-np.minimum(rule.offset, 0).sum(1).min()) for rule in self._rules)
        if max(largest_r, largest_s) >= sector.layout.radix:
            raise ReductionError(
                f"sector {sector.bits}: integrals with r = {largest_r}, s = {largest_s} outgrow the {sector.layout.radix - 1} that was "
                f"reserved for {sector.n} indices; reduce targets with smaller indices"
            )
