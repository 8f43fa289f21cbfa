"""Targets: integrals and combinations as text, and requests out of a person's words."""

import json
import re
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import BUBBLE, P31, TRIANGLEBOX, check_refused, combine, exit_code, reduced, residue

from ibp.errors import InputError
from ibp.families import BUILT_IN_FAMILIES
from ibp.targets import Asked, Combination, parse_combination, parse_point, read_corners, read_requests


@pytest.mark.parametrize("batch", [[], ["--batch", "auto"], ["--batch", "7", "--local", "2"]], ids=["sector", "auto", "fixed"])
def test_combinations_are_sums_of_reductions(place, batch):
    """As one column, by sectors and by one-step tasks; with coefficients in d and the invariants; terms of a zero sector and twice."""
    (place / "wanted").write_text(
        "1,1,1,1,1,1,-1\n"
        "amp: 3*I[1,1,1,1,1,1,-1] - 2/5*trianglebox[1,2,1,1,1,0,-1]*(d-4)^2/m1 + I[1,1,0,0,0,0,0] -I[1,1,1,1,1,1,-1]*-m3/(m2 + 1)\n"
        "nothing: 2*I[1,1,1,1,1,1,-1] - I[1,1,1,1,1,1,-1] - (1/2+1/2)*I[1,1,1,1,1,1,-1]   # zero\n"
        "A.b-c: -(I[0,2,1,1,0,0,0])/3,\n"
    )
    words = ["--integrals", "wanted", "--paper-masters-only", "--prime", str(P31)]
    found = reduced(*words, *batch)
    (place / "apart").write_text("1,1,1,1,1,1,-1\n1,2,1,1,1,0,-1\n0,2,1,1,0,0,0\n")
    apart = reduced("--integrals", "apart", *words[2:])["reductions"]
    first, second, third = apart.values()
    amp = combine((3 + residue(Fraction(47, 32)), first), (residue(Fraction(-2, 5) * 37**2), second))
    assert found["reductions"] == {
        (1, 1, 1, 1, 1, 1, -1): first, "amp": amp, "nothing": {}, "A.b-c": combine((residue(Fraction(-1, 3)), third)),
    }  # fmt: skip
    assert list(found["reductions"]) == [(1, 1, 1, 1, 1, 1, -1), "amp", "nothing", "A.b-c"]


def test_combination_alone_and_in_other_masters(place, capsys):
    """Its name stands for the integral; preferred masters with dots and numerators apply to it."""
    (place / "wanted").write_text("amp: I[1,1,1,-2,-1] - 5*I[2,1,1,0,0]\n")
    (place / "masters").write_text("2,1,1,0,0\n1,1,1,-1,0\n")
    words = ["--family", "sunrise", "--prime", str(P31)]
    plain = reduced(*words, "--integrals", "wanted")
    assert plain["original_integral"] == "amp" and plain["final_expr"] == plain["reductions"]["amp"]
    found = reduced(*words, "--integrals", "wanted", "--masters", "masters")
    preferred = {(2, 1, 1, 0, 0), (1, 1, 1, -1, 0)}
    assert preferred <= set(found["masters"]) and set(found["final_expr"]) & preferred
    back = reduced(*words, "--integrals", "masters")["reductions"]
    again = combine(*((value, back.get(term, {term: 1})) for term, value in found["final_expr"].items()))
    assert again == plain["final_expr"]
    assert exit_code([*words, "--integrals", "wanted"]) == 0
    assert "amp = sum of" in capsys.readouterr().out
    assert exit_code([*words, "--integrals", "wanted", "--dry-run"]) == 0
    assert "first amp" in capsys.readouterr().out


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.fractions(max_denominator=50), st.integers(-3, 4), st.integers(-3, 4)), min_size=1, max_size=5), st.randoms())
def test_any_combination_of_bubbles(reduce_at, terms, draw):
    """However it is written, it is the sum."""
    family = BUILT_IN_FAMILIES["bubble"]
    parts = []
    for value, a, b in terms:
        sign = "-" if value < 0 else "+"
        size, integral = abs(value), f"{draw.choice(['I', 'bubble'])}[{a}, {b}]"
        forms = [f"{size}*{integral}", f"{integral}*{size}", f"({size})*({integral})", f"{size.numerator}*{integral}/{size.denominator}"]
        parts.append(f" {sign} {draw.choice(forms)}")
    name, read = parse_combination("x:" + "".join(parts), [family], "here")
    combination = Combination(name, tuple((integral, factor) for _, integral, factor in read), "here")
    targets = [(a, b) for _, a, b in terms]
    apart = reduce_at("bubble", targets, shelves=[])
    together = reduce_at("bubble", [], shelves=[], combinations=(combination,))
    assert together.reductions == {"x": combine(*((residue(value), apart.reductions[a, b]) for value, a, b in terms))}


