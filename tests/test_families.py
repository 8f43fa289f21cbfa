"""Families: files, the built-in ones, and random ones against the oracle."""

import dataclasses
import json
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import BUBBLE_JSON, bits_of, check_refused, combine, exit_code, patch_rooms, point_of, residue
from support_oracles import Kinematics, Laporta, any_kinematics, check_identities, few_examples, rising, small_family

from ibp.families import BUILT_IN_FAMILIES, define_family, family_definition, load_family
from ibp.identities import generic_equations
from ibp.sectors import find_nonzero_sectors
from ibp.shipped import shipped
from ibp.verification import read_result

IDENTIFIERS = {  # the keys of data/rules.shelf
    "trianglebox": "ce4ca5f34a9e091ed49c9b32", "doublebox": "46af383f918f2f86ba0ac977", "doublebox-1m": "49d816b75a59a27093db98f9",
    "nonplanar-doublebox": "b2a0f69d08c5a0501e5e1c31", "sunrise": "d34f43af4d25dea83fcbe989", "pentabox": "842a62f54339428ae6cffebe",
    "ladder3": "1861001ef5ba25f201a41475", "banana3": "305dad6bb4348bffefc88bf4", "box": "f92ddefba6998e70a27d4bdc",
    "bubble": "2a3ef721f5237cdbc7bdd3db",
}  # fmt: skip


def test_built_in_families_are_what_the_stored_rules_are_of():
    assert {name: family.identifier for name, family in BUILT_IN_FAMILIES.items() if name in IDENTIFIERS} == IDENTIFIERS
    assert all(family.name == name for name, family in BUILT_IN_FAMILIES.items())
    assert len(BUILT_IN_FAMILIES["trianglebox"].paper_masters) == 16


@pytest.mark.parametrize("name", IDENTIFIERS)
def test_definition_and_back(name):
    family = BUILT_IN_FAMILIES[name]
    assert define_family(family_definition(family), "here") == dataclasses.replace(family, paper_masters=())
    assert load_family(str(shipped(f"families/{name}.json"))) == family


def test_only_the_family_in_use_is_read(tmp_path, monkeypatch):
    """And a file more is a family more; what is no family does not matter to the others."""
    (tmp_path / "mine.json").write_text(json.dumps(BUBBLE_JSON | {"name": "mine"}))
    (tmp_path / "broken.json").write_text("{")
    patch_rooms(monkeypatch, "ibp", "shipped", lambda name: tmp_path / name.removeprefix("families/"))
    patch_rooms(monkeypatch, "ibp", "shipped_names", lambda folder: ["broken.json", "mine.json"])
    assert list(BUILT_IN_FAMILIES) == ["broken", "mine"] and load_family("mine").name == "mine"
    assert "../mine" not in BUILT_IN_FAMILIES and ("mine",) not in BUILT_IN_FAMILIES


def test_published_masters_of_a_file(place):
    """What a user's file calls masters a reduction ends on, as for a built-in family; what else is irreducible is left."""
    words = ["--family=f.json", "--integral=3,2", "--paper-masters-only", "--quiet", "--output=r.pkl"]
    for masters, code in ([[1, 0], [0, 1], [1, 1]], 0), ([[1, 0], [1, 1]], 1):
        (place / "f.json").write_text(json.dumps(BUBBLE_JSON | {"name": "mine", "masters": masters}))
        assert load_family("f.json").paper_masters == tuple(map(tuple, masters)) and exit_code(words) == code
        result = read_result("r.pkl")
        assert set(result["final_expr"]) == {(1, 0), (0, 1), (1, 1)} and set(result["unreduced"]).isdisjoint(map(tuple, masters))


@pytest.mark.parametrize("masters", [{}, [1], [[1]], [[1, 1.0]], [[1, True]], [[1, 101]], [[1, 1], [1, 1]], [["1", "1"]]], ids=str)
def test_masters_that_are_none(masters, place, capsys):
    (place / "f.json").write_text(json.dumps(BUBBLE_JSON | {"masters": masters}))
    check_refused(["--family=f.json", "--integral=1,1"], place, capsys, ["f.json: masters"])


