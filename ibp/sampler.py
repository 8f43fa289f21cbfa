"""Coefficients from their values at sample points: by tasks, and from the journal of an earlier run.

`reduce_at_points` sets a `PointProblem` up, asks a `Sampler` for values until a reconstruction has all `Coefficients`, and gives an
`ExactOutcome`. What is computed at a point, and how, is the problem's: reductions in exact.py, linear systems in systems.py.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from executors.files import peak_memory_kb
from ibp.console import Reporter, format_seconds
from ibp.errors import ReductionError, StopRequested
from ibp.journal import Journal
from ibp.polynomials import Polynomial
from ibp.reconstruction import reconstruct
from ibp.runs import Running, claimed_run, drop_jobs, make_executor
from ibp.samples import Sample, unpack_points
from ibp.store import Store
from ibp.trace import POINTS_AT_ONCE

CONDOR_SECONDS, LOCAL_SECONDS = 60.0, 4.0  # what a task takes: a job of HTCondor is not worth its start if it is short


class Coefficients:
    """Functions of `variables` that have values at sample points; a class for each kind of them derives from this.

    names: (row, master) of each; rows: what is expressed through masters, also what is zero; basis: masters that a result names even if
    nothing has them; symbols: what the results are functions of; width: how many values a task gives at a point; size: how many integrals
    or equations a point takes; first_guess: how many seconds.
    """

    names: tuple[tuple[Any, Any], ...]
    rows: tuple[Any, ...]
    basis: Iterable[Any]
    variables: tuple[str, ...]
    symbols: tuple[str, ...]
    width: int
    size: int
    first_guess: float

    def task(self, samples: Sequence[Sample], device: str) -> tuple:
        """A function and its arguments for an executor; the result is as of `pack_points`."""
        raise NotImplementedError

    def row(self, sample: Sample, raw: np.ndarray | None) -> np.ndarray | None:
        """Values in the order of names from those of a task, which may have failed; None where there are none at this point."""
        return raw

    def letters(self) -> tuple[Polynomial, ...]:
        """Factors that mix variables and are looked for."""

    def order(self, master: Any) -> Any:
        """Sort key of masters."""

    def scale(self, row: Any, master: Any) -> tuple[str, int] | None:
        """The invariant that is set to 1, and a coefficient's degree in all invariants, in units of a squared mass; None: no such one."""


class PointProblem(Protocol):
    """Something with exact coefficients. name: tells its runs from others."""

    name: str

    def prepare(self, rng: np.random.Generator, shelves: Sequence[Store], reporter: Reporter, shared: Path) -> Coefficients:
        """What is the same at all points, of which tasks find some in the directory `shared`. Raises ReductionError."""


@dataclass
class ExactOutcome:
    """reductions: every target through masters, combinations by name, with Fractions or with strings that sympy parses."""

    reductions: dict[Any, dict[Any, Fraction | str]]
    masters: list[Any]
    statistics: dict[str, Any]
    seconds: float
    peak_memory_kb: int
    unreduced: list[Any] = field(default_factory=list)  # what is not reduced is an error


def reduce_at_points(
    problem: PointProblem,
    running: Running,
    device: str,
    shelves: Sequence[Store],
    reporter: Reporter,
    save: Callable[[ExactOutcome], None],
    quiet: bool = False,
) -> ExactOutcome:
    """Reconstruct all coefficients; what a later run would go on with is dropped once the outcome is saved.

    quiet: do not say what is to come. Raises InputError, ReductionError, ExecutorError, StopRequested.
    """
    condor = running.by_condor
    seconds = running.job_seconds or (CONDOR_SECONDS if condor else LOCAL_SECONDS)
    known: dict[Sample, np.ndarray | None] = {}
    with claimed_run(running, "exact", reporter.say) as directory:
        with closing(Journal(directory.exact, problem.name, reporter.say)) as journal:
            drop_jobs(directory, reporter.say)  # of an earlier controller: what they would have told is asked again
            try:
                with make_executor(running.where, directory.jobs, reporter.say) as executor:
                    started = time.perf_counter()
                    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(problem.name.encode()).digest()[:8], "big"))
                    coefficients = problem.prepare(rng, shelves, reporter, directory.shared)
                    shares = 1 if condor else executor.processes
                    stop = directory.stop_request
                    sampler = Sampler(coefficients, executor, journal, reporter, stop, known, device, seconds, shares, quiet)
                    sampler.restore()
                    outcome = _reconstructed(sampler, rng, started)
            finally:
                reporter.close()
                if journal.is_new and not known:  # nothing to go on with
                    directory.clear()
        save(outcome)
        directory.clear()
    return outcome


def _reconstructed(sampler: Sampler, rng: np.random.Generator, started: float) -> ExactOutcome:
    coefficients = sampler.coefficients
    names, order, variables = coefficients.names, coefficients.order, coefficients.variables
    found = reconstruct(sampler, variables, len(names), rng, sampler.announce, sampler.estimate, coefficients.letters())
    reductions: dict[Any, dict[Any, Fraction | str]] = {row: {} for row in coefficients.rows}
    for (row, master), function in sorted(zip(names, found.functions), key=lambda named: order(named[0][1]), reverse=True):
        scale = coefficients.scale(row, master)
        reductions[row][master] = function.text(variables, scale) if coefficients.symbols else function.factor
    statistics = {
        "integrals": coefficients.size,
        "functions": len(names),
        **sampler.counts,
        "primes": found.primes,
        "degrees": found.degrees,
        "seconds_per_point": sampler.seconds_per_point,
    }
    basis = sorted({*coefficients.basis, *(master for _, master in names)}, key=order)
    return ExactOutcome(reductions, basis, statistics, time.perf_counter() - started, max(sampler.memory, peak_memory_kb()))


