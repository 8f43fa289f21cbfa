"""The guide: it changes what a search costs and never what it finds."""

import itertools
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import bits_of, patch_rooms, point_of, run_steps, said_by, ship_from
from support_learning import guide_ground, guide_of, weights_file

import ibp_reduce
from executors.base import InlineExecutor
from ibp.beam import Beam
from ibp.console import Progress
from ibp.controller import Controller
from ibp.discovery import RuleFinder
from ibp.families import BUILT_IN_FAMILIES
from ibp.guide import GUIDE_WIDTH, GUIDED_LEVEL, SectorGuide, product
from ibp.problems import Problem
from ibp.store import Store
from ibp.weights import pack_guide

GUIDED_TARGETS = {  # reduced from nothing, in seconds
    "bubble": [(3, 2), (2, -2)],
    "box": [(2, 1, 1, 1), (1, 3, 1, -1)],
    "sunrise": [(2, 1, 2, -1, -1)],
    "trianglebox": [(1, 0, 2, 0, 1, 1, -1), (2, 0, 2, 0, 1, 1, 0)],
    "ladder3": [(2, 0, 0, 0, 0, 1, 1, 1, -1)],
}


def inverted(weights):
    """Weights with minus the scores of others."""
    turned = {name: weights[name].copy() for name in weights}
    for name in ("row_score", "near"):
        turned[name] *= -1
    turned["token_out"][:, GUIDE_WIDTH:] *= -1
    turned["token_out_bias"][GUIDE_WIDTH:] *= -1
    return turned


@pytest.mark.parametrize("name", GUIDED_TARGETS)
def test_a_guide_changes_no_result(name, reduce_at, trained_guide):
    fixed = reduce_at(name, GUIDED_TARGETS[name], shelves=[], paper_masters_only=True)
    assert not fixed.unreduced and all(fixed.reductions.values())
    for weights in (trained_guide[0], guide_of(), inverted(trained_guide[0])):
        guided = reduce_at(name, GUIDED_TARGETS[name], shelves=[], paper_masters_only=True, guide=pack_guide(weights, {}))
        assert (guided.reductions, guided.masters, guided.unreduced) == (fixed.reductions, fixed.masters, fixed.unreduced)
        assert guided.statistics["rows"] != fixed.statistics["rows"] > 0


def test_a_guide_changes_no_result_of_one_step_tasks(tmp_path, trained_guide):
    target = [(2, 1, 1, -1, -1)]
    fixed = run_steps(tmp_path / "fixed", "sunrise", target)
    for number, weights in enumerate((trained_guide[0], guide_of())):
        guided = run_steps(tmp_path / str(number), "sunrise", target, guide=pack_guide(weights, {}))
        assert said_by(guided) == said_by(fixed) and guided.statistics["rows"] > 0


def test_a_trained_guide_saves_rows_and_finds_what_it_found_before(reduce_at, trained_guide):
    guide = pack_guide(trained_guide[0], {})
    fixed, guided, again = (
        reduce_at("trianglebox", [(1, 1, 1, 1, 1, 1, -1)], paper_masters_only=True, shelves=[], guide=own) for own in (None, guide, guide)
    )
    assert guided.reductions == fixed.reductions
    assert guided.statistics["rows"] < fixed.statistics["rows"]
    assert guided.statistics["integrals"] < 1.5 * fixed.statistics["integrals"]
    assert guided.statistics == again.statistics


def test_rows_are_counted(reduce_at, monkeypatch):
    built = []
    find_in = RuleFinder.find_in

    def counting(self, space, target, level, equations, rows=None):
        seeds = np.repeat(target + space.seeds, equations.count, axis=0) if rows is None else rows
        built.append(sum(bits_of(seed) == self.sector.bits for seed in seeds.tolist()) if rows is None else len(rows))
        return find_in(self, space, target, level, equations, rows)

    monkeypatch.setattr(RuleFinder, "find_in", counting)
    for guide in (None, pack_guide(guide_of(), {})):
        built.clear()
        outcome = reduce_at("box", [(2, 1, 1, 2)], shelves=[], guide=guide)
        assert outcome.statistics["rows"] == sum(built) > 500


