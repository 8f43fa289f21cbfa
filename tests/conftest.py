"""Fixtures: executors, stores, places to run in, what is learned or computed once for many tests."""

import contextlib
import functools
import os
import pickle
import py_compile
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import fake_condor
import numpy as np
import pytest
from support import HERE, P31, PUBLISHED, TRIANGLEBOX, exit_code, patch_rooms, point_of, reduced, ship_from
from support_condor import SHORT_WAITS
from support_explorer import TINY, explore
from support_learning import guide_ground, run_training, training_in
from support_oracles import BOX_BY_BEAM, DIFFERENTIAL, SHIPPED

from executors.base import InlineExecutor
from executors.condor import CondorExecutor
from executors.local import LocalExecutor
from ibp.console import Progress, Reporter
from ibp.controller import Controller
from ibp.families import BUILT_IN_FAMILIES
from ibp.policy import make_network
from ibp.problems import Outcome, Problem
from ibp.store import Store
from ibp.training import first_guide, train_guide
from ibp.training_data import local_rule, make_training_data, pack_rules, random_target, unpack_rules


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """A shell's background job ignores Ctrl-C, and so would every program that the tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def bytecode():
    """Hundreds of processes import these files; the environment may keep Python from writing down what it has compiled."""
    for path in (*HERE.glob("*.py"), *HERE.glob("*/*.py")):
        with contextlib.suppress(OSError):  # a place where nothing can be written
            py_compile.compile(str(path))


@pytest.fixture(scope="session")
def one_torch_thread():
    """More of them are slower here (thirty times where the cores are busy), and sums come out in another order."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pool():
    with LocalExecutor(2) as executor:
        executor.warm_up()
        yield executor


