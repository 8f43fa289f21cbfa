#!/usr/bin/env python3
"""Explore the phase diagram of a honeycomb magnet, or of any simulation, by parallel active learning.

    python explorer.py --n-jobs 8                              # 54 + 100 points of the seven couplings of BaCo2(AsO4)2
    python explorer.py --n-jobs 8                              # again: goes on where it was interrupted
    python explorer.py --skip-simulation --report report.html  # pictures and tables of what is there
    python explorer.py --parameters '{"J3xy": [0, 1], "J1z": [-1, 1]}' --output-dir plane --plots
    python explorer.py --simulation my_model:simulate --parameters box.json --n-jobs -1
    python explorer.py --point 17
    python explorer.py --test-parallel --n-jobs 8
    python explorer.py --benchmark

How an exploration goes (the sections below, in this order):
    Errors                      one root, one line for the user
    Model                       couplings, lattice, energy, the Luttinger-Tisza bound
    Annealer                    heat bath on magnetic cells and the whole lattice, then T = 0 relaxation
    Phases: names               the list, and what a classification says
    Phases: reciprocal          sublattice-resolved structure factor, the places of a wave vector
    Phases: wave vectors        peaks, their members, harmonics
    Phases: real space          topological charge and chirality
    Phases: decisions           from wave vectors to a name, with a margin at each step
    Phases: ideal states        what every name looks like
    Parameter box               names and ranges, unit points
    Surrogate                   phase probabilities, a Gaussian-process classifier
    Acquisition                 where to simulate next
    Explorer core               ask and tell
    History                     append-only events, snapshots
    Simulations                 one point in a worker, progress
    Active learning             the class that a script uses: points, batches, the loop
    Reading a run               a history without claiming it; summaries
    Plots                       pictures, with matplotlib
    Report                      one HTML page
    Simulations of this program what a worker is asked to call
    Test of parallel running    sequential against parallel
    Benchmark                   the figures asked for, and what is reached
    Command line                options, checks, main

Glossary: L x L cells, N = 2 L^2 sites, s sublattice (0 = A, 1 = B), R replicas; q = (h, k) = h b1 + k b2 with a_i . b_j = 2 pi delta_ij;
M = (1/2, 0), K = (2/3, 1/3) and their images; step = |b| / L, the spacing of the allowed q; weight = share of the total intensity; energies
per site and couplings in units of |J1xy|; d parameters, n labelled points, m points asked about, C phases; unit point = parameters scaled
to [0, 1]^d; label = name of a phase; iteration = a batch of points chosen together, 0 the initial ones; probes = fixed points where
predictions are compared.
References: arXiv:2205.15262 (XXZ fit of the model), arXiv:2304.06062 (its spin-1/2 ground states, which differ from these);
Luttinger, Tisza, Phys. Rev. 70 (1946) 954; Miyatake et al., J. Phys. C 19 (1986) 2539 (heat bath); Creutz, Phys. Rev. D 36 (1987) 515
(over-relaxation); Berg, Luescher, Nucl. Phys. B190 (1981) 412 (topological charge); Rasmussen, Williams, Gaussian Processes for
Machine Learning, 2006; arXiv:2409.07042 (active learning of a honeycomb phase diagram).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from executors import __version__
from executors.condor import CondorExecutor
from executors.directories import claim_directory, process_exists, read_claim
from executors.errors import CondorMissing, DirectoryRefused, ExecutorError
from executors.files import ensure_standard_streams, replace_file
from executors.job_runs import remove_run
from executors.local import LocalExecutor
from executors.schedd import check_condor_tools
from executors.submit_file import check_submit_options, split_options
from executors.tasks import LONGEST_TIMEOUT_S
from phases.acquisition import STRATEGIES, check_strategy
from phases.active_learning import KNOWN_FITS, NO_PHASE, ActiveLearningExplorer
from phases.annealer import MODES, simulate
from phases.box import DEFAULT_BOX, Box, latin_hypercube
from phases.classification import classify
from phases.console import say
from phases.errors import ExplorerError, InputError
from phases.history import FIRST_BYTES
from phases.ideal_states import ideal_state
from phases.learner import Explorer
from phases.model import PARAMETERS, Couplings
from phases.names import SMALLEST_RESOLVED, PhaseType
from phases.pictures import PlotsMissing, check_map, draw_all, draw_point, png_bytes
from phases.report import PAGE_BEGINS, report_page
from phases.runs import Run, point_text, read_history, summary_record, summary_text
from phases.simulations import processes_of
from phases.spin_simulations import simulate_spins, with_fixed
from phases.surrogate import fit_labels

SHORTEST_TEST_S = 3.0  # of sequential time; below it a speed-up says nothing
ALLOWED_SHARE = 0.7  # of min(processes, cores): what a machine must reach that has other work too
ROUNDS = 4  # at most; the best time of each kind counts
POSSIBLE = 1.05  # times the number of processes: a larger speed-up is one of a disturbed measurement
RULER = "=" * 50


def start_worker() -> None:
    """A task that ends once its process has loaded this module."""
    time.sleep(0.05)


def timed_batch(plan: Plan, number: int, processes: int, timeout_s: float) -> tuple[float, dict[int, tuple]]:
    """Seconds for so many simulations, net of the start of processes, and (label or failure, energy) of each point."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        where = {"parameters": plan.box, "classify": classify, "model": plan.model, "seed": plan.seed}
        run = stack.enter_context(ActiveLearningExplorer(Path(scratch) / "run", plan.L, **where))
        run.add_lhs_samples(number)
        executor = stack.enter_context(LocalExecutor(processes, timeout_s=timeout_s))
        executor.warm_up()
        for future in [executor.submit(start_worker) for _ in range(processes)]:
            future.result()
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run.classify_pending_points(plan.simulation, executor=executor, timeout=timeout_s)
        seconds = time.perf_counter() - started
        return seconds, {id: (answer.label or answer.failure, answer.energy) for id, answer in run.explorer.answers.items()}


