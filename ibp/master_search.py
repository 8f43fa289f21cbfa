"""The masters of a sector, integrals that nothing reduces, and what maps of the sector into itself say about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ibp.elimination import Solved, solve_for, substitute
from ibp.errors import ReductionError
from ibp.families import Index
from ibp.geometry import SectorMap
from ibp.identities import Equations, Point
from ibp.knowledge import SectorKnowledge, pack_sector
from ibp.sector_reduction import reduce_sector
from ibp.sector_tasks import SectorTask
from ibp.sectors import Sector, integrals_near_corner, layout_for, r_and_s, sector_of, weight
from ibp.symmetries import NumericMap

MASTER_REGION = 8  # masters are looked for up to this number of dots plus s


def search_masters(nonzero: tuple[int, ...], generic: Equations, bits: int, guide: bytes | None = None) -> dict[str, Any]:
    """`find_masters` with a result of builtin types. Raises ReductionError."""
    found = find_masters(nonzero, generic, bits, guide)
    return pack_sector(found, generic.n) | {"searched_rows": found.searched_rows}


def find_masters(nonzero: tuple[int, ...], generic: Equations, bits: int, guide: bytes | None = None) -> SectorKnowledge:
    """The masters of one sector, and the rules found on the way. Raises ReductionError where there is no end of them.

    All integrals near the corner are reduced at the generic point without masters; what nothing reduces is a master. The region grows
    until no master touches its border.
    """
    dots, s = 1, 1
    learned, masters, rows = SectorKnowledge(), (), 0
    while dots + s <= MASTER_REGION:
        region = integrals_near_corner(bits, generic.n, dots, s)
        layout = layout_for(region, generic.n)
        keys = Sector(layout, bits).encode(np.array(region))
        coefficients = np.random.default_rng(bits).integers(1, generic.prime, (len(keys), 1))  # so that nothing cancels by structure
        task = SectorTask(layout, bits, nonzero, generic, generic, learned, masters, {}, keys, coefficients, guide=guide)
        result = reduce_sector(task)
        learned.update(result.learned)
        rows += result.counts["rows"]
        masters = tuple(sorted({*masters, *result.unreduced}, key=weight))
        many_dots = any(r_and_s(master)[0] - bits.bit_count() >= dots for master in masters)
        high_s = any(r_and_s(master)[1] >= s for master in masters)
        if not many_dots and not high_s:
            return replace(learned, masters=masters, searched_rows=rows)
        dots, s = dots + many_dots, s + high_s
    raise ReductionError(f"sector {bits}: {len(masters)} integrals with dots + s < {dots + s} are not reducible, and there seem to be more")


def find_relations(
    own: Sequence[SectorMap], point: Point, generic: Equations, bits: int, known: SectorKnowledge
) -> tuple[list[tuple[SectorMap, Index, Index]], SectorKnowledge]:
    """Relations between the masters of one sector by its maps into itself, and the rules found on the way.

    Each is (map, master that it is applied to, master that it can be solved for). A map takes identities to identities, so it acts on the
    space that the masters span, and its images of the masters give all its relations. What they say about subsectors follows from the maps
    of these: the group of maps is finite, so that taking coinvariants is exact. Hence it suffices to work without subsectors here, at the
    generic point. Raises ReductionError.
    """
    masters = known.masters or ()
    images = [(master, shift, NumericMap(shift, point, generic.n)(master)) for shift in own for master in masters]
    if not images:
        return [], SectorKnowledge()
    here = sorted({term for *_, image in images for term in image if sector_of(term) == bits} | set(masters), key=weight)
    number = {term: i for i, term in enumerate(here)}
    coefficients = np.zeros((len(here), len(images)), np.int64)
    for column, (master, _, image) in enumerate(images):
        for term, value in (image | {master: image.get(master, 0) - 1}).items():
            if term in number:
                coefficients[number[term], column] = value % generic.prime
    layout = layout_for(here, generic.n)
    keys = Sector(layout, bits).encode(np.array(here))
    result = reduce_sector(SectorTask(layout, bits, (bits,), generic, generic, known, masters, {}, keys, coefficients))
    relations = []
    solved: Solved = {}
    for column, (master, shift, _) in enumerate(images):
        if any(line[column] for line in result.unreduced.values()):
            continue  # a relation to what is no master says nothing
        row = {integral: line[column] for integral, line in result.masters.items() if line[column]}
        if row := substitute(row, solved, generic.prime):
            pivot = max(row, key=weight)
            solve_for(pivot, row, solved, generic.prime)
            relations.append((shift, master, pivot))
    return relations, result.learned
