"""How tasks run, knowing no physics.

    with LocalExecutor(8, timeout_s=600) as executor:
        futures = [executor.submit(work, item) for item in items]
        for future in concurrent.futures.as_completed(futures):
            print(future.result())

Every executor is a `concurrent.futures.Executor` with the same behaviour. Calls and outcomes travel as pickles, even
inline, so what works inline works everywhere: `fn` is a module-level function, arguments and results pickle. An
exception of `fn` is raised again by `future.result()`; its `__cause__` shows the traceback from where it happened.

    with CondorExecutor("work/condor", stragglers=TimeLimits(1800), straggler_cpus=8) as executor: ...

runs the same tasks as jobs of HTCondor, and finds them again after its own death. From there only builtin types come
back: nothing that a job writes is ever executed here.
POSIX (Linux, macOS); standard library, and filelock for claim_directory.

Sections: constants, errors, tasks, job protocol, executors in common, inline executor, local executor, directories,
call and outcome files, HTCondor's tools, condor executor, job side
"""

import atexit
import bisect
import builtins
import contextlib
import contextvars
import enum
import faulthandler
import functools
import hashlib
import heapq
import importlib.util
import io
import itertools
import json
import math
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
import uuid
import weakref
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from datetime import datetime
from multiprocessing import connection, resource_tracker
from pathlib import Path

# =====================================================================================================================
# Constants
# =====================================================================================================================

PICKLE_PROTOCOL = 5
POLL_S = 1.0  # how often the limit of a running straggler is asked for again
STARTED = b"started"  # a process's message between loading a call and running it; no pickle begins like this
EXIT_GRACE_S = 5.0  # how long a process may take to end by itself before it is killed
LONGEST_TIMEOUT_S = 2e6  # 23 days: poll(2) counts milliseconds in 31 bits
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
SPAWN_LOCK = threading.Lock()  # os.environ belongs to the whole process, so one start at a time
CPUS = contextvars.ContextVar("CPUS", default=1)  # what task_cpus() answers

TASK_SUFFIXES = (".call", ".out", ".err")  # a task's files: the call, its outcome, the job's standard error
PASSED_ON = ("PYTHONPATH", "LD_LIBRARY_PATH", "PATH")  # of the submitter's environment
TICK_S = 0.2  # how often the watcher looks at the user log: one stat()
LINGER_S = 0.1  # after the first task of a batch: its siblings come within that
SUBMIT_SPACING_S = 0.5  # between two condor_submit: each costs the schedd a transaction
GRACE_S = (1.0, 3.0)  # pauses before the second and third look for an outcome: NFS shows files of other hosts late
RELEASES = (0, 4, 16)  # a held job is released after so many check intervals, the first, second and third time
LONGEST_BACKOFF_S = 60.0
TOOL_TIMEOUT_S, SUBMIT_TIMEOUT_S = 30.0, 120.0  # of one call of condor_q and the like, and of condor_submit
SUBMIT_ATTEMPTS = 3  # the same refusal so often, by a schedd that answers, is final
CALL_FORMAT = OUTCOME_FORMAT = 1
MAIN_COPY = "submitter_main.py"  # the main program, where HTCondor transfers files
DISK_PAUSES_S = (1, 5, 20)  # a job whose outcome cannot be written waits so long between its attempts
MEMORY_HOLD, POLICY_HOLDS = 34, (3, 21, 26)  # hold codes: over the memory limit; a policy, perhaps one on memory


# =====================================================================================================================
# Errors
# =====================================================================================================================


class ExecutorError(Exception):
    """Root of what goes wrong around a call, as opposed to inside it."""


class TaskDied(ExecutorError):
    """The process ended before its task did: killed, crashed, out of memory, os._exit."""


class TaskTimeout(ExecutorError):
    """The task reached its hard time limit and was killed."""


class Straggling(ExecutorError):
    """The task reached its limit for stragglers and is to run anew; never seen outside."""


class NotPicklable(ExecutorError):
    """A call or a result cannot travel between processes."""


class CondorMissing(ExecutorError):
    """HTCondor's tools are not installed here, or not on PATH."""


class ScheddSilent(ExecutorError):
    """A tool of HTCondor failed or took too long. Nothing is known then; least of all that the queue is empty."""


class SubmitFailed(ExecutorError):
    """condor_submit refused a task, and will do so again."""


class TaskHeld(ExecutorError):
    """HTCondor held the task's job, and releasing it or giving it more memory did not help."""


class DirectoryRefused(ExecutorError):
    """A directory is used by another controller, or others could write to it."""


class ForeignType(ExecutorError, pickle.UnpicklingError):
    """A pickle holds something that is not of a builtin type."""


class NoOutcome(ExecutorError):
    """A job left no outcome, or not a sound one."""


class RemoteError(ExecutorError):
    """In place of an exception of the function that does not pickle: its type's name, message and traceback text."""

    def __init__(self, type_name, message, traceback_text):
        super().__init__(type_name, message, traceback_text)
        self.type_name, self.message, self.traceback_text = type_name, message, traceback_text

    def __str__(self):
        return f"{self.type_name}: {self.message}"


class RemoteTraceback(Exception):
    """The `__cause__` of an exception from another process; printing it shows the traceback text from there."""

    def __str__(self):
        return f'\n"""\n{self.args[0]}"""'


# =====================================================================================================================
# Tasks
# =====================================================================================================================


@dataclass(frozen=True)
class Description:
    """What an executor may know of a task, for time limits, the order of the queue and messages."""

    group: str = ""  # tasks of a group take about the same time per unit of size
    size: float = 1.0
    priority: int = 0  # larger first


@dataclass(frozen=True, eq=False)
class Task:
    """A submitted call, the future that waits for its outcome, and what is known of it beforehand."""

    future: Future
    fn: Callable
    args: tuple
    kwargs: dict
    description: Description = Description()