MASS = st.sampled_from(["0", "1", "3/7", "5", "11/2"])


def agrees_with_oracle(reduce_at, family, targets, dots, s):
    """target - reduction is a combination of identities, and no master is."""
    kinematics = Kinematics(family)
    live = any_kinematics(family).nonzero_sectors()
    oracle = Laporta(kinematics, {bits_of(target) for target in targets}, dots, s)
    outcome = reduce_at(family, targets, shelves=[])
    assert not outcome.unreduced
    for target in targets:
        if bits_of(target) not in live:
            assert outcome.reductions[target] == {}
        else:
            assert oracle.reduce(combine((1, {target: 1}), (-1, outcome.reductions[target]))) == {}
    for master in outcome.masters:
        assert oracle.reduce({master: 1}) == {master: 1}
    return outcome


@few_examples
@given(st.tuples(MASS, MASS), st.sampled_from(["s", "0", "1"]), st.tuples(st.integers(-2, 4), st.integers(-2, 4)))
def test_random_bubbles(reduce_at, masses, square, target):
    """Two masses, momentum off shell, light-like or of square 1 (on shell or at a threshold for some of the masses)."""
    propagators = zip(("k1", "k1+p"), masses)
    family = small_family("bubble", "k1", "p", propagators, 0, [("p*p", square)], [("s", "10007/89")])
    agrees_with_oracle(reduce_at, family, [target], 10, 8)


@few_examples
@given(st.tuples(MASS, MASS, MASS), st.tuples(*[st.sampled_from(["0", "u", "v", "w"])] * 3), st.tuples(*[st.integers(-1, 2)] * 3))
def test_random_triangles(reduce_at, masses, squares, target):
    a, b, c = squares
    kinematics = [("p1*p1", a), ("p2*p2", b), ("p1*p2", f"(x+{c})/2")]
    point = [("u", "10007/89"), ("v", "-337"), ("w", "911/5"), ("x", "40009/3")]
    family = small_family("triangle", "k1", "p1 p2", zip(("k1", "k1+p1", "k1+p1+p2"), masses), 0, kinematics, point)
    agrees_with_oracle(reduce_at, family, [target], 5, 4)


@few_examples
@given(st.tuples(MASS, MASS, MASS), st.tuples(*[st.integers(-1, 3)] * 3))
def test_random_two_loop_vacuum(reduce_at, masses, target):
    """No external momentum, no invariant."""
    family = small_family("vacuum", "k1 k2", "", zip(("k1", "k2", "k1+k2"), masses), 0, [], [])
    agrees_with_oracle(reduce_at, family, [target], 6, 4)


@few_examples
@given(st.tuples(MASS, MASS, MASS), st.tuples(*[st.integers(0, 2)] * 3, *[st.integers(-1, 0)] * 2))
def test_random_sunrises(reduce_at, masses, target):
    propagators = [*zip(("k1", "k2", "k1-k2+p"), masses), ("k1-p", "0"), ("k2+p", "2")]
    family = small_family("sunrise", "k1 k2", "p", propagators, 2, [("p*p", "s")], [("s", "10007/89")])
    agrees_with_oracle(reduce_at, family, [target], 3, 4)


@few_examples
@given(st.tuples(MASS, MASS), st.sampled_from(["2*k1*p", "-1*k1*p"]), st.tuples(st.integers(-2, 3), st.integers(-2, 3)))
def test_random_linear_propagators(reduce_at, masses, linear, target):
    """One loop with a heavy-quark line, a product of two momenta that is not squared."""
    family = small_family("heavy", "k1", "p", zip(("k1", linear), masses), 0, [("p*p", "s")], [("s", "10007/89")])
    agrees_with_oracle(reduce_at, family, [target], 8, 8)


