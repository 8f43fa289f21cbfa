"""Arithmetic as text: against Python's own parser, and what is none."""

import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from support_oracles import coefficient_texts

from ibp.arithmetic import calculate, evaluate, is_factor, split_terms
from ibp.errors import InputError


@settings(max_examples=300, deadline=None, derandomize=True)
@given(coefficient_texts())
def test_expressions_are_read_as_python_reads_them(text):
    names = {"d": Fraction(7, 3), "m": Fraction(-5)}
    python_text = re.sub(r"(?<![\w*])(\d+)(?!\w)", r"Fraction(\1)", re.sub(r"\*\*(-?\d+)", r"**_\1_", text))
    python_text = re.sub(r"_(-?)(?:Fraction\()?(\d+)\)?_", r"(\g<1>\2)", python_text)
    try:
        expected = eval(python_text, {"Fraction": Fraction} | names)
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            calculate(text, names, Fraction, "test")
        with pytest.raises(InputError, match="^test: "):
            evaluate(text, names, "test")
    else:
        assert calculate(text, names, Fraction, "test") == expected
        if "**-" not in text and not re.search(r"\*\*.*\*\*", text):
            assert evaluate(text, names, "test") == expected


@pytest.mark.parametrize("text", [
    "", " ", "(", ")", "()", "1 2", "d d", "d m", "d**d", "2**3**2", "*3", "1+", "1*/2", "1.5", "d(3)", "1//2", "$", "x", "d_",
    "9" * 4301,
    "9**99999999", "9**" + "9" * 5000,
], ids=lambda text: repr(text)[:20])  # fmt: skip
def test_what_is_no_coefficient(text):
    with pytest.raises(InputError, match="^test: "):
        calculate(text, {"d": Fraction(7), "m": Fraction(1)}, Fraction, "test")
    with pytest.raises(InputError, match="^test: "):
        evaluate(text, {"d": Fraction(7), "m": Fraction(1)}, "test")


@pytest.mark.parametrize(
    "text", ["d**17", "d**-1", "(d**2)**2", "(1+(d**2))**3", "d^2", "d**(1+1)", "1+" * 2500 + "1"], ids=lambda text: text[:9]
)
def test_what_a_person_does_not_write(text):
    """Where a formula may be a trap: powers that are high or nested, and texts without end."""
    with pytest.raises(InputError, match="^test: .*(powers up to 16|characters)"):
        evaluate(text, {"d": Fraction(7)}, "test")


@pytest.mark.parametrize(
    ("text", "value"),
    [("d**16", 7**16), ("d**2*d**2", 7**4), ("(d**2)*(d+1)**2", 49 * 64), (" ( d ) ** 2 ", 49), ("-(+d)**(2)", -49),
     ("(d**2+1)*((d))**3", 50 * 343), ("-" * 4000 + "d", 7), ("(" * 2000 + "d" + ")" * 2000, 7)],
    ids=lambda text: str(text)[:9],
)  # fmt: skip
def test_what_a_person_may_write(text, value):
    assert evaluate(text, {"d": Fraction(7)}, "test") == value


@pytest.mark.parametrize(
    ("text", "linear"),
    [("x", True), ("-x/3*(d-4)", True), ("2*(3*(x))/(d+1)**2", True), ("3/x", False), ("x*x", False), ("(x+1)*2", False), ("x**1", False),
     ("d", False), ("x/(1/x)", False), ("-(-x)", True)],
)  # fmt: skip
def test_factors_of_a_product(text, linear):
    assert is_factor(text, "x", "test") is linear
    with pytest.raises(InputError, match="^test: "):
        is_factor(f"{text})", "x", "test")


def test_terms_of_a_sum():
    assert split_terms("3*a -b*(c - d)+ -2*e/-f") == ["3*a ", "-b*(c - d)", "+ -2*e/-f"]
    assert split_terms(" ") == []