class TimeLimits:
    """When a running task is a straggler: over timeout_s seconds (None: no such limit).

    auto: also, once ENOUGH tasks of its group have finished, over max(floor_s, 6 * the 90th percentile of their seconds
    per unit of size * its size). Threads may share one.
    """

    ENOUGH, REMEMBERED, FACTOR, QUANTILE = 10, 1000, 6.0, 0.9

    def __init__(self, timeout_s: float | None, auto: bool = False, floor_s: float = 30.0):
        if not (timeout_s is None or 0 < timeout_s < LONGEST_TIMEOUT_S) or not 0 <= floor_s < LONGEST_TIMEOUT_S:
            raise ValueError(f"timeout_s={timeout_s}, floor_s={floor_s}: give limits of 0 to {LONGEST_TIMEOUT_S:g} s (or timeout_s=None)")
        self.timeout_s, self.auto, self.floor_s = timeout_s, auto, floor_s
        self._lock = threading.Lock()
        self._rates = {}  # group: (seconds per unit of size as they came, the same sorted), the last REMEMBERED

    def note(self, description, seconds):
        """Learn from a finished task, which ran in the ordinary way."""
        if not 0 <= seconds < LONGEST_TIMEOUT_S:
            return  # a clock was set
        rate = seconds / max(description.size, 1e-9)
        with self._lock:
            newest, ordered = self._rates.setdefault(description.group, (deque(), []))
            if len(newest) == self.REMEMBERED:
                del ordered[bisect.bisect_left(ordered, newest.popleft())]
            newest.append(rate)
            bisect.insort(ordered, rate)

    def limit_s(self, description) -> float | None:
        """Seconds after which this task is a straggler, None: never, as far as known now."""
        with self._lock:
            _, ordered = self._rates.get(description.group, ((), ()))
            if not self.auto or len(ordered) < self.ENOUGH:
                return self.timeout_s
            usual = ordered[math.ceil(self.QUANTILE * len(ordered)) - 1] * description.size
        learnt = max(self.floor_s, self.FACTOR * usual)
        return learnt if self.timeout_s is None else min(learnt, self.timeout_s)


def task_cpus() -> int:
    """How many CPUs the running task may use: 1, or more where a straggler was started anew. 1 outside of a task."""
    return CPUS.get()


def call_name(fn):
    return getattr(fn, "__qualname__", repr(fn))


# =====================================================================================================================
# Job protocol
# =====================================================================================================================


def dump_call(task):
    """Bytes for `perform`. Raises NotPicklable."""
    return dump((task.fn, task.args, task.kwargs), f"{call_name(task.fn)} or its arguments")


def perform(call, on_start=lambda: None, cpus=1):
    """Run a call from `dump_call`; its outcome as bytes for `load_outcome`. Raises nothing, whatever the function does.

    on_start is called between loading the call, which may import modules for seconds, and running it.
    """
    before = CPUS.set(cpus)
    try:
        fn, args, kwargs = pickle.loads(call)
        on_start()
        return dump(("ok", fn(*args, **kwargs)), f"the result of {call_name(fn)}")
    except BaseException as error:  # sys.exit() too is an outcome and must not end the process
        return dump_error(error)
    finally:
        CPUS.reset(before)


def dump(value, what):
    try:
        return pickle.dumps(value, PICKLE_PROTOCOL)
    except Exception as error:
        raise NotPicklable(
            f"{what} does not pickle ({type(error).__name__}: {error}); use module-level functions, builtin types and arrays"
        ) from error


def dump_error(error):
    summary = traceback.TracebackException.from_exception(error)  # survives an exception whose __str__ fails
    try:
        pickled = dump(error, "the exception")
    except NotPicklable:
        pickled = None  # a RemoteError takes its place, from the other fields
    return dump(("error", pickled, type(error).__qualname__, str(summary), "".join(summary.format())), "the outcome")


def load_outcome(outcome):
    """(value, None) or (None, exception) from the bytes of `perform`."""
    kind, *fields = pickle.loads(outcome)
    if kind == "ok":
        return fields[0], None
    pickled, *description = fields
    try:
        error = None if pickled is None else pickle.loads(pickled)
    except Exception:  # pickles but does not unpickle: __init__ wants more than Exception.args holds
        error = None
    if not isinstance(error, BaseException):
        error = RemoteError(*description)
    error.__cause__ = RemoteTraceback(description[-1])
    return None, error


def digest_of(content):
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Shared:
    """A value that many calls have in common: pickled once into a file that its digest names, loaded once per process."""

    path: str
    digest: str

    @staticmethod
    def write(value, directory) -> "Shared":
        """Pickle a value into directory, unless it is there already. Raises NotPicklable, OSError."""
        pickled = dump(value, "the shared value")
        digest = digest_of(pickled)
        path = Path(directory).absolute() / f"{digest}.shared"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, pickled)
        return Shared(str(path), digest)

    def get(self):
        """The value; do not change it. Raises ExecutorError."""
        return load_shared(self.path, self.digest)


@functools.lru_cache(maxsize=4)
def load_shared(path, digest):
    here = os.path.basename(path)  # where HTCondor's file transfer puts it
    try:
        pickled = Path(path if os.path.exists(path) else here).read_bytes()
    except OSError as error:
        raise ExecutorError(f"the shared value {path} cannot be read ({error}); it must stay until its last task is done") from error
    if digest_of(pickled) != digest:
        raise ExecutorError(f"the shared value {path} is damaged; delete it and start again")
    return pickle.loads(pickled)


def ensure_standard_streams():
    """For a program started with some of them closed (cron, >&-): else the next file that is opened would take their place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free, also in processes it starts
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def replace_file(path, content, sync=False):
    """Write a file that is seen whole or not at all."""
    temporary = Path(f"{path}.{os.uname().nodename}.{os.getpid()}.{threading.get_ident()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


# =====================================================================================================================
# Executors in common
# =====================================================================================================================


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


# =====================================================================================================================
# Inline executor
# =====================================================================================================================


class InlineExecutor(TaskExecutor):
    """Runs each task within submit(), so that print, breakpoint() and profilers work.

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


