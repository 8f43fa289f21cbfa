"""What README promises, tried from outside: commands in an empty directory, what they print, what they leave.

    python test_all.py                # this and everything in tests/, on two processes where pytest-xdist is there
    python test_all.py -m slow        # searches from nothing that take minutes
    python -m pytest test_all.py      # this file alone
    python -m pytest tests/test_store.py

Parts of the programs are tested in tests/, a file for a room. Here nothing is imported from the project.
"""

import importlib.util
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from fractions import Fraction
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
HEADLINE = {
    (1, 0, 1, 1, 1, 1, 0): 222, (1, 1, 0, 1, 1, 1, 0): 238, (1, 1, 1, 1, 1, 0, 0): 228, (1, 0, 0, 1, 1, 1, 0): 979,
    (1, -1, 1, 0, 1, 1, 0): 586, (1, 0, 1, 0, 1, 1, 0): 696, (1, 1, 0, 1, 0, 1, 0): 295, (-1, 1, 1, 1, 1, 0, 0): 691,
    (0, 1, 1, 1, 1, 0, 0): 919, (1, -1, 1, 1, 1, 0, 0): 913, (1, 0, 1, 1, 1, 0, 0): 277, (1, 1, 0, 1, 1, 0, 0): 483,
    (1, 0, 1, 0, 0, 1, 0): 840, (0, 0, 1, 1, 1, 0, 0): 629, (1, 0, 1, 0, 1, 0, 0): 83, (0, 1, 1, 1, 0, 0, 0): 258,
}  # fmt: skip
SMALL = "1,1,1,1,1,1,-3"
COMMANDS = ("differentiate", "solve", "verify", "convert", "families", "status", "stop", "train", "benchmark", "bundle")


class Place:
    """An empty directory in which commands are run as a user runs them."""

    def __init__(self, path):
        self.path = path

    def start(self, program, *words, **more):
        command = [sys.executable, str(HERE / f"{program}.py"), *map(str, words)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, "text": True}
        return subprocess.Popen(command, cwd=self.path, **streams | more)

    def run(self, program, *words, code=0):
        process = self.start(program, *words)
        out, err = process.communicate(timeout=600)
        assert process.returncode == code, f"{words}: {process.returncode}\n{out}{err}"
        return out if code == 0 else err

    def ibp(self, *words, code=0):
        return self.run("ibp_reduce", *words, code=code)

    def explore(self, *words, code=0):
        return self.run("explorer", *words, code=code)

    def refused(self, *words, program="ibp_reduce"):
        """The one line that a wrong command ends with."""
        before = self.files()
        text = self.run(program, *words, code=2)
        assert text.count("\n") == 1 and "Traceback" not in text, text
        assert self.files() == before, "a refused command has written something"
        return text

    def files(self):
        return sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*"))

    def write(self, name, text):
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    def result(self, name="results/reduction.pkl"):
        with open(self.path / name, "rb") as file:
            return pickle.load(file)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


# The first minute ---------------------------------------------------------------------------------------------------


def test_main_job(place):
    out = place.ibp("--local", "8")
    shown = {tuple(map(int, indices.split(","))): int(value) for indices, value in re.findall(r"^  I\[([-\d,]+)\] +(\d+)$", out, re.M)}
    assert shown == HEADLINE
    assert out.startswith("trianglebox at d=41, m1=1, m2=31, m3=47 modulo 1009\nI[3,2,1,3,2,2,-6] = sum of 16 terms\n")
    assert "written to results/reduction.pkl" in out
    result = place.result()
    assert result["final_expr"] == HEADLINE == result["reductions"][3, 2, 1, 3, 2, 2, -6]
    assert result["original_integral"] == (3, 2, 1, 3, 2, 2, -6) and result["success"] and result["unreduced"] == []
    assert (result["format"], result["family"], result["prime"], result["d"]) == (1, "trianglebox", 1009, 41)
    assert result["kinematics"] == {"m1": 1, "m2": 31, "m3": 47} and set(result["masters"]) == set(HEADLINE)
    assert {"steps", "time", "peak_memory_kb", "statistics", "version"} < result.keys()


