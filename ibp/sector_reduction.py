"""One sector: a linear combination of its integrals reduced to masters and subsectors.

`reduce_sector` is the task that a run is made of: a pure function of a SectorTask.
"""

from __future__ import annotations

import os
from concurrent.futures import Executor

import numpy as np

from executors.files import peak_memory_kb
from ibp.carrying import Below, carry
from ibp.families import Index
from ibp.helpers import helper_processes
from ibp.one_step import OneStep
from ibp.rules import CompiledRule
from ibp.sector_tasks import Multipliers, SectorResult, SectorTask, Terms
from ibp.sector_work import REPLAY_ELEMENTS, Note
from ibp.sectors import Sector
from ibp.tables import is_member, merge, sum_by_key

MAPPED_BLOCK = 512  # the same where they are mapped, which makes up to a thousand integrals of one
BLOCK = 8192  # heaviest integrals of a sector taken together: large enough for numpy, small enough to skip what cancels


def reduce_sector(task: SectorTask) -> SectorResult:
    """Carry the coefficients of a task's integrals to masters and subsectors; the arithmetic is exact modulo the prime."""
    with helper_processes() as helpers:
        return SectorReduction(task, helpers).run()


class SectorReduction:
    """The state of one sector at work.

    The heaviest integrals, a block, are closed under one-step reduction inside their range of keys; then their coefficients are carried
    down in order, and what arrives below the range waits for its block. So an integral whose coefficient cancels is mostly never reduced.
    """

    def __init__(self, task: SectorTask, helpers: Executor | None = None, note: Note | None = None):
        """note: is told which integrals each rule has reduced."""
        self.task, self.p = task, task.equations.prime
        self.proof = _Proof(self.p, task.layout.n) if task.certify else None
        self.step = OneStep(task, helpers, self.proof.note if self.proof is not None else note)
        self.work = self.step.work
        self.ends: dict[Index, list[int]] = {}
        self.below: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}

    def run(self) -> SectorResult:
        """Raises ReductionError."""
        work = self.work
        keys, coefficients = sum_by_key(self.task.keys, self.task.coefficients, self.p)
        while len(keys):
            keys, coefficients = self._set_ends_aside(keys, coefficients)
            cut = max(len(keys) - (BLOCK if self.task.mapping is None else MAPPED_BLOCK), 0)
            if len(keys):
                closed, terms = self._close(keys[cut:])
                keys, coefficients = self._carry(closed, terms, keys, coefficients, cut)
        unreduced = set(work.unreduced.values())
        return SectorResult(
            self.task.bits,
            {integral: line for integral, line in self.ends.items() if integral not in unreduced},
            {integral: line for integral, line in self.ends.items() if integral in unreduced},
            {bits: sum_by_key(*map(np.concatenate, zip(*parts)), self.p) for bits, parts in self.below.items()},
            work.rules.learned,
            work.new_steps,
            work.paths,
            work.counts,
            (os.getpid(), peak_memory_kb()),
            None if self.proof is None else self.proof.multipliers,
        )

    def _set_ends_aside(self, keys: np.ndarray, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is left without masters and what nothing reduces, whose coefficients are noted."""
        stop = is_member(keys, self.work.stops)
        for key, line in zip(keys[stop], coefficients[stop].tolist()):
            integral = self.work.unreduced.get(key) or self.work.masters[key]
            self.ends[integral] = [(a + b) % self.p for a, b in zip(line, self.ends.get(integral, [0] * len(line)))]
        return keys[~stop], coefficients[~stop]

    def _close(self, keys: np.ndarray) -> tuple[np.ndarray, Terms]:
        """All integrals at or above keys[0] that the reduction of these leads to, ascending, and their one-step results."""
        lowest, closed, wave, parts = keys[0], keys, keys, []
        while len(wave):
            terms = self.step.reduce(wave)
            parts.append(terms)
            inside = (terms.sector == self.task.bits) & (terms.key >= lowest)
            new = np.unique(terms.key[inside])
            wave = new[~is_member(new, self.work.stops) & ~is_member(new, closed)]
            closed = merge(closed, wave)
        self.work.counts["integrals"] += len(closed)
        return closed, Terms.join(parts)

    def _carry(
        self, closed: np.ndarray, terms: Terms, keys: np.ndarray, coefficients: np.ndarray, cut: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Carry coefficients through a closed block; returns what waits below it, and notes what fell into subsectors."""
        stops = self.work.stops
        nodes = np.union1d(closed, stops[stops >= closed[0]])
        block = np.zeros((len(nodes), coefficients.shape[1]), np.int64)
        block[np.searchsorted(nodes, keys[cut:])] = coefficients[cut:]
        below: Below = carry(self.task.bits, nodes, block, terms, self.p)
        waiting = [(keys[:cut], coefficients[:cut]), *([below.pop(self.task.bits)] if self.task.bits in below else ())]
        for bits, part in below.items():
            self.below.setdefault(bits, []).append(part)
        if self.proof is not None:
            self.proof.take_block(self.work.sector, nodes, block)
        reached = is_member(nodes, stops) & block.any(1)
        self._set_ends_aside(nodes[reached], block[reached])
        return sum_by_key(*map(np.concatenate, zip(*waiting)), self.p)


class _Proof:
    """The identities that reduced the integrals of a sector, with the coefficients with which these were carried."""

    def __init__(self, p: int, n: int):
        self.p, self.parts = p, [Multipliers.nothing(n)]
        self.reduced: list[tuple[CompiledRule, np.ndarray]] = []  # of the present block

    def note(self, rule: CompiledRule, keys: np.ndarray) -> None:
        self.reduced.append((rule, keys))

    def take_block(self, sector: Sector, nodes: np.ndarray, block: np.ndarray) -> None:
        """The rows that reduced integrals of a block, times the coefficients [N, K] of the nodes [N]."""
        p, columns = self.p, block.shape[1]
        for rule, keys in self.reduced:
            keys = keys[block[np.searchsorted(nodes, keys)].any(1)]
            size = max(REPLAY_ELEMENTS // max(rule.form.shape[1], rule.rows * columns), 1)
            for begin in range(0, len(keys), size):
                part = keys[begin : begin + size]
                indices = sector.decode(part)
                factors = rule.multipliers(np.column_stack([np.ones(len(part)), indices]), p)
                values = block[np.searchsorted(nodes, part), :, None] * factors[:, None, :] % p
                member, column, row = np.nonzero(values)
                seeds = (indices[member] + rule.seeds[row]).astype(np.int16)
                self.parts.append(Multipliers(rule.operators[row], seeds, column, values[member, column, row]))
        self.reduced = []

    @property
    def multipliers(self) -> Multipliers:
        return Multipliers.join(self.parts).merged(self.p)
