"""Exact results by points that a later run need not compute again: the directory of such a run, its journal and its tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial

from ibp.console import Reporter
from ibp.journal import Journal
from ibp.runs import Running, claimed_run, drop_jobs, make_executor
from ibp.sampler import ExactOutcome, PointProblem, PointTasks, find_coefficients
from ibp.store import Store

CONDOR_SECONDS, LOCAL_SECONDS = 60.0, 4.0  # what a task takes: a job of HTCondor is not worth its start if it is short


def reduce_at_points(
    problem: PointProblem,
    running: Running,
    device: str,
    shelves: Sequence[Store],
    reporter: Reporter,
    save: Callable[[ExactOutcome], None],
    quiet: bool = False,
) -> ExactOutcome:
    """Reconstruct all coefficients; what a later run would go on with is dropped once the outcome is saved.

    Raises InputError, ReductionError, ExecutorError, StopRequested.
    """
    condor = running.by_condor
    seconds = running.job_seconds or (CONDOR_SECONDS if condor else LOCAL_SECONDS)
    tasks = PointTasks(device, seconds, 1 if condor else None, quiet)
    with claimed_run(running, "exact", reporter.say) as directory:
        with closing(Journal(directory.exact, problem.name, reporter.say)) as journal:
            drop_jobs(directory, reporter.say)  # of an earlier controller: what they would have told is asked again
            start = partial(make_executor, running.where, directory.jobs, reporter.say)
            outcome = find_coefficients(problem, journal, directory, start, reporter, tasks, shelves)
        save(outcome)
        directory.clear()
    return outcome
