"""Kira projects: their conventions against the built-in families, lists and cuts, and whatever is wrong with one."""

import importlib.util
import json
import os
import re
import shlex
import sys
import textwrap
from fractions import Fraction
from pathlib import Path

import pytest
from support import P31, TRIANGLEBOX, check_refused, combine, exit_code, numbers_of, point_of, reduced, residue
from support_oracles import exact_result, seeds_of, small_family

from ibp.errors import InputError
from ibp.families import BUILT_IN_FAMILIES, family_definition, load_family
from ibp.identities import derive_identities, evaluate_identities
from ibp.kira import read_kira_project
from ibp.kira_families import kira_point, read_sector

pytestmark = pytest.mark.skipif(importlib.util.find_spec("yaml") is None, reason="PyYAML is not installed")
# the published family with p3 outgoing, as a Kira user writes it
KIRA_TRIANGLEBOX = {
    "config/integralfamilies.yaml": """
        integralfamilies:
          - name: "trianglebox"
            loop_momenta: [k1, k2]
            top_level_sectors: [b1111110]
            propagators: [["k1", 0], ["k2", 0], ["k1+k2", 0], ["k1+p1", 0], ["k2+p3", 0], ["k2-p1", 0], ["k1+p3", 0]]
        """,
    "config/kinematics.yaml": """
        kinematics:
          incoming_momenta: [p1, p2]
          outgoing_momenta: [p3]
          momentum_conservation: [p2, p3-p1]
          kinematic_invariants: [[m1, 2], [m2, 2], [m3, 2]]
          scalarproduct_rules: [[[p1, p1], m1], [[p2, p2], m2], [[p3, p3], m3]]
        """,
    "jobs.yaml": """
        jobs:
          - reduce_sectors:
              reduce: [{topologies: [trianglebox], sectors: [63], r: 8, s: 3}]
              select_integrals: {select_mandatory_list: [[trianglebox, wanted]]}
              run_initiate: true
              run_triangular: true
              run_back_substitution: true
          - kira2math: {target: [[trianglebox, wanted]]}
        """,
    "wanted": "trianglebox[1,1,1,1,1,1,-1]\ntrianglebox[1,2,1,1,1,0,-1]\n",
}
# a box and a bubble with all momenta incoming, in rules that are not the products themselves, and more than are needed
KIRA_TWO = {
    "config/integralfamilies.yaml": """
        integralfamilies:
          - name: box
            loop_momenta: [k1]
            top_level_sectors: [15]
            propagators:
              - ["k1", 0]
              - ["k1+p1", 0]
              - ["k1+p1+p2", 0]
              - ["k1-p4", 0]
          - name: boxx
            loop_momenta: [k1]
            top_level_sectors: [b1101, 5]
            propagators: [["k1", 0], ["k1+p2", 0], ["k1+p2+p3", 0], ["k1+p1+p2+p3", "0"]]
        """,
    "config/kinematics.yaml": """
        kinematics:
          incoming_momenta: [p1, p2, p3, p4]
          outgoing_momenta: []
          momentum_conservation: [p4, -p1-p2-p3]
          kinematic_invariants:
            - [s, 2]
            - [t, 2]
          scalarproduct_rules:
            - [[p1, p1], 0]
            - [[p2, p2], 0]
            - [[p3, p3], 0]
            - [[p4, p4], 0]
            - [[p1+p2, p1+p2], s]
            - [[p3+p4, p3+p4], "s"]
            - [["p2+p3", "p2+p3"], t]
        """,
    "jobs.yaml": """
        jobs:
          - reduce_sectors:
              select_integrals:
                select_mandatory_list:
                  - [box, list]
                  - [mixed]
        """,
    "list": "box[2,1,1,1]\n- [box,1,2,0,1]\n",
    "mixed": "boxx[1,1,0,2]\namplitude: 3*box[1,1,1,2] - 2/5*boxx[2,0,1,-1]*(d-4)/s + t*box[1,1,1,1]\n",
}


def write_project(directory, files, **edits):
    """A Kira project in a directory; edits: (old, new) in a file, named as edit_jobs, edit_families, edit_kinematics, edit_list."""
    short = {"jobs": "jobs.yaml", "families": "config/integralfamilies.yaml", "kinematics": "config/kinematics.yaml"}
    changed = dict(files)
    for what, (old, new) in edits.items():
        name = short.get(what.removeprefix("edit_"), what.removeprefix("edit_"))
        assert old in changed[name], old
        changed[name] = changed[name].replace(old, new)
    for name, text in changed.items():
        path = Path(directory) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return str(directory)


def kira_families(directory):
    known = read_kira_project(Path(directory)).known
    return {name: entry.family for name, entry in known.items()}


def identities_at(family, **invariants):
    equations = evaluate_identities(derive_identities(family), point_of(family, **invariants))
    found = [{} for _ in range(equations.count)]
    for operator, shift, row in zip(equations.operator.tolist(), equations.shift.tolist(), equations.coefficient.tolist()):
        found[operator][tuple(shift)] = row
    return found


