"""Shifts of momenta that make sectors equivalent: guessed by U and F, proved by substitution.

`find_symmetries` maps sectors to the lightest of their kind, `own_maps` a sector to itself, `find_family_maps` those of one family to
another's; a `NumericMap` carries integrals along at a point, `exact_image` exactly.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ibp.families import Expression, Index
from ibp.geometry import Classes, Geometry, SectorMap, determinant_of, forms_differ, matrix_inverse
from ibp.identities import Point, freeze_ratio, quotients_at
from ibp.polynomials import Polynomial
from ibp.sectors import sector_order


@dataclass(frozen=True)
class Symmetries:
    """maps: for every sector that is equivalent to a lighter one, the map to its representative.

    unshifted: pairs of sectors with the same polynomials U and F for which no shift was found; they are treated as different.
    """

    maps: dict[int, SectorMap]
    unshifted: tuple[tuple[int, int], ...]


def find_shifts(source: Geometry, target: Geometry, pairs: Sequence[tuple[int, int]], reflections: bool = True) -> Iterator[SectorMap]:
    """All shifts k -> A k + B p, det A = +-1, p -> C p that carry line i of the source into line j of the target for each pair (i, j).

    The lines fix A and B up to signs, and C where they depend on external momenta; elsewhere C is completed by a permutation of the legs or
    by reflections. The families may differ, if their external momenta and kinematics are the same. Each shift is proved by substitution.
    """
    from sympy import QQ

    loops = source.loops
    routed = [(source.routing[i], target.routing[j]) for i, j in pairs if source.routing[i] and target.routing[j]]
    if not routed or loops != target.loops or source.gram.shape != target.gram.shape or forms_differ(source.gram, target.gram):
        return
    (a, b), (a2, b2) = (tuple(map(np.array, zip(*side))) for side in zip(*routed))
    bases = ((list(chosen), matrix_inverse(a[list(chosen)])) for chosen in itertools.combinations(range(len(a)), loops))
    base, inverse = next(((chosen, found) for chosen, found in bases if found is not None), (None, None))
    if base is None:  # scaleless
        return
    for rest in itertools.product((1, -1), repeat=loops - 1):  # the opposite of all signs is the same shift with k and p reversed
        linear = inverse @ (np.array([1, *rest])[:, None] * a2[base])
        signs = np.array([1 - 2 * forms_differ(line, other) for line, other in zip(a @ linear, a2)])
        if forms_differ(a @ linear, signs[:, None] * a2):
            continue
        signs[base] = [1, *rest]
        through = a @ inverse
        b3 = signs[:, None] * b2
        outer, outer2 = b - through @ b[base], b3 - through @ b3[base]
        for external in _isometries(outer, outer2, source, reflections):
            shift = np.full((len(source.names),) * 2, QQ(0), object)
            shift[:loops, :loops], shift[loops:, loops:] = linear, external
            shift[:loops, loops:] = inverse @ (b3[base] - b[base] @ external)
            found = _prove(source, target, pairs, shift)
            if found is not None:
                yield found
                break  # what others do to the other propagators follows from the identities


def _isometries(vectors: np.ndarray, images: np.ndarray, geometry: Geometry, reflections: bool) -> Iterator[np.ndarray]:
    """Matrices C [E, E] that keep the invariants, with vectors @ C = images, both [V, E].

    First permutations of the legs and their negatives. Then one made as in the proof of Witt's theorem: a reflection for every vector of an
    orthogonal basis of what the vectors span.
    """
    yield from (flip for flip in geometry.flips if not forms_differ(vectors @ flip, images))
    if not reflections:
        return
    one = geometry.functions.one
    gram, result = geometry.gram * one, geometry.flips[0] * one
    basis = _orthogonal_basis(vectors * one, images * one, gram)
    if basis is None:
        return
    for vector, image in basis:
        moved = vector @ result
        for mirror in (moved - image,) if (moved - image) @ gram @ (moved - image) else (moved + image, image):
            if any(mirror):
                result = result - np.outer(2 * (result @ gram @ mirror) / (mirror @ gram @ mirror), mirror)
    yield result


def _orthogonal_basis(vectors: np.ndarray, images: np.ndarray, gram: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Orthogonal vectors that span the given ones, and their images; None where images have other products, or there is no such basis."""
    independent = _independent(zip(vectors, images))
    if independent is None or any(v @ gram @ w - i @ gram @ j for (v, i), (w, j) in itertools.product(independent, repeat=2)):
        return None
    basis = []
    while independent:
        sums = [(v + w, i + j) for (v, i), (w, j) in itertools.combinations(independent, 2)]
        chosen = next((pair for pair in (*independent, *sums) if pair[0] @ gram @ pair[0]), None)
        if chosen is None:
            return None
        basis.append(chosen)
        factors = [vector @ gram @ chosen[0] / (chosen[0] @ gram @ chosen[0]) for vector, _ in independent]
        independent = _independent((v - chosen[0] * factor, i - chosen[1] * factor) for factor, (v, i) in zip(factors, independent))
        if independent is None:
            return None
    return basis


