"""Results in the formats of other programs, and back."""

import json
import os
import pickle
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from support import BUBBLE, check_refused, exit_code, patch_rooms, said
from support_oracles import EXACT, MODULAR, SUNRISE_CORNER, SUNRISES, SYMBOLIC, are_equal, coefficient_texts, record_of

from executors.files import replace_file
from ibp.arithmetic import calculate
from ibp.errors import InputError
from ibp.exports import FORMATS, check_export_names, export_path, export_text, numerator_and_denominator, read_export, write_exports
from ibp.verification import read_result

EXPORTS = sorted(FORMATS.keys() - {"latex"})  # those that are read back
MANY = record_of({
    (1, 1, 1, 1, 1, 1, -3): {(1, 0, 1, 1, 1, 1, 0): "-(3*d**2 - 1)/(2*(d - 4)**2*(m2 + d))", (1, -1, 1, 1, 1, 0, 0): "d/4 + 1/2",
                             SUNRISE_CORNER: "1/d - 1/(d - 4)", (1, 1, 1, 1, 1, 1, -3): "d**-2*m2", (0, 0, 1, 1, 1, 0, 0): "((d))"},
    (0, 0, 0, 0, 0, 0, 0): {}, (0, 1, 1, 1, 0, 0, -1): {SUNRISE_CORNER: "(d-4)**(-2)", (1, 1, 0, 1, 1, 0, 0): "-1"},
}, d="d", m2="m2")  # fmt: skip
TO_EXPORT = {
    "modular": MODULAR,
    "exact": EXACT,
    "symbolic": SYMBOLIC,
    "many": MANY,
    "signs": record_of({SUNRISES[0]: {SUNRISE_CORNER: Fraction(-3, 4), (1, 1, 0, 1, 1, 0, 0): Fraction(2), (0, 0, 1, 1, 1, 0, 0): -7}}),
    "a family called like a derivative": record_of({(1, 2): {(1, 1): 3}}, prime=1009) | {"family": "DG"},
    "a name with a hyphen": record_of({(1,) * 7 + (-1, 0): {(0, 1, 0, 1, 0, 1, 1, 0, 0): 5}}, "nonplanar-doublebox", prime=1009),
}


def value_at(coefficient, **values):
    names = {"d": Fraction(77, 5), "m1": Fraction(13), "m2": Fraction(-17, 3), "eps": Fraction(5, 7)} | values
    return calculate(str(coefficient), names, Fraction, "test")


@pytest.mark.parametrize("name", EXPORTS)
@pytest.mark.parametrize("what", TO_EXPORT)
def test_export_and_back(what, name, tmp_path):
    """The same reductions; coefficients of the same type and value."""
    record = TO_EXPORT[what]
    (path,) = write_exports(record, tmp_path / "some.pkl", [name])
    assert path == tmp_path / {"mathematica": "some.m", "form": "some.inc", "kira": "kira_some.m"}.get(
        name, f"some.{name}".replace("sympy", "py")
    )
    back = read_export(path)
    assert all(back[key] == record[key] for key in ("family", "prime", "d", "kinematics", "unreduced"))
    assert list(back["reductions"]) == list(record["reductions"])
    for target, expression in record["reductions"].items():
        found = back["reductions"][target]
        assert list(found) == list(expression)
        for term, value in expression.items():
            assert value_at(found[term]) == value_at(value)
            if isinstance(value, int) and record["prime"]:
                assert found[term] == value and type(found[term]) is int
            elif not isinstance(value, str):
                assert found[term] == value and type(found[term]) is Fraction


@pytest.mark.parametrize("name", ["mathematica", "form", "json", "sympy"])
@pytest.mark.parametrize("words", [["--symmetries"], ["--cut", "1"], ["--symbols", "d,s"], ["--exact"]], ids=" ".join)
def test_exports_of_combinations_symmetries_and_cuts(name, words, place):
    Path("wanted").write_text("amp: 3*I[2,1] - I[3,1]/s\n2,1\n")
    assert exit_code(["--family", "bubble", "--integrals", "wanted", *words, "--output", "r.pkl", "--export", name, "--quiet"]) == 0
    record, read = read_result("r.pkl"), read_export(export_path(Path("r.pkl"), name))
    assert list(read["reductions"]) == ["amp", (2, 1)] or list(read["reductions"]) == [(2, 1), "amp"]
    for target, expression in record["reductions"].items():
        assert list(read["reductions"][target]) == list(expression)
        for term, value in expression.items():
            assert are_equal(str(read["reductions"][target][term]), str(value), ["d", "s"])
    assert read.get("symmetries") == record.get("symmetries") and read.get("cuts") == record.get("cuts")


