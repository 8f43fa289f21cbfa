"""beam."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import (
    BUBBLE,
    HELD,
    P31,
    TRIANGLEBOX,
    bits_of,
    combine,
    done_in,
    ended,
    known,
    patch_rooms,
    point_of,
    reduced,
    rules_in,
    run_and_hear,
    run_steps,
    said,
    said_by,
    snapshot,
    with_cpus,
)
from support_oracles import BOX_BY_BEAM, GOLDEN, NaivePosition, any_kinematics, equations_of, moved, oracle_weight, raw_identity, sector_for

from executors.files import load_builtins
from ibp.beam import Beam, beam_search, search_path
from ibp.discovery import RuleFinder
from ibp.families import BUILT_IN_FAMILIES
from ibp.identities import generic_equations
from ibp.knowledge import Knowledge, SectorKnowledge
from ibp.positions import Position
from ibp.sector_reduction import reduce_sector
from ibp.sector_tasks import SectorTask
from ibp.sectors import Sector, find_nonzero_sectors, layout_for
from ibp.shipped import shipped
from ibp.store import Store

SHIPPED_POLICY = shipped("policy.pt")
needs_policy = pytest.mark.skipif(not SHIPPED_POLICY.exists(), reason="no data/policy.pt")


def beam_of(policy="trained", width=20, reuse=False, **more):
    return Beam(width, reuse=reuse, policy=SHIPPED_POLICY.read_bytes() if policy == "trained" else policy, **more)


@pytest.fixture
def without_rules(shelves, tmp_path):
    """without_rules(name): a store with the masters of a family, which take long to find, and nothing else."""

    def make(name):
        family, knowledge = BUILT_IN_FAMILIES[name], Knowledge()
        for shelf in shelves:
            knowledge.update(shelf.load(family))
        for sector in knowledge.sectors.values():
            sector.rules, sector.hopeless = (), frozenset()
        store = Store(tmp_path / f"{name}.shelf")
        store.merge(family, point_of(family), Knowledge(knowledge.operators, knowledge.nonzero, knowledge.sectors))
        return store

    return make


def check_paths_by_hand(name, outcome, p=P31):
    """Each path says of its integral what its expression says: by raw identities and an elimination in the oracle's order."""
    live = set(any_kinematics(BUILT_IN_FAMILIES[name]).nonzero_sectors())
    for target, (rows, expression) in outcome.paths.items():
        assert all(oracle_weight(term) < oracle_weight(target) for term in expression)
        pivots = {}
        for action in rows:
            row = {t: v for t, v in raw_identity(name, *moved(target, action)).items() if bits_of(t) in live}
            row = NaivePosition.without(row, pivots)
            if row:
                lead = min(row)
                pivots[lead] = combine((pow(row[lead], -1, p), row))
        assert NaivePosition.without(combine((1, {target: 1}), (-1, expression)), pivots) == {}


ENGINES = {  # targets, Problem options, beams, and those that take some seconds
    "bubble": ([(3, 2), (2, -3)], {}, "fixed 1, fixed 20, random 1, trained 1, trained 20", "random 20"),
    "box": ([(2, 1, 1, 2), (2, 0, 1, -1)], {}, "fixed 1, fixed 20, trained 1, trained 20", ""),
    "sunrise": ([(2, 1, 1, 0, -1)], {}, "fixed 1", "trained 1"),
    "trianglebox": ([(1, 0, 1, 0, 2, 1, -1), (0, 1, 2, 1, -1, 0, 0)], {"paper_masters_only": True}, "", "trained 5"),
    "doublebox": ([(1, 0, 1, 1, 1, 0, 1, -1, 0)], {}, "", "trained 20"),  # which the policy has not seen, nor the next one
    "banana3": ([(2, 1, 0, 1, -1, 0, 0, 0, 0)], {}, "", "trained 20"),
}


