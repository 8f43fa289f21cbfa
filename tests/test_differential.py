"""Differential equations of masters."""

import copy
import functools
import itertools
import json
import pickle
import random
import shlex
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from support import P31, check_refused, combine, exit_code, patch_rooms, point_of, residue, said
from support_executors import fail
from support_oracles import (
    BIG_PRIMES,
    DIFFERENTIAL,
    FunctionField,
    Kinematics,
    are_equal,
    exact_result,
    exact_value,
    record_of,
    rising,
    small_family,
    solve_columns,
)

from ibp.coefficients import names_in_coefficients
from ibp.console import Progress
from ibp.differential import _momentum_changes, derivative_of, differentiate, graph_polynomial, lowered_dimension
from ibp.exports import read_export, write_exports
from ibp.families import BUILT_IN_FAMILIES, family_definition
from ibp.identities import Column
from ibp.problems import Problem
from ibp.recording import record_trace
from ibp.sectors import show, weight
from ibp.trace import probe
from ibp.verification import read_result


@pytest.fixture(scope="session")
def exact_equations(equations):
    """exact_equations(family) -> the same as matrices of rational functions."""
    return functools.cache(lambda name: FunctionField(equations(name)))


def without_path(record):
    """A copy to be changed."""
    return copy.deepcopy({key: value for key, value in record.items() if key != "path"})


def vanishes(matrix):
    return not any(map(any, matrix))


def check_laws(functions):
    """sum_x x A_x is diagonal: L d/2 - sum of indices, in units of a squared mass; dA_x/dy - dA_y/dx + [A_x, A_y] = 0 for all pairs."""
    invariants = [x for x in functions.matrices if x != "d"]
    total = functions.total(*(functions.times(functions.symbols[x], functions.matrices[x]) for x in invariants))
    for i, (row, master) in enumerate(zip(total, functions.masters)):
        dimension = functions.loops * functions.symbols["d"] / 2 - sum(master)
        assert row == [functions.field.zero if i != j else dimension for j in range(len(row))]
    assert len(invariants) > 1
    for x, y in itertools.combinations(invariants, 2):
        a, b = functions.matrices[x], functions.matrices[y]
        commutator = functions.total(functions.product(a, b), functions.times(-1, functions.product(b, a)))
        curl = functions.total(functions.derivative(a, y), functions.times(-1, functions.derivative(b, x)))
        assert not vanishes(a) and not vanishes(b) and vanishes(functions.total(curl, commutator))


@pytest.mark.parametrize("name", DIFFERENTIAL)
def test_derivatives_scale_with_the_mass_dimension_and_commute(name, exact_equations):
    check_laws(exact_equations(name))


@pytest.mark.parametrize("name", ["box", "bubble", "sunrise", pytest.param("doublebox", marks=pytest.mark.slow)])
def test_derivatives_commute_with_a_change_of_dimension(name, equations):
    """With M(d-2) = S(d) M(d): A(d-2) S = dS/dx + S A."""
    functions = FunctionField(equations(name, "s,t,d" if name == "doublebox" else DIFFERENTIAL[name]))
    shift = functions.matrices["d"]
    for x in [x for x in functions.matrices if x != "d"]:
        lowered = [[functions.lowered(entry) for entry in row] for row in functions.matrices[x]]
        left = functions.product(lowered, shift)
        right = functions.total(functions.derivative(shift, x), functions.product(shift, functions.matrices[x]))
        assert not vanishes(left) and left == right


SINGULARITIES = {
    "box": ["s", "t", "s+t"],
    "bubble": ["s", "m", "s-4*m"],
    "sunrise": ["s", "m", "s-m", "s-9*m"],
    "doublebox": ["s", "t", "s+t"],
    "trianglebox": ["m1", "m2", "m3", "m1**2+m2**2+m3**2-2*m1*m2-2*m1*m3-2*m2*m3"],
}


def singularities(functions):
    """Of every denominator the factors that depend on an invariant, up to sign."""
    import sympy

    denominators = {str(entry.denom.as_expr()) for matrix in functions.matrices.values() for row in matrix for entry in row if entry}
    factors = {f for text in denominators for f, _ in sympy.factor_list(sympy.sympify(text))[1]}
    return set(map(up_to_sign, (f for f in factors if f.free_symbols - {sympy.Symbol("d")})))


def up_to_sign(expression):
    import sympy

    return min(str(sympy.expand(sign * sympy.sympify(expression))) for sign in (1, -1))


@pytest.mark.parametrize("name", SINGULARITIES)
def test_singularities_are_the_known_ones(name, exact_equations):
    """Thresholds and the zeros of Gram determinants."""
    assert singularities(exact_equations(name)) == set(map(up_to_sign, SINGULARITIES[name]))


