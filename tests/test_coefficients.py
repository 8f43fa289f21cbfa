"""Expansions of coefficients, against sympy and by hand."""

import os
import pickle
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import check_refused, exit_code
from support_oracles import EXACT, MODULAR, SUNRISE_CORNER, SYMBOLIC, massless_banana_text, record_of

from ibp.coefficients import expand_coefficient, parse_expansion, series_text
from ibp.exports import read_export
from ibp.verification import read_result


def expansion(text, order=3, others=(), epsilon="4-2*eps"):
    return expand_coefficient(text, parse_expansion(epsilon, order, others), others, "test")


@pytest.mark.parametrize("text", [
    "d*(d - 1)/((d - 4)**2*(3*d - 10)**2) + 1/d", "(d - 4)**5", "(d - 4)**2/(d - 4)**5", "3/4", "1/(d - 4)", "-(d - 3)", "0", "d - d",
    "(2*d - 8)/(d**2 - 16)", massless_banana_text((3, 3, 3), "1"), "1/(1/(d - 4) - 1/(d - 6))",
])  # fmt: skip
@pytest.mark.parametrize("epsilon", ["4-2*eps", "4 - 2*ep", "6 - 2*eps", "-x/3 + 7/2", "2*(2 - eps)"])
def test_expansion_agrees_with_sympy(text, epsilon):
    import sympy

    (name,) = re.findall(r"[a-z]+", epsilon)
    symbol, order = sympy.Symbol(name), 3
    value = sympy.cancel(sympy.sympify(text).subs("d", sympy.sympify(epsilon)))
    series = sympy.series(value, symbol, 0, order + 1).removeO() if value.free_symbols else value
    expected = {k: Fraction(str(series.expand().coeff(symbol, k))) for k in range(-9, order + 1)}
    assert expansion(text, order, epsilon=epsilon) == {k: c for k, c in expected.items() if c}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(-9, 9), min_size=1, max_size=12),
    st.lists(st.integers(-9, 9), min_size=1, max_size=12).filter(any),
    st.integers(-4, 6),
    st.integers(-3, 3),
)
def test_expansion_times_denominator_is_numerator(above, below, order, shift):
    """In powers of eps = 2 - d/2, exactly through the order; the lowest power is that of the quotient."""
    texts = [" + ".join(f"{c}*(2 - d/2)**{k}" for k, c in enumerate(part)) for part in (above, below)]
    series = expansion(f"({texts[0]})/(({texts[1]})*(2 - d/2)**{shift})", order)
    first = next(k for k, c in enumerate(below) if c)
    product = {}
    for k, c in series.items():
        for j, b in enumerate(below):
            product[k + j + shift] = product.get(k + j + shift, 0) + c * b
    complete = order + first + shift
    assert {k: c for k, c in product.items() if c and k <= complete} == {k: c for k, c in enumerate(above) if c and k <= complete}
    assert all(type(c) is Fraction and k <= order for k, c in series.items())


def test_expansion_with_other_symbols_agrees_with_sympy():
    import sympy

    text, others = "(m2*d - m3)/((d - 4)*(m2 + d)) + m3/m2", ("m2", "m3")
    found = expansion(text, 2, others)
    assert set(found) == {-1, 0, 1, 2} and all(type(value) is str for value in found.values())
    series = sympy.series(sympy.sympify(text).subs("d", sympy.sympify("4-2*eps")), sympy.Symbol("eps"), 0, 3).removeO()
    assert sympy.simplify(series - sympy.sympify(series_text(found, "eps"))) == 0


@pytest.mark.parametrize("text", ["4", "d-1", "m1-eps", "4-2*eps**2", "4/eps", "4+x*y", "4+0*eps", "4-2*", "eps/(1-1)", ""])
def test_what_is_no_dimension(text, place, capsys):
    Path("r.pkl").write_bytes(pickle.dumps(SYMBOLIC))
    check_refused(["convert", "r.pkl", "--epsilon", text], place, capsys, ["--epsilon"])


def test_expansion_from_the_command_line(place, capsys):
    """The pickle, the summary and every export have it; by hand: -(d - 3)/m1/(d - 4)^2 = (1/4 eps^-2 - 1/2 eps^-1)·(-1/m1)."""
    master = (1, 1, 0, 1, 1, 0, 0)
    record = record_of({(2, 1, 0, 1, 1, 0, 0): {master: "-(d - 3)/(d - 4)**2", SUNRISE_CORNER: "(d - 4)**9"}}, d="d")
    Path("r.pkl").write_bytes(pickle.dumps(record))
    exports = ["--export", "json,form", "--export", "kira"]
    assert exit_code(["convert", "r.pkl", "--epsilon", "4-2*eps", "--order", "2", "--output", "deep/e.pkl", *exports]) == 0
    printed, said = capsys.readouterr()
    assert said == "" and "expanded with d = 4-2*eps through eps**2: 2 coefficients\n" in printed
    assert "I[1,1,0,1,1,0,0]  -1/4*eps**-2 + 1/2*eps**-1\n" in printed
    result = read_result("deep/e.pkl")
    series = {master: {-2: Fraction(-1, 4), -1: Fraction(1, 2)}, SUNRISE_CORNER: {}}
    assert result["epsilon"] == {"d": "4-2*eps", "symbol": "eps", "order": 2, "reductions": {(2, 1, 0, 1, 1, 0, 0): series}}
    assert {key: value for key, value in result.items() if key != "epsilon"} == record
    names = ["e.inc", "e.json", "e.pkl", "e_eps.inc", "e_eps.json", "kira_e.m", "kira_e_eps.m"]
    assert sorted(os.listdir("deep")) == names
    for name in ("e_eps.inc", "e_eps.json", "kira_e_eps.m"):
        back = read_export(f"deep/{name}")
        assert back["truncated"] == {"d": "4-2*eps", "symbol": "eps", "order": 2}
        assert back["reductions"] == {(2, 1, 0, 1, 1, 0, 0): {master: "-1/4*eps**-2 + 1/2*eps**-1"}}
    assert Path("deep/e_eps.inc").read_text().endswith("\n + (-1/4*eps^-2 + 1/2*eps^-1)*trianglebox(1,1,0,1,1,0,0);\n")


@pytest.mark.parametrize("record", [MODULAR, EXACT])
def test_what_is_no_function_of_d_is_not_expanded(record, place, capsys):
    Path("r.pkl").write_bytes(pickle.dumps(record))
    check_refused(["convert", "r.pkl", "--epsilon", "4-2*eps"], place, capsys, ["--epsilon", "not functions of d"])
