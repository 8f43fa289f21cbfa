"""Exact coefficients of reductions."""

import itertools
import pickle
import shlex
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from support import P31, PUBLISHED, TRIANGLEBOX, check_refused, exit_code, patch_rooms, point_of, residue, said, snapshot
from support_executors import fail
from support_oracles import (
    IN_D,
    OTHER_PRIMES,
    check_against_direct_runs,
    exact_result,
    exact_value,
    integral_with,
    massless_banana,
    needs_stored_rules,
    numerical,
)

from ibp.families import BUILT_IN_FAMILIES, cut_lines
from ibp.samples import unpack_points
from ibp.targets import read_targets


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("bits", "square"), [(14, "m1"), (21, "m3"), (28, "m2"), (37, "m1")])
def test_sunrises_in_d(bits, square):
    """Up to six dots: equal to ratios of Gamma functions at more points than the functions have coefficients."""
    lines = [i for i in range(7) if bits >> i & 1]
    some = [(1, 1, 1), (2, 1, 1), (1, 3, 1), (2, 2, 2), (3, 1, 3), (1, 2, 5), (7, 1, 1), (3, 3, 3), (4, 2, 3)]
    cases = {integral_with(7, lines, indices): indices for indices in some}
    Path("targets").write_text("\n".join(",".join(map(str, target)) for target in cases))
    result = exact_result("--integrals", "targets", "--symbols", f"d,{square}")
    corner_of = tuple(bits >> i & 1 for i in range(7))
    for target, indices in cases.items():
        (text,) = result["reductions"][target].values()
        assert list(result["reductions"][target]) == [corner_of]
        for k in range(60):
            d, m = k + Fraction(3, 11), Fraction(k + 2, 3)
            assert exact_value(text, d=d, **{square: m}) == massless_banana(indices, m, d)


@needs_stored_rules
@pytest.mark.parametrize("symbols", ["d", "d,m2,m3", "d,m1,m2,m3", "m3"])
def test_functions_equal_direct_runs(symbols, reduce_at):
    result = exact_result(*PUBLISHED, "--symbols", symbols)
    names = symbols.split(",")
    check_against_direct_runs(result, reduce_at, TRIANGLEBOX, names, 6, paper_masters_only=True)  # two for each prime
    assert result["prime"] is None and result["success"] and result["original_integral"] == (1, 1, 1, 1, 1, 1, -3)
    assert result["d"] == ("d" if "d" in names else 41)
    assert result["kinematics"] == {name: name if name in names else int(value) for name, value in TRIANGLEBOX.point}
    assert set(result["final_expr"]) <= set(result["masters"]) and all(type(c) is str for c in result["final_expr"].values())
    import sympy

    for text in result["final_expr"].values():
        assert {str(s) for s in sympy.sympify(text).free_symbols} <= set(names)


@pytest.mark.parametrize(
    ("name", "target", "symbols"),
    [("bubble", "3,2", "d,m"), ("box", "1,2,1,1", "d,s,t"), ("trianglebox", "1,1,1,1,0,1,-1", "d,m1")],  # corners stay in the last
)
def test_functions_of_other_families(name, target, symbols, reduce_at):
    result = exact_result("--family", name, f"--integral={target}", "--symbols", symbols)
    check_against_direct_runs(result, reduce_at, BUILT_IN_FAMILIES[name], symbols.split(","), 6)


@needs_stored_rules
@pytest.mark.parametrize("words", [[], ["--d", "7/3", "--kinematics", "m1=1/2,m2=-5,m3=11/7"]], ids=["default", "fractions"])
def test_rational_numbers(words, reduce_at):
    result = exact_result(*PUBLISHED, "--exact", *words)
    point = {"d": "7/3", "m1": "1/2", "m2": "-5", "m3": "11/7"} if words else {}
    for p in (*OTHER_PRIMES, P31):
        direct = reduce_at("trianglebox", [(1, 1, 1, 1, 1, 1, -3)], point=point_of(TRIANGLEBOX, p, **point), paper_masters_only=True)
        assert {m: residue(c, p) for m, c in result["final_expr"].items()} == direct.reductions[1, 1, 1, 1, 1, 1, -3]
    assert all(type(c) is Fraction for c in result["final_expr"].values()) and result["prime"] is None
    assert result["d"] == ("7/3" if words else 41)


def test_integral_that_is_zero_and_one_that_is_a_master():
    Path("targets").write_text("1,1,0,0,0,0,0\n0,1,1,1,0,0,0\n")
    for words in (["--exact"], ["--symbols", "d,m1"]):
        result = exact_result("--integrals", "targets", *words)
        assert result["reductions"][1, 1, 0, 0, 0, 0, 0] == {}
        assert {m: Fraction(c) for m, c in result["reductions"][0, 1, 1, 1, 0, 0, 0].items()} == {(0, 1, 1, 1, 0, 0, 0): 1}