def test_equations_of_the_bubble(exact_equations):
    """s (s - 4 m) dB/ds = ((d-4)/2 s + 2 m) B - (d-2)/2 (T + T')."""
    bubble, tadpoles, own = exact_equations("bubble"), [(1, 0), (0, 1)], (1, 1)
    cases = {("s", own, own): "((d-4)*s/2 + 2*m)/(s*(s-4*m))", ("m", own, own): "-2*(d-3)/(s-4*m)", ("d", own, own): "-2*(d-3)/(s-4*m)"}
    cases |= {("s", own, tadpole): "-(d-2)/(2*s*(s-4*m))" for tadpole in tadpoles}
    cases |= {(x, own, tadpole): "(d-2)/(2*m*(s-4*m))" for tadpole in tadpoles for x in "md"}
    cases |= {(x, tadpole, tadpole): "(d-2)/(2*m)" for tadpole in tadpoles for x in "md"}
    for x, matrix in bubble.matrices.items():
        for row, entries in zip(bubble.masters, matrix):
            assert entries == [bubble.read(cases.get((x, row, column), "0")) for column in bubble.masters]


@pytest.mark.parametrize(("family", "corner_of", "x"), [("doublebox", (0, 0, 1, 1, 1, 0, 0, 0, 0), "s"), ("box", (1, 0, 1, 0), "s")])
def test_dimension_of_massless_bananas(family, corner_of, x, equations):
    """L loops: I = square**(L d/2 - L - 1) Gamma(L + 1 - L d/2) Gamma(d/2 - 1)**(L+1) / Gamma((L+1)(d/2 - 1)), Euclidean."""
    loops = len(BUILT_IN_FAMILIES[family].loop_momenta)
    record = equations(family, "d", "--integral", ",".join(map(str, corner_of)))
    row = record["differential_equation"]["matrices"]["d"][corner_of]
    assert list(row) == [corner_of]
    for k in range(12):
        h, square = Fraction(2 * k + 1, 7) + 3, Fraction(k + 2, 3)
        ratio = rising(loops + 1 - loops * h, loops) * rising((loops + 1) * (h - 2), loops + 1) / (h - 2) ** (loops + 1) / square**loops
        values = {name: square if name == x else Fraction(1) for name in record["kinematics"]}
        assert exact_value(row[corner_of], d=2 * h, **values) == ratio


def derivative_by_hand(family, x, master, values):
    """d/dx of an integral at rational invariants as {integral: number}, with C = G^-1 dG/dx / 2 acting on the external momenta."""
    here, there = Kinematics(family, **values), Kinematics(family, **values | {x: values[x] + 1})  # all are linear in x
    legs = here.legs
    gram = [[here.products[a, b] for b in legs] for a in legs]
    change = [[(there.products[a, b] - here.products[a, b]) / 2 for b in legs] for a in legs]
    c = solve_columns(gram, change)
    table, total = here.in_propagators(), {}
    for b, form in enumerate(here.forms):
        moved = {}
        for (y, z), value in form.items():
            for i, leg in enumerate(legs):
                for pair, moving in (((leg, z), y), ((y, leg), z)):
                    if moving in legs:
                        moved[pair] = moved.get(pair, 0) + value * c[i][legs.index(moving)]
        loop, constant = here.split(moved)
        parts = [sum(value * table[pair][k] for pair, value in loop.items()) for k in range(family.n + 1)]
        parts[-1] += constant - (there.masses[b] - here.masses[b])
        for k, value in enumerate(parts):
            term = tuple(a + (i == b) - (i == k) for i, a in enumerate(master))
            total[term] = total.get(term, 0) - master[b] * value
    return {term: value for term, value in total.items() if value}


@pytest.mark.parametrize("name", DIFFERENTIAL)
def test_equations_equal_direct_runs(name, equations, reduce_at):
    """At random points the derivative, worked out by hand in other external momenta's changes, is reduced by a run of its own."""
    record, family = equations(name), BUILT_IN_FAMILIES[name]
    draw, masters = random.Random(11), record["differential_equation"]["masters"]
    for number in range(9):
        p = BIG_PRIMES[number % 3]
        values = {x: Fraction(draw.randrange(10**3, 10**5), draw.randrange(1, 50)) for x in family.symbols}
        invariants = {x: value for x, value in values.items() if x != "d"}
        x = draw.choice([x for x in record["differential_equation"]["matrices"] if x != "d"])
        master = draw.choice(masters)
        combination = derivative_by_hand(family, x, master, invariants)
        live = {term: value for term, value in combination.items() if max(term[family.lines :], default=0) <= 0}
        assert live == combination
        direct = reduce_at(name, list(live) or [master], point=point_of(family, p, **values), paper_masters_only=bool(family.paper_masters))
        expected = combine(*((residue(value, p), direct.reductions[term]) for term, value in live.items()), p=p)
        row = record["differential_equation"]["matrices"][x][master]
        assert {m: residue(exact_value(c, **values), p) for m, c in row.items()} == expected


