"""Results as records of builtin types, which the pickle holds, and as the lines that a person sees at the end.

`result_record` and `summary` are modulo a prime, `joined_record` of several families, `exact_…` of functions and differential equations,
`system_…` of linear systems.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from executors import __version__
from ibp.console import shortened, write_output
from ibp.differential import DifferentialProblem
from ibp.exact import ExactProblem
from ibp.families import Index, cut_lines
from ibp.identities import Point, plain_number, show_point, show_values
from ibp.joint_families import JointFamilies
from ibp.problems import Outcome, Problem
from ibp.sampler import ExactOutcome
from ibp.sectors import show
from ibp.systems import LinearSystem
from ibp.targets import show_target

MOST_ROWS_SHOWN = 60


def write_pickle(record: dict[str, Any], path: Path) -> None:
    """Raises ReductionError."""
    write_output(path, pickle.dumps(record, protocol=4))


def _base_record(
    family: str, prime: int | None, values: dict[str, Fraction], symbols: Sequence[str], outcome: Outcome | ExactOutcome
) -> dict:
    """What every result has: builtin types only (and Fractions). values: of d and the invariants; symbols stay as their names."""
    shown = {name: name if name in symbols else plain_number(value) for name, value in values.items()}
    return {
        "format": 1,
        "success": not outcome.unreduced,
        "family": family,
        "prime": prime,
        "d": shown.pop("d", None),
        "kinematics": shown,
        "reductions": outcome.reductions,
        "masters": outcome.masters,
        "unreduced": outcome.unreduced,
        "steps": outcome.statistics.get("integrals"),
        "time": outcome.seconds,
        "peak_memory_kb": outcome.peak_memory_kb,
        "statistics": outcome.statistics,
        "version": __version__,
    }


def result_record(problem: Problem, outcome: Outcome | ExactOutcome, symbols: Sequence[str] | None = None) -> dict[str, Any]:
    """What the pickle holds, zeros left out. Coefficients are in 0 … prime - 1; of an exact run, in these symbols, Fractions or texts."""
    values = {"d": problem.point.d, **dict(problem.point.invariants)}
    record = _base_record(problem.family.name, problem.point.prime if symbols is None else None, values, symbols or (), outcome)
    if problem.symmetries:
        record["symmetries"] = True
    if problem.cut:
        record["cuts"] = [cut_lines(problem.cut)]
    if problem.combinations:
        record["combinations"] = {combination.name: list(combination.terms) for combination in problem.combinations}
    if len(outcome.reductions) == 1:
        ((target, expression),) = outcome.reductions.items()
        record |= {"original_integral": target, "final_expr": expression}
    return record


def joined_record(problems: Sequence[Problem], outcome: Outcome, joint: JointFamilies) -> dict[str, Any]:
    """The result of several families: as of one, but integrals are texts 'family[1,0]'."""
    record = result_record(problems[0], outcome)
    for key in ("original_integral", "final_expr", "combinations"):
        record.pop(key, None)
    if cuts := {problem.family.name: cut_lines(problem.cut) for problem in problems if problem.cut}:
        record["cuts"] = cuts
    labelled = {key: {joint.label(term): value for term, value in row.items()} for key, row in outcome.reductions.items()}
    return record | {
        "family": ", ".join(joint.names),
        "reductions": labelled,
        "masters": list(map(joint.label, outcome.masters)),
        "unreduced": list(map(joint.label, outcome.unreduced)),
    }


def exact_record(exact: ExactProblem, outcome: ExactOutcome) -> dict[str, Any]:
    """As `result_record`; of differential equations the matrices in place of reductions, by variable, row and column."""
    if not isinstance(exact, DifferentialProblem):
        return result_record(exact.problem, outcome, exact.symbols)
    matrices: dict[str, dict[Index, dict]] = {variable: {} for variable in exact.variables}
    for (variable, *master), entries in outcome.reductions.items():
        matrices[variable][tuple(master)] = entries
    equation = {"masters": outcome.masters, "matrices": matrices}
    return result_record(exact.problem, replace(outcome, reductions={}), exact.symbols) | {"differential_equation": equation}


def system_record(
    family: str, numbers: dict[str, Fraction], symbols: Sequence[str], prime: int | None, outcome: ExactOutcome
) -> dict[str, Any]:
    """As for integrals, but unknowns are texts; an independent one is itself. family: what the system is called."""
    one = 1 if prime is not None else "1" if symbols else Fraction(1)
    independent = set(outcome.masters)
    return _base_record(family, prime, numbers | dict.fromkeys(symbols), symbols, outcome) | {
        "reductions": {label: {label: one} if label in independent else row for label, row in outcome.reductions.items()},
        "steps": len(outcome.reductions.keys() - independent),
    }


def summary(problem: Problem, outcome: Outcome, output: Path) -> str:
    """What a person wants to see at the end."""
    counts = outcome.statistics
    lines = [f"{problem.family.name} at {show_point(problem.point)}"]
    if len(outcome.reductions) == 1:
        for target, expression in outcome.reductions.items():
            lines += expression_lines(target, expression)
    else:
        terms = {term for expression in outcome.reductions.values() for term in expression}
        what = "targets" if problem.combinations else "integrals"
        lines.append(f"{len(outcome.reductions)} {what} through {len(terms)} integrals")
    if outcome.unreduced:
        lines.append(f"NOT REDUCED ({len(outcome.unreduced)}): {' '.join(map(show, outcome.unreduced))}")
    lines.append(
        f"{counts['integrals']:,} integrals reduced in {counts['sectors']} sectors; {counts['hits']:,} cache hits; "
        f"{counts['rules']:,} new rules; {outcome.seconds:.2f} s, {outcome.peak_memory_kb / 1024:.0f} MB"
    )
    if problem.symmetries:
        lines.append(
            f"symmetries: {counts['mapped']:,} of them mapped to equivalent sectors; {len(outcome.masters)} masters are left in use"
        )
    if problem.beam is not None:
        count = counts["searches"]
        lines.append(f"{count:,} beam searches of {counts['search_steps'] / max(count, 1):.1f} steps on average")
    lines.append(f"written to {output}")
    return "\n".join(lines)


def joined_summary(record: dict[str, Any], point: Point, outcome: Outcome, output: Path) -> list[str]:
    """What a person wants to see at the end of a run of several families."""
    shared = outcome.statistics["shared_masters"]
    return [
        f"{record['family']} at {show_point(point)}",
        f"{len(record['reductions'])} targets through {len(record['masters'])} masters; {record['time']:.2f} s",
        *([f"symmetries: {shared} masters of later families are integrals of earlier ones"] if shared else ()),
        f"written to {output}",
    ]


def exact_summary(exact: ExactProblem, outcome: ExactOutcome, output: Path) -> str:
    """What a person wants to see at the end, cut short."""
    given = show_values(exact.given.items())
    heading = f"{exact.problem.family.name} {f'at {given}, ' if given else ''}exact"
    if isinstance(exact, DifferentialProblem):
        lines = _equation_lines(exact, outcome, heading)
    else:
        (target, expression), *others = outcome.reductions.items()
        more = [f"and {len(others)} more {'targets' if exact.problem.combinations else 'integrals'}"] if others else []
        lines = [heading, *expression_lines(target, expression), *more]
    left = f"symmetries: {len(outcome.masters)} masters are left in use; " if exact.problem.symmetries else ""
    return "\n".join([*lines, left + _point_costs(outcome, "integrals"), f"written to {output}"])


def _equation_lines(exact: DifferentialProblem, outcome: ExactOutcome, heading: str) -> list[str]:
    """The matrices: a line for each entry that is not zero."""
    width = max(map(len, map(show, outcome.masters)))
    lines = []
    for (variable, *master), row in outcome.reductions.items():
        left = f"{show(master)} at d-2" if variable == "d" else f"d/d{variable} {show(master)}"
        lines += [f"{left} =", *(_term_lines(row, width) or ["  0"])]
    if len(lines) > MOST_ROWS_SHOWN:
        lines = [*lines[:MOST_ROWS_SHOWN], f"  ... and {len(lines) - MOST_ROWS_SHOWN:,} more lines in the result"]
    entries = sum(map(len, outcome.reductions.values()))
    about = f"{len(outcome.masters)} masters, equations in {', '.join(exact.variables)}, {entries:,} entries that are not zero"
    return [f"{heading}: {about}", *lines]


def system_summary(system: LinearSystem, outcome: ExactOutcome, exact: bool, output: Path) -> str:
    """What a person wants to see at the end."""
    count, shown = len(outcome.masters), f"{' '.join(outcome.masters[:20])}{' ...' if len(outcome.masters) > 20 else ''}"
    lines = [f"{len(system.equations)} equations, {len(system.unknowns)} unknowns, {count} of them independent: {shown}"]
    return "\n".join([*lines, *([_point_costs(outcome, "equations")] if exact else []), f"written to {output}"])


def _point_costs(outcome: ExactOutcome, what: str) -> str:
    counts = outcome.statistics
    return (
        f"{counts['integrals']:,} {what} a point; {counts['points']:,} points ({1000 * counts['seconds_per_point']:.2f} ms each), "
        f"{counts['primes']} primes, degrees {counts['degrees']}; {outcome.seconds:.2f} s, {outcome.peak_memory_kb / 1024:.0f} MB"
    )


def expression_lines(target: Index | str, expression: dict) -> list[str]:
    """A target through masters, a term a line."""
    if not expression:
        return [f"{show_target(target)} = 0"]
    return [f"{show_target(target)} = sum of {len(expression)} terms", *_term_lines(expression, max(map(len, map(show, expression))))]


def _term_lines(expression: dict, width: int) -> list[str]:
    return [f"  {show(term):{width}}  {shortened(str(value))}" for term, value in expression.items()]
