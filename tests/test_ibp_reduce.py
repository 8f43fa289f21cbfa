"""The command line: what is refused, what is ignored, what a run says; imports and heavy packages."""

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
    DEADLINE_S,
    SMALL,
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
from executors.commands import parse
from executors.files import load_builtins
from ibp import interface
from ibp.families import BUILT_IN_FAMILIES, family_definition
from ibp.rules import NEIGHBOURHOODS

INTEGER, NUMBER, PRIME = ("--integral", "integer"), ("integer or a fraction",), ("--prime", "prime number")
# words of the command: what the line on stderr must contain
BAD_COMMANDS = {
    # integrals
    "--integral=1,1": ("--integral", "2 indices", "has 7"),
    "--integral=1,1,1,1,1,1,1,1": ("--integral", "8 indices", "has 7"),
    "--integral=a,1,1,1,1,1,0": ("--integral", "a,1,1"),
    "--integral=1_0,1,1,1,1,1,0": ("--integral", "1_0"),  # a slip for 1,0 must not become ten
    **{
        f'--integral="{text}"': INTEGER
        for text in ("1.5,1,1,1,1,1,0", "1,1,1,1,1,1,", "1,1,1,,1,1,0", "1 1 1 1 1 1 0", "1,1,1,1,1 1,0", "0x1,1,1,1,1,1,0",
                     "1e0,1,1,1,1,1,0", "\u22121,1,1,1,1,1,0", "1,1,1,1,1,1,--3")
    },
    **dict.fromkeys(("--integral", "--integral=", '--integral " "', "--integral= --integrals=good.txt"), ("--integral",)),
    "--integral=1,1,1,1,1,1,1": ("--integral", "index 7", "must not be positive"),
    "--integral=101,1,1,1,1,1,0": ("--integral", "100"),
    "--integral=1,1,1,1,1,1,-101": ("--integral", "100"),
    "--integral=[1,1,1,1,1,1,-3": ("--integral", "not a list of indices"),
    "--integral=doublebox[1,1,1,1,1,1,-3]": ("--integral", "doublebox", "trianglebox", "--family"),
    # the point
    **dict.fromkeys(("--kinematics=m4=1", "--kinematics=d=4"), ("--kinematics", "m1, m2, m3")),
    **dict.fromkeys(("--kinematics=m1", "--kinematics==1"), ("--kinematics", "NAME=VALUE")),
    **{f'--kinematics="m1={text}"': ("m1", *NUMBER) for text in ("", "a", "1;m2=2", "nan", "1/0")},
    "--kinematics=m1=1/1009": ("m1", "division by zero", "1009"),
    "--kinematics=m1=1/7 --prime=7": ("m1", "division by zero", "7"),
    "--kinematics=m1=1,m1=2": ("--kinematics", "m1"),  # which of the two?
    "--kinematics=m1=1e5000": ("m1",),
    **{f"--d={text}": ("d", *NUMBER) for text in ("a", "4-2*eps")},
    "--d=1/1009": ("d", "division by zero", "1009"),
    "--d=1e5000": ("d",),
    # the prime
    **{f"--prime={text}": PRIME for text in (1, 0, -7, 2, 1001, 2147483648)},
    **{f"--prime={text}": ("--prime", "2147483647") for text in (2147483659, "9" * 40)},
    **{f"--prime={text}": ("--prime", text) for text in ("1009.0", "")},
    "--prime=5 --integral=1,1,1,1,1,1,-5": ("--prime", "largest index"),
    "--prime=7 --integral=7,1,1,1,1,1,0": ("--prime", "larger prime"),
    # numbers of other options
    **{f"--local={text}": ("--local", text) for text in ("0", "many")},
    **{f"--batch={text}": ("--batch", text) for text in ("x", "0", "-3", "1.5", "")},
    **{
        f"--{word} --local=2": ("--" + word.partition("=")[0],)
        for word in ("straggler-timeout=0", "straggler-timeout=-1", "straggler-timeout=nan", "straggler-timeout=never",
                     "straggler-timeout=2000000", "straggler-cpus=0")
    },
    **{f"--batch=auto --job-seconds={text}": ("--job-seconds", text) for text in ("0", "nan", "inf", "soon")},
    **{f"--{word} --condor": (f"--{word}".replace("=", " "),) for word in ("check-interval=0", "request-memory=-1", "max-jobs=0")},
    "--condor --condor-option foo": ("--condor-option foo", "KEY=VALUE"),
    "--order 2000 --epsilon 4-2*eps": ("--order 2000",),
    "--export foo": ("--export 'foo'", "mathematica"),
    "--export json,": ("--export ''", "mathematica"),
    # what contradicts itself, or does not exist
    "--integral=1,1,1,1,1,1,-1 --integrals=good.txt": ("--integral", "--integrals", "one of them"),
    "--exact --symbols=d": ("--exact", "--symbols", "one of them"),
    "--symbols=d --prime=1013": ("--prime", "--symbols"),
    "--condor --local=2": ("--condor", "--local", "one of them"),
    "--condor --batch sector": ("--batch sector", "--condor"),
    "--resume --fresh": ("--resume", "--fresh", "one of them"),
    **{f"--certificate=c {word}": ("--certificate", word.split()[0]) for word in ("--symmetries", "--condor", "--batch auto")},
    "--paper-masters-only --symmetries": ("--paper-masters-only", "--symmetries"),
    "--order=3": ("--order", "--epsilon"),
    "--epsilon 4-2*eps": ("--epsilon", "not functions of d"),
    "--symetries": ("--symetries", "did you mean --symmetries?"),
    "reduec": ("reduec", "did you mean reduce?"),
    "--epochs=3": ("--epochs", "the command 'train'"),
    "--integ=1,1,1,1,1,1,-1": ("--integ",),
    "1,1,1,1,1,1,-1": ("1,1,1,1,1,1,-1",),
    "--family=triangle": ("'triangle'", "trianglebox", "bubble"),
    "--family=": ("family", "trianglebox"),
    "--family=missing.json": ("missing.json",),
    "--family=bubble": ("bubble", "--integral"),
    "--family=" + "x" * 300: ("family",),
    "status --work-dir nowhere": ("nowhere", "no run"),
    "stop --work-dir nowhere": ("nowhere", "no such directory"),
    # files of integrals
    "--integrals=missing.txt": ("--integrals", "missing.txt", "No such file"),
    "--integrals=": ("--integrals",),
    "--integrals=.": ("--integrals", "directory"),
    **{f"--integrals={name}.txt": ("--integrals", f"{name}.txt", "no integrals") for name in ("empty", "comments")},
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
    **{f'--output="{path}"': ("--output", path) for path in ("a file/r.pkl", "directory", "", "x" * 300, "pipe")},
    **{f'--work-dir="{path}"': ("--work-dir", path) for path in ("a file", "a file/work", "x" * 300)},
    **{f'--store="{path}"': ("--store", path) for path in ("directory", "a file/store", "x" * 300)},
    **{f'--certificate="{path}"': ("--certificate", path) for path in ("a file/c", "directory", "")},
    '--export json --output "a file/r.pkl"': ("--output", "a file"),
    "--export json --output taken.pkl": ("--export json", "taken.json"),
    # outputs that would overwrite an input, or each other
    "--output=good.txt --integrals=good.txt": ("--output", "good.txt"),
    "--output=bubble.json --family=bubble.json --integral=2,1": ("--output", "bubble.json"),
    **{f"--output=same --{other}=same": ("--output", f"--{other}", "same") for other in ("store", "work-dir", "certificate")},
    "--export json --output r.json": ("--output", "--export json", "r.json"),
    "--export sympy --store reduction.py --output reduction.pkl": ("--store", "--export sympy"),
    **{f"--batch=5 --work-dir=w --output=w/{name}": ("--output", "own files") for name in ("run.journal", "shared/r.pkl")},
    "--batch=5 --work-dir=w --store=w/status.json": ("--store", "own files"),
    "--certificate ibp_work/run.journal": ("--certificate", "own files"),
}  # fmt: skip