def test_dimension_shift_of_single_integrals():
    """U of two massive tadpoles and the product of their momenta is x1 x2 - x3**2 / 4; x_b**2 stands for a (a + 1), raising twice."""
    family = small_family("pair", "k1 k2", "", [("k1", "m"), ("k2", "m"), ("k1*k2", "0")], 1, [], [("m", "2")])
    polynomial = graph_polynomial(family)
    assert {exponents: Fraction(str(value.as_expr())) for exponents, value in polynomial} == {(1, 1, 0): 1, (0, 0, 2): Fraction(-1, 4)}
    point = point_of(family, P31)
    for integral, expected in (
        ((2, 3, 0), {(3, 4, 0): 6}),
        ((2, 3, -1), {(3, 4, -1): 6}),
        ((2, 3, -3), {(3, 4, -3): 6, (2, 3, -1): residue(Fraction(-6, 4))}),
        ((0, 3, -1), {}),
    ):
        assert Column("", lowered_dimension(polynomial, integral)).at(point) == expected


def test_point_where_a_combination_has_a_pole_is_told(shelves):
    family = BUILT_IN_FAMILIES["bubble"]
    one, s = (((0, 0, 0), 1),), (((0, 1, 0), 1),)
    assert family.symbols == ("d", "s", "m")
    combination = Column("name", (((1, 1), ((0, one, s), (1, s, one))),))
    problem = Problem(family, point_of(family, BIG_PRIMES[0]), (), combinations=(combination,))
    trace, _ = record_trace(problem, shelves, Progress(quiet=True))
    rows, good = probe(trace, [BIG_PRIMES[1]] * 2, np.array([[11, 11], [0, 5], [3, 3]]))
    assert good.tolist() == [False, True] and trace.names == (("name", (1, 1)),)
    assert rows[1].tolist() == [residue(Fraction(1, 5) + 5, BIG_PRIMES[1])]


@pytest.mark.parametrize("name", ["bubble", "box", "sunrise", "doublebox"])
def test_equations_with_symmetries(name, equations, exact_equations, tmp_path, monkeypatch):
    """They close on the masters that are left, scale, commute and have the known singularities; with all masters M = T N of these,
    A T = dT/dx + T B.
    """
    monkeypatch.chdir(tmp_path)
    record = equations(name, "s,m" if name in ("bubble", "sunrise") else "s,t", "--symmetries")
    assert record["symmetries"] and len(record["masters"]) == {"bubble": 2, "box": 3, "sunrise": 3, "doublebox": 8}[name]
    old, new = exact_equations(name), FunctionField(record)
    Path("masters").write_text("\n".join(",".join(map(str, master)) for master in old.masters))
    words = ["--family", name, "--integrals", "masters", "--symbols", ",".join(old.names), "--symmetries"]
    mapped = exact_result(*words)["reductions"]
    change = [[new.read(mapped[row].get(column, "0")) for column in new.masters] for row in old.masters]
    assert set(new.masters) < set(old.masters) or name == "box"
    for z in new.matrices:
        left = new.product([[new.read(str(entry.as_expr())) for entry in row] for row in old.matrices[z]], change)
        assert left == new.total(new.derivative(change, z), new.product(change, new.matrices[z]))
    check_laws(new)
    assert set() < singularities(new) <= set(map(up_to_sign, SINGULARITIES[name]))


def test_equations_on_a_cut_are_a_block_of_all(equations):
    whole = equations("doublebox")["differential_equation"]["matrices"]
    record = equations("doublebox", "s,t", "--cut", "1,6")
    own = record["differential_equation"]
    assert record["cuts"] == [[1, 6]] and own["masters"] == [m for m in whole["s"] if m[0] > 0 and m[5] > 0]
    for x, matrix in own["matrices"].items():
        assert matrix == {row: {c: text for c, text in whole[x][row].items() if c in own["masters"]} for row in own["masters"]}


