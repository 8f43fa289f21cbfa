"""ibp reduce."""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support import (
    BUBBLE,
    BUBBLE_JSON,
    DEADLINE_S,
    SMALL,
    TRIANGLEBOX,
    check_refused,
    exit_code,
    known,
    patch_rooms,
    program,
    python,
    reduced,
    rules_in,
    snapshot,
    write_input_files,
)

import ibp_reduce
from executors import __version__
from executors.commands import parse
from executors.files import load_builtins
from ibp import interface
from ibp.families import BUILT_IN_FAMILIES, family_definition
from ibp.rules import NEIGHBOURHOODS

# words of the command: what the line on stderr must contain
BAD_COMMANDS = {
    # integrals
    "--integral=1,1": ("--integral", "2 indices", "has 7"),
    "--integral=1,1,1,1,1,1,1,1": ("--integral", "8 indices", "has 7"),
    "--integral=1.5,1,1,1,1,1,0": ("--integral", "1.5", "integer"),
    "--integral=a,1,1,1,1,1,0": ("--integral", "a,1,1"),
    "--integral=": ("--integral",),
    '--integral ""': ("--integral",),
    '--integral=" "': ("--integral",),
    "--integral": ("--integral", "argument"),
    "--integral=1,1,1,1,1,1,": ("--integral", "integer"),
    "--integral=1,1,1,,1,1,0": ("--integral", "integer"),
    '--integral="1 1 1 1 1 1 0"': ("--integral", "integer"),
    '--integral="1,1,1,1,1,1 1,0"': ("--integral", "integer"),
    "--integral=1_0,1,1,1,1,1,0": ("--integral", "1_0"),  # a slip for 1,0 must not become ten
    "--integral=0x1,1,1,1,1,1,0": ("--integral", "integer"),
    "--integral=1e0,1,1,1,1,1,0": ("--integral", "integer"),
    "--integral=\u22121,1,1,1,1,1,0": ("--integral", "integer"),  # a typographic minus
    "--integral=1,1,1,1,1,1,--3": ("--integral", "integer"),
    "--integral=1,1,1,1,1,1,1": ("--integral", "index 7", "must not be positive"),
    "--integral=101,1,1,1,1,1,0": ("--integral", "100"),
    "--integral=1,1,1,1,1,1,-101": ("--integral", "100"),
    "--integral=[1,1,1,1,1,1,-3": ("--integral", "not a list of indices"),
    "--integral=doublebox[1,1,1,1,1,1,-3]": ("--integral", "doublebox", "trianglebox", "--family"),
    # the point
    "--kinematics=m4=1": ("--kinematics", "m4", "m1, m2, m3"),
    "--kinematics=d=4": ("--kinematics", "d=4", "m1, m2, m3"),
    "--kinematics=m1": ("--kinematics", "m1", "NAME=VALUE"),
    "--kinematics==1": ("--kinematics", "NAME=VALUE"),
    "--kinematics=m1=": ("m1", "integer or a fraction"),
    "--kinematics=m1=a": ("m1", "integer or a fraction"),
    '--kinematics="m1=1;m2=2"': ("m1", "integer or a fraction"),
    "--kinematics=m1=nan": ("m1", "integer or a fraction"),
    "--kinematics=m1=1/0": ("m1", "integer or a fraction"),
    "--kinematics=m1=1/1009": ("m1", "division by zero", "1009"),
    "--kinematics=m1=1/7 --prime=7": ("m1", "division by zero", "7"),
    "--kinematics=m1=1,m1=2": ("--kinematics", "m1"),  # which of the two?
    "--kinematics=m1=1e5000": ("m1",),
    "--d=a": ("d", "integer or a fraction"),
    "--d=4-2*eps": ("d", "integer or a fraction"),
    "--d=1/1009": ("d", "division by zero", "1009"),
    "--d=1e5000": ("d",),
    # the prime
    "--prime=1": ("--prime", "prime number"),
    "--prime=0": ("--prime", "prime number"),
    "--prime=-7": ("--prime", "prime number"),
    "--prime=2": ("--prime", "prime number"),
    "--prime=1001": ("--prime", "prime number"),
    "--prime=2147483648": ("--prime", "prime number"),
    "--prime=2147483659": ("--prime", "2147483647"),
    "--prime=" + "9" * 40: ("--prime", "2147483647"),
    "--prime=1009.0": ("--prime", "1009.0"),
    "--prime=": ("--prime",),
    "--prime=5 --integral=1,1,1,1,1,1,-5": ("--prime", "largest index"),
    "--prime=7 --integral=7,1,1,1,1,1,0": ("--prime", "larger prime"),
    # numbers of other options
    "--local=0": ("--local", "from 1"),
    "--local=-3": ("--local", "from 1"),
    "--local=many": ("--local", "many"),
    "--straggler-timeout=0 --local=2": ("--straggler-timeout", "above 0"),
    "--straggler-timeout=-1 --local=1": ("--straggler-timeout", "auto, or seconds"),
    "--straggler-timeout=nan --local": ("--straggler-timeout",),
    "--straggler-timeout=inf --local=2": ("--straggler-timeout",),
    "--straggler-timeout=1e30 --local=2": ("--straggler-timeout",),
    # what contradicts itself, or does not exist
    "--integral=1,1,1,1,1,1,-1 --integrals=good.txt": ("--integral", "--integrals", "one of them"),
    "--integral= --integrals=good.txt": ("--integral",),
    "--exact --symbols=d": ("--exact", "--symbols", "one of them"),
    "--symbols=d --prime=1013": ("--prime", "--symbols"),
    "--condor --local=2": ("--condor", "--local"),
    "--resume --fresh": ("--resume", "--fresh"),
    "--certificate=c --symmetries": ("--certificate", "--symmetries"),
    "--paper-masters-only --symmetries": ("--paper-masters-only", "--symmetries"),
    "--order=3": ("--order", "--epsilon"),
    "--symetries": ("--symetries", "did you mean --symmetries?"),
    "reduec": ("reduec", "did you mean reduce?"),
    "--epochs=3": ("--epochs", "the command 'train'"),
    "--no-such-option": ("--no-such-option",),
    "--integ=1,1,1,1,1,1,-1": ("--integ",),
    "1,1,1,1,1,1,-1": ("1,1,1,1,1,1,-1",),
    "--family=triangle": ("'triangle'", "trianglebox", "bubble"),
    "--family=": ("family", "trianglebox"),
    "--family=missing.json": ("missing.json",),
    "--family=bubble": ("bubble", "--integral"),
    "--family=" + "x" * 300: ("family",),
    # files of integrals
    "--integrals=missing.txt": ("--integrals", "missing.txt", "No such file"),
    "--integrals=": ("--integrals",),
    "--integrals=.": ("--integrals", "directory"),
    "--integrals=empty.txt": ("--integrals", "empty.txt", "no integrals"),
    "--integrals=comments.txt": ("--integrals", "comments.txt", "no integrals"),
    "--integrals=short.txt": ("--integrals", "short.txt", "line 3", "3 indices"),
    "--integrals=word.txt": ("--integrals", "word.txt", "line 3", "hello"),
    "--integrals=other.txt": ("--integrals", "other.txt", "line 2", "doublebox"),
    "--integrals=positive.txt": ("--integrals", "line 1", "must not be positive"),
    "--integrals=nul.txt": ("--integrals", "line 2", "integer"),
    "--integrals=binary.txt": ("--integrals", "binary.txt", "not readable"),
    '--integrals="two\nlines"': ("--integrals", "lines"),
    "--masters=missing.txt": ("--masters", "missing.txt"),
    "--masters=empty.txt": ("--masters", "no integrals"),
    "--masters=short.txt": ("--masters", "line 3"),
    # where nothing can be written
    '--output="a file/r.pkl"': ("--output", "a file"),
    "--output=directory": ("--output", "directory"),
    "--output=": ("--output",),
    "--output=" + "x" * 300: ("output",),
    "--output=pipe": ("--output", "pipe"),
    '--work-dir="a file"': ("--work-dir", "a file"),
    '--work-dir="a file/work"': ("--work-dir", "a file"),
    "--work-dir=" + "x" * 300: ("work",),
    "--store=directory": ("--store", "directory"),
    '--store="a file/store"': ("--store", "a file"),
    "--store=" + "x" * 300: ("store",),
    # outputs that would overwrite an input, or each other
    "--output=good.txt --integrals=good.txt": ("--output", "good.txt"),
    "--output=bubble.json --family=bubble.json --integral=2,1": ("--output", "bubble.json"),
    "--output=same --store=same": ("--output", "--store"),
    "--output=same --work-dir=same": ("--output", "--work-dir"),
}


