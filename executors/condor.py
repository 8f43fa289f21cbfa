"""Tasks as jobs of HTCondor: what callers use, and the thread that watches over the jobs.

The watcher's thread makes all calls of HTCondor's tools and settles the futures; what it does at each turn stands in the rooms `follower`
(what became of the jobs), `remedies` (what is done about it) and `submitter` (waiting tasks made into jobs).
"""

from __future__ import annotations

import itertools
import sys
import threading
import traceback
import weakref
from collections import Counter
from pathlib import Path

from executors.base import TaskExecutor
from executors.condor_tasks import COUNTED_AS, CondorTask, OpenTasks, State
from executors.directories import private_directory
from executors.errors import ExecutorError, NoOutcome, NotPicklable
from executors.follower import Follower
from executors.job_files import JobFiles
from executors.job_runs import read_run
from executors.local import EXIT_GRACE_S
from executors.program import worker_command
from executors.remedies import JobLimits, Remedies
from executors.schedd import CondorQueue, Schedd, check_condor_tools
from executors.submitter import SubmitFile, Submitter, check_submit_options, check_submittable
from executors.tasks import TimeLimits, call_name

TICK_S = 0.2  # how often the watcher looks at the user log: one stat()


class CondorExecutor(TaskExecutor):
    """Runs tasks as jobs of HTCondor.

    directory         of its own, on a file system that the jobs share (or transfer_files=True); one controller at a time
    check_interval_s  seconds between two condor_q; the jobs' log is followed all the time
    stragglers        TimeLimits; a task over its limit is removed and run anew with straggler_cpus and twice the memory
    timeout_s         hard limit in seconds on each attempt, then TaskTimeout
    cpus, memory_mb   what a job asks for; over its memory it is run anew with twice as much, up to max_memory_mb
    options           pairs of further lines of the submit file: ("accounting_group", "…"), ("+Attribute", "…")
    transfer_files    HTCondor carries calls, outcomes, Shared values, the program and the modules and packages that calls name
    max_jobs          so many jobs in the queue at once; the other tasks wait here, largest priority first
    retries           how often a task is tried again after its job died or was removed
    describe          describe(fn, args, kwargs) returns the Description of a task
    say               called with a line for a person when something is amiss

    Every task has a call file, every job is marked with the id of run.json: after a kill -9 recover() finds all again.
    Results come in the watcher's thread, which makes all calls of HTCondor's tools; a callback may submit() and forget().
    """

    def __init__(
        self,
        directory,
        *,
        check_interval_s=5.0,
        stragglers=None,
        straggler_cpus=8,
        timeout_s=None,
        cpus=1,
        memory_mb=1024,
        max_memory_mb=65536,
        options=(),
        transfer_files=False,
        max_jobs=5000,
        retries=3,
        python=sys.executable,
        describe=None,
        say=lambda line: None,
    ):
        """Starts nothing yet. Raises ValueError, CondorMissing, DirectoryRefused, ExecutorError, OSError."""
        super().__init__(describe)
        if min(check_interval_s, cpus, straggler_cpus, memory_mb, max_jobs) <= 0 or retries < 0 or not (timeout_s is None or timeout_s > 0):
            raise ValueError(
                f"check_interval_s={check_interval_s}, cpus={cpus}, straggler_cpus={straggler_cpus}, memory_mb={memory_mb}, "
                f"max_jobs={max_jobs}, retries={retries}, timeout_s={timeout_s}: give positive numbers"
            )
        check_condor_tools()
        options, python = check_submit_options(options), check_submittable(python)
        for path in (Path(directory).absolute(), *worker_command()[: not transfer_files]):
            check_submittable(path)
        self.directory, self.processes = private_directory(directory), max_jobs
        self._needs = {"cpus": cpus, "memory_mb": memory_mb}
        used_before = (self.directory / "run.json").exists()
        schedd = Schedd(read_run(self.directory, make=True))
        limits = JobLimits(stragglers or TimeLimits(None), straggler_cpus, timeout_s, max(memory_mb, max_memory_mb), retries)
        submit_file = SubmitFile(self.directory, schedd.run, python, options, transfer_files)

        self._tasks = OpenTasks(self._changed, self._totals)
        self._files = JobFiles(self.directory, transfer_files, say)
        self._queue = CondorQueue(schedd, check_interval_s, self._files.events, must_ask=used_before)
        self._submitter = Submitter(self._tasks, self._files, self._queue, submit_file, max_jobs)
        self._remedies = Remedies(self._tasks, self._files, self._queue, self._submitter, limits, self._close)
        self._follower = Follower(self._tasks, self._files, self._queue, self._remedies, straggler_cpus)

        self._numbers = itertools.count(1 + self._files.largest_number())
        self._watcher, self._stopped = None, False
        self._names = weakref.WeakKeyDictionary()  # of settled tasks, by future
        self._unforgotten = {}  # suffixes of the files to be deleted, by the name of a settled task

    def submit(self, fn, /, *args, **kwargs):
        """A future for fn(*args, **kwargs), at once. Raises RuntimeError after shutdown()."""
        with self._changed:
            task = self._new_task(fn, args, kwargs)
            self._start()
            name = f"{next(self._numbers):07d}"
            try:
                record = self._record(name, task, *self._files.write_call(name, task))
            except NotPicklable as error:
                self._settle(task.future, None, error, None)
            except OSError as error:
                trouble = f"the call of {call_name(fn)} cannot be written to {self.directory}: {error.strerror}"
                self._settle(task.future, None, ExecutorError(trouble), None)
            else:
                self._tasks.by_name[name] = record
                self._submitter.add(record)
        return task.future

    def recover(self):
        """[(future, fn, args, kwargs)] of the tasks that an earlier controller left; once, before the first submit().

        Finished ones are settled already; the others' jobs are adopted, or submitted anew where there are none.
        """
        with self._changed:
            if self._watcher is not None:
                raise RuntimeError("recover() comes once, before the first submit()")
            known, found, finished = self._files.events.attempts(), [], []
            for name, task, *more in self._files.left_calls(self._describe):
                record = self._record(name, task, *more)
                vars(record).update(known.get(name, {}), state=State.UNCONFIRMED)
                task.future.set_running_or_notify_cancel()
                self._totals["tasks"] += 1
                self._tasks.by_name[name] = record
                found.append((task.future, task.fn, task.args, task.kwargs))
                try:
                    finished.append((record, self._files.outcome(record)))
                except NoOutcome:
                    continue
            for record, outcome in finished:
                self._remedies.finish(record, *outcome)
            self._files.events.write("recovered", number=len(found), finished=len(finished))
            self._start()
        return found

    def _record(self, name, task, digest, inputs):
        return CondorTask(name, task.future, call_name(task.fn), task.description, digest, inputs, **self._needs)

    def forget(self, future):
        with self._changed:
            name = self._names.pop(future, None)
            suffixes = self._unforgotten.pop(name, ())
        self._files.delete(name, suffixes)

    @property
    def statistics(self):
        """What happened so far; condor_calls counts the calls of each tool."""
        with self._changed:
            names = ("jobs", "retries", "held", "removed", "evicted")
            return super().statistics | {name: self._totals[name] for name in names} | {"condor_calls": dict(self._queue.schedd.calls)}

    def held_reasons(self):
        with self._changed:
            return dict(Counter(task.hold for task in self._tasks.by_name.values() if task.state is State.HELD))

    def _current(self):
        return Counter(COUNTED_AS[task.state] for task in self._tasks.by_name.values())

    def shutdown(self, wait=True, *, cancel_futures=False):
        """Take no more tasks, cancel what HTCondor does not have yet if asked to, wait for the others; delete the tasks' files."""
        with self._changed:
            self._closed = True
            queued = [task for task in self._tasks.by_name.values() if task.state is State.QUEUED and cancel_futures]
            for task in queued:
                if task.future.cancel():
                    task.future.set_running_or_notify_cancel()  # without which concurrent.futures.wait() would wait
                    del self._tasks.by_name[task.name]
                    self._files.delete(task.name)
            if self._watcher is None:
                self._tidy()
            self._changed.notify_all()
        if wait:
            self._join_watcher()

    def detach(self):
        """Stop following and leave the jobs in the queue, for the recover() of a later controller. Open futures fail."""
        with self._changed:
            self._closed = self._stopped = True
            self._changed.notify_all()
        self._join_watcher(EXIT_GRACE_S)  # bounded: a tool of HTCondor may be running
        self._fail_open_futures(ExecutorError(f"left to HTCondor; recover() on {self.directory} finds it again"))

    def __exit__(self, exc_type, exc_value, exc_traceback):
        if exc_type is None:
            self.shutdown()
        else:
            self.detach()

    def _join_watcher(self, timeout_s=None):
        if self._watcher not in (None, threading.current_thread()):  # a callback of a future may end its executor
            self._watcher.join(timeout_s)

    def _fail_open_futures(self, error):
        with self._changed:
            tasks = list(self._tasks.by_name.values())
            self._tasks.by_name.clear()
        for task in tasks:
            if task.future.running() or task.future.set_running_or_notify_cancel():
                self._settle(task.future, None, error, None)
            else:
                self._files.delete(task.name)

    def _close(self, task, value, error, report, suffixes):
        with self._changed:
            if self._tasks.by_name.pop(task.name, None) is None:
                return  # detached meanwhile
            self._names[task.future], self._unforgotten[task.name] = task.name, suffixes
        self._settle(task.future, value, error, report)

    def _tidy(self):
        with self._changed:
            self._unforgotten = {}
        self._files.tidy()

    def _start(self):
        if self._watcher is None:
            self._files.sweep(self._tasks.by_name.keys() | self._unforgotten.keys())  # what recover() did not take, or was half written
            self._watcher = threading.Thread(target=self._watch, name="condor-watcher", daemon=True)
            self._watcher.start()

    def _watch(self):
        """What the watcher's thread does, until all is settled after shutdown(), or until detach()."""
        try:
            while self._wait():
                self._follower.follow_log()
                self._remedies.attend()
                self._remedies.end_slow_jobs()
                self._follower.ask_queue()
                self._remedies.remove_doomed()
                self._submitter.submit_waiting()
            if not self._stopped:
                self._tidy()
        except BaseException as error:  # a mistake of ours must not leave the caller waiting for ever
            with self._changed:
                self._closed = True
            self._files.events.write("broken", reason="".join(traceback.format_exception(error)))
            self._fail_open_futures(
                ExecutorError(f"the watcher of {self.directory} failed ({type(error).__name__}: {error}); recover() goes on")
            )

    def _wait(self):
        """Sleep until there may be something to do; False: never again."""
        with self._changed:
            while not (self._stopped or self._tasks.by_name or self._queue.must_ask):
                if self._closed:
                    return False
                self._changed.wait()
            if self._closed and not self._tasks.by_name and self._queue.silent:
                return False  # orphans of an earlier controller are not worth waiting for
            linger_s = self._submitter.seconds_to_next()
            self._changed.wait(linger_s if 0 < linger_s < TICK_S else TICK_S)
            return not self._stopped
