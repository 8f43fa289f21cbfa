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
import ast
import hashlib
import io
import itertools
import json
import math
import os
import pickle
import queue
import random
import re
import reprlib
import shelve
import shlex
import shutil
import struct
import sys
import time
import zipfile
import zlib
from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from functools import cache, cached_property, lru_cache, partial
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Any

import numpy as np

from condor_worker import (
    LONGEST_TIMEOUT_S,
    BuiltinsUnpickler,
    CondorExecutor,
    CondorMissing,
    Description,
    DirectoryRefused,
    ExecutorError,
    InlineExecutor,
    LocalExecutor,
    Shared,
    TimeLimits,
    call_name,
    check_condor_tools,
    claim_directory,
    ensure_standard_streams,
    load_builtins,
    private_directory,
    process_exists,
    read_run,
    remove_run,
    replace_file,
    split_options,
    task_cpus,
)

__version__ = "0.1.0"

Index = tuple[int, ...]
Expression = dict[Index, int]

# =====================================================================================================================
# Errors
# =====================================================================================================================


class ReductionError(Exception):
    """Root of what this program refuses or cannot do; its text is one line: what, where, what to do."""


class InputError(ReductionError):
    """The user's input is wrong (exit code 2)."""


class SingularPoint(ReductionError):
    """At this point modulo this prime something vanishes that does not vanish in general."""


# =====================================================================================================================
# Constants
# =====================================================================================================================

MAX_PRIME = 2**31 - 1  # products of two residues must fit an int64
GENERIC_PRIME = 2**31 - 1  # facts about a family and the search for rules use this prime at a pseudo-random point
LARGEST_TARGET_INDEX = 100
OTHER_PRIME = 2**31 - 19  # a second large prime, where one alone could mislead
MAX_INDEX = 30_000  # indices are held as int16 where many are handled
KEY_BITS = 62
LIGHT_MAP = 1.5  # a sector with known rules is only mapped to another if propagators become sums of so few on average, else its masters are
MAPPED_BLOCK = 512  # the same where they are mapped, which makes up to a thousand integrals of one
BLOCK = 8192  # heaviest integrals of a sector taken together: large enough for numpy, small enough to skip what cancels
REPLAY_ELEMENTS = 1 << 20  # numbers in one replay array, so that it stays within the processor's cache and 100 MB
LARGEST_BATCH = 100_000  # integrals in the result of a one-step task: some 30 MB
TARGETS_PER_PASS = 32  # columns of coefficients carried at once
MASTER_REGION = 8  # masters are looked for up to this number of dots plus s
SEARCH_ROWS = 150_000  # a neighbourhood with more identities than this is not tried
REGION_ROWS = 8_000  # nor a region from the corner with more than this, of which few fall away before the elimination
REGION_REACH = 120  # nor one that goes further: rules are stored as int8
BEAM_REACH = 3  # seeds of a beam search are at most so far from the target in one index,
BEAM_NORM = 6  # and in all together
BEAM_BRANCHES = 6  # actions of a position that are followed
BEAM_STEPS = 30  # of a search; where it found nothing by then, one of a wider beam is the shorter way:
BEAM_WIDENINGS = ((1, BEAM_STEPS), (4, 2 * BEAM_STEPS), (16, 2 * BEAM_STEPS))  # so many times the width, and how many steps
# what reading a damaged pickle, number, text, archive or shelf raises
UNREADABLE = (
    pickle.UnpicklingError,
    zlib.error,
    EOFError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
CANDIDATES = 8  # shortest combinations compared for the lightest result: more give hardly better rules


@dataclass(frozen=True)
class Neighbourhood:
    """Seeds around a target: |delta_i| <= reach, sum |delta_i| <= norm, and the ranges of the changes of r and of s."""

    reach: int
    dr: tuple[int, int]
    ds: tuple[int, int]
    norm: int


@dataclass(frozen=True)
class CornerRegion:
    """All seeds from the corner up to so many dots and so much s more than the target has: for integrals close to masters."""

    dots: int
    s: int


# Levels of a search, tried in this order until one reduces the integral; the first four suffice for almost all. An integral that none of
# them reduces is unreduced.
NEIGHBOURHOODS: tuple[Neighbourhood | CornerRegion, ...] = (
    Neighbourhood(1, (-1, -1), (-1, 0), 2),
    Neighbourhood(1, (-1, -1), (-1, 1), 3),
    Neighbourhood(1, (-2, 0), (-1, 1), 2),
    Neighbourhood(1, (-2, 0), (-1, 1), 3),
    Neighbourhood(2, (-2, 0), (-2, 1), 4),
    CornerRegion(0, 2),
    CornerRegion(1, 0),
)
MOSTLY_IN_VAIN = (1, 3, 4, 5, 6)  # levels where few of the searches find something
LAST_NEIGHBOURHOOD = max(level for level, region in enumerate(NEIGHBOURHOODS) if isinstance(region, Neighbourhood))

# =====================================================================================================================
# Families
# =====================================================================================================================


@dataclass(frozen=True)
class Family:
    """Definition of an integral family; everything else about it is computed.

    propagators: (momentum, squared mass) pairs; a momentum such as 'k1+p1' is squared, a product such as '2*k1*p1' (a linear propagator)
    is taken as it stands, and the squared mass is subtracted. The last `isps` of them are irreducible scalar products.
    kinematics: a value for each scalar product of external momenta, in terms of the invariants.
    point: the invariants and their default values. paper_masters: a published basis, if there is one.
    """

    name: str
    loop_momenta: tuple[str, ...]
    external_momenta: tuple[str, ...]
    propagators: tuple[tuple[str, str], ...]
    isps: int
    kinematics: tuple[tuple[str, str], ...]
    point: tuple[tuple[str, str], ...]
    d: str = "41"
    paper_masters: tuple[Index, ...] = ()

    @property
    def n(self) -> int:
        return len(self.propagators)

    @property
    def lines(self) -> int:
        """Number of propagators that may have a positive index."""
        return self.n - self.isps

    @property
    def operators(self) -> int:
        """Number of IBP and LI operators."""
        loops, externals = len(self.loop_momenta), len(self.external_momenta)
        return loops * (loops + externals) + externals * (externals - 1) // 2

    @property
    def symbols(self) -> tuple[str, ...]:
        return ("d", *(name for name, _ in self.point))

    @cached_property
    def identifier(self) -> str:
        """Hash of what the identities depend on: the key of this family in a store, whatever the family is called."""
        parts = (self.loop_momenta, self.external_momenta, self.propagators, self.isps, self.kinematics, self.symbols)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _family(name: str, loops: str, externals: str, propagators: str, isps: int, kinematics: dict, point: str, masters: str = "") -> Family:
    """A built-in family from compact text: 'k1+p1 : m' is a propagator with squared mass m."""
    split = [text.partition(":") for text in propagators.split(",")]
    return Family(
        name,
        tuple(loops.split()),
        tuple(externals.split()),
        tuple((momentum.strip(), mass.strip() or "0") for momentum, _, mass in split),
        isps,
        tuple(kinematics.items()),
        tuple(tuple(item.split("=")) for item in point.split()),
        paper_masters=tuple(tuple(map(int, item.split(","))) for item in masters.split()),
    )


def _massless_box(m: str = "") -> dict[str, str]:
    """Four legs, the first three massless, p4^2 = m: s = (p1+p2)^2, t = (p2+p3)^2."""
    squares = {f"p{i}*p{i}": "0" for i in (1, 2, 3)}
    return squares | {"p1*p2": "s/2", "p2*p3": "t/2", "p1*p3": f"({m or '0'}-s-t)/2"}


_PENTAGON = {f"p{i}*p{i}": "0" for i in (1, 2, 3, 4)} | {
    "p1*p2": "s12/2",
    "p2*p3": "s23/2",
    "p3*p4": "s34/2",
    "p1*p3": "(s45-s12-s23)/2",
    "p2*p4": "(s51-s23-s34)/2",
    "p1*p4": "(s23-s51-s45)/2",
}
_DOUBLEBOX = "k1, k1+p1, k1+p1+p2, k1+k2, k2, k2-p1-p2, k2-p1-p2-p3, k1+p1+p2+p3, k2-p1"

BUILT_IN_FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _family(
            "trianglebox",
            "k1 k2",
            "p1 p3",
            "k1, k2, k1+k2, k1+p1, k2+p3, k2-p1, k1+p3",
            1,
            {"p1*p1": "m1", "p3*p3": "m3", "p1*p3": "(m2-m1-m3)/2"},
            "m1=1 m2=31 m3=47",
            "0,1,1,1,0,0,0 1,0,1,0,1,0,0 0,0,1,1,1,0,0 1,0,1,0,0,1,0 1,1,0,1,1,0,0 1,0,1,1,1,0,0 1,-1,1,1,1,0,0 0,1,1,1,1,0,0 "
            "-1,1,1,1,1,0,0 1,1,0,1,0,1,0 1,0,1,0,1,1,0 1,-1,1,0,1,1,0 1,0,0,1,1,1,0 1,1,1,1,1,0,0 1,1,0,1,1,1,0 1,0,1,1,1,1,0",
        ),
        _family("doublebox", "k1 k2", "p1 p2 p3", _DOUBLEBOX, 2, _massless_box(), "s=3 t=7"),
        _family("doublebox-1m", "k1 k2", "p1 p2 p3", _DOUBLEBOX, 2, _massless_box("m"), "s=3 t=7 m=11"),
        _family(
            "nonplanar-doublebox",
            "k1 k2",
            "p1 p2 p3",
            "k1, k1+p1, k1+p1+p2, k2, k2+p3, k1-k2+p1+p2, k1-k2-p3, k2+p1, k1+p3",
            2,
            _massless_box(),
            "s=3 t=7",
        ),
        _family("sunrise", "k1 k2", "p", "k1:m, k2:m, k1+k2+p:m, k1+p, k2+p", 2, {"p*p": "s"}, "s=7 m=3"),
        _family(
            "pentabox",
            "k1 k2",
            "p1 p2 p3 p4",
            "k1, k1+p1, k1+p1+p2, k1+p1+p2+p3, k2, k2+p1+p2+p3+p4, k2+p1+p2+p3, k1-k2, k1+p1+p2+p3+p4, k2+p1, k2+p1+p2",
            3,
            _PENTAGON,
            "s12=3 s23=7 s34=11 s45=13 s51=17",
        ),
        _family("ladder3", "k1 k2 k3", "p", "k1, k2, k3, k1+p, k2+p, k3+p, k1-k2, k2-k3, k1-k3", 1, {"p*p": "s"}, "s=5"),
        _family("banana3", "k1 k2 k3", "p", "k1:m, k2:m, k3:m, k1+k2+k3+p:m, k1+k2, k1+k3, k2+k3, k1+p, k2+p", 5, {"p*p": "s"}, "s=7 m=3"),
        _family("box", "k1", "p1 p2 p3", "k1, k1+p1, k1+p1+p2, k1+p1+p2+p3", 0, _massless_box(), "s=3 t=7"),
        _family("bubble", "k1", "p", "k1:m, k1+p:m", 0, {"p*p": "s"}, "s=7 m=3"),
    )
}


def parse_number(text: str, name: str) -> Fraction:
    """An integer, a fraction such as -7/2 or a decimal number, exactly. Raises InputError."""
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,300}(/0*[1-9][0-9]{0,300}|\.[0-9]{1,300})?\s*", text):
        raise InputError(f"{name} = {text!r}: expected an integer or a fraction such as -7/2")
    return Fraction(text)


_FAMILY_KEYS = {
    "name": str,
    "loop_momenta": list,
    "external_momenta": list,
    "propagators": list,
    "isps": int,
    "kinematics": dict,
    "invariants": dict,
}


def load_family(text: str) -> Family:
    """The built-in family of this name, or the one defined in this JSON file.

    The file holds one object: name, loop_momenta ["k1"], external_momenta ["p1", "p2"], propagators ["k1", ["k1+p1", "m"], …] (momentum,
    [momentum, squared mass], or linear: {"bilinear": [["k1", "p1"], "w"]}, which is ["k1*p1", "w"]; ISPs last), isps (how many), kinematics
    {"p1*p1": "0", "p1*p2": "s/2"}, invariants {"s": 3} with their default values, and optionally d. Raises InputError.
    """
    if text in BUILT_IN_FAMILIES:
        return BUILT_IN_FAMILIES[text]
    path = Path(text)
    if not os.path.isfile(path):
        raise InputError(f"unknown family {text!r}: neither a file nor one of {', '.join(BUILT_IN_FAMILIES)}")
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_doubles)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"family file {path}: not readable as JSON ({error})") from None
    return define_family(data, f"family file {path}")


def family_names(text: str) -> list[str]:
    """Of a list A,B,…; a file may have a comma in its name."""
    return [text] if os.path.isfile(text) else [name.strip() for name in text.split(",")]


def load_families(text: str) -> list[Family]:
    """The families of a list A,B,…, each as for load_family. Raises InputError."""
    return [load_family(name) for name in family_names(text)]


def load_one_family(text: str) -> Family:
    """Where only one can be meant. Raises InputError."""
    first, *others = load_families(text)
    if others:
        raise InputError(f"--family {text}: this is for one family at a time; choose one of them")
    return first


def check_common(families: Sequence[Family], text: str) -> None:
    """Raises InputError where families cannot be in one run: they are told apart by their names, and there is one point for all."""
    names = [family.name for family in families]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"--family {text}: two families are called {double}; give one of them another name")

    points = [[(name, parse_number(value, name)) for name, value in (("d", family.d), *family.point)] for family in families]
    for name, other in zip(names, points):
        if other != points[0]:
            first, second = (", ".join(f"{symbol}={value}" for symbol, value in point) for point in (points[0], other))
            raise InputError(
                f"--family {text}: families of one run have the same invariants in the same order, with the same defaults, "
                f"not {first} ({names[0]}) and {second} ({name})"
            )


def define_family(data: Any, where: str) -> Family:
    """The family of a definition as in a family file. Raises InputError."""
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected one JSON object with the keys {', '.join(_FAMILY_KEYS)}")
    for key, kind in _FAMILY_KEYS.items():
        if not isinstance(data.get(key), kind) or isinstance(data.get(key), bool):
            raise InputError(f"{where}: key {key!r} is missing or not a {kind.__name__}")
    unknown = set(data) - set(_FAMILY_KEYS) - {"d"}
    if unknown:
        raise InputError(f"{where}: unknown key {sorted(unknown)[0]!r}; known: {', '.join(_FAMILY_KEYS)}, d")
    propagators = [read_propagator(entry, f"{where}: propagator {n}") for n, entry in enumerate(data["propagators"], 1)]
    family = Family(
        data["name"],
        tuple(map(str, data["loop_momenta"])),
        tuple(map(str, data["external_momenta"])),
        tuple(propagators),
        data["isps"],
        tuple((str(pair), str(value)) for pair, value in data["kinematics"].items()),
        tuple((str(name), str(value)) for name, value in data["invariants"].items()),
        d=str(data.get("d", 41)),
    )
    _check_family(family, where)
    return family


def family_definition(family: Family) -> dict[str, Any]:
    """What define_family reads."""
    return {
        "name": family.name,
        "loop_momenta": list(family.loop_momenta),
        "external_momenta": list(family.external_momenta),
        "propagators": [list(pair) for pair in family.propagators],
        "isps": family.isps,
        "kinematics": dict(family.kinematics),
        "invariants": dict(family.point),
        "d": family.d,
    }


def read_propagator(entry: Any, where: str) -> tuple[str, str]:
    """(momentum or product of two, squared mass) from 'k1', ['k1', 'm'] or {'bilinear': [['k1', 'p'], 'm']}. Raises InputError."""
    match entry:
        case {"bilinear": [[str(first), str(second)], str() | int() as mass], **rest} if not rest:
            return f"({first})*({second})", str(mass)
        case [momentum, mass] if not isinstance(momentum, (list, dict)) and not isinstance(mass, (list, dict)):
            return str(momentum), str(mass)
        case list() | dict():
            raise InputError(
                f"{where}: expected 'momentum', ['momentum', 'squared mass'] or {{'bilinear': [['momentum', 'momentum'], 'squared mass']}}"
                f", not {reprlib.repr(entry)}"
            )
    return str(entry), "0"


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    double = next((key for key in keys if keys.count(key) > 1), None)
    if double is not None:
        raise ValueError(f"key {double!r} is there twice")
    return dict(pairs)


def _check_family(family: Family, where: str) -> None:
    """Raises InputError where names clash or counts cannot be right (linear dependence is found by derive_identities)."""
    if not re.fullmatch(r"[A-Za-z][\w-]*", family.name, re.ASCII):
        raise InputError(f"{where}: name {family.name!r} is not made of letters, digits, '-' and '_' with a letter first")
    for name, value in (("d", family.d), *family.point):
        parse_number(value, f"{where}: {name}")
    loops, externals = len(family.loop_momenta), len(family.external_momenta)
    names = [*family.loop_momenta, *family.external_momenta, *family.symbols]
    bad = [name for name in names if not name.isidentifier()] + [name for name in names if names.count(name) > 1]
    if bad:
        raise InputError(f"{where}: {bad[0]!r} is not a name, or is used twice among momenta and invariants ('d' is taken)")
    needed = loops * (loops + 1) // 2 + loops * externals
    if loops < 1 or family.n != needed:
        raise InputError(
            f"{where}: {family.n} propagators, but {loops} loop and {externals} independent external momenta need exactly {needed} "
            "(add irreducible scalar products at the end, counted in 'isps')"
        )
    if not 0 <= family.isps < family.n or family.n > 60:
        raise InputError(f"{where}: isps = {family.isps} with {family.n} propagators; 0 <= isps < propagators <= 60 is needed")


LONGEST_EXPRESSION = 5000
_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}


def _has_power(node: ast.AST) -> bool:
    return any(isinstance(part, ast.Pow) for part in ast.walk(node))


def evaluate(text: str, names: dict[str, Any], where: str) -> Any:
    """Value of an arithmetic expression (+ - * / ** and parentheses) over whatever ring the names' values and Fractions live in."""
    if len(text) > LONGEST_EXPRESSION:
        raise InputError(f"{where}: an expression of {len(text)} characters; at most {LONGEST_EXPRESSION} are taken")

    def visit(node: ast.AST) -> Any:
        match node:
            case ast.Expression(body=body):
                return visit(body)
            case ast.Constant(value=int(value)) if not isinstance(value, bool):
                return names.get("1", Fraction(1)) * value
            case ast.Name(id=name):
                if name not in names:
                    known = ", ".join(key for key in names if key != "1")
                    raise InputError(f"{where}: undefined symbol {name!r} in {text!r}; known: {known or 'none'}")
                return names[name]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -visit(operand)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return visit(operand)
            case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int(power))) if 0 <= power <= 16 and not _has_power(left):
                return visit(left) ** power
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](visit(left), visit(right))
        raise InputError(f"{where}: {text!r} has a part that is not arithmetic of numbers and known symbols (powers up to 16, not nested)")

    try:
        return visit(ast.parse(text.strip(), mode="eval"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise InputError(f"{where}: {text!r} is not an arithmetic expression") from None
    except ZeroDivisionError:
        raise InputError(f"{where}: division by zero in {text!r}") from None


# =====================================================================================================================
# Identities
# =====================================================================================================================

Polynomial = tuple[tuple[tuple[int, ...], int], ...]  # ((exponents of the symbols, integer coefficient), …)
Coefficient = tuple[int, Polynomial, Polynomial]  # (i, numerator, denominator): multiplies a_i, or 1 where i = 0
Operator = tuple[tuple[Index, tuple[Coefficient, ...]], ...]  # ((shift, coefficients), …)


class Algebra:
    """A family's propagators as polynomials in the momenta, over the rational functions of d and the invariants.

    momenta: generators for the loop, then the external momenta; propagators: quadratic forms in them; masses: what is subtracted;
    externals: products of external momenta; names: the symbols as functions, but for those that have numbers. Raises InputError.
    """

    def __init__(self, family: Family, where: str = "", numbers: dict[str, Fraction] | None = None):
        from sympy.polys.matrices import DomainMatrix
        from sympy.polys.matrices.exceptions import DMNonInvertibleMatrixError
        from sympy.polys.rings import ring

        where = where or f"family {family.name}"
        self.functions, self.names = function_field(family.symbols, numbers or {})
        momenta = [*family.loop_momenta, *family.external_momenta]
        self.ring, *self.momenta = ring(momenta, self.functions.to_domain())
        vectors = dict(zip(momenta, self.momenta))
        self.propagators = [_propagator(text, vectors, self.names, self.ring, where) for text, _ in family.propagators]
        self.masses = [self.functions(evaluate(mass, self.names, where)) for _, mass in family.propagators]
        self.externals = _external_products(family, self.names, self.functions, where)
        self.loops, self.n = len(family.loop_momenta), family.n
        products = ((i, j) for i in range(self.loops) for j in range(i, len(momenta)))
        self.column = {pair: number for number, pair in enumerate(products)}
        rows = [self._split(propagator) for propagator in self.propagators]
        try:
            square = DomainMatrix([row[:-1] for row in rows], (self.n, self.n), self.functions.to_domain())
            self.inverse = list(zip(*square.inv().to_list()))  # columns
        except DMNonInvertibleMatrixError:
            raise InputError(
                f"{where}: the propagators are linearly dependent; they must span all {self.n} scalar products with loop momenta"
            ) from None
        self.constants = [row[-1] - mass for row, mass in zip(rows, self.masses)]

    def _split(self, form: Any) -> list:
        """A quadratic form's coefficients of the scalar products with a loop momentum, then its constant part."""
        row = [self.functions.zero] * (self.n + 1)
        for monomial, value in form.terms():
            i, j = (k for k, power in enumerate(monomial) for _ in range(power))
            if i < self.loops:
                row[self.column[i, j]] += value
            else:
                row[-1] += value * self.externals[i - self.loops, j - self.loops]
        return row

    def in_propagators(self, form: Any) -> list:
        """A quadratic form's n + 1 coefficients of D_1 … D_n and 1."""
        *products, constant = self._split(form)
        zero = self.functions.zero
        linear = [sum((value * factor for value, factor in zip(products, column) if value), zero) for column in self.inverse]
        return [*linear, constant - sum((factor * part for factor, part in zip(linear, self.constants)), zero)]


def function_field(symbols: Sequence[str], numbers: dict[str, Fraction]) -> tuple[Any, dict[str, Any]]:
    """The rational functions of these symbols, and what `evaluate` needs to make them; symbols with numbers are these."""
    from sympy import QQ
    from sympy.polys.fields import field as rational_functions

    functions, *generators = rational_functions(list(symbols), QQ)
    given = {name: functions(QQ(value.numerator, value.denominator)) for name, value in numbers.items()}
    return functions, dict(zip(symbols, generators)) | {"1": functions.one} | given


def derive_identities(family: Family) -> tuple[Operator, ...]:
    """IBP operators d/dk_i . q for every loop momentum k_i and every q of loop and external momenta, then the LI operators.

    Applied to a seed a, an operator is the equation 0 = sum over its terms of (sum_i c_i a_i + c_0) I[a + shift]. Exact in d and the
    invariants. Raises InputError for propagators that are not a basis of the scalar products, or undefined symbols.
    """
    algebra = Algebra(family)
    functions, momenta, propagators, externals = algebra.functions, algebra.momenta, algebra.propagators, algebra.externals
    in_propagators, d = algebra.in_propagators, algebra.functions.gens[0]
    loops, n = len(family.loop_momenta), family.n

    def add_derivative(terms: dict, factor: Any, momentum: int, vector: Any) -> None:
        """terms += factor * (vector . d/d momentum) applied to the integrand: -a_b (vector . dD_b/d momentum) / D_b for each b."""
        for b, propagator in enumerate(propagators):
            product = vector * propagator.diff(momenta[momentum])
            if not product:
                continue
            *linear, constant = in_propagators(product)
            for c, value in enumerate([*linear, constant]):
                if value:
                    shift = tuple((i == b) - (i == c) for i in range(n))
                    row = terms.setdefault(shift, {})
                    row[b + 1] = row.get(b + 1, functions.zero) - factor * value

    operators = []
    for i in range(loops):
        for j, vector in enumerate(momenta):
            terms: dict = {(0,) * n: {0: d}} if i == j else {}
            add_derivative(terms, functions.one, i, vector)
            operators.append(terms)
    count = len(family.external_momenta)
    for i in range(count):
        for j in range(i + 1, count):
            terms = {}
            for e in range(count):
                add_derivative(terms, externals[e, j], loops + e, momenta[loops + i])
                add_derivative(terms, -externals[e, i], loops + e, momenta[loops + j])
            operators.append(terms)
    return tuple(_freeze_operator(terms) for terms in operators)


def _propagator(text: str, vectors: dict, invariants: dict, momenta_ring: Any, where: str) -> Any:
    """Quadratic form of a propagator in the momenta: a momentum is squared, a product of two is taken as it is."""
    from sympy.polys.polyerrors import BasePolynomialError

    try:
        value = momenta_ring(evaluate(text, invariants | vectors | {"1": momenta_ring.one}, where))
    except (TypeError, ValueError, ArithmeticError, BasePolynomialError):
        raise InputError(f"{where}: propagator {text!r} is not polynomial in the momenta") from None
    degrees = {sum(monomial) for monomial in value.monoms()} if value else set()
    if degrees not in ({1}, {2}):
        raise InputError(f"{where}: propagator {text!r} is neither a momentum nor a product of two (squared masses go beside it)")
    return value**2 if degrees == {1} else value


def _external_products(family: Family, invariants: dict, functions: Any, where: str) -> dict[tuple[int, int], Any]:
    """Scalar products (i, j) of external momenta as functions of the invariants."""
    names = list(family.external_momenta)
    products: dict[tuple[int, int], Any] = {}
    for pair, value in family.kinematics:
        factors = [part.strip() for part in pair.replace("**2", "^2").split("*")]
        factors = [factors[0][:-2]] * 2 if len(factors) == 1 and factors[0].endswith("^2") else factors
        if len(factors) != 2 or any(name not in names for name in factors):
            raise InputError(f"{where}: kinematic rule {pair!r} is not a product of two of the external momenta {', '.join(names)}")
        i, j = sorted(map(names.index, factors))
        if (i, j) in products:
            raise InputError(f"{where}: two kinematic rules for {names[i]}*{names[j]}")
        products[i, j] = products[j, i] = functions(evaluate(value, invariants, where))
    for i, a in enumerate(names):
        for j, b in enumerate(names[i:], i):
            if (i, j) not in products:
                raise InputError(f"{where}: no kinematic rule for {a}*{b}")
    return products


def _freeze_operator(terms: dict) -> Operator:
    """Builtin types only, so that an operator can be stored and sent: integer polynomials over the symbols."""
    rows = ((shift, tuple((i, *_freeze_ratio(value)) for i, value in sorted(row.items()) if value)) for shift, row in sorted(terms.items()))
    return tuple((shift, coefficients) for shift, coefficients in rows if coefficients)


def _freeze_ratio(value: Any) -> tuple[Polynomial, Polynomial]:
    numerator, denominator = value.numer.clear_denoms(), value.denom.clear_denoms()
    return _freeze_polynomial(numerator[1].mul_ground(denominator[0])), _freeze_polynomial(denominator[1].mul_ground(numerator[0]))


def _freeze_polynomial(polynomial: Any) -> Polynomial:
    return tuple((tuple(map(int, monomial)), int(value)) for monomial, value in sorted(polynomial.terms()))


@dataclass(frozen=True)
class Point:
    """Where the identities are evaluated: d and the invariants as rational numbers, and the prime."""

    d: Fraction
    invariants: tuple[tuple[str, Fraction], ...]
    prime: int

    def residues(self) -> tuple[int, ...]:
        """d and the invariants modulo the prime, in the order of Family.symbols. Raises InputError on a zero denominator."""
        values = []
        for name, value in (("d", self.d), *self.invariants):
            if value.denominator % self.prime == 0:
                raise InputError(f"{name} = {value}: division by zero modulo {self.prime}; take another prime or point")
            values.append(value.numerator * pow(value.denominator, -1, self.prime) % self.prime)
        return tuple(values)


def is_prime(number: int) -> bool:
    """Right below 4,759,123,141 (Jaeschke, Math. Comp. 61 (1993) 915)."""
    if number < 4 or number % 2 == 0:
        return number in (2, 3)
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    return number in (7, 61) or all(
        pow(base, odd, number) == 1 or any(pow(base, odd << k, number) == number - 1 for k in range(twos)) for base in (2, 7, 61)
    )


def is_usable_prime(number: Any) -> bool:
    return type(number) is int and 2 < number <= MAX_PRIME and is_prime(number)


def generic_point(family: Family) -> Point:
    """A pseudo-random point modulo GENERIC_PRIME, the same for a family everywhere; what holds there holds at nearly every point."""

    def draw(name: str) -> Fraction:
        digest = hashlib.sha256(f"{family.identifier} {name}".encode()).digest()
        return Fraction(1000 + int.from_bytes(digest[:8], "big") % (GENERIC_PRIME - 2000))

    return Point(draw("d"), tuple((name, draw(name)) for name, _ in family.point), GENERIC_PRIME)


@dataclass(frozen=True, eq=False)
class Equations:
    """All operators at one point, as arrays over their terms: operator [E], shift [E, n], coefficient [E, n+1] of (1, a) modulo prime."""

    prime: int
    count: int
    operator: np.ndarray
    shift: np.ndarray
    coefficient: np.ndarray

    @property
    def n(self) -> int:
        return self.shift.shape[1]


def polynomial_residue(terms: Polynomial, values: Sequence[int], p: int) -> int:
    """A frozen polynomial at these values of d and the invariants, modulo p."""
    total = 0
    for exponents, factor in terms:
        for value, power in zip(values, exponents):
            factor = factor * pow(value, power, p) % p
        total += factor
    return total % p


def quotients_at(point: Point, what: str) -> Callable[[Polynomial, Polynomial], int]:
    """The value of a quotient of frozen polynomials modulo the prime; InputError, with what it is part of, where the divisor vanishes."""
    p, values = point.prime, point.residues()

    @cache
    def quotient(above: Polynomial, below: Polynomial) -> int:
        divisor = polynomial_residue(below, values, p)
        if divisor == 0:
            shown = ", ".join(f"{name}={value}" for name, value in (("d", point.d), *point.invariants))
            raise InputError(f"the point {shown} makes {what} degenerate: division by zero modulo {p}; take another point or prime")
        return polynomial_residue(above, values, p) * pow(divisor, -1, p) % p

    return quotient


def evaluate_identities(operators: Sequence[Operator], point: Point) -> Equations:
    """Put d and the invariants into the operators. Raises InputError where a denominator vanishes modulo the prime."""
    quotient = quotients_at(point, "an identity")
    labels, shifts, coefficients = zip(*((number, *term) for number, terms in enumerate(operators) for term in terms))
    rows = np.zeros((len(shifts), len(shifts[0]) + 1), np.int64)
    for row, parts in zip(rows, coefficients):
        for i, numerator, denominator in parts:
            row[i] = quotient(numerator, denominator)
    return Equations(point.prime, len(operators), np.array(labels), np.array(shifts, np.int64), rows)


def mass_dimension(terms: Operator) -> int | None:
    """Of an identity, or of a combination less what d gives, in units of a squared mass; None where the terms differ."""
    dimensions = set()
    for shift, coefficients in terms:
        for _, numerator, denominator in coefficients:
            above, below = ({sum(exponents[1:]) for exponents, _ in poly} for poly in (numerator, denominator))
            if len(above) != 1 or len(below) != 1:
                return None
            dimensions.add(above.pop() - below.pop() - sum(shift))
    return None if len(dimensions) > 1 else dimensions.pop() if dimensions else 0


@dataclass(frozen=True)
class Column:
    """A linear combination of integrals, exact in d and the invariants: (integral, coefficients to be added up), each integral once."""

    name: Any
    terms: Operator

    def at(self, point: Point) -> Expression:
        """Coefficients modulo the prime, zeros left out. Raises InputError where a denominator vanishes."""
        quotient = quotients_at(point, "a combination")
        values = ((integral, sum(quotient(above, below) for _, above, below in parts) % point.prime) for integral, parts in self.terms)
        return {integral: value for integral, value in values if value}

    @classmethod
    def of(cls, name: Any, functions: dict[Index, Any]) -> Column:
        """From rational functions of d and the invariants as coefficients."""
        return cls(name, _freeze_operator({integral: {0: value} for integral, value in functions.items()}))


def unit_column(integral: Index, symbols: int) -> Column:
    """An integral itself, of a family with so many symbols."""
    one = (((0,) * symbols, 1),)
    return Column(integral, ((integral, ((0, one, one),)),))


def identities_digest(terms: Iterable[tuple[int, Iterable[int], Iterable[int]]]) -> str:
    """SHA-256 of identities at a point, given as (operator, shift [n], coefficients [n + 1]) for each term."""
    rows = sorted((int(k), tuple(map(int, shift)), tuple(map(int, row))) for k, shift, row in terms if any(row))
    return hashlib.sha256(repr(rows).encode()).hexdigest()


# =====================================================================================================================
# Sectors and weights
# =====================================================================================================================


def sector_of(indices: Sequence[int]) -> int:
    """Bit mask of the positive indices, index 1 in bit 0."""
    return sum(1 << i for i, a in enumerate(indices) if a > 0)


def sector_order(bits: int) -> tuple[int, int]:
    """Sort key of sectors: number of lines, then the bit mask."""
    return bits.bit_count(), bits


def corner(bits: int, n: int) -> Index:
    return tuple(bits >> i & 1 for i in range(n))


def r_and_s(indices: Sequence[int]) -> tuple[int, int]:
    """r = sum of the positive indices, s = minus the sum of the others."""
    return sum(a for a in indices if a > 0), -sum(a for a in indices if a < 0)


def integrals_up_to(indices: Sequence[int]) -> int:
    """Number of integrals of the same sector with at most as many dots and at most the same s."""
    t, n = sector_of(indices).bit_count(), len(indices)
    r, s = r_and_s(indices)
    return math.comb(r, t) * math.comb(n - t + s, s)


def show(indices: Sequence[int]) -> str:
    return f"I[{','.join(map(str, indices))}]"


@dataclass(frozen=True)
class Layout:
    """How integrals of one run are packed into numbers whose order inside a sector is the weight (r, s, |a_n|, …, |a_1|).

    Each digit has room for r_max or s_max. One positive and one other index follow from r and s and need no digit. The packing is linear
    in the indices: key(a + shift) = key(a) + key(shift), so a row of a rule is one addition. Digits of 62 bits in all fit an int64; beyond,
    keys are Python integers in object arrays (slow, but right).
    """

    n: int
    r_max: int
    s_max: int

    @property
    def radix(self) -> int:
        """At least 16, so that differences of neighbouring columns keep their lexicographic order."""
        return max(self.r_max, self.s_max, 15) + 1

    def has_room_for(self, integrals: Iterable[Sequence[int]]) -> bool:
        return all(max(r_and_s(integral)) < self.radix for integral in integrals)

    @cached_property
    def dtype(self) -> type:
        return np.int64 if self.radix**self.n < 2**KEY_BITS else object


def layout_for(targets: Iterable[Sequence[int]], n: int) -> Layout:
    """Room for what can appear below these targets: s grows where r falls. That it suffices is checked as integrals appear."""
    pairs = [r_and_s(target) for target in targets]
    r_max, s_max = max((r for r, _ in pairs), default=0), max((s for _, s in pairs), default=0)  # a combination may have no terms
    roomy = Layout(n, r_max + 1, s_max + 2 * r_max)
    tight = Layout(n, r_max + 1, max(s_max + r_max // 2, 15))
    return tight if roomy.dtype is object and tight.dtype is not object else roomy


class Sector:
    """One sector in one layout: keys to indices and back.

    positive: bool [n]; weights: [n], so that key = indices @ weights - origin; the corner has key 0.
    """

    def __init__(self, layout: Layout, bits: int):
        self.layout, self.bits, self.n = layout, bits, layout.n
        self.positive = np.array([bits >> i & 1 for i in range(self.n)], bool)
        inside, outside = np.flatnonzero(self.positive).tolist(), np.flatnonzero(~self.positive).tolist()
        self.implied = [group[0] for group in (inside, outside) if group]
        own = {i: layout.radix**k for k, i in enumerate(i for i in range(self.n) if i not in self.implied)}
        self.digits = list(own.items())[::-1]
        self.s_place = layout.radix ** len(own)
        self.r_place = self.s_place * layout.radix if outside else self.s_place  # s needs no place where it is always 0
        self.weights = np.array(
            [own.get(i, 0) + self.r_place if self.positive[i] else -own.get(i, 0) - self.s_place for i in range(self.n)], layout.dtype
        )
        self.origin = self.weights[self.positive].sum()

    def encode(self, indices: np.ndarray) -> np.ndarray:
        """Keys [N] of indices [N, n], all in this sector."""
        return indices.astype(self.layout.dtype) @ self.weights - self.origin

    def decode(self, keys: np.ndarray) -> np.ndarray:
        """Indices [N, n] as int64 of keys [N]."""
        r, rest = keys // self.r_place, keys % self.r_place
        s, rest = rest // self.s_place, rest % self.s_place
        indices = np.zeros((len(keys), self.n), np.int64)
        for i, place in self.digits:
            indices[:, i] = (rest // place).astype(np.int64)
            rest = rest % place
        for i in self.implied:
            indices[:, i] = (r if self.positive[i] else s).astype(np.int64) - indices[:, self.positive == self.positive[i]].sum(1)
        return np.where(self.positive, indices + 1, -indices)

    def contains(self, indices: np.ndarray) -> np.ndarray:
        """Bool [...] for indices [..., n]."""
        return ((indices > 0) == self.positive).all(-1)

    def r_and_s(self, changes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """By how much r and s [...] change with the indices [..., n]."""
        return changes[..., self.positive].sum(-1), -changes[..., ~self.positive].sum(-1)


def sectors_of(indices: np.ndarray) -> np.ndarray:
    """Bit masks int64 [N] of indices [N, n]."""
    packed = np.packbits(indices > 0, axis=1, bitorder="little")
    return packed.astype(np.int64) @ (np.int64(1) << 8 * np.arange(packed.shape[1], dtype=np.int64))


def integrals_near_corner(bits: int, n: int, dots: int, s: int) -> list[Index]:
    """All integrals of a sector with at most so many dots and at most this s."""

    def spread(places: list[int], total: int) -> list[dict[int, int]]:
        if not places:
            return [{}]
        return [{places[0]: a} | rest for a in range(total + 1) for rest in spread(places[1:], total - a)]

    inside = [i for i in range(n) if bits >> i & 1]
    outside = [i for i in range(n) if not bits >> i & 1]
    return [tuple(1 + up[i] if i in up else -down[i] for i in range(n)) for up in spread(inside, dots) for down in spread(outside, s)]


def find_nonzero_sectors(equations: Equations, lines: int) -> tuple[int, ...]:
    """All sectors whose integrals do not vanish, lightest first.

    From the bottom up: a sector is zero (scaleless) if all its immediate subsectors are zero and the identities at its corner, without
    subsector terms, combine to corner = 0.
    """
    nonzero: set[int] = set()
    for bits in sorted(range(1, 1 << lines), key=sector_order):
        below = (bits & ~(1 << i) for i in range(lines) if bits >> i & 1)
        if any(b in nonzero for b in below) or not _corner_vanishes(equations, bits):
            nonzero.add(bits)
    return tuple(sorted(nonzero, key=sector_order))


def _corner_vanishes(equations: Equations, bits: int) -> bool:
    p, n = equations.prime, equations.n
    target = corner(bits, n)
    values = (equations.coefficient[:, 0] + equations.coefficient[:, 1:] @ np.array(target)) % p
    rows: dict[int, dict[Index, int]] = {}
    for operator, term, value in zip(equations.operator.tolist(), (equations.shift + target).tolist(), values.tolist()):
        if value and sector_of(term) == bits:
            rows.setdefault(operator, {})[tuple(term)] = value
    return is_reducible(rows, target, p)


def _subtract(row: dict, other: dict, factor: int, p: int) -> None:
    """row -= factor * other, modulo p, without zeros."""
    for key, value in other.items():
        new = (row.get(key, 0) - factor * value) % p
        if new:
            row[key] = new
        else:
            row.pop(key, None)


def substitute(row: dict[Any, int], lines: dict[Any, dict[Any, int]], p: int) -> dict[Any, int]:
    """A row with every key that has a line replaced by it, without zeros."""
    result = {key: value for key, value in row.items() if key not in lines}
    for key, value in row.items():
        if key in lines:
            _subtract(result, lines[key], -value, p)
    return result


Solved = dict[Any, dict[Any, int]]  # what integrals are through others; integers may take part, as names of rows


def solve_for(pivot: Any, row: dict[Any, int], solved: Solved, p: int) -> None:
    """Note in `solved` what row = 0 says of the pivot. The row has nothing that is solved for; no line is changed in place."""
    inverse = -pow(row[pivot], -1, p)
    line = {key: value * inverse % p for key, value in row.items() if key != pivot}
    for key, other in solved.items():
        if pivot in other:
            solved[key] = substitute(other, {pivot: line}, p)
    solved[pivot] = line


Having = dict[Any, set[int]]  # the rows that have a column


def _rows_and_columns(matrix: dict[int, dict[Any, int]]) -> tuple[dict[int, dict[Any, int]], Having]:
    """A copy of a sparse matrix to eliminate in, and which rows have which column."""
    having: Having = {}
    for r, row in matrix.items():
        for c in row:
            having.setdefault(c, set()).add(r)
    return {r: dict(row) for r, row in matrix.items()}, having


def _eliminate(rows: dict[int, dict[Any, int]], having: Having, c: Any, pivot: int, p: int) -> tuple[dict[Any, int], dict[int, int]]:
    """Take a column out of all rows by one of them, which is taken out itself: what is left of it, and its factor for each."""
    pivot_row = rows.pop(pivot)
    inverse = pow(pivot_row.pop(c), -1, p)
    for k in pivot_row:
        having[k].discard(pivot)
    factors = {}
    for r in having.pop(c) - {pivot}:
        row = rows[r]
        factor = factors[r] = row.pop(c) * inverse % p
        for k, value in pivot_row.items():
            new = (row.get(k, 0) - factor * value) % p
            if new:
                row[k] = new
                having[k].add(r)
            elif k in row:
                del row[k]
                having[k].discard(r)
    return pivot_row, factors


def is_reducible(matrix: dict[int, dict[Any, int]], target: Any, p: int) -> bool:
    """Whether the rows combine to one that has the target column and no other, in less than half the time that `eliminate_heavier` takes.

    Columns with the fewest rows are eliminated first: a column of one row costs nothing, and little is filled in. It is over when no row
    has the target any more. The combinations would be long ones.
    """
    rows, having = _rows_and_columns(matrix)
    order = [(len(users), c) for c, users in having.items() if c != target]
    heapify(order)
    while order and having.get(target):
        size, c = heappop(order)
        users = having.get(c, ())
        if len(users) != size:
            if users:
                heappush(order, (len(users), c))
        elif users:
            pivot_row, _ = _eliminate(rows, having, c, min(users, key=lambda r: (len(rows[r]), r)), p)
            for k in pivot_row:
                if k != target:
                    heappush(order, (len(having[k]), k))
    return bool(having.get(target))


# =====================================================================================================================
# Symmetries
# =====================================================================================================================


@dataclass(frozen=True)
class SectorMap:
    """A shift of momenta that carries the lines of one sector into those of another, proved by substitution.

    lines: (line of the source, line of the target), from 1; shift: text for each momentum that changes; rows: each propagator of the
    source after the shift, as (j, numerator, denominator) for its coefficients of D_j of the target, j = 0 for 1. As loop momenta are
    integrated over, and integrals depend on the external momenta through the invariants alone, which the shift keeps, I[a] of the source is
    the integral of the product of (row i)^(-a_i): one line for every positive a_i, a polynomial for the others.
    """

    source: int
    target: int
    lines: tuple[tuple[int, int], ...]
    shift: tuple[str, ...]
    rows: tuple[tuple[Coefficient, ...], ...]

    @property
    def size(self) -> int:
        return sum(map(len, self.rows))


@dataclass(frozen=True)
class Symmetries:
    """maps: for every sector that is equivalent to a lighter one, the map to its representative.

    unshifted: pairs of sectors with the same polynomials U and F for which no shift was found; they are treated as different.
    """

    maps: dict[int, SectorMap]
    unshifted: tuple[tuple[int, int], ...]


Classes = dict[tuple, list[tuple[int, list[tuple[int, ...]]]]]  # canonical form: sectors that have it, and orders of their lines


class Geometry:
    """The propagators of a family as exact quadratic forms of the momenta x = (k, p): D_i = x Q_i x - m_i.

    forms: n arrays [M, M] of numbers; masses [n]; products[a][b]: x_a . x_b through D_1 … D_n and 1, as pairs (place, coefficient); gram
    [E, E]; routing: (loop part [L], external part [E]) of each propagator that is the square of a momentum, else None; flips: permutations
    of the legs; cut: bit mask of lines, which equivalence must take to cut lines. Numbers are rational where they can be, else polynomials
    or functions of the invariants. Raises InputError.
    """

    def __init__(self, family: Family, cut: int = 0):
        algebra = Algebra(family)
        self.family, self.cut, self.functions, self.loops = family, cut, algebra.functions, len(family.loop_momenta)
        self.names = (*family.loop_momenta, *family.external_momenta)
        self.masses = [_plain(mass) for mass in algebra.masses]
        self.forms = [self._form(propagator) for propagator in algebra.propagators]
        self.products = [
            [[(j, _plain(value)) for j, value in enumerate(algebra.in_propagators(a * b)) if value] for b in algebra.momenta]
            for a in algebra.momenta
        ]
        self.gram = np.empty((len(family.external_momenta),) * 2, object)
        for (i, j), value in algebra.externals.items():
            self.gram[i, j] = _plain(value)
        self.routing = [_square_root(form, self.loops) for form in self.forms]
        self.flips = tuple(_leg_permutations(self.gram))

    def _form(self, propagator: Any) -> np.ndarray:
        from sympy import QQ

        form = np.full((len(self.names),) * 2, QQ(0), object)
        for monomial, value in propagator.terms():
            a, b = (k for k, power in enumerate(monomial) for _ in range(power))
            form[a, b] += _plain(value) / 2
            form[b, a] += _plain(value) / 2
        return form

    @cached_property
    def polynomial(self) -> tuple[np.ndarray, list]:
        """U + F of all lines: exponents [T, lines] of the Feynman parameters, and the T coefficients, frozen.

        sum x_i D_i = k M k + 2 k V + J gives U = det M, F = J U - V adj(M) V (arXiv:1111.0868; the sign of F is of no concern). Cut lines
        add their parameter with a coefficient like no other, so that what keeps the polynomial takes cut lines to cut lines.
        """
        from sympy.polys.rings import ring

        lines, loops = self.family.lines, self.loops
        parameters, *x = ring([f"x{i}" for i in range(lines)], self.functions.to_domain())
        total = np.full((len(self.names),) * 2, parameters.zero, object)
        constant = parameters.zero
        for i in range(lines):
            form = self.forms[i]
            for a, b in zip(*np.nonzero(form)):
                total[a, b] += x[i] * self.functions(form[a, b])
            constant += x[i] * self.functions((form[loops:, loops:] * self.gram).sum() - self.masses[i])
        gram = np.array([[self.functions(value) for value in row] for row in self.gram], object).reshape(self.gram.shape)
        terms = sorted(sum(symanzik(total, constant, gram, loops, parameters.one)).terms())
        exponents = np.array([monomial for monomial, _ in terms], np.int64).reshape(-1, lines)
        marked = np.eye(lines, dtype=np.int64)[[bool(self.cut >> i & 1) for i in range(lines)]]
        return np.concatenate([exponents, marked]), [_freeze_ratio(value) for _, value in terms] + [((), ())] * len(marked)

    def canonical(self, bits: int) -> tuple[tuple, list[tuple[int, ...]]]:
        """What equivalent sectors have in common, and all orders of the lines that show it."""
        exponents, coefficients = self.polynomial
        absent = np.array([not bits >> i & 1 for i in range(self.family.lines)])
        kept = np.flatnonzero(~exponents[:, absent].any(1))
        colours = sorted({coefficients[term] for term in kept})
        numbers = np.array([colours.index(coefficients[term]) for term in kept], np.int64)
        form, orders = canonical_orders(exponents[kept][:, ~absent], numbers)
        lines = np.flatnonzero(~absent)
        return (tuple(colours), form), [tuple(lines[list(order)].tolist()) for order in orders]

    def classes(self, nonzero: Sequence[int]) -> Classes:
        """These sectors by their canonical form, the lightest first, each with all orders of its lines that show it."""
        found: Classes = {}
        for bits in sorted(nonzero, key=sector_order):
            form, orders = self.canonical(bits)
            found.setdefault(form, []).append((bits, orders))
        return found

    def text(self, shift: np.ndarray, target: Geometry) -> tuple[str, ...]:
        """A shift [M, M] of the momenta for people, one entry for each that changes; all signs may be reversed."""
        ways = []
        for matrix in (shift, -shift):
            lines = []
            for name, row in zip(self.names, matrix):
                signs = {"1": "+", "-1": "-"}
                parts = [signs.get(str(value), f"+({value})*") + other for other, value in zip(target.names, row) if value]
                text = "".join(parts).removeprefix("+") or "0"
                if text != name:
                    lines.append(f"{name} -> {text}")
            ways.append(tuple(lines))
        return min(ways, key=lambda lines: (len(lines), sum(map(len, lines))))


def _plain(value: Any) -> Any:
    """A function of the invariants as a rational number or a polynomial where it is one: they are faster."""
    from sympy import QQ

    if not value.denom.is_ground:
        return value
    return QQ(value.numer.LC) / QQ(value.denom.LC) if value.numer.is_ground else value.numer.quo_ground(value.denom.LC)


def determinant_of(matrix: np.ndarray, one: Any) -> Any:
    """By expansion along the first row: matrices are as large as there are loops, or legs."""
    if not len(matrix):
        return one
    minors = (determinant_of(np.delete(matrix[1:], j, 1), one) for j in range(len(matrix)))
    return sum(((-1) ** j * value * minor for j, (value, minor) in enumerate(zip(matrix[0], minors))), 0 * one)


def symanzik(total: np.ndarray, constant: Any, gram: np.ndarray, loops: int, one: Any) -> tuple[Any, Any]:
    """U and F of sum x_i D_i, the quadratic form `total` [M, M] of all momenta, loop momenta first, plus a constant.

    constant: with the squares of external momenta already put in; gram [E, E]: their products. one: of the ring of the parameters.
    """
    matrix, linear = total[:loops, :loops], total[:loops, loops:]
    first = determinant_of(matrix, one)
    second = first * constant
    for i, j in itertools.product(range(loops), repeat=2):
        minor = determinant_of(np.delete(np.delete(matrix, i, 0), j, 1), one) * (-1) ** (i + j)
        for a, b in zip(*np.nonzero(gram)):
            second -= minor * linear[i, a] * linear[j, b] * gram[a, b]
    return first, second


def _inverse(matrix: np.ndarray) -> np.ndarray | None:
    """Of a small square matrix of numbers; None if there is none."""
    from sympy import QQ
    from sympy.polys.matrices import DomainMatrix
    from sympy.polys.matrices.exceptions import DMNonInvertibleMatrixError

    try:
        return np.array(DomainMatrix(matrix.tolist(), matrix.shape, QQ).inv().to_list(), object)
    except DMNonInvertibleMatrixError:
        return None


def _square_root(form: np.ndarray, loops: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The momentum whose square a form [M, M] is, up to its sign, split into loop and external part."""
    from sympy import QQ

    if any(not QQ.of_type(value) for value in form.flat):
        return None
    a = next((a for a in range(loops) if form[a, a] > 0), None)
    if a is None:
        return None
    above, below = math.isqrt(int(form[a, a].numerator)), math.isqrt(int(form[a, a].denominator))
    momentum = form[a] / (QQ(above, below) if above and below else 1)
    return None if _differ(np.outer(momentum, momentum), form) else (momentum[:loops], momentum[loops:])


def _differ(one: np.ndarray, other: np.ndarray) -> bool:
    return any((one - other).flat)


def _leg_permutations(gram: np.ndarray) -> Iterator[np.ndarray]:
    """Matrices [E, E] of all permutations of the E + 1 legs, and of their negatives, that keep every invariant."""
    from sympy import QQ

    count = len(gram)
    legs = np.concatenate([np.eye(count, dtype=int), -np.ones((1, count), int)]) * QQ(1)
    products = legs @ gram @ legs.T if count else gram

    for chosen in itertools.permutations(range(count + 1), count):
        if not any(products[leg, chosen[j]] - products[i, j] for i, leg in enumerate(chosen) for j in range(i + 1)):
            yield legs[list(chosen)]
            yield -legs[list(chosen)]


def canonical_orders(exponents: np.ndarray, colours: np.ndarray) -> tuple[tuple[bytes, ...], list[tuple[int, ...]]]:
    """Canonical form of a polynomial under permutations of its variables (Pak, arXiv:1111.0868), and all orders of them that give it.

    exponents [T, t]; colours [T]: a number for the coefficient of each term. Variables are chosen one by one so that the sorted table of
    the terms' colours and exponents so far is the largest; every way to do so is followed. Two polynomials whose terms have the same
    coefficients are equal up to a permutation if and only if the forms are.
    """
    width = int(exponents.max(initial=0)) + 1
    form: list[bytes] = []
    branches: list[tuple[tuple[int, ...], np.ndarray]] = [((), colours)]
    for _ in range(exponents.shape[1]):
        best, kept = b"", []
        for order, ranks in branches:
            for variable in set(range(exponents.shape[1])) - set(order):
                refined = ranks * width + exponents[:, variable]
                table = np.sort(refined).tobytes()
                if table > best or not kept:
                    best, kept = table, []
                if table == best:
                    kept.append(((*order, variable), refined))
        form.append(best)
        # equal tables have equal ranks, which keeps the numbers small
        branches = [(order, np.unique(refined, return_inverse=True)[1].astype(np.int64)) for order, refined in kept]
    return tuple(form), [order for order, _ in branches]


def find_shifts(source: Geometry, target: Geometry, pairs: Sequence[tuple[int, int]], reflections: bool = True) -> Iterator[SectorMap]:
    """All shifts k -> A k + B p, det A = +-1, p -> C p that carry line i of the source into line j of the target for each pair (i, j).

    The lines fix A and B up to signs, and C where they depend on external momenta; elsewhere C is completed by a permutation of the legs or
    by reflections. The families may differ, if their external momenta and kinematics are the same. Each shift is proved by substitution.
    """
    from sympy import QQ

    loops = source.loops
    routed = [(source.routing[i], target.routing[j]) for i, j in pairs if source.routing[i] and target.routing[j]]
    if not routed or loops != target.loops or source.gram.shape != target.gram.shape or _differ(source.gram, target.gram):
        return
    (a, b), (a2, b2) = (tuple(map(np.array, zip(*side))) for side in zip(*routed))
    bases = ((list(chosen), _inverse(a[list(chosen)])) for chosen in itertools.combinations(range(len(a)), loops))
    base, inverse = next(((chosen, found) for chosen, found in bases if found is not None), (None, None))
    if base is None:  # scaleless
        return
    for rest in itertools.product((1, -1), repeat=loops - 1):  # the opposite of all signs is the same shift with k and p reversed
        linear = inverse @ (np.array([1, *rest])[:, None] * a2[base])
        signs = np.array([1 - 2 * _differ(line, other) for line, other in zip(a @ linear, a2)])
        if _differ(a @ linear, signs[:, None] * a2):
            continue
        signs[base] = [1, *rest]
        through = a @ inverse
        b3 = signs[:, None] * b2
        outer, outer2 = b - through @ b[base], b3 - through @ b3[base]
        for external in _isometries(outer, outer2, source, reflections):
            shift = np.full((len(source.names),) * 2, QQ(0), object)
            shift[:loops, :loops], shift[loops:, loops:] = linear, external
            shift[:loops, loops:] = inverse @ (b3[base] - b[base] @ external)
            found = _prove(source, target, pairs, shift)
            if found is not None:
                yield found
                break  # what others do to the other propagators follows from the identities


def _isometries(vectors: np.ndarray, images: np.ndarray, geometry: Geometry, reflections: bool) -> Iterator[np.ndarray]:
    """Matrices C [E, E] that keep the invariants, with vectors @ C = images, both [V, E].

    First permutations of the legs and their negatives. Then one made as in the proof of Witt's theorem: a reflection for every vector of an
    orthogonal basis of what the vectors span.
    """
    yield from (flip for flip in geometry.flips if not _differ(vectors @ flip, images))
    if not reflections:
        return
    one = geometry.functions.one
    gram, result = geometry.gram * one, geometry.flips[0] * one
    basis = _orthogonal_basis(vectors * one, images * one, gram)
    if basis is None:
        return
    for vector, image in basis:
        moved = vector @ result
        for mirror in (moved - image,) if (moved - image) @ gram @ (moved - image) else (moved + image, image):
            if any(mirror):
                result = result - np.outer(2 * (result @ gram @ mirror) / (mirror @ gram @ mirror), mirror)
    yield result


def _orthogonal_basis(vectors: np.ndarray, images: np.ndarray, gram: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Orthogonal vectors that span the given ones, and their images; None where images have other products, or there is no such basis."""
    independent = _independent(zip(vectors, images))
    if independent is None:
        return None
    if any(v @ gram @ w - i @ gram @ j for (v, i), (w, j) in itertools.product(independent, repeat=2)):
        return None
    basis = []
    while independent:
        sums = [(v + w, i + j) for (v, i), (w, j) in itertools.combinations(independent, 2)]
        chosen = next((pair for pair in (*independent, *sums) if pair[0] @ gram @ pair[0]), None)
        if chosen is None:
            return None
        basis.append(chosen)
        factors = [vector @ gram @ chosen[0] / (chosen[0] @ gram @ chosen[0]) for vector, _ in independent]
        independent = _independent((v - chosen[0] * factor, i - chosen[1] * factor) for factor, (v, i) in zip(factors, independent))
        if independent is None:
            return None
    return basis


def _independent(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Linearly independent vectors that span the given ones, and their images; None where dependent vectors have independent images."""
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    for vector, image in pairs:
        for other, its_image in kept:
            place = next(i for i, value in enumerate(other) if value)
            factor = vector[place] / other[place]
            vector, image = vector - other * factor, image - its_image * factor
        if any(vector):
            kept.append((vector, image))
        elif any(image):
            return None
    return kept


def _prove(source: Geometry, target: Geometry, pairs: Sequence[tuple[int, int]], shift: np.ndarray) -> SectorMap | None:
    """The map by a shift [M, M] of the momenta, None unless substitution shows that it keeps the measure, the invariants and the lines."""
    loops, n = source.loops, target.family.n
    external = shift[loops:, loops:]
    measure = determinant_of(shift[:loops, :loops], 1)  # of rational numbers
    if measure not in (1, -1) or any(shift[loops:, :loops].flat) or _differ(external @ source.gram @ external.T, target.gram):
        return None
    rows = []
    for form, mass, momentum in zip(source.forms, source.masses, source.routing):
        moved = shift.T @ form @ shift if momentum is None else np.outer(*[np.concatenate(momentum) @ shift] * 2)
        row = np.array([*[0] * n, -mass], object)
        for a, b in zip(*np.nonzero(moved)):
            for j, value in target.products[a][b]:
                row[j] += moved[a, b] * value
        rows.append(row)
    if any(_differ(rows[i], np.arange(n + 1) == j) for i, j in pairs):
        return None
    exact = source.functions
    return SectorMap(
        sum(1 << i for i, _ in pairs),
        sum(1 << j for _, j in pairs),
        tuple((i + 1, j + 1) for i, j in sorted(pairs)),
        source.text(shift, target),
        tuple(tuple(((j + 1) % (n + 1), *_freeze_ratio(exact(value))) for j, value in enumerate(row) if value) for row in rows),
    )


def find_symmetries(geometry: Geometry, nonzero: Sequence[int]) -> Symmetries:
    """Which non-zero sectors of a family are equivalent at generic kinematics; the lightest of each class represents it."""
    maps: dict[int, SectorMap] = {}
    unshifted = []
    for alike in geometry.classes(nonzero).values():
        unique: list[tuple[int, list[tuple[int, ...]]]] = []
        for bits, orders in alike:
            if found := _map_to_one(geometry, orders[0], geometry, unique):
                maps[bits] = found
            else:
                unshifted += [(bits, other) for other, _ in unique]
                unique.append((bits, orders))
    return Symmetries(dict(sorted(maps.items(), key=lambda item: sector_order(item[0]))), tuple(unshifted))


def find_family_maps(
    geometry: Geometry, sectors: Sequence[int], earlier: Sequence[tuple[Geometry, Classes]]
) -> dict[int, tuple[int, SectorMap]]:
    """For each of these sectors that is equivalent to one of other families, the number of the first such family, and the map.

    The families must have the same invariants in the same order, else their polynomials cannot be compared.
    """
    maps: dict[int, tuple[int, SectorMap]] = {}
    for bits in sectors:
        form, orders = geometry.canonical(bits)
        found = (
            (number, _map_to_one(geometry, orders[0], target, classes.get(form, ()))) for number, (target, classes) in enumerate(earlier)
        )
        if first := next(((number, shift) for number, shift in found if shift), None):
            maps[bits] = first
    return maps


def _map_to_one(
    source: Geometry, order: tuple[int, ...], target: Geometry, alike: Iterable[tuple[int, list[tuple[int, ...]]]]
) -> SectorMap | None:
    """From the sector with these lines, in canonical order, to the first of those with the same form to which a shift is found."""
    ways = ([list(zip(order, other)) for other in others] for _, others in alike)
    return next((found for some in ways if (found := _lightest_map(source, target, some))), None)


def _lightest_map(source: Geometry, target: Geometry, ways: Sequence[Sequence[tuple[int, int]]]) -> SectorMap | None:
    """The shift with the fewest terms of those that carry lines into lines in one of these ways; a reflection only where it takes one."""
    for reflections in (False, True):
        found = []
        for pairs in ways:
            found += find_shifts(source, target, pairs, reflections)
            if found and found[-1].size == target.family.n:  # every propagator becomes another one
                return found[-1]
        if found:
            return min(found, key=lambda shift: shift.size)
    return None


def own_maps(geometry: Geometry, bits: int) -> tuple[SectorMap, ...]:
    """Shifts that carry a sector into itself, one for each permutation of its lines and choice of signs, without the identity."""
    _, orders = geometry.canonical(bits)
    found = [shift for order in orders for shift in find_shifts(geometry, geometry, list(zip(orders[0], order)))]
    return tuple({shift.rows: shift for shift in found if shift.shift}.values())


def exact_image(found: SectorMap, integral: Index, functions: Any) -> dict[Index, Any]:
    """An integral of the source through integrals of the target and its subsectors, with rational functions as coefficients."""
    lines = {i - 1: j - 1 for i, j in found.lines}
    start = [0] * len(integral)
    for i, j in lines.items():
        start[j] = integral[i]
    total = {tuple(start): functions.one}
    for row in (found.rows[i] for i, power in enumerate(integral) if i not in lines for _ in range(-power)):
        factors = [(j - 1, _thaw(above, functions) / _thaw(below, functions)) for j, above, below in row]
        terms: dict[Index, Any] = {}
        for (indices, value), (j, factor) in itertools.product(total.items(), factors):
            term = tuple(a - (i == j) for i, a in enumerate(indices))
            terms[term] = terms.get(term, functions.zero) + value * factor
        total = terms
    return total


def _thaw(polynomial: Polynomial, functions: Any) -> Any:
    return functions(functions.ring.from_dict({exponents: functions.domain(value) for exponents, value in polynomial}))


class NumericMap:
    """A SectorMap at a point: an integral of the source as a sum of integrals of the target and its subsectors."""

    def __init__(self, found: SectorMap, point: Point, n: int):
        """Raises InputError where a denominator vanishes modulo the prime."""
        self.target, self.p, self.n = found.target, point.prime, n
        self.source_lines = np.array([i - 1 for i, _ in found.lines])
        self.target_lines = np.array([j - 1 for _, j in found.lines])
        self.others = np.setdiff1d(np.arange(n), self.source_lines)
        quotient = quotients_at(point, "a symmetry")
        self.rows = [
            (
                np.array([[j == b + 1 for b in range(n)] for j, _, _ in row], np.int64).reshape(-1, n),
                np.array([quotient(above, below) for _, above, below in row], np.int64),
            )
            for row in found.rows
        ]
        self.powers = {(0,) * len(self.others): (np.zeros((1, n), np.int64), np.ones(1, np.int64))}

    def __getstate__(self) -> dict[str, Any]:
        """Without the powers: another process has them sooner by itself."""
        return self.__dict__ | {"powers": {powers: value for powers, value in self.powers.items() if not any(powers)}}

    def numerator(self, powers: Index) -> tuple[np.ndarray, np.ndarray]:
        """The product of the other propagators to these powers as a polynomial of the target's: exponents [T, n] and T coefficients."""
        if powers not in self.powers:
            last = max(i for i, power in enumerate(powers) if power)
            exponents, values = self.numerator(tuple(power - (i == last) for i, power in enumerate(powers)))
            linear, factors = self.rows[self.others[last]]
            products = (exponents[:, None] + linear[None]).reshape(-1, self.n)
            distinct, place = np.unique(products, axis=0, return_inverse=True)
            total = np.zeros(len(distinct), np.int64)
            np.add.at(total, place.reshape(-1), (values[:, None] * factors % self.p).reshape(-1))
            some = total % self.p != 0
            self.powers[powers] = distinct[some], total[some] % self.p
        return self.powers[powers]

    def terms(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of integrals [N, n] of the source: numbers [M] of the integrals that the terms belong to, the terms [M, n], their values [M]."""
        parts = [(np.zeros(0, np.int64), np.zeros((0, self.n), np.int64), np.zeros(0, np.int64))]
        distinct, which = np.unique(-indices[:, self.others], axis=0, return_inverse=True)
        for number, powers in enumerate(distinct.tolist()):
            exponents, values = self.numerator(tuple(powers))
            members = np.flatnonzero(which.reshape(-1) == number)
            lines = np.zeros((len(members), self.n), np.int64)
            lines[:, self.target_lines] = indices[members][:, self.source_lines]
            terms = (lines[:, None] - exponents[None]).reshape(-1, self.n)
            parts.append((np.repeat(members, len(values)), terms, np.tile(values, len(members))))
        return tuple(map(np.concatenate, zip(*parts)))

    def __call__(self, integral: Index) -> Expression:
        _, terms, values = self.terms(np.array([integral], np.int64))
        return dict(zip(map(tuple, terms.tolist()), values.tolist()))


def reachable_sectors(nonzero: Sequence[int], maps: dict[int, SectorMap]) -> dict[int, frozenset[int]]:
    """For every sector all others that its integrals may lead to: the subsectors, the representative and what that leads to."""
    reached: dict[int, frozenset[int]] = {}
    for bits in sorted(nonzero, key=sector_order):
        below = tuple(b for b in nonzero if b != bits and b & bits == b) + ((maps[bits].target,) if bits in maps else ())
        reached[bits] = frozenset(below).union(*(reached[b] for b in below))
    return reached


def _map_line(what: str, shift: SectorMap) -> str:
    lines = " ".join(f"{i}>{j}" for i, j in shift.lines)
    return f"  {what:12} lines {lines}   {', '.join(shift.shift) or 'no shift'}"


def describe_symmetries(geometries: Sequence[Geometry], nonzero: Sequence[Sequence[int]]) -> str:
    """Every map within each family, then those from a later family to an earlier one, one a line."""
    rows: list[str] = []
    earlier: list[tuple[Geometry, Classes]] = []
    for geometry, sectors in zip(geometries, nonzero):
        name = geometry.family.name
        found = find_symmetries(geometry, sectors)
        own = {bits: own_maps(geometry, bits) for bits in sectors if bits not in found.maps}
        count, mapped = sum(map(len, own.values())), sum(map(bool, own.values()))
        rows.append(f"{name}: {len(sectors)} non-zero sectors, {len(own)} unique, {count} maps of {mapped} sectors into themselves")
        rows += [_map_line(f"{bits} -> {shift.target}", shift) for bits, shift in found.maps.items()]
        rows += [_map_line(f"{bits} -> {bits}", shift) for bits, shifts in own.items() for shift in shifts]
        rows += [f"  {a} and {b} have the same U and F, but no shift was found" for a, b in found.unshifted]
        if earlier:
            others = find_family_maps(geometry, list(own), earlier)
            rows.append(
                f"{name}: {len(others)} of its {len(own)} unique sectors are sectors of {', '.join(g.family.name for g, _ in earlier)}"
            )
            rows += [_map_line(f"{bits} -> {earlier[k][0].family.name} {to.target}", to) for bits, (k, to) in others.items()]
            alike = ((bits, g, classes.get(geometry.canonical(bits)[0])) for bits in own if bits not in others for g, classes in earlier)
            rows += [f"  {a} and {g.family.name} {b[0][0]} have the same U and F, but no shift was found" for a, g, b in alike if b]
        earlier.append((geometry, geometry.classes(sectors)))
    return "\n".join(rows)


# =====================================================================================================================
# Rules: discovery
# =====================================================================================================================


@dataclass(frozen=True)
class Rule:
    """The rows that reduce one integral by one step, and with it most others of the sector.

    rows: (operator, seed - target) in the order of elimination; pivots: for every row but the last, the column (integral - target) that is
    eliminated with it; level: which of the NEIGHBOURHOODS it comes from. Independent of target, prime and point; whether a rule reduces
    a given integral is checked each time.
    """

    rows: tuple[tuple[int, Index], ...]
    pivots: tuple[Index, ...]
    level: int


@lru_cache(maxsize=64)
def _ball(n: int, reach: int, norm: int) -> np.ndarray:
    """All integer vectors [B, n] with |x_i| <= reach and sum |x_i| <= norm, shortest first."""
    vectors, left = np.zeros((1, 0), np.int8), np.array([norm])
    for _ in range(n):
        kept = [(v, left >= abs(v)) for v in range(-reach, reach + 1)]
        vectors = np.concatenate([np.column_stack([vectors[mask], np.full(mask.sum(), v, np.int8)]) for v, mask in kept])
        left = np.concatenate([left[mask] - abs(v) for v, mask in kept])
    return vectors[np.argsort(-left, kind="stable")].astype(np.int64)


def seeds_around(neighbourhood: Neighbourhood, sector: Sector) -> np.ndarray:
    """Seeds [S, n] of a neighbourhood relative to a target of this sector."""
    ball = _ball(sector.n, neighbourhood.reach, neighbourhood.norm)
    return ball[in_ranges(neighbourhood, sector, ball)]


def in_ranges(neighbourhood: Neighbourhood, sector: Sector, seeds: np.ndarray) -> np.ndarray:
    """Bool [S]: whose changes of r and of s are those of the neighbourhood."""
    (dr, ds), (r0, r1), (s0, s1) = sector.r_and_s(seeds), neighbourhood.dr, neighbourhood.ds
    return (r0 <= dr) & (dr <= r1) & (s0 <= ds) & (ds <= s1)


def holds(region: Neighbourhood | CornerRegion, sector: Sector, seeds: np.ndarray) -> bool:
    """Whether all of these seeds [S, n], relative to a target, belong to a neighbourhood."""
    size = np.abs(seeds)
    return isinstance(region, Neighbourhood) and bool(
        (size.max(1) <= region.reach).all() and (size.sum(1) <= region.norm).all() and in_ranges(region, sector, seeds).all()
    )


class SearchSpace:
    """All rows of a neighbourhood, for any target of a sector: which columns they have, relative to the target, down to the target itself.

    seeds [S, n] relative to the target; entry e of row `row[e]` (= seed * operators + operator) is term `term[e]` of the identities and
    stands in column `column[e]`; columns [C, n] heaviest first, the target last.
    """

    def __init__(self, sector: Sector, equations: Equations, seeds: np.ndarray):
        self.seeds, self.operators = seeds, equations.count
        keys = (self.seeds @ sector.weights)[:, None] + (equations.shift @ sector.weights)[None]
        self.seed, self.term = np.nonzero(keys >= 0)
        self.row = self.seed * equations.count + equations.operator[self.term]
        distinct, first, self.column = np.unique(-keys[self.seed, self.term], return_index=True, return_inverse=True)
        self.columns = self.seeds[self.seed[first]] + equations.shift[self.term[first]]
        self.complete = len(distinct) > 0 and distinct[-1] == 0
        self._of_seeds: tuple[Equations | None, np.ndarray] = (None, np.zeros(0, np.int64))

    @property
    def rows(self) -> int:
        return len(self.seeds) * self.operators

    @cached_property
    def begin(self) -> np.ndarray:
        """Where the entries of each row begin, [rows + 1]."""
        return np.searchsorted(self.row, np.arange(self.rows + 1))

    def of_seeds(self, equations: Equations) -> np.ndarray:
        """What the seeds, without the target, add to the value of each entry; kept for the equations that came last."""
        if self._of_seeds[0] is not equations:
            products = equations.coefficient[:, 1:] @ self.seeds.T
            self._of_seeds = equations, products[self.term, self.seed]
        return self._of_seeds[1]

    def rows_inside(self, sector: Sector, target: np.ndarray) -> np.ndarray:
        """Numbers of the rows whose seed is in the sector at this target [n]: seldom more than one in ten."""
        return np.flatnonzero(np.repeat(sector.contains(target + self.seeds), self.operators))

    def system(
        self, sector: Sector, equations: Equations, target: np.ndarray, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, columns and values of the entries of these rows [R] at one target [n]: terms inside the sector and not zero.

        A row with a column that no other row has cannot take part in a combination; such rows are removed until none is left.
        """
        entries = run_numbers(self.begin[rows], self.begin[rows + 1] - self.begin[rows])
        entries = entries[sector.contains(target + self.columns)[self.column[entries]]]
        of_target = equations.coefficient[:, 0] + equations.coefficient[:, 1:] @ target
        values = (of_target[self.term[entries]] + self.of_seeds(equations)[entries]) % equations.prime
        row, column = self.row[entries], self.column[entries]
        keep = values != 0
        while not keep.all():
            row, column, values = row[keep], column[keep], values[keep]
            count = np.bincount(column, minlength=len(self.columns))
            count[-1] = 2
            lonely = np.zeros(self.rows, bool)
            lonely[row[count[column] == 1]] = True
            keep = ~lonely[row]
        return row, column, values


def run_numbers(begin: np.ndarray, length: np.ndarray) -> np.ndarray:
    """The numbers begin[i], begin[i] + 1, ... of several runs, one run after the other."""
    return np.arange(length.sum()) + np.repeat(begin - np.cumsum(length) + length, length)


def border_pattern(indices: np.ndarray, positive: np.ndarray, level: int, touching_only: bool = False) -> list[bytes]:
    """How far each integral [N, n] is from the border of its sector in each index, as far as the seeds of this level notice.

    touching_only: 0 where it touches the border, else the largest distance that is noticed.
    """
    neighbourhood = NEIGHBOURHOODS[level]
    notice = neighbourhood.reach + 1 if isinstance(neighbourhood, Neighbourhood) else 127
    distance = np.minimum(np.abs(indices) - positive, notice)
    if touching_only and notice < 127:
        distance[distance > 0] = notice
    return [line.tobytes() for line in distance.astype(np.int8)]


class RuleFinder:
    """Searches a sector for rules; the search spaces are built once and serve every target."""

    def __init__(self, sector: Sector, structure: Equations):
        self.sector, self.structure = sector, structure
        self.rows = 0  # built in all searches so far
        self._spaces: dict[int, SearchSpace | None] = {}

    def space(self, level: int, target: np.ndarray) -> SearchSpace | None:
        """The rows of a level; None where there are none that reach the target, or too many."""
        neighbourhood = NEIGHBOURHOODS[level]
        if isinstance(neighbourhood, CornerRegion):
            return self._make_space(self._seeds_from_corner(target, neighbourhood))
        if level not in self._spaces:
            self._spaces[level] = self._make_space(seeds_around(neighbourhood, self.sector))
        return self._spaces[level]

    def _make_space(self, seeds: np.ndarray) -> SearchSpace | None:
        if not 0 < len(seeds) * self.structure.count <= SEARCH_ROWS:
            return None
        space = SearchSpace(self.sector, self.structure, seeds)
        return space if space.complete else None

    def _seeds_from_corner(self, target: np.ndarray, region: CornerRegion) -> np.ndarray:
        """Relative to the target; none where they would be too many to be listed."""
        positive = self.sector.positive
        t, dots = int(positive.sum()), int((target[positive] - 1).sum()) + region.dots
        s = int(-target[~positive].sum()) + region.s
        count = math.comb(t + dots, dots) * math.comb(self.sector.n - t + s, s)
        fits = count * self.structure.count <= REGION_ROWS and max(dots, s) <= REGION_REACH
        seeds = integrals_near_corner(self.sector.bits, self.sector.n, dots, s) if fits else []
        return np.array(seeds, np.int64).reshape(-1, self.sector.n) - target

    def find(self, target: np.ndarray, level: int, equations: Equations) -> Rule | None:
        """A rule of this level that reduces the integral with these indices [n] at the point of the equations, or None."""
        space = self.space(level, target)
        return space and self.find_in(space, target, level, equations)

    def find_among(self, target: np.ndarray, actions: Sequence[Action], equations: Equations) -> Rule | None:
        """A rule made of these identities and no others."""
        seeds = np.unique(np.array([change for _, change in actions]), axis=0)
        place = {tuple(seed): number for number, seed in enumerate(seeds.tolist())}
        space = SearchSpace(self.sector, self.structure, seeds)
        rows = np.array([place[change] * space.operators + operator for operator, change in actions])
        level = next((n for n, region in enumerate(NEIGHBOURHOODS) if holds(region, self.sector, seeds)), LAST_NEIGHBOURHOOD)
        return self.find_in(space, target, level, equations, rows) if space.complete else None

    def find_in(
        self, space: SearchSpace, target: np.ndarray, level: int, equations: Equations, rows: np.ndarray | None = None
    ) -> Rule | None:
        """As `find`, out of the rows of this space, or only out of some of them, whose seeds must be in the sector."""
        rows = space.rows_inside(self.sector, target) if rows is None else rows
        self.rows += len(rows)
        row, column, value = space.system(self.sector, equations, target, rows)
        last = len(space.columns) - 1
        if not (column == last).any():
            return None
        matrix: dict[int, dict[int, int]] = {}
        for r, c, v in zip(row.tolist(), column.tolist(), value.tolist()):
            matrix.setdefault(r, {})[c] = v
        if level in MOSTLY_IN_VAIN and not is_reducible(matrix, last, equations.prime):
            return None
        combinations = eliminate_heavier(matrix, last, equations.prime)
        if not combinations:
            return None
        found = [(sorted(rows), self._rule(space, {r: matrix[r] for r in sorted(rows)}, equations.prime, level)) for rows in combinations]
        return min(found, key=lambda pair: (self.heaviest_result(pair[1], target, equations), pair[0]))[1]

    def heaviest_result(self, rule: Rule, target: np.ndarray, equations: Equations) -> float:
        """Key of the heaviest integral that a rule expresses the target through, relative to it: the lighter, the fewer follow."""
        compiled = CompiledRule(self.sector, equations, rule)
        value = compiled.replay(np.concatenate([[1.0], target])[None], equations.prime)[0]
        lighter = (value != 0) & (compiled.distance < 0) & self.sector.contains(target + compiled.offset)
        return max(compiled.distance[lighter].tolist(), default=-math.inf)

    def _rule(self, space: SearchSpace, matrix: dict[int, dict[int, int]], p: int, level: int) -> Rule:
        """Put the rows of a combination into an order of elimination, one pivot for each but the last."""
        target = len(space.columns) - 1
        left = {r: {c: v for c, v in row.items() if c != target} for r, row in matrix.items()}
        order, pivots = [], []
        while len(left) > 1:
            r = min((r for r in left if left[r]), key=lambda r: (len(left[r]), r))
            pivot_row = left.pop(r)
            c = min(pivot_row)
            inverse = pow(pivot_row[c], -1, p)
            for row in left.values():
                if c in row:
                    _subtract(row, pivot_row, row[c] * inverse % p, p)
            order.append(r)
            pivots.append(c)
        order += left
        seeds, columns = space.seeds.tolist(), space.columns.tolist()
        return Rule(
            tuple((r % space.operators, tuple(seeds[r // space.operators])) for r in order), tuple(tuple(columns[c]) for c in pivots), level
        )


def eliminate_heavier(matrix: dict[int, dict[int, int]], target: int, p: int) -> list[dict[int, int]]:
    """Combinations {row: factor} without columns heavier than the target (columns ascend towards it), but with it: the shortest ones.

    Columns are eliminated heaviest first with the row that came from the fewest, which keeps the combinations short.
    """
    rows, having = _rows_and_columns(matrix)
    origins: dict[int, dict[int, int]] = {r: {r: 1} for r in rows}
    for c in sorted(having.keys() - {target}):
        if users := having[c]:
            pivot = min(users, key=lambda r: (len(origins[r]), len(rows[r]), r))
            _, factors = _eliminate(rows, having, c, pivot, p)
            pivot_origin = origins.pop(pivot)
            for r, factor in factors.items():
                _subtract(origins[r], pivot_origin, factor, p)
    found = [origins[r] for r, row in rows.items() if target in row]
    shortest = min(map(len, found), default=0)
    return [origin for origin in found if len(origin) == shortest][:CANDIDATES]


# =====================================================================================================================
# Rules: replay
# =====================================================================================================================


class CompiledRule:
    """A rule at one point, ready for many targets of its sector.

    Column j stands `offset[j]` from the target; columns are heaviest first, the target is column `heavier`. Entry e of the rows, a linear
    form `form[:, e]` in (1, target), belongs to row `row[e]`; entries are sorted by column, column j begins at `start[j]`.
    """

    def __init__(self, sector: Sector, equations: Equations, rule: Rule):
        operators, seeds = np.array([operator for operator, _ in rule.rows]), np.array([seed for _, seed in rule.rows], np.int64)
        first = np.searchsorted(equations.operator, np.arange(equations.count + 1))
        size = first[operators + 1] - first[operators]
        term, row = run_numbers(first[operators], size), np.repeat(np.arange(len(size)), size)
        offset = equations.shift[term] + seeds[row]
        form = equations.coefficient[term].copy()
        form[:, 0] = (form[:, 0] + (form[:, 1:] * seeds[row]).sum(1)) % equations.prime
        distance = offset @ sector.weights
        order = np.argsort(-distance, kind="stable")
        distance = distance[order]
        self.start = run_starts(distance)
        self.term, self.seed = term[order], seeds[row[order]]
        self.row, self.form = row[order], np.ascontiguousarray(form[order].T.astype(float))
        self.distance, self.offset = distance[self.start], offset[order][self.start]
        self.heavier = int((self.distance > 0).sum())
        self.rows, self.seeds, self.operators = len(seeds), seeds, operators.astype(np.int16)
        # the seeds stay inside the sector while the target is inside this box
        self.low = np.where(sector.positive, 1 - seeds.min(0), -MAX_INDEX).astype(np.int16)
        self.high = np.where(sector.positive, MAX_INDEX, -seeds.max(0)).astype(np.int16)
        self.valid = self.heavier < len(self.distance) and self.distance[self.heavier] == 0 and len(rule.pivots) == self.rows - 1
        pivots = {key: number for number, key in enumerate(np.array(rule.pivots, np.int64).reshape(-1, sector.n) @ sector.weights)}
        column_pivot = np.array([pivots.get(key, -1) for key in self.distance])
        entry_pivot = np.repeat(column_pivot, np.diff([*self.start, len(order)]))
        self.pivot_entry = np.flatnonzero(entry_pivot >= 0)
        self.pivot_place = (entry_pivot[self.pivot_entry], self.row[self.pivot_entry])

    def replay(self, targets: np.ndarray, p: int) -> np.ndarray:
        """Coefficients [N, C] of the combined rows at targets (1, indices) as floats [N, n+1]: sum over columns of coefficient * I = 0."""
        values = np.rint(targets @ self.form).astype(np.int64) % p
        if self.rows > 1:
            values = values * self._row_factors(values, p)[:, self.row] % p
            values = np.add.reduceat(values, self.start, axis=1) % p
        return values

    def _row_factors(self, values: np.ndarray, p: int) -> np.ndarray:
        """Factors [N, rows] that combine the rows; values [N, E] of the entries."""
        matrix = np.zeros((len(values), self.rows - 1, self.rows), np.int64)
        matrix[:, self.pivot_place[0], self.pivot_place[1]] = values[:, self.pivot_entry]
        return null_vector(matrix, p)

    def multipliers(self, targets: np.ndarray, p: int) -> np.ndarray:
        """Factors [N, rows] of the rows whose sum is I[target] - (what it is expressed through), for targets that the rule reduces."""
        values = np.rint(targets @ self.form).astype(np.int64) % p
        factors = self._row_factors(values, p)
        entry = slice(self.start[self.heavier], [*self.start, len(self.row)][self.heavier + 1])
        pivot = (values[:, entry] * factors[:, self.row[entry]] % p).sum(1) % p
        return factors * invert(pivot, p)[:, None] % p


def null_vector(matrix: np.ndarray, p: int) -> np.ndarray:
    """x [N, m+1] with matrix [N, m, m+1] @ x = 0 modulo p, without divisions; pivots on the diagonal, zero pivots give a useless x.

    Overwrites the matrix. A useless x is harmless: the rows combined with it are still a true equation, rejected if it does not reduce.
    """
    size = matrix.shape[1]
    for c in range(size - 1):
        below = matrix[:, c + 1 :, c + 1 :] * matrix[:, c, c, None, None] - matrix[:, c + 1 :, c, None] * matrix[:, c, None, c + 1 :]
        matrix[:, c + 1 :, c + 1 :] = below % p
    x = np.zeros((len(matrix), size + 1), np.int64)
    x[:, size] = 1
    for c in range(size - 1, -1, -1):
        x[:, c] = -(matrix[:, c, c + 1 :] * x[:, c + 1 :] % p).sum(1) % p
        x[:, c + 1 :] = x[:, c + 1 :] * matrix[:, c, c, None] % p
    return x


def invert(values: np.ndarray, p: int) -> np.ndarray:
    """Inverses modulo the prime p of non-zero residues [N], by Fermat's little theorem."""
    power, result, base = p - 2, np.ones_like(values), values
    while power:
        if power & 1:
            result = result * base % p
        base, power = base * base % p, power >> 1
    return result


# =====================================================================================================================
# Moves
# =====================================================================================================================

Action = tuple[int, Index]  # (operator, seed - target): one identity
StepPath = tuple[tuple[Action, ...], Expression]  # what a search took, and what the target is by it


@dataclass(frozen=True, eq=False)
class Position:
    """Where a search for a one-step reduction stands: the identities used, and what the target is modulo them.

    Keys are relative to the target's, and what is lighter than the target is left out. open: {key: value} with target = sum of value *
    I[key] + lighter; {0: 1} at the start, empty at the end. solved: {key: {key: value}}, what each eliminated integral is, free of all
    eliminated ones. score: sum of the logarithms of the probabilities that the policy gave to the actions.
    """

    actions: tuple[Action, ...] = ()
    open: dict[int, int] = field(default_factory=lambda: {0: 1})
    solved: dict[int, dict[int, int]] = field(default_factory=dict)
    score: float = 0.0

    @property
    def heaviest(self) -> int:
        """The integral that the next action eliminates."""
        return max(self.open)


@dataclass(frozen=True, eq=False)
class Moves:
    """Actions that may be taken in a position, and what their identities contain.

    operator [C], seed [C, n]. Entry e is a term with a non-zero coefficient: of action `action[e]`, with `key[e]` relative to the
    target where it stays in the sector (`own[e]`), changes (dr[e], ds[e]) relative to the target. Entries of an action are adjacent.
    """

    operator: np.ndarray
    seed: np.ndarray
    action: np.ndarray
    key: np.ndarray
    own: np.ndarray
    dr: np.ndarray
    ds: np.ndarray


class SearchGround:
    """The identities around one target of a sector at one point: which actions there are, and what they do to a position."""

    def __init__(self, sector: Sector, equations: Equations, target: np.ndarray):
        self.sector, self.equations, self.target = sector, equations, target
        self.target_key = sector.encode(target[None])[0]
        self.key_shift = equations.shift @ sector.weights
        self.first = np.searchsorted(equations.operator, np.arange(equations.count + 1))
        self.dr_shift, self.ds_shift = sector.r_and_s(equations.shift)
        self.rows: dict[Action, dict[int, int]] = {}

    def moves(self, position: Position) -> Moves:
        """All actions whose identity, after substitution of what is solved, contains the heaviest open integral.

        Such an identity contains that integral itself or a solved one; seeds are in the sector and not far from the target.
        """
        sector, shift = self.sector, self.equations.shift
        pivots = np.array([position.heaviest, *position.solved], sector.layout.dtype)
        seed = (sector.decode(pivots + self.target_key)[:, None] - shift).reshape(-1, sector.n)
        term = np.tile(np.arange(len(shift)), len(pivots))
        distance = np.abs(seed - self.target)
        near = (distance.max(1) <= BEAM_REACH) & (distance.sum(1) <= BEAM_NORM) & sector.contains(seed)
        seed, term = seed[near], term[near]
        present = self._values(term, seed) != 0
        seed, operator = seed[present], self.equations.operator[term[present]]
        place = ((seed - self.target) @ sector.weights) * self.equations.count + operator
        _, once = np.unique(place, return_index=True)
        moves, value = self._identities(operator[once], seed[once])
        factors = {position.heaviest: 1} | {key: line.get(position.heaviest, 0) for key, line in position.solved.items()}
        known = np.sort(pivots)
        factor = np.array([factors[key] for key in known.tolist()])
        found = is_member(moves.key, known) & moves.own
        part = factor[np.searchsorted(known, moves.key[found])] * value[found] % self.equations.prime
        total = np.zeros(len(moves.operator), np.int64)
        np.add.at(total, moves.action[found], part)
        return chosen_moves(moves, total % self.equations.prime != 0)

    def _values(self, term: np.ndarray, seed: np.ndarray) -> np.ndarray:
        coefficient = self.equations.coefficient[term]
        return (coefficient[:, 0] + (coefficient[:, 1:] * seed).sum(1)) % self.equations.prime

    def _identities(self, operator: np.ndarray, seed: np.ndarray) -> tuple[Moves, np.ndarray]:
        """The identities of these operators [C] at these seeds [C, n], and the values of their entries."""
        size = self.first[operator + 1] - self.first[operator]
        action, term = np.repeat(np.arange(len(operator)), size), run_numbers(self.first[operator], size)
        value = self._values(term, seed[action])
        action, term, value = action[value != 0], term[value != 0], value[value != 0]
        dr, ds = self.sector.r_and_s(seed - self.target)
        moves = Moves(
            operator,
            seed,
            action,
            ((seed - self.target) @ self.sector.weights)[action] + self.key_shift[term],
            self.sector.contains(seed[action] + self.equations.shift[term]),
            dr[action] + self.dr_shift[term],
            ds[action] + self.ds_shift[term],
        )
        return moves, value

    def row(self, action: Action) -> dict[int, int]:
        """The identity of an action down to the target: {key: value}; not to be changed."""
        if action not in self.rows:
            operator, change = action
            moves, value = self._identities(np.array([operator]), (self.target + np.array(change))[None])
            keep = moves.own & (moves.key >= 0)
            self.rows[action] = dict(zip(moves.key[keep].tolist(), value[keep].tolist()))
        return self.rows[action]

    def after(self, position: Position, action: Action, score: float = 0.0) -> Position | None:
        """The position after an action; None if its identity does not contain what is to be eliminated."""
        p, heaviest = self.equations.prime, position.heaviest
        row = substitute(self.row(action), position.solved, p)
        if heaviest not in row:
            return None
        solved = dict(position.solved)
        solve_for(heaviest, row, solved, p)
        return Position((*position.actions, action), substitute(position.open, solved, p), solved, position.score + score)


def chosen_moves(moves: Moves, chosen: np.ndarray) -> Moves:
    """Those of the actions that are chosen, bool [C]."""
    kept = chosen[moves.action]
    action = (np.cumsum(chosen) - 1)[moves.action[kept]]
    entries = (getattr(moves, name)[kept] for name in ("key", "own", "dr", "ds"))
    return Moves(moves.operator[chosen], moves.seed[chosen], action, *entries)


# =====================================================================================================================
# Policy
# =====================================================================================================================

POLICY_FORMAT = 1  # of a weights file, and of what its inputs mean
POLICY_KIND = "ibp_reduce policy"
NO_POLICY = ("fixed", "random")  # names that stand for a search without a policy
FAR = 4  # relative indices, r and s are cut off here, so that the policy sees the neighbourhood alone
EMBEDDED_INPUTS = (14, 7, 6)  # of an entry, an index, an open integral
ACTION_INPUTS = 8
LARGEST_WIDTH = 1024  # of a network that is loaded: 8 million parameters
SCORED_TOGETHER = 8  # positions: some thousand entries, so that memory stays small
EMBEDDING_SCALE = 0.2  # sums over a dozen parts become numbers of order one


class PolicyRefused(InputError):
    """Weights that are missing, damaged, or of another family or version."""


@dataclass(frozen=True, eq=False)
class Features:
    """A position and its actions as the policy sees them: relative numbers only, so that one policy serves any family.

    entries [F, 14] of the actions' identities, which belong to actions `action` [F]; indices [C * n, 7], n for each action;
    actions [C, 8], how many entries of each identity are of what kind; open [H, 6]; all int8.
    """

    entries: np.ndarray
    action: np.ndarray
    indices: np.ndarray
    actions: np.ndarray
    open: np.ndarray

    @property
    def indices_each(self) -> int:
        return len(self.indices) // max(len(self.actions), 1)


def describe_moves(ground: SearchGround, position: Position, moves: Moves) -> Features:
    sector, target, heaviest = ground.sector, ground.target, position.heaviest
    count = len(moves.operator)
    waiting = np.sort(np.fromiter(position.open, sector.layout.dtype, len(position.open)))
    solved = np.sort(np.fromiter(position.solved, sector.layout.dtype, len(position.solved)))
    away = sector.decode(waiting + ground.target_key) - target
    pivot = away[-1]
    away_r, away_s = sector.r_and_s(away)
    own, key = moves.own, moves.key
    in_open, in_solved = own & is_member(key, waiting), own & is_member(key, solved)
    new = own & (key >= 0) & ~in_open & ~in_solved
    kinds = (own & (key == heaviest), new, new & (key > heaviest), in_open, in_solved, own, ~own, own & (key < 0))
    relations = (own, key > heaviest, key == heaviest, (key > 0) & (key < heaviest), key == 0, key < 0, in_open, in_solved, new)
    changes = (moves.dr, moves.ds, moves.dr - away_r[-1], moves.ds - away_s[-1])
    columns = [own & relation for relation in relations] + [~own] + [np.clip(change, -FAR, FAR) * own for change in changes]
    return Features(
        np.stack(columns, 1).astype(np.int8),
        moves.action,
        _index_features(sector, target, pivot, moves.seed),
        np.minimum(np.stack([np.bincount(moves.action[kind], minlength=count) for kind in kinds], 1), 15).astype(np.int8),
        np.stack(
            [
                np.clip(away_r, -FAR, FAR),
                np.clip(away_s, -FAR, FAR),
                waiting == heaviest,
                waiting == 0,
                np.full(len(waiting), min(len(position.actions), 12)),
                np.full(len(waiting), min(len(waiting), 12)),
            ],
            1,
        ).astype(np.int8),
    )


def _index_features(sector: Sector, target: np.ndarray, pivot: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """[C * n, 7]: which indices are lines, how far target and seed are from the border, and where the seed is."""
    positive, change = sector.positive, seed - target
    border = np.minimum(np.abs(np.stack([np.broadcast_to(target, seed.shape), seed], 2)) - positive[:, None], FAR - 1)
    relative = np.clip(np.stack([np.broadcast_to(pivot, seed.shape), change - pivot, change], 2), -FAR, FAR)
    kind = np.broadcast_to(np.stack([positive, ~positive], 1), (*seed.shape, 2))
    return np.concatenate([kind, border, relative], 2).reshape(-1, 7).astype(np.int8)


def join_features(parts: Sequence[Features]) -> dict[str, Any]:
    """Tensors of several positions together; `*_owner` says which action, or position, a line belongs to."""
    import torch

    counts = [len(part.actions) for part in parts]
    begins = np.cumsum(counts) - counts
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("entries", "indices", "actions", "open")}
    arrays["entries_owner"] = np.concatenate([part.action + begin for part, begin in zip(parts, begins)])
    arrays["indices_owner"] = np.repeat(np.arange(sum(counts)), np.repeat([part.indices_each for part in parts], counts))
    arrays["open_owner"] = np.repeat(np.arange(len(parts)), [len(part.open) for part in parts])
    arrays["actions_owner"] = np.repeat(np.arange(len(parts)), counts)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def make_network(width: int) -> Any:
    """A set network: the entries of an identity, its indices and what is open are embedded one by one and summed; no order matters."""
    from torch import nn

    mix = nn.Sequential(nn.Linear(3 * width + ACTION_INPUTS, 2 * width), nn.ReLU(), nn.Linear(2 * width, width), nn.ReLU())
    embeddings = {name: nn.Linear(inputs, width) for name, inputs in zip(("entries", "indices", "open"), EMBEDDED_INPUTS)}
    return nn.ModuleDict(embeddings | {"mix": mix, "score": nn.Linear(width, 1)})


def action_scores(network: Any, batch: dict[str, Any]) -> Any:
    """Scores [C] of all actions of a batch, whose softmax in each position gives the probabilities."""
    import torch

    def embed(name: str, owners: int) -> Any:
        tokens = torch.relu(network[name](batch[name].float()))
        return tokens.new_zeros(owners, tokens.shape[1]).index_add_(0, batch[f"{name}_owner"], tokens)

    owner, actions = batch["actions_owner"], batch["actions"].float()
    count, positions = len(actions), int(batch["open_owner"][-1]) + 1  # by what is open: a position may have no actions
    parts = [embed("entries", count), embed("indices", count), embed("open", positions)[owner], actions]
    return network["score"](network["mix"](EMBEDDING_SCALE * torch.cat(parts, 1)))[:, 0]


class Policy:
    """Gives each action of a position its probability to be on a short way to the end.

    Without a network every action is as good as any other: in the order in which they come, or shuffled, another way for another seed.
    """

    def __init__(self, network: Any = None, shuffled: bool = False, seed: int = 0):
        self.network, self.shuffled, self.seed = network, shuffled, seed

    def scores(self, features: Sequence[Features]) -> list[np.ndarray]:
        """Logarithms of probabilities [C], one array for each position."""
        if self.network is None:
            return [self._arbitrary(len(part.actions), len(part.open)) for part in features]
        import torch

        with torch.inference_mode():
            values = action_scores(self.network, join_features(features)).double().numpy()
        parts = np.split(values, np.cumsum([len(part.actions) for part in features])[:-1])
        return [np.round(part - np.logaddexp.reduce(part), 4) for part in parts]  # what differs by rounding alone is the same

    def _arbitrary(self, count: int, still_open: int) -> np.ndarray:
        order = np.random.default_rng((still_open, self.seed)).permutation(count) if self.shuffled else np.arange(count)
        return -math.log(max(count, 1)) - 1e-6 * order


def pack_policy(network: Any, families: dict[str, str], trained: dict[str, Any], guide: dict[str, np.ndarray] | None = None) -> bytes:
    """The content of a weights file: the network, what it was trained on ({family name: identifier}) and how, and the guide."""
    import torch

    width = network["score"].in_features
    record = {"kind": POLICY_KIND, "format": POLICY_FORMAT, "width": width, "families": families, "trained": trained}
    buffer = io.BytesIO()
    torch.save(record | {"state": network.state_dict()}, buffer)
    if guide is not None:
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr(GUIDE_MEMBER, pack_guide(guide, families))
    return buffer.getvalue()


def load_tensors(content: bytes, device: str = "cpu") -> Any:
    """What `torch.save` wrote, tensors and builtin types only: nothing in it is executed. Raises many kinds of exceptions for damage."""
    import torch

    with zipfile.ZipFile(io.BytesIO(content)) as archive:  # torch itself does not notice a flipped bit
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} is damaged")
    return torch.load(io.BytesIO(content), map_location=device, weights_only=True)


def unpack_policy(content: bytes) -> tuple[Any, dict[str, Any]]:
    """The network and its record. Raises PolicyRefused; nothing in a foreign file is executed."""
    import torch

    try:
        record = load_tensors(content)
    except Exception as error:  # torch raises a dozen kinds, also for truncated archives
        raise PolicyRefused(f"not readable as weights ({type(error).__name__})") from None
    kind, form, width = (record.get(name) for name in ("kind", "format", "width")) if isinstance(record, dict) else (None,) * 3
    if not isinstance(kind, str) or kind != POLICY_KIND:
        raise PolicyRefused("holds no policy of this program")
    if type(form) is not int or form != POLICY_FORMAT:
        raise PolicyRefused(f"is of format {form!r}, this version reads {POLICY_FORMAT}; train it anew")
    if type(width) is not int or not 0 < width <= LARGEST_WIDTH:
        raise PolicyRefused(f"is damaged (width {width!r})")
    try:
        network = make_network(width)
        if any(values.dtype != torch.float32 for values in record["state"].values()):
            raise TypeError("not of single precision")
        network.load_state_dict(record["state"])
        finite = all(bool(torch.isfinite(values).all()) for values in network.state_dict().values())
        families = {str(name): str(identifier) for name, identifier in record["families"].items()}
    except Exception as error:  # wrong names, shapes or types of any depth
        raise PolicyRefused(f"is damaged ({type(error).__name__})") from None
    if not finite:
        raise PolicyRefused("has weights that are not finite numbers")
    return network.eval(), record | {"families": families}


@lru_cache(maxsize=4)
def load_policy(source: bytes | str) -> Policy:
    """A policy from the content of a weights file, or by name: 'fixed', 'random' or 'random SEED'. Raises PolicyRefused."""
    if isinstance(source, str):
        name, _, seed = source.partition(" ")
        return Policy(shuffled=name == "random", seed=int(seed or 0))
    import torch

    torch.set_num_threads(1)  # processes are the parallelism here
    return Policy(unpack_policy(source)[0])


def read_policy(name: str, family: Family) -> bytes | str:
    """What `load_policy` takes, for a weights file or 'fixed' or 'random'. Raises PolicyRefused with the path."""
    if name in NO_POLICY:
        return name
    try:
        content = Path(name).read_bytes()
    except OSError as error:
        raise PolicyRefused(f"policy {name}: {error.strerror}; train one with --train-policy, or give --policy fixed (slow)") from None
    try:
        trained = unpack_policy(content)[1]["families"]
    except PolicyRefused as error:
        raise PolicyRefused(f"policy {name}: {error}") from None
    if trained.get(family.name, family.identifier) != family.identifier:
        raise PolicyRefused(f"policy {name}: was trained on another family that is called {family.name}; train it anew")
    return content


# =====================================================================================================================
# Guide
# =====================================================================================================================

GUIDE_FORMAT = 1  # of the guide's weights, and of what its inputs mean
GUIDE_KIND = "ibp_reduce guide"
GUIDE_MEMBER = "archive/guide.npz"  # in the zip archive that a weights file is: numpy reads it, so that no reduction waits 1.5 s for torch
GUIDE_LEVELS = 3  # it learns from rules of the first ones,
GUIDED_LEVEL = 2  # and is used where rules are long and searches seldom in vain: of level 0 all rows are soon tried, of level 1 few help
GUIDED_SHARE = 0.5  # of the rows is tried first
MATRIX_PIECE, VECTOR_PIECE = 200_000, 9_000  # multiplications: OpenBLAS uses threads from 262,144 and 9,216 on
NEAR = 4  # distances from the border, the last one stands for all further ones
SHIFT_KINDS = 9  # signs of the changes of r and of s
SEED_RANGE = 2  # of a seed, in one index
TOKEN_INPUTS = 3 * SHIFT_KINDS + 2 * SEED_RANGE + 1 + 2
ROW_INPUTS = 2 * SHIFT_KINDS + 1 + 6 + GUIDE_LEVELS + 2
GUIDE_WIDTH = 32
GUIDE_SHAPES = {
    "token_in": (TOKEN_INPUTS, GUIDE_WIDTH),
    "token_in_bias": (GUIDE_WIDTH,),
    "token_out": (GUIDE_WIDTH, GUIDE_WIDTH + NEAR),
    "token_out_bias": (GUIDE_WIDTH + NEAR,),
    "row_in": (ROW_INPUTS, GUIDE_WIDTH),
    "row_in_bias": (GUIDE_WIDTH,),
    "row_mix": (GUIDE_WIDTH, GUIDE_WIDTH),
    "row_mix_bias": (GUIDE_WIDTH,),
    "row_score": (GUIDE_WIDTH,),
    "near": (2, NEAR, GUIDE_WIDTH),
}


@dataclass(frozen=True, eq=False)
class RowFeatures:
    """The rows of a level of a sector as the guide sees them, row = seed * O + operator; relative numbers only, for any family.

    rows [S * O, ROW_INPUTS]; tokens [O * n * 5, TOKEN_INPUTS], for what a seed may be in an index; seeds [S, n * 5], which of the tokens
    of each index a seed has; kind [1, n], 0 for a line, else 1; place [1, n], the numbers of the indices. Arrays, or tensors to train on.
    """

    rows: Any
    tokens: Any
    seeds: Any
    kind: Any
    place: Any


def describe_rows(sector: Sector, equations: Equations, seeds: np.ndarray, level: int) -> RowFeatures:
    """seeds [S, n] relative to the target."""
    positive, shift, count = sector.positive, equations.shift, equations.count
    dr, ds = sector.r_and_s(shift)
    kinds = 3 * (np.sign(dr) + 1) + np.sign(ds) + 1
    place = equations.operator * SHIFT_KINDS + kinds
    distance = (seeds @ sector.weights)[:, None] + (shift @ sector.weights)[None]
    places = np.eye(count * SHIFT_KINDS, dtype=np.float32)[place]
    heavier, same = (product(terms.astype(np.float32), places) for terms in (distance > 0, distance == 0))
    total = np.bincount(place, minlength=count * SHIFT_KINDS).reshape(1, count, SHIFT_KINDS)
    size = np.abs(seeds)
    parts = (seeds[:, positive], -seeds[:, ~positive], size, size[:, positive], seeds[:, positive] > 0, seeds[:, ~positive] > 0)
    constants = [level == k for k in range(GUIDE_LEVELS)] + [sector.n / 8, positive.sum() / 8]
    of_seed = np.column_stack([part.sum(1) for part in parts] + [np.full(len(seeds), value) for value in constants])
    columns = (
        np.log1p(heavier).reshape(len(seeds), count, SHIFT_KINDS),
        np.log1p(total),
        same.reshape(len(seeds), count, SHIFT_KINDS).sum(2, keepdims=True),
        of_seed[:, None],
    )
    rows = np.concatenate([np.broadcast_to(part, (len(seeds), count, part.shape[2])) for part in columns], 2)
    return RowFeatures(
        rows.reshape(-1, ROW_INPUTS).astype(np.float32),
        _token_features(sector, equations, kinds),
        np.eye(2 * SEED_RANGE + 1, dtype=np.float32)[seeds + SEED_RANGE].reshape(len(seeds), -1),
        (~positive).astype(np.int64)[None],
        np.arange(sector.n)[None],
    )


def _token_features(sector: Sector, equations: Equations, kinds: np.ndarray) -> np.ndarray:
    """[O * n * 5, TOKEN_INPUTS]: how the terms of an operator shift an index, what the seed is there, and whether it is a line."""
    count, n, values = equations.count, sector.n, 2 * SEED_RANGE + 1
    shifts = np.zeros((count, n, 3 * SHIFT_KINDS), np.float32)
    for i in range(n):
        np.add.at(shifts, (equations.operator, i, SHIFT_KINDS * (np.sign(equations.shift[:, i]) + 1) + kinds), 1)
    kind = np.stack([sector.positive, ~sector.positive], 1).astype(np.float32)
    parts = (np.log1p(shifts)[:, :, None], np.eye(values, dtype=np.float32)[None, None], kind[None, :, None])
    return np.concatenate([np.broadcast_to(part, (count, n, values, part.shape[3])) for part in parts], 3).reshape(-1, TOKEN_INPUTS)


def product(a: Any, b: Any) -> Any:
    """a [N, K] @ b [K, M]; of arrays in pieces for which OpenBLAS starts no threads, which only wait for each other on busy processors."""
    if not isinstance(a, np.ndarray):
        return a @ b
    size = max((MATRIX_PIECE if b.shape[1] > 1 else VECTOR_PIECE) // b.size, 1)
    return np.concatenate([a[begin : begin + size] @ b for begin in range(0, len(a), size)])


def guide_rows(weights: Any, features: RowFeatures) -> tuple[Any, Any]:
    """What does not depend on a target: vectors [S * O, width] of the rows, and what tokens [n, NEAR, 5, O] add to a score.

    Arrays or tensors: numpy and torch understand the same formulas.
    """
    seeds, n = len(features.seeds), features.kind.shape[1]
    values = features.seeds.shape[1] // n
    tokens = (product(features.tokens, weights["token_in"]) + weights["token_in_bias"]).clip(0)
    tokens = product(tokens, weights["token_out"]) + weights["token_out_bias"]
    operators = len(tokens) // (n * values)
    embedded = tokens[:, :GUIDE_WIDTH].reshape(operators, n * values, GUIDE_WIDTH).swapaxes(0, 1).reshape(n * values, -1)
    context = product(features.seeds, embedded).reshape(seeds * operators, GUIDE_WIDTH)
    hidden = (product(features.rows, weights["row_in"]) + weights["row_in_bias"] + context).clip(0)
    rows = (product(hidden, weights["row_mix"]) + weights["row_mix_bias"]).clip(0)
    added = tokens[:, GUIDE_WIDTH:].reshape(operators, n, values, NEAR).swapaxes(0, 1).swapaxes(1, 3)
    return rows, added


def guide_scores(weights: Any, features: RowFeatures, parts: tuple[Any, Any], distance: Any) -> Any:
    """Scores [M, S * O] of all rows for targets at these distances [M, n] from the border, below NEAR."""
    rows, added = parts
    wanted = weights["row_score"] + weights["near"][features.kind, distance].sum(1)
    near = added[features.place, distance].reshape(len(distance), features.seeds.shape[1], -1).swapaxes(0, 1)
    operators = near.shape[2]
    near = product(features.seeds, near.reshape(len(near), -1)).reshape(-1, len(distance), operators).swapaxes(0, 1)
    return product(rows, wanted.swapaxes(0, 1)).swapaxes(0, 1) + near.reshape(len(distance), -1)


def border_distance(targets: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Of each index of targets [M, n], as far as the guide sees."""
    return np.minimum(np.abs(targets) - positive, NEAR - 1).astype(np.int64)


def inside_rows(sector: Sector, seeds: np.ndarray, targets: np.ndarray, operators: int) -> np.ndarray:
    """Bool [M, S * O]: which rows have their seed in the sector, for each of the targets [M, n]."""
    return np.repeat(sector.contains(targets[:, None] + seeds[None]), operators, axis=1)


class SectorGuide:
    """Searches a sector among the rows that a guide chooses: scores are sums of looked-up parts, computed once for each level."""

    def __init__(self, weights: dict[str, np.ndarray], finder: RuleFinder):
        self.weights, self.finder = weights, finder
        self.levels: dict[int, tuple[RowFeatures, tuple[Any, Any]]] = {}

    def find(self, target: np.ndarray, level: int) -> Rule | None:
        """A rule out of the best rows of a level for the integral with these indices [n], or None."""
        finder, space = self.finder, self.finder.space(level, target)
        return space and finder.find_in(space, target, level, finder.structure, self.best(space, level, target))

    def best(self, space: SearchSpace, level: int, target: np.ndarray) -> np.ndarray:
        """Numbers of the rows to try first, ascending."""
        sector = self.finder.sector
        if level not in self.levels:
            features = describe_rows(sector, self.finder.structure, space.seeds, level)
            self.levels[level] = features, guide_rows(self.weights, features)
        features, parts = self.levels[level]
        scores = guide_scores(self.weights, features, parts, border_distance(target, sector.positive)[None])[0]
        inside = space.rows_inside(sector, target)
        count = max(int(len(inside) * GUIDED_SHARE), 1)
        best = np.argpartition(-scores[inside], count - 1)[:count] if len(inside) else inside
        return np.sort(inside[best])


def pack_guide(weights: dict[str, np.ndarray], families: dict[str, str]) -> bytes:
    """The guide's part of a weights file."""
    header = {"kind": GUIDE_KIND, "format": GUIDE_FORMAT, "families": families}
    buffer = io.BytesIO()
    np.savez(buffer, header=np.array(json.dumps(header)), **weights)
    return buffer.getvalue()


def unpack_guide(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Weights and families. Raises PolicyRefused; nothing in a foreign file is executed."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            weights = {name: file[name] for name in file.files}
        header = json.loads(str(weights.pop("header")))
        kind, version, families = header["kind"], header["format"], dict(header["families"])
        shapes = {name: array.shape for name, array in weights.items()}
        finite = all(array.dtype == np.float32 and bool(np.isfinite(array).all()) for array in weights.values())
    except (*UNREADABLE, OSError, zipfile.BadZipFile) as error:
        raise PolicyRefused(f"has a damaged guide ({type(error).__name__}); train it anew") from None
    if (kind, version) != (GUIDE_KIND, GUIDE_FORMAT):
        raise PolicyRefused(f"has a guide of format {version!r}, this version reads {GUIDE_FORMAT}; train it anew")
    if shapes != GUIDE_SHAPES or not finite:
        raise PolicyRefused("has a damaged guide (other shapes, or no finite numbers); train it anew")
    return weights, families


@lru_cache(maxsize=4)
def load_guide(content: bytes) -> dict[str, np.ndarray]:
    """The weights of a guide, as a task brings them. Raises PolicyRefused."""
    return unpack_guide(content)[0]


def read_guide(name: str, family: Family) -> bytes:
    """What `load_guide` takes, out of a weights file; torch is not needed. Raises PolicyRefused with the path."""
    try:
        with zipfile.ZipFile(name) as archive:
            content = archive.read(GUIDE_MEMBER)
        families = unpack_guide(content)[1]
    except KeyError:
        raise PolicyRefused(f"policy {name}: has no guide; train it anew with --train-policy") from None
    except OSError as error:
        raise PolicyRefused(f"policy {name}: {error.strerror or error}; train one with --train-policy") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise PolicyRefused(f"policy {name}: not readable as weights ({type(error).__name__})") from None
    except PolicyRefused as error:
        raise PolicyRefused(f"policy {name}: {error}") from None
    if families.get(family.name, family.identifier) != family.identifier:
        raise PolicyRefused(f"policy {name}: was trained on another family that is called {family.name}; train it anew")
    return content


# =====================================================================================================================
# Beam search
# =====================================================================================================================


@dataclass(frozen=True)
class Beam:
    """How a beam search goes.

    order: how positions are sorted; reuse: a path found is a rule, tried on other integrals; policy: what `load_policy` takes.
    """

    width: int = 20
    max_steps: int = 10**15
    order: str = "policy"
    reuse: bool = True
    policy: bytes | str = "fixed"


BEAM_ORDERS: dict[str, Callable[[Position], tuple]] = {
    "weight": lambda position: (position.heaviest, len(position.open), -position.score, position.actions),
    "size": lambda position: (len(position.open), position.heaviest, -position.score, position.actions),
    "policy": lambda position: (-position.score, position.heaviest, position.actions),
}


def beam_search(beam: Beam, children: Callable[[list[Position]], list[Position]]) -> tuple[list[Position], int]:
    """Search for identities that express the target through lighter integrals: the finished positions of one length, and the steps made.

    Each step eliminates the heaviest open integral of every position of the beam, by its most probable actions; of positions with the
    same content the most probable one is kept. children: `beam_children` of the positions.
    """
    positions, steps, seen = [Position()], 0, set()
    while positions and steps < beam.max_steps:
        steps += 1
        reached = sorted(children(positions), key=lambda child: (-child.score, child.actions))
        if finished := [child for child in reached if not child.open]:
            return finished, steps
        best: dict[tuple, Position] = {}
        for child in reached:
            content = tuple(sorted(child.open.items()))
            if content not in seen:
                best.setdefault(content, child)
        positions = sorted(best.values(), key=BEAM_ORDERS[beam.order])[: beam.width]
        seen.update(tuple(sorted(position.open.items())) for position in positions)
    return [], steps


def search_path(
    finder: RuleFinder, target: np.ndarray, equations: Equations, beam: Beam, helpers: Executor | None = None
) -> tuple[Rule | None, int]:
    """The rule that a beam search for one integral [n] finds, and the steps made. helpers: processes that share the positions of a step."""
    ground = SearchGround(finder.sector, equations, target)
    context = pickle.dumps((ground, beam.policy)) if helpers is not None else b""

    def children(positions: Sequence[Position]) -> list[Position]:
        if helpers is None:
            return beam_children(ground, load_policy(beam.policy), positions)
        parts = (positions[number :: helpers.processes] for number in range(helpers.processes))
        futures = [helpers.submit(helped_children, context, part) for part in parts if part]
        return [child for future in futures for child in future.result()]

    finished, steps = beam_search(beam, children)
    rules = (finder.find_among(target, position.actions, equations) for position in finished[:CANDIDATES])
    found = [rule for rule in rules if rule is not None]
    return min(found, key=lambda rule: (finder.heaviest_result(rule, target, equations), rule.rows), default=None), steps


def beam_children(ground: SearchGround, policy: Policy, positions: Sequence[Position]) -> list[Position]:
    """What the most probable actions of each position lead to."""
    children = []
    for begin in range(0, len(positions), SCORED_TOGETHER):
        part = positions[begin : begin + SCORED_TOGETHER]
        moves = [ground.moves(position) for position in part]
        features = [describe_moves(ground, position, some) for position, some in zip(part, moves)]
        for position, some, scores in zip(part, moves, policy.scores(features)):
            for place in np.argsort(-scores, kind="stable")[:BEAM_BRANCHES]:
                action = (int(some.operator[place]), tuple((some.seed[place] - ground.target).tolist()))
                if child := ground.after(position, action, float(scores[place])):
                    children.append(child)
    return children


@lru_cache(maxsize=2)
def _unpickled(context: bytes) -> Any:
    """What a helper process keeps from one call to the next: it comes from the process that started it."""
    return pickle.loads(context)


def helped_children(context: bytes, positions: Sequence[Position]) -> list[Position]:
    """`beam_children` in a helper process. context: pickle of (ground, what `load_policy` takes)."""
    ground, policy = _unpickled(context)
    return beam_children(ground, load_policy(policy), positions)


# =====================================================================================================================
# One sector
# =====================================================================================================================


COUNTS = ("integrals", "references", "tries", "replays", "rules", "rows", "searches", "search_steps", "mapped")


@dataclass
class SectorKnowledge:
    """What is known about one sector of a family, at any point: its masters (None: not yet searched), rules, and hopeless searches.

    hopeless: (level, border pattern) of integrals that no rule of that level reduces. searched_rows: rows built in the search for masters
    that this comes from.
    """

    masters: tuple[Index, ...] | None = None
    rules: tuple[Rule, ...] = ()
    hopeless: frozenset[tuple[int, bytes]] = frozenset()
    searched_rows: int = 0

    def update(self, other: SectorKnowledge) -> None:
        self.masters = other.masters if self.masters is None else self.masters
        self.rules = tuple(dict.fromkeys(self.rules + other.rules))
        self.hopeless |= other.hopeless

    def __bool__(self) -> bool:
        return bool(self.masters is not None or self.rules or self.hopeless)


@dataclass(frozen=True, eq=False)
class SectorTask:
    """Everything needed to reduce a linear combination of integrals of one sector; a pure function of it, so any process may do it.

    keys [N], coefficients [N, K] for K targets. stops: integrals of this sector to stop at. steps: one-step results known already.
    canonical: an integral's one-step result shall be a function of the integral alone, whatever rules are known. beam: how to search
    where not by local elimination. mapping: to the representative of the sector, which takes the place of identities.
    certify: also return which identities were used, with their multipliers; then no steps may be given.
    guide: as `load_guide` takes it; None for the fixed order. What depends on the sector has defaults, for a task that others are made of.
    """

    layout: Layout
    bits: int
    nonzero: tuple[int, ...]
    equations: Equations
    generic: Equations
    known: SectorKnowledge = field(default_factory=SectorKnowledge)
    stops: tuple[Index, ...] = ()
    steps: dict[Index, Expression] = field(default_factory=dict)
    keys: np.ndarray | None = None
    coefficients: np.ndarray | None = None
    canonical: bool = False
    beam: Beam | None = None
    mapping: NumericMap | None = None
    certify: bool = False
    guide: bytes | None = None


class Lines:
    """A table whose columns, arrays of the same length, are the fields of a dataclass."""

    @classmethod
    def join(cls, parts: Sequence[Any]) -> Any:
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def lines(self, which: Any) -> Any:
        return type(self)(*(getattr(self, f.name)[which] for f in fields(self)))


@dataclass(frozen=True, eq=False)
class Multipliers(Lines):
    """Combinations of identities, one for each column: the sum over its lines of value * identity(operator, seed).

    operator int16 [M]; seed int16 [M, n]; column int64 [M]; value int64 [M] modulo the prime.
    """

    operator: np.ndarray
    seed: np.ndarray
    column: np.ndarray
    value: np.ndarray

    @staticmethod
    def nothing(n: int) -> Multipliers:
        return Multipliers(np.zeros(0, np.int16), np.zeros((0, n), np.int16), np.zeros(0, np.int64), np.zeros(0, np.int64))

    def merged(self, p: int) -> Multipliers:
        """Sorted by column, operator and seed; lines of the same identity added up, those that cancel left out."""
        order, start = sorted_rows(self.column, self.operator, *self.seed.T)
        value = np.add.reduceat(self.value[order], start) % p if len(start) else self.value
        return replace(self.lines(order[start]), value=value).lines(value != 0)


@dataclass(eq=False)
class SectorResult:
    """What a sector task found: coefficients [K] of masters and of what nothing reduced, and [M, K] of integrals of subsectors."""

    bits: int
    masters: dict[Index, list[int]] = field(default_factory=dict)
    unreduced: dict[Index, list[int]] = field(default_factory=dict)
    below: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    learned: SectorKnowledge = field(default_factory=SectorKnowledge)
    new_steps: dict[Index, Expression] = field(default_factory=dict)
    paths: dict[Index, StepPath] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    process: tuple[int, int] = (0, 0)  # process id, its peak memory in kB
    proof: Multipliers | None = None


@dataclass(frozen=True, eq=False)
class Terms(Lines):
    """One-step results as a table: I[source] = sum of value * I[sector, key] over its lines; source is a key of the sector at work."""

    source: np.ndarray
    sector: np.ndarray
    key: np.ndarray
    value: np.ndarray

    def pack(self) -> tuple:
        """For Terms(*map(unpack_keys, …))."""
        return tuple(pack_keys(getattr(self, f.name)) for f in fields(self))

    @staticmethod
    def nothing(dtype: type) -> Terms:
        return Terms(*(np.zeros(0, kind) for kind in (dtype, np.int64, dtype, np.int64)))


def run_starts(values: np.ndarray) -> np.ndarray:
    """Where runs of equal values begin in a sorted array."""
    return np.flatnonzero(np.concatenate([np.ones(min(len(values), 1), bool), values[1:] != values[:-1]]))


def sorted_rows(*columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order of the rows of a table, given by columns, and where runs of equal rows begin in it."""
    order = np.lexsort(columns[::-1])
    new = np.zeros(len(order), bool)
    new[:1] = True
    for column in columns:
        new[1:] |= np.diff(column[order]) != 0
    return order, np.flatnonzero(new)


def is_member(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Bool [N]: which values stand in the sorted table."""
    if len(table) == 0:
        return np.zeros(len(values), bool)
    return table[np.minimum(np.searchsorted(table, values), len(table) - 1)] == values


def sum_by_key(keys: np.ndarray, values: np.ndarray, p: int, keep_zeros: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys, ascending, and the sums modulo p of their lines of values [N, K]; lines that are all zero are left out, or kept."""
    if len(keys) == 0:
        return keys, values
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    start = run_starts(keys)
    if values.shape[1] == 1:
        sums = np.add.reduceat(values[order, 0], start)[:, None] % p
    else:
        sums = np.add.reduceat(values[order], start, axis=0) % p
    some = sums.any(1) | keep_zeros
    return keys[start][some], sums[some]


def reduce_sector(task: SectorTask) -> SectorResult:
    """Carry the coefficients of a task's integrals to masters and subsectors; the arithmetic is exact modulo the prime."""
    with helper_processes() as helpers:
        return _SectorReduction(task, helpers).run()


def helper_processes() -> AbstractContextManager[Executor | None]:
    """Processes for the processors that a task may use beside its own, None if there are none: most tasks have one processor."""
    return LocalExecutor(task_cpus()) if task_cpus() > 1 else nullcontext()


def find_rule(context: bytes, target: Index, level: int) -> tuple[Rule | None, int]:
    """A search in a helper process, and the rows it built. context: pickle of a RuleFinder that has not searched yet."""
    finder = _unpickled(context)
    before = finder.rows
    return finder.find(np.array(target, np.int64), level, finder.structure), finder.rows - before


class _SectorReduction:
    """The state of one sector at work.

    The heaviest integrals, a block, are closed under one-step reduction inside their range of keys; then their coefficients are carried
    down in order, and what arrives below the range waits for its block. So an integral whose coefficient cancels is mostly never reduced.
    """

    def __init__(self, task: SectorTask, helpers: Executor | None = None):
        self.task, self.helpers = task, helpers
        self.ahead: dict[tuple[int, bytes], tuple[Rule | None, int]] = {}
        self.p = task.equations.prime
        self.sector = Sector(task.layout, task.bits)
        self.finder = RuleFinder(self.sector, task.generic)
        guided = task.guide is not None and not task.canonical and task.beam is None
        self.guide = SectorGuide(load_guide(task.guide), self.finder) if guided else None
        self.nonzero = np.array(sorted(task.nonzero), np.int64)
        self.subsectors: dict[int, Sector] = {}
        self.result = SectorResult(task.bits)
        self.unreduced: dict[int, Index] = {}
        self.counts = dict.fromkeys(COUNTS, 0)
        self.masters = {self._key(stop): stop for stop in task.stops}
        self.known = {self._key(step): step for step in task.steps if task.layout.has_room_for((step, *task.steps[step]))}
        self.stops = np.array(sorted(self.masters), task.layout.dtype)
        self.rules = set(task.known.rules)
        self.new_rules: list[Rule] = []
        self.compiled: dict[int, list[CompiledRule]] = {}
        self.hopeless = set(task.known.hopeless)
        self.canonical: dict[tuple[int, bytes], CompiledRule | None] = {}
        self.below: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
        self.reduced_by: list[tuple[CompiledRule, np.ndarray]] = []  # of the present block, where it shall be certified
        self.proof: list[Multipliers] = []

    def _key(self, indices: Index) -> int:
        return self.sector.encode(np.array([indices]))[0]

    def _rules_of(self, level: int) -> list[CompiledRule]:
        """The rules of a level, short ones first; compiled when a level is first needed."""
        if level not in self.compiled:
            rules = [rule for rule in self.task.known.rules if rule.level == level]
            compiled = (CompiledRule(self.sector, self.task.equations, rule) for rule in rules)
            self.compiled[level] = sorted(compiled, key=lambda c: c.rows)
        return self.compiled[level]

    def _add_rule(self, rule: Rule) -> CompiledRule:
        compiled = CompiledRule(self.sector, self.task.equations, rule)
        insort(self._rules_of(rule.level), compiled, key=lambda c: c.rows)
        self.rules.add(rule)
        self.new_rules.append(rule)
        return compiled

    def run(self) -> SectorResult:
        keys, coefficients = sum_by_key(self.task.keys, self.task.coefficients, self.p)
        while len(keys):
            keys, coefficients = self._set_masters_aside(keys, coefficients)
            cut = max(len(keys) - (BLOCK if self.task.mapping is None else MAPPED_BLOCK), 0)
            if len(keys):
                closed, terms = self._close(keys[cut:])
                keys, coefficients = self._carry(closed, terms, keys, coefficients, cut)
        self.result.below = {bits: sum_by_key(*map(np.concatenate, zip(*parts)), self.p) for bits, parts in self.below.items()}
        self.result.learned = self.learned
        self.result.counts = self.counts
        self.result.process = (os.getpid(), peak_memory_kb())
        if self.task.certify:
            self.result.proof = Multipliers.join([Multipliers.nothing(self.sector.n), *self.proof]).merged(self.p)
        return self.result

    @property
    def learned(self) -> SectorKnowledge:
        return SectorKnowledge(None, tuple(self.new_rules), frozenset(self.hopeless - self.task.known.hopeless))

    def _set_masters_aside(self, keys: np.ndarray, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        stop = is_member(keys, self.stops)
        for key, line in zip(keys[stop], coefficients[stop].tolist()):
            store = self.result.unreduced if key in self.unreduced else self.result.masters
            indices = self.unreduced.get(key) or self.masters[key]
            store[indices] = [(a + b) % self.p for a, b in zip(line, store.get(indices, [0] * len(line)))]
        return keys[~stop], coefficients[~stop]

    def _close(self, keys: np.ndarray) -> tuple[np.ndarray, Terms]:
        """All integrals at or above keys[0] that the reduction of these leads to, ascending, and their one-step results."""
        lowest, closed, wave, parts = keys[0], keys, keys, []
        while len(wave):
            terms = self.reduce_wave(wave)
            parts.append(terms)
            inside = (terms.sector == self.task.bits) & (terms.key >= lowest)
            new = np.unique(terms.key[inside])
            wave = new[~is_member(new, self.stops) & ~is_member(new, closed)]
            closed = merge(closed, wave)
        self.counts["integrals"] += len(closed)
        return closed, Terms.join(parts)

    def _carry(
        self, closed: np.ndarray, terms: Terms, keys: np.ndarray, coefficients: np.ndarray, cut: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Carry coefficients through a closed block; returns what waits below it, and notes what fell into subsectors."""
        nodes = np.union1d(closed, self.stops[self.stops >= closed[0]])
        block = np.zeros((len(nodes), coefficients.shape[1]), np.int64)
        block[np.searchsorted(nodes, keys[cut:])] = coefficients[cut:]
        for bits, part in carry(self.task.bits, nodes, block, terms, self.p).items():
            self.below.setdefault(bits, []).append(part)
        self._note_multipliers(nodes, block)
        reached = is_member(nodes, self.stops) & block.any(1)
        self._set_masters_aside(nodes[reached], block[reached])
        waiting = [(keys[:cut], coefficients[:cut]), *self.below.pop(self.task.bits, ())]
        return sum_by_key(*map(np.concatenate, zip(*waiting)), self.p)

    def _note_multipliers(self, nodes: np.ndarray, block: np.ndarray) -> None:
        """The rows that reduced integrals of a block, times the coefficients [N, K] with which these were carried."""
        p, columns = self.p, block.shape[1]
        for rule, keys in self.reduced_by:
            keys = keys[block[np.searchsorted(nodes, keys)].any(1)]
            size = max(REPLAY_ELEMENTS // max(rule.form.shape[1], rule.rows * columns), 1)
            for begin in range(0, len(keys), size):
                part = keys[begin : begin + size]
                indices = self.sector.decode(part)
                factors = rule.multipliers(np.column_stack([np.ones(len(part)), indices]), p)
                values = block[np.searchsorted(nodes, part), :, None] * factors[:, None, :] % p
                member, column, row = np.nonzero(values)
                seeds = (indices[member] + rule.seeds[row]).astype(np.int16)
                self.proof.append(Multipliers(rule.operators[row], seeds, column, values[member, column, row]))
        self.reduced_by = []

    # one step -----------------------------------------------------------------------------------------------------

    def reduce_wave(self, keys: np.ndarray) -> Terms:
        """One-step results of these integrals: known ones, else level by level the known rules and then a search for new ones.

        So each integral is reduced by a rule of the lowest level that there is, which keeps dots and numerators from growing.
        """
        if self.task.mapping is not None:
            return self._mapped(self.task.mapping, keys)
        wave = _Wave(keys, self.sector.decode(keys))
        known = is_member(keys, np.array(sorted(self.known), keys.dtype))
        wave.waiting &= ~known
        if self.task.beam is None:
            self._reduce_by_elimination(wave)
        else:
            self._reduce_by_beam(self.task.beam, wave)
        terms = Terms.join([self._known_steps(keys[known]), wave.terms(self)])
        self.counts["references"] += len(terms.value)
        self.counts["rows"] = self.finder.rows
        return terms

    def _reduce_by_elimination(self, wave: _Wave) -> None:
        for level in range(len(NEIGHBOURHOODS)):
            if self.task.canonical:
                self._apply_canonical_rules(level, wave)
            else:
                for rule in self._rules_of(level):
                    self._apply(rule, wave.where_waiting(), wave)
                if wave.waiting.any():
                    self._search(level, wave)
            if not wave.waiting.any():
                break
        for position in np.flatnonzero(wave.waiting)[::-1]:
            if wave.waiting[position]:
                self._search_everywhere(position, wave)

    def _reduce_by_beam(self, beam: Beam, wave: _Wave) -> None:
        """Known rules first, if paths are reused; then a search for each integral that waits, heaviest first."""
        for level in range(len(NEIGHBOURHOODS)) if beam.reuse else ():
            for rule in self._rules_of(level):
                self._apply(rule, wave.where_waiting(), wave)
        for position in wave.where_waiting()[::-1]:
            for (times, steps), equations in itertools.product(BEAM_WIDENINGS, (self.task.generic, self.task.equations)):
                if wave.waiting[position]:
                    wider = replace(beam, width=beam.width * times, max_steps=min(beam.max_steps, steps))
                    self._beam_for(position, wider, equations, wave)
            if wave.waiting[position]:
                self._give_up(position, wave)

    def _beam_for(self, position: int, beam: Beam, equations: Equations, wave: _Wave) -> None:
        """Search for one integral at the point of the equations; replay what is found on it and, to reuse it, on all that wait."""
        target = wave.indices[position].astype(np.int64)
        helpers = None if self.task.canonical else self.helpers  # shared work could round otherwise, and so find another path
        rule, steps = search_path(self.finder, target, equations, beam, helpers)
        self.counts["searches"] += 1
        self.counts["search_steps"] += steps
        if rule is None:
            return
        if beam.reuse and rule not in self.rules:
            compiled = self._add_rule(rule)
            self._apply(compiled, wave.where_waiting(), wave)
        else:
            compiled = CompiledRule(self.sector, self.task.equations, rule)
            self._apply(compiled, np.array([position]), wave)
        if not wave.waiting[position]:
            step = self._step(compiled, target)
            self.result.paths[tuple(target.tolist())] = rule.rows, step
            if beam.reuse:
                self.result.new_steps[tuple(target.tolist())] = step

    def _apply(self, rule: CompiledRule, chosen: np.ndarray, wave: _Wave) -> None:
        """Replay a rule on those of the chosen integrals of a wave whose seeds it keeps inside the sector."""
        chosen = chosen if rule.valid else chosen[:0]
        chosen = chosen[((wave.indices[chosen] >= rule.low) & (wave.indices[chosen] <= rule.high)).all(1)]
        size = max(REPLAY_ELEMENTS // rule.form.shape[1], 1)
        for begin in range(0, len(chosen), size):
            part = chosen[begin : begin + size]
            values = rule.replay(wave.targets[part], self.p)
            good = values[:, rule.heavier] != 0
            row, column = np.nonzero(values[:, : rule.heavier])
            if len(row):  # a heavier column may stay only where it has left the sector
                inside = self.sector.contains(wave.indices[part[row]] + rule.offset[column])
                good[row[inside]] = False
            wave.add(rule, part[good], values[good])
            if self.task.certify:
                self.reduced_by.append((rule, wave.keys[part[good]]))
            self.counts["tries"] += len(part)
            self.counts["replays"] += 1

    def _apply_canonical_rules(self, level: int, wave: _Wave) -> None:
        """Reduce what waits by the rules of representatives and no others.

        First by that of an integral far from the borders that this one does not touch, for what is left by that of one equally far from
        all borders; so few searches serve many integrals, and which rule an integral gets depends on nothing but the integral.
        """
        for touching_only in (True, False):
            waiting = wave.where_waiting()
            classes: dict[bytes, list[int]] = {}
            for position, pattern in zip(waiting, border_pattern(wave.indices[waiting], self.sector.positive, level, touching_only)):
                classes.setdefault(pattern, []).append(position)
            for pattern, positions in classes.items():
                if (level, pattern) not in self.canonical:
                    distance = np.frombuffer(pattern, np.int8).astype(np.int64)
                    representative = np.where(self.sector.positive, distance + 1, -distance)
                    rule = self.finder.find(representative, level, self.task.generic)
                    self.canonical[level, pattern] = rule and CompiledRule(self.sector, self.task.equations, rule)
                    self.counts["rules"] += rule is not None
                if rule := self.canonical[level, pattern]:
                    self._apply(rule, np.array(positions), wave)

    def _search(self, level: int, wave: _Wave) -> None:
        """Look for rules of a level for what waits, heaviest first, but only once among integrals equally far from the border."""
        waiting = wave.where_waiting()[::-1]
        queue = deque(zip(waiting, border_pattern(wave.indices[waiting], self.sector.positive, level)))
        while queue:
            if self.helpers is not None:
                self._search_ahead(queue, level, wave)
            position, pattern = queue.popleft()
            if (level, pattern) not in self.hopeless and wave.waiting[position]:
                self._search_for(position, level, self.task.generic, wave)
                if wave.waiting[position]:
                    self.hopeless.add((level, pattern))

    def _search_ahead(self, queue: Iterable[tuple[int, bytes]], level: int, wave: _Wave) -> None:
        """Let the helpers search for several of the next integrals at once; where these are few, at the next levels as well."""
        helpers: dict[bytes, int] = {}
        for position, pattern in queue:
            if wave.waiting[position] and (level, pattern) not in self.hopeless and len(helpers) < self.helpers.processes:
                helpers.setdefault(pattern, position)
        if not helpers or (level, wave.indices[next(iter(helpers.values()))].tobytes()) in self.ahead:
            return
        requests = [(position, later) for later in range(level, len(NEIGHBOURHOODS)) for position in helpers.values()]
        context = pickle.dumps(RuleFinder(self.sector, self.task.generic))
        futures = {}
        for position, later in requests[: self.helpers.processes]:
            indices = wave.indices[position]
            futures[later, indices.tobytes()] = self.helpers.submit(find_rule, context, tuple(indices.tolist()), later)
        self.ahead = {request: future.result() for request, future in futures.items()}

    def _search_for(self, position: int, level: int, equations: Equations, wave: _Wave) -> None:
        """Find a rule of a level that reduces this integral at the point of the equations, and replay it on all that wait."""
        request, target = (level, wave.indices[position].tobytes()), wave.indices[position].astype(np.int64)
        rule = None
        if self.guide is not None and level == GUIDED_LEVEL and equations is self.task.generic:
            rule = self.guide.find(target, level)
        if rule is None and equations is self.task.generic and request in self.ahead:
            rule, rows = self.ahead[request]
            self.finder.rows += rows
        elif rule is None:
            rule = self.finder.find(target, level, equations)
        if rule is not None and self.task.canonical:
            self._apply(CompiledRule(self.sector, self.task.equations, rule), np.array([position]), wave)
        elif rule is not None and rule not in self.rules:
            compiled = self._add_rule(rule)
            self._apply(compiled, wave.where_waiting(), wave)
            if not wave.waiting[position]:  # its one-step result cost a search and is kept
                self.result.new_steps[tuple(target.tolist())] = self._step(compiled, target)
        wave.searched.add((position, level, equations))

    def _search_everywhere(self, position: int, wave: _Wave) -> None:
        """The last resort for one integral, before it is listed as unreduced: all levels, at the generic point and at this one.

        It comes here where a rule fails by accident of the point or prime, or where it is the exception among those as far from the border.
        """
        for equations in (self.task.generic, self.task.equations):
            for level in range(len(NEIGHBOURHOODS)):
                if wave.waiting[position] and (position, level, equations) not in wave.searched:
                    self._search_for(position, level, equations, wave)
        if wave.waiting[position]:
            self._give_up(position, wave)

    def _give_up(self, position: int, wave: _Wave) -> None:
        """From now on this integral is one to stop at."""
        key = wave.keys[position]
        self.unreduced[key] = tuple(wave.indices[position].tolist())
        self.stops = np.sort(np.append(self.stops, key))
        wave.waiting[position] = False

    def _step(self, compiled: CompiledRule, target: np.ndarray) -> Expression:
        """The one-step result of an integral [n] by a rule that reduces it."""
        values = compiled.replay(np.concatenate([[1.0], target])[None], self.p)[0]
        factor = -pow(int(values[compiled.heavier]), -1, self.p)
        step: Expression = {}
        for column in np.flatnonzero(values):
            term = tuple((target + compiled.offset[column]).tolist())
            if column != compiled.heavier and sector_of(term) in self.task.nonzero:
                step[term] = int(values[column]) * factor % self.p
        return step

    def _mapped(self, mapping: NumericMap, keys: np.ndarray) -> Terms:
        """Integrals of a sector that is equivalent to a lighter one."""
        number, terms, values = mapping.terms(self.sector.decode(keys))
        sectors = sectors_of(terms)
        kept = is_member(sectors, self.nonzero)
        terms, sectors = terms[kept], sectors[kept]
        self.counts["mapped"] += len(keys)
        return Terms(keys[number[kept]], sectors, self.encode_all(terms, sectors), values[kept])

    def _known_steps(self, keys: np.ndarray) -> Terms:
        lines = [(key, term, value) for key in keys for term, value in self.task.steps[self.known[key]].items()]
        terms = np.array([term for _, term, _ in lines], np.int64).reshape(-1, self.sector.n)
        source = np.array([key for key, _, _ in lines], keys.dtype)
        sectors = sectors_of(terms)
        return Terms(source, sectors, self.encode_all(terms, sectors), np.array([value for *_, value in lines], np.int64))

    def encode_all(self, indices: np.ndarray, sectors: np.ndarray) -> np.ndarray:
        """Keys of indices [M, n] that lie in the given sectors [M]."""
        keys = np.zeros(len(indices), self.task.layout.dtype)
        for bits in np.unique(sectors).tolist():
            if bits not in self.subsectors:
                self.subsectors[bits] = Sector(self.task.layout, bits)
            there = sectors == bits
            keys[there] = self.subsectors[bits].encode(indices[there])
        return keys


class _Wave:
    """Integrals to be reduced by one step together: which still wait, and what rules say about the others, turned into terms at the end.

    keys [N]; indices [N, n] int16; targets [N, n+1] floats, (1, indices); waiting bool [N]; searched: (position, level,
    equations) of searches that were made.
    """

    def __init__(self, keys: np.ndarray, indices: np.ndarray):
        self.keys, self.indices = keys, indices.astype(np.int16)
        self.targets = np.column_stack([np.ones(len(keys)), indices])
        self.waiting = np.ones(len(keys), bool)
        self.searched: set[tuple[int, int, Equations]] = set()
        self.pivot = np.ones(len(keys), np.int64)
        self.parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.rules: list[CompiledRule] = []
        self.columns = 0

    def where_waiting(self) -> np.ndarray:
        return np.flatnonzero(self.waiting)

    def add(self, rule: CompiledRule, members: np.ndarray, values: np.ndarray) -> None:
        """values [N, C] of the rule at these members [N] of the wave, all of them reduced by it."""
        if not len(members):
            return
        self.waiting[members] = False
        self.pivot[members] = values[:, rule.heavier]
        values[:, rule.heavier] = 0
        row, column = np.nonzero(values)
        self.parts.append((members[row], column + self.columns, values[row, column]))
        self.rules.append(rule)
        self.columns += len(rule.distance)

    def terms(self, work: _SectorReduction) -> Terms:
        bits, p = work.task.bits, work.p
        if not self.parts:
            return Terms.nothing(self.keys.dtype)
        self._check_room(work.sector)
        member, column, value = (np.concatenate(group) for group in zip(*self.parts))
        offset = np.concatenate([rule.offset for rule in self.rules]).astype(np.int16)
        source = self.keys[member]
        key = source + np.concatenate([rule.distance for rule in self.rules])[column]
        sector = np.full(len(key), bits, np.int64)
        may_fall = np.flatnonzero((offset[:, work.sector.positive] < 0).any(1)[column])
        indices = self.indices[member[may_fall]] + offset[column[may_fall]]
        sector[may_fall] = sectors_of(indices)
        fallen = sector[may_fall] != bits
        may_fall, indices = may_fall[fallen], indices[fallen]
        key[may_fall] = work.encode_all(indices, sector[may_fall])
        keep = np.ones(len(key), bool)
        keep[may_fall] = is_member(sector[may_fall], work.nonzero)
        value = value[keep] * (p - invert(self.pivot, p))[member[keep]] % p
        return Terms(source[keep], sector[keep], key[keep], value)

    def _check_room(self, sector: Sector) -> None:
        """Raises ReductionError where a term could have an index, r or s beyond the digits of the layout."""
        r, s = sector.r_and_s(self.indices)
        largest_r = int(r.max()) + max(int(np.maximum(rule.offset, 0).sum(1).max()) for rule in self.rules)
        largest_s = int(s.max()) + max(int(-np.minimum(rule.offset, 0).sum(1).min()) for rule in self.rules)
        if max(largest_r, largest_s) >= sector.layout.radix:
            raise ReductionError(
                f"sector {sector.bits}: integrals with r = {largest_r}, s = {largest_s} outgrow the {sector.layout.radix - 1} that was "
                f"reserved for {sector.n} indices; reduce targets with smaller indices"
            )


def carry(bits: int, nodes: np.ndarray, block: np.ndarray, terms: Terms, p: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Carry coefficients block [N, K], in place, of integrals with these keys [N] of a sector down its one-step results.

    Returns what goes elsewhere, to other sectors or below the lightest of the integrals, as {sector: (keys, coefficients)}.
    """
    source = np.searchsorted(nodes, terms.source)
    inner = (terms.sector == bits) & (terms.key >= nodes[0])
    propagate(block, source[inner], np.searchsorted(nodes, terms.key[inner]), terms.value[inner], p)
    outer = ~inner & block.any(1)[source]
    carried, key, sector = block[source[outer]] * terms.value[outer, None] % p, terms.key[outer], terms.sector[outer]
    return {b: sum_by_key(key[sector == b], carried[sector == b], p) for b in np.unique(sector).tolist()}


def propagate(block: np.ndarray, source: np.ndarray, target: np.ndarray, value: np.ndarray, p: int) -> None:
    """Add to block [N, K], in place, what flows along the edges: block[target] += value * block[source], sources complete first.

    The edges have no cycle (targets are lighter than sources); those whose source waits for nothing go first.
    """
    count = len(block)
    order = np.argsort(source, kind="stable")
    source, target, value = source[order], target[order], value[order]
    first = np.searchsorted(source, np.arange(count + 1))
    waits = np.bincount(target, minlength=count)
    ready = np.flatnonzero(waits == 0)
    while len(ready):
        length = first[ready + 1] - first[ready]
        total = int(length.sum())
        edge = run_numbers(first[ready], length)
        flow = block[source[edge]] * value[edge, None] % p
        by_target = np.argsort(target[edge], kind="stable")
        reached = target[edge][by_target]
        start = run_starts(reached)
        hit = reached[start]
        if total:
            block[hit] = (block[hit] + np.add.reduceat(flow[by_target], start, axis=0)) % p
        waits[hit] -= np.diff(start, append=total)
        ready = hit[waits[hit] == 0]


def peak_memory_kb() -> int:
    """Largest resident memory of this process so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak


# =====================================================================================================================
# One-step tasks
# =====================================================================================================================


@dataclass(frozen=True, eq=False)
class Setting:
    """What all one-step tasks of a run have in common.

    run: Problem.name; task: what they have in common with tasks of whole sectors; stops: masters, and corners where they stay, by sector;
    maps: of sectors that are equivalent to others.
    """

    run: str
    family: Family
    task: SectorTask
    stops: dict[int, tuple[Index, ...]]
    maps: dict[int, NumericMap]


def reduce_steps(setting: Shared, known: Shared, keys: dict[int, Any], allowed: tuple[int, ...] = (), seconds: float = math.inf) -> dict:
    """One-step results of integrals, given by sector and packed keys; also of what they lead to in the allowed sectors, while time is left.

    known: packed knowledge by sector. When time is up, part of the given integrals may be left undone. The result has builtin types only:
    {"sectors": {bits: {"done": keys, "terms": …, "unreduced": indices, "learned": packed knowledge, "steps": …, "paths": …}}, "counts",
    "seconds", "peak_memory_kb"}.
    """
    with helper_processes() as helpers:
        work = _StepWork(setting.get(), known.get(), allowed, helpers)
        return work.run({bits: unpack_keys(packed) for bits, packed in keys.items()}, seconds)


def search_masters(nonzero: tuple[int, ...], generic: Equations, bits: int, guide: bytes | None = None) -> dict[str, Any]:
    """`find_masters` with a result of builtin types."""
    found = find_masters(nonzero, generic, bits, guide)
    return _pack_sector(found, generic.n) | {"searched_rows": found.searched_rows}


class Frontier:
    """The integrals that a closure under one-step reduction has met, by sector, and which of them wait; masters are passed over.

    met, waiting, stops: {sector: sorted keys}.
    """

    def __init__(self, layout: Layout, stops: dict[int, tuple[Index, ...]]):
        self.empty = np.zeros(0, layout.dtype)
        self.stops = {bits: np.sort(Sector(layout, bits).encode(np.array(some))) if some else self.empty for bits, some in stops.items()}
        self.met: dict[int, np.ndarray] = {}
        self.waiting: dict[int, np.ndarray] = {}

    def meet(self, bits: int, keys: np.ndarray) -> None:
        """What is met for the first time waits."""
        self.wait(bits, self.note(bits, keys))

    def note(self, bits: int, keys: np.ndarray) -> np.ndarray:
        """Count integrals as met; returns those that are new, sorted."""
        keys, met = np.unique(keys), self.met.get(bits, self.empty)
        keys = keys[~is_member(keys, met) & ~is_member(keys, self.stops[bits])]
        if len(keys):
            self.met[bits] = merge(met, keys)
        return keys

    def wait(self, bits: int, keys: np.ndarray) -> None:
        if len(keys):
            self.waiting[bits] = merge(self.waiting.get(bits, self.empty), keys)

    def drop(self, bits: int, keys: np.ndarray) -> None:
        """These sorted keys wait no longer."""
        waiting = self.waiting.pop(bits, self.empty)
        self.wait(bits, waiting[~is_member(waiting, keys)])

    def take(self, bits: int, count: int) -> np.ndarray:
        """The heaviest of those that wait in a sector; they wait no longer."""
        keys = self.waiting.pop(bits)
        if len(keys) > count:
            self.waiting[bits] = keys[:-count]
        return keys[-count:]


class _StepWork:
    """One-step reductions in several sectors, for one task."""

    def __init__(self, setting: Setting, known: dict[int, tuple], allowed: tuple[int, ...], helpers: Executor | None):
        self.setting, self.known, self.allowed, self.helpers = setting, known, allowed, helpers
        self.sectors: dict[int, _SectorReduction] = {}
        self.done: dict[int, np.ndarray] = {}
        self.terms: dict[int, list[Terms]] = {}

    def run(self, keys: dict[int, np.ndarray], seconds: float) -> dict[str, Any]:
        started = time.monotonic()
        frontier = Frontier(self.setting.task.layout, {bits: self.setting.stops[bits] for bits in {*keys, *self.allowed}})
        for bits, some in keys.items():
            frontier.meet(bits, some)
        while frontier.waiting and (not self.done or (time.monotonic() < started + seconds and self._integrals < LARGEST_BATCH)):
            bits = max(frontier.waiting, key=sector_order)  # from the top, so that the waves of the lower sectors are few and long
            terms = self._reduce(bits, frontier.take(bits, BLOCK))
            for below in np.unique(terms.sector).tolist():
                if below in self.allowed:
                    frontier.meet(below, terms.key[terms.sector == below])
        counts = {name: sum(work.counts[name] for work in self.sectors.values()) for name in COUNTS}
        return {
            "sectors": {bits: self._result(bits) for bits in self.done},
            "counts": counts | {"integrals": self._integrals},
            "seconds": time.monotonic() - started,
            "peak_memory_kb": peak_memory_kb(),
        }

    @property
    def _integrals(self) -> int:
        return sum(map(len, self.done.values()))

    def _reduce(self, bits: int, wave: np.ndarray) -> Terms:
        work = self._sector(bits)
        terms = work.reduce_wave(wave)
        wave = wave[~is_member(wave, work.stops)]  # what has turned out to be irreducible is not done
        self.done[bits] = merge(self.done.get(bits, wave[:0]), wave)
        self.terms.setdefault(bits, []).append(terms)
        return terms

    def _sector(self, bits: int) -> _SectorReduction:
        if bits not in self.sectors:
            own, (known, steps) = self.setting, self.known.get(bits, (None, {}))
            knowledge = SectorKnowledge() if known is None else _unpack_sector(known, own.family)
            task = replace(own.task, bits=bits, known=knowledge, stops=own.stops[bits], steps=steps, mapping=own.maps.get(bits))
            self.sectors[bits] = _SectorReduction(task, self.helpers)
        return self.sectors[bits]

    def _result(self, bits: int) -> dict[str, Any]:
        work, terms = self.sectors[bits], Terms.join(self.terms[bits])
        return {
            "done": pack_keys(self.done[bits]),
            "terms": terms.pack(),
            "unreduced": sorted(work.unreduced.values()),
            "learned": _pack_sector(work.learned, self.setting.family.n) if work.learned else None,
            "steps": work.result.new_steps,
            "paths": work.result.paths,
        }


def pack_keys(keys: np.ndarray) -> bytes | list[int]:
    """An array of int64, or of Python integers, in builtin types."""
    return keys.tolist() if keys.dtype == object else keys.astype(np.int64).tobytes()


def unpack_keys(packed: bytes | list[int]) -> np.ndarray:
    return np.frombuffer(packed, np.int64) if isinstance(packed, bytes) else np.array(packed, object)


def merge(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sorted union of two sorted arrays without common elements."""
    return np.sort(np.concatenate([a, b]), kind="stable")


def carry_sector(
    bits: int, terms: Terms, keys: np.ndarray, coefficients: np.ndarray, stops: np.ndarray, p: int
) -> tuple[dict[int, np.ndarray], dict[int, tuple[np.ndarray, np.ndarray]]]:
    """Carry coefficients [N, K] of integrals [N] of one sector through complete one-step results of it.

    Returns lines [K] by key of its stops, and what arrives in lower sectors as {sector: (keys, coefficients)}.
    """
    nodes = np.unique(np.concatenate([keys, terms.source, terms.key[terms.sector == bits]]))
    block = np.zeros((len(nodes), coefficients.shape[1]), np.int64)
    keys, coefficients = sum_by_key(keys, coefficients, p)
    block[np.searchsorted(nodes, keys)] = coefficients
    below = carry(bits, nodes, block, terms, p)
    reached = np.flatnonzero(is_member(nodes, stops) & block.any(1))
    return {nodes[position]: block[position] for position in reached}, below


# =====================================================================================================================
# Masters
# =====================================================================================================================


def find_masters(nonzero: tuple[int, ...], generic: Equations, bits: int, guide: bytes | None = None) -> SectorKnowledge:
    """The masters of one sector, and the rules found on the way. Raises ReductionError where there is no end of them.

    All integrals near the corner are reduced at the generic point without masters; what nothing reduces is a master. The region grows
    until no master touches its border.
    """
    dots, s = 1, 1
    learned, masters, rows = SectorKnowledge(), (), 0
    while dots + s <= MASTER_REGION:
        region = integrals_near_corner(bits, generic.n, dots, s)
        layout = layout_for(region, generic.n)
        keys = Sector(layout, bits).encode(np.array(region))
        coefficients = np.random.default_rng(bits).integers(1, generic.prime, (len(keys), 1))  # so that nothing cancels by structure
        task = SectorTask(layout, bits, nonzero, generic, generic, learned, masters, {}, keys, coefficients, guide=guide)
        result = reduce_sector(task)
        learned.update(result.learned)
        rows += result.counts["rows"]
        masters = tuple(sorted({*masters, *result.unreduced}, key=weight))
        many_dots = any(r_and_s(master)[0] - bits.bit_count() >= dots for master in masters)
        high_s = any(r_and_s(master)[1] >= s for master in masters)
        if not many_dots and not high_s:
            return replace(learned, masters=masters, searched_rows=rows)
        dots, s = dots + many_dots, s + high_s
    raise ReductionError(f"sector {bits}: {len(masters)} integrals with dots + s < {dots + s} are not reducible, and there seem to be more")


class MasterRelation(Column):
    """A map of a sector, applied to one of its masters: image - master, which is zero and can be solved for the master `solved`."""

    @property
    def solved(self) -> Index:
        return self.name[0]

    @staticmethod
    def by(found: SectorMap, master: Index, solved: Index, functions: Any) -> Column:
        image = exact_image(found, master, functions)
        return MasterRelation.of((solved,), image | {master: image.get(master, functions.zero) - functions.one})


def find_relations(
    own: Sequence[SectorMap], point: Point, generic: Equations, bits: int, known: SectorKnowledge
) -> tuple[list[tuple[SectorMap, Index, Index]], SectorKnowledge]:
    """Relations between the masters of one sector by its maps into itself, and the rules found on the way.

    Each is (map, master that it is applied to, master that it can be solved for). A map takes identities to identities, so it acts on the
    space that the masters span, and its images of the masters give all its relations. What they say about subsectors follows from the maps
    of these: the group of maps is finite, so that taking coinvariants is exact. Hence it suffices to work without subsectors here, at the
    generic point.
    """
    masters = known.masters or ()
    images = [(master, shift, NumericMap(shift, point, generic.n)(master)) for shift in own for master in masters]
    if not images:
        return [], SectorKnowledge()
    here = sorted({term for *_, image in images for term in image if sector_of(term) == bits} | set(masters), key=weight)
    number = {term: i for i, term in enumerate(here)}
    coefficients = np.zeros((len(here), len(images)), np.int64)
    for column, (master, _, image) in enumerate(images):
        for term, value in (image | {master: image.get(master, 0) - 1}).items():
            if term in number:
                coefficients[number[term], column] = value % generic.prime
    layout = layout_for(here, generic.n)
    keys = Sector(layout, bits).encode(np.array(here))
    result = reduce_sector(SectorTask(layout, bits, (bits,), generic, generic, known, masters, {}, keys, coefficients))
    relations = []
    solved: Solved = {}
    for column, (master, shift, _) in enumerate(images):
        if any(line[column] for line in result.unreduced.values()):
            continue  # a relation to what is no master says nothing
        row = {integral: line[column] for integral, line in result.masters.items() if line[column]}
        if row := substitute(row, solved, generic.prime):
            pivot = max(row, key=weight)
            solve_for(pivot, row, solved, generic.prime)
            relations.append((shift, master, pivot))
    return relations, result.learned


def solve_labelled(rows: Iterable[Expression], p: int, dependent: Callable[[int, dict[Any, int]], None] | None = None) -> Solved:
    """Each row solved for its heaviest integral; k stands for what row k is, so that it is known which were used.

    dependent: is told k and what is left of row k where no integral is left in it.
    """
    solved: Solved = {}
    for k, expression in enumerate(rows):
        row = substitute(expression | {k: p - 1}, solved, p)
        pivot = max((key for key in row if isinstance(key, tuple)), key=weight, default=None)
        if pivot is not None:
            solve_for(pivot, row, solved, p)
        elif dependent is not None:
            dependent(k, row)
    return solved


def use_relations(rows: dict[Any, Expression], relations: Sequence[MasterRelation], p: int) -> dict[Any, Expression]:
    """Rows through the masters that relations leave; those of the relations, under their names, are left out. Raises SingularPoint."""
    solved: Solved = {}
    for relation in relations:
        row = substitute(rows[relation.name], solved, p)
        if max(row, key=weight, default=None) != relation.solved:
            raise SingularPoint(
                f"a symmetry does not give {show(relation.solved)} through lighter masters at this point modulo {p}; "
                "take another --prime or point"
            )
        solve_for(relation.solved, row, solved, p)
    names = {relation.name for relation in relations}
    return {name: heaviest_first(substitute(row, solved, p)) for name, row in rows.items() if name not in names}


def heaviest_first(row: Expression) -> Expression:
    return {integral: row[integral] for integral in sorted(row, key=weight, reverse=True)}


def weight(indices: Sequence[int]) -> tuple:
    """The total order of all integrals of a family: (t, sector, r, s, |a_n|, …, |a_1|)."""
    return (*sector_order(sector_of(indices)), *r_and_s(indices), *(abs(a) for a in reversed(indices)))


def change_basis(reductions: dict[Any, Expression], preferred: Sequence[Index], p: int) -> dict[Any, Expression]:
    """Rewrite reductions to standard masters in terms of preferred integrals.

    `reductions` holds the preferred integrals too. The standard masters that the preferred ones do not replace stay. Raises InputError
    where the preferred integrals are linearly dependent modulo p.
    """

    def dependent(number: int, row: dict[Any, int]) -> None:
        raise InputError(_dependency(preferred, number, row, p))

    solved = solve_labelled((reductions[integral] for integral in preferred), p, dependent)

    def rewritten(expression: Expression) -> Expression:
        row = substitute(expression, solved, p)
        return heaviest_first({key if isinstance(key, tuple) else preferred[key]: value for key, value in row.items()})

    return {target: rewritten(expression) for target, expression in reductions.items()}


def _dependency(preferred: Sequence[Index], number: int, row: dict, p: int) -> str:
    """Why a preferred master cannot be one: row = {i: factor} is a relation between it and the ones before it."""
    factor = -pow(row[number], -1, p)
    parts = [f"{value * factor % p}*{show(preferred[i])}" for i, value in row.items() if i != number]
    if not parts:
        return f"preferred master {show(preferred[number])} depends linearly on any others: it is zero modulo {p}; leave it out"
    shown = " + ".join(parts[:8]) + (f" + {len(parts) - 8} more" if len(parts) > 8 else "")
    return f"preferred master {show(preferred[number])} depends linearly on the ones before it: it is {shown} modulo {p}; leave one out"


# =====================================================================================================================
# Store
# =====================================================================================================================

STORE_FORMAT = {"program": "ibp_reduce", "format": 1}
LOCK_TIMEOUT_S = 60.0


class _StoreDamaged(Exception):
    """What a store's file says of itself when it cannot be used."""


# what SQLite says when the machine, not the file, is the trouble
NOT_THE_FILE = ("locked", "readonly", "unable to open", "disk I/O", "full")


@dataclass
class Knowledge:
    """What a store holds about one family. steps: one-step results at one point, by sector."""

    operators: tuple[Operator, ...] | None = None
    nonzero: tuple[int, ...] | None = None
    sectors: dict[int, SectorKnowledge] = field(default_factory=dict)
    steps: dict[int, dict[Index, Expression]] = field(default_factory=dict)

    def update(self, other: Knowledge) -> None:
        """Take over what the other one knows: nothing is lost, rules that are there already are not repeated."""
        self.operators = self.operators or other.operators
        self.nonzero = self.nonzero or other.nonzero
        for bits, theirs in other.sectors.items():
            self.sectors.setdefault(bits, SectorKnowledge()).update(theirs)
        for bits, steps in other.steps.items():
            self.steps[bits] = self.steps.get(bits, {}) | steps

    def __bool__(self) -> bool:
        return bool(self.operators or self.nonzero or self.sectors or any(self.steps.values()))


class Store:
    """A shelf on disk that programs share: identities, masters and rules of families, one-step results at points.

    The file is an SQLite database with the table of the standard library's dbm.sqlite3, one format on every platform: SQLite is part of
    Python, its files do not depend on the machine, and its rollback journal keeps them whole through a kill (the other dbm backends differ
    between machines or lose their index). Each access holds a file lock, so that it is safe where SQLite's own locks are weak (NFS). Every
    value carries a checksum; a file that is damaged or not ours is renamed, said in one line, and started anew.
    """

    def __init__(self, path: str | Path, read_only: bool = False, write_only: bool = False, say: Callable[[str], None] = lambda line: None):
        self.path, self.read_only, self.write_only, self.say = Path(path), read_only, write_only, say

    def load(self, family: Family, point: Point | None = None) -> Knowledge:
        """What is known of a family, with the one-step results at one point if that is given."""
        if self.write_only or not self.path.exists():
            return Knowledge()
        with self._locked():
            return self._use(lambda shelf: self._load(shelf, family, point)) or Knowledge()

    def merge(self, family: Family, point: Point, new: Knowledge) -> None:
        """Add what was found; what other programs wrote meanwhile stays. Raises ReductionError."""
        if new:
            if self.read_only:
                raise ReductionError(
                    f"store {self.path}: opened to be read only, so nothing can be added; give one to write to as the last"
                )
            try:
                self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise ReductionError(f"store {self.path}: {error.strerror}; give another --store") from None
            with self._locked():
                self._use(lambda shelf: self._merge(shelf, family, point, new))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock beside the file; a soft lock where the file system has no native ones."""
        if self.read_only:
            yield
            return
        import filelock

        lock: Any = filelock.FileLock(f"{self.path}.lock", timeout=LOCK_TIMEOUT_S)
        try:
            try:
                lock.acquire()
            except (filelock.Timeout, PermissionError):
                raise
            except (NotImplementedError, OSError):
                lock = filelock.SoftFileLock(f"{self.path}.softlock", timeout=LOCK_TIMEOUT_S)
                lock.acquire()
        except filelock.Timeout:
            raise ReductionError(
                f"store {self.path}: locked by another program for {LOCK_TIMEOUT_S:.0f} s; try again, or give another --store"
            ) from None
        except OSError as error:
            raise ReductionError(f"store {self.path}: cannot be locked ({error.strerror}); give another --store") from None
        try:
            yield
        finally:
            lock.release()

    def _use(self, action: Callable[[RuleShelf], Any]) -> Any:
        """Run an action on the open shelf in one transaction; a file that is not a sound store is set aside first, once."""
        import sqlite3

        for attempt in (1, 2):
            try:
                with open_shelf(self.path, self.read_only) as shelf:
                    return action(shelf)
            except (_StoreDamaged, sqlite3.Error) as error:
                if self.read_only:
                    self.say(f"{self.path}: not a sound rule store ({error}); going on without it")
                    return None
                if attempt == 2 or any(text in str(error) for text in NOT_THE_FILE):
                    raise ReductionError(f"store {self.path}: {error}; give another --store") from None
                self.say(f"store {self.path}: {error}; set aside as {set_aside(self.path)} and started anew")

    def _load(self, shelf: RuleShelf, family: Family, point: Point | None) -> Knowledge:
        """Raises _StoreDamaged."""
        name = family.identifier
        try:
            key = f"{name}/identities"
            knowledge = Knowledge(*_get(shelf, key, _check_identities, family)) if key in shelf else Knowledge()
            for key, bits in shelf.numbered(f"{name}/sector/"):
                knowledge.sectors[bits] = _get(shelf, key, _unpack_sector, family)
            for key, bits in shelf.numbered(f"{name}/steps/{_point_name(point)}/") if point else ():
                knowledge.steps[bits] = _get(shelf, key, _check_steps, family)
        except UNREADABLE as error:
            raise _StoreDamaged(str(error) or type(error).__name__) from None
        return knowledge

    def _merge(self, shelf: Any, family: Family, point: Point, new: Knowledge) -> None:
        knowledge = self._load(shelf, family, point)
        knowledge.update(new)
        name = family.identifier
        if new.operators or new.nonzero:
            _put(shelf, f"{name}/identities", (knowledge.operators, knowledge.nonzero))
        for bits in new.sectors:
            _put(shelf, f"{name}/sector/{bits}", _pack_sector(knowledge.sectors[bits], family.n))
        for bits in new.steps:
            _put(shelf, f"{name}/steps/{_point_name(point)}/{bits}", knowledge.steps[bits])


def _point_name(point: Point) -> str:
    return hashlib.sha256(repr((point.prime, point.residues())).encode()).hexdigest()[:16]


def set_aside(path: Path) -> str:
    """Rename a damaged file, and SQLite's journal of it if there is one, so that nothing is overwritten; returns its new name."""
    aside = next(name for k in itertools.count(1) if not (name := path.with_name(f"{path.name}.damaged-{k}")).exists())
    for suffix in ("", "-journal"):
        with suppress(FileNotFoundError):
            os.replace(f"{path}{suffix}", f"{aside}{suffix}")
    return aside.name


class _Table:
    """bytes -> bytes in the table Dict of an SQLite file, as much as a shelf needs; the layout of the standard library's dbm.sqlite3."""

    def __init__(self, sql: Any):
        self.sql = sql

    def __getitem__(self, key: bytes) -> bytes:
        row = self.sql.execute("SELECT value FROM Dict WHERE key = CAST(? AS BLOB)", (key,)).fetchone()
        if row is None:
            raise KeyError(key)
        return row[0]

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self.sql.execute("REPLACE INTO Dict (key, value) VALUES (CAST(? AS BLOB), CAST(? AS BLOB))", (key, value))

    def keys(self) -> list[bytes]:
        return [key for (key,) in self.sql.execute("SELECT key FROM Dict ORDER BY key")]

    def __contains__(self, key: bytes) -> bool:
        return key in self.keys()


class RuleShelf(shelve.Shelf):
    """A shelf that reads builtin types only."""

    def __getitem__(self, key: str) -> Any:
        return load_builtins(self.dict[key.encode()])

    def numbered(self, prefix: str) -> list[tuple[str, int]]:
        """Keys that begin so, with the number that follows. Raises ValueError."""
        return [(key, int(key.removeprefix(prefix))) for key in self if key.startswith(prefix)]


@contextmanager
def open_shelf(path: Path, read_only: bool) -> Iterator[RuleShelf]:
    """One transaction on a store's file, which an exception undoes. Raises _StoreDamaged, sqlite3.Error."""
    import sqlite3

    mode = "ro&immutable=1" if read_only else "rwc"
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=LOCK_TIMEOUT_S, isolation_level=None)
    with closing(connection) as sql:  # which rolls back what was not committed
        if {name for (name,) in sql.execute("SELECT name FROM sqlite_master WHERE type = 'table'")} - {"Dict"}:
            raise _StoreDamaged("not a store of this program")
        if not read_only:
            sql.execute("BEGIN IMMEDIATE")
            sql.execute("CREATE TABLE IF NOT EXISTS Dict (key BLOB UNIQUE NOT NULL, value BLOB NOT NULL)")
        shelf = RuleShelf(_Table(sql), protocol=4)
        try:
            if not read_only and not shelf.dict.keys():
                shelf["format"] = STORE_FORMAT
            if shelf.get("format") != STORE_FORMAT:
                raise _StoreDamaged("not a store of this program")
        except UNREADABLE as error:
            raise _StoreDamaged(str(error) or type(error).__name__) from None
        yield shelf
        if not read_only:
            sql.execute("COMMIT")


def _digest(key: str, data: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + data).digest()[:16]


def _put(shelf: RuleShelf, key: str, value: Any) -> None:
    data = zlib.compress(pickle.dumps(value, protocol=4))
    shelf[key] = (_digest(key, data), data)


def _get(shelf: RuleShelf, key: str, check: Callable[[Any, Family], Any], family: Family) -> Any:
    """A checked value of the shelf. Raises KeyError where there is none, and one of UNREADABLE where it is not what was written."""
    digest, data = shelf[key]
    if _digest(key, data) != digest:
        raise ValueError(f"entry {key} has a wrong checksum")
    return check(load_builtins(zlib.decompress(data)), family)


def _check_identities(value: Any, family: Family) -> tuple:
    operators, nonzero = value
    shifts = (shift for operator in operators or () for shift, _ in operator)
    if operators is not None and (len(operators) != family.operators or any(len(shift) != family.n for shift in shifts)):
        raise ValueError("identities of another family")
    if nonzero is not None and any(not 0 < bits < 1 << family.lines for bits in nonzero):
        raise ValueError("sectors of another family")
    return operators, nonzero


def _check_steps(value: Any, family: Family) -> dict[Index, Expression]:
    if any(len(term) != family.n for target, step in value.items() for term in (target, *step)):
        raise ValueError("steps of another family")
    return value


def _pack_sector(knowledge: SectorKnowledge, n: int) -> dict[str, Any]:
    """Rules as one table of int8: operator, seed - target, pivot column - target (zeros in the last row of a rule)."""
    rows = [(operator, *seed, *pivot) for rule in knowledge.rules for (operator, seed), pivot in zip(rule.rows, (*rule.pivots, (0,) * n))]
    return {
        "masters": knowledge.masters,
        "rules": tuple((len(rule.rows), rule.level) for rule in knowledge.rules),
        "rows": np.array(rows, np.int8).tobytes(),
        "hopeless": tuple(sorted(knowledge.hopeless)),
    }


def _unpack_sector(value: dict[str, Any], family: Family) -> SectorKnowledge:
    n = family.n
    table = np.frombuffer(value["rows"], np.int8).reshape(-1, 2 * n + 1).tolist()
    if len(table) != sum(length for length, _ in value["rules"]) or any(length < 1 for length, _ in value["rules"]):
        raise ValueError("rules of another shape")
    if any(not 0 <= row[0] < family.operators for row in table):
        raise ValueError("rules of another family")
    if any(len(master) != n or not all(isinstance(a, int) for a in master) for master in value["masters"] or ()):
        raise ValueError("masters of another family")
    rules, begin = [], 0
    for length, level in value["rules"]:
        part = table[begin : begin + length]
        begin += length
        rows, pivots = ((row[0], tuple(row[1 : n + 1])) for row in part), (tuple(row[n + 1 :]) for row in part[:-1])
        rules.append(Rule(tuple(rows), tuple(pivots), level))
    hopeless = frozenset((level, bytes(pattern)) for level, pattern in value["hopeless"])
    return SectorKnowledge(value["masters"], tuple(rules), hopeless, int(value.get("searched_rows", 0)))


class Journal:
    """What a run has finished, in one file that only grows: a header that names the run, then checksummed records of builtin types.

    A record that is not whole (a kill, a full disk) ends the journal: it is cut off there, and what followed is computed again. One writer;
    the run holds the claim on the directory.
    """

    HEAD = struct.Struct("<I16s")

    def __init__(self, path: Path, run: str, say: Callable[[str], None] = lambda line: None):
        """Opens a run's journal, or begins it. Raises InputError if the file belongs to another run, OSError."""
        self.path, self.say = path, say
        self.file = open(path, "a+b", buffering=0)  # noqa: SIM115  (closed by close)
        self.end = 0
        header = read_record(self.file, 0)
        self.is_new = header is None
        if header is None:
            if os.path.getsize(path):
                self.file.close()  # damaged at its beginning, or none of ours
                self.say(f"{path}: not readable from its beginning; set aside as {set_aside(path)} and started anew")
                self.file = open(path, "a+b", buffering=0)  # noqa: SIM115
            self.append({"program": "ibp_reduce", "run": run})
            self.sync()
        elif (theirs := header[0].get("run") if isinstance(header[0], dict) else "another program") != run:
            self.file.close()
            raise InputError(
                f"{path.parent} holds the unfinished run of {theirs}; go on with that one, drop it by --fresh, or take another --work-dir"
            )
        else:
            self.end = header[1]

    def records(self) -> Iterator[tuple[int, Any]]:
        """(position, value) of all whole records after the header; what follows them is cut off. To be used up before append()."""
        while (found := read_record(self.file, self.end)) is not None:
            position, self.end = self.end, found[1]
            yield position, found[0]
        lost = os.path.getsize(self.path) - self.end
        if lost:
            self.say(f"{self.path}: {lost} bytes at its end are not a whole record and are dropped")
            self.file.truncate(self.end)

    def read(self, position: int) -> Any:
        """Raises ReductionError where the record is not what was written."""
        found = read_record(self.file, position)
        if found is None:
            raise ReductionError(f"{self.path}: the record at byte {position} has changed; run again, and it is cut off and computed anew")
        return found[0]

    def append(self, value: Any) -> int:
        """Position of the new record, which is safe after sync(). Raises ReductionError."""
        data = zlib.compress(pickle.dumps(value, protocol=4), 1)
        position = self.end
        rest = memoryview(self.HEAD.pack(len(data), hashlib.sha256(data).digest()[:16]) + data)
        try:
            while rest:
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            with suppress(OSError):
                self.file.truncate(self.end)  # else what was written of it would spoil the next record
            raise self._trouble(error) from None
        self.end += self.HEAD.size + len(data)
        return position

    def sync(self) -> None:
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            raise self._trouble(error) from None

    def close(self) -> None:
        self.file.close()

    def _trouble(self, error: OSError) -> ReductionError:
        return ReductionError(f"{self.path}: {error.strerror}; make room, then go on with the same command")


def read_record(file: Any, position: int) -> tuple[Any, int] | None:
    """A record of a journal and where it ends; None if there is none, or not a whole one. Raises ReductionError."""
    file.seek(position)
    head = file.read(Journal.HEAD.size)
    if len(head) < Journal.HEAD.size:
        return None
    length, digest = Journal.HEAD.unpack(head)
    if length > os.fstat(file.fileno()).st_size - file.tell():
        return None
    data = file.read(length)
    if len(data) < length or hashlib.sha256(data).digest()[:16] != digest:
        return None
    try:
        return load_builtins(zlib.decompress(data)), position + Journal.HEAD.size + length
    except MemoryError:
        raise ReductionError(f"{file.name}: not enough memory to read it; nothing of it is lost") from None
    except UNREADABLE:  # whole, but not written by this program
        return None


# =====================================================================================================================
# Targets
# =====================================================================================================================


@dataclass(frozen=True)
class Combination:
    """A linear combination of integrals of a family, reduced as one; in a result it stands under its name.

    terms: (integral, coefficient) pairs, a coefficient being arithmetic of numbers, d and the invariants; where: for errors.
    """

    name: str
    terms: tuple[tuple[Index, str], ...]
    where: str = field(default="", compare=False)

    def at(self, point: Point) -> Expression:
        """The integrals with their coefficients modulo the prime. Raises InputError for undefined symbols and divisions by zero."""
        p, names = point.prime, {"d": point.d, **dict(point.invariants)}
        total: Expression = {}
        for integral, text in self.terms:
            value = evaluate(text, names, self.where)
            if value.denominator % p == 0:
                raise InputError(f"{self.where}: {text} is a division by zero modulo {p}; take another prime or point")
            total[integral] = (total.get(integral, 0) + value.numerator * pow(value.denominator, -1, p)) % p
        return {integral: value for integral, value in total.items() if value}

    def exact(self, family: Family, numbers: dict[str, Fraction]) -> Column:
        """With functions of what has no number. Raises InputError for undefined symbols and divisions by zero."""
        functions, names = function_field(family.symbols, numbers)
        total: dict[Index, Any] = {}
        for integral, text in self.terms:
            total[integral] = total.get(integral, functions.zero) + evaluate(text, names, self.where)
        return Column.of(self.name, total)


Target = Index | Combination | Column


def target_name(target: Target) -> Any:
    """What a target is called in a result."""
    return target if isinstance(target, tuple) else target.name


def integrals_in(targets: Iterable[Target]) -> tuple[Index, ...]:
    """Every integral of these targets once."""
    parts = ([target] if isinstance(target, tuple) else [integral for integral, _ in target.terms] for target in targets)
    return tuple(dict.fromkeys(integral for part in parts for integral in part))


def show_target(target: Index | str) -> str:
    return target if isinstance(target, str) else show(target)


def show_targets(targets: Iterable[Index | str]) -> str:
    first, *others = targets
    return f"{show_target(first)} and {len(others)} more" if others else show_target(first)


def run_name(label: str, *parts: Any) -> str:
    """What tells a run from others, for people and for a journal."""
    return f"{label} ({hashlib.sha256(repr((__version__, *parts)).encode()).hexdigest()[:8]})"


@dataclass(frozen=True)
class Request:
    """What is wanted of one family. preferred: masters to express it through; cut, symmetries: as in Problem."""

    family: Family
    targets: tuple[Index, ...] = ()
    combinations: tuple[Combination, ...] = ()
    preferred: tuple[Index, ...] = ()
    cut: int = 0
    symmetries: bool = False

    @property
    def integrals(self) -> tuple[Index, ...]:
        return integrals_in((*self.targets, *self.combinations, *self.preferred))


# =====================================================================================================================
# Controller
# =====================================================================================================================

FLUSH_INTERVAL_S = 10.0
LARGE_TARGET = 100_000  # targets with more integrals up to them in their sector keep several processes busy, even with all rules known
ROWS_WORTH_A_GUIDE = 100_000  # built in searches; below it nobody misses the guide
SMALL_TASK = 2000  # below it, a sector with at most so many coefficients is reduced sooner than sent to another process


@dataclass(frozen=True)
class Problem:
    """What to reduce: integrals of a family, and combinations of them, at a point, to which masters.

    map_integrals: with symmetries, whether integrals are mapped to equivalent sectors, where that is light, or masters alone.
    guide: changes the time that a search takes, never a result. why_no_guide: what to say where one would be of use, but is missing.
    """

    family: Family
    point: Point
    targets: tuple[Index, ...]
    paper_masters_only: bool = False
    preferred_masters: tuple[Index, ...] = ()
    beam: Beam | None = None
    guide: bytes | None = field(default=None, repr=False)
    why_no_guide: str = ""
    combinations: tuple[Combination | Column, ...] = ()
    symmetries: bool = False
    cut: int = 0  # bit mask of lines: integrals without them are dropped
    map_integrals: bool = True

    def __post_init__(self) -> None:
        """Raises InputError."""
        if self.symmetries and self.paper_masters_only:
            raise InputError(
                "--paper-masters-only and --symmetries contradict each other: the published masters are those without symmetries"
            )

    def on_cut(self, cut: int) -> Problem:
        """The same on a cut, where preferred masters without its lines are zero."""
        return replace(self, cut=cut, preferred_masters=tuple(m for m in self.preferred_masters if cut & sector_of(m) == cut))

    @property
    def keys(self) -> tuple[Index | str, ...]:
        """What the result has reductions of: integrals, and names of combinations."""
        return (*self.targets, *(combination.name for combination in self.combinations))

    @property
    def integrals(self) -> tuple[Index, ...]:
        """All that take part in the targets."""
        return integrals_in(self.targets + self.combinations)

    @property
    def name(self) -> str:
        parts = self.parts(self.point.prime, self.point.residues(), self.beam)
        return run_name(f"{show_targets(self.keys)} of {self.family.name} modulo {self.point.prime}", *parts)

    def parts(self, *at: Any) -> tuple:
        """What decides the result, at a point."""
        return (
            self.family.identifier,
            *at,
            self.targets,
            self.paper_masters_only,
            self.preferred_masters,
            self.family.paper_masters,
            self.symmetries,
            self.cut,
            *((combination.name, combination.terms) for combination in self.combinations),
        )


@dataclass
class Outcome:
    """reductions: every target, combinations by name, through masters (and through unreduced integrals, where some are left).

    store_trouble: why what was learned could not be stored, if so. paths: of what was searched for by a beam. proof: where the run was
    to be certified, target - reduction as a combination of identities, the number of the target as column; identities: digest of all
    identities at the point. relations: between the masters, that were used.
    """

    reductions: dict[Index | str, Expression]
    masters: list[Index]
    unreduced: list[Index]
    statistics: dict[str, int]
    seconds: float
    peak_memory_kb: int
    store_trouble: str = ""
    paths: dict[Index, StepPath] = field(default_factory=dict)
    proof: Multipliers | None = None
    identities: str = ""
    relations: tuple[MasterRelation, ...] = ()


class Controller:
    """Runs a problem: sectors from the top down, each as a task once all sectors above it are done.

    executor: where tasks run; shelves: stores to learn from, the last of which also receives what is found; certify: keep the proof.
    """

    def __init__(self, problem: Problem, executor: Executor, shelves: Sequence[Store], progress: Progress, certify: bool = False):
        self.problem, self.executor, self.shelves, self.progress = problem, executor, shelves, progress
        self.certify, self.first_target, self.proof = certify, 0, list[Multipliers]()
        self.family, self.point = problem.family, problem.point
        self.here = InlineExecutor()
        self.knowledge, self.new = Knowledge(), Knowledge()
        self.statistics = dict.fromkeys((*COUNTS, "sectors", "tasks"), 0)
        self.paths: dict[Index, StepPath] = {}
        self.memory: dict[int, int] = {}
        self.geometry: Geometry | None = None
        self.symmetries = Symmetries({}, ())
        self.numeric_maps: dict[int, NumericMap] = {}
        self.reachable: dict[int, frozenset[int]] = {}
        self.flushed = time.monotonic()

    def run(self) -> Outcome:
        """Raises ReductionError where the problem cannot be set up; what was learned is stored unless the input is refused."""
        started = time.perf_counter()
        try:
            self._prepare()
            self.wanted = (*dict.fromkeys(self.problem.targets + self.problem.preferred_masters), *self.problem.combinations)
            self.masters = self._find_masters(integrals_in(self.wanted))
            self.relations = self._find_relations(integrals_in(self.wanted))
            together = (*self.wanted, *self.relations)
            self.layout = layout_for(integrals_in(together), self.family.n)
            rows = {target_name(target): row for target, row in self._reduce_all(together).items()}
            reductions = use_relations(rows, self.relations, self.point.prime)
            known = {master for masters in self.masters.values() for master in masters}.difference(r.solved for r in self.relations)
            unreduced = sorted({term for expression in reductions.values() for term in expression} - known, key=weight)
            basis = sorted(known, key=weight)
            if self.statistics["rows"] > ROWS_WORTH_A_GUIDE and self.problem.why_no_guide and self.beam is None and not self.corners_stay:
                self.progress.say(self.problem.why_no_guide)
            if self.problem.preferred_masters and not unreduced:
                reductions = change_basis(reductions, self.problem.preferred_masters, self.point.prime)
                used = {term for expression in reductions.values() for term in expression}
                basis = sorted(used | set(self.problem.preferred_masters), key=weight)
        except InputError:
            raise
        except BaseException:
            try:
                self._flush()
            except ReductionError as error:  # must not take the place of what ended the run
                self.progress.say(str(error))
            raise
        trouble = ""
        try:
            self._flush()
        except ReductionError as error:  # the result is there all the same
            trouble = str(error)
        self.statistics["stragglers"] = self.executor.statistics["stragglers"]
        self.statistics["hits"] = max(self.statistics["references"] - self.statistics["integrals"], 0)
        self.memory[os.getpid()] = peak_memory_kb()
        return Outcome(
            {key: reductions[key] for key in self.problem.keys},
            basis,
            unreduced,
            self.statistics,
            time.perf_counter() - started,
            sum(self.memory.values()),
            trouble,
            self.paths,
            self._whole_proof(reductions) if self.certify else None,
            identities_digest(zip(self.equations.operator, self.equations.shift, self.equations.coefficient)) if self.certify else "",
            tuple(self.relations),
        )

    def _whole_proof(self, reductions: dict[Any, Expression]) -> Multipliers:
        """Of the problem's keys alone: a preferred master in a reduction brings in its own reduction, times minus its coefficient."""
        p, n = self.point.prime, self.family.n
        whole = Multipliers.join([Multipliers.nothing(n), *self.proof]).merged(p)
        first = np.searchsorted(whole.column, np.arange(len(self.wanted) + 1)).tolist()
        lines = {target_name(target): whole.lines(slice(*first[k : k + 2])) for k, target in enumerate(self.wanted)}
        parts = []
        for number, key in enumerate(self.problem.keys):
            preferred = [(m, p - reductions[key][m]) for m in self.problem.preferred_masters if m in reductions[key]]
            for name, factor in ((key, 1), *preferred):
                own = lines[name]
                parts.append(replace(own, column=np.full_like(own.column, number), value=own.value * factor % p))
        return Multipliers.join([Multipliers.nothing(n), *parts]).merged(p)

    @property
    def corners_stay(self) -> bool:
        return bool(self.family.paper_masters) and not self.problem.paper_masters_only and not self.problem.symmetries

    @property
    def beam(self) -> Beam | None:
        """Where corners stay a result must not depend on which paths were found before."""
        beam = self.problem.beam
        return replace(beam, reuse=False) if beam is not None and self.corners_stay else beam

    def _prepare(self) -> None:
        """Identities and non-zero sectors, from a store or derived."""
        for shelf in self.shelves:
            self.knowledge.update(shelf.load(self.family, self.point))
        known = all(self._sector(sector_of(target)).rules for target in self.problem.integrals)
        self.long = not known or max(map(integrals_up_to, self.problem.integrals), default=0) > LARGE_TARGET
        if self.long:
            self.executor.warm_up()  # let processes start while this one prepares
        if self.knowledge.operators is None:
            self.knowledge.operators = self.new.operators = derive_identities(self.family)
        if self.corners_stay:  # corners depend on the masters, so results would depend on the path, and that on what the store holds
            self.knowledge.sectors, self.knowledge.steps = {}, {}
        elif self.beam is not None and not self.beam.reuse:
            self.knowledge.sectors = {bits: SectorKnowledge(known.masters) for bits, known in self.knowledge.sectors.items()}
            self.knowledge.steps = {}
        self.equations = evaluate_identities(self.knowledge.operators, self.point)
        self.generic = evaluate_identities(self.knowledge.operators, generic_point(self.family))
        if self.knowledge.nonzero is None:
            self.knowledge.nonzero = self.new.nonzero = find_nonzero_sectors(self.generic, self.family.lines)
        if cut := self.problem.cut:
            self.knowledge.nonzero = tuple(bits for bits in self.knowledge.nonzero if bits & cut == cut)
            self.knowledge.steps = {}  # with integrals that this cut drops
        if self.problem.symmetries:
            self.geometry = Geometry(self.family, self.problem.cut)
            self.symmetries = find_symmetries(self.geometry, self.knowledge.nonzero)
            for bits, found in self.symmetries.maps.items():
                light = found.size <= LIGHT_MAP * self.family.n or not self._sector(bits).rules
                if light and self.problem.map_integrals:
                    self.numeric_maps[bits] = NumericMap(found, self.point, self.family.n)
            self.reachable = reachable_sectors(self.knowledge.nonzero, self.symmetries.maps)

    def _leads_to(self, above: int, bits: int) -> bool:
        """Whether integrals of a sector may lead to another one."""
        return bits in self.reachable.get(above, ()) if self.reachable else bits != above and bits & above == bits

    def _sectors_below(self, targets: Iterable[Index]) -> list[int]:
        """The sectors that these integrals may lead to, and their own."""
        tops = {sector_of(target) for target in targets}
        return [bits for bits in self.knowledge.nonzero if bits in tops or any(self._leads_to(top, bits) for top in tops)]

    def _find_masters(self, targets: Sequence[Index]) -> dict[int, tuple[Index, ...]]:
        """The integrals to stop at, by sector: published or found; without paper_masters_only also corners of sectors without any."""
        below = self._sectors_below(targets)
        if self.family.paper_masters and not self.problem.symmetries:
            masters = {bits: tuple(m for m in self.family.paper_masters if sector_of(m) == bits) for bits in below}
            if self.corners_stay:
                masters = {bits: found or (corner(bits, self.family.n),) for bits, found in masters.items()}
            return masters
        reduced = [bits for bits in below if bits not in self.numeric_maps]
        self._search_masters([bits for bits in reduced if self._sector(bits).masters is None])
        return {bits: (self._sector(bits).masters if bits in reduced else ()) or () for bits in below}

    def _find_relations(self, targets: Sequence[Index]) -> list[MasterRelation]:
        """What symmetries say about the masters, lightest sectors first."""
        found: list[tuple[SectorMap, Index, Index]] = []
        for bits in self._sectors_below(targets) if self.problem.symmetries else ():
            if bits in self.symmetries.maps:
                found += [(self.symmetries.maps[bits], master, master) for master in self.masters[bits]]
            elif any(master != corner(bits, self.family.n) for master in self.masters[bits]):  # a corner goes to itself
                own = own_maps(self.geometry, bits)
                more, learned = find_relations(own, generic_point(self.family), self.generic, bits, self._sector(bits))
                found += more
                if learned:
                    self._learn(bits, learned)
        return [MasterRelation.by(*relation, self.geometry.functions) for relation in found]

    def _search_masters(self, missing: list[int]) -> None:
        running: dict[Future, int] = {}
        self.progress.start("masters", len(missing))
        while missing or running:
            while missing and len(running) < 2 * self.executor.processes:
                bits = missing.pop()
                task = (self.knowledge.nonzero, self.generic, bits, self.problem.guide)
                running[self.executor.submit(find_masters, *task)] = bits
            for future in self._finished(running):
                self._learn(running.pop(future), future.result())
                self.progress.advance(self.statistics)

    def _finished(self, running: Iterable[Future]) -> set[Future]:
        """Wait until a task is done."""
        while not (done := wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done):
            self.progress.tick()
        return done

    def _sector(self, bits: int) -> SectorKnowledge:
        return self.knowledge.sectors.get(bits) or SectorKnowledge()

    def _learn(self, bits: int, found: SectorKnowledge, steps: dict[Index, Expression] | None = None) -> None:
        if self.beam is not None and not self.beam.reuse:
            found = replace(found, rules=())
        self.statistics["rules"] += len(found.rules)
        self.statistics["rows"] += found.searched_rows
        learned = Knowledge(sectors={bits: found}, steps={bits: steps} if steps and not self.problem.cut else {})
        self.knowledge.update(learned)
        self.new.update(learned)
        if time.monotonic() - self.flushed > FLUSH_INTERVAL_S:
            with suppress(ReductionError):  # a busy store must not cost the run: it is tried again, and the last time counts
                self._flush()

    def _flush(self) -> None:
        """Store what is new; it is kept where that fails. Raises ReductionError."""
        self.flushed = time.monotonic()
        if self.shelves:
            self.shelves[-1].merge(self.family, self.point, self.new)
        self.new = Knowledge()

    def _reduce_all(self, wanted: tuple[Target, ...]) -> dict[Target, Expression]:
        reductions: dict[Target, Expression] = {}
        for begin in range(0, len(wanted), TARGETS_PER_PASS):
            self.first_target = begin
            reductions |= self._reduce(wanted[begin : begin + TARGETS_PER_PASS])
        return reductions

    def _reduce(self, targets: tuple[Target, ...]) -> dict[Target, Expression]:
        """Carry the coefficients of up to TARGETS_PER_PASS targets, one column each, from the top sectors to the masters."""
        pending = self._start(targets)
        expressions: list[Expression] = [{} for _ in targets]
        running: dict[Future, int] = {}
        self.progress.start("sectors", len(self._sectors_below(integrals_in(targets))))
        while pending or running:
            for bits in sorted(pending, key=lambda b: (b.bit_count(), sum(len(keys) for keys, _ in pending[b]), b), reverse=True):
                if not any(self._leads_to(other, bits) for other in (*pending, *running.values())):
                    running[self._submit(bits, pending.pop(bits))] = bits
            for future in self._finished(running):
                del running[future]
                self._take(future.result(), pending, expressions)
        return dict(zip(targets, map(heaviest_first, expressions)))

    def _start(self, targets: tuple[Target, ...]) -> dict[int, list]:
        """Coefficients of the integrals in each target, one in an integral itself, by sector; integrals of zero sectors are zero."""
        pending: dict[int, list] = {}
        for column, target in enumerate(targets):
            for integral, value in ({target: 1} if isinstance(target, tuple) else target.at(self.point)).items():
                bits = sector_of(integral)
                if bits in self.knowledge.nonzero:
                    coefficients = np.zeros((1, len(targets)), np.int64)
                    coefficients[0, column] = value
                    pending.setdefault(bits, []).append((Sector(self.layout, bits).encode(np.array([integral])), coefficients))
        return pending

    def _common_task(self) -> SectorTask:
        """What all tasks of a run have in common."""
        nonzero, equations, generic = self.knowledge.nonzero, self.equations, self.generic
        options = {"canonical": self.corners_stay, "beam": self.beam, "certify": self.certify, "guide": self.problem.guide}
        return SectorTask(self.layout, 0, nonzero, equations, generic, **options)

    def _submit(self, bits: int, parts: list) -> Future:
        keys, coefficients = (np.concatenate(group) for group in zip(*parts))
        task = replace(
            self._common_task(),
            bits=bits,
            known=self._sector(bits),
            stops=self.masters[bits],
            steps={} if self.certify else self.knowledge.steps.get(bits, {}),  # of a known step the rows are not known
            keys=keys,
            coefficients=coefficients,
            mapping=self.numeric_maps.get(bits),
        )
        self.statistics["tasks"] += 1
        small = not self.long and coefficients.size <= SMALL_TASK
        return (self.here if small else self.executor).submit(reduce_sector, task)

    def _take(self, result: SectorResult, pending: dict[int, list], expressions: list[Expression]) -> None:
        for bits, part in result.below.items():
            pending.setdefault(bits, []).append(part)
        for integral, line in (result.masters | result.unreduced).items():
            for expression, value in zip(expressions, line):
                if value:
                    expression[integral] = value
        if result.learned or result.new_steps:
            self._learn(result.bits, result.learned, result.new_steps)
        if result.proof is not None:
            self.proof.append(replace(result.proof, column=result.proof.column + self.first_target))
        for name, count in result.counts.items():
            self.statistics[name] += count
        self.statistics["sectors"] += 1
        self.paths |= result.paths
        process, memory = result.process
        self.memory[process] = max(memory, self.memory.get(process, 0))
        self.progress.advance(self.statistics)


class Progress:
    """A tqdm bar on a terminal; elsewhere nothing, or with lines=True a line now and then."""

    def __init__(self, quiet: bool = False, lines: bool = False):
        self.active = not quiet and sys.stderr.isatty()
        self.lines = not quiet and not self.active and lines
        self.last_line = time.monotonic()
        self.bar: Any = None

    def start(self, what: str, total: int) -> None:
        self.close()
        if self.active and total:
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=what, unit="", leave=False, dynamic_ncols=True)

    def advance(self, counts: dict[str, int]) -> None:
        if self.bar is not None:
            hits = max(counts["references"] - counts["integrals"], 0)
            text = f"{counts['integrals']:,} integrals, {hits:,} hits, {counts['rules']:,} new rules, {counts['searches']:,} searches"
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(1)

    def show(self, what: str, done: int, total: int, text: str) -> None:
        """Where a run is whose total grows."""
        if self.active and (self.bar is None or not self.bar.desc.startswith(what)):
            self.start(what, max(total, 1))
        if self.bar is not None:
            self.bar.total, self.bar.n = total, done
            self.bar.set_postfix_str(text)
        elif self.lines and time.monotonic() > self.last_line + LINE_INTERVAL_S:
            self.last_line = time.monotonic()
            self.say(f"{time.strftime('%H:%M:%S')} {done:,} of {total:,} {what}; {text}")

    def say(self, line: str) -> None:
        """A line beside the bar."""
        if self.bar is not None:
            self.bar.clear()
        say(line)

    def tick(self) -> None:
        """Keep the clock of the bar going while a task takes long."""
        if self.bar is not None:
            self.bar.refresh()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


# =====================================================================================================================
# Asynchronous controller
# =====================================================================================================================

TICK_S = 0.5
STATUS_FORMAT = 1
STATUS_INTERVAL_S = 2.0  # how often status.json is written
LINE_INTERVAL_S = 60.0  # how often a line is printed where there is no terminal for a bar
KNOWLEDGE_INTERVAL_S = 2.0  # new rules reach new tasks that soon
FIRST_JOBS = 8  # until so many have come back, jobs that go on by themselves are short, so that work to share appears early
LARGEST_TASK = 0  # in place of a process id: what the processes of a pool take together says nothing
HOPELESS_FAILURES = 5  # so many failed tasks before any succeeded end the run


@dataclass(frozen=True)
class RunDirectory:
    """The files of a run of one-step tasks inside its work directory."""

    path: Path

    journal = property(lambda self: self.path / "run.journal")
    shared = property(lambda self: self.path / "shared")
    jobs = property(lambda self: self.path / "condor")
    exact = property(lambda self: self.path / "exact.journal")
    status = property(lambda self: self.path / "status.json")
    stop_request = property(lambda self: self.path / "stop.request")

    def drop_jobs(self) -> None:
        """Forget the jobs, which are no longer in the queue, but not what happened to them."""
        if self.jobs.is_dir() and read_run(self.jobs) is not None:  # else it is a directory of somebody else's
            with suppress(FileNotFoundError):
                os.replace(self.jobs / "events.jsonl", self.path / "events.jsonl")
            shutil.rmtree(self.jobs, ignore_errors=True)

    def clear(self) -> None:
        """Forget the run: nothing of it is needed any more."""
        self.drop_jobs()
        for path in (*self.shared.glob("*.shared"), self.journal, self.exact, self.stop_request):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # it holds other files, or was never made
            self.shared.rmdir()


class StopRequested(Exception):
    """Another terminal asked the controller to end, by --stop."""


class BatchPlan:
    """How many integrals make a task: a fixed number, or what takes job_seconds by the costs learned so far."""

    def __init__(self, fixed: int | None, job_seconds: float):
        self.fixed, self.job_seconds = fixed, job_seconds
        self.jobs = 0
        self.cost: dict[int, tuple[int, float]] = {}

    def note(self, bits: int, integrals: int, seconds: float) -> None:
        """A task that mostly worked in this sector came back."""
        count, total = self.cost.get(bits, (0, 0.0))
        self.cost[bits] = (count + integrals, total + seconds)
        self.jobs += 1

    def size(self, bits: int) -> int | None:
        """Integrals in a full batch; None while nothing is known."""
        if self.fixed is not None:
            return self.fixed
        count, seconds = self.cost.get(bits) or tuple(map(sum, zip(*self.cost.values()))) or (0, 0.0)
        return min(max(int(self.job_seconds * count / max(seconds, 1e-3)), 1), LARGEST_BATCH) if count else None

    @property
    def exploring_seconds(self) -> float:
        return self.job_seconds if self.jobs >= FIRST_JOBS else self.job_seconds / 6


@dataclass(frozen=True, eq=False)
class Batch:
    """A submitted task: its integrals by sector, the sectors that no other task goes on into meanwhile, and the knowledge it was given."""

    keys: dict[int, np.ndarray]
    claims: tuple[int, ...]
    known: Shared


class StepController(Controller):
    """The asynchronous scheme: one-step results of integrals are the tasks, in batches, with no barrier between sectors or levels.

    An integral that is met and neither a master nor known nor submitted is submitted at once, heavier ones first. What comes back goes to
    the journal, from which the coefficients are carried down at the end. Where fewer integrals wait than fill a batch (batches of fixed
    size are never filled up), one task per sector goes on by itself with what they lead to, until its time is up.
    """

    def __init__(
        self,
        problem: Problem,
        executor: Any,
        shelves: Sequence[Store],
        progress: Progress,
        directory: RunDirectory,
        journal: Journal,
        plan: BatchPlan,
    ):
        super().__init__(problem, executor, shelves, progress)
        self.directory, self.journal, self.plan = directory, journal, plan
        self.settled: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self.failures: list[str] = []
        self.records: dict[int, list[int]] = {}  # positions in the journal, by sector
        self.done: dict[int, np.ndarray] = {}
        self.claimed: set[int] = set()
        self.frontier: Frontier | None = None
        self.known: Shared | None = None
        self.known_rules = 0
        self.known_since = -math.inf
        self.users: Counter[Shared] = Counter()
        self.monitor = Monitor(directory, progress)
        # an inline executor works within submit(): what is done there must come to the journal before the next task
        self.most_running = 1 if isinstance(executor, InlineExecutor) else math.inf

    # what an earlier controller left ------------------------------------------------------------------------------

    def _prepare(self) -> None:
        super()._prepare()
        for position, record in self.journal.records():
            self._note_record(position, record)
        self.recovered = self.executor.recover()
        if self.done or self.recovered:
            known = sum(map(len, self.done.values()))
            self.progress.say(f"going on: {known:,} integrals are done already, {len(self.recovered)} tasks are taken over")

    def _note_record(self, position: int, record: dict[str, Any]) -> None:
        bits = record["sector"]
        if record["learned"] is not None:
            self._learn(bits, _unpack_sector(record["learned"], self.family), record.get("steps"))
        if "done" in record:
            self.records.setdefault(bits, []).append(position)
            done = unpack_keys(record["done"])
            self.done[bits] = merge(self.done.get(bits, done[:0]), done)
            self.statistics["integrals"] += len(done)
            self.statistics["references"] += len(unpack_keys(record["terms"][0]))
            self.paths |= record["paths"]

    def _taken_over(self, fn: Callable) -> list[tuple[Future, tuple]]:
        """Tasks of an earlier controller that call this function."""
        return [(future, args) for future, its_fn, args, _ in self.recovered if its_fn is fn]

    def _follow(self, future: Future) -> Future:
        future.add_done_callback(self.settled.put)
        return future

    # the loop -----------------------------------------------------------------------------------------------------

    def _work_off(self, phase: str, running: dict[Future, Any], submit: Callable[[], None], take: Callable[[Any, Any], None]) -> None:
        """Submit, wait and take results until nothing is left. Raises ReductionError at the end if tasks failed."""
        submit()
        self.monitor.tell(phase, self, at_once=True)
        while running:
            settled = self._wait()
            for future in settled:
                task = running.pop(future)
                if (error := future.exception()) is not None:
                    self._note_failure(error)
                    if isinstance(task, Batch):
                        self._end(task)
                else:
                    take(task, future.result())
                    self.statistics["tasks"] += 1
            if settled:
                self.journal.sync()
                for future in settled:
                    self.executor.forget(future)
            if self.directory.stop_request.exists():
                raise StopRequested
            if settled:
                submit()
            self.monitor.tell(phase, self)
        if self.failures:
            raise ReductionError(
                f"{len(self.failures)} tasks failed, the first one: {self.failures[0]}; what is done is kept, run again to go on from there"
            )

    def _wait(self) -> list[Future]:
        """What has settled, after a short while if nothing has."""
        settled: list[Future] = []
        with suppress(queue.Empty):
            settled.append(self.settled.get(timeout=TICK_S))
            while True:
                settled.append(self.settled.get_nowait())
        return settled

    def _note_failure(self, error: BaseException) -> None:
        self.failures.append(str(error) or type(error).__name__)
        if len(self.failures) >= HOPELESS_FAILURES and not self.statistics["tasks"]:
            raise ReductionError(f"the first {len(self.failures)} tasks failed, the first one: {self.failures[0]}")

    # masters ------------------------------------------------------------------------------------------------------

    def _search_masters(self, missing: list[int]) -> None:
        running: dict[Future, int] = {self._follow(future): args[2] for future, args in self._taken_over(search_masters)}
        left = [bits for bits in missing if bits not in running.values()]

        def submit() -> None:
            while left and len(running) < self.most_running:
                bits = left.pop()
                task = (self.knowledge.nonzero, self.generic, bits, self.problem.guide)
                running[self._follow(self.executor.submit(search_masters, *task))] = bits

        def take(bits: int, packed: dict[str, Any]) -> None:
            self.journal.append({"sector": bits, "learned": packed})
            self._learn(bits, _unpack_sector(packed, self.family))

        self._work_off("masters", running, submit, take)

    # one-step results ---------------------------------------------------------------------------------------------

    def _reduce_all(self, wanted: tuple[Target, ...]) -> dict[Target, Expression]:
        stops = {bits: self.masters.get(bits, ()) for bits in self._sectors_below(integrals_in(wanted))}
        setting = Setting(self.problem.name, self.family, self._common_task(), stops, self.numeric_maps)
        self.setting = Shared.write(setting, self.directory.shared)
        self.frontier = Frontier(self.layout, stops)
        running = self._restore()
        for target in integrals_in(wanted):
            if sector_of(target) in self.knowledge.nonzero:
                self.frontier.meet(sector_of(target), Sector(self.layout, sector_of(target)).encode(np.array([target])))
        self._work_off("integrals", running, lambda: self._submit_waiting(running), self._take_steps)
        expressions = super()._reduce_all(wanted)
        self.monitor.tell("done", self, at_once=True)
        self.statistics["sectors"] = len(self.done)
        self.statistics |= executor_totals(self.executor) | {"cache_entries": self.statistics["integrals"]}
        return expressions

    def _restore(self) -> dict[Future, Batch]:
        """The frontier as an earlier controller left it: what is done, what tasks are at, and what neither has met yet."""
        running = {}
        for bits, keys in self.done.items():
            self.frontier.note(bits, keys)
        for future, (setting, known, keys, claims, _) in self._taken_over(reduce_steps):
            if not self._is_ours(setting):
                self.executor.forget(future)
                continue
            batch = Batch({bits: unpack_keys(some) for bits, some in keys.items()}, claims, known)
            running[self._follow(future)] = self._begin(batch)
            for bits, some in batch.keys.items():
                self.frontier.note(bits, some)
        for positions in self.records.values():
            for position in positions:
                self._meet_terms(self._terms(self.journal.read(position)))
        return running

    def _is_ours(self, setting: Shared) -> bool:
        """Whether a task left by an earlier controller belongs to this problem; where its file is gone, its job can only fail."""
        try:
            return setting.get().run == self.problem.name
        except ExecutorError:
            return False

    def _begin(self, batch: Batch) -> Batch:
        self.claimed.update(batch.claims)
        self.users[batch.known] += 1
        return batch

    def _end(self, batch: Batch) -> None:
        self.claimed.difference_update(batch.claims)
        self.users[batch.known] -= 1
        self._drop_unused(batch.known)

    def _submit_waiting(self, running: dict[Future, Batch]) -> None:
        for bits in sorted(self.frontier.waiting, key=sector_order, reverse=True):
            while bits in self.frontier.waiting and len(running) < self.most_running and (task := self._next_batch(bits)):
                batch, seconds = task
                packed = {sector: pack_keys(keys) for sector, keys in batch.keys.items()}
                future = self.executor.submit(reduce_steps, self.setting, batch.known, packed, batch.claims, seconds)
                running[self._follow(future)] = self._begin(batch)

    def _next_batch(self, bits: int) -> tuple[Batch, float] | None:
        """The next task of a sector in which integrals wait, and its time; None if they should rather wait for the task that is there."""
        waiting, size = len(self.frontier.waiting[bits]), self.plan.size(bits)
        if self.plan.fixed is not None:
            return Batch({bits: self.frontier.take(bits, size)}, (), self._knowledge()), math.inf
        if size is not None and waiting >= size:
            return Batch({bits: self.frontier.take(bits, size)}, (), self._knowledge()), 2 * self.plan.job_seconds
        if bits in self.claimed:
            return None
        keys = self.frontier.take(bits, waiting)
        taken = self.claimed | self.frontier.waiting.keys()
        claims = (bits, *(b for b in self.frontier.stops if b != bits and b & bits == b and b not in taken))
        return Batch({bits: keys}, claims, self._knowledge()), self.plan.exploring_seconds

    def _knowledge(self) -> Shared:
        """The file with all rules and stored one-step results, renewed now and then."""
        if self.known is None or (
            self.known_rules != self.statistics["rules"] and time.monotonic() > self.known_since + KNOWLEDGE_INTERVAL_S
        ):
            packed = {}
            for bits in self.frontier.stops if not self.corners_stay else ():
                known = self._sector(bits)
                packed[bits] = (_pack_sector(known, self.family.n) if known else None, self.knowledge.steps.get(bits, {}))
            old, self.known = self.known, Shared.write(packed, self.directory.shared)
            self.known_since, self.known_rules = time.monotonic(), self.statistics["rules"]
            self._drop_unused(old)
        return self.known

    def _drop_unused(self, known: Shared | None) -> None:
        if known is not None and known != self.known and not self.users[known]:
            Path(known.path).unlink(missing_ok=True)

    def _take_steps(self, batch: Batch, result: dict[str, Any]) -> None:
        new = [self._take_sector(bits, found) for bits, found in result["sectors"].items()]
        for terms in new:  # only now that all of them are noted as done
            self._meet_terms(terms)
        for bits, keys in batch.keys.items():  # a task whose time is up leaves some
            self.frontier.wait(bits, keys[~is_member(keys, self.done.get(bits, keys[:0])) & ~is_member(keys, self.frontier.stops[bits])])
        self._end(batch)
        for name in ("tries", "replays", "rules", "rows", "searches", "search_steps", "mapped"):
            self.statistics[name] += result["counts"][name]
        self.plan.note(max(batch.keys, key=sector_order), result["counts"]["integrals"], result["seconds"])
        self.memory[LARGEST_TASK] = max(result["peak_memory_kb"], self.memory.get(LARGEST_TASK, 0))

    def _take_sector(self, bits: int, found: dict[str, Any]) -> Terms:
        """Journal what is new in a sector's part of a result: a task that was thought lost, or went on beside another one, repeats some."""
        done, known = unpack_keys(found["done"]), self.done.get(bits, self.frontier.empty)
        new = done[~is_member(done, known) & ~is_member(done, self.frontier.stops[bits])]
        terms = Terms(*map(unpack_keys, found["terms"]))
        terms = terms.lines(is_member(terms.source, new))
        sector = Sector(self.layout, bits)
        record = {
            "sector": bits,
            "done": pack_keys(new),
            "terms": terms.pack(),
            "unreduced": [i for i in found["unreduced"] if not is_member(sector.encode(np.array([i])), known)],
            "learned": found["learned"],
            "steps": found["steps"],
            "paths": found["paths"],
        }
        self._note_record(self.journal.append(record), record)
        self._stop_at(bits, record["unreduced"])
        self.frontier.note(bits, new)
        self.frontier.drop(bits, new)
        return terms

    def _terms(self, record: dict[str, Any]) -> Terms:
        self._stop_at(record["sector"], record["unreduced"])
        return Terms(*map(unpack_keys, record["terms"]))

    def _stop_at(self, bits: int, unreduced: Sequence[Index]) -> None:
        """What nothing reduces ends the reduction like a master, and is reported."""
        if unreduced:
            keys = Sector(self.layout, bits).encode(np.array(unreduced))
            self.frontier.stops[bits] = np.union1d(self.frontier.stops[bits], keys)
            self.frontier.drop(bits, self.frontier.stops[bits])

    def _meet_terms(self, terms: Terms) -> None:
        for bits in np.unique(terms.sector).tolist():
            self.frontier.meet(bits, terms.key[terms.sector == bits])

    # coefficients -------------------------------------------------------------------------------------------------

    def _reduce(self, targets: tuple[Target, ...]) -> dict[Target, Expression]:
        """From the top sector to the lowest, by the one-step results in the journal."""
        pending, p = self._start(targets), self.point.prime
        expressions: list[Expression] = [{} for _ in targets]
        for bits in sorted(self.frontier.stops, key=sector_order, reverse=True):
            if bits not in pending:
                continue
            keys, coefficients = (np.concatenate(group) for group in zip(*pending.pop(bits)))
            terms = Terms.join(
                [Terms.nothing(self.layout.dtype), *(self._terms(self.journal.read(position)) for position in self.records.get(bits, ()))]
            )
            self._check_complete(bits, np.concatenate([keys, terms.key[terms.sector == bits]]))
            lines, below = carry_sector(bits, terms, keys, coefficients, self.frontier.stops[bits], p)
            for b, part in below.items():
                pending.setdefault(b, []).append(part)
            for key, line in lines.items():
                integral = tuple(Sector(self.layout, bits).decode(np.array([key], self.layout.dtype))[0].tolist())
                for expression, value in zip(expressions, line.tolist()):
                    if value:
                        expression[integral] = value
        return dict(zip(targets, map(heaviest_first, expressions)))

    def _check_complete(self, bits: int, keys: np.ndarray) -> None:
        """Raises ReductionError if a coefficient arrives where no one-step result is: a damaged journal must not become a wrong result."""
        known = np.union1d(self.done.get(bits, self.frontier.empty), self.frontier.stops[bits])
        if len(lost := keys[~is_member(keys, known)]):
            raise ReductionError(f"{self.journal.path}: {len(lost)} results of sector {bits} are missing; start anew with --fresh")


class Monitor:
    """What a run of one-step tasks tells: status.json for other terminals, a bar or now and then a line here."""

    def __init__(self, directory: RunDirectory, progress: Progress):
        self.directory, self.progress = directory, progress
        self.started = self.written = time.time()
        self.history: deque[tuple[float, int]] = deque(maxlen=30)

    def tell(self, phase: str, controller: StepController, at_once: bool = False) -> None:
        now = time.time()
        if now < self.written + STATUS_INTERVAL_S and not at_once:
            return
        self.written = now
        done = controller.statistics["integrals"]
        met = sum(map(len, controller.frontier.met.values())) if controller.frontier else 0
        self.history.append((now, done))
        then, before = self.history[0]
        rate = (done - before) / (now - then) if now > then else 0.0
        status = {
            "format": STATUS_FORMAT,
            "time": now,
            "started": self.started,
            "run": controller.problem.name,
            "phase": phase,
            "integrals": {"done": done, "met": met, "waiting": sum(map(len, controller.frontier.waiting.values())) if met else 0},
            "tasks": controller.executor.counts(),
            "statistics": executor_totals(controller.executor),
            "cache": {"entries": done, "hits": max(controller.statistics["references"] - done, 0)},
            "rules_found": controller.statistics["rules"],
            "failures": controller.failures[:10],
            "held": controller.executor.held_reasons(),
            "integrals_per_s": rate,
            "left_s": (met - done) / rate if rate > 0 else None,
        }
        with suppress(OSError):  # a full disk is told by the journal, which counts; a status that is old says so itself
            replace_file(self.directory.status, json.dumps(status, indent=1).encode())
        self.progress.show(phase, done, met, describe_status(status))


def executor_totals(executor: Any) -> dict[str, int]:
    """What happened to the tasks so far: jobs, stragglers, …, calls of HTCondor's tools."""
    return {name: sum(count.values()) if isinstance(count, dict) else count for name, count in executor.statistics.items()}


def describe_status(status: dict[str, Any]) -> str:
    """One line of what a run is at."""
    tasks = status["tasks"]
    parts = [f"{tasks[state]} {state}" for state in ("running", "idle", "queued", "held", "failed") if tasks.get(state)]
    parts.append(f"{status['cache']['hits']:,} hits")
    if status["left_s"] is not None:
        parts.append(f"{format_rate(status['integrals_per_s'])}/s, at least {format_seconds(status['left_s'])} left")
    return ", ".join(parts)


def format_rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.2g}"


def format_seconds(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


# =====================================================================================================================
# Many points
# =====================================================================================================================

LARGEST_PROBE_PRIME = 2**31 - 2**16  # sums of two products of residues slightly above the prime fit an int64
SMALLEST_PROBE_PRIME = 2**30
POINTS_AT_ONCE = 128  # measured best: the innermost axis is long enough for numpy, the arrays of a rule stay in the processor's cache
PROBE_ELEMENTS = 1 << 17  # numbers in one array of a rule: 1 MB
GPU_POINTS, GPU_ELEMENTS, GPU_MEMORY = 4096, 1 << 25, 1 << 33  # the same three where a GPU has to be kept busy; not yet measured on one
CARRIED_ELEMENTS = 1 << 22  # numbers that go along the edges of a sector at once, unless those of one column are more
PROBE_MEMORY = 1 << 28  # bytes of what a sector and all coefficients take at once; fewer points at a time where they are more


class Residues:
    """Arithmetic modulo one prime for each point; points are the last axis of every array.

    Numbers are kept in -p … p (with a hair beyond, from a quotient that is rounded), so that a product, or the difference of two, fits an
    int64: p <= LARGEST_PROBE_PRIME. The quotient by p comes from a multiplication of floats, twice as fast as int64 division.
    """

    device = "cpu"

    def __init__(self, primes: np.ndarray):
        self.primes = primes
        self.prime = self.place(primes)
        self.inverse = self.place(1.0 / primes)

    def place(self, array: np.ndarray) -> Any:
        """An array where the arithmetic is done."""
        return array

    def bring(self, array: Any) -> np.ndarray:
        return array

    def integer(self, values: Any) -> Any:
        return values.astype(np.int64)

    def empty(self, *shape: int) -> Any:
        return np.empty(shape, np.int64)

    def zeros(self, *shape: int) -> Any:
        return np.zeros(shape, np.int64)

    def take(self, array: Any, index: Any) -> Any:
        """Lines of an array."""
        return np.take(array, index, axis=0)

    def sums(self, values: Any, start: Any, axis: int = 0) -> Any:
        """Sums over the runs that begin at start."""
        return np.add.reduceat(values, start, axis=axis)

    def reduce(self, values: Any) -> Any:
        """Residues of integers below 2**63 in size, in place."""
        values -= self.integer(values * self.inverse) * self.prime
        return values

    def product(self, a: Any, b: Any) -> Any:
        return self.reduce(a * b)

    def is_zero(self, values: Any) -> Any:
        return (values == 0) | (abs(values) == self.prime)

    def canonical(self, values: Any) -> Any:
        """In 0 … p - 1."""
        return values % self.prime

    def invert(self, values: Any) -> Any:
        """Inverses of non-zero residues [N, P]: those of products of pairs, of pairs of these, …; only the last ones one by one."""
        if len(values) == 1:
            last = zip(self.bring(values)[0].tolist(), self.primes.tolist())
            return self.place(np.array([[pow(value, -1, prime) for value, prime in last]], np.int64))
        half = len(values) // 2
        even, odd = values[: 2 * half : 2], values[1 : 2 * half : 2]
        products = self.empty(len(values) - half, values.shape[1])
        products[:half] = self.product(even, odd)
        products[half:] = values[2 * half :]
        inverses = self.invert(products)
        result = self.empty(*values.shape)
        result[: 2 * half : 2] = self.product(inverses[:half], odd)
        result[1 : 2 * half : 2] = self.product(inverses[:half], even)
        result[2 * half :] = inverses[half:]
        return result


class TorchResidues(Residues):
    """The same on tensors of a device."""

    def __init__(self, primes: np.ndarray, device: str):
        import torch

        self.torch, self.device = torch, device
        super().__init__(primes)

    def place(self, array: np.ndarray) -> Any:
        return self.torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def bring(self, array: Any) -> np.ndarray:
        return array.cpu().numpy()

    def integer(self, values: Any) -> Any:
        return values.to(self.torch.int64)

    def empty(self, *shape: int) -> Any:
        return self.torch.empty(shape, dtype=self.torch.int64, device=self.device)

    def zeros(self, *shape: int) -> Any:
        return self.torch.zeros(shape, dtype=self.torch.int64, device=self.device)

    def take(self, array: Any, index: Any) -> Any:
        return array.index_select(0, index)

    def sums(self, values: Any, start: Any, axis: int = 0) -> Any:
        ends = self.torch.cat([start[1:], start.new_tensor([values.shape[axis]])])
        run = self.torch.repeat_interleave(self.torch.arange(len(start), device=self.device), ends - start)
        shape = list(values.shape)
        shape[axis] = len(start)
        return self.zeros(*shape).index_add_(axis, run, values)


def make_residues(primes: np.ndarray, device: str) -> Residues:
    return Residues(primes) if device in ("auto", "cpu") else TorchResidues(primes, device.removeprefix("torch:"))


def check_device(device: str) -> None:
    """Raises InputError where this machine has no such device. 'torch:cpu' is for tests of the tensor path."""
    if device not in ("auto", "cpu"):
        try:
            import torch
        except ImportError:
            raise InputError(f"--device {device} needs torch: pip install torch") from None
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("--device cuda: torch finds no GPU here; leave the option out to compute on the processor")


Step = tuple[Any, Any, Any]  # rows and columns that the elimination of a pivot changes, and columns where its row is not zero


def elimination_plan(pattern: np.ndarray) -> tuple[Step, ...]:
    """How `null_vectors` eliminates a matrix that is zero outside a pattern, bool [m, m+1].

    Index arrays where they spare at least half of the work, else slices. (A third of the time on rules of the pentabox, of up to 136 rows.)
    """
    filled, plan = pattern.copy(), []
    for c in range(len(pattern)):
        rows, columns = c + 1 + np.flatnonzero(filled[c + 1 :, c]), c + 1 + np.flatnonzero(filled[c, c + 1 :])
        changed = c + 1 + np.flatnonzero(filled[[c, *rows.tolist()], c + 1 :].any(0))
        filled[np.ix_(rows, columns)] = True
        later, below = pattern.shape[1] - c - 1, len(pattern) - c - 1
        sparse = 2 * len(rows) * len(changed) < below * later
        block = (rows[:, None], changed[None]) if sparse else (slice(c + 1, None), slice(c + 1, None))
        plan.append((*block, columns if 2 * len(columns) < later else slice(c + 1, None)))
    return tuple(plan)


def null_vectors(matrix: Any, plan: Sequence[Step], ring: Residues) -> Any:
    """x [N, m+1, P] with matrix [N, m, m+1, P] @ x = 0 at every point, as `null_vector`; overwrites the matrix."""
    size = matrix.shape[1]
    for c, (rows, columns, _) in enumerate(plan[:-1]):
        if isinstance(rows, slice):
            above, left = matrix[:, c : c + 1, columns], matrix[:, rows, c : c + 1]
        elif len(rows):
            rows, columns = ring.place(rows), ring.place(columns)
            above, left = matrix[:, c, columns[0]][:, None], matrix[:, rows[:, 0], c][:, :, None]
        else:
            continue
        below = matrix[:, rows, columns] * matrix[:, c : c + 1, c : c + 1]
        below -= left * above
        matrix[:, rows, columns] = ring.reduce(below)
    x = ring.empty(len(matrix), size + 1, matrix.shape[3])
    x[:, size] = 1
    for c in range(size - 1, -1, -1):
        columns = plan[c][2] if isinstance(plan[c][2], slice) else ring.place(plan[c][2])
        x[:, c] = ring.reduce(-ring.product(matrix[:, c, columns], x[:, columns]).sum(1))
        x[:, c + 1 :] = ring.product(x[:, c + 1 :], matrix[:, c, c : c + 1])
    return x


@dataclass(frozen=True, eq=False)
class Round:
    """Summands of entries `place` [M]: number `coefficient` [M] of the identities' coefficients, times `factor` [M] or [N, M]."""

    place: np.ndarray
    coefficient: np.ndarray
    factor: np.ndarray


@dataclass(frozen=True, eq=False)
class Replays:
    """What a rule of several rows does in a sector: N integrals by E entries in C columns, without anything that depends on the point.

    rounds: the entries [N, E] as sums, the first round has all of them; row [E], start [C], pivot_entry and pivot_place as in CompiledRule.
    plan: of the elimination. Cells of the array [N, C] of combined rows, as flat numbers: those in `used`, ascending, become lines `line`
    of the sector's values; those in `vanishing` were zero at the first point.
    """

    rounds: tuple[Round, ...]
    row: np.ndarray
    start: np.ndarray
    rows: int
    pivot_entry: np.ndarray
    pivot_place: tuple[np.ndarray, np.ndarray]
    plan: tuple[Step, ...]
    used: np.ndarray
    line: np.ndarray
    vanishing: np.ndarray


@dataclass(frozen=True, eq=False)
class SectorTrace:
    """The integrals of a sector that matter, nodes first … first + count - 1 of the trace, heavier ones in lower levels.

    Lines of the sector's values: inner edges by target, then outer ones (to other sectors and to ends) by target, then the pivots of the
    nodes, then what must vanish (`checked` lines). direct: the lines that come from rules of one row, as sums; replays: the others.
    levels: (begin, end, first inner edge, last one) for each level; an edge carries source * value / -pivot to its target; source
    [edges] are nodes of the trace; inner_starts [levels] and outer_start: where the runs of edges with equal targets begin;
    outer_target: these targets. columns [W]: of the trace, those that reach the sector; the node first + k has cells
    base + W k … base + W (k + 1) - 1; outer_cells [targets, W]: those of the same columns of the outer targets.
    """

    first: int
    count: int
    checked: int
    direct: tuple[Round, ...]
    replays: tuple[Replays, ...]
    levels: tuple[tuple[int, int, int, int], ...]
    source: np.ndarray
    inner_starts: tuple[np.ndarray, ...]
    outer_start: np.ndarray
    outer_target: np.ndarray
    columns: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    base: int = 0
    outer_cells: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))

    @property
    def inner(self) -> int:
        return self.levels[-1][3] if self.levels else 0


@dataclass(frozen=True, eq=False)
class Trace:
    """A whole reduction, ready for any number of points: which rule reduces which integral, and where its terms go.

    A cell is a node in one of the columns that reach its sector. starts: cells of the integrals in the columns, which have `weights`;
    functions: (column, number of the master) of the coefficients that are not zero, ends: their cells; dead: cells that received zero at
    the first point.
    """

    operators: tuple[Operator, ...]
    targets: tuple[Index, ...]
    sectors: tuple[SectorTrace, ...]
    cells: int
    starts: np.ndarray
    ends: np.ndarray
    end_integrals: tuple[Index, ...]
    dead: np.ndarray
    functions: tuple[tuple[int, int], ...]
    weights: Operator = ()

    @property
    def names(self) -> tuple[tuple[Any, Index], ...]:
        """(name of a column, master) of each coefficient."""
        return tuple((self.targets[column], self.end_integrals[end]) for column, end in self.functions)

    @property
    def bytes_per_point(self) -> int:
        return 8 * (self.cells + 4 * max((len(sector.source) for sector in self.sectors), default=0))


class Recorder(InlineExecutor):
    """Reduces sectors here, noting which rule reduces which integrals: {sector: [(rule, keys)]}."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: dict[int, list[tuple[CompiledRule, np.ndarray]]] = {}

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        if fn is not reduce_sector:
            return super().submit(fn, *args, **kwargs)
        work = _RecordedReduction(replace(args[0], steps={}), self.recorded.setdefault(args[0].bits, []))
        future: Future = Future()
        future.set_result(replace(work.run(), new_steps={}))  # a step at a random point is of no use to anybody
        return future


class _RecordedReduction(_SectorReduction):
    def __init__(self, task: SectorTask, recorded: list[tuple[CompiledRule, np.ndarray]]):
        super().__init__(task)
        self.recorded = recorded

    def _apply(self, rule: CompiledRule, chosen: np.ndarray, wave: _Wave) -> None:
        before = wave.waiting[chosen]
        super()._apply(rule, chosen, wave)
        done = chosen[before & ~wave.waiting[chosen]]
        if len(done):
            self.recorded.append((rule, wave.keys[done]))


def record_trace(problem: Problem, shelves: Sequence[Store], progress: Progress) -> tuple[Trace, Outcome]:
    """Reduce a problem at its point, and what further points need of that. Raises ReductionError where something stays unreduced.

    Combinations must be Columns, integrals must not be mapped. The trace has the rows of everything by identities alone: also those of
    preferred masters and of the relations that symmetries give; at each point they are to be put in.
    """
    recorder = Recorder()
    controller = Controller(problem, recorder, shelves, progress)
    controller.here = recorder
    outcome = controller.run()
    if outcome.unreduced:
        raise ReductionError(
            f"{len(outcome.unreduced)} integrals are not reducible at {show_point(problem.point)}, first {show(outcome.unreduced[0])}; "
            "if that is a singular point, take another, or --symbols"
        )
    together, symbols = (*controller.wanted, *controller.relations), len(problem.family.symbols)
    columns = [unit_column(target, symbols) if isinstance(target, tuple) else target for target in together]
    return _TraceBuilder(controller, recorder.recorded).build({column.name: column.terms for column in columns}), outcome


class _TraceBuilder:
    """Turns what was recorded at one point into a Trace."""

    def __init__(self, controller: Controller, recorded: dict[int, list[tuple[CompiledRule, np.ndarray]]]):
        self.operators, self.equations, self.layout = controller.knowledge.operators, controller.equations, controller.layout
        self.point, self.p, self.recorded = controller.point, controller.point.prime, recorded
        self.nonzero = np.array(sorted(controller.knowledge.nonzero), np.int64)
        self.stops = {bits: Sector(self.layout, bits).encode(np.array(some)) for bits, some in controller.masters.items() if some}
        self.sectors = {bits: Sector(self.layout, bits) for bits in controller.knowledge.nonzero}
        # which of 1, a_1, … a_n have a coefficient in each term of the identities
        self.present = [[i for i, *_ in coefficients] for operator in self.operators for _, coefficients in operator]
        self.numbers: dict[tuple[int, int], int] = {}  # (sector, key): node
        self.ends: list[tuple[int, Index]] = []
        self.dead: list[int] = []

    def build(self, columns: dict[Any, Operator]) -> Trace:
        pending: dict[int, list] = {}
        terms = [(column, *term) for column, combination in enumerate(columns.values()) for term in combination]
        terms = [term for term in terms if sector_of(term[1]) in self.sectors]
        weights = tuple(term[1:] for term in terms)
        values = evaluate_identities([weights], self.point).coefficient.sum(1) % self.p if weights else ()
        starts = []
        for (column, target, _), value in zip(terms, values):
            bits = sector_of(target)
            line = np.zeros((1, len(columns)), np.int64)
            line[0, column] = value
            key = self.sectors[bits].encode(np.array([target]))
            pending.setdefault(bits, []).append((key, line))
            starts.append((bits, key[0], column))
        parts, functions = [], []
        while pending:
            bits = max(pending, key=sector_order)
            keys, coefficients = (np.concatenate(group) for group in zip(*pending.pop(bits)))
            part = self._sector(bits, *sum_by_key(keys, coefficients, self.p, keep_zeros=True), pending)
            parts.append(part)
            functions += part.functions
        starts = [(self.numbers[bits, key], column) for bits, key, column in starts]
        sectors, cells = self._lay_out(parts, starts)
        functions.sort()
        ends = [cells(self.ends[end][0])[column] for column, end in functions]
        reached = [cell for number in (*(number for number, _ in self.ends), *self.dead) for cell in cells(number).values()]
        return Trace(
            self.operators,
            tuple(columns),
            sectors,
            self.cells,
            np.array([cells(node)[column] for node, column in starts], np.int64),
            np.array(ends, np.int64),
            tuple(integral for _, integral in self.ends),
            np.setdiff1d(np.array(reached, np.int64), ends),
            tuple(functions),
            weights,
        )

    def _lay_out(
        self, parts: list[_SectorPart], starts: list[tuple[int, int]]
    ) -> tuple[tuple[SectorTrace, ...], Callable[[int], dict[int, int]]]:
        """The sectors, and a map from a node to its cells by column: only columns that lead to a sector have cells there."""
        first = np.array([part.first for part in parts], np.int64)
        reach: list[set[int]] = [set() for _ in parts]

        def part_of(nodes: Any) -> Any:
            return np.searchsorted(first, nodes, side="right") - 1  # of several with the same first node only the last has any

        for node, column in starts:
            reach[part_of(node)].add(column)
        sectors = {}
        for number, part in enumerate(parts):
            if len(part.live):
                sectors[number] = self._finish(part)
                for below in np.unique(part_of(sectors[number].outer_target)).tolist():
                    reach[below] |= reach[number]
        columns = [np.array(sorted(some), np.int64) for some in reach]
        sizes = np.diff(first, append=len(self.numbers)) * [len(some) for some in columns]
        base = np.cumsum(sizes) - sizes
        self.cells = int(sizes.sum())

        def cells(node: int) -> dict[int, int]:
            q = part_of(node)
            begin = int(base[q] + (node - first[q]) * len(columns[q]))
            return {column: begin + k for k, column in enumerate(columns[q].tolist())}

        laid = []
        for number, sector in sectors.items():
            targets = sector.outer_target
            below = part_of(targets)
            outer = np.empty((len(targets), len(columns[number])), np.int64)
            for q in np.unique(below).tolist():
                begin = base[q] + (targets[below == q] - first[q]) * len(columns[q])
                outer[below == q] = begin[:, None] + np.searchsorted(columns[q], columns[number])
            laid.append(replace(sector, columns=columns[number], base=int(base[number]), outer_cells=outer))
        return tuple(laid), cells

    def _sector(self, bits: int, keys: np.ndarray, coefficients: np.ndarray, pending: dict[int, list]) -> _SectorPart:
        """Evaluate a sector at the first point, number its nodes, and pass on what falls into lower ones."""
        sector, stops = self.sectors[bits], self.stops.get(bits, keys[:0])
        results = self._results(bits, sector)
        source, below, key, value = (
            (np.concatenate(group) for group in zip(*(result.edges for result in results))) if results else 4 * (keys[:0],)
        )
        nodes = np.unique(np.concatenate([keys, source, key[below == bits]]))
        block = np.zeros((len(nodes), coefficients.shape[1]), np.int64)
        block[np.searchsorted(nodes, keys)] = coefficients
        own = (below == bits) & ~is_member(source, stops)
        place = np.searchsorted(nodes, source)
        propagate(block, place[own], np.searchsorted(nodes, key[own]), value[own], self.p)
        stop, alive = is_member(nodes, np.sort(stops)), block.any(1)
        arrived = is_member(nodes, keys)
        arrived[np.searchsorted(nodes, key[(below == bits) & alive[place]])] = True
        live = nodes[alive & ~stop]
        if not is_member(live, np.sort(np.concatenate([keys[:0], *(result.keys for result in results)]))).all():
            raise ReductionError(f"sector {bits}: an integral that matters has no rule")
        functions = []
        level = _levels(live, source, key, (below == bits))
        order = np.lexsort((-np.arange(len(live)), level))
        live, level = live[order], level[order]
        first = len(self.numbers)
        self.numbers.update(((bits, node), first + i) for i, node in enumerate(live.tolist()))
        for node in np.flatnonzero(arrived & ~(alive & ~stop)).tolist():
            number = self.numbers[bits, nodes[node]] = len(self.numbers)
            if stop[node]:
                functions += [(column, len(self.ends)) for column in np.flatnonzero(block[node]).tolist()]
                self.ends.append((number, tuple(sector.decode(nodes[node : node + 1])[0].tolist())))
            else:
                self.dead.append(number)
        outer = (below != bits) & alive[place] & ~stop[place]
        carried = block[place[outer]] * value[outer, None] % self.p
        for b in np.unique(below[outer]).tolist():
            there = below[outer] == b
            pending.setdefault(b, []).append((key[outer][there], carried[there]))
        return _SectorPart(bits, first, live, level, results, functions)

    def _results(self, bits: int, sector: Sector) -> list[_RuleResult]:
        """One-step results of everything recorded in a sector, each integral once."""
        results: list[_RuleResult] = []
        seen = np.zeros(0, self.layout.dtype)
        by_rule: dict[CompiledRule, list[np.ndarray]] = {}
        for rule, keys in self.recorded.get(bits, ()):
            by_rule.setdefault(rule, []).append(keys)
        for rule, parts in by_rule.items():
            keys = np.unique(np.concatenate(parts))
            keys = keys[~is_member(keys, seen)]
            if len(keys):
                seen = merge(seen, keys)
                results.append(self._evaluate(bits, sector, rule, keys))
        return results

    def _evaluate(self, bits: int, sector: Sector, rule: CompiledRule, keys: np.ndarray) -> _RuleResult:
        indices = sector.decode(keys)
        targets = np.column_stack([np.ones(len(keys)), indices])
        size = max(REPLAY_ELEMENTS // rule.form.shape[1], 1)
        values = np.concatenate([rule.replay(targets[i : i + size], self.p) for i in range(0, len(keys), size)])
        pivot = values[:, rule.heavier].copy()
        values[:, rule.heavier] = 0
        member, column = np.nonzero(values)
        terms = indices[member] + rule.offset[column]
        below = sectors_of(terms)
        kept = is_member(below, self.nonzero)
        member, column, terms, below = member[kept], column[kept], terms[kept], below[kept]
        key = np.zeros(len(terms), self.layout.dtype)
        for b in np.unique(below).tolist():
            key[below == b] = self.sectors[b].encode(terms[below == b])
        value = values[member, column] * (self.p - invert(pivot, self.p))[member] % self.p
        factors = [self._factors(rule, entry, indices) for entry in range(len(rule.term))]
        vanishing = (values == 0) & ~self._structural_zeros(rule, factors)
        vanishing[:, rule.heavier] = False
        zero_member, zero_column = np.nonzero(vanishing)
        inside = is_member(sectors_of(indices[zero_member] + rule.offset[zero_column]), self.nonzero)
        cell = member * values.shape[1] + column
        return _RuleResult(rule, keys, factors, (keys[member], below, key, value), cell, zero_member[inside], zero_column[inside])

    def _factors(self, rule: CompiledRule, entry: int, indices: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """An entry of a rule as a sum: [(number of a coefficient of the identities, its factors [N] at the targets)]."""
        term, seed, width = int(rule.term[entry]), rule.seed[entry], self.equations.n + 1
        factors = [
            (term * width + i, indices[:, i - 1] + seed[i - 1] if i else np.ones(len(indices), np.int64)) for i in self.present[term]
        ]
        return factors or [(term * width, np.zeros(len(indices), np.int64))]

    def _structural_zeros(self, rule: CompiledRule, factors: list[list[tuple[int, np.ndarray]]]) -> np.ndarray:
        """Bool [N, C]: zero at every point, because the factors a_i of all terms of a column are zero."""
        column = np.repeat(np.arange(len(rule.start)), np.diff([*rule.start, len(rule.term)]))
        zero = np.ones((len(factors[0][0][1]), len(rule.start)), bool)
        for entry, parts in enumerate(factors):
            for _, factor in parts:
                zero[:, column[entry]] &= factor == 0
        return zero

    def _finish(self, part: _SectorPart) -> SectorTrace:
        """Number the lines of a sector's values, once all nodes have numbers."""
        node = {key: i for i, key in enumerate(part.live.tolist())}
        chosen, sources, targets = [], [], []
        for result in part.results:
            source, below, key, _ = result.edges
            kept = np.array([k in node for k in source.tolist()], bool)
            chosen.append(kept)
            sources += [node[k] for k in source[kept].tolist()]
            targets += [self.numbers[b, k] for b, k in zip(below[kept].tolist(), key[kept].tolist())]
        source, target = np.array(sources, np.int64), np.array(targets, np.int64)
        end = part.first + len(part.live)
        outer = (target < part.first) | (target >= end)
        order = np.lexsort((target, outer))
        line = np.empty(len(order), np.int64)
        line[order] = np.arange(len(order))
        source, target, inner = source[order] + part.first, target[order], int((~outer).sum())
        replays, direct, begin, checked = [], [], 0, 0
        for result, kept in zip(part.results, chosen):
            count = int(kept.sum())
            cells = self._cells(result, kept, line[begin : begin + count], len(line), node)
            begin += count
            if cells is not None and result.rule.rows == 1:
                members, used, lines, vanishing = cells
                zeros = len(source) + len(part.live) + checked + np.arange(len(vanishing))
                checked += len(vanishing)
                direct.append(self._direct(result, members, np.concatenate([used, vanishing]), np.concatenate([lines, zeros])))
            elif cells is not None:
                replays.append(self._replays(result, *cells))
        starts = run_starts(target[:inner])
        levels, inner_starts = [], []
        bounds = [*run_starts(part.level).tolist(), len(part.live)]
        for a, b in itertools.pairwise(bounds):
            first, last = np.searchsorted(target[:inner], [part.first + a, part.first + b]).tolist()
            levels.append((part.first + a, part.first + b, first, last))
            inner_starts.append(starts[(starts >= first) & (starts < last)] - first)
        outer_start = run_starts(target[inner:])
        return SectorTrace(
            part.first,
            len(part.live),
            checked,
            _join_rounds(direct),
            tuple(replays),
            tuple(levels),
            source,
            tuple(inner_starts),
            outer_start,
            target[inner:][outer_start],
        )

    def _cells(
        self, result: _RuleResult, kept: np.ndarray, line: np.ndarray, edges: int, node: dict[int, int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
        """Of a rule's integrals those that matter: (members [N]; used cells, ascending, and their lines; vanishing cells)."""
        columns = len(result.rule.start)
        places = [node.get(key, -1) for key in result.keys.tolist()]
        members = np.array([i for i, place in enumerate(places) if place >= 0], np.int64)
        if not len(members):
            return None
        position = np.full(len(places), -1)
        position[members] = np.arange(len(members))
        cell = result.cell[kept]
        pivots = np.arange(len(members)) * columns + result.rule.heavier
        used = np.concatenate([position[cell // columns] * columns + cell % columns, pivots])
        lines = np.concatenate([line, edges + np.array(places)[members]])
        order = np.argsort(used, kind="stable")
        vanishing = position[result.zero_member] >= 0
        zeros = position[result.zero_member[vanishing]] * columns + result.zero_column[vanishing]
        return members, used[order], lines[order], np.sort(zeros)

    def _replays(self, result: _RuleResult, members: np.ndarray, used: np.ndarray, line: np.ndarray, vanishing: np.ndarray) -> Replays:
        rule, rounds = result.rule, []
        for number in itertools.count():
            entries = [entry for entry, parts in enumerate(result.factors) if len(parts) > number]
            if not entries:
                break
            parts = [result.factors[entry][number] for entry in entries]
            factor = np.stack([factor[members] for _, factor in parts], axis=1).astype(np.int32)
            rounds.append(Round(np.array(entries), np.array([coefficient for coefficient, _ in parts]), factor))
        pattern = np.zeros((rule.rows - 1, rule.rows), bool)
        pattern[rule.pivot_place] = True
        own = rule.row, rule.start, rule.rows, rule.pivot_entry, rule.pivot_place
        return Replays(tuple(rounds), *own, elimination_plan(pattern), used, line, vanishing)

    def _direct(self, result: _RuleResult, members: np.ndarray, used: np.ndarray, line: np.ndarray) -> list[Round]:
        """Cells of a rule of one row, whose entries are its columns."""
        columns, rounds = len(result.rule.start), []
        member, entry = members[used // columns], used % columns
        lengths = np.array([len(parts) for parts in result.factors])
        for number in range(lengths.max()):
            some = np.flatnonzero(lengths[entry] > number)
            factor, coefficient = np.empty(len(some), np.int64), np.empty(len(some), np.int64)
            for e in np.unique(entry[some]).tolist():
                there = entry[some] == e
                coefficient[there] = result.factors[e][number][0]
                factor[there] = result.factors[e][number][1][member[some[there]]]
            rounds.append(Round(line[some], coefficient, factor.astype(np.int32)))
        return rounds


def _join_rounds(parts: list[list[Round]]) -> tuple[Round, ...]:
    """Sums of several rules as sums of all their lines, by line."""
    rounds = []
    for group in itertools.zip_longest(*parts):
        place, coefficient, factor = (np.concatenate([getattr(one, f.name) for one in group if one]) for f in fields(Round))
        order = np.argsort(place, kind="stable")
        rounds.append(Round(place[order], coefficient[order], factor[order]))
    return tuple(rounds)


@dataclass(frozen=True, eq=False)
class _RuleResult:
    """A rule at the first point: edges (source key, sector, key, value), of the cells `cell` of [N, C]; zeros that no index explains."""

    rule: CompiledRule
    keys: np.ndarray
    factors: list[list[tuple[int, np.ndarray]]]
    edges: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    cell: np.ndarray
    zero_member: np.ndarray
    zero_column: np.ndarray


@dataclass(frozen=True, eq=False)
class _SectorPart:
    bits: int
    first: int
    live: np.ndarray
    level: np.ndarray
    results: list[_RuleResult]
    functions: list[tuple[int, int]]


def _levels(live: np.ndarray, source: np.ndarray, key: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Length [N] of the longest path to each of the sorted keys along the edges among them; every edge leads to a smaller key."""
    inside = own & is_member(source, live) & is_member(key, live)
    begin, end = np.searchsorted(live, source[inside]), np.searchsorted(live, key[inside])
    level = np.zeros(len(live), np.int64)
    waits = np.bincount(end, minlength=len(live))
    order = np.argsort(begin, kind="stable")
    begin, end = begin[order], end[order]
    first = np.searchsorted(begin, np.arange(len(live) + 1))
    ready, depth = np.flatnonzero(waits == 0), 0
    while len(ready):
        level[ready] = depth
        length = first[ready + 1] - first[ready]
        edge = np.repeat(first[ready] - np.cumsum(length) + length, length) + np.arange(int(length.sum()))
        np.subtract.at(waits, end[edge], 1)
        hit = np.unique(end[edge])
        ready, depth = hit[waits[hit] == 0], depth + 1
    return level


def identity_coefficients(operators: Sequence[Operator], values: np.ndarray, ring: Residues) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [terms, n+1, P] of all identities at points values [symbols, P], terms as in evaluate_identities, and good [P]."""
    powers: dict[tuple[int, int], np.ndarray] = {}

    def power(i: int, exponent: int) -> np.ndarray:
        if (i, exponent) not in powers:
            lower = power(i, exponent - 1) if exponent > 1 else None
            powers[i, exponent] = values[i] if lower is None else lower * values[i] % ring.primes
        return powers[i, exponent]

    @cache
    def polynomial(terms: Polynomial) -> np.ndarray:
        total = np.zeros(values.shape[1], np.int64)
        for exponents, factor in terms:
            product = factor % ring.primes
            for i, exponent in enumerate(exponents):
                if exponent:
                    product = product * power(i, exponent) % ring.primes
            total += product
        return total % ring.primes

    good = np.ones(values.shape[1], bool)

    @cache
    def inverse(terms: Polynomial) -> np.ndarray:
        below = polynomial(terms)
        good[below == 0] = False
        return np.array([pow(value or 1, -1, prime) for value, prime in zip(below.tolist(), ring.primes.tolist())])

    count = sum(map(len, operators))
    result = np.zeros((count, len(operators[0][0][0]) + 1, values.shape[1]), np.int64)
    terms = (coefficients for operator in operators for _, coefficients in operator)
    for number, coefficients in enumerate(terms):
        for i, numerator, denominator in coefficients:
            result[number, i] = polynomial(numerator) * inverse(denominator) % ring.primes
    return result, good


def probe(trace: Trace, primes: Sequence[int], values: np.ndarray, device: str = "cpu") -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [P, F] of a trace at points: primes [P], values [symbols, P] of d and the invariants; and good [P].

    A point is not good where a pivot vanishes, or where something does not that vanished at the first point: there the coefficients mean
    nothing. Elsewhere they are exact.
    """
    most, memory = (GPU_POINTS, GPU_MEMORY) if device == "cuda" else (POINTS_AT_ONCE, PROBE_MEMORY)
    size = min(max(memory // max(trace.bytes_per_point, 1), 8), most)
    parts = []
    for begin in range(0, len(primes), size):
        ring = make_residues(np.array(primes[begin : begin + size], np.int64), device)
        parts.append(_Probe(trace, values[:, begin : begin + size], ring).run())
    coefficients, good = zip(*parts)
    return np.concatenate(coefficients), np.concatenate(good)


class _Probe:
    """One pass of a trace over some points."""

    def __init__(self, trace: Trace, values: np.ndarray, ring: Residues):
        self.trace, self.ring, self.points = trace, ring, values.shape[1]
        self.elements = GPU_ELEMENTS if ring.device == "cuda" else PROBE_ELEMENTS
        coefficients, good = identity_coefficients(trace.operators, values, ring)
        self.weights: Any = [1] * len(trace.starts)
        if trace.weights:
            weights, sound = identity_coefficients([trace.weights], values, ring)
            self.weights, good = ring.place(weights.sum(1) % ring.primes), good & sound
        self.identities, self.good = ring.place(coefficients.reshape(-1, self.points)), ring.place(good)

    def run(self) -> tuple[np.ndarray, np.ndarray]:
        trace, ring = self.trace, self.ring
        block = ring.zeros(trace.cells, self.points)
        for cell, value in zip(trace.starts.tolist(), self.weights):
            block[cell] = value
        for sector in trace.sectors:
            self._carry(sector, block, *self._one_step(sector))
        self._must_vanish(block[ring.place(trace.dead)])
        return ring.bring(ring.canonical(block[ring.place(trace.ends)])).reshape(-1, self.points).T, ring.bring(self.good)

    def _must_vanish(self, values: Any) -> None:
        """values [..., P]"""
        self.good &= self.ring.is_zero(values).reshape(-1, self.points).all(0)

    def _one_step(self, sector: SectorTrace) -> tuple[Any, Any]:
        """Values [edges, P] and pivots [nodes, P] of a sector's one-step results."""
        edges = len(sector.source)
        pivots_end = edges + sector.count
        lines = self.ring.empty(pivots_end + sector.checked, self.points)
        if sector.direct:
            self._sum_directly(sector.direct, lines)
        for replays in sector.replays:
            size = max(self.elements // (len(replays.row) * self.points), 1)
            for begin in range(0, len(replays.rounds[0].factor), size):
                self._replay(replays, slice(begin, begin + size), lines)
        self._must_vanish(lines[pivots_end:])
        pivots = lines[edges:pivots_end]
        bad = self.ring.is_zero(pivots)
        self.good &= ~bad.any(0)
        pivots[bad] = 1
        return lines[:edges], pivots

    def _sum_directly(self, rounds: tuple[Round, ...], lines: Any) -> None:
        """Fill the lines of rules of one row."""
        first, *others = rounds
        size = max(self.elements // self.points, 1)
        for begin in range(0, len(first.place), size):
            place = first.place[begin : begin + size]
            values = self._summands(first, slice(begin, begin + size))
            for more in others:
                part = slice(*np.searchsorted(more.place, [place[0], place[-1] + 1]).tolist())
                if part.stop > part.start:
                    values[self.ring.place(np.searchsorted(place, more.place[part]))] += self._summands(more, part)
            lines[self.ring.place(place)] = self.ring.reduce(values)

    def _summands(self, some: Round, part: slice) -> Any:
        values = self.ring.take(self.identities, self.ring.place(some.coefficient[part]))
        values *= self.ring.place(some.factor[part])[:, None]
        return values

    def _replay(self, replays: Replays, part: slice, lines: Any) -> None:
        ring, columns = self.ring, len(replays.start)
        first, *others = replays.rounds
        values = ring.take(self.identities, ring.place(first.coefficient))[None] * ring.place(first.factor[part])[:, :, None]
        for more in others:
            coefficients = ring.take(self.identities, ring.place(more.coefficient))
            values[:, ring.place(more.place)] += coefficients[None] * ring.place(more.factor[part])[:, :, None]
        values = ring.reduce(values)
        matrix = ring.zeros(len(values), replays.rows - 1, replays.rows, self.points)
        pivot, row = (ring.place(place) for place in replays.pivot_place)
        matrix[:, pivot, row] = values[:, ring.place(replays.pivot_entry)]
        values = ring.product(values, null_vectors(matrix, replays.plan, ring)[:, ring.place(replays.row)])
        cells = ring.reduce(ring.sums(values, ring.place(replays.start), axis=1)).reshape(-1, self.points)
        before, after = part.start * columns, part.start * columns + len(cells)
        begin, end = np.searchsorted(replays.used, [before, after])
        lines[ring.place(replays.line[begin:end])] = ring.take(cells, ring.place(replays.used[begin:end] - before))
        begin, end = np.searchsorted(replays.vanishing, [before, after])
        if end > begin:
            self._must_vanish(ring.take(cells, ring.place(replays.vanishing[begin:end] - before)))

    def _carry(self, sector: SectorTrace, block: Any, values: Any, pivots: Any) -> None:
        """block [cells, P]: from the sector's first level down, then to what lies below it; some columns at a time."""
        ring, width = self.ring, len(sector.columns)
        whole = block[sector.base : sector.base + sector.count * width].reshape(sector.count, width, self.points)
        scale = -ring.invert(pivots)
        source, inner = ring.place(sector.source - sector.first), sector.inner
        size = max((GPU_ELEMENTS if ring.device == "cuda" else CARRIED_ELEMENTS) // max(len(source) * self.points, 1), 1)
        for columns in (slice(begin, begin + size) for begin in range(0, width, size)):
            own = whole[:, columns]
            for (begin, end, first, last), starts in zip(sector.levels, sector.inner_starts):
                begin, end = begin - sector.first, end - sector.first
                lines = own[begin:end]
                if last > first:
                    flow = ring.product(ring.take(own, source[first:last]), values[first:last, None])
                    lines = ring.reduce(lines + ring.sums(flow, ring.place(starts)))
                own[begin:end] = ring.product(lines, scale[begin:end, None])
            if len(source) > inner:
                flow = ring.product(ring.take(own, source[inner:]), values[inner:, None])
                target = ring.place(sector.outer_cells[:, columns].reshape(-1))
                sums = ring.sums(flow, ring.place(sector.outer_start)).reshape(-1, self.points)
                block[target] = ring.reduce(block[target] + sums)


# =====================================================================================================================
# Reconstruction
# =====================================================================================================================

REDUNDANT_POINTS = 3  # a univariate function must also fit so many points more than it has coefficients
MOST_SLICE_POINTS = 6000  # functions of a higher degree than that in one variable are given up
ROOT_DENOMINATOR, ROOT_NUMERATOR = 12, 600  # factors a*x - b with a and |b| up to these are recognised as such
MOST_PRIMES = 20_000
MANY_POINTS = 5000  # of which it is said early that they are to come
ATTEMPTS = 4  # how often unlucky choices of random numbers are replaced
FACTORED_TERMS = 50  # polynomials of at most so many terms are printed in factors
SPARSE_SHARE = 0.95  # further primes solve for the terms alone if these are fewer than so many of the points of a full grid
LETTER_NUMBERS = (2, 4, 9)  # beside 1, for one term of a linear letter: thresholds such as s - 4m
MOST_LINEAR_LETTERS = 5000
MOST_LEGS = 6  # so many have 203 partitions, each with a Gram determinant
PAIRS_PAY = 10  # degrees in pairs of variables are found where they take fewer than one in so many of the points of the grid
CONFIRMING_POINTS = 2  # show that a numerator is right, where a further prime would take many more
FORESEEN_POINTS = 50  # how many primes there will be is estimated (by some ten points) where each takes more points than this

Monomials = dict[tuple[int, ...], Any]  # exponents: coefficient
Factors = dict[Polynomial, int]  # multiplicities of irreducible polynomials of the variables, as `primitive` makes them


class _Unlucky(Exception):
    """A prime or point where something vanishes that does not vanish in general."""


def probe_primes(rng: np.random.Generator) -> Iterator[int]:
    """Different random primes that Residues can take."""
    seen: set[int] = set()
    while True:
        number = int(rng.integers(SMALLEST_PROBE_PRIME, LARGEST_PROBE_PRIME)) | 1
        if number not in seen and is_prime(number):
            seen.add(number)
            yield number


# polynomials modulo a prime: int64 arrays, constant term first, no zero at the end -----------------------------------


def trimmed(poly: np.ndarray) -> np.ndarray:
    nonzero = np.flatnonzero(poly)
    return poly[: nonzero[-1] + 1 if len(nonzero) else 0]


def divide(a: np.ndarray, b: np.ndarray, p: int) -> tuple[np.ndarray, np.ndarray]:
    """Quotient and remainder."""
    rest, quotient = a.copy(), np.zeros(max(len(a) - len(b) + 1, 0), np.int64)
    inverse = pow(int(b[-1]), -1, p)
    for k in range(len(quotient) - 1, -1, -1):
        factor = quotient[k] = int(rest[k + len(b) - 1]) * inverse % p
        if factor:
            rest[k : k + len(b)] = (rest[k : k + len(b)] - factor * b) % p
    return quotient, trimmed(rest)


def multiply(a: np.ndarray, b: np.ndarray, p: int) -> np.ndarray:
    short, long = sorted((a, b), key=len)
    result = np.zeros(max(len(a) + len(b) - 1, 0), np.int64)
    for k, factor in enumerate(short.tolist()):
        result[k : k + len(long)] = (result[k : k + len(long)] + factor * long) % p
    return result


def greatest_common_divisor(a: np.ndarray, b: np.ndarray, p: int) -> np.ndarray:
    while len(b):
        a, b = b, divide(a, b, p)[1]
    return a * pow(int(a[-1]), -1, p) % p


def divided_differences(nodes: np.ndarray, values: np.ndarray, p: int) -> np.ndarray:
    """Newton coefficients [N, …] of values [N, …] at different nodes [N]."""
    result = values % p
    shape = (-1,) + (1,) * (values.ndim - 1)
    for k in range(1, len(nodes)):
        result[k:] = (result[k:] - result[k - 1 : -1]) % p * invert((nodes[k:] - nodes[:-k]) % p, p).reshape(shape) % p
    return result


def newton_to_monomials(nodes: np.ndarray, coefficients: np.ndarray, p: int) -> np.ndarray:
    result = coefficients.copy()
    for j in range(len(nodes) - 2, -1, -1):
        result[j:-1] = (result[j:-1] - int(nodes[j]) * result[j + 1 :]) % p
    return result


def horner(poly: np.ndarray, x: np.ndarray, p: int) -> np.ndarray:
    """Values at x [N]."""
    total = np.zeros(len(x), np.int64)
    for coefficient in poly[::-1].tolist():
        total = (total * x + coefficient) % p
    return total


def rational_interpolation(nodes: np.ndarray, values: np.ndarray, p: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Numerator and denominator (with highest coefficient 1) of the rational function with these values, None if it takes more points.

    The remainder sequence of the interpolating polynomial and the product of all x - node has the function where a quotient is largest
    (Monagan, ISSAC 2004); it must fit REDUNDANT_POINTS points more than it has coefficients.
    """
    modulus = np.ones(1, np.int64)
    for node in nodes.tolist():
        modulus = multiply(modulus, np.array([-node % p, 1]), p)
    rest = trimmed(newton_to_monomials(nodes, divided_differences(nodes, values, p), p))
    if not len(rest):
        return np.zeros(0, np.int64), np.ones(1, np.int64)
    previous, cofactor, previous_cofactor = modulus, np.ones(1, np.int64), np.zeros(0, np.int64)
    best: tuple[int, np.ndarray, np.ndarray] | None = None
    while len(rest):
        size = len(rest) + len(cofactor)
        if best is None or size < best[0]:
            best = (size, rest, cofactor)
        quotient, remainder = divide(previous, rest, p)
        product = multiply(quotient, cofactor, p)
        following = np.zeros(max(len(product), len(previous_cofactor)), np.int64)
        following[: len(previous_cofactor)] = previous_cofactor
        following[: len(product)] = (following[: len(product)] - product) % p
        previous, rest, previous_cofactor, cofactor = rest, remainder, cofactor, trimmed(following)
    size, numerator, denominator = best
    if size - 1 + REDUNDANT_POINTS > len(nodes):
        return None
    inverse = pow(int(denominator[-1]), -1, p)
    return numerator * inverse % p, denominator * inverse % p


@cache
def _small_rationals() -> tuple[tuple[int, int], ...]:
    """(a, b) with b/a in lowest terms, the factors a*x - b that are looked for."""
    pairs = ((a, b) for a in range(1, ROOT_DENOMINATOR + 1) for b in range(-ROOT_NUMERATOR, ROOT_NUMERATOR + 1))
    return tuple((a, b) for a, b in pairs if math.gcd(a, b) == 1)


def linear_factors(poly: np.ndarray, p: int) -> dict[tuple[int, int], int]:
    """Multiplicities of the small rational roots b/a of a polynomial, as {(a, b): multiplicity}."""
    if len(poly) < 2:
        return {}
    pairs = np.array(_small_rationals())
    roots = pairs[:, 1] % p * invert(pairs[:, 0], p) % p
    found: dict[tuple[int, int], int] = {}
    for position in np.flatnonzero(horner(poly, roots, p) == 0).tolist():
        rest, factor = poly, np.array([-int(roots[position]) % p, 1])
        while len(rest) > 1:
            quotient, remainder = divide(rest, factor, p)
            if len(remainder):
                break
            rest = quotient
            pair = (int(pairs[position, 0]), int(pairs[position, 1]))
            found[pair] = found.get(pair, 0) + 1
    return found


# polynomials of several variables --------------------------------------------------------------------------------------


def lower_set(boxes: Iterable[tuple[Sequence[int], Sequence[tuple[Sequence[int], int]]]]) -> list[tuple[int, ...]]:
    """Exponents below the limits of any of the boxes (limit of each variable, limits of sums of variables), sorted."""
    found: set[tuple[int, ...]] = set()
    for limits, sums in boxes:
        sizes = [limit + 1 for limit in limits]
        grid = np.indices(sizes).reshape(len(sizes), math.prod(sizes)).T
        inside = np.ones(len(grid), bool)
        for summed, total in sums:
            inside &= grid[:, list(summed)].sum(1) <= total
        found.update(map(tuple, grid[inside].tolist()))
    return sorted(found)


def count_exponents(limits: Sequence[int], total: int) -> int:
    """How many exponents have these limits and at most this sum."""
    ways = [1] + [0] * total
    for limit in limits:
        ways = [sum(ways[max(k - limit, 0) : k + 1]) for k in range(total + 1)]
    return sum(ways)


def interpolate(nodes: Sequence[np.ndarray], exponents: Sequence[tuple[int, ...]], values: np.ndarray, p: int) -> np.ndarray:
    """Coefficients [N, F] of polynomials with these exponents from values [N, F] at the points (nodes[0][e_0], nodes[1][e_1], …).

    The exponents are a lower set: with one all smaller ones are there, so divided differences of each variable in turn meet no gap.
    """
    if not nodes:
        return values % p
    place = tuple(np.array(exponents).T)
    grid = np.zeros((*(len(some) for some in nodes), values.shape[1]), np.int64)
    grid[place] = values
    for axis, some in enumerate(nodes):
        grid = np.moveaxis(divided_differences(some, np.moveaxis(grid, axis, 0), p), 0, axis)
    inside = np.zeros_like(grid)
    inside[place] = grid[place]
    for axis, some in enumerate(nodes):
        inside = np.moveaxis(newton_to_monomials(some, np.moveaxis(inside, axis, 0), p), 0, axis)
    return inside[place]


def evaluate_monomials(poly: Monomials, points: np.ndarray, p: int) -> np.ndarray:
    """Values [N] of a polynomial with integer coefficients at points [N, variables]."""
    total = np.zeros(len(points), np.int64)
    powers: dict[tuple[int, int], np.ndarray] = {}
    for i in range(points.shape[1]):
        powers[i, 0] = np.ones(len(points), np.int64)
        for exponent in range(1, max((exponents[i] for exponents in poly), default=0) + 1):
            powers[i, exponent] = powers[i, exponent - 1] * points[:, i] % p
    for exponents, coefficient in poly.items():
        product = np.full(len(points), coefficient % p, np.int64)
        for i, exponent in enumerate(exponents):
            if exponent:
                product = product * powers[i, exponent] % p
        total = (total + product) % p
    return total


def monomial_values(exponents: np.ndarray, point: Sequence[int], p: int) -> np.ndarray:
    """Values [N] of monomials with these exponents [N, variables] at a point."""
    result = np.ones(len(exponents), np.int64)
    for x, mine in zip(point, exponents.T):
        result = result * np.array([pow(x, e, p) for e in range(max(mine) + 1)], np.int64)[mine] % p
    return result


def solve_geometric(bases: np.ndarray, values: np.ndarray, p: int) -> np.ndarray:
    """c [N] with sum over m of c_m bases_m^k = values_k for k = 0 … N-1, for different bases (a transposed Vandermonde system).

    Further values are ignored.
    """
    master = np.ones(1, np.int64)
    for base in bases.tolist():
        master = multiply(master, np.array([-base % p, 1]), p)
    quotient, total, at_base = np.ones_like(bases), np.zeros_like(bases), np.zeros_like(bases)
    for k in range(len(bases) - 1, -1, -1):  # coefficients of master / (x - base), highest first
        total = (total + quotient * int(values[k])) % p
        at_base = (at_base * bases + quotient) % p
        quotient = (int(master[k]) + bases * quotient) % p
    return total * invert(at_base, p) % p


def shift_back(poly: Monomials, shift: Sequence[int], p: int) -> Monomials:
    """The polynomial in x of a polynomial in x - shift."""
    for i, offset in enumerate(shift):
        shifted: Monomials = {}
        for exponents, coefficient in poly.items():
            for k in range(exponents[i] + 1):
                term = (*exponents[:i], k, *exponents[i + 1 :])
                value = coefficient * math.comb(exponents[i], k) * pow(-offset, exponents[i] - k, p)
                shifted[term] = (shifted.get(term, 0) + value) % p
        poly = shifted
    return {exponents: value for exponents, value in poly.items() if value}


def frozen(poly: Monomials) -> Polynomial:
    """The same polynomial up to a factor, as a key."""
    return tuple(primitive(poly)[1].items())


def degree_of(factors: Factors, i: int) -> int:
    """In variable i, of a product."""
    return sum(times * max(exponents[i] for exponents, _ in poly) for poly, times in factors.items())


def affine(coefficients: Sequence[Any]) -> Polynomial:
    """The sum of all variables with these coefficients, of which the last is the constant."""
    count = len(coefficients) - 1
    return frozen({tuple(int(i == j) for j in range(count)): c for i, c in enumerate(coefficients) if c})


def restricted(poly: Polynomial, i: int, base: Sequence[int], p: int) -> np.ndarray:
    """As a polynomial of variable i modulo p, with the others at base."""
    values = np.zeros(max(exponents[i] for exponents, _ in poly) + 1, np.int64)
    for exponents, value in poly:
        others = (pow(x, e, p) for j, (x, e) in enumerate(zip(base, exponents)) if j != i)
        values[exponents[i]] = (values[exponents[i]] + math.prod(others) * value % p) % p
    return trimmed(values)


def times_divisible(poly: np.ndarray, factor: np.ndarray, p: int) -> int:
    """How often a factor that is no constant divides."""
    for times in itertools.count():
        poly, remainder = divide(poly, factor, p)
        if len(remainder) or not len(poly):
            return times


def linear_letters(atoms: Sequence[Sequence[Any]]) -> tuple[Polynomial, ...]:
    """Sums of atoms (coefficients of the variables and a constant), few first, that mix variables; all but one coefficient are 1 or -1."""
    found: dict[Polynomial, None] = {}
    for size in range(2, len(atoms) + 1):
        for chosen in itertools.combinations(atoms, size):
            for signs in itertools.product((1, -1), repeat=size - 1):
                for place, number in [(0, 1), *itertools.product(range(size), LETTER_NUMBERS)]:
                    numbers = [sign * (number if k == place else 1) for k, sign in enumerate((1, *signs))]
                    letter = [sum(a * b for a, b in zip(numbers, column)) for column in zip(*chosen)]
                    if sum(map(bool, letter[:-1])) > 1:
                        found[affine(letter)] = None
                if len(found) >= MOST_LINEAR_LETTERS:
                    return tuple(found)
    return tuple(found)


def degrees_of(rests: Sequence[Sequence[np.ndarray]]) -> tuple[int, ...]:
    """Of a polynomial that is this on [variable][slice], in each variable."""
    return tuple(len(rest[0]) - 1 for rest in rests)


class Letters:
    """Polynomials that may divide others, and what they are on slices modulo p along each variable (bases: [variable][slice])."""

    def __init__(self, polys: Sequence[Polynomial], bases: Sequence[Sequence[tuple[int, ...]]], p: int):
        self.bases, self.p = bases, p
        self.degrees = {poly: np.max([exponents for exponents, _ in poly], axis=0) for poly in polys}
        self.linear = [poly for poly in polys if all(sum(exponents) < 2 for exponents, _ in poly)]
        self.others = [poly for poly in polys if any(sum(exponents) > 1 for exponents, _ in poly)]
        self.roots = [self._roots(i) for i in range(len(bases))]
        self._slices: dict[tuple[Polynomial, int, int], np.ndarray] = {}

    def _roots(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the linear letters of which i is the first variable, and their roots on the first slice."""
        mine = [k for k, poly in enumerate(self.linear) if np.flatnonzero(self.degrees[poly])[0] == i]
        total, lead = np.zeros((2, len(mine)), np.int64)
        for j, x in enumerate((*self.bases[i][0], 1)):
            unit = tuple(int(j == k) for k in range(len(self.bases)))
            column = np.array([dict(self.linear[k]).get(unit, 0) % self.p for k in mine], np.int64)
            if j == i:
                lead = column
            else:
                total = (total + column * x) % self.p
        return np.array(mine, np.int64), -total % self.p * invert(lead, self.p) % self.p

    def divides(self, poly: Polynomial, rests: list[list[np.ndarray]]) -> bool:
        """Whether this is what the slices say."""
        return degrees_of(rests) == tuple(self.degrees[poly]) and all(
            times_divisible(rests[i][k], self._on_slice(poly, i, k), self.p)
            for i in np.flatnonzero(self.degrees[poly])
            for k in range(len(rests[i]))
        )

    def divide_out(self, rests: list[list[np.ndarray]]) -> Factors:
        """Multiplicities in a polynomial that is this on the slices; what is left of it is put into rests."""
        found: Factors = {}
        degrees = degrees_of(rests)
        candidates = [poly for poly in self.others if (self.degrees[poly] <= degrees).all()]
        for (mine, roots), rest in zip(self.roots, rests):
            if len(rest[0]) > 1 and len(mine):
                candidates += [self.linear[k] for k in mine[horner(rest[0], roots, self.p) == 0].tolist()]
        for poly in candidates:
            active = np.flatnonzero(self.degrees[poly]).tolist()
            factors = {(i, k): self._on_slice(poly, i, k) for i in active for k in range(len(self.bases[i]))}
            times = MOST_SLICE_POINTS
            for (i, k), factor in factors.items():
                times = times and min(times, times_divisible(rests[i][k], factor, self.p))
            if times:
                found[poly] = times
                for (i, k), factor in factors.items():
                    for _ in range(times):
                        rests[i][k], _ = divide(rests[i][k], factor, self.p)
        return found

    def _on_slice(self, poly: Polynomial, i: int, k: int) -> np.ndarray:
        if (poly, i, k) not in self._slices:
            self._slices[poly, i, k] = restricted(poly, i, self.bases[i][k], self.p)
            if len(self._slices[poly, i, k]) <= self.degrees[poly][i]:
                raise _Unlucky("a letter has a lower degree on a slice")
        return self._slices[poly, i, k]


# rational numbers ------------------------------------------------------------------------------------------------------


def rational_number(residue: int, modulus: int) -> Fraction | None:
    """The only a/b with a^2, b^2 <= modulus/2 that has this residue, None if there is none (Wang, 1981)."""
    bound = math.isqrt(modulus // 2)
    a, b, s, t = modulus, residue % modulus, 0, 1
    while b > bound:
        quotient = a // b
        a, b, s, t = b, a - quotient * b, t, s - quotient * t
    if not t or abs(t) > bound or math.gcd(b, t) != 1:
        return None
    return Fraction(b, t)


class Lift:
    """A vector of rational numbers from its residues modulo more and more primes; done once it predicts a prime that was not used."""

    def __init__(self) -> None:
        self.modulus, self.residues = 1, []
        self.candidate: list[Fraction] | None = None
        self.done = False
        self.tried = 0

    def add(self, residues: Sequence[int], p: int) -> None:
        """Residues modulo a further prime."""
        if self.candidate is not None:
            self.done = all(
                value.denominator % p and (value.numerator - r * value.denominator) % p == 0 for value, r in zip(self.candidate, residues)
            )
            if self.done:
                return
        if self.modulus == 1:
            self.residues = [0] * len(residues)
        inverse = pow(self.modulus, -1, p)
        self.residues = [old + self.modulus * ((r - old) * inverse % p) for old, r in zip(self.residues, residues)]
        self.modulus *= p
        self.candidate = None
        if self.modulus.bit_length() > 1.1 * self.tried:
            self.tried = self.modulus.bit_length()
            self.candidate = self._rationals()

    def _rationals(self) -> list[Fraction] | None:
        """All of them, over a common denominator as far as it is known."""
        bound, common, found = math.isqrt(self.modulus // 2), 1, []
        for residue in self.residues:
            scaled = residue * common % self.modulus
            scaled -= self.modulus if scaled > self.modulus // 2 else 0
            if abs(scaled) > bound:
                value = rational_number(scaled, self.modulus)
                if value is None:
                    return None
                common *= value.denominator
                scaled = value.numerator
                if common > bound:
                    return None
            found.append(Fraction(scaled, common))
        return found


# functions -------------------------------------------------------------------------------------------------------------


class Places:
    """Points [N, variables] modulo a prime, and values of polynomials there, which many functions share."""

    def __init__(self, points: Sequence[Sequence[int]], p: int):
        self.points, self.p = np.array(points, np.int64).reshape(len(points), -1), p
        self._known: dict[Polynomial, np.ndarray] = {}

    def product(self, factors: Factors) -> np.ndarray:
        """Values [N] of a product."""
        result = np.ones(len(self.points), np.int64)
        for poly, multiplicity in factors.items():
            if poly not in self._known:
                self._known[poly] = evaluate_monomials(dict(poly), self.points, self.p)
            for _ in range(multiplicity):
                result = result * self._known[poly] % self.p
        return result


@dataclass
class ExactFunction:
    """factor * product of factors above * numerator / product of factors below; polynomials with coprime integers."""

    factor: Fraction = Fraction(1)
    above: Factors = field(default_factory=dict)
    below: Factors = field(default_factory=dict)
    numerator: Monomials = field(default_factory=dict)

    def evaluate(self, places: Places) -> tuple[np.ndarray, np.ndarray]:
        """Residues [N] of numerator and denominator."""
        p = places.p
        above = places.product(self.above) * evaluate_monomials(self.numerator, places.points, p) % p * (self.factor.numerator % p) % p
        below = places.product(self.below) * (self.factor.denominator % p) % p
        return above, below

    def text(self, variables: Sequence[str], scale: tuple[str, int] | None = None) -> str:
        """An expression that sympy parses. scale: (name, degree) of an invariant that was set to 1; the others are divided by it."""
        above = [(dict(poly), power) for poly, power in self.above.items()] + _factors(self.numerator, variables)
        below = [(dict(poly), power) for poly, power in self.below.items()]
        names, negative = list(variables), 0
        if scale is not None:
            name, degree = scale
            place = int("d" in variables)
            summed = [i for i in range(len(variables)) if variables[i] != "d"]
            orders = [sum(power * max(sum(e[i] for i in summed) for e in poly) for poly, power in side) for side in (above, below)]
            above, below = ([(_homogeneous(poly, summed, place), power) for poly, power in side] for side in (above, below))
            negative = sum(power for poly, power in above + below if poly[max(poly)] < 0)
            above, below = ([(_with_positive_lead(poly), power) for poly, power in side] for side in (above, below))
            names.insert(place, name)
            power = degree - orders[0] + orders[1]
            own = {tuple(int(i == place) for i in range(len(names))): 1}
            (above if power > 0 else below).extend([(own, abs(power))] if power else [])
        top = _product_text(abs(self.factor.numerator), above, names)
        bottom = _product_text(self.factor.denominator, below, names)
        sign = "-" if (self.factor < 0) != (negative % 2 == 1) else ""
        if bottom == "1":
            return sign + top
        simple = re.fullmatch(r"\w+|\w+\*\*\d+|\([^()]*\)(\*\*\d+)?", bottom)
        return f"{sign}{top}/{bottom if simple else f'({bottom})'}"


def _homogeneous(poly: Monomials, summed: Sequence[int], place: int) -> Monomials:
    """With one variable more at this place, so that all terms have the same degree in those and the new one."""
    degree = max(sum(exponents[i] for i in summed) for exponents in poly)
    return {(*e[:place], degree - sum(e[i] for i in summed), *e[place:]): value for e, value in poly.items()}


def _with_positive_lead(poly: Monomials) -> Monomials:
    return poly if poly[max(poly)] > 0 else {exponents: -value for exponents, value in poly.items()}


def _factors(poly: Monomials, variables: Sequence[str]) -> list[tuple[Monomials, int]]:
    """Irreducible factors of a polynomial with coprime coefficients if it is small, else itself; the leading coefficient is positive."""
    if set(poly) == {(0,) * len(variables)}:
        return []
    if len(poly) > FACTORED_TERMS:
        return [(poly, 1)]
    from sympy import ZZ
    from sympy.polys.rings import ring

    functions, *_ = ring(list(variables), ZZ)
    _, factors = functions.from_dict({exponents: ZZ(value) for exponents, value in poly.items()}).factor_list()
    return [({tuple(map(int, e)): int(v) for e, v in factor.terms()}, int(power)) for factor, power in factors]


def primitive(poly: Monomials) -> tuple[Fraction, Monomials]:
    """content, polynomial with coprime integer coefficients, positive at its lexicographically largest exponents."""
    common = math.lcm(*(Fraction(value).denominator for value in poly.values()))
    numbers = {exponents: int(value * common) for exponents, value in poly.items()}
    divisor = math.gcd(*numbers.values()) * (1 if numbers[max(numbers)] > 0 else -1)
    return Fraction(divisor, common), {exponents: value // divisor for exponents, value in sorted(numbers.items(), reverse=True)}


def _product_text(number: int, factors: list[tuple[Monomials, int]], names: Sequence[str]) -> str:
    """Factors with the same base are put together; a number of 1 is left out."""
    powers: dict[tuple, int] = {}
    for poly, power in factors:
        key = tuple(sorted(poly.items(), reverse=True))
        powers[key] = powers.get(key, 0) + power
    parts = [str(number)] if number != 1 or not powers else []
    for key, power in sorted(powers.items(), key=lambda item: (len(item[0]), item[0])):
        base = poly_text(dict(key), names)
        base = (
            base
            if re.fullmatch(r"[A-Za-z_]\w*", base) or (len(powers) == 1 and number == 1 and power == 1 and len(key) == 1)
            else f"({base})"
        )
        parts.append(base if power == 1 else f"{base}**{power}")
    return "*".join(parts)


def poly_text(poly: Monomials, names: Sequence[str]) -> str:
    terms = []
    for exponents, value in sorted(poly.items(), reverse=True):
        powers = [name if e == 1 else f"{name}**{e}" for name, e in zip(names, exponents) if e]
        parts = powers if abs(value) == 1 and powers else [str(abs(value)), *powers]
        terms.append(("-" if value < 0 else "+", "*".join(parts)))
    (sign, first), *others = terms
    return ("-" if sign == "-" else "") + first + "".join(f" {sign} {term}" for sign, term in others)


# letters ---------------------------------------------------------------------------------------------------------------


def partitions(things: Sequence[Any]) -> Iterator[list[list[Any]]]:
    """All ways to put things into groups; the last thing is in the last group."""
    if not things:
        yield []
        return
    *rest, last = things
    for size in range(len(rest) + 1):
        for chosen in itertools.combinations(range(len(rest)), size):
            group = [rest[k] for k in chosen] + [last]
            yield from ([*groups, group] for groups in partitions([x for k, x in enumerate(rest) if k not in chosen]))


def kinematic_letters(family: Family, variables: Sequence[str], numbers: dict[str, Fraction]) -> tuple[Polynomial, ...]:
    """Where integrals may be singular, as far as these variables are mixed there; the other symbols have numbers.

    Simple sums of invariants; Gram determinants of groups of legs, which are squares, Källén functions, …; the thresholds
    lambda(P^2, m_i^2, m_j^2) of all P and masses; lambda(s t, P_1^2 P_3^2, P_2^2 P_4^2) of massless boxes.
    """
    names = [name for name, _ in family.point]
    if len(set(names) & set(variables)) < 2:
        return ()
    atoms = [[int(name == x) for x in variables] + [0 if name in variables else numbers[name]] for name in names]
    letters = dict.fromkeys(linear_letters([*atoms, [0] * len(variables) + [1]]))
    place = [family.symbols.index(x) for x in variables]
    for value in dict.fromkeys(_singular_functions(family, numbers)):
        for factor, _ in value.numer.factor_list()[1]:
            letter = frozen({tuple(int(exponents[k]) for k in place): int(c) for exponents, c in factor.terms()})
            if (np.max([exponents for exponents, _ in letter], axis=0) > 0).sum() > 1:
                letters[letter] = None
    return tuple(letters)


def _singular_functions(family: Family, numbers: dict[str, Fraction]) -> Iterator[Any]:
    """Determinants and Källén functions as rational functions of the symbols, with the numbers put in."""
    functions, names = function_field(family.symbols, numbers)
    where, count = f"family {family.name}", len(family.external_momenta)
    products = _external_products(family, names, functions, where)
    masses = [functions(evaluate(mass, names, where)) for mass in dict.fromkeys(("0", *(mass for _, mass in family.propagators)))]
    units = np.eye(count, dtype=int)
    legs = [*units, -units.sum(0)]

    def product(a: np.ndarray, b: np.ndarray) -> Any:
        return sum((products[i, j] * int(a[i] * b[j]) for i in range(count) for j in range(count) if a[i] * b[j]), functions.zero)

    def kallen(x: Any, y: Any, z: Any) -> Any:
        return x**2 + y**2 + z**2 - 2 * (x * y + y * z + z * x)

    for groups in partitions(legs) if 0 < count < MOST_LEGS else ():
        sums = [np.sum(group, axis=0) for group in groups]
        gram = np.array([[product(a, b) for b in sums] for a in sums], object)
        yield determinant_of(gram[:-1, :-1], functions.one)
        if len(groups) == 2:
            yield from (kallen(gram[0, 0], a, b) for a, b in itertools.combinations_with_replacement(masses, 2))
        if len(groups) == 4:
            for a, b, c, d in ((0, 1, 2, 3), (1, 0, 2, 3), (0, 2, 1, 3)):
                between = [gram[i, i] + 2 * gram[i, j] + gram[j, j] for i, j in ((a, b), (b, c))]
                yield kallen(between[0] * between[1], gram[a, a] * gram[c, c], gram[b, b] * gram[d, d])


# the method ------------------------------------------------------------------------------------------------------------

Sample = tuple[int, tuple[int, ...]]  # a prime, and residues of the variables
Ask = Callable[[Sequence[Sample]], tuple[np.ndarray, np.ndarray]]  # values [P, F] and which are good [P]


class Reconstruction:
    """Rational functions of some variables from their values modulo primes at points that it asks for.

    1. Along each variable, twice: degrees, and with a common divisor of both the factors that depend on that variable alone; of these the
       linear ones (a x - b with small integers) are taken out of numerators and denominators, and so are the letters (polynomials that are
       handed over) that divide on all slices.
    2. What is left of a denominator, by lines through a common point s: as a polynomial in t, normalised to 1 at t = 0, that of
       f(s + t z) has homogeneous polynomials in z as coefficients (Cuyt, Lee, Theor. Comp. Sci. 412 (2011) 1445). Its factors are letters
       for the others.
    3. Then the numerators are polynomials of known degrees: the first prime on a full grid (lower set), further ones on the same, or where
       it has many zeros for its terms alone at points of a geometric sequence.
    4. Numbers by the Chinese remainder theorem until they predict the next prime, or values modulo it at two points, and a check at fresh
       points and primes.
    """

    def __init__(
        self,
        ask: Ask,
        variables: Sequence[str],
        count: int,
        rng: np.random.Generator,
        say: Callable[[str], None],
        announce: Callable[[int], str] = "{:,} points in all".format,
        letters: Sequence[Polynomial] = (),
    ):
        self.letters = tuple(letters)
        self.ask, self.variables, self.count, self.rng, self.say, self.announce = ask, tuple(variables), count, rng, say, announce
        self.primes = probe_primes(rng)
        self.functions = [ExactFunction() for _ in range(count)]
        self.degrees: list[tuple[int, ...]] = []  # of what is left of the numerators without known factors, in each variable
        self.sums: dict[tuple[int, ...], list[int]] = {}  # the same in several variables together
        self.rests: list[list[list[np.ndarray]]] = []  # the same part of the denominators, on [variable][slice]
        self.summed = tuple(i for i, name in enumerate(self.variables) if name != "d")
        self.used_primes = 0

    def run(self) -> list[ExactFunction]:
        """Raises ReductionError where unlucky choices do not end."""
        for attempt in range(ATTEMPTS):
            try:
                self.functions = [ExactFunction() for _ in range(self.count)]
                if self.count:
                    self._find_factors()
                    self._forecast()
                    self._find_denominators()
                    self._find_numerators()
                    self._check()
                return self.functions
            except _Unlucky as trouble:
                self.say(f"unlucky random numbers ({trouble}); taking others" if attempt < ATTEMPTS - 1 else "giving up")
        raise ReductionError(f"no function fits in {ATTEMPTS} attempts: the point may be singular; take another, or more --symbols")

    # asking -------------------------------------------------------------------------------------------------------

    def _draw(self, p: int, count: int | None = None) -> tuple[int, ...]:
        return tuple(self.rng.integers(1000, p - 1000, len(self.variables) if count is None else count).tolist())

    def _distinct(self, p: int, count: int) -> np.ndarray:
        nodes: dict[int, None] = {}
        while len(nodes) < count:
            nodes[int(self.rng.integers(1000, p - 1000))] = None
        return np.array(list(nodes), np.int64)

    def _values(self, samples: Sequence[Sample]) -> np.ndarray:
        """Values [P, F]. Raises _Unlucky where a point has none."""
        values, good = self.ask(samples)
        if not good.all():
            raise _Unlucky("a point has no value")
        return values

    def _along(
        self, p: int, place: Callable[[int], tuple[int, ...]], strip: bool, chosen: Sequence[int], size: int = 10
    ) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """The chosen functions on a line of points place(t), as numerators and denominators in t. strip: without known factors."""
        found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        nodes, values = np.zeros(0, np.int64), np.zeros((0, self.count), np.int64)
        while len(found) < len(chosen):
            if size > MOST_SLICE_POINTS:
                raise _Unlucky(f"a function needs more than {MOST_SLICE_POINTS} points in one variable")
            fresh = self._distinct(p, size - len(nodes))
            fresh = fresh[~np.isin(fresh, nodes)]
            points = [place(t) for t in fresh.tolist()]
            more, good = self.ask([(p, point) for point in points])
            if good.mean() < 0.5:
                raise _Unlucky("most points of a line have no values")
            if strip:
                places = Places(points, p)
                more = np.stack([self._stripped(f, more[:, f], places) for f in range(self.count)], axis=1)
            nodes, values = np.concatenate([nodes, fresh[good]]), np.concatenate([values, more[good]])
            for f in chosen:
                if f not in found and (function := rational_interpolation(nodes, values[:, f], p)) is not None:
                    found[f] = function
            size = max(size * 3 // 2, size + 4)
        return found

    def _stripped(self, f: int, values: np.ndarray, places: Places) -> np.ndarray:
        """Values without the factors that are known."""
        above, below = places.product(self.functions[f].above), places.product(self.functions[f].below)
        if not above.all():
            raise _Unlucky("a point is a zero of a known factor")
        return values * below % places.p * invert(above, places.p) % places.p

    # 1 ------------------------------------------------------------------------------------------------------------

    def _find_factors(self) -> None:
        p, everything = next(self.primes), range(self.count)
        bases: list[list[tuple[int, ...]]] = []
        slices: list[list[dict[int, tuple[np.ndarray, np.ndarray]]]] = []
        for i in range(len(self.variables)):
            mine, size = [], 10
            bases.append([])
            for _ in range(min(2, len(self.variables))):
                base = self._draw(p)
                bases[i].append(base)
                mine.append(self._along(p, lambda t, base=base, i=i: (*base[:i], t, *base[i + 1 :]), False, everything, size))
                size = max(len(n) + len(d) for n, d in mine[0].values()) - 1 + REDUNDANT_POINTS
            slices.append(mine)
        self.known = partial(Letters, bases=bases, p=p)
        letters = self.known(self.letters if len(bases) > 1 else ())
        rests: list[list[list[list[np.ndarray]]]] = [[], []]
        for f, function in enumerate(self.functions):
            for side, factors in enumerate((function.above, function.below)):
                rest = [self._without_linear(i, [some[f][side] for some in mine], factors, p) for i, mine in enumerate(slices)]
                factors |= letters.divide_out(rest)
                rests[side].append(rest)
        self.degrees, self.rests = [degrees_of(rest) for rest in rests[0]], rests[1]
        self._find_total_degrees(p)

    def _without_linear(self, i: int, parts: list[np.ndarray], factors: Factors, p: int) -> list[np.ndarray]:
        """Polynomials on slices without the linear factors in variable i alone, which go to factors."""
        if any(len(part) != len(parts[0]) or not len(part) for part in parts):
            raise _Unlucky("degrees differ between two lines")
        for (a, b), multiplicity in linear_factors(greatest_common_divisor(parts[0], parts[-1], p), p).items():
            factors[affine([a if j == i else 0 for j in range(len(self.variables))] + [-b])] = multiplicity
            for _ in range(multiplicity):
                parts = [divide(part, np.array([-b % p, a]), p)[0] for part in parts]
        return parts

    def _find_total_degrees(self, p: int) -> None:
        """Degrees of the numerators in all variables but d together, and where the grid would be large, in pairs of them."""
        self.sums, size = {}, 10
        pairs = list(itertools.combinations(self.summed, 2))
        for moving in dict.fromkeys([self.summed, *pairs]) if pairs else ():
            if self.sums and max(map(self._largest_size, range(self.count))) < PAIRS_PAY * len(pairs) * size:
                break
            base, direction = self._draw(p), self._draw(p)
            line = self._along(
                p,
                lambda t, b=base, d=direction, moving=moving: tuple(
                    (x + t * z) % p if i in moving else x for i, (x, z) in enumerate(zip(b, d))
                ),
                True,
                range(self.count),
                size,
            )
            self.sums[moving] = [len(line[f][0]) - 1 for f in range(self.count)]
            size = max(len(n) + len(d) for n, d in line.values()) - 1 + REDUNDANT_POINTS
            for f in range(self.count):
                if any(len(part) - 1 > sum(some[i] for i in moving) for part, some in zip(line[f], (self.degrees[f], self.left(f)))):
                    raise _Unlucky("a factor is none on a line of several variables")

    def _total(self, f: int) -> int:
        """Degree of a numerator in all variables but d together."""
        return self.sums[self.summed][f] if self.sums else sum(self.degrees[f][i] for i in self.summed)

    def _largest_size(self, f: int) -> int:
        """How many terms a numerator may have, as far as degrees in one and in all variables say."""
        free = math.prod(degree + 1 for i, degree in enumerate(self.degrees[f]) if i not in self.summed)
        return free * count_exponents([self.degrees[f][i] for i in self.summed], self._total(f))

    def left(self, f: int) -> tuple[int, ...]:
        """Degrees of what is left of a denominator without known factors."""
        return degrees_of(self.rests[f])

    def _cost(self, f: int) -> int:
        """About how many points it takes to find what is left of a denominator."""
        *limits, _ = sorted(filter(None, self.left(f)))
        moved = sum(degree for i, degree in enumerate(self.degrees[f]) if self.left(f)[i] and i not in self.summed)
        return count_exponents(limits, sum(self.left(f))) * (sum(self.left(f)) + self._total(f) + moved + REDUNDANT_POINTS)

    def _forecast(self) -> None:
        """Say what is to come at least, where that is much: the first prime of the largest numerator, and of one denominator."""
        points = min((self._cost(f) for f in range(self.count) if any(self.left(f))), default=0)
        self.boxes = [
            lower_set([(self.degrees[f], [(summed, totals[f]) for summed, totals in self.sums.items()])]) for f in range(self.count)
        ]
        points += max(map(len, self.boxes))
        if points > MANY_POINTS:
            self.say(f"degrees {self.describe_degrees()}; for the first prime alone at least {self.announce(points)}")

    # 2 ------------------------------------------------------------------------------------------------------------

    def _find_denominators(self) -> None:
        """The cheapest first: the factors of one are looked for in all others, as letters are."""
        while remaining := [f for f in range(self.count) if any(self.left(f))]:
            costs = {f: (self._cost(f), self.left(f)) for f in remaining}
            chosen = [f for f in remaining if costs[f] == min(costs.values())]
            factors = [factor for poly in self._denominators(chosen) for factor, _ in _factors(poly, self.variables)]
            letters = self.known(list(dict.fromkeys(map(frozen, factors))))
            for f in remaining:
                self.functions[f].below |= letters.divide_out(self.rests[f])
            if any(any(self.left(f)) for f in chosen):
                raise _Unlucky("a denominator does not divide itself")

    def _denominators(self, chosen: list[int]) -> list[Monomials]:
        """What is left of denominators with the same degrees; one prime may do, since the slices are modulo another."""
        supports: dict[int, list[tuple[int, ...]]] = {}

        def images(batch: list[int], wanted: list[int]) -> dict[int, dict[int, list[int]]]:
            result: dict[int, dict[int, list[int]]] = {}
            for p in batch:
                result[p] = {}
                for f, poly in self._denominators_modulo(p, wanted).items():
                    terms = supports.setdefault(f, sorted(poly, reverse=True))
                    if not set(poly) <= set(terms) or terms[0] not in poly:
                        raise _Unlucky("a denominator has other terms")
                    inverse = pow(poly[terms[0]], -1, p)
                    result[p][f] = [poly.get(exponents, 0) * inverse % p for exponents in terms]
            return result

        def polynomial(f: int, numbers: list[Fraction]) -> Monomials:
            return primitive({e: value for e, value in zip(supports[f], numbers) if value})[1]

        def confirmed(candidates: dict[int, list[Fraction]]) -> list[int]:
            polys = {f: frozen(polynomial(f, numbers)) for f, numbers in candidates.items()}
            letters = self.known(list(dict.fromkeys(polys.values())))
            return [f for f, poly in polys.items() if letters.divides(poly, self.rests[f])]

        return [polynomial(f, numbers) for f, numbers in self._lift(chosen, images, 1, None, confirmed).items()]

    def _denominators_modulo(self, p: int, chosen: list[int]) -> dict[int, Monomials]:
        """What is left of denominators with the same degrees, up to a factor."""
        limits = {i: degree for i, degree in enumerate(self.left(chosen[0])) if degree}
        active = tuple(sorted(limits, key=lambda i: -limits[i]))  # the directions are 1 in the first, where it saves most
        base, shift = self._draw(p), self._draw(p)

        def place(t: int, z: Sequence[int]) -> tuple[int, ...]:
            point = list(base)
            for i, value in zip(active, z):
                point[i] = (shift[i] + t * value) % p
            return tuple(point)

        direction = (1, *self._draw(p, len(active) - 1))
        first = self._along(p, lambda t: place(t, direction), True, chosen)
        most = max(len(first[f][1]) - 1 for f in chosen)
        size = max(len(first[f][0]) + len(first[f][1]) for f in chosen) - 1 + REDUNDANT_POINTS
        nodes = [self._distinct(p, limits[i] + 1) for i in active[1:]]
        lattice = lower_set([([limits[i] for i in active[1:]], [(range(len(active) - 1), most)])])
        directions = [(1, *(int(some[e]) for some, e in zip(nodes, exponents))) for exponents in lattice]
        ts = self._distinct(p, size)
        points = [place(t, z) for z in directions for t in ts.tolist()]
        values, places = self._values([(p, point) for point in points]), Places(points, p)
        result = {}
        for f in chosen:
            mine = self._stripped(f, values[:, f], places).reshape(len(lattice), size)
            lines = self._denominators_on_lines(ts, mine, len(first[f][1]) - 1, p)
            coefficients = interpolate(nodes, lattice, lines, p)
            poly = {
                (k - sum(exponents), *exponents): int(coefficients[number, k])
                for number, exponents in enumerate(lattice)
                for k in range(sum(exponents), lines.shape[1])
                if coefficients[number, k]
            }
            poly = shift_back(poly, [shift[i] for i in active], p)
            result[f] = {self._spread(exponents, active): value for exponents, value in poly.items()}
        return result

    @staticmethod
    def _denominators_on_lines(ts: np.ndarray, values: np.ndarray, degree: int, p: int) -> np.ndarray:
        """Coefficients [lines, degree + 1] of the denominators of functions of t with values [lines, T], 1 at t = 0."""
        lines = np.zeros((len(values), degree + 1), np.int64)
        for number, line in enumerate(values):
            function = rational_interpolation(ts, line, p)
            if function is None or len(function[1]) != degree + 1 or not function[1][0]:
                raise _Unlucky("a line has another degree")
            lines[number] = function[1] * pow(int(function[1][0]), -1, p) % p
        return lines

    def _spread(self, exponents: tuple[int, ...], active: tuple[int, ...]) -> tuple[int, ...]:
        """Exponents of all variables."""
        own = dict(zip(active, exponents))
        return tuple(own.get(i, 0) for i in range(len(self.variables)))

    # 3 ------------------------------------------------------------------------------------------------------------

    def _find_numerators(self) -> None:
        everything = list(range(self.count))
        grid = sorted(set().union(*self.boxes))
        supports: dict[int, list[tuple[int, ...]]] = {}
        first = next(self.primes)
        polys = self._on_grid([first], grid, everything)[first]
        self._must_predict(polys, first)
        for f, poly in polys.items():
            if not set(poly) <= set(self.boxes[f]):
                raise _Unlucky("a numerator has a higher degree than expected")
            supports[f] = sorted(poly, reverse=True)
        terms = max(map(len, supports.values()))
        sparse = bool(self.variables) and terms < SPARSE_SHARE * len(grid)
        expected = self._expected_primes(len(grid), terms if sparse else len(grid))

        def images(batch: list[int], wanted: list[int]) -> dict[int, dict[int, list[int]]]:
            polys = self._sparsely(batch, supports, wanted) if sparse else self._on_grid(batch, grid, wanted)
            result: dict[int, dict[int, list[int]]] = {}
            for p, some in polys.items():
                if any(not set(poly) <= set(supports[f]) for f, poly in some.items()):
                    raise _Unlucky("a numerator has other terms than at the first prime")
                result[p] = {f: [poly.get(e, 0) for e in supports[f]] for f, poly in some.items()}
            return result

        known = {first: {f: [poly[e] for e in supports[f]] for f, poly in polys.items()}}
        confirmed = partial(self._confirmed, supports=supports) if terms > 2 * CONFIRMING_POINTS else None
        for f, numbers in self._lift(everything, images, expected, known, confirmed).items():
            content, poly = primitive({e: value for e, value in zip(supports[f], numbers) if value})
            self.functions[f].factor, self.functions[f].numerator = content, poly

    def _must_predict(self, polys: dict[int, Monomials], p: int) -> None:
        """Raises _Unlucky where a numerator modulo a prime is not this polynomial: degrees or the denominator are wrong."""
        points = [self._draw(p) for _ in range(2)]
        values, places = self._values([(p, point) for point in points]), Places(points, p)
        for f, poly in polys.items():
            if (evaluate_monomials(poly, places.points, p) != self._stripped(f, values[:, f], places)).any():
                raise _Unlucky("a numerator is not a polynomial of the degrees that were found")

    def _confirmed(self, candidates: dict[int, list[Fraction]], supports: dict[int, list[tuple[int, ...]]]) -> list[int]:
        """Functions whose numerators have these coefficients at points modulo a prime that was not used."""
        p = next(self.primes)
        points = [self._draw(p) for _ in range(CONFIRMING_POINTS)]
        (values, good), places, found = self.ask([(p, point) for point in points]), Places(points, p), []
        for f, numbers in candidates.items():
            if good.all() and all(value.denominator % p for value in numbers):
                poly = {e: value.numerator * pow(value.denominator, -1, p) for e, value in zip(supports[f], numbers)}
                if (evaluate_monomials(poly, places.points, p) == self._stripped(f, values[:, f], places)).all():
                    found.append(f)
        return found

    def _on_grid(self, batch: list[int], grid: list[tuple[int, ...]], chosen: list[int]) -> dict[int, dict[int, Monomials]]:
        """Numerators modulo each prime of a batch from points of a full grid."""
        limits = [max(exponents[i] for exponents in grid) for i in range(len(self.variables))]
        nodes = {p: [self._distinct(p, limit + 1) for limit in limits] for p in batch}
        points = {p: [tuple(int(some[e]) for some, e in zip(nodes[p], exponents)) for exponents in grid] for p in batch}
        values = self._values([(p, point) for p in batch for point in points[p]]).reshape(len(batch), len(grid), self.count)
        result: dict[int, dict[int, Monomials]] = {}
        for p, mine in zip(batch, values):
            places = Places(points[p], p)
            columns = np.stack([self._stripped(f, mine[:, f], places) for f in chosen], axis=1)
            coefficients = interpolate(nodes[p], grid, columns, p)
            result[p] = {f: {e: int(c) for e, c in zip(grid, coefficients[:, k].tolist()) if c} for k, f in enumerate(chosen)}
        return result

    def _sparsely(self, batch: list[int], supports: dict[int, list[tuple[int, ...]]], chosen: list[int]) -> dict[int, dict[int, Monomials]]:
        """Numerators with known terms, from as many points of a geometric sequence."""
        count = max(len(supports[f]) for f in chosen)
        starts, points = {}, {}
        for p in batch:
            start, ratio = starts[p] = self._draw(p), self._draw(p)
            points[p] = [tuple(s * pow(r, k, p) % p for s, r in zip(start, ratio)) for k in range(count)]
        values = self._values([(p, point) for p in batch for point in points[p]]).reshape(len(batch), count, self.count)
        result: dict[int, dict[int, Monomials]] = {}
        for p, mine in zip(batch, values):
            places, result[p] = Places(points[p], p), {}
            start, ratio = starts[p]
            for f in chosen:
                terms = np.array(supports[f]).reshape(len(supports[f]), -1)
                bases = monomial_values(terms, ratio, p)
                if len(np.unique(bases)) < len(bases):
                    raise _Unlucky("two terms cannot be told apart")
                solved = solve_geometric(bases, self._stripped(f, mine[:, f], places), p)
                numbers = solved * invert(monomial_values(terms, start, p), p) % p
                result[p][f] = dict(zip(supports[f], numbers.tolist()))
        return result

    # 4 ------------------------------------------------------------------------------------------------------------

    def _lift(
        self,
        chosen: list[int],
        images: Callable[[list[int], list[int]], dict[int, dict[int, list[int]]]],
        expected: int,
        known: dict[int, dict[int, list[int]]] | None = None,
        confirmed: Callable[[dict[int, list[Fraction]]], list[int]] | None = None,
    ) -> dict[int, list[Fraction]]:
        """Vectors of rational numbers from images(primes, functions) = {prime: {function: residues}}; about so many primes are expected.

        known: images that are there already; confirmed: which candidates need no further prime (else: those that predict one).
        """
        lifts = {f: Lift() for f in chosen}
        found, used, unlucky = known or {}, len(known or {}), 0
        while True:
            for p, vectors in found.items():
                for f, residues in vectors.items():
                    if not lifts[f].done:
                        lifts[f].add(residues, p)
            candidates = {f: lift.candidate for f, lift in lifts.items() if not lift.done and lift.candidate is not None}
            for f in confirmed(candidates) if confirmed and candidates else ():
                lifts[f].done = True
            wanted = [f for f in chosen if not lifts[f].done]
            if not wanted:
                break
            if used > MOST_PRIMES:
                raise ReductionError(f"coefficients do not settle within {MOST_PRIMES} primes")
            batch = [next(self.primes) for _ in range(max(min(expected - used, 64), 1 + used // 10))]
            try:
                found = images(batch, wanted)
                used += len(batch)
            except _Unlucky:
                found, unlucky = {}, unlucky + 1
                if unlucky > ATTEMPTS * (1 + used // 10):
                    raise
        self.used_primes = used
        return {f: lift.candidate for f, lift in lifts.items()}

    def _expected_primes(self, grid: int, points: int) -> int:
        """From the size of the numbers at a small rational point; says what is to come."""
        place = tuple((101, 103, 107, 109, 113, 127, 131)[: len(self.variables)])
        expected = 1
        if len(place) == len(self.variables) and points > FORESEEN_POINTS:
            try:
                numbers = self._lift(list(range(self.count)), lambda batch, wanted: self._at(place, batch, wanted), 8)
            except _Unlucky:
                numbers = {}
            for f, (number, *_) in numbers.items():
                bits = number.numerator.bit_length() + number.denominator.bit_length()
                inside = sum(degree * math.log2(x) for degree, x in zip(self.degrees[f], place))
                expected = max(expected, 1 + int(max(bits - inside / 2, 0) / 30.9 + 0.5))
        told = f"degrees {self.describe_degrees()}; {grid:,} points for the first prime, {points:,} for each of about {expected - 1} more"
        self.say(f"{told}: {self.announce(grid + (expected - 1) * points)}")
        return expected

    def _at(self, place: tuple[int, ...], batch: list[int], chosen: list[int]) -> dict[int, dict[int, list[int]]]:
        values = self._values([(p, place) for p in batch])
        places = {p: Places([place], p) for p in batch}
        return {p: {f: [int(self._stripped(f, row[f : f + 1], places[p])[0])] for f in chosen} for p, row in zip(batch, values)}

    def describe_degrees(self) -> str:
        """Largest degrees of numerators and denominators in each variable, factors included."""
        texts = []
        for i, name in enumerate(self.variables):
            above = max(some[i] + degree_of(function.above, i) for some, function in zip(self.degrees, self.functions))
            below = max(self.left(f)[i] + degree_of(function.below, i) for f, function in enumerate(self.functions))
            texts.append(f"{name}: {above}/{below}")
        return ", ".join(texts) or "0"

    def _check(self) -> None:
        """Raises _Unlucky where a function is not what fresh points modulo fresh primes say."""
        samples = [(p, self._draw(p)) for p in (next(self.primes), next(self.primes)) for _ in range(2 if self.variables else 1)]
        values, good = self.ask(samples)
        if not good.any():
            raise _Unlucky("no point to check with")
        for (p, point), row in zip([s for s, g in zip(samples, good) if g], values[good]):
            places = Places([point], p)
            for f, function in enumerate(self.functions):
                above, below = function.evaluate(places)
                if (int(above[0]) - int(row[f]) * int(below[0])) % p or not below[0]:
                    raise _Unlucky("a function fails at a fresh point")


# running it ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExactProblem:
    """A problem with rational numbers for what is given, and functions of the symbols; the prime of the problem's point plays no role."""

    problem: Problem
    symbols: tuple[str, ...] = ()

    @property
    def given(self) -> dict[str, Fraction]:
        """d and the invariants that have numbers."""
        point = self.problem.point
        return {name: value for name, value in (("d", point.d), *point.invariants) if name not in self.symbols}

    def columns(self) -> tuple[Column, ...]:
        """What is to be expressed through masters. Raises InputError for undefined symbols and divisions by zero in combinations."""
        problem = self.problem
        units = (unit_column(target, len(problem.family.symbols)) for target in problem.targets)
        return (*units, *(combination.exact(problem.family, self.given) for combination in problem.combinations))

    @property
    def label(self) -> str:
        """What is done, for people."""
        kind = f"as functions of {', '.join(self.symbols)}" if self.symbols else "in rational numbers"
        return f"{show_targets(self.problem.keys)} of {self.problem.family.name} {kind}"

    @property
    def heading(self) -> str:
        """Of a summary."""
        given = show_values(self.given.items())
        return f"{self.problem.family.name} {f'at {given}, ' if given else ''}exact"

    def record(self, outcome: ExactOutcome) -> dict[str, Any]:
        """What the pickle holds."""
        return result_record(self.problem, outcome, self.symbols)

    def lines(self, outcome: ExactOutcome) -> list[str]:
        """The result for a person, cut short."""
        (target, expression), *others = outcome.reductions.items()
        more = [f"and {len(others)} more {'targets' if self.problem.combinations else 'integrals'}"] if others else []
        return [self.heading, *expression_lines(target, expression), *more]

    @property
    def name(self) -> str:
        return run_name(self.label, *self._parts)

    @property
    def _parts(self) -> tuple:
        return self.problem.parts(tuple(self.given.items()), self.symbols)


def probe_points(trace: Shared, primes: list[int], values: bytes, device: str) -> dict[str, Any]:
    """`probe` as a task: values int64 [symbols, P] of d and the invariants; the result has builtin types only."""
    started = time.monotonic()
    coefficients, good = probe(trace.get(), primes, np.frombuffer(values, np.int64).reshape(-1, len(primes)), device)
    return {
        "values": coefficients.astype(np.int64).tobytes(),
        "good": good.astype(np.int8).tobytes(),
        "seconds": time.monotonic() - started,
        "peak_memory_kb": peak_memory_kb(),
    }


def unpack_points(values: Any, good: Any, primes: Sequence[int], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Residues [P, F] and good [P] from a task or a journal. Raises ValueError or TypeError where they are not that."""
    table = np.frombuffer(values, np.int64).reshape(len(primes), count)
    flags = np.frombuffer(good, np.int8)
    limits = np.array(primes, np.int64).reshape(-1, 1)
    if len(flags) != len(primes) or not np.isin(flags, (0, 1)).all() or not ((table >= 0) & (table < limits)).all():
        raise ValueError("not residues of these points")
    return table, flags == 1


class Sampler:
    """Coefficients of a problem at sample points: from the journal, else by tasks; where a trace fails at a point, by a run of its own.

    Once prepared it has rows: names of what is expressed through masters; basis: masters that a result names even if nothing has them;
    names: (row, master) of each coefficient, of these `variables`, with one more set to 1 if there is a scale.
    """

    order: Callable[[Any], Any] = staticmethod(weight)  # sort key of masters

    def __init__(
        self,
        exact: ExactProblem,
        executor: Any,
        shelves: Sequence[Store],
        progress: Progress,
        journal: Journal,
        directory: RunDirectory,
        options: Options,
    ):
        self.directory, self.quiet = directory, options.quiet
        self.exact, self.executor, self.shelves, self.progress, self.journal = exact, executor, shelves, progress, journal
        self.device, self.task_seconds = options.device, options.job_seconds or (60.0 if options.condor else 4.0)
        self.shares = 1 if options.condor else executor.processes  # a job of HTCondor is not worth its start if it is short
        self.known: dict[Sample, np.ndarray | None] = {}
        self.counts = {"points": 0, "resumed": 0, "unlucky": 0, "tasks": 0}
        self.seconds = self.memory = 0
        self.scale: str | None = None
        self.basis: Sequence[Any] = ()

    # setting up ---------------------------------------------------------------------------------------------------

    def prepare(self, rng: np.random.Generator) -> None:
        """Record the trace at a random point, and see that it serves others. Raises ReductionError."""
        self.columns = self._find_columns(rng)
        for _ in range(ATTEMPTS):
            primes = list(itertools.islice(probe_primes(rng), 9))
            problem = self._problem_at(primes[0], self._random(rng, primes[0]))
            trace, outcome = record_trace(problem, self.shelves, self.progress)
            others = [(p, self._random(rng, p)) for p in primes[1:] for _ in range(2)]
            places = [self._point(p, values).residues() for p, values in others]
            began = time.perf_counter()
            _, good = probe(trace, [p for p, _ in others], np.array(places, np.int64).T)
            self.first_guess = (time.perf_counter() - began) / len(others)
            if good.all():
                break
        else:
            raise ReductionError("rules that hold at one point fail at others: the given numbers are a singular point; take others")
        self._set_up(trace, outcome)
        self.trace = Shared.write(trace, self.directory.shared)
        self.live = sum(sector.count for sector in trace.sectors)

    def _find_columns(self, rng: np.random.Generator) -> tuple[Column, ...]:
        """What is expressed through masters. Raises ReductionError, InputError."""
        return self.exact.columns()

    def degree(self, row: Any, master: Index) -> int:
        """Mass dimension of a coefficient, in units of a squared mass; to be asked for where there is a scale."""
        return self.dimensions[row] + sum(master)

    def _set_up(self, trace: Trace, outcome: Outcome) -> None:
        """Which functions there are, of which variables."""
        self.rows, self.basis = tuple(column.name for column in self.columns), self.basis or outcome.masters
        self.relations = outcome.relations
        self.names = self.raw_names = trace.names
        if self.relations or self.exact.problem.preferred_masters:
            self.names = tuple((column.name, master) for column in self.columns for master in outcome.reductions[column.name])
        self.dimensions = {column.name: mass_dimension(column.terms) for column in self.columns}
        invariants = [name for name, _ in self.exact.problem.family.point]
        variables = list(self.exact.symbols)
        if invariants and set(invariants) <= set(variables):
            homogeneous = [*trace.operators, *(relation.terms for relation in self.relations)]
            if None not in (*self.dimensions.values(), *map(mass_dimension, homogeneous)):
                self.scale = invariants[0]
                variables.remove(self.scale)
        self.variables = tuple(variables)

    def letters(self) -> tuple[Polynomial, ...]:
        """Factors that mix variables and are looked for."""
        numbers = self.exact.given | ({self.scale: Fraction(1)} if self.scale else {})
        return kinematic_letters(self.exact.problem.family, self.variables, numbers)

    def _random(self, rng: np.random.Generator, p: int) -> dict[str, int]:
        return {name: int(rng.integers(1000, p - 1000)) for name in self.exact.symbols}

    def _point(self, p: int, values: dict[str, int]) -> Point:
        """Its residues are those of d and all invariants."""
        numbers = self.exact.given | values
        return Point(Fraction(numbers["d"]), tuple((name, Fraction(numbers[name])) for name, _ in self.exact.problem.family.point), p)

    def _problem_at(self, p: int, values: dict[str, int]) -> Problem:
        """The columns at a point."""
        point = self._point(p, values)
        return replace(self.exact.problem, point=point, targets=(), combinations=self.columns, map_integrals=False)

    def restore(self) -> None:
        """Take over what the journal holds. Raises ReductionError where it does not belong here."""
        names = None
        for _, record in self.journal.records():
            try:
                if names is None:
                    names = record["names"]
                    if names != self.names:
                        raise ValueError("other coefficients")
                    continue
                samples = [(int(p), tuple(map(int, place))) for p, place in record["samples"]]
                table, good = unpack_points(record["values"], record["good"], [p for p, _ in samples], len(names))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ReductionError(f"{self.journal.path}: not what this run has written ({error}); start anew with --fresh") from None
            self.known |= {sample: row if flag else None for sample, row, flag in zip(samples, table, good)}
        if names is None:
            self.journal.append({"names": self.names})
        elif self.known:
            self.counts["resumed"] = len(self.known)
            self.progress.say(f"going on: {len(self.known):,} points are done already")

    # asking -------------------------------------------------------------------------------------------------------

    def __call__(self, samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
        missing = [sample for sample in dict.fromkeys(samples) if sample not in self.known]
        if missing:
            self._compute(missing)
        return self._table([self.known[sample] for sample in samples])

    def _table(self, rows: Sequence[np.ndarray | None]) -> tuple[np.ndarray, np.ndarray]:
        """Lines [P, F], zeros where there is none, and good [P]."""
        nothing = np.zeros(len(self.names), np.int64)
        lines = np.array([nothing if row is None else row for row in rows], np.int64).reshape(len(rows), len(self.names))
        return lines, np.array([row is not None for row in rows], bool)

    def announce(self, line: str) -> None:
        if not self.quiet:
            self.progress.say(line)

    def estimate(self, points: int) -> str:
        """What so many further points take."""
        return f"{points:,} points, some {format_seconds(points * self.seconds_per_point / self.shares)}"

    @property
    def seconds_per_point(self) -> float:
        return self.seconds / self.counts["points"] if self.counts["points"] else self.first_guess

    def _compute(self, missing: list[Sample]) -> None:
        left, running = deque(missing), {}
        done = 0
        while left or running:
            while left and len(running) < 2 * self.executor.processes:
                chunk = [left.popleft() for _ in range(min(self._task_size(len(missing)), len(left)))]
                running[self._submit(chunk)] = chunk
            settled = wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done
            for future in settled:
                chunk = running.pop(future)
                self._take(chunk, future.result())
                self.executor.forget(future)
                done += len(chunk)
            if self.directory.stop_request.exists():
                self.journal.sync()
                raise StopRequested
            text = f"{self.counts['points']:,} in all, {self.estimate(len(missing) - done)} left of these"
            self.progress.show("points", done, len(missing), text)
        self.journal.sync()

    def _task_size(self, points: int) -> int:
        """Points for a task of task_seconds, or what gives every process something to do; few at a time cost up to five times as much."""
        size = max(int(self.task_seconds / max(self.seconds_per_point, 1e-6)), POINTS_AT_ONCE // 2)
        return max(min(size, -(-points // self.shares), 100_000), 8)

    def _submit(self, chunk: list[Sample]) -> Future:
        places = np.array([self._point(p, self._named(values)).residues() for p, values in chunk], np.int64).T
        return self.executor.submit(probe_points, self.trace, [p for p, _ in chunk], np.ascontiguousarray(places).tobytes(), self.device)

    def _named(self, values: Sequence[int]) -> dict[str, int]:
        return dict(zip(self.variables, values)) | ({self.scale: 1} if self.scale else {})

    def _take(self, chunk: list[Sample], result: dict[str, Any]) -> None:
        """Rows of a task; bad points are done again by a run of their own, and all of it goes to the journal."""
        table, good = unpack_points(result["values"], result["good"], [p for p, _ in chunk], len(self.raw_names))
        rows = [self._row(sample, row if flag else None) for sample, row, flag in zip(chunk, table, good)]
        self.counts["points"] += len(chunk)
        self.counts["tasks"] += 1
        self.seconds += result["seconds"]
        self.memory = max(self.memory, result["peak_memory_kb"])
        if self.counts["unlucky"] > 20 + self.counts["points"] // 10:
            raise ReductionError("the rules fail at too many points: the given numbers are a singular point; take others")
        lines, sound = self._table(rows)
        self.journal.append({"samples": chunk, "values": lines.tobytes(), "good": sound.tobytes()})
        self.known |= dict(zip(chunk, rows))

    def _row(self, sample: Sample, raw: np.ndarray | None) -> np.ndarray | None:
        """Values in the order of names, None where there are none at this point."""
        if raw is not None and self.names is self.raw_names:
            return raw
        self.counts["unlucky"] += raw is None
        try:
            rows = self._alone(sample) if raw is None else self._expressed(raw, sample[0])
        except (InputError, SingularPoint):  # modulo this prime only
            return None
        values = {(column.name, master): value for column in self.columns for master, value in rows.get(column.name, {}).items()}
        if not rows or not values.keys() <= set(self.names):
            return None
        return np.array([values.get(name, 0) for name in self.names], np.int64)

    def _expressed(self, raw: np.ndarray, p: int) -> dict[Any, Expression]:
        """All columns through the masters of the result, from the values of a trace. Raises SingularPoint, InputError."""
        preferred = self.exact.problem.preferred_masters
        rows: dict[Any, Expression] = {named.name: {} for named in (*self.columns, *self.relations)} | {master: {} for master in preferred}
        for (name, master), value in zip(self.raw_names, raw.tolist()):
            if value:
                rows[name][master] = value
        return change_basis(use_relations(rows, self.relations, p), preferred, p)

    def _alone(self, sample: Sample) -> dict[Any, Expression]:
        """All columns at a point by a run of its own; {} where something is not reduced there. Raises SingularPoint, InputError."""
        p, values = sample
        problem = self._problem_at(p, self._named(values))
        outcome = Controller(problem, InlineExecutor(), self.shelves, Progress(quiet=True)).run()
        return {} if outcome.unreduced else outcome.reductions


@dataclass
class ExactOutcome:
    """reductions: every target through masters, combinations by name, with Fractions or with strings that sympy parses."""

    reductions: dict[Any, dict[Any, Fraction | str]]
    masters: list[Index]
    statistics: dict[str, Any]
    seconds: float
    peak_memory_kb: int
    unreduced: list[Index] = field(default_factory=list)  # what is not reduced is an error


def reconstruct_problem(exact: ExactProblem | SystemProblem, sampler: Sampler) -> ExactOutcome:
    """Raises ReductionError."""
    started = time.perf_counter()
    seed = int.from_bytes(hashlib.sha256(exact.name.encode()).digest()[:8], "big")
    rng = np.random.default_rng(seed)
    sampler.prepare(rng)
    sampler.restore()
    work = Reconstruction(sampler, sampler.variables, len(sampler.names), rng, sampler.announce, sampler.estimate, sampler.letters())
    functions = work.run()
    reductions: dict[Any, dict[Any, Fraction | str]] = {row: {} for row in sampler.rows}
    for (target, master), function in sorted(zip(sampler.names, functions), key=lambda named: sampler.order(named[0][1]), reverse=True):
        scale = (sampler.scale, sampler.degree(target, master)) if sampler.scale else None
        reductions[target][master] = function.text(sampler.variables, scale) if exact.symbols else function.factor
    statistics = {
        "integrals": sampler.live,
        "functions": len(functions),
        **sampler.counts,
        "primes": work.used_primes,
        "degrees": work.describe_degrees() if functions else "",
        "seconds_per_point": sampler.seconds_per_point,
    }
    memory = max(sampler.memory, peak_memory_kb())
    basis = sorted({*sampler.basis, *(master for _, master in sampler.names)}, key=sampler.order)
    return ExactOutcome(reductions, basis, statistics, time.perf_counter() - started, memory)


# =====================================================================================================================
# Differential equations
# =====================================================================================================================

# Integrals are functions of the invariants through the products p_a.p_b and the masses. The operator sum_ij c_ij p_i . d/dp_j, with c such
# that it acts as d/dx on all p_a.p_b, turns the derivative of an integral into a combination of integrals (Remiddi, hep-th/9711188;
# Gehrmann, Remiddi, hep-ph/9912329). In d there is a difference equation: I at d - 2 is the polynomial U of the Feynman parameters with
# x_b -> a_b * (raise index b), applied to I at d (Tarasov, hep-th/9606018), with the Euclidean measure d^dk/pi^(d/2) for every loop.

Row = tuple[Any, ...]  # (variable, *indices of a master)
MOST_ROWS_SHOWN = 60


def differentiate(family: Family, variable: str, numbers: dict[str, Fraction]) -> Operator:
    """d/d variable of an integral with indices a: the sum over the operator's terms of (sum_i c_i a_i) I[a + shift].

    numbers: invariants that have them; they are put in first, since at singular points not every operator exists, but one always does.
    Raises InputError where nothing depends on the variable.
    """
    algebra = Algebra(family, numbers=numbers)
    functions, momenta, propagators, externals = algebra.functions, algebra.momenta, algebra.propagators, algebra.externals
    x, loops = algebra.names[variable], len(family.loop_momenta)
    changes = [algebra.ring.from_dict({e: c for e, value in form.terms() if (c := value.diff(x))}) for form in propagators]
    slopes = [mass.diff(x) for mass in algebra.masses]
    if not any((*changes, *slopes, *(value.diff(x) for value in externals.values()))):
        raise InputError(f"--differential-equation {variable}: neither the kinematics nor the propagators of {family.name} depend on it")
    gradients = [[form.diff(momentum) for momentum in momenta[loops:]] for form in propagators]
    uses = [sum(map(bool, column)) for column in zip(*gradients)]
    c = _momentum_changes(externals, uses, x, functions)
    terms: dict[Index, dict[int, Any]] = {}
    for b, form in enumerate(changes):
        form = form + sum((momenta[loops + i] * gradients[b][j] * value for (i, j), value in c.items()), algebra.ring.zero)
        *linear, constant = algebra.in_propagators(form)
        for k, value in enumerate([*linear, constant - slopes[b]]):
            if value:
                shift = tuple((i == b) - (i == k) for i in range(family.n))
                terms.setdefault(shift, {})[b + 1] = -value + terms.get(shift, {}).get(b + 1, functions.zero)
    return _freeze_operator(terms)


def _momentum_changes(externals: dict, uses: Sequence[int], x: Any, functions: Any) -> dict[tuple[int, int], Any]:
    """c_ij with sum_ij c_ij p_i . d/dp_j = d/dx on all products of external momenta; zeros left out.

    With the matrix G of the products that is G c + (G c)^T = dG/dx. It has solutions even where det G = 0 for all x: for null vectors v
    and w of G the derivative of v.Gw = 0 is v.(dG/dx)w = 0. Of the many (they differ by Lorentz transformations) one with derivatives for
    momenta that few propagators have (uses).
    """
    from sympy.polys.matrices import DomainMatrix

    count, zero = len(uses), functions.zero
    unknowns = sorted(itertools.product(range(count), repeat=2), key=lambda pair: (uses[pair[1]], -pair[1], pair[0]))
    rows = []
    for a, b in itertools.combinations_with_replacement(range(count), 2):
        acts = [(externals[i, b] if j == a else zero) + (externals[a, i] if j == b else zero) for i, j in unknowns]
        rows.append([*acts, externals[a, b].diff(x)])
    if not rows:
        return {}
    reduced, pivots = DomainMatrix(rows, (len(rows), len(unknowns) + 1), functions.to_domain()).rref()
    return {unknowns[k]: row[-1] for k, row in zip(pivots, reduced.to_list()) if row[-1]}


def graph_polynomial(family: Family) -> list[tuple[Index, Any]]:
    """U = det of the quadratic form of sum_b x_b D_b in the loop momenta, as [(exponents of x_1 … x_n, coefficient)]."""
    from sympy import Dummy
    from sympy.polys.rings import ring

    algebra, loops = Algebra(family), len(family.loop_momenta)
    momenta = algebra.momenta
    parameters, *x = ring([Dummy() for _ in range(family.n)], algebra.functions.to_domain())
    matrix = np.full((loops, loops), parameters.zero, object)
    for b, form in enumerate(algebra.propagators):
        for i, j in itertools.product(range(loops), repeat=2):
            matrix[i, j] += x[b] * (form.diff(momenta[i]).diff(momenta[j]).coeff(1) / 2)
    determinant = determinant_of(matrix, parameters.one)
    return [(tuple(map(int, exponents)), value) for exponents, value in determinant.terms()]


def derivative_of(operator: Operator, integral: Index) -> Operator:
    """The operator of `differentiate` at an integral: (integral, coefficients to be added up), those that are zero left out."""
    terms = []
    for shift, coefficients in operator:
        parts = tuple(
            (i, tuple((exponents, value * integral[i - 1]) for exponents, value in above), below)
            for i, above, below in coefficients
            if integral[i - 1]
        )
        if parts:
            terms.append((tuple(a + b for a, b in zip(integral, shift)), parts))
    return tuple(terms)


def lowered_dimension(polynomial: Sequence[tuple[Index, Any]], integral: Index) -> Operator:
    """The integral in d - 2 dimensions through integrals in d: each x_b**e becomes a_b (a_b + 1) … (a_b + e - 1) and raises a_b by e."""
    terms: dict[Index, dict[int, Any]] = {}
    for exponents, value in polynomial:
        factor = math.prod(a + k for a, e in zip(integral, exponents) for k in range(e))
        if factor:
            terms[tuple(a + e for a, e in zip(integral, exponents))] = {0: value * factor}
    return _freeze_operator(terms)


def equations_for(family: Family, variables: Sequence[str], masters: Sequence[Index], numbers: dict[str, Fraction]) -> dict[Row, Operator]:
    """The left sides of the equations for these masters as combinations of integrals, by (variable, *master). Raises InputError."""
    combinations: dict[Row, Operator] = {}
    for variable in variables:
        if variable == "d":
            polynomial = graph_polynomial(family)
            combinations |= {("d", *master): lowered_dimension(polynomial, master) for master in masters}
        else:
            operator = differentiate(family, variable, numbers)
            combinations |= {(variable, *master): derivative_of(operator, master) for master in masters}
    return combinations


@dataclass(frozen=True)
class DifferentialProblem(ExactProblem):
    """Equations in these variables for the masters of all sectors below those of the problem's targets and of the preferred masters."""

    variables: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        of = f"the masters of {self.problem.family.name} below {show(self.problem.targets[0])}"
        return f"differential equations in {', '.join(self.variables)} for {of}"

    @property
    def _parts(self) -> tuple:
        return (*super()._parts, self.variables)

    def record(self, outcome: ExactOutcome) -> dict[str, Any]:
        """The matrices in place of reductions, by variable, row and column."""
        matrices: dict[str, dict[Index, dict]] = {variable: {} for variable in self.variables}
        for (variable, *master), entries in outcome.reductions.items():
            matrices[variable][tuple(master)] = entries
        equation = {"masters": outcome.masters, "matrices": matrices}
        return super().record(replace(outcome, reductions={})) | {"differential_equation": equation}

    def lines(self, outcome: ExactOutcome) -> list[str]:
        """The matrices: a line for each entry that is not zero."""
        width = max(map(len, map(show, outcome.masters)))
        lines = []
        for (variable, *master), row in outcome.reductions.items():
            left = f"{show(master)} at d-2" if variable == "d" else f"d/d{variable} {show(master)}"
            lines += [f"{left} =", *(term_lines(row, width) or ["  0"])]
        if len(lines) > MOST_ROWS_SHOWN:
            lines = [*lines[:MOST_ROWS_SHOWN], f"  ... and {len(lines) - MOST_ROWS_SHOWN:,} more lines in the result"]
        entries = sum(map(len, outcome.reductions.values()))
        about = f"{len(outcome.masters)} masters, equations in {', '.join(self.variables)}, {entries:,} entries that are not zero"
        return [f"{self.heading}: {about}", *lines]


class DifferentialSampler(Sampler):
    """Entries of the matrices at sample points: the integrals are put together before anything is reconstructed."""

    exact: DifferentialProblem

    def _find_columns(self, rng: np.random.Generator) -> tuple[Column, ...]:
        """Raises ReductionError, InputError."""
        p = next(probe_primes(rng))
        self.basis = self._find_basis(replace(self.exact.problem, point=self._point(p, self._random(rng, p))))
        numbers = {name: value for name, value in self.exact.given.items() if name != "d"}
        equations = equations_for(self.exact.problem.family, self.exact.variables, self.basis, numbers)
        return tuple(Column(row, terms) for row, terms in equations.items())

    def _find_basis(self, problem: Problem) -> tuple[Index, ...]:
        """Preferred masters, and the standard ones that they do not replace. Raises InputError, ReductionError."""
        preferred, p = problem.preferred_masters, problem.point.prime
        plain = replace(problem, targets=problem.targets + preferred, preferred_masters=())
        outcome = Controller(plain, InlineExecutor(), self.shelves, self.progress).run()
        if outcome.unreduced:
            raise ReductionError(
                f"{show(outcome.unreduced[0])} is not reducible at the given numbers and random values of the rest; if they are a singular "
                "point, such as d = 4, leave them symbols; masters are best of low rank"
            )
        reductions = change_basis({m: {m: 1} for m in outcome.masters} | outcome.reductions, preferred, p)
        basis = {*preferred, *(m for m in outcome.masters if reductions[m] == {m: 1})}
        if not basis:
            raise InputError(f"--differential-equation: every integral below {show(problem.targets[0])} is zero; there are no masters")
        return tuple(sorted(basis, key=weight))


# =====================================================================================================================
# Results
# =====================================================================================================================


def base_record(
    family: str, prime: int | None, values: dict[str, Fraction], symbols: Sequence[str], outcome: Outcome | ExactOutcome
) -> dict:
    """What every result has: builtin types only (and Fractions). values: of d and the invariants; symbols stay as their names."""
    shown = {name: name if name in symbols else plain_number(value) for name, value in values.items()}
    return {
        "format": 1,
        "success": not outcome.unreduced,
        "family": family,
        "prime": prime,
        "d": shown.pop("d", None),
        "kinematics": shown,
        "reductions": outcome.reductions,
        "masters": outcome.masters,
        "unreduced": outcome.unreduced,
        "steps": outcome.statistics.get("integrals"),
        "time": outcome.seconds,
        "peak_memory_kb": outcome.peak_memory_kb,
        "statistics": outcome.statistics,
        "version": __version__,
    }


def result_record(problem: Problem, outcome: Outcome | ExactOutcome, symbols: Sequence[str] | None = None) -> dict[str, Any]:
    """What the pickle holds, zeros left out. Coefficients are in 0 … prime - 1; of an exact run, in these symbols, Fractions or texts."""
    values = {"d": problem.point.d, **dict(problem.point.invariants)}
    record = base_record(problem.family.name, problem.point.prime if symbols is None else None, values, symbols or (), outcome)
    if problem.symmetries:
        record["symmetries"] = True
    if problem.cut:
        record["cuts"] = [cut_lines(problem.cut)]
    if problem.combinations:
        record["combinations"] = {combination.name: list(combination.terms) for combination in problem.combinations}
    if len(outcome.reductions) == 1:
        ((target, expression),) = outcome.reductions.items()
        record |= {"original_integral": target, "final_expr": expression}
    return record


def cut_lines(cut: int) -> list[int]:
    return [i + 1 for i in range(cut.bit_length()) if cut >> i & 1]


def merge_cuts(cuts: Sequence[int], outcomes: Sequence[Outcome]) -> Outcome:
    """One result from those of several cuts: the coefficient of an integral is that of every cut whose lines it has.

    It is the whole reduction if every sector with a master contains a cut. Raises ReductionError where two cuts contradict each other.
    """
    reductions: dict[Index, Expression] = {}
    for target in outcomes[0].reductions:
        merged: Expression = {}
        for integral in sorted({term for outcome in outcomes for term in outcome.reductions[target]}, key=weight, reverse=True):
            bits = sector_of(integral)
            values = {outcome.reductions[target].get(integral, 0) for cut, outcome in zip(cuts, outcomes) if cut & bits == cut}
            if len(values) > 1:
                raise ReductionError(
                    f"cuts give different coefficients of {show(integral)} in {show_target(target)}; take another --prime or point"
                )
            merged[integral] = values.pop()
        reductions[target] = merged
    masters, unreduced = ({x for outcome in outcomes for x in getattr(outcome, name)} for name in ("masters", "unreduced"))
    return joined_outcome(outcomes, reductions, masters, unreduced)


def joined_outcome(outcomes: Sequence[Outcome], reductions: dict, masters: Iterable[Index], unreduced: Iterable[Index]) -> Outcome:
    """What several runs came to, which took the sum of their times."""
    return Outcome(
        reductions,
        sorted(masters, key=weight),
        sorted(unreduced, key=weight),
        {name: sum(outcome.statistics[name] for outcome in outcomes) for name in outcomes[0].statistics},
        sum(outcome.seconds for outcome in outcomes),
        max(outcome.peak_memory_kb for outcome in outcomes),
        next((outcome.store_trouble for outcome in outcomes if outcome.store_trouble), ""),
    )


def describe_cuts(cuts: Sequence[int], lowest: Sequence[int]) -> str:
    """Whether a result is the whole reduction. lowest: sectors without non-zero subsectors, all of which have masters."""
    shown = " | ".join(",".join(map(str, cut_lines(cut))) for cut in cuts)
    unseen = [bits for bits in lowest if not any(cut & bits == cut for cut in cuts)]
    if not unseen:
        return f"cuts {shown}: they span all sectors, so this is the whole reduction"
    lines = " | ".join(",".join(map(str, cut_lines(bits))) for bits in unseen)
    return f"cuts {shown}: masters without these lines are left out, such as those of the lines {lines}"


def plain_number(value: Fraction) -> int | str:
    return int(value) if value.denominator == 1 else str(value)


def show_values(values: Iterable[tuple[str, Fraction]]) -> str:
    """Such as d=41, m1=1/2."""
    return ", ".join(f"{name}={plain_number(value)}" for name, value in values)


def show_point(point: Point) -> str:
    return f"{show_values((('d', point.d), *point.invariants))} modulo {point.prime}"


LONGEST_SHOWN = 160  # characters of a coefficient in a summary


def exact_summary(exact: ExactProblem, outcome: ExactOutcome, output: Path) -> str:
    """What a person wants to see at the end."""
    left = f"symmetries: {len(outcome.masters)} masters are left in use; " if exact.problem.symmetries else ""
    return "\n".join([*exact.lines(outcome), left + point_costs(outcome, "integrals"), f"written to {output}"])


def expression_lines(target: Index | str, expression: dict) -> list[str]:
    if not expression:
        return [f"{show_target(target)} = 0"]
    return [f"{show_target(target)} = sum of {len(expression)} terms", *term_lines(expression, max(map(len, map(show, expression))))]


def term_lines(expression: dict, width: int) -> list[str]:
    return [f"  {show(term):{width}}  {shortened(str(value))}" for term, value in expression.items()]


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}... ({len(text):,} characters)"


def point_costs(outcome: ExactOutcome, what: str) -> str:
    counts = outcome.statistics
    return (
        f"{counts['integrals']:,} {what} a point; {counts['points']:,} points ({1000 * counts['seconds_per_point']:.2f} ms each), "
        f"{counts['primes']} primes, degrees {counts['degrees']}; {outcome.seconds:.2f} s, {outcome.peak_memory_kb / 1024:.0f} MB"
    )


def write_output(path: Path, content: bytes, what: str = "output", remedy: str = "give another --output") -> None:
    """Atomically: a reader sees the old file or the new one. Raises ReductionError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content, sync=True)
    except OSError as error:
        raise ReductionError(f"{what} {path}: {error.strerror or error}; {remedy}") from None


def write_pickle(record: dict[str, Any], path: Path) -> None:
    """Raises ReductionError."""
    write_output(path, pickle.dumps(record, protocol=4))


def summary(problem: Problem, outcome: Outcome, output: Path) -> str:
    """What a person wants to see at the end."""
    counts = outcome.statistics
    lines = [f"{problem.family.name} at {show_point(problem.point)}"]
    if len(outcome.reductions) == 1:
        for target, expression in outcome.reductions.items():
            lines += expression_lines(target, expression)
    else:
        terms = {term for expression in outcome.reductions.values() for term in expression}
        what = "targets" if problem.combinations else "integrals"
        lines.append(f"{len(outcome.reductions)} {what} through {len(terms)} integrals")
    if outcome.unreduced:
        lines.append(f"NOT REDUCED ({len(outcome.unreduced)}): {' '.join(map(show, outcome.unreduced))}")
    lines.append(
        f"{counts['integrals']:,} integrals reduced in {counts['sectors']} sectors; {counts['hits']:,} cache hits; "
        f"{counts['rules']:,} new rules; {outcome.seconds:.2f} s, {outcome.peak_memory_kb / 1024:.0f} MB"
    )
    if problem.symmetries:
        lines.append(
            f"symmetries: {counts['mapped']:,} of them mapped to equivalent sectors; {len(outcome.masters)} masters are left in use"
        )
    if problem.beam is not None:
        count = counts["searches"]
        lines.append(f"{count:,} beam searches of {counts['search_steps'] / max(count, 1):.1f} steps on average")
    lines.append(f"written to {output}")
    return "\n".join(lines)


# =====================================================================================================================
# Several families
# =====================================================================================================================


Images = dict[Index, tuple[int, Expression]]  # of a family's masters: number of another family, integrals there


class JointFamilies:
    """Integrals of several families in one order: the indices of all families in a row, 0 for the others.

    At the same number of lines, those of an earlier family are the lighter ones.
    """

    def __init__(self, families: Sequence[Family]):
        self.names = [family.name for family in families]
        self.ends = list(itertools.accumulate(family.n for family in families))

    def joint(self, number: int, integral: Index) -> Index:
        before = self.ends[number] - len(integral)
        return (0,) * before + integral + (0,) * (self.ends[-1] - self.ends[number])

    def label(self, joint: Index | str) -> str:
        """Such as box[1,0,1,1]; names of combinations stay."""
        if isinstance(joint, str):
            return joint
        place = next((i for i, a in enumerate(joint) if a), 0)
        number = next(number for number, end in enumerate(self.ends) if place < end)
        begin = self.ends[number - 1] if number else 0
        return self.names[number] + show(joint[begin : self.ends[number]])[1:]


def reduce_families(
    problems: Sequence[Problem], reduce: Callable[[Problem], Outcome], nonzero: Callable[[Family], Sequence[int]]
) -> tuple[Outcome, JointFamilies]:
    """Several families, from the last to the first, into one result, which is in joint integrals; targets stand under their labels.

    With symmetries, masters of a later family in a sector that is one of an earlier family, too, are carried over by the map between them,
    and their images are reduced there with that family's targets. Preferred masters replace others in the joint basis at the end.
    """
    joint, p = JointFamilies([problem.family for problem in problems]), problems[0].point.prime
    spaces = [_sector_classes(problem, nonzero) for problem in problems if problem.symmetries]
    images: list[Images] = [{} for _ in problems]
    outcomes: dict[int, Outcome] = {}
    for number, own in reversed(list(enumerate(problems))):
        carried = [term for found in images for other, image in found.values() if other == number for term in image]
        targets = tuple(dict.fromkeys((*own.targets, *own.preferred_masters, *carried)))
        if targets or own.combinations:
            outcomes[number] = reduce(replace(own, targets=targets, preferred_masters=()))
            if spaces:
                images[number] = _carried_over(outcomes[number].masters, own, spaces[number][0], spaces[:number])
    reductions = _joined_reductions(joint, outcomes, images, p)
    preferred = tuple(joint.joint(number, master) for number, problem in enumerate(problems) for master in problem.preferred_masters)
    masters = {joint.joint(number, m) for number, outcome in outcomes.items() for m in outcome.masters if m not in images[number]}
    unreduced = {joint.joint(number, integral) for number, outcome in outcomes.items() for integral in outcome.unreduced}
    if preferred and not unreduced:
        reductions = _change_joint_basis(joint, reductions, preferred, p)
        masters = {*preferred, *(term for expression in reductions.values() for term in expression)}
    wanted: dict[str, Expression] = {}
    for number, problem in enumerate(problems):
        wanted |= {problem.family.name + show(target)[1:]: reductions[joint.joint(number, target)] for target in problem.targets}
        wanted |= {combination.name: reductions[combination.name] for combination in problem.combinations}
    result = joined_outcome(list(outcomes.values()), wanted, masters, unreduced)
    result.statistics["shared_masters"] = sum(map(len, images))
    return result, joint


def _sector_classes(problem: Problem, nonzero: Callable[[Family], Sequence[int]]) -> tuple[Geometry, Classes]:
    geometry = Geometry(problem.family, problem.cut)
    return geometry, geometry.classes([bits for bits in nonzero(problem.family) if bits & problem.cut == problem.cut])


def _carried_over(masters: Iterable[Index], own: Problem, geometry: Geometry, earlier: Sequence[tuple[Geometry, Classes]]) -> Images:
    """The images of those masters whose sectors are sectors of earlier families."""
    sectors = sorted({sector_of(master) for master in masters}, key=sector_order)
    maps = find_family_maps(geometry, sectors, earlier)
    numeric = {bits: (number, NumericMap(found, own.point, own.family.n)) for bits, (number, found) in maps.items()}
    mapped = ((master, *numeric[sector_of(master)]) for master in masters if sector_of(master) in numeric)
    return {master: (number, shift(master)) for master, number, shift in mapped}


def _joined_reductions(
    joint: JointFamilies, outcomes: dict[int, Outcome], images: Sequence[Images], p: int
) -> dict[Index | str, Expression]:
    """Every target of every family in joint integrals; combinations of the same name are added up."""
    total: dict[Index | str, Expression] = {}
    for number, outcome in sorted(outcomes.items()):  # images are of earlier families
        in_joint: dict[Index, Expression] = {}
        for master, (other, image) in images[number].items():
            in_joint[master] = row = {}
            for term, value in image.items():
                _subtract(row, total[joint.joint(other, term)], p - value, p)
        for target, expression in outcome.reductions.items():
            row = total.setdefault(target if isinstance(target, str) else joint.joint(number, target), {})
            for integral, value in expression.items():
                _subtract(row, in_joint.get(integral, {joint.joint(number, integral): 1}), p - value, p)
    return {target: heaviest_first(row) for target, row in total.items()}


def _change_joint_basis(
    joint: JointFamilies, reductions: dict[Index | str, Expression], preferred: Sequence[Index], p: int
) -> dict[Index | str, Expression]:
    try:
        return change_basis(reductions, preferred, p)
    except InputError as error:
        named = re.sub(r"I\[([-\d,]+)\]", lambda match: joint.label(tuple(map(int, match[1].split(",")))), str(error))
        raise InputError(named) from None


def joined_record(problems: Sequence[Problem], outcome: Outcome, joint: JointFamilies) -> dict[str, Any]:
    """The result of several families: as of one, but integrals are texts 'family[1,0]'."""
    record = result_record(problems[0], outcome)
    for key in ("original_integral", "final_expr", "combinations"):
        record.pop(key, None)
    if cuts := {problem.family.name: cut_lines(problem.cut) for problem in problems if problem.cut}:
        record["cuts"] = cuts
    labelled = {key: {joint.label(term): value for term, value in row.items()} for key, row in outcome.reductions.items()}
    return record | {
        "family": ", ".join(joint.names),
        "reductions": labelled,
        "masters": list(map(joint.label, outcome.masters)),
        "unreduced": list(map(joint.label, outcome.unreduced)),
    }


# =====================================================================================================================
# Paths
# =====================================================================================================================

PATHS_KIND, PATHS_FORMAT = "ibp_reduce paths", 1


def write_paths(problem: Problem, paths: dict[Index, StepPath], file: Path) -> None:
    """One JSON object a line: first the family and the point, then for each integral its identities (operator, seed) and its expression."""
    family = problem.family
    header = {"kind": PATHS_KIND, "format": PATHS_FORMAT, "family": family.name, "identifier": family.identifier}
    lines: list[dict[str, Any]] = [header | pack_point(problem.point)]
    for target in sorted(paths, key=weight, reverse=True):
        actions, expression = paths[target]
        seeds = [(operator, [a + b for a, b in zip(target, change)]) for operator, change in actions]
        lines.append({"integral": target, "path": seeds, "expression": [*expression.items()]})
    write_output(file, "".join(json.dumps(line) + "\n" for line in lines).encode(), "--paths")


def replay_paths(file: Path, family: Family) -> tuple[int, int]:
    """Derive everything in a file of paths again from the identities alone; returns the numbers of paths and of identities.

    Raises InputError where the file cannot be read, ReductionError at the first path that does not give its expression.
    """
    try:
        header, *lines = (json.loads(line) for line in file.read_text().splitlines())
        if (header["kind"], header["format"]) != (PATHS_KIND, PATHS_FORMAT):
            raise InputError(f"--replay {file}: holds no paths of this version")
        if (header["family"], header["identifier"]) != (family.name, family.identifier):
            raise InputError(
                f"--replay {file}: of the family {header['family']}, not of {family.name} as it is defined here; give --family"
            )
        point = unpack_point(header, family, f"--replay {file}: ")
        paths = [_read_path(line, family, point.prime) for line in lines]
    except OSError as error:
        raise InputError(f"--replay {file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"--replay {file}: damaged ({type(error).__name__}: {error})") from None
    operators = derive_identities(family)
    equations = evaluate_identities(operators, point)
    nonzero = find_nonzero_sectors(evaluate_identities(operators, generic_point(family)), family.lines)
    for target, seeds, expression in paths:
        if any(operator not in range(equations.count) for operator, _ in seeds):
            raise InputError(f"--replay {file}: damaged (there is no operator of that number)")
        if any(weight(term) >= weight(target) for term in expression):
            raise ReductionError(f"{show(target)}: is expressed through an integral that is not lighter")
        solved: Solved = {}
        for seed in seeds:
            row = {term: value for term, value in _raw_identity(equations, *seed).items() if sector_of(term) in nonzero}
            if row := substitute(row, solved, point.prime):
                solve_for(max(row, key=weight), row, solved, point.prime)
        if substitute(difference({target: 1}, expression, point.prime), solved, point.prime):
            raise ReductionError(f"{show(target)}: its {len(seeds)} identities do not give its expression")
    return len(paths), sum(len(seeds) for _, seeds, _ in paths)


def _read_path(line: Any, family: Family, p: int) -> tuple[Index, list[tuple[int, Index]], Expression]:
    """Raises ValueError and the like where a line is not what `write_paths` writes."""
    seeds = [(operator, _indices(seed, family)) for operator, seed in line["path"]]
    if not all(type(operator) is int for operator, _ in seeds):
        raise ValueError("operators are not all integers")
    return _indices(line["integral"], family), seeds, _expression(line["expression"], family, p)


def _raw_identity(equations: Equations, operator: int, seed: Index) -> Expression:
    """All terms of one identity, whatever sector they are in."""
    row: Expression = {}
    for term in np.flatnonzero(equations.operator == operator):
        value = int(equations.coefficient[term, 0]) + sum(int(c) * a for c, a in zip(equations.coefficient[term, 1:], seed))
        if value % equations.prime:
            row[tuple(a + int(b) for a, b in zip(seed, equations.shift[term]))] = value % equations.prime
    return row


# =====================================================================================================================
# Training
# =====================================================================================================================

TRAINING_FORMAT = 2
HELD_OUT = 0.1  # share of the targets whose trajectories measure and never train
SHOWN_ACTIONS = 64  # of a position to train on: the right ones and a random choice of the others
LONGEST_SCRAMBLE = 6
BATCH_POSITIONS = 32
IMPOSSIBLE = -1e9  # score of what cannot be taken
GUIDE_PASSES = 4  # in an epoch, through the rules that local elimination found: a pass takes a fraction of a second
GUIDE_TARGETS = 24  # of a level of a sector, trained on together
TRAINING_CURVE = ("epoch", "seconds", "loss", "held_out_loss", "top1", "top5", "top1_eliminations", "top1_scrambles", "guide")
SAMPLE_WIDTHS = {"entries": 14, "indices": 7, "actions": 8, "open": 6}


@dataclass(frozen=True, eq=False)
class Example:
    """One position of a trajectory: its features, and which actions bool [C] are right: known to be left to do, or ending it at once."""

    features: Features
    right: np.ndarray


def random_target(sector: Sector, rng: np.random.Generator) -> np.ndarray:
    """Indices [n] with a few dots and numerators; every second one is close to the corner, where reductions are long."""
    target, most = sector.positive.astype(np.int64), rng.choice((2, 5))
    for places, step in ((np.flatnonzero(sector.positive), 1), (np.flatnonzero(~sector.positive), -1)):
        if len(places):
            np.add.at(target, rng.choice(places, rng.integers(0, most + 1)), step)
    return target


def local_rule(finder: RuleFinder, target: np.ndarray) -> Rule | None:
    """What local elimination finds for a target [n], at the lowest level where there is something."""
    levels = range(LAST_NEIGHBOURHOOD + 1)
    return next((rule for level in levels if (rule := finder.find(target, level, finder.structure))), None)


def scramble(finder: RuleFinder, base: np.ndarray, rng: np.random.Generator) -> tuple[SearchGround, Position, list[Action]] | None:
    """A trajectory in reverse: random identities make an integral complicated; to be undone down to what it was.

    The lightest integral that is heavier than the first one becomes the target, so that the same position is empty at the end.
    """
    ground = SearchGround(finder.sector, finder.structure, base)
    expression, used, p = {0: 1}, [], finder.structure.prime
    for _ in range(rng.integers(1, LONGEST_SCRAMBLE + 1)):
        key = sorted(expression)[rng.integers(len(expression))]
        moves = ground.moves(Position((), {key: 1}, {}))
        if not len(moves.operator):
            return None
        place = rng.integers(len(moves.operator))
        action = (int(moves.operator[place]), tuple((moves.seed[place] - base).tolist()))
        row = ground.row(action)
        factor = -pow(row[key], -1, p) % p
        line = {other: value * factor % p for other, value in row.items() if other != key}
        expression = substitute(expression, {key: line}, p)
        used.append(action)
        if not expression:
            return None
    heavy = {key: value for key, value in expression.items() if key > 0}
    if not heavy:
        return None
    lightest = min(heavy)
    target = finder.sector.decode(np.array([lightest + ground.target_key], finder.sector.layout.dtype))[0]
    moved = [(operator, tuple((base + np.array(change) - target).tolist())) for operator, change in used]
    return (
        SearchGround(finder.sector, finder.structure, target),
        Position((), {key - lightest: value for key, value in heavy.items()}),
        list(dict.fromkeys(moved)),
    )


def follow(ground: SearchGround, position: Position, left: list[Action], rng: np.random.Generator, limit: int | None) -> list[Example]:
    """The samples of a trajectory: at each position one of the identities that are left to do and can be taken is taken.

    limit: how many actions of a position are shown. A trajectory that leaves the reach of the search ends there.
    """
    samples = []
    while position.open:
        moves = ground.moves(position)
        actions = list(zip(moves.operator.tolist(), map(tuple, (moves.seed - ground.target).tolist())))
        features = describe_moves(ground, position, moves)
        known = [place for place, action in enumerate(actions) if action in left]
        if not known:
            break
        right = np.zeros(len(actions), bool)
        right[known] = True
        new, in_open, in_solved = features.actions[:, 1], features.actions[:, 3], features.actions[:, 4]
        for place in np.flatnonzero((new == 0) & ((in_open >= min(len(position.open), 15)) | (in_solved > 0)) & ~right):
            after = ground.after(position, actions[place])
            right[place] = after is not None and not after.open
        if len(known) < len(actions):  # else there is nothing to learn
            samples.append(_shown(Example(features, right), limit, rng))
        action = actions[rng.choice(known)]
        left = [other for other in left if other != action]
        position = ground.after(position, action)
    return samples


def _shown(sample: Example, limit: int | None, rng: np.random.Generator) -> Example:
    """A sample with a random choice of its wrong actions, so that it has `limit` in all."""
    features, right = sample.features, sample.right
    if limit is None or len(right) <= limit:
        return sample
    wrong = np.flatnonzero(~right)
    keep = right.copy()
    keep[rng.choice(wrong, max(limit - int(right.sum()), 1), replace=False)] = True
    entries = keep[features.action]
    number = np.cumsum(keep) - 1
    kept = Features(
        features.entries[entries],
        number[features.action[entries]],
        features.indices[np.repeat(keep, features.indices_each)],
        features.actions[keep],
        features.open,
    )
    return Example(kept, right[keep])


def number_from(*parts: Any) -> int:
    """A number of 64 bits, the same for the same parts everywhere."""
    return int.from_bytes(hashlib.sha256(" ".join(map(str, parts)).encode()).digest()[:8], "big")


def is_held_out(family: Family, target: np.ndarray) -> bool:
    """Whether trajectories of this target [n] measure: whatever the seed, so that none is ever trained on. Half of random targets recur."""
    return number_from(family.identifier, target.tolist()) < HELD_OUT * 2**64


def sector_samples(family: Family, bits: int, trajectories: int, seed: int) -> dict[str, Any]:
    """Training samples of one sector, ragged arrays: half from eliminations, half from scrambles; the same for the same seed."""
    equations = evaluate_identities(derive_identities(family), generic_point(family))
    finder = RuleFinder(Sector(Layout(family.n, 30, 30), bits), equations)
    rng = np.random.default_rng(number_from(family.identifier, bits, seed))
    samples, marks, rules = [], [], []
    for number in range(trajectories):
        base = random_target(finder.sector, rng)
        scrambled = number % 2 == 1
        if scrambled:
            trajectory = scramble(finder, base, rng)
        elif rule := local_rule(finder, base):  # a trajectory from the target down to what is lighter, by the rows that were used
            trajectory = SearchGround(finder.sector, equations, base), Position(), list(rule.rows)
            rules.append((base, rule))
        else:
            trajectory = None
        if trajectory is None:
            continue
        held = is_held_out(family, trajectory[0].target)
        new = follow(*trajectory, rng, None if held else SHOWN_ACTIONS)
        samples += new
        marks += [(scrambled, held, number)] * len(new)
    kinds, held_out, numbers = np.array(marks, np.int64).reshape(-1, 3).T
    about = {"scrambled": kinds.astype(bool), "held_out": held_out.astype(bool), "trajectory": numbers}
    return pack_samples(samples) | about | pack_rules(family, finder, rules)


def pack_rules(family: Family, finder: RuleFinder, found: Sequence[tuple[np.ndarray, Rule]]) -> dict[str, np.ndarray]:
    """What the guide learns from: targets and the rows of their rules, one of those that are equally far from the border.

    The sector, its operators and their shifts come along, out of which `describe_rows` makes features.
    """
    sector, equations = finder.sector, finder.structure
    distinct = {border_distance(base, sector.positive).tobytes(): (base, rule) for base, rule in found if rule.level < GUIDE_LEVELS}
    rows, chosen = [], list(distinct.values())
    for base, rule in chosen:
        seeds = finder.space(rule.level, base).seeds
        place = {tuple(seed): number for number, seed in enumerate(seeds.tolist())}
        rows.append([place[seed] * equations.count + operator for operator, seed in rule.rows])
    return {
        "rule_target": np.array([base for base, _ in chosen], np.int8).ravel(),
        "rule_level": np.array([rule.level for _, rule in chosen], np.int8),
        "rule_rows": np.array(list(itertools.chain(*rows)), np.int32),
        "rule_rows_count": np.array([len(part) for part in rows], np.int32),
        "rule_held_out": np.array([is_held_out(family, base) for base, _ in chosen], bool),
        "ground": np.array([[sector.bits, sector.n, equations.count, len(equations.shift), len(chosen)]]),
        "ground_operator": equations.operator.astype(np.int16),
        "ground_shift": equations.shift.astype(np.int8).ravel(),
    }


def pack_samples(samples: Sequence[Example]) -> dict[str, np.ndarray]:
    """Samples as arrays: lines of all of them one after the other, and how many lines each has."""
    packed = {}
    for name, width in SAMPLE_WIDTHS.items():
        parts = [getattr(sample.features, name) for sample in samples]
        packed[name] = np.concatenate([np.zeros((0, width), np.int8), *parts])
        packed[f"{name}_count"] = np.array([len(part) for part in parts], np.int32)
    packed["action"] = np.concatenate([np.zeros(0, np.int16), *(sample.features.action.astype(np.int16) for sample in samples)])
    packed["right"] = np.concatenate([np.zeros(0, bool), *(sample.right for sample in samples)])
    return packed


def make_training_data(
    families: Sequence[Family], trajectories: int, seed: int, path: Path, executor: Executor, progress: Progress
) -> dict[str, int]:
    """Write samples of all sectors of the families to a file; returns what there is in it. trajectories: for each sector."""
    sectors = []
    for family in families:
        generic = evaluate_identities(derive_identities(family), generic_point(family))
        sectors += [(family, bits) for bits in find_nonzero_sectors(generic, family.lines)]
    futures = [executor.submit(sector_samples, family, bits, trajectories, seed) for family, bits in sectors]
    for number, future in enumerate(futures):
        progress.show("sectors", number, len(futures), "")
        wait([future])
    parts = [future.result() for future in futures]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    arrays["sector"] = np.repeat(np.arange(len(parts)), [len(part["trajectory"]) for part in parts])
    header = {"format": TRAINING_FORMAT, "policy": POLICY_FORMAT, "families": {f.name: f.identifier for f in families}, "seed": seed}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, header=np.array(json.dumps(header)), **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, buffer.getvalue())
    return {
        "trajectories": len(np.unique(np.stack([arrays["sector"], arrays["trajectory"]]), axis=1).T),
        "positions": len(arrays["trajectory"]),
        "held_out": int(arrays["held_out"].sum()),
        "bytes": len(buffer.getvalue()),
    }


@dataclass(frozen=True, eq=False)
class Lesson:
    """Rules of one level of a sector that the guide learns from: targets [M, n], for each the numbers of its rows; held_out bool [M]."""

    sector: Sector
    equations: Equations
    level: int
    targets: np.ndarray
    rows: list[np.ndarray]
    held_out: np.ndarray

    def scored(self, weights: dict[str, Any], some: np.ndarray) -> tuple[Any, Any, Any]:
        """Tensors [M, S * O] for some of the targets: scores of the rows, which of them are right, and which are possible."""
        import torch

        seeds = seeds_around(NEIGHBOURHOODS[self.level], self.sector)
        features = describe_rows(self.sector, self.equations, seeds, self.level)
        features = RowFeatures(*(torch.from_numpy(np.ascontiguousarray(getattr(features, f.name))) for f in fields(RowFeatures)))
        possible = inside_rows(self.sector, seeds, self.targets[some], self.equations.count)
        right = np.zeros_like(possible)
        for line, number in enumerate(some):
            right[line, self.rows[number]] = True
        distance = torch.from_numpy(border_distance(self.targets[some], self.sector.positive))
        scores = guide_scores(weights, features, guide_rows(weights, features), distance)
        return scores, torch.from_numpy(right), torch.from_numpy(possible)


def unpack_rules(arrays: dict[str, np.ndarray]) -> list[Lesson]:
    """Raises ValueError or IndexError where the arrays of `pack_rules`, joined, do not fit each other."""
    lessons, rows = [], np.split(arrays["rule_rows"], np.cumsum(arrays["rule_rows_count"])[:-1])
    terms = numbers = indices = shifts = 0
    for bits, n, count, size, rules in arrays["ground"].tolist():
        operator = arrays["ground_operator"][terms : terms + size].astype(np.int64)
        shift = arrays["ground_shift"][shifts : shifts + size * n].reshape(size, n).astype(np.int64)
        equations = Equations(GENERIC_PRIME, count, operator, shift, np.zeros((size, n + 1), np.int64))
        targets = arrays["rule_target"][indices : indices + rules * n].reshape(rules, n).astype(np.int64)
        sector = Sector(Layout(n, 30, 30), bits)
        if rules and not sector.contains(targets).all():
            raise ValueError("targets of another sector")
        level, held_out = (arrays[name][numbers : numbers + rules] for name in ("rule_level", "rule_held_out"))
        for k in np.unique(level).tolist():
            chosen = np.flatnonzero(level == k)
            some = [rows[numbers + number] for number in chosen]
            if not 0 <= max(map(max, some)) < len(seeds_around(NEIGHBOURHOODS[k], sector)) * count or min(map(min, some)) < 0:
                raise ValueError("rows of another neighbourhood")
            lessons.append(Lesson(sector, equations, k, targets[chosen], some, held_out[chosen]))
        terms, numbers, indices, shifts = terms + size, numbers + rules, indices + rules * n, shifts + size * n
    return lessons


def samples_are_whole(arrays: dict[str, np.ndarray]) -> bool:
    """Whether arrays are what `sector_samples` makes: sizes that fit, owners that exist, a right action in each position."""
    count = {name: arrays[f"{name}_count"] for name in SAMPLE_WIDTHS}
    positions = len(count["actions"])
    if any(each.dtype != np.int32 or each.shape != (positions,) or (each < (name != "entries")).any() for name, each in count.items()):
        return False
    lines = {name: int(each.sum()) for name, each in count.items()}
    expected: dict[str, tuple[type, tuple[int, ...]]] = {name: (np.int8, (lines[name], width)) for name, width in SAMPLE_WIDTHS.items()}
    expected |= {"action": (np.int16, (lines["entries"],)), "right": (bool, (lines["actions"],))}
    expected |= {"scrambled": (bool, (positions,)), "held_out": (bool, (positions,))}
    if not positions or any(arrays[name].dtype != kind or arrays[name].shape != shape for name, (kind, shape) in expected.items()):
        return False
    if (count["indices"] % count["actions"]).any():
        return False
    action = arrays["action"]
    owned = ((action >= 0) & (action < np.repeat(count["actions"], count["entries"]))).all()
    return bool(owned and np.logical_or.reduceat(arrays["right"], np.cumsum(count["actions"]) - count["actions"]).all())


class TrainingSet:
    """Samples of a file, any of which make a batch. Raises PolicyRefused where the file is not what it should be."""

    def __init__(self, path: Path):
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                self.arrays = {name: file[name] for name in file.files}
            self.header = json.loads(str(self.arrays.pop("header")))
            fits = (self.header["format"], self.header["policy"]) == (TRAINING_FORMAT, POLICY_FORMAT)
            families = [*self.header["families"].items()]
            whole = all(isinstance(text, str) for pair in families for text in pair) and samples_are_whole(self.arrays)
            self.lessons = unpack_rules(self.arrays) if fits and whole else []
        except OSError as error:
            raise PolicyRefused(f"training data {path}: {error.strerror or error}; make some with --make-training-data") from None
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RuntimeError,
            EOFError,
            MemoryError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise PolicyRefused(f"training data {path}: damaged ({type(error).__name__}); make it anew") from None
        if not fits or not whole:
            raise PolicyRefused(f"training data {path}: of another version, or damaged; make it anew")
        self.begin = {name: np.cumsum(self.arrays[f"{name}_count"]) - self.arrays[f"{name}_count"] for name in SAMPLE_WIDTHS}
        self.held_out = np.flatnonzero(self.arrays["held_out"])
        self.shown = np.flatnonzero(~self.arrays["held_out"])
        if not len(self.shown) or not len(self.held_out):
            raise PolicyRefused(f"training data {path}: too few trajectories ({len(self.shown)} positions); make more")

    @property
    def name(self) -> str:
        """What tells these data from others."""
        digest = hashlib.sha256(json.dumps(self.header, sort_keys=True).encode())
        digest.update(self.arrays["right"].tobytes() + self.arrays["entries"].tobytes() + self.arrays["rule_rows"].tobytes())
        return digest.hexdigest()[:16]

    def lines(self, name: str, samples: np.ndarray) -> np.ndarray:
        """Numbers of the lines of these samples in the ragged array `name`."""
        count, begin = self.arrays[f"{name}_count"][samples], self.begin[name][samples]
        return np.arange(count.sum()) + np.repeat(begin - np.cumsum(count) + count, count)

    def batch(self, samples: np.ndarray) -> dict[str, Any]:
        """Tensors as `join_features` makes them, and `right`."""
        import torch

        lines = {name: self.lines(name, samples) for name in SAMPLE_WIDTHS}
        batch = {name: self.arrays[name][some] for name, some in lines.items()}
        counts = {name: self.arrays[f"{name}_count"][samples] for name in SAMPLE_WIDTHS}
        actions = counts["actions"].astype(np.int64)
        begins = np.cumsum(actions) - actions
        batch["entries_owner"] = self.arrays["action"][lines["entries"]] + np.repeat(begins, counts["entries"])
        batch["indices_owner"] = np.repeat(np.arange(actions.sum()), np.repeat(counts["indices"] // actions, actions))
        batch["open_owner"] = np.repeat(np.arange(len(samples)), counts["open"])
        batch["actions_owner"] = np.repeat(np.arange(len(samples)), actions)
        batch["right"] = self.arrays["right"][lines["actions"]]
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}


def by_position(scores: Any, batch: dict[str, Any]) -> Any:
    """Scores [2, positions, actions] of all actions, and of the right ones; what is not there is IMPOSSIBLE."""
    import torch

    owner = batch["actions_owner"]
    place = torch.arange(len(owner), device=owner.device) - torch.searchsorted(owner, owner)
    table = scores.new_full((2, int(owner[-1]) + 1, int(place.max()) + 1), IMPOSSIBLE)
    table[0, owner, place] = scores
    table[1, owner, place] = torch.where(batch["right"], scores, scores.new_tensor(IMPOSSIBLE))
    return table


def position_losses(scores: Any, batch: dict[str, Any]) -> Any:
    """Minus the logarithm of the probability of all right actions together, for each position."""
    total, right = by_position(scores, batch).logsumexp(2)
    return total - right


def right_ranks(scores: Any, batch: dict[str, Any]) -> Any:
    """How many actions of each position the search would take before the first right one: rounded as its scores are, ties in order."""
    table, right = by_position(scores.double(), batch)
    rounded = (table - table.logsumexp(1, keepdim=True)).round(decimals=4)
    best = rounded.masked_fill(right == IMPOSSIBLE, -math.inf).amax(1, keepdim=True)
    earlier = ((rounded == best) & (right != IMPOSSIBLE)).cumsum(1) == 0
    return ((rounded > best) | ((rounded == best) & earlier)).sum(1)


def measure_policy(network: Any, data: TrainingSet, device: str) -> dict[str, float]:
    """Loss, top-1 and top-5 on the held-out trajectories, where every action competes."""
    import torch

    losses, ranks = [], []
    with torch.inference_mode():
        for part in np.array_split(data.held_out, max(len(data.held_out) // 64, 1)):
            batch = {name: tensor.to(device) for name, tensor in data.batch(part).items()}
            scores = action_scores(network, batch)
            losses.append(position_losses(scores, batch))
            ranks.append(right_ranks(scores, batch))
    rank = torch.cat(ranks).cpu().numpy()
    scrambled = data.arrays["scrambled"][data.held_out]

    def share(values: np.ndarray) -> float:
        return float(values.mean()) if len(values) else math.nan

    return {
        "held_out_loss": float(torch.cat(losses).mean()),
        "top1": share(rank < 1),
        "top5": share(rank < 5),
        "top1_eliminations": share(rank[~scrambled] < 1),
        "top1_scrambles": share(rank[scrambled] < 1),
    }


def first_guide(seed: int) -> dict[str, Any]:
    """Parameters of a guide that has learned nothing."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in GUIDE_SHAPES.items():
        scale = 0.0 if name.endswith("bias") else shape[0] ** -0.5 if len(shape) == 2 else 0.1
        weights[name] = torch.nn.Parameter(scale * torch.randn(shape, generator=generator))
    return weights


def guide_loss(weights: dict[str, Any], lesson: Lesson, some: np.ndarray) -> Any:
    """How far wrong rows come before each of the right ones: mean of log(1 + sum over wrong ones of exp(score - that of the right one))."""
    import torch

    scores, right, possible = lesson.scored(weights, some)
    wrong = scores.masked_fill(right | ~possible, IMPOSSIBLE).logsumexp(1)
    return torch.nn.functional.softplus(wrong[:, None] - scores)[right].mean()


def train_guide(weights: dict[str, Any], optimizer: Any, lessons: Sequence[Lesson], rng: np.random.Generator) -> bool:
    """One pass; False where the loss is not a number any more."""
    for number in rng.permutation(len(lessons)):
        some = np.flatnonzero(~lessons[number].held_out)
        if len(some):
            loss = guide_loss(weights, lessons[number], rng.permutation(some)[:GUIDE_TARGETS])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if not math.isfinite(float(loss.detach())):
                return False
    return True


def measure_guide(weights: dict[str, Any], lessons: Sequence[Lesson]) -> float:
    """Share of the held-out rules of the guided level all of whose rows are among those that the guide would choose."""
    import torch

    within = []
    with torch.inference_mode():
        for lesson in lessons:
            some = np.flatnonzero(lesson.held_out)
            if len(some) and lesson.level == GUIDED_LEVEL:
                scores, right, possible = lesson.scored(weights, some)
                scores = scores.masked_fill(~possible, -math.inf)
                last = scores.masked_fill(~right, math.inf).amin(1, keepdim=True)
                within += ((scores > last).sum(1) < (possible.sum(1) * GUIDED_SHARE).long().clip(1)).tolist()
    return float(np.mean(within)) if within else math.nan


@dataclass(frozen=True)
class TrainingPlan:
    """How a policy is trained; a checkpoint goes on only with the plan it was made with."""

    epochs: int = 12
    learning_rate: float = 2e-3
    width: int = 96
    seed: int = 0


class Training:
    """A policy in training: network, optimiser, and the curve so far; saved after each epoch."""

    def __init__(self, data: TrainingSet, plan: TrainingPlan, device: str, checkpoint: Path):
        import torch

        self.data, self.plan, self.device, self.checkpoint = data, plan, device, checkpoint
        torch.manual_seed(plan.seed)
        self.network = make_network(plan.width).to(device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), plan.learning_rate, weight_decay=0.01)
        self.guide = first_guide(plan.seed)
        self.guide_optimizer = torch.optim.AdamW(self.guide.values(), plan.learning_rate, weight_decay=0.01)
        self.curve: list[dict[str, float]] = []
        self.seconds = 0.0

    @property
    def name(self) -> str:
        return f"{self.data.name} {self.plan}"

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one. Raises PolicyRefused where it belongs to other data or another plan."""
        import torch

        if not self.checkpoint.exists():
            return
        try:
            state = load_tensors(self.checkpoint.read_bytes(), self.device)
            if state["name"] == self.name:
                self.network.load_state_dict(state["network"])
                self.optimizer.load_state_dict(state["optimizer"])
                with torch.no_grad():
                    for name, parameter in self.guide.items():
                        parameter.copy_(state["guide"][name])
                self.guide_optimizer.load_state_dict(state["guide_optimizer"])
                self.curve = [{name: float(line[name]) for name in TRAINING_CURVE} for line in state["curve"]]
                self.seconds = float(state["seconds"])
        except Exception as error:  # torch raises a dozen kinds
            raise PolicyRefused(f"checkpoint {self.checkpoint}: damaged ({type(error).__name__}); delete it, or give --fresh") from None
        if state["name"] != self.name:
            raise PolicyRefused(f"checkpoint {self.checkpoint}: of a training with other data or options; delete it, or give --fresh")

    def save(self) -> None:
        import torch

        buffer = io.BytesIO()
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"guide": {name: values.detach() for name, values in self.guide.items()}}
        state |= {"guide_optimizer": self.guide_optimizer.state_dict()}
        torch.save({"name": self.name, "curve": self.curve, "seconds": self.seconds} | state, buffer)
        replace_file(self.checkpoint, buffer.getvalue())

    def run_epoch(self, tick: Callable[[int, int], None]) -> bool:
        """Train once on everything; False where the loss is not a number any more, and then nothing is kept of the epoch.

        tick: is told how many batches are done, and how many there are.
        """
        import torch

        started, epoch = time.monotonic(), len(self.curve)
        order = np.random.default_rng((self.plan.seed, epoch)).permutation(self.data.shown)
        batches = np.array_split(order, max(len(order) // BATCH_POSITIONS, 1))
        total = 0.0
        for number, part in enumerate(batches):
            done = (epoch + number / len(batches)) / self.plan.epochs
            for group in (*self.optimizer.param_groups, *self.guide_optimizer.param_groups):
                group["lr"] = self.plan.learning_rate * (1 - done)
            batch = {name: tensor.to(self.device) for name, tensor in self.data.batch(part).items()}
            loss = position_losses(action_scores(self.network, batch), batch).mean()
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            if not math.isfinite(value := float(loss.detach())):
                return False
            total += value
            tick(number + 1, len(batches))
        rng = np.random.default_rng((self.plan.seed, epoch, 1))
        if not all(train_guide(self.guide, self.guide_optimizer, self.data.lessons, rng) for _ in range(GUIDE_PASSES)):
            return False
        measured = measure_policy(self.network, self.data, self.device) | {"guide": measure_guide(self.guide, self.data.lessons)}
        if not math.isfinite(measured["held_out_loss"]):
            return False
        self.seconds += time.monotonic() - started
        self.curve.append({"epoch": epoch + 1, "seconds": round(self.seconds, 1), "loss": total / len(batches)} | measured)
        self.save()
        return True


def write_curve(curve: Sequence[dict[str, float]], table: Path) -> None:
    """Loss and accuracy as CSV, and as a picture where matplotlib is there."""
    write_table(table, [TRAINING_CURVE, *([f"{line[name]:.6g}" for name in TRAINING_CURVE] for line in curve)])
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    epochs = [line["epoch"] for line in curve]
    for name, label in (("loss", "trained on"), ("held_out_loss", "held out")):
        loss.plot(epochs, [line[name] for line in curve], marker=".", label=label)
    for name in ("top1", "top5"):
        accuracy.plot(epochs, [100 * line[name] for line in curve], marker=".", label=name.replace("top", "top-"))
    loss.set(xlabel="epoch", ylabel="loss of a position")
    accuracy.set(xlabel="epoch", ylabel="% of held-out positions")
    for axes in (loss, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.legend()
        axes.grid(alpha=0.3)
    write_figure(table.with_suffix(".png"), figure)


def write_table(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Comma-separated values. Raises ReductionError."""
    import csv

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_output(path, text.getvalue().encode(), "table")


def write_figure(path: Path, figure: Any) -> None:
    """PNG. Raises ReductionError."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_output(path, buffer.getvalue(), "figure")


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


def write_trained(training: Training, weights: Path) -> None:
    """The weights file, and the curve beside it."""
    trained = {"seconds": training.seconds, "positions": len(training.data.shown)} | training.curve[-1]
    guide = {name: values.detach().numpy() for name, values in training.guide.items()}
    replace_file(weights, pack_policy(training.network, training.data.header["families"], trained, guide))
    write_curve(training.curve, weights.with_suffix(".csv"))


def search_targets(family: Family, count: int, seed: int) -> list[tuple[int, np.ndarray]]:
    """Random integrals (sector, indices [n]) of all sectors, with r <= 13 and s <= 7, none of them a corner."""
    rng = np.random.default_rng((seed, 1))
    generic = evaluate_identities(derive_identities(family), generic_point(family))
    nonzero, targets = find_nonzero_sectors(generic, family.lines), []
    while len(targets) < count:
        bits = nonzero[len(targets) % len(nonzero)]
        target = np.array(corner(bits, family.n))
        inside, outside = np.flatnonzero(target), np.flatnonzero(target == 0)
        np.add.at(target, rng.choice(inside, rng.integers(0, 14 - len(inside))), 1)
        if len(outside):
            np.add.at(target, rng.choice(outside, rng.integers(0, 8)), -1)
        if tuple(target.tolist()) not in (corner(bits, family.n), *family.paper_masters):
            targets.append((bits, target))
    return targets


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


# =====================================================================================================================
# Coefficients
# =====================================================================================================================

LARGEST_NUMBER = 10_000_000  # bits that a power in a coefficient may have
LONGEST_NUMBER = 4300  # digits of a number in a coefficient: as many as Python reads
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[0-9]+)|(?P<name>[A-Za-z_]\w*)|(?:\*\*|\^)\s*(?P<power>[+-]?[0-9]+|\(\s*[+-]?[0-9]+\s*\))|(?P<sign>[-+*/()]))\s*"
)
_PRECEDENCE = {"(": 0, "+": 1, "-": 1, "*": 2, "/": 2, "negative": 3}
_SIGNS: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}


def calculate(text: str, names: dict[str, Any], number: Callable[[int], Any], where: str) -> Any:
    """Value of a coefficient such as '(3*d**2 - 1)/(d - 4)', in the ring of the names' values and of number(k).

    The ring is that of integers and Fractions, or of Quotients. Unlike `evaluate` it takes texts of any length and large powers. Raises
    InputError; ZeroDivisionError where the ring says so.
    """
    values: list[Any] = []
    waiting: list[str] = []

    def settle(precedence: int) -> None:
        """Carry out what waits and binds at least so strongly."""
        while waiting and _PRECEDENCE[waiting[-1]] >= precedence:
            sign, right = waiting.pop(), values.pop()
            values.append(-right if sign == "negative" else _SIGNS[sign](values.pop(), right))

    position, before = 0, "("  # kind of the token before: a value may stand only after a sign
    while position < len(text):
        match = _TOKEN.match(text, position)
        kind = match and (match["sign"] or match.lastgroup)
        after_value = before in ("number", "name", "power", ")")
        if kind is None or (after_value and kind in ("number", "name", "(")) or (not after_value and kind in ("power", "*", "/", ")")):
            raise InputError(f"{where}: {text[position : position + 30]!r} cannot stand there in a coefficient")
        position = match.end()
        if kind == "number" and len(match["number"]) > LONGEST_NUMBER:
            raise InputError(f"{where}: a number of {len(match['number'])} digits; at most {LONGEST_NUMBER} are taken")
        if kind == "number":
            values.append(number(int(match["number"])))
        elif kind == "name":
            if match["name"] not in names:
                raise InputError(f"{where}: unknown symbol {match['name']!r}; known: {', '.join(names) or 'none'}")
            values.append(names[match["name"]])
        elif kind == "power":
            power = int(match["power"].strip("() ")) if len(match["power"]) < 20 else math.inf
            if before == "power" or abs(power) * _size(values[-1]) > LARGEST_NUMBER:
                raise InputError(f"{where}: power {match['power'][:20]} of a power, or too large")
            values[-1] = values[-1] ** power
        elif kind == ")":
            settle(1)
            if not waiting:
                raise InputError(f"{where}: a parenthesis is closed that was not opened")
            waiting.pop()
        elif after_value:
            settle(_PRECEDENCE[kind])
            waiting.append(kind)
        elif kind != "+":
            waiting.append("negative" if kind == "-" else kind)
        before = kind
    if before in ("number", "name", "power", ")"):
        settle(1)
        if not waiting:
            return values[0]
    raise InputError(f"{where}: {text[:30]!r} is not a whole coefficient")


def _size(value: Any) -> int:
    """About how many bits a value has, so that no power of a coefficient that is read grows beyond all bounds."""
    if isinstance(value, Quotient):
        return 1000 * (len(value.above) + len(value.below))
    number = Fraction(value)
    return number.numerator.bit_length() + number.denominator.bit_length()


def names_in(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z_]\w*", text))


@dataclass(frozen=True, eq=False)
class Quotient:
    """A quotient of polynomials in one variable: their coefficients from the constant upwards, elements of a ring."""

    above: tuple
    below: tuple

    def __add__(self, other: Quotient) -> Quotient:
        if self.below == other.below:
            return Quotient(_sum(self.above, other.above), self.below)
        cross = _sum(_product(self.above, other.below), _product(other.above, self.below))
        return Quotient(cross, _product(self.below, other.below))

    def __neg__(self) -> Quotient:
        return Quotient(tuple(-a for a in self.above), self.below)

    def __sub__(self, other: Quotient) -> Quotient:
        return self + -other

    def __mul__(self, other: Quotient) -> Quotient:
        return Quotient(_product(self.above, other.above), _product(self.below, other.below))

    def __truediv__(self, other: Quotient) -> Quotient:
        if not any(other.above):
            raise ZeroDivisionError
        return Quotient(_product(self.above, other.below), _product(self.below, other.above))

    def __pow__(self, power: int) -> Quotient:
        one = Quotient(self.below, self.below)
        base, power, result = (one / self if power < 0 else self), abs(power), one if power == 0 else None
        while power:
            if power & 1:
                result = base if result is None else result * base
            power >>= 1
            if power:
                base = base * base
        return result


def _sum(a: tuple, b: tuple) -> tuple:
    a, b = (a, b) if len(a) >= len(b) else (b, a)
    return tuple(x + y for x, y in zip(a, b)) + a[len(b) :]


def _product(a: tuple, b: tuple) -> tuple:
    total: list[Any] = [0] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        if x:
            for j, y in enumerate(b):
                total[i + j] += x * y
    return tuple(total)


@dataclass(frozen=True)
class Expansion:
    """d = d0 + slope * symbol, through symbol**order."""

    text: str
    symbol: str
    d0: Fraction
    slope: Fraction
    order: int


def parse_expansion(text: str, order: int, taken: Iterable[str]) -> Expansion:
    """From '4-2*eps'. taken: names that the small quantity must not have. Raises InputError."""
    where, names = f"--epsilon {text!r}", names_in(text)
    if len(names) != 1 or names & {"d", *taken}:
        raise InputError(f"{where}: expected d in terms of one new symbol, such as 4-2*eps")
    (symbol,) = names
    try:
        value = calculate(text, {symbol: Quotient((0, 1), (1,))}, lambda k: Quotient((k,), (1,)), where)
    except ZeroDivisionError:
        raise InputError(f"{where}: division by zero") from None
    if any(value.below[1:]) or any(value.above[2:]) or not any(value.above[1:]):
        raise InputError(f"{where}: d must be linear in {symbol}")
    return Expansion(text, symbol, Fraction(value.above[0], value.below[0]), Fraction(value.above[1], value.below[0]), order)


def expand_coefficient(text: str, expansion: Expansion, others: Sequence[str], where: str) -> dict[int, Fraction | str]:
    """Laurent coefficients of a rational function of d by power of the symbol, zeros left out; texts where there are other symbols.

    Exact: numerator and denominator are shifted to d0 as polynomials, then divided as series. Raises InputError.
    """
    number: Callable[[Any], Any] = int
    lift: Callable[[Any], Any] = Fraction
    shown: Callable[[Any], Any] = Fraction
    d0, slope, symbols = expansion.d0, expansion.slope, {}
    if others:
        from sympy import QQ
        from sympy.polys.rings import ring

        number, *generators = ring(list(others), QQ)
        lift, shown = number.to_field(), str
        symbols = {name: Quotient((value,), (number(1),)) for name, value in zip(others, generators)}
        d0, slope = (QQ(value.numerator, value.denominator) for value in (d0, slope))
    one = number(1)
    symbols["d"] = Quotient((number(0), one), (one,))
    try:
        value = calculate(text, symbols, lambda k: Quotient((number(k),), (one,)), where)
    except ZeroDivisionError:
        raise InputError(f"{where}: division by zero in {text[:60]!r}") from None
    above, below = ([lift(c) for c in _shifted(part, d0, slope)] for part in (value.above, value.below))
    return {power: shown(c) for power, c in _series_quotient(above, below, expansion.order, lift(number(0))) if c}


def _shifted(polynomial: tuple, d0: Any, slope: Any) -> tuple:
    """The polynomial at d0 + slope * x, by Horner's scheme."""
    total: tuple = (polynomial[-1],)
    for c in reversed(polynomial[:-1]):
        total = _sum(_product(total, (d0, slope)), (c,))
    return total


def _series_quotient(above: list, below: list, order: int, zero: Any) -> Iterator[tuple[int, Any]]:
    """(power, coefficient) of above / below through this order."""
    if not any(above):
        return
    first = next(k for k, c in enumerate(below) if c)
    lowest = next(k for k, c in enumerate(above) if c) - first
    below = below[first:]
    found: list[Any] = []
    for k in range(order - lowest + 1):
        place = k + lowest + first
        rest = sum((below[j] * found[k - j] for j in range(1, min(k, len(below) - 1) + 1)), zero)
        found.append(((above[place] if place < len(above) else zero) - rest) / below[0])
        yield k + lowest, found[-1]


def expand_result(record: dict[str, Any], expansion: Expansion) -> dict[str, Any]:
    """The entry 'epsilon' of a result: {'d', 'symbol', 'order', 'reductions': {target: {master: {power: coefficient}}}}.

    One of differential equations has 'matrices' of the same kind, too. A master whose coefficient vanishes through this order has {}.
    Raises InputError where the coefficients are no functions of d.
    """
    symbols = symbols_of(record)
    if record["prime"] is not None or "d" not in symbols:
        raise InputError("--epsilon: the coefficients of this result are not functions of d; reduce with d as a symbol")
    others = sorted(symbols - {"d"})
    cached = cache(lambda text, term: expand_coefficient(text, expansion, others, f"coefficient of {show(term)}"))

    def expanded(rows: dict[Any, dict[Index, Any]]) -> dict[Any, dict[Index, Any]]:
        return {row: {term: cached(str(value), term) for term, value in entries.items()} for row, entries in rows.items()}

    about = {"d": expansion.text, "symbol": expansion.symbol, "order": expansion.order, "reductions": expanded(record["reductions"])}
    return about | ({"matrices": {x: expanded(matrix) for x, matrix in matrices_of(record).items()}} if matrices_of(record) else {})


def symbols_of(record: dict[str, Any]) -> set[str]:
    """Names that the coefficients of a result depend on, and those of the point that are no numbers."""
    return names_in_coefficients(record) | {
        name for name, value in (("d", record["d"]), *record["kinematics"].items()) if not is_number(value)
    }


def expressions_of(record: dict[str, Any]) -> Iterator[tuple[str, Index | str, dict[Index, Any]]]:
    """Reductions of a result as ("", target, expression), and the rows of its matrices as (variable, master, row)."""
    for variable, rows in {"": record["reductions"], **matrices_of(record)}.items():
        yield from ((variable, target, expression) for target, expression in rows.items())


def matrices_of(record: dict[str, Any]) -> dict[str, dict[Index, dict[Index, Any]]]:
    """Of a result of differential equations, by variable; {} of others."""
    return record["differential_equation"]["matrices"] if "differential_equation" in record else {}


def names_in_coefficients(record: dict[str, Any]) -> set[str]:
    values = (value for *_, expression in expressions_of(record) for value in expression.values())
    return {name for value in values if isinstance(value, str) for name in names_in(value)}


def is_number(value: Any) -> bool:
    return not isinstance(value, str) or re.fullmatch(r"[+-]?[0-9]+(/[0-9]+|\.[0-9]+)?", value) is not None


def epsilon_summary(record: dict[str, Any]) -> str:
    """The expansion of a single integral term by term, of several only how many there are."""
    own, reductions = record["epsilon"], record["epsilon"]["reductions"]
    count = sum(len(row) for rows in (reductions, *own.get("matrices", {}).values()) for row in rows.values())
    lines = [f"expanded with d = {own['d']} through {own['symbol']}**{own['order']}: {count} coefficient{'s' * (count != 1)}"]
    if len(reductions) == 1:
        ((target, expression),) = reductions.items()
        width = max((len(show(term)) for term in expression), default=0)
        lines += [
            f"{show_target(target)} =",
            *(f"  {show(term):{width}}  {series_text(c, own['symbol'])}" for term, c in expression.items()),
        ]
    return "\n".join(lines)


def series_text(series: dict[int, Fraction | str], symbol: str) -> str:
    """'1/2*eps**-1 + 3', as sympy reads it."""
    powers = {0: "", 1: f"*{symbol}"}
    parts = [(f"({c})" if isinstance(c, str) else str(c)) + powers.get(k, f"*{symbol}**{k}") for k, c in sorted(series.items())]
    return " + ".join(parts).replace("+ -", "- ") or "0"


# =====================================================================================================================
# Formats
# =====================================================================================================================

EXPORT_FORMAT = 1
EXPORT_FILES = {  # beside the output, of whose name {} is the stem
    "mathematica": "{}.m",
    "form": "{}.inc",
    "kira": "kira_{}.m",
    "json": "{}.json",
    "sympy": "{}.py",
}
COMMENTS = {"mathematica": ("(* ", " *)"), "kira": ("(* ", " *)"), "form": ("* ", ""), "sympy": ("# ", "")}
FORM_OWN = ("num", "den", "D")  # functions in exports to FORM, the last one in differential equations
MATHEMATICA_OWN = {"C", "D", "E", "I", "K", "N", "O"}  # names of one letter that mean something there


def parse_formats(texts: Iterable[str]) -> tuple[str, ...]:
    """Names of formats from the values of --export. Raises InputError."""
    names = [name.strip() for text in texts for name in text.split(",")]
    for name in names:
        if name not in EXPORT_FILES:
            raise InputError(f"--export {name!r}: unknown format; known: {', '.join(EXPORT_FILES)}")
    return tuple(dict.fromkeys(names))


def export_path(output: Path, name: str, expanded: bool = False) -> Path:
    """reduction.pkl gives reduction.m, kira_reduction.m, …; reduction_eps.m where the coefficients are expanded in eps."""
    return output.with_name(EXPORT_FILES[name].format(output.stem + "_eps" * expanded))


def write_exports(record: dict[str, Any], output: Path, names: Iterable[str]) -> list[Path]:
    """A result in every format asked for, and its expansions where it has them. Raises ReductionError, InputError."""
    written = []
    for name in names:
        texts = {export_path(output, name): export_text(record, name)}
        if "epsilon" in record:
            texts[export_path(output, name, expanded=True)] = export_text(expanded_record(record), name)
        for path, text in texts.items():
            write_output(path, text.encode(), f"--export {name}:")
        written += texts
    return written


def expanded_record(record: dict[str, Any]) -> dict[str, Any]:
    """A result with the truncated series as coefficients, in texts; 'truncated' says what d is, the symbol and the order."""
    own = record["epsilon"]

    def texts(rows: dict[Any, dict[Index, Any]]) -> dict[Any, dict[Index, str]]:
        return {row: {term: series_text(c, own["symbol"]) for term, c in entries.items() if c} for row, entries in rows.items()}

    about = {name: own[name] for name in ("d", "symbol", "order")}
    result = {key: value for key, value in record.items() if key != "epsilon"} | {
        "reductions": texts(own["reductions"]),
        "truncated": about,
    }
    if "matrices" in own:
        matrices = {x: texts(matrix) for x, matrix in own["matrices"].items()}
        result["differential_equation"] = record["differential_equation"] | {"matrices": matrices}
    return result


def export_text(record: dict[str, Any], name: str) -> str:
    """A result in one of the formats; coefficients modulo a prime are integers, and the prime stands in the header. Raises InputError."""
    header = {"program": "ibp_reduce", "format": EXPORT_FORMAT, "export": name, "version": __version__}
    about = ("family", "prime", "d", "kinematics", "truncated", "symmetries", "cuts", "unreduced")
    header |= {key: record[key] for key in about if key in record}
    matrices = matrices_of(record)
    if matrices:
        header["variables"] = list(matrices)
    if name == "json":
        return _json_text(header, expressions_of(record))
    named = [target for target in record["reductions"] if isinstance(target, str)]
    own = FORM_OWN if matrices else FORM_OWN[:2]
    check_export_names(name, record["family"], names_in_coefficients(record) | set(matrices), own, named)
    before, after = integral_brackets(name, record["family"])
    rules = []
    for variable, target, expression in expressions_of(record):
        integrals = [f"{before}{','.join(map(str, indices))}{after}" for indices in expression]
        left = target if isinstance(target, str) else f"{before}{','.join(map(str, target))}{after}"
        factors = [_factor(value, name) for value in expression.values()]
        terms = [f"{m}*{c}" if name == "kira" else f"{c}*{m}" for m, c in zip(integrals, factors)]
        rules.append((derivative_text(name, variable, left), terms or ["0"]))
    opening, closing = COMMENTS[name]
    body = {"form": _form_text, "sympy": _sympy_text}.get(name, _mathematica_text)(rules)
    return f"{opening}{json.dumps(header)}{closing}\n{body}"


def _mathematica_text(rules: list[tuple[str, list[str]]]) -> str:
    """A list of replacement rules; the layout is that of Kira's own tables."""
    return "{\n" + ",\n".join(f"{left} -> \n" + "".join(f" + {term}\n" for term in terms) for left, terms in rules) + "}\n"


def _form_text(rules: list[tuple[str, list[str]]]) -> str:
    return "".join(f"id {left} =\n" + "\n".join(f" + {term}" for term in terms) + ";\n" for left, terms in rules)


def _sympy_text(rules: list[tuple[str, list[str]]]) -> str:
    """A Python file with one dict of texts."""
    lines = ["reductions = {"]
    for left, terms in rules:
        lines += [f'    "{left}": (', *(f'        " + {term}"' for term in terms), "    ),"]
    return "\n".join([*lines, "}"]) + "\n"


def _json_text(header: dict[str, Any], equations: Iterable[tuple[str, Index | str, dict[Index, Any]]]) -> str:
    rules = [
        ({"variable": variable} if variable else {})
        | {"combination" if isinstance(target, str) else "integral": target}
        | {"terms": [{"integral": term, "coefficient": str(value)} for term, value in expression.items()]}
        for variable, target, expression in equations
    ]
    return f'{{"header": {json.dumps(header)},\n"reductions": [\n' + ",\n".join(map(json.dumps, rules)) + "\n]}\n"


def integral_brackets(name: str, family: str) -> tuple[str, str]:
    """What stands before and after the indices of an integral; names that a program would not read are quoted as it demands."""
    plain = re.fullmatch("[A-Za-z][A-Za-z0-9]*", family) is not None
    head = family if plain else f"[{family}]" if name == "form" else f'"{family}"'
    return {"mathematica": (f"G[{head},{{", "}]"), "kira": (f"{head}[", "]"), "form": (f"{head}(", ")"), "sympy": ("G(", ")")}[name]


def derivative_text(name: str, variable: str, integral: str) -> str:
    """The left side of an equation in this variable: DG[t,…] and DG(t,…) where the integral is G[…] or G(…), in FORM D(t)*integral."""
    if not variable:
        return integral
    if name == "kira":
        raise InputError("--export kira: holds reductions only; a differential equation goes to mathematica, form, json or sympy")
    return f"D({variable})*{integral}" if name == "form" else f"D{integral[:2]}{variable},{integral[2:]}"


def check_export_names(
    name: str, family: str, symbols: Collection[str], own: Collection[str] = FORM_OWN[:2], combinations: Sequence[str] = ()
) -> None:
    """Raises InputError where a symbol of the coefficients would mean something else to the program that reads them.

    own: functions that the export to FORM uses. combinations: names of targets, which become symbols.
    """
    if combinations and name == "kira":
        raise InputError(f"--export kira: holds integrals only; the combination {combinations[0]} goes to mathematica, form, json or sympy")
    if clash := {"G", family}.intersection(combinations) | set(symbols).intersection(combinations) if name != "json" else ():
        raise InputError(f"--export {name}: {min(clash)} would be a combination and something else there; rename it, or export to json")
    used = (*symbols, *combinations)
    bad = [] if name in ("sympy", "json") else sorted(s for s in used if not re.fullmatch("[A-Za-z][A-Za-z0-9]*", s))
    bad += [s for s in combinations if name == "sympy" and not (s.isidentifier() and s.isascii())]
    if name in ("mathematica", "kira"):
        bad += sorted(MATHEMATICA_OWN.intersection(used))
    if name == "form":
        bad += sorted(set(own).intersection((*used, family)) | {family}.intersection(symbols))
    if bad:
        others = "json" if name == "sympy" else "json or sympy"
        raise InputError(f"--export {name}: the name {bad[0]} is not free there; rename it in the family, or export to {others}")


def _factor(value: int | Fraction | str, name: str) -> str:
    """A coefficient as a factor: a natural number as it is, everything else in parentheses (or in FORM's num and den)."""
    text = str(value)
    if name == "form" and re.search(r"[()]|/\s*[^\s0-9]", text):  # all else FORM reads as it is
        above, below = (part.replace("**", "^") for part in numerator_and_denominator(text))
        return f"num({above})" + f"*den({below})" * (below != "1")
    if name != "sympy":
        text = text.replace("**", "^")
    return text if text.isdecimal() and name != "kira" else f"({text})"


def numerator_and_denominator(text: str) -> tuple[str, str]:
    """Texts of polynomials whose quotient the coefficient is, as it stands where it is a product, else brought together by sympy."""
    above, below = [], []
    if len(_split(text.lstrip("+- "), "+-")) == 1:
        for sign, factor in _split(text, "*/"):
            (below if sign == "/" else above).append(factor.strip())
    else:
        above.append(text)
    if any(re.search(r"/\s*[^\s0-9]|(\*\*|\^)\s*\(?\s*-", part) for part in (*above, *below)):
        from sympy import Symbol, fraction, sympify, together

        quotient = together(sympify(text, locals={name: Symbol(name) for name in names_in(text)}))
        above, below = ([str(part)] for part in fraction(quotient))
    return tuple("*".join(f"({p})" if len(parts) > 1 else _without_parentheses(p) for p in parts) or "1" for parts in (above, below))


def _split(text: str, signs: str) -> list[tuple[str, str]]:
    """Cut at these signs outside all brackets and quotes: (sign before, part); a power '**' and its sign are no cut."""
    parts, depth, sign, begin = [], 0, "", 0
    for match in re.finditer(r'"[^"]*"|(?:\*\*|\^)\s*[+-]?|.', text, re.DOTALL):
        token = match[0]
        depth += (token in "([{") - (token in ")]}")
        if depth == 0 and token in signs and len(token) == 1:
            parts.append((sign, text[begin : match.start()]))
            sign, begin = token, match.end()
    parts.append((sign, text[begin:]))
    return [(sign, part) for sign, part in parts if part.strip()]


def _without_parentheses(text: str) -> str:
    """Without the pairs of them around the whole text."""
    text = text.strip()
    while len(text) > 2 and (text[0], text[-1]) == ("(", ")") and min(itertools.accumulate((c == "(") - (c == ")") for c in text[:-1])) > 0:
        text = text[1:-1].strip()
    return text


def read_export(path: str | Path) -> dict[str, Any]:
    """The header of an exported file, with 'reductions' as in a result: integers modulo the prime, Fractions, or texts for sympy.

    One of differential equations has 'differential_equation' with the 'matrices' of a result, too.

    Raises InputError for a file that is none.
    """
    where = f"export {path}"
    try:
        text = Path(path).read_text(encoding="utf-8")
        first, _, body = text.partition("\n")
        if first.startswith('{"header": '):
            data = json.loads(text)
            header, rules = (
                data["header"],
                [
                    (
                        rule.get("variable", ""),
                        rule["combination"] if "combination" in rule else tuple(rule["integral"]),
                        [(tuple(term["integral"]), term["coefficient"]) for term in rule["terms"]],
                    )
                    for rule in data["reductions"]
                ],
            )
        else:
            header = json.loads(first.lstrip("(*# ").removesuffix(" *)"))
            rules = _read_rules(header["export"], header["family"], header.get("variables", ()), body)
        if header["program"] != "ibp_reduce" or header["format"] != EXPORT_FORMAT:
            raise ValueError("another program or format")
        modular = header["prime"] is not None
        matrices: dict[str, dict[Index, dict]] = {variable: {} for variable in ("", *header.get("variables", ()))}
        for variable, target, terms in rules:
            matrices[variable][target] = {term: _read_coefficient(c, modular) for term, c in terms}
        result = header | {"reductions": matrices.pop("")}
        return result | ({"differential_equation": {"matrices": matrices}} if matrices else {})
    except OSError as error:
        raise InputError(f"{where}: {error.strerror}") from None
    except (*UNREADABLE, SyntaxError, RecursionError) as error:
        raise InputError(f"{where}: not readable ({in_short(error)})") from None


def in_short(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _read_rules(name: str, family: str, variables: Collection[str], body: str) -> list[tuple[str, Index | str, list[tuple[Index, str]]]]:
    """Variable ('' in a reduction), target, and its terms as (integral, coefficient). Raises ValueError."""
    before, after = integral_brackets(name, family)
    if name == "sympy":
        (assignment,) = ast.parse(body).body
        sides = list(ast.literal_eval(assignment.value).items())
    elif name == "form":
        sides = [part.strip().removeprefix("id ").split("=") for _, part in _split(body, ";")]
    else:
        sides = [part.split("->") for _, part in _split(body.strip().removeprefix("{").removesuffix("}"), ",")]
    integral = re.compile(re.escape(before) + r"(-?[0-9]+(?:,-?[0-9]+)*)" + re.escape(after))

    def read_term(term: str) -> tuple[Index, str]:
        found = integral.search(term)
        if not found:
            raise ValueError(f"no integral in {term.strip()[:40]!r}")
        rest = term[: found.start()].strip().rstrip("*") + term[found.end() :].strip().lstrip("*")
        return tuple(map(int, found[1].split(","))), rest or "1"

    rules = []
    for left, right in sides:
        derivative = re.match(r"\s*D(?:\((\w+)\)\*|(G[\[(])(\w+),)", left) if variables else None  # else a family may be called DG
        variable = derivative[1] or derivative[3] if derivative else ""
        if re.fullmatch(r"\s*[A-Za-z_]\w*\s*", left):  # a combination
            target, rest = left.strip(), "1"
        else:
            target, rest = read_term((derivative[2] or "") + left[derivative.end() :] if derivative else left)
        if rest != "1":
            raise ValueError(f"{left.strip()[:40]!r} is not one integral")
        rules.append((variable, target, [read_term(term) for _, term in _split(right, "+") if term.strip() != "0"]))
    return rules


def _read_coefficient(text: str, modular: bool) -> int | Fraction | str:
    text = text.strip().replace("^", "**")
    if match := re.fullmatch(r"num(\(.*?\))(?:\*den(\(.*\)))?", text, re.DOTALL):
        text = match[1] if match[2] is None else f"{match[1]}/{match[2]}"
    text = _without_parentheses(text)
    if modular:
        return int(text)
    return Fraction(text) if re.fullmatch(r"-?[0-9]{1,100000}(/0*[1-9][0-9]*)?", text) else text


# =====================================================================================================================
# Certificates
# =====================================================================================================================

# A certificate is: one line of text that says what it is, one line of JSON (the Certificate without its arrays), the arrays, compressed,
# and the SHA-256 of all that.
CERTIFICATE_FORMAT = 1
CERTIFICATE_LINE = b"ibp_reduce certificate, format %d\n"
ARRAYS = ("operator", "seed", "start", "step", "multiplier")
ARRAY_TYPES = ("|u1", "<u2", "<u4", "<u8", "|i1", "<i2", "<i4", "<i8")
TERMS_AT_ONCE = 1 << 22  # terms of identities that are added up together: some 100 MB
RESULT_CHECKS = 3  # primes and points at which an exact result is verified
POINT_ATTEMPTS = 20  # to find a point where nothing vanishes by accident


class CertificateError(ReductionError):
    """A certificate or a result does not show what it claims, or is damaged."""


@dataclass(frozen=True, eq=False)
class Certificate:
    """reductions[k]: target and expression, which differ by sum_j multiplier_j * identity_j modulo the prime at the point.

    A target that is a name stands for one of the combinations: {name: ((integral, text of its coefficient), …)}.
    masters: what the expressions may contain, beside unreduced; digest: of the identities at the point; operator [M], seed [M, n]:
    identities; lines start[k]:start[k+1] of identity [L] and multiplier [L] belong to target k, identity [L] is a row of the former.
    """

    family: Family
    point: Point
    masters: tuple[Index, ...]
    unreduced: tuple[Index, ...]
    reductions: dict[Index, Expression]
    digest: str
    operator: np.ndarray
    seed: np.ndarray
    start: np.ndarray
    identity: np.ndarray
    multiplier: np.ndarray
    combinations: dict[str, tuple[tuple[Index, str], ...]] = field(default_factory=dict)


def make_certificate(problem: Problem, outcome: Outcome) -> Certificate:
    """outcome: of a Controller with certify=True."""
    proof = outcome.proof
    order, first = sorted_rows(proof.operator, *proof.seed.T)
    identity = np.zeros(len(order), np.int64)
    identity[order] = np.repeat(np.arange(len(first)), np.diff(first, append=len(order)))
    start = np.searchsorted(proof.column, np.arange(len(problem.keys) + 1))
    return Certificate(
        problem.family,
        problem.point,
        tuple(outcome.masters),
        tuple(outcome.unreduced),
        outcome.reductions,
        outcome.identities,
        proof.operator[order[first]],
        proof.seed[order[first]],
        start,
        identity,
        proof.value,
        {combination.name: combination.terms for combination in problem.combinations},
    )


def pack_certificate(certificate: Certificate) -> bytes:
    """The content of the file. Inside a target the identities ascend, so that their differences are stored; seeds index by index."""
    own = certificate
    step = np.diff(own.identity, prepend=0)
    values = (own.operator, own.seed.T.ravel(), own.start, step, own.multiplier)
    arrays = {name: _smallest(part) for name, part in zip(ARRAYS, values)}
    header = {
        "version": __version__,
        "family": family_definition(own.family),
        **pack_point(own.point),
        "masters": own.masters,
        "unreduced": own.unreduced,
        "combinations": own.combinations,
        "reductions": [[target, list(expression.items())] for target, expression in own.reductions.items()],
        "identities": own.digest,
        "arrays": {name: [values.dtype.str, values.size] for name, values in arrays.items()},
    }
    packed = zlib.compress(b"".join(values.tobytes() for values in arrays.values()), 9)
    content = CERTIFICATE_LINE % CERTIFICATE_FORMAT + json.dumps(header).encode() + b"\n" + packed
    return content + hashlib.sha256(content).digest()


def _smallest(values: np.ndarray) -> np.ndarray:
    """In the smallest type that holds it."""
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    fitting = (kind for kind in map(np.dtype, ARRAY_TYPES) if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
    return values.astype(next(fitting))


def unpack_certificate(content: bytes) -> Certificate:
    """Raises CertificateError for anything but what pack_certificate makes."""
    first, _, rest = content.partition(b"\n")
    if first + b"\n" != CERTIFICATE_LINE % CERTIFICATE_FORMAT:
        known = content.startswith(CERTIFICATE_LINE[:22])
        shown = first[:60].decode("ascii", "replace") if known else "neither a certificate nor a result of this program"
        raise CertificateError(f"{shown}; certificates of format {CERTIFICATE_FORMAT} are read")
    if hashlib.sha256(content[:-32]).digest() != content[-32:]:
        raise CertificateError("damaged: its checksum is wrong; copy or make it again")
    try:
        line, _, packed = rest[:-32].partition(b"\n")
        return _read_certificate(json.loads(line), packed)
    except InputError as error:
        raise CertificateError(str(error)) from None
    except (*UNREADABLE, RecursionError) as error:
        raise CertificateError(f"not a sound certificate ({in_short(error)})") from None


def _read_certificate(header: dict[str, Any], packed: bytes) -> Certificate:
    """Raises InputError, or one of UNREADABLE."""
    family = define_family(header["family"], "its family")
    point = unpack_point(header, family)
    sizes = [(np.dtype(kind), int(size)) for kind, size in header["arrays"].values() if kind in ARRAY_TYPES and size >= 0]
    unpacker = zlib.decompressobj()
    total = sum(kind.itemsize * size for kind, size in sizes)
    data = unpacker.decompress(packed, total + 1)
    if (
        len(data) != total
        or not unpacker.eof
        or unpacker.unused_data
        or list(header["arrays"]) != list(ARRAYS)
        or len(sizes) != len(ARRAYS)
    ):
        raise ValueError("arrays of another size")
    arrays, begin = [], 0
    for kind, size in sizes:
        arrays.append(np.frombuffer(data, kind, size, begin).astype(np.int64))
        begin += kind.itemsize * size
    operator, seed, start, step, multiplier = arrays
    combinations = {
        name: tuple((_indices(integral, family), str(text)) for integral, text in terms)
        for name, terms in header.get("combinations", {}).items()
    }
    identity, reductions = np.cumsum(step), {}
    for target, expression in header["reductions"]:
        named = isinstance(target, str) and target in combinations
        reductions[target if named else _indices(target, family)] = _expression(expression, family, point.prime)
    if len(start) != len(reductions) + 1 or start[0] != 0 or start[-1] != len(step) or (np.diff(start) < 0).any() or not len(reductions):
        raise ValueError("multipliers of another number of targets")
    if len(step) != len(multiplier) or len(step) and not 0 <= identity.min() <= identity.max() < len(operator):
        raise ValueError("multipliers of identities that are not there")
    if len(seed) != len(operator) * family.n or (seed < -MAX_INDEX).any() or (seed > MAX_INDEX).any():
        raise ValueError("seeds of another family, or out of range")
    if (multiplier >= point.prime).any() or (multiplier < 0).any():
        raise ValueError("multipliers out of range")
    return Certificate(
        family,
        point,
        tuple(_indices(m, family) for m in header["masters"]),
        tuple(_indices(m, family) for m in header["unreduced"]),
        reductions,
        str(header["identities"]),
        operator,
        seed.reshape(family.n, -1).T,
        start,
        identity,
        multiplier,
        combinations,
    )


def pack_point(point: Point) -> dict[str, Any]:
    """As JSON holds it."""
    return {"prime": point.prime, "d": str(point.d), "kinematics": {name: str(value) for name, value in point.invariants}}


def unpack_point(header: dict[str, Any], family: Family, where: str = "") -> Point:
    """Raises InputError, or one of UNREADABLE."""
    values = tuple((name, parse_number(header["kinematics"][name], where + name)) for name, _ in family.point)
    return Point(parse_number(header["d"], f"{where}d"), values, _prime(header["prime"]))


def _prime(value: Any) -> int:
    if not is_usable_prime(value):
        raise ValueError(f"{value!r} is no prime number in use")
    return value


def _indices(value: Any, family: Family) -> Index:
    if len(value) != family.n or any(type(a) is not int or abs(a) > MAX_INDEX for a in value):
        raise ValueError(f"{value} is no integral of the family")
    return tuple(value)


def _expression(terms: Any, family: Family, p: int) -> Expression:
    expression = {_indices(term, family): value for term, value in terms}
    if len(expression) != len(terms) or any(type(value) is not int or not 0 < value < p for value in expression.values()):
        raise ValueError("a coefficient that is none modulo the prime, or twice")
    return expression


# verification: nothing below uses the solver, only derive_identities and what reads texts ------------------------------


class Verifier:
    """The identities of a family at a point, derived anew, and proofs that sectors are scaleless.

    terms[operator]: (shift [n], coefficients [n + 1] of (1, a) modulo the prime) for each term.
    """

    def __init__(self, family: Family, point: Point):
        self.family, self.point, self.p = family, point, point.prime
        values = point.residues()
        self.terms = [
            [(np.array(shift), self._coefficients(coefficients, values)) for shift, coefficients in operator]
            for operator in derive_identities(family)
        ]
        shifts = np.array([shift for operator in self.terms for shift, _ in operator])
        self.reach = shifts.min(0), shifts.max(0)
        self.scaleless: dict[int, bool] = {}

    def _coefficients(self, coefficients: tuple[Coefficient, ...], values: tuple[int, ...]) -> np.ndarray:
        row = np.zeros(self.family.n + 1, np.int64)
        for i, numerator, denominator in coefficients:
            below = self._value(denominator, values)
            if below == 0:
                raise CertificateError(f"an identity is degenerate at this point modulo {self.p}")
            row[i] = self._value(numerator, values) * pow(below, -1, self.p) % self.p
        return row

    def _value(self, polynomial: Polynomial, values: tuple[int, ...]) -> int:
        powers = (factor * math.prod(pow(v, k, self.p) for v, k in zip(values, exponents)) for exponents, factor in polynomial)
        return sum(powers) % self.p

    @cached_property
    def digest(self) -> str:
        return identities_digest((k, shift, row) for k, operator in enumerate(self.terms) for shift, row in operator)

    def check(self, claim: Expression, operator: np.ndarray, seed: np.ndarray, multiplier: np.ndarray, cut: int = 0) -> int:
        """Number of terms that were added up, if sum of multiplier * identity(operator, seed) is the claim, a linear combination.

        Integrals of scaleless sectors are zero, and so are those without the lines of a cut.
        Raises CertificateError with an integral that the two sides do not share.
        """
        if len(operator) and not 0 <= operator.min() <= operator.max() < len(self.terms):
            raise CertificateError(f"operator {operator.max()} is used; there are {len(self.terms)}")
        integrals, p = np.array(list(claim), np.int64).reshape(-1, self.family.n), self.p
        low = np.minimum(seed.min(0, initial=0) + self.reach[0], integrals.min(0, initial=0))
        spans = (np.maximum(seed.max(0, initial=0) + self.reach[1], integrals.max(0, initial=0)) - low + 1).tolist()
        places = list(itertools.accumulate(spans[:0:-1], lambda a, b: a * b, initial=1))[::-1]
        place = np.array(places, np.int64 if places[0] * spans[0] < 2**62 else object)  # index tuples as numbers
        keys = [(integrals - low) @ place]
        values = [np.array([-value % p for value in claim.values()], np.int64)]
        waiting = count = 0
        for number, terms in enumerate(self.terms):
            there = np.flatnonzero(operator == number)
            seeds, factors = seed[there].astype(np.int64), multiplier[there]
            base = (seeds - low) @ place
            for shift, row in terms:
                keys.append(base + shift @ place)
                values.append((seeds @ row[1:] + row[0]) % p * factors % p)
                waiting, count = waiting + len(base), count + len(base)
                if waiting > TERMS_AT_ONCE:
                    keys, values, waiting = *_added_up(keys, values, p), 0
        (keys,), (values,) = _added_up(keys, values, p)
        left = np.column_stack([keys // a % span for a, span in zip(places, spans)]).astype(np.int64) + low
        for integral, value in zip(map(tuple, left.tolist()), values.tolist()):
            bits = sum(1 << i for i, a in enumerate(integral) if a > 0)
            if bits & cut == cut and not self.is_scaleless(bits):
                raise CertificateError(f"{show(integral)} is left with coefficient {value} modulo {p}")
        return count

    def is_scaleless(self, bits: int) -> bool:
        """Whether all integrals of a sector vanish: Lee's criterion (arXiv:1405.5616).

        With the polynomials U and F of the sector, G = U + F, they do if sum_i k_i x_i dG/dx_i = G has a solution k, that is, if
        k . e = 1 for the exponents e of all its monomials.
        """
        from sympy import QQ
        from sympy.polys.matrices import DomainMatrix

        if bits not in self.scaleless:
            lines = [i for i in range(self.family.n) if bits >> i & 1]
            inside = [e for e in self._exponents if all(not power or bits >> i & 1 for i, power in enumerate(e))]
            rows = [[QQ(a) for a in (*(e[i] for i in lines), 1)] for e in inside]
            self.scaleless[bits] = len(lines) not in DomainMatrix(rows, (len(rows), len(lines) + 1), QQ).rref()[1]
        return self.scaleless[bits]

    @cached_property
    def _exponents(self) -> list[tuple[int, ...]]:
        """Of the monomials of U + F with all n propagators, at the rational point itself; a sector has those of its own variables."""
        from sympy import QQ
        from sympy.polys.rings import ring

        family, where = self.family, f"family {self.family.name}"
        loops, momenta = len(family.loop_momenta), [*family.loop_momenta, *family.external_momenta]
        numbers = dict(self.point.invariants) | {"1": Fraction(1)}

        def rational(value: Fraction) -> Any:
            return QQ(value.numerator, value.denominator)

        gram = np.full((len(family.external_momenta),) * 2, QQ(0), object)
        for pair, value in _external_products(family, numbers, rational, where).items():
            gram[pair] = value
        momenta_ring, *vectors = ring(momenta, QQ)
        parameters, *x = ring([f"x{i}" for i in range(family.n)], QQ)
        symbols = {name: momenta_ring(rational(value)) for name, value in numbers.items()} | dict(zip(momenta, vectors))
        total, constant = np.full((len(momenta),) * 2, parameters.zero, object), parameters.zero
        for variable, (text, mass) in zip(x, family.propagators):
            for powers, value in _propagator(text, symbols, {}, momenta_ring, where).terms():
                i, j = (k for k, power in enumerate(powers) for _ in range(power))
                total[i, j] += variable * value / 2
                total[j, i] += variable * value / 2
            constant -= variable * rational(evaluate(mass, numbers, where))
        constant += (total[loops:, loops:] * gram).sum()
        return [monomial for polynomial in symanzik(total, constant, gram, loops, parameters.one) for monomial in polynomial.itermonoms()]


def _added_up(keys: list[np.ndarray], values: list[np.ndarray], p: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Values of equal keys added up modulo p, without zeros."""
    key, value = np.concatenate(keys), np.concatenate(values)
    order = np.argsort(key, kind="stable")
    key, value = key[order], value[order]
    first = np.flatnonzero(np.append(True, key[1:] != key[:-1])[: len(key)])
    total = np.add.reduceat(value, first) % p if len(first) else value
    return [key[first][total != 0]], [total[total != 0]]


def verify_certificate(certificate: Certificate, verifier: Verifier | None = None) -> int:
    """Number of terms that were added up. Raises CertificateError where the certificate does not prove its reductions.

    verifier: of the same family and point, to spare deriving the identities again.
    """
    own = certificate
    built_in = BUILT_IN_FAMILIES.get(own.family.name)
    if built_in is not None and built_in.identifier != own.family.identifier:
        raise CertificateError(f"its family {own.family.name} is not the built-in one of that name")
    try:
        verifier = verifier or Verifier(own.family, own.point)
    except InputError as error:
        raise CertificateError(str(error)) from None
    if verifier.digest != own.digest:
        raise CertificateError("it was made with other identities than those that follow from its family and point")
    allowed, count = {*own.masters, *own.unreduced}, 0
    for k, (target, expression) in enumerate(own.reductions.items()):
        if foreign := [term for term in expression if term not in allowed]:
            raise CertificateError(f"{show_target(target)}: {show(foreign[0])} is not in its list of masters")
        lines = slice(own.start[k], own.start[k + 1])
        used = own.identity[lines]
        try:
            whole = Combination(target, own.combinations[target]).at(own.point) if isinstance(target, str) else {target: 1}
            claim = difference(whole, expression, own.point.prime)
            count += verifier.check(claim, own.operator[used], own.seed[used], own.multiplier[lines])
        except (CertificateError, InputError) as error:
            raise CertificateError(f"{show_target(target)} is not proven: {error}") from None
    return count


def difference(whole: Expression, expression: Expression, p: int) -> Expression:
    """whole - expression."""
    claim = {term: -value % p for term, value in expression.items()}
    return claim | {term: (claim.get(term, 0) + value) % p for term, value in whole.items()}


@dataclass(frozen=True)
class Verified:
    """What a verification used: numbers of identities and of relations by symmetries, and the points."""

    identities: int
    relations: int
    points: tuple[Point, ...]


def verify_result(record: dict[str, Any], family: Family, reduce: Callable[[Problem], Outcome]) -> Verified:
    """Find a result right at random points, one modulo a prime where it was made. Raises CertificateError.

    At each point everything that occurs is reduced anew, the proofs are combined to one of target - sum of coefficient * master, and that
    is checked as a certificate is, so neither the solver nor the choice of masters is trusted. A result with symmetries may differ by
    relations that maps of sectors give, of which `find_shifts` proves each by substitution. One with cuts is checked cut by cut, for the
    integrals that have its lines.
    """
    combinations = _claimed_combinations(record, family)
    if any(line > family.lines for lines in record.get("cuts", ()) for line in lines):
        raise CertificateError(f"its cuts have lines that {family.name} has not")
    cuts = [sum(1 << line - 1 for line in set(lines)) for lines in record.get("cuts") or [[]]]
    points: list[Point] = []
    relations: tuple[MasterRelation, ...] | None = None if record.get("symmetries") else ()
    identities = 0
    for _ in range(RESULT_CHECKS if record["prime"] is None else 1):
        point, claims = _draw_check(record, family, combinations)
        if relations is None:
            every = tuple(dict.fromkeys(integral for claim in claims.values() for integral in claim))
            relations = reduce(Problem(family, generic_point(family), every, symmetries=True, cut=cuts[0], map_integrals=False)).relations
        for cut in cuts:
            own = {name: {i: value for i, value in claim.items() if sector_of(i) & cut == cut} for name, claim in claims.items()}
            identities += _check_claims(own, family, point, relations, cut, reduce)
        points.append(point)
    return Verified(identities, len(relations or ()), tuple(points))


def _check_claims(
    claims: dict[str, Expression],
    family: Family,
    point: Point,
    relations: Sequence[MasterRelation],
    cut: int,
    reduce: Callable[[Problem], Outcome],
) -> int:
    """Number of identities by which combinations of integrals vanish, given what the relations say. Raises CertificateError."""
    integrals = tuple(dict.fromkeys(integral for claim in claims.values() for integral in claim))
    if not integrals:
        return 0
    outcome = reduce(Problem(family, point, integrals, bool(family.paper_masters), combinations=tuple(relations), cut=cut))
    verifier, p = Verifier(family, point), point.prime
    keys = [*integrals, *(relation.name for relation in relations)]
    first = np.searchsorted(outcome.proof.column, np.arange(len(keys) + 1)).tolist()
    place = {key: slice(*first[k : k + 2]) for k, key in enumerate(keys)}
    solved = solve_labelled((outcome.reductions[relation.name] for relation in relations), p)
    identities = 0
    for name, claim in claims.items():
        rest: dict[Any, int] = {}
        for integral, value in claim.items():
            _subtract(rest, outcome.reductions[integral], p - value, p)
        used = [(relations[k], value) for k, value in substitute(rest, solved, p).items() if isinstance(k, int)]
        parts = [(value, place[integral]) for integral, value in claim.items()]
        for relation, value in used:
            claim = difference(claim, {integral: v * value % p for integral, v in relation.at(point).items()}, p)
            parts.append((p - value, place[relation.name]))
        pieces = [(value, outcome.proof.lines(lines)) for value, lines in parts]
        lines = [replace(part, column=part.column * 0, value=part.value * value % p) for value, part in pieces]
        proof = Multipliers.join([Multipliers.nothing(family.n), *lines]).merged(p)
        identities += len(proof.value)
        try:
            verifier.check(claim, proof.operator, proof.seed, proof.value, cut)
        except CertificateError as error:
            at = show_point(point)
            if outcome.unreduced:
                left = show(outcome.unreduced[0])
                raise CertificateError(f"{name} cannot be checked at {at}, where {left} is not reduced; try again") from None
            raise CertificateError(f"{name} is wrong at {at}: {error}") from None
    return identities


def _claimed_combinations(record: dict[str, Any], family: Family) -> dict[tuple[str, Index], Operator]:
    """Left sides of the equations of a result, derived anew, after a look at its integrals. Raises CertificateError."""
    used = {integral for _, row, expression in expressions_of(record) for integral in (row, *expression) if isinstance(integral, tuple)}
    _check_range(used.union(integral for terms in record.get("combinations", {}).values() for integral, _ in terms), family)
    own = record.get("differential_equation")
    if own is None:
        return {}
    try:
        numbers = {name: parse_number(str(value), name) for name, value in record["kinematics"].items() if is_number(value)}
        combinations = equations_for(family, tuple(own["matrices"]), own["masters"], numbers)
    except KeyError as error:
        raise CertificateError(f"{family.name} has no invariant {error.args[0]!r}") from None
    except InputError as error:
        raise CertificateError(str(error).removeprefix("--")) from None
    return {(variable, tuple(master)): combination for (variable, *master), combination in combinations.items()}


def _check_range(integrals: Iterable[Index], family: Family) -> None:
    for integral in integrals:
        if len(integral) != family.n or max(map(abs, integral)) > LARGEST_TARGET_INDEX or max(integral[family.lines :], default=0) > 0:
            raise CertificateError(f"{show(integral)} is no integral of {family.name}")


def _draw_check(record: dict[str, Any], family: Family, combinations: dict) -> tuple[Point, dict[str, Expression]]:
    """A point, random where the result leaves it open, and what must vanish there, by name. Raises CertificateError."""
    draw, symbols = random.SystemRandom(), symbols_of(record)
    given = {"d": record["d"], **record["kinematics"]}
    if set(given) != set(family.symbols) or not symbols <= set(given):
        raise CertificateError(
            f"its symbols are {', '.join(sorted({*given, *symbols}))}, those of {family.name} {', '.join(family.symbols)}"
        )
    if record["prime"] is not None and symbols:
        raise CertificateError(
            f"one value of {min(symbols)} modulo {record['prime']} shows nothing; results modulo a prime have no symbols"
        )
    for _ in range(POINT_ATTEMPTS):
        p = record["prime"] or next(q for q in iter(lambda: draw.randrange(2**30, MAX_PRIME) | 1, 0) if is_prime(q))
        values = {
            name: Fraction(draw.randrange(2, p - 1)) if name in symbols else parse_number(str(given[name]), name) for name in family.symbols
        }
        point = Point(values["d"], tuple((name, values[name]) for name, _ in family.point), p)
        try:
            point.residues()
            return point, _claims_at(record, combinations, point, values)
        except ZeroDivisionError:
            continue
    raise CertificateError(f"its coefficients have vanishing denominators at {POINT_ATTEMPTS} random points")


def _claims_at(record: dict[str, Any], combinations: dict, point: Point, values: dict[str, Fraction]) -> dict[str, Expression]:
    """What a result says to vanish at a point. Raises ZeroDivisionError where a coefficient has no value."""
    p = point.prime

    def at(expression: dict[Index, Any]) -> Expression:
        return {term: _residue(value, values, p) for term, value in expression.items()}

    def whole(target: Index | str) -> Expression:
        total: Expression = {}
        for integral, text in [(target, 1)] if isinstance(target, tuple) else record["combinations"][target]:
            total[integral] = (total.get(integral, 0) + _residue(text, values, p)) % p
        return total

    claims = {show_target(target): difference(whole(target), at(expression), p) for target, expression in record["reductions"].items()}
    for (variable, master), combination in combinations.items():
        row = at(record["differential_equation"]["matrices"][variable][master])
        claim = Column("", combination).at(point)
        for term, value in row.items():
            claim[term] = (claim.get(term, 0) - value) % p
        claims[f"the equation in {variable} of {show(master)}"] = claim
    return claims


def _residue(value: int | Fraction | str, names: dict[str, Fraction], p: int) -> int:
    """Raises ZeroDivisionError where there is none."""
    number = calculate(value, names, Fraction, "coefficient") if isinstance(value, str) else Fraction(value)
    if number.denominator % p == 0:
        raise ZeroDivisionError
    return number.numerator * pow(number.denominator, -1, p) % p


class ResultUnpickler(BuiltinsUnpickler):
    """Of builtin types and Fractions, which are made by no code but this module's."""

    def find_class(self, module: str, name: str) -> Any:
        return _read_fraction if (module, name) == ("fractions", "Fraction") else super().find_class(module, name)


def _read_fraction(numerator: int | str, denominator: int = 1) -> Fraction:
    text = numerator if isinstance(numerator, str) else f"{numerator:d}/{denominator:d}"
    if not re.fullmatch(r"-?[0-9]+(/[0-9]+)?", text):
        raise ValueError("not a fraction")
    return Fraction(text)


def read_result(path: str | Path) -> dict[str, Any]:
    """A result pickle, checked; coefficients are integers, Fractions or texts of rational functions. Raises InputError."""
    try:
        record = ResultUnpickler(io.BytesIO(Path(path).read_bytes())).load()
        labelled = type(record) is dict and any(isinstance(master, str) for master in record.get("masters", ()))
        if not labelled:
            _check_record(record)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (*UNREADABLE, RecursionError, InputError) as error:
        raise InputError(f"{path}: not a result of this program ({in_short(error)})") from None
    if labelled:
        raise InputError(f"{path}: is of several families, or of a linear system; this takes results of one family")
    return record


def _check_record(record: Any) -> None:
    """Raises InputError, or one of UNREADABLE."""
    if type(record) is not dict or record.get("format") != 1 or not isinstance(record["family"], str):
        raise ValueError("another format")
    if record["prime"] is not None:
        _prime(record["prime"])
    record["family"].encode()  # a lone surrogate cannot be written
    point = record["kinematics"]
    if type(point) is not dict or any(
        type(name) is not str or type(value) not in (int, str) for name, value in {"d": record["d"], **point}.items()
    ):
        raise ValueError("a point that is none")
    left = record["unreduced"]
    if type(left) is not list or any(type(part) is not str and (type(part) is not tuple or {*map(type, part)} != {int}) for part in left):
        raise ValueError("unreduced integrals that are none")
    kinds = (Fraction, str, int) if record["prime"] is None else (int,)
    lengths = set()
    if "differential_equation" in record:
        _check_matrices(record["differential_equation"], {"d": record["d"], **point})
    named = record.get("combinations", {})
    _check_origin(record, named)
    for _, target, expression in expressions_of(record):
        whole = [integral for integral, _ in named[target]] if isinstance(target, str) else [target]
        for integral in (*whole, *expression):
            if type(integral) is not tuple or any(type(a) is not int for a in integral) or not integral:
                raise ValueError(f"{integral!r} is no integral")
            lengths.add(len(integral))
        if any(type(value) not in kinds for value in expression.values()):
            raise ValueError(f"a coefficient of {show_target(target)} is of another type")
    if len(lengths) != 1:
        raise ValueError("integrals of several families, or none")
    texts = {value for *_, expression in expressions_of(record) for value in expression.values() if isinstance(value, str)}
    for value in texts.union(text for terms in named.values() for _, text in terms):
        with suppress(ZeroDivisionError):  # at this point alone
            calculate(value, {name: Fraction(1009 + 2 * k) for k, name in enumerate(sorted(names_in(value)))}, Fraction, "coefficient")


def _check_origin(record: dict[str, Any], named: Any) -> None:
    """Raises ValueError, or one of UNREADABLE, where combinations or cuts are not what they should be."""
    if any(type(name) is not str or any(type(text) is not str for _, text in terms) for name, terms in named.items()):
        raise ValueError("a combination that is none")
    if not set(named).issuperset(target for target in record["reductions"] if isinstance(target, str)):
        raise ValueError("a combination of unknown integrals")
    lines = [line for lines in record.get("cuts", []) for line in lines]
    if any(type(line) is not int or not 0 < line <= 60 for line in lines) or record.get("symmetries", True) is not True:
        raise ValueError("cuts or symmetries that are none")
    if len(record.get("cuts", [])) > 1 and "symmetries" in record:
        raise ValueError("several cuts, and symmetries, which may take their lines to each other")


def _check_matrices(own: Any, point: dict[str, Any]) -> None:
    """Raises ValueError, or one of UNREADABLE."""
    masters = own["masters"]
    if type(masters) is not list or len(set(masters)) != len(masters) or not own["matrices"]:
        raise ValueError("no masters, or no equations of theirs")
    for variable, matrix in own["matrices"].items():
        if is_number(point[variable]) or list(matrix) != masters or any(not set(masters).issuperset(row) for row in matrix.values()):
            raise ValueError(f"the matrix of {variable} is not one of these masters")


# =====================================================================================================================
# Benchmark
# =====================================================================================================================

DATA = Path(__file__).resolve().parent / "data"
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
    source = DATA / "benchmark_published.csv"
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
    command = [sys.executable, str(Path(__file__).resolve()), *arguments, "--paper-masters-only", "--quiet"]
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
        print("no plot: matplotlib is not installed (pip install matplotlib)")
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


# =====================================================================================================================
# Kira input
# =====================================================================================================================

KIRA_LARGEST_SELECTION = 20_000  # integrals that select_mandatory_recursively may stand for
KIRA_LARGEST_COUNT = 60  # propagators, momenta or invariants
KIRA_LARGEST_SECTOR = 18  # lines of a sector whose subsectors are listed for it
# what is read, what is only named (how Kira goes about it, not what is wanted), what would change the result and is refused
KIRA_FAMILY_KEYS = ("name", "loop_momenta", "top_level_sectors", "propagators", "cut_propagators", "zero_sectors")
KIRA_FAMILY_NAMED = ("magic_relations", "permutation", "permutation_option", "symbolic_ibp")
KIRA_KINEMATICS_KEYS = (
    "incoming_momenta",
    "outgoing_momenta",
    "momentum_conservation",
    "kinematic_invariants",
    "scalarproduct_rules",
    "symbol_to_replace_by_one",
)
KIRA_JOB_NAMED = (
    *("reduce", "identities", "sector_selection", "reduce_automatic", "generate_input", "lorenz_invariance", "symbols_2_nums"),
    *("truncate_sp", "truncate_more", "truncate_more_dots", "integral_ordering", "iterative_reduction", "check_masters", "conditional"),
    *("run_initiate", "run_triangular", "run_back_substitution", "run_firefly", "factor_scan", "pyred_database"),
    *("algebraic_reconstruction", "alt_dir", "data_file", "write_numerical_system", "create_denominator_database"),
)
KIRA_JOB_REFUSED = (
    *("extra_relations", "select_masters_reduction", "set_zero_sectors", "amplitude_translate", "insert_prefactors", "input_system"),
    *("weight_notation", "numerical_points"),
)
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
KIRA_EXPORT_JOBS = ("kira2math", "kira2form", "kira2file", "kira2formfill")


@dataclass(frozen=True)
class KiraFamily:
    """tops: the top-level sectors; cut: bit mask of the cut propagators; named: options that are there and not followed."""

    family: Family
    tops: tuple[int, ...]
    cut: int
    named: tuple[str, ...]


@dataclass(frozen=True)
class KiraProject:
    """known: all its families; chosen: those that --family names, in its order."""

    known: dict[str, KiraFamily]
    chosen: list[Family]
    config: Path
    jobs: Path

    def checked(self, requests: list[Request]) -> list[Request]:
        """Raises InputError where something is not below the top-level sectors, or propagators are no basis."""
        for request in requests:
            check_tops(self.known[request.family.name], request.integrals, str(self.config))
            Algebra(request.family, f"{self.config}: family {request.family.name}: propagators")
        return requests


@dataclass(frozen=True)
class KiraSelection:
    """What jobs.yaml selects: files of integrals (of a family, or None: each line says), integrals by range, preferred masters.

    named: options that are there and not followed; symmetries: whether they are to be used.
    """

    lists: tuple[tuple[str | None, Path], ...] = ()
    ranges: tuple[tuple[str, Index], ...] = ()
    preferred: tuple[Path, ...] = ()
    named: tuple[str, ...] = ()
    symmetries: bool = False


@dataclass(frozen=True)
class KiraKinematics:
    """replaced: expressions for the momentum that is eliminated and the symbol that is one; products, invariants as in Family."""

    momenta: tuple[str, ...]
    replaced: dict[str, str]
    products: tuple[tuple[str, str], ...]
    invariants: tuple[str, ...]

    def expand(self, text: str) -> str:
        """An expression in Kira's notation in ours."""
        return _NAME.sub(lambda match: self.replaced.get(match[0], match[0]), text.replace("^", "**"))


def read_yaml(path: Path, key: str) -> Any:
    """The value of the only key of a YAML file; scalars stay text, so that nothing is taken for a boolean. Raises InputError."""
    try:
        import yaml
    except ImportError:
        raise InputError("--kira-config needs PyYAML (pip install pyyaml)") from None

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {}  # all scalars are text

        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            names = [self.construct_object(name, deep=True) for name, _ in node.value]
            double = next((name for name in names if names.count(name) > 1), None)
            if double is not None:
                raise yaml.constructor.ConstructorError(None, None, f"key {double!r} is there twice", node.start_mark)
            return super().construct_mapping(node, deep)

    try:
        data = yaml.load(path.read_text(encoding="utf-8-sig"), Loader)
    except OSError as error:
        raise InputError(f"{path}: not readable ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise InputError(f"{path}: not readable as YAML ({' '.join(str(error).split())[:300]})") from None
    if not isinstance(data, dict) or list(data) != [key]:
        raise InputError(f"{path}: expected one mapping with the key {key!r} and no other")
    return data[key]


def expect(value: Any, kind: type, where: str) -> Any:
    """A list, mapping or text; nothing at all is an empty one. Raises InputError."""
    if value == "" and kind in (list, dict):
        return kind()
    if not isinstance(value, kind):
        names = {list: "a list", dict: "a mapping", str: "a word or number"}
        raise InputError(f"{where}: expected {names[kind]}, not {reprlib.repr(value)}")
    return value


def expect_texts(value: Any, where: str) -> tuple[str, ...]:
    """A list of words or numbers."""
    return tuple(expect(item, str, where).strip() for item in expect(value, list, where))


def expect_number(value: Any, where: str, least: int = 0) -> int:
    if not isinstance(value, str) or not re.fullmatch(r"[+-]?[0-9]{1,9}", value.strip()) or int(value) < least:
        raise InputError(f"{where}: expected an integer of at least {least}, not {reprlib.repr(value)}")
    return int(value)


def check_keys(data: dict, known: Sequence[str], where: str) -> None:
    unknown = [key for key in data if key not in known]
    if unknown:
        raise InputError(f"{where}: unknown key {reprlib.repr(unknown[0])}; known: {', '.join(known)}")


def read_kinematics(path: Path) -> KiraKinematics:
    """kinematics.yaml. Raises InputError for momenta and symbols that are unknown or contradict each other."""
    data = expect(read_yaml(path, "kinematics"), dict, f"{path}: kinematics")
    check_keys(data, KIRA_KINEMATICS_KEYS, str(path))
    invariants = _kira_invariants(data, path)
    one = expect(data.get("symbol_to_replace_by_one", ""), str, f"{path}: symbol_to_replace_by_one").strip()
    if one and invariants.get(one) is None:
        raise InputError(
            f"{path}: symbol_to_replace_by_one: {one!r} is none of the kinematic_invariants {', '.join(invariants) or '(none)'}"
        )
    if one and invariants[one] == 0:
        raise InputError(f"{path}: symbol_to_replace_by_one: {one} has mass dimension 0, so it cannot be a unit; give its dimension")
    momenta, replaced = _kira_momenta(data, path)
    names = set(momenta) | set(replaced)
    if both := sorted(names & set(invariants)):
        raise InputError(f"{path}: {both[0]!r} is a momentum and one of the kinematic_invariants")
    kinematics = KiraKinematics(momenta, replaced | ({one: "1"} if one else {}), (), tuple(name for name in invariants if name != one))
    return replace(kinematics, products=_kira_products(data, kinematics, path))


def _kira_invariants(data: dict, path: Path) -> dict[str, int]:
    """Name -> mass dimension."""
    invariants: dict[str, int] = {}
    where = f"{path}: kinematic_invariants"
    for entry in expect(data.get("kinematic_invariants", ""), list, where):
        if not isinstance(entry, list) or len(entry) != 2:
            raise InputError(f"{where}: expected [name, mass dimension], not {reprlib.repr(entry)}")
        name = expect(entry[0], str, where)
        if not _NAME.fullmatch(name) or name in invariants or name == "d":
            raise InputError(f"{where}: {name!r} is not a name, is there twice, or is 'd', the dimension")
        invariants[name] = expect_number(entry[1], f"{where}: mass dimension of {name}", least=-99)
    if len(invariants) > KIRA_LARGEST_COUNT:
        raise InputError(f"{where}: {len(invariants)} of them; at most {KIRA_LARGEST_COUNT} are taken")
    return invariants


def _kira_momenta(data: dict, path: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """The independent external momenta, and what the other one is by momentum conservation."""
    incoming, outgoing = (expect_texts(data.get(key, ""), f"{path}: {key}") for key in ("incoming_momenta", "outgoing_momenta"))
    for key, names in (("incoming_momenta", incoming), ("outgoing_momenta", outgoing)):
        bad = [name for name in names if not _NAME.fullmatch(name) or names.count(name) > 1]
        if bad:
            raise InputError(f"{path}: {key}: {bad[0]!r} is not a name, or is there twice")
    entry = expect(data.get("momentum_conservation", ""), list, f"{path}: momentum_conservation")
    where = f"{path}: momentum_conservation"
    both = [name for name in incoming if name in outgoing]
    if both and (len(incoming) > 1 or len(outgoing) > 1 or entry):  # one momentum that flows in and out again is no contradiction
        raise InputError(f"{path}: {both[0]!r} is in incoming_momenta and in outgoing_momenta; a momentum has one direction")
    names = tuple(dict.fromkeys(incoming + outgoing))
    if len(names) > KIRA_LARGEST_COUNT:
        raise InputError(f"{path}: {len(names)} external momenta; at most {KIRA_LARGEST_COUNT} are taken")
    if not entry:
        return names, {}
    if len(entry) != 2 or entry[0] not in names or not isinstance(entry[1], str):
        raise InputError(f"{where}: expected [one of {', '.join(names) or '(no momenta)'}, its expression], not {reprlib.repr(entry)}")
    gone = entry[0]
    left = tuple(name for name in names if name != gone)
    flow = linear_form(entry[1], left, where)
    total = {name: (1 if name in incoming else -1) + (1 if gone in incoming else -1) * flow.get(name, 0) for name in left}
    if wrong := show_form(total):
        raise InputError(f"{where}: with {gone} = {entry[1]} the incoming minus the outgoing momenta are {wrong}, not 0; check the signs")
    return left, {gone: f"({show_form(flow) or '0'})"}


def show_form(form: dict[str, Fraction]) -> str:
    """Such as p3-p1/2, empty for zero."""
    parts = ((value, f"{'-' if value < 0 else '+'}{'' if abs(value) == 1 else f'{abs(value)}*'}{name}") for name, value in form.items())
    return "".join(text for value, text in parts if value).removeprefix("+")


def linear_form(text: str, names: Sequence[str], where: str) -> dict[str, Fraction]:
    """Coefficients of a linear combination of momenta. Raises InputError."""
    from sympy import QQ
    from sympy.polys.polyerrors import BasePolynomialError
    from sympy.polys.rings import ring

    momenta, *generators = ring(list(names), QQ) if names else ring(["none"], QQ)
    known = dict(zip(names, generators)) | {"1": momenta.one}
    try:
        form = momenta(evaluate(text.replace("^", "**"), known, where))
    except (TypeError, ArithmeticError, BasePolynomialError):
        raise InputError(f"{where}: {text!r} is not a linear combination of momenta") from None
    if any(sum(monomial) != 1 for monomial in form.monoms()):
        raise InputError(f"{where}: {text!r} is not a linear combination of momenta")
    return {names[monomial.index(1)]: Fraction(int(c.numerator), int(c.denominator)) for monomial, c in form.terms()}


def _kira_products(data: dict, kinematics: KiraKinematics, path: Path) -> tuple[tuple[str, str], ...]:
    """Every product of two independent momenta, from rules for products of any of their combinations."""
    functions, values = function_field(("d", *kinematics.invariants), {})
    solved: dict[tuple[str, str], dict] = {}
    where = f"{path}: scalarproduct_rules"
    for rule in expect(data.get("scalarproduct_rules", ""), list, where):
        match rule:
            case [[str(first), str(second)], str(text)]:
                here = f"{where}: [[{first}, {second}], {text}]"
            case _:
                raise InputError(f"{where}: expected [[momentum, momentum], value], not {reprlib.repr(rule)}")
        a, b = (linear_form(kinematics.expand(side), kinematics.momenta, here) for side in (first, second))
        row: dict[tuple[str, ...], Any] = {(): -functions(evaluate(kinematics.expand(text), values, here))}
        for (x, u), (y, v) in itertools.product(a.items(), b.items()):
            pair = tuple(sorted((x, y), key=kinematics.momenta.index))
            _add_row(row, {pair: functions.one * (u * v).numerator / (u * v).denominator}, functions.one)
        _solve_rule(solved, row, here)
    products = []
    for i, x in enumerate(kinematics.momenta):
        for y in kinematics.momenta[i:]:
            if solved.get((x, y), {(x, y): 1}).keys() - {()}:
                raise InputError(f"{where}: the rules do not determine {x}*{y}; add a rule")
            products.append((f"{x}*{y}", str(solved[x, y].get((), functions.zero))))
    return tuple(products)


def _add_row(row: dict, other: dict, factor: Any) -> None:
    for key, number in other.items():
        row[key] = row.get(key, 0) + factor * number
        if not row[key]:
            del row[key]


def _solve_rule(solved: dict, row: dict, where: str) -> None:
    """Take one more equation row = 0; solved: what products are through those that are not solved for, and () which is 1."""
    for pair in [pair for pair in row if pair in solved]:
        _add_row(row, solved[pair], row.pop(pair))
    pivot = next((pair for pair in row if pair), None)
    if pivot is None:
        if row.get(()):
            raise InputError(f"{where}: contradicts the rules before it (and momentum conservation): {-row[()]} would be 0")
        return
    factor = -row.pop(pivot)
    row = {key: number / factor for key, number in row.items() if number}
    for other in solved.values():
        if pivot in other:
            _add_row(other, row, other.pop(pivot))
    solved[pivot] = row


def read_kira_families(path: Path, kinematics: KiraKinematics) -> dict[str, KiraFamily]:
    """integralfamilies.yaml. Raises InputError; that propagators are a basis is checked for the families in use."""
    families: dict[str, KiraFamily] = {}
    for number, data in enumerate(expect(read_yaml(path, "integralfamilies"), list, f"{path}: integralfamilies"), 1):
        data = expect(data, dict, f"{path}: family {number}")
        name = expect(data.get("name", []), str, f"{path}: family {number}: name")
        if name in families:
            raise InputError(f"{path}: two families {name!r}")
        families[name] = _kira_family(name, data, kinematics, f"{path}: family {name}")
    if not families:
        raise InputError(f"{path}: no families in it")
    return families


def _kira_family(name: str, data: dict, kinematics: KiraKinematics, where: str) -> KiraFamily:
    check_keys(data, (*KIRA_FAMILY_KEYS, *KIRA_FAMILY_NAMED), where)
    if data.get("zero_sectors", "") not in ("", []):
        raise InputError(f"{where}: zero_sectors is not supported: zero sectors are computed here; remove it")
    entries = expect(data.get("propagators", ""), list, f"{where}: propagators")
    propagators = [read_propagator(entry, f"{where}: propagator {number}") for number, entry in enumerate(entries, 1)]
    n = len(propagators)
    if not 0 < n <= KIRA_LARGEST_COUNT:
        raise InputError(f"{where}: {n} propagators; expected 1 to {KIRA_LARGEST_COUNT}")
    tops = expect_texts(data.get("top_level_sectors", [str(2**n - 1)]), f"{where}: top_level_sectors")
    sectors = tuple(dict.fromkeys(read_sector(text, n, f"{where}: top_level_sectors") for text in tops))
    union = 0
    for bits in sectors:
        union |= bits
    if not union:
        raise InputError(f"{where}: top_level_sectors: no sector in it")
    cut = _kira_cut(data.get("cut_propagators", ""), union, sectors, f"{where}: cut_propagators")
    family = Family(
        name,
        expect_texts(data.get("loop_momenta", ""), f"{where}: loop_momenta"),
        kinematics.momenta,
        tuple((kinematics.expand(momentum), kinematics.expand(mass)) for momentum, mass in propagators),
        n - union.bit_length(),
        kinematics.products,
        tuple(zip(kinematics.invariants, map(str, kira_point(len(kinematics.invariants))))),
    )
    _check_family(family, where)
    if clash := sorted(set(family.loop_momenta) & set(kinematics.replaced)):
        raise InputError(f"{where}: loop_momenta: {clash[0]!r} stands for something else in kinematics.yaml")
    named = tuple(key for key in KIRA_FAMILY_NAMED if data.get(key, "false") != "false")
    return KiraFamily(family, sectors, cut, named)


def _kira_cut(data: Any, lines: int, tops: Sequence[int], where: str) -> int:
    """Bit mask of the cut propagators, which are numbered from 1. Raises InputError."""
    cut = 0
    for text in expect_texts(data, where):
        number = expect_number(text, where, 1)
        if not lines >> (number - 1) & 1:
            raise InputError(f"{where}: {number} is not a line of the top-level sectors")
        if cut >> (number - 1) & 1:
            raise InputError(f"{where}: {number} is there twice")
        cut |= 1 << number - 1
    if not any(cut & top == cut for top in tops):
        raise InputError(f"{where}: no top-level sector has all lines {', '.join(map(str, cut_lines(cut)))}, so nothing would be left")
    return cut


def kira_point(count: int) -> list[int]:
    """Default values of so many invariants, as kinematics.yaml has none: the primes 7, 11, 13, …"""
    primes = (n for n in itertools.count(7) if all(n % q for q in range(2, math.isqrt(n) + 1)))
    return list(itertools.islice(primes, count))


def read_sector(text: str, n: int, where: str) -> int:
    """A sector as a number, or as b1101 with a digit for each propagator, the first one first."""
    if re.fullmatch(f"b[01]{{{n}}}", text):
        return int(text[:0:-1], 2)
    if re.fullmatch("[0-9]{1,18}", text) and int(text) < 1 << n:
        return int(text)
    raise InputError(f"{where}: {text!r} is neither a sector from 0 to {(1 << n) - 1} nor b and {n} binary digits")


def read_jobs(path: Path, families: dict[str, KiraFamily]) -> KiraSelection:
    """What jobs.yaml wants. Raises InputError for what would change the result and is not supported."""
    parts = []
    for number, job in enumerate(expect(read_yaml(path, "jobs"), list, f"{path}: jobs"), 1):
        if not isinstance(job, dict) or len(job) != 1:
            raise InputError(f"{path}: job {number}: expected one mapping such as reduce_sectors: ...")
        ((kind, data),) = job.items()
        where = f"{path}: {kind}"
        if kind in KIRA_EXPORT_JOBS:
            parts.append(KiraSelection(named=(kind,)))
        elif kind == "reduce_user_defined_system":
            raise InputError(f"{where}: give its equations to --system")
        elif kind == "reduce_sectors":
            parts.append(_kira_job(expect(data, dict, where), path.parent, families, where))
        else:
            raise InputError(f"{path}: unknown job {reprlib.repr(kind)}; known: reduce_sectors, {', '.join(KIRA_EXPORT_JOBS)}")
    listed = (f.name for f in fields(KiraSelection) if f.name != "symmetries")
    return KiraSelection(
        *(tuple(dict.fromkeys(item for part in parts for item in getattr(part, name))) for name in listed),
        symmetries=any(part.symmetries for part in parts),
    )


def _kira_job(data: dict, directory: Path, families: dict[str, KiraFamily], where: str) -> KiraSelection:
    selects = expect(data.get("select_integrals", ""), dict, f"{where}: select_integrals")
    masters = ("preferred_masters", "select_masters")
    for key in (*data, *selects):
        if key in KIRA_JOB_REFUSED:
            raise InputError(f"{where}: {key} is not supported; remove it")
    check_keys(data, ("select_integrals", *masters, "run_symmetries", *KIRA_JOB_NAMED), where)
    known = ("select_mandatory_list", "select_mandatory_recursively", "check_masters", *masters)
    optional = ("select_optional_list", "select_optional_recursively")
    check_keys(selects, (*known, *optional), f"{where}: select_integrals")
    lists, ranges = [], []
    for entry in expect(selects.get(known[0], ""), list, f"{where}: {known[0]}"):
        names = expect_texts(entry, f"{where}: {known[0]}")
        if len(names) not in (1, 2) or (len(names) == 2 and names[0] not in families):
            raise InputError(f"{where}: {known[0]}: expected [family, file] with a family out of {', '.join(families)}, or [file]")
        lists.append((names[0] if len(names) == 2 else None, directory / names[-1]))
    for entry in expect(selects.get(known[1], ""), list, f"{where}: {known[1]}"):
        ranges += _kira_range(entry, families, f"{where}: {known[1]}")
    preferred = [directory / expect(part[key], str, f"{where}: {key}") for part in (data, selects) for key in masters if key in part]
    named = [key for key in (*data, *selects) if key in (*KIRA_JOB_NAMED, *optional)]
    switch = expect(data.get("run_symmetries", "false"), str, f"{where}: run_symmetries").strip().lower()
    if switch not in ("true", "false"):
        raise InputError(f"{where}: run_symmetries: expected true or false, not {reprlib.repr(switch)}")
    return KiraSelection(tuple(lists), tuple(ranges), tuple(preferred), tuple(named), switch == "true")


def _kira_range(entry: Any, families: dict[str, KiraFamily], where: str) -> list[tuple[str, Index]]:
    """All integrals with at most this r, s and number of dots in these sectors and below."""
    if not isinstance(entry, dict):
        raise InputError(f"{where}: expected {{topologies: [...], sectors: [...], r: , s: , d: }}, not {reprlib.repr(entry)}")
    check_keys(entry, ("topologies", "sectors", "r", "s", "d"), where)
    names = expect_texts(entry.get("topologies", list(families)), f"{where}: topologies")
    r, s = (expect_number(entry.get(key), f"{where}: {key}") for key in ("r", "s"))
    if max(r, s) > LARGEST_TARGET_INDEX:
        raise InputError(f"{where}: r = {r}, s = {s}; at most {LARGEST_TARGET_INDEX} is taken")
    found: list[tuple[str, Index]] = []
    for name in names:
        if name not in families:
            raise InputError(f"{where}: topologies: {name!r} is none of the families {', '.join(families)}")
        n = families[name].family.n
        texts = expect_texts(entry["sectors"], f"{where}: sectors") if "sectors" in entry else tuple(map(str, families[name].tops))
        tops = [read_sector(text, n, f"{where}: sectors") for text in texts]
        if any(top.bit_count() > KIRA_LARGEST_SECTOR for top in tops):
            raise InputError(f"{where}: a sector of more than {KIRA_LARGEST_SECTOR} lines; list the integrals that are wanted in a file")
        below = sorted({bits for top in tops for bits in subsectors(top)}, key=sector_order)
        sizes = []
        for bits in below:
            dots = min(r - bits.bit_count(), expect_number(entry["d"], f"{where}: d") if "d" in entry else r)
            if dots >= 0:
                sizes.append((bits, dots))
        count = sum(math.comb(bits.bit_count() + dots, dots) * math.comb(n - bits.bit_count() + s, s) for bits, dots in sizes)
        if len(found) + count > KIRA_LARGEST_SELECTION:
            raise InputError(f"{where}: more than {KIRA_LARGEST_SELECTION:,} integrals; list those that are wanted in a file")
        found += [(name, integral) for bits, dots in sizes for integral in integrals_near_corner(bits, n, dots, s)]
    return found


def subsectors(top: int) -> Iterator[int]:
    """Every sector but 0 whose lines are lines of this one."""
    bits = top
    while bits:
        yield bits
        bits = (bits - 1) & top


def check_tops(known: KiraFamily, integrals: Iterable[Index], where: str) -> None:
    """Raises InputError for integrals outside the top-level sectors, which the Kira project does not define."""
    for integral in integrals:
        if not any(sector_of(integral) & top == sector_of(integral) for top in known.tops):
            tops = ", ".join(map(str, known.tops))
            name = known.family.name
            raise InputError(
                f"{where}: {name}{show(integral)[1:]} is in sector {sector_of(integral)}, not below top_level_sectors [{tops}]"
            )


# =====================================================================================================================
# Linear systems
# =====================================================================================================================

_LABEL = re.compile(r"\s*([A-Za-z_][\w.']*(?:\[[-+\d,\s]*\])?|\d{1,300})\s*[:*]\s*(\S.*)", re.ASCII)
_PLAIN = re.compile(r"[+-]?[0-9]{1,300}(?:/0*[1-9][0-9]{0,300})?", re.ASCII)


SystemCoefficient = Fraction | tuple[Polynomial, Polynomial]  # a number, or a function of the symbols as a ratio


@dataclass(frozen=True)
class LinearSystem:
    """Homogeneous equations sum coefficient * unknown = 0; unknowns in the order of elimination, the heaviest last.

    symbols: what the coefficients are functions of; points give their values in this order.
    """

    unknowns: tuple[str, ...]
    equations: tuple[dict[str, SystemCoefficient], ...]
    symbols: tuple[str, ...] = ()


def read_system(path: str, numbers: dict[str, Fraction], symbols: tuple[str, ...] = ()) -> LinearSystem:
    """Equations are blocks of lines 'unknown: coefficient' (or Kira's 'unknown*(coefficient)') between empty lines; '#' is a comment.

    numbers: values of what coefficients may contain beside the symbols. Raises InputError with the line.
    """
    equations: list[dict[str, SystemCoefficient]] = [{}]
    read = coefficient_reader(numbers, symbols)
    for number, line in enumerate([*read_lines(path, "--system"), ""], 1):
        text, where = line.partition("#")[0].strip(), f"--system {path}, line {number}"
        if not text:
            if not line.strip() and equations[-1]:
                equations.append({})
            continue
        match = _LABEL.fullmatch(text)
        if not match:
            raise InputError(f"{where}: {text[:100]!r} is not 'unknown: coefficient' (an unknown is a word, word[1,0,-2] or a number)")
        label, coefficient = re.sub(r"[\s+]", "", match[1]), match[2].replace("^", "**")
        if label in equations[-1]:
            raise InputError(f"{where}: {label} is in this equation twice; an empty line ends an equation")
        inner = coefficient[1:-1] if coefficient[0] == "(" and coefficient[-1] == ")" else coefficient
        # most are plain numbers, and reading an expression takes ten times as long
        equations[-1][label] = Fraction(inner) if _PLAIN.fullmatch(inner) else read(coefficient, where)
    if not equations[0]:
        raise InputError(f"--system {path}: no equations in it")
    return LinearSystem(system_order(equations), tuple(equation for equation in equations if equation), symbols)


def coefficient_reader(numbers: dict[str, Fraction], symbols: tuple[str, ...]) -> Callable[[str, str], SystemCoefficient]:
    """What makes a coefficient of a text and a place for errors."""
    if not symbols:
        return lambda text, where: evaluate(text, numbers, where)
    functions, names = function_field(symbols, numbers)
    return lambda text, where: _freeze_ratio(functions(evaluate(text, names, where)))


def system_order(equations: Sequence[dict[str, SystemCoefficient]]) -> tuple[str, ...]:
    """Lightest first: integrals of one family by their weight, numbers by size; else what comes first in the file is the heaviest."""
    labels = tuple(dict.fromkeys(label for equation in equations for label in equation))
    if all(label.isdigit() for label in labels):
        return tuple(sorted(labels, key=int))
    try:
        parts = {label: re.fullmatch(r"(.*)\[(.*)\]", label).groups() for label in labels}
        indices = {label: tuple(map(int, body.split(","))) for label, (_, body) in parts.items()}
    except (AttributeError, ValueError):  # names among them
        return labels[::-1]
    if len({(name, len(indices[label])) for label, (name, _) in parts.items()}) > 1:
        return labels[::-1]
    return tuple(sorted(labels, key=lambda label: weight(indices[label])))


def eliminate_system(system: LinearSystem, p: int, values: Sequence[int] = ()) -> tuple[dict[int, dict[int, int]], list[int]]:
    """{number of an unknown: what it equals, in lighter ones}, modulo p at values of the symbols; numbers of the equations that said so.

    Raises InputError where a denominator vanishes modulo p.
    """
    number = {label: place for place, label in enumerate(system.unknowns)}
    rows = []
    for place, equation in enumerate(system.equations):
        residues = {number[label]: _coefficient_residue(value, label, p, values) for label, value in equation.items()}
        rows.append((place, {place: value for place, value in residues.items() if value}))
    pivots: dict[int, dict[int, int]] = {}
    used = []
    for place, row in sorted(rows, key=lambda numbered: (max(numbered[1], default=-1), len(numbered[1]))):
        while row and (lead := max(row)) in pivots:
            _subtract(row, pivots[lead], -row.pop(lead), p)
        if row:
            factor = -pow(row.pop(lead), -1, p)
            pivots[lead] = {place: value * factor % p for place, value in row.items()}
            used.append(place)
    return pivots, used


def _coefficient_residue(value: SystemCoefficient, label: str, p: int, values: Sequence[int]) -> int:
    if isinstance(value, Fraction):
        above, below = value.numerator, value.denominator % p
    else:
        above, below = (polynomial_residue(part, values, p) for part in value)
    if below == 0:
        shown = value if isinstance(value, Fraction) else f"that is a function of {values}"
        raise InputError(f"--system: coefficient {shown} of {label} is a division by zero modulo {p}; take another --prime")
    return above * pow(below, -1, p) % p


def solve_system(
    system: LinearSystem, p: int, values: Sequence[int] = (), wanted: Collection[str] | None = None
) -> dict[str, dict[str, int]]:
    """Every unknown that the equations determine, heaviest first, through those that they do not, modulo p. Raises InputError.

    wanted: these alone, and what they are found through.
    """
    return back_substitute(system, eliminate_system(system, p, values)[0], p, wanted)


def back_substitute(
    system: LinearSystem, pivots: dict[int, dict[int, int]], p: int, wanted: Collection[str] | None
) -> dict[str, dict[str, int]]:
    """`solve_system` from an elimination, whose rows it changes."""
    labels = system.unknowns
    if wanted is not None:
        some = set(wanted)
        left, needed = [place for place, label in enumerate(labels) if label in some], set()
        while left:
            if (place := left.pop()) in pivots and place not in needed:
                needed.add(place)
                left += pivots[place]
        pivots = {place: pivots[place] for place in needed}
    for lead in sorted(pivots):
        row = pivots[lead]
        for place in [place for place in row if place in pivots]:
            _subtract(row, pivots[place], -row.pop(place), p)
    return {labels[lead]: {labels[k]: pivots[lead][k] for k in sorted(pivots[lead], reverse=True)} for lead in sorted(pivots, reverse=True)}


def prefer(system: LinearSystem, preferred: Sequence[str], p: int, values: Sequence[int] = ()) -> LinearSystem:
    """The system with these unknowns the lightest. Raises InputError where they are unknown or not independent."""
    for label in preferred:
        if label not in system.unknowns:
            raise InputError(f"--masters: {label} is in no equation of the system")
    rest = [label for label in system.unknowns if label not in preferred]
    ordered = replace(system, unknowns=(*preferred, *rest))
    solved = solve_system(ordered, p, values, preferred)
    for label in preferred:
        if label in solved:
            value = " + ".join(f"{value}*{term}" for term, value in solved[label].items()) or "0"
            raise InputError(f"preferred master {label} depends linearly on the ones before it: it is {value} modulo {p}; leave one out")
    return ordered


@dataclass(frozen=True)
class SystemProblem:
    """A system to be solved exactly, for these unknowns."""

    system: LinearSystem
    wanted: tuple[str, ...]

    @property
    def symbols(self) -> tuple[str, ...]:
        return self.system.symbols

    @property
    def name(self) -> str:
        return run_name(f"a system of {len(self.system.equations)} equations", self.system, self.wanted)


class SystemSampler(Sampler):
    """The same for the solution of a linear system."""

    exact: SystemProblem

    def prepare(self, rng: np.random.Generator) -> None:
        """See which equations are independent, and what the unknowns are found through. Raises ReductionError, InputError."""
        system, wanted = self.exact.system, self.exact.wanted
        for _ in range(ATTEMPTS):
            found = []
            for p in itertools.islice(probe_primes(rng), 2):  # at two points, so that no accident of one is taken for a fact
                values, began = rng.integers(1000, p - 1000, len(system.symbols)).tolist(), time.perf_counter()
                pivots, used = eliminate_system(system, p, values)
                leads = frozenset(pivots)
                solved = back_substitute(system, pivots, p, wanted)
                self.first_guess = time.perf_counter() - began
                found.append((leads, tuple((label, term) for label in wanted for term in solved.get(label, ()))))
            if found[0] == found[1]:
                break
        else:
            raise ReductionError("--system: which unknowns are independent changes from point to point; the numbers are a singular point")
        leads, self.names = found[0]
        self.raw_names, self.rows, self.variables, self.live = self.names, wanted, system.symbols, len(used)
        self.basis = tuple(label for place, label in enumerate(system.unknowns) if place not in leads)
        self.order = {label: place for place, label in enumerate(system.unknowns)}.__getitem__
        kept = replace(system, equations=tuple(system.equations[place] for place in sorted(used)))
        self.trace = Shared.write((kept, wanted, self.names, leads), self.directory.shared)

    def letters(self) -> tuple[Polynomial, ...]:
        size = len(self.variables) + 1
        return linear_letters([[int(i == k) for k in range(size)] for i, name in enumerate((*self.variables, "1")) if name != "d"])

    def _submit(self, chunk: list[Sample]) -> Future:
        return self.executor.submit(solve_points, self.trace, chunk)

    def _row(self, sample: Sample, raw: np.ndarray | None) -> np.ndarray | None:
        self.counts["unlucky"] += raw is None
        return raw


def solve_points(trace: Shared, samples: Sequence[Sample]) -> dict[str, Any]:
    """As `probe_points`, for a linear system: a point is not good where other unknowns are independent or other coefficients not zero."""
    started = time.monotonic()
    system, wanted, names, leads = trace.get()
    place = {name: position for position, name in enumerate(names)}
    table, good = np.zeros((len(samples), len(names)), np.int64), np.zeros(len(samples), np.int8)
    for line, (p, values) in enumerate(samples):
        with suppress(InputError):  # a denominator vanishes
            pivots, _ = eliminate_system(system, p, values)
            solved = back_substitute(system, pivots, p, wanted) if pivots.keys() == leads else {}
            entries = {(label, term): value for label in wanted for term, value in solved.get(label, {}).items()}
            if pivots.keys() == leads and entries.keys() <= place.keys():
                good[line] = 1
                for name, value in entries.items():
                    table[line, place[name]] = value
    return {"values": table.tobytes(), "good": good.tobytes(), "seconds": time.monotonic() - started, "peak_memory_kb": peak_memory_kb()}


# =====================================================================================================================
# Command line
# =====================================================================================================================

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


def parse_integral(text: str, family: Family, where: str) -> Index:
    """Indices from '1,1,0,-2' or 'name[1,1,0,-2]'. Raises InputError."""
    match = re.fullmatch(r"\s*(?:([A-Za-z_][\w-]*)\s*)?(\[)?([^\[\]]*)(\])?\s*", text)
    if not match or bool(match[2]) != bool(match[4]) or (match[1] and not match[2]):
        raise InputError(f"{where}: {text.strip()!r} is not a list of indices such as 1,1,0,-2 or {family.name}[1,1,0,-2]")
    name, body = match[1], match[3]
    if name not in (None, "I", family.name):
        raise InputError(f"{where}: {text.strip()!r} is of family {name!r}, this run reduces {family.name}; give --family")
    parts = body.split(",")
    if not all(re.fullmatch(r"\s*[+-]?[0-9]{1,9}\s*", part) for part in parts):
        raise InputError(f"{where}: {body!r} has an index that is not an integer; expected {family.n} integers")
    indices = tuple(map(int, parts))
    if len(indices) != family.n:
        raise InputError(f"{where}: {show(indices)} has {len(indices)} indices; {family.name} has {family.n}")
    for i in range(family.lines, family.n):
        if indices[i] > 0:
            raise InputError(
                f"{where}: index {i + 1} of {show(indices)} is {indices[i]}; it is an irreducible scalar product and must not be positive"
            )
    if max(map(abs, indices)) > LARGEST_TARGET_INDEX:
        raise InputError(f"{where}: {show(indices)} has an index of more than {LARGEST_TARGET_INDEX} in size")
    return indices


def read_lines(path: str | Path, what: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{what} {path}: not readable ({error})") from None


def read_targets(path: str | Path, families: Sequence[Family], what: str, combinations: bool = True) -> list[Request]:
    """Integrals and combinations of a file by family: lines '1,0,-2', 'FAMILY[1,0,-2]' or 'NAME: 3*I[1,1] - 2/5*I[2,0]'.

    A combination over several families is one of the same name in each. Raises InputError.
    """
    targets: dict[str, dict[Index, None]] = {family.name: {} for family in families}
    found: dict[str, list[Combination]] = {family.name: [] for family in families}
    names: set[str] = set()
    for number, line in enumerate(read_lines(path, what), 1):
        text, where = line.partition("#")[0].strip().rstrip(","), f"{what} {path}, line {number}"
        if ":" in text and combinations:
            name, terms = parse_combination(text, families, where)
            if name in names:
                raise InputError(f"{where}: a combination {name!r} is there already")
            names.add(name)
            for family in families:
                if own := tuple((integral, factor) for other, integral, factor in terms if other is family):
                    found[family.name].append(Combination(name, own, where))
        elif text:
            text = re.sub(r"-\s*\[\s*([A-Za-z_][\w-]*)\s*,(.*)\]", r"\1[\2]", text)  # Kira's older lists: - [name,1,0,-2]
            family = family_of(text, families, where)
            targets[family.name][parse_integral(text, family, where)] = None
    if not names and not any(targets.values()):
        raise InputError(f"{what} {path}: no integrals in it")
    requests = [Request(family, tuple(targets[family.name]), tuple(found[family.name])) for family in families]
    return [request for request in requests if request.integrals or len(families) == 1]


def family_of(text: str, families: Sequence[Family], where: str) -> Family:
    """The family that an integral such as NAME[1,0] is of; where there is one family, that one. Raises InputError."""
    if len(families) == 1:
        return families[0]
    match = re.match(r"\s*([A-Za-z_][\w-]*)\s*\[", text)
    family = next((family for family in families if match and family.name == match[1]), None)
    if family is None:
        raise InputError(f"{where}: {text[:100]!r} is not FAMILY[indices] of one of {', '.join(family.name for family in families)}")
    return family


_PLACE = "integral_of_a_term"  # stands in a term for its integral


def parse_combination(text: str, families: Sequence[Family], where: str) -> tuple[str, list[tuple[Family, Index, str]]]:
    """Name and terms (family, integral, coefficient) of 'NAME: 3*I[1,1] - (d-4)/s*I[2,0]'. Raises InputError."""
    name, _, body = (part.strip() for part in text.partition(":"))
    if not re.fullmatch(r"[A-Za-z_][\w.-]*", name, re.ASCII):
        raise InputError(f"{where}: {name[:100]!r} before ':' is not a name of letters, digits, '_', '.' and '-'")
    known = "|".join(map(re.escape, sorted(["I", *(family.name for family in families)], key=len, reverse=True)))
    integrals: list[str] = []

    def take(match: re.Match) -> str:
        integrals.append(match[0])
        return f"{_PLACE}{len(integrals) - 1}_"

    left = re.sub(rf"(?<![\w.])(?:{known})\s*\[[^\[\]]*\]", take, body.replace("^", "**"))
    terms = []
    for term in split_terms(left):
        places = re.findall(rf"{_PLACE}(\d+)_", term)
        if len(places) != 1 or "[" in term:
            raise InputError(f"{where}: {term.strip()[:100]!r} in {name} is not a coefficient times one integral".replace(_PLACE, "I"))
        integral, place = integrals[int(places[0])], f"{_PLACE}{places[0]}_"
        if not is_factor(term, place):
            raise InputError(f"{where}: {name} is not linear in {integral}; write each term as coefficient*integral")
        family = family_of(integral, families, where)
        terms.append((family, parse_integral(integral, family, where), term.strip().replace(place, "1")))
    if not terms:
        raise InputError(f"{where}: nothing after {name!r}:")
    return name, terms


def split_terms(text: str) -> list[str]:
    """The terms of a sum, signs included: it is cut before each + or - that is in no parenthesis and follows no operator."""
    starts, depth, before = [0], 0, "("
    for place, character in enumerate(text):
        if character in "+-" and depth == 0 and before not in "(*/+-":
            starts.append(place)
        depth += (character == "(") - (character == ")")
        before = before if character.isspace() else character
    return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)]) if text.strip()]


def is_factor(term: str, name: str) -> bool:
    """Whether a term is a product with this name as one factor, not in a denominator. False as well for what is no arithmetic."""
    try:
        node = ast.parse(term.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    while not (isinstance(node, ast.Name) and node.id == name):
        match node:
            case ast.BinOp(op=ast.Mult(), left=left, right=right):
                node = left if any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(left)) else right
            case ast.BinOp(op=ast.Div(), left=node) | ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=node):
                pass
            case _:
                return False
    return True


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


def only_one(requests: Sequence[Request]) -> Request:
    """Raises InputError."""
    if len(requests) > 1:
        raise InputError(f"this is for one family at a time: choose by --family out of {', '.join(each.family.name for each in requests)}")
    return requests[0]


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


def parse_cut(text: str, family: Family) -> int:
    """Bit mask of the lines in '1,2'. Raises InputError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,3}", part) and 1 <= int(part) <= family.n for part in parts) or len(set(map(int, parts))) < len(
        parts
    ):
        raise InputError(f"--cut {text!r}: expected different lines from 1 to {family.lines}, such as 1,2, or 'spanning'")
    for part in parts:
        if int(part) > family.lines:
            raise InputError(f"--cut {text}: propagator {part} of {family.name} is an irreducible scalar product, which cannot be cut")
    return sum(1 << int(part) - 1 for part in parts)


def lowest_sectors(nonzero: Sequence[int], tops: Sequence[int]) -> list[int]:
    """The non-zero sectors below these that have no non-zero subsectors; every other one contains one of them."""
    below = [bits for bits in nonzero if any(bits & top == bits for top in tops)]
    return [bits for bits in below if not any(other != bits and other & bits == other for other in below)]


def make_beam(options: Options, family: Family) -> Beam | None:
    """How to search, None for local elimination. Raises InputError."""
    if options.engine == "rules":
        return None
    policy = read_policy(str(DATA / "policy.pt") if options.policy is None else options.policy, family)
    return Beam(options.beam_width, options.max_steps, options.beam_order, not options.no_rules, policy)


def make_guide(options: Options, family: Family) -> tuple[bytes | None, str]:
    """The guide of local elimination, None for the fixed order; and why there is none where one was expected. Raises PolicyRefused.

    Only weights that were asked for by name must be there.
    """
    if options.engine != "rules" or options.policy in ("fixed", "random"):
        return None, ""
    try:
        return read_guide(options.policy or str(DATA / "policy.pt"), family), ""
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


def say(line: str) -> None:
    """One line on stderr, whatever is in it."""
    line = " ".join(line.split())
    with suppress(OSError):  # nobody may read stderr any more; that must not end a run
        print(f"ibp_reduce: {line if len(line) < 900 else line[:900] + ' ...'}", file=sys.stderr, flush=True)


def store_path(options: Options) -> Path:
    return Path(options.store) if options.store is not None else Path(options.work_dir) / "store.shelf"


def open_stores(options: Options) -> tuple[list[Store], list[Store]]:
    """To look things up, and of a run, which learns into the last one."""
    path, shipped = store_path(options), Store(DATA / "rules.shelf", read_only=True, say=say)
    own = [Store(path, write_only=True, say=say)] if options.cold else [shipped, Store(path, say=say)]
    return [shipped, Store(path, read_only=True, say=say)], own


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


def known_nonzero_sectors(family: Family, shelves: Sequence[Store]) -> tuple[int, ...]:
    """From a store, or found."""
    for shelf in shelves:
        if (found := shelf.load(family).nonzero) is not None:
            return found
    return find_nonzero_sectors(evaluate_identities(derive_identities(family), generic_point(family)), family.lines)


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
    shelves = [] if options.cold else [Store(DATA / "rules.shelf", read_only=True, say=say)]
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
        say(f"the package {error.name} is missing: pip install {error.name}")
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
