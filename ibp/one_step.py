"""One-step results of the integrals of a sector, and the three ways to a rule that gives them.

`Elimination` takes known rules and looks for new ones around what they leave; `Representatives` takes for each integral a rule that depends
on nothing but the integral; `BeamSearches` follows several ways of taking identities one by one. `OneStep` chooses between them.
"""

from __future__ import annotations

import itertools
import pickle
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import replace

import numpy as np

from ibp.beam import BEAM_WIDENINGS, Beam, search_path
from ibp.discovery import RuleFinder
from ibp.families import Index
from ibp.guide import SectorGuide
from ibp.helpers import kept_context
from ibp.identities import Equations
from ibp.rules import NEIGHBOURHOODS, CompiledRule, Rule, border_pattern
from ibp.sector_tasks import SectorTask, Terms
from ibp.sector_work import Note, SectorWork, Wave
from ibp.sectors import sectors_of
from ibp.symmetries import NumericMap
from ibp.tables import is_member
from ibp.weights import load_guide


def find_rule(context: bytes, target: Index, level: int) -> tuple[Rule | None, int]:
    """A search in a helper process, and the rows it built. context: pickle of a RuleFinder that has not searched yet."""
    finder = kept_context(context)
    before = finder.rows
    return finder.find(np.array(target, np.int64), level, finder.structure), finder.rows - before


class OneStep:
    """Reduces integrals of a sector by one step: by known results, by a map to another sector, or by rules."""

    def __init__(self, task: SectorTask, helpers: Executor | None = None, note: Note | None = None):
        self.task = task
        self.work = work = SectorWork(task, note)
        self._known = {work.key_of(step): step for step in task.steps if task.layout.has_room_for((step, *task.steps[step]))}
        self._way: Elimination | Representatives | BeamSearches | None = None
        if task.mapping is None:
            if task.beam is not None:
                self._way = BeamSearches(work, task.beam, helpers)
            else:
                self._way = Representatives(work) if task.canonical else Elimination(work, helpers)

    def reduce(self, keys: np.ndarray) -> Terms:
        """One-step results of the integrals with these keys, as far as they can be reduced. Raises ReductionError."""
        work = self.work
        if self.task.mapping is not None:
            return self._mapped(self.task.mapping, keys)
        wave = Wave(keys, work.sector.decode(keys))
        known = is_member(keys, np.array(sorted(self._known), keys.dtype))
        wave.waiting &= ~known
        self._way.reduce(wave)
        terms = Terms.join([self._known_steps(keys[known]), wave.terms(work)])
        work.counts["references"] += len(terms.value)
        work.counts["rows"] = work.finder.rows
        return terms

    def _mapped(self, mapping: NumericMap, keys: np.ndarray) -> Terms:
        """Integrals of a sector that is equivalent to a lighter one."""
        number, terms, values = mapping.terms(self.work.sector.decode(keys))
        kept = is_member(sectors_of(terms), self.work.nonzero)
        self.work.counts["mapped"] += len(keys)
        return self._terms(keys[number[kept]], terms[kept], values[kept])

    def _known_steps(self, keys: np.ndarray) -> Terms:
        lines = [(key, term, value) for key in keys for term, value in self.task.steps[self._known[key]].items()]
        terms = np.array([term for _, term, _ in lines], np.int64).reshape(-1, self.work.sector.n)
        source = np.array([key for key, _, _ in lines], keys.dtype)
        return self._terms(source, terms, np.array([value for *_, value in lines], np.int64))

    def _terms(self, source: np.ndarray, indices: np.ndarray, values: np.ndarray) -> Terms:
        sectors = sectors_of(indices)
        return Terms(source, sectors, self.work.encode(indices, sectors), values)


