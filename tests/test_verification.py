"""Results read back and verified."""

import dataclasses
import json
import os
import pickle
import re
from fractions import Fraction
from pathlib import Path

import pytest
from support import BUBBLE_JSON, P31, Touches, exit_code, patch_rooms, reduced, said
from support_oracles import EXACT, MODULAR, SUNRISE_CORNER, SUNRISES, SYMBOLIC, massless_banana, massless_banana_text, record_of

from ibp.certificates import pack_certificate, unpack_certificate, verify_certificate
from ibp.errors import CertificateError
from ibp.verification import read_result

RECORD_IN_D = record_of({a: {SUNRISE_CORNER: massless_banana_text(a[1:4], "1")} for a in SUNRISES}, d="d")


@pytest.mark.parametrize("record, said", [
    (MODULAR, "at d=41, m1=1, m2=31, m3=47 modulo 1009, by"), (EXACT, r"at 3 random primes \(\d+, \d+, \d+\), by"),
    (SYMBOLIC, r"at 3 random primes \(\d+, \d+, \d+\) and values of d, m1, by"), (RECORD_IN_D, r"and values of d, by"),
], ids=["modular", "exact", "symbolic", "in d"])  # fmt: skip
def test_result_of_each_kind_is_verified_and_an_error_in_it_is_found(record, said, place, capsys):
    """Closed forms; then one with another number, one power more, or one target taken for another."""

    def verify(record):
        Path("r.pkl").write_bytes(pickle.dumps(record, protocol=4))
        return exit_code(["verify", "r.pkl"])

    assert verify(record) == 0
    printed, complaint = capsys.readouterr()
    assert printed.startswith("verified: I[0,2,1,1,0,0,0]") and printed.count("\n") == 1 and complaint == ""
    assert re.search(said, printed), printed
    first, *_ = target, *_ = list(record["reductions"])
    value = record["reductions"][first][SUNRISE_CORNER]
    wrong = [f"({value})*d/(d - 1)", f"{value}*m2", f"{value} + 1/10**50"] if isinstance(value, str) else [(value + 1) % 1009]
    wrong += [] if record["prime"] else [Fraction(1, 3)]
    for other in wrong:
        assert verify(record | {"reductions": record["reductions"] | {target: {SUNRISE_CORNER: other}}}) == 1
        printed, complaint = capsys.readouterr()
        assert printed == "" and complaint.count("\n") == 1 and "I[0,2,1,1,0,0,0] is wrong at d=" in complaint
    assert verify(record | {"reductions": {(0, 1, 2, 2, 0, 0, 0): {SUNRISE_CORNER: value}}}) == 1


AMPLITUDE = "amp: 3*I[2,1,1,-1,0] - (d-4)^2/s*I[1,2,1,0,-1]\n1,1,1,-1,-1\nother: m*I[2,1,1,0,0] + I[1,1,0,-1,0]\n"


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--symbols d,s",
        "--symmetries",
        "--exact --symmetries",
        "--cut 1,2",
        "--cut spanning",
        "--symbols m --cut 2,1",
        "--symbols d --cut 1 --symmetries",
    ],
)
def test_results_of_combinations_symmetries_and_cuts_are_verified(words, place, capsys):
    """And an error in a coefficient, in a term of a combination or in a reduction is found; no more is said than was checked."""
    Path("wanted").write_text(AMPLITUDE)
    more = words.split()
    words = ["--family", "sunrise", "--integrals", "wanted", "--masters", "masters", "--quiet", "--output", "r.pkl"]
    Path("masters").write_text("2,1,1,0,0\n")
    words = words if "--cut" not in more else words[:4] + words[6:]
    assert exit_code([*words, *more]) == 0
    record = read_result("r.pkl")
    line = said(capsys, ["verify", "r.pkl"], 0)
    assert line.startswith("verified: I[1,1,1,-1,-1] and 2 more of sunrise") and ("relations by symm" in line) == ("--symmetries" in more)
    assert (" on the cut" in line) == ("--cut" in more) and ("| 1,3" in line) == ("spanning" in more)
    changes = []
    for target, expression in record["reductions"].items():
        term, value = next(iter(expression.items()))
        changed = f"{value}+1" if isinstance(value, str) else (value + 1) % (record["prime"] or P31)
        changes.append(record | {"reductions": record["reductions"] | {target: expression | {term: changed}}})
        if isinstance(target, str):
            (integral, text), *others = record["combinations"][target]
            changes.append(record | {"combinations": record["combinations"] | {target: [(integral, f"2*({text})"), *others]}})
    for number, changed in enumerate(changes):
        Path(f"{number}.pkl").write_bytes(pickle.dumps(changed))
        line = said(capsys, ["verify", f"{number}.pkl"], 1)
        assert line.count("\n") == 1 and "is wrong at" in line


