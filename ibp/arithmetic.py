"""Numbers and arithmetic written as text, read token by token without executing anything.

`calculate` is the one parser, in whatever ring the values live in; `evaluate` is for what a person wrote, with limits on length and powers.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ibp.errors import InputError

LONGEST_EXPRESSION, LARGEST_POWER = 5000, 16  # characters and powers of what a person writes
LONGEST_NUMBER = 4300  # digits of a number: as many as Python reads
LARGEST_NUMBER = 10_000_000  # bits that a power in a coefficient of a result may have
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[0-9]+)|(?P<name>[^\W\d]\w*)|(?:\*\*|\^)\s*(?P<power>[+-]?[0-9]+|\(\s*[+-]?[0-9]+\s*\))|(?P<sign>[-+*/()]))\s*"
)
_PRECEDENCE = {"(": 0, "+": 1, "-": 1, "*": 2, "/": 2, "negative": 3}
_ENDS = frozenset(("number", "name", "power", ")"))  # tokens that a value may end with
_SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def parse_number(text: str, name: str) -> Fraction:
    """An integer, a fraction such as -7/2 or a decimal number, exactly. Raises InputError."""
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,300}(/0*[1-9][0-9]{0,300}|\.[0-9]{1,300})?\s*", text):
        raise InputError(f"{name} = {text!r}: expected an integer or a fraction such as -7/2")
    return Fraction(text)


def evaluate(text: str, names: dict[str, Any], where: str) -> Any:
    """Value of an expression (+ - * / ** and parentheses) that a person wrote; names["1"] is the one of their ring. Raises InputError."""
    if len(text) > LONGEST_EXPRESSION:
        raise InputError(f"{where}: an expression of {len(text)} characters; at most {LONGEST_EXPRESSION} are taken")
    one = names.get("1")
    try:
        return calculate(text, names, Fraction if one is None else lambda k: one * k, where, by_hand=True)
    except ZeroDivisionError:
        raise InputError(f"{where}: division by zero in {text!r}") from None


def calculate(text: str, names: dict[str, Any], number: Callable[[int], Any], where: str, by_hand: bool = False) -> Any:
    """Value of an expression such as '(3*d**2 - 1)/(d - 4)', in the ring of the names' values and of number(k).

    Texts may have any length, and powers any size that LARGEST_NUMBER allows; by_hand: powers are those that `evaluate` takes. Raises
    InputError; ZeroDivisionError where the ring says so.
    """
    values: list[Any] = []
    waiting: list[str] = []

    def settle(precedence: int) -> None:
        """Carry out what waits and binds at least so strongly."""
        while waiting and _PRECEDENCE[waiting[-1]] >= precedence:
            sign, right = waiting.pop(), values.pop()
            values.append(-right if sign == "negative" else _SIGNS[sign](values.pop(), right))

    for kind, token in _tokens(text, where, by_hand):
        if kind == "number":
            values.append(number(int(token)))
        elif kind == "name":
            if token not in names:
                known = ", ".join(name for name in names if name != "1")
                raise InputError(f"{where}: undefined symbol {token!r} in {_shown(text, 0, by_hand)!r}; known: {known or 'none'}")
            values.append(names[token])
        elif kind == "power":
            power = int(token)
            if not by_hand and abs(power) * _size(values[-1]) > LARGEST_NUMBER:
                raise InputError(f"{where}: power {power} is too large")
            values[-1] = values[-1] ** power
        elif kind == ")":
            settle(1)
            waiting.pop()
        else:
            if kind in "+-*/":
                settle(_PRECEDENCE[kind])
            waiting.append(kind)
    settle(1)
    return values[0]


def _tokens(text: str, where: str, by_hand: bool) -> list[tuple[str, str]]:
    """Kind and text of each token, in an order that makes sense; a sign before a value is 'negative' or left out. Raises InputError."""
    tokens: list[tuple[str, str]] = []
    powers = [False]  # for the text and each open parenthesis: whether there is a power in it
    closed = False  # the same for the last parenthesis that was closed
    position, before = 0, "("
    while position < len(text):
        match = _TOKEN.match(text, position)
        kind = match and (match["sign"] or match.lastgroup)
        after_value = before in _ENDS
        if kind is None or (kind in ("number", "name", "(") if after_value else kind in ("power", "*", "/", ")")):
            raise _senseless(text, position, where, by_hand)
        token = match[match.lastgroup]
        if kind == "number" and len(token) > LONGEST_NUMBER:
            raise InputError(f"{where}: a number of {len(token)} digits; at most {LONGEST_NUMBER} are taken")
        if kind == "power":
            token = token.strip("() ")
            if before == "power" or len(token) > 20:
                raise InputError(f"{where}: power {token[:20]} of a power, or too large")
            if by_hand and not (0 <= int(token) <= LARGEST_POWER and "^" not in match[0] and not (closed and before == ")")):
                raise _senseless(text, position, where, by_hand)
            powers[-1] = True
        elif kind == "(":
            powers.append(False)
        elif kind == ")":
            closed = powers.pop()
            if not powers:
                raise _senseless(text, position, where, by_hand)
            powers[-1] |= closed
        if after_value or kind != "+":
            tokens.append(("negative" if kind == "-" and not after_value else kind, token))
        position, before = match.end(), kind
    if before not in _ENDS or len(powers) > 1:
        raise _senseless(text, 0, where, by_hand)
    return tokens


def _shown(text: str, position: int, by_hand: bool) -> str:
    return text if by_hand else text[position : position + 30]


def _senseless(text: str, position: int, where: str, by_hand: bool) -> InputError:
    powers = f" (powers up to {LARGEST_POWER}, not nested)" if by_hand else ""
    return InputError(f"{where}: {_shown(text, position, by_hand)!r} is not arithmetic of numbers and known symbols{powers}")


def _size(value: Any) -> int:
    """About how many bits a value has, so that no power grows beyond all bounds: of a number, or of what has an attribute `size`."""
    if isinstance(value, (int, Fraction)):
        return value.numerator.bit_length() + value.denominator.bit_length()
    return getattr(value, "size", 1)


def names_in(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d]\w*", text))


def split_terms(text: str) -> list[str]:
    """The terms of a sum, signs included: it is cut before each + or - that is in no parenthesis and follows no operator."""
    starts, depth, before = [0], 0, "("
    for place, character in enumerate(text):
        if character in "+-" and depth == 0 and before not in "(*/+-":
            starts.append(place)
        depth += (character == "(") - (character == ")")
        before = before if character.isspace() else character
    return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)]) if text.strip()]


@dataclass(frozen=True)
class _Degree:
    """Of part of a term in a name: 0 without it, 1 in a product with it, infinite in all else."""

    value: float

    def __add__(self, other: _Degree) -> _Degree:
        return _Degree(0 if self.value == other.value == 0 else math.inf)

    __sub__ = __add__

    def __mul__(self, other: _Degree) -> _Degree:
        return _Degree(self.value + other.value)

    def __truediv__(self, other: _Degree) -> _Degree:
        return _Degree(math.inf if other.value else self.value)

    def __neg__(self) -> _Degree:
        return self

    def __pow__(self, power: int) -> _Degree:
        return _Degree(math.inf if self.value else 0)


def is_factor(term: str, name: str, where: str) -> bool:
    """Whether a term is a product with this name as one factor, not in a denominator. Raises InputError where it is no arithmetic."""
    without = _Degree(0)
    names = dict.fromkeys(names_in(term), without) | {name: _Degree(1)}
    return calculate(term.strip(), names, lambda _: without, where, by_hand=True).value == 1