@pytest.mark.parametrize("command", BAD_COMMANDS, ids=lambda command: ascii(command)[1:60])
def test_bad_command_is_refused_in_one_line_and_nothing_is_written(command, place, capsys):
    write_input_files(place)
    (place / "taken.json").mkdir()
    complete = any(word in command for word in ("--integ", "--family", "nowhere"))
    default = [] if complete else ["--integral=1,1,1,1,1,1,-1"]
    check_refused(shlex.split(command) + default, place, capsys, BAD_COMMANDS[command])


@pytest.mark.parametrize("option, path", [("--output", "locked/r.pkl"), ("--work-dir", "locked/work"), ("--store", "locked/deep/s")])
def test_directory_without_write_permission_is_refused(option, path, place, capsys, monkeypatch):
    (place / "locked").mkdir()
    allowed = os.access
    # a stand-in for chmod, which does not bind root
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and allowed(path, mode))
    check_refused([*BUBBLE, option, path], place, capsys, [option, "locked"])


def options_of(*words):
    return parse("ibp_reduce.py", ibp_reduce.COMMANDS, words)[1]


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


def test_options_of_the_published_system_stay():
    """In its spelling; defaults that are spelled out, as an older script may have them, are never refused."""
    defaults = shlex.split("--beam_width 20 --check-interval 5.0 --max_steps 1000000000000000 --device auto --straggler-cpus=8")
    assert options_of(*defaults) == options_of()
    words = shlex.split("--integral 3,2,1,3,2,2,-6 --output r.pkl --work-dir w --paper-masters-only --straggler-timeout 1800 --prime 1009")
    options = options_of(*words, *defaults)
    assert (options.prime, options.beam_width, options.max_steps, options.check_interval) == (1009, 20, 10**15, 5)