@pytest.mark.parametrize("command", BAD_COMMANDS, ids=lambda command: ascii(command)[1:60])
def test_bad_command_is_refused_in_one_line_and_nothing_is_written(command, place, capsys):
    write_input_files(place)
    complete = any(word in command for word in ("--integ", "--benchmark", "--family"))
    default = [] if complete else ["--integral=1,1,1,1,1,1,-1"]
    check_refused(shlex.split(command) + default, place, capsys, BAD_COMMANDS[command])


@pytest.mark.parametrize("option, path", [("--output", "locked/r.pkl"), ("--work-dir", "locked/work"), ("--store", "locked/deep/s")])
def test_directory_without_write_permission_is_refused(option, path, place, capsys, monkeypatch):
    (place / "locked").mkdir()
    allowed = os.access
    # a stand-in for chmod, which does not bind root
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and allowed(path, mode))
    check_refused([*BUBBLE, option, path], place, capsys, [option, "locked"])


CODE = '__import__("os").system("touch broken-out")'
DROP = object()
# changes to the definition of a bubble: what the line on stderr must contain
BAD_FAMILIES = {
    **{f"without {key}": ({key: DROP}, [key, "missing"]) for key in BUBBLE_JSON},
    "unknown key": ({"propagator": []}, ["'propagator'", "known"]),
    "name a number": ({"name": 7}, ["name", "str"]),
    "loop momenta a string": ({"loop_momenta": "k1"}, ["loop_momenta", "list"]),
    "loop momenta an object": ({"loop_momenta": {"k1": 1}}, ["loop_momenta", "list"]),
    "loop momenta numbers": ({"loop_momenta": [1]}, ["'1'", "name"]),
    "loop momenta null": ({"loop_momenta": [None]}, ["k1"]),
    "no loop momentum": ({"loop_momenta": []}, ["0 loop"]),
    "a thousand loop momenta": ({"loop_momenta": [f"k{i}" for i in range(1, 1001)]}, ["1000 loop"]),
    "external momenta nested": ({"external_momenta": [["p"]]}, ["name"]),
    "propagators an object": ({"propagators": {"k1": "m"}}, ["propagators", "list"]),
    "isps a float": ({"isps": 0.0}, ["isps", "int"]),
    "isps a string": ({"isps": "0"}, ["isps", "int"]),
    "isps a bool": ({"isps": False}, ["isps", "int"]),
    "isps negative": ({"isps": -1}, ["isps = -1", "0 <= isps"]),
    "isps all": ({"isps": 2}, ["isps = 2", "isps < propagators"]),
    "isps astronomical": ({"isps": 10**30}, ["isps"]),
    "kinematics a list": ({"kinematics": ["p*p"]}, ["kinematics", "dict"]),
    "invariants a list": ({"invariants": ["s", "m"]}, ["invariants", "dict"]),
    # names
    "momentum twice": ({"loop_momenta": ["k1", "k1"]}, ["'k1'", "twice"]),
    "loop momentum is external": ({"external_momenta": ["k1"]}, ["'k1'", "twice"]),
    "invariant is a momentum": ({"invariants": {"s": 7, "m": 3, "p": 1}}, ["'p'", "twice"]),
    "d as invariant": ({"invariants": {"s": 7, "m": 3, "d": 4}}, ["'d'"]),
    "invariant no name": ({"invariants": {"s": 7, "m": 3, "2m": 6}}, ["'2m'", "name"]),
    "invariant empty name": ({"invariants": {"s": 7, "m": 3, "": 6}}, ["''", "name"]),
    "name of the family over two lines": ({"name": "two\nlines"}, ["name", "letters"]),
    # propagators
    "too few propagators": ({"propagators": ["k1"]}, ["1 propagators", "exactly 2"]),
    "too many propagators": ({"propagators": ["k1", "k1+p", "k1-p"]}, ["3 propagators", "exactly 2"]),
    "dependent propagators": ({"propagators": [["k1", "m"], ["-k1", "0"]]}, ["linearly dependent"]),
    "propagator without loop momentum": ({"propagators": ["k1", "p"]}, ["linearly dependent"]),
    "undefined momentum": ({"propagators": ["k1", "k1+q"]}, ["'q'", "'k1+q'", "known"]),
    "undefined mass": ({"propagators": ["k1", ["k1+p", "M"]]}, ["'M'", "known"]),
    "momentum as mass": ({"propagators": ["k1", ["k1+p", "p"]]}, ["'p'", "known"]),
    "cubic propagator": ({"propagators": ["k1", "k1*k1*p"]}, ["'k1*k1*p'", "neither"]),
    "constant propagator": ({"propagators": ["k1", "1"]}, ["'1'", "neither"]),
    "vanishing propagator": ({"propagators": ["k1", "p-p"]}, ["'p-p'", "neither"]),
    "mixed propagator": ({"propagators": ["k1", "k1*p+k1"]}, ["'k1*p+k1'", "neither"]),
    "mass within a propagator": ({"propagators": ["k1", "(k1+p)**2-m"]}, ["(k1+p)**2-m", "masses"]),
    "quotient of momenta": ({"propagators": ["k1", "k1/p"]}, ["'k1/p'"]),
    "inverse momentum": ({"propagators": ["k1", "1/k1"]}, ["'1/k1'"]),
    "propagator a number": ({"propagators": ["k1", 2]}, ["'2'"]),
    "propagator null": ({"propagators": ["k1", None]}, ["'None'"]),
    "propagator an object": ({"propagators": ["k1", {"p": "m"}]}, ["propagator 2", "bilinear", "{'p': 'm'}"]),
    "propagator of three parts": ({"propagators": ["k1", ["k1", "p", "m"]]}, ["propagator"]),
    "propagator of no part": ({"propagators": ["k1", []]}, ["propagator"]),
    "empty propagator": ({"propagators": ["k1", ""]}, ["arithmetic"]),
    "mass not whole": ({"propagators": ["k1", ["k1+p", 1.5]]}, ["'1.5'", "arithmetic"]),
    "mass null": ({"propagators": ["k1", ["k1+p", None]]}, ["undefined symbol 'None'"]),
    "mass divided by zero": ({"propagators": ["k1", ["k1+p", "m/(s-s)"]]}, ["division by zero", "m/(s-s)"]),
    # kinematic rules
    "missing kinematic rule": ({"kinematics": {}}, ["p*p"]),
    "double kinematic rule": ({"kinematics": {"p*p": "s", "p**2": "s"}}, ["two", "p*p"]),
    "rule for unknown momenta": ({"kinematics": {"p*p": "s", "q*q": "0"}}, ["'q*q'", "external momenta p"]),
    "rule for a loop momentum": ({"kinematics": {"p*p": "s", "k1*p": "0"}}, ["'k1*p'"]),
    "rule for a triple product": ({"kinematics": {"p*p*p": "s"}}, ["'p*p*p'"]),
    "rule without momenta": ({"kinematics": {"p*p": "s", "": "0"}}, ["''"]),
    "undefined invariant": ({"kinematics": {"p*p": "u"}}, ["'u'", "known"]),
    "division by zero": ({"kinematics": {"p*p": "s/0"}}, ["division by zero", "s/0"]),
    "value null": ({"kinematics": {"p*p": None}}, ["undefined symbol 'None'"]),
    "value a list": ({"kinematics": {"p*p": ["s"]}}, ["arithmetic"]),
    "value not whole": ({"kinematics": {"p*p": 3.5}}, ["'3.5'", "arithmetic"]),
    "value empty": ({"kinematics": {"p*p": ""}}, ["arithmetic"]),
    # default values
    "invariant null": ({"invariants": {"s": None, "m": 3}}, ["s = 'None'"]),
    "invariant a list": ({"invariants": {"s": [7], "m": 3}}, ["s = "]),
    "invariant a formula": ({"invariants": {"s": "2*m", "m": 3}}, ["s = '2*m'"]),
    "d null": ({"d": None}, ["d"]),
    "d a formula": ({"d": "4-2*eps"}, ["'4-2*eps'"]),
    # what is no arithmetic
    "code in a propagator": ({"propagators": ["k1", CODE]}, ["arithmetic"]),
    "code in a mass": ({"propagators": ["k1", ["k1+p", CODE]]}, ["arithmetic"]),
    "code in a rule": ({"kinematics": {"p*p": CODE}}, ["arithmetic"]),
    "attribute": ({"propagators": ["k1", "k1.__class__"]}, ["arithmetic"]),
    "lambda": ({"propagators": ["k1", "(lambda: p)()"]}, ["arithmetic"]),
    "assignment": ({"propagators": ["k1", "(k1 := p)"]}, ["arithmetic"]),
    "string": ({"propagators": ["k1", '"p"']}, ["arithmetic"]),
    "caret": ({"propagators": ["k1", "(k1+p)^2"]}, ["arithmetic"]),
    "typographic minus": ({"propagators": ["k1", "k1\u2212p"]}, ["arithmetic"]),
    "NUL": ({"propagators": ["k1", "k1\0"]}, ["arithmetic"]),
    # too much of it
    "deep parentheses": ({"propagators": ["k1", "(" * 5000 + "p" + ")" * 5000]}, []),
    "many minus signs": ({"propagators": ["k1", "-" * 20_000 + "p"]}, []),
    "long sum": ({"propagators": ["k1", "+".join(["p"] * 20_000)]}, []),
    "number of 5000 digits": ({"kinematics": {"p*p": "1" * 5000}}, []),
    "high power": ({"propagators": ["k1", "k1**1000000"]}, []),
    "tower of powers": ({"propagators": ["k1", "2**9**9**9*k1"]}, []),
    "product of powers": ({"kinematics": {"p*p": "s*" + "(" * 5 + "7" + "**16)" * 5}}, []),
}