HQET = small_family("hqet", "k1", "v", [("k1", "0"), ("2*k1*v", "w")], 0, [("v*v", "1")], [("w", "-5")])
HQET_MASSIVE = small_family("hqet-m", "k1", "v", [("k1", "m"), ("2*k1*v", "w")], 0, [("v*v", "1")], [("m", "3"), ("w", "5")])
GRAVITY = small_family(
    "gravity", "k1 k2", "q v", zip(("2*k1*v", "2*k2*v", "k1", "k2", "k1+k2-q", "k1-q", "k2-q"), "0000000"), 0,
    [("q*q", "t"), ("q*v", "0"), ("v*v", "1")], [("t", "-7")],
)  # fmt: skip
LINES = ("k1", "k2", "k1-k2", "2*k1*p", "2*k2*p"), ("k1", "k2", "k1+p", "k2+p", "k1+k2+p")
HEAVY = small_family("heavy2", "k1 k2", "p", zip(LINES[0], "000ww"), 0, [("p*p", "1")], [("w", "5")])
ON_SHELL = small_family("onshell", "k1 k2", "p", zip(LINES[1], "00mmm"), 0, [("p*p", "m")], [("m", "13/4")])
GRAVITY_RESIDUAL = dataclasses.replace(
    GRAVITY, name="gravity-w", propagators=(("2*k1*v", "w"), ("2*k2*v", "w"), *GRAVITY.propagators[2:]), point=(("t", "-7"), ("w", "5"))
)


@pytest.mark.parametrize("family", [HQET, HQET_MASSIVE, GRAVITY, GRAVITY_RESIDUAL], ids=lambda family: family.name)
def test_identities_and_zero_sectors_of_linear_propagators(family):
    check_identities(family, "-7/3")
    assert sorted(find_nonzero_sectors(generic_equations(family), family.lines)) == any_kinematics(family).nonzero_sectors()


@pytest.mark.parametrize("w", ["-5", "2/3"])
def test_heavy_quark_bubble_in_closed_form(reduce_at, w):
    """One loop of HQET: I(a, b) ~ (-1)^a W^(-b) (-W)^(d-2a) Gamma(b+2a-d) Gamma(d/2-a) / (Gamma(a) Gamma(b)) with D2 = 2 k.v + W
    (Broadhurst, Grozin, hep-ph/9410240), so one master and rational ratios.
    """
    W, d = -Fraction(w), 41
    cases = {}
    for a, b in [(1, 1), (2, 1), (1, 2), (3, 2), (4, 5), (1, 7), (6, 1)]:
        value = rising(Fraction(3 - d), b + 2 * a - 3) * rising(Fraction(d, 2) - 1, 1 - a) / math.factorial(a - 1) / math.factorial(b - 1)
        cases[a, b] = {(1, 1): residue((-1) ** (a - 1) * W ** (3 - b - 2 * a) * value)}
    outcome = reduce_at(HQET, cases, point=point_of(HQET, w=w), shelves=[])
    assert outcome.masters == [(1, 1)] and outcome.reductions == cases


@pytest.mark.parametrize(
    ("family", "targets", "dots", "s", "masters"),
    [
        (HEAVY, [(1, 1, 1, 2, 1), (2, 0, 1, 1, 1), (1, 2, 0, 1, 2), (0, 1, 1, 2, 1)], 3, 2, None),
        (ON_SHELL, [(1, 1, 1, 1, 1), (1, 1, 0, 0, 2), (2, 1, -1, 0, 1), (1, 1, 1, 0, 1)], 2, 2, None),
        (HQET_MASSIVE, [(3, 2), (4, -2), (1, 3), (-1, 3)], 8, 6, 2),
        (GRAVITY, [(1, 1, 1, 1, 1, -1, 0), (1, 0, 1, 1, 1, -1, 0), (2, 1, 1, 1, 1, 0, 0)], 1, 2, 4),
        (GRAVITY, [(1, 1, 1, 1, 1, 1, 1)], 1, 2, 16),
        (GRAVITY, [(1, 1, 1, 1, 0, 1, 1)], 1, 2, None),
        (GRAVITY_RESIDUAL, [(2, 1, 1, 1, 1, 0, 0), (1, 1, 1, 1, 0, -1, -1)], 1, 2, 14),
    ],
    ids=["heavy2", "on-shell", "hqet", "gravity5", "gravity7", "gravity6", "gravity-w"],
)
def test_families_by_brute_force(reduce_at, family, targets, dots, s, masters):
    """Self-energies of a heavy quark and on shell, p^2 = m^2; one-loop HQET with a mass; two linear propagators, q.v = 0, v^2 = 1."""
    outcome = agrees_with_oracle(reduce_at, family, targets, dots, s)
    assert masters is None or len(outcome.masters) == masters


