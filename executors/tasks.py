"""A task: a call that is to run elsewhere, what is known of it beforehand, and how it and its outcome travel.

`Description` and `TimeLimits` are known to whoever submits; `Shared` is a value that many calls have in common; `perform` runs a call, in
whichever process, and `task_cpus` tells a running one how many CPUs it has.
"""

from __future__ import annotations

import bisect
import builtins
import contextlib
import contextvars
import functools
import hashlib
import math
import os
import pickle
import threading
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from executors.errors import ExecutorError, NotPicklable, RemoteError, RemoteTraceback
from executors.files import replace_file

PICKLE_PROTOCOL = 5
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # set to 1: processes share the CPUs, not threads
LONGEST_TIMEOUT_S = 2e6  # 23 days: poll(2) counts milliseconds in 31 bits
CPUS = contextvars.ContextVar("CPUS", default=1)  # what task_cpus() answers


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


def dump_call(task):
    """Bytes for `perform`. Raises NotPicklable."""
    return _dump((task.fn, task.args, task.kwargs), f"{call_name(task.fn)} or its arguments")


def perform(call, on_start=lambda: None, cpus=1):
    """Run a call from `dump_call`; its outcome as bytes for `load_outcome`. Raises nothing, whatever the function does.

    on_start is called between loading the call, which may import modules for seconds, and running it.
    """
    before = CPUS.set(cpus)
    try:
        fn, args, kwargs = pickle.loads(call)
        on_start()
        return _dump(("ok", fn(*args, **kwargs)), f"the result of {call_name(fn)}")
    except BaseException as error:  # sys.exit() too is an outcome and must not end the process
        return dump_error(error)
    finally:
        CPUS.reset(before)


def _dump(value, what):
    """A pickle. Raises NotPicklable."""
    try:
        return pickle.dumps(value, PICKLE_PROTOCOL)
    except Exception as error:
        raise NotPicklable(
            f"{what} does not pickle ({type(error).__name__}: {error}); use module-level functions, builtin types and arrays"
        ) from error


def dump_error(error):
    summary = traceback.TracebackException.from_exception(error)  # survives an exception whose __str__ fails
    try:
        pickled = _dump(error, "the exception")
    except NotPicklable:
        pickled = None  # a RemoteError takes its place, from the other fields
    return _dump(("error", pickled, type(error).__qualname__, str(summary), "".join(summary.format())), "the outcome")


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
    def write(value, directory) -> Shared:
        """Pickle a value into directory, unless it is there already. Raises NotPicklable, OSError."""
        pickled = _dump(value, "the shared value")
        digest = digest_of(pickled)
        path = Path(directory).absolute() / f"{digest}.shared"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, pickled)
        return Shared(str(path), digest)

    def get(self):
        """The value; do not change it. Raises ExecutorError."""
        return _load_shared(self.path, self.digest)


@functools.lru_cache(maxsize=4)
def _load_shared(path, digest):
    here = os.path.basename(path)  # where HTCondor's file transfer puts it
    try:
        pickled = Path(path if os.path.exists(path) else here).read_bytes()
    except OSError as error:
        raise ExecutorError(f"the shared value {path} cannot be read ({error}); it must stay until its last task is done") from error
    if digest_of(pickled) != digest:
        raise ExecutorError(f"the shared value {path} is damaged; delete it and start again")
    return pickle.loads(pickled)


def remote_error(type_name, message, traceback_text):
    """An exception of a job: as itself if its type is builtin, as RemoteError otherwise."""
    known = getattr(builtins, type_name, NotPicklable if type_name == "NotPicklable" else None)
    error = RemoteError(type_name, message, traceback_text)
    if isinstance(known, type) and issubclass(known, Exception):
        with contextlib.suppress(TypeError):  # UnicodeDecodeError and the like want more than a message
            error = known(message)
    error.__cause__ = RemoteTraceback(traceback_text)
    return error
