"""One point, where it is simulated: run the simulation safely, check what it returns, name its phase.

`simulate_point` is the task that a worker gets. Nothing that a simulation does (raise, hang, exit, return nonsense) gets out of it other
than as a record of builtin types.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from phases.box import encodable
from phases.classification import LENGTH_TOLERANCE
from phases.model import A1, A2, B_OFFSET

POSITION_TOLERANCE = 1e-3  # of lattice constants, where sites are put in order
SCRATCH_PREFIX = "spin_solver_pid"


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
        if isinstance(error, KeyboardInterrupt) and is_main_process():
            raise  # a Ctrl-C; worker processes ignore it
        record = {"ok": False} | error_fields(error)
    return record | {"seconds": time.monotonic() - started, "host": os.uname().nodename}


def is_main_process() -> bool:
    import multiprocessing

    return multiprocessing.parent_process() is None


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
