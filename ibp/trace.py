"""A reduction recorded once, as array operations without anything that depends on the point, and replayed at many primes and points.

`Trace` holds a `SectorTrace` for every sector, from the top down, and that `Replays` for every rule; recording.py makes it, `probe` replays
it at some points at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from ibp.families import Index
from ibp.identities import Operator
from ibp.polynomials import Places, Polynomial
from ibp.residues import Residues, Step, make_residues, null_vectors

POINTS_AT_ONCE = 128  # measured best: the innermost axis is long enough for numpy, the arrays of a rule stay in the processor's cache
PROBE_ELEMENTS = 1 << 17  # numbers in one array of a rule: 1 MB
GPU_POINTS, GPU_ELEMENTS, GPU_MEMORY = 4096, 1 << 25, 1 << 33  # the same three where a GPU has to be kept busy; not yet measured on one
CARRIED_ELEMENTS = 1 << 22  # numbers that go along the edges of a sector at once, unless those of one column are more
PROBE_MEMORY = 1 << 28  # bytes of what a sector and all coefficients take at once; fewer points at a time where they are more


@dataclass(frozen=True, eq=False)
class Round:
    """Summands of entries `place` [M]: number `coefficient` [M] of the identities' coefficients, times `factor` [M] or [N, M]."""

    place: np.ndarray
    coefficient: np.ndarray
    factor: np.ndarray


@dataclass(frozen=True, eq=False)
class Replays:
    """What a rule of several rows does in a sector: N integrals by E entries in C columns, without anything that depends on the point.

    rounds: the entries [N, E] as sums, the first round has all of them; row [E], start [C], pivot_entry and pivot_place as in CompiledRule.
    plan: of the elimination. Cells of the array [N, C] of combined rows, as flat numbers: those in `used`, ascending, become lines `line`
    of the sector's values; those in `vanishing` were zero at the first point.
    """

    rounds: tuple[Round, ...]
    row: np.ndarray
    start: np.ndarray
    rows: int
    pivot_entry: np.ndarray
    pivot_place: tuple[np.ndarray, np.ndarray]
    plan: tuple[Step, ...]
    used: np.ndarray
    line: np.ndarray
    vanishing: np.ndarray


@dataclass(frozen=True, eq=False)
class SectorTrace:
    """The integrals of a sector that matter, nodes first … first + count - 1 of the trace, heavier ones in lower levels.

    Lines of the sector's values: inner edges by target, then outer ones (to other sectors and to ends) by target, then the pivots of the
    nodes, then what must vanish (`checked` lines). direct: the lines that come from rules of one row, as sums; replays: the others.
    levels: (begin, end, first inner edge, last one) for each level; an edge carries source * value / -pivot to its target; source
    [edges] are nodes of the trace; inner_starts [levels] and outer_start: where the runs of edges with equal targets begin;
    outer_target: these targets. columns [W]: of the trace, those that reach the sector; the node first + k has cells
    base + W k … base + W (k + 1) - 1; outer_cells [targets, W]: those of the same columns of the outer targets.
    """

    first: int
    count: int
    checked: int
    direct: tuple[Round, ...]
    replays: tuple[Replays, ...]
    levels: tuple[tuple[int, int, int, int], ...]
    source: np.ndarray
    inner_starts: tuple[np.ndarray, ...]
    outer_start: np.ndarray
    outer_target: np.ndarray
    columns: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    base: int = 0
    outer_cells: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))

    @property
    def inner(self) -> int:
        return self.levels[-1][3] if self.levels else 0


@dataclass(frozen=True, eq=False)
class Trace:
    """A whole reduction, ready for any number of points: which rule reduces which integral, and where its terms go.

    A cell is a node in one of the columns that reach its sector. starts: cells of the integrals in the columns, which have `weights`;
    functions: (column, number of the master) of the coefficients that are not zero, ends: their cells; dead: cells that received zero at
    the first point.
    """

    operators: tuple[Operator, ...]
    targets: tuple[Index, ...]
    sectors: tuple[SectorTrace, ...]
    cells: int
    starts: np.ndarray
    ends: np.ndarray
    end_integrals: tuple[Index, ...]
    dead: np.ndarray
    functions: tuple[tuple[int, int], ...]
    weights: Operator = ()

    @property
    def names(self) -> tuple[tuple[Any, Index], ...]:
        """(name of a column, master) of each coefficient."""
        return tuple((self.targets[column], self.end_integrals[end]) for column, end in self.functions)

    @property
    def bytes_per_point(self) -> int:
        return 8 * (self.cells + 4 * max((len(sector.source) for sector in self.sectors), default=0))


