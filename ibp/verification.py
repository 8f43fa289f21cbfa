"""Results read back, and verified by reducing them anew with certificates, at random points.

`read_result` trusts no byte of a file; `verify_result` trusts neither the solver nor the choice of masters that made the result.
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from executors.files import BuiltinsUnpickler
from ibp.arithmetic import calculate, names_in, parse_number
from ibp.certificates import Verifier, checked_prime
from ibp.coefficients import expressions_of, is_number, symbols_of
from ibp.differential import equations_for
from ibp.elimination import difference, substitute, subtract
from ibp.errors import UNREADABLE, CertificateError, InputError, in_short
from ibp.families import LARGEST_INDEX, Expression, Family, Index
from ibp.identities import Column, Operator, Point, generic_point, show_point
from ibp.masters import MasterRelation, solve_labelled
from ibp.problems import Outcome, Problem
from ibp.residues import MAX_PRIME, is_prime
from ibp.sector_tasks import Multipliers
from ibp.sectors import sector_of, show
from ibp.targets import show_target, show_targets

RESULT_CHECKS = 3  # primes and points at which an exact result is verified
POINT_ATTEMPTS = 20  # to find a point where nothing vanishes by accident


def verify_result(record: dict[str, Any], family: Family, reduce: Callable[[Problem], Outcome]) -> str:
    """What was found right, in words: a result at random points, one modulo a prime where it was made. Raises CertificateError.

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
    by = f"{identities:,} identities" + f" and {len(relations or ()):,} relations by symmetries" * ("symmetries" in record)
    return f"{_what_was_checked(record, points)}, by {by}"


def _what_was_checked(record: dict[str, Any], points: Sequence[Point]) -> str:
    primes = ", ".join(str(point.prime) for point in points)
    where = f"at {len(points)} random primes ({primes})" if record["prime"] is None else f"at {show_point(points[0])}"
    symbols = ", ".join(sorted(symbols_of(record)))
    values = f" and values of {symbols}" if symbols else ""
    own = record.get("differential_equation")
    equations = own and f"the equations in {', '.join(own['matrices'])} of {len(own['masters'])} masters"
    what = equations or show_targets(record["reductions"])
    cuts = " | ".join(",".join(map(str, lines)) for lines in record.get("cuts", ()))
    where += f" on the cut{'s' * ('|' in cuts)} {cuts}" if cuts else ""
    return f"{what} of {record['family']} {where}{values}"


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
            subtract(rest, outcome.reductions[integral], p - value, p)
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
    for integral in used.union(integral for terms in record.get("combinations", {}).values() for integral, _ in terms):
        if len(integral) != family.n or max(map(abs, integral)) > LARGEST_INDEX or max(integral[family.lines :], default=0) > 0:
            raise CertificateError(f"{show(integral)} is no integral of {family.name}")
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
    except (*UNREADABLE, InputError) as error:
        raise InputError(f"{path}: not a result of this program ({in_short(error)})") from None
    if labelled:
        raise InputError(f"{path}: is of several families, or of a linear system; this takes results of one family")
    return record


def _check_record(record: Any) -> None:
    """Raises InputError, or one of UNREADABLE."""
    if type(record) is not dict or record.get("format") != 1 or not isinstance(record["family"], str):
        raise ValueError("another format")
    if record["prime"] is not None:
        checked_prime(record["prime"])
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