CODE = '__import__("os").system("touch broken-out")'
DROP = "(left out)"
NAMES = {"s": 7, "m": 3}
# no arithmetic, as the second propagator; too much of it
NO_ARITHMETIC = [
    "",
    CODE,
    "k1.__class__",
    "(lambda: p)()",
    "(k1 := p)",
    '"p"',
    "(k1+p)^2",
    "k1\u2212p",
    "k1\0",
    ["k1+p", 1.5],
    ["k1+p", CODE],
]
TOO_MUCH = ["(" * 5000 + "p" + ")" * 5000, "-" * 20_000 + "p", "+".join(["p"] * 20_000), "k1**1000000", "2**9**9**9*k1"]
# key of a definition of a bubble, its value, what the line on stderr must contain
BAD_FAMILIES = [
    *((key, DROP, key, "missing") for key in BUBBLE_JSON),
    ("propagator", [], "'propagator'", "known"),
    ("name", 7, "name", "str"),
    ("name", "two\nlines", "name", "letters"),
    ("loop_momenta", "k1", "loop_momenta", "list"),
    ("loop_momenta", {"k1": 1}, "loop_momenta", "list"),
    ("loop_momenta", [1], "'1'", "name"),
    ("loop_momenta", [None], "k1"),
    ("loop_momenta", [], "0 loop"),
    ("loop_momenta", [f"k{i}" for i in range(1, 1001)], "1000 loop"),
    ("loop_momenta", ["k1", "k1"], "'k1'", "twice"),
    ("external_momenta", ["k1"], "'k1'", "twice"),
    ("external_momenta", [["p"]], "name"),
    ("propagators", {"k1": "m"}, "propagators", "list"),
    *(("isps", value, "isps", "int") for value in (0.0, "0", False)),
    ("isps", -1, "isps = -1", "0 <= isps"),
    ("isps", 2, "isps = 2", "isps < propagators"),
    ("isps", 10**30, "isps"),
    ("kinematics", ["p*p"], "kinematics", "dict"),
    ("invariants", ["s", "m"], "invariants", "dict"),
    ("invariants", NAMES | {"p": 1}, "'p'", "twice"),
    ("invariants", NAMES | {"d": 4}, "'d'"),
    *(("invariants", NAMES | {name: 6}, f"'{name}'", "name") for name in ("2m", "")),
    *(("invariants", NAMES | {"s": value}, f"s = {shown}") for value, shown in ((None, "'None'"), ([7], ""), ("2*m", "'2*m'"))),
    ("d", None, "d"),
    ("d", "4-2*eps", "'4-2*eps'"),
    ("propagators", ["k1"], "1 propagators", "exactly 2"),
    ("propagators", ["k1", "k1+p", "k1-p"], "3 propagators", "exactly 2"),
    ("propagators", [["k1", "m"], ["-k1", "0"]], "linearly dependent"),
    *(("propagators", ["k1", second], *shown) for second, *shown in (
        ("p", "linearly dependent"),
        ("k1+q", "'q'", "'k1+q'", "known"),
        (["k1+p", "M"], "'M'", "known"),
        (["k1+p", "p"], "'p'", "known"),
        *((text, f"'{text}'", "neither") for text in ("k1*k1*p", "1", "p-p", "k1*p+k1")),
        ("(k1+p)**2-m", "(k1+p)**2-m", "masses"),
        *((text, f"'{text}'") for text in ("k1/p", "1/k1", 2, None)),
        ({"p": "m"}, "propagator 2", "bilinear", "{'p': 'm'}"),
        *((value, "propagator 2", "bilinear") for value in (
            [], ["k1", "p", "m"], [["k1"], "m"], {"bilinear": [["k1"], "w"]}, {"bilinear": [["k1", "p"]]},
            {"bilinear": [["k1", "p"], "w"], "x": 1})),
        (["k1+p", None], "undefined symbol 'None'"),
        (["k1+p", "m/(s-s)"], "division by zero", "m/(s-s)"),
        *((value, "arithmetic") for value in NO_ARITHMETIC),
        *((text,) for text in TOO_MUCH),
    )),
    ("kinematics", {}, "p*p"),
    ("kinematics", {"p*p": "s", "p**2": "s"}, "two", "p*p"),
    ("kinematics", {"p*p": "s", "q*q": "0"}, "'q*q'", "external momenta p"),
    *(("kinematics", {"p*p": "s", pair: "0"}, f"'{pair}'") for pair in ("k1*p", "p*p*p", "")),
    *(("kinematics", {"p*p": value}, *shown) for value, *shown in (
        ("u", "'u'", "known"),
        ("s/0", "division by zero", "s/0"),
        (None, "undefined symbol 'None'"),
        *((value, "arithmetic") for value in (["s"], 3.5, "", CODE)),
        ("1" * 5000,),
        ("s*" + "(" * 5 + "7" + "**16)" * 5,),
    )),
]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "fragments"), [(key, value, shown) for key, value, *shown in BAD_FAMILIES], ids=lambda x: ascii(x)[:40]
)
def test_bad_family_is_refused_in_one_line_and_nothing_is_written(key, value, fragments, place, capsys):
    content = {name: part for name, part in (BUBBLE_JSON | {key: value}).items() if part != DROP}
    (place / "f.json").write_text(json.dumps(content))
    check_refused(["--family", "f.json", "--integral", "2,1"], place, capsys, fragments)


