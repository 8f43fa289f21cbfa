"""The options of every command of ibp_reduce.py, and what they are for the rooms.

A dataclass holds the options of a command; those that several commands have are base classes, which are the groups of `--help`. The
functions behind them make of these what the rooms take. Only ibp_reduce.py knows this room.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.commands import option
from executors.tasks import LONGEST_TIMEOUT_S

if TYPE_CHECKING:  # rooms are imported by the functions that need them, so that --help waits for none
    from ibp.beam import Beam
    from ibp.families import Family
    from ibp.kira import KiraProject
    from ibp.problems import Problem
    from ibp.reductions import Outputs
    from ibp.runs import Running
    from ibp.targets import Asked, Request
    from ibp.training import TrainingFiles

DEVICE = "'cpu' or 'cuda'; 'auto': the processor, for training a GPU if there is one"
DEVICES = ("auto", "cpu", "cuda", "torch:cpu")  # the last one for tests of what runs on a GPU


def task_seconds(otherwise: str, **more: Any) -> Any:
    """--job-seconds of a command. otherwise: its default without HTCondor."""
    text = f"how long a task should take (default: 60 with --condor, else {otherwise})"
    return option(None, text, metavar="S", above=0, below=LONGEST_TIMEOUT_S, **more)


@dataclass(frozen=True)
class Wanted:
    """What is reduced."""

    integral: str | None = option(
        None, "indices of one integral (default: 3,2,1,3,2,2,-6 with --paper-masters-only)", metavar="A1,A2,...", excludes=("integrals",)
    )
    integrals: str | None = option(
        None, "file of integrals, one a line: indices, or FAMILY[indices]; or combinations, 'NAME: 3*I[1,1] - 2/5*I[2,0]'", metavar="FILE"
    )
    family: str | None = option(
        None,
        "a built-in family or a JSON file, or several: A,B,... (default: trianglebox; with --kira-config all that its lists name)",
        metavar="NAME|FILE",
    )
    kira_config: str | None = option(None, "directory of a Kira project: config/*.yaml, and the lists of its jobs.yaml", metavar="DIR")
    masters: str | None = option(None, "file of preferred masters, one a line; the result is rewritten in them", metavar="FILE")
    symmetries: bool = option(False, "use relations between sectors: integrals of equivalent sectors become one, fewer masters are left")
    cut: tuple[str, ...] = option(
        (),
        "keep only integrals with these lines; repeatable, the results are put together; 'spanning': cuts that give the whole reduction",
        metavar="I,J,...",
    )


@dataclass(frozen=True)
class Place:
    """At which point."""

    d: str | None = option(None, "dimension, an integer or a fraction (default: the family's, 41)")
    kinematics: str | None = option(None, "values of the family's invariants (default: the family's)", metavar="NAME=VALUE,...")


@dataclass(frozen=True)
class Modular:
    """Coefficients."""

    prime: int | None = option(
        None, "all arithmetic is modulo this prime, below 2**31 (default: 1009)", metavar="P", excludes=("exact", "symbols")
    )
    exact: bool = option(False, "coefficients as rational numbers at the point; primes are chosen by the program", excludes=("symbols",))
    symbols: str | None = option(None, "coefficients as rational functions of these, 'd' and invariants", metavar="d,NAME,...")


@dataclass(frozen=True)
class Quiet:
    """What is said."""

    quiet: bool = option(False, "no progress bar, no summary")


@dataclass(frozen=True)
class Output:
    """What is written."""

    output: str = option("results/reduction.pkl", "pickle with the result", metavar="FILE")


@dataclass(frozen=True)
class Formats:
    """Other formats."""

    export: tuple[str, ...] = option(
        (),
        "also write the result beside --output as mathematica, form, latex or another format (README has the list); repeatable",
        metavar="NAME,...",
    )
    epsilon: str | None = option(None, "expand coefficients that are functions of d: what d is, such as 4-2*eps", metavar="EXPRESSION")
    order: int = option(0, "the last power of eps in the expansion", metavar="N", least=-1000, most=1000, needs=("epsilon",))


@dataclass(frozen=True)
class Stores:
    """What is kept."""

    work_dir: str = option("ibp_work", "directory for the store, journals and logs", metavar="DIR")
    store: str | None = option(None, "rule store shared by runs (default: store.shelf in the work directory)", metavar="FILE")


@dataclass(frozen=True)
class Machine:
    """Where it runs."""

    local: int | None = option(
        None,
        "number of processes on this machine (default: 1; without a number: all cores)",
        metavar="N",
        bare=str(os.cpu_count()),
        least=1,
    )
    straggler_timeout: str = option(
        "1800", "seconds after which a task is stopped and run again with more processors; 'auto': also learned from the others",
        metavar="S", pattern=(r"auto|[0-9.eE+]+", "auto, or seconds"), needs=("local", "condor"),
    )  # fmt: skip
    straggler_cpus: int = option(
        8, "processors for the second run of a straggler", metavar="N", least=1, most=10_000, needs=("local", "condor")
    )


@dataclass(frozen=True)
class Cluster:
    """HTCondor."""

    condor: bool = option(False, "run on an HTCondor pool; this program must be on a host that can submit jobs", excludes=("local",))
    condor_option: tuple[str, ...] = option(
        (), "a further line for the submit file, such as accounting_group=x; repeatable",
        metavar="KEY=VALUE", pattern=(r"[^=]+=.*", "KEY=VALUE"), needs=("condor",),
    )  # fmt: skip
    transfer_files: bool = option(False, "let HTCondor transfer files: the execute nodes do not see the work directory", needs=("condor",))
    request_memory: int = option(
        1024, "memory for a job; stragglers and jobs held for memory get more", metavar="MB", least=1, most=2_000_000, needs=("condor",)
    )
    max_jobs: int = option(5000, "jobs in HTCondor's queue at a time", metavar="N", least=1, most=2_000_000, needs=("condor",))
    check_interval: float = option(
        5, "seconds between two looks at HTCondor's queue", metavar="S", above=0, below=LONGEST_TIMEOUT_S, needs=("condor",)
    )


@dataclass(frozen=True)
class Runs:
    """Runs that go on."""

    resume: bool = option(
        False, "go on with the unfinished run of the work directory (as the same command does), or say that there is none"
    )
    fresh: bool = option(False, "drop the unfinished run of the work directory and its jobs first", excludes=("resume",))


@dataclass(frozen=True)
class Search:
    """How one-step reductions are found."""

    engine: str = option("rules", "by local elimination, or by a learned search", choices=("rules", "beam"))
    beam_width: int = option(20, "positions that a beam search keeps", metavar="N", least=1, needs=("engine=beam",))
    beam_order: str = option(
        "policy", "how it sorts them: by the heaviest integral left, by how many are left, by the policy",
        choices=("weight", "size", "policy"), needs=("engine=beam",),
    )  # fmt: skip
    max_steps: int = option(10**15, "its steps; after 30 a wider beam is tried in any case", metavar="N", least=1, needs=("engine=beam",))
    policy: str | None = option(None, "weights of the policy, or 'fixed' or 'random' for none (default: the shipped ones)", metavar="FILE")


@dataclass(frozen=True)
class Examples:
    """Examples for a policy."""

    family: str = option("trianglebox", "families to make examples of: A,B,...", metavar="NAME|FILE")
    training_data: str | None = option(None, "file of examples (default: training.npz in the work directory)", metavar="FILE")
    trajectories: int = option(800, "examples to make for each sector", metavar="N", least=1, most=1_000_000)
    seed: int = option(0, "of all that is random", metavar="N", least=0)


@dataclass(frozen=True)
class Reduce(Wanted, Place, Modular, Output, Stores, Machine, Cluster, Runs, Formats, Search, Quiet):
    """Express integrals through master integrals, exactly, modulo a prime or as functions."""

    paper_masters_only: bool = option(
        False, "trianglebox: stop at the 16 published masters only, not at corners of the other sectors", excludes=("symmetries",)
    )
    certificate: str | None = option(
        None, "also write the identities that prove the result", metavar="FILE",
        excludes=("condor", "symmetries", "cut", "exact", "symbols"),
    )  # fmt: skip
    batch: str | None = option(
        None, "what a task is: 'sector', 'auto' (integrals for --job-seconds), or so many integrals (default: sector; auto with --condor)",
        pattern=("sector|auto|[1-9][0-9]{0,8}", "sector, auto, or a number of integrals"), metavar="N", excludes=("exact", "symbols"),
    )  # fmt: skip
    job_seconds: float | None = task_seconds("1; points of exact results 4", needs=("condor", "batch=auto", "exact", "symbols"))
    no_rules: bool = option(False, "search for every integral, reuse no path", needs=("engine=beam",))
    paths: str | None = option(
        None, "write the path found for each integral that was searched", metavar="FILE",
        needs=("engine=beam",), excludes=("exact", "symbols", "cut"),
    )  # fmt: skip
    device: str = option(
        "auto", f"where points are evaluated: {DEVICE}", choices=DEVICES, metavar="auto|cpu|cuda", needs=("exact", "symbols")
    )
    cold: bool = option(False, "ignore the rules in data/ and in the store, find all anew")
    dry_run: bool = option(False, "say what would be done")


@dataclass(frozen=True)
class Differentiate(Wanted, Place, Output, Stores, Machine, Cluster, Runs, Formats, Quiet):
    """Derivatives of the masters through the masters, exact in d and the invariants.

    The matrix A of dM/dx = A M for the masters of the family, or of the sectors below given integrals; 'd': M at d - 2 through M at d.
    What --d and --kinematics do not give stays a symbol.
    """

    variables: str | None = option(None, "invariants x, or 'all' of them, or d", metavar="NAME,...", positional="needed")
    device: str = option("auto", f"where points are evaluated: {DEVICE}", choices=DEVICES, metavar="auto|cpu|cuda")
    job_seconds: float | None = task_seconds("4")
    cold: bool = option(False, "ignore the rules in data/ and in the store, find all anew")
    dry_run: bool = option(False, "say what would be done")


@dataclass(frozen=True)
class Solve(Place, Modular, Output, Stores, Machine, Cluster, Runs, Quiet):
    """Solve a homogeneous linear system: each unknown through the independent ones."""

    system: str | None = option(
        None, "the equations: lines 'unknown: coefficient', equations separated by empty lines", metavar="FILE", positional="needed"
    )
    job_seconds: float | None = task_seconds("4", needs=("exact", "symbols"))
    integrals: str | None = option(None, "file of unknowns that are wanted, one a line (default: all)", metavar="FILE")
    masters: str | None = option(None, "file of unknowns to go last, one a line", metavar="FILE")


@dataclass(frozen=True)
class Verify(Stores, Machine, Quiet):
    """Check a certificate, a result (by new certificates at random points), or the paths of a search.

    A result of a family that is not built in needs its definition.
    """

    file: str | None = option(None, "a certificate, a result, or a file of paths", metavar="FILE", positional="needed")
    family: str | None = option(None, "the family of a result or of paths, if it is not built in", metavar="NAME|FILE")
    kira_config: str | None = option(None, "or the directory of a Kira project that has it", metavar="DIR")


@dataclass(frozen=True)
class Convert(Formats, Quiet):
    """Write a result that is there in other formats, expanded if asked for."""

    file: str | None = option(None, "the result", metavar="RESULT", positional="needed")
    output: str | None = option(None, "pickle to write, whose name the other formats take (default: beside the result)", metavar="FILE")


@dataclass(frozen=True)
class Families:
    """List the built-in families; of one or several: definition, sectors, masters and symmetries.

    Each symmetry is proved by substitution.
    """

    name: str | None = option(None, "a built-in family or a JSON file, or several: A,B,...", metavar="NAME|FILE", positional=True)
    kira_config: str | None = option(None, "directory of a Kira project, whose families are shown", metavar="DIR")
    cut: tuple[str, ...] = option((), "symmetries of integrals with these lines", metavar="I,J,...")
    cold: bool = option(False, "ignore the sectors in data/, find them anew")


@dataclass(frozen=True)
class Status:
    """Show how far the run of a work directory is."""

    work_dir: str = option("ibp_work", "directory of the run", metavar="DIR")
    watch: bool = option(False, "again and again until the run ends")


@dataclass(frozen=True)
class Stop:
    """End the run of a work directory and remove its jobs; what is done stays."""

    work_dir: str = option("ibp_work", "directory of the run", metavar="DIR")


@dataclass(frozen=True)
class MakeExamples(Examples, Machine, Quiet):
    """Make examples to train a policy on."""

    work_dir: str = option("ibp_work", "directory for the examples", metavar="DIR")


@dataclass(frozen=True)
class Train(Examples, Machine, Quiet):
    """Train a policy, on examples that are made first where there are none (needs torch)."""

    work_dir: str = option("ibp_work", "directory for examples, weights and the checkpoint", metavar="DIR")
    policy: str | None = option(None, "weights to write (default: policy.pt in the work directory)", metavar="FILE")
    epochs: int = option(12, "how often training goes through the examples", metavar="N", least=1, most=10_000)
    learning_rate: float = option(2e-3, "of the optimiser at the start", metavar="X", above=0)
    device: str = option("auto", DEVICE, choices=DEVICES, metavar="auto|cpu|cuda")
    fresh: bool = option(False, "begin anew, whatever checkpoint there is")


@dataclass(frozen=True)
class Benchmark(Output):
    """Reduce the published integrals, each in a process of its own, and compare with the published figures."""

    number: int | None = option(None, "only so many of the 19", metavar="N", least=1, positional=True)


@dataclass(frozen=True)
class BenchmarkPoints(Wanted, Stores, Search, Quiet):
    """Time the evaluation of 1, 2, 5, ... up to N points of an exact reduction."""

    number: int | None = option(None, "how many at most", metavar="N", least=1, most=10_000_000, positional="needed")
    paper_masters_only: bool = option(False, "trianglebox: stop at the 16 published masters only", excludes=("symmetries",))
    device: str = option("auto", f"where points are evaluated: {DEVICE}", choices=DEVICES, metavar="auto|cpu|cuda")


@dataclass(frozen=True)
class BenchmarkSearch(Quiet):
    """One-step reductions of N random integrals by a beam search, with the policy and without."""

    number: int = option(200, "how many", metavar="N", least=1, positional=True)
    family: str = option("trianglebox", "a built-in family or a JSON file", metavar="NAME|FILE")
    seed: int = option(0, "of the random integrals", metavar="N", least=0)
    beam_width: int = option(20, "positions that a beam search keeps", metavar="N", least=1)
    beam_order: str = option("policy", "how it sorts them", choices=("weight", "size", "policy"))
    max_steps: int = option(10**15, "its steps", metavar="N", least=1)
    policy: str | None = option(None, "weights of the policy (default: the shipped ones)", metavar="FILE")


@dataclass(frozen=True)
class Bundle:
    """Write this program, with its rooms and data, as one executable file."""

    file: str | None = option(None, "what to write, such as ibp_reduce.pyz", metavar="FILE", positional="needed")


def training_files(options: MakeExamples | Train) -> TrainingFiles:
    """Raises InputError where one of them cannot be written, or is two things."""
    from ibp.errors import InputError
    from ibp.training import TrainingFiles
    from ibp.weights import NO_POLICY

    work, policy = Path(options.work_dir), getattr(options, "policy", None)
    if policy in NO_POLICY:
        raise InputError(f"--policy {policy}: means a search without a policy; give another name to the weights")
    data = work / "training.npz" if options.training_data is None else Path(options.training_data)
    weights = work / "policy.pt" if policy is None else Path(policy)
    check_writable(work, "--work-dir", is_directory=True)
    for path, what in ((data, "--training-data"), (weights, "--policy")):
        check_writable(path, what)
    return TrainingFiles(data, weights, work / "training.checkpoint")


def store_path(options: Any) -> Path:
    return Path(options.store) if options.store is not None else Path(options.work_dir) / "store.shelf"


def names_with_numbers(options: Any) -> set[str]:
    """What --kinematics and --d name."""
    kinematics, d = getattr(options, "kinematics", None), getattr(options, "d", None)
    return {item.partition("=")[0].strip() for item in (kinematics or "").split(",")} | ({"d"} if d is not None else set())


def asked_of(options: Any) -> Asked:
    """Raises InputError."""
    from ibp.targets import SEED_FAMILY, Asked

    families = options.family if options.family is not None or options.kira_config is not None else SEED_FAMILY
    return Asked(families, options.integral, options.integrals, options.masters, options.symmetries)


def kira_project(options: Any) -> KiraProject:
    """Raises InputError."""
    from ibp.kira import read_kira_project

    families = getattr(options, "family", getattr(options, "name", None))
    return read_kira_project(Path(options.kira_config), families, written_files(options))


def written_files(options: Any) -> list[Path]:
    if not hasattr(options, "output"):
        return []
    outputs = outputs_of(options, ("d",))
    store = [Path(options.store)] if options.store is not None else []
    return [outputs.result, *store, *([outputs.paths] if outputs.paths else []), *outputs.beside().values()]


def requests_of(options: Any, say: Callable[[str], None]) -> list[Request]:
    """What is asked for, by family. Raises InputError."""
    from ibp.kira import read_kira_requests
    from ibp.targets import read_requests

    if options.kira_config is None:
        return read_requests(asked_of(options))
    certified = getattr(options, "certificate", None) is not None
    return read_kira_requests(asked_of(options), kira_project(options), say, written_files(options), certified)


def only_request(options: Any, say: Callable[[str], None]) -> Request:
    """Raises InputError where several families are asked for."""
    from ibp.targets import only_one

    return only_one(requests_of(options, say))


def problem_of(options: Any, request: Request, prime: int | None) -> Problem:
    """Raises InputError."""
    from ibp.errors import InputError
    from ibp.reductions import pose_problem
    from ibp.targets import parse_point

    if getattr(options, "certificate", None) is not None and (request.symmetries or request.cut):
        raise InputError("--certificate is for whole reductions by identities: leave out symmetries and cuts; verify checks those")
    point = parse_point(request.family, request.integrals, getattr(options, "d", None), getattr(options, "kinematics", None), prime)
    default = options.integral is None and options.integrals is None and options.kira_config is None
    published = getattr(options, "paper_masters_only", False) or (default and not options.symmetries)
    beam = beam_of(options, request.family) if getattr(options, "engine", "rules") == "beam" else None
    return pose_problem(request, point, published, beam, getattr(options, "policy", None))


def beam_of(options: Any, family: Family) -> Beam:
    """Raises PolicyRefused."""
    from ibp.beam import Beam
    from ibp.shipped import shipped
    from ibp.weights import read_policy

    policy = read_policy(str(shipped("policy.pt")) if options.policy is None else options.policy, family)
    return Beam(options.beam_width, options.max_steps, options.beam_order, not getattr(options, "no_rules", False), policy)


def outputs_of(options: Any, symbols: Sequence[str] = ()) -> Outputs:
    """symbols: what the coefficients will be functions of. Raises InputError."""
    from ibp.errors import InputError
    from ibp.exports import parse_formats
    from ibp.reductions import Outputs

    certificate, paths = getattr(options, "certificate", None), getattr(options, "paths", None)
    if (epsilon := getattr(options, "epsilon", None)) is not None and isinstance(options, Place) and "d" not in symbols:
        raise InputError("--epsilon: the coefficients of this run are not functions of d, or --d gives it a number; leave --epsilon out")
    return Outputs(
        Path(options.output),
        parse_formats(getattr(options, "export", ())),
        epsilon,
        getattr(options, "order", 0),
        None if certificate is None else Path(certificate),
        None if paths is None else Path(paths),
    )


def running_of(options: Any) -> Running:
    """How to run. Raises InputError."""
    from executors.choose import Condor, Local, Stragglers
    from executors.submitter import split_options
    from ibp.errors import InputError
    from ibp.runs import Running

    text = options.straggler_timeout
    try:
        seconds = 1800.0 if text == "auto" else float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < LONGEST_TIMEOUT_S:
        raise InputError(f"--straggler-timeout {text}: expected auto, or seconds above 0, below {LONGEST_TIMEOUT_S:.0f}")
    stragglers = Stragglers(seconds, text == "auto", options.straggler_cpus)
    where: Local | Condor = Local(None if options.local == 1 else options.local, stragglers=stragglers)
    if getattr(options, "condor", False):
        where = Condor(
            options.check_interval,
            memory_mb=options.request_memory,
            options=split_options(options.condor_option),
            transfer_files=options.transfer_files,
            max_jobs=options.max_jobs,
            stragglers=stragglers,
        )
    batch = getattr(options, "batch", None)
    size = int(batch) if batch not in (None, "auto", "sector") else None
    more = (getattr(options, name, None) for name in ("job_seconds", "resume", "fresh"))
    return Running(Path(options.work_dir), where, size, *more)


def check_writable(path: Path, what: str, is_directory: bool = False) -> None:
    """Raises InputError where a file or directory could not be written; creates nothing."""
    from executors.files import why_not_writable
    from ibp.errors import InputError

    if why := why_not_writable(path, is_directory):
        raise InputError(f"{what} {path}: {why}")


def check_places(options: Any, outputs: Outputs) -> None:
    """Raises InputError where a path cannot be written, or one file would be two things."""
    from ibp.families import BUILT_IN_FAMILIES, family_names
    from ibp.run_directory import check_uses

    work = Path(options.work_dir)
    check_writable(work, "--work-dir", is_directory=True)
    written = {"--output": outputs.result, "--store": store_path(options), **outputs.beside()}
    if outputs.paths is not None:
        written["--paths"] = outputs.paths
    for what, path in written.items():
        check_writable(path, what)
    read = {f"--{name}": Path(text) for name in ("integrals", "masters") if (text := getattr(options, name, None)) is not None}
    if (system := getattr(options, "system", None)) is not None:
        read["the system"] = Path(system)
    family = getattr(options, "family", None)
    if family is not None and options.kira_config is None:
        read |= {f"--family {name}": Path(name) for name in family_names(family) if name not in BUILT_IN_FAMILIES}
    check_uses(written | {"--work-dir": work} | read, work)
