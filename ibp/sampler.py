"""Values of a problem's coefficients at sample points, from the journal or by tasks."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from executors.files import peak_memory_kb
from executors.inline import InlineExecutor
from executors.tasks import Shared
from ibp.console import Progress, format_seconds
from ibp.controller import Controller
from ibp.errors import InputError, ReductionError, SingularPoint, StopRequested
from ibp.exact import ExactProblem
from ibp.families import Expression, Index
from ibp.identities import Column, Point, mass_dimension
from ibp.journal import Journal
from ibp.letters import kinematic_letters
from ibp.masters import change_basis, use_relations
from ibp.probe import POINTS_AT_ONCE, probe
from ibp.problems import ExactOutcome, Outcome, Problem
from ibp.reconstruction import ATTEMPTS, Reconstruction, Sample
from ibp.residues import Polynomial, probe_primes
from ibp.run_directory import RunDirectory
from ibp.sectors import weight
from ibp.store import Store
from ibp.trace import Trace, record_trace


def probe_points(trace: Shared, primes: list[int], values: bytes, device: str) -> dict[str, Any]:
    """`probe` as a task: values int64 [symbols, P] of d and the invariants; the result has builtin types only."""
    started = time.monotonic()
    coefficients, good = probe(trace.get(), primes, np.frombuffer(values, np.int64).reshape(-1, len(primes)), device)
    return {
        "values": coefficients.astype(np.int64).tobytes(),
        "good": good.astype(np.int8).tobytes(),
        "seconds": time.monotonic() - started,
        "peak_memory_kb": peak_memory_kb(),
    }


def unpack_points(values: Any, good: Any, primes: Sequence[int], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Residues [P, F] and good [P] from a task or a journal. Raises ValueError or TypeError where they are not that."""
    table = np.frombuffer(values, np.int64).reshape(len(primes), count)
    flags = np.frombuffer(good, np.int8)
    limits = np.array(primes, np.int64).reshape(-1, 1)
    if len(flags) != len(primes) or not np.isin(flags, (0, 1)).all() or not ((table >= 0) & (table < limits)).all():
        raise ValueError("not residues of these points")
    return table, flags == 1


