"""What all executors have in common: counting what they do, and giving each task's future its outcome; tasks in this process."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import Executor, Future

from executors.tasks import Description, Task, call_name, dump_call, load_outcome, perform


class TaskExecutor(Executor):
    """What every executor can do beside submit() and shutdown().

    describe(fn, args, kwargs), if given, returns the Description of a task.
    """

    processes = 1  # how many tasks can run at once

    def __init__(self, describe=None):
        self._describe = describe or (lambda fn, args, kwargs: Description())
        self._changed = threading.Condition()  # guards all below, and the same of the subclasses
        self._closed = False
        self._totals = Counter()
        self._reports = weakref.WeakKeyDictionary()  # of settled futures, as long as the caller keeps them

    def warm_up(self):
        """Start now what takes time to start."""

    def recover(self):
        """[(future, fn, args, kwargs)] of tasks that an earlier controller left; only jobs of a cluster outlive theirs."""
        return []

    def forget(self, future):
        """The caller has the outcome of this future safely: what is kept of it elsewhere may go."""

    def report(self, future):
        """{host, seconds, peak_memory_kb, cpus} of a settled task's last run; None before, and where no run ended."""
        with self._changed:
            return self._reports.get(future)

    @property
    def statistics(self):
        """What happened so far: tasks submitted, stragglers, died (attempts that were repeated), failed."""
        with self._changed:
            return {name: self._totals[name] for name in ("tasks", "stragglers", "died", "failed")}

    def counts(self):
        """How many tasks are queued, idle, running, held now, and how many are done or failed so far."""
        with self._changed:
            now = self._current() | {name: self._totals[name] for name in ("done", "failed")}
            return {name: now.get(name, 0) for name in ("queued", "idle", "running", "held", "done", "failed")}

    def held_reasons(self):
        """Why tasks are held now: {reason: how many}."""
        return {}

    def _current(self):
        return {"running": self._totals["started"] - self._totals["done"] - self._totals["failed"]}

    def _new_task(self, fn, args, kwargs):
        """Called with the lock held. Raises RuntimeError after shutdown()."""
        if self._closed:
            raise RuntimeError(f"cannot submit {call_name(fn)}: the executor is shut down")
        self._totals["tasks"] += 1
        return Task(Future(), fn, args, kwargs, self._describe(fn, args, kwargs))

    def _run_and_settle(self, task, run):
        """Give a task's future what run(task) returns as (outcome, report), or the exception that it raises."""
        with self._changed:
            self._totals["started"] += 1
        report = None
        try:
            outcome, report = run(task)
            value, error = load_outcome(outcome)
        except Exception as failure:  # whatever it is belongs to this task, the others go on
            value, error = None, failure
        self._settle(task.future, value, error, report)

    def _settle(self, future, value, error, report):
        with self._changed:  # before the future: who waits for it may look at the numbers
            self._totals["done" if error is None else "failed"] += 1
            if report is not None:
                self._reports[future] = report
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)


def local_report(started, cpus=1):
    return {"host": os.uname().nodename, "seconds": time.monotonic() - started, "peak_memory_kb": None, "cpus": cpus}


class InlineExecutor(TaskExecutor):
    """Runs each task within submit(), in this process, so that print, breakpoint() and profilers work.

    Exceptions end in the future, except KeyboardInterrupt, which passes through submit().
    """

    def submit(self, fn, /, *args, **kwargs):
        """A finished future. Raises RuntimeError after shutdown()."""
        with self._changed:
            task = self._new_task(fn, args, kwargs)
        task.future.set_running_or_notify_cancel()
        self._run_and_settle(task, self._run)
        if isinstance(task.future.exception(), KeyboardInterrupt):
            raise task.future.exception()
        return task.future

    @staticmethod
    def _run(task):
        call, started = dump_call(task), time.monotonic()
        return perform(call), local_report(started)

    def shutdown(self, wait=True, *, cancel_futures=False):
        self._closed = True
