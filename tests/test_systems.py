"""Linear systems of a file."""

import random
import shlex
import textwrap
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import P31, bits_of, check_refused, exit_code, numbers_of, reduced, residue
from support_oracles import Kinematics, at_seed, exact_result, exact_value, seeds_of

from executors.tasks import Shared
from ibp.families import BUILT_IN_FAMILIES
from ibp.samples import unpack_points
from ibp.systems import LinearSystem, read_system, solve_points, solve_system


def solved_system(place, text, *words):
    (place / "system").write_text(textwrap.dedent(text))
    return reduced("solve", "system", *words)


def test_small_system_by_hand(place):
    text = """
        # x = 2 y - 3/2 z, y = -4 z - w
        x: 1
        y: -2   # a comment
        z: 3/2

        y: 1
        # a comment does not end an equation
        z: 4
        w*(1)


        w: 0
        """
    found = solved_system(place, text, "--prime", str(P31))
    assert found["masters"] == ["w", "z"] and found["prime"] == P31 and found["success"] and found["unreduced"] == []
    assert found["reductions"] == {
        "x": {"z": residue(Fraction(-19, 2)), "w": residue(-2)}, "y": {"z": residue(-4), "w": residue(-1)}, "z": {"z": 1}, "w": {"w": 1},
    }  # fmt: skip
    (place / "masters").write_text("x\n y # the others through these\n")
    found = reduced("solve", "system", "--masters", "masters", "--prime", str(P31))
    assert found["masters"] == ["x", "y"]
    assert found["reductions"]["z"] == {"x": residue(Fraction(-2, 3)), "y": residue(Fraction(4, 3))}


def test_system_in_symbols_and_numbers(place):
    """Kira's weights: the larger number is eliminated; coefficients in d and invariants at a point."""
    found = solved_system(place, "7*(d-4)\n12*(s^2/t)\n\n", "--d", "41", "--kinematics", "s=3,t=7", "--prime", str(P31))
    assert found["reductions"] == {"12": {"7": residue(Fraction(-37 * 7, 9))}, "7": {"7": 1}} and found["d"] == 41
    assert found["kinematics"] == {"s": 3, "t": 7}


def test_unknown_that_is_zero(place):
    assert solved_system(place, "a: 1\nb: 1\n\na: 1\nb: 2\n")["reductions"] == {"a": {}, "b": {}}


@pytest.mark.parametrize(("name", "target", "dots", "s"), [("box", (2, 1, 1, 1), 2, 2), ("bubble", (3, -2), 6, 4)])
def test_identities_as_a_system(place, reduce_at, name, target, dots, s):
    """All identities at seeds around, written to a file by the oracle: the same masters and coefficients as the reduction's."""
    kinematics = Kinematics(BUILT_IN_FAMILIES[name])
    live = set(kinematics.nonzero_sectors())
    n, blocks = kinematics.family.n, []
    for bits in sorted(live):
        for seed in seeds_of(bits, n, dots, s):
            for terms in kinematics.identities(41):
                values = {term: value for term, value in at_seed(terms, seed).items() if value and bits_of(term) in live}
                rows = [f"{name}[{','.join(map(str, term))}]: {value}" for term, value in values.items()]
                blocks.append("\n".join(rows))
    random.Random(7).shuffle(blocks)
    found = solved_system(place, "\n\n".join(blocks), "--prime", str(P31))
    expected = reduce_at(name, [target]).reductions[target]
    label = f"{name}[{','.join(map(str, target))}]"
    assert numbers_of(found["reductions"][label]) == expected


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 7), st.integers(1, 9), st.randoms(use_true_random=False))
def test_random_systems(unknowns, count, draw):
    """Against the reduced row echelon form of sympy: the same independent unknowns, the same expressions."""
    import sympy
    from sympy.polys.matrices import DomainMatrix

    labels = [f"x{i}" for i in range(unknowns)]
    rows = [{label: Fraction(draw.randint(-3, 3), draw.randint(1, 4)) for label in labels} for _ in range(count)]
    system = LinearSystem(tuple(reversed(labels)), tuple(rows))
    solved = solve_system(system, P31)
    exact = DomainMatrix([[sympy.QQ(row[x].numerator, row[x].denominator) for x in labels] for row in rows], (count, unknowns), sympy.QQ)
    echelon, pivots = exact.rref()
    assert set(solved) == {labels[i] for i in pivots}
    for number, pivot in enumerate(pivots):
        line = [echelon.to_Matrix()[number, i] for i in range(unknowns)]
        expected = {labels[i]: residue(-Fraction(int(v.p), int(v.q))) for i, v in enumerate(line) if v and i != pivot}
        assert solved[labels[pivot]] == expected