# =====================================================================================================================
# Local executor
# =====================================================================================================================


class LocalExecutor(TaskExecutor):
    """Runs tasks in at most `processes` spawned processes of this machine, larger priority first, else first in first out.

    processes  may exceed the number of cores; each has one BLAS/OpenMP thread unless the environment says otherwise
    timeout_s  hard limit in seconds on each attempt, None: no limit. The clock starts when a process has loaded the
               task: waiting in the queue, the start of a process and its imports do not count
    retries    how often a task is tried again after its process died
    log_dir    the N-th process appends its output to worker-N.log there; None: output goes where the caller's goes
    stragglers TimeLimits; a task over its limit is killed and run anew, with task_cpus() == straggler_cpus
    describe   describe(fn, args, kwargs) returns the Description of a task

    Who is tried again:
        process died (signal, os._exit, crash, out of memory)  up to `retries` times in a new process, then TaskDied
        straggler                                              once, at once, with only timeout_s as its limit
        time limit timeout_s                                   never; the process is killed, TaskTimeout
        exception of the function                              never; raised by future.result()
    An ended process is replaced when its slot's next task comes; no other task notices.

    An exception that leaves the with-block, Ctrl-C included, kills the processes instead of waiting for them, and so
    does the end of the interpreter: wait for the futures you need. Arguments are pickled when a process takes the task;
    leave them unchanged until then.
    """

    def __init__(self, processes, timeout_s=None, retries=1, log_dir=None, stragglers=None, straggler_cpus=8, describe=None):
        """Starts nothing yet. Raises ValueError, and OSError if log_dir cannot be made."""
        super().__init__(describe)
        if processes < 1 or retries < 0 or not (timeout_s is None or 0 < timeout_s < LONGEST_TIMEOUT_S):
            raise ValueError(
                f"processes={processes}, timeout_s={timeout_s}, retries={retries}: give at least 1 "
                f"process, a limit of 0 to {LONGEST_TIMEOUT_S:g} s (or None) and at least 0 retries"
            )
        self.processes, self.timeout_s, self.retries = processes, timeout_s, retries
        self.stragglers, self.straggler_cpus = stragglers or TimeLimits(None), straggler_cpus
        self.log_dir = None if log_dir is None else Path(log_dir).absolute()
        if self.log_dir is not None:
            self.log_dir.mkdir(parents=True, exist_ok=True)
        self._queue = []  # a heap of (-priority, number, task)
        self._workers, self._threads = [], []  # a slot is an index into both: a process and the thread that feeds it
        self._idle = 0  # threads waiting for a task
        self._killed = False
        # Runs before multiprocessing's own exit hook, which would wait for what a slot's thread starts meanwhile.
        atexit.register(self.kill_workers)

    def submit(self, fn, /, *args, **kwargs):
        """A future for fn(*args, **kwargs). Raises RuntimeError after shutdown(), OSError if no process can start."""
        with self._changed:
            task = self._new_task(fn, args, kwargs)
            if len(self._queue) >= self._idle and len(self._threads) < self.processes:
                self._add_slot()
            heapq.heappush(self._queue, (-task.description.priority, self._totals["tasks"], task))
            self._changed.notify()
        return task.future

    def warm_up(self):
        """Start all processes now, so that their imports overlap with the caller's work. Raises OSError."""
        with self._changed:
            while len(self._threads) < self.processes and not self._closed:
                self._add_slot()

    def shutdown(self, wait=True, *, cancel_futures=False):
        """Take no more tasks, cancel the queued ones if asked to, wait for the others and for the processes' end."""
        self._close(cancel_futures, kill=False)
        if wait:
            self._join_threads()

    def kill_workers(self):
        """Stop at once: kill the processes and cancel the queued tasks; the running ones get TaskDied."""
        self._close(cancel_futures=True, kill=True)
        self._join_threads(EXIT_GRACE_S)  # bounded: a callback of a future may be waiting for the caller

    def __exit__(self, exc_type, exc_value, exc_traceback):
        try:
            if exc_type is None:
                self.shutdown()
        finally:
            self.kill_workers()  # nothing is left to kill after an orderly shutdown

    def _close(self, cancel_futures, kill):
        with self._changed:
            self._closed = True
            self._killed = self._killed or kill
            for worker in self._workers if kill else ():
                worker.process.kill()
            while self._queue and cancel_futures:
                future = heapq.heappop(self._queue)[-1].future
                if future.cancel():  # which by itself leaves concurrent.futures.wait() waiting
                    future.set_running_or_notify_cancel()
            self._changed.notify_all()

    def _join_threads(self, timeout_s=None):
        for thread in self._threads:
            if thread is not threading.current_thread():  # a callback of a future may end its executor
                thread.join(timeout_s)
        atexit.unregister(self.kill_workers)

    def _add_slot(self):
        slot = len(self._threads)
        worker = LocalWorker(self._log_path(slot))  # here and not in its thread: see spawn_settings
        thread = threading.Thread(target=self._serve, args=(slot,), name=f"local-slot-{slot}", daemon=True)
        thread.start()
        self._workers.append(worker)
        self._threads.append(thread)

    def _log_path(self, slot):
        return None if self.log_dir is None else str(self.log_dir / f"worker-{slot}.log")

    def _serve(self, slot):
        """What a slot's thread does: one task after the other, until there will be none."""
        while (task := self._next_task()) is not None:
            if task.future.set_running_or_notify_cancel():
                self._run_and_settle(task, lambda task: self._run(task, slot))
            del task  # an idle slot must not keep the last arguments and result in memory
        self._workers[slot].end(EXIT_GRACE_S)

    def _next_task(self):
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._queue or self._closed)
            self._idle -= 1
            return heapq.heappop(self._queue)[-1] if self._queue else None

    def _current(self):
        return super()._current() | {"queued": len(self._queue)}

    def _run(self, task, slot):
        """Outcome and report of a task. Raises NotPicklable, TaskTimeout, TaskDied."""
        call, name = dump_call(task), call_name(task.fn)
        log = "" if self.log_dir is None else f"; see {self._log_path(slot)}"
        cpus, deaths, limit_s = 1, 0, functools.partial(self.stragglers.limit_s, task.description)
        ordinary = limit_s
        while deaths <= self.retries:
            worker = self._live_worker(task, slot)
            try:
                outcome = worker.run(call, cpus, self.timeout_s, limit_s)
            except Straggling:
                worker.end(grace_s=0)
                cpus, limit_s = self.straggler_cpus, lambda: None
                self._count("stragglers")
            except TimeoutError:
                worker.end(grace_s=0)
                raise TaskTimeout(f"{name} was killed at its time limit of {self.timeout_s:g} s{log}") from None
            except (EOFError, OSError):  # a pipe that ends within a message is an OSError
                ending = describe_exit(worker.end(EXIT_GRACE_S), "use fewer processes")
                deaths += 1
                self._count("died", deaths <= self.retries)
            else:
                report = local_report(worker.started, cpus)
                if limit_s is ordinary:
                    self.stragglers.note(task.description, report["seconds"])
                return outcome, report
        raise TaskDied(f"{name}: its process {ending}; attempts made: {deaths}{log}")

    def _count(self, what, number=1):
        with self._changed:
            self._totals[what] += number

    def _live_worker(self, task, slot):
        with self._changed:
            if self._killed:
                raise TaskDied(f"{call_name(task.fn)}: its process was killed with the whole executor")
            if self._workers[slot].is_gone():
                self._workers[slot].end(grace_s=0)
                self._workers[slot] = LocalWorker(self._log_path(slot))
            return self._workers[slot]


