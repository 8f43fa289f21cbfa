"""Reductions from a problem to written results: modulo a prime, on cuts, of several families, or exactly by points.

Each `reduce_…` takes a posed problem, `Running` (how), stores, and `Outputs` (what to write where); it writes the result before it is done
and returns the lines that a person wants to see. `convert_result` writes a result that is there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ibp.beam import Beam
from ibp.certificates import make_certificate, pack_certificate
from ibp.coefficients import epsilon_summary, expand_result, parse_expansion, symbols_of
from ibp.console import Reporter, write_output
from ibp.cuts import describe_cuts, lowest_sectors, merge_cuts
from ibp.errors import InputError
from ibp.exact import ExactProblem
from ibp.exports import check_export_names, export_path, targets_with_names, write_exports
from ibp.families import Family, cut_lines
from ibp.identities import Point
from ibp.joint_families import reduce_families
from ibp.knowledge import Knowledge
from ibp.paths import write_paths
from ibp.problems import Outcome, Problem
from ibp.records import exact_record, exact_summary, joined_record, joined_summary, result_record, summary, write_pickle
from ibp.run_state import known_nonzero_sectors
from ibp.runs import Running, reduce_by_sectors, reduce_by_steps
from ibp.sampler import reduce_at_points
from ibp.sectors import sector_of
from ibp.shipped import shipped
from ibp.store import Store
from ibp.targets import Request, show_target
from ibp.verification import read_result
from ibp.weights import find_guide

Nonzero = Callable[[Family], Sequence[int]]  # finds the non-zero sectors of a family


@dataclass(frozen=True)
class Outputs:
    """result: the pickle; formats: names of exports; epsilon: what d is, where coefficients are to be expanded, through this order."""

    result: Path
    formats: tuple[str, ...] = ()
    epsilon: str | None = None
    order: int = 0
    certificate: Path | None = None
    paths: Path | None = None

    def beside(self) -> dict[str, Path]:
        """Exports and certificate, by the option that asks for each."""
        files = {} if self.certificate is None else {"--certificate": self.certificate}
        for name in self.formats:
            files[f"--export {name}"] = export_path(self.result, name)
            if self.epsilon is not None:
                files[f"--epsilon and --export {name}"] = export_path(self.result, name, expanded=True)
        return files

    def check_names(self, family: str, symbols: Collection[str], combinations: Sequence[str] = (), derivatives: bool = False) -> None:
        """Raises InputError where a format cannot hold a result with these names."""
        for name in self.formats:
            check_export_names(name, family, symbols, combinations, derivatives)

    def write_record(self, record: dict[str, Any], pickled: bool = True) -> list[Path]:
        """The record, which is expanded first if asked for, and its exports: what was written. Raises InputError, ReductionError."""
        if self.epsilon is not None:
            record["epsilon"] = expand_result(record, parse_expansion(self.epsilon, self.order, symbols_of(record)))
        if pickled:
            write_pickle(record, self.result)
        return [self.result] * pickled + write_exports(record, self.result, self.formats)

    def write(self, problem: Problem, outcome: Outcome, cuts: Sequence[int] = ()) -> None:
        """The result modulo a prime and all that was asked for beside it. Raises ReductionError."""
        record = result_record(problem, outcome)
        if cuts:
            record["cuts"] = [cut_lines(cut) for cut in cuts]
        self.write_record(record)
        if self.paths is not None:
            write_paths(problem, outcome.paths, self.paths)
        if self.certificate is not None:
            content = pack_certificate(make_certificate(problem, outcome))
            write_output(self.certificate, content, "certificate", f"the result is in {self.result}")


def convert_result(source: Path, outputs: Outputs, pickled: bool) -> tuple[dict[str, Any], list[Path]]:
    """A result that is there, expanded if asked for, and the files it was written to. pickled: whether outputs.result is one of them.

    Raises InputError, ReductionError.
    """
    record = read_result(source)
    for what, path in (({"--output": outputs.result} if pickled else {}) | outputs.beside()).items():
        if os.path.realpath(path) == os.path.realpath(source):
            raise InputError(f"{what} {path}: is the result to be converted; give another --output")
    outputs.check_names(record["family"], symbols_of(record), targets_with_names(record))
    return record, outputs.write_record(record, pickled)


def pose_problem(request: Request, point: Point, paper_masters_only: bool, beam: Beam | None = None, policy: str | None = None) -> Problem:
    """A request at a point. policy: weights of the guide of local elimination, None: the shipped ones. Raises InputError."""
    guide, why_no_guide = find_guide(policy, str(shipped("policy.pt")), request.family) if beam is None else (None, "")
    wanted = {"combinations": request.combinations, "preferred_masters": request.preferred, "symmetries": request.symmetries}
    how = {"paper_masters_only": paper_masters_only, "beam": beam, "guide": guide, "why_no_guide": why_no_guide}
    return Problem(request.family, point, request.targets, **wanted, **how).on_cut(request.cut)


def pose_exact(problem: Problem, cuts: Sequence[int], symbols: tuple[str, ...]) -> ExactProblem:
    """With rational numbers, or functions of these symbols, on at most one cut. Raises InputError."""
    if len(cuts) > 1:
        raise InputError("several cuts are put together modulo a prime only; give one --cut to an exact run, or none for the whole")
    exact = ExactProblem(problem.on_cut(cuts[0] if cuts else 0), symbols)
    exact.columns()  # a slip in a coefficient is found now
    return exact


def describe_plan(problem: Problem, shelves: Sequence[Store], label: str = "") -> str:
    """What would be done. label: of an exact problem. Raises ReductionError."""
    knowledge = Knowledge()
    for shelf in shelves:
        knowledge.update(shelf.load(problem.family))
    family, known = problem.family, knowledge.sectors.values()
    sectors = f"{len(knowledge.nonzero)} non-zero sectors" if knowledge.nonzero else "sectors not known yet"
    masters = sum(len(sector.masters or ()) for sector in known) or len(family.paper_masters)
    rules = sum(len(sector.rules) for sector in known)
    known_here = f"family {family.name}: {family.n} propagators, {sectors}, {masters or 'no'} masters and {rules} rules known"
    wanted = label or f"{len(problem.keys)} to reduce modulo {problem.point.prime}, first {show_target(problem.keys[0])}"
    return f"{known_here}\n{wanted}\nstores: {', '.join(str(shelf.path) for shelf in shelves)}"


def reduce_modulo(
    problem: Problem,
    cuts: Sequence[int],
    running: Running,
    by_steps: bool,
    shelves: Sequence[Store],
    outputs: Outputs,
    reporter: Reporter,
    nonzero: Nonzero,
) -> tuple[Outcome, list[str]]:
    """Modulo the prime of the problem's point, by sectors or by one-step tasks; several cuts one after the other, put together.

    Raises InputError, ReductionError, ExecutorError, StopRequested.
    """
    outputs.check_names(problem.family.name, (), [combination.name for combination in problem.combinations])
    if len(cuts) > 1:
        _check_mergeable(problem, by_steps)
        outcomes = [reduce_by_sectors(replace(problem, cut=cut), running, shelves, reporter) for cut in cuts]
        outcome = merge_cuts(cuts, outcomes)
    else:
        problem = problem.on_cut(cuts[0]) if cuts else problem
        if by_steps:
            outcome = reduce_by_steps(problem, running, shelves, reporter, partial(outputs.write, problem, cuts=cuts))
        else:
            outcome = reduce_by_sectors(problem, running, shelves, reporter, outputs.certificate is not None)
    if not by_steps:
        outputs.write(problem, outcome, cuts)
    return outcome, [summary(problem, outcome, outputs.result), *_cut_lines(problem, cuts, nonzero), *_beside(outputs)]


def _check_mergeable(problem: Problem, by_steps: bool) -> None:
    if by_steps:
        raise InputError("several cuts are put together by runs with --local and --batch sector; with one-step tasks give one --cut")
    for name, given in (("masters", problem.preferred_masters), ("symmetries", problem.symmetries)):
        if given:
            raise InputError(f"several cuts and --{name} contradict each other, as they end on different masters; give one --cut")


def reduce_joint(
    problems: Sequence[Problem], running: Running, shelves: Sequence[Store], outputs: Outputs, reporter: Reporter, nonzero: Nonzero
) -> tuple[Outcome, list[str]]:
    """Several families into one result with names such as box[1,0,1,1]. Raises InputError, ReductionError, ExecutorError."""
    reduce = partial(reduce_by_sectors, running=running, shelves=shelves, reporter=reporter)
    outcome, joint = reduce_families(problems, reduce, nonzero)
    record = joined_record(problems, outcome, joint)
    write_pickle(record, outputs.result)
    return outcome, joined_summary(record, problems[0].point, outcome, outputs.result)


def reduce_exactly(
    exact: ExactProblem, running: Running, device: str, shelves: Sequence[Store], outputs: Outputs, reporter: Reporter, quiet: bool
) -> list[str]:
    """Rational numbers or functions, by points that a later run need not compute again.

    Raises InputError, ReductionError, ExecutorError, StopRequested.
    """
    record: dict[str, Any] = {}

    def save(outcome: Any) -> None:
        record.update(exact_record(exact, outcome))
        outputs.write_record(record)

    outcome = reduce_at_points(exact, running, device, shelves, reporter, save, quiet)
    cuts = [exact.problem.cut] if exact.problem.cut else []
    lines = [exact_summary(exact, outcome, outputs.result)]
    lines += _cut_lines(exact.problem, cuts, lambda family: known_nonzero_sectors(family, shelves))
    return lines + ([epsilon_summary(record)] if outputs.epsilon is not None else []) + _beside(outputs)


def _cut_lines(problem: Problem, cuts: Sequence[int], nonzero: Nonzero) -> list[str]:
    if not cuts:
        return []
    return [describe_cuts(cuts, lowest_sectors(nonzero(problem.family), list(map(sector_of, problem.integrals))))]


def _beside(outputs: Outputs) -> list[str]:
    return [f"{what.removeprefix('--')}: {path}" for what, path in outputs.beside().items()]