class Sampler:
    """Coefficients of a problem at sample points: from the journal, else by tasks; where a trace fails at a point, by a run of its own.

    Once prepared it has rows: names of what is expressed through masters; basis: masters that a result names even if nothing has them;
    names: (row, master) of each coefficient, of these `variables`, with one more set to 1 if there is a scale.
    """

    order: Callable[[Any], Any] = staticmethod(weight)  # sort key of masters

    def __init__(
        self,
        exact: ExactProblem,
        executor: Any,
        shelves: Sequence[Store],
        progress: Progress,
        journal: Journal,
        directory: RunDirectory,
        options: Any,
    ):
        self.directory, self.quiet = directory, options.quiet
        self.exact, self.executor, self.shelves, self.progress, self.journal = exact, executor, shelves, progress, journal
        self.device, self.task_seconds = options.device, options.job_seconds or (60.0 if options.condor else 4.0)
        self.shares = 1 if options.condor else executor.processes  # a job of HTCondor is not worth its start if it is short
        self.known: dict[Sample, np.ndarray | None] = {}
        self.counts = {"points": 0, "resumed": 0, "unlucky": 0, "tasks": 0}
        self.seconds = self.memory = 0
        self.scale: str | None = None
        self.basis: Sequence[Any] = ()

    # setting up ---------------------------------------------------------------------------------------------------

    def prepare(self, rng: np.random.Generator) -> None:
        """Record the trace at a random point, and see that it serves others. Raises ReductionError."""
        self.columns = self._find_columns(rng)
        for _ in range(ATTEMPTS):
            primes = list(itertools.islice(probe_primes(rng), 9))
            problem = self._problem_at(primes[0], self._random(rng, primes[0]))
            trace, outcome = record_trace(problem, self.shelves, self.progress)
            others = [(p, self._random(rng, p)) for p in primes[1:] for _ in range(2)]
            places = [self._point(p, values).residues() for p, values in others]
            began = time.perf_counter()
            _, good = probe(trace, [p for p, _ in others], np.array(places, np.int64).T)
            self.first_guess = (time.perf_counter() - began) / len(others)
            if good.all():
                break
        else:
            raise ReductionError("rules that hold at one point fail at others: the given numbers are a singular point; take others")
        self._set_up(trace, outcome)
        self.trace = Shared.write(trace, self.directory.shared)
        self.live = sum(sector.count for sector in trace.sectors)

    def _find_columns(self, rng: np.random.Generator) -> tuple[Column, ...]:
        """What is expressed through masters. Raises ReductionError, InputError."""
        return self.exact.columns()

    def degree(self, row: Any, master: Index) -> int:
        """Mass dimension of a coefficient, in units of a squared mass; to be asked for where there is a scale."""
        return self.dimensions[row] + sum(master)

    def _set_up(self, trace: Trace, outcome: Outcome) -> None:
        """Which functions there are, of which variables."""
        self.rows, self.basis = tuple(column.name for column in self.columns), self.basis or outcome.masters
        self.relations = outcome.relations
        self.names = self.raw_names = trace.names
        if self.relations or self.exact.problem.preferred_masters:
            self.names = tuple((column.name, master) for column in self.columns for master in outcome.reductions[column.name])
        self.dimensions = {column.name: mass_dimension(column.terms) for column in self.columns}
        invariants = [name for name, _ in self.exact.problem.family.point]
        variables = list(self.exact.symbols)
        if invariants and set(invariants) <= set(variables):
            homogeneous = [*trace.operators, *(relation.terms for relation in self.relations)]
            if None not in (*self.dimensions.values(), *map(mass_dimension, homogeneous)):
                self.scale = invariants[0]
                variables.remove(self.scale)
        self.variables = tuple(variables)

    def letters(self) -> tuple[Polynomial, ...]:
        """Factors that mix variables and are looked for."""
        numbers = self.exact.given | ({self.scale: Fraction(1)} if self.scale else {})
        return kinematic_letters(self.exact.problem.family, self.variables, numbers)

    def _random(self, rng: np.random.Generator, p: int) -> dict[str, int]:
        return {name: int(rng.integers(1000, p - 1000)) for name in self.exact.symbols}

    def _point(self, p: int, values: dict[str, int]) -> Point:
        """Its residues are those of d and all invariants."""
        numbers = self.exact.given | values
        return Point(Fraction(numbers["d"]), tuple((name, Fraction(numbers[name])) for name, _ in self.exact.problem.family.point), p)

    def _problem_at(self, p: int, values: dict[str, int]) -> Problem:
        """The columns at a point."""
        point = self._point(p, values)
        return replace(self.exact.problem, point=point, targets=(), combinations=self.columns, map_integrals=False)

    def restore(self) -> None:
        """Take over what the journal holds. Raises ReductionError where it does not belong here."""
        names = None
        for _, record in self.journal.records():
            try:
                if names is None:
                    names = record["names"]
                    if names != self.names:
                        raise ValueError("other coefficients")
                    continue
                samples = [(int(p), tuple(map(int, place))) for p, place in record["samples"]]
                table, good = unpack_points(record["values"], record["good"], [p for p, _ in samples], len(names))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ReductionError(f"{self.journal.path}: not what this run has written ({error}); start anew with --fresh") from None
            self.known |= {sample: row if flag else None for sample, row, flag in zip(samples, table, good)}
        if names is None:
            self.journal.append({"names": self.names})
        elif self.known:
            self.counts["resumed"] = len(self.known)
            self.progress.say(f"going on: {len(self.known):,} points are done already")

    # asking -------------------------------------------------------------------------------------------------------

    def __call__(self, samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
        missing = [sample for sample in dict.fromkeys(samples) if sample not in self.known]
        if missing:
            self._compute(missing)
        return self._table([self.known[sample] for sample in samples])

    def _table(self, rows: Sequence[np.ndarray | None]) -> tuple[np.ndarray, np.ndarray]:
        """Lines [P, F], zeros where there is none, and good [P]."""
        nothing = np.zeros(len(self.names), np.int64)
        lines = np.array([nothing if row is None else row for row in rows], np.int64).reshape(len(rows), len(self.names))
        return lines, np.array([row is not None for row in rows], bool)

    def announce(self, line: str) -> None:
        if not self.quiet:
            self.progress.say(line)

    def estimate(self, points: int) -> str:
        """What so many further points take."""
        return f"{points:,} points, some {format_seconds(points * self.seconds_per_point / self.shares)}"

    @property
    def seconds_per_point(self) -> float:
        return self.seconds / self.counts["points"] if self.counts["points"] else self.first_guess

    def _compute(self, missing: list[Sample]) -> None:
        left, running = deque(missing), {}
        done = 0
        while left or running:
            while left and len(running) < 2 * self.executor.processes:
                chunk = [left.popleft() for _ in range(min(self._task_size(len(missing)), len(left)))]
                running[self._submit(chunk)] = chunk
            settled = wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done
            for future in settled:
                chunk = running.pop(future)
                self._take(chunk, future.result())
                self.executor.forget(future)
                done += len(chunk)
            if self.directory.stop_request.exists():
                self.journal.sync()
                raise StopRequested
            text = f"{self.counts['points']:,} in all, {self.estimate(len(missing) - done)} left of these"
            self.progress.show("points", done, len(missing), text)
        self.journal.sync()

    def _task_size(self, points: int) -> int:
        """Points for a task of task_seconds, or what gives every process something to do; few at a time cost up to five times as much."""
        size = max(int(self.task_seconds / max(self.seconds_per_point, 1e-6)), POINTS_AT_ONCE // 2)
        return max(min(size, -(-points // self.shares), 100_000), 8)

    def _submit(self, chunk: list[Sample]) -> Future:
        places = np.array([self._point(p, self._named(values)).residues() for p, values in chunk], np.int64).T
        return self.executor.submit(probe_points, self.trace, [p for p, _ in chunk], np.ascontiguousarray(places).tobytes(), self.device)

    def _named(self, values: Sequence[int]) -> dict[str, int]:
        return dict(zip(self.variables, values)) | ({self.scale: 1} if self.scale else {})

    def _take(self, chunk: list[Sample], result: dict[str, Any]) -> None:
        """Rows of a task; bad points are done again by a run of their own, and all of it goes to the journal."""
        table, good = unpack_points(result["values"], result["good"], [p for p, _ in chunk], len(self.raw_names))
        rows = [self._row(sample, row if flag else None) for sample, row, flag in zip(chunk, table, good)]
        self.counts["points"] += len(chunk)
        self.counts["tasks"] += 1
        self.seconds += result["seconds"]
        self.memory = max(self.memory, result["peak_memory_kb"])
        if self.counts["unlucky"] > 20 + self.counts["points"] // 10:
            raise ReductionError("the rules fail at too many points: the given numbers are a singular point; take others")
        lines, sound = self._table(rows)
        self.journal.append({"samples": chunk, "values": lines.tobytes(), "good": sound.tobytes()})
        self.known |= dict(zip(chunk, rows))

    def _row(self, sample: Sample, raw: np.ndarray | None) -> np.ndarray | None:
        """Values in the order of names, None where there are none at this point."""
        if raw is not None and self.names is self.raw_names:
            return raw
        self.counts["unlucky"] += raw is None
        try:
            rows = self._alone(sample) if raw is None else self._expressed(raw, sample[0])
        except (InputError, SingularPoint):  # modulo this prime only
            return None
        values = {(column.name, master): value for column in self.columns for master, value in rows.get(column.name, {}).items()}
        if not rows or not values.keys() <= set(self.names):
            return None
        return np.array([values.get(name, 0) for name in self.names], np.int64)

    def _expressed(self, raw: np.ndarray, p: int) -> dict[Any, Expression]:
        """All columns through the masters of the result, from the values of a trace. Raises SingularPoint, InputError."""
        preferred = self.exact.problem.preferred_masters
        rows: dict[Any, Expression] = {named.name: {} for named in (*self.columns, *self.relations)} | {master: {} for master in preferred}
        for (name, master), value in zip(self.raw_names, raw.tolist()):
            if value:
                rows[name][master] = value
        return change_basis(use_relations(rows, self.relations, p), preferred, p)

    def _alone(self, sample: Sample) -> dict[Any, Expression]:
        """All columns at a point by a run of its own; {} where something is not reduced there. Raises SingularPoint, InputError."""
        p, values = sample
        problem = self._problem_at(p, self._named(values))
        outcome = Controller(problem, InlineExecutor(), self.shelves, Progress(quiet=True)).run()
        return {} if outcome.unreduced else outcome.reductions


def reconstruct_problem(exact: Any, sampler: Sampler) -> ExactOutcome:
    """Raises ReductionError."""
    started = time.perf_counter()
    seed = int.from_bytes(hashlib.sha256(exact.name.encode()).digest()[:8], "big")
    rng = np.random.default_rng(seed)
    sampler.prepare(rng)
    sampler.restore()
    work = Reconstruction(sampler, sampler.variables, len(sampler.names), rng, sampler.announce, sampler.estimate, sampler.letters())
    functions = work.run()
    reductions: dict[Any, dict[Any, Fraction | str]] = {row: {} for row in sampler.rows}
    for (target, master), function in sorted(zip(sampler.names, functions), key=lambda named: sampler.order(named[0][1]), reverse=True):
        scale = (sampler.scale, sampler.degree(target, master)) if sampler.scale else None
        reductions[target][master] = function.text(sampler.variables, scale) if exact.symbols else function.factor
    statistics = {
        "integrals": sampler.live,
        "functions": len(functions),
        **sampler.counts,
        "primes": work.used_primes,
        "degrees": work.describe_degrees() if functions else "",
        "seconds_per_point": sampler.seconds_per_point,
    }
    memory = max(sampler.memory, peak_memory_kb())
    basis = sorted({*sampler.basis, *(master for _, master in sampler.names)}, key=sampler.order)
    return ExactOutcome(reductions, basis, statistics, time.perf_counter() - started, memory)
