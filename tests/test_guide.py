"""guide."""

import io
import itertools
import json
import math
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import TRIANGLEBOX, bits_of, patch_rooms, point_of, run_steps, said_by, ship_from
from support_oracles import few_examples

import ibp_reduce
from executors.inline import InlineExecutor
from ibp.beam import Beam
from ibp.console import Progress
from ibp.controller import Controller
from ibp.discovery import RuleFinder
from ibp.elimination import eliminate_heavier, is_reducible
from ibp.errors import PolicyRefused
from ibp.examples import local_rule, random_target
from ibp.families import BUILT_IN_FAMILIES
from ibp.guide import GUIDE_SHAPES, GUIDE_WIDTH, SectorGuide, describe_rows, guide_rows, guide_scores, product
from ibp.identities import derive_identities, evaluate_identities, generic_point
from ibp.learning import first_guide, guide_loss, measure_guide, train_guide
from ibp.policy import make_network, pack_policy
from ibp.problems import Problem
from ibp.rules import NEIGHBOURHOODS, border_distance, seeds_around
from ibp.sectors import Layout, Sector
from ibp.store import Store
from ibp.training_data import pack_rules, unpack_rules
from ibp.weights import GUIDE_KIND, GUIDE_MEMBER, load_guide, load_policy, pack_guide, read_guide, unpack_policy

GUIDED_TARGETS = {  # reduced from nothing, in seconds
    "bubble": [(3, 2), (2, -2)],
    "box": [(2, 1, 1, 1), (1, 3, 1, -1)],
    "sunrise": [(2, 1, 2, -1, -1)],
    "trianglebox": [(1, 0, 2, 0, 1, 1, -1), (2, 0, 2, 0, 1, 1, 0)],
    "ladder3": [(2, 0, 0, 0, 0, 1, 1, 1, -1)],
}


def guide_of(scale=1.0, seed=0):
    """Weights that have learned nothing."""
    rng = np.random.default_rng(seed)
    return {name: (scale * rng.normal(size=shape)).astype(np.float32) for name, shape in GUIDE_SHAPES.items()}


def inverted(weights):
    """Weights with minus the scores of others."""
    turned = {name: weights[name].copy() for name in weights}
    for name in ("row_score", "near"):
        turned[name] *= -1
    turned["token_out"][:, GUIDE_WIDTH :] *= -1
    turned["token_out_bias"][GUIDE_WIDTH :] *= -1
    return turned


def guide_ground(name, bits=None):
    """A rule finder for a sector of a family, by default the highest one, at the generic point."""
    family = BUILT_IN_FAMILIES[name]
    generic = evaluate_identities(derive_identities(family), generic_point(family))
    bits = (1 << family.lines) - 1 if bits is None else bits
    return RuleFinder(Sector(Layout(family.n, 30, 30), bits), generic)