@pytest.mark.parametrize("case", BAD_FAMILIES)
def test_bad_family_is_refused_in_one_line_and_nothing_is_written(case, place, capsys):
    changes, fragments = BAD_FAMILIES[case]
    content = {key: value for key, value in (BUBBLE_JSON | changes).items() if value is not DROP}
    (place / "f.json").write_text(json.dumps(content))
    check_refused(["--family", "f.json", "--integral", "2,1"], place, capsys, fragments)


BAD_FAMILY_FILES = {
    "empty": b"",
    "text": b"name: bubble",
    "cut off": json.dumps(BUBBLE_JSON).encode()[:-10],
    "binary": bytes(range(256)),
    "another encoding": json.dumps(BUBBLE_JSON).encode("utf-16"),
    "list": json.dumps([BUBBLE_JSON]).encode(),
    "string": b'"bubble"',
    "null": b"null",
    "nested lists": b"[" * 100_000,
    "nested objects": b'{"name":' * 100_000,
    "double key": json.dumps(BUBBLE_JSON).replace('"isps": 0', '"isps": 1, "isps": 0').encode(),
    "double rule": json.dumps(BUBBLE_JSON).replace('"p*p": "s"', '"p*p": "s", "p*p": "0"').encode(),
}


@pytest.mark.parametrize("case", BAD_FAMILY_FILES)
def test_file_that_is_no_family_is_refused(case, place, capsys):
    (place / "f.json").write_bytes(BAD_FAMILY_FILES[case])
    check_refused(["--family", "f.json", "--integral", "2,1"], place, capsys, ["f.json"])


