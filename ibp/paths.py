"""What beam searches found, as a file that can be checked by itself: `write_paths` and `replay_paths`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ibp.certificates import checked_expression, checked_indices, pack_point, unpack_point
from ibp.console import write_output
from ibp.elimination import Solved, difference, solve_for, substitute
from ibp.errors import UNREADABLE, InputError, ReductionError
from ibp.families import Expression, Family, Index
from ibp.identities import Equations, derive_identities, evaluate_identities, generic_point
from ibp.positions import StepPath
from ibp.problems import Problem
from ibp.sectors import find_nonzero_sectors, sector_of, show, weight

PATHS_KIND, PATHS_FORMAT = "ibp_reduce paths", 1


def write_paths(problem: Problem, paths: dict[Index, StepPath], file: Path) -> None:
    """One JSON object a line: first the family and the point, then for each integral its identities (operator, seed) and its expression."""
    family = problem.family
    header = {"kind": PATHS_KIND, "format": PATHS_FORMAT, "family": family.name, "identifier": family.identifier}
    lines: list[dict[str, Any]] = [header | pack_point(problem.point)]
    for target in sorted(paths, key=weight, reverse=True):
        actions, expression = paths[target]
        seeds = [(operator, [a + b for a, b in zip(target, change)]) for operator, change in actions]
        lines.append({"integral": target, "path": seeds, "expression": [*expression.items()]})
    write_output(file, "".join(json.dumps(line) + "\n" for line in lines).encode(), "--paths")


def replay_paths(file: Path, family: Family) -> tuple[int, int]:
    """Derive everything in a file of paths again from the identities alone; returns the numbers of paths and of identities.

    Raises InputError where the file cannot be read, ReductionError at the first path that does not give its expression.
    """
    try:
        header, *lines = (json.loads(line) for line in file.read_text().splitlines())
        if (header["kind"], header["format"]) != (PATHS_KIND, PATHS_FORMAT):
            raise InputError(f"{file}: holds no paths of this version")
        if (header["family"], header["identifier"]) != (family.name, family.identifier):
            raise InputError(f"{file}: of the family {header['family']}, not of {family.name} as it is defined here; give --family")
        point = unpack_point(header, family, f"{file}: ")
        paths = [_read_path(line, family, point.prime) for line in lines]
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from None
    except UNREADABLE as error:
        raise InputError(f"{file}: damaged ({type(error).__name__}: {error})") from None
    operators = derive_identities(family)
    equations = evaluate_identities(operators, point)
    nonzero = find_nonzero_sectors(evaluate_identities(operators, generic_point(family)), family.lines)
    for target, seeds, expression in paths:
        if any(operator not in range(equations.count) for operator, _ in seeds):
            raise InputError(f"{file}: damaged (there is no operator of that number)")
        if any(weight(term) >= weight(target) for term in expression):
            raise ReductionError(f"{show(target)}: is expressed through an integral that is not lighter")
        solved: Solved = {}
        for seed in seeds:
            row = {term: value for term, value in _raw_identity(equations, *seed).items() if sector_of(term) in nonzero}
            if row := substitute(row, solved, point.prime):
                solve_for(max(row, key=weight), row, solved, point.prime)
        if substitute(difference({target: 1}, expression, point.prime), solved, point.prime):
            raise ReductionError(f"{show(target)}: its {len(seeds)} identities do not give its expression")
    return len(paths), sum(len(seeds) for _, seeds, _ in paths)


def _read_path(line: Any, family: Family, p: int) -> tuple[Index, list[tuple[int, Index]], Expression]:
    """Raises ValueError and the like where a line is not what `write_paths` writes."""
    seeds = [(operator, checked_indices(seed, family)) for operator, seed in line["path"]]
    if not all(type(operator) is int for operator, _ in seeds):
        raise ValueError("operators are not all integers")
    return checked_indices(line["integral"], family), seeds, checked_expression(line["expression"], family, p)


def _raw_identity(equations: Equations, operator: int, seed: Index) -> Expression:
    """All terms of one identity, whatever sector they are in."""
    row: Expression = {}
    for term in np.flatnonzero(equations.operator == operator):
        value = int(equations.coefficient[term, 0]) + sum(int(c) * a for c, a in zip(equations.coefficient[term, 1:], seed))
        if value % equations.prime:
            row[tuple(a + int(b) for a, b in zip(seed, equations.shift[term]))] = value % equations.prime
    return row
