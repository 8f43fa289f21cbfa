"""The program: its commands, whole runs from outside, the public names."""

import doctest
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support import DEADLINE_S, HERE, wait_until
from support_condor import wait_for_jobs
from support_explorer import PROGRAM, TINY, check_page, explore

import explorer as ex
from executors.directories import claim_directory
from phases.history import read_history

PLANE = '{"J3xy": [0, 1], "J1z": [-1, 1], "D": 0.05}'
MODEL = """
import numpy as np

def simulate(parameters):
    x, y = parameters["x"], parameters["$y/<&>$"]
    if x > 0.8:
        raise ValueError(f"<b>no state</b> at {x:.3f}")
    spins = np.zeros((72, 3))
    spins[:, 0] = np.nan if y > 0.8 else 1
    spins[::2] *= np.sign(y - 0.4)
    return spins, np.zeros((72, 2)), x * y
"""


def options_of(*words):
    return ex.parse("explorer.py", ex.COMMANDS, words)[1]


def content(directory):
    run = read_history(directory)
    answers = {id: (event.get("phase"), event.get("energy"), event.get("failure")) for id, event in sorted(run.told.items())}
    return [(p.unit, p.origin, p.iteration) for p in run.explorer.points], answers, run.explorer.iterations


def interrupted(directory, cwd, after):
    """What a run by one process says that got a Ctrl-C after so many answers."""
    command = [sys.executable, str(PROGRAM), *TINY, "--output-dir", str(directory)]
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    path = Path(cwd) / directory / "history.jsonl"
    wait_until(lambda: process.poll() is not None or (path.exists() and path.read_bytes().count(b'"told"') >= after))
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    return process.stderr.read()


# ---- options
def test_options_have_two_spellings_and_one_default():
    parse = options_of
    assert parse("--n-jobs", "3", "--fresh_start", "--n_initial=7") == parse("--n_jobs", "3", "--fresh-start", "--n-initial", "7")
    assert parse() == parse("explore") == ex.Explore() and parse("--n-jobs", "-1").n_jobs == -1
    documented = {"n_initial": 50, "n_iterations": 10, "n_per_iteration": 10, "strategy": "balanced", "n_jobs": 1, "timeout": 300}
    assert {name: getattr(parse(), name) for name in documented} == documented
    for words, mode, L in (([], "fast", 12), (["--accurate"], "accurate", 24), (["--screening", "--lattice-size", "10"], "screening", 10)):
        plan = ex.plan_of(parse(*words))
        assert (plan.mode, plan.L) == (mode, L)