def identity_coefficients(operators: Sequence[Operator], values: np.ndarray, ring: Residues) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [terms, n+1, P] of all identities at points values [symbols, P], terms as in evaluate_identities, and good [P]."""
    places = Places(values.T, ring.primes)
    good = np.ones(values.shape[1], bool)

    @cache
    def inverse(terms: Polynomial) -> np.ndarray:
        below = places.value(terms)
        good[below == 0] = False
        return np.array([pow(value or 1, -1, prime) for value, prime in zip(below.tolist(), ring.primes.tolist())])

    count = sum(map(len, operators))
    result = np.zeros((count, len(operators[0][0][0]) + 1, values.shape[1]), np.int64)
    terms = (coefficients for operator in operators for _, coefficients in operator)
    for number, coefficients in enumerate(terms):
        for i, numerator, denominator in coefficients:
            result[number, i] = places.value(numerator) * inverse(denominator) % ring.primes
    return result, good


def probe(trace: Trace, primes: Sequence[int], values: np.ndarray, device: str = "cpu") -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [P, F] of a trace at points: primes [P], values [symbols, P] of d and the invariants; and good [P].

    A point is not good where a pivot vanishes, or where something does not that vanished at the first point: there the coefficients mean
    nothing. Elsewhere they are exact.
    """
    most, memory = (GPU_POINTS, GPU_MEMORY) if device == "cuda" else (POINTS_AT_ONCE, PROBE_MEMORY)
    size = min(max(memory // max(trace.bytes_per_point, 1), 8), most)
    parts = []
    for begin in range(0, len(primes), size):
        ring = make_residues(np.array(primes[begin : begin + size], np.int64), device)
        parts.append(_Probe(trace, values[:, begin : begin + size], ring).run())
    coefficients, good = zip(*parts)
    return np.concatenate(coefficients), np.concatenate(good)


class _Probe:
    """One pass of a trace over some points."""

    def __init__(self, trace: Trace, values: np.ndarray, ring: Residues):
        self.trace, self.ring, self.points = trace, ring, values.shape[1]
        self.elements = GPU_ELEMENTS if ring.device == "cuda" else PROBE_ELEMENTS
        coefficients, good = identity_coefficients(trace.operators, values, ring)
        self.weights: Any = [1] * len(trace.starts)
        if trace.weights:
            weights, sound = identity_coefficients([trace.weights], values, ring)
            self.weights, good = ring.place(weights.sum(1) % ring.primes), good & sound
        self.identities, self.good = ring.place(coefficients.reshape(-1, self.points)), ring.place(good)

    def run(self) -> tuple[np.ndarray, np.ndarray]:
        trace, ring = self.trace, self.ring
        block = ring.zeros(trace.cells, self.points)
        for cell, value in zip(trace.starts.tolist(), self.weights):
            block[cell] = value
        for sector in trace.sectors:
            self._carry(sector, block, *self._one_step(sector))
        self._must_vanish(block[ring.place(trace.dead)])
        return ring.bring(ring.canonical(block[ring.place(trace.ends)])).reshape(-1, self.points).T, ring.bring(self.good)

    def _must_vanish(self, values: Any) -> None:
        """values [..., P]"""
        self.good &= self.ring.is_zero(values).reshape(-1, self.points).all(0)

    def _one_step(self, sector: SectorTrace) -> tuple[Any, Any]:
        """Values [edges, P] and pivots [nodes, P] of a sector's one-step results."""
        edges = len(sector.source)
        pivots_end = edges + sector.count
        lines = self.ring.empty(pivots_end + sector.checked, self.points)
        if sector.direct:
            self._sum_directly(sector.direct, lines)
        for replays in sector.replays:
            size = max(self.elements // (len(replays.row) * self.points), 1)
            for begin in range(0, len(replays.rounds[0].factor), size):
                self._replay(replays, slice(begin, begin + size), lines)
        self._must_vanish(lines[pivots_end:])
        pivots = lines[edges:pivots_end]
        bad = self.ring.is_zero(pivots)
        self.good &= ~bad.any(0)
        pivots[bad] = 1
        return lines[:edges], pivots

    def _sum_directly(self, rounds: tuple[Round, ...], lines: Any) -> None:
        """Fill the lines of rules of one row."""
        first, *others = rounds
        size = max(self.elements // self.points, 1)
        for begin in range(0, len(first.place), size):
            place = first.place[begin : begin + size]
            values = self._summands(first, slice(begin, begin + size))
            for more in others:
                part = slice(*np.searchsorted(more.place, [place[0], place[-1] + 1]).tolist())
                if part.stop > part.start:
                    values[self.ring.place(np.searchsorted(place, more.place[part]))] += self._summands(more, part)
            lines[self.ring.place(place)] = self.ring.reduce(values)

    def _summands(self, some: Round, part: slice) -> Any:
        values = self.ring.take(self.identities, self.ring.place(some.coefficient[part]))
        values *= self.ring.place(some.factor[part])[:, None]
        return values

    def _replay(self, replays: Replays, part: slice, lines: Any) -> None:
        ring, columns = self.ring, len(replays.start)
        first, *others = replays.rounds
        values = ring.take(self.identities, ring.place(first.coefficient))[None] * ring.place(first.factor[part])[:, :, None]
        for more in others:
            coefficients = ring.take(self.identities, ring.place(more.coefficient))
            values[:, ring.place(more.place)] += coefficients[None] * ring.place(more.factor[part])[:, :, None]
        values = ring.reduce(values)
        matrix = ring.zeros(len(values), replays.rows - 1, replays.rows, self.points)
        pivot, row = (ring.place(place) for place in replays.pivot_place)
        matrix[:, pivot, row] = values[:, ring.place(replays.pivot_entry)]
        values = ring.product(values, null_vectors(matrix, replays.plan, ring)[:, ring.place(replays.row)])
        cells = ring.reduce(ring.sums(values, ring.place(replays.start), axis=1)).reshape(-1, self.points)
        before, after = part.start * columns, part.start * columns + len(cells)
        begin, end = np.searchsorted(replays.used, [before, after])
        lines[ring.place(replays.line[begin:end])] = ring.take(cells, ring.place(replays.used[begin:end] - before))
        begin, end = np.searchsorted(replays.vanishing, [before, after])
        if end > begin:
            self._must_vanish(ring.take(cells, ring.place(replays.vanishing[begin:end] - before)))

    def _carry(self, sector: SectorTrace, block: Any, values: Any, pivots: Any) -> None:
        """block [cells, P]: from the sector's first level down, then to what lies below it; some columns at a time."""
        ring, width = self.ring, len(sector.columns)
        whole = block[sector.base : sector.base + sector.count * width].reshape(sector.count, width, self.points)
        scale = -ring.invert(pivots)
        source, inner = ring.place(sector.source - sector.first), sector.inner
        size = max((GPU_ELEMENTS if ring.device == "cuda" else CARRIED_ELEMENTS) // max(len(source) * self.points, 1), 1)
        for columns in (slice(begin, begin + size) for begin in range(0, width, size)):
            own = whole[:, columns]
            for (begin, end, first, last), starts in zip(sector.levels, sector.inner_starts):
                begin, end = begin - sector.first, end - sector.first
                lines = own[begin:end]
                if last > first:
                    flow = ring.product(ring.take(own, source[first:last]), values[first:last, None])
                    lines = ring.reduce(lines + ring.sums(flow, ring.place(starts)))
                own[begin:end] = ring.product(lines, scale[begin:end, None])
            if len(source) > inner:
                flow = ring.product(ring.take(own, source[inner:]), values[inner:, None])
                target = ring.place(sector.outer_cells[:, columns].reshape(-1))
                sums = ring.sums(flow, ring.place(sector.outer_start)).reshape(-1, self.points)
                block[target] = ring.reduce(block[target] + sums)