@pytest.mark.parametrize(("name", "how", "no_rules"), [
    pytest.param(name, how, no_rules, marks=[pytest.mark.slow] * (hows == case[3] and not (no_rules and name == "trianglebox")))
    for name, case in ENGINES.items() for hows in case[2:] for how in filter(None, hows.split(", ")) for no_rules in (False, True)
])  # fmt: skip
def test_engines_agree(name, how, no_rules, reduce_at, without_rules):
    """no_rules: each integral is searched for; else paths are reused."""
    targets, options, *_ = ENGINES[name]
    policy, width = how.split()
    if policy == "trained" and not SHIPPED_POLICY.exists():
        pytest.skip("no data/policy.pt")
    beam, store = beam_of(policy, int(width), not no_rules), without_rules(name)
    before = known(store.path, BUILT_IN_FAMILIES[name])
    outcome = reduce_at(name, targets, shelves=[store], beam=beam, **options)
    assert said_by(outcome) == said_by(reduce_at(name, targets, **options)) and not outcome.unreduced
    counts, after = outcome.statistics, known(store.path, BUILT_IN_FAMILIES[name])
    assert counts["search_steps"] >= counts["searches"] >= len(outcome.paths) > 0
    check_paths_by_hand(name, outcome)
    if no_rules:  # each integral was searched for, and nothing of it stays
        assert len(outcome.paths) == counts["integrals"] and counts["rules"] == 0
        assert rules_in(after) == rules_in(before) == set()
    else:
        assert len(outcome.paths) <= counts["integrals"]
        assert {(bits_of(target), rows) for target, (rows, _) in outcome.paths.items()} <= {(b, r.rows) for b, r in rules_in(after)}
        assert counts["rules"] == len(rules_in(after)) > 0


@needs_policy
@pytest.mark.parametrize("order", ["weight", "size"])
def test_other_orders_of_the_beam_change_no_result(order, reduce_at, without_rules):
    outcome = reduce_at("box", [(2, 1, 1, 2)], shelves=[without_rules("box")], beam=beam_of(width=4, order=order))
    assert said_by(outcome) == said_by(reduce_at("box", [(2, 1, 1, 2)]))


@needs_policy
@pytest.mark.parametrize(("target", "width", "reuse"), [
    ((2, 0, 2, 0, 1, 1, 0), 5, True),
    *(pytest.param(target, 20, False, marks=pytest.mark.slow)
      for target in ((1, 1, 1, 1, 1, 1, -3), (2, 0, 2, 0, 1, 1, 0), (1, 0, 1, -1, 2, 1, -5))),
])  # fmt: skip
def test_golden_values_by_beam_search(target, width, reuse, reduce_at, without_rules):
    """One prime is enough: what differs between primes is the replay of rules."""
    options = {"shelves": [without_rules("trianglebox")], "beam": beam_of(width=width, reuse=reuse), "paper_masters_only": True}
    outcome = reduce_at("trianglebox", [target], 1009, **options)
    coefficients = dict(zip(TRIANGLEBOX.paper_masters, map(int, GOLDEN[1009][target].split())))
    assert outcome.reductions == {target: {master: value for master, value in coefficients.items() if value}}
    counts = outcome.statistics
    assert counts["searches"] > 5 if reuse else counts["searches"] >= counts["integrals"] == len(outcome.paths)


PROBLEMS_OF_A_BEAM = {  # family, targets, published masters only?
    "box": ("box", [(2, 1, 1, 2)], False),
    "published": ("trianglebox", [(1, 0, 1, 0, 1, 1, -2)], True),
    "corners": ("trianglebox", [(1, 0, 1, 0, 1, 1, -2), (1, 0, 2, 0, 1, 0, -2)], False),
    "corners that stay": ("trianglebox", [(1, 0, 1, 1, 1, 1, -1), (1, 0, 1, 0, 2, 1, -1)], False),
}


@pytest.fixture(scope="module")
def by_beam(reduce_at):
    """Outcome of one process, sector by sector, with no store at all."""

    @functools.cache
    def run(problem):
        name, targets, published = PROBLEMS_OF_A_BEAM[problem]
        return reduce_at(name, targets, shelves=[], beam=beam_of(width=5), paper_masters_only=published)

    return run


WAYS_OF_A_BEAM = ["by fives", "auto", "auto, no time", "two processes", "two processes, by threes", "rules stored", "python integers"]


@needs_policy
@pytest.mark.parametrize(
    ("way", "problem"),
    [
        *((way, "box") for way in WAYS_OF_A_BEAM if way not in ("auto", "two processes")),
        *((way, "corners") for way in ("by fives", "two processes", "rules stored")),
        *(pytest.param(way, "published", marks=pytest.mark.slow) for way in WAYS_OF_A_BEAM),
        *(pytest.param(way, "corners that stay", marks=pytest.mark.slow) for way in WAYS_OF_A_BEAM),
    ],
)
def test_search_for_every_integral_is_the_same_in_every_way(way, problem, by_beam, reduce_at, shelves, pool, tmp_path, monkeypatch):
    """Also the paths: which one an integral gets depends on nothing but the integral."""
    name, targets, published = PROBLEMS_OF_A_BEAM[problem]
    expected, options = by_beam(problem), {"beam": beam_of(width=5), "paper_masters_only": published}
    assert not expected.unreduced and len(expected.paths) == expected.statistics["integrals"] > 10
    if way == "two processes":
        outcome = reduce_at(name, targets, shelves=[], executor=pool, **options)
    elif way == "rules stored":
        outcome = reduce_at(name, targets[::-1], shelves=shelves, **options)
    else:
        batch, seconds = {"by fives": (5, 1.0), "two processes, by threes": (3, 1.0), "auto, no time": (None, 1e-3)}.get(way, (None, 1.0))
        if way == "python integers":
            patch_rooms(monkeypatch, "ibp", "KEY_BITS", 8)
        executor = pool if "processes" in way else None
        outcome = run_steps(tmp_path / "run", name, targets, batch, seconds, executor, **options)
    assert (outcome.reductions, outcome.masters, outcome.unreduced) == (expected.reductions, expected.masters, [])
    if way in ("two processes", "rules stored"):
        assert outcome.paths == expected.paths
        assert all(outcome.statistics[name] == expected.statistics[name] for name in ("searches", "search_steps"))
    else:  # one-step tasks also reduce what cancels
        assert all(outcome.paths[target] == path for target, path in expected.paths.items())
        assert len(outcome.paths) == outcome.statistics["integrals"]