@pytest.fixture(scope="session")
def fake_tools(tmp_path_factory):
    """The directory of the tools of a pool that is none."""
    folder = tmp_path_factory.mktemp("tools")
    fake_condor.install(folder)
    forge = [sys.executable, "-IS", fake_condor.__file__]
    with subprocess.Popen(forge, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as fake_condor.Pool.forge:
        yield folder


@pytest.fixture
def fake(fake_tools, tmp_path, monkeypatch, quick):
    """An empty pool, the tools of which come first on PATH."""
    (tmp_path / "pool").mkdir()
    monkeypatch.setenv("FAKE_CONDOR", str(tmp_path / "pool"))
    monkeypatch.setenv("PATH", f"{fake_tools}{os.pathsep}{os.environ['PATH']}")
    pool = fake_condor.Pool(str(tmp_path / "pool"))
    yield pool
    pool.kill()


@pytest.fixture
def quick(monkeypatch):
    """Waits of the executors, shortened."""
    for name, value in SHORT_WAITS.items():
        patch_rooms(monkeypatch, "executors", name, value)


@pytest.fixture
def memory_path():
    """A directory in memory, if that can be: a test of thousands of files is not one of the disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def make(tmp_path, fake):
    """Makes executors, which are gone after the test."""
    with contextlib.ExitStack() as stack:

        def make(directory=tmp_path / "work" / "condor", **options):
            executor = CondorExecutor(directory, **({"check_interval_s": 0.08} | options))
            stack.callback(executor.detach)
            return executor

        yield make


@pytest.fixture(scope="session")
def real_pool():
    if shutil.which("condor_submit") is None:
        pytest.skip("condor_submit is not on PATH")
    try:
        answer = subprocess.run(["condor_q", "-totals"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"condor_q does not answer: {error}")
    if answer.returncode != 0:
        pytest.skip(f"condor_q fails: {answer.stderr.strip()}")


@pytest.fixture(scope="session")
def shelves(tmp_path_factory):
    """The shipped rules, and a store that every test of the session learns from and adds to."""
    session_store = Store(tmp_path_factory.mktemp("rules") / "session.shelf")
    return [Store(SHIPPED, read_only=True), session_store] if SHIPPED.exists() else [session_store]


@pytest.fixture(scope="session")
def reduce_at(shelves):
    """reduce_at(family, targets, prime=…, point=…, **Problem options) -> Outcome, with the rules of the session."""

    def run(family, targets, prime=P31, point=None, shelves=shelves, executor=None, **options) -> Outcome:
        family = BUILT_IN_FAMILIES.get(family, family)
        problem = Problem(family, point or point_of(family, prime), tuple(targets), **options)
        return Controller(problem, executor or InlineExecutor(), shelves, Progress(quiet=True)).run()

    return run


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty current directory, and no shipped rules, so that what is found depends on nothing else."""
    monkeypatch.chdir(tmp_path)
    ship_from(monkeypatch, tmp_path / "nothing shipped")
    return tmp_path


@pytest.fixture(scope="session")
def bare(tmp_path_factory):
    """A copy of the two programs, their rooms and families alone, in a directory whose name a careless command line would break."""
    directory = tmp_path_factory.mktemp("bare") / 'it\'s a "copy"'
    directory.mkdir()
    for name in ("ibp_reduce.py", "condor_worker.py"):
        shutil.copy(HERE / name, directory)
    for name in ("executors", "ibp", "data/families"):
        shutil.copytree(HERE / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    return directory


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A store with the rules for STEPS, which saves the time of the search."""
    directory = tmp_path_factory.mktemp("learned")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        ship_from(patch, directory / "nothing shipped")
        reduced(*PUBLISHED, "--store", "s")
    return directory / "s"


@pytest.fixture
def ready(place, learned):
    shutil.copy(learned, place / "s")
    return place


@pytest.fixture(scope="module")
def network(one_torch_thread):
    import torch

    torch.manual_seed(7)
    return make_network(16).eval()


@pytest.fixture(scope="session")
def examples(one_torch_thread, tmp_path_factory):
    path = tmp_path_factory.mktemp("examples") / "t.npz"
    make_training_data([BUILT_IN_FAMILIES[name] for name in ("bubble", "box")], 24, 0, path, InlineExecutor(), Reporter())
    return path


@pytest.fixture(scope="session")
def trained(examples, tmp_path_factory):
    """A directory with the weights, the curve and the checkpoint of two epochs."""
    directory = tmp_path_factory.mktemp("trained")
    run_training(training_in(directory, examples))
    return directory


@pytest.fixture(scope="session")
def lessons():
    """What a guide learns from, of three sectors of trianglebox, as a training file has it."""
    parts = []
    for bits in (0b011110, 0b111101, 0b110110):
        finder, rng = guide_ground("trianglebox", bits), np.random.default_rng(bits)
        bases = [random_target(finder.sector, rng) for _ in range(60)]
        parts.append(pack_rules(TRIANGLEBOX, finder, [(base, rule) for base in bases if (rule := local_rule(finder, base))]))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.fixture(scope="session")
def trained_guide(lessons, one_torch_thread):
    """Weights after some passes through these lessons, and what they were before."""
    import torch

    first, rng = first_guide(0), np.random.default_rng(0)
    weights = first_guide(0)
    optimizer = torch.optim.AdamW(weights.values(), 5e-3)
    for _ in range(30):
        assert train_guide(weights, optimizer, unpack_rules(lessons), rng)
    return {name: values.detach().numpy() for name, values in weights.items()}, first


@pytest.fixture(scope="module")
def paths_file(tmp_path_factory):
    directory = tmp_path_factory.mktemp("paths")
    words = ["--output", str(directory / "r.pkl"), "--work-dir", str(directory / "w"), "--paths", str(directory / "p")]
    assert exit_code([*BOX_BY_BEAM, *words]) == 0
    return directory / "p"


@pytest.fixture(scope="session")
def equations(tmp_path_factory):
    """equations(family, variables, …) -> the result of a run, each made once in a session."""
    directory = tmp_path_factory.mktemp("equations")

    @functools.cache
    def run(family, variables=None, *more):
        variables = variables or DIFFERENTIAL[family]
        words = ["differentiate", variables, "--family", family, *more, "--quiet", "--work-dir", str(directory / "work")]
        output = directory / f"{family}-{variables}-{len(os.listdir(directory))}.pkl"
        assert exit_code([*words, "--output", str(output)]) == 0
        return pickle.loads(output.read_bytes()) | {"path": output}

    return run


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """A finished run in an empty directory with an awkward name, by two processes: (directory, what it printed)."""
    place = tmp_path_factory.mktemp("an awkward näme; $x 'y")
    done = explore(*TINY, "--n-jobs", "2", "--output-dir", "my run", "--plots", "--report", "out here/report.html", cwd=place)
    assert done.returncode == 0, done.stderr
    return place / "my run", done
