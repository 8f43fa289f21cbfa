"""Several families in one result: masters of a later one through those of earlier ones, where sectors are the same."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from ibp.elimination import subtract
from ibp.errors import InputError
from ibp.families import Expression, Family, Index
from ibp.geometry import Classes, Geometry
from ibp.masters import change_basis, heaviest_first
from ibp.problems import Outcome, Problem, joined_outcome
from ibp.sectors import sector_of, sector_order, show
from ibp.symmetries import NumericMap, find_family_maps

Images = dict[Index, tuple[int, Expression]]  # of a family's masters: number of another family, integrals there


class JointFamilies:
    """Integrals of several families in one order: the indices of all families in a row, 0 for the others.

    At the same number of lines, those of an earlier family are the lighter ones.
    """

    def __init__(self, families: Sequence[Family]):
        self.names = [family.name for family in families]
        self.ends = list(itertools.accumulate(family.n for family in families))

    def joint(self, number: int, integral: Index) -> Index:
        before = self.ends[number] - len(integral)
        return (0,) * before + integral + (0,) * (self.ends[-1] - self.ends[number])

    def label(self, joint: Index | str) -> str:
        """Such as box[1,0,1,1]; names of combinations stay."""
        if isinstance(joint, str):
            return joint
        place = next((i for i, a in enumerate(joint) if a), 0)
        number = next(number for number, end in enumerate(self.ends) if place < end)
        begin = self.ends[number - 1] if number else 0
        return self.names[number] + show(joint[begin : self.ends[number]])[1:]


def reduce_families(
    problems: Sequence[Problem], reduce: Callable[[Problem], Outcome], nonzero: Callable[[Family], Sequence[int]]
) -> tuple[Outcome, JointFamilies]:
    """Several families, from the last to the first, into one result, which is in joint integrals; targets stand under their labels.

    With symmetries, masters of a later family in a sector that is one of an earlier family, too, are carried over by the map between them,
    and their images are reduced there with that family's targets. Preferred masters replace others in the joint basis at the end. Raises
    InputError where these are linearly dependent, and what `reduce` raises.
    """
    joint, p = JointFamilies([problem.family for problem in problems]), problems[0].point.prime
    spaces = [_sector_classes(problem, nonzero) for problem in problems if problem.symmetries]
    images: list[Images] = [{} for _ in problems]
    outcomes: dict[int, Outcome] = {}
    for number, own in reversed(list(enumerate(problems))):
        carried = [term for found in images for other, image in found.values() if other == number for term in image]
        targets = tuple(dict.fromkeys((*own.targets, *own.preferred_masters, *carried)))
        if targets or own.combinations:
            outcomes[number] = reduce(replace(own, targets=targets, preferred_masters=()))
            if spaces:
                images[number] = _carried_over(outcomes[number].masters, own, spaces[number][0], spaces[:number])
    reductions = _joined_reductions(joint, outcomes, images, p)
    preferred = tuple(joint.joint(number, master) for number, problem in enumerate(problems) for master in problem.preferred_masters)
    masters = {joint.joint(number, m) for number, outcome in outcomes.items() for m in outcome.masters if m not in images[number]}
    unreduced = {joint.joint(number, integral) for number, outcome in outcomes.items() for integral in outcome.unreduced}
    if preferred and not unreduced:
        try:
            reductions = change_basis(reductions, preferred, p)
        except InputError as error:
            named = re.sub(r"I\[([-\d,]+)\]", lambda match: joint.label(tuple(map(int, match[1].split(",")))), str(error))
            raise InputError(named) from None
        masters = {*preferred, *(term for expression in reductions.values() for term in expression)}
    wanted: dict[str, Expression] = {}
    for number, problem in enumerate(problems):
        wanted |= {problem.family.name + show(target)[1:]: reductions[joint.joint(number, target)] for target in problem.targets}
        wanted |= {combination.name: reductions[combination.name] for combination in problem.combinations}
    result = joined_outcome(list(outcomes.values()), wanted, masters, unreduced)
    result.statistics["shared_masters"] = sum(map(len, images))
    return result, joint


def _sector_classes(problem: Problem, nonzero: Callable[[Family], Sequence[int]]) -> tuple[Geometry, Classes]:
    geometry = Geometry(problem.family, problem.cut)
    return geometry, geometry.classes([bits for bits in nonzero(problem.family) if bits & problem.cut == problem.cut])


def _carried_over(masters: Iterable[Index], own: Problem, geometry: Geometry, earlier: Sequence[tuple[Geometry, Classes]]) -> Images:
    """The images of those masters whose sectors are sectors of earlier families."""
    sectors = sorted({sector_of(master) for master in masters}, key=sector_order)
    maps = find_family_maps(geometry, sectors, earlier)
    numeric = {bits: (number, NumericMap(found, own.point, own.family.n)) for bits, (number, found) in maps.items()}
    mapped = ((master, *numeric[sector_of(master)]) for master in masters if sector_of(master) in numeric)
    return {master: (number, shift(master)) for master, number, shift in mapped}


def _joined_reductions(
    joint: JointFamilies, outcomes: dict[int, Outcome], images: Sequence[Images], p: int
) -> dict[Index | str, Expression]:
    """Every target of every family in joint integrals; combinations of the same name are added up."""
    total: dict[Index | str, Expression] = {}
    for number, outcome in sorted(outcomes.items()):  # images are of earlier families
        in_joint: dict[Index, Expression] = {}
        for master, (other, image) in images[number].items():
            in_joint[master] = row = {}
            for term, value in image.items():
                subtract(row, total[joint.joint(other, term)], p - value, p)
        for target, expression in outcome.reductions.items():
            row = total.setdefault(target if isinstance(target, str) else joint.joint(number, target), {})
            for integral, value in expression.items():
                subtract(row, in_joint.get(integral, {joint.joint(number, integral): 1}), p - value, p)
    return {target: heaviest_first(row) for target, row in total.items()}