class _LevelByLevel:
    """Levels in order until nothing waits any more, so that each integral is reduced by a rule of the lowest level that there is.

    That keeps dots and numerators from growing. What a level's rules do, `_try_level`, and what a search for one integral at the point of
    some equations does, `_search_for`, is up to the subclasses.
    """

    def __init__(self, work: SectorWork):
        self.work, self.task = work, work.task

    def reduce(self, wave: Wave) -> None:
        for level in range(len(NEIGHBOURHOODS)):
            self._try_level(level, wave)
            if not wave.waiting.any():
                break
        for position in np.flatnonzero(wave.waiting)[::-1]:
            if wave.waiting[position]:
                self._search_everywhere(position, wave)

    def _search_everywhere(self, position: int, wave: Wave) -> None:
        """The last resort for one integral, before it is listed as unreduced: all levels, at the generic point and at this one.

        It comes here where a rule fails by accident of the point or prime, or where it is the exception among those as far from the border.
        """
        for equations in (self.task.generic, self.task.equations):
            for level in range(len(NEIGHBOURHOODS)):
                if wave.waiting[position] and (position, level, equations) not in wave.searched:
                    self._search_for(position, level, equations, wave)
        if wave.waiting[position]:
            self.work.give_up(position, wave)


class Elimination(_LevelByLevel):
    """The known rules of a level first, then a search for new ones, each of which is replayed on all that wait."""

    def __init__(self, work: SectorWork, helpers: Executor | None):
        super().__init__(work)
        self.helpers = helpers
        self.guide = SectorGuide(load_guide(self.task.guide), work.finder) if self.task.guide is not None else None
        self.ahead: dict[tuple[int, bytes], tuple[Rule | None, int]] = {}  # what helpers found: (level, indices): (rule, rows)

    def _try_level(self, level: int, wave: Wave) -> None:
        """The search goes from the heaviest integral down, but only once among those equally far from the border."""
        for rule in self.work.rules.of_level(level):
            self.work.apply(rule, wave.where_waiting(), wave)
        hopeless, waiting = self.work.rules.hopeless, wave.where_waiting()[::-1]
        queue = deque(zip(waiting, border_pattern(wave.indices[waiting], self.work.sector.positive, level)))
        while queue:
            if self.helpers is not None:
                self._search_ahead(queue, level, wave)
            position, pattern = queue.popleft()
            if (level, pattern) not in hopeless and wave.waiting[position]:
                self._search_for(position, level, self.task.generic, wave)
                if wave.waiting[position]:
                    hopeless.add((level, pattern))

    def _search_ahead(self, queue: Iterable[tuple[int, bytes]], level: int, wave: Wave) -> None:
        """Let the helpers search for several of the next integrals at once; where these are few, at the next levels as well."""
        chosen: dict[bytes, int] = {}
        for position, pattern in queue:
            if wave.waiting[position] and (level, pattern) not in self.work.rules.hopeless and len(chosen) < self.helpers.processes:
                chosen.setdefault(pattern, position)
        if not chosen or (level, wave.indices[next(iter(chosen.values()))].tobytes()) in self.ahead:
            return
        requests = [(position, later) for later in range(level, len(NEIGHBOURHOODS)) for position in chosen.values()]
        context = pickle.dumps(RuleFinder(self.work.sector, self.task.generic))
        futures = {}
        for position, later in requests[: self.helpers.processes]:
            indices = wave.indices[position]
            futures[later, indices.tobytes()] = self.helpers.submit(find_rule, context, tuple(indices.tolist()), later)
        self.ahead = {request: future.result() for request, future in futures.items()}

    def _search_for(self, position: int, level: int, equations: Equations, wave: Wave) -> None:
        work, target = self.work, wave.indices[position].astype(np.int64)
        rule = self._find((level, wave.indices[position].tobytes()), target, equations)
        if rule is not None and rule not in work.rules:
            compiled = work.rules.add(rule)
            work.apply(compiled, wave.where_waiting(), wave)
            if not wave.waiting[position]:  # its one-step result cost a search and is kept
                work.new_steps[tuple(target.tolist())] = work.step_by(compiled, target)
        wave.searched.add((position, level, equations))

    def _find(self, request: tuple[int, bytes], target: np.ndarray, equations: Equations) -> Rule | None:
        """By the guide, else as a helper has found, else here."""
        level, generic = request[0], equations is self.task.generic
        if self.guide is not None and generic and (rule := self.guide.find(target, level)) is not None:
            return rule
        if generic and request in self.ahead:
            rule, rows = self.ahead[request]
            self.work.finder.rows += rows
            return rule
        return self.work.finder.find(target, level, equations)


