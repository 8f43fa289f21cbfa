#!/usr/bin/env python3
"""Reduce Feynman integrals to master integrals by integration-by-parts identities.

    python ibp_reduce.py --local 8                             # I[3,2,1,3,2,2,-6] of trianglebox to its 16 masters
    python ibp_reduce.py --integral 1,1,1,1,1,1,-3 --output r.pkl
    python ibp_reduce.py --family doublebox --integral 1,1,1,1,1,1,1,-2,-2
    python ibp_reduce.py --integrals targets.txt --prime 2147483647
    python ibp_reduce.py --family doublebox,nonplanar-doublebox --integrals targets.txt --symmetries
    python ibp_reduce.py --certificate proof.cert --export mathematica,form
    python ibp_reduce.py --verify proof.cert
    python ibp_reduce.py --integral 1,1,1,1,1,1,-3 --symbols d  # coefficients as functions of d; --exact: rational numbers
    python ibp_reduce.py --kira-config my_kira_project         # families, kinematics and lists of a Kira project
    python ibp_reduce.py --system equations.txt                # any homogeneous linear system
    python ibp_reduce.py --family doublebox --differential-equation s,t
    python ibp_reduce.py --list-families
    python ibp_reduce.py --benchmark

How a reduction goes (the sections below, in this order):
    Errors                  one root, one line for the user
    Constants               limits, the neighbourhoods that a search tries
    Families                definition, built-in families, JSON files
    Identities              IBP and LI operators derived from the propagators, then put at a numerical point
    Sectors and weights     bit masks, zero sectors, the order of integrals as one int64; sparse elimination
    Symmetries              shifts of momenta that make sectors equivalent, found by U and F, proved by substitution
    Rules: discovery        local elimination around one integral finds the rows that reduce it
    Rules: replay           the same rows reduce all other integrals of the sector, many at a time
    Moves                   the other way to a rule: identities taken one by one, each eliminating the heaviest integral left
    Policy                  a small set network that says which identity to take; weights and their file
    Guide                   a smaller one that says which rows local elimination tries first; needs no torch
    Beam search             several such ways followed at once
    One sector              waves of one-step results, coefficients carried down to the subsectors
    One-step tasks          batches of integrals for any executor, and what a closure under one-step reduction has met
    Masters                 which integrals nothing reduces; corners; a preferred basis
    Store                   rules, identities and one-step results on disk, shared by programs; the journal of a run
    Targets                 linear combinations of integrals that are reduced as one; what a run is asked for
    Controller              sectors from the top down, over an executor
    Asynchronous controller one-step tasks without barriers, resumable; what --status shows
    Many points             a reduction recorded once, replayed at many primes and points in the same array operations
    Reconstruction          rational numbers and functions from values modulo primes
    Differential equations  derivatives of the masters through the masters, and their values in other dimensions
    Results                 pickle, summary
    Several families        one result; masters of a later family through those of an earlier one
    Paths                   what beam searches found, as a file that can be checked by itself
    Training                examples for the policy out of eliminations and scrambles; how it learns and how it is measured
    Coefficients            rational functions as texts: their value, their expansion around a dimension
    Formats                 results for Mathematica, FORM, Kira, JSON and sympy, and back
    Certificates            results with the identities that prove them; an independent verification
    Benchmark               the published integrals against the published figures
    Kira input              integralfamilies.yaml, kinematics.yaml and jobs.yaml of a Kira project
    Linear systems          equations of a file, solved by the same elimination
    Command line

Glossary: L loop momenta k, E independent external momenta p, n propagators; an integral is its tuple of n indices; sector = bit mask of
the positive ones; t = number of positive indices, r = their sum, s = minus the sum of the others, dots = r - t; corner = positive indices
1, others 0; seed = the indices an identity is applied to; row = (operator, seed - target), one identity; prime p: all arithmetic is in the
integers modulo p, below 2**31 so that products fit an int64.
References: Chetyrkin, Tkachov, Nucl. Phys. B192 (1981) 159 (IBP); Gehrmann, Remiddi, hep-ph/9912329 (LI); Laporta, hep-ph/0102033
(ordered elimination); Pak, arXiv:1111.0868 (canonical U and F); arXiv:2502.05121 (the default family and its 16 masters).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import pickle
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from executors import __version__
from executors.condor import CondorExecutor
from executors.directories import claim_directory, private_directory, process_exists
from executors.errors import CondorMissing, DirectoryRefused, ExecutorError
from executors.files import ensure_standard_streams, load_builtins
from executors.inline import InlineExecutor
from executors.job_runs import remove_run
from executors.local import LocalExecutor
from executors.schedd import check_condor_tools
from executors.submit_file import split_options
from executors.tasks import LONGEST_TIMEOUT_S, Description, TimeLimits, call_name
from ibp.arithmetic import parse_number
from ibp.beam import BEAM_ORDERS, BEAM_STEPS, Beam, search_path
from ibp.certificates import make_certificate, pack_certificate, unpack_certificate, verify_certificate
from ibp.coefficients import epsilon_summary, expand_result, parse_expansion, symbols_of
from ibp.console import Progress, format_rate, format_seconds, peak_memory_kb, say, write_output
from ibp.controller import Controller, known_nonzero_sectors
from ibp.cuts import describe_cuts, lowest_sectors, merge_cuts, parse_cut
from ibp.differential import DifferentialProblem, DifferentialSampler
from ibp.discovery import RuleFinder
from ibp.errors import CertificateError, InputError, PolicyRefused, ReductionError, StopRequested, how_to_install
from ibp.exact import ExactProblem
from ibp.examples import make_training_data
from ibp.exports import FORM_OWN, check_export_names, export_path, parse_formats, write_exports
from ibp.families import (
    BUILT_IN_FAMILIES,
    Family,
    Index,
    check_common,
    cut_lines,
    family_names,
    load_families,
    load_family,
    load_one_family,
)
from ibp.geometry import Geometry
from ibp.guide import read_guide
from ibp.identities import Point, derive_identities, evaluate_identities, generic_point, show_point
from ibp.joint_families import reduce_families
from ibp.journal import Journal, read_record
from ibp.kira import KiraFamily, KiraProject, KiraSelection, read_jobs, read_kinematics, read_kira_families
from ibp.knowledge import Knowledge
from ibp.paths import replay_paths, write_paths
from ibp.policy import NO_POLICY, load_policy, read_policy
from ibp.probe import probe
from ibp.problems import ExactOutcome, Outcome, Problem, base_record, result_record
from ibp.reconstruction import Sample
from ibp.records import exact_summary, joined_record, point_costs, summary, write_pickle
from ibp.residues import GENERIC_PRIME, MAX_PRIME, OTHER_PRIME, SMALLEST_PROBE_PRIME, check_device, is_usable_prime, probe_primes
from ibp.run_directory import RunDirectory
from ibp.sampler import Sampler, reconstruct_problem
from ibp.sectors import Sector, corner, layout_for, r_and_s, sector_of, sector_order, show
from ibp.shipped import program, shipped
from ibp.step_controller import STATUS_FORMAT, STATUS_INTERVAL_S, TICK_S, BatchPlan, StepController
from ibp.steps import reduce_steps
from ibp.store import Store
from ibp.symmetries import describe_symmetries
from ibp.systems import LinearSystem, SystemProblem, SystemSampler, back_substitute, eliminate_system, prefer, read_system
from ibp.tables import unpack_keys
from ibp.targets import Request, family_of, integrals_in, only_one, parse_integral, read_lines, read_targets, show_target, show_targets
from ibp.trace import record_trace
from ibp.training import Training, TrainingPlan, TrainingSet, search_targets, write_figure, write_table, write_trained
from ibp.verification import read_result, verify_result


def run_training(options: Options) -> int:
    """--make-training-data and --train-policy."""
    plan = TrainingPlan(options.epochs, options.learning_rate, seed=options.seed)
    families = [load_family(name) for name in dict.fromkeys(family_names(options.family))]
    check_training_options(options, families)
    work = Path(options.work_dir)
    data_path, weights = training_paths(options)
    device = training_device(options.device) if options.train_policy else ""  # before minutes are spent on examples
    progress = Progress(options.quiet)
    try:
        with claim_directory(options.work_dir):
            if options.make_training_data or not data_path.exists():
                with make_executor(options, work, progress.say) as executor:
                    counts = make_training_data(families, options.trajectories, options.seed, data_path, executor, progress)
                if not options.quiet:
                    progress.close()
                    print(f"{data_path}: " + ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items()))
            if not options.train_policy:
                return 0
            data = TrainingSet(data_path)
            if options.family != Options.family and data.header["families"] != {family.name: family.identifier for family in families}:
                held = ", ".join(data.header["families"])
                raise InputError(f"--family {options.family}: {data_path} has examples of {held}; make others by --make-training-data")
            return train_policy(data, plan, options, weights, device, progress)
    finally:
        progress.close()


def check_training_options(options: Options, families: Sequence[Family]) -> None:
    """Raises InputError."""
    check_running_options(options)
    if len({family.name for family in families}) < len(families):
        raise InputError(f"--family {options.family}: two families of the same name; a policy tells families by their names")


def training_paths(options: Options) -> tuple[Path, Path]:
    """The files of the examples and of the weights. Raises InputError where one of them cannot be written, or is two things."""
    work = Path(options.work_dir)
    data = work / "training.npz" if options.training_data is None else Path(options.training_data)
    weights = work / "policy.pt" if options.policy is None else Path(options.policy)
    if options.policy in NO_POLICY:
        raise InputError(f"--policy {options.policy}: means a search without a policy; give another name to the weights")
    check_writable(work, "--work-dir", is_directory=True)
    for path, what in ((data, "--training-data"), (weights, "--policy")):
        check_writable(path, what, is_directory=False)
    uses = (data, weights, weights.with_suffix(".csv"), weights.with_suffix(".png"), work / "training.checkpoint")
    if len({os.path.realpath(path) for path in uses}) < len(uses):
        raise InputError(f"--training-data {data}, --policy {weights}: need files of their own beside the curve and the checkpoint")
    return data, weights


def train_policy(data: TrainingSet, plan: TrainingPlan, options: Options, weights: Path, device: str, progress: Progress) -> int:
    """Train, from the checkpoint where there is one; weights, curve and checkpoint are written after each epoch."""
    training = Training(data, plan, device, Path(options.work_dir) / "training.checkpoint")
    if options.fresh:
        training.checkpoint.unlink(missing_ok=True)
    training.restore()
    if not options.quiet:
        size = sum(parameter.numel() for parameter in training.network.parameters())
        print(
            f"{len(data.shown):,} positions of {', '.join(data.header['families'])} to train on, {len(data.held_out):,} held out; "
            f"{size:,} parameters, on {device}; {len(training.curve)} of {plan.epochs} epochs done",
            flush=True,
        )
    if training.curve:
        write_trained(training, weights)  # whoever was killed had perhaps no time for it
    while len(training.curve) < plan.epochs:
        epoch = len(training.curve)
        name = f"epoch {epoch + 1} of {plan.epochs}, batches"
        if not training.run_epoch(lambda done, total, name=name: progress.show(name, done, total, "")):
            raise ReductionError(
                f"training: the loss is not a number in epoch {epoch + 1}; the weights of epoch {epoch} are kept in {weights}"
                if epoch
                else "training: the loss is not a number in the first epoch, nothing is kept; take a smaller --learning-rate"
            )
        write_trained(training, weights)
        line = training.curve[-1]
        if not options.quiet:
            progress.say(
                f"epoch {line['epoch']}: loss {line['loss']:.4f}, held out {line['held_out_loss']:.4f}, top-1 {line['top1']:.2%} "
                f"(eliminations {line['top1_eliminations']:.2%}, scrambles {line['top1_scrambles']:.2%}), top-5 {line['top5']:.2%}, "
                f"guide {line['guide']:.2%}, {line['seconds']:.0f} s"
            )
    if not options.quiet:
        progress.close()
        print(f"weights in {weights}, curve in {weights.with_suffix('.csv')}")
    return 0


def run_search_benchmark(options: Options) -> int:
    """--benchmark-search: one-step reductions of random integrals, by the policy and without one."""
    family = load_one_family(options.family)
    beam = make_beam(replace(options, engine="beam"), family)
    targets = search_targets(family, options.benchmark_search, options.seed)
    equations = evaluate_identities(derive_identities(family), generic_point(family))
    most = min(beam.max_steps, BEAM_STEPS)
    beam = replace(beam, max_steps=most)
    print(f"{len(targets)} integrals of {family.name}, width {beam.width}, order {beam.order}, at most {most} steps")
    print(f"{'policy':10}{'found':>8}{'steps':>8}{'seconds':>10}{'mean':>9}{'most':>9}{'rows':>7}   (median steps and seconds of a search)")
    progress = Progress(options.quiet)
    for name, policy in (("trained", beam.policy), ("random", f"random {options.seed}"), ("fixed", "fixed")):
        load_policy(policy)
        steps, seconds, rows = [], [], []
        for number, (bits, target) in enumerate(targets):
            progress.show(name, number, len(targets), "")
            finder = RuleFinder(Sector(layout_for([tuple(target.tolist())], family.n), bits), equations)
            started = time.perf_counter()
            rule, made = search_path(finder, target, equations, replace(beam, policy=policy))
            seconds.append(time.perf_counter() - started)
            if rule is not None:
                steps.append(made)
                rows.append(len(rule.rows))
        progress.close()
        share, middle = len(rows) / len(targets), np.median
        print(
            f"{name:10}{share:8.1%}{middle(steps or [0]):8.0f}{middle(seconds):10.3f}{np.mean(seconds):9.3f}{max(seconds):9.2f}"
            f"{middle(rows or [0]):7.0f}",
            flush=True,
        )
    return 0


def training_device(name: str) -> str:
    """What torch calls it. Raises InputError where this machine has none."""
    check_device(name)
    import torch

    return name.removeprefix("torch:") if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


BENCHMARK_COLUMNS = {  # column: format
    "integral": "18",
    "r": "3",
    "s": "3",
    "dots": "5",
    "here_s": "8.2f",
    "here_mb": "8.0f",
    "kira_s": "8.1f",
    "kira_mb": "8.0f",
    "sailir_s": "9.1f",
    "kira/here": "10.0f",
    "kira/here_mb": "13.0f",
    "sailir/here": "12.0f",
}


def run_benchmark(options: Options) -> int:
    """Reduce the published integrals, each in a fresh process, then all in one; table on stdout, CSV and plot beside the output."""
    import csv
    import tempfile

    check_writable(Path(options.output), "--output", is_directory=False)
    source = shipped("benchmark_published.csv")
    if not source.is_file():
        raise InputError(f"{source}: the published figures are missing; --benchmark needs data/ beside ibp_reduce.py")
    with source.open(newline="") as file:
        published = list(csv.DictReader(file))
    if options.benchmark:
        published = published[:: max(len(published) // options.benchmark, 1)][: options.benchmark]
    rows = []
    print("".join(f"{name:>{int(float(width.rstrip('f')))}}" for name, width in BENCHMARK_COLUMNS.items()))
    with tempfile.TemporaryDirectory() as scratch:
        for line in published:
            rows.append(_benchmark_row(line, *_measure([f"--integral={line['integral']}"], Path(scratch))))
            print("".join(f"{rows[-1][name]:>{width}}" for name, width in BENCHMARK_COLUMNS.items()), flush=True)
        targets = Path(scratch) / "targets.txt"
        targets.write_text("\n".join(line["integral"] for line in published))
        seconds, megabytes = _measure(["--integrals", str(targets)], Path(scratch))
    here, kira, sailir = (sum(row[name] for row in rows) for name in ("here_s", "kira_s", "sailir_s"))
    print(f"{len(rows)} integrals, a process each: {here:.1f} s here, {kira:,.0f} s Kira, {sailir:,.0f} s SAILIR on a farm")
    print(f"{len(rows)} integrals in one process: {seconds:.1f} s, {megabytes:.0f} MB; every one ends on the 16 masters")
    _write_benchmark(rows, Path(options.output).with_name("benchmark.csv"))
    return 0


def _measure(arguments: list[str], scratch: Path) -> tuple[float, float]:
    """Seconds of the whole process and its peak MB. Raises ReductionError where it fails or does not end on the 16 masters."""
    import subprocess

    output = scratch / "result.pkl"
    command = [sys.executable, str(program()), *arguments, "--paper-masters-only", "--quiet"]
    started = time.perf_counter()
    run = subprocess.run([*command, "--work-dir", str(scratch), "--output", str(output)], capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if run.returncode:
        raise ReductionError(f"benchmark: {' '.join(arguments)} failed: {run.stderr or run.stdout}")
    result = load_builtins(output.read_bytes())
    masters = set(BUILT_IN_FAMILIES["trianglebox"].paper_masters)
    for target, expression in result["reductions"].items():
        if not expression or not set(expression) <= masters:
            raise ReductionError(f"benchmark: {show(target)} does not end on the 16 masters")
    return seconds, result["peak_memory_kb"] / 1024


def _benchmark_row(line: dict[str, str], seconds: float, megabytes: float) -> dict[str, Any]:
    kira_s, kira_mb, sailir_s = (float(line[name]) for name in ("kira_seconds", "kira_peak_mb", "sailir_seconds"))
    ratios = (kira_s / seconds, kira_mb / megabytes, sailir_s / seconds)
    values = (line["integral"], int(line["r"]), int(line["s"]), int(line["dots"]), seconds, megabytes, kira_s, kira_mb, sailir_s, *ratios)
    return dict(zip(BENCHMARK_COLUMNS, values))


def _write_benchmark(rows: list[dict[str, Any]], table: Path) -> None:
    """CSV, and a plot of the same name where matplotlib is installed."""
    values = ([round(value, 3) if isinstance(value, float) else value for value in row.values()] for row in rows)
    write_table(table, [BENCHMARK_COLUMNS, *values])
    print(f"written to {table}")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"no plot: matplotlib is not installed ({how_to_install('matplotlib')})")
        return
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for label, name, marker in (
        ("SAILIR, HTCondor farm", "sailir_s", "s"),
        ("Kira, 1 core", "kira_s", "o"),
        ("here, 1 core", "here_s", "D"),
    ):
        axes.semilogy(range(len(rows)), [row[name] for row in rows], marker, label=label)
    axes.set_xticks(range(len(rows)), [row["integral"] for row in rows], rotation=60, ha="right", fontsize=8)
    axes.set_ylabel("seconds, whole process")
    axes.set_title("trianglebox integrals to the 16 masters, modulo 1009")
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    write_figure(table.with_suffix(".png"), figure)
    print(f"written to {table.with_suffix('.png')}")


SEED_INTEGRAL = "3,2,1,3,2,2,-6"
GONE = "GONE: go on with the same command, or remove its jobs by --stop"
DEFAULT_PRIME = 1009
STATUS_TRUSTED_S = 30.0  # a status not older than this shows that a controller on another host is at work
STOP_PATIENCE_S = 90.0  # how long --stop waits for a controller to remove its jobs
LARGEST_ORDER = 1000
EVERY_FAMILY = "*"  # in place of a name, with --kira-config: all that the lists name


def _option(default: Any, text: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": text, **more})


@dataclass(frozen=True)
class Options:
    """Every option, its default and what it does; the command line is made from this."""

    integral: str | None = _option(
        None, f"indices of the integral to reduce (default: {SEED_INTEGRAL} with --paper-masters-only)", metavar="A1,A2,..."
    )
    integrals: str | None = _option(
        None,
        "file of integrals to reduce in one run, one a line: indices, or FAMILY[indices]; or combinations, 'NAME: 3*I[1,1] - 2/5*I[2,0]'",
        metavar="FILE",
    )
    output: str = _option("results/reduction.pkl", "pickle with the result", metavar="FILE")
    work_dir: str = _option("ibp_work", "directory for the store and logs", metavar="DIR")
    local: int | None = _option(
        None, "number of processes on this machine (default: 1; without a number: all cores)", nargs="?", const=os.cpu_count(), metavar="N"
    )
    family: str = _option(
        "trianglebox", "a built-in family or a JSON file, or several: A,B,...; with --kira-config of its families", metavar="NAME|FILE"
    )
    list_families: bool = _option(False, "show the built-in families and stop")
    d: str | None = _option(None, "dimension, an integer or a fraction (default: the family's, 41)")
    kinematics: str | None = _option(None, "values of the family's invariants (default: the family's)", metavar="NAME=VALUE,...")
    prime: int | None = _option(None, f"all arithmetic is modulo this prime, below 2**31 (default: {DEFAULT_PRIME})")
    paper_masters_only: bool = _option(False, "trianglebox: stop at the 16 published masters only, not at corners of the other sectors")
    masters: str | None = _option(None, "file of preferred masters, one a line; the result is rewritten in them", metavar="FILE")
    condor: bool = _option(False, "run on an HTCondor pool; this program must be on a host that can submit jobs")
    batch: str | None = _option(
        None,
        "what a task is: 'sector', 'auto' (integrals for --job-seconds), or a number of integrals (default: sector; auto with --condor)",
    )
    job_seconds: float | None = _option(
        None, "how long a task of --batch auto should take (default: 60 with --condor, else 1)", metavar="S"
    )
    straggler_timeout: str = _option(
        "1800",
        "seconds after which a task is stopped and run again with more processors; 'auto': also learned from the others",
        metavar="S",
    )
    straggler_cpus: int = _option(8, "processors for the second run of a straggler", metavar="N")
    check_interval: float = _option(5, "seconds between two looks at HTCondor's queue", metavar="S")
    condor_option: tuple[str, ...] = _option(
        (), "a further line for the submit file, such as accounting_group=x; repeatable", metavar="KEY=VALUE"
    )
    transfer_files: bool = _option(False, "let HTCondor transfer files: the execute nodes do not see the work directory")
    request_memory: int = _option(1024, "memory for a job; stragglers and jobs held for memory get more", metavar="MB")
    max_jobs: int = _option(5000, "jobs in HTCondor's queue at a time", metavar="N")
    resume: bool = _option(
        False, "go on with the unfinished run of the work directory (as the same command does), or say that there is none"
    )
    fresh: bool = _option(False, "drop the unfinished run of the work directory and its jobs first")
    status: bool = _option(False, "show how far the run of the work directory is, and stop")
    watch: bool = _option(False, "show it again and again until the run ends")
    stop: bool = _option(False, "end the run of the work directory and remove its jobs; --resume goes on with what is done")
    store: str | None = _option(None, "rule store shared by runs (default: store.shelf in the work directory)", metavar="FILE")
    cold: bool = _option(False, "ignore the rules in data/ and in the store, find all anew")
    dry_run: bool = _option(False, "say what would be done, and stop")
    benchmark: int | None = _option(None, "reduce the published integrals (or only N of them) and compare", nargs="?", const=0, metavar="N")
    engine: str = _option("rules", "how a one-step reduction is found: 'rules' (local elimination) or 'beam' (learned search)")
    beam_width: int = _option(Beam.width, "positions that a beam search keeps", metavar="N")
    beam_order: str = _option(
        "policy", "how a beam search sorts them: 'weight' (heaviest integral left), 'size' (how many are left), 'policy'"
    )
    max_steps: int = _option(Beam.max_steps, f"steps of a beam search; after {BEAM_STEPS} a wider beam is tried in any case", metavar="N")
    no_rules: bool = _option(False, "with --engine beam: search for every integral, reuse no path")
    paths: str | None = _option(None, "with --engine beam: write the path found for each integral that was searched", metavar="FILE")
    replay: str | None = _option(None, "check the paths of such a file against the identities, and stop", metavar="FILE")
    policy: str | None = _option(None, "weights of the policy, or 'fixed' or 'random' for none (default: the shipped ones)", metavar="FILE")
    make_training_data: bool = _option(False, "make examples to train a policy on")
    train_policy: bool = _option(False, "train a policy (weights: --policy, or policy.pt in the work directory)")
    benchmark_search: int | None = _option(
        None, "one-step reductions of N random integrals (200), with the policy and without", nargs="?", const=200, metavar="N"
    )
    training_data: str | None = _option(None, "file of examples (default: training.npz in the work directory)", metavar="FILE")
    trajectories: int = _option(800, "examples to make for each sector", metavar="N")
    epochs: int = _option(TrainingPlan.epochs, "how often training goes through the examples", metavar="N")
    learning_rate: float = _option(TrainingPlan.learning_rate, "of the optimiser at the start", metavar="X")
    seed: int = _option(0, "of all that is random in the examples and in training", metavar="N")
    device: str = _option(
        "auto", "'cpu' or 'cuda', for training and for many points; 'auto': training takes a GPU if there is one, points the processor"
    )
    quiet: bool = _option(False, "no progress bar, no summary")
    certificate: str | None = _option(None, "also write the identities that prove the result", metavar="FILE")
    verify: str | None = _option(None, "check a certificate, or a result by new certificates at random points, and stop", metavar="FILE")
    export: tuple[str, ...] = _option(
        (),
        "also write the result for these programs, beside --output: mathematica, form, kira, json, sympy; repeatable",
        metavar="NAME,...",
    )
    epsilon: str | None = _option(None, "expand coefficients that are functions of d: what d is, such as 4-2*eps", metavar="EXPRESSION")
    order: int | None = _option(None, "the last power of eps in the expansion (default: 0)", metavar="N")
    convert: str | None = _option(None, "apply --export and --epsilon to a result that is there, and stop", metavar="RESULT")
    exact: bool = _option(False, "coefficients as rational numbers at the point; primes are chosen by the program")
    symbols: str | None = _option(None, "coefficients as rational functions of these, 'd' and invariants", metavar="d,NAME,...")
    benchmark_points: int | None = _option(None, "time the evaluation of up to N points of the integral, and stop", metavar="N")
    differential_equation: str | None = _option(
        None,
        "the matrix A of dM/dx = A M for the masters of the family, or of the sectors below given integrals: invariants x, or 'all' of "
        "them; 'd': M at d - 2 through M at d",
        metavar="NAME,...",
    )
    kira_config: str | None = _option(
        None,
        "directory of a Kira project: config/*.yaml, and the lists of its jobs.yaml (--family picks one of its families)",
        metavar="DIR",
    )
    system: str | None = _option(
        None, "solve the linear system of this file: lines 'unknown: coefficient', equations separated by empty lines", metavar="FILE"
    )
    symmetries: bool = _option(False, "use relations between sectors: integrals of equivalent sectors become one, fewer masters are left")
    list_symmetries: bool = _option(False, "show the symmetries of the families, each proved by substitution, and stop")
    cut: tuple[str, ...] = _option(
        (),
        "keep only integrals with these lines; repeatable, the results are put together; 'spanning': cuts that give the whole reduction",
        metavar="I,J,...",
    )


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ibp_reduce.py",
        description="Reduce Feynman integrals to master integrals by integration-by-parts identities, exactly modulo a prime.",
        epilog="exit codes: 0 done; 1 not everything reduced; 2 wrong usage; 130 interrupted",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    kinds = {"int": int, "float": float, "int | None": int, "float | None": float}
    for option in fields(Options):
        names = dict.fromkeys((f"--{option.name.replace('_', '-')}", f"--{option.name}"))
        more = dict(option.metadata)
        if option.type == "bool":
            parser.add_argument(*names, action="store_true", **more)
        elif option.type == "tuple[str, ...]":
            parser.add_argument(*names, action="append", **more)
        else:
            parser.add_argument(*names, default=option.default, type=kinds.get(option.type, str), **more)
    return parser


def parse_options(argv: Sequence[str]) -> Options:
    """Raises SystemExit(2) for usage errors."""
    joined: list[str] = []
    for word in argv:  # '--integral -1,2,3': argparse takes a leading minus for an option
        if joined and joined[-1] in ("--integral", "--d") and re.match(r"-\d", word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    values = vars(make_parser().parse_args(joined))
    if values["kira_config"] is not None and not any(word.partition("=")[0] == "--family" for word in joined):
        values["family"] = EVERY_FAMILY
    return Options(**{name: tuple(value or ()) if name in ("condor_option", "export", "cut") else value for name, value in values.items()})


def read_requests(options: Options) -> list[Request]:
    """What a run is asked for, by family. Raises InputError."""
    if options.integral is not None and options.integrals is not None:
        raise InputError("--integral and --integrals contradict each other: give one of them")
    if options.kira_config is not None:
        return read_kira_requests(options)
    families = load_families(options.family)
    check_common(families, options.family)
    if options.integral is None and options.integrals is None and [family.name for family in families] != ["trianglebox"]:
        raise InputError(f"--family {options.family} needs --integral or --integrals: there is no default integral for it")
    return everyone_asked(options, given_requests(options, families), families, options.symmetries)


def given_requests(options: Options, families: Sequence[Family]) -> list[Request]:
    """What --integral or --integrals want of these families. Raises InputError."""
    if options.integrals is not None:
        return read_targets(options.integrals, families, "--integrals")
    text = SEED_INTEGRAL if options.integral is None else options.integral
    family = family_of(text, families, "--integral")
    return [Request(family, (parse_integral(text, family, "--integral"),))]


def everyone_asked(
    options: Options, requests: Sequence[Request], families: Sequence[Family], symmetries: bool, preferred: Sequence[Request] = ()
) -> list[Request]:
    """With the preferred masters; with symmetries, families of a list of which nothing is wanted lend their masters to later ones."""
    if options.masters is not None:
        preferred = read_targets(options.masters, families, "--masters", combinations=False)
    if symmetries and options.family != EVERY_FAMILY:
        own = {request.family.name: request for request in requests}
        requests = [own.get(family.name, Request(family)) for family in families]
    masters = {family.name: dict.fromkeys(m for other in preferred if other.family is family for m in other.targets) for family in families}
    return [replace(request, preferred=tuple(masters[request.family.name]), symmetries=symmetries) for request in requests]


def read_kira_project(options: Options) -> KiraProject:
    """The families of --kira-config. Raises InputError."""
    directory = Path(options.kira_config)
    if not directory.is_dir():
        raise InputError(f"--kira-config {directory}: no such directory")
    config, kinematics = directory / "config" / "integralfamilies.yaml", directory / "config" / "kinematics.yaml"
    known = read_kira_families(config, read_kinematics(kinematics))
    names = list(known) if options.family == EVERY_FAMILY else [name.strip() for name in options.family.split(",")]
    if not set(names) <= set(known) or len(set(names)) < len(names):
        raise InputError(f"--family {options.family}: {config} has {', '.join(known)}")
    jobs = directory / "jobs.yaml"
    check_not_written(options, [config, kinematics, jobs])
    return KiraProject(known, [known[name].family for name in names], config, jobs)


def check_not_written(options: Options, files: Sequence[Path]) -> None:
    """Raises InputError where a run would write to one of these files of a Kira project."""
    for path in (options.output, options.store, options.paths, *further_outputs(options, Path(options.output)).values()):
        if path is not None and os.path.realpath(path) in map(os.path.realpath, files):
            raise InputError(f"{path} is a file of the Kira project; choose another to write")


def read_kira_requests(options: Options) -> list[Request]:
    """What --integral, --integrals or jobs.yaml want of the families of a Kira project. Raises InputError."""
    project = read_kira_project(options)
    known, families, config, jobs = project.known, project.chosen, project.config, project.jobs
    listed = options.integral is None and options.integrals is None
    if listed and not jobs.exists():
        raise InputError(f"{jobs}: no such file; give --integral or --integrals")
    selection = read_jobs(jobs, known) if listed else KiraSelection()
    check_not_written(options, [*(path for _, path in selection.lists), *selection.preferred])
    requests = _selected(selection, families, known, jobs) if listed else given_requests(options, families)
    everyone = [entry.family for entry in known.values()]
    lists = selection.preferred if options.masters is None else ()
    preferred = [part for path in lists for part in read_targets(path, everyone, "preferred masters", combinations=False)]
    unable = "--certificate" if options.certificate is not None else None
    symmetries = options.symmetries or (selection.symmetries and unable is None)
    requests = project.checked(everyone_asked(options, requests, families, symmetries, preferred))
    named = dict.fromkeys(key for request in requests for key in known[request.family.name].named)
    for path, keys in ((config, named), (jobs, selection.named)):
        if keys:
            say(f"{path}: not followed, as this program has its own ways: {', '.join(keys)}")
    if selection.symmetries:
        say(
            f"{jobs}: run_symmetries is true: {'taken as --symmetries' if symmetries else f'not followed, as {unable} knows no symmetries'}"
        )
    return [_on_cut(request, known[request.family.name].cut, config) for request in requests]


def _on_cut(request: Request, cut: int, config: Path) -> Request:
    """What has not all of the cut lines is zero."""
    integrals = integrals_in((*request.targets, *request.combinations))
    if cut:
        zero = sum(cut & sector_of(integral) != cut for integral in integrals)
        note = f"; zero, as without these lines: {zero} of {len(integrals)} integrals" if zero else ""
        lines = ", ".join(map(str, cut_lines(cut)))
        say(f"{config}: family {request.family.name}: cut_propagators [{lines}]: taken as --cut{note}")
    return replace(request, cut=cut)


def _selected(selection: KiraSelection, families: Sequence[Family], known: dict[str, KiraFamily], jobs: Path) -> list[Request]:
    """The lists and ranges of jobs.yaml, of these families."""
    everyone = [entry.family for entry in known.values()]
    parts: list[Request] = []
    for name, path in selection.lists:
        own = everyone if name is None else [known[name].family]
        parts += read_targets(path, own, f"{jobs}: list")
    targets = {family.name: dict.fromkeys(t for part in parts if part.family is family for t in part.targets) for family in families}
    for name, integral in selection.ranges:
        if name in targets:
            targets[name][integral] = None
    combinations = {
        family.name: dict.fromkeys(c for part in parts if part.family is family for c in part.combinations) for family in families
    }
    origin: dict[str, str] = {}
    for family, combination in ((part.family, c) for part in parts for c in part.combinations):
        if origin.setdefault(combination.name, combination.where) != combination.where:
            raise InputError(f"{jobs}: two lists have a combination {combination.name!r}: {origin[combination.name]}; {combination.where}")
        if family not in families and any(combination.name == c.name for some in combinations.values() for c in some):
            raise InputError(f"{combination.where}: {combination.name} has integrals of {family.name}, too; leave out --family")
    requests = [Request(family, tuple(targets[family.name]), tuple(combinations[family.name])) for family in families]
    requests = [request for request in requests if request.integrals]
    if not requests:
        raise InputError(f"{jobs}: selects no integrals of {', '.join(f.name for f in families)}; give --integral or --integrals")
    return requests


def parse_point(options: Options, family: Family, targets: Sequence[Index]) -> Point:
    """The point of a run. Raises InputError for unknown invariants, unreadable numbers and unusable primes."""
    values = dict(family.point)
    given: set[str] = set()
    for item in options.kinematics.split(",") if options.kinematics is not None else ():
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals or name not in values or name in given:
            raise InputError(f"--kinematics {item!r}: expected NAME=VALUE once for each NAME out of {', '.join(values) or '(none)'}")
        values[name] = value
        given.add(name)
    prime, largest = check_prime(options.prime), max((max(r_and_s(target)) for target in targets), default=0)
    if prime <= largest:
        raise InputError(f"--prime {prime}: not above the largest index in play, {largest}; take a larger prime")
    d = parse_number(family.d if options.d is None else options.d, "d")
    point = Point(d, tuple((name, parse_number(value, name)) for name, value in values.items()), prime)
    point.residues()
    return point


def check_prime(prime: int | None) -> int:
    """The prime of a run modulo one. Raises InputError."""
    prime = DEFAULT_PRIME if prime is None else prime
    if not is_usable_prime(prime):
        raise InputError(f"--prime {prime}: expected a prime number from 3 to {MAX_PRIME}")
    return prime


def make_problem(options: Options, request: Request | None = None) -> Problem:
    """The problem of a request, by default of the only one. Raises InputError."""
    check_running_options(options)
    request = only_one(read_requests(options)) if request is None else request
    check_certified(options, request)
    family = request.family
    point = parse_point(options, family, request.integrals)
    default = options.integral is None and options.integrals is None and options.kira_config is None
    guide, why_no_guide = make_guide(options, family)
    problem = Problem(
        family,
        point,
        request.targets,
        options.paper_masters_only or (default and not options.symmetries),
        request.preferred,
        make_beam(options, family),
        guide,
        why_no_guide,
        request.combinations,
        request.symmetries,
    ).on_cut(request.cut)
    if not is_exact(options):
        for combination in problem.combinations:
            combination.at(point)  # a slip in a coefficient is found now
    return problem


def check_certified(options: Options, request: Request) -> None:
    """Raises InputError where something is asked for that a certificate does not show."""
    if options.certificate is not None and (request.symmetries or request.cut or options.cut):
        raise InputError("--certificate is for whole reductions by identities: leave out symmetries and cuts; --verify checks those")


def make_cuts(options: Options, problem: Problem, nonzero: Callable[[], Sequence[int]]) -> tuple[int, ...]:
    """Bit masks of the lines of each cut, () where nothing is cut. nonzero: finds the non-zero sectors. Raises InputError."""
    cuts = (problem.cut,) if problem.cut else ()
    if not cuts and not options.cut:
        return ()
    if options.paths is not None:
        raise InputError("cuts and --paths contradict each other: give one of them")
    if "spanning" in options.cut and len(options.cut) > 1:
        raise InputError("--cut spanning stands for all cuts that are needed: give it alone")
    spanning = options.cut == ("spanning",)
    given = () if spanning else tuple(dict.fromkeys(parse_cut(text, problem.family) for text in options.cut))
    if cuts and options.cut and given != cuts:
        lines = ", ".join(map(str, cut_lines(problem.cut)))
        raise InputError(f"--cut {' --cut '.join(options.cut)}: {problem.family.name} has cut_propagators [{lines}]; leave --cut out")
    if cuts:
        return cuts
    if spanning or len(given) > 1:
        check_several_cuts(options, problem)
    tops = [sector_of(target) for target in problem.integrals]
    if spanning:
        return tuple(lowest_sectors(nonzero(), tops))
    for cut in given:
        if not any(cut & top == cut for top in tops):
            missing = next(line for line in cut_lines(cut) if not tops[0] >> line - 1 & 1)
            raise InputError(
                f"--cut {','.join(map(str, cut_lines(cut)))}: line {missing} has no positive index in {show(problem.integrals[0])}, "
                "so nothing would be left"
            )
    for target, top in zip(problem.integrals, tops):
        if not any(cut & top == cut for cut in given):
            raise InputError(
                f"--cut: {show(target)} has the lines of none of the cuts, so nothing of it would be left; reduce it by itself"
            )
    return given


def check_several_cuts(options: Options, problem: Problem) -> None:
    """Raises InputError where results of several cuts cannot be put together."""
    if options.condor or options.batch not in (None, "sector"):
        raise InputError("several cuts are put together by runs with --local and --batch sector; with one-step tasks give one --cut")
    for name, given in (("masters", problem.preferred_masters), ("symmetries", problem.symmetries)):
        if given:
            raise InputError(f"several cuts and --{name} contradict each other, as they end on different masters; give one --cut")


def make_beam(options: Options, family: Family) -> Beam | None:
    """How to search, None for local elimination. Raises InputError."""
    if options.engine == "rules":
        return None
    policy = read_policy(str(shipped("policy.pt")) if options.policy is None else options.policy, family)
    return Beam(options.beam_width, options.max_steps, options.beam_order, not options.no_rules, policy)


def make_guide(options: Options, family: Family) -> tuple[bytes | None, str]:
    """The guide of local elimination, None for the fixed order; and why there is none where one was expected. Raises PolicyRefused.

    Only weights that were asked for by name must be there.
    """
    if options.engine != "rules" or options.policy in ("fixed", "random"):
        return None, ""
    try:
        return read_guide(options.policy or str(shipped("policy.pt")), family), ""
    except PolicyRefused as error:
        if options.policy is not None:
            raise
        return None, f"{error}; searches went through all rows in the fixed order"


def run_replay(options: Options) -> int:
    """--replay: check paths found earlier."""
    started = time.perf_counter()
    paths, identities = replay_paths(Path(options.replay), load_one_family(options.family))
    print(f"{paths:,} paths of {identities:,} identities replayed: each gives its expression ({time.perf_counter() - started:.1f} s)")
    return 0


def check_running_options(options: Options) -> None:
    """Raises InputError where the options say nothing sensible about how to run."""
    if options.condor and options.local not in (None, 1):
        raise InputError("--condor and --local contradict each other: give one of them")
    if options.resume and options.fresh:
        raise InputError("--resume and --fresh contradict each other: give one of them")
    if options.batch == "sector" and options.condor:
        raise InputError("--batch sector is for --local; with --condor give auto or a number of integrals")
    if options.batch not in (None, "sector", "auto") and not re.fullmatch("[1-9][0-9]{0,8}", options.batch):
        raise InputError(f"--batch {options.batch}: expected sector, auto, or a number of integrals")
    for text in options.condor_option:
        if not text.partition("=")[1]:
            raise InputError(f"--condor-option {text!r}: expected KEY=VALUE")
    if options.certificate is not None and (options.condor or options.batch not in (None, "sector")):
        raise InputError("--certificate is for whole-sector tasks: leave out --condor and --batch, or give --batch sector")
    check_output_options(options)
    make_limits(options)


def check_output_options(options: Options) -> None:
    """Raises InputError for formats that there are not, and for an expansion of what is no function of d."""
    parse_formats(options.export)
    if options.order is not None and options.epsilon is None:
        raise InputError(f"--order {options.order}: give --epsilon, too")
    in_d = options.differential_equation is not None or "d" in (options.symbols or "").replace(" ", "").split(",")
    if options.epsilon is not None and options.convert is None and not in_d:
        raise InputError("--epsilon: the coefficients of this run are not functions of d; give --symbols d")


def make_limits(options: Options) -> TimeLimits:
    """Raises InputError."""
    text = options.straggler_timeout
    try:
        seconds = float(Options.straggler_timeout) if text == "auto" else float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < LONGEST_TIMEOUT_S:
        raise InputError(f"--straggler-timeout {text}: expected auto, or seconds above 0, below {LONGEST_TIMEOUT_S:.0f}")
    return TimeLimits(seconds, auto=text == "auto")


def check_writable(path: Path, what: str, is_directory: bool) -> None:
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


def check_paths(options: Options) -> None:
    """Raises InputError where a path cannot be written, or one file would be two things."""
    output, work, store = Path(options.output), Path(options.work_dir), store_path(options)
    check_writable(output, "--output", is_directory=False)
    check_writable(work, "--work-dir", is_directory=True)
    check_writable(store, "--store", is_directory=False)
    if options.paths is not None:
        check_writable(Path(options.paths), "--paths", is_directory=False)
    uses = {"--output": output, "--work-dir": work, "--store": store}
    for what, path in further_outputs(options, output).items():
        check_writable(path, what, is_directory=False)
        uses[what] = path
    uses |= {
        f"--{name}": Path(text) for name in ("integrals", "masters", "paths", "system") if (text := getattr(options, name)) is not None
    }
    if options.kira_config is None:
        uses |= {f"--family {name}": Path(name) for name in family_names(options.family) if name not in BUILT_IN_FAMILIES}
    places = [(what, os.path.realpath(path)) for what, path in uses.items()]
    run = RunDirectory(work)
    names = (run.journal, run.exact, run.shared, run.jobs, run.status, run.stop_request, work / "controller.json", work / "controller.lock")
    own = [os.path.realpath(path) for path in names]
    for what, place in places:
        if any(place == path or place.startswith(path + os.sep) for path in own):
            raise InputError(f"{what} {uses[what]}: a run keeps its own files there; choose another")
    for number, (what, place) in enumerate(places):
        for other, other_place in places[:number]:
            if place == other_place and "--masters" not in (what, other):
                raise InputError(f"{other} and {what} are the same file {uses[what]}; give two")


def further_outputs(options: Options, output: Path) -> dict[str, Path]:
    """What a run writes beside its output, by the option that asks for it."""
    files = {"--certificate": Path(options.certificate)} if options.certificate is not None else {}
    for name in parse_formats(options.export):
        files[f"--export {name}"] = export_path(output, name)
        if options.epsilon is not None:
            files[f"--epsilon and --export {name}"] = export_path(output, name, expanded=True)
    return files


def list_families() -> str:
    lines = [f"{'name':22}{'loops':>6}{'legs':>6}{'lines':>6}{'ISPs':>6}  invariants (default point)    propagators"]
    for family in BUILT_IN_FAMILIES.values():
        point = " ".join(f"{name}={value}" for name, value in family.point)
        propagators = ", ".join(text if mass == "0" else f"{text} [{mass}]" for text, mass in family.propagators)
        legs = len(family.external_momenta) + 1
        lines.append(f"{family.name:22}{len(family.loop_momenta):6}{legs:6}{family.lines:6}{family.isps:6}  {point:29} {propagators}")
    return "\n".join(lines)


def plan(problem: Problem, shelves: Sequence[Store], exact: ExactProblem | None = None) -> str:
    """What a dry run says."""
    knowledge = Knowledge()
    for shelf in shelves:
        knowledge.update(shelf.load(problem.family))
    family = problem.family
    sectors = f"{len(knowledge.nonzero)} non-zero sectors" if knowledge.nonzero else "sectors not known yet"
    masters = sum(len(sector.masters or ()) for sector in knowledge.sectors.values()) or len(family.paper_masters)
    return "\n".join(
        [
            f"family {family.name}: {family.n} propagators, {sectors}, {masters or 'no'} masters and "
            f"{sum(len(sector.rules) for sector in knowledge.sectors.values())} rules known",
            exact.label if exact else f"{len(problem.keys)} to reduce modulo {problem.point.prime}, first {show_target(problem.keys[0])}",
            f"stores: {', '.join(str(shelf.path) for shelf in shelves)}",
        ]
    )


def store_path(options: Options) -> Path:
    return Path(options.store) if options.store is not None else Path(options.work_dir) / "store.shelf"


def open_stores(options: Options) -> tuple[list[Store], list[Store]]:
    """To look things up, and of a run, which learns into the last one."""
    path, common = store_path(options), Store(shipped("rules.shelf"), read_only=True, say=say)
    own = [Store(path, write_only=True, say=say)] if options.cold else [common, Store(path, say=say)]
    return [common, Store(path, read_only=True, say=say)], own


def run_reduction(options: Options) -> int:
    """Modulo a prime."""
    requests = read_requests(options)
    several = len(requests) > 1
    if several:
        check_several_families(options, requests)
    problems = [make_problem(options, request) for request in requests]
    check_paths(options)
    readable, shelves = open_stores(options)
    nonzero = cache(lambda family: known_nonzero_sectors(family, [] if options.cold else readable))
    cuts = () if several else make_cuts(options, problems[0], lambda: nonzero(problems[0].family))
    if options.dry_run:
        print("\n".join(plan(problem, readable) for problem in problems if problem.keys))
        return 0
    if several:
        outcome, lines = reduce_several(problems, options, shelves, nonzero)
    else:
        outcome, lines = reduce_one(problems[0].on_cut(cuts[0]) if len(cuts) == 1 else problems[0], options, shelves, cuts)
        if cuts:
            lines.append(describe_cuts(cuts, lowest_sectors(nonzero(problems[0].family), list(map(sector_of, problems[0].integrals)))))
        lines += further_lines(options)
    if not options.quiet:
        print("\n".join(lines))
    if outcome.unreduced:
        remedy = "another --prime or point" if problems[0].beam is None else "a larger --beam-width or --max-steps"
        say(f"{len(outcome.unreduced)} integrals were not reduced (listed in {options.output}); {remedy} may do it")
    if outcome.store_trouble:
        raise ReductionError(f"the result is in {options.output}, but what was learned is not stored: {outcome.store_trouble}")
    return 1 if outcome.unreduced else 0


def reduce_one(problem: Problem, options: Options, shelves: Sequence[Store], cuts: Sequence[int]) -> tuple[Outcome, list[str]]:
    """The outcome, which is written, and what to say of it."""
    for name in parse_formats(options.export):
        check_export_names(name, problem.family.name, (), combinations=[c.name for c in problem.combinations])
    if len(cuts) > 1:
        parts = [run_sector_tasks(replace(problem, cut=cut), options, shelves) for cut in cuts]
        outcome = merge_cuts(cuts, parts)
        write_outputs(problem, outcome, options, cuts)
    elif options.condor or options.batch not in (None, "sector"):
        outcome = run_one_step_tasks(problem, options, shelves, lambda outcome: write_outputs(problem, outcome, options, cuts))
    else:
        outcome = run_sector_tasks(problem, options, shelves)
        write_outputs(problem, outcome, options, cuts)
    return outcome, [summary(problem, outcome, Path(options.output))]


def further_lines(options: Options) -> list[str]:
    return [f"{what.removeprefix('--')}: {path}" for what, path in further_outputs(options, Path(options.output)).items()]


def write_outputs(problem: Problem, outcome: Outcome, options: Options, cuts: Sequence[int]) -> None:
    """The result and what was asked for beside it. Raises ReductionError."""
    output, record = Path(options.output), result_record(problem, outcome)
    if cuts:
        record["cuts"] = [cut_lines(cut) for cut in cuts]
    write_pickle(record, output)
    write_exports(record, output, parse_formats(options.export))
    if options.paths is not None:
        write_paths(problem, outcome.paths, Path(options.paths))
    if options.certificate is not None:
        certificate = pack_certificate(make_certificate(problem, outcome))
        write_output(Path(options.certificate), certificate, "certificate", f"the result is in {output}")


def convert_result(options: Options) -> int:
    """Write a result that is there in other formats, expanded if asked for."""
    check_output_options(options)
    source, names = Path(options.convert), parse_formats(options.export)
    if not names and options.epsilon is None:
        raise InputError("--convert: nothing to do; give --export or --epsilon")
    record = read_result(source)
    own = options.output != Options.output
    output = Path(options.output) if own else source
    for what, path in (({"--output": output} if own else {}) | further_outputs(options, output)).items():
        check_writable(path, what, is_directory=False)
        if os.path.realpath(path) == os.path.realpath(source):
            raise InputError(f"{what} {path}: is the result to be converted; give another --output")
    for name in names:
        named = [target for target in record["reductions"] if isinstance(target, str)]
        check_export_names(name, record["family"], symbols_of(record), combinations=named)
    if options.epsilon is not None:
        record["epsilon"] = expand_result(record, parse_expansion(options.epsilon, options.order or 0, symbols_of(record)))
    if own:
        write_pickle(record, output)
    written = write_exports(record, output, names)
    if not options.quiet:
        if "epsilon" in record:
            print(epsilon_summary(record))
        print(f"written: {', '.join(map(str, ([output] if own else []) + written)) or 'nothing'}")
    return 0


def verify_file(options: Options) -> int:
    """Check a certificate or a result. Raises InputError, CertificateError."""
    path, started = Path(options.verify), time.perf_counter()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"--verify {path}: {error.strerror}") from None
    try:
        text = verify_result_file(path, options) if content[:1] == pickle.PROTO else verify_certificate_content(content)
    except CertificateError as error:
        raise CertificateError(f"{path}: {error}") from None
    if not options.quiet:
        print(f"verified: {text}; {time.perf_counter() - started:.2f} s")
    return 0


def verify_certificate_content(content: bytes) -> str:
    """What was found right, in words. Raises CertificateError."""
    own = unpack_certificate(content)
    terms = verify_certificate(own)
    used = {term for expression in own.reductions.values() for term in expression}
    left = f" and {len(own.unreduced)} that nothing reduces" if own.unreduced else ""
    of, proof = f"{own.family.name} at {show_point(own.point)}", f"{len(own.operator):,} identities with {terms:,} terms"
    return f"{show_targets(own.reductions)} of {of} through {len(used)} of {len(own.masters)} masters{left}, by {proof}"


def verify_result_file(path: Path, options: Options) -> str:
    """What was found right, in words. Raises InputError, CertificateError."""
    record = read_result(path)
    name = record["family"]
    family = family_of_result(name, options)
    work, (_, shelves) = Path(options.work_dir), open_stores(options)
    progress = Progress(options.quiet)

    def reduce(problem: Problem) -> Outcome:
        with make_executor(options, work, progress.say) as executor:
            return Controller(problem, executor, shelves, progress, certify=True).run()

    try:
        found = verify_result(record, family, reduce)
    finally:
        progress.close()
    primes = ", ".join(str(point.prime) for point in found.points)
    where = f"at {len(found.points)} random primes ({primes})" if record["prime"] is None else f"at {show_point(found.points[0])}"
    symbols = sorted(symbols_of(record))
    values = f" and values of {', '.join(symbols)}" if symbols else ""
    own = record.get("differential_equation")
    what = (
        show_targets(record["reductions"])
        if own is None
        else f"the equations in {', '.join(own['matrices'])} of {len(own['masters'])} masters"
    )
    cuts = " | ".join(",".join(map(str, lines)) for lines in record.get("cuts", ()))
    where += f" on the cut{'s' * ('|' in cuts)} {cuts}" if cuts else ""
    by = f"{found.identities:,} identities" + f" and {found.relations:,} relations by symmetries" * ("symmetries" in record)
    return f"{what} of {name} {where}{values}, by {by}"


def family_of_result(name: str, options: Options) -> Family:
    """Raises InputError where the family of a result is not there."""
    where = f"--verify {options.verify}"
    if options.kira_config is not None:
        project = read_kira_project(options)
        if name not in project.known:
            raise InputError(f"{where}: its family {name} is none of {', '.join(project.known)} of {project.config}")
        return project.known[name].family
    family = BUILT_IN_FAMILIES.get(name) or load_one_family(options.family)
    if family.name != name:
        raise InputError(f"{where}: its family {name} is not built in; give --family FILE or --kira-config DIR with its definition")
    return family


def check_several_families(options: Options, requests: Sequence[Request]) -> None:
    """Raises InputError."""
    single = options.condor or options.batch not in (None, "sector") or options.paths or options.certificate or options.export
    if single or options.cut:
        names = ", ".join(request.family.name for request in requests)
        what = "one-step tasks, --paths, --certificate and --export are" if single else "--cut is"
        raise InputError(f"{what} for one family at a time: choose by --family out of {names}")


def reduce_several(
    problems: Sequence[Problem], options: Options, shelves: Sequence[Store], nonzero: Callable[[Family], Sequence[int]]
) -> tuple[Outcome, list[str]]:
    """The outcome of several families, written as one result with names such as box[1,0,1,1], and what to say of it."""
    outcome, joint = reduce_families(problems, lambda problem: run_sector_tasks(problem, options, shelves), nonzero)
    record = joined_record(problems, outcome, joint)
    write_pickle(record, Path(options.output))
    shared = outcome.statistics["shared_masters"]
    return outcome, [
        f"{record['family']} at {show_point(problems[0].point)}",
        f"{len(record['reductions'])} targets through {len(record['masters'])} masters; {record['time']:.2f} s",
        *([f"symmetries: {shared} masters of later families are integrals of earlier ones"] if shared else ()),
        f"written to {options.output}",
    ]


SYSTEM_POINTS = (
    "local condor check_interval condor_option transfer_files request_memory max_jobs job_seconds straggler_timeout straggler_cpus "
    "resume fresh"
)


def run_system(options: Options) -> int:
    """--system: unknowns through the independent ones, modulo a prime or exactly."""
    output = Path(options.output)
    check_paths(options)
    numbers, symbols = system_symbols(options)
    exact = options.exact or bool(symbols)
    check_system_options(options, exact)
    p = MAX_PRIME if exact else check_prime(options.prime)
    system = read_system(options.system, numbers, symbols)
    if options.masters is not None:
        system = prefer(system, read_labels(options.masters, "--masters"), p, range(1_000_003, 1_000_003 + len(symbols)))
    wanted = system.unknowns[::-1] if options.integrals is None else read_labels(options.integrals, "--integrals")
    if not wanted:
        raise InputError(f"--integrals {options.integrals}: no unknowns in it")
    known = set(system.unknowns)
    if unknown := next((label for label in wanted if label not in known), None):
        raise InputError(f"--integrals {options.integrals}: {unknown} is in no equation of the system")

    def save(outcome: ExactOutcome) -> None:
        write_pickle(system_record(options, numbers, symbols, None if exact else p, outcome), output)

    if exact:
        outcome = run_points(options, SystemProblem(system, wanted), SystemSampler, (), save)
    else:
        outcome = solve_modulo(system, wanted, p)
        save(outcome)
    if not options.quiet:
        count, shown = len(outcome.masters), f"{' '.join(outcome.masters[:20])}{' ...' if len(outcome.masters) > 20 else ''}"
        print(f"{len(system.equations)} equations, {len(system.unknowns)} unknowns, {count} of them independent: {shown}")
        if exact:
            print(point_costs(outcome, "equations"))
        print(f"written to {output}")
    return 0


def check_system_options(options: Options, exact: bool) -> None:
    """Raises InputError."""
    if exact:
        check_exact_options(options)
    for name in SYSTEM_POINTS.split() if not exact else ():
        if getattr(options, name) != getattr(Options, name):
            raise InputError(f"--{name.replace('_', '-')} is for a --system with --exact or --symbols, which take many points")
    check_running_options(options)


def solve_modulo(system: LinearSystem, wanted: Sequence[str], p: int) -> ExactOutcome:
    """Coefficients modulo p. Raises InputError, ReductionError."""
    started = time.perf_counter()
    pivots, used = eliminate_system(system, p)
    other, _ = eliminate_system(system, GENERIC_PRIME if p != GENERIC_PRIME else OTHER_PRIME)
    if pivots.keys() != other.keys():
        raise ReductionError(f"--prime {p}: other unknowns are independent than modulo other primes, by accident; take a larger one")
    masters = [label for place, label in enumerate(system.unknowns) if place not in pivots]
    solved = back_substitute(system, pivots, p, wanted)
    statistics = {"equations": len(system.equations), "unknowns": len(system.unknowns), "independent_equations": len(used)}
    reductions = {label: solved.get(label, {}) for label in wanted}
    return ExactOutcome(reductions, masters, statistics, time.perf_counter() - started, peak_memory_kb())


def system_record(
    options: Options, numbers: dict[str, Fraction], symbols: Sequence[str], prime: int | None, outcome: ExactOutcome
) -> dict[str, Any]:
    """What the pickle holds: as for integrals, but unknowns are texts; an independent one is itself."""
    one = 1 if prime is not None else "1" if symbols else Fraction(1)
    independent = set(outcome.masters)
    return base_record(Path(options.system).name, prime, numbers | dict.fromkeys(symbols), symbols, outcome) | {
        "reductions": {label: {label: one} if label in independent else row for label, row in outcome.reductions.items()},
        "steps": len(outcome.reductions.keys() - independent),
    }


def read_labels(path: str, what: str) -> tuple[str, ...]:
    """Unknowns of a system, one a line, each once."""
    labels = (re.sub(r"[\s+]", "", line.partition("#")[0]) for line in read_lines(path, what))
    return tuple(dict.fromkeys(label for label in labels if label))


def system_symbols(options: Options) -> tuple[dict[str, Fraction], tuple[str, ...]]:
    """What coefficients of a system may contain: values of --kinematics and --d, and names of --symbols. Raises InputError."""
    values = [item.partition("=") for item in options.kinematics.split(",")] if options.kinematics is not None else []
    numbers = {name.strip(): parse_number(value, name.strip()) for name, _, value in values}
    if len(numbers) < len(values) or not all(name.isidentifier() and name != "d" for name in numbers):
        raise InputError(f"--kinematics {options.kinematics!r}: expected NAME=VALUE once for each NAME")
    numbers |= {} if options.d is None else {"d": parse_number(options.d, "d")}
    symbols = tuple(name.strip() for name in options.symbols.split(",")) if options.symbols is not None else ()
    for name in symbols:
        if not name.isidentifier() or name in numbers or symbols.count(name) > 1:
            raise InputError(f"--symbols {options.symbols!r}: expected names, each once, that are not given as numbers")
    return numbers, symbols


def run_list_symmetries(options: Options) -> int:
    """--list-symmetries."""
    if options.kira_config is not None:
        project = read_kira_project(options)
        families, cuts = project.chosen, [project.known[family.name].cut for family in project.chosen]
    else:
        families = load_families(options.family)
        check_common(families, options.family)
        cuts = [0] * len(families)
    if options.cut:
        if any(cuts) or len(cuts) > 1 or len(options.cut) > 1:
            raise InputError(f"--list-symmetries: --cut {' --cut '.join(options.cut)}: give one cut of one family that has none yet")
        cuts = [parse_cut(options.cut[0], families[0])]
    shelves = [] if options.cold else [Store(shipped("rules.shelf"), read_only=True, say=say)]
    geometries = [Geometry(family, cut) for family, cut in zip(families, cuts)]
    nonzero = [known_nonzero_sectors(family, shelves) for family in families]
    print(describe_symmetries(geometries, [[bits for bits in own if bits & cut == cut] for own, cut in zip(nonzero, cuts)]))
    return 0


def make_executor(options: Options, jobs: Path, say: Callable[[str], None]) -> Any:
    """Raises ExecutorError."""
    if options.condor:
        try:
            return CondorExecutor(
                jobs,
                check_interval_s=options.check_interval,
                stragglers=make_limits(options),
                straggler_cpus=options.straggler_cpus,
                memory_mb=options.request_memory,
                options=split_options(options.condor_option),
                transfer_files=options.transfer_files,
                max_jobs=options.max_jobs,
                describe=describe_task,
                say=say,
            )
        except ValueError as error:
            raise InputError(str(error)) from None
    if options.local in (None, 1):
        return InlineExecutor()
    return LocalExecutor(options.local, stragglers=make_limits(options), straggler_cpus=options.straggler_cpus, describe=describe_task)


def describe_task(fn: Callable, args: tuple, kwargs: dict) -> Description:
    """What an executor may know of a task: tasks of a group take about as long per integral; heavier ones go first."""
    if fn is reduce_steps:
        _, _, keys, claims, _ = args
        bits = max(keys, key=sector_order)
        size = sum(len(unpack_keys(packed)) for packed in keys.values())
        kind = "going on from sector" if claims else "sector"
        return Description(f"{kind} {bits}", 1.0 if claims else float(size), bits.bit_count())
    return Description(call_name(fn))


def run_sector_tasks(problem: Problem, options: Options, shelves: Sequence[Store]) -> Outcome:
    if os.path.exists(options.work_dir):
        private_directory(options.work_dir)
    progress = Progress(options.quiet)
    try:
        with make_executor(options, Path(options.work_dir), progress.say) as executor:
            return Controller(problem, executor, shelves, progress, options.certificate is not None).run()
    finally:
        progress.close()


def run_one_step_tasks(problem: Problem, options: Options, shelves: Sequence[Store], save: Callable[[Outcome], None]) -> Outcome:
    """A run that a later one can go on with."""
    progress = Progress(options.quiet, lines=True)
    with claimed_run(options, "journal", "exact", "unfinished run") as directory:
        fixed = int(options.batch) if options.batch not in (None, "auto") else None
        batch_plan = BatchPlan(fixed, options.job_seconds or (60.0 if options.condor else 1.0))
        try:
            with closing(Journal(directory.journal, problem.name, progress.say)) as journal:
                directory.status.unlink(missing_ok=True)  # of an earlier run
                if journal.is_new or not options.condor:
                    drop_jobs(directory)  # of a run that nobody knows any more, or that goes on without HTCondor
                with make_executor(options, directory.jobs, progress.say) as executor:
                    outcome = StepController(problem, executor, shelves, progress, directory, journal, batch_plan).run()
        except StopRequested:
            drop_jobs(directory)
            raise
        finally:
            progress.close()
        save(outcome)
        if not outcome.store_trouble:  # then the journal alone knows what was learned
            directory.clear()  # only now that the result is safe
    return outcome


def names_with_numbers(options: Options) -> set[str]:
    """What --kinematics and --d name."""
    return {item.partition("=")[0].strip() for item in (options.kinematics or "").split(",")} | ({"d"} if options.d is not None else set())


def parse_symbols(options: Options, family: Family) -> tuple[str, ...]:
    """The symbols of an exact run, in the order of the family. Raises InputError."""
    if options.symbols is None:
        return ()
    given = [name.strip() for name in options.symbols.split(",")]
    for name in given:
        if name not in family.symbols or given.count(name) > 1:
            raise InputError(f"--symbols {options.symbols!r}: expected each of {', '.join(family.symbols)} at most once")
    if both := sorted(names_with_numbers(options).intersection(given)):
        raise InputError(f"--symbols: {both[0]} is given as a number, too; leave one of them out")
    return tuple(name for name in family.symbols if name in given)


def check_exact_options(options: Options) -> None:
    """Raises InputError."""
    if options.exact and options.symbols is not None:
        raise InputError("--exact and --symbols contradict each other: --exact gives numbers, --symbols functions")
    if options.prime is not None:
        raise InputError(f"--prime {options.prime}: an exact run takes many primes of its own; leave it out")


def make_exact_problem(options: Options, request: Request | None = None) -> ExactProblem:
    """The problem of a request, by default of the only one. Raises InputError."""
    check_exact_options(options)
    if options.batch is not None:
        raise InputError(f"--batch {options.batch}: the tasks of an exact run are points; leave it out")
    if options.certificate is not None:
        raise InputError("--certificate: an exact result is proven by --verify RESULT, at random primes and points")
    check_device(options.device)
    if len(options.cut) > 1 or options.cut == ("spanning",):
        raise InputError("several cuts are put together modulo a prime only; give one --cut to an exact run, or none for the whole")
    problem = make_problem(replace(options, prime=MAX_PRIME), request)
    cuts = make_cuts(options, problem, tuple)
    exact = ExactProblem(problem.on_cut(cuts[0] if cuts else 0), parse_symbols(options, problem.family))
    exact.columns()  # a slip in a coefficient is found now
    for name in parse_formats(options.export):
        check_export_names(name, problem.family.name, exact.symbols, combinations=[c.name for c in problem.combinations])
    if options.epsilon is not None:
        parse_expansion(options.epsilon, options.order or 0, problem.family.symbols)
    return exact


def parse_variables(options: Options, family: Family) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The variables of differential equations, and what stays a symbol. Raises InputError."""
    text, numbers = options.differential_equation, names_with_numbers(options)
    symbols = tuple(name for name in family.symbols if name not in numbers)
    names: tuple[str, ...] = ()
    for name in (name.strip() for name in text.split(",")):
        everything = tuple(other for other in symbols if other != "d") if name == "all" and "all" not in family.symbols else (name,)
        if not everything:
            raise InputError(f"--differential-equation all: no invariant of {family.name} is left as a symbol; leave --kinematics out")
        names += everything
    for name in names:
        if name not in family.symbols or names.count(name) > 1:
            raise InputError(f"--differential-equation {text!r}: expected 'all', or each of {', '.join(family.symbols)} at most once")
        if name in numbers:
            raise InputError(f"--differential-equation {name}: {name} is given as a number, too; leave one of them out")
    return names, symbols


