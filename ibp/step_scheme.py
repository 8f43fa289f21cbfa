"""One-step results of integrals as tasks, in batches, with no barrier between sectors or levels; a later controller can go on with them.

An integral that is met and neither a master nor known nor submitted is submitted at once, heavier ones first. What comes back goes to the
journal, from which the coefficients are carried down at the end. Where fewer integrals wait than fill a batch (batches of fixed size are
never filled up), one task per sector goes on by itself with what they lead to, until its time is up.
"""

from __future__ import annotations

import math
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from executors.base import InlineExecutor
from executors.errors import ExecutorError
from executors.tasks import Shared
from ibp.carrying import Flow, carry_sector, in_passes
from ibp.errors import ReductionError, StopRequested
from ibp.families import Expression
from ibp.journal import Journal
from ibp.knowledge import unpack_sector
from ibp.master_search import search_masters
from ibp.run_directory import RunDirectory
from ibp.run_state import Ground, Prepared, RunState
from ibp.sector_tasks import Terms
from ibp.sectors import Sector, sector_of, sector_order
from ibp.status import Monitor, executor_totals
from ibp.steps import Batch, BatchPlan, Frontier, Setting, SharedRules, reduce_steps
from ibp.tables import is_member, merge, pack_keys, unpack_keys
from ibp.targets import Target, integrals_in

TICK_S = 0.5
LARGEST_TASK = 0  # in place of a process id: what the processes of a pool take together says nothing
HOPELESS_FAILURES = 5  # so many failed tasks before any succeeded end the run


class TaskLoop:
    """Tasks on their way: what has settled is taken, and more is submitted, until nothing is left."""

    def __init__(self, state: RunState, journal: Journal, directory: RunDirectory):
        self.state, self.executor, self.journal = state, state.executor, journal
        self.stop_request, self.monitor = directory.stop_request, Monitor(directory.status, state.reporter)
        self.failures: list[str] = []
        self._settled: queue.SimpleQueue[Future] = queue.SimpleQueue()
        # an inline executor works within submit(): what is done there must come to the journal before the next task
        self.most_running = 1 if isinstance(state.executor, InlineExecutor) else math.inf

    def follow(self, future: Future) -> Future:
        future.add_done_callback(self._settled.put)
        return future

    def run(
        self,
        phase: str,
        running: dict[Future, Any],
        submit: Callable[[], None],
        take: Callable[[Any, Any], None],
        give_up: Callable[[Any], None],
        frontier: Frontier | None = None,
    ) -> None:
        """Of tasks by future: take(task, result) what succeeded, give_up(task) what failed, submit() more after each round.

        Raises StopRequested; ReductionError at the end if tasks failed.
        """
        submit()
        self.tell(phase, frontier, at_once=True)
        while running:
            settled = self._wait()
            for future in settled:
                task = running.pop(future)
                if (error := future.exception()) is not None:
                    self._note_failure(error)
                    give_up(task)
                else:
                    take(task, future.result())
                    self.state.statistics["tasks"] += 1
            if settled:
                self.journal.sync()
                for future in settled:
                    self.executor.forget(future)
            if self.stop_request.exists():
                raise StopRequested
            if settled:
                submit()
            self.tell(phase, frontier)
        if self.failures:
            raise ReductionError(
                f"{len(self.failures)} tasks failed, the first one: {self.failures[0]}; what is done is kept, run again to go on from there"
            )

    def tell(self, phase: str, frontier: Frontier | None, at_once: bool = False) -> None:
        self.monitor.tell(phase, self.state, self.failures, frontier, at_once)

    def _wait(self) -> list[Future]:
        """What has settled, after a short while if nothing has."""
        settled: list[Future] = []
        with suppress(queue.Empty):
            settled.append(self._settled.get(timeout=TICK_S))
            while True:
                settled.append(self._settled.get_nowait())
        return settled

    def _note_failure(self, error: BaseException) -> None:
        self.failures.append(str(error) or type(error).__name__)
        if len(self.failures) >= HOPELESS_FAILURES and not self.state.statistics["tasks"]:
            raise ReductionError(f"the first {len(self.failures)} tasks failed, the first one: {self.failures[0]}")


