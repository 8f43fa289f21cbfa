"""The loop of active learning, over an executor."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from executors.directories import claim_directory
from executors.errors import TaskTimeout
from executors.files import replace_file
from executors.local import LocalExecutor
from phases.box import DEFAULT_BOX, Box, latin_hypercube
from phases.classification import classify
from phases.errors import InputError
from phases.history import History, apply_event, condensed
from phases.learner import Explorer, Point
from phases.names import FAILED, TIMEOUT
from phases.simulations import (
    SCRATCH_PREFIX,
    Progress,
    SimulationTimeout,
    can_be_imported,
    error_fields,
    processes_of,
    scratch_path,
    simulate_point,
)
from phases.surrogate import Surrogate

# BaCo2(AsO4)2: fits in meV (emily: arXiv:2205.15262); where the search starts, no truths
KNOWN_FITS = {
    "fitting_param_2": {"J1xy": -6.772, "J1z": -1.887, "D": 0.815, "E": 1.292, "F": -0.091, "G": 0.627, "J3xy": 1.823, "J3z": -0.157},
    "fitting_param_4": {"J1xy": -6.646, "J1z": -2.084, "D": 0.675, "E": 1.33, "F": -1.516, "G": 0.21, "J3xy": 1.697, "J3z": 0.039},
    "fitting_param_8": {"J1xy": -6.646, "J1z": -2.084, "D": 0.675, "E": 1.25, "F": -1.516, "G": -0.21, "J3xy": 1.697, "J3z": 0.039},
    "emily": {"J1xy": -7.6, "J1z": -1.2, "D": 0.1, "E": -0.1, "F": 0.0, "G": 0.0, "J3xy": 2.5, "J3z": -0.85},
}
NO_PHASE = ("TIMEOUT", "UNKNOWN")  # labels that are no phases


@dataclass(frozen=True)
class Batch:
    """Points that are simulated together."""

    scratch: str  # where their temporary directories are
    progress: Progress
    checkpoint_interval: int


class ActiveLearningExplorer:
    """Explores phase diagrams: asks the explorer core for points, has them simulated, keeps the history in a directory of its own.

    output_dir    made if need be, and claimed until close(); what lies there already is continued
    target_phase  name or member of the enum of phases; None: none
    parameters    Box or {name: (low, high)}
    classify      classify(spins (N, 3), L) -> object with phase (an enum member), confidence, path; a module-level function
    model         what else the labels depend on (JSON types); a history of another model is refused
    """

    def __init__(
        self, output_dir, L=12, target_phase=None, strategy="balanced", seed=0, parameters=DEFAULT_BOX, classify=classify, model=None
    ):
        """Raises InputError; DirectoryRefused where another run uses the directory."""
        self.L, self.seed, self.classify = L, seed, classify
        box = parameters if isinstance(parameters, Box) else Box.of(parameters)
        self.explorer = Explorer(box, seed, strategy, getattr(target_phase, "name", target_phase), NO_PHASE)
        self._resources = contextlib.ExitStack()
        with contextlib.ExitStack() as until_sound:
            self.output_dir = until_sound.enter_context(claim_directory(output_dir))
            self.history = History(self.output_dir, box, {"L": L, **(model or {})}, seed)
            until_sound.callback(self.history.close)
            self._resume()
            self._resources = until_sound.pop_all()

    def _resume(self):
        for event in self.history.past:
            apply_event(self.explorer, event)
        self._remove_left_scratch()
        self.history.append("opened", time=time.time(), host=os.uname().nodename, pid=os.getpid())

    def close(self) -> None:
        """Save, and give the directory back."""
        if not self.history.closed:
            self.save()
        self._resources.close()

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.close()

    def _record(self, event, **fields):
        apply_event(self.explorer, self.history.append(event, **fields))

    def _record_points(self, points: Sequence[Point]) -> list[dict[str, float]]:
        parameters = [self.explorer.box.parameters(point.unit) for point in points]
        if points:
            units = [point.unit for point in points]
            ids = [point.id for point in points]
            self._record("asked", iteration=points[0].iteration, origin=points[0].origin, ids=ids, points=units, parameters=parameters)
        return parameters

    # ---- points

    def add_points(self, points: Iterable[Mapping[str, float]], origin: str = "user") -> list[dict[str, float]]:
        """Add points by their parameters; those known already are left out, so that adding twice changes nothing. Raises InputError."""
        return self._record_points(self.explorer.new_points([self.explorer.box.to_unit(point) for point in points], origin))

    def add_known_seeds(self) -> list[dict[str, float]]:
        """Add the published fits, in units of |J1xy|, that lie within the box; none where the box leaves out one of their couplings."""
        inside, box = [], self.explorer.box
        for fit in KNOWN_FITS.values():
            if {*box.names, "J1xy"} == set(fit):
                point = {name: fit[name] / abs(fit["J1xy"]) for name in box.names}
                if all(low <= point[name] <= high for name, (low, high) in box.bounds().items()):
                    inside.append(point)
        return self.add_points(inside, "seeds")

    def add_lhs_samples(self, n_samples: int, seed: int | None = None) -> list[dict[str, float]]:
        """Add a Latin hypercube; the same again for the same seed (default: the explorer's)."""
        if n_samples < 1:
            raise InputError(f"n_samples = {n_samples}: give at least 1")
        rng = np.random.default_rng(self.seed if seed is None else seed)
        return self._record_points(self.explorer.new_points(latin_hypercube(n_samples, len(self.explorer.box.names), rng).tolist(), "lhs"))

    def select_next_points(self, n_points: int, strategy: str | None = None) -> list[dict[str, float]]:
        """The parameters of n_points new points, which are pending from now on."""
        return self._record_points(self.explorer.propose(n_points, strategy))

    def retry_failed(self) -> int:
        """Make the failed points pending again; how many there are."""
        ids = [point.id for point in self.explorer.failed]
        if ids:
            self._record("retry", ids=ids)
        return len(ids)

    # ---- simulations

    def classify_pending_points(self, simulation_func, n_jobs=1, checkpoint_interval=10, timeout=300, executor: Executor | None = None):
        """Simulate and classify all pending points; (completed, failed).

        timeout in seconds is a hard limit on each: the process is killed. Give an executor to run elsewhere; it stays open, and its own
        limits apply. What is not a module-level function cannot be sent to processes: with n_jobs = 1 it runs in this one, where the limit
        stops Python code only. On any exception, Ctrl-C included, what is done is saved; call again to go on.
        """
        points = self.explorer.pending
        if self.classify is None:
            raise InputError("no classifier was given: ActiveLearningExplorer(..., classify=...)")
        if checkpoint_interval < 1 or (timeout is not None and timeout <= 0):
            raise InputError(f"checkpoint_interval = {checkpoint_interval}, timeout = {timeout}: give at least 1, and more than 0 s")
        processes = processes_of(n_jobs)
        if not points:
            return 0, 0
        here = executor is None and self._must_run_here(simulation_func, processes, timeout)
        with contextlib.ExitStack() as stack:
            scratch = stack.enter_context(self._scratch())
            if executor is None and not here:
                executor = stack.enter_context(LocalExecutor(min(processes, len(points)), timeout_s=timeout, retries=0))
            number = 1 if here else min(getattr(executor, "processes", processes), len(points))
            workers = f"{number} parallel workers" if number > 1 else "one worker"
            progress = Progress(len(points), f"[Iteration {self.explorer.iteration}] Classifying {len(points)} points using {workers}...")
            stack.callback(progress.close)
            common = (simulation_func, self.classify, self.L, timeout if here else None, scratch)
            calls = {point: (point.id, self.explorer.box.parameters(point.unit), *common) for point in points}
            batch = Batch(scratch, progress, checkpoint_interval)
            try:
                if here:
                    for point, call in calls.items():
                        self._settle(point, partial(simulate_point, *call), batch)
                else:
                    self._run_elsewhere(calls, executor, batch)
            finally:
                self.save()
        return progress.done - progress.failed, progress.failed

    def _must_run_here(self, simulation_func, processes, timeout):
        try:
            pickle.dumps((simulation_func, self.classify))
        except Exception as error:
            if processes > 1:
                raise InputError(
                    f"the simulation cannot be sent to other processes ({error}); use a module-level function, or n_jobs=1"
                ) from error
            return True
        if not can_be_imported(simulation_func):
            if processes > 1:
                raise InputError(
                    "worker processes cannot import this program: put its calls under if __name__ == '__main__', or use n_jobs=1"
                )
            return True
        return processes == 1 and timeout is None

    def _run_elsewhere(self, calls, executor, batch):
        futures = self._recovered(executor, calls)
        waiting = [point for point in calls if point not in futures.values()]
        try:
            futures |= {executor.submit(simulate_point, *calls[point]): point for point in waiting}
            for future in as_completed(list(futures)):
                self._settle(futures[future], future.result, batch)
                del futures[future]
                if hasattr(executor, "forget"):
                    executor.forget(future)
        finally:  # nothing is left but after an exception
            for future, point in futures.items():
                if future.done() and not future.cancelled():
                    self._settle(point, future.result, batch)
                future.cancel()

    @staticmethod
    def _recovered(executor, calls) -> dict[Future, Point]:
        """Where the executor outlives its controller: the tasks that an earlier one left of these calls."""
        try:
            left = executor.recover() if hasattr(executor, "recover") else []
        except RuntimeError:  # asked before: this is not its first batch
            left = []
        wanted = {pickle.dumps(call[:-2]): point for point, call in calls.items()} if left else {}
        found = {future: wanted.get(pickle.dumps(args[:-2])) for future, fn, args, _ in left if fn is simulate_point}
        return {future: point for future, point in found.items() if point is not None}

    def _settle(self, point: Point, outcome: Callable[[], dict], batch: Batch) -> None:
        """Write down what came of a point: first its spins, then its event."""
        try:
            record = outcome()
        except Exception as error:  # of the executor: killed at the time limit, died, cannot be sent
            record = {"ok": False, "seconds": None, "host": None} | error_fields(error)
        shutil.rmtree(scratch_path(point.id, batch.scratch), ignore_errors=True)  # a killed process has left it
        if record["ok"]:
            self._save_spins(point.id, record)
            fields = {key: record[key] for key in ("phase", "confidence", "energy", "seconds", "host", "path", "numbers")}
            text = f"Point {point.id}: {record['phase']} (conf={record['confidence']:.2f}, E={record['energy']:.4f})"
        else:
            failure = TIMEOUT if record["error"] in (TaskTimeout.__name__, SimulationTimeout.__name__) else FAILED
            fields = {"failure": failure} | {key: record[key] for key in ("error", "message", "traceback", "seconds", "host")}
            text = f"Point {point.id}: {failure} ({record['error']}: {record['message'].splitlines()[0] if record['message'] else ''})"
        self._record("told", id=point.id, time=time.time(), **fields)
        batch.progress.count(not record["ok"], text)
        if batch.progress.done % batch.checkpoint_interval == 0:
            self.save()
            batch.progress.line(f"Checkpoint saved ({batch.progress.done}/{batch.progress.total} completed)")

    def _save_spins(self, id, record):
        path = self.spins_path(id)
        path.parent.mkdir(exist_ok=True)
        arrays = {name: np.frombuffer(record[name]).reshape(record["sites"], -1).astype(np.float32) for name in ("spins", "positions")}
        temporary = path.with_suffix(".partial.npz")
        np.savez_compressed(temporary, **arrays)
        os.replace(temporary, path)

    def spins_path(self, id: int) -> Path:
        """Where spins (N, 3) and positions (N, 2) of a simulated point are, as float32."""
        return self.output_dir / "spins" / f"{id}.npz"

    @contextlib.contextmanager
    def _scratch(self):
        root, note = tempfile.mkdtemp(prefix=f"{SCRATCH_PREFIX}{os.getpid()}_"), self.output_dir / "scratch.json"
        try:
            replace_file(note, json.dumps({"host": os.uname().nodename, "path": root}).encode())
            yield root
        finally:
            shutil.rmtree(root, ignore_errors=True)
            note.unlink(missing_ok=True)

    def _remove_left_scratch(self):
        """Of a run that was killed: its processes are gone, for we hold its directory."""
        note = self.output_dir / "scratch.json"
        if note.exists():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # damaged: the directories stay in the system's temporary one
                left = json.loads(note.read_bytes())
                path = Path(left["path"])
                if left["host"] == os.uname().nodename and path.name.startswith(SCRATCH_PREFIX):
                    shutil.rmtree(path, ignore_errors=True)
            note.unlink()

    def save(self) -> None:
        self.history.save(condensed(self.explorer))

    # ---- what is known

    def fit_surrogate(self) -> Surrogate:
        """Fitted to all labels so far. Raises InputError where there are none."""
        return self.explorer.surrogate()

    def predict_phase(self, params: Mapping[str, float]) -> tuple[str, dict[str, float]]:
        """(most probable phase, {phase: probability}) at a point."""
        surrogate = self.fit_surrogate()
        p = surrogate.probabilities(np.array([self.explorer.box.to_unit(params)]))[0]
        return surrogate.labels[int(p.argmax())], dict(zip(surrogate.labels, p.tolist()))

    def get_phase_boundaries(self, param1: str, param2: str, n_grid: int = 50, fixed: Mapping[str, float] | None = None) -> dict[str, Any]:
        """The predicted map of two parameters, the others at `fixed` or in the middle of their range.

        x (n_grid,), y (n_grid,), labels (C,), phases (n_grid, n_grid): indices into labels, [j, i] at (x[i], y[j]), confidence of that
        shape: the greatest probability, boundaries: rows (x, y, phase, phase) where neighbours on the grid differ.
        """
        box, surrogate = self.explorer.box, self.fit_surrogate()
        if param1 == param2 or not {param1, param2, *(fixed or {})} <= set(box.names) or n_grid < 2:
            raise InputError(f"map of {param1}, {param2} with {n_grid} points: give two of {', '.join(box.names)}, and at least 2 points")
        middle = dict(zip(box.names, [(low + high) / 2 for low, high in zip(box.low, box.high)])) | dict(fixed or {})
        axis = np.linspace(0, 1, n_grid)
        points = np.tile(box.to_unit(middle), (n_grid * n_grid, 1))
        points[:, box.names.index(param1)] = np.tile(axis, n_grid)
        points[:, box.names.index(param2)] = np.repeat(axis, n_grid)
        p = surrogate.probabilities(points)
        (x0, x1), (y0, y1) = box.bounds()[param1], box.bounds()[param2]
        x, y = x0 + axis * (x1 - x0), y0 + axis * (y1 - y0)
        boundaries = boundary_points(p.reshape(n_grid, n_grid, -1), x, y, surrogate.labels)
        phases, confidence = (array.reshape(n_grid, n_grid) for array in (p.argmax(axis=1), p.max(axis=1)))
        return {"x": x, "y": y, "labels": surrogate.labels, "phases": phases, "confidence": confidence, "boundaries": boundaries}

    def get_feature_importances(self) -> dict[str, float]:
        return self.explorer.importances()

    def counts(self) -> dict[str, int]:
        """How many points have each label, failed, or are pending; the most frequent first."""
        states = [answer.label or answer.failure for answer in self.explorer.answers.values()]
        return dict(Counter(states + ["pending"] * len(self.explorer.pending)).most_common())

    def print_summary(self) -> None:
        core = self.explorer
        print(f"{self.output_dir}: {len(core.points)} points, iteration {core.iteration}, strategy {core.strategy}, target {core.target}")
        for label, number in self.counts().items():
            energies = [answer.energy for answer in core.answers.values() if answer.label == label and answer.energy is not None]
            print(f"  {label:16s} {number:6d}" + (f"   energy per site {min(energies):.6f} to {max(energies):.6f}" if energies else ""))
        if len(self.counts().keys() - {"pending", FAILED, *NO_PHASE}) > 1:
            ranked = sorted(self.get_feature_importances().items(), key=lambda item: -item[1])
            print("  importance of parameters: " + ", ".join(f"{name} {share:.0%}" for name, share in ranked))

    # ---- the loop

    def run(self, simulation_func, n_initial=50, n_iterations=10, n_per_iteration=10, change_below=None, entropy_below=None, **how) -> str:
        """Explore until n_iterations have ended or a stop rule holds; why it ended. Called again after an interruption, it goes on.

        how: options of classify_pending_points. change_below, entropy_below: see Explorer.should_stop
        """
        core = self.explorer
        if not any(point.origin == "lhs" for point in core.points):
            self.add_known_seeds()
            self.add_lhs_samples(n_initial)
        while True:
            self.classify_pending_points(simulation_func, **how)
            if not any(point.iteration == core.iteration for point in core.points):
                if core.iteration > n_iterations:
                    return f"{n_iterations} iterations are done"
                if reason := core.should_stop(change_below, entropy_below):
                    return reason
                self.select_next_points(n_per_iteration)
            else:
                self._end_iteration()

    def _end_iteration(self):
        self._record("iteration", **vars(self.explorer.summarise()))
        self.save()


def boundary_points(p: np.ndarray, x: np.ndarray, y: np.ndarray, labels: Sequence[str]) -> list[tuple[float, float, str, str]]:
    """Where the most probable phase changes between neighbours of a grid: p (len(y), len(x), C), linear in between."""
    phase, found = p.argmax(axis=2), []
    for down, right in ((0, 1), (1, 0)):
        here, there = phase[: len(y) - down, : len(x) - right], phase[down:, right:]
        for j, i in np.argwhere(here != there):
            a, b, j2, i2 = here[j, i], there[j, i], j + down, i + right
            first, second = p[j, i, a] - p[j, i, b], p[j2, i2, b] - p[j2, i2, a]
            t = first / (first + second)
            found.append((float(x[i] + t * (x[i2] - x[i])), float(y[j] + t * (y[j2] - y[j])), labels[a], labels[b]))
    return found