def test_family_that_is_a_directory_is_refused(place, capsys):
    (place / "f.json").mkdir()
    check_refused(["--family", "f.json", "--integral", "2,1"], place, capsys, ["'f.json'"])


@pytest.mark.parametrize(
    "rule, values, more",
    [
        ("s/(x-2)", {"x": 2}, []),
        ("s/(x-2)", {"x": 1011}, []),
        ("s/(x-2)", {"x": 5}, ["--kinematics=x=2"]),
        ("s/(d-4)", {"x": 0}, ["--d=4"]),
        ("s/1009", {"x": 0}, []),
    ],
)
def test_point_where_the_kinematics_have_a_pole_is_refused(rule, values, more, place, capsys):
    (place / "f.json").write_text(json.dumps(BUBBLE_JSON | {"kinematics": {"p*p": rule}, "invariants": {"s": 7, "m": 3} | values}))
    check_refused(["--family", "f.json", "--integral", "2,1", *more], place, capsys, ["division by zero", "1009", "another"])


@pytest.mark.parametrize("preferred", ["1,1\n2,1\n1,0\n0,1\n", "1,1\n0,0\n", "1,1\n-1,0\n"])
def test_dependent_masters_are_refused(preferred, place, capsys):
    (place / "m.txt").write_text(preferred)
    last = preferred.split()[-1]
    check_refused([*BUBBLE, "--masters", "m.txt"], place, capsys, ["master", f"I[{last}]", "depends"])