class StepResults:
    """What one-step tasks have come to, kept in a journal; the state learns what they found out.

    done: {sector: sorted keys} of the integrals whose results are there.
    """

    def __init__(self, journal: Journal, state: RunState):
        self.journal, self.state = journal, state
        self.done: dict[int, np.ndarray] = {}
        self._records: dict[int, list[int]] = {}  # positions in the journal, by sector

    def restore(self) -> None:
        """Take over what an earlier controller wrote. Raises ReductionError."""
        for position, record in self.journal.records():
            self._note(position, record)

    def add_masters(self, bits: int, packed: dict[str, Any]) -> None:
        """What a search for masters found. Raises ReductionError."""
        record = {"sector": bits, "learned": packed}
        self._note(self.journal.append(record), record)

    def add_steps(self, bits: int, found: dict[str, Any], frontier: Frontier) -> Terms:
        """What is new in a sector's part of a task's result: one that was thought lost, or went on beside another one, repeats some.

        Raises ReductionError.
        """
        done, known = unpack_keys(found["done"]), self.done.get(bits, frontier.empty)
        new = done[~is_member(done, known) & ~is_member(done, frontier.stops[bits])]
        terms = Terms(*map(unpack_keys, found["terms"]))
        terms = terms.lines(is_member(terms.source, new))
        sector = Sector(frontier.layout, bits)
        record = {
            "sector": bits,
            "done": pack_keys(new),
            "terms": terms.pack(),
            "unreduced": [i for i in found["unreduced"] if not is_member(sector.encode(np.array([i])), known)],
            "learned": found["learned"],
            "steps": found["steps"],
            "paths": found["paths"],
        }
        self._note(self.journal.append(record), record)
        frontier.stop_at(bits, record["unreduced"])
        frontier.note(bits, new)
        frontier.drop(bits, new)
        return terms

    def _note(self, position: int, record: dict[str, Any]) -> None:
        bits, state = record["sector"], self.state
        if record["learned"] is not None:
            state.learn(bits, unpack_sector(record["learned"], state.problem.family), record.get("steps"))
        if "done" in record:
            self._records.setdefault(bits, []).append(position)
            done = unpack_keys(record["done"])
            self.done[bits] = merge(self.done.get(bits, done[:0]), done)
            state.count({"integrals": len(done), "references": len(unpack_keys(record["terms"][0]))})
            state.paths |= record["paths"]

    def read(self, frontier: Frontier, sectors: Sequence[int] | None = None) -> Iterator[Terms]:
        """All one-step results of these sectors, by default of all; the frontier stops at what nothing reduces. Raises ReductionError."""
        for bits in self._records if sectors is None else sectors:
            for position in self._records.get(bits, ()):
                record = self.journal.read(position)
                frontier.stop_at(bits, record["unreduced"])
                yield Terms(*map(unpack_keys, record["terms"]))

    def check_complete(self, bits: int, keys: np.ndarray, frontier: Frontier) -> None:
        """Raises ReductionError if a coefficient arrives where no one-step result is: a damaged journal must not become a wrong result."""
        known = np.union1d(self.done.get(bits, frontier.empty), frontier.stops[bits])
        if len(lost := keys[~is_member(keys, known)]):
            raise ReductionError(f"{self.journal.path}: {len(lost)} results of sector {bits} are missing; start anew with --fresh")


