"""Integral families: what defines one, and the files it is read from.

`Family` is the definition; `load_family` finds a built-in one (a file of data/families) or reads a file of the user.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from ibp.arithmetic import parse_number
from ibp.errors import InputError
from ibp.shipped import shipped, shipped_names

Index = tuple[int, ...]
Expression = dict[Index, int]
LARGEST_INDEX = 100  # size of an index of an integral that a person may ask for


@dataclass(frozen=True)
class Family:
    """Definition of an integral family; everything else about it is computed.

    propagators: (momentum, squared mass) pairs; a momentum such as 'k1+p1' is squared, a product such as '2*k1*p1' (a linear propagator)
    is taken as it stands, and the squared mass is subtracted. The last `isps` of them are irreducible scalar products.
    kinematics: a value for each scalar product of external momenta, in terms of the invariants.
    point: the invariants and their default values. paper_masters: a published basis, if there is one.

    >>> load_family("bubble").propagators
    (('k1', 'm'), ('k1+p', 'm'))
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


class _BuiltIn(Mapping[str, Family]):
    """The families of data/families by name; a file is read when its family is asked for."""

    def __getitem__(self, name: str) -> Family:
        if not isinstance(name, str) or f"{name}.json" not in shipped_names("families"):
            raise KeyError(name)
        return _built_in_family(name)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(name.removesuffix(".json") for name in shipped_names("families") if name.endswith(".json")))

    def __len__(self) -> int:
        return sum(1 for _ in self)


BUILT_IN_FAMILIES: Mapping[str, Family] = _BuiltIn()
_FAMILY_KEYS = {
    "name": str, "loop_momenta": list, "external_momenta": list, "propagators": list, "isps": int, "kinematics": dict, "invariants": dict,
}  # fmt: skip


def load_family(text: str) -> Family:
    """The built-in family of this name, or the one defined in this JSON file.

    The file holds one object: name, loop_momenta ["k1"], external_momenta ["p1", "p2"], propagators ["k1", ["k1+p1", "m"], …] (momentum,
    [momentum, squared mass], or linear: {"bilinear": [["k1", "p1"], "w"]}, which is ["k1*p1", "w"]; ISPs last), isps (how many), kinematics
    {"p1*p1": "0", "p1*p2": "s/2"}, invariants {"s": 3} with their default values; optionally d, and masters [[1, 1], …], a published basis
    that a reduction is to stop at. Raises InputError.
    """
    if text in BUILT_IN_FAMILIES:
        return BUILT_IN_FAMILIES[text]
    if not os.path.isfile(text):
        known = ", ".join(BUILT_IN_FAMILIES) or f"the built-in ones, as {shipped('families')} is missing"
        raise InputError(f"unknown family {text!r}: neither a file nor one of {known}")
    return _read_family(Path(text))


@cache
def _built_in_family(name: str) -> Family:
    return _read_family(shipped(f"families/{name}.json"))


def _read_family(path: Path) -> Family:
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
    unknown = set(data) - set(_FAMILY_KEYS) - {"d", "masters"}
    if unknown:
        raise InputError(f"{where}: unknown key {sorted(unknown)[0]!r}; known: {', '.join(_FAMILY_KEYS)}, d, masters")
    loops, externals = (tuple(map(str, data[key])) for key in ("loop_momenta", "external_momenta"))
    propagators = tuple(read_propagator(entry, f"{where}: propagator {n}") for n, entry in enumerate(data["propagators"], 1))
    kinematics, point = (tuple((str(a), str(b)) for a, b in data[key].items()) for key in ("kinematics", "invariants"))
    family = Family(data["name"], loops, externals, propagators, data["isps"], kinematics, point, str(data.get("d", 41)))
    check_family(family, where)
    return replace(family, paper_masters=_read_masters(data.get("masters", []), family, f"{where}: masters"))


def _read_masters(entries: Any, family: Family, where: str) -> tuple[Index, ...]:
    if not isinstance(entries, list):
        raise InputError(f"{where}: expected a list of integrals, each a list of {family.n} integers")
    for entry in entries:
        if not isinstance(entry, list) or len(entry) != family.n or any(type(a) is not int or abs(a) > LARGEST_INDEX for a in entry):
            raise InputError(f"{where}: {reprlib.repr(entry)} is not a list of {family.n} integers up to {LARGEST_INDEX} in size")
        if max(entry[family.lines :], default=0) > 0 or entries.count(entry) > 1:
            raise InputError(f"{where}: {entry} has a positive index of an irreducible scalar product, or is there twice")
    return tuple(map(tuple, entries))


def family_definition(family: Family) -> dict[str, Any]:
    """What define_family reads, without masters: they are no part of what the integrals are."""
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
    if doubles := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(f"key {doubles[0]!r} is there twice")
    return dict(pairs)


def check_family(family: Family, where: str) -> None:
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


def cut_lines(cut: int) -> list[int]:
    return [i + 1 for i in range(cut.bit_length()) if cut >> i & 1]