def test_symmetries_and_cuts_are_needed_for_their_results(place, capsys):
    """Without the word that says so, such a result is none of a whole reduction by identities."""
    symmetric, cut = (reduced("--family", "sunrise", "--integral", "2,1,1,-1,-2", *more) for more in (["--symmetries"], ["--cut", "1,2"]))
    del symmetric["symmetries"]
    for record in (symmetric, cut | {"cuts": []}, cut | {"cuts": [[]]}, {key: value for key, value in cut.items() if key != "cuts"}):
        Path("r.pkl").write_bytes(pickle.dumps(record))
        assert "is wrong at" in said(capsys, ["verify", "r.pkl"], 1)


def test_certificates_of_combinations(place, capsys):
    """Their terms are in the certificate; what is changed in it is found."""
    Path("wanted").write_text(AMPLITUDE)
    Path("masters").write_text("2,1,1,0,0\n")
    words = ["--family", "sunrise", "--integrals", "wanted", "--masters", "masters", "--certificate", "c"]
    reduced(*words)
    capsys.readouterr()
    assert said(capsys, ["verify", "c"], 0).startswith("verified: I[1,1,1,-1,-1] and 2 more of sunrise at d=41")
    own = unpack_certificate(Path("c").read_bytes())
    assert list(own.combinations) == ["amp", "other"] and list(own.reductions) == [(1, 1, 1, -1, -1), "amp", "other"]
    terms, reductions = own.combinations["amp"], own.reductions
    term, value = next(iter(reductions["amp"].items()))
    changes = {
        "combinations": [{"amp": ((terms[0][0], "4"), *terms[1:])}, {"amp": terms[1:]}, {"amp": ((terms[0][0], "3/0"),)}, {"amp": ()},
                         {"amp": (((1, 1, 1, 0, 0), "3"), *terms[1:])}, {"other": terms}, {"amp": ((terms[0][0], "3*q"), *terms[1:])}],
        "reductions": [{"amp": reductions["amp"] | {term: value % 1008 + 1}}, {"amp": {}}, {"other": reductions["amp"]}],
    }  # fmt: skip
    for key, parts in changes.items():
        for part in parts:
            changed = dataclasses.replace(own, **{key: getattr(own, key) | part})
            with pytest.raises(CertificateError, match="(amp|other) is not proven"):
                verify_certificate(unpack_certificate(pack_certificate(changed)))
    with pytest.raises(CertificateError, match="not a sound certificate"):
        unpack_certificate(pack_certificate(dataclasses.replace(own, combinations={})))
    for more in (["--symmetries"], ["--cut", "1"]):
        line = said(capsys, ["--family", "sunrise", "--integral", "2,1,1,0,0", "--certificate", "c", *more], 2)
        assert line.count("\n") == 1 and "--certificate and" in line and "contradict" in line


def test_result_in_another_basis_is_verified(place, capsys):
    """The masters of the result need not be those of a new run: a dotted bubble instead of the corner."""
    ratio = massless_banana((3, 1, 1), 1) / massless_banana((2, 1, 1), 1)
    record = record_of({(0, 3, 1, 1, 0, 0, 0): {(0, 2, 1, 1, 0, 0, 0): ratio}})
    Path("r.pkl").write_bytes(pickle.dumps(record))
    assert exit_code(["verify", "r.pkl"]) == 0
    assert exit_code(["--integral", "1,1,1,1,1,0,-1", "--quiet", "--output", "corners.pkl"]) == 0  # not only to the published masters
    assert exit_code(["verify", "corners.pkl"]) == 0
    assert capsys.readouterr().out.count("verified: ") == 2


def test_result_that_cannot_be_reduced_anew_is_not_called_wrong(place, monkeypatch, capsys):
    Path("r.pkl").write_bytes(pickle.dumps(EXACT))
    patch_rooms(monkeypatch, "ibp", "NEIGHBOURHOODS", ())
    assert exit_code(["verify", "r.pkl"]) == 1
    printed, said = capsys.readouterr()
    assert printed == "" and said.count("\n") == 1 and "cannot be checked at d=7" in said and "is not reduced" in said


def test_result_of_a_family_of_the_user_needs_its_file(place, capsys):
    Path("mine.json").write_text(json.dumps(BUBBLE_JSON | {"name": "mine"}))
    assert exit_code(["--family", "mine.json", "--integral", "2,1", "--quiet", "--output", "r.pkl", "--certificate", "c"]) == 0
    assert exit_code(["verify", "c"]) == 0  # says itself what it is of
    assert exit_code(["verify", "r.pkl", "--family", "mine.json"]) == 0
    assert exit_code(["verify", "r.pkl"]) == 2
    assert capsys.readouterr().err.endswith(
        "its family mine is not built in; give --family FILE or --kira-config DIR with its definition\n"
    )


