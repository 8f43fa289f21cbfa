#!/usr/bin/env python3
"""Explore the phase diagram of a honeycomb magnet, or of any simulation, by parallel active learning.

    python explorer.py --n-jobs 8                              # 54 + 100 points of the seven couplings of BaCo2(AsO4)2
    python explorer.py --n-jobs 8                              # again: goes on where it was interrupted
    python explorer.py --parameters '{"J3xy": [0, 1], "J1z": [-1, 1]}' --output-dir plane --plots
    python explorer.py --simulation my_model:simulate --parameters box.json --n-jobs -1
    python explorer.py show --plots --report report.html       # pictures and tables of what is there
    python explorer.py point 17
    python explorer.py test-parallel --n-jobs 8
    python explorer.py benchmark

Here stand the commands with their options, and the names that a script imports; what they are made of stands in phases/, in reading order
in its docstring. Glossary: L x L cells, N = 2 L^2 sites, s sublattice (0 = A, 1 = B); q = (h, k) = h b1 + k b2; energies per site and
couplings in units of |J1xy|; unit point = parameters scaled to [0, 1]^d; label = name of a phase; iteration = a batch of points chosen
together, 0 the initial ones.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from executors import __version__
from executors.commands import Command, option, parse, spelled
from executors.directories import claim_directory, process_exists, read_claim
from executors.errors import CondorMissing, DirectoryRefused, ExecutorError, UsageError
from executors.files import ensure_standard_streams, replace_file, say_line, why_not_writable
from executors.job_runs import remove_run
from executors.program import HOME
from executors.tasks import LONGEST_TIMEOUT_S
from phases.acquisition import STRATEGIES
from phases.active_learning import ActiveLearningExplorer
from phases.annealer import simulate
from phases.classification import SMALLEST_RESOLVED, classify
from phases.errors import ExplorerError, InputError, PlotsMissing
from phases.history import Run, delete_run, read_history
from phases.machine import advice, processes_of, usable_cores
from phases.maps import check_map
from phases.model import Couplings, Lattice, energy, luttinger_tisza
from phases.names import NO_PHASE, PhaseType
from phases.pictures import draw_all, draw_point, png_bytes
from phases.plan import Plan, read_box, spin_plan, user_plan
from phases.reciprocal import structure_factor
from phases.report import check_is_page, report_page
from phases.summaries import point_text, summary_record, summary_text
from phases.surrogate import Surrogate, fit_labels
from phases.textures import topological_charge

__all__ = ["ActiveLearningExplorer", "Couplings", "Lattice", "Run", "Surrogate", "classify", "energy", "fit_labels", "luttinger_tisza"]
__all__ += ["read_history", "simulate", "structure_factor", "topological_charge"]
say = partial(say_line, "explorer")
COUNT = {"metavar": "N", "least": 1, "most": 10**7}
SECONDS = {"metavar": "S", "above": 0, "below": LONGEST_TIMEOUT_S}
PHASES = tuple(phase.name for phase in PhaseType if phase.name not in NO_PHASE)
ON_MAPS, ON_POOLS = {"needs": ("plots", "report")}, {"needs": ("condor",)}


# ---- options: every one, its default, what it does and what it takes


@dataclass(frozen=True)
class Place:
    """Directory of the run."""

    output_dir: str = option("exploration", "history, spins and pictures of the run", metavar="DIR")


@dataclass(frozen=True)
class Points:
    """How many points, and which."""

    n_initial: int = option(50, "points of the Latin hypercube at the start, beside the published fits", **COUNT)
    n_iterations: int = option(10, "iterations after that", metavar="N", least=0)
    n_per_iteration: int = option(10, "points chosen in each iteration", **COUNT)
    strategy: str = option("balanced", "how points are chosen", choices=tuple(STRATEGIES))
    target_phase: str | None = option(None, "phase that balanced and target look for, such as ZIGZAG", metavar="NAME", choices=PHASES)
    stop_label_change: float | None = option(
        None, "stop when less than this share of the predicted labels changed in each of two iterations, such as 0.01", metavar="X", above=0
    )
    stop_entropy: float | None = option(None, "stop when the mean entropy of the predictions is below this, in nats", metavar="X", above=0)


@dataclass(frozen=True)
class Simulations:
    """What is simulated at each point, and where."""

    n_jobs: int = option(
        1, "processes on this machine; -1: one for each CPU", metavar="N", pattern=(r"-1|0*[1-9]\d*", "-1 or a whole number from 1")
    )
    lattice_size: int | None = option(None, "L of L x L cells (default: the mode's)", metavar="L", least=SMALLEST_RESOLVED)
    fast_mode: bool = option(False, "L = 12 (the default mode)", excludes=("screening", "accurate", "simulation"))
    screening: bool = option(False, "L = 8, a third of the time", excludes=("fast_mode", "accurate", "simulation"))
    accurate: bool = option(False, "L = 24, never above fast", excludes=("fast_mode", "screening", "simulation"))
    seed: int = option(0, "of everything random; the same seed gives the same run, whatever --n-jobs (default: 0)", metavar="N", least=0)
    timeout: float = option(300.0, "hard limit for each simulation", **SECONDS)
    parameters: str | None = option(
        None, 'parameter box, a JSON file or text: {"J3xy": [0, 1], "J1z": [-1, 1], "D": 0.1}; a single number stays fixed', metavar="FILE"
    )
    simulation: str | None = option(
        None, "yours: f(parameters) -> spins (N, 3), positions (N, 2), energy per site, N = 2 L^2", metavar="MODULE:FUNCTION"
    )


@dataclass(frozen=True)
class Continuation:
    """Going on with a run."""

    resume: bool = option(False, "go on with the run that is there (as without this), or say that there is none", excludes=("fresh_start",))
    retry_failed: bool = option(False, "simulate the failed points again", excludes=("fresh_start",))
    fresh_start: bool = option(False, "delete the run of the directory first, its history and spins")
    skip_simulation: bool = option(False, "simulate nothing: as the command show", excludes=("dry_run",))
    dry_run: bool = option(False, "say what would be done, and stop; writes nothing")
    checkpoint_interval: int = option(10, "simulations between two times that the history is forced to disk", **COUNT)


@dataclass(frozen=True)
class Outputs:
    """What is shown."""

    plots: bool = option(False, "write pictures into the directory's plots/ (needs matplotlib)")
    report: str | None = option(None, "write one self-contained HTML page", metavar="FILE")
    map: str | None = option(None, "the two parameters of the phase map (default: those that matter most)", metavar="NAME,NAME", **ON_MAPS)
    at: str | None = option(None, "where the map cuts the others (default: the middle of each)", metavar="NAME=VALUE,...", **ON_MAPS)
    verbose: bool = option(False, "print the decision path of each point and the traceback of each failure at the end", excludes=("quiet",))
    quiet: bool = option(False, "no progress, no summary")


@dataclass(frozen=True)
class Condor:
    """HTCondor."""

    condor: bool = option(False, "run on an HTCondor pool; this program must be on a host that can submit jobs", excludes=("n_jobs",))
    check_interval: float = option(5.0, "seconds between two looks at HTCondor's queue", **SECONDS, **ON_POOLS)
    condor_option: tuple[str, ...] = option(
        (), "a further line for the submit file; repeatable", metavar="KEY=VALUE", pattern=("[^=]*=.*", "KEY=VALUE"), **ON_POOLS
    )
    transfer_files: bool = option(False, "let HTCondor transfer files: the execute nodes do not see the directory", **ON_POOLS)
    request_memory: int = option(1024, "memory for a job", metavar="MB", least=1, most=10**7, **ON_POOLS)
    max_jobs: int = option(5000, "jobs in HTCondor's queue at a time", **COUNT, **ON_POOLS)


@dataclass(frozen=True)
class Explore(Place, Points, Simulations, Continuation, Outputs, Condor):
    """Simulate, learn and choose points until a stop rule holds."""


@dataclass(frozen=True)
class Show(Place, Outputs):
    """Show what is there: summary, pictures, a page."""


@dataclass(frozen=True)
class ShowPoint(Place):
    """Show a point, its decision path and its pictures."""

    id: int | None = option(None, "number of the point", metavar="ID", positional="needed", least=0)


@dataclass(frozen=True)
class Status(Place):
    """Show how far the run of the directory is."""


@dataclass(frozen=True)
class Stop(Place):
    """Remove the jobs that a run with --condor left in HTCondor's queue."""


