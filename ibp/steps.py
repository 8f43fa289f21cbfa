"""One-step tasks: batches of integrals for any executor, how they are cut to size, and what a closure under one-step reduction has met.

`reduce_steps` is the task; `Setting` is what all tasks of a run have in common; a `Frontier` knows what was met and what waits; `BatchPlan`
learns what integrals cost; `SharedRules` keeps the file from which tasks read the rules that are known so far.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from executors.files import peak_memory_kb
from executors.tasks import Shared
from ibp.families import Family, Index
from ibp.helpers import helper_processes
from ibp.knowledge import SectorKnowledge, pack_sector, unpack_sector
from ibp.one_step import OneStep
from ibp.run_state import RunState
from ibp.sector_reduction import BLOCK
from ibp.sector_tasks import COUNTS, SectorTask, Terms
from ibp.sectors import Layout, Sector, sector_order
from ibp.symmetries import NumericMap
from ibp.tables import is_member, merge, pack_keys, unpack_keys

LARGEST_BATCH = 100_000  # integrals in the result of a one-step task: some 30 MB
KNOWLEDGE_INTERVAL_S = 2.0  # new rules reach new tasks that soon
FIRST_JOBS = 8  # until so many have come back, jobs that go on by themselves are short, so that work to share appears early


@dataclass(frozen=True, eq=False)
class Setting:
    """What all one-step tasks of a run have in common.

    run: Problem.name; task: what they have in common with tasks of whole sectors; stops: masters, and corners where they stay, by sector;
    maps: of sectors that are equivalent to others.
    """

    run: str
    family: Family
    task: SectorTask
    stops: dict[int, tuple[Index, ...]]
    maps: dict[int, NumericMap]


def reduce_steps(setting: Shared, known: Shared, keys: dict[int, Any], allowed: tuple[int, ...] = (), seconds: float = math.inf) -> dict:
    """One-step results of integrals, given by sector and packed keys; also of what they lead to in the allowed sectors, while time is left.

    known: packed knowledge by sector. When time is up, part of the given integrals may be left undone. The result has builtin types only:
    {"sectors": {bits: {"done": keys, "terms": …, "unreduced": indices, "learned": packed knowledge, "steps": …, "paths": …}}, "counts",
    "seconds", "peak_memory_kb"}.
    """
    with helper_processes() as helpers:
        work = _StepWork(setting.get(), known.get(), allowed, helpers)
        return work.run({bits: unpack_keys(packed) for bits, packed in keys.items()}, seconds)


class Frontier:
    """The integrals that a closure under one-step reduction has met, by sector, and which of them wait; masters are passed over.

    met, waiting, stops: {sector: sorted keys}.
    """

    def __init__(self, layout: Layout, stops: dict[int, tuple[Index, ...]]):
        self.layout, self.empty = layout, np.zeros(0, layout.dtype)
        self.stops = {bits: np.sort(Sector(layout, bits).encode(np.array(some))) if some else self.empty for bits, some in stops.items()}
        self.met: dict[int, np.ndarray] = {}
        self.waiting: dict[int, np.ndarray] = {}

    def meet(self, bits: int, keys: np.ndarray) -> None:
        """What is met for the first time waits."""
        self.wait(bits, self.note(bits, keys))

    def note(self, bits: int, keys: np.ndarray) -> np.ndarray:
        """Count integrals as met; returns those that are new, sorted."""
        keys, met = np.unique(keys), self.met.get(bits, self.empty)
        keys = keys[~is_member(keys, met) & ~is_member(keys, self.stops[bits])]
        if len(keys):
            self.met[bits] = merge(met, keys)
        return keys

    def wait(self, bits: int, keys: np.ndarray) -> None:
        if len(keys):
            self.waiting[bits] = merge(self.waiting.get(bits, self.empty), keys)

    def drop(self, bits: int, keys: np.ndarray) -> None:
        """These sorted keys wait no longer."""
        waiting = self.waiting.pop(bits, self.empty)
        self.wait(bits, waiting[~is_member(waiting, keys)])

    def stop_at(self, bits: int, unreduced: Sequence[Index]) -> None:
        """What nothing reduces ends the reduction like a master, and is reported."""
        if unreduced:
            self.stops[bits] = np.union1d(self.stops[bits], Sector(self.layout, bits).encode(np.array(unreduced)))
            self.drop(bits, self.stops[bits])

    def take(self, bits: int, count: int) -> np.ndarray:
        """The heaviest of those that wait in a sector; they wait no longer."""
        keys = self.waiting.pop(bits)
        if len(keys) > count:
            self.waiting[bits] = keys[:-count]
        return keys[-count:]


class _StepWork:
    """One-step reductions in several sectors, for one task."""

    def __init__(self, setting: Setting, known: dict[int, tuple], allowed: tuple[int, ...], helpers: Executor | None):
        self.setting, self.known, self.allowed, self.helpers = setting, known, allowed, helpers
        self.sectors: dict[int, OneStep] = {}
        self.done: dict[int, np.ndarray] = {}
        self.terms: dict[int, list[Terms]] = {}

    def run(self, keys: dict[int, np.ndarray], seconds: float) -> dict[str, Any]:
        started = time.monotonic()
        frontier = Frontier(self.setting.task.layout, {bits: self.setting.stops[bits] for bits in {*keys, *self.allowed}})
        for bits, some in keys.items():
            frontier.meet(bits, some)
        while frontier.waiting and (not self.done or (time.monotonic() < started + seconds and self._integrals < LARGEST_BATCH)):
            bits = max(frontier.waiting, key=sector_order)  # from the top, so that the waves of the lower sectors are few and long
            terms = self._reduce(bits, frontier.take(bits, BLOCK))
            for below in np.unique(terms.sector).tolist():
                if below in self.allowed:
                    frontier.meet(below, terms.key[terms.sector == below])
        counts = {name: sum(sector.work.counts[name] for sector in self.sectors.values()) for name in COUNTS}
        return {
            "sectors": {bits: self._result(bits) for bits in self.done},
            "counts": counts | {"integrals": self._integrals},
            "seconds": time.monotonic() - started,
            "peak_memory_kb": peak_memory_kb(),
        }

    @property
    def _integrals(self) -> int:
        return sum(map(len, self.done.values()))

    def _reduce(self, bits: int, wave: np.ndarray) -> Terms:
        step = self._sector(bits)
        terms = step.reduce(wave)
        wave = wave[~is_member(wave, step.work.stops)]  # what has turned out to be irreducible is not done
        self.done[bits] = merge(self.done.get(bits, wave[:0]), wave)
        self.terms.setdefault(bits, []).append(terms)
        return terms

    def _sector(self, bits: int) -> OneStep:
        if bits not in self.sectors:
            own, (known, steps) = self.setting, self.known.get(bits, (None, {}))
            knowledge = SectorKnowledge() if known is None else unpack_sector(known, own.family)
            task = replace(own.task, bits=bits, known=knowledge, stops=own.stops[bits], steps=steps, mapping=own.maps.get(bits))
            self.sectors[bits] = OneStep(task, self.helpers)
        return self.sectors[bits]

    def _result(self, bits: int) -> dict[str, Any]:
        work, terms = self.sectors[bits].work, Terms.join(self.terms[bits])
        learned = work.rules.learned
        return {
            "done": pack_keys(self.done[bits]),
            "terms": terms.pack(),
            "unreduced": sorted(work.unreduced.values()),
            "learned": pack_sector(learned, self.setting.family.n) if learned else None,
            "steps": work.new_steps,
            "paths": work.paths,
        }


class BatchPlan:
    """How many integrals make a task: a fixed number, or what takes job_seconds by the costs learned so far."""

    def __init__(self, fixed: int | None, job_seconds: float):
        self.fixed, self.job_seconds = fixed, job_seconds
        self.jobs = 0
        self.cost: dict[int, tuple[int, float]] = {}

    def note(self, bits: int, integrals: int, seconds: float) -> None:
        """A task that mostly worked in this sector came back."""
        count, total = self.cost.get(bits, (0, 0.0))
        self.cost[bits] = (count + integrals, total + seconds)
        self.jobs += 1

    def size(self, bits: int) -> int | None:
        """Integrals in a full batch; None while nothing is known."""
        if self.fixed is not None:
            return self.fixed
        count, seconds = self.cost.get(bits) or tuple(map(sum, zip(*self.cost.values()))) or (0, 0.0)
        return min(max(int(self.job_seconds * count / max(seconds, 1e-3)), 1), LARGEST_BATCH) if count else None

    @property
    def exploring_seconds(self) -> float:
        return self.job_seconds if self.jobs >= FIRST_JOBS else self.job_seconds / 6


@dataclass(frozen=True, eq=False)
class Batch:
    """A submitted task: its integrals by sector, the sectors that no other task goes on into meanwhile, and the rules it was given."""

    keys: dict[int, np.ndarray]
    claims: tuple[int, ...]
    rules: Shared


class SharedRules:
    """The file with all rules and stored one-step results, renewed now and then; an old one goes with the last task that reads it."""

    def __init__(self, state: RunState, sectors: Iterable[int], directory: Path):
        self._state, self._sectors, self._directory = state, sectors, directory
        self._newest: Shared | None = None
        self._rules_in_it, self._since = 0, -math.inf
        self._users: Counter[Shared] = Counter()

    def newest(self) -> Shared:
        """Raises OSError."""
        state = self._state
        due = self._rules_in_it != state.statistics["rules"] and time.monotonic() > self._since + KNOWLEDGE_INTERVAL_S
        if self._newest is None or due:
            packed = {}
            for bits in self._sectors if not state.problem.corners_stay else ():
                known = state.known.sector(bits)
                rules = pack_sector(known, state.problem.family.n) if known else None
                packed[bits] = (rules, state.known.knowledge.steps.get(bits, {}))
            old, self._newest = self._newest, Shared.write(packed, self._directory)
            self._since, self._rules_in_it = time.monotonic(), state.statistics["rules"]
            self._drop_unused(old)
        return self._newest

    def use(self, rules: Shared) -> None:
        self._users[rules] += 1

    def release(self, rules: Shared) -> None:
        self._users[rules] -= 1
        self._drop_unused(rules)

    def _drop_unused(self, rules: Shared | None) -> None:
        if rules is not None and rules != self._newest and not self._users[rules]:
            Path(rules.path).unlink(missing_ok=True)
