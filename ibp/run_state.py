"""What a run knows, and what it counts: shared by its controller and the scheme by which it distributes its work."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from executors.files import peak_memory_kb
from ibp.console import Reporter
from ibp.errors import ReductionError
from ibp.families import Expression, Index
from ibp.knowledge import Knowledge, SectorKnowledge
from ibp.positions import StepPath
from ibp.problems import Problem
from ibp.sector_tasks import COUNTS, Multipliers
from ibp.sectors import integrals_up_to, sector_of
from ibp.store import Store

FLUSH_INTERVAL_S = 10.0
LARGE_TARGET = 100_000  # targets with more integrals up to them in their sector keep several processes busy, even with all rules known


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