@dataclass(frozen=True)
class ParallelTest(Simulations):
    """Simulate in sequence and in parallel; fails where results differ or too little is gained."""

    number: int = option(20, "simulations", metavar="N", positional=True, least=2)


@dataclass(frozen=True)
class Benchmark:
    """Measure the published figures."""

    which: str = option("quick", "a quick subset, or all in full", metavar="quick|all", positional=True, choices=("quick", "all"))


# ---- exploring


def explore(options: Explore) -> int:
    """Simulate, learn and choose until a stop rule holds; then what was asked for besides."""
    if options.skip_simulation:
        return show(options)
    plan, directory = plan_of(options), Path(options.output_dir)
    if options.strategy == "target" and options.target_phase is None:
        raise InputError("--strategy target needs --target-phase")
    check_outputs(options)
    check_place(directory, "--output-dir", is_directory=True)
    check_map(plan.box, *map_of(options))
    if options.dry_run:
        print(plan_text(options, plan))
        return 0
    if options.resume and not (directory / "history.jsonl").exists():
        raise InputError(f"--resume: {directory} holds no run; leave the option out to start one")
    where = place_of(options)
    if not options.condor:
        for line in advice(processes_of(options.n_jobs), plan.L, options.n_per_iteration):
            say(line)
    if options.fresh_start and directory.exists():
        with claim_directory(directory) as place:
            drop_jobs(place)
            delete_run(place)
    reason = run_plan(options, plan, where)
    found = read_history(directory)
    replace_file(directory / "summary.json", json.dumps(summary_record(found) | {"stopped": reason}, indent=1).encode())
    write_outputs(found, options)
    if not found.labelled:
        say("no point could be labelled: every simulation failed, the reasons are above and in the history")
    return 0 if found.labelled else 1


