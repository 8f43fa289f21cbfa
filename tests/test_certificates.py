"""Certificates: what they prove, and that whatever is changed in one is noticed."""

import dataclasses
import functools
import hashlib
import json
import pickle
import random
import re
from pathlib import Path

import pytest
from support import BUBBLE_JSON, P31, bits_of, combine, exit_code, patch_rooms, point_of, reduced, residue
from support_oracles import FAMILIES, Kinematics, any_kinematics, needs_stored_rules

from executors.base import InlineExecutor
from executors.files import load_builtins
from ibp.certificates import Verifier, make_certificate, pack_certificate, unpack_certificate, verify_certificate
from ibp.console import Progress
from ibp.controller import Controller
from ibp.errors import CertificateError
from ibp.exports import read_export
from ibp.families import BUILT_IN_FAMILIES
from ibp.identities import generic_point
from ibp.problems import Problem
from ibp.rules import Neighbourhood
from ibp.store import Store
from ibp.verification import read_result


def certified(shelves, family, targets, prime=1009, point=None, executor=None, **options):
    """The certificate of a run, through the bytes of its file."""
    family = BUILT_IN_FAMILIES.get(family, family)
    problem = Problem(family, point or point_of(family, prime), tuple(targets), **options)
    outcome = Controller(problem, executor or InlineExecutor(), shelves, Progress(quiet=True), certify=True).run()
    return unpack_certificate(pack_certificate(make_certificate(problem, outcome)))


DOTTED = (1, 0, 1, 2, 1, 1, 0)  # as a master instead of the corner
# family, targets, options of Problem
CERTIFIED = [
    ("bubble", [(3, 2)], {}),
    ("bubble", [(4, -3), (2, 2), (0, 0), (1, 1)], {}),
    ("box", [(2, 2, 2, 1)], {}),
    ("sunrise", [(2, 1, 2, -1, -1)], {}),
    ("trianglebox", [(1, 1, 1, 1, 1, 1, -3)], {"paper_masters_only": True}),
    ("trianglebox", [(1, 1, 1, 1, 1, 1, -1), (2, 1, 1, 1, 1, 0, -2), (1, 0, 0, 0, 0, 0, 0), (1, 1, 1, 1, 1, 1, 0)], {}),
    ("trianglebox", [(1, 1, 1, 1, 1, 1, -1), (1, 0, 1, 2, 1, 1, 0)], {"paper_masters_only": True, "preferred_masters": (DOTTED,)}),
    ("doublebox", [(1, 1, 1, 1, 1, 1, 1, -1, -1)], {}),
]  # fmt: skip


@needs_stored_rules
@pytest.mark.parametrize("prime", [1009, P31])
@pytest.mark.parametrize("family, targets, options", CERTIFIED, ids=lambda value: str(value)[:40])
def test_certificate_is_verified_and_holds_for_other_identities(shelves, family, targets, options, prime):
    """Also by the identities of the oracle, term by term in plain Python, with the zero sectors that it finds."""
    own = certified(shelves, family, targets, prime, **options)
    assert list(own.reductions) == list(dict.fromkeys(targets))
    assert verify_certificate(own) > 0
    kinematics = Kinematics(own.family)
    operators = [{s: [residue(v, prime) for v in row] for s, row in terms.items()} for terms in kinematics.identities(own.point.d)]
    live = set(any_kinematics(own.family).nonzero_sectors())
    for k, (target, expression) in enumerate(own.reductions.items()):
        left = combine((-1, {target: 1}), (1, expression), p=prime)
        for line in range(own.start[k], own.start[k + 1]):
            seed = own.seed[own.identity[line]].tolist()
            for shift, row in operators[own.operator[own.identity[line]]].items():
                term = tuple(map(int.__add__, seed, shift))
                value = (row[0] + sum(map(int.__mul__, row[1:], seed))) * int(own.multiplier[line])
                left[term] = (left.get(term, 0) + value) % prime
        assert {term for term, value in left.items() if value and bits_of(term) in live} == set()
        assert set(expression) <= set(own.masters)


