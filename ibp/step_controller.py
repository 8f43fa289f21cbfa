"""One-step tasks without barriers, resumable."""

from __future__ import annotations

import json
import math
import queue
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from executors.errors import ExecutorError
from executors.files import replace_file
from executors.inline import InlineExecutor
from executors.tasks import Shared
from ibp.console import Progress, format_rate, format_seconds
from ibp.controller import Controller
from ibp.errors import ReductionError, StopRequested
from ibp.families import Expression, Index
from ibp.journal import Journal
from ibp.knowledge import pack_sector, unpack_sector
from ibp.master_search import search_masters
from ibp.masters import heaviest_first
from ibp.problems import Problem
from ibp.run_directory import RunDirectory
from ibp.sector_tasks import Terms
from ibp.sectors import Sector, sector_of, sector_order
from ibp.steps import LARGEST_BATCH, Frontier, Setting, carry_sector, reduce_steps
from ibp.store import Store
from ibp.tables import is_member, merge, pack_keys, unpack_keys
from ibp.targets import Target, integrals_in

TICK_S = 0.5
STATUS_FORMAT = 1
STATUS_INTERVAL_S = 2.0  # how often status.json is written
KNOWLEDGE_INTERVAL_S = 2.0  # new rules reach new tasks that soon
FIRST_JOBS = 8  # until so many have come back, jobs that go on by themselves are short, so that work to share appears early
LARGEST_TASK = 0  # in place of a process id: what the processes of a pool take together says nothing
HOPELESS_FAILURES = 5  # so many failed tasks before any succeeded end the run


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
    """A submitted task: its integrals by sector, the sectors that no other task goes on into meanwhile, and the knowledge it was given."""

    keys: dict[int, np.ndarray]
    claims: tuple[int, ...]
    known: Shared