def run_plan(options: Explore, plan: Plan, where: Any) -> str:
    """Why the exploration stopped. Raises InputError, DirectoryRefused, ExecutorError."""
    from executors.choose import make_executor

    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(plan.start(options.output_dir, options.strategy, options.target_phase))
        if options.quiet:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        if options.retry_failed:
            print(f"{run.retry_failed()} failed points are simulated again")
        try:
            executor = stack.enter_context(make_executor(where, run.output_dir / "jobs", say))
        except ValueError as error:
            raise InputError(str(error)) from None
        numbers = (options.n_initial, options.n_iterations, options.n_per_iteration, options.stop_label_change, options.stop_entropy)
        how = {"executor": executor, "checkpoint_interval": options.checkpoint_interval, "timeout": options.timeout}
        reason = run.run(plan.simulation, *numbers, **how)
        print(f"Stopped after {time.perf_counter() - started:.1f} s: {reason}\n")
    return reason


def plan_of(options: Simulations) -> Plan:
    """The plan that is meant. Raises InputError."""
    box, fixed = read_box(options.parameters)
    if options.simulation is None:
        mode = "screening" if options.screening else "accurate" if options.accurate else "fast"
        return spin_plan(mode, options.lattice_size, options.seed, box, fixed)
    if options.parameters is None:
        raise InputError('--simulation needs its own --parameters: a JSON file {"name": [low, high], ...}')
    return user_plan(options.simulation, options.lattice_size, options.seed, box, fixed)


def plan_text(options: Explore, plan: Plan) -> str:
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
        run = read_history(options.output_dir)
        lines.append(f"goes on with {path}: {len(run.told)} of {len(run.explorer.points)} points done, iteration {run.explorer.iteration}")
    else:
        lines.append(f"starts {path}" + (", deletes what is there" if path.exists() else ""))
    return "\n".join(lines)