class StepScheme:
    """The scheme of a Controller whose results go to a journal. directory: of the run, which it has claimed."""

    _loop: TaskLoop
    _results: StepResults
    _recovered: list[tuple[Future, Callable, tuple, dict]]  # tasks of an earlier controller

    def __init__(self, directory: RunDirectory, journal: Journal, plan: BatchPlan):
        self.directory, self.journal, self.plan = directory, journal, plan

    def resume(self, state: RunState) -> None:
        """Take over what is in the journal, and tasks that an earlier controller left. Raises ReductionError."""
        self._loop = TaskLoop(state, self.journal, self.directory)
        self._results = StepResults(self.journal, state)
        self._results.restore()
        self._recovered = state.executor.recover()
        if self._results.done or self._recovered:
            done = sum(map(len, self._results.done.values()))
            left = f"{done:,} integrals are done already, {len(self._recovered)} tasks are taken over"
            state.reporter.say(f"going on: {left}")

    def _taken_over(self, fn: Callable) -> list[tuple[Future, tuple]]:
        """Tasks of an earlier controller that call this function."""
        return [(future, args) for future, its_fn, args, _ in self._recovered if its_fn is fn]

    def search_masters(self, state: RunState, prepared: Prepared, missing: list[int]) -> None:
        """Raises ReductionError, StopRequested."""
        loop = self._loop
        running: dict[Future, int] = {loop.follow(future): args[2] for future, args in self._taken_over(search_masters)}
        left = [bits for bits in missing if bits not in running.values()]

        def submit() -> None:
            while left and len(running) < loop.most_running:
                bits = left.pop()
                task = (prepared.nonzero, prepared.generic, bits, state.problem.guide)
                running[loop.follow(state.executor.submit(search_masters, *task))] = bits

        loop.run("masters", running, submit, self._results.add_masters, lambda bits: None)

    def reduce(self, state: RunState, ground: Ground, targets: tuple[Target, ...]) -> dict[Target, Expression]:
        """Raises ReductionError, StopRequested."""
        closure = Closure(state, ground, targets, self._results, self.plan, self.directory.shared)
        closure.run(self._loop, self._taken_over(reduce_steps))
        reductions: dict[Target, Expression] = {}
        for _, some in in_passes(targets):
            reductions |= closure.carry(some)
        self._loop.tell("done", closure.frontier, at_once=True)
        state.statistics["sectors"] = len(self._results.done)
        state.statistics |= executor_totals(state.executor) | {"cache_entries": state.statistics["integrals"]}
        return reductions


