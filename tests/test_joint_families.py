"""Several families in one result."""

import dataclasses
import itertools
import random
import re

import pytest
from support import P31, combine, point_of
from support_oracles import SAMPLES, SYMMETRIC, TOP, FeynmanParameters, any_kinematics, compositions, line_mask, needs_stored_rules

from ibp.errors import InputError
from ibp.families import BUILT_IN_FAMILIES, cut_lines
from ibp.geometry import Geometry
from ibp.joint_families import reduce_families
from ibp.problems import Problem
from ibp.records import joined_record
from ibp.run_state import known_nonzero_sectors
from ibp.sectors import sector_of
from ibp.symmetries import NumericMap, find_family_maps


def reduced_together(reduce_at, families, targets, preferred=None, cuts=None, **options):
    """reduce_families of {family: targets}, through labels: (reductions, masters, outcome)."""
    wanted = [targets.get(family.name, ()) for family in families]
    problems = [
        Problem(family, point_of(family, options.get("prime", P31)), tuple(own), symmetries=options.get("symmetries", True),
                preferred_masters=tuple((preferred or {}).get(family.name, ())), cut=(cuts or {}).get(family.name, 0))
        for family, own in zip(families, wanted)
    ]  # fmt: skip

    def reduce(problem):
        more = {name: getattr(problem, name) for name in ("preferred_masters", "symmetries", "cut", "combinations")}
        return reduce_at(problem.family, problem.targets, point=problem.point, executor=options.get("executor"), **more)

    outcome, joint = reduce_families(problems, reduce, lambda family: known_nonzero_sectors(family, []))
    record = joined_record(problems, outcome, joint)
    assert record["success"] and {term for row in record["reductions"].values() for term in row} <= set(record["masters"])
    return record


def label(name, indices):
    return f"{name}[{','.join(map(str, indices))}]"


def shifted_copy(family, draw):
    """The family under another name, with other loop momenta, and lines and ISPs in another order: also where each index went."""
    loops, legs = family.loop_momenta, family.external_momenta
    matrix = {k: {k: draw.choice([1, -1])} for k in loops}
    for k, other in itertools.permutations(loops, 2) if draw.random() < 0.7 else ():
        sign = draw.choice([0, 1, -1])
        matrix[k] = {q: matrix[k].get(q, 0) + sign * matrix[other].get(q, 0) for q in loops}
    for k in loops:
        matrix[k] |= {p: draw.randrange(-2, 3) for p in legs}
    texts = {k: "(" + "".join(f"{c:+d}*{q}" for q, c in form.items() if c) + ")" for k, form in matrix.items()}
    moved = [(re.sub(r"\b[a-z]\w*", lambda name: texts.get(name[0], name[0]), momentum), mass) for momentum, mass in family.propagators]
    order = draw.sample(range(family.lines), family.lines) + draw.sample(range(family.lines, family.n), family.isps)
    return dataclasses.replace(family, name="copy", propagators=tuple(moved[i] for i in order), paper_masters=()), order


@pytest.mark.parametrize(
    ("name", "seed"),
    [(name, seed) for name, seeds in (("bubble", 5), ("box", 5), ("sunrise", 5), ("trianglebox", 2)) for seed in range(seeds)],
)
def test_a_family_with_itself_shifted_has_no_masters_of_its_own(reduce_at, name, seed):
    """And every integral is reduced to what its counterpart is."""
    family = BUILT_IN_FAMILIES[name]
    copy, order = shifted_copy(family, random.Random(seed))
    targets = [TOP[name], *SAMPLES[name]]
    moved = [tuple(target[i] for i in order) for target in targets]
    both = reduced_together(reduce_at, [family, copy], {name: targets, "copy": moved})
    for target, there in zip(targets, moved):
        assert both["reductions"][label("copy", there)] == both["reductions"][label(name, target)]
    assert len(both["masters"]) == SYMMETRIC[name][1] and all(master.startswith(name) for master in both["masters"])
    lent = reduced_together(reduce_at, [family, copy], {"copy": moved})
    assert lent["reductions"] == {key: row for key, row in both["reductions"].items() if key.startswith("copy")}