def test_combination_with_the_name_of_a_symbol(place, capsys):
    """Where the result has the symbol the two would be one; where it has its number they cannot meet."""
    Path("wanted").write_text("s: I[2,1]\n")
    words = ["--family", "bubble", "--integrals", "wanted", "--export", "sympy", "--quiet"]
    assert "s would be a combination and something else" in said(capsys, [*words, "--symbols", "s"], 2)
    assert exit_code(words) == 0 and list(read_export("results/reduction.py")["reductions"]) == ["s"]


@pytest.mark.parametrize(
    ("combination", "name", "says"),
    [("amp", "kira", "amp goes to mathematica"), ("a.b", "mathematica", "the name a.b is not free"), ("a_b", "form", "a_b"),
     ("a-b", "sympy", "a-b"), ("N", "mathematica", "the name N"), ("num", "form", "the name num"),
     ("bubble", "form", "bubble would be"), ("G", "sympy", "G would be")],
)  # fmt: skip
@pytest.mark.parametrize("words", [[], ["--symbols", "d,s"]], ids=" ".join)
def test_combinations_that_an_export_cannot_name(combination, name, says, words, place, capsys):
    Path("wanted").write_text(f"{combination}: I[2,1]\n")
    line = said(capsys, ["--family", "bubble", "--integrals", "wanted", *words, "--export", name], 2)
    assert line.count("\n") == 1 and says in line and f"--export {name}" in line and not Path("results").exists()


def test_what_exports_look_like(tmp_path):
    texts = {path.name: path.read_text() for path in write_exports(TO_EXPORT["many"], tmp_path / "r.pkl", EXPORTS)}
    assert "\nG[trianglebox,{0,1,1,1,0,0,-1}] -> \n + ((d-4)^(-2))*G[trianglebox,{0,1,1,1,0,0,0}]\n + (-1)*G[" in texts["r.m"]
    assert "\ntrianglebox[0,0,0,0,0,0,0] -> \n + 0\n,\ntrianglebox[0,1,1,1,0,0,-1] -> \n + trianglebox[" in texts["kira_r.m"]
    assert "\n + num(-(3*d^2 - 1))*den(2*(d - 4)^2*(m2 + d))*trianglebox(1,0,1,1,1,1,0)\n + (d/4 + 1/2)*trianglebox(" in texts["r.inc"]
    assert "\nid trianglebox(0,0,0,0,0,0,0) =\n + 0;\n" in texts["r.inc"]
    quoted = TO_EXPORT["a name with a hyphen"]
    assert 'G["nonplanar-doublebox",{1,1,1,1,1,1,1,-1,0}] -> \n + 5*G[' in export_text(quoted, "mathematica")
    assert '"nonplanar-doublebox"[0,1,0,1,0,1,1,0,0]*(5)' in export_text(quoted, "kira")
    assert "id [nonplanar-doublebox](1,1,1,1,1,1,1,-1,0) =" in export_text(quoted, "form")
    for name in FORMATS:
        assert '"prime": 1009' in export_text(quoted, name).splitlines()[0]


LATEX = {
    "7": "7 I",
    "1": "I",
    "-1": "-I",
    "-3/4": r"-\frac{3}{4} I",
    "-(3*d**2 - 1)/(2*(d - 4)**2*(m2 + d))": r"-\frac{3 d^{2} - 1}{2 \left(d - 4\right)^{2} \left(m_{2} + d\right)} I",
    "1/d - 1/(d - 4)": r"\left(\frac{1}{d} - \frac{1}{d - 4}\right) I",
    "(-d + 2)*(-3)*d**-2*2": r"-\left(-d + 2\right) \cdot 3 d^{-2} \cdot 2 I",
    "d - (m2 - (-d))": r"\left(d - \left(m_{2} + d\right)\right) I",
    "((-d)**2)**3": r"\left((-d)^{2}\right)^{3} I",
    "-1/4*eps**-2 + 1/2*eps**-1": r"\left(-\frac{1}{4} \epsilon^{-2} + \frac{1}{2} \epsilon^{-1}\right) I",
    "(d/4)**2*s_x*mass": r"\left(\frac{d}{4}\right)^{2} \mathrm{s\_x} \mathrm{mass} I",
}