def place_of(options: Explore) -> Any:
    """Where simulations run. Raises CondorMissing, InputError for what HTCondor would not take."""
    from executors.choose import Condor, Local, check_available
    from executors.submitter import check_submit_options, split_options

    if not options.condor:
        return Local(processes_of(options.n_jobs), options.timeout, retries=0, log_dir=Path(options.output_dir).absolute() / "logs")
    lines = split_options(options.condor_option)
    try:
        check_submit_options(lines)
    except ValueError as error:
        raise InputError(f"--condor-option: {error}") from None
    where = Condor(options.check_interval, options.timeout, options.request_memory, lines, options.transfer_files, options.max_jobs)
    check_available(where)
    return where


def check_place(path: Path, what: str, is_directory: bool) -> None:
    """Raises InputError where a file or directory could not be written; creates nothing."""
    if why := why_not_writable(path, is_directory):
        raise InputError(f"{what} {path}: {why}")


def drop_jobs(directory: Path) -> None:
    """Remove the jobs that a run has in HTCondor's queue, and their files. Raises ExecutorError."""
    if (directory / "jobs").is_dir():
        say(f"{remove_run(directory / 'jobs')} jobs removed from HTCondor's queue")
        shutil.rmtree(directory / "jobs")


# ---- showing


def check_outputs(options: Outputs) -> None:
    """Raises InputError where a page could not be written, or would replace another file."""
    if options.report is not None:
        check_place(Path(options.report), "--report", is_directory=False)
        check_is_page(Path(options.report))


def map_of(options: Outputs) -> tuple[list[str] | None, dict[str, float]]:
    """--map and --at. Raises InputError."""
    fixed = {}
    for item in options.at.split(",") if options.at is not None else ():
        name, _, value = (part.strip() for part in item.partition("="))
        with contextlib.suppress(ValueError):
            fixed[name] = float(value)
        if not math.isfinite(fixed.get(name, math.nan)):
            raise InputError(f"--at {item}: expected NAME=VALUE")
    return None if options.map is None else [name.strip() for name in options.map.split(",")], fixed


def show(options: Any) -> int:
    check_outputs(options)
    write_outputs(read_history(options.output_dir), options)
    return 0


def write_outputs(run: Run, options: Any) -> None:
    """Summary on stdout, pictures and report where asked for."""
    if not options.quiet:
        print(summary_text(run))
    for id in sorted(run.told) if options.verbose else ():
        print(point_text(run, id))
    if not options.plots and options.report is None:
        return
    pictures, missing = {}, ""
    try:
        pictures, complaints = draw_all(run, *map_of(options))
    except PlotsMissing as error:
        missing, complaints = str(error), [str(error)]
    for line in complaints:
        say(line)
    if options.plots and pictures:
        write_pictures(run, pictures, options.quiet)
    if options.report is not None:
        shown = {spelled(name): value for name, value in sorted(asdict(options).items()) if value not in (None, False, ())}
        Path(options.report).parent.mkdir(parents=True, exist_ok=True)
        replace_file(Path(options.report), report_page(run, shown, pictures, missing).encode())
        if not options.quiet:
            print(f"report: {options.report}")


def write_pictures(run: Run, pictures: dict[str, tuple[str, bytes]], quiet: bool = False) -> None:
    place = run.directory / "plots"
    place.mkdir(exist_ok=True)
    for name, (_, png) in pictures.items():
        replace_file(place / f"{name}.png", png)
    if not quiet:
        print(f"pictures: {', '.join(f'{name}.png' for name in pictures)} in {place}")


def show_point(options: ShowPoint) -> int:
    run = read_history(options.output_dir)
    print(point_text(run, options.id))
    if options.id in run.labelled:
        try:
            write_pictures(run, {f"point-{options.id}": ("", png_bytes(draw_point(run, options.id)))})
        except PlotsMissing as error:
            say(str(error))
    return 0


def show_status(options: Status) -> int:
    run = read_history(options.output_dir)
    host, pid = read_claim(run.directory)
    here = host == os.uname().nodename
    doing = "at work" if here and process_exists(pid) else "gone" if here else "perhaps at work there"
    states = ", ".join(f"{number} {state}" for state, number in run.states().items())
    print(f"controller  pid {pid} on {host}, {doing}\niteration   {run.explorer.iteration}")
    print(f"points      {len(run.explorer.points)}: {states}")
    return 0


