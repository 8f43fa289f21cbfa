"""Symmetries: each map on vectors; results with them and without; what is refused."""

import dataclasses
import itertools
import json
import math
import random
import re
import shlex
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from support import BUBBLE_JSON, P31, check_refused, combine, exit_code, numbers_of, patch_rooms, point_of, reduced, residue, said, said_by
from support_oracles import SAMPLES, SYMMETRIC, TOP, Kinematics, any_kinematics, exact_result, families_with_rules, numerical, symmetries_of

from executors.local import LocalExecutor
from ibp.errors import SingularPoint
from ibp.families import BUILT_IN_FAMILIES, Family
from ibp.geometry import Geometry
from ibp.identities import Column
from ibp.masters import MasterRelation, use_relations
from ibp.store import Store
from ibp.symmetries import NumericMap, _prove, exact_image, find_shifts, find_symmetries, own_maps


class Momenta:
    """Vectors of rational numbers with the products that the kinematics of a family asks for.

    The external momenta are the first unit vectors, with their products as the metric; loop momenta have random components, also in further
    directions.
    """

    def __init__(self, family):
        draw = random.Random(family.name)
        self.invariants = {name: Fraction(draw.randrange(10**4, 10**6)) for name, _ in family.point}
        self.kinematics = Kinematics(family, **self.invariants)
        legs, loops = self.kinematics.legs, self.kinematics.loops
        size = len(legs) + len(loops)
        self.metric = np.full((size, size), Fraction(0))
        for (a, x), (b, y) in itertools.product(enumerate(legs), repeat=2):
            self.metric[a, b] = self.kinematics.products[x, y]
        for a in range(len(legs), size):
            self.metric[a, a] = Fraction(1)
        self.vectors = {leg: np.array([Fraction(i == place) for i in range(size)]) for place, leg in enumerate(legs)}
        self.vectors |= {loop: np.array([Fraction(draw.randrange(-99, 99)) for _ in range(size)]) for loop in loops}

    def product(self, x, y):
        return x @ self.metric @ y

    def propagators(self, vectors):
        forms = zip(self.kinematics.forms, self.kinematics.masses)
        return [sum(c * self.product(vectors[x], vectors[y]) for (x, y), c in form.items()) - mass for form, mass in forms]

    def shifted(self, texts, vectors):
        """Vectors after a shift such as 'k1 -> -k1+(1/2)*p1'."""
        names = vectors | self.invariants | {"Fraction": Fraction}
        result = dict(vectors)
        for name, text in (text.split(" -> ") for text in texts):
            result[name] = eval(re.sub(r"(?<![\w.])\d+", r"Fraction(\g<0>)", text), {"__builtins__": {}}, names)
        return result

    def value(self, polynomial):
        symbols = [Fraction(0), *self.invariants.values()]  # d does not occur
        return sum(factor * math.prod(map(pow, symbols, exponents)) for exponents, factor in polynomial)


@pytest.mark.parametrize("name", [name for name in SYMMETRIC if name != "pentabox"] + [pytest.param("pentabox", marks=pytest.mark.slow)])
def test_every_map_holds_for_vectors(name):
    """The shift keeps the invariants and the measure, turns every propagator into what the map says, and lines into lines."""
    geometry, nonzero, found = symmetries_of(name)
    momenta = Momenta(geometry.family)
    legs, loops = momenta.kinematics.legs, momenta.kinematics.loops
    own = [shift for bits in nonzero if bits not in found.maps for shift in own_maps(geometry, bits)]
    assert found.maps and own
    before = [*momenta.propagators(momenta.vectors), Fraction(1)]
    for shift in [*found.maps.values(), *own]:
        after = momenta.shifted(shift.shift, momenta.vectors)
        for x, y in itertools.product(legs, repeat=2):
            assert momenta.product(after[x], after[y]) == momenta.kinematics.products[x, y]
        rows = [{j: momenta.value(above) / momenta.value(below) for j, above, below in row} for row in shift.rows]
        assert momenta.propagators(after) == [sum(c * before[j - 1] for j, c in row.items()) for row in rows]
        assert all(rows[i - 1] == {j: 1} for i, j in shift.lines)
        assert (sum(1 << i - 1 for i, _ in shift.lines), sum(1 << j - 1 for _, j in shift.lines)) == (shift.source, shift.target)
        units = {q: np.eye(len(loops), dtype=int)[loops.index(q)] if q in loops else np.zeros(len(loops), int) for q in (*loops, *legs)}
        moved = momenta.shifted(shift.shift, units)
        assert abs(np.linalg.det(np.array([moved[k] for k in loops], float))) == pytest.approx(1)
        assert not any(moved[leg].any() for leg in legs)


