#!/usr/bin/env python3
"""Reduce Feynman integrals to master integrals by integration-by-parts identities.

    python ibp_reduce.py --local 8                             # I[3,2,1,3,2,2,-6] of trianglebox to its 16 masters
    python ibp_reduce.py --family doublebox --integral 1,1,1,1,1,1,1,-2,-2 --symbols d
    python ibp_reduce.py --integrals targets.txt --certificate proof.cert --export mathematica,form
    python ibp_reduce.py --kira-config my_kira_project         # families, kinematics and lists of a Kira project
    python ibp_reduce.py status | stop                         # of the run in --work-dir
    python ibp_reduce.py verify proof.cert                     # or a result, or paths of a search
    python ibp_reduce.py families [NAME|FILE]                  # what is built in; sectors, masters and symmetries of one
    python ibp_reduce.py differentiate --family doublebox s,t  # d/ds and d/dt of the masters through the masters
    python ibp_reduce.py solve equations.txt                   # any homogeneous linear system

From a script: `from ibp_reduce import reduce, Family, …` (the names in `__all__`; they are defined in ibp/interface.py). What the
program is made of stands in ibp/ and executors/, listed there from the ground up; this file has the commands and their options.

Glossary: L loop momenta k, E independent external momenta p, n propagators; an integral is its tuple of n indices; sector = bit mask of
the positive ones; t = number of positive indices, r = their sum, s = minus the sum of the others, dots = r - t; corner = positive indices
1, others 0; seed = the indices an identity is applied to; row = (operator, seed - target), one identity; prime p: all arithmetic is in the
integers modulo p, below 2**31 so that products fit an int64.
References: Chetyrkin, Tkachov, Nucl. Phys. B192 (1981) 159 (IBP); Gehrmann, Remiddi, hep-ph/9912329 (LI); Laporta, hep-ph/0102033
(ordered elimination); Pak, arXiv:1111.0868 (canonical U and F); arXiv:2502.05121 (the default family and its 16 masters).
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors import __version__
from executors.commands import Command, parse
from executors.errors import UsageError
from ibp.console import Progress, say
from ibp.options import (
    Benchmark,
    BenchmarkPoints,
    BenchmarkSearch,
    Bundle,
    Convert,
    Differentiate,
    Families,
    MakeExamples,
    Reduce,
    Solve,
    Status,
    Stop,
    Train,
    Verify,
    asked_of,
    beam_of,
    check_places,
    check_writable,
    kira_project,
    names_with_numbers,
    only_request,
    outputs_of,
    problem_of,
    requests_of,
    running_of,
    store_path,
    training_files,
)

if TYPE_CHECKING:  # rooms are imported by the commands that need them, so that --help waits for none
    from ibp.exact import ExactProblem
    from ibp.families import Family
    from ibp.problems import Problem
    from ibp.store import Store
    from ibp.targets import Request

__all__ = [  # defined in ibp/interface.py
    "Family",
    "InputError",
    "ReductionError",
    "Result",
    "differentiate",
    "families",
    "identities",
    "masters",
    "read_export",
    "read_result",
    "reduce",
    "solve",
    "symmetries",
    "verify",
]


def __getattr__(name: str) -> Any:
    """The names of scripts, when they are asked for."""
    if name in __all__:
        from ibp import interface

        return getattr(interface, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def run_reduce(options: Reduce) -> int:
    """Modulo a prime, of one family or several; or exactly."""
    if options.exact or options.symbols is not None:
        return run_exact(options, exact_problem(options, only_request(options, say)))
    from ibp.cuts import read_cuts
    from ibp.errors import InputError, ReductionError
    from ibp.reductions import reduce_joint, reduce_modulo
    from ibp.run_state import known_nonzero_sectors
    from ibp.store import open_stores

    if options.batch == "sector" and options.condor:
        raise InputError("--batch sector is for --local; with --condor give auto or a number of integrals")
    by_steps = options.condor or options.batch not in (None, "sector")
    if options.certificate is not None and by_steps:
        raise InputError("--certificate is for whole-sector tasks: leave out --batch, or give --batch sector")
    requests = requests_of(options, say)
    single = by_steps or options.paths or options.certificate or options.export
    if len(requests) > 1 and (single or options.cut):
        what = "one-step tasks, --paths, --certificate and --export are" if single else "--cut is"
        names = ", ".join(request.family.name for request in requests)
        raise InputError(f"{what} for one family at a time: choose by --family out of {names}")
    problems = [problem_of(options, request, options.prime) for request in requests]
    for problem in problems:
        for combination in problem.combinations:
            combination.at(problem.point)  # a slip in a coefficient is found now
    outputs, running = outputs_of(options), running_of(options)
    check_places(options, outputs)
    readable, shelves = open_stores(store_path(options), options.cold, say)

    def nonzero(family: Family) -> tuple[int, ...]:
        return known_nonzero_sectors(family, [] if options.cold else readable)

    cuts = () if len(problems) > 1 else read_cuts(problems[0], options.cut, lambda: nonzero(problems[0].family))
    if options.dry_run:
        return dry_run([problem for problem in problems if problem.keys], readable)
    reporter = Progress(options.quiet, lines=by_steps)
    if len(problems) > 1:
        outcome, lines = reduce_joint(problems, running, shelves, outputs, reporter, nonzero)
    else:
        outcome, lines = reduce_modulo(problems[0], cuts, running, by_steps, shelves, outputs, reporter, nonzero)
    print_lines([] if options.quiet else lines)
    if outcome.unreduced:
        remedy = "another --prime or point" if options.engine == "rules" else "a larger --beam-width or --max-steps"
        say(f"{len(outcome.unreduced)} integrals were not reduced (listed in {options.output}); {remedy} may do it")
    if outcome.store_trouble:
        raise ReductionError(f"the result is in {options.output}, but what was learned is not stored: {outcome.store_trouble}")
    return 1 if outcome.unreduced else 0


def run_differentiate(options: Differentiate) -> int:
    from ibp.differential import DifferentialProblem, parse_variables
    from ibp.kira import read_kira_corners
    from ibp.targets import read_corners

    asked = asked_of(options)
    if asked.names_integrals:
        request = only_request(options, say)
    else:
        request = read_corners(asked) if options.kira_config is None else read_kira_corners(asked, kira_project(options), say)
    variables, symbols = parse_variables(options.variables, request.family, names_with_numbers(options))
    outputs = outputs_of(options, symbols)
    outputs.check_names(request.family.name, symbols, derivatives=True)
    return run_exact(options, DifferentialProblem.below(exact_problem(options, request, symbols), variables))


def exact_problem(options: Any, request: Request, symbols: tuple[str, ...] | None = None) -> ExactProblem:
    """With rational numbers, or functions of symbols, by default of those in --symbols. Raises InputError."""
    from ibp.coefficients import parse_expansion
    from ibp.cuts import read_cuts
    from ibp.errors import InputError
    from ibp.exact import parse_symbols
    from ibp.reductions import pose_exact
    from ibp.residues import MAX_PRIME, check_device

    check_device(options.device)
    if "spanning" in options.cut:
        raise InputError("several cuts are put together modulo a prime only; give one --cut to an exact run, or none for the whole")
    problem = problem_of(options, request, MAX_PRIME)
    if symbols is None:
        symbols = parse_symbols(getattr(options, "symbols", None), problem.family, names_with_numbers(options))
    exact = pose_exact(problem, read_cuts(problem, options.cut, tuple), symbols)
    if (epsilon := getattr(options, "epsilon", None)) is not None:
        parse_expansion(epsilon, options.order, problem.family.symbols)
    return exact


def run_exact(options: Reduce | Differentiate, exact: ExactProblem) -> int:
    """Rational numbers or functions."""
    from ibp.reductions import reduce_exactly
    from ibp.store import open_stores

    outputs, problem = outputs_of(options, exact.symbols), exact.problem
    outputs.check_names(problem.family.name, exact.symbols, [combination.name for combination in problem.combinations])
    check_places(options, outputs)
    readable, shelves = open_stores(store_path(options), options.cold, say)
    if options.dry_run:
        return dry_run([problem], readable, exact.label)
    reporter = Progress(options.quiet, lines=True)
    lines = reduce_exactly(exact, running_of(options), options.device, shelves, outputs, reporter, options.quiet)
    print_lines([] if options.quiet else lines)
    return 0


def run_solve(options: Solve) -> int:
    from ibp.errors import InputError
    from ibp.records import system_record, system_summary, write_pickle
    from ibp.residues import MAX_PRIME
    from ibp.sampler import reduce_at_points
    from ibp.systems import parse_system_values, pose_system, solve_modulo
    from ibp.targets import check_prime

    numbers, symbols = parse_system_values(options.kinematics, options.d, options.symbols)
    exact = options.exact or bool(symbols)
    if not exact and (options.local is not None or options.condor or options.resume or options.fresh):
        raise InputError("--local, --condor, --resume and --fresh are for --exact and --symbols, which take many points")
    outputs = outputs_of(options)
    check_places(options, outputs)
    prime = MAX_PRIME if exact else check_prime(options.prime)
    problem = pose_system(options.system, numbers, symbols, prime, options.masters, options.integrals)

    def save(outcome: Any) -> None:
        name = Path(options.system).name
        write_pickle(system_record(name, numbers, symbols, None if exact else prime, outcome), outputs.result)

    if exact:
        reporter = Progress(options.quiet, lines=True)
        outcome = reduce_at_points(problem, running_of(options), "cpu", (), reporter, save, options.quiet)
    else:
        outcome = solve_modulo(problem, prime)
        save(outcome)
    if not options.quiet:
        print(system_summary(problem.system, outcome, exact, outputs.result))
    return 0


def run_verify(options: Verify) -> int:
    from ibp.interface import check_file
    from ibp.store import open_stores

    reporter, started = Progress(options.quiet), time.perf_counter()
    _, shelves = open_stores(store_path(options), False, say)
    project = kira_project(options) if options.kira_config is not None else None
    text = check_file(Path(options.file), options.family, project, running_of(options), shelves, reporter)
    if not options.quiet:
        print(f"verified: {text}; {time.perf_counter() - started:.2f} s")
    return 0


def run_convert(options: Convert) -> int:
    from ibp.coefficients import epsilon_summary
    from ibp.errors import InputError
    from ibp.reductions import convert_result

    source, own = Path(options.file), options.output is not None
    outputs = outputs_of(replace(options, output=options.output if own else str(source)))
    if not outputs.formats and options.epsilon is None:
        raise InputError("convert: nothing to do; give --export or --epsilon")
    for what, path in (({"--output": outputs.result} if own else {}) | outputs.beside()).items():
        check_writable(path, what)
    record, written = convert_result(source, outputs, own)
    if not options.quiet:
        if "epsilon" in record:
            print(epsilon_summary(record))
        print(f"written: {', '.join(map(str, written)) or 'nothing'}")
    return 0


def run_families(options: Families) -> int:
    from ibp.catalogue import describe_families, list_families
    from ibp.cuts import parse_cut
    from ibp.errors import InputError
    from ibp.families import check_common, load_families
    from ibp.shipped import shipped
    from ibp.store import Store

    if options.name is None and options.kira_config is None:
        print(list_families())
        return 0
    if options.kira_config is not None:
        project = kira_project(options)
        families, cuts = project.chosen, project.cuts
    else:
        families = load_families(options.name)
        check_common(families, options.name)
        cuts = [0] * len(families)
    if options.cut:
        if any(cuts) or len(cuts) > 1 or len(options.cut) > 1:
            raise InputError(f"--cut {' --cut '.join(options.cut)}: give one cut of one family that has none yet")
        cuts = [parse_cut(options.cut[0], families[0])]
    print(describe_families(families, cuts, [] if options.cold else [Store(shipped("rules.shelf"), read_only=True, say=say)]))
    return 0


def run_status(options: Status) -> int:
    from ibp.run_directory import RunDirectory
    from ibp.status import STATUS_INTERVAL_S, status_text

    while True:
        text, alive = status_text(RunDirectory(Path(options.work_dir)))
        if options.watch and sys.stdout.isatty():
            print("\033[H\033[2J", end="")
        print(text, flush=True)
        if not (options.watch and alive):
            return 0
        time.sleep(STATUS_INTERVAL_S)


def run_stop(options: Stop) -> int:
    from ibp.runs import stop_run

    stop_run(Path(options.work_dir), say)
    return 0


def run_train(options: MakeExamples | Train) -> int:
    from executors.directories import claim_directory
    from ibp.errors import InputError
    from ibp.families import family_names, load_family
    from ibp.runs import make_executor
    from ibp.training import TrainingPlan, training_device
    from ibp.training_data import make_training_data

    families = [load_family(name) for name in dict.fromkeys(family_names(options.family))]
    if len({family.name for family in families}) < len(families):
        raise InputError(f"--family {options.family}: two families of the same name; a policy tells families by their names")
    training = isinstance(options, Train)
    files, reporter, running = training_files(options), Progress(options.quiet), running_of(options)
    device = training_device(options.device) if training else ""  # before minutes are spent on examples
    try:
        with claim_directory(options.work_dir):
            if not (training and files.data.exists()):
                with make_executor(running.where, running.work_dir, reporter.say) as executor:
                    counts = make_training_data(families, options.trajectories, options.seed, files.data, executor, reporter)
                reporter.close()
                if not options.quiet:
                    print(f"{files.data}: " + ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items()))
            if training:
                train_policy(
                    options, families, files, TrainingPlan(options.epochs, options.learning_rate, seed=options.seed), device, reporter
                )
    finally:
        reporter.close()
    return 0


def train_policy(options: Train, families: Sequence[Family], files: Any, plan: Any, device: str, reporter: Any) -> None:
    """From the checkpoint where there is one. Raises PolicyRefused, ReductionError, InputError."""
    from ibp.errors import InputError
    from ibp.training import Training, train
    from ibp.training_data import TrainingSet

    data = TrainingSet(files.data)
    if options.family != Train.family and not data.is_of(families):
        held = ", ".join(data.header["families"])
        raise InputError(f"--family {options.family}: {files.data} has examples of {held}; make others by the command 'examples'")
    training = Training(data, plan, device, files)
    if options.fresh:
        files.checkpoint.unlink(missing_ok=True)
    training.restore()
    if not options.quiet:
        print(training, flush=True)
    train(training, reporter.show, (lambda line: None) if options.quiet else reporter.say)
    if not options.quiet:
        reporter.close()
        print(f"weights in {files.weights}, curve in {files.weights.with_suffix('.csv')}")


def run_benchmark(options: Benchmark) -> int:
    from ibp.published import published_benchmark

    check_writable(Path(options.output), "--output")
    print_lines(published_benchmark(options.number, Path(options.output).with_name("benchmark.csv")))
    return 0


def run_benchmark_points(options: BenchmarkPoints) -> int:
    from ibp.benchmarks import point_benchmark
    from ibp.store import open_stores

    _, shelves = open_stores(store_path(options), False, say)
    exact = exact_problem(options, only_request(options, say))
    print_lines(point_benchmark(exact, options.number, options.device, shelves, Progress(options.quiet)))
    return 0


def run_benchmark_search(options: BenchmarkSearch) -> int:
    from ibp.benchmarks import benchmark_searches
    from ibp.families import load_one_family

    family, reporter = load_one_family(options.family), Progress(options.quiet)
    try:
        print_lines(benchmark_searches(family, beam_of(options, family), options.number, options.seed, reporter.show))
    finally:
        reporter.close()
    return 0


def run_bundle(options: Bundle) -> int:
    from ibp.bundle import write_bundle

    check_writable(Path(options.file), "bundle")
    write_bundle(Path(options.file))
    print(f"written: {options.file}")
    return 0


COMMANDS = {
    "reduce": Command(Reduce, run_reduce),
    "differentiate": Command(Differentiate, run_differentiate),
    "solve": Command(Solve, run_solve),
    "verify": Command(Verify, run_verify),
    "convert": Command(Convert, run_convert),
    "families": Command(Families, run_families),
    "status": Command(Status, run_status),
    "stop": Command(Stop, run_stop),
    "examples": Command(MakeExamples, run_train),
    "train": Command(Train, run_train),
    "benchmark": Command(Benchmark, run_benchmark),
    "benchmark-points": Command(BenchmarkPoints, run_benchmark_points),
    "benchmark-search": Command(BenchmarkSearch, run_benchmark_search),
    "bundle": Command(Bundle, run_bundle),
}
GONE = {  # options of version 0.1.0 that are commands now
    "--list-families": "families",
    "--list-symmetries": "families NAME",
    "--status": "status",
    "--watch": "status --watch",
    "--stop": "stop",
    "--verify": "verify FILE",
    "--replay": "verify FILE",
    "--convert": "convert FILE",
    "--system": "solve FILE",
    "--differential-equation": "differentiate NAME,...",
    "--make-training-data": "examples",
    "--train-policy": "train",
    "--benchmark": "benchmark [N]",
    "--benchmark-points": "benchmark-points N",
    "--benchmark-search": "benchmark-search [N]",
}


def print_lines(lines: Any) -> None:
    for line in lines:
        print(line, flush=True)


def dry_run(problems: Sequence[Problem], shelves: Sequence[Store], label: str = "") -> int:
    from ibp.reductions import describe_plan

    print("\n".join(describe_plan(problem, shelves, label) for problem in problems))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 not everything done, 2 wrong usage, 130 interrupted."""
    from executors.files import ensure_standard_streams

    ensure_standard_streams()
    arguments = sys.argv[1:] if argv is None else list(argv)
    about = "Reduce Feynman integrals to master integrals by integration-by-parts identities, exactly."
    gone = {word: f"{word} is a command now: python ibp_reduce.py {command}" for word, command in GONE.items()}
    try:
        command, options = parse("ibp_reduce.py", COMMANDS, arguments, about, __version__, gone)
    except UsageError as error:
        say(str(error))
        return 2
    return perform(command, options, arguments)


