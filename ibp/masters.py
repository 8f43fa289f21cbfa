"""Reductions rewritten: fewer masters by relations between them, and others that somebody prefers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ibp.elimination import Solved, solve_for, substitute
from ibp.errors import InputError, SingularPoint
from ibp.families import Expression, Index
from ibp.geometry import SectorMap
from ibp.identities import Column
from ibp.sectors import show, weight
from ibp.symmetries import exact_image


class MasterRelation(Column):
    """A map of a sector, applied to one of its masters: image - master, which is zero and can be solved for the master `solved`."""

    @property
    def solved(self) -> Index:
        return self.name[0]

    @staticmethod
    def by(found: SectorMap, master: Index, solved: Index, functions: Any) -> Column:
        image = exact_image(found, master, functions)
        return MasterRelation.of((solved,), image | {master: image.get(master, functions.zero) - functions.one})


def solve_labelled(rows: Iterable[Expression], p: int, dependent: Callable[[int, dict[Any, int]], None] | None = None) -> Solved:
    """Each row solved for its heaviest integral; k stands for what row k is, so that it is known which were used.

    dependent: is told k and what is left of row k where no integral is left in it.
    """
    solved: Solved = {}
    for k, expression in enumerate(rows):
        row = substitute(expression | {k: p - 1}, solved, p)
        pivot = max((key for key in row if isinstance(key, tuple)), key=weight, default=None)
        if pivot is not None:
            solve_for(pivot, row, solved, p)
        elif dependent is not None:
            dependent(k, row)
    return solved


def use_relations(rows: dict[Any, Expression], relations: Sequence[MasterRelation], p: int) -> dict[Any, Expression]:
    """Rows through the masters that relations leave; those of the relations, under their names, are left out. Raises SingularPoint."""
    solved: Solved = {}
    for relation in relations:
        row = substitute(rows[relation.name], solved, p)
        if max(row, key=weight, default=None) != relation.solved:
            raise SingularPoint(
                f"a symmetry does not give {show(relation.solved)} through lighter masters at this point modulo {p}; "
                "take another prime or point"
            )
        solve_for(relation.solved, row, solved, p)
    names = {relation.name for relation in relations}
    return {name: heaviest_first(substitute(row, solved, p)) for name, row in rows.items() if name not in names}


def heaviest_first(row: Expression) -> Expression:
    return {integral: row[integral] for integral in sorted(row, key=weight, reverse=True)}


def change_basis(reductions: dict[Any, Expression], preferred: Sequence[Index], p: int) -> dict[Any, Expression]:
    """Reductions, those of the preferred integrals among them, through these and the standard masters that they do not replace.

    Raises InputError where the preferred integrals are linearly dependent modulo p.
    """

    def dependent(number: int, row: dict[Any, int]) -> None:
        raise InputError(_dependency(preferred, number, row, p))

    solved = solve_labelled((reductions[integral] for integral in preferred), p, dependent)

    def rewritten(expression: Expression) -> Expression:
        row = substitute(expression, solved, p)
        return heaviest_first({key if isinstance(key, tuple) else preferred[key]: value for key, value in row.items()})

    return {target: rewritten(expression) for target, expression in reductions.items()}


def _dependency(preferred: Sequence[Index], number: int, row: dict, p: int) -> str:
    """Why a preferred master cannot be one: row = {i: factor} is a relation between it and the ones before it."""
    factor = -pow(row[number], -1, p)
    parts = [f"{value * factor % p}*{show(preferred[i])}" for i, value in row.items() if i != number]
    if not parts:
        return f"preferred master {show(preferred[number])} depends linearly on any others: it is zero modulo {p}; leave it out"
    shown = " + ".join(parts[:8]) + (f" + {len(parts) - 8} more" if len(parts) > 8 else "")
    return f"preferred master {show(preferred[number])} depends linearly on the ones before it: it is {shown} modulo {p}; leave one out"