def test_a_shift_that_is_none_is_not_proved():
    """Wrong in the measure, an invariant, or a line."""
    geometry, _, found = symmetries_of("doublebox")
    shift = next(shift for shift in found.maps.values() if shift.shift[0] == "k1 -> k1+p1+p2")
    pairs = [(i - 1, j - 1) for i, j in shift.lines]
    good = next(iter(find_shifts(geometry, geometry, pairs)))
    assert good.lines == shift.lines
    names = geometry.names
    matrix = np.array([[exact_number(i == j) for j in range(len(names))] for i in range(len(names))], object)
    same = [(i, i) for i in range(7)]
    assert _prove(geometry, geometry, same, matrix).shift == ()
    for place, value in (((0, 0), 2), ((0, 2), 1), ((2, 2), 2), ((2, 3), 1), ((2, 0), 1)):
        wrong = matrix.copy()
        wrong[place] = exact_number(value)
        assert _prove(geometry, geometry, same, wrong) is None


def exact_number(value):
    import sympy

    return sympy.QQ(int(value))


def test_symmetries_between_two_families():
    """The same lines in another order and with other loop momenta: maps lead from the one family to the other."""
    box = BUILT_IN_FAMILIES["box"]
    moved = dataclasses.replace(box, propagators=(("k1-p1-p2-p3", "0"), ("k1-p3", "0"), ("k1-p1-p2-2*p3", "0"), ("k1-p1-p3", "0")))
    source, target = Geometry(box), Geometry(moved)
    (form, orders), (other, others) = source.canonical(15), target.canonical(15)
    assert form == other
    shifts = [shift for order in others for shift in find_shifts(source, target, list(zip(orders[0], order)))]
    assert len(shifts) == len(orders) and {len(row) for shift in shifts for row in shift.rows} == {1}


@pytest.mark.parametrize("name", families_with_rules())
def test_with_symmetries_is_without_and_masters_mapped(reduce_at, name):
    targets = [TOP[name], *SAMPLES[name]]
    without = reduce_at(name, targets, paper_masters_only=True)
    outcome = reduce_at(name, targets, symmetries=True)
    mapped = reduce_at(name, without.masters, symmetries=True).reductions
    assert not outcome.unreduced and set(outcome.masters) <= set(without.masters)
    assert len(outcome.masters) == SYMMETRIC[name][1]
    for target in targets:
        assert combine(*((value, mapped[master]) for master, value in without.reductions[target].items())) == outcome.reductions[target]
    assert all(set(expression) <= set(outcome.masters) for expression in outcome.reductions.values())
    assert {master: mapped[master] for master in outcome.masters} == {master: {master: 1} for master in outcome.masters}


@pytest.mark.parametrize("name", families_with_rules(["sunrise", "trianglebox", "doublebox", "doublebox-1m", "nonplanar-doublebox"]))
def test_mapping_integrals_or_masters_is_the_same(reduce_at, monkeypatch, name):
    """Also where propagators become long sums: numerators of the integrals are mapped, or those of the masters."""
    expected = reduce_at(name, [TOP[name], *SAMPLES[name]], symmetries=True)
    for light in 0, 99:
        patch_rooms(monkeypatch, "ibp", "LIGHT_MAP", light)
        outcome = reduce_at(name, [TOP[name], *SAMPLES[name]], symmetries=True)
        assert outcome.reductions == expected.reductions and outcome.masters == expected.masters
        assert (outcome.statistics["mapped"] > 0) == (light == 99)


