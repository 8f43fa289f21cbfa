"""Sectors from the top down, each as one task once all sectors above it are done.

A scheme says how a run's work is distributed over an executor: how masters are searched for, and how targets are carried to them. The other
one is `StepScheme`.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from typing import Any, Protocol

from executors.base import InlineExecutor
from ibp.carrying import Flow, in_passes
from ibp.families import Expression
from ibp.master_search import find_masters
from ibp.run_state import Ground, Prepared, RunState
from ibp.sector_reduction import reduce_sector
from ibp.sector_tasks import SectorResult
from ibp.targets import Target, integrals_in

SMALL_TASK = 2000  # below it, a sector with at most so many coefficients is reduced sooner than sent to another process


class Scheme(Protocol):
    """What a Controller asks of a way to distribute its work."""

    def resume(self, state: RunState) -> None:
        """All is prepared: what an earlier controller left can be taken over. Raises ReductionError."""

    def search_masters(self, state: RunState, prepared: Prepared, missing: list[int]) -> None:
        """Those of these sectors, which the state learns. Raises ReductionError."""

    def reduce(self, state: RunState, ground: Ground, targets: tuple[Target, ...]) -> dict[Target, Expression]:
        """Every target through masters, and through what nothing reduces. Raises ReductionError."""


class SectorScheme:
    """certify: keep the proof."""

    def __init__(self, certify: bool = False):
        self.certify = certify
        self._here = InlineExecutor()

    def resume(self, state: RunState) -> None:
        """A run by sectors leaves nothing but what it learned."""

    def search_masters(self, state: RunState, prepared: Prepared, missing: list[int]) -> None:
        running: dict[Future, int] = {}
        state.reporter.start("masters", len(missing))
        while missing or running:
            while missing and len(running) < 2 * state.executor.processes:
                bits = missing.pop()
                task = (prepared.nonzero, prepared.generic, bits, state.problem.guide)
                running[state.executor.submit(find_masters, *task)] = bits
            for future in _finished(running, state):
                state.learn(running.pop(future), future.result())
                state.reporter.advance(state.statistics)

    def reduce(self, state: RunState, ground: Ground, targets: tuple[Target, ...]) -> dict[Target, Expression]:
        reductions: dict[Target, Expression] = {}
        for first, some in in_passes(targets):
            reductions |= self._carry(state, ground, some, first)
        return reductions

    def _carry(self, state: RunState, ground: Ground, targets: tuple[Target, ...], first: int) -> dict[Target, Expression]:
        prepared = ground.prepared
        flow = Flow(targets, ground.layout, state.problem.point, prepared.nonzero)
        running: dict[Future, int] = {}
        state.reporter.start("sectors", len(prepared.sectors_below(integrals_in(targets))))
        while flow.waiting or running:
            for bits in flow.largest_first():
                if not any(prepared.leads_to(other, bits) for other in (*flow.waiting, *running.values())):
                    running[self._submit(state, ground, bits, *flow.take(bits))] = bits
            for future in _finished(running, state):
                del running[future]
                self._take(state, future.result(), flow, first)
        return flow.reductions

    def _submit(self, state: RunState, ground: Ground, bits: int, keys: Any, coefficients: Any) -> Future:
        task = replace(
            ground.task(self.certify),
            bits=bits,
            known=state.known.sector(bits),
            stops=ground.masters[bits],
            steps={} if self.certify else state.known.knowledge.steps.get(bits, {}),  # of a known step the rows are not known
            keys=keys,
            coefficients=coefficients,
            mapping=ground.prepared.numeric_maps.get(bits),
        )
        state.statistics["tasks"] += 1
        here = not state.long and coefficients.size <= SMALL_TASK and not isinstance(state.executor, InlineExecutor)
        return (self._here if here else state.executor).submit(reduce_sector, task)

    def _take(self, state: RunState, result: SectorResult, flow: Flow, first: int) -> None:
        flow.pass_on(result.below)
        for integral, line in (result.masters | result.unreduced).items():
            flow.arrive(integral, line)
        if result.learned or result.new_steps:
            state.learn(result.bits, result.learned, result.new_steps)
        if result.proof is not None:
            state.proof.append(replace(result.proof, column=result.proof.column + first))
        state.count(result.counts | {"sectors": 1})
        state.paths |= result.paths
        state.note_memory(*result.process)
        state.reporter.advance(state.statistics)


def _finished(running: Iterable[Future], state: RunState) -> set[Future]:
    """Wait until a task is done."""
    while not (done := wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done):
        state.reporter.tick()
    return done