def differential_request(options: Options) -> Request:
    """The integrals given, else the corners of the family's top-level sectors. Raises InputError."""
    if options.integral is not None or options.integrals is not None:
        return only_one(read_requests(options))
    if options.kira_config is None:
        family = load_one_family(options.family)
        request = Request(family, (corner((1 << family.lines) - 1, family.n),))
        return only_one(everyone_asked(options, [request], [family], options.symmetries))
    project = read_kira_project(options)
    known = [project.known[family.name] for family in project.chosen]
    requests = [Request(own.family, tuple(corner(top, own.family.n) for top in own.tops if own.cut & top == own.cut)) for own in known]
    request = only_one(project.checked(everyone_asked(options, requests, project.chosen, options.symmetries)))
    return _on_cut(request, project.known[request.family.name].cut, project.config)


def make_differential_problem(options: Options) -> DifferentialProblem:
    """Raises InputError."""
    for name, taken in (("exact", options.exact), ("symbols", options.symbols)):
        if taken:
            raise InputError(f"--differential-equation and --{name} contradict each other: what is not given as a number is a symbol")
    if "kira" in parse_formats(options.export):
        raise InputError("--export kira: holds reductions only; a differential equation goes to mathematica, form, json or sympy")
    request = differential_request(options)
    family = request.family
    variables, symbols = parse_variables(options, family)
    if options.epsilon is not None and "d" not in symbols:
        raise InputError("--epsilon: the entries are not functions of d, which --d gives a number; leave one of the two out")
    for name in parse_formats(options.export):
        check_export_names(name, family.name, symbols, FORM_OWN)
    exact = make_exact_problem(replace(options, symbols=",".join(symbols)), request)
    targets = tuple(dict.fromkeys(corner(sector_of(integral), family.n) for integral in exact.problem.integrals))
    published = bool(family.paper_masters) and not exact.problem.symmetries
    problem = replace(exact.problem, targets=targets, combinations=(), paper_masters_only=published)
    return DifferentialProblem(problem, exact.symbols, variables)