def test_help_is_in_groups_and_names_the_commands(place):
    out = place.ibp("--help")
    for word in ("reduce", *COMMANDS):
        assert re.search(rf"^  {word} ", out, re.M), word
    assert out.index("--integral") < out.index("--condor-option")
    for word in COMMANDS:
        text = place.ibp(word, "--help")
        assert f"ibp_reduce.py {word}" in text and "exit codes" in text
    assert "--integral" not in place.ibp("status", "--help")
    assert place.ibp("--version").strip() == place.ibp("status", "--version").strip()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--integrl", "1,1"], "did you mean --integral?"),
        (["redcue"], "did you mean reduce?"),
        (["--epochs", "3"], "the command 'train'"),
        (["--verify", "x.pkl"], "ibp_reduce.py verify"),
        (["--status"], "ibp_reduce.py status"),
        (["--list-families"], "ibp_reduce.py families"),
        (["--system", "f"], "ibp_reduce.py solve"),
        (["--differential-equation=s"], "ibp_reduce.py differentiate"),
        (["--prime", "1000"], "prime"),
        (["--prime", "x"], "whole number"),
        (["--integral", "1,1"], "2 indices"),
        (["--family", "nothing"], "unknown family"),
        (["--beam-width", "5"], "--engine beam"),
        (["--exact", "--symbols", "d"], "contradict"),
        (["--local", "0"], "from 1"),
        (["--engine", "magic"], "rules or beam"),
        (["--output", "/dev/null/y.pkl"], "/dev/null"),
        (["verify"], "FILE"),
        (["verify", "no such file"], "no such file"),
        (["convert", "no such file", "--export", "form"], "no such file"),
        (["status"], "holds no run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line(place, words, expected):
    assert expected.lower() in place.refused(*words).lower()


# Results and what becomes of them -----------------------------------------------------------------------------------


def test_many_integrals_combinations_and_stored_rules(place):
    place.write(
        "targets.txt", "1,1,1,1,1,1,-1\namplitude: 3*I[1,1,1,1,1,1,-3] - 2/5*I[1,2,1,1,1,0,-1] + (d-4)^2/m1*trianglebox[1,1,1,1,1,1,-1]\n"
    )
    words = ("--integrals", "targets.txt", "--paper-masters-only")
    place.ibp(*words)
    first = place.result()
    assert set(first["reductions"]) == {(1, 1, 1, 1, 1, 1, -1), "amplitude"}
    assert first["combinations"]["amplitude"][0] == ((1, 1, 1, 1, 1, 1, -3), "3*1")
    place.write("parts.txt", "1,1,1,1,1,1,-3\n1,2,1,1,1,0,-1\n1,1,1,1,1,1,-1\n")
    place.ibp("--integrals", "parts.txt", "--paper-masters-only")
    parts, total = place.result()["reductions"], {}
    factors = {(1, 1, 1, 1, 1, 1, -3): 3, (1, 2, 1, 1, 1, 0, -1): -2 * pow(5, -1, 1009), (1, 1, 1, 1, 1, 1, -1): 37**2}
    for integral, factor in factors.items():
        for master, value in parts[integral].items():
            total[master] = (total.get(master, 0) + factor * value) % 1009
    assert first["reductions"]["amplitude"] == {master: value for master, value in total.items() if value}
    place.ibp(*words)
    assert place.result()["reductions"] == first["reductions"]
    assert place.result()["statistics"]["rules"] == 0, "rules are found once"


def test_processes_batches_and_cold_searches_say_the_same(place):
    results = []
    for words in ([], ["--local", "2"], ["--batch", "auto"], ["--batch", "50", "--local", "2"], ["--cold"]):
        place.ibp("--integral", SMALL, "--paper-masters-only", *words)
        results.append(place.result()["final_expr"])
    assert len(results[0]) == 16 and all(result == results[0] for result in results)


def test_certificate_is_verified_and_a_wrong_one_is_not(place):
    place.ibp("--certificate", "headline.cert", "--quiet")
    out = place.ibp("verify", "headline.cert")
    assert re.match(r"verified: I\[3,2,1,3,2,2,-6\] of trianglebox at d=41, .* through 16 of 16 masters, by [\d,]+ identities", out)
    content = (place.path / "headline.cert").read_bytes()
    (place.path / "headline.cert").write_bytes(content.replace(b"222", b"223", 1))
    assert place.ibp("verify", "headline.cert", code=1).count("\n") == 1
    assert "verified" in place.ibp("verify", "results/reduction.pkl")
    wrong = place.result()
    wrong["reductions"][3, 2, 1, 3, 2, 2, -6][0, 1, 1, 1, 0, 0, 0] = 259
    (place.path / "wrong.pkl").write_bytes(pickle.dumps(wrong))
    assert "Traceback" not in place.ibp("verify", "wrong.pkl", code=1)


def test_exports_and_reading_them_back(place):
    place.ibp("--integral", SMALL, "--paper-masters-only", "--export", "mathematica,form,kira,json,sympy")
    expected = place.result()["reductions"]
    code = "import sys, pickle, ibp_reduce as i; pickle.dump([i.read_export(n)['reductions'] for n in sys.argv[1:]], sys.stdout.buffer)"
    names = ("reduction.m", "kira_reduction.m", "reduction.inc", "reduction.json", "reduction.py")
    paths = [str(place.path / "results" / name) for name in names]
    run = subprocess.run([sys.executable, "-c", code, *paths], cwd=HERE, capture_output=True, check=True)
    assert pickle.loads(run.stdout) == [expected] * 5
    place.ibp("convert", "results/reduction.pkl", "--export", "json", "--output", "again.pkl")
    assert place.result("again.pkl")["reductions"] == expected and json.loads((place.path / "again.json").read_text())


def test_exact_results_as_numbers_functions_and_series(place):
    out = place.ibp("--integral", SMALL, "--paper-masters-only", "--symbols", "d")
    assert "I[1,0,1,1,1,1,0]   3*(83349*d**3 - 377055*d**2 + 668808*d - 315520)/((d - 3)*(d - 2)*(d - 1))" in out
    functions = place.result()
    assert functions["prime"] is None and functions["d"] == "d"
    place.ibp("--integral", SMALL, "--paper-masters-only", "--exact")
    numbers = place.result()["final_expr"]
    place.ibp("--integral", SMALL, "--paper-masters-only", "--prime", "2147483647")
    for master, value in place.result()["final_expr"].items():
        exact = numbers[master]
        assert isinstance(exact, Fraction)
        assert exact.numerator * pow(exact.denominator, -1, 2147483647) % 2147483647 == value
        assert eval(functions["final_expr"][master], {"d": Fraction(41)}) == exact
    place.ibp("--integral", "2,1,0,1,1,0,0", "--paper-masters-only", "--symbols", "d", "--output", "exact.pkl")
    place.ibp("convert", "exact.pkl", "--epsilon", "4-2*eps", "--order", "2", "--export", "form", "--output", "expanded.pkl")
    ((series,),) = ((list(terms.values())) for terms in place.result("expanded.pkl")["epsilon"]["reductions"].values())
    assert series == {0: -1, 1: 2}  # -(d - 3)
    assert (place.path / "expanded_eps.inc").exists()
    assert "verified" in place.ibp("verify", "exact.pkl")


def test_differential_equations(place):
    out = place.ibp("differentiate", "--family", "box", "s,t,d")
    assert "I[1,1,1,1]  (d*s - 6*s - 2*t)/(2*t*(s + t))" in out and "I[1,1,1,1] at d-2" in out
    equation = place.result()["differential_equation"]
    assert len(equation["masters"]) == 3 and equation["matrices"]["t"][1, 1, 1, 1][0, 1, 0, 1] == "2*(d - 3)/(t**2*(s + t))"
    assert "verified" in place.ibp("verify", "results/reduction.pkl")


def test_symmetries_cuts_and_several_families(place):
    integral = "1,1,1,1,1,1,1,-1,-1"
    place.ibp("--family", "doublebox", "--integral", integral, "--symmetries")
    assert len(place.result()["masters"]) == 8
    out = place.ibp("families", "doublebox")
    assert "43 non-zero sectors, 18 unique" in out and re.search(r"41 -> 28 +lines 1>5 4>4 6>3", out)
    place.ibp("--family", "doublebox", "--integral", integral)
    whole = place.result()["final_expr"]
    out = place.ibp("--family", "doublebox", "--integral", integral, "--cut", "spanning")
    assert "this is the whole reduction" in out and place.result()["final_expr"] == whole
    place.write("both.txt", f"doublebox[{integral}]\nnonplanar-doublebox[{integral}]\n")
    place.ibp("--family", "doublebox,nonplanar-doublebox", "--integrals", "both.txt", "--symmetries")
    assert len(place.result()["masters"]) == 15


# Input --------------------------------------------------------------------------------------------------------------


def test_families_of_the_user(place):
    out = place.ibp("families")
    for name in ("trianglebox", "doublebox-1m", "nonplanar-doublebox", "sunrise", "pentabox", "ladder3", "banana3", "box", "bubble"):
        assert re.search(rf"^{name} ", out, re.M)
    assert "p3" in place.ibp("families", "trianglebox")
    definition = {
        "name": "heavy-bubble", "loop_momenta": ["k1"], "external_momenta": ["p"], "propagators": ["k1", ["k1+p", "m"]],
        "isps": 0, "kinematics": {"p*p": "s"}, "invariants": {"s": 7, "m": 3},
    }  # fmt: skip
    place.write("mine.json", json.dumps(definition))
    place.ibp("--family", "mine.json", "--integral", "2,1", "--symbols", "d,s,m")
    assert set(place.result()["final_expr"]) == {(1, 1), (0, 1)}
    place.write("bad.json", json.dumps(definition | {"isps": 7}))
    assert "isps" in place.refused("--family", "bad.json", "--integral", "2,1")


def test_kira_project(place):
    pytest.importorskip("yaml")
    place.write("box/config/integralfamilies.yaml", """\
        integralfamilies:
          - name: box
            loop_momenta: [k1]
            top_level_sectors: [b1111]
            propagators: [[k1, 0], [k1+p1, 0], [k1+p1+p2, 0], [k1-p4, 0]]
        """)  # fmt: skip
    place.write("box/config/kinematics.yaml", """\
        kinematics:
          incoming_momenta: [p1, p2, p3, p4]
          outgoing_momenta: []
          momentum_conservation: [p4, -p1-p2-p3]
          kinematic_invariants: [[s, 2], [t, 2]]
          scalarproduct_rules: [[[p1,p1], 0], [[p2,p2], 0], [[p3,p3], 0], [[p4,p4], 0], [[p1+p2,p1+p2], s], [[p2+p3,p2+p3], t]]
        """)  # fmt: skip
    place.write(
        "box/jobs.yaml", "jobs:\n  - reduce_sectors: {select_integrals: {select_mandatory_list: [[box, list]]}, run_initiate: true}\n"
    )
    place.write("box/list", "box[2,1,1,1]\n")
    out = place.ibp("--kira-config", "box")
    assert "box at d=41, s=7, t=11 modulo 1009\nI[2,1,1,1] = sum of 2 terms\n  I[1,1,1,1]  139\n  I[0,1,0,1]  771\n" in out


def test_linear_system(place):
    place.write("equations.txt", "# x = 2 y - 3/2 z,  y = -4 z - w\nx: 1\ny: -2\nz: 3/2\n\ny: 1\nz: 4\nw: 1\n")
    out = place.ibp("solve", "equations.txt")
    assert out.startswith("2 equations, 4 unknowns, 2 of them independent: w z\n")
    place.ibp("solve", "equations.txt", "--exact")
    assert place.result()["reductions"]["x"] == {"z": Fraction(-19, 2), "w": -2}


# Interface of scripts -----------------------------------------------------------------------------------------------


def test_names_that_a_script_imports(place):
    place.write("script.py", f"""\
        import sys
        sys.path.insert(0, {str(HERE)!r})
        from ibp_reduce import families, masters, read_result, reduce, verify
        result = reduce((1, 1, 1, 1, 1, 1, -3), paper_masters_only=True)
        result.save("script.pkl")
        assert read_result("script.pkl")["final_expr"] == dict(result["final_expr"])
        assert verify("script.pkl").startswith("I[1,1,1,1,1,1,-3] of trianglebox at d=41")
        print(len(result["final_expr"]), len(masters("box")), "box" in families(), "<" in result._repr_html_())
        """)  # fmt: skip
    run = subprocess.run([sys.executable, "script.py"], cwd=place.path, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "16 3 True True\n"), run.stderr


# Killed and watched -------------------------------------------------------------------------------------------------


def wait_for(condition):
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_run_goes_on_and_status_and_stop_see_it(place):
    words = ("--integral", "1,2,1,1,1,1,-4", "--paper-masters-only", "--batch", "20", "--cold", "--local", "2")
    process = place.start("ibp_reduce", *words, start_new_session=True)
    journal = place.path / "ibp_work" / "run.journal"
    wait_for(lambda: (journal.exists() and journal.stat().st_size > 5000) or process.poll() is not None)
    assert "integrals" in place.ibp("status") or process.poll() is not None
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = re.search(r"([\d,]+) done", place.ibp("status"))
    other = place.refused("--integral", SMALL, "--batch", "20")
    assert "unfinished run" in other
    place.ibp(*words)
    first = place.result()
    assert done and first["success"]
    place.ibp("--integral", "1,2,1,1,1,1,-4", "--paper-masters-only")
    assert place.result()["final_expr"] == first["final_expr"]
    place.ibp("stop")


def test_interrupted_run_says_how_to_go_on(place):
    process = place.start("ibp_reduce", "--family", "pentabox", "--integral", "1,1,1,1,1,1,1,1,-3,0,0", "--cold")
    wait_for(lambda: (place.path / "ibp_work" / "store.shelf").exists() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "go on with: " in err and "Traceback" not in err


@pytest.mark.condor
@pytest.mark.skipif(shutil.which("condor_submit") is None, reason="no HTCondor here")
def test_condor_gives_the_same(place):
    place.ibp("--condor", "--work-dir", "run1", "--condor-option", "request_disk=1024")
    assert place.result()["final_expr"] == HEADLINE


def test_bundle_is_the_program_in_one_file(place):
    place.ibp("bundle", "one.pyz")
    elsewhere = place.path / "elsewhere"
    elsewhere.mkdir()
    run = subprocess.run([sys.executable, "../one.pyz", "--local", "2"], cwd=elsewhere, capture_output=True, text=True)
    assert run.returncode == 0 and "I[0,1,1,1,0,0,0]   258" in run.stdout, run.stderr


# Exploration --------------------------------------------------------------------------------------------------------

PLANE = '{"J3xy": [0, 1], "J1z": [-1, 1]}'


def test_exploration_goes_on_and_shows_what_is_there(place):
    words = ("--parameters", PLANE, "--screening", "--n-initial", "6", "--n-iterations", "1", "--output-dir", "plane")
    place.explore(*words)
    history = (place.path / "plane" / "history.jsonl").read_bytes()
    place.explore(*words)
    assert (place.path / "plane" / "history.jsonl").read_bytes().startswith(history), "what is done is not done again"
    place.explore("--skip-simulation", "--output-dir", "plane", "--report", "report.html")
    page = (place.path / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>") and "J3xy" in page


def test_explorer_refuses_in_one_line(place):
    for words, expected in (
        (["--lattice-size", "x"], "whole number"),
        (["--parameters", "{"], "parameters"),
        (["--stratgy", "x"], "did you mean --strategy?"),
    ):
        assert expected in place.refused(*words, program="explorer")


if __name__ == "__main__":
    processes = ["-n", "2"] if importlib.util.find_spec("xdist") else []
    sys.exit(pytest.main([*processes, *sys.argv[1:], str(HERE / "test_all.py"), str(HERE / "tests")]))