def test_published_kira_input_is_trianglebox_with_p3_outgoing(place):
    """Its identities are trianglebox's at m2 -> 2 m1 + 2 m3 - m2, and not at the same m2."""
    family = kira_families(write_project(place / "project", KIRA_TRIANGLEBOX))["trianglebox"]
    found = identities_at(family, m1=1, m2=31, m3=47)
    assert family.isps == 1 and family.external_momenta == TRIANGLEBOX.external_momenta
    assert found == identities_at(TRIANGLEBOX, m1=1, m2=65, m3=47) != identities_at(TRIANGLEBOX, m1=1, m2=31, m3=47)
    m1, m2, m3 = Fraction(3, 7), Fraction(-11), Fraction(29, 2)
    assert identities_at(family, m1=m1, m2=m2, m3=m3) == identities_at(TRIANGLEBOX, m1=m1, m2=2 * m1 + 2 * m3 - m2, m3=m3)


@pytest.mark.parametrize("conservation", ["[p3, p1+p2]", "[p1, p3 - p2]"])
def test_another_momentum_is_eliminated(place, conservation):
    """Other identities of the same integrals."""
    project = write_project(place / "project", KIRA_TRIANGLEBOX, edit_kinematics=("[p2, p3-p1]", conservation))
    integral = ("--integral=1,1,1,1,1,1,-1", "--prime", str(P31))
    found = reduced("--kira-config", project, *integral, "--kinematics", "m1=1,m2=31,m3=47")
    expected = reduced(*integral, "--paper-masters-only", "--kinematics", "m1=1,m2=65,m3=47")
    assert found["final_expr"] == expected["final_expr"]


def test_published_kira_input_gives_the_numbers_of_trianglebox(place, capsys):
    project = write_project(place / "project", KIRA_TRIANGLEBOX)
    found = reduced("--kira-config", project, "--kinematics", "m1=1,m2=31,m3=47")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "reduce, run_initiate, run_triangular, run_back_substitution, kira2math" in said[0]
    (place / "wanted").write_text(KIRA_TRIANGLEBOX["wanted"])
    expected = reduced("--integrals", "wanted", "--paper-masters-only", "--kinematics", "m1=1,m2=65,m3=47")
    other = reduced("--integrals", "wanted", "--paper-masters-only", "--kinematics", "m1=1,m2=31,m3=47")
    assert found["reductions"] == expected["reductions"] != other["reductions"]
    assert found["masters"] == expected["masters"] and len(found["masters"]) == 16
    assert found["kinematics"] == {"m1": 1, "m2": 31, "m3": 47}


KIRA_MASSES = """
    kinematics:
      incoming_momenta: [q]
      outgoing_momenta: [q]
      momentum_conservation: []
      kinematic_invariants: [[mm, 1], [s, 2]]
      scalarproduct_rules: [[[q, q], s]]
    """


def test_kira_conventions_give_the_identities_of_the_built_in_families(place):
    """Products solved from rules for sums, an eliminated momentum in propagators, squared masses as powers, q in and out."""
    project = write_project(place / "two", KIRA_TWO)
    families = kira_families(project)
    assert identities_at(families["box"], s=5, t=-3) == identities_at(BUILT_IN_FAMILIES["box"], s=5, t=-3)
    assert identities_at(families["boxx"], s=5, t=-3) != identities_at(BUILT_IN_FAMILIES["box"], s=5, t=-3)
    assert families["box"].point == (("s", "7"), ("t", "11"))
    doublebox = ", ".join(f"['{text}', 0]" for text, _ in BUILT_IN_FAMILIES["doublebox"].propagators).replace("k2-p1-p2-p3", "k2+p4")
    text = f"integralfamilies:\n- {{name: db, loop_momenta: [k1, k2], top_level_sectors: [127], propagators: [{doublebox}]}}\n"
    project = write_project(place / "db", KIRA_TWO | {"config/integralfamilies.yaml": text})
    family = kira_families(project)["db"]
    assert family.isps == 2 and identities_at(family, s=5, t=-3) == identities_at(BUILT_IN_FAMILIES["doublebox"], s=5, t=-3)
    text = "integralfamilies:\n- {name: bub, loop_momenta: [k1], propagators: [[k1, mm^2], [k1+q, mm**2]]}\n"
    project = write_project(place / "bub", {"config/integralfamilies.yaml": text, "config/kinematics.yaml": KIRA_MASSES})
    assert identities_at(kira_families(project)["bub"], s=5, mm=3) == identities_at(BUILT_IN_FAMILIES["bubble"], s=5, m=9)


def test_symbol_to_replace_by_one(place, capsys):
    one = ("          scalarproduct_rules:", "          symbol_to_replace_by_one: t\n          scalarproduct_rules:")
    project = write_project(place / "one", KIRA_TWO, edit_kinematics=one)
    found = reduced("--kira-config", project, "--family", "box", "--integral", "2,1,1,-1", "--kinematics", "s=5/3")
    expected = reduced("--family", "box", "--integral", "2,1,1,-1", "--kinematics", "s=5/3,t=1")
    assert found["final_expr"] == expected["final_expr"] and found["kinematics"] == {"s": "5/3"}
    assert exit_code(["--kira-config", project, "--family", "box", "--integral=1,1,1,1", "--kinematics", "t=2"]) == 2


def test_options_that_are_not_followed_are_named(place, capsys):
    edit = ("top_level_sectors: [15]", "top_level_sectors: [15]\n            magic_relations: true\n            permutation: [1,2,3,4]")
    jobs = ("select_integrals", "run_initiate: true\n              select_integrals")
    project = write_project(place / "two", KIRA_TWO, edit_families=edit, edit_jobs=jobs)
    reduced("--kira-config", project)
    families, jobs = capsys.readouterr().err.splitlines()
    assert families.endswith("integralfamilies.yaml: not followed, as this program has its own ways: magic_relations, permutation")
    assert jobs.endswith("jobs.yaml: not followed, as this program has its own ways: run_initiate")
    reduced("--kira-config", project, "--integral=boxx[1,1,0,1]")
    assert capsys.readouterr().err == ""


