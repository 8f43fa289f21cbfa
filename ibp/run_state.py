"""A run at work: what it knows, what it has before it reduces anything, and what it counts, for its controller and its scheme.

`RunState` and the `RunKnowledge` in it change while the run goes on; `prepare` makes a `Prepared`: identities, non-zero sectors,
symmetries; a `Ground` is what reductions go on. `known_nonzero_sectors` is the part of it that others ask for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from executors.files import peak_memory_kb
from ibp.console import Reporter
from ibp.errors import ReductionError
from ibp.families import Expression, Family, Index
from ibp.geometry import Geometry, SectorMap
from ibp.identities import Equations, Operator, derive_identities, evaluate_identities, generic_point
from ibp.knowledge import Knowledge, SectorKnowledge
from ibp.positions import StepPath
from ibp.problems import Problem
from ibp.sector_tasks import COUNTS, Multipliers, SectorTask
from ibp.sectors import Layout, find_nonzero_sectors, integrals_up_to, sector_of
from ibp.store import Store
from ibp.symmetries import NumericMap, find_symmetries, reachable_sectors

FLUSH_INTERVAL_S = 10.0
LARGE_TARGET = 100_000  # targets with more integrals up to them in their sector keep several processes busy, even with all rules known
LIGHT_MAP = 1.5  # a sector with known rules is only mapped to another if propagators become sums of so few on average, else its masters are


class RunKnowledge:
    """What a run knows of its family. What is new goes to the last of its stores now and then, and once more at the end.

    A beam whose paths are not reused leaves no rules, a cut no one-step results: they lack what it drops.
    """

    def __init__(self, problem: Problem, shelves: Sequence[Store]):
        self.problem, self.shelves = problem, shelves
        self.knowledge, self.new = Knowledge(), Knowledge()
        self._keeps_rules = problem.used_beam is None or problem.used_beam.reuse
        self._flushed = time.monotonic()

    def load(self) -> None:
        """Raises ReductionError."""
        for shelf in self.shelves:
            self.knowledge.update(shelf.load(self.problem.family, self.problem.point))

    def forget_foreign(self) -> None:
        """What would let the result depend on earlier runs, or does not belong to this cut."""
        if self.problem.corners_stay:
            self.knowledge.sectors, self.knowledge.steps = {}, {}
        elif not self._keeps_rules:
            self.knowledge.sectors = {bits: SectorKnowledge(known.masters) for bits, known in self.knowledge.sectors.items()}
            self.knowledge.steps = {}
        if cut := self.problem.cut:
            self.knowledge.nonzero = tuple(bits for bits in self.knowledge.nonzero or () if bits & cut == cut)
            self.knowledge.steps = {}

    def sector(self, bits: int) -> SectorKnowledge:
        return self.knowledge.sectors.get(bits) or SectorKnowledge()

    def learn(self, bits: int, found: SectorKnowledge, steps: dict[Index, Expression] | None = None) -> SectorKnowledge:
        """Take over what was found in a sector; returns what of it counts."""
        if not self._keeps_rules:
            found = replace(found, rules=())
        learned = Knowledge(sectors={bits: found}, steps={bits: steps} if steps and not self.problem.cut else {})
        self.knowledge.update(learned)
        self.new.update(learned)
        if time.monotonic() - self._flushed > FLUSH_INTERVAL_S:
            self.flush()  # a busy store must not cost the run: it is tried again, and the last time counts
        return found

    def flush(self) -> str:
        """Store what is new; where that fails it is kept, and why is returned."""
        self._flushed = time.monotonic()
        try:
            if self.shelves:
                self.shelves[-1].merge(self.problem.family, self.problem.point, self.new)
        except ReductionError as error:
            return str(error)
        self.new = Knowledge()
        return ""


class RunState:
    """A run at work: where its tasks go, what it knows, and what its tasks have come to so far.

    long: whether there is work for several processes. proof: of results to be certified, in numbers of the run's targets. memory: peak in
    kB by process id.
    """

    def __init__(self, problem: Problem, executor: Any, shelves: Sequence[Store], reporter: Reporter):
        self.problem, self.executor, self.reporter = problem, executor, reporter
        self.known = RunKnowledge(problem, shelves)
        self.statistics = dict.fromkeys((*COUNTS, "sectors", "tasks"), 0)
        self.memory: dict[int, int] = {}
        self.paths: dict[Index, StepPath] = {}
        self.proof: list[Multipliers] = []
        self.long = True

    def start(self) -> None:
        """Load what is known, and let processes start if they will be needed. Raises ReductionError."""
        self.known.load()
        integrals = self.problem.integrals
        known = all(self.known.sector(sector_of(integral)).rules for integral in integrals)
        self.long = not known or max(map(integrals_up_to, integrals), default=0) > LARGE_TARGET
        if self.long:
            self.executor.warm_up()

    def learn(self, bits: int, found: SectorKnowledge, steps: dict[Index, Expression] | None = None) -> None:
        counted = self.known.learn(bits, found, steps)
        self.statistics["rules"] += len(counted.rules)
        self.statistics["rows"] += counted.searched_rows

    def count(self, counts: dict[str, int]) -> None:
        for name, count in counts.items():
            self.statistics[name] += count

    def note_memory(self, process: int, peak_kb: int) -> None:
        self.memory[process] = max(peak_kb, self.memory.get(process, 0))

    def finish(self) -> None:
        """The last of the statistics."""
        self.statistics["stragglers"] = self.executor.statistics["stragglers"]
        self.statistics["hits"] = max(self.statistics["references"] - self.statistics["integrals"], 0)
        self.memory[os.getpid()] = peak_memory_kb()


@dataclass(frozen=True, eq=False)
class Prepared:
    """A problem and its family: identities, at the point and at a generic one; sectors; with symmetries the maps between these.

    sector_maps: of sectors that are equivalent to lighter ones; numeric_maps: of those of them all of whose integrals are mapped.
    reachable: sectors that integrals of one may lead to, {} without symmetries.
    """

    problem: Problem
    operators: tuple[Operator, ...]
    equations: Equations
    generic: Equations
    nonzero: tuple[int, ...]
    geometry: Geometry | None = None
    sector_maps: dict[int, SectorMap] = field(default_factory=dict)
    numeric_maps: dict[int, NumericMap] = field(default_factory=dict)
    reachable: dict[int, frozenset[int]] = field(default_factory=dict)

    def leads_to(self, above: int, bits: int) -> bool:
        """Whether integrals of a sector may lead to another one."""
        return bits in self.reachable.get(above, ()) if self.reachable else bits != above and bits & above == bits

    def sectors_below(self, targets: Iterable[Index]) -> list[int]:
        """The sectors that these integrals may lead to, and their own."""
        tops = {sector_of(target) for target in targets}
        return [bits for bits in self.nonzero if bits in tops or any(self.leads_to(top, bits) for top in tops)]


@dataclass(frozen=True, eq=False)
class Ground:
    """What reductions go on: what is prepared, the integrals to stop at by sector, the layout of keys."""

    prepared: Prepared
    masters: dict[int, tuple[Index, ...]]
    layout: Layout

    def task(self, certify: bool = False) -> SectorTask:
        """What all tasks of a run have in common."""
        own, problem = self.prepared, self.prepared.problem
        options = {"canonical": problem.corners_stay, "beam": problem.used_beam, "certify": certify, "guide": problem.guide}
        return SectorTask(self.layout, 0, own.nonzero, own.equations, own.generic, **options)


def prepare(problem: Problem, known: RunKnowledge) -> Prepared:
    """From what is known, which is completed; what is derived anew goes to the store. Raises InputError, ReductionError."""
    knowledge, family = known.knowledge, problem.family
    if knowledge.operators is None:
        knowledge.operators = known.new.operators = derive_identities(family)
    equations, generic = (evaluate_identities(knowledge.operators, point) for point in (problem.point, generic_point(family)))
    if knowledge.nonzero is None:
        knowledge.nonzero = known.new.nonzero = find_nonzero_sectors(generic, family.lines)
    known.forget_foreign()
    plain = Prepared(problem, knowledge.operators, equations, generic, knowledge.nonzero)
    return _with_symmetries(plain, known) if problem.symmetries else plain


def _with_symmetries(plain: Prepared, known: RunKnowledge) -> Prepared:
    problem, n = plain.problem, plain.problem.family.n
    geometry = Geometry(problem.family, problem.cut)
    maps, numeric = find_symmetries(geometry, plain.nonzero).maps, {}
    for bits, found in maps.items() if problem.map_integrals else ():
        if found.size <= LIGHT_MAP * n or not known.sector(bits).rules:
            numeric[bits] = NumericMap(found, problem.point, n)
    reachable = reachable_sectors(plain.nonzero, maps)
    return replace(plain, geometry=geometry, sector_maps=maps, numeric_maps=numeric, reachable=reachable)


def known_nonzero_sectors(family: Family, shelves: Sequence[Store]) -> tuple[int, ...]:
    """From a store, or found. Raises InputError, ReductionError."""
    for shelf in shelves:
        if (found := shelf.load(family).nonzero) is not None:
            return found
    return find_nonzero_sectors(evaluate_identities(derive_identities(family), generic_point(family)), family.lines)
