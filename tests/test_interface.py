"""What scripts import: the examples of the docstrings, and the same answers as on the command line."""

import doctest
import json
from fractions import Fraction

import pytest
from support import exit_code

import ibp_reduce
from ibp import exports, families, interface
from ibp.families import BUILT_IN_FAMILIES, family_definition, load_family
from ibp.identities import derive_identities, evaluate_identities, generic_point
from ibp.interface import CertificateError, InputError, differentiate, identities, read_result, reduce, solve, verify

SMALL = (1, 1, 1, 1, 1, 1, -3)
SAME = ("reductions", "masters", "unreduced", "prime", "d", "kinematics", "family")


@pytest.mark.parametrize("room", [interface, exports, families], ids=lambda room: room.__name__)
def test_examples_of_the_docstrings(room):
    failed, tried = doctest.testmod(room, optionflags=doctest.ELLIPSIS)
    assert failed == 0 and tried > 0


def test_every_public_name_has_an_example():
    names = [name for name in ibp_reduce.__all__ if not name.endswith("Error")]
    assert [name for name in names if ">>>" not in getattr(ibp_reduce, name).__doc__] == []


@pytest.mark.parametrize(
    ("taken", "words"),
    [
        ({"targets": SMALL}, ["--integral=1,1,1,1,1,1,-3"]),
        (
            {"targets": SMALL, "paper_masters_only": True, "symbols": ["d"]},
            ["--integral=1,1,1,1,1,1,-3", "--paper-masters-only", "--symbols=d"],
        ),
        ({"targets": (3, 2), "family": "bubble", "exact": True}, ["--family=bubble", "--integral=3,2", "--exact"]),
        (
            {"targets": (2, 1, 1, 1), "family": "box", "kinematics": {"s": "7/2"}, "d": 5, "prime": 2147483647, "cut": (1, 3), "local": 2},
            ["--family=box", "--integral=2,1,1,1", "--kinematics=s=7/2", "--d=5", "--prime=2147483647", "--cut=1,3"],
        ),
        ({"targets": (2, 2), "family": "bubble", "masters": [(2, 1)]}, ["--family=bubble", "--integral=2,2", "--masters=m.txt"]),
        ({"targets": (1, 2, 1, 1), "family": "box", "symmetries": True}, ["--family=box", "--integral=1,2,1,1", "--symmetries"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_call_gives_what_the_command_gives(taken, words, place):
    (place / "m.txt").write_text("2,1\n")
    assert exit_code([*words, "--quiet", "--output", "r.pkl"]) == 0
    ours, theirs = reduce(**taken), read_result("r.pkl")
    assert {key: ours[key] for key in SAME} == {key: theirs[key] for key in SAME}
    assert ours.get("cuts") == theirs.get("cuts") and set(ours) == set(theirs)


def test_several_targets_and_a_family_of_the_user(place):
    definition = family_definition(BUILT_IN_FAMILIES["bubble"]) | {"name": "mine"}
    (place / "mine.json").write_text(json.dumps(definition))
    by_file, by_value = (reduce([(2, 1), (1, 2)], family) for family in ("mine.json", load_family("mine.json")))
    assert by_file["reductions"] == by_value["reductions"] and list(by_file["reductions"]) == [(2, 1), (1, 2)]
    assert "final_expr" not in by_file and by_file["family"] == "mine"


def test_what_is_found_is_kept_where_a_directory_is_given(place):
    write_tadpoles(place)
    first, second = (reduce((1, 2, 2), "tadpoles.json", work_dir="w") for _ in range(2))
    assert first["statistics"]["rules"] > 0 == second["statistics"]["rules"]
    assert first["reductions"] == second["reductions"] and not (place / "ibp_work").exists()


def write_tadpoles(place):
    """A family that nobody knows yet, without numerators."""
    definition = {"name": "tadpoles", "loop_momenta": ["k1", "k2"], "external_momenta": [], "isps": 0, "kinematics": {}}
    propagators = [["k1", "m"], ["k2", "m"], ["k1+k2", "0"]]
    (place / "tadpoles.json").write_text(json.dumps(definition | {"propagators": propagators, "invariants": {"m": 3}}))


def test_results_are_written_read_and_verified(place):
    result = reduce(SMALL, paper_masters_only=True)
    result.save("r.pkl")
    assert dict(read_result("r.pkl")) == dict(result)
    assert verify("r.pkl").startswith("I[1,1,1,1,1,1,-3] of trianglebox")
    wrong = dict(result) | {"reductions": {SMALL: dict(result["final_expr"]) | {(0, 1, 1, 1, 0, 0, 0): 1}}}
    interface.Result(wrong | {"final_expr": wrong["reductions"][SMALL]}).save("wrong.pkl")
    with pytest.raises(CertificateError, match="wrong.pkl"):
        verify("wrong.pkl")
    assert exit_code(["--family=bubble", "--integral=2,2", "--engine=beam", "--policy=fixed", "--paths=p", "--quiet"]) == 0
    assert "each of which gives its expression" in verify("p", "bubble")


def test_a_result_shows_itself():
    result = reduce((2, 1), "bubble", symbols=["d"])
    assert "<td>I[2,1]</td><td>I[1,1]</td>" in result._repr_html_() and r"\mathrm{bubble}" in result._repr_latex_()
    assert str(result).startswith("I[2,1] = sum of 3 terms\n") and "bubble" in repr(result)
    equation = differentiate("s,d", "bubble", kinematics={"m": 3})
    assert "<td>d/ds I[1,1]</td>" in equation._repr_html_() and "<td>I[1,1] at d-2</td>" in equation._repr_html_()
    assert set(equation["differential_equation"]["matrices"]) == {"s", "d"} and equation["kinematics"]["m"] == 3


@pytest.mark.parametrize("family", ["bubble", "sunrise", "box"])
def test_identities_are_what_the_reduction_uses(family):
    own = BUILT_IN_FAMILIES[family]
    point = generic_point(own)
    equations = evaluate_identities(derive_identities(own), point)
    seed = tuple(range(2, own.lines + 2)) + (-1,) * own.isps
    names = {"d": point.d, **dict(point.invariants), **{f"a{i}": a for i, a in enumerate(seed, 1)}}
    for number, terms in enumerate(identities(family)):
        mine = {shift: eval(text, {"__builtins__": {}}, names) % point.prime for shift, text in terms.items()}
        here = equations.operator == number
        values = (equations.coefficient[here, 0] + (equations.coefficient[here, 1:] * seed).sum(1)) % point.prime
        assert mine == dict(zip(map(tuple, equations.shift[here].tolist()), values.tolist()))


def test_a_linear_system(place):
    (place / "f").write_text("x: 1\ny: -s\nz: 3/2\n\ny: 1\nz: 4\nw: 1\n")
    assert solve("f", values={"s": 2}, exact=True)["reductions"]["x"] == {"z": Fraction(-19, 2), "w": -2}
    assert solve("f", symbols=["s"])["reductions"]["x"] == {"z": "-(8*s + 3)/2", "w": "-s"}
    assert solve("f", values={"s": 2}, prime=1009)["reductions"]["x"] == {"z": -19 * pow(2, -1, 1009) % 1009, "w": 1007}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reduce((1, 2), "box"), "2 indices; box has 4"),
        (lambda: reduce((1, 1), "nothing"), "unknown family"),
        (lambda: reduce((1, 1), "bubble", kinematics={"t": 1}), "t=1"),
        (lambda: reduce((1, 1), "bubble", prime=10), "prime"),
        (lambda: reduce((1, 1), "bubble", exact=True, prime=1009), "prime"),
        (lambda: reduce((1, 1), "bubble", symbols=["x"]), "x"),
        (lambda: reduce((1, 1), "bubble", cut=(3,)), "from 1 to 2"),
        (lambda: reduce(SMALL, paper_masters_only=True, symmetries=True), "contradict"),
        (lambda: differentiate("x", "bubble"), "x"),
        (lambda: read_result("missing.pkl"), "missing.pkl"),
        (lambda: verify("missing.pkl"), "missing.pkl"),
        (lambda: solve("missing"), "missing"),
    ],
)
def test_input_that_means_nothing_is_one_line(call, message, place):
    with pytest.raises(InputError, match=message) as info:
        call()
    assert "\n" not in str(info.value) and list(place.iterdir()) == []