class LocalWorker:
    """A spawned process and the caller's end of its pipe. It ends with the caller, however the caller ends."""

    def __init__(self, log_path):
        context = multiprocessing.get_context("spawn")
        self.pipe, far_end = context.Pipe()
        with far_end:  # closed here after the start: the process alone holds it, so that its death ends the pipe
            # no daemon: a task may have processes of its own
            self.process = context.Process(target=worker_main, args=(far_end, log_path), daemon=False)
            with spawn_settings():
                self.process.start()

    def run(self, call, cpus, timeout_s, limit_s):
        """Outcome of a call. Raises TimeoutError after timeout_s, Straggling after limit_s(), EOFError or OSError if the process dies."""
        try:
            self.pipe.send((call, cpus))
            self.started = time.monotonic()
            answer = self.pipe.recv_bytes()
            if answer != STARTED:  # an outcome already: the call could not be loaded
                return answer
            self.started = time.monotonic()
            self._wait_for_outcome(timeout_s, limit_s)
            return self.pipe.recv_bytes()
        except BaseException:
            self.pipe.close()  # the outcome of this call, if it still comes, must not answer the next one
            raise

    def _wait_for_outcome(self, timeout_s, limit_s):
        timeout_s = math.inf if timeout_s is None else timeout_s
        while True:
            limit = limit_s()  # asked again and again: others that finish may teach a limit
            limit = math.inf if limit is None else limit
            elapsed_s = time.monotonic() - self.started
            if self.pipe.poll(max(0.0, min(timeout_s - elapsed_s, limit - elapsed_s, POLL_S))):
                return
            elapsed_s = time.monotonic() - self.started
            if elapsed_s >= timeout_s:
                raise TimeoutError
            if elapsed_s >= limit:
                raise Straggling

    def is_gone(self):
        """Whether the process cannot take a call. Idle, it says nothing, so a readable pipe is one at its end."""
        return self.pipe.closed or self.pipe.poll()

    def end(self, grace_s):
        """Close the pipe, on which an idle process ends; kill it after grace_s seconds. Its exit code or None."""
        self.pipe.close()
        self.process.join(grace_s)
        self.process.kill()  # no effect on an ended process
        self.process.join(EXIT_GRACE_S)  # bounded: a process that waits for a dead disk cannot be killed
        deadline = time.monotonic() + 1
        while self.process.exitcode is None and time.monotonic() < deadline:
            time.sleep(0.001)  # another thread has reaped it and is about to note the code
        return self.process.exitcode


@contextlib.contextmanager
def spawn_settings():
    """What a new process inherits: one BLAS thread, known before numpy loads, and no Ctrl-C during its imports.

    The caller's environment is changed only within the block. A library loaded meanwhile by another thread would see
    that, so first starts happen in the thread that calls submit() or warm_up(); only replacements do not.
    """
    resource_tracker.ensure_running()  # multiprocessing would start it within the block and unblock SIGINT again
    with SPAWN_LOCK:
        missing = [name for name in THREAD_VARIABLES if name not in os.environ]
        blocked_before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            os.environ.update(dict.fromkeys(missing, "1"))
            yield
        finally:
            for name in missing:
                del os.environ[name]
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked_before)


def describe_exit(exit_code, remedy):
    """What became of a process; the remedy is for one that was killed."""
    if exit_code is None:
        return "ended in an unknown way"
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    name = {number.value: number.name for number in signal.Signals}.get(-exit_code, f"signal {-exit_code}")
    return f"was ended by {name}" + (f" (out of memory? then {remedy})" if name == "SIGKILL" else "")