@pytest.mark.parametrize(
    ("family", "more"),
    [("box", []), ("sunrise", []), *(pytest.param(name, [], marks=pytest.mark.slow) for name in ("doublebox", "trianglebox")),
     ("box", ["--symmetries"]), ("doublebox", ["--symmetries"]), ("sunrise", ["--cut", "1,2"])],
)  # fmt: skip
def test_equations_are_verified_and_wrong_ones_found(family, more, equations, capsys):
    record = equations(family, DIFFERENTIAL[family] if family == "doublebox" or not more else "s", *more)
    words = ["--work-dir", str(record["path"].parent / "work")]
    line = said(capsys, ["verify", str(record["path"]), *words], 0)
    assert line.startswith("verified: the equations in") and "3 random primes" in line
    assert ("relations by symmetries" in line, "on the cut 1,2" in line) == ("--symmetries" in more, "--cut" in more)
    damaged = without_path(record)
    x, last = next(iter(damaged["differential_equation"]["matrices"])), damaged["masters"][-1]
    row = damaged["differential_equation"]["matrices"][x][last]
    row[next(iter(row))] += "+1"
    path = record["path"].with_name("damaged.pkl")
    path.write_bytes(pickle.dumps(damaged))
    line = said(capsys, ["verify", str(path), *words], 1)
    assert line.count("\n") == 1 and f"the equation in {x} of" in line and "is wrong at" in line


def test_a_result_with_symmetries_is_none_without(equations, capsys, tmp_path):
    """The relations between masters are needed, and what was verified is said."""
    for family, code, says in (("box", 0, "verified"), ("sunrise", 1, "is wrong at")):  # of box they change nothing
        record = without_path(equations(family, "s", "--symmetries"))
        del record["symmetries"]
        (tmp_path / "r.pkl").write_bytes(pickle.dumps(record))
        assert says in said(capsys, ["verify", str(tmp_path / "r.pkl"), "--work-dir", str(tmp_path / "w")], code)


def test_expanded_differential_equations(ready, capsys):
    """Each entry is its Laurent series around d = 4."""
    import sympy

    words = ["differentiate", "s,d", "--family", "bubble", "--store", "s", "--output", "r.pkl", "--export", "mathematica,json"]
    assert "1 coefficient" not in said(capsys, [*words, "--epsilon", "4-2*eps", "--order", "2"], 0)
    record = read_result("r.pkl")
    eps, matrices = sympy.Symbol("eps"), record["epsilon"]["matrices"]
    assert list(matrices) == ["s", "d"] and record["epsilon"]["reductions"] == {}
    for x, matrix in record["differential_equation"]["matrices"].items():
        for row, entries in matrix.items():
            for column, text in entries.items():
                series = matrices[x][row][column]
                rest = sympy.sympify(text).subs(sympy.Symbol("d"), 4 - 2 * eps) - sum(sympy.sympify(c) * eps**k for k, c in series.items())
                assert sympy.simplify(rest.diff(eps, 0).subs(eps, 0)) == sympy.simplify(rest.diff(eps, 2).subs(eps, 0)) == 0
    for name in ("m", "json"):
        read = read_export(f"r_eps.{name}")
        assert read["truncated"] == {"d": "4-2*eps", "symbol": "eps", "order": 2}
        for row, entries in read["differential_equation"]["matrices"]["s"].items():
            assert {c: sympy.sympify(str(text)).subs(eps, 0) for c, text in entries.items()} == {
                c: sympy.sympify(series.get(0, 0)) for c, series in matrices["s"][row].items()
            }


def test_equations_in_another_basis(equations, exact_equations, tmp_path, monkeypatch):
    """With M' = T M: A' = (T A + dT/dx) T^-1, and T from reductions of the new masters."""
    monkeypatch.chdir(tmp_path)
    new = [(2, 1, 1, 0, 0), (1, 2, 1, 0, 0), (1, 1, 2, 0, 0)]
    Path("masters").write_text("\n".join(",".join(map(str, master)) for master in new))
    record = equations("sunrise", "s,m", "--masters", str(Path("masters").resolve()))
    old, other = exact_equations("sunrise"), FunctionField(record)
    assert set(new) < set(other.masters) and len(other.masters) == len(old.masters) == 7
    reductions = exact_result("--family", "sunrise", "--integrals", "masters", "--symbols", "d,m,s")["reductions"]
    reductions |= {master: {master: "1"} for master in other.masters if master not in new}
    change = [[old.read(reductions[row].get(column, "0")) for column in old.masters] for row in other.masters]
    for x in "sm":
        left = old.product(other.matrices[x], change)
        assert left == old.total(old.product(change, old.matrices[x]), old.derivative(change, x))


