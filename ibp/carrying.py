"""Coefficients carried down one-step results, from heavy integrals to light ones and from sectors to their subsectors.

`carry` does it inside one sector, `carry_sector` with all of a sector's results at once; `Flow` holds what is between the sectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ibp.families import Expression, Index
from ibp.identities import Point
from ibp.masters import heaviest_first
from ibp.sector_tasks import Terms
from ibp.sectors import Layout, Sector, sector_of
from ibp.tables import is_member, run_numbers, run_starts, sum_by_key
from ibp.targets import Target

TARGETS_PER_PASS = 32  # columns of coefficients carried at once

Below = dict[int, tuple[np.ndarray, np.ndarray]]  # {sector: (keys [N], coefficients [N, K])}


class Flow:
    """The coefficients of K targets on their way down: what waits in each sector, and what has come to masters.

    waiting: {sector: [(keys [N], coefficients [N, K])]}. Integrals of zero sectors are zero.
    """

    def __init__(self, targets: Sequence[Target], layout: Layout, point: Point, nonzero: Sequence[int]):
        self.targets = targets
        self.waiting: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
        self._expressions: list[Expression] = [{} for _ in targets]
        for column, target in enumerate(targets):
            for integral, value in ({target: 1} if isinstance(target, tuple) else target.at(point)).items():
                bits = sector_of(integral)
                if bits in nonzero:
                    coefficients = np.zeros((1, len(targets)), np.int64)
                    coefficients[0, column] = value
                    self.pass_on({bits: (Sector(layout, bits).encode(np.array([integral])), coefficients)})

    def pass_on(self, below: Below) -> None:
        for bits, part in below.items():
            self.waiting.setdefault(bits, []).append(part)

    def take(self, bits: int) -> tuple[np.ndarray, np.ndarray]:
        """All keys and coefficients that wait in a sector; a key may be there several times."""
        keys, coefficients = (np.concatenate(group) for group in zip(*self.waiting.pop(bits)))
        return keys, coefficients

    def largest_first(self) -> list[int]:
        """The sectors in which something waits, those of many lines and many integrals first."""
        return sorted(self.waiting, key=lambda b: (b.bit_count(), sum(len(keys) for keys, _ in self.waiting[b]), b), reverse=True)

    def arrive(self, integral: Index, line: Iterable[int]) -> None:
        """The coefficients [K] of an integral at which the reduction ends."""
        for expression, value in zip(self._expressions, line):
            if value:
                expression[integral] = value

    @property
    def reductions(self) -> dict[Target, Expression]:
        return dict(zip(self.targets, map(heaviest_first, self._expressions)))


def in_passes(targets: Sequence[Target]) -> Iterator[tuple[int, Sequence[Target]]]:
    """(number of the first one, targets) of each pass."""
    for begin in range(0, len(targets), TARGETS_PER_PASS):
        yield begin, targets[begin : begin + TARGETS_PER_PASS]


def carry(bits: int, nodes: np.ndarray, block: np.ndarray, terms: Terms, p: int) -> Below:
    """Carry coefficients block [N, K], in place, of integrals with these keys [N] of a sector down its one-step results.

    Returns what goes elsewhere, to other sectors or below the lightest of the integrals.
    """
    source = np.searchsorted(nodes, terms.source)
    inner = (terms.sector == bits) & (terms.key >= nodes[0])
    propagate(block, source[inner], np.searchsorted(nodes, terms.key[inner]), terms.value[inner], p)
    outer = ~inner & block.any(1)[source]
    carried, key, sector = block[source[outer]] * terms.value[outer, None] % p, terms.key[outer], terms.sector[outer]
    return {b: sum_by_key(key[sector == b], carried[sector == b], p) for b in np.unique(sector).tolist()}


def carry_sector(
    bits: int, terms: Terms, keys: np.ndarray, coefficients: np.ndarray, stops: np.ndarray, p: int
) -> tuple[dict[int, np.ndarray], Below]:
    """Carry coefficients [N, K] of integrals [N] of one sector through complete one-step results of it.

    Returns lines [K] by key of its stops, and what arrives in lower sectors.
    """
    nodes = np.unique(np.concatenate([keys, terms.source, terms.key[terms.sector == bits]]))
    block = np.zeros((len(nodes), coefficients.shape[1]), np.int64)
    keys, coefficients = sum_by_key(keys, coefficients, p)
    block[np.searchsorted(nodes, keys)] = coefficients
    below = carry(bits, nodes, block, terms, p)
    reached = np.flatnonzero(is_member(nodes, stops) & block.any(1))
    return {nodes[position]: block[position] for position in reached}, below


def propagate(block: np.ndarray, source: np.ndarray, target: np.ndarray, value: np.ndarray, p: int) -> None:
    """Add to block [N, K], in place, what flows along the edges: block[target] += value * block[source], sources complete first.

    The edges have no cycle (targets are lighter than sources); those whose source waits for nothing go first.
    """
    count = len(block)
    order = np.argsort(source, kind="stable")
    source, target, value = source[order], target[order], value[order]
    first = np.searchsorted(source, np.arange(count + 1))
    waits = np.bincount(target, minlength=count)
    ready = np.flatnonzero(waits == 0)
    while len(ready):
        length = first[ready + 1] - first[ready]
        total = int(length.sum())
        edge = run_numbers(first[ready], length)
        flow = block[source[edge]] * value[edge, None] % p
        by_target = np.argsort(target[edge], kind="stable")
        reached = target[edge][by_target]
        start = run_starts(reached)
        hit = reached[start]
        if total:
            block[hit] = (block[hit] + np.add.reduceat(flow[by_target], start, axis=0)) % p
        waits[hit] -= np.diff(start, append=total)
        ready = hit[waits[hit] == 0]
