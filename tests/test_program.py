"""The program as a job runs it, above all as one zip file."""

import os
import pickle
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest
import support_executors as jobs
from support import DEADLINE_S, HERE
from support_condor import results

from executors.program import modules_of, packed
from executors.tasks import Shared

MAIN = """
import sys

def main():
    if sys.argv[1] == "condor-worker":
        import condor_worker
        return condor_worker.main(sys.argv[2:])
    from executors.condor import CondorExecutor
    from executors.local import LocalExecutor
    from toys.numbers import where, work
    kind, directory = sys.argv[1:]
    if kind == "local":
        executor = LocalExecutor(2)
    else:
        executor = CondorExecutor(directory, check_interval_s=0.2, transfer_files=kind == "transfer")
    with executor:
        print(list(executor.map(work, range(4))), executor.submit(where).result())

if __name__ == "__main__":
    sys.exit(main())
"""
TOYS = "import os\nNAME = '__main__ is named here'\ndef work(x):\n    return x * x\ndef where():\n    return __file__, os.getcwd()\n"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A program that is one zip file, with a package of its own, under an awkward name."""
    path = tmp_path_factory.mktemp("bundle") / """it's a "toy", $(x) ü.pyz"""
    with zipfile.ZipFile(path, "w") as archive:
        for source in (HERE / "condor_worker.py", *(HERE / "executors").glob("*.py")):
            archive.write(source, source.relative_to(HERE).as_posix())
        for name, text in {"__main__.py": MAIN, "toys/__init__.py": "", "toys/numbers.py": TOYS}.items():
            archive.writestr(name, text)
    return path


def run(bundle, kind, directory):
    """(where the function's source stands, where it ran)"""
    done = subprocess.run(
        [sys.executable, bundle.name, kind, directory], cwd=bundle.parent, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.stderr == "" and done.stdout.startswith("[0, 1, 4, 9] ("), done
    return map(Path, eval(done.stdout.removeprefix("[0, 1, 4, 9] ")))


def test_local_processes_of_a_zip_file(bundle, tmp_path):
    source, where = run(bundle, "local", tmp_path)
    assert source == bundle / "toys" / "numbers.py" and where == bundle.parent


def test_jobs_of_a_zip_file(fake, bundle, tmp_path):
    fake.set(run="background")
    source, where = run(bundle, "condor", tmp_path / "jobs")
    assert source == bundle / "toys" / "numbers.py" and where == tmp_path / "jobs"


def test_the_zip_file_travels_with_its_jobs(fake, bundle, tmp_path):
    fake.set(run="background")
    source, where = run(bundle, "transfer", tmp_path / "jobs")
    assert where.name.startswith("scratch-") and source.is_relative_to(where)
    assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == ["events.jsonl", "jobs.log", "run.json"]


@pytest.mark.condor
@pytest.mark.parametrize("kind", ["condor", "transfer"])
def test_a_pool_runs_a_zip_file(real_pool, bundle, tmp_path, kind):
    source, where = run(bundle, kind, tmp_path / "it's here")
    assert source.is_relative_to(where if kind == "transfer" else bundle)


def test_what_travels_with_a_job(fake, make, tmp_path):
    """The program with the function's module, Shared values, the call; the job runs elsewhere and finds all in its own directory."""
    fake.set(run="background")
    value = {"table": list(range(1000))}
    shared = Shared.write(value, tmp_path / "else, where")
    with make(transfer_files=True) as executor:
        state, values = executor.submit(jobs.state), [executor.submit(jobs.read, shared) for _ in range(3)]
        assert Path(state.result(DEADLINE_S)["cwd"]).name.startswith("scratch-") and results(values) == [value] * 3
        ads = [job.ad for job in fake.history()]
        assert {ad["should_transfer_files"] for ad in ads} == {"YES"} and {ad["when_to_transfer_output"] for ad in ads} == {"ON_EXIT"}
        (program, call), *others = [ad["transfer_input_files"].split(",") for ad in ads]
        assert all([program, f"{shared.digest}.shared"] == names[:2] and len(names) == 3 for names in others) and call.endswith(".call")
        with zipfile.ZipFile(executor.directory / program) as archive:
            names = set(archive.namelist())
        assert {"__main__.py", "condor_worker.py", "executors/tasks.py", "support_executors.py"} <= names
        assert {name.partition("/")[0] for name in names if "/" in name} == {"executors"}
    assert not list(executor.directory.glob("*.pyz")) and not list(executor.directory.glob("*.shared")) and Path(shared.path).exists()


def test_a_changed_module_travels_as_it_is_now(fake, make, tmp_path, monkeypatch):
    fake.set(run="background")
    monkeypatch.syspath_prepend(str(tmp_path))
    for answer in "first", "second":
        (tmp_path / "changing").mkdir(exist_ok=True)
        (tmp_path / "changing" / "__init__.py").write_text("from changing.inner import answer\n")
        (tmp_path / "changing" / "inner.py").write_text(f"def answer():\n    return '{answer}', __file__\n")
        for name in [name for name in sys.modules if name.partition(".")[0] == "changing"]:
            del sys.modules[name]
        import changing

        said, file = make(transfer_files=True).submit(changing.answer).result(DEADLINE_S)
        assert said == answer and "scratch-" in file and ".pyz" in file


def test_the_same_files_make_the_same_bytes():
    assert packed(["support_executors"]) == packed(("support_executors",)) != packed([])
    assert packed(["numpy", "json", "sys", "no_such_module"]) == packed([])  # installed with Python, or nowhere


def test_modules_that_a_call_names():
    call = (jobs.fail, (jobs.SectorError, os.path.join, types.SimpleNamespace(), Path("x")), {"y": "json.loads"})
    assert modules_of(pickle.dumps(call)) == {"support_executors", "posixpath", "types", "pathlib"}
    assert modules_of(b"damaged") == frozenset()


def test_of_installed_packages_only_those_of_this_program_travel(tmp_path):
    site = tmp_path / "site-packages"
    shutil.copytree(HERE / "executors", site / "executors", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(HERE / "condor_worker.py", site)
    for project, packages in {"mine": ["executors", "ours"], "other": ["theirs"]}.items():
        (site / f"{project}-1.dist-info").mkdir()
        (site / f"{project}-1.dist-info" / "METADATA").write_text(f"Name: {project}\nVersion: 1\n")
        (site / f"{project}-1.dist-info" / "top_level.txt").write_text("\n".join(packages))
        for package in packages:
            (site / package).mkdir(exist_ok=True)
            (site / package / "__init__.py").touch()
    code = "import io, zipfile, ours, theirs, executors.program as program\n"
    code += "names = zipfile.ZipFile(io.BytesIO(program.packed(['ours', 'theirs', 'zipfile']))).namelist()\n"
    code += "print(program.__file__, *sorted({name.partition('/')[0] for name in names if not name.endswith('.pyc')}))"
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=site, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.stdout.split() == [str(site / "executors" / "program.py"), "__main__.py", "condor_worker.py", "executors", "ours"], done