def test_mapped_integrals_in_portions(reduce_at, monkeypatch):
    expected = reduce_at("sunrise", [TOP["sunrise"]], shelves=[], symmetries=True).reductions
    patch_rooms(monkeypatch, "ibp", "MAPPED_BLOCK", 2)
    with LocalExecutor(2) as executor:
        assert reduce_at("sunrise", [TOP["sunrise"]], shelves=[], executor=executor, symmetries=True).reductions == expected


def test_symmetries_leave_no_trace_in_a_store(reduce_at, tmp_path):
    """What a run with symmetries learns serves one without, and the other way round."""
    store = [Store(tmp_path / "store.shelf")]
    targets = [TOP["sunrise"], *SAMPLES["sunrise"]]
    plain, symmetric = (reduce_at("sunrise", targets, shelves=[], symmetries=with_them) for with_them in (False, True))
    for with_them in (True, False, True):
        outcome = reduce_at("sunrise", targets, shelves=store, symmetries=with_them)
        expected = symmetric if with_them else plain
        assert outcome.reductions == expected.reductions and outcome.masters == expected.masters


def test_preferred_masters_in_a_mapped_sector(reduce_at):
    """A tadpole of other lines than the representative's, in the place of it."""
    (target,) = targets = [TOP["sunrise"]]
    outcome = reduce_at("sunrise", targets, symmetries=True, preferred_masters=((1, 0, 1, 0, 0),))
    assert (1, 0, 1, 0, 0) in outcome.masters and (1, 1, 0, 0, 0) not in outcome.masters
    back = reduce_at("sunrise", list(outcome.masters), symmetries=True).reductions
    expected = reduce_at("sunrise", targets, symmetries=True).reductions[target]
    assert combine(*((value, back[master]) for master, value in outcome.reductions[target].items())) == expected


def test_symmetries_of_unequal_masses():
    """Symmetries are those of the invariants, not of the numbers they have."""
    family = dataclasses.replace(
        BUILT_IN_FAMILIES["bubble"], propagators=(("k1", "m"), ("k1+p", "q")), point=(("s", "7"), ("m", "3"), ("q", "3"))
    )
    found = find_symmetries(Geometry(family), (1, 2, 3))
    assert not found.maps and not own_maps(Geometry(family), 3)


HEAVY_QUARKS = Family(
    "heavy-quarks", ("k1", "k2"), ("v",), (("k1", "0"), ("k2", "0"), ("k1-k2", "0"), ("2*k1*v", "w"), ("2*k2*v", "w")), 0, (("v*v", "1"),),
    (("w", "3"),),
)  # fmt: skip


def test_symmetries_of_linear_propagators(reduce_at):
    """Two loops on a heavy line: k1 <-> k2 exchanges linear propagators, k -> -k must not without reversing v as well."""
    geometry = Geometry(HEAVY_QUARKS)
    found = find_symmetries(geometry, any_kinematics(HEAVY_QUARKS).nonzero_sectors())
    assert {bits: shift.target for bits, shift in found.maps.items()} == {21: 14, 23: 15, 30: 29} and not found.unshifted
    targets = [(2, 1, 1, 1, 2), (1, 2, 1, 1, 1), (0, 2, 1, 1, 1), (1, 0, 1, -1, 2)]
    without, outcome = (reduce_at(HEAVY_QUARKS, targets, symmetries=symmetries) for symmetries in (False, True))
    mapped = reduce_at(HEAVY_QUARKS, without.masters, symmetries=True).reductions
    for target in targets:
        assert combine(*((value, mapped[master]) for master, value in without.reductions[target].items())) == outcome.reductions[target]
    assert (len(without.masters), len(outcome.masters)) == (3, 2)