def test_integral_that_begins_with_minus_needs_no_equals_sign(place):
    results = [
        reduced(*words)["reductions"]
        for words in (["--integral", "-1,1,1,1,1,0,0"], ["--integral=-1,1,1,1,1,0,0"], ["--integral", "trianglebox[-1, 1, 1, 1, 1, 0, 0]"])
    ]
    assert list(results[0]) == [(-1, 1, 1, 1, 1, 0, 0)]
    assert results[0] == results[1] == results[2]


def options_of(*words):
    return parse("ibp_reduce.py", ibp_reduce.COMMANDS, words)[1]


@pytest.mark.parametrize("words", [["--work-dir", "w"], ["--local", "2", "--straggler-timeout=7"], ["--paper-masters-only"], ["--dry-run"]])
def test_options_are_spelled_with_hyphen_or_underscore(words):
    with_underscores = ["--" + word[2:].replace("-", "_") if word.startswith("--") else word for word in words]
    assert options_of(*words) == options_of(*with_underscores) != options_of()


IDLE_OPTIONS = {  # a command: options that it would ignore
    "--integral=1,1,1,1,1,1,-1": "beam-width=5 beam-order=size max-steps=9 no-rules paths=p check-interval=2 condor-option=a=b "
    "transfer-files request-memory=5 max-jobs=7 straggler-timeout=60 straggler-cpus=2 job-seconds=5 device=cpu training-data=t "
    "trajectories=3 epochs=3 learning-rate=1 seed=3",
    "--integral=1,1,1,1,1,1,-1 --batch=3": "job-seconds=5 check-interval=2",
    "--integral=1,1,1,1,1,1,-1 --local=2": "job-seconds=5 check-interval=2 beam-width=5",
    "--integral=1,1,1,1,1,1,-1 --symbols=d": "check-interval=2 straggler-cpus=2 seed=3 beam-width=5",
    "families": "family=bubble integral=1 d=3 local=2 store=s work-dir=w",
    "benchmark": "integral=1 certificate=c export=json store=s prime=7 kira-config=k",
    "status": "d=3 kinematics=s=1 family=bubble integral=1 local=2 condor output=o fresh",
    "stop": "integral=1 fresh watch kira-config=k",
    "train": "condor resume beam-width=5 engine=beam integral=1 prime=7 output=o kira-config=k",
    "examples": "condor epochs=3 learning-rate=1 device=cpu policy=p fresh",
    "benchmark-search": "epochs=3 integral=1 prime=7 work-dir=w no-rules local=2",
    "verify good.txt": "integral=1 prime=7 certificate=c export=json epsilon=e condor output=o",
    "convert good.txt --export=json": "integral=1 integrals=good.txt certificate=c work-dir=w prime=7 symbols=d",
    "benchmark-points 5": "prime=7 d=3 symbols=d exact output=o local=2",
    "solve good.txt": "integral=1 beam-width=3 certificate=c kira-config=k family=bubble device=cpu",
    "differentiate s": "prime=7 exact symbols=d certificate=c paths=p batch=3 paper-masters-only engine=beam",
}