def _independent(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Linearly independent vectors that span the given ones, and their images; None where dependent vectors have independent images."""
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    for vector, image in pairs:
        for other, its_image in kept:
            place = next(i for i, value in enumerate(other) if value)
            factor = vector[place] / other[place]
            vector, image = vector - other * factor, image - its_image * factor
        if any(vector):
            kept.append((vector, image))
        elif any(image):
            return None
    return kept


def _prove(source: Geometry, target: Geometry, pairs: Sequence[tuple[int, int]], shift: np.ndarray) -> SectorMap | None:
    """The map by a shift [M, M] of the momenta, None unless substitution shows that it keeps the measure, the invariants and the lines."""
    loops, n = source.loops, target.family.n
    external = shift[loops:, loops:]
    measure = determinant_of(shift[:loops, :loops], 1)  # of rational numbers
    if measure not in (1, -1) or any(shift[loops:, :loops].flat) or forms_differ(external @ source.gram @ external.T, target.gram):
        return None
    rows = []
    for form, mass, momentum in zip(source.forms, source.masses, source.routing):
        moved = shift.T @ form @ shift if momentum is None else np.outer(*[np.concatenate(momentum) @ shift] * 2)
        row = np.array([*[0] * n, -mass], object)
        for a, b in zip(*np.nonzero(moved)):
            for j, value in target.products[a][b]:
                row[j] += moved[a, b] * value
        rows.append(row)
    if any(forms_differ(rows[i], np.arange(n + 1) == j) for i, j in pairs):
        return None
    exact = source.functions
    return SectorMap(
        sum(1 << i for i, _ in pairs),
        sum(1 << j for _, j in pairs),
        tuple((i + 1, j + 1) for i, j in sorted(pairs)),
        source.text(shift, target),
        tuple(tuple(((j + 1) % (n + 1), *freeze_ratio(exact(value))) for j, value in enumerate(row) if value) for row in rows),
    )


def find_symmetries(geometry: Geometry, nonzero: Sequence[int]) -> Symmetries:
    """Which non-zero sectors of a family are equivalent at generic kinematics; the lightest of each class represents it."""
    maps: dict[int, SectorMap] = {}
    unshifted = []
    for alike in geometry.classes(nonzero).values():
        unique: list[tuple[int, list[tuple[int, ...]]]] = []
        for bits, orders in alike:
            if found := _map_to_one(geometry, orders[0], geometry, unique):
                maps[bits] = found
            else:
                unshifted += [(bits, other) for other, _ in unique]
                unique.append((bits, orders))
    return Symmetries(dict(sorted(maps.items(), key=lambda item: sector_order(item[0]))), tuple(unshifted))


def find_family_maps(
    geometry: Geometry, sectors: Sequence[int], earlier: Sequence[tuple[Geometry, Classes]]
) -> dict[int, tuple[int, SectorMap]]:
    """For each of these sectors that is equivalent to one of other families with the same invariants: number of the first, and the map."""
    maps: dict[int, tuple[int, SectorMap]] = {}
    for bits in sectors:
        form, orders = geometry.canonical(bits)
        for number, (target, classes) in enumerate(earlier):
            if shift := _map_to_one(geometry, orders[0], target, classes.get(form, ())):
                maps[bits] = number, shift
                break
    return maps


def _map_to_one(
    source: Geometry, order: tuple[int, ...], target: Geometry, alike: Iterable[tuple[int, list[tuple[int, ...]]]]
) -> SectorMap | None:
    """From the sector with these lines, in canonical order, to the first of those with the same form to which a shift is found."""
    ways = ([list(zip(order, other)) for other in others] for _, others in alike)
    return next((found for some in ways if (found := _lightest_map(source, target, some))), None)


def _lightest_map(source: Geometry, target: Geometry, ways: Sequence[Sequence[tuple[int, int]]]) -> SectorMap | None:
    """The shift with the fewest terms of those that carry lines into lines in one of these ways; a reflection only where it takes one."""
    for reflections in (False, True):
        found = []
        for pairs in ways:
            found += find_shifts(source, target, pairs, reflections)
            if found and found[-1].size == target.family.n:  # every propagator becomes another one
                return found[-1]
        if found:
            return min(found, key=lambda shift: shift.size)
    return None


def own_maps(geometry: Geometry, bits: int) -> tuple[SectorMap, ...]:
    """Shifts that carry a sector into itself, one for each permutation of its lines and choice of signs, without the identity."""
    _, orders = geometry.canonical(bits)
    found = [shift for order in orders for shift in find_shifts(geometry, geometry, list(zip(orders[0], order)))]
    return tuple({shift.rows: shift for shift in found if shift.shift}.values())


def exact_image(found: SectorMap, integral: Index, functions: Any) -> dict[Index, Any]:
    """An integral of the source through integrals of the target and its subsectors, with rational functions as coefficients."""
    lines = {i - 1: j - 1 for i, j in found.lines}
    start = [0] * len(integral)
    for i, j in lines.items():
        start[j] = integral[i]
    total = {tuple(start): functions.one}

    def thaw(polynomial: Polynomial) -> Any:
        return functions(functions.ring.from_dict({exponents: functions.domain(value) for exponents, value in polynomial}))

    for row in (found.rows[i] for i, power in enumerate(integral) if i not in lines for _ in range(-power)):
        factors = [(j - 1, thaw(above) / thaw(below)) for j, above, below in row]
        terms: dict[Index, Any] = {}
        for (indices, value), (j, factor) in itertools.product(total.items(), factors):
            term = tuple(a - (i == j) for i, a in enumerate(indices))
            terms[term] = terms.get(term, functions.zero) + value * factor
        total = terms
    return total


class NumericMap:
    """A SectorMap at a point: an integral of the source as a sum of integrals of the target and its subsectors."""

    def __init__(self, found: SectorMap, point: Point, n: int):
        """Raises InputError where a denominator vanishes modulo the prime."""
        self.target, self.p, self.n = found.target, point.prime, n
        self.source_lines = np.array([i - 1 for i, _ in found.lines])
        self.target_lines = np.array([j - 1 for _, j in found.lines])
        self.others = np.setdiff1d(np.arange(n), self.source_lines)
        quotient = quotients_at(point, "a symmetry")
        self.rows = [
            (
                np.array([[j == b + 1 for b in range(n)] for j, _, _ in row], np.int64).reshape(-1, n),
                np.array([quotient(above, below) for _, above, below in row], np.int64),
            )
            for row in found.rows
        ]
        self.powers = {(0,) * len(self.others): (np.zeros((1, n), np.int64), np.ones(1, np.int64))}

    def __getstate__(self) -> dict[str, Any]:
        """Without the powers: another process has them sooner by itself."""
        return self.__dict__ | {"powers": {powers: value for powers, value in self.powers.items() if not any(powers)}}

    def numerator(self, powers: Index) -> tuple[np.ndarray, np.ndarray]:
        """The product of the other propagators to these powers as a polynomial of the target's: exponents [T, n] and T coefficients."""
        if powers not in self.powers:
            last = max(i for i, power in enumerate(powers) if power)
            exponents, values = self.numerator(tuple(power - (i == last) for i, power in enumerate(powers)))
            linear, factors = self.rows[self.others[last]]
            products = (exponents[:, None] + linear[None]).reshape(-1, self.n)
            distinct, place = np.unique(products, axis=0, return_inverse=True)
            total = np.zeros(len(distinct), np.int64)
            np.add.at(total, place.reshape(-1), (values[:, None] * factors % self.p).reshape(-1))
            some = total % self.p != 0
            self.powers[powers] = distinct[some], total[some] % self.p
        return self.powers[powers]

    def terms(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of integrals [N, n] of the source: numbers [M] of the integrals that the terms belong to, the terms [M, n], their values [M]."""
        parts = [(np.zeros(0, np.int64), np.zeros((0, self.n), np.int64), np.zeros(0, np.int64))]
        distinct, which = np.unique(-indices[:, self.others], axis=0, return_inverse=True)
        for number, powers in enumerate(distinct.tolist()):
            exponents, values = self.numerator(tuple(powers))
            members = np.flatnonzero(which.reshape(-1) == number)
            lines = np.zeros((len(members), self.n), np.int64)
            lines[:, self.target_lines] = indices[members][:, self.source_lines]
            terms = (lines[:, None] - exponents[None]).reshape(-1, self.n)
            parts.append((np.repeat(members, len(values)), terms, np.tile(values, len(members))))
        return tuple(map(np.concatenate, zip(*parts)))

    def __call__(self, integral: Index) -> Expression:
        _, terms, values = self.terms(np.array([integral], np.int64))
        return dict(zip(map(tuple, terms.tolist()), values.tolist()))


def reachable_sectors(nonzero: Sequence[int], maps: dict[int, SectorMap]) -> dict[int, frozenset[int]]:
    """For every sector all others that its integrals may lead to: the subsectors, the representative and what that leads to."""
    reached: dict[int, frozenset[int]] = {}
    for bits in sorted(nonzero, key=sector_order):
        below = tuple(b for b in nonzero if b != bits and b & bits == b) + ((maps[bits].target,) if bits in maps else ())
        reached[bits] = frozenset(below).union(*(reached[b] for b in below))
    return reached


def _map_line(what: str, shift: SectorMap) -> str:
    lines = " ".join(f"{i}>{j}" for i, j in shift.lines)
    return f"  {what:12} lines {lines}   {', '.join(shift.shift) or 'no shift'}"


def describe_symmetries(geometries: Sequence[Geometry], nonzero: Sequence[Sequence[int]]) -> str:
    """Every map within each family, then those from a later family to an earlier one, one a line."""
    rows: list[str] = []
    earlier: list[tuple[Geometry, Classes]] = []
    for geometry, sectors in zip(geometries, nonzero):
        name = geometry.family.name
        found = find_symmetries(geometry, sectors)
        own = {bits: own_maps(geometry, bits) for bits in sectors if bits not in found.maps}
        count, mapped = sum(map(len, own.values())), sum(map(bool, own.values()))
        rows.append(f"{name}: {len(sectors)} non-zero sectors, {len(own)} unique, {count} maps of {mapped} sectors into themselves")
        rows += [_map_line(f"{bits} -> {shift.target}", shift) for bits, shift in found.maps.items()]
        rows += [_map_line(f"{bits} -> {bits}", shift) for bits, shifts in own.items() for shift in shifts]
        rows += [f"  {a} and {b} have the same U and F, but no shift was found" for a, b in found.unshifted]
        if earlier:
            others = find_family_maps(geometry, list(own), earlier)
            rows.append(
                f"{name}: {len(others)} of its {len(own)} unique sectors are sectors of {', '.join(g.family.name for g, _ in earlier)}"
            )
            rows += [_map_line(f"{bits} -> {earlier[k][0].family.name} {to.target}", to) for bits, (k, to) in others.items()]
            alike = ((bits, g, classes.get(geometry.canonical(bits)[0])) for bits in own if bits not in others for g, classes in earlier)
            rows += [f"  {a} and {g.family.name} {b[0][0]} have the same U and F, but no shift was found" for a, g, b in alike if b]
        earlier.append((geometry, geometry.classes(sectors)))
    return "\n".join(rows)