class StepController(Controller):
    """The asynchronous scheme: one-step results of integrals are the tasks, in batches, with no barrier between sectors or levels.

    An integral that is met and neither a master nor known nor submitted is submitted at once, heavier ones first. What comes back goes to
    the journal, from which the coefficients are carried down at the end. Where fewer integrals wait than fill a batch (batches of fixed
    size are never filled up), one task per sector goes on by itself with what they lead to, until its time is up.
    """

    def __init__(
        self,
        problem: Problem,
        executor: Any,
        shelves: Sequence[Store],
        progress: Progress,
        directory: RunDirectory,
        journal: Journal,
        plan: BatchPlan,
    ):
        super().__init__(problem, executor, shelves, progress)
        self.directory, self.journal, self.plan = directory, journal, plan
        self.settled: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self.failures: list[str] = []
        self.records: dict[int, list[int]] = {}  # positions in the journal, by sector
        self.done: dict[int, np.ndarray] = {}
        self.claimed: set[int] = set()
        self.frontier: Frontier | None = None
        self.known: Shared | None = None
        self.known_rules = 0
        self.known_since = -math.inf
        self.users: Counter[Shared] = Counter()
        self.monitor = Monitor(directory, progress)
        # an inline executor works within submit(): what is done there must come to the journal before the next task
        self.most_running = 1 if isinstance(executor, InlineExecutor) else math.inf

    # what an earlier controller left ------------------------------------------------------------------------------

    def _prepare(self) -> None:
        super()._prepare()
        for position, record in self.journal.records():
            self._note_record(position, record)
        self.recovered = self.executor.recover()
        if self.done or self.recovered:
            known = sum(map(len, self.done.values()))
            self.progress.say(f"going on: {known:,} integrals are done already, {len(self.recovered)} tasks are taken over")

    def _note_record(self, position: int, record: dict[str, Any]) -> None:
        bits = record["sector"]
        if record["learned"] is not None:
            self._learn(bits, unpack_sector(record["learned"], self.family), record.get("steps"))
        if "done" in record:
            self.records.setdefault(bits, []).append(position)
            done = unpack_keys(record["done"])
            self.done[bits] = merge(self.done.get(bits, done[:0]), done)
            self.statistics["integrals"] += len(done)
            self.statistics["references"] += len(unpack_keys(record["terms"][0]))
            self.paths |= record["paths"]

    def _taken_over(self, fn: Callable) -> list[tuple[Future, tuple]]:
        """Tasks of an earlier controller that call this function."""
        return [(future, args) for future, its_fn, args, _ in self.recovered if its_fn is fn]

    def _follow(self, future: Future) -> Future:
        future.add_done_callback(self.settled.put)
        return future

    # the loop -----------------------------------------------------------------------------------------------------

    def _work_off(self, phase: str, running: dict[Future, Any], submit: Callable[[], None], take: Callable[[Any, Any], None]) -> None:
        """Submit, wait and take results until nothing is left. Raises ReductionError at the end if tasks failed."""
        submit()
        self.monitor.tell(phase, self, at_once=True)
        while running:
            settled = self._wait()
            for future in settled:
                task = running.pop(future)
                if (error := future.exception()) is not None:
                    self._note_failure(error)
                    if isinstance(task, Batch):
                        self._end(task)
                else:
                    take(task, future.result())
                    self.statistics["tasks"] += 1
            if settled:
                self.journal.sync()
                for future in settled:
                    self.executor.forget(future)
            if self.directory.stop_request.exists():
                raise StopRequested
            if settled:
                submit()
            self.monitor.tell(phase, self)
        if self.failures:
            raise ReductionError(
                f"{len(self.failures)} tasks failed, the first one: {self.failures[0]}; what is done is kept, run again to go on from there"
            )

    def _wait(self) -> list[Future]:
        """What has settled, after a short while if nothing has."""
        settled: list[Future] = []
        with suppress(queue.Empty):
            settled.append(self.settled.get(timeout=TICK_S))
            while True:
                settled.append(self.settled.get_nowait())
        return settled

    def _note_failure(self, error: BaseException) -> None:
        self.failures.append(str(error) or type(error).__name__)
        if len(self.failures) >= HOPELESS_FAILURES and not self.statistics["tasks"]:
            raise ReductionError(f"the first {len(self.failures)} tasks failed, the first one: {self.failures[0]}")

    # masters ------------------------------------------------------------------------------------------------------

    def _search_masters(self, missing: list[int]) -> None:
        running: dict[Future, int] = {self._follow(future): args[2] for future, args in self._taken_over(search_masters)}
        left = [bits for bits in missing if bits not in running.values()]

        def submit() -> None:
            while left and len(running) < self.most_running:
                bits = left.pop()
                task = (self.knowledge.nonzero, self.generic, bits, self.problem.guide)
                running[self._follow(self.executor.submit(search_masters, *task))] = bits

        def take(bits: int, packed: dict[str, Any]) -> None:
            self.journal.append({"sector": bits, "learned": packed})
            self._learn(bits, unpack_sector(packed, self.family))

        self._work_off("masters", running, submit, take)

    # one-step results ---------------------------------------------------------------------------------------------

    def _reduce_all(self, wanted: tuple[Target, ...]) -> dict[Target, Expression]:
        stops = {bits: self.masters.get(bits, ()) for bits in self._sectors_below(integrals_in(wanted))}
        setting = Setting(self.problem.name, self.family, self._common_task(), stops, self.numeric_maps)
        self.setting = Shared.write(setting, self.directory.shared)
        self.frontier = Frontier(self.layout, stops)
        running = self._restore()
        for target in integrals_in(wanted):
            if sector_of(target) in self.knowledge.nonzero:
                self.frontier.meet(sector_of(target), Sector(self.layout, sector_of(target)).encode(np.array([target])))
        self._work_off("integrals", running, lambda: self._submit_waiting(running), self._take_steps)
        expressions = super()._reduce_all(wanted)
        self.monitor.tell("done", self, at_once=True)
        self.statistics["sectors"] = len(self.done)
        self.statistics |= executor_totals(self.executor) | {"cache_entries": self.statistics["integrals"]}
        return expressions

    def _restore(self) -> dict[Future, Batch]:
        """The frontier as an earlier controller left it: what is done, what tasks are at, and what neither has met yet."""
        running = {}
        for bits, keys in self.done.items():
            self.frontier.note(bits, keys)
        for future, (setting, known, keys, claims, _) in self._taken_over(reduce_steps):
            if not self._is_ours(setting):
                self.executor.forget(future)
                continue
            batch = Batch({bits: unpack_keys(some) for bits, some in keys.items()}, claims, known)
            running[self._follow(future)] = self._begin(batch)
            for bits, some in batch.keys.items():
                self.frontier.note(bits, some)
        for positions in self.records.values():
            for position in positions:
                self._meet_terms(self._terms(self.journal.read(position)))
        return running

    def _is_ours(self, setting: Shared) -> bool:
        """Whether a task left by an earlier controller belongs to this problem; where its file is gone, its job can only fail."""
        try:
            return setting.get().run == self.problem.name
        except ExecutorError:
            return False

    def _begin(self, batch: Batch) -> Batch:
        self.claimed.update(batch.claims)
        self.users[batch.known] += 1
        return batch

    def _end(self, batch: Batch) -> None:
        self.claimed.difference_update(batch.claims)
        self.users[batch.known] -= 1
        self._drop_unused(batch.known)

    def _submit_waiting(self, running: dict[Future, Batch]) -> None:
        for bits in sorted(self.frontier.waiting, key=sector_order, reverse=True):
            while bits in self.frontier.waiting and len(running) < self.most_running and (task := self._next_batch(bits)):
                batch, seconds = task
                packed = {sector: pack_keys(keys) for sector, keys in batch.keys.items()}
                future = self.executor.submit(reduce_steps, self.setting, batch.known, packed, batch.claims, seconds)
                running[self._follow(future)] = self._begin(batch)

    def _next_batch(self, bits: int) -> tuple[Batch, float] | None:
        """The next task of a sector in which integrals wait, and its time; None if they should rather wait for the task that is there."""
        waiting, size = len(self.frontier.waiting[bits]), self.plan.size(bits)
        if self.plan.fixed is not None:
            return Batch({bits: self.frontier.take(bits, size)}, (), self._knowledge()), math.inf
        if size is not None and waiting >= size:
            return Batch({bits: self.frontier.take(bits, size)}, (), self._knowledge()), 2 * self.plan.job_seconds
        if bits in self.claimed:
            return None
        keys = self.frontier.take(bits, waiting)
        taken = self.claimed | self.frontier.waiting.keys()
        claims = (bits, *(b for b in self.frontier.stops if b != bits and b & bits == b and b not in taken))
        return Batch({bits: keys}, claims, self._knowledge()), self.plan.exploring_seconds

    def _knowledge(self) -> Shared:
        """The file with all rules and stored one-step results, renewed now and then."""
        if self.known is None or (
            self.known_rules != self.statistics["rules"] and time.monotonic() > self.known_since + KNOWLEDGE_INTERVAL_S
        ):
            packed = {}
            for bits in self.frontier.stops if not self.corners_stay else ():
                known = self._sector(bits)
                packed[bits] = (pack_sector(known, self.family.n) if known else None, self.knowledge.steps.get(bits, {}))
            old, self.known = self.known, Shared.write(packed, self.directory.shared)
            self.known_since, self.known_rules = time.monotonic(), self.statistics["rules"]
            self._drop_unused(old)
        return self.known

    def _drop_unused(self, known: Shared | None) -> None:
        if known is not None and known != self.known and not self.users[known]:
            Path(known.path).unlink(missing_ok=True)

    def _take_steps(self, batch: Batch, result: dict[str, Any]) -> None:
        new = [self._take_sector(bits, found) for bits, found in result["sectors"].items()]
        for terms in new:  # only now that all of them are noted as done
            self._meet_terms(terms)
        for bits, keys in batch.keys.items():  # a task whose time is up leaves some
            self.frontier.wait(bits, keys[~is_member(keys, self.done.get(bits, keys[:0])) & ~is_member(keys, self.frontier.stops[bits])])
        self._end(batch)
        for name in ("tries", "replays", "rules", "rows", "searches", "search_steps", "mapped"):
            self.statistics[name] += result["counts"][name]
        self.plan.note(max(batch.keys, key=sector_order), result["counts"]["integrals"], result["seconds"])
        self.memory[LARGEST_TASK] = max(result["peak_memory_kb"], self.memory.get(LARGEST_TASK, 0))

    def _take_sector(self, bits: int, found: dict[str, Any]) -> Terms:
        """Journal what is new in a sector's part of a result: a task that was thought lost, or went on beside another one, repeats some."""
        done, known = unpack_keys(found["done"]), self.done.get(bits, self.frontier.empty)
        new = done[~is_member(done, known) & ~is_member(done, self.frontier.stops[bits])]
        terms = Terms(*map(unpack_keys, found["terms"]))
        terms = terms.lines(is_member(terms.source, new))
        sector = Sector(self.layout, bits)
        record = {
            "sector": bits,
            "done": pack_keys(new),
            "terms": terms.pack(),
            "unreduced": [i for i in found["unreduced"] if not is_member(sector.encode(np.array([i])), known)],
            "learned": found["learned"],
            "steps": found["steps"],
            "paths": found["paths"],
        }
        self._note_record(self.journal.append(record), record)
        self._stop_at(bits, record["unreduced"])
        self.frontier.note(bits, new)
        self.frontier.drop(bits, new)
        return terms

    def _terms(self, record: dict[str, Any]) -> Terms:
        self._stop_at(record["sector"], record["unreduced"])
        return Terms(*map(unpack_keys, record["terms"]))

    def _stop_at(self, bits: int, unreduced: Sequence[Index]) -> None:
        """What nothing reduces ends the reduction like a master, and is reported."""
        if unreduced:
            keys = Sector(self.layout, bits).encode(np.array(unreduced))
            self.frontier.stops[bits] = np.union1d(self.frontier.stops[bits], keys)
            self.frontier.drop(bits, self.frontier.stops[bits])

    def _meet_terms(self, terms: Terms) -> None:
        for bits in np.unique(terms.sector).tolist():
            self.frontier.meet(bits, terms.key[terms.sector == bits])

    # coefficients -------------------------------------------------------------------------------------------------

    def _reduce(self, targets: tuple[Target, ...]) -> dict[Target, Expression]:
        """From the top sector to the lowest, by the one-step results in the journal."""
        pending, p = self._start(targets), self.point.prime
        expressions: list[Expression] = [{} for _ in targets]
        for bits in sorted(self.frontier.stops, key=sector_order, reverse=True):
            if bits not in pending:
                continue
            keys, coefficients = (np.concatenate(group) for group in zip(*pending.pop(bits)))
            terms = Terms.join(
                [Terms.nothing(self.layout.dtype), *(self._terms(self.journal.read(position)) for position in self.records.get(bits, ()))]
            )
            self._check_complete(bits, np.concatenate([keys, terms.key[terms.sector == bits]]))
            lines, below = carry_sector(bits, terms, keys, coefficients, self.frontier.stops[bits], p)
            for b, part in below.items():
                pending.setdefault(b, []).append(part)
            for key, line in lines.items():
                integral = tuple(Sector(self.layout, bits).decode(np.array([key], self.layout.dtype))[0].tolist())
                for expression, value in zip(expressions, line.tolist()):
                    if value:
                        expression[integral] = value
        return dict(zip(targets, map(heaviest_first, expressions)))

    def _check_complete(self, bits: int, keys: np.ndarray) -> None:
        """Raises ReductionError if a coefficient arrives where no one-step result is: a damaged journal must not become a wrong result."""
        known = np.union1d(self.done.get(bits, self.frontier.empty), self.frontier.stops[bits])
        if len(lost := keys[~is_member(keys, known)]):
            raise ReductionError(f"{self.journal.path}: {len(lost)} results of sector {bits} are missing; start anew with --fresh")