def test_symmetries_where_momenta_are_lightlike(reduce_at):
    """No reflection is needed, and none can be made, where the external momentum has no length."""
    family = dataclasses.replace(BUILT_IN_FAMILIES["sunrise"], kinematics=(("p*p", "0"),), point=(("m", "3"),))
    found = find_symmetries(Geometry(family), (3, 5, 6, 7))
    assert {bits: shift.target for bits, shift in found.maps.items()} == {5: 3, 6: 3}


@pytest.mark.parametrize("name", families_with_rules(["bubble", "box", "sunrise", "trianglebox", "doublebox", "nonplanar-doublebox"]))
def test_exact_results_with_symmetries(reduce_at, name, tmp_path, monkeypatch):
    """At random points modulo primes the run with symmetries."""
    monkeypatch.chdir(tmp_path)
    family, target = BUILT_IN_FAMILIES[name], TOP[name]
    words = ["--family", name, "--symbols", ",".join(["d", *dict(family.point)][:2])]
    symmetric = exact_result(*words, "--integral", ",".join(map(str, target)), "--symmetries")
    assert len(symmetric["masters"]) == SYMMETRIC[name][1] and set(symmetric["final_expr"]) <= set(symmetric["masters"])
    symbols = words[-1].split(",")
    for number in range(3):
        found, point = numerical(symmetric, number, symbols, family)
        assert found == reduce_at(name, [target], point=point, symmetries=True).reductions


@pytest.mark.parametrize(
    ("name", "target", "cut"), [("doublebox", "1,1,1,1,1,1,1,-1,0", "4"), ("sunrise", "2,1,1,-1,0", "1"), ("box", "2,1,1,1", "1,3")]
)
def test_exact_results_with_symmetries_of_a_cut(name, target, cut, place):
    """As the run modulo a prime, where symmetries keep the cut lines."""
    words = ["--family", name, "--integral", target, "--cut", cut, "--symmetries"]
    exact, modular = exact_result(*words, "--exact"), reduced(*words, "--prime", str(P31))
    assert {master: residue(value) for master, value in exact["final_expr"].items()} == modular["final_expr"]
    assert exact["masters"] == modular["masters"] and exact["cuts"] == modular["cuts"] and modular["final_expr"]


@pytest.mark.parametrize("name", families_with_rules(["sunrise", "doublebox", "doublebox-1m", "nonplanar-doublebox", "pentabox"]))
def test_exact_images_are_those_at_points(name):
    """Of integrals with numerators under all maps, among them reflections."""
    geometry, nonzero, found = symmetries_of(name)
    family, draw = geometry.family, random.Random(5)
    own = [shift for bits in nonzero if bits not in found.maps for shift in own_maps(geometry, bits)][:12]
    point = point_of(family, **{x: draw.randrange(10**4, 10**6) for x, _ in family.point})
    for shift in [*found.maps.values(), *own]:
        integral = tuple(draw.randrange(1, 4) if shift.source >> i & 1 else -draw.randrange(0, 2) for i in range(family.n))
        exact = Column.of("image", exact_image(shift, integral, geometry.functions))
        expected = NumericMap(shift, point, family.n)(integral)
        assert exact.at(point) == {term: value for term, value in expected.items() if value}


@pytest.mark.parametrize("name", families_with_rules(["sunrise", "doublebox", "trianglebox"]))
def test_masters_are_related_the_same_without_mapping_integrals(reduce_at, name):
    """What exact runs do: all by identities, and the relations put in at the end."""
    expected = reduce_at(name, [TOP[name], *SAMPLES[name]], symmetries=True)
    outcome = reduce_at(name, [TOP[name], *SAMPLES[name]], symmetries=True, map_integrals=False)
    assert said_by(outcome) == said_by(expected) and outcome.relations and outcome.statistics["mapped"] == 0