def test_certifying_changes_no_result_and_ignores_stored_steps(tmp_path):
    """One-step results in a store carry no rows: they are found anew, and what is stored stays."""
    family, target = BUILT_IN_FAMILIES["sunrise"], (2, 2, 2, -1, -1)
    store = Store(tmp_path / "store.shelf")
    problem = Problem(family, point_of(family, 1009), (target,))
    first = Controller(problem, InlineExecutor(), [store], Progress(quiet=True)).run()
    assert any(store.load(family, problem.point).steps.values())
    again = Controller(problem, InlineExecutor(), [store], Progress(quiet=True), certify=True).run()
    assert (again.reductions, again.masters) == (first.reductions, first.masters) and first.proof is None
    certificate = make_certificate(problem, again)
    assert verify_certificate(certificate) > 0
    cold = Controller(problem, InlineExecutor(), [], Progress(quiet=True), certify=True).run()
    assert verify_certificate(make_certificate(problem, cold)) > 0


@pytest.mark.parametrize("level", [(), (Neighbourhood(1, (-1, -1), (-1, 0), 2),)])
def test_certificate_of_what_is_not_reduced(level, place, monkeypatch, capsys):
    """It holds for what was done, and says that there are integrals left."""
    patch_rooms(monkeypatch, "ibp", "NEIGHBOURHOODS", level)
    words = ["--integral", "1,1,1,1,1,1,-2", "--paper-masters-only", "--quiet", "--output", "r.pkl"]
    assert exit_code([*words, "--certificate", "c", "--export", "json"]) == 1
    left = read_result("r.pkl")["unreduced"]
    capsys.readouterr()
    assert exit_code(["verify", "c"]) == 0
    assert f" of 16 masters and {len(left)} that nothing reduces, by " in capsys.readouterr().out
    assert read_export("r.json")["unreduced"] == [list(term) for term in left]


@pytest.mark.parametrize("name", FAMILIES)
def test_verifier_finds_the_scaleless_sectors(name):
    """Its own U and F against those of the oracle; where an invariant vanishes more sectors are scaleless, never fewer."""
    family = BUILT_IN_FAMILIES[name]
    every = range(1, 1 << family.lines)
    verifier = Verifier(family, generic_point(family))
    assert [bits for bits in every if not verifier.is_scaleless(bits)] == any_kinematics(family).nonzero_sectors()
    special = {name: 0 for name, _ in family.point[:1]}
    at_zero = Verifier(family, point_of(family, **special))
    assert [bits for bits in every if not at_zero.is_scaleless(bits)] == Kinematics(family, **special).nonzero_sectors()


@pytest.fixture(scope="session")
def small_certificate(shelves):
    """Two targets of the bubble, its verifier, and both primes' worth of nothing else: 1,000 verifications take seconds."""
    own = certified(shelves, "bubble", [(3, 2), (2, 3)], P31)
    return own, Verifier(own.family, own.point)


def changed_expression(own, draw):
    target = draw.choice(list(own.reductions))
    expression = dict(own.reductions[target])
    term = draw.choice(list(expression))
    kind = draw.choice(["value", "bit", "drop", "move"])
    old = expression.pop(term)
    if kind == "value":
        expression[term] = (old + draw.randrange(1, own.point.prime)) % own.point.prime
    elif kind == "bit":
        expression[term] = old ^ 1 << draw.randrange(30)
    elif kind == "move":
        other = draw.choice([master for master in own.masters if master != term])
        expression[other] = (expression.get(other, 0) + old) % own.point.prime
    return dataclasses.replace(own, reductions=own.reductions | {target: expression})


def changed_array(own, draw, name):
    values = getattr(own, name).copy()
    line = draw.randrange(len(values))
    if name == "multiplier":
        values[line] = (values[line] + draw.randrange(1, own.point.prime)) % own.point.prime
    elif name == "seed":
        values[line, draw.randrange(values.shape[1])] += draw.choice([-2, -1, 1, 2])
    else:
        values[line] = draw.choice([k for k in range(own.family.operators) if k != values[line]])
    return dataclasses.replace(own, **{name: values})