@pytest.mark.parametrize("text", LATEX)
def test_coefficients_in_latex(text):
    assert FORMATS["latex"].term("I_{}", text) == LATEX[text] + "_{}"


def test_latex_is_a_line_for_each_target(tmp_path):
    """And is written only."""
    record = record_of({"a-b": {(1, 1): "-2/3", (0, 1): "d"}, (2, 1): {(1, 1): Fraction(-1)}, (0, 0): {}}, "nonplanar-doublebox")
    (path,) = write_exports(record, tmp_path / "r.pkl", ["latex"])
    name = r"I_{\mathrm{nonplanar\mbox{-}doublebox}}"
    assert path.read_text().splitlines()[1:] == [
        rf"\mathrm{{a\mbox{{-}}b}} = -\frac{{2}}{{3}} {name}(1,1) + d {name}(0,1)", f"{name}(2,1) = -{name}(1,1)", f"{name}(0,0) = 0",
    ]  # fmt: skip
    with pytest.raises(InputError, match="written only"):
        read_export(path)
    matrices = {"s": {(1, 1): {(1, 1): "1/s"}}, "d": {(1, 1): {(1, 1): "s"}}}
    record = record_of({}, "bubble") | {"differential_equation": {"masters": [(1, 1)], "matrices": matrices}}
    first, second = export_text(record, "latex").splitlines()[1:]
    assert first == r"\partial_{s} I_{\mathrm{bubble}}(1,1) = \frac{1}{s} I_{\mathrm{bubble}}(1,1)"
    assert second == r"I^{(d-2)}_{\mathrm{bubble}}(1,1) = s I_{\mathrm{bubble}}(1,1)"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(coefficient_texts())
def test_latex_of_a_coefficient_means_the_same(text):
    """Written back with the signs of Python it has the same value."""
    tex = FORMATS["latex"].term("I_{}", text).removesuffix("I_{}").strip()
    for _ in range(text.count("/")):
        tex = re.sub(r"\\frac(\{(?:[^{}]|\{[^{}]*\})*\})(\{(?:[^{}]|\{[^{}]*\})*\})", lambda m: f"(({m[1][1:-1]})/({m[2][1:-1]}))", tex)
    back = tex.replace(r"\left", "").replace(r"\right", "").replace(r"\cdot", "").replace("{", "(").replace("}", ")").replace("^", "**")
    back = re.sub(r"(?<=[\w)]) +(?=[\w(])", "*", back)
    try:
        value = value_at(text, m=Fraction(11))
    except ZeroDivisionError:
        return
    assert "frac" in back or value_at({"": "1", "-": "-1"}.get(back, back), m=Fraction(11)) == value


def test_sympy_reads_its_export(tmp_path):
    """As the README says: run the file, sympify both sides."""
    import sympy

    (path,) = write_exports(MANY, tmp_path / "r.pkl", ["sympy"])
    names = {}
    exec(path.read_text(), names)
    rules = {sympy.sympify(left): sympy.sympify(right) for left, right in names["reductions"].items()}
    head = sympy.Function("G")
    for target, expression in MANY["reductions"].items():
        right = sum((sympy.sympify(value) * head(*term) for term, value in expression.items()), sympy.S.Zero)
        assert sympy.simplify(rules[head(*target)] - right) == 0


def test_json_export_is_json(tmp_path):
    (path,) = write_exports(EXACT, tmp_path / "r.pkl", ["json"])
    data = json.loads(path.read_text())
    first = data["reductions"][0]
    assert (first["integral"], first["terms"][0]["integral"]) == ([0, 2, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0])
    assert Fraction(first["terms"][0]["coefficient"]) == EXACT["reductions"][SUNRISES[0]][SUNRISE_CORNER]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(coefficient_texts())
def test_numerator_and_denominator_for_form(text):
    """Their quotient is the coefficient, and neither divides by more than a number."""
    try:
        value = value_at(text, m=Fraction(11))
    except ZeroDivisionError:
        return
    if value:
        above, below = numerator_and_denominator(text)
        assert value_at(above, m=Fraction(11)) / value_at(below, m=Fraction(11)) == value
        assert not re.search(r"/ *[^ 0-9]|\*\* *\(? *-", above + "|" + below)