MIXED = """\
whole: 3*I[2,1,1,-1,-1] - (d-4)^2/s*I[1,2,1,0,-2] + I[1,1,0,-1,0]*m/(s - m)
uneven: I[2,1,1,0,0] + (d-2)*I[1,1,1,0,0]/5
1,1,1,-2,0
"""


@pytest.mark.parametrize("words", [["--exact"], ["--symbols", "d"], ["--symbols", "d,s,m"], ["--symbols", "d,s,m", "--symmetries"],
                                   ["--symbols", "m,d", "--masters", "masters"], ["--exact", "--cut", "1,2"],
                                   ["--symbols", "s,m", "--symmetries", "--masters", "masters"], ["--symbols", "d,m,s", "--cut", "2,1"]],
                         ids=" ".join)  # fmt: skip
def test_exact_is_modular_at_every_point(words, reduce_at):
    """Combinations, of terms with the same mass dimension and of different ones, in every basis, with symmetries, on cuts."""
    Path("wanted").write_text(MIXED)
    Path("masters").write_text("2,1,1,0,0\n1,0,1,0,0\n")
    family = BUILT_IN_FAMILIES["sunrise"]
    result = exact_result("--family", "sunrise", "--integrals", "wanted", *words)
    symbols = words[words.index("--symbols") + 1].split(",") if "--symbols" in words else []
    (request,) = read_targets("wanted", [family], "wanted")
    options = {"combinations": request.combinations, "symmetries": "--symmetries" in words}
    options["cut"] = sum(1 << int(i) - 1 for i in words[words.index("--cut") + 1].split(",")) if "--cut" in words else 0
    options["preferred_masters"] = ((2, 1, 1, 0, 0), (1, 0, 1, 0, 0)) if "--masters" in words else ()
    for number in range(6):
        found, point = numerical(result, number, symbols, family)
        direct = reduce_at("sunrise", request.targets, point=point, **options)
        assert found == direct.reductions and result["masters"] == direct.masters
    assert list(result["combinations"]) == ["whole", "uneven"] and result["combinations"]["uneven"][0] == ((2, 1, 1, 0, 0), "1")
    assert result.get("symmetries", False) == options["symmetries"]
    assert result.get("cuts", []) == ([cut_lines(options["cut"])] if options["cut"] else [])


def test_numbers_in_coefficients_are_put_in_first(place, capsys):
    """A pole at the given numbers is told, one that only the default of a symbol has is none; 0/0 at the point is no number."""
    Path("pole").write_text("amp: I[2,1]/(s-7)\n")
    for words in (["--exact"], ["--symbols", "d,m"]):
        line = said(capsys, ["--family", "bubble", "--integrals", "pole", *words, "--quiet"], 2)
        assert line.count("\n") == 1 and "pole, line 1: division by zero in '1/(s-7)'" in line
    assert set(exact_result("--family", "bubble", "--integrals", "pole", "--symbols", "s")["final_expr"]) == {(1, 1), (1, 0), (0, 1)}
    Path("pole").write_text("amp: (s-7)*I[2,1]/(s-7)\n")
    assert "division by zero" in said(capsys, ["--family", "bubble", "--integrals", "pole", "--exact", "--quiet"], 2)


@pytest.mark.parametrize(
    ("text", "says"),
    [("amp: x*I[1,1]", "undefined symbol 'x'"), ("amp: I[1,1]/(d-d)", "division by zero"), ("amp: I[1,1]\namp: I[2,1]", "line 2")],
)
@pytest.mark.parametrize("words", [["--exact"], ["--symbols", "d,s,m"], ["differentiate", "s"]], ids=" ".join)
def test_bad_combination_in_an_exact_run(text, says, words, place, capsys):
    (place / "wanted").write_text(text + "\n")
    check_refused([*words, "--family=bubble", "--integrals=wanted"], place, capsys, ["wanted, line", says])


def test_combination_that_cancels_is_zero():
    Path("wanted").write_text("none: I[2,1]*(s+m)^2 - s^2*I[2,1] - 2*s*m*I[2,1] - I[2,1]*m*m\n")
    for words in (["--exact"], ["--symbols", "d,s,m"]):
        result = exact_result("--family", "bubble", "--integrals", "wanted", *words)
        assert result["reductions"] == {"none": {}} and result["success"]