def test_a_run_can_be_watched(place, capsys):
    assert parse("ibp_reduce.py", ibp_reduce.COMMANDS, ["status", "--watch"], gone=ibp_reduce.GONE)[1].watch
    check_refused(["status", "--watch"], place, capsys, ["ibp_work", "holds no run"])


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


@pytest.mark.parametrize("store", [None, b"", b"no store", "good"], ids=str)
def test_dry_run_writes_nothing(store, place, capsys):
    if store == "good":
        reduced("--integral", SMALL)
    elif store is not None:
        (place / "ibp_work").mkdir()
        (place / "ibp_work/store.shelf").write_bytes(store)
    before = snapshot(place)
    assert exit_code(["--dry-run", "--integral", SMALL]) == 0
    assert f"I[{SMALL}]" in capsys.readouterr().out
    assert snapshot(place) == before


def test_integrals_of_a_file_reduce_as_they_do_alone(place):
    Path("t.txt").write_text(
        "# targets\n\n2,1\nbubble[1,2]   # as another program writes it\n  I[3,1],\n2,1\n0,0\nbubble[ 2, 1 ]\r\n-1,2\n"
    )
    together = reduced("--family", "bubble", "--integrals", "t.txt")
    assert list(together["reductions"]) == [(2, 1), (1, 2), (3, 1), (0, 0), (-1, 2)]
    assert not {"original_integral", "final_expr"} & set(together)
    for integral, expression in together["reductions"].items():
        for text in f"--integral={','.join(map(str, integral))}", f"--integral=bubble{list(integral)}":
            assert reduced("--family", "bubble", text)["reductions"] == {integral: expression}


def test_family_file_gives_what_the_built_in_family_gives(place):
    Path("f.json").write_text(json.dumps(family_definition(BUILT_IN_FAMILIES["sunrise"]) | {"name": "mine"}))
    built_in = reduced("--family", "sunrise", "--integral", "2,1,1,-1,0", "--store", "a")
    mine = reduced("--family", "f.json", "--integral", "mine[2,1,1,-1,0]", "--store", "b")
    assert all(mine[key] == built_in[key] for key in ("reductions", "masters", "unreduced", "kinematics", "d"))
    assert mine["family"] == "mine"


def test_fractions_decimals_and_explicit_defaults_are_the_same_point(place):
    half = reduced(*BUBBLE, "--kinematics", "s=7/2", "--d", "9/2")
    assert (half["kinematics"], half["d"]) == ({"s": "7/2", "m": 3}, "9/2")
    assert reduced(*BUBBLE, "--kinematics", " s = 3.5 , m = 3 ", "--d", "4.5")["final_expr"] == half["final_expr"]
    assert reduced(*BUBBLE, "--kinematics", "s=7,m=3", "--d", "41")["final_expr"] == reduced(*BUBBLE)["final_expr"] != half["final_expr"]


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
