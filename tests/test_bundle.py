"""The program as one file."""

import os
import subprocess
import sys
import zipfile

import pytest
from support import DEADLINE_S, HERE, PUBLISHED

from executors.files import load_builtins
from ibp.bundle import PACKAGES, write_bundle
from ibp.errors import InputError, ReductionError
from ibp.shipped import MEMBERS, shipped_names


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Alone in a directory with an awkward name."""
    path = tmp_path_factory.mktemp("an awkward näme; $x 'y") / "ibp_reduce.pyz"
    write_bundle(path)
    return path


def run(bundle, *words, start=(sys.executable, "ibp_reduce.pyz"), **more):
    return subprocess.run([*start, *words], cwd=bundle.parent, capture_output=True, text=True, timeout=DEADLINE_S, **more)


def test_it_holds_programs_rooms_and_data_and_nothing_else(bundle):
    with zipfile.ZipFile(bundle) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
    assert set(PACKAGES) | {"tests"} == {path.parent.name for path in HERE.glob("*/*.py") if path.parent.name not in ("docs", "examples")}
    sources = {path.relative_to(HERE).as_posix() for package in PACKAGES for path in (HERE / package).glob("*.py")}
    sources |= {"__main__.py", "condor_worker.py", "explorer.py", "ibp_reduce.py"}
    assert sorted(names) == sorted(["LICENSE", *sources, *(f"{name}c" for name in sources), *(MEMBERS + name for name in shipped_names())])


def test_the_same_files_give_the_same_bytes(bundle, tmp_path):
    code = "import sympy, sys; from pathlib import Path; from ibp.bundle import write_bundle; write_bundle(Path(sys.argv[1]))"
    for name, place in (("checkout", HERE), ("bundle", bundle)):  # by another process, which holds other things; by itself
        environment = os.environ | {"PYTHONPATH": str(place), "PYTHONHASHSEED": "1"}
        subprocess.run([sys.executable, "-c", code, tmp_path / name], cwd=tmp_path, env=environment, check=True)
        assert (tmp_path / name).read_bytes() == bundle.read_bytes()


def test_another_version_of_python_takes_the_sources(bundle, tmp_path):
    with zipfile.ZipFile(bundle) as archive, zipfile.ZipFile(tmp_path / "old.pyz", "w") as old:
        for name in archive.namelist():
            content = archive.read(name)
            old.writestr(name, b"\0\0\r\n" + content[4:] if name.endswith(".pyc") else content)
    assert run(bundle, "--version", start=[sys.executable, tmp_path / "old.pyz"]).stdout == "0.1.0\n"


def test_it_is_run_by_itself_and_replaced_whole(bundle, tmp_path):
    path = tmp_path / "p.pyz"
    write_bundle(path)
    before = path.stat()
    write_bundle(path)
    assert path.stat().st_ino != before.st_ino and os.access(path, os.X_OK) and os.listdir(tmp_path) == ["p.pyz"]
    path.chmod(0o600)
    environment = os.environ | {"PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"}
    assert run(bundle, "--version", start=["./ibp_reduce.pyz"], env=environment).stdout == "0.1.0\n"


def test_no_file_of_another_kind_is_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="no bundle"):
        write_bundle(tmp_path / "notes.txt")
    with pytest.raises(ReductionError, match="give another name"):
        write_bundle(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_it_reduces_by_its_own_rules_in_processes(bundle, tmp_path):
    done = run(bundle, *PUBLISHED, "--local", "2", "--work-dir", tmp_path / "w", "--output", tmp_path / "r.pkl", "--export", "json")
    assert done.returncode == 0, done.stderr
    result = load_builtins((tmp_path / "r.pkl").read_bytes())
    assert result["success"] and result["statistics"]["rules"] == 0, "rules were not found among what is shipped"
    assert os.listdir(bundle.parent) == ["ibp_reduce.pyz"]


def test_other_programs_are_words(bundle, tmp_path):
    usage = run(bundle, "condor-worker")
    assert (usage.returncode, usage.stderr) == (2, "usage: condor_worker.py DIRECTORY TASK CPUS\n")
    assert "--n-jobs" in run(bundle, "explore", "--help").stdout
    words = ["--n-jobs", "2", "--screening", "--lattice-size", "6", "--n-initial", "4", "--n-iterations", "0", "--quiet"]
    done = run(bundle, "explore", *words, "--output-dir", tmp_path / "exploration")
    assert (done.returncode, done.stderr) == (0, "")


def test_without_numpy_one_line_says_so(bundle):
    done = run(bundle, start=[sys.executable, "-S", "ibp_reduce.pyz"])
    assert (done.returncode, done.stderr) == (2, "ibp_reduce: the package numpy is missing: pip install numpy\n")