BAD_RESULTS = {
    "code": Touches(),
    "no dict": [1],
    "another format": EXACT | {"format": 2},
    "no reductions": EXACT | {"reductions": {}},
    "a float": record_of({SUNRISES[0]: {SUNRISE_CORNER: 0.5}}),
    "a bool": record_of({SUNRISES[0]: {SUNRISE_CORNER: True}}),
    "a text modulo a prime": record_of({SUNRISES[0]: {SUNRISE_CORNER: "1"}}, prime=1009),
    "an integral of texts": record_of({SUNRISES[0]: {("1",) * 7: 1}}),
    "two lengths": record_of({SUNRISES[0]: {(1, 1): 1}}),
    "no prime": EXACT | {"prime": 1001},
    "code in a coefficient": record_of({SUNRISES[0]: {SUNRISE_CORNER: "__import__('os').mkdir('broken-out')"}}),
    "half a coefficient": record_of({SUNRISES[0]: {SUNRISE_CORNER: "(d - 1"}}),
    "a tower of powers": record_of({SUNRISES[0]: {SUNRISE_CORNER: "((9**9999)**9999)**9999"}}),
    "a power of a power": record_of({SUNRISES[0]: {SUNRISE_CORNER: "9**9**9**9"}}),
    "no dimension": {key: value for key, value in EXACT.items() if key != "d"},
    "a dimension in bytes": EXACT | {"d": b"41"},
    "a value that is none": EXACT | {"kinematics": EXACT["kinematics"] | {"m1": None}},
    "an invariant without a name": EXACT | {"kinematics": EXACT["kinematics"] | {(1, 1): 1}},
    "unreduced integrals that are none": EXACT | {"unreduced": [b"x"]},
    "unreduced integrals that are no list": EXACT | {"unreduced": {(1, 1): 1}},
    "unreduced integrals of texts": EXACT | {"unreduced": [(b"1", b"1")]},
    "a family that nothing can write": EXACT | {"family": "\ud800"},
    **{str(change): record_of({"amp": {(1, 1): 3}}, "bubble", P31) | {"combinations": {"amp": [((2, 1), "1")]}} | change for change in (
        *({"combinations": {"amp": terms}} for terms in ([((1, 1), "x(")], [((1, 1), 3)], [((1, 1, 1), "3")], 7, [((1, "1"), "3")])),
        *({"combinations": value} for value in ({}, None, {5: [((1, 1), "1")]})),
        *({"cuts": value} for value in (5, [["1"]], [[0]], [[10**9]])),
        {"symmetries": "yes"}, {"symmetries": True, "cuts": [[1], [2]]},
    )},
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_RESULTS)
def test_bad_result_is_refused(what, place, capsys):
    Path("r.pkl").write_bytes(pickle.dumps(BAD_RESULTS[what]))
    for words in (["verify", "r.pkl"], ["convert", "r.pkl", "--export", "form"]):
        assert exit_code(words) == 2
        printed, said = capsys.readouterr()
        assert printed == "" and said.count("\n") == 1 and "r.pkl: not a result of this program" in said and len(said) < 400
    assert sorted(os.listdir()) == ["r.pkl"]


@pytest.mark.parametrize("record, said", [
    (record_of({(0, 2, 1, 1, 0, 0, 3): {SUNRISE_CORNER: 1}}), "no integral of trianglebox"),
    (record_of({SUNRISES[0]: {SUNRISE_CORNER: 1}}, prime=3, d="d"), "one value of d modulo 3 shows nothing"),
    (record_of({(0, 200, 1, 1, 0, 0, 0): {SUNRISE_CORNER: 1}}), "no integral of trianglebox"),
    (record_of({(2, 1): {(1, 1): 1}}), "no integral of trianglebox"),
    (record_of({SUNRISES[0]: {SUNRISE_CORNER: "x"}}), "its symbols are"),
    (record_of({SUNRISES[0]: {SUNRISE_CORNER: 1}}, m4=7), "its symbols are"),
    (record_of({SUNRISES[0]: {SUNRISE_CORNER: "1/(d - d)"}}), "vanishing denominators"),
    (record_of({(2, 1): {(1, 1): 3}}, "bubble", P31) | {"cuts": [[3]]}, "lines that bubble has not"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_result_that_cannot_be_right(record, said, place, capsys):
    Path("r.pkl").write_bytes(pickle.dumps(record))
    assert exit_code(["verify", "r.pkl"]) == 1
    printed, complaint = capsys.readouterr()
    assert printed == "" and complaint.count("\n") == 1 and said in complaint
