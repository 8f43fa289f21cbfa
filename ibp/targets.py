"""What is to be reduced, as values and as text: integrals, linear combinations, and what a person asks for.

A `Request` is what is wanted of one family; `read_targets` reads a file of integrals and combinations; `show_target` writes a target.
`Asked` holds the words of a person; `read_requests` and `read_corners` make requests of them, `parse_point` makes the point.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from ibp.arithmetic import evaluate, is_factor, parse_number, split_terms
from ibp.errors import InputError
from ibp.families import LARGEST_INDEX, Expression, Family, Index, check_common, load_families, load_one_family
from ibp.identities import Column, Point, function_field
from ibp.residues import MAX_PRIME, is_usable_prime
from ibp.sectors import corner, r_and_s, show

_PLACE = "integral_of_a_term"  # stands in a term for its integral
SEED_FAMILY, SEED_INTEGRAL = "trianglebox", "3,2,1,3,2,2,-6"
DEFAULT_PRIME = 1009


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
    if max(map(abs, indices)) > LARGEST_INDEX:
        raise InputError(f"{where}: {show(indices)} has an index of more than {LARGEST_INDEX} in size")
    return indices


def read_lines(path: str | Path, what: str) -> list[str]:
    """Of a file. Raises InputError."""
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
        try:
            linear = is_factor(term, place, where)
        except InputError as error:
            raise InputError(str(error).replace(place, integral)) from None
        if not linear:
            raise InputError(f"{where}: {name} is not linear in {integral}; write each term as coefficient*integral")
        family = family_of(integral, families, where)
        terms.append((family, parse_integral(integral, family, where), term.strip().replace(place, "1")))
    if not terms:
        raise InputError(f"{where}: nothing after {name!r}:")
    return name, terms


def only_one(requests: Sequence[Request]) -> Request:
    """Raises InputError."""
    if len(requests) > 1:
        raise InputError(f"this is for one family at a time: choose by --family out of {', '.join(each.family.name for each in requests)}")
    return requests[0]


@dataclass(frozen=True)
class Asked:
    """families: 'A,B,…', None for all of a project; integral: one of them; integrals, masters: files, one a line. Raises InputError."""

    families: str | None = SEED_FAMILY
    integral: str | None = None
    integrals: str | None = None
    masters: str | None = None
    symmetries: bool = False

    def __post_init__(self) -> None:
        if self.integral is not None and self.integrals is not None:
            raise InputError("--integral and --integrals contradict each other: give one of them")

    @property
    def names_integrals(self) -> bool:
        return self.integral is not None or self.integrals is not None

    def given(self, families: Sequence[Family]) -> list[Request]:
        """What is wanted of these families. Raises InputError."""
        if self.integrals is not None:
            return read_targets(self.integrals, families, "--integrals")
        text = SEED_INTEGRAL if self.integral is None else self.integral
        family = family_of(text, families, "--integral")
        return [Request(family, (parse_integral(text, family, "--integral"),))]

    def complete(self, requests: Sequence[Request], families: Sequence[Family], preferred: Sequence[Request] = ()) -> list[Request]:
        """With the preferred masters; with symmetries, families of a list of which nothing is wanted lend their masters to later ones.

        preferred: masters where no file of them is given. Raises InputError.
        """
        if self.masters is not None:
            preferred = read_targets(self.masters, families, "--masters", combinations=False)
        if self.symmetries and self.families is not None:
            own = {request.family.name: request for request in requests}
            requests = [own.get(family.name, Request(family)) for family in families]
        masters = [[m for other in preferred if other.family is request.family for m in other.targets] for request in requests]
        pairs = ((request, tuple(dict.fromkeys(some))) for request, some in zip(requests, masters))
        return [replace(request, preferred=some, symmetries=self.symmetries) for request, some in pairs]


def read_requests(asked: Asked) -> list[Request]:
    """By family. Raises InputError."""
    families = load_families(asked.families)
    check_common(families, asked.families)
    if not asked.names_integrals and [family.name for family in families] != [SEED_FAMILY]:
        raise InputError(f"--family {asked.families} needs --integral or --integrals: there is no default integral for it")
    return asked.complete(asked.given(families), families)


def read_corners(asked: Asked) -> Request:
    """The integral that all lines of the family make, each once. Raises InputError."""
    family = load_one_family(asked.families)
    (request,) = asked.complete([Request(family, (corner((1 << family.lines) - 1, family.n),))], [family])
    return request


def parse_point(
    family: Family, targets: Sequence[Index], d: str | None = None, kinematics: str | None = None, prime: int | None = None
) -> Point:
    """Where to reduce these: 'NAME=VALUE,…', the family's defaults for what is not given. Raises InputError."""
    values = dict(family.point)
    given: set[str] = set()
    for item in kinematics.split(",") if kinematics is not None else ():
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals or name not in values or name in given:
            raise InputError(f"--kinematics {item!r}: expected NAME=VALUE once for each NAME out of {', '.join(values) or '(none)'}")
        values[name] = value
        given.add(name)
    prime, largest = check_prime(prime), max((max(r_and_s(target)) for target in targets), default=0)
    if prime <= largest:
        raise InputError(f"--prime {prime}: not above the largest index in play, {largest}; take a larger prime")
    number = parse_number(family.d if d is None else d, "d")
    point = Point(number, tuple((name, parse_number(value, name)) for name, value in values.items()), prime)
    point.residues()
    return point


def check_prime(prime: int | None) -> int:
    """The prime of a run modulo one. Raises InputError."""
    prime = DEFAULT_PRIME if prime is None else prime
    if not is_usable_prime(prime):
        raise InputError(f"--prime {prime}: expected a prime number from 3 to {MAX_PRIME}")
    return prime
