"""What a run of differential equations writes and refuses."""

import json
import pickle
import shlex
from pathlib import Path

import pytest
from support import check_refused, exit_code, patch_rooms, said
from support_executors import fail
from support_oracles import are_equal, json_free_copy, record_of

from ibp.exports import read_export, write_exports
from ibp.families import BUILT_IN_FAMILIES, family_definition
from ibp.sectors import show, weight
from ibp.verification import read_result


def test_result_of_differential_equations(equations):
    record = equations("box")
    assert record["success"] and record["prime"] is None and record["reductions"] == {} and "final_expr" not in record
    assert (record["d"], record["kinematics"]) == ("d", {"s": "s", "t": "t"})
    own = record["differential_equation"]
    assert own["masters"] == record["masters"] == sorted(own["masters"], key=weight) and list(own["matrices"]) == ["s", "t", "d"]
    kinds = {type(value) for matrix in own["matrices"].values() for row in matrix.values() for value in row.values()}
    assert kinds == {str} and read_result(record["path"]) == {k: v for k, v in record.items() if k != "path"}


def test_table_of_differential_equations(ready, capsys):
    lines = said(capsys, ["differentiate", "s,d", "--family", "bubble", "--store", "s"], 0).splitlines()
    assert lines[0] == "bubble exact: 3 masters, equations in s, d, 8 entries that are not zero"
    assert lines[lines.index("d/ds I[1,0] =") + 1] == "  0" and "I[1,0] at d-2 =" in lines
    assert "  I[1,1]  (d*s - 4*s + 4*m)/(2*s*(s - 4*m))" in lines and lines[-1] == "written to results/reduction.pkl"


@pytest.mark.parametrize("name", ["mathematica", "form", "json", "sympy"])
def test_exports_of_differential_equations_are_read_back(name, equations, tmp_path):
    record = equations("sunrise") | {"family": "sun-rise"}
    (path,) = write_exports(record, tmp_path / "r.pkl", [name])
    read = read_export(path)
    matrices = record["differential_equation"]["matrices"]
    assert read["reductions"] == {} and list(read["differential_equation"]["matrices"]) == ["s", "m", "d"]
    for x, matrix in read["differential_equation"]["matrices"].items():
        assert {row: list(entries) for row, entries in matrix.items()} == {row: list(entries) for row, entries in matrices[x].items()}
        for row, entries in matrix.items():
            assert all(are_equal(str(text), matrices[x][row][column], ["d", "s", "m"], 3) for column, text in entries.items())


def test_exports_of_differential_equations_as_they_stand(ready):
    words = ["differentiate", "m", "--family", "bubble", "--store", "s", "--quiet", "--output", "r.pkl"]
    assert exit_code([*words, "--export", "mathematica,form,sympy"]) == 0
    assert "DG[m,bubble,{1,0}] -> \n + ((d - 2)/(2*m))*G[bubble,{1,0}]\n" in Path("r.m").read_text()
    assert "id D(m)*bubble(1,0) =\n + num(d - 2)*den(2*m)*bubble(1,0);\n" in Path("r.inc").read_text()
    assert '"DG(m,1,0)": (\n        " + ((d - 2)/(2*m))*G(1,0)"' in Path("r.py").read_text()
    converted = ["convert", "r.pkl", "--output", "c.pkl", "--quiet", "--export", "json"]
    assert exit_code(converted) == 0 and Path("c.json").exists() and Path("c.pkl").exists()


@pytest.mark.parametrize("name", ["box", "sunrise", *(pytest.param(name, marks=pytest.mark.slow) for name in ("doublebox", "trianglebox"))])
def test_differential_equations_are_verified(name, equations, capsys):
    path = equations(name)["path"]
    line = said(capsys, ["verify", str(path), "--work-dir", str(path.parent / "work")], 0)
    assert line.startswith("verified: the equations in") and "3 random primes" in line


@pytest.mark.parametrize("damage", ["sign", "missing", "extra", "dimension"])
def test_wrong_differential_equations_are_found(damage, equations, ready, capsys):
    record = {key: value for key, value in equations("box").items() if key != "path"}
    record["differential_equation"] = json_free_copy(record["differential_equation"])
    matrices, row, bubble = record["differential_equation"]["matrices"], (1, 1, 1, 1), (1, 0, 1, 0)
    x = "d" if damage == "dimension" else "t"
    if damage == "sign":
        matrices[x][row][bubble] = f"-({matrices[x][row][bubble]})"
    elif damage == "missing":
        del matrices[x][row][bubble]
    elif damage == "extra":
        matrices[x][bubble][bubble] = "1/t"
    else:
        matrices[x][row][row] += "+1"
    Path("r.pkl").write_bytes(pickle.dumps(record))
    line = said(capsys, ["verify", "r.pkl", "--store", "s", "--quiet"], 1)
    where = show(bubble if damage == "extra" else row)
    assert line.count("\n") == 1 and f"the equation in {x} of {where} is wrong at" in line


ONE_MASTER = {"masters": [(1, 1)], "matrices": {"m1": {(1, 1): {(1, 1): "1"}}}}