@dataclass(frozen=True)
class Comparison:
    """Times and results of the same simulations by one process and by several."""

    alone_s: float
    together_s: float
    wanted: Mapping[int, tuple]
    found: Mapping[int, tuple]

    @property
    def speedup(self) -> float:
        return self.alone_s / self.together_s


def compare_times(plan: Plan, number: int, processes: int, timeout_s: float, needed: float) -> Comparison:
    """In rounds, one after the other, until the speed-up is as needed and possible, or results differ: other work comes and goes."""
    alone = together = math.inf
    for _ in range(ROUNDS):
        seconds, wanted = timed_batch(plan, number, 1, timeout_s)
        alone = min(alone, seconds)
        seconds, found = timed_batch(plan, number, processes, timeout_s)
        together = min(together, seconds)
        if wanted != found or needed <= alone / together <= POSSIBLE * processes:
            break
    return Comparison(alone, together, wanted, found)


def usable_cores() -> float:
    """Processors this process may use: its affinity, and the quota of its control group where there is one."""
    cores = float(processes_of(-1))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, int(quota) / int(period))
    return cores


def run_parallel_test(options: Options, plan: Plan) -> int:
    """The same simulations by one process and by several; 1 where results differ or too little was gained."""
    number, cores = options.test_parallel, usable_cores()
    processes = processes_of(options.n_jobs if options.n_jobs != 1 else -1)
    needed = ALLOWED_SHARE * min(processes, cores)
    print(f"PARALLEL SIMULATION TEST\n{RULER}")
    print(f"[1] {number} LHS test samples, {plan.mode} simulations, L = {plan.L}")
    print(f"[2] Testing SEQUENTIAL execution (n_jobs=1) and PARALLEL execution (n_jobs={processes})...", flush=True)
    comparison = compare_times(plan, number, processes, options.timeout, needed)
    alone, together = comparison.alone_s, comparison.together_s
    print(f"    Sequential time: {alone:.1f}s\n    Time per simulation: {alone / number:.2f}s")
    print(f"    Parallel time: {together:.1f}s\n    Time per simulation: {together / number:.2f}s")
    print(f"\nRESULTS\n{RULER}")
    print(f"Sequential time:  {alone:.1f}s\nParallel time:    {together:.1f}s ({processes} workers)")
    print(f"Speedup:          {comparison.speedup:.2f}x\nEfficiency:       {comparison.speedup / processes:.1%}\n")
    return judge_parallel(comparison, processes, cores)


def judge_parallel(comparison: Comparison, processes: int, cores: float) -> int:
    """Says what is wrong; 1 if anything is. The rule: at least ALLOWED_SHARE of min(processes, cores), processes ready."""
    code, wanted, found = 0, comparison.wanted, comparison.found
    unlike = [id for id in sorted(wanted.keys() | found.keys()) if wanted.get(id) != found.get(id)]
    if unlike:
        shown = ", ".join(f"point {id}: {wanted.get(id)} and {found.get(id)}" for id in unlike[:3])
        print(f"✗ {len(unlike)} of {len(wanted)} results differ: {shown}")
        code = 1
    needed = ALLOWED_SHARE * min(processes, cores)
    rule = f"{needed:.2f}x = {ALLOWED_SHARE} x min({processes} processes, {cores:g} cores)"
    if comparison.alone_s < SHORTEST_TEST_S:
        print(f"- {comparison.alone_s:.1f} s are too short to judge the speed-up by {rule}: give more simulations, or --accurate")
    elif comparison.speedup < needed:
        print(f"✗ the speed-up is below {rule} in each of {ROUNDS} rounds; load of this machine: {os.getloadavg()[0]:.1f}")
        code = 1
    elif comparison.speedup > POSSIBLE * processes:
        print(
            f"✗ more than {processes}x is not possible: other work disturbed the sequential run; load {os.getloadavg()[0]:.1f}, try again"
        )
        code = 1
    if not code:
        print(f"✓ Parallel processing is working! Same labels and energies; asked for: {rule}")
    return code


@dataclass(frozen=True)
class Measurement:
    reached: str
    good: bool


@dataclass(frozen=True)
class Figure:
    """A row of the benchmark: measure(full) makes the measurement, quickly or in full."""

    what: str
    goal: str
    measure: Callable[[bool], Measurement]
    quick: bool = True  # also without `all`


def spiral_energy(j: float, h: float) -> float:
    """Energy per site of the spiral q = h b on Γ-M, D = E = F = G = 0, J3xy = j."""
    c = math.cos(2 * math.pi * h)
    return -0.5 * math.sqrt((2 * j - 1) ** 2 + 4 + j**2 + 2 * ((2 - 6 * j) * c + j * (2 * j - 1) * (2 * c * c - 1)))


def known_set(name: str) -> dict[str, float]:
    """A published fit in units of |J1xy|."""
    fit = KNOWN_FITS[name]
    return {parameter: fit[parameter] / abs(fit["J1xy"]) for parameter in PARAMETERS}