def test_equations_below_given_integrals_are_a_part_of_all(equations, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = equations("doublebox")["differential_equation"]["matrices"]
    part = equations("doublebox", "t,s", "--integral", "0,3,1,1,1,0,1,-2,0")["differential_equation"]
    assert {tuple(a > 0 for a in master) for master in part["masters"]} == {
        tuple(a > 0 for a in master) for master in whole["t"] if all(a <= 0 or b > 0 for a, b in zip(master, (0, 1, 1, 1, 1, 0, 1, 0, 0)))
    }
    for x, matrix in part["matrices"].items():
        assert matrix == {master: whole[x][master] for master in part["masters"]} and list(matrix) == part["masters"]


def test_given_numbers_stay_numbers(equations):
    whole = equations("box")["differential_equation"]["matrices"]
    record = equations("box", "all", "--kinematics", "s=-7/3", "--d", "11/2")
    (matrix,) = record["differential_equation"]["matrices"].values()
    assert (record["d"], record["kinematics"]) == ("11/2", {"s": "-7/3", "t": "t"})
    for k in range(20):
        t = Fraction(2 * k + 1, 11)
        for row, entries in matrix.items():
            expected = {c: exact_value(text, d="11/2", s="-7/3", t=t) for c, text in whole["t"][row].items()}
            assert {c: exact_value(text, t=t) for c, text in entries.items()} == expected
    assert "s" not in names_in_coefficients(record) and not names_in_coefficients(record) & {"d"}


@pytest.mark.parametrize("command", ["box t s=0", "trianglebox m1 m2=0,m3=0"])
def test_equations_where_momenta_are_degenerate(command, equations, capsys):
    """Some operators have poles there; what is found is still proven."""
    family, x, numbers = command.split()
    more = ["--integral", "1,1,0,1,1,0,0"] if family == "trianglebox" else []
    record = equations(family, x, "--kinematics", numbers, *more)
    assert "the equations in" in said(capsys, ["verify", str(record["path"]), "--work-dir", str(record["path"].parent / "work")], 0)


def test_momenta_change_products_as_the_invariant_does():
    """G c + (G c)^T = dG/dx, for random products in two variables, of any rank."""
    import sympy

    field, _, s, t = sympy.field("d, s, t", sympy.QQ)
    draw = random.Random(3)
    for count, rank in ((1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3)):
        vectors = [[draw.randrange(-3, 4) * s + draw.randrange(-3, 4) * t for _ in range(rank)] for _ in range(count)]
        gram = {(i, j): sum((a * b for a, b in zip(vectors[i], vectors[j])), field.zero) for i in range(count) for j in range(count)}
        for x in (s, t):
            c = _momentum_changes(gram, [1] * count, x, field)
            for i, j in gram:
                change = sum((gram[i, k] * c.get((k, j), 0) + gram[j, k] * c.get((k, i), 0) for k in range(count)), field.zero)
                assert change == gram[i, j].diff(x)


def test_masses_and_factors_inside_propagators_are_differentiated(reduce_at):
    """A linear propagator with an invariant in front: x d/dx scales it, so that x d/dx I = - a I for its index a."""
    propagators = [("k1", "0"), ("2*x*k1*p", "0")]
    family = small_family("heavy", "k1", "p", propagators, 0, [("p*p", "s")], [("s", "2"), ("x", "3")])
    operator = differentiate(family, "x", {})
    assert [shift for shift, _ in operator] == [(0, 0)]
    point = point_of(family, P31, x=5)
    assert Column("", derivative_of(operator, (3, 2))).at(point) == {(3, 2): residue(Fraction(-2, 5))}
    massive = differentiate(BUILT_IN_FAMILIES["bubble"], "m", {})
    point = point_of(BUILT_IN_FAMILIES["bubble"], P31)
    assert Column("", derivative_of(massive, (3, 2))).at(point) == {(4, 2): 3, (3, 3): 2}


def test_result_of_differential_equations(equations):
    record = equations("box")
    assert record["success"] and record["prime"] is None and record["reductions"] == {} and "final_expr" not in record
    assert (record["d"], record["kinematics"]) == ("d", {"s": "s", "t": "t"})
    own = record["differential_equation"]
    assert own["masters"] == record["masters"] == sorted(own["masters"], key=weight) and list(own["matrices"]) == ["s", "t", "d"]
    kinds = {type(value) for matrix in own["matrices"].values() for row in matrix.values() for value in row.values()}
    assert kinds == {str} and read_result(record["path"]) == without_path(record)


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


@pytest.mark.parametrize("damage", ["sign", "missing", "extra", "dimension"])
def test_wrong_differential_equations_are_found(damage, equations, ready, capsys):
    record = without_path(equations("box"))
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