SYSTEM_IN_SYMBOLS = """
    x: s/(d-4)
    y: -2*t
    z: 3/2

    y: 1
    z: 4*(s+t)
    w: 1

    x: 2*s/(d-4)
    y: -4*t + 1
    z: 4*(s+t) + 3
    w: 1
    """  # the last equation follows from the others


@pytest.mark.parametrize("words", ["--symbols=s,t,d", "--symbols=t --d=5 --kinematics=s=1/3", "--exact --d=5 --kinematics=s=1/3,t=-7"])
@pytest.mark.parametrize("more", [[], ["--local", "2"]], ids=["", "two processes"])
def test_system_solved_exactly(words, more, place):
    (place / "system").write_text(textwrap.dedent(SYSTEM_IN_SYMBOLS))
    found = exact_result("solve", "system", *words.split(), *more)
    s, t, d = values = (Fraction(1, 3), Fraction(-7), Fraction(5))
    point = dict(zip("std", values))
    reductions = {label: {term: exact_value(value, **point) for term, value in row.items()} for label, row in found["reductions"].items()}
    y = {"z": -4 * (s + t), "w": Fraction(-1)}
    x = {term: (d - 4) / s * (2 * t * value - Fraction(3, 2) * (term == "z")) for term, value in y.items()}
    assert reductions == {"x": x, "y": y, "z": {"z": 1}, "w": {"w": 1}} and found["masters"] == ["w", "z"]
    assert found["prime"] is None and found["statistics"]["integrals"] == 2
    free = words.partition("--symbols=")[2].partition(" ")[0].split(",")
    assert found["d"] == ("d" if "d" in free else 5) and found["kinematics"]["s"] == ("s" if "s" in free else "1/3")


def test_exact_system_for_some_unknowns_in_other_masters(place):
    (place / "system").write_text(textwrap.dedent(SYSTEM_IN_SYMBOLS))
    (place / "wanted").write_text("x\nz  # a comment\n")
    (place / "masters").write_text("x\n")
    words = ["solve", "system", "--integrals=wanted", "--masters=masters"]
    found = exact_result(*words, "--symbols=s,t,d")
    assert set(found["reductions"]) == {"x", "z"} and found["masters"] == ["x", "w"]
    modular = reduced(*words, "--kinematics=s=3,t=7", "--d=11", "--prime", str(P31))
    for label, row in modular["reductions"].items():
        values = {term: residue(exact_value(value, s=3, t=7, d=11)) for term, value in found["reductions"][label].items()}
        assert values == row


@pytest.mark.parametrize("seed", range(8))
def test_random_systems_of_functions(seed, place):
    """Exact functions against the reduced row echelon form of sympy over the rational functions."""
    import sympy
    from sympy.polys.matrices import DomainMatrix

    draw, field = random.Random(seed), sympy.QQ.frac_field(*sympy.symbols("s t"))
    unknowns, count = draw.randint(2, 5), draw.randint(1, 6)
    labels = [f"x{i}" for i in range(unknowns)]
    choices = ["0", "1", "-2", "s", "t+1", "s*t-1/2", "1/(s+t)", "(s-1)/t", "t**2"]
    texts = [[draw.choice(choices) for _ in labels] for _ in range(count)]
    exact = DomainMatrix([[field.from_sympy(sympy.sympify(text)) for text in row] for row in texts], (count, unknowns), field)
    echelon, pivots = exact.rref()
    (place / "system").write_text("\n\n".join("\n".join(f"{x}: {text}" for x, text in zip(labels, row)) for row in texts))
    found = exact_result("solve", "system", "--symbols=s,t")
    assert found["masters"] == [x for i, x in reversed(list(enumerate(labels))) if i not in pivots]
    for number, pivot in enumerate(pivots):
        row = {labels[i]: -echelon.to_Matrix()[number, i] for i in range(unknowns) if i != pivot}
        expected = {x: value for x, value in row.items() if value != 0}
        result = found["reductions"][labels[pivot]]
        assert result.keys() == expected.keys()
        assert all(sympy.cancel(sympy.sympify(result[x]) - value) == 0 for x, value in expected.items())