def test_each_of_a_thousand_corruptions_is_caught(small_certificate):
    """Coefficients, multipliers, seeds and operators, one at a time; and what is not corrupted is verified."""
    own, verifier = small_certificate
    draw = random.Random(7)
    assert verify_certificate(own, verifier) > 0
    caught = 0
    for number in range(1000):
        kind = ("coefficient", "multiplier", "seed", "operator")[number % 4]
        bad = changed_expression(own, draw) if kind == "coefficient" else changed_array(own, draw, kind)
        with pytest.raises(CertificateError, match=r"is not proven: I\["):
            verify_certificate(bad, verifier)
        caught += 1
    assert caught == 1000


def header_of(content):
    first, line, rest = content[:-32].split(b"\n", 2)
    return first, json.loads(line), rest


def with_header(content, change):
    """A certificate with another header and the right checksum."""
    first, header, rest = header_of(content)
    change(header)
    changed = b"\n".join([first, json.dumps(header).encode(), rest])
    return changed + hashlib.sha256(changed).digest()


def set_path(*path):
    def change(header):
        *parents, last, value = path
        place = functools.reduce(lambda value, key: value[key], parents, header)
        place[last] = value

    return change


DEPENDENT_JSON = BUBBLE_JSON | {"name": "x", "propagators": ["k1", "2*k1"]}
HEADER_CHANGES = {
    "another prime": (set_path("prime", 2147483629), "other identities"),
    "no prime": (set_path("prime", 1001), "1001 is no prime"),
    "a huge prime": (set_path("prime", 2**61 - 1), "no prime number in use"),
    "a prime as text": (set_path("prime", "1009"), "no prime"),
    "another d": (set_path("d", "43"), "other identities"),
    "d is no number": (set_path("d", "4-2*eps"), "integer or a fraction"),
    "another invariant": (set_path("kinematics", "m", "5"), "other identities"),
    "no invariants": (set_path("kinematics", {}), "not a sound certificate"),
    "another family of that name": (set_path("family", "propagators", 0, ["k1", "0"]), "not the built-in one"),
    "another family": (set_path("family", "name", "other"), None),  # the same under another name is right
    "a family with dependent propagators": (set_path("family", DEPENDENT_JSON), "dependent"),
    "a family that is none": (set_path("family", {"name": "x"}), "missing"),
    "masters left out": (set_path("masters", []), "not in its list of masters"),
    "a master of another family": (set_path("masters", [[1, 1, 1]]), "no integral of the family"),
    "a target that is none": (set_path("reductions", 0, 0, [1, "1"]), "no integral of the family"),
    "another target": (set_path("reductions", 0, 0, [2, 2]), "is not proven: I["),
    "a huge target": (set_path("reductions", 0, 0, [10**9, 2]), "no integral of the family"),
    "no reductions": (set_path("reductions", []), "another number of targets"),
    "a coefficient of zero": (set_path("reductions", 0, 1, 0, 1, 0), "a coefficient that is none"),
    "a coefficient beyond the prime": (set_path("reductions", 0, 1, 0, 1, 2**31), "a coefficient that is none"),
    "a coefficient with a point": (set_path("reductions", 0, 1, 0, 1, 1.0), "a coefficient that is none"),
    "other identities": (set_path("identities", "0" * 64), "other identities"),
    "an array of objects": (set_path("arrays", "seed", 0, "|O"), "not a sound certificate"),
    "an array that is too long": (set_path("arrays", "seed", 1, 10**15), "not a sound certificate"),
    "an array of negative length": (set_path("arrays", "seed", 1, -1), "not a sound certificate"),
    "an array with a fraction of an entry": (set_path("arrays", "operator", 1, 3), "not a sound certificate"),
    "no arrays": (set_path("arrays", {}), "not a sound certificate"),
}  # fmt: skip


@pytest.mark.parametrize("what", HEADER_CHANGES)
def test_changed_header_of_a_certificate(what, small_certificate, place, capsys):
    """With a checksum that fits: one line that says what is wrong."""
    change, fragment = HEADER_CHANGES[what]
    content = pack_certificate(small_certificate[0])
    Path("c").write_bytes(with_header(content, change))
    code = exit_code(["verify", "c"])
    printed, said = capsys.readouterr()
    if fragment is None:
        assert code == 0 and printed.startswith("verified: ") and said == ""
    else:
        assert (code, printed, said.count("\n")) == (1, "", 1) and fragment in said, said