@pytest.mark.parametrize("command", IDLE_OPTIONS)
def test_options_that_would_be_ignored_are_refused_in_one_line(command, place, capsys):
    write_input_files(place)
    words = shlex.split(command)
    for option in IDLE_OPTIONS[command].split():
        name = option.partition("=")[0]
        check_refused([*words, f"--{option}"], place, capsys, [f"--{name} is"])


def test_defaults_that_are_spelled_out_are_never_refused():
    """As an older script may have them."""
    words = ["--beam_width", "20", "--check-interval", "5.0", "--max_steps", "1000000000000000", "--device", "auto", "--straggler-cpus=8"]
    assert options_of(*words) == options_of()


def test_options_of_the_published_system_stay():
    options = options_of(
        *("--integral", "3,2,1,3,2,2,-6", "--output", "r.pkl", "--work-dir", "w", "--paper-masters-only", "--straggler-timeout", "1800"),
        *("--straggler-cpus", "8", "--beam_width", "20", "--max_steps", "1000000000000000", "--prime", "1009", "--check-interval", "5"),
    )
    assert (options.prime, options.beam_width, options.max_steps, options.check_interval) == (1009, 20, 10**15, 5)


@pytest.mark.parametrize("word, command", ibp_reduce.GONE.items())
def test_old_spellings_name_the_new_command(word, command, place, capsys):
    check_refused([word, "x"], place, capsys, [f"{word} is a command now: python ibp_reduce.py {command}"])
    check_refused([f"{word.replace('-', '_')[2:].join(['--', ''])}=x"], place, capsys, [f"python ibp_reduce.py {command}"])


@pytest.mark.parametrize(
    "words",
    [
        "--local 8 --straggler-timeout 900 --straggler-cpus 2 --resume",
        "--local 1 --straggler-timeout 900",
        "--engine beam --beam_width 5 --max_steps 40 --beam-order size --policy fixed --no-rules --paths p",
        "--policy fixed",
        "--fresh --work-dir w --store s --output o --prime 2147483647 --d 7/2 --kinematics m1=3",
        "--batch auto --job-seconds 3 --local 2",
        "--symbols d --job-seconds 3 --device cpu --export json --epsilon 4-2*eps --order 1",
    ],
)  # fmt: skip
def test_options_that_mean_something_are_taken(words, place, capsys):
    assert exit_code([*shlex.split(words), "--dry-run"]) == 0
    assert "trianglebox" in capsys.readouterr().out


@pytest.mark.parametrize("command", ibp_reduce.COMMANDS)
def test_help_mentions_every_option_and_the_exit_codes(command, capsys):
    assert exit_code([command, "--help"]) == 0
    text, said = capsys.readouterr()
    options = [field for field in dataclasses.fields(ibp_reduce.COMMANDS[command].options) if not field.metadata.get("positional")]
    assert said == "" and "130" in text
    assert [field.name for field in options if f"--{field.name.replace('_', '-')}" not in text] == []
    assert command == "reduce" or ibp_reduce.COMMANDS[command].about.split()[0] in text


