"""Numbers and arithmetic written as text, read without executing anything."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from ibp.errors import InputError


def parse_number(text: str, name: str) -> Fraction:
    """An integer, a fraction such as -7/2 or a decimal number, exactly. Raises InputError."""
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,300}(/0*[1-9][0-9]{0,300}|\.[0-9]{1,300})?\s*", text):
        raise InputError(f"{name} = {text!r}: expected an integer or a fraction such as -7/2")
    return Fraction(text)


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
