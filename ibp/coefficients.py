"""Coefficients of results as texts of rational functions: which names they have, and their expansion around a dimension.

`expand_result` gives the Laurent series in eps of all coefficients of a result, exactly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

from ibp.arithmetic import calculate, names_in
from ibp.errors import InputError
from ibp.families import Index
from ibp.sectors import show
from ibp.targets import show_target


@dataclass(frozen=True, eq=False)
class Quotient:
    """A quotient of polynomials in one variable: their coefficients from the constant upwards, elements of a ring."""

    above: tuple
    below: tuple

    @property
    def size(self) -> int:
        """About how many bits it has."""
        return 1000 * (len(self.above) + len(self.below))

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
