"""How tasks run, knowing no physics.

    with LocalExecutor(8, timeout_s=600) as executor:
        futures = [executor.submit(work, item) for item in items]
        for future in concurrent.futures.as_completed(futures):
            print(future.result())

Every executor is a `concurrent.futures.Executor` with the same behaviour. Calls and outcomes travel as pickles, even
inline, so what works inline works everywhere: `fn` is a module-level function, arguments and results pickle. An
exception of `fn` is raised again by `future.result()`; its `__cause__` shows the traceback from where it happened.
POSIX (Linux, macOS); standard library only.

Sections: constants, errors, tasks, job protocol, inline executor, local executor
"""

import atexit
import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from pathlib import Path

# =====================================================================================================================
# Constants
# =====================================================================================================================

PICKLE_PROTOCOL = 5
STARTED = b"started"  # a process's message between loading a call and running it; no pickle begins like this
EXIT_GRACE_S = 5.0  # how long a process may take to end by itself before it is killed
LONGEST_TIMEOUT_S = 2e6  # 23 days: poll(2) counts milliseconds in 31 bits
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
SPAWN_LOCK = threading.Lock()  # os.environ belongs to the whole process, so one start at a time


# =====================================================================================================================
# Errors
# =====================================================================================================================


class ExecutorError(Exception):
    """Root of what goes wrong around a call, as opposed to inside it."""


class TaskDied(ExecutorError):
    """The process ended before its task did: killed, crashed, out of memory, os._exit."""


class TaskTimeout(ExecutorError):
    """The task reached its hard time limit and was killed."""


class NotPicklable(ExecutorError):
    """A call or a result cannot travel between processes."""


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


@dataclass(frozen=True, eq=False)
class Task:
    """A submitted call and the future that waits for its outcome."""

    future: Future
    fn: Callable
    args: tuple
    kwargs: dict

    def settle(self, run):
        """Give the future the outcome that `run(task)` returns, or the exception that it raises."""
        try:
            value, error = load_outcome(run(self))
        except Exception as failure:  # whatever it is belongs to this task, the others go on
            value, error = None, failure
        if error is None:
            self.future.set_result(value)
        else:
            self.future.set_exception(error)


def call_name(fn):
    return getattr(fn, "__qualname__", repr(fn))


# =====================================================================================================================
# Job protocol
# =====================================================================================================================


def dump_call(task):
    """Bytes for `perform`. Raises NotPicklable."""
    return dump((task.fn, task.args, task.kwargs), f"{call_name(task.fn)} or its arguments")


def perform(call, on_start=lambda: None):
    """Run a call from `dump_call`; its outcome as bytes for `load_outcome`. Raises nothing, whatever the function does.

    on_start is called between loading the call, which may import modules for seconds, and running it.
    """
    try:
        fn, args, kwargs = pickle.loads(call)
        on_start()
        return dump(("value", fn(*args, **kwargs)), f"the result of {call_name(fn)}")
    except BaseException as error:  # sys.exit() too is an outcome and must not end the process
        return dump_error(error)


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
    if kind == "value":
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


# =====================================================================================================================
# Inline executor
# =====================================================================================================================


class InlineExecutor(Executor):
    """Runs each task within submit(), so that print, breakpoint() and profilers work.

    Exceptions end in the future, except KeyboardInterrupt, which passes through submit().
    """

    processes = 1

    def __init__(self):
        self._closed = False

    def warm_up(self):
        """Nothing to start; a caller need not ask which executor it has."""

    def submit(self, fn, /, *args, **kwargs):
        """A finished future. Raises RuntimeError after shutdown()."""
        if self._closed:
            raise RuntimeError(f"cannot submit {call_name(fn)}: the executor is shut down")
        task = Task(Future(), fn, args, kwargs)
        task.future.set_running_or_notify_cancel()
        task.settle(lambda task: perform(dump_call(task)))
        if isinstance(task.future.exception(), KeyboardInterrupt):
            raise task.future.exception()
        return task.future

    def shutdown(self, wait=True, *, cancel_futures=False):
        self._closed = True


# =====================================================================================================================
# Local executor
# =====================================================================================================================