SYMMETRIC_SUNRISE = shlex.split("--family sunrise --integrals wanted --symbols d,s,m --symmetries --store s --quiet --output r.pkl")


@pytest.mark.parametrize(
    "words",
    [SYMMETRIC_SUNRISE, [*SYMMETRIC_SUNRISE, "--local", "2"], [*SYMMETRIC_SUNRISE, "--masters", "masters"], [*IN_D, "--store", "s"],
     shlex.split("differentiate s,m --family sunrise --store s --masters masters")],
    ids=["sunrise", "two processes", "masters", "published", "equations"],
)  # fmt: skip
def test_points_that_fail_are_done_by_runs_of_their_own(words, ready, monkeypatch):
    """Every twelfth point is said to have failed, and its values are spoiled: the result is the same."""
    Path("wanted").write_text(MIXED)
    Path("masters").write_text("2,1,1,0,0\n1,0,1,0,0\n")
    undisturbed, unpack, count = exact_result(*words), unpack_points, itertools.count()

    def spoiled(*given):
        rows, good = unpack(*given)
        bad = np.array([next(count) % 12 == 0 for _ in given[2]])
        return np.where(bad[:, None], 5, rows), good & ~bad

    patch_rooms(monkeypatch, "ibp", "unpack_points", spoiled)
    result = exact_result(*words)
    assert all(result.get(key) == undisturbed.get(key) for key in ("reductions", "masters", "differential_equation"))
    assert result["statistics"]["unlucky"] >= 2


def test_interrupted_combinations_go_on(ready, monkeypatch, capsys):
    Path("wanted").write_text(MIXED)
    with monkeypatch.context() as patch:
        patch_rooms(patch, "ibp", "check_functions", lambda *_: fail(KeyboardInterrupt))
        assert exit_code(SYMMETRIC_SUNRISE) == 130
    journal = Path("ibp_work/exact.journal").read_bytes()
    for changed in (MIXED.replace("3*I", "4*I"), MIXED.replace("uneven", "other")):
        Path("wanted").write_text(changed)
        line = said(capsys, SYMMETRIC_SUNRISE, 2)
        assert line.count("\n") == 1 and "unfinished run of I[1,1,1,-2,0] and 2 more of sunrise" in line and "--fresh" in line
    Path("wanted").write_text(MIXED)
    assert "unfinished run" in said(capsys, [word for word in SYMMETRIC_SUNRISE if word != "--symmetries"], 2)
    assert Path("ibp_work/exact.journal").read_bytes() == journal
    assert exit_code([*SYMMETRIC_SUNRISE, "--resume"]) == 0
    resumed = pickle.loads(Path("r.pkl").read_bytes())
    assert exit_code(SYMMETRIC_SUNRISE) == 0
    undisturbed = pickle.loads(Path("r.pkl").read_bytes())
    assert resumed["reductions"] == undisturbed["reductions"] and list(resumed["reductions"]) == [(1, 1, 1, -2, 0), "whole", "uneven"]
    assert resumed["statistics"]["resumed"] > 30 and undisturbed["statistics"]["resumed"] == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--integral", "3,2", "--symbols", "d,s"], "I[3,2] of bubble as functions of d, s"),
        (["--integral", "3,2", "--exact"], "I[3,2] of bubble in rational numbers"),
        (["--integrals", "wanted", "--exact"], "I[2,1] and 1 more of bubble in rational numbers"),
        (["differentiate", "s,m"], "differential equations in s, m for the masters of bubble below I[1,1]"),
    ],
)
def test_dry_run_of_an_exact_run_says_what_would_be_done(words, says, place, capsys):
    Path("wanted").write_text("2,1\namp: I[1,2]\n")
    before = snapshot(place)
    assert says in said(capsys, [*words, "--family", "bubble", "--dry-run"], 0).splitlines() and snapshot(place) == before


def test_processes_change_nothing_exact(ready):
    one = exact_result(*IN_D, "--store", "s", "--work-dir", "one")
    two = exact_result(*IN_D, "--store", "s", "--work-dir", "two", "--local", "2", "--job-seconds", "0.05")
    assert one["reductions"] == two["reductions"] and two["statistics"]["tasks"] > one["statistics"]["tasks"] - 1
    assert not {path.name for path in Path("two").iterdir()} & {"exact.journal", "shared"}


def test_a_fake_pool_gives_the_same(ready, fake):
    fake.set(run="now")
    here = exact_result(*IN_D, "--store", "s", "--work-dir", "one")
    there = exact_result(*IN_D, "--store", "s", "--work-dir", "pool work", "--condor", "--check-interval", "0.1")
    assert here["reductions"] == there["reductions"]
