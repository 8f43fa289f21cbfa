"""How a problem is run in a work directory: by sectors, or by one-step tasks that a later run can go on with; how such a run is ended.

`Running` says how; `reduce_by_sectors` and `reduce_by_steps` do it; `claimed_run` is the directory of any run that can be resumed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executors import choose
from executors.choose import Condor, Local
from executors.directories import claim_directory, private_directory
from executors.errors import DirectoryRefused
from executors.job_runs import remove_run
from executors.tasks import Description, call_name
from ibp.console import Reporter
from ibp.controller import Controller
from ibp.errors import InputError, StopRequested
from ibp.journal import Journal
from ibp.problems import Outcome, Problem
from ibp.run_directory import RunDirectory
from ibp.sectors import sector_order
from ibp.step_scheme import StepScheme
from ibp.steps import BatchPlan, reduce_steps
from ibp.store import Store
from ibp.tables import unpack_keys

STOP_PATIENCE_S = 90.0  # how long one who stops a run waits for its controller to remove its jobs
STOP_TICK_S = 0.5


@dataclass(frozen=True)
class Running:
    """How a problem is run.

    batch: integrals in a one-step task, None: what takes job_seconds (None: 60 where jobs are HTCondor's, else 1). resume: there must be
    an unfinished run; fresh: it is dropped first.
    """

    work_dir: Path
    where: Local | Condor = Local()
    batch: int | None = None
    job_seconds: float | None = None
    resume: bool = False
    fresh: bool = False

    @property
    def by_condor(self) -> bool:
        return isinstance(self.where, Condor)


def reduce_by_sectors(problem: Problem, running: Running, shelves: Sequence[Store], reporter: Reporter, certify: bool = False) -> Outcome:
    """With each sector as a task. Raises ReductionError, ExecutorError."""
    if os.path.exists(running.work_dir):
        private_directory(running.work_dir)
    try:
        with make_executor(running.where, running.work_dir, reporter.say) as executor:
            return Controller(problem, executor, shelves, reporter, certify).run()
    finally:
        reporter.close()


def reduce_by_steps(
    problem: Problem, running: Running, shelves: Sequence[Store], reporter: Reporter, save: Callable[[Outcome], None]
) -> Outcome:
    """By one-step tasks; what a later run would go on with is dropped once the outcome is saved.

    Raises InputError, ReductionError, ExecutorError, StopRequested.
    """
    with claimed_run(running, "journal", reporter.say) as directory:
        plan = BatchPlan(running.batch, running.job_seconds or (60.0 if running.by_condor else 1.0))
        try:
            with closing(Journal(directory.journal, problem.name, reporter.say)) as journal:
                directory.status.unlink(missing_ok=True)  # of an earlier run
                if journal.is_new or not running.by_condor:
                    drop_jobs(directory, reporter.say)  # of a run that nobody knows any more, or that goes on without HTCondor
                with make_executor(running.where, directory.jobs, reporter.say) as executor:
                    scheme = StepScheme(directory, journal, plan)
                    outcome = Controller(problem, executor, shelves, reporter, scheme=scheme).run()
        except StopRequested:
            drop_jobs(directory, reporter.say)
            raise
        finally:
            reporter.close()
        save(outcome)
        if not outcome.store_trouble:  # then the journal alone knows what was learned
            directory.clear()  # only now that the result is safe
    return outcome


JOURNALS = {"journal": "unfinished run", "exact": "unfinished exact run"}  # of a RunDirectory, and what there is if they are


@contextmanager
def claimed_run(running: Running, own: str, say: Callable[[str], None]) -> Iterator[RunDirectory]:
    """The work directory of a run that a later one can go on with. own: which of JOURNALS is its; there must be no other one.

    Raises DirectoryRefused where another controller is at work, InputError, ExecutorError.
    """
    with claim_directory(running.work_dir) as work:
        directory = RunDirectory(work)
        directory.stop_request.unlink(missing_ok=True)  # of an earlier run
        choose.check_available(running.where)  # before anything is dropped
        if running.fresh:
            drop_jobs(directory, say)
            directory.clear()
        for other in JOURNALS.keys() - {own}:
            if (foreign := getattr(directory, other)).exists():  # this run would remove its files at the end
                raise InputError(f"{foreign} is of an unfinished run; go on with that one, drop it by --fresh, or take another --work-dir")
        if running.resume and not getattr(directory, own).exists():
            raise InputError(f"--resume: {work} holds no {JOURNALS[own]}; leave the option out to start one")
        yield directory


def drop_jobs(directory: RunDirectory, say: Callable[[str], None]) -> None:
    """Remove the jobs that a run has in HTCondor's queue, and their files. Raises ExecutorError."""
    if directory.jobs.exists():
        say(f"{remove_run(directory.jobs)} jobs removed from HTCondor's queue")
        directory.drop_jobs()


def stop_run(work_dir: Path, say: Callable[[str], None]) -> None:
    """Ask a controller that is there to end, or end in its place; what is done stays.

    Raises InputError, DirectoryRefused, ExecutorError.
    """
    directory = RunDirectory(work_dir)
    if not work_dir.is_dir():
        raise InputError(f"work directory {work_dir}: no such directory")
    private_directory(work_dir)  # else it would be refused below again and again
    deadline = time.monotonic() + STOP_PATIENCE_S
    while True:
        try:
            with claim_directory(work_dir):
                directory.stop_request.unlink(missing_ok=True)
                drop_jobs(directory, say)
                return
        except DirectoryRefused:
            if time.monotonic() > deadline:
                raise
            directory.stop_request.touch()
            time.sleep(STOP_TICK_S)


def make_executor(where: Local | Condor, directory: Path, say: Callable[[str], None]) -> Any:
    """directory: of the files of jobs. Raises InputError for settings that mean nothing, ExecutorError."""
    try:
        return choose.make_executor(where, directory, say, describe_task)
    except ValueError as error:
        raise InputError(str(error)) from None


def describe_task(fn: Callable, args: tuple, kwargs: dict) -> Description:
    """What an executor may know of a task: tasks of a group take about as long per integral; heavier ones go first."""
    if fn is reduce_steps:
        _, _, keys, claims, _ = args
        bits = max(keys, key=sector_order)
        size = sum(len(unpack_keys(packed)) for packed in keys.values())
        kind = "going on from sector" if claims else "sector"
        return Description(f"{kind} {bits}", 1.0 if claims else float(size), bits.bit_count())
    return Description(call_name(fn))
