"""A reduction recorded once, as array operations without anything that depends on the point: what recording.py makes and probe.py replays.

`Trace` holds a `SectorTrace` for every sector, from the top down, and that `Replays` for every rule, whose entries are sums by `Round`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ibp.families import Index
from ibp.identities import Operator
from ibp.null_vectors import Step


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