@pytest.mark.parametrize("own", [
    None, [], {}, {"masters": []}, {"masters": [(1, 1)], "matrices": {}}, {"masters": [(1, 1)], "matrices": []},
    ONE_MASTER | {"masters": [(1, 1), (1, 1)]}, ONE_MASTER | {"masters": [(1, 0)]}, ONE_MASTER | {"masters": [[1, 1]]},
    ONE_MASTER | {"matrices": {"u": {(1, 1): {}}}}, ONE_MASTER | {"matrices": {"m1": {(1, 1): {(1, 0): "1"}}}},
    ONE_MASTER | {"matrices": {"m1": {(1, 1): {(1, 1): 0.5}}}}, ONE_MASTER | {"matrices": {"m1": {(1, 1): {(1, 1): "__import__('os')"}}}},
    ONE_MASTER, ONE_MASTER | {"matrices": {"m1": [(1, 1)]}}, ONE_MASTER | {"matrices": {7: {(1, 1): {}}}},
])  # fmt: skip
def test_bad_differential_equations_are_refused(own, place, capsys):
    Path("r.pkl").write_bytes(pickle.dumps(record_of({}) | {"differential_equation": own}))
    for words in (["verify", "r.pkl"], ["convert", "r.pkl", "--export", "form"]):
        line = said(capsys, words, 2)
        assert line.count("\n") == 1 and "r.pkl: not a result of this program" in line and len(line) < 400


def test_interrupted_differential_equations_go_on(ready, monkeypatch, capsys):
    words = ["differentiate", "s,t", "--family", "box", "--store", "s", "--quiet", "--output", "r.pkl"]
    with monkeypatch.context() as patch:
        patch_rooms(patch, "ibp", "check_functions", lambda *_: fail(KeyboardInterrupt))
        assert exit_code(words) == 130
    line = said(capsys, [words[0], "t", *words[2:]], 2)
    assert line.count("\n") == 1 and "differential equations in s, t for the masters of box" in line and "--fresh" in line
    assert exit_code([*words, "--resume"]) == 0
    resumed = pickle.loads(Path("r.pkl").read_bytes())
    assert exit_code(words) == 0
    undisturbed = pickle.loads(Path("r.pkl").read_bytes())
    assert resumed["differential_equation"] == undisturbed["differential_equation"]
    assert resumed["statistics"]["resumed"] > 30 and undisturbed["statistics"]["resumed"] == 0


DIFFERENTIAL_USAGE_ERRORS = {
    "u": ("'u'", "d, s, t"),
    "s,s": ("'s,s'", "at most once"),
    "all,s": ("'all,s'", "at most once"),
    "s,": ("'s,'",),
    "t --kinematics t=3": ("t is given as a number",),
    "d --d 5": ("d is given as a number",),
    "all --kinematics s=1,t=2": ("no invariant of box",),
    "t --exact": ("--exact is no option of differentiate",),
    "t --epsilon 4-2*eps --d 5": ("--epsilon", "no"),
    "t --epsilon 4-2*t": ("--epsilon", "new symbol"),
    "t --cut 1 --cut 2": ("several cuts", "one --cut"),
    "t --export kira": ("--export kira", "goes to mathematica, form, json"),
    "t --integral 1,1": ("--integral", "2 indices"),
    "t --masters nothing": ("nothing", "not readable"),
    "t --kinematics u=3": ("--kinematics", "u=3"),
}


@pytest.mark.parametrize("command", DIFFERENTIAL_USAGE_ERRORS)
def test_wrong_usage_of_differential_equations(command, place, capsys):
    check_refused(["differentiate", "--family", "box", *shlex.split(command)], place, capsys, DIFFERENTIAL_USAGE_ERRORS[command])


DIFFERENTIAL_TROUBLE = {
    "differentiate u --family idle.json": (2, "neither the kinematics nor the propagators of idle depend on it"),
    "differentiate s --family box --integral 1,1,0,0": (2, "there are no masters"),
    "differentiate s --family box --d 4 --integral 1,1,1,0": (1, "I[1,1,1,0] is not reducible"),
    "differentiate s --family bubble --masters dependent": (2, "depends linearly"),
    "differentiate s --family D.json --export form": (2, "the name D is not free there"),
}


@pytest.mark.parametrize("command", DIFFERENTIAL_TROUBLE)
def test_differential_equations_that_there_are_not(command, ready, capsys):
    definition = family_definition(BUILT_IN_FAMILIES["bubble"])
    Path("idle.json").write_text(json.dumps(definition | {"name": "idle", "invariants": {"s": "7", "m": "3", "u": "1"}}))
    Path("D.json").write_text(json.dumps(definition | {"name": "D"}))
    Path("dependent").write_text("1,0\n2,0\n")
    code, says = DIFFERENTIAL_TROUBLE[command]
    line = said(capsys, [*command.split(), "--store", "s", "--quiet"], code)
    assert line.count("\n") == 1 and says in line and len(line) < 400 and not Path("results").exists()