def worker_main(pipe, log_path):
    """What a spawned process does: answer each call on the pipe by STARTED and its outcome, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the caller decides
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=exit_with_parent, name="exit-with-parent", daemon=True).start()
    if log_path is not None:
        with open(log_path, "ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        if sys.stdout is not None:
            sys.stdout.reconfigure(line_buffering=True)  # a killed task leaves its last words
    faulthandler.enable(file=2)  # a crash in compiled code names the Python line
    with contextlib.suppress(EOFError, ConnectionError):  # the caller has closed its end, or is gone
        while True:
            call, cpus = pipe.recv()
            outcome = perform(call, on_start=lambda: pipe.send_bytes(STARTED), cpus=cpus)
            pipe.send_bytes(outcome)
            del call, outcome
    for child in multiprocessing.active_children():  # of an executor that a task has not shut down
        child.kill()


def exit_with_parent():
    """End this process, in the middle of a task too, when the parent is gone, be it by SIGKILL."""
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


# =====================================================================================================================
# Directories
# =====================================================================================================================


def private_directory(path) -> Path:
    """A directory that only we may write to, made if need be. Raises DirectoryRefused."""
    path = Path(path).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.stat()
    except OSError as error:
        raise DirectoryRefused(f"{path} cannot be used ({error.strerror}); choose another directory") from error
    if not path.is_dir():
        raise DirectoryRefused(f"{path} is not a directory; choose another")
    if found.st_uid != os.geteuid():
        raise DirectoryRefused(f"{path} belongs to somebody else (user id {found.st_uid}); choose another")
    if found.st_mode & 0o022:
        raise DirectoryRefused(f"{path} may be written by others; chmod go-w it, or choose another")
    return path


@contextlib.contextmanager
def claim_directory(path):
    """A private_directory that no other controller uses within the block. Raises DirectoryRefused."""
    path = private_directory(path)
    lock = lock_directory(path)
    try:
        claim = {"host": os.uname().nodename, "pid": os.getpid(), "started": time.time(), "command": " ".join(sys.argv)}
        replace_file(path / "controller.json", json.dumps(claim).encode())
        yield path
    finally:
        lock.release()


def lock_directory(path):
    """The lock of a directory, acquired. Native locks go with their process; where there are none, a file stands for one."""
    from filelock import FileLock, SoftFileLock, Timeout

    host, pid = read_claim(path)
    try:
        try:
            return acquired(FileLock(path / "controller.lock"))
        except Timeout:  # an OSError too
            raise
        except PermissionError as error:
            raise DirectoryRefused(
                f"{error.filename} cannot be opened ({error.strerror}); chmod it, or choose another directory"
            ) from error
        except (NotImplementedError, OSError):
            if host == os.uname().nodename and not process_exists(pid):
                (path / "controller.softlock").unlink(missing_ok=True)
            return acquired(SoftFileLock(path / "controller.softlock"))
    except Timeout:
        remedy = "wait for its end, stop it, or choose another directory"
        raise DirectoryRefused(f"{path} is in use by process {pid or 'unknown'} on {host}; {remedy}") from None


def acquired(lock):
    lock.acquire(timeout=0)
    return lock


def read_claim(path):
    """(host, pid) of the last controller that claimed a directory."""
    try:
        claim = json.loads((path / "controller.json").read_bytes())
        return str(claim["host"]), int(claim["pid"])
    except (OSError, ValueError, KeyError, TypeError):  # not written yet, or not by us
        return "an unknown host", 0


def process_exists(pid):
    try:
        os.kill(pid, 0)
    except PermissionError:  # another user's
        return True
    except ProcessLookupError:
        return False
    return True


# =====================================================================================================================
# Call and outcome files
# =====================================================================================================================

# A call is a pickle of trusted bytes: it lies in a directory of ours. An outcome comes from elsewhere and is read with
# BuiltinsUnpickler only. Both are a dict of builtin types, in which the pickle of the call or outcome proper is bytes.


class BuiltinsUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) == ("builtins", "complex"):  # which alone among them is pickled by name
            return complex
        raise ForeignType(f"names {module}.{name}; only builtin types are accepted")


def load_builtins(pickled):
    """The value of a pickle of builtin types; nothing in it is executed. Raises ForeignType, and whatever damage raises."""
    return BuiltinsUnpickler(io.BytesIO(pickled)).load()


def foreign_type(value):
    """The name of a type in a value that is not builtin, or ''."""
    stack, seen, plain = [value], set(), (str, bytes, bytearray, int, float, complex, bool, type(None))
    while stack:
        item = stack.pop()
        if type(item) in plain or id(item) in seen:
            continue
        seen.add(id(item))
        if type(item) is dict:
            stack += [*item.keys(), *item.values()]
        elif type(item) in (tuple, list, set, frozenset):
            stack += item
        else:
            return f"{type(item).__module__}.{type(item).__qualname__}"
    return ""


def call_file(name, call, transferred):
    """(content, digest of the call) of a call file: the call, and what the job must know to load it."""
    main = getattr(sys.modules["__main__"], "__file__", None) if b"__main__" in call else None
    digest = digest_of(call)
    header = {
        "format": CALL_FORMAT,
        "task": name,
        "sys_path": ["."] * transferred + [os.path.abspath(entry) for entry in sys.path],
        "main": main and os.path.abspath(main),
        "digest": digest,
        "call": call,
    }
    return pickle.dumps(header, PICKLE_PROTOCOL), digest


def read_call(path, name):
    """The content of a call file. Raises ExecutorError."""
    try:
        header = load_builtins(Path(path).read_bytes())
        sound = header["format"] == CALL_FORMAT and header["task"] == name and header["digest"] == digest_of(header["call"])
    except Exception as error:  # whatever a damaged pickle raises
        raise ExecutorError(f"the call {path} cannot be read ({type(error).__name__}: {error})") from error
    if not sound:
        raise ExecutorError(f"the call {path} is damaged or of another version")
    return header


def read_outcome(path, name, call_digest):
    """(value, None, report) or (None, exception, report) from an outcome file. Raises NoOutcome, saying why."""
    try:
        content = load_builtins(Path(path).read_bytes())
        outcome, report = content["outcome"], {"host": str(content["host"]), "seconds": float(content["seconds"])}
        report |= {key: int(content[key]) for key in ("peak_memory_kb", "cpus")}
        if (content["format"], content["task"], content["digest"]) != (OUTCOME_FORMAT, name, digest_of(outcome)):
            raise NoOutcome("its outcome is not that of this task")
        if content.get("call", call_digest) != call_digest:
            raise NoOutcome("its outcome is that of another call")
        kind, *fields = load_builtins(outcome)
        value, error = (fields[0], None) if kind == "ok" else (None, remote_error(*fields))
    except FileNotFoundError:
        raise NoOutcome("it left no outcome") from None
    except NoOutcome:
        raise
    except Exception as error:  # whatever a damaged or foreign file raises
        raise NoOutcome(f"its outcome cannot be read ({type(error).__name__}: {error})") from error
    return value, error, report


def remote_error(type_name, message, traceback_text):
    """An exception of a job: as itself if its type is builtin, as RemoteError otherwise."""
    known = getattr(builtins, type_name, NotPicklable if type_name == "NotPicklable" else None)
    error = RemoteError(type_name, message, traceback_text)
    if isinstance(known, type) and issubclass(known, Exception):
        with contextlib.suppress(TypeError):  # UnicodeDecodeError and the like want more than a message
            error = known(message)
    error.__cause__ = RemoteTraceback(traceback_text)
    return error


# =====================================================================================================================
# HTCondor's tools
# =====================================================================================================================

AD_ATTRIBUTES = "ClusterId,ProcId,JobStatus,HoldReasonCode,HoldReason,CondorWorkerTask,RequestCpus,RequestMemory,JobCurrentStartDate"
RESERVED = {
    *("executable", "arguments", "queue", "log", "output", "error", "initialdir", "priority"),
    *("max_materialize", "max_idle", "transfer_input_files", "should_transfer_files"),
    *("request_cpus", "request_memory", "condorworkerrun", "condorworkertask"),
}
INSTEAD = {"max_materialize": "max_jobs", "max_idle": "max_jobs", "request_cpus": "cpus", "request_memory": "memory_mb"}
INSTEAD |= {"transfer_input_files": "transfer_files", "should_transfer_files": "transfer_files", "priority": "describe"}


@dataclass(frozen=True)
class JobAd:
    """What condor_q says of a job."""

    job: str  # cluster.process
    task: str
    status: int
    hold: tuple  # (code, reason)
    cpus: int
    memory_mb: int
    started: int

    @staticmethod
    def parse(ad):
        job, hold = f"{ad['ClusterId']}.{ad['ProcId']}", (ad.get("HoldReasonCode", 0), ad.get("HoldReason", "no reason given"))
        numbers = [ad.get(key, 0) for key in ("RequestCpus", "RequestMemory", "JobCurrentStartDate")]
        numbers = [number if isinstance(number, int) else 0 for number in numbers]  # it may be an expression
        return JobAd(job, ad.get("CondorWorkerTask", ""), int(ad["JobStatus"]), hold, *numbers)


IDLE_JOB, RUNNING_JOB, REMOVED_JOB, COMPLETED_JOB, HELD_JOB, TRANSFERRING_JOB, SUSPENDED_JOB = range(1, 8)  # JobStatus


class Schedd:
    """condor_submit, condor_q, condor_rm and condor_release for the jobs of one run, each call with a time limit."""

    def __init__(self, run):
        self.run, self.calls = run, Counter()

    @property
    def constraint(self):
        return f'CondorWorkerRun=="{self.run}"'

    def call(self, tool, *arguments, directory=None):
        """The finished process. Raises ScheddSilent if it does not finish."""
        self.calls[tool] += 1
        timeout_s = SUBMIT_TIMEOUT_S if tool == "condor_submit" else TOOL_TIMEOUT_S
        try:
            return subprocess.run(
                [tool, *arguments],
                cwd=directory,
                timeout=timeout_s,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # a Ctrl-C at the terminal is not for it
            )
        except subprocess.TimeoutExpired:
            raise ScheddSilent(f"{tool} took more than {timeout_s:g} s") from None
        except OSError as error:
            raise ScheddSilent(f"{tool} could not be started ({error})") from error

    def jobs(self):
        """JobAds of all jobs of the run that are in the queue, oldest first. Raises ScheddSilent if that is not known."""
        answer = self.call("condor_q", "-constraint", self.constraint, "-json", "-attributes", AD_ATTRIBUTES)
        if answer.returncode:
            raise ScheddSilent(f"condor_q: {complaint(answer.stderr) or f'exit code {answer.returncode}'}")
        try:
            ads = json.loads(answer.stdout) if answer.stdout.strip() else []  # an empty queue prints nothing
            if not isinstance(ads, list):
                raise TypeError(type(ads).__name__)
            return [JobAd.parse(ad) for ad in sorted(ads, key=lambda ad: (ad["ClusterId"], ad["ProcId"]))]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ScheddSilent(f"condor_q printed what is not a list of jobs ({type(error).__name__}: {error})") from error

    def submit(self, directory, description, count):
        """The cluster of as many new jobs. Raises SubmitFailed if it was refused, ScheddSilent if what happened is not known."""
        answer = self.call("condor_submit", description, directory=directory)
        if answer.returncode:
            raise SubmitFailed(f"condor_submit: {complaint(answer.stderr) or f'exit code {answer.returncode}'}")
        cluster = re.search(r"cluster\s+(\d+)", answer.stdout)
        number = re.search(r"(\d+) job\(s\) submitted", answer.stdout)
        if cluster is None or (number and int(number[1]) != count):
            raise ScheddSilent(f"condor_submit said '{complaint(answer.stdout)}' to {count} jobs")
        return int(cluster[1])


def complaint(text):
    """What a tool says went wrong, on one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    start = next((i for i, line in enumerate(lines) if line.startswith("ERROR")), 0)
    return " ".join(lines[start : start + 3])[:300]


