"""The loop of active learning, and the class that a script uses for it. A run that was interrupted goes on as if it had not been."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from executors.directories import claim_directory
from phases.box import DEFAULT_BOX, Box, latin_hypercube
from phases.classification import classify
from phases.errors import InputError
from phases.history import History, Run
from phases.learner import Explorer, Point
from phases.machine import processes_of
from phases.maps import phase_map
from phases.model import PARAMETERS, PUBLISHED_FITS
from phases.names import NO_PHASE
from phases.simulations import must_run_here, remove_left_scratch, run_calls, scratch_directory, told_fields
from phases.summaries import first_line, summary_text
from phases.surrogate import Surrogate


class Progress:
    """A tqdm bar on a terminal, plain lines elsewhere."""

    def __init__(self, total: int, heading: str):
        self.total, self.done, self.failed, self.started = total, 0, 0, time.monotonic()
        self.bar = None
        if sys.stderr.isatty():
            with contextlib.suppress(ImportError):
                from tqdm import tqdm

                self.bar = tqdm(total=total, desc="Classifying", unit="sim")
        if self.bar is None:
            print(heading, flush=True)

    def line(self, text: str) -> None:
        if self.bar is None:
            print(f"  {text}", flush=True)

    def count(self, failed: bool, text: str) -> None:
        self.done, self.failed = self.done + 1, self.failed + failed
        if self.bar is not None:
            self.bar.set_postfix_str(self._counts(), refresh=False)
            self.bar.update()
        self.line(text)

    def _counts(self):
        rate = 1 - self.failed / max(self.done, 1)
        return f"completed: {self.done - self.failed}, failed: {self.failed}, success_rate: {rate:.1%}"

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        seconds = max(time.monotonic() - self.started, 1e-9)
        self.line(f"{self.done}/{self.total} done in {seconds:.1f} s: {self._counts()}, {self.done / seconds:.2f} sim/s")


class ActiveLearningExplorer:
    """Explores phase diagrams: asks the explorer core for points, has them simulated, keeps the history in a directory of its own.

    output_dir    made if need be, and claimed until close(); what lies there already is continued
    L             lattice of L x L cells
    target_phase  name or member of the enum of phases; None: none
    strategy      one of phases.acquisition.STRATEGIES
    seed          of everything random
    parameters    Box or {name: (low, high)}
    classify      classify(spins (N, 3), L) -> object with phase (an enum member), confidence, path; a module-level function
    model         what else the labels depend on (JSON types); a history of another model is refused

    Attributes: `result`, the Run so far; `explorer`, its core. Raises InputError; DirectoryRefused where another run uses the directory.

    >>> with tempfile.TemporaryDirectory() as place:
    ...     with ActiveLearningExplorer(place, L=6, parameters={"J3xy": (0, 0.2)}, seed=1) as explorer:
    ...         parameters = explorer.add_points([{"J3xy": 0.1}])
    ...         done = explorer.classify_pending_points(partial(simulate, L=6, mode="screening"), timeout=None)
    ...         explorer.predict_phase({"J3xy": 0.1})
    [Iteration 0] Classifying 1 points using one worker...
      ...
    ('FM', {'FM': 1.0})
    """

    def __init__(
        self, output_dir, L=12, target_phase=None, strategy="balanced", seed=0, parameters=DEFAULT_BOX, classify=classify, model=None
    ):
        self.L, self.seed, self.classify = L, seed, classify
        box = parameters if isinstance(parameters, Box) else Box.of(parameters)
        self.explorer = Explorer(box, seed, strategy, getattr(target_phase, "name", target_phase), NO_PHASE)
        self._resources, self._announced = contextlib.ExitStack(), False
        with contextlib.ExitStack() as until_sound:
            self.output_dir = until_sound.enter_context(claim_directory(output_dir))
            self.history = History(self.output_dir, box, {"L": L, **(model or {})}, seed)
            until_sound.callback(self.history.file.close)
            self.result = Run(self.output_dir, self.history.header, self.explorer, {})
            for event in self.history.past:
                self.result.apply(event)
            remove_left_scratch(self._scratch_note)
            self._resources = until_sound.pop_all()

    def close(self) -> None:
        """Save, and give the directory back."""
        if not self.history.file.closed:
            self.history.sync()
        self._resources.close()

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.close()

    @property
    def _scratch_note(self):
        return self.output_dir / "scratch.json"

    def _record(self, event, **fields):
        if not self._announced:
            self.history.append("opened", time=time.time(), host=os.uname().nodename, pid=os.getpid())
            self._announced = True
        self.result.apply(self.history.append(event, **fields))

    def _record_points(self, points: Sequence[Point]) -> list[dict[str, float]]:
        parameters = [self.explorer.box.parameters(point.unit) for point in points]
        if points:
            ids, units = [point.id for point in points], [point.unit for point in points]
            self._record("asked", iteration=points[0].iteration, origin=points[0].origin, ids=ids, points=units, parameters=parameters)
        return parameters

    # ---- points

    def add_points(self, points: Iterable[Mapping[str, float]], origin: str = "user") -> list[dict[str, float]]:
        """Add points by their parameters; those known already are left out, so that adding twice changes nothing. Raises InputError."""
        return self._record_points(self.explorer.new_points([self.explorer.box.to_unit(point) for point in points], origin))

    def add_known_seeds(self) -> list[dict[str, float]]:
        """Add the published fits, in units of |J1xy|, that lie within the box; none where it is not one of all their couplings."""
        box = self.explorer.box
        inside = [
            {name: fit[name] for name in box.names}
            for fit in PUBLISHED_FITS.values()
            if set(box.names) == set(PARAMETERS) and all(low <= fit[name] <= high for name, (low, high) in box.bounds().items())
        ]
        return self.add_points(inside, "seeds")

    def add_lhs_samples(self, n_samples: int, seed: int | None = None) -> list[dict[str, float]]:
        """Add a Latin hypercube; the same again for the same seed (default: the explorer's). Raises InputError."""
        if n_samples < 1:
            raise InputError(f"n_samples = {n_samples}: give at least 1")
        rng = np.random.default_rng(self.seed if seed is None else seed)
        return self._record_points(self.explorer.new_points(latin_hypercube(n_samples, len(self.explorer.box.names), rng).tolist(), "lhs"))

    def select_next_points(self, n_points: int, strategy: str | None = None) -> list[dict[str, float]]:
        """The parameters of n_points new points, which are pending from now on. Raises InputError."""
        return self._record_points(self.explorer.propose(n_points, strategy))

    def retry_failed(self) -> int:
        """Make the failed points pending again; how many there are."""
        ids = [point.id for point in self.explorer.failed]
        if ids:
            self._record("retry", ids=ids)
        return len(ids)

    # ---- simulations

    def classify_pending_points(self, simulation_func, n_jobs=1, checkpoint_interval=10, timeout=300, executor=None) -> tuple[int, int]:
        """Simulate and classify all pending points; (completed, failed). Raises InputError.

        timeout in seconds is a hard limit on each: the process is killed. Give an executor to run elsewhere; it stays open, and its own
        limits apply. What is not a module-level function cannot be sent to processes: with n_jobs = 1 it runs in this one, where the limit
        stops Python code only. Every result is in the history at once; it is forced to disk each checkpoint_interval simulations. On any
        exception, Ctrl-C included, what is done is saved; call again to go on.
        """
        pending = self.explorer.pending
        if self.classify is None:
            raise InputError("no classifier was given: ActiveLearningExplorer(..., classify=...)")
        if checkpoint_interval < 1 or (timeout is not None and timeout <= 0):
            raise InputError(f"checkpoint_interval = {checkpoint_interval}, timeout = {timeout}: give at least 1, and more than 0 s")
        processes = processes_of(n_jobs)
        if not pending:
            return 0, 0
        here = executor is None and must_run_here(simulation_func, self.classify, processes, timeout)
        with contextlib.ExitStack() as stack:
            scratch = stack.enter_context(scratch_directory(self._scratch_note))
            if executor is None and not here:
                from executors.local import LocalExecutor

                executor = stack.enter_context(LocalExecutor(min(processes, len(pending)), timeout_s=timeout, retries=0))
            number = 1 if here else min(getattr(executor, "processes", processes), len(pending))
            workers = f"{number} parallel workers" if number > 1 else "one worker"
            progress = Progress(len(pending), f"[Iteration {self.explorer.iteration}] Classifying {len(pending)} points using {workers}...")
            stack.callback(progress.close)
            common = (simulation_func, self.classify, self.L, timeout if here else None, scratch)
            calls = {point.id: (point.id, self.result.parameters(point.id), *common) for point in pending}
            try:
                run_calls(calls, executor, partial(self._settle, progress, checkpoint_interval))
            finally:
                self.history.sync()
        return progress.done - progress.failed, progress.failed

    def _settle(self, progress: Progress, checkpoint_interval: int, id: int, record: dict[str, Any]) -> None:
        """Write down what came of a point: first its spins, then its event."""
        fields = told_fields(record)
        if record["ok"]:
            self.result.save_spins(id, record)
            text = f"Point {id}: {record['phase']} (conf={record['confidence']:.2f}, E={record['energy']:.4f})"
        else:
            text = f"Point {id}: {fields['failure']} ({record['error']}: {first_line(record['message'])})"
        self._record("told", id=id, time=time.time(), **fields)
        progress.count(not record["ok"], text)
        if progress.done % checkpoint_interval == 0:
            self.history.sync()
            progress.line(f"Checkpoint saved ({progress.done}/{progress.total} completed)")

    # ---- what is known

    def fit_surrogate(self) -> Surrogate:
        """Fitted to all labels so far. Raises InputError where there are none."""
        return self.explorer.surrogate()

    def predict_phase(self, params: Mapping[str, float]) -> tuple[str, dict[str, float]]:
        """(most probable phase, {phase: probability}) at a point. Raises InputError."""
        surrogate = self.fit_surrogate()
        p = surrogate.probabilities(np.array([self.explorer.box.to_unit(params)]))[0]
        return surrogate.labels[int(p.argmax())], dict(zip(surrogate.labels, p.tolist()))

    def get_phase_boundaries(self, param1: str, param2: str, n_grid: int = 50, fixed: Mapping[str, float] | None = None) -> dict[str, Any]:
        """The predicted map of two parameters, the others at `fixed` or in the middle: see maps.phase_map. Raises InputError."""
        return phase_map(self.explorer.box, self.fit_surrogate(), param1, param2, fixed or {}, n_grid)

    def get_feature_importances(self) -> dict[str, float]:
        """How much each parameter matters; the shares add up to 1. Raises InputError where there are no labels."""
        return self.explorer.importances()

    def print_summary(self) -> None:
        print(summary_text(self.result))

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
            if any(point.iteration == core.iteration for point in core.points):
                self._record("iteration", **vars(core.summarise()))
                self.history.sync()
                continue
            if core.iteration > n_iterations:
                return f"{n_iterations} iterations are done"
            if reason := core.should_stop(change_below, entropy_below):
                return reason
            self.select_next_points(n_per_iteration)
