"""A batch of points, sent to an executor or simulated in this process: the records of `simulate_point`, in the order in which they come.

What a killed worker leaves behind is removed: the temporary directories of a batch lie in one, which a note in the run's directory names.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, as_completed
from functools import partial
from pathlib import Path
from typing import Any

from executors.errors import TaskTimeout
from executors.files import replace_file
from phases.errors import InputError
from phases.names import FAILED, TIMEOUT
from phases.simulations import SCRATCH_PREFIX, SimulationTimeout, error_fields, scratch_path, simulate_point

Calls = Mapping[int, tuple]  # of each point, by its id: the arguments of simulate_point, the time limit and the scratch directory last
Settle = Callable[[int, dict[str, Any]], None]  # what is done with the record of a point


def run_calls(calls: Calls, executor: Executor | None, settle: Settle) -> None:
    """Simulate all points, without an executor in this process, and settle each as its record comes, those that came after an error too."""
    if executor is None:
        for id, call in calls.items():
            settle(id, record_of(call, partial(simulate_point, *call)))
        return
    futures = recovered(executor, calls)
    waiting = calls.keys() - set(futures.values())
    try:
        futures |= {executor.submit(simulate_point, *call): id for id, call in calls.items() if id in waiting}
        for future in as_completed(list(futures)):
            id = futures[future]
            settle(id, record_of(calls[id], future.result))
            del futures[future]
            if hasattr(executor, "forget"):
                executor.forget(future)
    finally:  # nothing is left but after an exception
        for future, id in futures.items():
            if future.done() and not future.cancelled():
                settle(id, record_of(calls[id], future.result))
            future.cancel()


def recovered(executor: Executor, calls: Calls) -> dict[Future, int]:
    """Where the executor outlives its controller: the tasks that an earlier one left of these calls."""
    try:
        left = executor.recover() if hasattr(executor, "recover") else []
    except RuntimeError:  # asked before: this is not its first batch
        left = []
    wanted = {pickle.dumps(call[:-2]): id for id, call in calls.items()} if left else {}
    found = {future: wanted.get(pickle.dumps(args[:-2])) for future, fn, args, _ in left if fn is simulate_point}
    return {future: id for future, id in found.items() if id is not None}


def record_of(call: tuple, outcome: Callable[[], dict]) -> dict[str, Any]:
    """What came of a call, be it an exception of its executor: killed at the time limit, died, cannot be sent."""
    try:
        record = outcome()
    except Exception as error:
        record = {"ok": False, "seconds": None, "host": None} | error_fields(error)
    shutil.rmtree(scratch_path(call[0], call[-1]), ignore_errors=True)  # a killed process has left it
    return record


def told_fields(record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the event that tells what came of a point."""
    if record["ok"]:
        return {key: record[key] for key in ("phase", "confidence", "energy", "seconds", "host", "path", "numbers")}
    failure = TIMEOUT if record["error"] in (TaskTimeout.__name__, SimulationTimeout.__name__) else FAILED
    return {"failure": failure} | {key: record[key] for key in ("error", "message", "traceback", "seconds", "host")}


def must_run_here(simulation: Callable, classify: Callable, processes: int, timeout_s: float | None) -> bool:
    """Whether a simulation has to run in this process: it cannot be sent, or nothing is gained. Raises InputError if it must not be so."""
    try:
        pickle.dumps((simulation, classify))
    except Exception as error:
        if processes > 1:
            text = f"the simulation cannot be sent to other processes ({error}); use a module-level function, or n_jobs=1"
            raise InputError(text) from error
        return True
    if not can_be_imported(simulation):
        if processes > 1:
            raise InputError("worker processes cannot import this program: put its calls under if __name__ == '__main__', or use n_jobs=1")
        return True
    return processes == 1 and timeout_s is None


def can_be_imported(function: Callable) -> bool:
    """Whether a spawned process can load this function without running the main program's calls again, which wants a guard in it."""
    main = getattr(sys.modules["__main__"], "__file__", None)
    if main is None:  # standard input, -c, a notebook
        return function.__module__ != "__main__"
    try:
        return "__name__" in Path(main).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


@contextlib.contextmanager
def scratch_directory(note: Path) -> Iterator[str]:
    """A directory for the temporary ones of a batch, removed afterwards; the note says where it is until then."""
    root = tempfile.mkdtemp(prefix=f"{SCRATCH_PREFIX}{os.getpid()}_")
    try:
        replace_file(note, json.dumps({"host": os.uname().nodename, "path": root}).encode())
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)
        note.unlink(missing_ok=True)


def remove_left_scratch(note: Path) -> None:
    """Of a run that was killed: its processes are gone, for we hold its directory."""
    if note.exists():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # damaged: the directories stay in the system's temporary one
            left = json.loads(note.read_bytes())
            path = Path(left["path"])
            if left["host"] == os.uname().nodename and path.name.startswith(SCRATCH_PREFIX):
                shutil.rmtree(path, ignore_errors=True)
        note.unlink()