def test_default_point_of_kira_input():
    assert kira_point(5) == [7, 11, 13, 17, 19]
    assert len(set(kira_point(40))) == 40


@pytest.mark.parametrize(("text", "bits"), [("b1000", 1), ("b0001", 8), ("b1101", 11), ("13", 13), ("0", 0)])
def test_sector_notations(text, bits):
    assert read_sector(text, 4, "here") == bits


@pytest.mark.parametrize("text", ["b101", "b11011", "16", "-1", "b1201", "", "0x1", "b", "1.5"])
def test_sectors_that_are_none(text):
    with pytest.raises(InputError, match="here"):
        read_sector(text, 4, "here")


def test_ibp_of_a_bilinear_propagator_are_those_of_a_product(tmp_path):
    """{'bilinear': [['2*k1', 'v'], 'w']} is ['2*k1*v', 'w'], from JSON and from Kira's YAML."""
    plain = small_family("heavy", "k1", "v", [("k1", "m"), ("2*k1*v", "w")], 0, [("v*v", "1")], [("m", "3"), ("w", "5")])
    definition = family_definition(plain)
    definition["propagators"] = [["k1", "m"], {"bilinear": [["2*k1", "v"], "w"]}]
    (tmp_path / "f.json").write_text(json.dumps(definition))
    assert identities_at(load_family(str(tmp_path / "f.json"))) == identities_at(plain)
    text = "integralfamilies:\n- {name: heavy, loop_momenta: [k1], propagators: [[k1, m], {bilinear: [['2*k1', v], w]}]}\n"
    kinematics = """
        kinematics:
          incoming_momenta: [v]
          kinematic_invariants: [[m, 2], [w, 1]]
          scalarproduct_rules: [[[v, v], 1]]
        """
    project = write_project(tmp_path, {"config/integralfamilies.yaml": text, "config/kinematics.yaml": kinematics})
    assert identities_at(kira_families(project)["heavy"], m=3, w=5) == identities_at(plain)


def test_several_families_in_one_run(place):
    """Lists in both notations, a list over several families, a combination over two of them; each family's part is its own run's."""
    project = write_project(place / "two", KIRA_TWO)
    both = reduced("--kira-config", project, "--prime", "1009")
    assert both["family"] == "box, boxx" and both["success"] and both["kinematics"] == {"s": 7, "t": 11}
    assert list(both["reductions"]) == ["box[2,1,1,1]", "box[1,2,0,1]", "amplitude", "boxx[1,1,0,2]"]
    families = kira_families(project)
    single = {}
    for name, indices in (("box", (2, 1, 1, 1)), ("box", (1, 2, 0, 1)), ("box", (1, 1, 1, 2)), ("box", (1, 1, 1, 1)),
                          ("boxx", (1, 1, 0, 2)), ("boxx", (2, 0, 1, -1))):  # fmt: skip
        found = reduced("--kira-config", project, "--family", name, "--integral", ",".join(map(str, indices)))
        assert found["family"] == name
        single[name, indices] = found["final_expr"]
    for name, indices in list(single)[:2] + list(single)[4:5]:
        label = f"{name}[{','.join(map(str, indices))}]"
        assert numbers_of(both["reductions"][label]) == single[name, indices]
        assert {term.partition("[")[0] for term in both["reductions"][label]} <= {name}
    factor = residue(Fraction(-2, 5) * 37 / 7, 1009)
    expected = {
        "box": combine((3, single["box", (1, 1, 1, 2)]), (11, single["box", (1, 1, 1, 1)]), p=1009),
        "boxx": combine((factor, single["boxx", (2, 0, 1, -1)]), p=1009),
    }
    amplitude = both["reductions"]["amplitude"]
    for name in families:
        assert numbers_of({term: value for term, value in amplitude.items() if term.startswith(name + "[")}) == expected[name]
    assert {term for expression in both["reductions"].values() for term in expression} <= set(both["masters"])


def test_one_of_several_families(place, capsys):
    project = write_project(place / "two", KIRA_TWO, edit_mixed=(KIRA_TWO["mixed"], "boxx[1,1,0,2]\n"))
    found = reduced("--kira-config", project, "--family=box")
    assert list(found["reductions"]) == [(2, 1, 1, 1), (1, 2, 0, 1)]
    assert reduced("--kira-config", project, "--integral=boxx[1,1,0,2]")["family"] == "boxx"
    (place / "masters").write_text("2,0,1,0\n")
    assert (2, 0, 1, 0) in reduced("--kira-config", project, "--family=box", "--masters=masters")["masters"]
    (place / "mine").write_text("boxx[1,1,0,2]\nbox[1,1,1,1]\n")
    assert reduced("--kira-config", project, "--integrals=mine")["family"] == "box, boxx"


CUT_OF_BOX = ("top_level_sectors: [15]", "top_level_sectors: [15]\n            cut_propagators: [3, 1]")
WITH_SYMMETRIES = ("select_integrals", "run_symmetries: true\n              select_integrals")


