#!/usr/bin/env python3
"""Reduce Feynman integrals to master integrals by integration-by-parts identities.

    python ibp_reduce.py --local 8                             # I[3,2,1,3,2,2,-6] of trianglebox to its 16 masters
    python ibp_reduce.py --integral 1,1,1,1,1,1,-3 --output r.pkl
    python ibp_reduce.py --family doublebox --integral 1,1,1,1,1,1,1,-2,-2
    python ibp_reduce.py --integrals targets.txt --prime 2147483647
    python ibp_reduce.py --list-families
    python ibp_reduce.py --benchmark

How a reduction goes (the sections below, in this order):
    Errors                  one root, one line for the user
    Constants               limits, the neighbourhoods that a search tries
    Families                definition, built-in families, JSON files
    Identities              IBP and LI operators derived from the propagators, then put at a numerical point
    Sectors and weights     bit masks, zero sectors, the order of integrals as one int64
    Symmetries              shifts of momenta that make sectors equivalent, found by U and F, proved by substitution
    Rules: discovery        local elimination around one integral finds the rows that reduce it
    Rules: replay           the same rows reduce all other integrals of the sector, many at a time
    One sector              waves of one-step results, coefficients carried down to the subsectors
    One-step tasks          batches of integrals for any executor, and what a closure under one-step reduction has met
    Masters                 which integrals nothing reduces; corners; a preferred basis
    Store                   rules, identities and one-step results on disk, shared by programs; the journal of a run
    Controller              sectors from the top down, over an executor
    Asynchronous controller one-step tasks without barriers, resumable; what --status shows
    Results                 pickle, summary
    Benchmark               the published integrals against the published figures
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
import copy
import hashlib
import io
import itertools
import json
import math
import os
import pickle
import queue
import re
import shelve
import shlex
import shutil
import sqlite3
import struct
import sys
import time
import zipfile
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from condor_worker import (
    LONGEST_TIMEOUT_S,
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


# =====================================================================================================================
# Constants
# =====================================================================================================================

MAX_PRIME = 2**31 - 1  # products of two residues must fit an int64
GENERIC_PRIME = 2**31 - 1  # facts about a family and the search for rules use this prime at a pseudo-random point
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
BEAM_WIDENINGS = (1, 4, 16)  # a beam that finds nothing is tried again with so many times its width
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

    The file holds one object: name, loop_momenta ["k1"], external_momenta ["p1", "p2"], propagators ["k1", ["k1+p1", "m"], …] (momentum or
    [momentum, squared mass], ISPs last), isps (how many), kinematics {"p1*p1": "0", "p1*p2": "s/2"}, invariants {"s": 3} with their
    default values, and optionally d. Raises InputError.
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
    if not isinstance(data, dict):
        raise InputError(f"family file {path}: expected one JSON object with the keys {', '.join(_FAMILY_KEYS)}")
    for key, kind in _FAMILY_KEYS.items():
        if not isinstance(data.get(key), kind) or isinstance(data.get(key), bool):
            raise InputError(f"family file {path}: key {key!r} is missing or not a {kind.__name__}")
    unknown = set(data) - set(_FAMILY_KEYS) - {"d"}
    if unknown:
        raise InputError(f"family file {path}: unknown key {sorted(unknown)[0]!r}; known: {', '.join(_FAMILY_KEYS)}, d")
    propagators = [entry if isinstance(entry, list) else [entry, "0"] for entry in data["propagators"]]
    if any(len(entry) != 2 for entry in propagators):
        raise InputError(f"family file {path}: a propagator is 'momentum' or ['momentum', 'squared mass']")
    family = Family(
        data["name"],
        tuple(map(str, data["loop_momenta"])),
        tuple(map(str, data["external_momenta"])),
        tuple((str(momentum), str(mass)) for momentum, mass in propagators),
        data["isps"],
        tuple((str(pair), str(value)) for pair, value in data["kinematics"].items()),
        tuple((str(name), str(value)) for name, value in data["invariants"].items()),
        d=str(data.get("d", 41)),
    )
    _check_family(family, f"family file {path}")
    return family


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
    ast.Pow: lambda a, b: a**b,
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
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS and not isinstance(op, ast.Pow):
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
    externals: products of external momenta; in_propagators: a quadratic form's coefficients of D_1 … D_n and 1. Raises InputError.
    """

    def __init__(self, family: Family):
        from sympy import QQ
        from sympy.polys.fields import field as rational_functions
        from sympy.polys.rings import ring

        where = f"family {family.name}"
        self.functions, *symbols = rational_functions(list(family.symbols), QQ)
        momenta_ring, *self.momenta = ring([*family.loop_momenta, *family.external_momenta], self.functions.to_domain())
        invariants = dict(zip(family.symbols, symbols)) | {"1": self.functions.one}
        vectors = dict(zip([*family.loop_momenta, *family.external_momenta], self.momenta))
        self.propagators = [_propagator(text, vectors, invariants, momenta_ring, where) for text, _ in family.propagators]
        self.masses = [self.functions(evaluate(mass, invariants, where)) for _, mass in family.propagators]
        self.externals = _external_products(family, invariants, self.functions, where)
        self.in_propagators = _scalar_products_to_propagators(family, self.propagators, self.masses, self.externals, self.functions, where)


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


def _scalar_products_to_propagators(
    family: Family, propagators: list, masses: list, externals: dict, functions: Any, where: str
) -> Callable[[Any], list]:
    """The map from a quadratic form in the momenta to its n + 1 coefficients of D_1 … D_n and 1."""
    from sympy.polys.matrices import DomainMatrix
    from sympy.polys.matrices.exceptions import DMNonInvertibleMatrixError

    loops, n = len(family.loop_momenta), family.n
    total = loops + len(family.external_momenta)
    column = {pair: number for number, pair in enumerate((i, j) for i in range(loops) for j in range(i, total))}

    def split(form: Any) -> list:
        """Coefficients of the scalar products with a loop momentum, then the constant part."""
        row = [functions.zero] * (n + 1)
        for monomial, value in form.terms():
            i, j = (k for k, power in enumerate(monomial) for _ in range(power))
            if i < loops:
                row[column[i, j]] += value
            else:
                row[n] += value * externals[i - loops, j - loops]
        return row

    rows = [split(form) for form in propagators]
    try:
        inverse = DomainMatrix([row[:n] for row in rows], (n, n), functions.to_domain()).inv().to_list()
    except DMNonInvertibleMatrixError:
        raise InputError(
            f"{where}: the propagators are linearly dependent; they must span all {n} scalar products with loop momenta"
        ) from None
    constants = [row[n] - mass for row, mass in zip(rows, masses)]

    def convert(form: Any) -> list:
        row = split(form)
        linear = [sum((row[k] * inverse[k][b] for k in range(n) if row[k]), functions.zero) for b in range(n)]
        return [*linear, row[n] - sum((linear[b] * constants[b] for b in range(n)), functions.zero)]

    return convert


def _freeze_operator(terms: dict) -> Operator:
    """Builtin types only, so that an operator can be stored and sent: integer polynomials over the symbols."""
    frozen = []
    for shift, row in sorted(terms.items()):
        coefficients = []
        for i, value in sorted(row.items()):
            if value:
                coefficients.append((i, *_freeze_ratio(value)))
        if coefficients:
            frozen.append((shift, tuple(coefficients)))
    return tuple(frozen)


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


def evaluate_identities(operators: Sequence[Operator], point: Point) -> Equations:
    """Put d and the invariants into the operators. Raises InputError where a denominator vanishes modulo the prime."""
    p, values = point.prime, point.residues()

    @cache
    def polynomial(terms: Polynomial) -> int:
        return polynomial_residue(terms, values, p)

    labels, shifts, rows = [], [], []
    for number, terms in enumerate(operators):
        for shift, coefficients in terms:
            row = [0] * (len(shift) + 1)
            for i, numerator, denominator in coefficients:
                below = polynomial(denominator)
                if below == 0:
                    shown = ", ".join(f"{name}={value}" for name, value in (("d", point.d), *point.invariants))
                    raise InputError(
                        f"the point {shown} makes an identity degenerate: division by zero modulo {p}; take another point or prime"
                    )
                row[i] = polynomial(numerator) * pow(below, -1, p) % p
            labels.append(number)
            shifts.append(shift)
            rows.append(row)
    return Equations(p, len(operators), np.array(labels), np.array(shifts, np.int64), np.array(rows, np.int64))


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
    r_max, s_max = max(r for r, _ in pairs), max(s for _, s in pairs)
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
        place, digits = 1, []
        for i in range(self.n):
            if i not in self.implied:
                digits.append((i, place))
                place *= layout.radix
        self.s_place, self.r_place = place, place * layout.radix
        self.digits = digits[::-1]
        own = dict(digits)
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
    seed = np.array(corner(bits, n))
    values = (equations.coefficient[:, 0] + equations.coefficient[:, 1:] @ seed) % p
    rows: list[dict[Index, int]] = [{} for _ in range(equations.count)]
    for operator, shift, value in zip(equations.operator.tolist(), equations.shift, values.tolist()):
        term = tuple((seed + shift).tolist())
        if value and sector_of(term) == bits:
            rows[operator][term] = value
    target = tuple(seed.tolist())
    return any(target in row for row in row_echelon(rows, p, keep=target) if len(row) == 1)


def row_echelon(rows: Iterable[dict], p: int, keep: Any = None) -> list[dict]:
    """Gaussian elimination of sparse rows modulo p: what is left when every key but `keep` has been used as a pivot where possible."""
    pivots: dict[Any, dict] = {}
    left = []
    for row in rows:
        row = dict(row)
        while True:
            key = next((k for k in row if k in pivots), None)
            if key is None:
                break
            _subtract(row, pivots[key], row[key], p)
        key = next((k for k in row if k != keep), None)
        if key is None:
            left.append(row)
            continue
        inverse = pow(row[key], -1, p)
        row = {k: value * inverse % p for k, value in row.items()}
        for other in pivots.values():
            if key in other:
                _subtract(other, row, other[key], p)
        pivots[key] = row
    return left


def _subtract(row: dict, other: dict, factor: int, p: int) -> None:
    """row -= factor * other, modulo p, without zeros."""
    for key, value in other.items():
        new = (row.get(key, 0) - factor * value) % p
        if new:
            row[key] = new
        else:
            row.pop(key, None)


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


class Geometry:
    """The propagators of a family as exact quadratic forms of the momenta x = (k, p): D_i = x Q_i x - m_i.

    forms: n arrays [M, M] of numbers; masses [n]; products[a][b]: x_a . x_b through D_1 … D_n and 1, as pairs (place, coefficient); gram
    [E, E]; routing: (loop part [L], external part [E]) of each propagator that is the square of a momentum, else None; flips: permutations
    of the legs. Numbers are rational where they can be, else polynomials or functions of the invariants. Raises InputError.
    """

    def __init__(self, family: Family):
        algebra = Algebra(family)
        self.family, self.functions, self.loops = family, algebra.functions, len(family.loop_momenta)
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

        sum x_i D_i = k M k + 2 k V + J gives U = det M, F = J U - V adj(M) V (arXiv:1111.0868; the sign of F is of no concern).
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
        matrix, linear = total[:loops, :loops], total[:loops, loops:]
        u = _determinant(matrix, parameters.one)
        result = u + constant * u
        for i, j in itertools.product(range(loops), repeat=2):
            minor = _determinant(np.delete(np.delete(matrix, i, 0), j, 1), parameters.one) * (-1) ** (i + j)
            for a, b in zip(*np.nonzero(self.gram)):
                result -= minor * linear[i, a] * linear[j, b] * self.functions(self.gram[a, b])
        terms = sorted(result.terms())
        return np.array([monomial for monomial, _ in terms], np.int64).reshape(-1, lines), [_freeze_ratio(value) for _, value in terms]

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

    def text(self, shift: np.ndarray) -> tuple[str, ...]:
        """A shift [M, M] of the momenta for people, one entry for each that changes; all signs may be reversed."""
        return min(self._text(shift), self._text(-shift), key=lambda lines: (len(lines), sum(map(len, lines))))

    def _text(self, shift: np.ndarray) -> tuple[str, ...]:
        lines = []
        for name, row in zip(self.names, shift):
            signs = {"1": "+", "-1": "-"}
            parts = [signs.get(str(value), f"+({value})*") + other for other, value in zip(self.names, row) if value]
            text = "".join(parts).removeprefix("+") or "0"
            if text != name:
                lines.append(f"{name} -> {text}")
        return tuple(lines)


def _plain(value: Any) -> Any:
    """A function of the invariants as a rational number or a polynomial where it is one: they are faster."""
    from sympy import QQ

    if not value.denom.is_ground:
        return value
    return QQ(value.numer.LC) / QQ(value.denom.LC) if value.numer.is_ground else value.numer.quo_ground(value.denom.LC)


def _determinant(matrix: np.ndarray, one: Any) -> Any:
    """By expansion along the first row: matrices are as large as there are loops."""
    if not len(matrix):
        return one
    minors = (_determinant(np.delete(matrix[1:], j, 1), one) for j in range(len(matrix)))
    return sum(((-1) ** j * value * minor for j, (value, minor) in enumerate(zip(matrix[0], minors))), 0 * one)


def _inverse(matrix: np.ndarray) -> np.ndarray | None:
    """Of a small square matrix of numbers; None if there is none."""
    from sympy import QQ

    determinant = _determinant(matrix, QQ(1))
    if not determinant:
        return None
    size = len(matrix)
    result = np.empty((size, size), object)
    for i, j in itertools.product(range(size), repeat=2):
        result[j, i] = (-1) ** (i + j) * _determinant(np.delete(np.delete(matrix, i, 0), j, 1), QQ(1)) / determinant
    return result


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

    def extend(chosen: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(chosen) == count:
            yield chosen
            return
        for leg in range(count + 1):
            more = (*chosen, leg)
            if leg not in chosen and not any(products[leg, other] - products[len(chosen), i] for i, other in enumerate(more)):
                yield from extend(more)

    for chosen in extend(()):
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
    if not routed or loops != target.loops or _differ(source.gram, target.gram):
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
    measure = _determinant(shift[:loops, :loops], 1)  # of rational numbers
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
        source.text(shift),
        tuple(tuple(((j + 1) % (n + 1), *_freeze_ratio(exact(value))) for j, value in enumerate(row) if value) for row in rows),
    )