def quoted(word):
    """A word of `arguments` or `environment` in HTCondor's syntax, to stand within double quotes."""
    return "'" + literal(word).replace("'", "''").replace('"', '""') + "'"


def literal(text):
    return str(text).replace("$", "$(DOLLAR)")


def check_condor_tools():
    """Raises CondorMissing."""
    if missing := [tool for tool in ("condor_submit", "condor_q", "condor_rm") if shutil.which(tool) is None]:
        raise CondorMissing(f"{', '.join(missing)} not found; log in where HTCondor is installed, or run with local processes")


def split_options(texts):
    """Pairs for the options of a CondorExecutor from texts KEY=VALUE, as a command line has them."""
    return tuple((key.strip(), value.strip()) for key, _, value in (text.partition("=") for text in texts))


def check_submit_options(options):
    """Extra lines of the submit file as a dict. Raises ValueError."""
    for key, value in options:
        bare = key.lower().removeprefix("+").removeprefix("my.")
        if not re.fullmatch(r"\+?[A-Za-z_][\w.]*", key) or re.search(r"[\r\n\0]", str(value)):
            raise ValueError(f"submit option {key!r} = {value!r}: give a name and a value on one line")
        if bare in RESERVED:
            instead = f"use {INSTEAD[bare]}" if bare in INSTEAD else "it is set for every job"
            raise ValueError(f"submit option {key!r} cannot be given: {instead}")
    return {str(key): str(value) for key, value in options}


