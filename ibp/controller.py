"""Sectors from the top down, over an executor."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from executors.inline import InlineExecutor
from ibp.beam import Beam
from ibp.console import Progress, peak_memory_kb
from ibp.errors import InputError, ReductionError
from ibp.families import Expression, Family, Index
from ibp.geometry import Geometry, SectorMap
from ibp.identities import derive_identities, evaluate_identities, generic_point, identities_digest
from ibp.knowledge import Knowledge, SectorKnowledge
from ibp.master_search import find_masters, find_relations
from ibp.masters import MasterRelation, change_basis, heaviest_first, use_relations
from ibp.positions import StepPath
from ibp.problems import Outcome, Problem
from ibp.sector_reduction import reduce_sector
from ibp.sector_tasks import COUNTS, Multipliers, SectorResult, SectorTask
from ibp.sectors import Sector, corner, find_nonzero_sectors, integrals_up_to, layout_for, sector_of, weight
from ibp.store import Store
from ibp.symmetries import NumericMap, Symmetries, find_symmetries, own_maps, reachable_sectors
from ibp.targets import Target, integrals_in, target_name

LIGHT_MAP = 1.5  # a sector with known rules is only mapped to another if propagators become sums of so few on average, else its masters are
TARGETS_PER_PASS = 32  # columns of coefficients carried at once
FLUSH_INTERVAL_S = 10.0
LARGE_TARGET = 100_000  # targets with more integrals up to them in their sector keep several processes busy, even with all rules known
ROWS_WORTH_A_GUIDE = 100_000  # built in searches; below it nobody misses the guide
SMALL_TASK = 2000  # below it, a sector with at most so many coefficients is reduced sooner than sent to another process


class Controller:
    """Runs a problem: sectors from the top down, each as a task once all sectors above it are done.

    executor: where tasks run; shelves: stores to learn from, the last of which also receives what is found; certify: keep the proof.
    """

    def __init__(self, problem: Problem, executor: Executor, shelves: Sequence[Store], progress: Progress, certify: bool = False):
        self.problem, self.executor, self.shelves, self.progress = problem, executor, shelves, progress
        self.certify, self.first_target, self.proof = certify, 0, list[Multipliers]()
        self.family, self.point = problem.family, problem.point
        self.here = InlineExecutor()
        self.knowledge, self.new = Knowledge(), Knowledge()
        self.statistics = dict.fromkeys((*COUNTS, "sectors", "tasks"), 0)
        self.paths: dict[Index, StepPath] = {}
        self.memory: dict[int, int] = {}
        self.geometry: Geometry | None = None
        self.symmetries = Symmetries({}, ())
        self.numeric_maps: dict[int, NumericMap] = {}
        self.reachable: dict[int, frozenset[int]] = {}
        self.flushed = time.monotonic()

    def run(self) -> Outcome:
        """Raises ReductionError where the problem cannot be set up; what was learned is stored unless the input is refused."""
        started = time.perf_counter()
        try:
            self._prepare()
            self.wanted = (*dict.fromkeys(self.problem.targets + self.problem.preferred_masters), *self.problem.combinations)
            self.masters = self._find_masters(integrals_in(self.wanted))
            self.relations = self._find_relations(integrals_in(self.wanted))
            together = (*self.wanted, *self.relations)
            self.layout = layout_for(integrals_in(together), self.family.n)
            rows = {target_name(target): row for target, row in self._reduce_all(together).items()}
            reductions = use_relations(rows, self.relations, self.point.prime)
            known = {master for masters in self.masters.values() for master in masters}.difference(r.solved for r in self.relations)
            unreduced = sorted({term for expression in reductions.values() for term in expression} - known, key=weight)
            basis = sorted(known, key=weight)
            if self.statistics["rows"] > ROWS_WORTH_A_GUIDE and self.problem.why_no_guide and self.beam is None and not self.corners_stay:
                self.progress.say(self.problem.why_no_guide)
            if self.problem.preferred_masters and not unreduced:
                reductions = change_basis(reductions, self.problem.preferred_masters, self.point.prime)
                used = {term for expression in reductions.values() for term in expression}
                basis = sorted(used | set(self.problem.preferred_masters), key=weight)
        except InputError:
            raise
        except BaseException:
            try:
                self._flush()
            except ReductionError as error:  # must not take the place of what ended the run
                self.progress.say(str(error))
            raise
        trouble = ""
        try:
            self._flush()
        except ReductionError as error:  # the result is there all the same
            trouble = str(error)
        self.statistics["stragglers"] = self.executor.statistics["stragglers"]
        self.statistics["hits"] = max(self.statistics["references"] - self.statistics["integrals"], 0)
        self.memory[os.getpid()] = peak_memory_kb()
        return Outcome(
            {key: reductions[key] for key in self.problem.keys},
            basis,
            unreduced,
            self.statistics,
            time.perf_counter() - started,
            sum(self.memory.values()),
            trouble,
            self.paths,
            self._whole_proof(reductions) if self.certify else None,
            identities_digest(zip(self.equations.operator, self.equations.shift, self.equations.coefficient)) if self.certify else "",
            tuple(self.relations),
        )

    def _whole_proof(self, reductions: dict[Any, Expression]) -> Multipliers:
        """Of the problem's keys alone: a preferred master in a reduction brings in its own reduction, times minus its coefficient."""
        p, n = self.point.prime, self.family.n
        whole = Multipliers.join([Multipliers.nothing(n), *self.proof]).merged(p)
        first = np.searchsorted(whole.column, np.arange(len(self.wanted) + 1)).tolist()
        lines = {target_name(target): whole.lines(slice(*first[k : k + 2])) for k, target in enumerate(self.wanted)}
        parts = []
        for number, key in enumerate(self.problem.keys):
            preferred = [(m, p - reductions[key][m]) for m in self.problem.preferred_masters if m in reductions[key]]
            for name, factor in ((key, 1), *preferred):
                own = lines[name]
                parts.append(replace(own, column=np.full_like(own.column, number), value=own.value * factor % p))
        return Multipliers.join([Multipliers.nothing(n), *parts]).merged(p)

    @property
    def corners_stay(self) -> bool:
        return bool(self.family.paper_masters) and not self.problem.paper_masters_only and not self.problem.symmetries

    @property
    def beam(self) -> Beam | None:
        """Where corners stay a result must not depend on which paths were found before."""
        beam = self.problem.beam
        return replace(beam, reuse=False) if beam is not None and self.corners_stay else beam

    def _prepare(self) -> None:
        """Identities and non-zero sectors, from a store or derived."""
        for shelf in self.shelves:
            self.knowledge.update(shelf.load(self.family, self.point))
        known = all(self._sector(sector_of(target)).rules for target in self.problem.integrals)
        self.long = not known or max(map(integrals_up_to, self.problem.integrals), default=0) > LARGE_TARGET
        if self.long:
            self.executor.warm_up()  # let processes start while this one prepares
        if self.knowledge.operators is None:
            self.knowledge.operators = self.new.operators = derive_identities(self.family)
        if self.corners_stay:  # corners depend on the masters, so results would depend on the path, and that on what the store holds
            self.knowledge.sectors, self.knowledge.steps = {}, {}
        elif self.beam is not None and not self.beam.reuse:
            self.knowledge.sectors = {bits: SectorKnowledge(known.masters) for bits, known in self.knowledge.sectors.items()}
            self.knowledge.steps = {}
        self.equations = evaluate_identities(self.knowledge.operators, self.point)
        self.generic = evaluate_identities(self.knowledge.operators, generic_point(self.family))
        if self.knowledge.nonzero is None:
            self.knowledge.nonzero = self.new.nonzero = find_nonzero_sectors(self.generic, self.family.lines)
        if cut := self.problem.cut:
            self.knowledge.nonzero = tuple(bits for bits in self.knowledge.nonzero if bits & cut == cut)
            self.knowledge.steps = {}  # with integrals that this cut drops
        if self.problem.symmetries:
            self.geometry = Geometry(self.family, self.problem.cut)
            self.symmetries = find_symmetries(self.geometry, self.knowledge.nonzero)
            for bits, found in self.symmetries.maps.items():
                light = found.size <= LIGHT_MAP * self.family.n or not self._sector(bits).rules
                if light and self.problem.map_integrals:
                    self.numeric_maps[bits] = NumericMap(found, self.point, self.family.n)
            self.reachable = reachable_sectors(self.knowledge.nonzero, self.symmetries.maps)

    def _leads_to(self, above: int, bits: int) -> bool:
        """Whether integrals of a sector may lead to another one."""
        return bits in self.reachable.get(above, ()) if self.reachable else bits != above and bits & above == bits

    def _sectors_below(self, targets: Iterable[Index]) -> list[int]:
        """The sectors that these integrals may lead to, and their own."""
        tops = {sector_of(target) for target in targets}
        return [bits for bits in self.knowledge.nonzero if bits in tops or any(self._leads_to(top, bits) for top in tops)]

    def _find_masters(self, targets: Sequence[Index]) -> dict[int, tuple[Index, ...]]:
        """The integrals to stop at, by sector: published or found; without paper_masters_only also corners of sectors without any."""
        below = self._sectors_below(targets)
        if self.family.paper_masters and not self.problem.symmetries:
            masters = {bits: tuple(m for m in self.family.paper_masters if sector_of(m) == bits) for bits in below}
            if self.corners_stay:
                masters = {bits: found or (corner(bits, self.family.n),) for bits, found in masters.items()}
            return masters
        reduced = [bits for bits in below if bits not in self.numeric_maps]
        self._search_masters([bits for bits in reduced if self._sector(bits).masters is None])
        return {bits: (self._sector(bits).masters if bits in reduced else ()) or () for bits in below}

    def _find_relations(self, targets: Sequence[Index]) -> list[MasterRelation]:
        """What symmetries say about the masters, lightest sectors first."""
        found: list[tuple[SectorMap, Index, Index]] = []
        for bits in self._sectors_below(targets) if self.problem.symmetries else ():
            if bits in self.symmetries.maps:
                found += [(self.symmetries.maps[bits], master, master) for master in self.masters[bits]]
            elif any(master != corner(bits, self.family.n) for master in self.masters[bits]):  # a corner goes to itself
                own = own_maps(self.geometry, bits)
                more, learned = find_relations(own, generic_point(self.family), self.generic, bits, self._sector(bits))
                found += more
                if learned:
                    self._learn(bits, learned)
        return [MasterRelation.by(*relation, self.geometry.functions) for relation in found]

    def _search_masters(self, missing: list[int]) -> None:
        running: dict[Future, int] = {}
        self.progress.start("masters", len(missing))
        while missing or running:
            while missing and len(running) < 2 * self.executor.processes:
                bits = missing.pop()
                task = (self.knowledge.nonzero, self.generic, bits, self.problem.guide)
                running[self.executor.submit(find_masters, *task)] = bits
            for future in self._finished(running):
                self._learn(running.pop(future), future.result())
                self.progress.advance(self.statistics)

    def _finished(self, running: Iterable[Future]) -> set[Future]:
        """Wait until a task is done."""
        while not (done := wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done):
            self.progress.tick()
        return done

    def _sector(self, bits: int) -> SectorKnowledge:
        return self.knowledge.sectors.get(bits) or SectorKnowledge()

    def _learn(self, bits: int, found: SectorKnowledge, steps: dict[Index, Expression] | None = None) -> None:
        if self.beam is not None and not self.beam.reuse:
            found = replace(found, rules=())
        self.statistics["rules"] += len(found.rules)
        self.statistics["rows"] += found.searched_rows
        learned = Knowledge(sectors={bits: found}, steps={bits: steps} if steps and not self.problem.cut else {})
        self.knowledge.update(learned)
        self.new.update(learned)
        if time.monotonic() - self.flushed > FLUSH_INTERVAL_S:
            with suppress(ReductionError):  # a busy store must not cost the run: it is tried again, and the last time counts
                self._flush()

    def _flush(self) -> None:
        """Store what is new; it is kept where that fails. Raises ReductionError."""
        self.flushed = time.monotonic()
        if self.shelves:
            self.shelves[-1].merge(self.family, self.point, self.new)
        self.new = Knowledge()

    def _reduce_all(self, wanted: tuple[Target, ...]) -> dict[Target, Expression]:
        reductions: dict[Target, Expression] = {}
        for begin in range(0, len(wanted), TARGETS_PER_PASS):
            self.first_target = begin
            reductions |= self._reduce(wanted[begin : begin + TARGETS_PER_PASS])
        return reductions

    def _reduce(self, targets: tuple[Target, ...]) -> dict[Target, Expression]:
        """Carry the coefficients of up to TARGETS_PER_PASS targets, one column each, from the top sectors to the masters."""
        pending = self._start(targets)
        expressions: list[Expression] = [{} for _ in targets]
        running: dict[Future, int] = {}
        self.progress.start("sectors", len(self._sectors_below(integrals_in(targets))))
        while pending or running:
            for bits in sorted(pending, key=lambda b: (b.bit_count(), sum(len(keys) for keys, _ in pending[b]), b), reverse=True):
                if not any(self._leads_to(other, bits) for other in (*pending, *running.values())):
                    running[self._submit(bits, pending.pop(bits))] = bits
            for future in self._finished(running):
                del running[future]
                self._take(future.result(), pending, expressions)
        return dict(zip(targets, map(heaviest_first, expressions)))

    def _start(self, targets: tuple[Target, ...]) -> dict[int, list]:
        """Coefficients of the integrals in each target, one in an integral itself, by sector; integrals of zero sectors are zero."""
        pending: dict[int, list] = {}
        for column, target in enumerate(targets):
            for integral, value in ({target: 1} if isinstance(target, tuple) else target.at(self.point)).items():
                bits = sector_of(integral)
                if bits in self.knowledge.nonzero:
                    coefficients = np.zeros((1, len(targets)), np.int64)
                    coefficients[0, column] = value
                    pending.setdefault(bits, []).append((Sector(self.layout, bits).encode(np.array([integral])), coefficients))
        return pending

    def _common_task(self) -> SectorTask:
        """What all tasks of a run have in common."""
        nonzero, equations, generic = self.knowledge.nonzero, self.equations, self.generic
        options = {"canonical": self.corners_stay, "beam": self.beam, "certify": self.certify, "guide": self.problem.guide}
        return SectorTask(self.layout, 0, nonzero, equations, generic, **options)

    def _submit(self, bits: int, parts: list) -> Future:
        keys, coefficients = (np.concatenate(group) for group in zip(*parts))
        task = replace(
            self._common_task(),
            bits=bits,
            known=self._sector(bits),
            stops=self.masters[bits],
            steps={} if self.certify else self.knowledge.steps.get(bits, {}),  # of a known step the rows are not known
            keys=keys,
            coefficients=coefficients,
            mapping=self.numeric_maps.get(bits),
        )
        self.statistics["tasks"] += 1
        small = not self.long and coefficients.size <= SMALL_TASK
        return (self.here if small else self.executor).submit(reduce_sector, task)

    def _take(self, result: SectorResult, pending: dict[int, list], expressions: list[Expression]) -> None:
        for bits, part in result.below.items():
            pending.setdefault(bits, []).append(part)
        for integral, line in (result.masters | result.unreduced).items():
            for expression, value in zip(expressions, line):
                if value:
                    expression[integral] = value
        if result.learned or result.new_steps:
            self._learn(result.bits, result.learned, result.new_steps)
        if result.proof is not None:
            self.proof.append(replace(result.proof, column=result.proof.column + self.first_target))
        for name, count in result.counts.items():
            self.statistics[name] += count
        self.statistics["sectors"] += 1
        self.paths |= result.paths
        process, memory = result.process
        self.memory[process] = max(memory, self.memory.get(process, 0))
        self.progress.advance(self.statistics)


def known_nonzero_sectors(family: Family, shelves: Sequence[Store]) -> tuple[int, ...]:
    """From a store, or found."""
    for shelf in shelves:
        if (found := shelf.load(family).nonzero) is not None:
            return found
    return find_nonzero_sectors(evaluate_identities(derive_identities(family), generic_point(family)), family.lines)
