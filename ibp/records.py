"""Results as records of builtin types, and their summaries."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ibp.console import write_output
from ibp.exact import ExactProblem
from ibp.families import cut_lines
from ibp.identities import show_point
from ibp.joint_families import JointFamilies
from ibp.problems import ExactOutcome, Outcome, Problem, result_record
from ibp.sectors import show
from ibp.targets import expression_lines


def exact_summary(exact: ExactProblem, outcome: ExactOutcome, output: Path) -> str:
    """What a person wants to see at the end."""
    left = f"symmetries: {len(outcome.masters)} masters are left in use; " if exact.problem.symmetries else ""
    return "\n".join([*exact.lines(outcome), left + point_costs(outcome, "integrals"), f"written to {output}"])


def point_costs(outcome: ExactOutcome, what: str) -> str:
    counts = outcome.statistics
    return (
        f"{counts['integrals']:,} {what} a point; {counts['points']:,} points ({1000 * counts['seconds_per_point']:.2f} ms each), "
        f"{counts['primes']} primes, degrees {counts['degrees']}; {outcome.seconds:.2f} s, {outcome.peak_memory_kb / 1024:.0f} MB"
    )


def write_pickle(record: dict[str, Any], path: Path) -> None:
    """Raises ReductionError."""
    write_output(path, pickle.dumps(record, protocol=4))


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