def leaves(value, path=()):
    """Paths to everything in nested lists and dicts."""
    yield from ([path] if path else [])
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from leaves(value[key], (*path, key))


def test_headers_with_nonsense_are_refused_in_one_line(small_certificate, place, capsys):
    """Any part of the header replaced by something else, with a checksum that fits: proven all the same, or one line."""
    content, draw = pack_certificate(small_certificate[0]), random.Random(11)
    paths = list(leaves(header_of(content)[1]))
    nonsense = [None, True, -1, 0, 3, 2**70, 1.5, "", "x", "k1", "<u8", "|O", [], [1], [[1, 2]], {}, {"a": 1}, "9" * 400, "1/0", "\u2212"]
    codes = set()
    for number in range(400):
        change = set_path(*draw.choice(paths), draw.choice(nonsense))
        Path("c").write_bytes(with_header(content, change))
        codes.add(code := exit_code(["verify", "c"]))
        printed, said = capsys.readouterr()
        assert (code, said) == (0, "") or (code == 1 and printed == "" and said.count("\n") == 1 and len(said) < 1000), (number, said)
    assert codes == {0, 1}  # a version or a default value may be anything


def test_damaged_certificates_are_refused_in_one_line(small_certificate, place, capsys):
    """Every truncation, every changed byte, and files that are something else."""
    content = pack_certificate(small_certificate[0])
    draw = random.Random(3)
    bad = [content[:k] for k in range(len(content))]
    bad += [content[:k] + bytes([content[k] ^ draw.randrange(1, 256)]) + content[k + 1 :] for k in range(len(content))]
    bad += [content + b"\0", content + content, content[1:], b"\n" + content, bytes(1000), b"[]", draw.randbytes(5000), b"\x80\x04."]
    bad += [content.replace(b"format 1", b"format 2", 1), pickle.dumps({"format": 1}), pickle.dumps([content]), content[:24] + b"\xff" * 99]
    for number, damaged in enumerate(bad):
        Path("c").write_bytes(damaged)
        code = exit_code(["verify", "c"])
        printed, said = capsys.readouterr()
        assert code in (1, 2) and printed == "" and said.count("\n") == 1 and said.startswith("ibp_reduce: "), (number, said)
        assert "Traceback" not in said and len(said) < 1000
    assert len(bad) > 1500


def test_certificate_from_the_command_line(place, capsys, monkeypatch):
    """Made by two processes, read again, and a pipe of the header alone tells what it is of."""
    patch_rooms(monkeypatch, "ibp", "SMALL_TASK", 0)
    words = ["--family", "sunrise", "--integral", "2,1,2,-1,-1", "--local", "2"]
    assert exit_code([*words, "--certificate", "deep/c", "--output", "r.pkl"]) == 0
    assert "certificate: deep/c" in capsys.readouterr().out
    result = load_builtins(Path("r.pkl").read_bytes())
    assert result["reductions"] == reduced("--family", "sunrise", "--integral", "2,1,2,-1,-1")["reductions"]
    for name, count in (("deep/c", " through 6 of "), ("r.pkl", "modulo 1009, by")):
        assert exit_code(["verify", name]) == 0
        printed, said = capsys.readouterr()
        assert printed.startswith("verified: I[2,1,2,-1,-1] of sunrise at d=41, s=7, m=3 modulo 1009") and printed.count("\n") == 1
        assert said == "" and (name == "r.pkl" or re.search(r" through \d of \d masters, by ", printed)), count
    _, header, _ = header_of(Path("deep/c").read_bytes())
    assert header["reductions"] == [[[2, 1, 2, -1, -1], [[list(term), value] for term, value in result["final_expr"].items()]]]
    assert (header["prime"], header["d"], header["kinematics"]) == (1009, "41", {"s": "7", "m": "3"})
    assert exit_code(["verify", "deep/c", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