def test_a_point_where_a_relation_degenerates_is_told(reduce_at):
    """A relation that gives nothing, or another master than expected."""
    lighter, heavier = (1, 1, 0, 0, 0), (1, 1, 1, 0, 0)
    relation = MasterRelation(((2, 1, 1, 0, 0),), ())
    for row in ({}, {lighter: 1}, {heavier: 3, lighter: 1}):
        with pytest.raises(SingularPoint, match=r"does not give I\[2,1,1,0,0\]"):
            use_relations({relation.name: row, "x": {heavier: 1}}, [relation], 101)
    rows = {relation.name: {(2, 1, 1, 0, 0): 2, lighter: 1}, "x": {(2, 1, 1, 0, 0): 4}}
    assert use_relations(rows, [relation], 101) == {"x": {lighter: 99}}


SUNRISE = ["--family", "sunrise", "--integral", "2,1,1,-1,-2", "--prime", str(P31)]


def test_symmetries_and_cuts_from_outside(place, capsys):
    direct, symmetric = reduced(*SUNRISE), reduced(*SUNRISE, "--symmetries")
    assert len(direct["masters"]) == 7 and len(symmetric["masters"]) == 3 and symmetric["symmetries"] and "symmetries" not in direct
    for more in (["--batch", "auto"], ["--batch", "2"], ["--local", "2"], ["--cold"]):
        again = reduced(*SUNRISE, "--symmetries", *more)
        assert again["final_expr"] == symmetric["final_expr"] and again["masters"] == symmetric["masters"]
    for cuts in (["--cut", "spanning"], ["--cut", "1,2", "--cut", "1,3", "--cut", "2,3"]):
        whole = reduced(*SUNRISE, *cuts)
        assert whole["final_expr"] == direct["final_expr"] and whole["cuts"] == [[1, 2], [1, 3], [2, 3]]
    on_cut = reduced(*SUNRISE, "--cut", "1,2", "--symmetries")
    assert len(on_cut["masters"]) < len(reduced(*SUNRISE, "--cut", "1,2")["masters"]) and on_cut["cuts"] == [[1, 2]]
    for more in (["--batch", "2"], ["--batch", "auto", "--local", "2"], ["--cut", "2,1"]):
        assert reduced(*SUNRISE, "--cut", "1,2", "--symmetries", *more)["final_expr"] == on_cut["final_expr"]
    part = reduced(*SUNRISE, "--cut", "3,1", "--batch", "3")
    assert part["final_expr"] == {m: v for m, v in direct["final_expr"].items() if m[0] == m[2] == 1} and part["cuts"] == [[1, 3]]
    capsys.readouterr()
    assert exit_code([*SUNRISE, "--cut", "1,2"]) == 0
    assert "left out, such as those of the lines 1,3 | 2,3" in capsys.readouterr().out
    assert exit_code([*SUNRISE, "--cut", "spanning"]) == 0
    assert "this is the whole reduction" in capsys.readouterr().out


def listed(capsys, *words):
    """The lines on symmetries of the command families."""
    return said(capsys, ["families", *words], 0).rpartition("\n\n")[2].splitlines()


def test_list_symmetries(place, capsys):
    lines = listed(capsys, "box")
    assert lines[0] == "box: 7 non-zero sectors, 5 unique, 7 maps of 5 sectors into themselves"
    assert sum(re.fullmatch(r"  (\d+) -> (?!\1 )\d+ .*", line) is not None for line in lines) == 2
    assert sum(re.fullmatch(r"  (\d+) -> \1 .*", line) is not None for line in lines) == 7
    assert listed(capsys, "box", "--cut", "1")[0].startswith("box: 5 non-zero sectors, 4 unique, ")


def shifted_bubble(**changes):
    return BUBBLE_JSON | {"name": "shifted", "propagators": [["k1-p", "m"], ["k1-2*p", "m"]]} | changes


