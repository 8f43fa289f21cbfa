"""What the tests of several rooms share."""

import concurrent.futures
import contextlib
import importlib
import json
import os
import pickle
import pkgutil
import resource
import struct
import subprocess
import sys
import threading
import time
import zlib
from fractions import Fraction
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import ibp_reduce
from executors.base import InlineExecutor
from executors.files import load_builtins
from executors.tasks import Description, load_outcome, perform
from ibp.console import Reporter
from ibp.controller import Controller
from ibp.families import BUILT_IN_FAMILIES, family_definition
from ibp.identities import Point
from ibp.journal import Journal
from ibp.problems import Problem
from ibp.run_directory import RunDirectory
from ibp.shipped import shipped
from ibp.step_scheme import StepScheme
from ibp.steps import BatchPlan, reduce_steps
from ibp.store import Store
from ibp.tables import unpack_keys

P31 = 2**31 - 1
TRIANGLEBOX = BUILT_IN_FAMILIES["trianglebox"]
HERE = Path(__file__).resolve().parent.parent
DEADLINE_S = 90  # for events that come in a second or two on an idle machine


def wait_until(condition):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def exists(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


class Planted:
    """Makes a directory when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def path_to(*folders):
    """PYTHONPATH of a process that is to find condor_worker."""
    return {"PYTHONPATH": os.pathsep.join(map(str, [HERE, *folders]))}


@contextlib.contextmanager
def limited_file_size(size):
    """No file grows beyond that, neither of this process nor of those it starts."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def priority_of_argument(fn, args, kwargs):
    return Description(priority=args[0])


def lines_of(path):
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def point_of(family, prime=P31, d=None, **invariants) -> Point:
    values = dict(family.point) | invariants
    return Point(Fraction(d or family.d), tuple((name, Fraction(value)) for name, value in values.items()), prime)


def residue(value, p=P31):
    """A rational number modulo p."""
    value = Fraction(value)
    return value.numerator * pow(value.denominator, -1, p) % p


def combine(*terms, p=P31):
    """Sum of factor * expression over (factor, expression), modulo p and without zeros."""
    total = {}
    for factor, expression in terms:
        for integral, value in expression.items():
            total[integral] = (total.get(integral, 0) + factor * value) % p
    return {integral: value for integral, value in total.items() if value}


PRIMES = st.sampled_from([3, 101, 1009, P31])
laws = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def bits_of(indices):
    return sum(1 << i for i, a in enumerate(indices) if a > 0)


SMALL = "1,1,1,1,1,1,-3"  # trianglebox: a second with empty store
PUBLISHED = ["--integral", SMALL, "--paper-masters-only"]  # to independent masters, so that coefficients are unique
BUBBLE = ["--family", "bubble", "--integral", "3,2"]  # a tenth of a second, with search for masters


def program(bare, place, *words, **more):
    command = [sys.executable, str(bare / "ibp_reduce.py"), *map(str, words)]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=DEADLINE_S, **more)


def start(command, place, **more):
    return subprocess.Popen(command, cwd=place, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def start_python(bare, place, code, *words):
    """Start a script that can import the copied program, nothing of this directory."""
    return start([sys.executable, "-c", code, *map(str, words)], place, env=os.environ | {"PYTHONPATH": str(bare)})


def python(bare, place, code, *words):
    """As start_python, to its end."""
    environment = os.environ | {"PYTHONPATH": str(bare)}
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=place, env=environment, capture_output=True, text=True, timeout=DEADLINE_S
    )


def exit_code(words):
    try:
        return ibp_reduce.main(words)
    except SystemExit as end:
        return end.code


def reduced(*words):
    """The result of a run that succeeds, in this process and in the current directory."""
    assert exit_code([*words, "--quiet", "--output", "r.pkl"]) == 0
    return load_builtins(Path("r.pkl").read_bytes())


def snapshot(directory):
    """Every path below a directory, with the bytes of files."""
    return {path.relative_to(directory): path.read_bytes() if path.is_file() else None for path in directory.rglob("*")}