def measure_energies(full: bool) -> Measurement:
    """FM, zigzag, spirals that fit the lattice; where a modulated state is lower still, that counts as reached."""
    worst, below, sizes = 0.0, 0, (("screening", 8), ("fast", 12), ("accurate", 24))
    cases = [
        (mode, L, j)
        for mode, L in sizes[: 3 if full else 2]
        for j in ((0.1, 0.2, 0.26, 0.3, 0.35, 0.45, 0.6) if full else (0.2, 0.3, 0.45))
    ]
    for mode, L, j in cases:
        result = simulate({"J3xy": j, "J1z": 0.2, "J3z": -0.3}, L, mode)
        exact = min(-1.5 + 1.5 * j, -(1 + 3 * j) / 2, *(spiral_energy(j, m / L) for m in range(L // 2 + 1)))
        worst, below = max(worst, result.energy - exact), below + (result.energy < result.bound - 1e-9)
    return Measurement(f"{len(cases)} states: at most {max(worst, 0):.0e} above, {below} below the bound", worst < 1e-6 and not below)


def measure_boundaries(full: bool) -> Measurement:
    """Last FM and first zigzag on a grid of j."""
    found = []
    for exact, step, low, high in ((0.25, 0.01, "FM", None), ((math.sqrt(17) - 1) / 8, 0.01, None, "ZIGZAG")):
        L, j = (24, "accurate") if full else (12, "fast")
        values = exact + step * np.array([-1.5, -0.5, 0.5, 1.5])
        names = [classify(simulate({"J3xy": value, "J1z": 0.2, "J3z": -0.3}, L, j).spins, L).phase.name for value in values]
        inside = [name in (low, high) for name in names]
        found.append(inside[0] == bool(low) and inside[-1] == bool(high))
    return Measurement(f"{sum(found)} of 2, grid step 0.01", all(found))


def measure_known(name: str, best: float, full: bool) -> Measurement:
    result = simulate(known_set(name), mode="accurate" if full else "fast")
    return Measurement(f"{result.energy:.6f}, bound {result.bound:.6f}", result.bound - 1e-9 <= result.energy <= best + 5e-7)


def random_sets(number: int) -> list[dict[str, float]]:
    values = np.random.default_rng(1).uniform(-1, 1, (number, len(PARAMETERS)))
    return [dict(zip(PARAMETERS, row.tolist())) for row in values]


def measure_time(mode: str, goal_s: float, full: bool) -> Measurement:
    """Mean processor time of random sets: other programs on the machine do not count."""
    sets, started = random_sets(20 if full else 3), time.process_time()
    for parameters in sets:
        simulate(parameters, mode=mode)
    seconds = (time.process_time() - started) / len(sets)
    return Measurement(f"{seconds:.2f} s", seconds <= goal_s)


def measure_accurate(full: bool) -> Measurement:
    sets = random_sets(50 if full else 3)
    good = sum(simulate(p, mode="accurate").energy <= simulate(p, mode="fast").energy + 1e-10 for p in sets)
    return Measurement(f"{good} of {len(sets)}", good == len(sets))


LABEL_CASES = (
    ("ferromagnet", {}, "FM"),
    ("neel", {}, "AFM"),
    *(("zigzag", {"domain": k}, "ZIGZAG") for k in range(3)),
    *(("stripy", {"domain": k}, "SINGLE_Q") for k in range(3)),
    ("order_120", {}, "ORDER_120"),
    *(("spiral", {"q": (m / 12, 0)}, "INCOMM_GAMMA_M") for m in (1, 2, 3, 5)),
    *(("spiral", {"q": (m / 12, -m / 12)}, "INCOMM_GAMMA_K") for m in (1, 2, 3)),
    ("meron", {"q": (1 / 6, 0), "q2": (0, 1 / 6)}, "MERON_ANTIMERON"),
    ("triple_q", {"q": (1 / 6, 0), "q2": (0, 1 / 6), "q3": (-1 / 6, -1 / 6)}, "TRIPLE_Q"),
    ("random", {}, "DISORDERED"),
)


def transformed(spins: np.ndarray, L: int, rng: np.random.Generator) -> np.ndarray:
    """The state (N, 3) translated, turned by 60° about a hexagon, mirrored or not, and turned in spin space."""
    i, j = np.divmod(np.arange(L * L), L)
    cells = spins.reshape(L, L, 2, 3)
    cells = np.roll(cells, tuple(rng.integers(L, size=2).tolist()), axis=(0, 1))
    for _ in range(rng.integers(6)):  # (i, j, A) -> (-j, i + j, B of the cell below), (i, j, B) -> (-j - 1, i + j + 1, A)
        turned = np.empty_like(cells)
        turned[-j % L, (i + j) % L, 1] = cells[i, j, 0].reshape(-1, 3)
        turned[(-j - 1) % L, (i + j + 1) % L, 0] = cells[i, j, 1].reshape(-1, 3)
        cells = turned
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return cells.reshape(-1, 3) @ rotation


def measure_labels(full: bool) -> Measurement:
    """Ideal and annealed states under random symmetries of lattice and spin space."""
    rng, L, good, tried = np.random.default_rng(2), 12, 0, 0
    states = [(ideal_state(name, L, rng=rng, **more), label) for name, more, label in LABEL_CASES]
    for parameters in random_sets(20 if full else 4):
        spins = simulate(parameters, L).spins
        states.append((spins, classify(spins, L).phase.name))
    for spins, label in states:
        for _ in range(20 if full else 4):
            good += classify(transformed(spins, L, rng), L).phase.name == label
            tried += 1
    return Measurement(f"{good} of {tried}", good == tried)


def plane_labels(units: np.ndarray) -> np.ndarray:
    """Luttinger-Tisza labels (n,) of unit points (n, 2): J3xy and J1z from -1 to 1, the other couplings 0, where the best q is on Γ-M."""
    j, z = 2 * units[:, 0] - 1, 2 * units[:, 1] - 1
    wave = np.exp(2j * np.pi * np.linspace(0, 0.5, 201))
    strength = np.abs(j[:, None] * (2 * wave + wave.conj()) - (2 + wave))
    k, best = strength.argmax(1), strength.max(1)
    names = np.where(k == 0, "FM", np.where(k == 200, "ZIGZAG", "INCOMM_GAMMA_M"))
    return np.where(3 * np.abs(z) > best, np.where(z > 0, "AFM", "FM_Z"), names)


def wrong_labels(surrogate: Any) -> float:
    """Share of the 40 x 40 grid where its label is wrong."""
    centres = np.stack(np.meshgrid(*[(np.arange(40) + 0.5) / 40] * 2), axis=-1).reshape(-1, 2)
    return float(np.mean(surrogate.predict(centres) != plane_labels(centres)))


def explored_plane(strategy: str, seed: int, total: int = 128, batch: int = 9) -> float:
    """Wrong labels after so many points, 20 of them a Latin hypercube, the rest chosen nine at a time."""
    explorer = Explorer(Box.of({"J3xy": (-1, 1), "J1z": (-1, 1)}), seed, strategy, "ZIGZAG")
    explorer.register(explorer.new_points(latin_hypercube(20, 2, np.random.default_rng(seed)).tolist(), "lhs"))
    while explorer.pending:
        for point in explorer.pending:
            explorer.tell(point.id, str(plane_labels(np.array([point.unit]))[0]))
        if len(explorer.points) < total:
            explorer.ask(min(batch, total - len(explorer.points)))
    return wrong_labels(explorer.surrogate())


def measure_sampling(full: bool) -> Measurement:
    """The default strategy, with a regular grid and random points of the same number beside it."""
    seeds = range(5 if full else 1)
    ours = [explored_plane("balanced", seed) for seed in seeds]
    even = np.array([((i + 0.5) / 16, (k + 0.5) / 8) for k in range(8) for i in range(16)])
    drawn = [np.random.default_rng(seed).random((128, 2)) for seed in seeds]
    gridded, random = ([wrong_labels(fit_labels(u, plane_labels(u), np.ones(len(u)))) for u in some] for some in ([even], drawn))
    return Measurement(f"{max(ours):.1%}; grid {gridded[0]:.1%}, random {np.mean(random):.1%}", max(ours) <= 0.02)


def measure_speedup(full: bool) -> Measurement:
    plan = make_plan(Options(screening=not full))
    number = 60 if full else 40
    comparison = compare_times(plan, number, 2, 300.0, 1.85)
    same = comparison.wanted == comparison.found
    good = same and 1.85 <= comparison.speedup <= 2 * POSSIBLE
    return Measurement(f"{comparison.speedup:.3f}x, results {'the same' if same else 'DIFFER'}", good)


def measure_chaos(full: bool) -> Measurement:
    """A run whose simulations raise, hang and crash, killed five times; every point must be accounted for, none mislabelled."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "run"
        command = [sys.executable, str(Path(__file__).resolve()), "--simulation", f"{Path(__file__).stem}:spoilt_simulation"]
        command += ["--parameters", '{"x": [0, 1]}', "--n-initial", "150", "--n-iterations", "5", "--n-jobs", "2", "--timeout", "1.5"]
        command += ["--lattice-size", "6", "--strategy", "random", "--quiet", "--output-dir", str(directory)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")])}
        for kill_after_s in (2.0, 3.0, 4.0, 3.0, 2.5, None):
            process = subprocess.Popen(command, env=environment)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(kill_after_s)
            process.kill()
            process.wait()
        run = read_history(directory)
        right = {id: "ZIGZAG" if run.parameters(id)["x"] > 0.5 else "FM" for id in run.labelled}
        mislabelled = sum(event["phase"] != right[id] for id, event in run.labelled.items())
        fates = [zlib.crc32(repr(run.parameters(id)["x"]).encode()) % 100 < 20 for id in range(len(run.explorer.points))]
        good = len(run.told) == 200 and not mislabelled and sum(fates) == len(run.failures)
        return Measurement(f"{len(run.told)} accounted for, {len(run.failures)} failed as they should, {mislabelled} mislabelled", good)


FIGURES = (
    Figure("exact energies: FM, spiral, zigzag", "to 1e-6, none below the bound", measure_energies),
    Figure("boundaries j = 1/4 and 0.3904", "within one grid step", measure_boundaries),
    Figure("fitting_param_2, energy per site", "<= -1.127207", partial(measure_known, "fitting_param_2", -1.127207)),
    Figure("emily, energy per site", "<= -1.055194", partial(measure_known, "emily", -1.055194)),
    Figure("time of a screening simulation", "<= 0.3 s (reference 3 s)", partial(measure_time, "screening", 0.3)),
    Figure("time of a fast simulation", "<= 1.5 s (reference 15 s)", partial(measure_time, "fast", 1.5)),
    Figure("time of an accurate simulation", "<= 9 s (reference 90 s)", partial(measure_time, "accurate", 9.0)),
    Figure("accurate never above fast", "all", measure_accurate),
    Figure("labels under symmetries", "all right", measure_labels),
    Figure("wrong labels with 128 of 1600 points", "<= 2 % (anchor 5 %)", measure_sampling),
    Figure("speed-up with two processes", ">= 1.85x", measure_speedup),
    Figure("200 points, 20 % spoilt, killed 5 times", "200, none mislabelled", measure_chaos, quick=False),
)


def run_benchmark(options: Options) -> int:
    """Prints each figure as it is measured; 1 where one misses its goal."""
    full = options.benchmark == "all"
    print(f"{'figure':42}{'goal':32}{'reached':56}{'s':>6}")
    missed = 0
    for figure in FIGURES:
        if not (full or figure.quick):
            continue
        started = time.perf_counter()
        result = figure.measure(full)
        missed += not result.good
        mark = "" if result.good else "  MISSED"
        print(f"{figure.what:42}{figure.goal:32}{result.reached:56}{time.perf_counter() - started:6.1f}{mark}", flush=True)
    print(f"{'in full' if full else 'quick subset, --benchmark all for the figures in full'}; {missed} missed")
    return 1 if missed else 0


PROGRAM_MODEL = "honeycomb 1"  # changes when the same parameters give other states or labels
WORKER_MB, CELL_MB = 40.0, 0.02  # resident memory of a worker, and more for each lattice cell; measured: 45, 51, 65 at L = 12, 24, 36
FILES_A_WORKER, FILES_OURS = 4, 40  # open files: two pipes and a sentinel for each worker; our own
ACTIONS = ("skip_simulation", "status", "point", "stop", "dry_run", "test_parallel", "benchmark")  # one of them at a time


def an_option(default: Any, text: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": text, **more})


@dataclass(frozen=True)
class Options:
    """Every option, its default and what it does; the command line is made from this."""

    output_dir: str = an_option("exploration", "directory of the run: history, spins, pictures", metavar="DIR")
    n_jobs: int = an_option(1, "processes on this machine; -1: one for each CPU", metavar="N")
    n_initial: int = an_option(50, "points of the Latin hypercube at the start, beside the published fits", metavar="N")
    n_iterations: int = an_option(10, "iterations after that", metavar="N")
    n_per_iteration: int = an_option(10, "points chosen in each iteration", metavar="N")
    lattice_size: int | None = an_option(None, "L of L x L cells (default: the mode's; screening 8, fast 12, accurate 24)", metavar="L")
    strategy: str = an_option("balanced", f"how points are chosen: {', '.join(STRATEGIES)}")
    target_phase: str | None = an_option(
        None, "phase that the strategies balanced and target look for, such as MERON_ANTIMERON", metavar="NAME"
    )
    fast_mode: bool = an_option(False, "L = 12 (the default mode)")
    screening: bool = an_option(False, "L = 8, a third of the time")
    accurate: bool = an_option(False, "L = 24, never above fast")
    seed: int = an_option(0, "of everything random; the same seed gives the same run, whatever --n-jobs", metavar="N")
    timeout: float = an_option(300.0, "hard limit for each simulation", metavar="S")
    checkpoint_interval: int = an_option(10, "simulations between two snapshots (each simulation is in the history at once)", metavar="N")
    stop_label_change: float | None = an_option(
        None, "stop when less than this share of the predicted labels changed in each of two iterations, such as 0.01", metavar="X"
    )
    stop_entropy: float | None = an_option(None, "stop when the mean entropy of the predictions is below this, in nats", metavar="X")
    simulation: str | None = an_option(
        None, "your simulation: f(parameters) -> spins (N, 3), positions (N, 2), energy per site, N = 2 L^2", metavar="MODULE:FUNCTION"
    )
    parameters: str | None = an_option(
        None, 'parameter box, a JSON file or text: {"J3xy": [0, 1], "J1z": [-1, 1], "D": 0.1}; a single number stays fixed', metavar="FILE"
    )
    resume: bool = an_option(False, "go on with the run of the directory (as the same command does), or say that there is none")
    retry_failed: bool = an_option(False, "simulate the failed points again")
    fresh_start: bool = an_option(False, "delete the run of the directory first, its history and spins")
    skip_simulation: bool = an_option(False, "simulate nothing: summary, --plots and --report of what is there")
    plots: bool = an_option(False, "write pictures into the directory's plots/ (needs matplotlib)")
    report: str | None = an_option(None, "write one self-contained HTML page", metavar="FILE")
    map: str | None = an_option(None, "the two parameters of the phase map (default: the two that matter most)", metavar="NAME,NAME")
    at: str | None = an_option(None, "where the map cuts the other parameters (default: the middle of each)", metavar="NAME=VALUE,...")
    point: int | None = an_option(None, "show a point, its decision path and its pictures, and stop", metavar="ID")
    status: bool = an_option(False, "show how far the run of the directory is, and stop")
    dry_run: bool = an_option(False, "say what would be done, and stop; writes nothing")
    test_parallel: int | None = an_option(
        None, "run N simulations (default 20) in sequence and in parallel; fails where results differ", nargs="?", const=20, metavar="N"
    )
    benchmark: str | None = an_option(
        None, "measure the published figures, a quick subset or all of them", nargs="?", const="quick", metavar="all"
    )
    condor: bool = an_option(False, "run on an HTCondor pool; this program must be on a host that can submit jobs")
    check_interval: float = an_option(5.0, "seconds between two looks at HTCondor's queue", metavar="S")
    condor_option: tuple[str, ...] = an_option(
        (), "a further line for the submit file, such as accounting_group=x; repeatable", metavar="KEY=VALUE"
    )
    transfer_files: bool = an_option(False, "let HTCondor transfer files: the execute nodes do not see the directory")
    request_memory: int = an_option(1024, "memory for a job", metavar="MB")
    max_jobs: int = an_option(5000, "jobs in HTCondor's queue at a time", metavar="N")
    stop: bool = an_option(False, "remove the jobs that a run of --condor left in HTCondor's queue, and stop")
    verbose: bool = an_option(False, "print the decision path of each point and the traceback of each failure at the end")
    quiet: bool = an_option(False, "no progress, no summary")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="explorer.py",
        description="Explore the phase diagram of a honeycomb magnet, or of any simulation, by parallel active learning.",
        epilog="exit codes: 0 done; 1 no point could be labelled, or a check failed; 2 wrong usage; 130 interrupted",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    kinds = {"int": int, "float": float, "int | None": int, "float | None": float}
    for option in fields(Options):
        names = dict.fromkeys((f"--{option.name.replace('_', '-')}", f"--{option.name}"))
        more = dict(option.metadata)
        if option.type != "bool" and option.default not in (None, ()) and "default" not in more["help"]:
            more["help"] += " (default: %(default)s)"
        if option.type == "bool":
            parser.add_argument(*names, action="store_true", **more)
        elif option.type == "tuple[str, ...]":
            parser.add_argument(*names, action="append", **more)
        else:
            parser.add_argument(*names, default=option.default, type=kinds.get(option.type, str), **more)
    return parser


def parse_options(argv: Sequence[str]) -> Options:
    """Raises SystemExit(2) for usage errors."""
    values = vars(make_parser().parse_args(argv))
    return Options(**values | {"condor_option": tuple(values["condor_option"] or ())})


@dataclass(frozen=True)
class Plan:
    """What is explored, and by which simulation."""

    box: Box
    L: int
    mode: str  # for people
    model: dict[str, Any]  # what the labels depend on, beside box and L
    simulation: Callable[[Mapping[str, float]], Any]  # a module-level function, or partial of one
    seed: int


def make_plan(options: Options) -> Plan:
    """Raises InputError."""
    modes = [name for name in ("fast_mode", "screening", "accurate") if getattr(options, name)]
    if len(modes) > 1:
        raise InputError(f"{' and '.join(as_option(name) for name in modes)} contradict each other: give one of them")
    mode = modes[0] if modes and modes[0] in MODES else "fast"
    L = MODES[mode].L if options.lattice_size is None else options.lattice_size
    if L < SMALLEST_RESOLVED:
        raise InputError(f"--lattice-size {L}: too small to tell phases apart; give at least {SMALLEST_RESOLVED}")
    if options.seed < 0:
        raise InputError(f"--seed {options.seed}: give a whole number, not negative")
    box, fixed = read_box(options.parameters)
    if options.simulation is None:
        Couplings.from_parameters(dict(zip(box.names, box.low)) | fixed)
        Couplings.from_parameters(dict(zip(box.names, box.high)) | fixed)
        simulation = partial(simulate_spins, L=L, mode=mode, seed=options.seed, fixed=fixed)
        return Plan(box, L, mode, {"simulation": PROGRAM_MODEL, "mode": mode, "fixed": fixed}, simulation, options.seed)
    if options.parameters is None:
        raise InputError('--simulation needs its own --parameters: a JSON file {"name": [low, high], ...}')
    if modes:
        raise InputError(f"{as_option(modes[0])} is for the simulation of this program, not for --simulation {options.simulation}")
    function = load_function(options.simulation)
    simulation = partial(with_fixed, function=function, fixed=fixed) if fixed else function
    return Plan(box, L, options.simulation, {"simulation": options.simulation, "fixed": fixed}, simulation, options.seed)


def as_option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError where JSON gives a name twice."""
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name is given twice")
    return dict(pairs)


def read_box(text: str | None) -> tuple[Box, dict[str, float]]:
    """Parameter box, and the parameters that stay fixed, from a JSON file or JSON itself. Raises InputError."""
    if text is None:
        return DEFAULT_BOX, {}
    try:
        content = text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8-sig")
        entries = json.loads(content, object_pairs_hook=unrepeated)
        if not isinstance(entries, dict):
            raise ValueError('expected {"name": [low, high], ...}')
        fixed = {name: float(value) for name, value in entries.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}
    except (OSError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"--parameters {text[:200]}: not readable as JSON of a box ({error})") from None
    if not all(math.isfinite(value) for value in fixed.values()):
        raise InputError(f"--parameters {text}: fixed values must be finite numbers")
    return Box.of({name: value for name, value in entries.items() if name not in fixed}), fixed


def load_function(text: str) -> Callable:
    """MODULE:FUNCTION, the module found from the present directory on. Raises InputError."""
    module_name, _, name = text.partition(":")
    if not name or not all(part.isidentifier() for part in (*module_name.split("."), name)):
        raise InputError(f"--simulation {text}: expected MODULE:FUNCTION, such as my_model:simulate for my_model.py here")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)  # which the workers inherit
    try:
        function = getattr(importlib.import_module(module_name), name)
    except Exception as error:
        raise InputError(f"--simulation {text}: cannot be loaded ({type(error).__name__}: {error})") from None
    if not callable(function):
        raise InputError(f"--simulation {text}: {name} is {type(function).__name__}, not a function")
    return function


def check_options(options: Options) -> None:
    """Raises InputError where options contradict each other or say nothing sensible."""
    contradictions = (("resume", "fresh_start"), ("retry_failed", "fresh_start"), ("verbose", "quiet"))
    for pair in [*contradictions, *((a, b) for k, a in enumerate(ACTIONS) for b in ACTIONS[:k])]:
        if all(getattr(options, name) not in (None, False) for name in pair):
            raise InputError(f"{as_option(pair[0])} and {as_option(pair[1])} contradict each other: give one of them")
    if options.condor and options.n_jobs != 1:
        raise InputError("--condor and --n-jobs contradict each other: give one of them")
    check_strategy(options.strategy)
    if options.strategy == "target" and options.target_phase is None:
        raise InputError("--strategy target needs --target-phase")
    names = [phase.name for phase in PhaseType if phase.name not in NO_PHASE]
    if options.target_phase is not None and options.target_phase not in names:
        raise InputError(f"--target-phase {options.target_phase}: give one of {', '.join(names)}")
    processes_of(options.n_jobs)
    for name in ("n_initial", "n_per_iteration", "checkpoint_interval", "request_memory", "max_jobs"):
        if not 1 <= getattr(options, name) < 10**7:
            raise InputError(f"{as_option(name)} {getattr(options, name)}: expected a number of at least 1")
    if options.n_iterations < 0:
        raise InputError(f"--n-iterations {options.n_iterations}: expected 0 or more")
    for name in ("timeout", "check_interval", "stop_label_change", "stop_entropy"):
        value = getattr(options, name)
        if value is not None and not 0 < value < LONGEST_TIMEOUT_S:
            raise InputError(f"{as_option(name)} {value:g}: expected a number above 0")
    if options.test_parallel is not None and options.test_parallel < 2:
        raise InputError(f"--test-parallel {options.test_parallel}: expected at least 2 simulations")
    if options.benchmark not in (None, "quick", "all"):
        raise InputError(f"--benchmark {options.benchmark}: expected nothing more, or all")
    for text in options.condor_option:
        if not text.partition("=")[1]:
            raise InputError(f"--condor-option {text!r}: expected KEY=VALUE")


def check_is_page(path: Path) -> None:
    """Raises InputError rather than let a report replace a file of another kind."""
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if file.read(len(PAGE_BEGINS)).lower() != PAGE_BEGINS:
                raise InputError(f"--report {path}: exists and is no HTML page; choose another name")


def check_place(path: Path, what: str, is_directory: bool) -> None:
    """Raises InputError where a file or directory could not be written; creates nothing."""
    try:
        if path.exists() and not (path.is_dir() if is_directory else path.is_file()):
            raise InputError(f"{what} {path}: is not a {'directory' if is_directory else 'regular file'}")
        place = path if is_directory else path.parent
        while not place.exists():
            place = place.parent
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise InputError(f"{what} {path}: {place} is not a directory that can be written")
    except OSError as error:
        raise InputError(f"{what} {path}: {error.strerror}") from None


def parse_map(options: Options) -> tuple[list[str] | None, dict[str, float]]:
    """--map and --at. Raises InputError."""
    fixed = {}
    for item in options.at.split(",") if options.at is not None else ():
        name, equals, value = (part.strip() for part in item.partition("="))
        try:
            fixed[name] = float(value)
        except ValueError:
            equals = ""
        if not equals or not math.isfinite(fixed[name]):
            raise InputError(f"--at {item!r}: expected NAME=VALUE")
    return None if options.map is None else [name.strip() for name in options.map.split(",")], fixed


def free_memory_mb() -> float | None:
    """What new processes may use without swapping; None where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) / 1024
    return None


def advice(options: Options, plan: Plan) -> list[str]:
    """What may go wrong with so many processes, one line each."""
    import resource

    if options.condor:
        return []
    processes, lines = processes_of(options.n_jobs), []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES_OURS + FILES_A_WORKER * processes
    if soft != resource.RLIM_INFINITY and needed > soft:
        limit = 4096 if hard == resource.RLIM_INFINITY else min(max(4096, needed), hard)
        lines.append(
            f"{processes} processes need about {needed} open files, the limit is {soft}: run `ulimit -n {limit}` first, or use fewer"
        )
    wanted_mb, free_mb = processes * (WORKER_MB + CELL_MB * plan.L**2), free_memory_mb()
    if free_mb is not None and wanted_mb > free_mb:
        lines.append(f"{processes} processes need about {wanted_mb:.0f} MB of memory, {free_mb:.0f} MB are free: use fewer --n-jobs")
    cores = usable_cores()
    if processes > math.ceil(cores):
        lines.append(f"{processes} processes on {cores:g} cores: more than one a core gains nothing")
    if options.n_per_iteration < processes:
        lines.append(
            f"--n-per-iteration {options.n_per_iteration} leaves some of the {processes} processes idle: give at least as many points"
        )
    return lines


def say_plan(options: Options, plan: Plan) -> str:
    """What a dry run says."""
    box = ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in plan.box.bounds().items())
    path = Path(options.output_dir) / "history.jsonl"
    total = options.n_initial + options.n_iterations * options.n_per_iteration
    where = "an HTCondor pool" if options.condor else f"{processes_of(options.n_jobs)} processes"
    lines = [
        f"{plan.mode} simulations, L = {plan.L}, seed {plan.seed}, on {where}, each at most {options.timeout:g} s",
        f"parameters: {box}" + "".join(f", {name} = {value:g}" for name, value in plan.model["fixed"].items()),
        f"{options.n_initial} points and the published fits within the box, then {options.n_iterations} x {options.n_per_iteration} "
        f"by strategy {options.strategy}, target {options.target_phase}: {total} or a few more in all",
    ]
    if path.exists() and not options.fresh_start:
        run = read_history(Path(options.output_dir))
        lines.append(f"goes on with {path}: {len(run.told)} of {len(run.explorer.points)} points done, iteration {run.explorer.iteration}")
    else:
        lines.append(f"starts {path}" + (", deletes what is there" if path.exists() else ""))
    return "\n".join(lines)


def forget_run(directory: Path) -> None:
    """Delete history, spins and pictures of a run, and its jobs. Raises InputError where there is no run of this program, ExecutorError."""
    with claim_directory(directory) as place:
        path = place / "history.jsonl"
        if path.exists() and not path.read_bytes()[: len(FIRST_BYTES)] == FIRST_BYTES[: path.stat().st_size]:
            raise InputError(f"--fresh-start: {path} is not a history of this program; choose another output directory")
        drop_jobs(place)
        for name in ("history.jsonl", "state.json", "summary.json"):
            (place / name).unlink(missing_ok=True)
        for path in (*(place / "spins").glob("[0-9]*.npz"), *(place / "plots").glob("*.png")):
            path.unlink()


def drop_jobs(directory: Path) -> None:
    """Remove the jobs that a run has in HTCondor's queue, and their files. Raises ExecutorError."""
    if (directory / "jobs").is_dir():
        say(f"{remove_run(directory / 'jobs')} jobs removed from HTCondor's queue")
        shutil.rmtree(directory / "jobs")


def check_condor(pairs: Sequence[tuple[str, str]]) -> None:
    """Raises CondorMissing, InputError."""
    check_condor_tools()
    try:
        check_submit_options(pairs)
    except ValueError as error:
        raise InputError(f"--condor-option: {error}") from None


def make_executor(options: Options, directory: Path) -> Any:
    """Raises InputError, ExecutorError."""
    if not options.condor:
        return LocalExecutor(processes_of(options.n_jobs), timeout_s=options.timeout, retries=0, log_dir=directory / "logs")
    try:
        return CondorExecutor(
            directory / "jobs",
            check_interval_s=options.check_interval,
            timeout_s=options.timeout,
            memory_mb=options.request_memory,
            options=split_options(options.condor_option),
            transfer_files=options.transfer_files,
            max_jobs=options.max_jobs,
            say=say,
        )
    except ValueError as error:
        raise InputError(str(error)) from None


def run_exploration(options: Options) -> int:
    """Simulate, learn and choose until a stop rule holds; then what was asked for besides."""
    plan, directory = make_plan(options), Path(options.output_dir)
    check_place(directory, "--output-dir", is_directory=True)
    check_map(plan.box, *parse_map(options))
    if options.dry_run:
        print(say_plan(options, plan))
        return 0
    if options.resume and not (directory / "history.jsonl").exists():
        raise InputError(f"--resume: {directory} holds no run; leave the option out to start one")
    for line in advice(options, plan):
        say(line)
    if options.condor:
        check_condor(split_options(options.condor_option))
    if options.fresh_start and directory.exists():
        forget_run(directory)
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        where = {"parameters": plan.box, "classify": classify, "model": plan.model, "seed": plan.seed}
        run = stack.enter_context(
            ActiveLearningExplorer(directory, plan.L, target_phase=options.target_phase, strategy=options.strategy, **where)
        )
        if options.quiet:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        if options.retry_failed:
            print(f"{run.retry_failed()} failed points are simulated again")
        executor = stack.enter_context(make_executor(options, run.output_dir))
        limits = {"change_below": options.stop_label_change, "entropy_below": options.stop_entropy}
        numbers = (options.n_initial, options.n_iterations, options.n_per_iteration)
        how = {"executor": executor, "checkpoint_interval": options.checkpoint_interval, "timeout": options.timeout}
        reason = run.run(plan.simulation, *numbers, **limits, **how)
        print(f"Stopped after {time.perf_counter() - started:.1f} s: {reason}\n")
    found = read_history(directory)
    replace_file(directory / "summary.json", json.dumps(summary_record(found) | {"stopped": reason}, indent=1).encode())
    write_outputs(found, options)
    if not found.labelled:
        say("no point could be labelled: every simulation failed, the reasons are above and in the history")
    return 0 if found.labelled else 1


def write_outputs(run: Run, options: Options) -> None:
    """Summary on stdout, pictures and report where asked for."""
    if not options.quiet:
        print(summary_text(run))
    for id in sorted(run.told) if options.verbose else ():
        print(point_text(run, id))
    if options.plots or options.report is not None:
        wanted, fixed = parse_map(options)
        pictures, missing = {}, ""
        try:
            pictures = draw_all(run, wanted, fixed)
        except PlotsMissing as error:
            missing = str(error)
            say(missing)
        if options.plots and pictures:
            write_pictures(run, pictures, options)
        if options.report is not None:
            shown = {as_option(f.name): value for f in fields(Options) if (value := getattr(options, f.name)) not in (None, False, ())}
            page = report_page(run, shown, pictures, missing)
            Path(options.report).parent.mkdir(parents=True, exist_ok=True)
            replace_file(Path(options.report), page.encode())
            if not options.quiet:
                print(f"report: {options.report}")


def write_pictures(run: Run, pictures: Mapping[str, tuple[str, bytes]], options: Options) -> None:
    place = run.directory / "plots"
    place.mkdir(exist_ok=True)
    for name, (_, png) in pictures.items():
        replace_file(place / f"{name}.png", png)
    if not options.quiet:
        print(f"pictures: {', '.join(f'{name}.png' for name in pictures)} in {place}")


def show_point(options: Options) -> int:
    run = read_history(Path(options.output_dir))
    print(point_text(run, options.point))
    if options.point in run.labelled:
        try:
            write_pictures(run, {f"point-{options.point}": ("", png_bytes(draw_point(run, options.point)))}, options)
        except PlotsMissing as error:
            say(str(error))
    return 0


def status_text(directory: Path) -> str:
    """Raises InputError where there is no run."""
    run = read_history(directory)
    host, pid = read_claim(directory)
    here = host == os.uname().nodename
    doing = "at work" if here and process_exists(pid) else "gone" if here else "perhaps at work there"
    states = ", ".join(f"{number} {state}" for state, number in run.states().items())
    return (
        f"controller  pid {pid} on {host}, {doing}\niteration   {run.explorer.iteration}\npoints      {len(run.explorer.points)}: {states}"
    )


def perform(options: Options) -> int:
    """What the options ask for. Raises ExplorerError, ExecutorError."""
    check_options(options)
    if options.report is not None:
        check_place(Path(options.report), "--report", is_directory=False)
        check_is_page(Path(options.report))
    if options.benchmark is not None:
        return run_benchmark(options)
    if options.test_parallel is not None:
        return run_parallel_test(options, make_plan(options))
    if options.point is not None:
        return show_point(options)
    if options.skip_simulation:
        write_outputs(read_history(Path(options.output_dir)), options)
        return 0
    if options.status:
        print(status_text(Path(options.output_dir)))
        return 0
    if options.stop:
        with claim_directory(options.output_dir) as directory:
            drop_jobs(directory)
        return 0
    return run_exploration(options)


def again(arguments: Sequence[str]) -> str:
    """The command that goes on with an interrupted run."""
    once = ("--fresh-start", "--fresh_start", "--retry-failed", "--retry_failed")
    return shlex.join([sys.executable, sys.argv[0], *(word for word in arguments if word not in once)])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    ensure_standard_streams()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not know Greek letters
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = parse_options(arguments)
    try:
        code = perform(options)
        sys.stdout.flush()
        return code
    except (InputError, DirectoryRefused, CondorMissing) as error:
        say(str(error))
        return 2
    except (ExplorerError, ExecutorError) as error:
        say(str(error))
        return 1
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # nobody reads on; Python would complain once more when it flushes at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        say(str(error))
        return 1
    except KeyboardInterrupt:
        jobs = shlex.join([sys.executable, sys.argv[0], "--output-dir", options.output_dir, "--stop"])
        tail = f"; jobs stay in the queue, remove them with: {jobs} -- or" if options.condor else "; what is done is saved,"
        say(f"interrupted{tail} go on with: {again(arguments)}")
        return 130


if __name__ == "__main__":
    sys.exit(main())
