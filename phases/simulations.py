"""Points simulated: one in a worker, and a batch of them sent to an executor or simulated in this process.

`simulate_point` is the task that a worker gets. Nothing that a simulation does (raise, hang, exit, return nonsense) gets out of it other
than as a record of builtin types; `run_calls` settles the records of a batch as they come. The temporary directories of a batch lie in
one, which a note in the run's directory names: what a killed worker leaves behind is removed.
"""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from executors.errors import TaskTimeout
from executors.files import replace_file
from phases.box import encodable
from phases.classification import LENGTH_TOLERANCE
from phases.errors import InputError
from phases.model import A1, A2, B_OFFSET
from phases.names import FAILED, TIMEOUT

POSITION_TOLERANCE = 1e-3  # of lattice constants, where sites are put in order
SCRATCH_PREFIX = "spin_solver_pid"
Calls = Mapping[int, tuple]  # of each point, by its id: the arguments of simulate_point, the time limit and the scratch directory last
Settle = Callable[[int, dict[str, Any]], None]  # what is done with the record of a point


def _run_simulation_safe(params, simulation_func, timeout=300):
    """Run simulation_func(params) and check what it returns; raises nothing but KeyboardInterrupt.

    A record of builtin types: {"ok": True, "spins", "positions" (bytes of float64), "sites", "energy", "numbers", "seconds", "host"}
    or {"ok": False, "error": type, "message", "traceback", "seconds", "host"}. A timeout in seconds interrupts Python code of the main
    thread (error "SimulationTimeout"); the hard limit, for compiled loops as well, is the executor's, which kills the process.
    """
    started = time.monotonic()
    try:
        with alarm(timeout):
            record = {"ok": True} | checked_result(simulation_func(dict(params)))
    except BaseException as error:  # sys.exit() too costs its point only
        if isinstance(error, KeyboardInterrupt) and multiprocessing.parent_process() is None:
            raise  # a Ctrl-C; worker processes ignore it
        record = {"ok": False} | error_fields(error)
    return record | {"seconds": time.monotonic() - started, "host": os.uname().nodename}


def error_fields(error: BaseException) -> dict[str, str]:
    summary = traceback.TracebackException.from_exception(error)  # survives an exception whose __str__ fails
    return {"error": type(error).__qualname__, "message": encodable(str(summary)), "traceback": encodable("".join(summary.format()))}


class SimulationTimeout(TimeoutError):
    """The limit of `alarm`, as opposed to a TimeoutError of the simulation's own."""