class Closure:
    """All integrals that the reduction of some targets leads to, cut into tasks as they are met."""

    def __init__(self, state: RunState, ground: Ground, targets: Sequence[Target], results: StepResults, plan: BatchPlan, shared: Path):
        """shared: directory of what tasks read. Raises OSError."""
        prepared = ground.prepared
        stops = {bits: ground.masters.get(bits, ()) for bits in prepared.sectors_below(integrals_in(targets))}
        self.state, self.ground, self.targets, self.results, self.plan = state, ground, targets, results, plan
        self.frontier = Frontier(ground.layout, stops)
        setting = Setting(state.problem.name, state.problem.family, ground.task(), stops, prepared.numeric_maps)
        self._setting, self._rules = Shared.write(setting, shared), SharedRules(state, stops, shared)
        self._claimed: set[int] = set()

    def run(self, loop: TaskLoop, taken_over: Sequence[tuple[Future, tuple]]) -> None:
        """Until everything is done. Raises ReductionError, StopRequested."""
        running = self._restore(loop, taken_over)
        for target in integrals_in(self.targets):
            bits = sector_of(target)
            if bits in self.ground.prepared.nonzero:
                self.frontier.meet(bits, Sector(self.ground.layout, bits).encode(np.array([target])))
        loop.run("integrals", running, lambda: self._submit_waiting(loop, running), self._take, self._end, self.frontier)

    def _restore(self, loop: TaskLoop, taken_over: Sequence[tuple[Future, tuple]]) -> dict[Future, Batch]:
        """The frontier as an earlier controller left it: what is done, what tasks are at, and what neither has met yet."""
        running = {}
        for bits, keys in self.results.done.items():
            self.frontier.note(bits, keys)
        for future, (setting, rules, keys, claims, _) in taken_over:
            if not self._is_ours(setting):
                loop.executor.forget(future)
                continue
            batch = Batch({bits: unpack_keys(some) for bits, some in keys.items()}, claims, rules)
            running[loop.follow(future)] = self._begin(batch)
            for bits, some in batch.keys.items():
                self.frontier.note(bits, some)
        for terms in self.results.read(self.frontier):
            self._meet(terms)
        return running

    def _is_ours(self, setting: Shared) -> bool:
        """Whether a task left by an earlier controller belongs to this problem; where its file is gone, its job can only fail."""
        try:
            return setting.get().run == self.state.problem.name
        except ExecutorError:
            return False

    def _begin(self, batch: Batch) -> Batch:
        self._claimed.update(batch.claims)
        self._rules.use(batch.rules)
        return batch

    def _end(self, batch: Batch) -> None:
        self._claimed.difference_update(batch.claims)
        self._rules.release(batch.rules)

    def _submit_waiting(self, loop: TaskLoop, running: dict[Future, Batch]) -> None:
        for bits in sorted(self.frontier.waiting, key=sector_order, reverse=True):
            while bits in self.frontier.waiting and len(running) < loop.most_running and (task := self._next_batch(bits)):
                batch, seconds = task
                packed = {sector: pack_keys(keys) for sector, keys in batch.keys.items()}
                future = loop.executor.submit(reduce_steps, self._setting, batch.rules, packed, batch.claims, seconds)
                running[loop.follow(future)] = self._begin(batch)

    def _next_batch(self, bits: int) -> tuple[Batch, float] | None:
        """The next task of a sector in which integrals wait, and its time; None if they should rather wait for the task that is there."""
        waiting, size, fixed = len(self.frontier.waiting[bits]), self.plan.size(bits), self.plan.fixed is not None
        if fixed or (size is not None and waiting >= size):
            seconds = math.inf if fixed else 2 * self.plan.job_seconds
            return Batch({bits: self.frontier.take(bits, size)}, (), self._rules.newest()), seconds
        if bits in self._claimed:
            return None
        keys = self.frontier.take(bits, waiting)
        taken = self._claimed | self.frontier.waiting.keys()
        claims = (bits, *(b for b in self.frontier.stops if b != bits and b & bits == b and b not in taken))
        return Batch({bits: keys}, claims, self._rules.newest()), self.plan.exploring_seconds

    def _take(self, batch: Batch, result: dict[str, Any]) -> None:
        new = [self.results.add_steps(bits, found, self.frontier) for bits, found in result["sectors"].items()]
        for terms in new:  # only now that all of them are noted as done
            self._meet(terms)
        for bits, keys in batch.keys.items():  # a task whose time is up leaves some
            done = self.results.done.get(bits, keys[:0])
            self.frontier.wait(bits, keys[~is_member(keys, done) & ~is_member(keys, self.frontier.stops[bits])])
        self._end(batch)
        counts = result["counts"]
        self.state.count({name: counts[name] for name in ("tries", "replays", "rules", "rows", "searches", "search_steps", "mapped")})
        self.plan.note(max(batch.keys, key=sector_order), counts["integrals"], result["seconds"])
        self.state.note_memory(LARGEST_TASK, result["peak_memory_kb"])

    def _meet(self, terms: Terms) -> None:
        for bits in np.unique(terms.sector).tolist():
            self.frontier.meet(bits, terms.key[terms.sector == bits])

    def carry(self, targets: Sequence[Target]) -> dict[Target, Expression]:
        """From the top sector to the lowest, by the one-step results in the journal. Raises ReductionError."""
        point, layout = self.state.problem.point, self.ground.layout
        flow = Flow(targets, layout, point, self.ground.prepared.nonzero)
        for bits in sorted(self.frontier.stops, key=sector_order, reverse=True):
            if bits not in flow.waiting:
                continue
            keys, coefficients = flow.take(bits)
            terms = Terms.join([Terms.nothing(layout.dtype), *self.results.read(self.frontier, [bits])])
            self.results.check_complete(bits, np.concatenate([keys, terms.key[terms.sector == bits]]), self.frontier)
            lines, below = carry_sector(bits, terms, keys, coefficients, self.frontier.stops[bits], point.prime)
            flow.pass_on(below)
            for key, line in lines.items():
                integral = Sector(layout, bits).decode(np.array([key], layout.dtype))[0]
                flow.arrive(tuple(integral.tolist()), line.tolist())
        return flow.reductions
