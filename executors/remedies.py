"""What is done about jobs: outcomes are taken, held jobs released or given more memory, slow ones removed, lost ones run again."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from executors.condor_tasks import OpenTasks, State
from executors.errors import NoOutcome, SubmitFailed, TaskDied, TaskHeld, TaskTimeout
from executors.job_files import TASK_SUFFIXES, JobFiles
from executors.local import POLL_S
from executors.schedd import CondorQueue
from executors.submitter import Submitter
from executors.tasks import TimeLimits

GRACE_S = (1.0, 3.0)  # pauses before the second and third look for an outcome: NFS shows files of other hosts late
RELEASES = (0, 4, 16)  # a held job is released after so many check intervals, the first, second and third time
MEMORY_HOLD, POLICY_HOLDS = 34, (3, 21, 26)  # hold codes: over the memory limit; a policy, perhaps one on memory


@dataclass(frozen=True)
class JobLimits:
    """What a task may use up; see CondorExecutor."""

    stragglers: TimeLimits
    straggler_cpus: int
    timeout_s: float | None
    max_memory_mb: int
    retries: int


class Remedies:
    """Belongs to the watcher's thread. close(task, value, error, report, suffixes) settles a task; suffixes: its files to be deleted."""

    def __init__(
        self, tasks: OpenTasks, files: JobFiles, queue: CondorQueue, submitter: Submitter, limits: JobLimits, close: Callable[..., None]
    ):
        self._tasks, self._files, self._queue, self._submitter, self._limits = tasks, files, queue, submitter, limits
        self._close_task, self._events, self._totals = close, files.events, tasks.totals
        self._attention = set()  # tasks that are HELD or ENDED
        self._limits_at = 0.0

    # at every turn of the watcher ------------------------------------------------------------------------------------

    def attend(self):
        """Release held jobs and look at outcomes, where it is time."""
        now, held = time.monotonic(), []
        for task in [task for task in self._attention if task.due <= now]:
            if task.state is State.HELD:
                held.append(task)
            elif task.state is State.ENDED:
                self._look(task)
            else:
                self._attention.discard(task)
        if held and self._queue.tell("condor_release", [task.job for task in held]):
            for task in held:
                self._events.write("released", task)
                self.set_idle(task)

    def end_slow_jobs(self):
        """Have jobs removed that are over a time limit."""
        if time.monotonic() < self._limits_at:
            return
        self._limits_at, limits = time.monotonic() + POLL_S, self._limits
        for task in list(self._tasks.by_job.values()):
            if task.state is not State.RUNNING or task.started is None:
                continue
            seconds = time.time() - task.started
            if limits.timeout_s is not None and seconds > limits.timeout_s:
                self._events.write("timeout", task, seconds=round(seconds, 1))
                text = f"{task.function}: its job {task.job} was removed at its time limit of {limits.timeout_s:g} s"
                self._remove(task, TaskTimeout(text))
            elif not task.straggler and (limit := limits.stragglers.limit_s(task.description)) is not None and seconds > limit:
                task.straggler = True
                self._totals["stragglers"] += 1
                self._remove_to_grow(task, "straggler", limits.straggler_cpus, seconds=round(seconds, 1), limit=round(limit, 1))

    def remove_doomed(self):
        if self._tasks.doomed and self._queue.tell("condor_rm", self._tasks.doomed):
            self._tasks.doomed.clear()

    # where something has become of a job -----------------------------------------------------------------------------

    def set_idle(self, task):
        """A job that was held or ran waits in the queue again."""
        self._attention.discard(task)
        task.set_idle()

    def hold(self, task, code, reason):
        """A job was held: release it, give it more memory, or give it up."""
        if task.state in (State.HELD, State.REMOVING, State.ENDED):
            return
        self._totals["held"] += 1
        self._events.write("held", task, code=code, reason=reason)
        self._events.say_once((code, reason), f"job {task.job} was held: {reason} (code {code})")
        task.state, task.started, task.hold = State.HELD, None, f"{reason} (code {code})"
        if code == MEMORY_HOLD or (code in POLICY_HOLDS and "memory" in reason.lower()):
            if task.memory_mb < self._limits.max_memory_mb:
                return self._remove_to_grow(task, "memory", task.cpus)
            tried = f"with {task.memory_mb} MB; raise max_memory_mb"
        elif task.releases < len(RELEASES):
            task.due = time.monotonic() + RELEASES[task.releases] * self._queue.interval_s
            task.releases += 1
            return self._attention.add(task)
        else:
            tried = f"after {task.releases} releases"
        self._remove(task, TaskHeld(f"{task.function}: its job {task.job} was held: {reason} (code {code}), {tried}"))

    def end(self, task):
        """The job of a task is gone."""
        task.state = State.ENDED
        self._tasks.gone.add(task.job)
        self._tasks.doomed.discard(task.job)
        self._look(task)

    def not_submitted(self, task):
        """A task that perhaps was submitted has no job in the queue."""
        with contextlib.suppress(NoOutcome):  # there was one, and it is done
            return self.finish(task, *self._files.outcome(task))
        if self._submitter.is_refused(task):
            self._fail(task, SubmitFailed(f"{task.function}: {task.refusals[0]}"))
        else:
            self._events.write("absent", task)  # never submitted, or removed while no controller was there
            self._run_anew(task)

    def finish(self, task, value, error, report):
        """Settle a task by its outcome."""
        self._events.write("done" if error is None else "error", task, seconds=round(report["seconds"], 3), host=report["host"])
        if not task.straggler:
            self._limits.stragglers.note(task.description, report["seconds"])
        self._close(task, value, error, report, TASK_SUFFIXES)

    def _remove_to_grow(self, task, event, cpus, **fields):
        """Have a task's job removed, and run anew with more CPUs or memory."""
        task.cpus, task.memory_mb = cpus, min(2 * task.memory_mb, self._limits.max_memory_mb)
        self._events.write_attempt(event, task, **fields)
        self._remove(task, None)

    def _remove(self, task, verdict):
        self._attention.discard(task)
        task.state, task.removing, task.verdict = State.REMOVING, True, verdict
        self._tasks.doomed.add(task.job)

    def _look(self, task):
        """Settle a task whose job is gone by its outcome. Without a sound one: look again, run it again, or give it up."""
        try:
            outcome = self._files.outcome(task)
        except NoOutcome as reason:
            if task.verdict is not None:
                self._fail(task, task.verdict)
            elif task.removing:
                self._run_anew(task)
            elif task.looks < len(GRACE_S) and not task.hopeless:
                task.due = time.monotonic() + GRACE_S[task.looks]
                task.looks += 1
                self._attention.add(task)
            else:
                self._try_again(task, str(reason))
        else:
            self.finish(task, *outcome)

    def _try_again(self, task, reason):
        what = "died" if task.ending else "removed"
        self._totals["removed"] += what == "removed"
        reason = f"its job {task.job} {task.ending or 'was removed by somebody'}; {reason}"
        task.retries += 1
        self._events.write_attempt(what, task, reason=reason)
        if task.retries <= self._limits.retries:
            self._totals["retries"] += 1
            self._totals["died"] += what == "died"
            return self._run_anew(task)
        path = self._files.path(task.name, ".err")
        self._fail(task, TaskDied(f"{task.function}: {reason}; attempts made: {task.retries}; see {path}{_last_words(path)}"))

    def _run_anew(self, task):
        self._attention.discard(task)
        self._tasks.drop_job(task)
        self._files.delete(task.name, (".out",))
        self._submitter.add(task)

    def _fail(self, task, error):
        self._events.write("failed", task, reason=str(error))
        self._close(task, None, error, None, (".call", ".out"))  # the message points to .err

    def _close(self, task, *what):
        self._tasks.drop_job(task)
        self._attention.discard(task)
        self._close_task(task, *what)


def _last_words(path):
    """The last line that a job left on its standard error, as the end of a message."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((f", which ends with: {line.strip()}" for line in reversed(lines) if line.strip()), "")
