"""Rational functions from values."""

import itertools
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import patch_rooms
from support_oracles import BIG_PRIMES, SEVERAL, Oracle, are_equal, functions_of

from ibp.errors import ReductionError
from ibp.residues import probe_primes


@st.composite
def rational_functions(draw):
    """(variables, text) of functions with the kinds of factors that coefficients have."""
    names = draw(st.sampled_from([("d",), ("d", "x"), ("d", "x", "y"), ("x", "y")]))
    number = st.integers(-40, 40).filter(bool)
    monomial = st.builds(
        lambda c, es: "*".join([str(c), *(f"{n}**{e}" for n, e in zip(names, es))]), number, st.tuples(*[st.integers(0, 2)] * len(names))
    )
    poly = st.lists(monomial, min_size=1, max_size=4).map(lambda terms: f"({'+'.join(terms)}+{draw(number)})")
    linear = st.builds(
        lambda n, a, b, k: f"({a}*{n}+{b})**{k}", st.sampled_from(names), st.integers(1, 9), st.integers(-30, 30), st.integers(1, 3)
    )
    above = draw(st.lists(st.one_of(poly, linear), max_size=3))
    below = draw(st.lists(st.one_of(linear, linear, poly), max_size=3))
    return names, "*".join([str(draw(number)), *above]) + "".join(f"/{factor}" for factor in [str(draw(st.integers(1, 10**12))), *below])


def is_function(text):
    """Whether it is neither zero nor something over zero."""
    import sympy

    above, below = map(sympy.expand, sympy.fraction(sympy.together(sympy.sympify(text))))
    return 0 not in (above, below) and above.is_finite is not False


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(rational_functions(), rational_functions())
def test_functions_are_found_from_values(one, other):
    import sympy

    names, first = one
    texts = list(filter(is_function, [first, other[1]] if set(other[0]) <= set(names) else [first]))
    oracle = Oracle(texts, names)
    found = [function.text(names) for function in functions_of(oracle, names, len(texts))]
    assert all(are_equal(text, other, names) for text, other in zip(found, texts)), (found, texts)
    again = [function.text(names) for function in functions_of(oracle, names, len(texts), seed=2)]
    assert found == again  # whatever the random numbers
    numerators_and_denominators = [sympy.fraction(sympy.sympify(text)) for text in found]
    assert all(sympy.gcd(*map(sympy.expand, pair)).is_number for pair in numerators_and_denominators)


def test_canonical_text():
    found = functions_of(Oracle(SEVERAL, ("d", "x", "y")), ("d", "x", "y"), 4)
    assert [function.text(("d", "x", "y")) for function in found] == [
        "(3*d - 8)*(x + 3*y - 1)/(y**2*(d - 4)*(x**2 - 2*x*y - 2*x + y**2 - 2*y + 1))",
        "(d*x + 7*y)/(d*y - x - 4)",
        "x**4*(d - 3)/3",
        "1/(x**2 + 2)",
    ]
    assert found[0].text(("d", "x", "y"), ("m", 2)) == (
        "-m**5*(3*d - 8)*(m - x - 3*y)/(y**2*(d - 4)*(m**2 - 2*m*x - 2*m*y + x**2 - 2*x*y + y**2))"
    )
    assert found[2].text(("d", "x", "y"), ("m", 1)) == "x**4*(d - 3)/(3*m**3)"


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_a_prime_that_lies_is_found_out(first, monkeypatch):
    patch_rooms(monkeypatch, "ibp", "MOST_SLICE_POINTS", 60)
    draw = random.Random(3)
    oracle = Oracle(SEVERAL, ("d", "x", "y"), lambda number, row: [draw.randrange(2**30) for _ in row] if number == first else row)
    told = []
    found = functions_of(oracle, ("d", "x", "y"), 4, said=told)
    assert all(are_equal(function.text(("d", "x", "y")), text, ("d", "x", "y")) for function, text in zip(found, SEVERAL))


def test_a_prime_at_which_degrees_are_lower_is_found_out(monkeypatch):
    special, original = BIG_PRIMES[2], probe_primes
    patch_rooms(monkeypatch, "ibp", "probe_primes", lambda rng: itertools.chain([special], original(rng)))
    text = f"({special}*d**3 + d + 5)/((d - 2)*({special}*d**2 + 3))"
    told = []
    (function,) = functions_of(Oracle([text], ("d",)), ("d",), 1, said=told)
    assert are_equal(function.text(("d",)), text, ("d",)) and "unlucky" in "".join(told)


def test_values_that_no_function_has_are_an_error(monkeypatch):
    patch_rooms(monkeypatch, "ibp", "MOST_SLICE_POINTS", 40)
    draw = random.Random(3)
    with pytest.raises(ReductionError, match="no function fits"):
        functions_of(Oracle(["1/d"], ("d",), lambda number, row: [draw.randrange(2**30)]), ("d",), 1)


def test_points_without_values_are_replaced():
    oracle = Oracle(SEVERAL[:1], ("d", "x", "y"), bad=(2, 5, 40, 45))
    (function,) = functions_of(oracle, ("d", "x", "y"), 1)
    assert are_equal(function.text(("d", "x", "y")), SEVERAL[0], ("d", "x", "y"))


def test_points_of_further_primes():
    """The first prime counts, and two points see whether the numbers are right: no prime is spent on that."""
    names, big = ("d", "x"), 10**30 + 57  # a ratio of two such numbers takes 7 primes of 31 bits
    texts = [f"({big}*d**9*x**9 + d - x)/({big + 2}*(d - 1))"]
    oracle, told = Oracle(texts, names), []
    (function,) = functions_of(oracle, names, 1, said=told)
    assert are_equal(function.text(names), texts[0], names)
    assert len(oracle.primes) < 20 and oracle.points < 300