@pytest.mark.slow
@needs_policy
def test_corners_stand_for_the_same_whichever_engine(by_beam, reduce_at):
    """Where corners stay the engines may express a result through other ones; through the published masters it is the same."""
    _, targets, _ = PROBLEMS_OF_A_BEAM["corners that stay"]
    results = by_beam("corners that stay").reductions, reduce_at("trianglebox", targets).reductions
    extra = sorted({term for result in results for line in result.values() for term in line} - set(TRIANGLEBOX.paper_masters))
    assert extra and all(set(term) <= {0, 1} for term in extra)
    through = reduce_at("trianglebox", extra, paper_masters_only=True).reductions
    published = reduce_at("trianglebox", targets, paper_masters_only=True).reductions
    for target, line in ((target, result[target]) for result in results for target in targets):
        assert combine(*((value, through.get(term, {term: 1})) for term, value in line.items())) == published[target]


def test_helpers_find_the_same_paths():
    """A task with two processors shares the positions of each step."""
    family, target = BUILT_IN_FAMILIES["box"], (2, 1, 1, 2)
    equations, generic, layout = equations_of("box"), generic_equations(family), layout_for([target], family.n)
    sector, nonzero = Sector(layout, bits_of(target)), find_nonzero_sectors(generic, family.lines)
    task = SectorTask(
        layout, sector.bits, nonzero, equations, generic, SectorKnowledge(), ((1, 1, 1, 1),), {},
        sector.encode(np.array([target])), np.ones((1, 1), np.int64), beam=beam_of("random", width=5),
    )  # fmt: skip
    one, two = (with_cpus(cpus, reduce_sector, task) for cpus in (1, 2))
    assert one.paths == two.paths != {} and one.counts == two.counts and one.masters == two.masters
    assert one.counts["search_steps"] > one.counts["searches"] > 1


TRIANGLE_BY_BEAM = ["--integral=1,0,1,0,1,1,-1", "--paper-masters-only", "--engine=beam", "--beam-width=5", f"--policy={SHIPPED_POLICY}"]


@needs_policy
def test_rules_found_by_a_beam_serve_the_other_engine(place):
    words = [*TRIANGLE_BY_BEAM, "--store", "s"]
    beam = reduced(*words)
    assert beam["statistics"]["rules"] > 0 and beam["statistics"]["searches"] > 0
    before = snapshot(place)[Path("s")]
    again = reduced(*words, "--no-rules")
    assert again["statistics"]["searches"] >= again["statistics"]["integrals"] and again["final_expr"] == beam["final_expr"]
    assert rules_in(known(place / "s")) and snapshot(place)[Path("s")] == before
    rules = reduced(*TRIANGLE_BY_BEAM[:2], "--store", "s")
    assert rules["statistics"]["rules"] == rules["statistics"]["searches"] == 0 and rules["final_expr"] == beam["final_expr"]


@pytest.mark.parametrize("more", [[], ["--batch", "2", "--work-dir", "w"]], ids=["sectors", "one-step tasks"])
def test_search_for_every_integral_uses_and_stores_no_rules_of_the_search_for_masters(more, place):
    words = [*BUBBLE, "--store", "s", *more]
    pure = reduced(*words, "--engine", "beam", "--policy", "fixed", "--no-rules")
    assert pure["statistics"]["rules"] == 0 and pure["statistics"]["searches"] >= pure["statistics"]["integrals"] > 5
    stored = known(place / "s", BUILT_IN_FAMILIES["bubble"])
    assert rules_in(stored) == set() and all(sector.masters is not None for sector in stored.sectors.values())
    assert reduced(*words)["final_expr"] == pure["final_expr"]