def test_public_names():
    names = "Family InputError ReductionError Result differentiate families identities masters read_export read_result reduce solve"
    assert ibp_reduce.__all__ == [*names.split(), "symmetries", "verify"]
    assert all(getattr(ibp_reduce, name) is getattr(interface, name) and getattr(interface, name).__doc__ for name in ibp_reduce.__all__)
    with pytest.raises(AttributeError):
        ibp_reduce.nothing  # noqa: B018


def test_version_and_families_are_shown(place, capsys):
    assert exit_code(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__
    assert exit_code(["families"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} >= set(BUILT_IN_FAMILIES)
    assert snapshot(place) == {}


@pytest.mark.parametrize("store", [None, b"", b"no store"], ids=["no store", "empty file", "damaged store"])
def test_dry_run_writes_nothing(store, place, capsys):
    if store is not None:
        (place / "ibp_work").mkdir()
        (place / "ibp_work/store.shelf").write_bytes(store)
    before = snapshot(place)
    assert exit_code(["--dry-run", "--integral", SMALL]) == 0
    assert f"I[{SMALL}]" in capsys.readouterr().out
    assert snapshot(place) == before


def test_dry_run_leaves_a_good_store_as_it_is(place, capsys):
    reduced("--integral", SMALL)
    before = snapshot(place)
    assert exit_code(["--dry-run", "--integral", SMALL]) == 0
    assert snapshot(place) == before


def test_default_run_is_the_published_integral_in_the_published_masters(place):
    result = reduced()
    assert result["original_integral"] == (3, 2, 1, 3, 2, 2, -6)
    assert set(result["final_expr"]) == set(TRIANGLEBOX.paper_masters) and len(result["final_expr"]) == 16
    assert (result["family"], result["prime"], result["d"]) == ("trianglebox", 1009, 41)
    assert result["kinematics"] == {"m1": 1, "m2": 31, "m3": 47}


def test_corners_of_other_sectors_count_as_masters_unless_told_otherwise(place):
    target = tuple(map(int, SMALL.split(",")))
    with_corners = reduced("--integral", SMALL)["final_expr"]
    corners = set(with_corners) - set(TRIANGLEBOX.paper_masters)
    assert (1, 1, 1, 1, 1, 1, 0) in corners and all(set(corner) == {0, 1} for corner in corners)
    Path("t.txt").write_text("\n".join(",".join(map(str, integral)) for integral in [target, *corners]))
    published = reduced("--integrals", "t.txt", "--paper-masters-only")["reductions"]
    assert all(set(expression) <= set(TRIANGLEBOX.paper_masters) for expression in published.values())
    total = {}
    for integral, value in with_corners.items():
        for master, factor in published.get(integral, {integral: 1}).items():
            total[master] = (total.get(master, 0) + value * factor) % 1009
    assert {master: value for master, value in total.items() if value} == published[target]


def test_integrals_of_a_file_reduce_as_they_do_alone(place):
    Path("t.txt").write_text(
        "# targets\n\n2,1\nbubble[1,2]   # as another program writes it\n  I[3,1],\n2,1\n0,0\nbubble[ 2, 1 ]\r\n-1,2\n"
    )
    together = reduced("--family", "bubble", "--integrals", "t.txt")
    assert list(together["reductions"]) == [(2, 1), (1, 2), (3, 1), (0, 0), (-1, 2)]
    assert not {"original_integral", "final_expr"} & set(together)
    for integral, expression in together["reductions"].items():
        alone = reduced("--family", "bubble", f"--integral={','.join(map(str, integral))}")
        assert alone["reductions"] == {integral: expression}
    assert together["reductions"][0, 0] == {}


@pytest.mark.parametrize("name, integral", [("bubble", "3,2"), ("box", "2,1,1,2"), ("sunrise", "2,1,1,-1,0")])
def test_family_file_gives_what_the_built_in_family_gives(name, integral, place):
    Path("f.json").write_text(json.dumps(family_definition(BUILT_IN_FAMILIES[name]) | {"name": "mine"}))
    keys = ("reductions", "masters", "unreduced", "kinematics", "d")
    built_in = reduced("--family", name, "--integral", integral, "--store", "a")
    mine = reduced("--family", "f.json", "--integral", f"mine[{integral}]", "--store", "b")
    assert [mine[key] for key in keys] == [built_in[key] for key in keys]
    assert mine["family"] == "mine"


def test_fractions_decimals_and_explicit_defaults_are_the_same_point(place):
    half = reduced(*BUBBLE, "--kinematics", "s=7/2", "--d", "9/2")
    assert (half["kinematics"], half["d"]) == ({"s": "7/2", "m": 3}, "9/2")
    assert reduced(*BUBBLE, "--kinematics", " s = 3.5 , m = 3 ", "--d", "4.5")["final_expr"] == half["final_expr"]
    assert reduced(*BUBBLE, "--kinematics", "s=7,m=3", "--d", "41")["final_expr"] == reduced(*BUBBLE)["final_expr"] != half["final_expr"]


def test_preferred_masters_that_are_the_usual_ones_change_nothing(place):
    usual = reduced(*BUBBLE)
    Path("m.txt").write_text("\n".join(",".join(map(str, master)) for master in usual["masters"]))
    assert reduced(*BUBBLE, "--masters", "m.txt")["final_expr"] == usual["final_expr"]


def test_what_does_not_reduce_is_listed_and_the_exit_code_is_1(place, capsys, monkeypatch):
    patch_rooms(monkeypatch, "ibp", "NEIGHBOURHOODS", NEIGHBOURHOODS[:1])
    assert exit_code(["--cold", "--integral", SMALL, "--output", "r.pkl"]) == 1
    printed, said = capsys.readouterr()
    result = load_builtins(Path("r.pkl").read_bytes())
    left = result["unreduced"]
    assert left and result["success"] is False
    assert set(left) <= set(result["final_expr"]) <= set(left) | set(result["masters"])
    assert not set(left) & set(result["masters"])
    assert said.count("\n") == 1 and str(len(left)) in said and "r.pkl" in said
    assert f"NOT REDUCED ({len(left)})" in printed


def test_nothing_on_stderr_and_a_summary_on_stdout_when_not_a_terminal(bare, place):
    run = program(bare, place, *BUBBLE)
    assert (run.returncode, run.stderr) == (0, "")
    assert "I[3,2]" in run.stdout and "written to" in run.stdout
    assert program(bare, place, *BUBBLE, "--quiet").stdout == ""


def test_two_files_alone_work_in_a_directory_with_an_awkward_name(bare):
    target = bare / "runs"
    target.mkdir()
    run = program(bare, target, "--local", "2", "--integral", "1,1,1,1,1,1,-1", "--paper-masters-only")
    assert (run.returncode, run.stderr) == (0, "")
    result = load_builtins((target / "results/reduction.pkl").read_bytes())
    assert result["success"] and result["statistics"]["rules"] > 0
    assert len(rules_in(known(target / "ibp_work/store.shelf"))) == result["statistics"]["rules"]


@pytest.mark.parametrize("words", [["--help"], ["families"], [*BUBBLE, "--family", "x"], ["--integral=101,1,1,1,1,1,0"]], ids=" ".join)
def test_terminal_that_knows_only_ascii_gets_no_traceback(words, bare, place):
    run = program(bare, place, *words, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert "Traceback" not in run.stderr and run.returncode in (0, 2)


@pytest.mark.parametrize("words", [["families"], BUBBLE], ids=" ".join)
def test_reader_of_stdout_that_goes_away_gets_no_traceback(words, bare, place):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        run = subprocess.run(
            [sys.executable, str(bare / "ibp_reduce.py"), *words],
            cwd=place,
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            timeout=DEADLINE_S,
        )
    assert "Traceback" not in run.stderr


WATCHED_RUN = """
import atexit, sys
heavy = {'torch', 'sympy', 'matplotlib', 'pandas', 'scipy', 'tqdm'}
atexit.register(lambda: print('LOADED', sorted(heavy & set(sys.modules))))
import ibp_reduce
sys.exit(ibp_reduce.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["families"], ["--integral", SMALL], ["--integral=1,1"]], ids=" ".join)
def test_help_and_stored_rules_need_no_heavy_imports(words, bare, place):
    if SMALL in words:
        reduced(*words)
    run = python(bare, place, WATCHED_RUN, *words)
    assert run.returncode in (0, 2)
    assert run.stdout.splitlines()[-1] == "LOADED []", run.stdout + run.stderr


OBSERVED_IMPORT = """
import os, signal, sys, threading, warnings
import numpy
warnings.simplefilter('error')
sys.dont_write_bytecode = True

def state():
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    return (dict(os.environ), os.getcwd(), handlers, threading.enumerate(), sys.getrecursionlimit(), sys.stdout,
            sys.excepthook, numpy.geterr(), list(sys.path))

before = state()
import ibp_reduce, condor_worker
assert state() == before
"""


def test_import_has_no_side_effects(bare, place):
    run = python(bare, place, OBSERVED_IMPORT)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert snapshot(place) == {}