@dataclass
class Sampler:
    """Values of coefficients at sample points (called with these): those known already, else by tasks.

    known: is filled; seconds_each: what a task should take; shares: how many tasks the points asked for together make at least.
    """

    coefficients: Coefficients
    executor: Any
    journal: Journal
    reporter: Reporter
    stop_request: Path
    known: dict[Sample, np.ndarray | None]
    device: str
    seconds_each: float
    shares: int
    quiet: bool
    counts: dict[str, int] = field(default_factory=lambda: {"points": 0, "resumed": 0, "unlucky": 0, "tasks": 0})
    seconds: float = 0
    memory: int = 0

    def restore(self) -> None:
        """Take over what the journal holds. Raises ReductionError where it does not belong here."""
        names = None
        for _, record in self.journal.records():
            try:
                if names is None:
                    names = record["names"]
                    if names != self.coefficients.names:
                        raise ValueError("other coefficients")
                    continue
                samples = [(int(p), tuple(map(int, place))) for p, place in record["samples"]]
                table, good = unpack_points(record["values"], record["good"], [p for p, _ in samples], len(names))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ReductionError(f"{self.journal.path}: not what this run has written ({error}); start anew with --fresh") from None
            self.known.update((sample, row if flag else None) for sample, row, flag in zip(samples, table, good))
        if names is None:
            self.journal.append({"names": self.coefficients.names})
        elif self.known:
            self.counts["resumed"] = len(self.known)
            self.reporter.say(f"going on: {len(self.known):,} points are done already")

    def __call__(self, samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
        """Values [P, F] and which are good [P]. Raises ReductionError, StopRequested."""
        missing = [sample for sample in dict.fromkeys(samples) if sample not in self.known]
        if missing:
            self._compute(missing)
        return self._table([self.known[sample] for sample in samples])

    def _table(self, rows: Sequence[np.ndarray | None]) -> tuple[np.ndarray, np.ndarray]:
        """Lines [P, F], zeros where there is none, and good [P]."""
        count = len(self.coefficients.names)
        nothing = np.zeros(count, np.int64)
        lines = np.array([nothing if row is None else row for row in rows], np.int64).reshape(len(rows), count)
        return lines, np.array([row is not None for row in rows], bool)

    def announce(self, line: str) -> None:
        if not self.quiet:
            self.reporter.say(line)

    def estimate(self, points: int) -> str:
        return f"{points:,} points, some {format_seconds(points * self.seconds_per_point / self.shares)}"

    @property
    def seconds_per_point(self) -> float:
        return self.seconds / self.counts["points"] if self.counts["points"] else self.coefficients.first_guess

    def _compute(self, missing: list[Sample]) -> None:
        left, running, done = deque(missing), {}, 0
        while left or running:
            while left and len(running) < 2 * self.executor.processes:
                chunk = [left.popleft() for _ in range(min(self._task_size(len(missing)), len(left)))]
                running[self.executor.submit(*self.coefficients.task(chunk, self.device))] = chunk
            settled = wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done
            for future in settled:
                chunk = running.pop(future)
                self._take(chunk, future.result())
                self.executor.forget(future)
                done += len(chunk)
            if self.stop_request.exists():
                self.journal.sync()
                raise StopRequested
            text = f"{self.counts['points']:,} in all, {self.estimate(len(missing) - done)} left of these"
            self.reporter.show("points", done, len(missing), text)
        self.journal.sync()

    def _task_size(self, points: int) -> int:
        """Points for a task of the right time, or that give every process something to do; few at a time cost up to five times as much."""
        size = max(int(self.seconds_each / max(self.seconds_per_point, 1e-6)), POINTS_AT_ONCE // 2)
        return max(min(size, -(-points // self.shares), 100_000), 8)

    def _take(self, chunk: list[Sample], result: dict[str, Any]) -> None:
        """What a task gave at these points, to be known and in the journal."""
        table, good = unpack_points(result["values"], result["good"], [p for p, _ in chunk], self.coefficients.width)
        rows = [self.coefficients.row(sample, row if flag else None) for sample, row, flag in zip(chunk, table, good)]
        self.counts["points"] += len(chunk)
        self.counts["tasks"] += 1
        self.counts["unlucky"] += len(chunk) - int(good.sum())
        self.seconds += result["seconds"]
        self.memory = max(self.memory, result["peak_memory_kb"])
        if self.counts["unlucky"] > 20 + self.counts["points"] // 10:
            raise ReductionError("the rules fail at too many points: the given numbers are a singular point; take others")
        lines, sound = self._table(rows)
        self.journal.append({"samples": chunk, "values": lines.tobytes(), "good": sound.tobytes()})
        self.known.update(zip(chunk, rows))