def run_exact(options: Options) -> int:
    """Rational numbers or functions, by points that a later run need not compute again."""
    differential = options.differential_equation is not None
    exact = make_differential_problem(options) if differential else make_exact_problem(options)
    output, problem = Path(options.output), exact.problem
    check_paths(options)
    readable, shelves = open_stores(options)
    if options.dry_run:
        print(plan(problem, readable, exact))
        return 0
    record: dict[str, Any] = {}

    def save(outcome: ExactOutcome) -> None:
        record.update(exact.record(outcome))
        if options.epsilon is not None:
            record["epsilon"] = expand_result(record, parse_expansion(options.epsilon, options.order or 0, problem.family.symbols))
        write_pickle(record, output)
        write_exports(record, output, parse_formats(options.export))

    outcome = run_points(options, exact, DifferentialSampler if differential else Sampler, shelves, save)
    if not options.quiet:
        print(exact_summary(exact, outcome, output))
        if problem.cut:
            nonzero = known_nonzero_sectors(problem.family, shelves)
            print(describe_cuts([problem.cut], lowest_sectors(nonzero, list(map(sector_of, problem.integrals)))))
        if options.epsilon is not None:
            print(epsilon_summary(record))
        for line in further_lines(options):
            print(line)
    return 0


def run_points(
    options: Options, exact: Any, kind: type[Sampler], shelves: Sequence[Store], save: Callable[[ExactOutcome], None]
) -> ExactOutcome:
    """Reconstruct from points that a later run need not compute again; they are dropped once the result is saved."""
    progress = Progress(options.quiet, lines=True)
    with claimed_run(options, "exact", "journal", "unfinished exact run") as directory:
        with closing(Journal(directory.exact, exact.name, progress.say)) as journal:
            drop_jobs(directory)  # of an earlier controller: what they would have told is asked again
            done: dict[Sample, np.ndarray | None] = {}
            try:
                with make_executor(options, directory.jobs, progress.say) as executor:
                    sampler = kind(exact, executor, shelves, progress, journal, directory, options)
                    done = sampler.known
                    outcome = reconstruct_problem(exact, sampler)
            finally:
                progress.close()
                if journal.is_new and not done:  # nothing to go on with
                    directory.clear()
        save(outcome)
        directory.clear()
    return outcome


