"""Points, integrals and expressions as JSON holds them in certificates and paths, checked when they are read.

What is not what it should be raises ValueError, or another of the errors that reading a damaged file raises (UNREADABLE).
"""

from __future__ import annotations

from typing import Any

from ibp.arithmetic import parse_number
from ibp.families import Expression, Family, Index
from ibp.identities import Point
from ibp.residues import is_usable_prime
from ibp.sectors import MAX_INDEX


def pack_point(point: Point) -> dict[str, Any]:
    return {"prime": point.prime, "d": str(point.d), "kinematics": {name: str(value) for name, value in point.invariants}}


def unpack_point(header: dict[str, Any], family: Family, where: str = "") -> Point:
    """Raises InputError, or one of UNREADABLE."""
    values = tuple((name, parse_number(header["kinematics"][name], where + name)) for name, _ in family.point)
    return Point(parse_number(header["d"], f"{where}d"), values, checked_prime(header["prime"]))


def checked_prime(value: Any) -> int:
    if not is_usable_prime(value):
        raise ValueError(f"{value!r} is no prime number in use")
    return value


def checked_indices(value: Any, family: Family) -> Index:
    if len(value) != family.n or any(type(a) is not int or abs(a) > MAX_INDEX for a in value):
        raise ValueError(f"{value} is no integral of the family")
    return tuple(value)


def checked_expression(terms: Any, family: Family, p: int) -> Expression:
    expression = {checked_indices(term, family): value for term, value in terms}
    if len(expression) != len(terms) or any(type(value) is not int or not 0 < value < p for value in expression.values()):
        raise ValueError("a coefficient that is none modulo the prime, or twice")
    return expression