def check_submittable(path):
    """A path that a submit file can hold. Raises ValueError."""
    path = str(path)
    if re.search(r"[\r\n\0]|\\$|^\s|\s$|\$\$", path):
        raise ValueError(f"{path!r} cannot be used by HTCondor: no line breaks, no $$, no blank or backslash at the end")
    return path


@dataclass(frozen=True)
class LogEvent:
    code: int
    job: str  # cluster.process
    time: float
    text: str

    @property
    def hold(self):
        """(code, reason) of a HELD_EVENT."""
        code, lines = re.search(r"Code (\d+) Subcode", self.text), self.text.splitlines()[1:]
        return int(code[1]) if code else 0, lines[0].strip() if lines else "no reason given"

    @property
    def exit_code(self):
        """Of a TERMINATED_EVENT; -N for signal N, None where it is not known."""
        code, number = re.search(r"return value (-?\d+)", self.text), re.search(r"signal (\d+)", self.text)
        return int(code[1]) if code else -int(number[1]) if number else None


EXECUTING_EVENT, EVICTED_EVENT, TERMINATED_EVENT, ABORTED_EVENT, HELD_EVENT, RELEASED_EVENT = 1, 4, 5, 9, 12, 13


class UserLog:
    """Follows HTCondor's log of our jobs from its present end on."""

    CHUNK = 1 << 22  # bytes read at once
    HEAD = re.compile(r"(\d{3}) \((\d+)\.(\d+)\.\d+\) (\d\S+[ T][\d:.]+)\S* ?")

    def __init__(self, path):
        self.path, self._inode, self._offset = path, None, 0
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(path)
            self._inode, self._offset = found.st_ino, found.st_size

    def events(self):
        """The LogEvents that were completed since the last call. Raises OSError."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return
        if found.st_ino != self._inode or found.st_size < self._offset:  # replaced or truncated
            self._inode, self._offset = found.st_ino, 0
        while self._offset < found.st_size:
            with open(self.path, "rb") as file:
                file.seek(self._offset)
                chunk = file.read(self.CHUNK)
            end = chunk.rfind(b"\n...\n") + 5
            if end < 5 and len(chunk) < self.CHUNK:
                return
            self._offset += end if end >= 5 else len(chunk)  # so long without an event: not a user log
            for text in chunk[:end].decode("utf-8", "replace").split("\n...\n"):
                if head := self.HEAD.match(text):
                    job = f"{int(head[2])}.{int(head[3])}"
                    yield LogEvent(int(head[1]), job, event_time(head[4]), text[head.end() :])


def event_time(text):
    """Seconds since the epoch of a time stamp in a user log; now where it has another format or lies in the future."""
    try:
        return min(datetime.fromisoformat(text).timestamp(), time.time())
    except ValueError:
        return time.time()


class Journal:
    """What happened, a line of JSON each; a controller reads there what its predecessor did."""

    def __init__(self, path, say):
        self.path, self._say, self._broken = path, say, False

    def write(self, event, **fields):
        """Append an event. A journal that cannot be written is said once; nothing else depends on it."""
        line = json.dumps({"time": datetime.now().isoformat(timespec="milliseconds"), "event": event, **fields})
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("\n" * self._broken + line + "\n")  # what was cut off ends there
            self._broken = False
        except OSError as error:
            if not self._broken:
                self._say(f"{self.path} cannot be written ({error.strerror}); going on without it")
            self._broken = True

    def given_up(self):
        """Names of tasks whose error message points to a file of theirs."""
        return {event["task"] for event in self.read() if event["event"] == "failed"}

    def read(self):
        """All sound events, oldest first."""
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            with contextlib.suppress(ValueError):  # cut off by a full disk
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event:
                    yield event


def read_run(directory, make=False):
    """The id that marks the jobs of a directory, or None where there never were any. Raises ExecutorError."""
    path = Path(directory) / "run.json"
    try:
        run = json.loads(path.read_bytes())["run"]
        if not re.fullmatch(r"\w+", run):
            raise ValueError(run)
        return run
    except FileNotFoundError:
        if not make:
            return None
    except (ValueError, KeyError, TypeError) as error:
        raise ExecutorError(f"{path} is damaged ({error}); remove its jobs by condor_rm and delete {directory}") from error
    replace_file(path, json.dumps({"run": uuid.uuid4().hex}).encode(), sync=True)
    return read_run(directory)


def queue_counts(directory):
    """{idle, running, held}: the jobs that a directory's executor has in the queue, asked once. Raises ExecutorError."""
    run = read_run(directory)
    states = Counter(AD_STATES.get(ad.status) for ad in (Schedd(run).jobs() if run else ()))
    return {name: states[name] for name in ("idle", "running", "held")}


