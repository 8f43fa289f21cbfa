"""Tasks as jobs of HTCondor."""

from __future__ import annotations

import contextlib
import enum
import heapq
import itertools
import os
import pickle
import re
import shutil
import sys
import threading
import time
import traceback
import weakref
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from executors.base import TaskExecutor
from executors.calls import call_file, read_call, read_outcome
from executors.condor_tools import (
    ABORTED_EVENT,
    COMPLETED_JOB,
    EVICTED_EVENT,
    EXECUTING_EVENT,
    HELD_EVENT,
    HELD_JOB,
    IDLE_JOB,
    RELEASED_EVENT,
    REMOVED_JOB,
    RUNNING_JOB,
    SUSPENDED_JOB,
    TERMINATED_EVENT,
    TRANSFERRING_JOB,
    Journal,
    Schedd,
    UserLog,
    check_condor_tools,
    check_submit_options,
    check_submittable,
    literal,
    quoted,
    read_run,
    remove_run,
)
from executors.directories import private_directory
from executors.errors import ExecutorError, NoOutcome, NotPicklable, ScheddSilent, SubmitFailed, TaskDied, TaskHeld, TaskTimeout
from executors.files import replace_file
from executors.local import EXIT_GRACE_S, POLL_S, describe_exit
from executors.tasks import Description, Shared, Task, TimeLimits, call_name, dump_call

TASK_SUFFIXES = (".call", ".out", ".err")  # a task's files: the call, its outcome, the job's standard error
PASSED_ON = ("PYTHONPATH", "LD_LIBRARY_PATH", "PATH")  # of the submitter's environment
TICK_S = 0.2  # how often the watcher looks at the user log: one stat()
LINGER_S = 0.1  # after the first task of a batch: its siblings come within that
SUBMIT_SPACING_S = 0.5  # between two condor_submit: each costs the schedd a transaction
GRACE_S = (1.0, 3.0)  # pauses before the second and third look for an outcome: NFS shows files of other hosts late
RELEASES = (0, 4, 16)  # a held job is released after so many check intervals, the first, second and third time
LONGEST_BACKOFF_S = 60.0
SUBMIT_ATTEMPTS = 3  # the same refusal so often, by a schedd that answers, is final
MAIN_COPY = "submitter_main.py"  # the main program, where HTCondor transfers files
MEMORY_HOLD, POLICY_HOLDS = 34, (3, 21, 26)  # hold codes: over the memory limit; a policy, perhaps one on memory
ROOMS = Path(__file__).resolve().parent
WORKER = ROOMS.parent / "condor_worker.py"  # the script that a job runs


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
    cpus: int  # of its next job, or of the one that it has
    memory_mb: int
    inputs: tuple = ()  # files that its job needs beside the call
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