def find_symmetries(geometry: Geometry, nonzero: Sequence[int]) -> Symmetries:
    """Which non-zero sectors of a family are equivalent at generic kinematics; the lightest of each class represents it."""
    classes: dict[tuple, list[tuple[int, list[tuple[int, ...]]]]] = {}
    maps: dict[int, SectorMap] = {}
    unshifted = []
    for bits in sorted(nonzero, key=sector_order):
        form, orders = geometry.canonical(bits)
        alike = classes.setdefault((bits.bit_count(), form), [])
        for representative, theirs in alike:
            if found := _lightest_map(geometry, [list(zip(orders[0], order)) for order in theirs]):
                maps[bits] = found
                break
            unshifted.append((bits, representative))
        else:
            alike.append((bits, orders))
    return Symmetries(maps, tuple(unshifted))


def _lightest_map(geometry: Geometry, ways: Sequence[Sequence[tuple[int, int]]]) -> SectorMap | None:
    """The shift with the fewest terms of those that carry lines into lines in one of these ways; a reflection only where it takes one."""
    for reflections in (False, True):
        found = []
        for pairs in ways:
            found += find_shifts(geometry, geometry, pairs, reflections)
            if found and found[-1].size == geometry.family.n:  # every propagator becomes another one
                return found[-1]
        if found:
            return min(found, key=lambda shift: shift.size)
    return None


def own_maps(geometry: Geometry, bits: int) -> tuple[SectorMap, ...]:
    """Shifts that carry a sector into itself, one for each permutation of its lines and choice of signs, without the identity."""
    _, orders = geometry.canonical(bits)
    found = [shift for order in orders for shift in find_shifts(geometry, geometry, list(zip(orders[0], order)))]
    return tuple({shift.rows: shift for shift in found if shift.shift}.values())