def test_several_families_from_outside(place, capsys):
    """Names and files, lists over both, a combination over both in which all cancels; the number of processes changes nothing."""
    Path("shifted.json").write_text(json.dumps(shifted_bubble()))
    Path("list").write_text("bubble[3,2]\nshifted[2,3]\nnothing: 2*bubble[3,2] - (d-39)*shifted[2,3]\nall: bubble[1,1] + shifted[1,0]/s\n")
    words = ["--family", "bubble,shifted.json", "--integrals", "list", "--prime", str(P31)]
    apart, record = reduced(*words), reduced(*words, "--symmetries")
    assert record["family"] == apart["family"] == "bubble, shifted" and record["symmetries"]
    assert record["masters"] == ["bubble[1,0]", "bubble[1,1]"] and len(apart["masters"]) == 6
    found = record["reductions"]
    assert found["bubble[3,2]"] == found["shifted[2,3]"] != {} and found["nothing"] == {}
    assert found["all"] == {"bubble[1,0]": residue(Fraction(1, 7)), "bubble[1,1]": 1}
    single = reduced("--family", "shifted.json", "--integral", "shifted[2,3]", "--prime", str(P31))["final_expr"]
    assert numbers_of(apart["reductions"]["shifted[2,3]"]) == single
    assert {term.partition("[")[0] for term in apart["reductions"]["nothing"]} == {"bubble", "shifted"}
    assert reduced(*words, "--symmetries", "--local", "2")["reductions"] == found
    assert reduced(*words, "--symmetries", "--cold")["reductions"] == found
    capsys.readouterr()
    assert exit_code([*words, "--symmetries"]) == 0
    assert "4 targets through 2 masters" in (said := capsys.readouterr().out) and "of later families are integrals of earlier ones" in said
    # a family of which nothing is wanted lends its masters; without symmetries it has no part
    words = ["--family", "bubble,shifted.json", "--integral", "shifted[2,3]", "--prime", str(P31)]
    assert reduced(*words, "--symmetries")["reductions"] == {"shifted[2,3]": found["bubble[3,2]"]}
    assert reduced(*words)["final_expr"] == single
    assert exit_code([*words, "--symmetries", "--dry-run"]) == 0
    Path("masters").write_text("shifted[2,1]\n")
    preferred = reduced(*words, "--symmetries", "--masters", "masters")
    assert "shifted[2,1]" in preferred["masters"] and len(preferred["masters"]) == 2


def test_list_symmetries_of_several_families(place, capsys):
    Path("shifted.json").write_text(json.dumps(shifted_bubble(loop_momenta=["l"], propagators=[["l-p", "m"], ["l-2*p", "m"]])))
    lines = listed(capsys, "bubble,shifted.json")
    assert (
        lines[0].startswith("bubble: 3 non-zero sectors, 2 unique") and "shifted: 2 of its 2 unique sectors are sectors of bubble" in lines
    )
    assert [line.split()[:4] for line in lines[-2:]] == [["1", "->", "bubble", "1"], ["3", "->", "bubble", "3"]]
    assert "l -> k1+p" in lines[-2]
    # the bubble of two momenta: no shift between them, as the external momenta differ; each family is what it is by itself
    triangle = shifted_bubble(name="triangle", external_momenta=["p", "q"], propagators=[["k1", "m"], ["k1+p", "m"], ["k1+q", "m"]])
    Path("triangle.json").write_text(json.dumps(triangle | {"kinematics": {"p*p": "s", "p*q": "0", "q*q": "0"}}))
    assert "  3 and bubble 3 have the same U and F, but no shift was found" in listed(capsys, "bubble,triangle.json")
    found = reduced("--family", "bubble,triangle.json", "--integral", "triangle[2,1,0]", "--symmetries")
    assert set(found["masters"]) == {"triangle[1,0,0]", "triangle[1,1,0]"}