def run_point_benchmark(options: Options) -> int:
    """Seconds and peak memory of 1, 2, 5, 10, … points of one trace, at random primes and points."""
    exact = make_exact_problem(options)
    problem = exact.problem
    rng, symbols = np.random.default_rng(1), problem.family.symbols
    primes = list(itertools.islice(probe_primes(rng), max(options.benchmark_points // 50, 2)))
    first = rng.integers(1000, primes[0] - 1000, len(symbols)).tolist()
    point = Point(Fraction(first[0]), tuple((name, Fraction(value)) for name, value in zip(symbols[1:], first[1:])), primes[0])
    started = time.perf_counter()
    _, shelves = open_stores(options)
    columns = replace(problem, point=point, targets=(), combinations=exact.columns(), map_integrals=False)
    trace, _ = record_trace(columns, shelves, Progress(options.quiet))
    live, edges = sum(sector.count for sector in trace.sectors), sum(len(sector.source) for sector in trace.sectors)
    print(f"{show_target(problem.keys[0])}: {live:,} integrals, {edges:,} terms, recorded in {time.perf_counter() - started:.2f} s")
    print(f"{'points':>8}{'seconds':>10}{'ms/point':>10}{'peak MB':>9}")
    counts = sorted(
        {n for k in range(7) for n in (10**k, 2 * 10**k, 5 * 10**k) if n < options.benchmark_points} | {options.benchmark_points}
    )
    for count in counts:
        values = rng.integers(1000, SMALLEST_PROBE_PRIME, (len(symbols), count))
        started = time.perf_counter()
        probe(trace, [primes[i % len(primes)] for i in range(count)], values, options.device)
        seconds = time.perf_counter() - started
        print(f"{count:8,}{seconds:10.3f}{1000 * seconds / count:10.2f}{peak_memory_kb() / 1024:9.0f}", flush=True)
    return 0


def drop_jobs(directory: RunDirectory) -> None:
    """Remove the jobs that a run has in HTCondor's queue, and their files. Raises ExecutorError."""
    if directory.jobs.exists():
        say(f"{remove_run(directory.jobs)} jobs removed from HTCondor's queue")
        directory.drop_jobs()


@contextmanager
def claimed_run(options: Options, own: str, other: str, what: str) -> Iterator[RunDirectory]:
    """The work directory of a run that a later one can go on with. own: its journal; other: of the other kind, which must not be there.

    Raises DirectoryRefused where another controller is at work, InputError.
    """
    with claim_directory(options.work_dir) as work:
        directory = RunDirectory(work)
        directory.stop_request.unlink(missing_ok=True)  # of an earlier run
        if options.condor:
            check_condor_tools()  # before anything is dropped
        if options.fresh:
            drop_jobs(directory)
            directory.clear()
        if (foreign := getattr(directory, other)).exists():  # this run would remove its files at the end
            raise InputError(f"{foreign} is of an unfinished run; go on with that one, drop it by --fresh, or take another --work-dir")
        if options.resume and not getattr(directory, own).exists():
            raise InputError(f"--resume: {work} holds no {what}; leave the option out to start one")
        yield directory


def stop_run(options: Options) -> int:
    """Ask a controller that is there to end, or end in its place. What is done stays."""
    directory = RunDirectory(Path(options.work_dir))
    if not directory.path.is_dir():
        raise InputError(f"--work-dir {directory.path}: no such directory")
    private_directory(directory.path)  # else it would be refused below again and again
    deadline = time.monotonic() + STOP_PATIENCE_S
    while True:
        try:
            with claim_directory(directory.path):
                directory.stop_request.unlink(missing_ok=True)
                drop_jobs(directory)
                return 0
        except DirectoryRefused:
            if time.monotonic() > deadline:
                raise
            directory.stop_request.touch()
            time.sleep(TICK_S)


def show_status(options: Options) -> int:
    """Print what the run of a work directory is at, with --watch until it ends."""
    directory = RunDirectory(Path(options.work_dir))
    while True:
        text, alive = status_text(directory)
        if options.watch and sys.stdout.isatty():
            print("\033[H\033[2J", end="")
        print(text, flush=True)
        if not (options.watch and alive):
            return 0
        time.sleep(STATUS_INTERVAL_S)


def status_text(directory: RunDirectory) -> tuple[str, bool]:
    """A table, and whether a controller is at work. Raises InputError where no run was ever started, ReductionError."""
    if directory.exact.exists():
        return describe_exact_run(directory)
    if directory.journal.exists() and not directory.status.exists():
        return f"{directory.path}: a run is being prepared, or ended before it had a status", False
    status = read_json(
        directory.status,
        f"--status: {directory.path} holds no run of one-step tasks (--condor or --batch), and no unfinished exact run",
        format=STATUS_FORMAT,
    )
    owner = read_owner(directory)
    try:
        return describe_run(directory, status, owner)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        trouble = f"status.json or controller.json is damaged ({error}); a controller at work writes them anew"
        raise ReductionError(f"{directory.path}: {trouble}") from None


def read_owner(directory: RunDirectory) -> dict[str, Any]:
    """Who claimed a work directory last. Raises InputError, ReductionError."""
    return read_json(directory.path / "controller.json", f"--status: {directory.path} was never claimed by a controller")


def is_at_work(owner: dict[str, Any], age_s: float) -> bool:
    """Whether a controller lives; of one on another host the files tell, by their age."""
    return process_exists(owner["pid"]) if owner["host"] == os.uname().nodename else age_s < STATUS_TRUSTED_S


def describe_exact_run(directory: RunDirectory) -> tuple[str, bool]:
    """What the journal of an unfinished exact run holds. How many points it will need is not known on disk. Raises ReductionError."""
    owner, points = read_owner(directory), 0
    try:
        with directory.exact.open("rb") as file:
            name, position = read_record(file, 0) or ({}, 0)
            age = time.time() - os.fstat(file.fileno()).st_mtime
            while position and (found := read_record(file, position)):
                points, position = points + len(found[0].get("samples", ())), found[1]
        alive = is_at_work(owner, age)
        here = owner["host"] == os.uname().nodename
        rows = (
            ("run", f"{name['run']}, exact"),
            ("controller", f"pid {owner['pid']} on {owner['host']}, {'at work' if alive else GONE if here else 'silent'}"),
            ("points", f"{points:,} done, the last {format_seconds(max(age, 0.0))} ago"),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, OSError) as error:
        raise ReductionError(f"{directory.path}: exact.journal or controller.json is damaged ({error!r}); go on with --fresh") from None
    return "\n".join(f"{name:12}{value}" for name, value in rows), alive


def describe_run(directory: RunDirectory, status: dict[str, Any], owner: dict[str, Any]) -> tuple[str, bool]:
    """The table of a sound status."""
    age = time.time() - status["time"]
    finished = not directory.journal.exists()
    alive = not finished and is_at_work(owner, age)
    doing = "finished" if finished else "at work" if alive else GONE
    integrals = status["integrals"]
    rows = [
        ("run", status["run"]),
        ("controller", f"pid {owner['pid']} on {owner['host']}, {doing}"),
        ("time", f"{format_seconds(status['time'] - status['started'])} until {format_seconds(age)} ago; phase: {status['phase']}"),
        ("integrals", f"{integrals['done']:,} done of {integrals['met']:,} met, {integrals['waiting']:,} not yet in a task"),
        ("tasks", ", ".join(f"{count:,} {state}" for state, count in status["tasks"].items())),
        *(("held", f"{count} x {reason}") for reason, count in status["held"].items()),
        ("so far", ", ".join(f"{count:,} {name}" for name, count in status["statistics"].items() if count)),
        ("cache", f"{status['cache']['entries']:,} entries, {status['cache']['hits']:,} hits; {status['rules_found']:,} rules found"),
        *(("failed", text) for text in status["failures"]),
    ]
    if alive:
        left = f"at least {format_seconds(status['left_s'])} left" if status["left_s"] is not None else "no estimate yet"
        rows.append(("pace", f"{format_rate(status['integrals_per_s'])} integrals/s, {left}"))
    return "\n".join(f"{name:12}{value}" for name, value in rows), alive


def read_json(path: Path, otherwise: str, **expected: Any) -> dict[str, Any]:
    """Raises InputError where there is no such file, ReductionError where it is none of ours."""
    try:
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict) or any(value.get(name) != wanted for name, wanted in expected.items()):
            raise ValueError("of another version")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(otherwise) from None
    except (OSError, ValueError) as error:
        raise ReductionError(f"{path}: not readable ({error}); a controller at work writes it anew") from None
    return value


def run_list_families(options: Options) -> int:
    """--list-families."""
    print(list_families())
    return 0


@dataclass(frozen=True)
class Mode:
    """Something else than a reduction: what is done, and with which options."""

    asked: str  # the options that ask for it
    run: Callable[[Options], int]
    takes: str  # what it uses besides, or refuses by itself with a better reason; --quiet is for all
    why: str  # it takes nothing else


BEAM_OPTIONS = "engine beam_width beam_order max_steps policy"
LOCAL_OPTIONS = "work_dir local straggler_timeout straggler_cpus"
MODES = (  # the first that is asked for is what is done
    Mode("list_families", run_list_families, "", "the list is of what is built in"),
    Mode("benchmark", run_benchmark, "output work_dir", "the benchmark runs what was published"),
    Mode("status watch", show_status, "work_dir", "shown is the run of the work directory, as it was started"),
    Mode("stop", stop_run, "work_dir", "ended is the run of the work directory, whatever it does"),
    Mode("list_symmetries", run_list_symmetries, "family kira_config cut cold", "symmetries are those of the family, at no point"),
    Mode(
        "train_policy",
        run_training,
        f"{LOCAL_OPTIONS} make_training_data family training_data trajectories epochs learning_rate seed device policy fresh",
        "examples are made and policies trained on this machine, at points of their own",
    ),
    Mode(
        "make_training_data",
        run_training,
        f"{LOCAL_OPTIONS} family training_data trajectories seed",
        "examples are made on this machine, at points of their own",
    ),
    Mode(
        "benchmark_search", run_search_benchmark, f"family seed {BEAM_OPTIONS}", "searched for are random integrals at a point of its own"
    ),
    Mode("replay", run_replay, "family", "paths are checked as they are"),
    Mode("verify", verify_file, f"{LOCAL_OPTIONS} family kira_config store", "a file is checked as it is, and has no other output"),
    Mode("convert", convert_result, "export epsilon order output", "a result is converted as it is"),
    Mode(
        "benchmark_points",
        run_point_benchmark,
        f"integral integrals family kira_config masters paper_masters_only work_dir store device {BEAM_OPTIONS}",
        "primes and points are random",
    ),
    Mode(
        "system",
        run_system,
        f"output work_dir prime masters integrals kinematics d exact symbols {SYSTEM_POINTS}",
        "the system is all that is solved",
    ),
)


def is_exact(options: Options) -> bool:
    return options.exact or options.symbols is not None or options.differential_equation is not None


# What a reduction, exact or not, uses only together with something else: the options, what they are for, and whether that is given.
TOGETHER: tuple[tuple[str, str, Callable[[Options], bool]], ...] = (
    ("beam_width beam_order max_steps no_rules paths", "--engine beam", lambda options: options.engine == "beam"),
    ("paths", "results modulo a prime", lambda options: not is_exact(options)),
    ("check_interval condor_option transfer_files request_memory max_jobs", "--condor", lambda options: options.condor),
    ("straggler_timeout straggler_cpus", "--local N and --condor", lambda options: options.condor or options.local is not None),
    (
        "job_seconds",
        "--batch auto, --condor and exact results",
        lambda options: options.condor or options.batch == "auto" or is_exact(options),
    ),
    ("device", "exact results and --train-policy", is_exact),
    ("training_data trajectories epochs learning_rate", "--make-training-data and --train-policy", lambda options: False),
    ("seed", "--make-training-data, --train-policy and --benchmark-search", lambda options: False),
)
# The values that options may have, where these are not None.
VALUES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("local beam_width max_steps benchmark_search benchmark_points", lambda value: value >= 1, "at least 1"),
    (
        "job_seconds straggler_cpus check_interval request_memory max_jobs",
        lambda value: 0 < value < LONGEST_TIMEOUT_S,
        f"a number above 0, below {LONGEST_TIMEOUT_S:.0f}",
    ),
    ("trajectories", lambda value: 1 <= value <= 1_000_000, "a number above 0, up to 1000000"),
    ("epochs", lambda value: 1 <= value <= 10_000, "a number above 0, up to 10000"),
    ("learning_rate", lambda value: 0 < value < math.inf, "a number above 0"),
    ("benchmark seed", lambda value: value >= 0, "a number from 0"),
    ("order", lambda value: abs(value) <= LARGEST_ORDER, f"a number from {-LARGEST_ORDER} to {LARGEST_ORDER}"),
    ("engine", ("rules", "beam").__contains__, "rules or beam"),
    ("beam_order", BEAM_ORDERS.__contains__, f"one of {', '.join(BEAM_ORDERS)}"),
    ("device", ("auto", "cpu", "cuda", "torch:cpu").__contains__, "auto, cpu or cuda"),
)


def check_values(options: Options) -> None:
    """Raises InputError."""
    for names, allowed, what in VALUES:
        for name in names.split():
            if (value := getattr(options, name)) is not None and not allowed(value):
                raise InputError(f"--{name.replace('_', '-')} {value}: expected {what}")


def check_used(options: Options, mode: Mode | None, asked: str) -> None:
    """Raises InputError for an option that was given, to a value that is not its default, and would be ignored."""
    unsaid = {"family": EVERY_FAMILY, "prime": DEFAULT_PRIME}  # of options whose default is made later
    given = [
        option.name
        for option in fields(Options)
        if getattr(options, option.name) not in (option.default, unsaid.get(option.name, option.default))
    ]
    if mode is None:
        unused = {name: what for names, what, there in TOGETHER if not there(options) for name in names.split()}
        reasons = ("--{} is for {}".format(name.replace("_", "-"), unused[name]) for name in given if name in unused)
    else:
        taken = {"quiet", *mode.asked.split(), *mode.takes.split()}
        reasons = (f"--{asked} and --{name} contradict each other: {mode.why}".replace("_", "-") for name in given if name not in taken)
    if reason := next(iter(reasons), None):
        raise InputError(reason)


def perform(options: Options) -> int:
    """The first mode that is asked for, else a reduction; returns the exit code."""
    check_values(options)
    for mode in MODES:
        for name in mode.asked.split():
            if getattr(options, name) is not None and getattr(options, name) is not False:
                check_used(options, mode, name)
                return mode.run(options)
    check_used(options, None, "")
    return run_exact(options) if is_exact(options) else run_reduction(options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    ensure_standard_streams()
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = parse_options(arguments)
    try:
        code = perform(options)
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
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        say(str(error))
        return 1
    except StopRequested:
        say(f"stopped on request; go on with: {again(arguments)}")
        return 130
    except KeyboardInterrupt:
        if options.condor:
            jobs = shlex.join([sys.executable, sys.argv[0], "--work-dir", options.work_dir, "--stop"])
            say(f"interrupted; jobs stay in the queue, go on with: {again(arguments)} -- or remove them with: {jobs}")
        else:
            say(f"interrupted; what was found is stored, go on with: {again(arguments)}")
        return 130


def again(arguments: Sequence[str]) -> str:
    """The command that goes on with an interrupted run."""
    return shlex.join([sys.executable, sys.argv[0], *(word for word in arguments if word not in ("--cold", "--fresh"))])


if __name__ == "__main__":
    sys.exit(main())