BUBBLE_TEXT = json.dumps(BUBBLE_JSON)
TWICE = [BUBBLE_TEXT.replace('"isps": 0', '"isps": 1, "isps": 0'), BUBBLE_TEXT.replace('"p*p": "s"', '"p*p": "s", "p*p": "0"')]
NO_FAMILIES = ["", "name: bubble", BUBBLE_TEXT[:-10], f"[{BUBBLE_TEXT}]", '"bubble"', "null", "[" * 100_000, '{"name":' * 100_000, *TWICE]


@pytest.mark.parametrize(
    "content",
    [*map(str.encode, NO_FAMILIES), bytes(range(256)), BUBBLE_TEXT.encode("utf-16"), None],
    ids=lambda content: ascii(content)[:40],
)
def test_file_that_is_no_family_is_refused(content, place, capsys):
    (place / "f.json").mkdir() if content is None else (place / "f.json").write_bytes(content)
    check_refused(["--family", "f.json", "--integral", "2,1"], place, capsys, ["f.json"])


@pytest.mark.parametrize(
    ("rule", "x", "more"),
    [("s/(x-2)", 2, []), ("s/(x-2)", 1011, []), ("s/(x-2)", 5, ["--kinematics=x=2"]), ("s/(d-4)", 0, ["--d=4"]), ("s/1009", 0, [])],
)
def test_point_where_the_kinematics_have_a_pole_is_refused(rule, x, more, place, capsys):
    (place / "f.json").write_text(json.dumps(BUBBLE_JSON | {"kinematics": {"p*p": rule}, "invariants": NAMES | {"x": x}}))
    check_refused(["--family", "f.json", "--integral", "2,1", *more], place, capsys, ["division by zero", "1009", "another"])