@contextlib.contextmanager
def alarm(timeout_s: float | None) -> Iterator[None]:
    """Raises SimulationTimeout within the block after timeout_s seconds; no limit outside of the main thread, where no signal arrives."""
    if timeout_s is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number, _frame):
        raise SimulationTimeout(f"the simulation reached its time limit of {timeout_s:g} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def checked_result(result: Any) -> dict[str, Any]:
    """The fields of a record from a Simulation or a tuple (spins (N, 3), positions (N, 2), energy per site). Raises ValueError."""
    if hasattr(result, "spins"):
        parts = (result.spins, result.positions, result.energy)
    else:
        parts = tuple(result) if isinstance(result, (tuple, list)) else ()
    if len(parts) != 3:
        raise ValueError(f"the simulation returned {type(result).__name__}; expected (spins (N, 3), positions (N, 2), energy per site)")
    spins, positions, energy = (np.ascontiguousarray(part, dtype=np.float64) for part in parts)
    if spins.ndim != 2 or spins.shape[1] != 3 or not len(spins) or positions.shape != (len(spins), 2) or energy.size != 1:
        shapes = f"spins {spins.shape}, positions {positions.shape}, energy {energy.shape}"
        raise ValueError(f"the simulation returned {shapes}; expected (N, 3), (N, 2) and a number")
    if not (np.isfinite(spins).all() and np.isfinite(positions).all() and np.isfinite(energy).all()):
        raise ValueError("the simulation returned NaN or infinite numbers")
    lengths = np.linalg.norm(spins, axis=1)
    if np.abs(lengths - 1).max() > LENGTH_TOLERANCE:
        raise ValueError(f"the simulation returned spins of length {lengths.min():.4g} to {lengths.max():.4g}; expected unit spins")
    numbers = {name: float(getattr(result, name)) for name in ("spread", "torque", "converged", "restarts") if hasattr(result, name)}
    content = {"spins": spins.tobytes(), "positions": positions.tobytes(), "sites": len(spins)}
    return content | {"energy": float(energy.item()), "numbers": finite(numbers)}


def finite(numbers: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in numbers.items() if math.isfinite(value)}


def simulate_point(
    id: int, params: dict, simulation_func: Callable, classify: Callable, L: int, timeout: float | None, scratch: str
) -> dict:
    """The task of a worker: simulate in a private directory, classify. A record of _run_simulation_safe with phase, confidence, path."""
    with private_scratch(id, scratch):
        record = _run_simulation_safe(params, simulation_func, timeout)
        if not record["ok"]:
            return record
        try:
            spins, positions = (np.frombuffer(record[name]).reshape(record["sites"], -1) for name in ("spins", "positions"))
            if (order := site_order(positions, L)) is not None:
                spins, positions = spins[order], positions[order]
                record |= {"spins": spins.tobytes(), "positions": positions.tobytes()}
            found = classify(spins, L)
            confidence = float(found.confidence)
            path = [encodable(str(step)) for step in getattr(found, "path", ())]
            label = {"phase": found.phase.name, "confidence": confidence if math.isfinite(confidence) else 0.0, "path": path}
            return record | label | {"numbers": record["numbers"] | finite(getattr(found, "numbers", {}))}
        except Exception as error:
            return {"ok": False, "seconds": record["seconds"], "host": record["host"]} | error_fields(error)


def site_order(positions: np.ndarray, L: int) -> np.ndarray | None:
    """Indices that bring sites at positions (N, 2) into the order of Lattice; None where they are not L x L cells of the honeycomb."""
    inverse = np.linalg.inv(np.array([A1, A2]))
    for origin in (np.zeros(2), np.array(B_OFFSET)):  # the first site may be an A or a B
        cells = np.stack([(positions - positions[0] + origin - s * np.array(B_OFFSET)) @ inverse for s in (0, 1)])
        fits = np.abs(cells - np.round(cells)).max(axis=2) < POSITION_TOLERANCE
        sublattice = fits[1].astype(int)
        i, j = (np.round(cells)[sublattice, np.arange(len(positions))].astype(int) % L).T
        index = (i * L + j) * 2 + sublattice
        if (fits[0] ^ fits[1]).all() and len(index) == 2 * L * L and len(np.unique(index)) == len(index):
            return np.argsort(index)
    return None


def scratch_path(id: int, scratch: str) -> Path:
    return Path(scratch) / f"point-{id}"


@contextlib.contextmanager
def private_scratch(id: int, scratch: str) -> Iterator[None]:
    """A temporary directory of one's own as working directory and TMPDIR, removed afterwards: within scratch, where this host has it."""
    if os.path.isdir(scratch):
        directory = scratch_path(id, scratch)
        shutil.rmtree(directory, ignore_errors=True)  # of an attempt that died
        directory.mkdir()
    else:
        directory = Path(tempfile.mkdtemp(prefix=f"{SCRATCH_PREFIX}{os.getpid()}_"))
    before = os.getcwd(), os.environ.get("TMPDIR"), tempfile.tempdir
    os.environ["TMPDIR"] = tempfile.tempdir = str(directory)
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before[0])
        tempfile.tempdir = before[2]
        os.environ.pop("TMPDIR")
        if before[1] is not None:
            os.environ["TMPDIR"] = before[1]
        shutil.rmtree(directory, ignore_errors=True)


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