@pytest.mark.parametrize(
    "arguments, says",
    [
        ("--strategy greedy", "balanced, uncertainty"),
        ("--strategy target", "needs --target-phase"),
        ("--n-jobs 0", "--n-jobs 0"),
        ("--n-jobs 2 --condor", "--n-jobs contradict"),
        ("--fast-mode --accurate", "contradict"),
        ("--resume --fresh-start", "contradict"),
        ("--skip-simulation --dry-run", "contradict"),
        ("--status", "explorer.py status"),
        ("--test-parallel 4", "explorer.py test-parallel"),
        ("--resume", "holds no run"),
        ("--skip-simulation", "no run to read"),
        ("point 3", "no run to read"),
        ("point", "ID is missing"),
        ("--lattice-size 5", "from 6"),
        ("--timeout 0", "--timeout 0"),
        ("--target-phase SKYRMION", "MERON_ANTIMERON"),
        ("--simulation math:sin", "--parameters"),
        ('--simulation math:sin --accurate --parameters {"x":[0,1]}', "contradict"),
        ("--plots --at D", "NAME=VALUE"),
        ("--plots --at J9=0", "no parameter of this run"),
        ("--plots --at J1z=7", "outside of its bounds"),
        ("--plots --map D,D", "give two of J1z"),
        ("--map D,E", "--plots or --report"),
        ("--check-interval 3", "--condor"),
        ("--condor --condor-option accounting", "KEY=VALUE"),
        ("--report .", "not a regular file"),
        ("--output-dir file", "not a directory"),
        ("test-parallel 1", "from 2"),
    ],
)
def test_bad_values_are_one_line_and_write_nothing(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert ex.main(arguments.split()) == 2
    printed = capsys.readouterr()
    assert says in printed.err and printed.err.count("\n") == 1 and printed.err.startswith("explorer: ") and not printed.out
    assert os.listdir() == ["file"]


def test_help_needs_numpy_only():
    heavy = "('torch', 'matplotlib', 'filelock', 'tqdm', 'sympy', 'scipy', 'executors.condor', 'executors.local')"
    code = f"import sys; sys.path.insert(0, {str(PROGRAM.parent)!r}); import explorer\n"
    code += f"try: explorer.main(['--help'])\nexcept SystemExit: print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("[]\n") and "test-parallel" in done.stdout, done.stderr
    assert done.stdout.index("--n-initial") < done.stdout.index("--condor-option") and "(default: 50)" in done.stdout


def test_public_names_and_their_examples():
    names = "ActiveLearningExplorer Couplings Lattice Run Surrogate classify energy fit_labels luttinger_tisza read_history simulate"
    assert ex.__all__ == [*names.split(), "structure_factor", "topological_charge"]
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    known = {name: getattr(ex, name) for name in ex.__all__} | {"np": np, "tempfile": tempfile, "partial": partial}
    tried = [runner.run(test).attempted for name in ex.__all__ for test in finder.find(known[name], name, globs=known)]
    assert runner.summarize(verbose=False).failed == 0 and tried.count(0) == 1  # Run has its example at read_history


def test_explorer_dry_run_writes_nothing(tmp_path):
    done = explore("--dry-run", "--n-jobs", "3", "--parameters", PLANE, cwd=tmp_path)
    assert done.returncode == 0 and "3 processes" in done.stdout and "D = 0.05" in done.stdout and not list(tmp_path.iterdir())


# ---- runs
def test_a_run_says_what_it_does(undisturbed):
    directory, done = undisturbed
    assert "[Iteration 0] Classifying 8 points using 2 parallel workers..." in done.stdout
    assert re.search(r"  Point \d+: [A-Z_0-9]+ \(conf=[\d.]+, E=-[\d.]+\)", done.stdout)
    assert "14/14" not in done.stdout and "success_rate: 100.0%" in done.stdout and "2 iterations are done" in done.stdout
    record = json.loads((directory / "summary.json").read_text())
    assert record["points"] == 14 == sum(record["states"].values()) and record["failures"] == [] and record["iterations"] == 3
    assert len(list((directory / "spins").glob("*.npz"))) == 14


def test_number_of_processes_changes_nothing(undisturbed, tmp_path):
    assert explore(*TINY, "--quiet", cwd=tmp_path).stdout == ""
    assert content(tmp_path / "exploration") == content(undisturbed[0])


def test_interrupt_and_the_printed_command(undisturbed, tmp_path):
    printed = interrupted("a 'run'", tmp_path, after=2)
    assert printed.count("\n") == 1 and len(read_history(tmp_path / "a 'run'").told) < 14
    command = printed.partition("go on with: ")[2].strip()
    assert shlex.split(command)[1] == str(PROGRAM)
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and content(tmp_path / "a 'run'") == content(undisturbed[0])


def test_what_is_there_is_shown_and_not_mixed_up(undisturbed, tmp_path, capsys):
    directory, place = undisturbed[0], ["--output-dir", str(undisturbed[0])]
    before = content(directory)
    for arguments, code, says in [
        ([*TINY, "--resume"], 0, "2 iterations are done"),
        (["status"], 0, "points      14"),
        (["--skip-simulation"], 0, "importance:"),
        (["show", "--verbose"], 0, "one wave vector"),
        (["point", "3"], 0, "margin"),
        (["point", "14"], 2, "points 0 to 13"),
        ([*TINY, "--seed", "6"], 2, "of another run: its seed is 5, not 6"),
        ([*TINY, "--lattice-size", "8"], 2, "of another run: its model"),
        ([*TINY, "--dry-run"], 0, "14 of 14 points done"),
    ]:
        assert ex.main([*arguments, *place]) == code, arguments
        printed = capsys.readouterr()
        assert says in printed.out + printed.err and (code == 0 or printed.err.count("\n") == 1)
    assert content(directory) == before
    with claim_directory(directory):
        assert ex.main([*TINY, *place]) == 2 and "in use by process" in capsys.readouterr().err
        assert ex.main(["status", *place]) == 0 and "at work" in capsys.readouterr().out


def test_fresh_start(tmp_path, capsys):
    arguments = [*TINY, "--output-dir", str(tmp_path / "run"), "--n-iterations", "0", "--n-initial", "1"]
    assert ex.main([*arguments, "--quiet"]) == 0
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert ex.main([*arguments, "--seed", "6", "--fresh-start", "--quiet"]) == 0
    assert read_history(tmp_path / "run").header["seed"] == 6 and (tmp_path / "run" / "notes.txt").exists()
    (tmp_path / "run" / "history.jsonl").write_text("my own notes\n")
    assert ex.main([*arguments, "--fresh-start"]) == 2 and "not a history" in capsys.readouterr().err
    assert (tmp_path / "run" / "history.jsonl").read_text() == "my own notes\n"


def test_simulation_of_the_user(tmp_path):
    (tmp_path / "my_model.py").write_text(MODEL)
    (tmp_path / "box.json").write_text('{"x": [0, 1], "$y/<&>$": [0, 1]}')
    arguments = shlex.split("--simulation my_model:simulate --parameters box.json --n-initial 20 --n-iterations 1 --lattice-size 6")
    arguments += ["--n-jobs", "2"]
    done = explore(*arguments, "--plots", "--report", "report.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = read_history(tmp_path / "exploration")
    assert len(run.told) == 30 and run.failures and len(run.labelled) > 10
    for id, event in run.told.items():
        x, y = run.parameters(id).values()
        if x > 0.8:
            assert event["error"] == "ValueError" and "no state" in event["message"] and "my_model.py" in event["traceback"]
        elif y > 0.8:
            assert "NaN" in event["message"]
        else:
            assert event["phase"] == ("FM" if y > 0.4 else "AFM")
    page = (tmp_path / "report.html").read_text()
    check_page(page)
    assert "&lt;b&gt;no state" in page and "<b>" not in page and "$y/&lt;&amp;&gt;$" in page
    (tmp_path / "my_model.py").write_text(MODEL.replace("x > 0.8", "x > 2").replace("y > 0.8", "y > 2"))
    assert explore(*arguments, "--retry-failed", cwd=tmp_path).returncode == 0
    assert not read_history(tmp_path / "exploration").failures


def test_all_failed_is_exit_code_1(tmp_path):
    (tmp_path / "m.py").write_text("def f(p):\n    return None\n")
    arguments = ["--simulation", "m:f", "--parameters", '{"x": [0, 1]}', "--n-initial", "3", "--n-iterations", "0"]
    done = explore(*arguments, "--plots", cwd=tmp_path)
    assert done.returncode == 1 and "failed 3 x ValueError" in done.stdout and "no point could be labelled" in done.stderr


# ---- HTCondor, by the fake tools
CONDOR = [*TINY, "--condor", "--check-interval", "0.1"]


def test_condor_controller_is_killed(undisturbed, fake, tmp_path, capsys):
    fake.set(run="idle")
    command = [sys.executable, str(PROGRAM), *CONDOR]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    wait_for_jobs(fake, 8)
    process.kill()
    process.wait()
    fake.set(run="background")
    done = explore(*CONDOR, cwd=tmp_path)
    assert done.returncode == 0 and "using 8 parallel workers" in done.stdout
    assert len(fake.history()) == 14  # the jobs in the queue were found again
    assert content(tmp_path / "exploration") == content(undisturbed[0])
    assert ex.main(["stop", "--output-dir", str(tmp_path / "exploration")]) == 0
    assert "0 jobs removed" in capsys.readouterr().err


@pytest.mark.condor
def test_a_pool_explores_like_one_process(real_pool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--screening", "--lattice-size", "6", "--n-initial", "4", "--n-iterations", "1", "--n-per-iteration", "4", "--quiet"]
    assert ex.main([*words, "--output-dir", "here"]) == 0
    assert ex.main([*words, "--output-dir", "it's there", "--condor", "--check-interval", "1"]) == 0
    here, there = (
        {id: (event["phase"], event["energy"]) for id, event in read_history(tmp_path / name).told.items()}
        for name in ("here", "it's there")
    )
    assert here == there and len(here) >= 8


HOSTILE_MODEL = """
import sys
import numpy as np

def state(p):
    spins = np.tile([0.0, 0.0, 1.0], (72, 1))
    spins[1::2] *= -1
    i, j = np.divmod(np.arange(36), 6)
    cells = np.column_stack([i + j / 2, j * 3**0.5 / 2])
    return spins, np.repeat(cells, 2, axis=0) + np.tile([[0, 0], [0, 3**-0.5]], (36, 1)), -1.0

def by_sublattice(p):
    spins, positions, energy = state(p)
    order = np.r_[0:72:2, 1:72:2]
    return spins[order], positions[order], energy

def leaves(p): sys.exit(3)
def interrupts(p): raise KeyboardInterrupt
def unspeakable(p): raise ValueError("bad \\udcff name")
def slow_server(p): raise TimeoutError("no answer from the licence server")
"""
TOY_RUN = ["--lattice-size", "6", "--n-initial", "2", "--n-iterations", "0", "--parameters", '{"x": [0, 1]}', "--output-dir", "run"]


@pytest.fixture
def hostile_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "hostile_model", raising=False)
    (tmp_path / "hostile_model.py").write_text(HOSTILE_MODEL)
    return tmp_path


def of_points(directory, name):
    return [event.get(name) for event in read_history(Path(directory)).told.values()]


@pytest.mark.parametrize(
    "function, error",
    [("leaves", "SystemExit"), ("interrupts", "KeyboardInterrupt"), ("unspeakable", "ValueError"), ("slow_server", "TimeoutError")],
)
def test_whatever_a_simulation_raises_costs_its_points_only(function, error, hostile_place):
    assert ex.main([*TOY_RUN, "--simulation", f"hostile_model:{function}"]) == 1
    assert of_points("run", "failure") == ["FAILED"] * 2 and of_points("run", "error") == [error] * 2


@pytest.mark.parametrize("guard, call", [("", ""), ("", "n_jobs=2"), ("if __name__ == '__main__':", "n_jobs=2")])
def test_scripts_with_and_without_a_guard(guard, call, hostile_place):
    (hostile_place / "script.py").write_text(
        "import hostile_model\nfrom explorer import ActiveLearningExplorer\n"
        "def simulate(p): return hostile_model.state(p)\n"
        f"{guard or 'if True:'}\n    run = ActiveLearningExplorer('api', L=6, parameters={{'x': (0, 1), 'y': (0, 1)}})\n"
        f"    run.add_lhs_samples(3)\n    print(run.classify_pending_points(simulate, {call}))\n    run.close()\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{HERE}:{hostile_place}"}
    run = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, env=environment, timeout=DEADLINE_S)
    if call and not guard:
        assert run.returncode == 1 and "__main__" in run.stderr.splitlines()[-1]
        assert of_points("api", "phase") == []  # no point was spent on it
    else:
        assert run.stdout.splitlines()[-1] == "(3, 0)", run.stderr


def test_what_lies_there_is_not_overwritten(hostile_place, capsys):
    assert ex.main([*TOY_RUN, "--simulation", "hostile_model:state"]) == 0
    before = (hostile_place / "run/history.jsonl").read_bytes()
    assert ex.main(["show", "--output-dir", "run", "--report", "run/history.jsonl"]) == 2
    missing = ["--fresh-start", "--condor", "--condor-option", "queue=1"]
    assert ex.main([*TOY_RUN, "--simulation", "hostile_model:state", *missing]) == 2
    (hostile_place / "run/scratch.json").write_text("garbage")
    assert ex.main([*TOY_RUN, "--simulation", "hostile_model:state", "--n-initial", "5"]) == 0
    assert (hostile_place / "run/history.jsonl").read_bytes().startswith(before) and len(of_points("run", "phase")) == 2
    for path in (hostile_place / "run/spins").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    capsys.readouterr()
    assert ex.main(["point", "0", "--output-dir", "run"]) == 2 and capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_spoil_nothing(closed, hostile_place):
    command = shlex.join([sys.executable, str(PROGRAM), *TOY_RUN, "--simulation", "hostile_model:by_sublattice"])
    assert subprocess.run(["sh", "-c", f"{command} {closed}"], timeout=DEADLINE_S).returncode == 0
    assert of_points("run", "phase") == ["AFM"] * 2
