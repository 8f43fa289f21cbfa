"""Whether parallel running works here: the same simulations by one process and by several, results and times compared."""

from __future__ import annotations

import contextlib
import io
import math
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from executors.local import LocalExecutor
from phases.history import outcome
from phases.plan import Plan

SHORTEST_TEST_S = 3.0  # of sequential time; below it a speed-up says nothing
ALLOWED_SHARE = 0.7  # of min(processes, cores): what a machine must reach that has other work too
ROUNDS = 4  # at most; the best time of each kind counts
POSSIBLE = 1.05  # times the number of processes: a larger speed-up is one of a disturbed measurement


@dataclass(frozen=True)
class Comparison:
    """Times and results, (label or failure, energy) of each point, of the same simulations by one process and by several."""

    processes: int
    alone_s: float
    together_s: float
    wanted: Mapping[int, tuple]
    found: Mapping[int, tuple]

    @property
    def speedup(self) -> float:
        return self.alone_s / self.together_s

    @property
    def same(self) -> bool:
        return self.wanted == self.found


def compare_times(plan: Plan, number: int, processes: int, timeout_s: float, needed: float) -> Comparison:
    """In rounds, one after the other, until the speed-up is as needed and possible, or results differ: other work comes and goes."""
    alone = together = math.inf
    for _ in range(ROUNDS):
        seconds, wanted = timed_batch(plan, number, 1, timeout_s)
        alone = min(alone, seconds)
        seconds, found = timed_batch(plan, number, processes, timeout_s)
        together = min(together, seconds)
        if wanted != found or needed <= alone / together <= POSSIBLE * processes:
            break
    return Comparison(processes, alone, together, wanted, found)


def timed_batch(plan: Plan, number: int, processes: int, timeout_s: float) -> tuple[float, dict[int, tuple]]:
    """Seconds for so many simulations, net of the start of processes, and their results."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        run = stack.enter_context(plan.start(Path(scratch) / "run"))
        run.add_lhs_samples(number)
        executor = stack.enter_context(LocalExecutor(processes, timeout_s=timeout_s))
        executor.warm_up()
        for future in [executor.submit(start_worker) for _ in range(processes)]:
            future.result()
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run.classify_pending_points(plan.simulation, executor=executor, timeout=timeout_s)
        seconds = time.perf_counter() - started
        return seconds, {id: (outcome(event), event.get("energy")) for id, event in run.result.told.items()}


def start_worker() -> None:
    """A task that ends once its process has loaded this module."""
    time.sleep(0.05)


def needed_speedup(processes: int, cores: float) -> float:
    return ALLOWED_SHARE * min(processes, cores)


def judge(comparison: Comparison, cores: float) -> tuple[bool, list[str]]:
    """Whether all is well, and why or why not: the results are the same, and the speed-up is at least the needed one and possible."""
    processes, wanted, found = comparison.processes, comparison.wanted, comparison.found
    needed, load = needed_speedup(processes, cores), f"load of this machine: {os.getloadavg()[0]:.1f}"
    rule = f"{needed:.2f}x = {ALLOWED_SHARE} x min({processes} processes, {cores:g} cores)"
    wrong, lines = [], []
    if unlike := [id for id in sorted(wanted.keys() | found.keys()) if wanted.get(id) != found.get(id)]:
        shown = ", ".join(f"point {id}: {wanted.get(id)} and {found.get(id)}" for id in unlike[:3])
        wrong.append(f"✗ {len(unlike)} of {len(wanted)} results differ: {shown}")
    if comparison.alone_s < SHORTEST_TEST_S:
        lines.append(f"- {comparison.alone_s:.1f} s are too short to judge the speed-up by {rule}: give more simulations, or longer ones")
    elif comparison.speedup < needed:
        wrong.append(f"✗ the speed-up is below {rule} in each of {ROUNDS} rounds; {load}")
    elif comparison.speedup > POSSIBLE * processes:
        wrong.append(f"✗ more than {processes}x is not possible: other work disturbed the sequential run; {load}, try again")
    if not wrong:
        lines.append(f"✓ Parallel processing is working! Same labels and energies; asked for: {rule}")
    return not wrong, wrong + lines