def test_corners_and_beams_have_no_guide(reduce_at):
    targets = [(2, 0, 2, 0, 1, 1, 0)]
    fixed = reduce_at("trianglebox", targets, shelves=[])
    guided = reduce_at("trianglebox", targets, shelves=[], guide=pack_guide(guide_of(), {}))
    assert (fixed.reductions, fixed.statistics["rows"]) == (guided.reductions, guided.statistics["rows"])
    beam = Beam(5, 10**6, "size", True, "fixed")
    plain, other = (
        reduce_at("bubble", [(2, 1)], shelves=[], beam=beam, guide=guide) for guide in (None, pack_guide(guide_of(), {}))
    )  # only masters are searched with it
    assert plain.reductions == other.reductions


def test_what_is_known_needs_no_guide(reduce_at, tmp_path, monkeypatch):
    patch_rooms(monkeypatch, "ibp", "ROWS_WORTH_A_GUIDE", 0)
    shelf = Store(tmp_path / "store.shelf")
    reduce_at("box", [(2, 1, 1, 2)], shelves=[shelf])
    said = []
    progress = Progress(quiet=True)
    progress.say = said.append
    for targets in ([(2, 1, 1, 2)], [(2, 1, 1, 2), (2, 1, 1, 1)]):
        problem = Problem(BUILT_IN_FAMILIES["box"], point_of(BUILT_IN_FAMILIES["box"]), tuple(targets), why_no_guide="no guide")
        Controller(problem, InlineExecutor(), [shelf], progress).run()
    assert said == []
    Controller(problem, InlineExecutor(), [], progress).run()
    assert said == ["no guide"]


def test_missing_weights_are_said_once_and_the_order_is_fixed(tmp_path, monkeypatch, capsys):
    ship_from(monkeypatch, tmp_path / "nowhere")
    patch_rooms(monkeypatch, "ibp", "ROWS_WORTH_A_GUIDE", 0)
    words = ["--family", "box", "--integral", "2,1,1,2", "--quiet", "--cold", "--work-dir", str(tmp_path / "w")]
    rows = []
    for more, lines in (([], 1), (["--policy", "fixed"], 0), (["--batch", "5"], 1)):
        assert ibp_reduce.main([*words, *more, "--output", str(tmp_path / "r.pkl")]) == 0
        error = capsys.readouterr().err
        assert error.count("fixed order") == error.count("\n") == lines
        rows.append(pickle.loads((tmp_path / "r.pkl").read_bytes())["statistics"]["rows"])
    assert rows[0] == rows[1] > 0
    assert ibp_reduce.main([*words, "--policy", str(tmp_path / "none.pt")]) == 2
    assert "none.pt" in capsys.readouterr().err


def test_a_guided_reduction_imports_no_torch(tmp_path):
    weights = weights_file(tmp_path / "p.pt", pack_guide(guide_of(), {}))
    words = ["--family", "box", "--integral", "2,1,1,2", "--cold", "--policy", weights, "--work-dir", str(tmp_path)]
    code = f"import sys, ibp_reduce; code = ibp_reduce.main({[*words, '--output', str(tmp_path / 'r.pkl')]!r}); "
    code += "sys.exit(code or 10 * ('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(ibp_reduce.__file__).parent, capture_output=True).returncode == 0


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 500, 1), (3000, 31, 32), (40, 55, 4000), (3, 2, 300_000)])
def test_a_product_in_pieces(shape):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=shape[:2]), rng.normal(size=shape[1:])
    assert np.allclose(product(a, b), a @ b)


def test_the_guide_chooses_half_of_the_rows_in_the_sector(trained_guide):
    finder = guide_ground("trianglebox")
    guide = SectorGuide(trained_guide[0], finder)
    for level, target in itertools.product(range(GUIDED_LEVEL + 1), ((1, 1, 1, 1, 1, 1, 0), (2, 1, 1, 1, 1, 1, 0), (3, 2, 4, 2, 2, 5, -4))):
        space = finder.space(level, np.array(target))
        inside = space.rows_inside(finder.sector, np.array(target)).tolist()
        seeds = [(np.array(target) + seed > 0).tolist() == finder.sector.positive.tolist() for seed in space.seeds]
        assert inside == [row for row in range(space.rows) if seeds[row // space.operators]]
        rows = guide.best(space, level, np.array(target)).tolist()
        assert set(rows) <= set(inside) and rows == sorted(set(rows))
        assert len(rows) == (max(len(inside) // 2, 1) if inside else 0)