@pytest.mark.parametrize("name", ["sunrise", "trianglebox"])
def test_a_family_with_itself_and_other_irreducible_products(reduce_at, name):
    """Integrals without numerators are the same, whatever else completes the propagators."""
    family = BUILT_IN_FAMILIES[name]
    copy, order = shifted_copy(family, random.Random(7))
    others = {"sunrise": (("k1+5*p", "0"), ("k2-7*p", "m")), "trianglebox": (("k1-k2+2*p1-p3", "0"),)}[name]
    copy = dataclasses.replace(copy, propagators=copy.propagators[: copy.lines] + others)
    targets = {"sunrise": [(2, 1, 3, 0, 0), (0, 2, 1, 0, 0)], "trianglebox": [(2, 1, 1, 1, 1, 0, 0), (1, 0, 2, 1, 1, 1, 0)]}[name]
    moved = [tuple(target[i] for i in order) for target in targets]
    numerators = {"sunrise": (1, 2, 1, -1, -1), "trianglebox": (1, 1, 1, 1, 1, 1, -2)}[name]
    both = reduced_together(reduce_at, [family, copy], {name: [TOP[name], *targets], "copy": [*moved, numerators]})
    for target, there in zip(targets, moved):
        assert both["reductions"][label("copy", there)] == both["reductions"][label(name, target)] != {}
    assert len(both["masters"]) == SYMMETRIC[name][1] and all(master.startswith(name) for master in both["masters"])


BOXES = [BUILT_IN_FAMILIES["doublebox"], BUILT_IN_FAMILIES["nonplanar-doublebox"]]


@needs_stored_rules
@pytest.mark.parametrize("prime", [P31, 2147483629])
def test_integrals_carried_over_and_reduced_there(reduce_at, prime):
    """Dots and numerators in sectors of both families: what is mapped before it is reduced is what is mapped after."""
    planar, other = BOXES
    geometries = [Geometry(family) for family in BOXES]
    nonzero = [any_kinematics(family).nonzero_sectors() for family in BOXES]
    maps = find_family_maps(geometries[1], nonzero[1], [(geometries[0], geometries[0].classes(nonzero[0]))])
    assert {maps[bits][1].target for bits in (63, 55, 53)} == {95, 79, 58} and 127 not in maps
    targets = [(1, 2, 1, 1, 1, 1, -1, 0, 0), (1, 1, 2, 0, 1, 1, 0, -1, 0), (1, 0, 1, 0, 2, 1, 0, -1, -1)]
    images = []
    for target in targets:
        number, found = maps[sector_of(target)]
        assert number == 0
        images.append(NumericMap(found, point_of(other, prime), other.n)(target))
    assert all(len(image) > 1 for image in images)
    both = reduced_together(reduce_at, BOXES, {"doublebox": sorted(set().union(*images)), other.name: targets}, prime=prime)
    assert not any(master.startswith("nonplanar") for target in targets for master in both["reductions"][label(other.name, target)])
    for target, image in zip(targets, images):
        there = combine(*((value, both["reductions"][label("doublebox", term)]) for term, value in image.items()), p=prime)
        assert there == both["reductions"][label(other.name, target)] != {}


@needs_stored_rules
def test_number_of_joint_masters_by_feynman_parameters(reduce_at):
    """As test_number_of_masters_by_feynman_parameters, with equal U and F of the two families, too."""
    both = reduced_together(reduce_at, BOXES, {family.name: [TOP[family.name]] for family in BOXES})
    parameters = [FeynmanParameters(dataclasses.replace(family, name="the same invariants")) for family in BOXES]
    masters = [reduce_at(family, [TOP[family.name]]).masters for family in BOXES]
    sectors = [
        (number, own.ways(bits)) for number, own in enumerate(parameters)
        for bits in sorted({sector_of(master) for master in masters[number]}) if bits.bit_count() < 7
    ]  # fmt: skip
    equal = set()
    for (a, ways), (b, others) in itertools.combinations_with_replacement(sectors, 2):
        for values in ways.keys() & others.keys():
            for order, up in itertools.product(others[values], compositions(1, len(order_of := ways[values][0]))):
                powers = [{line: 1 + x for line, x in zip(lines, up)} for lines in (order_of, order)]
                equal.add(tuple((family, tuple(power.get(i, 0) for i in range(9))) for family, power in zip((a, b), powers)))
    wanted = [sorted({integral for pair in equal for number, integral in pair if number == family}) for family in (0, 1)]
    found = [reduce_at(family, own).reductions for family, own in zip(BOXES, wanted)]
    named = [{target: {(number, *m): v for m, v in row.items()} for target, row in own.items()} for number, own in enumerate(found)]
    rows = [combine((1, named[x][a]), (-1, named[y][b])) for (x, a), (y, b) in equal]
    rank = 0
    while rows := [row for row in rows if row]:
        pivot = rows.pop()
        lead = next(iter(pivot))
        inverse = pow(pivot[lead], -1, P31)
        rows = [combine((1, row), (-row.get(lead, 0) * inverse, pivot)) for row in rows]
        rank += 1
    turned = reduced_together(reduce_at, BOXES[::-1], {family.name: [TOP[family.name]] for family in BOXES})
    assert sum(map(len, masters)) - rank == len(both["masters"]) == len(turned["masters"]) == 15


