"""Tasks in processes of this machine, with hard time limits: the executor, and the process that a task runs in."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import functools
import heapq
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing import connection, resource_tracker
from pathlib import Path

from executors.base import TaskExecutor, local_report
from executors.errors import Straggling, TaskDied, TaskTimeout
from executors.tasks import LONGEST_TIMEOUT_S, THREAD_VARIABLES, TimeLimits, call_name, dump_call, perform

POLL_S = 1.0  # how often the limit of a running straggler is asked for again
STARTED = b"started"  # a process's message between loading a call and running it; no pickle begins like this
EXIT_GRACE_S = 5.0  # how long a process may take to end by itself before it is killed
SPAWN_LOCK = threading.Lock()  # os.environ belongs to the whole process, so one start at a time


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
        worker = LocalWorker(self._log_path(slot))  # here and not in its thread: see _spawn_settings
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
            with _spawn_settings():
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
def _spawn_settings():
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
    threading.Thread(target=_exit_with_parent, name="exit-with-parent", daemon=True).start()
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


def _exit_with_parent():
    """End this process, in the middle of a task too, when the parent is gone, be it by SIGKILL."""
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