class NumericMap:
    """A SectorMap at a point: an integral of the source as a sum of integrals of the target and its subsectors."""

    def __init__(self, found: SectorMap, point: Point, n: int):
        """Raises InputError where a denominator vanishes modulo the prime."""
        self.target, self.p, self.n = found.target, point.prime, n
        self.source_lines = np.array([i - 1 for i, _ in found.lines])
        self.target_lines = np.array([j - 1 for _, j in found.lines])
        self.others = np.setdiff1d(np.arange(n), self.source_lines)
        values = point.residues()
        self.rows = [
            (
                np.array([[j == b + 1 for b in range(n)] for j, _, _ in row], np.int64).reshape(-1, n),
                np.array([_residue(above, below, values, point) for _, above, below in row], np.int64),
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


def _residue(above: Polynomial, below: Polynomial, values: Sequence[int], point: Point) -> int:
    p = point.prime
    divisor = polynomial_residue(below, values, p)
    if divisor == 0:
        shown = ", ".join(f"{name}={value}" for name, value in (("d", point.d), *point.invariants))
        raise InputError(f"the point {shown} makes a symmetry degenerate: division by zero modulo {p}; take another point or prime")
    return polynomial_residue(above, values, p) * pow(divisor, -1, p) % p


def reachable_sectors(nonzero: Sequence[int], maps: dict[int, SectorMap]) -> dict[int, frozenset[int]]:
    """For every sector all others that its integrals may lead to: the subsectors, the representative and what that leads to."""
    reached: dict[int, frozenset[int]] = {}
    for bits in sorted(nonzero, key=sector_order):
        below = tuple(b for b in nonzero if b != bits and b & bits == b) + ((maps[bits].target,) if bits in maps else ())
        reached[bits] = frozenset(below).union(*(reached[b] for b in below))
    return reached


def describe_symmetries(family: Family, nonzero: Sequence[int]) -> str:
    """Every map, one a line."""

    def line(what: str, shift: SectorMap) -> str:
        lines = " ".join(f"{i}>{j}" for i, j in shift.lines)
        return f"  {what:12} lines {lines}   {', '.join(shift.shift) or 'no shift'}"

    geometry = Geometry(family)
    found = find_symmetries(geometry, nonzero)
    own = {bits: own_maps(geometry, bits) for bits in nonzero if bits not in found.maps}
    count, sectors = sum(map(len, own.values())), sum(map(bool, own.values()))
    rows = [f"{family.name}: {len(nonzero)} non-zero sectors, {len(own)} unique, {count} maps of {sectors} sectors into themselves"]
    rows += [line(f"{bits} -> {shift.target}", shift) for bits, shift in found.maps.items()]
    rows += [line(f"{bits} -> {bits}", shift) for bits, shifts in own.items() for shift in shifts]
    rows += [f"  {a} and {b} have the same U and F, but no shift was found" for a, b in found.unshifted]
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
    dr, ds = seeds[:, sector.positive].sum(1), -seeds[:, ~sector.positive].sum(1)
    (r0, r1), (s0, s1) = neighbourhood.dr, neighbourhood.ds
    return (r0 <= dr) & (dr <= r1) & (s0 <= ds) & (ds <= s1)


def holds(region: Neighbourhood | CornerRegion, sector: Sector, seeds: np.ndarray) -> bool:
    """Whether all of these seeds [S, n], relative to a target, belong to a neighbourhood."""
    if isinstance(region, CornerRegion):
        return False
    size = np.abs(seeds)
    return bool((size.max(1) <= region.reach).all() and (size.sum(1) <= region.norm).all() and in_ranges(region, sector, seeds).all())


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

    @property
    def rows(self) -> int:
        return len(self.seeds) * self.operators

    def only(self, rows: np.ndarray) -> SearchSpace:
        """The same space with these rows [R] alone."""
        part, kept = copy.copy(self), np.isin(self.row, rows)
        part.seed, part.term, part.row, part.column = self.seed[kept], self.term[kept], self.row[kept], self.column[kept]
        return part

    def system(self, sector: Sector, equations: Equations, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, columns and values of the entries at one target [n]: seeds inside the sector, terms inside the sector and not zero.

        A row with a column that no other row has cannot take part in a combination; such rows are removed until none is left.
        """
        inside = sector.contains(target + self.seeds)[self.seed] & sector.contains(target + self.columns)[self.column]
        row, column = self.row[inside], self.column[inside]
        seeds = np.column_stack([np.ones(len(self.seeds)), target + self.seeds])
        values = (
            np.rint(equations.coefficient.astype(float) @ seeds.T).astype(np.int64)[self.term[inside], self.seed[inside]] % equations.prime
        )
        keep = values != 0
        while not keep.all():
            row, column, values = row[keep], column[keep], values[keep]
            count = np.bincount(column, minlength=len(self.columns))
            count[-1] = 2
            lonely = np.zeros(self.rows, bool)
            lonely[row[count[column] == 1]] = True
            keep = ~lonely[row]
        return row, column, values


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
        return self.find_in(space.only(rows), target, level, equations) if space.complete else None

    def find_in(self, space: SearchSpace, target: np.ndarray, level: int, equations: Equations) -> Rule | None:
        """A rule out of the rows of this space that reduces the integral with these indices [n] at the point of the equations, or None."""
        row, column, value = space.system(self.sector, equations, target)
        last = len(space.columns) - 1
        if not (column == last).any():
            return None
        matrix: dict[int, dict[int, int]] = {}
        for r, c, v in zip(row.tolist(), column.tolist(), value.tolist()):
            matrix.setdefault(r, {})[c] = v
        combinations = eliminate_heavier(matrix, last, equations.prime)
        if not combinations:
            return None
        best = min(combinations, key=lambda rows: (self._heaviest_result(space, equations, target, rows), sorted(rows)))
        return self._rule(space, {r: matrix[r] for r in sorted(best)}, equations.prime, level)

    def _heaviest_result(self, space: SearchSpace, equations: Equations, target: np.ndarray, rows: dict[int, int]) -> float:
        """Key of the heaviest integral that a combination expresses the target through, relative to it: the lighter, the fewer follow."""
        total: dict[int, int] = {}
        for r, factor in rows.items():
            term = equations.operator == r % space.operators
            seed = target + space.seeds[r // space.operators]
            values = (equations.coefficient[term, 0] + equations.coefficient[term, 1:] @ seed) % equations.prime
            inside = self.sector.contains(seed + equations.shift[term])
            distance = (seed - target + equations.shift[term][inside]) @ self.sector.weights
            for key, value in zip(distance.tolist(), values[inside].tolist()):
                total[key] = (total.get(key, 0) + factor * value) % equations.prime
        lighter = [key for key, value in total.items() if value and key < 0]
        return max(lighter) if lighter else -math.inf

    def result_weight(self, rule: Rule, target: np.ndarray, equations: Equations) -> tuple[float, tuple]:
        """Sort key: as _heaviest_result for a rule, then its rows."""
        compiled = CompiledRule(self.sector, equations, rule)
        value = compiled.replay(np.concatenate([[1.0], target])[None], equations.prime)[0]
        lighter = (value != 0) & (compiled.distance < 0) & self.sector.contains(target + compiled.offset)
        return max(compiled.distance[lighter].tolist(), default=-math.inf), rule.rows

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
    rows = {r: dict(row) for r, row in matrix.items()}
    origins: dict[int, dict[int, int]] = {r: {r: 1} for r in rows}
    having: dict[int, set[int]] = {}
    for r, row in rows.items():
        for c in row:
            having.setdefault(c, set()).add(r)
    having.pop(target, None)
    for c in sorted(having):
        users = having.pop(c)
        if not users:
            continue
        pivot = min(users, key=lambda r: (len(origins[r]), len(rows[r]), r))
        pivot_row, pivot_origin = rows.pop(pivot), origins.pop(pivot)
        for k in pivot_row:
            if k in having:
                having[k].discard(pivot)
        inverse = pow(pivot_row.pop(c), -1, p)
        users.discard(pivot)
        for r in sorted(users):
            row = rows[r]
            factor = row.pop(c) * inverse % p
            for k, value in pivot_row.items():
                new = (row.get(k, 0) - factor * value) % p
                if new:
                    row[k] = new
                    if k != target:
                        having[k].add(r)
                elif k in row:
                    del row[k]
                    if k != target:
                        having[k].discard(r)
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
        first = np.searchsorted(equations.operator, np.arange(equations.count + 1))
        terms = [np.arange(first[operator], first[operator + 1]) for operator, _ in rule.rows]
        term = np.concatenate(terms)
        row = np.repeat(np.arange(len(terms)), [len(part) for part in terms])
        seeds = np.array([seed for _, seed in rule.rows], np.int64)
        offset = equations.shift[term] + seeds[row]
        form = equations.coefficient[term].copy()
        form[:, 0] = (form[:, 0] + (form[:, 1:] * seeds[row]).sum(1)) % equations.prime
        distance = offset @ sector.weights
        order = np.argsort(-distance, kind="stable")
        distance = distance[order]
        self.start = run_starts(distance)
        self.row, self.form = row[order], np.ascontiguousarray(form[order].T.astype(float))
        self.distance, self.offset = distance[self.start], offset[order][self.start]
        self.heavier = int((self.distance > 0).sum())
        self.rows = len(terms)
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
            matrix = np.zeros((len(targets), self.rows - 1, self.rows), np.int64)
            matrix[:, self.pivot_place[0], self.pivot_place[1]] = values[:, self.pivot_entry]
            values = values * null_vector(matrix, p)[:, self.row] % p
            values = np.add.reduceat(values, self.start, axis=1) % p
        return values


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
        self.dr_shift = equations.shift[:, sector.positive].sum(1)
        self.ds_shift = -equations.shift[:, ~sector.positive].sum(1)
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
        action = np.repeat(np.arange(len(operator)), size)
        term = np.arange(len(action)) + np.repeat(self.first[operator] - np.cumsum(size) + size, size)
        value = self._values(term, seed[action])
        action, term, value = action[value != 0], term[value != 0], value[value != 0]
        change = seed - self.target
        positive = self.sector.positive
        moves = Moves(
            operator,
            seed,
            action,
            (change @ self.sector.weights)[action] + self.key_shift[term],
            self.sector.contains(seed[action] + self.equations.shift[term]),
            change[:, positive].sum(1)[action] + self.dr_shift[term],
            -change[:, ~positive].sum(1)[action] + self.ds_shift[term],
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
        pivot = row.pop(heaviest, 0)
        if not pivot:
            return None
        factor = -pow(pivot, -1, p) % p
        line = {key: value * factor % p for key, value in row.items()}
        solved = {key: substitute(other, {heaviest: line}, p) for key, other in position.solved.items()} | {heaviest: line}
        return Position((*position.actions, action), substitute(position.open, {heaviest: line}, p), solved, position.score + score)


def chosen_moves(moves: Moves, chosen: np.ndarray) -> Moves:
    """Those of the actions that are chosen, bool [C]."""
    kept = chosen[moves.action]
    action = (np.cumsum(chosen) - 1)[moves.action[kept]]
    entries = (getattr(moves, name)[kept] for name in ("key", "own", "dr", "ds"))
    return Moves(moves.operator[chosen], moves.seed[chosen], action, *entries)


def substitute(row: dict[int, int], lines: dict[int, dict[int, int]], p: int) -> dict[int, int]:
    """A row with every key that has a line replaced by it, without zeros."""
    result = {key: value for key, value in row.items() if key not in lines}
    for key in row.keys() & lines.keys():
        _subtract(result, lines[key], -row[key], p)
    return result


# =====================================================================================================================
# Policy
# =====================================================================================================================

POLICY_FORMAT = 1  # of a weights file, and of what its inputs mean
POLICY_KIND = "ibp_reduce policy"
FAR = 4  # relative indices, r and s are cut off here, so that the policy sees the neighbourhood alone
EMBEDDED_INPUTS = (14, 7, 6)  # of an entry, an index, an open integral
ACTION_INPUTS = 8
SCORED_TOGETHER = 8  # positions: some thousand entries, so that memory stays small
EMBEDDING_SCALE = 0.2  # sums over a dozen parts become numbers of order one


class PolicyRefused(InputError):
    """Weights that are missing, damaged, or of another family or version."""


@dataclass(frozen=True, eq=False)
class Features:
    """A position and its actions as the policy sees them: relative numbers only, so that one policy serves any family.

    entries [F, 14] of the actions' identities, which belong to actions `action` [F]; indices [C * n, 7], n for each action;
    actions [C, 8]; open [H, 6]; all int8.
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
    positive, count = sector.positive, len(moves.operator)
    waiting = np.sort(np.fromiter(position.open, sector.layout.dtype, len(position.open)))
    solved = np.sort(np.fromiter(position.solved, sector.layout.dtype, len(position.solved)))
    away = sector.decode(waiting + ground.target_key) - target
    pivot = away[-1]
    pivot_r, pivot_s = pivot[positive].sum(), -pivot[~positive].sum()
    own, key = moves.own, moves.key
    in_open, in_solved = own & is_member(key, waiting), own & is_member(key, solved)
    new = own & (key >= 0) & ~in_open & ~in_solved
    relations = (own, key > heaviest, key == heaviest, (key > 0) & (key < heaviest), key == 0, key < 0, in_open, in_solved, new)
    changes = (moves.dr, moves.ds, moves.dr - pivot_r, moves.ds - pivot_s)
    columns = [own & relation for relation in relations] + [~own] + [np.clip(change, -FAR, FAR) * own for change in changes]
    return Features(
        np.stack(columns, 1).astype(np.int8),
        moves.action,
        _index_features(sector, target, pivot, moves.seed),
        _action_features(moves, count, in_open, in_solved, new, heaviest),
        np.stack(
            [
                np.clip(away[:, positive].sum(1), -FAR, FAR),
                np.clip(-away[:, ~positive].sum(1), -FAR, FAR),
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


def _action_features(moves: Moves, count: int, in_open: np.ndarray, in_solved: np.ndarray, new: np.ndarray, heaviest: int) -> np.ndarray:
    """[C, 8]: how many entries of each identity are of what kind."""
    own, key = moves.own, moves.key
    kinds = (own & (key == heaviest), new, new & (key > heaviest), in_open, in_solved, own, ~own, own & (key < 0))
    counts = [np.bincount(moves.action[kind], minlength=count) for kind in kinds]
    return np.minimum(np.stack(counts, 1), 15).astype(np.int8)


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
    count, positions = len(actions), int(owner[-1]) + 1 if len(owner) else 0
    parts = [embed("entries", count), embed("indices", count), embed("open", positions)[owner], actions]
    return network["score"](network["mix"](EMBEDDING_SCALE * torch.cat(parts, 1)))[:, 0]


class Policy:
    """Gives each action of a position its probability to be on a short way to the end.

    Without a network every action is as good as any other: in the order in which they come, or shuffled.
    """

    def __init__(self, network: Any = None, shuffled: bool = False):
        self.network, self.shuffled = network, shuffled

    def scores(self, features: Sequence[Features]) -> list[np.ndarray]:
        """Logarithms of probabilities [C], one array for each position."""
        if self.network is None:
            return [self._arbitrary(len(part.actions), len(part.open)) for part in features]
        import torch

        with torch.inference_mode():
            batches = (features[begin : begin + SCORED_TOGETHER] for begin in range(0, len(features), SCORED_TOGETHER))
            values = np.concatenate([action_scores(self.network, join_features(batch)).double().numpy() for batch in batches])
        parts = np.split(values, np.cumsum([len(part.actions) for part in features])[:-1])
        return [np.round(part - np.logaddexp.reduce(part), 4) for part in parts]  # what differs by rounding alone is the same

    def _arbitrary(self, count: int, seed: int) -> np.ndarray:
        order = np.random.default_rng(seed).permutation(count) if self.shuffled else np.arange(count)
        return -math.log(max(count, 1)) - 1e-6 * order


def pack_policy(network: Any, families: dict[str, str], trained: dict[str, Any]) -> bytes:
    """The content of a weights file: the network, what it was trained on ({family name: identifier}) and how."""
    import torch

    width = network["score"].in_features
    record = {"kind": POLICY_KIND, "format": POLICY_FORMAT, "width": width, "families": families, "trained": trained}
    buffer = io.BytesIO()
    torch.save(record | {"state": network.state_dict()}, buffer)
    return buffer.getvalue()


def unpack_policy(content: bytes) -> tuple[Any, dict[str, Any]]:
    """The network and its record. Raises PolicyRefused; nothing in a foreign file is executed."""
    import torch

    try:
        record = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds, also for truncated archives
        raise PolicyRefused(f"not readable as weights ({type(error).__name__})") from None
    if not isinstance(record, dict) or record.get("kind") != POLICY_KIND:
        raise PolicyRefused("holds no policy of this program")
    if record.get("format") != POLICY_FORMAT:
        raise PolicyRefused(f"is of format {record.get('format')!r}, this version reads {POLICY_FORMAT}; train it anew")
    try:
        network = make_network(record["width"])
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
    """A policy from the content of a weights file, or by name: 'fixed' or 'random'. Raises PolicyRefused."""
    if isinstance(source, str):
        return Policy(shuffled=source == "random")
    import torch

    torch.set_num_threads(1)  # processes are the parallelism here
    return Policy(unpack_policy(source)[0])


def read_policy(name: str, family: Family) -> bytes | str:
    """What `load_policy` takes, for a weights file or 'fixed' or 'random'. Raises PolicyRefused with the path."""
    if name in ("fixed", "random"):
        return name
    try:
        content = Path(name).read_bytes()
    except OSError as error:
        raise PolicyRefused(f"policy {name}: {error.strerror}; train one with --train-policy, or give --policy fixed") from None
    try:
        trained = unpack_policy(content)[1]["families"]
    except PolicyRefused as error:
        raise PolicyRefused(f"policy {name}: {error}") from None
    if trained.get(family.name, family.identifier) != family.identifier:
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


def _by_weight(position: Position) -> tuple:
    return position.heaviest, len(position.open), -position.score, position.actions


def _by_size(position: Position) -> tuple:
    return len(position.open), position.heaviest, -position.score, position.actions


def _by_policy(position: Position) -> tuple:
    return -position.score, position.heaviest, position.actions


BEAM_ORDERS = {"weight": _by_weight, "size": _by_size, "policy": _by_policy}


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
    if helpers is None:
        ground, policy = SearchGround(finder.sector, equations, target), load_policy(beam.policy)

        def children(positions: Sequence[Position]) -> list[Position]:
            return beam_children(ground, policy, positions)
    else:
        context = pickle.dumps((finder.sector.layout, finder.sector.bits, equations, target, beam.policy))

        def children(positions: Sequence[Position]) -> list[Position]:
            parts = (positions[number :: helpers.processes] for number in range(helpers.processes))
            futures = [helpers.submit(helped_children, context, part) for part in parts if part]
            return [child for future in futures for child in future.result()]

    finished, steps = beam_search(beam, children)
    rules = (finder.find_among(target, position.actions, equations) for position in finished[:CANDIDATES])
    found = [rule for rule in rules if rule is not None]
    return min(found, key=lambda rule: finder.result_weight(rule, target, equations), default=None), steps


def beam_children(ground: SearchGround, policy: Policy, positions: Sequence[Position]) -> list[Position]:
    """What the most probable actions of each position lead to."""
    moves = [ground.moves(position) for position in positions]
    features = [describe_moves(ground, position, some) for position, some in zip(positions, moves)]
    children = []
    for position, some, scores in zip(positions, moves, policy.scores(features) if positions else ()):
        for place in np.argsort(-scores, kind="stable")[:BEAM_BRANCHES]:
            action = (int(some.operator[place]), tuple((some.seed[place] - ground.target).tolist()))
            child = ground.after(position, action, float(scores[place]))
            if child is not None:
                children.append(child)
    return children


def helped_children(context: bytes, positions: Sequence[Position]) -> list[Position]:
    """`beam_children` in a helper process. context: pickle of (layout, sector, equations, target, policy)."""
    ground, policy = _helped_ground(context)
    return beam_children(ground, policy, positions)


@lru_cache(maxsize=2)
def _helped_ground(context: bytes) -> tuple[SearchGround, Policy]:
    layout, bits, equations, target, policy = pickle.loads(context)
    return SearchGround(Sector(layout, bits), equations, target), load_policy(policy)


# =====================================================================================================================
# One sector
# =====================================================================================================================


COUNTS = ("integrals", "references", "tries", "replays", "rules", "searches", "search_steps", "mapped")


@dataclass
class SectorKnowledge:
    """What is known about one sector of a family, at any point: its masters (None: not yet searched), rules, and hopeless searches.

    hopeless: (level, border pattern) of integrals that no rule of that level reduces.
    """

    masters: tuple[Index, ...] | None = None
    rules: tuple[Rule, ...] = ()
    hopeless: frozenset[tuple[int, bytes]] = frozenset()

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
    """

    layout: Layout
    bits: int
    nonzero: tuple[int, ...]
    equations: Equations
    generic: Equations
    known: SectorKnowledge
    stops: tuple[Index, ...]
    steps: dict[Index, Expression]
    keys: np.ndarray
    coefficients: np.ndarray
    canonical: bool = False
    beam: Beam | None = None
    mapping: NumericMap | None = None


@dataclass(eq=False)
class SectorResult:
    """What a sector task found: coefficients [K] of masters and of what nothing reduced, and [M, K] of integrals of subsectors."""

    bits: int
    masters: dict[Index, list[int]] = field(default_factory=dict)
    unreduced: dict[Index, list[int]] = field(default_factory=dict)
    below: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    learned: SectorKnowledge = field(default_factory=lambda: SectorKnowledge())
    new_steps: dict[Index, Expression] = field(default_factory=dict)
    paths: dict[Index, StepPath] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    process: tuple[int, int] = (0, 0)  # process id, its peak memory in kB


@dataclass(frozen=True, eq=False)
class Terms:
    """One-step results as a table: I[source] = sum of value * I[sector, key] over its lines; source is a key of the sector at work."""

    source: np.ndarray
    sector: np.ndarray
    key: np.ndarray
    value: np.ndarray

    def pack(self) -> tuple:
        """For Terms(*map(unpack_keys, …))."""
        return tuple(pack_keys(getattr(self, f.name)) for f in fields(self))

    @staticmethod
    def join(parts: Sequence[Terms]) -> Terms:
        return Terms(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Terms)))


def run_starts(values: np.ndarray) -> np.ndarray:
    """Where runs of equal values begin in a sorted array."""
    return np.flatnonzero(np.concatenate([np.ones(min(len(values), 1), bool), values[1:] != values[:-1]]))


def is_member(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Bool [N]: which values stand in the sorted table."""
    if len(table) == 0:
        return np.zeros(len(values), bool)
    return table[np.minimum(np.searchsorted(table, values), len(table) - 1)] == values


def sum_by_key(keys: np.ndarray, values: np.ndarray, p: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys, ascending, and the sums modulo p of their lines of values [N, K]; lines that are all zero are left out."""
    if len(keys) == 0:
        return keys, values
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    start = run_starts(keys)
    if values.shape[1] == 1:
        sums = np.add.reduceat(values[order, 0], start)[:, None] % p
    else:
        sums = np.add.reduceat(values[order], start, axis=0) % p
    some = sums.any(1)
    return keys[start][some], sums[some]


def reduce_sector(task: SectorTask) -> SectorResult:
    """Carry the coefficients of a task's integrals to masters and subsectors; the arithmetic is exact modulo the prime."""
    with helper_processes() as helpers:
        return _SectorReduction(task, helpers).run()


@contextmanager
def helper_processes() -> Iterator[Executor | None]:
    """Processes for the processors that a task may use beside its own, None if there are none: most tasks have one processor."""
    with LocalExecutor(task_cpus()) if task_cpus() > 1 else nullcontext() as helpers:
        yield helpers


def find_rule(context: bytes, target: Index, level: int) -> Rule | None:
    """A search in a helper process. context: pickle of (layout, sector, equations at the generic point)."""
    finder = _rule_finder(context)
    return finder.find(np.array(target, np.int64), level, finder.structure)


@lru_cache(maxsize=2)
def _rule_finder(context: bytes) -> RuleFinder:
    layout, bits, generic = pickle.loads(context)
    return RuleFinder(Sector(layout, bits), generic)


class _SectorReduction:
    """The state of one sector at work.

    The heaviest integrals, a block, are closed under one-step reduction inside their range of keys; then their coefficients are carried
    down in order, and what arrives below the range waits for its block. So an integral whose coefficient cancels is mostly never reduced.
    """

    def __init__(self, task: SectorTask, helpers: Executor | None = None):
        self.task, self.helpers = task, helpers
        self.ahead: dict[tuple[int, bytes], Rule | None] = {}
        self.p = task.equations.prime
        self.sector = Sector(task.layout, task.bits)
        self.finder = RuleFinder(self.sector, task.generic)
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
        self._rules_of(rule.level).append(compiled)
        self.compiled[rule.level].sort(key=lambda c: c.rows)
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
            closed = np.sort(np.concatenate([closed, wave]), kind="stable")
        self.counts["integrals"] += len(closed)
        return closed, Terms.join(parts)

    def _carry(
        self, closed: np.ndarray, terms: Terms, keys: np.ndarray, coefficients: np.ndarray, cut: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Carry coefficients through a closed block; returns what waits below it, and notes what fell into subsectors."""
        p, bits = self.p, self.task.bits
        block = np.zeros((len(closed), coefficients.shape[1]), np.int64)
        block[np.searchsorted(closed, keys[cut:])] = coefficients[cut:]
        source = np.searchsorted(closed, terms.source)
        own = terms.sector == bits
        inner = own & (terms.key >= closed[0]) & ~is_member(terms.key, self.stops)
        propagate(block, source[inner], np.searchsorted(closed, terms.key[inner]), terms.value[inner], p)
        outer = ~inner & block.any(1)[source]
        carried = block[source[outer]] * terms.value[outer, None] % p
        key, sector = terms.key[outer], terms.sector[outer]
        for b in np.unique(sector).tolist():
            if b != bits:
                there = sector == b
                self.below.setdefault(b, []).append(sum_by_key(key[there], carried[there], p))
        stays = sector == bits
        for position in np.flatnonzero(is_member(closed, self.stops)):  # found irreducible while the block was closed
            self._set_masters_aside(closed[position : position + 1], block[position : position + 1])
        return sum_by_key(np.concatenate([keys[:cut], key[stays]]), np.concatenate([coefficients[:cut], carried[stays]]), p)

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
            for widening, equations in itertools.product(BEAM_WIDENINGS, (self.task.generic, self.task.equations)):
                if wave.waiting[position]:
                    self._beam_for(position, replace(beam, width=beam.width * widening), equations, wave)
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
        context = pickle.dumps((self.task.layout, self.task.bits, self.task.generic))
        futures = {}
        for position, later in requests[: self.helpers.processes]:
            indices = wave.indices[position]
            futures[later, indices.tobytes()] = self.helpers.submit(find_rule, context, tuple(indices.tolist()), later)
        self.ahead = {request: future.result() for request, future in futures.items()}

    def _search_for(self, position: int, level: int, equations: Equations, wave: _Wave) -> None:
        """Find a rule of a level that reduces this integral at the point of the equations, and replay it on all that wait."""
        request = (level, wave.indices[position].tobytes())
        if equations is self.task.generic and request in self.ahead:
            rule = self.ahead[request]
        else:
            rule = self.finder.find(wave.indices[position].astype(np.int64), level, equations)
        if rule is not None and self.task.canonical:
            self._apply(CompiledRule(self.sector, self.task.equations, rule), np.array([position]), wave)
        elif rule is not None and rule not in self.rules:
            compiled = self._add_rule(rule)
            self._apply(compiled, wave.where_waiting(), wave)
            if not wave.waiting[position]:  # its one-step result cost a search and is kept
                target = wave.indices[position].astype(np.int64)
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
        dtype, bits, p = self.keys.dtype, work.task.bits, work.p
        if not self.parts:
            return Terms(*(np.zeros(0, kind) for kind in (dtype, np.int64, dtype, np.int64)))
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
        up = max(int(np.maximum(rule.offset, 0).sum(1).max()) for rule in self.rules)
        down = max(int(-np.minimum(rule.offset, 0).sum(1).min()) for rule in self.rules)
        largest_r = int(self.indices[:, sector.positive].sum(1).max()) + up
        largest_s = int(-self.indices[:, ~sector.positive].sum(1).min()) + down
        if max(largest_r, largest_s) >= sector.layout.radix:
            raise ReductionError(
                f"sector {sector.bits}: integrals with r = {largest_r}, s = {largest_s} outgrow the {sector.layout.radix - 1} that was "
                f"reserved for {sector.n} indices; reduce targets with smaller indices"
            )


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
        edge = np.repeat(first[ready] - np.cumsum(length) + length, length) + np.arange(total)
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

    stops: masters, and corners where they stay, by sector; run: Problem.name; maps: of sectors that are equivalent to others.
    """

    run: str
    family: Family
    layout: Layout
    nonzero: tuple[int, ...]
    equations: Equations
    generic: Equations
    stops: dict[int, tuple[Index, ...]]
    canonical: bool
    beam: Beam | None
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


def search_masters(nonzero: tuple[int, ...], generic: Equations, bits: int) -> dict[str, Any]:
    """`find_masters` with a result of builtin types."""
    return _pack_sector(find_masters(nonzero, generic, bits), generic.n)


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
        frontier = Frontier(self.setting.layout, {bits: self.setting.stops[bits] for bits in {*keys, *self.allowed}})
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
            own, nothing = self.setting, np.zeros(0, self.setting.layout.dtype)
            known, steps = self.known.get(bits, (None, {}))
            knowledge = SectorKnowledge() if known is None else _unpack_sector(known, own.family)
            task = SectorTask(
                own.layout,
                bits,
                own.nonzero,
                own.equations,
                own.generic,
                knowledge,
                own.stops[bits],
                steps,
                nothing,
                nothing,
                own.canonical,
                own.beam,
                own.maps.get(bits),
            )
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
    own = terms.sector == bits
    nodes = np.unique(np.concatenate([keys, terms.source, terms.key[own]]))
    block = np.zeros((len(nodes), coefficients.shape[1]), np.int64)
    keys, coefficients = sum_by_key(keys, coefficients, p)
    block[np.searchsorted(nodes, keys)] = coefficients
    source = np.searchsorted(nodes, terms.source)
    propagate(block, source[own], np.searchsorted(nodes, terms.key[own]), terms.value[own], p)
    reached = np.flatnonzero(is_member(nodes, stops) & block.any(1))
    leaves = ~own & block.any(1)[source]
    carried, key, sector = block[source[leaves]] * terms.value[leaves, None] % p, terms.key[leaves], terms.sector[leaves]
    below = {b: sum_by_key(key[sector == b], carried[sector == b], p) for b in np.unique(sector).tolist()}
    return {nodes[position]: block[position] for position in reached}, below


# =====================================================================================================================
# Masters
# =====================================================================================================================


def find_masters(nonzero: tuple[int, ...], generic: Equations, bits: int) -> SectorKnowledge:
    """The masters of one sector, and the rules found on the way. Raises ReductionError where there is no end of them.

    All integrals near the corner are reduced at the generic point without masters; what nothing reduces is a master. The region grows
    until no master touches its border.
    """
    dots, s = 1, 1
    learned, masters = SectorKnowledge(), ()
    while dots + s <= MASTER_REGION:
        region = integrals_near_corner(bits, generic.n, dots, s)
        layout = layout_for(region, generic.n)
        keys = Sector(layout, bits).encode(np.array(region))
        coefficients = np.random.default_rng(bits).integers(1, generic.prime, (len(keys), 1))  # so that nothing cancels by structure
        result = reduce_sector(SectorTask(layout, bits, nonzero, generic, generic, learned, masters, {}, keys, coefficients))
        learned.update(result.learned)
        masters = tuple(sorted({*masters, *result.unreduced}, key=weight))
        many_dots = any(r_and_s(master)[0] - bits.bit_count() >= dots for master in masters)
        high_s = any(r_and_s(master)[1] >= s for master in masters)
        if not many_dots and not high_s:
            return replace(learned, masters=masters)
        dots, s = dots + many_dots, s + high_s
    raise ReductionError(f"sector {bits}: {len(masters)} integrals with dots + s < {dots + s} are not reducible, and there seem to be more")


@dataclass(frozen=True)
class MasterRelation:
    """A map of a sector into itself, applied to a master, as an equation: image - master = 0, which is solved for `solved`."""

    solved: Index
    master: Index
    image: SectorMap


def find_relations(
    own: Sequence[SectorMap], point: Point, generic: Equations, bits: int, known: SectorKnowledge
) -> tuple[list[MasterRelation], SectorKnowledge]:
    """Relations between the masters of one sector by its maps into itself, and the rules found on the way.

    A map takes identities to identities, so it acts on the space that the masters span, and its images of the masters give all its
    relations. What they say about subsectors follows from the maps of these: the group of maps is finite, so that taking coinvariants is
    exact. Hence it suffices to work without subsectors here, at the generic point.
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
    relations: list[MasterRelation] = []
    solved: dict[Index, Expression] = {}
    for column, (master, shift, _) in enumerate(images):
        if any(line[column] for line in result.unreduced.values()):
            continue  # a relation to what is no master says nothing
        row = {integral: line[column] for integral, line in result.masters.items() if line[column]}
        if pivot := solve_for_heaviest(row, solved, generic.prime):
            relations.append(MasterRelation(pivot, master, shift))
    return relations, result.learned


def solve_for_heaviest(row: Expression, solved: dict[Index, Expression], p: int) -> Index | None:
    """Solve row = 0 for its heaviest integral, in terms of what `solved` does not give, and note it there; None if it gives nothing new."""
    for integral in [integral for integral in row if integral in solved]:
        _subtract(row, {integral: p - 1} | solved[integral], p - row[integral], p)
    if not row:
        return None
    pivot = max(row, key=weight)
    inverse = -pow(row.pop(pivot), -1, p)
    replacement = {integral: value * inverse % p for integral, value in row.items()}
    for other in solved.values():
        if pivot in other:
            _subtract(other, {pivot: p - 1} | replacement, p - other[pivot], p)
    solved[pivot] = replacement
    return pivot


def without_solved(expression: Expression, solved: dict[Index, Expression], p: int) -> Expression:
    """An expression in terms of the masters that symmetries leave."""
    row = dict(expression)
    for integral in [integral for integral in row if integral in solved]:
        _subtract(row, {integral: p - 1} | solved[integral], p - row[integral], p)
    return {integral: row[integral] for integral in sorted(row, key=weight, reverse=True)}


def weight(indices: Sequence[int]) -> tuple:
    """The total order of all integrals of a family: (t, sector, r, s, |a_n|, …, |a_1|)."""
    return (*sector_order(sector_of(indices)), *r_and_s(indices), *(abs(a) for a in reversed(indices)))


def change_basis(reductions: dict[Index, Expression], preferred: Sequence[Index], p: int) -> dict[Index, Expression]:
    """Rewrite reductions to standard masters in terms of preferred integrals.

    `reductions` holds the preferred integrals too. The standard masters that the preferred ones do not replace stay. Raises InputError
    where the preferred integrals are linearly dependent modulo p.
    """
    rows = []
    for number, integral in enumerate(preferred):
        row: dict[Any, int] = dict(reductions[integral])
        row[("preferred", number)] = p - 1
        rows.append(row)
    solved: dict[Index, dict] = {}
    for number, row in enumerate(rows):
        for master, replacement in solved.items():
            if master in row:
                _subtract(row, {master: p - 1} | replacement, p - row[master], p)
        left = [key for key in row if key[0] != "preferred"]
        if not left:
            raise InputError(
                f"preferred master {show(preferred[number])} depends linearly on the ones before it (or is zero); leave one of them out"
            )
        pivot = max(left, key=weight)
        inverse = -pow(row.pop(pivot), -1, p)
        replacement = {key: value * inverse % p for key, value in row.items()}
        for other in solved.values():
            if pivot in other:
                _subtract(other, {pivot: p - 1} | replacement, p - other[pivot], p)
        solved[pivot] = replacement
    return {target: _in_new_basis(expression, solved, preferred, p) for target, expression in reductions.items()}


def _in_new_basis(expression: Expression, solved: dict[Index, dict], preferred: Sequence[Index], p: int) -> Expression:
    row: dict[Any, int] = dict(expression)
    for master in list(expression):
        if master in solved:
            _subtract(row, {master: p - 1} | solved[master], p - row[master], p)
    total: Expression = {}
    for key, value in row.items():
        integral = preferred[key[1]] if key[0] == "preferred" else key
        total[integral] = (total.get(integral, 0) + value) % p
    return {integral: total[integral] for integral in sorted(total, key=weight, reverse=True) if total[integral]}


# =====================================================================================================================
# Store
# =====================================================================================================================

STORE_FORMAT = {"program": "ibp_reduce", "format": 1}
LOCK_TIMEOUT_S = 60.0


class _StoreDamaged(Exception):
    """What a store's file says of itself when it cannot be used."""


# what reading a damaged pickle, number, text or shelf raises
UNREADABLE = (
    pickle.UnpicklingError,
    zlib.error,
    EOFError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)
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
        """Add what was found; what other programs wrote meanwhile stays."""
        if new:
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
        for attempt in (1, 2):
            try:
                with RuleShelf(self.path, self.read_only) as shelf:
                    return action(shelf)
            except (_StoreDamaged, sqlite3.Error) as error:
                if self.read_only:
                    self.say(f"{self.path}: not a sound rule store ({error}); going on without it")
                    return None
                if attempt == 2 or any(text in str(error) for text in NOT_THE_FILE):
                    raise ReductionError(f"store {self.path}: {error}; give another --store") from None
                self._set_aside(str(error))

    def _set_aside(self, reason: str) -> None:
        for number in range(1, 10_000):
            aside = self.path.with_name(f"{self.path.name}.damaged-{number}")
            if not aside.exists():
                break
        for suffix in ("", "-journal"):
            part = Path(f"{self.path}{suffix}")
            if part.exists():
                os.replace(part, f"{aside}{suffix}")
        self.say(f"store {self.path}: {reason}; set aside as {aside.name} and started anew")

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


class _Table(MutableMapping):
    """bytes -> bytes in the table Dict of an SQLite file, inside one transaction; the layout of the standard library's dbm.sqlite3."""

    def __init__(self, path: Path, read_only: bool):
        mode = "ro&immutable=1" if read_only else "rwc"
        self.sql = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=LOCK_TIMEOUT_S, isolation_level=None)
        try:
            tables = {name for (name,) in self.sql.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if tables - {"Dict"}:
                raise _StoreDamaged("not a store of this program")
            if not read_only:
                self.sql.execute("BEGIN IMMEDIATE")
                self.sql.execute("CREATE TABLE IF NOT EXISTS Dict (key BLOB UNIQUE NOT NULL, value BLOB NOT NULL)")
        except Exception:
            self.sql.close()
            raise

    def __getitem__(self, key: bytes) -> bytes:
        row = self.sql.execute("SELECT value FROM Dict WHERE key = CAST(? AS BLOB)", (key,)).fetchone()
        if row is None:
            raise KeyError(key)
        return row[0]

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self.sql.execute("REPLACE INTO Dict (key, value) VALUES (CAST(? AS BLOB), CAST(? AS BLOB))", (key, value))

    def __delitem__(self, key: bytes) -> None:
        if not self.sql.execute("DELETE FROM Dict WHERE key = CAST(? AS BLOB)", (key,)).rowcount:
            raise KeyError(key)

    def __iter__(self) -> Iterator[bytes]:
        return iter([key for (key,) in self.sql.execute("SELECT key FROM Dict ORDER BY key")])

    def __len__(self) -> int:
        return self.sql.execute("SELECT COUNT(*) FROM Dict").fetchone()[0]


class RuleShelf(shelve.Shelf):
    """A shelf that reads builtin types only, as a context manager: commits at the end, rolls back on an exception."""

    def __init__(self, path: Path, read_only: bool):
        self.table, self.read_only = _Table(path, read_only), read_only
        super().__init__(self.table, protocol=4)

    def __getitem__(self, key: str) -> Any:
        return load_builtins(self.table[key.encode()])

    def numbered(self, prefix: str) -> list[tuple[str, int]]:
        """Keys that begin so, with the number that follows. Raises ValueError."""
        return [(key, int(key.removeprefix(prefix))) for key in self if key.startswith(prefix)]

    def __enter__(self) -> RuleShelf:
        try:
            if not self.read_only and len(self.table) == 0:
                self["format"] = STORE_FORMAT
            if self.get("format") != STORE_FORMAT:
                raise _StoreDamaged("not a store of this program")
        except UNREADABLE as error:
            self.table.sql.close()
            raise _StoreDamaged(str(error) or type(error).__name__) from None
        except Exception:
            self.table.sql.close()
            raise
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        try:
            if kind is None and not self.read_only:
                self.table.sql.execute("COMMIT")
        finally:
            self.table.sql.close()  # rolls back what was not committed

    def close(self) -> None:  # Shelf.__del__ calls this; the transaction has ended in __exit__
        self.table.sql.close()


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
    if operators is not None and len(operators) != family.operators:
        raise ValueError("identities of another family")
    if any(len(shift) != family.n for operator in operators or () for shift, _ in operator):
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
    return SectorKnowledge(value["masters"], tuple(rules), frozenset((level, bytes(pattern)) for level, pattern in value["hopeless"]))


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
        header = self._read_whole(0)
        self.is_new = header is None
        if header is None:
            if os.path.getsize(path):
                self._set_aside()
            self.append({"program": "ibp_reduce", "run": run})
            self.sync()
        elif (theirs := header[0].get("run") if isinstance(header[0], dict) else "another program") != run:
            self.file.close()
            raise InputError(
                f"{path.parent} holds the unfinished run of {theirs}; go on with that one, drop it by --fresh, or take another --work-dir"
            )
        else:
            self.end = header[1]

    def _set_aside(self) -> None:
        """Go on with a new file: the present one is damaged at its beginning, or none of ours."""
        aside = next(name for k in itertools.count(1) if not (name := self.path.with_name(f"{self.path.name}.damaged-{k}")).exists())
        self.file.close()
        os.replace(self.path, aside)
        self.say(f"{self.path}: not readable from its beginning; set aside as {aside.name} and started anew")
        self.file = open(self.path, "a+b", buffering=0)  # noqa: SIM115  (closed by close)

    def records(self) -> Iterator[tuple[int, Any]]:
        """(position, value) of all whole records after the header; what follows them is cut off. To be used up before append()."""
        while (found := self._read_whole(self.end)) is not None:
            position, self.end = self.end, found[1]
            yield position, found[0]
        lost = os.path.getsize(self.path) - self.end
        if lost:
            self.say(f"{self.path}: {lost} bytes at its end are not a whole record and are dropped")
            self._cut()

    def read(self, position: int) -> Any:
        """Raises ReductionError where the record is not what was written."""
        found = self._read_whole(position)
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
                self._cut()  # else what was written of it would spoil the next record
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

    def _cut(self) -> None:
        self.file.truncate(self.end)

    def _read_whole(self, position: int) -> tuple[Any, int] | None:
        """A record and where it ends; None if there is none, or not a whole one."""
        self.file.seek(position)
        head = self.file.read(self.HEAD.size)
        if len(head) < self.HEAD.size:
            return None
        length, digest = self.HEAD.unpack(head)
        if length > os.path.getsize(self.path) - self.file.tell():
            return None
        data = self.file.read(length)
        if len(data) < length or hashlib.sha256(data).digest()[:16] != digest:
            return None
        try:
            return load_builtins(zlib.decompress(data)), position + self.HEAD.size + length
        except MemoryError:
            raise ReductionError(f"{self.path}: not enough memory to read it; nothing of it is lost") from None
        except UNREADABLE:  # whole, but not written by this program
            return None


# =====================================================================================================================
# Controller
# =====================================================================================================================

FLUSH_INTERVAL_S = 10.0
LARGE_TARGET = 100_000  # targets with more integrals up to them in their sector keep several processes busy, even with all rules known
SMALL_TASK = 2000  # below it, a sector with at most so many coefficients is reduced sooner than sent to another process


@dataclass(frozen=True)
class Problem:
    """What to reduce: integrals of a family at a point, to which masters."""

    family: Family
    point: Point
    targets: tuple[Index, ...]
    paper_masters_only: bool = False
    preferred_masters: tuple[Index, ...] = ()
    beam: Beam | None = None
    symmetries: bool = False
    cut: int = 0  # bit mask of lines: integrals without them are dropped

    def __post_init__(self) -> None:
        """Raises InputError."""
        if self.symmetries and self.cut:
            raise InputError("--cut and --symmetries contradict each other: a symmetry may take lines that are cut to others")
        if self.symmetries and self.paper_masters_only:
            raise InputError(
                "--paper-masters-only and --symmetries contradict each other: the published masters are those without symmetries"
            )

    @property
    def name(self) -> str:
        """What tells this problem's run from another's, for people and for a journal."""
        parts = (
            __version__,
            self.family.identifier,
            self.point.prime,
            self.point.residues(),
            self.targets,
            self.paper_masters_only,
            self.preferred_masters,
            self.family.paper_masters,
            self.beam,
            self.symmetries,
            self.cut,
        )
        more = f" and {len(self.targets) - 1} more" if len(self.targets) > 1 else ""
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:8]
        return f"{show(self.targets[0])}{more} of {self.family.name} modulo {self.point.prime} ({digest})"


@dataclass
class Outcome:
    """reductions: every target through masters (and through unreduced integrals, where some are left).

    store_trouble: why what was learned could not be stored, if so. paths: of what was searched for by a beam.
    """

    reductions: dict[Index, Expression]
    masters: list[Index]
    unreduced: list[Index]
    statistics: dict[str, int]
    seconds: float
    peak_memory_kb: int
    store_trouble: str = ""
    paths: dict[Index, StepPath] = field(default_factory=dict)


class Controller:
    """Runs a problem: sectors from the top down, each as a task once all sectors above it are done.

    executor: where tasks run; shelves: stores to learn from, the last of which also receives what is found.
    """

    def __init__(self, problem: Problem, executor: Executor, shelves: Sequence[Store], progress: Progress):
        self.problem, self.executor, self.shelves, self.progress = problem, executor, shelves, progress
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
            wanted = tuple(dict.fromkeys(self.problem.targets + self.problem.preferred_masters))
            self.masters = self._find_masters(wanted)
            relations, of_relations = self._find_relations(wanted)
            together = tuple(dict.fromkeys(wanted + of_relations))
            self.layout = layout_for(together, self.family.n)
            reductions = self._reduce_all(together)
            solved = self._solve(relations, reductions)
            reductions = {target: without_solved(reductions[target], solved, self.point.prime) for target in wanted}
            known = {master for masters in self.masters.values() for master in masters} - solved.keys()
            unreduced = sorted({term for expression in reductions.values() for term in expression} - known, key=weight)
            basis = sorted(known, key=weight)
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
            {target: reductions[target] for target in self.problem.targets},
            basis,
            unreduced,
            self.statistics,
            time.perf_counter() - started,
            sum(self.memory.values()),
            trouble,
            self.paths,
        )

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
        known = all(self._sector(sector_of(target)).rules for target in self.problem.targets)
        self.long = not known or max(map(integrals_up_to, self.problem.targets)) > LARGE_TARGET
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
            self.geometry = Geometry(self.family)
            self.symmetries = find_symmetries(self.geometry, self.knowledge.nonzero)
            for bits, found in self.symmetries.maps.items():
                if found.size <= LIGHT_MAP * self.family.n or not self._sector(bits).rules:
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

    def _find_relations(self, targets: Sequence[Index]) -> tuple[list[MasterRelation], tuple[Index, ...]]:
        """What symmetries say about the masters, lightest sectors first, and the integrals to be reduced for that."""
        if not self.problem.symmetries:
            return [], ()
        relations: list[MasterRelation] = []
        for bits in self._sectors_below(targets):
            if bits in self.symmetries.maps:
                relations += [MasterRelation(master, master, self.symmetries.maps[bits]) for master in self.masters[bits]]
            elif any(master != corner(bits, self.family.n) for master in self.masters[bits]):  # a corner goes to itself
                own = own_maps(self.geometry, bits)
                found, learned = find_relations(own, generic_point(self.family), self.generic, bits, self._sector(bits))
                relations += found
                if learned:
                    self._learn(bits, learned)
        images = (NumericMap(relation.image, self.point, self.family.n)(relation.master) for relation in relations)
        return relations, tuple(dict.fromkeys(term for image in images for term in image))

    def _solve(self, relations: Sequence[MasterRelation], reductions: dict[Index, Expression]) -> dict[Index, Expression]:
        """The masters that symmetries give by others, at the point of the run."""
        p, solved = self.point.prime, {}
        for relation in relations:
            row = {relation.master: p - 1}
            for term, value in NumericMap(relation.image, self.point, self.family.n)(relation.master).items():
                _subtract(row, reductions[term], p - value, p)
            if solve_for_heaviest(row, solved, p) != relation.solved:
                raise ReductionError(
                    f"the symmetry of {show(relation.master)} does not give {show(relation.solved)} at this point modulo {p}; "
                    "take another --prime or point"
                )
        return solved

    def _search_masters(self, missing: list[int]) -> None:
        running: dict[Future, int] = {}
        self.progress.start("masters", len(missing))
        while missing or running:
            while missing and len(running) < 2 * self.executor.processes:
                bits = missing.pop()
                running[self.executor.submit(find_masters, self.knowledge.nonzero, self.generic, bits)] = bits
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

    def _reduce_all(self, wanted: tuple[Index, ...]) -> dict[Index, Expression]:
        reductions: dict[Index, Expression] = {}
        for begin in range(0, len(wanted), TARGETS_PER_PASS):
            reductions |= self._reduce(wanted[begin : begin + TARGETS_PER_PASS])
        return reductions

    def _reduce(self, targets: tuple[Index, ...]) -> dict[Index, Expression]:
        """Carry the coefficients of up to TARGETS_PER_PASS integrals, one column each, from the top sectors to the masters."""
        pending = self._start(targets)
        expressions: list[Expression] = [{} for _ in targets]
        running: dict[Future, int] = {}
        self.progress.start("sectors", len(self._sectors_below(targets)))
        while pending or running:
            for bits in sorted(pending, key=lambda b: (b.bit_count(), sum(len(keys) for keys, _ in pending[b]), b), reverse=True):
                if not any(self._leads_to(other, bits) for other in (*pending, *running.values())):
                    running[self._submit(bits, pending.pop(bits))] = bits
            for future in self._finished(running):
                del running[future]
                self._take(future.result(), pending, expressions)
        ordered = ({term: e[term] for term in sorted(e, key=weight, reverse=True)} for e in expressions)
        return dict(zip(targets, ordered))

    def _start(self, targets: tuple[Index, ...]) -> dict[int, list]:
        """Unit coefficients at the targets, by sector; integrals of zero sectors are zero."""
        pending: dict[int, list] = {}
        for column, target in enumerate(targets):
            bits = sector_of(target)
            if bits in self.knowledge.nonzero:
                coefficients = np.zeros((1, len(targets)), np.int64)
                coefficients[0, column] = 1
                pending.setdefault(bits, []).append((Sector(self.layout, bits).encode(np.array([target])), coefficients))
        return pending

    def _submit(self, bits: int, parts: list) -> Future:
        keys, coefficients = (np.concatenate(group) for group in zip(*parts))
        known = self._sector(bits)
        steps = self.knowledge.steps.get(bits, {})
        task = SectorTask(
            self.layout,
            bits,
            self.knowledge.nonzero,
            self.equations,
            self.generic,
            known,
            self.masters[bits],
            steps,
            keys,
            coefficients,
            self.corners_stay,
            self.beam,
            self.numeric_maps.get(bits),
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
            self.bar.set_postfix_str(f"{counts['integrals']:,} integrals, {hits:,} hits, {counts['rules']:,} new rules", refresh=False)
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
        for path in (*self.shared.glob("*.shared"), self.journal, self.stop_request):
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
        running: dict[Future, int] = {self._follow(future): args[-1] for future, args in self._taken_over(search_masters)}
        left = [bits for bits in missing if bits not in running.values()]

        def submit() -> None:
            while left and len(running) < self.most_running:
                bits = left.pop()
                running[self._follow(self.executor.submit(search_masters, self.knowledge.nonzero, self.generic, bits))] = bits

        def take(bits: int, packed: dict[str, Any]) -> None:
            self.journal.append({"sector": bits, "learned": packed})
            self._learn(bits, _unpack_sector(packed, self.family))

        self._work_off("masters", running, submit, take)

    # one-step results ---------------------------------------------------------------------------------------------

    def _reduce_all(self, wanted: tuple[Index, ...]) -> dict[Index, Expression]:
        stops = {bits: self.masters.get(bits, ()) for bits in self._sectors_below(wanted)}
        setting = Setting(
            self.problem.name,
            self.family,
            self.layout,
            self.knowledge.nonzero,
            self.equations,
            self.generic,
            stops,
            self.corners_stay,
            self.beam,
            self.numeric_maps,
        )
        self.setting = Shared.write(setting, self.directory.shared)
        self.frontier = Frontier(self.layout, stops)
        running = self._restore()
        for target in wanted:
            if sector_of(target) in self.knowledge.nonzero:
                self.frontier.meet(sector_of(target), Sector(self.layout, sector_of(target)).encode(np.array([target])))
        self._work_off("integrals", running, lambda: self._submit_waiting(running), self._take_steps)
        expressions: dict[Index, Expression] = {}
        for begin in range(0, len(wanted), TARGETS_PER_PASS):
            expressions |= self._carry_down(wanted[begin : begin + TARGETS_PER_PASS])
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
        """Whether a task left by an earlier controller belongs to this problem."""
        try:
            return setting.get().run == self.problem.name
        except ExecutorError:  # its file is gone, so its job can only fail
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
        for name in ("tries", "replays", "rules", "searches", "search_steps", "mapped"):
            self.statistics[name] += result["counts"][name]
        self.plan.note(max(batch.keys, key=sector_order), result["counts"]["integrals"], result["seconds"])
        self.memory[LARGEST_TASK] = max(result["peak_memory_kb"], self.memory.get(LARGEST_TASK, 0))

    def _take_sector(self, bits: int, found: dict[str, Any]) -> Terms:
        """Journal what is new in a sector's part of a result: a task that was thought lost, or went on beside another one, repeats some."""
        done, known = unpack_keys(found["done"]), self.done.get(bits, self.frontier.empty)
        new = done[~is_member(done, known) & ~is_member(done, self.frontier.stops[bits])]
        terms = Terms(*map(unpack_keys, found["terms"]))
        kept = is_member(terms.source, new)
        terms = Terms(*(getattr(terms, f.name)[kept] for f in fields(Terms)))
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

    def _carry_down(self, targets: tuple[Index, ...]) -> dict[Index, Expression]:
        """From the top sector to the lowest, by the one-step results in the journal."""
        pending, p = self._start(targets), self.point.prime
        expressions: list[Expression] = [{} for _ in targets]
        for bits in sorted(self.frontier.stops, key=sector_order, reverse=True):
            if bits not in pending:
                continue
            keys, coefficients = (np.concatenate(group) for group in zip(*pending.pop(bits)))
            nothing = Terms(self.frontier.empty, np.zeros(0, np.int64), self.frontier.empty, np.zeros(0, np.int64))
            terms = Terms.join([nothing, *(self._terms(self.journal.read(position)) for position in self.records.get(bits, ()))])
            self._check_complete(bits, np.concatenate([keys, terms.key[terms.sector == bits]]))
            lines, below = carry_sector(bits, terms, keys, coefficients, self.frontier.stops[bits], p)
            for b, part in below.items():
                pending.setdefault(b, []).append(part)
            for key, line in lines.items():
                integral = tuple(Sector(self.layout, bits).decode(np.array([key], self.layout.dtype))[0].tolist())
                for expression, value in zip(expressions, line.tolist()):
                    if value:
                        expression[integral] = value
        ordered = ({term: e[term] for term in sorted(e, key=weight, reverse=True)} for e in expressions)
        return dict(zip(targets, ordered))

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
# Results
# =====================================================================================================================


def result_record(problem: Problem, outcome: Outcome) -> dict[str, Any]:
    """What the pickle holds: builtin types only, coefficients modulo the prime in 0 … prime - 1, zeros left out."""
    point = problem.point
    record: dict[str, Any] = {
        "format": 1,
        "success": not outcome.unreduced,
        "family": problem.family.name,
        "prime": point.prime,
        "d": plain_number(point.d),
        "kinematics": {name: plain_number(value) for name, value in point.invariants},
        "reductions": outcome.reductions,
        "masters": outcome.masters,
        "unreduced": outcome.unreduced,
        "steps": outcome.statistics["integrals"],
        "time": outcome.seconds,
        "peak_memory_kb": outcome.peak_memory_kb,
        "statistics": outcome.statistics,
        "version": __version__,
    }
    if problem.symmetries:
        record["symmetries"] = True
    if len(problem.targets) == 1:
        (target,) = problem.targets
        record |= {"original_integral": target, "final_expr": outcome.reductions[target]}
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
                    f"cuts give different coefficients of {show(integral)} in {show(target)}; take another --prime or point"
                )
            merged[integral] = values.pop()
        reductions[target] = merged
    counts = {name: sum(outcome.statistics[name] for outcome in outcomes) for name in outcomes[0].statistics}
    return Outcome(
        reductions,
        sorted({master for outcome in outcomes for master in outcome.masters}, key=weight),
        sorted({integral for outcome in outcomes for integral in outcome.unreduced}, key=weight),
        counts,
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


def write_pickle(record: dict[str, Any], path: Path) -> None:
    """Atomically: a reader sees the old file or the new one. Raises ReductionError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, pickle.dumps(record, protocol=4), sync=True)
    except OSError as error:
        raise ReductionError(f"output {path}: {error.strerror or error}; give another --output") from None


def summary(problem: Problem, outcome: Outcome, output: Path) -> str:
    """What a person wants to see at the end."""
    point, counts = problem.point, outcome.statistics
    at = ", ".join(f"{name}={plain_number(value)}" for name, value in (("d", point.d), *point.invariants))
    lines = [f"{problem.family.name} at {at} modulo {point.prime}"]
    if len(problem.targets) == 1:
        (target,) = problem.targets
        expression = outcome.reductions[target]
        lines.append(f"{show(target)} = sum of {len(expression)} terms" if expression else f"{show(target)} = 0")
        width = max((len(show(term)) for term in expression), default=0)
        lines += [f"  {show(term):{width}}  {expression[term]}" for term in sorted(expression, key=weight, reverse=True)]
    else:
        terms = {term for expression in outcome.reductions.values() for term in expression}
        lines.append(f"{len(problem.targets)} integrals through {len(terms)} integrals")
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
# Paths
# =====================================================================================================================

PATHS_KIND, PATHS_FORMAT = "ibp_reduce paths", 1


def write_paths(problem: Problem, paths: dict[Index, StepPath], file: Path) -> None:
    """One JSON object a line: first the family and the point, then for each integral its identities (operator, seed) and its expression."""
    point = problem.point
    header = {
        "kind": PATHS_KIND,
        "format": PATHS_FORMAT,
        "family": problem.family.name,
        "identifier": problem.family.identifier,
        "prime": point.prime,
        "d": str(point.d),
        "kinematics": {name: str(value) for name, value in point.invariants},
    }
    lines = [header]
    for target in sorted(paths, key=weight, reverse=True):
        actions, expression = paths[target]
        seeds = [(operator, [a + b for a, b in zip(target, change)]) for operator, change in actions]
        lines.append({"integral": target, "path": seeds, "expression": [*expression.items()]})
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, "".join(json.dumps(line) + "\n" for line in lines).encode())
    except OSError as error:
        raise ReductionError(f"--paths {file}: {error.strerror or error}") from None


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
        values = tuple((name, Fraction(header["kinematics"][name])) for name, _ in family.point)
        point = Point(Fraction(header["d"]), values, int(header["prime"]))
        paths = [_read_path(line, family) for line in lines]
    except OSError as error:
        raise InputError(f"--replay {file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--replay {file}: damaged ({type(error).__name__}: {error})") from None
    operators = derive_identities(family)
    equations = evaluate_identities(operators, point)
    nonzero = find_nonzero_sectors(evaluate_identities(operators, generic_point(family)), family.lines)
    for target, seeds, expression in paths:
        if any(operator not in range(equations.count) for operator, _ in seeds):
            raise InputError(f"--replay {file}: damaged (there is no operator of that number)")
        found = expression_by(target, [_raw_identity(equations, *seed) for seed in seeds], point.prime)
        if found is None:
            raise ReductionError(f"{show(target)}: its {len(seeds)} identities do not express it through lighter integrals")
        if {term: value for term, value in found.items() if sector_of(term) in nonzero} != expression:
            raise ReductionError(f"{show(target)}: its identities give another expression than the file")
    return len(paths), sum(len(seeds) for _, seeds, _ in paths)


def _read_path(line: Any, family: Family) -> tuple[Index, list[tuple[int, Index]], Expression]:
    """Raises ValueError and the like where a line is not what `write_paths` writes."""

    def index(value: Any) -> Index:
        if len(value) != family.n or not all(type(a) is int and abs(a) <= MAX_INDEX for a in value):
            raise ValueError(f"{value!r} is not an integral")
        return tuple(value)

    seeds = [(int(operator), index(seed)) for operator, seed in line["path"]]
    return index(line["integral"]), seeds, {index(term): int(value) for term, value in line["expression"]}


def _raw_identity(equations: Equations, operator: int, seed: Index) -> Expression:
    """All terms of one identity, whatever sector they are in."""
    row: Expression = {}
    for term in np.flatnonzero(equations.operator == operator):
        value = int(equations.coefficient[term, 0]) + sum(int(c) * a for c, a in zip(equations.coefficient[term, 1:], seed))
        if value % equations.prime:
            row[tuple(a + int(b) for a, b in zip(seed, equations.shift[term]))] = value % equations.prime
    return row


def expression_by(target: Index, identities: Sequence[Expression], p: int) -> Expression | None:
    """What these identities say the target is, if they say it through lighter integrals alone."""
    rows = [dict(row) for row in identities]
    while rows:
        heaviest = max((max(row, key=weight) for row in rows if row), key=weight, default=None)
        if heaviest is None or weight(heaviest) < weight(target):
            return None
        having = [row for row in rows if heaviest in row]
        pivot = min(having, key=len)
        if heaviest == target:
            factor = -pow(pivot.pop(target), -1, p)
            return {term: value * factor % p for term, value in pivot.items()}
        inverse = pow(pivot[heaviest], -1, p)
        for row in having:
            if row is not pivot:
                _subtract(row, pivot, row[heaviest] * inverse % p, p)
        rows = [row for row in rows if row is not pivot and row]
    return None


# =====================================================================================================================
# Training
# =====================================================================================================================

TRAINING_FORMAT = 1
HELD_OUT = 0.1  # share of the trajectories that measure and never train
SHOWN_ACTIONS = 64  # of a position to train on: the right ones and a random choice of the others
LONGEST_SCRAMBLE = 6
BATCH_POSITIONS = 32
TRAINING_CURVE = ("epoch", "seconds", "loss", "held_out_loss", "top1", "top5", "top1_eliminations", "top1_scrambles")
SAMPLE_WIDTHS = {"entries": 14, "indices": 7, "actions": 8, "open": 6}


@dataclass(frozen=True, eq=False)
class Sample:
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


def elimination(finder: RuleFinder, target: np.ndarray) -> tuple[SearchGround, Position, list[Action]] | None:
    """A trajectory out of the identities that local elimination uses: from the target down to what is lighter."""
    for level in range(LAST_NEIGHBOURHOOD + 1):
        if rule := finder.find(target, level, finder.structure):
            return SearchGround(finder.sector, finder.structure, target), Position(), list(rule.rows)
    return None


def scramble(finder: RuleFinder, base: np.ndarray, rng: np.random.Generator) -> tuple[SearchGround, Position, list[Action]] | None:
    """A trajectory in reverse: random identities make an integral complicated; to be undone down to what it was.

    The lightest integral that is heavier than the first one becomes the target, so that the same position is empty at the end.
    """
    ground = SearchGround(finder.sector, finder.structure, base)
    expression, used, p = {0: 1}, [], finder.structure.prime
    for _ in range(rng.integers(1, LONGEST_SCRAMBLE + 1)):
        key = int(rng.choice(np.sort(np.fromiter(expression, np.int64))))
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
    target = finder.sector.decode(np.array([lightest + ground.target_key]))[0]
    moved = [(operator, tuple((base + np.array(change) - target).tolist())) for operator, change in used]
    return (
        SearchGround(finder.sector, finder.structure, target),
        Position((), {key - lightest: value for key, value in heavy.items()}),
        list(dict.fromkeys(moved)),
    )


def follow(ground: SearchGround, position: Position, left: list[Action], rng: np.random.Generator, limit: int | None) -> list[Sample]:
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
            samples.append(_shown(Sample(features, right), limit, rng))
        action = actions[rng.choice(known)]
        left = [other for other in left if other != action]
        position = ground.after(position, action)
    return samples


def _shown(sample: Sample, limit: int | None, rng: np.random.Generator) -> Sample:
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
    return Sample(kept, right[keep])


def sector_samples(family: Family, bits: int, trajectories: int, seed: int) -> dict[str, Any]:
    """Training samples of one sector, ragged arrays: half from eliminations, half from scrambles; the same for the same seed."""
    equations = evaluate_identities(derive_identities(family), generic_point(family))
    finder = RuleFinder(Sector(Layout(family.n, 30, 30), bits), equations)
    digest = hashlib.sha256(f"{family.identifier} {bits} {seed}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    samples, kinds, held_out, numbers = [], [], [], []
    for number in range(trajectories):
        base = random_target(finder.sector, rng)
        scrambled, held = number % 2 == 1, bool(rng.random() < HELD_OUT)
        trajectory = scramble(finder, base, rng) if scrambled else elimination(finder, base)
        if trajectory is None:
            continue
        new = follow(*trajectory, rng, None if held else SHOWN_ACTIONS)
        samples += new
        kinds += [scrambled] * len(new)
        held_out += [held] * len(new)
        numbers += [number] * len(new)
    return pack_samples(samples) | {
        "scrambled": np.array(kinds, bool),
        "held_out": np.array(held_out, bool),
        "trajectory": np.array(numbers),
    }


def pack_samples(samples: Sequence[Sample]) -> dict[str, np.ndarray]:
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


class TrainingSet:
    """Samples of a file, any of which make a batch. Raises PolicyRefused where the file is not what it should be."""

    def __init__(self, path: Path):
        try:
            with np.load(path, allow_pickle=False) as file:
                self.arrays = {name: file[name] for name in file.files}
            self.header = json.loads(str(self.arrays.pop("header")))
            fits = (self.header["format"], self.header["policy"]) == (TRAINING_FORMAT, POLICY_FORMAT)
            self.begin = {name: np.cumsum(self.arrays[f"{name}_count"]) - self.arrays[f"{name}_count"] for name in SAMPLE_WIDTHS}
            whole = all(
                int(self.arrays[f"{name}_count"].sum()) == len(self.arrays[name]) and self.arrays[name].shape[1] == width
                for name, width in SAMPLE_WIDTHS.items()
            )
            whole &= len(self.arrays["action"]) == len(self.arrays["entries"]) and len(self.arrays["right"]) == len(self.arrays["actions"])
        except OSError as error:
            raise PolicyRefused(f"training data {path}: {error.strerror or error}; make some with --make-training-data") from None
        except (ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
            raise PolicyRefused(f"training data {path}: damaged ({type(error).__name__}); make it anew") from None
        if not fits or not whole:
            raise PolicyRefused(f"training data {path}: of another version, or damaged; make it anew")
        self.held_out = np.flatnonzero(self.arrays["held_out"])
        self.shown = np.flatnonzero(~self.arrays["held_out"])
        if not len(self.shown) or not len(self.held_out):
            raise PolicyRefused(f"training data {path}: too few trajectories ({len(self.shown)} positions); make more")

    @property
    def name(self) -> str:
        """What tells these data from others."""
        digest = hashlib.sha256(json.dumps(self.header, sort_keys=True).encode())
        digest.update(self.arrays["right"].tobytes() + self.arrays["entries"].tobytes())
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


def position_losses(scores: Any, batch: dict[str, Any]) -> Any:
    """Minus the logarithm of the probability of all right actions together, for each position."""
    import torch

    positions, width = int(batch["actions_owner"][-1]) + 1, int(torch.bincount(batch["actions_owner"]).max())
    owner = batch["actions_owner"]
    place = torch.arange(len(owner), device=owner.device) - torch.searchsorted(owner, owner)
    table = scores.new_full((2, positions, width), -1e9)
    table[0, owner, place] = scores
    table[1, owner, place] = torch.where(batch["right"], scores, scores.new_tensor(-1e9))
    total, right = torch.logsumexp(table, 2)
    return total - right


def measure_policy(network: Any, data: TrainingSet, device: str) -> dict[str, float]:
    """Loss, top-1 and top-5 on the held-out trajectories, where every action competes."""
    import torch

    losses, ranks = [], []
    with torch.inference_mode():
        for part in np.array_split(data.held_out, max(len(data.held_out) // 64, 1)):
            batch = {name: tensor.to(device) for name, tensor in data.batch(part).items()}
            scores = action_scores(network, batch)
            losses.append(position_losses(scores, batch))
            owner = batch["actions_owner"]
            best = scores.new_full((len(part),), -math.inf)
            best = best.scatter_reduce(0, owner, torch.where(batch["right"], scores, -math.inf), "amax")
            better = (scores > best[owner]).long()
            ranks.append(torch.zeros(len(part), dtype=torch.long, device=device).index_add_(0, owner, better))
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
            state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
            if state["name"] == self.name:
                self.network.load_state_dict(state["network"])
                self.optimizer.load_state_dict(state["optimizer"])
                self.curve, self.seconds = list(state["curve"]), float(state["seconds"])
        except Exception as error:  # torch raises a dozen kinds
            raise PolicyRefused(f"checkpoint {self.checkpoint}: damaged ({type(error).__name__}); delete it, or give --fresh") from None
        if state["name"] != self.name:
            raise PolicyRefused(f"checkpoint {self.checkpoint}: of a training with other data or options; delete it, or give --fresh")

    def save(self) -> None:
        import torch

        buffer = io.BytesIO()
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({"name": self.name, "curve": self.curve, "seconds": self.seconds} | state, buffer)
        replace_file(self.checkpoint, buffer.getvalue())

    def run_epoch(self, tick: Callable[[float], None]) -> bool:
        """Train once on everything; False where the loss is not a number any more, and then nothing is kept of the epoch."""
        import torch

        started, epoch = time.monotonic(), len(self.curve)
        order = np.random.default_rng((self.plan.seed, epoch)).permutation(self.data.shown)
        batches = np.array_split(order, max(len(order) // BATCH_POSITIONS, 1))
        total = 0.0
        for number, part in enumerate(batches):
            done = (epoch + number / len(batches)) / self.plan.epochs
            for group in self.optimizer.param_groups:
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
            tick(number / len(batches))
        measured = measure_policy(self.network, self.data, self.device)
        if not math.isfinite(measured["held_out_loss"]):
            return False
        self.seconds += time.monotonic() - started
        self.curve.append({"epoch": epoch + 1, "seconds": round(self.seconds, 1), "loss": total / len(batches)} | measured)
        self.save()
        return True


def write_curve(curve: Sequence[dict[str, float]], table: Path) -> None:
    """Loss and accuracy as CSV, and as a picture where matplotlib is there."""
    lines = [",".join(TRAINING_CURVE)]
    lines += [",".join(f"{line[name]:.6g}" for name in TRAINING_CURVE) for line in curve]
    replace_file(table, ("\n".join(lines) + "\n").encode())
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    epochs = [line["epoch"] for line in curve]
    for name in ("loss", "held_out_loss"):
        loss.plot(epochs, [line[name] for line in curve], marker=".", label=name.replace("_", " "))
    for name in ("top1", "top5"):
        accuracy.plot(epochs, [100 * line[name] for line in curve], marker=".", label=name.replace("top", "top-"))
    loss.set(xlabel="epoch", ylabel="loss of a position")
    accuracy.set(xlabel="epoch", ylabel="% of held-out positions")
    for axes in (loss, accuracy):
        axes.legend()
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    replace_file(table.with_suffix(".png"), buffer.getvalue())


def run_training(options: Options) -> int:
    """--make-training-data and --train-policy."""
    plan = TrainingPlan(options.epochs, options.learning_rate, seed=options.seed)
    if not 1 <= options.epochs <= 10_000 or not options.learning_rate > 0 or not 1 <= options.trajectories <= 1_000_000:
        raise InputError("--epochs, --learning-rate and --trajectories: expected numbers above 0")
    families = [load_family(name) for name in options.family.split(",")]
    work = Path(options.work_dir)
    data_path = Path(options.training_data or work / "training.npz")
    weights = Path(options.policy or work / "policy.pt")
    for path, what in ((data_path, "--training-data"), (weights, "--policy")):
        check_writable(path, what, is_directory=False)
    check_writable(work, "--work-dir", is_directory=True)
    progress = Progress(options.quiet)
    try:
        with claim_directory(options.work_dir):
            if options.make_training_data or not data_path.exists():
                with make_executor(options, work, progress.say) as executor:
                    counts = make_training_data(families, options.trajectories, options.seed, data_path, executor, progress)
                if not options.quiet:
                    progress.close()
                    print(f"{data_path}: " + ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items()))
            return train_policy(TrainingSet(data_path), plan, options, weights, progress) if options.train_policy else 0
    finally:
        progress.close()


def train_policy(data: TrainingSet, plan: TrainingPlan, options: Options, weights: Path, progress: Progress) -> int:
    """Train, from the checkpoint where there is one; weights, curve and checkpoint are written after each epoch."""
    training = Training(data, plan, training_device(options.device), Path(options.work_dir) / "training.checkpoint")
    if options.fresh:
        training.checkpoint.unlink(missing_ok=True)
    training.restore()
    if not options.quiet:
        size = sum(parameter.numel() for parameter in training.network.parameters())
        print(f"{len(data.shown):,} positions to train on, {len(data.held_out):,} held out; {size:,} parameters, on {training.device}")
    while len(training.curve) < plan.epochs:
        epoch = len(training.curve)
        if not training.run_epoch(lambda part, epoch=epoch: progress.show("epochs", epoch + part, plan.epochs, "")):
            raise ReductionError(
                f"training: the loss is not a number in epoch {epoch + 1}; the weights of epoch {epoch} are kept in {weights}"
                if epoch
                else "training: the loss is not a number in the first epoch, nothing is kept; take a smaller --learning-rate"
            )
        line = training.curve[-1]
        trained = {"seconds": training.seconds, "positions": len(data.shown)} | line
        replace_file(weights, pack_policy(training.network, data.header["families"], trained))
        write_curve(training.curve, weights.with_suffix(".csv"))
        if not options.quiet:
            progress.say(
                f"epoch {line['epoch']}: loss {line['loss']:.4f}, held out {line['held_out_loss']:.4f}, top-1 {line['top1']:.2%} "
                f"(eliminations {line['top1_eliminations']:.2%}, scrambles {line['top1_scrambles']:.2%}), top-5 {line['top5']:.2%}, "
                f"{line['seconds']:.0f} s"
            )
    if not options.quiet:
        progress.close()
        print(f"weights in {weights}, curve in {weights.with_suffix('.csv')}")
    return 0


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
    family = load_family(options.family)
    beam = make_beam(replace(options, engine="beam", max_steps=min(options.max_steps, 60)), family)
    targets = search_targets(family, options.benchmark_search, options.seed)
    equations = evaluate_identities(derive_identities(family), generic_point(family))
    print(f"{len(targets)} integrals of {family.name}, width {beam.width}, order {beam.order}, at most {beam.max_steps} steps")
    print(f"{'policy':10}{'found':>8}{'steps':>8}{'seconds':>10}{'mean':>9}{'most':>9}{'rows':>7}   (median steps and seconds of a search)")
    progress = Progress(options.quiet)
    for name, policy in (("trained", beam.policy), ("random", "random"), ("fixed", "fixed")):
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
    """Raises InputError where there is no such device."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no GPU; leave the option out")
    return name


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
    import csv

    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(BENCHMARK_COLUMNS)
        writer.writerows([round(value, 3) if isinstance(value, float) else value for value in row.values()] for row in rows)
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
    figure.savefig(table.with_suffix(".png"), dpi=120)
    print(f"written to {table.with_suffix('.png')}")


# =====================================================================================================================
# Command line
# =====================================================================================================================

SEED_INTEGRAL = "3,2,1,3,2,2,-6"
STATUS_TRUSTED_S = 30.0  # a status not older than this shows that a controller on another host is at work
STOP_PATIENCE_S = 90.0  # how long --stop waits for a controller to remove its jobs
LARGEST_TARGET_INDEX = 100


def _option(default: Any, text: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": text, **more})


@dataclass(frozen=True)
class Options:
    """Every option, its default and what it does; the command line is made from this."""

    integral: str | None = _option(
        None, f"indices of the integral to reduce (default: {SEED_INTEGRAL} with --paper-masters-only)", metavar="A1,A2,..."
    )
    integrals: str | None = _option(None, "file of integrals to reduce in one run, one a line: indices, or NAME[indices]", metavar="FILE")
    output: str = _option("results/reduction.pkl", "pickle with the result", metavar="FILE")
    work_dir: str = _option("ibp_work", "directory for the store and logs", metavar="DIR")
    local: int = _option(
        1, "number of processes on this machine (without a number: all cores)", nargs="?", const=os.cpu_count(), metavar="N"
    )
    family: str = _option("trianglebox", "a built-in family or a JSON file", metavar="NAME|FILE")
    list_families: bool = _option(False, "show the built-in families and stop")
    d: str | None = _option(None, "dimension, an integer or a fraction (default: the family's, 41)")
    kinematics: str | None = _option(None, "values of the family's invariants (default: the family's)", metavar="NAME=VALUE,...")
    prime: int = _option(1009, "all arithmetic is modulo this prime, below 2**31")
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
    beam_width: int = _option(20, "positions that a beam search keeps", metavar="N")
    beam_order: str = _option(
        "policy", "how a beam search sorts them: 'weight' (heaviest integral left), 'size' (how many are left), 'policy'"
    )
    max_steps: int = _option(10**15, "steps of a beam search for one integral", metavar="N")
    no_rules: bool = _option(False, "with --engine beam: search for every integral, reuse no path")
    paths: str | None = _option(None, "with --engine beam: write the path found for each integral that was searched", metavar="FILE")
    replay: str | None = _option(None, "check the paths of such a file against the identities, and stop", metavar="FILE")
    policy: str | None = _option(None, "weights of the policy, or 'fixed' or 'random' for none (default: the shipped ones)", metavar="FILE")
    make_training_data: bool = _option(False, "make examples to train a policy on; --family may be a list A,B,... here")
    train_policy: bool = _option(False, "train a policy (weights: --policy, or policy.pt in the work directory)")
    benchmark_search: int | None = _option(
        None, "one-step reductions of N random integrals (200), with the policy and without", nargs="?", const=200, metavar="N"
    )
    training_data: str | None = _option(None, "file of examples (default: training.npz in the work directory)", metavar="FILE")
    trajectories: int = _option(600, "examples to make for each sector", metavar="N")
    epochs: int = _option(TrainingPlan.epochs, "how often training goes through the examples", metavar="N")
    learning_rate: float = _option(TrainingPlan.learning_rate, "of the optimiser at the start", metavar="X")
    seed: int = _option(0, "of all that is random in the examples and in training", metavar="N")
    device: str = _option("auto", "where to train: 'cpu', 'cuda', or 'auto' (a GPU if there is one)")
    quiet: bool = _option(False, "no progress bar, no summary")
    symmetries: bool = _option(False, "use relations between sectors: integrals of equivalent sectors become one, fewer masters are left")
    list_symmetries: bool = _option(False, "show the family's symmetries, each proved by substitution, and stop")
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
    return Options(**values | {name: tuple(values[name] or ()) for name in ("condor_option", "cut")})


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


def read_integrals(path: str, family: Family, what: str) -> tuple[Index, ...]:
    """Integrals of a file, one a line, '#' starts a comment; doubles are dropped. Raises InputError."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{what} {path}: not readable ({error})") from None
    texts = [(number, line.partition("#")[0].strip().rstrip(",")) for number, line in enumerate(lines, 1)]
    found = [parse_integral(text, family, f"{what} {path}, line {number}") for number, text in texts if text]
    if not found:
        raise InputError(f"{what} {path}: no integrals in it")
    return tuple(dict.fromkeys(found))


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
    prime, largest = options.prime, max(max(r_and_s(target)) for target in targets)
    if not 2 < prime <= MAX_PRIME or any(prime % q == 0 for q in range(2, int(prime**0.5) + 1)):
        raise InputError(f"--prime {prime}: expected a prime number from 3 to {MAX_PRIME}")
    if prime <= largest:
        raise InputError(f"--prime {prime}: not above the largest index in play, {largest}; take a larger prime")
    d = parse_number(family.d if options.d is None else options.d, "d")
    point = Point(d, tuple((name, parse_number(value, name)) for name, value in values.items()), prime)
    point.residues()
    return point


def make_problem(options: Options) -> Problem:
    """Raises InputError."""
    if options.integral is not None and options.integrals is not None:
        raise InputError("--integral and --integrals contradict each other: give one of them")
    if options.local < 1:
        raise InputError(f"--local {options.local}: expected at least 1 process")
    check_running_options(options)
    family = load_family(options.family)
    default = options.integral is None and options.integrals is None
    if default and family.name != "trianglebox":
        raise InputError(f"--family {family.name} needs --integral or --integrals: there is no default integral for it")
    if options.integrals is not None:
        targets = read_integrals(options.integrals, family, "--integrals")
    else:
        targets = (parse_integral(SEED_INTEGRAL if default else options.integral, family, "--integral"),)
    preferred = read_integrals(options.masters, family, "--masters") if options.masters is not None else ()
    point = parse_point(options, family, targets + preferred)
    paper_masters_only = options.paper_masters_only or (default and not options.symmetries)
    return Problem(family, point, targets, paper_masters_only, preferred, make_beam(options, family), options.symmetries)


def make_cuts(options: Options, problem: Problem, nonzero: Callable[[], Sequence[int]]) -> tuple[int, ...]:
    """Bit masks of the lines of each cut, () where nothing is cut. nonzero: finds the non-zero sectors. Raises InputError."""
    if not options.cut:
        return ()
    one_step = options.condor or options.batch not in (None, "sector")
    for name, given in (("masters", options.masters), ("paths", options.paths), ("symmetries", options.symmetries)):
        if given:
            raise InputError(f"--cut and --{name} contradict each other: give one of them")
    if one_step and (len(options.cut) > 1 or options.cut == ("spanning",)):
        raise InputError("several cuts are put together by runs with --local and --batch sector; with one-step tasks give one --cut")
    tops = [sector_of(target) for target in problem.targets]
    if "spanning" in options.cut:
        if len(options.cut) > 1:
            raise InputError("--cut spanning stands for all cuts that are needed: give it alone")
        return tuple(lowest_sectors(nonzero(), tops))
    cuts = tuple(dict.fromkeys(parse_cut(text, problem.family) for text in options.cut))
    for text, cut in zip(options.cut, cuts):
        if not any(cut & top == cut for top in tops):
            missing = next(i + 1 for i in range(problem.family.n) if cut >> i & 1 and not tops[0] >> i & 1)
            raise InputError(f"--cut {text}: line {missing} has no positive index in {show(problem.targets[0])}, so nothing would be left")
    for target, top in zip(problem.targets, tops):
        if not any(cut & top == cut for cut in cuts):
            raise InputError(
                f"--cut: {show(target)} has the lines of none of the cuts, so nothing of it would be left; reduce it by itself"
            )
    return cuts


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
    if options.engine not in ("rules", "beam"):
        raise InputError(f"--engine {options.engine}: expected rules or beam")
    if options.engine == "rules":
        if options.no_rules or options.paths is not None:
            raise InputError(f"{'--no-rules' if options.no_rules else '--paths'} is for --engine beam")
        return None
    if options.beam_width < 1 or options.max_steps < 1:
        raise InputError(f"--beam-width {options.beam_width}, --max-steps {options.max_steps}: expected at least 1")
    if options.beam_order not in BEAM_ORDERS:
        raise InputError(f"--beam-order {options.beam_order}: expected one of {', '.join(BEAM_ORDERS)}")
    policy = read_policy(options.policy or str(DATA / "policy.pt"), family)
    return Beam(options.beam_width, options.max_steps, options.beam_order, not options.no_rules, policy)


def run_replay(options: Options) -> int:
    """--replay: check paths found earlier."""
    started = time.perf_counter()
    paths, identities = replay_paths(Path(options.replay), load_family(options.family))
    print(f"{paths:,} paths of {identities:,} identities replayed: each gives its expression ({time.perf_counter() - started:.1f} s)")
    return 0


def check_running_options(options: Options) -> None:
    """Raises InputError where the options say nothing sensible about how to run."""
    if options.condor and options.local != 1:
        raise InputError("--condor and --local contradict each other: give one of them")
    if options.resume and options.fresh:
        raise InputError("--resume and --fresh contradict each other: give one of them")
    positive = ("job_seconds", "straggler_cpus", "check_interval", "request_memory", "max_jobs")
    for name in positive:
        if (value := getattr(options, name)) is not None and not 0 < value < LONGEST_TIMEOUT_S:
            raise InputError(f"--{name.replace('_', '-')} {value}: expected a number above 0")
    if options.batch == "sector" and options.condor:
        raise InputError("--batch sector is for --local; with --condor give auto or a number of integrals")
    if options.batch not in (None, "sector", "auto") and not re.fullmatch("[1-9][0-9]{0,8}", options.batch):
        raise InputError(f"--batch {options.batch}: expected sector, auto, or a number of integrals")
    for text in options.condor_option:
        if not text.partition("=")[1]:
            raise InputError(f"--condor-option {text!r}: expected KEY=VALUE")
    make_limits(options)


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


def check_paths(options: Options, output: Path, work: Path, store: Path) -> None:
    """Raises InputError where a path cannot be written, or one file would be two things."""
    check_writable(output, "--output", is_directory=False)
    check_writable(work, "--work-dir", is_directory=True)
    check_writable(store, "--store", is_directory=False)
    if options.paths is not None:
        check_writable(Path(options.paths), "--paths", is_directory=False)
    uses = {"--output": output, "--work-dir": work, "--store": store}
    uses |= {
        f"--{name}": Path(text) for name in ("integrals", "masters", "family", "paths") if (text := getattr(options, name)) is not None
    }
    if options.family in BUILT_IN_FAMILIES:
        del uses["--family"]
    places = [(what, os.path.realpath(path)) for what, path in uses.items()]
    run = RunDirectory(work)
    names = (run.journal, run.shared, run.jobs, run.status, run.stop_request, work / "controller.json", work / "controller.lock")
    own = [os.path.realpath(path) for path in names]
    for what, place in places:
        if any(place == path or place.startswith(path + os.sep) for path in own):
            raise InputError(f"{what} {uses[what]}: a run keeps its own files there; choose another")
    for number, (what, place) in enumerate(places):
        for other, other_place in places[:number]:
            if place == other_place and "--masters" not in (what, other):
                raise InputError(f"{other} and {what} are the same file {uses[what]}; give two")


def list_families() -> str:
    lines = [f"{'name':22}{'loops':>6}{'legs':>6}{'lines':>6}{'ISPs':>6}  invariants (default point)    propagators"]
    for family in BUILT_IN_FAMILIES.values():
        point = " ".join(f"{name}={value}" for name, value in family.point)
        propagators = ", ".join(text if mass == "0" else f"{text} [{mass}]" for text, mass in family.propagators)
        legs = len(family.external_momenta) + 1
        lines.append(f"{family.name:22}{len(family.loop_momenta):6}{legs:6}{family.lines:6}{family.isps:6}  {point:29} {propagators}")
    return "\n".join(lines)


def plan(problem: Problem, shelves: Sequence[Store]) -> str:
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
            f"{len(problem.targets)} to reduce modulo {problem.point.prime}, first {show(problem.targets[0])}",
            f"stores: {', '.join(str(shelf.path) for shelf in shelves)}",
        ]
    )


def say(line: str) -> None:
    """One line on stderr, whatever is in it."""
    line = " ".join(line.split())
    with suppress(OSError):  # nobody may read stderr any more; that must not end a run
        print(f"ibp_reduce: {line if len(line) < 900 else line[:900] + ' ...'}", file=sys.stderr, flush=True)


def run_reduction(options: Options) -> int:
    problem = make_problem(options)
    output, work = Path(options.output), Path(options.work_dir)
    path = Path(options.store) if options.store is not None else work / "store.shelf"
    check_paths(options, output, work, path)
    shipped = Store(DATA / "rules.shelf", read_only=True, say=say)
    readable = [shipped, Store(path, read_only=True, say=say)]
    nonzero = cache(lambda: known_nonzero_sectors(problem.family, [] if options.cold else readable))
    cuts = make_cuts(options, problem, nonzero)
    if options.dry_run:
        print(plan(problem, readable))
        return 0
    shelves = [Store(path, write_only=True, say=say)] if options.cold else [shipped, Store(path, say=say)]
    one_step = options.condor or options.batch not in (None, "sector")
    if len(cuts) == 1:
        problem = replace(problem, cut=cuts[0])

    def save(outcome: Outcome) -> None:
        record = result_record(problem, outcome)
        if cuts:
            record["cuts"] = [cut_lines(cut) for cut in cuts]
        write_pickle(record, output)
        if options.paths is not None:
            write_paths(problem, outcome.paths, Path(options.paths))

    if len(cuts) > 1:
        parts = [run_sector_tasks(replace(problem, cut=cut), options, shelves, lambda outcome: None) for cut in cuts]
        outcome = merge_cuts(cuts, parts)
        save(outcome)
    else:
        outcome = (run_one_step_tasks if one_step else run_sector_tasks)(problem, options, shelves, save)
    if not options.quiet:
        print(summary(problem, outcome, output))
        if cuts:
            print(describe_cuts(cuts, lowest_sectors(nonzero(), list(map(sector_of, problem.targets)))))
    if outcome.unreduced:
        say(f"{len(outcome.unreduced)} integrals were not reduced (listed in {output}); another --prime or point may do it")
    if outcome.store_trouble:
        raise ReductionError(f"the result is in {output}, but what was learned is not stored: {outcome.store_trouble}")
    return 1 if outcome.unreduced else 0


def known_nonzero_sectors(family: Family, shelves: Sequence[Store]) -> tuple[int, ...]:
    """From a store, or found."""
    for shelf in shelves:
        if (found := shelf.load(family).nonzero) is not None:
            return found
    return find_nonzero_sectors(evaluate_identities(derive_identities(family), generic_point(family)), family.lines)


def run_list_symmetries(options: Options) -> int:
    """--list-symmetries."""
    family = load_family(options.family)
    nonzero = known_nonzero_sectors(family, [] if options.cold else [Store(DATA / "rules.shelf", read_only=True, say=say)])
    print(describe_symmetries(family, nonzero))
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
    if options.local == 1:
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


def run_sector_tasks(problem: Problem, options: Options, shelves: Sequence[Store], save: Callable[[Outcome], None]) -> Outcome:
    if os.path.exists(options.work_dir):
        private_directory(options.work_dir)
    progress = Progress(options.quiet)
    try:
        with make_executor(options, Path(options.work_dir), progress.say) as executor:
            outcome = Controller(problem, executor, shelves, progress).run()
    finally:
        progress.close()
    save(outcome)
    return outcome


def run_one_step_tasks(problem: Problem, options: Options, shelves: Sequence[Store], save: Callable[[Outcome], None]) -> Outcome:
    """A run that a later one can go on with. Raises DirectoryRefused where another controller is at work."""
    progress = Progress(options.quiet, lines=True)
    with claim_directory(options.work_dir) as work:
        directory = RunDirectory(work)
        directory.stop_request.unlink(missing_ok=True)  # of an earlier run
        if options.condor:
            check_condor_tools()  # before anything is dropped
        if options.fresh:
            drop_run(directory)
        if options.resume and not directory.journal.exists():
            raise InputError(f"--resume: {work} holds no unfinished run; leave the option out to start one")
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


def drop_jobs(directory: RunDirectory) -> None:
    """Remove the jobs that a run has in HTCondor's queue, and their files. Raises ExecutorError."""
    if directory.jobs.exists():
        say(f"{remove_run(directory.jobs)} jobs removed from HTCondor's queue")
        directory.drop_jobs()


def drop_run(directory: RunDirectory) -> None:
    drop_jobs(directory)
    directory.clear()


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
    if directory.journal.exists() and not directory.status.exists():
        return f"{directory.path}: a run is being prepared, or ended before it had a status", False
    status = read_json(
        directory.status, f"--status: {directory.path} holds no run of one-step tasks (--condor or --batch)", format=STATUS_FORMAT
    )
    owner = read_json(directory.path / "controller.json", f"--status: {directory.path} was never claimed by a controller")
    try:
        return describe_run(directory, status, owner)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        trouble = f"status.json or controller.json is damaged ({error}); a controller at work writes them anew"
        raise ReductionError(f"{directory.path}: {trouble}") from None


def describe_run(directory: RunDirectory, status: dict[str, Any], owner: dict[str, Any]) -> tuple[str, bool]:
    """The table of a sound status."""
    age = time.time() - status["time"]
    finished = not directory.journal.exists()
    alive = not finished and (process_exists(owner["pid"]) if owner["host"] == os.uname().nodename else age < STATUS_TRUSTED_S)
    doing = "finished" if finished else "at work" if alive else "GONE: go on with the same command, or remove its jobs by --stop"
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


def check_benchmark_options(options: Options) -> None:
    """Raises InputError for options that the benchmark does not take."""
    if options.benchmark < 0:
        raise InputError(f"--benchmark {options.benchmark}: expected the number of integrals")
    for option in fields(Options):
        if option.name not in ("benchmark", "output", "work_dir", "quiet") and getattr(options, option.name) != option.default:
            raise InputError(
                f"--benchmark and --{option.name.replace('_', '-')} contradict each other: the benchmark runs what was published"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    ensure_standard_streams()
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = parse_options(arguments)
    try:
        if options.list_families:
            print(list_families())
            code = 0
        elif options.status or options.watch:
            code = show_status(options)
        elif options.stop:
            code = stop_run(options)
        elif options.make_training_data or options.train_policy:
            code = run_training(options)
        elif options.benchmark_search is not None:
            code = run_search_benchmark(options)
        elif options.replay is not None:
            code = run_replay(options)
        elif options.list_symmetries:
            code = run_list_symmetries(options)
        elif options.benchmark is not None:
            check_benchmark_options(options)
            check_writable(Path(options.output), "--output", is_directory=False)
            code = run_benchmark(options)
        else:
            code = run_reduction(options)
        sys.stdout.flush()
        return code
    except (InputError, DirectoryRefused, CondorMissing) as error:
        say(str(error))
        return 2
    except (ReductionError, ExecutorError) as error:
        say(str(error))
        return 1
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