BAD_SYSTEMS = {
    "": ("no equations",),
    "# nothing\n\n": ("no equations",),
    "x: 1\n\nx 2\n": ("line 3", "'x 2'"),
    "x: \n": ("line 1", "'x:'"),
    "x: 1\nx: 2\n": ("line 2", "x", "twice"),
    "I[1, 2]: 1\nI[1,2]: 2\n": ("line 2", "twice"),
    "x: a\n": ("line 1", "undefined symbol 'a'"),
    "x: 1/0\n": ("line 1", "division by zero"),
    "x: 0.5\n": ("line 1", "0.5"),
    "x: 1; y: 2\n": ("line 1", "1; y: 2"),
    "x + y: 2\n": ("line 1", "'x + y: 2'"),
    "3*x\n": ("line 1", "'x'"),
    "I[1,2: 3\n": ("line 1", "I[1,2"),
    "x: 1\ny: 1/1009\n": ("1/1009", "y", "--prime"),
    "x: " + "9" * 6000 + "\n": ("line 1", "6000"),
    "1" * 5000 + ": 1\n2: 3\n": ("line 1", "not 'unknown: coefficient'"),
    "x: (3\n": ("line 1", "'(3'"),
    "x: (1)(2)\n": ("line 1", "arithmetic"),
}


@pytest.mark.parametrize("text", BAD_SYSTEMS, ids=lambda text: ascii(text)[:30])
def test_bad_system_is_refused_in_one_line(text, place, capsys):
    (place / "system").write_text(text)
    check_refused(["solve", "system"], place, capsys, ["system", *BAD_SYSTEMS[text]])


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        ("solve nothing", ("system nothing", "not readable")),
        ("solve system --integral=1,1", ("--integral is no option of solve",)),
        ("solve system --local=2", ("--local", "--exact")),
        ("solve system --exact --symbols=s", ("--exact", "--symbols")),
        ("solve system --exact --prime=1013", ("--prime", "--exact", "contradict")),
        ("solve system --symbols=s,s", ("--symbols 's,s'", "once")),
        ("solve system --symbols=s --kinematics=s=1", ("--symbols 's'", "numbers")),
        ("solve system --integrals=unknown", ("--integrals", "u", "no equation")),
        ("solve system --integrals=nobody", ("--integrals nobody", "no unknowns")),
        ("solve system --prime=10", ("--prime",)),
        ("solve system --output=system", ("--output", "the same file")),
        ("solve system --masters=system2", ("--masters", "system2")),
        ("solve system --masters=unknown", ("--masters", "u", "no equation")),
        ("solve system --masters=dependent", ("y", "depends linearly", "2*x")),
        ("solve system --kinematics=s", ("integer or a fraction",)),
        ("solve system --kinematics=s=1,s=2", ("--kinematics", "once")),
        ("solve system --kinematics=d=1", ("--kinematics", "once")),
    ],
)
def test_system_with_options_that_do_not_fit(words, fragments, place, capsys):
    (place / "system").write_text("x: 2\ny: -1\n")
    (place / "unknown").write_text("u\n")
    (place / "nobody").write_text("# none of them\n")
    (place / "dependent").write_text("x\ny\n")
    check_refused(shlex.split(words), place, capsys, fragments)


def test_points_where_other_unknowns_are_independent_do_not_count(place):
    """x = 2w - t and (s - 1)u = t - w; at s = 1 the equations say that t = w, and only then that x = w."""
    (place / "system").write_text("x: 1\nu: s-1\nw: -1\n\nu: s-1\nt: -1\nw: 1\n")
    system = read_system("system", {}, ("s",))
    number = {label: place for place, label in enumerate(system.unknowns)}
    names = (("x", "w"), ("x", "t"))
    trace = Shared.write((system, ("x",), names, frozenset([number["x"], number["u"]])), place)
    found = solve_points(trace, [(P31, (5,)), (P31, (1,)), (1009, (1010,)), (1009, (0,))])
    values, good = unpack_points(found["values"], found["good"], [P31, P31, 1009, 1009], 2)
    assert good.tolist() == [True, False, False, True]
    assert values[good].tolist() == [[2, P31 - 1], [2, 1008]]
    assert exact_result("solve", "system", "--symbols=s")["reductions"]["x"] == {"t": "-1", "w": "2"}


def test_system_that_degenerates_at_a_prime(place, capsys):
    """Modulo 1009 the equation says nothing of x: that must not make x independent."""
    (place / "system").write_text("x: 1009\ny: 1\n")
    assert exit_code(["solve", "system", "--prime=1009"]) == 1
    assert "take a larger one" in capsys.readouterr().err and not (place / "results").exists()
    assert solved_system(place, "x: 1009\ny: 1\n", "--prime=1013")["reductions"]["x"] == {"y": residue(Fraction(-1, 1009), 1013)}