@pytest.mark.parametrize("name, symbols, family, bad", [
    ("mathematica", {"m_1"}, "x", "m_1"), ("kira", {"E"}, "x", "E"), ("form", {"num"}, "x", "num"), ("form", {"x"}, "x", "x"),
    ("form", set(), "den", "den"), ("form", {"m_1"}, "x", "m_1"),
])  # fmt: skip
def test_names_that_mean_something_else_there(name, symbols, family, bad):
    with pytest.raises(InputError, match=f"--export {name}: the name {bad} is not free"):
        check_export_names(name, family, symbols)
    check_export_names("json", family, symbols)
    check_export_names("sympy", family, symbols)


def test_exports_of_a_run(place, capsys):
    """Beside the output, several at once, in both kinds of runs."""
    for more in ([], ["--batch", "auto"]):
        words = [*BUBBLE, *more, "--output", "out/r.pkl", "--export", "mathematica, kira", "--export", "form,json,sympy,kira"]
        assert exit_code(words) == 0
        printed = capsys.readouterr().out
        result = read_result("out/r.pkl")
        assert sorted(os.listdir("out")) == ["kira_r.m", "r.inc", "r.json", "r.m", "r.pkl", "r.py"]
        for name in EXPORTS:
            path = export_path(Path("out/r.pkl"), name)
            assert f"export {name}: {path}\n" in printed
            assert read_export(path)["reductions"] == result["reductions"]
            path.unlink()


@pytest.mark.parametrize("text", [
    "", "{", "[]", "null", "(* {} *)\n", "import os\n", "* ibp_reduce\n", "\0", '{"header": {}}', '{"header": ' * 5000,
    '(* {"program": "ibp_reduce", "format": 1, "export": "kira", "family": "x", "prime": null} *)\n{x[1] -> y[2]*(3)}',
    '(* {"program": "ibp_reduce", "format": 1, "export": "kira", "family": "x", "prime": null} *)\n{x[1] -> }}',
    '(* {"program": "ibp_reduce", "format": 1, "export": "kira", "family": "x", "prime": 7} *)\n{x[1] -> x[2]*(1/3)}',
    '(* {"program": "ibp_reduce", "format": 2, "export": "kira", "family": "x", "prime": 7} *)\n{x[1] -> x[2]*(3)}',
    '# {"program": "ibp_reduce", "format": 1, "export": "sympy", "family": "x", "prime": 7}\nprint(1)\n',
], ids=lambda text: repr(text)[:20] + str(len(text)))  # fmt: skip
def test_what_is_no_export(text, tmp_path):
    path = tmp_path / "e"
    path.write_text(text)
    with pytest.raises(InputError, match="^export ") as caught:
        read_export(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_bad_conversion_is_refused(place, capsys):
    Path("r.pkl").write_bytes(pickle.dumps(MANY))
    Path("odd.json").write_bytes(pickle.dumps(MANY))
    (place / "d.m").mkdir()
    for words, fragments in [
        (["convert", "r.pkl"], ["convert", "--export"]),
        (["convert", "none.pkl", "--export", "json"], ["none.pkl", "No such file"]),
        (["convert", "odd.json", "--export", "json"], ["--export json", "is the result to be converted"]),
        (["convert", "r.pkl", "--export", "json", "--output", "r.pkl"], ["--output", "is the result to be converted"]),
        (["convert", "r.pkl", "--export", "mathematica", "--output", "d.pkl"], ["--export mathematica", "d.m"]),
        (["verify", "none"], ["none", "No such file"]),
        (["verify", "."], [".: ", "directory"]),
    ]:
        check_refused(words, place, capsys, fragments)


def test_export_that_fails_on_the_way_leaves_the_result(place, capsys, monkeypatch):
    """A full disk, say: one line, exit code 1, and no half file."""
    whole = replace_file

    def full(path, content, sync=False):
        if Path(path).suffix == ".m":
            raise OSError(28, "No space left on device")
        whole(path, content, sync)

    patch_rooms(monkeypatch, "ibp", "replace_file", full)
    assert exit_code([*BUBBLE, "--output", "r.pkl", "--quiet", "--export", "mathematica"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--export mathematica" in said and "No space left" in said
    assert read_result("r.pkl")["success"] and not Path("r.m").exists()