class Monitor:
    """What a run of one-step tasks tells: status.json for other terminals, a bar or now and then a line here."""

    def __init__(self, directory: RunDirectory, progress: Progress):
        self.directory, self.progress = directory, progress
        self.started = self.written = time.time()
        self.history: deque[tuple[float, int]] = deque(maxlen=30)

    def tell(self, phase: str, controller: StepController, at_once: bool = False) -> None:
        now = time.time()
        if now < self.written + STATUS_INTERVAL_S and not at_once:
            return
        self.written = now
        done = controller.statistics["integrals"]
        met = sum(map(len, controller.frontier.met.values())) if controller.frontier else 0
        self.history.append((now, done))
        then, before = self.history[0]
        rate = (done - before) / (now - then) if now > then else 0.0
        status = {
            "format": STATUS_FORMAT,
            "time": now,
            "started": self.started,
            "run": controller.problem.name,
            "phase": phase,
            "integrals": {"done": done, "met": met, "waiting": sum(map(len, controller.frontier.waiting.values())) if met else 0},
            "tasks": controller.executor.counts(),
            "statistics": executor_totals(controller.executor),
            "cache": {"entries": done, "hits": max(controller.statistics["references"] - done, 0)},
            "rules_found": controller.statistics["rules"],
            "failures": controller.failures[:10],
            "held": controller.executor.held_reasons(),
            "integrals_per_s": rate,
            "left_s": (met - done) / rate if rate > 0 else None,
        }
        with suppress(OSError):  # a full disk is told by the journal, which counts; a status that is old says so itself
            replace_file(self.directory.status, json.dumps(status, indent=1).encode())
        self.progress.show(phase, done, met, describe_status(status))


def executor_totals(executor: Any) -> dict[str, int]:
    """What happened to the tasks so far: jobs, stragglers, …, calls of HTCondor's tools."""
    return {name: sum(count.values()) if isinstance(count, dict) else count for name, count in executor.statistics.items()}


def describe_status(status: dict[str, Any]) -> str:
    """One line of what a run is at."""
    tasks = status["tasks"]
    parts = [f"{tasks[state]} {state}" for state in ("running", "idle", "queued", "held", "failed") if tasks.get(state)]
    parts.append(f"{status['cache']['hits']:,} hits")
    if status["left_s"] is not None:
        parts.append(f"{format_rate(status['integrals_per_s'])}/s, at least {format_seconds(status['left_s'])} left")
    return ", ".join(parts)
