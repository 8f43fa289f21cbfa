"""What is known of tasks that run as jobs: the record of one, and the table of those that are not settled."""

from __future__ import annotations

import enum
from concurrent.futures import Future
from dataclasses import dataclass

from executors.tasks import Description


class State(enum.Enum):
    """Where a task is."""

    QUEUED = enum.auto()  # waits with us
    UNCONFIRMED = enum.auto()  # perhaps submitted: condor_submit failed, or the controller that did it is gone
    IDLE = enum.auto()
    RUNNING = enum.auto()
    HELD = enum.auto()
    REMOVING = enum.auto()  # goes on when its job is gone for certain
    ENDED = enum.auto()  # its job is gone, its outcome is looked for


COUNTED_AS = {state: state.name.lower() for state in State}  # in counts()
COUNTED_AS |= {State.UNCONFIRMED: "queued", State.REMOVING: "running", State.ENDED: "running"}


@dataclass(eq=False)
class CondorTask:
    """What the watcher knows of a task. Nobody else changes it."""

    name: str
    future: Future
    function: str
    description: Description
    digest: str  # of the call
    inputs: tuple  # files that its job needs beside the call
    cpus: int  # of its next job, or of the one that it has
    memory_mb: int
    state: State = State.QUEUED
    job: str = ""
    started: float | None = None  # when its job began to execute
    evicted: bool = False
    straggler: bool = False
    retries: int = 0
    releases: int = 0
    hold: str = ""  # why it was held last
    looks: int = 0
    due: float = 0.0  # when a HELD one is released, an ENDED one is looked at
    ending: str = ""  # how its job ended, from the user log
    hopeless: bool = False  # that ending leaves no outcome to wait for
    removing: bool = False  # we asked for its job's removal
    verdict: Exception | None = None  # what it gets once its job is removed; None: it runs anew
    refusals: tuple = ("", 0)  # the last error of condor_submit, and how often it came

    def __lt__(self, other):
        """The order of the queue."""
        return (-self.description.priority, self.name) < (-other.description.priority, other.name)

    def set_idle(self):
        self.state, self.started, self.evicted = State.IDLE, None, False


class OpenTasks:
    """The tasks that are not settled, and their jobs.

    changed guards by_name, and totals where callers count too; the rest belongs to the watcher's thread.
    """

    def __init__(self, changed, totals):
        self.changed, self.totals = changed, totals
        self.by_name = {}
        self.by_job = {}
        self.gone = set()  # jobs that ended; condor_q may show them a little longer
        self.doomed = set()  # jobs to be removed

    def assign(self, task, job):
        """A task got a new job."""
        self.by_job.pop(task.job, None)
        self.by_job[job] = task
        self.totals["jobs"] += 1
        task.job = job
        task.set_idle()
        task.ending, task.hopeless, task.removing, task.verdict, task.looks = "", False, False, None, 0

    def drop_job(self, task):
        self.by_job.pop(task.job, None)
