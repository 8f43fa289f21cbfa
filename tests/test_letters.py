"""Factors that are known beforehand."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import patch_rooms
from support_oracles import BIG_PRIMES, SEVERAL, Oracle, are_equal, functions_of

from ibp.families import BUILT_IN_FAMILIES
from ibp.functions import FACTORED_TERMS
from ibp.letters import MOST_LINEAR_LETTERS, kinematic_letters, linear_letters, partitions
from ibp.polynomials import frozen, primitive
from ibp.residues import probe_primes

LETTER_TEXTS = ["x + y", "x - y + 1", "4*x - y", "x**2 - 2*x*y - 2*x + y**2 - 2*y + 1", "x*y - 1"]


def letters_of(texts, names):
    """Polynomials as the program keeps them."""
    import sympy

    polys = [sympy.Poly(sympy.sympify(text), *sympy.symbols(names)).terms() for text in texts]
    return tuple(frozen({tuple(map(int, e)): int(c) for e, c in poly}) for poly in polys)


def found_with_letters(texts, names, letters, seed=1, said=None):
    """(functions, points asked for)."""
    oracle = Oracle(texts, names)
    return functions_of(oracle, names, len(texts), seed, said, letters), oracle.points


@st.composite
def products_of_letters(draw):
    """(multiplicities above, below, text) with a factor that is no letter on each side."""
    powers = draw(st.lists(st.integers(-2, 2), min_size=len(LETTER_TEXTS), max_size=len(LETTER_TEXTS)))
    more = draw(st.sampled_from(["1", "(d - 3)", "(x + 7)**2", "(d*x - 2*y)", "(x*y + 5*d)"]))
    less = draw(st.sampled_from(["1", "(d - 4)", "y**2", "(x**2 + 3)", "(d*y + x + 11)"]))
    factors = [f"({text})**{abs(power)}" for text, power in zip(LETTER_TEXTS, powers) if power > 0]
    others = [f"({text})**{abs(power)}" for text, power in zip(LETTER_TEXTS, powers) if power < 0]
    return powers, f"{'*'.join([more, *factors])}/({'*'.join([less, *others])})"


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(products_of_letters(), products_of_letters())
def test_letters_are_found_with_their_multiplicities(one, other):
    names, texts = ("d", "x", "y"), [one[1], other[1]]
    letters = letters_of(LETTER_TEXTS, names)
    with_letters, points = found_with_letters(texts, names, letters)
    without, more_points = found_with_letters(texts, names, ())
    for (powers, text), function, plain in zip((one, other), with_letters, without):
        assert [function.above.get(letter, 0) - function.below.get(letter, 0) for letter in letters] == powers
        assert are_equal(function.text(names), text, names)
        if max(map(len, (plain.numerator, *plain.below))) <= FACTORED_TERMS:  # else they are not factored when they are printed
            assert function.text(names) == plain.text(names)
    assert points <= more_points
    assert [function.text(names) for function in found_with_letters(texts, names, letters[::-1], seed=3)[0]] == [
        function.text(names) for function in with_letters
    ]


def test_letters_that_are_not_there_cost_nothing():
    names = ("d", "x", "y")
    letters = (*letters_of(LETTER_TEXTS, names), *linear_letters([[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    with_letters, points = found_with_letters(SEVERAL[1:], names, letters)
    without, as_many = found_with_letters(SEVERAL[1:], names, ())
    assert points == as_many and with_letters == without


@pytest.mark.parametrize("text", ["1/(x - y + 1 + {p}*x*y)", "(x - y + 1 + {p}*x)/(d - 3)", "(x - y + 1 + {p}*y**2)/(x + {p} + y)"])
def test_a_letter_modulo_one_prime_only_is_found_out(text, monkeypatch):
    """What is no factor, but one modulo the prime of the slices, does not get into a result."""
    special, original, names, told = BIG_PRIMES[2], probe_primes, ("d", "x", "y"), []
    patch_rooms(monkeypatch, "ibp", "probe_primes", lambda rng: itertools.chain([special], original(rng)))
    text = text.format(p=special)
    (function,), _ = found_with_letters([text], names, letters_of(LETTER_TEXTS, names), said=told)
    assert are_equal(function.text(names), text, names) and "unlucky" in "".join(told)


def test_a_denominator_that_was_found_is_a_letter_for_the_others():
    """Sharing 3*d*x - d*y - 10*x + 2*y + 7, six functions take as many points for denominators as one."""
    names, hidden = ("d", "x", "y"), "(3*d*x - d*y - 10*x + 2*y + 7)"
    texts = [
        f"1/{hidden}",
        *(f"1/({hidden}**{k}*(x + y)*(d - {k})*(x**2*y + 3*d))" for k in range(1, 4)),
        "1/(x**2*y + 3*d)",
        f"d/{hidden}**2",
    ]
    functions, points = found_with_letters(texts, names, letters_of(LETTER_TEXTS, names))
    assert all(are_equal(function.text(names), text, names) for function, text in zip(functions, texts))
    assert functions[3].below == dict(zip(letters_of([hidden, "x + y", "d - 3", "x**2*y + 3*d"], names), (3, 1, 1, 1)))
    alone = sum(found_with_letters([text], names, letters_of(LETTER_TEXTS, names))[1] for text in (texts[0], texts[4]))
    assert points < alone + 100


def test_letters_of_kinematics():
    def letters(name, variables, **numbers):
        family = BUILT_IN_FAMILIES[name]
        given = {x: Fraction(value) for x, value in numbers.items()}
        return kinematic_letters(family, variables, given)

    names = ("d", "m2", "m3")
    found = letters("trianglebox", names, m1=1)
    assert set(letters_of(["m2 - m3", "m2 - m3 + 1", "m2**2 - 2*m2*m3 - 2*m2 + m3**2 - 2*m3 + 1"], names)) <= set(found)
    assert letters_of(["m2**2 - 2*m2*m3 - 6*m2 + m3**2 - 6*m3 + 9"], names)[0] in letters("trianglebox", names, m1=3)
    assert letters("trianglebox", ("d", "m2"), m1=1, m3=2) == () and letters("doublebox", ("t",), d=3, s=1) == ()
    names = ("t", "m")
    assert set(letters_of(["t - m + 1", "t - m", "t - 4*m"], names)) <= set(letters("doublebox-1m", names, d=5, s=1))
    names = ("s23", "s34", "s45", "s51")
    (large,) = [x for x in letters("pentabox", names, s12=1, d=7) if len(x) == 15]
    import sympy

    s = dict(zip(names, sympy.symbols(names)))
    products = {(1, 2): 1, (2, 3): s["s23"], (3, 4): s["s34"], (1, 4): s["s23"] - s["s51"] - s["s45"]}
    products |= {(1, 3): s["s45"] - 1 - s["s23"], (2, 4): s["s51"] - s["s23"] - s["s34"]}
    matrix = sympy.Matrix(4, 4, lambda i, j: 0 if i == j else products[min(i, j) + 1, max(i, j) + 1])
    assert large in letters_of([str(sympy.expand(matrix.det()))], names)
    names = ("d", "s", "m")
    assert {*letters_of(["s - m", "s - 4*m", "s - 9*m"], names)} <= set(letters("sunrise", names))
    for family, variables, numbers in (("pentabox", ("s23", "s34", "s45", "s51"), {"s12": 1, "d": 7}), ("trianglebox", names, {})):
        if family == "trianglebox":
            variables, numbers = ("m1", "m2", "m3"), {"d": 5}
        some = letters(family, variables, **numbers)
        assert len(set(some)) == len(some) < MOST_LINEAR_LETTERS
        for letter in some:
            assert primitive(dict(letter)) == (1, dict(letter))
            assert (np.max([e for e, _ in letter], axis=0) > 0).sum() > 1


def test_groups_of_legs():
    counts = [sum(1 for _ in partitions(range(n))) for n in range(7)]
    assert counts == [1, 1, 2, 5, 15, 52, 203]  # Bell numbers
    for groups in partitions("abcd"):
        assert sorted(itertools.chain(*groups)) == list("abcd") and "d" in groups[-1]
