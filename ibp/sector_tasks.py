"""What a task of one sector is given and returns: `SectorTask`, `SectorResult`, and the tables in them, `Terms` and `Multipliers`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import numpy as np

from ibp.beam import Beam
from ibp.families import Expression, Index
from ibp.identities import Equations
from ibp.knowledge import SectorKnowledge
from ibp.positions import StepPath
from ibp.sectors import Layout
from ibp.symmetries import NumericMap
from ibp.tables import Lines, pack_keys, sorted_rows

COUNTS = ("integrals", "references", "tries", "replays", "rules", "rows", "searches", "search_steps", "mapped")


@dataclass(frozen=True, eq=False)
class SectorTask:
    """Everything needed to reduce a linear combination of integrals of one sector; a pure function of it, so any process may do it.

    keys [N], coefficients [N, K] for K targets. stops: integrals of this sector to stop at. steps: one-step results known already.
    canonical: an integral's one-step result shall be a function of the integral alone, whatever rules are known. beam: how to search
    where not by local elimination. mapping: to the representative of the sector, which takes the place of identities.
    certify: also return which identities were used, with their multipliers; then no steps may be given.
    guide: as `load_guide` takes it; None for the fixed order. What depends on the sector has defaults, for a task that others are made of.
    """

    layout: Layout
    bits: int
    nonzero: tuple[int, ...]
    equations: Equations
    generic: Equations
    known: SectorKnowledge = field(default_factory=SectorKnowledge)
    stops: tuple[Index, ...] = ()
    steps: dict[Index, Expression] = field(default_factory=dict)
    keys: np.ndarray | None = None
    coefficients: np.ndarray | None = None
    canonical: bool = False
    beam: Beam | None = None
    mapping: NumericMap | None = None
    certify: bool = False
    guide: bytes | None = None


@dataclass(frozen=True, eq=False)
class Multipliers(Lines):
    """Combinations of identities, one for each column: the sum over its lines of value * identity(operator, seed).

    operator int16 [M]; seed int16 [M, n]; column int64 [M]; value int64 [M] modulo the prime.
    """

    operator: np.ndarray
    seed: np.ndarray
    column: np.ndarray
    value: np.ndarray

    @staticmethod
    def nothing(n: int) -> Multipliers:
        return Multipliers(np.zeros(0, np.int16), np.zeros((0, n), np.int16), np.zeros(0, np.int64), np.zeros(0, np.int64))

    def merged(self, p: int) -> Multipliers:
        """Sorted by column, operator and seed; lines of the same identity added up, those that cancel left out."""
        order, start = sorted_rows(self.column, self.operator, *self.seed.T)
        value = np.add.reduceat(self.value[order], start) % p if len(start) else self.value
        return replace(self.lines(order[start]), value=value).lines(value != 0)


@dataclass(eq=False)
class SectorResult:
    """What a sector task found: coefficients [K] of masters and of what nothing reduced, and [M, K] of integrals of subsectors."""

    bits: int
    masters: dict[Index, list[int]] = field(default_factory=dict)
    unreduced: dict[Index, list[int]] = field(default_factory=dict)
    below: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    learned: SectorKnowledge = field(default_factory=SectorKnowledge)
    new_steps: dict[Index, Expression] = field(default_factory=dict)
    paths: dict[Index, StepPath] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    process: tuple[int, int] = (0, 0)  # process id, its peak memory in kB
    proof: Multipliers | None = None


@dataclass(frozen=True, eq=False)
class Terms(Lines):
    """One-step results as a table: I[source] = sum of value * I[sector, key] over its lines; source is a key of the sector at work."""

    source: np.ndarray
    sector: np.ndarray
    key: np.ndarray
    value: np.ndarray

    def pack(self) -> tuple:
        """For Terms(*map(unpack_keys, …))."""
        return tuple(pack_keys(getattr(self, f.name)) for f in fields(self))

    @staticmethod
    def nothing(dtype: type) -> Terms:
        return Terms(*(np.zeros(0, kind) for kind in (dtype, np.int64, dtype, np.int64)))