def stop(options: Stop) -> int:
    with claim_directory(options.output_dir) as directory:
        drop_jobs(directory)
    return 0


# ---- measuring


def run_parallel_test(options: ParallelTest) -> int:
    from phases.benchmark import compare_times, judge, needed_speedup

    plan, number, cores, ruler = plan_of(options), options.number, usable_cores(), "=" * 50
    processes = processes_of(options.n_jobs if options.n_jobs != 1 else -1)
    print(f"PARALLEL SIMULATION TEST\n{ruler}")
    print(f"[1] {number} LHS test samples, {plan.mode} simulations, L = {plan.L}")
    print(f"[2] Testing SEQUENTIAL execution (n_jobs=1) and PARALLEL execution (n_jobs={processes})...", flush=True)
    comparison = compare_times(plan, number, processes, options.timeout, needed_speedup(processes, cores))
    alone, together = comparison.alone_s, comparison.together_s
    print(f"    Sequential time: {alone:.1f}s\n    Time per simulation: {alone / number:.2f}s")
    print(f"    Parallel time: {together:.1f}s\n    Time per simulation: {together / number:.2f}s")
    print(f"\nRESULTS\n{ruler}")
    print(f"Sequential time:  {alone:.1f}s\nParallel time:    {together:.1f}s ({processes} workers)")
    print(f"Speedup:          {comparison.speedup:.2f}x\nEfficiency:       {comparison.speedup / processes:.1%}\n")
    good, lines = judge(comparison, cores)
    print("\n".join(lines))
    return 0 if good else 1


def benchmark(options: Benchmark) -> int:
    """Prints each figure as it is measured; 1 where one misses its goal."""
    from phases.benchmark import FIGURES

    full, missed = options.which == "all", 0
    print(f"{'figure':42}{'goal':32}{'reached':56}{'s':>6}")
    for figure in FIGURES:
        if full or figure.quick:
            started = time.perf_counter()
            result = figure.measure(full)
            missed += not result.good
            mark = "" if result.good else "  MISSED"
            print(f"{figure.what:42}{figure.goal:32}{result.reached:56}{time.perf_counter() - started:6.1f}{mark}", flush=True)
    print(f"{'in full' if full else 'quick subset, `benchmark all` for the figures in full'}; {missed} missed")
    return 1 if missed else 0


# ---- the program

COMMANDS = {
    "explore": Command(Explore, explore),
    "show": Command(Show, show),
    "point": Command(ShowPoint, show_point),
    "status": Command(Status, show_status),
    "stop": Command(Stop, stop),
    "test-parallel": Command(ParallelTest, run_parallel_test),
    "benchmark": Command(Benchmark, benchmark),
}
MODES = {f"--{name}": f"--{name} is a command now: python explorer.py {name}" for name in ("status", "stop", "benchmark", "test-parallel")}
MODES |= {"--point": "--point is a command now: python explorer.py point ID"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    ensure_standard_streams()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not know Greek letters
    words, options = sys.argv[1:] if argv is None else list(argv), None
    try:
        command, options = parse("explorer.py", COMMANDS, words, (__doc__ or "").partition("\n")[0], __version__, MODES)
        code = command.run(options)
        sys.stdout.flush()
        return code
    except (UsageError, InputError, DirectoryRefused, CondorMissing) as error:
        say(str(error))
        return 2
    except (ExplorerError, ExecutorError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # nobody reads on; Python would complain once more when it flushes at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say(f"interrupted{remedy(words, options)}")
        return 130


def remedy(words: Sequence[str], options: Any) -> str:
    """How to go on after an interruption."""
    program = [sys.executable, sys.argv[0], *(["explore"] if HOME.is_file() else [])]  # the word of the bundle
    if not isinstance(options, Explore):
        return ""
    again = shlex.join([*program, *(word for word in words if word.replace("_", "-") not in ("--fresh-start", "--retry-failed"))])
    if not options.condor:
        return f"; what is done is saved, go on with: {again}"
    jobs = shlex.join([*program, "stop", "--output-dir", options.output_dir])
    return f"; jobs stay in the queue, remove them with: {jobs} -- or go on with: {again}"


if __name__ == "__main__":
    sys.exit(main())
