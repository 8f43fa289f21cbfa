"""Reductions on cuts, and their union."""

import dataclasses

import pytest
from support import P31, combine, point_of, reduced, residue
from support_oracles import (
    NEEDS_SHIPPED_RULES,
    SAMPLES,
    SHIPPED,
    TOP,
    any_kinematics,
    exact_result,
    exact_value,
    families_with_rules,
    line_mask,
)

from executors.base import InlineExecutor
from ibp.console import Reporter
from ibp.controller import Controller
from ibp.cuts import lowest_sectors, merge_cuts
from ibp.errors import ReductionError
from ibp.families import BUILT_IN_FAMILIES, cut_lines
from ibp.geometry import Geometry
from ibp.problems import Problem
from ibp.sectors import sector_of
from ibp.store import Store
from ibp.symmetries import find_symmetries, own_maps


@pytest.mark.parametrize(
    "name", [*families_with_rules(["sunrise", "trianglebox", "doublebox", "ladder3"]), pytest.param("pentabox", marks=pytest.mark.slow)]
)
def test_spanning_cuts_make_the_whole(reduce_at, name):
    """Each cut gives the coefficients of the masters with its lines; together they are the direct reduction."""
    targets = [TOP[name], *SAMPLES[name]]
    direct = reduce_at(name, targets)
    nonzero = any_kinematics(BUILT_IN_FAMILIES[name]).nonzero_sectors()
    cuts = lowest_sectors(nonzero, [sector_of(target) for target in targets])
    parts = [reduce_at(name, targets, cut=cut) for cut in cuts]
    assert len(cuts) > 1
    for cut, part in zip(cuts, parts):
        for target, expression in direct.reductions.items():
            assert part.reductions[target] == {master: v for master, v in expression.items() if sector_of(master) & cut == cut}
    merged = merge_cuts(cuts, parts)
    assert merged.reductions == direct.reductions and merged.masters == direct.masters and not merged.unreduced


def test_a_cut_leaves_no_trace_in_a_store(reduce_at, tmp_path):
    """One-step results without what a cut drops must not be taken for whole ones, nor the other way round."""
    targets = [(2, 1, 1, -1, -2), (1, 3, 1, 0, -1)]
    direct = reduce_at("sunrise", targets, shelves=[])
    cut = reduce_at("sunrise", targets, shelves=[], cut=line_mask(1, 2, 3))
    assert cut.reductions != direct.reductions
    for order in ((0, 7, 0), (7, 0, 7)):
        store = [Store(tmp_path / f"{order}.shelf")]
        for mask in order:
            outcome = reduce_at("sunrise", targets, shelves=store, cut=mask)
            assert outcome.reductions == (cut if mask else direct).reductions


def test_cuts_that_contradict_are_refused(reduce_at):
    target = (2, 1, 1, -1, -2)
    part = reduce_at("sunrise", [target], cut=line_mask(1, 2))
    other = dataclasses.replace(part, reductions={target: part.reductions[target] | {(1, 1, 1, 0, 0): 1}})
    for parts in ([part, other], [part, dataclasses.replace(part, reductions={target: {}})]):
        with pytest.raises(ReductionError, match="different coefficients"):
            merge_cuts([line_mask(1, 2)] * 2, parts)
    parts = [dataclasses.replace(one, reductions={"amplitude": one.reductions[target]}) for one in (part, other)]
    with pytest.raises(ReductionError, match=r"of I\[1,1,1,0,0\] in amplitude;"):
        merge_cuts([line_mask(1, 2)] * 2, parts)


@pytest.mark.parametrize(
    ("name", "lines"),
    [("sunrise", (1, 2)), ("sunrise", (3,)), ("trianglebox", (1, 3)), ("doublebox", (4,)), ("doublebox", (1, 5)), ("ladder3", (7, 8))],
    ids=str,
)
def test_symmetries_on_a_cut(reduce_at, name, lines):
    """The cut with symmetries is the cut without, its masters mapped; what a map of the cut equates, one of the whole does, too."""
    if name in NEEDS_SHIPPED_RULES and not SHIPPED.exists():
        pytest.skip("minutes without data/rules.shelf")
    targets, cut = [TOP[name], *SAMPLES[name]], line_mask(*lines)
    without, outcome = (reduce_at(name, targets, cut=cut, symmetries=some, paper_masters_only=not some) for some in (False, True))
    mapped = reduce_at(name, without.masters, cut=cut, symmetries=True).reductions
    for target in targets:
        assert combine(*((value, mapped[master]) for master, value in without.reductions[target].items())) == outcome.reductions[target]
    whole = reduce_at(name, without.masters, symmetries=True).reductions
    for master, expression in mapped.items():
        image = combine(*((value, whole.get(other, {other: 1})) for other, value in expression.items()))
        assert {m: v for m, v in image.items() if sector_of(m).bit_count() == sector_of(master).bit_count()} == {
            m: v for m, v in whole[master].items() if sector_of(m).bit_count() == sector_of(master).bit_count()
        }


def test_maps_on_a_cut_keep_its_lines():
    """Those of the whole family that take cut lines to cut lines, found among all ways to order the lines."""
    family = BUILT_IN_FAMILIES["sunrise"]
    for cut, maps in ((0, {5: 3, 6: 3}), (line_mask(1), {5: 3}), (line_mask(3), {6: 5}), (line_mask(1, 2), {})):
        nonzero = [bits for bits in (3, 5, 6, 7) if bits & cut == cut]
        geometry = Geometry(family, cut)
        found = find_symmetries(geometry, nonzero)
        assert {bits: shift.target for bits, shift in found.maps.items()} == maps and not found.unshifted
        whole = own_maps(Geometry(family), 7)
        kept = {shift.lines for shift in whole if {j for i, j in shift.lines if cut >> i - 1 & 1} == set(cut_lines(cut))}
        assert {shift.lines for shift in own_maps(geometry, 7)} == kept


def test_preferred_masters_on_a_cut(reduce_at):
    """The whole result in these masters, as far as it has the lines; those without are left out."""
    target, preferred, cut = (2, 1, 1, -1, -2), ((2, 1, 1, 0, 0), (1, 2, 0, 0, 0)), line_mask(1, 3)
    whole = reduce_at("sunrise", [target], preferred_masters=preferred[:1]).reductions[target]
    family = BUILT_IN_FAMILIES["sunrise"]
    problem = Problem(family, point_of(family), (target,), preferred_masters=preferred).on_cut(cut)
    part = Controller(problem, InlineExecutor(), [], Reporter()).run()
    assert part.reductions[target] == {m: v for m, v in whole.items() if sector_of(m) & cut == cut}
    assert preferred[0] in part.masters and preferred[1] not in part.masters


def test_preferred_masters_on_a_cut_exactly(place):
    """Those without the lines are left out as modulo a prime."""
    (place / "masters").write_text("1,0,2,0\n0,1,0,1\n")
    words = ["--family=box", "--integral=1,2,1,1", "--cut=1,3", "--masters=masters"]
    found = exact_result(*words, "--symbols=d,s,t")
    assert (0, 1, 0, 1) not in found["masters"] and (1, 0, 2, 0) in found["final_expr"]
    modular = reduced(*words, f"--prime={P31}", "--d=11", "--kinematics=s=5,t=3")["final_expr"]
    assert {m: residue(exact_value(value, d=11, s=5, t=3)) for m, value in found["final_expr"].items()} == modular