@needs_policy
@pytest.mark.parametrize("more", [[], ["--batch", "2", "--work-dir", "w"]], ids=["sectors", "one-step tasks"])
def test_too_few_steps_leave_integrals_that_are_listed(more, place, capsys):
    words = [*TRIANGLE_BY_BEAM, "--cold", "--no-rules"]
    line = said(capsys, [*words, "--max-steps", "1", "--output", "r.pkl", "--quiet", "--paths", "p", *more], 1)
    assert line.count("\n") == 1 and "not reduced" in line and "r.pkl" in line and "--max-steps" in line
    result = load_builtins(Path("r.pkl").read_bytes())
    assert not result["success"] and result["unreduced"]
    assert set(result["final_expr"]) - set(TRIANGLEBOX.paper_masters) == set(result["unreduced"])
    through = {
        term: reduced(f"--integral={','.join(map(str, term))}", "--paper-masters-only")["final_expr"] for term in result["unreduced"]
    }
    parts = ((value, through.get(term, {term: 1})) for term, value in result["final_expr"].items())
    assert combine(*parts, p=1009) == reduced(*TRIANGLE_BY_BEAM[:2])["final_expr"]
    assert "each of which gives its expression" in said(capsys, ["verify", "p"], 0)


def test_beam_search_that_cannot_end_gives_up():
    """A master: no combination of identities expresses it through lighter integrals."""
    master = (1, 0, 1, 0, 1, 0, 0)
    finder = RuleFinder(sector_for("trianglebox", master), equations_of("trianglebox"))
    rule, steps = search_path(finder, np.array(master), finder.structure, beam_of("fixed", width=2, max_steps=25))
    assert rule is None and 0 < steps <= 25


@pytest.mark.parametrize("order", ["policy", "weight", "size"])
def test_beam_keeps_the_best_of_each_content_and_stops_at_the_first_end(order):
    """Against a graph that is known: positions are numbers, their content is the number."""
    asked = []

    def node(number, score, *actions):
        return Position(tuple(actions), {number: 1} if number else {}, {}, score)

    graph = {
        0: [node(5, -3.0, 1), node(5, -1.0, 2), node(7, -2.0, 3), node(9, -9.0, 4)],
        5: [node(7, -1.5, 2, 1), node(4, -4.0, 2, 2)],
        7: [node(5, -2.5, 3, 1), node(3, -2.2, 3, 2)],
        3: [node(0, -6.0, 3, 2, 1), node(0, -5.0, 3, 2, 2)],
        4: [],
    }

    def children(positions):
        asked.append([(p.heaviest, p.score) for p in positions])
        return [child for p in positions for child in graph[p.heaviest]]

    beam = Beam(2, 10, order)
    finished, steps = beam_search(beam, children)
    assert asked == [[(0, 0.0)], [(5, -1.0), (7, -2.0)], [(3, -2.2), (4, -4.0)]] and steps == 3  # 5 and 7 are not visited twice
    assert [(child.actions, child.score) for child in finished] == [((3, 2, 2), -5.0), ((3, 2, 1), -6.0)]
    assert beam_search(dataclasses.replace(beam, max_steps=2), children) == ([], 2)


BEAM_STEPS = [*BOX_BY_BEAM, "--batch", "2", "--output", "r.pkl", "--paths", "p", "--work-dir", "it's work"]


@pytest.mark.parametrize("local", ["1", "2"])
def test_killed_beam_run_goes_on_and_its_paths_are_complete(local, bare, place, paths_file, capsys):
    environment = os.environ | {"PYTHONPATH": str(bare)}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-c", HELD, str(bare / "ibp_reduce.py"), "12", *BEAM_STEPS, "--local", local]
    with ended(subprocess.Popen(command, cwd=place, env=environment, text=True, **pipes)) as run:
        assert run.stdout.readline() == "held\n", run.communicate()
        run.kill()
    done = done_in("it's work/run.journal")
    assert done and not Path("p").exists() and not Path("r.pkl").exists()
    refusal = said(capsys, [*BEAM_STEPS, "--beam-width", "2"], 2)  # another search is another run
    assert refusal.count("\n") == 1 and "--fresh" in refusal
    assert f"going on: {len(done):,} integrals" in run_and_hear(capsys, BEAM_STEPS)
    result = load_builtins(Path("r.pkl").read_bytes())
    assert result["final_expr"] == load_builtins((paths_file.parent / "r.pkl").read_bytes())["final_expr"]
    paths, expected = (
        {tuple(line["integral"]): line for line in map(json.loads, file.read_text().splitlines()[1:])} for file in (Path("p"), paths_file)
    )
    assert len(paths) == result["statistics"]["integrals"] and all(paths[target] == line for target, line in expected.items())
    assert not Path("it's work/run.journal").exists()
