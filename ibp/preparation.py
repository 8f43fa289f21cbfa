"""What a run has before it reduces anything: identities, non-zero sectors, symmetries; where its integrals may lead to and end.

`prepare` makes a `Prepared`; `known_nonzero_sectors` is the part of it that others ask for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from ibp.families import Family, Index
from ibp.geometry import Geometry, SectorMap
from ibp.identities import Equations, Operator, derive_identities, evaluate_identities, generic_point
from ibp.problems import Problem
from ibp.run_state import RunKnowledge
from ibp.sector_tasks import SectorTask
from ibp.sectors import Layout, find_nonzero_sectors, sector_of
from ibp.store import Store
from ibp.symmetries import NumericMap, find_symmetries, reachable_sectors

LIGHT_MAP = 1.5  # a sector with known rules is only mapped to another if propagators become sums of so few on average, else its masters are


@dataclass(frozen=True, eq=False)
class Prepared:
    """A problem and its family: identities, at the point and at a generic one; sectors; with symmetries the maps between these.

    sector_maps: of sectors that are equivalent to lighter ones; numeric_maps: of those of them all of whose integrals are mapped.
    reachable: sectors that integrals of one may lead to, {} without symmetries.
    """

    problem: Problem
    operators: tuple[Operator, ...]
    equations: Equations
    generic: Equations
    nonzero: tuple[int, ...]
    geometry: Geometry | None = None
    sector_maps: dict[int, SectorMap] = field(default_factory=dict)
    numeric_maps: dict[int, NumericMap] = field(default_factory=dict)
    reachable: dict[int, frozenset[int]] = field(default_factory=dict)

    def leads_to(self, above: int, bits: int) -> bool:
        """Whether integrals of a sector may lead to another one."""
        return bits in self.reachable.get(above, ()) if self.reachable else bits != above and bits & above == bits

    def sectors_below(self, targets: Iterable[Index]) -> list[int]:
        """The sectors that these integrals may lead to, and their own."""
        tops = {sector_of(target) for target in targets}
        return [bits for bits in self.nonzero if bits in tops or any(self.leads_to(top, bits) for top in tops)]


@dataclass(frozen=True, eq=False)
class Ground:
    """What reductions go on: what is prepared, the integrals to stop at by sector, the layout of keys."""

    prepared: Prepared
    masters: dict[int, tuple[Index, ...]]
    layout: Layout

    def task(self, certify: bool = False) -> SectorTask:
        """What all tasks of a run have in common."""
        own, problem = self.prepared, self.prepared.problem
        options = {"canonical": problem.corners_stay, "beam": problem.used_beam, "certify": certify, "guide": problem.guide}
        return SectorTask(self.layout, 0, own.nonzero, own.equations, own.generic, **options)


def prepare(problem: Problem, known: RunKnowledge) -> Prepared:
    """From what is known, which is completed; what is derived anew goes to the store. Raises InputError, ReductionError."""
    knowledge, family = known.knowledge, problem.family
    if knowledge.operators is None:
        knowledge.operators = known.new.operators = derive_identities(family)
    equations, generic = (evaluate_identities(knowledge.operators, point) for point in (problem.point, generic_point(family)))
    if knowledge.nonzero is None:
        knowledge.nonzero = known.new.nonzero = find_nonzero_sectors(generic, family.lines)
    known.forget_foreign()
    plain = Prepared(problem, knowledge.operators, equations, generic, knowledge.nonzero)
    return _with_symmetries(plain, known) if problem.symmetries else plain


def _with_symmetries(plain: Prepared, known: RunKnowledge) -> Prepared:
    problem, n = plain.problem, plain.problem.family.n
    geometry = Geometry(problem.family, problem.cut)
    maps, numeric = find_symmetries(geometry, plain.nonzero).maps, {}
    for bits, found in maps.items() if problem.map_integrals else ():
        if found.size <= LIGHT_MAP * n or not known.sector(bits).rules:
            numeric[bits] = NumericMap(found, problem.point, n)
    reachable = reachable_sectors(plain.nonzero, maps)
    return replace(plain, geometry=geometry, sector_maps=maps, numeric_maps=numeric, reachable=reachable)


def known_nonzero_sectors(family: Family, shelves: Sequence[Store]) -> tuple[int, ...]:
    """From a store, or found. Raises InputError, ReductionError."""
    for shelf in shelves:
        if (found := shelf.load(family).nonzero) is not None:
            return found
    return find_nonzero_sectors(evaluate_identities(derive_identities(family), generic_point(family)), family.lines)