def perform(command: Command, options: Any, arguments: Sequence[str]) -> int:
    """Every error is one line."""
    from executors.errors import CondorMissing, DirectoryRefused, ExecutorError
    from ibp.errors import InputError, ReductionError, StopRequested, how_to_install

    try:
        code = command.run(options)
        sys.stdout.flush()
        return code
    except (InputError, DirectoryRefused, CondorMissing) as error:
        say(str(error))
        return 2
    except (ReductionError, ExecutorError) as error:
        say(str(error))
        return 1
    except ModuleNotFoundError as error:
        say(f"the package {error.name} is missing: {how_to_install(error.name)}")
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # nobody reads on; Python would complain once more when it flushes at exit
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        say(str(error))
        return 1
    except StopRequested:
        say(f"stopped on request; go on with: {again(arguments)}")
        return 130
    except KeyboardInterrupt:
        if getattr(options, "condor", False):
            jobs = shlex.join([sys.executable, sys.argv[0], "stop", "--work-dir", options.work_dir])
            say(f"interrupted; jobs stay in the queue, go on with: {again(arguments)} -- or remove them with: {jobs}")
        else:
            say(f"interrupted; what was found is stored, go on with: {again(arguments)}")
        return 130


def again(arguments: Sequence[str]) -> str:
    """The command that goes on with an interrupted run."""
    return shlex.join([sys.executable, sys.argv[0], *(word for word in arguments if word not in ("--cold", "--fresh"))])


if __name__ == "__main__":
    sys.exit(main())