AD_STATES = {IDLE_JOB: "idle", RUNNING_JOB: "running", TRANSFERRING_JOB: "running", SUSPENDED_JOB: "running", HELD_JOB: "held"}


def remove_run(directory, timeout_s=60.0):
    """Remove all jobs of a directory's executor from the queue and see them gone; how many. Raises ExecutorError."""
    run = read_run(directory)
    if run is None:
        return 0
    schedd, patience_until, pause_s = Schedd(run), time.monotonic() + timeout_s, 0.2
    left = schedd.jobs()
    found = fewest = len(left)
    while left:
        if any(ad.status != REMOVED_JOB for ad in left):
            schedd.call("condor_rm", "-constraint", schedd.constraint)  # what it says is of no interest: we look
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 5.0)
        left = schedd.jobs()
        if len(left) < fewest:
            fewest, patience_until = len(left), time.monotonic() + timeout_s
        if left and time.monotonic() > patience_until:
            remedy = f"see condor_q -constraint '{schedd.constraint}'"
            raise ExecutorError(f"{len(left)} of {found} jobs are still in the queue and none left it in {timeout_s:g} s; {remedy}")
    return found


# =====================================================================================================================
# Condor executor
# =====================================================================================================================


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
        files = {Path(__file__).name: __file__}
        if module is not None and module.__name__ != "__main__" and getattr(module, "__file__", None):
            files[Path(module.__file__).name] = module.__file__
        if main:
            files[MAIN_COPY] = main
        for value in (*task.args, *task.kwargs.values()):
            if isinstance(value, Shared):
                files[Path(value.path).name] = value.path
        for name in files.keys() - self._copied:
            if not ((self.directory / name).exists() and os.path.samefile(files[name], self.directory / name)):
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
        script = quoted(Path(__file__).name if self.transfer_files else os.path.abspath(__file__))
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


# =====================================================================================================================
# Job side
# =====================================================================================================================


def main(argv=None) -> int:
    """What a job runs: condor_worker.py DIRECTORY TASK CPUS performs DIRECTORY/TASK.call and leaves TASK.out there.

    Exit codes: 0 done, also where the function raised; 2 the call cannot be read; 3 the outcome cannot be written.
    """
    arguments = sys.argv[1:] if argv is None else argv
    try:
        directory, name, cpus = Path(arguments[0]).absolute(), arguments[1], int(arguments[2])
        call = read_call(directory / f"{name}.call", name)
    except (IndexError, ValueError):
        print("usage: condor_worker.py DIRECTORY TASK CPUS", file=sys.stderr)
        return 2
    except ExecutorError as error:
        print(error, file=sys.stderr)
        return 2
    faulthandler.enable()  # a crash in compiled code names the Python line
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))  # HTCondor sets them to the number of CPUs; our processes share those
    started = time.monotonic()
    outcome = builtin_outcome(run_call(call, cpus))
    content = {
        "format": OUTCOME_FORMAT,
        "task": name,
        "call": call["digest"],
        "digest": digest_of(outcome),
        "outcome": outcome,
        "host": os.uname().nodename,
        "python": sys.version.split()[0],
        "seconds": time.monotonic() - started,
        "peak_memory_kb": peak_memory_kb(),
        "cpus": cpus,
    }
    return write_outcome(directory / f"{name}.out", pickle.dumps(content, PICKLE_PROTOCOL))


def run_call(call, cpus):
    """The outcome of a call file's call, in a process that looks to it like a child of the submitter."""
    sys.path[:] = dict.fromkeys([*map(os.path.abspath, call["sys_path"]), *sys.path])
    try:
        if call["main"] is not None:
            load_main(call["main"] if os.path.exists(call["main"]) else MAIN_COPY)
    except BaseException as error:
        return dump_error(error)
    return perform(call["call"], cpus=cpus)


def load_main(path):
    """Make what the submitter's main program defines loadable, as multiprocessing does for a spawned process.

    As an import, because that is compiled once and then read from __pycache__; a job may be shorter than the compilation.
    """
    spec = importlib.util.spec_from_file_location("__mp_main__", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    spec.loader.exec_module(module)
    module.__spec__ = None  # or a process that a task starts would look for a module of that name instead of this file


def builtin_outcome(outcome):
    """An outcome of `perform` without what is not of a builtin type: an error says so in the place of such a value."""
    try:
        kind, *fields = load_builtins(outcome)
    except Exception:  # whatever a foreign __reduce__ leads to
        name = foreign_type(pickle.loads(outcome)[1])
        fields = [None, "NotPicklable", f"the result holds {name}; from a cluster only builtin types come back", ""]
        kind = "error"
    return outcome if kind == "ok" else pickle.dumps(("error", *fields[1:]), PICKLE_PROTOCOL)


def peak_memory_kb():
    """Peak of this process plus that of its largest child."""
    unit = 1024 if sys.platform == "darwin" else 1
    return sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) // unit


def write_outcome(path, content):
    """Exit code of the job: 0, or 3 where the disk stays full."""
    for pause_s in (*DISK_PAUSES_S, None):
        try:
            replace_file(path, content, sync=True)
            return 0
        except OSError as error:
            if pause_s is None:
                print(f"the outcome {path} cannot be written: {error}", file=sys.stderr)
                return 3
            time.sleep(pause_s)


if __name__ == "__main__":
    # The module, not this script: a task that asks condor_worker.task_cpus() must find what was set.
    from condor_worker import main as job_main

    sys.exit(job_main())
