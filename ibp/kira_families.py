"""Families of a Kira project: integralfamilies.yaml and kinematics.yaml.

`read_kinematics` and `read_kira_families` are the two files. What would change the result and is not supported is refused; what only says
how Kira goes about it is named. `read_yaml` and `expect` serve jobs.yaml, too.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from ibp.arithmetic import evaluate
from ibp.errors import InputError, how_to_install
from ibp.families import Family, check_family, cut_lines, read_propagator
from ibp.identities import function_field

LARGEST_COUNT = 60  # propagators, momenta or invariants
# what is read, and what is only named
FAMILY_KEYS = ("name", "loop_momenta", "top_level_sectors", "propagators", "cut_propagators", "zero_sectors")
FAMILY_NAMED = ("magic_relations", "permutation", "permutation_option", "symbolic_ibp")
KINEMATICS_KEYS = (
    *("incoming_momenta", "outgoing_momenta", "momentum_conservation"),
    *("kinematic_invariants", "scalarproduct_rules", "symbol_to_replace_by_one"),
)
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


@dataclass(frozen=True)
class KiraFamily:
    """tops: the top-level sectors; cut: bit mask of the cut propagators; named: options that are there and not followed."""

    family: Family
    tops: tuple[int, ...]
    cut: int
    named: tuple[str, ...]


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
        raise InputError(f"--kira-config needs PyYAML: {how_to_install('yaml')}") from None

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
    """A list of words or numbers. Raises InputError."""
    return tuple(expect(item, str, where).strip() for item in expect(value, list, where))


def expect_number(value: Any, where: str, least: int = 0) -> int:
    """Raises InputError."""
    if not isinstance(value, str) or not re.fullmatch(r"[+-]?[0-9]{1,9}", value.strip()) or int(value) < least:
        raise InputError(f"{where}: expected an integer of at least {least}, not {reprlib.repr(value)}")
    return int(value)


def check_keys(data: dict, known: Sequence[str], where: str) -> None:
    """Raises InputError."""
    unknown = [key for key in data if key not in known]
    if unknown:
        raise InputError(f"{where}: unknown key {reprlib.repr(unknown[0])}; known: {', '.join(known)}")


def read_kinematics(path: Path) -> KiraKinematics:
    """kinematics.yaml. Raises InputError for momenta and symbols that are unknown or contradict each other."""
    data = expect(read_yaml(path, "kinematics"), dict, f"{path}: kinematics")
    check_keys(data, KINEMATICS_KEYS, str(path))
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
    if len(invariants) > LARGEST_COUNT:
        raise InputError(f"{where}: {len(invariants)} of them; at most {LARGEST_COUNT} are taken")
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
    if len(names) > LARGEST_COUNT:
        raise InputError(f"{path}: {len(names)} external momenta; at most {LARGEST_COUNT} are taken")
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
        if any(sum(monomial) != 1 for monomial in form.monoms()):
            raise TypeError("constants, or products")
    except (TypeError, ArithmeticError, BasePolynomialError):
        raise InputError(f"{where}: {text!r} is not a linear combination of momenta") from None
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
    check_keys(data, (*FAMILY_KEYS, *FAMILY_NAMED), where)
    if data.get("zero_sectors", "") not in ("", []):
        raise InputError(f"{where}: zero_sectors is not supported: zero sectors are computed here; remove it")
    entries = expect(data.get("propagators", ""), list, f"{where}: propagators")
    propagators = [read_propagator(entry, f"{where}: propagator {number}") for number, entry in enumerate(entries, 1)]
    n = len(propagators)
    if not 0 < n <= LARGEST_COUNT:
        raise InputError(f"{where}: {n} propagators; expected 1 to {LARGEST_COUNT}")
    tops = expect_texts(data.get("top_level_sectors", [str(2**n - 1)]), f"{where}: top_level_sectors")
    sectors = tuple(dict.fromkeys(read_sector(text, n, f"{where}: top_level_sectors") for text in tops))
    union = functools.reduce(operator.or_, sectors, 0)
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
    check_family(family, where)
    if clash := sorted(set(family.loop_momenta) & set(kinematics.replaced)):
        raise InputError(f"{where}: loop_momenta: {clash[0]!r} stands for something else in kinematics.yaml")
    named = tuple(key for key in FAMILY_NAMED if data.get(key, "false") != "false")
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
    """A sector as a number, or as b1101 with a digit for each propagator, the first one first. Raises InputError."""
    if re.fullmatch(f"b[01]{{{n}}}", text):
        return int(text[:0:-1], 2)
    if re.fullmatch("[0-9]{1,18}", text) and int(text) < 1 << n:
        return int(text)
    raise InputError(f"{where}: {text!r} is neither a sector from 0 to {(1 << n) - 1} nor b and {n} binary digits")