BAD_COMBINATIONS = {
    "amp:": "nothing after",
    "3x: I[1,1]": "'3x'",
    ": I[1,1]": "not a name",
    "amp: 3": "coefficient times one integral",
    "amp: I[1,1] + 3": "coefficient times one integral",
    "amp: box[1,1]": "coefficient times one integral",
    "amp: 3/I[1,1]": "not linear",
    "amp: I[1,1]**2": "not linear",
    "amp: (I[1,1]+1)*2": "not linear",
    "amp: sin(I[1,1])": "arithmetic",
    "amp: 2*I[1,1": "coefficient times one integral",
    "amp: 2*(I[1,1]": "arithmetic",
    "amp: I[1,1,1]": "3 indices",
    "amp: I[1,x]": "integer",
    "amp: I[1,1] - u*I[2,0]": "undefined symbol 'u'",
    "amp: I[1,1]/(s-7)": "division by zero",
    "amp: I[1,1]/1009": "division by zero modulo 1009",
    "amp: 2**99*I[1,1]": "powers",
    "amp: I[1,1] I[2,0]": "coefficient times one integral",
    "amp: 2 I[1,1]": "arithmetic",
    "amp: integral_of_a_term0_*I[1,1]": "coefficient times one integral",
    "amp: I[1,1]\namp: I[2,1]": "line 2",
}


@pytest.mark.parametrize("text", BAD_COMBINATIONS)
def test_bad_combination_is_refused_in_one_line(text, place, capsys):
    (place / "wanted").write_text(text + "\n")
    check_refused(["--family=bubble", "--integrals=wanted"], place, capsys, ["wanted", "line", BAD_COMBINATIONS[text]])


def test_combinations_are_no_masters(place, capsys):
    (place / "masters").write_text("x: I[2,1]\n")
    check_refused([*BUBBLE, "--masters=masters"], place, capsys, ["--masters", "line 1"])


def test_dependent_preferred_masters_are_told_apart(reduce_at):
    """The error names the relation, and the relation is true."""
    preferred = ((1, 1), (2, 0), (0, 1), (3, 2))
    with pytest.raises(InputError) as info:
        reduce_at("bubble", [(2, 2)], preferred_masters=preferred)
    text = str(info.value)
    left, right = re.fullmatch(
        r"preferred master I(\S+) depends linearly on the ones before it: it is (.*) modulo \d+; leave one out", text
    ).groups()
    relation = {tuple(json.loads(index)): int(value) for value, index in re.findall(r"(\d+)\*I(\[[-\d,]+\])", right)}
    full = reduce_at("bubble", list(preferred)).reductions
    assert set(relation) == {(1, 1), (2, 0), (0, 1)} and json.loads(left) == [3, 2]
    assert full[3, 2] == combine(*((value, full[integral]) for integral, value in relation.items()))
    with pytest.raises(InputError, match=r"I\[-1,0\] depends linearly .* zero modulo 2147483647"):
        reduce_at("bubble", [(2, 2)], preferred_masters=((1, 1), (-1, 0)))


def test_what_is_asked_for():
    """Without a word the published integral; with symmetries a family of which nothing is wanted takes part, too."""
    (request,) = read_requests(Asked())
    assert (request.family, request.targets) == (TRIANGLEBOX, ((3, 2, 1, 3, 2, 2, -6),))
    words = {"families": "doublebox,nonplanar-doublebox", "integral": "doublebox[1,1,1,1,1,1,1,-1,0]"}
    assert [request.family.name for request in read_requests(Asked(**words))] == ["doublebox"]
    assert [len(request.targets) for request in read_requests(Asked(**words, symmetries=True))] == [1, 0]
    assert read_corners(Asked("sunrise")).targets == ((1, 1, 1, 0, 0),)


@pytest.mark.parametrize(
    "words", [{"families": "box"}, {"families": "box,bubble", "integral": "box[1,1,1,1]"}, {"integral": "1", "integrals": "f"}]
)
def test_what_cannot_be_asked_for(words):
    with pytest.raises(InputError):
        read_requests(Asked(**words))


def test_point_of_words():
    box = BUILT_IN_FAMILIES["box"]
    assert parse_point(box, []).residues() == (41, 3, 7) and parse_point(box, []).prime == 1009
    point = parse_point(box, [(5, 1, 1, 1)], "7/2", " t = -1/3", 101)
    assert (point.d, dict(point.invariants), point.prime) == (Fraction(7, 2), {"s": 3, "t": Fraction(-1, 3)}, 101)