BUBBLE_JSON = {key: value for key, value in family_definition(BUILT_IN_FAMILIES["bubble"]).items() if key != "d"}


def known(path, family=TRIANGLEBOX, point=None):
    """What a store holds; it must say nothing, that is, be sound."""
    said = []
    knowledge = Store(path, say=said.append).load(family, point)
    assert said == []
    return knowledge


def rules_in(knowledge):
    return {(bits, rule) for bits, sector in knowledge.sectors.items() for rule in sector.rules}


INPUT_FILES = {
    "good.txt": "1,1,1,1,1,1,-1\n",
    "empty.txt": "",
    "comments.txt": "# nothing\n\n",
    "short.txt": "1,1,1,1,1,1,-1\n# a comment\n1,1,1\n",
    "word.txt": "1,1,1,1,1,1,-1\n\nhello\n",
    "other.txt": "trianglebox[1,1,1,1,1,1,-1]\ndoublebox[1,1,1,1,1,1,1,0,0]\n",
    "positive.txt": "1,1,1,1,1,1,1\n",
    "nul.txt": "1,1,1,1,1,1,-1\n1,1,1,1,1,1,\0\n",
    "binary.txt": bytes(range(256)),
    "bubble.json": json.dumps(BUBBLE_JSON),
    "a file": "kept",
}