@pytest.fixture(scope="session")
def lessons():
    """What a guide learns from, of three sectors of trianglebox, as a training file has it."""
    parts = []
    for bits in (0b011110, 0b111101, 0b110110):
        finder, rng = guide_ground("trianglebox", bits), np.random.default_rng(bits)
        bases = [random_target(finder.sector, rng) for _ in range(60)]
        parts.append(
            pack_rules(TRIANGLEBOX, finder, [(base, rule) for base in bases if (rule := local_rule(finder, base))])
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.fixture(scope="session")
def trained_guide(lessons, one_torch_thread):
    """Weights after some passes through these lessons, and what they were before."""
    import torch

    first, rng = first_guide(0), np.random.default_rng(0)
    weights = first_guide(0)
    optimizer = torch.optim.AdamW(weights.values(), 5e-3)
    for _ in range(30):
        assert train_guide(weights, optimizer, unpack_rules(lessons), rng)
    return {name: values.detach().numpy() for name, values in weights.items()}, first


def packed_guide(weights, **families):
    return pack_guide(weights, families)


def weights_file(path, guide=None):
    """A weights file with this as its guide."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
        if guide is not None:
            archive.writestr(GUIDE_MEMBER, guide)
    return str(path)


@pytest.mark.parametrize("name", GUIDED_TARGETS)
def test_a_guide_changes_no_result(name, reduce_at, trained_guide):
    fixed = reduce_at(name, GUIDED_TARGETS[name], shelves=[], paper_masters_only=True)
    assert not fixed.unreduced and all(fixed.reductions.values())
    for weights in (trained_guide[0], guide_of(), inverted(trained_guide[0])):
        guided = reduce_at(name, GUIDED_TARGETS[name], shelves=[], paper_masters_only=True, guide=packed_guide(weights))
        assert (guided.reductions, guided.masters, guided.unreduced) == (fixed.reductions, fixed.masters, fixed.unreduced)
        assert guided.statistics["rows"] != fixed.statistics["rows"] > 0


def test_a_guide_changes_no_result_of_one_step_tasks(tmp_path, trained_guide):
    target = [(2, 1, 1, -1, -1)]
    fixed = run_steps(tmp_path / "fixed", "sunrise", target)
    for number, weights in enumerate((trained_guide[0], guide_of())):
        guided = run_steps(tmp_path / str(number), "sunrise", target, guide=packed_guide(weights))
        assert said_by(guided) == said_by(fixed) and guided.statistics["rows"] > 0


def test_a_trained_guide_saves_rows_and_finds_what_it_found_before(reduce_at, trained_guide):
    targets = {"paper_masters_only": True, "shelves": []}
    fixed = reduce_at("trianglebox", [(1, 1, 1, 1, 1, 1, -1)], **targets)
    guided, again = (reduce_at("trianglebox", [(1, 1, 1, 1, 1, 1, -1)], **targets, guide=packed_guide(trained_guide[0])) for _ in range(2))
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
    for guide in (None, packed_guide(guide_of())):
        built.clear()
        outcome = reduce_at("box", [(2, 1, 1, 2)], shelves=[], guide=guide)
        assert outcome.statistics["rows"] == sum(built) > 500


def test_corners_and_beams_have_no_guide(reduce_at):
    targets = [(2, 0, 2, 0, 1, 1, 0)]
    fixed = reduce_at("trianglebox", targets, shelves=[])
    guided = reduce_at("trianglebox", targets, shelves=[], guide=packed_guide(guide_of()))
    assert (fixed.reductions, fixed.statistics["rows"]) == (guided.reductions, guided.statistics["rows"])
    beam = Beam(5, 10**6, "size", True, "fixed")
    plain, other = (
        reduce_at("bubble", [(2, 1)], shelves=[], beam=beam, guide=guide) for guide in (None, packed_guide(guide_of()))
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
    weights = weights_file(tmp_path / "p.pt", packed_guide(guide_of()))
    words = ["--family", "box", "--integral", "2,1,1,2", "--cold", "--policy", weights, "--work-dir", str(tmp_path)]
    code = f"import sys, ibp_reduce; code = ibp_reduce.main({[*words, '--output', str(tmp_path / 'r.pkl')]!r}); "
    code += "sys.exit(code or 10 * ('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(ibp_reduce.__file__).parent, capture_output=True).returncode == 0


def damaged_guides():
    good = guide_of()
    not_finite = good | {"row_mix": good["row_mix"] * np.nan}
    lists = io.BytesIO()
    np.savez(
        lists, header=np.array(json.dumps({"kind": GUIDE_KIND, "format": 1, "families": {}})), row_in=np.array([{}], object)
    )
    foreign = io.BytesIO()
    np.savez(foreign, header=np.array(json.dumps({"kind": GUIDE_KIND, "format": 99, "families": {}})), **good)

    def with_header(content):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("header.npy", content)
        return file.getvalue()

    def claiming(shape):
        text = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).ljust(117).encode() + b"\n"
        return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text

    nested = io.BytesIO()
    np.savez(nested, header=np.array("[" * 100_000), **good)
    return {
        "guide (OverflowError)": with_header(claiming((10**30,))),
        "MemoryError)": with_header(claiming((10**15,))),
        "guide (RecursionError)": nested.getvalue(),
        "no guide": None,
        "damaged": packed_guide(good)[:-50],
        "finite": packed_guide(not_finite),
        "shapes": packed_guide({name: good[name] for name in list(good)[1:]}),
        "guide (ValueError)": lists.getvalue(),
        "format 99": foreign.getvalue(),
        "another family": packed_guide(good, box="0" * 64),
    }


@pytest.mark.parametrize("what", damaged_guides())
def test_damaged_guides_are_refused_in_one_line(what, tmp_path):
    with pytest.raises(PolicyRefused, match=re.escape(what)) as refused:
        read_guide(weights_file(tmp_path / "p.pt", damaged_guides()[what]), BUILT_IN_FAMILIES["box"])
    assert "p.pt" in str(refused.value) and "\n" not in str(refused.value)


def test_what_is_no_weights_file_is_refused(tmp_path):
    for content in (b"", b"PK\x03\x04 no zip", weights_bytes(tmp_path)[:-30]):
        (tmp_path / "p.pt").write_bytes(content)
        with pytest.raises(PolicyRefused, match="p.pt"):
            read_guide(str(tmp_path / "p.pt"), BUILT_IN_FAMILIES["box"])
    with pytest.raises(PolicyRefused, match="directory"):
        read_guide(str(tmp_path), BUILT_IN_FAMILIES["box"])


def weights_bytes(tmp_path):
    return Path(weights_file(tmp_path / "whole.pt", packed_guide(guide_of()))).read_bytes()


def test_policy_and_guide_share_a_file(tmp_path):
    pytest.importorskip("torch")
    network, weights = make_network(8), guide_of()
    content = pack_policy(network, {"box": BUILT_IN_FAMILIES["box"].identifier}, {}, weights)
    (tmp_path / "p.pt").write_bytes(content)
    loaded, record = unpack_policy(content)
    assert all(bool((values == loaded.state_dict()[name]).all()) for name, values in network.state_dict().items())
    read = load_guide(read_guide(str(tmp_path / "p.pt"), BUILT_IN_FAMILIES["box"]))
    assert read.keys() == weights.keys() and all((read[name] == weights[name]).all() for name in weights)
    assert record["families"] == {"box": BUILT_IN_FAMILIES["box"].identifier}


def test_arrays_and_tensors_give_the_same_scores(lessons):
    torch = pytest.importorskip("torch")
    weights = guide_of(0.3)
    tensors = {name: torch.from_numpy(values) for name, values in weights.items()}
    for lesson in unpack_rules(lessons):
        some = np.arange(min(len(lesson.targets), 3))
        theirs = lesson.scored(tensors, some)[0].numpy()
        seeds = seeds_around(NEIGHBOURHOODS[lesson.level], lesson.sector)
        arrays = describe_rows(lesson.sector, lesson.equations, seeds, lesson.level)
        parts = guide_rows(weights, arrays)
        for line, target in enumerate(lesson.targets[some]):
            near = border_distance(target, lesson.sector.positive)[None]
            ours = guide_scores(weights, arrays, parts, near)[0]
            assert np.abs(ours - theirs[line]).max() < 1e-3 * np.abs(theirs[line]).max()


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 500, 1), (3000, 31, 32), (40, 55, 4000), (3, 2, 300_000)])
def test_a_product_in_pieces(shape):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=shape[:2]), rng.normal(size=shape[1:])
    assert np.allclose(product(a, b), a @ b)


def test_the_guide_chooses_half_of_the_rows_in_the_sector(trained_guide):
    finder = guide_ground("trianglebox")
    guide = SectorGuide(trained_guide[0], finder)
    for level, target in itertools.product(range(3), ((1, 1, 1, 1, 1, 1, 0), (2, 1, 1, 1, 1, 1, 0), (3, 2, 4, 2, 2, 5, -4))):
        space = finder.space(level, np.array(target))
        inside = space.rows_inside(finder.sector, np.array(target)).tolist()
        seeds = [(np.array(target) + seed > 0).tolist() == finder.sector.positive.tolist() for seed in space.seeds]
        assert inside == [row for row in range(space.rows) if seeds[row // space.operators]]
        rows = guide.best(space, level, np.array(target)).tolist()
        assert set(rows) <= set(inside) and rows == sorted(set(rows))
        assert len(rows) == (max(len(inside) // 2, 1) if inside else 0)


def test_a_system_has_the_entries_of_the_identities_in_the_sector():
    finder = guide_ground("box")
    equations, sector, p = finder.structure, finder.sector, finder.structure.prime
    for target in ((1, 1, 1, 1), (2, 1, 3, 1), (2, 2, 2, 2)):
        space = finder.space(2, np.array(target))
        rows = space.rows_inside(sector, np.array(target))
        system = space.system(sector, equations, np.array(target), rows)
        found = {(r, tuple(space.columns[c].tolist())): v for r, c, v in zip(*(part.tolist() for part in system))}
        kept, expected = {r for r, _ in found}, {}
        for r in kept:
            seed = np.array(target) + space.seeds[r // space.operators]
            for term in np.flatnonzero(equations.operator == r % space.operators):
                value = int(equations.coefficient[term, 0] + (equations.coefficient[term, 1:] * seed).sum()) % p
                column = seed + equations.shift[term] - np.array(target)
                if value and sector.contains(np.array(target) + column) and column @ sector.weights >= 0:
                    expected[r, tuple(column.tolist())] = value
        assert found == expected != {}
        some = set(zip(*(part.tolist() for part in space.system(sector, equations, np.array(target), rows[::2])[:2])))
        assert some <= set(zip(*(part.tolist() for part in system[:2])))


@few_examples
@given(st.integers(0, 10**6))
def test_failure_is_seen_without_combinations(seed):
    rng = np.random.default_rng(seed)
    for _ in range(60):
        count, columns = rng.integers(1, 14), rng.integers(1, 14)
        matrix = {}
        for row in range(count):
            places = rng.choice(columns + 1, rng.integers(1, min(columns + 1, 5) + 1), replace=False)
            matrix[row] = {int(c): int(rng.integers(1, 5)) for c in places}
        before = {row: dict(line) for row, line in matrix.items()}
        combinations = eliminate_heavier(matrix, int(columns), 5)
        assert is_reducible(matrix, int(columns), 5) == bool(combinations)
        assert matrix == before


def test_a_guide_learns(lessons, trained_guide):
    weights, first = trained_guide
    unpacked = unpack_rules(lessons)
    assert sum(len(lesson.targets) for lesson in unpacked) == len(lessons["rule_level"])
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(values) for name, values in weights.items()}
    held_out = [lesson for lesson in unpacked if lesson.held_out.any()]
    losses = [
        np.mean([float(guide_loss(some, lesson, np.flatnonzero(lesson.held_out)).detach()) for lesson in held_out])
        for some in (tensors, first)
    ]
    assert losses[0] < 0.7 * losses[1]
    assert measure_guide(tensors, unpacked) > max(0.5, measure_guide(first, unpacked))


def test_a_guide_is_trained_with_the_policy(one_torch_thread, tmp_path):
    words = ["--family", "box", "--train-policy", "--trajectories", "60", "--epochs", "2", "--device", "cpu", "--quiet"]
    assert ibp_reduce.main([*words, "--work-dir", str(tmp_path)]) == 0
    header, *lines = (tmp_path / "policy.csv").read_text().splitlines()
    shares = [float(dict(zip(header.split(","), line.split(",")))["guide"]) for line in lines]
    assert len(shares) == 2 and all(0 <= share <= 1 for share in shares)
    weights = load_guide(read_guide(str(tmp_path / "policy.pt"), BUILT_IN_FAMILIES["box"]))
    untrained = first_guide(0)
    assert all(np.abs(values - untrained[name].detach().numpy()).max() > 1e-4 for name, values in weights.items())
    assert load_policy((tmp_path / "policy.pt").read_bytes()).network is not None


def test_lessons_are_the_rules_that_were_found(lessons):
    for lesson in unpack_rules(lessons):
        seeds = seeds_around(NEIGHBOURHOODS[lesson.level], lesson.sector)
        for target, rows in zip(lesson.targets[:4], lesson.rows):
            found = local_rule(guide_ground("trianglebox", lesson.sector.bits), target)
            used = {(int(row) % lesson.equations.count, tuple(seeds[row // lesson.equations.count].tolist())) for row in rows}
            assert used == set(found.rows) and found.level == lesson.level


@pytest.mark.parametrize("name", ["rule_target", "rule_rows", "ground"])
def test_lessons_that_do_not_fit_are_refused(lessons, name):
    damaged = lessons | {name: lessons[name].astype(np.int64) * 0 + 10**6}
    with pytest.raises((ValueError, IndexError)):
        unpack_rules(damaged)


def test_a_loss_that_is_no_number_ends_the_training_of_the_guide(lessons):
    torch = pytest.importorskip("torch")
    weights = first_guide(0)
    with torch.no_grad():
        weights["row_score"] += math.inf
    assert not train_guide(
        weights, torch.optim.AdamW(weights.values()), unpack_rules(lessons), np.random.default_rng(0)
    )