class Representatives(_LevelByLevel):
    """The rules of representatives and no others, so that the rule that an integral gets depends on nothing but the integral.

    First that of an integral far from the borders that this one does not touch, for what is left that of one equally far from all borders;
    so few searches serve many integrals.
    """

    def __init__(self, work: SectorWork):
        super().__init__(work)
        self.found: dict[tuple[int, bytes], CompiledRule | None] = {}

    def _try_level(self, level: int, wave: Wave) -> None:
        positive = self.work.sector.positive
        for touching_only in (True, False):
            waiting = wave.where_waiting()
            classes: dict[bytes, list[int]] = {}
            for position, pattern in zip(waiting, border_pattern(wave.indices[waiting], positive, level, touching_only)):
                classes.setdefault(pattern, []).append(position)
            for pattern, positions in classes.items():
                if (level, pattern) not in self.found:
                    distance = np.frombuffer(pattern, np.int8).astype(np.int64)
                    rule = self.work.finder.find(np.where(positive, distance + 1, -distance), level, self.task.generic)
                    self.found[level, pattern] = rule and self.work.rules.compile(rule)
                    self.work.counts["rules"] += rule is not None
                if rule := self.found[level, pattern]:
                    self.work.apply(rule, np.array(positions), wave)

    def _search_for(self, position: int, level: int, equations: Equations, wave: Wave) -> None:
        rule = self.work.finder.find(wave.indices[position].astype(np.int64), level, equations)
        if rule is not None:
            self.work.apply(self.work.rules.compile(rule), np.array([position]), wave)
        wave.searched.add((position, level, equations))


class BeamSearches:
    """Known rules first, if paths are reused; then a search for each integral that waits, heaviest first."""

    def __init__(self, work: SectorWork, beam: Beam, helpers: Executor | None):
        self.work, self.beam = work, beam
        self.helpers = None if work.task.canonical else helpers  # shared work could round otherwise, and so find another path

    def reduce(self, wave: Wave) -> None:
        work, beam = self.work, self.beam
        for level in range(len(NEIGHBOURHOODS)) if beam.reuse else ():
            for rule in work.rules.of_level(level):
                work.apply(rule, wave.where_waiting(), wave)
        for position in wave.where_waiting()[::-1]:
            for (times, steps), equations in itertools.product(BEAM_WIDENINGS, (work.task.generic, work.task.equations)):
                if wave.waiting[position]:
                    wider = replace(beam, width=beam.width * times, max_steps=min(beam.max_steps, steps))
                    self._search_for(position, wider, equations, wave)
            if wave.waiting[position]:
                work.give_up(position, wave)

    def _search_for(self, position: int, beam: Beam, equations: Equations, wave: Wave) -> None:
        """Search for one integral at the point of the equations; replay what is found on it and, to reuse it, on all that wait."""
        work, target = self.work, wave.indices[position].astype(np.int64)
        rule, steps = search_path(work.finder, target, equations, beam, self.helpers)
        work.counts["searches"] += 1
        work.counts["search_steps"] += steps
        if rule is None:
            return
        if beam.reuse and rule not in work.rules:
            compiled = work.rules.add(rule)
            work.apply(compiled, wave.where_waiting(), wave)
        else:
            compiled = work.rules.compile(rule)
            work.apply(compiled, np.array([position]), wave)
        if not wave.waiting[position]:
            step = work.step_by(compiled, target)
            work.paths[tuple(target.tolist())] = rule.rows, step
            if beam.reuse:
                work.new_steps[tuple(target.tolist())] = step