def write_input_files(directory):
    for name, content in INPUT_FILES.items():
        (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (directory / "directory").mkdir()
    os.mkfifo(directory / "pipe")


def check_refused(words, directory, capsys, fragments):
    """Exit code 2, one line that says why, nothing written."""
    before = snapshot(directory)
    capsys.readouterr()
    code = exit_code(words)
    printed, said = capsys.readouterr()
    assert (code, printed) == (2, ""), said
    lines = said.splitlines()
    assert len(lines) == 1 and lines[0].startswith("ibp_reduce: "), said[:2000]
    assert len(said) < 1000, f"{len(said)} characters"
    assert [part for part in fragments if part not in lines[-1]] == [], lines[-1]
    assert snapshot(directory) == before


class Touches:
    """Unpickled without care, it makes a file."""

    def __reduce__(self):
        return os.mkdir, ("broken-out",)


def flipped(data, offset, mask=0xFF):
    return data[:offset] + bytes([data[offset] ^ mask]) + data[offset + 1 :]


@contextlib.contextmanager
def ended(process):
    """Whatever happens, the process outlives neither the test nor the deadline, at which reading from it ends."""
    watchdog = threading.Timer(DEADLINE_S, process.kill)
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


def numbers_of(expression):
    """An expression in integrals of one family, from text 'name[1,0]' to tuples."""
    return {tuple(map(int, term.partition("[")[2][:-1].split(","))): value for term, value in expression.items()}


def problem_of(name, targets, prime=P31, **options):
    return Problem(BUILT_IN_FAMILIES[name], point_of(BUILT_IN_FAMILIES[name], prime), tuple(targets), **options)


def run_steps(work, name, targets, batch=None, job_seconds=1.0, executor=None, shelves=(), said=None, **options):
    """Outcome of a run of one-step tasks in a work directory, where its journal stays."""
    problem = problem_of(name, targets, **options)
    directory, reporter = RunDirectory(Path(work)), Reporter()
    directory.path.mkdir(exist_ok=True)
    reporter.say = (said if said is not None else []).append
    with contextlib.closing(Journal(directory.journal, problem.name, reporter.say)) as journal:
        scheme = StepScheme(directory, journal, BatchPlan(batch, job_seconds))
        return Controller(problem, executor or InlineExecutor(), shelves, reporter, scheme=scheme).run()


def said_by(outcome):
    return outcome.reductions, outcome.masters, outcome.unreduced


class Observed(InlineExecutor):
    """Remembers the calls of one-step tasks, with None after each round; `change` may put another result in place, or an exception.

    left: calls that an earlier controller is said to have left, each perhaps with what changes its result.
    """

    def __init__(self, change=lambda args, result: result, left=()):
        super().__init__()
        self.change, self.left, self.rounds = change, left, []

    def submit(self, fn, /, *args, **kwargs):
        self.rounds.append(args)
        return self._changed_result(super().submit(fn, *args, **kwargs), args, self.change)

    def _changed_result(self, done, args, change):
        future = concurrent.futures.Future()
        try:
            future.set_result(change(args, done.result()))
        except Exception as error:
            future.set_exception(error)
        return future

    def recover(self):
        return [(self._changed_result(super(Observed, self).submit(reduce_steps, *args), args, change), reduce_steps, args, {})
                for args, change in self.left]  # fmt: skip

    def forget(self, future):
        self.rounds.append(None)

    @property
    def calls(self):
        return [args for args in self.rounds if args is not None]

    @property
    def keys(self):
        """All that was asked for: [(sector, key)]."""
        return [pair for args in self.calls for pair in pairs(args[2])]


def pairs(packed):
    return [(bits, key) for bits, keys in packed.items() for key in unpack_keys(keys).tolist()]


def records_of(journal):
    """The whole records of a journal, read without the program; [] if not even its header is whole."""
    data, found = Path(journal).read_bytes(), []
    while len(data) >= 20:
        length, _ = struct.unpack("<I16s", data[:20])
        if len(data) < 20 + length:
            break
        found.append(pickle.loads(zlib.decompress(data[20 : 20 + length])))
        data = data[20 + length :]
    return found[1:]


def done_in(journal):
    return [pair for record in records_of(journal) if "done" in record for pair in pairs({record["sector"]: record["done"]})]


def with_cpus(cpus, fn, *args):
    value, error = load_outcome(perform(pickle.dumps((fn, args, {})), cpus=cpus))
    assert error is None, error
    return value


# at the head of a script: replace(name, value) in all rooms that have the name, as patch_rooms does
PATCHING = """
import importlib, pkgutil, sys
import ibp, ibp_reduce
ROOMS = [ibp_reduce, *(importlib.import_module(f"ibp.{room.name}") for room in pkgutil.iter_modules(ibp.__path__))]

def replace(name, value):
    having = [room for room in ROOMS if name in vars(room)]
    assert having, name
    for room in having:
        setattr(room, name, value)
"""
# the program, which stops after so many additions to its journal until it gets a line
HELD = f"""{PATCHING}
from ibp.journal import Journal

program, count, *words = sys.argv[1:]
original, left = Journal.append, int(count)
replace("STATUS_INTERVAL_S", 0.01)

def append(self, value):
    global left
    position, left = original(self, value), left - 1
    if left == 0:
        print('held', flush=True)
        sys.stdin.readline()
    return position

Journal.append = append
sys.argv = [program, *words]
sys.exit(ibp_reduce.main())
"""


def said(capsys, words, code):
    """What the program says in this process."""
    capsys.readouterr()
    assert exit_code(words) == code
    printed, line = capsys.readouterr()
    return printed if code == 0 else line


def run_and_hear(capsys, words):
    capsys.readouterr()
    assert exit_code(words) == 0
    return capsys.readouterr().err


def rooms(package):
    """All modules of a package of this project, and the program in front of it."""
    names = [f"{package}.{room.name}" for room in pkgutil.iter_modules([str(HERE / package)])]
    program = {"ibp": "ibp_reduce", "phases": "explorer", "executors": "condor_worker"}[package]
    return [importlib.import_module(name) for name in (*names, program)]


def patch_rooms(patch, package, name, value):
    """Replace a name wherever a room of a package has it: rooms import names, each its own copy."""
    having = [room for room in rooms(package) if name in vars(room)]
    assert having, f"no room of {package} has {name}"
    for room in having:
        patch.setattr(room, name, value)


def ship_from(patch, folder):
    """In place of what is shipped, a folder of the test's; families stay."""
    patch_rooms(patch, "ibp", "shipped", lambda name: shipped(name) if "/" in name else folder / name)