def test_cut_propagators_of_kira(place, capsys):
    """All of them are one cut; what is without these lines is zero."""
    plain = write_project(place / "plain", KIRA_TWO)
    cut = write_project(place / "cut", KIRA_TWO, edit_families=CUT_OF_BOX)
    whole, both = reduced("--kira-config", plain), reduced("--kira-config", cut)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"ibp_reduce: {cut}/config/integralfamilies.yaml: family box: cut_propagators [1, 3]: taken as --cut; "
        "zero, as without these lines: 1 of 4 integrals"
    ]
    assert both["cuts"] == {"box": [1, 3]} and "cuts" not in whole
    for target, row in whole["reductions"].items():
        kept = {m: v for m, v in row.items() if not m.startswith("box[") or m.startswith(("box[1,0,1,0]", "box[1,1,1,1]"))}
        assert both["reductions"][target] == kept
    assert both["reductions"] != whole["reductions"]
    one = ["--kira-config", cut, "--integral=box[2,1,1,1]"]
    expected = reduced("--kira-config", plain, "--integral=box[2,1,1,1]", "--cut", "1,3")
    for more in ([], ["--cut", "3,1"], ["--batch", "2"], ["--local", "2"]):
        found = reduced(*one, *more)
        assert found["final_expr"] == expected["final_expr"] and found["cuts"] == [[1, 3]]
    capsys.readouterr()
    for target in ("0,1,2,1", "1,1,-1,1"):
        assert reduced("--kira-config", cut, f"--integral=box[{target}]")["final_expr"] == {}
        assert "zero, as without these lines: 1 of 1 integrals" in capsys.readouterr().err
    exact = exact_result(*one, "--exact")
    assert {master: residue(value, 1009) for master, value in exact["final_expr"].items()} == expected["final_expr"]
    (place / "masters").write_text("box[2,0,1,0]\nbox[0,1,0,1]\n")
    preferred = reduced(*one, "--masters=masters")
    assert (2, 0, 1, 0) in preferred["masters"] and not {(0, 1, 0, 1), (1, 0, 1, 0)} & set(preferred["masters"])
    for words, fragments in (
        (["--cut=1,2"], ["--cut 1,2", "cut_propagators [1, 3]"]),
        (["--cut=spanning"], ["--cut spanning", "cut_propagators"]),
        (["--certificate=c"], ["--certificate", "cuts"]),
    ):
        assert exit_code([*one, *words, "--quiet"]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert all(fragment in last for fragment in fragments), last


def test_results_of_kira_are_verified(place, capsys):
    """With the family of the project, also where a built-in one has the same name; other families and joint results are refused."""
    project = write_project(place / "two", KIRA_TWO)
    run = ["--kira-config", project]
    for words in ([], ["--exact"], ["--symbols", "d,s,t"]):
        assert exit_code([*run, "--integral=boxx[2,1,0,1]", "--output=r.pkl", "--quiet", *words]) == 0
        capsys.readouterr()
        assert exit_code(["verify", "r.pkl", *run]) == 0
        assert capsys.readouterr().out.startswith("verified: I[2,1,0,1] of boxx at ")
    check_refused(["verify", "r.pkl"], place, capsys, ["boxx is not built in", "--kira-config"])
    assert exit_code(["--family=bubble", "--integral=2,1", "--output=r.pkl", "--quiet"]) == 0
    check_refused(["verify", "r.pkl", *run], place, capsys, ["bubble is none of box, boxx"])
    assert exit_code([*run, "--output=r.pkl", "--quiet"]) == 0
    check_refused(["verify", "r.pkl", *run], place, capsys, ["r.pkl: is of several families", "one family"])


def test_differential_equations_of_kira(place, capsys):
    """Those of the built-in box, for a family with its propagators; on a cut those of the masters that have its lines."""
    project = write_project(place / "two", KIRA_TWO)
    words = ["differentiate", "t", "--family", "box"]
    own = exact_result(*words)["differential_equation"]
    words += ["--kira-config", project]
    assert exact_result(*words)["differential_equation"] == own
    assert exact_result(*words, "--integral", "1,1,1,1")["differential_equation"] == own
    assert exit_code(["verify", "r.pkl", "--kira-config", project]) == 0
    check_refused(["differentiate", "t", "--kira-config", project], place, capsys, ["one family at a time", "box, boxx"])
    cut = exact_result(*words[:-1], write_project(place / "cut", KIRA_TWO, edit_families=CUT_OF_BOX))
    kept = [(1, 0, 1, 0), (1, 1, 1, 1)]
    rows = {m: {term: value for term, value in own["matrices"]["t"][m].items() if term in kept} for m in kept}
    assert cut["differential_equation"] == {"masters": kept, "matrices": {"t": rows}}
    (place / "masters").write_text("box[1,1,1,1]\n")
    low = write_project(place / "low", KIRA_TWO, edit_families=("top_level_sectors: [15]", "top_level_sectors: [b0101]"))
    check_refused([*words[:-1], low, "--masters=masters"], place, capsys, ["box[1,1,1,1] is in sector 15", "[10]"])
    same = write_project(place / "same", KIRA_TWO, edit_families=('["k1+p1", 0]', '["k1", 0]'))
    check_refused([*words[:-1], same], place, capsys, ["integralfamilies.yaml: family box: propagators", "dependent"])


@pytest.mark.parametrize(
    "words",
    [
        "differentiate t --output=two/config/kinematics.yaml",
        "differentiate t --output=two/jobs.yaml",
        "--integral=1,1,1,1 --store=two/config/integralfamilies.yaml",
        "--certificate=two/list",
        "--output=two/kin.pkl --engine=beam --paths=two/mixed",
        "--output=two/result.pkl --export=mathematica --integrals=two/list --certificate=two/jobs.yaml",
    ],
)
def test_no_file_of_a_kira_project_is_written_to(words, place, capsys):
    project = write_project(place / "two", KIRA_TWO)
    check_refused([*words.split(), "--kira-config", project, "--family=box"], place, capsys, ["is a file of the Kira project"])


def test_symmetries_of_kira(place, capsys):
    """run_symmetries is --symmetries: within families and between them."""
    plain = write_project(place / "plain", KIRA_TWO)
    project = write_project(place / "two", KIRA_TWO, edit_jobs=WITH_SYMMETRIES)
    found = reduced("--kira-config", project)
    assert "jobs.yaml: run_symmetries is true: taken as --symmetries" in capsys.readouterr().err
    assert found == {**reduced("--kira-config", plain, "--symmetries"), "time": found["time"], "peak_memory_kb": found["peak_memory_kb"],
                     "statistics": found["statistics"]}  # fmt: skip
    assert "taken as --symmetries" not in capsys.readouterr().err
    assert set(found["masters"]) == {"box[1,0,1,0]", "box[0,1,0,1]", "box[1,1,1,1]", "boxx[0,1,0,1]"}  # of s, t and u
    off = write_project(place / "off", KIRA_TWO, edit_jobs=(WITH_SYMMETRIES[0], WITH_SYMMETRIES[1].replace("true", "False")))
    assert "symmetries" not in reduced("--kira-config", off)
    listed = write_project(place / "listed", KIRA_TWO, edit_jobs=WITH_SYMMETRIES, edit_mixed=(KIRA_TWO["mixed"], "box[1,1,1,2]\n"))
    assert reduced("--kira-config", listed)["symmetries"]
    capsys.readouterr()
    assert "symmetries" not in reduced("--kira-config", listed, "--certificate=c")
    assert "run_symmetries is true: not followed, as --certificate knows no symmetries" in capsys.readouterr().err
    turned = reduced("--kira-config", plain, "--symmetries", "--family=boxx,box")
    assert turned["family"] == "boxx, box"
    assert set(turned["masters"]) == {"boxx[1,0,1,0]", "boxx[0,1,0,1]", "box[1,0,1,0]", "box[1,1,1,1]"}
    with_cut = write_project(place / "cut", KIRA_TWO, edit_jobs=WITH_SYMMETRIES, edit_families=CUT_OF_BOX)
    cut = reduced("--kira-config", with_cut)
    assert cut["symmetries"] and {"box[1,0,1,0]", "box[1,1,1,1]"} < set(cut["masters"]) and "box[0,1,0,1]" not in cut["masters"]
    assert any(master.startswith("boxx") for master in cut["masters"])  # no line of it is cut


def test_list_symmetries_of_a_kira_project(place, capsys):
    project = write_project(place / "two", KIRA_TWO)
    os.remove(place / "two/jobs.yaml")
    assert exit_code(["families", "--kira-config", project]) == 0
    lines = capsys.readouterr().out.rpartition("\n\n")[2].splitlines()
    assert [line.partition(":")[0] for line in lines if not line.startswith(" ")] == ["box", "boxx", "boxx"]
    assert any(re.match(r"  \d+ -> box \d+ ", line) for line in lines)
    assert exit_code(["families", "boxx", "--kira-config", project]) == 0
    assert capsys.readouterr().out.startswith("boxx: ")
    write_project(place / "two", KIRA_TWO, edit_families=CUT_OF_BOX)
    assert exit_code(["families", "box", "--kira-config", project]) == 0
    assert "\nbox: 4 non-zero sectors" in capsys.readouterr().out
    check_refused(["families", "bax", "--kira-config", project], place, capsys, ["--family bax", "box, boxx"])


RANGE = """
    jobs:
      - reduce_sectors:
          select_integrals:
            select_mandatory_recursively:
              - {topologies: [box], sectors: [b1110], r: 4, s: 1, d: 1}
          preferred_masters: preferred
    """


def test_ranges_and_preferred_masters_of_jobs(place):
    project = write_project(place / "two", KIRA_TWO | {"jobs.yaml": RANGE, "preferred": "box[2,0,1,0]\nboxx[1,1,1,0]\n"})
    found = reduced("--kira-config", project)
    wanted = {a for bits in range(1, 8) for a in seeds_of(bits, 4, 1, 1) if sum(x for x in a if x > 0) <= 4}
    assert set(found["reductions"]) == wanted
    assert (2, 0, 1, 0) in found["masters"] and (1, 0, 1, 0) not in found["masters"]
    assert set().union(*found["reductions"].values()) == {(2, 0, 1, 0)}  # of this sector only the s channel bubble is not scaleless
    os.remove(place / "two/preferred")
    (place / "mine").write_text("box[3,0,1,0]\n")
    assert reduced("--kira-config", project, "--masters=mine")["masters"] == [(3, 0, 1, 0)]


@pytest.mark.parametrize(
    ("old", "new", "fragments"),
    [
        ("{topologies: [box], sectors: [b1110], r: 4, s: 1, d: 1}", "[box, 7, 1, 1]", ("expected {topologies",)),
        ("r: 4", "r: 101", ("at most 100",)),
        ("r: 4, s: 1, d: 1", "r: 40, s: 40", ("more than 20,000 integrals",)),
        ("r: 4, s: 1", "r: 4", ("s: expected an integer",)),
        ("r: 4", "r: t", ("r: expected an integer",)),
        ("r: 4", "R: 4", ("'R'",)),
        ("topologies: [box]", "topologies: [bax]", ("'bax'", "box, boxx")),
        ("sectors: [b1110]", "sectors: [b11101]", ("'b11101'",)),
        ("preferred_masters: preferred", "preferred_masters: [preferred]", ("preferred_masters", "a word")),
        ("preferred_masters: preferred", "preferred_masters: none", ("none", "No such file")),
        ("preferred_masters: preferred", "preferred_masters: dependent", ("I[2,0,1,0]", "depends linearly", "I[1,0,1,0]")),
    ],
)
def test_bad_ranges_and_masters_of_jobs(old, new, fragments, place, capsys):
    write_project(
        place / "two", KIRA_TWO | {"jobs.yaml": RANGE, "preferred": "", "dependent": "box[1,0,1,0]\nbox[2,0,1,0]\n"}, edit_jobs=(old, new)
    )
    check_refused(["--kira-config=two", "--quiet"], place, capsys, fragments)


def test_kira_input_without_pyyaml(place, capsys, monkeypatch):
    write_project(place / "two", KIRA_TWO)
    monkeypatch.setitem(sys.modules, "yaml", None)
    check_refused(["--kira-config=two"], place, capsys, ["PyYAML", "ibp-reduce[kira]"])


# file and edit: what the line must contain
BAD_PROJECTS = {
    # YAML
    ("families", "integralfamilies:", "families:"): ("integralfamilies.yaml", "'integralfamilies'"),
    ("families", "- name: box\n", "- name: [box\n"): ("integralfamilies.yaml", "not readable as YAML"),
    ("families", "loop_momenta: [k1]\n", "loop_momenta: [k1]\n            loop_momenta: [k1]\n"): ("'loop_momenta' is there twice", "line"),
    ("families", "- name: box\n", "- name: !!python/object/apply:os.getcwd []\n"): ("integralfamilies.yaml", "python"),
    ("families", "- name: box\n", "- name: &a [*a]\n"): ("integralfamilies.yaml", "name"),
    ("families", "- name: box\n", "- name: \0\n"): ("integralfamilies.yaml", "not readable"),
    ("families", "- name: box\n", "- name: " + 3000 * "[" + "\n"): ("integralfamilies.yaml", "not readable"),
    ("kinematics", "kinematics:\n", "more: 7\n        kinematics:\n"): ("kinematics.yaml", "'kinematics'"),
    # keys
    ("families", "loop_momenta: [k1]\n", "loop_momentum: [k1]\n"): ("family box", "'loop_momentum'", "loop_momenta"),
    ("families", "- name: boxx", "- name: box"): ("two families", "box"),
    ("families", "- name: boxx", "- name: bo x"): ("family bo x", "name"),
    ("families", "- name: boxx\n", "- title: boxx\n"): ("family 2", "name"),
    ("families", "top_level_sectors: [15]", "top_level_sectors: [16]"): ("family box", "top_level_sectors", "'16'"),
    ("families", "top_level_sectors: [15]", "top_level_sectors: []"): ("family box", "top_level_sectors"),
    ("families", "top_level_sectors: [15]", "top_level_sectors: [15]\n            zero_sectors: [3]"): ("family box", "zero_sectors"),
    ("families", "[b1101, 5]", "[3, 5]\n            cut_propagators: [2, 3]"): ("boxx", "no top-level sector", "2, 3"),
    ("families", "[b1101, 5]", "[3]\n            cut_propagators: [3]"): ("boxx", "cut_propagators", "3 is not a line"),
    ("families", "top_level_sectors: [15]", "top_level_sectors: [15]\n            cut_propagators: [1, 1]"): ("1 is there twice",),
    ("families", "top_level_sectors: [15]", "top_level_sectors: [15]\n            cut_propagators: [one]"): ("cut_propagators", "'one'"),
    ("families", "top_level_sectors: [15]", "top_level_sectors: [15]\n            cut_propagators: [0]"): ("cut_propagators", "least 1"),
    ("families", "top_level_sectors: [15]", "top_level_sectors: [15]\n            cut_propagators: {1: 2}"): ("cut_propagators", "a list"),
    ("families", "top_level_sectors: [15]", "top_level_sectors: [15]\n            cut_propagators: [9999]"): ("9999 is not a line",),
    ("jobs", "select_integrals", "run_symmetries: maybe\n              select_integrals"): ("jobs.yaml", "run_symmetries", "'maybe'"),
    ("jobs", "select_integrals", "run_symmetries: [true]\n              select_integrals"): ("jobs.yaml", "run_symmetries", "a word"),
    ("families", "top_level_sectors: [15]", "top_level_sectors: [15]\n            cut_propagators: [5]"): ("cut_propagators", "5"),
    ("kinematics", "scalarproduct_rules", "scalar_product_rules"): ("kinematics.yaml", "'scalar_product_rules'"),
    # propagators
    ("families", '["k1-p4", 0]', '["k1-p5", 0]'): ("family box", "propagators", "undefined symbol 'p5'"),
    ("families", '["k1-p4", 0]', '["k1-p4", mm]'): ("family box", "propagators", "undefined symbol 'mm'"),
    ("families", '["k1-p4", 0]', '["k1-p4", 0.5]'): ("family box", "0.5"),
    ("families", '["k1-p4", 0]', '["k1-p4"]'): ("family box", "propagator 4"),
    ("families", '["k1-p4", 0]', "{bilinear: [[k1], 0]}"): ("family box", "propagator 4", "bilinear"),
    ("families", '["k1-p4", 0]', '["k1+p1", 0]'): ("integralfamilies.yaml", "family box", "linearly dependent"),
    ("families", '- ["k1-p4", 0]\n', "\n"): ("family box", "top_level_sectors"),
    ("families", '- ["k1-p4", 0]\n', '- ["k1-p4", 0]\n              - ["k1-p2", 0]\n'): ("family box", "5 propagators", "exactly 4"),
    ("families", "loop_momenta: [k1]\n", "loop_momenta: [k1, p4]\n"): ("family box", "propagators"),
    ("families", "loop_momenta: [k1]\n", "loop_momenta: [p1]\n"): ("family box", "'p1'", "twice"),
    # momenta
    ("kinematics", "outgoing_momenta: []", "outgoing_momenta: [p4]"): ("p4", "incoming_momenta", "outgoing_momenta"),
    ("kinematics", "[p1, p2, p3, p4]", "[p1, p2, p3, p3]"): ("incoming_momenta", "'p3'", "twice"),
    ("kinematics", "[p1, p2, p3, p4]", "[p1, p2, p3]"): ("momentum_conservation", "p1, p2, p3"),
    ("kinematics", "[p4, -p1-p2-p3]", "[p4, p1+p2+p3]"): ("momentum_conservation", "not 0", "2*p1"),
    ("kinematics", "[p4, -p1-p2-p3]", "[p4, -p1-p2-p5]"): ("momentum_conservation", "'p5'"),
    ("kinematics", "[p4, -p1-p2-p3]", "[p4, -p1-p2*p3]"): ("momentum_conservation", "linear combination"),
    ("kinematics", "[p4, -p1-p2-p3]", "[p4]"): ("momentum_conservation", "expected"),
    ("kinematics", "[p4, -p1-p2-p3]", "[[p4, -p1-p2-p3]]"): ("momentum_conservation", "expected"),
    ("kinematics", "momentum_conservation: [p4, -p1-p2-p3]", ""): ("scalarproduct_rules", "p1*p3"),
    # invariants and rules
    ("kinematics", "- [s, 2]", "- [s]"): ("kinematic_invariants", "mass dimension"),
    ("kinematics", "- [s, 2]", "- [s, two]"): ("kinematic_invariants", "mass dimension of s"),
    ("kinematics", "- [s, 2]", "- [t, 2]"): ("kinematic_invariants", "'t'"),
    ("kinematics", "- [s, 2]", "- [d, 2]"): ("kinematic_invariants", "'d'"),
    ("kinematics", "- [s, 2]", "- [p1, 2]"): ("'p1'", "momentum"),
    ("kinematics", "- [s, 2]", "- [u, 2]"): ("scalarproduct_rules", "undefined symbol 's'"),
    ("kinematics", "- [[p4, p4], 0]\n", "\n"): ("scalarproduct_rules", "p1*p3", "add a rule"),
    ("kinematics", "[[p3+p4, p3+p4], \"s\"]", "[[p3+p4, p3+p4], s+t]"): ("[[p3+p4, p3+p4], s+t]", "contradicts"),
    ("kinematics", "[[p4, p4], 0]", "[[p4, p6], 0]"): ("[[p4, p6], 0]", "'p6'"),
    ("kinematics", "[[p4, p4], 0]", "[[p4, p4*p4], 0]"): ("scalarproduct_rules", "linear combination"),
    ("kinematics", "[[p4, p4], 0]", "[p4, 0]"): ("scalarproduct_rules", "expected"),
    ("kinematics", "[[p4, p4], 0]", "[[p4, p4], 1/0]"): ("[[p4, p4], 1/0]", "division by zero"),
    ("kinematics", "outgoing_momenta: []", "symbol_to_replace_by_one: u"): ("symbol_to_replace_by_one", "'u'"),
    ("kinematics", "outgoing_momenta: []", "symbol_to_replace_by_one: t"): ("mixed", "line 2", "undefined symbol 't'"),
    ("families", '["k1-p4", 0]', '["k1 - (p4)", "0"]'): None,
    # jobs and lists
    ("jobs", "reduce_sectors", "reduce_everything"): ("jobs.yaml", "'reduce_everything'"),
    ("jobs", "reduce_sectors", "reduce_user_defined_system"): ("jobs.yaml", "'solve'"),
    ("jobs", "select_integrals", "extra_relations: x\n              select_integrals"): ("jobs.yaml", "extra_relations", "not supported"),
    ("jobs", "select_integrals", "select_integral"): ("jobs.yaml", "'select_integral'"),
    ("jobs", "[box, list]", "[bax, list]"): ("select_mandatory_list", "box, boxx"),
    ("jobs", "[box, list]", "[box, lists]"): ("lists", "No such file"),
    ("jobs", "[box, list]", "[box, 1, 2]"): ("select_mandatory_list", "expected"),
    ("jobs", "                  - [box, list]\n                  - [mixed]\n", ""): ("jobs.yaml", "selects no integrals"),
    ("list", "box[2,1,1,1]", "box[2,1,1]"): ("list", "line 1", "3 indices"),
    ("list", "box[2,1,1,1]", "boxx[2,1,1,1]"): ("list", "line 1", "boxx"),
    ("mixed", "boxx[1,1,0,2]", "[1,1,0,2]"): ("mixed", "line 1", "box, boxx"),
    ("mixed", "boxx[1,1,0,2]", "boxx[1,1,2,0]"): ("boxx[1,1,2,0]", "sector 7", "top_level_sectors"),
    ("mixed", "boxx[1,1,0,2]", "amplitude: box[1,1,1,1]"): ("mixed", "line 2", "'amplitude'"),
    ("list", "box[2,1,1,1]", "amplitude: box[1,1,1,1]"): ("jobs.yaml", "two lists", "'amplitude'", "list, line 1", "mixed, line 2"),
    # absurd sizes
    ("families", "top_level_sectors: [15]\n            propagators:\n", "propagators:\n" + f"{'':14}- [k1, 0]\n" * 3000): ("3004",),
    ("kinematics", "- [s, 2]\n", "- [s, 2]\n" + "".join(f"            - [x{i}, 2]\n" for i in range(5000))): ("5002",),
    ("kinematics", "outgoing_momenta: []", f"outgoing_momenta: [{', '.join(f'q{i}' for i in range(2000))}]"): ("2004 external",),
    ("kinematics", "[p4, -p1-p2-p3]", "[p4, " + "-" * 4000 + "p1-p2-p3]"): ("momentum_conservation",),
    ("kinematics", "[[p4, p4], 0]", f"[[p4, p4], {'9' * 6000}]"): ("scalarproduct_rules",),
}  # fmt: skip


@pytest.mark.parametrize("edit", BAD_PROJECTS, ids=lambda edit: ascii("-".join(edit))[1:60])
def test_bad_kira_project_is_refused_in_one_line(edit, place, capsys):
    what, old, new = edit
    write_project(place / "two", KIRA_TWO, **{f"edit_{what}": (old, new)})
    if BAD_PROJECTS[edit] is None:  # the control: an edit that is fine
        assert exit_code(["--kira-config=two", "--quiet"]) == 0
    else:
        check_refused(["--kira-config=two"], place, capsys, BAD_PROJECTS[edit])


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        ("--kira-config=nowhere", ("nowhere", "no such directory")),
        ("--kira-config=two --family=trianglebox", ("--family trianglebox", "box, boxx")),
        ("--kira-config=two --family=box,bax", ("--family box,bax", "box, boxx")),
        ("--kira-config=two --family=box,box", ("--family box,box", "box, boxx")),
        ("--kira-config=two --cut=1", ("--cut", "one family at a time", "box, boxx")),
        ("--kira-config=two --symmetries --paper-masters-only", ("--paper-masters-only and --symmetries",)),
        ("--kira-config=two --integral=1,1,1,1", ("--integral", "box, boxx")),
        ("--kira-config=two --integral=bax[1,1,1,1]", ("--integral", "bax")),
        ("--kira-config=two --family=box", ("amplitude", "boxx", "--family")),
        ("--kira-config=two --batch=auto", ("one family at a time", "box, boxx")),
        ("--kira-config=two --output=two/list", ("two/list", "Kira project")),
        ("--kira-config=two --store=two/jobs.yaml", ("two/jobs.yaml", "Kira project")),
        ("--kira-config=two --kinematics=u=1", ("--kinematics", "s, t")),
        ("--kira-config=two --prime=7", ("division by zero",)),
        ("solve x --kira-config=two", ("--kira-config",)),
        ("--kira-config=jobless", ("jobs.yaml", "no such file", "--integral")),
    ],
)
def test_kira_project_with_options_that_do_not_fit(words, fragments, place, capsys):
    write_project(place / "two", KIRA_TWO)
    write_project(place / "jobless", {name: text for name, text in KIRA_TWO.items() if name != "jobs.yaml"})
    check_refused(shlex.split(words), place, capsys, fragments)


def test_words_of_yaml_that_mean_something_else(place):
    """no, on, null, 1e3 and the like are names like others."""
    kinematics = (
        KIRA_MASSES.replace("mm", "no").replace("s, 2", "null, 2").replace("s]", "null]").replace("[q]", "[off]").replace("q,", "off,")
    )
    text = "integralfamilies:\n- {name: yes, loop_momenta: [on], propagators: [[on, no^2], [on+off, no^2]]}\n"
    project = write_project(place, {"config/integralfamilies.yaml": text, "config/kinematics.yaml": kinematics.replace(", q]", ", off]")})
    (family,) = kira_families(project).values()
    assert family.name == "yes" and family.loop_momenta == ("on",) and family.symbols == ("d", "no", "null")
    assert identities_at(family, no=3, null=5) == identities_at(BUILT_IN_FAMILIES["bubble"], s=5, m=9)


def test_yaml_that_grows_when_it_is_expanded(place, capsys):
    bomb = "integralfamilies:\n  - &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"  - &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(12)
    )
    write_project(place / "two", KIRA_TWO | {"config/integralfamilies.yaml": bomb})
    check_refused(["--kira-config=two"], place, capsys, ["family 1", "a mapping"])