def test_families_that_share_nothing(reduce_at):
    """Other masses, another number of legs or loops: each is what it is by itself, and the order of the families does not matter."""
    bubble, sunrise = BUILT_IN_FAMILIES["bubble"], BUILT_IN_FAMILIES["sunrise"]
    massless = dataclasses.replace(bubble, name="massless", propagators=(("k1", "0"), ("k1+p", "0")))
    targets = {"bubble": [(3, 2)], "massless": [(2, 2)], "sunrise": [(2, 1, 1, 0, 0)]}
    alone = {family.name: reduce_at(family, targets[family.name], symmetries=True) for family in (bubble, massless, sunrise)}
    for families in itertools.permutations((bubble, massless, sunrise)):
        record = reduced_together(reduce_at, families, targets)
        for name, outcome in alone.items():
            for target, row in outcome.reductions.items():
                assert record["reductions"][label(name, target)] == {label(name, master): value for master, value in row.items()}
        assert set(record["masters"]) == {label(name, master) for name, outcome in alone.items() for master in outcome.masters}


def test_three_families_end_on_the_first_that_has_a_sector(reduce_at):
    """A chain: the third has the second's sectors, of which the first has the tadpole alone."""
    bubble = BUILT_IN_FAMILIES["bubble"]
    families = [
        dataclasses.replace(bubble, name="lonely", propagators=(("k1-p", "m"), ("k1", "2*m")), isps=1),
        dataclasses.replace(bubble, name="second", propagators=(("k1+p", "m"), ("k1+2*p", "m"))),
        dataclasses.replace(bubble, name="third", propagators=(("-k1-p", "m"), ("k1", "m"))),
    ]
    record = reduced_together(reduce_at, families, {"third": [(3, 2)], "lonely": [(2, -1)]})
    assert record["masters"] == ["lonely[1,0]", "second[1,1]"]
    plain = reduce_at("bubble", [(3, 2)], symmetries=True).reductions[3, 2]
    (tadpole,) = (master for master in plain if sum(master) == 1)
    assert record["reductions"]["third[3,2]"] == {"lonely[1,0]": plain[tadpole], "second[1,1]": plain[1, 1]}


def test_preferred_masters_of_several_families(reduce_at):
    """Also one of a sector that an earlier family has; then it takes the place of a master of that family."""
    box = BUILT_IN_FAMILIES["box"]
    copy, order = shifted_copy(box, random.Random(3))
    targets, dotted = {"box": [(2, 1, 1, 2)], "copy": [(3, 1, 1, 1)]}, tuple((2, 1, 1, 1)[i] for i in order)
    plain = reduced_together(reduce_at, [box, copy], targets | {"copy": [(3, 1, 1, 1), dotted]})
    record = reduced_together(reduce_at, [box, copy], targets, {"copy": [dotted]})
    assert label("copy", dotted) in record["masters"] and "box[1,1,1,1]" not in record["masters"] and len(record["masters"]) == 3
    for target, row in record["reductions"].items():
        back = combine(*((value, plain["reductions"].get(term, {term: 1})) for term, value in row.items()))
        assert back == plain["reductions"][target]
    with pytest.raises(
        InputError, match=re.escape(f"{label('copy', dotted)} depends linearly on the ones before it: it is 1*box[2,1,1,1]")
    ):
        reduced_together(reduce_at, [box, copy], targets, {"box": [(2, 1, 1, 1)], "copy": [dotted]})


def test_cuts_of_several_families(reduce_at):
    """Masters are carried over where cut lines become cut lines, and nowhere else."""
    name = "sunrise"
    family = BUILT_IN_FAMILIES[name]
    copy, order = shifted_copy(family, random.Random(5))
    there = tuple(TOP[name][i] for i in order)
    targets, cut, moved = {name: [TOP[name]], "copy": [there]}, line_mask(1, 3), sum(1 << order.index(i) for i in (0, 2))
    both = reduced_together(reduce_at, [family, copy], targets, cuts={name: cut, "copy": moved})
    alone = reduce_at(name, [TOP[name]], symmetries=True, cut=cut)
    expected = {label(name, master): value for master, value in alone.reductions[TOP[name]].items()}
    assert both["reductions"] == {label(name, TOP[name]): expected, label("copy", there): expected}
    assert set(both["masters"]) == {label(name, master) for master in alone.masters} and both["cuts"] == {
        name: [1, 3],
        "copy": cut_lines(moved),
    }
    apart = reduced_together(reduce_at, [family, copy], targets, cuts={name: line_mask(1), "copy": moved})
    assert {m.partition("[")[0] for m in apart["reductions"][label("copy", there)]} == {"copy"}