class LocalExecutor(Executor):
    """Runs tasks in at most `processes` spawned processes of this machine, first in, first out.

    processes  may exceed the number of cores; each has one BLAS/OpenMP thread unless the environment says otherwise
    timeout_s  hard limit in seconds on each attempt, None: no limit. The clock starts when a process has loaded the
               task: waiting in the queue, the start of a process and its imports do not count
    retries    how often a task is tried again after its process died
    log_dir    the N-th process appends its output to worker-N.log there; None: output goes where the caller's goes

    Who is tried again:
        process died (signal, os._exit, crash, out of memory)  up to `retries` times in a new process, then TaskDied
        time limit                                             never; the process is killed, TaskTimeout
        exception of the function                              never; raised by future.result()
    An ended process is replaced when its slot's next task comes; no other task notices.

    An exception that leaves the with-block, Ctrl-C included, kills the processes instead of waiting for them, and so
    does the end of the interpreter: wait for the futures you need. Arguments are pickled when a process takes the task;
    leave them unchanged until then.
    """

    def __init__(self, processes, timeout_s=None, retries=1, log_dir=None):
        """Starts nothing yet. Raises ValueError, and OSError if log_dir cannot be made."""
        if processes < 1 or retries < 0 or not (timeout_s is None or 0 < timeout_s < LONGEST_TIMEOUT_S):
            raise ValueError(
                f"processes={processes}, timeout_s={timeout_s}, retries={retries}: give at least 1 "
                f"process, a limit of 0 to {LONGEST_TIMEOUT_S:g} s (or None) and at least 0 retries"
            )
        self.processes, self.timeout_s, self.retries = processes, timeout_s, retries
        self.log_dir = None if log_dir is None else Path(log_dir).absolute()
        if self.log_dir is not None:
            self.log_dir.mkdir(parents=True, exist_ok=True)
        self._changed = threading.Condition()  # guards all below
        self._queue = deque()
        self._workers, self._threads = [], []  # a slot is an index into both: a process and the thread that feeds it
        self._idle = 0  # threads waiting for a task
        self._closed = self._killed = False
        # Runs before multiprocessing's own exit hook, which would wait for what a slot's thread starts meanwhile.
        atexit.register(self.kill_workers)

    def submit(self, fn, /, *args, **kwargs):
        """A future for fn(*args, **kwargs). Raises RuntimeError after shutdown(), OSError if no process can start."""
        with self._changed:
            if self._closed:
                raise RuntimeError(f"cannot submit {call_name(fn)}: the executor is shut down")
            if len(self._queue) >= self._idle and len(self._threads) < self.processes:
                self._add_slot()
            task = Task(Future(), fn, args, kwargs)
            self._queue.append(task)
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
                future = self._queue.popleft().future
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
                task.settle(lambda task: self._run(task, slot))
            del task  # an idle slot must not keep the last arguments and result in memory
        self._workers[slot].end(EXIT_GRACE_S)

    def _next_task(self):
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._queue or self._closed)
            self._idle -= 1
            return self._queue.popleft() if self._queue else None

    def _run(self, task, slot):
        """Outcome of a task after at most retries + 1 attempts. Raises NotPicklable, TaskTimeout, TaskDied."""
        call, name = dump_call(task), call_name(task.fn)
        log = "" if self.log_dir is None else f"; see {self._log_path(slot)}"
        for _ in range(self.retries + 1):
            worker = self._live_worker(task, slot)
            try:
                return worker.run(call, self.timeout_s)
            except TimeoutError:
                worker.end(grace_s=0)
                raise TaskTimeout(f"{name} was killed at its time limit of {self.timeout_s:g} s{log}") from None
            except (EOFError, OSError):  # a pipe that ends within a message is an OSError
                ending = describe_exit(worker.end(EXIT_GRACE_S))
        raise TaskDied(f"{name}: its process {ending}; attempts made: {self.retries + 1}{log}")

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
            self.process = context.Process(target=worker_main, args=(far_end, log_path), daemon=True)
            with spawn_settings():
                self.process.start()

    def run(self, call, timeout_s):
        """Outcome of a call. Raises TimeoutError at the limit, EOFError or OSError if the process dies."""
        try:
            self.pipe.send_bytes(call)
            answer = self.pipe.recv_bytes()
            if answer != STARTED:  # an outcome already: the call could not be loaded
                return answer
            if not self.pipe.poll(timeout_s):
                raise TimeoutError
            return self.pipe.recv_bytes()
        except BaseException:
            self.pipe.close()  # the outcome of this call, if it still comes, must not answer the next one
            raise

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


def describe_exit(exit_code):
    if exit_code is None:
        return "ended in an unknown way"
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    name = {number.value: number.name for number in signal.Signals}.get(-exit_code, f"signal {-exit_code}")
    return f"was ended by {name}" + (" (out of memory? then use fewer processes)" if name == "SIGKILL" else "")


def worker_main(pipe, log_path):
    """What a spawned process does: answer each call on the pipe by STARTED and its outcome, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the caller decides
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=exit_with_parent, name="exit-with-parent", daemon=True).start()
    if log_path is not None:
        with open(log_path, "ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        sys.stdout.reconfigure(line_buffering=True)  # a killed task leaves its last words
    faulthandler.enable(file=2)  # a crash in compiled code names the Python line
    with contextlib.suppress(EOFError, ConnectionError):  # the caller has closed its end, or is gone
        while True:
            outcome = perform(pipe.recv_bytes(), on_start=lambda: pipe.send_bytes(STARTED))
            pipe.send_bytes(outcome)


def exit_with_parent():
    """End this process, in the middle of a task too, when the parent is gone, be it by SIGKILL."""
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