class CondorExecutor(TaskExecutor):
    """Runs tasks as jobs of HTCondor.

    directory         of its own, on a file system that the jobs share (or transfer_files=True); one controller at a time
    check_interval_s  seconds between two condor_q; the jobs' log is followed all the time
    stragglers        TimeLimits; a task over its limit is removed and run anew with straggler_cpus and twice the memory
    timeout_s         hard limit in seconds on each attempt, then TaskTimeout
    cpus, memory_mb   what a job asks for; over its memory it is run anew with twice as much, up to max_memory_mb
    options           pairs of further lines of the submit file: ("accounting_group", "…"), ("+Attribute", "…")
    transfer_files    HTCondor carries calls, outcomes, the function's module and Shared values; modules are flat files
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
        self.options = check_submit_options(options)
        self.python, self.transfer_files = check_submittable(python), transfer_files
        check_submittable(Path(directory).absolute())
        self.check_interval_s, self.timeout_s, self.retries, self.processes = check_interval_s, timeout_s, retries, max_jobs
        self.stragglers, self.straggler_cpus = stragglers or TimeLimits(None), straggler_cpus
        self.cpus, self.memory_mb, self.max_memory_mb = cpus, memory_mb, max(memory_mb, max_memory_mb)
        self.directory = private_directory(directory)
        used_before = (self.directory / "run.json").exists()
        self._schedd = Schedd(read_run(self.directory, make=True))
        self._journal = Journal(self.directory / "events.jsonl", say)
        self._log = UserLog(self.directory / "jobs.log")
        self._say, self._said = say, set()
        self._numbers = itertools.count(1 + self._largest_number())
        self._watcher, self._stopped = None, False
        self._copied = set()  # files that are there for transfer_files
        self._queue = []  # a heap of tasks; those that are not QUEUED any more are passed over
        self._tasks = {}  # all unsettled ones, by name
        self._names = weakref.WeakKeyDictionary()  # of settled ones, by future
        self._unforgotten = {}  # suffixes of the files to be deleted, by the name of a settled task
        self._init_watcher(used_before)

    def _init_watcher(self, used_before):
        """What only the watcher's thread touches."""
        self._jobs = {}  # their tasks, by job
        self._gone = set()  # jobs that ended; condor_q may show them a little longer
        self._doomed = set()  # jobs to be removed
        self._attention = set()  # tasks that are HELD or ENDED
        self._submit_at = self._ask_at = self._limits_at = 0.0
        self._backoff_s = 0.0  # above zero: HTCondor does not answer
        self._must_ask = used_before  # before anything is submitted: jobs of an earlier controller may be in the queue

    # what callers use ------------------------------------------------------------------------------------------------

    def submit(self, fn, /, *args, **kwargs):
        """A future for fn(*args, **kwargs), at once. Raises RuntimeError after shutdown()."""
        with self._changed:
            task = self._new_task(fn, args, kwargs)
            self._start()
            name = f"{next(self._numbers):07d}"
            try:
                record = self._write_call(name, task)
            except NotPicklable as error:
                self._settle(task.future, None, error, None)
            except OSError as error:
                trouble = f"the call of {call_name(fn)} cannot be written to {self.directory}: {error.strerror}"
                self._settle(task.future, None, ExecutorError(trouble), None)
            else:
                self._tasks[name] = record
                self._enqueue(record)
        return task.future

    def recover(self):
        """[(future, fn, args, kwargs)] of the tasks that an earlier controller left; once, before the first submit().

        Finished ones are settled already; the others' jobs are adopted, or submitted anew where there are none.
        """
        with self._changed:
            if self._watcher is not None:
                raise RuntimeError("recover() comes once, before the first submit()")
            known, found, finished = self._read_journal(), [], []
            for path in sorted(self.directory.glob("*.call")):
                if (call := self._load_left_call(path)) is None:
                    continue
                header, task = call
                record = self._new_record(path.stem, task, header["digest"])
                vars(record).update(known.get(record.name, {}), state=State.UNCONFIRMED)
                task.future.set_running_or_notify_cancel()
                self._totals["tasks"] += 1
                self._tasks[record.name] = record
                found.append((task.future, task.fn, task.args, task.kwargs))
                with contextlib.suppress(NoOutcome):
                    finished.append((record, read_outcome(self._path(record, ".out"), record.name, record.digest)))
            for record, outcome in finished:
                self._finish(record, *outcome)
            self._event("recovered", number=len(found), finished=len(finished))
            self._start()
        return found

    def forget(self, future):
        with self._changed:
            name = self._names.pop(future, None)
            suffixes = self._unforgotten.pop(name, ())
        self._delete_files(name, suffixes)

    @property
    def statistics(self):
        """What happened so far; condor_calls counts the calls of each tool."""
        with self._changed:
            names = ("jobs", "retries", "held", "removed", "evicted")
            return super().statistics | {name: self._totals[name] for name in names} | {"condor_calls": dict(self._schedd.calls)}

    def held_reasons(self):
        with self._changed:
            return dict(Counter(task.hold for task in self._tasks.values() if task.state is State.HELD))

    def _current(self):
        return Counter(COUNTED_AS[task.state] for task in self._tasks.values())

    def shutdown(self, wait=True, *, cancel_futures=False):
        """Take no more tasks, cancel what HTCondor does not have yet if asked to, wait for the others; delete the tasks' files."""
        with self._changed:
            self._closed = True
            cancelled = [task for task in self._tasks.values() if task.state is State.QUEUED and cancel_futures and task.future.cancel()]
            for task in cancelled:
                task.future.set_running_or_notify_cancel()  # without which concurrent.futures.wait() would wait
                del self._tasks[task.name]
                self._delete_files(task.name)
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

    def remove_jobs(self):
        """Detach, remove all jobs of this directory from the queue and see them gone; how many. Raises ExecutorError."""
        self.detach()
        self._join_watcher()
        return remove_run(self.directory)

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
            tasks = list(self._tasks.values())
            self._tasks.clear()
        for task in tasks:
            if task.future.running() or task.future.set_running_or_notify_cancel():
                self._settle(task.future, None, error, None)
            else:
                self._delete_files(task.name)

    # files -----------------------------------------------------------------------------------------------------------

    def _path(self, task, suffix):
        return self.directory / f"{task.name}{suffix}"

    def _largest_number(self):
        """The largest number that a task of this directory ever had: no job of old may pass for one of a new task."""
        names = {path.stem for suffix in TASK_SUFFIXES for path in self.directory.glob(f"*{suffix}")}
        for event in self._journal.read():
            names.update(event["tasks"] if isinstance(event.get("tasks"), list) else ())
        return max((int(name) for name in names if re.fullmatch(r"\d{7,}", name)), default=0)

    def _read_journal(self):
        """{task: {cpus, memory_mb, retries, straggler}} as last written."""
        known = {}
        for event in self._journal.read():
            if "retries" in event:
                known[event["task"]] = {key: event[key] for key in ("cpus", "memory_mb", "retries", "straggler")}
        return known

    def _load_left_call(self, path):
        """(header, task) of a call file; None, with a line for a person, if it is damaged."""
        try:
            header = read_call(path, path.stem)
            fn, args, kwargs = pickle.loads(header["call"])
            return header, Task(Future(), fn, args, kwargs, self._describe(fn, args, kwargs))
        except Exception as error:  # whatever loading raises: a module that is no more, say
            self._say(f"the task of {path} is lost ({type(error).__name__}: {error}); it is dropped")
            self._event("dropped", task=path.stem, reason=str(error))
            return None

    def _write_call(self, name, task):
        call = dump_call(task)
        content, digest = call_file(name, call, self.transfer_files)
        record = self._new_record(name, task, digest)
        replace_file(self._path(record, ".call"), content)
        return record

    def _new_record(self, name, task, digest):
        inputs = self._copy_inputs(task) if self.transfer_files else ()
        return CondorTask(name, task.future, call_name(task.fn), task.description, digest, self.cpus, self.memory_mb, inputs)

    def _copy_inputs(self, task):
        """Names in the directory of the files, beside its call, that a job on another file system needs."""
        main = getattr(sys.modules["__main__"], "__file__", None)
        module = sys.modules.get(task.fn.__module__)
        files = {WORKER.name: WORKER, ROOMS.name: ROOMS}
        if module is not None and module.__name__ != "__main__" and getattr(module, "__file__", None):
            own = Path(module.__file__)
            own = own.parent if "." in module.__name__ else own
            files[own.name] = own
        if main:
            files[MAIN_COPY] = main
        for value in (*task.args, *task.kwargs.values()):
            if isinstance(value, Shared):
                files[Path(value.path).name] = value.path
        for name in files.keys() - self._copied:
            if not ((self.directory / name).exists() and os.path.samefile(files[name], self.directory / name)):
                if Path(files[name]).is_dir():
                    shutil.copytree(files[name], self.directory / name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
                else:
                    replace_file(self.directory / name, Path(files[name]).read_bytes())
            self._copied.add(name)
        return tuple(sorted(files))

    def _delete_files(self, name, suffixes=TASK_SUFFIXES):
        for suffix in suffixes:
            with contextlib.suppress(OSError):  # a file that stays does no harm
                (self.directory / f"{name}{suffix}").unlink()

    def _sweep(self, kept):
        """Delete the files of all tasks but these, unfinished ones included."""
        for path in self.directory.iterdir():
            name = path.name.partition(".")[0]
            if re.fullmatch(r"\d{7,}", name) and name not in kept:
                path.unlink(missing_ok=True)

    def _tidy(self):
        """Delete what an orderly end leaves behind."""
        for path in self.directory.glob("submit-*"):
            path.unlink(missing_ok=True)
        with self._changed:
            self._unforgotten = {}
        self._sweep(self._journal.given_up())

    def _event(self, event, task=None, /, **fields):
        about = {} if task is None else {"task": task.name, "job": task.job}
        self._journal.write(event, **about, **fields)

    def _say_once(self, reason, line):
        if reason not in self._said:
            self._said.add(reason)
            self._say(line)

    # the watcher -----------------------------------------------------------------------------------------------------

    def _start(self):
        if self._watcher is None:
            kept = self._tasks.keys() | self._unforgotten.keys() | self._journal.given_up()
            self._sweep(kept)  # what recover() did not take, what a killed controller was writing or deleting
            self._watcher = threading.Thread(target=self._watch, name="condor-watcher", daemon=True)
            self._watcher.start()

    def _watch(self):
        """What the watcher's thread does, until all is settled after shutdown(), or until detach()."""
        try:
            while self._wait():
                self._follow_log()
                self._attend()
                self._end_slow_jobs()
                self._ask()
                self._remove_doomed()
                self._submit_queued()
            if not self._stopped:
                self._tidy()
        except BaseException as error:  # a mistake of ours must not leave the caller waiting for ever
            with self._changed:
                self._closed = True
            self._event("broken", reason="".join(traceback.format_exception(error)))
            self._fail_open_futures(
                ExecutorError(f"the watcher of {self.directory} failed ({type(error).__name__}: {error}); recover() goes on")
            )

    def _wait(self):
        """Sleep until there may be something to do; False: never again."""
        with self._changed:
            while not (self._stopped or self._tasks or self._must_ask):
                if self._closed:
                    return False
                self._changed.wait()
            if self._closed and not self._tasks and self._backoff_s:
                return False  # orphans of an earlier controller are not worth waiting for
            linger_s = self._submit_at - time.monotonic()
            self._changed.wait(linger_s if self._queue and 0 < linger_s < TICK_S else TICK_S)
            return not self._stopped

    def _follow_log(self):
        """Apply what the log has to say; the jobs that it mentions."""
        mentioned = set()
        try:
            for event in self._log.events():
                mentioned.add(event.job)
                task = self._jobs.get(event.job)
                if task is not None and task.job == event.job:
                    self._apply_event(task, event)
        except OSError as error:  # condor_q tells the same, later
            self._say_once("log", f"{self._log.path} cannot be read ({error.strerror}); going on with condor_q")
        return mentioned

    def _apply_event(self, task, event):
        if event.code == EXECUTING_EVENT and task.state in (State.IDLE, State.RUNNING):
            if task.evicted:
                task.evicted = False
                self._totals["evicted"] += 1
                self._event("evicted", task)
            task.state, task.started = State.RUNNING, event.time
        elif event.code == EVICTED_EVENT and task.state is State.RUNNING:  # also before it is held or removed
            task.state, task.started, task.evicted = State.IDLE, None, True
        elif event.code == RELEASED_EVENT and task.state is State.HELD:
            self._set_idle(task)
        elif event.code == HELD_EVENT:
            self._hold(task, *event.hold)
        elif event.code == TERMINATED_EVENT:
            task.ending, task.hopeless = describe_exit(event.exit_code, "raise memory_mb"), event.exit_code not in (0, None)
            self._end(task)
        elif event.code == ABORTED_EVENT:
            task.hopeless = True
            self._end(task)

    def _attend(self):
        """Release held jobs and look at outcomes, where it is time."""
        now, held = time.monotonic(), []
        for task in [task for task in self._attention if task.due <= now]:
            if task.state is State.HELD:
                held.append(task)
            elif task.state is State.ENDED:
                self._look(task)
            else:
                self._attention.discard(task)
        if held and not self._backoff_s and self._tell("condor_release", [task.job for task in held]):
            for task in held:
                self._event("released", task)
                self._set_idle(task)

    def _set_idle(self, task):
        self._attention.discard(task)
        task.state, task.started, task.evicted = State.IDLE, None, False

    def _tell(self, tool, jobs):
        """Call condor_rm or condor_release for jobs; whether it finished. A job that is no more is no error: condor_q will tell."""
        try:
            self._schedd.call(tool, *sorted(jobs))
        except ScheddSilent as error:
            self._wait_longer(error)
            return False
        return True

    def _end_slow_jobs(self):
        if time.monotonic() < self._limits_at:
            return
        self._limits_at = time.monotonic() + POLL_S
        for task in list(self._jobs.values()):
            if task.state is not State.RUNNING or task.started is None:
                continue
            seconds = time.time() - task.started
            if self.timeout_s is not None and seconds > self.timeout_s:
                self._event("timeout", task, seconds=round(seconds, 1))
                self._remove(
                    task, TaskTimeout(f"{task.function}: its job {task.job} was removed at its time limit of {self.timeout_s:g} s")
                )
            elif not task.straggler and (limit := self.stragglers.limit_s(task.description)) is not None and seconds > limit:
                task.straggler = True
                self._totals["stragglers"] += 1
                self._remove_to_grow(task, "straggler", self.straggler_cpus, seconds=round(seconds, 1), limit=round(limit, 1))

    def _remove_to_grow(self, task, event, cpus, **fields):
        """Have a task's job removed, and run anew with more CPUs or memory."""
        task.cpus, task.memory_mb = cpus, min(2 * task.memory_mb, self.max_memory_mb)
        self._attempt_event(event, task, **fields)
        self._remove(task, None)

    def _attempt_event(self, event, task, **fields):
        """An event that recovery reads."""
        self._event(event, task, **fields, cpus=task.cpus, memory_mb=task.memory_mb, retries=task.retries, straggler=task.straggler)

    def _remove(self, task, verdict):
        self._attention.discard(task)
        task.state, task.removing, task.verdict = State.REMOVING, True, verdict
        self._doomed.add(task.job)

    def _remove_doomed(self):
        if self._doomed and not self._backoff_s and self._tell("condor_rm", self._doomed):
            self._doomed.clear()

    def _hold(self, task, code, reason):
        """A job was held: release it, give it more memory, or give it up."""
        if task.state in (State.HELD, State.REMOVING, State.ENDED):
            return
        self._totals["held"] += 1
        self._event("held", task, code=code, reason=reason)
        self._say_once((code, reason), f"job {task.job} was held: {reason} (code {code})")
        task.state, task.started, task.hold = State.HELD, None, f"{reason} (code {code})"
        if code == MEMORY_HOLD or (code in POLICY_HOLDS and "memory" in reason.lower()):
            if task.memory_mb < self.max_memory_mb:
                return self._remove_to_grow(task, "memory", task.cpus)
            tried = f"with {task.memory_mb} MB; raise max_memory_mb"
        elif task.releases < len(RELEASES):
            task.due = time.monotonic() + RELEASES[task.releases] * self.check_interval_s
            task.releases += 1
            return self._attention.add(task)
        else:
            tried = f"after {task.releases} releases"
        self._remove(task, TaskHeld(f"{task.function}: its job {task.job} was held: {reason} (code {code}), {tried}"))

    # the queue -------------------------------------------------------------------------------------------------------

    def _ask(self):
        """Ask condor_q about all jobs, if it is time."""
        if time.monotonic() < self._ask_at or not (self._jobs or self._must_ask):
            return
        self._follow_log()
        try:
            ads = self._schedd.jobs()
        except ScheddSilent as error:
            return self._wait_longer(error)
        if self._backoff_s:
            self._say("HTCondor answers again")
            self._event("answers")
        self._backoff_s, self._must_ask = 0.0, False
        self._ask_at = time.monotonic() + self.check_interval_s
        self._reconcile(ads, self._follow_log())

    def _wait_longer(self, error):
        """HTCondor does not answer: nothing is concluded from that, and it is asked less often."""
        if not self._backoff_s:
            self._say(f"HTCondor does not answer ({error}); its jobs go on, waiting for it")
            self._event("silent", reason=str(error))
        self._backoff_s = min(2 * self._backoff_s or self.check_interval_s, LONGEST_BACKOFF_S)
        self._ask_at, self._must_ask = time.monotonic() + self._backoff_s, True

    def _reconcile(self, ads, in_log):
        """Bring what we believe in line with all jobs of ours that are in the queue; of those in_log the log knows better by now."""
        seen = set()
        for ad in ads:  # the oldest first
            task = self._tasks.get(ad.task)
            if ad.job in self._gone:
                continue
            if task is None or task.name in seen or (task.state is State.ENDED and task.job != ad.job):
                if ad.status not in (REMOVED_JOB, COMPLETED_JOB):
                    self._event("orphan" if task is None else "duplicate", job=ad.job, task=ad.task)
                    self._doomed.add(ad.job)
                continue
            seen.add(task.name)
            if task.job != ad.job:
                self._adopt(task, ad)
            if ad.job not in in_log:
                self._apply_ad(task, ad)
        present = {ad.job for ad in ads}
        self._gone &= present
        with self._changed:
            tasks = list(self._tasks.values())
        for task in tasks:
            if task.state is State.UNCONFIRMED:
                self._not_submitted(task)
            elif task.job and task.job not in present and task.state is not State.ENDED:
                self._end(task)

    def _adopt(self, task, ad):
        self._assign(task, ad.job)
        task.cpus, task.memory_mb = ad.cpus or task.cpus, ad.memory_mb or task.memory_mb
        task.straggler = task.straggler and task.cpus >= self.straggler_cpus
        self._event("adopted", task)

    def _assign(self, task, job):
        """A task got a new job."""
        self._jobs.pop(task.job, None)
        self._jobs[job] = task
        self._totals["jobs"] += 1
        task.job, task.state, task.started, task.evicted = job, State.IDLE, None, False
        task.ending, task.hopeless, task.removing, task.verdict, task.looks = "", False, False, None, 0

    def _apply_ad(self, task, ad):
        if task.state is State.ENDED:
            return
        if ad.status == COMPLETED_JOB:
            self._end(task)
        elif ad.status == REMOVED_JOB:
            task.state = State.REMOVING  # by us or by somebody else; not gone yet
        elif task.state is State.REMOVING:
            self._doomed.add(ad.job)  # the first condor_rm was lost
        elif ad.status == HELD_JOB:
            self._hold(task, *ad.hold)
        elif ad.status == IDLE_JOB and task.state is not State.IDLE:
            self._set_idle(task)
        elif ad.status in (RUNNING_JOB, TRANSFERRING_JOB, SUSPENDED_JOB) and task.state is not State.RUNNING:
            self._set_idle(task)
            task.state, task.started = State.RUNNING, ad.started or time.time()

    # outcomes --------------------------------------------------------------------------------------------------------

    def _end(self, task):
        """The job of a task is gone."""
        task.state = State.ENDED
        self._gone.add(task.job)
        self._doomed.discard(task.job)
        self._look(task)

    def _look(self, task):
        """Settle a task whose job is gone by its outcome. Without a sound one: look again, run it again, or give it up."""
        try:
            outcome = read_outcome(self._path(task, ".out"), task.name, task.digest)
        except NoOutcome as reason:
            if task.verdict is not None:
                self._fail(task, task.verdict)
            elif task.removing:
                self._enqueue(task)
            elif task.looks < len(GRACE_S) and not task.hopeless:
                task.due = time.monotonic() + GRACE_S[task.looks]
                task.looks += 1
                self._attention.add(task)
            else:
                self._try_again(task, str(reason))
        else:
            self._finish(task, *outcome)

    def _try_again(self, task, reason):
        what = "died" if task.ending else "removed"
        self._totals["removed"] += what == "removed"
        reason = f"its job {task.job} {task.ending or 'was removed by somebody'}; {reason}"
        task.retries += 1
        self._attempt_event(what, task, reason=reason)
        if task.retries <= self.retries:
            self._totals["retries"] += 1
            self._totals["died"] += what == "died"
            return self._enqueue(task)
        path = self._path(task, ".err")
        self._fail(task, TaskDied(f"{task.function}: {reason}; attempts made: {task.retries}; see {path}{last_words(path)}"))

    def _finish(self, task, value, error, report):
        self._event("done" if error is None else "error", task, seconds=round(report["seconds"], 3), host=report["host"])
        if not task.straggler:
            self.stragglers.note(task.description, report["seconds"])
        self._close_task(task, value, error, report, TASK_SUFFIXES)

    def _fail(self, task, error):
        self._event("failed", task, reason=str(error))
        self._close_task(task, None, error, None, (".call", ".out"))  # the message points to .err

    def _close_task(self, task, value, error, report, suffixes):
        self._jobs.pop(task.job, None)
        self._attention.discard(task)
        with self._changed:
            if self._tasks.pop(task.name, None) is None:
                return  # detached meanwhile
            self._names[task.future], self._unforgotten[task.name] = task.name, suffixes
        self._settle(task.future, value, error, report)

    # submission ------------------------------------------------------------------------------------------------------

    def _enqueue(self, task):
        """Have a task submitted, for the first time or anew."""
        self._attention.discard(task)
        self._jobs.pop(task.job, None)
        task.state, task.job = State.QUEUED, ""
        if task.future.running():
            self._delete_files(task.name, (".out",))
        with self._changed:
            if not self._queue:
                self._submit_at = max(self._submit_at, time.monotonic() + LINGER_S)
                self._changed.notify_all()
            heapq.heappush(self._queue, task)

    def _not_submitted(self, task):
        """A task that perhaps was submitted has no job in the queue."""
        with contextlib.suppress(NoOutcome):  # there was one, and it is done
            return self._finish(task, *read_outcome(self._path(task, ".out"), task.name, task.digest))
        error, times = task.refusals
        if times >= SUBMIT_ATTEMPTS and not self._jobs:
            self._fail(task, SubmitFailed(f"{task.function}: {error}"))
        else:
            self._event("absent", task)  # never submitted, or removed while no controller was there
            self._enqueue(task)

    def _submit_queued(self):
        if not self._queue or self._backoff_s or self._must_ask or time.monotonic() < self._submit_at:
            return
        batches = {}
        for task in self._take_queued(self.processes - len(self._jobs)):
            batches.setdefault((task.cpus, task.memory_mb, task.inputs), []).append(task)
        for tasks in batches.values():
            try:
                self._submit_batch(tasks)
            except (ScheddSilent, SubmitFailed, OSError) as error:  # they may be in the queue all the same: condor_q knows
                self._note_refusal(tasks, error)
                break

    def _take_queued(self, room):
        """The first tasks of the queue, marked as perhaps submitted."""
        taken = []
        with self._changed:
            while self._queue and len(taken) < room:
                task = heapq.heappop(self._queue)
                if self._tasks.get(task.name) is not task or task.state is not State.QUEUED:
                    continue
                if task.future.running() or task.future.set_running_or_notify_cancel():
                    task.state = State.UNCONFIRMED
                    taken.append(task)
                else:
                    del self._tasks[task.name]
                    self._delete_files(task.name)
        return taken

    def _submit_batch(self, tasks):
        """One condor_submit for tasks of the same needs. Raises SubmitFailed, ScheddSilent, OSError."""
        first, names = tasks[0], [task.name for task in tasks]
        stem = f"submit-{self._schedd.calls['condor_submit'] + 1}"
        description, items = self.directory / f"{stem}.sub", self.directory / f"{stem}.items"
        description.write_text(self._describe_jobs(first.cpus, first.memory_mb, first.inputs, items.name), encoding="utf-8")
        items.write_text("".join(f"{task.name},{task.description.priority}\n" for task in tasks), encoding="utf-8")
        self._event("submitting", tasks=names)
        cluster = self._schedd.submit(self.directory, description.name, len(tasks))
        for number, task in enumerate(tasks):
            self._assign(task, f"{cluster}.{number}")
            task.refusals = ("", 0)
        self._event("submitted", cluster=cluster, tasks=names, cpus=first.cpus, memory_mb=first.memory_mb)
        self._submit_at = time.monotonic() + SUBMIT_SPACING_S
        self._delete_files(stem, (".sub", ".items"))

    def _note_refusal(self, tasks, error):
        times = 0
        if isinstance(error, SubmitFailed):
            text = re.sub(r"submit-\d+", "submit", str(error))
            times = 1 + (tasks[0].refusals[1] if tasks[0].refusals[0] == text else 0)
            for task in tasks:
                task.refusals = (text, times)
        self._event("refused", number=len(tasks), reason=str(error))
        self._say_once(str(error), f"{len(tasks)} jobs were not submitted: {error}")
        self._submit_at = time.monotonic() + min(LONGEST_BACKOFF_S, self.check_interval_s * 2 ** max(0, times - 1))
        self._ask_at, self._must_ask = time.monotonic(), True

    def _describe_jobs(self, cpus, memory_mb, inputs, items):
        """The submit file of a batch."""
        script = quoted(WORKER.name if self.transfer_files else str(WORKER))
        environment = " ".join(f"{name}={quoted(os.environ[name])}" for name in PASSED_ON if name in os.environ)
        lines = {
            "universe": "vanilla",
            "executable": literal(self.python),
            "transfer_executable": "False",
            "arguments": f'"{script} . $(task) {cpus}"',
            "environment": f'"{environment}"',
            "initialdir": literal(self.directory),
            "log": "jobs.log",
            "output": "/dev/null",
            "error": "$(task).err",
            "should_transfer_files": "NO",
            "request_cpus": cpus,
            "request_memory": memory_mb,
            "priority": "$(task_priority)",
            "+CondorWorkerRun": f'"{self._schedd.run}"',
            "+CondorWorkerTask": '"$(task)"',
        }
        if self.transfer_files:
            files = ",".join((*inputs, "$(task).call"))
            lines |= {"should_transfer_files": "YES", "when_to_transfer_output": "ON_EXIT", "transfer_input_files": files}
        given = {key.lower() for key in self.options}
        lines = {key: value for key, value in lines.items() if key.lower() not in given} | self.options
        return "".join(f"{key} = {value}\n" for key, value in lines.items()) + f"queue task,task_priority from {items}\n"


def last_words(path):
    """The last line that a job left on its standard error, as the end of a message."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((f", which ends with: {line.strip()}" for line in reversed(lines) if line.strip()), "")
