"""integralfamilies.yaml, kinematics.yaml and jobs.yaml of a Kira project."""

from __future__ import annotations

import itertools
import math
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from ibp.arithmetic import evaluate
from ibp.errors import InputError, how_to_install
from ibp.families import Family, Index, check_family, cut_lines, read_propagator
from ibp.identities import Algebra, function_field
from ibp.sectors import integrals_near_corner, sector_of, sector_order, show
from ibp.targets import LARGEST_TARGET_INDEX, Request

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
    check_family(family, where)
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