LINES = "--family sunrise --integral 2,1,1,-1,-2"


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        ("--family bubble,bubble --integral bubble[1,1]", ("two families", "bubble")),
        ("--family bubble,sunrise --integral 1,1", ("bubble, sunrise",)),
        ("--family bubble,sunrise --integral box[1,1]", ("bubble, sunrise",)),
        ("--family bubble,sunrise", ("needs --integral",)),
        ("--family bubble,box --integral bubble[1,1]", ("same invariants", "s=7, m=3 (bubble)", "s=3, t=7 (box)")),
        ("--family bubble,other.json --integral bubble[1,1]", ("same invariants", "m=4 (other)")),
        ("--family bubble,turned.json --integral bubble[1,1]", ("same order", "m=3, s=7 (turned)")),
        ("--family bubble,dim.json --integral bubble[1,1]", ("same invariants", "d=3, s=7, m=3 (dim)")),
        ("--family bubble,nowhere --integral bubble[1,1]", ("unknown family 'nowhere'",)),
        ("--family bubble, --integral bubble[1,1]", ("unknown family ''",)),
        ("--family bubble,sunrise --integrals list --cut 1", ("--cut", "one family at a time", "bubble, sunrise")),
        ("--family bubble,sunrise --integrals list --batch 3", ("one family at a time", "bubble, sunrise")),
        ("--family bubble,sunrise --integrals list --export kira", ("one family at a time", "bubble, sunrise")),
        ("--family bubble,sunrise --integrals list --exact", ("one family at a time",)),
        ("--family bubble,sunrise --integrals list --certificate c", ("one family at a time",)),
        ("differentiate s --family bubble,sunrise", ("one family at a time",)),
        ("benchmark-search --family bubble,sunrise", ("one family at a time",)),
        ("benchmark-points 3 --family bubble,sunrise --integrals list", ("one family at a time",)),
        ("verify paths --family bubble,sunrise", ("one family at a time",)),
        ("--family bubble,sunrise --masters list --integrals list --output list", ("the same file",)),
        ("families bubble,other.json", ("same invariants",)),
        ("families bubble,bubble", ("two families",)),
        ("families bubble,sunrise --cut 1", ("--cut 1", "one family")),
        ("families bubble --cut 1 --cut 2", ("--cut 1 --cut 2", "one cut")),
        ("families bubble --cut 3", ("--cut '3'", "from 1 to 2")),
        ("--family bubble,twin.json --integral bubble[1,1] --symmetries --output twin.json", ("twin.json", "the same file")),
        ("families double.json", ("linearly dependent",)),
        (f"{LINES} --cut 1,4", ("propagator 4 of sunrise is an irreducible scalar product",)),
        (f"{LINES} --cut 1,6", ("lines from 1 to 3",)),
        (f"{LINES} --cut 0", ("lines from 1 to 3",)),
        (f"{LINES} --cut 1,1", ("different lines",)),
        (f"{LINES} --cut ''", ("different lines",)),
        (f"{LINES} --cut a", ("different lines",)),
        (f"{LINES} --cut -1", ("--cut",)),
        (f"{LINES} --cut 1 --cut spanning", ("give it alone",)),
        (f"{LINES} --cut 1,2 --cut 1,3 --symmetries", ("contradict",)),
        (f"{LINES} --cut spanning --masters two", ("contradict",)),
        (f"{LINES} --cut 1 --engine beam --policy fixed --paths p", ("contradict",)),
        (f"{LINES} --cut 1,2 --cut 1,3 --batch auto", ("one --cut",)),
        (f"{LINES} --cut spanning --batch auto", ("one --cut",)),
        ("--family sunrise --integral 1,1,-1,0,0 --cut 3", ("line 3 has no positive index in I[1,1,-1,0,0]",)),
        ("--family sunrise --integrals two --cut 3", ("I[1,1,-1,0,0] has the lines of none of the cuts",)),
    ],
)
def test_families_that_do_not_fit_are_refused(words, fragments, place, capsys):
    Path("list").write_text("bubble[2,1]\nsunrise[1,1,1,0,0]\n")
    Path("paths").write_text("{}\n")
    Path("two").write_text("1,1,1,-1,0\n1,1,-1,0,0\n")
    changed = {"other": {"invariants": {"s": 7, "m": 4}}, "turned": {"invariants": {"m": 3, "s": 7}}, "dim": {"d": 3}, "twin": {}}
    for name, changes in (changed | {"double": {"propagators": [["k1", "m"], ["-k1", "0"]]}}).items():
        Path(f"{name}.json").write_text(json.dumps(shifted_bubble(name=name, **changes)))
    check_refused(shlex.split(words), place, capsys, fragments)
